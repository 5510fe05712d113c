//! Fences: numbers that grow with every grant, also across restarts and clock steps.
//!
//! A fence is `max(last + 1, unix time in us)`, where `last` is one atomic of the process, and never passes a ceiling
//! that the store's ownership record holds already. After a restart `last` starts from the ceiling, so fences grow
//! even if the record tail was lost and the clock was set back; and from the highest fence in the rows, should they have
//! outlived the ownership record. Time counts only while it is well below the ceiling:
//! a clock that leaps ahead neither passes it nor uses up what lies below it.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::limits;
use crate::model::Fence;

/// Distance from the last fence to a new ceiling: ten minutes, in microseconds.
pub const CEILING_AHEAD: u64 = 600_000_000;
/// Distance to the ceiling below which it is raised, in microseconds.
const CEILING_LOW_WATER: u64 = CEILING_AHEAD / 2;

/// Distance to the ceiling below which time does not count, in microseconds.
const TIME_MARGIN: u64 = CEILING_LOW_WATER / 2;

/// Generator of fences that grow with every grant.
#[derive(Debug)]
pub struct FenceGenerator {
    floor: AtomicU64,
    previous_floor: AtomicU64,
    last: CachePadded<AtomicU64>,
    ceiling: CachePadded<AtomicU64>,
}

impl FenceGenerator {
    /// Creates a generator that draws no fence until [`Self::start`].
    #[must_use]
    pub const fn new_closed() -> Self {
        Self {
            floor: AtomicU64::new(0),
            previous_floor: AtomicU64::new(0),
            last: CachePadded::new(AtomicU64::new(0)),
            ceiling: CachePadded::new(AtomicU64::new(0)),
        }
    }

    /// Starts above `floor`, the ceiling of the previous owner of the store, which itself started above `previous_floor`.
    pub fn start(&self, floor: Fence, previous_floor: Fence) {
        self.previous_floor.fetch_max(previous_floor, Ordering::Relaxed);
        self.floor.fetch_max(floor, Ordering::Relaxed);
        self.last.fetch_max(floor, Ordering::Relaxed);
    }

    /// Raises the last fence to one that a row has. The ownership record may be lost, or older than the rows: it has a server
    /// of its own.
    pub fn raise_last(&self, fence: Fence) {
        self.last.fetch_max(fence, Ordering::Relaxed);
    }

    /// Highest fence that may have been granted before [`Self::start`].
    #[must_use]
    pub fn floor(&self) -> Fence {
        self.floor.load(Ordering::Relaxed)
    }

    /// Fence above which the last owner that granted any granted all of its own.
    #[must_use]
    pub fn previous_floor(&self) -> Fence {
        self.previous_floor.load(Ordering::Relaxed)
    }

    /// Notes the ceiling that the store now holds.
    pub fn set_ceiling(&self, ceiling: Fence) {
        self.ceiling.fetch_max(ceiling, Ordering::Release);
    }

    /// Ceiling to write to the store next, if the present one is near.
    #[must_use]
    pub fn next_ceiling(&self, unix_us: u64) -> Option<Fence> {
        let last = self.last.load(Ordering::Relaxed);
        let front = last.max(unix_us.min(last + CEILING_AHEAD));
        let front = if last == 0 { unix_us } else { front };
        (self.ceiling.load(Ordering::Relaxed) < front + CEILING_LOW_WATER)
            .then_some((front + CEILING_AHEAD).min(limits::FENCE_MAX))
    }

    /// Draws `n` consecutive fences and returns the first; none if they would pass the ceiling.
    ///
    /// Draw after the request left the shard's queue: the previous holder of the key drew earlier, so the new fence is higher.
    #[must_use]
    pub fn allocate(&self, n: u64, unix_us: u64) -> Option<Fence> {
        let ceiling = self.ceiling.load(Ordering::Acquire);
        let mut first = 0;
        self.last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                let by_time = if unix_us < ceiling.saturating_sub(TIME_MARGIN) { unix_us } else { 0 };
                first = (last + 1).max(by_time);
                (first + n - 1 <= ceiling).then_some(first + n - 1)
            })
            .ok()
            .map(|_| first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s13_fences_grow_over_a_restart_with_the_clock_set_back() {
        let before = FenceGenerator::new_closed();
        before.set_ceiling(before.next_ceiling(5_000_000).expect("no ceiling yet"));
        let last = before.allocate(3, 5_000_000).expect("below the ceiling") + 2;
        // The tail is lost, the clock an hour back: only the stored ceiling is left.
        let after = FenceGenerator::new_closed();
        after.start(before.ceiling.load(Ordering::Relaxed), 0);
        after.set_ceiling(after.next_ceiling(1_000).expect("the old ceiling is the new floor"));
        assert!(after.allocate(1, 1_000).expect("below the ceiling") > last);
    }

    #[test]
    fn s09_a_clock_that_leaps_ahead_stays_under_the_ceiling() {
        let fences = FenceGenerator::new_closed();
        assert_eq!(fences.allocate(1, 10), None, "closed");
        fences.set_ceiling(TIME_MARGIN + 1_000);
        assert_eq!(fences.allocate(1, 10), Some(10));
        assert_eq!(fences.allocate(1, u64::MAX), Some(11), "a leap does not count");
        assert_eq!(fences.allocate(TIME_MARGIN + 989, 10), Some(12));
        assert_eq!(fences.allocate(1, 10), None, "the ceiling is reached");
    }
}
