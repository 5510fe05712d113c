//! Notices to a shard, beside its ring: what became of its answers, and what the settings of its pool are.

use crate::engine::{ClaimHandle, ShardConfig};
use crate::model::{ClaimId, Fence, Millis};

/// A message to a shard that must not be refused. Bounded by the answers that the shard gave, and by changes of its pool.
#[derive(Debug)]
pub(crate) enum ShardNotice {
    /// The grant of this claim will reach nobody.
    Undelivered(ClaimId, Fence),
    /// Answers that speak of these left, at this engine time.
    ReplySent(Vec<ClaimHandle>, Millis),
    /// Settings of the pool, from now on.
    Rules(ShardConfig),
}
