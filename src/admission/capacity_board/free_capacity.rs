//! What the shards of a shared pool say that they have left.
//!
//! Two kinds of numbers, each apart for workers without cards and with: the most that any one worker has, which proves
//! that a claim does not fit (never below the truth, as [`super`] asks); and the sum, by which a batch is portioned so that
//! each shard is asked once.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use smallvec::SmallVec;

use super::nth_bit;
use crate::engine::placement::bin_packing::{GPU_MILLI, MaxFree, ResourceTotals, cores_per_gpu};
use crate::engine::{GpuFilter, PlacementConstraints};
use crate::model::ResourceRequirements;

#[derive(Debug, Default)]
struct PublishedFree {
    cpu_milli: AtomicU64,
    memory_bytes: AtomicU64,
    slots: AtomicU64,
    gpu_milli: AtomicU16,
    idle_gpus: AtomicU16,
    sum_cpu_milli: AtomicU64,
    sum_memory_bytes: AtomicU64,
    sum_slots: AtomicU64,
    sum_gpu_milli: AtomicU64,
}

/// Shards that a claim draws before it looks at each.
const SAMPLES_MAX: usize = 8;
/// The golden ratio, as a multiplier that spreads bits.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which of two shards with room is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardPreference {
    /// The one with more cores left for each card ([`cores_per_card`]).
    CoresPerGpu,
    /// The one with more of everything.
    MostFree,
}

/// What all shards of a pool say.
#[derive(Debug)]
pub struct FreeCapacity(Box<[CachePadded<[PublishedFree; 2]>]>);

impl FreeCapacity {
    /// Of `shards` shards, without workers.
    pub fn new(shards: u16) -> Self {
        Self(std::iter::repeat_with(CachePadded::default).take(shards.into()).collect())
    }

    /// Shard `shard` says what it has, before its answers leave.
    pub fn publish(&self, shard: u16, rooms: &[(ResourceTotals, MaxFree); 2]) {
        let put = |to: &AtomicU64, amount: u64| to.store(amount, Ordering::Relaxed);
        let sum = |to: &AtomicU64, amount: u128| put(to, u64::try_from(amount).unwrap_or(u64::MAX));
        for (part, (all, most)) in self.0[shard as usize].iter().zip(rooms) {
            put(&part.cpu_milli, most.cpu_milli);
            put(&part.memory_bytes, most.memory_bytes);
            put(&part.slots, most.slots);
            part.gpu_milli.store(most.gpu_milli, Ordering::Relaxed);
            part.idle_gpus.store(most.idle_gpus, Ordering::Relaxed);
            sum(&part.sum_cpu_milli, all.cpu_milli);
            sum(&part.sum_memory_bytes, all.memory_bytes);
            sum(&part.sum_slots, all.slots);
            sum(&part.sum_gpu_milli, all.gpu_milli);
        }
    }

    /// The parts whose workers may take the claim.
    fn parts(&self, shard: u16, wants: &PlacementConstraints) -> &[PublishedFree] {
        let parts = &self.0[shard as usize];
        let gpu = wants.spec.as_ref().is_some_and(|spec| spec.resources.gpu.is_some());
        match (gpu, &wants.gpus) {
            (true, _) | (_, GpuFilter::Model(_)) => &parts[1..],
            (false, GpuFilter::NoGpus) => &parts[..1],
            (false, GpuFilter::Any) => &parts[..],
        }
    }

    /// False only if no worker of the shard has room for the claim.
    pub fn may_fit(&self, shard: u16, wants: &PlacementConstraints) -> bool {
        let Some(spec) = &wants.spec else { return true };
        self.parts(shard, wants).iter().any(|part| part.may_fit(&spec.resources))
    }

    fn cores_per_gpu(&self, shard: u16, wants: &PlacementConstraints) -> f64 {
        let get = |amount: &AtomicU64| amount.load(Ordering::Relaxed);
        let cores =
            self.parts(shard, wants).iter().fold(0_u64, |sum, part| sum.saturating_add(get(&part.sum_cpu_milli)));
        cores_per_gpu(cores, get(&self.0[shard as usize][1].sum_gpu_milli))
    }

    /// What these shards have left in all: cores, memory, places, thousandths of cards.
    #[must_use]
    pub fn total(&self, shards: impl Iterator<Item = u16>) -> [u64; 4] {
        shards.fold([0; 4], |sum, shard| {
            let BatchBudget(parts) = self.budget(shard);
            std::array::from_fn(|i| parts.iter().fold(sum[i], |sum: u64, part| sum.saturating_add(part[i])))
        })
    }

    /// What the shard can be asked for in one batch.
    pub fn budget(&self, shard: u16) -> BatchBudget {
        BatchBudget(std::array::from_fn(|i| {
            let part = &self.0[shard as usize][i];
            let get = |amount: &AtomicU64| amount.load(Ordering::Relaxed);
            let [cpu, memory] = [get(&part.sum_cpu_milli), get(&part.sum_memory_bytes)];
            [cpu, memory, get(&part.sum_slots), get(&part.sum_gpu_milli)]
        }))
    }

    /// Which of the shards in `open`, a set of bits, is asked next: of two that may have room and that `portion` has something
    /// left for, the preferred one. None only if no shard of `open` may have room and something left.
    ///
    /// Shards are drawn by `salt`, a few at most, so in a pool with room in many shards a claim looks at few. Only if none of
    /// those drawn will do is each looked at.
    pub fn pick(
        &self,
        open: &[u64],
        wants: &PlacementConstraints,
        salt: u64,
        preference: ShardPreference,
        portion: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let fits = |&shard: &u16| self.may_fit(shard, wants) && portion(shard);
        let count: u32 = open.iter().map(|bits| bits.count_ones()).sum();
        let hashes = std::iter::successors(Some(salt), |hash| Some(hash.rotate_left(32).wrapping_mul(GOLDEN_RATIO)));
        let drawn =
            hashes.take(SAMPLES_MAX).filter_map(|hash| nth_shard(open, reduce_hash(hash, count as usize) as u32));
        let mut fitting = drawn.filter(fits);
        if let Some(one) = fitting.next() {
            return Some(fitting.next().map_or(one, |two| self.prefer(one, two, wants, preference)));
        }
        let shards: SmallVec<[u16; 64]> = all_shards(open).filter(fits).collect();
        let one = *shards.get(reduce_hash(salt, shards.len()))?;
        let two = shards[reduce_hash(salt.rotate_left(32).wrapping_mul(GOLDEN_RATIO), shards.len())];
        Some(self.prefer(one, two, wants, preference))
    }

    fn prefer(&self, one: u16, two: u16, wants: &PlacementConstraints, preference: ShardPreference) -> u16 {
        let more = match preference {
            ShardPreference::MostFree => self.budget(two).weight() > self.budget(one).weight(),
            ShardPreference::CoresPerGpu => self.cores_per_gpu(two, wants) > self.cores_per_gpu(one, wants),
        };
        if more { two } else { one }
    }
}

/// Position of a hash in `0..count` (Lemire's multiply-shift).
fn reduce_hash(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

/// The `n`-th shard of a set of bits, from 0.
fn nth_shard(open: &[u64], mut n: u32) -> Option<u16> {
    for (word, &bits) in open.iter().enumerate() {
        let ones = bits.count_ones();
        if n < ones {
            return Some((word * 64) as u16 + nth_bit(bits, n));
        }
        n -= ones;
    }
    None
}

fn all_shards(open: &[u64]) -> impl Iterator<Item = u16> {
    open.iter().enumerate().flat_map(|(word, &bits)| {
        let rest = std::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)));
        rest.take_while(|&bits| bits != 0).map(move |bits| (word * 64) as u16 + bits.trailing_zeros() as u16)
    })
}

impl PublishedFree {
    fn may_fit(&self, asked: &ResourceRequirements) -> bool {
        let has = |most: &AtomicU64, amount: u64| most.load(Ordering::Relaxed) >= amount;
        let cards = asked.gpu.as_ref().is_none_or(|gpu| match gpu.milli as u16 {
            GPU_MILLI => u32::from(self.idle_gpus.load(Ordering::Relaxed)) >= gpu.count,
            share => self.gpu_milli.load(Ordering::Relaxed) >= share,
        });
        cards
            && has(&self.cpu_milli, asked.cpu_milli)
            && has(&self.memory_bytes, asked.memory_bytes)
            && has(&self.slots, asked.slots)
    }
}

/// What is left of a shard while a batch is portioned: cores, memory, places, cards; in the two parts.
#[derive(Debug, Clone, Copy)]
pub struct BatchBudget([[u64; 4]; 2]);

impl BatchBudget {
    /// Takes what the claim asks for out of the part that it would come from. False: there is not enough.
    pub fn try_take(&mut self, wants: &PlacementConstraints) -> bool {
        let Some(spec) = &wants.spec else { return true };
        let asked = &spec.resources;
        let cards = asked.gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * u64::from(gpu.milli));
        let amounts = [asked.cpu_milli, asked.memory_bytes, asked.slots, cards];
        let parts = match (&asked.gpu, &wants.gpus) {
            (Some(_), _) | (_, GpuFilter::Model(_)) => &mut self.0[1..],
            (None, GpuFilter::NoGpus) => &mut self.0[..1],
            (None, GpuFilter::Any) => &mut self.0[..],
        };
        let enough = |part: &&mut [u64; 4]| part.iter().zip(amounts).all(|(left, amount)| *left >= amount);
        let Some(part) = parts.iter_mut().find(enough) else { return false };
        part.iter_mut().zip(amounts).for_each(|(left, amount)| *left -= amount);
        true
    }

    /// How much it is in one number, as [`crate::engine::placement::bin_packing::Room::weight`] counts.
    fn weight(&self) -> u128 {
        let of = |[cpu, memory, slots, cards]: [u64; 4]| {
            u128::from(cpu) + u128::from(memory >> 22) + u128::from(slots) * 1_000 + u128::from(cards) * 16
        };
        self.0.into_iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use super::*;
    use crate::admission::capacity_board::CapacityBoard;
    use crate::model::{ClaimSpec, PoolMode};
    use crate::shard::ShardSet;
    use proptest::prelude::*;

    fn wants(cpu_milli: u64) -> PlacementConstraints {
        let resources = ResourceRequirements { cpu_milli, ..ResourceRequirements::default() };
        PlacementConstraints {
            spec: Some(Arc::new(ClaimSpec { resources, ..ClaimSpec::default() })),
            ..PlacementConstraints::default()
        }
    }

    /// Shards with as much left as is said, the most of one worker; none: they offer no worker.
    fn board(left: &[Option<u64>]) -> CapacityBoard {
        let board = CapacityBoard::new(left.len() as u16, PoolMode::Shared);
        for (shard, cpu_milli) in (0..).zip(left) {
            let (workers, cpu_milli) = (u64::from(cpu_milli.is_some()), cpu_milli.unwrap_or(0));
            let sum = ResourceTotals { workers, cpu_milli: cpu_milli.into(), ..ResourceTotals::default() };
            let most = MaxFree { cpu_milli, ..MaxFree::default() };
            board.publish_free(shard, &[(sum, most), (ResourceTotals::default(), MaxFree::default())]);
        }
        board
    }

    fn preference() -> impl Strategy<Value = ShardPreference> {
        prop_oneof![Just(ShardPreference::CoresPerGpu), Just(ShardPreference::MostFree)]
    }

    proptest! {
        /// N1: asking until there is nothing left reaches every shard that may have room, once, and no other; whether nearly
        /// all have or one of many does.
        #[test]
        fn n1_every_shard_that_may_have_room_is_asked_once(
            shards in (0..=10_u32).prop_map(|log| 1_usize << log),
            fits_of_64 in prop_oneof![Just(0_u64), 1..4_u64, 20..60_u64, Just(64)],
            seed: u64,
            preference in preference(),
        ) {
            let mut hash = seed;
            let left: Vec<Option<u64>> = (0..shards).map(|_| {
                hash = hash.wrapping_add(GOLDEN_RATIO).rotate_left(29).wrapping_mul(GOLDEN_RATIO);
                let fits = hash >> 58 < fits_of_64;
                if fits { Some(2_000) } else { [None, Some(0), Some(1_999)][(hash % 3) as usize] }
            }).collect();
            let board = board(&left);
            let wants = wants(2_000);
            let expected: Vec<u16> = (0..).zip(&left).filter(|(_, left)| **left == Some(2_000)).map(|(at, _)| at).collect();
            let (mut visited, mut asked) = (ShardSet::default(), Vec::new());
            let mut salt = seed;
            while let Some(shard) = board.pick_with_capacity(&visited, &wants, salt, preference, |_| true) {
                prop_assert!(!asked.contains(&shard));
                visited.insert(shard);
                asked.push(shard);
                salt = salt.rotate_left(7);
            }
            asked.sort_unstable();
            prop_assert_eq!(asked, expected);
        }
    }

    /// N1: with room in all shards a claim looks at as few of 1,024 as of 16, and takes them all in turn.
    #[test]
    fn n1_a_claim_looks_at_few_shards_while_there_is_room() {
        for shards in [16, 256, 1_024] {
            let board = board(&vec![Some(2_000); shards]);
            let (wants, mut chosen) = (wants(1_000), std::collections::BTreeSet::new());
            for n in 1..20_000_u64 {
                let looked_at = Cell::new(0);
                let portion = |_| {
                    looked_at.set(looked_at.get() + 1);
                    true
                };
                let salt = n.wrapping_mul(GOLDEN_RATIO);
                let preference = ShardPreference::MostFree;
                let shard = board.pick_with_capacity(&ShardSet::default(), &wants, salt, preference, portion);
                chosen.insert(shard.expect("there is room"));
                assert!(looked_at.get() <= SAMPLES_MAX, "{} of {shards} shards", looked_at.get());
            }
            assert_eq!(chosen.len(), shards);
        }
    }
}
