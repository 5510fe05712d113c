//! Pools of this process, by name and by the number that a pending claim carries.

mod numbers;

use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, Guard};

use self::numbers::NumberTable;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::queue::PoolQueue;
use crate::collections::HashMap;
use crate::limits;
use crate::metrics::{ClaimOutcome, ShardState};
use crate::model::label_selector::LabelSelector;
use crate::model::{PoolName, UnschedulableReason};
use crate::shard::{self, PoolContext, ShardRef};

/// Handle of a shard that reports to this layer.
pub type ShardHandle = shard::ShardHandle<ClaimDispatcher>;

/// Pool with its shards, and with what this layer keeps for it.
pub struct Pool {
    /// Part that the shards know too.
    pub context: Arc<PoolContext>,
    /// Part of the pool's keys in the store; never reused.
    pub uid: u64,
    /// Handles of the pool's shards, by index.
    pub shards: Box<[Arc<ShardHandle>]>,
    /// Queue of claims that wait for capacity in the pool.
    pub wait_queue: PoolQueue,
}

impl std::ops::Deref for Pool {
    type Target = PoolContext;

    fn deref(&self) -> &PoolContext {
        &self.context
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("name", &self.name).field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl Pool {
    /// Creates a pool with one handle per shard.
    #[must_use]
    pub fn new(uid: u64, context: Arc<PoolContext>, shards: Box<[Arc<ShardHandle>]>) -> Self {
        let wait_queue = PoolQueue::new(context.number, Arc::clone(&context.queue_state));
        Self { context, uid, shards, wait_queue }
    }

    /// Number of workers that are idle, hold claims, or are reserved for claims that wait.
    #[must_use]
    pub fn usable_workers(&self) -> u64 {
        let count = |handle: &Arc<ShardHandle>| {
            let shard = handle.shard.shard;
            let reserved = handle.unschedulable_idle(UnschedulableReason::Reserved);
            u64::from(self.board.idle(shard)) + u64::from(self.board.busy(shard)) + u64::from(reserved)
        };
        self.shards.iter().map(count).sum()
    }

    /// Whether nobody is evicted for now, because a sixteenth of the workers, or one, is suspect after evictions that were not
    /// released in time: more evictions would make worker after worker suspect.
    #[must_use]
    pub fn is_preemption_paused(&self) -> bool {
        if !self.spec.load().preemption {
            return false;
        }
        let unreleased: usize = self.shards.iter().map(|handle| handle.unreleased_evictions()).sum();
        unreleased as u64 >= (self.usable_workers() / limits::UNRELEASED_EVICTIONS_SHARE).max(1)
    }

    /// Whether some shard does not answer, so that "exhausted" cannot be said.
    #[must_use]
    pub fn has_unavailable_shard(&self) -> bool {
        self.shards.iter().any(|handle| handle.state() != ShardState::Serving)
    }

    /// Updates the pool's gauges, and the counters that shards keep for themselves.
    pub fn update_metrics(&self) {
        let metrics = &self.metrics;
        let (mut idle, mut busy, mut depth, mut store_lag_ms, mut accounting_mismatch) = (0, 0, 0, 0, 0);
        let (mut created, mut releases, mut worker_updates, mut rolled_back) = (0, 0, 0, 0);
        for handle in &self.shards {
            depth += handle.queue_depth();
            store_lag_ms = store_lag_ms.max(handle.outbox.lag_ms());
            idle += self.board.idle(handle.shard.shard);
            busy += self.board.busy(handle.shard.shard);
            accounting_mismatch += handle.accounting_mismatch();
            created += handle.counters.created.total();
            releases += handle.counters.releases.total();
            worker_updates += handle.counters.worker_updates.total();
            rolled_back += handle.counters.rolled_back.total();
        }
        metrics.claims(ClaimOutcome::Created).raise_to(created);
        metrics.releases.raise_to(releases);
        metrics.worker_updates.raise_to(worker_updates);
        metrics.claims_rolled_back.raise_to(rolled_back);
        metrics.workers_idle.set(f64::from(idle));
        metrics.workers_busy.set(f64::from(busy));
        for &reason in UnschedulableReason::ALL {
            let sum = |workers: fn(&ShardHandle, UnschedulableReason) -> u32| -> u64 {
                self.shards.iter().map(|handle| u64::from(workers(handle, reason))).sum()
            };
            metrics.workers_unschedulable(reason).set(sum(ShardHandle::unschedulable) as f64);
            metrics.workers_unschedulable_idle(reason).set(sum(ShardHandle::unschedulable_idle) as f64);
        }
        let held = |handle: &Arc<ShardHandle>| self.board.busy(handle.shard.shard);
        // Each worker is idle, busy, or counted under its first reason to be unschedulable.
        let workers = |handle: &Arc<ShardHandle>| {
            let unschedulable: u32 =
                UnschedulableReason::ALL.iter().map(|reason| handle.unschedulable_idle(*reason)).sum();
            self.board.idle(handle.shard.shard) + held(handle) + unschedulable
        };
        metrics.shard_workers.set(self.shards.iter().map(workers));
        metrics.shard_busy_workers.set(self.shards.iter().map(held));
        metrics.queue_depth.set(depth as f64);
        metrics.store_lag_seconds.set(store_lag_ms as f64 / 1e3);
        metrics.accounting_mismatch.set(accounting_mismatch as f64);
        metrics.claims_pending.set(self.wait_queue.waiting() as f64);
        metrics.watchers.set(self.event_log.watchers() as f64);
    }
}

/// Snapshot of all pools at one moment.
#[derive(Debug, Default)]
pub struct PoolMap {
    by_name: HashMap<PoolName, Arc<Pool>>,
    by_number: NumberTable<Arc<Pool>>,
    /// Pools by name, for selectors over a namespace and for the scrape.
    in_order: Vec<Arc<Pool>>,
    /// Pools by namespace and label, ordered by name; built by the first selection.
    by_label: OnceLock<HashMap<PoolLabel, Vec<Arc<Pool>>>>,
    /// Number of changes before this snapshot.
    version: u64,
}

/// Namespace of a pool, with the key and the value of one of its labels.
type PoolLabel = (String, String, String);

impl PoolMap {
    /// Pool with this name.
    #[must_use]
    pub fn get(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.by_name.get(name)
    }

    /// Pool with this number.
    #[must_use]
    pub fn by_number(&self, number: u32) -> Option<&Arc<Pool>> {
        self.by_number.get(number)
    }

    /// All pools, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.in_order.iter()
    }

    /// All pools, ordered by name.
    #[must_use]
    pub fn in_order(&self) -> &[Arc<Pool>] {
        &self.in_order
    }

    /// Pools of a namespace, ordered by name.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pool>> {
        let from = self.in_order.partition_point(|pool| pool.name.namespace() < namespace);
        self.in_order[from..].iter().take_while(move |pool| pool.name.namespace() == namespace)
    }

    /// Version of the snapshot: another one may select other pools.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Pools of a namespace that the selector matches and that are not being deleted, ordered by name. Looks at those with
    /// a label that the selector requires, if it requires a value of any.
    #[must_use]
    pub fn select(&self, namespace: &str, selector: &LabelSelector) -> Vec<&Arc<Pool>> {
        let is_selected = |pool: &&Arc<Pool>| !pool.is_closing() && selector.matches(&pool.spec.load().labels);
        let Some((key, values)) = selector.required_values() else {
            return self.of_namespace(namespace).filter(is_selected).collect();
        };
        let label = |value: &str| (namespace.to_owned(), key.to_owned(), value.to_owned());
        let by_label = self.by_label.get_or_init(|| self.index_labels());
        let with_label = values.filter_map(|value| by_label.get(&label(value))).flatten();
        let mut pools: Vec<&Arc<Pool>> = with_label.filter(is_selected).collect();
        pools.sort_by(|a, b| a.name.pool().cmp(b.name.pool()));
        pools
    }

    fn index_labels(&self) -> HashMap<PoolLabel, Vec<Arc<Pool>>> {
        let mut by_label: HashMap<PoolLabel, Vec<Arc<Pool>>> = HashMap::default();
        for pool in &self.in_order {
            for (key, value) in &pool.spec.load().labels {
                let label = (pool.name.namespace().to_owned(), key.clone(), value.clone());
                by_label.entry(label).or_default().push(Arc::clone(pool));
            }
        }
        by_label
    }

    /// Number of pools in the snapshot.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are no pools.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Number of shards of all pools.
    #[must_use]
    pub fn total_shards(&self) -> usize {
        self.iter().map(|pool| pool.shards.len()).sum()
    }

    /// Handle of a shard, if its pool exists.
    #[must_use]
    pub fn shard(&self, shard: ShardRef) -> Option<&Arc<ShardHandle>> {
        self.by_number(shard.pool)?.shards.get(shard.shard as usize)
    }
}

/// Registry of pools: read without a lock by every request, seldom changed.
#[derive(Debug, Default)]
pub struct PoolRegistry {
    map: ArcSwap<PoolMap>,
    change_lock: Mutex<()>,
}

impl PoolRegistry {
    /// Snapshot of all pools.
    pub fn load(&self) -> Guard<Arc<PoolMap>> {
        self.map.load()
    }

    /// Snapshot of all pools that can be kept across an await.
    #[must_use]
    pub fn load_full(&self) -> Arc<PoolMap> {
        self.map.load_full()
    }

    /// Reserves a number for a new pool.
    pub fn next_number(&self) -> u32 {
        self.update(|map| map.by_number.reserve())
    }

    /// Adds a pool whose number was reserved.
    pub fn insert(&self, pool: &Arc<Pool>) {
        self.update(|map| {
            map.by_name.insert(pool.name.clone(), Arc::clone(pool));
            map.by_number.insert(pool.number, Arc::clone(pool));
        });
    }

    /// Removes a pool from the registry.
    pub fn remove(&self, pool: &Pool) {
        self.update(|map| {
            map.by_name.remove(&pool.name);
            map.by_number.remove(pool.number);
        });
    }

    /// Discards the index of labels after those of a pool have changed.
    pub fn refresh_labels(&self) {
        self.update(|_| ());
    }

    fn update<T>(&self, change: impl FnOnce(&mut PoolMap) -> T) -> T {
        let _one_at_a_time = self.change_lock.lock();
        let old = self.map.load();
        let mut map = PoolMap {
            by_name: old.by_name.clone(),
            by_number: old.by_number.clone(),
            in_order: Vec::new(),
            by_label: OnceLock::new(),
            version: old.version + 1,
        };
        let result = change(&mut map);
        map.in_order = map.by_name.values().cloned().collect();
        map.in_order.sort_by(|a, b| (a.name.namespace(), a.name.pool()).cmp(&(b.name.namespace(), b.name.pool())));
        self.map.store(Arc::new(map));
        result
    }
}
