//! Entry into the wait queues, and the end of a search that found nothing.

use std::sync::Arc;

use smallvec::SmallVec;

use super::pool_queue::EntryOutcome;
use super::wait_queue::UnmatchedOffers;
use super::{ArrivalNumber, PoolQueue, QueuedClaim};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::key::{PendingClaim, SettledClaim, ShardAsk};
use crate::admission::plan::NodeScope;
use crate::admission::pool_registry::{Pool, PoolMap};
use crate::admission::tenant::Tenant;
use crate::engine::ClaimTarget;
use crate::model::Millis;
use crate::model::request_error::{ExhaustionReason, ObjectKind, RequestError, UnavailableReason};
use crate::shard::{OfferedWorkers, ProtocolPoint, ProtocolRule, RunOrigin, ShardRef};

impl ClaimDispatcher {
    /// Goes on with a claim that has no shard left to ask: it enters the queues, stands still in them, or is rejected.
    /// Returns the claim if there is a shard to ask after all, or the duplicate that takes over its ticket, for the
    /// caller to route.
    pub(crate) fn queue_or_reject(
        &self,
        mut item: Box<PendingClaim>,
        rejection: RequestError,
        work: &mut EffectQueue,
    ) -> Option<Box<PendingClaim>> {
        let now_ms = self.clock.engine_ms();
        if self.ask_reserved(&mut item, &rejection) {
            return Some(item);
        }
        let exhausted = match rejection {
            RequestError::Exhausted(
                reason @ (ExhaustionReason::Pool | ExhaustionReason::NodeLocality | ExhaustionReason::Quota(_)),
            ) => reason,
            // Workers that could hold it may register again.
            RequestError::Unsatisfiable if item.waits() => ExhaustionReason::Unsatisfiable,
            // A claim that waits already is searched for again once the shard can be asked.
            RequestError::Unavailable(UnavailableReason::Loading | UnavailableReason::Overloaded)
                if item.queued().is_some() && !self.is_draining() =>
            {
                ExhaustionReason::Pool
            }
            rejection => return self.reject(item, rejection),
        };
        if item.queued().is_some()
            && item.is_preferred_only()
            && item.wait_due_ms().is_some_and(|due_ms| due_ms <= now_ms)
        {
            return self.widen(item, now_ms, work);
        }
        if item.is_wait_over(now_ms) || item.reply.is_abandoned() {
            let rejection = if item.waits() { RequestError::Exhausted(exhausted) } else { rejection };
            return self.reject(item, rejection);
        }
        if item.queued().is_none() {
            return self.enter_queues(item, exhausted, now_ms, work);
        }
        if matches!(rejection, RequestError::Unavailable(_)) {
            self.recheck_on_tick(&item);
        }
        self.settle(item, exhausted, work)
    }

    /// Enters a claim into the queues of its pools, to be searched for once more.
    pub(super) fn enter_queues(
        &self,
        mut item: Box<PendingClaim>,
        exhausted: ExhaustionReason,
        now_ms: Millis,
        work: &mut EffectQueue,
    ) -> Option<Box<PendingClaim>> {
        let map = self.pools.load_full();
        let pools: SmallVec<[&Arc<Pool>; 4]> =
            item.candidate_pools().iter().filter_map(|&number| map.by_number(number)).collect();
        let tenant = self.keys.tenants.get_or_insert(&item.id);
        let before = item.queued().cloned();
        if before.is_none() && pools.iter().any(|pool| is_full(pool, &tenant)) {
            crate::reached!("queue: full");
            return self.reject(item, RequestError::Unavailable(UnavailableReason::Overloaded));
        }
        if pools.is_empty() {
            crate::reached!("queue: no pool is left");
            return self.reject(item, RequestError::Exhausted(ExhaustionReason::NoEligiblePool));
        }
        item.reset_search(now_ms);
        let arrival = before.as_ref().map_or_else(|| self.keys.ids.next_arrival(), |queued| queued.arrival);
        let queued = Arc::new(new_queued_claim(&item, &pools, tenant, arrival));
        let is_first_entry = before.is_none();
        if let Some(before) = before {
            crate::reached!("queue: a claim enters again");
            // Another request class, or other pools, from now on.
            for pool in before.pools.iter().filter_map(|&number| map.by_number(number)) {
                let mut queue = pool.wait_queue.lock();
                queue.leave(before.arrival);
                if !queued.pools.contains(&pool.number) {
                    queue.queue.reservations.forget(before.arrival);
                    if queue.queue.reservations.serves(before.arrival) {
                        self.wait_queues.unassigned.push(Arc::clone(pool));
                    }
                }
            }
        }
        let Some((not_waiting, deadlines)) = self.keys.enter_queue(&queued, exhausted) else {
            // Somebody else released the ticket. That cannot happen, but if it does the claim must not wait with it.
            return self.reject(item, RequestError::DeadlineExceeded);
        };
        for duplicate in not_waiting {
            self.reply_rejected(duplicate, RequestError::KEY_ALREADY_WAITED_FOR);
        }
        for due_ms in deadlines.into_iter().filter(|_| is_first_entry) {
            self.wait_queues.deadlines.add(due_ms, self.keys.ids.next_arrival(), &queued.id);
        }
        if let Some(wait) = &mut item.wait {
            wait.queued = Some(Arc::clone(&queued));
        }
        if let Some(due_ms) = item.wait_due_ms() {
            self.wait_queues.deadlines.add(due_ms, arrival, &queued.id);
        }
        ProtocolPoint::WaitStep.reach();
        let mut is_open = false;
        for pool in &pools {
            is_open |= enter_queue(pool, &queued) != EntryOutcome::Closed;
        }
        if !is_open {
            crate::reached!("queue: closed while a claim enters");
            let rejection = self.closed_rejection();
            return self.reject(item, rejection);
        }
        ProtocolPoint::WaitStep.reach();
        if !ProtocolRule::SearchAfterEntry.holds() || self.is_behind_equal(&pools, &queued, exhausted, now_ms) {
            crate::reached!("queue: a claim behind an equal one is not searched for");
            return self.settle(item, exhausted, work);
        }
        self.restart_search(item, &map, now_ms, work)
    }

    /// Whether a claim of the same request, tenant and priority stands still before this one in the only queue of both. What
    /// came free before this one entered would have gone to that one, so a search for this one finds nothing.
    fn is_behind_equal(
        &self,
        pools: &[&Arc<Pool>],
        queued: &QueuedClaim,
        exhausted: ExhaustionReason,
        now_ms: Millis,
    ) -> bool {
        // A claim that waits for its quota has left something behind, perhaps.
        let [pool] = pools else { return false };
        if matches!(exhausted, ExhaustionReason::Quota(_)) {
            return false;
        }
        let first = pool.wait_queue.lock().queue.first_of_lane(queued.arrival).cloned();
        first.is_some_and(|first| first.pools == queued.pools && self.keys.stands_still(&first, now_ms))
    }

    /// Goes on with a claim that a shard had nothing for. Should it have been matched to what came free there, which fits it, it
    /// is put back into the queue, at its old arrival, and then searched for once more.
    pub(crate) fn put_back(
        &self,
        from: RunOrigin,
        item: Box<PendingClaim>,
        work: &mut EffectQueue,
    ) -> Option<Box<PendingClaim>> {
        let Some(queued) = item.queued() else { return Some(item) };
        let pools = self.pools.load();
        // It may have been selected when the claim was sent there, and not any more.
        let waits_for = |pool: &&Arc<Pool>| queued.pools.contains(&pool.number);
        let Some(pool) = pools.by_number(from.shard.pool).filter(waits_for) else { return Some(item) };
        match enter_queue(pool, queued) {
            EntryOutcome::Entered => {
                debug_assert!(false, "Q05: what is offered fits the claim that it is matched to");
                note_tried(&pools, queued);
                self.restart_search(item, &pools, from.now_ms, work)
            }
            EntryOutcome::Present | EntryOutcome::Closed => Some(item),
        }
    }

    /// Begins the search of a claim anew, from its first pool.
    pub(super) fn restart_search(
        &self,
        mut item: Box<PendingClaim>,
        pools: &PoolMap,
        now_ms: Millis,
        work: &mut EffectQueue,
    ) -> Option<Box<PendingClaim>> {
        if item.queued().is_some() && item.reselect_pools(pools) {
            // Others are in question from now on.
            return self.widen(item, now_ms, work);
        }
        if item.queued().is_some_and(|queued| queued.is_preferred_only) && item.scope_at(now_ms) == NodeScope::Allowed {
            // Its class is another one from now on.
            return self.widen(item, now_ms, work);
        }
        let first = item.candidate_pools().iter().find_map(|&number| pools.by_number(number).cloned());
        let Some(first) = first else {
            return self.reject(item, RequestError::NotFound(ObjectKind::Pool));
        };
        item.restart_in_pool(&first, now_ms);
        self.keys.charge_again(&mut item);
        Some(item)
    }

    /// Lets other nodes than the preferred ones count from now on, and begins the search anew.
    pub(super) fn widen(
        &self,
        item: Box<PendingClaim>,
        now_ms: Millis,
        work: &mut EffectQueue,
    ) -> Option<Box<PendingClaim>> {
        self.enter_queues(item, ExhaustionReason::Pool, now_ms, work)
    }

    /// Lets a claim stand still after a search that found nothing.
    fn settle(
        &self,
        item: Box<PendingClaim>,
        exhausted: ExhaustionReason,
        work: &mut EffectQueue,
    ) -> Option<Box<PendingClaim>> {
        let Some(queued) = item.queued().cloned() else { return Some(item) };
        let (due_ms, selected_from) = (item.wait_due_ms(), item.selected_from());
        let is_short = matches!(exhausted, ExhaustionReason::Quota(_));
        ProtocolPoint::WaitStep.reach();
        match self.keys.settle(item, exhausted) {
            SettledClaim::StandsStill => {
                crate::reached!("queue: a claim stands still");
            }
            SettledClaim::Stale(item) => {
                self.reply_rejected(item, RequestError::DeadlineExceeded);
                return None;
            }
        }
        // What happened while the claim was being tried has not been noticed by it.
        if let Some(item) = self.take_if_ended(&queued) {
            crate::reached!("queue: closed while a claim was being tried");
            return self.reject(item, self.closed_rejection());
        }
        let now_ms = self.clock.engine_ms();
        if due_ms.is_some_and(|due_ms| due_ms <= now_ms) {
            crate::reached!("queue: a deadline passed while a claim was being tried");
            // The tick that looked at the key has not found the claim there.
            self.handle_due_key(&queued.id, now_ms, work);
        }
        self.cancel_queued(&queued.id, work);
        let pools = self.pools.load();
        if selected_from.is_some_and(|version| version != pools.version()) {
            // Pools have changed while the claim was being tried.
            self.wait_queues.rechecks.lock().insert(queued.arrival, Arc::clone(&queued));
        }
        for pool in queued.pools.iter().filter_map(|&number| pools.by_number(number)) {
            let mut queue = pool.wait_queue.lock();
            if !self.keys.is_still(&queued) {
                crate::reached!("queue: matched before it settles");
                // Matched, or searched for again: whoever does that says what comes of it.
                continue;
            }
            if is_short {
                queue.queue.note_quota_short(queued.arrival);
            } else {
                queue.queue.note_searched(queued.arrival);
                self.offer_unmatched(pool, &queued, queue.queue.take_unmatched(queued.arrival), work);
            }
            queue.queue.note_still(queued.arrival);
            drop(queue);
            if queued.priority > 0 || pool.wait_queue.lowest_reserved_priority().is_some() {
                work.push(Effect::AssignReservations(Arc::clone(pool)));
            }
        }
        // Headroom that came back before the queues knew of the claim.
        if is_short && queued.tenant.allows_refused(&queued.amounts(), queued.charge_rank()) {
            crate::reached!("queue: headroom came back before the claim stood still");
            queued.tenant.queue_retry();
            work.push(Effect::SearchQuotas);
        }
        None
    }

    /// Offers workers again that nobody took while a claim was being tried that is about to stand still.
    fn offer_unmatched(
        &self,
        pool: &Pool,
        queued: &Arc<QueuedClaim>,
        unmatched: UnmatchedOffers,
        work: &mut EffectQueue,
    ) {
        if !ProtocolRule::OfferAgain.holds() {
            return;
        }
        for (shard, worker) in unmatched.workers {
            let shard = ShardRef { pool: pool.number, shard };
            crate::reached!("queue: an unmatched worker is offered again");
            work.push(Effect::OfferAgain(shard, OfferedWorkers::One(worker)));
        }
        if unmatched.is_incomplete {
            self.wait_queues.rechecks.lock().insert(queued.arrival, Arc::clone(queued));
        }
    }

    /// Lets a claim ask for workers that are reserved for claims of a lower priority, before it waits or is rejected.
    pub(crate) fn ask_reserved(&self, item: &mut PendingClaim, rejection: &RequestError) -> bool {
        let priority = item.spec().map_or(0, |spec| spec.priority);
        let lacks_capacity =
            matches!(rejection, RequestError::Exhausted(ExhaustionReason::Pool | ExhaustionReason::NodeLocality));
        // A claim that its quota keeps back holds no charge, and must not be granted.
        if priority == 0 || item.has_asked_reserved || !lacks_capacity {
            return false;
        }
        item.has_asked_reserved = true;
        let pools = self.pools.load();
        let mut asks = std::collections::VecDeque::new();
        for pool in item.candidate_pools().iter().filter_map(|&number| pools.by_number(number)) {
            if pool.wait_queue.lowest_reserved_priority().is_none_or(|lowest| lowest >= priority) {
                continue;
            }
            let arrival = item.queued().map(|queued| queued.arrival);
            for (number, shard) in pool.wait_queue.lock().queue.reservations.usable(priority, arrival) {
                let shard = ShardRef { pool: pool.number, shard };
                crate::reached!("reservation: a claim of higher priority asks for a reserved worker");
                asks.push_back(ShardAsk { shard, target: Some(ClaimTarget::Reserved(number)) });
            }
        }
        let found = !asks.is_empty();
        item.asks = found.then(|| Box::new(asks));
        found
    }

    /// Takes a claim out of all queues after its wait.
    pub(crate) fn leave_queues(&self, queued: &QueuedClaim, due_ms: Option<Millis>) {
        let pools = self.pools.load();
        let mut is_any_short = false;
        for pool in queued.pools.iter().filter_map(|&number| pools.by_number(number)) {
            let mut queue = pool.wait_queue.lock();
            queue.leave(queued.arrival);
            is_any_short |= queue.queue.has_quota_short(queued.tenant.number);
            queue.queue.reservations.forget(queued.arrival);
            if queue.queue.reservations.serves(queued.arrival) {
                self.wait_queues.unassigned.push(Arc::clone(pool));
            }
        }
        if queued.tenant.unprotect(queued.arrival) || is_any_short {
            queued.tenant.queue_retry();
        }
        if let Some(due_ms) = due_ms {
            self.wait_queues.deadlines.remove(due_ms, queued.arrival);
        }
    }

    /// Assigns reservations anew whose claims have left.
    #[inline]
    pub(crate) fn assign_left(&self, work: &mut EffectQueue) {
        while let Some(pool) = self.wait_queues.unassigned.pop() {
            work.push(Effect::AssignReservations(pool));
        }
    }

    /// Notes a claim that is searched for on a later tick.
    fn recheck_on_tick(&self, item: &PendingClaim) {
        if let Some(queued) = item.queued() {
            self.wait_queues.rechecks.lock().insert(queued.arrival, Arc::clone(queued));
        }
    }
}

/// Notes in its queues that a claim is being tried, before its search begins. Its charge may keep others of its tenant, and so
/// itself, from what comes free meanwhile.
pub(super) fn note_tried(pools: &PoolMap, queued: &QueuedClaim) {
    for pool in queued.pools.iter().filter_map(|&number| pools.by_number(number)) {
        pool.wait_queue.lock().queue.note_tried(&[queued.arrival]);
    }
}

/// Enters a claim into the queue of a pool.
pub(super) fn enter_queue(pool: &Pool, queued: &Arc<QueuedClaim>) -> EntryOutcome {
    let (needs_ms, total) = (needs_ms(pool, queued), pool.board.total());
    pool.wait_queue.lock().enter(queued, needs_ms, &total)
}

/// Time for which a claim needs a worker of a pool, in milliseconds.
fn needs_ms(pool: &Pool, queued: &QueuedClaim) -> Millis {
    let spec = pool.spec.load();
    spec.needs_ms(queued.class.reserve_ms.unwrap_or(spec.reserve_ms), queued.class.ttl_ms)
}

/// Renews the time for which a claim needs a worker of a pool, whose specification may have changed.
pub(super) fn renew_needs(pool: &Pool, queued: &QueuedClaim) {
    let needs_ms = needs_ms(pool, queued);
    let mut queue = pool.wait_queue.lock();
    if queue.queue.demand_of(queued.arrival).is_some_and(|demand| demand.needs_ms != needs_ms) {
        queue.queue.renew(queued.arrival, needs_ms);
    }
}

fn new_queued_claim(
    item: &PendingClaim,
    pools: &[&Arc<Pool>],
    tenant: Arc<Tenant>,
    arrival: ArrivalNumber,
) -> QueuedClaim {
    let wait = item.wait.as_ref().expect("a claim that enters a queue may wait");
    QueuedClaim {
        id: item.id.clone(),
        ticket: item.ticket,
        arrival,
        priority: item.spec().map_or(0, |spec| spec.priority),
        since_ms: wait.since_ms,
        until_ms: wait.until_ms,
        pools: pools.iter().map(|pool| pool.number).collect(),
        tenant,
        class: item.class(),
        is_preferred_only: item.is_preferred_only(),
        selects_pools: item.selected_from().is_some(),
    }
}

/// Whether as many claims wait for the pool already as may, or as many of the tenant.
pub(super) fn is_full(pool: &Pool, tenant: &Tenant) -> bool {
    let spec = pool.spec.load();
    let queue: &PoolQueue = &pool.wait_queue;
    queue.waiting() >= spec.waiters_max as usize
        || queue.lock().waiting_of(tenant.number) >= spec.waiters_tenant_max as usize
}
