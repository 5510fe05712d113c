//! Claims and operations on held claims: translates each into an event of the engine, and the engine's reply into an
//! outcome.

use super::unsent_reply::UnsentReply;
use super::{NotGranted, PendingReply, ReplyIndex, ShardEvent, ShardRunner, UnreadGrant, rejection_of};
use crate::engine::{EngineReply, Event};
use crate::limits;
use crate::model::request_error::{RequestError, UnavailableReason};
use crate::model::{AckLevel, ClaimId, Fence};
use crate::shard::address::PendingWrites;
use crate::shard::command::{
    ClaimCall, HeldOperation, HeldVerb, ReacquireCall, ReserveCall, TenantSurvey, VictimSurvey,
};
use crate::shard::event::{GrantKind, ReservationOutcome, ShardSink};
use crate::shard::reply::{ClaimAnswer, ClaimReply, ReplyAddress, ShardOutcome};
use crate::shard::step_injection::ProtocolRule;

impl<S: ShardSink> ShardRunner<S> {
    pub(super) fn claim(&mut self, call: ClaimCall) {
        let fence = match self.admission_check(&call) {
            Ok(fence) => fence,
            Err(reason) => {
                let ClaimCall { id, ticket, .. } = call;
                return self.events.push(ShardEvent::NotGranted { id, ticket, reason });
            }
        };
        self.decide_claim(call, fence);
    }

    /// Lets the engine decide a claim that may be granted with this fence.
    #[inline]
    pub(super) fn decide_claim(&mut self, mut call: ClaimCall, fence: Fence) {
        let answer = self.decide(Event::Claim {
            id: call.id.clone(),
            fence,
            affinity: call.affinity,
            reserve_ms: call.reserve_ms,
            ttl_ms: call.ttl_ms.unwrap_or(0),
            constraints: call.constraints.clone(),
            target: call.target.take(),
        });
        self.reply_claim(call, answer);
    }

    /// Fence for a claim that this shard may decide at present.
    fn admission_check(&mut self, call: &ClaimCall) -> Result<Fence, NotGranted> {
        if !self.cancelled.is_empty() && self.cancelled.remove(&call.ticket) {
            return Err(NotGranted::Rejected(RequestError::DeadlineExceeded));
        }
        if let Some(reason) = self.overload_reason(call.ack) {
            return Err(NotGranted::Rejected(RequestError::Unavailable(reason)));
        }
        if self.is_matching_blocked && self.has_unoffered() {
            // What came free cannot be granted to those who wait at present, and must not go to anybody else before.
            return Err(NotGranted::Rejected(RequestError::Unavailable(UnavailableReason::Store)));
        }
        match self.fences.next() {
            Some(fence) => Ok(fence),
            None => self
                .services
                .allocate_fences(1)
                .map_err(|reason| NotGranted::Rejected(RequestError::Unavailable(reason))),
        }
    }

    /// Carries out an operation on a held claim, unless it names the claim as an earlier life of the shard did.
    pub(super) fn operate(&mut self, mut operation: HeldOperation) {
        if operation.life != self.life && ProtocolRule::LifeCheck.holds() {
            return self.events.push(ShardEvent::Stale(Box::new(operation)));
        }
        if matches!(operation.verb, HeldVerb::Release) {
            return self.release(operation);
        }
        let (handle, events_before) = (operation.handle, self.events.len());
        let answer = match &mut operation.verb {
            HeldVerb::Get => self.decide(Event::Get { handle }),
            HeldVerb::Confirm => self.decide_with_deadline(Event::Confirm { handle }),
            HeldVerb::Renew(ttl_ms) => {
                let ttl_ms = *ttl_ms;
                self.decide_with_deadline(Event::Renew { handle, ttl_ms })
            }
            HeldVerb::Resize(resources) => {
                let resources = std::mem::take(&mut **resources);
                self.decide(Event::Resize { handle, resources })
            }
            HeldVerb::BeginRelease => {
                let releasing_ms = self.pool.spec.load().releasing_ms;
                self.decide_with_deadline(Event::BeginRelease { handle, releasing_ms })
            }
            HeldVerb::Release => unreachable!("handled apart"),
        };
        if matches!(operation.verb, HeldVerb::Resize(_)) {
            let (id, fence) = (operation.id.clone(), handle.fence);
            self.events.push(match self.shard.grant(handle) {
                Some(grant) => ShardEvent::Resized { id, fence, spec: grant.spec },
                None => ShardEvent::ResizeRejected { id, fence, life: self.life },
            });
        }
        let HeldOperation { reply, pending_writes, .. } = operation;
        let outcome = match answer {
            EngineReply::Held(grant) => Ok(ClaimReply::Claim(ClaimAnswer::existing(grant, self.handle.shard))),
            EngineReply::Released => Ok(ClaimReply::Released),
            answer => Err(rejection_of(&answer)),
        };
        let reply = self.answer(reply, outcome, pending_writes);
        self.tie_to_end(events_before, handle.fence, reply);
    }

    /// Releases a claim. Apart from the other operations, because every claim ends with it.
    fn release(&mut self, operation: HeldOperation) {
        let HeldOperation { handle, reply, pending_writes, .. } = operation;
        let events_before = self.events.len();
        self.releases += 1;
        match self.decide(Event::Release { handle }) {
            EngineReply::Released => {
                let reply = self.answer(reply, Ok(ClaimReply::Released), pending_writes);
                self.tie_to_end(events_before, handle.fence, reply);
            }
            // The claim had ended already.
            answer => drop(self.answer(reply, Err(rejection_of(&answer)), pending_writes)),
        }
    }

    /// Makes the reply about an end wait for what the store lacks about the key, which the sink knows.
    fn tie_to_end(&mut self, events_before: usize, ended: Fence, index: ReplyIndex) {
        for event in &mut self.events[events_before..] {
            if let ShardEvent::Ended { fence, reply, .. } = event
                && *fence == ended
            {
                *reply = Some(index);
            }
        }
    }

    /// Shows the holder of a key to a repeated claim, or rolls the holder back.
    pub(super) fn reacquire(&mut self, mut call: ReacquireCall) {
        let ReacquireCall { handle, eligibility: pool, .. } = call;
        let constraints = call.constraints.take();
        let answer = self.decide(Event::Reacquire { handle, pool, constraints });
        self.reply_repeated(call, answer);
    }

    /// Reports whether the shard holds a key. While the claim is provisional its gang decides, and the shard will be
    /// asked again.
    pub(super) fn find_claim(&mut self, id: ClaimId) {
        let holder = self.shard.find_claim(&id);
        if !holder.as_ref().is_some_and(|grant| self.shard.is_provisional(grant.handle)) {
            self.events.push(ShardEvent::ClaimFound { id, holder: holder.map(|grant| (grant.handle, grant.spec)) });
        }
    }

    /// Reserves a worker for a claim that waits.
    pub(super) fn reserve(&mut self, call: ReserveCall) {
        let ReserveCall { id, constraints, duration_ms, evict } = call;
        let until_ms = self.now_ms + duration_ms;
        // It may evict claims, whose holders have time to clean up.
        let outcome = match self.decide_with_deadline(Event::Reserve { id, constraints, evict, until_ms }) {
            EngineReply::WorkerReserved(worker) => ReservationOutcome::Reserved(worker),
            _ => ReservationOutcome::NoWorker,
        };
        self.events.push(ShardEvent::ReservationDecided { id, outcome });
    }

    pub(super) fn survey_victims(&mut self, survey: &VictimSurvey) {
        let found = self.shard.survey_victims(&survey.needs, survey.below_priority, self.now_ms);
        self.events.push(ShardEvent::VictimsFound { id: survey.id, found });
    }

    pub(super) fn survey_tenant(&mut self, survey: &TenantSurvey) {
        let victims = self.shard.victims_of_tenant(&survey.owner, survey.below_priority, limits::EVICTED_WORKERS_MAX);
        self.events.push(ShardEvent::TenantVictims { id: survey.id, victims });
    }

    /// Reason why this shard accepts no claims at present: the store lags too far behind.
    pub(super) fn overload_reason(&self, ack: AckLevel) -> Option<UnavailableReason> {
        if !self.keeps_rows {
            return None;
        }
        let durable = ack == AckLevel::Durable;
        let replies = self.pending_replies_len();
        if self.pending_ends.len() >= limits::UNSTORED_ENDS_MAX
            || (durable && replies + limits::DRAIN_MAX >= limits::PENDING_REPLIES_MAX)
        {
            return Some(UnavailableReason::Store);
        }
        let lags = !durable && self.handle.outbox.lag_ms() > self.pool.spec.load().lag_max_ms;
        lags.then_some(UnavailableReason::Overloaded)
    }

    fn reply_claim(&mut self, call: ClaimCall, answer: EngineReply) {
        let ClaimCall { id, ticket, ack, affinity, started_ns, .. } = call;
        let reason = match answer {
            EngineReply::Granted(grant) => {
                self.record_claimed(&id, &grant, None);
                let (handle, spec) = (grant.handle, grant.spec.clone());
                // The key of a gang's member stays pending, and the gang decides what becomes of the member.
                let provisional = self.shard.is_provisional(handle);
                let kind = if provisional { GrantKind::Provisional } else { GrantKind::Claim };
                let unread_grant = if provisional { UnreadGrant::Keep } else { UnreadGrant::RollBack };
                if !provisional && grant.gpu_mask.is_none() {
                    self.pool.board.record_affinity(affinity, self.handle.shard.shard);
                }
                let answer = ClaimAnswer::created(grant, self.handle.shard);
                let reply = self.prepare_claim_reply(Ok(ClaimReply::Claim(answer)), ack, unread_grant, started_ns);
                return self.events.push(ShardEvent::Granted { kind, id, ticket, handle, spec, reply });
            }
            EngineReply::NoCapacity => NotGranted::NoCapacity,
            EngineReply::NotPlaced(failure) => NotGranted::NotPlaced(failure),
            // The pool's limit was higher when the request arrived.
            answer => NotGranted::Rejected(rejection_of(&answer)),
        };
        self.events.push(ShardEvent::NotGranted { id, ticket, reason });
    }

    fn reply_repeated(&mut self, call: ReacquireCall, answer: EngineReply) {
        let ReacquireCall { id, number, ack, started_ns, .. } = call;
        let (ack, outcome) = match answer {
            EngineReply::StaleHandle | EngineReply::RolledBack => {
                return self.events.push(ShardEvent::NotReacquired { id, number, rejection: None });
            }
            EngineReply::Held(grant) => (ack, Ok(ClaimReply::Claim(ClaimAnswer::existing(grant, self.handle.shard)))),
            answer => (self.ack, Err(rejection_of(&answer))),
        };
        let reply = self.prepare_claim_reply(outcome, ack, UnreadGrant::Keep, started_ns);
        self.events.push(ShardEvent::Reacquired { id, number, reply });
    }

    /// Prepares a reply to a claim, whose caller the sink knows.
    #[inline]
    fn prepare_claim_reply(
        &mut self,
        outcome: ShardOutcome,
        ack: AckLevel,
        unread_grant: UnreadGrant,
        started_ns: Option<std::num::NonZeroU64>,
    ) -> ReplyIndex {
        let ack = if self.keeps_rows { ack.max(self.ack) } else { AckLevel::Memory };
        let reply = self.prepare_reply(UnsentReply::Claim(None, outcome), ack);
        let prepared: &mut PendingReply = &mut self.new_replies[reply.0 as usize];
        (prepared.unread_grant, prepared.started_ns) = (unread_grant, started_ns);
        reply
    }

    /// Replies with the durability of the pool.
    #[inline(always)]
    fn answer(&mut self, caller: ReplyAddress, outcome: ShardOutcome, pending_writes: PendingWrites) -> ReplyIndex {
        let ack = if self.keeps_rows { self.ack } else { AckLevel::Memory };
        let reply = self.prepare_reply(UnsentReply::Claim(Some(caller), outcome), ack);
        if !pending_writes.is_empty() {
            self.new_replies[reply.0 as usize].wait_for(pending_writes);
        }
        reply
    }
}
