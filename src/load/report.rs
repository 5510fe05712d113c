//! What a run found: as JSON for programs, as a table for people, as an exit code for scripts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::baseline::RoundTripCounts;
use super::claim_input::PoolOccupancy;
use super::grant_checker::GrantViolations;
use super::stats::ClientStats;
use super::timeline::TimelineSlice;

/// Exit code of a run that showed the service to be wrong.
pub const EXIT_VIOLATION: u8 = 2;
/// Exit code of a wrong command line.
pub const EXIT_USAGE: u8 = 64;

/// Percentiles in microseconds, from a histogram of three significant digits; all 0 if there is nothing in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Half lie at or below.
    pub p50: f64,
    /// Nine in ten.
    pub p90: f64,
    /// 99 in 100.
    pub p99: f64,
    /// 999 in 1,000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl LatencySummary {
    /// Of a histogram in nanoseconds.
    #[must_use]
    pub fn from_histogram(histogram: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1_000.0;
        let at = |quantile| us(histogram.value_at_quantile(quantile));
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: us(histogram.max()) }
    }
}

/// Where the run took place.
#[derive(Debug, Clone, Serialize)]
pub struct MachineSpec {
    /// Cores that this process may use.
    pub cpus: usize,
    /// Model of the processor, if the system says.
    pub cpu: Option<String>,
    /// Version of the kernel, if the system says.
    pub kernel: Option<String>,
    /// Architecture.
    pub arch: &'static str,
}

impl MachineSpec {
    /// This one.
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

/// The report. Latencies count from the intended time of sending: the schedule's in an open loop, the actual one in
/// a closed loop. Only what succeeded has a latency.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// `bench`, `replay` or `run`.
    pub command: &'static str,
    /// Name of the run: its pool was `load/{run}`.
    pub run: String,
    /// Version of this harness.
    pub version: &'static str,
    /// The command line with its defaults.
    pub parameters: serde_json::Value,
    /// Where it ran.
    pub machine: MachineSpec,
    /// From the first request to the last answer, in seconds.
    pub duration_s: f64,
    /// Claims granted.
    pub claims_ok: u64,
    /// Claims refused for want of a free worker.
    pub claims_refused: u64,
    /// Claims and releases that failed otherwise, or were due while too many were under way.
    pub errors: u64,
    /// Errors by message: at most 17 of them.
    pub error_messages: BTreeMap<String, u64>,
    /// Claims granted per second.
    pub throughput_per_s: f64,
    /// Of granted claims.
    pub latency_us: LatencySummary,
    /// Releases that succeeded.
    pub releases_ok: u64,
    /// Of successful releases.
    pub release_latency_us: LatencySummary,
    /// Open loop: how late this harness sent its requests. Part of `latency_us`.
    pub pacing_us: Option<LatencySummary>,
    /// Share of grants that met a worker whose last claim was of the same function; none if there are no functions.
    pub warm_ratio: Option<f64>,
    /// What was wrong with grants.
    #[serde(flatten)]
    pub faults: GrantViolations,
    /// Workers that were not idle, or not there, after everything was released; none if it could not be asked.
    pub leaked: Option<u64>,
    /// Claims in doubt at the end (their request or release got no clear answer) that were found and ended.
    pub doubts_settled: u64,
    /// Round trips that a granted claim took, those of refused ones included; only of targets that count them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trips_per_claim: Option<f64>,
    /// Round trips that a release took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trips_per_release: Option<f64>,
    /// Attempts of claims and releases that came to nothing because another client was faster, or held the lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u64>,
    /// Changes that each shard of the pool has decided, workers' registrations among them; empty where that is not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<u64>,
    /// The longest time without a granted claim, in seconds, slice by slice; only where a server was made to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_stall_s: Option<f64>,
    /// How it went over time.
    pub timeline: Vec<TimelineSlice>,
    /// Ended early by a signal.
    pub interrupted: bool,
    /// What kept the run from being whole.
    pub failures: Vec<String>,
}

impl LoadReport {
    /// A report of a run that has counted nothing yet.
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
            shards: Vec::new(),
            longest_stall_s: None,
            timeline: Vec::new(),
            interrupted: false,
            failures: Vec::new(),
        }
    }

    /// Takes over what the clients counted in `elapsed`. `functions`: their claims named functions.
    pub fn record_stats(&mut self, stats: &ClientStats, elapsed: Duration, functions: bool) {
        let ratio = |part: u64, whole: f64| if whole > 0.0 { part as f64 / whole } else { 0.0 };
        self.duration_s = elapsed.as_secs_f64();
        self.claims_ok = stats.claims_ok;
        self.claims_refused = stats.claims_refused;
        self.errors = stats.errors;
        self.error_messages.clone_from(&stats.messages);
        self.throughput_per_s = ratio(stats.claims_ok, self.duration_s);
        self.latency_us = LatencySummary::from_histogram(&stats.claims);
        self.releases_ok = stats.releases_ok;
        self.release_latency_us = LatencySummary::from_histogram(&stats.releases);
        self.warm_ratio = functions.then(|| ratio(stats.warm, stats.claims_ok as f64));
    }

    /// Takes over what the target counted.
    pub fn record_round_trips(&mut self, trips: RoundTripCounts) {
        let per = |trips: u64, each: u64| (each > 0).then(|| trips as f64 / each as f64);
        self.round_trips_per_claim = per(trips.claims, self.claims_ok);
        self.round_trips_per_release = per(trips.releases, self.releases_ok);
        self.retries = Some(trips.retries);
    }

    /// Whether the service was shown to be wrong.
    #[must_use]
    pub fn has_violations(&self) -> bool {
        self.faults != GrantViolations::default() || self.leaked.is_some_and(|leaked| leaked > 0)
    }

    /// [`EXIT_VIOLATION`], else 1 if the run is not whole or granted nothing, else 0.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.has_violations() {
            EXIT_VIOLATION
        } else {
            u8::from(self.interrupted || self.claims_ok == 0 || !self.failures.is_empty())
        }
    }

    /// [`Self::exit_code`] as the process returns it.
    #[must_use]
    pub fn exit(&self) -> ExitCode {
        ExitCode::from(self.exit_code())
    }

    /// The report for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut counts = Table::new();
        counts.load_preset(presets::NOTHING);
        let faults = &self.faults;
        let checked = if self.has_violations() {
            "VIOLATED"
        } else if self.leaked.is_none() {
            "not finished"
        } else {
            "ok"
        };
        let text = |known: Option<String>| known.unwrap_or_else(|| "unknown".into());
        counts.add_row(["duration", &format!("{:.3} s", self.duration_s)]);
        counts.add_row(["claims ok / refused", &format!("{} / {}", self.claims_ok, self.claims_refused)]);
        counts.add_row(["errors", &self.errors.to_string()]);
        counts.add_row(["throughput", &format!("{:.0} claims/s", self.throughput_per_s)]);
        if let Some(warm) = self.warm_ratio {
            counts.add_row(["warm", &format!("{:.2} %", warm * 100.0)]);
        }
        if let (Some(claim), Some(release)) = (self.round_trips_per_claim, self.round_trips_per_release) {
            counts.add_row(["round trips a claim / release", &format!("{claim:.2} / {release:.2}")]);
            counts.add_row(["attempts in vain", &self.retries.unwrap_or(0).to_string()]);
        }
        counts.add_row(["check", checked]);
        counts.add_row(["  double claims", &faults.double_claims.to_string()]);
        counts.add_row([
            "  old fences / unknown workers",
            &format!("{} / {}", faults.old_fences, faults.unknown_workers),
        ]);
        counts.add_row(["  leaked", &text(self.leaked.map(|leaked| leaked.to_string()))]);

        let mut latencies = Table::new();
        latencies.load_preset(presets::NOTHING).set_header(["us", "p50", "p90", "p99", "p99.9", "max"]);
        let rows = [
            ("claim", Some(self.latency_us)),
            ("release", Some(self.release_latency_us)),
            ("sent late", self.pacing_us),
        ];
        for (name, latency) in rows.into_iter().filter_map(|(name, latency)| Some((name, latency?))) {
            let LatencySummary { p50, p90, p99, p999, max } = latency;
            let figures = [p50, p90, p99, p999, max].map(|us| format!("{us:.1}"));
            latencies.add_row(std::iter::once(name.to_owned()).chain(figures));
        }
        for column in latencies.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut out = format!("{} of load/{}\n{counts}\n\n{latencies}\n", self.command, self.run);
        for (message, count) in &self.error_messages {
            let _ = write!(out, "\nerror x {count}: {message}"); // a string takes everything
        }
        for failure in &self.failures {
            let _ = write!(out, "\nfailed: {failure}");
        }
        out.trim_end().to_owned()
    }
}

/// Capacity that is missing, or held, or too much, when nothing should be held: in workers.
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
        report.record_stats(&stats, Duration::from_secs(2), true);
        report.leaked = Some(0);
        report
    }

    #[test]
    fn percentiles_are_in_microseconds() {
        let LatencySummary { p50, p90, p99, p999, max } = report().latency_us;
        for (found, wanted) in [(p50, 50.0), (p90, 90.0), (p99, 99.0), (p999, 100.0), (max, 100.0)] {
            assert!((found - wanted).abs() <= wanted / 1_000.0, "{found} for {wanted}");
        }
        assert_eq!(LatencySummary::from_histogram(&crate::stats::histogram()), LatencySummary::default());
    }

    #[test]
    fn the_json_has_what_scripts_read() {
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
    fn the_exit_code_tells_who_is_wrong() {
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
    fn capacity_that_is_not_as_registered_is_leaked() {
        let counts = |total, idle, busy| PoolOccupancy { total, idle, busy };
        assert_eq!(leaked_workers(10, counts(10, 10, 0), 0), 0);
        assert_eq!(leaked_workers(10, counts(10, 8, 2), 2), 2);
        assert_eq!(leaked_workers(10, counts(9, 9, 0), 0), 1, "a worker is gone");
        assert_eq!(leaked_workers(10, counts(10, 11, 0), 0), 1, "a worker is idle twice");
        assert_eq!(leaked_workers(10, counts(10, 10, 0), 3), 3, "claims without workers");
    }

    #[test]
    fn the_table_names_violations() {
        let mut report = report();
        assert!(report.table().contains("ok"));
        report.faults.double_claims = 3;
        report.error_messages.insert("slow down".into(), 7);
        let table = report.table();
        assert!(table.contains("VIOLATED") && table.contains("error x 7: slow down"), "{table}");
    }
}
