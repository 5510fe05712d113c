//! The handles of one pool's metrics.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, Label};

use super::*;
use crate::limits;
use crate::model::{PoolName, UnschedulableReason};

/// Fewest, mean and most of what the shards of a pool have. A series a shard would be thousands.
#[derive(Clone)]
pub struct Spread([Gauge; 3]);

impl Spread {
    /// Values of the label `stat`, in order.
    pub const STATS: [&str; 3] = ["min", "mean", "max"];

    fn new(gauge: impl Fn(&'static str) -> Gauge) -> Self {
        Self(Self::STATS.map(gauge))
    }

    /// Takes one number a shard.
    pub fn set(&self, shards: impl Iterator<Item = u32> + Clone) {
        let count = shards.clone().count().max(1);
        let sum: f64 = shards.clone().map(f64::from).sum();
        let [min, mean, max] = &self.0;
        min.set(shards.clone().min().unwrap_or(0));
        mean.set(sum / count as f64);
        max.set(shards.max().unwrap_or(0));
    }
}

/// Handles of one pool's metrics. Make one per pool, not per shard.
#[derive(Clone)]
pub struct PoolMetrics {
    claims: Vec<Counter>,
    /// `hotpool_claim_seconds`.
    pub claim_seconds: Histogram,
    /// `hotpool_ring_wait_seconds`.
    pub ring_wait_seconds: Histogram,
    /// `hotpool_releases_total`.
    pub releases: Counter,
    /// `hotpool_workers{state="idle"}`.
    pub workers_idle: Gauge,
    /// `hotpool_workers{state="busy"}`.
    pub workers_busy: Gauge,
    /// `hotpool_shard_workers`.
    pub shard_workers: Spread,
    /// `hotpool_shard_held`.
    pub shard_held: Spread,
    /// `hotpool_ring_depth`.
    pub ring_depth: Gauge,
    /// `hotpool_ring_refusals_total`.
    pub ring_refusals: Counter,
    /// `hotpool_claim_probes`.
    pub claim_probes: Histogram,
    /// `hotpool_worker_touches_total`.
    pub worker_touches: Counter,
    /// `hotpool_store_lag_seconds`.
    pub store_lag_seconds: Gauge,
    sweeps: Vec<Counter>,
    /// `hotpool_claims_lost_total`.
    pub claims_lost: Counter,
    /// `hotpool_workers_lost_total`.
    pub workers_lost: Counter,
    /// `hotpool_lost_workers_deleted_total`.
    pub lost_workers_deleted: Counter,
    workers_barred: Vec<Gauge>,
    workers_unschedulable: Vec<Gauge>,
    /// `hotpool_heartbeats_total`.
    pub heartbeats: Counter,
    /// `hotpool_heartbeats_ignored_total`.
    pub heartbeats_ignored: Counter,
    /// `hotpool_adoptions_total`.
    pub adoptions: Counter,
    /// `hotpool_stops_total`.
    pub stops: Counter,
    /// `hotpool_give_backs_total`.
    pub give_backs: Counter,
    /// `hotpool_waiters`.
    pub waiters: Gauge,
    /// `hotpool_wait_seconds`.
    pub wait_seconds: Histogram,
    /// `hotpool_watchers`.
    pub watchers: Gauge,
    /// `hotpool_watch_missed_total`.
    pub watch_missed: Counter,
    /// `hotpool_evictions_total`.
    pub evictions: Counter,
    /// `hotpool_ledger_drift`.
    pub ledger_drift: Gauge,
    /// `hotpool_shard_restarts_total`.
    pub shard_restarts: Counter,
}

impl PoolMetrics {
    /// The handles of this pool. A pool of the same name that existed before counts on.
    ///
    /// Series stay until the process ends, so only the first [`limits::POOLS_MAX`] names of a process get their
    /// own; what comes later counts under `pool="other"` and shows no gauges.
    #[must_use]
    pub fn new(pool: &PoolName) -> Self {
        let named = has_own_series(pool);
        let pool = if named { pool.to_string() } else { "other".to_owned() };
        let label = || vec![Label::new("pool", pool.clone())];
        let counter = |name| metrics::counter!(name, label());
        let histogram = |name| metrics::histogram!(name, label());
        let gauge = |name, mut labels: Vec<Label>| {
            labels.extend(label());
            if named { metrics::gauge!(name, labels) } else { Gauge::noop() }
        };
        Self {
            claims: claim_counters(&pool),
            claim_seconds: histogram(CLAIM_SECONDS),
            ring_wait_seconds: histogram(RING_WAIT),
            releases: counter(RELEASES),
            workers_idle: gauge(WORKERS, vec![Label::new("state", "idle")]),
            workers_busy: gauge(WORKERS, vec![Label::new("state", "busy")]),
            shard_workers: Spread::new(|stat| gauge(SHARD_WORKERS, vec![Label::new("stat", stat)])),
            shard_held: Spread::new(|stat| gauge(SHARD_HELD, vec![Label::new("stat", stat)])),
            ring_depth: gauge(RING_DEPTH, vec![]),
            ring_refusals: counter(RING_REFUSALS),
            claim_probes: histogram(CLAIM_PROBES),
            worker_touches: counter(TOUCHES),
            store_lag_seconds: gauge(STORE_LAG, vec![]),
            sweeps: Sweep::ALL
                .iter()
                .map(|deadline| {
                    let labels = [Label::new("pool", pool.clone()), Label::new("deadline", deadline.word())];
                    metrics::counter!(SWEEPS, labels.to_vec())
                })
                .collect(),
            claims_lost: counter(CLAIMS_LOST),
            workers_lost: counter(WORKERS_LOST),
            lost_workers_deleted: counter(LOST_WORKERS_DELETED),
            workers_barred: UnschedulableReason::ALL
                .iter()
                .map(|reason| gauge(WORKERS_BARRED, vec![Label::new("reason", reason.word())]))
                .collect(),
            workers_unschedulable: UnschedulableReason::ALL
                .iter()
                .map(|reason| gauge(WORKERS, vec![Label::new("state", reason.word())]))
                .collect(),
            heartbeats: counter(HEARTBEATS),
            heartbeats_ignored: counter(HEARTBEATS_IGNORED),
            adoptions: counter(ADOPTIONS),
            stops: counter(STOPS),
            give_backs: counter(GIVE_BACKS),
            waiters: gauge(WAITERS, vec![]),
            wait_seconds: histogram(WAIT_SECONDS),
            watchers: gauge(WATCHERS, vec![]),
            watch_missed: counter(WATCH_MISSED),
            evictions: counter(EVICTIONS),
            ledger_drift: gauge(LEDGER_DRIFT, vec![]),
            shard_restarts: counter(SHARD_RESTARTS),
        }
    }

    /// Counter of claims with this outcome.
    pub fn claims(&self, outcome: ClaimOutcome) -> &Counter {
        &self.claims[outcome as usize]
    }

    /// Counter of claims that this deadline ended.
    pub fn sweeps(&self, deadline: Sweep) -> &Counter {
        &self.sweeps[deadline as usize]
    }

    /// Gauge of workers that are not offered for this reason.
    pub fn workers_barred(&self, reason: UnschedulableReason) -> &Gauge {
        &self.workers_barred[reason as usize]
    }

    /// Gauge of workers that hold no claim and are not offered, with this as the first reason.
    pub fn workers_unschedulable(&self, reason: UnschedulableReason) -> &Gauge {
        &self.workers_unschedulable[reason as usize]
    }

    /// Sets every gauge to 0: the pool was deleted.
    pub fn zero_gauges(&self) {
        let one = [
            &self.workers_idle,
            &self.workers_busy,
            &self.ring_depth,
            &self.store_lag_seconds,
            &self.ledger_drift,
            &self.waiters,
            &self.watchers,
        ];
        for gauge in one.into_iter().chain(&self.workers_barred).chain(&self.workers_unschedulable) {
            gauge.set(0.0);
        }
        self.shard_workers.set(std::iter::empty());
        self.shard_held.set(std::iter::empty());
    }
}

pub(super) fn claim_counters(pool: &str) -> Vec<Counter> {
    let labels =
        |outcome: &ClaimOutcome| vec![Label::new("pool", pool.to_owned()), Label::new("outcome", outcome.word())];
    ClaimOutcome::ALL.iter().map(|outcome| metrics::counter!(CLAIMS, labels(outcome))).collect()
}

/// Whether the pool is among the first names of this process, and so has series of its own.
fn has_own_series(pool: &PoolName) -> bool {
    static NAMES: LazyLock<Mutex<HashSet<PoolName>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.contains(pool) || (names.len() < limits::POOLS_MAX && names.insert(pool.clone()))
}
