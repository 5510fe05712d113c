//! Claims: take, look, confirm, release.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Scheduler, wait};
use crate::ask::PoolChoice;
use crate::choice::Start;
use crate::dispatch::Dispatch;
use crate::keys::{Found, Hold, ShardRef, Unstoreds};
use crate::limits;
use crate::metrics::{ClaimOutcome, metrics};
use crate::model::{
    Ack, ClaimId, ClaimRequest, ClaimState, ClaimView, Fence, Millis, PoolName, Resources, Standing, Taken,
};
use crate::pools::Pool;
use crate::refusal::{Refusal, Unavailable, What};
use crate::remembered::Ended;
use crate::shard::{Batch, ClaimAnswer, ClaimItem, Command, KeyItem, Outcome, Payload, Reply, Visited};
use crate::waiters::Wait;

impl Scheduler {
    /// Takes a worker for a key, or finds what the key holds already.
    ///
    /// # Errors
    /// Any [`Refusal`]; nothing is left behind by a refused claim.
    pub async fn claim(&self, request: ClaimRequest) -> Result<Taken, Refusal> {
        let (item, claiming) = self.begin(request)?;
        if let Some(item) = item {
            self.dispatch().submit(item);
        }
        claiming.taken(self).await
    }

    /// A claim that is about to be decided, unless it is refused already.
    pub(super) fn begin(&self, request: ClaimRequest) -> Result<(Option<Box<ClaimItem>>, Claiming), Refusal> {
        self.open()?;
        let started_ns = self.dispatch().stopwatch();
        let (reply, answer) = Reply::one();
        let (id, pools) = (request.id.clone(), request.pools.clone());
        let leaves = self.leaves(std::slice::from_ref(&request));
        Ok((self.item(request, started_ns, reply).ok(), Claiming { answer, id, pools, _leaves: leaves }))
    }

    /// Many claims in one call: each its own outcome, in order. Each shard is visited once, unless it had less room
    /// than it said.
    pub async fn claim_batch(&self, requests: Vec<ClaimRequest>) -> Vec<Result<Taken, Refusal>> {
        if let Err(refusal) = self.open() {
            return requests.iter().map(|_| Err(refusal.clone())).collect();
        }
        let started_ns = self.dispatch().stopwatch();
        let _leaves = self.leaves(&requests);
        if requests.is_empty() {
            return Vec::new();
        }
        let (batch, answers) = Batch::new(requests.len());
        let mut names = Vec::with_capacity(requests.len());
        let mut items = Vec::with_capacity(requests.len());
        for (place, request) in (0..).zip(requests) {
            names.push((request.id.clone(), request.pools.clone()));
            let reply = Reply::part(std::sync::Arc::clone(&batch), place);
            // A refused item drops its reply; the outcome that counts is put there by `item`.
            items.extend(self.item(request, started_ns, reply).ok());
        }
        drop(batch);
        self.dispatch().submit_all(items);
        let outcomes = answers.await.unwrap_or_default();
        let taken = |((id, pools), outcome): ((ClaimId, PoolChoice), Result<Payload, Refusal>)| {
            let taken = outcome.and_then(|payload| self.taken(&id, &pools, payload));
            self.count_claim(&pools, &taken);
            taken
        };
        names.into_iter().zip(outcomes).map(taken).collect()
    }

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
            Some(Ended { pool, grant, .. }) => {
                Ok(view(id, &pool, ClaimAnswer { grant, created: false, pool: 0, expires_at_ms: None }))
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
    /// `Invalid` naming the limit of `ttl_ms`; `NotFound`; `Fence` if it is not the holder's; `State` if it is not active
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
        wait(answer).await.map(drop)
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
            let reply = Reply::part(std::sync::Arc::clone(&batch), place);
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
        answers.await.unwrap_or_default().into_iter().map(released).collect()
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
                    let durable = |pool: &std::sync::Arc<Pool>| pool.spec.load().ack == Ack::Durable;
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

    /// Checks a request against its pool and makes it a claim on its way. A refusal has been sent to `reply` as well.
    pub(super) fn item(&self, request: ClaimRequest, started_ns: u64, reply: Reply) -> Result<Box<ClaimItem>, Refusal> {
        let dispatch = self.dispatch();
        let start =
            check_times(&request).and_then(|()| Start::new(&dispatch.pools.load(), &dispatch.selectors, &request));
        match start {
            Err(refusal) => {
                reply.send(Err(refusal.clone()));
                Err(refusal)
            }
            Ok(start) => Ok(self.item_of(request, start, started_ns, reply)),
        }
    }

    /// A claim that begins like this.
    pub(super) fn item_of(&self, request: ClaimRequest, start: Start, started_ns: u64, reply: Reply) -> Box<ClaimItem> {
        let Start { pool, reserve_ms, durable, choice } = start;
        let near_ms = request.ask.as_ref().map_or(0, |ask| ask.preferred_wait_ms);
        let waits_ms = request.waits_ms();
        let wait = (waits_ms > 0).then(|| {
            let now_ms = self.dispatch().clock.engine_now_ms();
            let near_until_ms = if near_ms > 0 { now_ms + near_ms } else { 0 };
            let until_ms = now_ms + waits_ms;
            Box::new(Wait {
                until_ms,
                near_until_ms,
                since_ms: now_ms,
                arrival: 0,
                turn: None,
                of_gang: false,
                promise: None,
            })
        });
        Box::new(ClaimItem {
            // Key and turn spread claims over shards without a generator of random numbers.
            salt: (request.id.hash64() ^ turn()).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            id: request.id,
            pool,
            choice,
            ticket: 0,
            affinity: request.affinity,
            reserve_ms,
            ttl_ms: request.ttl_ms.unwrap_or(0),
            durable,
            visited: Visited::default(),
            unasked: None,
            started_ns,
            reply,
            wait,
            over_quota: None,
        })
    }

    /// Takes claims that wait out of their lines if their caller leaves before it is answered.
    pub(super) fn leaves(&self, requests: &[ClaimRequest]) -> Leaves {
        let ids: Vec<_> =
            requests.iter().filter(|request| request.waits_ms() > 0).map(|request| request.id.clone()).collect();
        // Mostly nobody waits, and the scheduler's count is every core's.
        Leaves { dispatch: (!ids.is_empty()).then(|| Arc::clone(self.dispatch())), ids }
    }

    pub(super) fn taken(&self, id: &ClaimId, pools: &PoolChoice, payload: Payload) -> Result<Taken, Refusal> {
        let Payload::Claim(answer) = payload else { unreachable!("a claim is answered with a claim") };
        let created = answer.created;
        let claim = match pools {
            PoolChoice::One(pool) => view(id, pool, answer),
            _ => {
                // If the pool was deleted meanwhile, the claim is gone with it.
                let pool = self.dispatch().pools.load().at(answer.pool).map(|pool| pool.name.clone());
                view(id, &pool.ok_or(Refusal::NotFound(What::Pool))?, answer)
            }
        };
        Ok(Taken { claim, created })
    }

    /// Counts what became of a claim; those that were made are counted by the shard that made them.
    pub(super) fn count_claim(&self, pools: &PoolChoice, taken: &Result<Taken, Refusal>) {
        if matches!(taken, Ok(Taken { created: true, .. })) {
            return;
        }
        let name = taken.as_ref().map_or(pools.first(), |taken| Some(&taken.claim.pool));
        let known = self.dispatch().pools.load();
        let outcome = ClaimOutcome::of(taken);
        match name.and_then(|name| known.get(name)) {
            Some(pool) => pool.metrics.claims(outcome).increment(1),
            None => metrics().claims(outcome).increment(1),
        }
    }
}

/// A claim whose caller waits for its answer. Dropped, the caller has left.
pub struct Claiming {
    // Dropped before `_leaves`: a caller that leaves is seen to be gone.
    answer: oneshot::Receiver<Outcome>,
    id: ClaimId,
    pools: PoolChoice,
    _leaves: Leaves,
}

impl Claiming {
    /// What became of it.
    ///
    /// # Errors
    /// As of [`Scheduler::claim`].
    pub async fn taken(mut self, scheduler: &Scheduler) -> Result<Taken, Refusal> {
        let taken = wait(&mut self.answer).await.and_then(|payload| scheduler.taken(&self.id, &self.pools, payload));
        scheduler.count_claim(&self.pools, &taken);
        taken
    }
}

/// A caller of claims that wait. Those that still do when it is dropped have nobody to tell.
pub(super) struct Leaves {
    /// None: none of them waits.
    dispatch: Option<Arc<Dispatch>>,
    ids: Vec<ClaimId>,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        if let Some(dispatch) = &self.dispatch {
            self.ids.iter().for_each(|id| dispatch.cancel(id));
        }
    }
}

/// Another number for every claim of a thread.
fn turn() -> u64 {
    thread_local! {
        static TURN: Cell<u64> = const { Cell::new(0) };
    }
    TURN.with(|turn| turn.replace(turn.get() + 1))
}

/// Checks the times of a request that no pool bounds.
pub(super) fn check_times(request: &ClaimRequest) -> Result<(), Refusal> {
    if request.wait_ms > limits::WAIT_MS_MAX {
        return Err(Refusal::invalid("wait_ms", format!("must be at most {}", limits::WAIT_MS_MAX)));
    }
    check_ttl(request.ttl_ms)
}

pub(super) fn check_ttl(ttl_ms: Option<Millis>) -> Result<(), Refusal> {
    match ttl_ms {
        Some(ms) if ms == 0 || ms > limits::TTL_MS_MAX => {
            Err(Refusal::invalid("ttl_ms", format!("must be 1..={}", limits::TTL_MS_MAX)))
        }
        _ => Ok(()),
    }
}

/// A claim as the service shows it.
pub(super) fn view(id: &ClaimId, pool: &PoolName, answer: ClaimAnswer) -> ClaimView {
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
    }
}
