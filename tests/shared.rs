//! One shard of a shared pool against a naive oracle: every share that is granted was free, "no room" is said only if no
//! worker has it, nothing leaks, and rows give the same shard back. `PROPTEST_SEED` and the printed steps reproduce a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotpool::engine::{
    Answer, CardFilter, Effect, Event, GangAct, GangRef, Grant, Heartbeat, Named, NoFit, Nodes, Place, Replay, Resume,
    Shard, Wants,
};
use hotpool::model::{
    Capacity, ClaimId, ClaimSpec, ClaimState, GpuAsk, GpuCapacity, Labels, Policy, Resources, WorkerId, WorkerSpec,
    WorkerVerb,
};
use hotpool::selector::Selector;
use proptest::prelude::*;

/// A worker as the oracle has it.
#[derive(Debug, Clone)]
struct Worker {
    spec: WorkerSpec,
    cordoned: bool,
}

/// A claim as the oracle has it.
#[derive(Debug, Clone)]
struct Held {
    place: Place,
    worker: String,
    resources: Resources,
    cards: u64,
    /// The gang for which it is held provisionally.
    gang: Option<u64>,
}

struct World {
    shard: Shard,
    policy: Policy,
    now_ms: u64,
    fence: u64,
    rows: Vec<u8>,
    workers: BTreeMap<String, Worker>,
    claims: BTreeMap<String, Held>,
}

/// What is left of a worker: cores, memory, places, and of each card.
#[derive(Debug, Clone, PartialEq)]
struct Left {
    amounts: [i128; 3],
    cards: Vec<i64>,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self {
            shard: Shard::new(policy, 1),
            policy,
            now_ms: 1,
            fence: 0,
            rows: Vec::new(),
            workers: BTreeMap::new(),
            claims: BTreeMap::new(),
        }
    }

    fn on(&mut self, event: Event<()>) -> (Option<Answer>, Vec<(ClaimId, u64)>) {
        let mut effects = Vec::new();
        self.shard.on(event, self.now_ms, &mut effects);
        let (mut answer, mut ended) = (None, Vec::new());
        for effect in effects {
            match effect {
                Effect::Reply { answer: said, .. } => answer = Some(said),
                Effect::Ended { id, fence, .. } => ended.push((id, fence)),
                Effect::Remember { .. } => {}
                Effect::Adopted { .. } => panic!("nothing is adopted in a shared pool"),
                Effect::Committed { id, place } => {
                    let held = self.claims.get_mut(id.key()).expect("only what is held is committed");
                    assert_eq!(held.place, place);
                    assert!(held.gang.take().is_some(), "only a member is committed");
                }
            }
        }
        for (id, fence) in &ended {
            let gone = self.claims.remove(id.key()).expect("only what is held ends");
            assert_eq!(gone.place.fence, *fence);
        }
        self.shard.check().unwrap();
        self.compare();
        self.shard.take_rows(&mut self.rows);
        (answer, ended)
    }

    fn left(&self, id: &str) -> Left {
        let capacity = &self.workers[id].spec.capacity;
        let mut amounts = [capacity.cpu_milli, capacity.memory_bytes, capacity.slots].map(i128::from);
        let mut cards = vec![1_000_i64; capacity.gpu.as_ref().map_or(0, |gpu| gpu.count as usize)];
        for held in self.claims.values().filter(|held| held.worker == id) {
            let Resources { cpu_milli, memory_bytes, slots, gpu } = &held.resources;
            for (left, amount) in amounts.iter_mut().zip([cpu_milli, memory_bytes, slots]) {
                *left -= i128::from(*amount);
            }
            let milli = gpu.as_ref().map_or(0, |gpu| i64::from(gpu.milli));
            assert_eq!(held.cards.count_ones(), gpu.as_ref().map_or(0, |gpu| gpu.count));
            for card in (0..64).filter(|card| held.cards & (1 << card) != 0) {
                match cards.get_mut(card) {
                    Some(left) => *left -= milli,
                    // A card that a later registration does not have.
                    None => cards.push(-milli),
                }
            }
        }
        Left { amounts, cards }
    }

    fn has_room(&self, id: &str, asked: &Resources, without: Option<&str>) -> bool {
        let worker = &self.workers[id];
        let mut left = self.left(id);
        if let Some(held) = without.map(|key| &self.claims[key]) {
            let back = [held.resources.cpu_milli, held.resources.memory_bytes, held.resources.slots];
            left.amounts.iter_mut().zip(back).for_each(|(left, amount)| *left += i128::from(amount));
            let milli = held.resources.gpu.as_ref().map_or(0, |gpu| i64::from(gpu.milli));
            let cards = left.cards.iter_mut().enumerate().filter(|(card, _)| held.cards & (1 << card) != 0);
            cards.for_each(|(_, left)| *left += milli);
        }
        let over = left.amounts.iter().any(|&left| left < 0) || left.cards.iter().any(|&left| left < 0);
        let cards = asked.gpu.as_ref().is_none_or(|gpu| {
            let model = worker.spec.capacity.gpu.as_ref().map(|gpu| &gpu.model);
            model.is_some_and(|model| gpu.models.is_empty() || gpu.models.contains(model))
                && left.cards.iter().filter(|&&left| left >= i64::from(gpu.milli)).count() >= gpu.count as usize
        });
        let needed = [asked.cpu_milli, asked.memory_bytes, asked.slots].map(i128::from);
        !over && cards && left.amounts.iter().zip(needed).all(|(&left, needed)| left >= needed)
    }

    /// Claims that are nobody's but their gang's are not shown.
    fn told(&self) -> impl Iterator<Item = (&String, &Held)> {
        self.claims.iter().filter(|(_, held)| held.gang.is_none())
    }

    fn compare(&self) {
        assert_eq!(self.shard.held(), self.claims.len());
        let mut members: Vec<_> =
            self.shard.provisional().map(|(gang, id, place)| (id.key().to_owned(), gang.id, place)).collect();
        members.sort_by(|one, two| one.0.cmp(&two.0));
        let expected = self.claims.iter().filter_map(|(key, held)| Some((key.clone(), held.gang?, held.place)));
        assert!(members.into_iter().eq(expected), "provisional claims");
        for (id, worker) in &self.workers {
            let look = self.shard.find_worker(&WorkerId::new(id).unwrap()).expect("it is registered");
            let left = self.left(id);
            let over = left.amounts.iter().any(|&left| left < 0) || left.cards.iter().any(|&left| left < 0);
            assert_eq!(look.axes.overcommitted, over, "{id}: {left:?}");
            assert_eq!(look.card.spec, worker.spec);
            let mut keys: Vec<_> = look.claims.iter().map(|(id, _)| id.key().to_owned()).collect();
            keys.sort();
            let held: Vec<_> = self.told().filter(|(_, held)| held.worker == *id).map(|(key, _)| key.clone()).collect();
            assert_eq!(keys, held, "{id}");
        }
    }

    /// What rows make of it must be what it is.
    fn restart(&mut self) {
        let mut replay = Replay::new(self.policy, "ns", self.now_ms);
        replay.rows(&self.rows);
        let resume =
            Resume { at: self.shard.seq(), now_ms: self.now_ms, unix_ms: 1_000_000, floor: self.fence, revived: true };
        let shard = replay.finish(resume).map_err(|(wrong, _)| wrong).unwrap();
        let claims = |shard: &Shard| {
            let mut all: Vec<_> = shard
                .list_claims(0)
                .map(|(_, id, grant)| (id.key().to_owned(), grant.place.fence, grant.cards, grant.spec, grant.state))
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert_eq!(claims(&shard), claims(&self.shard));
        assert_eq!(shard.rooms(), self.shard.rooms());
        self.shard = shard;
        for (_, id, grant) in self.shard.list_claims(0) {
            self.claims.get_mut(id.key()).unwrap().place = grant.place;
        }
        for (_, id, place) in self.shard.provisional() {
            self.claims.get_mut(id.key()).unwrap().place = place;
        }
        self.compare();
        // All rows once more, as a rewrite takes them.
        self.rows.clear();
        assert_eq!(self.shard.dump_rows(0, usize::MAX, &mut self.rows), None);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Register {
        worker: u8,
        card: u8,
    },
    Delete {
        worker: u8,
    },
    Cordon {
        worker: u8,
        on: bool,
    },
    Claim {
        key: u8,
        ask: u8,
        filter: u8,
    },
    Release {
        key: u8,
    },
    Resize {
        key: u8,
        ask: u8,
    },
    Heartbeat {
        worker: u8,
        names: u8,
    },
    Batch {
        first: u8,
        asks: Vec<u8>,
    },
    Gang {
        first: u8,
        asks: Vec<u8>,
    },
    /// Of the oldest gang that is open.
    Decide {
        commit: bool,
    },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..6u8, 0..10u8).prop_map(|(worker, card)| Step::Register { worker, card }),
        1 => (0..6u8).prop_map(|worker| Step::Delete { worker }),
        1 => (0..6u8, any::<bool>()).prop_map(|(worker, on)| Step::Cordon { worker, on }),
        12 => (0..24u8, 0..14u8, 0..8u8).prop_map(|(key, ask, filter)| Step::Claim { key, ask, filter }),
        6 => (0..24u8).prop_map(|key| Step::Release { key }),
        3 => (0..24u8, 0..14u8).prop_map(|(key, ask)| Step::Resize { key, ask }),
        1 => (0..6u8, any::<u8>()).prop_map(|(worker, names)| Step::Heartbeat { worker, names }),
        1 => (0..24u8, prop::collection::vec(0..14u8, 1..12)).prop_map(|(first, asks)| Step::Batch { first, asks }),
        1 => (0..24u8, prop::collection::vec(0..14u8, 1..6)).prop_map(|(first, asks)| Step::Gang { first, asks }),
        1 => any::<bool>().prop_map(|commit| Step::Decide { commit }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

fn worker(id: u8, card: u8) -> WorkerSpec {
    let (cpu_milli, memory_bytes, slots, gpu) = [
        (4_000, 8, 0, None),
        (8_000, 16, 4, None),
        (16_000, 0, 0, None),
        (0, 32, 8, None),
        (8_000, 16, 0, Some(("T4", 1))),
        (16_000, 64, 0, Some(("T4", 4))),
        (32_000, 64, 0, Some(("A10", 2))),
        (32_000, 64, 2, Some(("A10", 8))),
        (2_000, 1, 0, Some(("T4", 2))),
        (0, 0, 0, None),
    ][card as usize];
    let gpu = gpu.map(|(model, count): (&str, u32)| GpuCapacity { model: model.into(), count });
    WorkerSpec {
        capacity: Capacity { cpu_milli, memory_bytes, slots, gpu },
        labels: Labels::from([("zone".into(), ["a", "b"][usize::from(card % 2)].into())]),
        node: (!id.is_multiple_of(3)).then(|| format!("n{}", id % 3).into()),
        ..WorkerSpec::bare(WorkerId::new(&format!("w{id}")).unwrap())
    }
}

fn ask(ask: u8) -> Resources {
    let (cpu_milli, memory_bytes, slots, gpu) = [
        (1_000, 0, 0, None),
        (500, 1, 0, None),
        (4_000, 4, 0, None),
        (0, 8, 0, None),
        (0, 0, 1, None),
        (16_000, 0, 0, None),
        (1_000, 0, 0, Some((&[][..], 1, 300))),
        (500, 1, 0, Some((&["T4"][..], 1, 500))),
        (1_000, 0, 0, Some((&["A10", "T4"][..], 1, 1_000))),
        (1_000, 0, 0, Some((&["A10"][..], 2, 1_000))),
        (0, 0, 0, Some((&[][..], 4, 1_000))),
        (0, 0, 0, Some((&["none"][..], 1, 100))),
        (100, 0, 0, Some((&[][..], 1, 700))),
        (0, 0, 2, Some((&["A10"][..], 1, 1))),
    ][ask as usize];
    let gpu = gpu.map(|(models, count, milli): (&[&str], u32, u32)| GpuAsk {
        models: models.iter().map(|&model| model.into()).collect(),
        count,
        milli,
    });
    Resources { cpu_milli, memory_bytes, slots, gpu }
}

fn wants(resources: &Resources, filter: u8) -> Wants {
    let spec = ClaimSpec { resources: resources.clone(), ..ClaimSpec::default() };
    let mut wants = Wants { spec: Some(Arc::new(spec)), ..Wants::default() };
    match filter {
        4 => wants.selector = Some(Arc::new(Selector::parse("zone=a").unwrap())),
        5 => wants.nodes = Nodes::new(["n1".into()]),
        6 => wants.worker = Some(WorkerId::new("w1").unwrap()),
        7 => wants.cards = CardFilter::Without,
        _ => {}
    }
    wants
}

fn id(key: u8) -> ClaimId {
    ClaimId::new("ns", "default", &format!("k{key:02}")).unwrap()
}

impl World {
    fn claim(&mut self, key: u8, asked: u8, filter: u8) -> Option<u64> {
        self.claim_for(key, asked, filter, None)
    }

    fn claim_for(&mut self, key: u8, asked: u8, filter: u8, gang: Option<GangRef>) -> Option<u64> {
        let id = id(key);
        if self.claims.contains_key(id.key()) {
            return None;
        }
        self.fence += 1;
        let (resources, fence) = (ask(asked), self.fence);
        let wants = Wants { gang, ..wants(&resources, filter) };
        let passes = |world: &Self, worker: &Worker| {
            let cards = wants.cards != CardFilter::Without || worker.spec.capacity.gpu.is_none();
            !worker.cordoned && cards && wants.allows(&worker.spec) && {
                let id = worker.spec.id.as_str();
                world.has_room(id, &resources, None)
            }
        };
        let fits: Vec<String> = self
            .workers
            .values()
            .filter(|worker| passes(self, worker))
            .map(|worker| worker.spec.id.to_string())
            .collect();
        let event = Event::Claim {
            id: id.clone(),
            fence,
            affinity: 7,
            reserve_ms: 0,
            ttl_ms: 0,
            wants: Some(Arc::new(wants.clone())),
            to: (),
        };
        let mut effects = Vec::new();
        let version = |world: &Self, worker: &str| {
            world.shard.find_worker(&WorkerId::new(worker).unwrap()).map_or(0, |look| look.version)
        };
        self.shard.on(event, self.now_ms, &mut effects);
        let Some(Effect::Reply { answer, .. }) = effects.pop() else { panic!("one answer") };
        match answer {
            Answer::Granted(Grant { place, worker, cards, state, .. }) => {
                let worker = worker.spec.id.to_string();
                assert!(fits.contains(&worker), "{worker} of {fits:?} for {resources:?}");
                assert_eq!(state, ClaimState::Active);
                let version = version(self, &worker);
                let gang = gang.map(|gang| gang.id);
                let held = Held { place, worker, resources, cards: cards.unwrap(), gang };
                self.claims.insert(id.key().to_owned(), held);
                Some(version)
            }
            Answer::NoFit(why) => {
                assert!(fits.is_empty(), "N1: {why:?} for {resources:?}, and {fits:?} have room");
                if filter != 6 {
                    assert!(matches!(why, NoFit::Busy | NoFit::Node));
                }
                None
            }
            other => panic!("{other:?}"),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Register { worker: number, card } => {
                let spec = worker(number, card);
                self.workers
                    .entry(spec.id.to_string())
                    .and_modify(|known| known.spec = spec.clone())
                    .or_insert_with(|| Worker { spec: WorkerSpec { incarnation: 0, ..spec.clone() }, cordoned: false });
                let deleted = self.shard.find_worker(&spec.id).is_none();
                // A tombstone wants a higher incarnation.
                let incarnation = if deleted {
                    self.fence + 1
                } else {
                    self.shard.find_worker(&spec.id).unwrap().card.spec.incarnation
                };
                self.fence += 1;
                let spec = WorkerSpec { incarnation, ..spec };
                self.workers.get_mut(spec.id.as_str()).unwrap().spec = spec.clone();
                self.on(Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 1_000, to: () });
            }
            Step::Delete { worker: number } => {
                let id = WorkerId::new(&format!("w{number}")).unwrap();
                if self.workers.remove(id.as_str()).is_some() {
                    self.on(Event::Delete { id, to: () });
                }
            }
            Step::Cordon { worker: number, on } => {
                let id = WorkerId::new(&format!("w{number}")).unwrap();
                if let Some(worker) = self.workers.get_mut(id.as_str()) {
                    worker.cordoned = on;
                    let verb = if on { WorkerVerb::Cordon } else { WorkerVerb::Uncordon };
                    self.on(Event::Steer { id, verb, to: () });
                }
            }
            Step::Claim { key, ask, filter } => {
                self.claim(key, ask, filter);
                self.on(Event::Tick);
            }
            Step::Release { key } => {
                if let Some(held) = self.claims.get(id(key).key()).filter(|held| held.gang.is_none()) {
                    let place = held.place;
                    let (_, ended) = self.on(Event::Release { place, to: () });
                    assert_eq!(ended.len(), 1);
                    // A late second one touches nobody.
                    let (_, ended) = self.on(Event::Release { place, to: () });
                    assert!(ended.is_empty());
                }
            }
            Step::Resize { key, ask: asked } => self.resize(id(key).key(), &ask(asked)),
            Step::Heartbeat { worker: number, names } => self.heartbeat(number, names),
            Step::Batch { first, asks } => {
                let before = self.shard.counters().touches;
                self.shard.begin_batch();
                let mut versions = BTreeMap::new();
                for (i, asked) in (0..).zip(asks) {
                    let key = (first + i) % 24;
                    if let Some(version) = self.claim(key, asked, 0) {
                        let worker = self.claims[id(key).key()].worker.clone();
                        let first = *versions.entry(worker).or_insert(version);
                        assert_eq!(first, version, "B03: one version a worker and batch");
                    }
                }
                self.shard.end_batch();
                assert_eq!(self.shard.counters().touches - before, versions.len() as u64, "B03: one touch a worker");
                self.on(Event::Tick);
            }
            Step::Gang { first, asks } => {
                self.fence += 1;
                let gang = GangRef { id: self.fence, pool: 7, shard: 3 };
                self.shard.begin_batch();
                for (i, asked) in (0..).zip(asks) {
                    self.claim_for((first + i) % 24, asked, 0, Some(gang));
                }
                self.shard.end_batch();
                self.on(Event::Tick);
            }
            Step::Decide { commit } => {
                let Some(id) = self.claims.values().filter_map(|held| held.gang).min() else { return };
                let members = self.claims.values().filter(|held| held.gang == Some(id)).count();
                let act = if commit { GangAct::Commit } else { GangAct::Abort };
                let (answer, ended) = self.on(Event::Gang { id, act, to: () });
                match answer {
                    Some(Answer::Committed(claims)) => {
                        assert_eq!((claims.len(), ended.len(), commit), (members, 0, true))
                    }
                    _ => assert_eq!((ended.len(), commit), (members, false)),
                }
                // It may come twice.
                let (_, ended) = self.on(Event::Gang { id, act, to: () });
                assert!(ended.is_empty());
            }
            Step::Restart => self.restart(),
        }
    }

    fn resize(&mut self, key: &str, to: &Resources) {
        let Some(held) = self.claims.get(key).filter(|held| held.gang.is_none()).cloned() else { return };
        let fits = self.has_room(&held.worker, to, Some(key)) && to.fit_in(&self.workers[&held.worker].spec.capacity);
        let from = &held.resources;
        let cards = match (&from.gpu, &to.gpu) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(from), Some(to)) => to.count <= from.count && to.milli <= from.milli,
        };
        let amounts = |of: &Resources| [of.cpu_milli, of.memory_bytes, of.slots];
        let shrinks = cards && amounts(to).iter().zip(amounts(from)).all(|(to, from)| *to <= from);
        let (answer, _) = {
            let mut effects = Vec::new();
            let event = Event::Resize { place: held.place, resources: to.clone(), to: () };
            self.shard.on(event, self.now_ms, &mut effects);
            let Some(Effect::Reply { answer, .. }) = effects.pop() else { panic!("one answer") };
            (answer, ())
        };
        match answer {
            Answer::Held(grant) => {
                assert!(fits || shrinks, "{from:?} to {to:?}");
                assert_eq!(grant.place, held.place, "the fence stays");
                let now = Held { resources: to.clone(), cards: grant.cards.unwrap(), ..held };
                self.claims.insert(key.to_owned(), now);
            }
            Answer::NoFit(_) => assert!(!fits && !shrinks, "{from:?} to {to:?} has room"),
            other => panic!("{other:?}"),
        }
        self.on(Event::Tick);
    }

    /// Names half of what the worker holds: that is confirmed, and nothing is freed at once.
    fn heartbeat(&mut self, number: u8, names: u8) {
        let id = WorkerId::new(&format!("w{number}")).unwrap();
        let Some(worker) = self.workers.get(id.as_str()) else { return };
        let of: Vec<_> = self.told().filter(|(_, held)| held.worker == id.as_str()).collect();
        let named = of.iter().enumerate().filter(|(i, _)| names & (1 << (i % 8)) != 0).map(|(_, (key, held))| Named {
            id: ClaimId::new("ns", "default", key).unwrap(),
            fence: held.place.fence,
            vacant: false,
            pending: false,
        });
        let count = of.len();
        let beat =
            Heartbeat { incarnation: worker.spec.incarnation, seq: None, claims: Some(named.collect()), ttl_ms: 0 };
        let (answer, ended) = self.on(Event::Heartbeat { id, beat, to: () });
        let Some(Answer::Heard { claims, stop }) = answer else { panic!("{answer:?}") };
        assert_eq!((claims.len(), stop.len(), ended.len()), (count, 0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// C08, L1, L2, N1, V1 in a shared pool.
    #[test]
    fn c08_shares_are_free_when_granted_and_nothing_leaks(steps in steps(), policy in 0..3usize) {
        let mut world = World::new([Policy::BestFit, Policy::Spread, Policy::Fgd][policy]);
        for step in steps {
            world.step(step);
        }
        while world.claims.values().any(|held| held.gang.is_some()) {
            world.step(Step::Decide { commit: false });
        }
        let places: Vec<Place> = world.claims.values().map(|held| held.place).collect();
        for place in places {
            world.on(Event::Release { place, to: () });
        }
        prop_assert_eq!(world.shard.held(), 0);
        world.restart();
        // Uncordoned, every worker has all that it is registered with.
        for id in world.workers.keys().cloned().collect::<Vec<_>>() {
            let id = WorkerId::new(&id).unwrap();
            world.on(Event::Steer { id, verb: WorkerVerb::Uncordon, to: () });
        }
        let sums = world.shard.rooms().unwrap().map(|(sum, _)| (sum.cpu_milli, sum.memory_bytes, sum.cards_milli));
        let all = |amount: fn(&Capacity) -> u64| world.workers.values().map(|worker| u128::from(amount(&worker.spec.capacity))).sum::<u128>();
        prop_assert_eq!(sums[0].0 + sums[1].0, all(|capacity| capacity.cpu_milli));
        prop_assert_eq!(sums[0].1 + sums[1].1, all(|capacity| capacity.memory_bytes));
        prop_assert_eq!(sums[1].2, all(|capacity| capacity.gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * 1_000)));
    }
}

/// P03: 1,000 equal requests fill one worker exactly; 3 onto room for 2 place 2; 70 tiny ones pack onto one.
#[test]
fn p03_one_worker_is_filled_exactly() {
    let fill = |cpu_milli: u64, workers: u8, each: u64, count: u64| {
        let mut shard = Shard::new(Policy::BestFit, 1);
        let mut effects = Vec::new();
        for number in 0..workers {
            let capacity = Capacity { cpu_milli, ..Capacity::default() };
            let spec = WorkerSpec { capacity, ..WorkerSpec::bare(WorkerId::new(&format!("w{number}")).unwrap()) };
            shard.on(Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 0, to: () }, 1, &mut effects);
        }
        effects.clear();
        let resources = Resources { cpu_milli: each, ..Resources::default() };
        let wants = Arc::new(wants(&resources, 0));
        for fence in 1..=count {
            let id = ClaimId::new("ns", "default", &format!("k{fence}")).unwrap();
            let wants = Some(Arc::clone(&wants));
            let event = Event::Claim { id, fence, affinity: 0, reserve_ms: 0, ttl_ms: 0, wants, to: () };
            shard.on(event, 1, &mut effects);
        }
        shard.check().unwrap();
        (shard.held() as u64, shard.busy())
    };
    assert_eq!(fill(1_000, 1, 1, 1_001), (1_000, 1));
    assert_eq!(fill(2_000, 1, 1_000, 3), (2, 1));
    assert_eq!(fill(4_000, 8, 10, 70), (70, 1));
}

/// GPU models are numbered: past the bound a worker is refused by name, and nothing of it stays.
#[test]
fn b1_models_beyond_the_bound_are_refused() {
    let mut shard = Shard::new(Policy::BestFit, 1);
    let mut register = |number: usize| {
        let gpu = Some(GpuCapacity { model: format!("m{number}").into(), count: 1 });
        let capacity = Capacity { gpu, ..Capacity::default() };
        let spec = WorkerSpec { capacity, ..WorkerSpec::bare(WorkerId::new(&format!("w{number}")).unwrap()) };
        let mut effects = Vec::new();
        shard.on(Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 0, to: () }, 1, &mut effects);
        let Some(Effect::Reply { answer, .. }) = effects.pop() else { panic!("one answer") };
        (matches!(answer, Answer::TooManyModels), shard.workers())
    };
    for number in 0..4_096 {
        assert_eq!(register(number), (false, number + 1));
    }
    assert_eq!(register(4_096), (true, 4_096));
    assert_eq!(register(7), (false, 4_096), "a known one is still an upsert");
}
