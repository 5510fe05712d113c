//! Cost of decisions and listings does not grow with the fleet: counted in steps, not in time, on shards of 1,000 and
//! of 100,000 workers.

use std::sync::Arc;

use hotpool::engine::{ClaimHandle, Effect, EngineReply, Event, HeartbeatReport, PlacementConstraints, Shard};
use hotpool::limits;
use hotpool::model::label_selector::LabelSelector;
use hotpool::model::{
    ClaimId, ClaimSpec, Labels, PlacementPolicy, ResourceRequirements, WorkerCapacity, WorkerCommand, WorkerId,
    WorkerSpec,
};

const SIZES: [u32; 2] = [1_000, 100_000];
/// End of workers that end soon, and time for which claims need one.
const NEAR_MS: u64 = 10_000;
const NEEDS_MS: u64 = 50_000;
/// Steps that a decision may take, however many workers there are: a few descents of a tree, each about as long as
/// twice the binary logarithm of 100,000.
const STEPS_MAX: u64 = 200;

const EXCLUSIVE: [PlacementPolicy; 3] = [PlacementPolicy::Lifo, PlacementPolicy::Fifo, PlacementPolicy::Random];
const SHARED: [PlacementPolicy; 3] = [PlacementPolicy::BestFit, PlacementPolicy::Spread, PlacementPolicy::Fgd];

struct Fleet {
    shard: Shard,
    fence: u64,
}

impl Fleet {
    fn new(policy: PlacementPolicy) -> Self {
        Self { shard: Shard::new(policy, 1), fence: 0 }
    }

    fn on(&mut self, event: Event) -> Option<EngineReply> {
        let answer = self.shard.handle_event(event, 1, &mut Vec::new());
        self.shard.discard_changes();
        answer
    }

    fn register(&mut self, number: u32, ends_ms: Option<u64>) {
        let capacity = WorkerCapacity { cpu_milli: 8_000, slots: (number % 4).into(), ..WorkerCapacity::default() };
        let zone = ["a", "b", "c"][number as usize % 3];
        let spec = WorkerSpec {
            capacity,
            labels: Labels::from([("zone".into(), zone.into())]),
            expires_at_ms: ends_ms,
            ..WorkerSpec::with_id(WorkerId::new(&format!("w{number}")).unwrap())
        };
        self.on(Event::Register { spec, ends_ms, claims: None, ttl_ms: 0 });
    }

    fn command(&mut self, number: u32, command: WorkerCommand) {
        self.on(Event::WorkerCommand { id: WorkerId::new(&format!("w{number}")).unwrap(), command });
    }

    /// Handle that the claim was granted, and the steps that it took.
    fn claim(&mut self, constraints: Option<PlacementConstraints>, ttl_ms: u64) -> (Option<ClaimHandle>, u64) {
        self.fence += 1;
        let (fence, before) = (self.fence, self.shard.search_steps());
        let id = ClaimId::new("ns", "t", &format!("k{fence}")).unwrap();
        let constraints = constraints.map(Arc::new);
        let event = Event::Claim { id, fence, affinity: fence, reserve_ms: 0, ttl_ms, constraints, target: None };
        let handle = match self.on(event) {
            Some(EngineReply::Granted(grant)) => Some(grant.handle),
            Some(EngineReply::NoCapacity | EngineReply::NotPlaced(_)) => None,
            other => panic!("{other:?}"),
        };
        (handle, self.shard.search_steps() - before)
    }
}

fn constraints(selector: Option<&str>) -> PlacementConstraints {
    let resources = ResourceRequirements { cpu_milli: 1_000, ..ResourceRequirements::default() };
    PlacementConstraints {
        selector: selector.map(|text| Arc::new(LabelSelector::parse(text).unwrap())),
        spec: Some(Arc::new(ClaimSpec { resources, ..ClaimSpec::default() })),
        ..PlacementConstraints::default()
    }
}

/// C11: all workers but some end too soon, each at another time; then all do.
#[test]
fn c11_a_claim_skips_workers_that_end_too_soon() {
    for policy in EXCLUSIVE.into_iter().chain(SHARED) {
        let shared = SHARED.contains(&policy);
        for workers in SIZES {
            let mut fleet = Fleet::new(policy);
            let outlives = |number: u32| number % (workers / 4) == 7;
            for number in 0..workers {
                let ends_ms = NEAR_MS + u64::from(number % 5_000);
                fleet.register(number, Some(if outlives(number) { 10 * NEEDS_MS } else { ends_ms }));
            }
            // Builds what the first claim of its kind does.
            fleet.claim(Some(constraints(Some("zone=a"))), 0);
            let request = [Some(constraints(None)), Some(constraints(Some("zone in (a, b, c)"))), None];
            for request in request.into_iter().filter(|request| request.is_some() || !shared) {
                let (handle, steps) = fleet.claim(request.clone(), NEEDS_MS);
                let handle = handle.expect("four workers live for long enough");
                assert!(steps <= STEPS_MAX, "{policy:?}: {steps} steps beside {workers} idle workers for {request:?}");
                if !shared {
                    continue;
                }
                fleet.on(Event::Release { handle });
            }
            for number in (0..workers).filter(|&number| outlives(number)) {
                fleet.command(number, WorkerCommand::Cordon);
            }
            for request in [Some(constraints(None)), Some(constraints(Some("zone!=a")))] {
                let (handle, steps) = fleet.claim(request.clone(), NEEDS_MS);
                assert_eq!(handle, None, "all end too soon");
                assert!(steps <= STEPS_MAX, "{policy:?}: {steps} steps to reject a claim among {workers} workers");
            }
            let (handle, _) = fleet.claim(Some(constraints(None)), 0);
            assert!(handle.is_some(), "a short claim is granted");
        }
    }
}

/// C11 in a shared pool where hardly two workers have equal free resources.
#[test]
fn c11_distinct_vectors_that_end_too_soon_are_skipped_together() {
    for policy in SHARED {
        // Each event compares the entries of the accounting, of which there are as many as workers.
        for workers in [1_000_u32, 8_000] {
            let mut fleet = Fleet::new(policy);
            for number in 0..workers {
                let capacity = WorkerCapacity { cpu_milli: 8_000 + u64::from(number), ..WorkerCapacity::default() };
                let ends_ms = Some(NEAR_MS + u64::from(number % 5_000));
                let id = WorkerId::new(&format!("w{number}")).unwrap();
                let spec = WorkerSpec { capacity, expires_at_ms: ends_ms, ..WorkerSpec::with_id(id) };
                fleet.on(Event::Register { spec, ends_ms, claims: None, ttl_ms: 0 });
            }
            let (handle, steps) = fleet.claim(Some(constraints(None)), NEEDS_MS);
            assert!(
                handle.is_none() && steps <= STEPS_MAX,
                "{policy:?}: {steps} steps among {workers} distinct vectors"
            );
        }
    }
}

/// D2: the list of the workers that are idle for longest examines as many as it returns.
#[test]
fn d2_the_longest_idle_workers_are_found_without_visiting_the_others() {
    const LIMIT: usize = 100;
    for policy in EXCLUSIVE {
        for workers in SIZES {
            let mut fleet = Fleet::new(policy);
            // Every other one ends, some are cordoned.
            (0..workers).for_each(|number| fleet.register(number, (number % 2 == 0).then_some(NEEDS_MS)));
            (0..7).for_each(|number| fleet.command(number * 11, WorkerCommand::Cordon));
            let before = fleet.shard.search_steps();
            let found = fleet.shard.idle_longest(LIMIT);
            let steps = fleet.shard.search_steps() - before;
            assert_eq!(found.len(), LIMIT);
            assert_eq!(found.iter().filter(|worker| worker.cordoned).count(), 7);
            assert!(steps <= 5 * LIMIT as u64, "{policy:?}: {steps} steps for {LIMIT} of {workers} workers");
        }
    }
}

/// W08: one run of a shard examines a bounded number of claims, whatever passes, and a list has each claim once.
#[test]
fn w08_a_filtered_list_of_claims_is_taken_in_slices() {
    const CLAIMS: u32 = 20_000;
    let mut fleet = Fleet::new(PlacementPolicy::Lifo);
    (0..CLAIMS).for_each(|number| fleet.register(number, None));
    let handles: Vec<ClaimHandle> = (0..CLAIMS).map(|_| fleet.claim(None, 0).0.unwrap()).collect();
    // Holes, so that a slice is one of ordinals and not of claims.
    for handle in handles.iter().filter(|handle| handle.fence % 7 == 0) {
        fleet.on(Event::Release { handle: *handle });
    }
    let fence = |id: &ClaimId| id.key()[1..].parse::<u64>().unwrap();
    type FenceFilter = fn(u64) -> bool;
    let filters: [(&str, FenceFilter); 4] = [
        ("nothing", |_| false),
        ("few", |fence| fence.is_multiple_of(5_000)),
        ("some", |fence| fence.is_multiple_of(3)),
        ("all", |_| true),
    ];
    for (label, filter) in filters {
        for limit in [1, 50, 1_000] {
            let (mut listed, mut from, mut runs) = (Vec::new(), Some(0), 0);
            while let Some(at) = from {
                let examined = std::cell::Cell::new(0);
                let slice = fleet.shard.claims_from(at, limit, |claim| {
                    examined.set(examined.get() + 1);
                    filter(fence(claim.id))
                });
                assert!(examined.get() <= limits::SLICE_ENTRIES, "{label}: {} claims in a run", examined.get());
                assert!(slice.rows.len() <= limit);
                listed.extend(slice.rows.iter().map(|(_, id, _)| fence(id)));
                assert!(slice.next.is_none_or(|next| next > at), "the listing advances");
                (from, runs) = (slice.next, runs + 1);
            }
            let mut expected: Vec<u64> =
                handles.iter().map(|handle| handle.fence).filter(|fence| fence % 7 != 0).collect();
            expected.retain(|&fence| filter(fence));
            listed.sort_unstable();
            assert_eq!(listed, expected, "{label}, {limit} a time");
            assert!(runs as usize <= CLAIMS as usize / limits::SLICE_ENTRIES as usize + 1 + expected.len() / limit);
        }
    }
}

/// W08: a list of workers with their claims, and unused ordinals, is bounded as well.
#[test]
fn w08_a_list_of_workers_is_taken_in_slices() {
    const WORKERS: u32 = 5_000;
    let mut fleet = Fleet::new(PlacementPolicy::BestFit);
    (0..WORKERS).for_each(|number| fleet.register(number, None));
    for _ in 0..3_000 {
        fleet.claim(Some(constraints(None)), 0);
    }
    for number in 500..4_500 {
        fleet.on(Event::Delete { id: WorkerId::new(&format!("w{number}")).unwrap() });
    }
    let (mut listed, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let slice = fleet.shard.workers_from(at, usize::MAX);
        let claims: usize = slice.rows.iter().map(|(_, snapshot)| snapshot.claims.len()).sum();
        let slack = limits::WORKER_CLAIMS_MAX as usize;
        assert!(slice.rows.len() + claims < limits::SLICE_ENTRIES as usize + slack);
        assert!(slice.next.is_none_or(|next| next > at && next - at <= limits::SLICE_ENTRIES));
        listed.extend(slice.rows.into_iter().map(|(_, snapshot)| snapshot.registration.spec.id.to_string()));
        from = slice.next;
    }
    let expected: Vec<String> = (0..500).chain(4_500..WORKERS).map(|number| format!("w{number}")).collect();
    assert_eq!(listed, expected);
}

/// C10: claims that expire at once are ended a bounded number at a time, each of them, in the order of their
/// deadlines.
#[test]
fn c10_deadlines_that_pass_together_are_handled_in_slices() {
    const CLAIMS: usize = 3 * limits::EXPIRIES_PER_RUN_MAX + 10;
    let mut fleet = Fleet::new(PlacementPolicy::Lifo);
    (0..CLAIMS as u32).for_each(|number| fleet.register(number, None));
    for _ in 0..CLAIMS {
        let handle = fleet.claim(None, 100).0.unwrap();
        fleet.on(Event::ReplySent { handle, at_ms: 1 });
    }
    let mut ended = Vec::new();
    for run in 1..=4 {
        assert!(fleet.shard.next_tick_ms().is_some_and(|at| at <= 200), "the next run is due");
        let mut effects: Vec<Effect> = Vec::new();
        fleet.shard.handle_event(Event::Tick, 200, &mut effects);
        fleet.shard.discard_changes();
        assert!(effects.len() <= limits::EXPIRIES_PER_RUN_MAX, "{} ends in one run", effects.len());
        ended.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::ClaimEnded { fence, .. } => Some(fence),
            _ => None,
        }));
        assert_eq!(ended.len(), CLAIMS.min(run * limits::EXPIRIES_PER_RUN_MAX));
    }
    ended.sort_unstable();
    ended.dedup();
    assert_eq!((ended.len(), fleet.shard.held(), fleet.shard.next_tick_ms()), (CLAIMS, 0, None));
}

/// C10: workers that fall silent together have many claims each; how many of those end in one run is bounded as well.
#[test]
fn c10_workers_that_fall_silent_together_are_lost_in_slices() {
    const WORKERS: u32 = 200;
    const EACH: usize = 8;
    let mut fleet = Fleet::new(PlacementPolicy::BestFit);
    for number in 0..WORKERS {
        fleet.register(number, None);
        let heartbeat = HeartbeatReport { incarnation: 0, seq: Some(1), claims: None, ttl_ms: 100 };
        fleet.on(Event::Heartbeat { id: WorkerId::new(&format!("w{number}")).unwrap(), heartbeat });
    }
    let claims = WORKERS as usize * EACH;
    for _ in 0..claims {
        fleet.claim(Some(constraints(None)), 0).0.expect("each worker fits eight claims");
    }
    let (mut ended, mut runs) = (0, 0);
    while fleet.shard.next_tick_ms().is_some_and(|at| at <= 200) {
        let mut effects: Vec<Effect> = Vec::new();
        fleet.shard.handle_event(Event::Tick, 200, &mut effects);
        fleet.shard.discard_changes();
        // The last worker of a run ends all its claims.
        assert!(effects.len() < limits::EXPIRIES_PER_RUN_MAX + 1 + 2 * EACH, "{} effects in one run", effects.len());
        ended += effects.iter().filter(|effect| matches!(effect, Effect::ClaimEnded { .. })).count();
        runs += 1;
    }
    assert_eq!((ended, fleet.shard.held()), (claims, 0));
    assert!(runs > 1, "all in one run");
}

/// N1: a survey proceeds in slices of ordinals, also where most of them are unused.
#[test]
fn n1_a_survey_examines_no_more_than_its_slice() {
    const WORKERS: u32 = 5_000;
    let mut fleet = Fleet::new(PlacementPolicy::Lifo);
    (0..WORKERS).for_each(|number| fleet.register(number, None));
    for number in 1..WORKERS - 1 {
        fleet.on(Event::Delete { id: WorkerId::new(&format!("w{number}")).unwrap() });
    }
    let (mut workers, mut slices, mut from) = (0, 0, Some(0));
    while let Some(at) = from {
        let (survey, next) = fleet.shard.survey(None, 0, 1, at, limits::SLICE_ENTRIES);
        assert!(next.is_none_or(|next| next - at == limits::SLICE_ENTRIES));
        (workers, slices, from) = (workers + survey.workers, slices + 1, next);
    }
    assert_eq!((workers, slices), (2, WORKERS.div_ceil(limits::SLICE_ENTRIES)));
}
