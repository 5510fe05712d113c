//! Claims in process through key directory, shard queue and actor on `memory:`: awaited one by one by many tasks, and
//! in batches of 64. Prints pairs a second, the figures in docs/BENCHMARKS.md. `-- one-thread` runs on one core, for
//! counting instructions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotpool::model::{AckLevel, ClaimId, ClaimRequest, PoolName, PoolSpec, WorkerId, WorkerSpec};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WORKERS: usize = 10_000;

async fn scheduler(shards: u16) -> (Scheduler, PoolName) {
    let scheduler = Scheduler::new(Arc::new(MemoryStore), SchedulerSettings::default());
    scheduler.start().await.expect("memory: always starts");
    let pool = PoolName::new("bench", "pool").expect("a name");
    let spec = PoolSpec { shards, ack: AckLevel::Memory, ..PoolSpec::default() };
    scheduler.put_pool(pool.clone(), spec).await.expect("a pool");
    let spec = |n| WorkerSpec::with_id(WorkerId::new(&format!("w-{n}")).expect("a name"));
    let registered =
        scheduler.register_batch(&pool, (0..WORKERS).map(|n| spec(n).into()).collect()).await.expect("a pool");
    assert!(registered.iter().all(Result::is_ok));
    (scheduler, pool)
}

fn request(pool: &PoolName, key: &str) -> ClaimRequest {
    let id = ClaimId::new("bench", "default", key).expect("a name");
    let affinity = id.hash64();
    ClaimRequest { affinity, reserve_ms: Some(0), ..ClaimRequest::new(id, pool.clone()) }
}

async fn client(scheduler: Scheduler, client: usize, batch: usize, deadline: Instant) -> usize {
    let pool = PoolName::new("bench", "pool").expect("a name");
    // Keys are made before the clock starts: a client has its keys at hand.
    let keys: Vec<String> = (0..1_024).map(|n| format!("{client}-{n}")).collect();
    let mut pairs = 0;
    while Instant::now() < deadline {
        if batch == 1 {
            for _ in 0..64 {
                let result = scheduler.claim(request(&pool, &keys[pairs % keys.len()])).await.expect("capacity");
                scheduler.release(&result.claim.id, result.claim.fence).await.expect("held");
                pairs += 1;
            }
            continue;
        }
        let requests = (0..batch).map(|n| request(&pool, &keys[(pairs + n) % keys.len()])).collect();
        let result = scheduler.claim_batch(requests).await;
        let claims = result
            .into_iter()
            .map(|result| result.map(|result| (result.claim.id, result.claim.fence)).expect("capacity"));
        let released = scheduler.release_batch(claims.collect()).await;
        assert!(released.iter().all(Result::is_ok));
        pairs += batch;
    }
    pairs
}

async fn run(shards: u16, clients: usize, batch: usize) -> f64 {
    const TIME: Duration = Duration::from_secs(2);
    let (scheduler, _) = scheduler(shards).await;
    let start = Instant::now();
    let tasks: Vec<_> = (0..clients).map(|n| tokio::spawn(client(scheduler.clone(), n, batch, start + TIME))).collect();
    let mut pairs = 0;
    for task in tasks {
        pairs += task.await.expect("no panic");
    }
    let rate = pairs as f64 / start.elapsed().as_secs_f64();
    scheduler.stop().await;
    rate
}

fn main() {
    let single_thread = std::env::args().any(|arg| arg == "one-thread");
    let runtime = if single_thread {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    }
    .enable_all()
    .build()
    .expect("a runtime");
    let case_filter = std::env::args().filter_map(|arg| arg.parse::<usize>().ok()).next();
    println!("{:<44} {:>14}", "case", "pairs/s");
    let cases = [(16, 64, 1), (4, 64, 1), (16, 1_024, 1), (16, 16, 64), (4, 16, 64)];
    for (_, (shards, clients, batch)) in
        cases.into_iter().enumerate().filter(|(n, _)| case_filter.is_none_or(|case_filter| case_filter == *n))
    {
        let mut rates: Vec<f64> = (0..3).map(|_| runtime.block_on(run(shards, clients, batch))).collect();
        rates.sort_by(f64::total_cmp);
        println!("{:<44} {:>14.0}", format!("{shards} shards, {clients} clients, batches of {batch}"), rates[1]);
    }
}
