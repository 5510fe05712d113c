//! Explanations of who waits: the headroom of the tenant's quota, and what a claim stands behind.

use hotpool::model::claim_request::PoolChoice;
use hotpool::model::request_error::{ExhaustionReason, RequestError};
use hotpool::model::{
    AckLevel, ClaimExplanation, ClaimId, ClaimRequest, FilterReason, PlacementPolicy, Quota, QuotaHeadroom,
    QuotaResource, WorkerSpec,
};

use crate::queued_claims::{MINUTE, of, one_full_worker, with_priority};
use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{FULL, World, id, name, request, spec, until, worker};

fn over(resource: QuotaResource) -> RequestError {
    RequestError::Exhausted(ExhaustionReason::Quota(resource))
}

fn ahead(explained: &ClaimExplanation) -> Vec<(u64, u64)> {
    explained.pools.iter().map(|pool| (pool.ahead, pool.gangs_ahead)).collect()
}

#[tokio::test]
async fn p02_q01_an_explanation_shows_the_headroom_of_the_quota_and_what_exceeds_it() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 64_000, None)]).await;
    let explain = async |key: &str, amount| world.s.explain(request_for("p", key, &cpu(amount))).await.unwrap();
    let unlimited = explain("a", 1_000).await;
    assert_eq!((unlimited.quota_headroom, unlimited.outcome.is_ok()), (QuotaHeadroom::default(), true));
    let quota = Quota { claims: Some(3), cpu_milli: Some(4_000), ..Quota::default() };
    world.s.put_quota("ns", None, quota).await.unwrap();
    let left = |claims, cpu_milli| QuotaHeadroom {
        claims: Some(claims),
        cpu_milli: Some(cpu_milli),
        ..QuotaHeadroom::default()
    };
    assert_eq!(explain("a", 1_000).await.quota_headroom, left(3, 4_000));
    assert_eq!(explain("a", 4_001).await.outcome, Err(over(QuotaResource::Cpu)), "a tenant that holds nothing yet");
    let held = world.share("held", &cpu(1_500)).await.unwrap().claim;
    let refused = explain("a", 2_501).await;
    assert_eq!((refused.quota_headroom, &refused.outcome), (left(2, 2_500), &Err(over(QuotaResource::Cpu))));
    assert_eq!(refused.pools[0].survey.fits, 1, "its workers are surveyed all the same");
    assert_eq!(world.share("a", &cpu(2_501)).await, Err(over(QuotaResource::Cpu)), "the claim gets just that");
    assert!(explain("a", 2_500).await.outcome.is_ok());
    for key in ["b", "c"] {
        world.share(key, &cpu(1)).await.unwrap();
    }
    let refused = explain("d", 1).await;
    assert_eq!((refused.quota_headroom, refused.outcome), (left(0, 2_498), Err(over(QuotaResource::Claims))));
    // A quota below what is held leaves nothing.
    let less = Quota { cpu_milli: Some(1_000), ..Quota::default() };
    world.s.put_quota("ns", Some("default"), less).await.unwrap();
    let explained = explain("d", 1).await;
    let none = QuotaHeadroom { cpu_milli: Some(0), ..QuotaHeadroom::default() };
    assert_eq!((explained.quota_headroom, explained.outcome), (none, Err(over(QuotaResource::Cpu))));
    world.s.release(&held.id, held.fence).await.unwrap();
    assert_eq!(explain("d", 1).await.quota_headroom.cpu_milli, Some(998));
}

#[tokio::test]
async fn p02_q08_an_explanation_respects_what_the_quota_collects_for_a_claim_before_it() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 64_000, None)]).await;
    world.s.put_quota("ns", Some("default"), Quota { cpu_milli: Some(4_000), ..Quota::default() }).await.unwrap();
    world.share("held", &cpu(1_000)).await.unwrap();
    let large = world.begin_queued(ClaimRequest { wait_ms: MINUTE, ..request_for("p", "large", &cpu(4_000)) }).await;
    let explain = async |request: ClaimRequest| {
        let explained = world.s.explain(request).await.unwrap();
        (explained.quota_headroom.cpu_milli.unwrap(), explained.outcome.map(drop), explained.pools[0].ahead)
    };
    let small = || request_for("p", "small", &cpu(1_000));
    assert_eq!(explain(small()).await, (3_000, Ok(()), 1), "for 5 s nothing is collected");
    world.pass(5_500).await;
    world.pass(500).await;
    assert_eq!(explain(small()).await, (0, Err(over(QuotaResource::Cpu)), 1), "it would take what is collected");
    assert_eq!(world.share("small", &cpu(1_000)).await, Err(over(QuotaResource::Cpu)));
    assert_eq!(explain(with_priority(small(), 1)).await, (3_000, Ok(()), 0), "it ranks before the large one");
    // The large one itself: its own need is not collected from it.
    let own = request_for("p", "large", &cpu(4_000));
    assert_eq!(explain(own).await, (3_000, Err(over(QuotaResource::Cpu)), 0));
    let other = ClaimRequest { id: ClaimId::new("ns", "other", "small").unwrap(), ..small() };
    assert!(world.s.explain(other).await.unwrap().outcome.is_ok(), "another tenant is not concerned");
    large.abort();
}

#[tokio::test]
async fn p02_q04_an_explanation_counts_what_a_claim_stands_behind() {
    let (world, _) = one_full_worker().await;
    world.pool("q", spec(1, AckLevel::Memory), &[]).await;
    let explain = async |request: ClaimRequest| world.s.explain(request).await.unwrap();
    assert_eq!(ahead(&explain(request("p", "x")).await), [(0, 0)]);
    let _urgent = world.begin_queued(with_priority(of("t", "urgent"), 9)).await;
    let _a = world.begin_queued(of("t", "a")).await;
    let _b = world.begin_queued(of("t", "b")).await;
    let _c = world.begin_queued(of("u", "c")).await;
    let gang = |keys: [&str; 2], priority| keys.map(|key| with_priority(of("t", key), priority)).to_vec();
    let before = world.waiters("p").await;
    let (low, high) = (gang(["g0", "g1"], 0), gang(["h0", "h1"], 5));
    let _low = world.begin(move |s| Box::pin(async move { s.claim_gang(low).await })).await;
    let _high = world.begin(move |s| Box::pin(async move { s.claim_gang(high).await })).await;
    until("both gangs wait", async || world.waiters("p").await == before + 2).await;

    let of_tenant = |tenant: &str, priority| with_priority(of(tenant, "x"), priority);
    // Tenants alternate: the first of a tenant has only the urgent one before it.
    assert_eq!(ahead(&explain(of_tenant("new", 0)).await), [(1, 2)]);
    assert_eq!(ahead(&explain(of_tenant("u", 0)).await), [(3, 2)], "the urgent one, its own, one of the other");
    assert_eq!(ahead(&explain(of_tenant("t", 0)).await), [(4, 2)]);
    assert_eq!(ahead(&explain(of_tenant("t", 5)).await), [(1, 1)]);
    assert_eq!(ahead(&explain(of_tenant("t", 9)).await), [(1, 0)]);
    assert_eq!(ahead(&explain(of_tenant("t", 10)).await), [(0, 0)]);
    let both = ClaimRequest { pools: PoolChoice::Listed(vec![name("q"), name("p")]), ..of_tenant("t", 0) };
    assert_eq!(ahead(&explain(both).await), [(0, 0), (4, 2)], "each pool for itself");

    // A key that waits has its own position, whatever priority the request has.
    for (key, position) in [("a", (1, 1)), ("b", (3, 1)), ("urgent", (0, 0))] {
        let explained = explain(of("t", key)).await;
        assert_eq!((ahead(&explained), explained.outcome), (vec![position], Err(FULL)), "{key}");
    }
    assert_eq!(ahead(&explain(with_priority(of("t", "b"), 10)).await), [(3, 1)]);
    // Nothing has changed.
    assert_eq!((world.waiters("p").await, world.held().await.len()), (before + 2, 1));
    assert!(world.view("x").await.is_none() && world.is_vacant("x"));
}

/// Pool status and explanations have the same names for why a worker is not offered.
#[tokio::test]
async fn p02_w11_an_explanation_names_ended_and_reserved_workers_as_the_pool_does() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 4_000, None)]).await;
    world.share("small", &cpu(1_000)).await.unwrap();
    let _large =
        world.begin_queued(ClaimRequest { wait_ms: 10 * MINUTE, ..request_for("p", "large", &cpu(4_000)) }).await;
    let expires_at_ms = Some(world.clock.unix_of(world.clock.engine_now_ms()) + 3_000);
    world.s.register(&name("p"), WorkerSpec { expires_at_ms, ..worker("old") }).await.unwrap();
    until("the worker is kept, and the other one has ended", async || {
        world.pass(1_000).await;
        let counts = world.s.get_pool(&name("p")).await.unwrap().counts();
        (counts.workers_reserved, counts.ended) == (1, 1)
    })
    .await;
    let explained = world.s.explain(request_for("p", "other", &cpu(1))).await.unwrap();
    let survey = &explained.pools[0].survey;
    let named = |name: &str| FilterReason::ALL.iter().find(|reason| reason.as_str() == name).unwrap();
    assert_eq!((survey.count(*named("reserved")), survey.count(*named("ended")), survey.fits), (1, 1, 0));
    assert_eq!((explained.outcome, explained.pools[0].ahead), (Err(FULL), 1));
    assert!(world.is_vacant("other") && world.view("large").await.is_some_and(|view| view.id == id("large")));
}
