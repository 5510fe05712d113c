//! Replies, and where they go. Those about one claim go to a completion queue, or to a cell, which is the queue of one
//! awaited call. Every other command has a reply of its own type ([`CommandReply`]).

mod address;
mod command_reply;
mod completion_cell;
mod completion_queue;
mod gang_reply;

use std::sync::Arc;

use crate::engine::{CapacityUsage, ClaimGrant};
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{Fence, ResourceVector, ShardStatus, UnreadReply};
use crate::shard::address::ShardRef;

pub use self::address::ReplyAddress;
pub use self::command_reply::{
    ClaimSlice, CommandReply, CommittedMembers, DeletedWorker, EndedWorkers, HeartbeatReply, PreviewedPlacement,
    RegisteredWorker, SurveySlice, WorkerSlice,
};
pub use self::completion_cell::AwaitedReply;
pub use self::completion_queue::{Completion, CompletionQueue, CompletionToken};
pub use self::gang_reply::{GangAnswer, GangInbox, GangNumber, GangReply, GangReport, GangRequestNumber, MembersWaker};

/// Successful reply to a request about one claim. Whoever takes it either discloses it to the caller
/// ([`Self::disclose`]) or, if nobody will read it, reports that to the claim's shard ([`Self::into_unread`]).
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimReply {
    /// Claim that is held now.
    Claim(ClaimAnswer),
    /// The claim was released; there is nothing to add.
    Released,
}

impl ClaimReply {
    /// Claim that the reply shows as held, for its caller.
    ///
    /// # Errors
    /// `NotFound` if the claim was released.
    pub fn disclose(self) -> Result<ClaimAnswer, RequestError> {
        match self {
            Self::Claim(answer) => Ok(answer),
            Self::Released => Err(RequestError::NotFound(ObjectKind::Claim)),
        }
    }

    /// Fence of the claim that the reply shows, and what the reply is to it, because nobody will read the reply.
    #[must_use]
    pub fn into_unread(self) -> Option<(Fence, UnreadReply)> {
        match self {
            Self::Claim(ClaimAnswer { grant, created, .. }) => {
                Some((grant.handle.fence, if created { UnreadReply::Grant } else { UnreadReply::Reference }))
            }
            Self::Released => None,
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
}

impl ClaimAnswer {
    /// Answer to the request that created the claim.
    #[must_use]
    pub const fn created(grant: ClaimGrant, shard: ShardRef) -> Self {
        Self { grant, created: true, shard }
    }

    /// Answer to a request about a claim that existed before.
    #[must_use]
    pub const fn existing(grant: ClaimGrant, shard: ShardRef) -> Self {
        Self { grant, created: false, shard }
    }
}

/// Outcome of a request about one claim.
pub type ShardOutcome = Result<ClaimReply, RequestError>;

/// Takes an outcome, and leaves one behind that promises nothing.
fn take_outcome(outcome: &mut ShardOutcome) -> ShardOutcome {
    std::mem::replace(outcome, Err(RequestError::DeadlineExceeded))
}
