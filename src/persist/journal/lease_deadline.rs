//! End of the lease on the store, and the signal to those that found it expired.
//!
//! A shard that may not reply sleeps, so the next renewal must wake it, and only a renewal that a shard needs should wake all
//! of them. So a reader that finds the lease expired sets a mark and reads again; a renewal stores the new end first and
//! takes the mark afterwards. One of the two sees the other. `tests/loom.rs` compiles this file with loom's atomics.

use super::atomic::{AtomicBool, AtomicU64, Ordering};

/// End of a lease that never expires: the process owns the store for as long as it lives.
const NEVER_EXPIRES: u64 = u64::MAX;

/// End of a lease, on a clock that the caller supplies.
#[derive(Debug)]
pub struct LeaseDeadline {
    until_ns: AtomicU64,
    /// Whether a reader found the lease expired since it was last extended.
    observed_expired: AtomicBool,
}

impl Default for LeaseDeadline {
    fn default() -> Self {
        Self { until_ns: AtomicU64::new(NEVER_EXPIRES), observed_expired: AtomicBool::new(false) }
    }
}

impl LeaseDeadline {
    /// Whether the lease holds. After false, the next [`Self::extend`] returns true.
    pub fn is_valid(&self, now_ns: impl Fn() -> u64) -> bool {
        if self.is_ahead(&now_ns) {
            return true;
        }
        self.observed_expired.store(true, Ordering::SeqCst);
        self.is_ahead(&now_ns)
    }

    fn is_ahead(&self, now_ns: impl Fn() -> u64) -> bool {
        let until_ns = self.until_ns.load(Ordering::SeqCst);
        until_ns == NEVER_EXPIRES || now_ns() < until_ns
    }

    /// Moves the end. True if a reader found the lease expired, and must be woken.
    pub fn extend(&self, until_ns: u64) -> bool {
        self.until_ns.store(until_ns, Ordering::SeqCst);
        self.observed_expired.swap(false, Ordering::SeqCst)
    }

    /// End of the lease, if it has one.
    pub fn until_ns(&self) -> Option<u64> {
        Some(self.until_ns.load(Ordering::SeqCst)).filter(|&until_ns| until_ns != NEVER_EXPIRES)
    }
}
