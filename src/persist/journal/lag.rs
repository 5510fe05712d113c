//! Age of the oldest change of a shard that the store does not have.
//!
//! Pending and in-flight changes have a time each: the shard sets the first, and its writer moves it to the second and
//! clears that, so that neither overwrites what the other just stored. `tests/loom.rs` compiles this file with loom's
//! atomics and explores every interleaving.

use super::atomic::{AtomicU64, Ordering};

/// Times of the oldest pending change and of the oldest change in flight. 0 is none, as an atomic has no `Option`.
#[derive(Debug)]
pub struct LagTracker {
    pending_ns: AtomicU64,
    in_flight_ns: AtomicU64,
}

impl Default for LagTracker {
    fn default() -> Self {
        Self { pending_ns: AtomicU64::new(0), in_flight_ns: AtomicU64::new(0) }
    }
}

impl LagTracker {
    /// Notes that a change is pending. Must not run at the same time as [`Self::mark_in_flight`].
    pub fn mark_appended(&self, now_ns: u64) {
        let _ = self.pending_ns.compare_exchange(0, now_ns.max(1), Ordering::Release, Ordering::Relaxed);
    }

    /// Notes that all pending changes are in flight.
    pub fn mark_in_flight(&self) {
        let pending_ns = self.pending_ns.load(Ordering::Relaxed);
        // Set before the other is cleared: a reader in between sees both, never none.
        let _ = self.in_flight_ns.compare_exchange(0, pending_ns, Ordering::Release, Ordering::Relaxed);
        self.pending_ns.store(0, Ordering::Release);
    }

    /// Notes that the store has everything that was in flight.
    pub fn mark_applied(&self) {
        self.in_flight_ns.store(0, Ordering::Release);
    }

    /// Time of the oldest change that the store does not have, if there is one.
    pub fn since_ns(&self) -> Option<u64> {
        let pending_ns = self.pending_ns.load(Ordering::Acquire);
        let in_flight_ns = self.in_flight_ns.load(Ordering::Acquire);
        [pending_ns, in_flight_ns].into_iter().filter(|since_ns| *since_ns > 0).min()
    }
}
