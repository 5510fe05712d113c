//! Load targets: a scheduler in this process, a service over HTTP, gRPC or RESP, or a baseline in Redis or PostgreSQL,
//! behind one interface.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, anyhow, bail};

use super::baseline::{BaselineTarget, RoundTripCounts};
use super::claim_input::{NAMESPACE, PoolOccupancy, TargetPool};
use super::grant_checker::worker_id;
use super::grpc::GrpcTargetClient;
use super::http::{HttpTargetClient, ServiceOrigin};
use super::postgres::PostgresTarget;
use super::resp::RespTargetClient;
use super::stats::TargetError;
use super::target_client::TargetClient;
use super::url::TargetUrl;
use hotpool::limits::BATCH_ITEMS_MAX;
use hotpool::model::request_error::RequestError;
use hotpool::model::{ClaimFilter, PoolName, WorkerCapacity, WorkerId, WorkerSpec};
use hotpool::scheduler::{DeleteMode, Scheduler, SchedulerSettings};
use hotpool::server::config::{self, StoreUrl};
use hotpool::server::service;

/// Number of requests that may be outstanding on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionSharing {
    /// Single request at a time.
    Single,
    /// Several requests at a time.
    Multiplexed,
}

/// Target of a load, with the pool of this run.
pub struct LoadTarget {
    pool: String,
    kind: TargetKind,
}

enum TargetKind {
    Inproc(Scheduler),
    /// HTTP service; claims go over RESP if `resp` names its address.
    Http {
        origin: Arc<ServiceOrigin>,
        client: Arc<HttpTargetClient>,
        resp: Option<String>,
    },
    Grpc {
        authority: String,
        client: Box<GrpcTargetClient>,
        /// True if claims and releases go over streams.
        streams: bool,
    },
    Baseline(BaselineTarget),
    Postgres(PostgresTarget),
    /// Bare server, which has no pool: only claims and releases reach it.
    Echo {
        service: Box<Self>,
        workers: AtomicU32,
    },
}

/// Converts a client error to an error of the setup.
fn to_anyhow(failure: TargetError) -> anyhow::Error {
    anyhow!("{failure}")
}

impl TargetKind {
    async fn open(url: &TargetUrl, store: Option<&StoreUrl>, pool: &str) -> Result<Self> {
        Ok(match url {
            TargetUrl::Inproc => {
                let url = store.cloned().unwrap_or(StoreUrl::Memory);
                let settings = config::StoreConfig { url, ..config::StoreConfig::default() };
                let store = service::open_store(settings).await.context("cannot open the store")?;
                let scheduler = Scheduler::new(store, SchedulerSettings::default());
                scheduler.start().await.context("cannot start the scheduler")?;
                Self::Inproc(scheduler)
            }
            TargetUrl::Http(authority) => Self::http(authority, pool, None).await?,
            TargetUrl::Resp { address, http } => Self::http(http, pool, Some(address.clone())).await?,
            TargetUrl::Grpc(authority) | TargetUrl::GrpcStream(authority) => {
                let client = Box::new(GrpcTargetClient::open(authority, pool).await?);
                Self::Grpc { authority: authority.clone(), client, streams: matches!(url, TargetUrl::GrpcStream(_)) }
            }
            // Keys of the run's claims begin with the same tag.
            TargetUrl::Baseline(url) => {
                Self::Baseline(BaselineTarget::open(url, run_tag(pool)).await.map_err(to_anyhow)?)
            }
            TargetUrl::Postgres(url) => {
                Self::Postgres(PostgresTarget::open(url, run_tag(pool)).await.map_err(to_anyhow)?)
            }
            TargetUrl::Echo(service) => {
                let service = Box::new(Box::pin(Self::open(service, store, pool)).await?);
                Self::Echo { service, workers: AtomicU32::new(0) }
            }
        })
    }

    async fn http(authority: &str, pool: &str, resp: Option<String>) -> Result<Self> {
        let origin = Arc::new(ServiceOrigin::new(authority, pool)?);
        let client = Arc::new(HttpTargetClient::open(Arc::clone(&origin), false).await?);
        Ok(Self::Http { origin, client, resp })
    }
}

impl LoadTarget {
    /// Starts the scheduler or connects to the service. `pool` is the name of the pool that [`Self::create`] creates.
    ///
    /// # Errors
    /// Fails if the store cannot be opened or the address does not respond.
    pub async fn open(url: &TargetUrl, store: Option<&StoreUrl>, pool: &str) -> Result<Self> {
        let kind = TargetKind::open(url, store, pool).await?;
        Ok(Self { pool: pool.to_owned(), kind })
    }

    fn name(&self) -> Result<PoolName> {
        Ok(PoolName::new(NAMESPACE, &self.pool)?)
    }

    /// Creates the pool of the run.
    ///
    /// # Errors
    /// Fails if the service rejects it or the pool already exists.
    pub async fn create(&self, fleet: &TargetPool) -> Result<()> {
        let spec = fleet.spec();
        let created = match &self.kind {
            TargetKind::Inproc(scheduler) => scheduler.put_pool(self.name()?, spec).await?.0,
            TargetKind::Http { client, .. } => client.put_pool(&spec).await?,
            TargetKind::Grpc { client, .. } => client.put_pool(&spec).await?,
            TargetKind::Baseline(baseline) => baseline.create(fleet.slots).map(|()| true).map_err(to_anyhow)?,
            TargetKind::Postgres(postgres) => postgres.create(fleet.slots).await.map(|()| true).map_err(to_anyhow)?,
            TargetKind::Echo { .. } => true,
        };
        if !created {
            bail!("the pool {NAMESPACE}/{} already exists", self.pool);
        }
        Ok(())
    }

    /// Registers the workers with these ordinals, at most 10,000, with `slots` slots each.
    ///
    /// # Errors
    /// Fails if the service rejects the batch or one of its workers.
    pub async fn register(&self, workers: std::ops::Range<u32>, slots: u32) -> Result<()> {
        debug_assert!(workers.len() <= BATCH_ITEMS_MAX);
        match &self.kind {
            TargetKind::Inproc(scheduler) => {
                let capacity = WorkerCapacity { slots: slots.into(), ..WorkerCapacity::default() };
                let spec = |id| WorkerSpec { capacity: capacity.clone(), ..WorkerSpec::with_id(id) };
                let specs: Result<Vec<_>, RequestError> =
                    workers.map(|n| WorkerId::new(&worker_id(n)).map(|id| spec(id).into())).collect();
                for outcome in scheduler.register_batch(&self.name()?, specs?).await? {
                    outcome?;
                }
                Ok(())
            }
            TargetKind::Http { client, .. } => client.register(workers, slots).await,
            TargetKind::Grpc { client, .. } => client.register(workers, slots).await,
            TargetKind::Baseline(baseline) => baseline.register(workers).await.map_err(to_anyhow),
            TargetKind::Postgres(postgres) => postgres.register(workers).await.map_err(to_anyhow),
            TargetKind::Echo { workers: registered, .. } => {
                registered.fetch_add(workers.len() as u32, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Opens a connection for one client.
    ///
    /// # Errors
    /// Fails if the service does not accept a connection.
    pub async fn connect(&self, multiplexing: ConnectionSharing) -> Result<TargetClient> {
        let kind = match &self.kind {
            TargetKind::Echo { service, .. } => service,
            kind => kind,
        };
        Ok(match kind {
            // Every client gets a pool name of its own: clones of one name would contend for its reference count.
            TargetKind::Inproc(scheduler) => TargetClient::Inproc { scheduler: scheduler.clone(), pool: self.name()? },
            TargetKind::Http { client, resp: Some(address), .. } => {
                let opened = RespTargetClient::open(address, &self.pool, multiplexing, Arc::clone(client)).await;
                TargetClient::Resp(opened.map_err(to_anyhow)?)
            }
            TargetKind::Http { origin, .. } => {
                let multiplexed = multiplexing == ConnectionSharing::Multiplexed;
                TargetClient::Http(HttpTargetClient::open(Arc::clone(origin), multiplexed).await?)
            }
            TargetKind::Grpc { authority, streams: true, .. } => {
                TargetClient::Grpc(GrpcTargetClient::open_stream(authority, &self.pool).await?)
            }
            TargetKind::Grpc { authority, .. } => {
                TargetClient::Grpc(GrpcTargetClient::open(authority, &self.pool).await?)
            }
            TargetKind::Baseline(baseline) => TargetClient::Baseline(baseline.client()),
            TargetKind::Postgres(postgres) => TargetClient::Postgres(postgres.client()),
            TargetKind::Echo { .. } => bail!("a bare server answers like a service only"),
        })
    }

    /// Counts the workers of the pool by state.
    ///
    /// # Errors
    /// Fails if the service rejects the query.
    pub async fn counts(&self) -> Result<PoolOccupancy> {
        match &self.kind {
            TargetKind::Inproc(scheduler) => {
                let status = scheduler.get_pool(&self.name()?).await?;
                let sum = |figure: fn(&hotpool::model::ShardStatus) -> u64| status.shards.iter().map(figure).sum();
                Ok(PoolOccupancy { total: sum(|s| s.workers), idle: sum(|s| s.idle), busy: sum(|s| s.busy) })
            }
            TargetKind::Http { client, .. } => client.counts().await,
            TargetKind::Grpc { client, .. } => client.counts().await,
            TargetKind::Baseline(baseline) => baseline.counts().await.map_err(to_anyhow),
            TargetKind::Postgres(postgres) => postgres.counts().await.map_err(to_anyhow),
            TargetKind::Echo { workers, .. } => {
                let total = workers.load(Ordering::Relaxed).into();
                Ok(PoolOccupancy { total, idle: total, busy: 0 })
            }
        }
    }

    /// Number of changes that each shard has decided; empty for targets without shards or without this figure.
    ///
    /// # Errors
    /// Fails if the service rejects the query.
    pub async fn shards(&self) -> Result<Vec<u64>> {
        match &self.kind {
            TargetKind::Inproc(scheduler) => {
                let status = scheduler.get_pool(&self.name()?).await?;
                Ok(status.shards.iter().map(|shard| shard.seq).collect())
            }
            TargetKind::Http { client, .. } => client.shards().await,
            TargetKind::Grpc { .. } | TargetKind::Baseline(_) | TargetKind::Postgres(_) | TargetKind::Echo { .. } => {
                Ok(Vec::new())
            }
        }
    }

    /// Deletes a worker, and with it the claims that it holds.
    ///
    /// # Errors
    /// Fails if the service rejects it or the target cannot delete workers.
    pub async fn delete_worker(&self, worker: u32) -> Result<()> {
        match &self.kind {
            TargetKind::Inproc(scheduler) => {
                Ok(scheduler.delete_worker(&self.name()?, &WorkerId::new(&worker_id(worker))?).await?)
            }
            TargetKind::Http { client, .. } => client.delete_worker(worker).await,
            TargetKind::Grpc { client, .. } => client.delete_worker(worker).await,
            TargetKind::Baseline(_) | TargetKind::Postgres(_) | TargetKind::Echo { .. } => {
                bail!("only a scheduler can replace workers")
            }
        }
    }

    /// Counts the claims of the pool on the first page of the listing.
    ///
    /// # Errors
    /// Fails if the service rejects the query.
    pub async fn claims(&self) -> Result<u64> {
        match &self.kind {
            TargetKind::Inproc(scheduler) => {
                let filter = ClaimFilter {
                    namespace: Some(NAMESPACE.into()),
                    pool: Some(self.pool.clone()),
                    ..ClaimFilter::default()
                };
                let page = scheduler.list_claims(&filter, None, hotpool::limits::PAGE_ITEMS_MAX).await?;
                Ok(page.items.len() as u64)
            }
            TargetKind::Http { client, .. } => client.claims().await,
            TargetKind::Grpc { client, .. } => client.claims().await,
            TargetKind::Baseline(baseline) => baseline.claims().await.map_err(to_anyhow),
            TargetKind::Postgres(postgres) => postgres.claims().await.map_err(to_anyhow),
            TargetKind::Echo { .. } => Ok(0),
        }
    }

    /// Round trips of claims and releases, if the target counts them.
    #[must_use]
    pub fn round_trips(&self) -> Option<RoundTripCounts> {
        match &self.kind {
            TargetKind::Baseline(baseline) => Some(baseline.round_trips()),
            TargetKind::Postgres(postgres) => Some(postgres.round_trips()),
            _ => None,
        }
    }

    /// Removes the pool and its contents; succeeds if the pool does not exist.
    ///
    /// # Errors
    /// Fails if the service rejects it.
    pub async fn remove(&self) -> Result<()> {
        match &self.kind {
            TargetKind::Inproc(scheduler) => match scheduler.delete_pool(&self.name()?, DeleteMode::Force).await {
                Ok(()) | Err(RequestError::NotFound(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            TargetKind::Http { client, .. } => client.delete_pool().await,
            TargetKind::Grpc { client, .. } => client.delete_pool().await,
            TargetKind::Baseline(baseline) => baseline.remove().await.map_err(to_anyhow),
            TargetKind::Postgres(postgres) => postgres.remove().await.map_err(to_anyhow),
            TargetKind::Echo { .. } => Ok(()),
        }
    }

    /// Stops the in-process scheduler; a service keeps running.
    pub async fn close(self) {
        if let TargetKind::Inproc(scheduler) = self.kind {
            scheduler.stop().await;
        }
    }
}

/// Prefix of the keys of a run's claims. The random end of the run's name keeps runs apart, and short keys are cheap.
#[must_use]
pub fn run_tag(run: &str) -> &str {
    &run[run.len().saturating_sub(12)..]
}
