//! W11 with workers that are kept for claims that wait: after every random event each worker is in exactly one count, and
//! in the one that a naive recount puts it in. The oracle of the other tests knows of no such workers.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotpool::engine::{
    ClaimHandle, Effect, EngineReply, Event, EvictionPolicy, HeartbeatReport, PlacementConstraints, Shard,
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
    Steer { worker: u8, verb: usize },
    Beat { worker: u8 },
    Claim { slots: u64, ttl_ms: u64, ticket: u64 },
    Release { nth: usize },
    Keep { ticket: u64, slots: u64, evict: bool },
    Give { ticket: u64 },
    Pass { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let (worker, ticket) = (|| 0..6u8, || 1..4u64);
    prop_oneof![
        6 => (worker(), prop::option::weighted(0.4, 0..4_000u64)).prop_map(|(worker, ends_in)| Step::Register { worker, ends_in }),
        1 => worker().prop_map(|worker| Step::Delete { worker }),
        3 => (worker(), 0..4usize).prop_map(|(worker, verb)| Step::Steer { worker, verb }),
        2 => worker().prop_map(|worker| Step::Beat { worker }),
        8 => (1..4u64, prop_oneof![Just(0), 1..3_000u64], prop_oneof![Just(0), ticket()])
            .prop_map(|(slots, ttl_ms, ticket)| Step::Claim { slots, ttl_ms, ticket }),
        4 => any::<usize>().prop_map(|nth| Step::Release { nth }),
        6 => (ticket(), 1..5u64, any::<bool>()).prop_map(|(ticket, slots, evict)| Step::Keep { ticket, slots, evict }),
        2 => ticket().prop_map(|ticket| Step::Give { ticket }),
        3 => prop_oneof![0..50u64, 0..1_500u64].prop_map(|ms| Step::Pass { ms }),
    ]
}

fn wants(slots: u64) -> Arc<PlacementConstraints> {
    let resources = ResourceRequirements { slots, ..ResourceRequirements::default() };
    let spec = ClaimSpec { resources, preemptible: true, ..ClaimSpec::default() };
    Arc::new(PlacementConstraints { spec: Some(Arc::new(spec)), ..PlacementConstraints::default() })
}

struct World {
    shard: Shard,
    now_ms: u64,
    fence: u64,
    held: Vec<ClaimHandle>,
    /// Ends of life, as they were registered.
    ends: BTreeMap<String, u64>,
    /// How often a worker was counted in which way.
    seen: BTreeMap<&'static str, u64>,
}

impl World {
    fn on(&mut self, event: Event<()>) -> Option<EngineReply> {
        let mut effects = Vec::new();
        self.shard.handle_event(event, self.now_ms, &mut effects);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Reply { answer, .. } => Some(answer),
            _ => None,
        })
    }

    fn step(&mut self, step: &Step) {
        let id = |worker: &u8| WorkerId::new(&format!("w{worker}")).unwrap();
        match step {
            Step::Register { worker, ends_in } => {
                self.fence += 1;
                let ends_ms = ends_in.map(|ms| self.now_ms + ms);
                let known = self.shard.find_worker(&id(worker)).map(|look| look.registration.spec.incarnation);
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
                self.on(Event::Register { spec, ends_ms, claims: None, ttl_ms: TTL_MS, to: () });
            }
            Step::Delete { worker } => drop(self.on(Event::Delete { id: id(worker), to: () })),
            Step::Steer { worker, verb } => {
                let verb =
                    [WorkerCommand::Cordon, WorkerCommand::Uncordon, WorkerCommand::Drain, WorkerCommand::Clear][*verb];
                self.on(Event::WorkerCommand { id: id(worker), command: verb, to: () });
            }
            Step::Beat { worker } => {
                let Some(look) = self.shard.find_worker(&id(worker)) else { return };
                let incarnation = look.registration.spec.incarnation;
                let beat = HeartbeatReport { incarnation, seq: None, claims: None, ttl_ms: TTL_MS };
                self.on(Event::Heartbeat { id: id(worker), beat, to: () });
            }
            Step::Claim { slots, ttl_ms, ticket } => {
                self.fence += 1;
                let fence = self.fence;
                let id = ClaimId::new("ns", "t", &format!("k{fence}")).unwrap();
                let wants = Some(wants(*slots));
                let (affinity, promise) = (1, *ticket);
                let event = Event::Claim {
                    id,
                    fence,
                    affinity,
                    reserve_ms: 0,
                    ttl_ms: *ttl_ms,
                    wants,
                    reservation_ticket: promise,
                    to: (),
                };
                if let Some(EngineReply::Granted(grant)) = self.on(event) {
                    self.held.push(grant.handle);
                    self.on(Event::ReplySent { place: grant.handle, at_ms: self.now_ms });
                }
            }
            Step::Release { nth } if !self.held.is_empty() => {
                let place = self.held.remove(nth % self.held.len());
                self.on(Event::Release { place, to: () });
            }
            Step::Release { .. } => {}
            Step::Keep { ticket, slots, evict } => {
                let evict = evict.then_some(EvictionPolicy { below_priority: 5, releasing_ms: 700 });
                let until_ms = self.now_ms + 500;
                self.on(Event::Reserve { ticket: *ticket, wants: wants(*slots), evict, until_ms, to: () });
            }
            Step::Give { ticket } => drop(self.on(Event::CancelReservation { ticket: *ticket })),
            Step::Pass { ms } => {
                self.now_ms += ms;
                self.on(Event::Tick);
            }
        }
    }

    /// Counts anew from what each worker shows of itself.
    fn recount(&mut self) {
        self.shard.check().unwrap();
        let (counted, mut found) = (self.shard.unschedulable(), UnschedulableCounts::default());
        let (mut busy, mut others, mut all) = (0, 0, 0);
        for (_, look) in self.shard.list_workers() {
            let ended = self.ends.get(look.registration.spec.id.as_str()).is_some_and(|at| *at <= self.now_ms);
            let count = match (look.conditions.schedulability, look.conditions.liveness, look.conditions.trust) {
                _ if !look.claims.is_empty() => &mut busy,
                (SchedulingState::Draining, ..) => &mut found.draining,
                (SchedulingState::Cordoned, ..) => &mut found.cordoned,
                (_, LivenessState::Lost, _) => &mut found.lost,
                (.., TrustState::Suspect) => &mut found.suspect,
                _ if ended => &mut found.ended,
                _ if look.conditions.busy => &mut found.stopping,
                _ => &mut others,
            };
            *count += 1;
            all += 1;
        }
        // What is left is idle or kept: of that the shard says only for whom.
        found.reserved = counted.by_first_reason.reserved;
        let kept = (1..4).filter(|ticket| self.shard.has_reservation(*ticket)).count() as u64;
        assert_eq!((counted.by_first_reason, counted.by_reason.reserved), (found, kept));
        assert_eq!(
            (self.shard.idle() as u64 + found.reserved, self.shard.busy() as u64, self.shard.workers() as u64),
            (others, busy, all)
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
            ("reserved and busy", kept - found.reserved),
        ];
        states.into_iter().for_each(|(state, workers)| *self.seen.entry(state).or_default() += workers);
    }
}

#[test]
fn w11_every_worker_is_in_one_count_after_every_event() {
    let seen = std::cell::RefCell::new(BTreeMap::<&str, u64>::new());
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
            let (held, ends, counts) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
            let mut world = World { shard, now_ms: 1, fence: 0, held, ends, seen: counts };
            for step in &steps {
                world.step(step);
                world.recount();
            }
            world.seen.iter().for_each(|(state, workers)| *seen.borrow_mut().entry(state).or_default() += workers);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    assert!(seen.borrow().values().all(|&workers| workers > 20), "{seen:?}");
}
