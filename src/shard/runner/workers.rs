//! Workers, operator commands, and releases in two steps: translates each into an event, and the engine's reply into
//! an outcome. Also decides whether this shard may acknowledge from memory.

use super::{ReplyRoute, ShardRunner, rejection_of};
use crate::admission::key::{KeyHolder, KeyLookup};
use crate::engine::{ClaimGrant, ClaimHandle, EngineReply, Event, HeartbeatReport, ReportedClaim};
use crate::events::{PoolEventKind, PoolEventReason};
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{
    AckLevel, ClaimId, ClearResult, Fence, HeartbeatRequest, RegistrationRequest, RunningClaim, WorkerId,
};
use crate::shard::address::PendingWrites;
use crate::shard::command::{ClaimOp, Command};
use crate::shard::reply::{ClaimAnswer, ReplyPayload, ReplySender, ShardOutcome};

impl ShardRunner {
    /// Updates whether claims may be acknowledged from memory: only after the store knows that they are, so that a
    /// start after a kill knows that claims may be lost.
    pub(super) fn update_ack_mode(&mut self) {
        let memory = !self.pool.is_durable() && !self.sealed;
        if self.keeps_rows && (memory || self.shard.acks_from_memory()) {
            let reserve_ms = memory.then(|| self.pool.spec.load().reserve_ms);
            if self.shard.set_memory_acks(reserve_ms) {
                self.memory_from = self.shard.seq();
            }
        }
        let durable = !memory || self.applied_seq < self.memory_from;
        self.ack = if durable { AckLevel::Durable } else { AckLevel::Memory };
    }

    /// Stops acknowledgements from memory. The reply is sent when that fact is on its way to the store.
    pub(super) fn seal(&mut self, reply: ReplySender) {
        self.sealed = true;
        self.update_ack_mode();
        self.send_when_stored(reply, Ok(ReplyPayload::Done), AckLevel::Memory, PendingWrites::new(), None);
    }

    pub(super) fn begin_release(&mut self, item: ClaimOp) {
        let releasing_ms = self.pool.spec.load().releasing_ms;
        self.apply_to_held(item, |handle, to| Event::BeginRelease { handle, releasing_ms, to });
    }

    pub(super) fn register_all(&mut self, workers: Vec<(RegistrationRequest, ReplySender)>) {
        // The pool is marked before its workers are counted: registrations after the count are refused.
        let is_closing = self.pool.is_closing();
        for (registration, reply) in workers {
            if is_closing {
                reply.send(Err(RequestError::NotFound(ObjectKind::Pool)));
                continue;
            }
            let id = registration.spec.id.clone();
            self.record_worker_change(&id, Some(PoolEventKind::Registered), |run| run.register(registration, reply));
        }
    }

    fn register(&mut self, registration: RegistrationRequest, reply: ReplySender) {
        let RegistrationRequest { spec, claims } = registration;
        // Unix time is read once; from then on the end of the worker is a deadline like any other.
        let ends_ms = spec.expires_at_ms.map(|at_ms| self.now_ms + at_ms.saturating_sub(self.dispatch.clock.unix_ms()));
        let claims = claims.map(|claims| self.reported_claims(&spec.id, claims));
        let ttl_ms = self.pool.spec.load().heartbeat_ttl_ms;
        self.apply(Event::Register { spec, ends_ms, claims, ttl_ms, to: ReplyRoute::Reply(reply) });
        self.release_adoption_tickets();
    }

    pub(super) fn heartbeat(&mut self, id: WorkerId, heartbeat: HeartbeatRequest, reply: ReplySender) {
        let HeartbeatRequest { incarnation, seq, claims } = heartbeat;
        let claims = claims.map(|claims| self.reported_claims(&id, claims));
        let ttl_ms = self.pool.spec.load().heartbeat_ttl_ms;
        let heartbeat = HeartbeatReport { incarnation, seq, claims, ttl_ms };
        self.apply(Event::Heartbeat { id, heartbeat, to: ReplyRoute::Reply(reply) });
        self.release_adoption_tickets();
    }

    /// Converts the reported claims and notes which may be adopted. Their keys are acquired, so that nobody else
    /// claims them before the engine has decided.
    fn reported_claims(&mut self, worker: &WorkerId, claims: Vec<RunningClaim>) -> Vec<ReportedClaim> {
        let unverified = self.shard.is_unverified(worker);
        let report = |RunningClaim { id, fence }| {
            let may_adopt = self.dispatch.keys.adoption.is_open_at(self.now_ms) && self.shard.may_adopt(worker, fence);
            let ticket = may_adopt.then(|| self.dispatch.keys.acquire_vacant(&id, fence)).flatten();
            if let Some(ticket) = ticket {
                self.undecided_tickets.push((id.clone(), ticket));
                self.adoption_tickets.push((id.clone(), ticket));
            }
            let predecessor_pending = may_adopt && unverified && ticket.is_none() && self.relinquish_older(&id, fence);
            ReportedClaim { id, fence, key_vacant: ticket.is_some(), predecessor_pending }
        };
        claims.into_iter().map(report).collect()
    }

    /// Relinquishes an older claim of the key, from before this process owned the store, with a lower fence. It had
    /// ended when the reported claim was granted, and only the record of its end was lost. The next heartbeat finds
    /// the key vacant.
    fn relinquish_older(&self, id: &ClaimId, fence: Fence) -> bool {
        let KeyLookup::Held(older) = self.dispatch.keys.lookup(id) else { return false };
        if older.handle.fence >= fence {
            return false;
        }
        let pools = self.dispatch.pools.load();
        pools
            .shard(older.shard)
            .is_some_and(|shard_handle| shard_handle.push(Command::Relinquish(older.handle)).is_ok())
    }

    pub(super) fn adopted(&mut self, id: &ClaimId, handle: ClaimHandle) {
        let Some(index) = self.adoption_tickets.iter().position(|(acquired, _)| acquired == id) else {
            unreachable!("K1: only a key whose ticket was taken is adopted")
        };
        let (_, ticket) = self.adoption_tickets.swap_remove(index);
        let holder = KeyHolder { shard: self.handle.shard, handle };
        let grant = self.shard.grant(handle);
        if let Some(grant) = &grant {
            self.record_claimed(id, grant, Some(PoolEventReason::Adopted));
        }
        let spec = grant.and_then(|grant| grant.spec);
        let (duplicates, _) = self.dispatch.keys.set_held(id, ticket, holder, spec.as_ref());
        self.dispatch.ended_claims.remove_on_grant(id);
        self.follow_ups.extend(duplicates.into_iter().map(|duplicate| Command::Reacquire(duplicate, handle)));
    }

    fn release_adoption_tickets(&mut self) {
        for (id, ticket) in std::mem::take(&mut self.adoption_tickets) {
            if let Some(next) = self.dispatch.keys.release_ticket(&id, ticket) {
                self.dispatch.route(next);
            }
        }
    }

    /// Outcome of the engine's reply about a worker, and the records that a durable reply waits for.
    pub(super) fn worker_outcome(&self, answer: EngineReply) -> (ShardOutcome, PendingWrites) {
        let running = |reported: Vec<ReportedClaim>| {
            reported.into_iter().map(|ReportedClaim { id, fence, .. }| RunningClaim { id, fence })
        };
        let mut pending_writes = PendingWrites::new();
        let outcome = match answer {
            EngineReply::Registered { created, worker, stop } => {
                pending_writes.extend(worker.claims.iter().flat_map(|(id, _)| self.pending_writes(id)));
                Ok(ReplyPayload::Worker { created, worker, revoked: running(stop).collect() })
            }
            EngineReply::WorkerUpdated(worker) => {
                Ok(ReplyPayload::Worker { created: false, worker, revoked: Vec::new() })
            }
            EngineReply::HeartbeatHandled { claims, stop, superseded_by: late_for } => {
                pending_writes.extend(claims.iter().flat_map(|(id, _)| self.pending_writes(id)));
                let shard = self.handle.shard;
                let answer_of = |(id, grant): (_, ClaimGrant)| {
                    let expires_at_ms = grant.deadline_ms.map(|at_ms| self.dispatch.clock.unix_of(at_ms));
                    (id, ClaimAnswer { expires_at_ms, ..ClaimAnswer::existing(grant, shard) })
                };
                let claims = claims.into_iter().map(answer_of).collect();
                Ok(ReplyPayload::Heartbeat { claims, revoked: running(stop).collect(), late_for })
            }
            EngineReply::Cleared { cleared, suspect } => Ok(ReplyPayload::Cleared(ClearResult { cleared, suspect })),
            EngineReply::Deleted { claims_lost } => Ok(ReplyPayload::Deleted { claims_lost }),
            answer => Err(rejection_of(&answer)),
        };
        (outcome, pending_writes)
    }
}
