//! One run: a pool on a target, workers, the load, and what is left afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::ask::Fleet;
use super::check::Check;
use super::client::{Call, Client};
use super::driver::Driver;
use super::pace::Stop;
use super::report::{self, Report};
use super::stats::{self, Stats};
use super::target::{Target, run_tag};
use super::timeline::Timeline;
use super::url::TargetUrl;
use crate::config::StoreUrl;
use crate::limits::BATCH_ITEMS_MAX;

/// How long the service may take to show everything idle after the last release was answered, and how long claims
/// in doubt are pursued.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks at the pool.
const SETTLE_EVERY: Duration = Duration::from_millis(100);

/// What a run does.
pub struct Plan {
    /// `bench`, `replay` or `run`.
    pub command: &'static str,
    /// What is said of it in the report.
    pub parameters: serde_json::Value,
    /// The pool.
    pub fleet: Fleet,
    /// Clients.
    pub clients: usize,
    /// The load.
    pub drive: Drive,
    /// How long it lasts.
    pub duration: Duration,
}

/// When calls are made.
pub enum Drive {
    /// When the last answer is there, with so many outstanding.
    Closed(usize, Call),
    /// At these times, with at most so many outstanding.
    Open(usize, Box<dyn Iterator<Item = (Duration, Call)> + Send>),
}

impl Plan {
    /// True if several requests may be outstanding on one connection.
    fn multiplexed(&self) -> bool {
        match self.drive {
            Drive::Closed(in_flight, _) => in_flight > self.clients,
            Drive::Open(..) => true,
        }
    }
}

/// Carries out a plan, and removes its pool whatever happens. `store`: of a scheduler in this process.
///
/// # Errors
/// The run could not be made at all: nothing was measured. What goes wrong later is in the report.
pub async fn run(url: &TargetUrl, store: Option<&StoreUrl>, plan: Plan, stop: &Arc<Stop>) -> Result<Report> {
    // Time first, so that pools sort by age; the end is random.
    let run = uuid::Uuid::now_v7().simple().to_string();
    let target = Target::open(url, store, &run).await?;
    let measured = measured(&target, plan, &run, stop).await;
    let removed = target.remove().await.with_context(|| format!("the pool load/{run} was not removed"));
    target.close().await;
    let mut report = measured?;
    report.interrupted = stop.asked();
    report.failures.extend(removed.err().map(|error| format!("{error:#}")));
    Ok(report)
}

async fn measured(target: &Target, plan: Plan, run: &str, stop: &Arc<Stop>) -> Result<Report> {
    let Fleet { workers, slots, .. } = plan.fleet;
    target.create(&plan.fleet).await.context("cannot make the pool")?;
    for first in (0..workers).step_by(BATCH_ITEMS_MAX) {
        if stop.asked() {
            bail!("interrupted while workers were registered");
        }
        let last = first.saturating_add(BATCH_ITEMS_MAX as u32).min(workers);
        target.register(first..last, slots).await.context("cannot register the workers")?;
    }

    let check = Arc::new(Check::new(workers, slots));
    let mut clients = Vec::with_capacity(plan.clients);
    for client in 0..plan.clients {
        let link = target.link(plan.multiplexed()).await?;
        clients.push(Arc::new(Client::new(link, Arc::clone(&check), format!("{}.{client}.", run_tag(run)))));
    }
    let driver = Driver::new(clients, Arc::clone(stop));

    let start = Instant::now();
    let mut timeline = Timeline::new(start, plan.duration, plan.clients, false);
    let span = (start, plan.duration);
    let outcome = match plan.drive {
        Drive::Closed(in_flight, call) => driver.closed(span, in_flight, call, &mut timeline).await.map(|()| None),
        Drive::Open(in_flight, calls) => driver.open(span, calls, in_flight, &mut timeline).await.map(Some),
    };
    timeline.end(Instant::now(), &driver.clients);
    let mut stats = Stats::default();
    for client in &driver.clients {
        stats.merge(std::mem::take(&mut client.stats()));
    }
    stats.claims = timeline.total;
    let mut report = Report::new(plan.command, run, plan.parameters);
    let elapsed = stats.last.map_or(Duration::ZERO, |last| last - start);
    report.count(&stats, elapsed, check.met_functions());
    report.timeline = timeline.slices;
    report.faults = check.faults();
    if let Some(trips) = target.trips() {
        report.count_trips(trips);
    }
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
