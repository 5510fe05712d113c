//! Figures that a run leaves for others: bounds for the router, counts for metrics and status.

use super::Running;
use crate::engine::LifeCounters;
use crate::limits;
use crate::metrics::Sweep;
use crate::model::Millis;

/// How often the ledger is compared with the claims.
pub(super) const RECOUNT_MS: Millis = 1_000;

impl Running {
    /// Tells the router what the shard has. Before any answer of the run leaves.
    pub(super) fn publish(&mut self) {
        let version = Some(self.shard.ledger_version());
        if self.capacities != version {
            self.capacities = version;
            let are_few = self.shard.ledger().nth(limits::CAPACITIES_MAX).is_none();
            let capacities = are_few.then(|| self.shard.ledger().map(|line| line.capacity.clone()).collect());
            let largest = self.shard.largest_amounts();
            self.pool.board.capacities().publish(self.port.shard.shard, capacities, largest);
        }
        if self.counted_workers != Some(self.shard.worker_changes()) {
            self.counted_workers = Some(self.shard.worker_changes());
            self.pool.board.publish_total(self.port.shard.shard, &self.shard.total());
        }
        self.pool.board.publish_victim(self.port.shard.shard, self.shard.lowest_victim());
        self.pool.board.publish(self.port.shard.shard, self.shard.idle(), self.shard.busy());
        // Beside the others, before any answer leaves: whoever was told of a cordon finds the worker in one of the counts.
        if self.shard.bar_changes() != self.bar_changes {
            self.publish_barred();
        }
        if let Some(left) = self.shard.rooms() {
            self.pool.board.publish_rooms(self.port.shard.shard, &left);
        }
    }

    /// Counts what the run did, and now and then compares the ledger with the claims.
    pub(super) fn count(&mut self) {
        let now = self.shard.counters();
        let tally = &self.port.tally;
        tally.runs.add(1);
        tally.touches.add(now.touches - self.counted.touches);
        tally.give_backs.add(now.given_back - self.counted.given_back);
        tally.created.add(std::mem::take(&mut self.created));
        tally.releases.add(std::mem::take(&mut self.releases));
        if now.life != self.counted.life {
            self.count_life(&now.life);
        }
        self.timed = false;
        self.counted = now;
        // A recount costs a look at every ledger line and at some workers: now and then is enough to be noticed.
        if self.now_ms >= self.recounted_ms + RECOUNT_MS {
            self.recounted_ms = self.now_ms;
            self.audit.advance(&self.shard);
            self.port.set_drift(self.audit.drift(&self.shard));
        }
    }

    fn count_life(&self, now: &LifeCounters) {
        let (metrics, before) = (&self.pool.metrics, &self.counted.life);
        metrics.sweeps(Sweep::Reserve).increment(now.swept - before.swept);
        metrics.sweeps(Sweep::Ttl).increment(now.expired - before.expired);
        metrics.sweeps(Sweep::Releasing).increment(now.uncleaned - before.uncleaned);
        metrics.sweeps(Sweep::Missing).increment(now.missing - before.missing);
        metrics.claims_lost.increment(now.lost_claims - before.lost_claims);
        metrics.workers_lost.increment(now.lost_workers - before.lost_workers);
        metrics.lost_workers_deleted.increment(now.deleted_workers - before.deleted_workers);
        metrics.heartbeats.increment(now.heartbeats - before.heartbeats);
        metrics.heartbeats_ignored.increment(now.late_heartbeats - before.late_heartbeats);
        metrics.adoptions.increment(now.adopted - before.adopted);
        metrics.stops.increment(now.stops - before.stops);
        metrics.evictions.increment(now.evicted - before.evicted);
    }

    /// Publishes how many workers are not offered, and why.
    fn publish_barred(&mut self) {
        self.bar_changes = self.shard.bar_changes();
        self.port.set_unvouched(self.shard.unvouched());
        self.port.set_barred(&self.shard.barred());
    }
}
