//! Reasons for which workers are not offered, and how many workers there are of each.

use serde::{Deserialize, Serialize};

/// Reason for which a worker is not offered. A worker may have several; the first of them, in this order, names the count
/// that it is in while it holds no claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnschedulableReason {
    /// Owner drains the worker, for the rest of this incarnation.
    Draining,
    /// Owner keeps claims off the worker until an uncordon.
    Cordoned,
    /// Worker was silent for longer than its pool's `heartbeat_ttl_ms`.
    Lost,
    /// Worker may run what the service does not know of, and nothing has spoken for it since.
    Suspect,
    /// Worker has reached its `expires_at_ms`.
    Ended,
    /// Worker runs a claim that it was told to stop.
    Stopping,
    /// Worker is kept for a claim that waits.
    Reserved,
}

impl UnschedulableReason {
    /// Every reason, the one that counts first in front.
    pub const ALL: [Self; 7] =
        [Self::Draining, Self::Cordoned, Self::Lost, Self::Suspect, Self::Ended, Self::Stopping, Self::Reserved];

    /// Word of the reason on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Cordoned => "cordoned",
            Self::Lost => "lost",
            Self::Suspect => "suspect",
            Self::Ended => "ended",
            Self::Stopping => "stopping",
            Self::Reserved => "reserved",
        }
    }
}

/// Numbers of workers by [`UnschedulableReason`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnschedulableCounts {
    /// Draining workers.
    pub draining: u64,
    /// Cordoned workers.
    pub cordoned: u64,
    /// Lost workers.
    pub lost: u64,
    /// Suspect workers.
    pub suspect: u64,
    /// Workers whose own end of life has come.
    pub ended: u64,
    /// Workers that run what they were told to stop.
    pub stopping: u64,
    /// Workers that are kept for claims that wait.
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

    /// Number of workers with this reason, to be changed.
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

    /// Sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        UnschedulableReason::ALL.iter().map(|reason| self.get(*reason)).sum()
    }

    /// Adds the workers of another shard.
    pub fn add(&mut self, other: &Self) {
        UnschedulableReason::ALL.iter().for_each(|reason| *self.get_mut(*reason) += other.get(*reason));
    }
}
