//! Allocations of a plain claim that is awaited and released in process. Their number is the same on every run, so the
//! limit is exact.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use futures::FutureExt as _;
use hotpool::environment::Clock;
use hotpool::model::{AckLevel, ClaimId, ClaimRequest, PoolName, PoolSpec, WorkerId, WorkerSpec};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};

/// Allocations of one pair, the text of its key included. Lower it when the path becomes cheaper.
const PAIR_ALLOCATIONS_MAX: u64 = 2;
/// Workers of the only shard: so many that the engine of a debug build does not check all its invariants, which
/// allocates, after each event.
const WORKERS: usize = 256;
/// Pairs before the counted ones, which grow every table.
const WARM_UP_PAIRS: usize = 1_024;
/// Pairs that are counted.
const PAIRS: usize = 1_024;

/// Allocator that counts the allocations of each thread.
struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call is forwarded unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: guaranteed by the caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: guaranteed by the caller.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Claims and releases one after the other. Every call is decided in its first poll, and no other task runs.
fn claim_and_release(scheduler: &Scheduler, pool: &PoolName, keys: &[String]) {
    for key in keys {
        let id = ClaimId::new("ns", "default", key).unwrap();
        let claimed = scheduler.claim(ClaimRequest::new(id, pool.clone())).now_or_never().unwrap().unwrap();
        scheduler.release(&claimed.claim.id, claimed.claim.fence).now_or_never().unwrap().unwrap();
    }
}

#[test]
fn an_awaited_pair_allocates_no_more_than_its_limit() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let scheduler = Scheduler::with_clock(Arc::new(MemoryStore), SchedulerSettings::default(), Clock::manual());
    let pool = PoolName::new("ns", "pool").unwrap();
    runtime.block_on(async {
        scheduler.start().await.unwrap();
        let spec = PoolSpec { ack: AckLevel::Memory, shards: 1, ..PoolSpec::default() };
        scheduler.put_pool(pool.clone(), spec).await.unwrap();
        let worker = |n| WorkerSpec::with_id(WorkerId::new(&format!("w{n}")).unwrap()).into();
        let registered = scheduler.register_batch(&pool, (0..WORKERS).map(worker).collect()).await.unwrap();
        assert!(registered.iter().all(Result::is_ok));
    });
    let keys: Vec<String> = (0..WARM_UP_PAIRS.max(PAIRS)).map(|n| format!("key-{n:012}")).collect();
    claim_and_release(&scheduler, &pool, &keys[..WARM_UP_PAIRS]);
    let before = ALLOCATIONS.get();
    claim_and_release(&scheduler, &pool, &keys[..PAIRS]);
    let allocations = ALLOCATIONS.get() - before;
    println!("allocations of a pair: {:.3}", allocations as f64 / PAIRS as f64);
    let limit = PAIR_ALLOCATIONS_MAX * PAIRS as u64;
    assert!(allocations <= limit, "{PAIRS} pairs made {allocations} allocations, more than {limit}");
}
