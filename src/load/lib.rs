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
pub mod ask;
pub mod baseline;
pub mod check;
pub mod client;
pub mod compare;
pub mod driver;
pub mod events;
mod grpc;
mod http;
pub mod link;
pub mod pace;
pub mod pack;
pub mod page;
pub mod picture;
mod pipe;
pub mod processes;
pub mod replay;
pub mod report;
mod resp;
pub mod run;
pub mod runs;
pub mod scenario;
mod servers;
pub mod stats;
pub mod sweep;
pub mod target;
pub mod timeline;
pub mod trace;
pub mod url;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use self::args::{BenchArgs, CommonArgs, Load, ReplayArgs};
use self::ask::Fleet;
use self::client::Call;
use self::pace::Stop;
use self::processes::{Member, Part};
use self::report::Report;
use self::run::{Drive, Plan};

/// Runs a load as the command line says.
///
/// # Errors
/// As [`run::run`], or the trace is no good.
pub async fn load(command: &Load, stop: &Arc<Stop>) -> Result<Report> {
    let (plan, drive) = planned(command)?;
    let common = command.common();
    run::run(&common.target, common.store.as_ref(), plan, drive, stop).await
}

/// The part that this process has in a load, as another one told it.
///
/// # Errors
/// As [`run::member`], or the trace is no good.
pub async fn member(command: &Load, member: &Member, stop: &Arc<Stop>) -> Result<Part> {
    let (plan, drive) = planned(command)?;
    run::member(&command.common().target, plan, drive, member, stop).await
}

fn planned(command: &Load) -> Result<(Plan, Drive)> {
    // Read it first: a trace that is no good should cost nothing.
    match command {
        Load::Bench(bench) => bench_plan(bench),
        Load::Replay(replay) => replay_plan(replay),
    }
}

/// Turns the first SIGINT or SIGTERM into a stop; the second ends the process and leaves the pool behind.
///
/// # Errors
/// The system does not tell of signals.
pub fn listen() -> Result<Arc<Stop>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let stop = Arc::new(Stop::default());
    let ask = Arc::clone(&stop);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if ask.asked() {
                std::process::exit(1);
            }
            ask.ask();
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
) -> Plan {
    let fleet = Fleet { workers, slots: 0, shards: common.shards, ack: common.ack.into() };
    Plan {
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

fn bench_plan(bench: &BenchArgs) -> Result<(Plan, Drive)> {
    let duration = Duration::from_secs_f64(bench.duration_s);
    let call = Call::plain(bench.batch);
    let drive = match bench.rate {
        None => Drive::Closed(bench.in_flight(), call),
        Some(rate) => {
            let calls = pace::steady(rate, bench.batch, duration).map(move |(at, ())| (at, call));
            Drive::Open(bench.in_flight(), Box::new(calls))
        }
    };
    Ok((plan("bench", serde_json::to_value(bench)?, &bench.common, bench.workers, duration), drive))
}

fn replay_plan(replay: &ReplayArgs) -> Result<(Plan, Drive)> {
    let trace = trace::read(&replay.trace).with_context(|| replay.trace.display().to_string())?;
    let cut = replay.duration_s.map(Duration::from_secs_f64);
    let duration = replay::length(&trace, replay.speed, cut);
    let calls = replay::schedule(trace, replay.speed, cut);
    let drive = Drive::Open(replay.in_flight, Box::new(calls));
    Ok((plan("replay", serde_json::to_value(replay)?, &replay.common, replay.workers, duration), drive))
}
