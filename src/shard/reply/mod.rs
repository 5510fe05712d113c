//! Destinations of replies: one caller, one slot of a batch that is delivered when all slots are filled, or a
//! completion queue that has each reply as soon as it arrives.

mod batch;
mod completion_queue;

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::engine::{CapacityUsage, ClaimGrant, ListingSlice, PlacementFailure, WorkerSnapshot};
use crate::model::request_error::RequestError;
use crate::model::{
    ClaimId, ClearResult, IdleWorker, Millis, ResourceVector, RunningClaim, ShardStatus, WorkerRegistration,
    WorkerSurvey,
};
use crate::shard::address::ShardRef;

pub use self::batch::{BatchAnswers, ReplyBatch};
pub use self::completion_queue::CompletionQueue;

/// Payload of a successful reply.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyPayload {
    /// A held claim, for requests about one claim.
    Claim(ClaimAnswer),
    /// Members of a committed gang, which are ordinary claims from now on.
    Gang(Vec<(ClaimId, ClaimAnswer)>),
    /// Number of members of a gang that the shard holds.
    Members(usize),
    /// The request was carried out; there is nothing to add.
    Done,
    /// A worker was deleted from the shard.
    Deleted {
        /// Claims that ended with the worker.
        claims_lost: u64,
    },
    /// Workers up to this ordinal are done; the request continues there.
    Unfinished(u32),
    /// State of a worker, after a registration, a command or a query.
    Worker {
        /// True if the worker is new, false if it was known.
        created: bool,
        /// Current state of the worker.
        worker: Box<WorkerSnapshot>,
        /// Reported claims that the worker must stop.
        revoked: Vec<RunningClaim>,
    },
    /// Result of a heartbeat.
    Heartbeat {
        /// Claims that the worker holds.
        claims: Vec<(ClaimId, ClaimAnswer)>,
        /// Reported claims that the worker must stop.
        revoked: Vec<RunningClaim>,
        /// Higher sequence number that was handled before; this heartbeat was ignored.
        late_for: Option<u64>,
    },
    /// Number of workers that were cleared, and of those that stay suspect.
    Cleared(ClearResult),
    /// Slice of the list of workers, with their ordinals.
    Workers(ListingSlice<(u32, WorkerSnapshot)>),
    /// Slice of the list of claims.
    Claims(ListingSlice<(ClaimId, ClaimAnswer)>),
    /// Figures of the shard.
    Report(Box<ShardReport>),
    /// Workers that hold nothing.
    Idle(Vec<IdleWorker>),
    /// Worker that the claim would get, or why not; no reason if none is free.
    WouldTake(Result<Arc<WorkerRegistration>, Option<PlacementFailure>>),
    /// Survey of some workers for a claim, and the ordinal to continue at.
    Survey(Box<WorkerSurvey>, Option<u32>),
}

/// Figures of a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardReport {
    /// Counts, state and sequence numbers.
    pub status: ShardStatus,
    /// Usage by distinct capacity.
    pub accounting: Vec<CapacityUsage>,
    /// Free resources that can be claimed, in a shared pool.
    pub claimable: Option<ClaimableCapacity>,
    /// Difference between accounting and claims; must be 0.
    pub accounting_mismatch: u64,
}

/// Resources of schedulable workers that can be claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimableCapacity {
    /// Free amounts of all workers together.
    pub amounts: ResourceVector,
    /// Idle GPUs and free thousandths of GPUs, per model.
    pub gpus: Vec<(Arc<str>, u64, u64)>,
}

/// Held claim as it is returned to callers.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimAnswer {
    /// Grant as the engine reported it.
    pub grant: ClaimGrant,
    /// Whether this request created the claim.
    pub created: bool,
    /// Shard that holds the claim.
    pub shard: ShardRef,
    /// Unix time at which the claim expires without further requests; set when the reply is sent.
    pub expires_at_ms: Option<Millis>,
}

impl ClaimAnswer {
    /// Answer to the request that created the claim.
    #[must_use]
    pub const fn created(grant: ClaimGrant, shard: ShardRef) -> Self {
        Self { grant, created: true, shard, expires_at_ms: None }
    }

    /// Answer to a request about a claim that existed before.
    #[must_use]
    pub const fn existing(grant: ClaimGrant, shard: ShardRef) -> Self {
        Self { grant, created: false, shard, expires_at_ms: None }
    }
}

/// Outcome of a request to a shard.
pub type ShardOutcome = Result<ReplyPayload, RequestError>;

#[derive(Debug)]
enum ReplyTarget {
    One(oneshot::Sender<ShardOutcome>),
    Part(Arc<ReplyBatch>, u32),
    Inbox(Arc<CompletionQueue>, u32),
    Nobody,
}

/// Sender of one reply. If it is dropped unsent (its shard panicked), it reports that the outcome is unknown.
#[derive(Debug)]
pub struct ReplySender(ReplyTarget);

impl ReplySender {
    /// Creates a sender to one caller, and the receiver.
    #[must_use]
    pub fn oneshot() -> (Self, oneshot::Receiver<ShardOutcome>) {
        let (to, answer) = oneshot::channel();
        (Self(ReplyTarget::One(to)), answer)
    }

    /// Creates a sender into a slot of a batch.
    #[must_use]
    pub const fn batch_part(batch: Arc<ReplyBatch>, index: u32) -> Self {
        Self(ReplyTarget::Part(batch, index))
    }

    /// Creates a sender into a completion queue, under a token that the caller chose.
    #[must_use]
    pub const fn completion(queue: Arc<CompletionQueue>, index: u32) -> Self {
        Self(ReplyTarget::Inbox(queue, index))
    }

    /// Creates a sender that discards the reply.
    #[must_use]
    pub const fn discard() -> Self {
        Self(ReplyTarget::Nobody)
    }

    /// Whether the caller is known to be gone. Does not check batches.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match &self.0 {
            ReplyTarget::One(to) => to.is_closed(),
            ReplyTarget::Inbox(queue, _) => queue.is_closed(),
            // A batch is checked when its slot is filled: that saves a lock.
            ReplyTarget::Part(..) | ReplyTarget::Nobody => false,
        }
    }

    /// Whether the reply is delivered with others: when the last of them arrives, not when this one is sent.
    #[must_use]
    pub const fn is_part(&self) -> bool {
        matches!(self.0, ReplyTarget::Part(..))
    }

    /// Whether the caller is gone. Checks batches too, at the price of their lock.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        match &self.0 {
            ReplyTarget::Part(batch, _) => batch.is_closed(),
            _ => self.is_closed(),
        }
    }

    /// Sends the reply. Returns false if the caller is gone.
    pub fn send(mut self, outcome: ShardOutcome) -> bool {
        match std::mem::replace(&mut self.0, ReplyTarget::Nobody) {
            ReplyTarget::One(to) => to.send(outcome).is_ok(),
            ReplyTarget::Part(batch, index) => batch.fill(index, outcome),
            ReplyTarget::Inbox(queue, index) => queue.put(index, outcome),
            ReplyTarget::Nobody => true,
        }
    }
}

impl Drop for ReplySender {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.0, ReplyTarget::Nobody) {
            ReplyTarget::One(to) => drop(to.send(Err(RequestError::DeadlineExceeded))),
            ReplyTarget::Part(batch, index) => drop(batch.fill(index, Err(RequestError::DeadlineExceeded))),
            ReplyTarget::Inbox(queue, index) => drop(queue.put(index, Err(RequestError::DeadlineExceeded))),
            ReplyTarget::Nobody => {}
        }
    }
}
