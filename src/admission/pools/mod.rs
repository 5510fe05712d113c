//! The pools of this process: by name, and by the number that a claim on its way carries.

mod numbers;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use hashbrown::HashMap;

use self::numbers::NumberTable;
use crate::admission::keys::{ShardRef, Unstored};
use crate::admission::router::Board;
use crate::admission::waiters::Line;
use crate::events::Watch;
use crate::metrics::{ClaimOutcome, PoolMetrics, ShardState};
use crate::model::{Ack, PoolName, PoolSpec, UnschedulableReason};
use crate::shard::ShardPort;

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
    pub ports: Box<[Arc<ShardPort>]>,
    /// What they publish.
    pub board: Board,
    /// Its metrics.
    pub metrics: Arc<PoolMetrics>,
    /// Claims that wait for room in it.
    pub line: Line,
    /// What happens in it, for those who watch.
    pub watch: Arc<Watch>,
    /// Held by the gang whose turn it is.
    pub gangs: Arc<tokio::sync::Mutex<()>>,
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
        ports: Box<[Arc<ShardPort>]>,
        metrics: Arc<PoolMetrics>,
    ) -> Self {
        let durable = AtomicBool::new(spec.ack == Ack::Durable);
        let board = Board::new(spec.shards, spec.mode);
        let spec = ArcSwap::from_pointee(spec);
        Self {
            number,
            uid,
            name,
            spec,
            version: AtomicU64::new(version),
            durable,
            ports,
            board,
            metrics,
            line: Line::default(),
            watch: Arc::default(),
            gangs: Arc::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// Whether some shard does not answer, so that "full" cannot be said.
    #[must_use]
    pub fn has_silent_shard(&self) -> bool {
        self.ports.iter().any(|port| port.state() != ShardState::Serving)
    }

    /// Whether answers wait for the store, unless a request asks for more.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Relaxed)
    }

    /// From now on this specification holds. One at a time.
    pub fn respecify(&self, version: u64, spec: PoolSpec) {
        debug_assert!(version > self.version.load(Ordering::Relaxed), "versions grow");
        self.durable.store(spec.ack == Ack::Durable, Ordering::Relaxed);
        self.spec.store(Arc::new(spec));
        self.version.store(version, Ordering::Release);
    }

    /// The specification and its number. While it changes the number may be the one before: whoever then says it is refused,
    /// which is better than to change what was not seen.
    #[must_use]
    pub fn specification(&self) -> (u64, Arc<PoolSpec>) {
        let version = self.version.load(Ordering::Acquire);
        (version, self.spec.load_full())
    }

    /// Brings its gauges up to date, and the counters that its shards keep for themselves.
    pub fn observe(&self) {
        let metrics = &self.metrics;
        let (mut idle, mut busy, mut depth, mut lag_ms, mut drift) = (0, 0, 0, 0, 0);
        let (mut created, mut releases, mut touches, mut give_backs) = (0, 0, 0, 0);
        for port in &self.ports {
            depth += port.depth();
            lag_ms = lag_ms.max(port.outbox.lag_ms());
            idle += self.board.idle(port.shard.shard);
            busy += self.board.held(port.shard.shard);
            drift += port.drift();
            created += port.tally.created.total();
            releases += port.tally.releases.total();
            touches += port.tally.touches.total();
            give_backs += port.tally.give_backs.total();
        }
        metrics.claims(ClaimOutcome::Created).raise_to(created);
        metrics.releases.raise_to(releases);
        metrics.worker_touches.raise_to(touches);
        metrics.give_backs.raise_to(give_backs);
        metrics.workers_idle.set(f64::from(idle));
        metrics.workers_busy.set(f64::from(busy));
        for reason in UnschedulableReason::ALL {
            let sum = |workers: fn(&ShardPort, UnschedulableReason) -> u32| -> u64 {
                self.ports.iter().map(|port| u64::from(workers(port, reason))).sum()
            };
            metrics.workers_barred(reason).set(sum(ShardPort::barred) as f64);
            metrics.workers_unschedulable(reason).set(sum(ShardPort::barred_free) as f64);
        }
        let held = |port: &Arc<ShardPort>| self.board.held(port.shard.shard);
        // Each worker is idle, busy, or not offered for a first reason.
        let workers = |port: &Arc<ShardPort>| {
            let unschedulable: u32 = UnschedulableReason::ALL.iter().map(|reason| port.barred_free(*reason)).sum();
            self.board.idle(port.shard.shard) + held(port) + unschedulable
        };
        metrics.shard_workers.set(self.ports.iter().map(workers));
        metrics.shard_held.set(self.ports.iter().map(held));
        metrics.ring_depth.set(depth as f64);
        metrics.store_lag_seconds.set(lag_ms as f64 / 1e3);
        metrics.ledger_drift.set(drift as f64);
        metrics.waiters.set(self.line.waiting() as f64);
        metrics.watchers.set(self.watch.watchers() as f64);
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
    pub fn at(&self, number: u32) -> Option<&Arc<Pool>> {
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
        self.iter().map(|pool| pool.ports.len()).sum()
    }

    /// The port of a shard.
    #[must_use]
    pub fn port(&self, shard: ShardRef) -> Option<&Arc<ShardPort>> {
        self.at(shard.pool)?.ports.get(shard.shard as usize)
    }

    /// Whether the store has the record. Those of a deleted pool are gone with it.
    #[must_use]
    pub fn is_stored(&self, record: &Unstored) -> bool {
        self.port(record.shard).is_none_or(|port| port.outbox.applied() >= record.seq)
    }
}

/// The pools, read without a lock by every request, changed rarely.
#[derive(Debug, Default)]
pub struct Pools {
    map: ArcSwap<PoolMap>,
    change: Mutex<()>,
}

impl Pools {
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
        let _one_at_a_time = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.map.load();
        let mut map = PoolMap { by_name: old.by_name.clone(), by_number: old.by_number.clone(), in_order: Vec::new() };
        let result = change(&mut map);
        map.in_order = map.by_name.values().cloned().collect();
        map.in_order.sort_by(|a, b| (a.name.namespace(), a.name.pool()).cmp(&(b.name.namespace(), b.name.pool())));
        self.map.store(Arc::new(map));
        result
    }
}
