//! W11 with reserved workers: after every random event each worker is in exactly one count, and in the one that a
//! naive recount puts it in. The oracle of the other tests has no reservations.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotpool::engine::{
    ClaimHandle, ClaimTarget, EngineReply, Event, EvictionPolicy, HeartbeatReport, PlacementConstraints,
    ReservationFate, ReservationId, Shard,
};
use hotpool::model::{
    ClaimId, ClaimSpec, LivenessState, PlacementPolicy, ResourceRequirements, SchedulingState, TrustState,
    UnschedulableCounts, WorkerCapacity, WorkerCommand, WorkerId, WorkerSpec,
};
use proptest::prelude::*;

const TTL_MS: u64 = 1_000;

#[derive(Debug, Clone)]
enum Step {
    Register { worker: u8, ends_in: Option<u64> },
    Delete { worker: u8 },
    Command { worker: u8, command: usize },
    Heartbeat { worker: u8 },
    Claim { slots: u64, ttl_ms: u64, target: Option<ClaimTarget> },
    Release { nth: usize },
    Reserve { id: ReservationId, slots: u64, evict: bool },
    CancelReservation { id: ReservationId },
    Advance { ms: u64 },
}

/// Target of a claim: any worker, a reserved one, or that with some ordinal, whatever its state.
fn target() -> impl Strategy<Value = Option<ClaimTarget>> {
    let fate = prop_oneof![Just(ReservationFate::Ends), Just(ReservationFate::Stays)];
    prop_oneof![
        2 => Just(None),
        2 => (1..4u64).prop_map(|id| Some(ClaimTarget::Reserved(ReservationId::new(id).unwrap()))),
        2 => (0..8u32, fate).prop_map(|(worker, fate)| Some(ClaimTarget::Worker(worker, fate))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let (worker, reservation) = (|| 0..6u8, || (1..4u64).prop_map(|id| ReservationId::new(id).unwrap()));
    prop_oneof![
        6 => (worker(), prop::option::weighted(0.4, 0..4_000u64)).prop_map(|(worker, ends_in)| Step::Register { worker, ends_in }),
        1 => worker().prop_map(|worker| Step::Delete { worker }),
        3 => (worker(), 0..4usize).prop_map(|(worker, command)| Step::Command { worker, command }),
        2 => worker().prop_map(|worker| Step::Heartbeat { worker }),
        8 => (1..4u64, prop_oneof![Just(0), 1..3_000u64], target()).prop_map(|(slots, ttl_ms, target)| Step::Claim { slots, ttl_ms, target }),
        4 => any::<usize>().prop_map(|nth| Step::Release { nth }),
        6 => (reservation(), 1..5u64, any::<bool>()).prop_map(|(id, slots, evict)| Step::Reserve { id, slots, evict }),
        2 => reservation().prop_map(|id| Step::CancelReservation { id }),
        3 => prop_oneof![0..50u64, 0..1_500u64].prop_map(|ms| Step::Advance { ms }),
    ]
}

fn constraints(slots: u64) -> Arc<PlacementConstraints> {
    let resources = ResourceRequirements { slots, ..ResourceRequirements::default() };
    let spec = ClaimSpec { resources, preemptible: true, ..ClaimSpec::default() };
    Arc::new(PlacementConstraints { spec: Some(Arc::new(spec)), ..PlacementConstraints::default() })
}

struct Recount {
    shard: Shard,
    now_ms: u64,
    fence: u64,
    handles: Vec<ClaimHandle>,
    /// Registered ends of life, by worker.
    ends: BTreeMap<String, u64>,
    /// Number of workers in each count, over all steps.
    counts: BTreeMap<&'static str, u64>,
}

impl Recount {
    fn apply(&mut self, event: Event) -> Option<EngineReply> {
        self.shard.handle_event(event, self.now_ms, &mut Vec::new())
    }

    fn step(&mut self, step: &Step) {
        let id = |worker: &u8| WorkerId::new(&format!("w{worker}")).unwrap();
        match step {
            Step::Register { worker, ends_in } => {
                self.fence += 1;
                let ends_ms = ends_in.map(|ms| self.now_ms + ms);
                let known = self.shard.find_worker(&id(worker)).map(|snapshot| snapshot.registration.spec.incarnation);
                let spec = WorkerSpec {
                    capacity: WorkerCapacity { slots: 4, ..WorkerCapacity::default() },
                    incarnation: known.unwrap_or(self.fence),
                    expires_at_ms: ends_ms,
                    ..WorkerSpec::with_id(id(worker))
                };
                match ends_ms {
                    Some(at) => drop(self.ends.insert(id(worker).to_string(), at)),
                    None => drop(self.ends.remove(id(worker).as_str())),
                }
                self.apply(Event::Register { spec, ends_ms, claims: None, ttl_ms: TTL_MS });
            }
            Step::Delete { worker } => drop(self.apply(Event::Delete { id: id(worker) })),
            Step::Command { worker, command } => {
                let command =
                    [WorkerCommand::Cordon, WorkerCommand::Uncordon, WorkerCommand::Drain, WorkerCommand::Clear]
                        [*command];
                self.apply(Event::WorkerCommand { id: id(worker), command });
            }
            Step::Heartbeat { worker } => {
                let Some(snapshot) = self.shard.find_worker(&id(worker)) else { return };
                let incarnation = snapshot.registration.spec.incarnation;
                let heartbeat = HeartbeatReport { incarnation, seq: None, claims: None, ttl_ms: TTL_MS };
                self.apply(Event::Heartbeat { id: id(worker), heartbeat });
            }
            Step::Claim { slots, ttl_ms, target } => {
                self.fence += 1;
                let fence = self.fence;
                let id = ClaimId::new("ns", "t", &format!("k{fence}")).unwrap();
                let constraints = Some(constraints(*slots));
                let event = Event::Claim {
                    id,
                    fence,
                    affinity: 1,
                    reserve_ms: 0,
                    ttl_ms: *ttl_ms,
                    constraints,
                    target: target.map(Box::new),
                };
                if let Some(EngineReply::Granted(grant)) = self.apply(event) {
                    self.handles.push(grant.handle);
                    self.apply(Event::ReplySent { handle: grant.handle, at_ms: self.now_ms });
                }
            }
            Step::Release { nth } if !self.handles.is_empty() => {
                let handle = self.handles.remove(nth % self.handles.len());
                self.apply(Event::Release { handle });
            }
            Step::Release { .. } => {}
            // A number is given once.
            Step::Reserve { id, .. } if self.shard.has_reservation(*id) => {}
            Step::Reserve { id, slots, evict } => {
                let evict = evict.then_some(EvictionPolicy { below_priority: 5, releasing_ms: 700, worker: None });
                let until_ms = self.now_ms + 500;
                self.apply(Event::Reserve { id: *id, constraints: constraints(*slots), evict, until_ms });
            }
            Step::CancelReservation { id } => drop(self.apply(Event::CancelReservation { id: *id })),
            Step::Advance { ms } => {
                self.now_ms += ms;
                self.apply(Event::Tick);
            }
        }
    }

    /// Recounts from the conditions that each worker shows.
    fn check(&mut self) {
        self.shard.check().unwrap();
        let (counted, mut found) = (self.shard.unschedulable(), UnschedulableCounts::default());
        let (mut busy, mut idle_or_reserved, mut all) = (0, 0, 0);
        for (_, snapshot) in self.shard.list_workers() {
            let ended = self.ends.get(snapshot.registration.spec.id.as_str()).is_some_and(|at| *at <= self.now_ms);
            let count =
                match (snapshot.conditions.schedulability, snapshot.conditions.liveness, snapshot.conditions.trust) {
                    _ if !snapshot.claims.is_empty() => &mut busy,
                    (SchedulingState::Draining, ..) => &mut found.draining,
                    (SchedulingState::Cordoned, ..) => &mut found.cordoned,
                    (_, LivenessState::Lost, _) => &mut found.lost,
                    (.., TrustState::Suspect) => &mut found.suspect,
                    _ if ended => &mut found.ended,
                    _ if snapshot.conditions.busy => &mut found.stopping,
                    _ => &mut idle_or_reserved,
                };
            *count += 1;
            all += 1;
        }
        // The others are idle or reserved: the shard shows reservations by id only.
        found.reserved = counted.by_first_reason.reserved;
        let reserved =
            (1..4).filter_map(ReservationId::new).filter(|id| self.shard.has_reservation(*id)).count() as u64;
        assert_eq!((counted.by_first_reason, counted.by_reason.reserved), (found, reserved));
        assert_eq!(
            (self.shard.idle() as u64 + found.reserved, self.shard.busy() as u64, self.shard.workers() as u64),
            (idle_or_reserved, busy, all)
        );
        assert_eq!(
            all,
            self.shard.idle() as u64 + busy + counted.by_first_reason.total(),
            "each worker is in one count"
        );
        let states = [
            ("idle", self.shard.idle() as u64),
            ("busy", busy),
            ("draining", found.draining),
            ("cordoned", found.cordoned),
            ("lost", found.lost),
            ("suspect", found.suspect),
            ("ended", found.ended),
            ("reserved", found.reserved),
            ("reserved and busy", reserved - found.reserved),
        ];
        states.into_iter().for_each(|(state, workers)| *self.counts.entry(state).or_default() += workers);
    }
}

#[test]
fn w11_every_worker_is_in_one_count_after_every_event() {
    let counts = std::cell::RefCell::new(BTreeMap::<&str, u64>::new());
    let config = ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() };
    let policies = [
        PlacementPolicy::Lifo,
        PlacementPolicy::Fifo,
        PlacementPolicy::Random,
        PlacementPolicy::BestFit,
        PlacementPolicy::Spread,
        PlacementPolicy::Fgd,
    ];
    let all = (0..policies.len(), prop::collection::vec(step(), 1..120));
    proptest::test_runner::TestRunner::new(config)
        .run(&all, |(policy, steps)| {
            let shard = Shard::new(policies[policy], 1);
            let (handles, ends) = (Vec::new(), BTreeMap::new());
            let mut recount = Recount { shard, now_ms: 1, fence: 0, handles, ends, counts: BTreeMap::new() };
            for step in &steps {
                recount.step(step);
                recount.check();
            }
            recount
                .counts
                .iter()
                .for_each(|(state, workers)| *counts.borrow_mut().entry(state).or_default() += workers);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    assert!(counts.borrow().values().all(|&workers| workers > 20), "{counts:?}");
}
