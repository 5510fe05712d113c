//! Pools: put, update, get, delete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::oneshot;

use super::change_log::{ChangeDetails, ChangeKind, ChangeResult, SpecDiff};
use super::{Scheduler, recv_outcome};
use crate::admission::pool_registry::{Pool, ShardHandle};
use crate::engine::ShardConfig;
use crate::environment::Environment;
use crate::limits;
use crate::metrics::ShardState;
use crate::model::request_error::{Precondition, RequestError, UnavailableReason};
use crate::model::{PoolName, PoolSpec, PoolStatus, ResourceVector, Seq, ShardStatus};
use crate::persist::catalog::{self, PoolCatalog};
use crate::persist::row::PoolRow;
use crate::scheduler::caller::with_current_caller;
use crate::scheduler::recovery;
use crate::shard::{Command, EndedWorkers, ShardReport};

/// Attempts to end the workers of a shard that is overloaded or restarting, and the pause between two.
const END_ATTEMPTS: u32 = 20;
const END_PAUSE: Duration = Duration::from_millis(50);

/// Treatment of a pool's workers when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteMode {
    /// Rejects the deletion if the pool has workers.
    RequireEmpty,
    /// Ends the pool's workers and their claims.
    Force,
}

impl Scheduler {
    /// Creates a pool (true), or replaces the specification of an existing one. Durable on return.
    ///
    /// # Errors
    /// `Invalid` naming the field; `FailedPrecondition` for other `shards` or another `mode`, which never change, and
    /// for a new pool beyond the limit of pools or shards.
    pub async fn put_pool(&self, name: PoolName, spec: PoolSpec) -> Result<(bool, PoolStatus), RequestError> {
        let scheduler = self.clone();
        // Once begun it is completed even if the caller leaves: half a pool would keep its number and shards.
        let task = self.environment().spawn(
            "change of a pool",
            with_current_caller(async move {
                scheduler.check_serving().or_else(|error| scheduler.log_rejected_put(&name, error))?;
                scheduler.set_pool(name, spec).await
            }),
        );
        let (created, pool) = task.await.unwrap_or(Err(RequestError::DeadlineExceeded))?;
        Ok((created, self.status(&pool).await))
    }

    /// Updates an existing pool to what `change` makes of its specification; with `version`, only if the pool is still
    /// at that version. Concurrent updates see the results of earlier ones. Durable on return.
    ///
    /// # Errors
    /// `NotFound`; `VersionConflict`; `Invalid` naming the field; `FailedPrecondition` for other `shards` or another
    /// `mode`; the errors of `change`.
    pub async fn update_pool(
        &self,
        name: PoolName,
        version: Option<u64>,
        change: impl FnOnce(&PoolSpec) -> Result<PoolSpec, RequestError> + Send + 'static,
    ) -> Result<PoolStatus, RequestError> {
        let scheduler = self.clone();
        // Completed like `put_pool`, even if the caller leaves.
        let task = self.environment().spawn(
            "change of a pool",
            with_current_caller(async move {
                let _one_at_a_time = scheduler.shared.pool_change_lock.lock().await;
                let changed = scheduler.changed_specification(&name, version, change);
                let (pool, spec) = changed.or_else(|error| scheduler.log_rejected_put(&name, error))?;
                scheduler.replace_pool(&pool, spec).await?;
                Ok(pool)
            }),
        );
        let pool = task.await.unwrap_or(Err(RequestError::DeadlineExceeded))?;
        Ok(self.status(&pool).await)
    }

    /// Pool and its changed specification; the caller must hold the change lock.
    fn changed_specification(
        &self,
        name: &PoolName,
        version: Option<u64>,
        change: impl FnOnce(&PoolSpec) -> Result<PoolSpec, RequestError>,
    ) -> Result<(Arc<Pool>, PoolSpec), RequestError> {
        self.check_serving()?;
        let pool = self.pool(name)?;
        let (current, spec) = pool.versioned_spec();
        if version.is_some_and(|version| version != current) {
            return Err(RequestError::VersionConflict(current));
        }
        let changed = change(&spec)?.with_defaults()?;
        Ok((pool, changed))
    }

    /// Creates a pool (true), or replaces its specification, like [`Self::put_pool`], but also before calls are
    /// answered.
    pub(super) async fn set_pool(&self, name: PoolName, spec: PoolSpec) -> Result<(bool, Arc<Pool>), RequestError> {
        let spec = spec.with_defaults().or_else(|error| self.log_rejected_put(&name, error))?;
        let _one_at_a_time = self.shared.pool_change_lock.lock().await;
        let existing = self.dispatch().pools.load().get(&name).cloned();
        match existing {
            Some(pool) if pool.is_closing() => self.log_rejected_put(&name, deletion_conflict()),
            Some(pool) => {
                self.replace_pool(&pool, spec).await?;
                Ok((false, pool))
            }
            None => {
                let mut change = self.change(ChangeKind::PutPool, ChangeDetails::of_pool(&name));
                change.details().difference = Some(SpecDiff::from_defaults(&spec));
                let created = change.outcome(ChangeResult::Created, self.create_pool(name, spec).await)?;
                Ok((true, created))
            }
        }
    }

    /// Logs a put that is rejected before it begins, and passes the error on.
    fn log_rejected_put<T>(&self, name: &PoolName, error: RequestError) -> Result<T, RequestError> {
        self.change(ChangeKind::PutPool, ChangeDetails::of_pool(name)).outcome(ChangeResult::Unchanged, Err(error))
    }

    async fn create_pool(&self, name: PoolName, spec: PoolSpec) -> Result<Arc<Pool>, RequestError> {
        if self.dispatch().pools.load().len() >= limits::POOLS_MAX {
            return Err(Precondition::PoolLimit.into());
        }
        self.check_total_shards(spec.shards)?;
        let catalog = self.catalog()?;
        // A row without a pool belongs to a deletion that continues after a restart and removes the row last.
        if catalog.find(&name).is_some() {
            return Err(deletion_conflict());
        }
        // A fence, and therefore never used before.
        let uid = self.dispatch().allocate_fences(1).map_err(RequestError::Unavailable)?;
        let row = catalog::pool_row(uid, uid, &name, &spec);
        self.change_catalog(catalog, |rows| rows.put(row), |rows| rows.remove(uid)).await?;
        let pool = recovery::make_pool(self.dispatch(), uid, uid, name, spec);
        if let Some(supervisor) = self.shared.supervisor.get() {
            recovery::open_pool_shards(self.dispatch(), &pool, supervisor).await;
        }
        self.dispatch().pools.insert(&pool);
        self.dispatch().reselect_pools(pool.name.namespace());
        Ok(pool)
    }

    /// Checks the total of shards, counted each time over existing pools and those being deleted, so that none can be
    /// missed.
    fn check_total_shards(&self, added: u16) -> Result<(), RequestError> {
        let (current, max) = (self.dispatch().pools.load().total_shards(), self.dispatch().settings.shards_max);
        let fits = current + usize::from(added) <= max;
        if fits { Ok(()) } else { Err(Precondition::ShardLimit { max, current, added }.into()) }
    }

    async fn replace_pool(&self, pool: &Arc<Pool>, spec: PoolSpec) -> Result<(), RequestError> {
        let mut change = self.change(ChangeKind::PutPool, ChangeDetails::of_pool(&pool.name));
        let old = pool.spec.load_full();
        change.details().difference = Some(SpecDiff::between(&*old, &spec));
        let result = if *old == spec { ChangeResult::Unchanged } else { ChangeResult::Replaced };
        change.outcome(result, self.store_specification(pool, spec).await)
    }

    async fn store_specification(&self, pool: &Arc<Pool>, spec: PoolSpec) -> Result<(), RequestError> {
        let old = pool.spec.load_full();
        if old.shards != spec.shards {
            return Err(Precondition::ShardsImmutable { current: old.shards, requested: spec.shards }.into());
        }
        if old.mode != spec.mode {
            return Err(Precondition::ModeImmutable { current: old.mode, requested: spec.mode }.into());
        }
        let catalog = self.catalog()?;
        if *old == spec {
            // The row that undid a failed change may still be in flight.
            return self.wait_for_catalog(catalog, catalog.outbox().appended_seq()).await;
        }
        // A fence, so it is above the previous version and is never reused.
        let version = self.dispatch().allocate_fences(1).map_err(RequestError::Unavailable)?;
        let row = catalog::pool_row(pool.uid, version, &pool.name, &spec);
        let row_before = catalog::pool_row(pool.uid, pool.versioned_spec().0, &pool.name, &old);
        self.change_catalog(catalog, |rows| rows.put(row), |rows| rows.put(row_before)).await?;
        let config = ShardConfig::from(&spec);
        let selects_others = old.labels != spec.labels
            || old.class != spec.class
            || (old.reserve_ms, old.ack, old.ttl()) != (spec.reserve_ms, spec.ack, spec.ttl());
        // Set first: a shard that is being loaded starts from this specification.
        pool.set_spec(version, spec);
        if ShardConfig::from(&*old) != config {
            pool.shards.iter().for_each(|handle| handle.set_config(config.clone()));
        }
        for handle in &pool.shards {
            // The shard's own row must say whether it acknowledges from memory.
            handle.wake();
        }
        // Those who wait are judged by the new specification.
        self.dispatch().search_all(pool);
        if selects_others {
            self.reselect_pools(pool);
        }
        Ok(())
    }

    /// Lets claims that wait with a pool selector judge the pool anew.
    fn reselect_pools(&self, pool: &Pool) {
        self.dispatch().pools.refresh_labels();
        self.dispatch().reselect_pools(pool.name.namespace());
    }

    /// Opens a pool again whose deletion has failed.
    fn reopen_pool(&self, pool: &Pool) {
        pool.closing.store(false, Ordering::Release);
        self.reselect_pools(pool);
    }

    /// Status of a pool: specification, counts, figures by shard.
    ///
    /// # Errors
    /// `NotFound` if there is no such pool.
    pub async fn get_pool(&self, name: &PoolName) -> Result<PoolStatus, RequestError> {
        self.check_serving()?;
        let pool = self.pool(name)?;
        Ok(self.status(&pool).await)
    }

    /// Deletes a pool. [`DeleteMode::RequireEmpty`] rejects a pool with workers, [`DeleteMode::Force`] ends them.
    /// Durable on return.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if the pool has workers.
    pub async fn delete_pool(&self, name: &PoolName, mode: DeleteMode) -> Result<(), RequestError> {
        let (scheduler, name) = (self.clone(), name.clone());
        // Once begun it is completed even if the caller leaves: half a deletion would leave the pool closed.
        let deletion = self.environment().spawn(
            "deletion of a pool",
            with_current_caller(async move {
                let details =
                    ChangeDetails { forced: Some(mode == DeleteMode::Force), ..ChangeDetails::of_pool(&name) };
                let mut change = scheduler.change(ChangeKind::DeletePool, details);
                let deleted = scheduler.run_pool_deletion(&name, mode).await;
                change.details().workers = deleted.as_ref().ok().copied();
                change.outcome(ChangeResult::Done, deleted)
            }),
        );
        deletion.await.unwrap_or(Err(RequestError::DeadlineExceeded)).map(drop)
    }

    /// Deletes a pool and returns the number of workers deleted with it.
    async fn run_pool_deletion(&self, name: &PoolName, mode: DeleteMode) -> Result<u64, RequestError> {
        self.check_serving()?;
        let _one_at_a_time = self.shared.pool_change_lock.lock().await;
        let pool = self.pool(name)?;
        let catalog = self.catalog()?;
        // Nothing new is accepted from here on, so the count below stays valid.
        pool.closing.store(true, Ordering::Release);
        let status = self.status(&pool).await;
        let workers: u64 = status.shards.iter().map(|shard| shard.workers).sum();
        let not_serving = status.shards.iter().find(|shard| shard.state != ShardState::Serving.as_str());
        let failed = match not_serving {
            _ if mode == DeleteMode::Force => None,
            _ if workers > 0 => Some(Precondition::PoolNotEmpty { workers }),
            None => None,
            Some(shard) => Some(Precondition::ShardNotServing { shard: shard.shard, state: shard.state.clone() }),
        };
        if let Some(precondition) = failed {
            self.reopen_pool(&pool);
            return Err(precondition.into());
        }
        let (version, spec) = pool.versioned_spec();
        let row = |deleting| PoolRow { deleting, ..catalog::pool_row(pool.uid, version, &pool.name, &spec) };
        let marked = self.change_catalog(catalog, |rows| rows.put(row(true)), |rows| rows.put(row(false))).await;
        if let Err(error) = marked {
            self.reopen_pool(&pool);
            return Err(error);
        }
        self.finish_deletion(&pool).await;
        Ok(workers)
    }

    /// Ends the shards of a pool whose deletion is stored, then removes its row, last.
    pub(super) async fn finish_deletion(&self, pool: &Arc<Pool>) {
        pool.closing.store(true, Ordering::Release);
        self.dispatch().with_work(|work| self.dispatch().close_wait_queue(pool, work));
        join_all(pool.shards.iter().map(|handle| async move {
            end_workers(handle, self.environment()).await;
            handle.stop().await;
            self.dispatch().journal.drop_shard(&handle.outbox);
            handle.outbox.wait_dropped().await;
        }))
        .await;
        self.dispatch().pools.remove(pool);
        pool.event_log.close();
        self.dispatch().forget_pool(pool.number);
        self.dispatch().with_work(|work| self.dispatch().abort_gangs_of_pool(pool.uid, work));
        if let Ok(catalog) = self.catalog() {
            let removed = catalog.remove(pool.uid);
            catalog.wait_stored(removed).await;
        }
    }

    pub(super) fn catalog(&self) -> Result<&Arc<PoolCatalog>, RequestError> {
        self.shared.catalog.get().ok_or(RequestError::Unavailable(UnavailableReason::Loading))
    }

    /// Writes `change` and waits until it is stored. If that takes too long, `undo` is written after it: the change
    /// may be stored or not, and only a restart before both are stored can bring it into force. Calls must not
    /// overlap.
    ///
    /// # Errors
    /// `Store` or `Fenced`; the change is undone.
    pub(super) async fn change_catalog(
        &self,
        catalog: &PoolCatalog,
        change: impl FnOnce(&PoolCatalog) -> Seq,
        undo: impl FnOnce(&PoolCatalog) -> Seq,
    ) -> Result<(), RequestError> {
        let stored = self.wait_for_catalog(catalog, change(catalog)).await;
        if stored.is_err() {
            undo(catalog);
        }
        stored
    }

    async fn wait_for_catalog(&self, catalog: &PoolCatalog, seq: Seq) -> Result<(), RequestError> {
        let limit = Duration::from_millis(self.dispatch().settings.store_wait_ms);
        match self.environment().timeout(limit, catalog.wait_stored(seq)).await {
            Some(true) => Ok(()),
            Some(false) => Err(RequestError::Unavailable(UnavailableReason::Fenced)),
            None => Err(RequestError::Unavailable(UnavailableReason::Store)),
        }
    }

    /// Collects the reports of all shards, using the handles of shards that do not answer.
    pub(super) async fn status(&self, pool: &Arc<Pool>) -> PoolStatus {
        let reports = join_all(pool.shards.iter().map(|handle| async move {
            let (reply, answer) = oneshot::channel();
            handle.push_or_reject(Command::Report(reply));
            recv_outcome(answer).await.unwrap_or_else(|_| offline_report(handle))
        }))
        .await;
        let (version, spec) = pool.versioned_spec();
        let mut status = PoolStatus {
            name: pool.name.clone(),
            spec: (*spec).clone(),
            version,
            capacity: ResourceVector::default(),
            free: ResourceVector::default(),
            gpus: BTreeMap::new(),
            preemption_paused: pool.is_preemption_paused(),
            shards: Vec::with_capacity(reports.len()),
        };
        for report in reports {
            add_accounting(&mut status, &report);
            status.shards.push(report.status);
        }
        status
    }
}

fn deletion_conflict() -> RequestError {
    Precondition::PoolDeleting.into()
}

fn offline_report(handle: &ShardHandle) -> ShardReport {
    let state = match handle.state() {
        // The shard serves but did not answer: its mailbox is full, or it just panicked.
        ShardState::Serving => ShardState::Loading,
        other => other,
    };
    let status = ShardStatus {
        shard: handle.shard.shard,
        state: state.as_str().into(),
        reason: handle.reason(),
        applied_seq: handle.outbox.applied_seq(),
        lag_ms: handle.outbox.lag_ms(),
        queue_depth: handle.queue_depth() as u64,
        restarts: handle.restarts(),
        ..ShardStatus::default()
    };
    ShardReport { status, accounting: Vec::new(), claimable: None, accounting_mismatch: 0 }
}

fn add_accounting(status: &mut PoolStatus, report: &ShardReport) {
    for usage in &report.accounting {
        let free = if report.claimable.is_some() { 0 } else { usage.free() };
        for (sum, workers) in [(&mut status.capacity, usage.workers), (&mut status.free, free)] {
            let amounts = ResourceVector::from(&usage.capacity);
            *sum = sum.saturating_add(amounts.map(|amount| amount.saturating_mul(workers.into())));
        }
        if let Some(gpu) = &usage.capacity.gpu {
            let gpus = status.gpus.entry(gpu.model.to_string()).or_default();
            gpus.total += u64::from(gpu.count) * u64::from(usage.workers);
            gpus.free += u64::from(gpu.count) * u64::from(free);
            gpus.free_milli += u64::from(limits::GPU_MILLI) * u64::from(gpu.count) * u64::from(free);
        }
    }
    if let Some(claimable) = &report.claimable {
        status.free = status.free.saturating_add(claimable.amounts);
        for (model, idle, milli) in claimable.gpus.iter().filter(|(_, _, milli)| *milli > 0) {
            let gpus = status.gpus.entry(model.to_string()).or_default();
            (gpus.free, gpus.free_milli) = (gpus.free + idle, gpus.free_milli + milli);
        }
    }
}

/// Ends the workers of a shard and their claims, slice by slice. A shard that does not answer in time keeps the
/// remaining ones, which go with the pool and are not reported.
async fn end_workers(handle: &ShardHandle, environment: &Environment) {
    let (mut from, mut attempts) = (0, 0);
    while attempts < END_ATTEMPTS {
        let (reply, answer) = oneshot::channel();
        handle.push_or_reject(Command::EndWorkers(from, reply));
        match answer.await {
            Ok(Ok(EndedWorkers { next: Some(next) })) => from = next,
            Ok(Ok(EndedWorkers { next: None })) => return,
            Ok(Err(RequestError::Unavailable(UnavailableReason::Overloaded | UnavailableReason::Loading))) | Err(_) => {
                // A shard that panicked numbers its workers anew.
                (from, attempts) = (0, attempts + 1);
                environment.sleep(END_PAUSE).await;
            }
            Ok(Err(_)) => return,
        }
    }
}
