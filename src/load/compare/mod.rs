//! `compare`: measures Hotpool and the baselines on one machine, one Redis Cluster and one disk, in one run of minutes.
//!
//! Entries of a contest run round robin, in the opposite order in every other round, because the speed of a shared
//! machine varies. Each figure is the median of the rounds, and each ratio the median of the rounds' ratios. Every
//! entry is checked like any other run.

mod contest;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

pub use self::contest::{ComparisonRow, WorkloadComparison};
use self::contest::{compare_targets, entry, median};
use super::args::{AckArg, ReportArgs, parse_positive};
use super::claim_input::{ClaimParams, TargetPool};
use super::load_client::LoadOperation;
use super::pacing::StopSignal;
use super::report::{EXIT_VIOLATION, LoadReport, MachineSpec};
use super::run_report::describe_problem;
use super::servers::{EchoProcess, PostgresServer, ServiceProcess, TestCluster};
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
