//! Compares placement with a naive oracle: random fleets, random allocations and releases, workers that come, go and
//! are withdrawn; after each step the fleet picks what a linear search would pick.

use hotpool::engine::placement::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, FreeResources, GPU_MILLI, NO_MODEL, PlacementDecision, RequestShape,
    ResourceAllocation, ResourceRequest, most_frequent,
};
use hotpool::model::{GpuCapacity, WorkerCapacity};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

const MODELS: [&str; 3] = ["A10", "T4", "V100"];

/// Worker of the oracle.
#[derive(Debug, Clone)]
struct OracleWorker {
    capacity: WorkerCapacity,
    free: FreeResources,
    gpus: Vec<u16>,
    offered: bool,
    ends_ms: Option<u64>,
}

#[derive(Debug, Clone)]
enum Step {
    Add(WorkerCapacity),
    SetEnd(usize, Option<u64>),
    Allocate(ResourceRequest, FitStrategy),
    Release(usize),
    Withdraw(usize),
    Offer(usize),
    Remove(usize),
}

fn capacity() -> impl Strategy<Value = WorkerCapacity> {
    let gpu = proptest::option::weighted(0.6, (0..MODELS.len(), prop::sample::select(vec![1_u32, 2, 4, 8])));
    // Few distinct amounts, so that workers are often equal.
    (0..4_u64, 0..4_u64, 0..3_u64, gpu).prop_map(|(cpu, memory, slots, gpu)| WorkerCapacity {
        cpu_milli: cpu * 8_000,
        memory_bytes: memory << 34,
        slots: slots * 4,
        gpu: gpu.map(|(model, count)| GpuCapacity { model: MODELS[model].into(), count }),
    })
}

fn request() -> impl Strategy<Value = ResourceRequest> {
    let gpus = prop_oneof![
        2 => Just((0, 0)),
        3 => prop::sample::select(vec![1_u16, 250, 300, 500, 750, 999]).prop_map(|milli| (1, milli)),
        2 => prop::sample::select(vec![1_u16, 2, 4, 8]).prop_map(|count| (count, GPU_MILLI)),
    ];
    let models = prop_oneof![3 => Just(vec![]), 1 => Just(vec![1]), 1 => Just(vec![3, 2])];
    let until_ms = prop_oneof![2 => Just(0), 1 => 0..9_000_u64, 1 => Just(100_000)];
    (0..5_u64, 0..4_u64, 0..3_u64, gpus, models, until_ms).prop_map(|(cpu, memory, slots, gpus, models, until_ms)| {
        ResourceRequest {
            cpu_milli: cpu * 2_000,
            memory_bytes: memory << 32,
            slots,
            gpu_count: gpus.0,
            gpu_milli: gpus.1,
            models: if gpus.0 == 0 { vec![].into() } else { models.into() },
            until_ms,
        }
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let strategy = prop::sample::select(vec![FitStrategy::BestFit, FitStrategy::Spread, FitStrategy::Fgd]);
    let step = prop_oneof![
        3 => capacity().prop_map(Step::Add),
        // Near ends, some of which share a bound of the index, and far ones.
        8 => (any::<usize>(), prop::option::weighted(0.9, prop_oneof![3 => 1..9_000_u64, 1 => 90_000..110_000_u64]))
            .prop_map(|(nth, ends_ms)| Step::SetEnd(nth, ends_ms)),
        8 => (request(), strategy).prop_map(|(request, strategy)| Step::Allocate(request, strategy)),
        4 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Withdraw),
        1 => any::<usize>().prop_map(Step::Offer),
        1 => any::<usize>().prop_map(Step::Remove),
    ];
    (prop::collection::vec(capacity(), 1..40), prop::collection::vec(step, 1..120))
        .prop_map(|(first, steps)| first.into_iter().map(Step::Add).chain(steps).collect())
}

/// Mix of every run: GPU fractions and whole GPUs, one shape with a model, one without GPUs.
fn mix() -> Vec<(RequestShape, f64)> {
    let shape = |cpu_milli, gpus, gpu_milli, models: &[u16]| RequestShape {
        cpu_milli,
        gpu_milli,
        gpu_count: gpus,
        models: models.into(),
    };
    vec![
        (shape(4_000, 1, 500, &[]), 0.4),
        (shape(2_000, 1, 300, &[2]), 0.2),
        (shape(8_000, 2, 1_000, &[]), 0.3),
        (shape(2_000, 0, 0, &[]), 0.1),
    ]
}

/// Fragmented GPU thousandths, by the definition.
fn fragmented(free: &FreeResources) -> f64 {
    let idle = f64::from(free.free_gpu_milli());
    let (mut fragmented_milli, mut cpu, mut milli) = (0.0, 0.0, 0.0);
    for (shape, allocation) in mix() {
        let model = shape.models.is_empty() || shape.models.contains(&free.model);
        let fitting: Vec<u16> = free.gpus.iter().copied().filter(|&milli| milli >= shape.gpu_milli).collect();
        let usable = if shape.gpu_count > 0
            && model
            && free.cpu_milli >= shape.cpu_milli
            && fitting.len() >= shape.gpu_count as usize
        {
            fitting.iter().map(|&milli| f64::from(milli)).sum()
        } else {
            0.0
        };
        fragmented_milli += allocation * (idle - usable);
        if shape.gpu_count > 0 && model {
            cpu += allocation * shape.cpu_milli as f64;
            milli += allocation * f64::from(shape.gpu_count) * f64::from(shape.gpu_milli);
        }
    }
    fragmented_milli + (idle - free.cpu_milli as f64 * milli / cpu / 0.8).max(0.0)
}

fn growth(free: &FreeResources, request: &ResourceRequest) -> f64 {
    let gpu_choices: Vec<u16> = match (request.gpu_count, request.gpu_milli) {
        (1, ..GPU_MILLI) => free.gpus.iter().copied().filter(|&milli| milli >= request.gpu_milli).collect(),
        _ => vec![GPU_MILLI],
    };
    gpu_choices
        .into_iter()
        .map(|free_milli| fragmented(&free.after_allocating(request, free_milli)) - fragmented(free))
        .fold(f64::INFINITY, f64::min)
}

struct Harness {
    fleet: FleetIndex,
    fgd: FragmentationScorer,
    worker: Vec<Option<OracleWorker>>,
    allocations: Vec<(u32, ResourceAllocation)>,
    /// Requests for which no fitting worker ends too soon, for which some do, and for which all do.
    counts: [u32; 3],
}

impl Harness {
    fn new() -> Self {
        let mut fleet = FleetIndex::default();
        MODELS.iter().for_each(|model| _ = fleet.model(model));
        Self {
            fleet,
            fgd: FragmentationScorer::with_fixed_mix(mix()),
            worker: Vec::new(),
            allocations: Vec::new(),
            counts: [0; 3],
        }
    }

    fn add(&mut self, capacity: WorkerCapacity) {
        let at = self.worker.len();
        self.fleet.insert(at as u32, &capacity);
        let model = capacity.gpu.as_ref().map_or(0, |gpu| self.fleet.known_model(&gpu.model).unwrap());
        let free = FreeResources::unallocated(&capacity, model);
        let gpus = free.gpus.to_vec();
        self.worker.push(Some(OracleWorker { capacity, free, gpus, offered: true, ends_ms: None }));
    }

    fn step(&mut self, step: Step) {
        self.step_unchecked(step);
        self.fleet.check().unwrap();
        for (at, worker) in self.worker.iter().enumerate() {
            let Some(worker) = worker else { continue };
            assert_eq!((self.fleet.free(at as u32), self.fleet.gpus(at as u32)), (&worker.free, &worker.gpus[..]));
        }
    }

    fn step_unchecked(&mut self, step: Step) {
        match step {
            Step::Add(capacity) => self.add(capacity),
            Step::Allocate(request, strategy) => self.allocate(&request, strategy),
            Step::SetEnd(nth, ends_ms) => self.each(nth, |fleet, at, worker| {
                fleet.set_ends_ms(at, ends_ms);
                worker.ends_ms = ends_ms;
            }),
            Step::Release(nth) if !self.allocations.is_empty() => {
                let (at, allocation) = self.allocations.swap_remove(nth % self.allocations.len());
                self.fleet.release(at, &allocation);
                self.apply(at, &allocation, 1);
            }
            Step::Withdraw(nth) => self.each(nth, |fleet, at, worker| {
                fleet.withdraw(at);
                worker.offered = false;
            }),
            Step::Offer(nth) => self.each(nth, |fleet, at, worker| {
                fleet.offer(at);
                worker.offered = true;
            }),
            Step::Remove(nth) => {
                let at = nth % self.worker.len();
                if self.worker[at].take().is_some() {
                    self.fleet.remove(at as u32);
                    self.fleet.set_ends_ms(at as u32, None);
                    self.allocations.retain(|(worker, _)| *worker != at as u32);
                }
            }
            Step::Release(_) => {}
        }
    }

    fn each(&mut self, nth: usize, change: impl Fn(&mut FleetIndex, u32, &mut OracleWorker)) {
        let at = nth % self.worker.len();
        if let Some(worker) = &mut self.worker[at] {
            change(&mut self.fleet, at as u32, worker);
        }
    }

    fn apply(&mut self, at: u32, allocation: &ResourceAllocation, sign: i64) {
        let worker = self.worker[at as usize].as_mut().unwrap();
        let add = |have: &mut u64, amount: u64| *have = have.checked_add_signed(sign * amount as i64).expect("L1");
        add(&mut worker.free.cpu_milli, allocation.cpu_milli);
        add(&mut worker.free.memory_bytes, allocation.memory_bytes);
        add(&mut worker.free.slots, allocation.slots);
        for gpu in (0..64).filter(|gpu| allocation.gpu_mask >> gpu & 1 == 1) {
            let milli = i64::from(worker.gpus[gpu]) + sign * i64::from(allocation.gpu_milli);
            assert!((0..=1_000).contains(&milli), "L1: GPU {gpu} of {at} has {milli}");
            worker.gpus[gpu] = milli as u16;
        }
        worker.free.gpus = worker.gpus.iter().copied().collect();
        worker.free.gpus.sort_unstable_by(|first, second| second.cmp(first));
    }

    /// Candidates of a request, by ordinal.
    fn fitting(&self, request: &ResourceRequest) -> Vec<(u32, &FreeResources)> {
        let model = |free: &FreeResources| request.models.is_empty() || request.models.contains(&free.model);
        let offered = self.worker.iter().enumerate().filter_map(|(at, worker)| Some((at as u32, worker.as_ref()?)));
        let fitting: Vec<(u32, &FreeResources)> = offered
            .filter(|(_, worker)| worker.offered && worker.free.fits(request) && model(&worker.free))
            .filter(|(_, worker)| worker.ends_ms.is_none_or(|ends_ms| ends_ms > request.until_ms))
            .map(|(at, worker)| (at, &worker.free))
            .collect();
        let plain: Vec<_> = fitting.iter().copied().filter(|(_, free)| free.model == 0).collect();
        if request.gpu_count == 0 && !plain.is_empty() { plain } else { fitting }
    }

    fn allocate(&mut self, request: &ResourceRequest, strategy: FitStrategy) {
        let endless = self.fitting(&ResourceRequest { until_ms: 0, ..request.clone() }).len();
        match (self.fitting(request).len(), endless) {
            (0, 1..) => self.counts[2] += 1,
            (some, all) if some < all => self.counts[1] += 1,
            (_, all) => self.counts[0] += u32::from(all > 0),
        }
        let Some(PlacementDecision { worker, gpu_free_milli: free_milli, .. }) =
            pick_sparing_gpus(&self.fleet, request, strategy, &mut self.fgd)
        else {
            assert!(self.fitting(request).is_empty(), "N1: {request:?} fits and was rejected");
            return;
        };
        let fitting = self.fitting(request);
        let free = fitting.iter().find(|(at, _)| *at == worker).expect("the picked worker is a candidate").1;
        let key = |&(at, free): &(u32, &FreeResources)| (free.sort_key(free.fingerprint()), at);
        match strategy {
            FitStrategy::BestFit => assert_eq!(worker, fitting.iter().min_by_key(|each| key(each)).unwrap().0),
            FitStrategy::Spread => {
                let top = fitting.iter().max_by_key(|each| each.1.sort_key(each.1.fingerprint())).unwrap().1;
                assert_eq!(worker, fitting.iter().find(|(_, free)| *free == top).unwrap().0);
            }
            // Sums of floats: smaller differences may fall on either side of a step.
            FitStrategy::Fgd => {
                let steps = |growth: f64| (growth / 160.0).floor();
                let least = fitting.iter().map(|(_, free)| growth(free, request)).fold(f64::INFINITY, f64::min);
                let taken = growth(free, request);
                assert!(steps(taken - 1e-6) <= steps(least + 1e-6), "grows by {taken}, could grow by {least}");
                let first = fitting.iter().find(|(_, free)| steps(growth(free, request) + 1e-6) <= steps(least - 1e-6));
                assert!(first.is_none_or(|(at, _)| worker <= *at), "worker {first:?} comes before {worker}");
            }
        }
        let allocation = self
            .fleet
            .allocation(request, PlacementDecision { worker, gpu_free_milli: free_milli })
            .expect("the picked worker has such GPUs");
        assert_eq!(allocation.gpu_mask.count_ones(), u32::from(request.gpu_count));
        self.fleet.allocate(worker, &allocation);
        self.apply(worker, &allocation, -1);
        self.allocations.push((worker, allocation));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn p01_the_fleet_picks_what_a_linear_search_picks(steps in steps()) {
        let mut harness = Harness::new();
        for step in steps {
            harness.step(step);
        }
        // L1, L2: after all releases every worker has its initial free resources.
        for (at, allocation) in std::mem::take(&mut harness.allocations) {
            harness.fleet.release(at, &allocation);
            harness.apply(at, &allocation, 1);
        }
        for (at, worker) in harness.worker.iter().enumerate() {
            let Some(worker) = worker else { continue };
            let whole = FreeResources::unallocated(&worker.capacity, worker.free.model);
            assert_eq!(harness.fleet.free(at as u32), &whole);
        }
        harness.fleet.check().unwrap();
    }
}

/// The runs above meet workers that end too soon: none, some of those that fit, and all of them.
#[test]
fn c11_random_runs_reach_every_mix_of_ends() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut counts = [0; 3];
    for _ in 0..100 {
        let mut harness = Harness::new();
        for step in steps().new_tree(&mut runner).unwrap().current() {
            harness.step_unchecked(step);
        }
        counts.iter_mut().zip(harness.counts).for_each(|(sum, more)| *sum += more);
    }
    assert!(counts.iter().all(|&counts| counts > 20), "{counts:?}");
}

/// Pick of a claim: requests without GPUs take workers with GPUs only when no other fits.
fn pick_sparing_gpus(
    fleet: &FleetIndex,
    request: &ResourceRequest,
    strategy: FitStrategy,
    fgd: &mut FragmentationScorer,
) -> Option<PlacementDecision> {
    let without =
        (request.gpu_count == 0).then(|| ResourceRequest { models: [NO_MODEL][..].into(), ..request.clone() });
    let spared = without.and_then(|without| fleet.pick(&without, strategy, fgd));
    spared.or_else(|| fleet.pick(request, strategy, fgd))
}

fn fleet(workers: &[(u64, u64, u32)]) -> FleetIndex {
    let mut fleet = FleetIndex::default();
    for (at, &(cpu_milli, slots, count)) in (0..).zip(workers) {
        let gpu = (count > 0).then(|| GpuCapacity { model: "A10".into(), count });
        fleet.insert(at, &WorkerCapacity { cpu_milli, memory_bytes: 0, slots, gpu });
    }
    fleet
}

fn allocate_on(fleet: &mut FleetIndex, request: &ResourceRequest, strategy: FitStrategy) -> Option<u32> {
    let pick = pick_sparing_gpus(fleet, request, strategy, &mut FragmentationScorer::with_fixed_mix(mix()))?;
    let allocation = fleet.allocation(request, pick)?;
    fleet.allocate(pick.worker, &allocation);
    Some(pick.worker)
}

#[test]
fn p03_equal_requests_fill_workers_exactly_and_tiny_ones_pack_onto_one() {
    let slot = ResourceRequest { slots: 1, ..ResourceRequest::default() };
    let mut first = fleet(&[(0, 1_000, 0)]);
    let placed = std::iter::from_fn(|| allocate_on(&mut first, &slot, FitStrategy::BestFit)).count();
    assert_eq!(placed, 1_000);
    let mut second = fleet(&[(1_000, 0, 0), (1_000, 0, 0)]);
    let core = ResourceRequest { cpu_milli: 1_000, ..ResourceRequest::default() };
    assert_eq!([0; 3].map(|_: i32| allocate_on(&mut second, &core, FitStrategy::BestFit)), [Some(0), Some(1), None]);
    let mut many = fleet(&[(64_000, 0, 0); 10]);
    let tiny = ResourceRequest { cpu_milli: 500, ..ResourceRequest::default() };
    let used: std::collections::BTreeSet<u32> =
        (0..70).map(|_| allocate_on(&mut many, &tiny, FitStrategy::BestFit).unwrap()).collect();
    assert_eq!(used.len(), 1);
    let mut many = fleet(&[(64_000, 0, 0); 10]);
    let used: std::collections::BTreeSet<u32> =
        (0..10).map(|_| allocate_on(&mut many, &tiny, FitStrategy::Spread).unwrap()).collect();
    assert_eq!(used.len(), 10, "spread picks another worker each time");
}

#[test]
fn p02_requests_without_gpus_spare_workers_with_gpus_while_others_fit() {
    let mut fleet = fleet(&[(2_000, 0, 1), (4_000, 0, 0)]);
    let request = ResourceRequest { cpu_milli: 2_000, ..ResourceRequest::default() };
    for strategy in [FitStrategy::BestFit, FitStrategy::Spread, FitStrategy::Fgd] {
        let spared =
            pick_sparing_gpus(&fleet, &request, strategy, &mut FragmentationScorer::with_fixed_mix(mix())).unwrap();
        assert_eq!(spared.worker, 1, "{strategy:?}");
    }
    let fitted = fleet.pick(&request, FitStrategy::BestFit, &mut FragmentationScorer::default()).unwrap();
    assert_eq!(fitted.worker, 1, "a GPU weighs as much as 16 cores");
    assert_eq!(
        [0; 4].map(|_: i32| allocate_on(&mut fleet, &request, FitStrategy::BestFit)),
        [Some(1), Some(1), Some(0), None]
    );
}

#[test]
fn w07_a_worker_without_reported_capacity_fits_no_request_for_it() {
    let mut fleet = fleet(&[(0, 0, 0)]);
    for request in [
        ResourceRequest { cpu_milli: 1, ..ResourceRequest::default() },
        ResourceRequest { memory_bytes: 1, ..ResourceRequest::default() },
        ResourceRequest { slots: 1, ..ResourceRequest::default() },
        ResourceRequest { gpu_count: 1, gpu_milli: 1, ..ResourceRequest::default() },
    ] {
        assert_eq!(allocate_on(&mut fleet, &request, FitStrategy::BestFit), None);
    }
    assert_eq!(allocate_on(&mut fleet, &ResourceRequest::default(), FitStrategy::BestFit), Some(0));
}

#[test]
fn a_fraction_takes_the_gpu_that_leaves_the_least_fragmented() {
    // The example of `fragmentation.rs`.
    let half = |gpu_milli| RequestShape { cpu_milli: 0, gpu_milli, gpu_count: 1, models: Default::default() };
    let mut fgd = FragmentationScorer::with_fixed_mix(vec![(half(500), 0.5), (half(300), 0.5)]);
    let mut fleet = fleet(&[(8_000, 0, 2)]);
    let allocation = ResourceAllocation { gpu_milli: 600, gpu_mask: 1, ..ResourceAllocation::default() };
    fleet.allocate(0, &allocation);
    assert_eq!(fleet.gpus(0), [400, 1_000]);
    let request = ResourceRequest { gpu_count: 1, gpu_milli: 300, ..ResourceRequest::default() };
    let pick = pick_sparing_gpus(&fleet, &request, FitStrategy::Fgd, &mut fgd).unwrap();
    assert_eq!(fleet.allocation(&request, pick).unwrap().gpu_mask, 0b01);
}

#[test]
fn the_typical_mix_covers_95_per_cent_of_the_requests() {
    let shape = |cpu_milli| RequestShape { cpu_milli, gpu_milli: 0, gpu_count: 0, models: Default::default() };
    let (first, second, third) = (shape(1), shape(2), shape(3));
    let found = most_frequent([(&first, 4), (&second, 90), (&third, 6)]);
    assert_eq!(found, [(second, 90.0 / 96.0), (third, 6.0 / 96.0)]);
    assert_eq!(most_frequent([]), []);
}

#[test]
fn a_learned_mix_forgets_shapes_that_are_no_longer_requested() {
    let allocation = ResourceRequest { cpu_milli: 1_000, gpu_count: 1, gpu_milli: 500, ..ResourceRequest::default() };
    let whole = ResourceRequest { gpu_milli: GPU_MILLI, ..allocation.clone() };
    let mut fgd = FragmentationScorer::with_learned_mix();
    let mut fleet = fleet(&[(64_000, 0, 8), (64_000, 0, 8)]);
    fleet.allocate(1, &ResourceAllocation { gpu_milli: 400, gpu_mask: 1, ..ResourceAllocation::default() });
    let request = ResourceRequest { cpu_milli: 0, gpu_count: 1, gpu_milli: 200, ..ResourceRequest::default() };
    let pick =
        |fgd: &mut FragmentationScorer| pick_sparing_gpus(&fleet, &request, FitStrategy::Fgd, fgd).unwrap().worker;
    // While halves are typical, the 600 free thousandths of a GPU must not become 400.
    (0..30_000).for_each(|_| fgd.record_request(&allocation));
    assert_eq!(pick(&mut fgd), 0);
    // When only whole GPUs are, they are of no other use.
    (0..5_000).for_each(|_| fgd.record_request(&whole));
    assert_eq!(pick(&mut fgd), 1);
}

/// Amounts of which hardly two are equal, so that the index grows several levels and shrinks again.
fn fine() -> impl Strategy<Value = (u64, u64, u32)> {
    (0..64_000_u64, 0..64_u64, prop::sample::select(vec![0_u32, 0, 0, 1, 2]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn p01_an_index_of_several_levels_finds_the_best_of_many_distinct_vectors(
        workers in prop::collection::vec(fine(), 600..1_200),
        steps in prop::collection::vec((fine(), any::<bool>(), any::<prop::sample::Index>()), 300),
        leaving in any::<u64>(),
    ) {
        let mut harness = Harness::new();
        let capacity = |(cpu_milli, slots, count): (u64, u64, u32)| {
            let gpu = (count > 0).then(|| GpuCapacity { model: MODELS[0].into(), count });
            WorkerCapacity { cpu_milli, memory_bytes: (64_000 - cpu_milli) << 22, slots, gpu }
        };
        for worker in workers {
            harness.add(capacity(worker));
        }
        prop_assert!(harness.fleet.distinct_free() > 256, "three levels of sixteen");
        for ((cpu_milli, slots, gpus), spread, nth) in steps {
            let gpu_milli = if gpus == 0 { 0 } else { GPU_MILLI };
            let request = ResourceRequest { cpu_milli, slots, gpu_count: gpus as u16, gpu_milli, ..ResourceRequest::default() };
            harness.allocate(&request, if spread { FitStrategy::Spread } else { FitStrategy::BestFit });
            if nth.index(3) == 0 && !harness.allocations.is_empty() {
                harness.step_unchecked(Step::Release(nth.index(harness.allocations.len())));
            }
        }
        harness.fleet.check().unwrap();
        // All but a few leave, and levels with them.
        for at in 0..harness.worker.len() {
            if (leaving.wrapping_mul(at as u64 + 1) >> 7) % 40 != 0 {
                harness.step_unchecked(Step::Remove(at));
            }
            if at % 100 == 0 {
                harness.allocate(&ResourceRequest { cpu_milli: 500, ..ResourceRequest::default() }, FitStrategy::BestFit);
            }
        }
        harness.fleet.check().unwrap();
        harness.allocate(&ResourceRequest::default(), FitStrategy::BestFit);
        harness.allocate(&ResourceRequest::default(), FitStrategy::Spread);
    }
}
