//! Workers on the wire.

use serde::{Deserialize, Serialize};

use super::{BorrowedText, ClaimJson, DEFAULT_TENANT, check_fence};
use crate::api::error_table::ApiError;
use crate::api::http::extract::{BoundedList, RawItems};
use crate::limits;
use crate::model::{
    ClaimId, Fence, HeartbeatRequest, HeartbeatResponse, Labels, LivenessState, Millis, RegistrationRequest,
    RegistrationResponse, RunningClaim, SchedulingState, Seq, TrustState, WorkerCapacity, WorkerId, WorkerSpec,
    WorkerView, json_object, present, unique_keys,
};

/// A claim that a worker says it runs. Its namespace is the pool's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ReportedClaimBody<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<BorrowedText<'a>>,
    #[serde(borrow)]
    pub(in crate::api) key: BorrowedText<'a>,
    pub(in crate::api) fence: Fence,
}

/// What a worker says it runs.
pub(in crate::api) type ReportedClaimBodies<'a> = BoundedList<ReportedClaimBody<'a>, { limits::REPORTED_CLAIMS_MAX }>;

fn reported_claims(namespace: &str, claims: &ReportedClaimBodies<'_>) -> Result<Vec<RunningClaim>, ApiError> {
    let read = claims.0.iter().enumerate().map(|(index, named)| {
        let tenant = named.tenant.as_ref().map_or(DEFAULT_TENANT, |text| &text.0);
        let id = ClaimId::new(namespace, tenant, &named.key.0).map_err(ApiError::from);
        let fence = check_fence(named.fence);
        id.and_then(|id| Ok(RunningClaim { id, fence: fence? })).map_err(|failure| failure.for_item("claims", index))
    });
    read.collect()
}

/// What a worker says of itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct HeartbeatBody<'a> {
    #[serde(default)]
    pub(in crate::api) incarnation: u64,
    #[serde(default, deserialize_with = "present")]
    pub(in crate::api) seq: Option<u64>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) claims: Option<ReportedClaimBodies<'a>>,
}

impl HeartbeatBody<'_> {
    /// Checks every name.
    pub(in crate::api) fn heartbeat(&self, namespace: &str) -> Result<HeartbeatRequest, ApiError> {
        let claims = self.claims.as_ref().map(|claims| reported_claims(namespace, claims)).transpose()?;
        Ok(HeartbeatRequest { incarnation: self.incarnation, seq: self.seq, claims })
    }
}

/// A heartbeat in a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct HeartbeatItem<'a> {
    #[serde(borrow)]
    id: BorrowedText<'a>,
    #[serde(default)]
    incarnation: u64,
    #[serde(default, deserialize_with = "present")]
    seq: Option<u64>,
    #[serde(borrow, default, deserialize_with = "present")]
    claims: Option<ReportedClaimBodies<'a>>,
}

impl HeartbeatItem<'_> {
    /// Checks every name.
    pub(in crate::api::http) fn into_heartbeat(
        self,
        namespace: &str,
    ) -> Result<(WorkerId, HeartbeatRequest), ApiError> {
        let Self { id, incarnation, seq, claims } = self;
        Ok((WorkerId::new(&id.0)?, HeartbeatBody { incarnation, seq, claims }.heartbeat(namespace)?))
    }
}

/// A registration; the id is in the path.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(in crate::api) struct WorkerBody<'a> {
    #[serde(deserialize_with = "json_object")]
    pub(in crate::api) capacity: WorkerCapacity,
    #[serde(deserialize_with = "unique_keys")]
    pub(in crate::api) labels: Labels,
    #[serde(deserialize_with = "present")]
    pub(in crate::api) node: Option<String>,
    pub(in crate::api) incarnation: u64,
    #[serde(deserialize_with = "present")]
    pub(in crate::api) expires_at_ms: Option<Millis>,
    #[serde(borrow, deserialize_with = "present")]
    pub(in crate::api) claims: Option<ReportedClaimBodies<'a>>,
}

impl WorkerBody<'_> {
    /// Checks every field.
    pub(in crate::api) fn into_registration(self, namespace: &str, id: &str) -> Result<RegistrationRequest, ApiError> {
        let Self { capacity, labels, node, incarnation, expires_at_ms, claims } = self;
        let (id, node) = (WorkerId::new(id)?, node.map(Into::into));
        let spec = WorkerSpec { id, capacity, labels, node, incarnation, expires_at_ms };
        spec.check()?;
        Ok(RegistrationRequest { spec, claims: claims.map(|claims| reported_claims(namespace, &claims)).transpose()? })
    }
}

/// A registration in a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct WorkerItem<'a> {
    #[serde(borrow)]
    id: BorrowedText<'a>,
    #[serde(default, deserialize_with = "json_object")]
    capacity: WorkerCapacity,
    #[serde(default, deserialize_with = "unique_keys")]
    labels: Labels,
    #[serde(default, deserialize_with = "present")]
    node: Option<String>,
    #[serde(default)]
    incarnation: u64,
    #[serde(default, deserialize_with = "present")]
    expires_at_ms: Option<Millis>,
    #[serde(borrow, default, deserialize_with = "present")]
    claims: Option<ReportedClaimBodies<'a>>,
}

impl WorkerItem<'_> {
    /// Checks every field.
    pub(in crate::api::http) fn into_registration(self, namespace: &str) -> Result<RegistrationRequest, ApiError> {
        let Self { id, capacity, labels, node, incarnation, expires_at_ms, claims } = self;
        WorkerBody { capacity, labels, node, incarnation, expires_at_ms, claims }.into_registration(namespace, &id.0)
    }
}

/// Many registrations, or many heartbeats.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct WorkersBatch<'a> {
    #[serde(borrow)]
    pub(in crate::api::http) workers: RawItems<'a>,
}

/// A worker.
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

/// `{"worker":{...}}`; after a registration that named claims also those that the worker should not run.
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

/// A claim by its name and number.
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

/// `{"claims":[...],"stop":[...]}`; of one that came late also `"ignored":true` and the `last_seq` that it has to exceed.
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
    fn from(heard: &'a HeartbeatResponse) -> Self {
        Self {
            claims: heard.claims.iter().map(Into::into).collect(),
            stop: heard.stop.iter().map(Into::into).collect(),
            ignored: heard.superseded_by.is_some(),
            last_seq: heard.superseded_by,
        }
    }
}

/// `{"claims","stop"}` or `{"error"}`.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::api::http) enum HeartbeatOutcome<'a> {
    Done(HeartbeatResponseBody<'a>),
    Failed(&'a ApiError),
}

impl<'a> From<&'a Result<HeartbeatResponse, ApiError>> for HeartbeatOutcome<'a> {
    fn from(outcome: &'a Result<HeartbeatResponse, ApiError>) -> Self {
        match outcome {
            Ok(heard) => Self::Done(heard.into()),
            Err(failure) => Self::Failed(failure),
        }
    }
}

/// `{"worker","created"}` or `{"error"}`.
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
