//! Outputs of a shard, to be executed in order.

use std::sync::Arc;

use super::claims::stay_ms;
use super::claims::timestamps::ClaimTimestamps;
use super::event::{ClaimHandle, ReportedClaim};
use super::placement::constraints::PlacementFailure;
use super::placement::offers::ReservedWorker;
use crate::model::{
    ClaimId, ClaimSpec, ClaimState, ClaimTimes, Fence, LivenessState, Millis, SchedulingState, Seq, TrustState,
    WorkerRegistration,
};

/// Output of an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Reports the end of a claim: its key is free.
    ClaimEnded {
        /// Identity of the claim that ended.
        id: ClaimId,
        /// Fence of the grant that ended.
        fence: Fence,
        /// Cause of the end.
        end: EndReason,
        /// Ordinal of the worker that it held.
        worker: u32,
        /// Unix times of its creation and activation.
        times: ClaimTimes,
    },
    /// Reports that a worker was silent for too long. Its claims end with the next effects.
    WorkerLost {
        /// Ordinal of the lost worker.
        worker: u32,
    },
    /// Reports that a worker was deleted because it had been lost for too long.
    WorkerDeleted {
        /// Last registration of the worker.
        worker: Arc<WorkerRegistration>,
    },
    /// Announces that the next effect ends a claim that callers may still query.
    RetainEnded {
        /// Identity of the claim that ends.
        id: ClaimId,
        /// Grant in the final state to remember: `lost`, or `releasing` if its clean-up timed out.
        grant: ClaimGrant,
    },
    /// Reports that a gang's member became an ordinary claim that holds its key.
    ClaimCommitted {
        /// Identity of the committed claim.
        id: ClaimId,
        /// Handle of the committed claim.
        handle: ClaimHandle,
    },
    /// Reports that a claim was readopted from a worker's report and holds its key.
    ClaimAdopted {
        /// Identity of the readopted claim.
        id: ClaimId,
        /// Handle of the readopted claim.
        handle: ClaimHandle,
    },
}

/// Contents of a reply to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineReply {
    /// Grants a new claim.
    Granted(ClaimGrant),
    /// Finds no idle worker in this shard; others may have one. Nothing was changed.
    NoCapacity,
    /// Finds no worker that meets the constraints. Nothing was changed.
    NotPlaced(PlacementFailure),
    /// Shows the live claim unchanged, with its present deadline.
    Held(ClaimGrant),
    /// Rejects a handle whose claim is gone. Nothing was changed.
    StaleHandle,
    /// Reports that the live claim did not satisfy the request and was rolled back: the key can be claimed again.
    RolledBack,
    /// Rejects the request: the live claim does not satisfy it and is active. Nothing was changed.
    ActiveConflict,
    /// Rejects the request: the live claim has other resources, and they must be the same. Nothing was changed.
    ResourceMismatch,
    /// Rejects the request: the claim is being released. Nothing was changed.
    Releasing,
    /// Rejects the request: the claim is being released because one of higher priority evicted it. Nothing was
    /// changed.
    Evicted,
    /// Reports the worker that is reserved for claims that wait.
    WorkerReserved(Box<ReservedWorker>),
    /// Rejects the request: the claim is not active yet. Nothing was changed.
    NotActive,
    /// Rejects a time to live above the pool's limit. Nothing was changed.
    TtlTooLong {
        /// Longest time to live that the pool allows.
        max_ms: Millis,
    },
    /// Confirms that this request ended the claim or finished its clean-up, or that the claim is being released.
    Released,
    /// Number of live members of a gang in this shard. Nothing was changed.
    GangMembers(usize),
    /// Members of a gang in this shard, which are ordinary claims from now on.
    Committed(Vec<(ClaimId, ClaimGrant)>),
    /// Confirms a worker's registration.
    Registered {
        /// True if the worker is new, false if it was registered before.
        created: bool,
        /// Snapshot after the registration.
        worker: Box<WorkerSnapshot>,
        /// Reported claims that the worker must stop.
        stop: Vec<ReportedClaim>,
    },
    /// Result of a heartbeat, also of one that was ignored as late.
    HeartbeatHandled {
        /// Live claims of the worker.
        claims: Vec<(ClaimId, ClaimGrant)>,
        /// Reported claims that the worker must stop.
        stop: Vec<ReportedClaim>,
        /// Higher sequence number that was handled before; this heartbeat was ignored.
        superseded_by: Option<u64>,
    },
    /// Confirms an operator command with the worker's new state.
    WorkerUpdated(Box<WorkerSnapshot>),
    /// Rejects the command: only a new incarnation ends draining. Nothing was changed.
    Draining,
    /// Rejects the command: claims that the last stop may have lost can still start. Nothing was changed.
    Quarantined {
        /// Remaining quarantine in milliseconds.
        left_ms: Millis,
    },
    /// Confirms that all workers outside the quarantine are trusted.
    Cleared {
        /// Number of workers that were cleared.
        cleared: u64,
        /// Number of workers that stay suspect.
        suspect: u64,
    },
    /// Confirms that the worker is deleted.
    Deleted {
        /// Number of claims that were lost with it.
        claims_lost: u64,
    },
    /// Rejects an id that no worker has.
    UnknownWorker,
    /// Rejects a registration of an older incarnation. Nothing was changed.
    StaleIncarnation {
        /// Incarnation that is on record.
        known: u64,
        /// True if the incarnation on record was deleted, so that a higher one is needed.
        deleted: bool,
    },
    /// Rejects a heartbeat of an incarnation that was never registered. Nothing was changed.
    UnknownIncarnation {
        /// Incarnation that is on record.
        known: u64,
    },
    /// Rejects a worker beyond the shard's limit.
    ShardFull,
    /// Rejects a GPU model beyond the shard's limit. Nothing was changed.
    TooManyModels,
    /// Rejects a resize to another GPU model than the claim holds. Nothing was changed.
    GpuModelMismatch {
        /// Model of the GPUs that the claim holds.
        model: Arc<str>,
    },
}

/// Snapshot of a live claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimGrant {
    /// Handle of the claim.
    pub handle: ClaimHandle,
    /// Registration of its worker.
    pub worker: Arc<WorkerRegistration>,
    /// State in the claim's lifecycle.
    pub state: ClaimState,
    /// Time for which it may stay active without a renewal, or releasing, in milliseconds; 0: for ever.
    pub term_ms: Millis,
    /// Engine time of its deadline, if one is set.
    pub deadline_ms: Option<Millis>,
    /// Parts of its request that it keeps, if any.
    pub spec: Option<Arc<ClaimSpec>>,
    /// GPUs that it holds in a shared pool: bit `i` stands for GPU `i`. None: it holds the whole worker.
    pub gpu_mask: Option<u64>,
    /// True if it is being released because a claim of higher priority evicted it.
    pub evicted: bool,
    /// Times in the claim's compact form, as a grant is copied with every reply.
    pub timestamps: ClaimTimestamps,
}

impl ClaimGrant {
    /// Time for which it may stay unconfirmed after the reply is sent; 0 once it is not reserved.
    #[must_use]
    pub fn reserve_ms(&self) -> Millis {
        self.timestamps.reserve_ms(self.state).into()
    }

    /// Unix times of its creation and activation.
    #[must_use]
    pub fn times(&self) -> ClaimTimes {
        self.timestamps.times(self.state)
    }

    /// Sets the final state: `lost`, or `releasing` if the clean-up timed out. A reservation ends without the claim
    /// becoming active.
    pub fn mark_ended(&mut self, state: ClaimState) {
        if self.state == ClaimState::Reserved {
            self.timestamps.end_reservation(None);
        }
        (self.state, self.deadline_ms) = (state, None);
    }

    /// Time for which it may stay in its state after a reply that discloses it; none: for ever.
    #[must_use]
    pub fn state_ttl_ms(&self) -> Option<Millis> {
        match stay_ms(self.state, self.reserve_ms(), self.term_ms) {
            0 => None,
            ms => Some(ms),
        }
    }
}

/// State of a worker in each of its dimensions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerConditions {
    /// True while the worker holds a claim, or runs one that it should not.
    pub busy: bool,
    /// Schedulability set by its operator.
    pub schedulability: SchedulingState,
    /// Liveness by heartbeats and registrations.
    pub liveness: LivenessState,
    /// Trust in what the service knows of it.
    pub trust: TrustState,
    /// True if the worker has less capacity than its claim was granted.
    pub overcommitted: bool,
}

/// State of a worker at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSnapshot {
    /// Registration of the worker.
    pub registration: Arc<WorkerRegistration>,
    /// Sequence number of its last change.
    pub version: Seq,
    /// State in each dimension.
    pub conditions: WorkerConditions,
    /// Live claims of the worker.
    pub claims: Vec<(ClaimId, ClaimGrant)>,
}

/// Cause of the end of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Released by its holder.
    Released,
    /// Never confirmed within its reservation.
    ReservationExpired,
    /// Active, but not renewed in time.
    Expired,
    /// Clean-up not completed within its limit.
    CleanupTimedOut,
    /// Omitted from the reports of its worker.
    NotReported,
    /// Lost together with its worker.
    Lost,
    /// Never disclosed to a caller, or its key is held elsewhere.
    RolledBack,
}
