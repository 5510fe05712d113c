//! What a shard did, counted where nobody else writes: a counter that all shards of a pool increment would travel from
//! core to core with every claim. The scrape brings the pool's counters up to date.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::Counter;

/// A number that one thread at a time adds to.
#[derive(Debug, Default)]
pub struct Count {
    now: AtomicU64,
    /// As far as the pool's counter has it.
    published: AtomicU64,
}

impl Count {
    /// Adds, by whoever runs the shard.
    pub(super) fn add(&self, n: u64) {
        // No read-modify-write: only one adds.
        self.now.store(self.now.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// Sum of all that was added.
    pub(super) fn total(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Adds to the counter what came since the last time.
    pub(super) fn publish(&self, counter: &Counter) {
        let now = self.now.load(Ordering::Relaxed);
        // Of two that publish at once each adds its part.
        let before = self.published.fetch_max(now, Ordering::Relaxed);
        counter.increment(now.saturating_sub(before));
    }
}

/// The counts of one shard.
#[derive(Debug, Default)]
pub struct Tally {
    /// Claims whose grant left.
    pub(super) created: Count,
    /// Requests to release.
    pub(super) releases: Count,
    /// Changes of a worker.
    pub(super) touches: Count,
    /// Grants that were undone because nobody was told of them.
    pub(super) give_backs: Count,
    /// Runs, whoever ran it. No metric: tests count by it what a shard does while there is nothing for it to do.
    pub(super) runs: Count,
}
