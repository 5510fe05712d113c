//! Evictions for gangs. Nobody is evicted for a gang that would not be complete all the same: first the shards are asked,
//! one after the other, which workers evictions would free, and only when these make up for all members that the last
//! attempt lacked, the claims on them are evicted. What the gang could use meanwhile is held for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gang::{GANGS_TRIED_MAX, WaitingGang};
use super::preemption::SEEK_AGAIN_MS;
use super::queued_claim::ArrivalNumber;
use super::request_class::RequestClass;
use super::reservations::{ReservationKind, ReservationList};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::gang::GangEvent;
use crate::admission::pool_registry::Pool;
use crate::engine::{EvictionPolicy, PlacementConstraints, ReservationId, VictimNeed};
use crate::limits;
use crate::model::request_error::ExhaustionReason;
use crate::model::{Millis, PoolMode};
use crate::shard::{Command, OfferedWorkers, ReservationOutcome, ReserveCall, ShardRef, ShardSet, VictimSurvey};

/// Time for which it counts as known what a gang lacks, in milliseconds: two checks of those that are starved.
const FRESH_MS: Millis = 500;

/// Worker from which claims are to be evicted for a member of a gang.
#[derive(Debug)]
struct FoundVictim {
    shard: u16,
    worker: u32,
    need: VictimNeed,
}

/// Search for the victims of a gang, shard by shard. Nothing is evicted before all members have one.
#[derive(Debug)]
pub struct VictimSearch {
    /// Number of the present question; another one for each shard.
    number: ReservationId,
    /// Engine time of the attempt after which it was known what the gang lacks.
    attempted_ms: Millis,
    /// Gang that lacks workers.
    pub gang: Arc<WaitingGang>,
    /// Needs of the members for which no victim was found yet.
    needs: Arc<[VictimNeed]>,
    found: Vec<FoundVictim>,
    visited: ShardSet,
}

impl VictimSearch {
    /// Takes the workers that a shard has found.
    fn add(&mut self, shard: u16, found: &[(usize, u32)]) {
        let needs = std::mem::take(&mut self.needs);
        let mut left = Vec::new();
        for (index, need) in needs.iter().enumerate() {
            match found.iter().find(|(found, _)| *found == index) {
                Some(&(_, worker)) => self.found.push(FoundVictim { shard, worker, need: need.clone() }),
                None => left.push(need.clone()),
            }
        }
        self.needs = left.into();
    }

    fn is_complete(&self) -> bool {
        self.needs.is_empty()
    }
}

impl WaitingGang {
    /// Whether claims of others may be evicted for it.
    fn may_evict(&self) -> bool {
        // Of several pools it is not known which one lacks workers.
        let is_pinned = |class: &RequestClass| class.constraints.as_ref().is_some_and(|wanted| wanted.worker.is_some());
        self.lowest_priority > 0
            && self.pools.len() == 1
            && !self.classes.iter().any(is_pinned)
            && !matches!(self.exhausted, ExhaustionReason::Quota(_))
            && !self.tenant.headroom().is_exceeded_by(&self.need)
    }

    /// Whether enough whole workers have come free since it was tried. Of shared workers only an attempt knows.
    fn has_enough_workers(&self, pool: &Pool) -> bool {
        pool.spec.load().mode == PoolMode::Exclusive && self.has_enough()
    }

    /// Needs of the members for which the last attempt found no worker.
    fn missing_needs(&self, pool: &Pool, missing: &[usize]) -> Vec<VictimNeed> {
        let spec = pool.spec.load();
        // Members that request the same share their constraints, so that a worker is examined once for all of them.
        let mut shared: BTreeMap<u64, Arc<PlacementConstraints>> = BTreeMap::new();
        let classes = missing.iter().filter_map(|index| self.classes.get(*index));
        let need = |class: &RequestClass| VictimNeed {
            constraints: Arc::clone(
                shared.entry(class.hash).or_insert_with(|| class.constraints.clone().unwrap_or_default()),
            ),
            duration_ms: spec.needs_ms(class.reserve_ms.unwrap_or(spec.reserve_ms), class.ttl_ms),
        };
        classes.map(need).collect()
    }
}

impl ClaimDispatcher {
    /// Seeks victims for the best-ranked gang that may evict claims and does not wait for victims already.
    pub(super) fn preempt_for_gangs(&self, pool: &Pool, now_ms: Millis, work: &mut EffectQueue) {
        if !pool.spec.load().preemption || pool.is_preemption_paused() {
            return;
        }
        let usable = pool.usable_workers();
        let queue = pool.wait_queue.lock();
        let reservations = &queue.queue.reservations;
        if reservations.victim_search.is_some() {
            return;
        }
        let may_hold = |gang: &WaitingGang| {
            let is_held_for = reservations.gang_hold().is_some_and(|(arrival, _)| arrival == gang.arrival);
            is_held_for || reservations.may_hold(gang.wanted_workers(pool, usable) as u64, usable, now_ms)
        };
        let may_seek = |gang: &&Arc<WaitingGang>| {
            gang.may_evict()
                && gang.is_feasible(pool, usable)
                && reservations.may_seek(gang.arrival, now_ms)
                && !reservations.has_pending_victims(gang.arrival)
                && pool.board.shard_to_evict(gang.lowest_priority, &ShardSet::default()).is_some()
                && may_hold(gang)
        };
        // One that is being tried, or about to be, may need nobody to be evicted.
        let lacks_few = |gang: &&Arc<WaitingGang>| {
            let last = gang.last_attempt();
            let evicted = reservations.evicted_workers() + last.missing.len();
            !last.is_running && !last.missing.is_empty() && evicted <= limits::EVICTED_WORKERS_MAX
        };
        let mut gangs = queue.gangs.values().take(GANGS_TRIED_MAX);
        let found = gangs.find(|gang| lacks_few(gang) && may_seek(gang)).cloned();
        drop(queue);
        // Outside the lock, because it takes those of the gang's pools.
        let Some(gang) = found.filter(|gang| !gang.has_enough_workers(pool)) else { return };
        let last = gang.last_attempt();
        if last.failed_ms + FRESH_MS <= now_ms {
            // Tried once more first: what it lacks may have changed.
            return work.push(Effect::gang(gang.number, GangEvent::MayFit));
        }
        let mut queue = pool.wait_queue.lock();
        let search = VictimSearch {
            number: self.keys.ids.next_arrival(),
            attempted_ms: last.failed_ms,
            needs: gang.missing_needs(pool, &last.missing).into(),
            gang,
            found: Vec::new(),
            visited: ShardSet::default(),
        };
        let survey = self.continue_search(pool, search, &mut queue.queue.reservations, now_ms);
        drop(queue);
        survey.into_iter().for_each(|survey| work.push(survey));
    }

    /// Goes on with a search after a shard has answered.
    pub(crate) fn on_victims_found(
        &self,
        from: ShardRef,
        number: ReservationId,
        found: &[(usize, u32)],
        work: &mut EffectQueue,
    ) {
        let pools = self.pools.load();
        let Some(pool) = pools.by_number(from.pool) else { return };
        let now_ms = self.clock.engine_ms();
        let mut queue = pool.wait_queue.lock();
        let search = queue.queue.reservations.victim_search.take_if(|search| search.number == number);
        let Some(mut search) = search else { return };
        search.add(from.shard, found);
        if !search.is_complete() {
            let survey = self.continue_search(pool, search, &mut queue.queue.reservations, now_ms);
            drop(queue);
            return survey.into_iter().for_each(|survey| work.push(survey));
        }
        let VictimSearch { gang, found, attempted_ms, .. } = search;
        drop(queue);
        let last = gang.last_attempt();
        if last.is_running || last.failed_ms != attempted_ms || gang.has_enough_workers(pool) {
            // What it lacks has changed meanwhile.
            return;
        }
        let (spec, usable) = (pool.spec.load(), pool.usable_workers());
        let mut queue = pool.wait_queue.lock();
        if !queue.gangs.contains_key(&gang.rank()) {
            return;
        }
        let reservations = &mut queue.queue.reservations;
        let is_held_for = reservations.gang_hold().is_some_and(|(arrival, _)| arrival == gang.arrival);
        if !is_held_for {
            let wanted = gang.wanted_workers(pool, usable);
            if !reservations.may_hold(wanted as u64, usable, now_ms) {
                return reservations.note_failed(gang.arrival, now_ms + SEEK_AGAIN_MS);
            }
            let until_ms = now_ms + spec.releasing_ms + limits::RESERVE_AFTER_MS;
            reservations.begin_gang_hold(&gang, pool.number, ReservationKind::Evicted, wanted, now_ms..until_ms);
        }
        let mut calls = Vec::with_capacity(found.len());
        for FoundVictim { shard, worker, need: VictimNeed { constraints, duration_ms } } in found {
            let id = self.keys.ids.next_arrival();
            reservations.request_for_gang(id, gang.arrival);
            let (below_priority, releasing_ms) = (gang.lowest_priority, spec.releasing_ms);
            let evict = Some(EvictionPolicy { below_priority, releasing_ms, worker: Some(worker) });
            calls.push((shard, ReserveCall { id, constraints, duration_ms, evict }));
        }
        drop(queue);
        for (shard, call) in calls {
            work.push(Effect::Send(ShardRef { pool: pool.number, shard }, Command::Reserve(call)));
        }
        if !is_held_for {
            // What is free already is held too.
            pool.shards.iter().for_each(|handle| work.push(Effect::OfferAgain(handle.shard, OfferedWorkers::All)));
        }
    }

    /// Handles the answer of a shard that was asked to evict claims for a gang. If its victims have gone by themselves, the
    /// next attempt finds out what the gang lacks now.
    pub(super) fn on_gang_reservation(
        &self,
        from: ShardRef,
        gang: ArrivalNumber,
        id: ReservationId,
        outcome: ReservationOutcome,
        work: &mut EffectQueue,
    ) {
        let ReservationOutcome::Reserved(reserved) = outcome else { return };
        let pools = self.pools.load();
        let Some(pool) = pools.by_number(from.pool) else { return };
        let is_held = pool.wait_queue.lock().queue.reservations.hold_evicted(gang, from.shard, &reserved, id);
        if is_held {
            // Its victims may have gone already.
            work.push(Effect::OfferAgain(from, OfferedWorkers::One(reserved.worker)));
        } else if let Some(handle) = pools.shard(from) {
            handle.cancel_reservation(id);
        }
    }

    /// Asks the next shard with victims, or ends the search without evicting anybody.
    fn continue_search(
        &self,
        pool: &Pool,
        mut search: VictimSearch,
        reservations: &mut ReservationList,
        now_ms: Millis,
    ) -> Option<Effect> {
        let Some(shard) = pool.board.shard_to_evict(search.gang.lowest_priority, &search.visited) else {
            reservations.note_failed(search.gang.arrival, now_ms + SEEK_AGAIN_MS);
            return None;
        };
        search.visited.insert(shard);
        search.number = self.keys.ids.next_arrival();
        let survey = VictimSurvey {
            id: search.number,
            needs: Arc::clone(&search.needs),
            below_priority: search.gang.lowest_priority,
        };
        reservations.victim_search = Some(search);
        Some(Effect::Send(ShardRef { pool: pool.number, shard }, Command::SurveyVictims(survey)))
    }
}
