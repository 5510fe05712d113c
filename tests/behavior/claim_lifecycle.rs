//! C10 and W05: release in two steps, and claims that must be renewed.

use std::task::Poll;

use hotpool::limits;
use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{AckLevel, ClaimRequest, ClaimState, PoolSpec, TrustState, WorkerCommand, WorkerId};
use hotpool::scheduler::{ClaimVerb, RequestCompletion, Scheduler};

use crate::world::{FULL, WAIT_MS, World, done, id, name, request, spec, until};

const GONE: RequestError = RequestError::NotFound(ObjectKind::Claim);

async fn pool() -> World {
    let world = World::on_store().await;
    world.pool("p", PoolSpec { releasing_ms: 10_000, ..spec(1, AckLevel::Durable) }, &["w"]).await;
    world
}

#[tokio::test]
async fn w05_a_claim_being_released_is_held_until_it_is_finished() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    assert_eq!(world.s.begin_release(&id("k"), fence + 1).await, Err(RequestError::FenceMismatch));
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.s.begin_release(&id("k"), fence).await.unwrap();
    assert_eq!((world.state("k").await, world.counts("p").await), (ClaimState::Releasing, (0, 1, 0)));
    assert_eq!(world.shards("p").await[0].releasing, 1);
    // Neither the worker nor the key is free.
    assert_eq!(world.claim("p", "other").await, Err(FULL));
    assert_eq!(world.claim("p", "k").await, Err(RequestError::Releasing));
    assert_eq!(world.s.confirm(&id("k"), fence).await, Err(RequestError::Releasing));
    assert_eq!(world.s.renew(&id("k"), fence, None).await, Err(RequestError::Releasing));
    assert_eq!(world.s.release(&id("k"), fence + 1).await, Err(RequestError::FenceMismatch));
    // A crash changes nothing about it, but its time starts over.
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
async fn w05_a_clean_up_that_times_out_frees_the_key_and_leaves_a_suspect() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.pass(9_999).await;
    assert_eq!(world.counts("p").await, (0, 1, 0));
    world.pass(1).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE));
    assert_eq!((world.counts("p").await, world.view_worker("w").await.trust), ((0, 0, 0), TrustState::Suspect));
    assert_eq!(world.claim("p", "k").await, Err(FULL), "the key is free, the worker is not offered");
    // Another fence finishes nothing; the right one does, even late.
    world.s.release(&id("k"), fence - 1).await.unwrap();
    assert_eq!(world.claim("p", "k").await, Err(FULL));
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!((world.counts("p").await, world.view_worker("w").await.trust), ((1, 0, 0), TrustState::Trusted));
    let next = world.hold("p", "k").await;
    // Later still it finds the next holder.
    assert_eq!(world.s.release(&id("k"), fence).await, Err(RequestError::FenceMismatch));
    assert_eq!(world.s.get_claim(&id("k")).await.unwrap().fence, next);
}

/// A batch releases a held claim, an ended one, and one whose clean-up timed out.
#[tokio::test]
async fn w05_a_late_finish_in_a_batch_counts_too() {
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
async fn w05_a_cleared_suspect_makes_a_late_finish_harmless() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.pass(10_000).await;
    let world = world.restarted().await;
    assert_eq!(world.view_worker("w").await.trust, TrustState::Suspect, "a restart does not clean it");
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.claim("p", "x").await, Err(FULL), "the clean-up is recorded for no claim");
    world.s.command_worker(&name("p"), &WorkerId::new("w").unwrap(), WorkerCommand::Clear).await.unwrap();
    let next = world.hold("p", "next").await;
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.s.get_claim(&id("next")).await.unwrap().fence, next);
    // The same happens with a heartbeat.
    world.s.begin_release(&id("next"), next).await.unwrap();
    world.pass(10_000).await;
    world.heartbeat("w", None).await;
    assert_eq!(world.view_worker("w").await.trust, TrustState::Suspect, "it says nothing about what runs");
    world.heartbeat("w", Some(&[])).await;
    assert_eq!(world.counts("p").await, (1, 0, 0));
    world.s.release(&id("next"), next).await.unwrap();
    assert_eq!(world.counts("p").await, (1, 0, 0), "not twice");
}

#[tokio::test]
async fn w05_a_reservation_can_be_released_in_two_steps_and_an_ended_claim_in_none() {
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
async fn c10_an_active_claim_with_a_ttl_needs_renewals() {
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
    // From now on for longer; a restart keeps that, and its time starts over.
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
async fn c10_the_ttl_of_a_claim_that_is_active_at_once_starts_with_the_reply() {
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
async fn c10_a_renewal_can_add_a_ttl_and_one_without_is_harmless() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    assert_eq!(world.s.renew(&id("k"), fence, None).await.unwrap().expires_at_ms, None);
    world.pass(1_000_000).await;
    world.s.renew(&id("k"), fence, Some(100)).await.unwrap();
    world.pass(100).await;
    assert_eq!(world.s.get_claim(&id("k")).await, Err(GONE));
}

#[tokio::test]
async fn c10_a_ttl_out_of_bounds_is_rejected_by_name() {
    let world = pool().await;
    const YEAR_MS: u64 = 365 * 86_400_000;
    let named = |answer: Result<(), RequestError>| match answer {
        Err(RequestError::Invalid { field, message }) => {
            assert_eq!(field, "ttl_ms");
            assert!(message.contains("1 to 2592000000"), "{message}");
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

/// Result of a release of `k`, by each of the ways in.
async fn release_by(way: usize, s: Scheduler, fence: u64) -> bool {
    let held = (id("k"), Some(fence));
    match way {
        0 => s.release_held(&held.0, held.1).await.unwrap(),
        1 => s.release_held_batch(vec![held]).await.remove(0).unwrap(),
        _ => {
            let mut stream = s.request_stream(WAIT_MS);
            stream.add_held_operation(1, held.0, fence, ClaimVerb::Release);
            stream.send();
            let mut completed = Vec::new();
            std::future::poll_fn(|context| {
                stream.poll_completions(context, &mut completed);
                if completed.is_empty() { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            match completed.pop() {
                Some((1, RequestCompletion::Released(released))) => released.unwrap(),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Number of releases that report that they ended the claim, of one by each way in. All are sent before the first is
/// decided.
async fn releases_at_once(world: &World, fence: u64) -> usize {
    let busy = world.busy("p").await;
    let releases: Vec<_> = (0..3).map(|way| world.begin_alone(move |s| release_by(way, s, fence))).collect();
    busy.until_queued(3).await;
    let mut ended = 0;
    for release in releases {
        ended += usize::from(done(release).await);
    }
    ended
}

#[tokio::test]
async fn c05_one_of_the_releases_at_once_reports_that_it_ended_the_claim() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    assert_eq!(releases_at_once(&world, fence).await, 1);
    // So it is for the second part of a release, in time and late.
    let fence = world.hold("p", "k").await;
    assert_eq!(world.s.begin_release_held(&id("k"), Some(fence)).await, Ok(true));
    assert_eq!(releases_at_once(&world, fence).await, 1);
    let fence = world.hold("p", "k").await;
    world.s.begin_release(&id("k"), fence).await.unwrap();
    world.pass(10_000).await;
    assert_eq!(world.view_worker("w").await.trust, TrustState::Suspect);
    let ways = [release_by(0, world.s.clone(), fence).await, release_by(1, world.s.clone(), fence).await];
    assert_eq!((ways, release_by(2, world.s.clone(), fence).await), ([true, false], false));
    assert_eq!(world.view_worker("w").await.trust, TrustState::Trusted);
}

#[tokio::test]
async fn c05_a_release_that_begins_behind_one_that_ended_the_claim_reports_it() {
    let world = pool().await;
    let fence = world.hold("p", "k").await;
    let busy = world.busy("p").await;
    let release = world.begin_alone(move |s| async move { s.release_held(&id("k"), None).await });
    until("the release is first", async || busy.depth() == 1).await;
    let begin = world.begin_alone(move |s| async move { s.begin_release_held(&id("k"), Some(fence)).await });
    busy.until_queued(2).await;
    assert_eq!((done(release).await, done(begin).await), (Ok(true), Ok(false)));
    assert_eq!(world.counts("p").await, (1, 0, 0));
}
