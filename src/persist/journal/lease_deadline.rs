//! When the lease on the store ends, and that whoever found it over is told when it does not.
//!
//! A shard that may not answer sleeps, so the next renewal must wake it; and only a renewal that somebody needs should wake
//! all shards. So who finds the lease over leaves a mark and looks once more, and a renewal is entered first and takes the
//! mark then: one of the two sees the other. `tests/loom.rs` compiles this file with loom's atomics.

use super::atomic::{AtomicBool, AtomicU64, Ordering};

/// No lease: the store is ours for as long as the process lives.
const NEVER_EXPIRES: u64 = u64::MAX;

/// End of a lease, on a clock that the caller brings.
#[derive(Debug)]
pub struct LeaseDeadline {
    until_ns: AtomicU64,
    /// Somebody found it over since it was last extended.
    observed_expired: AtomicBool,
}

impl Default for LeaseDeadline {
    fn default() -> Self {
        Self { until_ns: AtomicU64::new(NEVER_EXPIRES), observed_expired: AtomicBool::new(false) }
    }
}

impl LeaseDeadline {
    /// Whether the lease holds. Whoever is told that it does not is owed a word at the next [`Self::extend`].
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

    /// Moves the end. True if somebody found the lease over, and has to be told.
    pub fn extend(&self, until_ns: u64) -> bool {
        self.until_ns.store(until_ns, Ordering::SeqCst);
        self.observed_expired.swap(false, Ordering::SeqCst)
    }

    /// The end, if there is one.
    pub fn until_ns(&self) -> Option<u64> {
        Some(self.until_ns.load(Ordering::SeqCst)).filter(|&until_ns| until_ns != NEVER_EXPIRES)
    }
}
