//! N1: no false "exhausted". Ten thousand workers on 64 shards.
//!
//! The invariant covers workers that stay free throughout the call. So each round knows how many workers are free at
//! its start, makes fewer claims than that, and releases others at the same time: at least one of the free workers is
//! never granted in the round, and no claim of the round may be answered that the pool is exhausted.

use hotpool::limits::CAPACITIES_MAX;
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    AckLevel, ClaimId, Fence, GpuCapacity, ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec,
};

use crate::shared_pool_helpers::{cpu, gpus, request_for};
use crate::world::{FULL, World, done, name, request, spec, worker};

const WORKERS: usize = 10_000;

/// Sets up a pool with all but `free` workers held. Returns the claims.
async fn busy_pool(free: usize) -> (World, Vec<(ClaimId, Fence)>) {
    let world = World::on_memory().await;
    world.pool("p", spec(64, AckLevel::Durable), &[]).await;
    let ids: Vec<_> = (0..WORKERS).map(|i| format!("w{i}")).collect();
    world.add("p", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let requests = (0..WORKERS - free).map(|i| request("p", &format!("old-{i}"))).collect();
    let held: Vec<_> = world.s.claim_batch(requests).await.into_iter().map(|taken| taken.unwrap().claim).collect();
    (world, held.into_iter().map(|claim| (claim.id, claim.fence)).collect())
}

/// Repeats `rounds` times: as many claims as leave one of the `free` workers alone, and as many releases, all at once.
async fn churn(free: usize, rounds: usize) {
    let (world, mut held) = busy_pool(free).await;
    for round in 0..rounds {
        let claims: Vec<_> = (1..free)
            .map(|i| {
                let s = world.s.clone();
                tokio::spawn(async move { s.claim(request("p", &format!("new-{round}-{i}"))).await })
            })
            .collect();
        // The oldest are released, so that free workers are spread over all shards.
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
    assert_eq!((world.s.keys().len(), world.s.keys().pending_len()), (WORKERS - free, 0));
    // When there is really none, the reply says so.
    let requests = (0..=free).map(|i| request("p", &format!("last-{i}"))).collect();
    let answers = world.s.claim_batch(requests).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), free);
    assert_eq!(answers.into_iter().filter_map(Result::err).collect::<Vec<_>>(), [FULL]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n1_at_99_percent_busy_no_claim_is_rejected_as_exhausted() {
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

/// N1, W07: with more distinct capacities than are published, in one shard or in all together, a request above the
/// largest amount is still known to fit nowhere.
#[tokio::test]
async fn w07_a_request_above_every_worker_is_unsatisfiable_however_many_capacities_there_are() {
    const WORKERS: u64 = CAPACITIES_MAX as u64 + 40;
    let (most_cpu, most_memory, most_slots) = (999 + WORKERS, 5_000, 7);
    let nothing = ResourceRequirements::default;
    for shards in [1, 4] {
        let world = World::on_memory().await;
        world.pool("p", spec(shards, AckLevel::Memory), &[]).await;
        let of_number = |number: u64| {
            let gpu = (number == 0).then(|| GpuCapacity { model: "A10".into(), count: 2 });
            let (cpu_milli, memory_bytes) = (1_000 + number, most_memory - number);
            let capacity = WorkerCapacity { cpu_milli, memory_bytes, slots: most_slots, gpu };
            WorkerSpec { capacity, ..worker(&format!("w{number}")) }
        };
        world.enlist((0..WORKERS).map(of_number).collect()).await;
        let mut requested = 0;
        let mut claim = async |resources: ResourceRequirements| {
            requested += 1;
            let taken = world.s.claim(request_for("p", &format!("k{requested}"), &resources)).await?;
            Ok(taken.claim.worker.spec.id.to_string())
        };
        let unsatisfiable = Err(RequestError::Unsatisfiable);
        assert_eq!(claim(cpu(most_cpu + 1)).await, unsatisfiable, "{shards} shards");
        assert_eq!(claim(ResourceRequirements { memory_bytes: most_memory + 1, ..nothing() }).await, unsatisfiable);
        assert_eq!(claim(ResourceRequirements { slots: most_slots + 1, ..nothing() }).await, unsatisfiable);
        assert_eq!(claim(gpus(&[], 3, 1_000)).await, unsatisfiable);
        let on_no_single_one = ResourceRequirements { memory_bytes: most_memory, ..cpu(most_cpu) };
        assert_eq!(claim(on_no_single_one).await, Err(FULL), "amounts are not combined");
        let largest = format!("w{}", WORKERS - 1);
        assert_eq!(claim(cpu(most_cpu)).await, Ok(largest.clone()));
        assert_eq!(claim(gpus(&[], 2, 1_000)).await.as_deref(), Ok("w0"));
        assert_eq!(claim(cpu(most_cpu)).await, Err(FULL), "one fits, and is busy");
        world.s.delete_worker(&name("p"), &WorkerId::new(&largest).unwrap()).await.unwrap();
        assert_eq!(claim(cpu(most_cpu)).await, unsatisfiable, "the largest is deleted, {shards} shards");
    }
}
