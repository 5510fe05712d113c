//! Evictions for gangs, and what is held for gangs that wait.

use hotpool::model::{AckLevel, ClaimRequest, PlacementPolicy, WorkerId};
use tokio::task::JoinHandle;

use crate::preemption::{preempting, queued_with, with_preemption};
use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{Claimed, FULL, World, done, id, name, request, spec, until};

fn gang_with(prefix: &str, members: usize, priority: u16) -> Vec<ClaimRequest> {
    (0..members).map(|i| queued_with(request("p", &format!("{prefix}{i}")), priority)).collect()
}

impl World {
    async fn gang_waits(&self, gang: Vec<ClaimRequest>) -> JoinHandle<Vec<Claimed>> {
        let before = self.s.waiting(&name("p"));
        let begun = self.begin(move |s| Box::pin(async move { s.claim_gang(gang).await })).await;
        until("the gang waits", async || self.s.waiting(&name("p")) == before + 1).await;
        begun
    }
}

/// Q13: a gang has as many evicted as it lacks, and nobody takes what it keeps meanwhile.
#[tokio::test]
async fn q13_a_gang_evicts_as_many_as_it_lacks() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(2, AckLevel::Memory)), &["w0", "w1", "w2", "w3", "w4"]).await;
    let victims = [world.low("v0", 1, true).await, world.low("v1", 1, true).await, world.low("v2", 1, true).await];
    world.low("kept", 1, false).await;
    let gang = world.gang_waits(gang_with("m", 3, 5)).await;
    world.pass(300).await;
    until("two are evicted", async || world.evicted().await.len() == 2).await;
    world.pass(300).await;
    let evicted = world.evicted().await;
    assert_eq!(evicted.len(), 2, "one worker was free");
    // The free worker is kept for the gang, but not from a higher priority.
    assert_eq!(world.s.claim(with_preemption(request("p", "low"), 1, false)).await, Err(FULL));
    for (key, fence) in ["v0", "v1", "v2"].into_iter().zip(victims) {
        if evicted.iter().any(|evicted| evicted == key) {
            assert!(!gang.is_finished(), "before {key} has gone");
            world.s.release(&id(key), fence).await.unwrap();
            world.pass(300).await;
        }
    }
    assert!(done(gang).await.iter().all(Result::is_ok));
    assert!(world.evicted().await.is_empty());
    assert_eq!(world.counts("p").await, (0, 5, 0));
}

/// Q13: nobody is evicted for a gang that would not be complete all the same.
#[tokio::test]
async fn q13_a_gang_that_lacks_more_than_can_be_evicted_evicts_nobody() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(2, AckLevel::Memory)), &["w0", "w1", "w2", "w3"]).await;
    world.low("v0", 1, true).await;
    world.low("v1", 1, true).await;
    let kept = world.low("kept", 1, false).await;
    let gang = world.gang_waits(gang_with("m", 4, 5)).await;
    world.pass(2_000).await;
    assert!(world.evicted().await.is_empty() && !gang.is_finished());
    assert_eq!(world.s.claim(with_preemption(request("p", "low"), 0, false)).await.unwrap().claim.pool, name("p"));
    world.s.release(&id("low"), world.s.get_claim(&id("low")).await.unwrap().fence).await.unwrap();
    // From now on two of those that are left make up for what it lacks.
    world.s.release(&id("kept"), kept).await.unwrap();
    until("both are evicted", async || {
        world.pass(300).await;
        world.evicted().await == ["v0", "v1"]
    })
    .await;
    gang.abort();
}

/// Q13: a gang of shares evicts on as many workers as it lacks members.
#[tokio::test]
async fn q13_a_gang_of_shares_evicts_as_few_as_it_lacks() {
    let world = World::on_memory().await;
    let workers = vec![sized("w0", 4_000, None), sized("w1", 4_000, None), sized("w2", 4_000, None)];
    world.shared(preempting(shared(1, PlacementPolicy::BestFit)), workers).await;
    let mut fences = Vec::new();
    for (key, amount) in [("a", 3_000), ("b", 3_000), ("c", 1_000)] {
        let mut request = with_preemption(request_for("p", key, &cpu(amount)), 1, true);
        let worker = format!("w{}", fences.len());
        request.constraints.as_mut().unwrap().worker = Some(WorkerId::new(&worker).unwrap());
        fences.push(world.s.claim(request).await.unwrap().claim.fence);
    }
    let member = |i: usize| queued_with(request_for("p", &format!("m{i}"), &cpu(3_000)), 5);
    let gang = world.gang_waits((0..2).map(member).collect()).await;
    until("one is evicted", async || {
        world.pass(300).await;
        world.evicted().await.len() == 1
    })
    .await;
    let evicted = world.evicted().await;
    assert!(evicted == ["a"] || evicted == ["b"], "{evicted:?}");
    let fence = if evicted == ["a"] { fences[0] } else { fences[1] };
    world.s.release(&id(&evicted[0]), fence).await.unwrap();
    until("the gang is complete", async || {
        world.pass(300).await;
        gang.is_finished()
    })
    .await;
    let outcomes = done(gang).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    // Attempts before had used workers that were held, and given them back.
    world.quiet().await;
    let reserved: u64 = world.shards("p").await.iter().map(|shard| shard.workers_reserved).sum();
    assert_eq!(reserved, 0);
}

/// Q13: a gang for which enough came free by itself has nobody evicted.
#[tokio::test]
async fn q13_a_gang_for_which_enough_came_free_evicts_nobody() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(2, AckLevel::Memory)), &["w0", "w1", "w2"]).await;
    world.low("victim", 1, true).await;
    let kept = world.low("kept", 1, false).await;
    // The next check for victims is due at the tick that finds enough to be free.
    world.pass(300).await;
    let gang = world.gang_waits(gang_with("m", 2, 5)).await;
    world.s.release(&id("kept"), kept).await.unwrap();
    world.pass(300).await;
    until("the gang is placed", async || {
        world.pass(1).await;
        gang.is_finished()
    })
    .await;
    assert!(done(gang).await.iter().all(Result::is_ok));
    assert!(world.evicted().await.is_empty());
}

/// B02: each member of a gang gets a worker of its own pool, also of those that were held for the gang.
#[tokio::test]
async fn b02_a_held_worker_goes_to_a_member_that_may_use_its_pool() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["p0", "p1"]).await;
    world.pool("q", spec(1, AckLevel::Memory), &["q0", "q1"]).await;
    let mut held = Vec::new();
    for (pool, key) in [("p", "hp0"), ("p", "hp1"), ("q", "hq0"), ("q", "hq1")] {
        held.push((key, world.hold(pool, key).await));
    }
    let member = |pool: &str, key: &str| queued_with(request(pool, key), 0);
    let gang = world.gang_waits(vec![member("p", "in-p"), member("q", "in-q")]).await;
    world.pass(5_500).await;
    world.pass(500).await;
    for (key, fence) in &held[..2] {
        world.s.release(&id(key), *fence).await.unwrap();
    }
    // One member may use that pool, so one worker is held there.
    let reserved: u64 = world.shards("p").await.iter().map(|shard| shard.workers_reserved).sum();
    assert_eq!((reserved, world.counts("p").await.0), (1, 1));
    for _ in 0..20 {
        world.pass(300).await;
    }
    assert!(!gang.is_finished(), "no worker of the second pool is free");
    world.s.release(&id(held[2].0), held[2].1).await.unwrap();
    until("the gang is placed", async || {
        world.pass(300).await;
        gang.is_finished()
    })
    .await;
    for outcome in done(gang).await {
        let claim = outcome.unwrap().claim;
        let (pool, worker) = (claim.pool.pool().to_owned(), claim.worker.spec.id.to_string());
        assert_eq!((pool.as_str(), &worker[..1]), (&claim.id.key()[3..], &claim.id.key()[3..]), "{worker}");
    }
}

/// Q13: a gang that has evicted takes what comes free otherwise, before its victims have gone.
#[tokio::test]
async fn q13_a_gang_that_has_evicted_takes_new_workers() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0", "w1"]).await;
    world.low("v0", 1, true).await;
    world.low("v1", 1, true).await;
    let gang = world.gang_waits(gang_with("m", 2, 5)).await;
    until("both are evicted", async || {
        world.pass(300).await;
        world.evicted().await.len() == 2
    })
    .await;
    world.add("p", &["n0", "n1"]).await;
    for _ in 0..10 {
        world.pass(300).await;
    }
    assert!(gang.is_finished(), "the new workers are enough");
    assert!(done(gang).await.iter().all(Result::is_ok));
}
