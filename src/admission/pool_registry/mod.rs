//! The pools of this process: by name, and by the number that a claim on its way carries.

mod numbers;

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use hashbrown::HashMap;

use self::numbers::NumberTable;
use crate::admission::capacity_board::CapacityBoard;
use crate::admission::key_directory::{PendingWrite, ShardRef};
use crate::admission::wait_queue::WaitQueue;
use crate::events::PoolEventLog;
use crate::metrics::{ClaimOutcome, PoolMetrics, ShardState};
use crate::model::{AckLevel, PoolName, PoolSpec, UnschedulableReason};
use crate::shard::ShardHandle;

/// A pool as it runs.
pub struct Pool {
    /// Number in this process.
    pub number: u32,
    /// Part of its keys in the store; never used again.
    pub uid: u64,
    /// Its name.
    pub name: PoolName,
    /// Its specification as of the last PUT.
    pub spec: ArcSwap<PoolSpec>,
    /// Number of that specification.
    version: AtomicU64,
    /// `spec.ack`, for the shards, which ask for it in every run.
    durable: AtomicBool,
    /// Its shards.
    pub shards: Box<[Arc<ShardHandle>]>,
    /// What they publish.
    pub board: CapacityBoard,
    /// Its metrics.
    pub metrics: Arc<PoolMetrics>,
    /// Claims that wait for room in it.
    pub wait_queue: WaitQueue,
    /// What happens in it, for those who watch.
    pub event_log: Arc<PoolEventLog>,
    /// Held by the gang whose turn it is.
    pub gang_lock: Arc<tokio::sync::Mutex<()>>,
    /// It is being deleted: nothing new comes in.
    pub closing: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("name", &self.name).field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl Pool {
    /// With one port a shard.
    #[must_use]
    pub fn new(
        number: u32,
        uid: u64,
        version: u64,
        name: PoolName,
        spec: PoolSpec,
        ports: Box<[Arc<ShardHandle>]>,
        metrics: Arc<PoolMetrics>,
    ) -> Self {
        let durable = AtomicBool::new(spec.ack == AckLevel::Durable);
        let board = CapacityBoard::new(spec.shards, spec.mode);
        let spec = ArcSwap::from_pointee(spec);
        Self {
            number,
            uid,
            name,
            spec,
            version: AtomicU64::new(version),
            durable,
            shards: ports,
            board,
            metrics,
            wait_queue: WaitQueue::default(),
            event_log: Arc::default(),
            gang_lock: Arc::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// Whether some shard does not answer, so that "full" cannot be said.
    #[must_use]
    pub fn has_unavailable_shard(&self) -> bool {
        self.shards.iter().any(|port| port.state() != ShardState::Serving)
    }

    /// Whether answers wait for the store, unless a request asks for more.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Relaxed)
    }

    /// From now on this specification holds. One at a time.
    pub fn set_spec(&self, version: u64, spec: PoolSpec) {
        debug_assert!(version > self.version.load(Ordering::Relaxed), "versions grow");
        self.durable.store(spec.ack == AckLevel::Durable, Ordering::Relaxed);
        self.spec.store(Arc::new(spec));
        self.version.store(version, Ordering::Release);
    }

    /// The specification and its number. While it changes the number may be the one before: whoever then says it is refused,
    /// which is better than to change what was not seen.
    #[must_use]
    pub fn versioned_spec(&self) -> (u64, Arc<PoolSpec>) {
        let version = self.version.load(Ordering::Acquire);
        (version, self.spec.load_full())
    }

    /// Brings its gauges up to date, and the counters that its shards keep for themselves.
    pub fn update_metrics(&self) {
        let metrics = &self.metrics;
        let (mut idle, mut busy, mut depth, mut lag_ms, mut drift) = (0, 0, 0, 0, 0);
        let (mut created, mut releases, mut touches, mut give_backs) = (0, 0, 0, 0);
        for port in &self.shards {
            depth += port.queue_depth();
            lag_ms = lag_ms.max(port.outbox.lag_ms());
            idle += self.board.idle(port.shard.shard);
            busy += self.board.busy(port.shard.shard);
            drift += port.accounting_mismatch();
            created += port.counters.created.total();
            releases += port.counters.releases.total();
            touches += port.counters.worker_updates.total();
            give_backs += port.counters.rolled_back.total();
        }
        metrics.claims(ClaimOutcome::Created).raise_to(created);
        metrics.releases.raise_to(releases);
        metrics.worker_updates.raise_to(touches);
        metrics.claims_rolled_back.raise_to(give_backs);
        metrics.workers_idle.set(f64::from(idle));
        metrics.workers_busy.set(f64::from(busy));
        for reason in UnschedulableReason::ALL {
            let sum = |workers: fn(&ShardHandle, UnschedulableReason) -> u32| -> u64 {
                self.shards.iter().map(|port| u64::from(workers(port, reason))).sum()
            };
            metrics.workers_unschedulable(reason).set(sum(ShardHandle::unschedulable) as f64);
            metrics.workers_unschedulable_idle(reason).set(sum(ShardHandle::unschedulable_idle) as f64);
        }
        let held = |port: &Arc<ShardHandle>| self.board.busy(port.shard.shard);
        // Each worker is idle, busy, or not offered for a first reason.
        let workers = |port: &Arc<ShardHandle>| {
            let unschedulable: u32 =
                UnschedulableReason::ALL.iter().map(|reason| port.unschedulable_idle(*reason)).sum();
            self.board.idle(port.shard.shard) + held(port) + unschedulable
        };
        metrics.shard_workers.set(self.shards.iter().map(workers));
        metrics.shard_busy_workers.set(self.shards.iter().map(held));
        metrics.queue_depth.set(depth as f64);
        metrics.store_lag_seconds.set(lag_ms as f64 / 1e3);
        metrics.accounting_mismatch.set(drift as f64);
        metrics.claims_pending.set(self.wait_queue.waiting() as f64);
        metrics.watchers.set(self.event_log.watchers() as f64);
    }

    /// Whether it is being deleted.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

/// All pools at one moment.
#[derive(Debug, Default)]
pub struct PoolMap {
    by_name: HashMap<PoolName, Arc<Pool>>,
    by_number: NumberTable<Arc<Pool>>,
    /// By name, for those who choose among all of a namespace, and for the scrape.
    in_order: Vec<Arc<Pool>>,
}

impl PoolMap {
    /// The pool of that name.
    #[must_use]
    pub fn get(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.by_name.get(name)
    }

    /// The pool with that number.
    #[must_use]
    pub fn by_number(&self, number: u32) -> Option<&Arc<Pool>> {
        self.by_number.get(number)
    }

    /// All, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.by_name.values()
    }

    /// All, in the order of their names.
    #[must_use]
    pub fn in_order(&self) -> &[Arc<Pool>] {
        &self.in_order
    }

    /// Those of a namespace, in the order of their names.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Pool>> {
        let from = self.in_order.partition_point(|pool| pool.name.namespace() < namespace);
        self.in_order[from..].iter().take_while(move |pool| pool.name.namespace() == namespace)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Shards of all pools.
    #[must_use]
    pub fn total_shards(&self) -> usize {
        self.iter().map(|pool| pool.shards.len()).sum()
    }

    /// The port of a shard.
    #[must_use]
    pub fn shard(&self, shard: ShardRef) -> Option<&Arc<ShardHandle>> {
        self.by_number(shard.pool)?.shards.get(shard.shard as usize)
    }

    /// Whether the store has the record. Those of a deleted pool are gone with it.
    #[must_use]
    pub fn is_stored(&self, record: &PendingWrite) -> bool {
        self.shard(record.shard).is_none_or(|port| port.outbox.applied_seq() >= record.seq)
    }
}

/// The pools, read without a lock by every request, changed rarely.
#[derive(Debug, Default)]
pub struct PoolRegistry {
    map: ArcSwap<PoolMap>,
    change_lock: Mutex<()>,
}

impl PoolRegistry {
    /// All pools now.
    pub fn load(&self) -> Guard<Arc<PoolMap>> {
        self.map.load()
    }

    /// The same, to be kept over an await.
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

    /// Takes a pool out.
    pub fn remove(&self, pool: &Pool) {
        self.update(|map| {
            map.by_name.remove(&pool.name);
            map.by_number.remove(pool.number);
        });
    }

    fn update<T>(&self, change: impl FnOnce(&mut PoolMap) -> T) -> T {
        let _one_at_a_time = self.change_lock.lock();
        let old = self.map.load();
        let mut map = PoolMap { by_name: old.by_name.clone(), by_number: old.by_number.clone(), in_order: Vec::new() };
        let result = change(&mut map);
        map.in_order = map.by_name.values().cloned().collect();
        map.in_order.sort_by(|a, b| (a.name.namespace(), a.name.pool()).cmp(&(b.name.namespace(), b.name.pool())));
        self.map.store(Arc::new(map));
        result
    }
}
