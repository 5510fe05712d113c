//! C01 to C10: claim and release.

use std::collections::HashSet;

use hotpool::model::request_error::{ObjectKind, RequestError};
use hotpool::model::{AckLevel, ClaimId, ClaimRequest, ClaimState, PoolSpec};

use crate::world::{Claimed, FULL, World, done, id, name, request, spec, until};

const GONE: RequestError = RequestError::NotFound(ObjectKind::Claim);

/// Submits all requests at once; results in order.
async fn race(world: &World, requests: Vec<ClaimRequest>) -> Vec<Claimed> {
    let begun: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let s = world.s.clone();
            tokio::spawn(async move { s.claim(request).await })
        })
        .collect();
    futures::future::join_all(begun.into_iter().map(done)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c01_eight_race_for_one_worker() {
    for round in 0..20 {
        let world = World::on_memory().await;
        world.pool("p", spec(4, AckLevel::Durable), &["w"]).await;
        let before = world.rows("p").await[0].2;
        let answers = race(&world, (0..8).map(|i| request("p", &format!("k{round}-{i}"))).collect()).await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        assert_eq!(answers.iter().filter(|answer| **answer == Err(FULL)).count(), 7);
        assert_eq!(world.rows("p").await[0].2, before + 1, "its version moved once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c02_n_workers_and_m_claimants_make_exactly_min_winners() {
    for (workers, claimants) in [(1, 16), (2, 16), (16, 16), (40, 16), (64, 200), (0, 5)] {
        for world in [World::on_memory().await, World::on_store().await] {
            let ids: Vec<_> = (0..workers).map(|i| format!("w{i}")).collect();
            world.pool("p", spec(8, AckLevel::Durable), &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
            let answers = race(&world, (0..claimants).map(|i| request("p", &format!("k{i}"))).collect()).await;
            let winners: Vec<_> = answers.iter().flatten().collect();
            assert_eq!(winners.len(), workers.min(claimants));
            assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(FULL))));
            let distinct: HashSet<_> = winners.iter().map(|taken| &taken.claim.worker.spec.id).collect();
            assert_eq!(distinct.len(), winners.len(), "no worker twice");
            let fences: HashSet<_> = winners.iter().map(|taken| taken.claim.fence).collect();
            assert_eq!(fences.len(), winners.len());
            assert_eq!(world.s.keys().len(), winners.len(), "losers leave nothing");
            assert_eq!(world.counts("p").await.1 as usize, winners.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c02_a_batch_gets_exactly_the_free_workers() {
    let world = World::on_memory().await;
    let ids: Vec<_> = (0..40).map(|i| format!("w{i}")).collect();
    world.pool("p", spec(16, AckLevel::Durable), &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let requests = (0..100).map(|i| request("p", &format!("k{i}"))).collect();
    let answers = world.s.claim_batch(requests).await;
    assert_eq!(answers.iter().flatten().count(), 40);
    assert_eq!(answers.iter().filter(|answer| **answer == Err(FULL)).count(), 60);
    let held = answers.into_iter().flatten().map(|taken| (taken.claim.id, taken.claim.fence)).collect();
    assert!(world.s.release_batch(held).await.into_iter().all(|outcome| outcome.is_ok()));
    world.is_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c03_one_key_claimed_by_many_at_once_has_one_holder() {
    for world in [World::on_memory().await, World::on_store().await] {
        world.pool("p", spec(2, AckLevel::Durable), &["v", "w"]).await;
        for round in 0..20 {
            let key = format!("k{round}");
            let answers = race(&world, (0..16).map(|_| request("p", &key)).collect()).await;
            let taken: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
            assert_eq!(taken.iter().filter(|taken| taken.created).count(), 1);
            assert!(taken.iter().all(|other| other.claim.fence == taken[0].claim.fence));
            assert!(taken.iter().all(|other| other.claim.worker == taken[0].claim.worker));
            assert_eq!(world.counts("p").await.1, 1);
            world.s.release(&id(&key), taken[0].claim.fence).await.unwrap();
            assert_eq!(world.counts("p").await.1, 0);
        }
        world.is_clean().await;
    }
}

#[tokio::test]
async fn c05_a_lost_reply_and_a_late_release_are_harmless() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["v", "w"]).await;
    let first = world.claim("p", "k").await.unwrap();
    let again = world.claim("p", "k").await.unwrap();
    assert_eq!((again.created, again.claim.fence), (false, first.claim.fence));
    let fence = first.claim.fence;
    assert_eq!(world.s.release(&id("k"), fence + 1).await, Err(RequestError::FenceMismatch));
    assert_eq!(world.s.confirm(&id("k"), fence - 1).await, Err(RequestError::FenceMismatch));
    assert_eq!(world.counts("p").await, (1, 1, 1), "nothing changed");
    world.s.release(&id("k"), fence).await.unwrap();
    let rows = world.rows("p").await;
    world.s.release(&id("k"), fence).await.unwrap();
    assert_eq!(world.rows("p").await, rows, "no version moved");
    // The late clean-up of the earlier holder.
    let next = world.hold("p", "k").await;
    assert!(next > fence);
    assert_eq!(world.s.release(&id("k"), fence).await, Err(RequestError::FenceMismatch));
    assert_eq!(world.s.get_claim(&id("k")).await.unwrap().fence, next);
    let mixed = vec![(id("k"), fence), (id("other"), 1), (id("k"), next), (id("k"), next)];
    let outcomes = world.s.release_batch(mixed).await;
    assert_eq!(outcomes, [Err(RequestError::FenceMismatch), Ok(()), Ok(()), Ok(())]);
    world.is_clean().await;
}

/// Both requests were sent while the claim was held, and the confirm is second in the mailbox.
#[tokio::test]
async fn c05_a_confirm_behind_a_release_finds_nothing() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let fence = world.claim("p", "k").await.unwrap().claim.fence;
    let (release, confirm) = (world.s.clone(), world.s.clone());
    let release = tokio::spawn(async move { release.release(&id("k"), fence).await });
    let confirm = tokio::spawn(async move { confirm.confirm(&id("k"), fence).await });
    assert_eq!(done(release).await, Ok(()));
    assert_eq!(done(confirm).await, Err(GONE));
    world.is_clean().await;
}

#[tokio::test]
async fn c06_a_rejected_claim_leaves_nothing_behind() {
    let world = World::on_store().await;
    world.pool("p", PoolSpec { reserve_ms: 1_000, ..spec(4, AckLevel::Durable) }, &["w"]).await;
    world.pool("empty", spec(4, AckLevel::Durable), &[]).await;
    let fence = world.hold("p", "held").await;
    world.stored("p").await;
    let rows = world.rows("p").await;
    let invalid = |answer: Claimed, field: &str| match answer {
        Err(RequestError::Invalid { field: named, .. }) => assert_eq!(named, field),
        other => panic!("{other:?}"),
    };
    assert_eq!(world.claim("p", "k").await, Err(FULL));
    assert_eq!(world.claim("empty", "k").await, Err(FULL));
    assert_eq!(world.claim("none", "k").await, Err(RequestError::NotFound(ObjectKind::Pool)));
    let other_namespace = ClaimRequest { id: ClaimId::new("other", "default", "k").unwrap(), ..request("p", "k") };
    invalid(world.s.claim(other_namespace).await, "pool");
    invalid(world.s.claim(ClaimRequest { reserve_ms: Some(1_001), ..request("p", "k") }).await, "reserve_ms");
    invalid(world.s.claim(ClaimRequest { ack: Some(AckLevel::Memory), ..request("p", "k") }).await, "ack");
    assert_eq!(
        world.claim("empty", "held").await.unwrap_err().to_string(),
        "the key holds an active claim in another pool, or on a worker that the request does not allow; release it first"
    );
    let batch = world.s.claim_batch(vec![request("p", "k"), request("none", "l"), request("empty", "m")]).await;
    assert_eq!(batch, [Err(FULL), Err(RequestError::NotFound(ObjectKind::Pool)), Err(FULL)]);
    assert_eq!((world.s.keys().len(), world.s.keys().pending_len()), (1, 0));
    assert_eq!(world.rows("p").await, rows);
    let again = world.restarted().await;
    assert_eq!(again.held().await, [("held".into(), "w".into(), fence)]);
    assert_eq!(again.s.keys().len(), 1);
}

#[tokio::test]
async fn c06_a_stronger_acknowledgement_and_a_shorter_reservation_are_granted() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Memory), &["v", "w"]).await;
    world.s.claim(ClaimRequest { ack: Some(AckLevel::Durable), ..request("p", "d") }).await.unwrap();
    assert_eq!(world.crashed().await.held().await.len(), 1, "it was durable when it was answered");
    let short = world.s.claim(ClaimRequest { reserve_ms: Some(100), ..request("p", "s") }).await.unwrap();
    world.pass(99).await;
    assert_eq!(world.s.get_claim(&id("s")).await.unwrap().fence, short.claim.fence);
    world.pass(1).await;
    until("it expires", async || world.s.get_claim(&id("s")).await == Err(GONE)).await;
}

#[tokio::test]
async fn c07_tenants_and_namespaces_are_separate() {
    let world = World::on_store().await;
    world.pool("p", spec(2, AckLevel::Durable), &["u", "v", "w"]).await;
    let other_pool = hotpool::model::PoolName::new("other", "p").unwrap();
    world.s.put_pool(other_pool.clone(), spec(1, AckLevel::Durable)).await.unwrap();
    world.s.register(&other_pool, crate::world::worker("u")).await.unwrap();
    let tenant = ClaimId::new("ns", "acme", "k").unwrap();
    let namespace = ClaimId::new("other", "default", "k").unwrap();
    let mine = world.claim("p", "k").await.unwrap();
    let theirs = world.s.claim(ClaimRequest { id: tenant.clone(), ..request("p", "k") }).await.unwrap();
    let other_namespace = ClaimRequest { id: namespace.clone(), pools: other_pool.clone().into(), ..request("p", "k") };
    let other_namespace = world.s.claim(other_namespace).await.unwrap();
    assert!(mine.created && theirs.created && other_namespace.created);
    assert_ne!(mine.claim.worker, theirs.claim.worker);
    assert_eq!(world.s.release(&tenant, mine.claim.fence).await, Err(RequestError::FenceMismatch));
    world.s.release(&id("k"), mine.claim.fence).await.unwrap();
    assert_eq!(world.s.get_claim(&tenant).await.unwrap().fence, theirs.claim.fence);
    let again = world.restarted().await;
    assert_eq!(again.s.get_claim(&id("k")).await, Err(GONE));
    assert_eq!(again.s.get_claim(&tenant).await.unwrap().fence, theirs.claim.fence);
    assert_eq!(again.s.get_claim(&namespace).await.unwrap().fence, other_namespace.claim.fence);
}

#[tokio::test]
async fn c10_a_reservation_expires_at_its_deadline_once() {
    let world = World::on_store().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let taken = world.claim("p", "k").await.unwrap();
    assert_eq!(taken.claim.state, ClaimState::Reserved);
    world.pass(29_999).await;
    assert_eq!(world.counts("p").await, (0, 1, 1));
    world.pass(1).await;
    assert_eq!(world.counts("p").await, (1, 0, 0));
    let rows = world.rows("p").await;
    assert_eq!(world.s.confirm(&id("k"), taken.claim.fence).await, Err(GONE));
    world.s.release(&id("k"), taken.claim.fence).await.unwrap();
    world.pass(60_000).await;
    assert_eq!(world.rows("p").await, rows, "once");
    assert_eq!(world.restarted().await.counts("p").await, (1, 0, 0));
}

/// The deadline has passed, and the confirm is in the mailbox before the shard has read the time.
#[tokio::test]
async fn c10_a_confirm_in_the_mailbox_wins_over_the_deadline() {
    let world = World::on_memory().await;
    world.pool("p", spec(1, AckLevel::Durable), &["w"]).await;
    let fence = world.claim("p", "k").await.unwrap().claim.fence;
    world.pass(29_999).await;
    world.clock.advance(std::time::Duration::from_millis(1));
    world.clock.tick();
    // This thread is the only one: the shard sees the new time with the confirm in its mailbox.
    assert_eq!(world.s.confirm(&id("k"), fence).await.unwrap().state, ClaimState::Active);
    world.pass(60_000).await;
    assert_eq!(world.counts("p").await, (0, 1, 0));
    assert_eq!(world.s.get_claim(&id("k")).await.unwrap().state, ClaimState::Active);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c10_whoever_wins_both_sides_agree() {
    let world = World::on_memory().await;
    world.pool("p", PoolSpec { reserve_ms: 10, ..spec(1, AckLevel::Durable) }, &["w"]).await;
    for round in 0..200 {
        let key = format!("k{round}");
        let fence = world.claim("p", &key).await.unwrap().claim.fence;
        let (s, confirmed) = (world.s.clone(), id(&key));
        let confirm = tokio::spawn(async move { s.confirm(&confirmed, fence).await });
        world.clock.advance(std::time::Duration::from_millis(10));
        world.clock.tick();
        let confirmed = done(confirm).await;
        world.quiet().await;
        match confirmed {
            Ok(view) => {
                assert_eq!(view.state, ClaimState::Active);
                assert_eq!(world.s.get_claim(&id(&key)).await.unwrap().fence, fence);
                world.s.release(&id(&key), fence).await.unwrap();
            }
            Err(refusal) => {
                assert_eq!(refusal, GONE);
                assert_eq!(world.s.get_claim(&id(&key)).await, Err(GONE));
            }
        }
        assert_eq!(world.s.get_pool(&name("p")).await.unwrap().shards[0].idle, 1);
    }
}
