//! Reservations: workers kept for waiting claims, on which nobody else gets resources.
//!
//! A claim of higher priority may reserve a worker by evictions ([`super::eviction`]). In a shared pool a worker may
//! also be reserved for a large claim without evictions: otherwise small claims come and go, and the large one never
//! finds enough free at once. Reservations are kept in memory only: a waiting claim does not survive a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::bin_packing::ResourceRequest;
use super::constraints::{PlacementConstraints, PlacementFailure};
use super::eviction::EvictionPolicy;
use super::offers::ReservedWorker;
use crate::engine::effect::EngineReply;
use crate::engine::event::{ClaimHandle, ReservationFate, ReservationId};
use crate::engine::shard::Shard;
use crate::model::unschedulable_bits;
use crate::model::{Millis, ResourceAmounts, ResourceRequirements};

/// Reserved workers, by the ids of their reservations.
#[derive(Debug, Default)]
pub struct WorkerReservations {
    workers: BTreeMap<ReservationId, u32>,
    /// Reservation that is suspended while a claim takes something of its worker.
    suspended: Option<(ReservationId, u32)>,
}

impl Shard {
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
        assert!(!self.has_reservation(id), "Q12: a reservation is made twice");
        let found = match (evict, self.shared.is_some()) {
            (Some(evict), false) => self.cheapest_victim(constraints, evict, until_ms),
            (Some(evict), true) => self.fewest_victims(constraints, evict, until_ms),
            (None, false) => None,
            (None, true) => self.smallest_shortfall(constraints, until_ms).map(|at| (at, Vec::new())),
        };
        let Some((at, victims)) = found else { return EngineReply::NotPlaced(PlacementFailure::Busy) };
        let expected_free = self.amounts_without(at, &victims, evict.is_some());
        debug_assert_eq!(self.workers.get(at).unschedulable_bits, 0, "Q12: an unschedulable worker is reserved");
        self.reservations.workers.insert(id, at);
        self.update_unschedulable(at, unschedulable_bits::RESERVED, 0);
        for handle in victims {
            self.evict(handle, evict.map_or(0, |evict| evict.releasing_ms), now_ms);
        }
        let registration = Arc::clone(self.workers.registration(at));
        EngineReply::WorkerReserved(Box::new(ReservedWorker { worker: at, registration, expected_free }))
    }

    /// Reserves a worker of which something came free, if it is claimable.
    pub fn reserve_freed(&mut self, at: u32, id: ReservationId) {
        if self.workers.is_used(at) && !self.workers.get(at).deleted && self.workers.get(at).unschedulable_bits == 0 {
            self.reservations.workers.insert(id, at);
            self.update_unschedulable(at, unschedulable_bits::RESERVED, 0);
        }
    }

    /// Resources that will be free of the worker without these claims; without evictions, when all its claims have ended.
    fn amounts_without(&mut self, at: u32, victims: &[ClaimHandle], is_eviction: bool) -> ResourceAmounts {
        if self.shared.is_none() || !is_eviction {
            return self.unallocated_amounts(at);
        }
        let amounts = |shard: &Self| shard.free_amounts(at);
        self.with_claims_removed(at, victims, amounts).unwrap_or_else(|| self.free_amounts(at))
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

    /// Voids the reservations of a worker that is gone: its ordinal may be reused.
    pub(in crate::engine) fn void_reservations(&mut self, at: u32) {
        let void: Vec<ReservationId> = self.reservations_of(at).collect();
        for id in void {
            self.reservations.workers.remove(&id);
            self.freed.note_void(id);
            self.freed.add(at);
        }
    }

    fn reservations_of(&self, at: u32) -> impl Iterator<Item = ReservationId> + '_ {
        self.reservations.workers.iter().filter(move |(_, reserved)| **reserved == at).map(|(id, _)| *id)
    }

    /// Reservation of a worker, if it has one.
    pub(super) fn reservation_of(&self, at: u32) -> Option<ReservationId> {
        self.reservations_of(at).next()
    }

    /// Ends the reservation of a worker that is unusable for another reason too.
    pub(super) fn void_if_unusable(&mut self, at: u32) {
        let bits = self.workers.get(at).unschedulable_bits;
        if bits & unschedulable_bits::RESERVED != 0 && bits != unschedulable_bits::RESERVED {
            self.update_unschedulable(at, 0, unschedulable_bits::RESERVED);
            self.void_reservations(at);
        }
    }

    /// Worker that is reserved under this id.
    pub(super) fn reserved_worker(&self, id: ReservationId) -> Option<u32> {
        self.reservations.workers.get(&id).copied()
    }

    /// Ends the reservation of a worker, or suspends it, for a claim that takes something of the worker.
    pub(super) fn suspend_reservation(&mut self, at: u32, fate: ReservationFate) {
        let Some(id) = self.reservation_of(at) else { return };
        self.cancel_reservation(id);
        if fate == ReservationFate::Stays {
            self.reservations.suspended = Some((id, at));
        }
    }

    /// Resumes the reservation that was suspended for a claim.
    #[cold]
    pub(in crate::engine) fn resume_reservation(&mut self) {
        if let Some((id, at)) = self.reservations.suspended.take() {
            self.reservations.workers.insert(id, at);
            self.update_unschedulable(at, unschedulable_bits::RESERVED, 0);
        }
    }

    /// Cancels the reservation with this id, if there is one.
    pub(in crate::engine) fn cancel_reservation(&mut self, id: ReservationId) {
        let Some(at) = self.reservations.workers.remove(&id) else { return };
        if self.workers.is_used(at) && !self.workers.get(at).deleted {
            self.update_unschedulable(at, 0, unschedulable_bits::RESERVED);
        }
    }
}
