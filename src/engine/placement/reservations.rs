//! Reservations: workers kept for waiting claims, on which nobody else gets resources.
//!
//! A claim of higher priority may reserve a worker by evictions ([`super::eviction`]). In a shared pool a worker may
//! also be reserved for a large claim without evictions: otherwise small claims come and go, and the large one never
//! finds enough free at once. Reservations are kept in memory only: a waiting claim does not survive a restart.

use std::collections::{BTreeMap, BTreeSet};

use super::bin_packing::{ResourceAllocation, ResourceRequest};
use super::constraints::{PlacementConstraints, PlacementFailure};
use super::eviction::EvictionPolicy;
use crate::engine::NIL;
use crate::engine::effect::EngineReply;
use crate::engine::event::ReservationId;
use crate::engine::shard::Shard;
use crate::model::unschedulable_bits;
use crate::model::{Millis, ResourceRequirements};

/// Reserved workers, by the ids of their reservations.
#[derive(Debug, Default)]
pub struct WorkerReservations(BTreeMap<ReservationId, u32>);

impl Shard {
    /// Reserved workers, each once.
    pub(in crate::engine) fn reserved_workers(&self) -> BTreeSet<u32> {
        self.reservations.0.values().copied().collect()
    }

    /// Whether a worker is reserved under this id.
    #[must_use]
    pub fn has_reservation(&self, id: ReservationId) -> bool {
        self.reservations.0.contains_key(&id)
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
        self.reservations.0.insert(id, at);
        self.update_unschedulable(at, unschedulable_bits::RESERVED, 0);
        for handle in victims {
            self.evict(handle, evict.map_or(0, |evict| evict.releasing_ms), now_ms);
        }
        EngineReply::WorkerReserved
    }

    pub(super) fn can_reserve(&self, at: u32, constraints: &PlacementConstraints, until_ms: Millis) -> bool {
        let worker = self.workers.get(at);
        let spec = &self.workers.registration(at).spec;
        !worker.deleted && worker.unschedulable_bits == 0 && constraints.fits(spec) && self.outlives(at, until_ms)
    }

    pub(super) fn resource_request(&self, constraints: &PlacementConstraints) -> Option<ResourceRequest> {
        let no_resources = ResourceRequirements::default();
        let resources = constraints.spec.as_ref().map_or(&no_resources, |spec| &spec.resources);
        self.shared.as_ref()?.resource_request(resources, &constraints.gpus)
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

    /// Redeems a reservation. None: the reservation is void, so the claim is placed like any other.
    pub(in crate::engine) fn redeem_reservation(
        &mut self,
        id: ReservationId,
        constraints: Option<&PlacementConstraints>,
        until_ms: Millis,
    ) -> Option<Result<(u32, Option<ResourceAllocation>), EngineReply>> {
        let at = *self.reservations.0.get(&id)?;
        let unconstrained = PlacementConstraints::default();
        let constraints = constraints.unwrap_or(&unconstrained);
        // The worker may have become unschedulable or too short-lived since it was reserved.
        let is_valid = self.workers.is_used(at)
            && self.workers.get(at).unschedulable_bits == unschedulable_bits::RESERVED
            && constraints.fits(&self.workers.registration(at).spec)
            && self.outlives(at, until_ms);
        if !is_valid {
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
        self.reservations.0.retain(|_, reserved| *reserved != at);
    }

    /// Cancels the reservation with this id, if there is one.
    pub(in crate::engine) fn cancel_reservation(&mut self, id: ReservationId) {
        let Some(at) = self.reservations.0.remove(&id) else { return };
        if self.workers.is_used(at) && !self.workers.get(at).deleted {
            self.update_unschedulable(at, 0, unschedulable_bits::RESERVED);
        }
    }
}
