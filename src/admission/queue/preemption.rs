//! Preemption and holds: reservations are sought for claims that evict others of lower priority, and large claims in shared pools, which would
//! starve beside small ones. Requests go to one shard after the other.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::least_demand::ClaimDemand;
use super::reservations::{ReservationKind, ReservationRequest};
use super::{QueuedClaim, WaitQueue};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::pool_registry::Pool;
use crate::admission::tenant::Tenant;
use crate::engine::{EvictionPolicy, ReservationId};
use crate::limits;
use crate::model::{Millis, PoolMode, WorkerCapacity};
use crate::shard::{Command, OfferedWorkers, ReservationOutcome, ReserveCall, ShardRef, ShardSet};

/// Claims that reservations are assigned to, at most.
const CANDIDATES_MAX: usize = 64;

/// Pause before a claim for which no worker could be reserved seeks one again, in milliseconds.
pub(super) const SEEK_AGAIN_MS: Millis = 1_000;

impl ClaimDispatcher {
    /// Advances the queue of a pool: its gangs and its reservations.
    pub(super) fn tick_queue(&self, pool: &Arc<Pool>, now_ms: Millis, work: &mut EffectQueue) {
        self.tick_waiting_gangs(pool, now_ms, work);
        if !pool.wait_queue.lock().queue.reservations.is_empty() {
            self.assign_reservations(pool, work);
        }
    }

    /// Looks for claims of a pool that are starved, or may have others evicted.
    pub(super) fn reserve_for_starved(&self, pool: &Arc<Pool>, now_ms: Millis, work: &mut EffectQueue) {
        pool.wait_queue.lock().refresh_all_shares(&pool.board.total());
        self.assign_reservations(pool, work);
        if pool.spec.load().mode == PoolMode::Shared {
            self.hold_for_starved(pool, now_ms, work);
        }
        self.renew_gang_hold(pool, now_ms);
        self.preempt_for_gangs(pool, now_ms, work);
    }

    /// Protects, for each tenant, the best-ranked claim that its quota has kept back for long, in whichever pool it waits.
    pub(super) fn protect_starved(&self, now_ms: Millis) {
        let mut best: BTreeMap<u64, (Arc<Tenant>, Arc<QueuedClaim>)> = BTreeMap::new();
        for pool in self.pools.load().iter().filter(|pool| pool.wait_queue.waiting() > 0) {
            let queue = pool.wait_queue.lock();
            let tenants = queue.queue.tenants().filter(|tenant| queue.queue.has_quota_short(tenant.number));
            for tenant in tenants {
                let headroom = tenant.headroom();
                let has_victims = self.wait_queues.own_evictions.lock().claim_of(tenant.number, now_ms);
                let is_starved = |claim: &QueuedClaim| {
                    (claim.since_ms + limits::RESERVE_AFTER_MS <= now_ms || has_victims == Some(claim.arrival))
                        && headroom.is_exceeded_by(&claim.amounts())
                        && tenant.allows(&claim.amounts())
                };
                let Some(claim) = queue.queue.first_of_tenant(tenant.number, is_starved) else { continue };
                let rank = |claim: &QueuedClaim| (Reverse(claim.priority), claim.arrival);
                let other = best.get(&tenant.number);
                if other.is_none_or(|(_, other)| rank(claim) < rank(other)) {
                    best.insert(tenant.number, (Arc::clone(tenant), Arc::clone(claim)));
                }
            }
        }
        let mut protected = self.wait_queues.protected.lock();
        for tenant in protected.drain(..).filter(|tenant| !best.contains_key(&tenant.number)) {
            tenant.protect(None);
        }
        for (_, (tenant, claim)) in best {
            tenant.protect(Some(claim.protection()));
            protected.push(tenant);
        }
    }

    /// Claims of a pool to which reservations may be assigned, the best first, each with what it needs.
    fn reservation_candidates(queue: &WaitQueue) -> Vec<(Arc<QueuedClaim>, ClaimDemand)> {
        let has_quota = |claim: &QueuedClaim| !claim.tenant.headroom().is_exceeded_by(&claim.amounts());
        let mut candidates = queue.ranked(CANDIDATES_MAX, |claim, _| has_quota(claim));
        // Whoever has one keeps it, however many others there are.
        for claim in queue.reservations.assigned().filter_map(|arrival| queue.get(arrival)) {
            if has_quota(claim) && !candidates.iter().any(|other| other.arrival == claim.arrival) {
                candidates.push(Arc::clone(claim));
            }
        }
        candidates.sort_by_key(|claim| (Reverse(claim.priority), claim.arrival));
        let with_demand = |claim: Arc<QueuedClaim>| Some((queue.demand_of(claim.arrival).copied()?, claim));
        candidates.into_iter().filter_map(with_demand).map(|(demand, claim)| (claim, demand)).collect()
    }

    /// Assigns the reservations of a pool anew, and seeks one for each claim that may evict others and has none.
    pub(crate) fn assign_reservations(&self, pool: &Arc<Pool>, work: &mut EffectQueue) {
        let spec = pool.spec.load();
        let (now_ms, usable) = (self.clock.engine_ms(), pool.usable_workers());
        let mut queue = pool.wait_queue.lock();
        if queue.queue.reservations.is_empty() && !spec.preemption {
            return;
        }
        let candidates = Self::reservation_candidates(&queue.queue);
        let changes = queue.queue.reservations.assign(&candidates, usable, now_ms);
        let mut calls = Vec::new();
        if spec.preemption && !pool.is_preemption_paused() {
            for (claim, _) in candidates.iter().filter(|(claim, _)| claim.may_evict()) {
                let reservations = &mut queue.queue.reservations;
                if reservations.serves(claim.arrival)
                    || !reservations.may_seek(claim.arrival, now_ms)
                    || !reservations.has_capacity_for(ReservationKind::Evicted)
                {
                    continue;
                }
                let visited = ShardSet::default();
                if let Some(shard) = pool.board.shard_to_evict(claim.priority, &visited) {
                    let request =
                        ReservationRequest { claim: Arc::clone(claim), kind: ReservationKind::Evicted, visited };
                    calls.push(self.seek(pool, &mut queue.queue.reservations, request, shard));
                }
            }
        }
        drop(queue);
        for (number, shard) in changes.ended {
            pool.shards[shard as usize].cancel_reservation(number);
        }
        for (shard, worker) in changes.moved {
            work.push(Effect::OfferAgain(ShardRef { pool: pool.number, shard }, OfferedWorkers::One(worker)));
        }
        calls.into_iter().for_each(|(shard, call)| work.push(Effect::Send(shard, Command::Reserve(call))));
    }

    /// Holds a worker for the claim that has waited for long, has the highest priority, and had the fewest holds.
    fn hold_for_starved(&self, pool: &Arc<Pool>, now_ms: Millis, work: &mut EffectQueue) {
        let usable = pool.usable_workers();
        let mut queue = pool.wait_queue.lock();
        if !queue.queue.reservations.may_hold(1, usable, now_ms) {
            return;
        }
        let is_starved = |claim: &QueuedClaim, _: &ClaimDemand| {
            claim.since_ms + limits::RESERVE_AFTER_MS <= now_ms
                && claim.has_no_preference()
                && !claim.tenant.headroom().is_exceeded_by(&claim.amounts())
        };
        let mut starved = queue.queue.ranked(CANDIDATES_MAX, is_starved);
        let reservations = &mut queue.queue.reservations;
        starved.retain(|claim| {
            claim.since_ms + limits::RESERVE_AFTER_MS <= now_ms
                && !reservations.serves(claim.arrival)
                && reservations.may_seek(claim.arrival, now_ms)
        });
        // Stable: of equal ones the best-ranked comes first.
        starved.sort_by_key(|claim| (Reverse(claim.priority), reservations.expired_holds(claim.arrival)));
        for claim in starved {
            let request = ReservationRequest { claim, kind: ReservationKind::Held, visited: ShardSet::default() };
            match next_shard(pool, &request) {
                Some(shard) => {
                    let (shard, call) = self.seek(pool, reservations, request, shard);
                    drop(queue);
                    work.push(Effect::Send(shard, Command::Reserve(call)));
                    return;
                }
                // No worker of the pool is large enough.
                None => reservations.note_failed(request.claim.arrival, now_ms + limits::SEEK_HOLD_AGAIN_MS),
            }
        }
    }

    /// Notes that a shard is asked to reserve a worker, and makes the call.
    fn seek(
        &self,
        pool: &Pool,
        reservations: &mut super::reservations::ReservationList,
        mut request: ReservationRequest,
        shard: u16,
    ) -> (ShardRef, ReserveCall) {
        let spec = pool.spec.load();
        let claim = &request.claim;
        let number: ReservationId = self.keys.ids.next_arrival();
        let evict = (request.kind == ReservationKind::Evicted).then_some(EvictionPolicy {
            below_priority: claim.priority,
            releasing_ms: spec.releasing_ms,
            worker: None,
        });
        let call = ReserveCall {
            id: number,
            constraints: claim.class.constraints.clone().unwrap_or_default(),
            duration_ms: spec.needs_ms(claim.class.reserve_ms.unwrap_or(spec.reserve_ms), claim.class.ttl_ms),
            evict,
        };
        request.visited.insert(shard);
        reservations.seek(number, request);
        (ShardRef { pool: pool.number, shard }, call)
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
        let now_ms = self.clock.engine_ms();
        let mut queue = pool.wait_queue.lock();
        if let Some(arrival) = queue.queue.reservations.take_gang_request(id) {
            drop(queue);
            return self.on_gang_reservation(from, arrival, id, outcome, work);
        }
        let request = queue.queue.reservations.take_request(id);
        let still_waits = request.as_ref().is_some_and(|request| queue.queue.get(request.claim.arrival).is_some());
        match (request.filter(|_| still_waits), outcome) {
            (Some(request), ReservationOutcome::Reserved(reserved)) => {
                let spec = pool.spec.load();
                let until_ms = match request.kind {
                    ReservationKind::Evicted => now_ms + spec.releasing_ms + limits::RESERVE_AFTER_MS,
                    ReservationKind::Held => now_ms + spec.hold_max_ms,
                };
                let (demand, worker) = (queue.queue.demand_of(request.claim.arrival).copied(), reserved.worker);
                if let Some(demand) = demand {
                    let reservations = &mut queue.queue.reservations;
                    reservations.begin(id, request.kind, from.shard, *reserved, now_ms..until_ms);
                    reservations.assign_to(id, &request.claim, &demand);
                }
                drop(queue);
                // What the claim needs may be free already.
                work.push(Effect::OfferAgain(from, OfferedWorkers::One(worker)));
                work.push(Effect::AssignReservations(Arc::clone(pool)));
            }
            (Some(request), ReservationOutcome::NoWorker) => match next_shard(pool, &request) {
                Some(shard) => {
                    let (shard, call) = self.seek(pool, &mut queue.queue.reservations, request, shard);
                    drop(queue);
                    work.push(Effect::Send(shard, Command::Reserve(call)));
                }
                None => {
                    let pause_ms = match request.kind {
                        ReservationKind::Evicted => SEEK_AGAIN_MS,
                        ReservationKind::Held => limits::SEEK_HOLD_AGAIN_MS,
                    };
                    queue.queue.reservations.note_failed(request.claim.arrival, now_ms + pause_ms);
                }
            },
            (None, ReservationOutcome::Reserved(_)) => {
                drop(queue);
                if let Some(handle) = pools.shard(from) {
                    handle.cancel_reservation(id);
                }
            }
            (None, ReservationOutcome::NoWorker) => {}
        }
    }

    /// Goes on with a request for a reservation that a shard did not take.
    pub(crate) fn reserve_elsewhere(&self, shard: ShardRef, id: ReservationId, work: &mut EffectQueue) {
        self.on_reservation(shard, id, ReservationOutcome::NoWorker, work);
    }

    /// Handles reservations that a shard does not have any more.
    pub(crate) fn on_reservations_void(&self, from: ShardRef, void: &[ReservationId], work: &mut EffectQueue) {
        let pools = self.pools.load();
        let Some(pool) = pools.by_number(from.pool) else { return };
        let mut queue = pool.wait_queue.lock();
        void.iter().for_each(|number| queue.queue.reservations.end(*number));
        drop(queue);
        work.push(Effect::AssignReservations(Arc::clone(pool)));
    }

    /// Forgets the reservations of a shard whose life has ended.
    pub(crate) fn void_shard(&self, shard: ShardRef) {
        if let Some(pool) = self.pools.load().by_number(shard.pool) {
            pool.wait_queue.lock().queue.reservations.void_shard(shard.shard);
        }
    }
}

/// Shard that is asked next.
fn next_shard(pool: &Pool, request: &ReservationRequest) -> Option<u16> {
    let claim = &request.claim;
    match request.kind {
        ReservationKind::Evicted => pool.board.shard_to_evict(claim.priority, &request.visited),
        ReservationKind::Held => {
            let from = (claim.arrival.get() % pool.shards.len() as u64) as u16;
            let constraints = claim.class.constraints.as_ref();
            let is_large =
                |capacity: &WorkerCapacity| constraints.is_none_or(|constraints| constraints.is_large_enough(capacity));
            pool.board.capacities().shard_with(from, &request.visited, is_large)
        }
    }
}
