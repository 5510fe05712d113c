//! `compare`: measures Hotpool and the baselines on one machine, one Redis Cluster and one disk, in one run of minutes.
//!
//! Entries of a contest run round robin, in the opposite order in every other round, because the speed of a shared
//! machine varies. Each figure is the median of the rounds, and each ratio the median of the rounds' ratios. Every
//! entry is checked like any other run.

mod tables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use super::args::{AckArg, ReportArgs, parse_positive};
use super::charts::ChartTone;
use super::claim_input::{ClaimParams, TargetPool};
use super::load_client::LoadOperation;
use super::pacing::StopSignal;
use super::report::{EXIT_VIOLATION, LoadReport, MachineSpec};
use super::run::{ArrivalModel, RunPlan, run};
use super::run_report::describe_problem;
use super::servers::{EchoProcess, PostgresServer, ServiceProcess, TestCluster, bytes_read};
use super::sweep::{SweepArgs, SweepReport, run_at_rate, sweep};
use super::url::TargetUrl;
use hotpool::model::AckLevel;

/// Options of the `compare` subcommand.
#[derive(Debug, Clone, Args, Serialize)]
pub struct CompareArgs {
    /// Masters of an empty Redis Cluster that nobody else uses [default: three masters started and stopped by the run]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub redis: Vec<String>,
    /// Number of rounds, in each of which every entry runs once
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Duration of each entry in each round, in seconds
    #[arg(long, default_value_t = 3.0, value_parser = parse_positive)]
    pub turn_s: f64,
    /// Files to write the report to.
    #[command(flatten)]
    #[serde(skip)]
    pub report: ReportArgs,
    /// Write the tables to this file as Markdown
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub report_md: Option<PathBuf>,
}

/// Entry of a contest: a target and its load.
struct ComparedTarget {
    name: &'static str,
    url: TargetUrl,
    clients: usize,
    in_flight: usize,
    operation: LoadOperation,
    /// Entry that shows what the edge and the disk allow, if there is one.
    limit: Option<&'static str>,
}

impl ComparedTarget {
    fn limited_by(self, limit: &'static str) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// Results of one entry over all rounds.
#[derive(Debug, Serialize)]
pub struct ComparisonRow {
    /// Name of the entry in the tables.
    pub name: &'static str,
    /// URL of the target.
    pub target: String,
    /// Number of outstanding requests.
    pub in_flight: usize,
    /// Number of claims in one request.
    pub batch: usize,
    /// Claims granted per second, median of the rounds.
    pub claims_per_s: f64,
    /// Median latency in microseconds, median of the rounds.
    pub p50_us: f64,
    /// Processor time of the harness per claim and release in microseconds, median of the rounds.
    pub client_processor_us: f64,
    /// Processor time of the servers per claim and release in microseconds, median of the rounds; 0 if unknown.
    pub server_processor_us: f64,
    /// 99th percentile in microseconds, median of the rounds.
    pub p99_us: f64,
    /// Name of the entry with a bare server that shows what the edge and the disk allow, if there is one.
    pub limit: Option<&'static str>,
    /// Claims granted per second over those of the limit, median of the rounds.
    pub of_limit: Option<f64>,
    /// Bytes that each master has read from its clients, over all rounds.
    pub master_bytes: Vec<u64>,
    /// Report of each round in order.
    pub turns: Vec<LoadReport>,
}

/// Results of all entries under one workload.
#[derive(Debug, Serialize)]
pub struct WorkloadComparison {
    /// Name of the workload.
    pub name: &'static str,
    /// Description of the workload.
    pub about: String,
    /// Results in the order of the entries.
    pub rows: Vec<ComparisonRow>,
}

/// Performance goal with its measurement.
#[derive(Debug, Serialize)]
pub struct PerformanceGoal {
    /// Description of the figure.
    pub what: String,
    /// Comparison that the figure must satisfy.
    pub wanted: String,
    /// Measured value of the figure.
    pub found: f64,
    /// True if the measurement meets the goal.
    pub held: bool,
}

/// Results of all contests, with the goals.
#[derive(Debug, Serialize)]
pub struct ComparisonReport {
    /// Name of the subcommand: always `compare`.
    pub command: &'static str,
    /// Command-line options, defaults included.
    pub parameters: CompareArgs,
    /// Machine that ran the harness.
    pub machine: MachineSpec,
    /// Contests: durable on one disk, claims and releases beside Redis, then a burst.
    pub contests: Vec<WorkloadComparison>,
    /// Sweep of the service over RESP, acknowledged from memory.
    pub knee: SweepReport,
    /// Run at half the knee; none if no rate was sustained.
    pub half_knee: Option<LoadReport>,
    /// Performance goals with their measurements.
    pub promises: Vec<PerformanceGoal>,
}

const SPOP: &str = "redis-spop";
const RESP_DEEPEST: &str = "hotpool, RESP, 1 024 in flight";
const STREAMS_DEEPEST: &str = "hotpool, gRPC streams, 1 024 in flight";
const BARE_STREAMS_DEEPEST: &str = "bare gRPC streams, 1 024 in flight";

/// Comparison of what is on the disk before it is answered.
struct DiskComparison {
    contest: WorkloadComparison,
    /// Median time of one write and one sync of [`BARE_WRITE_BYTES`] to a file whose bytes are on the disk, in microseconds.
    bare_p50_us: f64,
}

/// Size of a bare write, about that of a claim's record, in bytes.
const BARE_WRITE_BYTES: usize = 300;
/// Number of bare writes before and after the contest.
const BARE_WRITES: usize = 2_000;

/// Endpoints of the service and of the cluster that it stores to.
struct ComparedEndpoints {
    service: ServiceProcess,
    /// Masters of the cluster as `HOST:PORT`.
    masters: Vec<String>,
}

impl ComparedEndpoints {
    fn resp(&self) -> Result<TargetUrl> {
        parse_url(format!("resp://{}?http={}", self.service.resp, self.service.http))
    }

    /// URL of the HTTP listener, which also serves gRPC.
    fn http(&self, scheme: &str) -> Result<TargetUrl> {
        parse_url(format!("{scheme}://{}", self.service.http))
    }

    fn redis(&self, scheme: &str, query: &str) -> Result<TargetUrl> {
        parse_url(format!("{scheme}://{}{query}", self.masters.join(",")))
    }
}

fn parse_url(url: String) -> Result<TargetUrl> {
    url.parse().map_err(anyhow::Error::msg)
}

/// Runs all contests and the sweep.
///
/// # Errors
/// Fails if a server or a run cannot be started.
pub async fn compare(args: &CompareArgs, stop: &Arc<StopSignal>) -> Result<ComparisonReport> {
    let own = match args.redis.is_empty() {
        true => Some(TestCluster::start(3).await.context("cannot start a Redis Cluster")?),
        false => None,
    };
    let masters = own.as_ref().map_or(&args.redis, |cluster| &cluster.hosts).clone();
    let service = ServiceProcess::start(&format!("redis-cluster://{}", masters.join(","))).await?;
    let endpoints = ComparedEndpoints { service, masters };
    let durable = compare_on_disk(args, stop).await?;
    let pairs = compare_pairs(args, &endpoints, stop).await?;
    let burst = compare_bursts(args, &endpoints, stop).await?;
    let sweep_args = SweepArgs {
        target: endpoints.resp()?,
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
    let knee = sweep(&sweep_args, stop).await?;
    anyhow::ensure!(!stop.is_requested(), "interrupted");
    let half_knee = match knee.knee_per_s {
        rate if rate > 0.0 => Some(run_at_rate(&sweep_args, rate / 2.0, args.turn_s * 2.0, stop).await?),
        _ => None,
    };
    let promises = tables::promises(&durable, &pairs, &burst, half_knee.as_ref());
    Ok(ComparisonReport {
        command: "compare",
        parameters: args.clone(),
        machine: MachineSpec::detect(),
        contests: vec![durable.contest, pairs, burst],
        knee,
        half_knee,
        promises,
    })
}

const fn entry(
    name: &'static str,
    url: TargetUrl,
    (clients, in_flight): (usize, usize),
    operation: LoadOperation,
) -> ComparedTarget {
    ComparedTarget { name, url, clients, in_flight, operation, limit: None }
}

/// Compares claims and releases that are on the disk before they are answered: Hotpool on its embedded store beside a table in
/// PostgreSQL.
async fn compare_on_disk(args: &CompareArgs, stop: &Arc<StopSignal>) -> Result<DiskComparison> {
    let postgres = PostgresServer::start().await.context("cannot start PostgreSQL")?;
    let data = tempfile::TempDir::new()?;
    let service = ServiceProcess::start_with(&["--store", &format!("file:{}", data.path().display())]).await?;
    let one = LoadOperation::whole_workers(1);
    let http = |scheme: &str| parse_url(format!("{scheme}://{}", service.http));
    let resp = || parse_url(format!("resp://{}?http={}", service.resp, service.http));
    let table = |setting: &str| parse_url(format!("postgres://{}?synchronous_commit={setting}", postgres.host));
    let fleet = TargetPool { workers: 2_000, slots: 0, shards: 16, ack: AckLevel::Durable };
    let bare_dir = tempfile::TempDir::new()?;
    let bare = EchoProcess::start(&fleet, Some(&bare_dir.path().join("log"))).await?;
    let entries = [
        entry("hotpool, HTTP, 1 client", http("http")?, (1, 1), one).limited_by("bare HTTP, 1 client"),
        entry("bare HTTP, 1 client", bare.url("http")?, (1, 1), one),
        entry("postgres, 1 client", table("on")?, (1, 1), one),
        entry("unsynced postgres, 1 client", table("off")?, (1, 1), one),
        entry("hotpool, HTTP, 16 clients", http("http")?, (16, 16), one).limited_by("bare HTTP, 16 clients"),
        entry("bare HTTP, 16 clients", bare.url("http")?, (16, 16), one),
        entry("hotpool, RESP, 16 clients", resp()?, (16, 16), one).limited_by("bare RESP, 16 clients"),
        entry("bare RESP, 16 clients", bare.url("resp")?, (16, 16), one),
        entry("postgres, 16 clients", table("on")?, (16, 16), one),
        entry("unsynced postgres, 16 clients", table("off")?, (16, 16), one),
        entry("hotpool, HTTP, 64 clients", http("http")?, (64, 64), one).limited_by("bare HTTP, 64 clients"),
        entry("bare HTTP, 64 clients", bare.url("http")?, (64, 64), one),
        entry("postgres, 64 clients", table("on")?, (64, 64), one),
        entry(STREAMS_DEEPEST, http("grpc-stream")?, (8, 1_024), one).limited_by(BARE_STREAMS_DEEPEST),
        entry(BARE_STREAMS_DEEPEST, bare.url("grpc-stream")?, (8, 1_024), one),
    ];
    let about = "Claims and releases on 2 000 workers, on the disk before they are answered unless the row says otherwise: \
                 Hotpool on its embedded store, a table in PostgreSQL with FOR UPDATE SKIP LOCKED, and bare servers, \
                 which write and sync as many bytes and decide nothing.";
    let mut bare_times = bare_writes(data.path())?;
    let contest = compare_targets("Durable on one disk", about, &entries, fleet, args, &[], stop).await?;
    bare_times.extend(bare_writes(data.path())?);
    let bare_p50_us = median(bare_times.iter().map(|time| time.as_secs_f64() * 1e6).collect());
    Ok(DiskComparison { contest, bare_p50_us })
}

/// Times of writes that are each followed by a sync, to a file of zeros that are on the disk.
fn bare_writes(dir: &std::path::Path) -> Result<Vec<Duration>> {
    use std::os::unix::fs::FileExt as _;
    let file = tempfile::tempfile_in(dir.parent().unwrap_or(dir))?;
    file.write_all_at(&vec![0; BARE_WRITES * BARE_WRITE_BYTES], 0)?;
    file.sync_all()?;
    let record = [0x5a; BARE_WRITE_BYTES];
    let write = |number: usize| {
        let start = std::time::Instant::now();
        file.write_all_at(&record, (number * BARE_WRITE_BYTES) as u64)?;
        file.sync_data()?;
        Ok(start.elapsed())
    };
    (0..BARE_WRITES).map(write).collect()
}

/// Compares claims followed by their releases.
async fn compare_pairs(
    args: &CompareArgs,
    endpoints: &ComparedEndpoints,
    stop: &Arc<StopSignal>,
) -> Result<WorkloadComparison> {
    let (one, many) = (LoadOperation::whole_workers(1), LoadOperation::whole_workers(64));
    let redis = |scheme| endpoints.redis(scheme, "");
    let fleet = TargetPool { workers: 2_000, slots: 0, shards: 16, ack: AckLevel::Durable };
    let bare = EchoProcess::start(&fleet, None).await?;
    let entries = [
        entry(RESP_DEEPEST, endpoints.resp()?, (8, 1_024), one).limited_by("bare RESP, 1 024 in flight"),
        entry("bare RESP, 1 024 in flight", bare.url("resp")?, (8, 1_024), one),
        entry("hotpool, RESP, batches of 64, 16 in flight", endpoints.resp()?, (8, 16), many)
            .limited_by("bare RESP, batches of 64, 16 in flight"),
        entry("bare RESP, batches of 64, 16 in flight", bare.url("resp")?, (8, 16), many),
        entry("hotpool, HTTP, 64 in flight", endpoints.http("http")?, (64, 64), one)
            .limited_by("bare HTTP, 64 in flight"),
        entry("bare HTTP, 64 in flight", bare.url("http")?, (64, 64), one),
        entry("hotpool, gRPC, 256 in flight", endpoints.http("grpc")?, (8, 256), one)
            .limited_by("bare gRPC, 256 in flight"),
        entry("bare gRPC, 256 in flight", bare.url("grpc")?, (8, 256), one),
        entry(STREAMS_DEEPEST, endpoints.http("grpc-stream")?, (8, 1_024), one).limited_by(BARE_STREAMS_DEEPEST),
        entry(BARE_STREAMS_DEEPEST, bare.url("grpc-stream")?, (8, 1_024), one),
        entry("redis-spop, 16 in flight", redis(SPOP)?, (1, 16), one),
        entry("redis-spop, 64 in flight", redis(SPOP)?, (1, 64), one),
        entry("redis-spop, 256 in flight", redis(SPOP)?, (1, 256), one),
        entry("redis-lua, 64 in flight", redis("redis-lua")?, (8, 64), one),
        entry("redis-lua, 1 024 in flight", redis("redis-lua")?, (8, 1_024), one),
        entry("redis-scan, 1 in flight", redis("redis-scan")?, (1, 1), one),
        entry("redis-scan, 16 in flight", redis("redis-scan")?, (1, 16), one),
        entry("redis-lock, 16 in flight", redis("redis-lock")?, (1, 16), one),
        entry("redis-batch, batches of 64, 4 in flight", redis("redis-batch")?, (1, 4), many),
    ];
    let about = "Claims and releases on 2 000 workers, acknowledged durably, as fast as replies arrive. Bare servers store and \
                 decide nothing.";
    compare_targets("Claims and releases", about, &entries, fleet, args, &endpoints.masters, stop).await
}

/// Compares bursts of a hundred claims for shares of workers.
async fn compare_bursts(
    args: &CompareArgs,
    endpoints: &ComparedEndpoints,
    stop: &Arc<StopSignal>,
) -> Result<WorkloadComparison> {
    let params = ClaimParams { slots: 1, ..ClaimParams::default() };
    let hundred = LoadOperation { params, ..LoadOperation::whole_workers(100) };
    let redis = |scheme, query| endpoints.redis(scheme, query);
    let fleet = TargetPool { workers: 40, slots: 10, shards: 16, ack: AckLevel::Durable };
    let bare = EchoProcess::start(&fleet, None).await?;
    let entries = [
        entry("hotpool, RESP", endpoints.resp()?, (1, 1), hundred).limited_by("bare RESP"),
        entry("bare RESP", bare.url("resp")?, (1, 1), hundred),
        entry("hotpool, HTTP", endpoints.http("http")?, (1, 1), hundred).limited_by("bare HTTP"),
        entry("bare HTTP", bare.url("http")?, (1, 1), hundred),
        entry("redis-lock, one by one", redis("redis-lock", "")?, (1, 1), hundred),
        entry("redis-lock, 100 at a time", redis("redis-lock", "?concurrent=100")?, (1, 1), hundred),
        entry("redis-batch, one worker at a time", redis("redis-batch", "")?, (1, 1), hundred),
        entry("redis-batch, eight workers at a time", redis("redis-batch", "?concurrent=8")?, (1, 1), hundred),
    ];
    let about = "A hundred claims at once on 40 workers with ten slots each, acknowledged durably: the time until all \
                 are granted.";
    compare_targets("A burst", about, &entries, fleet, args, &endpoints.masters, stop).await
}

async fn compare_targets(
    name: &'static str,
    about: &str,
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
        for index in order {
            if stop.is_requested() {
                anyhow::bail!("interrupted");
            }
            let ComparedTarget { name, url, clients, in_flight, operation, .. } = &entries[index];
            // Bare servers do not use the cluster.
            let hosts = if matches!(url, TargetUrl::Echo(_)) { &[] } else { hosts };
            let bytes_before = bytes_read(hosts).await?;
            let plan = RunPlan {
                command: "compare",
                parameters: serde_json::json!({"target": url, "in_flight": in_flight, "batch": operation.claims}),
                fleet,
                clients: *clients,
                duration: Duration::from_secs_f64(args.turn_s),
                processes: 1,
                churn: None,
                failover: None,
            };
            let report =
                run(url, None, plan, ArrivalModel::ClosedLoop(*in_flight, *operation), stop).await.context(*name)?;
            rows[index].add(report, &bytes_before, &bytes_read(hosts).await?);
        }
    }
    rows.iter_mut().for_each(ComparisonRow::summarize);
    let mut contest = WorkloadComparison { name, about: about.to_owned(), rows };
    contest.relate_to_limits();
    Ok(contest)
}

impl ComparisonRow {
    fn new(entry: &ComparedTarget) -> Self {
        Self {
            name: entry.name,
            target: entry.url.to_string(),
            in_flight: entry.in_flight,
            batch: entry.operation.claims,
            claims_per_s: 0.0,
            p50_us: 0.0,
            p99_us: 0.0,
            client_processor_us: 0.0,
            server_processor_us: 0.0,
            limit: entry.limit,
            of_limit: None,
            master_bytes: Vec::new(),
            turns: Vec::new(),
        }
    }

    fn add(&mut self, report: LoadReport, bytes_before: &[u64], bytes_after: &[u64]) {
        self.master_bytes.resize(bytes_after.len(), 0);
        for (sum, (before, after)) in self.master_bytes.iter_mut().zip(bytes_before.iter().zip(bytes_after)) {
            *sum += after.saturating_sub(*before);
        }
        self.turns.push(report);
    }

    fn summarize(&mut self) {
        let of = |figure: fn(&LoadReport) -> f64| median(self.turns.iter().map(figure).collect());
        self.claims_per_s = of(|report| report.throughput_per_s);
        self.p50_us = of(|report| report.latency_us.p50);
        self.p99_us = of(|report| report.latency_us.p99);
        self.client_processor_us = of(|report| report.client_processor_us_per_claim.unwrap_or(0.0));
        self.server_processor_us = of(|report| report.server_processor_us_per_claim.unwrap_or(0.0));
    }

    /// Colour of the target's edge.
    fn tone(&self) -> ChartTone {
        self.target.parse().map_or(ChartTone::Ink, |url: TargetUrl| url.tone())
    }

    /// Ratio of the busiest master's bytes to the mean.
    fn imbalance(&self) -> f64 {
        let mean = self.master_bytes.iter().sum::<u64>() as f64 / self.master_bytes.len().max(1) as f64;
        self.master_bytes.iter().max().map_or(0.0, |max| *max as f64 / mean.max(1.0))
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
    /// Rows whose names begin with `name`.
    fn rows_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a ComparisonRow> {
        self.rows.iter().filter(move |row| row.name.starts_with(name))
    }

    /// Relates each row that has a limit to it.
    fn relate_to_limits(&mut self) {
        let rate = |report: &LoadReport| report.throughput_per_s;
        let names: Vec<&str> = self.rows.iter().map(|row| row.name).collect();
        let is_known = |row: &ComparisonRow| row.limit.is_none_or(|limit| names.contains(&limit));
        assert!(self.rows.iter().all(is_known), "each limit is a row: {names:?}");
        let relate = |row: &ComparisonRow| {
            let limit = self.rows.iter().find(|limit| Some(limit.name) == row.limit)?;
            let pairs = row.turns.iter().zip(&limit.turns);
            let ratios: Vec<f64> = pairs.map(|(own, limit)| rate(own) / rate(limit)).collect();
            // A bare server that grants nothing limits nothing.
            ratios.iter().all(|ratio| ratio.is_finite()).then(|| median(ratios))
        };
        let related: Vec<Option<f64>> = self.rows.iter().map(relate).collect();
        self.rows.iter_mut().zip(related).for_each(|(row, of_limit)| row.of_limit = of_limit);
    }

    /// Median over the rounds of a figure of the row with this name; 0 without such a row.
    fn figure(&self, name: &str, figure: fn(&LoadReport) -> f64) -> f64 {
        median(self.rows.iter().filter(|row| row.name == name).flat_map(|row| row.turns.iter().map(figure)).collect())
    }

    /// Median over the rounds of the ratio between two groups of rows, each represented by its best row.
    fn ratio(&self, [above, below]: [&str; 2], figure: fn(&LoadReport) -> f64, best: fn(f64, f64) -> f64) -> f64 {
        let rounds = self.rows.first().map_or(0, |row| row.turns.len());
        let of = |name: &str, round: usize| {
            self.rows_named(name).map(|row| figure(&row.turns[round])).reduce(best).unwrap_or(0.0)
        };
        let ratio = |round| match of(below, round) {
            nothing if nothing <= 0.0 => 0.0,
            below => of(above, round) / below,
        };
        median((0..rounds).map(ratio).collect())
    }
}

impl ComparisonReport {
    /// Exit code: [`EXIT_VIOLATION`] if a target double-claimed or lost a worker, 1 if a turn is not complete, otherwise 0.
    /// Missed goals are not failures of the run.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let turns = || self.turns().map(|(_, turn)| turn);
        match self.knee.violated || turns().any(LoadReport::has_violations) {
            true => EXIT_VIOLATION,
            false => u8::from(turns().any(|turn| describe_problem("", turn).is_some())),
        }
    }

    /// All turns, each with the name of its entry.
    fn turns(&self) -> impl Iterator<Item = (&str, &LoadReport)> {
        let rows = self.contests.iter().flat_map(|contest| &contest.rows);
        let turns = rows.flat_map(|row| row.turns.iter().map(|turn| (row.name, turn)));
        turns.chain(self.half_knee.iter().map(|report| ("RESP at half the knee", report)))
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
            let report = |rate| LoadReport {
                throughput_per_s: rate,
                ..LoadReport::new("compare", "r", serde_json::Value::Null)
            };
            let entry = ComparedTarget {
                name,
                url: TargetUrl::Inproc,
                clients: 1,
                in_flight: 1,
                operation: LoadOperation::whole_workers(1),
                limit: (name == "a").then_some("b, 2"),
            };
            ComparisonRow { turns: rates.map(report).to_vec(), ..ComparisonRow::new(&entry) }
        };
        let rows = vec![row("a", [10.0, 30.0, 8.0]), row("b, 1", [1.0, 1.0, 1.0]), row("b, 2", [0.5, 2.0, 4.0])];
        let mut contest = WorkloadComparison { name: "x", about: String::new(), rows };
        assert_eq!(contest.ratio(["a", "b"], |report| report.throughput_per_s, f64::max), 10.0);
        contest.relate_to_limits();
        let of_limit: Vec<_> = contest.rows.iter().map(|row| row.of_limit).collect();
        assert_eq!(of_limit, [Some(15.0), None, None]);
        assert_eq!(contest.ratio(["a", "c"], |report| report.throughput_per_s, f64::max), 0.0, "no row is named c");
    }
}
