//! Notices to a shard that bypass its mailbox: the fate of its replies, and new settings of its pool.

use super::address::KeyTicket;
use super::event::ShardLife;
use crate::engine::{ClaimHandle, ReservationId, ShardConfig};
use crate::model::{ClaimId, Fence, Millis, UnreadReply};

/// Workers of a shard that are offered once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferedWorkers {
    /// Worker with this ordinal.
    One(u32),
    /// Every worker of the shard.
    All,
}

/// Message to a shard that must not be refused. Bounded by the number of replies, of changes of the pool, and of workers that
/// are reserved or unmatched: the shard itself offers one before it is offered again.
#[derive(Debug)]
pub(crate) enum ShardNotice {
    /// A reply that shows this claim will be read by nobody.
    Unread {
        /// Key of the claim.
        id: ClaimId,
        /// Handle of the claim.
        handle: ClaimHandle,
        /// Life of the shard that numbered the claim.
        life: ShardLife,
        /// Reply that nobody reads.
        reply: UnreadReply,
    },
    /// The claim with this ticket is not wanted any more, if it is still in the mailbox.
    Cancelled(KeyTicket),
    /// The key of this claim is held elsewhere, under a higher fence.
    Relinquish {
        /// Handle of the claim.
        handle: ClaimHandle,
        /// Life of the shard that numbered the claim.
        life: ShardLife,
    },
    /// A panic kept this reply about a claim from its caller, or undid what followed from that.
    Undelivered(ClaimId, Fence, UnreadReply),
    /// Replies that cover these claims were sent at this engine time.
    ReplySent(Vec<ClaimHandle>, Millis),
    /// The reservation with this id is not needed any more.
    CancelReservation(ReservationId),
    /// Workers are offered once more to the claims that wait.
    Offer(OfferedWorkers),
    /// The settings of the pool changed.
    Config(ShardConfig),
}
