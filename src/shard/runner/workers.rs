//! Workers, operator commands, and releases in two steps: translates each into an event, and the engine's reply into
//! an outcome. Also decides whether this shard may acknowledge from memory.

use super::{ReplyRoute, ShardEvent, ShardRunner, rejection_of};
use crate::engine::{ClaimGrant, ClaimHandle, EngineReply, Event, HeartbeatReport, ReportedClaim};
use crate::events::{PoolEventKind, PoolEventReason};
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{AckLevel, ClaimId, ClearResult, HeartbeatRequest, RegistrationRequest, RunningClaim, WorkerId};
use crate::shard::address::KeyTicket;
use crate::shard::command::{KeyReport, KeyReports};
use crate::shard::event::ShardSink;
use crate::shard::reply::{ClaimAnswer, ReplyPayload, ReplySender, ShardOutcome};

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
    pub(super) fn seal(&mut self, reply: ReplySender) {
        self.sealed = true;
        self.update_ack_mode();
        self.prepare_reply(Some(reply), Ok(ReplyPayload::Done), AckLevel::Memory);
    }

    pub(super) fn register_all(&mut self, workers: Vec<(RegistrationRequest, KeyReports, ReplySender)>) {
        // The pool is marked before its workers are counted: registrations after the count are refused.
        let is_closing = self.pool.is_closing();
        for (registration, keys, reply) in workers {
            if is_closing {
                let tickets = reserved_keys(registration.claims.as_deref().unwrap_or_default(), &keys).collect();
                self.events.push(ShardEvent::ReportDecided { tickets });
                reply.send(Err(RequestError::NotFound(ObjectKind::Pool)));
                continue;
            }
            let id = registration.spec.id.clone();
            let register = |run: &mut Self| run.register(registration, keys, reply);
            self.record_worker_change(&id, Some(PoolEventKind::Registered), register);
        }
    }

    fn register(&mut self, registration: RegistrationRequest, keys: KeyReports, reply: ReplySender) {
        let RegistrationRequest { spec, claims } = registration;
        // Unix time is read once; from then on the end of the worker is a deadline like any other.
        let unix_ms = || self.environment.clock.unix_ms();
        let ends_ms = spec.expires_at_ms.map(|at_ms| self.now_ms + at_ms.saturating_sub(unix_ms()));
        let claims = self.reported_claims(&spec.id, claims, keys);
        let ttl_ms = self.pool.spec.load().heartbeat_ttl_ms;
        self.apply(Event::Register { spec, ends_ms, claims, ttl_ms, to: ReplyRoute::Reply(reply) });
        self.end_report();
    }

    pub(super) fn heartbeat(
        &mut self,
        id: WorkerId,
        heartbeat: HeartbeatRequest,
        keys: KeyReports,
        reply: ReplySender,
    ) {
        let HeartbeatRequest { incarnation, seq, claims } = heartbeat;
        let claims = self.reported_claims(&id, claims, keys);
        let ttl_ms = self.pool.spec.load().heartbeat_ttl_ms;
        let heartbeat = HeartbeatReport { incarnation, seq, claims, ttl_ms };
        self.apply(Event::Heartbeat { id, heartbeat, to: ReplyRoute::Reply(reply) });
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

    /// Replies with the engine's answer about a worker. A durable reply waits for what the store lacks about the keys
    /// of the claims that it shows.
    pub(super) fn reply_worker(&mut self, reply: ReplySender, answer: EngineReply) {
        let shown: Vec<ClaimId> = match &answer {
            EngineReply::Registered { worker, .. } if self.keeps_rows => {
                worker.claims.iter().map(|(id, _)| id.clone()).collect()
            }
            EngineReply::HeartbeatHandled { claims, .. } if self.keeps_rows => {
                claims.iter().map(|(id, _)| id.clone()).collect()
            }
            _ => Vec::new(),
        };
        let outcome = self.worker_outcome(answer);
        let reply = self.answer(reply, outcome);
        self.events.extend(shown.into_iter().map(|id| ShardEvent::Shown { id, reply }));
    }

    fn worker_outcome(&self, answer: EngineReply) -> ShardOutcome {
        let running = |reported: Vec<ReportedClaim>| {
            reported.into_iter().map(|ReportedClaim { id, fence, .. }| RunningClaim { id, fence })
        };
        match answer {
            EngineReply::Registered { created, worker, stop } => {
                Ok(ReplyPayload::Worker { created, worker, revoked: running(stop).collect() })
            }
            EngineReply::WorkerUpdated(worker) => {
                Ok(ReplyPayload::Worker { created: false, worker, revoked: Vec::new() })
            }
            EngineReply::HeartbeatHandled { claims, stop, superseded_by: late_for } => {
                let shard = self.handle.shard;
                let answer_of = |(id, grant): (_, ClaimGrant)| {
                    let expires_at_ms = grant.deadline_ms.map(|at_ms| self.environment.clock.unix_of(at_ms));
                    (id, ClaimAnswer { expires_at_ms, ..ClaimAnswer::existing(grant, shard) })
                };
                let claims = claims.into_iter().map(answer_of).collect();
                Ok(ReplyPayload::Heartbeat { claims, revoked: running(stop).collect(), late_for })
            }
            EngineReply::Cleared { cleared, suspect } => Ok(ReplyPayload::Cleared(ClearResult { cleared, suspect })),
            EngineReply::Deleted { claims_lost } => Ok(ReplyPayload::Deleted { claims_lost }),
            answer => Err(rejection_of(&answer)),
        }
    }
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
