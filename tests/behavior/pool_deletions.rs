//! Deletion of pools leaves nothing behind, whatever could not be read, and whoever raced it.

use futures::FutureExt as _;
use hotpool::metrics::ClaimOutcome;
use hotpool::model::claim_request::PoolChoice;
use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{AckLevel, ClaimRequest, Quota, RegistrationRequest, WorkerId};
use hotpool::persist::row::{RowKind, put_deletion};
use hotpool::persist::store::{ShardKey, WriteBatch, WriteKind, WriteOutcome};
use hotpool::scheduler::{DeleteMode, Scheduler};
use hotpool::shard::Command;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::queued_claims::{one_full_worker, waiting};
use crate::store_location::StoreLocation;
use crate::world::{Claimed, LOADING, WAIT_MS, World, done, id, ids_on, name, request, spec, until, worker};

/// Copies the store, with a row of the shard that cannot be read.
async fn damaged(world: &World, shard: ShardKey) -> StoreLocation {
    let location = world.gate().copy().await;
    {
        let store = location.open();
        store.take_over(uuid::Uuid::now_v7()).await.unwrap();
        let loaded = store.load(vec![shard], Box::new(|_, _| {})).await.unwrap();
        let at = loaded[0].at.clone().unwrap();
        let mut rows = Vec::new();
        // The rows of a shard include no pools.
        put_deletion(&mut rows, RowKind::Pool, "1");
        let batch = WriteBatch { shard, from: at, to: at + 1, kind: WriteKind::Rows(rows.into()) };
        assert_eq!(store.apply(vec![batch]).await.unwrap(), [WriteOutcome::Ok]);
    }
    location
}

async fn quota(world: &World, claims: u64) {
    let quota = Quota { claims: Some(claims), ..Quota::default() };
    world.s.put_quota("ns", Some("default"), quota).await.unwrap();
}

/// Begins a gang of `a` in pool `p` and `b` in pool `q`, each with two workers, whose commit waits for the store.
async fn gang_in_doubt() -> (World, JoinHandle<Vec<Claimed>>) {
    gang_of_in_doubt(vec![request("p", "a"), request("q", "b")]).await
}

async fn gang_of_in_doubt(gang: Vec<ClaimRequest>) -> (World, JoinHandle<Vec<Claimed>>) {
    let world = World::on_store().await;
    for (pool, workers) in [("p", ["u", "v"]), ("q", ["x", "y"])] {
        world.pool(pool, spec(1, AckLevel::Durable), &workers).await;
        world.stored(pool).await;
    }
    quota(&world, 2).await;
    world.gate().hold_gang_rows();
    let begun = world.begin(move |s: Scheduler| async move { s.claim_gang(gang).await }.boxed()).await;
    world.gate().stopped().await;
    (world, begun)
}

#[tokio::test]
async fn s17_keys_of_a_shard_that_cannot_be_read_are_free_when_its_pool_is_deleted() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["v", "w"]).await;
    quota(&world, 1).await;
    world.hold("p", "k").await;
    world.stored("p").await;
    let world = World::on(damaged(&world, world.gate().key("ns/p", 0)).await).await;
    assert_eq!(world.claim("p", "k").await, Err(LOADING));
    assert_eq!(world.s.keys().tenants.in_use().len(), 1, "what it may hold counts");
    world.s.delete_pool(&name("p"), DeleteMode::Force).await.unwrap();
    assert!(world.s.keys().is_empty() && world.s.keys().tenants.in_use().is_empty());
    assert!(world.s.readiness().ready);
    world.pool("p", spec(1, AckLevel::Durable), &["v", "w"]).await;
    assert!(world.claim("p", "k").await.unwrap().created);
}

/// The home of a gang in doubt at a crash cannot be read: members elsewhere are kept until its pool is deleted.
#[tokio::test]
async fn s17_members_of_a_gang_are_free_when_the_pool_of_its_home_is_deleted() {
    let (world, begun) = gang_in_doubt().await;
    let home = world.gate().gang_home();
    let (lost, kept) = if home == world.gate().key("ns/p", 0) { ("p", "q") } else { ("q", "p") };
    let key = if kept == "p" { "a" } else { "b" };
    let after = World::on(damaged(&world, home).await).await;
    begun.abort();
    assert_eq!(after.claim(kept, key).await, Err(LOADING));
    assert_eq!(after.counts(kept).await, (1, 1, 1), "its worker is kept for it");
    after.s.delete_pool(&name(lost), DeleteMode::Force).await.unwrap();
    until("the claim is rolled back", async || after.counts(kept).await == (2, 0, 0)).await;
    assert!(after.s.keys().tenants.in_use().is_empty());
    assert!(after.claim(kept, key).await.unwrap().created);
}

/// A shard is refused for good when the gang is recorded and not yet committed there: the member's key is unavailable,
/// and no request waits for it, until its pool is deleted.
#[tokio::test]
async fn b05_the_key_of_a_member_that_cannot_be_committed_is_unavailable_until_its_pool_is_deleted() {
    let (world, begun) = gang_in_doubt().await;
    let (home, lost, key) =
        if world.gate().gang_home() == world.gate().key("ns/p", 0) { ("p", "q", "b") } else { ("q", "p", "a") };
    while world.shards(lost).await[0].state != "refused" {
        world.s.inject_panic(&name(lost), 0);
        until("it serves again, or is refused", async || world.shards(lost).await[0].state != "loading").await;
    }
    let joined = world.begin_claim(lost, key).await;
    world.gate().open_gate();
    assert!(done(begun).await.iter().all(|outcome| *outcome == Err(RequestError::DeadlineExceeded)));
    assert_eq!(done(joined).await, Err(LOADING));
    assert_eq!(world.claim(lost, key).await, Err(LOADING));
    assert_eq!(world.counts(home).await, (1, 1, 1), "the other member is a claim");
    world.s.delete_pool(&name(lost), DeleteMode::Force).await.unwrap();
    assert_eq!(world.s.keys().len(), 1);
    let other = &world.s.list_claims(&hotpool::model::ClaimFilter::default(), None, 10).await.unwrap().items[0];
    world.s.release(&other.id, other.fence).await.unwrap();
    assert!(world.s.keys().tenants.in_use().is_empty(), "its quota is free");
    assert!(world.claim(home, key).await.unwrap().created);
}

/// A registration resolves its pool before the deletion counts the workers, and arrives after that: it is rejected, so
/// that no worker is deleted silently.
#[tokio::test]
async fn s17_a_registration_after_a_deletion_counted_the_workers_is_rejected() {
    let world = World::on_memory().await;
    world.pool("p", spec(2, AckLevel::Memory), &[]).await;
    let pool = world.s.inject_pool(&name("p")).unwrap();
    let busy = world.busy("p").await;
    let deleting = world.begin_alone(|s| async move { s.delete_pool(&name("p"), DeleteMode::RequireEmpty).await });
    until("the workers are being counted", async || busy.depth() == 2).await;
    let (reply, answer) = oneshot::channel();
    let spec = worker(&ids_on(0, 2, 1, "w")[0]);
    pool.shards[0].push(Command::Register(vec![(RegistrationRequest::from(spec), Vec::new(), reply)])).unwrap();
    drop(busy);
    assert_eq!(answer.await.unwrap(), Err(RequestError::NotFound(ObjectKind::Pool)));
    assert_eq!(done(deleting).await, Ok(()));
}

/// Callers that leave while a pool is being created leave no half of one behind, whose number could not be used again.
#[tokio::test]
async fn s17_a_pool_whose_creator_leaves_is_created_nevertheless() {
    let world = World::on_store().await;
    world.gate().hold_all();
    let scheduler = world.s.clone();
    let mut making = Box::pin(async move { scheduler.put_pool(name("p"), spec(2, AckLevel::Durable)).await });
    assert!(futures::poll!(&mut making).is_pending());
    world.gate().stopped().await;
    drop(making);
    world.gate().open_gate();
    until("the pool exists", async || world.s.get_pool(&name("p")).await.is_ok()).await;
}

/// The home of a gang is deleted while its record waits for the store: nothing of the gang is left.
#[tokio::test]
async fn b04_a_gang_in_doubt_is_undone_when_the_pool_of_its_home_is_deleted() {
    let (world, begun) = gang_in_doubt().await;
    let home = world.gate().gang_home();
    let (lost, kept) = if home == world.gate().key("ns/p", 0) { ("p", "q") } else { ("q", "p") };
    world.gate().leave_unanswered(home, usize::MAX);
    world.gate().hold(|_| false);
    let deleting = world.begin_alone(|s| async move { s.delete_pool(&name(lost), DeleteMode::Force).await });
    assert!(done(begun).await.iter().all(|outcome| *outcome == Err(RequestError::DeadlineExceeded)));
    world.gate().open_gate();
    assert_eq!(done(deleting).await, Ok(()));
    until("it is undone", async || world.counts(kept).await == (2, 0, 0)).await;
    until("its keys are free", async || world.s.keys().is_empty()).await;
    assert!(world.s.keys().tenants.in_use().is_empty());
}

/// The caller leaves before one member is stored as committed, and the outcome is in doubt until it is.
#[tokio::test]
async fn c12_a_gang_in_doubt_whose_caller_has_left_keeps_nothing() {
    // Active at once: no deadline would ever end them.
    let forever = |request| ClaimRequest { reserve_ms: Some(0), ..request };
    let (world, begun) = gang_of_in_doubt(vec![forever(request("p", "a")), forever(request("q", "b"))]).await;
    let shards = [world.gate().key("ns/p", 0), world.gate().key("ns/q", 0)];
    let home = world.gate().gang_home();
    let other = shards[usize::from(shards[0] == home)];
    world.gate().leave_unanswered(other, usize::MAX);
    let before = world.gate().log(other).len();
    world.gate().hold(|_| false);
    until("the member is to be committed", async || world.gate().log(other).len() > before).await;
    begun.abort();
    assert!(begun.await.unwrap_err().is_cancelled());
    world.pass(WAIT_MS + 100).await;
    world.gate().open_gate();
    until("nothing is held", async || {
        world.pass(10).await;
        [world.counts("p").await, world.counts("q").await] == [(2, 0, 0); 2]
    })
    .await;
    world.is_clean().await;
}

/// A shard is being loaded again when its pool is deleted: none of its claims are entered anywhere.
#[tokio::test]
async fn s17_a_shard_that_is_loaded_while_its_pool_is_deleted_leaves_no_keys() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["v", "w"]).await;
    world.hold("p", "k").await;
    world.stored("p").await;
    world.gate().hold_loads();
    world.s.inject_panic(&name("p"), 0);
    until("it is being loaded", async || world.shards("p").await[0].state == "loading").await;
    assert!(
        matches!(
            world.s.delete_pool(&name("p"), DeleteMode::RequireEmpty).await,
            Err(RequestError::FailedPrecondition(_))
        ),
        "it may have workers"
    );
    world.s.delete_pool(&name("p"), DeleteMode::Force).await.unwrap();
    world.gate().open_gate();
    world.quiet().await;
    world.pool("p", spec(1, AckLevel::Durable), &["v", "w"]).await;
    assert!(world.claim("p", "k").await.unwrap().created);
    assert_eq!(world.s.keys().len(), 1);
}

const GONE: RequestError = RequestError::NotFound(ObjectKind::Pool);

fn waits(pool: &str, key: &str) -> ClaimRequest {
    ClaimRequest { wait_ms: 600_000, ..request(pool, key) }
}

/// All claims that wait for a pool, for whatever reason and with whatever others, are rejected when it is deleted.
#[tokio::test]
async fn s17_all_claims_that_wait_for_a_deleted_pool_are_rejected() {
    let world = World::on_memory().await;
    for pool in ["p", "q"] {
        world.pool(pool, spec(1, AckLevel::Memory), &["w"]).await;
    }
    quota(&world, 1).await;
    world.hold("p", "held").await;
    let quota_waiters = || world.s.get_quota("ns", Some("default")).unwrap().waiting;
    let alone = world.begin_request(waits("p", "alone")).await;
    let along = world.begin_request(waits("p", "alone")).await;
    let batch =
        world.begin(|s| async move { s.claim_batch(vec![waits("p", "x"), waits("p", "y")]).await }.boxed()).await;
    let gang = world.begin(|s| async move { s.claim_gang(vec![waits("p", "g")]).await }.boxed()).await;
    let elsewhere = world.begin_request(waits("q", "elsewhere")).await;
    let both = PoolChoice::Listed(vec![name("p"), name("q")]);
    let both = world.begin_request(ClaimRequest { pools: both, ..waits("p", "both") }).await;
    until("all wait for the quota", async || quota_waiters() == 6).await;
    world.s.delete_pool(&name("p"), DeleteMode::Force).await.unwrap();
    for waited in [alone, along] {
        assert_eq!(done(waited).await, Err(GONE));
    }
    assert_eq!(done(batch).await, [Err(GONE), Err(GONE)]);
    assert_eq!(done(gang).await, [Err(GONE)]);
    // Those that can be served elsewhere are, one after the other.
    let taken = done(elsewhere).await.unwrap().claim;
    world.s.release(&taken.id, taken.fence).await.unwrap();
    assert_eq!(done(both).await.unwrap().claim.pool, name("q"));
    assert_eq!(quota_waiters(), 0);
}

/// The quota is held elsewhere, so the deletion frees none: the claims that wait are rejected nevertheless.
#[tokio::test]
async fn s17_claims_that_wait_for_a_quota_held_elsewhere_are_rejected_too() {
    let world = World::on_memory().await;
    for pool in ["p", "q"] {
        world.pool(pool, spec(1, AckLevel::Memory), &["w"]).await;
    }
    quota(&world, 1).await;
    world.hold("q", "held").await;
    let alone = world.begin_request(waits("p", "alone")).await;
    let gang = world.begin(|s| async move { s.claim_gang(vec![waits("p", "g")]).await }.boxed()).await;
    until("both wait", async || world.s.get_quota("ns", Some("default")).unwrap().waiting == 2).await;
    world.s.delete_pool(&name("p"), DeleteMode::Force).await.unwrap();
    assert_eq!(done(alone).await, Err(GONE));
    assert_eq!(done(gang).await, [Err(GONE)]);
}

/// The deletion of a pool releases quota before it is complete: claims that get it try shards that no longer serve.
#[tokio::test]
async fn s17_quota_released_by_a_deletion_is_of_no_use_in_the_same_pool() {
    let world = World::on_store().await;
    let workers = ids_on(0, 2, 2, "w");
    world.pool("p", spec(2, AckLevel::Memory), &[&workers[0], &workers[1]]).await;
    quota(&world, 1).await;
    world.hold("p", "held").await;
    world.stored("p").await;
    let waited = world.begin_request(waits("p", "k")).await;
    until("it waits", async || world.s.get_quota("ns", Some("default")).unwrap().waiting == 1).await;
    world.gate().hold_all();
    let deleting = world.begin_alone(|s| async move { s.delete_pool(&name("p"), DeleteMode::Force).await });
    world.gate().stopped().await;
    // The shard without workers must not close before the other one has.
    let seized = world.s.inject_busy(&name("p"), 1).unwrap();
    world.gate().open_gate();
    until("the claim is gone", async || world.s.get_quota("ns", Some("default")).unwrap().used.claims == 0).await;
    world.clock.tick();
    assert_eq!(done(waited).await, Err(GONE));
    drop(seized);
    assert_eq!(done(deleting).await, Ok(()));
}

/// Requests in the mailbox of a shard whose pool is deleted are answered like those that arrive later.
#[tokio::test]
async fn s17_requests_in_the_mailboxes_of_a_deleted_pool_are_rejected() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w", "v"]).await;
    let fence = world.hold("p", "held").await;
    let pool = world.s.inject_pool(&name("p")).unwrap();
    let busy = world.busy("p").await;
    let deleting = world.begin_alone(|s| async move { s.delete_pool(&name("p"), DeleteMode::Force).await });
    until("the request is in the mailbox", async || busy.depth() == 1).await;
    drop(busy);
    assert_eq!(done(deleting).await, Ok(()));
    // The pool was resolved before, and its shards get the request after.
    let (reply, answer) = oneshot::channel();
    pool.shards[0].push_or_reject(Command::GetWorker(WorkerId::new("w").unwrap(), reply));
    assert_eq!(answer.await.unwrap(), Err(GONE));
    assert_eq!(world.s.release(&id("held"), fence).await, Ok(()));
}

#[tokio::test]
async fn h04_a_recreated_pool_counts_from_zero_whoever_still_has_the_old_one() {
    let world = World::on_memory().await;
    world.pool("p", spec(2, AckLevel::Memory), &["v", "w"]).await;
    world.s.claim(request("p", "a")).await.unwrap();
    world.s.claim(request("p", "b")).await.unwrap();
    let of_pool = |outcome: &str| format!("hotpool_claims_total{{pool=\"ns/p\",outcome=\"{outcome}\"}} ");
    assert!(world.scrape().contains(&(of_pool("created") + "2\n")), "{}", world.scrape());
    // The pool was resolved before it was deleted, and is counted in afterwards.
    let old = world.s.inject_pool(&name("p")).unwrap();
    world.s.delete_pool(&name("p"), DeleteMode::Force).await.unwrap();
    old.metrics.claims(ClaimOutcome::Deadline).increment(1);
    old.update_metrics();
    assert!(!world.scrape().contains("ns/p"), "{}", world.scrape());
    world.pool("p", spec(2, AckLevel::Memory), &["v"]).await;
    world.s.claim(request("p", "c")).await.unwrap();
    old.metrics.claims(ClaimOutcome::Created).increment(5);
    for (outcome, count) in [("created", "1\n"), ("deadline", "0\n")] {
        assert!(world.scrape().contains(&(of_pool(outcome) + count)), "{}", world.scrape());
    }
    // Another scheduler of the process shows its own pools.
    let other = World::on_memory().await;
    assert!(!other.scrape().contains("ns/p") && other.scrape().contains("pool=\"none\""));
}

#[tokio::test]
async fn w02_a_deleted_pool_rejects_claims_that_wait_for_it_alone() {
    let (world, _) = one_full_worker().await;
    world.pool("q", spec(1, AckLevel::Memory), &["v0"]).await;
    let other = world.hold("q", "other").await;
    let alone = world.begin_queued(waiting("p", "a")).await;
    let pools = PoolChoice::Listed(vec![name("p"), name("q")]);
    let both = world.begin_queued(ClaimRequest { pools, ..waiting("p", "b") }).await;
    world.s.delete_pool(&name("p"), DeleteMode::Force).await.unwrap();
    assert_eq!(done(alone).await, Err(RequestError::NotFound(ObjectKind::Pool)));
    world.s.release(&id("other"), other).await.unwrap();
    assert_eq!(done(both).await.unwrap().claim.pool, name("q"));
}

/// L03: a gang that waits goes on in the pools that are left, and is told when a member has none any more.
#[tokio::test]
async fn l03_a_gang_that_waits_goes_on_in_the_pools_that_are_left() {
    let world = World::on_memory().await;
    for pool in ["a", "b"] {
        world.pool(pool, spec(1, AckLevel::Memory), &[]).await;
    }
    let member = |key: &str| ClaimRequest { pools: PoolChoice::Listed(vec![name("a"), name("b")]), ..waits("a", key) };
    let gang = vec![member("m0"), member("m1")];
    let gang = world.begin(move |s| async move { s.claim_gang(gang).await }.boxed()).await;
    until("it waits", async || world.s.waiting(&name("a")) == 1).await;
    world.s.delete_pool(&name("b"), DeleteMode::Force).await.unwrap();
    world.quiet().await;
    assert!(!gang.is_finished());
    world.add("a", &["w0", "w1"]).await;
    until("it is placed", async || {
        world.pass(100).await;
        gang.is_finished()
    })
    .await;
    assert!(done(gang).await.iter().all(Result::is_ok));
}
