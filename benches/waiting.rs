//! Queued claims: how soon a release wakes the right one of 100,000, the memory of each, how late the last one is
//! rejected under load, the cost of a quota, and how ten tenants share a pool when one sends a hundred times as much
//! as the others. Prints the figures in docs/BENCHMARKS.md; `-- wake bytes contention deadline quota fairness`
//! selects some, `plot=FILE.svg` draws the last.

#[allow(dead_code, unused_imports, reason = "shared with the harness, which uses all of it")]
#[path = "../src/load/charts/mod.rs"]
mod charts;
#[path = "fleet/resident.rs"]
mod resident;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use hotpool::admission::key::PendingClaim;
use hotpool::admission::queue::{QueuedClaim, WaitState};
use hotpool::admission::tenant::{ChargeRank, TenantDirectory};
use hotpool::environment::Clock;
use hotpool::model::claim_request::PoolChoice;
use hotpool::model::{AckLevel, ClaimId, ClaimRequest, Fence, PoolName, PoolSpec, Quota, WorkerId, WorkerSpec};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};
use hotpool::shard::ShardOutcome;
use tokio::sync::mpsc;

use self::charts::{
    AxisUnit, ChartAxis, ChartSeries, ChartSize, ChartTone, LineChart, LineStroke, side_by_side, standalone,
};
use self::resident::resident_bytes;

/// Allocator that sums up the live bytes while counting is on.
struct CountingAllocator;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: isize) {
    if IS_COUNTING.load(Ordering::Relaxed) {
        LIVE_BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is forwarded unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: guaranteed by the caller.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: guaranteed by the caller.
        unsafe { mimalloc::MiMalloc.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: guaranteed by the caller.
        unsafe { mimalloc::MiMalloc.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const WAITERS: usize = 100_000;

fn pool() -> PoolName {
    PoolName::new("bench", "hot").expect("a name")
}

fn queueing_request(tenant: &str, key: &str, wait_ms: u64) -> ClaimRequest {
    let id = ClaimId::new("bench", tenant, key).expect("a name");
    ClaimRequest { reserve_ms: Some(0), wait_ms, ..ClaimRequest::new(id, pool()) }
}

async fn scheduler(clock: Clock, shards: u16, workers: usize) -> Scheduler {
    let scheduler = Scheduler::with_clock(
        Arc::new(MemoryStore),
        SchedulerSettings { store_wait_ms: 60_000, ..SchedulerSettings::default() },
        clock,
    );
    scheduler.start().await.expect("starts");
    let spec = PoolSpec {
        shards,
        ack: AckLevel::Memory,
        waiters_max: 1_000_000,
        waiters_tenant_max: 1_000_000,
        ..PoolSpec::default()
    };
    scheduler.put_pool(pool(), spec).await.expect("a pool");
    let specs = (0..workers).map(|n| WorkerSpec::with_id(WorkerId::new(&format!("worker-{n:04}")).expect("a name")));
    let outcomes = scheduler.register_batch(&pool(), specs.map(Into::into).collect()).await.expect("a pool");
    assert!(outcomes.iter().all(Result::is_ok));
    scheduler
}

async fn wait_until_queued(scheduler: &Scheduler, waiters: usize) {
    while scheduler.waiting(&pool()) < waiters {
        tokio::task::yield_now().await;
    }
}

/// Latency from the call of a release until the claim that it wakes returns in its own task.
async fn wake() {
    let scheduler = scheduler(Clock::system(), 16, 16).await;
    let mut held = Vec::new();
    for n in 0..16 {
        held.push(scheduler.claim(queueing_request("first", &format!("{n}"), 0)).await.expect("capacity").claim);
    }
    let (grants, mut received) = mpsc::unbounded_channel();
    for n in 0..WAITERS {
        let (scheduler, grants) = (scheduler.clone(), grants.clone());
        tokio::spawn(async move {
            let tenant = format!("t{}", n % 10);
            if let Ok(result) = scheduler.claim(queueing_request(&tenant, &format!("{n}"), 3_600_000)).await {
                let _ = grants.send((Instant::now(), result.claim));
            }
        });
    }
    wait_until_queued(&scheduler, WAITERS).await;
    let mut latency = Histogram::<u64>::new(3).expect("a histogram");
    for _ in 0..20_000 {
        let next = held.remove(0);
        let start = Instant::now();
        scheduler.release(&next.id, next.fence).await.expect("held");
        let (at, claim) = received.recv().await.expect("one is woken");
        latency.record((at - start).as_nanos() as u64).expect("within bounds");
        held.push(claim);
    }
    let us = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "wake, {} queued: p50 {:.1} us, p99 {:.1} us, max {:.1} us",
        WAITERS,
        us(0.5),
        us(0.99),
        latency.max() as f64 / 1e3
    );
}

/// Memory per queued claim in the service. The claims come in batches, so that no task exists for each; memory of the
/// batch's caller is subtracted.
async fn bytes() {
    const BATCH: usize = 10_000;
    let scheduler = scheduler(Clock::system(), 16, 0).await;
    let before = resident_bytes();
    IS_COUNTING.store(true, Ordering::Relaxed);
    for batch in 0..WAITERS / BATCH {
        let scheduler = scheduler.clone();
        let request = move |n| queueing_request(&format!("t{batch}"), &format!("key-{n:06}"), 3_600_000);
        tokio::spawn(async move { scheduler.claim_batch((0..BATCH).map(request).collect()).await });
    }
    wait_until_queued(&scheduler, WAITERS).await;
    let live = LIVE_BYTES.load(Ordering::Relaxed).unsigned_abs();
    IS_COUNTING.store(false, Ordering::Relaxed);
    let callers = size_of::<Option<ShardOutcome>>() + size_of::<ClaimId>() + size_of::<PoolChoice>();
    println!(
        "bytes per queued claim: {} allocated, {callers} of them for its caller; {} resident",
        live / WAITERS,
        (resident_bytes() - before) / WAITERS
    );
    let [item, wait, queued] = [size_of::<PendingClaim>(), size_of::<WaitState>(), size_of::<QueuedClaim>()];
    println!("  a pending claim {item}, its wait state {wait}, its queue entry {queued}");
}

/// Wait for the lock of one queue, and grants per second, while threads claim, wait and release.
fn contention(threads: usize) {
    const CALLERS: usize = 1_024;
    const LASTS: Duration = Duration::from_secs(3);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let scheduler = runtime.block_on(scheduler(Clock::system(), 64, 64));
    let queue = scheduler.inject_pool(&pool()).expect("a pool");
    let (end, grants) = (Instant::now() + LASTS, AtomicU64::new(0));
    let mut waits = Histogram::<u64>::new(3).expect("a histogram");
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (scheduler, grants) = (&scheduler, &grants);
            scope.spawn(move || {
                let task = async |task: usize| {
                    let tenant = format!("t{thread}");
                    while Instant::now() < end {
                        let request = queueing_request(&tenant, &format!("{thread}-{task}"), 1_000);
                        let Ok(result) = scheduler.claim(request).await else { continue };
                        tokio::task::yield_now().await;
                        scheduler.release(&result.claim.id, result.claim.fence).await.expect("held");
                        grants.fetch_add(1, Ordering::Relaxed);
                    }
                };
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(futures::future::join_all((0..CALLERS / threads).map(task)));
            });
        }
        while Instant::now() < end {
            let start = Instant::now();
            drop(queue.wait_queue.lock());
            waits.record(start.elapsed().as_nanos() as u64).expect("within bounds");
            std::thread::sleep(Duration::from_micros(50));
        }
    });
    let us = |quantile: f64| waits.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "queue under {threads} threads with {CALLERS} callers, 64 workers: {:.2} M grants/s; its lock: p50 {:.1} us, p99 {:.1} us, \
         longest {:.0} us, {} samples",
        grants.load(Ordering::Relaxed) as f64 / LASTS.as_secs_f64() / 1e6,
        us(0.5),
        us(0.99),
        waits.max() as f64 / 1e3,
        waits.len()
    );
}

/// Lateness of rejections at the deadline, while claims and releases saturate another pool.
async fn deadline() {
    let scheduler = scheduler(Clock::system(), 16, 0).await;
    let other = PoolName::new("bench", "other").expect("a name");
    scheduler.put_pool(other.clone(), PoolSpec { ack: AckLevel::Memory, ..PoolSpec::default() }).await.expect("a pool");
    for n in 0..64 {
        let spec = WorkerSpec::with_id(WorkerId::new(&format!("w{n}")).expect("a name"));
        scheduler.register(&other, spec).await.expect("a pool");
    }
    let end = Instant::now() + Duration::from_secs(6);
    let load: Vec<_> = (0..8)
        .map(|task| {
            let (scheduler, other) = (scheduler.clone(), other.clone());
            tokio::spawn(async move {
                let mut pairs = 0_u64;
                while Instant::now() < end {
                    let id = ClaimId::new("bench", "load", &format!("{task}")).expect("a name");
                    let result = scheduler.claim(ClaimRequest::new(id, other.clone())).await.expect("capacity");
                    scheduler.release(&result.claim.id, result.claim.fence).await.expect("held");
                    pairs += 1;
                    // Yield as between two requests of a connection.
                    tokio::task::yield_now().await;
                }
                pairs
            })
        })
        .collect();
    let queued_claims: Vec<_> = (0..20_000_u64)
        .map(|n| {
            let scheduler = scheduler.clone();
            tokio::spawn(async move {
                let wait_ms = 1_000 + (n * 7_919) % 3_000;
                let start = Instant::now();
                let outcome = scheduler.claim(queueing_request("t", &format!("{n}"), wait_ms)).await;
                assert!(outcome.is_err());
                start.elapsed().as_secs_f64() * 1e3 - wait_ms as f64
            })
        })
        .collect();
    let mut lateness = Vec::new();
    for wait in queued_claims {
        lateness.push(wait.await.expect("no panic"));
    }
    let mut pairs = 0;
    for task in load {
        pairs += task.await.expect("no panic");
    }
    lateness.sort_by(f64::total_cmp);
    let at = |quantile: f64| lateness[((lateness.len() - 1) as f64 * quantile) as usize];
    println!(
        "deadlines of 20,000 claims at {:.2} M pairs/s: earliest {:.1} ms, p50 {:.1} ms, p99 {:.1} ms, latest {:.1} ms late",
        pairs as f64 / 6e6,
        at(0.0),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// Cost of counting a claim, and of comparing it with a quota.
fn quota() {
    const ROUNDS: u32 = 5_000_000;
    let id = ClaimId::new("bench", "default", "key").expect("a name");
    let tenants = TenantDirectory::default();
    let newcomer = ChargeRank { priority: 0, arrival: None };
    for quota in [None, Some(Quota { claims: Some(1_000), cpu_milli: Some(1_000), ..Quota::default() })] {
        let named = if quota.is_some() { "with a quota" } else { "without a quota" };
        tenants.set_quota("bench/default", quota);
        let start = Instant::now();
        for _ in 0..ROUNDS {
            drop(std::hint::black_box(tenants.try_charge(&id, None, 0, newcomer)).expect("within the quota"));
        }
        println!(
            "charge and release one claim, {named}: {:.0} ns",
            start.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
        );
    }
}

/// Whether the simulated tenants claim under tenants of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TenantIdentity {
    Separate,
    Common,
}

const TENANTS: usize = 10;
const STEP_MS: u64 = 20;
const HOLD_MS: u64 = 1_000;
const STEPS: u64 = 1_000;

/// Workers held by each tenant at each step.
async fn share(identity: TenantIdentity) -> Vec<[usize; TENANTS]> {
    let clock = Clock::manual();
    let scheduler = scheduler(clock.clone(), 4, 100).await;
    let (grants, mut received) = mpsc::unbounded_channel::<(usize, ClaimId, Fence)>();
    let mut held: Vec<(u64, usize, ClaimId, Fence)> = Vec::new();
    let (mut sent, mut steps) = (0_u64, Vec::new());
    for step in 0..STEPS {
        let now_ms = step * STEP_MS;
        for tenant in 0..TENANTS {
            // Ten claims a second each, a tenth of the pool; the first tenant sends a hundred times as much.
            let claims = if tenant == 0 { 1_000 * STEP_MS / 1_000 } else { u64::from(now_ms.is_multiple_of(100)) };
            for _ in 0..claims {
                sent += 1;
                let request = queueing_request(
                    &format!("t{}", if identity == TenantIdentity::Separate { tenant } else { 0 }),
                    &format!("{tenant}-{sent}"),
                    3_600_000,
                );
                let (scheduler, grants) = (scheduler.clone(), grants.clone());
                tokio::spawn(async move {
                    if let Ok(result) = scheduler.claim(request).await {
                        let _ = grants.send((tenant, result.claim.id, result.claim.fence));
                    }
                });
            }
        }
        clock.advance(Duration::from_millis(STEP_MS));
        clock.tick();
        let due: Vec<_> = held.extract_if(.., |(until, ..)| *until <= now_ms).collect();
        for (_, _, id, fence) in due {
            scheduler.release(&id, fence).await.expect("held");
        }
        for _ in 0..64 {
            tokio::task::yield_now().await;
            while let Ok((tenant, id, fence)) = received.try_recv() {
                held.push((now_ms + HOLD_MS, tenant, id, fence));
            }
        }
        let mut counts = [0; TENANTS];
        held.iter().for_each(|(_, tenant, ..)| counts[*tenant] += 1);
        steps.push(counts);
    }
    steps
}

/// Jain's index of the average holdings after warm-up: 1 is equal, 0.1 gives everything to one (Jain, Chiu and Hawe,
/// 1984).
fn jain(steps: &[[usize; TENANTS]]) -> (f64, [f64; TENANTS]) {
    let steps = &steps[steps.len() / 4..];
    let mean: [f64; TENANTS] =
        std::array::from_fn(|tenant| steps.iter().map(|step| step[tenant] as f64).sum::<f64>() / steps.len() as f64);
    let (sum, squares) = (mean.iter().sum::<f64>(), mean.iter().map(|held| held * held).sum::<f64>());
    (sum * sum / (TENANTS as f64 * squares), mean)
}

fn plot(file: &str, by_share: &[[usize; TENANTS]], arrival: &[[usize; TENANTS]]) -> std::io::Result<()> {
    let chart = |(title, steps): (&str, &[[usize; TENANTS]])| {
        let second = |step: usize| step as f64 * STEP_MS as f64 / 1e3;
        let line = |tenant: usize| {
            let (name, tone, stroke) = match tenant {
                0 => ("1,000/s", ChartTone::Resp, LineStroke::Solid),
                1 => ("nine, 10/s", ChartTone::Http, LineStroke::Thin),
                _ => ("", ChartTone::Http, LineStroke::Thin),
            };
            let points = steps.iter().enumerate().step_by(5).map(|(step, held)| (second(step), held[tenant] as f64));
            ChartSeries { name: name.into(), tone, stroke, points: points.collect() }
        };
        let chart = LineChart {
            title: title.into(),
            x: ChartAxis::from_zero("seconds", AxisUnit::Number, [second(STEPS as usize)].into_iter()),
            y: ChartAxis::from_zero("workers held, of 100", AxisUnit::Number, [100.0].into_iter()),
            series: (0..TENANTS).rev().map(line).collect(),
            marks: Vec::new(),
            size: ChartSize::SMALL,
        };
        chart.draw()
    };
    let charts = [("Ten tenants by share", by_share), ("By arrival", arrival)].map(chart);
    std::fs::write(file, standalone(&side_by_side(&charts)))
}

async fn fairness(file: Option<&str>) {
    let (by_share, arrival) = (share(TenantIdentity::Separate).await, share(TenantIdentity::Common).await);
    for (name, steps) in [("by share", &by_share), ("by arrival", &arrival)] {
        let (index, mean) = jain(steps);
        let others = mean[1..].iter().sum::<f64>() / (TENANTS - 1) as f64;
        println!(
            "fairness {name}: Jain's index {index:.3}; held by the bursting tenant {:.1}, by each other tenant {others:.1}",
            mean[0]
        );
    }
    if let Some(file) = file {
        plot(file, &by_share, &arrival).expect("can be drawn");
    }
}

fn main() {
    let options: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let file = options.iter().find_map(|arg| arg.strip_prefix("plot="));
    let named: Vec<&String> = options.iter().filter(|arg| !arg.contains('=')).collect();
    let is_selected = |name: &str| named.is_empty() || named.iter().any(|option| *option == name);
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if is_selected("quota") {
        quota();
    }
    if is_selected("bytes") {
        runtime().block_on(bytes());
    }
    if is_selected("wake") {
        runtime().block_on(wake());
    }
    if is_selected("contention") {
        [1, 2, 4, 16].into_iter().for_each(contention);
    }
    if is_selected("deadline") {
        runtime().block_on(deadline());
    }
    if is_selected("fairness") {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(fairness(file));
    }
}
