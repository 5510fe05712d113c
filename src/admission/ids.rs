//! Numbers that admission draws: tickets, arrivals, tie-breaks.
//!
//! Each scheduler has an [`Ids`] of its own. The numbers depend on its seed and on the calls alone: a test that repeats
//! the calls on one thread gets the same numbers, and another seed gives other tie-breaks.
//!
//! Threads take ranges of numbers and draw from their own, so no claim waits for a counter that other threads change.
//! A thread keeps the range of the instance that it used last: one that alternates between two of them takes a range
//! each time, which costs one atomic addition and a range of the 2^48.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::admission::queue::ArrivalNumber;
use crate::shard::KeyTicket;

/// Numbers that a thread takes at a time.
const RANGE_LEN: u64 = 1 << 16;

/// Numbers that one thread may draw for one instance.
#[derive(Debug, Clone, Copy)]
struct NumberRange {
    instance: u64,
    next: u64,
    end: u64,
}

thread_local! {
    /// Range of the instance that this thread used last. No instance has the number 0.
    static RANGE: Cell<NumberRange> = const { Cell::new(NumberRange { instance: 0, next: 0, end: 0 }) };
}

/// Source of tickets, arrivals and tie-breaks of one scheduler.
#[derive(Debug)]
pub struct Ids {
    /// Number of this instance in the process: tells the ranges of two instances apart, and nothing that is drawn.
    instance: u64,
    seed: u64,
    /// Number of the range that is taken next. The first is 1, so that no ticket is 0.
    next_range: AtomicU64,
    next_arrival: AtomicU64,
}

impl Default for Ids {
    fn default() -> Self {
        Self::seeded(0)
    }
}

impl Ids {
    /// Source whose tie-breaks are those of this seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        static INSTANCES: AtomicU64 = AtomicU64::new(1);
        Self {
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
            seed,
            next_range: AtomicU64::new(1),
            next_arrival: AtomicU64::new(ArrivalNumber::MIN.get()),
        }
    }

    /// Ticket that this instance has not given before; never 0. Tickets have no order.
    pub fn next_ticket(&self) -> KeyTicket {
        self.next_number()
    }

    /// Hash that spreads equal requests over candidates: 64 bits that look random, another for each call.
    pub fn next_tie_break(&self) -> u64 {
        xxh3_64_with_seed(&self.next_number().to_le_bytes(), self.seed)
    }

    /// Arrival after all that this instance has given. One counter for all threads, because arrivals are an order; only
    /// a claim that has to wait draws one.
    pub fn next_arrival(&self) -> ArrivalNumber {
        let arrival = self.next_arrival.fetch_add(1, Ordering::Relaxed);
        ArrivalNumber::new(arrival).expect("2^64 claims do not arrive")
    }

    fn next_number(&self) -> u64 {
        RANGE.with(|kept| {
            let kept_range = kept.get();
            let range = if kept_range.instance == self.instance && kept_range.next < kept_range.end {
                kept_range
            } else {
                self.take_range()
            };
            assert!(range.next < range.end, "a range that is taken has numbers");
            kept.set(NumberRange { next: range.next + 1, ..range });
            range.next
        })
    }

    #[cold]
    fn take_range(&self) -> NumberRange {
        let number = self.next_range.fetch_add(1, Ordering::Relaxed);
        let next = number.checked_mul(RANGE_LEN).expect("2^48 ranges are not used up");
        NumberRange { instance: self.instance, next, end: next.saturating_add(RANGE_LEN) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::{Barrier, mpsc};

    #[test]
    fn no_ticket_is_given_twice_by_many_threads() {
        const THREADS: usize = 4;
        // More than a range, so that each thread takes several.
        const EACH: usize = RANGE_LEN as usize * 2 + 7;
        let (ids, start) = (Ids::default(), Barrier::new(THREADS));
        let draw = || {
            start.wait();
            (0..EACH).map(|_| ids.next_ticket()).collect::<Vec<_>>()
        };
        let tickets: BTreeSet<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(draw)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(tickets.len(), THREADS * EACH);
        assert!(!tickets.contains(&0), "0 is no ticket");
    }

    #[test]
    fn instances_that_alternate_on_a_thread_repeat_no_ticket_of_their_own() {
        let [a, b] = [Ids::default(), Ids::default()];
        let (mut of_a, mut of_b) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..1_000 {
            assert!(of_a.insert(a.next_ticket()) && of_b.insert(b.next_ticket()));
        }
        // Had the thread drawn for one instance from the range of the other, the next thread that takes a range of its
        // own would repeat it.
        let mut draw = || (0..1_000).for_each(|_| assert!(of_b.insert(b.next_ticket())));
        std::thread::scope(|scope| scope.spawn(&mut draw).join().unwrap());
    }

    #[test]
    fn an_instance_does_not_go_on_where_another_ended() {
        let draw = || {
            let ids = Ids::seeded(7);
            (ids.next_ticket(), ids.next_tie_break(), ids.next_arrival(), ids.next_ticket())
        };
        assert_eq!(draw(), draw());
    }

    #[test]
    fn a_seed_gives_the_same_tie_breaks_again_and_another_seed_gives_others() {
        let draw = |seed| {
            let ids = Ids::seeded(seed);
            (0..1_000).map(|_| ids.next_tie_break()).collect::<BTreeSet<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_eq!(draw(1).len(), 1_000, "another for each call");
        assert!(draw(1).is_disjoint(&draw(2)));
    }

    /// Both halves are used: the two shards between which a claim chooses are drawn from one each.
    #[test]
    fn tie_breaks_spread_over_candidates_in_both_halves() {
        let ids = Ids::default();
        let (mut high, mut low) = ([0_u32; 16], [0_u32; 16]);
        for _ in 0..16_000 {
            let tie_break = ids.next_tie_break();
            high[(tie_break >> 60) as usize] += 1;
            low[(tie_break >> 28 & 15) as usize] += 1;
        }
        assert!(high.iter().chain(&low).all(|count| (800..1_200).contains(count)), "{high:?} {low:?}");
    }

    #[test]
    fn arrivals_follow_each_other_over_all_threads() {
        let ids = Ids::default();
        let (sender, arrivals) = mpsc::channel();
        for _ in 0..3 {
            std::thread::scope(|scope| {
                scope.spawn(|| (0..10).for_each(|_| sender.send(ids.next_arrival()).unwrap()));
            });
        }
        drop(sender);
        let arrivals: Vec<_> = arrivals.iter().map(ArrivalNumber::get).collect();
        assert_eq!(arrivals, (1..=30).collect::<Vec<_>>());
    }
}
