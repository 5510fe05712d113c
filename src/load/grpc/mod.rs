//! gRPC client of the service: one connection per client, with unary calls, or with one stream for claims and releases.

mod stream;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use self::stream::ClaimStreamClient;
use super::claim_input::{BatchAtomicity, ClaimInput, NAMESPACE, PoolOccupancy, ReceivedGrant};
use super::grant_checker::{worker_id, worker_ordinal};
use super::http_calls::target_error;
use super::stats::TargetError;
use hotpool::api::grpc::proto;
use hotpool::api::grpc::proto::batch_register_workers_response::item::Outcome as Registered;
use hotpool::api::grpc::proto::batch_take_claims_response::item::Outcome as TakeOutcome;
use hotpool::api::grpc::proto::claim_service_client::ClaimServiceClient;
use hotpool::api::grpc::proto::claim_stream_request::Request;
use hotpool::api::grpc::proto::claim_stream_response::Outcome;
use hotpool::api::grpc::proto::get_claim_response::Standing;
use hotpool::api::grpc::proto::pool_service_client::PoolServiceClient;
use hotpool::api::grpc::proto::take_claim_request::Candidates;
use hotpool::api::grpc::proto::worker_service_client::WorkerServiceClient;
use hotpool::limits;
use hotpool::model::{AckLevel, ClaimId, Fence, PoolMode, PoolSpec};

/// Longest wait for a connection or a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest response to decode, in bytes: the outcomes of the largest batch.
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// gRPC connection of one client.
pub struct GrpcTargetClient {
    pool: String,
    channel: Channel,
    claims: ClaimServiceClient<Channel>,
    stream: Option<ClaimStreamClient>,
}

impl GrpcTargetClient {
    /// Connects to `HOST:PORT`, for the pool `load/{pool}`.
    ///
    /// # Errors
    /// Fails if nothing listens there, or if the listener does not speak HTTP/2.
    pub async fn open(authority: &str, pool: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
        let endpoint = endpoint.tcp_nodelay(true).connect_timeout(RESPONSE_TIMEOUT).timeout(RESPONSE_TIMEOUT);
        let channel = endpoint.connect().await.with_context(|| format!("cannot connect to {authority}"))?;
        let claims = ClaimServiceClient::new(channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX);
        Ok(Self { pool: pool.to_owned(), channel, claims, stream: None })
    }

    /// Connects like [`Self::open`], and opens a stream for single claims and releases.
    ///
    /// # Errors
    /// Fails like [`Self::open`], or if the service accepts no further stream.
    pub async fn open_stream(authority: &str, pool: &str) -> Result<Self> {
        let client = Self::open(authority, pool).await?;
        let stream = Some(ClaimStreamClient::open(client.claims.clone()).await?);
        Ok(Self { stream, ..client })
    }

    fn pools(&self) -> PoolServiceClient<Channel> {
        PoolServiceClient::new(self.channel.clone())
    }

    /// Creates the pool. Returns false if it exists already.
    pub(super) async fn put_pool(&self, spec: &PoolSpec) -> Result<bool> {
        let ack = match spec.ack {
            AckLevel::Memory => proto::Ack::Memory,
            AckLevel::Durable => proto::Ack::Durable,
        };
        let mode = match spec.mode {
            PoolMode::Exclusive => proto::Mode::Exclusive,
            PoolMode::Shared => proto::Mode::Shared,
        };
        let spec = proto::PoolSpec {
            mode: mode as i32,
            shards: Some(spec.shards.into()),
            ack: ack as i32,
            reserve_ms: Some(spec.reserve_ms),
            ..proto::PoolSpec::default()
        };
        let request = proto::PutPoolRequest { namespace: NAMESPACE.into(), pool: self.pool.clone(), spec: Some(spec) };
        Ok(self.pools().put_pool(request).await?.into_inner().created)
    }

    /// Registers the workers with these ordinals, with `slots` slots each.
    pub(super) async fn register(&self, workers: std::ops::Range<u32>, slots: u32) -> Result<()> {
        let count = workers.len();
        let capacity = (slots > 0).then(|| proto::Capacity { slots: slots.into(), ..proto::Capacity::default() });
        let spec = |n| proto::WorkerSpec { id: worker_id(n), capacity: capacity.clone(), ..Default::default() };
        let workers = workers.map(spec).collect();
        let request =
            proto::BatchRegisterWorkersRequest { namespace: NAMESPACE.into(), pool: self.pool.clone(), workers };
        let mut client = WorkerServiceClient::new(self.channel.clone()).max_decoding_message_size(RESPONSE_BYTES_MAX);
        let items = client.batch_register_workers(request).await?.into_inner().items;
        if items.len() != count {
            bail!("{} outcomes for {count} workers", items.len());
        }
        for item in items {
            if !matches!(item.outcome, Some(Registered::Registered(_))) {
                bail!("a worker was not registered: {:?}", item.outcome);
            }
        }
        Ok(())
    }

    /// Counts the workers of the pool by state.
    pub(super) async fn counts(&self) -> Result<PoolOccupancy> {
        let request = proto::GetPoolRequest { namespace: NAMESPACE.into(), pool: self.pool.clone() };
        let pool = self.pools().get_pool(request).await?.into_inner().pool.context("a response without a pool")?;
        let workers = pool.workers.context("a pool without counts")?;
        Ok(PoolOccupancy { total: workers.total, idle: workers.idle, busy: workers.busy })
    }

    /// Counts the claims on the first page of the pool's listing.
    pub(super) async fn claims(&self) -> Result<u64> {
        let request = proto::ListClaimsRequest {
            namespace: Some(NAMESPACE.into()),
            pool: Some(self.pool.clone()),
            limit: Some(limits::PAGE_ITEMS_MAX as u32),
            ..proto::ListClaimsRequest::default()
        };
        Ok(self.claims.clone().list_claims(request).await?.into_inner().claims.len() as u64)
    }

    /// Deletes a worker of the pool.
    pub(super) async fn delete_worker(&self, worker: u32) -> Result<()> {
        let request =
            proto::DeleteWorkerRequest { namespace: NAMESPACE.into(), pool: self.pool.clone(), id: worker_id(worker) };
        WorkerServiceClient::new(self.channel.clone()).delete_worker(request).await?;
        Ok(())
    }

    /// Removes the pool; succeeds if it does not exist.
    pub(super) async fn delete_pool(&self) -> Result<()> {
        let request = proto::DeletePoolRequest { namespace: NAMESPACE.into(), pool: self.pool.clone(), force: true };
        match self.pools().delete_pool(request).await {
            Err(status) if status.code() != Code::NotFound => Err(status.into()),
            _ => Ok(()),
        }
    }

    fn take_request(&self, input: &ClaimInput) -> proto::TakeClaimRequest {
        proto::TakeClaimRequest {
            namespace: NAMESPACE.into(),
            key: Some(input.id.key().into()),
            candidates: Some(Candidates::Pool(self.pool.clone())),
            affinity: input.affinity_word(),
            reserve_ms: Some(0),
            resources: (input.params.slots > 0)
                .then(|| proto::Resources { slots: input.params.slots.into(), ..proto::Resources::default() }),
            wait_ms: (input.params.wait_ms > 0).then_some(input.params.wait_ms.into()),
            ..proto::TakeClaimRequest::default()
        }
    }

    /// Claims one worker, or slots of one.
    pub(super) async fn claim(&self, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        if let Some(stream) = &self.stream {
            return match stream.call(Request::Take(self.take_request(&input))).await? {
                Outcome::Taken(response) => grant(input, response),
                other => Err(target_error(format!("unexpected response to a claim: {other:?}"), true)),
            };
        }
        let response =
            self.claims.clone().take_claim(self.take_request(&input)).await.map_err(|status| status_error(&status))?;
        grant(input, response.into_inner())
    }

    /// Sends many claims in one request.
    pub(super) async fn claim_batch(
        &self,
        inputs: Vec<ClaimInput>,
        atomicity: BatchAtomicity,
    ) -> Vec<Result<ReceivedGrant, TargetError>> {
        let mode = match atomicity {
            BatchAtomicity::AllOrNothing => proto::BatchMode::AllOrNothing,
            BatchAtomicity::Independent => proto::BatchMode::Independent,
        };
        let request = proto::BatchTakeClaimsRequest {
            mode: mode as i32,
            items: inputs.iter().map(|input| self.take_request(input)).collect(),
        };
        let outcomes = match self.claims.clone().batch_take_claims(request).await {
            Ok(response) if response.get_ref().items.len() == inputs.len() => Ok(response.into_inner().items),
            Ok(response) => {
                let items = response.get_ref().items.len();
                Err(target_error(format!("{items} outcomes for {} claims", inputs.len()), true))
            }
            Err(status) => Err(status_error(&status)),
        };
        match outcomes {
            Ok(items) => {
                let pairs = inputs.into_iter().zip(items);
                pairs.map(|(input, item)| outcome(input, item.outcome)).collect()
            }
            Err(failure) => inputs.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    /// Releases the claim with this id and fence.
    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        let request = proto::ReleaseClaimRequest {
            namespace: NAMESPACE.into(),
            key: id.key().into(),
            fence,
            ..proto::ReleaseClaimRequest::default()
        };
        if let Some(stream) = &self.stream {
            return stream.call(Request::Release(request)).await.map(drop);
        }
        self.claims.clone().release_claim(request).await.map(drop).map_err(|status| status_error(&status))
    }

    /// Looks up the fence of a claim; `None` if it is not held.
    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        let request = proto::GetClaimRequest { namespace: NAMESPACE.into(), key: id.key().into(), tenant: None };
        match self.claims.clone().get_claim(request).await {
            Ok(response) => Ok(match response.into_inner().standing {
                Some(Standing::Claim(claim)) => Some(claim.fence),
                Some(Standing::Waiting(_)) | None => None,
            }),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status_error(&status)),
        }
    }
}

fn grant(input: ClaimInput, response: proto::TakeClaimResponse) -> Result<ReceivedGrant, TargetError> {
    let claim = response.claim.ok_or_else(|| target_error("a response without a claim".into(), true))?;
    Ok(ReceivedGrant { id: input.id, fence: claim.fence, worker: worker_ordinal(&claim.worker) })
}

fn outcome(input: ClaimInput, outcome: Option<TakeOutcome>) -> Result<ReceivedGrant, TargetError> {
    match outcome {
        Some(TakeOutcome::Taken(response)) => grant(input, response),
        Some(TakeOutcome::Error(error)) => Err(code_error(Code::from_i32(error.code), &error.message)),
        None => Err(target_error("a response without a claim or an error".into(), true)),
    }
}

fn status_error(status: &Status) -> TargetError {
    code_error(status.code(), status.message())
}

/// Classifies a status code other than success.
fn code_error(code: Code, message: &str) -> TargetError {
    match code {
        Code::ResourceExhausted => TargetError::NoCapacity,
        // The service rejects these before it changes anything; any other code leaves the effect unknown.
        Code::InvalidArgument | Code::NotFound | Code::Aborted | Code::FailedPrecondition | Code::Unimplemented => {
            target_error(format!("{code:?}: {message}"), false)
        }
        _ => target_error(format!("{code:?}: {message}"), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lack_of_capacity_counts_as_such() {
        assert_eq!(code_error(Code::ResourceExhausted, "full"), TargetError::NoCapacity);
        assert_eq!(code_error(Code::Aborted, "x"), target_error("Aborted: x".into(), false));
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Internal, Code::Cancelled, Code::Unknown] {
            assert!(matches!(code_error(code, "x"), TargetError::Failed { in_doubt: true, .. }), "{code:?}");
        }
    }
}
