//! Since when the store has lacked something of a shard.
//!
//! What waits and what was taken on its way are two times: the shard sets the one, its writer moves it to the other and
//! clears that, so neither writes over what the other has just said. `tests/loom.rs` compiles this file with loom's atomics
//! and explores every interleaving.

use super::atomic::{AtomicU64, Ordering};

/// Times of the oldest change that waits, and of the oldest that was taken and is not in the store yet; 0: there is none.
#[derive(Debug)]
pub struct LagTracker {
    waiting_ns: AtomicU64,
    in_flight_ns: AtomicU64,
}

impl Default for LagTracker {
    fn default() -> Self {
        Self { waiting_ns: AtomicU64::new(0), in_flight_ns: AtomicU64::new(0) }
    }
}

impl LagTracker {
    /// A change waits from now on. Never at the same time as [`Self::take`].
    pub fn mark_appended(&self, now_ns: u64) {
        let _ = self.waiting_ns.compare_exchange(0, now_ns.max(1), Ordering::Release, Ordering::Relaxed);
    }

    /// All that waits is on its way from now on.
    pub fn mark_in_flight(&self) {
        let waiting_ns = self.waiting_ns.load(Ordering::Relaxed);
        // Set before the other is cleared: whoever looks in between sees both, and never none.
        let _ = self.in_flight_ns.compare_exchange(0, waiting_ns, Ordering::Release, Ordering::Relaxed);
        self.waiting_ns.store(0, Ordering::Release);
    }

    /// The store has all that was taken.
    pub fn mark_applied(&self) {
        self.in_flight_ns.store(0, Ordering::Release);
    }

    /// Since when the store has lacked something, if it does.
    pub fn since_ns(&self) -> Option<u64> {
        let waiting_ns = self.waiting_ns.load(Ordering::Acquire);
        let taken_ns = self.in_flight_ns.load(Ordering::Acquire);
        [waiting_ns, taken_ns].into_iter().filter(|since_ns| *since_ns > 0).min()
    }
}
