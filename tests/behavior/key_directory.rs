//! Callers that disconnect, and claims that move: the key directory keeps no key whose claim is never decided.

use hotpool::model::AckLevel;
use hotpool::model::request_error::RequestError;

use crate::world::{FULL, World, done, id, request, spec, until};

#[tokio::test]
async fn k1_a_caller_that_disconnects_before_anything_ran_leaves_nothing() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["v", "w"]).await;
    let busy = world.busy("p").await;
    // Polled once: the claim is in a mailbox, and no shard has run.
    assert!(futures::FutureExt::now_or_never(world.s.claim(request("p", "k"))).is_none());
    assert_eq!(world.s.keys().pending_len(), 1);
    drop(busy);
    world.is_clean().await;
    assert_eq!(world.counts("p").await, (2, 0, 0));
}

#[tokio::test]
async fn k1_a_batch_whose_caller_disconnects_leaves_nothing() {
    let world = World::on_store().await;
    world.pool("p", spec(4, AckLevel::Durable), &["u", "v", "w"]).await;
    let requests = (0..10).map(|i| request("p", &format!("k{i}"))).collect();
    let busy = world.busy("p").await;
    assert!(futures::FutureExt::now_or_never(world.s.claim_batch(requests)).is_none());
    assert_eq!(world.s.keys().pending_len(), 10);
    drop(busy);
    world.is_clean().await;
    until("all are idle", async || world.counts("p").await == (3, 0, 0)).await;
}

#[tokio::test]
async fn k1_a_duplicate_takes_over_from_a_caller_that_disconnected() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["w"]).await;
    let busy = world.busy("p").await;
    let first = world.s.claim(request("p", "k"));
    assert!(futures::FutureExt::now_or_never(first).is_none());
    let gone = world.s.claim(request("p", "k"));
    assert!(futures::FutureExt::now_or_never(gone).is_none());
    drop(busy);
    let third = world.claim("p", "k").await.unwrap();
    assert!(third.created, "the one who is still there gets it");
    assert_eq!(world.counts("p").await, (0, 1, 1));
    world.s.release(&id("k"), third.claim.fence).await.unwrap();
    world.is_clean().await;
}

/// The first claim is rejected by an exhausted pool; its duplicate wants another pool and is decided by itself.
#[tokio::test]
async fn k1_a_duplicate_is_decided_by_itself_after_a_rejection() {
    let world = World::on_store().await;
    world.pool("full", spec(2, AckLevel::Durable), &["f"]).await;
    world.pool("free", spec(2, AckLevel::Durable), &["w"]).await;
    // Two claims in one mailbox: the second finds no free worker, and is not rejected before the third has joined.
    let busy = world.busy("full").await;
    let taker = world.s.clone();
    let taker = tokio::spawn(async move { taker.claim(request("full", "taker")).await });
    let first = world.s.clone();
    let first = tokio::spawn(async move { first.claim(request("full", "k")).await });
    let second = world.s.clone();
    let second = tokio::spawn(async move { second.claim(request("free", "k")).await });
    busy.until_queued(2).await;
    done(taker).await.unwrap();
    assert_eq!(done(first).await, Err(FULL));
    let second = done(second).await.unwrap();
    assert_eq!(second.claim.worker.spec.id.as_str(), "w");
    assert_eq!(world.s.keys().pending_len(), 0);
}

/// C09: the old pool no longer satisfies the request.
#[tokio::test]
async fn c09_a_reservation_in_another_pool_is_rolled_back_and_claimed_again() {
    let world = World::on_store().await;
    world.pool("a", spec(2, AckLevel::Durable), &["wa"]).await;
    world.pool("b", spec(2, AckLevel::Durable), &["wb"]).await;
    let old = world.claim("a", "k").await.unwrap();
    let new = world.claim("b", "k").await.unwrap();
    assert!(new.created && new.claim.fence > old.claim.fence);
    assert_eq!((world.counts("a").await, world.counts("b").await), ((1, 0, 0), (0, 1, 1)));
    assert_eq!(world.s.confirm(&id("k"), old.claim.fence).await, Err(RequestError::FenceMismatch));
    world.s.confirm(&id("k"), new.claim.fence).await.unwrap();
    // An active claim stays.
    assert!(matches!(world.claim("a", "k").await, Err(RequestError::FailedPrecondition(_))));
    let again = world.restarted().await;
    assert_eq!(again.held().await, [("k".into(), "wb".into(), new.claim.fence)]);
}

/// An answer with a ticket of an earlier attempt, and the end of a claim that does not hold the key, change nothing.
#[tokio::test]
async fn k1_stale_tickets_and_fences_change_nothing() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w"]).await;
    let keys = world.s.keys();
    let busy = world.busy("p").await;
    let waiting = world.begin_request_alone(request("p", "k"));
    until("the shard is asked", async || keys.pending_len() == 1).await;
    const STALE: u64 = u64::MAX;
    assert!(keys.withdraw(&id("k"), STALE).is_none());
    assert!(keys.release_ticket(&id("k"), STALE).is_none());
    assert_eq!(keys.pending_len(), 1);
    drop(busy);
    let fence = done(waiting).await.unwrap().claim.fence;
    assert!(keys.end_claim(&id("k"), fence - 1, None, None, 0).is_none());
    assert!(keys.end_claim(&id("k"), fence + 1, None, None, 0).is_none());
    assert_eq!(keys.holder(&id("k")).map(|holder| holder.handle.fence), Some(fence));
    world.s.release(&id("k"), fence).await.unwrap();
    world.is_clean().await;
}
