//! What people do without Hotpool: claims made by the clients themselves, on a Redis server or cluster. Five ways, each as
//! its authors run it, under the same workload and the same checks as any other target.
//!
//! | way | in short |
//! |---|---|
//! | [`scan`] | read every worker, pick one, write it under its version |
//! | [`spop`] | pop a worker from a set of idle ones, write its record and the claim's |
//! | [`lock`] | take the pool's lock, read every worker, pick one, write it |
//! | [`batch`] | read every worker once for many claims, then lock and write each worker that is used once |
//! | [`lua`] | one script that pops, writes and records |
//!
//! **Records.** A worker's is `version free`: `free` is 1 or 0 where a claim takes the whole worker, else the slots that it
//! has left. A claim's is `fence worker slots`; its fence is the version under which the worker was written, so fences grow
//! per worker. All names hold the run's, so that they can be found and removed.
//!
//! **Round trips** are counted where they are made: a pipeline that is written at once is one. What a claim needed that was
//! refused counts too.

mod batch;
mod lock;
mod lua;
mod nodes;
mod rows;
mod scan;
mod spop;
mod url;

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use futures::{FutureExt as _, StreamExt as _};
use serde::Serialize;

use self::nodes::{BaselineConnections, BaselineNodes, BaselineSession};
pub use self::url::{BaselineKind, BaselineUrl};
use super::claim_input::{ClaimInput, PoolOccupancy, ReceivedGrant};
use super::grant_checker::worker_id;
use super::http_calls::target_error;
use super::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

/// How often a claim or a release is tried anew because somebody else was faster.
const ATTEMPTS_MAX: u32 = 256;
/// Workers that are written in one pipeline when they are registered.
const REGISTER_AT_ONCE: usize = 1_000;

/// Round trips that were made, and attempts that came to nothing.
#[derive(Debug, Default)]
struct RoundTripCounters {
    claims: AtomicU64,
    releases: AtomicU64,
    retries: AtomicU64,
}

/// What claims and releases cost in round trips.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, serde::Deserialize)]
pub struct RoundTripCounts {
    /// For claims, refused ones too.
    pub claims: u64,
    /// For releases.
    pub releases: u64,
    /// Attempts that came to nothing because somebody else was faster, or held the lock.
    pub retries: u64,
}

/// What all clients of a run share.
struct BaselineState {
    kind: BaselineKind,
    /// Most claims or workers of one request that are handled at the same time.
    concurrent: usize,
    nodes: BaselineNodes,
    /// Part of every name: what the keys of all clients of the run begin with.
    tag: String,
    /// Slots of a worker; 0: a claim takes it whole.
    slots: AtomicU32,
    trips: RoundTripCounters,
}

/// The pool of a run, kept in Redis.
pub struct BaselineTarget {
    base: Arc<BaselineState>,
    link: BaselineClient,
}

/// One client's way in. Whoever is under way has connections of its own, as optimistic locking demands; only scripts need
/// none.
pub struct BaselineClient {
    base: Arc<BaselineState>,
    shared: BaselineConnections,
    idle: Mutex<Vec<BaselineConnections>>,
}

impl BaselineState {
    fn worker_key(&self, id: &str) -> String {
        match self.kind {
            BaselineKind::Lua => format!("w:{{{}}}{id}", self.tag),
            _ => format!("w:{{{}.{id}}}", self.tag),
        }
    }

    fn claim_key(&self, key: &str) -> String {
        match self.kind {
            BaselineKind::Lua => format!("c:{{{}}}{key}", self.tag),
            _ => format!("c:{{{key}}}"),
        }
    }

    /// The set of idle workers.
    fn idle_key(&self) -> String {
        format!("idle:{{{}}}", self.tag)
    }

    /// What a worker that nothing holds has free.
    fn slots_per_worker(&self) -> u32 {
        self.slots.load(Ordering::Relaxed).max(1)
    }

    fn uses_idle_set(&self) -> bool {
        matches!(self.kind, BaselineKind::Spop | BaselineKind::Lua)
    }
}

impl BaselineTarget {
    /// Connects. Names of the run hold `tag`, and so do the keys of its claims.
    pub(super) async fn open(url: &BaselineUrl, tag: &str) -> Result<Self, TargetError> {
        let nodes = BaselineNodes::discover(&url.hosts).await?;
        let base = Arc::new(BaselineState {
            kind: url.kind,
            concurrent: url.concurrent,
            nodes,
            tag: tag.to_owned(),
            slots: AtomicU32::new(0),
            trips: RoundTripCounters::default(),
        });
        if base.kind == BaselineKind::Lua {
            lua::load(&base).await?;
        }
        let link = BaselineClient::new(Arc::clone(&base));
        Ok(Self { base, link })
    }

    /// Workers have so many slots, or are claimed whole if 0.
    pub(super) fn create(&self, slots: u32) -> Result<(), TargetError> {
        if slots > 0 && self.base.uses_idle_set() {
            let way = self.base.kind.scheme();
            return Err(target_error(
                format!("{way} gives whole workers, and this load asks for shares of them"),
                false,
            ));
        }
        self.base.slots.store(slots, Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn register(&self, workers: std::ops::Range<u32>) -> Result<(), TargetError> {
        let base = &*self.base;
        let mut session = BaselineSession::new(base, &self.link.shared);
        let row = format!("0 {}", base.slots_per_worker());
        let ids: Vec<String> = workers.map(worker_id).collect();
        for ids in ids.chunks(REGISTER_AT_ONCE) {
            let keys: Vec<String> = ids.iter().map(|id| base.worker_key(id)).collect();
            session.set_all(keys.iter().map(|key| (key.as_str(), row.as_str()))).await?;
            if base.uses_idle_set() {
                let set = base.idle_key();
                let mut words: Vec<&[u8]> = vec![b"SADD", set.as_bytes()];
                words.extend(ids.iter().map(|id| id.as_bytes()));
                session.execute(&set, &words).await?;
            }
        }
        Ok(())
    }

    pub(super) fn link(&self) -> BaselineClient {
        BaselineClient::new(Arc::clone(&self.base))
    }

    pub(super) async fn counts(&self) -> Result<PoolOccupancy, TargetError> {
        let base = &*self.base;
        let mut session = BaselineSession::new(base, &self.link.shared);
        let workers = rows::read_all(&mut session).await?;
        let total = workers.len() as u64;
        let mut idle = workers.iter().filter(|(_, row)| row.free == base.slots_per_worker()).count() as u64;
        if base.uses_idle_set() {
            let set = base.idle_key();
            let offered = session.execute(&set, &[b"SCARD", set.as_bytes()]).await?.number().unwrap_or(0);
            // A worker that is free and not offered is as lost as one that is held for ever.
            idle = idle.min(offered);
        }
        Ok(PoolOccupancy { total, idle, busy: total.saturating_sub(idle) })
    }

    pub(super) async fn claims(&self) -> Result<u64, TargetError> {
        let mut session = BaselineSession::new(&self.base, &self.link.shared);
        Ok(session.names(&format!("c:{{{}*", self.base.tag)).await?.len() as u64)
    }

    pub(super) async fn remove(&self) -> Result<(), TargetError> {
        let mut session = BaselineSession::new(&self.base, &self.link.shared);
        let names = session.names(&format!("*:{{{}*", self.base.tag)).await?;
        for names in names.chunks(REGISTER_AT_ONCE) {
            session.execute_each(names.iter().map(|name| vec!["UNLINK", name.as_str()])).await?;
        }
        Ok(())
    }

    pub(super) fn round_trips(&self) -> RoundTripCounts {
        let RoundTripCounters { claims, releases, retries } = &self.base.trips;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RoundTripCounts { claims: read(claims), releases: read(releases), retries: read(retries) }
    }
}

impl BaselineClient {
    fn new(base: Arc<BaselineState>) -> Self {
        let shared = BaselineConnections::new(&base.nodes, base.kind == BaselineKind::Lua);
        Self { base, shared, idle: Mutex::default() }
    }

    fn checkout(&self) -> BaselineConnections {
        let idle = self.idle.lock().pop();
        idle.unwrap_or_else(|| BaselineConnections::new(&self.base.nodes, false))
    }

    /// Nobody waits on it any more, nor watches anything.
    fn checkin(&self, lane: BaselineConnections) {
        self.idle.lock().push(lane);
    }

    pub(super) async fn claim(&self, ask: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        let base = &*self.base;
        if base.kind == BaselineKind::Lua {
            let granted = lua::claim(base, &self.shared, std::slice::from_ref(&ask)).await;
            return granted.into_iter().next().unwrap_or_else(|| Err(target_error("no answer".into(), true)));
        }
        if base.kind == BaselineKind::Batch {
            let granted = batch::claim(self, vec![ask]).await;
            return granted.into_iter().next().unwrap_or_else(|| Err(target_error("no answer".into(), true)));
        }
        let lane = self.checkout();
        let mut session = BaselineSession::new(base, &lane);
        let granted = match base.kind {
            BaselineKind::Scan => scan::claim(&mut session, ask).await,
            BaselineKind::Spop => spop::claim(&mut session, ask).await,
            BaselineKind::Lock => lock::claim(&mut session, ask).await,
            BaselineKind::Batch | BaselineKind::Lua => unreachable!("handled above"),
        };
        session.add_round_trips(&base.trips.claims);
        // One whose connection is in doubt may still watch something: it goes.
        if !matches!(granted, Err(TargetError::Failed { .. })) {
            self.checkin(lane);
        }
        granted
    }

    pub(super) async fn claim_batch(&self, asks: Vec<ClaimInput>) -> Vec<Result<ReceivedGrant, TargetError>> {
        match self.base.kind {
            BaselineKind::Batch => batch::claim(self, asks).await,
            BaselineKind::Lua => lua::claim(&self.base, &self.shared, &asks).await,
            _ => {
                let claims: Vec<_> = asks.into_iter().map(|ask| self.claim(ask).boxed()).collect();
                futures::stream::iter(claims).buffered(self.base.concurrent).collect().await
            }
        }
    }

    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        let released = self.release_batch(std::slice::from_ref(&(id.clone(), fence))).await;
        released.into_iter().next().unwrap_or_else(|| Err(target_error("no answer".into(), true)))
    }

    async fn release_one(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        let base = &*self.base;
        let lane = self.checkout();
        let mut session = BaselineSession::new(base, &lane);
        let released = match base.kind {
            BaselineKind::Scan => scan::release(&mut session, id, fence).await,
            BaselineKind::Spop => spop::release(&mut session, id, fence).await,
            BaselineKind::Lock => lock::release(&mut session, id, fence).await,
            BaselineKind::Batch | BaselineKind::Lua => unreachable!("these release in batches"),
        };
        session.add_round_trips(&base.trips.releases);
        if released.is_ok() {
            self.checkin(lane);
        }
        released
    }

    pub(super) async fn release_batch(&self, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), TargetError>> {
        match self.base.kind {
            BaselineKind::Batch => batch::release(self, claims).await,
            BaselineKind::Lua => lua::release(&self.base, &self.shared, claims).await,
            _ => {
                let releases: Vec<_> = claims.iter().map(|(id, fence)| self.release_one(id, *fence).boxed()).collect();
                futures::stream::iter(releases).buffered(self.base.concurrent).collect().await
            }
        }
    }

    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        let mut session = BaselineSession::new(&self.base, &self.shared);
        Ok(rows::claim_row(&mut session, id.key()).await?.map(|held| held.fence))
    }
}
