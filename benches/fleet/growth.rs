//! Costs that must not grow with the fleet: `-- growth`. Nanoseconds of one placement decision or one pass over a
//! shard, by idle workers of the shard, claims held in it, or shards of the pool. A decision is the search part of a
//! claim; nothing is allocated.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use hotpool::engine::{EngineReply, Event, PlacementConstraints, Shard};
use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    AckLevel, ClaimId, ClaimRequest, ClaimSpec, PlacementPolicy, PoolMode, PoolSpec, ResourceRequirements,
    WorkerCapacity, WorkerId, WorkerSpec,
};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};

use super::pool;

const WORKERS: [u32; 3] = [1_000, 10_000, 100_000];
const SHARDS: [u16; 3] = [16, 256, 1_024];
/// Workers per shard of a shared pool.
const SHARED_WORKERS: u64 = 40;
/// Expiry of all workers but one, and the lifetime that a claim requires.
const NEAR_MS: u64 = 100_000;
const NEEDS_MS: u64 = 1_000_000;

fn handle(shard: &mut Shard, event: Event) -> Option<EngineReply> {
    let answer = shard.handle_event(event, 1, &mut Vec::new());
    shard.discard_changes();
    answer
}

fn register(shard: &mut Shard, number: u32, ends_ms: Option<u64>) {
    let capacity = WorkerCapacity { cpu_milli: 8_000, ..WorkerCapacity::default() };
    let id = WorkerId::new(&format!("worker-{number:07}")).expect("a name");
    let spec = WorkerSpec { capacity, expires_at_ms: ends_ms, ..WorkerSpec::with_id(id) };
    handle(shard, Event::Register { spec, ends_ms, claims: None, ttl_ms: 0 });
}

/// Nanoseconds of a call, as the median of many.
fn time(calls: usize, mut call: impl FnMut()) -> u64 {
    time_of(&mut (), calls, |()| (), |()| call())
}

/// Nanoseconds of a call, as the median of many, each after a preparation that is not timed.
fn time_of<T>(state: &mut T, calls: usize, mut prepare: impl FnMut(&mut T), mut call: impl FnMut(&mut T)) -> u64 {
    call(state);
    let mut nanos: Vec<u64> = (0..calls)
        .map(|_| {
            prepare(state);
            let start = Instant::now();
            call(state);
            start.elapsed().as_nanos() as u64
        })
        .collect();
    nanos.sort_unstable();
    nanos[calls / 2]
}

fn row(what: &str, figures: impl Iterator<Item = u64>) {
    let figures: Vec<String> = figures.map(|ns| format!("{ns:>12}")).collect();
    println!("{what:<58}{}", figures.join(""));
}

/// Search when all workers expire too soon except the first registered one, which policy `lifo` tries last.
fn pick_lasting_one(policy: PlacementPolicy, workers: u32) -> u64 {
    let mut shard = Shard::new(policy, 1);
    (0..workers).for_each(|n| register(&mut shard, n, (n > 0).then_some(NEAR_MS + u64::from(n % 5_000))));
    let resources = ResourceRequirements { cpu_milli: 1_000, ..ResourceRequirements::default() };
    let spec = Some(Arc::new(ClaimSpec { resources, ..ClaimSpec::default() }));
    let constraints = matches!(policy, PlacementPolicy::BestFit)
        .then(|| PlacementConstraints { spec, ..PlacementConstraints::default() });
    time(100, || assert!(black_box(shard.preview_placement(constraints.as_ref(), 7, NEEDS_MS, 1)).is_ok()))
}

/// Search under policy `random` when every second worker expires too soon. The fence selects among the others, so it
/// is raised before each call.
fn pick_lasting_half(workers: u32) -> u64 {
    let mut shard = Shard::new(PlacementPolicy::Random, 1);
    (0..workers).for_each(|n| {
        let ends_ms = NEAR_MS + u64::from(n % 5_000) + if n % 2 > 0 { 2 * NEEDS_MS } else { 0 };
        register(&mut shard, n, Some(ends_ms));
    });
    let mut fence = 0;
    let raise_fence = |shard: &mut Shard| {
        fence += 1;
        let id = ClaimId::new("bench", "default", "key").expect("a name");
        let constraints = None;
        let claim = Event::Claim { id, fence, affinity: 7, reserve_ms: 0, ttl_ms: 0, constraints, target: None };
        let Some(EngineReply::Granted(grant)) = handle(shard, claim) else { panic!("there is an idle worker") };
        handle(shard, Event::Release { handle: grant.handle });
    };
    time_of(&mut shard, 1_000, raise_fence, |shard| {
        assert!(black_box(shard.preview_placement(None, 8, NEEDS_MS, 1)).is_ok());
    })
}

/// Search when no worker expires: the usual cost of a claim.
fn pick_endless(workers: u32) -> u64 {
    let mut shard = Shard::new(PlacementPolicy::Lifo, 1);
    (0..workers).for_each(|n| register(&mut shard, n, None));
    time(10_000, || assert!(black_box(shard.preview_placement(None, 7, NEEDS_MS, 1)).is_ok()))
}

fn idle_longest(workers: u32) -> u64 {
    let mut shard = Shard::new(PlacementPolicy::Lifo, 1);
    (0..workers).for_each(|n| register(&mut shard, n, None));
    time(100, || assert_eq!(black_box(shard.idle_longest(100)).len(), 100))
}

/// Pass over a shard to list the claims of a tenant that has none.
fn filtered(claims: u32) -> u64 {
    let mut shard = Shard::new(PlacementPolicy::Lifo, 1);
    for n in 0..claims {
        register(&mut shard, n, None);
        let id = ClaimId::new("bench", "default", &format!("key-{n:09}")).expect("a name");
        let (fence, constraints) = (u64::from(n) + 1, None);
        handle(
            &mut shard,
            Event::Claim { id, fence, affinity: 7, reserve_ms: 0, ttl_ms: 0, constraints, target: None },
        );
    }
    time(100, || assert!(black_box(shard.claims_from(0, 100, |claim| claim.id.tenant() == "nobody")).rows.is_empty()))
}

fn share(n: usize) -> ClaimRequest {
    let id = ClaimId::new("bench", "default", &format!("key-{n:09}")).expect("a name");
    let resources = ResourceRequirements { cpu_milli: 1_000, ..ResourceRequirements::default() };
    let spec = ClaimSpec { resources, ..ClaimSpec::default() };
    let constraints = Some(Box::new(ClaimConstraints { spec, ..ClaimConstraints::default() }));
    ClaimRequest { constraints, reserve_ms: Some(0), ..ClaimRequest::new(id, pool()) }
}

/// Creates a shared pool of [`SHARED_WORKERS`] per shard that report their memory to the byte, all of them different.
async fn shared_pool(shards: u16, cpu_milli: impl Fn(u64) -> u64) -> Scheduler {
    let scheduler = Scheduler::new(Arc::new(MemoryStore), SchedulerSettings::default());
    scheduler.start().await.expect("starts");
    let spec = PoolSpec { shards, ack: AckLevel::Memory, mode: PoolMode::Shared, ..PoolSpec::default() };
    scheduler.put_pool(pool(), spec).await.expect("a pool");
    let workers = SHARED_WORKERS * u64::from(shards);
    for from in (0..workers).step_by(10_000) {
        let specs = (from..workers.min(from + 10_000)).map(|n| {
            let capacity =
                WorkerCapacity { cpu_milli: cpu_milli(n), memory_bytes: (64 << 30) + n, ..WorkerCapacity::default() };
            let id = WorkerId::new(&format!("worker-{n:07}")).expect("a name");
            WorkerSpec { capacity, ..WorkerSpec::with_id(id) }.into()
        });
        let outcomes = scheduler.register_batch(&pool(), specs.collect()).await.expect("a pool");
        assert!(outcomes.iter().all(Result::is_ok));
    }
    scheduler
}

/// Nanoseconds to claim and release a share, when one worker has capacity and the others have `cpu_milli`.
async fn shares(shards: u16, cpu_milli: u64) -> u64 {
    let scheduler = shared_pool(shards, |n| if n == 0 { 2_000 } else { cpu_milli }).await;
    let mut nanos = Vec::new();
    for n in 0..5_000 {
        let start = Instant::now();
        let result = scheduler.claim(share(n)).await.expect("a worker has capacity");
        scheduler.release(&result.claim.id, result.claim.fence).await.expect("the claim is held");
        nanos.push(start.elapsed().as_nanos() as u64);
    }
    nanos.sort_unstable();
    scheduler.stop().await;
    nanos[nanos.len() / 2]
}

/// Nanoseconds to reject a claim for a share, because all workers are fully held.
async fn rejected_shares(shards: u16) -> u64 {
    let scheduler = shared_pool(shards, |_| 1_000).await;
    let held = SHARED_WORKERS as usize * usize::from(shards);
    for n in 0..held {
        scheduler.claim(share(n)).await.expect("a worker has capacity");
    }
    let mut nanos = Vec::new();
    for n in held..held + 5_000 {
        let start = Instant::now();
        let rejected = scheduler.claim(share(n)).await;
        nanos.push(start.elapsed().as_nanos() as u64);
        assert!(matches!(rejected, Err(RequestError::Exhausted(_))), "{rejected:?}");
    }
    nanos.sort_unstable();
    scheduler.stop().await;
    nanos[nanos.len() / 2]
}

/// Prints one row of figures per scenario.
pub fn print(runtime: &tokio::runtime::Runtime) {
    println!("ns, workers or claims of a shard: {WORKERS:?}");
    row("pick, no worker expires (Lifo)", WORKERS.into_iter().map(pick_endless));
    for policy in [PlacementPolicy::Lifo, PlacementPolicy::Random, PlacementPolicy::BestFit] {
        let what = format!("pick, all workers but one expire too soon ({policy:?})");
        row(&what, WORKERS.into_iter().map(|workers| pick_lasting_one(policy, workers)));
    }
    row("pick, every second worker expires too soon (Random)", WORKERS.into_iter().map(pick_lasting_half));
    row("list of a tenant's claims, none found", WORKERS.into_iter().map(filtered));
    row("the 100 workers idle for longest", WORKERS.into_iter().map(idle_longest));
    println!("ns, shards of a pool: {SHARDS:?}");
    let pair = |cpu_milli| SHARDS.into_iter().map(move |shards| runtime.block_on(shares(shards, cpu_milli)));
    row("claim and release a share, capacity everywhere", pair(8_000));
    row("claim and release a share, capacity in one shard", pair(500));
    row("reject a share, no capacity", SHARDS.into_iter().map(|shards| runtime.block_on(rejected_shares(shards))));
}
