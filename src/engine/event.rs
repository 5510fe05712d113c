//! What can happen to a shard.

use std::sync::Arc;

use super::wants::Wants;
use crate::model::{ClaimId, Fence, Millis, WorkerId, WorkerSpec};

/// Where a claim is: the shard's own ordinals plus the fence that proves that it is still that claim. Ordinals are
/// used again; the fence is not, so a stale place is recognised without a look at any name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Ordinal of the claim in its shard.
    pub claim: u32,
    /// Ordinal of the worker in its shard.
    pub worker: u32,
    /// Fence of the grant.
    pub fence: Fence,
}

/// Something happened. `R` is where the answer goes; the engine only hands it back.
#[derive(Debug)]
pub enum Event<R> {
    /// A worker is there (again). Upsert.
    Register {
        /// As its registrar describes it.
        spec: WorkerSpec,
        /// Who waits for the answer.
        to: R,
    },
    /// A worker is gone; its claims are lost.
    Delete {
        /// Which.
        id: WorkerId,
        /// Who waits for the answer.
        to: R,
    },
    /// A key wants a worker. The caller has made sure that nobody holds the key.
    Claim {
        /// Whose.
        id: ClaimId,
        /// Number of the grant, above every earlier one of the process.
        fence: Fence,
        /// An idle worker whose last claim had the same one is preferred.
        affinity: u64,
        /// How long it may stay unconfirmed; 0: active at once.
        reserve_ms: Millis,
        /// Which workers it may take; none: any.
        wants: Option<Arc<Wants>>,
        /// Who waits for the answer.
        to: R,
    },
    /// The key that is held at `place` is asked for once more.
    Repeat {
        /// Where it is held.
        place: Place,
        /// The request accepts the pool. What it does not accept is given back if it is reserved, and refused if active.
        satisfies: bool,
        /// Which workers it accepts; none: any.
        wants: Option<Arc<Wants>>,
        /// Who waits for the answer.
        to: R,
    },
    /// The holder has started.
    Confirm {
        /// Where it is held.
        place: Place,
        /// Who waits for the answer.
        to: R,
    },
    /// The holder is done.
    Release {
        /// Where it is held.
        place: Place,
        /// Who waits for the answer.
        to: R,
    },
    /// Somebody asks what is held at `place`.
    Look {
        /// Where it is held.
        place: Place,
        /// Who waits for the answer.
        to: R,
    },
    /// An answer that speaks of the claim has left: a reservation's deadline runs from now.
    Departed {
        /// Where it is held.
        place: Place,
    },
    /// The answer that granted the claim can never reach its caller. Ends the claim, but only if nobody confirmed
    /// it and no other answer spoke of it.
    GiveBack {
        /// Where it is held.
        place: Place,
    },
    /// Ends the claim without a question: the key is held elsewhere under a higher fence (recovery).
    Yield {
        /// Where it is held.
        place: Place,
    },
    /// Time has passed: sweep what is due.
    Tick,
}
