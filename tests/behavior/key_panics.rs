//! S20: a panic in the step of one key, injected where the step is about to change the key's entry.

use std::cell::Cell;
use std::rc::Rc;

use hotpool::model::{AckLevel, ClaimRequest};
use hotpool::shard::{ProtocolPoint, inject_into_thread};

use crate::world::{Claimed, LOADING, World, done, id, name, request, spec, until};

/// Panics in the `nth` step of a key that changes an entry from now on.
fn panic_in_step(nth: usize) {
    let left = Rc::new(Cell::new(nth));
    let hook = move |point| {
        if point == ProtocolPoint::KeyStep {
            left.set(left.get().wrapping_sub(1));
            assert!(left.get() != 0, "injected fault");
        }
    };
    inject_into_thread(Some(Rc::new(hook)), None);
}

/// Builds a claim that is active at once.
fn forever(key: &str) -> ClaimRequest {
    ClaimRequest { reserve_ms: Some(0), ..request("p", key) }
}

/// Sets up three workers on one shard.
async fn worlds() -> [World; 2] {
    let worlds = [World::on_memory().await, World::on_store().await];
    for world in &worlds {
        world.pool("p", spec(1, AckLevel::Durable), &["u", "v", "w"]).await;
        if world.gate.is_some() {
            world.stored("p").await;
        }
    }
    worlds
}

fn charged(world: &World) -> u64 {
    world.s.keys().tenants.in_use().get("ns/default").map_or(0, |used| used.claims)
}

/// Answers of claims that are decided in one run, in whose `nth` step the panic is injected.
async fn claim_at_once(world: &World, keys: &[&str], nth: usize) -> Vec<Claimed> {
    let busy = world.busy("p").await;
    let claims: Vec<_> = keys.iter().map(|key| world.begin_request_alone(forever(key))).collect();
    tokio::task::yield_now().await;
    until("the claims are in the mailbox", async || busy.depth() > 0).await;
    panic_in_step(nth);
    drop(busy);
    let mut answers = Vec::new();
    for claim in claims {
        answers.push(done(claim).await);
    }
    inject_into_thread(None, None);
    answers
}

#[tokio::test]
async fn s20_a_panic_in_the_step_of_a_grant_costs_its_key_alone() {
    for world in worlds().await {
        let answers = claim_at_once(&world, &["a", "b", "b", "c"], 2).await;
        assert!(answers[0].is_ok() && answers[3].is_ok(), "{answers:?}");
        assert_eq!((answers[1].clone().err(), answers[2].clone().err()), (Some(LOADING), Some(LOADING)));
        world.pass(1).await;
        until("the key is free", async || world.is_vacant("b")).await;
        until("the worker is idle", async || world.counts("p").await == (1, 2, 0)).await;
        assert_eq!((charged(&world), world.s.keys().pending_len()), (2, 0));
        assert!(world.s.claim(forever("b")).await.unwrap().created);
        assert_eq!((charged(&world), world.counts("p").await), (3, (0, 3, 0)));
        assert_eq!(world.shards("p").await[0].restarts, 0);
    }
}

#[tokio::test]
async fn s20_a_panic_in_the_step_of_an_end_costs_its_key_alone() {
    for world in worlds().await {
        let mut held = Vec::new();
        for key in ["a", "b", "c"] {
            held.push((id(key), world.s.claim(forever(key)).await.unwrap().claim.fence));
        }
        panic_in_step(2);
        assert_eq!(world.s.release_batch(held).await, [Ok(()), Ok(()), Ok(())]);
        inject_into_thread(None, None);
        world.pass(1).await;
        until("the key is free", async || world.is_vacant("b")).await;
        assert_eq!((charged(&world), world.counts("p").await), (0, (3, 0, 0)));
        world.is_clean().await;
        assert!(world.s.claim(forever("b")).await.unwrap().created);
        if world.gate.is_some() {
            world.stored("p").await;
            assert_eq!(world.crashed().await.held().await.len(), 1);
        }
    }
}

#[tokio::test]
async fn s20_a_panic_in_the_step_of_a_repeated_claim_leaves_its_holder() {
    for world in worlds().await {
        let fence = world.s.claim(forever("b")).await.unwrap().claim.fence;
        let answers = claim_at_once(&world, &["a", "b", "c"], 2).await;
        assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
        assert_eq!(answers[1], Err(LOADING));
        world.pass(1).await;
        until("the key is held again", async || world.s.get_claim(&id("b")).await != Err(LOADING)).await;
        assert_eq!(world.s.get_claim(&id("b")).await.unwrap().fence, fence);
        assert_eq!((charged(&world), world.counts("p").await), (3, (0, 3, 0)));
        let again = world.s.claim(forever("b")).await.unwrap();
        assert_eq!((again.created, again.claim.fence), (false, fence));
        world.s.release(&id("b"), fence).await.unwrap();
        assert_eq!((charged(&world), world.counts("p").await), (2, (1, 2, 0)));
    }
}

/// Until its shard has answered, the key is unavailable, and its quota stays charged.
#[tokio::test]
async fn s20_a_key_whose_step_panicked_is_unavailable_until_its_shard_has_answered() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Memory), &["u", "v", "w"]).await;
    let fence = world.s.claim(forever("b")).await.unwrap().claim.fence;
    let busy = world.busy("p").await;
    let again = world.begin_request_alone(forever("b"));
    until("it is in the mailbox", async || busy.depth() == 1).await;
    panic_in_step(1);
    drop(busy);
    assert_eq!(done(again).await, Err(LOADING));
    inject_into_thread(None, None);
    assert_eq!(world.s.get_claim(&id("b")).await, Err(LOADING));
    assert_eq!(world.s.release(&id("b"), fence).await, Err(LOADING));
    assert_eq!(world.s.claim(forever("b")).await, Err(LOADING));
    assert_eq!(charged(&world), 1);
    world.pass(1).await;
    until("the key is held again", async || world.s.release(&id("b"), fence).await == Ok(())).await;
    world.is_clean().await;
    assert_eq!(charged(&world), 0);
}

/// The claim ends while its key is unavailable, and its shard panics before it was asked.
#[tokio::test]
async fn s20_a_claim_that_ends_while_its_key_is_unavailable_frees_it() {
    for panics in [false, true] {
        let world = World::on_store().await;
        world.pool("p", spec(1, AckLevel::Memory), &["u"]).await;
        let lease = ClaimRequest { ttl_ms: Some(1_000), ..forever("b") };
        world.s.claim(lease).await.unwrap();
        world.stored("p").await;
        let busy = world.busy("p").await;
        let again = world.begin_request_alone(forever("b"));
        until("it is in the mailbox", async || busy.depth() == 1).await;
        panic_in_step(1);
        drop(busy);
        assert_eq!(done(again).await, Err(LOADING));
        inject_into_thread(None, None);
        if panics {
            world.s.inject_panic(&name("p"), 0);
            until("it is back", async || world.shards("p").await[0].state == "serving").await;
        }
        world.pass(1_200).await;
        until("the key is free", async || world.is_vacant("b")).await;
        until("the worker is idle", async || world.counts("p").await == (1, 0, 0)).await;
        world.is_clean().await;
        assert_eq!(charged(&world), 0);
    }
}

/// The step that clears a stored record panics while another shard holds the key: nothing of the record is left.
#[tokio::test]
async fn s20_a_record_whose_clearing_panicked_does_not_stay_with_the_next_holder() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Memory), &["u"]).await;
    world.pool("other", spec(1, AckLevel::Memory), &["v"]).await;
    let fence = world.claim("p", "b").await.unwrap().claim.fence;
    world.stored("p").await;
    world.gate().hold_all();
    world.s.release(&id("b"), fence).await.unwrap();
    let next = world.claim("other", "b").await.unwrap().claim.fence;
    panic_in_step(1);
    world.gate().open_gate();
    until("its step panicked", async || world.s.get_claim(&id("b")).await == Err(LOADING)).await;
    inject_into_thread(None, None);
    world.pass(1).await;
    until("the key is held again", async || world.s.release(&id("b"), next).await == Ok(())).await;
    world.is_clean().await;
}
