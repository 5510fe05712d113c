//! What may befall a shard, as numbers that a generator can draw.

use hotpool::model::{PlacementPolicy, WorkerCommand};
use proptest::prelude::*;

use crate::asks::Ask;
use crate::oracle::Times;

#[derive(Debug, Clone)]
pub enum Op {
    /// `more`: 0 an older incarnation, if there is one; 1 the same; 2 the next.
    Register {
        id: u8,
        more: u8,
        card: u8,
        /// It says when its life ends: so long after now.
        ends_in: Option<u64>,
        names: Option<Names>,
    },
    /// `more` as above.
    Heartbeat {
        who: Who,
        more: u8,
        seq: Option<u64>,
        names: Option<Names>,
    },
    Steer(u8, WorkerCommand),
    ClearAll,
    Delete(u8),
    Claim {
        affinity: u8,
        reserve_ms: u64,
        ttl_ms: u64,
        ask: Option<Ask>,
    },
    Renew {
        at: prop::sample::Index,
        ttl_ms: Option<u64>,
    },
    BeginRelease {
        at: prop::sample::Index,
        releasing_ms: u64,
    },
    SetMemory(Option<u64>),
    /// The shard is loaded again from what the store had so many events ago.
    Reload {
        lost: u8,
        revived: bool,
    },
    Repeat {
        at: prop::sample::Index,
        satisfies: bool,
        ask: Option<Ask>,
    },
    Confirm(prop::sample::Index),
    Release(prop::sample::Index),
    Look(prop::sample::Index),
    GiveBack(prop::sample::Index),
    Departed(prop::sample::Index),
    Yield(prop::sample::Index),
    Tick(u64),
    SetPolicy(PlacementPolicy),
    SetTimes(Times),
    /// The wall clock is so far ahead of the engine's time from now on.
    SetWallClock(i64),
}

/// Which worker.
#[derive(Debug, Clone)]
pub enum Who {
    Named(u8),
    /// One that holds a claim, if any does.
    Holding(prop::sample::Index),
    /// One that was granted something a moment ago, whether or not the shard still knows.
    Recent(prop::sample::Index),
}

/// What a worker names: what it holds, and any that were ever granted.
#[derive(Debug, Clone)]
pub struct Names {
    pub own: bool,
    pub others: Vec<prop::sample::Index>,
}

impl Names {
    /// It denies all that it holds.
    pub const NONE: Self = Self { own: false, others: Vec::new() };
}
