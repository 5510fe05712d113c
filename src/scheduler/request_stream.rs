//! Many requests of one caller in flight, each answered as soon as it is decided: what a stream needs. What comes together
//! is sent together: claims that follow each other are routed as a batch is, releases that follow each other reach each of
//! their shards once. A request costs no task, no channel and no timer; its answer comes by an [`CompletionQueue`]. What a shard
//! cannot answer alone (a key that is gone while the store does not know) goes the way of a single call.
//!
//! A caller that leaves, or waits no longer for one request, is treated as one that hangs up on a single call: a claim of
//! which nobody was told is given back.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use hashbrown::HashMap;

use super::Scheduler;
use super::claims::check_ttl;
use crate::admission::key_directory::{KeyHolder, KeyLookup, ShardRef};
use crate::limits;
use crate::model::claim_request::PoolChoice;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{ClaimId, ClaimRequest, ClaimResult, ClaimView, Fence, Millis};
use crate::shard::{
    ClaimOp, Command, CompletionQueue, PendingClaim, ReplyPayload, ReplySender, ShardHandle, ShardOutcome,
};

/// What became of a request.
#[derive(Debug)]
pub enum RequestCompletion {
    /// Of a claim.
    Claimed(Result<ClaimResult, RequestError>),
    /// Of a release, or of its beginning; false: the key held nothing.
    Released(Result<bool, RequestError>),
    /// Of a confirm.
    Confirmed(Result<ClaimView, RequestError>),
    /// Of a renewal.
    Renewed(Result<ClaimView, RequestError>),
}

/// What a holder asks of its claim, on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimVerb {
    /// The holder is done.
    Release,
    /// The holder is done, but the worker has to be cleaned.
    BeginRelease,
    /// The holder has started.
    Confirm,
    /// The holder still needs it, from now on for that long without a renewal.
    Renew(Option<Millis>),
}

/// A request that was sent.
enum InFlightRequest {
    Claim { id: ClaimId, pools: PoolChoice, waits: bool },
    Held { id: ClaimId, pool: u32, verb: ClaimVerb },
}

struct OpenRequest {
    /// As the caller calls it.
    number: u64,
    request: InFlightRequest,
    /// Engine time after which nobody waits for its answer.
    until_ms: Millis,
    /// Nobody does any more.
    abandoned: bool,
}

/// Requests that go together.
enum RequestRun {
    Nothing,
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
    Claims(Vec<Box<PendingClaim>>),
    Releases(Vec<(ShardRef, ClaimOp)>),
}

/// The requests of one caller. Dropped, it hangs up on all of them.
pub struct RequestStream {
    scheduler: Scheduler,
    /// How long one may take that does not wait.
    limit_ms: Millis,
    completions: Arc<CompletionQueue>,
    requests: Vec<Option<OpenRequest>>,
    free_slots: Vec<u32>,
    slot_by_number: HashMap<u64, u32>,
    run: RequestRun,
    started_ns: u64,
    /// Those that go the way of a single call.
    individual_calls: FuturesUnordered<BoxFuture<'static, (u32, RequestCompletion)>>,
    /// As taken from the inbox.
    outcomes: Vec<(u32, ShardOutcome)>,
}

impl Scheduler {
    /// Room for requests in flight together, none of which may take longer than `limit_ms` beside the time that it waits.
    #[must_use]
    pub fn request_stream(&self, limit_ms: Millis) -> RequestStream {
        RequestStream {
            scheduler: self.clone(),
            limit_ms,
            completions: Arc::default(),
            requests: Vec::new(),
            free_slots: Vec::new(),
            slot_by_number: HashMap::new(),
            run: RequestRun::Nothing,
            started_ns: 0,
            individual_calls: FuturesUnordered::new(),
            outcomes: Vec::new(),
        }
    }
}

impl RequestStream {
    /// How many more may be sent.
    #[must_use]
    pub fn free_capacity(&self) -> usize {
        limits::STREAM_REQUESTS_MAX - (self.requests.len() - self.free_slots.len())
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slot_by_number.is_empty()
    }

    /// Whether a request with this number is in flight.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.slot_by_number.contains_key(&number)
    }

    /// Adds a claim; [`Self::send`] sends it. That there is room, and that the number is not in flight, is for the caller to
    /// see to.
    pub fn add_claim(&mut self, number: u64, request: ClaimRequest) {
        if !matches!(self.run, RequestRun::Claims(_)) {
            self.begin_run();
        }
        let waits_ms = request.max_wait_ms();
        let asked =
            InFlightRequest::Claim { id: request.id.clone(), pools: request.pools.clone(), waits: waits_ms > 0 };
        let reply = self.reply_for(number, asked, waits_ms.min(limits::WAIT_MS_MAX));
        if let Err(refusal) = self.scheduler.check_serving() {
            reply.send(Err(refusal));
            return;
        }
        // One that is refused was answered.
        let Ok(item) = self.scheduler.prepare_claim(request, self.started_ns, reply) else { return };
        match &mut self.run {
            RequestRun::Claims(items) => items.push(item),
            run => *run = RequestRun::Claims(vec![item]),
        }
    }

    /// Adds what a holder asks of its claim, in the same way.
    pub fn add_held_operation(&mut self, number: u64, id: ClaimId, fence: Fence, verb: ClaimVerb) {
        if verb != ClaimVerb::Release || !matches!(self.run, RequestRun::Releases(_)) {
            self.begin_run();
        }
        let Some((hold, port)) = self.find_holder(&id, fence, verb) else { return self.call(number, id, fence, verb) };
        let KeyHolder { shard, handle: place } = hold;
        let reply = self.reply_for(number, InFlightRequest::Held { id: id.clone(), pool: shard.pool, verb }, 0);
        let item = ClaimOp { id, handle: place, started_ns: self.started_ns, reply };
        match verb {
            ClaimVerb::Release => match &mut self.run {
                RequestRun::Releases(items) => items.push((shard, item)),
                run => *run = RequestRun::Releases(vec![(shard, item)]),
            },
            ClaimVerb::BeginRelease => port.push_or_reject(Command::BeginRelease(item)),
            ClaimVerb::Confirm => port.push_or_reject(Command::Confirm(item)),
            ClaimVerb::Renew(ttl_ms) => port.push_or_reject(Command::Renew(item, ttl_ms)),
        }
    }

    /// Sends what was added.
    pub fn send(&mut self) {
        let dispatch = self.scheduler.dispatch();
        match std::mem::replace(&mut self.run, RequestRun::Nothing) {
            RequestRun::Nothing => {}
            RequestRun::Claims(items) => dispatch.submit_all(items),
            RequestRun::Releases(items) => self.scheduler.send_releases(items),
        }
    }

    /// Takes what has landed since the last time, with the numbers that the caller gave. The next to land wakes the task,
    /// unless there is something in `landed`: then there may be more.
    pub fn poll_completions(&mut self, context: &mut Context<'_>, landed: &mut Vec<(u64, RequestCompletion)>) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        while landed.is_empty() && self.completions.poll_take(context, &mut outcomes).is_ready() {
            landed.extend(outcomes.drain(..).filter_map(|(place, outcome)| self.complete(place, outcome)));
        }
        self.outcomes = outcomes;
        while let Poll::Ready(Some((place, said))) = self.individual_calls.poll_next_unpin(context) {
            landed.extend(self.release_slot(place).map(|open| (open.number, said)));
        }
    }

    /// Gives up waiting for those whose time is over. Returns in how many milliseconds to look again, if others are in
    /// flight.
    pub fn expire(&mut self, landed: &mut Vec<(u64, RequestCompletion)>) -> Option<Millis> {
        let now_ms = self.scheduler.dispatch().clock.engine_ms();
        let mut next_ms: Option<Millis> = None;
        for open in self.requests.iter_mut().flatten().filter(|open| !open.abandoned) {
            if open.until_ms > now_ms {
                next_ms = Some(next_ms.map_or(open.until_ms, |next_ms| next_ms.min(open.until_ms)));
                continue;
            }
            // Its place stays taken until its answer is there.
            open.abandoned = true;
            self.slot_by_number.remove(&open.number);
            landed.push((open.number, open.request.timed_out()));
        }
        next_ms.map(|next_ms| next_ms - now_ms)
    }

    fn begin_run(&mut self) {
        self.send();
        self.started_ns = self.scheduler.dispatch().arrival_ns();
    }

    /// Where the claim is held under this fence, if its shard can say all that there is to say.
    fn find_holder(&self, id: &ClaimId, fence: Fence, verb: ClaimVerb) -> Option<(KeyHolder, Arc<ShardHandle>)> {
        let dispatch = self.scheduler.dispatch();
        let KeyLookup::Held(hold) = dispatch.keys.lookup(id) else { return None };
        let sound = hold.handle.fence == fence && verb.is_valid() && self.scheduler.check_serving().is_ok();
        let port = if sound { dispatch.pools.load().shard(hold.shard).cloned() } else { None };
        port.map(|port| (hold, port))
    }

    /// A call of its own.
    fn call(&mut self, number: u64, id: ClaimId, fence: Fence, verb: ClaimVerb) {
        let place = self.allocate_slot(number, InFlightRequest::Held { id: id.clone(), pool: 0, verb }, 0);
        let scheduler = self.scheduler.clone();
        let call = async move {
            match verb {
                ClaimVerb::Release => RequestCompletion::Released(scheduler.release_held(&id, Some(fence)).await),
                ClaimVerb::BeginRelease => {
                    RequestCompletion::Released(scheduler.begin_release_held(&id, Some(fence)).await)
                }
                ClaimVerb::Confirm => RequestCompletion::Confirmed(scheduler.confirm(&id, fence).await),
                ClaimVerb::Renew(ttl_ms) => RequestCompletion::Renewed(scheduler.renew(&id, fence, ttl_ms).await),
            }
        };
        self.individual_calls.push(call.map(move |said| (place, said)).boxed());
    }

    fn reply_for(&mut self, number: u64, asked: InFlightRequest, waits_ms: Millis) -> ReplySender {
        ReplySender::completion(Arc::clone(&self.completions), self.allocate_slot(number, asked, waits_ms))
    }

    fn allocate_slot(&mut self, number: u64, asked: InFlightRequest, waits_ms: Millis) -> u32 {
        let until_ms = self.scheduler.dispatch().clock.engine_ms() + self.limit_ms + waits_ms;
        let open = Some(OpenRequest { number, request: asked, until_ms, abandoned: false });
        let place = if let Some(place) = self.free_slots.pop() {
            self.requests[place as usize] = open;
            place
        } else {
            self.requests.push(open);
            (self.requests.len() - 1) as u32
        };
        let before = self.slot_by_number.insert(number, place);
        debug_assert!(before.is_none(), "R1: the numbers in flight are told apart");
        place
    }

    /// The answer to a request is there. None: nobody waits for it any more.
    fn release_slot(&mut self, place: u32) -> Option<OpenRequest> {
        let open = self.requests[place as usize].take().expect("R1: a request is answered once");
        self.free_slots.push(place);
        if open.abandoned {
            return None;
        }
        self.slot_by_number.remove(&open.number);
        Some(open)
    }

    fn complete(&mut self, place: u32, outcome: ShardOutcome) -> Option<(u64, RequestCompletion)> {
        if self.requests[place as usize].as_ref().is_some_and(|open| open.abandoned) {
            self.roll_back_unread(place, &outcome);
            self.release_slot(place);
            return None;
        }
        let OpenRequest { number, request: asked, .. } = self.release_slot(place)?;
        let said = match asked {
            InFlightRequest::Claim { id, pools, .. } => {
                let taken = outcome.and_then(|payload| self.scheduler.claim_result(&id, &pools, payload));
                self.scheduler.count_claim(&pools, &taken);
                RequestCompletion::Claimed(taken)
            }
            InFlightRequest::Held { id, pool, verb } => {
                let seen = |outcome: ShardOutcome| match outcome? {
                    ReplyPayload::Claim(answer) => self.scheduler.view_in(&id, pool, answer),
                    _ => Err(RequestError::NotFound(ObjectKind::Claim)),
                };
                match verb {
                    ClaimVerb::Release | ClaimVerb::BeginRelease => RequestCompletion::Released(match outcome {
                        Ok(_) => Ok(true),
                        Err(RequestError::NotFound(_)) => Ok(false),
                        Err(refusal) => Err(refusal),
                    }),
                    ClaimVerb::Confirm => RequestCompletion::Confirmed(seen(outcome)),
                    ClaimVerb::Renew(_) => RequestCompletion::Renewed(seen(outcome)),
                }
            }
        };
        Some((number, said))
    }

    /// Nobody will be told of this. A claim that it made is given back, unless others were told.
    fn roll_back_unread(&self, place: u32, outcome: &ShardOutcome) {
        let Some(OpenRequest { request: InFlightRequest::Claim { id, .. }, .. }) = &self.requests[place as usize]
        else {
            return;
        };
        self.scheduler.dispatch().roll_back_unread(id, outcome);
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        for (place, outcome) in self.completions.close() {
            self.roll_back_unread(place, &outcome);
        }
        for open in self.requests.iter().flatten() {
            if let InFlightRequest::Claim { id, waits: true, .. } = &open.request {
                self.scheduler.dispatch().cancel_queued(id);
            }
        }
    }
}

impl ClaimVerb {
    fn is_valid(self) -> bool {
        match self {
            Self::Renew(ttl_ms) => check_ttl(ttl_ms).is_ok(),
            _ => true,
        }
    }
}

impl InFlightRequest {
    /// That no answer came in time.
    const fn timed_out(&self) -> RequestCompletion {
        const LATE: RequestError = RequestError::DeadlineExceeded;
        match self {
            Self::Claim { .. } => RequestCompletion::Claimed(Err(LATE)),
            Self::Held { verb: ClaimVerb::Release | ClaimVerb::BeginRelease, .. } => {
                RequestCompletion::Released(Err(LATE))
            }
            Self::Held { verb: ClaimVerb::Confirm, .. } => RequestCompletion::Confirmed(Err(LATE)),
            Self::Held { verb: ClaimVerb::Renew(_), .. } => RequestCompletion::Renewed(Err(LATE)),
        }
    }
}
