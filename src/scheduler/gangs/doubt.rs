//! Resolution of gangs in doubt, whose callers have been told that the outcome is unknown: they are taken back, or
//! committed in the end, as soon as the shards that know can be asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commit::Until;
use super::{Member, Scheduler};
use crate::admission::dispatch::{DoubtfulGang, DoubtfulMember};
use crate::admission::keys::{ShardRef, Ticket};
use crate::engine::GangAct;
use crate::model::GangRef;
use crate::model::rejection::{Refusal, Unavailable, What};
use crate::model::{ClaimId, Fence};
use crate::persist::journal::Outbox;
use crate::shard::{ClaimAnswer, Payload};

/// The gang with the members that were granted.
pub(super) fn doubtful(home: GangRef, members: &[Member], answers: &[Option<ClaimAnswer>]) -> DoubtfulGang {
    let granted = members.iter().zip(answers).filter_map(|(member, answer)| {
        let answer = answer.as_ref()?;
        let (id, ticket) = (member.id.clone(), Some(member.ticket));
        Some(DoubtfulMember { id, ticket, shard: answer.shard, fence: answer.grant.place.fence })
    });
    DoubtfulGang { home, members: granted.collect() }
}

impl Scheduler {
    /// Takes a gang back whose record may be stored.
    pub(super) fn spawn_retraction(&self, home_shard: ShardRef, gang: DoubtfulGang) {
        let scheduler = self.clone();
        tokio::spawn(async move {
            match scheduler.insist(home_shard, gang.home.id, GangAct::Retract, &[], Until::Stored).await {
                // With its pool the record is gone.
                Ok(_) | Err(Refusal::NotFound(What::Pool)) => scheduler.undo(gang).await,
                // Its shard is refused, or its pool is being deleted. The rest is the next start's matter.
                Err(_) if scheduler.is_over() => {}
                Err(_) => scheduler.suspend(gang).await,
            }
        });
    }

    /// Commits the members of a recorded gang whose shards did not answer, and forgets the gang when the store has all.
    pub(super) fn spawn_commit(
        &self,
        home_shard: ShardRef,
        unanswered: BTreeMap<ShardRef, Vec<(ClaimId, Ticket)>>,
        mut gang: DoubtfulGang,
    ) {
        let scheduler = self.clone();
        tokio::spawn(async move {
            let id = gang.home.id;
            // Of the others those are not held whose workers have gone.
            let answered = gang.members.extract_if(.., |member| !unanswered.contains_key(&member.shard));
            scheduler.give_up_tickets(answered.collect());
            let commits = unanswered.iter().map(|(&shard, tickets)| {
                let scheduler = &scheduler;
                async move { (shard, scheduler.insist(shard, id, GangAct::Commit, tickets, Until::Stored).await) }
            });
            let outcomes = futures::future::join_all(commits).await;
            let dispatch = scheduler.dispatch();
            let mut departures = dispatch.departures(0);
            let mut done = Vec::new();
            for (shard, outcome) in outcomes {
                match outcome {
                    Ok(Payload::Gang(mut claims)) => {
                        claims.iter_mut().for_each(|(id, answer)| dispatch.date(&mut departures, id, answer));
                        done.push(shard);
                    }
                    Ok(_) | Err(Refusal::NotFound(What::Pool)) => done.push(shard),
                    Err(_) => {}
                }
            }
            dispatch.depart(departures);
            let decided = gang.members.extract_if(.., |member| done.contains(&member.shard));
            scheduler.give_up_tickets(decided.collect());
            if done.len() == unanswered.len() {
                let _ = scheduler.insist(home_shard, id, GangAct::Forget, &[], Until::Decided).await;
            } else if !scheduler.is_over() {
                // It is committed: what its home becomes changes nothing for them.
                scheduler.suspend_keys(&gang.members);
            }
        });
    }

    /// Has gangs forgotten whose members the store has as committed.
    pub(in crate::scheduler) async fn forget_gangs(self, gangs: Vec<(ShardRef, Fence)>) {
        if gangs.is_empty() {
            return;
        }
        let pools = self.dispatch().pools.load_full();
        let ports = pools.iter().flat_map(|pool| pool.ports.iter());
        let outboxes: Vec<Arc<Outbox>> = ports.map(|port| Arc::clone(&port.outbox)).collect();
        self.dispatch().journal.flushed(outboxes).await;
        for (shard, id) in gangs {
            let _ = self.insist(shard, id, GangAct::Forget, &[], Until::Decided).await;
        }
    }

    /// Nothing is decided any more by this process.
    fn is_over(&self) -> bool {
        self.dispatch().is_stopping() || self.dispatch().journal.fenced()
    }

    /// Gives the members of a gang back that is not committed, and never will be.
    async fn undo(&self, gang: DoubtfulGang) {
        self.abort(gang.home.id, gang.shards()).await;
        for member in &gang.members {
            self.dispatch().keys.end_unreadable(&member.id, member.fence);
        }
        self.give_up_tickets(gang.members);
    }

    /// Gives back the members of gangs in doubt whose home was in the deleted pool with this uid: their records went with it.
    pub(in crate::scheduler) async fn undo_gangs_of(&self, pool: u64) {
        let gangs: Vec<DoubtfulGang> =
            self.dispatch().gangs_in_doubt().extract_if(.., |gang| gang.home.pool == pool).collect();
        for gang in gangs {
            self.undo(gang).await;
        }
    }

    /// The keys of a gang cannot be decided before a restart, or until the pool of its home is deleted.
    async fn suspend(&self, gang: DoubtfulGang) {
        self.suspend_keys(&gang.members);
        let home = gang.home;
        self.dispatch().gangs_in_doubt().push(gang);
        if self.home_shard(home).is_none() {
            // The pool was deleted meanwhile.
            self.undo_gangs_of(home.pool).await;
        }
    }

    fn suspend_keys(&self, members: &[DoubtfulMember]) {
        for member in members {
            let Some(ticket) = member.ticket else { continue };
            for joiner in self.dispatch().keys.suspend(&member.id, ticket, member.shard, member.fence) {
                joiner.reply.send(Err(Refusal::Unavailable(Unavailable::Loading)));
            }
        }
    }

    fn give_up_tickets(&self, members: Vec<DoubtfulMember>) {
        for DoubtfulMember { id, ticket, .. } in members {
            if let Some(next) = ticket.and_then(|ticket| self.dispatch().keys.vacate(&id, ticket)) {
                self.dispatch().route(next);
            }
        }
    }
}
