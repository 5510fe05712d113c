//! The calls of the HTTP API that this harness makes, and their bodies.

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::claim_input::{ClaimInput, ClaimParams, NAMESPACE, PoolOccupancy, ReceivedGrant};
use super::grant_checker::{worker_id, worker_ordinal};
use super::http::HttpTargetClient;
use super::stats::TargetError;
use hotpool::model::{AckLevel, ClaimId, Fence, PoolMode, PoolSpec};

/// Longest piece of a foreign answer that goes into a message, in bytes.
const QUOTE_BYTES_MAX: usize = 200;

impl HttpTargetClient {
    /// A call of the set-up: anything but success is an error, except that what is deleted may be gone.
    async fn call_admin(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let said = |failure: TargetError| anyhow!("{failure}");
        let what = format!("{method} {path}");
        let gone_is_fine = method == Method::DELETE;
        let place = self.origin().request_path(path).map_err(said)?;
        let (status, answer) = self.call(method, &place, body).await.map_err(said).context(what.clone())?;
        let fine = status.is_success() || (gone_is_fine && status == StatusCode::NOT_FOUND);
        if !fine {
            bail!("{what}: {status} {}", String::from_utf8_lossy(&answer));
        }
        Ok((status, answer))
    }

    fn pool_path(&self, rest: &str) -> String {
        format!("/v1/pools/{NAMESPACE}/{}{rest}", self.origin().pool())
    }

    /// Makes the pool; false if it was there.
    pub(super) async fn put_pool(&self, spec: &PoolSpec) -> Result<bool> {
        #[derive(Serialize)]
        struct PutPoolBody {
            shards: u16,
            mode: PoolMode,
            ack: AckLevel,
            reserve_ms: u64,
        }
        let body = PutPoolBody { shards: spec.shards, mode: spec.mode, ack: spec.ack, reserve_ms: spec.reserve_ms };
        let (status, _) = self.call_admin(Method::PUT, &self.pool_path(""), json(&body)).await?;
        Ok(status == StatusCode::CREATED)
    }

    /// Registers the workers of these ordinals, each with so many slots.
    pub(super) async fn register(&self, workers: std::ops::Range<u32>, slots: u32) -> Result<()> {
        #[derive(Serialize)]
        struct RegisterWorkerEntry {
            id: String,
            capacity: SlotAmount,
        }
        #[derive(Serialize)]
        struct RegisterBatchBody {
            workers: Vec<RegisterWorkerEntry>,
        }
        #[derive(Deserialize)]
        struct RegisterBatchItem {
            error: Option<serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct RegisterBatchReply {
            #[serde(alias = "workers")]
            items: Vec<RegisterBatchItem>,
        }
        let count = workers.len();
        let body = RegisterBatchBody {
            workers: workers
                .map(|n| RegisterWorkerEntry { id: worker_id(n), capacity: SlotAmount { slots } })
                .collect(),
        };
        let (_, answer) = self.call_admin(Method::POST, &self.pool_path("/workers:batch"), json(&body)).await?;
        let answer: RegisterBatchReply = serde_json::from_slice(&answer).context("answer of workers:batch")?;
        if let Some(error) = answer.items.iter().find_map(|item| item.error.as_ref()) {
            bail!("a worker was not registered: {error}");
        }
        if answer.items.len() != count {
            bail!("{} outcomes for {count} workers", answer.items.len());
        }
        Ok(())
    }

    /// Workers by state.
    pub(super) async fn counts(&self) -> Result<PoolOccupancy> {
        #[derive(Deserialize)]
        struct PoolOccupancyBody {
            workers: PoolOccupancy,
        }
        #[derive(Deserialize)]
        struct PoolOccupancyReply {
            pool: PoolOccupancyBody,
        }
        let (_, answer) = self.call_admin(Method::GET, &self.pool_path(""), Bytes::new()).await?;
        Ok(serde_json::from_slice::<PoolOccupancyReply>(&answer).context("status of the pool")?.pool.workers)
    }

    /// Changes that each shard of the pool has decided.
    pub(super) async fn shards(&self) -> Result<Vec<u64>> {
        #[derive(Deserialize)]
        struct ShardSeqBody {
            seq: u64,
        }
        #[derive(Deserialize)]
        struct PoolShardsBody {
            shards: Vec<ShardSeqBody>,
        }
        #[derive(Deserialize)]
        struct PoolShardsReply {
            pool: PoolShardsBody,
        }
        let (_, answer) = self.call_admin(Method::GET, &self.pool_path(""), Bytes::new()).await?;
        let shards = serde_json::from_slice::<PoolShardsReply>(&answer).context("status of the pool")?.pool.shards;
        Ok(shards.into_iter().map(|shard| shard.seq).collect())
    }

    /// Deletes a worker; fine if it is not there.
    pub(super) async fn delete_worker(&self, worker: u32) -> Result<()> {
        let path = self.pool_path(&format!("/workers/{}", worker_id(worker)));
        self.call_admin(Method::DELETE, &path, Bytes::new()).await.map(drop)
    }

    /// Claims on the first page of the pool's listing.
    pub(super) async fn claims(&self) -> Result<u64> {
        #[derive(Deserialize)]
        struct ListClaimsReply {
            #[serde(alias = "items")]
            claims: Vec<serde::de::IgnoredAny>,
        }
        let path = format!("/v1/claims?namespace={NAMESPACE}&pool={}", self.origin().pool());
        let (_, answer) = self.call_admin(Method::GET, &path, Bytes::new()).await?;
        Ok(serde_json::from_slice::<ListClaimsReply>(&answer).context("list of claims")?.claims.len() as u64)
    }

    /// Removes the pool; fine if it is not there.
    pub(super) async fn delete_pool(&self) -> Result<()> {
        self.call_admin(Method::DELETE, &self.pool_path("?force=true"), Bytes::new()).await.map(drop)
    }

    /// Makes one claim.
    pub(super) async fn claim(&self, ask: ClaimInput) -> Result<ReceivedGrant, TargetError> {
        let body = json(&ClaimInputBody::of(&ask, self.origin().pool()));
        let (status, answer) = self.call(Method::POST, self.origin().claims(), body).await?;
        if !status.is_success() {
            return Err(status_error(status, &answer));
        }
        let (fence, worker) = parse::<ClaimReply<'_>>(&answer)?.into_grant()?;
        Ok(ReceivedGrant { id: ask.id, fence, worker })
    }

    /// Makes many claims in one request. `gang`: all or none.
    pub(super) async fn claim_batch(
        &self,
        asks: Vec<ClaimInput>,
        gang: bool,
    ) -> Vec<Result<ReceivedGrant, TargetError>> {
        #[derive(Serialize)]
        struct ClaimBatchBody<'a> {
            mode: &'static str,
            items: Vec<ClaimInputBody<'a>>,
        }
        #[derive(Deserialize)]
        struct ClaimBatchReply<'a> {
            #[serde(borrow)]
            items: Vec<ClaimReply<'a>>,
        }
        let items = asks.iter().map(|ask| ClaimInputBody::of(ask, self.origin().pool())).collect();
        let answered = async {
            let body = json(&ClaimBatchBody { mode: if gang { "all_or_nothing" } else { "independent" }, items });
            let (status, answer) = self.call(Method::POST, self.origin().claims_batch(), body).await?;
            if status.is_success() { Ok(answer) } else { Err(status_error(status, &answer)) }
        };
        let outcomes = answered.await.and_then(|answer| {
            let items = parse::<ClaimBatchReply<'_>>(&answer)?.items;
            if items.len() != asks.len() {
                return Err(target_error(format!("{} outcomes for {} claims", items.len(), asks.len()), true));
            }
            Ok(items.into_iter().map(ClaimReply::into_grant).collect::<Vec<_>>())
        });
        match outcomes {
            Ok(verdicts) => {
                let grant = |(ask, verdict): (ClaimInput, Result<(Fence, u32), TargetError>)| {
                    verdict.map(|(fence, worker)| ReceivedGrant { id: ask.id, fence, worker })
                };
                asks.into_iter().zip(verdicts).map(grant).collect()
            }
            Err(failure) => asks.iter().map(|_| Err(failure.clone())).collect(),
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

    /// The fence under which the claim is held, if it is.
    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, TargetError> {
        let place = self.origin().request_path(&format!("/v1/claims/{NAMESPACE}/{}", id.key()))?;
        let (status, answer) = self.call(Method::GET, &place, Bytes::new()).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            _ if status.is_success() => parse::<ClaimReply<'_>>(&answer)?.into_grant().map(|(fence, _)| Some(fence)),
            _ => Err(status_error(status, &answer)),
        }
    }
}

#[derive(Serialize)]
struct ClaimInputBody<'a> {
    namespace: &'static str,
    pool: &'a str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity: Option<String>,
    reserve_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<SlotAmount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_ms: Option<u32>,
}

/// What a worker has, or a claim asks for.
#[derive(Serialize)]
struct SlotAmount {
    slots: u32,
}

impl<'a> ClaimInputBody<'a> {
    fn of(ask: &'a ClaimInput, pool: &'a str) -> Self {
        let ClaimParams { slots, wait_ms, .. } = ask.params;
        let resources = (slots > 0).then_some(SlotAmount { slots });
        let wait_ms = (wait_ms > 0).then_some(wait_ms);
        Self {
            namespace: NAMESPACE,
            pool,
            key: ask.id.key(),
            affinity: ask.affinity_word(),
            reserve_ms: 0,
            resources,
            wait_ms,
        }
    }
}

/// `{claim}` or `{error}`: an answer of its own, or an item of a batch.
#[derive(Deserialize)]
struct ClaimReply<'a> {
    #[serde(borrow)]
    claim: Option<GrantedClaimBody<'a>>,
    error: Option<ErrorReplyBody>,
}

/// Names need no escaping in JSON, so the id is borrowed from the answer.
#[derive(Deserialize)]
struct GrantedClaimBody<'a> {
    fence: Fence,
    worker: &'a str,
}

#[derive(Deserialize)]
struct ErrorReplyBody {
    code: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: String,
}

impl ErrorReplyBody {
    fn into_error(self) -> TargetError {
        if self.code == "RESOURCE_EXHAUSTED" {
            return TargetError::NoCapacity;
        }
        let reason = self.reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        target_error(format!("{}{reason}: {}", self.code, self.message), self.code == "DEADLINE_EXCEEDED")
    }
}

impl ClaimReply<'_> {
    /// Fence and ordinal of the worker, or why there is none.
    fn into_grant(self) -> Result<(Fence, u32), TargetError> {
        match (self.claim, self.error) {
            (Some(claim), None) => Ok((claim.fence, worker_ordinal(claim.worker))),
            (None, Some(error)) => Err(error.into_error()),
            _ => Err(target_error("neither a claim nor an error in the answer".into(), true)),
        }
    }
}

/// A failure that is not a refusal.
pub(super) const fn target_error(message: String, in_doubt: bool) -> TargetError {
    TargetError::Failed { message, in_doubt }
}

/// What an answer other than success means.
fn status_error(status: StatusCode, answer: &[u8]) -> TargetError {
    #[derive(Deserialize)]
    struct ErrorReply {
        error: ErrorReplyBody,
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        return TargetError::NoCapacity;
    }
    let in_doubt = status == StatusCode::GATEWAY_TIMEOUT || status == StatusCode::INTERNAL_SERVER_ERROR;
    let said = match serde_json::from_slice::<ErrorReply>(answer) {
        Ok(ErrorReply { error }) => error.message,
        Err(_) => String::from_utf8_lossy(&answer[..answer.len().min(QUOTE_BYTES_MAX)]).into_owned(),
    };
    target_error(format!("{status}: {said}"), in_doubt)
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
        let item = |text: &'static str| parse::<ClaimReply<'_>>(text.as_bytes()).and_then(ClaimReply::into_grant);
        let granted = r#"{"claim":{"key":"a","tenant":"default","fence":7,"worker":"w0000012","state":"active"}}"#;
        assert_eq!(item(granted), Ok((7, 12)));
        assert_eq!(
            item(r#"{"error":{"code":"RESOURCE_EXHAUSTED","reason":"pool_exhausted","message":"x"}}"#),
            Err(TargetError::NoCapacity)
        );
        assert_eq!(
            item(r#"{"error":{"code":"UNAVAILABLE","reason":"overloaded","message":"slow down"}}"#),
            Err(target_error("UNAVAILABLE (overloaded): slow down".into(), false))
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
        let body = json(&ClaimInputBody::of(&ClaimInput::new("k", ClaimParams::default()), "p"));
        assert_eq!(body, br#"{"namespace":"load","pool":"p","key":"k","reserve_ms":0}"#.as_slice());
        let want = ClaimParams { function: Some(3), slots: 2, wait_ms: 5 };
        let body = json(&ClaimInputBody::of(&ClaimInput::new("k", want), "p"));
        let wanted = br#"{"namespace":"load","pool":"p","key":"k","affinity":"f3","reserve_ms":0,"resources":{"slots":2},"wait_ms":5}"#;
        assert_eq!(body, wanted.as_slice());
    }
}
