//! Several generator processes: where one cannot send as much as the target takes. The first makes the pool, starts the others
//! with its own command line and a place among them, and adds up what they found. What is due goes to them in turn.
//!
//! Each process checks the grants that it was given itself; that nothing is held or missing at the end is checked over all.

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

/// A place among the processes of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratorId {
    /// Name of the run.
    pub run: String,
    /// Which of them, from 0.
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
    /// The part of one of `of` processes.
    #[must_use]
    pub fn share_of(self, number: usize, of: usize) -> Self {
        let share = |whole: usize| (whole / of + usize::from(number < whole % of)).max(1);
        match self {
            Self::ClosedLoop(in_flight, call) => Self::ClosedLoop(share(in_flight), call),
            Self::OpenLoop(in_flight, calls) => {
                let mine = calls.enumerate().filter(move |(n, _)| n % of == number).map(|(_, call)| call);
                Self::OpenLoop(share(in_flight), Box::new(mine))
            }
        }
    }
}

/// What one process tells the first.
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
    /// Of what this process found.
    #[must_use]
    pub fn new(loaded: &LoadResult, doubts_settled: u64) -> Self {
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
        } = loaded;
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

/// Adds up what the processes found; also how many doubts they settled.
#[must_use]
pub fn merge_reports(parts: Vec<GeneratorReport>, mut timeline: LoadTimeline) -> (LoadResult, u64) {
    let mut stats = ClientStats::default();
    let mut pacing: Option<Histogram<u64>> = None;
    let (mut faults, mut elapsed_s, mut functions, mut doubts_settled) =
        (GrantViolations::default(), 0.0_f64, false, 0);
    let (mut failures, mut trips, mut drained) = (Vec::new(), None::<RoundTripCounts>, true);
    let longest = parts.iter().map(|part| part.slices.len()).max().unwrap_or(0);
    for n in 0..longest {
        let mut window = histogram();
        let mut sum: Option<TimelineSlice> = None;
        for part in &parts {
            let Some((slice, recorded)) = part.slices.get(n).zip(part.windows.get(n)) else { continue };
            recorded.add_to(&mut window);
            match &mut sum {
                Some(sum) => {
                    sum.claims_ok += slice.claims_ok;
                    sum.claims_refused += slice.claims_refused;
                    sum.errors += slice.errors;
                }
                none => *none = Some(slice.clone()),
            }
        }
        timeline
            .slices
            .extend(sum.map(|sum| TimelineSlice { latency_us: LatencySummary::from_histogram(&window), ..sum }));
    }
    for part in parts {
        stats.claims_ok += part.claims_ok;
        stats.claims_refused += part.claims_refused;
        stats.releases_ok += part.releases_ok;
        stats.warm += part.warm;
        for (message, count) in &part.messages {
            stats.record_error(message, *count);
        }
        part.claims.add_to(&mut stats.claims);
        part.releases.add_to(&mut stats.releases);
        if let Some(late) = &part.pacing {
            late.add_to(pacing.get_or_insert_with(histogram));
        }
        faults.double_claims += part.faults.double_claims;
        faults.old_fences += part.faults.old_fences;
        faults.unknown_workers += part.faults.unknown_workers;
        elapsed_s = elapsed_s.max(part.elapsed_s);
        functions |= part.functions;
        doubts_settled += part.doubts_settled;
        if let Some(more) = part.trips {
            let sum = trips.get_or_insert_default();
            sum.claims += more.claims;
            sum.releases += more.releases;
            sum.retries += more.retries;
        }
        drained &= part.drained;
        failures.extend(part.failures);
    }
    let elapsed = Duration::from_secs_f64(elapsed_s);
    let loaded = LoadResult {
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
    (loaded, doubts_settled)
}

/// Starts the processes with the present command line and waits for what they found.
///
/// # Errors
/// One of them could not be started, or ended without telling what it found.
pub async fn run_generators(run: &str, processes: usize, stop: &Arc<StopSignal>) -> Result<Vec<GeneratorReport>> {
    let program = std::env::current_exe().context("where is this program?")?;
    let mut children = Vec::new();
    for number in 0..processes {
        let mut command = std::process::Command::new(&program);
        command.args(std::env::args_os().skip(1)).args(["--member", &format!("{run}/{number}")]);
        // In a group of its own: what is typed at a terminal comes to this process alone, which passes it on.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        children.push(command.spawn().with_context(|| format!("cannot start {}", program.display()))?);
    }
    let pids: Vec<u32> = children.iter().map(std::process::Child::id).collect();
    let waiting: Vec<_> =
        children.into_iter().map(|child| tokio::task::spawn_blocking(move || child.wait_with_output())).collect();
    let stop = Arc::clone(stop);
    let asking = tokio::spawn(async move {
        stop.wait().await;
        for pid in pids {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                // It may have ended.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
    });
    let mut parts = Vec::new();
    for child in waiting {
        let output = child.await.context("a process was lost")??;
        ensure!(output.status.success(), "a generator process failed: {}", output.status);
        parts.push(serde_json::from_slice(&output.stdout).context("what a generator process found is unreadable")?);
    }
    asking.abort();
    Ok(parts)
}
