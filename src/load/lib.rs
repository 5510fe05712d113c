//! The load harness: loads a scheduler or a service, and checks it while doing so. Beside it stands [`pack`], which needs
//! neither.
//!
//! ```text
//! args -> plan -> run -> target (inproc | http + wire | grpc | resp + pipe | baseline) : a pool of this run, with workers
//!                     -> driver (closed | open by pace) -> client -> link
//!                                     +-> timeline           +-> check, stats
//!                     -> settle what is in doubt, ask what is left -> report, exit code
//! ```
//!
//! The harness runs beside what it measures, so it keeps out of the way: per claim one key, two clock readings (the
//! answer to a claim is the sending of its release, and in a closed loop the answer to a release is the sending of
//! the next claim), two atomic operations on the worker's slot, and twice a lock that only the lanes of one client
//! share. Every request is timed; none is sampled.

// This is a program, not the engine: it reads clocks and guards its counts with locks.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod args;
pub mod baseline;
pub mod charts;
pub mod claim_input;
pub mod compare;
pub mod disruptions;
pub mod driver;
pub mod grant_checker;
mod grpc;
pub mod html_report;
mod http;
mod http_calls;
pub mod load_client;
pub mod pacing;
pub mod pack;
pub mod processes;
pub mod replay;
pub mod report;
mod resp;
mod resp_pipeline;
pub mod run;
pub mod run_scenarios;
pub mod scenario;
mod servers;
pub mod stats;
pub mod sweep;
pub mod target;
pub mod target_client;
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

/// Runs a load as the command line says.
///
/// # Errors
/// As [`run::run`], or the trace is no good.
pub async fn run_load(command: &LoadCommand, stop: &Arc<StopSignal>) -> Result<LoadReport> {
    let (plan, drive) = plan_command(command)?;
    let common = command.common();
    run::run(&common.target, common.store.as_ref(), plan, drive, stop).await
}

/// The part that this process has in a load, as another one told it.
///
/// # Errors
/// As [`run::member`], or the trace is no good.
pub async fn run_generator(
    command: &LoadCommand,
    member: &GeneratorId,
    stop: &Arc<StopSignal>,
) -> Result<GeneratorReport> {
    let (plan, drive) = plan_command(command)?;
    run::run_generator(&command.common().target, plan, drive, member, stop).await
}

fn plan_command(command: &LoadCommand) -> Result<(RunPlan, ArrivalModel)> {
    // Read it first: a trace that is no good should cost nothing.
    match command {
        LoadCommand::Bench(bench) => bench_plan(bench),
        LoadCommand::Replay(replay) => replay_plan(replay),
    }
}

/// Turns the first SIGINT or SIGTERM into a stop; the second ends the process and leaves the pool behind.
///
/// # Errors
/// The system does not tell of signals.
pub fn stop_on_signal() -> Result<Arc<StopSignal>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let stop = Arc::new(StopSignal::default());
    let ask = Arc::clone(&stop);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if ask.is_requested() {
                std::process::exit(1);
            }
            ask.request();
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
    let call = LoadOperation::whole_workers(bench.batch);
    let drive = match bench.rate {
        None => ArrivalModel::ClosedLoop(bench.in_flight(), call),
        Some(rate) => {
            let calls = pacing::steady_schedule(rate, bench.batch, duration).map(move |(at, ())| (at, call));
            ArrivalModel::OpenLoop(bench.in_flight(), Box::new(calls))
        }
    };
    Ok((plan("bench", serde_json::to_value(bench)?, &bench.common, bench.workers, duration), drive))
}

fn replay_plan(replay: &ReplayArgs) -> Result<(RunPlan, ArrivalModel)> {
    let trace = trace::read(&replay.trace).with_context(|| replay.trace.display().to_string())?;
    let cut = replay.duration_s.map(Duration::from_secs_f64);
    let duration = replay::replay_duration(&trace, replay.speed, cut);
    let calls = replay::schedule(trace, replay.speed, cut);
    let drive = ArrivalModel::OpenLoop(replay.in_flight, Box::new(calls));
    Ok((plan("replay", serde_json::to_value(replay)?, &replay.common, replay.workers, duration), drive))
}
