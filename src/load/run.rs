//! One run: a pool on a target, workers, the load, and what is left afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;

use super::baseline::RoundTripCounts;
use super::claim_input::TargetPool;
use super::disruptions;
use super::driver::LoadDriver;
use super::grant_checker::{GrantChecker, GrantViolations};
use super::load_client::{LoadClient, LoadOperation};
use super::pacing::StopSignal;
use super::processes::{self, GeneratorId, GeneratorReport};
use super::report::{self, LoadReport};
use super::scenario::{RedisFailover, WorkerChurn};
use super::stats::{self, ClientStats};
use super::target::{LoadTarget, run_tag};
use super::timeline::LoadTimeline;
use super::url::TargetUrl;
use hotpool::limits::BATCH_ITEMS_MAX;
use hotpool::server::config::StoreUrl;

/// How long the service may take to show everything idle after the last release was answered, and how long claims
/// in doubt are pursued.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at the pool.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Most workers of a run whose workers come and go.
const WORKERS_EVER_MAX: u32 = 20_000_000;

/// What a run does, beside its [`ArrivalModel`].
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// `bench`, `replay` or `run`.
    pub command: &'static str,
    /// What is said of it in the report.
    pub parameters: serde_json::Value,
    /// The pool.
    pub fleet: TargetPool,
    /// Clients.
    pub clients: usize,
    /// How long it lasts.
    pub duration: Duration,
    /// Processes that send it.
    pub processes: usize,
    /// Workers that come and go meanwhile.
    pub churn: Option<WorkerChurn>,
    /// A Redis server at `HOST:PORT` that is made to stop answering.
    pub failover: Option<(RedisFailover, String)>,
}

/// When calls are made.
pub enum ArrivalModel {
    /// When the last answer is there, with so many outstanding.
    ClosedLoop(usize, LoadOperation),
    /// At these times, with at most so many outstanding.
    OpenLoop(usize, Box<dyn Iterator<Item = (Duration, LoadOperation)> + Send>),
}

impl RunPlan {
    /// True if several requests may be outstanding on one connection.
    fn is_multiplexed(&self, drive: &ArrivalModel) -> bool {
        match drive {
            ArrivalModel::ClosedLoop(in_flight, _) => *in_flight > self.clients,
            ArrivalModel::OpenLoop(..) => true,
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
    plan: RunPlan,
    drive: ArrivalModel,
    stop: &Arc<StopSignal>,
) -> Result<LoadReport> {
    // Time first, so that pools sort by age; the end is random.
    let run = uuid::Uuid::now_v7().simple().to_string();
    let target = LoadTarget::open(url, store, &run).await?;
    let measured = measure(&target, plan, drive, &run, stop).await;
    let removed = target.remove().await.with_context(|| format!("the pool load/{run} was not removed"));
    target.close().await;
    let mut report = measured?;
    report.interrupted = stop.is_requested();
    report.failures.extend(removed.err().map(|error| format!("{error:#}")));
    Ok(report)
}

async fn measure(
    target: &LoadTarget,
    plan: RunPlan,
    drive: ArrivalModel,
    run: &str,
    stop: &Arc<StopSignal>,
) -> Result<LoadReport> {
    target.create(&plan.fleet).await.context("cannot make the pool")?;
    register(target, plan.fleet, stop).await?;
    let (loaded, settled) = if plan.processes > 1 {
        let timeline = LoadTimeline::new(Instant::now(), plan.duration, plan.clients, false);
        processes::merge_reports(processes::run_generators(run, plan.processes, stop).await?, timeline)
    } else {
        (drive_load(target, &plan, drive, &format!("{}.", run_tag(run)), stop).await?, 0)
    };
    let mut report = LoadReport::new(plan.command, run, plan.parameters);
    report.record_stats(&loaded.stats, loaded.elapsed, loaded.saw_functions);
    report.pacing_us = loaded.pacing.as_ref().map(report::LatencySummary::from_histogram);
    report.timeline = loaded.timeline.slices;
    report.faults = loaded.faults;
    report.failures = loaded.failures;
    report.shards = target.shards().await.unwrap_or_default();
    if plan.failover.is_some() {
        report.longest_stall_s = Some(LoadTimeline::longest_stall_s(&report.timeline));
    }
    if let Some(trips) = loaded.trips {
        report.record_round_trips(trips);
    }
    report.doubts_settled = settled;
    if !loaded.drained {
        // Requests are still under way: what they hold is not leaked.
        return Ok(report);
    }
    if let Some(client) = &loaded.resolver {
        report.doubts_settled += resolve_doubts(client, loaded.stats.doubts).await;
    }
    match count_leaked(target, plan.fleet.workers).await {
        Ok(leaked) => report.leaked = Some(leaked),
        Err(error) => report.failures.push(format!("the pool could not be checked: {error:#}")),
    }
    Ok(report)
}

async fn register(target: &LoadTarget, fleet: TargetPool, stop: &StopSignal) -> Result<()> {
    for first in (0..fleet.workers).step_by(BATCH_ITEMS_MAX) {
        if stop.is_requested() {
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
pub async fn run_generator(
    url: &TargetUrl,
    plan: RunPlan,
    drive: ArrivalModel,
    member: &GeneratorId,
    stop: &Arc<StopSignal>,
) -> Result<GeneratorReport> {
    let target = LoadTarget::open(url, None, &member.run).await?;
    let names = format!("{}.{}-", run_tag(&member.run), member.number);
    let drive = drive.share_of(member.number, plan.processes);
    let clients = (plan.clients / plan.processes).max(1);
    let mut loaded = drive_load(&target, &RunPlan { clients, ..plan }, drive, &names, stop).await?;
    let doubts = std::mem::take(&mut loaded.stats.doubts);
    let settled = match &loaded.resolver {
        Some(client) if loaded.drained => resolve_doubts(client, doubts).await,
        _ => 0,
    };
    Ok(GeneratorReport::new(&loaded, settled))
}

/// What a load came to.
pub struct LoadResult {
    /// Counts and latencies, of all clients.
    pub stats: ClientStats,
    /// How it went.
    pub timeline: LoadTimeline,
    /// Open loop: how late requests were sent, in nanoseconds.
    pub pacing: Option<Histogram<u64>>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// What was wrong with grants.
    pub faults: GrantViolations,
    /// Claims named functions.
    pub saw_functions: bool,
    /// Round trips, if they are counted.
    pub trips: Option<RoundTripCounts>,
    /// What kept it from being whole.
    pub failures: Vec<String>,
    /// Every request was answered.
    pub drained: bool,
    /// Who can settle what is in doubt.
    pub resolver: Option<Arc<LoadClient>>,
}

/// Sends the load. The keys of its claims begin with `names`.
async fn drive_load(
    target: &LoadTarget,
    plan: &RunPlan,
    drive: ArrivalModel,
    names: &str,
    stop: &Arc<StopSignal>,
) -> Result<LoadResult> {
    let check = Arc::new(GrantChecker::new(plan.workers_ever(), plan.fleet.slots));
    let mut clients = Vec::with_capacity(plan.clients);
    for client in 0..plan.clients {
        let link = target.connect(plan.is_multiplexed(&drive)).await?;
        clients.push(Arc::new(LoadClient::new(link, Arc::clone(&check), format!("{names}{client}."))));
    }
    let driver = LoadDriver::new(clients, Arc::clone(stop));
    let start = Instant::now();
    let mut timeline = LoadTimeline::new(start, plan.duration, plan.clients, plan.processes > 1);
    let span = (start, plan.duration);
    let driven = async {
        match drive {
            ArrivalModel::ClosedLoop(in_flight, call) => {
                driver.run_closed_loop(span, in_flight, call, &mut timeline).await.map(|()| None)
            }
            ArrivalModel::OpenLoop(in_flight, calls) => {
                driver.run_open_loop(span, calls, in_flight, &mut timeline).await.map(Some)
            }
        }
    };
    let meanwhile = (disruptions::run_churn(target, plan, start, stop), disruptions::run_failover(plan, start, stop));
    let (outcome, churned, stopped) = tokio::join!(driven, meanwhile.0, meanwhile.1);
    timeline.end_slice(Instant::now(), &driver.clients);
    let mut stats = ClientStats::default();
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
    Ok(LoadResult {
        elapsed: stats.last.map_or(Duration::ZERO, |last| last - start),
        stats,
        timeline,
        pacing,
        faults: check.violations(),
        saw_functions: check.saw_functions(),
        trips: target.round_trips(),
        failures,
        drained,
        resolver: driver.clients.first().cloned(),
    })
}

/// Ends claims that may still be held: how a request ended that got no clear answer is not the service's leak.
async fn resolve_doubts(client: &LoadClient, mut doubts: Vec<stats::UnresolvedClaim>) -> u64 {
    let until = Instant::now() + DRAIN_TIMEOUT;
    let mut settled = 0;
    while !doubts.is_empty() && Instant::now() < until {
        let mut open = Vec::new();
        for (id, fence) in doubts {
            if Instant::now() < until && client.resolve(&id, fence).await {
                settled += 1;
            } else {
                open.push((id, fence));
            }
        }
        doubts = open;
        if !doubts.is_empty() {
            tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
        }
    }
    settled
}

/// Capacity that is missing although nothing is held, once the pool has had time to show it.
async fn count_leaked(target: &LoadTarget, workers: u32) -> Result<u64> {
    let until = Instant::now() + DRAIN_TIMEOUT;
    loop {
        let leaked = report::leaked_workers(workers, target.counts().await?, target.claims().await?);
        if leaked == 0 || Instant::now() > until {
            return Ok(leaked);
        }
        tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
    }
}
