//! Events of a shard, as numbers that a generator can draw.

use hotpool::engine::PoolEligibility;
use hotpool::model::{PlacementPolicy, WorkerCommand};
use proptest::prelude::*;

use crate::oracle::Durations;
use crate::requests::Request;

#[derive(Debug, Clone)]
pub enum Op {
    /// Registers a worker. `more`: 0 for an older incarnation, if there is one; 1 for the same; 2 for the next.
    Register {
        id: u8,
        incarnation_step: u8,
        kind: u8,
        /// Remaining life of the worker, if it ends.
        ends_in: Option<u64>,
        contents: Option<ReportContents>,
    },
    /// Sends a heartbeat, with `more` as above.
    Heartbeat {
        who: Who,
        incarnation_step: u8,
        seq: Option<u64>,
        contents: Option<ReportContents>,
    },
    Command(u8, WorkerCommand),
    ClearAll,
    Delete(u8),
    Claim {
        affinity: u8,
        reserve_ms: u64,
        ttl_ms: u64,
        request: Option<Request>,
    },
    Renew {
        at: prop::sample::Index,
        ttl_ms: Option<u64>,
    },
    BeginRelease {
        at: prop::sample::Index,
        releasing_ms: u64,
    },
    SetMemoryAcks(Option<u64>),
    /// Reloads the shard from what the store had `lost` events ago.
    Reload {
        lost: u8,
        restarted: bool,
    },
    Reacquire {
        at: prop::sample::Index,
        pool: PoolEligibility,
        request: Option<Request>,
    },
    Confirm(prop::sample::Index),
    Release(prop::sample::Index),
    Get(prop::sample::Index),
    Rollback(prop::sample::Index),
    ReplySent(prop::sample::Index),
    Relinquish(prop::sample::Index),
    Tick(u64),
    SetPolicy(PlacementPolicy),
    SetDurations(Durations),
    /// Sets the offset of the wall clock from engine time.
    SetWallClock(i64),
}

/// Choice of a worker.
#[derive(Debug, Clone)]
pub enum Who {
    Id(u8),
    /// Worker with a claim, if there is one.
    Holding(prop::sample::Index),
    /// Worker with a recent grant, whether or not it still exists.
    Recent(prop::sample::Index),
}

/// Contents of a report: the live claim of the worker, and any earlier grants.
#[derive(Debug, Clone)]
pub struct ReportContents {
    pub own: bool,
    pub others: Vec<prop::sample::Index>,
}

impl ReportContents {
    /// Report without any claim.
    pub const NONE: Self = Self { own: false, others: Vec::new() };
}
