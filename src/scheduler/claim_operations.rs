//! Claims that are held: look, confirm, renew, resize, release.

use std::sync::Arc;
use std::time::Duration;

use super::claims::check_ttl;
use super::{Scheduler, recv_outcome};
use crate::admission::ended_claims::EndedClaim;
use crate::admission::key_directory::{KeyHolder, KeyLookup, PendingWrites, ShardRef};
use crate::admission::pool_registry::Pool;
use crate::metrics::metrics;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::model::{
    AckLevel, ClaimId, ClaimState, ClaimStatus, ClaimView, Fence, Millis, PoolName, ResourceRequirements,
};
use crate::shard::{ClaimAnswer, ClaimOp, Command, ReplyBatch, ReplyPayload, ReplySender};

impl Scheduler {
    /// What the key holds, or what it waits for.
    ///
    /// # Errors
    /// As [`Self::get_claim`].
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

    /// What the key holds.
    ///
    /// # Errors
    /// `NotFound`, as durable as the claim's end was to be.
    pub async fn get_claim(&self, id: &ClaimId) -> Result<ClaimView, RequestError> {
        let found = self.view_held(id, None, Command::GetClaim).await;
        if found != Err(RequestError::NotFound(ObjectKind::Claim)) {
            return found;
        }
        let ended = self.dispatch().ended_claims.get(id, self.dispatch().clock.engine_ms());
        match ended.filter(|ended| ended.grant.state == ClaimState::Lost) {
            Some(EndedClaim { shard, pool, grant }) => {
                Ok(claim_view(id, &pool, ClaimAnswer { grant, created: false, shard, expires_at_ms: None }))
            }
            None => found,
        }
    }

    /// The holder has started: the claim is active.
    ///
    /// # Errors
    /// `NotFound`; `Fence` if it is not the holder's.
    pub async fn confirm(&self, id: &ClaimId, fence: Fence) -> Result<ClaimView, RequestError> {
        self.view_held(id, Some(fence), Command::Confirm).await
    }

    /// The holder still needs it: its time begins anew, and from now on lasts `ttl_ms` if that is given.
    ///
    /// # Errors
    /// `Invalid` naming the limit of `ttl_ms`, which may be the pool's; `NotFound`; `Fence` if it is not the holder's; `State` if it is not active
    /// yet; `Releasing`.
    pub async fn renew(&self, id: &ClaimId, fence: Fence, ttl_ms: Option<Millis>) -> Result<ClaimView, RequestError> {
        check_ttl(ttl_ms)?;
        let ask = |item| Command::Renew(item, ttl_ms);
        self.view_held(id, Some(fence), ask).await
    }

    /// The holder needs this much from now on, on the same worker and under the same fence. Without room for that nothing
    /// changes.
    ///
    /// # Errors
    /// `Invalid` naming the field, also for more than the worker has in all; `NotFound`; `Fence` if it is not the holder's;
    /// `pool_exhausted` if its worker has not as much left; `Releasing`.
    pub async fn resize(
        &self,
        id: &ClaimId,
        fence: Fence,
        resources: ResourceRequirements,
    ) -> Result<ClaimView, RequestError> {
        resources.check_non_empty()?;
        self.view_held(id, Some(fence), |item| Command::Resize(item, Box::new(resources))).await
    }

    /// The holder is done. Ok also if the claim is gone already. Also the end of what [`Self::begin_release`] began, even
    /// if that took too long and was given up.
    ///
    /// # Errors
    /// `Fence` if somebody else holds the key now.
    pub async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), RequestError> {
        self.release_held(id, Some(fence)).await.map(drop)
    }

    /// The same; without a fence for whoever holds the key. False: it was gone already.
    ///
    /// # Errors
    /// `Fence` if somebody else holds the key now.
    pub async fn release_held(&self, id: &ClaimId, fence: Option<Fence>) -> Result<bool, RequestError> {
        if self.end_claim(id, fence, Command::Release).await? {
            return Ok(true);
        }
        let ended = self.dispatch().ended_claims.get(id, self.dispatch().clock.engine_ms());
        let given_up = |ended: &EndedClaim| {
            let its_own = fence.is_none_or(|fence| fence == ended.grant.handle.fence);
            ended.grant.state == ClaimState::Releasing && its_own
        };
        match ended.filter(given_up) {
            Some(ended) => self.finish_cleanup_late(id, &ended).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// The holder is done, but the worker has to be cleaned: it is held until [`Self::release`] says that it is clean,
    /// and the key is not free before. After the pool's `releasing_ms` the claim ends all the same, and the worker is
    /// suspect. Ok also if the claim is gone already.
    ///
    /// # Errors
    /// `Fence` if somebody else holds the key now.
    pub async fn begin_release(&self, id: &ClaimId, fence: Fence) -> Result<(), RequestError> {
        self.begin_release_held(id, Some(fence)).await.map(drop)
    }

    /// The same; without a fence for whoever holds the key. False: it was gone already.
    ///
    /// # Errors
    /// `Fence` if somebody else holds the key now.
    pub async fn begin_release_held(&self, id: &ClaimId, fence: Option<Fence>) -> Result<bool, RequestError> {
        self.end_claim(id, fence, Command::BeginRelease).await
    }

    /// False: nobody holds the key.
    async fn end_claim(
        &self,
        id: &ClaimId,
        fence: Option<Fence>,
        ask: fn(ClaimOp) -> Command,
    ) -> Result<bool, RequestError> {
        match self.ask_holder(id, fence, ask).await? {
            Ok(_) => Ok(true),
            Err(RequestError::NotFound(_)) => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    /// The clean-up that was given up is finished: whoever cleaned may say so to the shard of the worker.
    async fn finish_cleanup_late(&self, id: &ClaimId, ended: &EndedClaim) -> Result<(), RequestError> {
        let Some(port) = self.dispatch().pools.load().shard(ended.shard).cloned() else { return Ok(()) };
        let (reply, answer) = ReplySender::oneshot();
        let started_ns = self.dispatch().arrival_ns();
        port.push_or_reject(Command::Release(ClaimOp {
            id: id.clone(),
            handle: ended.grant.handle,
            started_ns,
            reply,
        }));
        match recv_outcome(answer).await {
            // The pool was deleted meanwhile, and the worker with it.
            Ok(_) | Err(RequestError::NotFound(_)) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Many releases in one call: each its own outcome, as of [`Self::release`], in order. Each shard is visited once.
    pub async fn release_batch(&self, claims: Vec<(ClaimId, Fence)>) -> Vec<Result<(), RequestError>> {
        let claims = claims.into_iter().map(|(id, fence)| (id, Some(fence))).collect();
        self.release_held_batch(claims).await.into_iter().map(|released| released.map(drop)).collect()
    }

    /// The same as of [`Self::release_held`].
    pub async fn release_held_batch(&self, claims: Vec<(ClaimId, Option<Fence>)>) -> Vec<Result<bool, RequestError>> {
        if let Err(refusal) = self.check_serving() {
            return claims.iter().map(|_| Err(refusal.clone())).collect();
        }
        if claims.is_empty() {
            return Vec::new();
        }
        let started_ns = self.dispatch().arrival_ns();
        let (batch, answers) = ReplyBatch::new(claims.len());
        let mut groups: Vec<(ShardRef, ClaimOp)> = Vec::with_capacity(claims.len());
        let (mut refused, mut others) = (Vec::new(), Vec::new());
        for (place, (id, fence)) in (0..).zip(claims) {
            let reply = ReplySender::batch_part(Arc::clone(&batch), place);
            match self.dispatch().keys.lookup(&id) {
                KeyLookup::Held(hold) if fence.is_none_or(|fence| fence == hold.handle.fence) => {
                    groups.push((hold.shard, ClaimOp { id, handle: hold.handle, started_ns, reply }));
                }
                KeyLookup::Held(_) => refused.push((self.dispatch().keys.pending_writes(&id), reply)),
                KeyLookup::PendingWrites(_) | KeyLookup::Vacant | KeyLookup::Unreadable => {
                    others.push((id, fence, reply))
                }
            }
        }
        drop(batch);
        self.send_releases(groups);
        for (unstored, reply) in refused {
            metrics().fence_refusals.increment(1);
            reply.send(self.wait_until_stored(&unstored).await.and(Err(RequestError::FenceMismatch)));
        }
        for (id, fence, reply) in others {
            let released = self.release_held(&id, fence).await;
            reply.send(released.and_then(|held| {
                if held { Ok(ReplyPayload::Done) } else { Err(RequestError::NotFound(ObjectKind::Claim)) }
            }));
        }
        let released = |outcome| match outcome {
            Ok(_) => Ok(true),
            Err(RequestError::NotFound(ObjectKind::Claim)) => Ok(false),
            Err(refusal) => Err(refusal),
        };
        answers.await.into_iter().map(released).collect()
    }

    /// Each shard is visited once.
    pub(super) fn send_releases(&self, mut items: Vec<(ShardRef, ClaimOp)>) {
        items.sort_by_key(|(shard, _)| *shard);
        while let Some(&(shard, _)) = items.last() {
            let from = items.partition_point(|(other, _)| *other < shard);
            let items: Vec<ClaimOp> = items.drain(from..).map(|(_, item)| item).collect();
            if let Some(port) = self.dispatch().pools.load().shard(shard) {
                port.push_or_reject(Command::Releases(items));
            }
        }
    }

    /// Asks the shard that holds the key about the claim.
    async fn view_held(
        &self,
        id: &ClaimId,
        fence: Option<Fence>,
        ask: impl FnOnce(ClaimOp) -> Command,
    ) -> Result<ClaimView, RequestError> {
        let (payload, hold) = self.ask_holder(id, fence, ask).await??;
        let ReplyPayload::Claim(answer) = payload else { return Err(RequestError::NotFound(ObjectKind::Claim)) };
        self.view_in(id, hold.shard.pool, answer)
    }

    /// A claim that is held in the pool of this number.
    pub(super) fn view_in(&self, id: &ClaimId, pool: u32, answer: ClaimAnswer) -> Result<ClaimView, RequestError> {
        // A pool that was deleted meanwhile took the claim with it.
        let name = self.dispatch().pools.load().by_number(pool).map(|pool| pool.name.clone());
        Ok(claim_view(id, &name.ok_or(RequestError::NotFound(ObjectKind::Claim))?, answer))
    }

    /// Asks the shard that holds the key. Outer error: it could not be asked. Inner: what it said; `NotFound` is as
    /// durable as the end of the claim.
    async fn ask_holder(
        &self,
        id: &ClaimId,
        fence: Option<Fence>,
        ask: impl FnOnce(ClaimOp) -> Command,
    ) -> Result<Result<(ReplyPayload, KeyHolder), RequestError>, RequestError> {
        self.check_serving()?;
        let started_ns = self.dispatch().arrival_ns();
        let mut found = self.dispatch().keys.lookup(id);
        if let KeyLookup::PendingWrites(unstored) = &found {
            self.wait_until_stored(unstored).await?;
            // The shard may have panicked meanwhile, and what it had decided was undone: then the key is held again.
            found = self.dispatch().keys.lookup(id);
        }
        let hold = match found {
            KeyLookup::Held(hold) => hold,
            KeyLookup::Unreadable => return Err(RequestError::Unavailable(UnavailableReason::Loading)),
            KeyLookup::Vacant | KeyLookup::PendingWrites(_) => {
                return Ok(Err(RequestError::NotFound(ObjectKind::Claim)));
            }
        };
        if fence.is_some_and(|fence| fence != hold.handle.fence) {
            // As durable as the end of the claim that had this fence.
            self.wait_until_stored(&self.dispatch().keys.pending_writes(id)).await?;
            metrics().fence_refusals.increment(1);
            return Ok(Err(RequestError::FenceMismatch));
        }
        let (reply, answer) = ReplySender::oneshot();
        let item = ClaimOp { id: id.clone(), handle: hold.handle, started_ns, reply };
        self.dispatch()
            .pools
            .load()
            .shard(hold.shard)
            .ok_or(RequestError::Unavailable(UnavailableReason::Loading))?
            .push_or_reject(ask(item));
        match recv_outcome(answer).await {
            Ok(payload) => Ok(Ok((payload, hold))),
            Err(refusal @ RequestError::NotFound(_)) => Ok(Err(refusal)),
            Err(refusal) => Err(refusal),
        }
    }

    /// Waits until the store has what it lacks about a key whose pools answer durably.
    async fn wait_until_stored(&self, unstored: &PendingWrites) -> Result<(), RequestError> {
        let limit = Duration::from_millis(self.dispatch().settings.store_wait_ms);
        let all = async {
            for record in unstored {
                let port = {
                    let pools = self.dispatch().pools.load();
                    let durable = |pool: &Arc<Pool>| pool.spec.load().ack == AckLevel::Durable;
                    pools
                        .by_number(record.shard.pool)
                        .filter(|pool| durable(pool))
                        .and(pools.shard(record.shard))
                        .cloned()
                };
                if let Some(port) = port
                    && !port.outbox.wait_stored(record.seq).await
                {
                    return Err(RequestError::Unavailable(UnavailableReason::Fenced));
                }
            }
            Ok(())
        };
        tokio::time::timeout(limit, all).await.unwrap_or(Err(RequestError::Unavailable(UnavailableReason::Store)))
    }
}

/// A claim as the service shows it.
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
