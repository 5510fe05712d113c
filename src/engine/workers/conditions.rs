//! What befalls a worker beside its claims: may it be offered (its *bars*), and what only a heartbeat, a registration
//! or a deadline looks at (its *life*). Lives are kept apart from the hot part of a worker, so that a claim does not
//! bring them into the cache; where the hot path must know that there is something to look up, one bit of
//! [`notes`] says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::NIL;
use crate::engine::effect::{Answer, Axes, Effect, End};
use crate::engine::event::Place;
use crate::engine::shard::Shard;
use crate::model::unschedulable_bits;
use crate::model::{
    Capacity, ClaimState, Fence, Liveness, Millis, Schedulability, Trust, UnschedulableCounts, WorkerId, WorkerVerb,
};

/// What the hot part of a worker says about its cold one.
pub mod notes {
    /// It has an end of life: a claim must not need it for longer.
    pub const ENDS: u8 = 1;
    /// Its life says something about the claim that it holds.
    pub const OF_CLAIM: u8 = 2;
    /// It was granted a claim since the shard was loaded: nothing that was lost before can be adopted any more.
    pub const GRANTED: u8 = 4;
}

/// The cold part of a worker.
#[derive(Debug, Clone, Default)]
pub struct Life {
    /// Highest number of a heartbeat of this incarnation.
    pub beat_seq: Option<u64>,
    /// How long it may be silent; 0: it never sent a heartbeat.
    pub ttl_ms: Millis,
    /// When silence becomes loss.
    pub silent_at_ms: Option<Millis>,
    /// When it is deleted, because it is lost and nobody wants it kept.
    pub deleted_at_ms: Option<Millis>,
    /// Claims that its last list does not name, by fence, each with the time at which it ends.
    pub missing: BTreeMap<Fence, (Place, Millis)>,
    /// Its own end of life.
    pub ends_ms: Option<Millis>,
    /// Fence of the claim whose clean-up never finished; 0: none.
    pub uncleaned: Fence,
    /// Highest fence of a claim from before the shard was loaded that is over: such a one is not adopted any more.
    pub settled: Fence,
    /// What its claim was promised, if that is more than it has now.
    pub promised: Option<Box<Capacity>>,
}

/// Of a worker about which there was no word yet.
static NONE: Life = Life {
    beat_seq: None,
    ttl_ms: 0,
    silent_at_ms: None,
    deleted_at_ms: None,
    missing: BTreeMap::new(),
    ends_ms: None,
    uncleaned: 0,
    settled: 0,
    promised: None,
};

impl Life {
    pub fn next_ms(&self) -> Option<Millis> {
        let missing = self.missing.values().map(|&(_, at)| at).min();
        [self.silent_at_ms, self.deleted_at_ms, missing, self.ends_ms].into_iter().flatten().min()
    }
}

/// Lives by ordinal; made at the first word about them.
#[derive(Debug, Default)]
pub struct Lives(Vec<Life>);

impl Lives {
    pub fn get(&self, at: u32) -> &Life {
        self.0.get(at as usize).unwrap_or(&NONE)
    }

    pub fn get_mut(&mut self, at: u32) -> &mut Life {
        if self.0.len() <= at as usize {
            self.0.resize_with(at as usize + 1, Life::default);
        }
        &mut self.0[at as usize]
    }

    /// The ordinal is another worker's from now on.
    pub fn forget(&mut self, at: u32) {
        if let Some(life) = self.0.get_mut(at as usize) {
            *life = Life::default();
        }
    }
}

/// Workers that are not offered, by reason. Kept up to date by every change of a worker's bars or claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Barred {
    /// Every such worker, under each reason that applies: one that holds claims too.
    pub by_each: UnschedulableCounts,
    /// Those that hold no claim, each under the first reason that applies. With the idle and the busy workers these are all.
    pub by_first: UnschedulableCounts,
    /// Suspect workers for which nothing has spoken since a stop that may have lost claims.
    pub unvouched: u64,
}

impl Barred {
    /// A worker has these bars from now on.
    pub(in crate::engine) fn enter(&mut self, bars: u8) {
        unschedulable_bits::reasons(bars).for_each(|reason| *self.by_each.get_mut(reason) += 1);
        self.unvouched += u64::from(bars & unschedulable_bits::UNVOUCHED != 0);
    }

    /// A worker does not have these bars any more.
    pub(in crate::engine) fn leave(&mut self, bars: u8) {
        unschedulable_bits::reasons(bars).for_each(|reason| *self.by_each.get_mut(reason) -= 1);
        self.unvouched -= u64::from(bars & unschedulable_bits::UNVOUCHED != 0);
    }

    /// A worker with these bars holds no claim from now on.
    pub(in crate::engine) fn enter_free(&mut self, bars: u8) {
        unschedulable_bits::reasons(bars).take(1).for_each(|reason| *self.by_first.get_mut(reason) += 1);
    }

    /// A worker with these bars is not among those that hold no claim any more.
    pub(in crate::engine) fn leave_free(&mut self, bars: u8) {
        unschedulable_bits::reasons(bars).take(1).for_each(|reason| *self.by_first.get_mut(reason) -= 1);
    }
}

impl Shard {
    /// Changes why a worker is not offered; with the last reason gone it is idle, unless it is held. Touches it if
    /// anything changed.
    pub(in crate::engine) fn bar(&mut self, at: u32, set: u8, clear: u8) {
        let worker = self.workers.get_mut(at);
        debug_assert!(!worker.deleted, "W1: a deleted worker has no bars");
        let before = worker.bars;
        let after = (before & !clear) | set;
        if before == after {
            return;
        }
        worker.bars = after;
        let (free, line) = (worker.claim == NIL, worker.line);
        self.raised += u64::from(after == 0);
        self.barred.leave(before);
        self.barred.enter(after);
        if free {
            self.barred.leave_free(before);
            self.barred.enter_free(after);
        }
        self.bar_changes += 1;
        if free && before == 0 {
            self.idle.remove(self.workers.hot_mut(), at);
            self.ledger.bar(line);
        } else if free && after == 0 {
            self.ledger.unbar(line);
            self.workers.get_mut(at).idle_seq = self.seq + 1;
            self.idle.push(self.workers.hot_mut(), at);
        }
        self.note_drained(at);
        if self.shares.is_some() {
            self.offer_share(at);
        }
        self.touch(at);
    }

    /// Brings the set of drained workers up to date: this one's claims or the reasons why it is not offered have changed.
    pub(in crate::engine) fn note_drained(&mut self, at: u32) {
        if self.is_drained(at) {
            self.drained.insert(at);
        } else {
            self.drained.remove(&at);
        }
    }

    /// Whether the worker holds nothing and is not offered only because it is cordoned or draining.
    pub(in crate::engine) fn is_drained(&self, at: u32) -> bool {
        const OWNERS: u8 = unschedulable_bits::CORDONED | unschedulable_bits::DRAINING;
        let worker = self.workers.get(at);
        !worker.deleted && worker.claim == NIL && worker.bars & OWNERS != 0 && worker.bars & !OWNERS == 0
    }

    /// What the owner of a worker wishes.
    pub(in crate::engine) fn steer(&mut self, id: &WorkerId, verb: WorkerVerb, now_ms: Millis) -> Answer {
        let Some(at) = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted) else {
            return Answer::UnknownWorker;
        };
        match verb {
            WorkerVerb::Cordon => self.bar(at, unschedulable_bits::CORDONED, 0),
            WorkerVerb::Uncordon if self.workers.get(at).bars & unschedulable_bits::DRAINING != 0 => {
                return Answer::Draining;
            }
            WorkerVerb::Uncordon => self.bar(at, 0, unschedulable_bits::CORDONED),
            WorkerVerb::Drain => self.bar(at, unschedulable_bits::DRAINING, 0),
            WorkerVerb::Clear => {
                if let Some(left_ms) = self.settles_in(at, now_ms) {
                    return Answer::Settling { left_ms };
                }
                self.vouch(at);
            }
        }
        self.keep_lost(at, now_ms);
        Answer::Steered(Box::new(self.look(at)))
    }

    /// The owner of all workers speaks for them. Those whose time has not come stay suspect.
    pub(in crate::engine) fn clear_all(&mut self, now_ms: Millis) -> Answer {
        let distrusted = unschedulable_bits::DISTRUST | unschedulable_bits::STOPPING;
        let wanted: Vec<u32> = self
            .workers
            .iter_from(0)
            .filter(|&at| self.workers.get(at).bars & distrusted != 0 && self.settles_in(at, now_ms).is_none())
            .collect();
        let cleared = wanted.len();
        for at in wanted {
            self.vouch(at);
        }
        Answer::Cleared { cleared: cleared as u64, suspect: self.barred.by_each.suspect }
    }

    /// How long nothing can speak for the worker yet: claims that the last stop may have lost can still be started.
    pub(in crate::engine) fn settles_in(&self, at: u32, now_ms: Millis) -> Option<Millis> {
        let unvouched = self.workers.get(at).bars & unschedulable_bits::UNVOUCHED != 0;
        (unvouched && now_ms < self.settled_ms).then(|| self.settled_ms - now_ms)
    }

    /// Somebody who may has spoken for the worker as it stands.
    fn vouch(&mut self, at: u32) {
        if self.workers.get(at).bars & unschedulable_bits::DISTRUST != 0 {
            self.lives.get_mut(at).uncleaned = 0;
        }
        self.bar(at, 0, unschedulable_bits::DISTRUST | unschedulable_bits::STOPPING);
    }

    /// The clean-up that `place` stands for came to its end after it had been given up: its worker is clean.
    pub(in crate::engine) fn cleaned(&mut self, place: Place) {
        let there = (place.worker < self.workers.ordinals()) && self.workers.is_used(place.worker);
        if there && place.fence != 0 && self.lives.get(place.worker).uncleaned == place.fence {
            self.lives.get_mut(place.worker).uncleaned = 0;
            self.bar(place.worker, 0, unschedulable_bits::SUSPECT);
        }
    }

    /// The worker was heard of: its silence begins anew.
    pub(in crate::engine) fn heard(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis) {
        let life = self.lives.get_mut(at);
        let before = std::mem::replace(&mut life.ttl_ms, ttl_ms);
        (life.silent_at_ms, life.deleted_at_ms) = ((ttl_ms > 0).then_some(now_ms + ttl_ms), None);
        self.bar(at, 0, unschedulable_bits::LOST);
        if before != ttl_ms {
            // Once in its life, or when the pool's time changes: a heartbeat writes nothing.
            self.touch(at);
        }
        self.schedule(at);
    }

    /// Says when a worker that is lost is deleted, if it is and that is not said yet. A cordon outlives every life of a
    /// worker, and would not outlive its deletion: with one it is kept.
    pub(in crate::engine) fn keep_lost(&mut self, at: u32, now_ms: Millis) {
        let goes = self.workers.get(at).bars & (unschedulable_bits::LOST | unschedulable_bits::CORDONED)
            == unschedulable_bits::LOST;
        let before = self.lives.get(at).deleted_at_ms;
        let after = self.rules.lost_keep_ms.filter(|_| goes).map(|keep_ms| before.unwrap_or(now_ms + keep_ms));
        if before != after {
            self.lives.get_mut(at).deleted_at_ms = after;
            self.schedule(at);
        }
    }

    /// The time that lost workers are kept is another, and counts from now on.
    pub(in crate::engine) fn keep_all_lost(&mut self, now_ms: Millis) {
        let is_lost = |at: &u32| self.workers.get(*at).bars & unschedulable_bits::LOST != 0;
        let lost: Vec<u32> = self.workers.iter_from(0).filter(is_lost).collect();
        for at in lost {
            self.lives.get_mut(at).deleted_at_ms = None;
            self.keep_lost(at, now_ms);
            self.schedule(at);
        }
    }

    /// Takes the end of life of a registration over.
    pub(in crate::engine) fn set_end(&mut self, at: u32, ends_ms: Option<Millis>, now_ms: Millis) {
        let over = ends_ms.is_some_and(|at| at <= now_ms);
        if ends_ms.is_some() || self.lives.get(at).ends_ms.is_some() {
            self.lives.get_mut(at).ends_ms = ends_ms.filter(|_| !over);
        }
        self.index_end(at);
        let worker = self.workers.get_mut(at);
        worker.notes = (worker.notes & !notes::ENDS) | if ends_ms.is_some() { notes::ENDS } else { 0 };
        let (set, clear) = if over { (unschedulable_bits::ENDED, 0) } else { (0, unschedulable_bits::ENDED) };
        self.bar(at, set, clear);
        self.schedule(at);
    }

    /// Brings the orders in which workers are found up to date with the end of its life.
    pub(in crate::engine) fn index_end(&mut self, at: u32) {
        let ends_ms = self.lives.get(at).ends_ms;
        self.idle.set_ends_ms(self.workers.hot_mut(), at, ends_ms);
        if let Some(shares) = &mut self.shares {
            shares.fleet.set_ends_ms(at, ends_ms);
        }
    }

    /// Sets the worker's deadline to the next of those in its life.
    pub(in crate::engine) fn schedule(&mut self, at: u32) {
        match self.lives.get(at).next_ms() {
            Some(due) => self.beats.set(at, due),
            None => self.beats.cancel(at),
        }
    }

    /// A deadline of the worker has passed.
    pub(in crate::engine) fn sweep_worker<R>(&mut self, at: u32, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        let due = |deadline: &mut Option<Millis>| deadline.take_if(|at| *at <= now_ms).is_some();
        let life = self.lives.get_mut(at);
        let (silent, ended) = (due(&mut life.silent_at_ms), due(&mut life.ends_ms));
        let deleted = due(&mut life.deleted_at_ms);
        let missing: Vec<_> = life.missing.extract_if(.., |_, (_, at)| *at <= now_ms).collect();
        for (_, (place, _)) in missing {
            // What began to be released since is cleaned, and its worker stays held until that is over.
            if self.claims.get(place).is_some_and(|claim| claim.state == ClaimState::Active) {
                self.counters.life.missing += u64::from(self.end(place, End::Missing, effects));
            }
        }
        if silent {
            self.counters.life.lost_workers += 1;
            // What it ran may run on: before it is offered again it has to say what it runs.
            let held = self.workers.get(at).claim != NIL;
            self.bar(
                at,
                if held { unschedulable_bits::LOST | unschedulable_bits::SUSPECT } else { unschedulable_bits::LOST },
                0,
            );
            effects.push(Effect::Silent { worker: at });
            self.lose(at, effects);
            self.keep_lost(at, now_ms);
        }
        if ended {
            self.bar(at, unschedulable_bits::ENDED, 0);
            self.index_end(at);
        }
        if deleted {
            self.counters.life.deleted_workers += 1;
            effects.push(Effect::Deleted { worker: Arc::clone(self.workers.card(at)) });
            // Nobody wished it away, so it is not remembered: it may come back in the same incarnation.
            self.withdraw(at, effects);
            self.remove_row_later(at);
        } else {
            self.schedule(at);
        }
    }

    /// Ends what the worker holds, and lets it be remembered.
    pub(in crate::engine) fn lose<R>(&mut self, at: u32, effects: &mut Vec<Effect<R>>) {
        for place in self.places_on(at) {
            self.counters.life.lost_claims += 1;
            self.remember(place, ClaimState::Lost, effects);
            self.end(place, End::Lost, effects);
        }
    }

    /// Says what a claim was that is about to end.
    pub(in crate::engine) fn remember<R>(&self, place: Place, state: ClaimState, effects: &mut Vec<Effect<R>>) {
        if self.is_provisional(place) {
            // Nobody was told of it.
            return;
        }
        if let (Some(claim), Some(mut grant)) = (self.claims.get(place), self.grant(place)) {
            grant.end_as(state);
            effects.push(Effect::Remember { id: claim.id.clone(), grant });
        }
    }

    /// The claim has ended: what its worker's life said about it is over too.
    #[cold]
    pub(in crate::engine) fn forget_claim(&mut self, place: Place) {
        let at = place.worker;
        let free = self.workers.get(at).claim == NIL;
        let life = self.lives.get_mut(at);
        let fewer = life.missing.remove(&place.fence).is_some();
        if free {
            life.promised = None;
        }
        if free || (life.missing.is_empty() && life.promised.is_none()) {
            self.workers.get_mut(at).notes &= !notes::OF_CLAIM;
        }
        if fewer {
            self.schedule(at);
        }
    }

    /// The claim on the worker stays, but its capacity changes: what was promised is kept while it is more.
    pub(in crate::engine) fn keep_promise(&mut self, at: u32, after: &Capacity) {
        let before = &self.workers.card(at).spec.capacity;
        let life = self.lives.get_mut(at);
        let promised = life.promised.take().unwrap_or_else(|| Box::new(before.clone()));
        if !after.covers(&promised) {
            life.promised = Some(promised);
            self.workers.get_mut(at).notes |= notes::OF_CLAIM;
        }
    }

    /// A worker on its axes.
    pub(in crate::engine) fn axes(&self, at: u32) -> Axes {
        let worker = self.workers.get(at);
        let is = |bar: u8| worker.bars & bar != 0;
        Axes {
            busy: worker.claim != NIL || is(unschedulable_bits::STOPPING),
            schedulability: if is(unschedulable_bits::DRAINING) {
                Schedulability::Draining
            } else if is(unschedulable_bits::CORDONED) {
                Schedulability::Cordoned
            } else {
                Schedulability::Open
            },
            liveness: if is(unschedulable_bits::LOST) { Liveness::Lost } else { Liveness::Live },
            trust: if is(unschedulable_bits::DISTRUST) { Trust::Suspect } else { Trust::Trusted },
            overcommitted: match &self.shares {
                None => self.lives.get(at).promised.is_some(),
                Some(shares) => shares.is_over(at),
            },
        }
    }

    /// Whether the worker lives until `until_ms`, as far as is known.
    pub(in crate::engine) fn lasts(&self, at: u32, until_ms: Millis) -> bool {
        self.workers.get(at).notes & notes::ENDS == 0
            || self.lives.get(at).ends_ms.is_some_and(|ends_ms| ends_ms > until_ms)
    }
}
