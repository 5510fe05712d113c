//! Batches of claims on shared workers: each item has its own outcome, each shard gets one request, each worker updated
//! once.

use std::collections::BTreeMap;

use hotpool::model::request_error::RequestError;
use hotpool::model::{PlacementPolicy, WorkerId};

use crate::shared_pool_helpers::{cpu, gpus, request_for, shared, sized};
use crate::world::{World, done, ids_on};

#[tokio::test]
async fn b01_a_bad_item_affects_no_other_and_the_order_is_kept() {
    let world = World::on_memory().await;
    world
        .shared(shared(4, PlacementPolicy::BestFit), (0..4).map(|i| sized(&format!("w{i}"), 2_000, None)).collect())
        .await;
    let (bad, good) = (gpus(&["T4"], 2, 500), cpu(1_000));
    let batch = (0..9).map(|i| request_for("p", &format!("k{i}"), if i % 4 == 1 { &bad } else { &good })).collect();
    let outcomes = world.s.claim_batch(batch).await;
    for (i, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Err(RequestError::Invalid { field, .. }) => assert_eq!((i % 4, &**field), (1, "resources.gpu.milli")),
            Ok(taken) => assert_eq!(taken.claim.id.key(), format!("k{i}")),
            other => panic!("{i}: {other:?}"),
        }
    }
    assert_eq!(outcomes.iter().flatten().count(), 7);
}

/// The free resources that a shard published are stale when the batch arrives: a claim that loses its first choice
/// gets a second in the same call, and both are placed.
#[tokio::test]
async fn b01_a_claim_that_loses_its_first_choice_gets_a_second_in_the_same_call() {
    let world = World::on_memory().await;
    let (small, large) = (ids_on(0, 2, 1, "a").remove(0), ids_on(1, 2, 1, "b").remove(0));
    world
        .shared(shared(2, PlacementPolicy::BestFit), vec![sized(&small, 4_000, None), sized(&large, 8_000, None)])
        .await;
    let mut lost = 0;
    for round in 0..24 {
        let busy = world.busy("p").await;
        let mut first = request_for("p", &format!("first{round}"), &cpu(4_000));
        first.constraints.as_mut().unwrap().worker = Some(WorkerId::new(&small).unwrap());
        let first = world.begin_request_alone(first);
        let s = world.s.clone();
        let batch = (0..2).map(|i| request_for("p", &format!("k{round}-{i}"), &cpu(4_000))).collect();
        tokio::task::yield_now().await;
        let second = tokio::spawn(async move { s.claim_batch(batch).await });
        // The first claim, and the batch in one command or two.
        busy.until_queued_at_least(2).await;
        let first = done(first).await.unwrap().claim;
        let taken = done(second).await;
        assert!(taken.iter().all(Result::is_ok), "round {round}: {taken:?}");
        lost += usize::from(taken.iter().flatten().all(|taken| taken.claim.worker.spec.id.as_str() == large));
        for claim in taken.into_iter().flatten().map(|taken| taken.claim).chain([first]) {
            world.s.release(&claim.id, claim.fence).await.unwrap();
        }
    }
    assert_eq!(lost, 24, "the small one was taken before");
}

#[tokio::test]
async fn b03_a_hundred_claims_on_twenty_workers_update_twenty_workers() {
    let world = World::on_store().await;
    world
        .shared(shared(4, PlacementPolicy::BestFit), (0..20).map(|i| sized(&format!("w{i}"), 5_000, None)).collect())
        .await;
    let before: BTreeMap<String, u64> = world.rows("p").await.into_iter().map(|row| (row.0, row.2)).collect();
    let seq = |shards: &[hotpool::model::ShardStatus]| shards.iter().map(|shard| shard.seq).sum::<u64>();
    let changes = seq(&world.shards("p").await);
    let batch = (0..100).map(|i| request_for("p", &format!("k{i}"), &cpu(1_000))).collect();
    assert_eq!(world.s.claim_batch(batch).await.iter().flatten().count(), 100);
    assert_eq!(seq(&world.shards("p").await) - changes, 20, "each change is one row");
    let after = world.rows("p").await;
    assert!(after.iter().all(|row| row.2 > before[&row.0]), "each of them once");
    // All of that is in the store.
    let again = world.crashed().await;
    assert_eq!((again.all_held().await.len(), again.left().await), (100, (0, 0)));
}
