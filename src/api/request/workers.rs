//! Request forms for registrations and heartbeats.

use serde::Deserialize;

use super::{BorrowedText, BoundedList, DEFAULT_TENANT, RawItems, check_fence};
use crate::api::error_table::ApiError;
use crate::limits;
use crate::model::{
    ClaimId, Fence, HeartbeatRequest, Labels, Millis, ObjectItem, RegistrationRequest, RunningClaim, WorkerCapacity,
    WorkerId, WorkerSpec, json_object, present, unique_keys,
};

/// Claim that a worker reports as running, in the namespace of its pool.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct ReportedClaimBody<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    pub(in crate::api) tenant: Option<BorrowedText<'a>>,
    #[serde(borrow)]
    pub(in crate::api) key: BorrowedText<'a>,
    pub(in crate::api) fence: Fence,
}

/// Claims that a worker reports as running.
pub(in crate::api) type ReportedClaimBodies<'a> =
    BoundedList<ObjectItem<ReportedClaimBody<'a>>, { limits::REPORTED_CLAIMS_MAX }>;

fn reported_claims(namespace: &str, claims: &ReportedClaimBodies<'_>) -> Result<Vec<RunningClaim>, ApiError> {
    let reported = claims.0.iter().enumerate().map(|(index, ObjectItem(claim))| {
        let tenant = claim.tenant.as_ref().map_or(DEFAULT_TENANT, |text| &text.0);
        let id = ClaimId::new(namespace, tenant, &claim.key.0).map_err(ApiError::from);
        let fence = check_fence(claim.fence);
        id.and_then(|id| Ok(RunningClaim { id, fence: fence? })).map_err(|failure| failure.for_item("claims", index))
    });
    reported.collect()
}

/// Heartbeat of one worker, whose id is in the path.
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
    /// Checks every name and converts the body.
    pub(in crate::api) fn heartbeat(&self, namespace: &str) -> Result<HeartbeatRequest, ApiError> {
        let claims = self.claims.as_ref().map(|claims| reported_claims(namespace, claims)).transpose()?;
        let request = HeartbeatRequest { incarnation: self.incarnation, seq: self.seq, claims };
        request.check()?;
        Ok(request)
    }
}

/// Heartbeat of one worker in a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct HeartbeatItem<'a> {
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
    /// Checks every name and converts the item.
    pub(in crate::api) fn into_heartbeat(self, namespace: &str) -> Result<(WorkerId, HeartbeatRequest), ApiError> {
        let Self { id, incarnation, seq, claims } = self;
        Ok((WorkerId::new(&id.0)?, HeartbeatBody { incarnation, seq, claims }.heartbeat(namespace)?))
    }
}

/// Registration of a worker whose id is in the path.
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
    /// Checks every field and converts the body.
    pub(in crate::api) fn into_registration(self, namespace: &str, id: &str) -> Result<RegistrationRequest, ApiError> {
        let Self { capacity, labels, node, incarnation, expires_at_ms, claims } = self;
        let (id, node) = (WorkerId::new(id)?, node.map(Into::into));
        let spec = WorkerSpec { id, capacity, labels, node, incarnation, expires_at_ms };
        spec.check()?;
        Ok(RegistrationRequest { spec, claims: claims.map(|claims| reported_claims(namespace, &claims)).transpose()? })
    }
}

/// Registration of one worker in a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct WorkerItem<'a> {
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
    /// Checks every field and converts the item.
    pub(in crate::api) fn into_registration(self, namespace: &str) -> Result<RegistrationRequest, ApiError> {
        let Self { id, capacity, labels, node, incarnation, expires_at_ms, claims } = self;
        WorkerBody { capacity, labels, node, incarnation, expires_at_ms, claims }.into_registration(namespace, &id.0)
    }
}

/// Batch of registrations, or of heartbeats.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct WorkersBatch<'a> {
    #[serde(borrow)]
    pub(in crate::api) workers: RawItems<'a>,
}
