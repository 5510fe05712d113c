//! Load generator: drives a scheduler or a service, and checks every answer meanwhile. [`pack`] is separate: it packs
//! a trace and needs neither.
//!
//! ```text
//! args -> plan -> run -> target (inproc | http | grpc | resp | baseline): a pool of this run, with workers
//!                     -> driver (closed loop | open loop with pacing) -> load client -> target client
//!                                     +-> timeline                          +-> grant checker, stats
//!                     -> resolve doubtful claims, count leaked workers -> report, exit code
//! ```
//!
//! The harness shares the machine with its target, so it stays cheap. A claim costs one key, two clock readings (the
//! reply to a claim is also the start of its release; in a closed loop the reply to a release is also the start of the
//! next claim), two atomic operations on the worker's slot, and two locks that only the requests of one client share.
//! Every request is timed; none is sampled.

// Programs may read clocks and guard counters with locks; the lints are for the engine.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod args;
pub mod baseline;
pub mod charts;
pub mod claim_input;
pub mod compare;
pub mod disruptions;
pub mod driver;
pub mod echo;
pub mod grant_checker;
mod grpc;
pub mod html_report;
mod http;
mod http_calls;
pub mod load_client;
pub mod pacing;
pub mod pack;
pub mod postgres;
pub mod processes;
pub mod processor;
pub mod replay;
pub mod report;
mod resp;
mod resp_pipeline;
pub mod run;
pub mod run_report;
pub mod run_scenarios;
pub mod scenario;
pub mod servers;
pub mod stats;
pub mod sweep;
pub mod target;
pub mod target_client;
pub mod terminal;
pub mod timeline;
pub mod trace;
pub mod url;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use self::args::{BenchArgs, CommonArgs, LoadCommand, ReplayArgs};
use self::claim_input::TargetPool;
use self::load_client::LoadOperation;
use self::pacing::StopSignal;
use self::processes::{GeneratorId, GeneratorReport};
use self::report::LoadReport;
use self::run::{ArrivalModel, RunPlan};

/// Runs the load that the command line describes.
///
/// # Errors
/// Fails like [`run::run`], or if the trace cannot be read.
pub async fn run_load(command: &LoadCommand, stop: &Arc<StopSignal>) -> Result<LoadReport> {
    let (plan, arrivals) = plan_command(command)?;
    let common = command.common();
    run::run(&common.target, common.store.as_ref(), plan, arrivals, stop).await
}

/// Runs the share of a load that another process assigned to this one.
///
/// # Errors
/// Fails like [`run::run_generator`], or if the trace cannot be read.
pub async fn run_generator(
    command: &LoadCommand,
    member: &GeneratorId,
    stop: &Arc<StopSignal>,
) -> Result<GeneratorReport> {
    let (plan, arrivals) = plan_command(command)?;
    run::run_generator(&command.common().target, plan, arrivals, member, stop).await
}

fn plan_command(command: &LoadCommand) -> Result<(RunPlan, ArrivalModel)> {
    // Traces are read first, so that an unusable one fails before anything is created.
    match command {
        LoadCommand::Bench(bench) => bench_plan(bench),
        LoadCommand::Replay(replay) => replay_plan(replay),
    }
}

/// Turns the first SIGINT or SIGTERM into a graceful stop. A second one exits at once and leaves the pool behind.
///
/// # Errors
/// Fails if signal handlers cannot be installed.
pub fn stop_on_signal() -> Result<Arc<StopSignal>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let stop = Arc::new(StopSignal::default());
    let raised = Arc::clone(&stop);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if raised.is_requested() {
                std::process::exit(1);
            }
            raised.request();
        }
    });
    Ok(stop)
}

fn plan(
    command: &'static str,
    parameters: serde_json::Value,
    common: &CommonArgs,
    workers: u32,
    duration: Duration,
) -> RunPlan {
    let fleet = TargetPool { workers, slots: 0, shards: common.shards, ack: common.ack.into() };
    RunPlan {
        command,
        parameters,
        fleet,
        clients: common.clients,
        duration,
        processes: common.processes,
        churn: None,
        failover: None,
    }
}

fn bench_plan(bench: &BenchArgs) -> Result<(RunPlan, ArrivalModel)> {
    let duration = Duration::from_secs_f64(bench.duration_s);
    let operation = LoadOperation::whole_workers(bench.batch);
    let arrivals = match bench.rate {
        None => ArrivalModel::ClosedLoop(bench.in_flight(), operation),
        Some(rate) => {
            let operations = pacing::steady_schedule(rate, bench.batch, duration).map(move |(at, ())| (at, operation));
            ArrivalModel::OpenLoop(bench.in_flight(), Box::new(operations))
        }
    };
    Ok((plan("bench", serde_json::to_value(bench)?, &bench.common, bench.workers, duration), arrivals))
}

fn replay_plan(replay: &ReplayArgs) -> Result<(RunPlan, ArrivalModel)> {
    let trace = trace::read(&replay.trace).with_context(|| replay.trace.display().to_string())?;
    let limit = replay.duration_s.map(Duration::from_secs_f64);
    let duration = replay::replay_duration(&trace, replay.speed, limit);
    let operations = replay::schedule(trace, replay.speed, limit);
    let arrivals = ArrivalModel::OpenLoop(replay.in_flight, Box::new(operations));
    Ok((plan("replay", serde_json::to_value(replay)?, &replay.common, replay.workers, duration), arrivals))
}
