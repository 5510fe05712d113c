//! Effects of a shard's run on what lies above it: keys, quotas, wait queues. Each event is one step of one key; what
//! follows from it is noted as an effect and carried out after the run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::dispatch::ClaimDispatcher;
use super::effect::{Effect, EffectQueue};
use super::key::{EndedClaim, HeldTransition, KeyHolder, KeyLookup, PendingClaim, RepeatedCall, WithdrawnRequests};
use crate::engine::{ClaimGrant, WorkerOffer};
use crate::model::request_error::{ExhaustionReason, ObjectKind, RequestError, UnavailableReason};
use crate::model::{AckLevel, ClaimId, ClaimSpec, Fence, Millis};
use crate::shard::{
    Command, FreedMatch, GrantKind, HeldOperation, HeldVerb, KeyTicket, NotGranted, PendingWrite, PendingWrites,
    ProtocolPoint, ReplyAddress, ReplyIndex, ReservationOutcome, RunOrigin, RunReplies, ShardEvent, ShardSink,
    UndecidedOutcome, UndecidedRequests, UnstoredRejection,
};

/// Claims that a run did not place, for the shards that are next.
#[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
type UnplacedClaims = Vec<Box<PendingClaim>>;

impl ShardSink for ClaimDispatcher {
    type Work = EffectQueue;

    fn deliver(
        &self,
        from: RunOrigin,
        events: &mut Vec<ShardEvent>,
        replies: &mut RunReplies<'_>,
        work: &mut Self::Work,
    ) {
        let mut unplaced = UnplacedClaims::new();
        let mut next = 0;
        while next < events.len() {
            let step_rest = || {
                while let Some(event) = events.get_mut(next) {
                    self.on_event(from, event, replies, &mut unplaced, work);
                    next += 1;
                }
            };
            // A panic in the step of one key must not cost the others of this run.
            if catch_unwind(AssertUnwindSafe(step_rest)).is_err() {
                self.poison_keys(from, &events[next], replies);
                next += 1;
            }
        }
        events.clear();
        if !unplaced.is_empty() {
            self.route_all(unplaced, work);
        }
        self.assign_left(work);
        if self.keys.tenants.has_retries() {
            work.push(Effect::SearchQuotas);
        }
    }

    fn match_freed(&self, from: RunOrigin, offer: &WorkerOffer) -> Option<FreedMatch> {
        self.match_offer(from, offer)
    }

    fn carry_out(&self, work: &mut Self::Work) {
        self.work_off(work);
    }
}

impl ClaimDispatcher {
    fn on_event(
        &self,
        from: RunOrigin,
        event: &mut ShardEvent,
        replies: &mut RunReplies<'_>,
        unplaced: &mut UnplacedClaims,
        work: &mut EffectQueue,
    ) {
        match event {
            &mut ShardEvent::Granted { kind: GrantKind::Claim, ref id, ticket, handle, ref spec, reply } => {
                let held = self.keys.set_held(
                    id,
                    ticket,
                    KeyHolder { shard: from.shard, life: from.life, handle },
                    spec.as_ref(),
                );
                self.on_granted(from, held, reply, replies, work);
            }
            ShardEvent::NotGranted { id, ticket, reason } => {
                let reason = std::mem::replace(reason, NotGranted::NoCapacity);
                self.on_not_granted(from, id, *ticket, reason, unplaced, work);
            }
            ShardEvent::Ended { id, fence, retained, write, reply } => {
                let retained = retained.take().and_then(|grant| self.ended_claim(from, *grant));
                let Some(end) = self.keys.end_claim(id, *fence, *write, retained, from.now_ms) else { return };
                if let Some(reply) = *reply {
                    replies.wait_for(reply, end.earlier);
                }
                end.repeated.into_iter().for_each(|claim| work.push(Effect::Submit(claim)));
            }
            event => self.on_rare_event(from, event, replies, unplaced, work),
        }
    }

    /// Handles the events that are not about plain claims and their ends. Apart from those, because its large frame
    /// would cost each of them.
    #[cold]
    #[inline(never)]
    fn on_rare_event(
        &self,
        from: RunOrigin,
        event: &mut ShardEvent,
        replies: &mut RunReplies<'_>,
        unplaced: &mut UnplacedClaims,
        work: &mut EffectQueue,
    ) {
        let holder = |handle| KeyHolder { shard: from.shard, life: from.life, handle };
        match event {
            ShardEvent::Granted { kind: GrantKind::Claim, .. } | ShardEvent::NotGranted { .. } => {
                unreachable!("handled by the caller")
            }
            ShardEvent::Ended { .. } => unreachable!("handled by the caller"),
            ShardEvent::Granted { kind: GrantKind::Provisional, id, ticket, reply, .. } => {
                if let Some(claim) = self.keys.withdraw(id, *ticket) {
                    crate::reached!("gang: a member is granted");
                    replies.address(*reply, claim.reply, Default::default());
                }
            }
            ShardEvent::Reacquired { id, number, reply } => {
                ProtocolPoint::KeyStep.reach();
                if let Some((claim, pending_writes)) = self.keys.take_repeated(id, *number) {
                    replies.address(*reply, claim.reply, pending_writes);
                }
            }
            ShardEvent::NotReacquired { id, number, rejection } => {
                ProtocolPoint::KeyStep.reach();
                match (self.keys.take_repeated(id, *number), rejection.take()) {
                    (Some((claim, _)), None) => {
                        crate::reached!("repeated claim: its holder ended meanwhile");
                        work.push(Effect::Submit(claim));
                    }
                    (Some((claim, _)), Some(rejection)) => self.reply_rejected(claim, rejection),
                    (None, _) => {}
                }
            }
            ShardEvent::Adopted { id, ticket, handle, spec } => {
                if let Some(held) = self.keys.set_held(id, *ticket, holder(*handle), spec.as_ref()) {
                    crate::reached!("adoption: a lost claim is adopted");
                    self.answer_duplicates(held.repeated, work);
                }
            }
            ShardEvent::ReportDecided { tickets } => self.on_report_decided(tickets, work),
            ShardEvent::PredecessorHeld { id, fence } => {
                if let Some(older) = self.keys.holder(id).filter(|older| older.handle.fence < *fence) {
                    crate::reached!("adoption: an older holder relinquishes");
                    work.push(Effect::Send(older.shard, Command::Relinquish(older.handle)));
                }
            }
            ShardEvent::Committed { id, ticket, handle, spec, reply } => {
                if let Some(held) = self.keys.set_held(id, *ticket, holder(*handle), spec.as_ref()) {
                    crate::reached!("gang: a member is committed");
                    if let Some(reply) = *reply {
                        replies.wait_for(reply, held.pending_writes);
                    }
                    self.answer_duplicates(held.repeated, work);
                }
            }
            ShardEvent::Resized { id, fence, spec } => {
                self.keys.end_resize(id, *fence, from.life, Some(spec.take()));
            }
            ShardEvent::ResizeRejected { id, fence, life } => {
                crate::reached!("resize: rejected by the shard");
                self.keys.end_resize(id, *fence, *life, None);
            }
            ShardEvent::Shown { id, reply } => replies.wait_for(*reply, self.keys.pending_writes(id)),
            ShardEvent::EndStored { id, seq } => self.keys.clear_pending_write(id, from.shard, *seq),
            ShardEvent::ReservationDecided { id, outcome } => {
                let outcome = std::mem::replace(outcome, ReservationOutcome::NoWorker);
                self.on_reservation(from.shard, *id, outcome, work);
            }
            ShardEvent::TenantVictims { id, victims } => self.on_tenant_victims(from.shard, *id, victims, work),
            ShardEvent::VictimsFound { id, found } => self.on_victims_found(from.shard, *id, found, work),
            ShardEvent::ReservationsVoid(void) => self.on_reservations_void(from.shard, void, work),
            ShardEvent::Panicked(requests) => self.on_panicked(from, std::mem::take(requests), unplaced, work),
            ShardEvent::Stale(_) => {
                if let ShardEvent::Stale(operation) = std::mem::replace(event, ShardEvent::ReservationsVoid(Vec::new()))
                {
                    self.resolve_again(*operation, work);
                }
            }
            ShardEvent::StaleUnread { id, fence, reply } => {
                crate::reached!("panic: an unread answer of an earlier life");
                self.discard_reply(id, *fence, *reply);
            }
            ShardEvent::ClaimFound { id, holder: None } => {
                self.keys.vacate_poisoned(id, from.shard);
            }
            ShardEvent::ClaimFound { id, holder: Some((handle, spec)) } => {
                self.keys.note_answer(id, from.shard);
                if let Some(loser) = self.keys.recover(id.clone(), holder(*handle), spec.take())
                    && let Some(shard_handle) = self.pools.load().shard(loser.shard)
                {
                    shard_handle.relinquish(loser.handle, loser.life);
                }
            }
        }
    }

    fn on_report_decided(&self, reports: &[(ClaimId, KeyTicket)], work: &mut EffectQueue) {
        for (id, ticket) in reports {
            if let Some(next) = self.keys.release_ticket(id, *ticket) {
                self.route(next, work);
            }
        }
    }

    /// Hands back what a shard was deciding when it panicked. If its rows may tell of grants, nobody else may have their
    /// keys until it has said who holds them: a grant that comes to light later would have a lower fence.
    #[cold]
    fn on_panicked(
        &self,
        from: RunOrigin,
        requests: UndecidedRequests,
        unplaced: &mut UnplacedClaims,
        work: &mut EffectQueue,
    ) {
        self.void_shard(from.shard);
        let UndecidedRequests { tickets, reports, outcome } = requests;
        let asking = self.keys.find_asking(from.shard, &tickets.into_iter().collect());
        match outcome {
            UndecidedOutcome::Undone => {
                crate::reached!("panic: what was being decided is handed back");
                for (id, ticket) in asking {
                    let reason = NotGranted::Rejected(RequestError::DeadlineExceeded);
                    self.on_not_granted(from, &id, ticket, reason, unplaced, work);
                }
                self.on_report_decided(&reports, work);
            }
            UndecidedOutcome::Unknown => {
                crate::reached!("panic: rows may tell of what was being decided");
                for (id, ticket) in asking.into_iter().chain(reports) {
                    if let Some(withdrawn) = self.keys.poison_pending(&id, ticket, from.shard, from.now_ms) {
                        self.reject_withdrawn(withdrawn, RequestError::DeadlineExceeded);
                    }
                }
            }
        }
    }

    fn reject_withdrawn(&self, withdrawn: WithdrawnRequests, rejection: RequestError) {
        for claim in withdrawn.unanswered {
            self.reply_rejected(claim, rejection.clone());
        }
        if let Some(queued) = withdrawn.queued {
            self.leave_queues(&queued, None);
        }
    }

    /// Makes the keys unavailable whose step panicked, until the shards have said who holds them.
    #[cold]
    fn poison_keys(&self, from: RunOrigin, event: &ShardEvent, replies: &mut RunReplies<'_>) {
        let keys: Vec<&ClaimId> = event.keys().collect();
        tracing::error!(shard = ?from.shard, ?keys, "the step of a decision panicked");
        let holder = match event {
            ShardEvent::Granted { kind: GrantKind::Claim, handle, .. }
            | ShardEvent::Adopted { handle, .. }
            | ShardEvent::Committed { handle, .. } => {
                Some(KeyHolder { shard: from.shard, life: from.life, handle: *handle })
            }
            _ => None,
        };
        for id in keys {
            let is_stored = |write: &PendingWrite| self.services.is_stored(write);
            let withdrawn = self.keys.poison(id, from.shard, holder, from.now_ms, is_stored);
            self.reject_withdrawn(withdrawn, RequestError::Unavailable(UnavailableReason::Loading));
            if let ShardEvent::Ended { fence, write, reply, .. } = event {
                self.keys.adoption.record_ended(id.hash64(), *fence);
                reply.iter().for_each(|reply| replies.wait_for(*reply, self.keys.pending_writes(id)));
                write.iter().for_each(|write| self.keys.add_pending_write(id, *write));
            }
        }
    }

    /// Asks the shards that may hold a key whose step panicked.
    pub(crate) fn ask_about_poisoned(&self, now_ms: Millis, work: &mut EffectQueue) {
        for (shard, id) in self.keys.due_questions(now_ms) {
            if self.pools.load().shard(shard).is_some() {
                work.push(Effect::Send(shard, Command::FindClaim(id)));
            } else {
                // Its claims ended with its pool.
                self.keys.vacate_poisoned(&id, shard);
            }
        }
    }

    #[cold]
    fn ended_claim(&self, from: RunOrigin, grant: ClaimGrant) -> Option<Box<EndedClaim>> {
        let pool = self.pools.load().by_number(from.shard.pool)?.name.clone();
        Some(Box::new(EndedClaim { shard: from.shard, life: from.life, pool, ended_ms: from.now_ms, grant }))
    }

    fn on_granted(
        &self,
        from: RunOrigin,
        held: Option<HeldTransition>,
        reply: ReplyIndex,
        replies: &mut RunReplies<'_>,
        work: &mut EffectQueue,
    ) {
        // A grant whose ticket is not valid any more has nobody to answer, and is rolled back.
        let Some(mut held) = held else {
            crate::reached!("grant: its ticket is not valid any more, and it is rolled back");
            return;
        };
        let Some(claim) = held.claim.take() else { return };
        if (claim.started_ns.is_some() || claim.wait.is_some())
            && let Some(pool) = self.pools.load().by_number(from.shard.pool)
        {
            if claim.started_ns.is_some() {
                pool.metrics.claim_shards_tried.record(u64::from(claim.tried_shards.len()));
            }
            if let Some(queued) = claim.queued() {
                self.leave_queues(queued, claim.wait_due_ms());
                pool.wait_queue.lock().record_served(from.now_ms);
                pool.metrics.wait_seconds.record(from.now_ms.saturating_sub(queued.since_ms));
            }
        }
        replies.address(reply, claim.reply, held.pending_writes);
        self.answer_duplicates(held.repeated, work);
    }

    /// Answers the duplicates that waited for a key which is held now.
    fn answer_duplicates(&self, duplicates: Vec<RepeatedCall>, work: &mut EffectQueue) {
        for repeated in duplicates {
            work.push(Effect::Send(repeated.shard, Command::Reacquire(repeated.call)));
        }
    }

    fn on_not_granted(
        &self,
        from: RunOrigin,
        id: &ClaimId,
        ticket: KeyTicket,
        reason: NotGranted,
        unplaced: &mut UnplacedClaims,
        work: &mut EffectQueue,
    ) {
        let claim = self.keys.withdraw(id, ticket);
        match (claim, reason) {
            (Some(claim), NotGranted::NoCapacity) => {
                crate::reached!("claim: a shard has nothing, and the next is asked");
                unplaced.extend(self.put_back(from, claim, work));
            }
            (Some(mut claim), NotGranted::NotPlaced(failure)) => {
                claim.record_failure(failure);
                unplaced.extend(self.put_back(from, claim, work));
            }
            (Some(claim), NotGranted::Rejected(rejection)) => self.reject_and_route_next(claim, rejection, work),
            (None, _) => {
                crate::reached!("claim: a shard answers about one that is gone");
            }
        }
    }

    /// Resolves an operation anew that names a claim by a handle of an earlier life of its shard.
    fn resolve_again(&self, mut operation: HeldOperation, work: &mut EffectQueue) {
        match self.keys.lookup(&operation.id) {
            KeyLookup::Held { holder, pending_writes } if holder.handle.fence == operation.handle.fence => {
                crate::reached!("panic: an operation of an earlier life finds its claim again");
                (operation.handle, operation.life) = (holder.handle, holder.life);
                operation.pending_writes = pending_writes;
                if let Err(error) = self.begin_resize(&operation) {
                    operation.reply.reject(error);
                    return;
                }
                work.push(Effect::Send(holder.shard, Command::Operation(operation)));
            }
            KeyLookup::Unreadable => {
                operation.reply.reject(RequestError::Unavailable(UnavailableReason::Loading));
            }
            KeyLookup::Vacant => {
                crate::reached!("panic: the claim of an operation is gone");
                operation.reply.reject(RequestError::NotFound(ObjectKind::Claim));
            }
            // The claim ended, or never was as far as the store knows.
            KeyLookup::Held { pending_writes, .. } | KeyLookup::PendingWrites(pending_writes) => {
                let not_found = RequestError::NotFound(ObjectKind::Claim);
                self.reject_when_stored(not_found, pending_writes, operation.reply, work);
            }
        }
    }

    /// Rejects a request once the store has these records, as far as their pools answer durably.
    pub fn reject_when_stored(
        &self,
        rejection: RequestError,
        mut pending_writes: PendingWrites,
        reply: ReplyAddress,
        work: &mut EffectQueue,
    ) {
        let pools = self.pools.load();
        let is_missing = |record: &PendingWrite| {
            let pool = pools.by_number(record.shard.pool);
            pool.is_some_and(|pool| pool.spec.load().ack == AckLevel::Durable) && !self.services.is_stored(record)
        };
        pending_writes.retain(|record| is_missing(record));
        let first = pending_writes.iter().next().map(|record| record.shard);
        match first {
            None => reply.reject(rejection),
            Some(shard) => {
                let unstored = UnstoredRejection { rejection, pending_writes, reply };
                crate::reached!("rejection: waits for the record that it follows from");
                work.push(Effect::Send(shard, Command::ReplyWhenStored(Box::new(unstored))));
            }
        }
    }

    /// Charges what the claim may come to hold, if the operation changes its resources.
    ///
    /// # Errors
    /// The tenant's quota does not allow it.
    pub fn begin_resize(&self, operation: &HeldOperation) -> Result<(), RequestError> {
        let HeldVerb::Resize(resources) = &operation.verb else { return Ok(()) };
        let spec = ClaimSpec { resources: (**resources).clone(), ..ClaimSpec::default() };
        let fence: Fence = operation.handle.fence;
        self.keys
            .begin_resize(&operation.id, fence, operation.life, &spec)
            .map_err(|exceeded| RequestError::Exhausted(ExhaustionReason::Quota(exceeded)))
    }
}
