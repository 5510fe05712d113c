//! Queries of a shard, which change nothing except counters and the disclosure of claims.

use std::sync::Arc;

use super::accounting::CapacityUsage;
use super::claims::ClaimDisclosure;
use super::counters::{LifecycleCounters, ShardCounters};
use super::effect::{ClaimGrant, WorkerSnapshot};
use super::event::ClaimHandle;
use super::placement::bin_packing::ResourceTotals;
use super::shard::Shard;
use super::workers::schedulability::UnschedulableSummary;
use crate::limits;
use crate::model::{
    ClaimId, ClaimState, ClaimTimes, Fence, IdleWorker, Millis, ResourceAmounts, ResourceVector, Seq, WorkerId,
    WorkerRegistration, WorkerSpec,
};

/// Slice of a list that is read in one visit of the shard.
#[derive(Debug, Clone, PartialEq)]
pub struct ListingSlice<T> {
    /// Rows of this slice.
    pub rows: Vec<T>,
    /// Ordinal at which the list continues; none at its end.
    pub next: Option<u32>,
}

/// Fields of a claim that a filter may use.
#[derive(Debug, Clone, Copy)]
pub struct ListedClaim<'a> {
    /// Identity of the claim.
    pub id: &'a ClaimId,
    /// State of the claim.
    pub state: ClaimState,
    /// Unix times of its creation and activation.
    pub times: ClaimTimes,
    /// Worker that it holds.
    pub worker: &'a WorkerSpec,
}

/// Earlier of two times, if there is any.
#[must_use]
#[inline]
pub fn earlier(one: Option<Millis>, other: Option<Millis>) -> Option<Millis> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl Shard {
    /// Sequence number of the last change.
    #[must_use]
    pub const fn seq(&self) -> Seq {
        self.changes.seq()
    }

    /// Highest fence that was ever granted here.
    #[must_use]
    pub const fn highest_fence(&self) -> Fence {
        self.header.fence_max
    }

    /// Number of idle workers: what the router may know.
    #[must_use]
    pub const fn idle(&self) -> usize {
        self.idle_queue.len()
    }

    /// Number of live claims.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.claims.len()
    }

    /// Number of workers with claims.
    #[must_use]
    pub const fn busy(&self) -> usize {
        self.accounting.busy()
    }

    /// Number of live claims that are not active yet.
    #[must_use]
    pub const fn reserved(&self) -> usize {
        self.claims.reserved()
    }

    /// Number of live claims whose worker is being cleaned up.
    #[must_use]
    pub const fn releasing(&self) -> usize {
        self.claims.releasing()
    }

    /// Number of workers that are not deleted.
    #[must_use]
    pub const fn workers(&self) -> usize {
        self.accounting.workers()
    }

    /// Number of unschedulable workers, by reason.
    #[must_use]
    pub const fn unschedulable(&self) -> UnschedulableSummary {
        *self.accounting.unschedulable()
    }

    /// Statistics since the shard was created or loaded.
    #[must_use]
    pub const fn counters(&self) -> ShardCounters {
        ShardCounters { worker_updates: self.changes.worker_updates(), ..self.counters }
    }

    /// Statistics that change only with workers and deadlines, not with claims and their releases.
    #[must_use]
    pub const fn lifecycle_counters(&self) -> &LifecycleCounters {
        &self.counters.lifecycle
    }

    /// Version that advances when [`Self::lifecycle_counters`] may have changed.
    #[must_use]
    pub const fn lifecycle_version(&self) -> u64 {
        self.lifecycle_version
    }

    /// Statistics of the lifecycle, to be changed.
    pub(in crate::engine) const fn lifecycle_mut(&mut self) -> &mut LifecycleCounters {
        self.lifecycle_version += 1;
        &mut self.counters.lifecycle
    }

    /// Number of changes of workers, and of claims that were rolled back.
    #[must_use]
    pub const fn update_counters(&self) -> (u64, u64) {
        (self.changes.worker_updates(), self.counters.rolled_back)
    }

    /// Usage by capacity vector.
    pub fn capacity_usage(&self) -> impl Iterator<Item = &CapacityUsage> {
        self.accounting.usages()
    }

    /// Largest amount of each resource that any worker has. Changes only with [`Self::capacity_version`].
    #[must_use]
    pub fn max_capacity(&self) -> ResourceVector {
        self.accounting.max_capacity()
    }

    /// Version that advances when a capacity vector appears or disappears.
    #[must_use]
    pub const fn capacity_version(&self) -> u64 {
        self.accounting.capacity_version()
    }

    /// Version that advances when what is counted of the workers changed, other than by claims: their number, capacities,
    /// and reasons to be unschedulable.
    #[must_use]
    pub const fn accounting_version(&self) -> u64 {
        self.accounting.version()
    }

    /// Number of the workers, and their total resources.
    #[must_use]
    pub fn total_capacity(&self) -> (u64, ResourceVector) {
        let ResourceTotals { workers, amounts } = *self.accounting.total();
        (workers, amounts.saturate())
    }

    /// Lower bound of the time at which [`Event::Tick`](super::Event::Tick) changes something, if it ever does.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<Millis> {
        let tombstone = self.tombstones.front().map(|&(until, _)| until);
        earlier(earlier(self.timers.next_ms(), self.liveness_timers.next_ms()), tombstone)
    }

    /// Workers without claims, at most `limit`: first those that are only cordoned or draining, then those that
    /// became idle first.
    #[must_use]
    pub fn idle_longest(&self, limit: usize) -> Vec<IdleWorker> {
        let drained = self.drained.iter().map(|&at| (at, true)).take(limit);
        let idle = self.idle_queue.oldest(self.workers.all(), limit.saturating_sub(self.drained.len()));
        let to_idle_worker =
            |(at, cordoned)| IdleWorker { id: self.workers.registration(at).spec.id.clone(), cordoned };
        drained.chain(idle.into_iter().map(|at| (at, false))).map(to_idle_worker).collect()
    }

    /// Number of candidates that searches for a worker have examined beyond the first: their cost, whatever the
    /// machine.
    #[must_use]
    pub fn search_steps(&self) -> u64 {
        self.idle_queue.steps() + self.shared.as_ref().map_or(0, |shared| shared.fleet.steps())
    }

    /// Disclosure of the claims that may still be rolled back, by fence. Rows do not record it.
    pub fn revocable(&self) -> impl Iterator<Item = (Fence, ClaimDisclosure)> {
        let claims = self.claims.iter_from(0).map(|(_, claim)| (claim.fence, claim.disclosure));
        claims.filter(|(_, disclosure)| disclosure.is_revocable())
    }

    /// Restores the disclosure of claims after the shard was loaded again.
    pub fn restore_disclosure(&mut self, disclosure_of: impl Fn(Fence) -> Option<ClaimDisclosure>) {
        for claim in self.claims.iter_mut() {
            if let Some(mut disclosure) = disclosure_of(claim.fence) {
                // Its deadlines started when it was loaded.
                disclosure.set_reply_sent();
                claim.disclosure = disclosure;
            }
        }
    }

    /// Whether the claim ends if its grant is rolled back: no other reply shows it, and it is unconfirmed.
    #[must_use]
    pub fn is_undisclosed(&self, handle: ClaimHandle) -> bool {
        self.claims.get(handle).is_some_and(|claim| claim.disclosure.is_undisclosed())
    }

    /// Takes back a reply that shows the claim, because nobody will read it. Returns whether that leaves the claim to
    /// nobody, so that it must be rolled back.
    pub fn remove_reference(&mut self, handle: ClaimHandle) -> bool {
        self.claims.get_mut(handle).is_some_and(|claim| {
            claim.disclosure.remove_reference();
            claim.disclosure.is_orphan()
        })
    }

    /// Claims that nobody knows of, and that were kept for replies which were lost.
    pub fn orphans(&self) -> impl Iterator<Item = (&ClaimId, Fence)> {
        let claims = self.claims.iter_from(0).filter(|(_, claim)| claim.disclosure.is_orphan());
        claims.map(|(_, claim)| (&claim.id, claim.fence))
    }

    /// Whether a reply that discloses the claim was sent.
    #[must_use]
    pub fn is_reply_sent(&self, handle: ClaimHandle) -> bool {
        self.claims.get(handle).is_some_and(|claim| claim.disclosure.is_reply_sent())
    }

    /// Identity of the claim behind `handle`.
    #[must_use]
    pub fn claim_id(&self, handle: ClaimHandle) -> Option<&ClaimId> {
        self.claims.get(handle).map(|claim| &claim.id)
    }

    /// Whether the claim behind `handle` is still live.
    #[must_use]
    pub fn is_held(&self, handle: ClaimHandle) -> bool {
        self.claims.get(handle).is_some()
    }

    /// Snapshot of the claim behind `handle`, without disclosing it.
    #[must_use]
    pub fn grant(&self, handle: ClaimHandle) -> Option<ClaimGrant> {
        let claim = self.claims.get(handle)?;
        Some(ClaimGrant {
            handle: ClaimHandle { worker: claim.worker, ..handle },
            worker: Arc::clone(self.workers.registration(claim.worker)),
            state: claim.state,
            term_ms: claim.term_ms.into(),
            deadline_ms: self.timers.get(handle.claim),
            spec: claim.spec.clone(),
            gpu_mask: self.shared.as_ref().map(|shares| shares.gpu_mask(handle.claim)),
            evicted: claim.state == ClaimState::Releasing && self.is_evicted(handle.claim),
            timestamps: claim.timestamps,
        })
    }

    /// Engine time at which the claim ends unless it is confirmed or renewed, if ever.
    #[must_use]
    pub fn deadline_ms(&self, handle: ClaimHandle) -> Option<Millis> {
        self.claims.get(handle).and_then(|_| self.timers.get(handle.claim))
    }

    /// Snapshot of a worker, deleted ones excluded.
    #[must_use]
    pub fn find_worker(&self, id: &WorkerId) -> Option<WorkerSnapshot> {
        self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).map(|at| self.worker_snapshot(at))
    }

    /// Registration of the worker with this ordinal, if the ordinal is in use.
    #[must_use]
    pub fn registration(&self, worker: u32) -> Option<&Arc<WorkerRegistration>> {
        let in_use = worker < self.workers.ordinals() && self.workers.is_used(worker);
        in_use.then(|| self.workers.registration(worker))
    }

    /// Registration of a worker, also of a deleted one that is still remembered.
    #[must_use]
    pub fn registration_of(&self, id: &WorkerId) -> Option<&Arc<WorkerRegistration>> {
        self.workers.find(id).map(|at| self.workers.registration(at))
    }

    /// Snapshots of all workers in the order of their ordinals.
    pub fn list_workers(&self) -> impl Iterator<Item = (u32, WorkerSnapshot)> {
        let present = self.workers.iter_from(0).filter(|&at| !self.workers.get(at).deleted);
        present.map(|at| (at, self.worker_snapshot(at)))
    }

    /// Live claims in the order of their ordinals, provisional ones excluded. A claim keeps its ordinal while it is
    /// live.
    pub fn list_claims(&self) -> impl Iterator<Item = (u32, ClaimId, ClaimGrant)> {
        self.claims.iter_from(0).filter_map(|(at, _)| self.listed(at, &|_| true))
    }

    /// Claim of the shard with this key, if there is one: of several that with the highest fence. Examines all claims.
    #[must_use]
    pub fn find_claim(&self, id: &ClaimId) -> Option<ClaimGrant> {
        let found = self.claims.iter_from(0).filter(|(_, claim)| claim.id == *id).max_by_key(|(_, claim)| claim.fence);
        let (at, claim) = found?;
        self.grant(ClaimHandle { claim: at, worker: claim.worker, fence: claim.fence })
    }

    /// Slice of the list of workers from an ordinal on: at most `limit`, and no more than one visit may examine.
    #[must_use]
    pub fn workers_from(&self, from: u32, limit: usize) -> ListingSlice<(u32, WorkerSnapshot)> {
        let mut rows = Vec::new();
        let mut examined = 0;
        for at in from..self.workers.ordinals() {
            if rows.len() == limit || examined >= limits::SLICE_ENTRIES {
                return ListingSlice { rows, next: Some(at) };
            }
            examined += 1;
            if self.workers.is_used(at) && !self.workers.get(at).deleted {
                let snapshot = self.worker_snapshot(at);
                examined += snapshot.claims.len() as u32;
                rows.push((at, snapshot));
            }
        }
        ListingSlice { rows, next: None }
    }

    /// Slice of the filtered list of claims from an ordinal on, with the limits of [`Self::workers_from`].
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

    /// Slice of the filtered list of one worker's claims.
    pub fn worker_claims_from(
        &self,
        worker: &WorkerId,
        from: u32,
        limit: usize,
        passes: impl Fn(&ListedClaim<'_>) -> bool,
    ) -> ListingSlice<(u32, ClaimId, ClaimGrant)> {
        let worker = self.workers.find(worker);
        let handles = worker.map(|at| self.handles_on(at)).unwrap_or_default();
        let mut claims: Vec<u32> = handles.iter().map(|handle| handle.claim).filter(|&claim| claim >= from).collect();
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

    /// Claim with this ordinal, if it is not provisional and passes. Claims that do not pass are not copied.
    fn listed(&self, at: u32, passes: &impl Fn(&ListedClaim<'_>) -> bool) -> Option<(u32, ClaimId, ClaimGrant)> {
        let claim = self.claims.by_ordinal(at).filter(|_| self.gangs.gang_of(at).is_none())?;
        let worker = &self.workers.registration(claim.worker).spec;
        let shown = ListedClaim { id: &claim.id, state: claim.state, times: claim.times(), worker };
        if !passes(&shown) {
            return None;
        }
        let grant = self.grant(ClaimHandle { claim: at, worker: claim.worker, fence: claim.fence })?;
        Some((at, claim.id.clone(), grant))
    }

    /// Free resources of the schedulable workers in a shared pool, in sum and at most: those without GPUs and those
    /// with.
    #[must_use]
    pub fn free_summary(&self) -> Option<[(ResourceTotals, ResourceAmounts); 2]> {
        let fleet = &self.shared.as_ref()?.fleet;
        let ([without, with], [most_without, most_with]) = (fleet.totals(), fleet.max_free());
        Some([(without, most_without), (with, most_with)])
    }

    /// Free GPUs of a shared pool by model: wholly free ones that can be claimed, and the thousandths that can. Costs
    /// one step for every distinct vector of free resources.
    pub fn free_gpus(&self) -> impl Iterator<Item = (&Arc<str>, u64, u64)> {
        self.shared.iter().flat_map(|shared| shared.fleet.free_gpus())
    }

    pub(super) fn worker_snapshot(&self, at: u32) -> WorkerSnapshot {
        let worker = self.workers.get(at);
        let claims = self.handles_on(at).into_iter().filter(|handle| !self.is_provisional(*handle));
        let claims = claims.filter_map(|handle| Some((self.claims.get(handle)?.id.clone(), self.grant(handle)?)));
        WorkerSnapshot {
            registration: Arc::clone(self.workers.registration(at)),
            version: worker.version(),
            conditions: self.conditions(at),
            claims: claims.collect(),
        }
    }
}
