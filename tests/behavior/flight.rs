//! Many requests of one caller in flight: each is answered as soon as it is decided, and a caller that leaves, or waits no
//! longer for one of them, leaves nothing behind.

use std::future::poll_fn;
use std::task::Poll;

use hotpool::limits::MAILBOX_SLOTS;
use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{AckLevel, ClaimRequest};
use hotpool::scheduler::{ClaimVerb, RequestCompletion, RequestStream};

use crate::world::{FULL, World, id, request, spec, until};

const LIMIT_MS: u64 = 1_000;

/// What has landed by now, in the words of the tests.
async fn landed(flight: &mut RequestStream) -> Vec<(u64, String)> {
    let mut landed = Vec::new();
    poll_fn(|context| {
        flight.poll_completions(context, &mut landed);
        Poll::Ready(())
    })
    .await;
    landed.into_iter().map(|(number, said)| (number, word(&said))).collect()
}

fn word(said: &RequestCompletion) -> String {
    let refused = |refusal: &RequestError| refusal.to_string();
    match said {
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

fn said(number: u64, word: &str) -> (u64, String) {
    (number, word.to_owned())
}

async fn on_memory(workers: &[&str]) -> (World, RequestStream) {
    let world = World::on_memory().await;
    world.pool("a", spec(1, AckLevel::Memory), workers).await;
    let flight = world.s.request_stream(LIMIT_MS);
    (world, flight)
}

#[tokio::test]
async fn what_follows_each_other_means_what_it_says() {
    let (world, mut flight) = on_memory(&["w"]).await;
    let fence = world.hold("a", "x").await;
    flight.add_claim(1, request("a", "early"));
    flight.add_held_operation(2, id("x"), fence, ClaimVerb::Release);
    flight.add_held_operation(3, id("x"), fence, ClaimVerb::Release);
    flight.add_claim(4, request("a", "x"));
    flight.add_claim(5, request("a", "late"));
    flight.send();
    assert_eq!(flight.free_capacity() + 5, hotpool::limits::STREAM_REQUESTS_MAX);
    let full = FULL.to_string();
    let all = [said(1, &full), said(2, "released"), said(3, "released"), said(4, "has x"), said(5, &full)];
    let mut got = landed(&mut flight).await;
    got.sort_unstable();
    assert_eq!(got, all);
    assert!(flight.is_empty() && flight.free_capacity() == hotpool::limits::STREAM_REQUESTS_MAX);
    // The rest of a claim's life, also where no shard can say it.
    let fence = world.s.get_claim(&id("x")).await.unwrap().fence;
    flight.add_held_operation(1, id("x"), fence, ClaimVerb::Renew(None));
    flight.add_held_operation(2, id("x"), fence, ClaimVerb::Confirm);
    flight.add_held_operation(3, id("x"), fence, ClaimVerb::Renew(Some(5)));
    flight.add_held_operation(4, id("x"), fence, ClaimVerb::Renew(Some(0)));
    flight.add_held_operation(5, id("x"), fence + 1, ClaimVerb::Release);
    flight.add_held_operation(6, id("x"), fence, ClaimVerb::BeginRelease);
    flight.add_held_operation(7, id("nobody"), fence, ClaimVerb::Confirm);
    let mut got = landed(&mut flight).await;
    got.sort_unstable();
    let not_active = Precondition::ClaimNotActive.to_string();
    assert_eq!(got[..3], [said(1, &not_active), said(2, "Active"), said(3, "Active on")]);
    assert!(got[3].1.starts_with("must be 1..="), "{got:?}");
    let gone = RequestError::NotFound(ObjectKind::Claim).to_string();
    assert_eq!(got[4..], [said(5, &RequestError::FenceMismatch.to_string()), said(6, "released"), said(7, &gone)]);
}

#[tokio::test]
async fn past_its_time_a_request_is_given_up_and_its_claim_given_back() {
    let (world, mut flight) = on_memory(&["w"]).await;
    let busy = world.busy("a").await;
    flight.add_claim(1, request("a", "k"));
    flight.send();
    let mut late = Vec::new();
    assert_eq!((flight.expire(&mut late), late.len()), (Some(LIMIT_MS), 0));
    world.clock.advance(std::time::Duration::from_millis(200));
    world.clock.tick();
    flight.add_claim(2, request("a", "l"));
    flight.send();
    for _ in 0..4 {
        world.clock.advance(std::time::Duration::from_millis(200));
        world.clock.tick();
    }
    assert_eq!(flight.expire(&mut late), Some(200), "the second has its own time");
    let words: Vec<_> = late.iter().map(|(number, said)| (*number, word(said))).collect();
    assert_eq!(words, [said(1, &RequestError::DeadlineExceeded.to_string())]);
    assert!(!flight.contains(1) && flight.contains(2), "its number may be used again");
    assert_eq!(
        flight.free_capacity() + 2,
        hotpool::limits::STREAM_REQUESTS_MAX,
        "its place is taken until the shard answers"
    );
    busy.until_asked(2).await;
    // The only worker went to the first, whose answer nobody reads.
    until("the second is answered", async || !landed(&mut flight).await.is_empty()).await;
    until("the first is given back", async || world.counts("a").await == (1, 0, 0)).await;
    assert_eq!(flight.free_capacity(), hotpool::limits::STREAM_REQUESTS_MAX);
    world.is_clean().await;
}

#[tokio::test]
async fn a_caller_that_leaves_has_its_claims_given_back_wherever_they_are() {
    let world = World::on_store().await;
    world.pool("a", spec(1, AckLevel::Memory), &["w1"]).await;
    world.pool("b", spec(1, AckLevel::Durable), &["w2", "w3"]).await;
    world.pool("c", spec(1, AckLevel::Memory), &[]).await;
    world.stored("a").await;
    let told = world.s.claim(request("b", "told")).await.unwrap();
    world.gate().hold_all();
    let mut flight = world.s.request_stream(LIMIT_MS);
    // Decided and not read; decided and held back by the store; waiting for room; found, which is another's.
    flight.add_claim(1, request("a", "unread"));
    flight.add_claim(2, request("b", "unstored"));
    let mut waits = request("c", "waits");
    waits.wait_ms = 60_000;
    flight.add_claim(3, waits);
    flight.add_claim(4, request("b", "told"));
    flight.send();
    world.quiet().await;
    assert_eq!(world.s.claim_status(&id("waits")).await.map(|_| ()), Ok(()));
    drop(flight);
    world.gate().open_gate();
    until("all but one are given back", async || {
        world.quiet().await;
        world.counts("a").await == (1, 0, 0) && world.counts("b").await == (1, 1, 1)
    })
    .await;
    assert_eq!(world.held().await, [("told".to_owned(), told.claim.worker.spec.id.to_string(), told.claim.fence)]);
    until("nobody waits", async || world.is_vacant("waits")).await;
}

/// Of a claim without a reservation nothing else would ever end.
#[tokio::test]
async fn what_nobody_read_is_given_back_though_the_ring_is_full() {
    let (world, mut flight) = on_memory(&["w", "v"]).await;
    let fence = world.hold("a", "x").await;
    flight.add_claim(1, ClaimRequest { reserve_ms: Some(0), ..request("a", "unread") });
    flight.send();
    world.quiet().await;
    assert_eq!(world.counts("a").await.0, 0, "both workers are held");
    let busy = world.busy("a").await;
    let mut others: Vec<_> = (0..2).map(|_| world.s.request_stream(LIMIT_MS)).collect();
    for number in 0..MAILBOX_SLOTS as u64 {
        others[number as usize % 2].add_held_operation(number, id("x"), fence, ClaimVerb::Confirm);
    }
    assert_eq!(busy.depth(), MAILBOX_SLOTS);
    drop(flight);
    drop(busy);
    until("it is given back", async || world.counts("a").await.0 == 1).await;
    assert!(world.is_vacant("unread"));
}

#[tokio::test]
async fn a_shard_that_panics_leaves_no_request_without_an_answer() {
    let (world, mut flight) = on_memory(&["w"]).await;
    let busy = world.busy("a").await;
    world.s.inject_panic(&hotpool::model::PoolName::new("ns", "a").unwrap(), 0);
    for number in 0..10 {
        flight.add_claim(number, request("a", &format!("k{number}")));
    }
    flight.send();
    drop(busy);
    let mut got = 0;
    until("all are answered", async || {
        got += landed(&mut flight).await.len();
        got == 10
    })
    .await;
    assert!(flight.is_empty());
}
