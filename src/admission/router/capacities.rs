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

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::limits;
use crate::model::{Capacity, LargestAmounts, Resources};
use crate::shard::Visited;

/// The capacities of a pool's workers, by shard and together.
#[derive(Debug)]
pub struct Capacities {
    /// None: too many to tell.
    by_shard: Box<[ArcSwapOption<Vec<Capacity>>]>,
    counted: Mutex<Counted>,
    known: ArcSwap<Known>,
}

/// What shards said, counted.
#[derive(Debug, Default)]
struct Counted {
    /// Shards that have workers with a capacity.
    shards: HashMap<Capacity, u32>,
    /// Capacities with cards of a model.
    models: BTreeMap<Arc<str>, u32>,
    /// Shards with too many capacities to tell.
    untold: usize,
    /// Largest amounts by shard, whether it told its capacities or not.
    largest: Box<[LargestAmounts]>,
}

/// What is known of the pool.
#[derive(Debug, Default)]
struct Known {
    /// Every shard told its capacities.
    complete: bool,
    /// There are workers.
    any: bool,
    /// Largest amounts of all shards.
    largest: LargestAmounts,
    models: Vec<Arc<str>>,
    /// None: more than [`limits::CAPACITIES_MAX`].
    capacities: Option<Vec<Capacity>>,
}

impl Capacities {
    /// Of `shards` shards without workers.
    pub fn new(shards: u16) -> Self {
        let known = Known { complete: true, capacities: Some(Vec::new()), ..Known::default() };
        Self {
            by_shard: (0..shards).map(|_| ArcSwapOption::from_pointee(Vec::new())).collect(),
            counted: Mutex::new(Counted {
                largest: vec![LargestAmounts::default(); shards.into()].into(),
                ..Counted::default()
            }),
            known: ArcSwap::from_pointee(known),
        }
    }

    /// Shard `shard` says which capacities its workers have, each once; none: too many to tell. `largest`: the largest amounts
    /// among them in any case.
    pub fn publish(&self, shard: u16, capacities: Option<Vec<Capacity>>, largest: LargestAmounts) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let after = capacities.map(Arc::new);
        let before = self.by_shard[shard as usize].swap(after.clone());
        // First what came, so that what stays is never thought gone.
        let came = after.iter().flat_map(|told| told.iter()).filter(|capacity| counted.add(capacity)).count();
        let went = before.iter().flat_map(|told| told.iter()).filter(|capacity| counted.take(capacity)).count();
        counted.untold = counted.untold + usize::from(after.is_none()) - usize::from(before.is_none());
        let largest_before = std::mem::replace(&mut counted.largest[shard as usize], largest);
        if came + went > 0 || before.is_none() != after.is_none() || largest_before != largest {
            self.known.store(Arc::new(counted.known()));
        }
    }

    /// False only if there are workers, idle or not, and none has a capacity that passes: then none ever will, until
    /// others come. `asked`: resources without which no capacity passes; they decide alone where capacities are too many.
    pub fn may_have(&self, asked: &Resources, passes: impl Fn(&Capacity) -> bool) -> bool {
        let known = self.known.load();
        if !known.any {
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
        !known.complete || !known.any || !known.models.is_empty()
    }

    /// False only if there are workers and none has GPUs of this model.
    pub fn may_have_model(&self, model: &Arc<str>) -> bool {
        let known = self.known.load();
        !known.complete || !known.any || known.models.binary_search(model).is_ok()
    }

    /// The distinct capacities of the pool's workers, as far as its shards tell.
    pub fn all(&self) -> Vec<Capacity> {
        if let Some(capacities) = &self.known.load().capacities {
            return capacities.clone();
        }
        let told = self.by_shard.iter().filter_map(ArcSwapOption::load_full);
        let mut all: Vec<Capacity> = told.flat_map(|shard| shard.to_vec()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The shard, from the one with this number on and not visited yet, that has a worker whose capacity passes.
    pub fn shard_with(&self, from: u16, visited: &Visited, passes: impl Fn(&Capacity) -> bool) -> Option<u16> {
        let shards = self.by_shard.len() as u16;
        let has = |shard: &u16| {
            let told = self.by_shard[*shard as usize].load();
            told.as_ref().is_none_or(|told| told.iter().any(&passes))
        };
        let from_it = (0..shards).map(|step| (from + step) % shards);
        from_it.filter(|shard| !visited.contains(*shard)).find(has)
    }
}

impl Counted {
    /// One more shard has this capacity. True: it is the first.
    fn add(&mut self, capacity: &Capacity) -> bool {
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
    fn take(&mut self, capacity: &Capacity) -> bool {
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

    fn known(&self) -> Known {
        let few = self.shards.len() <= limits::CAPACITIES_MAX;
        let capacities = few.then(|| {
            let mut capacities: Vec<Capacity> = self.shards.keys().cloned().collect();
            capacities.sort_unstable();
            capacities
        });
        Known {
            complete: self.untold == 0,
            any: !self.shards.is_empty() || self.untold > 0,
            largest: self.largest.iter().copied().fold(LargestAmounts::default(), LargestAmounts::max),
            models: self.models.keys().cloned().collect(),
            capacities,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GpuAsk, GpuCapacity};
    use proptest::prelude::*;

    fn capacity(number: u16) -> Capacity {
        let model = ["A10", "T4"].get(usize::from(number % 3));
        let gpu = model.map(|&model| GpuCapacity { model: model.into(), count: 1 });
        Capacity { cpu_milli: number.into(), gpu, ..Capacity::default() }
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

    fn largest(numbers: &[u16]) -> LargestAmounts {
        let amounts = numbers.iter().map(|&number| LargestAmounts::from(&capacity(number)));
        amounts.fold(LargestAmounts::default(), LargestAmounts::max)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        /// N1: what is known of the pool is what a look at every capacity of every shard says; where these are too many, what
        /// their largest amounts say; and no capacity is denied that some shard has.
        #[test]
        fn n1_the_pool_knows_what_its_shards_told(steps in prop::collection::vec((0..4u16, told()), 1..40)) {
            let pool = Capacities::new(4);
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
                let has = |passes: &dyn Fn(&Capacity) -> bool| all.iter().any(|&number| passes(&capacity(number)));
                prop_assert_eq!(pool.may_have_gpus(), unsure || has(&|capacity| capacity.gpu.is_some()));
                for model in ["A10", "T4", "V100"].map(Arc::<str>::from) {
                    let of = |capacity: &Capacity| capacity.gpu.as_ref().is_some_and(|gpu| gpu.model == model);
                    prop_assert_eq!(pool.may_have_model(&model), unsure || has(&of));
                }
                let largest = every.last().copied();
                for least in [0, 5, 11, 12, 800, 1_400, 1_999, 2_000] {
                    let asked = Resources { cpu_milli: least, ..Resources::default() };
                    let may_have = pool.may_have(&asked, |capacity| asked.fit_in(capacity));
                    prop_assert_eq!(may_have, largest.is_none_or(|largest| u64::from(largest) >= least));
                }
                // The last with a card is not the largest: what neither has together is denied only where each is looked at.
                let gpu = Some(GpuAsk { models: Vec::new(), count: 1, milli: 1_000 });
                let both = Resources { cpu_milli: largest.unwrap_or(0).into(), gpu, ..Resources::default() };
                let has_both = every.iter().any(|&number| both.fit_in(&capacity(number)));
                let few = complete && every.len() <= limits::CAPACITIES_MAX;
                let has_gpus = every.iter().any(|&number| capacity(number).gpu.is_some());
                let expected = every.is_empty() || has_both || (!few && has_gpus);
                prop_assert_eq!(pool.may_have(&both, |capacity| both.fit_in(capacity)), expected);
                let mut expected: Vec<Capacity> = all.into_iter().map(capacity).collect();
                expected.sort_unstable();
                prop_assert_eq!(pool.all(), expected);
            }
        }
    }
}
