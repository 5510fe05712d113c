//! Distinct capacities and GPU models of a pool's workers, busy ones included: what could ever hold a claim.
//!
//! Each shard publishes the distinct capacities of its workers whenever they change. The pool counts how many shards
//! have each capacity, so a query visits each distinct capacity once, however many shards there are, and a query for a
//! GPU model visits models only.
//!
//! With more than [`limits::CAPACITIES_MAX`] distinct capacities, in one shard or in all, the largest amount of each
//! resource answers instead. A request above one of these fits nowhere; about any other request the answer is "maybe".
//! Example: workers of 1 to 2,000 cores, each with a different memory size. 2,001 cores fit nowhere. 2,000 cores with
//! the largest memory may fit, although no worker has both.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::collections::HashMap;
use crate::limits;
use crate::model::{ResourceRequirements, ResourceVector, WorkerCapacity};
use crate::shard::ShardSet;

/// Capacities of a pool's workers, per shard and merged.
#[derive(Debug)]
pub struct WorkerCapacities {
    /// Capacities by shard; `None` where a shard has too many to publish.
    by_shard: Box<[ArcSwapOption<Vec<WorkerCapacity>>]>,
    counted: Mutex<CapacityCounts>,
    known: ArcSwap<KnownCapacities>,
}

/// Published capacities, with the number of shards that have each.
#[derive(Debug, Default)]
struct CapacityCounts {
    /// Number of shards with workers of a capacity.
    shards: HashMap<WorkerCapacity, u32>,
    /// Number of distinct capacities with GPUs of a model.
    models: BTreeMap<Arc<str>, u32>,
    /// Number of shards with too many capacities to publish.
    overflowing: usize,
    /// Largest amounts by shard, published in any case.
    largest: Box<[ResourceVector]>,
}

/// Merged view of the pool that queries read.
#[derive(Debug, Default)]
struct KnownCapacities {
    /// Whether every shard published its capacities.
    complete: bool,
    /// Whether the pool has any worker.
    has_workers: bool,
    /// Largest amounts over all shards.
    largest: ResourceVector,
    models: Vec<Arc<str>>,
    /// Distinct capacities; `None` above [`limits::CAPACITIES_MAX`].
    capacities: Option<Vec<WorkerCapacity>>,
}

impl WorkerCapacities {
    /// Creates the view of `shards` shards without workers.
    pub fn new(shards: u16) -> Self {
        let known = KnownCapacities { complete: true, capacities: Some(Vec::new()), ..KnownCapacities::default() };
        Self {
            by_shard: (0..shards).map(|_| ArcSwapOption::from_pointee(Vec::new())).collect(),
            counted: Mutex::new(CapacityCounts {
                largest: vec![ResourceVector::default(); shards.into()].into(),
                ..CapacityCounts::default()
            }),
            known: ArcSwap::from_pointee(known),
        }
    }

    /// Publishes the distinct capacities of a shard's workers, `None` if there are too many, and the largest amounts
    /// among them in any case.
    pub fn publish(&self, shard: u16, capacities: Option<Vec<WorkerCapacity>>, largest: ResourceVector) {
        let mut counted = self.counted.lock();
        let after = capacities.map(Arc::new);
        let before = self.by_shard[shard as usize].swap(after.clone());
        // Added first and removed second, so that a capacity present in both never disappears in between.
        let added =
            after.iter().flat_map(|published| published.iter()).filter(|capacity| counted.add(capacity)).count();
        let removed =
            before.iter().flat_map(|published| published.iter()).filter(|capacity| counted.remove(capacity)).count();
        counted.overflowing = counted.overflowing + usize::from(after.is_none()) - usize::from(before.is_none());
        let largest_before = std::mem::replace(&mut counted.largest[shard as usize], largest);
        if added + removed > 0 || before.is_none() != after.is_none() || largest_before != largest {
            self.known.store(Arc::new(counted.known()));
        }
    }

    /// Returns false only if there are workers, idle or busy, and no capacity passes: then the request fits nowhere
    /// until other workers register. `requested`: resources that every passing capacity has; they alone decide where
    /// there are too many capacities.
    pub fn may_have(&self, requested: &ResourceRequirements, passes: impl Fn(&WorkerCapacity) -> bool) -> bool {
        let known = self.known.load();
        if !known.has_workers {
            return true;
        }
        match &known.capacities {
            Some(capacities) if known.complete => capacities.iter().any(passes),
            _ => ResourceVector::from(requested).fits_in(known.largest),
        }
    }

    /// Returns false only if there are workers and none has GPUs.
    pub fn may_have_gpus(&self) -> bool {
        let known = self.known.load();
        !known.complete || !known.has_workers || !known.models.is_empty()
    }

    /// Returns false only if there are workers and none has GPUs of this model.
    pub fn may_have_model(&self, model: &Arc<str>) -> bool {
        let known = self.known.load();
        !known.complete || !known.has_workers || known.models.binary_search(model).is_ok()
    }

    /// Distinct capacities of the pool's workers, as far as shards publish them.
    pub fn distinct(&self) -> Vec<WorkerCapacity> {
        if let Some(capacities) = &self.known.load().capacities {
            return capacities.clone();
        }
        let published = self.by_shard.iter().filter_map(ArcSwapOption::load_full);
        let mut all: Vec<WorkerCapacity> = published.flat_map(|shard| shard.to_vec()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// First shard from `from` on, wrapping around and skipping visited ones, that has a worker whose capacity passes.
    pub fn shard_with(&self, from: u16, visited: &ShardSet, passes: impl Fn(&WorkerCapacity) -> bool) -> Option<u16> {
        let shards = self.by_shard.len() as u16;
        let has = |shard: &u16| {
            let published = self.by_shard[*shard as usize].load();
            published.as_ref().is_none_or(|published| published.iter().any(&passes))
        };
        let rotated = (0..shards).map(|step| (from + step) % shards);
        rotated.filter(|shard| !visited.contains(*shard)).find(has)
    }
}

impl CapacityCounts {
    /// Counts one more shard with this capacity. Returns true for the first.
    fn add(&mut self, capacity: &WorkerCapacity) -> bool {
        if let Some(shards) = self.shards.get_mut(capacity) {
            *shards += 1;
            return false;
        }
        self.shards.insert(capacity.clone(), 1);
        if let Some(gpu) = &capacity.gpu {
            *self.models.entry(Arc::clone(&gpu.model)).or_default() += 1;
        }
        true
    }

    /// Counts one shard less with this capacity. Returns true for the last.
    fn remove(&mut self, capacity: &WorkerCapacity) -> bool {
        let shards = self.shards.get_mut(capacity).expect("a published capacity was counted");
        *shards -= 1;
        if *shards > 0 {
            return false;
        }
        self.shards.remove(capacity);
        if let Some(gpu) = &capacity.gpu
            && let Some(capacities) = self.models.get_mut(&gpu.model)
        {
            *capacities -= 1;
            if *capacities == 0 {
                self.models.remove(&gpu.model);
            }
        }
        true
    }

    fn known(&self) -> KnownCapacities {
        let few = self.shards.len() <= limits::CAPACITIES_MAX;
        let capacities = few.then(|| {
            let mut capacities: Vec<WorkerCapacity> = self.shards.keys().cloned().collect();
            capacities.sort_unstable();
            capacities
        });
        KnownCapacities {
            complete: self.overflowing == 0,
            has_workers: !self.shards.is_empty() || self.overflowing > 0,
            largest: self.largest.iter().copied().fold(ResourceVector::default(), ResourceVector::max),
            models: self.models.keys().cloned().collect(),
            capacities,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GpuCapacity, GpuRequest};
    use proptest::prelude::*;

    fn capacity(number: u16) -> WorkerCapacity {
        let model = ["A10", "T4"].get(usize::from(number % 3));
        let gpu = model.map(|&model| GpuCapacity { model: model.into(), count: 1 });
        WorkerCapacity { cpu_milli: number.into(), gpu, ..WorkerCapacity::default() }
    }

    /// Capacities of a shard, and whether it publishes them: few, many, or too many.
    fn published() -> impl Strategy<Value = (Vec<u16>, bool)> {
        let few = prop::collection::btree_set(0..12u16, 0..6).prop_map(|few| few.into_iter().collect());
        let many = (0..700u16).prop_map(|from| (from..from + 600).collect::<Vec<_>>());
        let unpublished = (0..900u16).prop_map(|from| (from..from + 1_100).collect::<Vec<_>>());
        prop_oneof![
            8 => few.prop_map(|few: Vec<u16>| (few, true)),
            1 => many.prop_map(|many| (many, true)),
            1 => unpublished.prop_map(|unpublished| (unpublished, false)),
        ]
    }

    fn largest(numbers: &[u16]) -> ResourceVector {
        let amounts = numbers.iter().map(|&number| ResourceVector::from(&capacity(number)));
        amounts.fold(ResourceVector::default(), ResourceVector::max)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        /// N1: the pool answers like a scan of every capacity of every shard; with too many capacities, like their
        /// largest amounts. No capacity that some shard has is ever denied.
        #[test]
        fn n1_the_pool_answers_like_a_scan_of_its_shards(steps in prop::collection::vec((0..4u16, published()), 1..40)) {
            let pool = WorkerCapacities::new(4);
            let mut shards: [(Vec<u16>, bool); 4] = std::array::from_fn(|_| (Vec::new(), true));
            for (shard, (numbers, is_published)) in steps {
                let capacities = is_published.then(|| numbers.iter().copied().map(capacity).collect());
                pool.publish(shard, capacities, largest(&numbers));
                shards[usize::from(shard)] = (numbers, is_published);
                let complete = shards.iter().all(|(_, is_published)| *is_published);
                let sorted = |of: Vec<u16>| of.into_iter().collect::<std::collections::BTreeSet<_>>();
                let every = sorted(shards.iter().flat_map(|(numbers, _)| numbers).copied().collect());
                let all = sorted(shards.iter().filter(|(_, published)| *published).flat_map(|(of, _)| of).copied().collect());
                let unsure = !complete || all.is_empty();
                let has = |passes: &dyn Fn(&WorkerCapacity) -> bool| all.iter().any(|&number| passes(&capacity(number)));
                prop_assert_eq!(pool.may_have_gpus(), unsure || has(&|capacity| capacity.gpu.is_some()));
                for model in ["A10", "T4", "V100"].map(Arc::<str>::from) {
                    let of = |capacity: &WorkerCapacity| capacity.gpu.as_ref().is_some_and(|gpu| gpu.model == model);
                    prop_assert_eq!(pool.may_have_model(&model), unsure || has(&of));
                }
                let largest = every.last().copied();
                for least in [0, 5, 11, 12, 800, 1_400, 1_999, 2_000] {
                    let requested = ResourceRequirements { cpu_milli: least, ..ResourceRequirements::default() };
                    let may_have = pool.may_have(&requested, |capacity| requested.fits_in(capacity));
                    prop_assert_eq!(may_have, largest.is_none_or(|largest| u64::from(largest) >= least));
                }
                // The largest capacity with a GPU is not the largest of all: a combination that no worker has is
                // denied only by the exact scan.
                let gpu = Some(GpuRequest { models: Vec::new(), count: 1, milli: 1_000 });
                let both = ResourceRequirements { cpu_milli: largest.unwrap_or(0).into(), gpu, ..ResourceRequirements::default() };
                let has_both = every.iter().any(|&number| both.fits_in(&capacity(number)));
                let few = complete && every.len() <= limits::CAPACITIES_MAX;
                let has_gpus = every.iter().any(|&number| capacity(number).gpu.is_some());
                let expected = every.is_empty() || has_both || (!few && has_gpus);
                prop_assert_eq!(pool.may_have(&both, |capacity| both.fits_in(capacity)), expected);
                let mut expected: Vec<WorkerCapacity> = all.into_iter().map(capacity).collect();
                expected.sort_unstable();
                prop_assert_eq!(pool.distinct(), expected);
            }
        }
    }
}
