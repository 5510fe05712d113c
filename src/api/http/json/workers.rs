//! Workers on the wire.

use serde::{Deserialize, Serialize};

use super::{ClaimJson, TENANT_DEFAULT, Text, fence};
use crate::api::error_table::Failure;
use crate::api::http::read::{Items, List};
use crate::limits;
use crate::model::{
    Beat, Capacity, ClaimId, Fence, Heard, Labels, Liveness, Millis, Registered, Registration, RunningClaim,
    Schedulability, Seq, Trust, WorkerId, WorkerSpec, WorkerView, json_object, present, unique_keys,
};

/// A claim that a worker says it runs. Its namespace is the pool's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NamedBody<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<Text<'a>>,
    #[serde(borrow)]
    pub(in crate::api) key: Text<'a>,
    pub(in crate::api) fence: Fence,
}

/// What a worker says it runs.
pub(in crate::api) type NamedBodies<'a> = List<NamedBody<'a>, { limits::NAMED_CLAIMS_MAX }>;

fn running(namespace: &str, claims: &NamedBodies<'_>) -> Result<Vec<RunningClaim>, Failure> {
    let read = claims.0.iter().enumerate().map(|(index, named)| {
        let tenant = named.tenant.as_ref().map_or(TENANT_DEFAULT, |text| &text.0);
        let id = ClaimId::new(namespace, tenant, &named.key.0).map_err(Failure::from);
        let fence = fence(named.fence);
        id.and_then(|id| Ok(RunningClaim { id, fence: fence? })).map_err(|failure| failure.in_item("claims", index))
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
    pub(in crate::api) claims: Option<NamedBodies<'a>>,
}

impl HeartbeatBody<'_> {
    /// Checks every name.
    pub(in crate::api) fn beat(&self, namespace: &str) -> Result<Beat, Failure> {
        let claims = self.claims.as_ref().map(|claims| running(namespace, claims)).transpose()?;
        Ok(Beat { incarnation: self.incarnation, seq: self.seq, claims })
    }
}

/// A heartbeat in a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct HeartbeatItem<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(default)]
    incarnation: u64,
    #[serde(default, deserialize_with = "present")]
    seq: Option<u64>,
    #[serde(borrow, default, deserialize_with = "present")]
    claims: Option<NamedBodies<'a>>,
}

impl HeartbeatItem<'_> {
    /// Checks every name.
    pub(in crate::api::http) fn beat(self, namespace: &str) -> Result<(WorkerId, Beat), Failure> {
        let Self { id, incarnation, seq, claims } = self;
        Ok((WorkerId::new(&id.0)?, HeartbeatBody { incarnation, seq, claims }.beat(namespace)?))
    }
}

/// A registration; the id is in the path.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(in crate::api) struct WorkerBody<'a> {
    #[serde(deserialize_with = "json_object")]
    pub(in crate::api) capacity: Capacity,
    #[serde(deserialize_with = "unique_keys")]
    pub(in crate::api) labels: Labels,
    #[serde(deserialize_with = "present")]
    pub(in crate::api) node: Option<String>,
    pub(in crate::api) incarnation: u64,
    #[serde(deserialize_with = "present")]
    pub(in crate::api) expires_at_ms: Option<Millis>,
    #[serde(borrow, deserialize_with = "present")]
    pub(in crate::api) claims: Option<NamedBodies<'a>>,
}

impl WorkerBody<'_> {
    /// Checks every field.
    pub(in crate::api) fn registration(self, namespace: &str, id: &str) -> Result<Registration, Failure> {
        let Self { capacity, labels, node, incarnation, expires_at_ms, claims } = self;
        let (id, node) = (WorkerId::new(id)?, node.map(Into::into));
        let spec = WorkerSpec { id, capacity, labels, node, incarnation, expires_at_ms };
        spec.check()?;
        Ok(Registration { spec, claims: claims.map(|claims| running(namespace, &claims)).transpose()? })
    }
}

/// A registration in a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct WorkerItem<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(default, deserialize_with = "json_object")]
    capacity: Capacity,
    #[serde(default, deserialize_with = "unique_keys")]
    labels: Labels,
    #[serde(default, deserialize_with = "present")]
    node: Option<String>,
    #[serde(default)]
    incarnation: u64,
    #[serde(default, deserialize_with = "present")]
    expires_at_ms: Option<Millis>,
    #[serde(borrow, default, deserialize_with = "present")]
    claims: Option<NamedBodies<'a>>,
}

impl WorkerItem<'_> {
    /// Checks every field.
    pub(in crate::api::http) fn registration(self, namespace: &str) -> Result<Registration, Failure> {
        let Self { id, capacity, labels, node, incarnation, expires_at_ms, claims } = self;
        WorkerBody { capacity, labels, node, incarnation, expires_at_ms, claims }.registration(namespace, &id.0)
    }
}

/// Many registrations, or many heartbeats.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api::http) struct WorkersBatch<'a> {
    #[serde(borrow)]
    pub(in crate::api::http) workers: Items<'a>,
}

/// A worker.
#[derive(Serialize)]
pub(in crate::api::http) struct WorkerJson<'a> {
    id: &'a str,
    capacity: &'a Capacity,
    labels: &'a Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    incarnation: u64,
    occupancy: &'static str,
    schedulability: Schedulability,
    liveness: Liveness,
    trust: Trust,
    overcommitted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<Millis>,
    version: Seq,
    shard: u16,
    claims: Vec<ClaimJson<'a>>,
}

impl<'a> From<&'a WorkerView> for WorkerJson<'a> {
    fn from(worker: &'a WorkerView) -> Self {
        let spec = &worker.card.spec;
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
pub(in crate::api::http) struct WorkerAnswer<'a> {
    worker: WorkerJson<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop: Vec<NamedJson<'a>>,
}

impl<'a> From<&'a WorkerView> for WorkerAnswer<'a> {
    fn from(worker: &'a WorkerView) -> Self {
        Self { worker: worker.into(), stop: Vec::new() }
    }
}

impl<'a> From<&'a Registered> for WorkerAnswer<'a> {
    fn from(registered: &'a Registered) -> Self {
        let stop = registered.stop.iter().map(Into::into).collect();
        Self { worker: (&registered.worker).into(), stop }
    }
}

/// A claim by its name and number.
#[derive(Serialize)]
pub(in crate::api::http) struct NamedJson<'a> {
    key: &'a str,
    tenant: &'a str,
    fence: Fence,
}

impl<'a> From<&'a RunningClaim> for NamedJson<'a> {
    fn from(claim: &'a RunningClaim) -> Self {
        Self { key: claim.id.key(), tenant: claim.id.tenant(), fence: claim.fence }
    }
}

/// `{"claims":[...],"stop":[...]}`; of one that came late also `"ignored":true` and the `last_seq` that it has to exceed.
#[derive(Serialize)]
pub(in crate::api::http) struct HeartbeatAnswer<'a> {
    claims: Vec<ClaimJson<'a>>,
    stop: Vec<NamedJson<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignored: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seq: Option<u64>,
}

impl<'a> From<&'a Heard> for HeartbeatAnswer<'a> {
    fn from(heard: &'a Heard) -> Self {
        Self {
            claims: heard.claims.iter().map(Into::into).collect(),
            stop: heard.stop.iter().map(Into::into).collect(),
            ignored: heard.late_for.is_some(),
            last_seq: heard.late_for,
        }
    }
}

/// `{"claims","stop"}` or `{"error"}`.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::api::http) enum HeartbeatOutcome<'a> {
    Done(HeartbeatAnswer<'a>),
    Failed(&'a Failure),
}

impl<'a> From<&'a Result<Heard, Failure>> for HeartbeatOutcome<'a> {
    fn from(outcome: &'a Result<Heard, Failure>) -> Self {
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
        stop: Vec<NamedJson<'a>>,
        created: bool,
    },
    Failed(&'a Failure),
}

impl<'a> From<&'a Result<Registered, Failure>> for WorkerOutcome<'a> {
    fn from(outcome: &'a Result<Registered, Failure>) -> Self {
        match outcome {
            Ok(registered) => {
                let WorkerAnswer { worker, stop } = registered.into();
                Self::Done { worker, stop, created: registered.created }
            }
            Err(failure) => Self::Failed(failure),
        }
    }
}
