//! Shrinking of a failure: fewer faults, features and callers, and less time, as long as the seed still fails.

use std::fmt::Write as _;

use crate::run::{Report, run_seed};
use crate::settings::Limits;
use crate::trace::KeepLines;

/// Change of the limits that leaves less.
type Narrowing = Box<dyn Fn(&mut Limits)>;

/// Runs that shrinking may take.
const RUNS_MAX: usize = 60;
/// Lines of the trace that are printed.
const LINES_MAX: usize = 60;

fn fails(seed: u64, limits: &Limits, runs: &mut usize) -> Option<Report> {
    if *runs == RUNS_MAX {
        return None;
    }
    *runs += 1;
    let report = run_seed(seed, limits, KeepLines::Yes);
    report.problem.is_some().then_some(report)
}

/// Smallest limits under which the seed still fails, with the report of that run.
fn shrink(failed: &Report) -> (Limits, Option<Report>) {
    let (mut limits, mut smallest, mut runs) = (Limits::default(), None, 0);
    let settings = &failed.settings;
    let mut candidates: Vec<Narrowing> = Vec::new();
    for fault in settings.faults.clone() {
        candidates.push(Box::new(move |limits| limits.without_faults.push(fault)));
    }
    for (feature, _) in settings.features.clone() {
        candidates.push(Box::new(move |limits| limits.without_features.push(feature)));
    }
    for callers in [1, 2, 4] {
        candidates.push(Box::new(move |limits| limits.callers = Some(callers)));
    }
    for part in [8, 4, 2] {
        let active_ms = settings.active_ms / part;
        candidates.push(Box::new(move |limits| limits.active_ms = Some(active_ms)));
    }
    for narrow in candidates {
        let mut narrower = limits.clone();
        narrow(&mut narrower);
        if let Some(report) = fails(failed.seed, &narrower, &mut runs) {
            (limits, smallest) = (narrower, Some(report));
        }
    }
    (limits, smallest)
}

/// Text about a failure: the line that repeats it, and the end of its trace.
pub fn describe_failure(failed: &Report) -> String {
    let (limits, smallest) = shrink(failed);
    let (report, limits) = match smallest {
        Some(report) => (report, limits),
        None => (run_seed(failed.seed, &Limits::default(), KeepLines::Yes), Limits::default()),
    };
    let mut text = String::new();
    let shown = report.lines.len().saturating_sub(LINES_MAX);
    for line in &report.lines[shown..] {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "{}", report.summary());
    let limits = limits.to_string();
    let limits = if limits.is_empty() { limits } else { format!(" HOTPOOL_LIMITS={limits}") };
    let seed = failed.seed;
    let _ = write!(text, "HOTPOOL_SEED={seed}{limits} cargo nextest run --test simulation --no-capture");
    text
}
