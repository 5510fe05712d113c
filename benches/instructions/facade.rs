//! Calls of the facade in process, each polled by the benchmark itself on a clock that stands still: no task of the
//! scheduler runs in between, so the counts contain nothing but the calls.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hotpool::environment::Clock;
use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::RequestError;
use hotpool::model::{
    AckLevel, ClaimId, ClaimRequest, ClaimResult, ClaimSpec, Fence, PoolMode, PoolName, PoolSpec, ResourceRequirements,
    WorkerCapacity, WorkerId, WorkerSpec,
};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};
use tokio::runtime::{Builder, Runtime};

use crate::hot_paths::RUN;

/// Idle workers of the pool, over its default number of shards.
const WORKERS: usize = 256;
/// ClaimPairs before the measured ones: more than a thread times without sampling, and enough to grow every table.
const WARM_UP_PAIRS: usize = 512;
/// Tenants of the claims that wait.
const TENANTS: u64 = 100;

/// Scheduler on the memory store, and the runtime whose tasks stand still.
pub struct BenchScheduler {
    pub scheduler: Scheduler,
    runtime: Runtime,
}

impl BenchScheduler {
    fn start() -> Self {
        hotpool::collections::seed_hashes(0);
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let scheduler = Scheduler::with_clock(Arc::new(MemoryStore), SchedulerSettings::default(), Clock::manual());
        runtime.block_on(scheduler.start()).expect("memory: always starts");
        Self { scheduler, runtime }
    }

    fn put_pool(&self, pool: &PoolName, spec: PoolSpec, workers: impl Iterator<Item = WorkerSpec>) {
        let workers = workers.map(Into::into).collect();
        let registered = self.runtime.block_on(async {
            self.scheduler.put_pool(pool.clone(), spec).await.expect("a pool");
            self.scheduler.register_batch(pool, workers).await.expect("a pool")
        });
        assert!(registered.iter().all(Result::is_ok));
    }

    /// Creates a scheduler with one pool of idle workers.
    pub fn with_idle_workers(workers: usize) -> Self {
        let facade = Self::start();
        let specs = (0..workers).map(|n| worker(&format!("w{n}"), 0));
        facade.put_pool(&pool("pool"), PoolSpec { ack: AckLevel::Memory, ..PoolSpec::default() }, specs);
        facade
    }

    fn claim(&self, request: ClaimRequest) -> ClaimResult {
        decided(self.scheduler.claim(request)).expect("capacity")
    }

    fn release(&self, id: &ClaimId, fence: Fence) {
        decided(self.scheduler.release(id, fence)).expect("held");
    }
}

/// Result of a call that is decided in the caller, because the shard is idle.
fn decided<T>(call: impl Future<Output = T>) -> T {
    call.now_or_never().expect("an idle shard decides in the caller")
}

fn pool(name: &str) -> PoolName {
    PoolName::new("bench", name).expect("a name")
}

fn worker(id: &str, cpu_milli: u64) -> WorkerSpec {
    let capacity = WorkerCapacity { cpu_milli, ..WorkerCapacity::default() };
    WorkerSpec { capacity, ..WorkerSpec::with_id(WorkerId::new(id).expect("a name")) }
}

fn request(pool: &PoolName, tenant: &str, key: &str) -> ClaimRequest {
    let id = ClaimId::new("bench", tenant, key).expect("a name");
    ClaimRequest { reserve_ms: Some(0), ..ClaimRequest::new(id, pool.clone()) }
}

fn requests() -> Vec<ClaimRequest> {
    (0..RUN).map(|n| request(&pool("pool"), "default", &format!("key-{n:012}"))).collect()
}

/// Scheduler with idle workers, and the claims to make.
pub struct ClaimPairs {
    facade: BenchScheduler,
    requests: Vec<ClaimRequest>,
}

/// Prepares pairs to be claimed and released one after the other.
pub fn pairs() -> ClaimPairs {
    let facade = BenchScheduler::with_idle_workers(WORKERS);
    let mut pairs = ClaimPairs { facade, requests: Vec::new() };
    for _ in 0..WARM_UP_PAIRS / RUN {
        pairs.requests = requests();
        pairs = awaited_pair(pairs);
    }
    pairs.requests = requests();
    pairs
}

/// Claims and releases one after the other, each awaited.
pub fn awaited_pair(mut pairs: ClaimPairs) -> ClaimPairs {
    for request in pairs.requests.drain(..) {
        let result = pairs.facade.claim(request);
        pairs.facade.release(&result.claim.id, result.claim.fence);
    }
    pairs
}

/// Prepares pairs to be claimed and released as a batch.
pub fn batches() -> ClaimPairs {
    let mut pairs = pairs();
    for _ in 0..WARM_UP_PAIRS / RUN {
        pairs.requests = requests();
        pairs = batch_pair(pairs);
    }
    pairs.requests = requests();
    pairs
}

/// Claims all as one batch, and releases all as one batch.
pub fn batch_pair(mut pairs: ClaimPairs) -> ClaimPairs {
    let scheduler = &pairs.facade.scheduler;
    let claimed = decided(scheduler.claim_batch(std::mem::take(&mut pairs.requests)));
    let held = claimed.into_iter().map(|result| result.map(|result| (result.claim.id, result.claim.fence)));
    let released = decided(scheduler.release_batch(held.collect::<Result<_, _>>().expect("capacity")));
    assert!(released.iter().all(Result::is_ok));
    pairs
}

/// Claim that waits for capacity.
type WaitingClaim = BoxFuture<'static, Result<ClaimResult, RequestError>>;

fn wait(facade: &BenchScheduler, request: ClaimRequest) -> WaitingClaim {
    let scheduler = facade.scheduler.clone();
    let request = ClaimRequest { wait_ms: 3_600_000, ..request };
    let mut call: WaitingClaim = Box::pin(async move { scheduler.claim(request).await });
    assert!(poll(&mut call).is_none(), "no capacity is free");
    call
}

fn poll(call: &mut WaitingClaim) -> Option<Result<ClaimResult, RequestError>> {
    match Pin::new(call).poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(result) => Some(result),
        std::task::Poll::Pending => None,
    }
}

/// Pools of one worker each, whose holder is about to release it, and a claim that waits for it.
pub struct WorkerHandovers {
    facade: BenchScheduler,
    held: Vec<(ClaimId, Fence)>,
    waiting: Vec<WaitingClaim>,
    granted: Vec<ClaimResult>,
}

/// Prepares as many pools as there are releases.
pub fn handovers() -> WorkerHandovers {
    let facade = BenchScheduler::start();
    let (mut held, mut waiting) = (Vec::new(), Vec::new());
    for n in 0..RUN {
        let pool = pool(&format!("pool-{n}"));
        let spec = PoolSpec { ack: AckLevel::Memory, shards: 1, ..PoolSpec::default() };
        facade.put_pool(&pool, spec, std::iter::once(worker("w", 0)));
        let holder = facade.claim(request(&pool, "default", &format!("held-{n}"))).claim;
        held.push((holder.id, holder.fence));
        waiting.push(wait(&facade, request(&pool, "default", &format!("waiting-{n}"))));
    }
    WorkerHandovers { facade, held, waiting, granted: Vec::with_capacity(RUN) }
}

/// Releases workers, each of which the claim that waits for it is granted.
pub fn release_one_waiting(mut handovers: WorkerHandovers) -> WorkerHandovers {
    for ((id, fence), call) in handovers.held.iter().zip(&mut handovers.waiting) {
        handovers.facade.release(id, *fence);
        let granted = poll(call).expect("the release decides the claim that waits").expect("the worker is free");
        handovers.granted.push(granted);
    }
    handovers
}

/// Shared pool with a claim to release, and claims that wait for more than it frees.
pub struct UnplaceableClaims {
    facade: BenchScheduler,
    held: (ClaimId, Fence),
    _waiting: Vec<WaitingClaim>,
}

/// Prepares a claim that waits for each of `classes` distinct demands. All of them fit the large worker, which stays
/// taken, and none fits the small one.
pub fn unplaceable(classes: u64) -> UnplaceableClaims {
    let facade = BenchScheduler::start();
    let pool = pool("pool");
    let spec = PoolSpec { ack: AckLevel::Memory, shards: 1, mode: PoolMode::Shared, ..PoolSpec::default() };
    facade.put_pool(&pool, spec, [worker("small", 1_000), worker("large", 100_000)].into_iter());
    let sized = |tenant: &str, key: &str, cpu_milli| {
        let resources = ResourceRequirements { cpu_milli, ..ResourceRequirements::default() };
        let spec = ClaimSpec { resources, ..ClaimSpec::default() };
        let constraints = Some(Box::new(ClaimConstraints { spec, ..ClaimConstraints::default() }));
        ClaimRequest { constraints, ..request(&pool, tenant, key) }
    };
    let large = facade.claim(sized("default", "large", 100_000)).claim;
    let small = facade.claim(sized("default", "small", 1_000)).claim;
    assert_ne!(large.worker, small.worker);
    let waiting =
        (0..classes).map(|n| wait(&facade, sized(&format!("tenant-{}", n % TENANTS), &format!("key-{n}"), 2_000 + n)));
    let waiting = waiting.collect();
    UnplaceableClaims { held: (small.id, small.fence), facade, _waiting: waiting }
}

/// Releases a worker that none of the waiting claims fits.
pub fn match_classes(unplaceable: UnplaceableClaims) -> UnplaceableClaims {
    let (id, fence) = &unplaceable.held;
    unplaceable.facade.release(id, *fence);
    unplaceable
}
