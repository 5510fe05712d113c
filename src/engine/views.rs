//! What a shard shows of itself, without a trace but for what it was asked to mark.

use std::sync::Arc;

use super::accounting::CapacityUsage;
use super::claims::DisclosureState;
use super::counters::ShardCounters;
use super::effect::{ClaimGrant, WorkerSnapshot};
use super::event::ClaimHandle;
use super::placement::bin_packing::{MaxFree, ResourceTotals};
use super::shard::Shard;
use super::workers::conditions::UnschedulableSummary;
use crate::limits;
use crate::model::{
    ClaimId, ClaimState, ClaimTimes, Fence, IdleWorker, MaxCapacity, Millis, ResourceUsage, Seq, WorkerId,
    WorkerRegistration, WorkerSpec,
};

/// A part of a list that is taken in one run of the shard.
#[derive(Debug, Clone, PartialEq)]
pub struct ListingSlice<T> {
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
        self.idle_queue.len()
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
        self.worker_count
    }

    /// Workers that are not offered, by reason.
    #[must_use]
    pub const fn unschedulable(&self) -> UnschedulableSummary {
        self.unschedulable
    }

    /// Number that moves whenever [`Self::barred`] does.
    #[must_use]
    pub const fn unschedulable_version(&self) -> u64 {
        self.unschedulable_version
    }

    /// What was done so far.
    #[must_use]
    pub const fn counters(&self) -> ShardCounters {
        self.counters
    }

    /// Sums by capacity vector.
    pub fn capacity_usage(&self) -> impl Iterator<Item = &CapacityUsage> {
        self.accounting.usages()
    }

    /// Largest amount of each resource that any worker has. Changes only with [`Self::capacity_version`].
    #[must_use]
    pub fn max_capacity(&self) -> MaxCapacity {
        self.accounting.max_capacity()
    }

    /// Moves whenever a worker's capacity is the first of its kind, or the last.
    #[must_use]
    pub const fn capacity_version(&self) -> u64 {
        self.accounting.version()
    }

    /// Moves whenever what the workers have in all may be another sum.
    #[must_use]
    pub const fn membership_version(&self) -> u64 {
        self.accounting.membership_version()
    }

    /// What the workers have in all; as many claims as there are workers.
    #[must_use]
    pub fn total_usage(&self) -> ResourceUsage {
        let most = |amount: u128| u64::try_from(amount).unwrap_or(u64::MAX);
        let ResourceTotals { workers, cpu_milli, memory_bytes, gpu_milli: cards_milli, .. } = *self.accounting.total();
        ResourceUsage {
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
        [self.timers.next_ms(), self.liveness_timers.next_ms(), tombstone].into_iter().flatten().min()
    }

    /// Workers that hold nothing, at most so many: those that are only cordoned or draining, then those that became idle first.
    #[must_use]
    pub fn idle_longest(&self, limit: usize) -> Vec<IdleWorker> {
        let drained = self.drained.iter().map(|&at| (at, true)).take(limit);
        let idle = self.idle_queue.oldest(self.workers.all(), limit.saturating_sub(self.drained.len()));
        let named = |(at, cordoned)| IdleWorker { id: self.workers.registration(at).spec.id.clone(), cordoned };
        drained.chain(idle.into_iter().map(|at| (at, false))).map(named).collect()
    }

    /// Things that searches for a worker have looked at so far, beyond the first: what they cost, whatever the machine.
    #[must_use]
    pub fn search_steps(&self) -> u64 {
        self.idle_queue.steps() + self.shared.as_ref().map_or(0, |shares| shares.fleet.steps())
    }

    /// Fences of claims of which no answer was given: their grants may be rolled back.
    pub fn undisclosed(&self) -> impl Iterator<Item = Fence> {
        self.claims
            .iter_from(0)
            .filter(|(_, claim)| !claim.disclosure.is_disclosed() && !claim.confirmed)
            .map(|(_, claim)| claim.fence)
    }

    /// Of claims with these fences nobody was told before the shard was loaded again, and nobody confirmed them: a row does
    /// not say that.
    pub fn restore_undisclosed(&mut self, is_untold: impl Fn(Fence) -> bool) {
        for claim in self.claims.iter_mut().filter(|claim| is_untold(claim.fence)) {
            claim.confirmed = false;
            claim.disclosure.set_disclosed(DisclosureState::Undisclosed);
        }
    }

    /// Whether the claim at `place` may be rolled back: no answer spoke of it, and nobody confirmed it.
    #[must_use]
    pub fn is_undisclosed(&self, place: ClaimHandle) -> bool {
        self.claims.get(place).is_some_and(|claim| !claim.disclosure.is_disclosed() && !claim.confirmed)
    }

    /// An answer that speaks of the claim at `place`, and is not the one that grants it, leaves.
    pub fn mark_referenced(&mut self, place: ClaimHandle) {
        if let Some(claim) = self.claims.get_mut(place) {
            claim.disclosure.set_referenced();
        }
    }

    /// The answer that grants the claim at `place` reached nobody, and the claim is kept for others.
    pub fn mark_orphan(&mut self, place: ClaimHandle) {
        if let Some(claim) = self.claims.get_mut(place).filter(|claim| !claim.confirmed) {
            claim.disclosure.set_orphan();
        }
    }

    /// Whether the claim at `place` is kept for answers of which none has left.
    #[must_use]
    pub fn is_orphan(&self, place: ClaimHandle) -> bool {
        self.claims.get(place).is_some_and(|claim| !claim.confirmed && claim.disclosure.is_orphan())
    }

    /// The claim at `place` is kept for nobody any more.
    pub fn end_orphan(&mut self, place: ClaimHandle) {
        if let Some(claim) = self.claims.get_mut(place) {
            claim.disclosure.set_disclosed(DisclosureState::Undisclosed);
        }
    }

    /// Whether an answer that speaks of the claim at `place` has left.
    #[must_use]
    pub fn is_reply_sent(&self, place: ClaimHandle) -> bool {
        self.claims.get(place).is_some_and(|claim| claim.disclosure.is_reply_sent())
    }

    /// Key of the claim at `place`.
    #[must_use]
    pub fn claim_id(&self, place: ClaimHandle) -> Option<&ClaimId> {
        self.claims.get(place).map(|claim| &claim.id)
    }

    /// Whether the claim at `place` is still that one.
    #[must_use]
    pub fn is_held(&self, place: ClaimHandle) -> bool {
        self.claims.get(place).is_some()
    }

    /// What is held at `place`, without a trace.
    #[must_use]
    pub fn grant(&self, place: ClaimHandle) -> Option<ClaimGrant> {
        let claim = self.claims.get(place)?;
        Some(ClaimGrant {
            handle: ClaimHandle { worker: claim.worker, ..place },
            worker: Arc::clone(self.workers.registration(claim.worker)),
            state: claim.state,
            term_ms: claim.term_ms.into(),
            deadline_ms: self.timers.get(place.claim),
            spec: claim.spec.clone(),
            gpu_mask: self.shared.as_ref().map(|shares| shares.gpu_mask(place.claim)),
            evicted: claim.state == ClaimState::Releasing && self.is_evicted(place.claim),
            timestamps: claim.timestamps,
        })
    }

    /// When what is held at `place` ends if nothing is heard, if ever.
    #[must_use]
    pub fn deadline_ms(&self, place: ClaimHandle) -> Option<Millis> {
        self.claims.get(place).and_then(|_| self.timers.get(place.claim))
    }

    /// A worker, deleted ones excluded.
    #[must_use]
    pub fn find_worker(&self, id: &WorkerId) -> Option<WorkerSnapshot> {
        self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).map(|at| self.worker_snapshot(at))
    }

    /// The registration of the worker with this ordinal, if it is in use.
    #[must_use]
    pub fn registration(&self, worker: u32) -> Option<&Arc<WorkerRegistration>> {
        let there = worker < self.workers.ordinals() && self.workers.is_used(worker);
        there.then(|| self.workers.registration(worker))
    }

    /// The registration of a worker, also of one that was deleted and is remembered.
    #[must_use]
    pub fn registration_of(&self, id: &WorkerId) -> Option<&Arc<WorkerRegistration>> {
        self.workers.find(id).map(|at| self.workers.registration(at))
    }

    /// Workers with their ordinals, in that order.
    pub fn list_workers(&self) -> impl Iterator<Item = (u32, WorkerSnapshot)> {
        let present = self.workers.iter_from(0).filter(|&at| !self.workers.get(at).deleted);
        present.map(|at| (at, self.worker_snapshot(at)))
    }

    /// Held claims with their ordinals, in that order; provisional ones excluded. A claim keeps its ordinal while it is held.
    pub fn list_claims(&self) -> impl Iterator<Item = (u32, ClaimId, ClaimGrant)> {
        self.claims.iter_from(0).filter_map(|(at, _)| self.listed(at, &|_| true))
    }

    /// A part of the list of workers, from an ordinal on: at most `limit` of them, and as few as can be found in one run.
    #[must_use]
    pub fn workers_from(&self, from: u32, limit: usize) -> ListingSlice<(u32, WorkerSnapshot)> {
        let mut rows = Vec::new();
        let mut looked_at = 0;
        for at in from..self.workers.ordinals() {
            if rows.len() == limit || looked_at >= limits::SLICE_ENTRIES {
                return ListingSlice { rows, next: Some(at) };
            }
            looked_at += 1;
            if self.workers.is_used(at) && !self.workers.get(at).deleted {
                let look = self.worker_snapshot(at);
                looked_at += look.claims.len() as u32;
                rows.push((at, look));
            }
        }
        ListingSlice { rows, next: None }
    }

    /// A part of the list of claims that pass, from an ordinal on, as of [`Self::workers_from`].
    pub fn claims_from(
        &self,
        from: u32,
        limit: usize,
        passes: impl Fn(&ListedClaim<'_>) -> bool,
    ) -> ListingSlice<(u32, ClaimId, ClaimGrant)> {
        let ordinals = self.claims.ordinals();
        let end = from.saturating_add(limits::SLICE_ENTRIES).min(ordinals);
        self.claims_among(from..end, limit, passes, (end < ordinals).then_some(end))
    }

    /// The same of the claims of one worker.
    pub fn worker_claims_from(
        &self,
        worker: &WorkerId,
        from: u32,
        limit: usize,
        passes: impl Fn(&ListedClaim<'_>) -> bool,
    ) -> ListingSlice<(u32, ClaimId, ClaimGrant)> {
        let worker = self.workers.find(worker);
        let places = worker.map(|at| self.handles_on(at)).unwrap_or_default();
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
    ) -> ListingSlice<(u32, ClaimId, ClaimGrant)> {
        let mut listed = claims.into_iter().filter_map(|at| self.listed(at, &passes));
        let rows: Vec<_> = listed.by_ref().take(limit).collect();
        let next = listed.next().map(|(at, ..)| at).or(next);
        ListingSlice { rows, next }
    }

    /// The claim with this ordinal, if it is shown and passes. What does not pass is not copied.
    fn listed(&self, at: u32, passes: &impl Fn(&ListedClaim<'_>) -> bool) -> Option<(u32, ClaimId, ClaimGrant)> {
        let held = self.claims.by_ordinal(at).filter(|_| self.gangs.gang_of(at).is_none())?;
        let worker = &self.workers.registration(held.worker).spec;
        let shown = ListedClaim { id: &held.id, state: held.state, times: held.times(), worker };
        if !passes(&shown) {
            return None;
        }
        let grant = self.grant(ClaimHandle { claim: at, worker: held.worker, fence: held.fence })?;
        Some((at, held.id.clone(), grant))
    }

    /// In a shared pool: what the offered workers have left, those without cards and those with, in sum and at most.
    #[must_use]
    pub fn free_summary(&self) -> Option<[(ResourceTotals, MaxFree); 2]> {
        let fleet = &self.shared.as_ref()?.fleet;
        let ([without, with], [most_without, most_with]) = (fleet.totals(), fleet.max_free());
        Some([(without, most_without), (with, most_with)])
    }

    /// In a shared pool: per GPU model, the cards of which nothing is held and that can be claimed, and the thousandths of
    /// cards that can. Costs a look at every distinct room.
    pub fn free_gpus(&self) -> impl Iterator<Item = (&Arc<str>, u64, u64)> {
        self.shared.iter().flat_map(|shares| shares.fleet.free_gpus())
    }

    pub(super) fn worker_snapshot(&self, at: u32) -> WorkerSnapshot {
        let worker = self.workers.get(at);
        let claims = self.handles_on(at).into_iter().filter(|place| !self.is_provisional(*place));
        let claims = claims.filter_map(|place| Some((self.claims.get(place)?.id.clone(), self.grant(place)?)));
        WorkerSnapshot {
            registration: Arc::clone(self.workers.registration(at)),
            version: worker.version,
            conditions: self.conditions(at),
            claims: claims.collect(),
        }
    }
}
