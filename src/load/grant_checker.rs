//! Checks the service while it is loaded: does any worker have two holders at once, do fences grow?
//!
//! A worker is *held* from the moment the answer that grants it has been received until the request that releases
//! it is about to be sent. Both ends lie inside the span in which the service thinks so too, so a correct service
//! never shows two holders here, however late the answers are; and whatever overlap is seen did happen.
//!
//! One atomic word a worker carries all of it: the fence of the last grant, and a bit that says it is held. A grant
//! swaps its own word in and looks at what was there; a release clears the bit only if the word is still its own.
//! Where claims take shares of a worker, the word is the sum of what is held, which must not exceed what there is; fences
//! then grow by key, and no key is used twice.
//!
//! Caveat: of three holders at once, the third goes unseen if the second is released first. Every overlap is still
//! counted at least once, by its second holder.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use hotpool::limits::FENCE_MAX;

/// Set while the worker is held. Fences lie below it.
const HELD_BIT: u64 = 1 << 63;
const _: () = assert!(FENCE_MAX < HELD_BIT);

/// Ordinal of a worker that this run did not register.
pub const UNKNOWN_WORKER: u32 = u32::MAX;

/// The id of worker `ordinal`; [`worker_ordinal`] reads it back.
#[must_use]
pub fn worker_id(ordinal: u32) -> String {
    format!("w{ordinal:07}")
}

/// The ordinal in a worker's id, or [`UNKNOWN_WORKER`].
#[must_use]
pub fn worker_ordinal(id: &str) -> u32 {
    id.strip_prefix('w').and_then(|digits| digits.parse().ok()).unwrap_or(UNKNOWN_WORKER)
}

/// What was found to be wrong, in grants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantViolations {
    /// Grants of a worker that somebody held; of shares, those beyond what the worker has.
    pub double_claims: u64,
    /// Grants whose fence is not above the worker's last one.
    pub old_fences: u64,
    /// Grants of a worker that was never registered.
    pub unknown_workers: u64,
}

/// Who holds which worker, as the clients see it. Shared by all of them; lock-free.
#[derive(Debug)]
pub struct GrantChecker {
    /// Per worker: last fence, and [`HELD`]; of shared workers the slots that are held.
    workers: Vec<AtomicU64>,
    /// Slots of a worker; 0: a claim takes it whole.
    slots: u64,
    /// Per worker: the function of its last claim plus one; 0 before the first.
    functions: Vec<AtomicU32>,
    saw_function: AtomicBool,
    double_claims: AtomicU64,
    old_fences: AtomicU64,
    unknown_workers: AtomicU64,
}

impl GrantChecker {
    /// For workers `0..workers`, all of them free, with so many slots each; 0: a claim takes a worker whole.
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

    /// A grant of `worker`, or of so many slots of it, has been received.
    pub fn record_grant(&self, worker: u32, fence: u64, slots: u32) {
        let Some(word) = self.workers.get(worker as usize) else {
            self.unknown_workers.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if self.slots > 0 {
            let held = word.fetch_add(slots.into(), Ordering::AcqRel) + u64::from(slots);
            self.double_claims.fetch_add(u64::from(held > self.slots), Ordering::Relaxed);
            self.old_fences.fetch_add(u64::from(fence == 0 || fence > FENCE_MAX), Ordering::Relaxed);
            return;
        }
        let before = word.swap(fence | HELD_BIT, Ordering::AcqRel);
        if before & HELD_BIT != 0 {
            self.double_claims.fetch_add(1, Ordering::Relaxed);
        }
        if fence <= before & !HELD_BIT || fence > FENCE_MAX {
            self.old_fences.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The release of that grant is about to be sent.
    pub fn record_release(&self, worker: u32, fence: u64, slots: u32) {
        let Some(word) = self.workers.get(worker as usize) else { return };
        if self.slots > 0 {
            word.fetch_sub(slots.into(), Ordering::AcqRel);
        } else {
            // Failing means that another grant stands there: it was counted when it came.
            let _ = word.compare_exchange(fence | HELD_BIT, fence, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Notes that the worker runs `function` now; true if its last claim was of the same function.
    pub fn record_function(&self, worker: u32, function: u32) -> bool {
        let word = function.wrapping_add(1);
        if !self.saw_function.load(Ordering::Relaxed) {
            self.saw_function.store(true, Ordering::Relaxed);
        }
        self.functions.get(worker as usize).is_some_and(|last| last.swap(word, Ordering::Relaxed) == word)
    }

    /// Whether any claim was for a function.
    #[must_use]
    pub fn saw_functions(&self) -> bool {
        self.saw_function.load(Ordering::Relaxed)
    }

    /// What was wrong so far.
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
        for foreign in ["", "w", "x0000001", "w-1", "w99999999999"] {
            assert_eq!(worker_ordinal(foreign), UNKNOWN_WORKER, "{foreign}");
        }
    }

    #[test]
    fn one_holder_after_another_is_fine() {
        let check = GrantChecker::new(2, 0);
        for fence in 1..10 {
            check.record_grant(1, fence, 0);
            check.record_release(1, fence, 0);
        }
        assert_eq!(check.violations(), GrantViolations::default());
    }

    #[test]
    fn shares_may_not_add_up_to_more_than_there_is() {
        let check = GrantChecker::new(1, 4);
        check.record_grant(0, 1, 3);
        check.record_grant(0, 1, 1);
        assert_eq!(check.violations(), GrantViolations::default(), "one fence for claims that came together");
        check.record_grant(0, 2, 1);
        assert_eq!(check.violations().double_claims, 1);
        check.record_release(0, 1, 3);
        check.record_grant(0, 3, 2);
        check.record_grant(0, 0, 0);
        assert_eq!(check.violations(), GrantViolations { double_claims: 1, old_fences: 1, unknown_workers: 0 });
    }

    #[test]
    fn two_holders_are_one_double_claim() {
        let check = GrantChecker::new(1, 0);
        check.record_grant(0, 5, 0);
        check.record_grant(0, 6, 0);
        check.record_release(0, 5, 0); // the older holder must not free the younger one's slot
        check.record_grant(0, 7, 0);
        assert_eq!(check.violations(), GrantViolations { double_claims: 2, ..GrantViolations::default() });
    }

    #[test]
    fn a_fence_that_does_not_grow_is_seen_even_when_the_worker_was_free() {
        let check = GrantChecker::new(1, 0);
        for fence in [5, 5, 4, FENCE_MAX + 1] {
            check.record_grant(0, fence, 0);
            check.record_release(0, fence, 0);
        }
        assert_eq!(check.violations(), GrantViolations { old_fences: 3, ..GrantViolations::default() });
    }

    #[test]
    fn a_worker_that_nobody_registered_is_seen() {
        let check = GrantChecker::new(1, 0);
        check.record_grant(1, 1, 0);
        check.record_release(1, 1, 0);
        check.record_grant(UNKNOWN_WORKER, 2, 0);
        assert_eq!(check.violations(), GrantViolations { unknown_workers: 2, ..GrantViolations::default() });
    }

    #[test]
    fn warm_is_the_same_function_twice_in_a_row() {
        let check = GrantChecker::new(1, 0);
        let met: Vec<bool> = [0, 0, 1, 0, 0].into_iter().map(|function| check.record_function(0, function)).collect();
        assert_eq!(met, [false, true, false, false, true]);
    }

    /// Threads hand workers over through a queue that is correct, and through one that is not.
    #[test]
    fn holds_under_concurrency() {
        const ROUNDS: u64 = 50_000;
        let run = |broken: bool| {
            let check = GrantChecker::new(4, 0);
            let idle = crossbeam::queue::ArrayQueue::new(8);
            (0..4).for_each(|worker| idle.push(worker).unwrap());
            if broken {
                idle.push(0).unwrap(); // the same worker is on offer twice
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
                            // In the broken queue two threads may take their fences in one order and say so in the other.
                            let fence = fences.fetch_add(1, Ordering::Relaxed) + 1;
                            check.record_grant(worker, fence, 0);
                            if fence.is_multiple_of(64) {
                                std::thread::yield_now(); // let somebody else in while the worker is held
                            }
                            check.record_release(worker, fence, 0);
                            idle.push(worker).unwrap();
                        }
                    });
                }
            });
            check.violations()
        };
        assert_eq!(run(false), GrantViolations::default());
        assert!(run(true).double_claims > 0);
    }
}
