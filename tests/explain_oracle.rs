//! Compares explanations with decisions over random shards: a claim is granted exactly when the explanation says that
//! something fits, on the worker that it names; otherwise it is rejected for the same reason. Explaining changes
//! nothing.

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
    Command {
        worker: u8,
        command: u8,
    },
    Claim(RequestShape),
    Release {
        nth: u8,
    },
    /// Starts a clean-up that never completes: its worker is suspect.
    Abandon {
        nth: u8,
    },
}

/// Request of a claim.
#[derive(Debug, Clone)]
struct RequestShape {
    resources: u8,
    filter: u8,
    long: bool,
}

fn request_shape() -> impl Strategy<Value = RequestShape> {
    (0..12u8, 0..8u8, prop::bool::weighted(0.3)).prop_map(|(resources, filter, long)| RequestShape {
        resources,
        filter,
        long,
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..8u8, 0..9u8, prop::bool::weighted(0.3)).prop_map(|(worker, size, ends)| Step::Register { worker, size, ends }),
        1 => (0..8u8).prop_map(|worker| Step::Delete { worker }),
        2 => (0..8u8, 0..4u8).prop_map(|(worker, command)| Step::Command { worker, command }),
        14 => request_shape().prop_map(Step::Claim),
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

struct Harness {
    shard: Shard,
    shared: bool,
    /// True if the worker of a claim follows from the shard alone, and not from the fence too.
    deterministic: bool,
    now_ms: u64,
    fence: u64,
    handles: Vec<ClaimHandle>,
    /// Number of grants, of rejections, and of near misses that were corrected.
    counts: [u32; 3],
}

/// Durations of claims and workers.
const LONG_MS: u64 = 100_000;
const SHORT_MS: u64 = 1_000;

impl Harness {
    fn apply(&mut self, event: Event) -> EngineReply {
        let mut effects = Vec::new();
        let answer = self.shard.handle_event(event, self.now_ms, &mut effects);
        let ended = |effect: &Effect| match effect {
            Effect::ClaimEnded { fence, .. } => Some(*fence),
            _ => None,
        };
        let ended_fences: Vec<u64> = effects.iter().filter_map(ended).collect();
        self.handles.retain(|handle| !ended_fences.contains(&handle.fence));
        answer.unwrap_or(EngineReply::StaleHandle)
    }

    fn register(&mut self, id: &WorkerId, capacity: WorkerCapacity, ends_ms: Option<u64>) {
        let number = id.as_str().as_bytes()[1];
        let registered = self.shard.find_worker(id);
        self.fence += 1;
        let spec = WorkerSpec {
            capacity,
            labels: Labels::from([("zone".into(), ["a", "b"][usize::from(number % 2)].into())]),
            node: (!number.is_multiple_of(3)).then(|| format!("n{}", number % 3).into()),
            // A tombstone requires a higher incarnation.
            incarnation: registered.map_or(self.fence, |snapshot| snapshot.registration.spec.incarnation),
            ..WorkerSpec::with_id(id.clone())
        };
        self.apply(Event::Register { spec, ends_ms, claims: None, ttl_ms: 0 });
    }

    fn step(&mut self, step: Step) {
        let id = |number: u8| WorkerId::new(&format!("w{number}")).unwrap();
        match step {
            Step::Register { worker, size, ends } => {
                let ends_ms = ends.then(|| self.now_ms + LONG_MS / 2);
                self.register(&id(worker), capacity(size), ends_ms);
            }
            Step::Delete { worker } => drop(self.apply(Event::Delete { id: id(worker) })),
            Step::Command { worker, command } => {
                let command =
                    [WorkerCommand::Cordon, WorkerCommand::Uncordon, WorkerCommand::Drain, WorkerCommand::Clear]
                        [usize::from(command)];
                self.apply(Event::WorkerCommand { id: id(worker), command });
            }
            Step::Claim(request) => self.claim(&request),
            Step::Release { nth } if !self.handles.is_empty() => {
                let handle = self.handles[usize::from(nth) % self.handles.len()];
                self.apply(Event::Release { handle });
            }
            Step::Abandon { nth } if !self.handles.is_empty() => {
                let handle = self.handles[usize::from(nth) % self.handles.len()];
                self.apply(Event::BeginRelease { handle, releasing_ms: 1 });
                self.now_ms += 2;
                self.apply(Event::Tick);
            }
            Step::Release { .. } | Step::Abandon { .. } => {}
        }
    }

    fn survey(&self, constraints: &PlacementConstraints, needs_ms: u64, chunk: u32) -> WorkerSurvey {
        let (mut all, mut from) = (WorkerSurvey::default(), Some(0));
        while let Some(at) = from {
            let (survey, next) = self.shard.survey(Some(constraints), needs_ms, self.now_ms, at, chunk);
            all.merge(survey);
            from = next;
        }
        all
    }

    /// Explains a claim, makes it, and compares.
    fn claim(&mut self, request: &RequestShape) {
        let resources = resources(request.resources);
        if self.shared && resources.is_empty() {
            return;
        }
        let spec = Some(Arc::new(ClaimSpec { resources: resources.clone(), ..ClaimSpec::default() }));
        let mut constraints = PlacementConstraints { spec, ..PlacementConstraints::default() };
        match request.filter {
            4 => constraints.selector = Some(Arc::new(LabelSelector::parse("zone=a").unwrap())),
            5 => constraints.nodes = NodeSet::new(["n1".into()]),
            6 => constraints.worker = Some(WorkerId::new("w1").unwrap()),
            7 => constraints.worker = Some(WorkerId::new("w9").unwrap()),
            _ => {}
        }
        let needs_ms = if request.long { LONG_MS } else { SHORT_MS };
        let snapshot = |shard: &Shard| {
            let workers: Vec<_> = shard.list_workers().collect();
            (shard.seq(), shard.idle(), shard.held(), shard.counters(), shard.free_summary(), workers)
        };
        let before = snapshot(&self.shard);
        let mut rows = Vec::new();
        self.shard.take_rows(&mut rows);
        self.shard.take_header();
        let survey = self.survey(&constraints, needs_ms, 4_096);
        assert_eq!(self.survey(&constraints, needs_ms, 2), survey, "slices give the same survey");
        let affinity = u64::from(request.filter);
        let preview = self.shard.preview_placement(Some(&constraints), affinity, needs_ms, self.now_ms);
        assert!(snapshot(&self.shard) == before && !self.shard.has_rows(), "explaining changes nothing");
        self.shard.check().unwrap();
        assert_eq!(survey.workers, self.shard.workers() as u64);
        assert_eq!(survey.fits + survey.filtered.iter().sum::<u64>(), survey.workers);
        if let Some(miss) = survey.nearest.first() {
            self.check_near_miss(&constraints, &miss.worker.clone(), miss.shortfall, needs_ms);
        }

        let fence = self.shard_fence();
        let id = ClaimId::new("ns", "default", &format!("k{fence}")).unwrap();
        let event = Event::Claim {
            id,
            fence,
            affinity,
            reserve_ms: 0,
            ttl_ms: needs_ms,
            constraints: Some(Arc::new(constraints.clone())),
            target: None,
        };
        match self.apply(event) {
            EngineReply::Granted(ClaimGrant { handle, worker, .. }) => {
                self.counts[0] += 1;
                let id = &worker.spec.id;
                let preview = preview.as_ref().map(|registration| &registration.spec.id);
                assert!(preview == Ok(id) || (!self.deterministic && preview.is_ok()), "{preview:?} is not {id}");
                assert!(survey.fits > 0, "{id} is not counted: {survey:?}");
                self.handles.push(handle);
                // It was among those that fit: without its claim it is counted.
                self.apply(Event::Release { handle });
                let only = PlacementConstraints { worker: Some(id.clone()), ..constraints };
                assert_eq!(self.survey(&only, needs_ms, 4_096).fits, 1);
                self.claim_again(&only, affinity, needs_ms);
            }
            EngineReply::NotPlaced(reason) => {
                self.counts[1] += 1;
                assert_eq!(
                    (preview.map(|registration| registration.spec.id.clone()), survey.fits),
                    (Err(Some(reason)), 0),
                    "{survey:?}"
                );
            }
            EngineReply::NoCapacity => {
                self.counts[1] += 1;
                assert_eq!(
                    (preview.map(|registration| registration.spec.id.clone()), survey.fits),
                    (Err(None), 0),
                    "{survey:?}"
                );
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

    fn claim_again(&mut self, constraints: &PlacementConstraints, affinity: u64, needs_ms: u64) {
        let fence = self.shard_fence();
        let id = ClaimId::new("ns", "default", &format!("k{fence}")).unwrap();
        let constraints = Some(Arc::new(constraints.clone()));
        let event = Event::Claim { id, fence, affinity, reserve_ms: 0, ttl_ms: needs_ms, constraints, target: None };
        let EngineReply::Granted(grant) = self.apply(event) else { panic!("the survey said that it fits") };
        self.handles.push(grant.handle);
    }

    /// Adds the shortfall to a worker, which then fits; then restores it.
    fn check_near_miss(
        &mut self,
        constraints: &PlacementConstraints,
        id: &WorkerId,
        shortfall: ResourceAmounts,
        needs_ms: u64,
    ) {
        let snapshot = self.shard.find_worker(id).unwrap();
        let before = snapshot.registration.spec.capacity.clone();
        if shortfall.gpu_milli > 0 {
            return;
        }
        let mut more = before.clone();
        more.cpu_milli += shortfall.cpu_milli;
        more.memory_bytes += shortfall.memory_bytes;
        more.slots += shortfall.slots;
        if shortfall.gpu > 0 {
            let requested = constraints.spec.as_ref().and_then(|spec| spec.resources.gpu.as_ref()).unwrap();
            let model = requested.models.first().cloned().unwrap_or_else(|| "T4".into());
            let gpu = more.gpu.get_or_insert(GpuCapacity { model, count: 0 });
            gpu.count += shortfall.gpu as u32;
        }
        let spec = WorkerSpec { capacity: more, ..snapshot.registration.spec.clone() };
        let only = PlacementConstraints { worker: Some(id.clone()), ..constraints.clone() };
        let mut again = |spec| {
            let ends_ms = None;
            self.apply(Event::Register { spec, ends_ms, claims: None, ttl_ms: 0 });
            self.survey(&only, needs_ms, 4_096).fits
        };
        assert_eq!(again(spec), 1, "{id} {before:?} is short of {shortfall:?}");
        assert_eq!(again(snapshot.registration.spec.clone()), 0);
        self.counts[2] += 1;
    }
}

fn run(steps: Vec<Step>, policy: PlacementPolicy) -> [u32; 3] {
    let shared = matches!(policy, PlacementPolicy::BestFit | PlacementPolicy::Spread | PlacementPolicy::Fgd);
    let shard = Shard::new(policy, 1);
    let deterministic = policy != PlacementPolicy::Random;
    let mut harness =
        Harness { shard, shared, deterministic, now_ms: 1, fence: 0, handles: Vec::new(), counts: [0; 3] };
    for step in steps {
        harness.step(step);
    }
    harness.counts
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

/// The runs above grant, reject, and correct near misses.
#[test]
fn random_runs_reach_every_outcome() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut counts = [0; 3];
    for policy in [PlacementPolicy::Lifo, PlacementPolicy::BestFit] {
        for _ in 0..40 {
            let steps = proptest::strategy::ValueTree::current(&steps().new_tree(&mut runner).unwrap());
            counts.iter_mut().zip(run(steps, policy)).for_each(|(sum, more)| *sum += more);
        }
    }
    assert!(counts.iter().all(|&counts| counts > 20), "{counts:?}");
}

/// P02: of each resource that is missing, the worker is counted there and nowhere else.
#[test]
fn p02_each_filter_is_named() {
    let mut harness = Harness {
        shard: Shard::new(PlacementPolicy::BestFit, 1),
        shared: true,
        deterministic: true,
        now_ms: 1,
        fence: 0,
        handles: Vec::new(),
        counts: [0; 3],
    };
    let id = |number: u8| WorkerId::new(&format!("w{number}")).unwrap();
    for (number, size) in [(0, 2), (1, 8), (2, 1), (3, 5), (4, 6), (5, 6)] {
        harness.register(&id(number), capacity(size), (number == 5).then_some(LONG_MS / 2));
    }
    let spec = |resources| Some(Arc::new(ClaimSpec { resources, ..ClaimSpec::default() }));
    let explained = |harness: &Harness, constraints: &PlacementConstraints| {
        let survey = harness.survey(constraints, LONG_MS, 2);
        let counted = FilterReason::ALL.iter().copied().filter(|reason| survey.count(*reason) > 0);
        let counted: Vec<_> = counted.map(|reason| (reason.as_str(), survey.count(reason))).collect();
        (survey.fits, counted)
    };
    let requested =
        |cpu_milli, memory_bytes, slots, gpu| spec(ResourceRequirements { cpu_milli, memory_bytes, slots, gpu });
    let gpu = |model: &str, count| Some(GpuRequest { models: vec![model.into()], count, milli: 1_000 });
    let constraints = |spec| PlacementConstraints { spec, ..PlacementConstraints::default() };
    assert_eq!(
        explained(&harness, &constraints(requested(8_000, 16, 0, None))),
        (3, vec![("cpu_milli", 2), ("expires", 1)])
    );
    assert_eq!(
        explained(&harness, &constraints(requested(1, 16, 4, None))),
        (1, vec![("cpu_milli", 1), ("memory_bytes", 1), ("slots", 3)])
    );
    assert_eq!(
        explained(&harness, &constraints(requested(1, 0, 0, gpu("A10", 3)))),
        (0, vec![("gpu_model", 4), ("gpu", 2)])
    );
    harness.apply(Event::WorkerCommand { id: id(0), command: WorkerCommand::Cordon });
    harness.apply(Event::WorkerCommand { id: id(1), command: WorkerCommand::Drain });
    let zone = PlacementConstraints {
        selector: Some(Arc::new(LabelSelector::parse("zone=a").unwrap())),
        ..constraints(requested(1, 0, 0, None))
    };
    // The byte of "w1" is odd.
    assert_eq!(explained(&harness, &zone), (2, vec![("cordoned", 1), ("draining", 1), ("selector", 2)]));
    let named = PlacementConstraints {
        worker: Some(id(3)),
        nodes: NodeSet::new(["n0".into(), "n1".into(), "n2".into()]),
        ..constraints(requested(1, 0, 0, None))
    };
    assert_eq!(
        explained(&harness, &named).0 + explained(&harness, &named).1.iter().map(|(_, count)| count).sum::<u64>(),
        6
    );
    // Half a GPU is free on the only worker that comes near.
    harness.apply(Event::Delete { id: id(3) });
    harness.apply(Event::Delete { id: id(5) });
    let share = |milli| requested(0, 0, 0, Some(GpuRequest { models: Vec::new(), count: 1, milli }));
    harness.claim_again(&constraints(share(500)), 0, SHORT_MS);
    harness.claim_again(&constraints(share(800)), 0, SHORT_MS);
    let survey = harness.survey(&constraints(share(600)), SHORT_MS, 2);
    let near = &survey.nearest[0];
    assert_eq!(
        (survey.fits, near.describe().as_str(), survey.most_free.gpu_milli),
        (0, "short by 100 thousandths of a GPU on w4", 500)
    );
    assert_eq!(survey.too_small, 1, "the worker without GPUs");
    let survey = harness.survey(&constraints(requested(0, 0, 0, gpu("A10", 1))), SHORT_MS, 2);
    assert_eq!(survey.nearest[0].describe(), "short by 1 GPU on w4");
}
