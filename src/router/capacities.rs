//! Which capacities the workers of a pool have, busy ones too: what could ever hold a claim, and which GPU models there are.
//!
//! Each shard says which distinct capacities its workers have, whenever that changes. What a claim asks is kept for the whole
//! pool: how many shards have each capacity is counted as they say it, so a question looks at each distinct capacity of the
//! pool once, however many shards there are, and one about GPU models looks at models alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::limits;
use crate::model::Capacity;
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
}

/// What is known of the pool.
#[derive(Debug, Default)]
struct Known {
    /// Every shard told its capacities.
    complete: bool,
    /// There are workers.
    any: bool,
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
            counted: Mutex::default(),
            known: ArcSwap::from_pointee(known),
        }
    }

    /// Shard `shard` says which capacities its workers have, each once; none: too many to tell.
    pub fn publish(&self, shard: u16, capacities: Option<Vec<Capacity>>) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let after = capacities.map(Arc::new);
        let before = self.by_shard[shard as usize].swap(after.clone());
        // First what came, so that what stays is never thought gone.
        let came = after.iter().flat_map(|told| told.iter()).filter(|capacity| counted.add(capacity)).count();
        let went = before.iter().flat_map(|told| told.iter()).filter(|capacity| counted.take(capacity)).count();
        counted.untold = counted.untold + usize::from(after.is_none()) - usize::from(before.is_none());
        if came + went > 0 || before.is_none() != after.is_none() {
            self.known.store(Arc::new(counted.known()));
        }
    }

    /// False only if there are workers, idle or not, and none has a capacity that passes: then none ever will, until
    /// others come.
    pub fn may_have(&self, passes: impl Fn(&Capacity) -> bool) -> bool {
        let known = self.known.load();
        let capacities = known.capacities.as_ref().filter(|_| known.complete && known.any);
        capacities.is_none_or(|capacities| capacities.iter().any(passes))
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
            any: !self.shards.is_empty(),
            models: self.models.keys().cloned().collect(),
            capacities,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GpuCapacity;
    use proptest::prelude::*;

    fn capacity(number: u16) -> Capacity {
        let model = ["A10", "T4"].get(usize::from(number % 3));
        let gpu = model.map(|&model| GpuCapacity { model: model.into(), count: 1 });
        Capacity { cpu_milli: number.into(), gpu, ..Capacity::default() }
    }

    /// What a shard says: a few capacities, many, or too many to tell.
    fn told() -> impl Strategy<Value = Option<Vec<u16>>> {
        let few = prop::collection::btree_set(0..12u16, 0..6);
        let many = (0..700u16).prop_map(|from| (from..from + 600).collect());
        prop_oneof![8 => few.prop_map(|few| Some(few.into_iter().collect())), 1 => many.prop_map(Some), 1 => Just(None)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        /// N1: what is known of the pool is what a look at every capacity of every shard says, and no capacity is
        /// denied that some shard has.
        #[test]
        fn n1_the_pool_knows_what_its_shards_told(steps in prop::collection::vec((0..4u16, told()), 1..40)) {
            let pool = Capacities::new(4);
            let mut shards: [Option<Vec<u16>>; 4] = std::array::from_fn(|_| Some(Vec::new()));
            for (shard, told) in steps {
                pool.publish(shard, told.as_ref().map(|told| told.iter().copied().map(capacity).collect()));
                shards[usize::from(shard)] = told;
                let complete = shards.iter().all(Option::is_some);
                let mut all: Vec<u16> = shards.iter().flatten().flatten().copied().collect();
                all.sort_unstable();
                all.dedup();
                let unsure = !complete || all.is_empty();
                let has = |passes: &dyn Fn(&Capacity) -> bool| all.iter().any(|&number| passes(&capacity(number)));
                prop_assert_eq!(pool.may_have_gpus(), unsure || has(&|capacity| capacity.gpu.is_some()));
                for model in ["A10", "T4", "V100"].map(Arc::<str>::from) {
                    let of = |capacity: &Capacity| capacity.gpu.as_ref().is_some_and(|gpu| gpu.model == model);
                    prop_assert_eq!(pool.may_have_model(&model), unsure || has(&of));
                }
                for least in [0, 5, 11, 12, 800, 1_400] {
                    let large = |capacity: &Capacity| capacity.cpu_milli >= least;
                    prop_assert_eq!(pool.may_have(large), unsure || all.len() > limits::CAPACITIES_MAX || has(&large));
                }
                let mut expected: Vec<Capacity> = all.into_iter().map(capacity).collect();
                expected.sort_unstable();
                prop_assert_eq!(pool.all(), expected);
            }
        }
    }
}
