//! Counts of unschedulable workers by reason, published for scrapes.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::model::{UnschedulableCounts, UnschedulableReason};

/// Numbers of workers by reason, readable without asking the shard.
#[derive(Default)]
pub(super) struct ReasonCells([AtomicU32; UnschedulableReason::ALL.len()]);

impl ReasonCells {
    pub(super) fn get(&self, reason: UnschedulableReason) -> u32 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, counts: &UnschedulableCounts) {
        for &reason in UnschedulableReason::ALL {
            // A shard numbers its workers with 32 bits.
            self.0[reason as usize].store(counts.get(reason) as u32, Ordering::Relaxed);
        }
    }
}
