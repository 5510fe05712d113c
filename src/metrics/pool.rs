//! What is counted of one pool.

use super::values::{ClaimCounters, PoolCounter, PoolGauge, PoolHistogram, Spread};
use super::{CLAIM_SECONDS_BOUNDS, PROBES, RING_WAIT_BOUNDS, Sweep, WAITS};
use crate::model::{PoolName, UnschedulableReason};

/// Nanoseconds in a second.
const NS: f64 = 1e9;
/// Milliseconds in a second.
const MS: f64 = 1e3;

/// Metrics of one pool, shared by its shards. They are the pool's own and in no registry: series are rendered from the
/// pools that there are ([`super::write_pools`]), so they end with their pool, whoever still has it and counts on.
#[derive(Debug)]
pub struct PoolMetrics {
    /// Value of the label `pool`.
    pub(super) label: Box<str>,
    /// `hotpool_claims_total`.
    pub claims: ClaimCounters,
    /// `hotpool_claim_seconds`, in nanoseconds.
    pub claim_seconds: PoolHistogram,
    /// `hotpool_ring_wait_seconds`, in nanoseconds.
    pub ring_wait_seconds: PoolHistogram,
    /// `hotpool_releases_total`.
    pub releases: PoolCounter,
    /// `hotpool_workers{state="idle"}`.
    pub workers_idle: PoolGauge,
    /// `hotpool_workers{state="busy"}`.
    pub workers_busy: PoolGauge,
    /// `hotpool_shard_workers`.
    pub shard_workers: Spread,
    /// `hotpool_shard_held`.
    pub shard_held: Spread,
    /// `hotpool_ring_depth`.
    pub ring_depth: PoolGauge,
    /// `hotpool_ring_refusals_total`.
    pub ring_refusals: PoolCounter,
    /// `hotpool_claim_probes`.
    pub claim_probes: PoolHistogram,
    /// `hotpool_worker_touches_total`.
    pub worker_touches: PoolCounter,
    /// `hotpool_store_lag_seconds`.
    pub store_lag_seconds: PoolGauge,
    sweeps: [PoolCounter; Sweep::ALL.len()],
    /// `hotpool_claims_lost_total`.
    pub claims_lost: PoolCounter,
    /// `hotpool_workers_lost_total`.
    pub workers_lost: PoolCounter,
    /// `hotpool_lost_workers_deleted_total`.
    pub lost_workers_deleted: PoolCounter,
    workers_barred: [PoolGauge; UnschedulableReason::ALL.len()],
    workers_unschedulable: [PoolGauge; UnschedulableReason::ALL.len()],
    /// `hotpool_heartbeats_total`.
    pub heartbeats: PoolCounter,
    /// `hotpool_heartbeats_ignored_total`.
    pub heartbeats_ignored: PoolCounter,
    /// `hotpool_adoptions_total`.
    pub adoptions: PoolCounter,
    /// `hotpool_stops_total`.
    pub stops: PoolCounter,
    /// `hotpool_give_backs_total`.
    pub give_backs: PoolCounter,
    /// `hotpool_waiters`.
    pub waiters: PoolGauge,
    /// `hotpool_wait_seconds`, in milliseconds.
    pub wait_seconds: PoolHistogram,
    /// `hotpool_watchers`.
    pub watchers: PoolGauge,
    /// `hotpool_watch_missed_total`.
    pub watch_missed: PoolCounter,
    /// `hotpool_evictions_total`.
    pub evictions: PoolCounter,
    /// `hotpool_ledger_drift`.
    pub ledger_drift: PoolGauge,
    /// `hotpool_shard_restarts_total`.
    pub shard_restarts: PoolCounter,
}

impl PoolMetrics {
    /// Metrics of a pool of which nothing was counted yet. The shards of a pool share one.
    #[must_use]
    pub fn new(pool: &PoolName) -> Self {
        let label = pool.to_string().into_boxed_str();
        assert!(!label.contains(['"', '\\', '\n']), "a name of a pool needs no escapes in a label");
        Self {
            label,
            claims: ClaimCounters::default(),
            claim_seconds: PoolHistogram::new(CLAIM_SECONDS_BOUNDS, NS),
            ring_wait_seconds: PoolHistogram::new(RING_WAIT_BOUNDS, NS),
            releases: PoolCounter::default(),
            workers_idle: PoolGauge::default(),
            workers_busy: PoolGauge::default(),
            shard_workers: Spread::default(),
            shard_held: Spread::default(),
            ring_depth: PoolGauge::default(),
            ring_refusals: PoolCounter::default(),
            claim_probes: PoolHistogram::new(PROBES, 1.0),
            worker_touches: PoolCounter::default(),
            store_lag_seconds: PoolGauge::default(),
            sweeps: Default::default(),
            claims_lost: PoolCounter::default(),
            workers_lost: PoolCounter::default(),
            lost_workers_deleted: PoolCounter::default(),
            workers_barred: Default::default(),
            workers_unschedulable: Default::default(),
            heartbeats: PoolCounter::default(),
            heartbeats_ignored: PoolCounter::default(),
            adoptions: PoolCounter::default(),
            stops: PoolCounter::default(),
            give_backs: PoolCounter::default(),
            waiters: PoolGauge::default(),
            wait_seconds: PoolHistogram::new(WAITS, MS),
            watchers: PoolGauge::default(),
            watch_missed: PoolCounter::default(),
            evictions: PoolCounter::default(),
            ledger_drift: PoolGauge::default(),
            shard_restarts: PoolCounter::default(),
        }
    }

    /// Counter of claims with this outcome.
    #[must_use]
    pub fn claims(&self, outcome: super::ClaimOutcome) -> &PoolCounter {
        self.claims.of(outcome)
    }

    /// Counter of claims that this deadline ended.
    #[must_use]
    pub fn sweeps(&self, deadline: Sweep) -> &PoolCounter {
        &self.sweeps[deadline as usize]
    }

    /// Gauge of workers that are not offered for this reason.
    #[must_use]
    pub fn workers_barred(&self, reason: UnschedulableReason) -> &PoolGauge {
        &self.workers_barred[reason as usize]
    }

    /// Gauge of workers that hold no claim and are not offered, with this as the first reason.
    #[must_use]
    pub fn workers_unschedulable(&self, reason: UnschedulableReason) -> &PoolGauge {
        &self.workers_unschedulable[reason as usize]
    }

    /// Whether anybody has claimed, released or sent a heartbeat, or a claim was there from before a restart. Workers that
    /// are only there are no use.
    pub(super) fn is_in_use(&self) -> bool {
        let ends = self.sweeps.iter().chain([&self.claims_lost, &self.releases]);
        let counted = ends.chain([&self.heartbeats]).any(|counter| counter.value() > 0);
        counted || self.claims.any() || self.workers_busy.was_set() || self.waiters.was_set()
    }
}
