//! All metrics of the process. The table [`ALL`] has the help texts that Prometheus and `docs/METRICS.md` show.
//!
//! Metrics of the process use handles of the `metrics` facade, created once and kept: a handle costs 14 ns, a macro 100. They
//! belong to the recorder that is installed when they are created, so call [`install`] before the first use. Without a
//! recorder they do nothing, as in a program that embeds the library and installs none.
//!
//! Metrics of a pool ([`PoolMetrics`]) belong to the pool, because a recorder keeps every series for the life of the process,
//! and pools come and go by the thousand. [`write_pools`] renders the existing pools.

#[cfg(feature = "server")]
mod exporter;
mod exposition;
mod labels;
mod node;
mod pool;
#[cfg(feature = "server")]
mod process;
mod values;

use std::sync::{LazyLock, OnceLock};

use metrics::{Counter, Gauge, Histogram};

#[cfg(feature = "server")]
pub use self::exporter::{MetricsExporter, MetricsInstallError, install};
pub use self::exposition::{POOL_FAMILIES, PoolFamily, SeriesVisibility, write_pools};
pub use self::labels::*;
pub use self::node::NodeMetrics;
pub use self::pool::PoolMetrics;
pub use self::values::{ClaimCounters, PoolCounter, PoolGauge, PoolHistogram, ShardDistribution};

/// Kind of a metric, with the upper bounds of a histogram's buckets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
    /// Total that only grows.
    Counter,
    /// Value at the time of the scrape.
    Gauge,
    /// Distribution over buckets with these upper bounds.
    Histogram(&'static [f64]),
}

/// Definition of one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricDefinition {
    /// Name in a scrape.
    pub name: &'static str,
    /// Kind of the metric.
    pub kind: MetricKind,
    /// Names of the labels, in the order of rendering.
    pub labels: &'static [&'static str],
    /// Help text in a scrape.
    pub help: &'static str,
}

/// Bounds from 1 us to 10 s, three a decade.
const SECONDS: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0,
    5.0, 10.0,
];

/// Bounds from 10 us to 10 s, two a decade where claims are usually answered. All histograms of pools are coarser than
/// [`SECONDS`], because each bound is a line of 60 bytes or more for each pool.
const CLAIM_SECONDS_BOUNDS: &[f64] = &[1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0, 10.0];

/// Bounds from 10 us to 1 s: requests that wait longer time out anyway.
const QUEUE_WAIT_BOUNDS: &[f64] = &[1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 1.0];

/// Bounds from 10 ms to a day.
const WAIT_SECONDS_BOUNDS: &[f64] = &[0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0];

/// Bounds of 1 and 2 shards, then powers of four.
const SHARDS_TRIED_BOUNDS: &[f64] = &[1.0, 2.0, 4.0, 16.0, 64.0, 256.0];

/// Bounds in powers of four up to a million.
const ROWS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// Bounds in powers of four from 64 bytes to 256 MiB.
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
        /// Definitions of all metrics, in the order of the documentation.
        pub const ALL: &[MetricDefinition] =
            &[$(MetricDefinition { name: $name, kind: $kind, labels: &[$($label),*], help: $help }),*];
    };
}

definitions! {
    CLAIMS = "hotpool_claims_total", MetricKind::Counter, ["pool", "outcome"], "Claim requests, by outcome.";
    CLAIM_SECONDS = "hotpool_claim_seconds", MetricKind::Histogram(CLAIM_SECONDS_BOUNDS), ["pool"],
        "Time from a claim's arrival at the scheduler to its reply, of claims that did not wait for capacity. All claims are \
         measured while load is light, one in 16 above some thousands a second, and the first of those that a shard answers in \
         one run.";
    SHARD_QUEUE_WAIT = "hotpool_shard_queue_wait_seconds", MetricKind::Histogram(QUEUE_WAIT_BOUNDS), ["pool"],
        "Time that requests wait in the queue of their shard. Measured for the requests that hotpool_claim_seconds measures.";
    RELEASES = "hotpool_releases_total", MetricKind::Counter, ["pool"],
        "Release requests that a shard processed, whatever their outcome. Of a release in two steps only the second counts.";
    WORKERS = "hotpool_workers", MetricKind::Gauge, ["state", "pool"],
        "Workers by state, each counted once: idle, busy, or unschedulable without a claim, by the first reason that applies. \
         The sum is the number of workers.";
    SHARD_QUEUE_DEPTH = "hotpool_shard_queue_depth", MetricKind::Gauge, ["pool"], "Requests in the queues of the pool's shards.";
    SHARD_QUEUE_REJECTIONS = "hotpool_shard_queue_rejections_total", MetricKind::Counter, ["pool"],
        "Requests rejected because the queue of a shard was full.";
    CLAIM_SHARDS_TRIED = "hotpool_claim_shards_tried", MetricKind::Histogram(SHARDS_TRIED_BOUNDS), ["pool"],
        "Shards tried per claim. Measured for the claims that hotpool_claim_seconds measures.";
    WORKER_UPDATES = "hotpool_worker_updates_total", MetricKind::Counter, ["pool"], "Changes of workers or of the claims on them.";
    STORE_WRITE_ROWS = "hotpool_store_write_rows", MetricKind::Histogram(ROWS), [], "Rows in one write batch.";
    STORE_WRITE_BYTES = "hotpool_store_write_bytes", MetricKind::Histogram(BYTES), [], "Bytes of rows in one write batch.";
    STORE_WRITE_SECONDS = "hotpool_store_write_seconds", MetricKind::Histogram(SECONDS), [],
        "Time from sending write batches to the store to its answer.";
    STORE_WRITES = "hotpool_store_writes_total", MetricKind::Counter, ["outcome"], "Write batches sent to the store, by outcome.";
    STORE_LAG = "hotpool_store_lag_seconds", MetricKind::Gauge, ["pool"],
        "Age of the oldest change that the store does not have: a crash loses memory-acknowledged claims of that time.";
    EVICTIONS = "hotpool_evictions_total", MetricKind::Counter, ["pool"], "Claims evicted for one with a higher priority.";
    CLAIMS_EXPIRED = "hotpool_claims_expired_total", MetricKind::Counter, ["pool", "reason"],
        "Claims that a deadline ended, by deadline: not confirmed, not renewed, not cleaned up, or not reported by the worker.";
    CLAIMS_LOST = "hotpool_claims_lost_total", MetricKind::Counter, ["pool"], "Claims that ended because their worker was lost.";
    WORKERS_LOST = "hotpool_workers_lost_total", MetricKind::Counter, ["pool"],
        "Workers that sent no heartbeat for longer than the pool allows.";
    LOST_WORKERS_DELETED = "hotpool_lost_workers_deleted_total", MetricKind::Counter, ["pool"],
        "Workers deleted after they had been lost for as long as the pool keeps lost workers.";
    WORKERS_UNSCHEDULABLE = "hotpool_workers_unschedulable", MetricKind::Gauge, ["reason", "pool"],
        "Unschedulable workers by reason, with or without claims. A worker with several reasons counts under each.";
    HEARTBEATS = "hotpool_heartbeats_total", MetricKind::Counter, ["pool"], "Heartbeats of registered workers.";
    HEARTBEATS_IGNORED = "hotpool_heartbeats_ignored_total", MetricKind::Counter, ["pool"],
        "Heartbeats ignored because their seq was lower than an earlier one since the registration. hotpool_heartbeats_total \
         includes them.";
    CLAIMS_READOPTED = "hotpool_claims_readopted_total", MetricKind::Counter, ["pool"],
        "Claims whose record was lost in a stop and that were readopted because their worker reported them.";
    CLAIM_REVOCATIONS = "hotpool_claim_revocations_total", MetricKind::Counter, ["pool"],
        "Claims that a worker reported and was told to stop.";
    CLAIMS_ROLLED_BACK = "hotpool_claims_rolled_back_total", MetricKind::Counter, ["pool"],
        "Claims rolled back because the reply did not reach the caller: the store did not confirm the record in time, the \
         connection was closed, or the reply could not be sent. Members of aborted gangs, and claims ended in a recovery because \
         another pool holds the key, are not counted.";
    CLAIMS_PENDING = "hotpool_claims_pending", MetricKind::Gauge, ["pool"],
        "Claims queued for capacity. A claim that may use several pools is queued in each.";
    WAIT_SECONDS = "hotpool_wait_seconds", MetricKind::Histogram(WAIT_SECONDS_BOUNDS), ["pool"],
        "Time that claims were queued before they were granted.";
    QUOTA_CLAIMS_PENDING = "hotpool_quota_claims_pending", MetricKind::Gauge, [],
        "Claims queued because the quota of their tenant is used up.";
    WATCHERS = "hotpool_watchers", MetricKind::Gauge, ["pool"], "Open watches of the events of a pool.";
    WATCH_EVENTS_DROPPED = "hotpool_watch_events_dropped_total", MetricKind::Counter, ["pool"],
        "Events dropped before a watcher read them, counted for each watcher.";
    RECOVERY = "hotpool_recovery_seconds", MetricKind::Gauge, [], "Duration of the last recovery.";
    ACCOUNTING_MISMATCH = "hotpool_accounting_mismatch", MetricKind::Gauge, ["pool"],
        "Mismatches in the accounting of the pool's shards; must stay 0. It is the sum of two comparisons: the number of busy \
         workers in the capacity accounting with the number that the shard counts itself, and for each worker its free \
         resources, per GPU, with its capacity minus its claims. Active shards compare the counts once a second, and each time \
         check about 1,024 workers and claims, until all were checked since the last change. The sums of free resources over \
         workers are compared in debug builds and recoveries only.";
    SHARD_RESTARTS = "hotpool_shard_restarts_total", MetricKind::Counter, ["pool"], "Shards restarted after a panic.";
    SHARDS = "hotpool_shards", MetricKind::Gauge, ["state"], "Shards by state. The service is ready if all are serving.";
    SHARDS_MAX = "hotpool_shards_max", MetricKind::Gauge, [],
        "Most shards of all pools together (server.max_shards). A PUT of a pool that would exceed it is answered 409.";
    READY = "hotpool_ready", MetricKind::Gauge, [],
        "1 if every shard is serving and the store accepts records, else 0; /readyz shows the reason.";
    SHARD_WORKERS_MIN = "hotpool_shard_workers_min", MetricKind::Gauge, ["pool"],
        "Workers of the pool's smallest shard, schedulable or not. Compare it with the mean and the maximum for the balance.";
    SHARD_WORKERS_MEAN = "hotpool_shard_workers_mean", MetricKind::Gauge, ["pool"], "Mean number of workers of the pool's shards.";
    SHARD_WORKERS_MAX = "hotpool_shard_workers_max", MetricKind::Gauge, ["pool"], "Workers of the pool's largest shard.";
    SHARD_BUSY_WORKERS_MIN = "hotpool_shard_busy_workers_min", MetricKind::Gauge, ["pool"],
        "Busy workers of the pool's shard with the fewest of them.";
    SHARD_BUSY_WORKERS_MEAN = "hotpool_shard_busy_workers_mean", MetricKind::Gauge, ["pool"],
        "Mean number of busy workers of the pool's shards.";
    SHARD_BUSY_WORKERS_MAX = "hotpool_shard_busy_workers_max", MetricKind::Gauge, ["pool"],
        "Busy workers of the pool's shard with the most of them.";
    FENCE_REFUSALS = "hotpool_fence_refusals_total", MetricKind::Counter, [],
        "Confirmations, releases and other changes of a claim that were rejected because another holder has the key.";
    BUILD_INFO = "hotpool_build_info", MetricKind::Gauge, ["version"], "Version of the program as a label; the value is 1.";
    RUNTIME_WORKERS = "hotpool_runtime_workers", MetricKind::Gauge, [], "Threads of the runtime that run tasks.";
    RUNTIME_TASKS = "hotpool_runtime_tasks", MetricKind::Gauge, [], "Tasks of the runtime that have not ended.";
    RUNTIME_QUEUE = "hotpool_runtime_queue_depth", MetricKind::Gauge, [], "Tasks in the queue that all threads share.";
    RUNTIME_BUSY = "hotpool_runtime_busy_seconds_total", MetricKind::Counter, [],
        "Time that the threads of the runtime were busy, summed over them: the rate is the number of busy cores.";
    RECONNECTS = "hotpool_store_reconnects_total", MetricKind::Counter, [], "Connections to servers of the store that were made again.";
    RETRIES = "hotpool_store_retries_total", MetricKind::Counter, [],
        "Rounds of write batches of which the store did not answer all, so that they are sent again.";
    NODE_WRITES = "hotpool_store_node_writes_total", MetricKind::Counter, ["node"],
        "Write batches sent to one server of the store. From the 65th server on they are counted as `other`.";
    NODE_BYTES = "hotpool_store_node_bytes_total", MetricKind::Counter, ["node"], "Bytes of rows sent to one server of the store.";
    GANGS = "hotpool_gangs_total", MetricKind::Counter, ["outcome"], "Gang requests, by outcome.";
    RENEWALS = "hotpool_store_renewals_total", MetricKind::Counter, ["outcome"],
        "Renewals of the ownership of the store, by outcome.";
    LEASE = "hotpool_store_lease_seconds", MetricKind::Gauge, [],
        "Time until the ownership of the store lapses unless it is renewed; at 0 it has lapsed, and no reply leaves. Absent for a \
         store without leases.";
    ADOPTION = "hotpool_adoption_open", MetricKind::Gauge, [],
        "1 while claims that the last stop may have lost are readopted when their workers report them, else 0.";
    SHARD_SNAPSHOTS = "hotpool_shard_snapshots_total", MetricKind::Counter, [], "Snapshots of whole shards written to the store.";
    HTTP_REQUESTS = "hotpool_http_requests_total", MetricKind::Counter, ["route", "status"], "HTTP requests answered.";
    GRPC_REQUESTS = "hotpool_grpc_requests_total", MetricKind::Counter, ["method", "code"],
        "gRPC calls answered, by the status at the beginning of the answer. Each request of a claim stream counts as its unary \
         call.";
    RESP_COMMANDS = "hotpool_resp_commands_total", MetricKind::Counter, ["command", "outcome"],
        "Commands of RESP clients answered; `claims` counts each of its claims.";
    RESP_CONNECTIONS = "hotpool_resp_connections", MetricKind::Gauge, [], "Open connections of RESP clients.";
    RESP_ENDED = "hotpool_resp_connections_ended_total", MetricKind::Counter, ["reason"],
        "Connections of RESP clients that the service closed, by reason.";
    HTTP_CONNECTIONS = "hotpool_http_connections", MetricKind::Gauge, [], "Open connections of HTTP and gRPC.";
    HTTP_REFUSED = "hotpool_http_connections_refused_total", MetricKind::Counter, [],
        "Connections above server.max_connections that were closed without an answer to a probe or a scrape.";
    HTTP_EXCESS = "hotpool_http_excess_connections_total", MetricKind::Counter, ["outcome"],
        "Connections above server.max_connections, by outcome: each may get the answer to one probe or scrape.";
    REQUESTS_REFUSED = "hotpool_requests_refused_total", MetricKind::Counter, ["reason"],
        "HTTP and gRPC requests rejected because of their headers, such as a host that is not served or a cross-site origin.";
}

/// Handles of the metrics that do not belong to a pool.
pub struct ProcessMetrics {
    /// Handle of the histogram `hotpool_store_write_rows`.
    pub store_write_rows: Histogram,
    /// Handle of the histogram `hotpool_store_write_bytes`.
    pub store_write_bytes: Histogram,
    /// Handle of the histogram `hotpool_store_write_seconds`.
    pub store_write_seconds: Histogram,
    store_writes: Vec<Counter>,
    claims: ClaimCounters,
    /// Handle of the gauge `hotpool_quota_claims_pending`.
    pub quota_claims_pending: Gauge,
    /// Handle of the gauge `hotpool_recovery_seconds`.
    pub recovery_seconds: Gauge,
    shards: Vec<Gauge>,
    /// Handle of the gauge `hotpool_shards_max`.
    pub shards_max: Gauge,
    /// Handle of the counter `hotpool_shard_snapshots_total`.
    pub shard_snapshots: Counter,
    /// Handle of the counter `hotpool_store_reconnects_total`.
    pub store_reconnects: Counter,
    /// Handle of the counter `hotpool_store_retries_total`.
    pub store_retries: Counter,
    renewals: Vec<Counter>,
    gangs: Vec<Counter>,
    /// Gauge of `hotpool_store_lease_seconds`, created with the first lease.
    store_lease: OnceLock<Gauge>,
    /// Handle of the gauge `hotpool_adoption_open`.
    pub adoption_open: Gauge,
    /// Handle of the gauge `hotpool_ready`.
    pub ready: Gauge,
    /// Handle of the counter `hotpool_fence_refusals_total`.
    pub fence_refusals: Counter,
    http_requests: Vec<OnceLock<Counter>>,
    grpc_requests: Vec<OnceLock<Counter>>,
    resp_commands: Vec<OnceLock<Counter>>,
    /// Handle of the gauge `hotpool_resp_connections`.
    pub resp_connections: Gauge,
    resp_ended: Vec<Counter>,
    /// Handle of the gauge `hotpool_http_connections`.
    pub http_connections: Gauge,
    /// Handle of the counter `hotpool_http_connections_refused_total`.
    pub http_connections_refused: Counter,
    http_excess: Vec<Counter>,
    requests_refused: Vec<Counter>,
}

/// Statuses that the HTTP edge answers with; any other is counted as `other`.
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
            store_lease: OnceLock::new(),
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

    /// Counter of claims with this outcome whose request names no existing pool.
    pub fn claims(&self, outcome: ClaimOutcome) -> &PoolCounter {
        self.claims.of(outcome)
    }

    /// Counter of write batches with this outcome.
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

    /// Sets the seconds until the lease on the store ends; a store without leases has no series.
    pub fn set_store_lease(&self, seconds: Option<f64>) {
        if let Some(seconds) = seconds {
            self.store_lease.get_or_init(|| metrics::gauge!(LEASE)).set(seconds);
        }
    }

    /// Gauge of shards in this state.
    pub fn shards(&self, state: ShardState) -> &Gauge {
        &self.shards[state as usize]
    }

    /// Counter of HTTP requests on this route that were answered with this status.
    pub fn http_requests(&self, route: HttpRoute, status: u16) -> &Counter {
        let column = STATUSES.iter().position(|&known| known == status).unwrap_or(STATUSES.len());
        // Created at first use, so that a scrape shows only combinations that have occurred.
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

    /// Counter of RESP commands with this outcome.
    pub fn resp_commands(&self, command: RespCommand, outcome: RespOutcome) -> &Counter {
        self.resp_commands[command as usize * RespOutcome::ALL.len() + outcome as usize].get_or_init(
            || metrics::counter!(RESP_COMMANDS, "command" => command.as_str(), "outcome" => outcome.as_str()),
        )
    }

    /// Counter of connections above the limit with this outcome.
    pub fn http_excess_connections(&self, outcome: ExcessOutcome) -> &Counter {
        &self.http_excess[outcome as usize]
    }

    /// Counter of requests that were rejected for this reason because of their headers.
    pub fn requests_refused(&self, reason: RequestRefusal) -> &Counter {
        &self.requests_refused[reason as usize]
    }

    /// Counter of RESP connections that were closed for this reason.
    pub fn resp_ended(&self, reason: RespCloseReason) -> &Counter {
        &self.resp_ended[reason as usize]
    }
}

/// Handles of this process, created at the first call.
pub fn metrics() -> &'static ProcessMetrics {
    static PROCESS: LazyLock<ProcessMetrics> = LazyLock::new(ProcessMetrics::new);
    &PROCESS
}

#[cfg(test)]
mod tests;
