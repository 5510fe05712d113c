//! The service over gRPC: one connection a client, with a call for each request or with one stream for claims and releases.

mod stream;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use self::stream::ClaimStreamClient;
use super::claim_input::{ClaimInput, NAMESPACE, PoolOccupancy, ReceivedGrant};
use super::grant_checker::{worker_id, worker_ordinal};
use super::http_calls::target_error;
use super::stats::TargetError;
use hotpool::api::grpc::proto;
use hotpool::api::grpc::proto::batch_register_workers_response::item::Outcome as Registered;
use hotpool::api::grpc::proto::batch_take_claims_response::item::Outcome as Taken;
use hotpool::api::grpc::proto::claim_service_client::ClaimServiceClient;
use hotpool::api::grpc::proto::claim_stream_request::Request;
use hotpool::api::grpc::proto::claim_stream_response::Outcome;
use hotpool::api::grpc::proto::get_claim_response::Standing;
use hotpool::api::grpc::proto::pool_service_client::PoolServiceClient;
use hotpool::api::grpc::proto::take_claim_request::Candidates;
use hotpool::api::grpc::proto::worker_service_client::WorkerServiceClient;
use hotpool::limits;
use hotpool::model::{AckLevel, ClaimId, Fence, PoolMode, PoolSpec};

/// Longest wait for a connection or an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read: the outcomes of the largest batch.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One client's connection.
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
    /// Nobody listens there, or what listens does not speak HTTP/2.
    pub async fn open(authority: &str, pool: &str) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
        let endpoint = endpoint.tcp_nodelay(true).connect_timeout(RESPONSE_TIMEOUT).timeout(RESPONSE_TIMEOUT);
        let channel = endpoint.connect().await.with_context(|| format!("cannot connect to {authority}"))?;
        let claims = ClaimServiceClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { pool: pool.to_owned(), channel, claims, stream: None })
    }

    /// The same; claims and releases that are no batch go over one stream.
    ///
    /// # Errors
    /// The same, or the service has no room for another stream.
    pub async fn open_stream(authority: &str, pool: &str) -> Result<Self> {
        let link = Self::open(authority, pool).await?;
        let stream = Some(ClaimStreamClient::open(link.claims.clone()).await?);
        Ok(Self { stream, ..link })
    }

    fn pools(&self) -> PoolServiceClient<Channel> {
        PoolServiceClient::new(self.channel.clone())
    }

    /// Makes the pool; false if it was there.
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

    /// Registers the workers of these ordinals, each with so many slots.
    pub(super) async fn register(&self, workers: std::ops::Range<u32>, slots: u32) -> Result<()> {
        let count = workers.len();
        let capacity = (slots > 0).then(|| proto::Capacity { slots: slots.into(), ..proto::Capacity::default() });
        let spec = |n| proto::WorkerSpec { id: worker_id(n), capacity: capacity.clone(), ..Default::default() };
        let workers = workers.map(spec).collect();
        let request =
            proto::BatchRegisterWorkersRequest { namespace: NAMESPACE.into(), pool: self.pool.clone(), workers };
        let mut client = WorkerServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
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

    /// Workers by state.
    pub(super) async fn counts(&self) -> Result<PoolOccupancy> {
        let request = proto::GetPoolRequest { namespace: NAMESPACE.into(), pool: self.pool.clone() };
        let pool = self.pools().get_pool(request).await?.into_inner().pool.context("an answer without a pool")?;
        let workers = pool.workers.context("a pool without counts")?;
        Ok(PoolOccupancy { total: workers.total, idle: workers.idle, busy: workers.busy })
    }

    /// Claims on the first page of the pool's listing.
    pub(super) async fn claims(&self) -> Result<u64> {
        let request = proto::ListClaimsRequest {
            namespace: Some(NAMESPACE.into()),
            pool: Some(self.pool.clone()),
            limit: Some(limits::PAGE_ITEMS_MAX as u32),
            ..proto::ListClaimsRequest::default()
        };
        Ok(self.claims.clone().list_claims(request).await?.into_inner().claims.len() as u64)
    }

    /// Deletes a worker.
    pub(super) async fn delete_worker(&self, worker: u32) -> Result<()> {
        let request =
            proto::DeleteWorkerRequest { namespace: NAMESPACE.into(), pool: self.pool.clone(), id: worker_id(worker) };
        WorkerServiceClient::new(self.channel.clone()).delete_worker(request).await?;
        Ok(())
    }

    /// Removes the pool; fine if it is not there.
    pub(super) async fn delete_pool(&self) -> Result<()> {
        let request = proto::DeletePoolRequest { namespace: NAMESPACE.into(), pool: self.pool.clone(), force: true };
        match self.pools().delete_pool(request).await {
            Err(status) if status.code() != Code::NotFound => Err(status.into()),
            _ => Ok(()),
        }
    }

    fn take_request(&self, ask: &ClaimInput) -> proto::TakeClaimRequest {
        proto::TakeClaimRequest {
            namespace: NAMESPACE.into(),
            key: Some(ask.id.key().into()),
            candidates: Some(Candidates::Pool(self.pool.clone())),
            affinity: ask.affinity_word(),
            reserve_ms: Some(0),
            resources: (ask.params.slots > 0)
                .then(|| proto::Resources { slots: ask.params.slots.into(), ..proto::Resources::default() }),
            wait_ms: (ask.params.wait_ms > 0).then_some(ask.params.wait_ms.into()),
            ..proto::TakeClaimRequest::default()
        }
    }

    /// Makes one claim.
    pub(super) async fn claim(&self, ask: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        if let Some(stream) = &self.stream {
            return match stream.call(Request::Take(self.take_request(&ask))).await? {
                Outcome::Taken(taken) => grant(ask, taken),
                other => Err(target_error(format!("not the answer to a claim: {other:?}"), true)),
            };
        }
        let answer =
            self.claims.clone().take_claim(self.take_request(&ask)).await.map_err(|status| status_error(&status))?;
        grant(ask, answer.into_inner())
    }

    /// Makes many claims in one request. `gang`: all or none.
    pub(super) async fn claim_batch(
        &self,
        asks: Vec<ClaimInput>,
        gang: bool,
    ) -> Vec<Result<ReceivedGrant, TargetError>> {
        let mode = if gang { proto::BatchMode::AllOrNothing } else { proto::BatchMode::Independent };
        let request = proto::BatchTakeClaimsRequest {
            mode: mode as i32,
            items: asks.iter().map(|ask| self.take_request(ask)).collect(),
        };
        let outcomes = match self.claims.clone().batch_take_claims(request).await {
            Ok(answer) if answer.get_ref().items.len() == asks.len() => Ok(answer.into_inner().items),
            Ok(answer) => {
                let items = answer.get_ref().items.len();
                Err(target_error(format!("{items} outcomes for {} claims", asks.len()), true))
            }
            Err(status) => Err(status_error(&status)),
        };
        match outcomes {
            Ok(items) => {
                let pairs = asks.into_iter().zip(items);
                pairs.map(|(ask, item)| outcome(ask, item.outcome)).collect()
            }
            Err(failure) => asks.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    /// Gives one claim back.
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

    /// The fence under which the claim is held, if it is.
    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        let request = proto::GetClaimRequest { namespace: NAMESPACE.into(), key: id.key().into(), tenant: None };
        match self.claims.clone().get_claim(request).await {
            Ok(answer) => Ok(match answer.into_inner().standing {
                Some(Standing::Claim(claim)) => Some(claim.fence),
                Some(Standing::Waiting(_)) | None => None,
            }),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status_error(&status)),
        }
    }
}

fn grant(ask: ClaimInput, taken: proto::TakeClaimResponse) -> Result<ReceivedGrant, TargetError> {
    let claim = taken.claim.ok_or_else(|| target_error("an answer without a claim".into(), true))?;
    Ok(ReceivedGrant { id: ask.id, fence: claim.fence, worker: worker_ordinal(&claim.worker) })
}

fn outcome(ask: ClaimInput, outcome: Option<Taken>) -> Result<ReceivedGrant, TargetError> {
    match outcome {
        Some(Taken::Taken(taken)) => grant(ask, taken),
        Some(Taken::Error(error)) => Err(code_error(Code::from_i32(error.code), &error.message)),
        None => Err(target_error("neither a claim nor an error in the answer".into(), true)),
    }
}

fn status_error(status: &Status) -> TargetError {
    code_error(status.code(), status.message())
}

/// What an answer other than success means.
fn code_error(code: Code, message: &str) -> TargetError {
    match code {
        Code::ResourceExhausted => TargetError::NoCapacity,
        // The service refuses before it begins; of all else nobody knows.
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
    fn only_want_of_room_is_a_refusal() {
        assert_eq!(code_error(Code::ResourceExhausted, "full"), TargetError::NoCapacity);
        assert_eq!(code_error(Code::Aborted, "x"), target_error("Aborted: x".into(), false));
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Internal, Code::Cancelled, Code::Unknown] {
            assert!(matches!(code_error(code, "x"), TargetError::Failed { in_doubt: true, .. }), "{code:?}");
        }
    }
}
