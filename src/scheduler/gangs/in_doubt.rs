//! Resolution of gangs in doubt, whose outcome was not disclosed. They are retracted or committed as soon as the
//! shards that know can be asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::commit::RetryUntil;
use super::{GangMember, Scheduler};
use crate::admission::dispatch::{InDoubtGang, InDoubtMember};
use crate::model::GangRef;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::model::{ClaimId, Fence};
use crate::persist::journal::Outbox;
use crate::shard::{ClaimAnswer, GangRequest, KeyTicket, ShardRef};

/// Builds the gang in doubt from the members that were granted.
pub(super) fn in_doubt_gang(home: GangRef, members: &[GangMember], answers: &[Option<ClaimAnswer>]) -> InDoubtGang {
    let granted = members.iter().zip(answers).filter_map(|(member, answer)| {
        let answer = answer.as_ref()?;
        let (id, ticket) = (member.id.clone(), member.ticket);
        Some(InDoubtMember { id, ticket, shard: answer.shard, fence: answer.grant.handle.fence })
    });
    InDoubtGang { home, members: granted.collect() }
}

impl Scheduler {
    /// Retracts a gang whose record may be stored.
    pub(super) fn spawn_retraction(&self, home_shard: ShardRef, gang: InDoubtGang) {
        let scheduler = self.clone();
        tokio::spawn(async move {
            match scheduler.retry_gang_request(home_shard, gang.home.id, RetryUntil::Stored, GangRequest::Retract).await
            {
                // The record went with its pool.
                Ok(()) | Err(RequestError::NotFound(ObjectKind::Pool)) => scheduler.abort_in_doubt(gang).await,
                // The shard is refused, or its pool is being deleted. The next start resolves the gang.
                Err(_) if scheduler.is_stopped() => {}
                Err(_) => scheduler.suspend_gang(gang).await,
            }
        });
    }

    /// Commits the members of a recorded gang whose shards did not answer, and forgets the gang once all are stored.
    pub(super) fn spawn_commit(
        &self,
        home_shard: ShardRef,
        unanswered: BTreeMap<ShardRef, Vec<(ClaimId, KeyTicket)>>,
        mut gang: InDoubtGang,
    ) {
        let scheduler = self.clone();
        tokio::spawn(async move {
            let id = gang.home.id;
            // Members of shards that answered are free if their workers were lost.
            let answered = gang.members.extract_if(.., |member| !unanswered.contains_key(&member.shard));
            scheduler.release_member_tickets(answered.collect());
            let commits = unanswered.iter().map(|(&shard, tickets)| {
                let scheduler = &scheduler;
                async move {
                    let commit = |reply| GangRequest::Commit(tickets.clone(), reply);
                    (shard, scheduler.retry_gang_request(shard, id, RetryUntil::Stored, commit).await)
                }
            });
            let outcomes = futures::future::join_all(commits).await;
            let dispatch = scheduler.dispatch();
            let mut sent = dispatch.begin_reply(0);
            let mut decided_shards = Vec::new();
            for (shard, outcome) in outcomes {
                match outcome {
                    Ok(mut claims) => {
                        claims.iter_mut().for_each(|(id, answer)| dispatch.set_first_deadline(&mut sent, id, answer));
                        decided_shards.push(shard);
                    }
                    Err(RequestError::NotFound(ObjectKind::Pool)) => decided_shards.push(shard),
                    Err(_) => {}
                }
            }
            dispatch.notify_reply_sent(sent);
            let decided = gang.members.extract_if(.., |member| decided_shards.contains(&member.shard));
            scheduler.release_member_tickets(decided.collect());
            if decided_shards.len() == unanswered.len() {
                let _ = scheduler.retry_gang_request(home_shard, id, RetryUntil::Decided, GangRequest::Forget).await;
            } else if !scheduler.is_stopped() {
                // The gang is committed: its home no longer matters to these members.
                scheduler.suspend_keys(&gang.members);
            }
        });
    }

    /// Forgets gangs whose members are all stored as committed.
    pub(in crate::scheduler) async fn forget_gangs(self, gangs: Vec<(ShardRef, Fence)>) {
        if gangs.is_empty() {
            return;
        }
        let pools = self.dispatch().pools.load_full();
        let handles = pools.iter().flat_map(|pool| pool.shards.iter());
        let outboxes: Vec<Arc<Outbox>> = handles.map(|handle| Arc::clone(&handle.outbox)).collect();
        self.dispatch().journal.wait_flushed(outboxes).await;
        for (shard, id) in gangs {
            let _ = self.retry_gang_request(shard, id, RetryUntil::Decided, GangRequest::Forget).await;
        }
    }

    /// Whether this process no longer decides anything.
    fn is_stopped(&self) -> bool {
        self.dispatch().is_stopping() || self.dispatch().journal.is_fenced()
    }

    /// Rolls back the members of a gang that is not committed and never will be.
    async fn abort_in_doubt(&self, gang: InDoubtGang) {
        self.abort_gang(gang.home.id, gang.shards()).await;
        for member in &gang.members {
            self.dispatch().keys.end_unreadable(&member.id, member.fence);
        }
        self.release_member_tickets(gang.members);
    }

    /// Rolls back gangs in doubt whose home was in the deleted pool with this uid: their records went with it.
    pub(in crate::scheduler) async fn abort_gangs_of_pool(&self, pool: u64) {
        let gangs: Vec<InDoubtGang> =
            self.dispatch().gangs_in_doubt().extract_if(.., |gang| gang.home.pool == pool).collect();
        for gang in gangs {
            self.abort_in_doubt(gang).await;
        }
    }

    /// Makes the keys of a gang unreadable until a restart, or until the pool of its home is deleted.
    async fn suspend_gang(&self, gang: InDoubtGang) {
        self.suspend_keys(&gang.members);
        let home = gang.home;
        self.dispatch().gangs_in_doubt().push(gang);
        if self.home_shard(home).is_none() {
            // The pool was deleted meanwhile.
            self.abort_gangs_of_pool(home.pool).await;
        }
    }

    fn suspend_keys(&self, members: &[InDoubtMember]) {
        for member in members {
            let Some(ticket) = member.ticket else { continue };
            for duplicate in self.dispatch().keys.mark_unreadable(&member.id, ticket, member.shard, member.fence) {
                duplicate.reply.reject(RequestError::Unavailable(UnavailableReason::Loading));
            }
        }
    }

    fn release_member_tickets(&self, members: Vec<InDoubtMember>) {
        for InDoubtMember { id, ticket, .. } in members {
            if let Some(next) = ticket.and_then(|ticket| self.dispatch().keys.release_ticket(&id, ticket)) {
                self.dispatch().with_work(|work| self.dispatch().route(next, work));
            }
        }
    }
}
