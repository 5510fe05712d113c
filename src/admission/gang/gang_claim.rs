//! Claim of a gang, from its call to its answer: the attempts to place it, and the wait in between. Pure.
//!
//! ```text
//! prepared -> locks of its pools -> keys' tickets -> members granted as provisional, stored -> two-phase commit
//!    ^                                                                                             | no capacity
//!    +-- enough seems to be free -- waits in the queues of its pools <-----------------------------+
//! ```
//!
//! The locks of its pools are free again once the attempt is decided. An outcome that is in doubt is answered at once, and
//! the transaction goes on until every member is committed or vacated.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::gang_event::{GangEffect, GangEvent, GangVerdict, GangWait, PreparedGang};
use super::transaction::{
    GangDecision, GangTransaction, MemberGrant, PublishedState, TransactionEffect, TransactionEvent, TransactionMember,
};
use crate::admission::queue::{ArrivalNumber, LastAttempt, WaitingGang};
use crate::model::request_error::{ExhaustionReason, RequestError, UnavailableReason};
use crate::model::{ClaimId, ClaimRequest, GangRef, Millis};
use crate::shard::{ClaimReply, CompletionQueue, KeyTicket, ReplyAddress, ShardOutcome};

/// Attempts to place a gang before it is rejected, if each loses a worker before the commit.
const ATTEMPTS_MAX: usize = 3;

/// Shortest and longest pause between two attempts of a gang that waits, in milliseconds. Capacity that a failed attempt
/// frees would otherwise trigger the next one.
const ATTEMPT_PAUSE_MS: [Millis; 2] = [20, 1_000];

/// News about the pools of a gang.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PoolNotice {
    /// Other pools than before may be its candidates.
    Changed,
    /// A pool is being deleted, or the service stops.
    Closing,
}

/// State of a gang.
#[derive(Debug)]
enum GangState {
    Preparing,
    /// Another gang is being placed in one of its pools.
    AwaitingLocks {
        prepared: PreparedGang,
        until_ms: Millis,
    },
    Placing {
        home: GangRef,
        pools: Vec<u32>,
        grants: Arc<CompletionQueue>,
        tickets: Vec<(ClaimId, KeyTicket)>,
    },
    Deciding {
        transaction: GangTransaction,
        pools: Vec<u32>,
    },
    Queueing,
    Waiting,
    Done,
}

/// Claim of a gang.
#[derive(Debug)]
pub struct GangClaim {
    requests: Arc<[ClaimRequest]>,
    /// Addresses of the caller, one for each member; none once it was answered or has left.
    caller: Vec<ReplyAddress>,
    /// Whether the caller left before it was answered, while an attempt was being decided.
    has_left: bool,
    /// Beginning and end of the wait, in engine time; empty if the gang does not wait.
    wait_ms: Range<Millis>,
    attempts_left: usize,
    /// Time for which a gang waits for the locks of its pools, in milliseconds.
    locks_wait_ms: Millis,
    /// Entry in the queues, while it waits and is tried meanwhile.
    queued: Option<Arc<WaitingGang>>,
    /// Arrival number, once it has waited: it is the same in all queues, and stays.
    arrival: Option<ArrivalNumber>,
    pause_ms: Millis,
    /// News about its pools that it has not reacted to.
    notice: Option<PoolNotice>,
    /// Rejections of the last attempt.
    rejections: Vec<RequestError>,
    state: GangState,
}

impl GangClaim {
    /// Creates the claim of a gang. `wait_ms`: beginning and end of its wait, in engine time.
    #[must_use]
    pub const fn new(
        requests: Arc<[ClaimRequest]>,
        caller: Vec<ReplyAddress>,
        wait_ms: Range<Millis>,
        locks_wait_ms: Millis,
    ) -> Self {
        Self {
            requests,
            caller,
            has_left: false,
            wait_ms,
            attempts_left: ATTEMPTS_MAX,
            locks_wait_ms,
            queued: None,
            arrival: None,
            pause_ms: 0,
            notice: None,
            rejections: Vec::new(),
            state: GangState::Preparing,
        }
    }

    /// Creates a gang of an earlier process that is not decided, or not forgotten.
    #[must_use]
    pub fn recovered(transaction: GangTransaction) -> Self {
        let state = GangState::Deciding { transaction, pools: Vec::new() };
        Self {
            requests: Arc::new([]),
            caller: Vec::new(),
            has_left: false,
            wait_ms: 0..0,
            attempts_left: 0,
            locks_wait_ms: 0,
            queued: None,
            arrival: None,
            pause_ms: 0,
            notice: None,
            rejections: Vec::new(),
            state,
        }
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.state, GangState::Done)
    }

    /// Whether the gang rests in the queues.
    #[cfg(test)]
    pub const fn is_waiting(&self) -> bool {
        matches!(self.state, GangState::Waiting)
    }

    /// Engine time at which something is due.
    #[must_use]
    pub fn due_ms(&self) -> Option<Millis> {
        match &self.state {
            GangState::AwaitingLocks { until_ms, .. } => Some(*until_ms),
            GangState::Deciding { transaction, .. } => transaction.due_ms(),
            GangState::Waiting => Some(self.wait_ms.end),
            GangState::Preparing | GangState::Placing { .. } | GangState::Queueing | GangState::Done => None,
        }
    }

    /// Outcomes of the members that are being placed, and the numbers of the candidate pools.
    #[must_use]
    pub fn placement(&self) -> Option<(Arc<CompletionQueue>, Vec<u32>)> {
        match &self.state {
            GangState::Placing { grants, pools, .. } => Some((Arc::clone(grants), pools.clone())),
            _ => None,
        }
    }

    /// Record of the gang that is being decided.
    #[must_use]
    pub const fn home(&self) -> Option<GangRef> {
        match &self.state {
            GangState::Deciding { transaction, .. } => Some(transaction.home()),
            _ => None,
        }
    }

    /// Decides what follows from an event. One that does not belong to the present state is late, and changes nothing.
    pub fn on(
        &mut self,
        event: GangEvent,
        now_ms: Millis,
        published: &impl PublishedState,
        effects: &mut Vec<GangEffect>,
    ) {
        match (std::mem::replace(&mut self.state, GangState::Done), event) {
            (GangState::Preparing, GangEvent::Begin) => {
                self.state = GangState::Preparing;
                effects.push(GangEffect::Prepare(Arc::clone(&self.requests), None));
            }
            (GangState::Preparing, GangEvent::Prepared(Ok(prepared))) => {
                effects.push(GangEffect::RequestLocks(prepared.pools.clone()));
                self.state = GangState::AwaitingLocks { prepared, until_ms: now_ms + self.locks_wait_ms };
            }
            (GangState::Preparing, GangEvent::Prepared(Err(rejections))) => {
                self.on_rejected(rejections, now_ms, published, effects);
            }
            (GangState::AwaitingLocks { prepared, .. }, GangEvent::LocksGranted) => {
                let PreparedGang { home, pools, grants, .. } = &prepared;
                let (home, pools, grants) = (*home, pools.clone(), Arc::clone(grants));
                self.state = GangState::Placing { home, pools, grants, tickets: Vec::new() };
                effects.push(GangEffect::Place(prepared, self.queued.clone()));
            }
            (GangState::AwaitingLocks { until_ms, .. }, GangEvent::Tick) if until_ms <= now_ms => {
                effects.push(GangEffect::ReleaseLocks);
                match self.queued.clone() {
                    // It goes on waiting, and knows no more than before.
                    Some(queued) => {
                        let last_attempt = queued.last_attempt();
                        self.postpone(queued, last_attempt, now_ms, published, effects);
                    }
                    None => self.answer_all(&RequestError::Unavailable(UnavailableReason::Overloaded), effects),
                }
            }
            (GangState::AwaitingLocks { .. }, GangEvent::CallerLeft) => {
                effects.push(GangEffect::ReleaseLocks);
                self.leave(effects);
            }
            (GangState::Placing { home, pools, grants, .. }, GangEvent::KeysAcquired(tickets)) => {
                self.state = GangState::Placing { home, pools, grants, tickets };
            }
            (GangState::Placing { .. }, GangEvent::KeysRejected(rejections)) => {
                effects.push(GangEffect::ReleaseLocks);
                self.on_rejected(rejections, now_ms, published, effects);
            }
            (GangState::Placing { home, pools, tickets, .. }, GangEvent::MembersDecided(outcomes, candidates)) => {
                let (members, rejections) = decided_members(tickets, outcomes);
                let mut caused = Vec::new();
                let transaction = GangTransaction::begin(home, members, rejections, candidates, published, &mut caused);
                self.state = GangState::Deciding { transaction, pools };
                self.follow(caused, now_ms, published, effects);
            }
            (GangState::Deciding { mut transaction, pools }, GangEvent::Transaction(event)) => {
                let mut caused = Vec::new();
                transaction.on(event, now_ms, published, &mut caused);
                self.state = GangState::Deciding { transaction, pools };
                self.follow(caused, now_ms, published, effects);
            }
            (GangState::Deciding { mut transaction, pools }, GangEvent::Tick) => {
                let mut caused = Vec::new();
                transaction.on(TransactionEvent::Tick, now_ms, published, &mut caused);
                self.state = GangState::Deciding { transaction, pools };
                self.follow(caused, now_ms, published, effects);
            }
            (GangState::Queueing, GangEvent::Queued(Err(rejections))) => {
                self.on_rejected(rejections, now_ms, published, effects);
            }
            (GangState::Queueing, GangEvent::Queued(Ok(queued))) => {
                self.arrival = Some(queued.arrival);
                self.queued = Some(queued);
                self.pause_ms = 0;
                if !self.caller.is_empty() {
                    self.begin_wait(published, effects);
                } else {
                    self.leave(effects);
                }
            }
            (GangState::Waiting, GangEvent::CallerLeft) => self.leave(effects),
            (GangState::Waiting, GangEvent::Tick) if self.wait_ms.end <= now_ms => {
                let rejections = std::mem::take(&mut self.rejections);
                self.answer(GangVerdict::Refused(rejections), effects);
            }
            (GangState::Waiting, GangEvent::MayFit) => {
                self.attempts_left = ATTEMPTS_MAX;
                self.prepare(effects);
            }
            (state, GangEvent::PoolsChanged) => self.note(PoolNotice::Changed, state, published, effects),
            (state, GangEvent::Closing) => self.note(PoolNotice::Closing, state, published, effects),
            (state, GangEvent::CallerLeft) => {
                // What the attempt makes is rolled back when nobody takes the answer, or when it is no longer in doubt.
                self.has_left |= !self.caller.is_empty();
                self.caller.clear();
                self.state = state;
            }
            (state, _) => self.state = state,
        }
    }

    /// Follows what a step of the transaction has caused.
    fn follow(
        &mut self,
        caused: Vec<TransactionEffect>,
        now_ms: Millis,
        published: &impl PublishedState,
        effects: &mut Vec<GangEffect>,
    ) {
        let mut decision = None;
        for effect in caused {
            match effect {
                TransactionEffect::Decided(decided) => decision = Some(decided),
                effect => effects.push(GangEffect::Transaction(effect)),
            }
        }
        let GangState::Deciding { transaction, pools } = &mut self.state else { unreachable!("set by the caller") };
        let is_done = transaction.is_done();
        let pools = if decision.is_some() { std::mem::take(pools) } else { Vec::new() };
        if is_done {
            if self.has_left {
                effects.push(GangEffect::Discard(transaction.grants().collect()));
            }
            self.state = GangState::Done;
        }
        let Some(decision) = decision else { return };
        effects.push(GangEffect::ReleaseLocks);
        match decision {
            GangDecision::Committed(members) => self.answer(GangVerdict::Committed(members), effects),
            GangDecision::InDoubt => self.answer(GangVerdict::InDoubt, effects),
            GangDecision::WorkerLost => {
                self.attempts_left -= 1;
                if self.attempts_left > 0 {
                    self.prepare(effects);
                } else {
                    self.answer_all(&RequestError::Unavailable(UnavailableReason::Overloaded), effects);
                }
            }
            GangDecision::Refused(mut rejections) => {
                let is_full = |error: &RequestError| *error == RequestError::Exhausted(ExhaustionReason::Pool);
                if rejections.values().any(is_full) && !published.could_hold(&pools, &self.requests) {
                    let full = rejections.values_mut().filter(|error| is_full(error));
                    full.for_each(|error| *error = RequestError::GangTooLarge);
                }
                self.on_rejected(rejections, now_ms, published, effects);
            }
        }
    }

    /// Notes what has happened to the pools; a gang that is being tried or queued reacts when it would wait again.
    fn note(
        &mut self,
        notice: PoolNotice,
        state: GangState,
        published: &impl PublishedState,
        effects: &mut Vec<GangEffect>,
    ) {
        self.notice = self.notice.max(Some(notice));
        match state {
            GangState::Waiting => self.begin_wait(published, effects),
            state => self.state = state,
        }
    }

    /// Waits in the queues, unless something has happened to the pools meanwhile.
    fn begin_wait(&mut self, published: &impl PublishedState, effects: &mut Vec<GangEffect>) {
        match self.notice.take() {
            None => self.state = GangState::Waiting,
            Some(PoolNotice::Changed) => match self.queued.take() {
                Some(queued) => {
                    let (exhausted, last_attempt) = (queued.exhausted, queued.last_attempt());
                    effects.push(GangEffect::Dequeue(queued));
                    self.enqueue(exhausted, last_attempt, effects);
                }
                None => self.state = GangState::Waiting,
            },
            Some(PoolNotice::Closing) if published.is_draining() => {
                self.answer_all(&RequestError::Unavailable(UnavailableReason::Stopping), effects);
            }
            // Other pools may be left.
            Some(PoolNotice::Closing) => {
                self.attempts_left = ATTEMPTS_MAX;
                self.prepare(effects);
            }
        }
    }

    fn prepare(&mut self, effects: &mut Vec<GangEffect>) {
        self.state = GangState::Preparing;
        effects.push(GangEffect::Prepare(Arc::clone(&self.requests), self.queued.clone()));
    }

    /// Waits after an attempt that was rejected, or answers.
    fn on_rejected(
        &mut self,
        mut rejections: BTreeMap<usize, RequestError>,
        now_ms: Millis,
        published: &impl PublishedState,
        effects: &mut Vec<GangEffect>,
    ) {
        let first = rejections.keys().next().copied().unwrap_or(0);
        let member = |index| rejections.remove(&index).unwrap_or(RequestError::GangMemberRejected(first));
        self.rejections = (0..self.requests.len()).map(member).collect();
        let is_missing = |index: &usize| self.rejections[*index] == RequestError::Exhausted(ExhaustionReason::Pool);
        let missing = (0..self.rejections.len()).filter(is_missing).collect();
        let may_wait = !self.wait_ms.is_empty() && !self.caller.is_empty();
        let Some(exhausted) = queueable_reason(&self.rejections).filter(|_| may_wait) else {
            let rejections = std::mem::take(&mut self.rejections);
            return self.answer(GangVerdict::Refused(rejections), effects);
        };
        if let Some(queued) = self.queued.clone().filter(|queued| queued.waits_for(exhausted)) {
            let last_attempt = LastAttempt { failed_ms: now_ms, missing, ..LastAttempt::default() };
            return self.postpone(queued, last_attempt, now_ms, published, effects);
        }
        effects.extend(self.queued.take().map(GangEffect::Dequeue));
        let last_attempt = LastAttempt { failed_ms: now_ms, missing, ..LastAttempt::default() };
        self.enqueue(exhausted, last_attempt, effects);
    }

    fn enqueue(&mut self, exhausted: ExhaustionReason, last_attempt: LastAttempt, effects: &mut Vec<GangEffect>) {
        let (requests, wait_ms, arrival) = (Arc::clone(&self.requests), self.wait_ms.clone(), self.arrival);
        effects.push(GangEffect::Enqueue(GangWait { requests, exhausted, wait_ms, last_attempt, arrival }));
        self.state = GangState::Queueing;
    }

    /// Goes on waiting, for twice as long as after the last attempt at least.
    fn postpone(
        &mut self,
        queued: Arc<WaitingGang>,
        last_attempt: LastAttempt,
        now_ms: Millis,
        published: &impl PublishedState,
        effects: &mut Vec<GangEffect>,
    ) {
        self.pause_ms = (self.pause_ms * 2).clamp(ATTEMPT_PAUSE_MS[0], ATTEMPT_PAUSE_MS[1]);
        let last_attempt = LastAttempt { retry_ms: now_ms + self.pause_ms, is_running: false, ..last_attempt };
        effects.push(GangEffect::Postpone(queued, last_attempt));
        self.begin_wait(published, effects);
    }

    fn answer_all(&mut self, error: &RequestError, effects: &mut Vec<GangEffect>) {
        let errors = self.requests.iter().map(|_| error.clone()).collect();
        self.answer(GangVerdict::Refused(errors), effects);
    }

    /// Ends the call. A transaction goes on until it is done.
    fn answer(&mut self, mut verdict: GangVerdict, effects: &mut Vec<GangEffect>) {
        if let GangVerdict::Refused(rejections) = &mut verdict
            && !self.wait_ms.is_empty()
        {
            rejections.iter_mut().for_each(name_as_waited);
        }
        effects.extend(self.queued.take().map(GangEffect::Dequeue));
        effects.push(GangEffect::Answer(std::mem::take(&mut self.caller), Arc::clone(&self.requests), verdict));
    }

    /// Ends the wait of a gang whose caller has left.
    fn leave(&mut self, effects: &mut Vec<GangEffect>) {
        self.caller.clear();
        self.answer_all(&RequestError::DeadlineExceeded, effects);
        self.state = GangState::Done;
    }
}

/// Members with their tickets and grants, and the rejections by member.
fn decided_members(
    tickets: Vec<(ClaimId, KeyTicket)>,
    outcomes: Vec<ShardOutcome>,
) -> (Vec<TransactionMember>, BTreeMap<usize, RequestError>) {
    let mut rejections = BTreeMap::new();
    let members = tickets.into_iter().zip(outcomes).enumerate().map(|(index, ((id, ticket), outcome))| {
        let grant = match outcome.and_then(ClaimReply::disclose) {
            Ok(answer) => Some(MemberGrant::answered(answer)),
            Err(error) => {
                rejections.insert(index, error);
                None
            }
        };
        TransactionMember::new(id, Some(ticket), grant)
    });
    (members.collect(), rejections)
}

/// Reason for which a gang can wait; none if waiting is of no use.
fn queueable_reason(rejections: &[RequestError]) -> Option<ExhaustionReason> {
    let mut first = None;
    for rejection in rejections {
        match rejection {
            RequestError::Exhausted(
                reason @ (ExhaustionReason::Pool | ExhaustionReason::NodeLocality | ExhaustionReason::Quota(_)),
            ) => {
                first.get_or_insert(*reason);
            }
            // Workers that could hold it may register.
            RequestError::Unsatisfiable | RequestError::GangTooLarge => {
                first.get_or_insert(ExhaustionReason::Unsatisfiable);
            }
            RequestError::GangMemberRejected(_) => {}
            _ => return None,
        }
    }
    first
}

/// Names the reason of a gang that has waited in vain for workers that could hold it.
fn name_as_waited(rejection: &mut RequestError) {
    if matches!(rejection, RequestError::Unsatisfiable | RequestError::GangTooLarge) {
        *rejection = RequestError::Exhausted(ExhaustionReason::Unsatisfiable);
    }
}
