//! Reservations: workers kept for waiting claims, on which nobody else gets resources.
//!
//! A claim of higher priority may *evict* claims that are marked `preemptible`: they are being released from then on,
//! within the pool's time limit, and the freed resources are reserved for the evicting claim. A victim has a strictly
//! lower priority, so chains of evictions have no cycles. In a shared pool a worker may also be reserved for a large
//! claim without evictions: otherwise small claims come and go, and the large one never finds enough free at once.
//!
//! Reservations are kept in memory only: a waiting claim does not survive a restart. An eviction is recorded in the
//! row of the evicted claim.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::bin_packing::{ResourceAllocation, ResourceRequest};
use super::constraints::{PlacementConstraints, PlacementFailure};
use crate::engine::NIL;
use crate::engine::effect::EngineReply;
use crate::engine::event::{ClaimHandle, ReservationId};
use crate::engine::shard::{Shard, saturating_millis};
use crate::model::unschedulable_bits;
use crate::model::{ClaimState, Fence, Millis, ResourceRequirements};

/// Claims that a search for victims examines, the cheapest first: bounds its duration.
const VICTIMS_SCANNED_MAX: usize = 1_024;
/// Workers that a search for victims compares.
const WORKERS_COMPARED_MAX: usize = 64;

/// Reserved workers by the ids of their reservations, and claims that can be evicted.
#[derive(Debug, Default)]
pub struct WorkerReservations {
    /// Reserved worker, by the id of its reservation.
    workers: BTreeMap<ReservationId, u32>,
    /// Evictable claims, the cheapest first: of equal priority the youngest, which loses the least work.
    evictable: BTreeSet<(u16, Reverse<Fence>, u32)>,
    /// Claims that were evicted and are being released.
    evicted: BTreeSet<u32>,
}

/// Limits of the evictions for a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionPolicy {
    /// Priority below which claims may be evicted.
    pub below_priority: u16,
    /// Time limit of the evicted claims' clean-up, in milliseconds.
    pub releasing_ms: Millis,
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
            self.reservations.evictable.insert(entry);
        } else {
            self.reservations.evictable.remove(&entry);
        }
    }

    /// Removes a claim that is about to end from the index of evictable claims.
    pub(in crate::engine) fn unindex_evictable(&mut self, claim: u32) {
        if let Some(live) = self.claims.by_ordinal(claim)
            && let Some(spec) = live.spec.as_ref().filter(|spec| spec.preemptible)
        {
            self.reservations.evictable.remove(&(spec.priority, Reverse(live.fence), claim));
            self.reservations.evicted.remove(&claim);
        }
    }

    /// Lowest priority of an evictable claim; none: no claim is evictable.
    #[must_use]
    pub fn min_evictable_priority(&self) -> Option<u16> {
        self.reservations.evictable.first().map(|(priority, ..)| *priority)
    }

    /// Whether the claim is being released because it was evicted.
    #[must_use]
    pub fn is_evicted(&self, claim: u32) -> bool {
        self.reservations.evicted.contains(&claim)
    }

    /// Restores the eviction of a claim from its row.
    pub(in crate::engine) fn restore_evicted(&mut self, claim: u32) {
        self.reservations.evicted.insert(claim);
    }

    /// Reply about a claim that is being released.
    pub(in crate::engine) fn releasing_reply(&self, claim: u32) -> EngineReply {
        if self.is_evicted(claim) { EngineReply::Evicted } else { EngineReply::Releasing }
    }

    /// Reserved workers, each once.
    pub(in crate::engine) fn reserved_workers(&self) -> BTreeSet<u32> {
        self.reservations.workers.values().copied().collect()
    }

    /// Whether a worker is reserved under this id.
    #[must_use]
    pub fn has_reservation(&self, id: ReservationId) -> bool {
        self.reservations.workers.contains_key(&id)
    }

    /// Reserves a worker for a waiting claim: one that fits after the fewest and cheapest evictions; without
    /// evictions, the one that lacks the least.
    pub(in crate::engine) fn reserve_worker(
        &mut self,
        id: ReservationId,
        constraints: &PlacementConstraints,
        evict: Option<EvictionPolicy>,
        until_ms: Millis,
        now_ms: Millis,
    ) -> EngineReply {
        if self.has_reservation(id) {
            return EngineReply::WorkerReserved;
        }
        let found = match (evict, self.shared.is_some()) {
            (Some(evict), false) => self.cheapest_victim(constraints, evict, until_ms),
            (Some(evict), true) => self.fewest_victims(constraints, evict, until_ms),
            (None, false) => None,
            (None, true) => self.smallest_shortfall(constraints, until_ms).map(|at| (at, Vec::new())),
        };
        let Some((at, victims)) = found else { return EngineReply::NotPlaced(PlacementFailure::Busy) };
        debug_assert_eq!(self.workers.get(at).unschedulable_bits, 0, "Q12: an unschedulable worker is reserved");
        self.reservations.workers.insert(id, at);
        self.update_unschedulable(at, unschedulable_bits::RESERVED, 0);
        for handle in victims {
            self.evict(handle, evict.map_or(0, |evict| evict.releasing_ms), now_ms);
        }
        EngineReply::WorkerReserved
    }

    fn can_reserve(&self, at: u32, constraints: &PlacementConstraints, until_ms: Millis) -> bool {
        let worker = self.workers.get(at);
        let spec = &self.workers.registration(at).spec;
        !worker.deleted && worker.unschedulable_bits == 0 && constraints.fits(spec) && self.outlives(at, until_ms)
    }

    fn victims_below(&self, priority_limit: u16) -> impl Iterator<Item = ClaimHandle> {
        let lower = self.reservations.evictable.iter().take_while(move |(priority, ..)| *priority < priority_limit);
        lower.take(VICTIMS_SCANNED_MAX).filter_map(|&(_, Reverse(fence), claim)| {
            Some(ClaimHandle { claim, worker: self.claims.by_ordinal(claim)?.worker, fence })
        })
    }

    fn cheapest_victim(
        &self,
        constraints: &PlacementConstraints,
        evict: EvictionPolicy,
        until_ms: Millis,
    ) -> Option<(u32, Vec<ClaimHandle>)> {
        let found = self
            .victims_below(evict.below_priority)
            .find(|handle| self.can_reserve(handle.worker, constraints, until_ms));
        found.map(|handle| (handle.worker, vec![handle]))
    }

    fn fewest_victims(
        &mut self,
        constraints: &PlacementConstraints,
        evict: EvictionPolicy,
        until_ms: Millis,
    ) -> Option<(u32, Vec<ClaimHandle>)> {
        let request = self.resource_request(constraints)?;
        let mut by_worker: BTreeMap<u32, Vec<ClaimHandle>> = BTreeMap::new();
        for handle in self.victims_below(evict.below_priority) {
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

    fn resource_request(&self, constraints: &PlacementConstraints) -> Option<ResourceRequest> {
        let no_resources = ResourceRequirements::default();
        let resources = constraints.spec.as_ref().map_or(&no_resources, |spec| &spec.resources);
        self.shared.as_ref()?.resource_request(resources, &constraints.gpus)
    }

    /// Whether the worker would fit the request without these claims.
    fn fits_without(&mut self, at: u32, request: &ResourceRequest, removed: &[ClaimHandle]) -> bool {
        let remaining: Vec<ResourceAllocation> = self
            .handles_on(at)
            .iter()
            .filter(|handle| !removed.contains(handle))
            .map(|handle| self.allocation_of(handle.claim))
            .collect();
        let Some(shared) = &mut self.shared else { return false };
        let capacity = &self.workers.registration(at).spec.capacity;
        let class_id = shared.fleet.free(at).class_id;
        shared.fleet.remove(at);
        let enough = shared.fleet.insert_with(at, capacity, class_id, remaining);
        let fits = enough && shared.fleet.free(at).fits(request);
        self.recompute_free(at);
        fits
    }

    /// Worker that lacks the smallest fraction of the request.
    fn smallest_shortfall(&self, constraints: &PlacementConstraints, until_ms: Millis) -> Option<u32> {
        let (request, shared) = (self.resource_request(constraints)?, self.shared.as_ref()?);
        let missing_milli = |free: u64, requested: u64| {
            requested.saturating_sub(free).saturating_mul(1_000).checked_div(requested).unwrap_or(0)
        };
        let shortfall = |at: u32| {
            let free = shared.fleet.free(at);
            let gpus = free.gpus.iter().filter(|&&milli| milli >= request.gpu_milli).count() as u64;
            [
                missing_milli(free.cpu_milli, request.cpu_milli),
                missing_milli(free.memory_bytes, request.memory_bytes),
                missing_milli(free.slots, request.slots),
                missing_milli(gpus, u64::from(request.gpu_count)),
            ]
            .into_iter()
            .max()
        };
        let is_candidate = |at: &u32| self.can_reserve(*at, constraints, until_ms);
        self.workers.iter_from(0).filter(is_candidate).min_by_key(|&at| shortfall(at))
    }

    /// Evicts a claim: it is being released from now on.
    fn evict(&mut self, handle: ClaimHandle, releasing_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get_mut(handle) else { return };
        let is_preemptible = claim.spec.as_ref().is_some_and(|spec| spec.preemptible);
        assert!(is_preemptible, "Q12: a claim is evicted that is not preemptible");
        (claim.confirmed, claim.term_ms) = (true, saturating_millis(releasing_ms));
        self.claims.transition(handle, ClaimState::Releasing, None);
        self.index_evictable(handle.claim);
        self.reservations.evicted.insert(handle.claim);
        self.counters.lifecycle.evicted += 1;
        self.timers.cancel(handle.claim);
        self.start_state_timer(handle, now_ms);
        self.record_change(handle.worker);
    }

    /// Redeems a reservation. None: the reservation is void, so the claim is placed like any other.
    pub(in crate::engine) fn redeem_reservation(
        &mut self,
        id: ReservationId,
        constraints: Option<&PlacementConstraints>,
        until_ms: Millis,
    ) -> Option<Result<(u32, Option<ResourceAllocation>), EngineReply>> {
        let at = *self.reservations.workers.get(&id)?;
        let unconstrained = PlacementConstraints::default();
        let constraints = constraints.unwrap_or(&unconstrained);
        let is_reserved =
            self.workers.is_used(at) && self.workers.get(at).unschedulable_bits & unschedulable_bits::RESERVED != 0;
        if !is_reserved
            || self.workers.get(at).unschedulable_bits != unschedulable_bits::RESERVED
            || !constraints.fits(&self.workers.registration(at).spec)
        {
            self.cancel_reservation(id);
            return None;
        }
        if !self.outlives(at, until_ms) {
            // It did when it was reserved, and time has passed since.
            self.cancel_reservation(id);
            return None;
        }
        if self.shared.is_none() && self.workers.get(at).claim != NIL {
            return Some(Err(EngineReply::NotPlaced(PlacementFailure::Busy)));
        }
        if self.shared.is_some() && !self.reservation_fits(at, constraints) {
            return Some(Err(EngineReply::NotPlaced(PlacementFailure::Busy)));
        }
        self.cancel_reservation(id);
        let only =
            PlacementConstraints { worker: Some(self.workers.registration(at).spec.id.clone()), ..constraints.clone() };
        Some(match self.shared {
            None => {
                self.idle_queue.remove(self.workers.hot_mut(), at);
                Ok((at, None))
            }
            Some(_) => self.allocate_shared(until_ms, Some(&only)),
        })
    }

    fn reservation_fits(&self, at: u32, constraints: &PlacementConstraints) -> bool {
        let fits =
            |request: ResourceRequest| self.shared.as_ref().is_some_and(|shared| shared.fleet.free(at).fits(&request));
        self.resource_request(constraints).is_some_and(fits)
    }

    /// Voids the reservations of a worker that is gone: its ordinal may be reused.
    pub(in crate::engine) fn void_reservations(&mut self, at: u32) {
        self.reservations.workers.retain(|_, reserved| *reserved != at);
    }

    /// Cancels the reservation with this id, if there is one.
    pub(in crate::engine) fn cancel_reservation(&mut self, id: ReservationId) {
        let Some(at) = self.reservations.workers.remove(&id) else { return };
        if self.workers.is_used(at) && !self.workers.get(at).deleted {
            self.update_unschedulable(at, 0, unschedulable_bits::RESERVED);
        }
    }
}
