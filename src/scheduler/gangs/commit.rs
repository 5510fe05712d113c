//! How a gang whose members are granted is committed, or given up: a two-phase commit over the shards that hold them.
//!
//! | step | what the caller is told if it fails | what becomes of the gang |
//! |---|---|---|
//! | a member is refused | why | its members are given back |
//! | the home records the gang | outcome unknown | in doubt: the home retracts it first, then its members are given back ([`super::doubt`]) |
//! | a member's worker has gone meanwhile | nothing: it is placed anew | the same |
//! | a shard commits its members | outcome unknown | it is committed; the shard is asked until it answers |
//!
//! The gang is committed when the store has its home's record (`G1`). So where it is not known whether it has, nothing is
//! undone before the store has the retraction: a crash in between finds all of the gang or nothing. A worker that goes after
//! its shard has counted its members takes its member with it like any claim: the answer shows it as lost.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::super::wait;
use super::doubt::doubtful;
use super::{Member, Outcomes, Scheduler};
use crate::admission::keys::{ShardRef, Ticket};
use crate::engine::GangAct;
use crate::metrics::ShardState;
use crate::model::GangRef;
use crate::model::rejection::{Refusal, Unavailable, What};
use crate::model::{ClaimId, ClaimState, Fence, Taken};
use crate::shard::{ClaimAnswer, Command, GangItem, Outcome, Payload, Reply};

/// How long a step that was not answered waits before it goes again; doubled each time, up to the second.
const AGAIN: [Duration; 2] = [Duration::from_millis(2), Duration::from_secs(1)];

/// Tickets of a gang's members, by the shards that hold them.
type ByShard = BTreeMap<ShardRef, Vec<(ClaimId, Ticket)>>;

/// Outcome of an attempt to place a gang.
pub(super) enum Decision {
    /// The gang is committed.
    Made(Outcomes),
    /// Nothing of it is left: why, by member.
    Refused(BTreeMap<usize, Refusal>),
    /// Nothing of it is left, because a worker went before it was committed.
    WorkerGone,
    /// Nobody knows yet.
    InDoubt,
}

/// Until when a step is repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The shard has decided it.
    Decided,
    /// The store has it.
    Stored,
}

/// The members of a gang as they were granted.
struct Granted {
    by_shard: ByShard,
    /// By member.
    answers: Vec<Option<ClaimAnswer>>,
    refusals: BTreeMap<usize, Refusal>,
    /// Of some member it is not known where it is.
    unknown: bool,
}

impl Granted {
    fn of(members: &[Member], outcomes: Vec<Outcome>) -> Self {
        let answers = std::iter::repeat_with(|| None).take(members.len()).collect();
        let mut granted = Self { by_shard: ByShard::new(), answers, refusals: BTreeMap::new(), unknown: false };
        for (at, (member, outcome)) in members.iter().zip(outcomes).enumerate() {
            match outcome {
                Ok(Payload::Claim(answer)) => {
                    granted.by_shard.entry(answer.shard).or_default().push((member.id.clone(), member.ticket));
                    granted.answers[at] = Some(answer);
                }
                Ok(_) => {}
                Err(refusal) => {
                    granted.unknown |= !matches!(refusal, Refusal::Exhausted(_) | Refusal::Unsatisfiable);
                    granted.refusals.insert(at, refusal);
                }
            }
        }
        granted
    }
}

/// Whether a step was refused before its shard saw it.
const fn was_not_taken(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::NotFound(_)
            | Refusal::Unavailable(Unavailable::Loading | Unavailable::Overloaded | Unavailable::Stopping)
    )
}

impl Scheduler {
    /// Commits a gang all of whose members were granted, and gives any other back.
    pub(super) async fn decide(&self, home: GangRef, members: &[Member], outcomes: Vec<Outcome>) -> Decision {
        let Granted { by_shard, answers, mut refusals, unknown } = Granted::of(members, outcomes);
        let shards: Vec<ShardRef> = if unknown { self.shards_of(members) } else { by_shard.keys().copied().collect() };
        let home_shard = self.home_shard(home);
        if refusals.is_empty() && home_shard.is_none() {
            (0..members.len()).for_each(|at| drop(refusals.insert(at, Refusal::NotFound(What::Pool))));
        }
        let Some(home_shard) = home_shard.filter(|_| refusals.is_empty()) else {
            // No record of it was ever sent.
            self.abort(home.id, shards).await;
            self.vacate(members);
            return Decision::Refused(refusals);
        };
        match self.step(home_shard, home.id, GangAct::Record, Vec::new()).await {
            Ok(_) => {}
            Err(refusal) if was_not_taken(&refusal) => {
                self.abort(home.id, shards).await;
                self.vacate(members);
                return Decision::Refused((0..members.len()).map(|at| (at, refusal.clone())).collect());
            }
            Err(_) => {
                // The record may be stored in spite of that, or be on its way.
                self.spawn_retraction(home_shard, doubtful(home, members, &answers));
                return Decision::InDoubt;
            }
        }
        if !self.holds_all(home.id, &by_shard).await {
            if self.step(home_shard, home.id, GangAct::Retract, Vec::new()).await.is_err() {
                self.spawn_retraction(home_shard, doubtful(home, members, &answers));
                return Decision::InDoubt;
            }
            self.abort(home.id, shards).await;
            self.vacate(members);
            return Decision::WorkerGone;
        }
        self.commit(home, home_shard, members, by_shard, answers).await
    }

    /// Makes the members of a recorded gang claims like any other.
    async fn commit(
        &self,
        home: GangRef,
        home_shard: ShardRef,
        members: &[Member],
        by_shard: ByShard,
        answers: Vec<Option<ClaimAnswer>>,
    ) -> Decision {
        let commits = by_shard.iter().map(|(&shard, tickets)| async move {
            (shard, self.insist(shard, home.id, GangAct::Commit, tickets, Until::Decided).await)
        });
        let mut committed: HashMap<ClaimId, ClaimAnswer> = HashMap::new();
        let mut unanswered = ByShard::new();
        for (shard, outcome) in futures::future::join_all(commits).await {
            match outcome {
                Ok(Payload::Gang(claims)) => committed.extend(claims),
                Ok(_) => {}
                Err(_) => drop(unanswered.insert(shard, by_shard[&shard].clone())),
            }
        }
        let dispatch = self.dispatch();
        let mut departures = dispatch.departures(0);
        committed.iter_mut().for_each(|(id, answer)| dispatch.date(&mut departures, id, answer));
        dispatch.depart(departures);
        if !unanswered.is_empty() {
            self.spawn_commit(home_shard, unanswered, doubtful(home, members, &answers));
            return Decision::InDoubt;
        }
        // Every member is stored as committed.
        if self.step(home_shard, home.id, GangAct::Forget, Vec::new()).await.is_err() {
            tokio::spawn(self.clone().forget_gangs(vec![(home_shard, home.id)]));
        }
        let mut outcomes = Vec::with_capacity(members.len());
        for (member, granted) in members.iter().zip(answers) {
            outcomes.push(match committed.remove(&member.id) {
                Some(answer) => self.taken_in(&member.id, answer),
                None => self.committed_before(member, granted).await,
            });
        }
        Decision::Made(outcomes)
    }

    fn taken_in(&self, id: &ClaimId, answer: ClaimAnswer) -> Result<Taken, Refusal> {
        self.view_in(id, answer.shard.pool, answer).map(|claim| Taken { claim, created: true })
    }

    /// A member that its shard did not commit now: it did before it panicked, or the member's worker has gone since.
    async fn committed_before(&self, member: &Member, granted: Option<ClaimAnswer>) -> Result<Taken, Refusal> {
        self.vacate([member]);
        let mut lost = granted.ok_or(Refusal::DeadlineExceeded)?;
        match self.get_claim(&member.id).await {
            Ok(claim) if claim.fence == lost.grant.place.fence => Ok(Taken { claim, created: true }),
            _ => {
                lost.grant.end_as(ClaimState::Lost);
                lost.expires_at_ms = None;
                self.taken_in(&member.id, lost)
            }
        }
    }

    /// Whether the shards hold all members that they granted. A shard that cannot say is asked again at the commit.
    async fn holds_all(&self, id: Fence, by_shard: &ByShard) -> bool {
        let counts = by_shard.iter().map(|(&shard, tickets)| async move {
            match self.insist(shard, id, GangAct::Count, &[], Until::Decided).await {
                Ok(Payload::Members(held)) => held >= tickets.len(),
                _ => true,
            }
        });
        futures::future::join_all(counts).await.into_iter().all(|holds| holds)
    }

    /// Gives the members of a gang back whose record the store does not have.
    pub(super) async fn abort(&self, id: Fence, shards: Vec<ShardRef>) {
        let aborts = shards.into_iter().map(|shard| self.insist(shard, id, GangAct::Abort, &[], Until::Decided));
        futures::future::join_all(aborts).await;
    }

    /// The shard that records the gang; none if its pool is gone.
    pub(super) fn home_shard(&self, home: GangRef) -> Option<ShardRef> {
        let pools = self.dispatch().pools.load();
        let pool = pools.iter().find(|pool| pool.uid == home.pool)?;
        pool.ports.get(home.shard as usize).map(|port| port.shard)
    }

    /// All shards that may hold a member.
    fn shards_of(&self, members: &[Member]) -> Vec<ShardRef> {
        let pools = self.dispatch().pools.load();
        let mut numbers: Vec<u32> = members.iter().flat_map(|member| member.pools.iter().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let of = numbers.into_iter().filter_map(|number| pools.at(number)).flat_map(|pool| pool.ports.iter());
        of.map(|port| port.shard).collect()
    }

    /// Asks a shard for a step of a gang.
    pub(super) async fn step(
        &self,
        shard: ShardRef,
        id: Fence,
        act: GangAct,
        tickets: Vec<(ClaimId, Ticket)>,
    ) -> Outcome {
        let port = self.dispatch().pools.load().port(shard).cloned();
        let port = port.ok_or(Refusal::NotFound(What::Pool))?;
        let (reply, answer) = Reply::one();
        port.ask(Command::Gang(Box::new(GangItem { id, act, tickets, reply })));
        wait(answer).await
    }

    /// Repeats a step until it is answered, or nobody can answer it before a restart.
    pub(super) async fn insist(
        &self,
        shard: ShardRef,
        id: Fence,
        act: GangAct,
        tickets: &[(ClaimId, Ticket)],
        until: Until,
    ) -> Outcome {
        let [mut pause, longest] = AGAIN;
        loop {
            let outcome = self.step(shard, id, act, tickets.to_vec()).await;
            let again = match &outcome {
                Err(Refusal::DeadlineExceeded) => true,
                Err(Refusal::Unavailable(why)) => match why {
                    Unavailable::Loading | Unavailable::Overloaded => true,
                    // What was decided stays, only that it is stored is not known.
                    Unavailable::Store => until == Until::Stored,
                    Unavailable::Fenced | Unavailable::Stopping => false,
                },
                _ => false,
            };
            // A shard that does not come back holds nobody up: what it has is recovery's matter.
            let state = self.dispatch().pools.load().port(shard).map(|port| port.state());
            let comes_back = matches!(state, Some(ShardState::Serving | ShardState::Loading));
            if !again || !comes_back || self.dispatch().is_stopping() || self.dispatch().journal.fenced() {
                return outcome;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }
}
