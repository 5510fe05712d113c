//! What can be told of a pool.

use std::sync::Arc;

use crate::model::{ClaimId, ClaimTimes, Fence, Millis, WorkerRegistration};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEventKind {
    /// A worker was given to a claim.
    Claimed,
    /// A claim is over.
    Released,
    /// A worker was silent for too long, or a claim ended with its worker.
    Lost,
    /// A worker is there, or is another than before.
    Registered,
    /// A worker is gone.
    Deleted,
    /// A worker is not offered any more.
    Cordoned,
    /// A worker is offered again.
    Uncordoned,
    /// A worker is not offered any more in this incarnation.
    Draining,
}

impl PoolEventKind {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Claimed,
        Self::Released,
        Self::Lost,
        Self::Registered,
        Self::Deleted,
        Self::Cordoned,
        Self::Uncordoned,
        Self::Draining,
    ];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Released => "released",
            Self::Lost => "lost",
            Self::Registered => "registered",
            Self::Deleted => "deleted",
            Self::Cordoned => "cordoned",
            Self::Uncordoned => "uncordoned",
            Self::Draining => "draining",
        }
    }
}

/// Why, where that is not what it mostly is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEventReason {
    /// Claimed: the worker named a claim whose record was lost.
    Adopted,
    /// Released: it was never confirmed.
    Reserve,
    /// Released: it was not renewed.
    Ttl,
    /// Released: its worker was not cleaned in time.
    Releasing,
    /// Released: its worker does not run it any more.
    Missing,
    /// Released: nobody was told of it, or its key is held elsewhere.
    RolledBack,
    /// Deleted: it had been lost for as long as its pool keeps it.
    Lost,
}

impl PoolEventReason {
    /// Every one.
    pub const ALL: [Self; 7] =
        [Self::Adopted, Self::Reserve, Self::Ttl, Self::Releasing, Self::Missing, Self::RolledBack, Self::Lost];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adopted => "adopted",
            Self::Reserve => "reserve",
            Self::Ttl => "ttl",
            Self::Releasing => "releasing",
            Self::Missing => "missing",
            Self::RolledBack => "given_back",
            Self::Lost => "lost",
        }
    }
}

/// One event of a pool.
#[derive(Debug, Clone)]
pub struct PoolEvent {
    /// What happened.
    pub kind: PoolEventKind,
    /// Why, where that is not what it mostly is.
    pub reason: Option<PoolEventReason>,
    /// Unix time, as of the run of the shard.
    pub at_ms: Millis,
    /// The shard of the worker.
    pub shard: u16,
    /// The worker.
    pub worker: Arc<WorkerRegistration>,
    /// The claim, if it is about one.
    pub claim: Option<EventClaim>,
}

/// Claim that an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventClaim {
    /// Name of the claim.
    pub id: ClaimId,
    /// Number of the grant.
    pub fence: Fence,
    /// When it was created, and when it became active: with the time of its end, how long it was held.
    pub times: ClaimTimes,
}
