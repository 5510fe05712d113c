//! New claims: from a request to a pending claim, and to its result.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Scheduler;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::Effect;
use crate::admission::gang::GangEvent;
use crate::admission::key::PendingClaim;
use crate::admission::pool_registry::PoolMap;
use crate::metrics::{ClaimOutcome, metrics};
use crate::model::claim_request::PoolChoice;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{ClaimId, ClaimRequest, ClaimResult, Fence, Millis, UnreadReply};
use crate::shard::{AwaitedReply, ClaimReply, Completion, CompletionQueue, GangNumber, ReplyAddress, ShardOutcome};

impl Scheduler {
    /// Claims a worker for a key, or returns the claim that holds the key already.
    ///
    /// # Errors
    /// Any [`RequestError`]. A rejected claim leaves nothing behind.
    pub async fn claim(&self, request: ClaimRequest) -> Result<ClaimResult, RequestError> {
        self.start_claim(request)?.await
    }

    #[inline]
    fn start_claim(&self, request: ClaimRequest) -> Result<ClaimCall<'_>, RequestError> {
        let pools = self.dispatch().pools.load();
        let (item, call) = self.begin_claim(&pools, request)?;
        if let Some(item) = item {
            self.dispatch().submit_now(&pools, item);
        }
        Ok(call)
    }

    /// Prepares a claim that is about to be submitted; `None` if it was rejected already.
    #[inline]
    pub(super) fn begin_claim(
        &self,
        pools: &PoolMap,
        request: ClaimRequest,
    ) -> Result<(Option<Box<PendingClaim>>, ClaimCall<'_>), RequestError> {
        self.check_serving()?;
        let started_ns = self.dispatch().arrival_ns();
        let (reply, answer) = AwaitedReply::new();
        let item = self.dispatch().prepare_claim(pools, &request, started_ns, reply).ok();
        let ClaimRequest { id, pools, .. } = request;
        Ok((item, ClaimCall { scheduler: self, answer, id, pools, answered: false }))
    }

    /// Makes many claims in one call. Returns one result each, in order. Visits each shard once, unless it had less
    /// free capacity than it published.
    pub async fn claim_batch(&self, requests: Vec<ClaimRequest>) -> Vec<Result<ClaimResult, RequestError>> {
        self.claim_each(requests, |_| ()).await
    }

    /// Makes claims as [`Self::claim_batch`] does, each of them prepared by `prepare`.
    async fn claim_each(
        &self,
        requests: Vec<ClaimRequest>,
        prepare: impl Fn(&mut PendingClaim),
    ) -> Vec<Result<ClaimResult, RequestError>> {
        if let Err(error) = self.check_serving() {
            return requests.iter().map(|_| Err(error.clone())).collect();
        }
        let started_ns = self.dispatch().arrival_ns();
        if requests.is_empty() {
            return Vec::new();
        }
        let completions = Arc::new(CompletionQueue::collecting(requests.len()));
        let mut call = BatchCall {
            scheduler: self,
            completions: Arc::clone(&completions),
            items: Vec::with_capacity(requests.len()),
            started_ms: self.dispatch().clock.engine_ms(),
        };
        let mut items = Vec::with_capacity(requests.len());
        let pools_now = self.dispatch().pools.load();
        for (index, request) in (0..).zip(requests) {
            let reply = ReplyAddress::queue(Arc::clone(&completions), index);
            // A rejected item drops its reply; `prepare_claim` has sent the outcome that counts.
            let item = self.dispatch().prepare_claim(&pools_now, &request, started_ns, reply).ok();
            items.extend(item.map(|mut item| {
                prepare(&mut item);
                item
            }));
            let ClaimRequest { id, pools, .. } = request;
            call.items.push(BatchItem { id, pools });
        }
        drop(pools_now);
        self.dispatch().with_work(|work| self.dispatch().submit_all(items, work));
        call.result().await
    }

    /// Makes all of these claims or none; returns results in order. If one is rejected all are: that one with its own
    /// reason, the others with [`RequestError::GangMemberRejected`]. If all keys are held already, their claims are
    /// returned as by [`Scheduler::claim_batch`], and none is made or replaced.
    pub async fn claim_gang(&self, requests: Vec<ClaimRequest>) -> Vec<Result<ClaimResult, RequestError>> {
        if let Err(error) = self.check_serving() {
            return requests.iter().map(|_| Err(error.clone())).collect();
        }
        // True of an empty gang, too.
        if requests.iter().all(|request| self.dispatch().keys.holder(&request.id).is_some()) {
            // Claims that were placed here would be a part of a gang.
            return self.claim_each(requests, |item| item.is_for_holder = true).await;
        }
        let completions = Arc::new(CompletionQueue::collecting(requests.len()));
        let item = |request: &ClaimRequest| BatchItem { id: request.id.clone(), pools: request.pools.clone() };
        let items = requests.iter().map(item).collect();
        let dispatch = self.dispatch();
        let gang = dispatch.with_work(|work| dispatch.begin_gang(requests, &completions, work));
        // Dropped after the batch, whose queue is closed then.
        let _caller = GangCaller { dispatch, gang };
        let started_ms = dispatch.clock.engine_ms();
        BatchCall { scheduler: self, completions, items, started_ms }.result().await
    }

    /// Takes back a reply that did not arrive: a claim that nobody else knows of is rolled back.
    pub(crate) fn discard_reply(&self, id: &ClaimId, fence: Fence, reply: UnreadReply) {
        self.dispatch().discard_reply(id, fence, reply);
    }

    #[inline]
    pub(super) fn claim_result(
        &self,
        id: &ClaimId,
        pools: &PoolChoice,
        reply: ClaimReply,
    ) -> Result<ClaimResult, RequestError> {
        let answer = reply.disclose()?;
        let created = answer.created;
        let claim = match pools {
            PoolChoice::One(pool) => self.view(id, pool, answer),
            _ => {
                // If the pool was deleted meanwhile, the claim ended with it.
                let pool = self.dispatch().pools.load().by_number(answer.shard.pool).map(|pool| pool.name.clone());
                self.view(id, &pool.ok_or(RequestError::NotFound(ObjectKind::Pool))?, answer)
            }
        };
        Ok(ClaimResult { claim, created })
    }

    /// Counts the outcome of a claim. Created claims are counted by the shard that granted them.
    pub(super) fn count_claim(&self, pools: &PoolChoice, result: &Result<ClaimResult, RequestError>) {
        if matches!(result, Ok(ClaimResult { created: true, .. })) {
            return;
        }
        let name = result.as_ref().map_or(pools.first(), |result| Some(&result.claim.pool));
        let pools_now = self.dispatch().pools.load();
        let outcome = ClaimOutcome::of(result);
        match name.and_then(|name| pools_now.get(name)) {
            Some(pool) => pool.metrics.claims(outcome).increment(1),
            None => metrics().claims(outcome).increment(1),
        }
    }
}

/// Claim whose caller waits for the result, as of [`Scheduler::claim`]. When it is dropped the caller has left: a queued
/// claim is cancelled, and an unread grant is rolled back.
pub struct ClaimCall<'a> {
    scheduler: &'a Scheduler,
    answer: AwaitedReply,
    id: ClaimId,
    pools: PoolChoice,
    /// Whether the answer was taken.
    answered: bool,
}

impl Future for ClaimCall<'_> {
    type Output = Result<ClaimResult, RequestError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(outcome) = Pin::new(&mut self.answer).poll(context) else { return Poll::Pending };
        self.answered = true;
        let result = outcome.and_then(|reply| self.scheduler.claim_result(&self.id, &self.pools, reply));
        self.scheduler.count_claim(&self.pools, &result);
        Poll::Ready(result)
    }
}

impl Drop for ClaimCall<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let unread = self.answer.close().map(|outcome| (&self.id, outcome));
        self.scheduler.dispatch().abandon(unread, [&self.id]);
    }
}

/// Claim of a batch, with what is needed to interpret its reply.
struct BatchItem {
    id: ClaimId,
    pools: PoolChoice,
}

/// Batch whose caller waits for the results. When it is dropped before all have arrived, the caller has left, as with
/// [`ClaimCall`].
struct BatchCall<'a> {
    scheduler: &'a Scheduler,
    completions: Arc<CompletionQueue>,
    items: Vec<BatchItem>,
    /// Engine time at which the batch was requested.
    started_ms: Millis,
}

impl BatchCall<'_> {
    async fn result(mut self) -> Vec<Result<ClaimResult, RequestError>> {
        let mut outcomes = self.completions.collect().await;
        let dispatch = self.scheduler.dispatch();
        let mut sent = dispatch.begin_reply(self.started_ms);
        for (item, outcome) in self.items.iter().zip(&mut outcomes) {
            if let Ok(ClaimReply::Claim(answer)) = outcome {
                dispatch.set_first_deadline(&mut sent, &item.id, answer);
            }
        }
        dispatch.notify_reply_sent(sent);
        let result = |(BatchItem { id, pools, .. }, outcome): (BatchItem, ShardOutcome)| {
            let result = outcome.and_then(|reply| self.scheduler.claim_result(&id, &pools, reply));
            self.scheduler.count_claim(&pools, &result);
            result
        };
        std::mem::take(&mut self.items).into_iter().zip(outcomes).map(result).collect()
    }
}

/// Caller of a gang. When it is dropped before the answer has arrived, the caller has left, and the gang does not wait.
struct GangCaller<'a> {
    dispatch: &'a ClaimDispatcher,
    gang: GangNumber,
}

impl Drop for GangCaller<'_> {
    fn drop(&mut self) {
        self.dispatch.with_work(|work| work.push(Effect::gang(self.gang, GangEvent::CallerLeft)));
    }
}

impl Drop for BatchCall<'_> {
    fn drop(&mut self) {
        let unread = self.completions.close().into_iter();
        let unread = unread.map(|Completion { token, outcome }| (&self.items[token as usize].id, outcome));
        self.scheduler.dispatch().abandon(unread, self.items.iter().map(|item| &item.id));
    }
}
