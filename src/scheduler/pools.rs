//! Pools: put, look, delete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;

use super::change_log::{ChangeDetails, ChangeKind, ChangeResult, Difference};
use super::{Scheduler, wait};
use crate::admission::pools::Pool;
use crate::engine::Rules;
use crate::limits;
use crate::metrics::ShardState;
use crate::model::rejection::{Refusal, Unavailable};
use crate::model::{Capacity, PoolName, PoolSpec, PoolStatus, Seq, ShardStatus};
use crate::persist::catalog::{self, Catalogue};
use crate::scheduler::caller::carried;
use crate::scheduler::recovery;
use crate::shard::{Command, Payload, Reply, ShardPort, ShardReport};

/// Attempts to have a shard end its workers that found its queue full or the shard restarting, and the pause between two.
const END_ATTEMPTS: u32 = 20;
const END_PAUSE: Duration = Duration::from_millis(50);

impl Scheduler {
    /// Creates a pool (true), or replaces the specification of one that is there. Durable when it returns.
    ///
    /// # Errors
    /// `Invalid` naming the field; `State` for other `shards` or another `mode`, which never change, and for a new pool when
    /// there are as many pools or shards as there may be.
    pub async fn put_pool(&self, name: PoolName, spec: PoolSpec) -> Result<(bool, PoolStatus), Refusal> {
        let scheduler = self.clone();
        // Once begun it goes to its end, whether the caller waits or not: half a pool would keep its number and its shards.
        let setting = tokio::spawn(carried(async move {
            scheduler.open().or_else(|refusal| scheduler.refuse_put(&name, refusal))?;
            scheduler.set_pool(name, spec).await
        }));
        let (created, pool) = setting.await.unwrap_or(Err(Refusal::DeadlineExceeded))?;
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
        change: impl FnOnce(&PoolSpec) -> Result<PoolSpec, Refusal> + Send + 'static,
    ) -> Result<PoolStatus, Refusal> {
        let scheduler = self.clone();
        // As with `put_pool`, it goes to its end.
        let changing = tokio::spawn(carried(async move {
            let _one_at_a_time = scheduler.shared.changing.lock().await;
            let changed = scheduler.changed_specification(&name, version, change);
            let (pool, spec) = changed.or_else(|refusal| scheduler.refuse_put(&name, refusal))?;
            scheduler.replace_pool(&pool, spec).await?;
            Ok(pool)
        }));
        let pool = changing.await.unwrap_or(Err(Refusal::DeadlineExceeded))?;
        Ok(self.status(&pool).await)
    }

    /// Specification that a pool would have, and the pool; the caller lets one change go at a time.
    fn changed_specification(
        &self,
        name: &PoolName,
        version: Option<u64>,
        change: impl FnOnce(&PoolSpec) -> Result<PoolSpec, Refusal>,
    ) -> Result<(Arc<Pool>, PoolSpec), Refusal> {
        self.open()?;
        let pool = self.pool(name)?;
        let (current, spec) = pool.specification();
        if version.is_some_and(|version| version != current) {
            return Err(Refusal::Version(current));
        }
        let changed = change(&spec)?.settled()?;
        Ok((pool, changed))
    }

    /// Creates a pool (true), or replaces its specification, as [`Self::put_pool`] does; also before calls are answered.
    pub(super) async fn set_pool(&self, name: PoolName, spec: PoolSpec) -> Result<(bool, Arc<Pool>), Refusal> {
        let spec = spec.settled().or_else(|refusal| self.refuse_put(&name, refusal))?;
        let _one_at_a_time = self.shared.changing.lock().await;
        let known = self.dispatch().pools.load().get(&name).cloned();
        match known {
            Some(pool) if pool.is_closing() => self.refuse_put(&name, being_deleted()),
            Some(pool) => {
                self.replace_pool(&pool, spec).await?;
                Ok((false, pool))
            }
            None => {
                let mut change = self.change(ChangeKind::PutPool, ChangeDetails::of_pool(&name));
                change.details().difference = Some(Difference::from_defaults(&spec));
                let created = change.outcome(ChangeResult::Created, self.create_pool(name, spec).await)?;
                Ok((true, created))
            }
        }
    }

    /// Logs a pool's specification that is refused before anything is begun, and passes the refusal on.
    fn refuse_put<T>(&self, name: &PoolName, refusal: Refusal) -> Result<T, Refusal> {
        self.change(ChangeKind::PutPool, ChangeDetails::of_pool(name)).outcome(ChangeResult::Unchanged, Err(refusal))
    }

    async fn create_pool(&self, name: PoolName, spec: PoolSpec) -> Result<Arc<Pool>, Refusal> {
        if self.dispatch().pools.load().len() >= limits::POOLS_MAX {
            return Err(Refusal::State(format!("at most {} pools", limits::POOLS_MAX).into()));
        }
        self.check_total_shards(spec.shards)?;
        let catalogue = self.catalogue()?;
        // A row without a pool is that of a deletion that goes on after a restart, which removes it last.
        if catalogue.find(&name).is_some() {
            return Err(being_deleted());
        }
        // A fence, so never used before.
        let uid = self.dispatch().draw_fences(1).map_err(Refusal::Unavailable)?;
        let row = catalog::row(uid, uid, &name, &spec, false);
        self.change_catalogue(catalogue, |rows| rows.put(row), |rows| rows.remove(uid)).await?;
        let pool = recovery::make_pool(self.dispatch(), uid, uid, name, spec);
        if let Some(supervisor) = self.shared.supervisor.get() {
            recovery::open_new(self.dispatch(), &pool, supervisor).await;
        }
        self.dispatch().pools.insert(&pool);
        Ok(pool)
    }

    /// Counted anew each time, over the pools that are there and those that are being deleted: nothing can be forgotten.
    fn check_total_shards(&self, more: u16) -> Result<(), Refusal> {
        let (there, most) = (self.dispatch().pools.load().total_shards(), self.dispatch().settings.shards_max);
        if there + usize::from(more) <= most {
            return Ok(());
        }
        let text = format!(
            "at most {most} shards over all pools (server.max_shards): there are {there}, and this pool would add {more}; \
             give it fewer, delete pools, or raise server.max_shards"
        );
        Err(Refusal::State(text.into()))
    }

    async fn replace_pool(&self, pool: &Arc<Pool>, spec: PoolSpec) -> Result<(), Refusal> {
        let mut change = self.change(ChangeKind::PutPool, ChangeDetails::of_pool(&pool.name));
        let old = pool.spec.load_full();
        change.details().difference = Some(Difference::between(&*old, &spec));
        let made = if *old == spec { ChangeResult::Unchanged } else { ChangeResult::Replaced };
        change.outcome(made, self.store_specification(pool, spec).await)
    }

    async fn store_specification(&self, pool: &Arc<Pool>, spec: PoolSpec) -> Result<(), Refusal> {
        let old = pool.spec.load_full();
        if (old.shards, old.mode) != (spec.shards, spec.mode) {
            let differs = match old.shards == spec.shards {
                true => format!("it is {}, got {}", old.mode.word(), spec.mode.word()),
                false => format!("it has {} shards, got {}", old.shards, spec.shards),
            };
            let text =
                format!("shards and mode of a pool never change: {differs}; make a new pool and move its workers");
            return Err(Refusal::State(text.into()));
        }
        let catalogue = self.catalogue()?;
        if *old == spec {
            // A row that a failed change put back may still be on its way.
            return self.stored(catalogue, catalogue.outbox().handed()).await;
        }
        // A fence, so above the one before, and never used again, whatever becomes of the pool.
        let version = self.dispatch().draw_fences(1).map_err(Refusal::Unavailable)?;
        let row = catalog::row(pool.uid, version, &pool.name, &spec, false);
        let row_before = catalog::row(pool.uid, pool.specification().0, &pool.name, &old, false);
        self.change_catalogue(catalogue, |rows| rows.put(row), |rows| rows.put(row_before)).await?;
        let rules = Rules::from(&spec);
        // First, for a shard that is being loaded begins with what it finds here.
        pool.respecify(version, spec);
        if Rules::from(&*old) != rules {
            pool.ports.iter().for_each(|port| port.set_rules(rules.clone()));
        }
        for port in &pool.ports {
            // Whether it acknowledges from memory is what its own row must say.
            port.wake();
        }
        Ok(())
    }

    /// A pool: specification, counts, figures by shard.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_pool(&self, name: &PoolName) -> Result<PoolStatus, Refusal> {
        self.open()?;
        let pool = self.pool(name)?;
        Ok(self.status(&pool).await)
    }

    /// Deletes a pool. Without `force` it must have no workers; with it, they end. Durable when it returns.
    ///
    /// # Errors
    /// `NotFound`; `State` if it has workers.
    pub async fn delete_pool(&self, name: &PoolName, force: bool) -> Result<(), Refusal> {
        let (scheduler, name) = (self.clone(), name.clone());
        // Once begun it goes to its end, whether the caller waits or not: half a deletion would leave the pool closed.
        let deleting = tokio::spawn(carried(async move {
            let details = ChangeDetails { forced: Some(force), ..ChangeDetails::of_pool(&name) };
            let mut change = scheduler.change(ChangeKind::DeletePool, details);
            let deleted = scheduler.delete_to_the_end(&name, force).await;
            change.details().workers = deleted.as_ref().ok().copied();
            change.outcome(ChangeResult::Done, deleted)
        }));
        deleting.await.unwrap_or(Err(Refusal::DeadlineExceeded)).map(drop)
    }

    /// Deletes a pool; how many workers went with it.
    async fn delete_to_the_end(&self, name: &PoolName, force: bool) -> Result<u64, Refusal> {
        self.open()?;
        let _one_at_a_time = self.shared.changing.lock().await;
        let pool = self.pool(name)?;
        let catalogue = self.catalogue()?;
        // From here on nothing new comes in, so the count below stands.
        pool.closing.store(true, Ordering::Release);
        let status = self.status(&pool).await;
        let workers: u64 = status.shards.iter().map(|shard| shard.workers).sum();
        let silent = status.shards.iter().find(|shard| shard.state != ShardState::Serving.word());
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
            return Err(Refusal::State(text.into()));
        }
        let (version, spec) = pool.specification();
        let row = |deleting| catalog::row(pool.uid, version, &pool.name, &spec, deleting);
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
        self.dispatch().close_line(pool);
        join_all(pool.ports.iter().map(|port| async move {
            end_workers(port).await;
            port.stop().await;
            let dropped = port.outbox.handed() + 1;
            self.dispatch().journal.drop_shard(&port.outbox);
            port.outbox.stored(dropped).await;
        }))
        .await;
        self.dispatch().pools.remove(pool);
        // Records of a pool that is gone hold back no answer.
        pool.ports.iter().for_each(|port| port.outbox.tell_awaiting());
        pool.watch.close();
        self.dispatch().keys.forget_pool(pool.number);
        self.undo_gangs_of(pool.uid).await;
        if let Ok(catalogue) = self.catalogue() {
            let removed = catalogue.remove(pool.uid);
            catalogue.stored(removed).await;
        }
    }

    pub(super) fn catalogue(&self) -> Result<&Arc<Catalogue>, Refusal> {
        self.shared.catalogue.get().ok_or(Refusal::Unavailable(Unavailable::Loading))
    }

    /// Makes `change` and waits until the store has it. If the store does not take it in time, `undo` follows it there: the
    /// change may be stored or not, and only a restart before the store has both may bring it into force. One at a time.
    ///
    /// # Errors
    /// `store` or `fenced`; the change is undone.
    pub(super) async fn change_catalogue(
        &self,
        catalogue: &Catalogue,
        change: impl FnOnce(&Catalogue) -> Seq,
        undo: impl FnOnce(&Catalogue) -> Seq,
    ) -> Result<(), Refusal> {
        let stored = self.stored(catalogue, change(catalogue)).await;
        if stored.is_err() {
            undo(catalogue);
        }
        stored
    }

    async fn stored(&self, catalogue: &Catalogue, seq: Seq) -> Result<(), Refusal> {
        let limit = Duration::from_millis(self.dispatch().settings.store_wait_ms);
        match tokio::time::timeout(limit, catalogue.stored(seq)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::Unavailable(Unavailable::Fenced)),
            Err(_) => Err(Refusal::Unavailable(Unavailable::Store)),
        }
    }

    /// Reports of all shards; for those that do not answer, from what their handles know.
    pub(super) async fn status(&self, pool: &Arc<Pool>) -> PoolStatus {
        let reports = join_all(pool.ports.iter().map(|port| async move {
            let (reply, answer) = Reply::one();
            port.ask(Command::Report(reply));
            match wait(answer).await {
                Ok(Payload::Report(report)) => *report,
                _ => silent(port),
            }
        }))
        .await;
        let (version, spec) = pool.specification();
        let mut status = PoolStatus {
            name: pool.name.clone(),
            spec: (*spec).clone(),
            version,
            capacity: Capacity::default(),
            free: Capacity::default(),
            gpus: BTreeMap::new(),
            shards: Vec::with_capacity(reports.len()),
        };
        for report in reports {
            add_ledger(&mut status, &report);
            status.shards.push(report.status);
        }
        status
    }
}

fn being_deleted() -> Refusal {
    Refusal::State("the pool is being deleted; try again when it is gone".into())
}

fn silent(port: &crate::shard::ShardPort) -> ShardReport {
    let state = match port.state() {
        // It did not answer in spite of that: its ring is full, or it panicked just now.
        ShardState::Serving => ShardState::Loading,
        other => other,
    };
    let status = ShardStatus {
        shard: port.shard.shard,
        state: state.word().into(),
        reason: port.reason(),
        applied_seq: port.outbox.applied(),
        lag_ms: port.outbox.lag_ms(),
        ring_depth: port.depth() as u64,
        restarts: port.restarts(),
        ..ShardStatus::default()
    };
    ShardReport { status, ledger: Vec::new(), left: None, drift: 0 }
}

fn add_ledger(status: &mut PoolStatus, report: &ShardReport) {
    for line in &report.ledger {
        let free = if report.left.is_some() { 0 } else { line.free() };
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
            cards.free_milli += u64::from(limits::CARD_MILLI) * u64::from(gpu.count) * u64::from(free);
        }
    }
    if let Some(left) = &report.left {
        let (sum, more) = (&mut status.free, &left.capacity);
        sum.cpu_milli = sum.cpu_milli.saturating_add(more.cpu_milli);
        sum.memory_bytes = sum.memory_bytes.saturating_add(more.memory_bytes);
        sum.slots = sum.slots.saturating_add(more.slots);
        for (model, idle, milli) in left.cards.iter().filter(|(_, _, milli)| *milli > 0) {
            let cards = status.gpus.entry(model.to_string()).or_default();
            (cards.free, cards.free_milli) = (cards.free + idle, cards.free_milli + milli);
        }
    }
}

/// Has a shard end its workers and what they hold, in slices. One that does not answer in time keeps the rest, which goes with
/// the pool and is reported to nobody.
async fn end_workers(port: &ShardPort) {
    let (mut at, mut attempts) = (0, 0);
    while attempts < END_ATTEMPTS {
        let (reply, answer) = Reply::one();
        port.ask(Command::Close(at, reply));
        match answer.await {
            Ok(Ok(Payload::Unfinished(next))) => at = next,
            Ok(Ok(_)) => return,
            Ok(Err(Refusal::Unavailable(Unavailable::Overloaded | Unavailable::Loading))) | Err(_) => {
                // A shard that has panicked numbers its workers anew.
                (at, attempts) = (0, attempts + 1);
                tokio::time::sleep(END_PAUSE).await;
            }
            Ok(Err(_)) => return,
        }
    }
}
