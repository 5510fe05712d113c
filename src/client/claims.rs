//! Calls about claims: claim, read, confirm, renew, resize and release.

use hyper::Method;
use serde::Serialize;

use super::{
    ClaimBatchMode, ClaimListItem, ClaimReply, Client, ClientError, CreateReply, ItemList, ItemOutcome, KeyStatus,
    ListRange, NewClaim, RawJson, ReleaseReply, encode,
};
use crate::model::{ClaimId, Fence, Millis, ResourceRequirements};

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
    /// States of the claims, separated by commas: `reserved`, `active`, `releasing`, `waiting`. The default lists claims
    /// that are held; those that wait are listed only if it is named.
    pub state: Option<String>,
    /// Smallest age of the claims, or time that they have waited, in milliseconds.
    pub older_than_ms: Option<Millis>,
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

    /// Lists the claims that pass a filter: held ones, then those that wait.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a filter that is malformed, or a page token of another listing.
    pub async fn list_claims(
        &self,
        filter: &ClaimListFilter,
        range: ListRange,
    ) -> Result<ItemList<ClaimListItem>, ClientError> {
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
