//! Where an answer goes: to one caller, into one place of a batch that answers when all of its places are filled, or into
//! an inbox that has each as soon as it is there.

mod batch;
mod completion_queue;

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::admission::key_directory::ShardRef;
use crate::engine::{CapacityUsage, ClaimGrant, ListingSlice, PlacementFailure, WorkerSnapshot};
use crate::model::request_error::RequestError;
use crate::model::{
    ClaimId, ClearResult, IdleWorker, Millis, RunningClaim, ShardStatus, WorkerCapacity, WorkerRegistration,
    WorkerSurvey,
};

pub use self::batch::{BatchAnswers, ReplyBatch};
pub use self::completion_queue::CompletionQueue;

/// What a shard says.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyPayload {
    /// A held claim.
    Claim(ClaimAnswer),
    /// Members of a gang, which are claims from now on.
    Gang(Vec<(ClaimId, ClaimAnswer)>),
    /// How many members of a gang the shard holds.
    Members(usize),
    /// Done; there is nothing to add.
    Done,
    /// A worker was deleted.
    Deleted {
        /// Claims that ended with it.
        claims_lost: u64,
    },
    /// Done with workers up to this ordinal, at which it goes on.
    Unfinished(u32),
    /// A worker.
    Worker {
        /// False if it was known.
        created: bool,
        /// As it stands.
        worker: Box<WorkerSnapshot>,
        /// What it named and should not run.
        revoked: Vec<RunningClaim>,
    },
    /// Of a worker that sent a heartbeat.
    Heartbeat {
        /// What it holds.
        claims: Vec<(ClaimId, ClaimAnswer)>,
        /// What it named and should not run.
        revoked: Vec<RunningClaim>,
        /// Nothing of it was taken, because one with this higher number was.
        late_for: Option<u64>,
    },
    /// Workers of the shard that are trusted since, and those that are not yet.
    Cleared(ClearResult),
    /// Workers with their ordinals, a part of the list.
    Workers(ListingSlice<(u32, WorkerSnapshot)>),
    /// Claims, a part of the list.
    Claims(ListingSlice<(ClaimId, ClaimAnswer)>),
    /// The shard's figures.
    Report(Box<ShardReport>),
    /// Workers that hold nothing.
    Idle(Vec<IdleWorker>),
    /// The worker that a claim would be given, or why none; no reason: none is free.
    WouldTake(Result<Arc<WorkerRegistration>, Option<PlacementFailure>>),
    /// What a claim finds among some workers, and the ordinal at which to go on.
    Survey(Box<WorkerSurvey>, Option<u32>),
}

/// A shard's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardReport {
    /// Counts and positions.
    pub status: ShardStatus,
    /// Sums by capacity vector.
    pub accounting: Vec<CapacityUsage>,
    /// In a shared pool: what can be claimed.
    pub claimable: Option<ClaimableCapacity>,
    /// Must be 0.
    pub accounting_mismatch: u64,
}

/// What can be claimed of workers that are offered.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimableCapacity {
    /// Cores, memory and places.
    pub capacity: WorkerCapacity,
    /// Per GPU model: cards of which nothing is held, and thousandths of cards.
    pub gpus: Vec<(Arc<str>, u64, u64)>,
}

/// A held claim as it is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimAnswer {
    /// What the engine said.
    pub grant: ClaimGrant,
    /// It was made by this request.
    pub created: bool,
    /// Shard that holds it.
    pub shard: ShardRef,
    /// Unix time of its end if nothing is heard; set when the answer leaves.
    pub expires_at_ms: Option<Millis>,
}

/// An answer.
pub type ShardOutcome = Result<ReplyPayload, RequestError>;

#[derive(Debug)]
enum ReplyTarget {
    One(oneshot::Sender<ShardOutcome>),
    Part(Arc<ReplyBatch>, u32),
    Inbox(Arc<CompletionQueue>, u32),
    Nobody,
}

/// Sends one answer. Dropped without one (its shard panicked), it says that the outcome is unknown.
#[derive(Debug)]
pub struct ReplySender(ReplyTarget);

impl ReplySender {
    /// To one caller.
    #[must_use]
    pub fn oneshot() -> (Self, oneshot::Receiver<ShardOutcome>) {
        let (to, answer) = oneshot::channel();
        (Self(ReplyTarget::One(to)), answer)
    }

    /// Into a place of a batch.
    #[must_use]
    pub const fn batch_part(batch: Arc<ReplyBatch>, place: u32) -> Self {
        Self(ReplyTarget::Part(batch, place))
    }

    /// To a caller who has many requests in flight, and calls this one `place`.
    #[must_use]
    pub const fn completion(inbox: Arc<CompletionQueue>, place: u32) -> Self {
        Self(ReplyTarget::Inbox(inbox, place))
    }

    /// To nobody: what is asked for is done for its own sake.
    #[must_use]
    pub const fn discard() -> Self {
        Self(ReplyTarget::Nobody)
    }

    /// The caller is known to be gone: an answer would reach nobody.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match &self.0 {
            ReplyTarget::One(to) => to.is_closed(),
            ReplyTarget::Inbox(inbox, _) => inbox.is_closed(),
            // Whether anybody listens to a batch is seen when the answer is put there: a lock less.
            ReplyTarget::Part(..) | ReplyTarget::Nobody => false,
        }
    }

    /// The answer leaves with others: when the last of them is there, not when this one is sent.
    #[must_use]
    pub const fn is_part(&self) -> bool {
        matches!(self.0, ReplyTarget::Part(..))
    }

    /// The same, also of a batch, at the price of its lock.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        match &self.0 {
            ReplyTarget::Part(batch, _) => batch.is_closed(),
            _ => self.is_closed(),
        }
    }

    /// Sends. False: the caller is gone.
    pub fn send(mut self, outcome: ShardOutcome) -> bool {
        match std::mem::replace(&mut self.0, ReplyTarget::Nobody) {
            ReplyTarget::One(to) => to.send(outcome).is_ok(),
            ReplyTarget::Part(batch, place) => batch.fill(place, outcome),
            ReplyTarget::Inbox(inbox, place) => inbox.put(place, outcome),
            ReplyTarget::Nobody => true,
        }
    }
}

impl Drop for ReplySender {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.0, ReplyTarget::Nobody) {
            ReplyTarget::One(to) => drop(to.send(Err(RequestError::DeadlineExceeded))),
            ReplyTarget::Part(batch, place) => drop(batch.fill(place, Err(RequestError::DeadlineExceeded))),
            ReplyTarget::Inbox(inbox, place) => drop(inbox.put(place, Err(RequestError::DeadlineExceeded))),
            ReplyTarget::Nobody => {}
        }
    }
}
