//! Counters of a shard, each with a single writer: a counter incremented by all shards of a pool would move from core
//! to core with every claim. The scrape adds them up.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counter that only one thread at a time adds to.
#[derive(Debug, Default)]
pub struct SingleWriterCounter(AtomicU64);

impl SingleWriterCounter {
    /// Adds to the counter; only the runner of the shard may call it.
    pub(super) fn add(&self, n: u64) {
        // No read-modify-write is needed: there is one writer.
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// Total of all additions.
    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one shard.
#[derive(Debug, Default)]
pub struct RunnerCounters {
    /// Claims whose grant was sent.
    pub(crate) created: SingleWriterCounter,
    /// Requests to release a claim.
    pub(crate) releases: SingleWriterCounter,
    /// Changes of a worker's state.
    pub(crate) worker_updates: SingleWriterCounter,
    /// Claims that were rolled back undisclosed.
    pub(crate) rolled_back: SingleWriterCounter,
    /// Runs of the shard. Not a metric: tests check that an idle shard does not run.
    pub(super) runs: SingleWriterCounter,
}
