//! Figures that a run publishes: bounds for the router, counts for metrics and status.

use super::ShardRunner;
use crate::engine::LifecycleCounters;
use crate::limits;
use crate::metrics::ExpiryReason;
use crate::model::Millis;
use crate::shard::event::ShardSink;

/// Interval between audits of the accounting, in milliseconds.
pub(super) const AUDIT_INTERVAL_MS: Millis = 1_000;

impl<S: ShardSink> ShardRunner<S> {
    /// Publishes the bounds of the shard. Must precede every reply of the run: a client that learned of a cordon finds the
    /// worker in one of the counts.
    #[inline]
    pub(super) fn publish(&mut self) {
        let version = Some(self.shard.accounting_version());
        if self.published_accounting != version {
            self.published_accounting = version;
            self.publish_accounting();
        }
        self.pool.board.publish_lowest_evictable(self.handle.shard.shard, self.shard.min_evictable_priority());
        self.pool.board.publish(self.handle.shard.shard, self.shard.idle(), self.shard.busy());
        if let Some(free) = self.shard.free_summary() {
            self.pool.board.publish_free(self.handle.shard.shard, &free);
        }
    }

    /// Publishes what changes with workers and not with claims.
    #[cold]
    fn publish_accounting(&mut self) {
        let version = Some(self.shard.capacity_version());
        if self.published_capacities != version {
            self.published_capacities = version;
            let are_few = self.shard.capacity_usage().nth(limits::CAPACITIES_MAX).is_none();
            let capacities = are_few.then(|| self.shard.capacity_usage().map(|usage| usage.capacity.clone()).collect());
            let largest = self.shard.max_capacity();
            self.pool.board.capacities().publish(self.handle.shard.shard, capacities, largest);
        }
        let (workers, amounts) = self.shard.total_capacity();
        self.pool.board.publish_total(self.handle.shard.shard, workers, amounts);
        self.handle.set_unreconciled(self.shard.unverified());
        self.handle.set_unschedulable(&self.shard.unschedulable());
        self.handle.set_unreleased_evictions(self.shard.unreleased_evictions());
    }

    /// Counts the work of the run, and periodically audits the accounting.
    pub(super) fn update_counters(&mut self) {
        let (worker_updates, rolled_back) = self.shard.update_counters();
        let counters = &self.handle.counters;
        let published = &mut self.published_counters;
        counters.runs.add(1);
        counters.worker_updates.add(worker_updates - published.worker_updates);
        counters.rolled_back.add(rolled_back - published.rolled_back);
        counters.created.add(std::mem::take(&mut self.created));
        counters.releases.add(std::mem::take(&mut self.releases));
        (published.worker_updates, published.rolled_back) = (worker_updates, rolled_back);
        if self.published_lifecycle != Some(self.shard.lifecycle_version()) {
            self.published_lifecycle = Some(self.shard.lifecycle_version());
            let now = *self.shard.lifecycle_counters();
            self.update_lifecycle_counters(&now);
            self.published_counters.lifecycle = now;
        }
        self.timed = false;
        // An audit reads every accounting entry and some workers, so it is done at intervals.
        if self.now_ms >= self.audited_ms + AUDIT_INTERVAL_MS {
            self.audited_ms = self.now_ms;
            self.audit.advance(&self.shard);
            self.handle.set_accounting_mismatch(self.audit.mismatch(&self.shard));
        }
    }

    fn update_lifecycle_counters(&self, now: &LifecycleCounters) {
        let (metrics, before) = (&self.pool.metrics, &self.published_counters.lifecycle);
        metrics.claims_expired(ExpiryReason::Reserve).increment(now.reservations_expired - before.reservations_expired);
        metrics.claims_expired(ExpiryReason::Ttl).increment(now.expired - before.expired);
        metrics.claims_expired(ExpiryReason::Releasing).increment(now.cleanups_timed_out - before.cleanups_timed_out);
        metrics.claims_expired(ExpiryReason::Missing).increment(now.not_reported - before.not_reported);
        metrics.claims_lost.increment(now.lost_claims - before.lost_claims);
        metrics.workers_lost.increment(now.lost_workers - before.lost_workers);
        metrics.lost_workers_deleted.increment(now.deleted_workers - before.deleted_workers);
        metrics.heartbeats.increment(now.heartbeats - before.heartbeats);
        metrics.heartbeats_ignored.increment(now.late_heartbeats - before.late_heartbeats);
        metrics.claims_readopted.increment(now.adopted - before.adopted);
        metrics.claim_revocations.increment(now.revocations - before.revocations);
        metrics.evictions.increment(now.evicted - before.evicted);
    }
}
