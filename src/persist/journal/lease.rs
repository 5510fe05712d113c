//! Lease of this process on the store.

use crossbeam::utils::CachePadded;

use super::lease_deadline::LeaseDeadline;
use crate::environment::Clock;
use crate::model::Millis;

/// Lease on the store. A lapsed lease only blocks replies: the state stays, and the next renewal continues from there.
#[derive(Debug)]
pub struct Lease {
    clock: Clock,
    /// End on [`Clock::boot_ns`], which also runs while the machine sleeps.
    end: CachePadded<LeaseDeadline>,
}

impl Lease {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, end: CachePadded::new(LeaseDeadline::default()) }
    }

    /// Extends the lease after the store acknowledged a renewal that was sent at `sent_ns` on [`Clock::boot_ns`]. True if a
    /// shard has found it expired.
    pub(super) fn extend(&self, sent_ns: u64, lease_ms: Millis) -> bool {
        self.end.extend(sent_ns.saturating_add(lease_ms.saturating_mul(1_000_000)))
    }

    /// Ends the lease: no reply may leave from now on.
    pub fn revoke(&self) {
        self.end.extend(0);
    }

    /// Whether replies may leave. If not, every shard is notified when they may.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.end.is_valid(|| self.clock.boot_ns())
    }

    /// Seconds until the lease ends; none if the store has no leases.
    #[must_use]
    pub fn remaining_seconds(&self) -> Option<f64> {
        self.end.until_ns().map(|until_ns| until_ns.saturating_sub(self.clock.boot_ns()) as f64 / 1e9)
    }
}
