//! Commit of a gang whose members are granted, or its abort: a two-phase commit over the shards that hold the members.
//!
//! | event | reply if it fails | fate of the gang |
//! |---|---|---|
//! | a member is rejected | the reason | its members are rolled back |
//! | the home records the gang | outcome unknown | in doubt: the home retracts it first, then its members are rolled back ([`super::in_doubt`]) |
//! | a member's worker is lost before the commit | none: the gang is placed again | as above |
//! | a shard commits its members | outcome unknown | committed; the shard is asked until it answers |
//!
//! The gang is committed when the store has the record of its home (`G1`). So while it is unknown whether the store
//! has it, nothing is undone before the retraction is stored: a crash in between finds all of the gang or nothing. A
//! worker that is lost after its shard has counted the members takes its member with it like any claim: the reply
//! shows it as lost.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::recv_outcome;
use super::in_doubt::in_doubt_gang;
use super::{GangMember, GangResults, Scheduler};
use crate::metrics::ShardState;
use crate::model::GangRef;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::model::{ClaimId, ClaimResult, ClaimState, Fence, UnreadReply};
use crate::shard::{
    ClaimAnswer, ClaimReply, Command, CommandReply, GangItem, GangRequest, KeyTicket, ShardOutcome, ShardRef,
};

/// First and longest pause before an unanswered action is retried; doubled each time.
const RETRY_BACKOFF: [Duration; 2] = [Duration::from_millis(2), Duration::from_secs(1)];

/// Tickets of a gang's members, by the shards that hold them.
type TicketsByShard = BTreeMap<ShardRef, Vec<(ClaimId, KeyTicket)>>;

/// Outcome of an attempt to place a gang.
pub(super) enum GangDecision {
    /// The gang is committed.
    Committed(GangResults),
    /// The gang was aborted, with the reason by member.
    Refused(BTreeMap<usize, RequestError>),
    /// The gang was aborted, because a worker was lost before the commit.
    WorkerLost,
    /// The outcome is not known yet.
    InDoubt,
}

/// Condition that ends the retries of an action.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryUntil {
    /// The shard has decided the action.
    Decided,
    /// The store has the action's record.
    Stored,
}

/// Members of a gang as they were granted.
struct GrantedMembers {
    by_shard: TicketsByShard,
    /// Grants in the order of the members.
    answers: Vec<Option<ClaimAnswer>>,
    rejections: BTreeMap<usize, RequestError>,
    /// Whether some member may be held by an unknown shard.
    unknown: bool,
}

impl GrantedMembers {
    fn of(members: &[GangMember], outcomes: Vec<ShardOutcome>) -> Self {
        let answers = std::iter::repeat_with(|| None).take(members.len()).collect();
        let mut granted =
            Self { by_shard: TicketsByShard::new(), answers, rejections: BTreeMap::new(), unknown: false };
        for (index, (member, outcome)) in members.iter().zip(outcomes).enumerate() {
            match outcome.and_then(ClaimReply::disclose) {
                Ok(answer) => {
                    let ticket = member.ticket.map(|ticket| (member.id.clone(), ticket));
                    granted.by_shard.entry(answer.shard).or_default().extend(ticket);
                    granted.answers[index] = Some(answer);
                }
                Err(error) => {
                    granted.unknown |= !matches!(error, RequestError::Exhausted(_) | RequestError::Unsatisfiable);
                    granted.rejections.insert(index, error);
                }
            }
        }
        granted
    }
}

/// Whether an action was rejected before its shard saw it.
const fn is_rejected_unseen(error: &RequestError) -> bool {
    matches!(
        error,
        RequestError::NotFound(_)
            | RequestError::Unavailable(
                UnavailableReason::Loading | UnavailableReason::Overloaded | UnavailableReason::Stopping
            )
    )
}

impl Scheduler {
    /// Commits a gang if all members were granted, and aborts it otherwise.
    pub(super) async fn decide_gang(
        &self,
        home: GangRef,
        members: &[GangMember],
        outcomes: Vec<ShardOutcome>,
    ) -> GangDecision {
        let GrantedMembers { by_shard, answers, mut rejections, unknown } = GrantedMembers::of(members, outcomes);
        let shards: Vec<ShardRef> =
            if unknown { self.candidate_shards(members) } else { by_shard.keys().copied().collect() };
        let home_shard = self.home_shard(home);
        if rejections.is_empty() && home_shard.is_none() {
            (0..members.len())
                .for_each(|index| drop(rejections.insert(index, RequestError::NotFound(ObjectKind::Pool))));
        }
        let Some(home_shard) = home_shard.filter(|_| rejections.is_empty()) else {
            // No record of the gang was ever sent.
            self.abort_gang(home.id, shards).await;
            self.release_tickets(members);
            return GangDecision::Refused(rejections);
        };
        match self.send_gang_request(home_shard, home.id, GangRequest::Record).await {
            Ok(()) => {}
            Err(error) if is_rejected_unseen(&error) => {
                self.abort_gang(home.id, shards).await;
                self.release_tickets(members);
                return GangDecision::Refused((0..members.len()).map(|index| (index, error.clone())).collect());
            }
            Err(_) => {
                // The record may be stored nevertheless, or be in flight.
                self.spawn_retraction(home_shard, in_doubt_gang(home, members, &answers));
                return GangDecision::InDoubt;
            }
        }
        if !self.holds_all(home.id, &by_shard).await {
            if self.send_gang_request(home_shard, home.id, GangRequest::Retract).await.is_err() {
                self.spawn_retraction(home_shard, in_doubt_gang(home, members, &answers));
                return GangDecision::InDoubt;
            }
            self.abort_gang(home.id, shards).await;
            self.release_tickets(members);
            return GangDecision::WorkerLost;
        }
        self.commit_gang(home, home_shard, members, by_shard, answers).await
    }

    /// Makes the members of a recorded gang ordinary claims.
    async fn commit_gang(
        &self,
        home: GangRef,
        home_shard: ShardRef,
        members: &[GangMember],
        by_shard: TicketsByShard,
        answers: Vec<Option<ClaimAnswer>>,
    ) -> GangDecision {
        let commits = by_shard.iter().map(|(&shard, tickets)| async move {
            let commit = |reply| GangRequest::Commit(tickets.clone(), reply);
            (shard, self.retry_gang_request(shard, home.id, RetryUntil::Decided, commit).await)
        });
        let mut committed: HashMap<ClaimId, ClaimAnswer> = HashMap::new();
        let mut unanswered = TicketsByShard::new();
        for (shard, outcome) in futures::future::join_all(commits).await {
            match outcome {
                Ok(claims) => committed.extend(claims),
                Err(_) => drop(unanswered.insert(shard, by_shard[&shard].clone())),
            }
        }
        let dispatch = self.dispatch();
        let mut sent = dispatch.begin_reply(0);
        committed.iter_mut().for_each(|(id, answer)| dispatch.set_first_deadline(&mut sent, id, answer));
        dispatch.notify_reply_sent(sent);
        if !unanswered.is_empty() {
            self.spawn_commit(home_shard, unanswered, in_doubt_gang(home, members, &answers));
            return GangDecision::InDoubt;
        }
        // Every member is stored as committed.
        if self.send_gang_request(home_shard, home.id, GangRequest::Forget).await.is_err() {
            tokio::spawn(self.clone().forget_gangs(vec![(home_shard, home.id)]));
        }
        let mut outcomes = Vec::with_capacity(members.len());
        for (member, granted) in members.iter().zip(answers) {
            outcomes.push(match committed.remove(&member.id) {
                Some(answer) => self.member_result(&member.id, answer),
                None => self.recheck_member(member, granted).await,
            });
        }
        GangDecision::Committed(outcomes)
    }

    fn member_result(&self, id: &ClaimId, answer: ClaimAnswer) -> Result<ClaimResult, RequestError> {
        self.view_in(id, answer).map(|claim| ClaimResult { claim, created: true })
    }

    /// Result of a member that its shard did not commit now: it was committed before the shard panicked, or its worker
    /// was lost since.
    async fn recheck_member(
        &self,
        member: &GangMember,
        granted: Option<ClaimAnswer>,
    ) -> Result<ClaimResult, RequestError> {
        self.release_tickets([member]);
        let mut lost = granted.ok_or(RequestError::DeadlineExceeded)?;
        match self.get_claim(&member.id).await {
            Ok(claim) if claim.fence == lost.grant.handle.fence => {
                // Its caller is shown a grant, and no other answer beside it.
                self.dispatch().discard_reply(&member.id, claim.fence, UnreadReply::Reference);
                Ok(ClaimResult { claim, created: true })
            }
            _ => {
                lost.grant.mark_ended(ClaimState::Lost);
                self.member_result(&member.id, lost)
            }
        }
    }

    /// Whether the shards hold all members that they granted. A shard that cannot answer is asked again at the commit.
    async fn holds_all(&self, id: Fence, by_shard: &TicketsByShard) -> bool {
        let counts = by_shard.iter().map(|(&shard, tickets)| async move {
            match self.retry_gang_request(shard, id, RetryUntil::Decided, GangRequest::Count).await {
                Ok(count) => count >= tickets.len(),
                Err(_) => true,
            }
        });
        futures::future::join_all(counts).await.into_iter().all(|holds| holds)
    }

    /// Rolls back the members of a gang that has no stored record.
    pub(super) async fn abort_gang(&self, id: Fence, shards: Vec<ShardRef>) {
        let aborts =
            shards.into_iter().map(|shard| self.retry_gang_request(shard, id, RetryUntil::Decided, GangRequest::Abort));
        futures::future::join_all(aborts).await;
    }

    /// Shard that records the gang; `None` if its pool is gone.
    pub(super) fn home_shard(&self, home: GangRef) -> Option<ShardRef> {
        let pools = self.dispatch().pools.load();
        let pool = pools.iter().find(|pool| pool.uid == home.pool)?;
        pool.shards.get(home.shard as usize).map(|handle| handle.shard)
    }

    /// All shards that may hold a member.
    fn candidate_shards(&self, members: &[GangMember]) -> Vec<ShardRef> {
        let pools = self.dispatch().pools.load();
        let mut numbers: Vec<u32> = members.iter().flat_map(|member| member.pools.iter().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let shards =
            numbers.into_iter().filter_map(|number| pools.by_number(number)).flat_map(|pool| pool.shards.iter());
        shards.map(|handle| handle.shard).collect()
    }

    /// Sends an action of a gang to a shard.
    pub(super) async fn send_gang_request<T>(
        &self,
        shard: ShardRef,
        id: Fence,
        request: impl FnOnce(CommandReply<T>) -> GangRequest,
    ) -> Result<T, RequestError> {
        let handle = self.dispatch().pools.load().shard(shard).cloned();
        let handle = handle.ok_or(RequestError::NotFound(ObjectKind::Pool))?;
        let (reply, answer) = oneshot::channel();
        handle.push_or_reject(Command::Gang(Box::new(GangItem { id, request: request(reply) })));
        recv_outcome(answer).await
    }

    /// Repeats an action until it is answered, or cannot be answered before a restart.
    pub(super) async fn retry_gang_request<T>(
        &self,
        shard: ShardRef,
        id: Fence,
        until: RetryUntil,
        request: impl Fn(CommandReply<T>) -> GangRequest,
    ) -> Result<T, RequestError> {
        let [mut pause, max] = RETRY_BACKOFF;
        loop {
            let outcome = self.send_gang_request(shard, id, &request).await;
            let must_retry = match &outcome {
                Err(RequestError::DeadlineExceeded) => true,
                Err(RequestError::Unavailable(reason)) => match reason {
                    UnavailableReason::Loading | UnavailableReason::Overloaded => true,
                    // The decision stands; only its durability is unknown.
                    UnavailableReason::Store => until == RetryUntil::Stored,
                    UnavailableReason::Fenced | UnavailableReason::Stopping => false,
                },
                _ => false,
            };
            // A shard that does not come back must not block others: its rows are handled by recovery.
            let state = self.dispatch().pools.load().shard(shard).map(|handle| handle.state());
            let comes_back = matches!(state, Some(ShardState::Serving | ShardState::Loading));
            if !must_retry || !comes_back || self.dispatch().is_stopping() || self.dispatch().journal.is_fenced() {
                return outcome;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(max);
        }
    }
}
