//! P04, P07, Q11: candidate pools of a claim, in order, while some of them are exhausted or unavailable.

use hotpool::limits;
use hotpool::model::claim_request::PoolChoice;
use hotpool::model::request_error::{ExhaustionReason, RequestError};
use hotpool::model::{AckLevel, ClaimRequest, PoolSpec};

use crate::claim_constraints::{
    add, cpu, from_pools, in_zone, invalid, listed, request_with, requiring, selecting, worker_of,
};
use crate::queued_claims::waiting;
use crate::world::{FULL, LOADING, World, done, id, name, request, spec, until};

#[tokio::test]
async fn p04_an_exhausted_pool_falls_back_to_the_next_in_order_and_to_no_other() {
    let world = World::on_store().await;
    world.pool("a", spec(2, AckLevel::Durable), &["a1", "a2"]).await;
    world.pool("b", PoolSpec { reserve_ms: 10_000, ..spec(4, AckLevel::Durable) }, &["b1"]).await;
    world.pool("c", spec(1, AckLevel::Durable), &["c1"]).await;
    let order = || listed(&["b", "a"]);
    let plain = |key: &str, pools| ClaimRequest { pools, ..request("unused", key) };
    let first = world.s.claim(plain("k1", order())).await.unwrap();
    assert_eq!((first.claim.pool.pool(), first.claim.worker.spec.id.as_str()), ("b", "b1"));
    let mut took = Vec::new();
    for key in ["k2", "k3"] {
        took.push(worker_of(&world, plain(key, order())).await.unwrap());
    }
    took.sort();
    assert_eq!(took, ["a1", "a2"]);
    assert_eq!(world.s.claim(plain("k4", order())).await, Err(FULL), "c was not allowed");
    assert_eq!(world.counts("c").await, (1, 0, 0));
    assert_eq!((world.s.keys().len(), world.s.keys().pending_len()), (3, 0));
    // The first pool has free capacity again and is preferred again.
    world.s.release(&id("k1"), first.claim.fence).await.unwrap();
    assert_eq!(worker_of(&world, plain("k5", order())).await.as_deref(), Ok("b1"));
    // The reservation time is that of the granting pool: `b`'s ends first.
    world.pass(10_000).await;
    assert_eq!((world.counts("b").await, world.counts("a").await), ((1, 0, 0), (0, 2, 2)));
    // The whole batch, filling each pool before the next is tried.
    world.pass(30_000).await;
    let all = listed(&["a", "b", "c"]);
    let answers = world.s.claim_batch((0..6).map(|i| plain(&format!("n{i}"), all.clone())).collect()).await;
    assert_eq!(answers.iter().flatten().count(), 4);
    assert_eq!(answers.into_iter().filter_map(Result::err).collect::<Vec<_>>(), [FULL, FULL]);
    // Above the limit of one of the pools, and an empty list.
    invalid(world.s.claim(ClaimRequest { reserve_ms: Some(20_000), ..plain("k6", order()) }).await, "reserve_ms");
    invalid(world.s.claim(plain("k6", listed(&[]))).await, "pools");
    invalid(world.s.claim(plain("k6", listed(&["a", "b", "a"]))).await, "pools[2]");
    invalid(world.s.claim(plain("k6", listed(&["a", "none"]))).await, "pools[1]");
    invalid(world.s.claim(plain("k6", PoolChoice::Selected("a,".into()))).await, "pool_selector");
}

#[tokio::test]
async fn p04_an_unavailable_pool_blocks_no_claim_and_is_not_called_exhausted() {
    let world = World::on_store().await;
    world.pool("unavailable", spec(1, AckLevel::Memory), &["a1", "a2"]).await;
    world.pool("b", spec(1, AckLevel::Memory), &["b1"]).await;
    let first = world.hold("unavailable", "first").await;
    world.stored("unavailable").await;
    world.gate().hold_all();
    // According to its last published bound it has no idle worker.
    world.hold("unavailable", "tail").await;
    world.s.inject_panic(&name("unavailable"), 0);
    until("it is loading", async || world.shards("unavailable").await[0].state == "loading").await;
    let plain = |key: &str| ClaimRequest { pools: listed(&["unavailable", "b"]), ..request("unused", key) };
    assert_eq!(worker_of(&world, plain("k1")).await.as_deref(), Ok("b1"));
    assert_eq!(world.s.claim(plain("k2")).await, Err(LOADING));
    let by_selector = from_pools(listed(&["unavailable", "b"]), "k2", selecting("!zone"));
    assert_eq!(world.s.claim(by_selector).await, Err(LOADING));
    let large = from_pools(listed(&["unavailable", "b"]), "k2", requiring(cpu(1)));
    assert_eq!(world.s.claim(large).await, Err(LOADING), "its capacity is unknown");
    world.gate().open_gate();
    until("it serves again", async || world.shards("unavailable").await[0].state == "serving").await;
    assert_eq!(world.s.claim(plain("k2")).await, Err(FULL));
    world.s.release(&id("first"), first).await.unwrap();
    assert!(worker_of(&world, plain("k2")).await.is_ok_and(|id| id.starts_with('a')));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p07_an_exhausted_pool_does_not_starve_others() {
    let world = World::on_memory().await;
    world.pool("full", spec(4, AckLevel::Durable), &["f"]).await;
    world.pool("p", spec(4, AckLevel::Durable), &[]).await;
    add(&world, "p", (0..200).map(|i| in_zone(&format!("w{i}"), "a")).collect()).await;
    world.hold("full", "holder").await;
    let constraints = |pool: &str, i: usize| match i % 2 {
        0 => request(pool, &format!("{pool}-{i}")),
        _ => request_with(pool, &format!("{pool}-{i}"), selecting("!zone")),
    };
    let mut begun = Vec::new();
    for i in 0..2_000 {
        let (s, refused) = (world.s.clone(), constraints("full", i));
        begun.push(tokio::spawn(async move { s.claim(refused).await }));
        if i % 10 == 0 {
            let from_both = from_pools(listed(&["full", "p"]), &format!("k{i}"), selecting("zone=a"));
            assert!(worker_of(&world, from_both).await.unwrap().starts_with('w'));
        }
    }
    for refused in begun {
        let full = done(refused).await;
        assert!(full == Err(FULL), "{full:?}");
    }
    assert_eq!(world.counts("p").await, (0, 200, 200));
}

/// Q11: pools that are created, or get other labels, count for claims that wait with a pool selector.
#[tokio::test]
async fn q11_pools_that_come_to_match_a_selector_serve_those_who_wait_with_it() {
    let world = World::on_memory().await;
    let gold = || PoolSpec { labels: [("tier".to_owned(), "gold".to_owned())].into(), ..spec(1, AckLevel::Memory) };
    world.pool("p", gold(), &["p1"]).await;
    world.pool("plain", spec(1, AckLevel::Memory), &["plain1"]).await;
    world.hold("p", "holder").await;
    let selecting_gold =
        |key: &str| ClaimRequest { pools: PoolChoice::Selected("tier=gold".into()), ..waiting("unused", key) };
    let first = world.begin_queued(selecting_gold("k1")).await;
    world.pool("b", gold(), &["b1"]).await;
    assert_eq!(done(first).await.unwrap().claim.worker.spec.id.as_str(), "b1");
    let second = world.begin_queued(selecting_gold("k2")).await;
    world.s.put_pool(name("plain"), gold()).await.unwrap();
    assert_eq!(done(second).await.unwrap().claim.worker.spec.id.as_str(), "plain1");
    // A pool that no longer matches serves nobody, and the last one to go leaves nothing to wait for.
    let third = world.begin_queued(selecting_gold("k3")).await;
    world.s.put_pool(name("b"), spec(1, AckLevel::Memory)).await.unwrap();
    world.pass(1_000).await;
    world.s.release(&id("k1"), world.s.get_claim(&id("k1")).await.unwrap().fence).await.unwrap();
    world.quiet().await;
    assert!(!third.is_finished());
    for pool in ["p", "plain"] {
        world.s.put_pool(name(pool), spec(1, AckLevel::Memory)).await.unwrap();
    }
    let refused = Err(RequestError::Exhausted(ExhaustionReason::NoEligiblePool));
    assert_eq!(done(third).await.map(|granted| granted.claim.fence), refused);
}

/// Q11: a gang that waits with a pool selector is placed in pools that come to match it, and keeps its rank.
#[tokio::test]
async fn q11_pools_that_come_to_match_a_selector_serve_gangs_that_wait_with_it() {
    let world = World::on_memory().await;
    let gold = || PoolSpec { labels: [("tier".to_owned(), "gold".to_owned())].into(), ..spec(1, AckLevel::Memory) };
    world.pool("p", gold(), &["p1"]).await;
    let gang = |prefix: &str| -> Vec<ClaimRequest> {
        let member = |i: usize| ClaimRequest {
            pools: PoolChoice::Selected("tier=gold".into()),
            ..waiting("unused", &format!("{prefix}{i}"))
        };
        (0..2).map(member).collect()
    };
    let (first, second) = (gang("a"), gang("b"));
    let first = world.begin(move |s| Box::pin(async move { s.claim_gang(first).await })).await;
    until("it waits", async || world.s.waiting(&name("p")) == 1).await;
    let second = world.begin(move |s| Box::pin(async move { s.claim_gang(second).await })).await;
    until("both wait", async || world.s.waiting(&name("p")) == 2).await;
    world.pool("b", gold(), &["b1"]).await;
    until("the first is placed", async || {
        world.pass(20).await;
        first.is_finished()
    })
    .await;
    let workers: Vec<String> =
        done(first).await.into_iter().map(|member| member.unwrap().claim.worker.spec.id.to_string()).collect();
    assert!(workers.contains(&"p1".to_owned()) && workers.contains(&"b1".to_owned()), "{workers:?}");
    assert!(!second.is_finished());
    second.abort();
}

/// P04: a selector that matches more pools than a claim may list is refused with both numbers.
#[tokio::test]
async fn p04_a_selector_matches_as_many_pools_as_a_claim_may_list() {
    let world = World::on_memory().await;
    let many = || PoolSpec { labels: [("many".to_owned(), "yes".to_owned())].into(), ..spec(1, AckLevel::Memory) };
    for number in 0..limits::CLAIM_POOLS_MAX {
        world.pool(&format!("p{number}"), many(), &[]).await;
    }
    let plain = || ClaimRequest { pools: PoolChoice::Selected("many in (yes, no)".into()), ..request("unused", "k") };
    assert_eq!(world.s.claim(plain()).await, Err(FULL));
    world.pool("one-more", many(), &["w"]).await;
    let error = world.s.claim(plain()).await.unwrap_err();
    assert!(error.to_string().contains("at most 64 pools, and matches 65"), "{error}");
    invalid(Err(error), "pool_selector");
    let narrower = ClaimRequest { pools: PoolChoice::Selected("many,tier".into()), ..request("unused", "k") };
    assert_eq!(world.s.claim(narrower).await, Err(RequestError::Exhausted(ExhaustionReason::NoEligiblePool)));
}

/// Q11: claims that select their pools anew while workers come free are served, and none stays behind in a queue that it
/// left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn q11_claims_that_select_anew_beside_releases_leave_nothing_behind() {
    let world = World::on_memory().await;
    let labelled =
        |value: &str| PoolSpec { labels: [("tier".to_owned(), value.to_owned())].into(), ..spec(2, AckLevel::Memory) };
    for pool in ["a", "b"] {
        world.pool(pool, labelled("gold"), &[&format!("{pool}1"), &format!("{pool}2")]).await;
    }
    world.pool("always", labelled("gold"), &[]).await;
    let mut served = Vec::new();
    for n in 0..60 {
        let request =
            ClaimRequest { pools: PoolChoice::Selected("tier=gold".into()), ..waiting("unused", &format!("k{n}")) };
        let s = world.s.clone();
        served.push(tokio::spawn(async move {
            let claim = s.claim(request).await?.claim;
            for _ in 0..n % 7 {
                tokio::task::yield_now().await;
            }
            s.release(&claim.id, claim.fence).await.map(|_| ())
        }));
    }
    for round in 0..40 {
        let value = if round % 2 == 0 { "silver" } else { "gold" };
        world.s.put_pool(name(["a", "b"][round % 4 / 2]), labelled(value)).await.unwrap();
        world.pass(5).await;
    }
    for pool in ["a", "b"] {
        world.s.put_pool(name(pool), labelled("gold")).await.unwrap();
    }
    for claim in served {
        assert_eq!(done(claim).await, Ok(()));
    }
    for pool in ["a", "b", "always"] {
        assert_eq!(world.s.waiting(&name(pool)), 0, "{pool}");
    }
    assert_eq!((world.s.keys().len(), world.s.keys().pending_len()), (0, 0));
}
