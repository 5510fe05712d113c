//! Facts about a pool that its shards read, and figures that they publish for those above them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

use arc_swap::ArcSwap;

use super::capacity_board::CapacityBoard;
use crate::events::PoolEventLog;
use crate::metrics::PoolMetrics;
use crate::model::{AckLevel, PoolName, PoolSpec};

/// Part of a pool that its shards know.
pub struct PoolContext {
    /// Number of the pool in this process.
    pub number: u32,
    /// Name of the pool, unique in its namespace.
    pub name: PoolName,
    /// Specification as of the last PUT.
    pub spec: ArcSwap<PoolSpec>,
    /// Version of the specification.
    version: AtomicU64,
    /// Whether `spec.ack` is durable; shards read it in every run.
    durable: AtomicBool,
    /// Bounds and figures that the shards publish.
    pub board: CapacityBoard,
    /// Metrics of the pool and its shards.
    pub metrics: Arc<PoolMetrics>,
    /// Events of the pool, for watchers.
    pub event_log: Arc<PoolEventLog>,
    /// Number of claims that wait for the pool; written by its wait queue, read in every run.
    pub queue_state: Arc<QueueState>,
    /// Set while the pool is being deleted and accepts nothing new.
    pub closing: AtomicBool,
}

impl std::fmt::Debug for PoolContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolContext").field("name", &self.name).field("number", &self.number).finish_non_exhaustive()
    }
}

impl PoolContext {
    /// Creates the context of a pool without workers.
    #[must_use]
    pub fn new(number: u32, version: u64, name: PoolName, spec: PoolSpec, metrics: Arc<PoolMetrics>) -> Self {
        Self {
            number,
            name,
            version: AtomicU64::new(version),
            durable: AtomicBool::new(spec.ack == AckLevel::Durable),
            board: CapacityBoard::new(spec.shards, spec.mode),
            spec: ArcSwap::from_pointee(spec),
            metrics,
            event_log: Arc::default(),
            queue_state: Arc::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// Whether replies wait for the store by default.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Relaxed)
    }

    /// Replaces the specification. Calls must not overlap.
    pub fn set_spec(&self, version: u64, spec: PoolSpec) {
        debug_assert!(version > self.version.load(Ordering::Relaxed), "versions grow");
        self.durable.store(spec.ack == AckLevel::Durable, Ordering::Relaxed);
        self.spec.store(Arc::new(spec));
        self.version.store(version, Ordering::Release);
    }

    /// Specification and its version. During a change the version may be the one before: a caller that relies on it is
    /// rejected, which is better than changing a specification that it did not see.
    #[must_use]
    pub fn versioned_spec(&self) -> (u64, Arc<PoolSpec>) {
        let version = self.version.load(Ordering::Acquire);
        (version, self.spec.load_full())
    }

    /// Whether the pool is being deleted.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

/// Number of claims that wait for a pool, which every run reads.
#[derive(Debug, Default)]
pub struct QueueState {
    waiting: AtomicUsize,
}

impl QueueState {
    /// Whether any claim waits. Must be called after the change that may serve it became visible.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Number of claims that wait.
    #[must_use]
    #[inline]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Publishes the number of claims that wait. If it grows, a fence must follow before capacity is looked for.
    pub fn set_waiting(&self, claims: usize) {
        self.waiting.store(claims, Ordering::SeqCst);
    }
}
