//! Queue of the idle workers, in the order in which claims take them.
//!
//! The queue is an intrusive list through the workers (`lifo`, `fifo`) or a vector of ordinals (`random`), so that a
//! worker is removed from its middle in O(1). Beside it are the warm buckets: a hash table of lists of idle workers
//! by the affinity of their last claim, so that an idle worker which last ran the same is found without a scan. A
//! bucket may hold several affinities; each worker has its own, and a lookup gives up after [`WARM_SCAN_MAX`]
//! entries: affinity is a preference and must not cost more than it saves.
//!
//! Workers with an end of life are in a tree that finds the first of them that lives for long enough
//! ([`super::expiries`]); a claim compares it with the first of the list, by when they became idle. Workers inserted
//! into the middle of the order are there too. A pool whose workers never end has an empty tree, and uses the list
//! alone.
//!
//! Claims with constraints are served by [`super::idle_classes`], which holds the same workers by class.
//!
//! Whether a worker is schedulable is not decided here: the owner of its state calls [`IdleQueue::push`] when it is
//! and [`IdleQueue::remove`] when it is not, alternately, and nothing else makes a worker idle.
//!
//! Example: policy `lifo`, idle from oldest to newest `a(x) b(y) c(x)`. A claim with affinity `y` takes `b`, though
//! `c` is newer; one with affinity `z` takes `c`; one with `x` takes `c`, the most recent of its bucket.

use super::constraints::PlacementConstraints;
use super::expiries::{ExpiryForest, ExpiryTree, NEVER, SearchDirection};
use super::idle_classes::IdleClasses;
use crate::engine::NIL;
use crate::engine::invariants::InvariantViolation;
use crate::engine::workers::Worker;
use crate::model::{Fence, Millis, PlacementPolicy, Seq};

/// Entries of a warm bucket that are examined before the policy decides.
const WARM_SCAN_MAX: usize = 8;
const BUCKETS_MIN: usize = 64;

/// Idle workers of a shard.
#[derive(Debug)]
pub struct IdleQueue {
    policy: PlacementPolicy,
    len: usize,
    /// Newest and oldest of the list.
    head: u32,
    tail: u32,
    /// Unordered workers, with policy `random` instead of the list.
    unordered: Vec<u32>,
    /// Ends of life of all workers, idle or not.
    expiries: ExpiryForest,
    /// Idle workers that are in neither list nor vector ([`order_key`]).
    expiring: ExpiryTree,
    /// Most recent idle worker by affinity; a power of two.
    warm_buckets: Vec<u32>,
    /// Idle workers by class, once a claim had constraints.
    classes: Option<Box<IdleClasses>>,
}

impl IdleQueue {
    pub fn new(policy: PlacementPolicy) -> Self {
        Self {
            policy,
            len: 0,
            head: NIL,
            tail: NIL,
            unordered: Vec::new(),
            expiries: ExpiryForest::default(),
            expiring: ExpiryTree::default(),
            warm_buckets: vec![NIL; BUCKETS_MIN],
            classes: None,
        }
    }

    /// Restarts under another policy, with no idle workers. Ends of life are kept.
    pub fn reset(&mut self, policy: PlacementPolicy) {
        assert_eq!(self.len, 0, "Q1: only an empty idle queue is reset");
        let expiries = std::mem::take(&mut self.expiries);
        *self = Self { expiries, ..Self::new(policy) };
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// End of a worker's life, as recorded here.
    pub fn ends_ms(&self, at: u32) -> Option<Millis> {
        Some(self.expiries.ends_ms(at)).filter(|&ends_ms| ends_ms != NEVER)
    }

    /// Adds a worker that became idle: from now on it may be picked. Its `idle_seq` is above that of all idle
    /// workers. The caller keeps as many buckets as workers with [`Self::resize_buckets`].
    pub fn push(&mut self, workers: &mut [Worker], at: u32) {
        debug_assert!(!workers[at as usize].idle, "Q1: a worker is idle at most once");
        debug_assert!(
            self.head == NIL || workers[self.head as usize].idle_seq <= workers[at as usize].idle_seq,
            "Q1: workers become idle one after another"
        );
        debug_assert!(
            workers[at as usize].claim == NIL && workers[at as usize].unschedulable_bits == 0,
            "Q1: a busy or unschedulable worker becomes idle"
        );
        self.len += 1;
        workers[at as usize].idle = true;
        let ends_ms = self.expiries.ends_ms(at);
        if ends_ms != NEVER {
            self.enter_tree(workers, at);
        } else if self.policy == PlacementPolicy::Random {
            workers[at as usize].idle_prev = self.unordered.len() as u32;
            self.unordered.push(at);
        } else {
            workers[at as usize].idle_prev = NIL;
            workers[at as usize].idle_next = self.head;
            match self.head {
                NIL => self.tail = at,
                head => workers[head as usize].idle_prev = at,
            }
            self.head = at;
        }
        self.warm_push(workers, at);
        if let Some(classes) = &mut self.classes {
            classes.push(workers, at, ends_ms);
        }
    }

    /// Sets the end of a worker's life. An idle worker keeps its position in the order.
    pub fn set_ends_ms(&mut self, workers: &mut [Worker], at: u32, ends_ms: Option<Millis>) {
        let ends_ms = ends_ms.unwrap_or(NEVER);
        if self.expiries.ends_ms(at) == ends_ms {
            return;
        }
        if !workers[at as usize].idle {
            return self.expiries.set_ends_ms(at, ends_ms);
        }
        self.leave_order(workers, at);
        self.expiries.set_ends_ms(at, ends_ms);
        self.enter_tree(workers, at);
        if let Some(classes) = &mut self.classes {
            classes.reindex(workers, at, ends_ms);
        }
    }

    fn enter_tree(&mut self, workers: &[Worker], at: u32) {
        let key = order_key(self.policy, workers[at as usize].idle_seq, self.expiries.ends_ms(at));
        self.expiries.insert(&mut self.expiring, at, key);
    }

    /// Picks a worker for a claim with this affinity that lives beyond `until_ms`. Changes nothing.
    pub fn pick(&self, workers: &[Worker], affinity: u64, fence: Fence, until_ms: Millis) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        if !self.expiring.is_empty() {
            return self.pick_outliving(workers, affinity, fence, until_ms);
        }
        if let Some(at) = self.warmest(workers, affinity, |_, _| true) {
            return Some(at);
        }
        Some(match self.policy {
            PlacementPolicy::Fifo => self.tail,
            PlacementPolicy::Random => self.unordered[(splitmix64(fence) % self.unordered.len() as u64) as usize],
            _ => self.head,
        })
    }

    /// Picks a worker when some idle ones are in the tree.
    #[cold]
    fn pick_outliving(&self, workers: &[Worker], affinity: u64, fence: Fence, until_ms: Millis) -> Option<u32> {
        if let Some(at) = self.warmest(workers, affinity, |at, _| self.expiries.outlives(at, until_ms)) {
            return Some(at);
        }
        let expiring = |from| self.expiries.find(self.expiring, from, until_ms, &mut |_| true);
        let listed = |at: u32| Some(at).filter(|&at| at != NIL);
        let idle_seq = |at: &u32| workers[*at as usize].idle_seq;
        match self.policy {
            PlacementPolicy::Fifo => {
                listed(self.tail).into_iter().chain(expiring(SearchDirection::Ascending)).min_by_key(idle_seq)
            }
            PlacementPolicy::Random => {
                let outliving = self.expiries.count_outliving(self.expiring, until_ms);
                let all = (self.unordered.len() + outliving) as u64;
                let nth = splitmix64(fence).checked_rem(all)? as usize;
                self.unordered
                    .get(nth)
                    .copied()
                    .or_else(|| self.expiries.nth_last(self.expiring, nth - self.unordered.len()))
            }
            _ => listed(self.head).into_iter().chain(expiring(SearchDirection::Descending)).max_by_key(idle_seq),
        }
    }

    /// Picks a worker that meets the constraints, which name no worker, and lives beyond `until_ms`. The first call
    /// scans the idle workers.
    #[cold]
    pub fn select(
        &mut self,
        workers: &[Worker],
        constraints: &PlacementConstraints,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
    ) -> Option<u32> {
        let fits =
            |at, worker: &Worker| self.expiries.outlives(at, until_ms) && constraints.fits(&worker.registration().spec);
        let warm = self.warmest(workers, affinity, fits);
        warm.or_else(|| self.classes(workers).pick(workers, constraints, fence, until_ms))
    }

    /// Whether an idle worker that lives beyond `until_ms` would fit if it were on another node.
    pub fn fits_ignoring_node(
        &mut self,
        workers: &[Worker],
        constraints: &PlacementConstraints,
        until_ms: Millis,
    ) -> bool {
        self.classes(workers).fits_ignoring_node(workers, constraints, until_ms)
    }

    fn classes(&mut self, workers: &[Worker]) -> &IdleClasses {
        if self.classes.is_none() {
            let mut classes = IdleClasses::new(self.policy);
            for at in self.oldest_first(workers) {
                classes.push(workers, at, self.expiries.ends_ms(at));
            }
            self.classes = Some(Box::new(classes));
        }
        self.classes.as_ref().expect("the classes were built above")
    }

    /// Updates the class of a worker whose registration changed. An idle worker keeps its position.
    pub fn reindex(&mut self, workers: &[Worker], at: u32) {
        if let Some(classes) = &mut self.classes {
            classes.reindex(workers, at, self.expiries.ends_ms(at));
        }
    }

    /// Forgets a worker that is not idle and whose registration ended.
    pub fn forget(&mut self, at: u32) {
        self.expiries.set_ends_ms(at, NEVER);
        if let Some(classes) = &mut self.classes {
            classes.forget(at);
        }
    }

    /// Number of tree nodes that searches visited so far.
    pub fn steps(&self) -> u64 {
        self.expiries.steps() + self.classes.as_ref().map_or(0, |classes| classes.steps())
    }

    /// Checks that the tree is in order, and that the classes hold the workers of the queue.
    ///
    /// # Errors
    /// The first violated invariant.
    pub fn check(&self, workers: &[Worker]) -> Result<(), InvariantViolation> {
        self.expiries.check(self.expiring)?;
        self.classes.as_ref().map_or(Ok(()), |classes| classes.check(workers, &self.expiries))
    }

    /// Removes a worker that was claimed or became unschedulable.
    pub fn remove(&mut self, workers: &mut [Worker], at: u32) {
        let worker = &mut workers[at as usize];
        debug_assert!(worker.idle, "Q1: only an idle worker leaves the queue");
        worker.idle = false;
        self.len -= 1;
        self.leave_order(workers, at);
        self.warm_remove(workers, at);
        if let Some(classes) = &mut self.classes {
            classes.remove(at);
        }
    }

    #[inline(always)]
    fn leave_order(&mut self, workers: &mut [Worker], at: u32) {
        if self.expiries.contains(at) {
            return self.expiries.remove(&mut self.expiring, at);
        }
        let worker = &workers[at as usize];
        let (prev, next) = (worker.idle_prev, worker.idle_next);
        if self.policy == PlacementPolicy::Random {
            debug_assert_eq!(self.unordered.get(prev as usize), Some(&at), "Q1: a position names another worker");
            self.unordered.swap_remove(prev as usize);
            if let Some(&moved) = self.unordered.get(prev as usize) {
                workers[moved as usize].idle_prev = prev;
            }
        } else {
            debug_assert!(prev != NIL || self.head == at, "Q1: the first worker is not the head of the queue");
            debug_assert!(next != NIL || self.tail == at, "Q1: the last worker is not the tail of the queue");
            match prev {
                NIL => self.head = next,
                prev => workers[prev as usize].idle_next = next,
            }
            match next {
                NIL => self.tail = prev,
                next => workers[next as usize].idle_prev = prev,
            }
        }
    }

    /// Keeps as many buckets as there are workers, so that a bucket is short. Called when workers are added.
    pub fn resize_buckets(&mut self, workers: &mut [Worker]) {
        if workers.len() <= self.warm_buckets.len() {
            return;
        }
        self.warm_buckets = vec![NIL; workers.len().next_power_of_two()];
        assert!(self.warm_buckets.len().is_power_of_two(), "Q1: a mask selects the bucket");
        for at in self.oldest_first(workers) {
            self.warm_push(workers, at);
        }
    }

    /// All idle workers, oldest first (in no order with policy `random`).
    pub fn oldest_first(&self, workers: &[Worker]) -> Vec<u32> {
        self.oldest(workers, self.len)
    }

    /// Workers that became idle first, at most `limit` (with policy `random` any, in no order).
    pub fn oldest(&self, workers: &[Worker], limit: usize) -> Vec<u32> {
        let next = |&at: &u32| Some(workers[at as usize].idle_prev).filter(|&at| at != NIL);
        let listed = std::iter::successors(Some(self.tail).filter(|&at| at != NIL), next);
        // One of list and vector is empty.
        let mut oldest: Vec<u32> = listed.chain(self.unordered.iter().copied()).take(limit).collect();
        if !self.expiring.is_empty() {
            oldest.extend(self.expiries.first(self.expiring, limit));
            if self.policy != PlacementPolicy::Random {
                oldest.sort_unstable_by_key(|&at| (workers[at as usize].idle_seq, at));
            }
            oldest.truncate(limit);
        }
        oldest
    }

    /// Head of an affinity's bucket, regardless of its own affinity.
    pub fn warm_head(&self, affinity: u64) -> u32 {
        self.warm_buckets[self.bucket(affinity)]
    }

    fn bucket(&self, affinity: u64) -> usize {
        affinity as usize & (self.warm_buckets.len() - 1)
    }

    fn warmest(&self, workers: &[Worker], affinity: u64, passes: impl Fn(u32, &Worker) -> bool) -> Option<u32> {
        let next = |&at: &u32| Some(workers[at as usize].warm_next).filter(|&at| at != NIL);
        std::iter::successors(Some(self.warm_buckets[self.bucket(affinity)]).filter(|&at| at != NIL), next)
            .take(WARM_SCAN_MAX)
            .find(|&at| workers[at as usize].affinity == affinity && passes(at, &workers[at as usize]))
    }

    fn warm_push(&mut self, workers: &mut [Worker], at: u32) {
        let affinity = workers[at as usize].affinity;
        if affinity == 0 {
            return;
        }
        let bucket = self.bucket(affinity);
        let next = std::mem::replace(&mut self.warm_buckets[bucket], at);
        debug_assert!(next != at, "Q1: a worker is warm twice");
        workers[at as usize].warm_prev = NIL;
        workers[at as usize].warm_next = next;
        if next != NIL {
            workers[next as usize].warm_prev = at;
        }
    }

    fn warm_remove(&mut self, workers: &mut [Worker], at: u32) {
        let worker = &workers[at as usize];
        if worker.affinity == 0 {
            return;
        }
        let (prev, next, bucket) = (worker.warm_prev, worker.warm_next, self.bucket(worker.affinity));
        debug_assert!(prev != NIL || self.warm_buckets[bucket] == at, "Q1: the warmest worker is not the head");
        match prev {
            NIL => self.warm_buckets[bucket] = next,
            prev => workers[prev as usize].warm_next = next,
        }
        if next != NIL {
            workers[next as usize].warm_prev = prev;
        }
    }
}

/// Key of a worker in a tree of idle ones: with policy `random` its end, so that the workers that live for long
/// enough are counted without visiting each; else the number by which it became idle.
pub(in crate::engine) const fn order_key(policy: PlacementPolicy, idle_seq: Seq, ends_ms: Millis) -> u64 {
    if matches!(policy, PlacementPolicy::Random) { ends_ms } else { idle_seq }
}

/// Hashes a fence to 64 bits (the finaliser of SplitMix64, Steele et al., OOPSLA 2014).
pub(in crate::engine) const fn splitmix64(fence: Fence) -> u64 {
    let mut x = fence.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
