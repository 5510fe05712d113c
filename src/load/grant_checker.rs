//! Grant checker: verifies during a load that no worker has two holders at once and that fences grow.
//!
//! A worker is *held* from the time the reply with its grant was received until the request that releases it is about
//! to be sent. Both ends lie within the span in which the service considers it held. So a correct service never shows
//! two holders here, however late its replies, and every overlap that is found did happen.
//!
//! One atomic word per worker holds everything: the fence of the last grant, and a bit that marks it as held. A grant
//! swaps in its own word and checks the previous one; a release clears the bit only if the word is still its own. On
//! shared workers the word is the sum of held slots, which must not exceed the capacity; their fences grow per key,
//! and no key is used twice.
//!
//! Caveat: with three holders at once, the third is missed if the second is released first. Every overlap is still
//! counted at least once, by its second holder.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use hotpool::limits::FENCE_MAX;

/// Bit that is set while the worker is held. Fences lie below it.
const HELD_BIT: u64 = 1 << 63;
const _: () = assert!(FENCE_MAX < HELD_BIT);

/// Ordinal of a worker that this run did not register.
pub const UNKNOWN_WORKER: u32 = u32::MAX;

/// Formats the id of worker `ordinal`; [`worker_ordinal`] parses it.
#[must_use]
pub fn worker_id(ordinal: u32) -> String {
    format!("w{ordinal:07}")
}

/// Parses the ordinal in a worker's id; [`UNKNOWN_WORKER`] for other ids.
#[must_use]
pub fn worker_ordinal(id: &str) -> u32 {
    id.strip_prefix('w').and_then(|digits| digits.parse().ok()).unwrap_or(UNKNOWN_WORKER)
}

/// Number of violations found in grants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantViolations {
    /// Grants of a worker that was already held, or of more slots than it has.
    pub double_claims: u64,
    /// Grants whose fence is not above the previous one of the worker.
    pub old_fences: u64,
    /// Grants of a worker that was never registered.
    pub unknown_workers: u64,
}

/// Holders of all workers as the clients see them. Shared by the clients; lock-free.
#[derive(Debug)]
pub struct GrantChecker {
    /// Last fence and [`HELD_BIT`] of each worker; on shared workers the number of held slots.
    workers: Vec<AtomicU64>,
    /// Slots of each worker; 0 if a claim takes a whole worker.
    slots: u64,
    /// Function of each worker's last claim, plus one; 0 before the first.
    functions: Vec<AtomicU32>,
    saw_function: AtomicBool,
    double_claims: AtomicU64,
    old_fences: AtomicU64,
    unknown_workers: AtomicU64,
}

impl GrantChecker {
    /// Creates a checker for idle workers `0..workers` with `slots` slots each; 0 if a claim takes a whole worker.
    #[must_use]
    pub fn new(workers: u32, slots: u32) -> Self {
        Self {
            workers: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            slots: slots.into(),
            functions: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            saw_function: AtomicBool::new(false),
            double_claims: AtomicU64::new(0),
            old_fences: AtomicU64::new(0),
            unknown_workers: AtomicU64::new(0),
        }
    }

    /// Records that a grant of `worker`, or of `slots` of its slots, was received.
    pub fn record_grant(&self, worker: u32, fence: u64, slots: u32) {
        let Some(state) = self.workers.get(worker as usize) else {
            self.unknown_workers.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if self.slots > 0 {
            let used = state.fetch_add(slots.into(), Ordering::AcqRel) + u64::from(slots);
            self.double_claims.fetch_add(u64::from(used > self.slots), Ordering::Relaxed);
            self.old_fences.fetch_add(u64::from(fence == 0 || fence > FENCE_MAX), Ordering::Relaxed);
            return;
        }
        let previous = state.swap(fence | HELD_BIT, Ordering::AcqRel);
        if previous & HELD_BIT != 0 {
            self.double_claims.fetch_add(1, Ordering::Relaxed);
        }
        if fence <= previous & !HELD_BIT || fence > FENCE_MAX {
            self.old_fences.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that the release of a grant is about to be sent.
    pub fn record_release(&self, worker: u32, fence: u64, slots: u32) {
        let Some(state) = self.workers.get(worker as usize) else { return };
        if self.slots > 0 {
            state.fetch_sub(slots.into(), Ordering::AcqRel);
        } else {
            // Failure means that another grant replaced this one; it was counted then.
            let _ = state.compare_exchange(fence | HELD_BIT, fence, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Records that the worker now runs `function`. Returns true if its previous claim had the same function.
    pub fn record_function(&self, worker: u32, function: u32) -> bool {
        let state = function.wrapping_add(1);
        if !self.saw_function.load(Ordering::Relaxed) {
            self.saw_function.store(true, Ordering::Relaxed);
        }
        self.functions.get(worker as usize).is_some_and(|previous| previous.swap(state, Ordering::Relaxed) == state)
    }

    /// Returns true if any claim named a function.
    #[must_use]
    pub fn saw_functions(&self) -> bool {
        self.saw_function.load(Ordering::Relaxed)
    }

    /// Violations found so far.
    #[must_use]
    pub fn violations(&self) -> GrantViolations {
        GrantViolations {
            double_claims: self.double_claims.load(Ordering::Relaxed),
            old_fences: self.old_fences.load(Ordering::Relaxed),
            unknown_workers: self.unknown_workers.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        for ordinal in [0, 1, 9_999_999, 12_345_678] {
            assert_eq!(worker_ordinal(&worker_id(ordinal)), ordinal);
        }
        for invalid in ["", "w", "x0000001", "w-1", "w99999999999"] {
            assert_eq!(worker_ordinal(invalid), UNKNOWN_WORKER, "{invalid}");
        }
    }

    #[test]
    fn successive_holders_are_valid() {
        let checker = GrantChecker::new(2, 0);
        for fence in 1..10 {
            checker.record_grant(1, fence, 0);
            checker.record_release(1, fence, 0);
        }
        assert_eq!(checker.violations(), GrantViolations::default());
    }

    #[test]
    fn shares_beyond_the_capacity_are_double_claims() {
        let checker = GrantChecker::new(1, 4);
        checker.record_grant(0, 1, 3);
        checker.record_grant(0, 1, 1);
        assert_eq!(checker.violations(), GrantViolations::default(), "one fence for claims that came together");
        checker.record_grant(0, 2, 1);
        assert_eq!(checker.violations().double_claims, 1);
        checker.record_release(0, 1, 3);
        checker.record_grant(0, 3, 2);
        checker.record_grant(0, 0, 0);
        assert_eq!(checker.violations(), GrantViolations { double_claims: 1, old_fences: 1, unknown_workers: 0 });
    }

    #[test]
    fn two_holders_are_one_double_claim() {
        let checker = GrantChecker::new(1, 0);
        checker.record_grant(0, 5, 0);
        checker.record_grant(0, 6, 0);
        checker.record_release(0, 5, 0); // the older holder must not free the younger one's slot
        checker.record_grant(0, 7, 0);
        assert_eq!(checker.violations(), GrantViolations { double_claims: 2, ..GrantViolations::default() });
    }

    #[test]
    fn a_fence_that_does_not_grow_is_reported_even_on_an_idle_worker() {
        let checker = GrantChecker::new(1, 0);
        for fence in [5, 5, 4, FENCE_MAX + 1] {
            checker.record_grant(0, fence, 0);
            checker.record_release(0, fence, 0);
        }
        assert_eq!(checker.violations(), GrantViolations { old_fences: 3, ..GrantViolations::default() });
    }

    #[test]
    fn an_unregistered_worker_is_reported() {
        let checker = GrantChecker::new(1, 0);
        checker.record_grant(1, 1, 0);
        checker.record_release(1, 1, 0);
        checker.record_grant(UNKNOWN_WORKER, 2, 0);
        assert_eq!(checker.violations(), GrantViolations { unknown_workers: 2, ..GrantViolations::default() });
    }

    #[test]
    fn a_grant_is_warm_if_the_previous_function_was_the_same() {
        let checker = GrantChecker::new(1, 0);
        let warm: Vec<bool> =
            [0, 0, 1, 0, 0].into_iter().map(|function| checker.record_function(0, function)).collect();
        assert_eq!(warm, [false, true, false, false, true]);
    }

    /// Threads exchange workers through a correct queue and through a broken one.
    #[test]
    fn violations_are_found_under_concurrency_only_in_a_broken_queue() {
        const ROUNDS: u64 = 50_000;
        let run = |broken: bool| {
            let checker = GrantChecker::new(4, 0);
            let idle = crossbeam::queue::ArrayQueue::new(8);
            (0..4).for_each(|worker| idle.push(worker).unwrap());
            if broken {
                idle.push(0).unwrap(); // the same worker is offered twice
            }
            let fences = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..ROUNDS {
                            let Some(worker) = idle.pop() else {
                                std::thread::yield_now();
                                continue;
                            };
                            // In the broken queue two threads may get fences in one order and report them in the other.
                            let fence = fences.fetch_add(1, Ordering::Relaxed) + 1;
                            checker.record_grant(worker, fence, 0);
                            if fence.is_multiple_of(64) {
                                std::thread::yield_now(); // let another thread run while the worker is held
                            }
                            checker.record_release(worker, fence, 0);
                            idle.push(worker).unwrap();
                        }
                    });
                }
            });
            checker.violations()
        };
        assert_eq!(run(false), GrantViolations::default());
        assert!(run(true).double_claims > 0);
    }
}
