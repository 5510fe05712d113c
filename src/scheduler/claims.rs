//! Claims that are taken: from a request to a claim on its way, and to its answer.

use std::cell::Cell;

use tokio::sync::oneshot;

use super::claim_operations::claim_view;
use super::{Scheduler, recv_outcome};
use crate::admission::candidate_plan::AdmittedClaim;
use crate::admission::wait_queue::WaitState;
use crate::limits;
use crate::metrics::{ClaimOutcome, metrics};
use crate::model::claim_request::PoolChoice;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{ClaimId, ClaimRequest, ClaimResult, Fence, Millis};
use crate::shard::{BatchAnswers, PendingClaim, ReplyBatch, ReplyPayload, ReplySender, ShardOutcome, ShardSet};

impl Scheduler {
    /// Takes a worker for a key, or finds what the key holds already.
    ///
    /// # Errors
    /// Any [`RequestError`]; nothing is left behind by a refused claim.
    pub async fn claim(&self, request: ClaimRequest) -> Result<ClaimResult, RequestError> {
        let (item, claiming) = self.begin_claim(request)?;
        if let Some(item) = item {
            self.dispatch().submit(item);
        }
        claiming.taken().await
    }

    /// A claim that is about to be decided, unless it is refused already.
    pub(super) fn begin_claim(
        &self,
        request: ClaimRequest,
    ) -> Result<(Option<Box<PendingClaim>>, ClaimCall<'_>), RequestError> {
        self.check_serving()?;
        let started_ns = self.dispatch().arrival_ns();
        let (reply, answer) = ReplySender::oneshot();
        let (id, pools, waits) = (request.id.clone(), request.pools.clone(), request.max_wait_ms() > 0);
        let item = self.prepare_claim(request, started_ns, reply).ok();
        Ok((item, ClaimCall { scheduler: self, answer, id, pools, waits }))
    }

    /// Many claims in one call: each its own outcome, in order. Each shard is visited once, unless it had less room
    /// than it said.
    pub async fn claim_batch(&self, requests: Vec<ClaimRequest>) -> Vec<Result<ClaimResult, RequestError>> {
        if let Err(refusal) = self.check_serving() {
            return requests.iter().map(|_| Err(refusal.clone())).collect();
        }
        let started_ns = self.dispatch().arrival_ns();
        if requests.is_empty() {
            return Vec::new();
        }
        let (batch, answers) = ReplyBatch::new(requests.len());
        let mut claiming = ClaimingBatch {
            scheduler: self,
            answers,
            items: Vec::with_capacity(requests.len()),
            begun_ms: self.dispatch().clock.engine_ms(),
        };
        let mut items = Vec::with_capacity(requests.len());
        for (place, request) in (0..).zip(requests) {
            let waits = request.max_wait_ms() > 0;
            claiming.items.push(BatchItem { id: request.id.clone(), pools: request.pools.clone(), waits });
            let reply = ReplySender::batch_part(std::sync::Arc::clone(&batch), place);
            // A refused item drops its reply; the outcome that counts is put there by `item`.
            items.extend(self.prepare_claim(request, started_ns, reply).ok());
        }
        drop(batch);
        self.dispatch().submit_all(items);
        claiming.taken().await
    }

    /// Checks a request against its pool and makes it a claim on its way. A refusal has been sent to `reply` as well.
    pub(super) fn prepare_claim(
        &self,
        request: ClaimRequest,
        started_ns: u64,
        reply: ReplySender,
    ) -> Result<Box<PendingClaim>, RequestError> {
        let dispatch = self.dispatch();
        let start = check_times(&request)
            .and_then(|()| AdmittedClaim::new(&dispatch.pools.load(), &dispatch.selectors, &request));
        match start {
            Err(refusal) => {
                reply.send(Err(refusal.clone()));
                Err(refusal)
            }
            Ok(start) => Ok(self.pending_claim(request, start, started_ns, reply)),
        }
    }

    /// A claim that begins like this.
    pub(super) fn pending_claim(
        &self,
        request: ClaimRequest,
        start: AdmittedClaim,
        started_ns: u64,
        reply: ReplySender,
    ) -> Box<PendingClaim> {
        let AdmittedClaim { pool, reserve_ms, durable, plan: choice } = start;
        let near_ms = request.constraints.as_ref().map_or(0, |ask| ask.preferred_wait_ms);
        let waits_ms = request.max_wait_ms();
        let wait = (waits_ms > 0).then(|| {
            let now_ms = self.dispatch().clock.engine_now_ms();
            let near_until_ms = if near_ms > 0 { now_ms + near_ms } else { 0 };
            let until_ms = now_ms + waits_ms;
            Box::new(WaitState {
                until_ms,
                preferred_until_ms: near_until_ms,
                since_ms: now_ms,
                arrival: 0,
                turn: None,
                gang_at_head: false,
                reservation: None,
            })
        });
        Box::new(PendingClaim {
            // Key and turn spread claims over shards without a generator of random numbers.
            tie_break: (request.id.hash64() ^ next_claim_number()).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            id: request.id,
            pool,
            plan: choice,
            ticket: 0,
            affinity: request.affinity,
            reserve_ms,
            ttl_ms: request.ttl_ms,
            durable,
            tried_shards: ShardSet::default(),
            unreachable: None,
            started_ns,
            reply,
            wait,
            over_quota: None,
        })
    }

    /// Rolls back a claim whose answer did not arrive, unless it was confirmed or somebody else was told of it.
    pub(crate) fn roll_back_undelivered(&self, id: &ClaimId, fence: Fence) {
        self.dispatch().roll_back(id, fence);
    }

    pub(super) fn claim_result(
        &self,
        id: &ClaimId,
        pools: &PoolChoice,
        payload: ReplyPayload,
    ) -> Result<ClaimResult, RequestError> {
        let ReplyPayload::Claim(answer) = payload else { unreachable!("a claim is answered with a claim") };
        let created = answer.created;
        let claim = match pools {
            PoolChoice::One(pool) => claim_view(id, pool, answer),
            _ => {
                // If the pool was deleted meanwhile, the claim is gone with it.
                let pool = self.dispatch().pools.load().by_number(answer.shard.pool).map(|pool| pool.name.clone());
                claim_view(id, &pool.ok_or(RequestError::NotFound(ObjectKind::Pool))?, answer)
            }
        };
        Ok(ClaimResult { claim, created })
    }

    /// Counts what became of a claim; those that were made are counted by the shard that made them.
    pub(super) fn count_claim(&self, pools: &PoolChoice, taken: &Result<ClaimResult, RequestError>) {
        if matches!(taken, Ok(ClaimResult { created: true, .. })) {
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

/// A claim whose caller waits for its answer. Dropped, the caller has left: the claim waits for nothing any more, and
/// what was granted and not read is rolled back.
pub struct ClaimCall<'a> {
    scheduler: &'a Scheduler,
    answer: oneshot::Receiver<ShardOutcome>,
    id: ClaimId,
    pools: PoolChoice,
    waits: bool,
}

impl ClaimCall<'_> {
    /// What became of it.
    ///
    /// # Errors
    /// As of [`Scheduler::claim`].
    pub async fn taken(mut self) -> Result<ClaimResult, RequestError> {
        let outcome = recv_outcome(&mut self.answer).await;
        let taken = outcome.and_then(|payload| self.scheduler.claim_result(&self.id, &self.pools, payload));
        self.scheduler.count_claim(&self.pools, &taken);
        taken
    }
}

impl Drop for ClaimCall<'_> {
    fn drop(&mut self) {
        self.answer.close();
        if let Ok(outcome) = self.answer.try_recv() {
            self.scheduler.dispatch().roll_back_unread(&self.id, &outcome);
        } else if self.waits {
            self.scheduler.dispatch().cancel_queued(&self.id);
        }
    }
}

/// A claim of a batch, as its answer needs it.
struct BatchItem {
    id: ClaimId,
    pools: PoolChoice,
    waits: bool,
}

/// A batch whose caller waits for its answers. Dropped before they are all there, the caller has left, as with
/// [`ClaimCall`].
struct ClaimingBatch<'a> {
    scheduler: &'a Scheduler,
    answers: BatchAnswers,
    items: Vec<BatchItem>,
    /// When it was asked for, in engine time.
    begun_ms: Millis,
}

impl ClaimingBatch<'_> {
    async fn taken(mut self) -> Vec<Result<ClaimResult, RequestError>> {
        let mut outcomes = (&mut self.answers).await;
        let dispatch = self.scheduler.dispatch();
        let mut departures = dispatch.begin_reply(self.begun_ms);
        for (item, outcome) in self.items.iter().zip(&mut outcomes) {
            if let Ok(ReplyPayload::Claim(answer)) = outcome {
                dispatch.set_first_deadline(&mut departures, &item.id, answer);
            }
        }
        dispatch.notify_reply_sent(departures);
        let taken = |(BatchItem { id, pools, .. }, outcome): (BatchItem, ShardOutcome)| {
            let taken = outcome.and_then(|payload| self.scheduler.claim_result(&id, &pools, payload));
            self.scheduler.count_claim(&pools, &taken);
            taken
        };
        std::mem::take(&mut self.items).into_iter().zip(outcomes).map(taken).collect()
    }
}

impl Drop for ClaimingBatch<'_> {
    fn drop(&mut self) {
        let dispatch = self.scheduler.dispatch();
        for (place, outcome) in self.answers.close() {
            dispatch.roll_back_unread(&self.items[place].id, &outcome);
        }
        for item in self.items.iter().filter(|item| item.waits) {
            dispatch.cancel_queued(&item.id);
        }
    }
}

/// Another number for every claim of a thread.
fn next_claim_number() -> u64 {
    thread_local! {
        static TURN: Cell<u64> = const { Cell::new(0) };
    }
    TURN.with(|turn| turn.replace(turn.get() + 1))
}

/// Checks the times of a request that no pool bounds.
pub(super) fn check_times(request: &ClaimRequest) -> Result<(), RequestError> {
    if request.wait_ms > limits::WAIT_MS_MAX {
        return Err(RequestError::invalid("wait_ms", format!("must be at most {}", limits::WAIT_MS_MAX)));
    }
    check_ttl(request.ttl_ms)
}

pub(super) fn check_ttl(ttl_ms: Option<Millis>) -> Result<(), RequestError> {
    match ttl_ms {
        Some(ms) if ms == 0 || ms > limits::TTL_MS_MAX => {
            Err(RequestError::invalid("ttl_ms", format!("must be 1..={}", limits::TTL_MS_MAX)))
        }
        _ => Ok(()),
    }
}
