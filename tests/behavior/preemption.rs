//! Preemption of claims by others with a higher priority, and workers that are reserved for queued claims.

use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::{ExhaustionReason, RequestError};
use hotpool::model::{
    AckLevel, ClaimId, ClaimRequest, ClaimSpec, ClaimState, HeartbeatRequest, PlacementPolicy, PoolSpec, Quota,
    QuotaResource, ResourceRequirements, WorkerId,
};
use tokio::task::JoinHandle;

use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{Claimed, FULL, World, done, id, name, request, spec, until};

const MINUTE: u64 = 60_000;

fn with_preemption(request: ClaimRequest, priority: u16, preemptible: bool) -> ClaimRequest {
    let mut constraints = request.constraints.unwrap_or_default();
    constraints.spec.priority = priority;
    constraints.spec.preemptible = preemptible;
    ClaimRequest { reserve_ms: Some(0), constraints: Some(constraints), ..request }
}

fn queued_with(request: ClaimRequest, priority: u16) -> ClaimRequest {
    ClaimRequest { wait_ms: 10 * MINUTE, ..with_preemption(request, priority, false) }
}

fn preempting(spec: PoolSpec) -> PoolSpec {
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
    async fn evicted(&self) -> Vec<String> {
        let all = self.all_held().await;
        let mut keys: Vec<String> =
            all.iter().filter(|claim| claim.evicted).map(|claim| claim.id.key().to_owned()).collect();
        keys.sort_unstable();
        keys
    }

    async fn low(&self, key: &str, priority: u16, preemptible: bool) -> u64 {
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

/// Q13: a claim that only the quota of its tenant keeps back has the cheapest of its tenant's claims evicted, and nobody
/// else's; what that gives back is for it.
#[tokio::test]
async fn q13_an_urgent_claim_evicts_its_tenants_own_claims_under_the_quota() {
    let world = World::on_memory().await;
    let workers = ["w0", "w1", "w2", "w3", "w4", "w5"];
    world.pool("p", preempting(spec(2, AckLevel::Memory)), &workers).await;
    let quota = Quota { claims: Some(3), ..Quota::default() };
    world.s.put_quota("ns", Some("t"), quota).await.unwrap();
    let of = |tenant: &str, key: &str, priority| {
        let mut claim = with_preemption(request("p", key), priority, true);
        claim.id = ClaimId::new("ns", tenant, key).unwrap();
        claim
    };
    world.s.claim(of("other", "cheap", 0)).await.unwrap();
    let mut held = Vec::new();
    for (key, priority) in [("dear", 3), ("old", 1), ("young", 1)] {
        held.push(world.s.claim(of("t", key, priority)).await.unwrap().claim);
    }
    let urgent = ClaimRequest { wait_ms: 10 * MINUTE, ..of("t", "urgent", 5) };
    let urgent = world.begin_request(urgent).await;
    let evicted = async || {
        world.pass(300).await;
        world.evicted().await
    };
    until("one is evicted", async || !evicted().await.is_empty()).await;
    for _ in 0..5 {
        assert_eq!(evicted().await, ["young"], "two workers are idle, and other tenants have nothing to do with it");
    }
    // A lower one of the tenant does not take what comes back.
    let low = world.begin_request(ClaimRequest { wait_ms: 10 * MINUTE, ..of("t", "low", 2) }).await;
    world.s.release(&held[2].id, held[2].fence).await.unwrap();
    assert_eq!(done(urgent).await.unwrap().claim.id.key(), "urgent");
    assert!(!low.is_finished());
    low.abort();
}

/// Q13: nobody is evicted if that would not make the claim fit the quota, or where the pool does not allow it.
#[tokio::test]
async fn q13_no_claim_of_the_tenant_is_evicted_in_vain() {
    let world = World::on_memory().await;
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &["w0", "w1", "w2"]).await;
    world.pool("q", spec(1, AckLevel::Memory), &["v0"]).await;
    let quota = Quota { claims: Some(2), ..Quota::default() };
    world.s.put_quota("ns", Some("t"), quota).await.unwrap();
    let of = |pool: &str, key: &str, priority, preemptible| {
        let mut claim = with_preemption(request(pool, key), priority, preemptible);
        claim.id = ClaimId::new("ns", "t", key).unwrap();
        claim
    };
    world.s.claim(of("p", "firm", 1, false)).await.unwrap();
    world.s.claim(of("q", "elsewhere", 1, true)).await.unwrap();
    let urgent = ClaimRequest { wait_ms: 10 * MINUTE, ..of("p", "urgent", 5, false) };
    let urgent = world.begin_request(urgent).await;
    until("it waits", async || world.s.waiting(&name("p")) == 1).await;
    for _ in 0..20 {
        world.pass(300).await;
    }
    assert!(world.evicted().await.is_empty() && !urgent.is_finished());
    urgent.abort();
}

/// Q13: what the first victim gives back is kept until the second has gone, too.
#[tokio::test]
async fn q13_the_quota_that_victims_give_back_is_kept() {
    let world = World::on_memory().await;
    let workers = vec![sized("w0", 8_000, None)];
    world.shared(preempting(shared(1, PlacementPolicy::BestFit)), workers).await;
    let quota = Quota { cpu_milli: Some(4_000), ..Quota::default() };
    world.s.put_quota("ns", Some("default"), quota).await.unwrap();
    let share = |key: &str, amount, priority| with_preemption(request_for("p", key, &cpu(amount)), priority, true);
    let mut held = Vec::new();
    for key in ["a", "b", "c", "d"] {
        held.push(world.s.claim(share(key, 1_000, 1)).await.unwrap().claim);
    }
    let urgent = world.begin_request(ClaimRequest { wait_ms: 10 * MINUTE, ..share("urgent", 2_000, 5) }).await;
    until("two are evicted", async || {
        world.pass(300).await;
        world.evicted().await == ["c", "d"]
    })
    .await;
    world.s.release(&held[3].id, held[3].fence).await.unwrap();
    let exceeded = RequestError::Exhausted(ExhaustionReason::Quota(QuotaResource::Cpu));
    assert_eq!(world.s.claim(share("newcomer", 1_000, 2)).await, Err(exceeded));
    world.pass(300).await;
    assert!(!urgent.is_finished());
    world.s.release(&held[2].id, held[2].fence).await.unwrap();
    assert!(done(urgent).await.is_ok());
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

/// Q13: the next urgent claim of a tenant does not wait until the victims of the first would have to be gone.
#[tokio::test]
async fn q13_one_urgent_claim_of_a_tenant_after_the_other_is_served() {
    let world = World::on_memory().await;
    let workers = ["w0", "w1", "w2", "w3", "w4", "w5"];
    world.pool("p", preempting(spec(1, AckLevel::Memory)), &workers).await;
    world.s.put_quota("ns", Some("default"), Quota { claims: Some(2), ..Quota::default() }).await.unwrap();
    let mut fences = vec![("a", world.low("a", 1, true).await), ("b", world.low("b", 1, true).await)];
    for key in ["first", "second"] {
        let urgent = world.begin_request(queued_with(request("p", key), 5)).await;
        let mut waited_ms = 0;
        while world.evicted().await.is_empty() {
            world.pass(300).await;
            waited_ms += 300;
            assert!(waited_ms <= 1_500, "{key} has nobody evicted");
        }
        let (victim, fence) = fences.pop().unwrap();
        assert_eq!(world.evicted().await, [victim]);
        world.s.release(&id(victim), fence).await.unwrap();
        assert!(done(urgent).await.is_ok());
    }
}

/// Q13: a claim that would find no worker all the same has nobody evicted elsewhere.
#[tokio::test]
async fn q13_no_claim_of_the_tenant_is_evicted_for_one_that_would_find_no_worker() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0"]).await;
    world.pool("q", preempting(spec(1, AckLevel::Memory)), &["v0"]).await;
    world.s.put_quota("ns", Some("default"), Quota { claims: Some(2), ..Quota::default() }).await.unwrap();
    world.low("firm", 1, false).await;
    world.s.claim(with_preemption(request("q", "elsewhere"), 1, true)).await.unwrap();
    let urgent = world.begin_request(queued_with(request("p", "urgent"), 5)).await;
    for _ in 0..10 {
        world.pass(300).await;
    }
    assert!(world.evicted().await.is_empty() && !urgent.is_finished());
    urgent.abort();
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
