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
pub mod driver;
mod grpc;
mod http;
pub mod link;
pub mod pace;
pub mod pack;
mod pipe;
pub mod replay;
pub mod report;
mod resp;
pub mod run;
pub mod stats;
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
use self::report::Report;
use self::run::{Drive, Plan};

/// Runs a load as the command line says.
///
/// # Errors
/// As [`run::run`], or the trace is no good.
pub async fn load(command: &Load) -> Result<Report> {
    // Read it first: a trace that is no good should cost nothing.
    let plan = match command {
        Load::Bench(bench) => bench_plan(bench)?,
        Load::Replay(replay) => replay_plan(replay)?,
    };
    let stop = listen()?;
    let common = command.common();
    run::run(&common.target, common.store.as_ref(), plan, &stop).await
}

/// Turns the first SIGINT or SIGTERM into a stop; the second ends the process and leaves the pool behind.
fn listen() -> Result<Arc<Stop>> {
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

fn fleet(common: &CommonArgs, workers: u32) -> Fleet {
    Fleet { workers, slots: 0, shards: common.shards, ack: common.ack.into() }
}

fn bench_plan(bench: &BenchArgs) -> Result<Plan> {
    let duration = Duration::from_secs_f64(bench.duration_s);
    let call = Call::plain(bench.batch);
    let drive = match bench.rate {
        None => Drive::Closed(bench.in_flight(), call),
        Some(rate) => {
            let calls = pace::steady(rate, bench.batch, duration).map(move |(at, ())| (at, call));
            Drive::Open(bench.in_flight(), Box::new(calls))
        }
    };
    Ok(Plan {
        command: "bench",
        parameters: serde_json::to_value(bench)?,
        fleet: fleet(&bench.common, bench.workers),
        clients: bench.common.clients,
        drive,
        duration,
    })
}

fn replay_plan(replay: &ReplayArgs) -> Result<Plan> {
    let trace = trace::read(&replay.trace).with_context(|| replay.trace.display().to_string())?;
    let cut = replay.duration_s.map(Duration::from_secs_f64);
    let duration = replay::length(&trace, replay.speed, cut);
    let calls = replay::schedule(trace, replay.speed, cut);
    Ok(Plan {
        command: "replay",
        parameters: serde_json::to_value(replay)?,
        fleet: fleet(&replay.common, replay.workers),
        clients: replay.common.clients,
        drive: Drive::Open(replay.in_flight, Box::new(calls)),
        duration,
    })
}
