//! A client's way in: claims and releases, the same for every target.

use super::baseline::BaselineClient;
use super::claim_input::{ClaimInput, ReceivedGrant};
use super::grant_checker::worker_ordinal;
use super::grpc::GrpcTargetClient;
use super::http::HttpTargetClient;
use super::resp::RespTargetClient;
use super::stats::TargetError;
use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::RequestError;
use hotpool::model::{ClaimId, ClaimRequest, ClaimResult, ClaimSpec, Fence, PoolName, ResourceRequirements};
use hotpool::scheduler::Scheduler;

/// One client's way in.
pub enum TargetClient {
    /// Straight into the scheduler.
    Inproc {
        /// The scheduler.
        scheduler: Scheduler,
        /// The pool of the run.
        pool: PoolName,
    },
    /// Over one connection.
    Http(HttpTargetClient),
    /// Over one connection.
    Grpc(GrpcTargetClient),
    /// Over two connections.
    Resp(RespTargetClient),
    /// Over as many as are needed.
    Baseline(BaselineClient),
}

impl TargetClient {
    /// Makes one claim.
    ///
    /// # Errors
    /// `CommandError` for want of a worker, else `Failed`.
    pub async fn claim(&self, ask: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        match self {
            Self::Inproc { scheduler, pool } => {
                scheduler.claim(request(ask, pool)).await.map(received_grant).map_err(|refusal| target_error(&refusal))
            }
            Self::Http(link) => link.claim(ask).await,
            Self::Grpc(link) => link.claim(ask).await,
            Self::Resp(link) => link.claim(ask).await,
            Self::Baseline(link) => link.claim(ask).await,
        }
    }

    /// Makes many claims in one request, and hands over one outcome an ask, in order. `gang`: all of them or none.
    pub async fn claim_batch(
        &self,
        asks: impl Iterator<Item = ClaimInput>,
        gang: bool,
        mut outcome: impl FnMut(Result<ReceivedGrant, TargetError>),
    ) {
        match self {
            Self::Inproc { scheduler, pool } => {
                let requests = asks.map(|ask| request(ask, pool)).collect();
                let outcomes = match gang {
                    true => scheduler.claim_gang(requests).await,
                    false => scheduler.claim_batch(requests).await,
                };
                outcomes
                    .into_iter()
                    .for_each(|taken| outcome(taken.map(received_grant).map_err(|refusal| target_error(&refusal))));
            }
            Self::Http(link) => link.claim_batch(asks.collect(), gang).await.into_iter().for_each(outcome),
            Self::Grpc(link) => link.claim_batch(asks.collect(), gang).await.into_iter().for_each(outcome),
            Self::Resp(link) => link.claim_batch(asks.collect()).await.into_iter().for_each(outcome),
            Self::Baseline(link) => link.claim_batch(asks.collect()).await.into_iter().for_each(outcome),
        }
    }

    /// Gives one claim back.
    ///
    /// # Errors
    /// `Failed`, never `CommandError`.
    pub async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        match self {
            Self::Inproc { scheduler, .. } => {
                scheduler.release(id, fence).await.map_err(|refusal| target_error(&refusal))
            }
            Self::Http(link) => link.release(id, fence).await,
            Self::Grpc(link) => link.release(id, fence).await,
            Self::Resp(link) => link.release(id, fence).await,
            Self::Baseline(link) => link.release(id, fence).await,
        }
    }

    /// Gives many claims back, and hands over one outcome a claim, in order. `sending(n)` is called before claim `n`
    /// is sent. Over HTTP and gRPC they go one after the other: there is no
    /// batch of releases.
    pub async fn release_batch(
        &self,
        claims: Vec<(ClaimId, Fence)>,
        sending: impl Fn(usize),
        mut outcome: impl FnMut(Result<(), TargetError>),
    ) {
        match self {
            Self::Inproc { scheduler, .. } => {
                (0..claims.len()).for_each(sending);
                let outcomes = scheduler.release_batch(claims).await;
                outcomes.into_iter().for_each(|released| outcome(released.map_err(|refusal| target_error(&refusal))));
            }
            Self::Resp(link) => {
                (0..claims.len()).for_each(sending);
                link.release_batch(&claims).await.into_iter().for_each(outcome);
            }
            Self::Baseline(link) => {
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
    /// `Failed`, never `CommandError`.
    pub async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        match self {
            Self::Inproc { scheduler, .. } => match scheduler.get_claim(id).await {
                Ok(claim) => Ok(Some(claim.fence)),
                Err(RequestError::NotFound(_)) => Ok(None),
                Err(refusal) => Err(target_error(&refusal)),
            },
            Self::Http(link) => link.find(id).await,
            Self::Grpc(link) => link.find(id).await,
            Self::Resp(link) => link.find(id).await,
            Self::Baseline(link) => link.find(id).await,
        }
    }
}

fn request(ask: ClaimInput, pool: &PoolName) -> ClaimRequest {
    let ClaimInput { id, affinity, params: want } = ask;
    let resources = ResourceRequirements { slots: want.slots.into(), ..ResourceRequirements::default() };
    let spec = ClaimSpec { resources, ..ClaimSpec::default() };
    let ask = (want.slots > 0).then(|| Box::new(ClaimConstraints { spec, ..ClaimConstraints::default() }));
    let wait_ms = want.wait_ms.into();
    ClaimRequest { affinity, reserve_ms: Some(0), wait_ms, constraints: ask, ..ClaimRequest::new(id, pool.clone()) }
}

fn received_grant(taken: ClaimResult) -> ReceivedGrant {
    let claim = taken.claim;
    ReceivedGrant { fence: claim.fence, worker: worker_ordinal(claim.worker.spec.id.as_str()), id: claim.id }
}

fn target_error(refusal: &RequestError) -> TargetError {
    match refusal {
        RequestError::Exhausted(_) => TargetError::NoCapacity,
        other => TargetError::Failed { message: other.to_string(), in_doubt: *other == RequestError::DeadlineExceeded },
    }
}
