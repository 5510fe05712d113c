//! Scheduler with its own time and a store that the test controls.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hotpool::admission::key::KeyLookup;
use hotpool::environment::Clock;
use hotpool::metrics::write_pools;
use hotpool::model::request_error::{ExhaustionReason, RequestError, UnavailableReason};
use hotpool::model::{
    AckLevel, ClaimFilter, ClaimId, ClaimRequest, ClaimResult, ClaimState, PoolName, PoolSpec, ShardStatus, WorkerId,
    WorkerSpec,
};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};
use hotpool::shard::PausedShard;
use tokio::task::JoinHandle;

use crate::gated_store::GatedStore;
use crate::store_location::StoreLocation;

/// Time that a durable reply waits for the store, in engine milliseconds.
pub const WAIT_MS: u64 = 5_000;
/// Real time after which a wait has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Step below the most that one tick moves the engine's time.
const STEP_MS: u64 = 200;

pub type Claimed = Result<ClaimResult, RequestError>;

pub const FULL: RequestError = RequestError::Exhausted(ExhaustionReason::Pool);
pub const LOADING: RequestError = RequestError::Unavailable(UnavailableReason::Loading);
pub const STORE: RequestError = RequestError::Unavailable(UnavailableReason::Store);

pub fn id(key: &str) -> ClaimId {
    ClaimId::new("ns", "default", key).unwrap()
}

pub fn name(pool: &str) -> PoolName {
    PoolName::new("ns", pool).unwrap()
}

pub fn request(pool: &str, key: &str) -> ClaimRequest {
    ClaimRequest::new(id(key), name(pool))
}

pub fn worker(id: &str) -> WorkerSpec {
    WorkerSpec::with_id(WorkerId::new(id).unwrap())
}

/// First `n` of `prefix0`, `prefix1`, ... that belong to this shard.
pub fn ids_on(shard: u16, shards: u16, n: usize, prefix: &str) -> Vec<String> {
    let all = (0..).map(|i| format!("{prefix}{i}"));
    all.filter(|id| WorkerId::new(id).unwrap().shard(shards) == shard).take(n).collect()
}

pub fn spec(shards: u16, ack: AckLevel) -> PoolSpec {
    PoolSpec { shards, ack, ..PoolSpec::default() }
}

/// Worker in comparable form: id, incarnation, version, and the key, fence and activity of its claim.
pub type Row = (String, u64, u64, Option<(String, u64, bool)>);

/// Shards that are paused until this is dropped.
pub struct Busy(Vec<PausedShard>);

impl Busy {
    /// Lets the shards run once this many requests are in their mailboxes.
    pub async fn until_queued(self, requests: usize) {
        until("all requests are in the mailboxes", async || self.depth() == requests).await;
    }

    /// Lets the shards run once at least this many requests are in their mailboxes.
    pub async fn until_queued_at_least(self, requests: usize) {
        until("all requests are in the mailboxes", async || self.depth() >= requests).await;
    }

    /// Number of requests in their mailboxes.
    pub fn depth(&self) -> usize {
        self.0.iter().map(PausedShard::depth).sum()
    }
}

pub struct World {
    pub s: Scheduler,
    pub clock: Clock,
    pub gate: Option<Arc<GatedStore>>,
    _location: Option<Arc<StoreLocation>>,
}

impl World {
    pub async fn on_memory() -> Self {
        let clock = Clock::manual();
        let settings = SchedulerSettings { store_wait_ms: WAIT_MS, ..SchedulerSettings::default() };
        let s = Scheduler::with_clock(Arc::new(MemoryStore), settings, clock.clone());
        s.start().await.unwrap();
        Self { s, clock, gate: None, _location: None }
    }

    /// Creates a world on an empty store behind a gate.
    pub async fn on_store() -> Self {
        Self::on(StoreLocation::empty()).await
    }

    /// Creates a world on an existing store.
    pub async fn on(location: StoreLocation) -> Self {
        let world = Self::closed(location);
        world.s.start().await.unwrap();
        world
    }

    /// Creates a world that is not started.
    pub fn closed(location: StoreLocation) -> Self {
        Self::closed_with(location, WAIT_MS)
    }

    /// Creates a world that is not started, in which changes of pools and quotas wait for the store for
    /// `store_wait_ms` of real time.
    pub fn closed_with(location: StoreLocation, store_wait_ms: u64) -> Self {
        let clock = Clock::manual();
        let location = Arc::new(location);
        let gate = Arc::new(GatedStore::open(&location));
        let settings = SchedulerSettings { store_wait_ms, ..SchedulerSettings::default() };
        let s = Scheduler::with_clock(Arc::<GatedStore>::clone(&gate), settings, clock.clone());
        Self { s, clock, gate: Some(gate), _location: Some(location) }
    }

    pub fn gate(&self) -> &Arc<GatedStore> {
        self.gate.as_ref().expect("a world on a store")
    }

    /// Series of the world's pools, as a scrape shows them.
    pub fn scrape(&self) -> String {
        let mut page = Vec::new();
        write_pools(&self.s.observe(), &mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    /// World on a copy of what is stored now: what `kill -9` and a restart would find.
    pub async fn crashed(&self) -> Self {
        Self::on(self.gate().copy().await).await
    }

    /// World on the same store after a clean stop.
    pub async fn restarted(self) -> Self {
        assert!(self.s.stop().await, "everything is stored");
        Self::on(self.gate().copy().await).await
    }

    /// Creates a pool with this specification and these workers.
    pub async fn pool(&self, pool: &str, spec: PoolSpec, workers: &[&str]) {
        let (created, _) = self.s.put_pool(name(pool), spec).await.unwrap();
        assert!(created);
        self.add(pool, workers).await;
    }

    pub async fn add(&self, pool: &str, workers: &[&str]) {
        let specs = workers.iter().map(|id| worker(id).into()).collect();
        for registered in self.s.register_batch(&name(pool), specs).await.unwrap() {
            assert!(registered.unwrap().created);
        }
    }

    /// Pauses the pool's shards: requests stay in their mailboxes meanwhile.
    pub async fn busy(&self, pool: &str) -> Busy {
        let shards = self.s.get_pool(&name(pool)).await.unwrap().shards.len() as u16;
        let mut seized = Vec::new();
        for shard in 0..shards {
            seized.push(loop {
                match self.s.inject_busy(&name(pool), shard) {
                    Some(seized) => break seized,
                    None => tokio::task::yield_now().await,
                }
            });
        }
        Busy(seized)
    }

    pub async fn claim(&self, pool: &str, key: &str) -> Claimed {
        self.s.claim(request(pool, key)).await
    }

    /// Makes a claim and confirms it.
    pub async fn hold(&self, pool: &str, key: &str) -> u64 {
        let taken = self.claim(pool, key).await.unwrap();
        assert!(taken.created);
        self.s.confirm(&id(key), taken.claim.fence).await.unwrap().fence
    }

    /// Begins a call and lets it get as far as it can.
    pub async fn begin<T: Send + 'static>(
        &self,
        call: impl FnOnce(Scheduler) -> futures::future::BoxFuture<'static, T>,
    ) -> JoinHandle<T> {
        let begun = tokio::spawn(call(self.s.clone()));
        self.quiet().await;
        begun
    }

    pub async fn begin_claim(&self, pool: &str, key: &str) -> JoinHandle<Claimed> {
        self.begin_request(request(pool, key)).await
    }

    pub async fn begin_request(&self, request: ClaimRequest) -> JoinHandle<Claimed> {
        self.begin(|s| Box::pin(async move { s.claim(request).await })).await
    }

    /// Begins a call without waiting for the shards, which may be paused.
    pub fn begin_alone<F: Future<Output: Send> + Send + 'static>(
        &self,
        call: impl FnOnce(Scheduler) -> F,
    ) -> JoinHandle<F::Output> {
        tokio::spawn(call(self.s.clone()))
    }

    /// Begins a claim without waiting for the shards, which may be paused.
    pub fn begin_request_alone(&self, request: ClaimRequest) -> JoinHandle<Claimed> {
        self.begin_alone(|s| async move { s.claim(request).await })
    }

    pub async fn begin_release(&self, key: &str, fence: u64) -> JoinHandle<Result<(), RequestError>> {
        let id = id(key);
        self.begin(move |s| Box::pin(async move { s.release(&id, fence).await })).await
    }

    /// Lets everything run that can: each shard gets several requests, and replies after those before them.
    pub async fn quiet(&self) {
        for _ in 0..8 {
            self.s.list_pools(None, 100).await.unwrap();
            tokio::task::yield_now().await;
        }
    }

    /// Lets engine time pass, so that every shard notices.
    pub async fn pass(&self, ms: u64) {
        let mut left = ms;
        while left > 0 {
            let step = left.min(STEP_MS);
            self.clock.advance(Duration::from_millis(step));
            self.clock.tick();
            left -= step;
        }
        self.s.inject_queue_tick();
        self.quiet().await;
    }

    pub async fn shards(&self, pool: &str) -> Vec<ShardStatus> {
        self.s.get_pool(&name(pool)).await.unwrap().shards
    }

    /// Idle, busy and reserved workers in all shards.
    pub async fn counts(&self, pool: &str) -> (u64, u64, u64) {
        let shards = self.shards(pool).await;
        let sum = |of: fn(&ShardStatus) -> u64| shards.iter().map(of).sum();
        (sum(|shard| shard.idle), sum(|shard| shard.busy), sum(|shard| shard.reserved))
    }

    /// Every worker of the pool, in order of its id.
    pub async fn rows(&self, pool: &str) -> Vec<Row> {
        let (mut rows, mut token) = (Vec::new(), None::<String>);
        loop {
            let page = self.s.list_workers(&name(pool), token.as_deref(), 1_000).await.unwrap();
            rows.extend(page.items.into_iter().map(|worker| {
                let claim = worker.claims.first();
                let claim = claim.map(|c| (format!("{:?}", c.id), c.fence, c.state == ClaimState::Active));
                let spec = &worker.registration.spec;
                (spec.id.to_string(), spec.incarnation, worker.version, claim)
            }));
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        rows.sort_unstable();
        rows
    }

    /// All held claims, by key, with worker and fence.
    pub async fn held(&self) -> Vec<(String, String, u64)> {
        let page = self.s.list_claims(&ClaimFilter::default(), None, 1_000).await.unwrap();
        assert!(page.next.is_none(), "a small world");
        let mut held: Vec<_> = page
            .items
            .iter()
            .map(|claim| (claim.id.key().to_owned(), claim.worker.spec.id.to_string(), claim.fence))
            .collect();
        held.sort_unstable();
        held
    }

    pub fn is_vacant(&self, key: &str) -> bool {
        self.s.keys().lookup(&id(key)) == KeyLookup::Vacant
    }

    /// Checks that nothing is held, pending or remembered.
    pub async fn is_clean(&self) {
        until("the directory is empty", async || self.s.keys().is_empty()).await;
        assert_eq!(self.s.keys().pending_len(), 0);
    }

    /// Waits until the store has everything that was decided.
    pub async fn stored(&self, pool: &str) {
        until("the store has everything", async || {
            self.shards(pool).await.iter().all(|shard| shard.applied_seq == shard.seq)
        })
        .await;
    }
}

/// Waits for a condition that must come true by itself.
pub async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::task::yield_now().await;
    }
}

/// Result of a call that was begun.
pub async fn done<T: Debug>(begun: JoinHandle<T>) -> T {
    tokio::time::timeout(PATIENCE, begun).await.expect("an answer").expect("no panic")
}

/// Generator for tests that need many numbers from one seed (SplitMix64).
pub struct Seeded(pub u64);

impl Seeded {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
