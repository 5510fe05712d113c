//! Claims: requests for workers, the claims themselves, and explanations.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Client, ClientError, CreateReply, ItemList, ItemOutcome, ListRange, RawJson, ServiceError, encode};
use crate::model::{AckLevel, ClaimId, ClaimState, Fence, Labels, Millis, PoolName, ResourceRequirements, is_zero};

/// Request for a worker, or in a shared pool for a part of one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewClaim<'a> {
    /// Namespace of the pools and of the key.
    pub namespace: Cow<'a, str>,
    /// Pools that may serve the claim.
    #[serde(flatten)]
    pub pools: CandidatePools<'a>,
    /// Key that identifies the claim; `None` for one that the service generates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Cow<'a, str>>,
    /// Tenant of the claim; `None` for `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Cow<'a, str>>,
    /// Affinity: prefers the idle worker whose last claim had the same; `None` for the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Cow<'a, str>>,
    /// Time in milliseconds within which the claim must be confirmed; 0 makes it active at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve_ms: Option<Millis>,
    /// Resources that the worker must have, or that the claim holds in a shared pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Label selector for workers, such as `zone=a, !spot`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Cow<'a, str>>,
    /// Nodes that the worker must or should be on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeSelection>,
    /// Id of the one worker that will do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<Cow<'a, str>>,
    /// Class that a pool must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Cow<'a, str>>,
    /// Time in milliseconds without a renewal after which an active claim ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<Millis>,
    /// Acknowledgement stronger than the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack: Option<AckLevel>,
    /// True to fail if the key holds a claim with other resources.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub must_match: bool,
    /// Labels that are shown with the claim.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Time in milliseconds to wait for capacity; the deadline of the call grows by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<Millis>,
    /// Priority among waiting claims, 0..=1000, the highest first.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: u64,
    /// True if a claim with a higher priority may evict this one, in a pool that allows it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub preemptible: bool,
}

/// Pools that may serve a claim, all of its namespace.
#[derive(Debug, Clone, Serialize)]
pub enum CandidatePools<'a> {
    /// Name of the one pool.
    #[serde(rename = "pool")]
    Single(Cow<'a, str>),
    /// Names of several pools in order of preference.
    #[serde(rename = "pools")]
    Ordered(Vec<Cow<'a, str>>),
    /// Selector over the labels of pools.
    #[serde(rename = "pool_selector")]
    Selected(Cow<'a, str>),
}

impl Default for CandidatePools<'_> {
    fn default() -> Self {
        Self::Ordered(Vec::new())
    }
}

/// Nodes to use for a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NodeSelection {
    /// Nodes of which the worker must be on one; empty for any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
    /// Nodes to try first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preferred: Vec<String>,
    /// Nodes to wait for before any other is used, instead of `preferred`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_then_wait: Option<PreferredNodes>,
}

/// Preferred nodes, and the wait for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PreferredNodes {
    /// Nodes to wait for.
    pub nodes: Vec<String>,
    /// Time in milliseconds until other nodes are used.
    pub ms: Millis,
}

impl<'a> NewClaim<'a> {
    /// Requests a worker of `pool` for `id`. The pool's namespace is that of the claim.
    #[must_use]
    pub fn new(id: &'a ClaimId, pool: &'a PoolName) -> Self {
        Self {
            namespace: id.namespace().into(),
            pools: CandidatePools::Single(pool.pool().into()),
            key: Some(id.key().into()),
            tenant: Some(id.tenant().into()),
            ..Self::default()
        }
    }

    /// Returns how long the service may hold back the answer.
    fn wait(&self) -> Duration {
        let node_ms = self.node.as_ref().and_then(|node| node.preferred_then_wait.as_ref()).map(|nodes| nodes.ms);
        Duration::from_millis(self.wait_ms.max(node_ms).unwrap_or_default())
    }
}

/// Relation between the claims of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimBatchMode {
    /// Claims succeed or fail one by one.
    Independent,
    /// Claims succeed together or not at all: a gang.
    AllOrNothing,
}

/// Claim on a worker.
#[derive(Debug, Clone, Deserialize)]
pub struct ClaimDetails {
    /// Key that identifies the claim within its tenant.
    pub key: String,
    /// Tenant of the claim.
    pub tenant: String,
    /// Fence: grows with every grant, so a resource can refuse earlier holders.
    pub fence: Fence,
    /// Namespace of the key and the pool.
    pub namespace: String,
    /// Name of the pool within the namespace.
    pub pool: String,
    /// Id of the worker.
    pub worker: String,
    /// Node that the worker runs on.
    pub node: Option<String>,
    /// State of the claim.
    pub state: ClaimState,
    /// Reason for the state, such as `preempted`.
    pub reason: Option<String>,
    /// Resources that the claim holds.
    #[serde(default)]
    pub resources: ClaimedResources,
    /// Labels of the request.
    #[serde(default)]
    pub labels: Labels,
    /// Priority of the request.
    #[serde(default)]
    pub priority: u64,
    /// True if a claim with a higher priority may evict this one.
    #[serde(default)]
    pub preemptible: bool,
    /// Unix time of the deadline, in milliseconds; `None` without one.
    pub expires_at_ms: Option<Millis>,
    /// Unix time of the grant, in milliseconds; `None` if unknown.
    pub created_at_ms: Option<Millis>,
    /// Unix time of the confirmation, in milliseconds; `None` if unknown or not confirmed.
    pub activated_at_ms: Option<Millis>,
}

/// Resources that a claim holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimedResources {
    /// CPU that the claim holds, in thousandths of a core.
    pub cpu_milli: u64,
    /// Memory that the claim holds, in bytes.
    pub memory_bytes: u64,
    /// Slots in the pool's own unit.
    pub slots: u64,
    /// GPUs, if the claim holds any.
    pub gpu: Option<ClaimedGpus>,
}

/// GPUs that a claim holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ClaimedGpus {
    /// Model of the GPUs.
    pub model: String,
    /// Number of GPUs that the claim holds.
    pub count: u64,
    /// Thousandths of each GPU; `None` for a claim on a whole worker.
    pub milli: Option<u32>,
    /// Indices of the GPUs on the worker; empty for a claim on a whole worker.
    #[serde(default, rename = "cards")]
    pub indices: Vec<u32>,
}

/// Claim that is queued for capacity or for quota.
#[derive(Debug, Clone, Deserialize)]
pub struct QueuedClaimDetails {
    /// Key that identifies the claim within its tenant.
    pub key: String,
    /// Tenant of the claim.
    pub tenant: String,
    /// Namespace of the key and the pools.
    pub namespace: String,
    /// Names of the candidate pools in order of preference.
    pub pools: Vec<String>,
    /// Reason for the wait, such as `pool_exhausted`.
    pub reason: String,
    /// Priority in the queue.
    pub priority: u64,
    /// Number of claims ahead in the best queue.
    pub ahead: u64,
    /// Time since the claim was queued, in milliseconds.
    pub waited_ms: Millis,
    /// Time until the claim is rejected, in milliseconds.
    pub left_ms: Millis,
    /// Estimated wait in milliseconds, by the throughput of the last minute; `None` if unknown.
    pub estimate_ms: Option<Millis>,
}

/// Status of a key.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyStatus {
    /// Claim that the key holds or held lately.
    Claim(Box<ClaimDetails>),
    /// Queued claim of the key.
    Waiting(QueuedClaimDetails),
}

/// Answer that holds one claim.
#[derive(Debug, Clone, Deserialize)]
pub struct ClaimReply {
    /// Claim after the call.
    pub claim: ClaimDetails,
    /// True for a batch item whose claim is new. Single calls report it in [`CreateReply::created`].
    #[serde(default)]
    pub created: bool,
}

/// Answer to a release.
#[derive(Debug, Clone, Deserialize)]
pub struct ReleaseReply {
    /// False if the key held no claim.
    #[serde(default = "ReleaseReply::default_released")]
    pub released: bool,
}

impl ReleaseReply {
    /// Assumes a release where an old service does not report it.
    const fn default_released() -> bool {
        true
    }
}

/// Filter of a listing of claims. The default lists all.
#[derive(Debug, Clone, Default)]
pub struct ClaimListFilter {
    /// Namespace of the claims.
    pub namespace: Option<String>,
    /// Name of their pool.
    pub pool: Option<String>,
    /// Id of their worker.
    pub worker: Option<String>,
    /// Tenant of the claims.
    pub tenant: Option<String>,
    /// States of the claims, separated by commas: `reserved`, `active`, `releasing`.
    pub state: Option<String>,
    /// Smallest age of the claims, in milliseconds.
    pub older_than_ms: Option<Millis>,
}

/// Explanation of what a claim would get, and why.
#[derive(Debug, Clone, Deserialize)]
pub struct ExplainReply {
    /// Worker that the claim would get; `None` if it would fail.
    pub would_take: Option<PlacementReply>,
    /// Error that the claim would fail with.
    pub error: Option<ServiceError>,
    /// Survey of each candidate pool.
    pub pools: Vec<PoolSurveyReply>,
}

/// Placement that a claim would get.
#[derive(Debug, Clone, Deserialize)]
pub struct PlacementReply {
    /// Name of the pool.
    pub pool: String,
    /// Id of the worker.
    pub worker: String,
    /// Node that the worker runs on.
    pub node: Option<String>,
}

/// Workers of a pool by their fitness for a claim.
#[derive(Debug, Clone, Deserialize)]
pub struct PoolSurveyReply {
    /// Name of the pool.
    pub pool: String,
    /// Number of workers in the pool.
    pub workers: u64,
    /// Number of workers that could serve the claim now.
    pub fits: u64,
    /// Numbers of workers by the first filter that ruled them out, in the order of the filters.
    pub ruled_out: Map<String, Value>,
    /// Number of workers that are too small even when idle.
    #[serde(default)]
    pub too_small: u64,
    /// Workers that lack least.
    pub nearest: Vec<NearestWorker>,
    /// Largest free amount of each resource on any worker.
    pub most_free: BTreeMap<String, u64>,
    /// Number of shards that did not answer in time.
    #[serde(default)]
    pub silent_shards: u64,
}

/// Worker that almost fits.
#[derive(Debug, Clone, Deserialize)]
pub struct NearestWorker {
    /// Node that the worker runs on.
    pub node: Option<String>,
    /// Shortage as a sentence.
    pub text: String,
}

/// Request body about a claim that is held.
#[derive(Serialize)]
struct FencedBody<'a> {
    fence: Fence,
    tenant: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<&'a ResourceRequirements>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'a str>,
}

impl<'a> FencedBody<'a> {
    fn new(id: &'a ClaimId, fence: Fence) -> Self {
        Self { fence, tenant: id.tenant(), ttl_ms: None, resources: None, phase: None }
    }
}

impl Client {
    /// Claims a worker. A key that holds a claim gets that claim again.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` while no worker or no quota is free, `NOT_FOUND` for a missing pool, `INVALID_ARGUMENT` for a
    /// field out of bounds or resources that no worker has, `FAILED_PRECONDITION` while the key's claim is being
    /// released, `UNAVAILABLE` under overload. After [`ClientError::TimedOut`], repeat the call with the same key.
    pub async fn claim(&self, request: &NewClaim<'_>) -> Result<CreateReply<ClaimReply>, ClientError> {
        self.call_with_wait(request.wait(), Method::POST, "/v1/claims", encode(request)?).await
    }

    /// Claims many workers in one call. Each claim has its own outcome, in order.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for more than [`crate::limits::BATCH_ITEMS_MAX`] items. The errors of [`Self::claim`] are
    /// outcomes of single items; those of a failed gang are `ABORTED` but for the item that caused it.
    pub async fn claim_batch(
        &self,
        mode: ClaimBatchMode,
        items: &[NewClaim<'_>],
    ) -> Result<RawJson<ItemList<ItemOutcome<ClaimReply>>>, ClientError> {
        #[derive(Serialize)]
        struct ClaimBatchRequest<'a> {
            mode: ClaimBatchMode,
            items: &'a [NewClaim<'a>],
        }
        let wait = items.iter().map(NewClaim::wait).max().unwrap_or_default();
        let body = encode(&ClaimBatchRequest { mode, items })?;
        Ok(self.call_with_wait(wait, Method::POST, "/v1/claims:batch", body).await?.reply)
    }

    /// Reads the claim or the queued claim of a key.
    ///
    /// # Errors
    /// `NOT_FOUND` for a key that neither holds nor waits for a worker.
    pub async fn get_claim(&self, id: &ClaimId) -> Result<RawJson<KeyStatus>, ClientError> {
        self.get(&format!("{}?tenant={}", claim_path(id), id.tenant())).await
    }

    /// Lists the claims that pass a filter.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a filter that is malformed, or a page token of another listing.
    pub async fn list_claims(
        &self,
        filter: &ClaimListFilter,
        range: ListRange,
    ) -> Result<ItemList<ClaimDetails>, ClientError> {
        let ClaimListFilter { namespace, pool, worker, tenant, state, older_than_ms } = filter;
        let older_than_ms = older_than_ms.map(|ms| ms.to_string());
        let filter = [
            ("namespace", namespace.as_deref()),
            ("pool", pool.as_deref()),
            ("worker", worker.as_deref()),
            ("tenant", tenant.as_deref()),
            ("state", state.as_deref()),
            ("older_than_ms", older_than_ms.as_deref()),
        ];
        self.list("/v1/claims", &filter, range).await
    }

    /// Confirms a reserved claim: the work has begun.
    ///
    /// # Errors
    /// `ABORTED` for another fence, `NOT_FOUND` for a key without a claim, `FAILED_PRECONDITION` while the claim is being
    /// released.
    pub async fn confirm(&self, id: &ClaimId, fence: Fence) -> Result<RawJson<ClaimReply>, ClientError> {
        self.call_fenced(id, "confirm", FencedBody::new(id, fence)).await
    }

    /// Renews an active claim for another `ttl_ms`, or for the time to live that it has.
    ///
    /// # Errors
    /// Errors of [`Self::confirm`], `FAILED_PRECONDITION` for a reserved claim, and `INVALID_ARGUMENT` for a time beyond
    /// the pool's `ttl_max_ms`.
    pub async fn renew(
        &self,
        id: &ClaimId,
        fence: Fence,
        ttl_ms: Option<Millis>,
    ) -> Result<RawJson<ClaimReply>, ClientError> {
        self.call_fenced(id, "renew", FencedBody { ttl_ms, ..FencedBody::new(id, fence) }).await
    }

    /// Sets all that the claim holds of its worker, in a shared pool.
    ///
    /// # Errors
    /// Errors of [`Self::confirm`], `RESOURCE_EXHAUSTED` if the worker has not enough free resources, and
    /// `INVALID_ARGUMENT` for more than the worker has.
    pub async fn resize(
        &self,
        id: &ClaimId,
        fence: Fence,
        resources: &ResourceRequirements,
    ) -> Result<RawJson<ClaimReply>, ClientError> {
        self.call_fenced(id, "resize", FencedBody { resources: Some(resources), ..FencedBody::new(id, fence) }).await
    }

    /// Releases a claim, whose worker is free at once. Succeeds for a key without a claim.
    ///
    /// # Errors
    /// `ABORTED` for another fence.
    pub async fn release(&self, id: &ClaimId, fence: Fence) -> Result<RawJson<ReleaseReply>, ClientError> {
        self.call_fenced(id, "release", FencedBody::new(id, fence)).await
    }

    /// Begins the release of a claim: its worker stays unavailable until [`Self::finish_release`].
    ///
    /// # Errors
    /// `ABORTED` for another fence.
    pub async fn begin_release(&self, id: &ClaimId, fence: Fence) -> Result<RawJson<ReleaseReply>, ClientError> {
        self.call_fenced(id, "release", FencedBody { phase: Some("begin"), ..FencedBody::new(id, fence) }).await
    }

    /// Finishes a release: the worker is clean and free.
    ///
    /// # Errors
    /// `ABORTED` for another fence, `FAILED_PRECONDITION` for a release that was not begun.
    pub async fn finish_release(&self, id: &ClaimId, fence: Fence) -> Result<RawJson<ReleaseReply>, ClientError> {
        self.call_fenced(id, "release", FencedBody { phase: Some("finish"), ..FencedBody::new(id, fence) }).await
    }

    /// Explains what a claim would get, without claiming.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a field out of bounds. That the claim would fail is part of the explanation.
    pub async fn explain(&self, request: &NewClaim<'_>) -> Result<RawJson<ExplainReply>, ClientError> {
        self.post("/v1/explain", request).await
    }

    async fn call_fenced<T: serde::de::DeserializeOwned>(
        &self,
        id: &ClaimId,
        verb: &str,
        body: FencedBody<'_>,
    ) -> Result<RawJson<T>, ClientError> {
        self.post(&format!("{}:{verb}", claim_path(id)), &body).await
    }
}

fn claim_path(id: &ClaimId) -> String {
    format!("/v1/claims/{}/{}", id.namespace(), id.key())
}
