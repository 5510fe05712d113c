//! Preemption of claims by others with a higher priority, and workers that are reserved for queued claims.

use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    AckLevel, ClaimRequest, ClaimSpec, ClaimState, HeartbeatRequest, PlacementPolicy, PoolSpec, ResourceRequirements,
    WorkerId,
};
use tokio::task::JoinHandle;

use crate::queued_claims::MINUTE;
use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{Claimed, FULL, World, done, id, name, request, spec, until};

pub fn with_preemption(request: ClaimRequest, priority: u16, preemptible: bool) -> ClaimRequest {
    let mut constraints = request.constraints.unwrap_or_default();
    constraints.spec.priority = priority;
    constraints.spec.preemptible = preemptible;
    ClaimRequest { reserve_ms: Some(0), constraints: Some(constraints), ..request }
}

pub fn queued_with(request: ClaimRequest, priority: u16) -> ClaimRequest {
    ClaimRequest { wait_ms: 10 * MINUTE, ..with_preemption(request, priority, false) }
}

pub fn preempting(spec: PoolSpec) -> PoolSpec {
    PoolSpec { preemption: true, releasing_ms: 10_000, ..spec }
}

impl World {
    async fn waits_with(&self, request: ClaimRequest) -> JoinHandle<Claimed> {
        let before = self.s.waiting(&name("p"));
        let begun = self.begin_request(request).await;
        until("it waits", async || self.s.waiting(&name("p")) == before + 1).await;
        self.quiet().await;
        begun
    }

    /// Keys that are being released because they were evicted.
    pub async fn evicted(&self) -> Vec<String> {
        let all = self.all_held().await;
        let mut keys: Vec<String> =
            all.iter().filter(|claim| claim.evicted).map(|claim| claim.id.key().to_owned()).collect();
        keys.sort_unstable();
        keys
    }

    pub async fn low(&self, key: &str, priority: u16, preemptible: bool) -> u64 {
        self.s.claim(with_preemption(request("p", key), priority, preemptible)).await.unwrap().claim.fence
    }
}

#[tokio::test]
async fn a_higher_priority_evicts_and_gets_the_freed_worker() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(2, AckLevel::Memory)), &["w0"]).await;
    let victim = world.low("victim", 1, true).await;
    // Others have waited longer, with a priority too low to evict.
    let before = world.waits_with(queued_with(request("p", "before"), 1)).await;
    let high = world.waits_with(queued_with(request("p", "high"), 2)).await;
    assert_eq!(world.evicted().await, ["victim"]);
    let seen = world.s.get_claim(&id("victim")).await.unwrap();
    assert_eq!((seen.state, seen.evicted), (ClaimState::Releasing, true));
    assert!(seen.expires_at_ms.is_some());
    // The worker learns of it from its heartbeat, the holder when it renews.
    let heartbeat = HeartbeatRequest { incarnation: 0, seq: None, claims: None };
    let response = world.s.heartbeat(&name("p"), &WorkerId::new("w0").unwrap(), heartbeat).await.unwrap();
    assert!(response.claims[0].evicted);
    assert_eq!(world.s.renew(&id("victim"), victim, None).await, Err(RequestError::Preempted));
    assert_eq!(world.s.confirm(&id("victim"), victim).await, Err(RequestError::Preempted));
    world.s.release(&id("victim"), victim).await.unwrap();
    assert_eq!(done(high).await.unwrap().claim.worker.spec.id.as_str(), "w0");
    assert!(!before.is_finished());
    assert!(world.evicted().await.is_empty());
}

#[tokio::test]
async fn only_preemptible_claims_of_lower_priority_in_preempting_pools_are_evicted() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0", "w1"]).await;
    world.low("equal", 5, true).await;
    world.low("unmarked", 0, false).await;
    let _waits = world.waits_with(queued_with(request("p", "a"), 5)).await;
    assert!(world.evicted().await.is_empty());
    // A claim that does not wait has no time for it either.
    assert_eq!(world.s.claim(with_preemption(request("p", "b"), 9, false)).await, Err(FULL));
    assert!(world.evicted().await.is_empty());
    world.pool("q", spec(1, AckLevel::Memory), &["v0"]).await;
    world.s.claim(with_preemption(request("q", "low"), 0, true)).await.unwrap();
    let _waits = world.begin_request(queued_with(request("q", "c"), 9)).await;
    until("it waits", async || world.s.waiting(&name("q")) == 1).await;
    world.quiet().await;
    assert!(world.evicted().await.is_empty());
}

/// The cheapest first: the lowest priority, and of those the youngest. Each queued claim evicts one.
#[tokio::test]
async fn the_cheapest_claims_are_evicted_as_many_as_needed() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0", "w1", "w2", "w3"]).await;
    for (key, priority) in [("old", 1), ("young", 1), ("dear", 3), ("dearer", 4)] {
        world.low(key, priority, true).await;
    }
    let _a = world.waits_with(queued_with(request("p", "a"), 9)).await;
    assert_eq!(world.evicted().await, ["young"]);
    let _b = world.waits_with(queued_with(request("p", "b"), 9)).await;
    assert_eq!(world.evicted().await, ["old", "young"]);
    let _c = world.waits_with(queued_with(request("p", "c"), 3)).await;
    assert_eq!(world.evicted().await, ["old", "young"], "no claim has a lower priority any more");
}

#[tokio::test]
async fn a_shared_pool_evicts_as_few_as_possible() {
    let world = World::on_memory().await;
    let workers = vec![sized("many", 4_000, None), sized("one", 4_000, None)];
    world.shared(preempting(shared(1, PlacementPolicy::BestFit)), workers).await;
    let on = |worker: &str, key: &str, amount| {
        let mut request = with_preemption(request_for("p", key, &cpu(amount)), 1, true);
        request.constraints.as_mut().unwrap().worker = Some(WorkerId::new(worker).unwrap());
        request
    };
    for n in 0..4 {
        world.s.claim(on("many", &format!("m{n}"), 1_000)).await.unwrap();
    }
    world.s.claim(on("one", "small", 1_000)).await.unwrap();
    let large = world.s.claim(on("one", "large", 3_000)).await.unwrap();
    let begun = world.waits_with(queued_with(request_for("p", "a", &cpu(3_000)), 5)).await;
    assert_eq!(world.evicted().await, ["large"]);
    // The free resources of that worker are reserved meanwhile.
    world.s.release(&large.claim.id, large.claim.fence).await.unwrap();
    assert_eq!(done(begun).await.unwrap().claim.worker.spec.id.as_str(), "one");
    assert!(world.share("b", &cpu(1_000)).await.is_err());
}

/// A victim that does not leave in time leaves a suspect worker: then another one is evicted.
#[tokio::test]
async fn a_victim_that_does_not_leave_is_replaced_by_another() {
    let world = World::on_memory().await;
    // In a pool this large one worker that is suspect does not make evictions pause.
    let ids: Vec<String> = (0..33).map(|n| format!("w{n}")).collect();
    let workers: Vec<&str> = ids.iter().map(String::as_str).collect();
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &workers).await;
    for n in 0..31 {
        world.low(&format!("other{n}"), 1, false).await;
    }
    let first = world.low("first", 1, true).await;
    world.low("second", 1, true).await;
    let begun = world.waits_with(queued_with(request("p", "a"), 5)).await;
    assert_eq!(world.evicted().await, ["second"]);
    world.pass(10_100).await;
    until("the other goes", async || world.evicted().await == ["first"]).await;
    world.s.release(&id("first"), first).await.unwrap();
    assert!(done(begun).await.is_ok());
}

/// The claim that evicted another left: the freed worker is available to all.
#[tokio::test]
async fn a_reservation_ends_with_the_wait() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0"]).await;
    let victim = world.low("victim", 1, true).await;
    let begun = world.waits_with(queued_with(request("p", "a"), 5)).await;
    assert_eq!(world.evicted().await, ["victim"]);
    begun.abort();
    until("it has left", async || world.s.waiting(&name("p")) == 0).await;
    world.s.release(&id("victim"), victim).await.unwrap();
    world.quiet().await;
    world.hold("p", "b").await;
    // A worker registers instead, and the reservation is not needed.
    let other = world.s.claim(with_preemption(request("p", "x"), 0, true)).await;
    assert_eq!(other, Err(FULL));
}

/// The eviction and its deadline survive a crash; the claim that it was for does not.
#[tokio::test]
async fn s01_an_eviction_survives_a_crash() {
    let world = World::on_store().await;
    world.pool("p", preempting(spec(1, AckLevel::Durable)), &["w0"]).await;
    let victim = world.low("victim", 1, true).await;
    let _begun = world.waits_with(queued_with(request("p", "a"), 5)).await;
    world.stored("p").await;
    let after = world.crashed().await;
    assert_eq!(after.evicted().await, ["victim"]);
    assert_eq!(after.s.renew(&id("victim"), victim, None).await, Err(RequestError::Preempted));
    after.s.release(&id("victim"), victim).await.unwrap();
    after.hold("p", "b").await;
}

/// Four cores are never free at once while claims of one core come and go, until one worker is reserved for the large
/// claim.
#[tokio::test]
async fn q03_a_large_claim_is_not_starved_by_small_ones() {
    let world = World::on_memory().await;
    let workers = vec![sized("w0", 4_000, None), sized("w1", 4_000, None)];
    world.shared(shared(2, PlacementPolicy::Spread), workers).await;
    let mut held = Vec::new();
    for n in 0..8 {
        held.push(world.share(&format!("s{n}"), &cpu(1_000)).await.unwrap().claim);
    }
    let large = ClaimRequest { wait_ms: 10 * MINUTE, ..request_for("p", "large", &cpu(4_000)) };
    let large = world.waits_with(large).await;
    let mut next = 8;
    for round in 0.. {
        if large.is_finished() {
            break;
        }
        assert!(round < 60, "it is starved");
        // The oldest is released, and another claims at once if it may.
        if !held.is_empty() {
            let gone = held.remove(0);
            world.s.release(&gone.id, gone.fence).await.unwrap();
        }
        while let Ok(taken) = world.share(&format!("s{next}"), &cpu(1_000)).await {
            held.push(taken.claim);
            next += 1;
        }
        next += 1;
        world.pass(500).await;
        if round > 10 {
            assert!(held.len() >= 3, "the other worker serves the small ones: {}", held.len());
        }
    }
    done(large).await.unwrap();
    let nothing = ResourceRequirements::default();
    assert!(held.iter().all(|claim| claim.spec.as_ref().is_some_and(|spec| spec.resources != nothing)));
}

#[tokio::test]
async fn the_specification_decides_whether_a_pool_preempts() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0"]).await;
    assert!(world.s.get_pool(&name("p")).await.unwrap().spec.preemption);
    world.low("victim", 1, true).await;
    // With preemption switched off, no claim is evicted.
    world.s.put_pool(name("p"), PoolSpec { preemption: false, ..preempting(spec(1, AckLevel::Memory)) }).await.unwrap();
    let _waits = world.waits_with(queued_with(request("p", "a"), 5)).await;
    assert!(world.evicted().await.is_empty());
    let nothing = ClaimConstraints { spec: ClaimSpec::default(), ..ClaimConstraints::default() };
    assert!(nothing.spec.is_empty());
}

/// A shard panics with the request to evict in its mailbox: the request is repeated after the restart.
#[tokio::test]
async fn s16_a_request_to_evict_that_a_panic_lost_is_repeated() {
    let world = World::on_store().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0"]).await;
    let victim = world.low("victim", 1, true).await;
    world.stored("p").await;
    let busy = world.busy("p").await;
    world.s.inject_panic(&name("p"), 0);
    let high = world.begin_request_alone(queued_with(request("p", "high"), 2));
    busy.until_queued(2).await;
    until("the shard is back", async || world.shards("p").await[0].restarts == 1).await;
    until("it serves", async || world.shards("p").await[0].state == "serving").await;
    until("the victim is evicted", async || {
        world.pass(1).await;
        world.evicted().await == ["victim"]
    })
    .await;
    world.s.release(&id("victim"), victim).await.unwrap();
    assert!(done(high).await.unwrap().created);
}

/// Q14: an urgent claim whose victims never release makes one worker suspect of 32, not one after the other.
#[tokio::test]
async fn q14_preemption_pauses_while_victims_are_not_released() {
    let world = World::on_memory().await;
    let ids: Vec<String> = (0..32).map(|n| format!("w{n:02}")).collect();
    let workers: Vec<&str> = ids.iter().map(String::as_str).collect();
    world.pool("p", preempting(spec(2, AckLevel::Memory)), &workers).await;
    for n in 0..32 {
        world.low(&format!("low{n}"), 0, true).await;
    }
    let waits = world.waits_with(queued_with(request("p", "urgent"), 9)).await;
    assert_eq!(world.evicted().await.len(), 1);
    let suspects = async || world.s.get_pool(&name("p")).await.unwrap().counts().suspect;
    for _ in 0..20 {
        world.pass(11_000).await;
        world.quiet().await;
    }
    assert_eq!((suspects().await, world.evicted().await.len()), (1, 0));
    assert!(world.s.get_pool(&name("p")).await.unwrap().preemption_paused);
    let explained = world.s.explain(ClaimRequest { wait_ms: 0, ..request("p", "other") }).await.unwrap();
    assert!(explained.pools[0].preemption_paused);
    world.s.clear_pool(&name("p")).await.unwrap();
    until("the worker that was cleared serves it", async || waits.is_finished()).await;
    assert!(done(waits).await.is_ok());
    assert!(!world.s.get_pool(&name("p")).await.unwrap().preemption_paused);
}

/// Q14: evictions go on when one of the workers that made them pause is trusted again, even if somebody else takes it.
#[tokio::test]
async fn q14_preemption_goes_on_when_a_worker_is_cleared() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0", "w1"]).await;
    for key in ["low0", "low1"] {
        world.low(key, 0, true).await;
    }
    let first = world.waits_with(queued_with(request("p", "first"), 8)).await;
    world.pass(11_000).await;
    assert!(world.s.get_pool(&name("p")).await.unwrap().preemption_paused);
    let second = world.waits_with(queued_with(request("p", "second"), 9)).await;
    world.pass(11_000).await;
    assert!(world.evicted().await.is_empty() && !first.is_finished() && !second.is_finished());
    world.s.clear_pool(&name("p")).await.unwrap();
    assert!(done(second).await.is_ok(), "the worker that was cleared goes to the more urgent");
    world.pass(2_000).await;
    assert_eq!(world.evicted().await.len(), 1);
    let victim = world.all_held().await.into_iter().find(|claim| claim.evicted).unwrap();
    world.s.release(&victim.id, victim.fence).await.unwrap();
    assert!(done(first).await.is_ok());
}
