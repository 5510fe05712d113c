//! Named situations that a simulation must reach: each marks a branch that a rare order of events takes. A run counts which
//! of them it met, so a simulation that never meets one says so. Release builds contain nothing of this.

/// Counts the situation of this name, in builds with debug assertions and the feature `internals`.
#[macro_export]
#[doc(hidden)]
macro_rules! reached {
    ($situation:literal) => {
        $crate::coverage::count($situation)
    };
}

pub use crate::reached;

#[cfg(all(feature = "internals", debug_assertions))]
mod counts {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    thread_local! {
        static LAST: Cell<Option<(&'static str, u64)>> = const { Cell::new(None) };
        static COUNTS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
    }

    /// Counts a situation that this thread has met.
    #[inline]
    pub fn count(situation: &'static str) {
        let count = COUNTS.with_borrow_mut(|counts| {
            let count = counts.entry(situation).or_default();
            *count += 1;
            *count
        });
        LAST.set(Some((situation, count)));
    }

    /// Last situation that this thread has met since the last call, with how often it has met it.
    #[must_use]
    pub fn take_last() -> Option<(&'static str, u64)> {
        LAST.take()
    }

    /// Times that this thread has met the situation since the last call of [`take_counts`].
    #[must_use]
    pub fn count_of(situation: &str) -> u64 {
        COUNTS.with_borrow(|counts| counts.get(situation).copied().unwrap_or(0))
    }

    /// Situations that this thread has met since the last call, each with how often.
    #[must_use]
    pub fn take_counts() -> BTreeMap<&'static str, u64> {
        COUNTS.take()
    }
}

#[cfg(all(feature = "internals", debug_assertions))]
pub use self::counts::{count, count_of, take_counts, take_last};

/// Counts nothing: this build has no simulation.
#[cfg(not(all(feature = "internals", debug_assertions)))]
#[inline(always)]
pub const fn count(_situation: &'static str) {}
