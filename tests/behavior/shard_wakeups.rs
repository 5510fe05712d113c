//! S18: a shard sleeps while it has nothing that it may do, and wakes when it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hotpool::admission::pool_registry::ShardHandle;
use hotpool::limits::{DRAIN_MAX, EXPIRIES_PER_RUN_MAX, MAILBOX_SLOTS};
use hotpool::model::request_error::{RequestError, UnavailableReason};
use hotpool::model::{AckLevel, PoolSpec};
use hotpool::scheduler::Scheduler;

use crate::store_location::StoreLocation;
use crate::world::{World, done, id, name, spec, until};

/// Lease of the store in milliseconds; time passes only by hand.
const LEASE_MS: u64 = 300;
/// Number of runs that two wake-ups may cost.
const RUNS_FEW: u64 = 2;

fn shard_handle(world: &World, pool: &str) -> Arc<ShardHandle> {
    Arc::clone(&world.s.inject_pool(&name(pool)).unwrap().shards[0])
}

/// Lets every task run a thousand times, and returns the number of runs of the shard.
async fn runs_in_a_thousand_yields(shard_handle: &ShardHandle) -> u64 {
    let before = shard_handle.runs();
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    shard_handle.runs() - before
}

#[tokio::test]
async fn s18_a_shard_that_may_not_answer_sleeps_until_the_lease_is_renewed() {
    let world = World::closed(StoreLocation::empty());
    world.gate().lease(LEASE_MS);
    world.s.start().await.unwrap();
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let shard_handle = shard_handle(&world, "p");
    world.gate().hold_all();
    let claim = world.begin_claim("p", "k").await;
    world.gate().refuse_renewals(true);
    world.clock.advance(Duration::from_millis(LEASE_MS + 1));
    world.gate().open_gate();
    until("the store has the claim", async || shard_handle.outbox.applied_seq() >= shard_handle.outbox.appended_seq())
        .await;
    // From here on only the renewal can wake the shard to reply.
    world.gate().hold_all();
    let runs = runs_in_a_thousand_yields(&shard_handle).await;
    assert!(!claim.is_finished(), "the lease has lapsed");
    assert!(runs <= RUNS_FEW, "the shard ran {runs} times and may answer nothing");
    world.gate().refuse_renewals(false);
    assert!(done(claim).await.unwrap().created);
    let runs = runs_in_a_thousand_yields(&shard_handle).await;
    assert!(runs <= RUNS_FEW, "the shard ran {runs} times after its last answer");
}

/// No time passes for the reply: it would expire by itself after `store_wait_ms`.
#[tokio::test]
async fn s03_replies_that_wait_for_the_store_fail_as_soon_as_another_process_owns_it() {
    let world = World::closed(StoreLocation::empty());
    world.gate().lease(LEASE_MS);
    world.s.start().await.unwrap();
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    world.gate().hold_all();
    let claim = world.begin_claim("p", "k").await;
    assert!(!claim.is_finished());
    world.gate().supersede();
    assert_eq!(done(claim).await.unwrap_err(), RequestError::Unavailable(UnavailableReason::Fenced));
}

#[tokio::test]
async fn s18_an_idle_shard_sleeps_through_renewals() {
    let world = World::closed(StoreLocation::empty());
    world.gate().lease(LEASE_MS);
    world.s.start().await.unwrap();
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    world.hold("p", "k").await;
    world.stored("p").await;
    let (shard_handle, shard) = (shard_handle(&world, "p"), world.gate().key("ns/p", 0));
    runs_in_a_thousand_yields(&shard_handle).await;
    let before = shard_handle.runs();
    // With each renewal the store is queried whether it still has everything.
    let checks =
        || world.gate().rounds().iter().flatten().filter(|step| step.shard == shard && step.bytes == 0).count();
    let checked = checks();
    until("three renewals", async || checks() >= checked + 3).await;
    runs_in_a_thousand_yields(&shard_handle).await;
    assert_eq!(shard_handle.runs(), before, "nothing has changed");
}

/// Sets up the key `k` held in pool `b`, while the store lacks the record that it is free in pool `a`.
async fn held_back() -> (World, tokio::task::JoinHandle<crate::world::Claimed>) {
    let world = World::on_store().await;
    world.pool("a", spec(1, AckLevel::Durable), &["wa"]).await;
    world.pool("b", spec(1, AckLevel::Durable), &["wb"]).await;
    let fence = world.hold("a", "k").await;
    world.gate().leave_unanswered(world.gate().key("ns/a", 0), usize::MAX);
    drop(world.begin_release("k", fence).await);
    let claim = world.begin_claim("b", "k").await;
    let shard_handle = shard_handle(&world, "b");
    until("the store has the claim", async || shard_handle.outbox.applied_seq() >= shard_handle.outbox.appended_seq())
        .await;
    (world, claim)
}

#[tokio::test]
async fn s18_a_shard_whose_replies_wait_for_another_shard_sleeps_until_that_is_stored() {
    let (world, claim) = held_back().await;
    let shard_handle = shard_handle(&world, "b");
    let before = shard_handle.runs();
    for _ in 0..100 {
        world.clock.advance(Duration::from_millis(1));
        shard_handle.tick(world.clock.tick());
        tokio::task::yield_now().await;
    }
    let runs = shard_handle.runs() - before;
    assert!(!claim.is_finished(), "the store lacks the release");
    assert!(runs <= RUNS_FEW, "the shard ran {runs} times in 100 ms and may answer nothing");
    world.gate().open_gate();
    assert!(done(claim).await.unwrap().created, "no time passes any more");
}

#[tokio::test]
async fn s12_a_read_that_waits_for_another_shard_is_answered_when_that_is_stored() {
    let (world, claim) = held_back().await;
    let read = tokio::spawn({
        let s = world.s.clone();
        async move { s.get_claim(&id("k")).await }
    });
    runs_in_a_thousand_yields(&shard_handle(&world, "b")).await;
    assert!(!read.is_finished(), "the store lacks the release");
    world.gate().open_gate();
    let fence = done(claim).await.unwrap().claim.fence;
    assert_eq!(done(read).await.unwrap().fence, fence);
}

/// Requests that each add one more, as many as there were at first, until the key is vacant.
struct Crowd {
    s: Scheduler,
    decided: AtomicUsize,
    seen_vacant: AtomicBool,
}

impl Crowd {
    fn join(self: Arc<Self>) {
        let s = self.s.clone();
        s.inject_step(&name("p"), 0, move |_| {
            if self.s.keys().lookup(&id("k")) == hotpool::admission::key::KeyLookup::Vacant {
                self.seen_vacant.store(true, Ordering::Relaxed);
            } else if self.decided.fetch_add(1, Ordering::Relaxed) < 4 * MAILBOX_SLOTS {
                self.join();
            }
        });
    }
}

#[tokio::test]
async fn c10_a_deadline_does_not_wait_for_a_mailbox_that_never_empties() {
    for crowd_size in [1, 2 * DRAIN_MAX] {
        let world = World::on_memory().await;
        let reserve_ms = 10_000;
        world.pool("p", PoolSpec { reserve_ms, ..spec(1, AckLevel::Memory) }, &["w"]).await;
        assert!(world.claim("p", "k").await.unwrap().created);
        let busy = world.busy("p").await;
        let crowd =
            Arc::new(Crowd { s: world.s.clone(), decided: AtomicUsize::new(0), seen_vacant: AtomicBool::new(false) });
        (0..crowd_size).for_each(|_| Arc::clone(&crowd).join());
        for _ in 0..=reserve_ms / 200 {
            world.clock.advance(Duration::from_millis(200));
            world.clock.tick();
        }
        drop(busy);
        let shard_handle = shard_handle(&world, "p");
        until("the mailbox is empty", async || shard_handle.queue_depth() == 0).await;
        let decided = crowd.decided.load(Ordering::Relaxed);
        assert!(crowd.seen_vacant.load(Ordering::Relaxed), "still reserved after {decided} requests");
        assert!(decided <= MAILBOX_SLOTS, "of {crowd_size}, {decided} went before the deadline");
    }
}

/// C10: deadlines beyond the limit of one run are fired by the next ones without a tick in between, and other tasks
/// run after each.
#[tokio::test]
async fn c10_deadlines_beyond_the_limit_of_a_run_do_not_wait_for_a_tick() {
    const CLAIMS: usize = 3 * EXPIRIES_PER_RUN_MAX + 10;
    const RUNS: u64 = CLAIMS.div_ceil(EXPIRIES_PER_RUN_MAX) as u64;
    let world = World::on_memory().await;
    let reserve_ms = 100;
    let workers: Vec<String> = (0..CLAIMS).map(|number| format!("w{number}")).collect();
    let workers: Vec<&str> = workers.iter().map(String::as_str).collect();
    world.pool("p", PoolSpec { reserve_ms, ..spec(1, AckLevel::Memory) }, &workers).await;
    for number in 0..CLAIMS {
        assert!(world.claim("p", &format!("k{number}")).await.unwrap().created);
    }
    world.quiet().await;
    let (shard_handle, mut held) = (shard_handle(&world, "p"), world.s.keys().len());
    assert_eq!(held, CLAIMS);
    let before = shard_handle.runs();
    world.clock.advance(Duration::from_millis(reserve_ms + 1));
    shard_handle.tick(world.clock.tick());
    // So few runs take less time than the ticks that these deadlines would otherwise need.
    for _ in 0..2 * RUNS {
        tokio::task::yield_now().await;
        let left = world.s.keys().len();
        assert!(held - left <= EXPIRIES_PER_RUN_MAX, "{} deadlines passed in one run", held - left);
        held = left;
    }
    let runs = shard_handle.runs() - before;
    assert_eq!(held, 0, "claims that wait for the next tick, after {runs} runs");
    assert!((RUNS..=RUNS + RUNS_FEW).contains(&runs), "the shard ran {runs} times for {CLAIMS} deadlines");
}
