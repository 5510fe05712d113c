//! The load harness: loads a scheduler or a service, and checks it while doing so. Beside it stands [`pack`], which needs
//! neither.
//!
//! ```text
//! args -> run -> target (inproc | http + wire | grpc | resp + pipe) : a pool of this run, with workers
//!         -> driver (closed | open by pace) -> client -> target
//!                                                        +-> check, stats
//!         -> settle what is in doubt, ask what is left -> report, exit code
//! ```
//!
//! The harness runs beside what it measures, so it keeps out of the way: per claim one key, two clock readings (the
//! answer to a claim is the sending of its release, and in a closed loop the answer to a release is the sending of
//! the next claim), two atomic operations on the worker's slot, and twice a lock that only the lanes of one client
//! share. Every request is timed; none is sampled.

// This is a program, not the engine: it reads clocks and guards its counts with locks.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod args;
pub mod check;
pub mod client;
pub mod driver;
mod grpc;
mod http;
pub mod pace;
pub mod pack;
mod pipe;
pub mod replay;
pub mod report;
mod resp;
pub mod stats;
pub mod target;
pub mod trace;
pub mod url;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use self::args::{BenchArgs, Load, ReplayArgs};
use self::check::Check;
use self::client::Client;
use self::driver::Driver;
use self::pace::Stop;
use self::report::Report;
use self::stats::Stats;
use self::target::Target;
use crate::limits::BATCH_ITEMS_MAX;

/// How long the service may take to show everything idle after the last release was answered, and how long claims
/// in doubt are pursued.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks at the pool.
const SETTLE_EVERY: Duration = Duration::from_millis(100);

/// Runs a load as the command line says, and removes its pool whatever happens.
///
/// # Errors
/// The run could not be made at all: nothing was measured. What goes wrong later is in the report.
pub async fn run(command: &Load) -> Result<Report> {
    // Read it first: a trace that is no good should cost nothing.
    let trace = match command {
        Load::Bench(_) => Vec::new(),
        Load::Replay(replay) => trace::read(&replay.trace).with_context(|| replay.trace.display().to_string())?,
    };
    let stop = Arc::new(Stop::default());
    listen(Arc::clone(&stop))?;

    // Time first, so that pools sort by age; the end is random.
    let run = uuid::Uuid::now_v7().simple().to_string();
    let target = Target::open(command.common(), &run).await?;
    let measured = measured(&target, command, trace, &run, &stop).await;
    let removed = target.remove().await.with_context(|| format!("the pool load/{run} was not removed"));
    target.close().await;
    let mut report = measured?;
    report.interrupted = stop.asked();
    report.failures.extend(removed.err().map(|error| format!("{error:#}")));
    Ok(report)
}

/// Turns the first SIGINT or SIGTERM into a stop; the second ends the process and leaves the pool behind.
fn listen(stop: Arc<Stop>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.asked() {
                std::process::exit(1);
            }
            stop.ask();
        }
    });
    Ok(())
}

async fn measured(
    target: &Target,
    command: &Load,
    trace: Vec<trace::Invocation>,
    run: &str,
    stop: &Arc<Stop>,
) -> Result<Report> {
    let common = command.common();
    let workers = command.workers();
    target.create(common).await.context("cannot make the pool")?;
    for first in (0..workers).step_by(BATCH_ITEMS_MAX) {
        if stop.asked() {
            bail!("interrupted while workers were registered");
        }
        let last = first.saturating_add(BATCH_ITEMS_MAX as u32).min(workers);
        target.register(first..last).await.context("cannot register the workers")?;
    }

    let check = Arc::new(Check::new(workers));
    let mut clients = Vec::with_capacity(common.clients);
    // The random end of the run's name is enough to keep its keys apart, and short keys are cheap.
    let tail = &run[run.len() - 12..];
    for client in 0..common.clients {
        let link = target.link(command.multiplexed()).await?;
        clients.push(Arc::new(Client::new(link, Arc::clone(&check), format!("{tail}.{client}."))));
    }
    let driver = Driver::new(clients, Arc::clone(stop));

    let start = Instant::now();
    let (name, parameters, outcome) = match command {
        Load::Bench(bench) => ("bench", serde_json::to_value(bench)?, drive_bench(&driver, bench, start).await),
        Load::Replay(replay) => {
            ("replay", serde_json::to_value(replay)?, drive_replay(&driver, replay, trace, start).await)
        }
    };
    let mut stats = Stats::default();
    for client in &driver.clients {
        stats.merge(std::mem::take(&mut client.stats()));
    }
    let mut report = Report::new(name, run, parameters);
    let elapsed = stats.last.map_or(Duration::ZERO, |last| last - start);
    report.count(&stats, elapsed, matches!(command, Load::Replay(_)));
    report.faults = check.faults();
    match outcome {
        Ok(pacing) => report.pacing_us = pacing.as_ref().map(report::Latency::of),
        // Requests are still under way: what they hold is not leaked.
        Err(error) => {
            report.failures.push(format!("{error:#}"));
            return Ok(report);
        }
    }
    report.doubts_settled = settle(&driver.clients[0], stats.doubts).await;
    match left(target, workers).await {
        Ok(leaked) => report.leaked = Some(leaked),
        Err(error) => report.failures.push(format!("the pool could not be checked: {error:#}")),
    }
    Ok(report)
}

type Driven = Result<Option<hdrhistogram::Histogram<u64>>>;

async fn drive_bench(driver: &Driver, bench: &BenchArgs, start: Instant) -> Driven {
    let duration = Duration::from_secs_f64(bench.duration_s);
    let (in_flight, batch) = (bench.in_flight(), bench.batch);
    let Some(rate) = bench.rate else {
        return driver.closed(start, duration, in_flight, batch).await.map(|()| None);
    };
    let call = move |client: Arc<Client>, due, ()| async move {
        client.round(due, batch, &mut String::new()).await;
    };
    let schedule = pace::steady(rate, batch, duration);
    driver.open(start, duration, schedule, (in_flight, batch as u64), call).await.map(Some)
}

async fn drive_replay(driver: &Driver, replay: &ReplayArgs, trace: Vec<trace::Invocation>, start: Instant) -> Driven {
    let cut = replay.duration_s.map(Duration::from_secs_f64);
    let duration = replay::length(&trace, replay.speed, cut);
    let stop = Arc::clone(&driver.stop);
    let call = move |client, due, call| replay::run(client, Arc::clone(&stop), due, call, start + duration);
    let schedule = replay::schedule(trace, replay.speed, cut);
    driver.open(start, duration, schedule, (replay.in_flight, 1), call).await.map(Some)
}

/// Ends claims that may still be held: how a request ended that got no clear answer is not the service's leak.
async fn settle(client: &Client, mut doubts: Vec<stats::Doubt>) -> u64 {
    let until = Instant::now() + SETTLE_MAX;
    let mut settled = 0;
    while !doubts.is_empty() && Instant::now() < until {
        let mut open = Vec::new();
        for (id, fence) in doubts {
            if Instant::now() < until && client.settle(&id, fence).await {
                settled += 1;
            } else {
                open.push((id, fence));
            }
        }
        doubts = open;
        if !doubts.is_empty() {
            tokio::time::sleep(SETTLE_EVERY).await;
        }
    }
    settled
}

/// Capacity that is missing although nothing is held, once the pool has had time to show it.
async fn left(target: &Target, workers: u32) -> Result<u64> {
    let until = Instant::now() + SETTLE_MAX;
    loop {
        let leaked = report::leaked(workers, target.counts().await?, target.claims().await?);
        if leaked == 0 || Instant::now() > until {
            return Ok(leaked);
        }
        tokio::time::sleep(SETTLE_EVERY).await;
    }
}
