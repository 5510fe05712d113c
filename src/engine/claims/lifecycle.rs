//! What becomes of a claim that is held: it is confirmed, renewed, told of, released in one step or two, given back, swept
//! when its time has passed. Every end goes through [`Shard::end`], and nothing else frees a worker.

use crate::engine::NIL;
use crate::engine::claims::{Claim, DisclosureState};
use crate::engine::effect::{Effect, EndReason, EngineReply};
use crate::engine::event::ClaimHandle;
use crate::engine::placement::constraints::PlacementConstraints;
use crate::engine::shard::{Shard, saturating_millis};
use crate::engine::workers::conditions::notes;
use crate::limits;
use crate::model::unschedulable_bits;
use crate::model::{ClaimState, Fence, Millis, TtlBounds};

impl Shard {
    pub(in crate::engine) fn reacquire<R>(
        &mut self,
        place: ClaimHandle,
        satisfies: bool,
        wants: Option<&PlacementConstraints>,
        effects: &mut Vec<Effect<R>>,
    ) -> EngineReply {
        let Some(claim) = self.claims.get(place) else { return EngineReply::StaleHandle };
        if claim.state == ClaimState::Releasing {
            return self.releasing_reply(place.claim);
        }
        let worker = &self.workers.registration(claim.worker).spec;
        if satisfies && wants.is_none_or(|wants| wants.allows(worker)) {
            return match wants {
                Some(wants) if !wants.matches(claim.spec.as_deref()) => EngineReply::ResourceMismatch,
                _ => self.disclose(place),
            };
        }
        if !claim.is_reserved() {
            return EngineReply::ActiveConflict;
        }
        self.end_claim(place, EndReason::RolledBack, effects);
        EngineReply::RolledBack
    }

    pub(in crate::engine) fn confirm(&mut self, place: ClaimHandle, now_ms: Millis) -> EngineReply {
        let Some(claim) = self.claims.get_mut(place) else { return EngineReply::StaleHandle };
        if claim.state == ClaimState::Releasing {
            return self.releasing_reply(place.claim);
        }
        claim.confirmed = true;
        claim.disclosure.set_reply_sent();
        self.activate(place, now_ms);
        self.reset_report_grace(place);
        self.disclose(place)
    }

    /// Makes a reserved claim active; from now on it needs renewals, if it has a time. False: it was no reservation.
    pub(in crate::engine) fn activate(&mut self, place: ClaimHandle, now_ms: Millis) -> bool {
        if !self.claims.get(place).is_some_and(Claim::is_reserved) {
            return false;
        }
        self.claims.transition(place, ClaimState::Active, Some(self.unix_ms(now_ms)));
        self.timers.cancel(place.claim);
        self.start_state_timer(place, now_ms);
        self.record_change(place.worker);
        true
    }

    /// The claim may stay in its state for its time, from now on.
    pub(in crate::engine) fn start_state_timer(&mut self, place: ClaimHandle, now_ms: Millis) {
        let stay_ms = self.claims.get(place).map_or(0, Claim::state_ttl_ms);
        if stay_ms > 0 {
            self.timers.set(place.claim, now_ms + stay_ms);
        }
    }

    pub(in crate::engine) fn renew(
        &mut self,
        place: ClaimHandle,
        ttl_ms: Option<Millis>,
        now_ms: Millis,
    ) -> EngineReply {
        let TtlBounds { default_ms, max_ms } = self.config.ttl;
        let asked = match ttl_ms.map(|ttl_ms| self.effective_ttl(ttl_ms)).transpose() {
            Ok(asked) => asked,
            Err(max_ms) => return EngineReply::TtlTooLong { max_ms },
        };
        let Some(claim) = self.claims.get_mut(place) else { return EngineReply::StaleHandle };
        match claim.state {
            ClaimState::Releasing => return self.releasing_reply(place.claim),
            ClaimState::Reserved => return EngineReply::NotActive,
            ClaimState::Active | ClaimState::Lost => {}
        }
        let after = match (asked, claim.term_ms.into()) {
            (Some(asked), _) => asked,
            (None, 0) => default_ms.unwrap_or(0),
            (None, before) => before.min(max_ms.unwrap_or(before)),
        };
        claim.confirmed = true;
        claim.disclosure.set_reply_sent();
        let before = std::mem::replace(&mut claim.term_ms, saturating_millis(after));
        if claim.term_ms != before {
            self.record_change(place.worker);
        }
        self.start_state_timer(place, now_ms);
        self.reset_report_grace(place);
        self.disclose(place)
    }

    /// Says how far the wall clock is ahead of the engine's time, which claims are dated by from now on.
    pub const fn set_wall_clock(&mut self, unix_ahead_ms: i64) {
        self.unix_ahead_ms = unix_ahead_ms;
    }

    /// Unix time in milliseconds of that moment of the engine's time.
    #[inline]
    pub(in crate::engine) const fn unix_ms(&self, now_ms: Millis) -> Millis {
        now_ms.saturating_add_signed(self.unix_ahead_ms)
    }

    /// Time that a claim may stay active without a renewal which asks for `ttl_ms`, or with 0 for none; 0: as long as its worker lives.
    /// Fails with the most that is allowed.
    #[inline]
    pub(in crate::engine) fn effective_ttl(&self, ttl_ms: Millis) -> Result<Millis, Millis> {
        let TtlBounds { default_ms, max_ms } = self.config.ttl;
        match max_ms {
            _ if ttl_ms == 0 => Ok(default_ms.unwrap_or(0)),
            Some(max_ms) if ttl_ms > max_ms => Err(max_ms),
            _ => Ok(ttl_ms),
        }
    }

    pub(in crate::engine) fn release<R>(&mut self, place: ClaimHandle, effects: &mut Vec<Effect<R>>) {
        if !self.end_claim(place, EndReason::Released, effects) {
            self.finish_late_cleanup(place);
        }
    }

    pub(in crate::engine) fn begin_release(&mut self, place: ClaimHandle, releasing_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get_mut(place).filter(|claim| claim.state != ClaimState::Releasing) else {
            return;
        };
        (claim.confirmed, claim.term_ms) = (true, saturating_millis(releasing_ms));
        claim.disclosure.set_reply_sent();
        self.claims.transition(place, ClaimState::Releasing, None);
        self.index_evictable(place.claim);
        self.timers.cancel(place.claim);
        self.start_state_timer(place, now_ms);
        self.record_change(place.worker);
    }

    /// Says what is held, and remembers that it was said.
    pub(in crate::engine) fn disclose(&mut self, place: ClaimHandle) -> EngineReply {
        match self.claims.get_mut(place) {
            None => EngineReply::StaleHandle,
            Some(claim) => {
                claim.disclosure.set_disclosed(DisclosureState::Disclosed);
                self.grant(place).map_or(EngineReply::StaleHandle, EngineReply::Held)
            }
        }
    }

    pub(in crate::engine) fn reply_sent(&mut self, place: ClaimHandle, at_ms: Millis) {
        let Some(claim) = self.claims.get(place) else { return };
        let (stay_ms, settled) = (claim.state_ttl_ms(), claim.confirmed || claim.state == ClaimState::Releasing);
        let moves_on = match self.timers.get(place.claim) {
            None => true,
            Some(deadline_ms) => !settled && deadline_ms < at_ms + stay_ms,
        };
        if self.is_provisional(place) {
            return;
        }
        if let Some(claim) = self.claims.get_mut(place) {
            claim.disclosure.set_reply_sent();
        }
        if moves_on {
            self.start_state_timer(place, at_ms);
        }
    }

    pub(in crate::engine) fn rollback<R>(&mut self, place: ClaimHandle, effects: &mut Vec<Effect<R>>) {
        if self.claims.get(place).is_some_and(|claim| !claim.confirmed && !claim.disclosure.is_disclosed()) {
            self.counters.rolled_back += 1;
            self.end_claim(place, EndReason::RolledBack, effects);
        }
    }

    /// Ends the claim at `place`, if it is still that one: its key is free, its worker is idle unless it is barred.
    /// False: it is gone.
    pub(in crate::engine) fn end_claim<R>(
        &mut self,
        place: ClaimHandle,
        end: EndReason,
        effects: &mut Vec<Effect<R>>,
    ) -> bool {
        let Some(worker) = self.claims.get(place).map(|claim| claim.worker) else { return false };
        if self.shared.is_some() {
            self.detach_claim(place.claim, worker);
        } else {
            self.workers.get_mut(worker).claim = NIL;
        }
        self.capacity_epoch += 1;
        self.unindex_evictable(place.claim);
        let claim = self.claims.remove(place.claim);
        self.gangs.remove_member(place.claim);
        self.timers.cancel(place.claim);
        let worker = self.workers.get_mut(claim.worker);
        let noted = worker.lookup_flags & notes::CLAIM_NOTES != 0;
        if worker.claim == NIL {
            worker.idle_seq = self.seq + 1;
            self.accounting.mark_free(worker.usage_index);
            self.busy -= 1;
            let (bars, line) = (worker.unschedulable_bits, worker.usage_index);
            if bars != 0 {
                self.accounting.mark_unschedulable(line);
                self.unschedulable.add_unclaimed(bars);
                self.unschedulable_version += 1;
                self.note_drained(claim.worker);
            } else {
                self.idle_queue.push(self.workers.hot_mut(), claim.worker);
            }
        }
        if noted {
            self.forget_claim_notes(place);
        }
        if claim.fence < self.lost_tail.end {
            let settled = &mut self.liveness.get_mut(claim.worker).ended_fence_max;
            *settled = claim.fence.max(*settled);
        }
        self.record_change(claim.worker);
        let times = claim.times();
        effects.push(Effect::ClaimEnded { id: claim.id, fence: claim.fence, end, worker: claim.worker, times });
        true
    }

    pub(in crate::engine) fn expire_due<R>(&mut self, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        // What is left stays due, and the shard serves others in between. One silent worker may hold many claims, so what is done
        // counts as well as the deadlines.
        let (begun, mut deadlines) = (effects.len(), 0);
        while deadlines.max(effects.len() - begun) < limits::EXPIRIES_PER_RUN_MAX {
            deadlines += 1;
            if let Some(at) = self.timers.expire(now_ms) {
                self.expire_claim(at, effects);
            } else if let Some(at) = self.liveness_timers.expire(now_ms) {
                self.expire_worker(at, now_ms, effects);
            } else if self.tombstones.front().is_some_and(|&(until, _)| until <= now_ms) {
                self.drop_oldest_tombstone();
            } else {
                return;
            }
        }
    }

    /// A deadline of a claim has passed.
    fn expire_claim<R>(&mut self, at: u32, effects: &mut Vec<Effect<R>>) {
        let Some(claim) = self.claims.by_ordinal(at) else { return };
        let (place, state) = (ClaimHandle { claim: at, worker: claim.worker, fence: claim.fence }, claim.state);
        let (count, end) = match state {
            ClaimState::Reserved => (&mut self.counters.lifecycle.reservations_expired, EndReason::ReservationExpired),
            ClaimState::Active | ClaimState::Lost => (&mut self.counters.lifecycle.expired, EndReason::Expired),
            ClaimState::Releasing => (&mut self.counters.lifecycle.cleanups_timed_out, EndReason::CleanupTimedOut),
        };
        *count += 1;
        if end == EndReason::CleanupTimedOut {
            // Of several nobody knows which is clean: only who speaks for the whole worker does.
            let uncleaned = &mut self.liveness.get_mut(place.worker).cleanup_timed_out;
            *uncleaned = if *uncleaned == 0 { place.fence } else { Fence::MAX };
            self.update_unschedulable(place.worker, unschedulable_bits::SUSPECT, 0);
            self.retain_ended(place, ClaimState::Releasing, effects);
        }
        self.end_claim(place, end, effects);
    }
}
