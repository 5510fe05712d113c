//! Statistics that clients collect: one [`ClientStats`] per client, merged at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use hotpool::model::{ClaimId, Fence};

/// Largest number of distinct error messages counted separately; the rest is counted as `others`.
const MESSAGES_MAX: usize = 16;
/// Largest number of doubtful claims per client. Claims beyond it are not resolved, and may count as leaked.
const DOUBTS_MAX: usize = 10_000;

/// Creates an empty histogram of nanoseconds with three significant digits; it grows as needed.
///
/// # Panics
/// Never panics: three digits are within the crate's range.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are within 0..=5")
}

/// Records a duration `count` times in a histogram.
pub fn record(histogram: &mut Histogram<u64>, duration: Duration, count: u64) {
    let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    // Only a histogram of fixed size can reject a value.
    let _ = histogram.record_n(ns, count);
}

/// Histogram in the form that processes exchange: recorded values with their counts. Recording them again reproduces
/// the histogram.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedHistogram(Vec<(u64, u64)>);

impl RecordedHistogram {
    /// Extracts the recorded values of a histogram.
    #[must_use]
    pub fn from_histogram(histogram: &Histogram<u64>) -> Self {
        Self(histogram.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect())
    }

    /// Adds the recorded values to a histogram created by [`histogram`].
    pub fn add_to(&self, histogram: &mut Histogram<u64>) {
        for (value, count) in &self.0 {
            // Only a histogram of fixed size can reject a value.
            let _ = histogram.record_n(*value, *count);
        }
    }
}

/// Failure of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetError {
    /// No worker has capacity, which is a normal outcome.
    NoCapacity,
    /// Rejection for another reason, or no reply at all.
    Failed {
        /// Message of the service or of the client.
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

/// Claim that may still be held, with its fence if known.
pub type UnresolvedClaim = (ClaimId, Option<Fence>);

/// Counts and latencies of a client.
#[derive(Debug, Clone)]
pub struct ClientStats {
    /// Number of claims granted.
    pub claims_ok: u64,
    /// Number of claims rejected for lack of capacity.
    pub claims_refused: u64,
    /// Number of claims and releases that failed otherwise.
    pub errors: u64,
    /// Number of releases that succeeded.
    pub releases_ok: u64,
    /// Number of grants on a worker whose previous claim had the same function.
    pub warm: u64,
    /// Nanoseconds from the intended send time of a request to its grants, one value per granted claim; reset by the
    /// [timeline](super::timeline) at the end of each slice.
    pub claims: Histogram<u64>,
    /// Nanoseconds from sending a release to its success, one value per release.
    pub releases: Histogram<u64>,
    /// Number of errors by message.
    pub messages: BTreeMap<String, u64>,
    /// Claims to resolve before the final check.
    pub doubts: Vec<UnresolvedClaim>,
    /// Time of the last reply.
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
        let listed = self.messages.len() < MESSAGES_MAX || self.messages.contains_key(message);
        *self.messages.entry(if listed { message } else { "others" }.to_owned()).or_default() += count;
    }

    /// Records a claim that may still be held.
    pub fn record_doubt(&mut self, doubt: UnresolvedClaim) {
        if self.doubts.len() < DOUBTS_MAX {
            self.doubts.push(doubt);
        }
    }

    /// Adds the statistics of another client.
    pub fn merge(&mut self, other: Self) {
        self.claims_ok += other.claims_ok;
        self.claims_refused += other.claims_refused;
        self.releases_ok += other.releases_ok;
        self.warm += other.warm;
        // Only histograms of fixed size can reject each other.
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
    fn histograms_survive_the_exchange_between_processes() {
        let mut sent = histogram();
        for n in 1..5_000_u64 {
            record(&mut sent, Duration::from_nanos(n * n * 7), n % 3 + 1);
        }
        let text = serde_json::to_string(&RecordedHistogram::from_histogram(&sent)).unwrap();
        let mut merged = histogram();
        serde_json::from_str::<RecordedHistogram>(&text).unwrap().add_to(&mut merged);
        assert_eq!((merged.len(), merged.max()), (sent.len(), sent.max()));
        for quantile in [0.1, 0.5, 0.9, 0.99, 0.999] {
            assert_eq!(merged.value_at_quantile(quantile), sent.value_at_quantile(quantile));
        }
    }

    #[test]
    fn merging_adds_counts_and_limits_distinct_messages() {
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
