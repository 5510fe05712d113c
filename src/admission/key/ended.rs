//! Recently ended claims whose holders did not end them: claims of lost workers (`GET` says `lost`), and claims that
//! were never cleaned up (a late finish is accepted). Each is part of its key's entry; a queue forgets them in time and
//! number.

use std::collections::VecDeque;

use crate::engine::ClaimGrant;
use crate::limits;
use crate::model::{ClaimId, Fence, Millis, PoolName};
use crate::shard::{ShardLife, ShardRef};

/// Claim that has ended without its holder.
#[derive(Debug, Clone)]
pub struct EndedClaim {
    /// Shard that held the claim.
    pub shard: ShardRef,
    /// Life of the shard that numbered the claim.
    pub life: ShardLife,
    /// Pool that held the claim.
    pub pool: PoolName,
    /// Engine time of the end.
    pub ended_ms: Millis,
    /// Last state of the grant, except that it is `lost`, or `releasing` if its clean-up timed out.
    pub grant: ClaimGrant,
}

/// Ended claims in the order in which they are forgotten.
#[derive(Debug, Default)]
pub(super) struct ExpiryQueue(VecDeque<(Millis, ClaimId, Fence)>);

impl ExpiryQueue {
    /// Adds a claim that ended at `now_ms`. Returns those that are to be forgotten now: their time is over, or there are
    /// more than [`limits::ENDED_CLAIMS_MAX`].
    pub fn push(&mut self, id: ClaimId, fence: Fence, now_ms: Millis) -> Vec<(ClaimId, Fence)> {
        self.0.push_back((now_ms + limits::ENDED_CLAIMS_MS, id, fence));
        let mut forgotten = Vec::new();
        while self.0.front().is_some_and(|(until_ms, ..)| *until_ms <= now_ms)
            || self.0.len() > limits::ENDED_CLAIMS_MAX
        {
            forgotten.extend(self.0.pop_front().map(|(_, id, fence)| (id, fence)));
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> ClaimId {
        ClaimId::new("ns", "t", &format!("k{n}")).unwrap()
    }

    #[test]
    fn ended_claims_are_forgotten_in_time_and_beyond_their_number() {
        let mut queue = ExpiryQueue::default();
        assert_eq!(queue.push(id(0), 1, 5), []);
        assert_eq!(queue.push(id(1), 2, 5 + limits::ENDED_CLAIMS_MS), [(id(0), 1)], "its time is over");
        for n in 2..=limits::ENDED_CLAIMS_MAX {
            assert_eq!(queue.push(id(n), 3, 6 + limits::ENDED_CLAIMS_MS), []);
        }
        assert_eq!(queue.push(id(0), 4, 6 + limits::ENDED_CLAIMS_MS), [(id(1), 2)], "as many as may be remembered");
    }
}
