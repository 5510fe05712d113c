//! What is loaded: a scheduler in this process, a service over HTTP, gRPC or RESP, or what people do without one. The same
//! few verbs for all.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};

use super::ask::{Counts, Fleet, NAMESPACE};
use super::baseline::{Baseline, TripCounts};
use super::check::worker_id;
use super::grpc::GrpcLink;
use super::http::{HttpLink, Origin};
use super::link::Link;
use super::resp::RespLink;
use super::stats::Failure;
use super::url::TargetUrl;
use hotpool::limits::BATCH_ITEMS_MAX;
use hotpool::model::rejection::Refusal;
use hotpool::model::{Capacity, ClaimFilter, PoolName, WorkerId, WorkerSpec};
use hotpool::scheduler::{Scheduler, Settings};
use hotpool::server::config::{self, StoreUrl};
use hotpool::server::service;

/// What is loaded, with the pool of this run.
pub struct Target {
    pool: String,
    kind: Kind,
}

enum Kind {
    Inproc(Scheduler),
    /// With claims over RESP where `resp` says.
    Http {
        origin: Arc<Origin>,
        link: Arc<HttpLink>,
        resp: Option<String>,
    },
    Grpc {
        authority: String,
        link: Box<GrpcLink>,
        /// Claims and releases go over streams.
        streams: bool,
    },
    Baseline(Baseline),
}

/// What a link or a baseline failed with, as an error of the set-up.
fn said(failure: Failure) -> anyhow::Error {
    anyhow!("{failure}")
}

impl Kind {
    async fn http(authority: &str, pool: &str, resp: Option<String>) -> Result<Self> {
        let origin = Arc::new(Origin::new(authority, pool)?);
        let link = Arc::new(HttpLink::open(Arc::clone(&origin), false).await?);
        Ok(Self::Http { origin, link, resp })
    }
}

impl Target {
    /// Starts the scheduler or reaches the service. Makes nothing yet; `pool` is the name that the pool will have.
    ///
    /// # Errors
    /// The store cannot be opened, or nobody answers at the address.
    pub async fn open(url: &TargetUrl, store: Option<&StoreUrl>, pool: &str) -> Result<Self> {
        let kind = match url {
            TargetUrl::Inproc => {
                let url = store.cloned().unwrap_or(StoreUrl::Memory);
                let settings = config::Store { url, ..config::Store::default() };
                let store = service::open(settings).await.context("cannot open the store")?;
                let scheduler = Scheduler::new(store, Settings::default());
                scheduler.start().await.context("cannot start the scheduler")?;
                Kind::Inproc(scheduler)
            }
            TargetUrl::Http(authority) => Kind::http(authority, pool, None).await?,
            TargetUrl::Resp { address, http } => Kind::http(http, pool, Some(address.clone())).await?,
            TargetUrl::Grpc(authority) | TargetUrl::GrpcStream(authority) => {
                let link = Box::new(GrpcLink::open(authority, pool).await?);
                Kind::Grpc { authority: authority.clone(), link, streams: matches!(url, TargetUrl::GrpcStream(_)) }
            }
            // The keys of the run's claims begin with the same.
            TargetUrl::Baseline(url) => Kind::Baseline(Baseline::open(url, run_tag(pool)).await.map_err(said)?),
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
    pub async fn create(&self, fleet: &Fleet) -> Result<()> {
        let spec = fleet.spec();
        let created = match &self.kind {
            Kind::Inproc(scheduler) => scheduler.put_pool(self.name()?, spec).await?.0,
            Kind::Http { link, .. } => link.put_pool(&spec).await?,
            Kind::Grpc { link, .. } => link.put_pool(&spec).await?,
            Kind::Baseline(baseline) => baseline.create(fleet.slots).map(|()| true).map_err(said)?,
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
            Kind::Inproc(scheduler) => {
                let capacity = Capacity { slots: slots.into(), ..Capacity::default() };
                let spec = |id| WorkerSpec { capacity: capacity.clone(), ..WorkerSpec::bare(id) };
                let specs: Result<Vec<_>, Refusal> =
                    workers.map(|n| WorkerId::new(&worker_id(n)).map(|id| spec(id).into())).collect();
                for outcome in scheduler.register_batch(&self.name()?, specs?).await? {
                    outcome?;
                }
                Ok(())
            }
            Kind::Http { link, .. } => link.register(workers, slots).await,
            Kind::Grpc { link, .. } => link.register(workers, slots).await,
            Kind::Baseline(baseline) => baseline.register(workers).await.map_err(said),
        }
    }

    /// A client's way in. `multiplexed`: several requests may be outstanding on it.
    ///
    /// # Errors
    /// The service does not take a connection.
    pub async fn link(&self, multiplexed: bool) -> Result<Link> {
        Ok(match &self.kind {
            // A name of its own: the clients would otherwise fight for the counter of one shared name.
            Kind::Inproc(scheduler) => Link::Inproc { scheduler: scheduler.clone(), pool: self.name()? },
            Kind::Http { link, resp: Some(address), .. } => {
                let opened = RespLink::open(address, &self.pool, multiplexed, Arc::clone(link)).await;
                Link::Resp(opened.map_err(said)?)
            }
            Kind::Http { origin, .. } => Link::Http(HttpLink::open(Arc::clone(origin), multiplexed).await?),
            Kind::Grpc { authority, streams: true, .. } => {
                Link::Grpc(GrpcLink::open_stream(authority, &self.pool).await?)
            }
            Kind::Grpc { authority, .. } => Link::Grpc(GrpcLink::open(authority, &self.pool).await?),
            Kind::Baseline(baseline) => Link::Baseline(baseline.link()),
        })
    }

    /// Workers by state.
    ///
    /// # Errors
    /// The service's.
    pub async fn counts(&self) -> Result<Counts> {
        match &self.kind {
            Kind::Inproc(scheduler) => {
                let status = scheduler.get_pool(&self.name()?).await?;
                let sum = |figure: fn(&hotpool::model::ShardStatus) -> u64| status.shards.iter().map(figure).sum();
                Ok(Counts { total: sum(|s| s.workers), idle: sum(|s| s.idle), busy: sum(|s| s.busy) })
            }
            Kind::Http { link, .. } => link.counts().await,
            Kind::Grpc { link, .. } => link.counts().await,
            Kind::Baseline(baseline) => baseline.counts().await.map_err(said),
        }
    }

    /// Changes that each shard has decided; none of targets that have no shards or do not show them.
    ///
    /// # Errors
    /// The service's.
    pub async fn shards(&self) -> Result<Vec<u64>> {
        match &self.kind {
            Kind::Inproc(scheduler) => {
                let status = scheduler.get_pool(&self.name()?).await?;
                Ok(status.shards.iter().map(|shard| shard.seq).collect())
            }
            Kind::Http { link, .. } => link.shards().await,
            Kind::Grpc { .. } | Kind::Baseline(_) => Ok(Vec::new()),
        }
    }

    /// Deletes a worker; what it holds is lost.
    ///
    /// # Errors
    /// The service's, or the target has no such call.
    pub async fn delete_worker(&self, worker: u32) -> Result<()> {
        match &self.kind {
            Kind::Inproc(scheduler) => {
                Ok(scheduler.delete_worker(&self.name()?, &WorkerId::new(&worker_id(worker))?).await?)
            }
            Kind::Http { link, .. } => link.delete_worker(worker).await,
            Kind::Grpc { link, .. } => link.delete_worker(worker).await,
            Kind::Baseline(_) => bail!("the workers of a baseline do not come and go"),
        }
    }

    /// Claims that the pool has: those on the first page of the listing.
    ///
    /// # Errors
    /// The service's.
    pub async fn claims(&self) -> Result<u64> {
        match &self.kind {
            Kind::Inproc(scheduler) => {
                let filter = ClaimFilter {
                    namespace: Some(NAMESPACE.into()),
                    pool: Some(self.pool.clone()),
                    ..ClaimFilter::default()
                };
                let page = scheduler.list_claims(&filter, None, hotpool::limits::PAGE_ITEMS_MAX).await?;
                Ok(page.items.len() as u64)
            }
            Kind::Http { link, .. } => link.claims().await,
            Kind::Grpc { link, .. } => link.claims().await,
            Kind::Baseline(baseline) => baseline.claims().await.map_err(said),
        }
    }

    /// Round trips that claims and releases took, if the target counts them.
    #[must_use]
    pub fn trips(&self) -> Option<TripCounts> {
        match &self.kind {
            Kind::Baseline(baseline) => Some(baseline.trips()),
            _ => None,
        }
    }

    /// Removes the pool with whatever is in it; fine if it is not there.
    ///
    /// # Errors
    /// The service's.
    pub async fn remove(&self) -> Result<()> {
        match &self.kind {
            Kind::Inproc(scheduler) => match scheduler.delete_pool(&self.name()?, true).await {
                Ok(()) | Err(Refusal::NotFound(_)) => Ok(()),
                Err(refusal) => Err(refusal.into()),
            },
            Kind::Http { link, .. } => link.delete_pool().await,
            Kind::Grpc { link, .. } => link.delete_pool().await,
            Kind::Baseline(baseline) => baseline.remove().await.map_err(said),
        }
    }

    /// Stops the scheduler in this process; a service goes on.
    pub async fn close(self) {
        if let Kind::Inproc(scheduler) = self.kind {
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
