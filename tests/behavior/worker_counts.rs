//! Every worker of a pool is in exactly one count: idle, busy, or one reason to be unschedulable.

use std::collections::BTreeMap;

use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::{
    AckLevel, ClaimRequest, FilterReason, PlacementPolicy, PoolSpec, WorkerCommand, WorkerId, WorkerSpec,
};

use crate::shared_pool_helpers::{cpu, request_for, shared, sized};
use crate::world::{FULL, World, id, ids_on, name, request, spec, until, worker};

const MINUTE: u64 = 60_000;

impl World {
    /// Non-zero counts of the pool's shards, by name; checks that they add up.
    async fn states(&self, pool: &str) -> BTreeMap<String, u64> {
        let all = self.s.debug_shards().await;
        let mut states = BTreeMap::new();
        for shard in all["pools"][format!("ns/{pool}")].as_array().unwrap() {
            let count = |name: &str| (name.to_owned(), shard[name].as_u64().unwrap());
            let reasons = shard["unschedulable"].as_object().into_iter().flatten();
            let reasons = reasons.map(|(reason, workers)| (reason.clone(), workers.as_u64().unwrap()));
            let counted: Vec<_> = ["idle", "busy"].map(count).into_iter().chain(reasons).collect();
            let sum: u64 = counted.iter().map(|(_, workers)| workers).sum();
            assert_eq!(sum, count("workers").1, "the counts add up: {shard}");
            counted.into_iter().for_each(|(state, workers)| *states.entry(state).or_default() += workers);
        }
        states.retain(|_, workers| *workers > 0);
        states
    }
}

fn counted<const N: usize>(of: [(&str, u64); N]) -> BTreeMap<String, u64> {
    of.map(|(state, workers)| (state.to_owned(), workers)).into()
}

#[tokio::test]
async fn w11_a_worker_past_its_end_is_counted_as_ended() {
    let world = World::on_memory().await;
    world.pool("p", PoolSpec { reserve_ms: 1_000, ..spec(2, AckLevel::Memory) }, &["stays"]).await;
    let ends = world.clock.unix_ms() + MINUTE;
    for id in ["w0", "w1", "w2"] {
        world.s.register(&name("p"), WorkerSpec { expires_at_ms: Some(ends), ..worker(id) }).await.unwrap();
    }
    assert_eq!(world.states("p").await, counted([("idle", 4)]));
    let constraints = ClaimConstraints { worker: Some(WorkerId::new("w0").unwrap()), ..ClaimConstraints::default() };
    let request = ClaimRequest { constraints: Some(Box::new(constraints)), reserve_ms: Some(0), ..request("p", "k") };
    let fence = world.s.claim(request).await.unwrap().claim.fence;
    // The end comes by itself: no request in between.
    world.pass(MINUTE).await;
    assert_eq!(world.states("p").await, counted([("idle", 1), ("busy", 1), ("ended", 2)]));
    world.s.command_worker(&name("p"), &WorkerId::new("w1").unwrap(), WorkerCommand::Drain).await.unwrap();
    assert_eq!(world.states("p").await, counted([("idle", 1), ("busy", 1), ("draining", 1), ("ended", 1)]));
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.states("p").await, counted([("idle", 1), ("draining", 1), ("ended", 2)]));
}

/// C11: the end of a worker does not end its claim, which stays held until something else ends it.
#[tokio::test]
async fn c11_a_claim_that_is_held_when_its_worker_ends_stays_held() {
    let world = World::on_memory().await;
    world.pool("p", PoolSpec { reserve_ms: 1_000, ..spec(1, AckLevel::Memory) }, &[]).await;
    let ends = world.clock.unix_ms() + MINUTE;
    let ending = |id| WorkerSpec { expires_at_ms: Some(ends), ..worker(id) };
    world.s.register(&name("p"), ending("w")).await.unwrap();
    let until_the_end = ClaimRequest { reserve_ms: Some(0), ..request("p", "k") };
    let fence = world.s.claim(until_the_end).await.unwrap().claim.fence;
    world.pass(MINUTE).await;
    let held = world.s.renew(&id("k"), fence, Some(MINUTE)).await.unwrap();
    assert_eq!((held.fence, held.worker.spec.expires_at_ms), (fence, Some(ends)));
    world.pass(MINUTE).await;
    assert_eq!(world.states("p").await, counted([("ended", 1)]), "its own time has ended it");
    assert_eq!(world.claim("p", "l").await, Err(FULL));
}

/// C11: a worker that is reserved for a queued claim may be too near its end when the claim is served.
#[tokio::test]
async fn c11_a_reserved_worker_is_not_granted_to_a_claim_that_outlives_it() {
    let world = World::on_memory().await;
    let preempting = PoolSpec { preemption: true, releasing_ms: 10 * MINUTE, ..spec(1, AckLevel::Memory) };
    world.pool("p", preempting, &[]).await;
    let ends = world.clock.unix_ms() + 2 * MINUTE;
    world.s.register(&name("p"), WorkerSpec { expires_at_ms: Some(ends), ..worker("w") }).await.unwrap();
    let marked = |key, priority, preemptible| {
        let mut constraints = ClaimConstraints::default();
        (constraints.spec.priority, constraints.spec.preemptible) = (priority, preemptible);
        ClaimRequest { reserve_ms: Some(0), constraints: Some(Box::new(constraints)), ..request("p", key) }
    };
    let victim = world.s.claim(marked("victim", 0, true)).await.unwrap().claim;
    let high = ClaimRequest { ttl_ms: Some(MINUTE), wait_ms: 9 * MINUTE, ..marked("high", 5, false) };
    let high = world.begin_request(high).await;
    until("the victim is evicted", async || world.s.get_claim(&victim.id).await.unwrap().evicted).await;
    world.pass(MINUTE + 1_000).await;
    world.s.release(&victim.id, victim.fence).await.unwrap();
    world.quiet().await;
    assert!(!high.is_finished(), "the worker has less than a minute left");
    assert_eq!(world.states("p").await, counted([("idle", 1)]), "and is reserved for no claim");
    high.abort();
}

/// P02: an explanation counts a worker that is reserved for another claim, and does not say that it fits.
#[tokio::test]
async fn w11_explain_counts_a_worker_that_is_reserved_for_another_claim() {
    let world = World::on_memory().await;
    world.shared(shared(1, PlacementPolicy::BestFit), vec![sized("w", 4_000, None)]).await;
    let small = world.share("small", &cpu(1_000)).await.unwrap().claim;
    let large = ClaimRequest { wait_ms: 10 * MINUTE, ..request_for("p", "large", &cpu(4_000)) };
    let large = world.begin_request(large).await;
    until("the worker is kept", async || {
        world.pass(1_000).await;
        match world.share("other", &cpu(1)).await {
            Ok(other) => world.s.release(&other.claim.id, other.claim.fence).await.is_err(),
            Err(_) => true,
        }
    })
    .await;
    let explained = world.s.explain(request_for("p", "other", &cpu(1))).await.unwrap();
    let survey = &explained.pools[0].survey;
    let ruled_out: Vec<_> = FilterReason::ALL
        .iter()
        .map(|why| (why.as_str(), survey.count(*why)))
        .filter(|(_, workers)| *workers > 0)
        .collect();
    assert_eq!((explained.outcome, survey.fits, &ruled_out[..]), (Err(FULL), 0, &[("reserved", 1)][..]));
    world.s.release(&small.id, small.fence).await.unwrap();
    assert!(crate::world::done(large).await.unwrap().created);
}

/// W11: the spread of workers over shards does not depend on whether they are schedulable.
#[tokio::test]
async fn w11_the_spread_over_shards_counts_unschedulable_workers() {
    let world = World::on_memory().await;
    let (first, second) = (ids_on(0, 2, 3, "w"), ids_on(1, 2, 1, "w"));
    let workers: Vec<&str> = first.iter().chain(&second).map(String::as_str).collect();
    world.pool("p", spec(2, AckLevel::Memory), &workers).await;
    world.hold("p", "k").await;
    let spread = || {
        let scrape = world.scrape();
        let of = |stat: &str| {
            let series = format!("hotpool_shard_workers_{stat}{{pool=\"ns/p\"}} ");
            scrape.lines().find_map(|line| line.strip_prefix(&series)).map(str::to_owned)
        };
        ["min", "mean", "max"].map(|stat| of(stat).expect("a pool in use"))
    };
    assert_eq!(spread(), ["1", "2", "3"]);
    for worker in &workers {
        world.s.command_worker(&name("p"), &WorkerId::new(worker).unwrap(), WorkerCommand::Cordon).await.unwrap();
    }
    assert_eq!(world.states("p").await, counted([("busy", 1), ("cordoned", 3)]));
    assert_eq!(spread(), ["1", "2", "3"]);
}
