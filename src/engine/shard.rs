//! What each event does to a shard. Every change of a worker goes through [`Shard::touch`], which counts it, moves
//! the sequence number and marks the worker's row for the journal; nothing else does.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::NIL;
use super::claims::{Claim, Claims};
use super::effect::{Answer, Effect, End, Grant, WorkerLook};
use super::event::{Event, Named, Place};
use super::idle::Idle;
use super::ledger::{Ledger, LedgerLine};
use super::life::{Barred, Lives, bars, notes};
use super::timers::Timers;
use super::wants::{NoFit, Wants};
use super::workers::Workers;
use crate::limits;
use crate::model::{ClaimId, ClaimState, Fence, Millis, Policy, Seq, WorkerCard, WorkerId, WorkerSpec};
use crate::row::{self, ClaimStateRef, RowKind, ShardRow, WorkerState};

/// One shard of a pool, exclusive mode: a claim takes a whole worker.
#[derive(Debug)]
pub struct Shard {
    pub(super) seq: Seq,
    pub(super) workers: Workers,
    pub(super) claims: Claims,
    pub(super) idle: Idle,
    /// Deadlines of claims.
    pub(super) timers: Timers,
    pub(super) ledger: Ledger,
    pub(super) lives: Lives,
    /// Deadlines of workers: the next of each life.
    pub(super) beats: Timers,
    /// Workers that are not deleted.
    pub(super) present: usize,
    pub(super) barred: Barred,
    /// Highest fence that was granted or adopted here.
    pub(super) fence_max: Fence,
    /// Fences that the shard may have granted without a record, before it was loaded.
    pub(super) lost_tail: Range<Fence>,
    /// From then on something can speak for an unvouched worker.
    pub(super) settled_ms: Millis,
    /// What the shard's own row says beside `fence_max`.
    pub(super) head: Head,
    /// As the journal has it.
    pub(super) head_taken: ShardRow,
    /// Deleted workers, oldest first, each with the time at which it is forgotten.
    pub(super) tombstones: VecDeque<(Millis, u32)>,
    /// Workers whose row changed since the journal last took it.
    dirty: Vec<u32>,
    /// Ids of rows that are gone since then.
    removed: Vec<WorkerId>,
    pub(super) counters: Counters,
}

/// What a shard remembers of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Claims are acknowledged from memory, so a stop that does not take this back may lose some.
    pub memory: bool,
    /// How long one that was lost may still be started.
    pub reserve_ms: Millis,
    /// How many stops may have lost claims. A worker for which something spoke since the last is vouched for.
    pub unclean: u64,
}

/// What a shard did so far; it only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Changes of a worker: each is one ledger change, one version, one row.
    pub touches: u64,
    /// Grants that were undone because nobody was told of them.
    pub given_back: u64,
    /// What befell workers, and claims without their holder's doing.
    pub life: LifeCounters,
}

/// What befell workers, and claims without their holder's doing; it only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LifeCounters {
    /// Reservations that were never confirmed.
    pub swept: u64,
    /// Active claims that were not renewed in time.
    pub expired: u64,
    /// Releases that were begun and not finished in time.
    pub uncleaned: u64,
    /// Claims that their worker does not run any more.
    pub missing: u64,
    /// Claims that were lost with their worker.
    pub lost_claims: u64,
    /// Workers that were silent for too long.
    pub lost_workers: u64,
    /// Heartbeats taken.
    pub heartbeats: u64,
    /// Claims taken over because their worker named them.
    pub adopted: u64,
    /// Claims that a worker was told to stop.
    pub stops: u64,
}

impl Shard {
    /// An empty shard at sequence number 0.
    #[must_use]
    pub fn new(policy: Policy, now_ms: Millis) -> Self {
        Self {
            seq: 0,
            workers: Workers::default(),
            claims: Claims::new(),
            idle: Idle::new(policy),
            timers: Timers::new(now_ms),
            ledger: Ledger::default(),
            lives: Lives::default(),
            beats: Timers::new(now_ms),
            present: 0,
            barred: Barred::default(),
            fence_max: 0,
            lost_tail: 0..0,
            settled_ms: 0,
            head: Head::default(),
            head_taken: ShardRow::default(),
            tombstones: VecDeque::new(),
            dirty: Vec::new(),
            removed: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Decides. `now_ms` is monotonic time; `effects` is appended to and must be carried out in order.
    pub fn on<R>(&mut self, event: Event<R>, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        match event {
            Event::Claim { id, fence, affinity, reserve_ms, ttl_ms, wants, to } => {
                // It may be confirmed at the last moment, and then needs its worker for that long.
                let until_ms = now_ms + reserve_ms + ttl_ms;
                let answer = match self.take_worker(affinity, fence, until_ms, wants.as_deref()) {
                    Ok(worker) => {
                        let spec = wants.and_then(|wants| wants.spec.clone());
                        let claim = Claim {
                            id,
                            fence,
                            reserve_ms: term(reserve_ms),
                            term_ms: term(ttl_ms),
                            worker,
                            state: if reserve_ms == 0 { ClaimState::Active } else { ClaimState::Reserved },
                            confirmed: false,
                            named: false,
                            told: false,
                            spec,
                        };
                        self.grant_new(claim, affinity)
                    }
                    Err(answer) => answer,
                };
                effects.push(Effect::Reply { to, answer });
            }
            Event::Release { place, to } => {
                self.release(place, effects);
                effects.push(Effect::Reply { to, answer: Answer::Released });
            }
            Event::Repeat { place, satisfies, wants, to } => {
                let answer = self.repeat(place, satisfies, wants.as_deref(), effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Confirm { place, to } => {
                let answer = self.confirm(place, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Look { place, to } => {
                let answer = self.tell(place);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Departed { place } => self.departed(place, now_ms),
            Event::GiveBack { place } => self.give_back(place, effects),
            Event::Yield { place } => {
                self.end(place, End::GivenBack, effects);
            }
            Event::Tick => self.sweep(now_ms, effects),
            Event::Renew { place, ttl_ms, to } => {
                let answer = self.renew(place, ttl_ms, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::BeginRelease { place, releasing_ms, to } => {
                self.begin_release(place, releasing_ms, now_ms);
                effects.push(Effect::Reply { to, answer: Answer::Released });
            }
            Event::Heartbeat { id, beat, to } => {
                let answer = self.heartbeat(&id, beat, now_ms, effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Steer { id, verb, to } => {
                let answer = self.steer(&id, verb, now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::ClearAll { to } => {
                let answer = self.clear_all(now_ms);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Register { spec, ends_ms, claims, ttl_ms, to } => {
                let answer = self.register(spec, ends_ms, claims, ttl_ms, now_ms, effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Delete { id, to } => {
                let answer = self.delete(&id, now_ms, effects);
                effects.push(Effect::Reply { to, answer });
            }
        }
        #[cfg(debug_assertions)]
        self.assert_invariants();
    }

    /// Looks at what the next events will touch: those at `places`, and claims with `affinities`. Changes nothing. On
    /// a large fleet each is a cache miss, and looking at many in a row lets the misses overlap instead of standing in
    /// line: first what is reached directly, then what lies behind it.
    pub fn look_ahead(&self, places: impl Iterator<Item = Place> + Clone, affinities: impl Iterator<Item = u64>) {
        let first = places.clone().fold(0, |sum: u64, place| {
            let claim = self.claims.at(place.claim).map_or(0, |claim| claim.fence);
            sum.wrapping_add(claim).wrapping_add(self.workers.peek(place.worker))
        });
        let first = affinities.fold(first, |sum, affinity| sum.wrapping_add(self.idle.peek(affinity).into()));
        let behind = places.fold(0, |sum: u64, place| {
            let bucket = self.idle.peek(self.workers.peek(place.worker));
            sum.wrapping_add(bucket.into()).wrapping_add(self.workers.peek_card(place.worker) as u64)
        });
        std::hint::black_box((first, behind));
    }

    /// The worker that a claim takes, or why there is none.
    fn take_worker(
        &mut self,
        affinity: u64,
        fence: Fence,
        until_ms: Millis,
        wants: Option<&Wants>,
    ) -> Result<u32, Answer> {
        let worker = match wants {
            Some(wants) if !wants.any_worker() => {
                self.select(wants, affinity, fence, until_ms).map_err(Answer::NoFit)?
            }
            _ => match self.idle.pick(self.workers.all(), affinity, fence) {
                Some(worker) if self.lasts(worker, until_ms) => worker,
                Some(_) => self.pick_lasting(until_ms, None).ok_or(Answer::NoRoom)?,
                None => return Err(Answer::NoRoom),
            },
        };
        self.idle.remove(self.workers.hot_mut(), worker);
        Ok(worker)
    }

    fn grant_new(&mut self, claim: Claim, affinity: u64) -> Answer {
        let Claim { fence, worker, state, reserve_ms, term_ms, .. } = claim;
        let spec = claim.spec.clone();
        let claim = self.claims.insert(claim);
        let hot = self.workers.get_mut(worker);
        hot.claim = claim;
        hot.affinity = affinity;
        hot.notes |= notes::GRANTED;
        self.ledger.hold(hot.line);
        self.fence_max = self.fence_max.max(fence);
        self.touch(worker);
        let card = Arc::clone(self.workers.card(worker));
        Answer::Granted(Grant {
            place: Place { claim, worker, fence },
            worker: card,
            state,
            reserve_ms: reserve_ms.into(),
            term_ms: term_ms.into(),
            deadline_ms: None,
            spec,
        })
    }

    /// The worker that a claim takes which asks for certain ones, or why there is none.
    #[cold]
    fn select(&mut self, wants: &Wants, affinity: u64, fence: Fence, until_ms: Millis) -> Result<u32, NoFit> {
        if let Some(id) = &wants.worker {
            let at = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).ok_or(NoFit::Unknown)?;
            let (worker, spec) = (self.workers.get(at), &self.workers.card(at).spec);
            let offered = worker.idle && self.lasts(at, until_ms);
            return match (wants.is_large(&spec.capacity), wants.allows(spec), offered) {
                (false, ..) => Err(NoFit::Small),
                (true, true, true) => Ok(at),
                (true, false, true) if wants.fits_but_node(spec) => Err(NoFit::Node),
                _ => Err(NoFit::Busy),
            };
        }
        match self.idle.select(self.workers.all(), wants, affinity, fence) {
            Some(worker) if self.lasts(worker, until_ms) => Ok(worker),
            Some(_) => self.pick_lasting(until_ms, Some(wants)).ok_or(NoFit::Busy),
            None if wants.nodes.is_empty() => Err(NoFit::Busy),
            None if self.idle.fits_but_node(self.workers.all(), wants) => Err(NoFit::Node),
            None => Err(NoFit::Busy),
        }
    }

    fn repeat<R>(
        &mut self,
        place: Place,
        satisfies: bool,
        wants: Option<&Wants>,
        effects: &mut Vec<Effect<R>>,
    ) -> Answer {
        let Some(claim) = self.claims.get(place) else { return Answer::Gone };
        if claim.state == ClaimState::Releasing {
            return Answer::Releasing;
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

    fn confirm(&mut self, place: Place, now_ms: Millis) -> Answer {
        let Some(claim) = self.claims.get_mut(place) else { return Answer::Gone };
        if claim.state == ClaimState::Releasing {
            return Answer::Releasing;
        }
        claim.confirmed = true;
        self.activate(place, now_ms);
        self.tell(place)
    }

    /// Makes a reserved claim active; from now on it needs renewals, if it has a time. False: it was no reservation.
    pub(super) fn activate(&mut self, place: Place, now_ms: Millis) -> bool {
        if !self.claims.get(place).is_some_and(Claim::is_reserved) {
            return false;
        }
        self.claims.turn(place, ClaimState::Active);
        self.timers.cancel(place.claim);
        self.start_stay(place, now_ms);
        self.touch(place.worker);
        true
    }

    /// The claim may stay in its state for its time, from now on.
    pub(super) fn start_stay(&mut self, place: Place, now_ms: Millis) {
        let stay_ms = self.claims.get(place).map_or(0, Claim::stay_ms);
        if stay_ms > 0 {
            self.timers.set(place.claim, now_ms + stay_ms);
        }
    }

    fn renew(&mut self, place: Place, ttl_ms: Option<Millis>, now_ms: Millis) -> Answer {
        let Some(claim) = self.claims.get_mut(place) else { return Answer::Gone };
        match claim.state {
            ClaimState::Releasing => return Answer::Releasing,
            ClaimState::Reserved => return Answer::NotActive,
            ClaimState::Active | ClaimState::Lost => {}
        }
        claim.confirmed = true;
        let before = claim.term_ms;
        claim.term_ms = ttl_ms.map_or(before, term);
        if claim.term_ms != before {
            self.touch(place.worker);
        }
        self.start_stay(place, now_ms);
        self.tell(place)
    }

    fn release<R>(&mut self, place: Place, effects: &mut Vec<Effect<R>>) {
        if !self.end(place, End::Released, effects) {
            self.cleaned(place);
        }
    }

    fn begin_release(&mut self, place: Place, releasing_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get_mut(place).filter(|claim| claim.state != ClaimState::Releasing) else {
            return;
        };
        (claim.confirmed, claim.term_ms) = (true, term(releasing_ms));
        self.claims.turn(place, ClaimState::Releasing);
        self.timers.cancel(place.claim);
        self.start_stay(place, now_ms);
        self.touch(place.worker);
    }

    /// Says what is held, and remembers that it was said.
    fn tell(&mut self, place: Place) -> Answer {
        match self.claims.get_mut(place) {
            None => Answer::Gone,
            Some(claim) => {
                claim.told = true;
                self.grant(place).map_or(Answer::Gone, Answer::Held)
            }
        }
    }

    fn departed(&mut self, place: Place, now_ms: Millis) {
        if self.claims.get(place).is_some() && self.timers.get(place.claim).is_none() {
            self.start_stay(place, now_ms);
        }
    }

    fn give_back<R>(&mut self, place: Place, effects: &mut Vec<Effect<R>>) {
        if self.claims.get(place).is_some_and(|claim| !claim.confirmed && !claim.told) {
            self.counters.given_back += 1;
            self.end(place, End::GivenBack, effects);
        }
    }

    /// Ends the claim at `place`, if it is still that one: its key is free, its worker is idle unless it is barred.
    /// False: it is gone.
    pub(super) fn end<R>(&mut self, place: Place, end: End, effects: &mut Vec<Effect<R>>) -> bool {
        if self.claims.get(place).is_none() {
            return false;
        }
        let claim = self.claims.remove(place.claim);
        self.timers.cancel(place.claim);
        let worker = self.workers.get_mut(claim.worker);
        worker.claim = NIL;
        worker.idle_seq = self.seq + 1;
        self.ledger.free(worker.line);
        let (barred, line, noted) = (worker.bars != 0, worker.line, worker.notes & notes::OF_CLAIM != 0);
        if barred {
            self.ledger.bar(line);
        } else {
            self.idle.push(self.workers.hot_mut(), claim.worker);
        }
        if noted {
            self.forget_claim(claim.worker);
        }
        if claim.fence < self.lost_tail.end {
            let settled = &mut self.lives.get_mut(claim.worker).settled;
            *settled = claim.fence.max(*settled);
        }
        self.touch(claim.worker);
        effects.push(Effect::Ended { id: claim.id, fence: claim.fence, end });
        true
    }

    fn sweep<R>(&mut self, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        while let Some(at) = self.timers.expire(now_ms) {
            let Some(claim) = self.claims.at(at) else { continue };
            let (place, state) = (Place { claim: at, worker: claim.worker, fence: claim.fence }, claim.state);
            let (count, end) = match state {
                ClaimState::Reserved => (&mut self.counters.life.swept, End::Swept),
                ClaimState::Active | ClaimState::Lost => (&mut self.counters.life.expired, End::Expired),
                ClaimState::Releasing => (&mut self.counters.life.uncleaned, End::Uncleaned),
            };
            *count += 1;
            if end == End::Uncleaned {
                self.lives.get_mut(place.worker).uncleaned = place.fence;
                self.bar(place.worker, bars::SUSPECT, 0);
                self.remember(place, ClaimState::Releasing, effects);
            }
            self.end(place, end, effects);
        }
        while let Some(at) = self.beats.expire(now_ms) {
            self.sweep_worker(at, now_ms, effects);
        }
        while self.tombstones.front().is_some_and(|&(until, _)| until <= now_ms) {
            self.forget_oldest();
        }
    }

    fn register<R>(
        &mut self,
        spec: WorkerSpec,
        ends_ms: Option<Millis>,
        claims: Option<Vec<Named>>,
        ttl_ms: Millis,
        now_ms: Millis,
        effects: &mut Vec<Effect<R>>,
    ) -> Answer {
        let (created, at) = match self.workers.find(&spec.id) {
            None => (true, self.welcome(spec, now_ms)),
            Some(at) => {
                let known = self.workers.card(at).spec.incarnation;
                let deleted = self.workers.get(at).deleted;
                if spec.incarnation < known || (deleted && spec.incarnation == known) {
                    return Answer::StaleIncarnation { known, deleted };
                }
                if deleted {
                    self.tombstones.retain(|&(_, dead)| dead != at);
                    self.remove_row_later(at);
                    (true, self.welcome(spec, now_ms))
                } else {
                    if spec.incarnation > known {
                        self.begin_life(at, now_ms, effects);
                    }
                    if self.workers.card(at).spec != spec {
                        // An end of life is unix time; the same one as before has been counted already.
                        let moved = self.workers.card(at).spec.expires_at_ms != spec.expires_at_ms;
                        self.replace(at, spec);
                        if moved {
                            self.set_end(at, ends_ms, now_ms);
                        }
                    }
                    (false, Some(at))
                }
            }
        };
        let Some(at) = at else { return Answer::ShardFull };
        if created {
            self.set_end(at, ends_ms, now_ms);
        }
        let mut stop = Vec::new();
        if let Some(named) = claims {
            let silent_ms = self.lives.get(at).ttl_ms;
            self.heard(at, silent_ms, now_ms);
            stop = self.word(at, named, ttl_ms, now_ms, effects);
        }
        Answer::Registered { created, worker: Box::new(self.look(at)), stop }
    }

    /// Another life of the worker begins: what the old one held is lost, and what was thought of it is over.
    fn begin_life<R>(&mut self, at: u32, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        self.lose(at, effects);
        let life = self.lives.get_mut(at);
        (life.beat_seq, life.uncleaned) = (None, 0);
        life.silent_at_ms = (life.ttl_ms > 0).then_some(now_ms + life.ttl_ms);
        self.bar(at, 0, bars::OF_ONE_LIFE);
        self.schedule(at);
    }

    fn welcome(&mut self, spec: WorkerSpec, now_ms: Millis) -> Option<u32> {
        if self.workers.is_full() {
            return None;
        }
        let line = self.ledger.enter(&spec.capacity);
        let at = self.workers.insert(Arc::new(WorkerCard { spec }), line);
        self.idle.grow(self.workers.hot_mut());
        self.workers.get_mut(at).idle_seq = self.seq + 1;
        self.idle.push(self.workers.hot_mut(), at);
        self.present += 1;
        self.touch(at);
        if now_ms < self.settled_ms {
            // It may be known from before, and its registration be among what was lost.
            self.bar(at, bars::UNVOUCHED, 0);
        }
        Some(at)
    }

    fn replace(&mut self, at: u32, spec: WorkerSpec) {
        let (line, held, barred) = {
            let worker = self.workers.get(at);
            (worker.line, worker.claim != NIL, worker.bars != 0)
        };
        if self.ledger.line(line).capacity != spec.capacity {
            if held {
                self.keep_promise(at, &spec.capacity);
                self.ledger.free(line);
            } else if barred {
                self.ledger.unbar(line);
            }
            self.ledger.leave(line);
            let line = self.ledger.enter(&spec.capacity);
            if held {
                self.ledger.hold(line);
            } else if barred {
                self.ledger.bar(line);
            }
            self.workers.get_mut(at).line = line;
        }
        self.workers.set_card(at, Arc::new(WorkerCard { spec }));
        self.idle.renew(self.workers.all(), at);
        self.touch(at);
    }

    fn delete<R>(&mut self, id: &WorkerId, now_ms: Millis, effects: &mut Vec<Effect<R>>) -> Answer {
        let Some(at) = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted) else {
            return Answer::UnknownWorker;
        };
        self.lose(at, effects);
        let worker = self.workers.get_mut(at);
        let (bars, line) = (std::mem::take(&mut worker.bars), worker.line);
        worker.deleted = true;
        if bars == 0 {
            self.idle.remove(self.workers.hot_mut(), at);
        } else {
            self.ledger.unbar(line);
            self.barred.leave(bars);
        }
        self.idle.forget(at);
        self.ledger.leave(line);
        self.lives.forget(at);
        self.beats.cancel(at);
        self.present -= 1;
        self.touch(at);
        self.tombstones.push_back((now_ms + limits::TOMBSTONE_MS, at));
        if self.tombstones.len() > limits::TOMBSTONES_MAX {
            self.forget_oldest();
        }
        Answer::Deleted
    }

    fn forget_oldest(&mut self) {
        if let Some((_, at)) = self.tombstones.pop_front() {
            self.remove_row_later(at);
        }
    }

    fn remove_row_later(&mut self, at: u32) {
        self.touch(at);
        let card = self.workers.remove(at);
        self.removed.push(card.spec.id.clone());
    }

    /// Counts one change of a worker: one version, one row.
    pub(super) fn touch(&mut self, at: u32) {
        self.seq += 1;
        self.counters.touches += 1;
        let worker = self.workers.get_mut(at);
        worker.version = self.seq;
        if !worker.dirty {
            worker.dirty = true;
            self.dirty.push(at);
        }
    }

    /// Writes the rows that changed since the last call and returns how many there were.
    pub fn take_rows(&mut self, out: &mut Vec<u8>) -> usize {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut removed = std::mem::take(&mut self.removed);
        let rows = dirty.len() + removed.len();
        // Removals first: an id that was forgotten and registered again is there.
        for id in removed.drain(..) {
            row::put_deletion(out, RowKind::Worker, id.as_str());
        }
        for at in dirty.drain(..) {
            let worker = self.workers.get_mut(at);
            if std::mem::take(&mut worker.dirty) && self.workers.is_used(at) {
                self.put_row(at, out);
            }
        }
        (self.dirty, self.removed) = (dirty, removed);
        let head = self.head_row();
        if head == self.head_taken {
            return rows;
        }
        row::put_shard(out, &head);
        self.head_taken = head;
        rows + 1
    }

    fn head_row(&self) -> ShardRow {
        ShardRow {
            fence_max: self.fence_max,
            memory: self.head.memory,
            reserve_ms: self.head.reserve_ms,
            unclean: self.head.unclean,
        }
    }

    /// Whether its own row says that claims are acknowledged from memory.
    #[must_use]
    pub const fn is_memory(&self) -> bool {
        self.head.memory
    }

    /// Says whether claims are acknowledged from memory from now on, and how long one of them may stay reserved. True
    /// if that is news: until the store has it, they must not be.
    pub fn set_memory(&mut self, reserve_ms: Option<Millis>) -> bool {
        // Earlier claims may have been given more time, and may be lost yet.
        let head = Head {
            memory: reserve_ms.is_some(),
            reserve_ms: self.head.reserve_ms.max(reserve_ms.unwrap_or(0)),
            ..self.head
        };
        let news = self.head != head;
        if news {
            self.head = head;
            self.seq += 1;
        }
        news
    }

    /// Whether [`Self::take_rows`] has any.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        !self.dirty.is_empty() || !self.removed.is_empty() || self.head_row() != self.head_taken
    }

    /// Another order of taking idle workers, from the order in which they became idle.
    pub fn set_policy(&mut self, policy: Policy) {
        let mut idle: Vec<(Seq, u32)> = self
            .idle
            .oldest_first(self.workers.all())
            .into_iter()
            .map(|at| (self.workers.get(at).idle_seq, at))
            .collect();
        idle.sort_unstable();
        for &(_, at) in &idle {
            self.idle.remove(self.workers.hot_mut(), at);
        }
        self.idle = Idle::new(policy);
        self.idle.grow(self.workers.hot_mut());
        for (_, at) in idle {
            self.idle.push(self.workers.hot_mut(), at);
        }
    }

    /// Forgets which rows changed, where no store wants them.
    pub fn drop_rows(&mut self) {
        self.removed.clear();
        self.head_taken = self.head_row();
        while let Some(at) = self.dirty.pop() {
            self.workers.get_mut(at).dirty = false;
        }
    }

    /// Writes all rows from ordinal `from` on until about `bytes` are written; returns where to go on, if anywhere.
    pub fn dump_rows(&self, from: u32, bytes: usize, out: &mut Vec<u8>) -> Option<u32> {
        for at in self.workers.iter_from(from) {
            if out.len() >= bytes {
                return Some(at);
            }
            self.put_row(at, out);
        }
        row::put_shard(out, &self.head_row());
        None
    }

    fn put_row(&self, at: u32, out: &mut Vec<u8>) {
        let worker = self.workers.get(at);
        let claim = self.claims.at(worker.claim).map(|claim| ClaimStateRef {
            id: &claim.id,
            fence: claim.fence,
            state: claim.state,
            reserve_ms: claim.reserve_ms.into(),
            term_ms: claim.term_ms.into(),
            named: claim.named,
            spec: claim.spec.as_deref(),
        });
        let life = self.lives.get(at);
        let unvouched = worker.bars & bars::UNVOUCHED != 0;
        let state = WorkerState {
            card: self.workers.card(at),
            version: worker.version,
            idle_seq: worker.idle_seq,
            affinity: worker.affinity,
            deleted: worker.deleted,
            claim,
            bars: worker.bars & bars::STORED,
            vouched: self.head.unclean - u64::from(unvouched),
            heartbeat_ttl_ms: life.ttl_ms,
            promised: life.promised.as_deref(),
        };
        row::put_worker(out, &state);
    }

    /// Last change decided.
    #[must_use]
    pub const fn seq(&self) -> Seq {
        self.seq
    }

    /// Idle workers: what the router may know.
    #[must_use]
    pub const fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Held claims.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.claims.len()
    }

    /// Held claims that are not active yet.
    #[must_use]
    pub const fn reserved(&self) -> usize {
        self.claims.reserved()
    }

    /// Held claims whose worker is being cleaned.
    #[must_use]
    pub const fn releasing(&self) -> usize {
        self.claims.releasing()
    }

    /// Workers that are not deleted.
    #[must_use]
    pub const fn workers(&self) -> usize {
        self.present
    }

    /// How many of them stand where on which axis.
    #[must_use]
    pub const fn barred(&self) -> Barred {
        self.barred
    }

    /// What was done so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Sums by capacity vector.
    pub fn ledger(&self) -> impl Iterator<Item = &LedgerLine> {
        self.ledger.lines()
    }

    /// Moves whenever a worker's capacity is the first of its kind, or the last.
    #[must_use]
    pub const fn ledger_version(&self) -> u64 {
        self.ledger.version()
    }

    /// A time before which [`Event::Tick`] changes nothing, if it ever will.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<Millis> {
        let tombstone = self.tombstones.front().map(|&(until, _)| until);
        [self.timers.next_ms(), self.beats.next_ms(), tombstone].into_iter().flatten().min()
    }

    /// What is held at `place`, without a trace.
    #[must_use]
    pub fn grant(&self, place: Place) -> Option<Grant> {
        let claim = self.claims.get(place)?;
        Some(Grant {
            place: Place { worker: claim.worker, ..place },
            worker: Arc::clone(self.workers.card(claim.worker)),
            state: claim.state,
            reserve_ms: claim.reserve_ms.into(),
            term_ms: claim.term_ms.into(),
            deadline_ms: self.timers.get(place.claim),
            spec: claim.spec.clone(),
        })
    }

    /// A worker, deleted ones excluded.
    #[must_use]
    pub fn find_worker(&self, id: &WorkerId) -> Option<WorkerLook> {
        self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).map(|at| self.look(at))
    }

    /// Marks every claim of the listing as told: an answer is about to speak of it.
    pub fn mark_told(&mut self, places: impl Iterator<Item = Place>) {
        for place in places {
            if let Some(claim) = self.claims.get_mut(place) {
                claim.told = true;
            }
        }
    }

    /// At most `limit` workers with ordinal >= `from`, each with its ordinal, in that order.
    pub fn list_workers(&self, from: u32, limit: usize) -> impl Iterator<Item = (u32, WorkerLook)> {
        let present = self.workers.iter_from(from).filter(|&at| !self.workers.get(at).deleted);
        present.take(limit).map(|at| (at, self.look(at)))
    }

    /// Held claims with worker ordinal >= `from`, each with that ordinal, in that order.
    pub fn list_claims(&self, from: u32) -> impl Iterator<Item = (u32, ClaimId, Grant)> {
        self.workers.iter_from(from).filter_map(|at| {
            let claim = self.workers.get(at).claim;
            let held = self.claims.at(claim)?;
            let grant = self.grant(Place { claim, worker: at, fence: held.fence })?;
            Some((at, held.id.clone(), grant))
        })
    }

    pub(super) fn look(&self, at: u32) -> WorkerLook {
        let worker = self.workers.get(at);
        let claim = self.claims.at(worker.claim).and_then(|claim| {
            let place = Place { claim: worker.claim, worker: at, fence: claim.fence };
            Some((claim.id.clone(), self.grant(place)?))
        });
        WorkerLook {
            card: Arc::clone(self.workers.card(at)),
            version: worker.version,
            axes: self.axes(at),
            claims: claim.into_iter().collect(),
        }
    }
}

/// A time of a claim, as it is kept. The rim bounds them to what fits.
pub(super) fn term(ms: Millis) -> u32 {
    u32::try_from(ms).unwrap_or(u32::MAX)
}
