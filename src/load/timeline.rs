//! Timeline of a load: counts and percentiles for each slice of the run.
//!
//! Clients record into one histogram each. The driver moves their contents into the slice that ends, so recording
//! costs the same throughout, and a run of any length keeps one histogram per client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::load_client::LoadClient;
use super::report::LatencySummary;
use super::stats::histogram;

/// Approximate number of slices in a run.
const SLICES: u32 = 50;
/// Shortest slice, so that collecting stays cheap relative to the load.
const SLICE_MIN: Duration = Duration::from_millis(100);
/// Addition to the shortest slice for each client.
const SLICE_MIN_CLIENT: Duration = Duration::from_millis(2);

/// Counts and latencies of one slice.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TimelineSlice {
    /// End of the slice, in seconds from the start of the run.
    pub t_s: f64,
    /// Length of the slice, in seconds.
    pub length_s: f64,
    /// Number of claims granted.
    pub claims_ok: u64,
    /// Number of claims rejected for lack of capacity.
    pub claims_refused: u64,
    /// Number of claims and releases that failed otherwise.
    pub errors: u64,
    /// Latency of the granted claims, in microseconds.
    pub latency_us: LatencySummary,
}

/// Slices of a run so far, with their total.
#[derive(Debug)]
pub struct LoadTimeline {
    start: Instant,
    last: Instant,
    width: Duration,
    keeps_windows: bool,
    previous: [u64; 3],
    /// Latencies of all granted claims so far, in nanoseconds.
    pub total: Histogram<u64>,
    /// Completed slices in order.
    pub slices: Vec<TimelineSlice>,
    /// Latency histogram of each slice, if they are kept.
    pub windows: Vec<Histogram<u64>>,
}

impl LoadTimeline {
    /// Creates the timeline of a run that starts at `start`.
    #[must_use]
    pub fn new(start: Instant, duration: Duration, clients: usize) -> Self {
        let min_width = SLICE_MIN_CLIENT * u32::try_from(clients).unwrap_or(u32::MAX);
        let width = (duration / SLICES).max(SLICE_MIN).max(min_width);
        Self {
            start,
            last: start,
            width,
            keeps_windows: false,
            previous: [0; 3],
            total: histogram(),
            slices: Vec::new(),
            windows: Vec::new(),
        }
    }

    /// Keeps the latency histogram of each slice, to merge them with those of other processes.
    pub const fn keep_windows(&mut self) {
        self.keeps_windows = true;
    }

    /// Ends the current slice if it is long enough.
    pub fn tick(&mut self, now: Instant, clients: &[Arc<LoadClient>]) {
        if now.duration_since(self.last) >= self.width {
            self.end_slice(now, clients);
        }
    }

    /// Ends the current slice and starts the next one.
    pub fn end_slice(&mut self, now: Instant, clients: &[Arc<LoadClient>]) {
        let mut window = histogram();
        let mut counts = [0; 3];
        for client in clients {
            let mut stats = client.stats();
            // Only histograms of fixed size can reject each other.
            let _ = window.add(&stats.claims);
            stats.claims.reset();
            counts[0] += stats.claims_ok;
            counts[1] += stats.claims_refused;
            counts[2] += stats.errors;
        }
        let _ = self.total.add(&window);
        let [claims_ok, claims_refused, errors] = std::array::from_fn(|i| counts[i] - self.previous[i]);
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
        self.previous = counts;
        self.last = now;
    }

    /// Longest time without a granted claim between two slices that have some, in seconds, at the resolution of slices.
    #[must_use]
    pub fn longest_stall_s(slices: &[TimelineSlice]) -> f64 {
        let (mut longest, mut stall) = (0.0_f64, 0.0);
        for slice in slices {
            if slice.claims_ok == 0 {
                stall += slice.length_s;
            } else {
                longest = longest.max(stall);
                stall = 0.0;
            }
        }
        longest
    }
}
