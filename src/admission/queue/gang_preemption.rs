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
use crate::model::Millis;
use crate::model::request_error::ExhaustionReason;
use crate::shard::{Command, ReservationOutcome, ReserveCall, ShardRef, ShardSet, VictimSurvey};

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
    number: ReservationId,
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
        self.lowest_priority > 0
            && self.pools.len() == 1
            && !matches!(self.exhausted, ExhaustionReason::Quota(_))
            && !self.tenant.headroom().is_exceeded_by(&self.need)
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
        let mut queue = pool.wait_queue.lock();
        let reservations = &queue.queue.reservations;
        if reservations.victim_search.is_some() {
            return;
        }
        let may_hold = |gang: &WaitingGang| {
            let is_held_for = reservations.gang_hold().is_some_and(|(arrival, _)| arrival == gang.arrival);
            is_held_for || reservations.may_hold(gang.wanted_workers(usable) as u64, usable, now_ms)
        };
        let may_seek = |gang: &&Arc<WaitingGang>| {
            gang.may_evict()
                && gang.is_feasible(pool, usable)
                && reservations.may_seek(gang.arrival, now_ms)
                && !reservations.has_pending_victims(gang.arrival)
                && may_hold(gang)
        };
        let Some(gang) = queue.gangs.values().take(GANGS_TRIED_MAX).find(may_seek).cloned() else { return };
        let last = gang.last_attempt();
        if last.failed_ms + SEEK_AGAIN_MS <= now_ms {
            // Tried once more first: what it lacks may have changed.
            drop(queue);
            return work.push(Effect::gang(gang.number, GangEvent::MayFit));
        }
        let is_too_many = reservations.evicted_workers() + last.missing.len() > limits::EVICTED_WORKERS_MAX;
        if last.missing.is_empty() || is_too_many {
            return queue.queue.reservations.note_failed(gang.arrival, now_ms + SEEK_AGAIN_MS);
        }
        let search = VictimSearch {
            number: self.keys.ids.next_arrival(),
            needs: gang.missing_needs(pool, &last.missing).into(),
            gang,
            found: Vec::new(),
            visited: ShardSet::default(),
        };
        let survey = continue_search(pool, search, &mut queue.queue.reservations, now_ms);
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
            let survey = continue_search(pool, search, &mut queue.queue.reservations, now_ms);
            drop(queue);
            return survey.into_iter().for_each(|survey| work.push(survey));
        }
        let VictimSearch { gang, found, .. } = search;
        let (spec, usable) = (pool.spec.load(), pool.usable_workers());
        let reservations = &mut queue.queue.reservations;
        let is_held_for = reservations.gang_hold().is_some_and(|(arrival, _)| arrival == gang.arrival);
        if !is_held_for {
            let wanted = gang.wanted_workers(usable);
            if !reservations.may_hold(wanted as u64, usable, now_ms) {
                return reservations.note_failed(gang.arrival, now_ms + SEEK_AGAIN_MS);
            }
            let until_ms = now_ms + spec.releasing_ms + limits::RESERVE_AFTER_MS;
            reservations.begin_gang_hold(&gang, ReservationKind::Evicted, wanted, now_ms..until_ms);
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
            pool.shards.iter().for_each(|handle| work.push(Effect::Send(handle.shard, Command::OfferAll)));
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
            work.push(Effect::Send(from, Command::Offer(reserved.worker)));
        } else if let Some(handle) = pools.shard(from) {
            handle.cancel_reservation(id);
        }
    }
}

/// Asks the next shard with victims, or ends the search without evicting anybody.
fn continue_search(
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
    let survey = VictimSurvey {
        id: search.number,
        needs: Arc::clone(&search.needs),
        below_priority: search.gang.lowest_priority,
    };
    reservations.victim_search = Some(search);
    Some(Effect::Send(ShardRef { pool: pool.number, shard }, Command::SurveyVictims(survey)))
}
