//! Reasons for which workers are unschedulable, and numbers of workers by reason.

use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

/// Reason for which a worker is unschedulable. A worker may have several; the first of them, in this order, decides
/// which count it is in while it has no claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum UnschedulableReason {
    /// Drained by its operator, for the rest of this incarnation.
    Draining,
    /// Cordoned by its operator until an uncordon.
    Cordoned,
    /// Silent for longer than its pool's `heartbeat_ttl_ms`.
    Lost,
    /// Possibly running claims that the service does not know, and not verified since.
    Suspect,
    /// Past its own `expires_at_ms`.
    Ended,
    /// Running a claim that it was asked to stop.
    Stopping,
    /// Reserved for a waiting claim.
    Reserved,
}

impl UnschedulableReason {
    /// All reasons, the one that counts first in front.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// Name of the reason on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Numbers of workers by [`UnschedulableReason`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnschedulableCounts {
    /// Number of draining workers.
    pub draining: u64,
    /// Number of cordoned workers.
    pub cordoned: u64,
    /// Number of lost workers.
    pub lost: u64,
    /// Number of suspect workers.
    pub suspect: u64,
    /// Number of workers past their end of life.
    pub ended: u64,
    /// Number of workers that run claims that they were asked to stop.
    pub stopping: u64,
    /// Number of workers reserved for waiting claims.
    pub reserved: u64,
}

impl UnschedulableCounts {
    /// Number of workers with this reason.
    #[must_use]
    pub const fn get(&self, reason: UnschedulableReason) -> u64 {
        match reason {
            UnschedulableReason::Draining => self.draining,
            UnschedulableReason::Cordoned => self.cordoned,
            UnschedulableReason::Lost => self.lost,
            UnschedulableReason::Suspect => self.suspect,
            UnschedulableReason::Ended => self.ended,
            UnschedulableReason::Stopping => self.stopping,
            UnschedulableReason::Reserved => self.reserved,
        }
    }

    /// Mutable number of workers with this reason.
    pub const fn get_mut(&mut self, reason: UnschedulableReason) -> &mut u64 {
        match reason {
            UnschedulableReason::Draining => &mut self.draining,
            UnschedulableReason::Cordoned => &mut self.cordoned,
            UnschedulableReason::Lost => &mut self.lost,
            UnschedulableReason::Suspect => &mut self.suspect,
            UnschedulableReason::Ended => &mut self.ended,
            UnschedulableReason::Stopping => &mut self.stopping,
            UnschedulableReason::Reserved => &mut self.reserved,
        }
    }

    /// Sum of the counts of all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        UnschedulableReason::ALL.iter().map(|reason| self.get(*reason)).sum()
    }

    /// Adds the counts of another shard.
    pub fn add(&mut self, other: &Self) {
        UnschedulableReason::ALL.iter().for_each(|reason| *self.get_mut(*reason) += other.get(*reason));
    }
}
