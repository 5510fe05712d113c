//! `compare`: Hotpool beside what people do without it, on one machine and one Redis Cluster, in one run of minutes.
//!
//! Entries of a contest take turns, in each round in the opposite order of the one before, because the speed of a shared
//! machine moves; each figure is the median of the rounds, and each ratio the median of the rounds' ratios. Every entry is
//! checked like any other run.

mod tables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use super::args::{AckArg, ReportArgs, parse_positive};
use super::claim_input::{ClaimParams, TargetPool};
use super::load_client::LoadOperation;
use super::pacing::StopSignal;
use super::report::{EXIT_VIOLATION, LoadReport, MachineSpec};
use super::run::{ArrivalModel, RunPlan, run};
use super::servers::{ServiceProcess, TestCluster, bytes_read};
use super::sweep::{SweepArgs, SweepReport, run_at_rate, sweep};
use super::url::TargetUrl;
use hotpool::model::AckLevel;

/// Options of `compare`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct CompareArgs {
    /// Masters of a Redis Cluster to use; it must be empty, and nobody else may use it [default: three that are started here
    /// and end with the run]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub redis: Vec<String>,
    /// How often each entry has its turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// How long each turn is, in seconds
    #[arg(long, default_value_t = 3.0, value_parser = parse_positive)]
    pub turn_s: f64,
    /// Where the report goes.
    #[command(flatten)]
    #[serde(skip)]
    pub report: ReportArgs,
    /// Writes its tables to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub report_md: Option<PathBuf>,
}

/// One of those that are compared.
struct ComparedTarget {
    name: &'static str,
    url: TargetUrl,
    clients: usize,
    in_flight: usize,
    call: LoadOperation,
}

/// What came of one entry: its median turn by throughput, and all of them.
#[derive(Debug, Serialize)]
pub struct ComparisonRow {
    /// Its name in the tables.
    pub name: &'static str,
    /// What was loaded.
    pub target: String,
    /// Requests outstanding.
    pub in_flight: usize,
    /// Claims in one request.
    pub batch: usize,
    /// Median of the turns.
    pub claims_per_s: f64,
    /// Median of the turns.
    pub p50_us: f64,
    /// Median of the turns.
    pub p99_us: f64,
    /// What each master has read from its clients, in bytes, in all turns.
    pub master_bytes: Vec<u64>,
    /// In order.
    pub turns: Vec<LoadReport>,
}

/// Entries under one workload.
#[derive(Debug, Serialize)]
pub struct WorkloadComparison {
    /// Its name.
    pub name: &'static str,
    /// The workload.
    pub about: String,
    /// The entries.
    pub rows: Vec<ComparisonRow>,
}

/// A figure that was promised.
#[derive(Debug, Serialize)]
pub struct PerformanceGoal {
    /// What it is.
    pub what: String,
    /// What was promised.
    pub wanted: String,
    /// What was found.
    pub found: f64,
    /// Whether that is enough.
    pub held: bool,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct ComparisonReport {
    /// Always `compare`.
    pub command: &'static str,
    /// The command line with its defaults.
    pub parameters: CompareArgs,
    /// Where it ran.
    pub machine: MachineSpec,
    /// Claims and releases; a burst.
    pub contests: Vec<WorkloadComparison>,
    /// Where the service's knee is over RESP, acknowledged from memory.
    pub knee: SweepReport,
    /// A run at half of that; none if no rate was sustained.
    pub half_knee: Option<LoadReport>,
    /// Promises, and whether they were held.
    pub promises: Vec<PerformanceGoal>,
}

const SPOP: &str = "redis-spop";

/// Runs all of it.
///
/// # Errors
/// A server cannot be started, or a run could not be made at all.
pub async fn compare(args: &CompareArgs, stop: &Arc<StopSignal>) -> Result<ComparisonReport> {
    let own = match args.redis.is_empty() {
        true => Some(TestCluster::start(3).await.context("cannot start a Redis Cluster")?),
        false => None,
    };
    let hosts = own.as_ref().map_or(&args.redis, |cluster| &cluster.hosts).clone();
    let service = ServiceProcess::start(&format!("redis-cluster://{}", hosts.join(","))).await?;
    let url = |text: String| text.parse::<TargetUrl>().map_err(anyhow::Error::msg);
    let resp = url(format!("resp://{}?http={}", service.resp, service.http))?;
    let redis = |way: &str, query: &str| url(format!("{way}://{}{query}", hosts.join(",")));
    let entry = |name, url: &TargetUrl, (clients, in_flight), call| ComparedTarget {
        name,
        url: url.clone(),
        clients,
        in_flight,
        call,
    };

    let one = LoadOperation::whole_workers(1);
    let (spop, lua) = (redis(SPOP, "")?, redis("redis-lua", "")?);
    let pairs = [
        entry("hotpool, RESP, 1 024 in flight", &resp, (8, 1_024), one),
        entry("hotpool, RESP, batches of 64, 16 in flight", &resp, (8, 16), LoadOperation::whole_workers(64)),
        entry("hotpool, HTTP, 64 in flight", &url(format!("http://{}", service.http))?, (64, 64), one),
        entry("hotpool, gRPC, 256 in flight", &url(format!("grpc://{}", service.http))?, (8, 256), one),
        entry(
            "hotpool, streams of gRPC, 1 024 in flight",
            &url(format!("grpc-stream://{}", service.http))?,
            (8, 1_024),
            one,
        ),
        entry("redis-spop, 16 in flight", &spop, (1, 16), one),
        entry("redis-spop, 64 in flight", &spop, (1, 64), one),
        entry("redis-spop, 256 in flight", &spop, (1, 256), one),
        entry("redis-lua, 64 in flight", &lua, (8, 64), one),
        entry("redis-lua, 1 024 in flight", &lua, (8, 1_024), one),
        entry("redis-scan, 1 in flight", &redis("redis-scan", "")?, (1, 1), one),
        entry("redis-scan, 16 in flight", &redis("redis-scan", "")?, (1, 16), one),
        entry("redis-lock, 16 in flight", &redis("redis-lock", "")?, (1, 16), one),
        entry(
            "redis-batch, batches of 64, 4 in flight",
            &redis("redis-batch", "")?,
            (1, 4),
            LoadOperation::whole_workers(64),
        ),
    ];
    let fleet = TargetPool { workers: 2_000, slots: 0, shards: 16, ack: AckLevel::Durable };
    let about = "Claims and their releases on 2 000 workers, acknowledged durably, as fast as the answers come.";
    let pairs = compare_targets("Claims and releases", about.into(), &pairs, fleet, args, &hosts, stop).await?;

    let hundred = LoadOperation {
        params: ClaimParams { slots: 1, ..ClaimParams::default() },
        ..LoadOperation::whole_workers(100)
    };
    let (lock, batch) = (["", "?concurrent=100"], ["", "?concurrent=8"]);
    let burst = [
        entry("hotpool, RESP", &resp, (1, 1), hundred),
        entry("hotpool, HTTP", &url(format!("http://{}", service.http))?, (1, 1), hundred),
        entry("redis-lock, one after the other", &redis("redis-lock", lock[0])?, (1, 1), hundred),
        entry("redis-lock, all at once", &redis("redis-lock", lock[1])?, (1, 1), hundred),
        entry("redis-batch, one worker after the other", &redis("redis-batch", batch[0])?, (1, 1), hundred),
        entry("redis-batch, eight workers at once", &redis("redis-batch", batch[1])?, (1, 1), hundred),
    ];
    let fleet = TargetPool { workers: 40, slots: 10, shards: 16, ack: AckLevel::Durable };
    let about = "A hundred claims at once on 40 workers with room for ten each, acknowledged durably: how long until all are \
                 granted.";
    let burst = compare_targets("A burst", about.into(), &burst, fleet, args, &hosts, stop).await?;

    let of_knee = SweepArgs {
        target: resp,
        store: None,
        workers: 20_000,
        shards: 16,
        clients: 8,
        ack: AckArg::Memory,
        from: 5_000.0,
        step_s: args.turn_s.min(3.0),
        p99_ms: 5.0,
        report: ReportArgs::default(),
    };
    let knee = sweep(&of_knee, stop).await?;
    let half_knee = match knee.knee_per_s {
        rate if rate > 0.0 => Some(run_at_rate(&of_knee, rate / 2.0, args.turn_s * 2.0, stop).await?),
        _ => None,
    };
    let promises = tables::promises(&pairs, &burst, half_knee.as_ref());
    Ok(ComparisonReport {
        command: "compare",
        parameters: args.clone(),
        machine: MachineSpec::detect(),
        contests: vec![pairs, burst],
        knee,
        half_knee,
        promises,
    })
}

async fn compare_targets(
    name: &'static str,
    about: String,
    entries: &[ComparedTarget],
    fleet: TargetPool,
    args: &CompareArgs,
    hosts: &[String],
    stop: &Arc<StopSignal>,
) -> Result<WorkloadComparison> {
    let mut rows: Vec<ComparisonRow> = entries.iter().map(ComparisonRow::new).collect();
    for round in 0..args.rounds {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            if stop.is_requested() {
                anyhow::bail!("interrupted");
            }
            let ComparedTarget { name, url, clients, in_flight, call } = &entries[at];
            let before = bytes_read(hosts).await?;
            let plan = RunPlan {
                command: "compare",
                parameters: serde_json::json!({"target": url, "in_flight": in_flight, "batch": call.claims}),
                fleet,
                clients: *clients,
                duration: Duration::from_secs_f64(args.turn_s),
                processes: 1,
                churn: None,
                failover: None,
            };
            let report =
                run(url, None, plan, ArrivalModel::ClosedLoop(*in_flight, *call), stop).await.context(*name)?;
            rows[at].add(report, &before, &bytes_read(hosts).await?);
        }
    }
    rows.iter_mut().for_each(ComparisonRow::summarize);
    Ok(WorkloadComparison { name, about, rows })
}

impl ComparisonRow {
    fn new(entry: &ComparedTarget) -> Self {
        Self {
            name: entry.name,
            target: entry.url.to_string(),
            in_flight: entry.in_flight,
            batch: entry.call.claims,
            claims_per_s: 0.0,
            p50_us: 0.0,
            p99_us: 0.0,
            master_bytes: Vec::new(),
            turns: Vec::new(),
        }
    }

    fn add(&mut self, report: LoadReport, before: &[u64], after: &[u64]) {
        self.master_bytes.resize(after.len(), 0);
        for (sum, (before, after)) in self.master_bytes.iter_mut().zip(before.iter().zip(after)) {
            *sum += after.saturating_sub(*before);
        }
        self.turns.push(report);
    }

    fn summarize(&mut self) {
        let of = |figure: fn(&LoadReport) -> f64| median(self.turns.iter().map(figure).collect());
        self.claims_per_s = of(|turn| turn.throughput_per_s);
        self.p50_us = of(|turn| turn.latency_us.p50);
        self.p99_us = of(|turn| turn.latency_us.p99);
    }

    /// How unevenly the masters were used.
    fn spread(&self) -> f64 {
        let mean = self.master_bytes.iter().sum::<u64>() as f64 / self.master_bytes.len().max(1) as f64;
        self.master_bytes.iter().max().map_or(0.0, |most| *most as f64 / mean.max(1.0))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

impl WorkloadComparison {
    /// Rows whose names begin so.
    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ComparisonRow> {
        self.rows.iter().filter(move |row| row.name.starts_with(name))
    }

    /// The median over the rounds of the best of some rows by a figure, beside that of others.
    fn ratio(&self, [above, below]: [&str; 2], figure: fn(&LoadReport) -> f64, best: fn(f64, f64) -> f64) -> f64 {
        let rounds = self.rows.first().map_or(0, |row| row.turns.len());
        let of =
            |name: &str, round: usize| self.of(name).map(|row| figure(&row.turns[round])).reduce(best).unwrap_or(0.0);
        let ratio = |round| match of(below, round) {
            nothing if nothing <= 0.0 => 0.0,
            below => of(above, round) / below,
        };
        median((0..rounds).map(ratio).collect())
    }
}

impl ComparisonReport {
    /// [`EXIT_VIOLATION`] if a target gave a worker twice or lost one, else 0: figures below a promise are no fault of the run.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let turns = self.contests.iter().flat_map(|contest| &contest.rows).flat_map(|row| &row.turns);
        let wrong = turns.chain(&self.half_knee).any(LoadReport::has_violations) || self.knee.violated;
        if wrong { EXIT_VIOLATION } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!([vec![], vec![3.0], vec![9.0, 1.0], vec![5.0, 1.0, 2.0]].map(median), [0.0, 3.0, 5.0, 2.0]);
    }

    #[test]
    fn ratios_are_those_of_the_rounds() {
        let row = |name, rates: [f64; 3]| {
            let turn = |rate| LoadReport {
                throughput_per_s: rate,
                ..LoadReport::new("compare", "r", serde_json::Value::Null)
            };
            let entry = ComparedTarget {
                name,
                url: TargetUrl::Inproc,
                clients: 1,
                in_flight: 1,
                call: LoadOperation::whole_workers(1),
            };
            ComparisonRow { turns: rates.map(turn).to_vec(), ..ComparisonRow::new(&entry) }
        };
        let rows = vec![row("a", [10.0, 30.0, 8.0]), row("b, 1", [1.0, 1.0, 1.0]), row("b, 2", [0.5, 2.0, 4.0])];
        let contest = WorkloadComparison { name: "x", about: String::new(), rows };
        assert_eq!(contest.ratio(["a", "b"], |report| report.throughput_per_s, f64::max), 10.0);
        assert_eq!(contest.ratio(["a", "c"], |report| report.throughput_per_s, f64::max), 0.0, "there is no c");
    }
}
