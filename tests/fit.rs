//! Placement against a naive oracle: random fleets, random claims taken and given back, workers that come, go and are
//! withheld; after each step the fleet picks what a look at every worker would pick.

use hotpool::engine::placement::bin_packing::{
    CARD_MILLI, Fgd, Fleet, Kind, NO_MODEL, Need, Pick, Placement, Room, Share, typical,
};
use hotpool::model::{Capacity, GpuCapacity};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

const MODELS: [&str; 3] = ["A10", "T4", "V100"];

/// A worker as the oracle knows it.
#[derive(Debug, Clone)]
struct Known {
    capacity: Capacity,
    room: Room,
    cards: Vec<u16>,
    offered: bool,
    ends_ms: Option<u64>,
}

#[derive(Debug, Clone)]
enum Step {
    Enter(Capacity),
    End(usize, Option<u64>),
    Take(Need, Placement),
    Give(usize),
    Withhold(usize),
    Offer(usize),
    Leave(usize),
}

fn capacity() -> impl Strategy<Value = Capacity> {
    let gpu = proptest::option::weighted(0.6, (0..MODELS.len(), prop::sample::select(vec![1_u32, 2, 4, 8])));
    // Few distinct amounts, so that workers often stand equal.
    (0..4_u64, 0..4_u64, 0..3_u64, gpu).prop_map(|(cpu, memory, slots, gpu)| Capacity {
        cpu_milli: cpu * 8_000,
        memory_bytes: memory << 34,
        slots: slots * 4,
        gpu: gpu.map(|(model, count)| GpuCapacity { model: MODELS[model].into(), count }),
    })
}

fn need() -> impl Strategy<Value = Need> {
    let cards = prop_oneof![
        2 => Just((0, 0)),
        3 => prop::sample::select(vec![1_u16, 250, 300, 500, 750, 999]).prop_map(|milli| (1, milli)),
        2 => prop::sample::select(vec![1_u16, 2, 4, 8]).prop_map(|count| (count, CARD_MILLI)),
    ];
    let models = prop_oneof![3 => Just(vec![]), 1 => Just(vec![1]), 1 => Just(vec![3, 2])];
    let until_ms = prop_oneof![2 => Just(0), 1 => 0..9_000_u64, 1 => Just(100_000)];
    (0..5_u64, 0..4_u64, 0..3_u64, cards, models, until_ms).prop_map(|(cpu, memory, slots, cards, models, until_ms)| {
        Need {
            cpu_milli: cpu * 2_000,
            memory_bytes: memory << 32,
            slots,
            cards: cards.0,
            card_milli: cards.1,
            models: if cards.0 == 0 { vec![].into() } else { models.into() },
            until_ms,
        }
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let placement = prop::sample::select(vec![Placement::BestFit, Placement::Spread, Placement::Fgd]);
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
fn mix() -> Vec<(Kind, f64)> {
    let kind =
        |cpu_milli, cards, card_milli, models: &[u16]| Kind { cpu_milli, card_milli, cards, models: models.into() };
    vec![
        (kind(4_000, 1, 500, &[]), 0.4),
        (kind(2_000, 1, 300, &[2]), 0.2),
        (kind(8_000, 2, 1_000, &[]), 0.3),
        (kind(2_000, 0, 0, &[]), 0.1),
    ]
}

/// What is of no use, straight from the definition.
fn useless(room: &Room) -> f64 {
    let idle = f64::from(room.cards_milli());
    let (mut lost, mut cpu, mut milli) = (0.0, 0.0, 0.0);
    for (kind, share) in mix() {
        let model = kind.models.is_empty() || kind.models.contains(&room.model);
        let fitting: Vec<u16> = room.cards.iter().copied().filter(|&milli| milli >= kind.card_milli).collect();
        let usable =
            if kind.cards > 0 && model && room.cpu_milli >= kind.cpu_milli && fitting.len() >= kind.cards as usize {
                fitting.iter().map(|&milli| f64::from(milli)).sum()
            } else {
                0.0
            };
        lost += share * (idle - usable);
        if kind.cards > 0 && model {
            cpu += share * kind.cpu_milli as f64;
            milli += share * f64::from(kind.cards) * f64::from(kind.card_milli);
        }
    }
    lost + (idle - room.cpu_milli as f64 * milli / cpu / 0.8).max(0.0)
}

fn growth(room: &Room, need: &Need) -> f64 {
    let froms: Vec<u16> = match (need.cards, need.card_milli) {
        (1, ..CARD_MILLI) => room.cards.iter().copied().filter(|&milli| milli >= need.card_milli).collect(),
        _ => vec![CARD_MILLI],
    };
    froms.into_iter().map(|from| useless(&room.after(need, from)) - useless(room)).fold(f64::INFINITY, f64::min)
}

struct World {
    fleet: Fleet,
    fgd: Fgd,
    known: Vec<Option<Known>>,
    held: Vec<(u32, Share)>,
    /// Needs met while no worker that has room ends too soon, while some do, and not met because all do.
    seen: [u32; 3],
}

impl World {
    fn new() -> Self {
        let mut fleet = Fleet::default();
        MODELS.iter().for_each(|model| _ = fleet.model(model));
        Self { fleet, fgd: Fgd::given(mix()), known: Vec::new(), held: Vec::new(), seen: [0; 3] }
    }

    fn enter(&mut self, capacity: Capacity) {
        let at = self.known.len();
        self.fleet.enter(at as u32, &capacity);
        let model = capacity.gpu.as_ref().map_or(0, |gpu| self.fleet.known_model(&gpu.model).unwrap());
        let room = Room::whole(&capacity, model);
        let cards = room.cards.to_vec();
        self.known.push(Some(Known { capacity, room, cards, offered: true, ends_ms: None }));
    }

    fn step(&mut self, step: Step) {
        self.step_unchecked(step);
        self.fleet.check().unwrap();
        for (at, known) in self.known.iter().enumerate() {
            let Some(known) = known else { continue };
            assert_eq!((self.fleet.room(at as u32), self.fleet.cards(at as u32)), (&known.room, &known.cards[..]));
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
                self.fleet.give(at, &share);
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
                    self.fleet.leave(at as u32);
                    self.fleet.set_ends_ms(at as u32, None);
                    self.held.retain(|(worker, _)| *worker != at as u32);
                }
            }
            Step::Give(_) => {}
        }
    }

    fn each(&mut self, nth: usize, change: impl Fn(&mut Fleet, u32, &mut Known)) {
        let at = nth % self.known.len();
        if let Some(known) = &mut self.known[at] {
            change(&mut self.fleet, at as u32, known);
        }
    }

    fn apply(&mut self, at: u32, share: &Share, sign: i64) {
        let known = self.known[at as usize].as_mut().unwrap();
        let add = |have: &mut u64, amount: u64| *have = have.checked_add_signed(sign * amount as i64).expect("L1");
        add(&mut known.room.cpu_milli, share.cpu_milli);
        add(&mut known.room.memory_bytes, share.memory_bytes);
        add(&mut known.room.slots, share.slots);
        for card in (0..64).filter(|card| share.cards >> card & 1 == 1) {
            let milli = i64::from(known.cards[card]) + sign * i64::from(share.card_milli);
            assert!((0..=1_000).contains(&milli), "L1: card {card} of {at} has {milli}");
            known.cards[card] = milli as u16;
        }
        known.room.cards = known.cards.iter().copied().collect();
        known.room.cards.sort_unstable_by(|one, two| two.cmp(one));
    }

    /// Every worker that may be taken, by ordinal.
    fn fitting(&self, need: &Need) -> Vec<(u32, &Room)> {
        let model = |room: &Room| need.models.is_empty() || need.models.contains(&room.model);
        let offered = self.known.iter().enumerate().filter_map(|(at, known)| Some((at as u32, known.as_ref()?)));
        let fitting: Vec<(u32, &Room)> = offered
            .filter(|(_, known)| known.offered && known.room.fits(need) && model(&known.room))
            .filter(|(_, known)| known.ends_ms.is_none_or(|ends_ms| ends_ms > need.until_ms))
            .map(|(at, known)| (at, &known.room))
            .collect();
        let plain: Vec<_> = fitting.iter().copied().filter(|(_, room)| room.model == 0).collect();
        if need.cards == 0 && !plain.is_empty() { plain } else { fitting }
    }

    fn take(&mut self, need: &Need, placement: Placement) {
        let endless = self.fitting(&Need { until_ms: 0, ..need.clone() }).len();
        match (self.fitting(need).len(), endless) {
            (0, 1..) => self.seen[2] += 1,
            (some, all) if some < all => self.seen[1] += 1,
            (_, all) => self.seen[0] += u32::from(all > 0),
        }
        let Some(Pick { worker, from, .. }) = sparing(&self.fleet, need, placement, &mut self.fgd) else {
            assert!(self.fitting(need).is_empty(), "N1: {need:?} fits and was refused");
            return;
        };
        let fitting = self.fitting(need);
        let room = fitting.iter().find(|(at, _)| *at == worker).expect("what was picked may be taken").1;
        let key = |&(at, room): &(u32, &Room)| (room.rank(room.mark()), at);
        match placement {
            Placement::BestFit => assert_eq!(worker, fitting.iter().min_by_key(|each| key(each)).unwrap().0),
            Placement::Spread => {
                let top = fitting.iter().max_by_key(|each| each.1.rank(each.1.mark())).unwrap().1;
                assert_eq!(worker, fitting.iter().find(|(_, room)| *room == top).unwrap().0);
            }
            // Sums of floats: what differs by less than this may fall on either side of a step.
            Placement::Fgd => {
                let steps = |growth: f64| (growth / 160.0).floor();
                let least = fitting.iter().map(|(_, room)| growth(room, need)).fold(f64::INFINITY, f64::min);
                let taken = growth(room, need);
                assert!(steps(taken - 1e-6) <= steps(least + 1e-6), "grows by {taken}, could grow by {least}");
                let first = fitting.iter().find(|(_, room)| steps(growth(room, need) + 1e-6) <= steps(least - 1e-6));
                assert!(first.is_none_or(|(at, _)| worker <= *at), "worker {first:?} comes before {worker}");
            }
        }
        let share = self.fleet.share(need, Pick { worker, from }).expect("there are such cards");
        assert_eq!(share.cards.count_ones(), u32::from(need.cards));
        self.fleet.take(worker, &share);
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
            world.fleet.give(at, &share);
            world.apply(at, &share, 1);
        }
        for (at, known) in world.known.iter().enumerate() {
            let Some(known) = known else { continue };
            let whole = Room::whole(&known.capacity, known.room.model);
            assert_eq!(world.fleet.room(at as u32), &whole);
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
fn sparing(fleet: &Fleet, need: &Need, placement: Placement, fgd: &mut Fgd) -> Option<Pick> {
    let without = (need.cards == 0).then(|| Need { models: [NO_MODEL][..].into(), ..need.clone() });
    let spared = without.and_then(|without| fleet.pick(&without, placement, fgd));
    spared.or_else(|| fleet.pick(need, placement, fgd))
}

fn fleet(workers: &[(u64, u64, u32)]) -> Fleet {
    let mut fleet = Fleet::default();
    for (at, &(cpu_milli, slots, count)) in (0..).zip(workers) {
        let gpu = (count > 0).then(|| GpuCapacity { model: "A10".into(), count });
        fleet.enter(at, &Capacity { cpu_milli, memory_bytes: 0, slots, gpu });
    }
    fleet
}

fn place(fleet: &mut Fleet, need: &Need, placement: Placement) -> Option<u32> {
    let pick = sparing(fleet, need, placement, &mut Fgd::given(mix()))?;
    let share = fleet.share(need, pick)?;
    fleet.take(pick.worker, &share);
    Some(pick.worker)
}

#[test]
fn p03_equal_requests_fill_workers_exactly_and_tiny_ones_pack_onto_one() {
    let slot = Need { slots: 1, ..Need::default() };
    let mut one = fleet(&[(0, 1_000, 0)]);
    let placed = std::iter::from_fn(|| place(&mut one, &slot, Placement::BestFit)).count();
    assert_eq!(placed, 1_000);
    let mut two = fleet(&[(1_000, 0, 0), (1_000, 0, 0)]);
    let core = Need { cpu_milli: 1_000, ..Need::default() };
    assert_eq!([0; 3].map(|_: i32| place(&mut two, &core, Placement::BestFit)), [Some(0), Some(1), None]);
    let mut many = fleet(&[(64_000, 0, 0); 10]);
    let tiny = Need { cpu_milli: 500, ..Need::default() };
    let used: std::collections::BTreeSet<u32> =
        (0..70).map(|_| place(&mut many, &tiny, Placement::BestFit).unwrap()).collect();
    assert_eq!(used.len(), 1);
    let mut many = fleet(&[(64_000, 0, 0); 10]);
    let used: std::collections::BTreeSet<u32> =
        (0..10).map(|_| place(&mut many, &tiny, Placement::Spread).unwrap()).collect();
    assert_eq!(used.len(), 10, "spread takes another worker each time");
}

#[test]
fn p02_work_without_cards_leaves_workers_with_cards_alone_while_others_fit() {
    let mut fleet = fleet(&[(2_000, 0, 1), (4_000, 0, 0)]);
    let need = Need { cpu_milli: 2_000, ..Need::default() };
    for placement in [Placement::BestFit, Placement::Spread, Placement::Fgd] {
        let spared = sparing(&fleet, &need, placement, &mut Fgd::given(mix())).unwrap();
        assert_eq!(spared.worker, 1, "{placement:?}");
    }
    let fitted = fleet.pick(&need, Placement::BestFit, &mut Fgd::default()).unwrap();
    assert_eq!(fitted.worker, 1, "the weight of a card is that of 16 cores");
    assert_eq!([0; 4].map(|_: i32| place(&mut fleet, &need, Placement::BestFit)), [Some(1), Some(1), Some(0), None]);
}

#[test]
fn w07_a_worker_that_reported_nothing_takes_nothing_that_needs_it() {
    let mut fleet = fleet(&[(0, 0, 0)]);
    for need in [
        Need { cpu_milli: 1, ..Need::default() },
        Need { memory_bytes: 1, ..Need::default() },
        Need { slots: 1, ..Need::default() },
        Need { cards: 1, card_milli: 1, ..Need::default() },
    ] {
        assert_eq!(place(&mut fleet, &need, Placement::BestFit), None);
    }
    assert_eq!(place(&mut fleet, &Need::default(), Placement::BestFit), Some(0));
}

#[test]
fn a_share_takes_the_card_that_leaves_the_least_useless() {
    // The example of `fgd.rs`.
    let half = |card_milli| Kind { cpu_milli: 0, card_milli, cards: 1, models: Default::default() };
    let mut fgd = Fgd::given(vec![(half(500), 0.5), (half(300), 0.5)]);
    let mut fleet = fleet(&[(8_000, 0, 2)]);
    let share = Share { card_milli: 600, cards: 1, ..Share::default() };
    fleet.take(0, &share);
    assert_eq!(fleet.cards(0), [400, 1_000]);
    let need = Need { cards: 1, card_milli: 300, ..Need::default() };
    let pick = sparing(&fleet, &need, Placement::Fgd, &mut fgd).unwrap();
    assert_eq!(fleet.share(&need, pick).unwrap().cards, 0b01);
}

#[test]
fn the_typical_mix_is_what_makes_up_95_per_cent() {
    let kind = |cpu_milli| Kind { cpu_milli, card_milli: 0, cards: 0, models: Default::default() };
    let (one, two, three) = (kind(1), kind(2), kind(3));
    let found = typical([(&one, 4), (&two, 90), (&three, 6)]);
    assert_eq!(found, [(two, 90.0 / 96.0), (three, 6.0 / 96.0)]);
    assert_eq!(typical([]), []);
}

#[test]
fn a_learned_mix_forgets_what_is_not_asked_any_more() {
    let share = Need { cpu_milli: 1_000, cards: 1, card_milli: 500, ..Need::default() };
    let whole = Need { card_milli: CARD_MILLI, ..share.clone() };
    let mut fgd = Fgd::learning();
    let mut fleet = fleet(&[(64_000, 0, 8), (64_000, 0, 8)]);
    fleet.take(1, &Share { card_milli: 400, cards: 1, ..Share::default() });
    let need = Need { cpu_milli: 0, cards: 1, card_milli: 200, ..Need::default() };
    let pick = |fgd: &mut Fgd| sparing(&fleet, &need, Placement::Fgd, fgd).unwrap().worker;
    // While halves are usual, the 600 that are left of a card must not become 400.
    (0..30_000).for_each(|_| fgd.note(&share));
    assert_eq!(pick(&mut fgd), 0);
    // When only whole cards are, they are of no other use.
    (0..5_000).for_each(|_| fgd.note(&whole));
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
            Capacity { cpu_milli, memory_bytes: (64_000 - cpu_milli) << 22, slots, gpu }
        };
        for worker in workers {
            world.enter(capacity(worker));
        }
        prop_assert!(world.fleet.rooms() > 256, "three levels of sixteen");
        for ((cpu_milli, slots, cards), spread, nth) in steps {
            let card_milli = if cards == 0 { 0 } else { CARD_MILLI };
            let need = Need { cpu_milli, slots, cards: cards as u16, card_milli, ..Need::default() };
            world.take(&need, if spread { Placement::Spread } else { Placement::BestFit });
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
                world.take(&Need { cpu_milli: 500, ..Need::default() }, Placement::BestFit);
            }
        }
        world.fleet.check().unwrap();
        world.take(&Need::default(), Placement::BestFit);
        world.take(&Need::default(), Placement::Spread);
    }
}
