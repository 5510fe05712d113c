//! C10 and W05 for claims: two-step release, and claims that have to be renewed.

use hotpool::limits;
use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{AckLevel, ClaimRequest, ClaimState, PoolSpec, TrustState, WorkerCommand, WorkerId};

use crate::world::{FULL, World, id, name, request, spec};

const GONE: RequestError = RequestError::NotFound(ObjectKind::Claim);

async fn pool() -> World {
    let world = World::on_store().await;
    world.pool("p", PoolSpec { releasing_ms: 10_000, ..spec(1, AckLevel::Durable) }, &["w"]).await;
    world
}

#[tokio::test]
async fn w05_what_is_being_released_is_held_until_it_is_finished() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    assert_eq!(world.s.begin_release(&id("k"), fence + 1).await, Err(RequestError::FenceMismatch));
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.s.begin_release(&id("k"), fence).await.unwrap();
    assert_eq!((world.state("k").await, world.counts("p").await), (ClaimState::Releasing, (0, 1, 0)));
    assert_eq!(world.shards("p").await[0].releasing, 1);
    // Nobody gets the worker, and nobody the key.
    assert_eq!(world.claim("p", "other").await, Err(FULL));
    assert_eq!(world.claim("p", "k").await, Err(RequestError::Releasing));
    assert_eq!(world.s.confirm(&id("k"), fence).await, Err(RequestError::Releasing));
    assert_eq!(world.s.renew(&id("k"), fence, None).await, Err(RequestError::Releasing));
    assert_eq!(world.s.release(&id("k"), fence + 1).await, Err(RequestError::FenceMismatch));
    // A crash changes nothing of that, but gives it its time anew.
    world.pass(9_000).await;
    let world = world.crashed().await;
    world.pass(9_999).await;
    assert_eq!(world.claim("p", "k").await, Err(RequestError::Releasing));
    world.s.release(&id("k"), fence).await.unwrap();
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.counts("p").await, (1, 0, 0));
    assert!(world.hold("p", "k").await > fence);
}

#[tokio::test]
async fn w05_a_clean_up_that_never_ends_frees_the_key_and_leaves_a_suspect() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.pass(9_999).await;
    assert_eq!(world.counts("p").await, (0, 1, 0));
    world.pass(1).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE));
    assert_eq!((world.counts("p").await, world.look("w").await.trust), ((0, 0, 0), TrustState::Suspect));
    assert_eq!(world.claim("p", "k").await, Err(FULL), "the key is free, the worker is not offered");
    // Another fence finishes nothing; the right one does, though it is late.
    world.s.release(&id("k"), fence - 1).await.unwrap();
    assert_eq!(world.claim("p", "k").await, Err(FULL));
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!((world.counts("p").await, world.look("w").await.trust), ((1, 0, 0), TrustState::Trusted));
    let next = world.hold("p", "k").await;
    // Later still it finds the next holder.
    assert_eq!(world.s.release(&id("k"), fence).await, Err(RequestError::FenceMismatch));
    assert_eq!(world.s.get_claim(&id("k")).await.unwrap().fence, next);
}

/// A batch of releases is so many releases: of what is held, of what is gone, and of a clean-up that was given up.
#[tokio::test]
async fn w05_a_late_finish_in_a_batch_is_one_too() {
    let world = pool().await;
    world.add("p", &["v"]).await;
    let (late, held) = (world.hold("p", "late").await, world.hold("p", "held").await);
    world.s.begin_release(&id("late"), late).await.unwrap();
    world.pass(10_000).await;
    assert_eq!(world.counts("p").await, (0, 1, 0), "one is suspect");
    let batch = vec![(id("late"), late), (id("held"), held), (id("never"), 1), (id("late"), late - 1)];
    assert_eq!(world.s.release_batch(batch).await, [Ok(()), Ok(()), Ok(()), Ok(())]);
    assert_eq!(world.counts("p").await, (2, 0, 0));
}

#[tokio::test]
async fn w05_who_speaks_for_a_suspect_makes_a_late_finish_harmless() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.pass(10_000).await;
    let world = world.restarted().await;
    assert_eq!(world.look("w").await.trust, TrustState::Suspect, "a restart does not clean it");
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.claim("p", "x").await, Err(FULL), "nobody remembers whose clean-up that was");
    world.s.command_worker(&name("p"), &WorkerId::new("w").unwrap(), WorkerCommand::Clear).await.unwrap();
    let next = world.hold("p", "next").await;
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.s.get_claim(&id("next")).await.unwrap().fence, next);
    // The same by a heartbeat.
    world.s.begin_release(&id("next"), next).await.unwrap();
    world.pass(10_000).await;
    world.beat("w", None).await;
    assert_eq!(world.look("w").await.trust, TrustState::Suspect, "it says nothing about what runs");
    world.beat("w", Some(&[])).await;
    assert_eq!(world.counts("p").await, (1, 0, 0));
    world.s.release(&id("next"), next).await.unwrap();
    assert_eq!(world.counts("p").await, (1, 0, 0), "not twice");
}

#[tokio::test]
async fn w05_a_reservation_can_be_released_in_two_steps_too_and_what_is_gone_in_none() {
    let world = pool().await;
    let fence = world.claim("p", "k").await.unwrap().claim.fence;
    world.s.begin_release(&id("k"), fence).await.unwrap();
    assert_eq!(world.counts("p").await, (0, 1, 0), "it is reserved no more");
    world.s.release(&id("k"), fence).await.unwrap();
    world.s.begin_release(&id("k"), fence).await.unwrap();
    assert_eq!(world.counts("p").await, (1, 0, 0));
    world.is_clean().await;
}

fn with_ttl(key: &str, reserve_ms: u64, ttl_ms: u64) -> ClaimRequest {
    ClaimRequest { reserve_ms: Some(reserve_ms), ttl_ms: Some(ttl_ms), ..request("p", key) }
}

#[tokio::test]
async fn c10_an_active_claim_with_a_time_needs_renewals() {
    let world = pool().await;
    let taken = world.s.claim(with_ttl("k", 5_000, 2_000)).await.unwrap();
    let (k, fence) = (id("k"), taken.claim.fence);
    assert!(
        matches!(world.s.renew(&k, fence, None).await, Err(RequestError::FailedPrecondition(_))),
        "it is only reserved"
    );
    world.pass(4_999).await;
    let confirmed = world.s.confirm(&k, fence).await.unwrap();
    assert!(confirmed.expires_at_ms.is_some());
    world.pass(1_999).await;
    let renewed = world.s.renew(&k, fence, None).await.unwrap();
    assert_eq!(renewed.state, ClaimState::Active);
    world.pass(1_999).await;
    // For longer from now on, and that is kept over a restart, which gives it all of it anew.
    world.s.renew(&k, fence, Some(8_000)).await.unwrap();
    world.pass(7_000).await;
    let world = world.crashed().await;
    world.pass(7_999).await;
    assert_eq!(world.s.renew(&k, fence - 1, None).await, Err(RequestError::FenceMismatch));
    assert_eq!(world.state("k").await, ClaimState::Active);
    world.pass(1).await;
    assert_eq!(world.s.get_claim(&k).await, Err(GONE));
    assert_eq!(world.s.renew(&k, fence, None).await, Err(GONE));
    assert_eq!(world.counts("p").await, (1, 0, 0));
}

#[tokio::test]
async fn c10_a_claim_that_is_active_at_once_has_its_time_from_when_its_answer_leaves() {
    let world = pool().await;
    world.stored("p").await;
    world.gate().hold_all();
    let begun = world.begin_request(with_ttl("k", 0, 1_000)).await;
    world.gate().stopped().await;
    world.pass(2_000).await;
    assert_eq!(world.counts("p").await, (0, 1, 0));
    world.gate().open_gate();
    let fence = crate::world::done(begun).await.unwrap().claim.fence;
    world.pass(999).await;
    assert_eq!(world.s.get_claim(&id("k")).await.unwrap().fence, fence);
    world.pass(1).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE));
    world.is_clean().await;
}

#[tokio::test]
async fn c10_a_claim_without_a_time_takes_one_and_renewing_without_one_is_harmless() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    assert_eq!(world.s.renew(&id("k"), fence, None).await.unwrap().expires_at_ms, None);
    world.pass(1_000_000).await;
    world.s.renew(&id("k"), fence, Some(100)).await.unwrap();
    world.pass(100).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE));
}

#[tokio::test]
async fn c10_a_time_out_of_bounds_is_refused_by_name() {
    let world = pool().await;
    const YEAR_MS: u64 = 365 * 86_400_000;
    let named = |answer: Result<(), RequestError>| match answer {
        Err(RequestError::Invalid { field, message }) => {
            assert_eq!(field, "ttl_ms");
            assert!(message.contains("1..=2592000000"), "{message}");
        }
        other => panic!("{other:?}"),
    };
    for ttl_ms in [0, YEAR_MS, limits::TTL_MS_MAX + 1, u64::MAX] {
        named(world.s.claim(with_ttl("k", 0, ttl_ms)).await.map(drop));
        let fence = world.hold("p", "held").await;
        named(world.s.renew(&id("held"), fence, Some(ttl_ms)).await.map(drop));
        world.s.release(&id("held"), fence).await.unwrap();
    }
    world.s.claim(with_ttl("k", 0, limits::TTL_MS_MAX)).await.unwrap();
}
