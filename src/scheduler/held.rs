//! Claims that are held: look, confirm, renew, resize, release.

use std::sync::Arc;
use std::time::Duration;

use super::claims::check_ttl;
use super::{Scheduler, wait};
use crate::admission::keys::{Found, Hold, ShardRef, Unstoreds};
use crate::admission::pools::Pool;
use crate::admission::remembered::Ended;
use crate::metrics::metrics;
use crate::model::rejection::{Refusal, Unavailable, What};
use crate::model::{Ack, ClaimId, ClaimState, ClaimView, Fence, Millis, PoolName, Resources, Standing};
use crate::shard::{Batch, ClaimAnswer, Command, KeyItem, Payload, Reply};

impl Scheduler {
    /// What the key holds, or what it waits for.
    ///
    /// # Errors
    /// As [`Self::get_claim`].
    pub async fn standing(&self, id: &ClaimId) -> Result<Standing, Refusal> {
        self.open()?;
        if let Some(waiting) = self.dispatch().waiting(id) {
            return Ok(Standing::Waiting(waiting));
        }
        match (self.get_claim(id).await, self.dispatch().waiting_gang(id)) {
            (Err(Refusal::NotFound(_)), Some(waiting)) => Ok(Standing::Waiting(waiting)),
            (found, _) => found.map(Standing::Held),
        }
    }

    /// What the key holds.
    ///
    /// # Errors
    /// `NotFound`, as durable as the claim's end was to be.
    pub async fn get_claim(&self, id: &ClaimId) -> Result<ClaimView, Refusal> {
        let found = self.view_held(id, None, Command::Look).await;
        if found != Err(Refusal::NotFound(What::Claim)) {
            return found;
        }
        let ended = self.dispatch().remembered.find(id, self.dispatch().clock.engine_ms());
        match ended.filter(|ended| ended.grant.state == ClaimState::Lost) {
            Some(Ended { shard, pool, grant }) => {
                Ok(view(id, &pool, ClaimAnswer { grant, created: false, shard, expires_at_ms: None }))
            }
            None => found,
        }
    }

    /// The holder has started: the claim is active.
    ///
    /// # Errors
    /// `NotFound`; `Fence` if it is not the holder's.
    pub async fn confirm(&self, id: &ClaimId, fence: Fence) -> Result<ClaimView, Refusal> {
        self.view_held(id, Some(fence), Command::Confirm).await
    }

    /// The holder still needs it: its time begins anew, and from now on lasts `ttl_ms` if that is given.
    ///
    /// # Errors
    /// `Invalid` naming the limit of `ttl_ms`, which may be the pool's; `NotFound`; `Fence` if it is not the holder's; `State` if it is not active
    /// yet; `Releasing`.
    pub async fn renew(&self, id: &ClaimId, fence: Fence, ttl_ms: Option<Millis>) -> Result<ClaimView, Refusal> {
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
    pub async fn resize(&self, id: &ClaimId, fence: Fence, resources: Resources) -> Result<ClaimView, Refusal> {
        resources.check_some()?;
        self.view_held(id, Some(fence), |item| Command::Resize(item, Box::new(resources))).await
    }

    /// The holder is done. Ok also if the claim is gone already. Also the end of what [`Self::begin_release`] began, even
    /// if that took too long and was given up.
    ///
    /// # Errors
    /// `Fence` if somebody else holds the key now.
    pub async fn release(&self, id: &ClaimId, fence: Fence) -> Result<(), Refusal> {
        self.release_held(id, Some(fence)).await.map(drop)
    }

    /// The same; without a fence for whoever holds the key. False: it was gone already.
    ///
    /// # Errors
    /// `Fence` if somebody else holds the key now.
    pub async fn release_held(&self, id: &ClaimId, fence: Option<Fence>) -> Result<bool, Refusal> {
        if self.done_with(id, fence, Command::Release).await? {
            return Ok(true);
        }
        let ended = self.dispatch().remembered.find(id, self.dispatch().clock.engine_ms());
        let given_up = |ended: &Ended| {
            let its_own = fence.is_none_or(|fence| fence == ended.grant.place.fence);
            ended.grant.state == ClaimState::Releasing && its_own
        };
        match ended.filter(given_up) {
            Some(ended) => self.finish_late(id, &ended).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// The holder is done, but the worker has to be cleaned: it is held until [`Self::release`] says that it is clean,
    /// and the key is not free before. After the pool's `releasing_ms` the claim ends all the same, and the worker is
    /// suspect. Ok also if the claim is gone already.
    ///
    /// # Errors
    /// `Fence` if somebody else holds the key now.
    pub async fn begin_release(&self, id: &ClaimId, fence: Fence) -> Result<(), Refusal> {
        self.begin_release_held(id, Some(fence)).await.map(drop)
    }

    /// The same; without a fence for whoever holds the key. False: it was gone already.
    ///
    /// # Errors
    /// `Fence` if somebody else holds the key now.
    pub async fn begin_release_held(&self, id: &ClaimId, fence: Option<Fence>) -> Result<bool, Refusal> {
        self.done_with(id, fence, Command::BeginRelease).await
    }

    /// False: nobody holds the key.
    async fn done_with(
        &self,
        id: &ClaimId,
        fence: Option<Fence>,
        ask: fn(KeyItem) -> Command,
    ) -> Result<bool, Refusal> {
        match self.on_held(id, fence, ask).await? {
            Ok(_) => Ok(true),
            Err(Refusal::NotFound(_)) => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    /// The clean-up that was given up is finished: whoever cleaned may say so to the shard of the worker.
    async fn finish_late(&self, id: &ClaimId, ended: &Ended) -> Result<(), Refusal> {
        let Some(port) = self.dispatch().pools.load().port(ended.shard).cloned() else { return Ok(()) };
        let (reply, answer) = Reply::one();
        let started_ns = self.dispatch().stopwatch();
        port.ask(Command::Release(KeyItem { id: id.clone(), place: ended.grant.place, started_ns, reply }));
        match wait(answer).await {
            // The pool was deleted meanwhile, and the worker with it.
            Ok(_) | Err(Refusal::NotFound(_)) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Many releases in one call: each its own outcome, as of [`Self::release`], in order. Each shard is visited once.
    pub async fn release_batch(&self, claims: Vec<(ClaimId, Fence)>) -> Vec<Result<(), Refusal>> {
        let claims = claims.into_iter().map(|(id, fence)| (id, Some(fence))).collect();
        self.release_held_batch(claims).await.into_iter().map(|released| released.map(drop)).collect()
    }

    /// The same as of [`Self::release_held`].
    pub async fn release_held_batch(&self, claims: Vec<(ClaimId, Option<Fence>)>) -> Vec<Result<bool, Refusal>> {
        if let Err(refusal) = self.open() {
            return claims.iter().map(|_| Err(refusal.clone())).collect();
        }
        if claims.is_empty() {
            return Vec::new();
        }
        let started_ns = self.dispatch().stopwatch();
        let (batch, answers) = Batch::new(claims.len());
        let mut groups: Vec<(ShardRef, KeyItem)> = Vec::with_capacity(claims.len());
        let (mut refused, mut others) = (Vec::new(), Vec::new());
        for (place, (id, fence)) in (0..).zip(claims) {
            let reply = Reply::part(Arc::clone(&batch), place);
            match self.dispatch().keys.find(&id) {
                Found::Held(hold) if fence.is_none_or(|fence| fence == hold.place.fence) => {
                    groups.push((hold.shard, KeyItem { id, place: hold.place, started_ns, reply }));
                }
                Found::Held(_) => refused.push((self.dispatch().keys.unstored(&id), reply)),
                Found::Gone(_) | Found::Vacant | Found::Unreadable => others.push((id, fence, reply)),
            }
        }
        drop(batch);
        self.send_releases(groups);
        for (unstored, reply) in refused {
            metrics().fence_refusals.increment(1);
            reply.send(self.records_stored(&unstored).await.and(Err(Refusal::Fence)));
        }
        for (id, fence, reply) in others {
            let released = self.release_held(&id, fence).await;
            reply.send(
                released.and_then(|held| if held { Ok(Payload::Done) } else { Err(Refusal::NotFound(What::Claim)) }),
            );
        }
        let released = |outcome| match outcome {
            Ok(_) => Ok(true),
            Err(Refusal::NotFound(What::Claim)) => Ok(false),
            Err(refusal) => Err(refusal),
        };
        answers.await.into_iter().map(released).collect()
    }

    /// Each shard is visited once.
    pub(super) fn send_releases(&self, mut items: Vec<(ShardRef, KeyItem)>) {
        items.sort_by_key(|(shard, _)| *shard);
        while let Some(&(shard, _)) = items.last() {
            let from = items.partition_point(|(other, _)| *other < shard);
            let items: Vec<KeyItem> = items.drain(from..).map(|(_, item)| item).collect();
            if let Some(port) = self.dispatch().pools.load().port(shard) {
                port.ask(Command::Releases(items));
            }
        }
    }

    /// Asks the shard that holds the key about the claim.
    async fn view_held(
        &self,
        id: &ClaimId,
        fence: Option<Fence>,
        ask: impl FnOnce(KeyItem) -> Command,
    ) -> Result<ClaimView, Refusal> {
        let (payload, hold) = self.on_held(id, fence, ask).await??;
        let Payload::Claim(answer) = payload else { return Err(Refusal::NotFound(What::Claim)) };
        self.view_in(id, hold.shard.pool, answer)
    }

    /// A claim that is held in the pool of this number.
    pub(super) fn view_in(&self, id: &ClaimId, pool: u32, answer: ClaimAnswer) -> Result<ClaimView, Refusal> {
        // A pool that was deleted meanwhile took the claim with it.
        let name = self.dispatch().pools.load().at(pool).map(|pool| pool.name.clone());
        Ok(view(id, &name.ok_or(Refusal::NotFound(What::Claim))?, answer))
    }

    /// Asks the shard that holds the key. Outer error: it could not be asked. Inner: what it said; `NotFound` is as
    /// durable as the end of the claim.
    async fn on_held(
        &self,
        id: &ClaimId,
        fence: Option<Fence>,
        ask: impl FnOnce(KeyItem) -> Command,
    ) -> Result<Result<(Payload, Hold), Refusal>, Refusal> {
        self.open()?;
        let started_ns = self.dispatch().stopwatch();
        let mut found = self.dispatch().keys.find(id);
        if let Found::Gone(unstored) = &found {
            self.records_stored(unstored).await?;
            // The shard may have panicked meanwhile, and what it had decided was undone: then the key is held again.
            found = self.dispatch().keys.find(id);
        }
        let hold = match found {
            Found::Held(hold) => hold,
            Found::Unreadable => return Err(Refusal::Unavailable(Unavailable::Loading)),
            Found::Vacant | Found::Gone(_) => return Ok(Err(Refusal::NotFound(What::Claim))),
        };
        if fence.is_some_and(|fence| fence != hold.place.fence) {
            // As durable as the end of the claim that had this fence.
            self.records_stored(&self.dispatch().keys.unstored(id)).await?;
            metrics().fence_refusals.increment(1);
            return Ok(Err(Refusal::Fence));
        }
        let (reply, answer) = Reply::one();
        let item = KeyItem { id: id.clone(), place: hold.place, started_ns, reply };
        self.dispatch().pools.load().port(hold.shard).ok_or(Refusal::Unavailable(Unavailable::Loading))?.ask(ask(item));
        match wait(answer).await {
            Ok(payload) => Ok(Ok((payload, hold))),
            Err(refusal @ Refusal::NotFound(_)) => Ok(Err(refusal)),
            Err(refusal) => Err(refusal),
        }
    }

    /// Waits until the store has what it lacks about a key whose pools answer durably.
    async fn records_stored(&self, unstored: &Unstoreds) -> Result<(), Refusal> {
        let limit = Duration::from_millis(self.dispatch().settings.store_wait_ms);
        let all = async {
            for record in unstored {
                let port = {
                    let pools = self.dispatch().pools.load();
                    let durable = |pool: &Arc<Pool>| pool.spec.load().ack == Ack::Durable;
                    pools.at(record.shard.pool).filter(|pool| durable(pool)).and(pools.port(record.shard)).cloned()
                };
                if let Some(port) = port
                    && !port.outbox.stored(record.seq).await
                {
                    return Err(Refusal::Unavailable(Unavailable::Fenced));
                }
            }
            Ok(())
        };
        tokio::time::timeout(limit, all).await.unwrap_or(Err(Refusal::Unavailable(Unavailable::Store)))
    }
}

/// A claim as the service shows it.
pub(super) fn view(id: &ClaimId, pool: &PoolName, answer: ClaimAnswer) -> ClaimView {
    let times = answer.grant.times();
    ClaimView {
        id: id.clone(),
        fence: answer.grant.place.fence,
        pool: pool.clone(),
        worker: answer.grant.worker,
        state: answer.grant.state,
        expires_at_ms: answer.expires_at_ms,
        spec: answer.grant.spec,
        cards: answer.grant.cards,
        evicted: answer.grant.evicted,
        times,
    }
}
