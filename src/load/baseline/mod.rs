//! Baselines without Hotpool: clients that make claims themselves on a Redis server or cluster. There are five
//! methods, each as it is commonly deployed, under the same workload and checks as any other target.
//!
//! | method | summary |
//! |---|---|
//! | [`scan`] | read every worker, pick one, write it under its version |
//! | [`spop`] | pop a worker from a set of idle ones, write its record and the claim's |
//! | [`lock`] | lock the pool, read every worker, pick one, write it |
//! | [`batch`] | read every worker once for many claims, then lock and write each selected worker once |
//! | [`lua`] | one script that pops the worker and writes both records |
//!
//! **Records.** A worker's record is `version free`: `free` is 1 or 0 if a claim takes the whole worker, otherwise the
//! number of free slots. A claim's record is `fence worker slots`; its fence is the version under which the worker was
//! written, so fences grow per worker. All keys contain the run's tag, so that they can be found and removed.
//!
//! **Round trips** are counted where they are made: a pipeline written at once is one. Those of rejected claims count
//! too.

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
use super::resp_pipeline::WriteMode;
use super::stats::TargetError;
use hotpool::model::{ClaimId, Fence};

/// Number of attempts of a claim or release before it gives up because other clients were faster.
const ATTEMPTS_MAX: u32 = 256;
/// Number of workers written in one pipeline during registration.
const REGISTER_AT_ONCE: usize = 1_000;

/// Counters of round trips and retries.
#[derive(Debug, Default)]
pub(super) struct RoundTripCounters {
    pub(super) claims: AtomicU64,
    pub(super) releases: AtomicU64,
    pub(super) retries: AtomicU64,
}

impl RoundTripCounters {
    /// Counts up to now.
    pub(super) fn counts(&self) -> RoundTripCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RoundTripCounts { claims: read(&self.claims), releases: read(&self.releases), retries: read(&self.retries) }
    }
}

/// Round trips of claims and releases, with retries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, serde::Deserialize)]
pub struct RoundTripCounts {
    /// Round trips of claims, rejected ones included.
    pub claims: u64,
    /// Round trips of releases.
    pub releases: u64,
    /// Attempts repeated because another client was faster or held the lock.
    pub retries: u64,
}

/// State shared by all clients of a run.
struct BaselineState {
    kind: BaselineKind,
    /// Number of claims or workers of one batch handled concurrently.
    concurrent: usize,
    nodes: BaselineNodes,
    /// Part of every key: the prefix of all claim keys of the run.
    tag: String,
    /// Slots of each worker; 0 if a claim takes a whole worker.
    slots: AtomicU32,
    trips: RoundTripCounters,
}

/// Pool of a run, kept in Redis.
pub struct BaselineTarget {
    base: Arc<BaselineState>,
    client: BaselineClient,
}

/// Baseline client. Each request in flight uses connections of its own, as optimistic locking requires; scripts share
/// one.
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

    /// Key of the set of idle workers.
    fn idle_key(&self) -> String {
        format!("idle:{{{}}}", self.tag)
    }

    /// Free capacity of an idle worker, as its record has it.
    fn slots_per_worker(&self) -> u32 {
        self.slots.load(Ordering::Relaxed).max(1)
    }

    fn uses_idle_set(&self) -> bool {
        matches!(self.kind, BaselineKind::Spop | BaselineKind::Lua)
    }
}

impl BaselineTarget {
    /// Connects to the servers. Keys of the run contain `tag`, and so do the keys of its claims.
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
        let client = BaselineClient::new(Arc::clone(&base));
        Ok(Self { base, client })
    }

    /// Sets the slots of each worker; 0 if a claim takes a whole worker.
    pub(super) fn create(&self, slots: u32) -> Result<(), TargetError> {
        if slots > 0 && self.base.uses_idle_set() {
            let scheme = self.base.kind.into_str();
            return Err(target_error(format!("{scheme} grants whole workers only: use a pool without slots"), false));
        }
        self.base.slots.store(slots, Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn register(&self, workers: std::ops::Range<u32>) -> Result<(), TargetError> {
        let base = &*self.base;
        let mut session = BaselineSession::new(base, &self.client.shared);
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

    pub(super) fn client(&self) -> BaselineClient {
        BaselineClient::new(Arc::clone(&self.base))
    }

    pub(super) async fn counts(&self) -> Result<PoolOccupancy, TargetError> {
        let base = &*self.base;
        let mut session = BaselineSession::new(base, &self.client.shared);
        let workers = rows::read_all(&mut session).await?;
        let total = workers.len() as u64;
        let mut idle = workers.iter().filter(|(_, row)| row.free == base.slots_per_worker()).count() as u64;
        if base.uses_idle_set() {
            let set = base.idle_key();
            let idle_set_size = session.execute(&set, &[b"SCARD", set.as_bytes()]).await?.number().unwrap_or(0);
            // A free worker outside the idle set is as lost as one that is held forever.
            idle = idle.min(idle_set_size);
        }
        Ok(PoolOccupancy { total, idle, busy: total.saturating_sub(idle) })
    }

    pub(super) async fn claims(&self) -> Result<u64, TargetError> {
        let mut session = BaselineSession::new(&self.base, &self.client.shared);
        Ok(session.names(&format!("c:{{{}*", self.base.tag)).await?.len() as u64)
    }

    pub(super) async fn remove(&self) -> Result<(), TargetError> {
        let mut session = BaselineSession::new(&self.base, &self.client.shared);
        let names = session.names(&format!("*:{{{}*", self.base.tag)).await?;
        for names in names.chunks(REGISTER_AT_ONCE) {
            session.execute_each(names.iter().map(|name| vec!["UNLINK", name.as_str()])).await?;
        }
        Ok(())
    }

    pub(super) fn round_trips(&self) -> RoundTripCounts {
        self.base.trips.counts()
    }
}

impl BaselineClient {
    fn new(base: Arc<BaselineState>) -> Self {
        let mode = if base.kind == BaselineKind::Lua { WriteMode::Coalesced } else { WriteMode::Immediate };
        let shared = BaselineConnections::new(&base.nodes, mode);
        Self { base, shared, idle: Mutex::default() }
    }

    fn checkout(&self) -> BaselineConnections {
        let idle = self.idle.lock().pop();
        idle.unwrap_or_else(|| BaselineConnections::new(&self.base.nodes, WriteMode::Immediate))
    }

    /// Returns connections without outstanding calls or watched keys.
    fn checkin(&self, connections: BaselineConnections) {
        self.idle.lock().push(connections);
    }

    pub(super) async fn claim(&self, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        let base = &*self.base;
        if base.kind == BaselineKind::Lua {
            let grant = lua::claim(base, &self.shared, std::slice::from_ref(&input)).await;
            return grant.into_iter().next().unwrap_or_else(|| Err(target_error("no reply".into(), true)));
        }
        if base.kind == BaselineKind::Batch {
            let grant = batch::claim(self, vec![input]).await;
            return grant.into_iter().next().unwrap_or_else(|| Err(target_error("no reply".into(), true)));
        }
        let connections = self.checkout();
        let mut session = BaselineSession::new(base, &connections);
        let grant = match base.kind {
            BaselineKind::Scan => scan::claim(&mut session, input).await,
            BaselineKind::Spop => spop::claim(&mut session, input).await,
            BaselineKind::Lock => lock::claim(&mut session, input).await,
            BaselineKind::Batch | BaselineKind::Lua => unreachable!("handled above"),
        };
        session.add_round_trips(&base.trips.claims);
        // After a failure a connection may still watch keys: drop it.
        if !matches!(grant, Err(TargetError::Failed { .. })) {
            self.checkin(connections);
        }
        grant
    }

    pub(super) async fn claim_batch(&self, inputs: Vec<ClaimInput>) -> Vec<Result<ReceivedGrant, TargetError>> {
        match self.base.kind {
            BaselineKind::Batch => batch::claim(self, inputs).await,
            BaselineKind::Lua => lua::claim(&self.base, &self.shared, &inputs).await,
            _ => {
                let claims: Vec<_> = inputs.into_iter().map(|input| self.claim(input).boxed()).collect();
                futures::stream::iter(claims).buffered(self.base.concurrent).collect().await
            }
        }
    }

    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        let released = self.release_batch(std::slice::from_ref(&(id.clone(), fence))).await;
        released.into_iter().next().unwrap_or_else(|| Err(target_error("no reply".into(), true)))
    }

    async fn release_one(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        let base = &*self.base;
        let connections = self.checkout();
        let mut session = BaselineSession::new(base, &connections);
        let released = match base.kind {
            BaselineKind::Scan => scan::release(&mut session, id, fence).await,
            BaselineKind::Spop => spop::release(&mut session, id, fence).await,
            BaselineKind::Lock => lock::release(&mut session, id, fence).await,
            BaselineKind::Batch | BaselineKind::Lua => unreachable!("these release in batches"),
        };
        session.add_round_trips(&base.trips.releases);
        if released.is_ok() {
            self.checkin(connections);
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
        Ok(rows::claim_row(&mut session, id.key()).await?.map(|claim| claim.fence))
    }
}
