//! Several generator processes, for targets that one process cannot saturate. The parent creates the pool, starts the
//! generators with its own command line and a generator id each, and merges their reports. Scheduled requests go to
//! the generators round robin.
//!
//! Each process checks its own grants; leaks are checked once, over all of them.

use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::baseline::RoundTripCounts;
use super::grant_checker::GrantViolations;
use super::pacing::StopSignal;
use super::report::LatencySummary;
use super::run::{ArrivalModel, LoadResult};
use super::stats::{ClientStats, RecordedHistogram, histogram};
use super::timeline::{LoadTimeline, TimelineSlice};

/// Identity of one generator process within a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratorId {
    /// Name of the run, which is also that of its pool.
    pub run: String,
    /// Index of the process, from 0.
    pub number: usize,
}

impl FromStr for GeneratorId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (run, number) = text.split_once('/').ok_or("must be RUN/NUMBER")?;
        let number = number.parse().map_err(|_| "must be RUN/NUMBER")?;
        Ok(Self { run: run.to_owned(), number })
    }
}

impl ArrivalModel {
    /// Share of generator `number` out of `of`.
    #[must_use]
    pub fn share_of(self, number: usize, of: usize) -> Self {
        let per_process = |whole: usize| (whole / of + usize::from(number < whole % of)).max(1);
        match self {
            Self::ClosedLoop(in_flight, operation) => Self::ClosedLoop(per_process(in_flight), operation),
            Self::OpenLoop(in_flight, operations) => {
                let own = operations.enumerate().filter(move |(n, _)| n % of == number).map(|(_, operation)| operation);
                Self::OpenLoop(per_process(in_flight), Box::new(own))
            }
        }
    }
}

/// Report that a generator process sends to its parent.
#[derive(Debug, Serialize, Deserialize)]
pub struct GeneratorReport {
    claims_ok: u64,
    claims_refused: u64,
    errors: u64,
    releases_ok: u64,
    warm: u64,
    messages: std::collections::BTreeMap<String, u64>,
    claims: RecordedHistogram,
    releases: RecordedHistogram,
    pacing: Option<RecordedHistogram>,
    elapsed_s: f64,
    faults: GrantViolations,
    slices: Vec<TimelineSlice>,
    windows: Vec<RecordedHistogram>,
    doubts_settled: u64,
    functions: bool,
    trips: Option<RoundTripCounts>,
    drained: bool,
    failures: Vec<String>,
}

impl GeneratorReport {
    /// Creates the report of this process.
    #[must_use]
    pub fn new(result: &LoadResult, doubts_settled: u64) -> Self {
        let LoadResult {
            stats,
            timeline,
            pacing,
            elapsed,
            faults,
            saw_functions: functions,
            trips,
            failures,
            drained,
            ..
        } = result;
        Self {
            claims_ok: stats.claims_ok,
            claims_refused: stats.claims_refused,
            errors: stats.errors,
            releases_ok: stats.releases_ok,
            warm: stats.warm,
            messages: stats.messages.clone(),
            claims: RecordedHistogram::from_histogram(&stats.claims),
            releases: RecordedHistogram::from_histogram(&stats.releases),
            pacing: pacing.as_ref().map(RecordedHistogram::from_histogram),
            elapsed_s: elapsed.as_secs_f64(),
            faults: *faults,
            slices: timeline.slices.clone(),
            windows: timeline.windows.iter().map(RecordedHistogram::from_histogram).collect(),
            doubts_settled,
            functions: *functions,
            trips: *trips,
            drained: *drained,
            failures: failures.clone(),
        }
    }
}

/// Merges the reports of all generators. Also returns how many doubtful claims they resolved.
#[must_use]
pub fn merge_reports(reports: Vec<GeneratorReport>, mut timeline: LoadTimeline) -> (LoadResult, u64) {
    let mut stats = ClientStats::default();
    let mut pacing: Option<Histogram<u64>> = None;
    let (mut faults, mut elapsed_s, mut functions, mut doubts_settled) =
        (GrantViolations::default(), 0.0_f64, false, 0);
    let (mut failures, mut trips, mut drained) = (Vec::new(), None::<RoundTripCounts>, true);
    let longest = reports.iter().map(|report| report.slices.len()).max().unwrap_or(0);
    for n in 0..longest {
        let mut window = histogram();
        let mut total: Option<TimelineSlice> = None;
        for report in &reports {
            let Some((slice, recorded)) = report.slices.get(n).zip(report.windows.get(n)) else { continue };
            recorded.add_to(&mut window);
            match &mut total {
                Some(total) => {
                    total.claims_ok += slice.claims_ok;
                    total.claims_refused += slice.claims_refused;
                    total.errors += slice.errors;
                }
                none => *none = Some(slice.clone()),
            }
        }
        timeline
            .slices
            .extend(total.map(|total| TimelineSlice { latency_us: LatencySummary::from_histogram(&window), ..total }));
    }
    for report in reports {
        stats.claims_ok += report.claims_ok;
        stats.claims_refused += report.claims_refused;
        stats.releases_ok += report.releases_ok;
        stats.warm += report.warm;
        for (message, count) in &report.messages {
            stats.record_error(message, *count);
        }
        report.claims.add_to(&mut stats.claims);
        report.releases.add_to(&mut stats.releases);
        if let Some(lateness) = &report.pacing {
            lateness.add_to(pacing.get_or_insert_with(histogram));
        }
        faults.double_claims += report.faults.double_claims;
        faults.old_fences += report.faults.old_fences;
        faults.unknown_workers += report.faults.unknown_workers;
        elapsed_s = elapsed_s.max(report.elapsed_s);
        functions |= report.functions;
        doubts_settled += report.doubts_settled;
        if let Some(counts) = report.trips {
            let total = trips.get_or_insert_default();
            total.claims += counts.claims;
            total.releases += counts.releases;
            total.retries += counts.retries;
        }
        drained &= report.drained;
        failures.extend(report.failures);
    }
    let elapsed = Duration::from_secs_f64(elapsed_s);
    let result = LoadResult {
        stats,
        timeline,
        pacing,
        elapsed,
        faults,
        saw_functions: functions,
        trips,
        failures,
        drained,
        resolver: None,
    };
    (result, doubts_settled)
}

/// Starts the generators with the present command line, and collects their reports.
///
/// # Errors
/// Fails if a process cannot be started, or exits without a report.
pub async fn run_generators(run: &str, processes: usize, stop: &Arc<StopSignal>) -> Result<Vec<GeneratorReport>> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let mut children = Vec::new();
    for number in 0..processes {
        let mut command = std::process::Command::new(&program);
        command.args(std::env::args_os().skip(1)).args(["--member", &format!("{run}/{number}")]);
        // A process group of its own: terminal signals reach only the parent, which forwards them.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        children.push(command.spawn().with_context(|| format!("cannot start {}", program.display()))?);
    }
    let pids: Vec<u32> = children.iter().map(std::process::Child::id).collect();
    let outputs: Vec<_> =
        children.into_iter().map(|child| tokio::task::spawn_blocking(move || child.wait_with_output())).collect();
    let stop = Arc::clone(stop);
    let signalling = tokio::spawn(async move {
        stop.wait().await;
        for pid in pids {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                // The process may have exited already.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
    });
    let mut reports = Vec::new();
    for child in outputs {
        let output = child.await.context("cannot wait for a generator process")??;
        ensure!(output.status.success(), "a generator process failed: {}", output.status);
        reports.push(serde_json::from_slice(&output.stdout).context("a generator process sent an invalid report")?);
    }
    signalling.abort();
    Ok(reports)
}
