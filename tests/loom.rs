//! Every interleaving of a shard's one wake-up ([`schedule::RunSchedule`]): a sleeping drainer leaves no push and no
//! change unhandled, and nothing keeps it awake that it may not act on ([`lease_deadline::LeaseDeadline`]); of the
//! bound of its queue ([`schedule::QueueBound`]); and of the clock of its lag ([`lag::LagTracker`]): no change that
//! the store lacks is forgotten.
//!
//! The files of the service are compiled here once more, with loom's atomics in place of the standard ones, so this
//! runs in an ordinary build. It failed when the second check in `must_run_again` was left out, and when that check
//! came before the store of `false`.

#[path = "../src/persist/journal/lag.rs"]
mod lag;
#[path = "../src/persist/journal/lease_deadline.rs"]
mod lease_deadline;
#[path = "../src/shard/schedule.rs"]
mod schedule;

mod atomic {
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
}

use std::collections::VecDeque;

use lag::LagTracker;
use lease_deadline::LeaseDeadline;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use schedule::{QueueBound, RunSchedule};

/// Surroundings of `RunSchedule` in the service: the mailbox of the shard, that of its actor, and the handled
/// requests.
#[derive(Default)]
struct ShardModel {
    scheduled: RunSchedule,
    queue: Mutex<VecDeque<u32>>,
    wakes: AtomicUsize,
    /// Progress of the store, and the progress that the drainer knows.
    applied: AtomicUsize,
    seen: AtomicUsize,
    /// Progress when a reply was sent: none is while the lease does not hold.
    answered: AtomicUsize,
    lease: LeaseDeadline,
    runs: AtomicUsize,
    handled: Mutex<Vec<u32>>,
}

impl ShardModel {
    fn push(&self, item: u32) {
        self.queue.lock().unwrap().push_back(item);
        if self.scheduled.wake_needed() {
            self.wakes.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.lock().unwrap().is_empty()
    }

    /// Makes progress of the store: nothing is pushed, but the drainer has something to do.
    fn progress(&self) {
        self.applied.store(1, Ordering::Release);
        self.notify_change();
    }

    /// Renews the lease, and wakes the drainer if it found the lease lapsed.
    fn renew(&self) {
        if self.lease.extend(u64::MAX) {
            self.notify_change();
        }
    }

    fn notify_change(&self) {
        if self.scheduled.wake_needed_for_change() {
            self.wakes.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Handles one message of the actor, if there is one: a run of at most `max` items.
    fn run(&self, max: usize) -> bool {
        if self.wakes.load(Ordering::SeqCst) == 0 {
            return false;
        }
        self.wakes.fetch_sub(1, Ordering::SeqCst);
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.scheduled.begin_run();
        let applied = self.applied.load(Ordering::Acquire);
        self.seen.store(applied, Ordering::Relaxed);
        if self.lease.is_valid(|| 0) {
            self.answered.store(applied, Ordering::Relaxed);
        }
        for _ in 0..max {
            let Some(item) = self.queue.lock().unwrap().pop_front() else { break };
            self.handled.lock().unwrap().push(item);
        }
        if self.scheduled.must_run_again(|| self.is_empty()) {
            self.wakes.fetch_add(1, Ordering::SeqCst);
        }
        true
    }
}

fn two_push_one_drains(max: usize) {
    loom::model(move || {
        let port = Arc::new(ShardModel::default());
        let pushers: Vec<_> = [1, 2]
            .into_iter()
            .map(|item| {
                let port = Arc::clone(&port);
                thread::spawn(move || port.push(item))
            })
            .collect();
        // The drainer runs while they push, as often as it is woken at that moment...
        for _ in 0..2 {
            port.run(max);
        }
        for pusher in pushers {
            pusher.join().unwrap();
        }
        // ...and afterwards while it has been woken. Nothing is pushed any more: what is left now is left for ever.
        while port.run(max) {}
        assert!(port.is_empty(), "a push was not seen, and nothing wakes the drainer");
        let mut handled = port.handled.lock().unwrap().clone();
        handled.sort_unstable();
        assert_eq!(handled, [1, 2]);
        assert!(port.scheduled.wake_needed(), "asleep: the next push wakes it");
    });
}

#[test]
fn q05_no_wake_up_is_lost() {
    two_push_one_drains(8);
}

#[test]
fn q05_no_wake_up_is_lost_when_a_run_takes_less_than_all() {
    two_push_one_drains(1);
}

/// A thread that pushes while no other thread runs the shard runs it inline, as the service does: never two at once, and
/// nothing is left behind. It failed when the right was returned before the run had ended.
#[test]
fn q05_a_pusher_runs_the_shard_and_only_one_at_a_time() {
    fn push_and_run(port: &ShardModel, inside: &AtomicUsize, item: u32) {
        port.queue.lock().unwrap().push_back(item);
        if !port.scheduled.wake_needed() {
            return;
        }
        loop {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two run the shard at once");
            while let Some(item) = port.queue.lock().unwrap().pop_front() {
                port.handled.lock().unwrap().push(item);
            }
            inside.fetch_sub(1, Ordering::SeqCst);
            if !port.scheduled.must_run_again(|| port.is_empty()) {
                return;
            }
        }
    }
    loom::model(|| {
        let (port, inside) = (Arc::new(ShardModel::default()), Arc::new(AtomicUsize::new(0)));
        let pushers: Vec<_> = [1, 2]
            .into_iter()
            .map(|item| {
                let (port, inside) = (Arc::clone(&port), Arc::clone(&inside));
                thread::spawn(move || push_and_run(&port, &inside, item))
            })
            .collect();
        for pusher in pushers {
            pusher.join().unwrap();
        }
        assert_eq!(port.handled.lock().unwrap().len(), 2, "a push was not seen, and nothing runs the shard");
        assert!(port.scheduled.wake_needed(), "asleep: the next push runs it");
    });
}

/// The mailbox is not the only reason to wake: a reply that waits for the store must be sent when the store has its
/// record. It failed when the second check covered the mailbox alone, and a reply waited for the next request or for 5
/// s.
#[test]
fn j1_progress_of_the_store_is_seen() {
    loom::model(|| {
        let port = Arc::new(ShardModel::default());
        let store = {
            let port = Arc::clone(&port);
            thread::spawn(move || port.progress())
        };
        port.push(1);
        port.run(8);
        store.join().unwrap();
        while port.run(8) {}
        assert_eq!(port.seen.load(Ordering::Relaxed), 1, "the store made progress, and no run sees it");
    });
}

/// Changes that the drainer may not act on do not keep it awake. It failed when the drainer checked the store's
/// progress before it slept: then it ran for ever.
#[test]
fn s18_a_drainer_that_may_not_answer_sleeps() {
    loom::model(|| {
        let port = Arc::new(ShardModel::default());
        port.lease.extend(0);
        let store = {
            let port = Arc::clone(&port);
            thread::spawn(move || port.progress())
        };
        port.push(1);
        port.run(8);
        store.join().unwrap();
        while port.run(8) {
            let runs = port.runs.load(Ordering::Relaxed);
            assert!(runs <= 2, "two wakes, and it ran {runs} times");
        }
        assert_eq!((port.seen.load(Ordering::Relaxed), port.answered.load(Ordering::Relaxed)), (1, 0));
        assert!(port.scheduled.wake_needed(), "asleep: the next push wakes it");
    });
}

/// The renewal wakes a drainer that found the lease lapsed, whenever it comes. It failed when the renewal itself
/// checked whether the lease had lapsed, and when the mark was left without a second check.
#[test]
fn s18_a_renewal_is_seen() {
    loom::model(|| {
        let port = Arc::new(ShardModel::default());
        port.lease.extend(0);
        let owner = {
            let port = Arc::clone(&port);
            thread::spawn(move || port.renew())
        };
        port.progress();
        port.run(8);
        owner.join().unwrap();
        while port.run(8) {}
        assert_eq!(port.answered.load(Ordering::Relaxed), 1, "the lease holds, and no run sees it");
        assert_eq!(port.lease.until_ns(), None, "for ever");
    });
}

/// The queue of a shard is unbounded itself: the count beside it never admits more than it may, nor fewer once the
/// refused ones are gone.
#[test]
fn q05_the_queue_never_exceeds_its_bound() {
    loom::model(|| {
        let (bound, inside) = (Arc::new(QueueBound::default()), Arc::new(AtomicUsize::new(0)));
        let pushers: Vec<_> = (0..2)
            .map(|_| {
                let (bound, inside) = (Arc::clone(&bound), Arc::clone(&inside));
                thread::spawn(move || {
                    let entered = bound.try_acquire(1);
                    if entered {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two wait where one may");
                        inside.fetch_sub(1, Ordering::SeqCst);
                        bound.release(1);
                    }
                    entered
                })
            })
            .collect();
        let entered = pushers.into_iter().map(|pusher| pusher.join().unwrap()).filter(|entered| *entered).count();
        assert!(entered > 0, "one of two is let in");
        assert_eq!(bound.in_use(), 0);
    });
}

/// A restarted shard: whatever the last one left, `reset` and one wake-up make it check the mailbox.
#[test]
fn s08_a_new_drainer_handles_what_the_last_one_left() {
    loom::model(|| {
        let port = Arc::new(ShardModel::default());
        // The last drainer was woken for this, and died.
        port.push(1);
        port.wakes.store(0, Ordering::SeqCst);
        let pusher = {
            let port = Arc::clone(&port);
            thread::spawn(move || port.push(2))
        };
        port.scheduled.reset();
        port.wakes.fetch_add(1, Ordering::SeqCst);
        port.run(8);
        pusher.join().unwrap();
        while port.run(8) {}
        assert_eq!(port.handled.lock().unwrap().len(), 2);
    });
}

/// A change that is handed over while the writer learns that the store has the rest is not forgotten. This failed when
/// there was one time for both, which the writer computed under the outbox's lock and stored after it.
#[test]
fn j2_a_change_that_is_handed_over_while_another_is_applied_counts_as_lag() {
    loom::model(|| {
        let lag = Arc::new(LagTracker::default());
        lag.mark_appended(10);
        lag.mark_in_flight();
        let shard = {
            let lag = Arc::clone(&lag);
            thread::spawn(move || {
                lag.mark_appended(20);
                assert!(lag.since_ns().is_some(), "it was not taken");
            })
        };
        lag.mark_applied();
        shard.join().unwrap();
        assert_eq!(lag.since_ns(), Some(20));
        lag.mark_in_flight();
        assert_eq!(lag.since_ns(), Some(20), "in flight, so the store lacks it still");
        lag.mark_applied();
        assert_eq!(lag.since_ns(), None);
    });
}

/// Lag is visible at every moment of a take. This fails when the time is cleared in one cell before it is set in the
/// other.
#[test]
fn j2_lag_is_visible_while_a_change_is_taken() {
    loom::model(|| {
        let lag = Arc::new(LagTracker::default());
        lag.mark_appended(10);
        let writer = {
            let lag = Arc::clone(&lag);
            thread::spawn(move || lag.mark_in_flight())
        };
        assert_eq!(lag.since_ns(), Some(10));
        writer.join().unwrap();
        // More of it may be taken before the store has the first, as a snapshot does.
        lag.mark_appended(30);
        lag.mark_in_flight();
        assert_eq!(lag.since_ns(), Some(10));
    });
}
