//! What each event does to a shard. Every change of a worker goes through [`Shard::touch`], which counts it, moves
//! the sequence number and marks the worker's row for the journal; nothing else does.

use std::collections::VecDeque;
use std::sync::Arc;

use super::NIL;
use super::claims::{Claim, Claims};
use super::effect::{Answer, Effect, End, Grant, WorkerLook};
use super::event::{Event, Place};
use super::idle::Idle;
use super::ledger::{Ledger, LedgerLine};
use super::timers::Timers;
use super::wants::{NoFit, Wants};
use super::workers::Workers;
use crate::limits;
use crate::model::{ClaimId, ClaimState, Fence, Millis, Policy, Seq, WorkerCard, WorkerId, WorkerSpec};
use crate::row::{self, ClaimStateRef, RowKind, WorkerState};

/// One shard of a pool, exclusive mode: a claim takes a whole worker.
#[derive(Debug)]
pub struct Shard {
    pub(super) seq: Seq,
    pub(super) workers: Workers,
    pub(super) claims: Claims,
    pub(super) idle: Idle,
    pub(super) timers: Timers,
    pub(super) ledger: Ledger,
    /// Deleted workers, oldest first, each with the time at which it is forgotten.
    pub(super) tombstones: VecDeque<(Millis, u32)>,
    /// Workers whose row changed since the journal last took it.
    dirty: Vec<u32>,
    /// Ids of rows that are gone since then.
    removed: Vec<WorkerId>,
    counters: Counters,
}

/// What a shard did so far; it only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Changes of a worker: each is one ledger change, one version, one row.
    pub touches: u64,
    /// Reservations that were never confirmed.
    pub swept: u64,
    /// Grants that were undone because nobody was told of them.
    pub given_back: u64,
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
            tombstones: VecDeque::new(),
            dirty: Vec::new(),
            removed: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Decides. `now_ms` is monotonic time; `effects` is appended to and must be carried out in order.
    pub fn on<R>(&mut self, event: Event<R>, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        match event {
            Event::Claim { id, fence, affinity, reserve_ms, wants, to } => {
                let answer = self.claim(id, fence, affinity, reserve_ms, wants);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Release { place, to } => {
                self.end(place, End::Released, effects);
                effects.push(Effect::Reply { to, answer: Answer::Released });
            }
            Event::Repeat { place, satisfies, wants, to } => {
                let answer = self.repeat(place, satisfies, wants.as_deref(), effects);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Confirm { place, to } => {
                let answer = self.confirm(place);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Look { place, to } => {
                let answer = self.tell(place);
                effects.push(Effect::Reply { to, answer });
            }
            Event::Departed { place } => self.departed(place, now_ms),
            Event::GiveBack { place } => self.give_back(place, effects),
            Event::Yield { place } => self.end(place, End::GivenBack, effects),
            Event::Tick => self.sweep(now_ms, effects),
            Event::Register { spec, to } => {
                let answer = self.register(spec, effects);
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

    fn claim(
        &mut self,
        id: ClaimId,
        fence: Fence,
        affinity: u64,
        reserve_ms: Millis,
        wants: Option<Arc<Wants>>,
    ) -> Answer {
        let picked = match wants.as_deref() {
            Some(wants) if !wants.any_worker() => self.select(wants, affinity, fence).map_err(Answer::NoFit),
            _ => self.idle.pick(self.workers.all(), affinity, fence).ok_or(Answer::NoRoom),
        };
        let worker = match picked {
            Ok(worker) => worker,
            Err(answer) => return answer,
        };
        self.idle.remove(self.workers.hot_mut(), worker);
        let active = reserve_ms == 0;
        let spec = wants.and_then(|wants| wants.spec.clone());
        let claim = Claim { id, fence, reserve_ms, worker, active, confirmed: false, told: false, spec: spec.clone() };
        let claim = self.claims.insert(claim);
        let hot = self.workers.get_mut(worker);
        hot.claim = claim;
        hot.affinity = affinity;
        self.ledger.hold(hot.line);
        self.touch(worker);
        let state = if active { ClaimState::Active } else { ClaimState::Reserved };
        let card = Arc::clone(self.workers.card(worker));
        Answer::Granted(Grant {
            place: Place { claim, worker, fence },
            worker: card,
            state,
            reserve_ms,
            deadline_ms: None,
            spec,
        })
    }

    /// The worker that a claim takes which asks for certain ones, or why there is none.
    #[cold]
    fn select(&mut self, wants: &Wants, affinity: u64, fence: Fence) -> Result<u32, NoFit> {
        if let Some(id) = &wants.worker {
            let at = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).ok_or(NoFit::Unknown)?;
            let (worker, spec) = (self.workers.get(at), &self.workers.card(at).spec);
            return match (wants.is_large(&spec.capacity), wants.allows(spec), worker.idle) {
                (false, ..) => Err(NoFit::Small),
                (true, true, true) => Ok(at),
                (true, false, true) if wants.fits_but_node(spec) => Err(NoFit::Node),
                _ => Err(NoFit::Busy),
            };
        }
        match self.idle.select(self.workers.all(), wants, affinity, fence) {
            Some(worker) => Ok(worker),
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
        let worker = &self.workers.card(claim.worker).spec;
        if satisfies && wants.is_none_or(|wants| wants.allows(worker)) {
            return match wants {
                Some(wants) if !wants.matches(claim.spec.as_deref()) => Answer::Mismatch,
                _ => self.tell(place),
            };
        }
        if claim.active {
            return Answer::ActiveElsewhere;
        }
        self.end(place, End::GivenBack, effects);
        Answer::GivenBack
    }

    fn confirm(&mut self, place: Place) -> Answer {
        let Some(claim) = self.claims.get_mut(place) else { return Answer::Gone };
        claim.confirmed = true;
        if !claim.active {
            self.claims.activate(place);
            self.timers.cancel(place.claim);
            self.touch(place.worker);
        }
        self.tell(place)
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
        let Some(claim) = self.claims.get(place) else { return };
        if !claim.active && self.timers.get(place.claim).is_none() {
            self.timers.set(place.claim, now_ms + claim.reserve_ms);
        }
    }

    fn give_back<R>(&mut self, place: Place, effects: &mut Vec<Effect<R>>) {
        if self.claims.get(place).is_some_and(|claim| !claim.confirmed && !claim.told) {
            self.counters.given_back += 1;
            self.end(place, End::GivenBack, effects);
        }
    }

    /// Ends the claim at `place`, if it is still that one: its worker is idle again, its key is free.
    fn end<R>(&mut self, place: Place, end: End, effects: &mut Vec<Effect<R>>) {
        if self.claims.get(place).is_none() {
            return;
        }
        let claim = self.claims.remove(place.claim);
        self.timers.cancel(place.claim);
        let worker = self.workers.get_mut(claim.worker);
        worker.claim = NIL;
        worker.idle_seq = self.seq + 1;
        self.ledger.free(worker.line);
        self.idle.push(self.workers.hot_mut(), claim.worker);
        self.touch(claim.worker);
        effects.push(Effect::Ended { id: claim.id, fence: claim.fence, end });
    }

    fn sweep<R>(&mut self, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        while let Some(at) = self.timers.expire(now_ms) {
            let Some(claim) = self.claims.at(at) else { continue };
            debug_assert!(!claim.active, "only a reservation has a deadline");
            self.counters.swept += 1;
            self.end(Place { claim: at, worker: claim.worker, fence: claim.fence }, End::Swept, effects);
        }
        while self.tombstones.front().is_some_and(|&(until, _)| until <= now_ms) {
            self.forget_oldest();
        }
    }

    fn register<R>(&mut self, spec: WorkerSpec, effects: &mut Vec<Effect<R>>) -> Answer {
        let Some(at) = self.workers.find(&spec.id) else { return self.welcome(spec) };
        let known = self.workers.card(at).spec.incarnation;
        let deleted = self.workers.get(at).deleted;
        if spec.incarnation < known || (deleted && spec.incarnation == known) {
            return Answer::StaleIncarnation { known, deleted };
        }
        if deleted {
            self.tombstones.retain(|&(_, dead)| dead != at);
            self.remove_row_later(at);
            return self.welcome(spec);
        }
        if spec.incarnation > known {
            self.lose(at, effects);
        }
        if self.workers.card(at).spec != spec {
            self.replace(at, spec);
        }
        Answer::Registered { created: false, worker: Box::new(self.look(at)) }
    }

    fn welcome(&mut self, spec: WorkerSpec) -> Answer {
        if self.workers.is_full() {
            return Answer::ShardFull;
        }
        let line = self.ledger.enter(&spec.capacity);
        let at = self.workers.insert(Arc::new(WorkerCard { spec }), line);
        self.idle.grow(self.workers.hot_mut());
        self.workers.get_mut(at).idle_seq = self.seq + 1;
        self.idle.push(self.workers.hot_mut(), at);
        self.touch(at);
        Answer::Registered { created: true, worker: Box::new(self.look(at)) }
    }

    fn replace(&mut self, at: u32, spec: WorkerSpec) {
        let (line, held) = (self.workers.get(at).line, self.workers.get(at).claim != NIL);
        if self.ledger.line(line).capacity != spec.capacity {
            if held {
                self.ledger.free(line);
            }
            self.ledger.leave(line);
            let line = self.ledger.enter(&spec.capacity);
            if held {
                self.ledger.hold(line);
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
        self.idle.remove(self.workers.hot_mut(), at);
        self.idle.forget(at);
        self.ledger.leave(self.workers.get(at).line);
        self.workers.get_mut(at).deleted = true;
        self.touch(at);
        self.tombstones.push_back((now_ms + limits::TOMBSTONE_MS, at));
        if self.tombstones.len() > limits::TOMBSTONES_MAX {
            self.forget_oldest();
        }
        Answer::Deleted
    }

    /// Ends what the worker holds.
    fn lose<R>(&mut self, at: u32, effects: &mut Vec<Effect<R>>) {
        if let Some(claim) = self.claims.at(self.workers.get(at).claim) {
            let place = Place { claim: self.workers.get(at).claim, worker: at, fence: claim.fence };
            self.end(place, End::Lost, effects);
        }
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
    fn touch(&mut self, at: u32) {
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
        rows
    }

    /// Whether [`Self::take_rows`] has any.
    #[must_use]
    pub const fn has_rows(&self) -> bool {
        !self.dirty.is_empty() || !self.removed.is_empty()
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
        None
    }

    fn put_row(&self, at: u32, out: &mut Vec<u8>) {
        let worker = self.workers.get(at);
        let claim = self.claims.at(worker.claim).map(|claim| ClaimStateRef {
            id: &claim.id,
            fence: claim.fence,
            active: claim.active,
            reserve_ms: claim.reserve_ms,
            spec: claim.spec.as_deref(),
        });
        let state = WorkerState {
            card: self.workers.card(at),
            version: worker.version,
            idle_seq: worker.idle_seq,
            affinity: worker.affinity,
            deleted: worker.deleted,
            claim,
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

    /// Workers, idle or held.
    #[must_use]
    pub const fn workers(&self) -> usize {
        self.idle.len() + self.claims.len()
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
        [self.timers.next_ms(), tombstone].into_iter().flatten().min()
    }

    /// What is held at `place`, without a trace.
    #[must_use]
    pub fn grant(&self, place: Place) -> Option<Grant> {
        let claim = self.claims.get(place)?;
        Some(Grant {
            place: Place { worker: claim.worker, ..place },
            worker: Arc::clone(self.workers.card(claim.worker)),
            state: if claim.active { ClaimState::Active } else { ClaimState::Reserved },
            reserve_ms: claim.reserve_ms,
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

    fn look(&self, at: u32) -> WorkerLook {
        let worker = self.workers.get(at);
        let claim = self.claims.at(worker.claim).and_then(|claim| {
            let place = Place { claim: worker.claim, worker: at, fence: claim.fence };
            Some((claim.id.clone(), self.grant(place)?))
        });
        WorkerLook {
            card: Arc::clone(self.workers.card(at)),
            version: worker.version,
            claims: claim.into_iter().collect(),
        }
    }
}
