//! N1: no false "full". Ten thousand workers on 64 shards.
//!
//! A worker that stays free through the whole call is what the invariant speaks of. So each round knows how many
//! workers are free when it begins, makes fewer claims than that, and releases others at the same time: at least one
//! of those that were free is never taken in the round, and no claim of the round may be told that the pool is full.

use hotpool::model::{Ack, ClaimId, Fence};

use crate::world::{FULL, World, done, request, spec};

const WORKERS: usize = 10_000;

/// A pool with all but `free` workers held, and the claims.
async fn busy_pool(free: usize) -> (World, Vec<(ClaimId, Fence)>) {
    let world = World::on_memory().await;
    world.pool("p", spec(64, Ack::Durable), &[]).await;
    let ids: Vec<_> = (0..WORKERS).map(|i| format!("w{i}")).collect();
    world.add("p", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let requests = (0..WORKERS - free).map(|i| request("p", &format!("old-{i}"))).collect();
    let held: Vec<_> = world.s.claim_batch(requests).await.into_iter().map(|taken| taken.unwrap().claim).collect();
    (world, held.into_iter().map(|claim| (claim.id, claim.fence)).collect())
}

/// `rounds` times: as many claims as leave one of the `free` workers alone, and as many releases, all at once.
async fn churn(free: usize, rounds: usize) {
    let (world, mut held) = busy_pool(free).await;
    for round in 0..rounds {
        let claims: Vec<_> = (1..free)
            .map(|i| {
                let s = world.s.clone();
                tokio::spawn(async move { s.claim(request("p", &format!("new-{round}-{i}"))).await })
            })
            .collect();
        // The oldest go, so that what comes free is spread over all shards.
        let releases: Vec<_> = held
            .drain(..free - 1)
            .map(|(id, fence)| {
                let s = world.s.clone();
                tokio::spawn(async move { s.release(&id, fence).await })
            })
            .collect();
        for claim in claims {
            let taken = done(claim).await.unwrap_or_else(|refusal| panic!("round {round}: {refusal}"));
            held.push((taken.claim.id, taken.claim.fence));
        }
        for release in releases {
            done(release).await.unwrap();
        }
    }
    assert_eq!(world.counts("p").await, (free as u64, (WORKERS - free) as u64, (WORKERS - free) as u64));
    assert_eq!((world.s.keys().len(), world.s.keys().pending()), (WORKERS - free, 0));
    // And when there is really none, it is said.
    let requests = (0..=free).map(|i| request("p", &format!("last-{i}"))).collect();
    let answers = world.s.claim_batch(requests).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), free);
    assert_eq!(answers.into_iter().filter_map(Result::err).collect::<Vec<_>>(), [FULL]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n1_at_99_percent_busy_nobody_is_told_that_the_pool_is_full() {
    churn(100, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n1_with_two_free_workers_one_claim_and_one_release_at_a_time_always_finds_one() {
    churn(2, 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n1_the_one_free_worker_of_ten_thousand_is_found() {
    let (world, mut held) = busy_pool(1).await;
    for (round, held) in held.iter_mut().take(500).enumerate() {
        let taken = world.claim("p", &format!("new-{round}")).await.unwrap();
        assert_eq!(world.claim("p", &format!("too-many-{round}")).await, Err(FULL));
        let (id, fence) = std::mem::replace(held, (taken.claim.id, taken.claim.fence));
        world.s.release(&id, fence).await.unwrap();
    }
}
