//! Workers of which something came free, as they are offered to the claims that wait, and placement on a given worker.

use std::collections::VecDeque;
use std::sync::Arc;

use super::bin_packing::ResourceAllocation;
use super::constraints::{PlacementConstraints, PlacementFailure};
use crate::engine::NIL;
use crate::engine::effect::EngineReply;
use crate::engine::event::{ClaimTarget, ReservationFate, ReservationId};
use crate::engine::shard::Shard;
use crate::model::unschedulable_bits;
use crate::model::{Millis, PoolMode, ResourceAmounts, WorkerRegistration};

/// Worker as it is offered to a claim that waits.
#[derive(Debug, Clone)]
pub struct WorkerOffer {
    /// Ordinal of the worker.
    pub worker: u32,
    /// Registration of the worker.
    pub registration: Arc<WorkerRegistration>,
    /// Resources that are free of it.
    pub free: ResourceAmounts,
    /// Whether several claims may share it.
    pub mode: PoolMode,
    /// Rest of its life in milliseconds, if it has an end.
    pub left_ms: Option<Millis>,
    /// Reservation under which it is kept.
    pub reservation: Option<ReservationId>,
}

/// Worker that is reserved for claims that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservedWorker {
    /// Ordinal of the worker.
    pub worker: u32,
    /// Registration of the worker.
    pub registration: Arc<WorkerRegistration>,
    /// Resources that will be free of it.
    pub expected_free: ResourceAmounts,
}

/// Freed workers that are kept without sorting out duplicates.
const UNSORTED_MAX: usize = 1_024;

/// Workers of which something came free since they were last taken, and reservations that ended since.
#[derive(Debug, Default)]
pub(in crate::engine) struct FreedWorkers {
    workers: Vec<u32>,
    /// Number of workers when duplicates were last sorted out.
    distinct: usize,
    void: Vec<ReservationId>,
}

impl FreedWorkers {
    /// Notes that something of a worker came free, or may have.
    #[inline]
    pub fn add(&mut self, at: u32) {
        if self.workers.len() >= UNSORTED_MAX.max(2 * self.distinct) {
            self.remove_duplicates();
        }
        self.workers.push(at);
    }

    /// Bounds the list by the number of workers, should nobody take it.
    #[cold]
    fn remove_duplicates(&mut self) {
        self.workers.sort_unstable();
        self.workers.dedup();
        self.distinct = self.workers.len();
    }

    /// Notes that a reservation ended without having served.
    pub fn note_void(&mut self, id: ReservationId) {
        self.void.push(id);
    }
}

impl Shard {
    /// Whether something came free since the freed workers were last taken.
    #[must_use]
    #[inline]
    pub const fn has_freed(&self) -> bool {
        !self.freed.workers.is_empty()
    }

    /// Moves the freed workers to the end of `to`.
    pub fn take_freed(&mut self, to: &mut VecDeque<u32>) {
        to.extend(self.freed.workers.drain(..));
        self.freed.distinct = 0;
    }

    /// Forgets the freed workers: nobody waits for them.
    #[inline]
    pub fn clear_freed(&mut self) {
        self.freed.workers.clear();
    }

    /// Notes that a worker is to be offered once more, if it exists.
    pub fn offer_again(&mut self, at: u32) {
        if at < self.workers.ordinals() {
            self.freed.add(at);
        }
    }

    /// Notes all workers as freed.
    pub fn note_all_freed(&mut self) {
        self.freed.workers = self.workers.iter_from(0).collect();
    }

    /// Whether reservations ended without having served, since they were last taken.
    #[must_use]
    #[inline]
    pub const fn has_void_reservations(&self) -> bool {
        !self.freed.void.is_empty()
    }

    /// Reservations that ended without having served, since they were last taken.
    pub fn take_void_reservations(&mut self) -> Vec<ReservationId> {
        std::mem::take(&mut self.freed.void)
    }

    /// Offer of a worker; none if no claim can have anything of it at present.
    pub fn offer(&mut self, at: u32, now_ms: Millis) -> Option<WorkerOffer> {
        if !self.workers.is_used(at) || self.workers.get(at).deleted {
            return None;
        }
        self.void_if_unusable(at);
        let worker = self.workers.get(at);
        let is_offered = worker.unschedulable_bits & !unschedulable_bits::RESERVED == 0
            && match &self.shared {
                None => worker.claim == NIL,
                Some(shared) => !shared.is_overcommitted(at) && !shared.is_full(at),
            };
        if !is_offered {
            return None;
        }
        Some(WorkerOffer {
            worker: at,
            registration: Arc::clone(self.workers.registration(at)),
            free: self.free_amounts(at),
            mode: if self.shared.is_some() { PoolMode::Shared } else { PoolMode::Exclusive },
            left_ms: self.liveness.get(at).ends_ms.map(|ends_ms| ends_ms.saturating_sub(now_ms)),
            reservation: self.reservation_of(at),
        })
    }

    /// Places a claim on the worker that it names.
    #[cold]
    pub(in crate::engine) fn place_on_target(
        &mut self,
        target: ClaimTarget,
        constraints: Option<&PlacementConstraints>,
        until_ms: Millis,
    ) -> Result<(u32, Option<ResourceAllocation>), EngineReply> {
        let busy = EngineReply::NotPlaced(PlacementFailure::Busy);
        let reserved = if let ClaimTarget::Reserved(id) = target { Some(id) } else { None };
        let (at, fate) = match target {
            ClaimTarget::Worker(at, fate) => (at, fate),
            ClaimTarget::Reserved(id) => match self.reserved_worker(id) {
                Some(at) => (at, ReservationFate::Ends),
                None => return Err(busy),
            },
        };
        let unconstrained = PlacementConstraints::default();
        let constraints = constraints.unwrap_or(&unconstrained);
        let Some(allocation) = self.allocation_on(at, constraints, until_ms) else { return Err(busy) };
        self.suspend_reservation(at, fate);
        if let Some(id) = reserved {
            self.freed.note_void(id);
        }
        if self.workers.get(at).idle {
            self.idle_queue.remove(self.workers.hot_mut(), at);
        }
        if allocation.is_some() {
            self.record_request(constraints);
        }
        Ok((at, allocation))
    }

    /// Previews whether a claim would get the worker that it names.
    ///
    /// # Errors
    /// Reason for which the claim would not get it: the worker is busy, gone, or does not meet the constraints.
    #[cold]
    pub fn preview_on_target(
        &self,
        target: ClaimTarget,
        constraints: Option<&PlacementConstraints>,
        until_ms: Millis,
    ) -> Result<Arc<WorkerRegistration>, Option<PlacementFailure>> {
        let at = match target {
            ClaimTarget::Worker(at, _) => Some(at),
            ClaimTarget::Reserved(id) => self.reserved_worker(id),
        };
        let unconstrained = PlacementConstraints::default();
        let constraints = constraints.unwrap_or(&unconstrained);
        let fitting = at.filter(|at| self.allocation_on(*at, constraints, until_ms).is_some());
        fitting.map(|at| Arc::clone(self.workers.registration(at))).ok_or(Some(PlacementFailure::Busy))
    }

    /// Allocation of a claim on this worker, none in an exclusive pool; none at all if it does not fit.
    #[allow(clippy::option_option, reason = "whether it fits, and what it is allocated")]
    fn allocation_on(
        &self,
        at: u32,
        constraints: &PlacementConstraints,
        until_ms: Millis,
    ) -> Option<Option<ResourceAllocation>> {
        let is_live = at < self.workers.ordinals() && self.workers.is_used(at) && !self.workers.get(at).deleted;
        let worker = is_live.then(|| self.workers.get(at))?;
        let is_free = worker.unschedulable_bits & !unschedulable_bits::RESERVED == 0
            && constraints.fits(&self.workers.registration(at).spec)
            && self.outlives(at, until_ms);
        if !is_free {
            return None;
        }
        let Some(shared) = &self.shared else { return (worker.claim == NIL).then_some(None) };
        if shared.is_overcommitted(at) || shared.is_full(at) {
            return None;
        }
        let request = self.resource_request(constraints).filter(|request| shared.fleet.free(at).fits(request))?;
        self.choose_allocation(at, &request).map(Some)
    }
}
