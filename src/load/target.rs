//! What is loaded: a scheduler in this process, or a service over HTTP, gRPC or RESP. The same few verbs for all.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};

use super::args::CommonArgs;
use super::check::{worker_id, worker_ordinal};
use super::grpc::GrpcLink;
use super::http::{HttpLink, Origin};
use super::resp::RespLink;
use super::stats::Failure;
use super::url::TargetUrl;
use crate::config::{self, StoreUrl};
use crate::limits::BATCH_ITEMS_MAX;
use crate::model::{
    ClaimFilter, ClaimId, ClaimRequest, Fence, PoolName, PoolSpec, Taken, WorkerId, WorkerSpec, affinity_hash,
};
use crate::refusal::Refusal;
use crate::scheduler::{Scheduler, Settings};
use crate::service;

/// Namespace of every pool and claim of this harness.
pub const NAMESPACE: &str = "load";
/// Tenant of every claim: the one that a request without a tenant has.
const TENANT: &str = "default";

/// A claim to be made.
#[derive(Debug)]
pub struct Ask {
    /// Its identity, never used before.
    pub id: ClaimId,
    /// Hash of its affinity word: the function's, else the key.
    pub affinity: u64,
    /// The function that it is for, if it is for one.
    pub function: Option<u32>,
}

impl Ask {
    /// A claim under `key`, for `function` if it is for one.
    ///
    /// # Panics
    /// The key is not a name: keys are made by [`super::client`], which knows what a name is.
    #[must_use]
    pub fn new(key: &str, function: Option<u32>) -> Self {
        let affinity = function.map_or_else(|| affinity_hash(key), |function| affinity_hash(&word(function)));
        let id = ClaimId::new(NAMESPACE, TENANT, key).expect("a key of letters, digits, dots, dashes and underlines");
        Self { id, affinity, function }
    }

    /// The affinity word, if it is not the key.
    #[must_use]
    pub fn word(&self) -> Option<String> {
        self.function.map(word)
    }
}

fn word(function: u32) -> String {
    format!("f{function}")
}

/// A claim that was granted.
#[derive(Debug)]
pub struct Grant {
    /// Its identity.
    pub id: ClaimId,
    /// Its number.
    pub fence: Fence,
    /// Ordinal of its worker.
    pub worker: u32,
}

/// Workers of the pool, as the service counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct Counts {
    /// All.
    pub total: u64,
    /// Free.
    pub idle: u64,
    /// Held.
    pub busy: u64,
}

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
    },
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
    pub async fn open(args: &CommonArgs, pool: &str) -> Result<Self> {
        let kind = match &args.target {
            TargetUrl::Inproc => {
                let url = args.store.clone().unwrap_or(StoreUrl::Memory);
                let settings = config::Store { url, ..config::Store::default() };
                let store = service::open(settings).await.context("cannot open the store")?;
                let scheduler = Scheduler::new(store, Settings::default());
                scheduler.start().await.context("cannot start the scheduler")?;
                Kind::Inproc(scheduler)
            }
            TargetUrl::Http(authority) => Kind::http(authority, pool, None).await?,
            TargetUrl::Resp { address, http } => Kind::http(http, pool, Some(address.clone())).await?,
            TargetUrl::Grpc(authority) => {
                let link = GrpcLink::open(authority, pool).await?;
                Kind::Grpc { authority: authority.clone(), link: Box::new(link) }
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
    pub async fn create(&self, args: &CommonArgs) -> Result<()> {
        let spec = PoolSpec { shards: args.shards, ack: args.ack.into(), reserve_ms: 0, ..PoolSpec::default() };
        let created = match &self.kind {
            Kind::Inproc(scheduler) => scheduler.put_pool(self.name()?, spec).await?.0,
            Kind::Http { link, .. } => link.put_pool(&spec).await?,
            Kind::Grpc { link, .. } => link.put_pool(&spec).await?,
        };
        if !created {
            bail!("the pool {NAMESPACE}/{} is there already", self.pool);
        }
        Ok(())
    }

    /// Registers the workers of these ordinals, at most 10,000.
    ///
    /// # Errors
    /// The service's, for the whole or for one of them.
    pub async fn register(&self, workers: std::ops::Range<u32>) -> Result<()> {
        debug_assert!(workers.len() <= BATCH_ITEMS_MAX);
        match &self.kind {
            Kind::Inproc(scheduler) => {
                let specs: Result<Vec<_>, Refusal> =
                    workers.map(|n| WorkerId::new(&worker_id(n)).map(|id| WorkerSpec::bare(id).into())).collect();
                for outcome in scheduler.register_batch(&self.name()?, specs?).await? {
                    outcome?;
                }
                Ok(())
            }
            Kind::Http { link, .. } => link.register(workers).await,
            Kind::Grpc { link, .. } => link.register(workers).await,
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
                Link::Resp(opened.map_err(|failure| anyhow!("{failure}"))?)
            }
            Kind::Http { origin, .. } => Link::Http(HttpLink::open(Arc::clone(origin), multiplexed).await?),
            Kind::Grpc { authority, .. } => Link::Grpc(GrpcLink::open(authority, &self.pool).await?),
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
                let sum = |figure: fn(&crate::model::ShardStatus) -> u64| status.shards.iter().map(figure).sum();
                Ok(Counts { total: sum(|s| s.workers), idle: sum(|s| s.idle), busy: sum(|s| s.busy) })
            }
            Kind::Http { link, .. } => link.counts().await,
            Kind::Grpc { link, .. } => link.counts().await,
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
                let page = scheduler.list_claims(&filter, None, crate::limits::PAGE_ITEMS_MAX).await?;
                Ok(page.items.len() as u64)
            }
            Kind::Http { link, .. } => link.claims().await,
            Kind::Grpc { link, .. } => link.claims().await,
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
        }
    }

    /// Stops the scheduler in this process; a service goes on.
    pub async fn close(self) {
        if let Kind::Inproc(scheduler) = self.kind {
            scheduler.stop().await;
        }
    }
}

/// One client's way in.
pub enum Link {
    /// Straight into the scheduler.
    Inproc {
        /// The scheduler.
        scheduler: Scheduler,
        /// The pool of the run.
        pool: PoolName,
    },
    /// Over one connection.
    Http(HttpLink),
    /// Over one connection.
    Grpc(GrpcLink),
    /// Over two connections.
    Resp(RespLink),
}

impl Link {
    /// Makes one claim.
    ///
    /// # Errors
    /// `Refused` for want of a worker, else `Failed`.
    pub async fn claim(&self, ask: Ask) -> Result<Grant, Failure> {
        match self {
            Self::Inproc { scheduler, pool } => {
                scheduler.claim(request(ask, pool)).await.map(grant).map_err(|refusal| failure(&refusal))
            }
            Self::Http(link) => link.claim(ask).await,
            Self::Grpc(link) => link.claim(ask).await,
            Self::Resp(link) => link.claim(ask).await,
        }
    }

    /// Makes many claims in one request, and hands over one outcome an ask, in order.
    pub async fn claim_batch(&self, asks: impl Iterator<Item = Ask>, mut outcome: impl FnMut(Result<Grant, Failure>)) {
        match self {
            Self::Inproc { scheduler, pool } => {
                let requests = asks.map(|ask| request(ask, pool)).collect();
                let outcomes = scheduler.claim_batch(requests).await;
                outcomes.into_iter().for_each(|taken| outcome(taken.map(grant).map_err(|refusal| failure(&refusal))));
            }
            Self::Http(link) => link.claim_batch(asks.collect()).await.into_iter().for_each(outcome),
            Self::Grpc(link) => link.claim_batch(asks.collect()).await.into_iter().for_each(outcome),
            Self::Resp(link) => link.claim_batch(asks.collect()).await.into_iter().for_each(outcome),
        }
    }

    /// Gives one claim back.
    ///
    /// # Errors
    /// `Failed`, never `Refused`.
    pub async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), Failure> {
        match self {
            Self::Inproc { scheduler, .. } => scheduler.release(id, fence).await.map_err(|refusal| failure(&refusal)),
            Self::Http(link) => link.release(id, fence).await,
            Self::Grpc(link) => link.release(id, fence).await,
            Self::Resp(link) => link.release(id, fence).await,
        }
    }

    /// Gives many claims back, and hands over one outcome a claim, in order. `sending(n)` is called before claim `n`
    /// is sent. Over HTTP and gRPC they go one after the other: there is no
    /// batch of releases.
    pub async fn release_batch(
        &self,
        claims: Vec<(ClaimId, Fence)>,
        sending: impl Fn(usize),
        mut outcome: impl FnMut(Result<(), Failure>),
    ) {
        match self {
            Self::Inproc { scheduler, .. } => {
                (0..claims.len()).for_each(sending);
                let outcomes = scheduler.release_batch(claims).await;
                outcomes.into_iter().for_each(|released| outcome(released.map_err(|refusal| failure(&refusal))));
            }
            Self::Resp(link) => {
                (0..claims.len()).for_each(sending);
                link.release_batch(&claims).await.into_iter().for_each(outcome);
            }
            Self::Http(_) | Self::Grpc(_) => {
                for (n, (id, fence)) in claims.iter().enumerate() {
                    sending(n);
                    outcome(self.release(id, *fence).await);
                }
            }
        }
    }

    /// The fence under which the claim is held, if it is.
    ///
    /// # Errors
    /// `Failed`, never `Refused`.
    pub async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, Failure> {
        match self {
            Self::Inproc { scheduler, .. } => match scheduler.get_claim(id).await {
                Ok(claim) => Ok(Some(claim.fence)),
                Err(Refusal::NotFound(_)) => Ok(None),
                Err(refusal) => Err(failure(&refusal)),
            },
            Self::Http(link) => link.find(id).await,
            Self::Grpc(link) => link.find(id).await,
            Self::Resp(link) => link.find(id).await,
        }
    }
}

fn request(ask: Ask, pool: &PoolName) -> ClaimRequest {
    ClaimRequest { affinity: ask.affinity, reserve_ms: Some(0), ..ClaimRequest::new(ask.id, pool.clone()) }
}

fn grant(taken: Taken) -> Grant {
    let claim = taken.claim;
    Grant { fence: claim.fence, worker: worker_ordinal(claim.worker.spec.id.as_str()), id: claim.id }
}

fn failure(refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::Exhausted(_) => Failure::Refused,
        other => Failure::Failed { message: other.to_string(), in_doubt: *other == Refusal::DeadlineExceeded },
    }
}
