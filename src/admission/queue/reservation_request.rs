//! Requests of queued claims for reservations of workers. A claim with a high priority gets one by evicting claims of
//! lower priority, if the pool allows that. In a shared pool the head of the queue gets one after
//! [`limits::RESERVE_AFTER_MS`], because the capacity that it needs becomes free in pieces that smaller claims would
//! take. One such worker is reserved per pool.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::QueuedClaim;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::key::PendingClaim;
use crate::admission::pool_registry::{Pool, ShardHandle};
use crate::engine::{EvictionPolicy, PlacementConstraints, ReservationId};
use crate::limits;
use crate::model::{Millis, PoolMode, WorkerCapacity};
use crate::shard::{Command, ReservationOutcome, ReserveCall, ShardRef, ShardSet};

/// Worker reserved for a queued claim, until this is dropped.
#[derive(Debug)]
pub struct CapacityReservation {
    handle: Arc<ShardHandle>,
    id: ReservationId,
}

impl Drop for CapacityReservation {
    fn drop(&mut self) {
        self.handle.cancel_reservation(self.id);
    }
}

/// Search of a queued claim for a shard that reserves a worker.
#[derive(Debug)]
pub struct ReservationRequest {
    queued: Arc<QueuedClaim>,
    pool: Arc<Pool>,
    visited: ShardSet,
    /// Constraints that the worker must meet.
    pub constraints: Arc<PlacementConstraints>,
    /// Time for which the claim needs the worker, in milliseconds.
    pub duration_ms: Millis,
    /// Claims that may be evicted, if any.
    pub evict: Option<EvictionPolicy>,
    /// Whether a shard reserved a worker.
    reserved: bool,
}

/// Allows the next search when this one ends, whatever its result.
impl Drop for ReservationRequest {
    fn drop(&mut self) {
        if self.evict.is_none() && !self.reserved {
            let mut state = self.pool.wait_queue.lock();
            state.starved.take_if(|starved| *starved == self.queued.arrival);
        }
        self.queued.seeking_reservation.store(false, Ordering::Release);
    }
}

impl ReservationRequest {
    /// Id of the reservation: the arrival number of the claim.
    #[must_use]
    pub fn reservation_id(&self) -> ReservationId {
        self.queued.arrival
    }

    /// Hands the reservation of a shard to the claim.
    pub fn reserved_on(mut self, shard_handle: &Arc<ShardHandle>) {
        self.reserved = true;
        let reservation = CapacityReservation { handle: Arc::clone(shard_handle), id: self.reservation_id() };
        let mut slot = self.queued.lock();
        // A claim that has left or was dequeued does without: dropping the reservation cancels it.
        let surplus = match slot.as_mut().and_then(|item| item.wait.as_mut()) {
            Some(wait) => wait.reservation.replace(reservation),
            None => Some(reservation),
        };
        drop(slot);
        drop(surplus);
    }
}

impl PendingClaim {
    /// Id under which this shard reserves a worker for the claim.
    #[must_use]
    pub fn reservation_at(&self, shard: ShardRef) -> Option<ReservationId> {
        let reservation = self.wait.as_ref()?.reservation.as_ref()?;
        (reservation.handle.shard == shard).then_some(reservation.id)
    }

    /// Shard of this pool that reserves a worker for the claim.
    #[must_use]
    pub fn reserved_shard(&self, pool: u32) -> Option<u16> {
        let reservation = self.wait.as_ref()?.reservation.as_ref()?;
        (reservation.handle.shard.pool == pool).then_some(reservation.handle.shard.shard)
    }

    /// Forgets a reservation that its shard no longer has.
    pub fn drop_reservation(&mut self) {
        if let Some(wait) = &mut self.wait {
            wait.reservation = None;
        }
    }
}

impl ClaimDispatcher {
    /// Requests a reservation for a queued claim that may evict others or is starved.
    pub(super) fn request_reservation(&self, queued: &Arc<QueuedClaim>, work: &mut EffectQueue) {
        if queued.newcomer || queued.pools.is_empty() || queued.seeking_reservation.load(Ordering::Acquire) {
            return;
        }
        let (constraints, reserve_ms, ttl_ms) = {
            let slot = queued.lock();
            let Some(item) =
                slot.as_ref().filter(|item| item.wait.as_ref().is_some_and(|wait| wait.reservation.is_none()))
            else {
                return;
            };
            if item.is_preferred_only() || item.pinned_worker().is_some() {
                return;
            }
            (item.accepts().unwrap_or_default(), item.reserve_ms, item.ttl_ms)
        };
        for pool in &queued.pools {
            let spec = pool.spec.load();
            let evict = (spec.preemption && queued.priority > 0)
                .then_some(EvictionPolicy { below_priority: queued.priority, releasing_ms: spec.releasing_ms });
            let evict =
                evict.filter(|evict| pool.board.shard_to_evict(evict.below_priority, &ShardSet::default()).is_some());
            if evict.is_none() && !(spec.mode == PoolMode::Shared && self.is_starved(pool, queued)) {
                continue;
            }
            if !queued.seeking_reservation.swap(true, Ordering::AcqRel) {
                let (queued, pool, constraints) = (Arc::clone(queued), Arc::clone(pool), Arc::clone(&constraints));
                let (visited, needs_ms) = (ShardSet::default(), spec.needs_ms(reserve_ms, ttl_ms));
                self.try_next_shard(
                    Box::new(ReservationRequest {
                        queued,
                        pool,
                        visited,
                        constraints,
                        duration_ms: needs_ms,
                        evict,
                        reserved: false,
                    }),
                    work,
                );
            }
            return;
        }
    }

    /// Whether the claim has been at the head of the queue for long and no other claim of the queue is marked as
    /// starved. Marks it as starved.
    fn is_starved(&self, pool: &Pool, queued: &QueuedClaim) -> bool {
        if self.clock.engine_ms().saturating_sub(queued.since_ms) < limits::RESERVE_AFTER_MS {
            return false;
        }
        let mut state = pool.wait_queue.lock();
        let first = state.queue.first() == Some(queued.arrival)
            && state.starved.is_none_or(|starved| starved == queued.arrival);
        if first {
            state.starved = Some(queued.arrival);
        }
        first
    }

    /// Asks the next shard.
    pub(crate) fn try_next_shard(&self, mut request: Box<ReservationRequest>, work: &mut EffectQueue) {
        let board = &request.pool.board;
        let next = match request.evict {
            Some(evict) => board.shard_to_evict(evict.below_priority, &request.visited),
            None => {
                let from = (request.reservation_id().get() % request.pool.shards.len() as u64) as u16;
                let is_large = |capacity: &WorkerCapacity| request.constraints.is_large_enough(capacity);
                board.capacities().shard_with(from, &request.visited, is_large)
            }
        };
        let Some(shard) = next else { return };
        request.visited.insert(shard);
        let shard = ShardRef { pool: request.pool.number, shard };
        let call = ReserveCall {
            id: request.reservation_id(),
            constraints: Arc::clone(&request.constraints),
            duration_ms: request.duration_ms,
            evict: request.evict,
        };
        let pool = Arc::clone(&request.pool);
        let replaced = pool.wait_queue.lock().reservation_requests.insert(call.id, request);
        debug_assert!(replaced.is_none(), "a claim asks for one reservation at a time");
        work.push(Effect::Send(shard, Command::Reserve(call)));
    }

    /// Handles the answer of a shard to a request for a reservation.
    pub(crate) fn on_reservation(
        &self,
        from: ShardRef,
        id: ReservationId,
        outcome: ReservationOutcome,
        work: &mut EffectQueue,
    ) {
        let pools = self.pools.load();
        let Some(pool) = pools.by_number(from.pool) else { return };
        let request = pool.wait_queue.lock().reservation_requests.remove(&id);
        match (request, outcome, pools.shard(from)) {
            (Some(request), ReservationOutcome::Reserved, Some(handle)) => request.reserved_on(handle),
            (Some(request), ..) => self.try_next_shard(request, work),
            (None, ReservationOutcome::Reserved, Some(handle)) => handle.cancel_reservation(id),
            (None, ..) => {}
        }
    }

    /// Goes on with a request for a reservation that a shard did not take.
    pub(crate) fn reserve_elsewhere(&self, shard: ShardRef, id: ReservationId, work: &mut EffectQueue) {
        self.on_reservation(shard, id, ReservationOutcome::NoWorker, work);
    }
}
