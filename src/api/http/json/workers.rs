//! Response bodies for workers and heartbeats.

use serde::Serialize;

use super::ClaimJson;
use crate::api::error_table::ApiError;
use crate::model::{
    Fence, HeartbeatResponse, Labels, LivenessState, Millis, RegistrationResponse, RunningClaim, SchedulingState, Seq,
    TrustState, WorkerCapacity, WorkerView,
};

/// Worker with its state and its claims.
#[derive(Serialize)]
pub(in crate::api::http) struct WorkerJson<'a> {
    id: &'a str,
    capacity: &'a WorkerCapacity,
    labels: &'a Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    incarnation: u64,
    occupancy: &'static str,
    schedulability: SchedulingState,
    liveness: LivenessState,
    trust: TrustState,
    overcommitted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<Millis>,
    version: Seq,
    shard: u16,
    claims: Vec<ClaimJson<'a>>,
}

impl<'a> From<&'a WorkerView> for WorkerJson<'a> {
    fn from(worker: &'a WorkerView) -> Self {
        let spec = &worker.registration.spec;
        Self {
            id: spec.id.as_str(),
            capacity: &spec.capacity,
            labels: &spec.labels,
            node: spec.node.as_deref(),
            incarnation: spec.incarnation,
            occupancy: if worker.busy { "busy" } else { "idle" },
            schedulability: worker.schedulability,
            liveness: worker.liveness,
            trust: worker.trust,
            overcommitted: worker.overcommitted,
            expires_at_ms: spec.expires_at_ms,
            version: worker.version,
            shard: worker.shard,
            claims: worker.claims.iter().map(Into::into).collect(),
        }
    }
}

/// `{"worker":{...}}`; after a registration that reported claims also those that the worker must stop.
#[derive(Serialize)]
pub(in crate::api::http) struct WorkerResponseBody<'a> {
    worker: WorkerJson<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop: Vec<ReportedClaimJson<'a>>,
}

impl<'a> From<&'a WorkerView> for WorkerResponseBody<'a> {
    fn from(worker: &'a WorkerView) -> Self {
        Self { worker: worker.into(), stop: Vec::new() }
    }
}

impl<'a> From<&'a RegistrationResponse> for WorkerResponseBody<'a> {
    fn from(registered: &'a RegistrationResponse) -> Self {
        let stop = registered.stop.iter().map(Into::into).collect();
        Self { worker: (&registered.worker).into(), stop }
    }
}

/// Claim by its key, tenant and fence.
#[derive(Serialize)]
pub(in crate::api::http) struct ReportedClaimJson<'a> {
    key: &'a str,
    tenant: &'a str,
    fence: Fence,
}

impl<'a> From<&'a RunningClaim> for ReportedClaimJson<'a> {
    fn from(claim: &'a RunningClaim) -> Self {
        Self { key: claim.id.key(), tenant: claim.id.tenant(), fence: claim.fence }
    }
}

/// `{"claims":[...],"stop":[...]}`; for a heartbeat that arrived out of order also `"ignored":true` and the `last_seq`
/// that the next one must exceed.
#[derive(Serialize)]
pub(in crate::api::http) struct HeartbeatResponseBody<'a> {
    claims: Vec<ClaimJson<'a>>,
    stop: Vec<ReportedClaimJson<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignored: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seq: Option<u64>,
}

impl<'a> From<&'a HeartbeatResponse> for HeartbeatResponseBody<'a> {
    fn from(response: &'a HeartbeatResponse) -> Self {
        Self {
            claims: response.claims.iter().map(Into::into).collect(),
            stop: response.stop.iter().map(Into::into).collect(),
            ignored: response.superseded_by.is_some(),
            last_seq: response.superseded_by,
        }
    }
}

/// `{"claims","stop"}` or `{"error"}`: outcome of one heartbeat of a batch.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::api::http) enum HeartbeatOutcome<'a> {
    Done(HeartbeatResponseBody<'a>),
    Failed(&'a ApiError),
}

impl<'a> From<&'a Result<HeartbeatResponse, ApiError>> for HeartbeatOutcome<'a> {
    fn from(outcome: &'a Result<HeartbeatResponse, ApiError>) -> Self {
        match outcome {
            Ok(response) => Self::Done(response.into()),
            Err(failure) => Self::Failed(failure),
        }
    }
}

/// `{"worker","created"}` or `{"error"}`: outcome of one registration of a batch.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::api::http) enum WorkerOutcome<'a> {
    Done {
        worker: WorkerJson<'a>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        stop: Vec<ReportedClaimJson<'a>>,
        created: bool,
    },
    Failed(&'a ApiError),
}

impl<'a> From<&'a Result<RegistrationResponse, ApiError>> for WorkerOutcome<'a> {
    fn from(outcome: &'a Result<RegistrationResponse, ApiError>) -> Self {
        match outcome {
            Ok(registered) => {
                let WorkerResponseBody { worker, stop } = registered.into();
                Self::Done { worker, stop, created: registered.created }
            }
            Err(failure) => Self::Failed(failure),
        }
    }
}
