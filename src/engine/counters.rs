//! Statistics of a shard, from which metrics are made.

/// Statistics of a shard; every field only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardCounters {
    /// Changes of a worker: each is one sequence number and one dirty row.
    pub worker_updates: u64,
    /// Grants that were rolled back because they were never disclosed.
    pub rolled_back: u64,
    /// Ends and changes that no holder asked for.
    pub lifecycle: LifecycleCounters,
}

/// Ends of claims and changes of workers that no holder asked for; every field only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LifecycleCounters {
    /// Reservations that were never confirmed.
    pub reservations_expired: u64,
    /// Active claims that were not renewed in time.
    pub expired: u64,
    /// Releases whose clean-up did not complete in time.
    pub cleanups_timed_out: u64,
    /// Claims that their worker no longer reports.
    pub not_reported: u64,
    /// Claims that were lost with their worker.
    pub lost_claims: u64,
    /// Workers that were silent for too long.
    pub lost_workers: u64,
    /// Workers deleted because they had been lost for too long.
    pub deleted_workers: u64,
    /// Claims evicted by others of higher priority.
    pub evicted: u64,
    /// Heartbeats of registered workers.
    pub heartbeats: u64,
    /// Heartbeats that came late and were ignored.
    pub late_heartbeats: u64,
    /// Claims readopted because their worker reported them.
    pub adopted: u64,
    /// Claims that a worker was asked to stop.
    pub revocations: u64,
}
