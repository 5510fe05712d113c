//! Streams of requests: many in flight for one caller, each completed as soon as it is decided. Requests that are
//! added together are sent together: consecutive claims are routed as a batch, consecutive releases reach each shard
//! once. A request costs no task, channel or timer; its completion arrives in a [`CompletionQueue`].
//!
//! A caller that leaves, or stops waiting for a request, is treated like one that disconnects from a single call: an
//! undisclosed claim is rolled back.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::Context;

use super::Scheduler;
use super::operation_routing::{RoutedOperation, ended_now};
use crate::admission::dispatch::check_ttl;
use crate::admission::key::PendingClaim;
use crate::collections::HashMap;
use crate::limits;
use crate::model::claim_request::PoolChoice;
use crate::model::request_error::RequestError;
use crate::model::{ClaimId, ClaimRequest, ClaimResult, ClaimView, Fence, Millis};
use crate::shard::{Completion, CompletionQueue, HeldVerb, ReplyAddress, ShardOutcome};

/// Completion of a request of the stream.
#[derive(Debug)]
pub enum RequestCompletion {
    /// Result of a claim.
    Claimed(Result<ClaimResult, RequestError>),
    /// Result of a release, or of its beginning; false if the claim had ended already.
    Released(Result<bool, RequestError>),
    /// Result of a confirm.
    Confirmed(Result<ClaimView, RequestError>),
    /// Result of a renewal.
    Renewed(Result<ClaimView, RequestError>),
}

/// Operation on a held claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimVerb {
    /// Releases the claim and its worker.
    Release,
    /// Begins to release the claim; its worker must be cleaned first.
    BeginRelease,
    /// Confirms the claim: the holder has started.
    Confirm,
    /// Renews the claim, with another time to live if given.
    Renew(Option<Millis>),
}

/// Request that was sent and is not completed.
enum InFlightRequest {
    Claim {
        id: ClaimId,
        pools: PoolChoice,
    },
    Held {
        id: ClaimId,
        fence: Fence,
        verb: ClaimVerb,
    },
    /// Second part of a release: the clean-up of the claim had timed out.
    LateCleanup,
}

struct OpenRequest {
    /// Number by which the caller identifies the request.
    number: u64,
    request: InFlightRequest,
    /// Engine time after which the caller no longer waits.
    until_ms: Millis,
    /// Whether the caller no longer waits.
    abandoned: bool,
}

/// Consecutive requests that are sent together.
enum RequestRun {
    Nothing,
    #[allow(clippy::vec_box, reason = "claims stay boxed from mailbox to mailbox")]
    Claims(Vec<Box<PendingClaim>>),
    Releases(Vec<RoutedOperation>),
}

/// Requests of one caller. Dropping the stream disconnects from all of them.
pub struct RequestStream {
    scheduler: Scheduler,
    /// Time limit of a request that does not wait, in milliseconds.
    limit_ms: Millis,
    completions: Arc<CompletionQueue>,
    requests: Vec<Option<OpenRequest>>,
    free_slots: Vec<u32>,
    slot_by_number: HashMap<u64, u32>,
    run: RequestRun,
    started_ns: Option<NonZeroU64>,
    /// Buffer for completions from the queue.
    outcomes: Vec<Completion>,
}

impl Scheduler {
    /// Creates a stream of requests, none of which may take longer than `limit_ms` in addition to its own waiting
    /// time.
    #[must_use]
    pub fn request_stream(&self, limit_ms: Millis) -> RequestStream {
        RequestStream {
            scheduler: self.clone(),
            limit_ms,
            completions: Arc::default(),
            requests: Vec::new(),
            free_slots: Vec::new(),
            slot_by_number: HashMap::default(),
            run: RequestRun::Nothing,
            started_ns: None,
            outcomes: Vec::new(),
        }
    }
}

impl RequestStream {
    /// Number of requests that may still be sent.
    #[must_use]
    pub fn remaining_slots(&self) -> usize {
        limits::STREAM_REQUESTS_MAX - (self.requests.len() - self.free_slots.len())
    }

    /// Whether no request is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slot_by_number.is_empty()
    }

    /// Whether a request with this number is in flight.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.slot_by_number.contains_key(&number)
    }

    /// Adds a claim, which [`Self::send`] sends. The caller must check that there is free capacity and that the number
    /// is not in flight.
    pub fn add_claim(&mut self, number: u64, request: ClaimRequest) {
        if !matches!(self.run, RequestRun::Claims(_)) {
            self.begin_run();
        }
        let wait_ms = request.max_wait_ms();
        let in_flight = InFlightRequest::Claim { id: request.id.clone(), pools: request.pools.clone() };
        let reply = self.reply_for(number, in_flight, wait_ms.min(limits::WAIT_MS_MAX));
        if let Err(error) = self.scheduler.check_serving() {
            reply.reject(error);
            return;
        }
        // A rejected claim was answered by `prepare_claim`.
        let pools = self.scheduler.dispatch().pools.load();
        let Ok(item) = self.scheduler.dispatch().prepare_claim(&pools, &request, self.started_ns, reply) else {
            return;
        };
        drop(pools);
        match &mut self.run {
            RequestRun::Claims(items) => items.push(item),
            run => *run = RequestRun::Claims(vec![item]),
        }
    }

    /// Adds an operation on a held claim, under the same conditions.
    pub fn add_held_operation(&mut self, number: u64, id: ClaimId, fence: Fence, verb: ClaimVerb) {
        if verb != ClaimVerb::Release || !matches!(self.run, RequestRun::Releases(_)) {
            self.begin_run();
        }
        let in_flight = InFlightRequest::Held { id: id.clone(), fence, verb };
        let reply = self.reply_for(number, in_flight, 0);
        if let Err(error) = verb.check().and_then(|()| self.scheduler.check_serving()) {
            return reply.reject(error);
        }
        let held_verb = match verb {
            ClaimVerb::Release => HeldVerb::Release,
            ClaimVerb::BeginRelease => HeldVerb::BeginRelease,
            ClaimVerb::Confirm => HeldVerb::Confirm,
            ClaimVerb::Renew(ttl_ms) => HeldVerb::Renew(ttl_ms),
        };
        let routed = self.scheduler.route_operation(id, Some(fence), held_verb, self.started_ns, reply);
        match (verb, &mut self.run) {
            (ClaimVerb::Release, RequestRun::Releases(items)) => items.extend(routed),
            (ClaimVerb::Release, run) => *run = RequestRun::Releases(routed.into_iter().collect()),
            (ClaimVerb::BeginRelease | ClaimVerb::Confirm | ClaimVerb::Renew(_), _) => {
                routed.into_iter().for_each(|routed| self.scheduler.send_operation(routed));
            }
        }
    }

    /// Sends the requests that were added.
    pub fn send(&mut self) {
        let dispatch = self.scheduler.dispatch();
        match std::mem::replace(&mut self.run, RequestRun::Nothing) {
            RequestRun::Nothing => {}
            RequestRun::Claims(items) => dispatch.with_work(|work| dispatch.submit_all(items, work)),
            RequestRun::Releases(items) => self.scheduler.send_releases(items),
        }
    }

    /// Takes the completions since the last call, with the caller's numbers. The next one wakes the task, unless
    /// `completed` is not empty: then there may be more.
    pub fn poll_completions(&mut self, context: &mut Context<'_>, completed: &mut Vec<(u64, RequestCompletion)>) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        while completed.is_empty() && self.completions.poll_take(context, &mut outcomes).is_ready() {
            completed
                .extend(outcomes.drain(..).filter_map(|Completion { token, outcome }| self.complete(token, outcome)));
        }
        self.outcomes = outcomes;
    }

    /// Expires requests whose time is over. Returns the milliseconds until the next check, if other requests are in
    /// flight.
    pub fn expire(&mut self, completed: &mut Vec<(u64, RequestCompletion)>) -> Option<Millis> {
        let now_ms = self.scheduler.dispatch().clock.engine_ms();
        let mut next_ms: Option<Millis> = None;
        for in_flight in self.requests.iter_mut().flatten().filter(|in_flight| !in_flight.abandoned) {
            if in_flight.until_ms > now_ms {
                next_ms = Some(next_ms.map_or(in_flight.until_ms, |next_ms| next_ms.min(in_flight.until_ms)));
                continue;
            }
            // The slot stays in use until the reply arrives.
            in_flight.abandoned = true;
            self.slot_by_number.remove(&in_flight.number);
            completed.push((in_flight.number, in_flight.request.timed_out()));
        }
        next_ms.map(|next_ms| next_ms - now_ms)
    }

    fn begin_run(&mut self) {
        self.send();
        self.started_ns = self.scheduler.dispatch().arrival_ns();
    }

    fn reply_for(&mut self, number: u64, request: InFlightRequest, wait_ms: Millis) -> ReplyAddress {
        ReplyAddress::queue(Arc::clone(&self.completions), self.allocate_slot(number, request, wait_ms))
    }

    fn allocate_slot(&mut self, number: u64, request: InFlightRequest, wait_ms: Millis) -> u32 {
        let until_ms = self.scheduler.dispatch().clock.engine_ms() + self.limit_ms + wait_ms;
        let in_flight = Some(OpenRequest { number, request, until_ms, abandoned: false });
        let slot = if let Some(slot) = self.free_slots.pop() {
            self.requests[slot as usize] = in_flight;
            slot
        } else {
            self.requests.push(in_flight);
            (self.requests.len() - 1) as u32
        };
        let before = self.slot_by_number.insert(number, slot);
        debug_assert!(before.is_none(), "R1: numbers in flight are unique");
        slot
    }

    /// Frees the slot of a completed request. Returns `None` if the caller no longer waits for it.
    fn release_slot(&mut self, slot: u32) -> Option<OpenRequest> {
        let in_flight = self.requests[slot as usize].take().expect("R1: a request completes once");
        self.free_slots.push(slot);
        if in_flight.abandoned {
            return None;
        }
        self.slot_by_number.remove(&in_flight.number);
        Some(in_flight)
    }

    /// Finishes the clean-up of a claim whose release found that it had timed out. The request stays in flight.
    fn continue_release(&mut self, slot: u32, outcome: &ShardOutcome) -> bool {
        let Some(OpenRequest { request, .. }) = &mut self.requests[slot as usize] else { return false };
        let InFlightRequest::Held { id, fence, verb: ClaimVerb::Release } = request else { return false };
        if !matches!(outcome, Err(RequestError::NotFound(_))) {
            return false;
        }
        let Some(ended) = self.scheduler.timed_out_cleanup(id, Some(*fence)) else { return false };
        let reply = ReplyAddress::queue(Arc::clone(&self.completions), slot);
        self.scheduler.finish_cleanup_late(id.clone(), &ended, reply);
        *request = InFlightRequest::LateCleanup;
        true
    }

    fn complete(&mut self, slot: u32, outcome: ShardOutcome) -> Option<(u64, RequestCompletion)> {
        if self.continue_release(slot, &outcome) {
            return None;
        }
        if self.requests[slot as usize].as_ref().is_some_and(|in_flight| in_flight.abandoned) {
            let unread = self.claim_id(slot).map(|id| (id, outcome));
            self.scheduler.dispatch().abandon(unread, []);
            self.release_slot(slot);
            return None;
        }
        let OpenRequest { number, request, .. } = self.release_slot(slot)?;
        let completion = match request {
            InFlightRequest::Claim { id, pools, .. } => {
                let result = outcome.and_then(|reply| self.scheduler.claim_result(&id, &pools, reply));
                self.scheduler.count_claim(&pools, &result);
                RequestCompletion::Claimed(result)
            }
            InFlightRequest::LateCleanup => RequestCompletion::Released(ended_now(outcome)),
            InFlightRequest::Held { id, verb, .. } => {
                let view = |outcome: ShardOutcome| self.scheduler.view_in(&id, outcome?.disclose()?);
                match verb {
                    ClaimVerb::Release | ClaimVerb::BeginRelease => RequestCompletion::Released(ended_now(outcome)),
                    ClaimVerb::Confirm => RequestCompletion::Confirmed(view(outcome)),
                    ClaimVerb::Renew(_) => RequestCompletion::Renewed(view(outcome)),
                }
            }
        };
        Some((number, completion))
    }

    /// Claim that the request in a slot makes, if it does.
    fn claim_id(&self, slot: u32) -> Option<&ClaimId> {
        self.requests[slot as usize].as_ref()?.request.claim_id()
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        let unread = self.completions.close().into_iter();
        let unread = unread.filter_map(|Completion { token, outcome }| Some((self.claim_id(token)?, outcome)));
        let requested = self.requests.iter().flatten().filter_map(|in_flight| in_flight.request.claim_id());
        self.scheduler.dispatch().abandon(unread, requested);
    }
}

impl ClaimVerb {
    fn check(self) -> Result<(), RequestError> {
        match self {
            Self::Renew(ttl_ms) => check_ttl(ttl_ms),
            Self::Release | Self::BeginRelease | Self::Confirm => Ok(()),
        }
    }
}

impl InFlightRequest {
    /// Claim that the request makes, if it does.
    const fn claim_id(&self) -> Option<&ClaimId> {
        match self {
            Self::Claim { id, .. } => Some(id),
            Self::Held { .. } | Self::LateCleanup => None,
        }
    }

    /// Completion of a request that timed out.
    const fn timed_out(&self) -> RequestCompletion {
        const LATE: RequestError = RequestError::DeadlineExceeded;
        match self {
            Self::Claim { .. } => RequestCompletion::Claimed(Err(LATE)),
            Self::Held { verb: ClaimVerb::Release | ClaimVerb::BeginRelease, .. } | Self::LateCleanup => {
                RequestCompletion::Released(Err(LATE))
            }
            Self::Held { verb: ClaimVerb::Confirm, .. } => RequestCompletion::Confirmed(Err(LATE)),
            Self::Held { verb: ClaimVerb::Renew(_), .. } => RequestCompletion::Renewed(Err(LATE)),
        }
    }
}
