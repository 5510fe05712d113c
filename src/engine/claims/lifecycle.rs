//! What becomes of a claim that is held: it is confirmed, renewed, told of, released in one step or two, given back, swept
//! when its time has passed. Every end goes through [`Shard::end`], and nothing else frees a worker.

use crate::engine::NIL;
use crate::engine::claims::{Claim, Told};
use crate::engine::effect::{Answer, Effect, End};
use crate::engine::event::Place;
use crate::engine::placement::constraints::Wants;
use crate::engine::shard::{Shard, term};
use crate::engine::workers::conditions::notes;
use crate::limits;
use crate::model::unschedulable_bits;
use crate::model::{ClaimState, Fence, Millis, TtlBounds};

impl Shard {
    pub(in crate::engine) fn repeat<R>(
        &mut self,
        place: Place,
        satisfies: bool,
        wants: Option<&Wants>,
        effects: &mut Vec<Effect<R>>,
    ) -> Answer {
        let Some(claim) = self.claims.get(place) else { return Answer::Gone };
        if claim.state == ClaimState::Releasing {
            return self.why_releasing(place.claim);
        }
        let worker = &self.workers.card(claim.worker).spec;
        if satisfies && wants.is_none_or(|wants| wants.allows(worker)) {
            return match wants {
                Some(wants) if !wants.matches(claim.spec.as_deref()) => Answer::Mismatch,
                _ => self.tell(place),
            };
        }
        if !claim.is_reserved() {
            return Answer::ActiveElsewhere;
        }
        self.end(place, End::GivenBack, effects);
        Answer::GivenBack
    }

    pub(in crate::engine) fn confirm(&mut self, place: Place, now_ms: Millis) -> Answer {
        let Some(claim) = self.claims.get_mut(place) else { return Answer::Gone };
        if claim.state == ClaimState::Releasing {
            return self.why_releasing(place.claim);
        }
        claim.confirmed = true;
        claim.disclosed.set_answered();
        self.activate(place, now_ms);
        self.spoken_for(place);
        self.tell(place)
    }

    /// Makes a reserved claim active; from now on it needs renewals, if it has a time. False: it was no reservation.
    pub(in crate::engine) fn activate(&mut self, place: Place, now_ms: Millis) -> bool {
        if !self.claims.get(place).is_some_and(Claim::is_reserved) {
            return false;
        }
        self.claims.turn(place, ClaimState::Active, Some(self.unix_ms(now_ms)));
        self.timers.cancel(place.claim);
        self.start_stay(place, now_ms);
        self.touch(place.worker);
        true
    }

    /// The claim may stay in its state for its time, from now on.
    pub(in crate::engine) fn start_stay(&mut self, place: Place, now_ms: Millis) {
        let stay_ms = self.claims.get(place).map_or(0, Claim::stay_ms);
        if stay_ms > 0 {
            self.timers.set(place.claim, now_ms + stay_ms);
        }
    }

    pub(in crate::engine) fn renew(&mut self, place: Place, ttl_ms: Option<Millis>, now_ms: Millis) -> Answer {
        let TtlBounds { default_ms, max_ms } = self.rules.ttl;
        let asked = match ttl_ms.map(|ttl_ms| self.ttl_of(ttl_ms)).transpose() {
            Ok(asked) => asked,
            Err(max_ms) => return Answer::TtlTooLong { max_ms },
        };
        let Some(claim) = self.claims.get_mut(place) else { return Answer::Gone };
        match claim.state {
            ClaimState::Releasing => return self.why_releasing(place.claim),
            ClaimState::Reserved => return Answer::NotActive,
            ClaimState::Active | ClaimState::Lost => {}
        }
        let after = match (asked, claim.term_ms.into()) {
            (Some(asked), _) => asked,
            (None, 0) => default_ms.unwrap_or(0),
            (None, before) => before.min(max_ms.unwrap_or(before)),
        };
        claim.confirmed = true;
        claim.disclosed.set_answered();
        let before = std::mem::replace(&mut claim.term_ms, term(after));
        if claim.term_ms != before {
            self.touch(place.worker);
        }
        self.start_stay(place, now_ms);
        self.spoken_for(place);
        self.tell(place)
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
    pub(in crate::engine) fn ttl_of(&self, ttl_ms: Millis) -> Result<Millis, Millis> {
        let TtlBounds { default_ms, max_ms } = self.rules.ttl;
        match max_ms {
            _ if ttl_ms == 0 => Ok(default_ms.unwrap_or(0)),
            Some(max_ms) if ttl_ms > max_ms => Err(max_ms),
            _ => Ok(ttl_ms),
        }
    }

    pub(in crate::engine) fn release<R>(&mut self, place: Place, effects: &mut Vec<Effect<R>>) {
        if !self.end(place, End::Released, effects) {
            self.cleaned(place);
        }
    }

    pub(in crate::engine) fn begin_release(&mut self, place: Place, releasing_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get_mut(place).filter(|claim| claim.state != ClaimState::Releasing) else {
            return;
        };
        (claim.confirmed, claim.term_ms) = (true, term(releasing_ms));
        claim.disclosed.set_answered();
        self.claims.turn(place, ClaimState::Releasing, None);
        self.index_victim(place.claim);
        self.timers.cancel(place.claim);
        self.start_stay(place, now_ms);
        self.touch(place.worker);
    }

    /// Says what is held, and remembers that it was said.
    pub(in crate::engine) fn tell(&mut self, place: Place) -> Answer {
        match self.claims.get_mut(place) {
            None => Answer::Gone,
            Some(claim) => {
                claim.disclosed.set_told(Told::Others);
                self.grant(place).map_or(Answer::Gone, Answer::Held)
            }
        }
    }

    pub(in crate::engine) fn departed(&mut self, place: Place, at_ms: Millis) {
        let Some(claim) = self.claims.get(place) else { return };
        let (stay_ms, settled) = (claim.stay_ms(), claim.confirmed || claim.state == ClaimState::Releasing);
        let moves_on = match self.timers.get(place.claim) {
            None => true,
            Some(deadline_ms) => !settled && deadline_ms < at_ms + stay_ms,
        };
        if self.is_provisional(place) {
            return;
        }
        if let Some(claim) = self.claims.get_mut(place) {
            claim.disclosed.set_answered();
        }
        if moves_on {
            self.start_stay(place, at_ms);
        }
    }

    pub(in crate::engine) fn give_back<R>(&mut self, place: Place, effects: &mut Vec<Effect<R>>) {
        if self.claims.get(place).is_some_and(|claim| !claim.confirmed && !claim.disclosed.is_told()) {
            self.counters.given_back += 1;
            self.end(place, End::GivenBack, effects);
        }
    }

    /// Ends the claim at `place`, if it is still that one: its key is free, its worker is idle unless it is barred.
    /// False: it is gone.
    pub(in crate::engine) fn end<R>(&mut self, place: Place, end: End, effects: &mut Vec<Effect<R>>) -> bool {
        let Some(worker) = self.claims.get(place).map(|claim| claim.worker) else { return false };
        if self.shares.is_some() {
            self.detach_share(place.claim, worker);
        } else {
            self.workers.get_mut(worker).claim = NIL;
        }
        self.raised += 1;
        self.forget_victim(place.claim);
        let claim = self.claims.remove(place.claim);
        self.gangs.leave(place.claim);
        self.timers.cancel(place.claim);
        let worker = self.workers.get_mut(claim.worker);
        let noted = worker.notes & notes::OF_CLAIM != 0;
        if worker.claim == NIL {
            worker.idle_seq = self.seq + 1;
            self.ledger.free(worker.line);
            self.busy -= 1;
            let (bars, line) = (worker.bars, worker.line);
            if bars != 0 {
                self.ledger.bar(line);
                self.barred.enter_free(bars);
                self.bar_changes += 1;
                self.note_drained(claim.worker);
            } else {
                self.idle.push(self.workers.hot_mut(), claim.worker);
            }
        }
        if noted {
            self.forget_claim(place);
        }
        if claim.fence < self.lost_tail.end {
            let settled = &mut self.lives.get_mut(claim.worker).settled;
            *settled = claim.fence.max(*settled);
        }
        self.touch(claim.worker);
        let times = claim.times();
        effects.push(Effect::Ended { id: claim.id, fence: claim.fence, end, worker: claim.worker, times });
        true
    }

    pub(in crate::engine) fn sweep<R>(&mut self, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        // What is left stays due, and the shard serves others in between. One silent worker may hold many claims, so what is done
        // counts as well as the deadlines.
        let (begun, mut deadlines) = (effects.len(), 0);
        while deadlines.max(effects.len() - begun) < limits::SWEEP_MAX {
            deadlines += 1;
            if let Some(at) = self.timers.expire(now_ms) {
                self.sweep_claim(at, effects);
            } else if let Some(at) = self.beats.expire(now_ms) {
                self.sweep_worker(at, now_ms, effects);
            } else if self.tombstones.front().is_some_and(|&(until, _)| until <= now_ms) {
                self.forget_oldest();
            } else {
                return;
            }
        }
    }

    /// A deadline of a claim has passed.
    fn sweep_claim<R>(&mut self, at: u32, effects: &mut Vec<Effect<R>>) {
        let Some(claim) = self.claims.at(at) else { return };
        let (place, state) = (Place { claim: at, worker: claim.worker, fence: claim.fence }, claim.state);
        let (count, end) = match state {
            ClaimState::Reserved => (&mut self.counters.life.swept, End::Swept),
            ClaimState::Active | ClaimState::Lost => (&mut self.counters.life.expired, End::Expired),
            ClaimState::Releasing => (&mut self.counters.life.uncleaned, End::Uncleaned),
        };
        *count += 1;
        if end == End::Uncleaned {
            // Of several nobody knows which is clean: only who speaks for the whole worker does.
            let uncleaned = &mut self.lives.get_mut(place.worker).uncleaned;
            *uncleaned = if *uncleaned == 0 { place.fence } else { Fence::MAX };
            self.bar(place.worker, unschedulable_bits::SUSPECT, 0);
            self.remember(place, ClaimState::Releasing, effects);
        }
        self.end(place, end, effects);
    }
}
