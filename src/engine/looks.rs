//! What a shard shows of itself, without a trace but for what it was asked to mark.

use std::sync::Arc;

use super::NIL;
use super::claims::Told;
use super::effect::{Grant, WorkerLook};
use super::event::Place;
use super::fit::{Most, Sum};
use super::ledger::LedgerLine;
use super::life::{Barred, bars};
use super::shard::{Counters, Shard};
use crate::limits;
use crate::model::{ClaimId, ClaimState, Fence, IdleWorker, Millis, Seq, Usage, WorkerCard, WorkerId};

impl Shard {
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

    /// Workers that hold claims.
    #[must_use]
    pub const fn busy(&self) -> usize {
        self.busy
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

    /// Moves whenever what the workers have in all may be another sum.
    #[must_use]
    pub const fn worker_changes(&self) -> u64 {
        self.ledger.moves()
    }

    /// What the workers have in all; as many claims as there are workers.
    #[must_use]
    pub fn total(&self) -> Usage {
        self.ledger.lines().fold(Usage::default(), |sum, line| {
            let (capacity, workers) = (&line.capacity, u64::from(line.workers));
            let cards = capacity.gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * u64::from(limits::CARD_MILLI));
            sum.plus(&Usage {
                claims: workers,
                cpu_milli: capacity.cpu_milli.saturating_mul(workers),
                memory_bytes: capacity.memory_bytes.saturating_mul(workers),
                gpu_milli: cards * workers,
            })
        })
    }

    /// A time before which [`Event::Tick`] changes nothing, if it ever will.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<Millis> {
        let tombstone = self.tombstones.front().map(|&(until, _)| until);
        [self.timers.next_ms(), self.beats.next_ms(), tombstone].into_iter().flatten().min()
    }

    /// Workers that hold nothing, at most so many: those that are only cordoned, then those that became idle first. Costs a look at
    /// all.
    #[must_use]
    pub fn idle_longest(&self, limit: usize) -> Vec<IdleWorker> {
        let cordoned = self.workers.iter_from(0).filter(|&at| {
            let worker = self.workers.get(at);
            let owner = bars::CORDONED | bars::DRAINING;
            !worker.deleted && worker.claim == NIL && worker.bars & owner != 0 && worker.bars & !owner == 0
        });
        let cordoned = cordoned.map(|at| (at, true));
        let idle = self.idle.oldest_first(self.workers.all()).into_iter().map(|at| (at, false));
        let named = |(at, cordoned)| IdleWorker { id: self.workers.card(at).spec.id.clone(), cordoned };
        cordoned.chain(idle).take(limit).map(named).collect()
    }

    /// Fences of claims of which no answer was given: their grants may be rolled back.
    pub fn untold(&self) -> impl Iterator<Item = Fence> {
        self.claims
            .iter_from(0)
            .filter(|(_, claim)| !claim.disclosed.is_told() && !claim.confirmed)
            .map(|(_, claim)| claim.fence)
    }

    /// Of claims with these fences nobody was told before the shard was loaded again, and nobody confirmed them: a row does
    /// not say that.
    pub fn restore_untold(&mut self, is_untold: impl Fn(Fence) -> bool) {
        for claim in self.claims.iter_mut().filter(|claim| is_untold(claim.fence)) {
            claim.confirmed = false;
            claim.disclosed.set_told(Told::Nobody);
        }
    }

    /// Whether the claim at `place` may be rolled back: no answer spoke of it, and nobody confirmed it.
    #[must_use]
    pub fn is_untold(&self, place: Place) -> bool {
        self.claims.get(place).is_some_and(|claim| !claim.disclosed.is_told() && !claim.confirmed)
    }

    /// An answer that speaks of the claim at `place`, and is not the one that grants it, leaves.
    pub fn mark_spoken_of(&mut self, place: Place) {
        if let Some(claim) = self.claims.get_mut(place) {
            claim.disclosed.set_spoken_of();
        }
    }

    /// The answer that grants the claim at `place` reached nobody, and the claim is kept for others.
    pub fn orphan(&mut self, place: Place) {
        if let Some(claim) = self.claims.get_mut(place).filter(|claim| !claim.confirmed) {
            claim.disclosed.set_orphan();
        }
    }

    /// Whether the claim at `place` is kept for answers of which none has left.
    #[must_use]
    pub fn is_orphan(&self, place: Place) -> bool {
        self.claims.get(place).is_some_and(|claim| !claim.confirmed && claim.disclosed.is_orphan())
    }

    /// The claim at `place` is kept for nobody any more.
    pub fn disown(&mut self, place: Place) {
        if let Some(claim) = self.claims.get_mut(place) {
            claim.disclosed.set_told(Told::Nobody);
        }
    }

    /// Whether an answer that speaks of the claim at `place` has left.
    #[must_use]
    pub fn is_answered(&self, place: Place) -> bool {
        self.claims.get(place).is_some_and(|claim| claim.disclosed.is_answered())
    }

    /// Key of the claim at `place`.
    #[must_use]
    pub fn claim_id(&self, place: Place) -> Option<&ClaimId> {
        self.claims.get(place).map(|claim| &claim.id)
    }

    /// Whether the claim at `place` is still that one.
    #[must_use]
    pub fn is_held(&self, place: Place) -> bool {
        self.claims.get(place).is_some()
    }

    /// What is held at `place`, without a trace.
    #[must_use]
    pub fn grant(&self, place: Place) -> Option<Grant> {
        let claim = self.claims.get(place)?;
        Some(Grant {
            place: Place { worker: claim.worker, ..place },
            worker: Arc::clone(self.workers.card(claim.worker)),
            state: claim.state,
            reserve_ms: claim.reserve_ms().into(),
            term_ms: claim.term_ms.into(),
            deadline_ms: self.timers.get(place.claim),
            spec: claim.spec.clone(),
            cards: self.shares.as_ref().map(|shares| shares.cards(place.claim)),
            evicted: claim.state == ClaimState::Releasing && self.is_evicted(place.claim),
            times: claim.times(),
        })
    }

    /// When what is held at `place` ends if nothing is heard, if ever.
    #[must_use]
    pub fn deadline_ms(&self, place: Place) -> Option<Millis> {
        self.claims.get(place).and_then(|_| self.timers.get(place.claim))
    }

    /// A worker, deleted ones excluded.
    #[must_use]
    pub fn find_worker(&self, id: &WorkerId) -> Option<WorkerLook> {
        self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).map(|at| self.look(at))
    }

    /// The registration of the worker with this ordinal, if it is in use.
    #[must_use]
    pub fn card(&self, worker: u32) -> Option<&Arc<WorkerCard>> {
        let there = worker < self.workers.ordinals() && self.workers.is_used(worker);
        there.then(|| self.workers.card(worker))
    }

    /// The registration of a worker, also of one that was deleted and is remembered.
    #[must_use]
    pub fn card_of(&self, id: &WorkerId) -> Option<&Arc<WorkerCard>> {
        self.workers.find(id).map(|at| self.workers.card(at))
    }

    /// At most `limit` workers with ordinal >= `from`, each with its ordinal, in that order.
    pub fn list_workers(&self, from: u32, limit: usize) -> impl Iterator<Item = (u32, WorkerLook)> {
        let present = self.workers.iter_from(from).filter(|&at| !self.workers.get(at).deleted);
        present.take(limit).map(|at| (at, self.look(at)))
    }

    /// Held claims with ordinal >= `from`, each with that ordinal, in that order; provisional ones excluded. A claim keeps
    /// it while it is held.
    pub fn list_claims(&self, from: u32) -> impl Iterator<Item = (u32, ClaimId, Grant)> {
        let shown = |(at, _): &(u32, _)| self.gangs.of(*at).is_none();
        self.claims.iter_from(from).filter(shown).filter_map(|(at, held)| {
            let grant = self.grant(Place { claim: at, worker: held.worker, fence: held.fence })?;
            Some((at, held.id.clone(), grant))
        })
    }

    /// In a shared pool: what the offered workers have left, those without cards and those with, in sum and at most.
    #[must_use]
    pub fn rooms(&self) -> Option<[(Sum, Most); 2]> {
        let fleet = &self.shares.as_ref()?.fleet;
        let ([without, with], [most_without, most_with]) = (fleet.sums(), fleet.most());
        Some([(without, most_without), (with, most_with)])
    }

    /// In a shared pool: per GPU model, the cards of which nothing is held and that can be claimed, and the thousandths of
    /// cards that can. Costs a look at every distinct room.
    pub fn free_cards(&self) -> impl Iterator<Item = (&Arc<str>, u64, u64)> {
        self.shares.iter().flat_map(|shares| shares.fleet.free_cards())
    }

    pub(super) fn look(&self, at: u32) -> WorkerLook {
        let worker = self.workers.get(at);
        let claims = self.places_on(at).into_iter().filter(|place| !self.is_provisional(*place));
        let claims = claims.filter_map(|place| Some((self.claims.get(place)?.id.clone(), self.grant(place)?)));
        WorkerLook {
            card: Arc::clone(self.workers.card(at)),
            version: worker.version,
            axes: self.axes(at),
            claims: claims.collect(),
        }
    }
}
