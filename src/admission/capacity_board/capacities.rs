//! Which capacities the workers of a pool have, busy ones too: what could ever hold a claim, and which GPU models there are.
//!
//! Each shard says which distinct capacities its workers have, whenever that changes. What a claim asks is kept for the whole
//! pool: how many shards have each capacity is counted as they say it, so a question looks at each distinct capacity of the
//! pool once, however many shards there are, and one about GPU models looks at models alone.
//!
//! With more than [`limits::CAPACITIES_MAX`] distinct capacities, in a shard or in all, the largest amount of each resource
//! answers instead: what exceeds one of these fits nowhere, and of anything else nobody knows. Example: workers of 1 to 2,000
//! cores that each have a memory of their own. 2,001 cores fit nowhere; 2,000 cores and the largest memory, which no worker
//! has both of, may.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::limits;
use crate::model::{MaxCapacity, ResourceRequirements, WorkerCapacity};
use crate::shard::ShardSet;

/// The capacities of a pool's workers, by shard and together.
#[derive(Debug)]
pub struct WorkerCapacities {
    /// None: too many to tell.
    by_shard: Box<[ArcSwapOption<Vec<WorkerCapacity>>]>,
    counted: Mutex<CapacityCounts>,
    known: ArcSwap<KnownCapacities>,
}

/// What shards said, counted.
#[derive(Debug, Default)]
struct CapacityCounts {
    /// Shards that have workers with a capacity.
    shards: HashMap<WorkerCapacity, u32>,
    /// Capacities with cards of a model.
    models: BTreeMap<Arc<str>, u32>,
    /// Shards with too many capacities to tell.
    overflowing: usize,
    /// Largest amounts by shard, whether it told its capacities or not.
    largest: Box<[MaxCapacity]>,
}

/// What is known of the pool.
#[derive(Debug, Default)]
struct KnownCapacities {
    /// Every shard told its capacities.
    complete: bool,
    /// There are workers.
    has_workers: bool,
    /// Largest amounts of all shards.
    largest: MaxCapacity,
    models: Vec<Arc<str>>,
    /// None: more than [`limits::CAPACITIES_MAX`].
    capacities: Option<Vec<WorkerCapacity>>,
}

impl WorkerCapacities {
    /// Of `shards` shards without workers.
    pub fn new(shards: u16) -> Self {
        let known = KnownCapacities { complete: true, capacities: Some(Vec::new()), ..KnownCapacities::default() };
        Self {
            by_shard: (0..shards).map(|_| ArcSwapOption::from_pointee(Vec::new())).collect(),
            counted: Mutex::new(CapacityCounts {
                largest: vec![MaxCapacity::default(); shards.into()].into(),
                ..CapacityCounts::default()
            }),
            known: ArcSwap::from_pointee(known),
        }
    }

    /// Shard `shard` says which capacities its workers have, each once; none: too many to tell. `largest`: the largest amounts
    /// among them in any case.
    pub fn publish(&self, shard: u16, capacities: Option<Vec<WorkerCapacity>>, largest: MaxCapacity) {
        let mut counted = self.counted.lock();
        let after = capacities.map(Arc::new);
        let before = self.by_shard[shard as usize].swap(after.clone());
        // First what came, so that what stays is never thought gone.
        let came = after.iter().flat_map(|told| told.iter()).filter(|capacity| counted.add(capacity)).count();
        let went = before.iter().flat_map(|told| told.iter()).filter(|capacity| counted.remove(capacity)).count();
        counted.overflowing = counted.overflowing + usize::from(after.is_none()) - usize::from(before.is_none());
        let largest_before = std::mem::replace(&mut counted.largest[shard as usize], largest);
        if came + went > 0 || before.is_none() != after.is_none() || largest_before != largest {
            self.known.store(Arc::new(counted.known()));
        }
    }

    /// False only if there are workers, idle or not, and none has a capacity that passes: then none ever will, until
    /// others come. `asked`: resources without which no capacity passes; they decide alone where capacities are too many.
    pub fn may_have(&self, asked: &ResourceRequirements, passes: impl Fn(&WorkerCapacity) -> bool) -> bool {
        let known = self.known.load();
        if !known.has_workers {
            return true;
        }
        match &known.capacities {
            Some(capacities) if known.complete => capacities.iter().any(passes),
            _ => known.largest.may_fit(asked),
        }
    }

    /// False only if there are workers and none has GPUs.
    pub fn may_have_gpus(&self) -> bool {
        let known = self.known.load();
        !known.complete || !known.has_workers || !known.models.is_empty()
    }

    /// False only if there are workers and none has GPUs of this model.
    pub fn may_have_model(&self, model: &Arc<str>) -> bool {
        let known = self.known.load();
        !known.complete || !known.has_workers || known.models.binary_search(model).is_ok()
    }

    /// The distinct capacities of the pool's workers, as far as its shards tell.
    pub fn distinct(&self) -> Vec<WorkerCapacity> {
        if let Some(capacities) = &self.known.load().capacities {
            return capacities.clone();
        }
        let told = self.by_shard.iter().filter_map(ArcSwapOption::load_full);
        let mut all: Vec<WorkerCapacity> = told.flat_map(|shard| shard.to_vec()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The shard, from the one with this number on and not visited yet, that has a worker whose capacity passes.
    pub fn shard_with(&self, from: u16, visited: &ShardSet, passes: impl Fn(&WorkerCapacity) -> bool) -> Option<u16> {
        let shards = self.by_shard.len() as u16;
        let has = |shard: &u16| {
            let told = self.by_shard[*shard as usize].load();
            told.as_ref().is_none_or(|told| told.iter().any(&passes))
        };
        let from_it = (0..shards).map(|step| (from + step) % shards);
        from_it.filter(|shard| !visited.contains(*shard)).find(has)
    }
}

impl CapacityCounts {
    /// One more shard has this capacity. True: it is the first.
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

    /// A shard has this capacity no more. True: it was the last.
    fn remove(&mut self, capacity: &WorkerCapacity) -> bool {
        let shards = self.shards.get_mut(capacity).expect("what was told was counted");
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
            largest: self.largest.iter().copied().fold(MaxCapacity::default(), MaxCapacity::max),
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

    /// Capacities of a shard, and whether it tells them: few, many, or more than it tells.
    fn told() -> impl Strategy<Value = (Vec<u16>, bool)> {
        let few = prop::collection::btree_set(0..12u16, 0..6).prop_map(|few| few.into_iter().collect());
        let many = (0..700u16).prop_map(|from| (from..from + 600).collect::<Vec<_>>());
        let untold = (0..900u16).prop_map(|from| (from..from + 1_100).collect::<Vec<_>>());
        prop_oneof![
            8 => few.prop_map(|few: Vec<u16>| (few, true)),
            1 => many.prop_map(|many| (many, true)),
            1 => untold.prop_map(|untold| (untold, false)),
        ]
    }

    fn largest(numbers: &[u16]) -> MaxCapacity {
        let amounts = numbers.iter().map(|&number| MaxCapacity::from(&capacity(number)));
        amounts.fold(MaxCapacity::default(), MaxCapacity::max)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        /// N1: what is known of the pool is what a look at every capacity of every shard says; where these are too many, what
        /// their largest amounts say; and no capacity is denied that some shard has.
        #[test]
        fn n1_the_pool_knows_what_its_shards_told(steps in prop::collection::vec((0..4u16, told()), 1..40)) {
            let pool = WorkerCapacities::new(4);
            let mut shards: [(Vec<u16>, bool); 4] = std::array::from_fn(|_| (Vec::new(), true));
            for (shard, (numbers, is_told)) in steps {
                let capacities = is_told.then(|| numbers.iter().copied().map(capacity).collect());
                pool.publish(shard, capacities, largest(&numbers));
                shards[usize::from(shard)] = (numbers, is_told);
                let complete = shards.iter().all(|(_, is_told)| *is_told);
                let sorted = |of: Vec<u16>| of.into_iter().collect::<std::collections::BTreeSet<_>>();
                let every = sorted(shards.iter().flat_map(|(numbers, _)| numbers).copied().collect());
                let all = sorted(shards.iter().filter(|(_, told)| *told).flat_map(|(of, _)| of).copied().collect());
                let unsure = !complete || all.is_empty();
                let has = |passes: &dyn Fn(&WorkerCapacity) -> bool| all.iter().any(|&number| passes(&capacity(number)));
                prop_assert_eq!(pool.may_have_gpus(), unsure || has(&|capacity| capacity.gpu.is_some()));
                for model in ["A10", "T4", "V100"].map(Arc::<str>::from) {
                    let of = |capacity: &WorkerCapacity| capacity.gpu.as_ref().is_some_and(|gpu| gpu.model == model);
                    prop_assert_eq!(pool.may_have_model(&model), unsure || has(&of));
                }
                let largest = every.last().copied();
                for least in [0, 5, 11, 12, 800, 1_400, 1_999, 2_000] {
                    let asked = ResourceRequirements { cpu_milli: least, ..ResourceRequirements::default() };
                    let may_have = pool.may_have(&asked, |capacity| asked.fits_in(capacity));
                    prop_assert_eq!(may_have, largest.is_none_or(|largest| u64::from(largest) >= least));
                }
                // The last with a card is not the largest: what neither has together is denied only where each is looked at.
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
