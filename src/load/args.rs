//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::TypedValueParser as _;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use super::compare::CompareArgs;
use super::pack::args::PackArgs;
use super::processes::GeneratorId;
use super::run_scenarios::RunArgs;
use super::sweep::SweepArgs;
use super::url::TargetUrl;
use hotpool::limits::{BATCH_ITEMS_MAX, SHARDS_MAX};
use hotpool::model::AckLevel;
use hotpool::server::config::StoreUrl;

/// Most workers of one run.
const WORKERS_MAX: i64 = 10_000_000;
/// Most clients of one run.
const CLIENTS_MAX: i64 = 10_000;
/// Most processes of one run.
const PROCESSES_MAX: i64 = 64;
/// Requests that an open loop lets wait, unless told otherwise.
const OPEN_LOOP_IN_FLIGHT: usize = 100_000;

/// Loads Hotpool and checks it while doing so, or packs a trace.
///
/// Exit code: 0 ok; 2 the service gave one worker to two holders, let a fence go back or lost capacity; 64 the
/// command line is wrong; 1 anything else went wrong: no claim was granted, requests were left unanswered, the
/// service could not be reached, the run was interrupted, or a scenario is wrong.
#[derive(Debug, Parser)]
#[command(name = "hotpool-load", version)]
pub struct HarnessArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: HarnessCommand,
}

/// What the harness can do.
#[derive(Debug, Subcommand)]
pub enum HarnessCommand {
    /// Load a service.
    #[command(flatten)]
    Load(LoadCommand),
    /// Carries out scenarios from files on one or more targets
    Run(RunArgs),
    /// Finds the highest rate that a target sustains
    Sweep(SweepArgs),
    /// Compares the service with what people do without it, on a Redis Cluster, in under ten minutes
    Compare(CompareArgs),
    /// Packs a list of requests onto a list of workers, and tells how much was allocated
    Pack(PackArgs),
}

impl HarnessCommand {
    /// Checks what depends on more than one option.
    ///
    /// # Errors
    /// What is wrong, for the user.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Load(load) => load.check(),
            Self::Sweep(sweep) => sweep.check(),
            Self::Pack(pack) => pack.check(),
            Self::Run(_) | Self::Compare(_) => Ok(()),
        }
    }

    /// Where the report goes as JSON.
    #[must_use]
    pub fn report_json(&self) -> Option<&Path> {
        match self {
            Self::Pack(pack) => pack.report_json.as_deref(),
            _ => self.report()?.json.as_deref(),
        }
    }

    /// Where the report goes as one page with pictures.
    #[must_use]
    pub fn report_html(&self) -> Option<&Path> {
        self.report()?.html.as_deref()
    }

    /// None: it has no pictures.
    const fn report(&self) -> Option<&ReportArgs> {
        match self {
            Self::Load(load) => Some(&load.common().report),
            Self::Run(run) => Some(&run.report),
            Self::Sweep(sweep) => Some(&sweep.report),
            Self::Compare(compare) => Some(&compare.report),
            Self::Pack(_) => None,
        }
    }
}

/// The kinds of load.
#[derive(Debug, Subcommand)]
pub enum LoadCommand {
    /// Claims and releases, as fast as the answers come or at a given rate
    Bench(BenchArgs),
    /// Replays a trace of function invocations at the times it says
    Replay(ReplayArgs),
}

impl LoadCommand {
    /// What both kinds have in common.
    #[must_use]
    pub const fn common(&self) -> &CommonArgs {
        match self {
            Self::Bench(bench) => &bench.common,
            Self::Replay(replay) => &replay.common,
        }
    }

    /// Checks what depends on more than one option.
    ///
    /// # Errors
    /// What is wrong, for the user.
    pub fn check(&self) -> Result<(), String> {
        let common = self.common();
        if !common.shards.is_power_of_two() || common.shards > SHARDS_MAX {
            return Err(format!("--shards must be a power of two, 1..={SHARDS_MAX}"));
        }
        if common.store.is_some() && common.target != TargetUrl::Inproc {
            return Err("--store is for --target inproc: a service has its own".into());
        }
        if common.processes > 1 && common.target == TargetUrl::Inproc {
            return Err("--processes is for services: a scheduler in this process has no other".into());
        }
        if common.processes > common.clients {
            return Err("--processes must not be above --clients: each has at least one".into());
        }
        match self {
            Self::Bench(bench) if bench.rate.is_none() && bench.in_flight() < common.clients => {
                Err("--in-flight must be at least --clients: every client keeps one request outstanding".into())
            }
            _ => Ok(()),
        }
    }
}

/// Options of every command.
#[derive(Debug, Clone, ClapArgs, Serialize)]
pub struct CommonArgs {
    /// What to load: `inproc`, a scheduler in this process; `http://HOST:PORT`, `grpc://HOST:PORT`, `grpc-stream://HOST:PORT`
    /// or `resp://HOST:PORT[?http=HOST:PORT]` (the port below, unless said), a service; `redis-scan://`, `redis-spop://`,
    /// `redis-lock://`, `redis-batch://` or `redis-lua://` with `HOST:PORT[,HOST:PORT...]`, what people do without one, on a Redis
    /// server or cluster (`?concurrent=N`: how many claims of one batch at the same time)
    #[arg(long, default_value = "inproc", value_name = "URL")]
    pub target: TargetUrl,
    /// Store of the scheduler in this process, as `hotpool serve --store` takes it [default: memory:]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreUrl>,
    /// Shards of the pool: a power of two
    #[arg(long, default_value_t = 16)]
    pub shards: u16,
    /// Clients: tasks in this process, kept-open connections to a service
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=CLIENTS_MAX).map(to_usize))]
    pub clients: usize,
    /// Processes that send the load, each with its share of clients and rate. Each checks the grants that it was given itself
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=PROCESSES_MAX).map(to_usize))]
    pub processes: usize,
    /// The place of this process among them; they are started so
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub member: Option<GeneratorId>,
    /// When the service answers
    #[arg(long, value_enum, default_value = "durable")]
    pub ack: AckArg,
    /// Where the report goes.
    #[command(flatten)]
    #[serde(skip)]
    pub report: ReportArgs,
}

/// Where a report goes, beside the terminal.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct ReportArgs {
    /// Writes the report to this file, as JSON
    #[arg(long = "report-json", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes it to this file, as one page with pictures
    #[arg(long = "report-html", value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Options of `bench`.
#[derive(Debug, Clone, ClapArgs, Serialize)]
pub struct BenchArgs {
    /// Options of every command.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
    /// Workers to register
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    pub workers: u32,
    /// Requests outstanding over all clients [default: one a client; with --rate at most 100000, and what is due
    /// beyond that is an error]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000).map(to_usize))]
    in_flight: Option<usize>,
    /// Claims in one request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=BATCH_ITEMS_MAX as i64).map(to_usize))]
    pub batch: usize,
    /// Claims per second over all clients, sent on time whatever the answers do [default: each client sends when
    /// its answer is there]
    #[arg(long, value_parser = parse_positive)]
    pub rate: Option<f64>,
    /// How long to send, in seconds
    #[arg(long, default_value_t = 10.0, value_parser = parse_positive)]
    pub duration_s: f64,
}

impl BenchArgs {
    /// Requests outstanding: kept so without a rate, at most so with one.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.unwrap_or(if self.rate.is_some() { OPEN_LOOP_IN_FLIGHT } else { self.common.clients })
    }
}

/// Options of `replay`.
#[derive(Debug, Clone, ClapArgs, Serialize)]
pub struct ReplayArgs {
    /// Options of every command.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
    /// The trace: CSV `t_us,func,dur_ms,mem_mb`, plain or gzip
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// How many times faster than it happened
    #[arg(long, default_value_t = 1.0, value_parser = parse_positive)]
    pub speed: f64,
    /// Ends after so many seconds of this run [default: with the trace]
    #[arg(long, value_parser = parse_positive)]
    pub duration_s: Option<f64>,
    /// Workers to register
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=WORKERS_MAX))]
    pub workers: u32,
    /// Invocations that may be under way; what is due beyond that is an error
    #[arg(long, default_value_t = OPEN_LOOP_IN_FLIGHT)]
    pub in_flight: usize,
}

fn to_usize(n: u32) -> usize {
    n as usize
}

/// A number above zero that is also a duration's worth of seconds.
pub(super) fn parse_positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "must be a number".to_owned())?;
    let usable = number > 0.0 && Duration::try_from_secs_f64(number).is_ok();
    usable.then_some(number).ok_or_else(|| "must be above 0".to_owned())
}

/// [`AckLevel`] as the command line spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AckArg {
    /// At once
    Memory,
    /// After the store has it
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

    fn parse(line: &str) -> Result<HarnessCommand, String> {
        let words = std::iter::once("hotpool-load").chain(line.split_whitespace());
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
    fn what_is_wrong_is_refused() {
        for line in [
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
            "bench --store redb:",
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
            "pack --nodes x",
            "pack --nodes x --requests y --policy random",
            "pack --nodes x --requests y --shards 3",
            "pack --nodes x --requests y --protocol --policy spread",
            "pack --nodes x --requests y --protocol --shards 8",
            "pack --nodes x --requests y --protocol --policy fgd --learn",
            "pack --nodes x --requests y --policy best_fit --learn",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
