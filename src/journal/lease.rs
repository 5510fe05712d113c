//! How long this process may answer for what it owns.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::clock::Clock;
use crate::model::Millis;

/// No lease: the store is ours for as long as the process lives.
const FOR_EVER: u64 = u64::MAX;

/// The lease on the store. A lapsed one only silences: the state stays, and the next renewal goes on from there.
#[derive(Debug)]
pub struct Lease {
    clock: Clock,
    /// On the clock that also runs while the machine sleeps.
    until_ns: CachePadded<AtomicU64>,
}

impl Lease {
    pub(super) const fn new(clock: Clock) -> Self {
        Self { clock, until_ns: CachePadded::new(AtomicU64::new(FOR_EVER)) }
    }

    /// The store has acknowledged what was sent at `sent_ns`, on [`Clock::boot_ns`].
    pub fn extend(&self, sent_ns: u64, lease_ms: Millis) {
        self.until_ns.store(sent_ns.saturating_add(lease_ms.saturating_mul(1_000_000)), Ordering::Release);
    }

    /// It is given back: nothing may be answered from now on.
    pub fn end(&self) {
        self.until_ns.store(0, Ordering::Release);
    }

    /// Whether answers may leave.
    #[must_use]
    pub fn holds(&self) -> bool {
        let until_ns = self.until_ns.load(Ordering::Acquire);
        until_ns == FOR_EVER || self.clock.boot_ns() < until_ns
    }

    /// Seconds that are left; none if there is no lease.
    #[must_use]
    pub fn left_seconds(&self) -> Option<f64> {
        let until_ns = self.until_ns.load(Ordering::Acquire);
        (until_ns != FOR_EVER).then(|| until_ns.saturating_sub(self.clock.boot_ns()) as f64 / 1e9)
    }
}
