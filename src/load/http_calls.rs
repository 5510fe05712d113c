//! The calls of the HTTP API that this harness makes, and their bodies.

use anyhow::{Result, bail};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::claim_input::{ClaimInput, ClaimParams, NAMESPACE, PoolOccupancy, ReceivedGrant};
use super::grant_checker::{worker_id, worker_ordinal};
use super::http::HttpTargetClient;
use super::stats::TargetError;
use hotpool::client::{
    CandidatePools, ClaimBatchMode, ClaimListFilter, ClientError, ErrorReply, ItemOutcome, KeyStatus, ListRange,
    NewClaim, NewWorker, ServiceError,
};
use hotpool::limits::PAGE_ITEMS_DEFAULT;
use hotpool::model::{ClaimId, Fence, PoolSpec, ResourceRequirements, WorkerCapacity, WorkerId};

/// Longest quote of an answer in a message, in bytes.
const QUOTE_BYTES_MAX: usize = 200;

impl HttpTargetClient {
    /// Creates the pool; false if it existed.
    pub(super) async fn put_pool(&self, spec: &PoolSpec) -> Result<bool> {
        Ok(self.origin().client().put_pool(self.origin().pool_name(), spec).await?.created)
    }

    /// Registers the workers of these ordinals, each with this many slots.
    pub(super) async fn register(&self, workers: std::ops::Range<u32>, slots: u32) -> Result<()> {
        let worker = NewWorker {
            capacity: WorkerCapacity { slots: slots.into(), ..WorkerCapacity::default() },
            ..NewWorker::default()
        };
        let ids = workers.map(|n| WorkerId::new(&worker_id(n))).collect::<Result<Vec<_>, _>>()?;
        let batch = ids.iter().map(|id| (id, &worker));
        let outcomes = self.origin().client().register_workers(self.origin().pool_name(), batch).await?;
        for outcome in &outcomes.items {
            if let ItemOutcome::Failed { error } = &**outcome {
                bail!("a worker was not registered: {error}");
            }
        }
        if outcomes.items.len() != ids.len() {
            bail!("{} outcomes for {} workers", outcomes.items.len(), ids.len());
        }
        Ok(())
    }

    /// Counts the workers by state.
    pub(super) async fn counts(&self) -> Result<PoolOccupancy> {
        let workers = self.origin().client().get_pool(self.origin().pool_name()).await?.into_value().pool.workers;
        let count = |name: &str| workers.get(name).copied().unwrap_or_default();
        Ok(PoolOccupancy { total: count("total"), idle: count("idle"), busy: count("busy") })
    }

    /// Reads the number of changes that each shard of the pool has decided.
    pub(super) async fn shards(&self) -> Result<Vec<u64>> {
        let reply = self.origin().client().get_pool(self.origin().pool_name()).await?;
        Ok(reply.pool.shards.iter().map(|shard| shard.seq).collect())
    }

    /// Deletes a worker; a missing one is no error.
    pub(super) async fn delete_worker(&self, worker: u32) -> Result<()> {
        let id = WorkerId::new(&worker_id(worker))?;
        ignore_missing(self.origin().client().delete_worker(self.origin().pool_name(), &id).await)
    }

    /// Counts the claims on the first page of the pool's listing.
    pub(super) async fn claims(&self) -> Result<u64> {
        let pool = self.origin().pool_name();
        let filter = ClaimListFilter {
            namespace: Some(NAMESPACE.to_owned()),
            pool: Some(pool.pool().to_owned()),
            ..ClaimListFilter::default()
        };
        let first_page = ListRange { limit: Some(PAGE_ITEMS_DEFAULT), page_token: None };
        Ok(self.origin().client().list_claims(&filter, first_page).await?.items.len() as u64)
    }

    /// Deletes the pool; a missing one is no error.
    pub(super) async fn delete_pool(&self) -> Result<()> {
        ignore_missing(self.origin().client().delete_pool_and_workers(self.origin().pool_name()).await)
    }

    /// Finds the fence of the claim that the key holds, if it holds one.
    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        match self.origin().client().get_claim(id).await {
            Ok(status) => match &*status {
                KeyStatus::Claim(claim) => Ok(Some(claim.fence)),
                KeyStatus::Waiting(_) => Err(target_error("the claim still waits".into(), true)),
            },
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(target_error(error.to_string(), true)),
        }
    }

    /// Makes one claim over HTTP.
    pub(super) async fn claim(&self, input: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        let body = json(&new_claim(&input, self.origin().pool()));
        let (status, answer) = self.call(Method::POST, self.origin().claims(), body).await?;
        if !status.is_success() {
            return Err(status_error(status, &answer));
        }
        let (fence, worker) = parse::<GrantReply<'_>>(&answer)?.into_grant()?;
        Ok(ReceivedGrant { id: input.id, fence, worker })
    }

    /// Makes many claims in one request. `gang`: all or none.
    pub(super) async fn claim_batch(
        &self,
        inputs: Vec<ClaimInput>,
        gang: bool,
    ) -> Vec<Result<ReceivedGrant, TargetError>> {
        #[derive(Serialize)]
        struct ClaimBatchBody<'a> {
            mode: ClaimBatchMode,
            items: Vec<NewClaim<'a>>,
        }
        #[derive(Deserialize)]
        struct ClaimBatchReply<'a> {
            #[serde(borrow)]
            items: Vec<GrantReply<'a>>,
        }
        let items = inputs.iter().map(|input| new_claim(input, self.origin().pool())).collect();
        let answered = async {
            let mode = if gang { ClaimBatchMode::AllOrNothing } else { ClaimBatchMode::Independent };
            let body = json(&ClaimBatchBody { mode, items });
            let (status, answer) = self.call(Method::POST, self.origin().claims_batch(), body).await?;
            if status.is_success() { Ok(answer) } else { Err(status_error(status, &answer)) }
        };
        let outcomes = answered.await.and_then(|answer| {
            let items = parse::<ClaimBatchReply<'_>>(&answer)?.items;
            if items.len() != inputs.len() {
                return Err(target_error(format!("{} outcomes for {} claims", items.len(), inputs.len()), true));
            }
            Ok(items.into_iter().map(GrantReply::into_grant).collect::<Vec<_>>())
        });
        match outcomes {
            Ok(verdicts) => {
                let grant = |(input, verdict): (ClaimInput, Result<(Fence, u32), TargetError>)| {
                    verdict.map(|(fence, worker)| ReceivedGrant { id: input.id, fence, worker })
                };
                inputs.into_iter().zip(verdicts).map(grant).collect()
            }
            Err(failure) => inputs.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    /// Gives one claim back.
    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), TargetError> {
        #[derive(Serialize)]
        struct ReleaseInputBody {
            fence: Fence,
        }
        let place = self.origin().request_path(&format!("/v1/claims/{NAMESPACE}/{}:release", id.key()))?;
        let (status, answer) = self.call(Method::POST, &place, json(&ReleaseInputBody { fence })).await?;
        if status.is_success() { Ok(()) } else { Err(status_error(status, &answer)) }
    }
}

/// Accepts the deletion of an object that is missing.
fn ignore_missing<T>(deleted: Result<T, ClientError>) -> Result<()> {
    match deleted {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Builds the request for a claim of the pool.
fn new_claim<'a>(input: &'a ClaimInput, pool: &'a str) -> NewClaim<'a> {
    let ClaimParams { slots, wait_ms, .. } = input.params;
    NewClaim {
        namespace: NAMESPACE.into(),
        pools: CandidatePools::Single(pool.into()),
        key: Some(input.id.key().into()),
        affinity: input.affinity_word().map(Into::into),
        reserve_ms: Some(0),
        resources: (slots > 0).then(|| ResourceRequirements { slots: slots.into(), ..ResourceRequirements::default() }),
        wait_ms: (wait_ms > 0).then_some(wait_ms.into()),
        ..NewClaim::default()
    }
}

/// `{claim}` or `{error}`: a whole answer, or an item of a batch. Borrowed, because the client's own types allocate for
/// each field of each claim.
#[derive(Deserialize)]
struct GrantReply<'a> {
    #[serde(borrow)]
    claim: Option<GrantedClaimBody<'a>>,
    error: Option<ServiceError>,
}

/// Names need no escaping in JSON, so the id is borrowed from the answer.
#[derive(Deserialize)]
struct GrantedClaimBody<'a> {
    fence: Fence,
    worker: &'a str,
}

impl GrantReply<'_> {
    /// Fence and ordinal of the worker, or why there is none.
    fn into_grant(self) -> Result<(Fence, u32), TargetError> {
        match (self.claim, self.error) {
            (Some(claim), None) => Ok((claim.fence, worker_ordinal(claim.worker))),
            (None, Some(error)) => Err(service_error(error)),
            _ => Err(target_error("neither a claim nor an error in the answer".into(), true)),
        }
    }
}

/// Takes the error of one claim.
fn service_error(error: ServiceError) -> TargetError {
    match &*error.code {
        "RESOURCE_EXHAUSTED" => TargetError::NoCapacity,
        code => target_error(error.to_string(), code == "DEADLINE_EXCEEDED"),
    }
}

/// Failure other than a lack of capacity.
pub(super) const fn target_error(message: String, in_doubt: bool) -> TargetError {
    TargetError::Failed { message, in_doubt }
}

/// Classifies an answer that is not success.
fn status_error(status: StatusCode, answer: &[u8]) -> TargetError {
    if status == StatusCode::TOO_MANY_REQUESTS {
        return TargetError::NoCapacity;
    }
    let in_doubt = status == StatusCode::GATEWAY_TIMEOUT || status == StatusCode::INTERNAL_SERVER_ERROR;
    let message = match serde_json::from_slice::<ErrorReply>(answer) {
        Ok(ErrorReply { error }) => error.message,
        Err(_) => String::from_utf8_lossy(&answer[..answer.len().min(QUOTE_BYTES_MAX)]).into_owned(),
    };
    target_error(format!("{status}: {message}"), in_doubt)
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("maps with text keys always serialize").into()
}

fn parse<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, TargetError> {
    serde_json::from_slice(answer).map_err(|error| target_error(format!("unreadable answer: {error}"), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let item = |text: &'static str| parse::<GrantReply<'_>>(text.as_bytes()).and_then(GrantReply::into_grant);
        let granted = r#"{"claim":{"key":"a","tenant":"default","fence":7,"worker":"w0000012","state":"active"}}"#;
        assert_eq!(item(granted), Ok((7, 12)));
        assert_eq!(
            item(r#"{"error":{"code":"RESOURCE_EXHAUSTED","reason":"pool_exhausted","message":"x"}}"#),
            Err(TargetError::NoCapacity)
        );
        assert_eq!(
            item(r#"{"error":{"code":"UNAVAILABLE","reason":"overloaded","message":"slow down"}}"#),
            Err(target_error("slow down (UNAVAILABLE, overloaded)".into(), false))
        );
        assert!(matches!(item("{}"), Err(TargetError::Failed { in_doubt: true, .. })));
        assert!(matches!(item("<html>"), Err(TargetError::Failed { in_doubt: true, .. })));
    }

    #[test]
    fn only_429_is_a_refusal() {
        assert_eq!(status_error(StatusCode::TOO_MANY_REQUESTS, b""), TargetError::NoCapacity);
        let body = br#"{"error":{"code":"UNAVAILABLE","message":"no"}}"#;
        let unavailable = status_error(StatusCode::SERVICE_UNAVAILABLE, body);
        assert_eq!(unavailable, target_error("503 Service Unavailable: no".into(), false));
        assert!(matches!(status_error(StatusCode::GATEWAY_TIMEOUT, b"x"), TargetError::Failed { in_doubt: true, .. }));
    }

    #[test]
    fn bodies_are_what_the_api_takes() {
        let body = json(&new_claim(&ClaimInput::new("k", ClaimParams::default()), "p"));
        assert_eq!(body, br#"{"namespace":"load","pool":"p","key":"k","reserve_ms":0}"#.as_slice());
        let want = ClaimParams { function: Some(3), slots: 2, wait_ms: 5 };
        let body = json(&new_claim(&ClaimInput::new("k", want), "p"));
        let wanted = br#"{"namespace":"load","pool":"p","key":"k","affinity":"f3","reserve_ms":0,"resources":{"slots":2},"wait_ms":5}"#;
        assert_eq!(body, wanted.as_slice());
    }
}
