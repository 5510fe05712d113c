//! `sweep`: finds the highest rate that a target sustains. Open loop; the rate doubles until it is too high and is
//! then bisected, also below the first rate.
//!
//! A rate is sustained if at least 95 % of it is granted, nothing fails, and the 99th percentile, counted from the
//! intended send time, stays within the limit. A rate that fails is tried once more. The highest sustained rate is the
//! *knee*: beyond it queues grow.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use maud::Markup;
use serde::Serialize;

use super::args::{AckArg, ReportArgs, parse_positive};
use super::charts::{
    AxisUnit, ChartAxis, ChartMark, ChartSeries, ChartSize, LineChart, LineStroke, MarkValue, format_number, format_us,
};
use super::claim_input::TargetPool;
use super::html_report::{ReportChart, ReportPage, ReportSection, ReportVerdict, table_row};
use super::load_client::LoadOperation;
use super::pacing::{self, StopSignal};
use super::report::{EXIT_VIOLATION, LatencySummary, LoadReport, MachineSpec};
use super::run::{ArrivalModel, RunPlan, run};
use super::run_report::NOTHING_WRONG;
use super::url::TargetUrl;
use hotpool::limits::SHARDS_MAX;
use hotpool::server::config::StoreUrl;

/// Smallest fraction of the offered rate that must be granted.
const GRANTED_MIN: f64 = 0.95;
/// Largest number of doublings: a million times the first rate means that the measurement is broken.
const DOUBLINGS_MAX: usize = 20;
/// Bisections between the last sustained rate and the first that was not.
const HALVINGS: usize = 4;
/// Limit on outstanding requests; requests due beyond it count as errors, so the rate is not sustained.
const IN_FLIGHT: usize = 50_000;

/// Options of the `sweep` subcommand.
#[derive(Debug, Clone, Args, Serialize)]
pub struct SweepArgs {
    /// Target, as for `bench`
    #[arg(long, default_value = "inproc", value_name = "URL")]
    pub target: TargetUrl,
    /// Store of the in-process scheduler, as for `hotpool serve --store` [default: memory:]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreUrl>,
    /// Workers to register in the pool
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub workers: u32,
    /// Shards of the pool; must be a power of two
    #[arg(long, default_value_t = 16)]
    pub shards: u16,
    /// Number of clients that send requests
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// Point at which the service acknowledges
    #[arg(long, value_enum, default_value = "durable")]
    pub ack: AckArg,
    /// First rate to try, in claims per second
    #[arg(long, default_value_t = 1_000.0, value_parser = parse_positive)]
    pub from: f64,
    /// Duration of each rate, in seconds
    #[arg(long, default_value_t = 3.0, value_parser = parse_positive)]
    pub step_s: f64,
    /// Limit on the 99th percentile of claim latency, in milliseconds
    #[arg(long, default_value_t = 5.0, value_parser = parse_positive)]
    pub p99_ms: f64,
    /// Files to write the report to.
    #[command(flatten)]
    #[serde(skip)]
    pub report: ReportArgs,
}

impl SweepArgs {
    /// Checks rules that the command-line parser does not.
    ///
    /// # Errors
    /// Returns a message that names the option and its limit.
    pub fn check(&self) -> Result<(), String> {
        if !self.shards.is_power_of_two() || self.shards > SHARDS_MAX {
            return Err(format!("--shards must be a power of two from 1 to {SHARDS_MAX}"));
        }
        Ok(())
    }
}

/// Measurement of one rate.
#[derive(Debug, Clone, Serialize)]
pub struct SweepStep {
    /// Claims per second offered.
    pub rate_per_s: f64,
    /// Claims per second granted.
    pub granted_per_s: f64,
    /// Latency of granted claims, from the intended send time.
    pub latency_us: LatencySummary,
    /// True if the target sustained the rate.
    pub sustained: bool,
}

/// Result of a sweep over rates.
#[derive(Debug, Serialize)]
pub struct SweepReport {
    /// Name of the subcommand: always `sweep`.
    pub command: &'static str,
    /// Command-line options, defaults included.
    pub parameters: SweepArgs,
    /// Machine that ran the harness.
    pub machine: MachineSpec,
    /// Highest sustained rate in claims per second; 0 if none was sustained.
    pub knee_per_s: f64,
    /// Measurements in ascending order of rate.
    pub steps: Vec<SweepStep>,
    /// True if any measurement found a violation.
    pub violated: bool,
    /// True if a signal ended the sweep early.
    pub interrupted: bool,
}

impl SweepReport {
    /// Exit code: [`EXIT_VIOLATION`], otherwise 1 if no rate was sustained, otherwise 0.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.violated { EXIT_VIOLATION } else { u8::from(self.knee_per_s == 0.0 || self.interrupted) }
    }

    /// Report for people as one page.
    #[must_use]
    pub fn page(&self) -> ReportPage {
        let edge = self.parameters.target.edge_name();
        let bound = format_us(self.parameters.p99_ms * 1e3);
        let text = match self.knee_per_s {
            _ if self.violated => "The check failed: a grant was wrong, or capacity was lost.".to_owned(),
            _ if self.interrupted => "The sweep is not complete: interrupted.".to_owned(),
            0.0 => "No rate was sustained, not even the first.".to_owned(),
            knee => {
                let knee = format_number(knee);
                format!(
                    "Sustained ({edge}): {knee} claims/s, with a 99th percentile of at most {bound}. {NOTHING_WRONG}"
                )
            }
        };
        let verdict = ReportVerdict { is_good: self.exit_code() == 0, text };
        let parameters = serde_json::to_value(&self.parameters).unwrap_or_default();
        ReportPage { title: format!("Sweep: {edge}"), verdict, sections: vec![self.section()], parameters }
    }

    /// Section with the steps and the latency at each rate.
    #[must_use]
    pub fn section(&self) -> ReportSection {
        let mut table = vec![table_row(["rate/s", "granted/s", "p50 us", "p99 us", "p99.9 us", "sustained"])];
        for step in &self.steps {
            let LatencySummary { p50, p99, p999, .. } = step.latency_us;
            let mut cells = [step.rate_per_s, step.granted_per_s, p50, p99, p999].map(format_number).to_vec();
            cells.push(if step.sustained { "yes" } else { "no" }.to_owned());
            table.push(cells);
        }
        let bound = format_us(self.parameters.p99_ms * 1e3);
        let knee = match self.knee_per_s {
            0.0 => "No rate was sustained".to_owned(),
            knee => format!("The knee is at {} claims/s", format_number(knee)),
        };
        let text = format!(
            "{knee}. A rate is sustained if at least 95 % of it is granted, nothing fails, and the 99th percentile is at most \
             {bound}. A rate that failed was tried once more. Hollow points are the 99th percentiles of tries that failed."
        );
        let charts = vec![ReportChart { name: "latency-by-rate", picture: self.chart() }];
        ReportSection { title: "Knee".into(), text, table, charts, ..ReportSection::default() }
    }

    fn chart(&self) -> Markup {
        let tone = self.parameters.target.tone();
        let over_rate = |sustained: bool, figure: fn(&LatencySummary) -> f64| -> Vec<(f64, f64)> {
            let steps = self.steps.iter().filter(|step| step.sustained == sustained);
            steps.map(|step| (step.rate_per_s, figure(&step.latency_us))).collect()
        };
        let line = |name: &str, stroke, points| ChartSeries { name: name.into(), tone, stroke, points };
        let series = vec![
            line("p50", LineStroke::Solid, over_rate(true, |latency| latency.p50)),
            line("p99", LineStroke::Thin, over_rate(true, |latency| latency.p99)),
            line("p99.9", LineStroke::Dashed, over_rate(true, |latency| latency.p999)),
            line("", LineStroke::Hollow, over_rate(false, |latency| latency.p99)),
        ];
        let bound_us = self.parameters.p99_ms * 1e3;
        let mut marks =
            vec![ChartMark { text: format!("bound {}", format_us(bound_us)), value: MarkValue::Y(bound_us) }];
        if self.knee_per_s > 0.0 {
            let text = format!("knee {}/s", format_number(self.knee_per_s));
            marks.push(ChartMark { text, value: MarkValue::X(self.knee_per_s) });
        }
        let points = || series.iter().flat_map(|series| &series.points);
        LineChart {
            title: format!("Latency by rate, {}", self.parameters.target.edge_name()),
            x: ChartAxis::logarithmic("claims/s offered", AxisUnit::Number, points().map(|point| point.0)),
            y: ChartAxis::logarithmic(
                "latency from the intended send time",
                AxisUnit::Microseconds,
                points().map(|point| point.1).chain([bound_us]),
            ),
            series,
            marks,
            size: ChartSize::LARGE,
        }
        .draw()
    }
}

/// Searches for the knee of the target.
///
/// # Errors
/// Fails if a run cannot be started.
pub async fn sweep(args: &SweepArgs, stop: &Arc<StopSignal>) -> Result<SweepReport> {
    let mut report = SweepReport {
        command: "sweep",
        parameters: args.clone(),
        machine: MachineSpec::detect(),
        knee_per_s: 0.0,
        steps: Vec::new(),
        violated: false,
        interrupted: false,
    };
    let (mut rate, mut ceiling) = (args.from, None);
    for _ in 0..DOUBLINGS_MAX {
        if stop.is_requested() || !report.sustains(rate, stop).await? {
            ceiling = Some(rate);
            break;
        }
        rate *= 2.0;
    }
    let mut ceiling = ceiling.unwrap_or(rate);
    for _ in 0..HALVINGS {
        if stop.is_requested() {
            break;
        }
        let middle = f64::midpoint(report.knee_per_s, ceiling);
        if !report.sustains(middle, stop).await? {
            ceiling = middle;
        }
    }
    report.steps.sort_by(|a, b| a.rate_per_s.total_cmp(&b.rate_per_s));
    Ok(report)
}

impl SweepReport {
    /// Tries one rate, and retries it once if it was not sustained: a hiccup of the machine is not a knee.
    async fn sustains(&mut self, rate: f64, stop: &Arc<StopSignal>) -> Result<bool> {
        Ok(self.try_rate(rate, stop).await? || (!stop.is_requested() && self.try_rate(rate, stop).await?))
    }

    async fn try_rate(&mut self, rate: f64, stop: &Arc<StopSignal>) -> Result<bool> {
        let report = run_at_rate(&self.parameters, rate, self.parameters.step_s, stop).await?;
        let fast_enough = report.latency_us.p99 <= self.parameters.p99_ms * 1_000.0;
        let enough_granted = report.throughput_per_s >= GRANTED_MIN * rate && report.claims_refused == 0;
        let is_complete = report.failures.is_empty() && !report.interrupted;
        let sustained = fast_enough && enough_granted && report.errors == 0 && is_complete;
        self.interrupted |= report.interrupted;
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

/// Runs the load at one rate.
///
/// # Errors
/// Fails if the run cannot be started.
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
    let operations = pacing::steady_schedule(rate, 1, duration).map(|(at, ())| (at, LoadOperation::whole_workers(1)));
    run(&args.target, args.store.as_ref(), plan, ArrivalModel::OpenLoop(IN_FLIGHT, Box::new(operations)), stop).await
}
