//! What a shard did, counted where nobody else writes: a counter that all shards of a pool increment would travel from
//! core to core with every claim. The scrape adds them up.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread at a time adds to.
#[derive(Debug, Default)]
pub struct SingleWriterCounter(AtomicU64);

impl SingleWriterCounter {
    /// Adds, by whoever runs the shard.
    pub(super) fn add(&self, n: u64) {
        // No read-modify-write: only one adds.
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// All that was added.
    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts of one shard.
#[derive(Debug, Default)]
pub struct RunnerCounters {
    /// Claims whose grant left.
    pub(crate) created: SingleWriterCounter,
    /// Requests to release.
    pub(crate) releases: SingleWriterCounter,
    /// Changes of a worker.
    pub(crate) worker_updates: SingleWriterCounter,
    /// Grants that were undone because nobody was told of them.
    pub(crate) rolled_back: SingleWriterCounter,
    /// Runs, whoever ran it. No metric: tests count by it what a shard does while there is nothing for it to do.
    pub(super) runs: SingleWriterCounter,
}
