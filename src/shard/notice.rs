//! Notices to a shard that bypass its mailbox: the fate of its replies, and new settings of its pool.

use crate::engine::{ClaimHandle, ShardConfig};
use crate::model::{ClaimId, Fence, Millis};

/// Message to a shard that must not be refused. Bounded by the number of replies, and by changes of the pool.
#[derive(Debug)]
pub(crate) enum ShardNotice {
    /// The grant of this claim will reach nobody.
    Undelivered(ClaimId, Fence),
    /// Replies that cover these claims were sent at this engine time.
    ReplySent(Vec<ClaimHandle>, Millis),
    /// The settings of the pool changed.
    Config(ShardConfig),
}
