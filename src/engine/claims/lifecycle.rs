//! Lifecycle of a live claim: confirm, renew, disclose, release in one step or two, roll back, expire. Every end goes
//! through [`Shard::end_claim`], and nothing else frees a worker.

use crate::engine::NIL;
use crate::engine::claims::Claim;
use crate::engine::effect::{Effect, EndReason, EngineReply};
use crate::engine::event::{ClaimHandle, PoolEligibility};
use crate::engine::placement::constraints::PlacementConstraints;
use crate::engine::shard::{Shard, saturating_millis};
use crate::engine::workers::liveness::{TimedOutCleanup, lookup_flags};
use crate::limits;
use crate::model::unschedulable_bits;
use crate::model::{ClaimState, Millis, TtlBounds};

impl Shard {
    /// Shows the claim to another request for its key. Not inlined, because its frame would cost every event.
    #[inline(never)]
    pub(in crate::engine) fn reacquire(
        &mut self,
        handle: ClaimHandle,
        pool: PoolEligibility,
        constraints: Option<&PlacementConstraints>,
        effects: &mut Vec<Effect>,
    ) -> EngineReply {
        let Some(claim) = self.claims.get(handle) else { return EngineReply::StaleHandle };
        if claim.state == ClaimState::Releasing {
            return self.releasing_reply(handle.claim);
        }
        let worker = &self.workers.registration(claim.worker).spec;
        if pool != PoolEligibility::Ineligible && constraints.is_none_or(|constraints| constraints.allows(worker)) {
            return match constraints {
                Some(constraints) if !constraints.matches(claim.spec.as_deref()) => EngineReply::ResourceMismatch,
                _ => self.disclose(handle),
            };
        }
        if !claim.is_reserved() || pool == PoolEligibility::EligibleToKeep {
            return EngineReply::ActiveConflict;
        }
        self.end_claim(handle, EndReason::RolledBack, effects);
        EngineReply::RolledBack
    }

    pub(in crate::engine) fn confirm(&mut self, handle: ClaimHandle, now_ms: Millis) -> EngineReply {
        let Some(claim) = self.claims.get_mut(handle) else { return EngineReply::StaleHandle };
        if claim.state == ClaimState::Releasing {
            return self.releasing_reply(handle.claim);
        }
        claim.disclosure.set_confirmed();
        claim.disclosure.set_reply_sent();
        self.activate(handle, now_ms);
        self.reset_report_grace(handle);
        self.disclose(handle)
    }

    /// Activates a reserved claim; from now on it needs renewals if it has a time to live. False: it was not
    /// reserved.
    pub(in crate::engine) fn activate(&mut self, handle: ClaimHandle, now_ms: Millis) -> bool {
        if !self.claims.get(handle).is_some_and(Claim::is_reserved) {
            return false;
        }
        self.claims.transition(handle, ClaimState::Active, Some(self.unix_ms(now_ms)));
        self.timers.cancel(handle.claim);
        self.start_state_timer(handle, now_ms);
        self.record_change(handle.worker);
        true
    }

    /// Starts the timer of the claim's state, if the state has a limit.
    pub(in crate::engine) fn start_state_timer(&mut self, handle: ClaimHandle, now_ms: Millis) {
        let limit_ms = self.claims.get(handle).map_or(0, Claim::state_ttl_ms);
        if limit_ms > 0 {
            self.timers.set(handle.claim, now_ms + limit_ms);
        }
    }

    pub(in crate::engine) fn renew(
        &mut self,
        handle: ClaimHandle,
        ttl_ms: Option<Millis>,
        now_ms: Millis,
    ) -> EngineReply {
        let TtlBounds { default_ms, max_ms } = self.config.ttl;
        let requested = match ttl_ms.map(|ttl_ms| self.effective_ttl(ttl_ms)).transpose() {
            Ok(requested) => requested,
            Err(max_ms) => return EngineReply::TtlTooLong { max_ms },
        };
        let Some(claim) = self.claims.get_mut(handle) else { return EngineReply::StaleHandle };
        match claim.state {
            ClaimState::Releasing => return self.releasing_reply(handle.claim),
            ClaimState::Reserved => return EngineReply::NotActive,
            ClaimState::Active | ClaimState::Lost => {}
        }
        let after = match (requested, claim.term_ms.into()) {
            (Some(requested), _) => requested,
            (None, 0) => default_ms.unwrap_or(0),
            (None, before) => before.min(max_ms.unwrap_or(before)),
        };
        claim.disclosure.set_confirmed();
        claim.disclosure.set_reply_sent();
        let before = std::mem::replace(&mut claim.term_ms, saturating_millis(after));
        if claim.term_ms != before {
            self.record_change(handle.worker);
        }
        self.start_state_timer(handle, now_ms);
        self.reset_report_grace(handle);
        self.disclose(handle)
    }

    /// Sets the offset of the wall clock from engine time, which dates claims from now on.
    pub const fn set_wall_clock(&mut self, unix_ahead_ms: i64) {
        self.unix_ahead_ms = unix_ahead_ms;
    }

    /// Unix time in milliseconds at a moment of engine time.
    #[inline]
    pub(in crate::engine) const fn unix_ms(&self, now_ms: Millis) -> Millis {
        now_ms.saturating_add_signed(self.unix_ahead_ms)
    }

    /// Time to live of a claim that requests `ttl_ms`, where 0 requests the default; 0: as long as its worker lives.
    /// Fails with the limit if that is exceeded.
    #[inline]
    pub(in crate::engine) fn effective_ttl(&self, ttl_ms: Millis) -> Result<Millis, Millis> {
        let TtlBounds { default_ms, max_ms } = self.config.ttl;
        match max_ms {
            _ if ttl_ms == 0 => Ok(default_ms.unwrap_or(0)),
            Some(max_ms) if ttl_ms > max_ms => Err(max_ms),
            _ => Ok(ttl_ms),
        }
    }

    pub(in crate::engine) fn release(&mut self, handle: ClaimHandle, effects: &mut Vec<Effect>) -> EngineReply {
        if self.end_claim(handle, EndReason::Released, effects) || self.finish_late_cleanup(handle) {
            EngineReply::Released
        } else {
            EngineReply::StaleHandle
        }
    }

    pub(in crate::engine) fn begin_release(
        &mut self,
        handle: ClaimHandle,
        releasing_ms: Millis,
        now_ms: Millis,
    ) -> EngineReply {
        let Some(claim) = self.claims.get_mut(handle) else { return EngineReply::StaleHandle };
        if claim.state == ClaimState::Releasing {
            return EngineReply::Released;
        }
        claim.term_ms = saturating_millis(releasing_ms);
        claim.disclosure.set_confirmed();
        claim.disclosure.set_reply_sent();
        self.claims.transition(handle, ClaimState::Releasing, None);
        self.index_evictable(handle.claim);
        self.timers.cancel(handle.claim);
        self.start_state_timer(handle, now_ms);
        self.record_change(handle.worker);
        EngineReply::Released
    }

    /// Shows the live claim in a reply, which counts as a reference until nobody can read it any more.
    pub(in crate::engine) fn disclose(&mut self, handle: ClaimHandle) -> EngineReply {
        match self.claims.get_mut(handle) {
            None => EngineReply::StaleHandle,
            Some(claim) => {
                claim.disclosure.add_reference();
                self.grant(handle).map_or(EngineReply::StaleHandle, EngineReply::Held)
            }
        }
    }

    /// Handles [`Event::ReplySent`](crate::engine::Event::ReplySent), which has no effects. Every grant needs it.
    pub fn note_reply_sent(&mut self, handle: ClaimHandle, at_ms: Millis) {
        let Some(claim) = self.claims.get(handle) else { return };
        let is_final = claim.disclosure.is_confirmed() || claim.state == ClaimState::Releasing;
        let limit_ms = claim.state_ttl_ms();
        let should_start = match self.timers.get(handle.claim) {
            None => true,
            Some(deadline_ms) => !is_final && deadline_ms < at_ms + limit_ms,
        };
        if self.is_provisional(handle) {
            return;
        }
        if let Some(claim) = self.claims.get_mut(handle) {
            claim.disclosure.set_reply_sent();
        }
        if should_start {
            self.start_state_timer(handle, at_ms);
        }
    }

    pub(in crate::engine) fn rollback(&mut self, handle: ClaimHandle, effects: &mut Vec<Effect>) {
        let Some(claim) = self.claims.get_mut(handle) else { return };
        claim.disclosure.set_grant_unread();
        if claim.disclosure.is_orphan() {
            self.counters.rolled_back += 1;
            self.end_claim(handle, EndReason::RolledBack, effects);
        }
    }

    /// Ends the claim unless the handle is stale: its key is free, its worker is idle unless it is unschedulable.
    /// False: the handle is stale.
    pub(in crate::engine) fn end_claim(
        &mut self,
        handle: ClaimHandle,
        end: EndReason,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(worker) = self.claims.get(handle).map(|claim| claim.worker) else { return false };
        if self.shared.is_some() {
            self.detach_claim(handle.claim, worker);
        } else {
            self.workers.get_mut(worker).claim = NIL;
        }
        self.freed.add(worker);
        self.unindex_evictable(handle.claim);
        let claim = self.claims.remove(handle.claim);
        self.gangs.remove_member(handle.claim);
        self.timers.cancel(handle.claim);
        let worker = self.workers.get_mut(claim.worker);
        let has_notes = worker.lookup_flags & lookup_flags::HAS_CLAIM_NOTES != 0;
        debug_assert!(!worker.idle, "Q1: a worker is idle while its claim ends");
        if worker.claim == NIL {
            worker.idle_seq = self.changes.seq() + 1;
            let reasons = worker.unschedulable_bits;
            self.accounting.vacate(worker.usage_index, reasons);
            if reasons != 0 {
                self.note_drained(claim.worker);
            } else {
                self.idle_queue.push(self.workers.hot_mut(), claim.worker);
            }
        }
        if has_notes {
            self.forget_claim_notes(handle);
        }
        if claim.fence < self.lost_tail.end {
            let ended_fence_max = &mut self.liveness.get_mut(claim.worker).ended_fence_max;
            *ended_fence_max = claim.fence.max(*ended_fence_max);
        }
        debug_assert!(self.timers.get(handle.claim).is_none(), "L3: an ended claim keeps its deadline");
        debug_assert!(!self.is_provisional(handle), "G1: an ended claim stays in its gang");
        debug_assert!(!self.is_evicted(handle.claim), "Q12: an ended claim is still being evicted");
        self.record_change(claim.worker);
        let times = claim.times();
        effects.push(Effect::ClaimEnded { id: claim.id, fence: claim.fence, end, worker: claim.worker, times });
        true
    }

    pub(in crate::engine) fn expire_due(&mut self, now_ms: Millis, effects: &mut Vec<Effect>) {
        // The remainder stays due, and the shard serves others in between. One lost worker may hold many claims, so
        // effects count as well as deadlines.
        let (effects_before, mut deadlines) = (effects.len(), 0);
        while deadlines.max(effects.len() - effects_before) < limits::EXPIRIES_PER_RUN_MAX {
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

    /// Ends a claim whose deadline has passed.
    fn expire_claim(&mut self, at: u32, effects: &mut Vec<Effect>) {
        let Some(claim) = self.claims.by_ordinal(at) else { return };
        let (handle, state) = (ClaimHandle { claim: at, worker: claim.worker, fence: claim.fence }, claim.state);
        let lifecycle = self.lifecycle_mut();
        let (count, end) = match state {
            ClaimState::Reserved => (&mut lifecycle.reservations_expired, EndReason::ReservationExpired),
            ClaimState::Active | ClaimState::Lost => (&mut lifecycle.expired, EndReason::Expired),
            ClaimState::Releasing => (&mut lifecycle.cleanups_timed_out, EndReason::CleanupTimedOut),
        };
        *count += 1;
        if end == EndReason::CleanupTimedOut {
            // After several, no single late clean-up proves the worker clean: only an operator or a full report does.
            let cleanup = &mut self.liveness.get_mut(handle.worker).timed_out_cleanup;
            *cleanup = match cleanup {
                TimedOutCleanup::None => TimedOutCleanup::One(handle.fence),
                TimedOutCleanup::One(_) | TimedOutCleanup::Several => TimedOutCleanup::Several,
            };
            self.update_unschedulable(handle.worker, unschedulable_bits::SUSPECT, 0);
            if self.is_evicted(handle.claim) {
                self.add_unreleased_eviction(handle.worker);
            }
            self.retain_ended(handle, ClaimState::Releasing, effects);
        }
        self.end_claim(handle, end, effects);
    }
}
