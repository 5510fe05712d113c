//! What can happen to a shard.

use std::sync::Arc;

use super::placement::constraints::PlacementConstraints;
use super::placement::reservations::EvictionPolicy;
use crate::model::{ClaimId, Fence, Millis, ResourceRequirements, WorkerCommand, WorkerId, WorkerSpec};

/// Where a claim is: the shard's own ordinals plus the fence that proves that it is still that claim. Ordinals are
/// used again; the fence is not, so a stale place is recognised without a look at any name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimHandle {
    /// Ordinal of the claim in its shard.
    pub claim: u32,
    /// Ordinal of the worker in its shard.
    pub worker: u32,
    /// Fence of the grant.
    pub fence: Fence,
}

/// A claim that a worker says it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedClaim {
    /// Whose.
    pub id: ClaimId,
    /// Number of the grant, as the worker was told.
    pub fence: Fence,
    /// Nobody holds the key, and nobody can take it while this event is decided: the claim may be adopted.
    pub key_vacant: bool,
    /// An older claim of the key, which this one proves to be over, is about to end: nothing is decided before.
    pub predecessor_pending: bool,
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatReport {
    /// Which life of the worker speaks.
    pub incarnation: u64,
    /// Grows from one to the next; what comes later with a lower one is ignored.
    pub seq: Option<u64>,
    /// What it runs; none: it says nothing about that.
    pub claims: Option<Vec<ReportedClaim>>,
    /// How long the pool lets it be silent.
    pub ttl_ms: Millis,
}

/// Something happened. `R` is where the answer goes; the engine only hands it back.
#[derive(Debug)]
pub enum Event<R> {
    /// A worker is there (again). Upsert.
    Register {
        /// As its registrar describes it.
        spec: WorkerSpec,
        /// The end of life that it describes, in engine time.
        ends_ms: Option<Millis>,
        /// What it runs; none: nothing is said about that.
        claims: Option<Vec<ReportedClaim>>,
        /// How long the pool lets a worker be silent.
        ttl_ms: Millis,
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
    /// A worker says that it is there, and perhaps what it runs.
    Heartbeat {
        /// Which.
        id: WorkerId,
        /// What it says.
        beat: HeartbeatReport,
        /// Who waits for the answer.
        to: R,
    },
    /// The owner of a worker wishes.
    WorkerCommand {
        /// Which.
        id: WorkerId,
        /// What.
        command: WorkerCommand,
        /// Who waits for the answer.
        to: R,
    },
    /// The owner of all workers speaks for them.
    ClearAll {
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
        /// How long it may stay active without a renewal; 0: by the rules of the pool.
        ttl_ms: Millis,
        /// Which workers it may take; none: any.
        wants: Option<Arc<PlacementConstraints>>,
        /// It waited with this ticket, and a worker may be promised to it; 0: it did not.
        reservation_ticket: u64,
        /// Who waits for the answer.
        to: R,
    },
    /// The key that is held at `place` is asked for once more.
    Reacquire {
        /// Where it is held.
        place: ClaimHandle,
        /// The request accepts the pool. What it does not accept is given back if it is reserved, and refused if active.
        satisfies: bool,
        /// Which workers it accepts; none: any.
        wants: Option<Arc<PlacementConstraints>>,
        /// Who waits for the answer.
        to: R,
    },
    /// The holder has started.
    Confirm {
        /// Where it is held.
        place: ClaimHandle,
        /// Who waits for the answer.
        to: R,
    },
    /// The holder still needs it.
    Renew {
        /// Where it is held.
        place: ClaimHandle,
        /// From now on it may go without a renewal for this long; none: as long as before, within the rules of the pool.
        ttl_ms: Option<Millis>,
        /// Who waits for the answer.
        to: R,
    },
    /// The holder needs another share of its worker than before.
    Resize {
        /// Where it is held.
        place: ClaimHandle,
        /// All that it needs from now on.
        resources: ResourceRequirements,
        /// Who waits for the answer.
        to: R,
    },
    /// The holder is done. Also the end of what [`Event::BeginRelease`] began.
    Release {
        /// Where it is held.
        place: ClaimHandle,
        /// Who waits for the answer.
        to: R,
    },
    /// The holder is done, but the worker has to be cleaned before it can be used again.
    BeginRelease {
        /// Where it is held.
        place: ClaimHandle,
        /// How long that may take. Then the claim ends all the same, and its worker is suspect.
        releasing_ms: Millis,
        /// Who waits for the answer.
        to: R,
    },
    /// Somebody asks what is held at `place`.
    Get {
        /// Where it is held.
        place: ClaimHandle,
        /// Who waits for the answer.
        to: R,
    },
    /// An answer that speaks of the claim has left: the first deadline of a claim runs from then. One that an earlier
    /// answer started moves on with it, unless the holder has confirmed since.
    ReplySent {
        /// Where it is held.
        place: ClaimHandle,
        /// Engine time at which the answer left.
        at_ms: Millis,
    },
    /// The answer that granted the claim can never reach its caller. Ends the claim, but only if nobody confirmed
    /// it and no other answer spoke of it.
    Rollback {
        /// Where it is held.
        place: ClaimHandle,
    },
    /// Ends the claim without a question: the key is held elsewhere under a higher fence (recovery).
    Relinquish {
        /// Where it is held.
        place: ClaimHandle,
    },
    /// Something happens to the members of a gang that this shard holds, or to the gang's row.
    Gang {
        /// Which.
        id: Fence,
        /// What.
        action: GangAction,
        /// Who waits for the answer.
        to: R,
    },
    /// A claim that waits wants a worker kept for it.
    Reserve {
        /// Number of its wait.
        ticket: u64,
        /// Which workers it may take.
        wants: Arc<PlacementConstraints>,
        /// Who may be evicted for it; none: nobody, and what comes free is kept.
        evict: Option<EvictionPolicy>,
        /// Until when it would need the worker.
        until_ms: Millis,
        /// Who waits for the answer.
        to: R,
    },
    /// Nobody waits with this ticket any more.
    CancelReservation {
        /// Number of its wait.
        ticket: u64,
    },
    /// Time has passed: sweep what is due.
    Tick,
}

/// What happens to a gang. Each may come twice: the second changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GangAction {
    /// Its members are claims like any other from now on.
    Commit,
    /// Its members are given back.
    Abort,
    /// Its home records that it is committed.
    Record,
    /// Its home forgets it: the store has all members as committed.
    Forget,
    /// Retraction: the home forgets a gang that is given up although its record may be stored. Nothing of it is undone before the
    /// store has this.
    Retract,
    /// Counts the members that are held here: one whose worker has gone is not.
    Count,
}
