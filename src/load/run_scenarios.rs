//! `run`: runs scenarios against targets, one after the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::args::{ReportArgs, parse_positive};
use super::html_report::{ReportPage, ReportSection, table_row};
use super::pacing::StopSignal;
use super::report::{EXIT_VIOLATION, LoadReport};
use super::run::{ArrivalModel, RunPlan, run};
use super::run_report::{NamedRun, run_page};
use super::scenario::{LoadScenario, ScenarioError};
use super::terminal::{TerminalText, fold};
use super::url::TargetUrl;
use hotpool::server::config::StoreUrl;

/// Options of the `run` subcommand.
#[derive(Debug, Clone, Args, Serialize)]
pub struct RunArgs {
    /// Scenario file, as in config/load. May be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub scenario: Vec<PathBuf>,
    /// Target, as for `bench`. May be given several times; every scenario runs on each [default: inproc]
    #[arg(long, value_name = "URL")]
    pub target: Vec<TargetUrl>,
    /// Store of the in-process scheduler, as for `hotpool serve --store` [default: memory:]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreUrl>,
    /// Redis server that a scenario's `failover` makes unresponsive [default: none, so nothing fails]
    #[arg(long, value_name = "HOST:PORT")]
    pub redis_master: Option<String>,
    /// Limit on the duration of each phase, in seconds
    #[arg(long, value_parser = parse_positive, value_name = "SECONDS")]
    pub phase_s: Option<f64>,
    /// Files to write the report to.
    #[command(flatten)]
    #[serde(skip)]
    pub report: ReportArgs,
}

/// Outcome of one scenario on one target.
#[derive(Debug, Serialize)]
pub struct ScenarioOutcome {
    /// Path of the scenario file.
    pub scenario: String,
    /// URL of the target.
    pub target: String,
    /// Report of the run, unless the scenario was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<LoadReport>,
    /// Reason for skipping the scenario.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// Outcomes of all scenarios on all targets.
#[derive(Debug, Serialize)]
pub struct ScenarioRunReport {
    /// Name of the subcommand: always `run`.
    pub command: &'static str,
    /// Outcomes in the order of execution.
    pub runs: Vec<ScenarioOutcome>,
}

impl ScenarioRunReport {
    /// Worst exit code of the reports; 1 if every scenario was skipped.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let codes = self.runs.iter().filter_map(|run| run.report.as_ref()).map(LoadReport::exit_code);
        // A violation is worse than an incomplete run.
        codes.max_by_key(|code| (*code == EXIT_VIOLATION, *code)).unwrap_or(1)
    }

    /// Report for people as one page. Runs are named after scenario and edge, and after the address where that is not enough.
    #[must_use]
    pub fn page(&self, parameters: serde_json::Value) -> ReportPage {
        let short = |run: &ScenarioOutcome| {
            let stem = Path::new(&run.scenario).file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let url = run.target.parse::<TargetUrl>().unwrap_or(TargetUrl::Inproc);
            (format!("{stem}, {}", url.edge_name()), url.tone())
        };
        let names: Vec<String> = self.runs.iter().map(|run| short(run).0).collect();
        let is_unique = |name: &String| names.iter().filter(|other| *other == name).count() == 1;
        let named = |run: &'_ ScenarioOutcome| {
            let (name, tone) = short(run);
            let name = if is_unique(&name) { name } else { format!("{} on {}", run.scenario, run.target) };
            (name, tone)
        };
        let runs = self.runs.iter().filter_map(|run| {
            let ((name, tone), report) = (named(run), run.report.as_ref()?);
            Some(NamedRun { name, tone, report })
        });
        let runs: Vec<NamedRun<'_>> = runs.collect();
        let skipped: Vec<Vec<String>> =
            self.runs.iter().filter_map(|run| Some(vec![named(run).0, run.skipped.clone()?])).collect();
        let mut page = run_page("Scenarios", &runs, parameters);
        if !skipped.is_empty() {
            let table = std::iter::once(table_row(["", "reason"])).chain(skipped).collect();
            page.sections.push(ReportSection { title: "Skipped".into(), table, ..ReportSection::default() });
        }
        page
    }

    /// Formats all outcomes as text for the terminal.
    #[must_use]
    pub fn table(&self, terminal: TerminalText) -> String {
        let section = |run: &ScenarioOutcome| {
            let text = match (&run.report, &run.skipped) {
                (Some(report), _) => report.table(terminal),
                (None, Some(reason)) => fold(&format!("skipped: {reason}")),
                (None, None) => String::new(),
            };
            format!("{}\n{text}\n", fold(&format!("== {} on {}", run.scenario, run.target)))
        };
        self.runs.iter().map(section).collect()
    }
}

/// Reads every scenario, then runs each on every target.
///
/// # Errors
/// Fails before anything is sent if a file is invalid, and later if a run cannot be started.
pub async fn run_scenarios(args: &RunArgs, stop: &Arc<StopSignal>) -> Result<ScenarioRunReport> {
    let mut scenarios = Vec::new();
    let mut problems = Vec::new();
    for path in &args.scenario {
        match LoadScenario::read(path) {
            Ok(scenario) => scenarios.push((path.display().to_string(), scenario)),
            Err(error) => problems.push(error.to_string()),
        }
    }
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n"));
    let targets = if args.target.is_empty() { vec![TargetUrl::Inproc] } else { args.target.clone() };
    let mut outcomes = ScenarioRunReport { command: "run", runs: Vec::new() };
    for (name, scenario) in scenarios {
        let scenario = match args.phase_s {
            Some(phase_s) => scenario.limit_phases(phase_s),
            None => scenario,
        };
        for target in &targets {
            if stop.is_requested() {
                return Ok(outcomes);
            }
            let (scenario_name, target_name) = (name.clone(), target.to_string());
            let (report, skipped) = match run_scenario(args, &scenario, target, stop).await? {
                Ok(report) => (Some(report), None),
                Err(reason) => (None, Some(reason)),
            };
            outcomes.runs.push(ScenarioOutcome { scenario: scenario_name, target: target_name, report, skipped });
        }
    }
    Ok(outcomes)
}

/// Runs one scenario on one target, or returns the reason for skipping it.
async fn run_scenario(
    args: &RunArgs,
    scenario: &LoadScenario,
    target: &TargetUrl,
    stop: &Arc<StopSignal>,
) -> Result<std::result::Result<LoadReport, String>> {
    if let Some(reason) = scenario.unsupported_by(target) {
        return Ok(Err(reason));
    }
    let schedule = match scenario.schedule() {
        Ok(schedule) => schedule,
        Err(missing @ ScenarioError::NoTrace(_)) => return Ok(Err(missing.to_string())),
        Err(error) => return Err(error.into()),
    };
    let plan = RunPlan {
        command: "run",
        parameters: serde_json::json!({"target": target, "scenario": scenario}),
        fleet: scenario.target_pool(),
        clients: scenario.clients.count as usize,
        duration: Duration::from_secs_f64(scenario.duration_s()),
        processes: 1,
        churn: scenario.churn,
        failover: scenario.failover.zip(args.redis_master.clone()),
    };
    let arrivals = ArrivalModel::OpenLoop(scenario.clients.in_flight as usize, Box::new(schedule.into_iter()));
    let store = args.store.as_ref().filter(|_| *target == TargetUrl::Inproc);
    Ok(Ok(run(target, store, plan, arrivals, stop).await?))
}
