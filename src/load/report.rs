//! Report of a run: JSON for programs, an exit code for scripts. [`super::terminal`] shows it to people.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::baseline::RoundTripCounts;
use super::claim_input::PoolOccupancy;
use super::grant_checker::GrantViolations;
use super::processor::ProcessorTimes;
use super::stats::ClientStats;
use super::timeline::TimelineSlice;

/// Exit code of a run that found a violation of the service.
pub const EXIT_VIOLATION: u8 = 2;
/// Exit code of an invalid command line.
pub const EXIT_USAGE: u8 = 64;

/// Percentiles in microseconds, with three significant digits; all 0 if nothing was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Median of the latencies, in microseconds.
    pub p50: f64,
    /// 90th percentile in microseconds.
    pub p90: f64,
    /// 99th percentile in microseconds.
    pub p99: f64,
    /// 99.9th percentile in microseconds.
    pub p999: f64,
    /// Maximum of the latencies, in microseconds.
    pub max: f64,
}

impl LatencySummary {
    /// Summarizes a histogram of nanoseconds.
    #[must_use]
    pub fn from_histogram(histogram: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1_000.0;
        let at = |quantile| us(histogram.value_at_quantile(quantile));
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: us(histogram.max()) }
    }
}

/// Quantiles of a latency curve.
const CURVE_QUANTILES: [f64; 12] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999];

/// Microseconds at each quantile that has at least one value above it.
fn latency_curve_us(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let is_resolved = |quantile: &f64| histogram.len() as f64 * (1.0 - quantile) >= 1.0;
    let at = |quantile: f64| (quantile, histogram.value_at_quantile(quantile) as f64 / 1_000.0);
    CURVE_QUANTILES.into_iter().filter(is_resolved).map(at).collect()
}

/// Machine that ran the harness.
#[derive(Debug, Clone, Serialize)]
pub struct MachineSpec {
    /// Number of cores available to this process.
    pub cpus: usize,
    /// Model name of the processor, if the system reports it.
    pub cpu: Option<String>,
    /// Version of the kernel, if the system reports it.
    pub kernel: Option<String>,
    /// Instruction set architecture of the build.
    pub arch: &'static str,
}

impl MachineSpec {
    /// Describes the machine that this process runs on.
    #[must_use]
    pub fn detect() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        Self {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: model.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim().to_owned()),
            kernel: kernel.map(|release| release.trim().to_owned()),
            arch: std::env::consts::ARCH,
        }
    }
}

/// Report of a run. Latencies count from the intended send time: that of the schedule in an open loop, the actual one
/// in a closed loop. Only successful requests have a latency.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// Name of the subcommand that produced the report.
    pub command: &'static str,
    /// Name of the run; its pool was `load/{run}`.
    pub run: String,
    /// Version of the harness.
    pub version: &'static str,
    /// Command-line options or scenario, defaults included.
    pub parameters: serde_json::Value,
    /// Machine that ran the harness.
    pub machine: MachineSpec,
    /// Seconds from the first request to the last reply.
    pub duration_s: f64,
    /// Number of claims granted.
    pub claims_ok: u64,
    /// Number of claims rejected for lack of capacity.
    pub claims_refused: u64,
    /// Number of claims and releases that failed otherwise, or exceeded the limit of outstanding requests.
    pub errors: u64,
    /// Number of errors by message, for at most 17 messages.
    pub error_messages: BTreeMap<String, u64>,
    /// Claims granted per second.
    pub throughput_per_s: f64,
    /// Latency of granted claims.
    pub latency_us: LatencySummary,
    /// Latency of granted claims at more quantiles, each with its microseconds; those that the number of claims resolves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latency_curve_us: Vec<(f64, f64)>,
    /// Number of releases that succeeded.
    pub releases_ok: u64,
    /// Latency of successful releases.
    pub release_latency_us: LatencySummary,
    /// Lateness of requests in an open loop; part of `latency_us`.
    pub pacing_us: Option<LatencySummary>,
    /// Fraction of grants on a worker whose previous claim had the same function; none without functions.
    pub warm_ratio: Option<f64>,
    /// Violations found in grants.
    #[serde(flatten)]
    pub faults: GrantViolations,
    /// Number of workers that were missing or not idle after all releases; none if the pool could not be checked.
    pub leaked: Option<u64>,
    /// Number of doubtful claims (without a clear reply to the claim or release) that were found and ended.
    pub doubts_settled: u64,
    /// Round trips per granted claim, those of rejected claims included; only for targets that count them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trips_per_claim: Option<f64>,
    /// Round trips per release; only for targets that count them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trips_per_release: Option<f64>,
    /// Number of attempts repeated because another client was faster or held the lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u64>,
    /// Processor time of the harness per granted claim with its release, in microseconds. In process it includes the scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_processor_us_per_claim: Option<f64>,
    /// Processor time of the servers per granted claim with its release, in microseconds; only if they run on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_processor_us_per_claim: Option<f64>,
    /// Number of changes that each shard has decided, worker registrations included; empty if unknown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<u64>,
    /// Longest time without a granted claim in seconds, at the resolution of slices; only for runs with an outage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_stall_s: Option<f64>,
    /// Counts and percentiles over time.
    pub timeline: Vec<TimelineSlice>,
    /// True if a signal ended the run early.
    pub interrupted: bool,
    /// Failures that make the run incomplete.
    pub failures: Vec<String>,
}

impl LoadReport {
    /// Creates a report without measurements.
    #[must_use]
    pub fn new(command: &'static str, run: &str, parameters: serde_json::Value) -> Self {
        Self {
            command,
            run: run.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            parameters,
            machine: MachineSpec::detect(),
            duration_s: 0.0,
            claims_ok: 0,
            claims_refused: 0,
            errors: 0,
            error_messages: BTreeMap::new(),
            throughput_per_s: 0.0,
            latency_us: LatencySummary::default(),
            latency_curve_us: Vec::new(),
            releases_ok: 0,
            release_latency_us: LatencySummary::default(),
            pacing_us: None,
            warm_ratio: None,
            faults: GrantViolations::default(),
            leaked: None,
            doubts_settled: 0,
            round_trips_per_claim: None,
            round_trips_per_release: None,
            retries: None,
            client_processor_us_per_claim: None,
            server_processor_us_per_claim: None,
            shards: Vec::new(),
            longest_stall_s: None,
            timeline: Vec::new(),
            interrupted: false,
            failures: Vec::new(),
        }
    }

    /// Records the clients' statistics over a time of `elapsed`.
    pub fn record_stats(&mut self, stats: &ClientStats, elapsed: Duration) {
        self.duration_s = elapsed.as_secs_f64();
        self.claims_ok = stats.claims_ok;
        self.claims_refused = stats.claims_refused;
        self.errors = stats.errors;
        self.error_messages.clone_from(&stats.messages);
        self.throughput_per_s = ratio(stats.claims_ok, self.duration_s);
        self.latency_us = LatencySummary::from_histogram(&stats.claims);
        self.latency_curve_us = latency_curve_us(&stats.claims);
        self.releases_ok = stats.releases_ok;
        self.release_latency_us = LatencySummary::from_histogram(&stats.releases);
    }

    /// Records the fraction of warm grants, for claims that name functions.
    pub fn record_warm_ratio(&mut self, stats: &ClientStats) {
        self.warm_ratio = Some(ratio(stats.warm, stats.claims_ok as f64));
    }

    /// Records the round trips that the target counted.
    pub fn record_round_trips(&mut self, trips: RoundTripCounts) {
        let per = |trips: u64, each: u64| (each > 0).then(|| trips as f64 / each as f64);
        self.round_trips_per_claim = per(trips.claims, self.claims_ok);
        self.round_trips_per_release = per(trips.releases, self.releases_ok);
        self.retries = Some(trips.retries);
    }

    /// Records what the load cost, from the processor times before and after it.
    pub fn record_processor_times(&mut self, before: ProcessorTimes, after: ProcessorTimes) {
        let per_claim = |seconds: f64| (self.claims_ok > 0).then(|| seconds * 1e6 / self.claims_ok as f64);
        self.client_processor_us_per_claim = per_claim(after.client_s - before.client_s);
        // A server that ended meanwhile has taken its time with it.
        let server_s = before.server_s.zip(after.server_s).map(|(before_s, after_s)| after_s - before_s);
        self.server_processor_us_per_claim = match server_s {
            Some(used_s) if used_s > 0.0 => per_claim(used_s),
            _ => None,
        };
    }

    /// Returns true if the run found a violation of the service.
    #[must_use]
    pub fn has_violations(&self) -> bool {
        self.faults != GrantViolations::default() || self.leaked.is_some_and(|leaked| leaked > 0)
    }

    /// Exit code: [`EXIT_VIOLATION`], otherwise 1 if the run is incomplete or without grants, otherwise 0.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.has_violations() {
            EXIT_VIOLATION
        } else {
            u8::from(self.interrupted || self.claims_ok == 0 || !self.failures.is_empty())
        }
    }

    /// Converts [`Self::exit_code`] for the process.
    #[must_use]
    pub fn exit(&self) -> ExitCode {
        ExitCode::from(self.exit_code())
    }

    /// Slices of the timeline without a short one at its end, in which only the last answers came in.
    #[must_use]
    pub fn full_slices(&self) -> &[TimelineSlice] {
        match &self.timeline[..] {
            [before @ .., previous, last] if last.length_s < previous.length_s / 2.0 => &self.timeline[..=before.len()],
            all => all,
        }
    }
}

fn ratio(part: u64, whole: f64) -> f64 {
    if whole > 0.0 { part as f64 / whole } else { 0.0 }
}

/// Number of workers that are missing, held or surplus when all should be idle.
#[must_use]
pub fn leaked_workers(registered: u32, counts: PoolOccupancy, claims: u64) -> u64 {
    let registered = u64::from(registered);
    registered.abs_diff(counts.idle).max(registered.abs_diff(counts.total)).max(counts.busy).max(claims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::record;

    fn report() -> LoadReport {
        let mut report = LoadReport::new("bench", "r1", serde_json::json!({"clients": 1}));
        let mut stats = ClientStats { claims_ok: 100, warm: 25, releases_ok: 100, ..ClientStats::default() };
        for us in 1..=100 {
            record(&mut stats.claims, Duration::from_micros(us), 1);
        }
        report.record_stats(&stats, Duration::from_secs(2));
        report.record_warm_ratio(&stats);
        report.leaked = Some(0);
        report
    }

    #[test]
    fn percentiles_are_in_microseconds() {
        let LatencySummary { p50, p90, p99, p999, max } = report().latency_us;
        for (actual, expected) in [(p50, 50.0), (p90, 90.0), (p99, 99.0), (p999, 100.0), (max, 100.0)] {
            assert!((actual - expected).abs() <= expected / 1_000.0, "{actual} for {expected}");
        }
        assert_eq!(LatencySummary::from_histogram(&crate::stats::histogram()), LatencySummary::default());
    }

    #[test]
    fn the_json_has_the_fields_that_scripts_read() {
        let json = serde_json::to_value(report()).unwrap();
        for field in ["claims_ok", "claims_refused", "errors", "double_claims", "leaked", "releases_ok"] {
            assert!(json[field].is_u64(), "{field}");
        }
        assert_eq!((&json["throughput_per_s"], &json["warm_ratio"]), (&50.0.into(), &0.25.into()));
        for field in ["p50", "p90", "p99", "p999", "max"] {
            assert!(json["latency_us"][field].is_f64(), "{field}");
        }
        assert_eq!(json["parameters"]["clients"], 1);
        assert!(json["machine"]["cpus"].as_u64() > Some(0));
    }

    #[test]
    fn exit_codes_distinguish_violations_from_incomplete_runs() {
        assert_eq!(report().exit_code(), 0);
        let with = |change: fn(&mut LoadReport)| {
            let mut report = report();
            change(&mut report);
            report.exit_code()
        };
        assert_eq!(with(|report| report.errors = 5), 0);
        assert_eq!(with(|report| report.interrupted = true), 1);
        assert_eq!(with(|report| report.claims_ok = 0), 1);
        assert_eq!(with(|report| report.failures.push("x".into())), 1);
        assert_eq!(with(|report| report.leaked = Some(1)), EXIT_VIOLATION);
        assert_eq!(with(|report| report.faults.double_claims = 1), EXIT_VIOLATION);
        assert_eq!(with(|report| report.faults.old_fences = 1), EXIT_VIOLATION);
        assert_eq!(with(|report| (report.faults.unknown_workers, report.interrupted) = (1, true)), EXIT_VIOLATION);
    }

    #[test]
    fn capacity_that_differs_from_registration_is_leaked() {
        let counts = |total, idle, busy| PoolOccupancy { total, idle, busy };
        assert_eq!(leaked_workers(10, counts(10, 10, 0), 0), 0);
        assert_eq!(leaked_workers(10, counts(10, 8, 2), 2), 2);
        assert_eq!(leaked_workers(10, counts(9, 9, 0), 0), 1, "a worker is gone");
        assert_eq!(leaked_workers(10, counts(10, 11, 0), 0), 1, "a worker is idle twice");
        assert_eq!(leaked_workers(10, counts(10, 10, 0), 3), 3, "claims without workers");
    }

    #[test]
    fn a_server_that_ended_has_no_processor_time() {
        let times = |server_s| ProcessorTimes { client_s: 1.0, server_s };
        let of = |before, after| {
            let mut report = report();
            report.record_processor_times(times(before), times(after));
            report.server_processor_us_per_claim
        };
        assert_eq!(of(Some(1.0), Some(2.0)), Some(10_000.0));
        assert_eq!([of(Some(2.0), Some(1.0)), of(Some(2.0), Some(0.0)), of(None, Some(1.0))], [None; 3]);
    }

    #[test]
    fn the_latency_curve_ends_where_values_do() {
        let curve = report().latency_curve_us;
        assert_eq!(curve.last().map(|(quantile, _)| *quantile), Some(0.99), "one of 100 claims is above it");
        assert!(curve.is_sorted_by_key(|(_, us)| *us), "{curve:?}");
    }
}
