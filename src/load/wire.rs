//! The calls of the HTTP API that this harness makes, and their bodies.

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::ask::{Ask, Counts, Grant, NAMESPACE, Want};
use super::check::{worker_id, worker_ordinal};
use super::http::HttpLink;
use super::stats::Failure;
use hotpool::model::{Ack, ClaimId, Fence, Mode, PoolSpec};

/// Longest piece of a foreign answer that goes into a message, in bytes.
const QUOTE_BYTES_MAX: usize = 200;

impl HttpLink {
    /// A call of the set-up: anything but success is an error, except that what is deleted may be gone.
    async fn admin(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let said = |failure: Failure| anyhow!("{failure}");
        let what = format!("{method} {path}");
        let gone_is_fine = method == Method::DELETE;
        let place = self.origin().place(path).map_err(said)?;
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
        struct Body {
            shards: u16,
            mode: Mode,
            ack: Ack,
            reserve_ms: u64,
        }
        let body = Body { shards: spec.shards, mode: spec.mode, ack: spec.ack, reserve_ms: spec.reserve_ms };
        let (status, _) = self.admin(Method::PUT, &self.pool_path(""), json(&body)).await?;
        Ok(status == StatusCode::CREATED)
    }

    /// Registers the workers of these ordinals, each with so many slots.
    pub(super) async fn register(&self, workers: std::ops::Range<u32>, slots: u32) -> Result<()> {
        #[derive(Serialize)]
        struct Worker {
            id: String,
            capacity: Slots,
        }
        #[derive(Serialize)]
        struct Body {
            workers: Vec<Worker>,
        }
        #[derive(Deserialize)]
        struct Item {
            error: Option<serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct Answer {
            #[serde(alias = "workers")]
            items: Vec<Item>,
        }
        let count = workers.len();
        let body = Body { workers: workers.map(|n| Worker { id: worker_id(n), capacity: Slots { slots } }).collect() };
        let (_, answer) = self.admin(Method::POST, &self.pool_path("/workers:batch"), json(&body)).await?;
        let answer: Answer = serde_json::from_slice(&answer).context("answer of workers:batch")?;
        if let Some(error) = answer.items.iter().find_map(|item| item.error.as_ref()) {
            bail!("a worker was not registered: {error}");
        }
        if answer.items.len() != count {
            bail!("{} outcomes for {count} workers", answer.items.len());
        }
        Ok(())
    }

    /// Workers by state.
    pub(super) async fn counts(&self) -> Result<Counts> {
        #[derive(Deserialize)]
        struct Pool {
            workers: Counts,
        }
        #[derive(Deserialize)]
        struct Answer {
            pool: Pool,
        }
        let (_, answer) = self.admin(Method::GET, &self.pool_path(""), Bytes::new()).await?;
        Ok(serde_json::from_slice::<Answer>(&answer).context("status of the pool")?.pool.workers)
    }

    /// Changes that each shard of the pool has decided.
    pub(super) async fn shards(&self) -> Result<Vec<u64>> {
        #[derive(Deserialize)]
        struct Shard {
            seq: u64,
        }
        #[derive(Deserialize)]
        struct Pool {
            shards: Vec<Shard>,
        }
        #[derive(Deserialize)]
        struct Answer {
            pool: Pool,
        }
        let (_, answer) = self.admin(Method::GET, &self.pool_path(""), Bytes::new()).await?;
        let shards = serde_json::from_slice::<Answer>(&answer).context("status of the pool")?.pool.shards;
        Ok(shards.into_iter().map(|shard| shard.seq).collect())
    }

    /// Deletes a worker; fine if it is not there.
    pub(super) async fn delete_worker(&self, worker: u32) -> Result<()> {
        let path = self.pool_path(&format!("/workers/{}", worker_id(worker)));
        self.admin(Method::DELETE, &path, Bytes::new()).await.map(drop)
    }

    /// Claims on the first page of the pool's listing.
    pub(super) async fn claims(&self) -> Result<u64> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(alias = "items")]
            claims: Vec<serde::de::IgnoredAny>,
        }
        let path = format!("/v1/claims?namespace={NAMESPACE}&pool={}", self.origin().pool());
        let (_, answer) = self.admin(Method::GET, &path, Bytes::new()).await?;
        Ok(serde_json::from_slice::<Answer>(&answer).context("list of claims")?.claims.len() as u64)
    }

    /// Removes the pool; fine if it is not there.
    pub(super) async fn delete_pool(&self) -> Result<()> {
        self.admin(Method::DELETE, &self.pool_path("?force=true"), Bytes::new()).await.map(drop)
    }

    /// Makes one claim.
    pub(super) async fn claim(&self, ask: Ask) -> Result<Grant, Failure> {
        let body = json(&ClaimBody::of(&ask, self.origin().pool()));
        let (status, answer) = self.call(Method::POST, self.origin().claims(), body).await?;
        if !status.is_success() {
            return Err(refused(status, &answer));
        }
        let (fence, worker) = parse::<Item<'_>>(&answer)?.verdict()?;
        Ok(Grant { id: ask.id, fence, worker })
    }

    /// Makes many claims in one request. `gang`: all or none.
    pub(super) async fn claim_batch(&self, asks: Vec<Ask>, gang: bool) -> Vec<Result<Grant, Failure>> {
        #[derive(Serialize)]
        struct Body<'a> {
            mode: &'static str,
            items: Vec<ClaimBody<'a>>,
        }
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            items: Vec<Item<'a>>,
        }
        let items = asks.iter().map(|ask| ClaimBody::of(ask, self.origin().pool())).collect();
        let answered = async {
            let body = json(&Body { mode: if gang { "all_or_nothing" } else { "independent" }, items });
            let (status, answer) = self.call(Method::POST, self.origin().claims_batch(), body).await?;
            if status.is_success() { Ok(answer) } else { Err(refused(status, &answer)) }
        };
        let outcomes = answered.await.and_then(|answer| {
            let items = parse::<Answer<'_>>(&answer)?.items;
            if items.len() != asks.len() {
                return Err(failed(format!("{} outcomes for {} claims", items.len(), asks.len()), true));
            }
            Ok(items.into_iter().map(Item::verdict).collect::<Vec<_>>())
        });
        match outcomes {
            Ok(verdicts) => {
                let grant = |(ask, verdict): (Ask, Result<(Fence, u32), Failure>)| {
                    verdict.map(|(fence, worker)| Grant { id: ask.id, fence, worker })
                };
                asks.into_iter().zip(verdicts).map(grant).collect()
            }
            Err(failure) => asks.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    /// Gives one claim back.
    pub(super) async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Body {
            fence: Fence,
        }
        let place = self.origin().place(&format!("/v1/claims/{NAMESPACE}/{}:release", id.key()))?;
        let (status, answer) = self.call(Method::POST, &place, json(&Body { fence })).await?;
        if status.is_success() { Ok(()) } else { Err(refused(status, &answer)) }
    }

    /// The fence under which the claim is held, if it is.
    pub(super) async fn find(&self, id: &ClaimId) -> Result<Option<Fence>, Failure> {
        let place = self.origin().place(&format!("/v1/claims/{NAMESPACE}/{}", id.key()))?;
        let (status, answer) = self.call(Method::GET, &place, Bytes::new()).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            _ if status.is_success() => parse::<Item<'_>>(&answer)?.verdict().map(|(fence, _)| Some(fence)),
            _ => Err(refused(status, &answer)),
        }
    }
}

#[derive(Serialize)]
struct ClaimBody<'a> {
    namespace: &'static str,
    pool: &'a str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity: Option<String>,
    reserve_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Slots>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_ms: Option<u32>,
}

/// What a worker has, or a claim asks for.
#[derive(Serialize)]
struct Slots {
    slots: u32,
}

impl<'a> ClaimBody<'a> {
    fn of(ask: &'a Ask, pool: &'a str) -> Self {
        let Want { slots, wait_ms, .. } = ask.want;
        let resources = (slots > 0).then_some(Slots { slots });
        let wait_ms = (wait_ms > 0).then_some(wait_ms);
        Self { namespace: NAMESPACE, pool, key: ask.id.key(), affinity: ask.word(), reserve_ms: 0, resources, wait_ms }
    }
}

/// `{claim}` or `{error}`: an answer of its own, or an item of a batch.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    claim: Option<Claim<'a>>,
    error: Option<ErrorBody>,
}

/// Names need no escaping in JSON, so the id is borrowed from the answer.
#[derive(Deserialize)]
struct Claim<'a> {
    fence: Fence,
    worker: &'a str,
}

#[derive(Deserialize)]
struct ErrorBody {
    code: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: String,
}

impl ErrorBody {
    fn failure(self) -> Failure {
        if self.code == "RESOURCE_EXHAUSTED" {
            return Failure::Refused;
        }
        let reason = self.reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        failed(format!("{}{reason}: {}", self.code, self.message), self.code == "DEADLINE_EXCEEDED")
    }
}

impl Item<'_> {
    /// Fence and ordinal of the worker, or why there is none.
    fn verdict(self) -> Result<(Fence, u32), Failure> {
        match (self.claim, self.error) {
            (Some(claim), None) => Ok((claim.fence, worker_ordinal(claim.worker))),
            (None, Some(error)) => Err(error.failure()),
            _ => Err(failed("neither a claim nor an error in the answer".into(), true)),
        }
    }
}

/// A failure that is not a refusal.
pub(super) const fn failed(message: String, in_doubt: bool) -> Failure {
    Failure::Failed { message, in_doubt }
}

/// What an answer other than success means.
fn refused(status: StatusCode, answer: &[u8]) -> Failure {
    #[derive(Deserialize)]
    struct Answer {
        error: ErrorBody,
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Failure::Refused;
    }
    let in_doubt = status == StatusCode::GATEWAY_TIMEOUT || status == StatusCode::INTERNAL_SERVER_ERROR;
    let said = match serde_json::from_slice::<Answer>(answer) {
        Ok(Answer { error }) => error.message,
        Err(_) => String::from_utf8_lossy(&answer[..answer.len().min(QUOTE_BYTES_MAX)]).into_owned(),
    };
    failed(format!("{status}: {said}"), in_doubt)
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("maps with text keys always serialize").into()
}

fn parse<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(answer).map_err(|error| failed(format!("unreadable answer: {error}"), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let item = |text: &'static str| parse::<Item<'_>>(text.as_bytes()).and_then(Item::verdict);
        let granted = r#"{"claim":{"key":"a","tenant":"default","fence":7,"worker":"w0000012","state":"active"}}"#;
        assert_eq!(item(granted), Ok((7, 12)));
        assert_eq!(
            item(r#"{"error":{"code":"RESOURCE_EXHAUSTED","reason":"pool_exhausted","message":"x"}}"#),
            Err(Failure::Refused)
        );
        assert_eq!(
            item(r#"{"error":{"code":"UNAVAILABLE","reason":"overloaded","message":"slow down"}}"#),
            Err(failed("UNAVAILABLE (overloaded): slow down".into(), false))
        );
        assert!(matches!(item("{}"), Err(Failure::Failed { in_doubt: true, .. })));
        assert!(matches!(item("<html>"), Err(Failure::Failed { in_doubt: true, .. })));
    }

    #[test]
    fn only_429_is_a_refusal() {
        assert_eq!(refused(StatusCode::TOO_MANY_REQUESTS, b""), Failure::Refused);
        let body = br#"{"error":{"code":"UNAVAILABLE","message":"no"}}"#;
        let unavailable = refused(StatusCode::SERVICE_UNAVAILABLE, body);
        assert_eq!(unavailable, failed("503 Service Unavailable: no".into(), false));
        assert!(matches!(refused(StatusCode::GATEWAY_TIMEOUT, b"x"), Failure::Failed { in_doubt: true, .. }));
    }

    #[test]
    fn bodies_are_what_the_api_takes() {
        let body = json(&ClaimBody::of(&Ask::new("k", Want::default()), "p"));
        assert_eq!(body, br#"{"namespace":"load","pool":"p","key":"k","reserve_ms":0}"#.as_slice());
        let want = Want { function: Some(3), slots: 2, wait_ms: 5 };
        let body = json(&ClaimBody::of(&Ask::new("k", want), "p"));
        let wanted = br#"{"namespace":"load","pool":"p","key":"k","affinity":"f3","reserve_ms":0,"resources":{"slots":2},"wait_ms":5}"#;
        assert_eq!(body, wanted.as_slice());
    }
}
