//! How long this process may answer for what it owns.

use crossbeam::utils::CachePadded;

use super::lease_deadline::LeaseDeadline;
use crate::clock::Clock;
use crate::model::Millis;

/// The lease on the store. A lapsed one only silences: the state stays, and the next renewal goes on from there.
#[derive(Debug)]
pub struct Lease {
    clock: Clock,
    /// On the clock that also runs while the machine sleeps.
    end: CachePadded<LeaseDeadline>,
}

impl Lease {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, end: CachePadded::new(LeaseDeadline::default()) }
    }

    /// The store has acknowledged what was sent at `sent_ns`, on [`Clock::boot_ns`]. True if somebody was told that the lease
    /// does not hold.
    pub(super) fn extend(&self, sent_ns: u64, lease_ms: Millis) -> bool {
        self.end.extend(sent_ns.saturating_add(lease_ms.saturating_mul(1_000_000)))
    }

    /// It is given back: nothing may be answered from now on.
    pub fn revoke(&self) {
        self.end.extend(0);
    }

    /// Whether answers may leave. If not, every shard is told when they may.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.end.is_valid(|| self.clock.boot_ns())
    }

    /// Seconds that are left; none if there is no lease.
    #[must_use]
    pub fn remaining_seconds(&self) -> Option<f64> {
        self.end.until_ns().map(|until_ns| until_ns.saturating_sub(self.clock.boot_ns()) as f64 / 1e9)
    }
}
