//! What must be done about an event, in order.

use std::sync::Arc;

use super::claims::stay_ms;
use super::claims::timestamps::ClaimTimestamps;
use super::event::{ClaimHandle, ReportedClaim};
use super::placement::constraints::PlacementFailure;
use crate::model::{
    ClaimId, ClaimSpec, ClaimState, ClaimTimes, Fence, LivenessState, Millis, SchedulingState, Seq, TrustState,
    WorkerRegistration,
};

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<R> {
    /// Answer a request.
    Reply {
        /// Whom.
        to: R,
        /// What.
        answer: EngineReply,
    },
    /// A claim is over: its key is free.
    ClaimEnded {
        /// Whose.
        id: ClaimId,
        /// Number of the grant that is over.
        fence: Fence,
        /// Why.
        end: EndReason,
        /// Ordinal of the worker that held it.
        worker: u32,
        /// When it had been created, and had become active.
        times: ClaimTimes,
    },
    /// A worker was silent for too long. What it held ends with the next effects.
    WorkerLost {
        /// Its ordinal.
        worker: u32,
    },
    /// A worker that had been lost for long was deleted.
    WorkerDeleted {
        /// As it was registered.
        worker: Arc<WorkerRegistration>,
    },
    /// The next effect ends a claim that callers may still ask about.
    RetainEnded {
        /// Whose.
        id: ClaimId,
        /// As it was, in the state in which it is remembered: `lost`, or `releasing` if its clean-up was given up.
        grant: ClaimGrant,
    },
    /// A gang's member is a claim like any other: its key is held.
    ClaimCommitted {
        /// Whose.
        id: ClaimId,
        /// Where.
        place: ClaimHandle,
    },
    /// A claim that a worker named was taken over: its key is held.
    ClaimAdopted {
        /// Whose.
        id: ClaimId,
        /// Where.
        place: ClaimHandle,
    },
}

/// What a request is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineReply {
    /// The claim is made.
    Granted(ClaimGrant),
    /// No idle worker here; another shard may have one. Nothing was changed.
    NoCapacity,
    /// The same, for a claim that asked for certain workers.
    NotPlaced(PlacementFailure),
    /// It is held as it was; with the deadline as it stands.
    Held(ClaimGrant),
    /// What was held at the place is gone. Nothing was changed.
    StaleHandle,
    /// The held claim did not satisfy the request and was given back: the key may be claimed anew.
    RolledBack,
    /// The held claim does not satisfy the request and is active. Nothing was changed.
    ActiveConflict,
    /// The held claim asked for other resources, and the request must have the same. Nothing was changed.
    ResourceMismatch,
    /// It is being released already. Nothing was changed.
    Releasing,
    /// The same, because a claim with a higher priority evicted it. Nothing was changed.
    Evicted,
    /// A worker is kept for whoever waits.
    WorkerReserved,
    /// It is not active yet. Nothing was changed.
    NotActive,
    /// It asks to stay active without a renewal for longer than the pool allows. Nothing was changed.
    TtlTooLong {
        /// Most that it may ask for.
        max_ms: Millis,
    },
    /// The claim is over.
    Released,
    /// So many members of a gang are held here. Nothing was changed.
    GangMembers(usize),
    /// The members of a gang that are held here, from now on as claims like any other.
    Committed(Vec<(ClaimId, ClaimGrant)>),
    /// The worker is registered.
    Registered {
        /// False if it was known.
        created: bool,
        /// As it stands now.
        worker: Box<WorkerSnapshot>,
        /// What it said that it runs and must not.
        stop: Vec<ReportedClaim>,
    },
    /// A heartbeat was taken, or came too late for that.
    HeartbeatHandled {
        /// What the worker holds.
        claims: Vec<(ClaimId, ClaimGrant)>,
        /// What it said that it runs and must not.
        stop: Vec<ReportedClaim>,
        /// Nothing of it was taken, because one with this higher number was.
        superseded_by: Option<u64>,
    },
    /// The owner's wish is done.
    WorkerUpdated(Box<WorkerSnapshot>),
    /// It is draining, which only a new incarnation ends. Nothing was changed.
    Draining,
    /// Claims that the last stop may have lost can still be started. Nothing was changed.
    Quarantined {
        /// For this long.
        left_ms: Millis,
    },
    /// All workers for which somebody may speak are trusted.
    Cleared {
        /// How many were not.
        cleared: u64,
        /// How many are not yet.
        suspect: u64,
    },
    /// The worker is deleted.
    Deleted {
        /// Claims that ended with it.
        claims_lost: u64,
    },
    /// There is no such worker.
    UnknownWorker,
    /// The registration comes from an older life of the worker. Nothing was changed.
    StaleIncarnation {
        /// The incarnation that is known.
        known: u64,
        /// True: that one was deleted, so a higher one is needed.
        deleted: bool,
    },
    /// The heartbeat comes from a life of the worker that was never registered. Nothing was changed.
    UnknownIncarnation {
        /// The incarnation that is known.
        known: u64,
    },
    /// The shard holds as many workers as it can number.
    ShardFull,
    /// The worker has a GPU model beside as many as the shard can number. Nothing was changed.
    TooManyModels,
    /// The claim holds cards of this model, and was asked to hold others. Nothing was changed.
    GpuModelMismatch {
        /// Model of the cards that it holds.
        model: Arc<str>,
    },
}

/// A held claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimGrant {
    /// Where it is.
    pub handle: ClaimHandle,
    /// On which worker.
    pub worker: Arc<WorkerRegistration>,
    /// Where it is in its life.
    pub state: ClaimState,
    /// How long it may stay active without a renewal, or releasing; 0: for ever.
    pub term_ms: Millis,
    /// Its deadline, if it runs already.
    pub deadline_ms: Option<Millis>,
    /// What it keeps of its request, if anything.
    pub spec: Option<Arc<ClaimSpec>>,
    /// In a shared pool, which cards of the worker it holds: bit `i` stands for card `i`. None: it holds the whole worker.
    pub gpu_mask: Option<u64>,
    /// It is being released because a claim with a higher priority evicted it.
    pub evicted: bool,
    /// Times in the form of the claim's own entry, as a grant is copied with every answer.
    pub timestamps: ClaimTimestamps,
}

impl ClaimGrant {
    /// Time that it may stay unconfirmed from when the answer leaves; 0 once it is not reserved any more.
    #[must_use]
    pub fn reserve_ms(&self) -> Millis {
        self.timestamps.reserve_ms(self.state).into()
    }

    /// Times at which it was created and became active.
    #[must_use]
    pub fn times(&self) -> ClaimTimes {
        self.timestamps.times(self.state)
    }

    /// Shows the claim as it ended: `lost`, or `releasing` if its clean-up was given up. A reservation has ended without
    /// the claim becoming active.
    pub fn mark_ended(&mut self, state: ClaimState) {
        if self.state == ClaimState::Reserved {
            self.timestamps.end_reservation(None);
        }
        (self.state, self.deadline_ms) = (state, None);
    }

    /// How long it may stay in its state from when an answer that speaks of it leaves; none: for ever.
    #[must_use]
    pub fn state_ttl_ms(&self) -> Option<Millis> {
        match stay_ms(self.state, self.reserve_ms(), self.term_ms) {
            0 => None,
            ms => Some(ms),
        }
    }
}

/// A worker on its axes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerConditions {
    /// It holds a claim, or runs what it should not.
    pub busy: bool,
    /// As its owner wishes.
    pub schedulability: SchedulingState,
    /// Whether it is heard of.
    pub liveness: LivenessState,
    /// Whether it can be what it is thought to be.
    pub trust: TrustState,
    /// It has less than its claim was promised.
    pub overcommitted: bool,
}

/// A worker as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSnapshot {
    /// Its registration.
    pub registration: Arc<WorkerRegistration>,
    /// Sequence number of its last change.
    pub version: Seq,
    /// Where it stands on each axis.
    pub conditions: WorkerConditions,
    /// What it holds.
    pub claims: Vec<(ClaimId, ClaimGrant)>,
}

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The holder released it.
    Released,
    /// It was never confirmed.
    ReservationExpired,
    /// It was active, and nobody renewed it in time.
    Expired,
    /// Its clean-up was not finished in time.
    CleanupTimedOut,
    /// Its worker does not run it any more.
    NotReported,
    /// Its worker is gone.
    Lost,
    /// Nobody was ever told of it, or its key is held elsewhere.
    RolledBack,
}
