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

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{FutureExt as _, StreamExt as _};
use serde::Serialize;

use self::nodes::{Lane, Nodes, Session};
pub use self::url::{BaselineUrl, Way};
use super::ask::{Ask, Counts, Grant};
use super::check::worker_id;
use super::stats::Failure;
use super::wire::failed;
use hotpool::model::{ClaimId, Fence};

/// How often a claim or a release is tried anew because somebody else was faster.
const ATTEMPTS_MAX: u32 = 256;
/// Workers that are written in one pipeline when they are registered.
const REGISTER_AT_ONCE: usize = 1_000;

/// Round trips that were made, and attempts that came to nothing.
#[derive(Debug, Default)]
struct Trips {
    claims: AtomicU64,
    releases: AtomicU64,
    retries: AtomicU64,
}

/// What claims and releases cost in round trips.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, serde::Deserialize)]
pub struct TripCounts {
    /// For claims, refused ones too.
    pub claims: u64,
    /// For releases.
    pub releases: u64,
    /// Attempts that came to nothing because somebody else was faster, or held the lock.
    pub retries: u64,
}

/// What all clients of a run share.
struct Base {
    way: Way,
    /// Most claims or workers of one request that are handled at the same time.
    concurrent: usize,
    nodes: Nodes,
    /// Part of every name: what the keys of all clients of the run begin with.
    tag: String,
    /// Slots of a worker; 0: a claim takes it whole.
    slots: AtomicU32,
    trips: Trips,
}

/// The pool of a run, kept in Redis.
pub struct Baseline {
    base: Arc<Base>,
    link: BaselineLink,
}

/// One client's way in. Whoever is under way has connections of its own, as optimistic locking demands; only scripts need
/// none.
pub struct BaselineLink {
    base: Arc<Base>,
    shared: Lane,
    idle: Mutex<Vec<Lane>>,
}

impl Base {
    fn worker(&self, id: &str) -> String {
        match self.way {
            Way::Lua => format!("w:{{{}}}{id}", self.tag),
            _ => format!("w:{{{}.{id}}}", self.tag),
        }
    }

    fn claim(&self, key: &str) -> String {
        match self.way {
            Way::Lua => format!("c:{{{}}}{key}", self.tag),
            _ => format!("c:{{{key}}}"),
        }
    }

    /// The set of idle workers.
    fn idle(&self) -> String {
        format!("idle:{{{}}}", self.tag)
    }

    /// What a worker that nothing holds has free.
    fn whole(&self) -> u32 {
        self.slots.load(Ordering::Relaxed).max(1)
    }

    fn uses_idle_set(&self) -> bool {
        matches!(self.way, Way::Spop | Way::Lua)
    }
}

impl Baseline {
    /// Connects. Names of the run hold `tag`, and so do the keys of its claims.
    pub(super) async fn open(url: &BaselineUrl, tag: &str) -> Result<Self, Failure> {
        let nodes = Nodes::discover(&url.hosts).await?;
        let base = Arc::new(Base {
            way: url.way,
            concurrent: url.concurrent,
            nodes,
            tag: tag.to_owned(),
            slots: AtomicU32::new(0),
            trips: Trips::default(),
        });
        if base.way == Way::Lua {
            lua::load(&base).await?;
        }
        let link = BaselineLink::new(Arc::clone(&base));
        Ok(Self { base, link })
    }

    /// Workers have so many slots, or are claimed whole if 0.
    pub(super) fn create(&self, slots: u32) -> Result<(), Failure> {
        if slots > 0 && self.base.uses_idle_set() {
            let way = self.base.way.word();
            return Err(failed(format!("{way} gives whole workers, and this load asks for shares of them"), false));
        }
        self.base.slots.store(slots, Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn register(&self, workers: std::ops::Range<u32>) -> Result<(), Failure> {
        let base = &*self.base;
        let mut session = Session::new(base, &self.link.shared);
        let row = format!("0 {}", base.whole());
        let ids: Vec<String> = workers.map(worker_id).collect();
        for ids in ids.chunks(REGISTER_AT_ONCE) {
            let keys: Vec<String> = ids.iter().map(|id| base.worker(id)).collect();
            session.set_all(keys.iter().map(|key| (key.as_str(), row.as_str()))).await?;
            if base.uses_idle_set() {
                let set = base.idle();
                let mut words: Vec<&[u8]> = vec![b"SADD", set.as_bytes()];
                words.extend(ids.iter().map(|id| id.as_bytes()));
                session.ask(&set, &words).await?;
            }
        }
        Ok(())
    }

    pub(super) fn link(&self) -> BaselineLink {
        BaselineLink::new(Arc::clone(&self.base))
    }

    pub(super) async fn counts(&self) -> Result<Counts, Failure> {
        let base = &*self.base;
        let mut session = Session::new(base, &self.link.shared);
        let workers = rows::read_all(&mut session).await?;
        let total = workers.len() as u64;
        let mut idle = workers.iter().filter(|(_, row)| row.free == base.whole()).count() as u64;
        if base.uses_idle_set() {
            let set = base.idle();
            let offered = session.ask(&set, &[b"SCARD", set.as_bytes()]).await?.number().unwrap_or(0);
            // A worker that is free and not offered is as lost as one that is held for ever.
            idle = idle.min(offered);
        }
        Ok(Counts { total, idle, busy: total.saturating_sub(idle) })
    }

    pub(super) async fn claims(&self) -> Result<u64, Failure> {
        let mut session = Session::new(&self.base, &self.link.shared);
        Ok(session.names(&format!("c:{{{}*", self.base.tag)).await?.len() as u64)
    }

    pub(super) async fn remove(&self) -> Result<(), Failure> {
        let mut session = Session::new(&self.base, &self.link.shared);
        let names = session.names(&format!("*:{{{}*", self.base.tag)).await?;
        for names in names.chunks(REGISTER_AT_ONCE) {
            session.ask_each(names.iter().map(|name| vec!["UNLINK", name.as_str()])).await?;
        }
        Ok(())
    }

    pub(super) fn trips(&self) -> TripCounts {
        let Trips { claims, releases, retries } = &self.base.trips;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        TripCounts { claims: read(claims), releases: read(releases), retries: read(retries) }
    }
}

impl BaselineLink {
    fn new(base: Arc<Base>) -> Self {
        let shared = Lane::new(&base.nodes, base.way == Way::Lua);
        Self { base, shared, idle: Mutex::default() }
    }

    fn lane(&self) -> Lane {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| Lane::new(&self.base.nodes, false))
    }

    /// Nobody waits on it any more, nor watches anything.
    fn back(&self, lane: Lane) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
    }

    pub(super) async fn claim(&self, ask: Ask) -> Result<Grant, Failure> {
        let base = &*self.base;
        if base.way == Way::Lua {
            let granted = lua::claim(base, &self.shared, std::slice::from_ref(&ask)).await;
            return granted.into_iter().next().unwrap_or_else(|| Err(failed("no answer".into(), true)));
        }
        if base.way == Way::Batch {
            let granted = batch::claim(self, vec![ask]).await;
            return granted.into_iter().next().unwrap_or_else(|| Err(failed("no answer".into(), true)));
        }
        let lane = self.lane();
        let mut session = Session::new(base, &lane);
        let granted = match base.way {
            Way::Scan => scan::claim(&mut session, ask).await,
            Way::Spop => spop::claim(&mut session, ask).await,
            Way::Lock => lock::claim(&mut session, ask).await,
            Way::Batch | Way::Lua => unreachable!("handled above"),
        };
        session.count(&base.trips.claims);
        // One whose connection is in doubt may still watch something: it goes.
        if !matches!(granted, Err(Failure::Failed { .. })) {
            self.back(lane);
        }
        granted
    }

    pub(super) async fn claim_batch(&self, asks: Vec<Ask>) -> Vec<Result<Grant, Failure>> {
        match self.base.way {
            Way::Batch => batch::claim(self, asks).await,
            Way::Lua => lua::claim(&self.base, &self.shared, &asks).await,
            _ => {
                let claims: Vec<_> = asks.into_iter().map(|ask| self.claim(ask).boxed()).collect();
                futures::stream::iter(claims).buffered(self.base.concurrent).collect().await
            }
        }
    }

    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), Failure> {
        let released = self.release_batch(std::slice::from_ref(&(id.clone(), fence))).await;
        released.into_iter().next().unwrap_or_else(|| Err(failed("no answer".into(), true)))
    }

    async fn release_one(&self, id: &ClaimId, fence: Fence) -> Result<(), Failure> {
        let base = &*self.base;
        let lane = self.lane();
        let mut session = Session::new(base, &lane);
        let released = match base.way {
            Way::Scan => scan::release(&mut session, id, fence).await,
            Way::Spop => spop::release(&mut session, id, fence).await,
            Way::Lock => lock::release(&mut session, id, fence).await,
            Way::Batch | Way::Lua => unreachable!("these release in batches"),
        };
        session.count(&base.trips.releases);
        if released.is_ok() {
            self.back(lane);
        }
        released
    }

    pub(super) async fn release_batch(&self, claims: &[(ClaimId, Fence)]) -> Vec<Result<(), Failure>> {
        match self.base.way {
            Way::Batch => batch::release(self, claims).await,
            Way::Lua => lua::release(&self.base, &self.shared, claims).await,
            _ => {
                let releases: Vec<_> = claims.iter().map(|(id, fence)| self.release_one(id, *fence).boxed()).collect();
                futures::stream::iter(releases).buffered(self.base.concurrent).collect().await
            }
        }
    }

    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, Failure> {
        let mut session = Session::new(&self.base, &self.shared);
        Ok(rows::held(&mut session, id.key()).await?.map(|held| held.fence))
    }
}
