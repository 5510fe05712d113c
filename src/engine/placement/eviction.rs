//! Evictions: the victims that a claim of higher priority displaces.
//!
//! Claims that are marked `preemptible` may be *evicted*: they are being released from then on, within the pool's time
//! limit, and the freed resources are reserved for the evicting claim ([`super::reservations`]). A victim has a strictly
//! lower priority, so chains of evictions have no cycles. An eviction is recorded in the row of the evicted claim.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::bin_packing::{ResourceAllocation, ResourceRequest};
use super::constraints::PlacementConstraints;
use crate::engine::effect::EngineReply;
use crate::engine::event::ClaimHandle;
use crate::engine::shard::{Shard, saturating_millis};
use crate::model::{ClaimId, ClaimState, Fence, Millis, ResourceUsage, unschedulable_bits};

/// Claims that a search for victims examines, the cheapest first: bounds its duration.
const VICTIMS_SCANNED_MAX: usize = 1_024;
/// Workers that a search for victims compares.
const WORKERS_COMPARED_MAX: usize = 64;

/// Claims that can be evicted, and those that were.
#[derive(Debug, Default)]
pub struct EvictionIndex {
    /// Evictable claims, the cheapest first: of equal priority the youngest, which loses the least work.
    evictable: BTreeSet<(u16, Reverse<Fence>, u32)>,
    /// Claims that were evicted and are being released.
    evicted: BTreeSet<u32>,
    /// Workers that are suspect because a claim was evicted from them and not released in time. A restart forgets them.
    unreleased: BTreeSet<u32>,
}

/// Limits of the evictions for a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionPolicy {
    /// Priority below which claims may be evicted.
    pub below_priority: u16,
    /// Time limit of the evicted claims' clean-up, in milliseconds.
    pub releasing_ms: Millis,
    /// The only worker that may lose claims; none: any.
    pub worker: Option<u32>,
}

impl EvictionPolicy {
    fn allows(&self, worker: u32) -> bool {
        self.worker.is_none_or(|only| only == worker)
    }
}

/// Claim that may be evicted for another one of its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantVictim {
    /// Handle of the claim.
    pub handle: ClaimHandle,
    /// Priority of the claim.
    pub priority: u16,
    /// Amounts that its tenant is charged for it.
    pub amounts: ResourceUsage,
}

/// Need of a claim that is to get a worker by evictions.
#[derive(Debug, Clone)]
pub struct VictimNeed {
    /// Constraints that the worker must meet.
    pub constraints: Arc<PlacementConstraints>,
    /// Time for which the claim needs the worker, in milliseconds.
    pub duration_ms: Millis,
}

impl Shard {
    /// Updates the index of evictable claims after a change of this claim.
    pub(in crate::engine) fn index_evictable(&mut self, claim: u32) {
        let Some(live) = self.claims.by_ordinal(claim) else { return };
        let Some(spec) = live.spec.as_ref().filter(|spec| spec.preemptible) else { return };
        let entry = (spec.priority, Reverse(live.fence), claim);
        let is_evictable =
            matches!(live.state, ClaimState::Reserved | ClaimState::Active) && self.gangs.gang_of(claim).is_none();
        if is_evictable {
            self.evictions.evictable.insert(entry);
        } else {
            self.evictions.evictable.remove(&entry);
        }
    }

    /// Removes a claim that is about to end from the index of evictable claims.
    pub(in crate::engine) fn unindex_evictable(&mut self, claim: u32) {
        if let Some(live) = self.claims.by_ordinal(claim)
            && let Some(spec) = live.spec.as_ref().filter(|spec| spec.preemptible)
        {
            self.evictions.evictable.remove(&(spec.priority, Reverse(live.fence), claim));
            self.evictions.evicted.remove(&claim);
        }
    }

    /// Lowest priority of an evictable claim; none: no claim is evictable.
    #[must_use]
    pub fn min_evictable_priority(&self) -> Option<u16> {
        self.evictions.evictable.first().map(|(priority, ..)| *priority)
    }

    /// Whether the claim is being released because it was evicted.
    #[must_use]
    pub fn is_evicted(&self, claim: u32) -> bool {
        self.evictions.evicted.contains(&claim)
    }

    /// Number of workers that are suspect because a claim was evicted from them and not released in time.
    #[must_use]
    pub fn unreleased_evictions(&self) -> usize {
        self.evictions.unreleased.len()
    }

    /// Notes that an evicted claim made its worker suspect.
    pub(in crate::engine) fn add_unreleased_eviction(&mut self, worker: u32) {
        debug_assert!(self.workers.get(worker).unschedulable_bits & unschedulable_bits::SUSPECT != 0);
        self.evictions.unreleased.insert(worker);
        self.accounting.publish_again();
    }

    /// Notes that a worker is trusted again or gone, whatever was evicted from it.
    pub(in crate::engine) fn forget_unreleased_eviction(&mut self, worker: u32) {
        self.evictions.unreleased.remove(&worker);
    }

    /// Restores the eviction of a claim from its row.
    pub(in crate::engine) fn restore_evicted(&mut self, claim: u32) {
        self.evictions.evicted.insert(claim);
    }

    /// Reply about a claim that is being released.
    pub(in crate::engine) fn releasing_reply(&self, claim: u32) -> EngineReply {
        if self.is_evicted(claim) { EngineReply::Evicted } else { EngineReply::Releasing }
    }

    fn victims_below(&self, priority_limit: u16) -> impl Iterator<Item = ClaimHandle> {
        let lower = self.evictions.evictable.iter().take_while(move |(priority, ..)| *priority < priority_limit);
        lower.take(VICTIMS_SCANNED_MAX).filter_map(|&(_, Reverse(fence), claim)| {
            Some(ClaimHandle { claim, worker: self.claims.by_ordinal(claim)?.worker, fence })
        })
    }

    pub(super) fn cheapest_victim(
        &self,
        constraints: &PlacementConstraints,
        evict: EvictionPolicy,
        until_ms: Millis,
    ) -> Option<(u32, Vec<ClaimHandle>)> {
        let found = self
            .victims_below(evict.below_priority)
            .find(|handle| evict.allows(handle.worker) && self.can_reserve(handle.worker, constraints, until_ms));
        found.map(|handle| (handle.worker, vec![handle]))
    }

    pub(super) fn fewest_victims(
        &mut self,
        constraints: &PlacementConstraints,
        evict: EvictionPolicy,
        until_ms: Millis,
    ) -> Option<(u32, Vec<ClaimHandle>)> {
        let request = self.resource_request(constraints)?;
        let mut by_worker: BTreeMap<u32, Vec<ClaimHandle>> = BTreeMap::new();
        for handle in self.victims_below(evict.below_priority).filter(|handle| evict.allows(handle.worker)) {
            if by_worker.contains_key(&handle.worker)
                || (by_worker.len() < WORKERS_COMPARED_MAX && self.can_reserve(handle.worker, constraints, until_ms))
            {
                by_worker.entry(handle.worker).or_default().push(handle);
            }
        }
        let mut best: Option<((usize, u64), u32, Vec<ClaimHandle>)> = None;
        for (at, candidates) in by_worker {
            let mut victims: Vec<ClaimHandle> = Vec::new();
            for handle in candidates {
                victims.push(handle);
                if self.fits_without(at, &request, &victims) {
                    break;
                }
            }
            if !self.fits_without(at, &request, &victims) {
                continue;
            }
            // The cheap victims chosen first may be unnecessary beside a large one.
            for handle in victims.clone() {
                let others: Vec<ClaimHandle> = victims.iter().copied().filter(|other| *other != handle).collect();
                if self.fits_without(at, &request, &others) {
                    victims = others;
                }
            }
            let priority = |handle: &ClaimHandle| {
                let spec = self.claims.get(*handle).and_then(|claim| claim.spec.as_ref());
                spec.map_or(0, |spec| u64::from(spec.priority))
            };
            let cost = (victims.len(), victims.iter().map(priority).sum());
            if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                best = Some((cost, at, victims));
            }
        }
        best.map(|(_, at, victims)| (at, victims))
    }

    /// Claims of a tenant that may be evicted for another one of it, the cheapest first, at most `limit`. `owner`: any
    /// claim of the tenant.
    #[must_use]
    pub fn victims_of_tenant(&self, owner: &ClaimId, below_priority: u16, limit: usize) -> Vec<TenantVictim> {
        let victim = |handle: ClaimHandle| {
            let claim = self.claims.get(handle)?;
            let is_own = (claim.id.namespace(), claim.id.tenant()) == (owner.namespace(), owner.tenant());
            let spec = claim.spec.as_deref().filter(|_| is_own)?;
            Some(TenantVictim { handle, priority: spec.priority, amounts: ResourceUsage::of_claim(Some(spec)) })
        };
        self.victims_below(below_priority).filter_map(victim).take(limit).collect()
    }

    /// Evicts those of these claims that may be evicted still. No event, because a larger one would cost every claim.
    pub fn evict_claims(&mut self, claims: &[ClaimHandle], releasing_ms: Millis, now_ms: Millis) {
        for handle in claims {
            let priority = self.claims.get(*handle).and_then(|claim| Some(claim.spec.as_ref()?.priority));
            let entry = |priority| (priority, Reverse(handle.fence), handle.claim);
            if priority.is_some_and(|priority| self.evictions.evictable.contains(&entry(priority))) {
                self.evict(*handle, releasing_ms, now_ms);
            }
        }
        #[cfg(debug_assertions)]
        self.assert_invariants();
    }

    /// Finds a worker for each of these needs that would fit it after evictions, no worker twice. Returns the needs that
    /// have one, by their positions, each with the ordinal of the worker. Nothing is evicted.
    pub fn survey_victims(&mut self, needs: &[VictimNeed], below_priority: u16, now_ms: Millis) -> Vec<(usize, u32)> {
        let mut workers: Vec<(u32, Vec<ClaimHandle>)> = Vec::new();
        let mut positions: BTreeMap<u32, usize> = BTreeMap::new();
        for handle in self.victims_below(below_priority) {
            let position = *positions.entry(handle.worker).or_insert(workers.len());
            if position == workers.len() {
                workers.push((handle.worker, Vec::new()));
            }
            workers[position].1.push(handle);
        }
        if self.shared.is_some() {
            workers.truncate(WORKERS_COMPARED_MAX);
        }
        let mut open: Vec<usize> = (0..needs.len()).collect();
        let mut found = Vec::new();
        for (at, victims) in workers {
            // Members of a gang mostly request the same.
            let mut failed: Vec<&Arc<PlacementConstraints>> = Vec::new();
            let position = open.iter().position(|&index| {
                let VictimNeed { constraints, duration_ms } = &needs[index];
                let has_failed = failed.iter().any(|failed| Arc::ptr_eq(failed, constraints));
                let fits = !has_failed && self.fits_after_evictions(at, constraints, now_ms + duration_ms, &victims);
                failed.extend((!fits && !has_failed).then_some(constraints));
                fits
            });
            found.extend(position.map(|position| (open.remove(position), at)));
        }
        found
    }

    fn fits_after_evictions(
        &mut self,
        at: u32,
        constraints: &PlacementConstraints,
        until_ms: Millis,
        victims: &[ClaimHandle],
    ) -> bool {
        if !self.can_reserve(at, constraints, until_ms) {
            return false;
        }
        match self.resource_request(constraints) {
            // Where it fits already, the capacity is another member's.
            Some(request) => !self.fits_without(at, &request, &[]) && self.fits_without(at, &request, victims),
            // The worker of an exclusive pool is free without its claim.
            None => self.shared.is_none(),
        }
    }

    /// Whether the worker would fit the request without these claims.
    fn fits_without(&mut self, at: u32, request: &ResourceRequest, removed: &[ClaimHandle]) -> bool {
        let fits = |shard: &Self| shard.shared.as_ref().is_some_and(|shared| shared.fleet.free(at).fits(request));
        self.with_claims_removed(at, removed, fits).unwrap_or(false)
    }

    /// Reads the worker as it would be without these claims; none if it would be overcommitted all the same.
    pub(super) fn with_claims_removed<T>(
        &mut self,
        at: u32,
        removed: &[ClaimHandle],
        read: impl FnOnce(&Self) -> T,
    ) -> Option<T> {
        let remaining: Vec<ResourceAllocation> = self
            .handles_on(at)
            .iter()
            .filter(|handle| !removed.contains(handle))
            .map(|handle| self.allocation_of(handle.claim))
            .collect();
        let shared = self.shared.as_mut()?;
        let capacity = &self.workers.registration(at).spec.capacity;
        let class_id = shared.fleet.free(at).class_id;
        shared.fleet.remove(at);
        let enough = shared.fleet.insert_with(at, capacity, class_id, remaining);
        let found = enough.then(|| read(self));
        self.recompute_free(at);
        found
    }

    /// Evicts a claim: it is being released from now on.
    pub(super) fn evict(&mut self, handle: ClaimHandle, releasing_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get_mut(handle) else { return };
        let is_preemptible = claim.spec.as_ref().is_some_and(|spec| spec.preemptible);
        assert!(is_preemptible, "Q12: a claim is evicted that is not preemptible");
        claim.term_ms = saturating_millis(releasing_ms);
        claim.disclosure.set_confirmed();
        self.claims.transition(handle, ClaimState::Releasing, None);
        self.index_evictable(handle.claim);
        self.evictions.evicted.insert(handle.claim);
        self.lifecycle_mut().evicted += 1;
        self.timers.cancel(handle.claim);
        self.start_state_timer(handle, now_ms);
        self.record_change(handle.worker);
    }
}
