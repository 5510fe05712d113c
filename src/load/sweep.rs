//! `sweep`: which rate a target sustains. Open loop, the rate doubled until it is too much and then halved in on, also below
//! the first.
//!
//! A rate is sustained if at least 95 % of it is granted, nothing fails, and the 99th percentile, counted from the intended
//! sending, stays within the bound; one that was not is tried once more. The highest rate that was is the *knee*: beyond it queues grow.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::args::{AckArg, ReportArgs, parse_positive};
use super::charts::{self, format_number};
use super::claim_input::TargetPool;
use super::html_report::{ReportSection, table_row};
use super::load_client::LoadOperation;
use super::pacing::{self, StopSignal};
use super::report::{EXIT_VIOLATION, LatencySummary, LoadReport, MachineSpec};
use super::run::{ArrivalModel, RunPlan, run};
use super::url::TargetUrl;
use hotpool::limits::SHARDS_MAX;
use hotpool::server::config::StoreUrl;

/// Part of the offered rate that must be granted.
const GRANTED_MIN: f64 = 0.95;
/// Most doublings: beyond a million times the first rate something is wrong with the measurement.
const DOUBLINGS_MAX: usize = 20;
/// Halvings between the last rate that was sustained and the first that was not.
const HALVINGS: usize = 4;
/// Requests that may be outstanding; what is due beyond that is an error, and so the end of a rate.
const IN_FLIGHT: usize = 50_000;

/// Options of `sweep`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct SweepArgs {
    /// What to load, as in `bench`
    #[arg(long, default_value = "inproc", value_name = "URL")]
    pub target: TargetUrl,
    /// Store of the scheduler in this process, as `hotpool serve --store` takes it [default: memory:]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreUrl>,
    /// Workers to register
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub workers: u32,
    /// Shards of the pool: a power of two
    #[arg(long, default_value_t = 16)]
    pub shards: u16,
    /// Clients
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// When the service answers
    #[arg(long, value_enum, default_value = "durable")]
    pub ack: AckArg,
    /// The first rate, in claims per second
    #[arg(long, default_value_t = 1_000.0, value_parser = parse_positive)]
    pub from: f64,
    /// How long each rate is sent, in seconds
    #[arg(long, default_value_t = 3.0, value_parser = parse_positive)]
    pub step_s: f64,
    /// The 99th percentile of claims may be so many milliseconds
    #[arg(long, default_value_t = 5.0, value_parser = parse_positive)]
    pub p99_ms: f64,
    /// Where the report goes.
    #[command(flatten)]
    #[serde(skip)]
    pub report: ReportArgs,
}

impl SweepArgs {
    /// Checks what the command line's reader does not.
    ///
    /// # Errors
    /// What is wrong, for the user.
    pub fn check(&self) -> Result<(), String> {
        if !self.shards.is_power_of_two() || self.shards > SHARDS_MAX {
            return Err(format!("--shards must be a power of two, 1..={SHARDS_MAX}"));
        }
        Ok(())
    }
}

/// What one rate came to.
#[derive(Debug, Clone, Serialize)]
pub struct SweepStep {
    /// Claims per second that were to be sent.
    pub rate_per_s: f64,
    /// Claims per second that were granted.
    pub granted_per_s: f64,
    /// Of granted claims, from the intended sending.
    pub latency_us: LatencySummary,
    /// Whether the rate is sustained.
    pub sustained: bool,
}

/// What a sweep found.
#[derive(Debug, Serialize)]
pub struct SweepReport {
    /// Always `sweep`.
    pub command: &'static str,
    /// The command line with its defaults.
    pub parameters: SweepArgs,
    /// Where it ran.
    pub machine: MachineSpec,
    /// The highest rate that is sustained, in claims per second; 0 if none of those tried was.
    pub knee_per_s: f64,
    /// By rate.
    pub steps: Vec<SweepStep>,
    /// A step showed the target to be wrong.
    pub violated: bool,
}

impl SweepReport {
    /// [`EXIT_VIOLATION`], else 1 if no rate was sustained, else 0.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.violated { EXIT_VIOLATION } else { u8::from(self.knee_per_s == 0.0) }
    }

    /// As a part of a report.
    ///
    /// # Errors
    /// A picture cannot be drawn, in words.
    pub fn section(&self) -> Result<ReportSection, String> {
        let mut table = vec![table_row(["rate/s", "granted/s", "p50 us", "p99 us", "p99.9 us", "sustained"])];
        for step in &self.steps {
            let LatencySummary { p50, p99, p999, .. } = step.latency_us;
            let mut cells = [step.rate_per_s, step.granted_per_s, p50, p99, p999].map(format_number).to_vec();
            cells.push(if step.sustained { "yes" } else { "no" }.to_owned());
            table.push(cells);
        }
        let over =
            |of: fn(&SweepStep) -> f64| self.steps.iter().map(|step| (step.rate_per_s, of(step))).collect::<Vec<_>>();
        let lines = [
            ("p50".to_owned(), over(|step| step.latency_us.p50)),
            ("p99".to_owned(), over(|step| step.latency_us.p99)),
            ("p99.9".to_owned(), over(|step| step.latency_us.p999)),
        ];
        let title = format!("latency over rate, {}", self.parameters.target);
        let picture = charts::line_chart(&title, ["claims/s offered", "us"], &lines)?;
        let text = format!(
            "The knee is at {} claims/s: beyond it the 99th percentile is above {} ms, or less than 95 % is granted.",
            format_number(self.knee_per_s),
            self.parameters.p99_ms
        );
        Ok(ReportSection { title: "Knee".into(), text, table, charts: vec![picture] })
    }
}

/// Finds the knee.
///
/// # Errors
/// A run could not be made at all.
pub async fn sweep(args: &SweepArgs, stop: &Arc<StopSignal>) -> Result<SweepReport> {
    let mut found = SweepReport {
        command: "sweep",
        parameters: args.clone(),
        machine: MachineSpec::detect(),
        knee_per_s: 0.0,
        steps: Vec::new(),
        violated: false,
    };
    let (mut rate, mut too_much) = (args.from, None);
    for _ in 0..DOUBLINGS_MAX {
        if stop.is_requested() || !found.sustains(rate, stop).await? {
            too_much = Some(rate);
            break;
        }
        rate *= 2.0;
    }
    let mut too_much = too_much.unwrap_or(rate);
    for _ in 0..HALVINGS {
        if stop.is_requested() {
            break;
        }
        let between = f64::midpoint(found.knee_per_s, too_much);
        if !found.sustains(between, stop).await? {
            too_much = between;
        }
    }
    found.steps.sort_by(|a, b| a.rate_per_s.total_cmp(&b.rate_per_s));
    Ok(found)
}

impl SweepReport {
    /// Tries one rate, and once more if it was not sustained: a hiccup of the machine is no knee.
    async fn sustains(&mut self, rate: f64, stop: &Arc<StopSignal>) -> Result<bool> {
        Ok(self.try_rate(rate, stop).await? || (!stop.is_requested() && self.try_rate(rate, stop).await?))
    }

    async fn try_rate(&mut self, rate: f64, stop: &Arc<StopSignal>) -> Result<bool> {
        let report = run_at_rate(&self.parameters, rate, self.parameters.step_s, stop).await?;
        let fast = report.latency_us.p99 <= self.parameters.p99_ms * 1_000.0;
        let enough = report.throughput_per_s >= GRANTED_MIN * rate && report.claims_refused == 0;
        let sustained = fast && enough && report.errors == 0 && report.failures.is_empty();
        self.violated |= report.has_violations();
        if sustained {
            self.knee_per_s = self.knee_per_s.max(rate);
        }
        self.steps.push(SweepStep {
            rate_per_s: rate,
            granted_per_s: report.throughput_per_s,
            latency_us: report.latency_us,
            sustained,
        });
        Ok(sustained)
    }
}

/// One run at a rate.
///
/// # Errors
/// The run could not be made at all.
pub async fn run_at_rate(args: &SweepArgs, rate: f64, seconds: f64, stop: &Arc<StopSignal>) -> Result<LoadReport> {
    let duration = Duration::from_secs_f64(seconds);
    let plan = RunPlan {
        command: "sweep",
        parameters: serde_json::json!({"target": args.target, "rate": rate}),
        fleet: TargetPool { workers: args.workers, slots: 0, shards: args.shards, ack: args.ack.into() },
        clients: args.clients as usize,
        duration,
        processes: 1,
        churn: None,
        failover: None,
    };
    let calls = pacing::steady_schedule(rate, 1, duration).map(|(at, ())| (at, LoadOperation::whole_workers(1)));
    run(&args.target, args.store.as_ref(), plan, ArrivalModel::OpenLoop(IN_FLIGHT, Box::new(calls)), stop).await
}
