//! Metrics of one pool.

use super::values::{ClaimCounters, PoolCounter, PoolGauge, PoolHistogram, ShardDistribution};
use super::{CLAIM_SECONDS_BOUNDS, ExpiryReason, QUEUE_WAIT_BOUNDS, SHARDS_TRIED_BOUNDS, WAIT_SECONDS_BOUNDS};
use crate::model::{PoolName, UnschedulableReason};

/// Number of nanoseconds in a second.
const NS: f64 = 1e9;
/// Number of milliseconds in a second.
const MS: f64 = 1e3;

/// Metrics of one pool, shared by its shards. They are in no registry: series are rendered from the existing pools
/// ([`super::write_pools`]), so they end with their pool even if a holder of this goes on counting.
#[derive(Debug)]
pub struct PoolMetrics {
    /// Value of the label `pool`.
    pub(super) label: Box<str>,
    /// Counters `hotpool_claims_total`, by outcome.
    pub claims: ClaimCounters,
    /// Histogram `hotpool_claim_seconds`, recorded in nanoseconds.
    pub claim_seconds: PoolHistogram,
    /// Histogram `hotpool_shard_queue_wait_seconds`, recorded in nanoseconds.
    pub queue_wait_seconds: PoolHistogram,
    /// Handle of the counter `hotpool_releases_total`.
    pub releases: PoolCounter,
    /// Handle of the gauge `hotpool_workers{state="idle"}`.
    pub workers_idle: PoolGauge,
    /// Handle of the gauge `hotpool_workers{state="busy"}`.
    pub workers_busy: PoolGauge,
    /// Gauges `hotpool_shard_workers_min`, `_mean` and `_max`.
    pub shard_workers: ShardDistribution,
    /// Gauges `hotpool_shard_busy_workers_min`, `_mean` and `_max`.
    pub shard_busy_workers: ShardDistribution,
    /// Handle of the gauge `hotpool_shard_queue_depth`.
    pub queue_depth: PoolGauge,
    /// Handle of the counter `hotpool_shard_queue_rejections_total`.
    pub queue_rejections: PoolCounter,
    /// Handle of the histogram `hotpool_claim_shards_tried`.
    pub claim_shards_tried: PoolHistogram,
    /// Handle of the counter `hotpool_worker_updates_total`.
    pub worker_updates: PoolCounter,
    /// Handle of the gauge `hotpool_store_lag_seconds`.
    pub store_lag_seconds: PoolGauge,
    claims_expired: [PoolCounter; ExpiryReason::ALL.len()],
    /// Handle of the counter `hotpool_claims_lost_total`.
    pub claims_lost: PoolCounter,
    /// Handle of the counter `hotpool_workers_lost_total`.
    pub workers_lost: PoolCounter,
    /// Handle of the counter `hotpool_lost_workers_deleted_total`.
    pub lost_workers_deleted: PoolCounter,
    workers_unschedulable: [PoolGauge; UnschedulableReason::ALL.len()],
    workers_unschedulable_idle: [PoolGauge; UnschedulableReason::ALL.len()],
    /// Handle of the counter `hotpool_heartbeats_total`.
    pub heartbeats: PoolCounter,
    /// Handle of the counter `hotpool_heartbeats_ignored_total`.
    pub heartbeats_ignored: PoolCounter,
    /// Handle of the counter `hotpool_claims_readopted_total`.
    pub claims_readopted: PoolCounter,
    /// Handle of the counter `hotpool_claim_revocations_total`.
    pub claim_revocations: PoolCounter,
    /// Handle of the counter `hotpool_claims_rolled_back_total`.
    pub claims_rolled_back: PoolCounter,
    /// Handle of the gauge `hotpool_claims_pending`.
    pub claims_pending: PoolGauge,
    /// Histogram `hotpool_wait_seconds`, recorded in milliseconds.
    pub wait_seconds: PoolHistogram,
    /// Handle of the gauge `hotpool_watchers`.
    pub watchers: PoolGauge,
    /// Handle of the counter `hotpool_watch_events_dropped_total`.
    pub watch_events_dropped: PoolCounter,
    /// Handle of the counter `hotpool_evictions_total`.
    pub evictions: PoolCounter,
    /// Handle of the gauge `hotpool_accounting_mismatch`.
    pub accounting_mismatch: PoolGauge,
    /// Handle of the counter `hotpool_shard_restarts_total`.
    pub shard_restarts: PoolCounter,
}

impl PoolMetrics {
    /// Creates the metrics of a pool, all 0. The shards of a pool share them.
    #[must_use]
    pub fn new(pool: &PoolName) -> Self {
        let label = pool.to_string().into_boxed_str();
        assert!(!label.contains(['"', '\\', '\n']), "a name of a pool needs no escapes in a label");
        Self {
            label,
            claims: ClaimCounters::default(),
            claim_seconds: PoolHistogram::new(CLAIM_SECONDS_BOUNDS, NS),
            queue_wait_seconds: PoolHistogram::new(QUEUE_WAIT_BOUNDS, NS),
            releases: PoolCounter::default(),
            workers_idle: PoolGauge::default(),
            workers_busy: PoolGauge::default(),
            shard_workers: ShardDistribution::default(),
            shard_busy_workers: ShardDistribution::default(),
            queue_depth: PoolGauge::default(),
            queue_rejections: PoolCounter::default(),
            claim_shards_tried: PoolHistogram::new(SHARDS_TRIED_BOUNDS, 1.0),
            worker_updates: PoolCounter::default(),
            store_lag_seconds: PoolGauge::default(),
            claims_expired: Default::default(),
            claims_lost: PoolCounter::default(),
            workers_lost: PoolCounter::default(),
            lost_workers_deleted: PoolCounter::default(),
            workers_unschedulable: Default::default(),
            workers_unschedulable_idle: Default::default(),
            heartbeats: PoolCounter::default(),
            heartbeats_ignored: PoolCounter::default(),
            claims_readopted: PoolCounter::default(),
            claim_revocations: PoolCounter::default(),
            claims_rolled_back: PoolCounter::default(),
            claims_pending: PoolGauge::default(),
            wait_seconds: PoolHistogram::new(WAIT_SECONDS_BOUNDS, MS),
            watchers: PoolGauge::default(),
            watch_events_dropped: PoolCounter::default(),
            evictions: PoolCounter::default(),
            accounting_mismatch: PoolGauge::default(),
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
    pub fn claims_expired(&self, reason: ExpiryReason) -> &PoolCounter {
        &self.claims_expired[reason as usize]
    }

    /// Gauge of workers that are unschedulable for this reason.
    #[must_use]
    pub fn workers_unschedulable(&self, reason: UnschedulableReason) -> &PoolGauge {
        &self.workers_unschedulable[reason as usize]
    }

    /// Gauge of workers without a claim of which this is the first reason for being unschedulable.
    #[must_use]
    pub fn workers_unschedulable_idle(&self, reason: UnschedulableReason) -> &PoolGauge {
        &self.workers_unschedulable_idle[reason as usize]
    }

    /// Whether a claim was requested, ended or recovered, or a heartbeat was received. Registered workers alone are not use.
    pub(super) fn is_in_use(&self) -> bool {
        let ends = self.claims_expired.iter().chain([&self.claims_lost, &self.releases]);
        let counted = ends.chain([&self.heartbeats]).any(|counter| counter.value() > 0);
        counted || self.claims.any() || self.workers_busy.was_set() || self.claims_pending.was_set()
    }
}
