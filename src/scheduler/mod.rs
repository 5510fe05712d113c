//! Facade of the scheduler, which every edge calls, and every program that embeds the library.
//!
//! A call is checked here, finds its key or shard, and waits for the shard's reply. What it began continues without
//! it: dropping the future of a call leaves nothing pending, and an undisclosed claim is rolled back.

pub mod caller;
mod change_log;
mod claim_operations;
mod claims;
mod demand;
mod explain;
mod gather;
#[cfg(feature = "internals")]
mod injection;
mod listing;
pub mod operation_routing;
mod ownership;
mod pools;
mod quota_settings;
pub mod recovery;
mod request_stream;
mod watch;
mod workers;

pub use self::claims::ClaimCall;
pub use self::gather::ClaimBatchBuilder;
pub use self::pools::DeleteMode;
pub use self::request_stream::{ClaimVerb, RequestCompletion, RequestStream};

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ractor::{Actor as _, ActorCell};
use serde::Serialize;
use tokio::sync::Semaphore;

use self::caller::{CallerContext, ChangeSource};
use self::change_log::ChangeLog;
use self::recovery::RecoveredState;
use crate::admission::dispatch::ClaimDispatcher;
pub use crate::admission::dispatch::SchedulerSettings;
use crate::admission::gang::GangSet;
use crate::admission::key::KeyDirectory;
use crate::admission::pool_registry::{Pool, PoolRegistry};
use crate::admission::queue::WaitQueues;
use crate::environment::{Clock, Environment, TICK_MS, TaskHandle};
use crate::limits;
use crate::metrics::{PoolMetrics, ShardState, metrics};
use crate::model::label_selector::SelectorCache;
use crate::model::request_error::{RequestError, UnavailableReason};
use crate::model::{GangRef, Millis, PoolName, PoolSpec};
use crate::persist::catalog::PoolCatalog;
use crate::persist::journal::{Journal, Outbox};
use crate::persist::store::{SharedStore, StoreError};
use crate::shard::{ShardServices, ShardSupervisor};

/// Interval at which the fence ceiling is checked.
const FENCE_CEILING_INTERVAL: Duration = Duration::from_secs(1);

/// Scheduler of claims. Cheap to clone; all clones share one state.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<SchedulerInner>,
}

struct SchedulerInner {
    dispatch: Arc<ClaimDispatcher>,
    started: AtomicBool,
    catalog: OnceLock<Arc<PoolCatalog>>,
    supervisor: OnceLock<ActorCell>,
    /// Serialises changes of pools and quotas.
    pool_change_lock: tokio::sync::Mutex<()>,
    tasks: Mutex<Vec<TaskHandle<()>>>,
    changes: Arc<ChangeLog>,
    /// Permits for watchers of all pools together.
    watchers: Arc<Semaphore>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("dispatch", &self.shared.dispatch).finish_non_exhaustive()
    }
}

/// Reason why the scheduler could not start.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerStartError {
    /// The store cannot be taken over or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pool from the configuration cannot be set up.
    #[error("cannot set up the pool {name}: {error}")]
    Pool {
        /// Name of the pool.
        name: PoolName,
        /// Reason of the rejection.
        error: RequestError,
    },
}

/// Readiness of the service to answer calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadinessStatus {
    /// Whether every shard serves and the store accepts records.
    pub ready: bool,
    /// Reasons for not being ready, up to a limit.
    pub reasons: Vec<String>,
}

impl Scheduler {
    /// Creates a scheduler over a store, on the system clock. Calls fail with `loading` until [`Scheduler::start`] has
    /// finished.
    #[must_use]
    pub fn new(store: SharedStore, settings: SchedulerSettings) -> Self {
        Self::with_environment(store, settings, Environment::system())
    }

    /// Creates a scheduler over a store, on the caller's clock.
    #[must_use]
    pub fn with_clock(store: SharedStore, settings: SchedulerSettings, clock: Clock) -> Self {
        Self::with_environment(store, settings, Environment::with_clock(clock))
    }

    /// Creates a scheduler over a store, in the caller's environment.
    #[must_use]
    pub fn with_environment(store: SharedStore, settings: SchedulerSettings, environment: Environment) -> Self {
        let clock = environment.clock().clone();
        let journal = Journal::new(store, environment.clone());
        let services = ShardServices::new(environment, Arc::clone(&journal), settings.store_wait_ms);
        let dispatch = ClaimDispatcher {
            keys: KeyDirectory::default(),
            wait_queues: WaitQueues::default(),
            pools: PoolRegistry::default(),
            selectors: SelectorCache::default(),
            journal,
            clock,
            gangs: GangSet::default(),
            services: Arc::new(services),
            settings,
            stopping: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(SchedulerInner {
                dispatch: Arc::new(dispatch),
                started: AtomicBool::new(false),
                catalog: OnceLock::new(),
                supervisor: OnceLock::new(),
                pool_change_lock: tokio::sync::Mutex::new(()),
                tasks: Mutex::default(),
                changes: Arc::default(),
                watchers: Arc::new(Semaphore::new(limits::WATCHERS_MAX)),
            }),
        }
    }

    /// Takes the store over, recovers, and starts to serve. Spawns the writers of the journal, the ticker and the
    /// renewal of the fence ceiling in the environment. Call it once; after an error it may be called again.
    ///
    /// # Errors
    /// Fails if the store cannot be taken over or read.
    pub async fn start(&self) -> Result<(), StoreError> {
        for pool in self.recover().await? {
            self.spawn_deletion(pool);
        }
        self.shared.started.store(true, Ordering::Release);
        Ok(())
    }

    /// Starts like [`Self::start`], and creates or updates these pools before the first call is answered.
    ///
    /// # Errors
    /// [`SchedulerStartError::Pool`] if a pool cannot be set up, in particular because its stored `shards` or `mode`,
    /// which never change, differ.
    pub async fn start_with(&self, pools: Vec<(PoolName, PoolSpec)>) -> Result<(), SchedulerStartError> {
        for pool in self.recover().await? {
            // A pool must be gone before it can be created again.
            if pools.iter().any(|(name, _)| *name == pool.name) {
                self.finish_deletion(&pool).await;
            } else {
                self.spawn_deletion(pool);
            }
        }
        for (name, spec) in pools {
            let caller = CallerContext { source: ChangeSource::Configuration, request_id: None, peer: None };
            let set = caller.scope(self.set_pool(name.clone(), spec)).await;
            set.map_err(|error| SchedulerStartError::Pool { name, error })?;
        }
        self.shared.started.store(true, Ordering::Release);
        Ok(())
    }

    /// Does everything except to answer calls. Returns the pools whose deletion was in progress.
    async fn recover(&self) -> Result<Vec<Arc<Pool>>, StoreError> {
        let dispatch = &self.shared.dispatch;
        let started_ns = dispatch.clock.mono_ns();
        let supervisor = self.supervisor().await?;
        recovery::acquire_ownership(dispatch).await?;
        // Begins before the records are read, because reading may take longer than the lease.
        self.spawn("lease", ownership::renew_loop(Arc::clone(dispatch)));
        let RecoveredState { catalog, deleting, gangs } = recovery::recover(dispatch, &supervisor).await?;
        let _ = self.shared.catalog.set(catalog);
        self.spawn("gangs of the last process", Self::forget_gangs(Arc::clone(dispatch), gangs));
        for writer in 0..dispatch.journal.writer_count() {
            self.spawn("journal writer", Arc::clone(&dispatch.journal).run(writer));
        }
        self.spawn("ticker", Self::tick(Arc::clone(dispatch), Arc::clone(&self.shared.changes)));
        self.spawn("gangs", Self::follow_gangs(Arc::clone(dispatch)));
        self.spawn("fence ceiling", Self::renew_fence_ceiling(Arc::clone(dispatch)));
        let seconds = Duration::from_nanos(dispatch.clock.mono_ns() - started_ns).as_secs_f64();
        metrics().recovery_seconds.set(seconds);
        Ok(deleting)
    }

    fn spawn_deletion(&self, pool: Arc<Pool>) {
        let scheduler = self.clone();
        self.spawn("deletion of a pool", async move { scheduler.finish_deletion(&pool).await });
    }

    async fn supervisor(&self) -> Result<ActorCell, StoreError> {
        if let Some(supervisor) = self.shared.supervisor.get() {
            return Ok(supervisor.clone());
        }
        let dispatch = Arc::downgrade(&self.shared.dispatch);
        let find = move |actor| {
            let pools = dispatch.upgrade()?.pools.load_full();
            pools.iter().find_map(|pool| {
                let handle = pool.shards.iter().find(|handle| handle.is_run_by(actor))?;
                Some((Arc::clone(&pool.context), Arc::clone(handle)))
            })
        };
        let dispatch = Arc::downgrade(&self.shared.dispatch);
        let restart = move |shard, supervisor| -> futures::future::BoxFuture<'static, ()> {
            match dispatch.upgrade() {
                Some(dispatch) => Box::pin(recovery::restart_shard(dispatch, shard, supervisor)),
                None => Box::pin(async {}),
            }
        };
        let services = Arc::clone(&self.shared.dispatch.services);
        let supervisor = ShardSupervisor::new(services, Box::new(find), Box::new(restart));
        let (actor, _) = ShardSupervisor::spawn(None, supervisor, ())
            .await
            .map_err(|error| StoreError::Unusable(format!("the supervisor did not start: {error}")))?;
        Ok(self.shared.supervisor.get_or_init(|| actor.get_cell()).clone())
    }

    /// Makes the service unready, so that no new calls are sent to it. Calls are still answered, but claims no longer
    /// wait. Used between the decision to stop and [`Scheduler::stop`].
    pub fn drain(&self) {
        self.dispatch().services.drain();
        self.dispatch().with_work(|work| self.dispatch().close_wait_queues(work));
    }

    /// Finishes calls in flight, flushes everything to the store and ends all shards. New calls are rejected. Returns
    /// true if the store has everything.
    pub async fn stop(&self) -> bool {
        self.drain();
        let dispatch = &self.shared.dispatch;
        dispatch.stopping.store(true, Ordering::Release);
        let pools: Vec<Arc<Pool>> = dispatch.pools.load().iter().cloned().collect();
        let handles = || pools.iter().flat_map(|pool| pool.shards.iter());
        for handle in handles() {
            // The reply says that the shard decided everything before it.
            let (reply, answer) = tokio::sync::oneshot::channel();
            if handle.push(crate::shard::Command::Seal(reply)).is_ok() {
                let _ = answer.await;
            }
        }
        let outboxes: Vec<Arc<Outbox>> = handles()
            .map(|handle| Arc::clone(&handle.outbox))
            .chain(self.shared.catalog.get().map(|catalog| Arc::clone(catalog.outbox())))
            .collect();
        let flushed = dispatch.journal.wait_flushed(outboxes).await;
        for handle in handles() {
            // Once more, so that replies whose record has just been stored are sent before the actor ends.
            let (reply, answer) = tokio::sync::oneshot::channel();
            if handle.push(crate::shard::Command::Report(reply)).is_ok() {
                let _ = answer.await;
            }
            handle.stop().await;
        }
        if let Some(supervisor) = self.shared.supervisor.get() {
            supervisor.stop(None);
        }
        for task in self.shared.tasks.lock().drain(..) {
            task.abort();
        }
        dispatch.finish_gangs();
        self.shared.changes.log_counted(Millis::MAX);
        dispatch.journal.close();
        if flushed && !dispatch.journal.is_fenced() {
            dispatch.journal.lease().revoke();
            if let Err(error) = dispatch.journal.store().resign().await {
                tracing::warn!(%error, "cannot release the store: the next owner must wait until the lease ends");
            }
        }
        flushed
    }

    /// Reports whether every shard serves and the store accepts records.
    #[must_use]
    pub fn readiness(&self) -> ReadinessStatus {
        const REASONS_MAX: usize = 16;
        let dispatch = &self.shared.dispatch;
        let mut reasons = Vec::new();
        if dispatch.is_draining() {
            reasons.push("the service is shutting down".to_owned());
        } else if !self.shared.started.load(Ordering::Acquire) {
            reasons.push("recovering from the store".to_owned());
        }
        if dispatch.journal.is_fenced() {
            reasons.push("another process owns the store".to_owned());
        }
        if !dispatch.journal.is_fenced() && !dispatch.journal.lease().is_valid() {
            reasons.push("the lease of the store has lapsed: calls fail until it is renewed".to_owned());
        }
        reasons.extend(
            dispatch.journal.faults().into_iter().map(|reason| format!("the store accepts no records: {reason}")),
        );
        for pool in dispatch.pools.load().iter() {
            for handle in pool.shards.iter().filter(|handle| handle.state() != ShardState::Serving) {
                if reasons.len() < REASONS_MAX {
                    let default =
                        || format!("shard {} of {} is {}", handle.shard.shard, pool.name, handle.state().as_str());
                    reasons.push(handle.reason().unwrap_or_else(default));
                }
            }
        }
        ReadinessStatus { ready: reasons.is_empty(), reasons }
    }

    /// Updates the gauges that mirror other state, for a scrape, and returns the metrics of all pools, ordered by
    /// name.
    #[must_use]
    pub fn observe(&self) -> Vec<Arc<PoolMetrics>> {
        let pools = self.shared.dispatch.pools.load_full();
        let mut by_state = [0_u32; ShardState::ALL.len()];
        for pool in pools.in_order() {
            pool.update_metrics();
            pool.shards.iter().for_each(|handle| by_state[handle.state() as usize] += 1);
        }
        metrics().quota_claims_pending.set(self.shared.dispatch.quota_waiting_len() as f64);
        metrics().set_store_lease(self.shared.dispatch.journal.lease().remaining_seconds());
        metrics().adoption_open.set(if self.dispatch().keys.adoption.is_open() { 1.0 } else { 0.0 });
        metrics().ready.set(if self.readiness().ready { 1.0 } else { 0.0 });
        metrics().shards_max.set(self.shared.dispatch.settings.shards_max as f64);
        for (state, count) in ShardState::ALL.iter().zip(by_state) {
            metrics().shards(*state).set(f64::from(count));
        }
        pools.in_order().iter().map(|pool| Arc::clone(&pool.metrics)).collect()
    }

    fn dispatch(&self) -> &Arc<ClaimDispatcher> {
        &self.shared.dispatch
    }

    fn environment(&self) -> &Environment {
        &self.shared.dispatch.services.environment
    }

    /// Rejects calls before the service serves and after it stops.
    fn check_serving(&self) -> Result<(), RequestError> {
        if self.dispatch().is_stopping() {
            return Err(RequestError::Unavailable(UnavailableReason::Stopping));
        }
        if !self.shared.started.load(Ordering::Acquire) {
            return Err(RequestError::Unavailable(UnavailableReason::Loading));
        }
        self.dispatch().journal.reply_blocker().map_or(Ok(()), |reason| Err(RequestError::Unavailable(reason)))
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.environment().spawn(name, task);
        self.shared.tasks.lock().push(task);
    }

    async fn tick(dispatch: Arc<ClaimDispatcher>, changes: Arc<ChangeLog>) {
        let mut interval = dispatch.services.environment.interval(Duration::from_millis(TICK_MS));
        loop {
            interval.tick().await;
            let now_ms = dispatch.clock.tick();
            for pool in dispatch.pools.load().iter() {
                for handle in &pool.shards {
                    handle.tick(now_ms);
                }
                pool.event_log.tick(now_ms);
            }
            dispatch.with_work(|work| {
                dispatch.tick(now_ms, work);
                dispatch.ask_about_poisoned(now_ms, work);
            });
            changes.log_counted(now_ms);
            let pools = dispatch.pools.load();
            let mut handles = pools.iter().flat_map(|pool| pool.shards.iter());
            dispatch.keys.adoption.close_if_due(now_ms, || handles.all(|handle| handle.unreconciled() == 0));
        }
    }

    /// Hands the reports of shards to their gangs as they arrive. Apart from the ticker, which must not be late.
    async fn follow_gangs(dispatch: Arc<ClaimDispatcher>) {
        loop {
            dispatch.gangs.inbox.arrival().await;
            dispatch.with_work(|work| dispatch.take_gang_reports(work));
        }
    }

    /// Forgets gangs of an earlier process, once their members are stored as committed.
    async fn forget_gangs(dispatch: Arc<ClaimDispatcher>, gangs: Vec<GangRef>) {
        if gangs.is_empty() {
            return;
        }
        let pools = dispatch.pools.load_full();
        let handles = pools.iter().flat_map(|pool| pool.shards.iter());
        let outboxes: Vec<Arc<Outbox>> = handles.map(|handle| Arc::clone(&handle.outbox)).collect();
        dispatch.journal.wait_flushed(outboxes).await;
        dispatch.with_work(|work| dispatch.forget_gangs(gangs, work));
    }

    async fn renew_fence_ceiling(dispatch: Arc<ClaimDispatcher>) {
        let mut interval = dispatch.services.environment.interval(FENCE_CEILING_INTERVAL);
        loop {
            interval.tick().await;
            if let Err(error) = recovery::raise_fence_ceiling(&dispatch).await {
                tracing::warn!(%error, "cannot raise the fence ceiling");
            }
        }
    }
}

/// Outcome of one call; unknown if its shard did not keep the reply.
async fn recv_outcome<T>(
    answer: impl Future<Output = Result<Result<T, RequestError>, tokio::sync::oneshot::error::RecvError>>,
) -> Result<T, RequestError> {
    answer.await.unwrap_or(Err(RequestError::DeadlineExceeded))
}
