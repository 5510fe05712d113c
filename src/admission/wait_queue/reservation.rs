//! Workers that are kept for claims that wait: for one with a high priority, by evicting claims with a lower one, if the pool allows
//! that; in a shared pool also for the first of the line, if it has waited for [`limits::RESERVE_AFTER_MS`], because what it needs
//! comes free in pieces that smaller claims would take. One worker a pool is kept for such a one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ArrivalNumber, QueuedClaim};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::key_directory::ShardRef;
use crate::admission::pool_registry::Pool;
use crate::engine::{EvictionPolicy, PlacementConstraints};
use crate::limits;
use crate::model::{Millis, PoolMode, WorkerCapacity};
use crate::shard::{Command, PendingClaim, ShardHandle, ShardSet};

/// A worker is kept for a claim that waits, until this is dropped.
#[derive(Debug)]
pub struct CapacityReservation {
    handle: Arc<ShardHandle>,
    arrival: ArrivalNumber,
}

impl Drop for CapacityReservation {
    fn drop(&mut self) {
        self.handle.cancel_reservation(self.arrival);
    }
}

/// A claim that waits looks for a shard that keeps a worker for it.
#[derive(Debug)]
pub struct ReservationRequest {
    parked: Arc<QueuedClaim>,
    pool: Arc<Pool>,
    visited: ShardSet,
    /// Which workers would do.
    pub constraints: Arc<PlacementConstraints>,
    /// For how long it needs one.
    pub duration_ms: Millis,
    /// Who may be evicted for it, if anybody may.
    pub evict: Option<EvictionPolicy>,
    /// A shard keeps a worker.
    reserved: bool,
}

/// However the search ends, also with the shard that was being asked, another may begin.
impl Drop for ReservationRequest {
    fn drop(&mut self) {
        if self.evict.is_none() && !self.reserved {
            let mut state = self.pool.wait_queue.lock();
            state.starved.take_if(|large| *large == self.parked.arrival);
        }
        self.parked.seeking_reservation.store(false, Ordering::Release);
    }
}

impl ReservationRequest {
    /// Number of its wait.
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.parked.arrival
    }

    /// A shard keeps a worker for it.
    pub fn reserved_on(mut self, port: &Arc<ShardHandle>) {
        self.reserved = true;
        let promise = CapacityReservation { handle: Arc::clone(port), arrival: self.ticket() };
        let mut slot = self.parked.lock();
        // One that has left, or has its turn, does without: dropped, the promise is taken back.
        let unkept = match slot.as_mut().and_then(|item| item.wait.as_mut()) {
            Some(wait) => wait.reservation.replace(promise),
            None => Some(promise),
        };
        drop(slot);
        drop(unkept);
    }
}

impl PendingClaim {
    /// The ticket with which a worker of this shard is kept for it.
    #[must_use]
    pub fn reservation_at(&self, shard: ShardRef) -> Option<u64> {
        let promise = self.wait.as_ref()?.reservation.as_ref()?;
        (promise.handle.shard == shard).then_some(promise.arrival)
    }

    /// The shard of this pool that keeps a worker for it.
    #[must_use]
    pub fn reserved_shard(&self, pool: u32) -> Option<u16> {
        let promise = self.wait.as_ref()?.reservation.as_ref()?;
        (promise.handle.shard.pool == pool).then_some(promise.handle.shard.shard)
    }

    /// Its shard does not know of the promise any more.
    pub fn drop_reservation(&mut self) {
        if let Some(wait) = &mut self.wait {
            wait.reservation = None;
        }
    }
}

impl ClaimDispatcher {
    /// A claim waits: if somebody may be evicted for it, or it has waited for long, a worker is to be kept for it.
    pub(super) fn request_reservation(&self, parked: &Arc<QueuedClaim>) {
        if parked.newcomer || parked.pools.is_empty() || parked.seeking_reservation.load(Ordering::Acquire) {
            return;
        }
        let (wants, reserve_ms, ttl_ms) = {
            let slot = parked.lock();
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
        for pool in &parked.pools {
            let spec = pool.spec.load();
            let evict = (spec.preemption && parked.priority > 0)
                .then_some(EvictionPolicy { below_priority: parked.priority, releasing_ms: spec.releasing_ms });
            let evict =
                evict.filter(|evict| pool.board.shard_to_evict(evict.below_priority, &ShardSet::default()).is_some());
            if evict.is_none() && !(spec.mode == PoolMode::Shared && self.is_starved(pool, parked)) {
                continue;
            }
            if !parked.seeking_reservation.swap(true, Ordering::AcqRel) {
                let (parked, pool, wants) = (Arc::clone(parked), Arc::clone(pool), Arc::clone(&wants));
                let (visited, needs_ms) = (ShardSet::default(), spec.needs_ms(reserve_ms, ttl_ms));
                self.try_next_shard(Box::new(ReservationRequest {
                    parked,
                    pool,
                    visited,
                    constraints: wants,
                    duration_ms: needs_ms,
                    evict,
                    reserved: false,
                }));
            }
            return;
        }
    }

    /// Whether it is the first of the line, has been for long, and nobody else in it has a worker kept for that. From now on it has.
    fn is_starved(&self, pool: &Pool, parked: &QueuedClaim) -> bool {
        if self.clock.engine_ms().saturating_sub(parked.since_ms) < limits::RESERVE_AFTER_MS {
            return false;
        }
        let mut state = pool.wait_queue.lock();
        let first =
            state.queue.first() == Some(parked.arrival) && state.starved.is_none_or(|large| large == parked.arrival);
        if first {
            state.starved = Some(parked.arrival);
        }
        first
    }

    /// It asks the next shard.
    pub(crate) fn try_next_shard(&self, mut seek: Box<ReservationRequest>) {
        loop {
            let board = &seek.pool.board;
            let next = match seek.evict {
                Some(evict) => board.shard_to_evict(evict.below_priority, &seek.visited),
                None => {
                    let from = (seek.ticket() % seek.pool.shards.len() as u64) as u16;
                    let is_large = |capacity: &WorkerCapacity| seek.constraints.is_large_enough(capacity);
                    board.capacities().shard_with(from, &seek.visited, is_large)
                }
            };
            let Some(shard) = next else { return };
            seek.visited.insert(shard);
            let port = Arc::clone(&seek.pool.shards[shard as usize]);
            match port.push(Command::Reserve(seek)) {
                Err((Command::Reserve(back), _)) => seek = back,
                _ => return,
            }
        }
    }
}
