//! Request streams: each request completes as soon as it is decided, and a caller that leaves, or stops waiting for a
//! request, leaves nothing behind.

use std::future::poll_fn;
use std::task::Poll;

use hotpool::limits::MAILBOX_SLOTS;
use hotpool::model::request_error::{ObjectKind, Precondition, RequestError};
use hotpool::model::{AckLevel, ClaimRequest, PoolSpec};
use hotpool::scheduler::{ClaimVerb, RequestCompletion, RequestStream};

use crate::world::{FULL, STORE, WAIT_MS, World, done, id, request, spec, until};

const LIMIT_MS: u64 = 1_000;

/// Completions so far, as short texts.
async fn completed(stream: &mut RequestStream) -> Vec<(u64, String)> {
    let mut completed = Vec::new();
    poll_fn(|context| {
        stream.poll_completions(context, &mut completed);
        Poll::Ready(())
    })
    .await;
    completed.into_iter().map(|(number, completion)| (number, describe(&completion))).collect()
}

fn describe(completion: &RequestCompletion) -> String {
    let refused = |refusal: &RequestError| refusal.to_string();
    match completion {
        RequestCompletion::Claimed(taken) => {
            taken.as_ref().map_or_else(refused, |taken| format!("has {}", taken.claim.id.key()))
        }
        RequestCompletion::Released(released) => released.as_ref().map_or_else(refused, |_| "released".to_owned()),
        RequestCompletion::Confirmed(claim) => {
            claim.as_ref().map_or_else(refused, |claim| format!("{:?}", claim.state))
        }
        RequestCompletion::Renewed(claim) => {
            claim.as_ref().map_or_else(refused, |claim| format!("{:?} on", claim.state))
        }
    }
}

fn completion(number: u64, describe: &str) -> (u64, String) {
    (number, describe.to_owned())
}

async fn on_memory(workers: &[&str]) -> (World, RequestStream) {
    let world = World::on_memory().await;
    world.pool("a", spec(1, AckLevel::Memory), workers).await;
    let stream = world.s.request_stream(LIMIT_MS);
    (world, stream)
}

#[tokio::test]
async fn consecutive_requests_take_effect_in_order() {
    let (world, mut stream) = on_memory(&["w"]).await;
    let fence = world.hold("a", "x").await;
    stream.add_claim(1, request("a", "early"));
    stream.add_held_operation(2, id("x"), fence, ClaimVerb::Release);
    stream.add_held_operation(3, id("x"), fence, ClaimVerb::Release);
    stream.add_claim(4, request("a", "x"));
    stream.add_claim(5, request("a", "late"));
    stream.send();
    assert_eq!(stream.remaining_slots() + 5, hotpool::limits::STREAM_REQUESTS_MAX);
    let full = FULL.to_string();
    let all = [
        completion(1, &full),
        completion(2, "released"),
        completion(3, "released"),
        completion(4, "has x"),
        completion(5, &full),
    ];
    let mut got = completed(&mut stream).await;
    got.sort_unstable();
    assert_eq!(got, all);
    assert!(stream.is_empty() && stream.remaining_slots() == hotpool::limits::STREAM_REQUESTS_MAX);
    // The other operations on a claim, also where no shard can answer them.
    let fence = world.s.get_claim(&id("x")).await.unwrap().fence;
    stream.add_held_operation(1, id("x"), fence, ClaimVerb::Renew(None));
    stream.add_held_operation(2, id("x"), fence, ClaimVerb::Confirm);
    stream.add_held_operation(3, id("x"), fence, ClaimVerb::Renew(Some(5)));
    stream.add_held_operation(4, id("x"), fence, ClaimVerb::Renew(Some(0)));
    stream.add_held_operation(5, id("x"), fence + 1, ClaimVerb::Release);
    stream.add_held_operation(6, id("x"), fence, ClaimVerb::BeginRelease);
    stream.add_held_operation(7, id("nobody"), fence, ClaimVerb::Confirm);
    let mut got = completed(&mut stream).await;
    got.sort_unstable();
    let not_active = Precondition::ClaimNotActive.to_string();
    assert_eq!(got[..3], [completion(1, &not_active), completion(2, "Active"), completion(3, "Active on")]);
    assert!(got[3].1.starts_with("must be 1 to "), "{got:?}");
    let gone = RequestError::NotFound(ObjectKind::Claim).to_string();
    assert_eq!(
        got[4..],
        [completion(5, &RequestError::FenceMismatch.to_string()), completion(6, "released"), completion(7, &gone)]
    );
}

#[tokio::test]
async fn a_request_that_times_out_is_abandoned_and_its_claim_rolled_back() {
    let (world, mut stream) = on_memory(&["w"]).await;
    let busy = world.busy("a").await;
    stream.add_claim(1, request("a", "k"));
    stream.send();
    let mut late = Vec::new();
    assert_eq!((stream.expire(&mut late), late.len()), (Some(LIMIT_MS), 0));
    world.clock.advance(std::time::Duration::from_millis(200));
    world.clock.tick();
    stream.add_claim(2, request("a", "l"));
    stream.send();
    for _ in 0..4 {
        world.clock.advance(std::time::Duration::from_millis(200));
        world.clock.tick();
    }
    assert_eq!(stream.expire(&mut late), Some(200), "the second has its own time");
    let words: Vec<_> = late.iter().map(|(number, completion)| (*number, describe(completion))).collect();
    assert_eq!(words, [completion(1, &RequestError::DeadlineExceeded.to_string())]);
    assert!(!stream.contains(1) && stream.contains(2), "its number may be used again");
    assert_eq!(
        stream.remaining_slots() + 2,
        hotpool::limits::STREAM_REQUESTS_MAX,
        "its entry stays until the shard replies"
    );
    busy.until_queued(2).await;
    // The only worker went to the first claim, whose reply is not read.
    until("the second is answered", async || !completed(&mut stream).await.is_empty()).await;
    until("the first is rolled back", async || world.counts("a").await == (1, 0, 0)).await;
    assert_eq!(stream.remaining_slots(), hotpool::limits::STREAM_REQUESTS_MAX);
    world.is_clean().await;
}

#[tokio::test]
async fn claims_of_a_caller_that_leaves_are_rolled_back_wherever_they_are() {
    let world = World::on_store().await;
    world.pool("a", spec(1, AckLevel::Memory), &["w1"]).await;
    world.pool("b", spec(1, AckLevel::Durable), &["w2", "w3"]).await;
    world.pool("c", spec(1, AckLevel::Memory), &[]).await;
    world.stored("a").await;
    let disclosed = world.s.claim(request("b", "disclosed")).await.unwrap();
    world.gate().hold_all();
    let mut stream = world.s.request_stream(LIMIT_MS);
    // Decided and unread; decided and held back by the store; queued for capacity; found, but another caller's.
    stream.add_claim(1, request("a", "unread"));
    stream.add_claim(2, request("b", "unstored"));
    let mut waits = request("c", "waits");
    waits.wait_ms = 60_000;
    stream.add_claim(3, waits);
    stream.add_claim(4, request("b", "disclosed"));
    stream.send();
    world.quiet().await;
    assert_eq!(world.s.claim_status(&id("waits")).await.map(|_| ()), Ok(()));
    drop(stream);
    world.gate().open_gate();
    until("all but one are rolled back", async || {
        world.quiet().await;
        world.counts("a").await == (1, 0, 0) && world.counts("b").await == (1, 1, 1)
    })
    .await;
    assert_eq!(
        world.held().await,
        [("disclosed".to_owned(), disclosed.claim.worker.spec.id.to_string(), disclosed.claim.fence)]
    );
    until("no claim waits", async || world.is_vacant("waits")).await;
}

/// A claim without a reservation time would never end otherwise.
#[tokio::test]
async fn unread_claims_are_rolled_back_even_when_the_mailbox_is_full() {
    let (world, mut stream) = on_memory(&["w", "v"]).await;
    let fence = world.hold("a", "x").await;
    stream.add_claim(1, ClaimRequest { reserve_ms: Some(0), ..request("a", "unread") });
    stream.send();
    world.quiet().await;
    assert_eq!(world.counts("a").await.0, 0, "both workers are held");
    let busy = world.busy("a").await;
    let mut others: Vec<_> = (0..2).map(|_| world.s.request_stream(LIMIT_MS)).collect();
    for number in 0..MAILBOX_SLOTS as u64 {
        others[number as usize % 2].add_held_operation(number, id("x"), fence, ClaimVerb::Confirm);
    }
    assert_eq!(busy.depth(), MAILBOX_SLOTS);
    drop(stream);
    drop(busy);
    until("the claim is rolled back", async || world.counts("a").await.0 == 1).await;
    assert!(world.is_vacant("unread"));
}

#[tokio::test]
async fn a_shard_that_panics_leaves_no_request_without_a_reply() {
    let (world, mut stream) = on_memory(&["w"]).await;
    let busy = world.busy("a").await;
    world.s.inject_panic(&hotpool::model::PoolName::new("ns", "a").unwrap(), 0);
    for number in 0..10 {
        stream.add_claim(number, request("a", &format!("k{number}")));
    }
    stream.send();
    drop(busy);
    let mut got = 0;
    until("all are answered", async || {
        got += completed(&mut stream).await.len();
        got == 10
    })
    .await;
    assert!(stream.is_empty());
}

/// Rejections that follow from what the directory says are sent when the store knows it, or become `store`.
#[tokio::test]
async fn a_rejection_waits_for_the_records_that_it_follows_from() {
    for stored in [true, false] {
        let world = World::on_store().await;
        world.pool("p", spec(1, AckLevel::Durable), &["v", "w"]).await;
        let (ended, fence) = (world.hold("p", "ended").await, world.hold("p", "k").await);
        world.stored("p").await;
        world.gate().hold_all();
        let releases = [world.begin_release("ended", ended).await, world.begin_release("k", fence).await];
        let next = world.begin_claim("p", "k").await;
        let mut stream = world.s.request_stream(2 * WAIT_MS);
        stream.add_held_operation(1, id("ended"), ended, ClaimVerb::Release);
        stream.add_held_operation(2, id("ended"), ended, ClaimVerb::Confirm);
        stream.add_held_operation(3, id("k"), fence, ClaimVerb::Release);
        stream.send();
        let read = world.begin(|s| Box::pin(async move { s.get_claim(&id("ended")).await })).await;
        let batch = vec![(id("ended"), ended), (id("k"), fence)];
        let batch = world.begin(|s| Box::pin(async move { s.release_batch(batch).await })).await;
        world.pass(WAIT_MS - 1).await;
        assert_eq!(completed(&mut stream).await, []);
        assert!(!read.is_finished() && !batch.is_finished());
        if stored {
            world.gate().open_gate();
        } else {
            world.pass(1).await;
        }
        let mut got = Vec::new();
        until("the stream is complete", async || {
            got.extend(completed(&mut stream).await);
            got.len() == 3
        })
        .await;
        got.sort_unstable();
        let (gone, mismatch) = (RequestError::NotFound(ObjectKind::Claim), RequestError::FenceMismatch);
        let expected = match stored {
            true => ["released".to_owned(), gone.to_string(), mismatch.to_string()],
            false => [STORE.to_string(), STORE.to_string(), STORE.to_string()],
        };
        assert_eq!(got.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), expected);
        let of = |rejection: &RequestError| if stored { rejection.clone() } else { STORE };
        assert_eq!(done(read).await, Err(of(&gone)));
        assert_eq!(done(batch).await, [if stored { Ok(()) } else { Err(STORE) }, Err(of(&mismatch))]);
        for release in releases {
            assert_eq!(done(release).await.is_ok(), stored);
        }
        assert_eq!(done(next).await.is_ok(), stored);
    }
}

#[tokio::test]
async fn w05_a_late_finish_in_a_stream_counts_too() {
    let world = World::on_memory().await;
    world.pool("a", PoolSpec { releasing_ms: 10_000, ..spec(1, AckLevel::Memory) }, &["w"]).await;
    let fence = world.hold("a", "k").await;
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.pass(10_000).await;
    assert_eq!(world.counts("a").await, (0, 0, 0), "the worker is suspect");
    let mut stream = world.s.request_stream(LIMIT_MS);
    stream.add_held_operation(1, id("k"), fence, ClaimVerb::Release);
    stream.send();
    assert_eq!(completed(&mut stream).await, [completion(1, "released")]);
    assert!(stream.is_empty());
    assert_eq!(world.counts("a").await, (1, 0, 0));
}
