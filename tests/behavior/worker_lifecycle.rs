//! W01, W03, C11, and shrinking capacity: the lifecycle of a worker, as its operator and its registrar drive it.

use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    AckLevel, ClaimRequest, ClaimState, PlacementPolicy, PoolSpec, RegistrationRequest, SchedulingState, TrustState,
    WorkerCapacity, WorkerCommand, WorkerId, WorkerSpec,
};

use crate::heartbeats::running;
use crate::world::{FULL, World, id, name, request, spec, worker};

impl World {
    async fn command(&self, worker: &str, verb: WorkerCommand) -> Result<SchedulingState, RequestError> {
        let id = WorkerId::new(worker).unwrap();
        self.s.command_worker(&name("p"), &id, verb).await.map(|worker| worker.schedulability)
    }
}

fn incarnation(id: &str, incarnation: u64) -> WorkerSpec {
    WorkerSpec { incarnation, ..worker(id) }
}

#[tokio::test]
async fn w03_a_cordon_survives_registrations_incarnations_and_restarts() {
    use SchedulingState::{Cordoned, Open};
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let fence = world.hold("p", "k").await;
    // Two identical commands with the opposite one in between: the last one wins, and each caller gets a reply.
    for (verb, says) in [
        (WorkerCommand::Cordon, Cordoned),
        (WorkerCommand::Cordon, Cordoned),
        (WorkerCommand::Uncordon, Open),
        (WorkerCommand::Uncordon, Open),
        (WorkerCommand::Cordon, Cordoned),
    ] {
        assert_eq!(world.command("w", verb).await, Ok(says));
    }
    assert_eq!(world.state("k").await, ClaimState::Active, "it keeps what it holds");
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.claim("p", "k").await, Err(FULL));
    assert_eq!((world.counts("p").await, world.shards("p").await[0].cordoned), ((0, 0, 0), 1));
    world.s.register(&name("p"), worker("w")).await.unwrap();
    assert_eq!(world.claim("p", "k").await, Err(FULL));
    world.s.register(&name("p"), incarnation("w", 3)).await.unwrap();
    assert_eq!(world.claim("p", "k").await, Err(FULL));
    for world in [world.crashed().await, world.restarted().await] {
        assert_eq!(world.view_worker("w").await.schedulability, Cordoned);
        assert_eq!(world.claim("p", "k").await, Err(FULL));
        assert_eq!(world.command("w", WorkerCommand::Uncordon).await, Ok(Open));
        world.hold("p", "k").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w03_concurrent_cordon_and_uncordon_leave_one_of_both() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    for _ in 0..50 {
        let (on, off) = (world.s.clone(), world.s.clone());
        let w = WorkerId::new("w").unwrap();
        let (p, of) = (name("p"), w.clone());
        let on = tokio::spawn(async move { on.command_worker(&p, &of, WorkerCommand::Cordon).await });
        let p = name("p");
        let off = tokio::spawn(async move { off.command_worker(&p, &w, WorkerCommand::Uncordon).await });
        assert_eq!(on.await.unwrap().unwrap().schedulability, SchedulingState::Cordoned);
        assert_eq!(off.await.unwrap().unwrap().schedulability, SchedulingState::Open);
        let cordoned = world.view_worker("w").await.schedulability == SchedulingState::Cordoned;
        assert_eq!(world.counts("p").await, (u64::from(!cordoned), 0, 0));
    }
}

#[tokio::test]
async fn w03_draining_is_one_way_and_ends_with_the_incarnation() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let fence = world.hold("p", "k").await;
    assert_eq!(world.command("w", WorkerCommand::Drain).await, Ok(SchedulingState::Draining));
    assert_eq!(world.command("w", WorkerCommand::Cordon).await, Ok(SchedulingState::Draining));
    let refused = world.command("w", WorkerCommand::Uncordon).await.unwrap_err();
    assert!(refused.to_string().contains("higher incarnation"), "{refused}");
    assert_eq!(world.s.get_claim(&id("k")).await.unwrap().fence, fence, "it keeps what it holds");
    world.s.release(&id("k"), fence).await.unwrap();
    world.s.register(&name("p"), worker("w")).await.unwrap();
    let world = world.restarted().await;
    assert_eq!((world.claim("p", "k").await, world.shards("p").await[0].draining), (Err(FULL), 1));
    // A new incarnation ends the draining, but not the cordon.
    world.s.register(&name("p"), incarnation("w", 1)).await.unwrap();
    assert_eq!(world.view_worker("w").await.schedulability, SchedulingState::Cordoned);
    world.command("w", WorkerCommand::Uncordon).await.unwrap();
    world.hold("p", "k").await;
}

#[tokio::test]
async fn w01_a_registration_with_claims_confirms_the_worker() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let fence = world.claim("p", "k").await.unwrap().claim.fence;
    let with = |claims: &[(&str, u64)]| RegistrationRequest { spec: worker("w"), claims: Some(running(claims)) };
    let registered = world.s.register(&name("p"), with(&[("k", fence), ("x", 1)])).await.unwrap();
    assert_eq!((registered.created, registered.stop), (false, running(&[("x", 1)])));
    assert_eq!(registered.worker.claims[0].state, ClaimState::Active);
    world.s.register(&name("p"), with(&[("k", fence)])).await.unwrap();
    world.s.release(&id("k"), fence).await.unwrap();
    world.hold("p", "next").await;
}

fn expires(id: &str, at_ms: u64) -> WorkerSpec {
    WorkerSpec { expires_at_ms: Some(at_ms), ..worker(id) }
}

#[tokio::test]
async fn c11_a_worker_near_its_end_is_not_granted_to_a_claim_that_needs_longer() {
    let world = World::on_store().await;
    let pool = PoolSpec { reserve_ms: 5_000, ..spec(1, AckLevel::Durable) };
    world.pool("p", pool, &["stays"]).await;
    let now = world.clock.unix_ms();
    let leaves = world.s.register(&name("p"), expires("leaves", now + 60_000)).await.unwrap().worker;
    assert_eq!(leaves.registration.spec.expires_at_ms, Some(now + 60_000));
    let on = |key: &str, reserve_ms, ttl_ms| {
        let request = ClaimRequest { reserve_ms: Some(reserve_ms), ttl_ms, ..request("p", key) };
        let s = world.s.clone();
        async move { s.claim(request).await.map(|taken| (taken.claim.worker.spec.id.to_string(), taken.claim.fence)) }
    };
    // The last worker to register is the first to be granted, if it lives long enough.
    let (worker, fence) = on("a", 5_000, Some(54_000)).await.unwrap();
    assert_eq!(worker, "leaves");
    world.s.release(&id("a"), fence).await.unwrap();
    let (worker, fence) = on("b", 5_000, Some(156_000)).await.unwrap();
    assert_eq!(worker, "stays");
    world.s.confirm(&id("b"), fence).await.unwrap();
    assert_eq!(on("c", 5_000, Some(56_000)).await, Err(FULL), "the only one left ends before");
    // Time passes; the wall clock may do anything.
    world.clock.shift_unix_us(3_600_000_000);
    world.pass(50_000).await;
    assert_eq!(on("c", 5_000, Some(6_000)).await, Err(FULL));
    let (worker, short) = on("c", 0, None).await.unwrap();
    assert_eq!(worker, "leaves", "a claim that does not say how long may have the rest");
    world.s.release(&id("c"), short).await.unwrap();
    world.pass(10_000).await;
    assert_eq!((on("c", 0, None).await, world.counts("p").await), (Err(FULL), (0, 1, 0)), "it has ended");
    world.s.release(&id("b"), fence).await.unwrap();
    // The worker extends its end.
    let at = world.clock.unix_ms() + 100_000;
    world.s.register(&name("p"), expires("leaves", at)).await.unwrap();
    assert_eq!(world.counts("p").await, (2, 0, 0));
    assert_eq!(world.restarted().await.counts("p").await, (2, 0, 0));
}

/// A worker that ends too early is skipped, and the preference for a node stays: first the next worker on it, then
/// other nodes.
#[tokio::test]
async fn c11_a_preferred_node_stays_preferred_beside_a_worker_near_its_end() {
    for policy in [PlacementPolicy::Lifo, PlacementPolicy::Fifo, PlacementPolicy::Random] {
        let world = World::on_memory().await;
        world.pool("p", PoolSpec { policy: Some(policy), reserve_ms: 5_000, ..spec(1, AckLevel::Durable) }, &[]).await;
        let soon = world.clock.unix_ms() + 10_000;
        let on =
            |id: &str, node: &str, expires_at_ms| WorkerSpec { node: Some(node.into()), expires_at_ms, ..worker(id) };
        let far = |id: &str| on(id, "far", None);
        let near = |id: &str| on(id, "near", None);
        for spec in
            [far("far0"), on("ends0", "near", Some(soon)), near("stays0"), on("ends1", "near", Some(soon)), far("far1")]
        {
            world.s.register(&name("p"), spec).await.unwrap();
        }
        let mut taken = Vec::new();
        for key in ["a", "b", "c"] {
            let constraints = ClaimConstraints { nodes_preferred: vec!["near".into()], ..ClaimConstraints::default() };
            let constraints = Some(Box::new(constraints));
            let request = ClaimRequest { reserve_ms: Some(0), ttl_ms: Some(60_000), constraints, ..request("p", key) };
            taken.push(world.s.claim(request).await.unwrap().claim.worker.spec.id.to_string());
        }
        assert_eq!(taken[0], "stays0", "{policy:?}");
        assert!(taken[1..].iter().all(|worker| worker.starts_with("far")), "{policy:?}: {taken:?}");
    }
}

#[tokio::test]
async fn l1_capacity_that_shrinks_below_the_held_resources_is_shown() {
    let world = World::on_store().await;
    let slots = |slots| WorkerSpec { capacity: WorkerCapacity { slots, ..WorkerCapacity::default() }, ..worker("w") };
    world.pool("p", spec(1, AckLevel::Durable), &[]).await;
    world.s.register(&name("p"), slots(4)).await.unwrap();
    let fence = world.hold("p", "k").await;
    for (now, over) in [(6, false), (3, true), (5, true), (6, false), (2, true)] {
        let worker = world.s.register(&name("p"), slots(now)).await.unwrap().worker;
        assert_eq!(worker.overcommitted, over, "{now} of 6 allocated");
    }
    let status = world.s.get_pool(&name("p")).await.unwrap();
    assert_eq!((status.capacity.slots, status.free.slots), (2, 0));
    let world = world.crashed().await;
    assert!(world.view_worker("w").await.overcommitted);
    world.s.release(&id("k"), fence).await.unwrap();
    assert!(!world.view_worker("w").await.overcommitted);
    assert_eq!(world.s.get_pool(&name("p")).await.unwrap().free.slots, 2);
}

#[tokio::test]
async fn w01_a_new_incarnation_is_trusted_and_a_deleted_worker_takes_no_commands() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let fence = world.hold("p", "k").await;
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.pass(60_000).await;
    assert_eq!(world.view_worker("w").await.trust, TrustState::Suspect);
    world.s.register(&name("p"), incarnation("w", 1)).await.unwrap();
    assert_eq!(world.view_worker("w").await.trust, TrustState::Trusted);
    world.hold("p", "k").await;
    world.s.delete_worker(&name("p"), &WorkerId::new("w").unwrap()).await.unwrap();
    for verb in [WorkerCommand::Cordon, WorkerCommand::Uncordon, WorkerCommand::Drain, WorkerCommand::Clear] {
        assert!(matches!(world.command("w", verb).await, Err(RequestError::NotFound(_))));
    }
}
