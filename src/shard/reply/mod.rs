//! Destinations of replies. Those about one claim go to one caller, to one slot of a batch that is delivered when all
//! slots are filled, or to a completion queue that has each reply as soon as it arrives. Every other command has a
//! reply of its own type ([`CommandReply`]).

mod batch;
mod command_reply;
mod completion_queue;

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::engine::{CapacityUsage, ClaimGrant};
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{Millis, ResourceVector, ShardStatus};
use crate::shard::address::ShardRef;

pub use self::batch::{BatchAnswers, ReplyBatch};
pub use self::command_reply::{
    ClaimSlice, CommandReply, CommittedMembers, DeletedWorker, EndedWorkers, HeartbeatReply, PreviewedPlacement,
    RegisteredWorker, SurveySlice, WorkerSlice,
};
pub use self::completion_queue::CompletionQueue;

/// Successful reply to a request about one claim.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimReply {
    /// Claim that is held now.
    Claim(ClaimAnswer),
    /// The claim was released; there is nothing to add.
    Released,
}

impl ClaimReply {
    /// Claim that the reply shows as held.
    ///
    /// # Errors
    /// `NotFound` if the claim was released.
    pub fn into_claim(self) -> Result<ClaimAnswer, RequestError> {
        match self {
            Self::Claim(answer) => Ok(answer),
            Self::Released => Err(RequestError::NotFound(ObjectKind::Claim)),
        }
    }
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

/// Outcome of a request about one claim.
pub type ShardOutcome = Result<ClaimReply, RequestError>;

#[derive(Debug)]
enum ReplyTarget {
    One(oneshot::Sender<ShardOutcome>),
    Part(Arc<ReplyBatch>, u32),
    Inbox(Arc<CompletionQueue>, u32),
    Nobody,
}

/// Sender of one reply about a claim. If it is dropped unsent (its shard panicked), it reports that the outcome is unknown.
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
