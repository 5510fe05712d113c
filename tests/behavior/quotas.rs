//! Quotas: exact under parallel claims, released once, recounted after a restart and a panic.

use std::sync::Arc;

use hotpool::model::request_error::{ExhaustionReason, ObjectKind, RequestError};
use hotpool::model::{
    AckLevel, ClaimId, ClaimRequest, PlacementPolicy, PoolName, Quota, QuotaResource, QuotaSource, ResourceUsage,
};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{DeleteMode, Scheduler, SchedulerSettings};

use crate::queued_claims::waiting;
use crate::shared_pool_helpers::{cpu, gpus, shared, sized};
use crate::world::{World, done, id, name, request, spec, until, worker};

const CLAIMS: RequestError = RequestError::Exhausted(ExhaustionReason::Quota(QuotaResource::Claims));
const CPU: RequestError = RequestError::Exhausted(ExhaustionReason::Quota(QuotaResource::Cpu));

fn claims(max: u64) -> Quota {
    Quota { claims: Some(max), ..Quota::default() }
}

impl World {
    fn used(&self) -> ResourceUsage {
        self.s.get_quota("ns", Some("default")).unwrap().used
    }

    async fn quota(&self, quota: Quota) {
        self.s.put_quota("ns", Some("default"), quota).await.unwrap();
    }
}

/// 120 claims at once over many shards under a quota of 100.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q01_exactly_as_many_are_admitted_as_the_quota_allows() {
    let s = Scheduler::new(Arc::new(MemoryStore), SchedulerSettings::default());
    s.start().await.unwrap();
    s.put_pool(name("p"), spec(16, AckLevel::Memory)).await.unwrap();
    let workers = (0..200).map(|n| worker(&format!("w{n}")).into()).collect();
    s.register_batch(&name("p"), workers).await.unwrap();
    s.put_quota("ns", Some("default"), claims(100)).await.unwrap();
    for round in 0..20 {
        let all: Vec<_> = (0..120)
            .map(|n| {
                let s = s.clone();
                // Some keys are claimed twice: counted once.
                let key = format!("{round}-{}", if n < 10 { 0 } else { n });
                tokio::spawn(async move { (n, s.claim(request("p", &key)).await) })
            })
            .collect();
        let (mut made, mut found, mut refused) = (Vec::new(), 0, 0);
        for task in all {
            match task.await.unwrap().1 {
                Ok(taken) if taken.created => made.push(taken.claim),
                Ok(_) => found += 1,
                Err(refusal) => {
                    assert_eq!(refusal, CLAIMS);
                    refused += 1;
                }
            }
        }
        assert_eq!(made.len(), 100);
        assert_eq!(made.len() + found + refused, 120);
        assert_eq!(s.get_quota("ns", Some("default")).unwrap().used.claims, 100);
        let releases = made.iter().map(|claim| (claim.id.clone(), claim.fence)).collect();
        assert!(s.release_batch(releases).await.iter().all(Result::is_ok));
        assert_eq!(s.get_quota("ns", Some("default")).unwrap().used, ResourceUsage::default());
    }
    assert!(s.stop().await);
}

#[tokio::test]
async fn q01_rejected_expired_and_lost_claims_release_quota_once() {
    let world = World::on_memory().await;
    world.pool("p", spec(2, AckLevel::Memory), &["w0", "w1"]).await;
    world.quota(claims(2)).await;
    world.claim("p", "a").await.unwrap();
    world.claim("p", "a").await.unwrap();
    assert_eq!(world.used().claims, 1, "a retry counts once");
    let b = world.hold("p", "b").await;
    assert_eq!(world.claim("p", "c").await, Err(CLAIMS));
    // The reservation expires.
    world.pass(30_001).await;
    assert_eq!(world.used().claims, 1);
    // Rejected for lack of capacity: nothing is charged.
    world.claim("p", "c").await.unwrap();
    world.quota(claims(9)).await;
    assert!(world.claim("p", "d").await.is_err());
    assert_eq!(world.used().claims, 2);
    // Released twice, ended once.
    world.s.release(&id("b"), b).await.unwrap();
    world.s.release(&id("b"), b).await.unwrap();
    assert_eq!(world.used().claims, 1);
    // Lost with its worker.
    let on = world.s.get_claim(&id("c")).await.unwrap().worker.spec.id.clone();
    world.s.delete_worker(&name("p"), &on).await.unwrap();
    assert_eq!(world.used(), ResourceUsage::default());
}

#[tokio::test]
async fn q01_resources_are_charged_as_requested_and_resized() {
    let world = World::on_memory().await;
    world
        .shared(
            shared(2, PlacementPolicy::BestFit),
            vec![sized("w0", 16_000, Some(("a", 4))), sized("w1", 16_000, None)],
        )
        .await;
    world.quota(Quota { cpu_milli: Some(6_000), gpu_milli: Some(2_500), ..Quota::default() }).await;
    let a = world.share("a", &cpu(4_000)).await.unwrap();
    assert_eq!(world.share("b", &cpu(2_001)).await, Err(CPU));
    world.share("b", &cpu(1_000)).await.unwrap();
    world.share("g", &gpus(&[], 2, 1_000)).await.unwrap();
    assert_eq!(
        world.share("h", &gpus(&[], 1, 501)).await,
        Err(RequestError::Exhausted(ExhaustionReason::Quota(QuotaResource::Gpu)))
    );
    world.share("h", &gpus(&[], 1, 500)).await.unwrap();
    assert_eq!(world.used(), ResourceUsage { claims: 4, cpu_milli: 5_000, memory_bytes: 0, gpu_milli: 2_500 });
    // Above the quota, and above the worker's capacity: both change nothing.
    assert_eq!(world.s.resize(&id("a"), a.claim.fence, cpu(5_001)).await, Err(CPU));
    world.quota(Quota { cpu_milli: Some(100_000), ..Quota::default() }).await;
    assert!(world.s.resize(&id("a"), a.claim.fence, cpu(20_000)).await.is_err());
    assert_eq!(world.used().cpu_milli, 5_000);
    world.s.resize(&id("a"), a.claim.fence, cpu(6_000)).await.unwrap();
    assert_eq!(world.used().cpu_milli, 7_000);
    world.s.resize(&id("a"), a.claim.fence, cpu(500)).await.unwrap();
    assert_eq!(world.used().cpu_milli, 1_500);
    world.s.release(&id("a"), a.claim.fence).await.unwrap();
    assert_eq!(world.used().cpu_milli, 1_000);
}

/// Below the held resources: nothing is evicted, nothing is admitted, and a claim may still shrink.
#[tokio::test]
async fn a_quota_below_the_held_resources_evicts_nothing() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w0", 16_000, None)]).await;
    let a = world.share("a", &cpu(4_000)).await.unwrap();
    world.quota(Quota { cpu_milli: Some(1_000), ..Quota::default() }).await;
    assert_eq!(world.share("b", &cpu(1)).await, Err(CPU));
    world.s.resize(&id("a"), a.claim.fence, cpu(2_000)).await.unwrap();
    assert_eq!(world.s.resize(&id("a"), a.claim.fence, cpu(2_001)).await, Err(CPU));
    assert_eq!(world.all_held().await.len(), 1);
}

#[tokio::test]
async fn a_namespace_quota_applies_to_tenants_without_their_own() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0", "w1", "w2"]).await;
    let take = async |tenant: &str, key: &str| {
        world.s.claim(ClaimRequest { id: ClaimId::new("ns", tenant, key).unwrap(), ..request("p", key) }).await
    };
    world.s.put_quota("ns", None, claims(1)).await.unwrap();
    take("t", "a").await.unwrap();
    assert_eq!(take("t", "b").await, Err(CLAIMS));
    take("u", "c").await.unwrap();
    world.s.put_quota("ns", Some("t"), claims(2)).await.unwrap();
    take("t", "b").await.unwrap();
    assert_eq!(world.s.get_quota("ns", Some("t")).unwrap().source, QuotaSource::Tenant);
    assert_eq!(world.s.get_quota("ns", Some("u")).unwrap().source, QuotaSource::Namespace);
    world.s.delete_quota("ns", Some("t")).await.unwrap();
    assert_eq!(world.s.get_quota("ns", Some("t")).unwrap().quota, claims(1));
    assert_eq!(world.s.delete_quota("ns", Some("t")).await, Err(RequestError::NotFound(ObjectKind::Quota)));
    let page = world.s.list_quotas(None, 10).unwrap();
    assert_eq!(page.items.iter().map(|quota| quota.tenant.as_deref()).collect::<Vec<_>>(), [None]);
    let wrong = world.s.put_quota("ns", None, Quota { weight: 0, ..Quota::default() }).await;
    assert!(matches!(wrong, Err(RequestError::Invalid { field, .. }) if field == "weight"));
    let wrong = world.s.put_quota("ns", Some("t/u"), Quota::default()).await;
    assert!(matches!(wrong, Err(RequestError::Invalid { field, .. }) if field == "tenant"));
}

/// Quotas and usage are restored after a crash; a tenant's usage in several pools is one sum.
#[tokio::test]
async fn q01_a_restart_recounts_usage() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["w0", "w1"]).await;
    world.pool("q", spec(2, AckLevel::Durable), &["v0"]).await;
    world.quota(claims(2)).await;
    world.s.put_quota("other", None, claims(7)).await.unwrap();
    world.s.put_quota("other", Some("gone"), claims(7)).await.unwrap();
    world.s.delete_quota("other", Some("gone")).await.unwrap();
    world.hold("p", "a").await;
    world.hold("q", "b").await;
    assert_eq!(world.claim("p", "c").await, Err(CLAIMS));
    let after = world.crashed().await;
    assert_eq!(after.used().claims, 2);
    assert_eq!(after.claim("p", "c").await, Err(CLAIMS));
    assert_eq!(after.s.list_quotas(None, 10).unwrap().items.len(), 2);
    after.s.delete_pool(&name("q"), DeleteMode::Force).await.unwrap();
    assert_eq!(after.used().claims, 1);
    after.claim("p", "c").await.unwrap();
}

#[tokio::test]
async fn s08_a_panic_leaves_usage_equal_to_the_held_claims() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w0", "w1", "w2"]).await;
    world.quota(claims(3)).await;
    world.hold("p", "a").await;
    world.hold("p", "b").await;
    world.stored("p").await;
    world.s.inject_panic(&name("p"), 0);
    until("it serves again", async || world.shards("p").await[0].state == "serving").await;
    assert_eq!(world.used().claims, world.held().await.len() as u64);
    world.claim("p", "c").await.unwrap();
    assert_eq!(world.claim("p", "d").await, Err(CLAIMS));
}

/// A gang is charged as a whole or not at all.
#[tokio::test]
async fn b02_a_gang_over_the_quota_is_rejected_whole() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["w0", "w1", "w2", "w3"]).await;
    world.quota(claims(3)).await;
    let gang = |n: usize| (0..n).map(|i| request("p", &format!("g{i}"))).collect::<Vec<_>>();
    let outcomes = world.s.claim_gang(gang(4)).await;
    assert!(outcomes.contains(&Err(CLAIMS)), "{outcomes:?}");
    assert_eq!(world.used(), ResourceUsage::default());
    assert!(world.s.claim_gang(gang(3)).await.iter().all(Result::is_ok));
    assert_eq!(world.used().claims, 3);
    world.assert_consistent().await;
}

impl World {
    /// Checks `U1`: the usage of tenants equals what they hold.
    async fn assert_consistent(&self) {
        assert_eq!(self.used().claims, self.held().await.len() as u64);
        let pool: PoolName = name("p");
        assert!(self.s.get_pool(&pool).await.is_ok());
    }
}

/// Caller that panics when it is woken.
struct PanickingCaller;

impl futures::task::ArcWake for PanickingCaller {
    fn wake_by_ref(_: &Arc<Self>) {
        panic!("injected fault");
    }
}

#[tokio::test]
async fn q02_a_panic_in_a_quota_queue_blocks_no_other_claim() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Memory), &["v", "w"]).await;
    for (pool, worker) in [("q", "x"), ("r", "y")] {
        world.pool(pool, spec(1, AckLevel::Memory), &[worker]).await;
    }
    world.quota(claims(1)).await;
    let held = world.hold("p", "held").await;
    let waits = |pool, key| ClaimRequest { wait_ms: 60_000, ..request(pool, key) };
    let scheduler = world.s.clone();
    let first = waits("q", "first");
    let mut first = Box::pin(async move { scheduler.claim(first).await });
    let waker = futures::task::waker(Arc::new(PanickingCaller));
    assert!(first.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    let second = world.begin_request(waits("r", "second")).await;
    let waiting = || world.s.get_quota("ns", Some("default")).unwrap().waiting;
    until("both wait for the quota", async || waiting() == 2).await;
    // The first claim is rejected, because its pool is gone, and its caller panics: the deletion continues. The freed
    // quota goes to the second.
    world.s.delete_pool(&name("q"), DeleteMode::Force).await.unwrap();
    assert_eq!(waiting(), 1);
    world.s.release(&id("held"), held).await.unwrap();
    let second = tokio::time::timeout(std::time::Duration::from_secs(30), second).await.expect("the claim is dequeued");
    assert!(second.unwrap().unwrap().created);
}

#[tokio::test]
async fn q02_claims_wait_for_quota_too() {
    let world = World::on_memory().await;
    world.pool("p", spec(2, AckLevel::Memory), &["w0", "w1", "w2"]).await;
    world.s.put_quota("ns", Some("default"), Quota { claims: Some(1), ..Quota::default() }).await.unwrap();
    let fence = world.hold("p", "held0").await;
    let a = world.begin_request(waiting("p", "a")).await;
    until("it waits", async || world.view("a").await.is_some()).await;
    assert_eq!(world.view("a").await.unwrap().reason, "quota");
    let b = world.begin_request(ClaimRequest { wait_ms: 500, ..waiting("p", "b") }).await;
    world.pass(501).await;
    assert_eq!(done(b).await, Err(CLAIMS));
    world.s.release(&id("held0"), fence).await.unwrap();
    done(a).await.unwrap();
    let c = world.begin_request(waiting("p", "c")).await;
    until("it waits", async || world.view("c").await.is_some()).await;
    world.s.put_quota("ns", Some("default"), Quota { claims: Some(2), ..Quota::default() }).await.unwrap();
    done(c).await.unwrap();
    assert_eq!(world.s.get_quota("ns", Some("default")).unwrap().waiting, 0);
}
