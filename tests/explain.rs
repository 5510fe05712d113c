//! An explanation and the decision, held together over random shards: a claim is granted just when the explanation says
//! that something fits, by the worker that it names; else it is refused for the same reason. Explaining changes nothing.

use std::sync::Arc;

use hotpool::engine::{ClaimGrant, ClaimHandle, Effect, EngineReply, Event, NodeSet, PlacementConstraints, Shard};
use hotpool::model::label_selector::LabelSelector;
use hotpool::model::{
    ClaimId, ClaimSpec, FilterReason, GpuCapacity, GpuRequest, Labels, PlacementPolicy, ResourceAmounts,
    ResourceRequirements, WorkerCapacity, WorkerCommand, WorkerId, WorkerSpec, WorkerSurvey,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Register {
        worker: u8,
        size: u8,
        ends: bool,
    },
    Delete {
        worker: u8,
    },
    Steer {
        worker: u8,
        verb: u8,
    },
    Claim(Ask),
    Release {
        nth: u8,
    },
    /// A clean-up that is never finished: its worker is suspect.
    Abandon {
        nth: u8,
    },
}

/// What a claim asks for.
#[derive(Debug, Clone)]
struct Ask {
    resources: u8,
    filter: u8,
    long: bool,
}

fn asks() -> impl Strategy<Value = Ask> {
    (0..12u8, 0..8u8, prop::bool::weighted(0.3)).prop_map(|(resources, filter, long)| Ask { resources, filter, long })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..8u8, 0..9u8, prop::bool::weighted(0.3)).prop_map(|(worker, size, ends)| Step::Register { worker, size, ends }),
        1 => (0..8u8).prop_map(|worker| Step::Delete { worker }),
        2 => (0..8u8, 0..4u8).prop_map(|(worker, verb)| Step::Steer { worker, verb }),
        14 => asks().prop_map(Step::Claim),
        4 => any::<u8>().prop_map(|nth| Step::Release { nth }),
        1 => any::<u8>().prop_map(|nth| Step::Abandon { nth }),
    ];
    prop::collection::vec(step, 1..50)
}

fn capacity(size: u8) -> WorkerCapacity {
    let (cpu_milli, memory_bytes, slots, gpu) = [
        (4_000, 8, 0, None),
        (8_000, 16, 4, None),
        (2_000, 0, 0, None),
        (0, 0, 0, None),
        (8_000, 16, 0, Some(("T4", 1))),
        (16_000, 64, 0, Some(("T4", 4))),
        (32_000, 64, 2, Some(("A10", 2))),
        (1_000, 1, 0, Some(("A10", 1))),
        (0, 64, 9, None),
    ][usize::from(size)];
    let gpu = gpu.map(|(model, count): (&str, u32)| GpuCapacity { model: model.into(), count });
    WorkerCapacity { cpu_milli, memory_bytes, slots, gpu }
}

fn resources(number: u8) -> ResourceRequirements {
    let (cpu_milli, memory_bytes, slots, gpu) = [
        (0, 0, 0, None),
        (1_000, 0, 0, None),
        (4_000, 4, 0, None),
        (0, 16, 1, None),
        (0, 0, 1, None),
        (40_000, 0, 0, None),
        (500, 0, 0, Some((&[][..], 1, 300))),
        (1_000, 1, 0, Some((&["T4"][..], 1, 1_000))),
        (0, 0, 0, Some((&["A10", "T4"][..], 2, 1_000))),
        (0, 0, 0, Some((&[][..], 4, 1_000))),
        (0, 0, 0, Some((&["none"][..], 1, 100))),
        (100, 0, 0, Some((&["A10"][..], 1, 700))),
    ][usize::from(number)];
    let gpu = gpu.map(|(models, count, milli): (&[&str], u32, u32)| GpuRequest {
        models: models.iter().map(|&model| model.into()).collect(),
        count,
        milli,
    });
    ResourceRequirements { cpu_milli, memory_bytes, slots, gpu }
}

struct World {
    shard: Shard,
    shared: bool,
    /// Whether the worker that a claim takes follows from the shard alone, and not from the fence too.
    exact: bool,
    now_ms: u64,
    fence: u64,
    held: Vec<ClaimHandle>,
    /// How often a claim was granted, refused, and a near miss was made good.
    seen: [u32; 3],
}

/// How long claims and workers may last.
const LONG_MS: u64 = 100_000;
const SHORT_MS: u64 = 1_000;

impl World {
    fn on(&mut self, event: Event<()>) -> EngineReply {
        let mut effects = Vec::new();
        self.shard.handle_event(event, self.now_ms, &mut effects);
        let ended = |effect: &Effect<()>| match effect {
            Effect::ClaimEnded { fence, .. } => Some(*fence),
            _ => None,
        };
        let gone: Vec<u64> = effects.iter().filter_map(ended).collect();
        self.held.retain(|place| !gone.contains(&place.fence));
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::Reply { answer, .. } => Some(answer),
            _ => None,
        });
        answer.unwrap_or(EngineReply::StaleHandle)
    }

    fn register(&mut self, id: &WorkerId, capacity: WorkerCapacity, ends_ms: Option<u64>) {
        let number = id.as_str().as_bytes()[1];
        let known = self.shard.find_worker(id);
        self.fence += 1;
        let spec = WorkerSpec {
            capacity,
            labels: Labels::from([("zone".into(), ["a", "b"][usize::from(number % 2)].into())]),
            node: (!number.is_multiple_of(3)).then(|| format!("n{}", number % 3).into()),
            // A tombstone wants a higher one.
            incarnation: known.map_or(self.fence, |look| look.registration.spec.incarnation),
            ..WorkerSpec::with_id(id.clone())
        };
        self.on(Event::Register { spec, ends_ms, claims: None, ttl_ms: 0, to: () });
    }

    fn step(&mut self, step: Step) {
        let id = |number: u8| WorkerId::new(&format!("w{number}")).unwrap();
        match step {
            Step::Register { worker, size, ends } => {
                let ends_ms = ends.then(|| self.now_ms + LONG_MS / 2);
                self.register(&id(worker), capacity(size), ends_ms);
            }
            Step::Delete { worker } => drop(self.on(Event::Delete { id: id(worker), to: () })),
            Step::Steer { worker, verb } => {
                let verb = [WorkerCommand::Cordon, WorkerCommand::Uncordon, WorkerCommand::Drain, WorkerCommand::Clear]
                    [usize::from(verb)];
                self.on(Event::WorkerCommand { id: id(worker), command: verb, to: () });
            }
            Step::Claim(ask) => self.claim(&ask),
            Step::Release { nth } if !self.held.is_empty() => {
                let place = self.held[usize::from(nth) % self.held.len()];
                self.on(Event::Release { place, to: () });
            }
            Step::Abandon { nth } if !self.held.is_empty() => {
                let place = self.held[usize::from(nth) % self.held.len()];
                self.on(Event::BeginRelease { place, releasing_ms: 1, to: () });
                self.now_ms += 2;
                self.on(Event::Tick);
            }
            Step::Release { .. } | Step::Abandon { .. } => {}
        }
    }

    fn survey(&self, wants: &PlacementConstraints, needs_ms: u64, chunk: u32) -> WorkerSurvey {
        let (mut all, mut from) = (WorkerSurvey::default(), Some(0));
        while let Some(at) = from {
            let (survey, next) = self.shard.survey(Some(wants), needs_ms, self.now_ms, at, chunk);
            all.merge(survey);
            from = next;
        }
        all
    }

    /// Explains a claim, makes it, and compares.
    fn claim(&mut self, ask: &Ask) {
        let resources = resources(ask.resources);
        if self.shared && resources.is_empty() {
            return;
        }
        let spec = Some(Arc::new(ClaimSpec { resources: resources.clone(), ..ClaimSpec::default() }));
        let mut wants = PlacementConstraints { spec, ..PlacementConstraints::default() };
        match ask.filter {
            4 => wants.selector = Some(Arc::new(LabelSelector::parse("zone=a").unwrap())),
            5 => wants.nodes = NodeSet::new(["n1".into()]),
            6 => wants.worker = Some(WorkerId::new("w1").unwrap()),
            7 => wants.worker = Some(WorkerId::new("w9").unwrap()),
            _ => {}
        }
        let needs_ms = if ask.long { LONG_MS } else { SHORT_MS };
        let look = |shard: &Shard| {
            let workers: Vec<_> = shard.list_workers().collect();
            (shard.seq(), shard.idle(), shard.held(), shard.counters(), shard.free_summary(), workers)
        };
        let before = look(&self.shard);
        let mut rows = Vec::new();
        self.shard.take_rows(&mut rows);
        self.shard.take_header();
        let survey = self.survey(&wants, needs_ms, 4_096);
        assert_eq!(self.survey(&wants, needs_ms, 2), survey, "in pieces it is the same");
        let affinity = u64::from(ask.filter);
        let would = self.shard.preview_placement(Some(&wants), affinity, needs_ms, self.now_ms);
        assert!(look(&self.shard) == before && !self.shard.has_rows(), "explaining changes nothing");
        self.shard.check().unwrap();
        assert_eq!(survey.workers, self.shard.workers() as u64);
        assert_eq!(survey.fits + survey.filtered.iter().sum::<u64>(), survey.workers);
        if let Some(miss) = survey.nearest.first() {
            self.make_good(&wants, &miss.worker.clone(), miss.shortfall, needs_ms);
        }

        let fence = self.shard_fence();
        let id = ClaimId::new("ns", "default", &format!("k{fence}")).unwrap();
        let event = Event::Claim {
            id,
            fence,
            affinity,
            reserve_ms: 0,
            ttl_ms: needs_ms,
            wants: Some(Arc::new(wants.clone())),
            reservation_ticket: 0,
            to: (),
        };
        match self.on(event) {
            EngineReply::Granted(ClaimGrant { handle: place, worker, .. }) => {
                self.seen[0] += 1;
                let id = &worker.spec.id;
                let would = would.as_ref().map(|card| &card.spec.id);
                assert!(would == Ok(id) || (!self.exact && would.is_ok()), "{would:?} is not {id}");
                assert!(survey.fits > 0, "{id} is not counted: {survey:?}");
                self.held.push(place);
                // It was among those that fit: counted by itself, with its claim given back, it is.
                self.on(Event::Release { place, to: () });
                let only = PlacementConstraints { worker: Some(id.clone()), ..wants };
                assert_eq!(self.survey(&only, needs_ms, 4_096).fits, 1);
                self.claim_again(&only, affinity, needs_ms);
            }
            EngineReply::NotPlaced(why) => {
                self.seen[1] += 1;
                assert_eq!((would.map(|card| card.spec.id.clone()), survey.fits), (Err(Some(why)), 0), "{survey:?}");
            }
            EngineReply::NoCapacity => {
                self.seen[1] += 1;
                assert_eq!((would.map(|card| card.spec.id.clone()), survey.fits), (Err(None), 0), "{survey:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    fn shard_fence(&mut self) -> u64 {
        self.fence =
            self.fence.max(self.shard.list_claims().map(|(_, _, grant)| grant.handle.fence).max().unwrap_or(0));
        self.fence += 1;
        self.fence
    }

    fn claim_again(&mut self, wants: &PlacementConstraints, affinity: u64, needs_ms: u64) {
        let fence = self.shard_fence();
        let id = ClaimId::new("ns", "default", &format!("k{fence}")).unwrap();
        let wants = Some(Arc::new(wants.clone()));
        let event =
            Event::Claim { id, fence, affinity, reserve_ms: 0, ttl_ms: needs_ms, wants, reservation_ticket: 0, to: () };
        let EngineReply::Granted(grant) = self.on(event) else { panic!("it fits") };
        self.held.push(grant.handle);
    }

    /// With as much more as it is short of, a worker does; then it is as it was.
    fn make_good(&mut self, wants: &PlacementConstraints, id: &WorkerId, short: ResourceAmounts, needs_ms: u64) {
        let look = self.shard.find_worker(id).unwrap();
        let before = look.registration.spec.capacity.clone();
        if short.gpu_milli > 0 {
            return;
        }
        let mut more = before.clone();
        more.cpu_milli += short.cpu_milli;
        more.memory_bytes += short.memory_bytes;
        more.slots += short.slots;
        if short.gpu > 0 {
            let asked = wants.spec.as_ref().and_then(|spec| spec.resources.gpu.as_ref()).unwrap();
            let model = asked.models.first().cloned().unwrap_or_else(|| "T4".into());
            let gpu = more.gpu.get_or_insert(GpuCapacity { model, count: 0 });
            gpu.count += short.gpu as u32;
        }
        let spec = WorkerSpec { capacity: more, ..look.registration.spec.clone() };
        let only = PlacementConstraints { worker: Some(id.clone()), ..wants.clone() };
        let mut again = |spec| {
            let ends_ms = None;
            self.on(Event::Register { spec, ends_ms, claims: None, ttl_ms: 0, to: () });
            self.survey(&only, needs_ms, 4_096).fits
        };
        assert_eq!(again(spec), 1, "{id} {before:?} is short of {short:?}");
        assert_eq!(again(look.registration.spec.clone()), 0);
        self.seen[2] += 1;
    }
}

fn run(steps: Vec<Step>, policy: PlacementPolicy) -> [u32; 3] {
    let shared = matches!(policy, PlacementPolicy::BestFit | PlacementPolicy::Spread | PlacementPolicy::Fgd);
    let shard = Shard::new(policy, 1);
    let exact = policy != PlacementPolicy::Random;
    let mut world = World { shard, shared, exact, now_ms: 1, fence: 0, held: Vec::new(), seen: [0; 3] };
    for step in steps {
        world.step(step);
    }
    world.seen
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// P02: what an explanation says is what the decision does.
    #[test]
    fn p02_explain_and_decision_agree(steps in steps(), policy in 0..6usize) {
        let policies = [PlacementPolicy::Lifo, PlacementPolicy::Fifo, PlacementPolicy::Random, PlacementPolicy::BestFit, PlacementPolicy::Spread, PlacementPolicy::Fgd];
        run(steps, policies[policy]);
    }
}

/// The runs above grant, refuse, and make near misses good.
#[test]
fn random_runs_reach_every_end() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = [0; 3];
    for policy in [PlacementPolicy::Lifo, PlacementPolicy::BestFit] {
        for _ in 0..40 {
            let steps = proptest::strategy::ValueTree::current(&steps().new_tree(&mut runner).unwrap());
            seen.iter_mut().zip(run(steps, policy)).for_each(|(sum, more)| *sum += more);
        }
    }
    assert!(seen.iter().all(|&seen| seen > 20), "{seen:?}");
}

/// P02: of each resource that is short, the worker is counted there and nowhere else.
#[test]
fn p02_each_filter_is_named() {
    let mut world = World {
        shard: Shard::new(PlacementPolicy::BestFit, 1),
        shared: true,
        exact: true,
        now_ms: 1,
        fence: 0,
        held: Vec::new(),
        seen: [0; 3],
    };
    let id = |number: u8| WorkerId::new(&format!("w{number}")).unwrap();
    for (number, size) in [(0, 2), (1, 8), (2, 1), (3, 5), (4, 6), (5, 6)] {
        world.register(&id(number), capacity(size), (number == 5).then_some(LONG_MS / 2));
    }
    let spec = |resources| Some(Arc::new(ClaimSpec { resources, ..ClaimSpec::default() }));
    let said = |world: &World, wants: &PlacementConstraints| {
        let survey = world.survey(wants, LONG_MS, 2);
        let counted = FilterReason::ALL.into_iter().filter(|why| survey.count(*why) > 0);
        let counted: Vec<_> = counted.map(|why| (why.as_str(), survey.count(why))).collect();
        (survey.fits, counted)
    };
    let asked =
        |cpu_milli, memory_bytes, slots, gpu| spec(ResourceRequirements { cpu_milli, memory_bytes, slots, gpu });
    let gpu = |model: &str, count| Some(GpuRequest { models: vec![model.into()], count, milli: 1_000 });
    let wants = |spec| PlacementConstraints { spec, ..PlacementConstraints::default() };
    assert_eq!(said(&world, &wants(asked(8_000, 16, 0, None))), (3, vec![("cpu_milli", 2), ("expires", 1)]));
    assert_eq!(
        said(&world, &wants(asked(1, 16, 4, None))),
        (1, vec![("cpu_milli", 1), ("memory_bytes", 1), ("slots", 3)])
    );
    assert_eq!(said(&world, &wants(asked(1, 0, 0, gpu("A10", 3)))), (0, vec![("gpu_model", 4), ("gpu", 2)]));
    world.on(Event::WorkerCommand { id: id(0), command: WorkerCommand::Cordon, to: () });
    world.on(Event::WorkerCommand { id: id(1), command: WorkerCommand::Drain, to: () });
    let zone = PlacementConstraints {
        selector: Some(Arc::new(LabelSelector::parse("zone=a").unwrap())),
        ..wants(asked(1, 0, 0, None))
    };
    // "w1", as a byte, is odd.
    assert_eq!(said(&world, &zone), (2, vec![("cordoned", 1), ("draining", 1), ("selector", 2)]));
    let named = PlacementConstraints {
        worker: Some(id(3)),
        nodes: NodeSet::new(["n0".into(), "n1".into(), "n2".into()]),
        ..wants(asked(1, 0, 0, None))
    };
    assert_eq!(said(&world, &named).0 + said(&world, &named).1.iter().map(|(_, count)| count).sum::<u64>(), 6);
    // Half a card is left of the only one that comes near.
    world.on(Event::Delete { id: id(3), to: () });
    world.on(Event::Delete { id: id(5), to: () });
    let share = |milli| asked(0, 0, 0, Some(GpuRequest { models: Vec::new(), count: 1, milli }));
    world.claim_again(&wants(share(500)), 0, SHORT_MS);
    world.claim_again(&wants(share(800)), 0, SHORT_MS);
    let survey = world.survey(&wants(share(600)), SHORT_MS, 2);
    let near = &survey.nearest[0];
    assert_eq!(
        (survey.fits, near.describe().as_str(), survey.most_free.gpu_milli),
        (0, "short by 100 thousandths of a GPU on w4", 500)
    );
    assert_eq!(survey.too_small, 1, "the one without cards");
    let survey = world.survey(&wants(asked(0, 0, 0, gpu("A10", 1))), SHORT_MS, 2);
    assert_eq!(survey.nearest[0].describe(), "short by 1 GPU on w4");
}
