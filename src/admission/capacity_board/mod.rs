//! Where to try next, and when "no" is final.
//!
//! Each shard publishes a bound: whether it has idle workers (a bit) and how many are idle and held (two numbers).
//! The bound is never below the truth that anyone can know of: it is raised before any effect of a release is seen,
//! and lowered only by the shard itself. So a shard may be skipped only while its bit is clear, and a claim is
//! refused only when every shard has said no or had a clear bit at some moment of the call. If a worker stays free
//! through the whole call, its shard's bit is set all the time, so the claim gets there (invariant `N1`).
//!
//! First comes the shard where the claim's affinity was last seen, then, of two shards picked at random that have
//! idle workers, the one with fewer held (two choices keep the fullest bin at `log log n`: Mitzenmacher, 2001).

mod affinity_hints;
mod capacities;
mod free_capacity;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use smallvec::SmallVec;

use crate::engine::placement::bin_packing::{MaxFree, ResourceTotals};

use self::affinity_hints::AffinityHints;
pub use self::capacities::WorkerCapacities;
pub use self::free_capacity::{BatchBudget, FreeCapacity, ShardPreference};
use crate::engine::PlacementConstraints;
use crate::model::{PoolMode, ResourceUsage};
use crate::shard::ShardSet;

#[derive(Debug, Default)]
struct ShardUsage {
    idle: AtomicU32,
    busy: AtomicU32,
}

/// What a pool's shards publish.
#[derive(Debug)]
pub struct CapacityBoard {
    /// One bit a shard: it has idle workers; in a shared pool, workers that are offered.
    idle: Box<[CachePadded<AtomicU64>]>,
    /// In a shared pool: what they have left.
    free: Option<FreeCapacity>,
    loads: Box<[CachePadded<ShardUsage>]>,
    affinity_hints: AffinityHints,
    /// By shard: one more than the lowest priority of a claim that may be evicted; 0: there is none.
    lowest_evictable: Box<[AtomicU32]>,
    /// By shard: what its workers have in all: how many there are, cores, memory, thousandths of cards.
    totals: Box<[[AtomicU64; 4]]>,
    /// The distinct capacities of workers, busy ones too.
    capacities: WorkerCapacities,
}

impl CapacityBoard {
    /// Of `shards` shards, all empty.
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

    /// Shard `shard` says what it has: workers that are idle and that are held. Called by that shard alone, before its
    /// answers leave.
    pub fn publish(&self, shard: u16, idle: usize, held: usize) {
        let load = &self.loads[shard as usize];
        load.busy.store(held as u32, Ordering::Relaxed);
        let before = load.idle.swap(idle as u32, Ordering::Relaxed);
        if self.free.is_none() && (before == 0) != (idle == 0) {
            self.set_open(shard, idle > 0);
        }
    }

    /// In a shared pool, beside [`Self::publish`]: what it has left.
    pub fn publish_free(&self, shard: u16, left: &[(ResourceTotals, MaxFree); 2]) {
        if let Some(rooms) = &self.free {
            rooms.publish(shard, left);
            let open = left.iter().any(|(sum, _)| sum.workers > 0);
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

    /// What its shards have left, of a shared pool.
    #[must_use]
    pub const fn free(&self) -> Option<&FreeCapacity> {
        self.free.as_ref()
    }

    /// In a shared pool: the shard to ask next, of those with workers to offer that were not visited ([`Rooms::pick`]).
    pub fn pick_with_capacity(
        &self,
        visited: &ShardSet,
        wants: &PlacementConstraints,
        salt: u64,
        preference: ShardPreference,
        portion: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let open = |(word, bits): (usize, &CachePadded<AtomicU64>)| bits.load(Ordering::Acquire) & !visited.bits(word);
        let open: SmallVec<[u64; 16]> = self.idle.iter().enumerate().map(open).collect();
        self.free.as_ref()?.pick(&open, wants, salt, preference, portion)
    }

    /// The shards that have workers to offer.
    pub fn open_shards(&self) -> impl Iterator<Item = u16> {
        (0..self.loads.len() as u16).filter(|&shard| self.is_open(shard))
    }

    /// Capacities of the pool's workers, busy ones too.
    #[must_use]
    pub const fn capacities(&self) -> &WorkerCapacities {
        &self.capacities
    }

    /// Shard `shard` says what the lowest priority of a claim is that may be evicted there.
    pub fn publish_lowest_evictable(&self, shard: u16, lowest: Option<u16>) {
        self.lowest_evictable[shard as usize]
            .store(lowest.map_or(0, |priority| u32::from(priority) + 1), Ordering::Relaxed);
    }

    /// The shard not visited yet with the cheapest claim that has a lower priority than this; none: there is none.
    #[must_use]
    pub fn shard_to_evict(&self, below: u16, visited: &ShardSet) -> Option<u16> {
        let lowest = |shard: &u16| self.lowest_evictable[*shard as usize].load(Ordering::Relaxed);
        let all = 0..self.lowest_evictable.len() as u16;
        let lower = all.filter(|shard| (1..=u32::from(below)).contains(&lowest(shard)) && !visited.contains(*shard));
        lower.min_by_key(lowest)
    }

    /// Shard `shard` says what its workers have in all.
    pub fn publish_total(&self, shard: u16, total: &ResourceUsage) {
        for (cell, amount) in self.totals[shard as usize].iter().zip(total.to_array()) {
            cell.store(amount, Ordering::Relaxed);
        }
    }

    /// What the pool's workers have in all; as many claims as there are workers.
    #[must_use]
    pub fn total(&self) -> ResourceUsage {
        let each = |i: usize| self.totals.iter().map(move |shard| shard[i].load(Ordering::Relaxed));
        let sum = |i: usize| each(i).fold(0, u64::saturating_add);
        ResourceUsage { claims: sum(0), cpu_milli: sum(1), memory_bytes: sum(2), gpu_milli: sum(3) }
    }

    /// Idle workers that `shard` published.
    #[must_use]
    pub fn idle(&self, shard: u16) -> u32 {
        self.loads[shard as usize].idle.load(Ordering::Relaxed)
    }

    /// Held claims that `shard` published.
    #[must_use]
    pub fn busy(&self, shard: u16) -> u32 {
        self.loads[shard as usize].busy.load(Ordering::Relaxed)
    }

    /// The affinity was last seen on `shard`.
    pub fn record_affinity(&self, affinity: u64, shard: u16) {
        if self.loads.len() > 1 {
            self.affinity_hints.remember(affinity, shard);
        }
    }

    /// The shard to ask next; none: every shard that could have an idle worker was asked.
    #[must_use]
    pub fn pick(&self, visited: &ShardSet, affinity: u64, salt: u64) -> Option<u16> {
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
        // Bits may clear between the two looks; then the pick falls short and takes the last there is, or none.
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
        let (one, two) = (nth(spread(salt))?, nth(spread(salt.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)))?);
        let held = |shard: u16| self.loads[shard as usize].busy.load(Ordering::Relaxed);
        Some(if held(two) < held(one) { two } else { one })
    }

    fn last_seen(&self, affinity: u64) -> Option<u16> {
        self.affinity_hints.last_seen(affinity).filter(|&shard| usize::from(shard) < self.loads.len())
    }
}

/// Position of the `n`-th set bit, from 0; there are more than `n`.
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
    fn totals_that_no_number_holds_are_the_largest_number() {
        let board = CapacityBoard::new(2, PoolMode::Shared);
        let most = ResourceUsage { cpu_milli: u64::MAX, ..ResourceUsage::default() };
        (0..2).for_each(|shard| board.publish_total(shard, &most));
        assert_eq!(board.total().cpu_milli, u64::MAX);
    }

    proptest! {
        /// Asking until there is nothing left reaches every shard with idle workers, once, and no other.
        #[test]
        fn n1_every_shard_with_idle_workers_is_asked_once(
            shards in (0..=10u32).prop_map(|log| 1u16 << log),
            seed: u64,
            affinity: u64,
            remembered: u16,
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
            board.record_affinity(affinity, remembered % shards);
            let (mut visited, mut asked) = (ShardSet::default(), Vec::new());
            while let Some(shard) = board.pick(&visited, affinity, seed ^ asked.len() as u64) {
                prop_assert!(!asked.contains(&shard));
                visited.insert(shard);
                asked.push(shard);
            }
            if expected.contains(&(remembered % shards)) {
                prop_assert_eq!(asked[0], remembered % shards, "affinity goes first");
            }
            prop_assert_eq!(visited.len() as usize, expected.len());
            asked.sort_unstable();
            prop_assert_eq!(asked, expected);
        }
    }
}
