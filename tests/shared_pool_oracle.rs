//! Compares one shard of a shared pool with a naive oracle: every allocation was free, a rejection means that no
//! worker has the resources, nothing leaks, and the rows give the same shard. `PROPTEST_SEED` and the printed steps
//! reproduce a run.

#[path = "shared_pool_oracle/drive.rs"]
mod drive;
#[path = "shared_pool_oracle/oracle.rs"]
mod oracle;
#[path = "shared_pool_oracle/steps.rs"]
mod steps;

use std::sync::Arc;

use hotpool::engine::{
    ClaimHandle, Effect, EngineReply, Event, HeartbeatReport, PlacementFailure, ReservationId, Shard, ShardConfig,
};
use hotpool::model::{
    ClaimId, GpuCapacity, PlacementPolicy, ResourceRequirements, WorkerCapacity, WorkerCommand, WorkerId, WorkerSpec,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use crate::oracle::Harness;
use crate::steps::{Step, constraints, steps};

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// C08, L1, L2, N1, V1 in a shared pool.
    #[test]
    fn c08_allocations_are_free_when_granted_and_nothing_leaks(steps in steps(), policy in 0..3usize) {
        let mut harness = Harness::new([PlacementPolicy::BestFit, PlacementPolicy::Spread, PlacementPolicy::Fgd][policy]);
        for step in steps {
            harness.step(step);
        }
        while harness.claims.values().any(|claim| claim.gang.is_some()) {
            harness.step(Step::Decide { commit: false });
        }
        let handles: Vec<ClaimHandle> = harness.claims.values().map(|claim| claim.handle).collect();
        for handle in handles {
            harness.on(Event::Release { handle });
        }
        prop_assert_eq!(harness.shard.held(), 0);
        harness.restart();
        // Uncordoned, every worker has its whole capacity free.
        for id in harness.workers.keys().cloned().collect::<Vec<_>>() {
            let id = WorkerId::new(&id).unwrap();
            harness.on(Event::WorkerCommand { id, command: WorkerCommand::Uncordon });
        }
        let sums = harness.shard.free_summary().unwrap().map(|(sum, _)| (sum.amounts.cpu_milli, sum.amounts.memory_bytes, sum.amounts.gpu_milli));
        let all = |amount: fn(&WorkerCapacity) -> u64| harness.workers.values().map(|worker| u128::from(amount(&worker.spec.capacity))).sum::<u128>();
        prop_assert_eq!(sums[0].0 + sums[1].0, all(|capacity| capacity.cpu_milli));
        prop_assert_eq!(sums[0].1 + sums[1].1, all(|capacity| capacity.memory_bytes));
        prop_assert_eq!(sums[1].2, all(|capacity| capacity.gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * 1_000)));
    }
}

/// The runs above meet workers that end too soon: none, some of those that fit, and all of them.
#[test]
fn c11_random_runs_reach_every_mix_of_ends() {
    let mut runner = TestRunner::deterministic();
    let mut counts = [0; 3];
    for policy in [PlacementPolicy::BestFit, PlacementPolicy::Spread, PlacementPolicy::Fgd] {
        for _ in 0..100 {
            let mut harness = Harness::new(policy);
            for step in steps().new_tree(&mut runner).unwrap().current() {
                harness.step(step);
            }
            counts.iter_mut().zip(harness.counts).for_each(|(sum, more)| *sum += more);
        }
    }
    assert!(counts.iter().all(|&counts| counts > 20), "{counts:?}");
}

/// P03: 1,000 equal requests fill one worker exactly; of 3 that need half a worker each, 2 are placed; 70 tiny ones
/// pack onto one.
#[test]
fn p03_one_worker_is_filled_exactly() {
    let fill = |cpu_milli: u64, workers: u8, each: u64, count: u64| {
        let mut shard = Shard::new(PlacementPolicy::BestFit, 1);
        let mut effects = Vec::new();
        for number in 0..workers {
            let capacity = WorkerCapacity { cpu_milli, ..WorkerCapacity::default() };
            let spec = WorkerSpec { capacity, ..WorkerSpec::with_id(WorkerId::new(&format!("w{number}")).unwrap()) };
            shard.handle_event(Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 0 }, 1, &mut effects);
        }
        effects.clear();
        let resources = ResourceRequirements { cpu_milli: each, ..ResourceRequirements::default() };
        let constraints = Arc::new(constraints(&resources, 0));
        for fence in 1..=count {
            let id = ClaimId::new("ns", "default", &format!("k{fence}")).unwrap();
            let constraints = Some(Arc::clone(&constraints));
            let event = Event::Claim { id, fence, affinity: 0, reserve_ms: 0, ttl_ms: 0, constraints, target: None };
            shard.handle_event(event, 1, &mut effects);
        }
        shard.check().unwrap();
        (shard.held() as u64, shard.busy())
    };
    assert_eq!(fill(1_000, 1, 1, 1_001), (1_000, 1));
    assert_eq!(fill(2_000, 1, 1_000, 3), (2, 1));
    assert_eq!(fill(4_000, 8, 10, 70), (70, 1));
}

/// GPU models are numbered: beyond the limit a worker is rejected, and nothing of it stays.
#[test]
fn b1_models_beyond_the_limit_are_rejected() {
    let mut shard = Shard::new(PlacementPolicy::BestFit, 1);
    let mut register = |number: usize| {
        let gpu = Some(GpuCapacity { model: format!("m{number}").into(), count: 1 });
        let capacity = WorkerCapacity { gpu, ..WorkerCapacity::default() };
        let spec = WorkerSpec { capacity, ..WorkerSpec::with_id(WorkerId::new(&format!("w{number}")).unwrap()) };
        let event = Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 0 };
        let answer = shard.handle_event(event, 1, &mut Vec::new()).expect("a reply");
        (matches!(answer, EngineReply::TooManyModels), shard.workers())
    };
    for number in 0..4_096 {
        assert_eq!(register(number), (false, number + 1));
    }
    assert_eq!(register(4_096), (true, 4_096));
    assert_eq!(register(7), (false, 4_096), "a known model is still accepted");
}

/// Q12: a worker that is deleted because it was lost frees its ordinal, and the next worker with that ordinal is not
/// reserved.
#[test]
fn q12_a_reservation_of_a_deleted_worker_does_not_pass_to_the_next_with_its_ordinal() {
    let rules = ShardConfig { lost_keep_ms: Some(10), ..PlacementPolicy::BestFit.into() };
    let mut shard = Shard::new(rules, 1);
    let mut on = |event, now_ms| {
        let mut effects = Vec::new();
        (shard.handle_event(event, now_ms, &mut effects), effects)
    };
    let register = |id: &str| {
        let capacity = WorkerCapacity { cpu_milli: 1_000, ..WorkerCapacity::default() };
        let spec = WorkerSpec { capacity, ..WorkerSpec::with_id(WorkerId::new(id).unwrap()) };
        Event::Register { spec, ends_ms: None, claims: None, ttl_ms: 10 }
    };
    let constraints =
        || Arc::new(constraints(&ResourceRequirements { cpu_milli: 1_000, ..ResourceRequirements::default() }, 0));
    let reservation = |id| ReservationId::new(id).unwrap();
    let reserve = |id| Event::Reserve { id: reservation(id), constraints: constraints(), evict: None, until_ms: 100 };
    let is_reserved = |reply: Option<EngineReply>| matches!(reply, Some(EngineReply::WorkerReserved(_)));
    on(register("w0"), 1);
    let heartbeat = HeartbeatReport { incarnation: 0, seq: None, claims: None, ttl_ms: 10 };
    on(Event::Heartbeat { id: WorkerId::new("w0").unwrap(), heartbeat }, 1);
    assert!(is_reserved(on(reserve(1), 1).0));
    on(Event::Tick, 11);
    assert!(
        matches!(&on(Event::Tick, 21).1[..], [Effect::WorkerDeleted { worker }] if worker.spec.id.as_str() == "w0")
    );
    on(register("w1"), 21);
    assert!(is_reserved(on(reserve(2), 21).0));
    on(Event::CancelReservation { id: reservation(1) }, 21);
    let id = ClaimId::new("ns", "default", "k").unwrap();
    let constraints = Some(constraints());
    let claim = Event::Claim { id, fence: 1, affinity: 7, reserve_ms: 0, ttl_ms: 0, constraints, target: None };
    let rejected = Some(EngineReply::NotPlaced(PlacementFailure::Busy));
    assert_eq!(on(claim, 21).0, rejected, "w1 is reserved for the second");
}
