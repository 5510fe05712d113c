//! New claims: from a request to a pending claim, and to its result.

use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Scheduler;
use crate::admission::key::PendingClaim;
use crate::admission::plan::AdmittedClaim;
use crate::admission::pool_registry::PoolMap;
use crate::admission::queue::WaitState;
use crate::limits;
use crate::metrics::{ClaimOutcome, metrics};
use crate::model::claim_request::PoolChoice;
use crate::model::request_error::{ExhaustionReason, ObjectKind, RequestError};
use crate::model::{ClaimId, ClaimRequest, ClaimResult, Fence, Millis, UnreadReply};
use crate::shard::{AwaitedReply, ClaimReply, Completion, CompletionQueue, ReplyAddress, ShardOutcome, ShardSet};

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
        let item = self.prepare_claim(pools, &request, started_ns, reply).ok();
        let ClaimRequest { id, pools, .. } = request;
        Ok((item, ClaimCall { scheduler: self, answer, id, pools, answered: false }))
    }

    /// Makes many claims in one call. Returns one result each, in order. Visits each shard once, unless it had less
    /// free capacity than it published.
    pub async fn claim_batch(&self, requests: Vec<ClaimRequest>) -> Vec<Result<ClaimResult, RequestError>> {
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
            items.extend(self.prepare_claim(&pools_now, &request, started_ns, reply).ok());
            let ClaimRequest { id, pools, .. } = request;
            call.items.push(BatchItem { id, pools });
        }
        drop(pools_now);
        self.dispatch().with_work(|work| self.dispatch().submit_all(items, work));
        call.result().await
    }

    /// Checks a request against its pools and prepares the claim. A rejection is also sent to `reply`.
    pub(super) fn prepare_claim(
        &self,
        pools: &PoolMap,
        request: &ClaimRequest,
        started_ns: Option<NonZeroU64>,
        reply: ReplyAddress,
    ) -> Result<Box<PendingClaim>, RequestError> {
        let admitted =
            check_times(request).and_then(|()| AdmittedClaim::new(pools, &self.dispatch().selectors, request));
        match admitted {
            Err(error) => {
                reply.reject(error.clone());
                Err(error)
            }
            Ok(admitted) => Ok(self.pending_claim(request, admitted, started_ns, reply)),
        }
    }

    /// Builds the pending claim of an admitted request.
    #[inline]
    pub(super) fn pending_claim(
        &self,
        request: &ClaimRequest,
        admitted: AdmittedClaim,
        started_ns: Option<NonZeroU64>,
        reply: ReplyAddress,
    ) -> Box<PendingClaim> {
        let AdmittedClaim { pool, reserve_ms, ack, plan } = admitted;
        let preferred_wait_ms = request.constraints.as_ref().map_or(0, |constraints| constraints.preferred_wait_ms);
        let wait_ms = request.max_wait_ms();
        let wait = (wait_ms > 0).then(|| {
            let now_ms = self.dispatch().clock.engine_now_ms();
            Box::new(WaitState {
                until_ms: now_ms + wait_ms,
                preferred_until_ms: (preferred_wait_ms > 0).then_some(now_ms + preferred_wait_ms),
                since_ms: now_ms,
                exhausted: ExhaustionReason::Pool,
                queued: None,
            })
        });
        Box::new(PendingClaim {
            tie_break: self.dispatch().keys.ids.next_tie_break(),
            id: request.id.clone(),
            pool,
            plan,
            ticket: 0,
            affinity: request.affinity,
            reserve_ms,
            ttl_ms: request.ttl_ms,
            ack,
            tried_shards: ShardSet::default(),
            unreachable: None,
            started_ns,
            reply,
            wait,
            over_quota: None,
            asks: None,
            has_asked_reserved: false,
        })
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

impl Drop for BatchCall<'_> {
    fn drop(&mut self) {
        let unread = self.completions.close().into_iter();
        let unread = unread.map(|Completion { token, outcome }| (&self.items[token as usize].id, outcome));
        self.scheduler.dispatch().abandon(unread, self.items.iter().map(|item| &item.id));
    }
}

/// Checks the times of a request that no pool limits.
pub(super) fn check_times(request: &ClaimRequest) -> Result<(), RequestError> {
    if request.wait_ms > limits::WAIT_MS_MAX {
        return Err(RequestError::invalid("wait_ms", format!("must be at most {}", limits::WAIT_MS_MAX)));
    }
    check_ttl(request.ttl_ms)
}

pub(super) fn check_ttl(ttl_ms: Option<Millis>) -> Result<(), RequestError> {
    match ttl_ms {
        Some(ms) if ms == 0 || ms > limits::TTL_MS_MAX => {
            Err(RequestError::invalid("ttl_ms", format!("must be 1 to {}", limits::TTL_MS_MAX)))
        }
        _ => Ok(()),
    }
}
