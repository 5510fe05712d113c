//! Workers, operator commands, and releases in two steps: translates each into an event, and the engine's reply into
//! an outcome. Also decides whether this shard may acknowledge from memory.

use super::unsent_reply::UnsentReply;
use super::{ReplyIndex, ShardEvent, ShardRunner, rejection_of};
use crate::engine::{ClaimGrant, ClaimHandle, EngineReply, Event, HeartbeatReport, ReportedClaim, WorkerSnapshot};
use crate::events::{PoolEventKind, PoolEventReason};
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{AckLevel, ClaimId, ClearResult, HeartbeatRequest, RegistrationRequest, RunningClaim, WorkerId};
use crate::shard::address::KeyTicket;
use crate::shard::command::{KeyReport, KeyReports};
use crate::shard::event::ShardSink;
use crate::shard::reply::{ClaimAnswer, CommandReply, DeletedWorker, HeartbeatReply, RegisteredWorker};

impl<S: ShardSink> ShardRunner<S> {
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
    pub(super) fn seal(&mut self, reply: CommandReply<()>) {
        self.sealed = true;
        self.update_ack_mode();
        self.prepare_reply(UnsentReply::command(reply, Ok(())), AckLevel::Memory);
    }

    pub(super) fn register_all(
        &mut self,
        workers: Vec<(RegistrationRequest, KeyReports, CommandReply<RegisteredWorker>)>,
    ) {
        // The pool is marked before its workers are counted: registrations after the count are refused.
        let is_closing = self.pool.is_closing();
        for (registration, keys, reply) in workers {
            if is_closing {
                let tickets = reserved_keys(registration.claims.as_deref().unwrap_or_default(), &keys).collect();
                self.events.push(ShardEvent::ReportDecided { tickets });
                let _ = reply.send(Err(RequestError::NotFound(ObjectKind::Pool)));
                continue;
            }
            let id = registration.spec.id.clone();
            let register = |run: &mut Self| run.register(registration, keys, reply);
            self.record_worker_change(&id, Some(PoolEventKind::Registered), register);
        }
    }

    fn register(&mut self, registration: RegistrationRequest, keys: KeyReports, reply: CommandReply<RegisteredWorker>) {
        let RegistrationRequest { spec, claims } = registration;
        // Unix time is read once; from then on the end of the worker is a deadline like any other.
        let unix_ms = || self.services.clock.unix_ms();
        let ends_ms = spec.expires_at_ms.map(|at_ms| self.now_ms + at_ms.saturating_sub(unix_ms()));
        let claims = self.reported_claims(&spec.id, claims, keys);
        let ttl_ms = self.pool.spec.load().heartbeat_ttl_ms;
        let answer = self.decide(Event::Register { spec, ends_ms, claims, ttl_ms });
        self.reply_register(reply, answer);
        self.end_report();
    }

    pub(super) fn heartbeat(
        &mut self,
        id: WorkerId,
        heartbeat: HeartbeatRequest,
        keys: KeyReports,
        reply: CommandReply<HeartbeatReply>,
    ) {
        let HeartbeatRequest { incarnation, seq, claims } = heartbeat;
        let claims = self.reported_claims(&id, claims, keys);
        let ttl_ms = self.pool.spec.load().heartbeat_ttl_ms;
        let heartbeat = HeartbeatReport { incarnation, seq, claims, ttl_ms };
        let answer = self.decide(Event::Heartbeat { id, heartbeat });
        self.reply_heartbeat(reply, answer);
        self.end_report();
    }

    /// Converts the reported claims and notes which may be adopted. The keys of those are reserved, so nobody else
    /// claims them before the engine has decided.
    fn reported_claims(
        &mut self,
        worker: &WorkerId,
        claims: Option<Vec<RunningClaim>>,
        keys: KeyReports,
    ) -> Option<Vec<ReportedClaim>> {
        let claims = claims?;
        self.report_tickets.extend(reserved_keys(&claims, &keys));
        let unverified = self.shard.is_unverified(worker);
        let mut keys = keys.into_iter();
        let mut report = |RunningClaim { id, fence }| {
            let key = keys.next().unwrap_or(KeyReport::NotAdoptable);
            let may_adopt = key != KeyReport::NotAdoptable && self.shard.may_adopt(worker, fence);
            let key_vacant = may_adopt && matches!(key, KeyReport::Reserved(_));
            // The older claim had ended when this one was granted, and only the record of its end was lost. The next
            // heartbeat finds the key vacant.
            let predecessor_pending = may_adopt && unverified && key == KeyReport::OlderHolder;
            if predecessor_pending {
                self.events.push(ShardEvent::PredecessorHeld { id: id.clone(), fence });
            }
            ReportedClaim { id, fence, key_vacant, predecessor_pending }
        };
        Some(claims.into_iter().map(&mut report).collect())
    }

    /// Reports that a claim which the last crash had lost is held again.
    pub(super) fn adopted(&mut self, id: ClaimId, handle: ClaimHandle) {
        let grant = self.shard.grant(handle);
        if let Some(grant) = &grant {
            self.record_claimed(&id, grant, Some(PoolEventReason::Adopted));
        }
        let reserved = self.report_tickets.iter().find(|(reserved, _)| *reserved == id);
        let &(_, ticket) = reserved.expect("K1: only a claim whose key was reserved is adopted");
        self.events.push(ShardEvent::Adopted { id, ticket, handle, spec: grant.and_then(|grant| grant.spec) });
    }

    fn end_report(&mut self) {
        let tickets = std::mem::take(&mut self.report_tickets);
        if !tickets.is_empty() {
            self.events.push(ShardEvent::ReportDecided { tickets });
        }
    }

    fn reply_register(&mut self, reply: CommandReply<RegisteredWorker>, answer: EngineReply) {
        let (outcome, shown) = match answer {
            EngineReply::Registered { created, worker, stop } => {
                let shown = self.shown_claims(worker.claims.iter().map(|(id, _)| id));
                (Ok(RegisteredWorker { created, worker, revoked: running_claims(stop) }), shown)
            }
            answer => (Err(rejection_of(&answer)), Vec::new()),
        };
        let reply = self.answer_command(reply, outcome);
        self.report_shown(shown, reply);
    }

    fn reply_heartbeat(&mut self, reply: CommandReply<HeartbeatReply>, answer: EngineReply) {
        let (outcome, shown) = match answer {
            EngineReply::HeartbeatHandled { claims, stop, superseded_by: late_for } => {
                let shown = self.shown_claims(claims.iter().map(|(id, _)| id));
                let shard = self.handle.shard;
                let answer_of = |(id, grant): (_, ClaimGrant)| (id, ClaimAnswer::existing(grant, shard));
                let claims = claims.into_iter().map(answer_of).collect();
                (Ok(HeartbeatReply { claims, revoked: running_claims(stop), late_for }), shown)
            }
            answer => (Err(rejection_of(&answer)), Vec::new()),
        };
        let reply = self.answer_command(reply, outcome);
        self.report_shown(shown, reply);
    }

    /// Keys of the claims that a reply shows, if the reply may have to wait for records about them.
    fn shown_claims<'c>(&self, ids: impl Iterator<Item = &'c ClaimId>) -> Vec<ClaimId> {
        if self.keeps_rows { ids.cloned().collect() } else { Vec::new() }
    }

    fn report_shown(&mut self, shown: Vec<ClaimId>, reply: ReplyIndex) {
        self.events.extend(shown.into_iter().map(|id| ShardEvent::Shown { id, reply }));
    }

    pub(super) fn reply_worker_command(&mut self, reply: CommandReply<Box<WorkerSnapshot>>, answer: EngineReply) {
        let outcome = match answer {
            EngineReply::WorkerUpdated(worker) => Ok(worker),
            answer => Err(rejection_of(&answer)),
        };
        self.answer_command(reply, outcome);
    }

    pub(super) fn reply_clear(&mut self, reply: CommandReply<ClearResult>, answer: &EngineReply) {
        let outcome = match *answer {
            EngineReply::Cleared { cleared, suspect } => Ok(ClearResult { cleared, suspect }),
            _ => Err(rejection_of(answer)),
        };
        self.answer_command(reply, outcome);
    }

    pub(super) fn reply_delete(&mut self, reply: CommandReply<DeletedWorker>, answer: &EngineReply) {
        let outcome = match *answer {
            EngineReply::Deleted { claims_lost } => Ok(DeletedWorker { claims_lost }),
            _ => Err(rejection_of(answer)),
        };
        self.answer_command(reply, outcome);
    }
}

/// Claims as a worker reported them.
fn running_claims(reported: Vec<ReportedClaim>) -> Vec<RunningClaim> {
    reported.into_iter().map(|ReportedClaim { id, fence, .. }| RunningClaim { id, fence }).collect()
}

/// Reported claims whose keys were reserved, each with its ticket.
pub(in crate::shard) fn reserved_keys(
    claims: &[RunningClaim],
    keys: &[KeyReport],
) -> impl Iterator<Item = (ClaimId, KeyTicket)> {
    claims.iter().zip(keys).filter_map(|(claim, key)| match key {
        KeyReport::Reserved(ticket) => Some((claim.id.clone(), *ticket)),
        KeyReport::OlderHolder | KeyReport::NotAdoptable => None,
    })
}
