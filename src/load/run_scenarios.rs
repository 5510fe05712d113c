//! `run`: scenarios against targets, one after the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::args::{ReportArgs, parse_positive};
use super::pacing::StopSignal;
use super::report::{EXIT_VIOLATION, LoadReport};
use super::run::{ArrivalModel, RunPlan, run};
use super::scenario::{LoadScenario, ScenarioError};
use super::url::TargetUrl;
use hotpool::server::config::StoreUrl;

/// Options of `run`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct RunArgs {
    /// What the load looks like: a file as in config/load. May be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub scenario: Vec<PathBuf>,
    /// What to load, as in `bench`. May be given several times; each carries out every scenario [default: inproc]
    #[arg(long, value_name = "URL")]
    pub target: Vec<TargetUrl>,
    /// Store of the scheduler in this process, as `hotpool serve --store` takes it [default: memory:]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreUrl>,
    /// The Redis server that a scenario's `failover` makes stop answering [default: none; nothing is done to anybody]
    #[arg(long, value_name = "HOST:PORT")]
    pub redis_master: Option<String>,
    /// Phases last at most so many seconds
    #[arg(long, value_parser = parse_positive, value_name = "SECONDS")]
    pub phase_s: Option<f64>,
    /// Where the report goes.
    #[command(flatten)]
    #[serde(skip)]
    pub report: ReportArgs,
}

/// What came of a scenario on a target.
#[derive(Debug, Serialize)]
pub struct ScenarioOutcome {
    /// The scenario's file.
    pub scenario: String,
    /// The target.
    pub target: String,
    /// What was found, if it was carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<LoadReport>,
    /// Why it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// What came of all of them.
#[derive(Debug, Serialize)]
pub struct ScenarioRunReport {
    /// Always `run`.
    pub command: &'static str,
    /// In the order in which they were carried out.
    pub runs: Vec<ScenarioOutcome>,
}

impl ScenarioRunReport {
    /// The worst of the reports' exit codes; 1 if all were skipped.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let codes = self.runs.iter().filter_map(|run| run.report.as_ref()).map(LoadReport::exit_code);
        // A wrong service comes before a run that is not whole.
        codes.max_by_key(|code| (*code == EXIT_VIOLATION, *code)).unwrap_or(1)
    }

    /// What was found, each under the names of its scenario and target.
    #[must_use]
    pub fn reports(&self) -> Vec<(String, &LoadReport)> {
        let named = |run: &'_ ScenarioOutcome| format!("{} on {}", run.scenario, run.target);
        self.runs.iter().filter_map(|run| Some((named(run), run.report.as_ref()?))).collect()
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let one = |run: &ScenarioOutcome| {
            let said = match (&run.report, &run.skipped) {
                (Some(report), _) => report.table(),
                (None, Some(why)) => format!("skipped: {why}"),
                (None, None) => String::new(),
            };
            format!("== {} on {}\n{said}\n", run.scenario, run.target)
        };
        self.runs.iter().map(one).collect()
    }
}

/// Reads every scenario, then carries each out on each target.
///
/// # Errors
/// A file is wrong, in which case nothing was sent; or a run could not be made at all.
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
                Err(why) => (None, Some(why)),
            };
            outcomes.runs.push(ScenarioOutcome { scenario: scenario_name, target: target_name, report, skipped });
        }
    }
    Ok(outcomes)
}

/// One scenario on one target; or why it was skipped.
async fn run_scenario(
    args: &RunArgs,
    scenario: &LoadScenario,
    target: &TargetUrl,
    stop: &Arc<StopSignal>,
) -> Result<std::result::Result<LoadReport, String>> {
    if let Some(why) = scenario.unsupported_by(target) {
        return Ok(Err(why));
    }
    let calls = match scenario.calls() {
        Ok(calls) => calls,
        Err(absent @ ScenarioError::NoTrace(_)) => return Ok(Err(absent.to_string())),
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
    let drive = ArrivalModel::OpenLoop(scenario.clients.in_flight as usize, Box::new(calls.into_iter()));
    let store = args.store.as_ref().filter(|_| *target == TargetUrl::Inproc);
    Ok(Ok(run(target, store, plan, drive, stop).await?))
}
