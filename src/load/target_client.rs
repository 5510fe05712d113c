//! Interface for claims and releases on every kind of target.

use super::baseline::BaselineClient;
use super::claim_input::{BatchAtomicity, ClaimInput, ReceivedGrant};
use super::grant_checker::worker_ordinal;
use super::grpc::GrpcTargetClient;
use super::http::HttpTargetClient;
use super::postgres::PostgresClient;
use super::resp::RespTargetClient;
use super::stats::TargetError;
use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::RequestError;
use hotpool::model::{ClaimId, ClaimRequest, ClaimResult, ClaimSpec, Fence, PoolName, ResourceRequirements};
use hotpool::scheduler::Scheduler;

/// Connection of one client to the target.
pub enum TargetClient {
    /// Direct calls to the in-process scheduler.
    Inproc {
        /// Scheduler in this process.
        scheduler: Scheduler,
        /// Name of the run's pool.
        pool: PoolName,
    },
    /// Calls over one HTTP connection.
    Http(HttpTargetClient),
    /// Calls over one gRPC connection.
    Grpc(GrpcTargetClient),
    /// Commands over two RESP connections.
    Resp(RespTargetClient),
    /// Commands over as many Redis connections as needed.
    Baseline(BaselineClient),
    /// Statements over as many PostgreSQL connections as needed.
    Postgres(PostgresClient),
}

impl TargetClient {
    /// Claims one worker, or slots of one.
    ///
    /// # Errors
    /// Fails with `NoCapacity` if no worker has capacity, and with `Failed` otherwise.
    pub async fn claim(&self, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        match self {
            Self::Inproc { scheduler, pool } => {
                scheduler.claim(request(input, pool)).await.map(received_grant).map_err(|error| target_error(&error))
            }
            Self::Http(client) => client.claim(input).await,
            Self::Grpc(client) => client.claim(input).await,
            Self::Resp(client) => client.claim(input).await,
            Self::Baseline(client) => client.claim(input).await,
            Self::Postgres(client) => client.claim(input).await,
        }
    }

    /// Sends many claims in one request, and passes one outcome per claim to `outcome`, in order.
    pub async fn claim_batch(
        &self,
        inputs: impl Iterator<Item = ClaimInput>,
        atomicity: BatchAtomicity,
        mut outcome: impl FnMut(Result<ReceivedGrant, TargetError>),
    ) {
        match self {
            Self::Inproc { scheduler, pool } => {
                let requests = inputs.map(|input| request(input, pool)).collect();
                let outcomes = match atomicity {
                    BatchAtomicity::AllOrNothing => scheduler.claim_gang(requests).await,
                    BatchAtomicity::Independent => scheduler.claim_batch(requests).await,
                };
                outcomes
                    .into_iter()
                    .for_each(|result| outcome(result.map(received_grant).map_err(|error| target_error(&error))));
            }
            Self::Http(client) => {
                let gang = atomicity == BatchAtomicity::AllOrNothing;
                client.claim_batch(inputs.collect(), gang).await.into_iter().for_each(outcome);
            }
            Self::Grpc(client) => client.claim_batch(inputs.collect(), atomicity).await.into_iter().for_each(outcome),
            Self::Resp(client) => client.claim_batch(inputs.collect()).await.into_iter().for_each(outcome),
            Self::Baseline(client) => client.claim_batch(inputs.collect()).await.into_iter().for_each(outcome),
            Self::Postgres(client) => client.claim_batch(inputs.collect()).await.into_iter().for_each(outcome),
        }
    }

    /// Releases the claim with this id and fence.
    ///
    /// # Errors
    /// Fails with `Failed`, never with `NoCapacity`.
    pub async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        match self {
            Self::Inproc { scheduler, .. } => scheduler.release(id, fence).await.map_err(|error| target_error(&error)),
            Self::Http(client) => client.release(id, fence).await,
            Self::Grpc(client) => client.release(id, fence).await,
            Self::Resp(client) => client.release(id, fence).await,
            Self::Baseline(client) => client.release(id, fence).await,
            Self::Postgres(client) => client.release(id, fence).await,
        }
    }

    /// Releases many claims, and passes one outcome per claim to `outcome`, in order. `sending(n)` is called before
    /// claim `n` is sent. HTTP and gRPC release them one by one: they have no batch of releases.
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
                outcomes.into_iter().for_each(|released| outcome(released.map_err(|error| target_error(&error))));
            }
            Self::Resp(client) => {
                (0..claims.len()).for_each(sending);
                client.release_batch(&claims).await.into_iter().for_each(outcome);
            }
            Self::Baseline(client) => {
                (0..claims.len()).for_each(sending);
                client.release_batch(&claims).await.into_iter().for_each(outcome);
            }
            Self::Postgres(client) => {
                (0..claims.len()).for_each(sending);
                client.release_batch(&claims).await.into_iter().for_each(outcome);
            }
            Self::Http(_) | Self::Grpc(_) => {
                for (n, (id, fence)) in claims.iter().enumerate() {
                    sending(n);
                    outcome(self.release(id, *fence).await);
                }
            }
        }
    }

    /// Looks up the fence of a claim; `None` if it is not held.
    ///
    /// # Errors
    /// Fails with `Failed`, never with `NoCapacity`.
    pub async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        match self {
            Self::Inproc { scheduler, .. } => match scheduler.get_claim(id).await {
                Ok(claim) => Ok(Some(claim.fence)),
                Err(RequestError::NotFound(_)) => Ok(None),
                Err(error) => Err(target_error(&error)),
            },
            Self::Http(client) => client.find(id).await,
            Self::Grpc(client) => client.find(id).await,
            Self::Resp(client) => client.find(id).await,
            Self::Baseline(client) => client.find(id).await,
            Self::Postgres(client) => client.find(id).await,
        }
    }
}

fn request(input: ClaimInput, pool: &PoolName) -> ClaimRequest {
    let ClaimInput { id, affinity, params } = input;
    let resources = ResourceRequirements { slots: params.slots.into(), ..ResourceRequirements::default() };
    let spec = ClaimSpec { resources, ..ClaimSpec::default() };
    let constraints = (params.slots > 0).then(|| Box::new(ClaimConstraints { spec, ..ClaimConstraints::default() }));
    let wait_ms = params.wait_ms.into();
    ClaimRequest { affinity, reserve_ms: Some(0), wait_ms, constraints, ..ClaimRequest::new(id, pool.clone()) }
}

fn received_grant(result: ClaimResult) -> ReceivedGrant {
    let claim = result.claim;
    ReceivedGrant { fence: claim.fence, worker: worker_ordinal(claim.worker.spec.id.as_str()), id: claim.id }
}

fn target_error(error: &RequestError) -> TargetError {
    match error {
        RequestError::Exhausted(_) => TargetError::NoCapacity,
        other => TargetError::Failed { message: other.to_string(), in_doubt: *other == RequestError::DeadlineExceeded },
    }
}
