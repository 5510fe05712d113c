//! Events of a pool that watchers receive.

use std::sync::Arc;

use strum::{IntoStaticStr, VariantArray};

use crate::model::{ClaimId, ClaimTimes, Fence, Millis, WorkerRegistration};

/// Kind of change that an event reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum PoolEventKind {
    /// A worker was granted to a claim.
    Claimed,
    /// A claim ended and released its worker.
    Released,
    /// A worker was silent for too long, or a claim ended with its worker.
    Lost,
    /// A worker registered, or changed its registration.
    Registered,
    /// A worker was deleted from the pool.
    Deleted,
    /// A worker was cordoned and gets no new claims.
    Cordoned,
    /// A worker was uncordoned and gets claims again.
    Uncordoned,
    /// A worker drains and gets no claims in this incarnation.
    Draining,
}

impl PoolEventKind {
    /// Every kind, in wire order.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// Name of the kind on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Reason of an event, where it differs from the usual one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum PoolEventReason {
    /// Claimed: the worker reported a claim whose record was lost.
    Adopted,
    /// Released: the claim was never confirmed.
    Reserve,
    /// Released: the claim was not renewed.
    Ttl,
    /// Released: the worker was not cleaned in time.
    Releasing,
    /// Released: the worker no longer runs the claim.
    Missing,
    /// Released: the claim was rolled back undisclosed, or its key is held elsewhere.
    #[strum(serialize = "given_back")]
    RolledBack,
    /// Deleted: the worker had been lost for as long as the pool keeps lost workers.
    Lost,
}

impl PoolEventReason {
    /// Every reason, in wire order.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// Name of the reason on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Event of a pool, as watchers receive it.
#[derive(Debug, Clone)]
pub struct PoolEvent {
    /// Kind of change that is reported.
    pub kind: PoolEventKind,
    /// Reason, where it differs from the usual one.
    pub reason: Option<PoolEventReason>,
    /// Unix time in milliseconds, as of the run of the shard.
    pub at_ms: Millis,
    /// Index of the worker's shard.
    pub shard: u16,
    /// Registration of the worker.
    pub worker: Arc<WorkerRegistration>,
    /// Claim that the event is about, if any.
    pub claim: Option<EventClaim>,
}

/// Claim that an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventClaim {
    /// Identity of the claim.
    pub id: ClaimId,
    /// Fence of the grant.
    pub fence: Fence,
    /// Unix times of creation and activation; with the time of the end they give the duration.
    pub times: ClaimTimes,
}
