//! S11: a reply that waits for the store when its deadline passes, or when its caller has left.

use std::future::Future as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{AckLevel, ClaimState};

use crate::gated_store::GatedStore;
use crate::world::{STORE, WAIT_MS, World, done, id, name, request, spec, until};

async fn one_worker() -> World {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    world
}

/// Checks that the claim is gone from memory now, and from the store once it is back.
async fn assert_nothing_left(world: World) {
    assert_eq!(world.counts("p").await, (1, 0, 0));
    world.gate().open_gate();
    world.is_clean().await;
    let again = world.restarted().await;
    assert_eq!(again.counts("p").await, (1, 0, 0));
    assert!(again.s.keys().is_empty());
}

#[tokio::test]
async fn s11_a_claim_that_is_not_stored_in_time_is_rolled_back() {
    for reserve_ms in [None, Some(0)] {
        let world = one_worker().await;
        world.gate().hold_all();
        let claim = world.begin_request(hotpool::model::ClaimRequest { reserve_ms, ..request("p", "k") }).await;
        world.pass(WAIT_MS - 1).await;
        assert!(!claim.is_finished());
        assert_eq!(world.counts("p").await.1, 1, "until then it is held");
        world.pass(1).await;
        assert_eq!(done(claim).await, Err(STORE));
        assert_nothing_left(world).await;
    }
}

#[tokio::test]
async fn s11_the_key_may_be_claimed_again_at_once() {
    let world = one_worker().await;
    world.gate().hold_all();
    let first = world.begin_claim("p", "k").await;
    world.pass(WAIT_MS).await;
    assert_eq!(done(first).await, Err(STORE));
    let second = world.begin_claim("p", "k").await;
    assert_eq!(world.counts("p").await.1, 1);
    world.gate().open_gate();
    let second = done(second).await.unwrap();
    assert!(second.created);
    let again = world.restarted().await;
    assert_eq!(again.held().await, [("k".into(), "w".into(), second.claim.fence)]);
}

#[tokio::test]
async fn s11_a_claim_stays_if_a_repeat_of_it_waits() {
    let world = one_worker().await;
    world.gate().hold_all();
    let first = world.begin_claim("p", "k").await;
    world.pass(1_000).await;
    let repeat = world.begin_claim("p", "k").await;
    world.pass(WAIT_MS - 1_000).await;
    assert_eq!(done(first).await, Err(STORE));
    assert!(!repeat.is_finished());
    world.gate().open_gate();
    let repeat = done(repeat).await.unwrap();
    assert!(!repeat.created);
    assert_eq!(world.held().await, [("k".into(), "w".into(), repeat.claim.fence)]);
    assert_eq!(repeat.claim.state, ClaimState::Reserved);
    world.s.confirm(&id("k"), repeat.claim.fence).await.unwrap();
}

#[tokio::test]
async fn s11_an_undisclosed_claim_is_rolled_back_with_its_last_reply() {
    let world = one_worker().await;
    world.gate().hold_all();
    let first = world.begin_claim("p", "k").await;
    world.pass(1_000).await;
    let repeat = world.begin_claim("p", "k").await;
    world.pass(WAIT_MS - 1_000).await;
    assert_eq!(done(first).await, Err(STORE));
    assert_eq!(world.counts("p").await, (0, 1, 1), "an answer about it waits, so it is not undone yet");
    world.pass(1_000).await;
    assert_eq!(done(repeat).await, Err(STORE));
    assert_eq!(world.counts("p").await, (1, 0, 0), "the grant was not disclosed, and will not be");
    assert_nothing_left(world).await;
}

#[tokio::test]
async fn s11_a_read_keeps_the_claim_too() {
    let world = one_worker().await;
    world.gate().hold_all();
    let first = world.begin_claim("p", "k").await;
    world.pass(1).await;
    let read = world.begin(|s| Box::pin(async move { s.get_claim(&id("k")).await })).await;
    let listed = world
        .begin(|s| Box::pin(async move { s.list_claims(&hotpool::model::ClaimFilter::default(), None, 10).await }));
    let listed = listed.await;
    assert!(!read.is_finished() && !listed.is_finished(), "reads wait for the store as well");
    world.pass(WAIT_MS - 1).await;
    assert_eq!(done(first).await, Err(STORE));
    world.gate().open_gate();
    let read = done(read).await.unwrap();
    assert_eq!(done(listed).await.unwrap().items[0].fence, read.fence);
    assert_eq!(world.held().await, [("k".into(), "w".into(), read.fence)]);
}

#[tokio::test]
async fn s11_confirm_and_release_undo_nothing() {
    let world = one_worker().await;
    let fence = world.claim("p", "k").await.unwrap().claim.fence;
    world.gate().hold_all();
    let confirm = world.begin(move |s| Box::pin(async move { s.confirm(&id("k"), fence).await })).await;
    world.pass(WAIT_MS).await;
    assert_eq!(done(confirm).await, Err(STORE));
    assert_eq!(world.counts("p").await, (0, 1, 0), "held and active");
    // Once more: a confirm that changes nothing waits for the first one's record.
    let confirm = world.begin(move |s| Box::pin(async move { s.confirm(&id("k"), fence).await })).await;
    assert!(!confirm.is_finished());
    world.gate().open_gate();
    assert_eq!(done(confirm).await.unwrap().state, ClaimState::Active);
    world.gate().hold_all();
    let release = world.begin_release("k", fence).await;
    world.pass(WAIT_MS).await;
    assert_eq!(done(release).await, Err(STORE));
    assert_nothing_left(world).await;
}

#[tokio::test]
async fn s11_a_claim_whose_caller_left_is_rolled_back_when_its_reply_is_due() {
    for reserve_ms in [None, Some(0)] {
        let world = one_worker().await;
        world.gate().hold_all();
        let claim = world.begin_request(hotpool::model::ClaimRequest { reserve_ms, ..request("p", "k") }).await;
        assert_eq!(world.counts("p").await.1, 1);
        claim.abort();
        assert!(claim.await.unwrap_err().is_cancelled());
        world.gate().open_gate();
        until("the claim is rolled back", async || world.counts("p").await == (1, 0, 0)).await;
        assert_nothing_left(world).await;
    }
}

#[tokio::test]
async fn s11_a_caller_that_left_takes_nothing_from_a_repeat() {
    let world = one_worker().await;
    world.gate().hold_all();
    let first = world.begin_claim("p", "k").await;
    let repeat = world.begin_claim("p", "k").await;
    first.abort();
    world.quiet().await;
    world.gate().open_gate();
    let repeat = done(repeat).await.unwrap();
    assert_eq!(world.held().await, [("k".into(), "w".into(), repeat.claim.fence)]);
    // A repeat whose caller left takes nothing either.
    world.s.confirm(&id("k"), repeat.claim.fence).await.unwrap();
    let third = world.begin_claim("p", "k").await;
    third.abort();
    world.quiet().await;
    assert_eq!(world.held().await, [("k".into(), "w".into(), repeat.claim.fence)]);
}

#[tokio::test]
async fn s11_only_durable_replies_wait() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Memory), &["v", "w"]).await;
    world.gate().hold_all();
    let fence = world.claim("p", "k").await.unwrap().claim.fence;
    let durable_request = hotpool::model::ClaimRequest { ack: Some(AckLevel::Durable), ..request("p", "d") };
    let durable = world.begin_request(durable_request).await;
    assert!(!durable.is_finished(), "it requested more than its pool guarantees");
    world.s.confirm(&id("k"), fence).await.unwrap();
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.s.get_claim(&id("k")).await, Err(RequestError::NotFound(ObjectKind::Claim)));
    world.gate().open_gate();
    assert!(done(durable).await.unwrap().created);
}

/// Runs inside the shard's run, when that sends a reply: the store accepts what was held back, and the shard is notified
/// while it is awake.
struct Inject {
    gate: Arc<GatedStore>,
    stored: Arc<AtomicBool>,
    was_run: AtomicBool,
}

impl Wake for Inject {
    fn wake(self: Arc<Self>) {
        if !self.was_run.swap(true, Ordering::SeqCst) {
            // Done by a thread of no runtime: a task woken by this one would wait behind this very run.
            let gate = Arc::clone(&self.gate);
            std::thread::spawn(move || gate.open_gate()).join().unwrap();
            // The watch runs after the writer has notified its shards. Rarely the runtime keeps a task behind this very
            // run on the same thread; then the store makes progress after it, and the replies must be sent all the
            // same.
            let begun = std::time::Instant::now();
            while !self.stored.load(Ordering::SeqCst) && begun.elapsed().as_secs() < 2 {
                std::thread::yield_now();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn r1_a_reply_whose_record_is_stored_while_the_shard_runs_is_sent() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["v", "w"]).await;
    world.pool("q", spec(1, AckLevel::Durable), &["u"]).await;
    let fence = world.hold("p", "g").await;
    world.gate().hold_all();
    let release = world.begin_release("g", fence).await;
    let claim = world.begin_claim("p", "k").await;
    until("both are decided", async || world.counts("p").await == (1, 1, 1)).await;
    let stored = Arc::new(AtomicBool::new(false));
    let watch = {
        // Its record follows theirs, and its reply waits in another shard.
        let (s, stored) = (world.s.clone(), Arc::clone(&stored));
        tokio::spawn(async move {
            s.claim(crate::world::request("q", "later")).await.unwrap();
            stored.store(true, Ordering::SeqCst);
        })
    };
    until("the last is decided", async || world.counts("q").await.1 == 1).await;
    let inject = Inject { gate: Arc::clone(world.gate()), stored, was_run: AtomicBool::new(false) };
    let inject = Arc::new(inject);
    let (pool, waker) = (name("p"), Waker::from(Arc::clone(&inject)));
    let busy = world.busy("p").await;
    let mut report = Box::pin(world.s.get_pool(&pool));
    // The request is in the mailbox, and its reply will wake this.
    assert!(report.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    busy.until_queued(1).await;
    while report.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        std::thread::yield_now();
    }
    // No time passes and there are no more requests: only the store's progress can release these replies.
    done(claim).await.unwrap();
    done(release).await.unwrap();
    done(watch).await;
    assert!(inject.was_run.load(Ordering::SeqCst));
}

#[tokio::test]
async fn s11_claims_are_decided_while_many_replies_wait() {
    const CLAIMS: u64 = 40;
    let world = World::on_store().await;
    let workers: Vec<String> = (0..CLAIMS).map(|n| format!("w{n}")).collect();
    let workers: Vec<&str> = workers.iter().map(String::as_str).collect();
    world.pool("p", spec(1, AckLevel::Durable), &workers).await;
    world.gate().hold_all();
    let mut claims = Vec::new();
    for n in 0..CLAIMS {
        claims.push(world.begin_claim("p", &format!("k{n}")).await);
    }
    until("all answers wait", async || world.shards("p").await[0].answers_waiting == CLAIMS).await;
    assert_eq!(world.counts("p").await.1, CLAIMS, "each has its worker");
    assert!(claims.iter().all(|claim| !claim.is_finished()));
    world.gate().open_gate();
    for claim in claims {
        assert!(done(claim).await.unwrap().created);
    }
    assert_eq!(world.held().await.len() as u64, CLAIMS);
}
