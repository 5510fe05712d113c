//! What is loaded: a scheduler in this process, a service over HTTP, gRPC or RESP, or what people do without one. The same
//! few verbs for all.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};

use super::baseline::{BaselineTarget, RoundTripCounts};
use super::claim_input::{NAMESPACE, PoolOccupancy, TargetPool};
use super::grant_checker::worker_id;
use super::grpc::GrpcTargetClient;
use super::http::{HttpTargetClient, ServiceOrigin};
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

/// What is loaded, with the pool of this run.
pub struct LoadTarget {
    pool: String,
    kind: TargetKind,
}

enum TargetKind {
    Inproc(Scheduler),
    /// With claims over RESP where `resp` says.
    Http {
        origin: Arc<ServiceOrigin>,
        link: Arc<HttpTargetClient>,
        resp: Option<String>,
    },
    Grpc {
        authority: String,
        link: Box<GrpcTargetClient>,
        /// Claims and releases go over streams.
        streams: bool,
    },
    Baseline(BaselineTarget),
}

/// What a link or a baseline failed with, as an error of the set-up.
fn to_anyhow(failure: TargetError) -> anyhow::Error {
    anyhow!("{failure}")
}

impl TargetKind {
    async fn http(authority: &str, pool: &str, resp: Option<String>) -> Result<Self> {
        let origin = Arc::new(ServiceOrigin::new(authority, pool)?);
        let link = Arc::new(HttpTargetClient::open(Arc::clone(&origin), false).await?);
        Ok(Self::Http { origin, link, resp })
    }
}

impl LoadTarget {
    /// Starts the scheduler or reaches the service. Makes nothing yet; `pool` is the name that the pool will have.
    ///
    /// # Errors
    /// The store cannot be opened, or nobody answers at the address.
    pub async fn open(url: &TargetUrl, store: Option<&StoreUrl>, pool: &str) -> Result<Self> {
        let kind = match url {
            TargetUrl::Inproc => {
                let url = store.cloned().unwrap_or(StoreUrl::Memory);
                let settings = config::StoreConfig { url, ..config::StoreConfig::default() };
                let store = service::open_store(settings).await.context("cannot open the store")?;
                let scheduler = Scheduler::new(store, SchedulerSettings::default());
                scheduler.start().await.context("cannot start the scheduler")?;
                TargetKind::Inproc(scheduler)
            }
            TargetUrl::Http(authority) => TargetKind::http(authority, pool, None).await?,
            TargetUrl::Resp { address, http } => TargetKind::http(http, pool, Some(address.clone())).await?,
            TargetUrl::Grpc(authority) | TargetUrl::GrpcStream(authority) => {
                let link = Box::new(GrpcTargetClient::open(authority, pool).await?);
                TargetKind::Grpc {
                    authority: authority.clone(),
                    link,
                    streams: matches!(url, TargetUrl::GrpcStream(_)),
                }
            }
            // The keys of the run's claims begin with the same.
            TargetUrl::Baseline(url) => {
                TargetKind::Baseline(BaselineTarget::open(url, run_tag(pool)).await.map_err(to_anyhow)?)
            }
        };
        Ok(Self { pool: pool.to_owned(), kind })
    }

    fn name(&self) -> Result<PoolName> {
        Ok(PoolName::new(NAMESPACE, &self.pool)?)
    }

    /// Makes the pool.
    ///
    /// # Errors
    /// The service's, or the pool is there already.
    pub async fn create(&self, fleet: &TargetPool) -> Result<()> {
        let spec = fleet.spec();
        let created = match &self.kind {
            TargetKind::Inproc(scheduler) => scheduler.put_pool(self.name()?, spec).await?.0,
            TargetKind::Http { link, .. } => link.put_pool(&spec).await?,
            TargetKind::Grpc { link, .. } => link.put_pool(&spec).await?,
            TargetKind::Baseline(baseline) => baseline.create(fleet.slots).map(|()| true).map_err(to_anyhow)?,
        };
        if !created {
            bail!("the pool {NAMESPACE}/{} is there already", self.pool);
        }
        Ok(())
    }

    /// Registers the workers of these ordinals, at most 10,000, each with so many slots.
    ///
    /// # Errors
    /// The service's, for the whole or for one of them.
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
            TargetKind::Http { link, .. } => link.register(workers, slots).await,
            TargetKind::Grpc { link, .. } => link.register(workers, slots).await,
            TargetKind::Baseline(baseline) => baseline.register(workers).await.map_err(to_anyhow),
        }
    }

    /// A client's way in. `multiplexed`: several requests may be outstanding on it.
    ///
    /// # Errors
    /// The service does not take a connection.
    pub async fn connect(&self, multiplexed: bool) -> Result<TargetClient> {
        Ok(match &self.kind {
            // A name of its own: the clients would otherwise fight for the counter of one shared name.
            TargetKind::Inproc(scheduler) => TargetClient::Inproc { scheduler: scheduler.clone(), pool: self.name()? },
            TargetKind::Http { link, resp: Some(address), .. } => {
                let opened = RespTargetClient::open(address, &self.pool, multiplexed, Arc::clone(link)).await;
                TargetClient::Resp(opened.map_err(to_anyhow)?)
            }
            TargetKind::Http { origin, .. } => {
                TargetClient::Http(HttpTargetClient::open(Arc::clone(origin), multiplexed).await?)
            }
            TargetKind::Grpc { authority, streams: true, .. } => {
                TargetClient::Grpc(GrpcTargetClient::open_stream(authority, &self.pool).await?)
            }
            TargetKind::Grpc { authority, .. } => {
                TargetClient::Grpc(GrpcTargetClient::open(authority, &self.pool).await?)
            }
            TargetKind::Baseline(baseline) => TargetClient::Baseline(baseline.link()),
        })
    }

    /// Workers by state.
    ///
    /// # Errors
    /// The service's.
    pub async fn counts(&self) -> Result<PoolOccupancy> {
        match &self.kind {
            TargetKind::Inproc(scheduler) => {
                let status = scheduler.get_pool(&self.name()?).await?;
                let sum = |figure: fn(&hotpool::model::ShardStatus) -> u64| status.shards.iter().map(figure).sum();
                Ok(PoolOccupancy { total: sum(|s| s.workers), idle: sum(|s| s.idle), busy: sum(|s| s.busy) })
            }
            TargetKind::Http { link, .. } => link.counts().await,
            TargetKind::Grpc { link, .. } => link.counts().await,
            TargetKind::Baseline(baseline) => baseline.counts().await.map_err(to_anyhow),
        }
    }

    /// Changes that each shard has decided; none of targets that have no shards or do not show them.
    ///
    /// # Errors
    /// The service's.
    pub async fn shards(&self) -> Result<Vec<u64>> {
        match &self.kind {
            TargetKind::Inproc(scheduler) => {
                let status = scheduler.get_pool(&self.name()?).await?;
                Ok(status.shards.iter().map(|shard| shard.seq).collect())
            }
            TargetKind::Http { link, .. } => link.shards().await,
            TargetKind::Grpc { .. } | TargetKind::Baseline(_) => Ok(Vec::new()),
        }
    }

    /// Deletes a worker; what it holds is lost.
    ///
    /// # Errors
    /// The service's, or the target has no such call.
    pub async fn delete_worker(&self, worker: u32) -> Result<()> {
        match &self.kind {
            TargetKind::Inproc(scheduler) => {
                Ok(scheduler.delete_worker(&self.name()?, &WorkerId::new(&worker_id(worker))?).await?)
            }
            TargetKind::Http { link, .. } => link.delete_worker(worker).await,
            TargetKind::Grpc { link, .. } => link.delete_worker(worker).await,
            TargetKind::Baseline(_) => bail!("the workers of a baseline do not come and go"),
        }
    }

    /// Claims that the pool has: those on the first page of the listing.
    ///
    /// # Errors
    /// The service's.
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
            TargetKind::Http { link, .. } => link.claims().await,
            TargetKind::Grpc { link, .. } => link.claims().await,
            TargetKind::Baseline(baseline) => baseline.claims().await.map_err(to_anyhow),
        }
    }

    /// Round trips that claims and releases took, if the target counts them.
    #[must_use]
    pub fn round_trips(&self) -> Option<RoundTripCounts> {
        match &self.kind {
            TargetKind::Baseline(baseline) => Some(baseline.round_trips()),
            _ => None,
        }
    }

    /// Removes the pool with whatever is in it; fine if it is not there.
    ///
    /// # Errors
    /// The service's.
    pub async fn remove(&self) -> Result<()> {
        match &self.kind {
            TargetKind::Inproc(scheduler) => match scheduler.delete_pool(&self.name()?, DeleteMode::Force).await {
                Ok(()) | Err(RequestError::NotFound(_)) => Ok(()),
                Err(refusal) => Err(refusal.into()),
            },
            TargetKind::Http { link, .. } => link.delete_pool().await,
            TargetKind::Grpc { link, .. } => link.delete_pool().await,
            TargetKind::Baseline(baseline) => baseline.remove().await.map_err(to_anyhow),
        }
    }

    /// Stops the scheduler in this process; a service goes on.
    pub async fn close(self) {
        if let TargetKind::Inproc(scheduler) = self.kind {
            scheduler.stop().await;
        }
    }
}

/// What the keys of a run's claims begin with: the random end of its name is enough to keep them apart, and short keys
/// are cheap.
#[must_use]
pub fn run_tag(run: &str) -> &str {
    &run[run.len().saturating_sub(12)..]
}
