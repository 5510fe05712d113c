//! Service process: wires limits, ports, store, scheduler and edges in this order, and stops them in reverse.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::api::resp::ConnectionLimits;
use crate::api::{ApiEdges, ConnectionBudget, RequestLimits, listener};
use crate::environment::Environment;
use crate::limits::EXCESS_CONNECTIONS_MAX;
use crate::metrics::{self, MetricsExporter, MetricsInstallError};
use crate::model::PoolName;
use crate::model::request_error::RequestError;
use crate::persist::store::file::FileStore;
use crate::persist::store::memory::MemoryStore;
use crate::persist::store::redis::RedisStore;
use crate::persist::store::{SharedStore, StoreError};
use crate::scheduler::{self, Scheduler, SchedulerSettings};
use crate::server::config::{self, Config, PoolConfig, RespListen, ServerConfig, StoreUrl};

/// Longest time for requests in flight to finish once the service stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(4);
/// Longest time for the scheduler to flush after that. Both together are below the 10 s that supervisors wait.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(4);
/// Interval at which histogram samples are moved into their buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before another attempt to bind an address that is in use.
const BIND_RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Maximum number of attempts to bind an address: two seconds of them.
const BIND_RETRIES_MAX: u32 = 40;
/// File descriptors reserved for the store, the runtime, the standard streams, and the excess connections of probes.
const RESERVED_FILES: u64 = 128 + EXCESS_CONNECTIONS_MAX as u64;

const _: () = assert!(SHUTDOWN_GRACE.as_secs() + FLUSH_TIMEOUT.as_secs() < 10);

/// Reason for which the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceStartError {
    /// Port that is in use, or address of another machine.
    #[error("cannot listen on {address} ({flag}): {error}")]
    Listen {
        /// Address that cannot be bound.
        address: SocketAddr,
        /// Flag that sets the address.
        flag: &'static str,
        /// Error of the operating system.
        error: std::io::Error,
    },
    /// Store that cannot be used.
    #[error("cannot use the store {url}: {error}")]
    Store {
        /// URL of the store.
        url: StoreUrl,
        /// Error of the store.
        error: StoreError,
    },
    /// Pool of the configuration that cannot be created.
    #[error("cannot create the pool {name} of the configuration: {refusal}")]
    Pool {
        /// Name of the pool.
        name: PoolName,
        /// Error of the request that creates it.
        refusal: RequestError,
    },
    /// Metrics that cannot be exported.
    #[error("{0}")]
    Metrics(#[from] MetricsInstallError),
}

/// Addresses that a service listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddresses {
    /// Address of HTTP and gRPC.
    pub http: SocketAddr,
    /// Address of RESP, if it is served.
    pub resp: Option<SocketAddr>,
}

/// Service that has bound its ports and opened its store, and does not serve yet.
pub struct Service {
    http: TcpListener,
    resp: Option<TcpListener>,
    addresses: ListenAddresses,
    scheduler: Scheduler,
    exporter: MetricsExporter,
    /// Maximum number of connections of all ports together.
    connections: usize,
    config: Config,
}

/// Callback that is called once, when the service is ready.
type ReadyCallback = Box<dyn FnOnce(ListenAddresses) + Send>;

impl Service {
    /// Binds the ports, then opens the store.
    ///
    /// # Errors
    /// [`ServiceStartError`] if one of them fails.
    pub fn build(config: Config) -> BoxFuture<'static, Result<Self, ServiceStartError>> {
        // Boxed, so that the code is compiled with the library and not in each program that runs the service.
        Self::bind(config).boxed()
    }

    async fn bind(config: Config) -> Result<Self, ServiceStartError> {
        let ports = if config.server.resp_listen.0.is_some() { 2 } else { 1 };
        let connections = allowed_connections(ports * config.server.max_connections);
        let exporter = metrics::install()?;
        let ServerConfig { listen: address, resp_listen: RespListen(resp_address), .. } = config.server;
        let failed = |flag, address| move |error| ServiceStartError::Listen { address, flag, error };
        let (http, http_address) = bind_with_retry(address).await.map_err(failed("--listen", address))?;
        let resp = match resp_address {
            Some(address) => Some(bind_with_retry(address).await.map_err(failed("--resp-listen", address))?),
            None => None,
        };
        let (resp, resp_address) = resp.unzip();
        let addresses = ListenAddresses { http: http_address, resp: resp_address };
        let url = config.store.url.clone();
        let store = open_store(config.store.clone()).await.map_err(|error| ServiceStartError::Store { url, error })?;
        let settings = SchedulerSettings { store_wait_ms: config.store.wait_ms, shards_max: config.server.max_shards };
        let scheduler = Scheduler::new(store, settings);
        Ok(Self { http, resp, addresses, scheduler, exporter, connections, config })
    }

    /// Serves until `stop` resolves. During the recovery every call is answered 503 `loading`; after it `ready` is called
    /// with the addresses.
    ///
    /// # Errors
    /// [`ServiceStartError`] if the store cannot be recovered, or a pool of the configuration cannot be created.
    pub fn run(
        self,
        ready: impl FnOnce(ListenAddresses) + Send + 'static,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> BoxFuture<'static, Result<(), ServiceStartError>> {
        self.run_boxed(Box::new(ready), stop.boxed())
    }

    fn run_boxed(
        self,
        ready: ReadyCallback,
        stop: BoxFuture<'static, ()>,
    ) -> BoxFuture<'static, Result<(), ServiceStartError>> {
        self.serve(ready, stop).boxed()
    }

    async fn serve(self, ready: ReadyCallback, mut stop: BoxFuture<'static, ()>) -> Result<(), ServiceStartError> {
        let Self { http, resp, addresses, scheduler, exporter, connections, config } = self;
        let (stopping, mut stopped) = watch::channel(());
        let bounds = RequestLimits {
            body_bytes_max: config.server.max_body_bytes,
            timeout: Duration::from_millis(config.server.request_timeout_ms),
        };
        let edges = ApiEdges::new(scheduler.clone(), exporter.clone(), bounds, stopped.clone());
        let edges = edges.with_hosts(config.server.hosts);
        let idle = Some(Duration::from_millis(config.server.idle_ms)).filter(|idle| !idle.is_zero());
        let max = config.server.max_connections;
        let (budget, resp) = match resp.zip(addresses.resp) {
            Some((resp, address)) => {
                let [budget, resp_budget] = ConnectionBudget::for_ports(max, connections);
                let limits = ConnectionLimits { budget: resp_budget, idle };
                let started = edges.resp.clone().start(resp, limits, SHUTDOWN_GRACE, stopped.clone());
                let failed = |error| ServiceStartError::Listen { address, flag: "--resp-listen", error };
                (budget, Some(started.map_err(failed)?))
            }
            None => {
                let [budget] = ConnectionBudget::for_ports(max, connections);
                (budget, None)
            }
        };
        let edge = tokio::spawn(listener::serve(http, edges, budget, SHUTDOWN_GRACE, async move {
            // A change and a closed channel both mean stop.
            let _ = stopped.changed().await;
        }));
        let upkeep = spawn_upkeep(exporter);

        let pools = config.pools.into_iter().map(|PoolConfig { name, spec }| (name, spec)).collect();
        let started = tokio::select! {
            started = scheduler.start_with(pools) => started.map(|()| true),
            () = &mut stop => Ok(false),
        };
        if matches!(started, Ok(true)) {
            ready(addresses);
            stop.await;
        }

        scheduler.drain();
        drop(stopping);
        for edge in [Some(edge), resp].into_iter().flatten() {
            if let Err(error) = edge.await {
                tracing::error!(%error, "an edge task failed");
            }
        }
        if !timeout(FLUSH_TIMEOUT, scheduler.stop()).await.unwrap_or(false) {
            tracing::warn!(
                "the store did not accept every record in time; durable claims are stored, memory-acknowledged ones may be lost"
            );
        }
        upkeep.abort();
        started.map(|_| ()).map_err(|error| match error {
            scheduler::SchedulerStartError::Store(error) => ServiceStartError::Store { url: config.store.url, error },
            scheduler::SchedulerStartError::Pool { name, error } => ServiceStartError::Pool { name, refusal: error },
        })
    }
}

/// Binds an address. An address in use is retried for a while, because a process that was just killed may still hold it.
async fn bind_with_retry(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let mut tries = 0;
    let listener = loop {
        match listener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && tries < BIND_RETRIES_MAX => {
                if tries == 0 {
                    let for_ms = (BIND_RETRY_PAUSE * BIND_RETRIES_MAX).as_millis();
                    tracing::warn!(%address, for_ms, "the address is in use; retrying");
                }
                tries += 1;
                sleep(BIND_RETRY_PAUSE).await;
            }
            bound => break bound?,
        }
    };
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Opens the store on a blocking thread, because it reads and locks files.
///
/// # Errors
/// [`StoreError`] if the store cannot be used. An unreachable Redis is no error here: connections are made later.
pub async fn open_store(settings: config::StoreConfig) -> Result<SharedStore, StoreError> {
    let opened = tokio::task::spawn_blocking(move || match settings.url.clone() {
        StoreUrl::Memory => Ok(Arc::new(MemoryStore) as SharedStore),
        StoreUrl::Redis(url) => RedisStore::open(settings.redis_options(url), Environment::system())
            .map(|store| Arc::new(store) as SharedStore),
        StoreUrl::File(dir) => FileStore::open(&dir).map(|store| Arc::new(store) as SharedStore),
    });
    opened.await.unwrap_or_else(|error| Err(StoreError::Unusable(format!("opening the store failed: {error}"))))
}

fn spawn_upkeep(exporter: MetricsExporter) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = interval(UPKEEP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            exporter.upkeep();
        }
    })
}

/// Number of connections of all ports together, at most `wanted`. Each needs an open file, of which the usual limit is 1,024; the
/// limit is raised as far as allowed. With more connections than files, the reserved probes could not be accepted.
fn allowed_connections(wanted: usize) -> usize {
    let files = wanted as u64 + RESERVED_FILES;
    let limit = match rlimit::increase_nofile_limit(files) {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files; raise it (ulimit -n) if connections fail");
            return wanted.max(1);
        }
    };
    let allowed = usize::try_from(limit.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX).min(wanted).max(1);
    if allowed < wanted {
        tracing::warn!(
            limit,
            needed = files,
            connections = allowed,
            "the limit of open files is below what server.max_connections needs: fewer connections are accepted; raise it (ulimit -n)"
        );
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_one_connection_is_allowed() {
        assert_eq!(allowed_connections(0), 1);
    }
}
