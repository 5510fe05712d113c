//! Free resources that the shards of a shared pool publish.
//!
//! Two kinds of figures, each separately for workers without and with GPUs. The maximum that any one worker has free
//! proves that a claim does not fit (never below the truth, as [`super`] requires). The sum divides a batch among
//! shards so that each shard is asked once.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use smallvec::SmallVec;

use super::nth_bit;
use crate::engine::placement::bin_packing::{GPU_MILLI, ResourceTotals, cores_per_gpu};
use crate::engine::{GpuFilter, PlacementConstraints};
use crate::model::{ResourceAmounts, ResourceRequirements, ResourceVector};

#[derive(Debug, Default)]
struct PublishedFree {
    cpu_milli: AtomicU64,
    memory_bytes: AtomicU64,
    slots: AtomicU64,
    gpu_milli: AtomicU16,
    idle_gpus: AtomicU16,
    sum: ResourceVector<AtomicU64>,
}

/// Shards that are drawn at random before all of them are scanned.
const SAMPLES_MAX: usize = 8;
/// Golden ratio, used as a multiplier that mixes bits.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// Preference between two shards with free resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardPreference {
    /// Shard with more free cores per GPU ([`cores_per_gpu`]).
    CoresPerGpu,
    /// Shard with more free resources overall.
    MostFree,
}

/// Free resources of a pool, by shard.
#[derive(Debug)]
pub struct FreeCapacity(Box<[CachePadded<[PublishedFree; 2]>]>);

impl FreeCapacity {
    /// Creates figures for `shards` shards without workers.
    pub fn new(shards: u16) -> Self {
        Self(std::iter::repeat_with(CachePadded::default).take(shards.into()).collect())
    }

    /// Publishes the free resources of a shard, before its replies leave.
    pub fn publish(&self, shard: u16, free: &[(ResourceTotals, ResourceAmounts); 2]) {
        let put = |to: &AtomicU64, amount: u64| to.store(amount, Ordering::Relaxed);
        for (part, (total, max)) in self.0[shard as usize].iter().zip(free) {
            put(&part.cpu_milli, max.cpu_milli);
            put(&part.memory_bytes, max.memory_bytes);
            put(&part.slots, max.slots);
            part.gpu_milli.store(u16::try_from(max.gpu_milli).unwrap_or(u16::MAX), Ordering::Relaxed);
            part.idle_gpus.store(u16::try_from(max.gpu).unwrap_or(u16::MAX), Ordering::Relaxed);
            part.sum.each_ref().zip_map(total.amounts.saturate(), put);
        }
    }

    /// Halves of the shard whose workers the claim may use.
    fn parts(&self, shard: u16, constraints: &PlacementConstraints) -> &[PublishedFree] {
        let parts = &self.0[shard as usize];
        let gpu = constraints.spec.as_ref().is_some_and(|spec| spec.resources.gpu.is_some());
        match (gpu, &constraints.gpus) {
            (true, _) | (_, GpuFilter::Model(_)) => &parts[1..],
            (false, GpuFilter::NoGpus) => &parts[..1],
            (false, GpuFilter::Any) => &parts[..],
        }
    }

    /// Returns false only if no worker of the shard has enough free resources for the claim.
    pub fn may_fit(&self, shard: u16, constraints: &PlacementConstraints) -> bool {
        let Some(spec) = &constraints.spec else { return true };
        self.parts(shard, constraints).iter().any(|part| part.may_fit(&spec.resources))
    }

    fn cores_per_gpu(&self, shard: u16, constraints: &PlacementConstraints) -> f64 {
        let get = |amount: &AtomicU64| amount.load(Ordering::Relaxed);
        let cores =
            self.parts(shard, constraints).iter().fold(0_u64, |sum, part| sum.saturating_add(get(&part.sum.cpu_milli)));
        cores_per_gpu(cores, get(&self.0[shard as usize][1].sum.gpu_milli))
    }

    /// Total free resources of these shards.
    #[must_use]
    pub fn total(&self, shards: impl Iterator<Item = u16>) -> ResourceVector {
        shards.flat_map(|shard| self.budget(shard).0).sum()
    }

    /// Free resources that one batch may request from the shard.
    pub fn budget(&self, shard: u16) -> BatchBudget {
        let load = |part: &PublishedFree| part.sum.each_ref().map(|amount| amount.load(Ordering::Relaxed));
        BatchBudget(self.0[shard as usize].each_ref().map(load))
    }

    /// Picks the shard to ask next from the bit set `open`: the preferred one of two that may fit the claim and that
    /// `has_budget` accepts. Returns `None` only if no shard of `open` qualifies.
    ///
    /// A few shards are drawn by `tie_break`, so a claim examines few shards while many have free capacity. Only if
    /// none of those qualifies are all of them scanned.
    pub fn pick(
        &self,
        open: &[u64],
        constraints: &PlacementConstraints,
        tie_break: u64,
        preference: ShardPreference,
        has_budget: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let fits = |&shard: &u16| self.may_fit(shard, constraints) && has_budget(shard);
        let count: u32 = open.iter().map(|bits| bits.count_ones()).sum();
        let hashes =
            std::iter::successors(Some(tie_break), |hash| Some(hash.rotate_left(32).wrapping_mul(GOLDEN_RATIO)));
        let drawn =
            hashes.take(SAMPLES_MAX).filter_map(|hash| nth_shard(open, reduce_hash(hash, count as usize) as u32));
        let mut fitting = drawn.filter(fits);
        if let Some(one) = fitting.next() {
            return Some(fitting.next().map_or(one, |two| self.prefer(one, two, constraints, preference)));
        }
        let shards: SmallVec<[u16; 64]> = all_shards(open).filter(fits).collect();
        let one = *shards.get(reduce_hash(tie_break, shards.len()))?;
        let two = shards[reduce_hash(tie_break.rotate_left(32).wrapping_mul(GOLDEN_RATIO), shards.len())];
        Some(self.prefer(one, two, constraints, preference))
    }

    fn prefer(&self, one: u16, two: u16, constraints: &PlacementConstraints, preference: ShardPreference) -> u16 {
        let more = match preference {
            ShardPreference::MostFree => self.budget(two).weight() > self.budget(one).weight(),
            ShardPreference::CoresPerGpu => self.cores_per_gpu(two, constraints) > self.cores_per_gpu(one, constraints),
        };
        if more { two } else { one }
    }
}

/// Position of a hash in `0..count` (Lemire's multiply-shift).
fn reduce_hash(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

/// The `n`-th shard of a bit set, counted from 0.
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
        let remaining = std::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)));
        remaining.take_while(|&bits| bits != 0).map(move |bits| (word * 64) as u16 + bits.trailing_zeros() as u16)
    })
}

impl PublishedFree {
    fn may_fit(&self, requested: &ResourceRequirements) -> bool {
        let has = |max: &AtomicU64, amount: u64| max.load(Ordering::Relaxed) >= amount;
        let gpus = requested.gpu.as_ref().is_none_or(|gpu| match gpu.milli as u16 {
            GPU_MILLI => u32::from(self.idle_gpus.load(Ordering::Relaxed)) >= gpu.count,
            share => self.gpu_milli.load(Ordering::Relaxed) >= share,
        });
        gpus && has(&self.cpu_milli, requested.cpu_milli)
            && has(&self.memory_bytes, requested.memory_bytes)
            && has(&self.slots, requested.slots)
    }
}

/// Remaining budget of a shard while a batch is divided: of workers without GPUs, and of those with.
#[derive(Debug, Clone, Copy)]
pub struct BatchBudget([ResourceVector; 2]);

impl BatchBudget {
    /// Takes the request of the claim from the half that would serve it. Returns false if the budget does not cover
    /// it.
    pub fn try_take(&mut self, constraints: &PlacementConstraints) -> bool {
        let Some(spec) = &constraints.spec else { return true };
        let requested = &spec.resources;
        let parts = match (&requested.gpu, &constraints.gpus) {
            (Some(_), _) | (_, GpuFilter::Model(_)) => &mut self.0[1..],
            (None, GpuFilter::NoGpus) => &mut self.0[..1],
            (None, GpuFilter::Any) => &mut self.0[..],
        };
        let amounts = ResourceVector::from(requested);
        parts.iter_mut().find_map(|part| part.checked_sub(amounts).map(|remaining| *part = remaining)).is_some()
    }

    /// Budget as one number ([`ResourceVector::weight`]).
    fn weight(&self) -> u128 {
        self.0.iter().map(|part| part.map(u128::from).weight()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use super::*;
    use crate::model::{ClaimSpec, PoolMode};
    use crate::shard::ShardSet;
    use crate::shard::capacity_board::CapacityBoard;
    use proptest::prelude::*;

    fn constraints(cpu_milli: u64) -> PlacementConstraints {
        let resources = ResourceRequirements { cpu_milli, ..ResourceRequirements::default() };
        PlacementConstraints {
            spec: Some(Arc::new(ClaimSpec { resources, ..ClaimSpec::default() })),
            ..PlacementConstraints::default()
        }
    }

    /// Builds a board with these free cores, the maximum of one worker by shard; `None` offers no worker.
    fn board(free: &[Option<u64>]) -> CapacityBoard {
        let board = CapacityBoard::new(free.len() as u16, PoolMode::Shared);
        for (shard, cpu_milli) in (0..).zip(free) {
            let (workers, cpu_milli) = (u64::from(cpu_milli.is_some()), cpu_milli.unwrap_or(0));
            let amounts = ResourceVector { cpu_milli: cpu_milli.into(), ..ResourceVector::default() };
            let sum = ResourceTotals { workers, amounts };
            let max = ResourceAmounts { cpu_milli, ..ResourceAmounts::default() };
            board.publish_free(shard, &[(sum, max), (ResourceTotals::default(), ResourceAmounts::default())]);
        }
        board
    }

    fn preference() -> impl Strategy<Value = ShardPreference> {
        prop_oneof![Just(ShardPreference::CoresPerGpu), Just(ShardPreference::MostFree)]
    }

    proptest! {
        /// N1: repeated picks reach every shard that may fit the claim exactly once, and no other shard, whether
        /// nearly all fit or one of many does.
        #[test]
        fn n1_every_shard_that_may_fit_is_asked_once(
            shards in (0..=10_u32).prop_map(|log| 1_usize << log),
            fits_of_64 in prop_oneof![Just(0_u64), 1..4_u64, 20..60_u64, Just(64)],
            seed: u64,
            preference in preference(),
        ) {
            let mut hash = seed;
            let free: Vec<Option<u64>> = (0..shards).map(|_| {
                hash = hash.wrapping_add(GOLDEN_RATIO).rotate_left(29).wrapping_mul(GOLDEN_RATIO);
                let fits = hash >> 58 < fits_of_64;
                if fits { Some(2_000) } else { [None, Some(0), Some(1_999)][(hash % 3) as usize] }
            }).collect();
            let board = board(&free);
            let constraints = constraints(2_000);
            let expected: Vec<u16> = (0..).zip(&free).filter(|(_, free)| **free == Some(2_000)).map(|(at, _)| at).collect();
            let (mut visited, mut requested) = (ShardSet::default(), Vec::new());
            let mut tie_break = seed;
            while let Some(shard) = board.pick_with_capacity(&visited, &constraints, tie_break, preference, |_| true) {
                prop_assert!(!requested.contains(&shard));
                visited.insert(shard);
                requested.push(shard);
                tie_break = tie_break.rotate_left(7);
            }
            requested.sort_unstable();
            prop_assert_eq!(requested, expected);
        }
    }

    /// N1: while all shards have free capacity, a claim examines as few of 1,024 as of 16, and the picks cover them
    /// all.
    #[test]
    fn n1_a_claim_examines_few_shards_while_capacity_is_free() {
        for shards in [16, 256, 1_024] {
            let board = board(&vec![Some(2_000); shards]);
            let (constraints, mut chosen) = (constraints(1_000), std::collections::BTreeSet::new());
            for n in 1..20_000_u64 {
                let examined = Cell::new(0);
                let has_budget = |_| {
                    examined.set(examined.get() + 1);
                    true
                };
                let tie_break = n.wrapping_mul(GOLDEN_RATIO);
                let preference = ShardPreference::MostFree;
                let shard =
                    board.pick_with_capacity(&ShardSet::default(), &constraints, tie_break, preference, has_budget);
                chosen.insert(shard.expect("every shard has free capacity"));
                assert!(examined.get() <= SAMPLES_MAX, "{} of {shards} shards", examined.get());
            }
            assert_eq!(chosen.len(), shards);
        }
    }
}
