//! What a shard shows of itself, without a trace but for what it was asked to mark.

use std::sync::Arc;

use super::accounting::LedgerLine;
use super::claims::Told;
use super::counters::Counters;
use super::effect::{Grant, WorkerLook};
use super::event::Place;
use super::placement::bin_packing::{Most, Sum};
use super::shard::Shard;
use super::workers::conditions::Barred;
use crate::limits;
use crate::model::{
    ClaimId, ClaimState, ClaimTimes, Fence, IdleWorker, LargestAmounts, Millis, Seq, Usage, WorkerCard, WorkerId,
    WorkerSpec,
};

/// A part of a list that is taken in one run of the shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice<T> {
    /// What was found.
    pub rows: Vec<T>,
    /// Ordinal at which the list goes on; none: it ends here.
    pub next: Option<u32>,
}

/// What a filter of claims may look at.
#[derive(Debug, Clone, Copy)]
pub struct ListedClaim<'a> {
    /// Key of the claim.
    pub id: &'a ClaimId,
    /// State of the claim.
    pub state: ClaimState,
    /// When it was created and became active.
    pub times: ClaimTimes,
    /// Worker that it holds.
    pub worker: &'a WorkerSpec,
}

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

    /// Workers that are not offered, by reason.
    #[must_use]
    pub const fn barred(&self) -> Barred {
        self.barred
    }

    /// Number that moves whenever [`Self::barred`] does.
    #[must_use]
    pub const fn bar_changes(&self) -> u64 {
        self.bar_changes
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

    /// Largest amount of each resource that any worker has. Changes only with [`Self::ledger_version`].
    #[must_use]
    pub fn largest_amounts(&self) -> LargestAmounts {
        self.ledger.largest()
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
        let most = |amount: u128| u64::try_from(amount).unwrap_or(u64::MAX);
        let Sum { workers, cpu_milli, memory_bytes, cards_milli, .. } = *self.ledger.total();
        Usage {
            claims: workers,
            cpu_milli: most(cpu_milli),
            memory_bytes: most(memory_bytes),
            gpu_milli: most(cards_milli),
        }
    }

    /// A time before which [`Event::Tick`] changes nothing, if it ever will.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<Millis> {
        let tombstone = self.tombstones.front().map(|&(until, _)| until);
        [self.timers.next_ms(), self.beats.next_ms(), tombstone].into_iter().flatten().min()
    }

    /// Workers that hold nothing, at most so many: those that are only cordoned or draining, then those that became idle first.
    #[must_use]
    pub fn idle_longest(&self, limit: usize) -> Vec<IdleWorker> {
        let drained = self.drained.iter().map(|&at| (at, true)).take(limit);
        let idle = self.idle.oldest(self.workers.all(), limit.saturating_sub(self.drained.len()));
        let named = |(at, cordoned)| IdleWorker { id: self.workers.card(at).spec.id.clone(), cordoned };
        drained.chain(idle.into_iter().map(|at| (at, false))).map(named).collect()
    }

    /// Things that searches for a worker have looked at so far, beyond the first: what they cost, whatever the machine.
    #[must_use]
    pub fn search_steps(&self) -> u64 {
        self.idle.steps() + self.shares.as_ref().map_or(0, |shares| shares.fleet.steps())
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
            term_ms: claim.term_ms.into(),
            deadline_ms: self.timers.get(place.claim),
            spec: claim.spec.clone(),
            cards: self.shares.as_ref().map(|shares| shares.cards(place.claim)),
            evicted: claim.state == ClaimState::Releasing && self.is_evicted(place.claim),
            stamps: claim.stamps,
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

    /// Workers with their ordinals, in that order.
    pub fn list_workers(&self) -> impl Iterator<Item = (u32, WorkerLook)> {
        let present = self.workers.iter_from(0).filter(|&at| !self.workers.get(at).deleted);
        present.map(|at| (at, self.look(at)))
    }

    /// Held claims with their ordinals, in that order; provisional ones excluded. A claim keeps its ordinal while it is held.
    pub fn list_claims(&self) -> impl Iterator<Item = (u32, ClaimId, Grant)> {
        self.claims.iter_from(0).filter_map(|(at, _)| self.listed(at, &|_| true))
    }

    /// A part of the list of workers, from an ordinal on: at most `limit` of them, and as few as can be found in one run.
    #[must_use]
    pub fn workers_from(&self, from: u32, limit: usize) -> Slice<(u32, WorkerLook)> {
        let mut rows = Vec::new();
        let mut looked_at = 0;
        for at in from..self.workers.ordinals() {
            if rows.len() == limit || looked_at >= limits::SLICE_ENTRIES {
                return Slice { rows, next: Some(at) };
            }
            looked_at += 1;
            if self.workers.is_used(at) && !self.workers.get(at).deleted {
                let look = self.look(at);
                looked_at += look.claims.len() as u32;
                rows.push((at, look));
            }
        }
        Slice { rows, next: None }
    }

    /// A part of the list of claims that pass, from an ordinal on, as of [`Self::workers_from`].
    pub fn claims_from(
        &self,
        from: u32,
        limit: usize,
        passes: impl Fn(&ListedClaim<'_>) -> bool,
    ) -> Slice<(u32, ClaimId, Grant)> {
        let ordinals = self.claims.ordinals();
        let end = from.saturating_add(limits::SLICE_ENTRIES).min(ordinals);
        self.claims_among(from..end, limit, passes, (end < ordinals).then_some(end))
    }

    /// The same of the claims of one worker.
    pub fn claims_of_from(
        &self,
        worker: &WorkerId,
        from: u32,
        limit: usize,
        passes: impl Fn(&ListedClaim<'_>) -> bool,
    ) -> Slice<(u32, ClaimId, Grant)> {
        let worker = self.workers.find(worker);
        let places = worker.map(|at| self.places_on(at)).unwrap_or_default();
        let mut claims: Vec<u32> = places.iter().map(|place| place.claim).filter(|&claim| claim >= from).collect();
        claims.sort_unstable();
        self.claims_among(claims, limit, passes, None)
    }

    fn claims_among(
        &self,
        claims: impl IntoIterator<Item = u32>,
        limit: usize,
        passes: impl Fn(&ListedClaim<'_>) -> bool,
        next: Option<u32>,
    ) -> Slice<(u32, ClaimId, Grant)> {
        let mut listed = claims.into_iter().filter_map(|at| self.listed(at, &passes));
        let rows: Vec<_> = listed.by_ref().take(limit).collect();
        let next = listed.next().map(|(at, ..)| at).or(next);
        Slice { rows, next }
    }

    /// The claim with this ordinal, if it is shown and passes. What does not pass is not copied.
    fn listed(&self, at: u32, passes: &impl Fn(&ListedClaim<'_>) -> bool) -> Option<(u32, ClaimId, Grant)> {
        let held = self.claims.at(at).filter(|_| self.gangs.of(at).is_none())?;
        let worker = &self.workers.card(held.worker).spec;
        let shown = ListedClaim { id: &held.id, state: held.state, times: held.times(), worker };
        if !passes(&shown) {
            return None;
        }
        let grant = self.grant(Place { claim: at, worker: held.worker, fence: held.fence })?;
        Some((at, held.id.clone(), grant))
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
