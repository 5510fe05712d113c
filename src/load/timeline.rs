//! How a load went over time: counts and percentiles of each slice of the run.
//!
//! Clients record into one histogram each. The driver empties those into the slice that ends, so that recording costs what it
//! always did and a run of any length keeps one histogram a client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::load_client::LoadClient;
use super::report::LatencySummary;
use super::stats::histogram;

/// Slices of a run, about.
const SLICES: u32 = 50;
/// A slice is not shorter, so that looking is cheap beside what is looked at.
const SLICE_MIN: Duration = Duration::from_millis(100);
/// What one client adds to that.
const SLICE_MIN_CLIENT: Duration = Duration::from_millis(2);

/// What happened in one slice of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TimelineSlice {
    /// When it ended, in seconds from the start of the run.
    pub t_s: f64,
    /// How long it was, in seconds.
    pub length_s: f64,
    /// Claims granted.
    pub claims_ok: u64,
    /// Claims refused for want of a free worker.
    pub claims_refused: u64,
    /// Claims and releases that failed otherwise.
    pub errors: u64,
    /// Of the claims granted, in microseconds.
    pub latency_us: LatencySummary,
}

/// Slices so far, and the sum of them.
#[derive(Debug)]
pub struct LoadTimeline {
    start: Instant,
    last: Instant,
    width: Duration,
    keeps_windows: bool,
    before: [u64; 3],
    /// Latencies of all granted claims so far, in nanoseconds.
    pub total: Histogram<u64>,
    /// In order.
    pub slices: Vec<TimelineSlice>,
    /// Latencies of each slice, if they are kept.
    pub windows: Vec<Histogram<u64>>,
}

impl LoadTimeline {
    /// Of a run that begins now. `keep`: the latencies of each slice, to be added to those of other processes.
    #[must_use]
    pub fn new(start: Instant, duration: Duration, clients: usize, keep: bool) -> Self {
        let of_clients = SLICE_MIN_CLIENT * u32::try_from(clients).unwrap_or(u32::MAX);
        let width = (duration / SLICES).max(SLICE_MIN).max(of_clients);
        Self {
            start,
            last: start,
            width,
            keeps_windows: keep,
            before: [0; 3],
            total: histogram(),
            slices: Vec::new(),
            windows: Vec::new(),
        }
    }

    /// Ends the slice if it is time.
    pub fn tick(&mut self, now: Instant, clients: &[Arc<LoadClient>]) {
        if now.duration_since(self.last) >= self.width {
            self.end_slice(now, clients);
        }
    }

    /// Ends the slice.
    pub fn end_slice(&mut self, now: Instant, clients: &[Arc<LoadClient>]) {
        let mut window = histogram();
        let mut counts = [0; 3];
        for client in clients {
            let mut stats = client.stats();
            // Only histograms of fixed size can refuse each other.
            let _ = window.add(&stats.claims);
            stats.claims.reset();
            counts[0] += stats.claims_ok;
            counts[1] += stats.claims_refused;
            counts[2] += stats.errors;
        }
        let _ = self.total.add(&window);
        let [claims_ok, claims_refused, errors] = std::array::from_fn(|i| counts[i] - self.before[i]);
        self.slices.push(TimelineSlice {
            t_s: (now - self.start).as_secs_f64(),
            length_s: (now - self.last).as_secs_f64(),
            claims_ok,
            claims_refused,
            errors,
            latency_us: LatencySummary::from_histogram(&window),
        });
        if self.keeps_windows {
            self.windows.push(window);
        }
        self.before = counts;
        self.last = now;
    }

    /// The longest span of time without a granted claim between two slices with some, in seconds, from slice to slice.
    #[must_use]
    pub fn longest_stall_s(slices: &[TimelineSlice]) -> f64 {
        let (mut longest, mut present) = (0.0_f64, 0.0);
        for slice in slices {
            if slice.claims_ok == 0 {
                present += slice.length_s;
            } else {
                longest = longest.max(present);
                present = 0.0;
            }
        }
        longest
    }
}
