//! Capacity bounds that shards publish: they decide which shard to try next, and when "no" is final.
//!
//! Each shard publishes a bit that says whether it has idle workers, and its numbers of idle and busy workers. The
//! bound is never below the truth that anyone can observe: it is raised before any effect of a release becomes
//! visible, and lowered only by the shard itself. So a shard may be skipped only while its bit is clear, and a claim
//! is rejected only when every shard has said no or had a clear bit at some moment of the call. If a worker stays free
//! throughout the call, the bit of its shard is set throughout, so the claim reaches it (invariant `N1`).
//!
//! The shard on which the claim's affinity was last seen comes first. After that, of two random shards with idle
//! workers, the one with fewer busy workers (the power of two choices keeps the fullest bin at `log log n`:
//! Mitzenmacher, 2001).

mod affinity_hints;
mod capacities;
mod free_capacity;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use smallvec::SmallVec;

use crate::engine::placement::bin_packing::ResourceTotals;

use self::affinity_hints::AffinityHints;
pub use self::capacities::WorkerCapacities;
pub use self::free_capacity::{BatchBudget, FreeCapacity, ShardPreference};
use crate::engine::PlacementConstraints;
use crate::model::{PoolMode, ResourceAmounts, ResourceUsage, ResourceVector};
use crate::shard::ShardSet;

#[derive(Debug, Default)]
struct ShardUsage {
    idle: AtomicU32,
    busy: AtomicU32,
}

/// Bounds and figures that the shards of a pool publish.
#[derive(Debug)]
pub struct CapacityBoard {
    /// Bit per shard: set if the shard has idle workers or, in a shared pool, schedulable ones.
    idle: Box<[CachePadded<AtomicU64>]>,
    /// Free resources by shard, in a shared pool.
    free: Option<FreeCapacity>,
    loads: Box<[CachePadded<ShardUsage>]>,
    affinity_hints: AffinityHints,
    /// Lowest priority of an evictable claim plus one, by shard; 0 if there is none.
    lowest_evictable: Box<[AtomicU32]>,
    /// Total resources of the workers by shard: their number, then the amounts.
    totals: Box<[[AtomicU64; 5]]>,
    /// Distinct capacities of the workers, busy ones included.
    capacities: WorkerCapacities,
}

impl CapacityBoard {
    /// Creates the board of `shards` empty shards.
    #[must_use]
    pub fn new(shards: u16, mode: PoolMode) -> Self {
        let words = usize::from(shards).div_ceil(64);
        Self {
            idle: std::iter::repeat_with(CachePadded::default).take(words).collect(),
            free: (mode == PoolMode::Shared).then(|| FreeCapacity::new(shards)),
            loads: std::iter::repeat_with(CachePadded::default).take(shards.into()).collect(),
            affinity_hints: AffinityHints::default(),
            lowest_evictable: std::iter::repeat_with(AtomicU32::default).take(shards.into()).collect(),
            totals: std::iter::repeat_with(Default::default).take(shards.into()).collect(),
            capacities: WorkerCapacities::new(shards),
        }
    }

    /// Publishes the numbers of idle and busy workers of a shard. Called only by that shard, before its replies leave.
    pub fn publish(&self, shard: u16, idle: usize, busy: usize) {
        let load = &self.loads[shard as usize];
        load.busy.store(busy as u32, Ordering::Relaxed);
        let before = load.idle.swap(idle as u32, Ordering::Relaxed);
        if self.free.is_none() && (before == 0) != (idle == 0) {
            self.set_open(shard, idle > 0);
        }
    }

    /// Publishes the free resources of a shard in a shared pool, in addition to [`Self::publish`].
    pub fn publish_free(&self, shard: u16, free: &[(ResourceTotals, ResourceAmounts); 2]) {
        if let Some(capacity) = &self.free {
            capacity.publish(shard, free);
            let open = free.iter().any(|(sum, _)| sum.workers > 0);
            if open != self.is_open(shard) {
                self.set_open(shard, open);
            }
        }
    }

    fn set_open(&self, shard: u16, open: bool) {
        let (word, bit) = (&self.idle[shard as usize / 64], 1 << (shard % 64));
        if open {
            word.fetch_or(bit, Ordering::AcqRel);
        } else {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    fn is_open(&self, shard: u16) -> bool {
        self.idle[shard as usize / 64].load(Ordering::Acquire) & (1 << (shard % 64)) != 0
    }

    /// Free resources by shard, if the pool is shared.
    #[must_use]
    pub const fn free(&self) -> Option<&FreeCapacity> {
        self.free.as_ref()
    }

    /// Picks the next shard to ask in a shared pool, among unvisited ones with schedulable workers
    /// ([`FreeCapacity::pick`]).
    pub fn pick_with_capacity(
        &self,
        visited: &ShardSet,
        constraints: &PlacementConstraints,
        tie_break: u64,
        preference: ShardPreference,
        has_budget: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let open = |(word, bits): (usize, &CachePadded<AtomicU64>)| bits.load(Ordering::Acquire) & !visited.bits(word);
        let open: SmallVec<[u64; 16]> = self.idle.iter().enumerate().map(open).collect();
        self.free.as_ref()?.pick(&open, constraints, tie_break, preference, has_budget)
    }

    /// Shards that have schedulable workers.
    pub fn open_shards(&self) -> impl Iterator<Item = u16> {
        (0..self.loads.len() as u16).filter(|&shard| self.is_open(shard))
    }

    /// Capacities of the pool's workers, busy ones included.
    #[must_use]
    pub const fn capacities(&self) -> &WorkerCapacities {
        &self.capacities
    }

    /// Publishes the lowest priority of a claim that may be evicted on a shard.
    pub fn publish_lowest_evictable(&self, shard: u16, lowest: Option<u16>) {
        self.lowest_evictable[shard as usize]
            .store(lowest.map_or(0, |priority| u32::from(priority) + 1), Ordering::Relaxed);
    }

    /// Shards with an evictable priority below this one.
    pub fn shards_to_evict(&self, below: u16) -> impl Iterator<Item = u16> {
        let lowest = |shard: u16| self.lowest_evictable[shard as usize].load(Ordering::Relaxed);
        (0..self.lowest_evictable.len() as u16).filter(move |shard| (1..=u32::from(below)).contains(&lowest(*shard)))
    }

    /// Unvisited shard with the lowest evictable priority below this one, if any.
    #[must_use]
    pub fn shard_to_evict(&self, below: u16, visited: &ShardSet) -> Option<u16> {
        let lowest = |shard: &u16| self.lowest_evictable[*shard as usize].load(Ordering::Relaxed);
        let all = 0..self.lowest_evictable.len() as u16;
        let lower = all.filter(|shard| (1..=u32::from(below)).contains(&lowest(shard)) && !visited.contains(*shard));
        lower.min_by_key(lowest)
    }

    /// Publishes the number of a shard's workers, and their total resources.
    pub fn publish_total(&self, shard: u16, workers: u64, amounts: ResourceVector) {
        let amounts = std::iter::once(workers).chain(amounts.to_array());
        for (cell, amount) in self.totals[shard as usize].iter().zip(amounts) {
            cell.store(amount, Ordering::Relaxed);
        }
    }

    /// Total resources of the pool's workers; one claim per worker.
    #[must_use]
    pub fn total(&self) -> ResourceUsage {
        let ResourceVector { cpu_milli, memory_bytes, gpu_milli, .. } = self.total_amounts();
        ResourceUsage { claims: self.sum_of_totals(0), cpu_milli, memory_bytes, gpu_milli }
    }

    /// Total resources of the pool's workers, slots included.
    #[must_use]
    pub fn total_amounts(&self) -> ResourceVector {
        let [cpu_milli, memory_bytes, slots, gpu_milli] = [1, 2, 3, 4].map(|amount| self.sum_of_totals(amount));
        ResourceVector { cpu_milli, memory_bytes, slots, gpu_milli }
    }

    fn sum_of_totals(&self, column: usize) -> u64 {
        let each = self.totals.iter().map(|shard| shard[column].load(Ordering::Relaxed));
        each.fold(0, u64::saturating_add)
    }

    /// Idle workers as published by `shard`.
    #[must_use]
    pub fn idle(&self, shard: u16) -> u32 {
        self.loads[shard as usize].idle.load(Ordering::Relaxed)
    }

    /// Held claims as published by `shard`.
    #[must_use]
    pub fn busy(&self, shard: u16) -> u32 {
        self.loads[shard as usize].busy.load(Ordering::Relaxed)
    }

    /// Records that the affinity was last seen on `shard`.
    pub fn record_affinity(&self, affinity: u64, shard: u16) {
        if self.loads.len() > 1 {
            self.affinity_hints.remember(affinity, shard);
        }
    }

    /// Shard to ask next; `None` once every shard with idle workers was asked.
    #[must_use]
    pub fn pick(&self, visited: &ShardSet, affinity: u64, tie_break: u64) -> Option<u16> {
        let open = |word: usize| self.idle[word].load(Ordering::Acquire) & !visited.bits(word);
        if self.loads.len() == 1 {
            return (open(0) != 0).then_some(0);
        }
        if let Some(shard) = self.last_seen(affinity)
            && open(shard as usize / 64) & (1 << (shard % 64)) != 0
        {
            return Some(shard);
        }
        let count: u32 = (0..self.idle.len()).map(|word| open(word).count_ones()).sum();
        if count == 0 {
            return None;
        }
        // Bits may clear between counting and picking. Then the pick takes the last set bit, if any.
        let nth = |mut n: u32| {
            let mut last = None;
            for word in 0..self.idle.len() {
                let bits = open(word);
                let ones = bits.count_ones();
                if n < ones {
                    return Some((word * 64) as u16 + nth_bit(bits, n));
                }
                n -= ones;
                if bits != 0 {
                    last = Some((word * 64) as u16 + (63 - bits.leading_zeros()) as u16);
                }
            }
            last
        };
        // Lemire's multiply-shift maps a hash to 0..count.
        let spread = |hash: u64| ((u128::from(hash) * u128::from(count)) >> 64) as u32;
        let (one, two) =
            (nth(spread(tie_break))?, nth(spread(tie_break.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)))?);
        let busy = |shard: u16| self.loads[shard as usize].busy.load(Ordering::Relaxed);
        Some(if busy(two) < busy(one) { two } else { one })
    }

    fn last_seen(&self, affinity: u64) -> Option<u16> {
        self.affinity_hints.last_seen(affinity).filter(|&shard| usize::from(shard) < self.loads.len())
    }
}

/// Position of the `n`-th set bit, counted from 0; more than `n` bits must be set.
const fn nth_bit(mut bits: u64, n: u32) -> u16 {
    let mut skip = n;
    while skip > 0 {
        bits &= bits - 1;
        skip -= 1;
    }
    bits.trailing_zeros() as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn totals_saturate_instead_of_overflowing() {
        let board = CapacityBoard::new(2, PoolMode::Shared);
        let most = ResourceVector { cpu_milli: u64::MAX, ..ResourceVector::default() };
        (0..2).for_each(|shard| board.publish_total(shard, 1, most));
        assert_eq!(board.total().cpu_milli, u64::MAX);
    }

    proptest! {
        /// N1: repeated picks reach every shard with idle workers exactly once, and no other.
        #[test]
        fn n1_every_shard_with_idle_workers_is_asked_once(
            shards in (0..=10u32).prop_map(|log| 1u16 << log),
            seed: u64,
            affinity: u64,
            hinted: u16,
        ) {
            let board = CapacityBoard::new(shards, PoolMode::Exclusive);
            let mut expected = Vec::new();
            let mut state = seed;
            for shard in 0..shards {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let idle = (state >> 61) as usize;
                board.publish(shard, idle, (state >> 40) as usize % 100);
                if idle > 0 {
                    expected.push(shard);
                }
            }
            board.record_affinity(affinity, hinted % shards);
            let (mut visited, mut asked) = (ShardSet::default(), Vec::new());
            while let Some(shard) = board.pick(&visited, affinity, seed ^ asked.len() as u64) {
                prop_assert!(!asked.contains(&shard));
                visited.insert(shard);
                asked.push(shard);
            }
            if expected.contains(&(hinted % shards)) {
                prop_assert_eq!(asked[0], hinted % shards, "affinity goes first");
            }
            prop_assert_eq!(visited.len() as usize, expected.len());
            asked.sort_unstable();
            prop_assert_eq!(asked, expected);
        }
    }
}
