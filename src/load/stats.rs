//! What the clients count. One [`ClientStats`] a client, merged at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use hotpool::model::{ClaimId, Fence};

/// Different error messages that are kept, with their counts; the rest is summed up under one word.
const MESSAGES_MAX: usize = 16;
/// Claims in doubt that one client remembers. Past it they are not settled, and may show as leaked.
const DOUBTS_MAX: usize = 10_000;

/// An empty histogram of nanoseconds, three significant digits; it grows as needed.
///
/// # Panics
/// Never: three digits are within what the crate takes.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are within 0..=5")
}

/// Records `count` times the same duration.
pub fn record(histogram: &mut Histogram<u64>, duration: Duration, count: u64) {
    let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    // Only a histogram of fixed size can refuse a value.
    let _ = histogram.record_n(ns, count);
}

/// A histogram on its way between processes: values and how often each occurred. Recorded anew they give the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedHistogram(Vec<(u64, u64)>);

impl RecordedHistogram {
    /// What a histogram has.
    #[must_use]
    pub fn from_histogram(histogram: &Histogram<u64>) -> Self {
        Self(histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }

    /// Adds it to another histogram of [`histogram`].
    pub fn add_to(&self, histogram: &mut Histogram<u64>) {
        for (value, count) in &self.0 {
            // Only a histogram of fixed size can refuse a value.
            let _ = histogram.record_n(*value, *count);
        }
    }
}

/// A request that did not end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetError {
    /// No worker is free: a normal outcome.
    NoCapacity,
    /// The service said no for another reason, or said nothing.
    Failed {
        /// What it said.
        message: String,
        /// True if the request may have taken effect all the same.
        in_doubt: bool,
    },
}

impl std::fmt::Display for TargetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoCapacity => f.write_str("no worker is free"),
            Self::Failed { message, .. } => f.write_str(message),
        }
    }
}

/// A claim that may still be held although nobody here holds it: its fence, if it is known.
pub type UnresolvedClaim = (ClaimId, Option<Fence>);

/// Counts and latencies.
#[derive(Debug, Clone)]
pub struct ClientStats {
    /// Claims granted.
    pub claims_ok: u64,
    /// Claims refused for want of a free worker.
    pub claims_refused: u64,
    /// Claims and releases that failed otherwise.
    pub errors: u64,
    /// Releases answered with success.
    pub releases_ok: u64,
    /// Grants that met a worker whose last claim was of the same function.
    pub warm: u64,
    /// Time from the intended sending of a request to its grants, in nanoseconds, one entry a granted claim; since the
    /// [timeline](super::timeline) last looked.
    pub claims: Histogram<u64>,
    /// Time from sending a release to its success, in nanoseconds, one entry a release.
    pub releases: Histogram<u64>,
    /// Errors by message.
    pub messages: BTreeMap<String, u64>,
    /// To be settled before the last check.
    pub doubts: Vec<UnresolvedClaim>,
    /// When the last answer came.
    pub last: Option<Instant>,
}

impl Default for ClientStats {
    fn default() -> Self {
        Self {
            claims_ok: 0,
            claims_refused: 0,
            errors: 0,
            releases_ok: 0,
            warm: 0,
            claims: histogram(),
            releases: histogram(),
            messages: BTreeMap::new(),
            doubts: Vec::new(),
            last: None,
        }
    }
}

impl ClientStats {
    /// Counts `count` errors under one message.
    pub fn record_error(&mut self, message: &str, count: u64) {
        self.errors += count;
        let known = self.messages.len() < MESSAGES_MAX || self.messages.contains_key(message);
        *self.messages.entry(if known { message } else { "others" }.to_owned()).or_default() += count;
    }

    /// Remembers a claim that may still be held.
    pub fn record_doubt(&mut self, doubt: UnresolvedClaim) {
        if self.doubts.len() < DOUBTS_MAX {
            self.doubts.push(doubt);
        }
    }

    /// Adds what another client counted.
    pub fn merge(&mut self, other: Self) {
        self.claims_ok += other.claims_ok;
        self.claims_refused += other.claims_refused;
        self.releases_ok += other.releases_ok;
        self.warm += other.warm;
        // Only histograms of fixed size can refuse each other.
        let _ = self.claims.add(&other.claims);
        let _ = self.releases.add(&other.releases);
        for (message, count) in other.messages {
            self.record_error(&message, count);
        }
        self.doubts.extend(other.doubts);
        self.last = self.last.max(other.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_between_processes_arrives_as_it_was() {
        let mut sent = histogram();
        for n in 1..5_000_u64 {
            record(&mut sent, Duration::from_nanos(n * n * 7), n % 3 + 1);
        }
        let text = serde_json::to_string(&RecordedHistogram::from_histogram(&sent)).unwrap();
        let mut got = histogram();
        serde_json::from_str::<RecordedHistogram>(&text).unwrap().add_to(&mut got);
        assert_eq!((got.len(), got.max()), (sent.len(), sent.max()));
        for quantile in [0.1, 0.5, 0.9, 0.99, 0.999] {
            assert_eq!(got.value_at_quantile(quantile), sent.value_at_quantile(quantile));
        }
    }

    #[test]
    fn merging_adds_everything_up_and_bounds_the_messages() {
        let mut all = ClientStats::default();
        for client in 0..4 {
            let mut stats =
                ClientStats { claims_ok: 2, claims_refused: 3, releases_ok: 1, warm: 1, ..ClientStats::default() };
            record(&mut stats.claims, Duration::from_micros(10), 2);
            record(&mut stats.releases, Duration::from_secs(10_000), 1);
            for n in 0..10 {
                stats.record_error(&format!("message {client} {n}"), 2);
            }
            all.merge(stats);
        }
        assert_eq!((all.claims_ok, all.claims_refused, all.releases_ok, all.warm, all.errors), (8, 12, 4, 4, 80));
        assert_eq!((all.claims.len(), all.releases.len()), (8, 4));
        assert_eq!(all.messages.len(), MESSAGES_MAX + 1);
        assert_eq!(all.messages.values().sum::<u64>(), 80);
    }
}
