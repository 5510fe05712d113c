//! B04, B05: a gang is committed whole or not at all, whichever of its writes are lost, and whatever happens to its
//! members' workers.

use futures::FutureExt as _;
use hotpool::model::request_error::RequestError;
use hotpool::model::{AckLevel, ClaimRequest, ClaimResult, ClaimState, PoolSpec, Quota, WorkerId};
use hotpool::scheduler::Scheduler;
use tokio::task::JoinHandle;

use crate::world::{FULL, WAIT_MS, World, done, id, ids_on, name, request, spec, until};

type Outcomes = Vec<Result<ClaimResult, RequestError>>;

fn gang(keys: &[&str]) -> Vec<ClaimRequest> {
    keys.iter().map(|key| request("p", key)).collect()
}

async fn begin(world: &World, gang: Vec<ClaimRequest>) -> JoinHandle<Outcomes> {
    world.begin(move |s: Scheduler| async move { s.claim_gang(gang).await }.boxed()).await
}

/// Sets up pool `p` of two shards with this many workers on each, stored.
async fn two_shards(spec: PoolSpec, each: usize) -> World {
    let world = World::on_store().await;
    let ids: Vec<String> = (0..2).flat_map(|shard| ids_on(shard, 2, each, "w")).collect();
    world.pool("p", spec, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.stored("p").await;
    world
}

const KEYS: [&str; 4] = ["a", "b", "c", "d"];

/// Begins a gang whose row is stored while its home's master does not answer: whether it is committed is unknown.
async fn in_doubt(world: &World) -> JoinHandle<Outcomes> {
    world.gate().hold_gang_rows();
    let begun = begin(world, gang(&KEYS)).await;
    world.gate().stopped().await;
    let home = world.gate().gang_home();
    world.gate().lose_answers(home, 1);
    world.gate().leave_unanswered(home, usize::MAX);
    world.gate().hold(|_| false);
    until("the gang's row is stored", async || world.gate().gang_rows() == 1).await;
    world.pass(WAIT_MS + 200).await;
    begun
}

#[tokio::test]
async fn b04_a_gang_whose_record_was_not_answered_is_committed_whole_or_not_at_all_after_a_crash() {
    let world = two_shards(spec(2, AckLevel::Durable), 2).await;
    let begun = in_doubt(&world).await;
    let outcomes = done(begun).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Err(RequestError::DeadlineExceeded)), "{outcomes:?}");
    world.quiet().await;
    let other = world.gate().key("ns/p", 1 - world.gate().gang_home().shard);
    until("the other shard is stored", async || {
        let shard = &world.shards("p").await[other.shard as usize];
        shard.applied_seq == shard.seq
    })
    .await;
    let after = world.crashed().await;
    assert_eq!(after.held().await.len(), 4, "the gang is recorded: all of it or, had it been forgotten, none");
    // Without a crash it is rolled back, and everything is free.
    world.gate().open_gate();
    until("the gang is rolled back", async || world.counts("p").await == (4, 0, 0)).await;
    world.stored("p").await;
    world.is_clean().await;
    assert_eq!(world.gate().gang_rows(), 0);
    assert!(world.crashed().await.held().await.is_empty());
    assert!(done(begin(&world, gang(&KEYS)).await).await.iter().all(Result::is_ok));
}

/// Other gangs proceed while one is in doubt; its own keys and workers are kept until its outcome is known.
#[tokio::test]
async fn b04_a_gang_in_doubt_keeps_only_its_own_keys_and_workers() {
    let world = two_shards(spec(2, AckLevel::Durable), 4).await;
    let begun = in_doubt(&world).await;
    done(begun).await;
    assert_eq!(world.counts("p").await.1, 4, "in doubt, it holds its workers");
    let shard = 1 - world.gate().gang_home().shard;
    let mut apart = gang(&["x", "y"]);
    for (item, worker) in apart.iter_mut().zip(ids_on(shard, 2, 4, "w")) {
        item.constraints = Some(Box::default());
        item.constraints.as_mut().unwrap().worker = Some(WorkerId::new(&worker).unwrap());
    }
    let joined = world.begin_claim("p", "a").await;
    world.gate().open_gate();
    // The key's ticket is its own now, and it is an ordinary claim.
    let joined = done(joined).await.unwrap();
    assert!(joined.created);
    world.s.release(&id("a"), joined.claim.fence).await.unwrap();
    until("the gang is rolled back", async || world.counts("p").await == (8, 0, 0)).await;
    assert!(done(begin(&world, apart).await).await.iter().all(|outcome| outcome.is_ok() || *outcome == Err(FULL)));
}

/// Sets a quota of as many claims as the gang has members: three, while four workers are free.
async fn with_quota(each: usize) -> World {
    let world = two_shards(spec(2, AckLevel::Durable), each).await;

    world.s.put_quota("ns", Some("default"), Quota { claims: Some(4), ..Quota::default() }).await.unwrap();
    world
}

/// A member's worker is lost while the gang's record is in flight: no claim is made, and nothing is left of the gang.
#[tokio::test]
async fn b05_a_gang_that_lost_a_worker_before_the_commit_is_placed_again_or_not_at_all() {
    for (each, placed) in [(2, false), (3, true)] {
        let world = with_quota(each).await;
        world.gate().hold_gang_rows();
        let begun = begin(&world, gang(&KEYS)).await;
        world.gate().stopped().await;
        // Each shard has a member, and grants the worker that became idle last.
        let gone = WorkerId::new(ids_on(0, 2, each, "w").last().unwrap()).unwrap();
        // Decided inline; its reply waits for the store.
        assert!(world.s.delete_worker(&name("p"), &gone).now_or_never().is_none());
        world.gate().open_gate();
        let outcomes = done(begun).await;
        let made = outcomes.iter().flatten().count();
        assert_eq!(made, if placed { 4 } else { 0 }, "{outcomes:?}");
        assert!(outcomes.iter().flatten().all(|taken| taken.claim.worker.spec.id != gone));
        assert_eq!(world.held().await.len(), made);
        for taken in outcomes.iter().flatten() {
            world.s.release(&taken.claim.id, taken.claim.fence).await.unwrap();
        }
        until("nothing is held", async || world.counts("p").await == (2 * each as u64 - 1, 0, 0)).await;
        world.stored("p").await;
        world.is_clean().await;
        assert!(world.s.keys().tenants.in_use().is_empty(), "its quota is free");
        assert_eq!(world.gate().gang_rows(), 0);
        assert!(world.crashed().await.held().await.is_empty());
    }
}

/// A worker that is lost at the commit takes its member with it, like any claim.
#[tokio::test]
async fn b05_a_member_that_is_lost_after_the_commit_is_a_lost_claim() {
    let world = with_quota(2).await;
    let outcomes = done(begin(&world, gang(&KEYS)).await).await;
    let claim = &outcomes[1].as_ref().unwrap().claim;
    world.s.delete_worker(&name("p"), &claim.worker.spec.id).await.unwrap();
    assert_eq!(world.s.get_claim(&id("b")).await.unwrap().state, ClaimState::Lost);
    assert_eq!(world.held().await.len(), 3);
}
