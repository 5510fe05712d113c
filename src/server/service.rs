//! The service, wired in flow order: limits, port, store, scheduler, edge; and its end in the reverse order.

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
use crate::limits::EXCESS_CONNECTIONS_MAX;
use crate::metrics::{self, MetricsExporter, MetricsInstallError};
use crate::model::PoolName;
use crate::model::request_error::RequestError;
use crate::persist::store::memory::MemoryStore;
use crate::persist::store::redb::RedbStore;
use crate::persist::store::redis::RedisStore;
use crate::persist::store::{SharedStore, StoreError};
use crate::scheduler::{self, Scheduler, SchedulerSettings};
use crate::server::config::{self, Config, PoolConfig, RespListen, ServerConfig, StoreUrl};

/// How long the requests in flight may take to end once the service stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(4);
/// How long the scheduler may take to flush after that. Together below the 10 s that supervisors wait.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(4);
/// How often histograms are folded into their buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before an address that is in use is tried again.
const BIND_RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often it is tried again: for two seconds.
const BIND_RETRIES_MAX: u32 = 40;
/// File descriptors beside those of the connections: the store, the runtime, the standard streams, and the connections that
/// are kept for probes.
const RESERVED_FILES: u64 = 128 + EXCESS_CONNECTIONS_MAX as u64;

const _: () = assert!(SHUTDOWN_GRACE.as_secs() + FLUSH_TIMEOUT.as_secs() < 10);

/// The service could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceStartError {
    /// The port is taken, or the address is not ours.
    #[error("cannot listen on {address} ({flag}): {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What says so.
        flag: &'static str,
        /// Why.
        error: std::io::Error,
    },
    /// The store cannot be used.
    #[error("cannot use the store {url}: {error}")]
    Store {
        /// Which.
        url: StoreUrl,
        /// Why.
        error: StoreError,
    },
    /// A pool of the configuration cannot be set up.
    #[error("cannot set up the pool {name} of the configuration: {refusal}")]
    Pool {
        /// Which.
        name: PoolName,
        /// Why.
        refusal: RequestError,
    },
    /// Metrics cannot be set up.
    #[error("{0}")]
    Metrics(#[from] MetricsInstallError),
}

/// Where a service listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddresses {
    /// HTTP and gRPC.
    pub http: SocketAddr,
    /// RESP, if it is served.
    pub resp: Option<SocketAddr>,
}

/// A service that holds its ports and its store, and has not begun.
pub struct Service {
    http: TcpListener,
    resp: Option<TcpListener>,
    addresses: ListenAddresses,
    scheduler: Scheduler,
    exporter: MetricsExporter,
    /// Most connections of all ports together.
    connections: usize,
    config: Config,
}

/// Called once, when calls are answered.
type ReadyCallback = Box<dyn FnOnce(ListenAddresses) + Send>;

impl Service {
    /// Binds the ports, then opens the store.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub fn build(config: Config) -> BoxFuture<'static, Result<Self, ServiceStartError>> {
        // Boxed, so that the code of the service is made with the library and not with each program that runs it.
        Self::bind(config).boxed()
    }

    async fn bind(config: Config) -> Result<Self, ServiceStartError> {
        let ports = if config.server.resp_listen.0.is_some() { 2 } else { 1 };
        let connections = allowed_connections(ports * config.server.max_connections);
        let exporter = metrics::install()?;
        let ServerConfig { listen: address, resp_listen: RespListen(resp_address), .. } = config.server;
        let wrong = |flag, address| move |error| ServiceStartError::Listen { address, flag, error };
        let (http, http_address) = bind_with_retry(address).await.map_err(wrong("--listen", address))?;
        let resp = match resp_address {
            Some(address) => Some(bind_with_retry(address).await.map_err(wrong("--resp-listen", address))?),
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

    /// Serves until `stop` resolves. While the store is recovered every call is answered 503 `loading`; then
    /// `ready` is called with the addresses.
    ///
    /// # Errors
    /// The store cannot be recovered, or a pool of the configuration cannot be set up.
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
                let [budget, of_resp] = ConnectionBudget::for_ports(max, connections);
                let limits = ConnectionLimits { budget: of_resp, idle };
                let started = edges.resp.clone().start(resp, limits, SHUTDOWN_GRACE, stopped.clone());
                let wrong = |error| ServiceStartError::Listen { address, flag: "--resp-listen", error };
                (budget, Some(started.map_err(wrong)?))
            }
            None => {
                let [budget] = ConnectionBudget::for_ports(max, connections);
                (budget, None)
            }
        };
        let edge = tokio::spawn(listener::serve(http, edges, budget, SHUTDOWN_GRACE, async move {
            // Either outcome means the end: a word, or nobody left to say it.
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
                tracing::error!(%error, "an edge ended badly");
            }
        }
        if !timeout(FLUSH_TIMEOUT, scheduler.stop()).await.unwrap_or(false) {
            tracing::warn!("the store did not take everything; what was acknowledged as durable is in it");
        }
        upkeep.abort();
        started.map(|_| ()).map_err(|error| match error {
            scheduler::SchedulerStartError::Store(error) => ServiceStartError::Store { url: config.store.url, error },
            scheduler::SchedulerStartError::Pool { name, error } => ServiceStartError::Pool { name, refusal: error },
        })
    }
}

/// Takes an address. One that is in use is tried again for a while: a process that was just killed may hold it still.
async fn bind_with_retry(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let mut tries = 0;
    let listener = loop {
        match listener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && tries < BIND_RETRIES_MAX => {
                if tries == 0 {
                    let for_ms = (BIND_RETRY_PAUSE * BIND_RETRIES_MAX).as_millis();
                    tracing::warn!(%address, for_ms, "the address is in use; trying again");
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

/// Opens the store; on a thread of its own, as it reads and locks files.
///
/// # Errors
/// It cannot be used. A Redis that is away is none: it is connected to later.
pub async fn open_store(settings: config::StoreConfig) -> Result<SharedStore, StoreError> {
    let opened = tokio::task::spawn_blocking(move || match settings.url.clone() {
        StoreUrl::Memory => Ok(Arc::new(MemoryStore) as SharedStore),
        StoreUrl::Redis(url) => {
            RedisStore::open(settings.redis_options(url)).map(|store| Arc::new(store) as SharedStore)
        }
        StoreUrl::Redb(dir) => RedbStore::open(&dir).map(|store| Arc::new(store) as SharedStore),
    });
    opened.await.unwrap_or_else(|error| Err(StoreError::Unusable(format!("opening it failed: {error}"))))
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

/// Connections of all ports together, at most `wanted`. Each takes an open file, of which the usual limit is 1,024; it is raised
/// as far as it goes. With more connections than files nobody could be accepted for whom some are kept.
fn allowed_connections(wanted: usize) -> usize {
    let files = wanted as u64 + RESERVED_FILES;
    let limit = match rlimit::increase_nofile_limit(files) {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            return wanted.max(1);
        }
    };
    let allowed = usize::try_from(limit.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX).min(wanted).max(1);
    if allowed < wanted {
        tracing::warn!(
            limit,
            needed = files,
            connections = allowed,
            "the limit of open files is below what server.max_connections needs: the ports together take fewer connections"
        );
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_wants_no_connections_is_allowed_one() {
        assert_eq!(allowed_connections(0), 1);
    }
}
