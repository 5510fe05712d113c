//! The open loop's clock: issues events at the times that a schedule says, whatever became of the earlier ones.
//!
//! It sleeps in a thread of its own, because an async timer counts in whole milliseconds, and never spins, because
//! a spinning thread would take a core from what is measured. A sleeping thread wakes some 60 us late, so events
//! come in small bunches; how late each was is recorded. Latencies count from the intended time and include it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Notify;

/// Longest nap, so that a request to stop is soon seen.
const SLEEP_MAX: Duration = Duration::from_millis(50);

/// A request to end early; raised once, by a signal.
#[derive(Debug, Default)]
pub struct StopSignal {
    requested: AtomicBool,
    raised: Notify,
}

impl StopSignal {
    /// Asks everything that looks here to end.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.raised.notify_waiters();
    }

    /// Whether it was asked.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Returns once it is asked.
    pub async fn wait(&self) {
        let raised = self.raised.notified();
        tokio::pin!(raised);
        // Enter the queue first and look then: an `ask` in between is not missed.
        raised.as_mut().enable();
        if !self.requested.load(Ordering::SeqCst) {
            raised.await;
        }
    }
}

/// Calls `issue(due, item)` for each `(offset, item)` of the schedule at `start + offset`, in order, until the
/// schedule ends or `stop` is asked. Blocks its thread. Returns how late each event was issued, in nanoseconds.
///
/// Offsets must not go back.
pub fn issue_on_schedule<T>(
    start: Instant,
    schedule: impl Iterator<Item = (Duration, T)>,
    stop: &StopSignal,
    mut issue: impl FnMut(Instant, T),
) -> Histogram<u64> {
    let mut late = super::stats::histogram();
    for (offset, item) in schedule {
        let due = start + offset;
        let mut now = Instant::now();
        while now < due && !stop.is_requested() {
            thread::sleep((due - now).min(SLEEP_MAX));
            now = Instant::now();
        }
        if stop.is_requested() {
            break;
        }
        super::stats::record(&mut late, now - due, 1);
        issue(due, item);
    }
    late
}

/// `rate` items per second in requests of `batch`, for `duration`: when each request is due, counted from the start.
pub fn steady_schedule(rate: f64, batch: usize, duration: Duration) -> impl Iterator<Item = (Duration, ())> {
    let every_s = batch as f64 / rate;
    // Each time is computed from its number: adding steps up would drift.
    (0_u64..).map(move |n| (Duration::from_secs_f64(n as f64 * every_s), ())).take_while(move |(at, ())| *at < duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_schedule_neither_drifts_nor_runs_over() {
        let due: Vec<Duration> = steady_schedule(3.0, 1, Duration::from_secs(1_000)).map(|(at, ())| at).collect();
        assert_eq!(due.len(), 3_000);
        assert_eq!(due[2_997], Duration::from_secs(999));
        assert_eq!(steady_schedule(1_000.0, 64, Duration::from_secs(2)).count(), 32); // 31.25 are due, the first at 0
    }

    #[test]
    fn events_are_due_when_the_schedule_says_even_if_issuing_is_slow() {
        let start = Instant::now();
        let mut seen = Vec::new();
        let schedule = (0..20_u32).map(|n| (Duration::from_millis(1) * n, n));
        let late = issue_on_schedule(start, schedule, &StopSignal::default(), |due, n| {
            assert!(Instant::now() >= due, "never early");
            if n == 0 {
                thread::sleep(Duration::from_millis(10));
            }
            seen.push((due - start, n));
        });
        let wanted: Vec<_> = (0..20_u32).map(|n| (Duration::from_millis(1) * n, n)).collect();
        assert_eq!(seen, wanted);
        assert!(late.max() >= 8_000_000, "the second event was held up by the first, and that shows: {}", late.max());
    }

    #[tokio::test]
    async fn a_stop_ends_the_pace_and_wakes_who_waits() {
        let stop = StopSignal::default();
        stop.request();
        issue_on_schedule(Instant::now(), steady_schedule(1.0, 1, Duration::from_secs(9)), &stop, |_, ()| {
            panic!("issued after the stop")
        });
        stop.wait().await;
    }
}
