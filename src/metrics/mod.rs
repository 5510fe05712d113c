//! Every metric of the process. The table [`ALL`] is the help text that Prometheus and `docs/METRICS.md` show.
//!
//! What belongs to the process goes through handles of the `metrics` facade, made once and kept: a handle costs 14 ns, a
//! macro 100. They belong to the recorder that is installed when they are made, so [`install`] comes before the first
//! use; without any recorder they do nothing, which is what a program that embeds the library gets.
//!
//! What belongs to a pool ([`PoolMetrics`]) is its own: a recorder keeps every series for the life of the process, and
//! pools come and go by the thousand. [`write_pools`] renders the pools that there are.

mod exposition;
mod labels;
mod node;
mod pool;
mod values;

use parking_lot::Mutex;
use std::io;
use std::sync::{Arc, LazyLock, OnceLock};

use metrics::{Counter, Gauge, Histogram, KeyName, Recorder as _};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use self::exposition::{POOL_FAMILIES, PoolFamily, SeriesVisibility, write_pools};
pub use self::labels::*;
pub use self::node::NodeMetrics;
pub use self::pool::PoolMetrics;
use self::process::ProcessGauges;
pub use self::values::{ClaimCounters, PoolCounter, PoolGauge, PoolHistogram, ShardDistribution};

/// What a metric is, and the upper bounds of a histogram's buckets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// A present value.
    Gauge,
    /// A distribution.
    Histogram(&'static [f64]),
}

/// One metric of the process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricDefinition {
    /// Name as scraped.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its labels, by name.
    pub labels: &'static [&'static str],
    /// Help text.
    pub help: &'static str,
}

/// 1 us to 10 s, three a decade.
const SECONDS: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0,
    5.0, 10.0,
];

/// 10 us to 10 s, two a decade where claims are usually answered. Coarser than [`SECONDS`], as all histograms of pools: each
/// bound is a line of 60 bytes and more, once a pool.
const CLAIM_SECONDS_BOUNDS: &[f64] = &[1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0, 10.0];

/// 10 us to 1 s: a shard that is not looked at for longer answers nobody.
const QUEUE_WAIT_BOUNDS: &[f64] = &[1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0];

/// 10 ms to a day.
const WAIT_SECONDS_BOUNDS: &[f64] = &[0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0];

/// One shard, a second one, and powers of four from there on.
const SHARDS_TRIED_BOUNDS: &[f64] = &[1.0, 2.0, 4.0, 16.0, 64.0, 256.0];

/// Powers of four up to a million.
const ROWS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// Powers of four from 64 bytes up to 256 MiB.
const BYTES: &[f64] = &[
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
];

macro_rules! definitions {
    ($($constant:ident = $name:literal, $kind:expr, [$($label:literal),*], $help:literal;)*) => {
        $(const $constant: &str = $name;)*
        /// Every metric, in the order of the documentation.
        pub const ALL: &[MetricDefinition] =
            &[$(MetricDefinition { name: $name, kind: $kind, labels: &[$($label),*], help: $help }),*];
    };
}

definitions! {
    CLAIMS = "hotpool_claims_total", MetricKind::Counter, ["pool", "outcome"], "Claims asked for, by what became of them.";
    CLAIM_SECONDS = "hotpool_claim_seconds", MetricKind::Histogram(CLAIM_SECONDS_BOUNDS), ["pool"],
        "Time from a claim's arrival at the scheduler to its answer, of those that did not wait for room. Of all claims while \
         load is light, of one in 16 past some thousands a second; of those that one run of a shard answers, of the first.";
    SHARD_QUEUE_WAIT = "hotpool_shard_queue_wait_seconds", MetricKind::Histogram(QUEUE_WAIT_BOUNDS), ["pool"],
        "Time that requests wait until their shard looks at them. Of the requests that hotpool_claim_seconds times.";
    RELEASES = "hotpool_releases_total", MetricKind::Counter, ["pool"], "Releases that a shard carried out, whoever asked: the second of two steps counts, the first does not.";
    WORKERS = "hotpool_workers", MetricKind::Gauge, ["state", "pool"],
        "Workers by what can be had of them, each once: idle, busy, or not offered and without a claim, by the first \
         reason that applies. Their sum is all workers.";
    SHARD_QUEUE_DEPTH = "hotpool_shard_queue_depth", MetricKind::Gauge, ["pool"], "Requests that wait in the rings of a pool's shards.";
    SHARD_QUEUE_REJECTIONS = "hotpool_shard_queue_rejections_total", MetricKind::Counter, ["pool"],
        "Requests refused because a shard's ring was full.";
    CLAIM_SHARDS_TRIED = "hotpool_claim_shards_tried", MetricKind::Histogram(SHARDS_TRIED_BOUNDS), ["pool"], "Shards asked per claim. Of the claims that hotpool_claim_seconds times.";
    WORKER_UPDATES = "hotpool_worker_updates_total", MetricKind::Counter, ["pool"], "Changes made to workers' ledgers.";
    STORE_WRITE_ROWS = "hotpool_store_write_rows", MetricKind::Histogram(ROWS), [], "Rows in one step that was sent to the store.";
    STORE_WRITE_BYTES = "hotpool_store_write_bytes", MetricKind::Histogram(BYTES), [], "Bytes in one step that was sent to the store.";
    STORE_WRITE_SECONDS = "hotpool_store_write_seconds", MetricKind::Histogram(SECONDS), [],
        "Time from sending steps to the store to its answer.";
    STORE_WRITES = "hotpool_store_writes_total", MetricKind::Counter, ["outcome"], "Steps sent to the store, by its answer.";
    STORE_LAG = "hotpool_store_lag_seconds", MetricKind::Gauge, ["pool"],
        "Age of the oldest change that the store does not have: what a crash loses of memory-acknowledged claims.";
    EVICTIONS = "hotpool_evictions_total", MetricKind::Counter, ["pool"], "Claims that were evicted for one with a higher priority.";
    CLAIMS_EXPIRED = "hotpool_claims_expired_total", MetricKind::Counter, ["pool", "reason"],
        "Claims that ended without a call, by the deadline that passed: never confirmed, not renewed, not cleaned up, or \
         not named by their worker.";
    CLAIMS_LOST = "hotpool_claims_lost_total", MetricKind::Counter, ["pool"], "Claims that were lost with their worker.";
    WORKERS_LOST = "hotpool_workers_lost_total", MetricKind::Counter, ["pool"],
        "Workers that sent no heartbeat for longer than the pool allows.";
    LOST_WORKERS_DELETED = "hotpool_lost_workers_deleted_total", MetricKind::Counter, ["pool"],
        "Workers that were deleted because they had been lost for as long as the pool keeps them.";
    WORKERS_UNSCHEDULABLE = "hotpool_workers_unschedulable", MetricKind::Gauge, ["reason", "pool"],
        "Workers that are not offered, held or not, by reason. One may have several: it counts under each.";
    HEARTBEATS = "hotpool_heartbeats_total", MetricKind::Counter, ["pool"], "Heartbeats of workers that are there.";
    HEARTBEATS_IGNORED = "hotpool_heartbeats_ignored_total", MetricKind::Counter, ["pool"],
        "Of these heartbeats those that came late: with a lower seq than one before, since the worker was registered.";
    CLAIMS_READOPTED = "hotpool_claims_readopted_total", MetricKind::Counter, ["pool"],
        "Claims whose record a stop had lost and that were taken over because their worker named them.";
    CLAIM_REVOCATIONS = "hotpool_claim_revocations_total", MetricKind::Counter, ["pool"], "Claims that a worker named and was told to stop.";
    CLAIMS_ROLLED_BACK = "hotpool_claims_rolled_back_total", MetricKind::Counter, ["pool"],
        "Claims given back because nobody was told of them: their durable answer could not leave in time, their caller was gone, or \
         its system did not take the answer.";
    CLAIMS_PENDING = "hotpool_claims_pending", MetricKind::Gauge, ["pool"], "Claims that wait for room. One that may be taken from several pools waits in each.";
    WAIT_SECONDS = "hotpool_wait_seconds", MetricKind::Histogram(WAIT_SECONDS_BOUNDS), ["pool"],
        "How long claims had waited that were then granted.";
    QUOTA_CLAIMS_PENDING = "hotpool_quota_claims_pending", MetricKind::Gauge, [], "Claims that wait because their tenant's quota is used up.";
    WATCHERS = "hotpool_watchers", MetricKind::Gauge, ["pool"], "Those who watch the events of a pool.";
    WATCH_EVENTS_DROPPED = "hotpool_watch_events_dropped_total", MetricKind::Counter, ["pool"],
        "Events that were dropped before a watcher came to them. Each of several watchers counts.";
    RECOVERY = "hotpool_recovery_seconds", MetricKind::Gauge, [], "Time that the last recovery took.";
    ACCOUNTING_MISMATCH = "hotpool_accounting_mismatch", MetricKind::Gauge, ["pool"],
        "Difference between two counts of workers that hold claims, the ledgers' and the shards' own; and workers of which \
         capacity, claims and what is left, card by card, do not go together. Must stay 0. Shards that do something compare \
         the counts once a second, and each time take so many of their workers that these and the claims on them are about 1,024, \
         until they have taken all since their last change. It does not see the sums over workers; debug builds and recoveries \
         recount these too.";
    SHARD_RESTARTS = "hotpool_shard_restarts_total", MetricKind::Counter, ["pool"], "Shards restarted after a panic.";
    SHARDS = "hotpool_shards", MetricKind::Gauge, ["state"], "Shards by state. Ready means that all are serving.";
    SHARDS_MAX = "hotpool_shards_max", MetricKind::Gauge, [],
        "Shards of all pools together that there may be (server.max_shards): a PUT of a pool that would bring more is answered 409.";
    READY = "hotpool_ready", MetricKind::Gauge, [], "1 if every shard serves and the store takes records, else 0; /readyz says why.";
    SHARD_WORKERS = "hotpool_shard_workers", MetricKind::Gauge, ["stat", "pool"],
        "Fewest, mean and most workers of a shard, offered or not: how evenly the hash spreads them.";
    SHARD_HELD = "hotpool_shard_held", MetricKind::Gauge, ["stat", "pool"],
        "Fewest, mean and most held workers of a shard: how evenly claims are spread.";
    FENCE_REFUSALS = "hotpool_fence_refusals_total", MetricKind::Counter, [],
        "Confirms, releases and the like that were refused because another holder has the key.";
    BUILD_INFO = "hotpool_build_info", MetricKind::Gauge, ["version"], "Always 1.";
    RUNTIME_WORKERS = "hotpool_runtime_workers", MetricKind::Gauge, [], "Threads that run tasks.";
    RUNTIME_TASKS = "hotpool_runtime_tasks", MetricKind::Gauge, [], "Tasks that have not ended.";
    RUNTIME_QUEUE = "hotpool_runtime_queue_depth", MetricKind::Gauge, [], "Tasks in the queue that all threads share.";
    RUNTIME_BUSY = "hotpool_runtime_busy_seconds", MetricKind::Gauge, [],
        "Time that the threads were busy since the start, summed over them: its rate is the number of busy cores.";
    RECONNECTS = "hotpool_store_reconnects_total", MetricKind::Counter, [], "Connections to the store's servers that had to be made again.";
    RETRIES = "hotpool_store_retries_total", MetricKind::Counter, [],
        "Times that steps were sent again because the store did not take them.";
    NODE_WRITES = "hotpool_store_node_writes_total", MetricKind::Counter, ["node"],
        "Steps sent to one server of the store. From the 65th server on they are counted as `other`.";
    NODE_BYTES = "hotpool_store_node_bytes_total", MetricKind::Counter, ["node"], "Bytes of rows sent to one server of the store.";
    GANGS = "hotpool_gangs_total", MetricKind::Counter, ["outcome"], "Gangs asked for, by what became of them.";
    RENEWALS = "hotpool_store_renewals_total", MetricKind::Counter, ["outcome"],
        "Renewals of the ownership of the store, by what became of them.";
    LEASE = "hotpool_store_lease_seconds", MetricKind::Gauge, [],
        "Time until the ownership of the store lapses unless it is renewed; 0: it has lapsed, and nothing is answered. -1: this \
         store has no lease.";
    ADOPTION = "hotpool_adoption_open", MetricKind::Gauge, [],
        "1 while claims that the last stop may have lost are taken over when their workers name them, else 0.";
    SHARD_SNAPSHOTS = "hotpool_shard_snapshots_total", MetricKind::Counter, [], "Shards written anew as a whole to the store.";
    HTTP_REQUESTS = "hotpool_http_requests_total", MetricKind::Counter, ["route", "status"], "HTTP requests answered.";
    GRPC_REQUESTS = "hotpool_grpc_requests_total", MetricKind::Counter, ["method", "code"],
        "gRPC calls answered, by the status that the answer begins with. Of a claim stream, each request as the call that it could \
         have been.";
    RESP_COMMANDS = "hotpool_resp_commands_total", MetricKind::Counter, ["command", "outcome"],
        "Commands of RESP clients that were answered; `claims` counts each of its claims.";
    RESP_CONNECTIONS = "hotpool_resp_connections", MetricKind::Gauge, [], "Open connections of RESP clients.";
    RESP_ENDED = "hotpool_resp_connections_ended_total", MetricKind::Counter, ["reason"],
        "Connections of RESP clients that the service ended, by reason.";
    HTTP_CONNECTIONS = "hotpool_http_connections", MetricKind::Gauge, [], "Open connections, of HTTP and gRPC.";
    HTTP_REFUSED = "hotpool_http_connections_refused_total", MetricKind::Counter, [],
        "Connections beyond server.max_connections that were closed without the answer to a probe or a scrape.";
    HTTP_EXCESS = "hotpool_http_excess_connections_total", MetricKind::Counter, ["outcome"],
        "Connections beyond server.max_connections, by what became of them: each is answered one probe or scrape.";
    REQUESTS_REFUSED = "hotpool_requests_refused_total", MetricKind::Counter, ["reason"],
        "Requests of HTTP and gRPC that were refused by their head: for a host that is not served, or because a page of another site \
         is behind them.";
}

/// Handles of the metrics that belong to no pool.
pub struct ProcessMetrics {
    /// `hotpool_store_write_rows`.
    pub store_write_rows: Histogram,
    /// `hotpool_store_write_bytes`.
    pub store_write_bytes: Histogram,
    /// `hotpool_store_write_seconds`.
    pub store_write_seconds: Histogram,
    store_writes: Vec<Counter>,
    claims: ClaimCounters,
    /// `hotpool_quota_claims_pending`.
    pub quota_claims_pending: Gauge,
    /// `hotpool_recovery_seconds`.
    pub recovery_seconds: Gauge,
    shards: Vec<Gauge>,
    /// `hotpool_shards_max`.
    pub shards_max: Gauge,
    /// `hotpool_shard_snapshots_total`.
    pub shard_snapshots: Counter,
    /// `hotpool_store_reconnects_total`.
    pub store_reconnects: Counter,
    /// `hotpool_store_retries_total`.
    pub store_retries: Counter,
    renewals: Vec<Counter>,
    gangs: Vec<Counter>,
    /// `hotpool_store_lease_seconds`.
    pub store_lease: Gauge,
    /// `hotpool_adoption_open`.
    pub adoption_open: Gauge,
    /// `hotpool_ready`.
    pub ready: Gauge,
    /// `hotpool_fence_refusals_total`.
    pub fence_refusals: Counter,
    http_requests: Vec<OnceLock<Counter>>,
    grpc_requests: Vec<OnceLock<Counter>>,
    resp_commands: Vec<OnceLock<Counter>>,
    /// `hotpool_resp_connections`.
    pub resp_connections: Gauge,
    resp_ended: Vec<Counter>,
    /// `hotpool_http_connections`.
    pub http_connections: Gauge,
    /// `hotpool_http_connections_refused_total`.
    pub http_connections_refused: Counter,
    http_excess: Vec<Counter>,
    requests_refused: Vec<Counter>,
}

/// Every status that the HTTP edge answers with; any other is counted as `other`.
const STATUSES: &[u16] = &[200, 201, 307, 400, 403, 404, 405, 409, 413, 415, 421, 429, 500, 503, 504];

impl ProcessMetrics {
    fn new() -> Self {
        let http_requests = HttpRoute::ALL.len() * (STATUSES.len() + 1);
        let grpc_requests = GrpcMethod::ALL.len() * GrpcCode::ALL.len();
        let resp_commands = RespCommand::ALL.len() * RespOutcome::ALL.len();
        Self {
            store_write_rows: metrics::histogram!(STORE_WRITE_ROWS),
            store_write_bytes: metrics::histogram!(STORE_WRITE_BYTES),
            store_write_seconds: metrics::histogram!(STORE_WRITE_SECONDS),
            store_writes: StoreWriteResult::ALL
                .iter()
                .map(|result| metrics::counter!(STORE_WRITES, "outcome" => result.as_str()))
                .collect(),
            claims: ClaimCounters::default(),
            quota_claims_pending: metrics::gauge!(QUOTA_CLAIMS_PENDING),
            recovery_seconds: metrics::gauge!(RECOVERY),
            shards: ShardState::ALL.iter().map(|state| metrics::gauge!(SHARDS, "state" => state.as_str())).collect(),
            shards_max: metrics::gauge!(SHARDS_MAX),
            shard_snapshots: metrics::counter!(SHARD_SNAPSHOTS),
            store_reconnects: metrics::counter!(RECONNECTS),
            store_retries: metrics::counter!(RETRIES),
            renewals: RenewalResult::ALL
                .iter()
                .map(|result| metrics::counter!(RENEWALS, "outcome" => result.as_str()))
                .collect(),
            gangs: GangOutcome::ALL
                .iter()
                .map(|outcome| metrics::counter!(GANGS, "outcome" => outcome.as_str()))
                .collect(),
            store_lease: metrics::gauge!(LEASE),
            adoption_open: metrics::gauge!(ADOPTION),
            ready: metrics::gauge!(READY),
            fence_refusals: metrics::counter!(FENCE_REFUSALS),
            http_requests: std::iter::repeat_with(OnceLock::new).take(http_requests).collect(),
            grpc_requests: std::iter::repeat_with(OnceLock::new).take(grpc_requests).collect(),
            resp_commands: std::iter::repeat_with(OnceLock::new).take(resp_commands).collect(),
            resp_connections: metrics::gauge!(RESP_CONNECTIONS),
            resp_ended: RespCloseReason::ALL
                .iter()
                .map(|end| metrics::counter!(RESP_ENDED, "reason" => end.as_str()))
                .collect(),
            http_connections: metrics::gauge!(HTTP_CONNECTIONS),
            http_connections_refused: metrics::counter!(HTTP_REFUSED),
            http_excess: ExcessOutcome::ALL
                .iter()
                .map(|outcome| metrics::counter!(HTTP_EXCESS, "outcome" => outcome.as_str()))
                .collect(),
            requests_refused: RequestRefusal::ALL
                .iter()
                .map(|reason| metrics::counter!(REQUESTS_REFUSED, "reason" => reason.as_str()))
                .collect(),
        }
    }

    /// Counter of claims with this outcome that belong to no pool.
    pub fn claims(&self, outcome: ClaimOutcome) -> &PoolCounter {
        self.claims.of(outcome)
    }

    /// Counter of steps with this answer.
    pub fn store_writes(&self, result: StoreWriteResult) -> &Counter {
        &self.store_writes[result as usize]
    }

    /// Counter of gangs with this outcome.
    pub fn gangs(&self, outcome: GangOutcome) -> &Counter {
        &self.gangs[outcome as usize]
    }

    /// Counter of renewals with this outcome.
    pub fn renewals(&self, result: RenewalResult) -> &Counter {
        &self.renewals[result as usize]
    }

    /// Gauge of shards in this state.
    pub fn shards(&self, state: ShardState) -> &Gauge {
        &self.shards[state as usize]
    }

    /// Counter of HTTP requests on this route that were answered with this status.
    pub fn http_requests(&self, route: HttpRoute, status: u16) -> &Counter {
        let column = STATUSES.iter().position(|&known| known == status).unwrap_or(STATUSES.len());
        // Made at first use, so that only what has happened is scraped.
        self.http_requests[route as usize * (STATUSES.len() + 1) + column].get_or_init(|| {
            let status = STATUSES.get(column).map_or_else(|| "other".to_owned(), u16::to_string);
            metrics::counter!(HTTP_REQUESTS, "route" => route.as_str(), "status" => status)
        })
    }

    /// Counter of gRPC calls of this method that were answered with this code.
    pub fn grpc_requests(&self, method: GrpcMethod, code: GrpcCode) -> &Counter {
        self.grpc_requests[method as usize * GrpcCode::ALL.len() + code as usize]
            .get_or_init(|| metrics::counter!(GRPC_REQUESTS, "method" => method.as_str(), "code" => code.as_str()))
    }

    /// Counter of RESP commands that were answered so.
    pub fn resp_commands(&self, command: RespCommand, outcome: RespOutcome) -> &Counter {
        self.resp_commands[command as usize * RespOutcome::ALL.len() + outcome as usize].get_or_init(
            || metrics::counter!(RESP_COMMANDS, "command" => command.as_str(), "outcome" => outcome.as_str()),
        )
    }

    /// Counter of connections beyond the limit of which this became.
    pub fn http_excess_connections(&self, outcome: ExcessOutcome) -> &Counter {
        &self.http_excess[outcome as usize]
    }

    /// Counter of requests that were refused by their head for this reason.
    pub fn requests_refused(&self, reason: RequestRefusal) -> &Counter {
        &self.requests_refused[reason as usize]
    }

    /// Counter of RESP connections that were ended for this reason.
    pub fn resp_ended(&self, reason: RespCloseReason) -> &Counter {
        &self.resp_ended[reason as usize]
    }
}

/// The handles that belong to no pool.
pub fn metrics() -> &'static ProcessMetrics {
    static PROCESS: LazyLock<ProcessMetrics> = LazyLock::new(ProcessMetrics::new);
    &PROCESS
}

/// The process has no exporter.
#[derive(Debug, thiserror::Error)]
pub enum MetricsInstallError {
    /// A bucket list is wrong.
    #[error("metrics: {0}")]
    Build(#[from] BuildError),
    /// The program has installed another recorder.
    #[error("metrics: another recorder is installed in this process")]
    RecorderInstalled,
}

/// Renders what is scraped, and keeps the memory of histograms bounded. Cheap to clone.
#[derive(Clone)]
pub struct MetricsExporter {
    handle: PrometheusHandle,
    process: Arc<ProcessGauges>,
}

impl MetricsExporter {
    /// Writes every metric of the process and of these pools in Prometheus' text format. What it says of the runtime is of
    /// the one that it is called in.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, pools: &[Arc<PoolMetrics>], out: &mut impl io::Write) -> io::Result<()> {
        self.process.observe();
        self.handle.render_to_write(out)?;
        write_pools(pools, out)
    }

    /// Folds raw histogram samples into their buckets; call it every few seconds, or they pile up.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Installs the exporter of this process, or returns the one that is installed. Call it before anything is counted, and
/// [`MetricsExporter::upkeep`] from then on.
///
/// # Errors
/// [`MetricsInstallError::ClaimResult`] if the program has a recorder of its own.
pub fn install() -> Result<MetricsExporter, MetricsInstallError> {
    static INSTALLED: Mutex<Option<MetricsExporter>> = Mutex::new(None);
    let mut installed = INSTALLED.lock();
    if let Some(exporter) = &*installed {
        return Ok(exporter.clone());
    }
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        // Those of pools are not the exporter's.
        if let MetricKind::Histogram(buckets) = metric.kind
            && !metric.labels.contains(&"pool")
        {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    let recorder = builder.build_recorder();
    for MetricDefinition { name, kind, help, .. } in ALL.iter().filter(|metric| !metric.labels.contains(&"pool")) {
        let name = KeyName::from_const_str(name);
        match kind {
            MetricKind::Counter => recorder.describe_counter(name, None, (*help).into()),
            MetricKind::Gauge => recorder.describe_gauge(name, None, (*help).into()),
            MetricKind::Histogram(_) => recorder.describe_histogram(name, None, (*help).into()),
        }
    }
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| MetricsInstallError::RecorderInstalled)?;
    let exporter = MetricsExporter { handle, process: Arc::new(ProcessGauges::new()) };
    Ok(installed.insert(exporter).clone())
}

mod process;
#[cfg(test)]
mod tests;
