//! Inputs of a shard: requests, deadlines and recovery actions.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::placement::constraints::PlacementConstraints;
use super::placement::eviction::EvictionPolicy;
use crate::model::{ClaimId, Fence, Millis, ResourceRequirements, WorkerCommand, WorkerId, WorkerSpec};

/// Handle of a claim: the shard's own ordinals and the fence that proves that the claim is still the same. Ordinals
/// are reused and fences are not, so a stale handle is recognised without comparing names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimHandle {
    /// Ordinal of the claim in its shard.
    pub claim: u32,
    /// Ordinal of the worker in its shard.
    pub worker: u32,
    /// Fence of the grant.
    pub fence: Fence,
}

/// Id of a worker reservation, which the waiting claim chooses.
pub type ReservationId = NonZeroU64;

/// Only worker that will do for a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimTarget {
    /// The worker with this ordinal, reserved or not.
    Worker(u32, ReservationFate),
    /// The worker that is reserved under this id; the reservation ends with the grant.
    Reserved(ReservationId),
}

/// Fate of a worker's reservation when a claim takes something of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservationFate {
    /// The reservation ends with the grant.
    Ends,
    /// The reservation stays, because there is enough left for the claim that it is kept for.
    Stays,
}

/// Claim that a worker reports as running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedClaim {
    /// Identity of the reported claim.
    pub id: ClaimId,
    /// Fence of the grant, as disclosed to the worker.
    pub fence: Fence,
    /// True if the key is vacant and stays so while this event is decided: the claim may be readopted.
    pub key_vacant: bool,
    /// True if an older claim of the key, which this one proves to be over, is about to end: nothing is decided
    /// before.
    pub predecessor_pending: bool,
}

/// Contents of a worker's heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatReport {
    /// Incarnation of the worker that sent it.
    pub incarnation: u64,
    /// Sequence number, increasing within an incarnation; a lower one than before is ignored.
    pub seq: Option<u64>,
    /// Claims that the worker runs; none: it does not report them.
    pub claims: Option<Vec<ReportedClaim>>,
    /// Silence that the pool allows before the worker is lost, in milliseconds.
    pub ttl_ms: Millis,
}

/// Input of a shard.
#[derive(Debug)]
pub enum Event {
    /// Registers a worker, or updates its registration.
    Register {
        /// Registration to store or to replace the present one with.
        spec: WorkerSpec,
        /// End of the worker's life in engine time, if it has one.
        ends_ms: Option<Millis>,
        /// Claims that the worker runs; none: it does not report them.
        claims: Option<Vec<ReportedClaim>>,
        /// Silence that the pool allows before the worker is lost, in milliseconds.
        ttl_ms: Millis,
    },
    /// Deletes a worker; its claims are lost.
    Delete {
        /// Id of the worker to delete.
        id: WorkerId,
    },
    /// Reports that a worker is alive and, optionally, what it runs.
    Heartbeat {
        /// Id of the reporting worker.
        id: WorkerId,
        /// Contents of the heartbeat.
        heartbeat: HeartbeatReport,
    },
    /// Applies an operator command: cordon, uncordon, drain or clear.
    WorkerCommand {
        /// Id of the commanded worker.
        id: WorkerId,
        /// Command to apply to it.
        command: WorkerCommand,
    },
    /// Clears suspicion of every worker at once.
    ClearAll,
    /// Claims a worker for a key. The caller has checked that the key is not held.
    Claim {
        /// Identity of the new claim.
        id: ClaimId,
        /// Fence of the grant, above every earlier one of the process.
        fence: Fence,
        /// Hash of the affinity; an idle worker whose last claim had the same is preferred. 0: none.
        affinity: u64,
        /// Time for which the claim may stay unconfirmed; 0: active at once.
        reserve_ms: Millis,
        /// Time for which it may stay active without a renewal; 0: the pool's default.
        ttl_ms: Millis,
        /// Constraints on the worker; none: any worker will do.
        constraints: Option<Arc<PlacementConstraints>>,
        /// The only worker that will do; none: any that is offered. Boxed, because almost no claim has one.
        target: Option<Box<ClaimTarget>>,
    },
    /// Acquires the key that `handle` holds once more.
    Reacquire {
        /// Handle of the claim that holds the key.
        handle: ClaimHandle,
        /// Eligibility of the claim's pool for the request.
        pool: PoolEligibility,
        /// Constraints on the worker; none: any worker will do.
        constraints: Option<Arc<PlacementConstraints>>,
    },
    /// Confirms that the holder has started.
    Confirm {
        /// Handle of the claim to confirm.
        handle: ClaimHandle,
    },
    /// Renews a claim that its holder still needs.
    Renew {
        /// Handle of the claim to renew.
        handle: ClaimHandle,
        /// New time to live without a renewal, within the rules of the pool; none: unchanged.
        ttl_ms: Option<Millis>,
    },
    /// Changes the resources that a claim holds of its worker.
    Resize {
        /// Handle of the claim to resize.
        handle: ClaimHandle,
        /// Total resources of the claim from now on.
        resources: ResourceRequirements,
    },
    /// Releases a claim. Also completes what [`Event::BeginRelease`] began.
    Release {
        /// Handle of the claim to release.
        handle: ClaimHandle,
    },
    /// Begins a release: the worker has to be cleaned up before it can be used again.
    BeginRelease {
        /// Handle of the claim to release.
        handle: ClaimHandle,
        /// Time limit of the clean-up. After it the claim ends all the same, and its worker is suspect.
        releasing_ms: Millis,
    },
    /// Reads the claim at `handle`.
    Get {
        /// Handle of the claim to read.
        handle: ClaimHandle,
    },
    /// Reports that a reply that discloses the claim was sent: the claim's first deadline runs from then. A deadline
    /// that an earlier reply started moves with it, unless the holder has confirmed since.
    ReplySent {
        /// Handle of the disclosed claim.
        handle: ClaimHandle,
        /// Engine time at which the reply was sent.
        at_ms: Millis,
    },
    /// Rolls back a grant whose reply can never reach its caller. Ends the claim only if it is unconfirmed and no
    /// other reply disclosed it.
    Rollback {
        /// Handle of the granted claim.
        handle: ClaimHandle,
    },
    /// Ends the claim unconditionally: its key is held elsewhere under a higher fence (recovery).
    Relinquish {
        /// Handle of the claim to give up.
        handle: ClaimHandle,
    },
    /// Acts on this shard's members of a gang, or on the gang's row.
    Gang {
        /// Id of the gang.
        id: Fence,
        /// Transition of the gang.
        action: GangAction,
    },
    /// Reserves a worker for a waiting claim.
    Reserve {
        /// Id of the reservation, unique among the waiting claims.
        id: ReservationId,
        /// Constraints on the worker.
        constraints: Arc<PlacementConstraints>,
        /// Policy for evictions on its behalf; none: no evictions, capacity is kept as it comes free.
        evict: Option<EvictionPolicy>,
        /// Engine time until which the claim would need the worker.
        until_ms: Millis,
    },
    /// Cancels the reservation of a claim that no longer waits.
    CancelReservation {
        /// Id of the reservation.
        id: ReservationId,
    },
    /// Expires what is due: time has passed.
    Tick,
}

/// Whether a request may use the pool in which its key is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolEligibility {
    /// The pool is one of the request's candidates.
    Eligible,
    /// The pool is one of the candidates, and the request replaces no claim: if its constraints exclude the worker, that is
    /// a conflict even if the claim is reserved.
    EligibleToKeep,
    /// The request excludes the pool: a reserved claim is rolled back, and an active one is a conflict.
    Ineligible,
}

/// Transition of a gang. Each is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GangAction {
    /// Commits the members: they become ordinary claims.
    Commit,
    /// Aborts the gang: its members are rolled back.
    Abort,
    /// Records in the gang's home shard that it is committed.
    Record,
    /// Forgets the gang in its home shard: the store has all members as committed.
    Forget,
    /// Retracts the record of a gang that is aborted although the record may be stored. No member is rolled back
    /// before the retraction is stored.
    Retract,
    /// Counts the members that are live here, not those whose worker is gone.
    Count,
}
