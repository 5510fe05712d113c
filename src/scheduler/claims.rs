//! Claims that are taken: from a request to a claim on its way, and to its answer.

use std::cell::Cell;

use tokio::sync::oneshot;

use super::held::view;
use super::{Scheduler, wait};
use crate::admission::choice::Start;
use crate::admission::waiters::Wait;
use crate::limits;
use crate::metrics::{ClaimOutcome, metrics};
use crate::model::claim_request::PoolChoice;
use crate::model::rejection::{Refusal, What};
use crate::model::{ClaimId, ClaimRequest, Fence, Millis, Taken};
use crate::shard::{Batch, BatchAnswers, ClaimItem, Outcome, Payload, Reply, Visited};

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
        claiming.taken().await
    }

    /// A claim that is about to be decided, unless it is refused already.
    pub(super) fn begin(&self, request: ClaimRequest) -> Result<(Option<Box<ClaimItem>>, Claiming<'_>), Refusal> {
        self.open()?;
        let started_ns = self.dispatch().stopwatch();
        let (reply, answer) = Reply::one();
        let (id, pools, waits) = (request.id.clone(), request.pools.clone(), request.waits_ms() > 0);
        let item = self.item(request, started_ns, reply).ok();
        Ok((item, Claiming { scheduler: self, answer, id, pools, waits }))
    }

    /// Many claims in one call: each its own outcome, in order. Each shard is visited once, unless it had less room
    /// than it said.
    pub async fn claim_batch(&self, requests: Vec<ClaimRequest>) -> Vec<Result<Taken, Refusal>> {
        if let Err(refusal) = self.open() {
            return requests.iter().map(|_| Err(refusal.clone())).collect();
        }
        let started_ns = self.dispatch().stopwatch();
        if requests.is_empty() {
            return Vec::new();
        }
        let (batch, answers) = Batch::new(requests.len());
        let mut claiming = ClaimingBatch {
            scheduler: self,
            answers,
            items: Vec::with_capacity(requests.len()),
            begun_ms: self.dispatch().clock.engine_ms(),
        };
        let mut items = Vec::with_capacity(requests.len());
        for (place, request) in (0..).zip(requests) {
            let waits = request.waits_ms() > 0;
            claiming.items.push(BatchItem { id: request.id.clone(), pools: request.pools.clone(), waits });
            let reply = Reply::part(std::sync::Arc::clone(&batch), place);
            // A refused item drops its reply; the outcome that counts is put there by `item`.
            items.extend(self.item(request, started_ns, reply).ok());
        }
        drop(batch);
        self.dispatch().submit_all(items);
        claiming.taken().await
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
            ttl_ms: request.ttl_ms,
            durable,
            visited: Visited::default(),
            unasked: None,
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

    pub(super) fn taken(&self, id: &ClaimId, pools: &PoolChoice, payload: Payload) -> Result<Taken, Refusal> {
        let Payload::Claim(answer) = payload else { unreachable!("a claim is answered with a claim") };
        let created = answer.created;
        let claim = match pools {
            PoolChoice::One(pool) => view(id, pool, answer),
            _ => {
                // If the pool was deleted meanwhile, the claim is gone with it.
                let pool = self.dispatch().pools.load().at(answer.shard.pool).map(|pool| pool.name.clone());
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

/// A claim whose caller waits for its answer. Dropped, the caller has left: the claim waits for nothing any more, and
/// what was granted and not read is rolled back.
pub struct Claiming<'a> {
    scheduler: &'a Scheduler,
    answer: oneshot::Receiver<Outcome>,
    id: ClaimId,
    pools: PoolChoice,
    waits: bool,
}

impl Claiming<'_> {
    /// What became of it.
    ///
    /// # Errors
    /// As of [`Scheduler::claim`].
    pub async fn taken(mut self) -> Result<Taken, Refusal> {
        let outcome = wait(&mut self.answer).await;
        let taken = outcome.and_then(|payload| self.scheduler.taken(&self.id, &self.pools, payload));
        self.scheduler.count_claim(&self.pools, &taken);
        taken
    }
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.answer.close();
        if let Ok(outcome) = self.answer.try_recv() {
            self.scheduler.dispatch().roll_back_unread(&self.id, &outcome);
        } else if self.waits {
            self.scheduler.dispatch().cancel(&self.id);
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
/// [`Claiming`].
struct ClaimingBatch<'a> {
    scheduler: &'a Scheduler,
    answers: BatchAnswers,
    items: Vec<BatchItem>,
    /// When it was asked for, in engine time.
    begun_ms: Millis,
}

impl ClaimingBatch<'_> {
    async fn taken(mut self) -> Vec<Result<Taken, Refusal>> {
        let mut outcomes = (&mut self.answers).await;
        let dispatch = self.scheduler.dispatch();
        let mut departures = dispatch.departures(self.begun_ms);
        for (item, outcome) in self.items.iter().zip(&mut outcomes) {
            if let Ok(Payload::Claim(answer)) = outcome {
                dispatch.date(&mut departures, &item.id, answer);
            }
        }
        dispatch.depart(departures);
        let taken = |(BatchItem { id, pools, .. }, outcome): (BatchItem, Outcome)| {
            let taken = outcome.and_then(|payload| self.scheduler.taken(&id, &pools, payload));
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
            dispatch.cancel(&item.id);
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
