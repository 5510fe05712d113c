//! Demand of a pool, as an autoscaler reads it.

use hotpool::model::request_error::{ExhaustionReason, ObjectKind, RequestError};
use hotpool::model::{
    AckLevel, ClaimId, ClaimRequest, PlacementPolicy, Quota, UnusableWorkers, WorkerCommand, WorkerId,
};

use crate::queued_claims::{MINUTE, with_priority};
use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{World, done, id, name, spec, until};

/// Groups by request, and the number of workers that would satisfy them.
#[tokio::test]
async fn demand_shows_queued_claims_and_the_workers_that_they_need() {
    let world = World::on_memory().await;
    world.shared(shared(2, PlacementPolicy::BestFit), vec![sized("w0", 4_000, None), sized("w1", 2_000, None)]).await;
    world.share("h0", &cpu(4_000)).await.unwrap();
    world.share("h1", &cpu(2_000)).await.unwrap();
    assert_eq!(world.s.demand(&name("p")).await.unwrap().workers_needed, 0);
    let wait = |key: String, amount| ClaimRequest { wait_ms: MINUTE, ..request_for("p", &key, &cpu(amount)) };
    let mut waits = Vec::new();
    for n in 0..5 {
        waits.push(world.begin_queued(wait(format!("s{n}"), 1_000)).await);
    }
    waits.push(world.begin_queued(with_priority(wait("l".into(), 3_000), 9)).await);
    world.pass(2_000).await;
    world.s.put_quota("ns", Some("poor"), Quota { claims: Some(0), ..Quota::default() }).await.unwrap();
    let poor = ClaimRequest { id: ClaimId::new("ns", "poor", "q").unwrap(), ..wait("q".into(), 1_000) };
    waits.push(world.begin_request(poor).await);
    let demand = world.s.demand(&name("p")).await.unwrap();
    assert_eq!((demand.waiting, demand.waiting_for_quota), (6, 1));
    assert!(demand.oldest_ms >= 2_000);
    // Five thousand in units of four, and three thousand of another four.
    let rows: Vec<_> = demand
        .shapes
        .iter()
        .map(|shape| (shape.resources.cpu_milli, shape.reason, shape.waiting, shape.workers_needed, shape.priority))
        .collect();
    assert_eq!(
        rows,
        [(1_000, "pool_exhausted", 5, 2, 0), (3_000, "pool_exhausted", 1, 1, 9), (1_000, "quota", 1, 0, 0)]
    );
    assert_eq!(demand.workers_needed, 3);
    assert_eq!(world.s.demand(&name("none")).await, Err(RequestError::NotFound(ObjectKind::Pool)));
}

#[tokio::test]
async fn demand_lists_workers_that_could_be_removed() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0", "w1", "w2", "w3"]).await;
    world.s.command_worker(&name("p"), &WorkerId::new("w2").unwrap(), WorkerCommand::Cordon).await.unwrap();
    let fence = world.hold("p", "a").await;
    let idle = async || {
        let demand = world.s.demand(&name("p")).await.unwrap();
        demand.idle.iter().map(|worker| (worker.id.to_string(), worker.cordoned)).collect::<Vec<_>>()
    };
    // The warmest worker is held.
    assert_eq!(idle().await, [("w2".into(), true), ("w0".into(), false), ("w1".into(), false)]);
    world.s.release(&id("a"), fence).await.unwrap();
    assert_eq!(idle().await.last().unwrap().0, "w3", "the last to become idle");
}

/// Q12: the desired number counts each worker once: busy, reserved, needed, or unusable for good; gangs count by members.
#[tokio::test]
async fn q12_demand_counts_gangs_reservations_and_unusable_workers() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0", "w1", "w2", "w3"]).await;
    let command = async |worker: &str, command| {
        world.s.command_worker(&name("p"), &WorkerId::new(worker).unwrap(), command).await.unwrap();
    };
    command("w2", WorkerCommand::Cordon).await;
    command("w3", WorkerCommand::Drain).await;
    let _held = world.hold("p", "a").await;
    let gang: Vec<ClaimRequest> =
        ["g0", "g1"].map(|key| ClaimRequest { wait_ms: MINUTE, ..crate::world::request("p", key) }).into();
    let gang = world.begin(move |s| Box::pin(async move { s.claim_gang(gang).await })).await;
    until("it waits", async || world.s.waiting(&name("p")) == 1).await;
    let demand = world.s.demand(&name("p")).await.unwrap();
    assert_eq!((demand.waiting, demand.workers_busy, demand.workers_needed), (2, 1, 2));
    let UnusableWorkers { cordoned, draining, .. } = demand.workers_unusable;
    assert_eq!((cordoned, draining, demand.workers_wanted()), (1, 1, 4), "the draining one does not count");
    // What it needs is held for it after a while.
    world.pass(6_000).await;
    let demand = world.s.demand(&name("p")).await.unwrap();
    assert!(demand.idle.iter().all(|worker| worker.id.as_str() != "w1"), "it is reserved");
    assert_eq!((demand.workers_reserved, demand.workers_needed, demand.workers_wanted()), (1, 1, 4));
    gang.abort();
}

/// P08: a gang that is larger than its pool waits for workers, and learns at its deadline that none came.
#[tokio::test]
async fn p08_a_gang_waits_for_a_pool_that_is_empty_at_present() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &[]).await;
    let gang = |keys: [&str; 2], wait_ms| -> Vec<ClaimRequest> {
        keys.map(|key| ClaimRequest { wait_ms, ..crate::world::request("p", key) }).into()
    };
    let at_once = world.s.claim_gang(gang(["n0", "n1"], 0)).await;
    assert!(at_once.contains(&Err(RequestError::GangTooLarge)), "{at_once:?}");
    let (served, late) = (gang(["a0", "a1"], MINUTE), gang(["b0", "b1"], 1_000));
    let served = world.begin(move |s| Box::pin(async move { s.claim_gang(served).await })).await;
    let late = world.begin(move |s| Box::pin(async move { s.claim_gang(late).await })).await;
    until("both wait", async || world.s.waiting(&name("p")) == 2).await;
    assert_eq!(world.s.demand(&name("p")).await.unwrap().workers_wanted(), 4);
    world.pass(1_001).await;
    let unsatisfiable = Err(RequestError::Exhausted(ExhaustionReason::Unsatisfiable));
    assert!(done(late).await.contains(&unsatisfiable));
    world.add("p", &["w0", "w1"]).await;
    assert!(done(served).await.iter().all(Result::is_ok));
}
