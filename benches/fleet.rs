//! A million workers: bytes of memory per worker (idle and held), and seconds from a cold process to serving them from
//! the embedded store. Also a fleet that is 99 % busy: claims rejected although a worker stays idle throughout the call. Prints the
//! figures in docs/BENCHMARKS.md; `-- workers=N` for another size; `-- growth` for costs that must not grow with the
//! fleet.

#[path = "fleet/growth.rs"]
mod growth;
#[path = "fleet/resident.rs"]
mod resident;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hotpool::model::request_error::RequestError;
use hotpool::model::{AckLevel, ClaimId, ClaimRequest, PoolName, PoolSpec, WorkerId, WorkerSpec};
use hotpool::persist::store::SharedStore;
use hotpool::persist::store::file::FileStore;
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};

use self::resident::resident_bytes;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn pool() -> PoolName {
    PoolName::new("bench", "fleet").expect("a name")
}

fn request(n: usize) -> ClaimRequest {
    let id = ClaimId::new("bench", "default", &format!("key-{n:09}")).expect("a name");
    let affinity = id.hash64();
    ClaimRequest { affinity, reserve_ms: Some(0), ..ClaimRequest::new(id, pool()) }
}

async fn start(store: SharedStore, shards: u16, ack: AckLevel) -> Scheduler {
    let scheduler = Scheduler::new(store, SchedulerSettings { store_wait_ms: 60_000, ..SchedulerSettings::default() });
    scheduler.start().await.expect("starts");
    scheduler.put_pool(pool(), PoolSpec { shards, ack, ..PoolSpec::default() }).await.expect("a pool");
    scheduler
}

async fn register(scheduler: &Scheduler, workers: usize) {
    for from in (0..workers).step_by(10_000) {
        let specs = (from..workers.min(from + 10_000))
            .map(|n| WorkerSpec::with_id(WorkerId::new(&format!("worker-{n:07}")).expect("a name")));
        let outcomes = scheduler.register_batch(&pool(), specs.map(Into::into).collect()).await.expect("a pool");
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }
}

async fn claim(scheduler: &Scheduler, claims: usize) {
    for from in (0..claims).step_by(1_000) {
        let outcomes = scheduler.claim_batch((from..claims.min(from + 1_000)).map(request).collect()).await;
        assert!(outcomes.iter().all(Result::is_ok));
    }
}

async fn memory(workers: usize) {
    let before = resident_bytes();
    let scheduler = start(Arc::new(MemoryStore), 16, AckLevel::Memory).await;
    register(&scheduler, workers).await;
    let idle = resident_bytes() - before;
    claim(&scheduler, workers).await;
    let held = resident_bytes() - before;
    println!("{workers} workers: {} bytes each idle, {} bytes each held", idle / workers, held / workers);
    scheduler.stop().await;
}

async fn recovery(workers: usize, dir: &Path) {
    let open = || Arc::new(FileStore::open(dir).expect("a directory of our own"));
    let scheduler = start(open(), 16, AckLevel::Durable).await;
    register(&scheduler, workers).await;
    claim(&scheduler, workers / 10).await;
    scheduler.stop().await;
    drop(scheduler);
    // The actors release the store when their tasks have ended.
    while FileStore::open(dir).map(drop).is_err() {
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    let store = open();
    let opened = start.elapsed();
    let scheduler = Scheduler::new(store, SchedulerSettings::default());
    scheduler.start().await.expect("recovers");
    println!(
        "{workers} workers, a tenth of them held: serving after {:.2} s ({:.2} s of it opening the file)",
        start.elapsed().as_secs_f64(),
        opened.as_secs_f64()
    );
    let status = scheduler.get_pool(&pool()).await.expect("recovered");
    assert_eq!(status.shards.iter().map(|shard| shard.workers).sum::<u64>(), workers as u64);
    assert_eq!(status.shards.iter().map(|shard| shard.busy).sum::<u64>(), workers as u64 / 10);
    scheduler.stop().await;
}

/// Claims and releases by `clients` tasks on 10,000 workers in 64 shards, of which all but `free` stay held. With
/// fewer clients than idle workers some worker is idle at every moment, and with a margin the same one throughout a
/// call. With as many clients as idle workers each may be claimed and released behind a claim's back, so a rejection
/// is legitimate.
async fn busy(free: usize, clients: usize) {
    const WORKERS: usize = 10_000;
    const CLAIMS: usize = 200_000;
    let scheduler = start(Arc::new(MemoryStore), 64, AckLevel::Memory).await;
    register(&scheduler, WORKERS).await;
    claim(&scheduler, WORKERS - free).await;
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let scheduler = scheduler.clone();
            tokio::spawn(async move {
                let mut rejected = 0;
                for n in 0..CLAIMS / clients {
                    match scheduler.claim(request(1_000_000 * (client + 1) + n)).await {
                        Ok(result) => scheduler.release(&result.claim.id, result.claim.fence).await.expect("held"),
                        Err(RequestError::Exhausted(_)) => rejected += 1,
                        Err(other) => panic!("{other}"),
                    }
                }
                rejected
            })
        })
        .collect();
    let mut rejected = 0;
    for task in tasks {
        rejected += task.await.expect("no panic");
    }
    println!("{WORKERS} workers in 64 shards, {free} free, {clients} clients: {rejected} of {CLAIMS} rejected");
    scheduler.stop().await;
}

fn main() {
    let workers = std::env::args().find_map(|arg| arg.strip_prefix("workers=")?.parse().ok()).unwrap_or(1_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if std::env::args().any(|arg| arg == "growth") {
        return growth::print(&runtime);
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    runtime.block_on(memory(workers));
    runtime.block_on(recovery(workers, dir.path()));
    for (free, clients) in [(100, 64), (100, 100), (1, 1), (2, 2)] {
        runtime.block_on(busy(free, clients));
    }
}
