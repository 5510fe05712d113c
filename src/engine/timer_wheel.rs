//! Deadlines in a hierarchical timing wheel (Varghese and Lauck, SOSP 1987) of 6 levels of 64 slots with a resolution
//! of 1 ms. Slots are intrusive lists, so setting and cancelling cost O(1) and a cancelled deadline leaves nothing
//! behind (a heap with stale entries would grow with the claim rate, not with the claims).
//!
//! Level 0 holds what is due within the current 64 ms, level 1 within the current 4,096 ms, and so on: the highest
//! bit in which the deadline and `now` differ gives the level. When `now` enters a slot of a higher level, its
//! entries move down. Example: at now = 100, a deadline of 30,100 differs first in bit 14, so it is on level 2 (slots
//! of 4,096 ms) and moves down twice before it fires, exactly at 30,100.

use super::NIL;
use crate::model::Millis;

const LEVELS: usize = 6;
const SLOT_BITS: usize = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Furthest deadline (2.1 years); later ones are clamped to it. One slot of the top level short of a full revolution,
/// so that a deadline never falls into the slot of `now`.
const HORIZON_MS: Millis = (1 << (LEVELS * SLOT_BITS)) - (1 << ((LEVELS - 1) * SLOT_BITS));
const NO_BUCKET: u16 = u16::MAX;

#[derive(Debug, Clone, Copy)]
struct TimerNode {
    deadline: Millis,
    prev: u32,
    next: u32,
    /// Bucket of the node: `level * SLOTS + slot`, or `NO_BUCKET`.
    bucket: u16,
}

const IDLE_NODE: TimerNode = TimerNode { deadline: 0, prev: NIL, next: NIL, bucket: NO_BUCKET };

/// Deadlines by dense ordinal.
#[derive(Debug)]
pub struct TimerWheel {
    nodes: Vec<TimerNode>,
    heads: Box<[u32; LEVELS * SLOTS]>,
    occupied: [u64; LEVELS],
    /// Number of deadlines that are set.
    armed: usize,
    now: Millis,
}

impl TimerWheel {
    pub fn new(now: Millis) -> Self {
        Self { nodes: Vec::new(), heads: Box::new([NIL; LEVELS * SLOTS]), occupied: [0; LEVELS], armed: 0, now }
    }

    /// Sets or moves the deadline of `id`. A past deadline fires at the next [`Self::expire`].
    pub fn set(&mut self, id: u32, deadline: Millis) {
        self.cancel(id);
        if self.nodes.len() <= id as usize {
            self.nodes.resize(id as usize + 1, IDLE_NODE);
        }
        // What is due now or earlier goes to the next millisecond: a slot behind `now` is never visited.
        let deadline = deadline.clamp(self.now + 1, self.now + HORIZON_MS);
        self.link(id, deadline);
    }

    /// Deadline of `id`, if one is set.
    pub fn get(&self, id: u32) -> Option<Millis> {
        self.nodes.get(id as usize).filter(|node| node.bucket != NO_BUCKET).map(|node| node.deadline)
    }

    /// Cancels the deadline of `id`, if one is set.
    pub fn cancel(&mut self, id: u32) {
        let Some(node) = self.nodes.get(id as usize).copied().filter(|node| node.bucket != NO_BUCKET) else { return };
        if node.prev == NIL {
            debug_assert_eq!(self.heads[node.bucket as usize], id, "the first node is not the head of its bucket");
            self.heads[node.bucket as usize] = node.next;
            if node.next == NIL {
                self.occupied[node.bucket as usize / SLOTS] &= !(1 << (node.bucket as usize % SLOTS));
            }
        } else {
            debug_assert_eq!(self.nodes[node.prev as usize].next, id, "the previous node links another one");
            self.nodes[node.prev as usize].next = node.next;
        }
        if node.next != NIL {
            debug_assert_eq!(self.nodes[node.next as usize].prev, id, "the next node links another one");
            self.nodes[node.next as usize].prev = node.prev;
        }
        self.nodes[id as usize] = IDLE_NODE;
        self.armed -= 1;
    }

    /// Advances to `now` and returns one id whose deadline has passed, earliest slot first; none when done.
    pub fn expire(&mut self, now: Millis) -> Option<u32> {
        loop {
            let Some((bucket, at)) = self.next_bucket().filter(|&(_, at)| at <= now) else {
                self.now = self.now.max(now);
                return None;
            };
            self.now = self.now.max(at);
            debug_assert!(self.heads[bucket] != NIL, "an occupied bucket is empty");
            if bucket < SLOTS {
                let id = self.heads[bucket];
                debug_assert_eq!(self.nodes[id as usize].deadline, at, "a deadline fires early or late");
                self.cancel(id);
                return Some(id);
            }
            // The whole bucket moves down at once: after one moved entry, the lower level would hide the others.
            while self.heads[bucket] != NIL {
                let id = self.heads[bucket];
                let deadline = self.nodes[id as usize].deadline;
                self.cancel(id);
                self.link(id, deadline);
            }
        }
    }

    /// Lower bound of the next firing, if a deadline is set: the start of the next occupied slot.
    #[inline]
    pub fn next_ms(&self) -> Option<Millis> {
        // Most shards have no deadlines at most times.
        if self.armed == 0 {
            return None;
        }
        self.next_bucket().map(|(_, at)| at)
    }

    fn link(&mut self, id: u32, deadline: Millis) {
        let highest = 63 - ((deadline ^ self.now) | 1).leading_zeros() as usize;
        let level = (highest / SLOT_BITS).min(LEVELS - 1);
        let slot = (deadline >> (level * SLOT_BITS)) as usize % SLOTS;
        let bucket = level * SLOTS + slot;
        debug_assert!(deadline >= self.now, "a deadline is linked behind the wheel");
        debug_assert!(
            level == 0 || slot != (self.now >> (level * SLOT_BITS)) as usize % SLOTS,
            "a deadline is linked into the current slot of a higher level"
        );
        debug_assert_eq!(self.nodes[id as usize].bucket, NO_BUCKET, "a deadline is linked twice");
        let next = std::mem::replace(&mut self.heads[bucket], id);
        if next != NIL {
            self.nodes[next as usize].prev = id;
        }
        self.occupied[level] |= 1 << slot;
        self.nodes[id as usize] = TimerNode { deadline, prev: NIL, next, bucket: bucket as u16 };
        self.armed += 1;
    }

    /// First occupied bucket, and the time at which its slot starts. Lower levels come first: their entries lie
    /// within the current slot of every higher level.
    fn next_bucket(&self) -> Option<(usize, Millis)> {
        (0..LEVELS).find(|&level| self.occupied[level] != 0).map(|level| {
            let shift = level * SLOT_BITS;
            let current = (self.now >> shift) as usize % SLOTS;
            let ahead = self.occupied[level].rotate_right(current as u32).trailing_zeros() as usize;
            let slot = (current + ahead) % SLOTS;
            let at = ((self.now >> shift) + ahead as u64) << shift;
            (level * SLOTS + slot, at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone)]
    enum Op {
        Set(u32, u64),
        Cancel(u32),
        Advance(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let span = || prop_oneof![0..70u64, 0..5_000u64, 0..400_000u64, 0..100_000_000u64];
        prop_oneof![
            4 => (0..40u32, span()).prop_map(|(id, after)| Op::Set(id, after)),
            1 => (0..40u32).prop_map(Op::Cancel),
            3 => span().prop_map(Op::Advance),
        ]
    }

    proptest! {
        /// Compares with a sorted map: everything fires at the first expiry at or after its deadline, once, and
        /// nothing else.
        #[test]
        fn fires_what_a_sorted_map_would(start in 0..1u64 << 40, ops in proptest::collection::vec(op(), 1..200)) {
            let mut timers = TimerWheel::new(start);
            let mut oracle: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = start;
            for op in ops {
                match op {
                    Op::Set(id, after) => {
                        timers.set(id, now + after);
                        oracle.insert(id, (now + after).max(now + 1));
                    }
                    Op::Cancel(id) => {
                        timers.cancel(id);
                        oracle.remove(&id);
                    }
                    Op::Advance(by) => {
                        now += by;
                        let mut fired: Vec<u32> = std::iter::from_fn(|| timers.expire(now)).collect();
                        fired.sort_unstable();
                        let due: Vec<u32> = oracle.iter().filter(|&(_, &at)| at <= now).map(|(&id, _)| id).collect();
                        prop_assert_eq!(&fired, &due);
                        oracle.retain(|_, at| *at > now);
                    }
                }
                prop_assert!(timers.next_ms().is_none_or(|at| oracle.values().all(|&due| at <= due)));
                prop_assert_eq!(timers.next_ms().is_none(), oracle.is_empty());
                for (id, at) in &oracle {
                    prop_assert_eq!(timers.get(*id), Some(*at));
                }
            }
        }
    }
}
