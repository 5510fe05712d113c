//! Operations on held claims: get, confirm, renew, resize, release.

use std::sync::Arc;
use std::time::Duration;

use super::Scheduler;
use super::claims::check_ttl;
use crate::admission::key::{EndedClaim, KeyHolder, KeyLookup};
use crate::admission::pool_registry::Pool;
use crate::metrics::metrics;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::model::{
    AckLevel, ClaimId, ClaimState, ClaimStatus, ClaimView, Fence, Millis, PoolName, ResourceRequirements,
};
use crate::shard::{
    AwaitedReply, ClaimAnswer, ClaimReply, Command, CompletionQueue, HeldOperation, HeldVerb, PendingWrites,
    ReplyAddress, ShardRef,
};

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
                Ok(claim_view(id, &pool, ClaimAnswer::existing(grant, shard)))
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

    /// Releases a claim; without a fence, whichever holds the key. Returns false if it had ended already.
    ///
    /// # Errors
    /// `FenceMismatch` if another claim holds the key now.
    pub async fn release_held(&self, id: &ClaimId, fence: Option<Fence>) -> Result<bool, RequestError> {
        if self.end_claim(id, fence, HeldVerb::Release).await? {
            return Ok(true);
        }
        let ended = self.dispatch().keys.ended_claim(id, self.dispatch().clock.engine_ms());
        let timed_out = |ended: &EndedClaim| {
            let has_its_fence = fence.is_none_or(|fence| fence == ended.grant.handle.fence);
            ended.grant.state == ClaimState::Releasing && has_its_fence
        };
        match ended.filter(timed_out) {
            Some(ended) => self.finish_cleanup_late(id, &ended).await.map(|()| true),
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
        self.end_claim(id, fence, HeldVerb::BeginRelease).await
    }

    /// Sends an operation that ends the claim. Returns false if the key is vacant.
    async fn end_claim(&self, id: &ClaimId, fence: Option<Fence>, verb: HeldVerb) -> Result<bool, RequestError> {
        match self.ask_holder(id, fence, verb).await? {
            Ok(_) => Ok(true),
            Err(RequestError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Finishes a clean-up that had timed out, by notifying the shard of the worker.
    async fn finish_cleanup_late(&self, id: &ClaimId, ended: &EndedClaim) -> Result<(), RequestError> {
        let Some(shard_handle) = self.dispatch().pools.load().shard(ended.shard).cloned() else { return Ok(()) };
        let (reply, answer) = AwaitedReply::new();
        let started_ns = self.dispatch().arrival_ns();
        shard_handle.push_or_reject(Command::Operation(HeldOperation {
            id: id.clone(),
            handle: ended.grant.handle,
            life: ended.life,
            verb: HeldVerb::Release,
            pending_writes: PendingWrites::new(),
            started_ns,
            reply,
        }));
        match answer.await {
            // The pool was deleted meanwhile, and its workers with it.
            Ok(_) | Err(RequestError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
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
        let mut groups: Vec<(ShardRef, HeldOperation)> = Vec::with_capacity(claims.len());
        let (mut mismatched, mut others) = (Vec::new(), Vec::new());
        for (index, (id, fence)) in (0..).zip(claims) {
            let reply = ReplyAddress::queue(Arc::clone(&completions), index);
            match self.dispatch().keys.lookup(&id) {
                KeyLookup::Held { holder, pending_writes }
                    if fence.is_none_or(|fence| fence == holder.handle.fence) =>
                {
                    let KeyHolder { shard, life, handle } = holder;
                    let verb = HeldVerb::Release;
                    groups.push((shard, HeldOperation { id, handle, life, verb, pending_writes, started_ns, reply }));
                }
                KeyLookup::Held { pending_writes, .. } => mismatched.push((pending_writes, reply)),
                KeyLookup::PendingWrites(_) | KeyLookup::Vacant | KeyLookup::Unreadable => {
                    others.push((id, fence, reply))
                }
            }
        }
        self.send_releases(groups);
        for (pending_writes, reply) in mismatched {
            metrics().fence_refusals.increment(1);
            let stored = self.wait_until_stored(&pending_writes).await;
            reply.reject(stored.err().unwrap_or(RequestError::FenceMismatch));
        }
        for (id, fence, reply) in others {
            let released = self.release_held(&id, fence).await.and_then(|held| {
                if held { Ok(ClaimReply::Released) } else { Err(RequestError::NotFound(ObjectKind::Claim)) }
            });
            // The caller still waits: it is this one.
            let _ = reply.send(released);
        }
        let released = |outcome| match outcome {
            Ok(_) => Ok(true),
            Err(RequestError::NotFound(ObjectKind::Claim)) => Ok(false),
            Err(error) => Err(error),
        };
        completions.collect().await.into_iter().map(released).collect()
    }

    /// Sends releases in groups, so that each shard is visited once.
    pub(super) fn send_releases(&self, mut items: Vec<(ShardRef, HeldOperation)>) {
        items.sort_by_key(|(shard, _)| *shard);
        while let Some(&(shard, _)) = items.last() {
            let from = items.partition_point(|(other, _)| *other < shard);
            let items: Vec<HeldOperation> = items.drain(from..).map(|(_, item)| item).collect();
            if let Some(shard_handle) = self.dispatch().pools.load().shard(shard) {
                shard_handle.push_or_reject(Command::Operations(items));
            }
        }
    }

    /// Sends an operation to the shard that holds the key, and returns the claim.
    async fn view_held(&self, id: &ClaimId, fence: Option<Fence>, verb: HeldVerb) -> Result<ClaimView, RequestError> {
        let (reply, holder) = self.ask_holder(id, fence, verb).await??;
        self.view_in(id, holder.shard.pool, reply.disclose()?)
    }

    /// View of a claim that is held in the pool with this number.
    pub(super) fn view_in(&self, id: &ClaimId, pool: u32, answer: ClaimAnswer) -> Result<ClaimView, RequestError> {
        // A pool that was deleted meanwhile took the claim with it.
        let name = self.dispatch().pools.load().by_number(pool).map(|pool| pool.name.clone());
        Ok(claim_view(id, &name.ok_or(RequestError::NotFound(ObjectKind::Claim))?, answer))
    }

    /// Sends an operation to the shard that holds the key. The outer error says that the shard could not be asked, the
    /// inner one is its answer; `NotFound` is as durable as the end of the claim.
    async fn ask_holder(
        &self,
        id: &ClaimId,
        fence: Option<Fence>,
        verb: HeldVerb,
    ) -> Result<Result<(ClaimReply, KeyHolder), RequestError>, RequestError> {
        self.check_serving()?;
        let started_ns = self.dispatch().arrival_ns();
        let mut found = self.dispatch().keys.lookup(id);
        if let KeyLookup::PendingWrites(pending_writes) = &found {
            self.wait_until_stored(pending_writes).await?;
            // The shard may have panicked meanwhile and undone its decision: then the key is held again.
            found = self.dispatch().keys.lookup(id);
        }
        let (holder, pending_writes) = match found {
            KeyLookup::Held { holder, pending_writes } => (holder, pending_writes),
            KeyLookup::Unreadable => return Err(RequestError::Unavailable(UnavailableReason::Loading)),
            KeyLookup::Vacant | KeyLookup::PendingWrites(_) => {
                return Ok(Err(RequestError::NotFound(ObjectKind::Claim)));
            }
        };
        if fence.is_some_and(|fence| fence != holder.handle.fence) {
            // As durable as the end of the claim that had this fence.
            self.wait_until_stored(&pending_writes).await?;
            metrics().fence_refusals.increment(1);
            return Ok(Err(RequestError::FenceMismatch));
        }
        let (reply, answer) = AwaitedReply::new();
        let KeyHolder { shard, life, handle } = holder;
        let operation = HeldOperation { id: id.clone(), handle, life, verb, pending_writes, started_ns, reply };
        {
            let pools = self.dispatch().pools.load();
            let shard_handle = pools.shard(shard).ok_or(RequestError::Unavailable(UnavailableReason::Loading))?;
            self.dispatch().begin_resize(&operation)?;
            shard_handle.push_or_reject(Command::Operation(operation));
        }
        match answer.await {
            Ok(reply) => Ok(Ok((reply, holder))),
            Err(error @ RequestError::NotFound(_)) => Ok(Err(error)),
            Err(error) => Err(error),
        }
    }

    /// Waits until the store has the missing records about a key, if their pools answer durably.
    async fn wait_until_stored(&self, pending_writes: &PendingWrites) -> Result<(), RequestError> {
        let limit = Duration::from_millis(self.dispatch().settings.store_wait_ms);
        let all = async {
            for record in pending_writes {
                let shard_handle = {
                    let pools = self.dispatch().pools.load();
                    let durable = |pool: &Arc<Pool>| pool.spec.load().ack == AckLevel::Durable;
                    pools
                        .by_number(record.shard.pool)
                        .filter(|pool| durable(pool))
                        .and(pools.shard(record.shard))
                        .cloned()
                };
                if let Some(shard_handle) = shard_handle
                    && !shard_handle.outbox.wait_stored(record.seq).await
                {
                    return Err(RequestError::Unavailable(UnavailableReason::Fenced));
                }
            }
            Ok(())
        };
        tokio::time::timeout(limit, all).await.unwrap_or(Err(RequestError::Unavailable(UnavailableReason::Store)))
    }
}

/// View of a claim for callers.
pub(super) fn claim_view(id: &ClaimId, pool: &PoolName, answer: ClaimAnswer) -> ClaimView {
    let times = answer.grant.times();
    ClaimView {
        id: id.clone(),
        fence: answer.grant.handle.fence,
        pool: pool.clone(),
        worker: answer.grant.worker,
        state: answer.grant.state,
        expires_at_ms: answer.expires_at_ms,
        spec: answer.grant.spec,
        gpu_mask: answer.grant.gpu_mask,
        evicted: answer.grant.evicted,
        times,
    }
}
