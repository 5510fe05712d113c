//! Evictions within a tenant, under its own quota.

use hotpool::model::request_error::{ExhaustionReason, RequestError};
use hotpool::model::{AckLevel, ClaimId, ClaimRequest, PlacementPolicy, Quota, QuotaResource};

use crate::preemption::{preempting, queued_with, with_preemption};
use crate::queued_claims::MINUTE;
use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{World, done, id, name, request, spec, until};

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
