//! C12: claims of a caller that left are rolled back, wherever the reply had got to.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hotpool::model::request_error::RequestError;
use hotpool::model::{AckLevel, ClaimRequest, HeartbeatRequest, WorkerId};
use hotpool::scheduler::{ClaimBatchBuilder, Scheduler};

use crate::world::{STORE, WAIT_MS, World, done, id, ids_on, name, request, spec, until};

/// Builds a claim that is active at once: no deadline would ever end it.
fn forever(key: &str) -> ClaimRequest {
    ClaimRequest { reserve_ms: Some(0), ..request("p", key) }
}

fn waits(request: ClaimRequest) -> ClaimRequest {
    ClaimRequest { wait_ms: 60_000, ..request }
}

async fn nothing_is_held(world: &World, workers: u64) {
    until("all workers are idle", async || world.counts("p").await == (workers, 0, 0)).await;
    world.is_clean().await;
}

/// Sets up two workers on each of two shards.
async fn two_shards(world: &World, ack: AckLevel) {
    let ids: Vec<String> = (0..2).flat_map(|shard| ids_on(shard, 2, 2, "w")).collect();
    world.pool("p", spec(2, ack), &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn c12_a_batch_whose_caller_leaves_while_an_item_waits_is_rolled_back() {
    for (world, ack) in [
        (World::on_memory().await, AckLevel::Memory),
        (World::on_store().await, AckLevel::Memory),
        (World::on_store().await, AckLevel::Durable),
    ] {
        two_shards(&world, ack).await;
        let batch: Vec<ClaimRequest> = (0..5).map(|i| forever(&format!("k{i}"))).collect();
        let batch = batch.into_iter().map(|item| if item.id.key() == "k4" { waits(item) } else { item }).collect();
        let begun = world.begin(move |s: Scheduler| async move { s.claim_batch(batch).await }.boxed()).await;
        until("the last item waits", async || world.s.waiting(&name("p")) == 1).await;
        if world.gate.is_some() {
            world.stored("p").await;
        }
        assert_eq!(world.counts("p").await.1, 4, "the others are granted");
        begun.abort();
        nothing_is_held(&world, 4).await;
    }
}

/// The caller leaves after the reply of one shard and before that of the other.
#[tokio::test]
async fn c12_a_batch_whose_caller_leaves_between_its_replies_is_rolled_back() {
    for late in 0..2 {
        let world = World::on_store().await;
        two_shards(&world, AckLevel::Durable).await;
        world.stored("p").await;
        let late = world.gate().key("ns/p", late);
        world.gate().leave_unanswered(late, usize::MAX);
        let batch = (0..4).map(|i| forever(&format!("k{i}"))).collect();
        let begun = world.begin(move |s: Scheduler| async move { s.claim_batch(batch).await }.boxed()).await;
        until("one shard is stored", async || {
            world.shards("p").await.iter().any(|shard| shard.busy > 0 && shard.applied_seq == shard.seq)
        })
        .await;
        world.quiet().await;
        assert!(!begun.is_finished());
        begun.abort();
        world.quiet().await;
        world.gate().open_gate();
        nothing_is_held(&world, 4).await;
    }
}

/// A claim that was disclosed to others stays: only its creator has left.
#[tokio::test]
async fn c12_a_batch_that_is_rolled_back_leaves_disclosed_claims() {
    let world = World::on_memory().await;
    two_shards(&world, AckLevel::Memory).await;
    let batch =
        (0..5).map(|i| forever(&format!("k{i}"))).map(|item| if item.id.key() == "k4" { waits(item) } else { item });
    let batch = batch.collect();
    let begun = world.begin(move |s: Scheduler| async move { s.claim_batch(batch).await }.boxed()).await;
    until("the last item waits", async || world.s.waiting(&name("p")) == 1).await;
    let disclosed = world.s.claim(forever("k1")).await.unwrap();
    assert!(!disclosed.created);
    begun.abort();
    until("the others are rolled back", async || world.counts("p").await == (3, 1, 0)).await;
    assert_eq!(world.s.get_claim(&id("k1")).await.unwrap().fence, disclosed.claim.fence);
}

/// The reply has arrived, and the caller leaves without reading it.
#[tokio::test]
async fn c12_a_claim_whose_caller_leaves_with_its_reply_unread_is_rolled_back() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    world.stored("p").await;
    world.gate().hold_all();
    let scheduler = world.s.clone();
    let mut claim = async move { scheduler.claim(forever("k")).await }.boxed();
    assert!(futures::poll!(&mut claim).is_pending());
    world.gate().open_gate();
    world.stored("p").await;
    world.quiet().await;
    drop(claim);
    nothing_is_held(&world, 1).await;
}

#[tokio::test]
async fn c12_a_batched_claim_whose_caller_leaves_with_its_reply_unread_is_rolled_back() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["w"]).await;
    let mut gathered = ClaimBatchBuilder::default();
    let claim = world.s.gather(forever("k"), &mut gathered).unwrap();
    world.s.decide_gathered(&mut gathered);
    assert_eq!(world.counts("p").await.1, 1);
    drop(claim);
    nothing_is_held(&world, 1).await;
}

#[tokio::test]
async fn c12_a_gang_whose_caller_leaves_with_its_reply_unread_is_rolled_back() {
    let world = World::on_store().await;
    two_shards(&world, AckLevel::Durable).await;
    world.stored("p").await;
    world.gate().hold_all();
    let scheduler = world.s.clone();
    let gang = ["a", "b", "c"].map(forever).to_vec();
    let mut call = async move { scheduler.claim_gang(gang).await }.boxed();
    assert!(futures::poll!(&mut call).is_pending());
    world.gate().open_gate();
    until("the gang is forgotten", async || world.gate().gangs_forgotten() == 1).await;
    world.stored("p").await;
    world.quiet().await;
    drop(call);
    nothing_is_held(&world, 4).await;
}

/// A reservation that cannot be rolled back, because it was disclosed to others, has a deadline nevertheless.
#[tokio::test]
async fn c16_a_reservation_that_outlives_its_creator_expires() {
    let world = World::on_memory().await;
    world.pool("p", hotpool::model::PoolSpec { reserve_ms: 1_000, ..spec(1, AckLevel::Memory) }, &["v", "w"]).await;
    let batch = ["a", "b", "c"].map(|key| request("p", key));
    let batch = batch.into_iter().map(|item| if item.id.key() == "c" { waits(item) } else { item }).collect();
    let begun = world.begin(move |s: Scheduler| async move { s.claim_batch(batch).await }.boxed()).await;
    until("the last item waits", async || world.s.waiting(&name("p")) == 1).await;
    assert!(!world.s.claim(request("p", "a")).await.unwrap().created);
    begun.abort();
    until("b is rolled back", async || world.counts("p").await == (1, 1, 1)).await;
    world.pass(1_200).await;
    nothing_is_held(&world, 2).await;
    assert_eq!(
        world.s.get_claim(&id("a")).await,
        Err(RequestError::NotFound(hotpool::model::request_error::ObjectKind::Claim))
    );
}

/// An undisclosed claim is not shown to its worker either, so that it can still be rolled back.
#[tokio::test]
async fn c12_heartbeats_do_not_keep_a_batch_from_being_rolled_back() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["v", "w"]).await;
    let batch = vec![forever("a"), forever("b"), waits(forever("c"))];
    let begun = world.begin(move |s: Scheduler| async move { s.claim_batch(batch).await }.boxed()).await;
    until("the last item waits", async || world.s.waiting(&name("p")) == 1).await;
    // Lists do not either.
    assert_eq!(world.held().await.len(), 2);
    world.s.list_workers(&name("p"), None, 10).await.unwrap();
    for worker in ["v", "w"] {
        let heartbeat = HeartbeatRequest { incarnation: 0, seq: None, claims: None };
        let response = world.s.heartbeat(&name("p"), &WorkerId::new(worker).unwrap(), heartbeat).await.unwrap();
        assert!(response.claims.is_empty(), "{worker} is not to run anything yet");
    }
    begun.abort();
    nothing_is_held(&world, 2).await;
}

/// Replies to queries end like the one that grants the claim: the grant was not disclosed, so it is rolled back with the last.
#[tokio::test]
async fn s11_a_claim_that_only_failed_replies_covered_is_rolled_back() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    world.stored("p").await;
    world.gate().hold_all();
    let claim = world.begin_request(forever("k")).await;
    world.gate().stopped().await;
    world.pass(1_000).await;
    let read = world.begin(|s| Box::pin(async move { s.get_claim(&id("k")).await })).await;
    let again = world.begin_claim("p", "k").await;
    world.pass(WAIT_MS - 900).await;
    assert_eq!(done(claim).await, Err(STORE));
    assert_eq!(world.counts("p").await.1, 1, "others wait for it");
    world.pass(1_200).await;
    assert_eq!(done(read).await.unwrap_err(), STORE);
    assert_eq!(done(again).await, Err(STORE));
    world.gate().open_gate();
    until("it is rolled back", async || world.counts("p").await == (1, 0, 0)).await;
    world.is_clean().await;
}

/// Call whose answer is not read unless the call is awaited.
type UnreadCall = BoxFuture<'static, ()>;

fn single(scheduler: Scheduler) -> UnreadCall {
    async move { drop(scheduler.claim(forever("k")).await) }.boxed()
}

fn batch(scheduler: Scheduler) -> UnreadCall {
    async move { drop(scheduler.claim_batch(vec![forever("k")]).await) }.boxed()
}

fn streamed(scheduler: Scheduler) -> UnreadCall {
    let mut stream = scheduler.request_stream(WAIT_MS);
    stream.add_claim(1, forever("k"));
    stream.send();
    // The stream is dropped with the call, and no completion is taken from it.
    async move {
        std::future::pending::<()>().await;
        drop(stream);
    }
    .boxed()
}

/// Begins calls in a row while the shard is paused, so that the first creates the claim and the others find it. When
/// this returns, all answers have arrived and none was read.
async fn deliver_unread(world: &World, calls: &[fn(Scheduler) -> UnreadCall]) -> Vec<UnreadCall> {
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    if world.gate.is_some() {
        world.stored("p").await;
    }
    let busy = world.busy("p").await;
    let mut unread: Vec<_> = calls.iter().map(|call| call(world.s.clone())).collect();
    for call in &mut unread {
        assert!(futures::poll!(call).is_pending());
    }
    drop(busy);
    until("the claim is made", async || world.counts("p").await.1 == 1).await;
    if world.gate.is_some() {
        world.stored("p").await;
    }
    world.quiet().await;
    unread
}

/// The answers of all callers have arrived, and all leave without reading theirs, in any order.
#[tokio::test]
async fn c12_a_claim_whose_answers_nobody_read_is_rolled_back() {
    let ways: [fn(Scheduler) -> UnreadCall; 3] = [single, batch, streamed];
    for first in ways {
        for second in ways {
            for order in [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [2, 0, 0], [2, 1, 0]] {
                for world in [World::on_memory().await, World::on_store().await] {
                    let mut unread = deliver_unread(&world, &[first, second, single]).await;
                    for next in order {
                        drop(unread.remove(next));
                        world.quiet().await;
                    }
                    nothing_is_held(&world, 1).await;
                }
            }
        }
    }
}

/// Single reader among the callers that share the claim.
#[tokio::test]
async fn c12_a_claim_whose_answer_one_caller_read_stays() {
    for reader in 0..3 {
        let world = World::on_memory().await;
        let mut unread = deliver_unread(&world, &[single, single, batch]).await;
        unread.remove(reader).await;
        unread.clear();
        world.quiet().await;
        assert_eq!(world.counts("p").await, (0, 1, 0), "caller {reader} knows of it");
    }
}

/// More callers than wait for one key at a time share the claim.
#[tokio::test]
async fn c12_a_claim_that_many_callers_left_unread_is_rolled_back() {
    let world = World::on_memory().await;
    let mut unread = deliver_unread(&world, &[single as fn(Scheduler) -> UnreadCall; 200]).await;
    unread.extend((0..200).map(|_| streamed(world.s.clone())));
    world.quiet().await;
    unread.clear();
    nothing_is_held(&world, 1).await;
}

/// A caller that only reads the claim leaves with its answer unread, like those that asked for it.
#[tokio::test]
async fn c12_a_claim_that_a_query_showed_to_nobody_is_rolled_back() {
    for query_first in [false, true] {
        let world = World::on_memory().await;
        let claim = deliver_unread(&world, &[single]).await;
        let busy = world.busy("p").await;
        let scheduler = world.s.clone();
        let mut query = async move { scheduler.get_claim(&id("k")).await }.boxed();
        assert!(futures::poll!(&mut query).is_pending());
        drop(busy);
        world.quiet().await;
        let order = if query_first {
            (query.map(drop).boxed(), claim)
        } else {
            (claim.into_iter().next().unwrap(), vec![query.map(drop).boxed()])
        };
        drop(order.0);
        world.quiet().await;
        drop(order.1);
        nothing_is_held(&world, 1).await;
    }
}

/// The shard panics after the answers have arrived, before or after the first of the callers leaves.
#[tokio::test]
async fn c12_s16_a_panic_does_not_keep_a_claim_whose_answers_nobody_read() {
    for panic_after in 0..3 {
        let world = World::on_store().await;
        let mut unread = deliver_unread(&world, &[single, single]).await;
        for left in 0..3 {
            if left == panic_after {
                world.s.inject_panic(&name("p"), 0);
                until("the shard is back", async || {
                    let status = &world.shards("p").await[0];
                    status.restarts == 1 && status.state == "serving"
                })
                .await;
            }
            drop(unread.pop());
            world.quiet().await;
        }
        nothing_is_held(&world, 1).await;
    }
}

/// The creator has left, and a panic drops the answer of the caller for whom the claim was kept.
#[tokio::test]
async fn c12_s16_a_claim_that_was_kept_for_an_answer_which_a_panic_dropped_is_rolled_back() {
    let world = World::on_store().await;
    let mut unread = deliver_unread(&world, &[single]).await;
    world.gate().hold_all();
    // The record of another worker keeps the answer of the second caller waiting.
    let added = world
        .begin(|s| {
            async move { s.register_batch(&name("p"), vec![crate::world::worker("v").into()]).await.is_ok() }.boxed()
        })
        .await;
    world.gate().stopped().await;
    let again = world.begin_request(forever("k")).await;
    drop(unread.pop());
    world.quiet().await;
    assert!(!again.is_finished());
    world.s.inject_panic(&name("p"), 0);
    assert_eq!(done(again).await, Err(RequestError::DeadlineExceeded));
    world.gate().open_gate();
    let _ = done(added).await;
    until("all workers are idle", async || world.counts("p").await == (2, 0, 0)).await;
    world.is_clean().await;
}

/// A request for other pools that waits for the same key would take the place of the claim, if its caller were there.
#[tokio::test]
async fn c12_a_duplicate_whose_caller_has_left_changes_nothing() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["v"]).await;
    world.pool("q", spec(1, AckLevel::Memory), &["w"]).await;
    let other = world.hold("p", "other").await;
    let claim = world.begin(|s: Scheduler| async move { s.claim(waits(request("p", "k"))).await }.boxed()).await;
    until("it waits", async || world.s.waiting(&name("p")) == 1).await;
    let duplicate = world.begin(|s: Scheduler| async move { s.claim(waits(request("q", "k"))).await }.boxed()).await;
    world.quiet().await;
    duplicate.abort();
    assert!(duplicate.await.unwrap_err().is_cancelled());
    world.s.release(&id("other"), other).await.unwrap();
    let granted = done(claim).await.unwrap();
    world.quiet().await;
    let held = world.s.get_claim(&id("k")).await.unwrap();
    assert_eq!((held.fence, held.pool), (granted.claim.fence, name("p")));
    assert_eq!(world.counts("q").await, (1, 0, 0));
}
