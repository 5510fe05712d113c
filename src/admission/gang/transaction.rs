//! Two-phase commit of a gang whose members are granted, or its abort, over the shards that hold the members. Pure.
//!
//! | event | reply if it fails | fate of the gang |
//! |---|---|---|
//! | a member is rejected | the reason | its members are rolled back |
//! | the home records the gang | outcome unknown | in doubt: the home retracts it first, then its members are rolled back |
//! | a member's worker is lost before the commit | none: the gang is placed again | as above |
//! | a shard commits its members | outcome unknown | committed; the shard is asked until it answers |
//!
//! The gang is committed when the store has the record of its home (`G1`). So while it is unknown whether the store
//! has it, nothing is undone before the retraction is stored: a crash in between finds all of the gang or nothing. A
//! worker that is lost after its shard has counted the members takes its member with it like any claim: the reply
//! shows it as lost.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::GangAction;
use crate::metrics::ShardState;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::model::{ClaimId, ClaimRequest, Fence, GangRef, Millis};
use crate::shard::{ClaimAnswer, GangAnswer, GangRequestNumber, KeyTicket, ShardRef};

/// First and longest pause before an unanswered request is repeated, in milliseconds; doubled each time.
const RETRY_PAUSE_MS: [Millis; 2] = [2, 1_000];

/// State that is published to everybody, as far as gangs need it.
pub trait PublishedState {
    /// State of a shard; none if its pool is gone.
    fn state(&self, shard: ShardRef) -> Option<ShardState>;

    /// Shard that keeps the record of a gang; none if its pool is gone.
    fn home(&self, home: GangRef) -> Option<ShardRef>;

    /// Whether this process decides nothing any more.
    fn is_stopped(&self) -> bool;

    /// Whether nobody may wait any more, because the service is about to stop.
    fn is_draining(&self) -> bool;

    /// Whether these pools could hold all of a gang if nothing else were held.
    fn could_hold(&self, pools: &[u32], requests: &[ClaimRequest]) -> bool;
}

/// Grant of a member of a gang.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberGrant {
    /// Shard that holds the claim.
    pub shard: ShardRef,
    /// Fence of the provisional grant.
    pub fence: Fence,
    /// Answer of the shard; none after a restart.
    pub answer: Option<ClaimAnswer>,
}

impl MemberGrant {
    /// Grant that a shard has answered with.
    #[must_use]
    pub const fn answered(answer: ClaimAnswer) -> Self {
        Self { shard: answer.shard, fence: answer.grant.handle.fence, answer: Some(answer) }
    }
}

/// Claims that their shards have committed, by fence.
type CommittedClaims = BTreeMap<Fence, (ClaimId, ClaimAnswer)>;

/// State in which the transaction leaves a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MemberFate {
    /// Neither committed nor vacated yet.
    Open,
    /// An ordinary claim, which holds its key.
    Committed,
    /// Released: the key is free unless its shard had committed the member before it panicked.
    Vacated,
    /// The key is unreadable until a restart.
    Suspended,
}

/// Member of a gang that is being committed or aborted.
#[derive(Debug)]
pub struct TransactionMember {
    /// Key of the claim.
    pub id: ClaimId,
    /// Ticket of the pending key; none after a restart, which makes the key unreadable.
    pub ticket: Option<KeyTicket>,
    /// Grant of the member, if it was not rejected.
    pub grant: Option<MemberGrant>,
    fate: MemberFate,
}

impl TransactionMember {
    /// Creates a member whose fate is open.
    #[must_use]
    pub const fn new(id: ClaimId, ticket: Option<KeyTicket>, grant: Option<MemberGrant>) -> Self {
        Self { id, ticket, grant, fate: MemberFate::Open }
    }
}

/// Member of a committed gang.
#[derive(Debug, PartialEq)]
pub struct CommittedMember {
    /// Key of the claim.
    pub id: ClaimId,
    /// Answer of its shard; none if the shard had committed it before it panicked, or its worker was lost since.
    pub committed: Option<ClaimAnswer>,
    /// Answer of the shard that granted it.
    pub granted: Option<ClaimAnswer>,
}

/// Outcome of an attempt to place a gang.
#[derive(Debug, PartialEq)]
pub enum GangDecision {
    /// The gang is committed.
    Committed(Vec<CommittedMember>),
    /// The gang was aborted, with the reason by member.
    Refused(BTreeMap<usize, RequestError>),
    /// The gang was aborted, because a worker was lost before the commit.
    WorkerLost,
    /// The outcome is not known yet.
    InDoubt,
}

/// Consequence of a step of a transaction.
#[derive(Debug, PartialEq)]
pub enum TransactionEffect {
    /// Send a request to a shard.
    Send {
        /// Number of the request.
        request: GangRequestNumber,
        /// Fence that identifies the gang.
        id: Fence,
        /// Shard that is asked.
        shard: ShardRef,
        /// Action that is requested.
        action: GangAction,
        /// Tickets of the members that are to be committed.
        tickets: Vec<(ClaimId, KeyTicket)>,
    },
    /// Release tickets; requests that wait for these keys go on.
    ReleaseTickets(Vec<(ClaimId, KeyTicket)>),
    /// End claims that were unreadable.
    EndUnreadable(Vec<(ClaimId, Fence)>),
    /// Make keys unreadable until a restart.
    Suspend(Vec<(ClaimId, KeyTicket, ShardRef, Fence)>),
    /// Begin the deadlines of members that were committed although the caller was not told.
    BeginDeadlines(Vec<(ClaimId, ClaimAnswer)>),
    /// Tell the caller, and let other gangs be placed in these pools.
    Decided(GangDecision),
}

/// Condition that ends the repetition of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RetryUntil {
    /// The first answer counts, whatever it is.
    Answered,
    /// The shard has decided the action.
    Decided,
    /// The store has the record of the action.
    Stored,
}

/// Reason for which a gang is aborted.
#[derive(Debug)]
enum AbortReason {
    Refused(BTreeMap<usize, RequestError>),
    WorkerLost,
    /// The caller knows that the outcome is unknown.
    InDoubt,
}

/// Phase of the commit or abort.
#[derive(Debug)]
enum TransactionPhase {
    Recording,
    Counting,
    Committing,
    /// The caller knows that the outcome is unknown.
    CommittingInDoubt,
    Forgetting,
    /// A worker was lost before the commit.
    Retracting,
    /// The record may be stored, and the caller knows that the outcome is unknown.
    RetractingInDoubt,
    Aborting(AbortReason),
    /// Waits until the home can be asked.
    Suspended,
    Done,
}

/// Request to a shard that is not answered for good.
#[derive(Debug)]
struct OpenRequest {
    shard: ShardRef,
    /// Pause before the next repetition.
    pause_ms: Millis,
    /// Engine time of the repetition, if the last answer was not one for good.
    retry_ms: Option<Millis>,
}

/// Commit or abort of one gang.
#[derive(Debug)]
pub struct GangTransaction {
    home: GangRef,
    members: Vec<TransactionMember>,
    /// Shards that may hold members.
    shards: Vec<ShardRef>,
    phase: TransactionPhase,
    open: BTreeMap<GangRequestNumber, OpenRequest>,
    answers: BTreeMap<ShardRef, Result<GangAnswer, RequestError>>,
    next_request: GangRequestNumber,
}

/// Event of a transaction.
#[derive(Debug)]
pub enum TransactionEvent {
    /// A shard answered a request, or never will.
    Answered(GangRequestNumber, Result<GangAnswer, RequestError>),
    /// Time has come to repeat requests.
    Tick,
    /// The pool of the gang's record is gone.
    HomeDeleted,
}

impl GangTransaction {
    fn new(home: GangRef, members: Vec<TransactionMember>) -> Self {
        let shards: BTreeSet<ShardRef> =
            members.iter().filter_map(|member| member.grant.as_ref()).map(|grant| grant.shard).collect();
        Self {
            home,
            members,
            shards: shards.into_iter().collect(),
            phase: TransactionPhase::Done,
            open: BTreeMap::new(),
            answers: BTreeMap::new(),
            next_request: 0,
        }
    }

    /// Begins to commit a gang if all members were granted, and to abort it otherwise. `candidates`: shards that may hold
    /// a member whose outcome is unknown.
    #[must_use]
    pub fn begin(
        home: GangRef,
        members: Vec<TransactionMember>,
        mut rejections: BTreeMap<usize, RequestError>,
        candidates: Vec<ShardRef>,
        published: &impl PublishedState,
        effects: &mut Vec<TransactionEffect>,
    ) -> Self {
        let mut transaction = Self::new(home, members);
        let is_known = |error: &RequestError| matches!(error, RequestError::Exhausted(_) | RequestError::Unsatisfiable);
        if !rejections.values().all(is_known) {
            transaction.shards = candidates;
        }
        let home_shard = published.home(home);
        if rejections.is_empty() && home_shard.is_none() {
            rejections = transaction.reject_all(&RequestError::NotFound(ObjectKind::Pool));
        }
        match home_shard.filter(|_| rejections.is_empty()) {
            Some(home_shard) => transaction.ask(TransactionPhase::Recording, vec![home_shard], published, effects),
            // No record of the gang was ever sent.
            None => {
                crate::reached!("gang: refused before anything was recorded");
                transaction.abort(AbortReason::Refused(rejections), published, effects);
            }
        }
        transaction
    }

    /// Continues with a gang whose home could not be read at the start.
    #[must_use]
    pub fn suspended(home: GangRef, members: Vec<TransactionMember>) -> Self {
        Self { phase: TransactionPhase::Suspended, ..Self::new(home, members) }
    }

    /// Forgets a gang whose members are all stored as committed.
    #[must_use]
    pub fn forget(home: GangRef, published: &impl PublishedState, effects: &mut Vec<TransactionEffect>) -> Self {
        let mut transaction = Self::new(home, Vec::new());
        transaction.forget_record(published, effects);
        transaction
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.phase, TransactionPhase::Done)
    }

    /// Engine time of the next repetition of a request.
    #[must_use]
    pub fn due_ms(&self) -> Option<Millis> {
        self.open.values().filter_map(|request| request.retry_ms).min()
    }

    /// Gang that is being decided.
    #[must_use]
    pub const fn home(&self) -> GangRef {
        self.home
    }

    /// Members that were granted, each with its fence.
    pub fn grants(&self) -> impl Iterator<Item = (ClaimId, Fence)> + '_ {
        self.members.iter().filter_map(|member| Some((member.id.clone(), member.grant.as_ref()?.fence)))
    }

    /// Decides what follows from an event.
    pub fn on(
        &mut self,
        event: TransactionEvent,
        now_ms: Millis,
        published: &impl PublishedState,
        effects: &mut Vec<TransactionEffect>,
    ) {
        match event {
            TransactionEvent::Answered(number, outcome) => self.on_answer(number, outcome, now_ms, published, effects),
            TransactionEvent::Tick => self.repeat_due(now_ms, effects),
            TransactionEvent::HomeDeleted => {
                if matches!(self.phase, TransactionPhase::Suspended) {
                    self.abort(AbortReason::InDoubt, published, effects);
                }
            }
        }
    }

    /// Takes the answer to a request, which counts unless the request is to be repeated.
    fn on_answer(
        &mut self,
        number: GangRequestNumber,
        outcome: Result<GangAnswer, RequestError>,
        now_ms: Millis,
        published: &impl PublishedState,
        effects: &mut Vec<TransactionEffect>,
    ) {
        let until = self.phase.retry_until();
        let Some(request) = self.open.get_mut(&number).filter(|request| request.retry_ms.is_none()) else { return };
        // A shard that does not come back must not block others: its rows are handled by recovery.
        let comes_back = matches!(published.state(request.shard), Some(ShardState::Serving | ShardState::Loading));
        if must_repeat(&outcome, until) && comes_back && !published.is_stopped() {
            crate::reached!("gang: a request to a shard is to be repeated");
            request.retry_ms = Some(now_ms + request.pause_ms);
            request.pause_ms = (request.pause_ms * 2).min(RETRY_PAUSE_MS[1]);
            return;
        }
        self.answers.insert(request.shard, outcome);
        self.open.remove(&number);
        if self.open.is_empty() {
            self.end_phase(published, effects);
        }
    }

    fn repeat_due(&mut self, now_ms: Millis, effects: &mut Vec<TransactionEffect>) {
        let mut due = Vec::new();
        for (number, request) in &mut self.open {
            if request.retry_ms.is_some_and(|retry_ms| retry_ms <= now_ms) {
                request.retry_ms = None;
                due.push((*number, request.shard));
            }
        }
        effects.extend(due.into_iter().filter_map(|(request, shard)| self.send(request, shard)));
    }

    /// Begins a phase, which ends when these shards have answered.
    fn ask(
        &mut self,
        phase: TransactionPhase,
        shards: Vec<ShardRef>,
        published: &impl PublishedState,
        effects: &mut Vec<TransactionEffect>,
    ) {
        assert!(self.open.is_empty(), "G1: a phase begins before the last one has ended");
        self.answers.clear();
        self.phase = phase;
        for shard in shards {
            self.next_request += 1;
            let request = OpenRequest { shard, pause_ms: RETRY_PAUSE_MS[0], retry_ms: None };
            self.open.insert(self.next_request, request);
            effects.extend(self.send(self.next_request, shard));
        }
        if self.open.is_empty() {
            self.end_phase(published, effects);
        }
    }

    /// Request of the present phase to a shard.
    fn send(&self, request: GangRequestNumber, shard: ShardRef) -> Option<TransactionEffect> {
        let action = self.phase.action()?;
        let is_there = |member: &&TransactionMember| member.grant.as_ref().is_some_and(|grant| grant.shard == shard);
        let ticket = |member: &TransactionMember| Some((member.id.clone(), member.ticket?));
        let tickets = match action {
            GangAction::Commit => self.members.iter().filter(is_there).filter_map(ticket).collect(),
            _ => Vec::new(),
        };
        Some(TransactionEffect::Send { request, id: self.home.id, shard, action, tickets })
    }

    /// Begins a phase in which the shard of the record is asked.
    fn ask_home(
        &mut self,
        phase: TransactionPhase,
        published: &impl PublishedState,
        effects: &mut Vec<TransactionEffect>,
    ) {
        let home = published.home(self.home);
        self.ask(phase, home.into_iter().collect(), published, effects);
    }

    fn abort(&mut self, reason: AbortReason, published: &impl PublishedState, effects: &mut Vec<TransactionEffect>) {
        self.ask(TransactionPhase::Aborting(reason), self.shards.clone(), published, effects);
    }

    fn forget_record(&mut self, published: &impl PublishedState, effects: &mut Vec<TransactionEffect>) {
        self.ask_home(TransactionPhase::Forgetting, published, effects);
    }

    /// Goes on after every shard of a phase has answered.
    fn end_phase(&mut self, published: &impl PublishedState, effects: &mut Vec<TransactionEffect>) {
        let answers = std::mem::take(&mut self.answers);
        // Answer of the home, which went with its pool if there is none.
        let home_answer = |answers: BTreeMap<_, Result<GangAnswer, RequestError>>| {
            answers.into_values().next().unwrap_or(Err(RequestError::NotFound(ObjectKind::Pool)))
        };
        match std::mem::replace(&mut self.phase, TransactionPhase::Done) {
            TransactionPhase::Recording => match home_answer(answers) {
                Ok(_) => self.ask(TransactionPhase::Counting, self.shards.clone(), published, effects),
                Err(error) if is_rejected_unseen(&error) => {
                    crate::reached!("gang: the home rejects the record");
                    let rejections = self.reject_all(&error);
                    self.abort(AbortReason::Refused(rejections), published, effects);
                }
                // The record may be stored nevertheless, or be in flight.
                Err(_) => {
                    crate::reached!("gang: the outcome of the record is unknown");
                    self.retract_in_doubt(published, effects);
                }
            },
            TransactionPhase::Counting => {
                // A shard that cannot answer is asked again at the commit.
                let holds_all = answers.iter().all(|(shard, answer)| match answer {
                    Ok(GangAnswer::Members(members)) => *members >= self.granted_by(*shard),
                    _ => true,
                });
                if holds_all {
                    self.ask(TransactionPhase::Committing, self.shards.clone(), published, effects);
                } else {
                    crate::reached!("gang: member lost between grant and commit");
                    self.ask_home(TransactionPhase::Retracting, published, effects);
                }
            }
            TransactionPhase::Committing => self.end_commit(answers, published, effects),
            TransactionPhase::CommittingInDoubt => self.end_commit_in_doubt(answers, published, effects),
            TransactionPhase::Retracting => match home_answer(answers) {
                Ok(_) => self.abort(AbortReason::WorkerLost, published, effects),
                Err(_) => self.retract_in_doubt(published, effects),
            },
            TransactionPhase::RetractingInDoubt => match home_answer(answers) {
                // The record went with its pool, if it ever was.
                Ok(_) | Err(RequestError::NotFound(ObjectKind::Pool)) => {
                    self.abort(AbortReason::InDoubt, published, effects);
                }
                Err(_) => {
                    self.phase = TransactionPhase::Suspended;
                    crate::reached!("gang: its home cannot be asked");
                    // Otherwise the shard is refused, or its pool is being deleted.
                    if !published.is_stopped() {
                        self.suspend_open(effects);
                        if published.home(self.home).is_none() {
                            self.abort(AbortReason::InDoubt, published, effects);
                        }
                    }
                }
            },
            TransactionPhase::Aborting(reason) => self.end_abort(reason, effects),
            TransactionPhase::Forgetting => self.finish(),
            phase @ (TransactionPhase::Suspended | TransactionPhase::Done) => {
                unreachable!("G1: {phase:?} waits for no answer")
            }
        }
    }

    fn retract_in_doubt(&mut self, published: &impl PublishedState, effects: &mut Vec<TransactionEffect>) {
        effects.push(TransactionEffect::Decided(GangDecision::InDoubt));
        self.ask_home(TransactionPhase::RetractingInDoubt, published, effects);
    }

    /// Goes on after the first answers to the commit.
    fn end_commit(
        &mut self,
        answers: BTreeMap<ShardRef, Result<GangAnswer, RequestError>>,
        published: &impl PublishedState,
        effects: &mut Vec<TransactionEffect>,
    ) {
        let (mut committed, unanswered) = self.take_committed(answers, |_| false);
        self.release_where(effects, |grant| grant.is_none_or(|grant| !unanswered.contains(&grant.shard)));
        if !unanswered.is_empty() {
            crate::reached!("gang: a commit has no answer");
            effects.push(TransactionEffect::BeginDeadlines(committed.into_values().collect()));
            effects.push(TransactionEffect::Decided(GangDecision::InDoubt));
            return self.ask(TransactionPhase::CommittingInDoubt, unanswered, published, effects);
        }
        crate::reached!("gang: every member is stored as committed");
        // Every member is stored as committed.
        let members = self.members.iter_mut().map(|member| CommittedMember {
            id: member.id.clone(),
            committed: member.grant.as_ref().and_then(|grant| Some(committed.remove(&grant.fence)?.1)),
            granted: member.grant.as_mut().and_then(|grant| grant.answer.take()),
        });
        let decision = GangDecision::Committed(members.collect());
        self.forget_record(published, effects);
        effects.push(TransactionEffect::Decided(decision));
    }

    /// Goes on after the shards have answered that did not at first.
    fn end_commit_in_doubt(
        &mut self,
        answers: BTreeMap<ShardRef, Result<GangAnswer, RequestError>>,
        published: &impl PublishedState,
        effects: &mut Vec<TransactionEffect>,
    ) {
        let went_with_pool = |error: &RequestError| *error == RequestError::NotFound(ObjectKind::Pool);
        let (committed, undecided) = self.take_committed(answers, went_with_pool);
        effects.push(TransactionEffect::BeginDeadlines(committed.into_values().collect()));
        self.release_where(effects, |grant| grant.is_none_or(|grant| !undecided.contains(&grant.shard)));
        if undecided.is_empty() {
            crate::reached!("gang: a commit in doubt is answered at last");
            return self.forget_record(published, effects);
        }
        if !published.is_stopped() {
            // The gang is committed: its home no longer matters to these members.
            self.suspend_open(effects);
            self.finish();
        }
    }

    fn end_abort(&mut self, reason: AbortReason, effects: &mut Vec<TransactionEffect>) {
        if matches!(reason, AbortReason::InDoubt) {
            crate::reached!("gang: aborted after its outcome was in doubt");
            let granted = self.members.iter().filter_map(|member| Some((member.id.clone(), member.grant.as_ref()?)));
            let unreadable = granted.map(|(id, grant)| (id, grant.fence)).collect();
            effects.push(TransactionEffect::EndUnreadable(unreadable));
        }
        self.release_where(effects, |_| true);
        self.finish();
        effects.extend(match reason {
            AbortReason::Refused(rejections) => Some(TransactionEffect::Decided(GangDecision::Refused(rejections))),
            AbortReason::WorkerLost => {
                crate::reached!("gang: aborted because a worker was lost");
                Some(TransactionEffect::Decided(GangDecision::WorkerLost))
            }
            AbortReason::InDoubt => None,
        });
    }

    fn finish(&mut self) {
        let is_open = |member: &TransactionMember| member.fate == MemberFate::Open;
        assert!(!self.members.iter().any(is_open), "G1: a member of a decided gang is neither committed nor vacated");
        self.phase = TransactionPhase::Done;
    }

    fn granted_by(&self, shard: ShardRef) -> usize {
        self.members.iter().filter(|member| member.grant.as_ref().is_some_and(|grant| grant.shard == shard)).count()
    }

    fn reject_all(&self, error: &RequestError) -> BTreeMap<usize, RequestError> {
        (0..self.members.len()).map(|index| (index, error.clone())).collect()
    }

    /// Takes the members that shards have committed, and notes their fate. Returns them with the shards whose answers were
    /// errors, unless `is_final` says that there is nothing left to commit.
    fn take_committed(
        &mut self,
        answers: BTreeMap<ShardRef, Result<GangAnswer, RequestError>>,
        is_final: impl Fn(&RequestError) -> bool,
    ) -> (CommittedClaims, Vec<ShardRef>) {
        let (mut committed, mut undecided) = (CommittedClaims::new(), Vec::new());
        for (shard, answer) in answers {
            match answer {
                Ok(GangAnswer::Committed(members)) => committed.extend(members.into_iter().map(by_fence)),
                Err(error) if is_final(&error) => {}
                Ok(_) | Err(_) => undecided.push(shard),
            }
        }
        for member in &mut self.members {
            if member.grant.as_ref().is_some_and(|grant| committed.contains_key(&grant.fence)) {
                member.fate = MemberFate::Committed;
            }
        }
        (committed, undecided)
    }

    /// Releases the tickets of members whose fate is open and whose grant passes `is_decided`.
    fn release_where(
        &mut self,
        effects: &mut Vec<TransactionEffect>,
        is_decided: impl Fn(Option<&MemberGrant>) -> bool,
    ) {
        let mut tickets = Vec::new();
        for member in &mut self.members {
            if matches!(member.fate, MemberFate::Open | MemberFate::Suspended) && is_decided(member.grant.as_ref()) {
                member.fate = MemberFate::Vacated;
                tickets.extend(member.ticket.map(|ticket| (member.id.clone(), ticket)));
            }
        }
        if !tickets.is_empty() {
            effects.push(TransactionEffect::ReleaseTickets(tickets));
        }
    }

    /// Makes the keys of those members unreadable whose fate is open.
    fn suspend_open(&mut self, effects: &mut Vec<TransactionEffect>) {
        let mut keys = Vec::new();
        for member in self.members.iter_mut().filter(|member| member.fate == MemberFate::Open) {
            member.fate = MemberFate::Suspended;
            if let (Some(ticket), Some(grant)) = (member.ticket, &member.grant) {
                keys.push((member.id.clone(), ticket, grant.shard, grant.fence));
            }
        }
        effects.push(TransactionEffect::Suspend(keys));
    }
}

impl TransactionPhase {
    /// Action that is asked of each shard of the phase.
    const fn action(&self) -> Option<GangAction> {
        match self {
            Self::Recording => Some(GangAction::Record),
            Self::Counting => Some(GangAction::Count),
            Self::Committing | Self::CommittingInDoubt => Some(GangAction::Commit),
            Self::Forgetting => Some(GangAction::Forget),
            Self::Retracting | Self::RetractingInDoubt => Some(GangAction::Retract),
            Self::Aborting(_) => Some(GangAction::Abort),
            Self::Suspended | Self::Done => None,
        }
    }

    const fn retry_until(&self) -> RetryUntil {
        match self {
            Self::Recording | Self::Retracting | Self::Suspended | Self::Done => RetryUntil::Answered,
            Self::Counting | Self::Committing | Self::Forgetting | Self::Aborting(_) => RetryUntil::Decided,
            Self::CommittingInDoubt | Self::RetractingInDoubt => RetryUntil::Stored,
        }
    }
}

fn by_fence((id, answer): (ClaimId, ClaimAnswer)) -> (Fence, (ClaimId, ClaimAnswer)) {
    (answer.grant.handle.fence, (id, answer))
}

/// Whether a request must be repeated after this answer.
fn must_repeat(outcome: &Result<GangAnswer, RequestError>, until: RetryUntil) -> bool {
    match outcome {
        _ if until == RetryUntil::Answered => false,
        Err(RequestError::DeadlineExceeded) => true,
        Err(RequestError::Unavailable(reason)) => match reason {
            UnavailableReason::Loading | UnavailableReason::Overloaded => true,
            // The decision stands; only its durability is unknown.
            UnavailableReason::Store => until == RetryUntil::Stored,
            UnavailableReason::Fenced | UnavailableReason::Stopping => false,
        },
        _ => false,
    }
}

/// Whether a request was rejected before its shard saw it.
const fn is_rejected_unseen(error: &RequestError) -> bool {
    matches!(
        error,
        RequestError::NotFound(_)
            | RequestError::Unavailable(
                UnavailableReason::Loading | UnavailableReason::Overloaded | UnavailableReason::Stopping
            )
    )
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
pub(super) mod tests;
