//! Queue of the idle workers, in the order in which claims take them.
//!
//! The idle queue is an intrusive list through the workers (`lifo`, `fifo`) or a vector of ordinals (`random`), so
//! that a worker also leaves its middle in O(1). Beside it stand the warm buckets: a table of lists of idle workers
//! by the affinity of their last claim, so that "an idle worker that last ran the same" is found without a scan. A
//! bucket may hold several affinities; each worker remembers its own, and a look gives up after [`WARM_LOOKS`]:
//! affinity is a preference and must not cost more than it saves.
//!
//! Workers with an end of life stand apart, in a tree that finds the first of them that lives for long enough
//! ([`super::expiries`]); a claim compares that one with the first of the list, by when they became idle. So does a worker that
//! comes into the middle of the order. A pool whose workers never end has an empty tree, and looks at the list alone.
//!
//! Claims that ask for certain workers are served by [`super::idle_classes`], which holds the same workers once more, by shape.
//!
//! Whether a worker may be offered at all is not decided here: whoever owns its state calls [`Idle::push`] when it may
//! and [`Idle::remove`] when it may not, at most one after the other, and nothing else makes a worker idle.
//!
//! Example: policy `lifo`, idle from oldest to newest `a(x) b(y) c(x)`. A claim with affinity `y` takes `b`, though
//! `c` is newer; one with affinity `z` takes `c`; one with `x` takes `c`, the most recent of its bucket.

use super::constraints::PlacementConstraints;
use super::expiries::{ExpiryForest, ExpiryTree, NEVER, SearchDirection};
use super::idle_classes::IdleClasses;
use crate::engine::NIL;
use crate::engine::workers::Worker;
use crate::model::{Fence, Millis, PlacementPolicy, Seq};

/// Entries of a warm bucket that are looked at before the policy decides.
const WARM_SCAN_MAX: usize = 8;
const BUCKETS_MIN: usize = 64;

/// The idle workers of a shard.
#[derive(Debug)]
pub struct IdleQueue {
    policy: PlacementPolicy,
    len: usize,
    /// Newest and oldest of the list.
    head: u32,
    tail: u32,
    /// With policy `random`, in place of the list: in no order.
    unordered: Vec<u32>,
    /// Ends of all workers, idle or not.
    expiries: ExpiryForest,
    /// Idle workers that stand in neither list nor vector ([`order_key`]).
    expiring: ExpiryTree,
    /// Most recent idle worker by affinity; a power of two.
    warm_buckets: Vec<u32>,
    /// The same workers by shape, once a claim has asked for certain ones.
    shapes: Option<Box<IdleClasses>>,
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
            shapes: None,
        }
    }

    /// Begins anew under another policy, with no idle workers. Ends of life are kept.
    pub fn reset(&mut self, policy: PlacementPolicy) {
        assert_eq!(self.len, 0, "Q1: a queue that begins anew is empty");
        let expiries = std::mem::take(&mut self.expiries);
        *self = Self { expiries, ..Self::new(policy) };
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// End of a worker's life, as it is known here.
    pub fn ends_ms(&self, at: u32) -> Option<Millis> {
        Some(self.expiries.ends_ms(at)).filter(|&ends_ms| ends_ms != NEVER)
    }

    /// A worker became idle: from now on it may be offered. Its `idle_seq` is above that of all that are idle. Keep the
    /// buckets as many as the workers with [`Self::grow`].
    pub fn push(&mut self, workers: &mut [Worker], at: u32) {
        debug_assert!(!workers[at as usize].idle, "Q1: a worker is idle at most once");
        debug_assert!(
            self.head == NIL || workers[self.head as usize].idle_seq <= workers[at as usize].idle_seq,
            "Q1: workers become idle one after another"
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
        if let Some(shapes) = &mut self.shapes {
            shapes.push(workers, at, ends_ms);
        }
    }

    /// Sets the end of a worker's life. If it is idle, it keeps its place in the order.
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
        if let Some(shapes) = &mut self.shapes {
            shapes.reindex(workers, at, ends_ms);
        }
    }

    fn enter_tree(&mut self, workers: &[Worker], at: u32) {
        let key = order_key(self.policy, workers[at as usize].idle_seq, self.expiries.ends_ms(at));
        self.expiries.insert(&mut self.expiring, at, key);
    }

    /// The worker that a claim with this affinity takes which needs it until `until_ms`: looks only, takes nothing.
    pub fn pick(&self, workers: &[Worker], affinity: u64, fence: Fence, until_ms: Millis) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        if !self.expiring.is_empty() {
            return self.pick_lasting(workers, affinity, fence, until_ms);
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

    /// The same where some idle workers stand in the tree.
    #[cold]
    fn pick_lasting(&self, workers: &[Worker], affinity: u64, fence: Fence, until_ms: Millis) -> Option<u32> {
        if let Some(at) = self.warmest(workers, affinity, |at, _| self.expiries.outlives(at, until_ms)) {
            return Some(at);
        }
        let ending = |from| self.expiries.find(self.expiring, from, until_ms, &mut |_| true);
        let listed = |at: u32| Some(at).filter(|&at| at != NIL);
        let idle_seq = |at: &u32| workers[*at as usize].idle_seq;
        match self.policy {
            PlacementPolicy::Fifo => {
                listed(self.tail).into_iter().chain(ending(SearchDirection::Ascending)).min_by_key(idle_seq)
            }
            PlacementPolicy::Random => {
                let lasting = self.expiries.count_outliving(self.expiring, until_ms);
                let all = (self.unordered.len() + lasting) as u64;
                let nth = splitmix64(fence).checked_rem(all)? as usize;
                self.unordered
                    .get(nth)
                    .copied()
                    .or_else(|| self.expiries.nth_last(self.expiring, nth - self.unordered.len()))
            }
            _ => listed(self.head).into_iter().chain(ending(SearchDirection::Descending)).max_by_key(idle_seq),
        }
    }

    /// The worker that a claim with these wants takes which needs it until `until_ms`; the wants may name no worker. Takes
    /// nothing. The first such claim costs a walk over the idle workers.
    #[cold]
    pub fn select(
        &mut self,
        workers: &[Worker],
        wants: &PlacementConstraints,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
    ) -> Option<u32> {
        let may = |at, worker: &Worker| self.expiries.outlives(at, until_ms) && wants.fits(&worker.registration().spec);
        let warm = self.warmest(workers, affinity, may);
        warm.or_else(|| self.shapes(workers).pick(workers, wants, fence, until_ms))
    }

    /// Whether an idle worker that lives beyond `until_ms` would fit if it were on another node.
    pub fn fits_ignoring_node(&mut self, workers: &[Worker], wants: &PlacementConstraints, until_ms: Millis) -> bool {
        self.shapes(workers).fits_ignoring_node(workers, wants, until_ms)
    }

    fn shapes(&mut self, workers: &[Worker]) -> &IdleClasses {
        if self.shapes.is_none() {
            let mut shapes = IdleClasses::new(self.policy);
            for at in self.oldest_first(workers) {
                shapes.push(workers, at, self.expiries.ends_ms(at));
            }
            self.shapes = Some(Box::new(shapes));
        }
        self.shapes.as_ref().expect("made just now")
    }

    /// The registration of a worker has changed. If it is idle, it keeps its place.
    pub fn reindex(&mut self, workers: &[Worker], at: u32) {
        if let Some(shapes) = &mut self.shapes {
            shapes.reindex(workers, at, self.expiries.ends_ms(at));
        }
    }

    /// The registration of a worker that is not idle has ended.
    pub fn forget(&mut self, at: u32) {
        self.expiries.set_ends_ms(at, NEVER);
        if let Some(shapes) = &mut self.shapes {
            shapes.forget(at);
        }
    }

    /// Nodes of trees that searches for workers that live for long enough have looked at so far.
    pub fn steps(&self) -> u64 {
        self.expiries.steps() + self.shapes.as_ref().map_or(0, |shapes| shapes.steps())
    }

    /// Whether the tree is in order, and the shapes hold what the queue holds.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, workers: &[Worker]) -> Result<(), String> {
        self.expiries.check(self.expiring)?;
        self.shapes.as_ref().map_or(Ok(()), |shapes| shapes.check(workers, &self.expiries))
    }

    /// A worker is idle no more: it was taken, or may not be offered.
    pub fn remove(&mut self, workers: &mut [Worker], at: u32) {
        let worker = &mut workers[at as usize];
        debug_assert!(worker.idle, "only an idle worker leaves the queue");
        worker.idle = false;
        self.len -= 1;
        self.leave_order(workers, at);
        self.warm_remove(workers, at);
        if let Some(shapes) = &mut self.shapes {
            shapes.remove(at);
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
            self.unordered.swap_remove(prev as usize);
            if let Some(&moved) = self.unordered.get(prev as usize) {
                workers[moved as usize].idle_prev = prev;
            }
        } else {
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
        for at in self.oldest_first(workers) {
            self.warm_push(workers, at);
        }
    }

    /// All idle workers, oldest first (in no order with policy `random`).
    pub fn oldest_first(&self, workers: &[Worker]) -> Vec<u32> {
        self.oldest(workers, self.len)
    }

    /// The idle workers that became idle first, at most so many (with policy `random` any, in no order).
    pub fn oldest(&self, workers: &[Worker], limit: usize) -> Vec<u32> {
        let next = |&at: &u32| Some(workers[at as usize].idle_prev).filter(|&at| at != NIL);
        let listed = std::iter::successors(Some(self.tail).filter(|&at| at != NIL), next);
        // Of list and vector one is empty.
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

    /// Head of the bucket of this affinity, whatever it is.
    pub fn warm_head(&self, affinity: u64) -> u32 {
        self.warm_buckets[self.bucket(affinity)]
    }

    fn bucket(&self, affinity: u64) -> usize {
        affinity as usize & (self.warm_buckets.len() - 1)
    }

    fn warmest(&self, workers: &[Worker], affinity: u64, may: impl Fn(u32, &Worker) -> bool) -> Option<u32> {
        let next = |&at: &u32| Some(workers[at as usize].warm_next).filter(|&at| at != NIL);
        std::iter::successors(Some(self.warm_buckets[self.bucket(affinity)]).filter(|&at| at != NIL), next)
            .take(WARM_SCAN_MAX)
            .find(|&at| workers[at as usize].affinity == affinity && may(at, &workers[at as usize]))
    }

    fn warm_push(&mut self, workers: &mut [Worker], at: u32) {
        let affinity = workers[at as usize].affinity;
        if affinity == 0 {
            return;
        }
        let bucket = self.bucket(affinity);
        let next = std::mem::replace(&mut self.warm_buckets[bucket], at);
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
        match prev {
            NIL => self.warm_buckets[bucket] = next,
            prev => workers[prev as usize].warm_next = next,
        }
        if next != NIL {
            workers[next as usize].warm_prev = prev;
        }
    }
}

/// Key of a worker in a tree of idle ones: with policy `random` its end, so that those that live for long enough are counted
/// without a look at each; else the number by which it became idle.
pub(in crate::engine) const fn order_key(policy: PlacementPolicy, idle_seq: Seq, ends_ms: Millis) -> u64 {
    if matches!(policy, PlacementPolicy::Random) { ends_ms } else { idle_seq }
}

/// Spreads a fence over 64 bits (the finaliser of SplitMix64, Steele et al., OOPSLA 2014).
pub(in crate::engine) const fn splitmix64(fence: Fence) -> u64 {
    let mut x = fence.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
