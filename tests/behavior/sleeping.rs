//! S18: a shard sleeps while there is nothing that it may do; and wakes when there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hotpool::limits::{DRAIN_MAX, EXPIRIES_PER_RUN_MAX, MAILBOX_SLOTS};
use hotpool::model::request_error::{RequestError, UnavailableReason};
use hotpool::model::{AckLevel, PoolSpec};
use hotpool::scheduler::Scheduler;
use hotpool::shard::ShardHandle;

use crate::place::Place;
use crate::world::{World, done, id, name, spec, until};

/// Of the store; time passes only by hand.
const LEASE_MS: u64 = 300;
/// Runs that two wakes may cost.
const RUNS_FEW: u64 = 2;

fn port(world: &World, pool: &str) -> Arc<ShardHandle> {
    Arc::clone(&world.s.inject_pool(&name(pool)).unwrap().shards[0])
}

/// Lets everybody have a thousand turns, and says how often the shard took one.
async fn runs_in_a_thousand_turns(port: &ShardHandle) -> u64 {
    let before = port.runs();
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    port.runs() - before
}

#[tokio::test]
async fn s18_a_shard_that_may_not_answer_sleeps_until_the_lease_is_renewed() {
    let world = World::closed(Place::empty());
    world.gate().lease(LEASE_MS);
    world.s.start().await.unwrap();
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let port = port(&world, "p");
    world.gate().hold_all();
    let claim = world.begin_claim("p", "k").await;
    world.gate().refuse_renewals(true);
    world.clock.advance(Duration::from_millis(LEASE_MS + 1));
    world.gate().open_gate();
    until("the store has the claim", async || port.outbox.applied_seq() >= port.outbox.appended_seq()).await;
    // From here on nothing but the renewal can tell the shard that it may answer.
    world.gate().hold_all();
    let runs = runs_in_a_thousand_turns(&port).await;
    assert!(!claim.is_finished(), "the lease has lapsed");
    assert!(runs <= RUNS_FEW, "the shard ran {runs} times and may answer nothing");
    world.gate().refuse_renewals(false);
    assert!(done(claim).await.unwrap().created);
    let runs = runs_in_a_thousand_turns(&port).await;
    assert!(runs <= RUNS_FEW, "the shard ran {runs} times after its last answer");
}

/// No time passes for the answer: it would end by itself after `store_wait_ms`.
#[tokio::test]
async fn s03_answers_that_wait_for_the_store_are_refused_as_soon_as_another_owns_it() {
    let world = World::closed(Place::empty());
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
    let world = World::closed(Place::empty());
    world.gate().lease(LEASE_MS);
    world.s.start().await.unwrap();
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    world.hold("p", "k").await;
    world.stored("p").await;
    let (port, shard) = (port(&world, "p"), world.gate().key("ns/p", 0));
    runs_in_a_thousand_turns(&port).await;
    let before = port.runs();
    // With each the store is asked whether it still has all.
    let checks =
        || world.gate().rounds().iter().flatten().filter(|step| step.shard == shard && step.bytes == 0).count();
    let checked = checks();
    until("three renewals", async || checks() >= checked + 3).await;
    runs_in_a_thousand_turns(&port).await;
    assert_eq!(port.runs(), before, "nothing has changed");
}

/// The key `k` is held in pool `b`, and the store lacks the record that it is free in pool `a`.
async fn held_back() -> (World, tokio::task::JoinHandle<crate::world::Claimed>) {
    let world = World::on_store().await;
    world.pool("a", spec(1, AckLevel::Durable), &["wa"]).await;
    world.pool("b", spec(1, AckLevel::Durable), &["wb"]).await;
    let fence = world.hold("a", "k").await;
    world.gate().leave_unanswered(world.gate().key("ns/a", 0), usize::MAX);
    drop(world.begin_release("k", fence).await);
    let claim = world.begin_claim("b", "k").await;
    let port = port(&world, "b");
    until("the store has the claim", async || port.outbox.applied_seq() >= port.outbox.appended_seq()).await;
    (world, claim)
}

#[tokio::test]
async fn s18_a_shard_whose_answers_another_holds_back_sleeps_until_that_one_is_stored() {
    let (world, claim) = held_back().await;
    let port = port(&world, "b");
    let before = port.runs();
    for _ in 0..100 {
        world.clock.advance(Duration::from_millis(1));
        port.tick(world.clock.tick());
        tokio::task::yield_now().await;
    }
    let runs = port.runs() - before;
    assert!(!claim.is_finished(), "the store lacks the release");
    assert!(runs <= RUNS_FEW, "the shard ran {runs} times in 100 ms and may answer nothing");
    world.gate().open_gate();
    assert!(done(claim).await.unwrap().created, "no time passes any more");
}

#[tokio::test]
async fn s12_a_read_that_only_another_shard_holds_back_is_answered_when_that_one_is_stored() {
    let (world, claim) = held_back().await;
    let read = tokio::spawn({
        let s = world.s.clone();
        async move { s.get_claim(&id("k")).await }
    });
    runs_in_a_thousand_turns(&port(&world, "b")).await;
    assert!(!read.is_finished(), "the store lacks the release");
    world.gate().open_gate();
    let fence = done(claim).await.unwrap().claim.fence;
    assert_eq!(done(read).await.unwrap().fence, fence);
}

/// Requests that each bring one more, as many as there were at first, until the key is vacant.
struct Crowd {
    s: Scheduler,
    decided: AtomicUsize,
    seen_vacant: AtomicBool,
}

impl Crowd {
    fn join(self: Arc<Self>) {
        let s = self.s.clone();
        s.inject_step(&name("p"), 0, move |_| {
            if self.s.keys().lookup(&id("k")) == hotpool::admission::key_directory::KeyLookup::Vacant {
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
        let port = port(&world, "p");
        until("the crowd is gone", async || port.queue_depth() == 0).await;
        let decided = crowd.decided.load(Ordering::Relaxed);
        assert!(crowd.seen_vacant.load(Ordering::Relaxed), "still reserved after {decided} requests");
        assert!(decided <= MAILBOX_SLOTS, "of {crowd_size}, {decided} went before the deadline");
    }
}

/// C10: what one run may not carry out is carried out by the next ones, with no tick between them, and whoever else has
/// something to do has a turn after each.
#[tokio::test]
async fn c10_deadlines_beyond_what_a_run_carries_out_do_not_wait_for_a_tick() {
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
    let (port, mut held) = (port(&world, "p"), world.s.keys().len());
    assert_eq!(held, CLAIMS);
    let before = port.runs();
    world.clock.advance(Duration::from_millis(reserve_ms + 1));
    port.tick(world.clock.tick());
    // So few turns take less time than the ticks that these deadlines would otherwise need.
    for _ in 0..2 * RUNS {
        tokio::task::yield_now().await;
        let left = world.s.keys().len();
        assert!(held - left <= EXPIRIES_PER_RUN_MAX, "{} deadlines passed without a turn for others", held - left);
        held = left;
    }
    let runs = port.runs() - before;
    assert_eq!(held, 0, "claims that wait for the next tick, after {runs} runs");
    assert!((RUNS..=RUNS + RUNS_FEW).contains(&runs), "the shard ran {runs} times for {CLAIMS} deadlines");
}
