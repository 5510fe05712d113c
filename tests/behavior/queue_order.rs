//! Order in which queued claims are served, and what does not block them.

use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::{AckLevel, ClaimRequest, PlacementPolicy, Quota, WorkerId, WorkerSpec};
use tokio::task::JoinHandle;

use crate::queued_claims::{MINUTE, labelled, of, one_full_worker, waiting, with_priority};
use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{Claimed, FULL, World, done, id, name, request, spec, until, worker};

/// A claim that no worker fits blocks no other claim, and is served when one registers.
#[tokio::test]
async fn q03_a_claim_that_fits_nowhere_blocks_no_later_claim() {
    let (world, fence) = one_full_worker().await;
    let odd = world.begin_queued(ClaimRequest { constraints: labelled("kind=odd"), ..waiting("p", "odd") }).await;
    let plain = world.begin_queued(waiting("p", "plain")).await;
    world.s.release(&id("held0"), fence).await.unwrap();
    assert_eq!(done(plain).await.unwrap().claim.worker.spec.id.as_str(), "w0");
    assert!(world.view("odd").await.is_some());
    // A newcomer gets the worker that the queued claim cannot use.
    world.add("p", &["w1"]).await;
    world.hold("p", "newcomer").await;
    let labels = [("kind".to_owned(), "odd".to_owned())].into();
    world.s.register(&name("p"), WorkerSpec { labels, ..worker("w2") }).await.unwrap();
    assert_eq!(done(odd).await.unwrap().claim.worker.spec.id.as_str(), "w2");
}

/// A claim that fits goes before a larger one that does not yet; the larger one gets what is freed for it.
#[tokio::test]
async fn q03_claims_wait_for_free_resources_of_their_size() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w0", 4_000, None)]).await;
    let mut held = Vec::new();
    for n in 0..4 {
        held.push(world.share(&format!("h{n}"), &cpu(1_000)).await.unwrap());
    }
    let wait = |key: &str, amount| ClaimRequest { wait_ms: MINUTE, ..request_for("p", key, &cpu(amount)) };
    let large = world.begin_queued(wait("large", 2_000)).await;
    let small = world.begin_queued(wait("small", 1_000)).await;
    world.s.release(&held[0].claim.id, held[0].claim.fence).await.unwrap();
    done(small).await.unwrap();
    world.s.release(&held[1].claim.id, held[1].claim.fence).await.unwrap();
    world.quiet().await;
    assert!(!large.is_finished());
    world.s.release(&held[2].claim.id, held[2].claim.fence).await.unwrap();
    done(large).await.unwrap();
    // Resources released by a resize count too.
    let last = world.begin_queued(wait("last", 500)).await;
    world.s.resize(&held[3].claim.id, held[3].claim.fence, cpu(500)).await.unwrap();
    done(last).await.unwrap();
}

/// Order in which queued claims are served, as one worker after another becomes free.
async fn served(world: &World, mut fence: u64, waits: Vec<(&str, JoinHandle<Claimed>)>) -> Vec<String> {
    let mut held = id("held0");
    let mut order = Vec::new();
    let mut waits = waits;
    while !waits.is_empty() {
        world.s.release(&held, fence).await.unwrap();
        until("one is served", async || waits.iter().any(|(_, begun)| begun.is_finished())).await;
        let at = waits.iter().position(|(_, begun)| begun.is_finished()).unwrap();
        let (key, begun) = waits.remove(at);
        let taken = done(begun).await.unwrap();
        (held, fence) = (taken.claim.id, taken.claim.fence);
        order.push(key.to_owned());
    }
    order
}

#[tokio::test]
async fn q04_priority_goes_before_arrival() {
    let (world, fence) = one_full_worker().await;
    let mut waits = Vec::new();
    for (key, priority) in [("a", 0), ("b", 5), ("c", 1_000), ("d", 5)] {
        waits.push((key, world.begin_queued(with_priority(waiting("p", key), priority)).await));
    }
    let ahead = world.view("d").await.unwrap().ahead;
    assert_eq!(ahead, 2, "c and b");
    assert_eq!(served(&world, fence, waits).await, ["c", "b", "d", "a"]);
}

#[tokio::test]
async fn q04_a_burst_of_one_tenant_does_not_delay_another() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0", "w1", "w2", "w3"]).await;
    let mut fences = world.full(4).await;
    let mut burst = Vec::new();
    for n in 0..8 {
        burst.push(world.begin_queued(of("burst", &format!("b{n}"))).await);
    }
    let mut calm = Vec::new();
    for n in 0..2 {
        calm.push(world.begin_queued(of("calm", &format!("c{n}"))).await);
    }
    // Four workers become free: tenants alternate, although the whole burst came first.
    for n in 0..4 {
        world.s.release(&id(&format!("held{n}")), fences.remove(0)).await.unwrap();
        world.quiet().await;
    }
    for begun in calm {
        done(begun).await.unwrap();
    }
    until("two of the burst", async || burst.iter().filter(|begun| begun.is_finished()).count() == 2).await;
}

#[tokio::test]
async fn q04_a_weight_is_a_larger_share() {
    let world = World::on_memory().await;
    let workers: Vec<String> = (0..8).map(|n| format!("w{n}")).collect();
    let workers: Vec<&str> = workers.iter().map(String::as_str).collect();
    world.pool("p", spec(1, AckLevel::Memory), &workers).await;
    world.s.put_quota("ns", Some("heavy"), Quota { weight: 3, ..Quota::default() }).await.unwrap();
    let fences = world.full(8).await;
    let (mut light, mut heavy) = (Vec::new(), Vec::new());
    for n in 0..8 {
        light.push(world.begin_queued(of("light", &format!("l{n}"))).await);
        heavy.push(world.begin_queued(of("heavy", &format!("h{n}"))).await);
    }
    for (n, fence) in fences.into_iter().enumerate() {
        world.s.release(&id(&format!("held{n}")), fence).await.unwrap();
        world.quiet().await;
    }
    let finished = |all: &[JoinHandle<Claimed>]| all.iter().filter(|begun| begun.is_finished()).count();
    until("all eight are taken", async || finished(&light) + finished(&heavy) == 8).await;
    assert_eq!((finished(&light), finished(&heavy)), (2, 6));
}

/// A worker freed in a run must not go to a claim that comes later in the same mailbox.
#[tokio::test]
async fn q02_a_newcomer_does_not_overtake_queued_claims() {
    let (world, fence) = one_full_worker().await;
    let waits = world.begin_queued(waiting("p", "waits")).await;
    let busy = world.busy("p").await;
    let release = world.begin_alone(|s| async move { s.release(&id("held0"), fence).await });
    until("the request is in the mailbox", async || busy.depth() == 1).await;
    // The newcomer goes to that shard, whatever it publishes.
    let constraints = ClaimConstraints { worker: Some(WorkerId::new("w0").unwrap()), ..ClaimConstraints::default() };
    let newcomer = world
        .begin_request_alone(ClaimRequest { constraints: Some(Box::new(constraints)), ..request("p", "newcomer") });
    until("it stands behind it", async || busy.depth() == 2).await;
    drop(busy);
    release.await.unwrap().unwrap();
    assert_eq!(done(waits).await.unwrap().claim.id, id("waits"));
    assert_eq!(done(newcomer).await, Err(FULL));
}

/// Q09: more than a thousand different requests wait that fit nowhere. The one behind them is served, and a newcomer gets
/// what none of them can use.
#[tokio::test]
async fn q09_many_different_requests_starve_nobody_and_refuse_nobody() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w0", 4_000, None), sized("w1", 2_000, None)]).await;
    let (large, small) = (world.share("l", &cpu(4_000)).await.unwrap(), world.share("s", &cpu(2_000)).await.unwrap());
    let wait = |key: String, amount| ClaimRequest { wait_ms: MINUTE, ..request_for("p", &key, &cpu(amount)) };
    let mut waits = Vec::new();
    for n in 0..1_500 {
        waits.push(world.begin_request_alone(wait(format!("n{n}"), 2_001 + n)));
    }
    until("they wait", async || world.waiters("p").await == 1_500).await;
    let last = world.begin_queued(wait("last".into(), 2_000)).await;
    world.s.release(&small.claim.id, small.claim.fence).await.unwrap();
    let last = done(last).await.unwrap();
    world.s.release(&last.claim.id, last.claim.fence).await.unwrap();
    assert!(world.share("newcomer", &cpu(1_000)).await.is_ok(), "nobody who waits can use it");
    world.s.release(&large.claim.id, large.claim.fence).await.unwrap();
    until("the first of them is served", async || waits[0].is_finished()).await;
    world.quiet().await;
    assert_eq!(waits.iter().filter(|begun| begun.is_finished()).count(), 1, "the worker has room for one");
    waits.into_iter().for_each(|begun| begun.abort());
}

/// A batch of releases in one run serves as many as fit, the best-ranked first.
#[tokio::test]
async fn q04_what_comes_free_together_is_matched_in_order() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0", "w1", "w2"]).await;
    let fences = world.full(3).await;
    let mut waits = Vec::new();
    for (key, priority) in [("a", 0), ("b", 7), ("c", 0), ("d", 9)] {
        waits.push(world.begin_queued(with_priority(waiting("p", key), priority)).await);
    }
    let held: Vec<_> = fences.into_iter().enumerate().map(|(n, fence)| (id(&format!("held{n}")), fence)).collect();
    assert!(world.s.release_batch(held).await.iter().all(Result::is_ok));
    world.quiet().await;
    let served: Vec<bool> = waits.iter().map(JoinHandle::is_finished).collect();
    assert_eq!(served, [true, true, false, true]);
}
