//! Run of a load: creates a pool, registers workers, sends the load, and checks the pool afterwards.

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
use super::processor::MeasuredServers;
use super::report::{self, LoadReport};
use super::scenario::{RedisFailover, WorkerChurn};
use super::stats::{self, ClientStats};
use super::target::{ConnectionSharing, LoadTarget, run_tag};
use super::timeline::LoadTimeline;
use super::url::TargetUrl;
use hotpool::limits::BATCH_ITEMS_MAX;
use hotpool::server::config::StoreUrl;

/// Longest wait for the pool to show every worker idle after the last release, and for doubtful claims to be resolved.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two checks of the pool.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Largest number of workers ever registered by a run with churn.
const WORKERS_EVER_MAX: u32 = 20_000_000;

/// Plan of a run, apart from its [`ArrivalModel`].
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// Subcommand: `bench`, `replay`, `run`, `sweep` or `compare`.
    pub command: &'static str,
    /// Parameters as the report shows them.
    pub parameters: serde_json::Value,
    /// Pool that the run creates.
    pub fleet: TargetPool,
    /// Number of clients over all processes.
    pub clients: usize,
    /// Duration of the load.
    pub duration: Duration,
    /// Number of generator processes.
    pub processes: usize,
    /// Replacement of workers during the run.
    pub churn: Option<WorkerChurn>,
    /// Redis outage during the run, and the `HOST:PORT` of the server.
    pub failover: Option<(RedisFailover, String)>,
}

/// Rule that decides when requests are sent.
pub enum ArrivalModel {
    /// Sends when a reply arrives, with this many requests outstanding.
    ClosedLoop(usize, LoadOperation),
    /// Sends at the scheduled offsets, with at most this many requests outstanding.
    OpenLoop(usize, Box<dyn Iterator<Item = (Duration, LoadOperation)> + Send>),
}

impl RunPlan {
    /// Whether one connection carries several outstanding requests.
    fn multiplexing(&self, arrivals: &ArrivalModel) -> ConnectionSharing {
        match arrivals {
            ArrivalModel::ClosedLoop(in_flight, _) if *in_flight <= self.clients => ConnectionSharing::Single,
            _ => ConnectionSharing::Multiplexed,
        }
    }

    /// Number of workers registered over the whole run, replacements included.
    #[must_use]
    pub fn workers_ever(&self) -> u32 {
        let changes = self.churn.map_or(0, |churn| {
            let changes = self.duration.as_millis() / u128::from(churn.every_ms.max(1));
            u32::try_from(changes).unwrap_or(u32::MAX).saturating_mul(churn.workers)
        });
        self.fleet.workers.saturating_add(changes).min(WORKERS_EVER_MAX)
    }
}

/// Executes a plan, and removes its pool in any case. `store` is that of an in-process scheduler.
///
/// # Errors
/// Fails if nothing could be measured. Later failures are in the report.
pub async fn run(
    url: &TargetUrl,
    store: Option<&StoreUrl>,
    plan: RunPlan,
    arrivals: ArrivalModel,
    stop: &Arc<StopSignal>,
) -> Result<LoadReport> {
    // The time comes first, so that pools sort by age; the end is random.
    let run = uuid::Uuid::now_v7().simple().to_string();
    let target = LoadTarget::open(url, store, &run).await?;
    let servers = MeasuredServers::listening_at(&url.addresses());
    let measured = measure(&target, plan, arrivals, &run, &servers, stop).await;
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
    arrivals: ArrivalModel,
    run: &str,
    servers: &MeasuredServers,
    stop: &Arc<StopSignal>,
) -> Result<LoadReport> {
    target.create(&plan.fleet).await.context("cannot create the pool")?;
    register(target, plan.fleet, stop).await?;
    let before = servers.times();
    let (result, resolved) = if plan.processes > 1 {
        let timeline = LoadTimeline::new(Instant::now(), plan.duration, plan.clients);
        processes::merge_reports(processes::run_generators(run, plan.processes, stop).await?, timeline)
    } else {
        (drive_load(target, &plan, arrivals, &format!("{}.", run_tag(run)), stop).await?, 0)
    };
    let after = servers.times();
    let mut report = LoadReport::new(plan.command, run, plan.parameters);
    report.record_stats(&result.stats, result.elapsed);
    report.record_processor_times(before, after);
    if result.saw_functions {
        report.record_warm_ratio(&result.stats);
    }
    report.pacing_us = result.pacing.as_ref().map(report::LatencySummary::from_histogram);
    report.timeline = result.timeline.slices;
    report.faults = result.faults;
    report.failures = result.failures;
    report.shards = target.shards().await.unwrap_or_default();
    if plan.failover.is_some() {
        report.longest_stall_s = Some(LoadTimeline::longest_stall_s(&report.timeline));
    }
    if let Some(trips) = result.trips {
        report.record_round_trips(trips);
    }
    report.doubts_settled = resolved;
    if !result.drained {
        // Claims of outstanding requests are not leaked.
        return Ok(report);
    }
    if let Some(client) = &result.resolver {
        report.doubts_settled += resolve_doubts(client, result.stats.doubts).await;
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

/// Executes the share of one generator process in a run whose pool the parent process created.
///
/// # Errors
/// Fails if the target cannot be reached.
pub async fn run_generator(
    url: &TargetUrl,
    plan: RunPlan,
    arrivals: ArrivalModel,
    member: &GeneratorId,
    stop: &Arc<StopSignal>,
) -> Result<GeneratorReport> {
    let target = LoadTarget::open(url, None, &member.run).await?;
    let key_prefix = format!("{}.{}-", run_tag(&member.run), member.number);
    let arrivals = arrivals.share_of(member.number, plan.processes);
    let clients = (plan.clients / plan.processes).max(1);
    let mut result = drive_load(&target, &RunPlan { clients, ..plan }, arrivals, &key_prefix, stop).await?;
    let doubts = std::mem::take(&mut result.stats.doubts);
    let resolved = match &result.resolver {
        Some(client) if result.drained => resolve_doubts(client, doubts).await,
        _ => 0,
    };
    Ok(GeneratorReport::new(&result, resolved))
}

/// Outcome of a load before the pool is checked.
pub struct LoadResult {
    /// Counts and latencies of all clients.
    pub stats: ClientStats,
    /// Counts and percentiles over time.
    pub timeline: LoadTimeline,
    /// Lateness of requests in an open loop, in nanoseconds.
    pub pacing: Option<Histogram<u64>>,
    /// Time from the first request to the last reply.
    pub elapsed: Duration,
    /// Violations that the grant checker found.
    pub faults: GrantViolations,
    /// True if any claim named a function.
    pub saw_functions: bool,
    /// Round trips, if the target counts them.
    pub trips: Option<RoundTripCounts>,
    /// Failures that make the run incomplete.
    pub failures: Vec<String>,
    /// True if every request was answered.
    pub drained: bool,
    /// Client that can resolve doubtful claims.
    pub resolver: Option<Arc<LoadClient>>,
}

/// Sends the load. Keys of its claims begin with `key_prefix`.
async fn drive_load(
    target: &LoadTarget,
    plan: &RunPlan,
    arrivals: ArrivalModel,
    key_prefix: &str,
    stop: &Arc<StopSignal>,
) -> Result<LoadResult> {
    let checker = Arc::new(GrantChecker::new(plan.workers_ever(), plan.fleet.slots));
    let mut clients = Vec::with_capacity(plan.clients);
    for number in 0..plan.clients {
        let client = target.connect(plan.multiplexing(&arrivals)).await?;
        clients.push(Arc::new(LoadClient::new(client, Arc::clone(&checker), format!("{key_prefix}{number}."))));
    }
    let driver = LoadDriver::new(clients, Arc::clone(stop));
    let start = Instant::now();
    let mut timeline = LoadTimeline::new(start, plan.duration, plan.clients);
    if plan.processes > 1 {
        timeline.keep_windows();
    }
    let span = (start, plan.duration);
    let driven = async {
        match arrivals {
            ArrivalModel::ClosedLoop(in_flight, operation) => {
                driver.run_closed_loop(span, in_flight, operation, &mut timeline).await.map(|()| None)
            }
            ArrivalModel::OpenLoop(in_flight, operations) => {
                driver.run_open_loop(span, operations, in_flight, &mut timeline).await.map(Some)
            }
        }
    };
    let disruptions = (disruptions::run_churn(target, plan, start, stop), disruptions::run_failover(plan, start, stop));
    let (outcome, churned, stopped) = tokio::join!(driven, disruptions.0, disruptions.1);
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
        faults: checker.violations(),
        saw_functions: checker.saw_functions(),
        trips: target.round_trips(),
        failures,
        drained,
        resolver: driver.clients.first().cloned(),
    })
}

/// Ends claims that may still be held: a claim whose reply was unclear is not a leak of the service.
async fn resolve_doubts(client: &LoadClient, mut doubts: Vec<stats::UnresolvedClaim>) -> u64 {
    let until = Instant::now() + DRAIN_TIMEOUT;
    let mut resolved = 0;
    while !doubts.is_empty() && Instant::now() < until {
        let mut unresolved = Vec::new();
        for (id, fence) in doubts {
            if Instant::now() < until && client.resolve(&id, fence).await {
                resolved += 1;
            } else {
                unresolved.push((id, fence));
            }
        }
        doubts = unresolved;
        if !doubts.is_empty() {
            tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
        }
    }
    resolved
}

/// Counts the workers that stay missing or busy although nothing is held, after giving the pool time to settle.
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
