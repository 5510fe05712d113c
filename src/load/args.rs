//! Command line of the harness.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use super::compare::CompareArgs;
use super::echo::EchoArgs;
use super::pack::args::PackArgs;
use super::processes::GeneratorId;
use super::run_scenarios::RunArgs;
use super::sweep::SweepArgs;
use super::url::TargetUrl;
use hotpool::limits::{BATCH_ITEMS_MAX, SHARDS_MAX};
use hotpool::model::AckLevel;
use hotpool::server::config::StoreUrl;

/// Largest number of workers in one run.
const WORKERS_MAX: i64 = 10_000_000;
/// Largest number of clients in one run.
const CLIENTS_MAX: i64 = 10_000;
/// Largest number of generator processes in one run.
const PROCESSES_MAX: i64 = 64;
/// Default limit on outstanding requests in an open loop.
const OPEN_LOOP_IN_FLIGHT: usize = 100_000;

/// Load generator for Hotpool that checks every answer; also packs traces.
///
/// Exit code: 0 success; 2 the service granted one worker twice, lowered a fence or lost capacity; 64 invalid command
/// line; 1 any other failure: no claim was granted, requests were not answered by the end, the service was unreachable,
/// the run was interrupted, or a scenario is invalid. Requests that failed are counted, and are no failure of the run.
#[derive(Debug, Parser)]
#[command(name = "hotpool-load", version)]
pub struct HarnessArgs {
    /// Subcommand chosen on the command line.
    #[command(subcommand)]
    pub command: HarnessCommand,
}

/// Subcommands of the harness.
#[derive(Debug, Subcommand)]
pub enum HarnessCommand {
    /// Load generated from command-line options.
    #[command(flatten)]
    Load(LoadCommand),
    /// Run scenarios from files against one or more targets
    Run(RunArgs),
    /// Find the highest rate that a target sustains
    Sweep(SweepArgs),
    /// Compare the service with PostgreSQL, designs on a Redis Cluster, and bare servers, in under ten minutes
    Compare(CompareArgs),
    /// Serve bare HTTP, gRPC and RESP, which show what the edges allow on this machine: load them as `echo+http://HOST:PORT`
    Echo(EchoArgs),
    /// Pack a list of requests onto a list of workers, and report how much was allocated
    Pack(PackArgs),
}

impl HarnessCommand {
    /// Checks rules that span several options.
    ///
    /// # Errors
    /// Returns a message that names the option and its limit.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Load(load) => load.check(),
            Self::Sweep(sweep) => sweep.check(),
            Self::Pack(pack) => pack.check(),
            Self::Run(_) | Self::Compare(_) | Self::Echo(_) => Ok(()),
        }
    }

    /// File for the JSON report, if one was requested.
    #[must_use]
    pub fn report_json(&self) -> Option<&Path> {
        match self {
            Self::Pack(pack) => pack.report_json.as_deref(),
            _ => self.report()?.json.as_deref(),
        }
    }

    /// Report options; none for `pack`, which has no HTML report, and `echo`.
    #[must_use]
    pub const fn report(&self) -> Option<&ReportArgs> {
        match self {
            Self::Load(load) => Some(&load.common().report),
            Self::Run(run) => Some(&run.report),
            Self::Sweep(sweep) => Some(&sweep.report),
            Self::Compare(compare) => Some(&compare.report),
            Self::Pack(_) | Self::Echo(_) => None,
        }
    }
}

/// Subcommands that generate load.
#[derive(Debug, Subcommand)]
pub enum LoadCommand {
    /// Claim and release, as fast as replies arrive or at a fixed rate
    Bench(BenchArgs),
    /// Replay a trace of function invocations at its recorded times
    Replay(ReplayArgs),
}

impl LoadCommand {
    /// Options shared by both subcommands.
    #[must_use]
    pub const fn common(&self) -> &CommonArgs {
        match self {
            Self::Bench(bench) => &bench.common,
            Self::Replay(replay) => &replay.common,
        }
    }

    /// Checks rules that span several options.
    ///
    /// # Errors
    /// Returns a message that names the option and its limit.
    pub fn check(&self) -> Result<(), String> {
        let common = self.common();
        if !common.shards.is_power_of_two() || common.shards > SHARDS_MAX {
            return Err(format!("--shards must be a power of two from 1 to {SHARDS_MAX}"));
        }
        if common.store.is_some() && common.target != TargetUrl::Inproc {
            return Err("--store is only valid with --target inproc: a service has its own store".into());
        }
        if common.processes > 1 && common.target == TargetUrl::Inproc {
            return Err("--processes needs a service: --target inproc runs in one process".into());
        }
        if common.processes > common.clients {
            return Err("--processes must not exceed --clients: each process needs a client".into());
        }
        match self {
            Self::Bench(bench) if bench.rate.is_none() && bench.in_flight() < common.clients => {
                Err("--in-flight must be at least --clients: every client keeps one request outstanding".into())
            }
            _ => Ok(()),
        }
    }
}

/// Options shared by every load command.
#[derive(Debug, Clone, ClapArgs, Serialize)]
pub struct CommonArgs {
    /// Target: `inproc`, a scheduler in this process; `http://HOST:PORT`, `grpc://HOST:PORT`,
    /// `grpc-stream://HOST:PORT` or `resp://HOST:PORT[?http=HOST:PORT]` (default: the port below), a service;
    /// `postgres://[USER@]HOST:PORT[/DATABASE][?synchronous_commit=on|off]`, tables without Hotpool;
    /// `redis-scan://`, `redis-spop://`, `redis-lock://`, `redis-batch://` or `redis-lua://` with
    /// `HOST:PORT[,HOST:PORT...]`, a baseline without Hotpool on a Redis server or cluster (`?concurrent=N`: claims of
    /// one batch handled at a time); or `echo+` and the URL of a service, a bare server of `hotpool-load echo`
    #[arg(long, default_value = "inproc", value_name = "URL")]
    pub target: TargetUrl,
    /// Store of the in-process scheduler, as for `hotpool serve --store` [default: memory:]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreUrl>,
    /// Shards of the pool; must be a power of two
    #[arg(long, default_value_t = 16)]
    pub shards: u16,
    /// Clients: tasks in process, or kept-alive connections to a service
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=CLIENTS_MAX).map(to_usize))]
    pub clients: usize,
    /// Processes that send the load, each with its share of clients and rate. Each process checks its own grants
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=PROCESSES_MAX).map(to_usize))]
    pub processes: usize,
    /// Run and number of this process; set by the parent process
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub member: Option<GeneratorId>,
    /// Point at which the service acknowledges
    #[arg(long, value_enum, default_value = "durable")]
    pub ack: AckArg,
    /// Files to write the report to.
    #[command(flatten)]
    #[serde(skip)]
    pub report: ReportArgs,
}

/// Options for report files; the table on the terminal is always printed.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct ReportArgs {
    /// Write the report to this file as JSON
    #[arg(long = "report-json", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report to this file as one HTML page with charts
    #[arg(long = "report-html", value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write each chart to this directory as SVG
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

/// Options of the `bench` subcommand.
#[derive(Debug, Clone, ClapArgs, Serialize)]
pub struct BenchArgs {
    /// Options shared by every load command.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
    /// Workers to register in the pool
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    pub workers: u32,
    /// Requests outstanding over all clients [default: one per client; with --rate at most 100000, and requests due
    /// beyond that count as errors]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000).map(to_usize))]
    in_flight: Option<usize>,
    /// Claims in one request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=BATCH_ITEMS_MAX as i64).map(to_usize))]
    pub batch: usize,
    /// Claims per second over all clients, sent on schedule regardless of replies [default: each client sends when its
    /// reply arrives]
    #[arg(long, value_parser = parse_positive)]
    pub rate: Option<f64>,
    /// Duration of the load, in seconds
    #[arg(long, default_value_t = 10.0, value_parser = parse_positive)]
    pub duration_s: f64,
}

impl BenchArgs {
    /// Outstanding requests: the constant number without a rate, the limit with one.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.unwrap_or(if self.rate.is_some() { OPEN_LOOP_IN_FLIGHT } else { self.common.clients })
    }
}

/// Options of the `replay` subcommand.
#[derive(Debug, Clone, ClapArgs, Serialize)]
pub struct ReplayArgs {
    /// Options shared by every load command.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
    /// Trace file: CSV `t_us,func,dur_ms,mem_mb`, plain or gzip
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// Factor by which the trace is sped up
    #[arg(long, default_value_t = 1.0, value_parser = parse_positive)]
    pub speed: f64,
    /// Stop after this many seconds of the run [default: the end of the trace]
    #[arg(long, value_parser = parse_positive)]
    pub duration_s: Option<f64>,
    /// Workers to register in the pool
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    pub workers: u32,
    /// Limit on outstanding invocations; those due beyond it count as errors
    #[arg(long, default_value_t = OPEN_LOOP_IN_FLIGHT)]
    pub in_flight: usize,
}

fn to_usize(n: u32) -> usize {
    n as usize
}

/// Parses a number above zero that also fits a duration in seconds.
pub(super) fn parse_positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "must be a number".to_owned())?;
    let usable = number > 0.0 && Duration::try_from_secs_f64(number).is_ok();
    usable.then_some(number).ok_or_else(|| "must be above 0".to_owned())
}

/// Spelling of [`AckLevel`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AckArg {
    /// Once the decision is in memory
    Memory,
    /// Once the store has the record
    Durable,
}

impl From<AckArg> for AckLevel {
    fn from(ack: AckArg) -> Self {
        match ack {
            AckArg::Memory => Self::Memory,
            AckArg::Durable => Self::Durable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<HarnessCommand, String> {
        let words = std::iter::once("hotpool-load").chain(args.split_whitespace());
        let args = HarnessArgs::try_parse_from(words).map_err(|error| error.to_string())?;
        args.command.check().map(|()| args.command)
    }

    #[test]
    fn the_command_is_well_formed() {
        <HarnessArgs as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn defaults_follow_the_kind_of_loop() {
        let Ok(HarnessCommand::Load(LoadCommand::Bench(closed))) = parse("bench --clients 8") else { panic!() };
        assert_eq!((closed.in_flight(), closed.common.target.clone()), (8, TargetUrl::Inproc));
        let Ok(HarnessCommand::Load(LoadCommand::Bench(open))) = parse("bench --clients 8 --rate 1e5") else {
            panic!()
        };
        assert_eq!(open.in_flight(), OPEN_LOOP_IN_FLIGHT);
        let Ok(HarnessCommand::Load(LoadCommand::Replay(replay))) = parse("replay --trace x --target grpc://[::1]:80")
        else {
            panic!()
        };
        assert_eq!(replay.common.target.to_string(), "grpc://[::1]:80");
        assert_eq!((replay.workers, replay.common.shards), (2_000, 16));
    }

    #[test]
    fn invalid_options_are_rejected() {
        for args in [
            "",
            "bench --shards 3",
            "bench --shards 2048",
            "bench --clients 0",
            "bench --clients 64 --in-flight 8",
            "bench --batch 10001",
            "bench --rate 0",
            "bench --rate nan",
            "bench --duration-s -1",
            "bench --ack maybe",
            "bench --target https://x:1",
            "bench --target http://x:1 --store memory:",
            "bench --store file:",
            "bench --store redis://",
            "replay",
            "bench --processes 2",
            "bench --processes 2 --clients 1 --target http://x:1",
            "bench --processes 0",
            "run",
            "run --scenario x --target nothing",
            "run --scenario x --phase-s 0",
            "sweep --shards 3",
            "sweep --p99-ms 0",
            "compare --rounds 0",
            "echo --workers 0",
            "pack --nodes x",
            "pack --nodes x --requests y --policy random",
            "pack --nodes x --requests y --shards 3",
            "pack --nodes x --requests y --protocol --policy spread",
            "pack --nodes x --requests y --protocol --shards 8",
            "pack --nodes x --requests y --protocol --policy fgd --learn",
            "pack --nodes x --requests y --policy best_fit --learn",
        ] {
            assert!(parse(args).is_err(), "{args}");
        }
    }
}
