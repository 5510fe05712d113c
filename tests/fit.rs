//! Placement against a naive oracle: random fleets, random claims taken and given back, workers that come, go and are
//! withheld; after each step the fleet picks what a look at every worker would pick.

use hotpool::engine::placement::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, FreeResources, GPU_MILLI, NO_MODEL, PlacementDecision, RequestShape,
    ResourceAllocation, ResourceRequest, most_frequent,
};
use hotpool::model::{GpuCapacity, WorkerCapacity};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

const MODELS: [&str; 3] = ["A10", "T4", "V100"];

/// A worker as the oracle knows it.
#[derive(Debug, Clone)]
struct Known {
    capacity: WorkerCapacity,
    room: FreeResources,
    cards: Vec<u16>,
    offered: bool,
    ends_ms: Option<u64>,
}

#[derive(Debug, Clone)]
enum Step {
    Enter(WorkerCapacity),
    End(usize, Option<u64>),
    Take(ResourceRequest, FitStrategy),
    Give(usize),
    Withhold(usize),
    Offer(usize),
    Leave(usize),
}

fn capacity() -> impl Strategy<Value = WorkerCapacity> {
    let gpu = proptest::option::weighted(0.6, (0..MODELS.len(), prop::sample::select(vec![1_u32, 2, 4, 8])));
    // Few distinct amounts, so that workers often stand equal.
    (0..4_u64, 0..4_u64, 0..3_u64, gpu).prop_map(|(cpu, memory, slots, gpu)| WorkerCapacity {
        cpu_milli: cpu * 8_000,
        memory_bytes: memory << 34,
        slots: slots * 4,
        gpu: gpu.map(|(model, count)| GpuCapacity { model: MODELS[model].into(), count }),
    })
}

fn need() -> impl Strategy<Value = ResourceRequest> {
    let cards = prop_oneof![
        2 => Just((0, 0)),
        3 => prop::sample::select(vec![1_u16, 250, 300, 500, 750, 999]).prop_map(|milli| (1, milli)),
        2 => prop::sample::select(vec![1_u16, 2, 4, 8]).prop_map(|count| (count, GPU_MILLI)),
    ];
    let models = prop_oneof![3 => Just(vec![]), 1 => Just(vec![1]), 1 => Just(vec![3, 2])];
    let until_ms = prop_oneof![2 => Just(0), 1 => 0..9_000_u64, 1 => Just(100_000)];
    (0..5_u64, 0..4_u64, 0..3_u64, cards, models, until_ms).prop_map(|(cpu, memory, slots, cards, models, until_ms)| {
        ResourceRequest {
            cpu_milli: cpu * 2_000,
            memory_bytes: memory << 32,
            slots,
            gpu_count: cards.0,
            gpu_milli: cards.1,
            models: if cards.0 == 0 { vec![].into() } else { models.into() },
            until_ms,
        }
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let placement = prop::sample::select(vec![FitStrategy::BestFit, FitStrategy::Spread, FitStrategy::Fgd]);
    let step = prop_oneof![
        3 => capacity().prop_map(Step::Enter),
        // Near ends, of which some differ by less than a bound of the index tells, and far ones.
        8 => (any::<usize>(), prop::option::weighted(0.9, prop_oneof![3 => 1..9_000_u64, 1 => 90_000..110_000_u64]))
            .prop_map(|(nth, ends_ms)| Step::End(nth, ends_ms)),
        8 => (need(), placement).prop_map(|(need, placement)| Step::Take(need, placement)),
        4 => any::<usize>().prop_map(Step::Give),
        1 => any::<usize>().prop_map(Step::Withhold),
        1 => any::<usize>().prop_map(Step::Offer),
        1 => any::<usize>().prop_map(Step::Leave),
    ];
    (prop::collection::vec(capacity(), 1..40), prop::collection::vec(step, 1..120))
        .prop_map(|(first, steps)| first.into_iter().map(Step::Enter).chain(steps).collect())
}

/// The mix of every run: shares and whole cards, one kind that wants a model, one that wants none at all.
fn mix() -> Vec<(RequestShape, f64)> {
    let kind = |cpu_milli, cards, card_milli, models: &[u16]| RequestShape {
        cpu_milli,
        gpu_milli: card_milli,
        gpu_count: cards,
        models: models.into(),
    };
    vec![
        (kind(4_000, 1, 500, &[]), 0.4),
        (kind(2_000, 1, 300, &[2]), 0.2),
        (kind(8_000, 2, 1_000, &[]), 0.3),
        (kind(2_000, 0, 0, &[]), 0.1),
    ]
}

/// What is of no use, straight from the definition.
fn useless(room: &FreeResources) -> f64 {
    let idle = f64::from(room.free_gpu_milli());
    let (mut lost, mut cpu, mut milli) = (0.0, 0.0, 0.0);
    for (kind, share) in mix() {
        let model = kind.models.is_empty() || kind.models.contains(&room.model);
        let fitting: Vec<u16> = room.gpus.iter().copied().filter(|&milli| milli >= kind.gpu_milli).collect();
        let usable = if kind.gpu_count > 0
            && model
            && room.cpu_milli >= kind.cpu_milli
            && fitting.len() >= kind.gpu_count as usize
        {
            fitting.iter().map(|&milli| f64::from(milli)).sum()
        } else {
            0.0
        };
        lost += share * (idle - usable);
        if kind.gpu_count > 0 && model {
            cpu += share * kind.cpu_milli as f64;
            milli += share * f64::from(kind.gpu_count) * f64::from(kind.gpu_milli);
        }
    }
    lost + (idle - room.cpu_milli as f64 * milli / cpu / 0.8).max(0.0)
}

fn growth(room: &FreeResources, need: &ResourceRequest) -> f64 {
    let froms: Vec<u16> = match (need.gpu_count, need.gpu_milli) {
        (1, ..GPU_MILLI) => room.gpus.iter().copied().filter(|&milli| milli >= need.gpu_milli).collect(),
        _ => vec![GPU_MILLI],
    };
    froms
        .into_iter()
        .map(|from| useless(&room.after_allocating(need, from)) - useless(room))
        .fold(f64::INFINITY, f64::min)
}

struct World {
    fleet: FleetIndex,
    fgd: FragmentationScorer,
    known: Vec<Option<Known>>,
    held: Vec<(u32, ResourceAllocation)>,
    /// Needs met while no worker that has room ends too soon, while some do, and not met because all do.
    seen: [u32; 3],
}

impl World {
    fn new() -> Self {
        let mut fleet = FleetIndex::default();
        MODELS.iter().for_each(|model| _ = fleet.model(model));
        Self {
            fleet,
            fgd: FragmentationScorer::with_fixed_mix(mix()),
            known: Vec::new(),
            held: Vec::new(),
            seen: [0; 3],
        }
    }

    fn enter(&mut self, capacity: WorkerCapacity) {
        let at = self.known.len();
        self.fleet.insert(at as u32, &capacity);
        let model = capacity.gpu.as_ref().map_or(0, |gpu| self.fleet.known_model(&gpu.model).unwrap());
        let room = FreeResources::unallocated(&capacity, model);
        let cards = room.gpus.to_vec();
        self.known.push(Some(Known { capacity, room, cards, offered: true, ends_ms: None }));
    }

    fn step(&mut self, step: Step) {
        self.step_unchecked(step);
        self.fleet.check().unwrap();
        for (at, known) in self.known.iter().enumerate() {
            let Some(known) = known else { continue };
            assert_eq!((self.fleet.free(at as u32), self.fleet.gpus(at as u32)), (&known.room, &known.cards[..]));
        }
    }

    fn step_unchecked(&mut self, step: Step) {
        match step {
            Step::Enter(capacity) => self.enter(capacity),
            Step::Take(need, placement) => self.take(&need, placement),
            Step::End(nth, ends_ms) => self.each(nth, |fleet, at, known| {
                fleet.set_ends_ms(at, ends_ms);
                known.ends_ms = ends_ms;
            }),
            Step::Give(nth) if !self.held.is_empty() => {
                let (at, share) = self.held.swap_remove(nth % self.held.len());
                self.fleet.release(at, &share);
                self.apply(at, &share, 1);
            }
            Step::Withhold(nth) => self.each(nth, |fleet, at, known| {
                fleet.withdraw(at);
                known.offered = false;
            }),
            Step::Offer(nth) => self.each(nth, |fleet, at, known| {
                fleet.offer(at);
                known.offered = true;
            }),
            Step::Leave(nth) => {
                let at = nth % self.known.len();
                if self.known[at].take().is_some() {
                    self.fleet.remove(at as u32);
                    self.fleet.set_ends_ms(at as u32, None);
                    self.held.retain(|(worker, _)| *worker != at as u32);
                }
            }
            Step::Give(_) => {}
        }
    }

    fn each(&mut self, nth: usize, change: impl Fn(&mut FleetIndex, u32, &mut Known)) {
        let at = nth % self.known.len();
        if let Some(known) = &mut self.known[at] {
            change(&mut self.fleet, at as u32, known);
        }
    }

    fn apply(&mut self, at: u32, share: &ResourceAllocation, sign: i64) {
        let known = self.known[at as usize].as_mut().unwrap();
        let add = |have: &mut u64, amount: u64| *have = have.checked_add_signed(sign * amount as i64).expect("L1");
        add(&mut known.room.cpu_milli, share.cpu_milli);
        add(&mut known.room.memory_bytes, share.memory_bytes);
        add(&mut known.room.slots, share.slots);
        for card in (0..64).filter(|card| share.gpu_mask >> card & 1 == 1) {
            let milli = i64::from(known.cards[card]) + sign * i64::from(share.gpu_milli);
            assert!((0..=1_000).contains(&milli), "L1: card {card} of {at} has {milli}");
            known.cards[card] = milli as u16;
        }
        known.room.gpus = known.cards.iter().copied().collect();
        known.room.gpus.sort_unstable_by(|one, two| two.cmp(one));
    }

    /// Every worker that may be taken, by ordinal.
    fn fitting(&self, need: &ResourceRequest) -> Vec<(u32, &FreeResources)> {
        let model = |room: &FreeResources| need.models.is_empty() || need.models.contains(&room.model);
        let offered = self.known.iter().enumerate().filter_map(|(at, known)| Some((at as u32, known.as_ref()?)));
        let fitting: Vec<(u32, &FreeResources)> = offered
            .filter(|(_, known)| known.offered && known.room.fits(need) && model(&known.room))
            .filter(|(_, known)| known.ends_ms.is_none_or(|ends_ms| ends_ms > need.until_ms))
            .map(|(at, known)| (at, &known.room))
            .collect();
        let plain: Vec<_> = fitting.iter().copied().filter(|(_, room)| room.model == 0).collect();
        if need.gpu_count == 0 && !plain.is_empty() { plain } else { fitting }
    }

    fn take(&mut self, need: &ResourceRequest, placement: FitStrategy) {
        let endless = self.fitting(&ResourceRequest { until_ms: 0, ..need.clone() }).len();
        match (self.fitting(need).len(), endless) {
            (0, 1..) => self.seen[2] += 1,
            (some, all) if some < all => self.seen[1] += 1,
            (_, all) => self.seen[0] += u32::from(all > 0),
        }
        let Some(PlacementDecision { worker, gpu_free_milli: from, .. }) =
            sparing(&self.fleet, need, placement, &mut self.fgd)
        else {
            assert!(self.fitting(need).is_empty(), "N1: {need:?} fits and was refused");
            return;
        };
        let fitting = self.fitting(need);
        let room = fitting.iter().find(|(at, _)| *at == worker).expect("what was picked may be taken").1;
        let key = |&(at, room): &(u32, &FreeResources)| (room.sort_key(room.fingerprint()), at);
        match placement {
            FitStrategy::BestFit => assert_eq!(worker, fitting.iter().min_by_key(|each| key(each)).unwrap().0),
            FitStrategy::Spread => {
                let top = fitting.iter().max_by_key(|each| each.1.sort_key(each.1.fingerprint())).unwrap().1;
                assert_eq!(worker, fitting.iter().find(|(_, room)| *room == top).unwrap().0);
            }
            // Sums of floats: what differs by less than this may fall on either side of a step.
            FitStrategy::Fgd => {
                let steps = |growth: f64| (growth / 160.0).floor();
                let least = fitting.iter().map(|(_, room)| growth(room, need)).fold(f64::INFINITY, f64::min);
                let taken = growth(room, need);
                assert!(steps(taken - 1e-6) <= steps(least + 1e-6), "grows by {taken}, could grow by {least}");
                let first = fitting.iter().find(|(_, room)| steps(growth(room, need) + 1e-6) <= steps(least - 1e-6));
                assert!(first.is_none_or(|(at, _)| worker <= *at), "worker {first:?} comes before {worker}");
            }
        }
        let share = self
            .fleet
            .allocation(need, PlacementDecision { worker, gpu_free_milli: from })
            .expect("there are such cards");
        assert_eq!(share.gpu_mask.count_ones(), u32::from(need.gpu_count));
        self.fleet.allocate(worker, &share);
        self.apply(worker, &share, -1);
        self.held.push((worker, share));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn p01_the_fleet_picks_what_a_look_at_every_worker_picks(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        // L1, L2: with all given back every worker is as it came.
        for (at, share) in std::mem::take(&mut world.held) {
            world.fleet.release(at, &share);
            world.apply(at, &share, 1);
        }
        for (at, known) in world.known.iter().enumerate() {
            let Some(known) = known else { continue };
            let whole = FreeResources::unallocated(&known.capacity, known.room.model);
            assert_eq!(world.fleet.free(at as u32), &whole);
        }
        world.fleet.check().unwrap();
    }
}

/// The runs above meet workers that end too soon: none, some of those that have room, and all of them.
#[test]
fn c11_random_runs_reach_every_mix_of_ends() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = [0; 3];
    for _ in 0..100 {
        let mut world = World::new();
        for step in steps().new_tree(&mut runner).unwrap().current() {
            world.step_unchecked(step);
        }
        seen.iter_mut().zip(world.seen).for_each(|(sum, more)| *sum += more);
    }
    assert!(seen.iter().all(|&seen| seen > 20), "{seen:?}");
}

/// As a claim goes: work without cards takes workers with cards only when no other fits.
fn sparing(
    fleet: &FleetIndex,
    need: &ResourceRequest,
    placement: FitStrategy,
    fgd: &mut FragmentationScorer,
) -> Option<PlacementDecision> {
    let without = (need.gpu_count == 0).then(|| ResourceRequest { models: [NO_MODEL][..].into(), ..need.clone() });
    let spared = without.and_then(|without| fleet.pick(&without, placement, fgd));
    spared.or_else(|| fleet.pick(need, placement, fgd))
}

fn fleet(workers: &[(u64, u64, u32)]) -> FleetIndex {
    let mut fleet = FleetIndex::default();
    for (at, &(cpu_milli, slots, count)) in (0..).zip(workers) {
        let gpu = (count > 0).then(|| GpuCapacity { model: "A10".into(), count });
        fleet.insert(at, &WorkerCapacity { cpu_milli, memory_bytes: 0, slots, gpu });
    }
    fleet
}

fn place(fleet: &mut FleetIndex, need: &ResourceRequest, placement: FitStrategy) -> Option<u32> {
    let pick = sparing(fleet, need, placement, &mut FragmentationScorer::with_fixed_mix(mix()))?;
    let share = fleet.allocation(need, pick)?;
    fleet.allocate(pick.worker, &share);
    Some(pick.worker)
}

#[test]
fn p03_equal_requests_fill_workers_exactly_and_tiny_ones_pack_onto_one() {
    let slot = ResourceRequest { slots: 1, ..ResourceRequest::default() };
    let mut one = fleet(&[(0, 1_000, 0)]);
    let placed = std::iter::from_fn(|| place(&mut one, &slot, FitStrategy::BestFit)).count();
    assert_eq!(placed, 1_000);
    let mut two = fleet(&[(1_000, 0, 0), (1_000, 0, 0)]);
    let core = ResourceRequest { cpu_milli: 1_000, ..ResourceRequest::default() };
    assert_eq!([0; 3].map(|_: i32| place(&mut two, &core, FitStrategy::BestFit)), [Some(0), Some(1), None]);
    let mut many = fleet(&[(64_000, 0, 0); 10]);
    let tiny = ResourceRequest { cpu_milli: 500, ..ResourceRequest::default() };
    let used: std::collections::BTreeSet<u32> =
        (0..70).map(|_| place(&mut many, &tiny, FitStrategy::BestFit).unwrap()).collect();
    assert_eq!(used.len(), 1);
    let mut many = fleet(&[(64_000, 0, 0); 10]);
    let used: std::collections::BTreeSet<u32> =
        (0..10).map(|_| place(&mut many, &tiny, FitStrategy::Spread).unwrap()).collect();
    assert_eq!(used.len(), 10, "spread takes another worker each time");
}

#[test]
fn p02_work_without_cards_leaves_workers_with_cards_alone_while_others_fit() {
    let mut fleet = fleet(&[(2_000, 0, 1), (4_000, 0, 0)]);
    let need = ResourceRequest { cpu_milli: 2_000, ..ResourceRequest::default() };
    for placement in [FitStrategy::BestFit, FitStrategy::Spread, FitStrategy::Fgd] {
        let spared = sparing(&fleet, &need, placement, &mut FragmentationScorer::with_fixed_mix(mix())).unwrap();
        assert_eq!(spared.worker, 1, "{placement:?}");
    }
    let fitted = fleet.pick(&need, FitStrategy::BestFit, &mut FragmentationScorer::default()).unwrap();
    assert_eq!(fitted.worker, 1, "the weight of a card is that of 16 cores");
    assert_eq!([0; 4].map(|_: i32| place(&mut fleet, &need, FitStrategy::BestFit)), [Some(1), Some(1), Some(0), None]);
}

#[test]
fn w07_a_worker_that_reported_nothing_takes_nothing_that_needs_it() {
    let mut fleet = fleet(&[(0, 0, 0)]);
    for need in [
        ResourceRequest { cpu_milli: 1, ..ResourceRequest::default() },
        ResourceRequest { memory_bytes: 1, ..ResourceRequest::default() },
        ResourceRequest { slots: 1, ..ResourceRequest::default() },
        ResourceRequest { gpu_count: 1, gpu_milli: 1, ..ResourceRequest::default() },
    ] {
        assert_eq!(place(&mut fleet, &need, FitStrategy::BestFit), None);
    }
    assert_eq!(place(&mut fleet, &ResourceRequest::default(), FitStrategy::BestFit), Some(0));
}

#[test]
fn a_share_takes_the_card_that_leaves_the_least_useless() {
    // The example of `fgd.rs`.
    let half =
        |card_milli| RequestShape { cpu_milli: 0, gpu_milli: card_milli, gpu_count: 1, models: Default::default() };
    let mut fgd = FragmentationScorer::with_fixed_mix(vec![(half(500), 0.5), (half(300), 0.5)]);
    let mut fleet = fleet(&[(8_000, 0, 2)]);
    let share = ResourceAllocation { gpu_milli: 600, gpu_mask: 1, ..ResourceAllocation::default() };
    fleet.allocate(0, &share);
    assert_eq!(fleet.gpus(0), [400, 1_000]);
    let need = ResourceRequest { gpu_count: 1, gpu_milli: 300, ..ResourceRequest::default() };
    let pick = sparing(&fleet, &need, FitStrategy::Fgd, &mut fgd).unwrap();
    assert_eq!(fleet.allocation(&need, pick).unwrap().gpu_mask, 0b01);
}

#[test]
fn the_typical_mix_is_what_makes_up_95_per_cent() {
    let kind = |cpu_milli| RequestShape { cpu_milli, gpu_milli: 0, gpu_count: 0, models: Default::default() };
    let (one, two, three) = (kind(1), kind(2), kind(3));
    let found = most_frequent([(&one, 4), (&two, 90), (&three, 6)]);
    assert_eq!(found, [(two, 90.0 / 96.0), (three, 6.0 / 96.0)]);
    assert_eq!(most_frequent([]), []);
}

#[test]
fn a_learned_mix_forgets_what_is_not_asked_any_more() {
    let share = ResourceRequest { cpu_milli: 1_000, gpu_count: 1, gpu_milli: 500, ..ResourceRequest::default() };
    let whole = ResourceRequest { gpu_milli: GPU_MILLI, ..share.clone() };
    let mut fgd = FragmentationScorer::with_learned_mix();
    let mut fleet = fleet(&[(64_000, 0, 8), (64_000, 0, 8)]);
    fleet.allocate(1, &ResourceAllocation { gpu_milli: 400, gpu_mask: 1, ..ResourceAllocation::default() });
    let need = ResourceRequest { cpu_milli: 0, gpu_count: 1, gpu_milli: 200, ..ResourceRequest::default() };
    let pick = |fgd: &mut FragmentationScorer| sparing(&fleet, &need, FitStrategy::Fgd, fgd).unwrap().worker;
    // While halves are usual, the 600 that are left of a card must not become 400.
    (0..30_000).for_each(|_| fgd.record_request(&share));
    assert_eq!(pick(&mut fgd), 0);
    // When only whole cards are, they are of no other use.
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
    fn p01_an_index_of_several_levels_finds_the_best_of_many_distinct_rooms(
        workers in prop::collection::vec(fine(), 600..1_200),
        steps in prop::collection::vec((fine(), any::<bool>(), any::<prop::sample::Index>()), 300),
        leaving in any::<u64>(),
    ) {
        let mut world = World::new();
        let capacity = |(cpu_milli, slots, count): (u64, u64, u32)| {
            let gpu = (count > 0).then(|| GpuCapacity { model: MODELS[0].into(), count });
            WorkerCapacity { cpu_milli, memory_bytes: (64_000 - cpu_milli) << 22, slots, gpu }
        };
        for worker in workers {
            world.enter(capacity(worker));
        }
        prop_assert!(world.fleet.distinct_free() > 256, "three levels of sixteen");
        for ((cpu_milli, slots, cards), spread, nth) in steps {
            let card_milli = if cards == 0 { 0 } else { GPU_MILLI };
            let need = ResourceRequest { cpu_milli, slots, gpu_count: cards as u16, gpu_milli: card_milli, ..ResourceRequest::default() };
            world.take(&need, if spread { FitStrategy::Spread } else { FitStrategy::BestFit });
            if nth.index(3) == 0 && !world.held.is_empty() {
                world.step_unchecked(Step::Give(nth.index(world.held.len())));
            }
        }
        world.fleet.check().unwrap();
        // All but a few leave: levels go with them.
        for at in 0..world.known.len() {
            if (leaving.wrapping_mul(at as u64 + 1) >> 7) % 40 != 0 {
                world.step_unchecked(Step::Leave(at));
            }
            if at % 100 == 0 {
                world.take(&ResourceRequest { cpu_milli: 500, ..ResourceRequest::default() }, FitStrategy::BestFit);
            }
        }
        world.fleet.check().unwrap();
        world.take(&ResourceRequest::default(), FitStrategy::BestFit);
        world.take(&ResourceRequest::default(), FitStrategy::Spread);
    }
}
