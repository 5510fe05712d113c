//! Counts of what a shard did, from which metrics are made.

/// What a shard did so far; it only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardCounters {
    /// Changes of a worker: each is one ledger change, one version, one row.
    pub worker_updates: u64,
    /// Grants that were undone because nobody was told of them.
    pub rolled_back: u64,
    /// What befell workers, and claims without their holder's doing.
    pub lifecycle: LifecycleCounters,
}

/// What befell workers, and claims without their holder's doing; it only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LifecycleCounters {
    /// Reservations that were never confirmed.
    pub reservations_expired: u64,
    /// Active claims that were not renewed in time.
    pub expired: u64,
    /// Releases that were begun and not finished in time.
    pub cleanups_timed_out: u64,
    /// Claims that their worker does not run any more.
    pub not_reported: u64,
    /// Claims that were lost with their worker.
    pub lost_claims: u64,
    /// Workers that were silent for too long.
    pub lost_workers: u64,
    /// Workers that were deleted because they had been lost for long.
    pub deleted_workers: u64,
    /// Claims that others with a higher priority evicted.
    pub evicted: u64,
    /// Heartbeats of workers that are there.
    pub heartbeats: u64,
    /// Heartbeats that came late and were ignored.
    pub late_heartbeats: u64,
    /// Claims taken over because their worker named them.
    pub adopted: u64,
    /// Claims that a worker was told to stop.
    pub revocations: u64,
}
