//! What must not grow with the fleet: `-- growth`. Nanoseconds of one pick of a worker, or of one run of a shard, by workers idle in
//! a shard, claims held in it, or shards of a pool. A pick is the part of a claim that searches; nothing is taken.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use hotpool::engine::{Effect, EngineReply, Event, PlacementConstraints, Shard};
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
/// Workers of a shard of a shared pool.
const SHARED_WORKERS: u64 = 40;
/// When all workers but one end, and how long a claim needs its worker.
const NEAR_MS: u64 = 100_000;
const NEEDS_MS: u64 = 1_000_000;

fn on(shard: &mut Shard, event: Event<()>) -> Option<EngineReply> {
    let mut effects = Vec::new();
    shard.handle_event(event, 1, &mut effects);
    shard.discard_changes();
    effects.into_iter().find_map(|effect| match effect {
        Effect::Reply { answer, .. } => Some(answer),
        _ => None,
    })
}

fn register(shard: &mut Shard, number: u32, ends_ms: Option<u64>) {
    let capacity = WorkerCapacity { cpu_milli: 8_000, ..WorkerCapacity::default() };
    let id = WorkerId::new(&format!("worker-{number:07}")).expect("a name");
    let spec = WorkerSpec { capacity, expires_at_ms: ends_ms, ..WorkerSpec::with_id(id) };
    on(shard, Event::Register { spec, ends_ms, claims: None, ttl_ms: 0, to: () });
}

/// Nanoseconds of a call, the median of many.
fn time(calls: usize, mut call: impl FnMut()) -> u64 {
    time_of(&mut (), calls, |()| (), |()| call())
}

/// Nanoseconds of a call, the median of many, each after something that is not timed.
fn time_of<T>(state: &mut T, calls: usize, mut prepare: impl FnMut(&mut T), mut call: impl FnMut(&mut T)) -> u64 {
    call(state);
    let mut took: Vec<u64> = (0..calls)
        .map(|_| {
            prepare(state);
            let start = Instant::now();
            call(state);
            start.elapsed().as_nanos() as u64
        })
        .collect();
    took.sort_unstable();
    took[calls / 2]
}

fn row(what: &str, of: impl Iterator<Item = u64>) {
    let figures: Vec<String> = of.map(|ns| format!("{ns:>12}")).collect();
    println!("{what:<58}{}", figures.join(""));
}

/// Pick where all workers end too soon but the first that registered, which a shard of policy `lifo` comes to last.
fn pick_lasting_one(policy: PlacementPolicy, workers: u32) -> u64 {
    let mut shard = Shard::new(policy, 1);
    (0..workers).for_each(|n| register(&mut shard, n, (n > 0).then_some(NEAR_MS + u64::from(n % 5_000))));
    let resources = ResourceRequirements { cpu_milli: 1_000, ..ResourceRequirements::default() };
    let spec = Some(Arc::new(ClaimSpec { resources, ..ClaimSpec::default() }));
    let wants = matches!(policy, PlacementPolicy::BestFit)
        .then(|| PlacementConstraints { spec, ..PlacementConstraints::default() });
    time(100, || assert!(black_box(shard.preview_placement(wants.as_ref(), 7, NEEDS_MS, 1)).is_ok()))
}

/// Pick of policy `random` where every second worker ends too soon. The fence says which of the others, so it moves on each time.
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
        let wants = None;
        let claim =
            Event::Claim { id, fence, affinity: 7, reserve_ms: 0, ttl_ms: 0, wants, reservation_ticket: 0, to: () };
        let Some(EngineReply::Granted(grant)) = on(shard, claim) else { panic!("there is an idle worker") };
        on(shard, Event::Release { place: grant.handle, to: () });
    };
    time_of(&mut shard, 1_000, raise_fence, |shard| {
        assert!(black_box(shard.preview_placement(None, 8, NEEDS_MS, 1)).is_ok());
    })
}

/// Pick where no worker ends: what a claim costs as a rule.
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

/// One run of a shard for a list of claims of a tenant that has none.
fn filtered(claims: u32) -> u64 {
    let mut shard = Shard::new(PlacementPolicy::Lifo, 1);
    for n in 0..claims {
        register(&mut shard, n, None);
        let id = ClaimId::new("bench", "default", &format!("key-{n:09}")).expect("a name");
        let (fence, wants) = (u64::from(n) + 1, None);
        on(
            &mut shard,
            Event::Claim { id, fence, affinity: 7, reserve_ms: 0, ttl_ms: 0, wants, reservation_ticket: 0, to: () },
        );
    }
    time(100, || assert!(black_box(shard.claims_from(0, 100, |claim| claim.id.tenant() == "nobody")).rows.is_empty()))
}

fn share(n: usize) -> ClaimRequest {
    let id = ClaimId::new("bench", "default", &format!("key-{n:09}")).expect("a name");
    let resources = ResourceRequirements { cpu_milli: 1_000, ..ResourceRequirements::default() };
    let spec = ClaimSpec { resources, ..ClaimSpec::default() };
    let ask = Some(Box::new(ClaimConstraints { spec, ..ClaimConstraints::default() }));
    ClaimRequest { constraints: ask, reserve_ms: Some(0), ..ClaimRequest::new(id, pool()) }
}

/// A shared pool of workers that report their memory to the byte: [`SHARED_WORKERS`] a shard, no two alike.
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

/// Nanoseconds of a claim for a share and its release, where one worker has room and the others have `cpu_milli`.
async fn shares(shards: u16, cpu_milli: u64) -> u64 {
    let scheduler = shared_pool(shards, |n| if n == 0 { 2_000 } else { cpu_milli }).await;
    let mut took = Vec::new();
    for n in 0..5_000 {
        let start = Instant::now();
        let taken = scheduler.claim(share(n)).await.expect("there is room");
        scheduler.release(&taken.claim.id, taken.claim.fence).await.expect("it is held");
        took.push(start.elapsed().as_nanos() as u64);
    }
    took.sort_unstable();
    scheduler.stop().await;
    took[took.len() / 2]
}

/// Nanoseconds of a claim for a share that is refused, for all that every worker has is held.
async fn refused_shares(shards: u16) -> u64 {
    let scheduler = shared_pool(shards, |_| 1_000).await;
    let held = SHARED_WORKERS as usize * usize::from(shards);
    for n in 0..held {
        scheduler.claim(share(n)).await.expect("there is room");
    }
    let mut took = Vec::new();
    for n in held..held + 5_000 {
        let start = Instant::now();
        let refused = scheduler.claim(share(n)).await;
        took.push(start.elapsed().as_nanos() as u64);
        assert!(matches!(refused, Err(RequestError::Exhausted(_))), "{refused:?}");
    }
    took.sort_unstable();
    scheduler.stop().await;
    took[took.len() / 2]
}

/// Prints one row of figures for each scenario.
pub fn print(runtime: &tokio::runtime::Runtime) {
    println!("ns, workers or claims of a shard: {WORKERS:?}");
    row("pick, no worker ends (Lifo)", WORKERS.into_iter().map(pick_endless));
    for policy in [PlacementPolicy::Lifo, PlacementPolicy::Random, PlacementPolicy::BestFit] {
        let what = format!("pick, all workers but one end too soon ({policy:?})");
        row(&what, WORKERS.into_iter().map(|workers| pick_lasting_one(policy, workers)));
    }
    row("pick, every second worker ends too soon (Random)", WORKERS.into_iter().map(pick_lasting_half));
    row("list of claims that has none, one run", WORKERS.into_iter().map(filtered));
    row("100 workers that were idle for longest", WORKERS.into_iter().map(idle_longest));
    println!("ns, shards of a pool: {SHARDS:?}");
    let pair = |cpu_milli| SHARDS.into_iter().map(move |shards| runtime.block_on(shares(shards, cpu_milli)));
    row("share taken and given back, room everywhere", pair(8_000));
    row("share taken and given back, room in one shard", pair(500));
    row("share refused, room nowhere", SHARDS.into_iter().map(|shards| runtime.block_on(refused_shares(shards))));
}
