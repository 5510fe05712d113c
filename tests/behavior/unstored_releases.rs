//! S12: a release whose record the store lacks, and what may be said about its key meanwhile.

use hotpool::model::AckLevel;
use hotpool::model::request_error::{ObjectKind, RequestError};
use tokio::task::JoinHandle;

use crate::world::{World, done, id, spec, until};

const GONE: RequestError = RequestError::NotFound(ObjectKind::Claim);

/// Sets up two pools of one shard and one worker each, and the key `k` held in the first.
async fn held_on_a() -> (World, u64) {
    let world = World::on_store().await;
    world.pool("a", spec(1, AckLevel::Durable), &["wa"]).await;
    world.pool("b", spec(1, AckLevel::Durable), &["wb"]).await;
    let fence = world.hold("a", "k").await;
    (world, fence)
}

/// Makes the store accept nothing of pool `a` from now on, and everything of the others.
fn hold_back_a(world: &World) {
    world.gate().gap(world.gate().key("ns/a", 0), usize::MAX);
}

/// Lets the store accept some commits of `b` and time pass, so that every reply that may be sent is.
async fn let_b_be_stored(world: &World) {
    let stored = async || world.shards("b").await.iter().all(|shard| shard.applied_seq == shard.seq);
    until("what b decided is stored", stored).await;
    world.pass(3).await;
}

fn pending<T>(begun: &JoinHandle<T>) -> bool {
    !begun.is_finished()
}

#[tokio::test]
async fn s12_the_next_holder_is_answered_only_after_the_earlier_release_is_stored() {
    let (world, fence) = held_on_a().await;
    hold_back_a(&world);
    let release = world.begin_release("k", fence).await;
    let claim = world.begin_claim("b", "k").await;
    let repeat = world.begin_claim("b", "k").await;
    let read = world.begin(|s| Box::pin(async move { s.get_claim(&id("k")).await })).await;
    let_b_be_stored(&world).await;
    assert!(pending(&release) && pending(&claim) && pending(&repeat) && pending(&read));
    assert_eq!(world.counts("b").await, (0, 1, 1), "it is decided all the same");
    // A crash now would find the key twice: the higher fence stays.
    let crashed = world.crashed().await;
    assert_eq!(crashed.held().await.len(), 1);
    assert_eq!(crashed.held().await[0].1, "wb");
    assert_eq!(crashed.counts("a").await, (1, 0, 0));
    world.gate().open_gate();
    done(release).await.unwrap();
    // A reply that waits for another shard's record is checked again as time passes.
    until("the record of a is stored", async || world.shards("a").await[0].answers_waiting == 0).await;
    world.pass(1).await;
    let taken = done(claim).await.unwrap();
    assert!(taken.created);
    assert_eq!(done(repeat).await.unwrap().claim.fence, taken.claim.fence);
    assert_eq!(done(read).await.unwrap().fence, taken.claim.fence);
    assert!(taken.claim.fence > fence);
}

#[tokio::test]
async fn s12_released_on_b_before_the_release_on_a_is_stored() {
    let (world, fence) = held_on_a().await;
    hold_back_a(&world);
    world.gate().keep_copies();
    let first = world.begin_release("k", fence).await;
    let claim = world.begin_claim("b", "k").await;
    let_b_be_stored(&world).await;
    let hotpool::admission::key::KeyLookup::Held { holder: hold, .. } = world.s.keys().lookup(&id("k")) else {
        panic!("b has it")
    };
    let second = world.begin_release("k", hold.handle.fence).await;
    let third = world.begin_release("k", hold.handle.fence).await;
    let batch = world.begin(move |s| Box::pin(async move { s.release_batch(vec![(id("k"), fence)]).await })).await;
    let read = world.begin(|s| Box::pin(async move { s.get_claim(&id("k")).await })).await;
    let_b_be_stored(&world).await;
    assert!(pending(&first) && pending(&claim) && pending(&second), "b's answers wait for a's record");
    assert!(pending(&third) && pending(&batch) && pending(&read), "so does whatever says that it is gone");
    world.gate().open_gate();
    until("the record of a is stored", async || world.shards("a").await[0].answers_waiting == 0).await;
    let before_answers = world.gate().take_copies();
    world.pass(1).await;
    done(first).await.unwrap();
    done(claim).await.unwrap();
    done(second).await.unwrap();
    done(third).await.unwrap();
    assert_eq!(done(batch).await, [Ok(())]);
    assert_eq!(done(read).await, Err(GONE));
    world.is_clean().await;
    // The last copy is what a crash finds right after the first reply was sent.
    let commits = before_answers.len();
    assert!(commits > 3, "each write was a commit of its own: {commits}");
    for (commit, location) in before_answers.into_iter().enumerate() {
        let crashed = World::on(location).await;
        let held = crashed.held().await;
        assert!(held.len() <= 1, "commit {commit}: {held:?}");
        if commit + 1 == commits {
            assert_eq!(held, [], "the release was acknowledged");
            assert_eq!((crashed.counts("a").await, crashed.counts("b").await), ((1, 0, 0), (1, 0, 0)));
        }
        // Whoever holds the key, no other holder blocks it: it can be released, claimed and released again.
        for (key, _, fence) in held {
            crashed.s.release(&id(&key), fence).await.unwrap();
        }
        crashed.is_clean().await;
        crashed.hold("a", "k").await;
    }
}

#[tokio::test]
async fn s12_repeated_releases_and_reads_of_an_ended_claim_wait_like_the_first() {
    let (world, fence) = held_on_a().await;
    world.gate().hold_all();
    let first = world.begin_release("k", fence).await;
    let second = world.begin_release("k", fence).await;
    let read = world.begin(|s| Box::pin(async move { s.get_claim(&id("k")).await })).await;
    let confirm = world.begin(move |s| Box::pin(async move { s.confirm(&id("k"), fence).await })).await;
    let batch = world.begin(move |s| Box::pin(async move { s.release_batch(vec![(id("k"), fence)]).await })).await;
    world.gate().stopped().await;
    world.pass(2).await;
    assert!(pending(&first) && pending(&second) && pending(&read) && pending(&confirm) && pending(&batch));
    assert_eq!(world.crashed().await.held().await, [("k".into(), "wa".into(), fence)], "a crash brings it back");
    world.gate().open_gate();
    done(first).await.unwrap();
    done(second).await.unwrap();
    assert_eq!(done(read).await, Err(GONE));
    assert_eq!(done(confirm).await, Err(GONE));
    assert_eq!(done(batch).await, [Ok(())]);
    assert_eq!(world.crashed().await.held().await, []);
}

/// An older holder that learns that the fence is not its own forgets its claim: a crash must not bring it back.
#[tokio::test]
async fn s12_a_refused_fence_is_as_durable_as_the_release_behind_it() {
    let (world, fence) = held_on_a().await;
    hold_back_a(&world);
    let _release = world.begin_release("k", fence).await;
    let _claim = world.begin_claim("b", "k").await;
    let_b_be_stored(&world).await;
    let again = world.begin_release("k", fence).await;
    let confirm = world.begin(move |s| Box::pin(async move { s.confirm(&id("k"), fence).await })).await;
    let batch = world.begin(move |s| Box::pin(async move { s.release_batch(vec![(id("k"), fence)]).await })).await;
    assert!(pending(&again) && pending(&confirm) && pending(&batch), "the store does not know of the first release");
    world.gate().open_gate();
    assert_eq!(done(again).await, Err(RequestError::FenceMismatch));
    assert_eq!(done(confirm).await, Err(RequestError::FenceMismatch));
    assert_eq!(done(batch).await, [Err(RequestError::FenceMismatch)]);
}

/// After a crash that left the key in both pools: `a` relinquishes its claim, and until the store knows, no durable
/// reply says that the key is free.
#[tokio::test]
async fn s12_claims_that_recovery_relinquishes_are_waited_for_too() {
    let (world, fence) = held_on_a().await;
    hold_back_a(&world);
    let _release = world.begin_release("k", fence).await;
    let _claim = world.begin_claim("b", "k").await;
    let_b_be_stored(&world).await;
    let crashed = World::closed(world.gate().copy().await);
    let a = world.gate().key("ns/a", 0);
    crashed.gate().gap(a, usize::MAX);
    crashed.s.start().await.unwrap();
    crashed.quiet().await;
    let hotpool::admission::key::KeyLookup::Held { holder: hold, .. } = crashed.s.keys().lookup(&id("k")) else {
        panic!("b has it")
    };
    assert_eq!((crashed.counts("a").await, crashed.counts("b").await), ((1, 0, 0), (0, 1, 1)));
    let release = crashed.begin_release("k", hold.handle.fence).await;
    let_b_be_stored(&crashed).await;
    assert!(pending(&release), "the store still has it on a: a crash now would bring it back");
    crashed.gate().open_gate();
    until("a's record is stored", async || {
        crashed.shards("a").await.iter().all(|shard| shard.applied_seq == shard.seq)
    })
    .await;
    crashed.pass(1).await;
    done(release).await.unwrap();
    crashed.is_clean().await;
    assert_eq!(crashed.crashed().await.held().await, []);
}
