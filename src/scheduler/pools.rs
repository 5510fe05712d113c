//! Pools: put, look, delete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;

use super::change_log::{ChangeDetails, ChangeKind, ChangeResult, SpecDiff};
use super::{Scheduler, recv_outcome};
use crate::admission::pool_registry::Pool;
use crate::engine::ShardConfig;
use crate::limits;
use crate::metrics::ShardState;
use crate::model::request_error::{RequestError, UnavailableReason};
use crate::model::{PoolName, PoolSpec, PoolStatus, Seq, ShardStatus, WorkerCapacity};
use crate::persist::catalog::{self, PoolCatalog};
use crate::persist::row::PoolRow;
use crate::scheduler::caller::with_current_caller;
use crate::scheduler::recovery;
use crate::shard::{Command, ReplyPayload, ReplySender, ShardHandle, ShardReport};

/// Attempts to have a shard end its workers that found its queue full or the shard restarting, and the pause between two.
const END_ATTEMPTS: u32 = 20;
const END_PAUSE: Duration = Duration::from_millis(50);

impl Scheduler {
    /// Creates a pool (true), or replaces the specification of one that is there. Durable when it returns.
    ///
    /// # Errors
    /// `Invalid` naming the field; `State` for other `shards` or another `mode`, which never change, and for a new pool when
    /// there are as many pools or shards as there may be.
    pub async fn put_pool(&self, name: PoolName, spec: PoolSpec) -> Result<(bool, PoolStatus), RequestError> {
        let scheduler = self.clone();
        // Once begun it goes to its end, whether the caller waits or not: half a pool would keep its number and its shards.
        let setting = tokio::spawn(with_current_caller(async move {
            scheduler.check_serving().or_else(|refusal| scheduler.log_rejected_put(&name, refusal))?;
            scheduler.set_pool(name, spec).await
        }));
        let (created, pool) = setting.await.unwrap_or(Err(RequestError::DeadlineExceeded))?;
        Ok((created, self.status(&pool).await))
    }

    /// Changes a pool that is there into what `change` makes of its specification. `version`: only if it is still at this
    /// one. Of changes at one time each sees what those before it made. Durable when it returns.
    ///
    /// # Errors
    /// `NotFound`; `Version` if it is at another; `Invalid` naming the field; `State` for other `shards` or another `mode`;
    /// those of `change`.
    pub async fn update_pool(
        &self,
        name: PoolName,
        version: Option<u64>,
        change: impl FnOnce(&PoolSpec) -> Result<PoolSpec, RequestError> + Send + 'static,
    ) -> Result<PoolStatus, RequestError> {
        let scheduler = self.clone();
        // As with `put_pool`, it goes to its end.
        let changing = tokio::spawn(with_current_caller(async move {
            let _one_at_a_time = scheduler.shared.pool_change_lock.lock().await;
            let changed = scheduler.changed_specification(&name, version, change);
            let (pool, spec) = changed.or_else(|refusal| scheduler.log_rejected_put(&name, refusal))?;
            scheduler.replace_pool(&pool, spec).await?;
            Ok(pool)
        }));
        let pool = changing.await.unwrap_or(Err(RequestError::DeadlineExceeded))?;
        Ok(self.status(&pool).await)
    }

    /// Specification that a pool would have, and the pool; the caller lets one change go at a time.
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

    /// Creates a pool (true), or replaces its specification, as [`Self::put_pool`] does; also before calls are answered.
    pub(super) async fn set_pool(&self, name: PoolName, spec: PoolSpec) -> Result<(bool, Arc<Pool>), RequestError> {
        let spec = spec.with_defaults().or_else(|refusal| self.log_rejected_put(&name, refusal))?;
        let _one_at_a_time = self.shared.pool_change_lock.lock().await;
        let known = self.dispatch().pools.load().get(&name).cloned();
        match known {
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

    /// Logs a pool's specification that is refused before anything is begun, and passes the refusal on.
    fn log_rejected_put<T>(&self, name: &PoolName, refusal: RequestError) -> Result<T, RequestError> {
        self.change(ChangeKind::PutPool, ChangeDetails::of_pool(name)).outcome(ChangeResult::Unchanged, Err(refusal))
    }

    async fn create_pool(&self, name: PoolName, spec: PoolSpec) -> Result<Arc<Pool>, RequestError> {
        if self.dispatch().pools.load().len() >= limits::POOLS_MAX {
            return Err(RequestError::FailedPrecondition(format!("at most {} pools", limits::POOLS_MAX).into()));
        }
        self.check_total_shards(spec.shards)?;
        let catalogue = self.catalogue()?;
        // A row without a pool is that of a deletion that goes on after a restart, which removes it last.
        if catalogue.find(&name).is_some() {
            return Err(deletion_conflict());
        }
        // A fence, so never used before.
        let uid = self.dispatch().allocate_fences(1).map_err(RequestError::Unavailable)?;
        let row = catalog::pool_row(uid, uid, &name, &spec);
        self.change_catalogue(catalogue, |rows| rows.put(row), |rows| rows.remove(uid)).await?;
        let pool = recovery::make_pool(self.dispatch(), uid, uid, name, spec);
        if let Some(supervisor) = self.shared.supervisor.get() {
            recovery::open_pool_shards(self.dispatch(), &pool, supervisor).await;
        }
        self.dispatch().pools.insert(&pool);
        Ok(pool)
    }

    /// Counted anew each time, over the pools that are there and those that are being deleted: nothing can be forgotten.
    fn check_total_shards(&self, more: u16) -> Result<(), RequestError> {
        let (there, most) = (self.dispatch().pools.load().total_shards(), self.dispatch().settings.shards_max);
        if there + usize::from(more) <= most {
            return Ok(());
        }
        let text = format!(
            "at most {most} shards over all pools (server.max_shards): there are {there}, and this pool would add {more}; \
             give it fewer, delete pools, or raise server.max_shards"
        );
        Err(RequestError::FailedPrecondition(text.into()))
    }

    async fn replace_pool(&self, pool: &Arc<Pool>, spec: PoolSpec) -> Result<(), RequestError> {
        let mut change = self.change(ChangeKind::PutPool, ChangeDetails::of_pool(&pool.name));
        let old = pool.spec.load_full();
        change.details().difference = Some(SpecDiff::between(&*old, &spec));
        let made = if *old == spec { ChangeResult::Unchanged } else { ChangeResult::Replaced };
        change.outcome(made, self.store_specification(pool, spec).await)
    }

    async fn store_specification(&self, pool: &Arc<Pool>, spec: PoolSpec) -> Result<(), RequestError> {
        let old = pool.spec.load_full();
        if (old.shards, old.mode) != (spec.shards, spec.mode) {
            let differs = match old.shards == spec.shards {
                true => format!("it is {}, got {}", old.mode.as_str(), spec.mode.as_str()),
                false => format!("it has {} shards, got {}", old.shards, spec.shards),
            };
            let text =
                format!("shards and mode of a pool never change: {differs}; make a new pool and move its workers");
            return Err(RequestError::FailedPrecondition(text.into()));
        }
        let catalogue = self.catalogue()?;
        if *old == spec {
            // A row that a failed change put back may still be on its way.
            return self.wait_for_catalog(catalogue, catalogue.outbox().appended_seq()).await;
        }
        // A fence, so above the one before, and never used again, whatever becomes of the pool.
        let version = self.dispatch().allocate_fences(1).map_err(RequestError::Unavailable)?;
        let row = catalog::pool_row(pool.uid, version, &pool.name, &spec);
        let row_before = catalog::pool_row(pool.uid, pool.versioned_spec().0, &pool.name, &old);
        self.change_catalogue(catalogue, |rows| rows.put(row), |rows| rows.put(row_before)).await?;
        let rules = ShardConfig::from(&spec);
        // First, for a shard that is being loaded begins with what it finds here.
        pool.set_spec(version, spec);
        if ShardConfig::from(&*old) != rules {
            pool.shards.iter().for_each(|port| port.set_rules(rules.clone()));
        }
        for port in &pool.shards {
            // Whether it acknowledges from memory is what its own row must say.
            port.wake();
        }
        Ok(())
    }

    /// A pool: specification, counts, figures by shard.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_pool(&self, name: &PoolName) -> Result<PoolStatus, RequestError> {
        self.check_serving()?;
        let pool = self.pool(name)?;
        Ok(self.status(&pool).await)
    }

    /// Deletes a pool. Without `force` it must have no workers; with it, they end. Durable when it returns.
    ///
    /// # Errors
    /// `NotFound`; `State` if it has workers.
    pub async fn delete_pool(&self, name: &PoolName, force: bool) -> Result<(), RequestError> {
        let (scheduler, name) = (self.clone(), name.clone());
        // Once begun it goes to its end, whether the caller waits or not: half a deletion would leave the pool closed.
        let deleting = tokio::spawn(with_current_caller(async move {
            let details = ChangeDetails { forced: Some(force), ..ChangeDetails::of_pool(&name) };
            let mut change = scheduler.change(ChangeKind::DeletePool, details);
            let deleted = scheduler.run_pool_deletion(&name, force).await;
            change.details().workers = deleted.as_ref().ok().copied();
            change.outcome(ChangeResult::Done, deleted)
        }));
        deleting.await.unwrap_or(Err(RequestError::DeadlineExceeded)).map(drop)
    }

    /// Deletes a pool; how many workers went with it.
    async fn run_pool_deletion(&self, name: &PoolName, force: bool) -> Result<u64, RequestError> {
        self.check_serving()?;
        let _one_at_a_time = self.shared.pool_change_lock.lock().await;
        let pool = self.pool(name)?;
        let catalogue = self.catalogue()?;
        // From here on nothing new comes in, so the count below stands.
        pool.closing.store(true, Ordering::Release);
        let status = self.status(&pool).await;
        let workers: u64 = status.shards.iter().map(|shard| shard.workers).sum();
        let silent = status.shards.iter().find(|shard| shard.state != ShardState::Serving.as_str());
        let refused = match silent {
            _ if force => None,
            _ if workers > 0 => {
                Some(format!("the pool has {workers} workers; delete them first, or say force=true to end them"))
            }
            None => None,
            Some(shard) => Some(format!(
                "shard {} is {}, so its workers are not known; try again later, or say force=true to end them",
                shard.shard, shard.state
            )),
        };
        if let Some(text) = refused {
            pool.closing.store(false, Ordering::Release);
            return Err(RequestError::FailedPrecondition(text.into()));
        }
        let (version, spec) = pool.versioned_spec();
        let row = |deleting| PoolRow { deleting, ..catalog::pool_row(pool.uid, version, &pool.name, &spec) };
        let marked = self.change_catalogue(catalogue, |rows| rows.put(row(true)), |rows| rows.put(row(false))).await;
        if let Err(refusal) = marked {
            pool.closing.store(false, Ordering::Release);
            return Err(refusal);
        }
        self.finish_deletion(&pool).await;
        Ok(workers)
    }

    /// Ends the shards of a pool whose deletion is in the store, then removes its row, last.
    pub(super) async fn finish_deletion(&self, pool: &Arc<Pool>) {
        pool.closing.store(true, Ordering::Release);
        self.dispatch().close_wait_queue(pool);
        join_all(pool.shards.iter().map(|port| async move {
            end_workers(port).await;
            port.stop().await;
            let dropped = port.outbox.appended_seq() + 1;
            self.dispatch().journal.drop_shard(&port.outbox);
            port.outbox.wait_stored(dropped).await;
        }))
        .await;
        self.dispatch().pools.remove(pool);
        // Records of a pool that is gone hold back no answer.
        pool.shards.iter().for_each(|port| port.outbox.notify_waiters());
        pool.event_log.close();
        self.dispatch().keys.forget_pool(pool.number);
        self.abort_gangs_of_pool(pool.uid).await;
        if let Ok(catalogue) = self.catalogue() {
            let removed = catalogue.remove(pool.uid);
            catalogue.wait_stored(removed).await;
        }
    }

    pub(super) fn catalogue(&self) -> Result<&Arc<PoolCatalog>, RequestError> {
        self.shared.catalogue.get().ok_or(RequestError::Unavailable(UnavailableReason::Loading))
    }

    /// Makes `change` and waits until the store has it. If the store does not take it in time, `undo` follows it there: the
    /// change may be stored or not, and only a restart before the store has both may bring it into force. One at a time.
    ///
    /// # Errors
    /// `store` or `fenced`; the change is undone.
    pub(super) async fn change_catalogue(
        &self,
        catalogue: &PoolCatalog,
        change: impl FnOnce(&PoolCatalog) -> Seq,
        undo: impl FnOnce(&PoolCatalog) -> Seq,
    ) -> Result<(), RequestError> {
        let stored = self.wait_for_catalog(catalogue, change(catalogue)).await;
        if stored.is_err() {
            undo(catalogue);
        }
        stored
    }

    async fn wait_for_catalog(&self, catalogue: &PoolCatalog, seq: Seq) -> Result<(), RequestError> {
        let limit = Duration::from_millis(self.dispatch().settings.store_wait_ms);
        match tokio::time::timeout(limit, catalogue.wait_stored(seq)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(RequestError::Unavailable(UnavailableReason::Fenced)),
            Err(_) => Err(RequestError::Unavailable(UnavailableReason::Store)),
        }
    }

    /// Reports of all shards; for those that do not answer, from what their handles know.
    pub(super) async fn status(&self, pool: &Arc<Pool>) -> PoolStatus {
        let reports = join_all(pool.shards.iter().map(|port| async move {
            let (reply, answer) = ReplySender::oneshot();
            port.push_or_reject(Command::Report(reply));
            match recv_outcome(answer).await {
                Ok(ReplyPayload::Report(report)) => *report,
                _ => offline_report(port),
            }
        }))
        .await;
        let (version, spec) = pool.versioned_spec();
        let mut status = PoolStatus {
            name: pool.name.clone(),
            spec: (*spec).clone(),
            version,
            capacity: WorkerCapacity::default(),
            free: WorkerCapacity::default(),
            gpus: BTreeMap::new(),
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
    RequestError::FailedPrecondition("the pool is being deleted; try again when it is gone".into())
}

fn offline_report(port: &crate::shard::ShardHandle) -> ShardReport {
    let state = match port.state() {
        // It did not answer in spite of that: its ring is full, or it panicked just now.
        ShardState::Serving => ShardState::Loading,
        other => other,
    };
    let status = ShardStatus {
        shard: port.shard.shard,
        state: state.as_str().into(),
        reason: port.reason(),
        applied_seq: port.outbox.applied_seq(),
        lag_ms: port.outbox.lag_ms(),
        queue_depth: port.queue_depth() as u64,
        restarts: port.restarts(),
        ..ShardStatus::default()
    };
    ShardReport { status, accounting: Vec::new(), claimable: None, accounting_mismatch: 0 }
}

fn add_accounting(status: &mut PoolStatus, report: &ShardReport) {
    for line in &report.accounting {
        let free = if report.claimable.is_some() { 0 } else { line.free() };
        for (sum, workers) in [(&mut status.capacity, line.workers), (&mut status.free, free)] {
            let workers = u64::from(workers);
            sum.cpu_milli = sum.cpu_milli.saturating_add(line.capacity.cpu_milli.saturating_mul(workers));
            sum.memory_bytes = sum.memory_bytes.saturating_add(line.capacity.memory_bytes.saturating_mul(workers));
            sum.slots = sum.slots.saturating_add(line.capacity.slots.saturating_mul(workers));
        }
        if let Some(gpu) = &line.capacity.gpu {
            let cards = status.gpus.entry(gpu.model.to_string()).or_default();
            cards.total += u64::from(gpu.count) * u64::from(line.workers);
            cards.free += u64::from(gpu.count) * u64::from(free);
            cards.free_milli += u64::from(limits::GPU_MILLI) * u64::from(gpu.count) * u64::from(free);
        }
    }
    if let Some(left) = &report.claimable {
        let (sum, more) = (&mut status.free, &left.capacity);
        sum.cpu_milli = sum.cpu_milli.saturating_add(more.cpu_milli);
        sum.memory_bytes = sum.memory_bytes.saturating_add(more.memory_bytes);
        sum.slots = sum.slots.saturating_add(more.slots);
        for (model, idle, milli) in left.gpus.iter().filter(|(_, _, milli)| *milli > 0) {
            let cards = status.gpus.entry(model.to_string()).or_default();
            (cards.free, cards.free_milli) = (cards.free + idle, cards.free_milli + milli);
        }
    }
}

/// Has a shard end its workers and what they hold, in slices. One that does not answer in time keeps the rest, which goes with
/// the pool and is reported to nobody.
async fn end_workers(port: &ShardHandle) {
    let (mut at, mut attempts) = (0, 0);
    while attempts < END_ATTEMPTS {
        let (reply, answer) = ReplySender::oneshot();
        port.push_or_reject(Command::EndWorkers(at, reply));
        match answer.await {
            Ok(Ok(ReplyPayload::Unfinished(next))) => at = next,
            Ok(Ok(_)) => return,
            Ok(Err(RequestError::Unavailable(UnavailableReason::Overloaded | UnavailableReason::Loading))) | Err(_) => {
                // A shard that has panicked numbers its workers anew.
                (at, attempts) = (0, attempts + 1);
                tokio::time::sleep(END_PAUSE).await;
            }
            Ok(Err(_)) => return,
        }
    }
}
