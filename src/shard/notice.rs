//! What a shard learns of answers after they have left it.

use crate::engine::Place;
use crate::model::{ClaimId, Fence, Millis};

/// What became of answers about claims of the shard.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The grant of this claim will reach nobody.
    Undelivered(ClaimId, Fence),
    /// Answers that speak of these left, at this engine time.
    Departed(Vec<Place>, Millis),
}
