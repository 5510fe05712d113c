//! Operations on held claims: get, confirm, renew, resize, release.

use std::sync::Arc;

use super::Scheduler;
use super::operation_routing::ended_now;
use crate::admission::dispatch::check_ttl;
use crate::admission::key::EndedClaim;
use crate::engine::ClaimGrant;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{ClaimId, ClaimState, ClaimStatus, ClaimView, Fence, Millis, PoolName, ResourceRequirements};
use crate::shard::{AwaitedReply, ClaimAnswer, CompletionQueue, HeldVerb, ReplyAddress};

impl Scheduler {
    /// Status of the claim that holds the key or is queued for it.
    ///
    /// # Errors
    /// Fails like [`Self::get_claim`].
    pub async fn claim_status(&self, id: &ClaimId) -> Result<ClaimStatus, RequestError> {
        self.check_serving()?;
        if let Some(waiting) = self.dispatch().queued_view(id) {
            return Ok(ClaimStatus::Queued(waiting));
        }
        match (self.get_claim(id).await, self.dispatch().queued_gang_view(id)) {
            (Err(RequestError::NotFound(_)), Some(waiting)) => Ok(ClaimStatus::Queued(waiting)),
            (found, _) => found.map(ClaimStatus::Held),
        }
    }

    /// Claim that holds the key.
    ///
    /// # Errors
    /// `NotFound`, once the end of the claim is as durable as requested.
    pub async fn get_claim(&self, id: &ClaimId) -> Result<ClaimView, RequestError> {
        let found = self.view_held(id, None, HeldVerb::Get).await;
        if found != Err(RequestError::NotFound(ObjectKind::Claim)) {
            return found;
        }
        let ended = self.dispatch().keys.ended_claim(id, self.dispatch().clock.engine_ms());
        match ended.filter(|ended| ended.grant.state == ClaimState::Lost) {
            Some(EndedClaim { shard, pool, grant, .. }) => {
                Ok(self.view(id, &pool, ClaimAnswer::existing(grant, shard)))
            }
            None => found,
        }
    }

    /// Confirms a claim: its holder has started, and it becomes active.
    ///
    /// # Errors
    /// `NotFound`; `FenceMismatch` if the fence is not the holder's.
    pub async fn confirm(&self, id: &ClaimId, fence: Fence) -> Result<ClaimView, RequestError> {
        self.view_held(id, Some(fence), HeldVerb::Confirm).await
    }

    /// Renews a claim: its time to live starts over, and is `ttl_ms` from now on if given.
    ///
    /// # Errors
    /// `Invalid` naming the limit of `ttl_ms`, which may be the pool's; `NotFound`; `FenceMismatch` if the fence is
    /// not the holder's; `FailedPrecondition` if the claim is not active yet; `Releasing`.
    pub async fn renew(&self, id: &ClaimId, fence: Fence, ttl_ms: Option<Millis>) -> Result<ClaimView, RequestError> {
        check_ttl(ttl_ms)?;
        self.view_held(id, Some(fence), HeldVerb::Renew(ttl_ms)).await
    }

    /// Changes the resources of a claim, on the same worker and under the same fence. Changes nothing if the worker
    /// does not have enough free.
    ///
    /// # Errors
    /// `Invalid` naming the field, also for more than the worker's capacity; `NotFound`; `FenceMismatch` if the fence
    /// is not the holder's; `pool_exhausted` if the worker does not have enough free; `Releasing`.
    pub async fn resize(
        &self,
        id: &ClaimId,
        fence: Fence,
        resources: ResourceRequirements,
    ) -> Result<ClaimView, RequestError> {
        resources.check_non_empty()?;
        self.view_held(id, Some(fence), HeldVerb::Resize(Box::new(resources))).await
    }

    /// Releases a claim. Succeeds if the claim has ended already. Also finishes a clean-up that
    /// [`Self::begin_release`] began, even if it timed out.
    ///
    /// # Errors
    /// `FenceMismatch` if another claim holds the key now.
    pub async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), RequestError> {
        self.release_held(id, Some(fence)).await.map(drop)
    }

    /// Releases a claim; without a fence, whichever holds the key. Returns whether this call ended it, or finished its
    /// clean-up: true for one of several at the same time.
    ///
    /// # Errors
    /// `FenceMismatch` if another claim holds the key now.
    pub async fn release_held(&self, id: &ClaimId, fence: Option<Fence>) -> Result<bool, RequestError> {
        if ended_now(self.ask_holder(id, fence, HeldVerb::Release)?.await)? {
            return Ok(true);
        }
        match self.timed_out_cleanup(id, fence) {
            Some(ended) => {
                let (reply, answer) = AwaitedReply::new();
                self.finish_cleanup_late(id.clone(), &ended, reply);
                ended_now(answer.await)
            }
            None => Ok(false),
        }
    }

    /// Begins to release a claim whose worker must be cleaned. The worker is not free, and the key stays held, until
    /// [`Self::release`] reports that it is clean. After the pool's `releasing_ms` the claim ends in any case, and the
    /// worker is suspect. Succeeds if the claim has ended already.
    ///
    /// # Errors
    /// `FenceMismatch` if another claim holds the key now.
    pub async fn begin_release(&self, id: &ClaimId, fence: Fence) -> Result<(), RequestError> {
        self.begin_release_held(id, Some(fence)).await.map(drop)
    }

    /// Begins to release a claim; without a fence, whichever holds the key. Returns false if it had ended already.
    ///
    /// # Errors
    /// `FenceMismatch` if another claim holds the key now.
    pub async fn begin_release_held(&self, id: &ClaimId, fence: Option<Fence>) -> Result<bool, RequestError> {
        ended_now(self.ask_holder(id, fence, HeldVerb::BeginRelease)?.await)
    }

    /// Releases many claims in one call. Returns one result each, as of [`Self::release`], in order. Visits each shard
    /// once.
    pub async fn release_batch(&self, claims: Vec<(ClaimId, Fence)>) -> Vec<Result<(), RequestError>> {
        let claims = claims.into_iter().map(|(id, fence)| (id, Some(fence))).collect();
        self.release_held_batch(claims).await.into_iter().map(|released| released.map(drop)).collect()
    }

    /// Releases many claims in one call. Returns one result each, as of [`Self::release_held`], in order.
    pub async fn release_held_batch(&self, claims: Vec<(ClaimId, Option<Fence>)>) -> Vec<Result<bool, RequestError>> {
        if let Err(error) = self.check_serving() {
            return claims.iter().map(|_| Err(error.clone())).collect();
        }
        if claims.is_empty() {
            return Vec::new();
        }
        let started_ns = self.dispatch().arrival_ns();
        let completions = Arc::new(CompletionQueue::collecting(claims.len()));
        let mut routed = Vec::with_capacity(claims.len());
        for (token, (id, fence)) in (0..).zip(&claims) {
            let reply = ReplyAddress::queue(Arc::clone(&completions), token);
            routed.extend(self.route_operation(id.clone(), *fence, HeldVerb::Release, started_ns, reply));
        }
        self.send_releases(routed);
        let mut released: Vec<_> = completions.collect().await.into_iter().map(ended_now).collect();
        for ((id, fence), released) in claims.iter().zip(&mut released) {
            if *released == Ok(false) && self.timed_out_cleanup(id, *fence).is_some() {
                *released = self.release_held(id, *fence).await;
            }
        }
        released
    }

    /// Sends an operation to the shard that holds the key, and returns the claim.
    async fn view_held(&self, id: &ClaimId, fence: Option<Fence>, verb: HeldVerb) -> Result<ClaimView, RequestError> {
        let mut call =
            OperationCall { scheduler: self, id, answer: self.ask_holder(id, fence, verb)?, answered: false };
        let outcome = (&mut call.answer).await;
        call.answered = true;
        self.view_in(id, outcome?.disclose()?)
    }

    /// View of a held claim.
    pub(super) fn view_in(&self, id: &ClaimId, answer: ClaimAnswer) -> Result<ClaimView, RequestError> {
        // A pool that was deleted meanwhile took the claim with it.
        let name = self.dispatch().pools.load().by_number(answer.shard.pool).map(|pool| pool.name.clone());
        Ok(self.view(id, &name.ok_or(RequestError::NotFound(ObjectKind::Claim))?, answer))
    }

    /// Sends an operation to the shard that holds the key. A rejection is as durable as what it follows from.
    fn ask_holder(&self, id: &ClaimId, fence: Option<Fence>, verb: HeldVerb) -> Result<AwaitedReply, RequestError> {
        self.check_serving()?;
        let started_ns = self.dispatch().arrival_ns();
        let (reply, answer) = AwaitedReply::new();
        if let Some(routed) = self.route_operation(id.clone(), fence, verb, started_ns, reply) {
            self.send_operation(routed);
        }
        Ok(answer)
    }

    /// View of a claim in a pool of this name.
    #[inline]
    pub(super) fn view(&self, id: &ClaimId, pool: &PoolName, answer: ClaimAnswer) -> ClaimView {
        let ClaimGrant { handle, worker, state, deadline_ms, spec, gpu_mask, evicted, timestamps, .. } = answer.grant;
        ClaimView {
            id: id.clone(),
            fence: handle.fence,
            pool: pool.clone(),
            worker,
            state,
            expires_at_ms: deadline_ms.map(|at_ms| self.dispatch().clock.unix_of(at_ms)),
            spec,
            gpu_mask,
            evicted,
            times: timestamps.times(state),
        }
    }
}

/// Operation whose caller waits for the claim. When it is dropped with the reply unread, nobody was shown the claim.
struct OperationCall<'a> {
    scheduler: &'a Scheduler,
    id: &'a ClaimId,
    answer: AwaitedReply,
    answered: bool,
}

impl Drop for OperationCall<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let unread = self.answer.close().map(|outcome| (self.id, outcome));
            self.scheduler.dispatch().abandon(unread, []);
        }
    }
}
