//! One run: a pool on a target, workers, the load, and what is left afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;

use super::ask::Fleet;
use super::baseline::TripCounts;
use super::check::{Check, Faults};
use super::client::{Call, Client};
use super::driver::Driver;
use super::events;
use super::pace::Stop;
use super::processes::{self, Member, Part};
use super::report::{self, Report};
use super::scenario::{Churn, Failover};
use super::stats::{self, Stats};
use super::target::{Target, run_tag};
use super::timeline::Timeline;
use super::url::TargetUrl;
use hotpool::limits::BATCH_ITEMS_MAX;
use hotpool::server::config::StoreUrl;

/// How long the service may take to show everything idle after the last release was answered, and how long claims
/// in doubt are pursued.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks at the pool.
const SETTLE_EVERY: Duration = Duration::from_millis(100);

/// Most workers of a run whose workers come and go.
const WORKERS_EVER_MAX: u32 = 20_000_000;

/// What a run does, beside its [`Drive`].
#[derive(Debug, Clone)]
pub struct Plan {
    /// `bench`, `replay` or `run`.
    pub command: &'static str,
    /// What is said of it in the report.
    pub parameters: serde_json::Value,
    /// The pool.
    pub fleet: Fleet,
    /// Clients.
    pub clients: usize,
    /// How long it lasts.
    pub duration: Duration,
    /// Processes that send it.
    pub processes: usize,
    /// Workers that come and go meanwhile.
    pub churn: Option<Churn>,
    /// A Redis server at `HOST:PORT` that is made to stop answering.
    pub failover: Option<(Failover, String)>,
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
    fn multiplexed(&self, drive: &Drive) -> bool {
        match drive {
            Drive::Closed(in_flight, _) => *in_flight > self.clients,
            Drive::Open(..) => true,
        }
    }

    /// Workers that are registered over the whole run.
    #[must_use]
    pub fn workers_ever(&self) -> u32 {
        let changes = self.churn.map_or(0, |churn| {
            let changes = self.duration.as_millis() / u128::from(churn.every_ms.max(1));
            u32::try_from(changes).unwrap_or(u32::MAX).saturating_mul(churn.workers)
        });
        self.fleet.workers.saturating_add(changes).min(WORKERS_EVER_MAX)
    }
}

/// Carries out a plan, and removes its pool whatever happens. `store`: of a scheduler in this process.
///
/// # Errors
/// The run could not be made at all: nothing was measured. What goes wrong later is in the report.
pub async fn run(
    url: &TargetUrl,
    store: Option<&StoreUrl>,
    plan: Plan,
    drive: Drive,
    stop: &Arc<Stop>,
) -> Result<Report> {
    // Time first, so that pools sort by age; the end is random.
    let run = uuid::Uuid::now_v7().simple().to_string();
    let target = Target::open(url, store, &run).await?;
    let measured = measured(&target, plan, drive, &run, stop).await;
    let removed = target.remove().await.with_context(|| format!("the pool load/{run} was not removed"));
    target.close().await;
    let mut report = measured?;
    report.interrupted = stop.asked();
    report.failures.extend(removed.err().map(|error| format!("{error:#}")));
    Ok(report)
}

async fn measured(target: &Target, plan: Plan, drive: Drive, run: &str, stop: &Arc<Stop>) -> Result<Report> {
    target.create(&plan.fleet).await.context("cannot make the pool")?;
    register(target, plan.fleet, stop).await?;
    let (loaded, settled) = if plan.processes > 1 {
        let timeline = Timeline::new(Instant::now(), plan.duration, plan.clients, false);
        processes::merged(processes::spawn(run, plan.processes, stop).await?, timeline)
    } else {
        (load(target, &plan, drive, &format!("{}.", run_tag(run)), stop).await?, 0)
    };
    let mut report = Report::new(plan.command, run, plan.parameters);
    report.count(&loaded.stats, loaded.elapsed, loaded.functions);
    report.pacing_us = loaded.pacing.as_ref().map(report::Latency::of);
    report.timeline = loaded.timeline.slices;
    report.faults = loaded.faults;
    report.failures = loaded.failures;
    report.shards = target.shards().await.unwrap_or_default();
    if plan.failover.is_some() {
        report.longest_stall_s = Some(Timeline::longest_stall_s(&report.timeline));
    }
    if let Some(trips) = loaded.trips {
        report.count_trips(trips);
    }
    report.doubts_settled = settled;
    if !loaded.drained {
        // Requests are still under way: what they hold is not leaked.
        return Ok(report);
    }
    if let Some(client) = &loaded.settler {
        report.doubts_settled += settle(client, loaded.stats.doubts).await;
    }
    match left(target, plan.fleet.workers).await {
        Ok(leaked) => report.leaked = Some(leaked),
        Err(error) => report.failures.push(format!("the pool could not be checked: {error:#}")),
    }
    Ok(report)
}

async fn register(target: &Target, fleet: Fleet, stop: &Stop) -> Result<()> {
    for first in (0..fleet.workers).step_by(BATCH_ITEMS_MAX) {
        if stop.asked() {
            bail!("interrupted while workers were registered");
        }
        let last = first.saturating_add(BATCH_ITEMS_MAX as u32).min(fleet.workers);
        target.register(first..last, fleet.slots).await.context("cannot register the workers")?;
    }
    Ok(())
}

/// The part of one of several processes in a run whose pool another one has made.
///
/// # Errors
/// The target cannot be reached.
pub async fn member(url: &TargetUrl, plan: Plan, drive: Drive, member: &Member, stop: &Arc<Stop>) -> Result<Part> {
    let target = Target::open(url, None, &member.run).await?;
    let names = format!("{}.{}-", run_tag(&member.run), member.number);
    let drive = drive.part(member.number, plan.processes);
    let clients = (plan.clients / plan.processes).max(1);
    let mut loaded = load(&target, &Plan { clients, ..plan }, drive, &names, stop).await?;
    let doubts = std::mem::take(&mut loaded.stats.doubts);
    let settled = match &loaded.settler {
        Some(client) if loaded.drained => settle(client, doubts).await,
        _ => 0,
    };
    Ok(Part::of(&loaded, settled))
}

/// What a load came to.
pub struct Loaded {
    /// Counts and latencies, of all clients.
    pub stats: Stats,
    /// How it went.
    pub timeline: Timeline,
    /// Open loop: how late requests were sent, in nanoseconds.
    pub pacing: Option<Histogram<u64>>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// What was wrong with grants.
    pub faults: Faults,
    /// Claims named functions.
    pub functions: bool,
    /// Round trips, if they are counted.
    pub trips: Option<TripCounts>,
    /// What kept it from being whole.
    pub failures: Vec<String>,
    /// Every request was answered.
    pub drained: bool,
    /// Who can settle what is in doubt.
    pub settler: Option<Arc<Client>>,
}

/// Sends the load. The keys of its claims begin with `names`.
async fn load(target: &Target, plan: &Plan, drive: Drive, names: &str, stop: &Arc<Stop>) -> Result<Loaded> {
    let check = Arc::new(Check::new(plan.workers_ever(), plan.fleet.slots));
    let mut clients = Vec::with_capacity(plan.clients);
    for client in 0..plan.clients {
        let link = target.link(plan.multiplexed(&drive)).await?;
        clients.push(Arc::new(Client::new(link, Arc::clone(&check), format!("{names}{client}."))));
    }
    let driver = Driver::new(clients, Arc::clone(stop));
    let start = Instant::now();
    let mut timeline = Timeline::new(start, plan.duration, plan.clients, plan.processes > 1);
    let span = (start, plan.duration);
    let driven = async {
        match drive {
            Drive::Closed(in_flight, call) => driver.closed(span, in_flight, call, &mut timeline).await.map(|()| None),
            Drive::Open(in_flight, calls) => driver.open(span, calls, in_flight, &mut timeline).await.map(Some),
        }
    };
    let meanwhile = (events::churn(target, plan, start, stop), events::fail_over(plan, start, stop));
    let (outcome, churned, stopped) = tokio::join!(driven, meanwhile.0, meanwhile.1);
    timeline.end(Instant::now(), &driver.clients);
    let mut stats = Stats::default();
    for client in &driver.clients {
        stats.merge(std::mem::take(&mut client.stats()));
    }
    stats.claims = timeline.total.clone();
    let drained = outcome.is_ok();
    let mut failures: Vec<String> =
        [churned.err(), stopped.err()].into_iter().flatten().map(|error| format!("{error:#}")).collect();
    let pacing = outcome.unwrap_or_else(|error| {
        failures.push(format!("{error:#}"));
        None
    });
    Ok(Loaded {
        elapsed: stats.last.map_or(Duration::ZERO, |last| last - start),
        stats,
        timeline,
        pacing,
        faults: check.faults(),
        functions: check.met_functions(),
        trips: target.trips(),
        failures,
        drained,
        settler: driver.clients.first().cloned(),
    })
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
