//! Pacing of the open loop: issues events at their scheduled times, regardless of how earlier ones fared.
//!
//! Pacing sleeps in a thread of its own, because async timers count whole milliseconds, and never spins, because a
//! spinning thread would take a core from the target. A sleeping thread wakes about 60 us late, so events come in
//! small bunches; the lateness of each is recorded. Latencies count from the intended time and include it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Notify;

/// Longest single sleep, so that a stop request is noticed soon.
const SLEEP_MAX: Duration = Duration::from_millis(50);

/// Request to end the run early; raised once, by a signal.
#[derive(Debug, Default)]
pub struct StopSignal {
    requested: AtomicBool,
    raised: Notify,
}

impl StopSignal {
    /// Requests everything that waits on this signal to stop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.raised.notify_waiters();
    }

    /// Returns true once a stop was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Waits until a stop is requested.
    pub async fn wait(&self) {
        let raised = self.raised.notified();
        tokio::pin!(raised);
        // Register before the check: a request in between is not missed.
        raised.as_mut().enable();
        if !self.requested.load(Ordering::SeqCst) {
            raised.await;
        }
    }
}

/// Calls `issue(due, item)` for each `(offset, item)` of the schedule at `start + offset`, in order, until the
/// schedule ends or a stop is requested. Blocks its thread. Returns how late each event was issued, in nanoseconds.
///
/// Offsets must not decrease.
pub fn issue_on_schedule<T>(
    start: Instant,
    schedule: impl Iterator<Item = (Duration, T)>,
    stop: &StopSignal,
    mut issue: impl FnMut(Instant, T),
) -> Histogram<u64> {
    let mut lateness = super::stats::histogram();
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
        super::stats::record(&mut lateness, now - due, 1);
        issue(due, item);
    }
    lateness
}

/// Send times for `rate` claims per second in requests of `batch`, for `duration`, as offsets from the start.
pub fn steady_schedule(rate: f64, batch: usize, duration: Duration) -> impl Iterator<Item = (Duration, ())> {
    let every_s = batch as f64 / rate;
    // Each time is computed from its index: adding intervals up would drift.
    (0_u64..).map(move |n| (Duration::from_secs_f64(n as f64 * every_s), ())).take_while(move |(at, ())| *at < duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_schedule_neither_drifts_nor_overruns() {
        let due: Vec<Duration> = steady_schedule(3.0, 1, Duration::from_secs(1_000)).map(|(at, ())| at).collect();
        assert_eq!(due.len(), 3_000);
        assert_eq!(due[2_997], Duration::from_secs(999));
        assert_eq!(steady_schedule(1_000.0, 64, Duration::from_secs(2)).count(), 32); // 31.25 are due, the first at 0
    }

    #[test]
    fn events_follow_the_schedule_even_if_issuing_is_slow() {
        let start = Instant::now();
        let mut issued = Vec::new();
        let schedule = (0..20_u32).map(|n| (Duration::from_millis(1) * n, n));
        let lateness = issue_on_schedule(start, schedule, &StopSignal::default(), |due, n| {
            assert!(Instant::now() >= due, "never early");
            if n == 0 {
                thread::sleep(Duration::from_millis(10));
            }
            issued.push((due - start, n));
        });
        let expected: Vec<_> = (0..20_u32).map(|n| (Duration::from_millis(1) * n, n)).collect();
        assert_eq!(issued, expected);
        assert!(lateness.max() >= 8_000_000, "the second event was delayed by the first: {}", lateness.max());
    }

    #[tokio::test]
    async fn a_stop_ends_pacing_and_wakes_waiters() {
        let stop = StopSignal::default();
        stop.request();
        issue_on_schedule(Instant::now(), steady_schedule(1.0, 1, Duration::from_secs(9)), &stop, |_, ()| {
            panic!("issued after the stop")
        });
        stop.wait().await;
    }
}
