//! Locks of pools for gangs: one gang at a time is placed in a pool, so that two never block each other half-way. Pure.
//!
//! A gang enters the queues of all its pools at once, and has its locks when it is the first in each. The queues of two
//! pools therefore agree on the order of two gangs that share them, and no two wait for each other.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, VecDeque};

use crate::shard::GangNumber;

/// Gangs that have the locks of their pools, or wait for them.
#[derive(Debug, Default)]
pub struct PoolLocks {
    /// Gangs by the number of the pool, in the order in which they came; the first has the lock.
    queues: BTreeMap<u32, VecDeque<GangNumber>>,
    /// Numbers of the pools of each gang.
    pools: BTreeMap<GangNumber, Vec<u32>>,
}

impl PoolLocks {
    /// Requests the locks of these pools. Returns whether the gang has them now.
    pub fn request(&mut self, gang: GangNumber, mut pools: Vec<u32>) -> bool {
        pools.sort_unstable();
        pools.dedup();
        for pool in &pools {
            self.queues.entry(*pool).or_default().push_back(gang);
        }
        self.pools.insert(gang, pools);
        self.has_locks(gang)
    }

    /// Releases the locks of a gang, or ends its wait for them. Returns the gangs that have theirs from now on.
    pub fn release(&mut self, gang: GangNumber) -> Vec<GangNumber> {
        let mut next = Vec::new();
        for pool in self.pools.remove(&gang).unwrap_or_default() {
            let Some(queue) = self.queues.get_mut(&pool) else { continue };
            let was_first = queue.front() == Some(&gang);
            queue.retain(|other| *other != gang);
            if was_first {
                next.extend(queue.front().copied());
            }
            if queue.is_empty() {
                self.queues.remove(&pool);
            }
        }
        next.sort_unstable();
        next.dedup();
        next.retain(|gang| self.has_locks(*gang));
        next
    }

    /// Whether no gang has or awaits a lock.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.pools.is_empty()
    }

    fn has_locks(&self, gang: GangNumber) -> bool {
        let is_first = |pool| self.queues.get(pool).and_then(VecDeque::front) == Some(&gang);
        self.pools.get(&gang).is_some_and(|pools| pools.iter().all(is_first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gang_has_the_lock_of_a_pool_and_the_next_follows() {
        let mut locks = PoolLocks::default();
        assert!(locks.request(1, vec![7, 7, 8]));
        assert!(!locks.request(2, vec![8, 9]) && !locks.request(3, vec![9]), "the second is ahead of the third");
        assert!(locks.request(4, vec![6]), "other pools are free");
        assert_eq!(locks.release(1), [2]);
        assert_eq!(locks.release(2), [3]);
        assert_eq!((locks.release(3), locks.release(4)), (vec![], vec![]));
        assert!(locks.queues.is_empty() && locks.pools.is_empty());
    }

    #[test]
    fn a_gang_that_stops_waiting_lets_those_behind_it_go_on() {
        let mut locks = PoolLocks::default();
        assert!(locks.request(1, vec![1]));
        assert!(!locks.request(2, vec![1, 2]) && !locks.request(3, vec![2]));
        assert_eq!(locks.release(2), [3], "its pool was free, but for the one that has left");
        assert!(locks.release(1).is_empty());
    }
}
