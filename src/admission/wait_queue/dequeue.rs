//! How claims come into lines, and get their turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;

use super::fair_queue::QueueEntry;
use super::gang;
use super::{DEQUEUE_TIMEOUT_MS, DequeueGuard, QueuedClaim, SERVED_WINDOW_MS};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::pool_registry::Pool;
use crate::admission::tenants::Tenant;
use crate::limits;
use crate::model::request_error::{ExhaustionReason, ObjectKind, RequestError, UnavailableReason};
use crate::model::{ClaimId, Millis, QueuedClaimView};
use crate::shard::PendingClaim;

/// Shares that one look brings up to date: of that many tenants, in turn.
const SHARES_REFRESHED_MAX: usize = 16;

impl ClaimDispatcher {
    /// A claim with a ticket has nothing left to try: it waits, if it may, or is refused. Whoever joined and takes over its ticket is
    /// returned, to be routed.
    pub(crate) fn queue_or_reject(&self, item: Box<PendingClaim>, refusal: RequestError) -> Option<Box<PendingClaim>> {
        if item.turn().is_some() {
            return self.requeue_or_fall_back(item, &refusal);
        }
        let now_ms = self.clock.engine_ms();
        let why = match refusal {
            RequestError::Exhausted(
                why @ (ExhaustionReason::Pool | ExhaustionReason::NodeLocality | ExhaustionReason::Quota(_)),
            ) => why,
            // It may have been said of a claim that waits already: what could hold it may come back.
            RequestError::Unsatisfiable if item.has_waited() => ExhaustionReason::Pool,
            refusal => return self.reject(item, refusal),
        };
        if item.wait_until_ms() <= now_ms {
            return self.reject(item, refusal);
        }
        self.enqueue(item, why, now_ms)
    }

    /// Puts a claim into the lines that it may wait in.
    fn enqueue(&self, mut item: Box<PendingClaim>, why: ExhaustionReason, now_ms: Millis) -> Option<Box<PendingClaim>> {
        let map = self.pools.load_full();
        let pools: SmallVec<[Arc<Pool>; 1]> = match why {
            ExhaustionReason::Quota(_) => SmallVec::new(),
            _ => item.candidate_pools().iter().filter_map(|&number| map.by_number(number)).cloned().collect(),
        };
        let tenant = self.keys.tenants.get_or_insert(&item.id);
        if !item.has_waited() && is_full(&pools, &tenant) {
            return self.reject(item, RequestError::Unavailable(UnavailableReason::Overloaded));
        }
        let due_ms = item.reset_for_wait(now_ms, || self.wait_queues.next_arrival());
        let parked = Arc::new(new_queued_claim(&item, pools, tenant, why, false));
        let (id, ticket) = (item.id.clone(), item.ticket);
        *parked.lock() = Some(item);
        let Some((leave, others_due)) = self.keys.mark_queued(&id, ticket, &parked) else {
            // Somebody took the ticket away: nobody can, but then it is not ours to wait with.
            return parked.take().and_then(|item| self.reject(item, RequestError::DeadlineExceeded));
        };
        for joiner in leave {
            joiner.reply.send(Err(RequestError::KEY_ALREADY_WAITED_FOR));
        }
        for due_ms in others_due {
            self.schedule_duplicate_expiry(due_ms, &id);
        }
        self.insert_into_queues(&parked, due_ms);
        self.remove_if_closed(&parked);
        if parked.lock().as_ref().is_some_and(|item| item.reply.is_abandoned()) {
            self.cancel_queued(&id);
        }
        for pool in &parked.pools {
            self.dispatch_next(pool);
        }
        if parked.pools.is_empty() {
            self.dispatch_next_for_quota(&parked.tenant);
        }
        self.request_reservation(&parked);
        None
    }

    /// A newcomer came to a shard that has something for those who wait, or may have: it is tried after those of them that go first.
    pub(crate) fn enqueue_newcomer(&self, pool: &Arc<Pool>, mut item: Box<PendingClaim>) {
        let now_ms = self.clock.engine_ms();
        let due_ms = item.reset_for_wait(now_ms, || self.wait_queues.next_arrival()).max(now_ms + SERVED_WINDOW_MS);
        let tenant = self.keys.tenants.get_or_insert(&item.id);
        let parked = Arc::new(new_queued_claim(
            &item,
            SmallVec::from_iter([Arc::clone(pool)]),
            tenant,
            ExhaustionReason::Pool,
            true,
        ));
        *parked.lock() = Some(item);
        self.insert_into_queues(&parked, due_ms);
    }

    pub(super) fn insert_into_queues(&self, parked: &Arc<QueuedClaim>, due_ms: Millis) {
        let QueuedClaim { arrival, priority, request_class: shape, newcomer: once, .. } = **parked;
        if parked.pools.is_empty() {
            let mut waited = self.wait_queues.quota_queues();
            waited.insert(parked.tenant.number, Arc::clone(&parked.tenant));
        }
        for line in parked.queues() {
            let (tenant, item) = (parked.tenant.number, Arc::clone(parked));
            line.insert(QueueEntry { arrival, priority, tenant, request_class: shape, due_ms, newcomer: once, item });
        }
    }

    /// There was no room for a claim that had its turn: it goes back to its place. One that does not wait goes on to its other pools.
    fn requeue_or_fall_back(&self, mut item: Box<PendingClaim>, refusal: &RequestError) -> Option<Box<PendingClaim>> {
        let Some(turn) = item.take_turn() else { return Some(item) };
        let (parked, pool) = (Arc::clone(&turn.queued), Arc::clone(&turn.pool));
        pool.wait_queue.mark_unplaceable(parked.request_class, turn.generation);
        if matches!(refusal, RequestError::Unavailable(_)) {
            pool.wait_queue.retry_on_tick.store(true, Ordering::Release);
        }
        if parked.newcomer {
            drop(turn);
            return self.try_next_pool(item);
        }
        let now_ms = self.clock.engine_ms();
        if matches!(refusal, RequestError::NotFound(_)) || parked.until_ms <= now_ms || item.reply.is_abandoned() {
            drop(turn);
            let refusal = if matches!(refusal, RequestError::NotFound(_)) {
                refusal.clone()
            } else {
                RequestError::Exhausted(parked.exhausted)
            };
            return self.reject(item, refusal);
        }
        item.reset_for_wait(now_ms, || parked.arrival);
        self.requeue(&parked, item);
        drop(turn);
        if parked.skipped.swap(false, Ordering::AcqRel) {
            // Lines that came to it meanwhile left it out.
            for other in parked.pools.iter().filter(|other| other.number != pool.number) {
                other.wait_queue.retry_all();
                other.wait_queue.retry_on_tick.store(true, Ordering::Release);
            }
        }
        self.request_reservation(&parked);
        None
    }

    /// A claim that was being tried waits again, where it stood.
    fn requeue(&self, parked: &Arc<QueuedClaim>, item: Box<PendingClaim>) {
        let (id, ticket) = (item.id.clone(), item.ticket);
        let joiners = self.keys.mark_queued(&id, ticket, parked);
        *parked.lock() = Some(item);
        if let Some((leave, others_due)) = joiners {
            for joiner in leave {
                joiner.reply.send(Err(RequestError::KEY_ALREADY_WAITED_FOR));
            }
            for due_ms in others_due {
                self.schedule_duplicate_expiry(due_ms, &id);
            }
        }
        self.remove_if_closed(parked);
        if parked.lock().as_ref().is_some_and(|item| item.reply.is_abandoned()) {
            self.cancel_queued(&id);
        }
    }

    /// A newcomer for which the line of its pool had nothing tries the next.
    fn try_next_pool(&self, mut item: Box<PendingClaim>) -> Option<Box<PendingClaim>> {
        let pools = self.pools.load();
        if item.advance_pool(&pools) {
            return Some(item);
        }
        let refusal = item.refusal(&pools);
        self.queue_or_reject(item, refusal)
    }

    /// Gives turns, until one is on its way or nothing is left to try.
    pub(crate) fn dispatch_next(&self, pool: &Arc<Pool>) {
        loop {
            let now_ms = self.clock.engine_ms();
            let (parked, generation) = match self.next_candidate(pool, now_ms) {
                NextCandidate::Busy => return,
                NextCandidate::Drained(onces) => {
                    for parked in onces {
                        let Some(item) = parked.take() else { continue };
                        parked.remove_from_queues();
                        if let Some(item) = self.try_next_pool(item) {
                            self.route(item);
                        }
                    }
                    return;
                }
                NextCandidate::Candidate(parked, generation) => (parked, generation),
            };
            if parked.gang.is_some() {
                gang::offer_turn(pool, &parked, generation, now_ms);
                continue;
            }
            let Some(mut item) = parked.take() else {
                parked.skipped.store(true, Ordering::Release);
                pool.wait_queue.mark_unplaceable(parked.request_class, generation);
                pool.wait_queue.end_dequeue();
                continue;
            };
            item.give_turn(DequeueGuard { pool: Arc::clone(pool), queued: Arc::clone(&parked), generation });
            if item.reply.is_abandoned() {
                self.reject_and_route_next(item, RequestError::DeadlineExceeded);
                continue;
            }
            item.restart_in_pool(pool, now_ms);
            if !may_fit_pool(pool, &item) {
                self.requeue_or_fall_back(item, &RequestError::Exhausted(parked.exhausted))
                    .into_iter()
                    .for_each(|item| self.route(item));
                continue;
            }
            if !parked.newcomer {
                self.keys.mark_unqueued(&mut item);
                if let Some(over) = item.over_quota.take() {
                    drop(item.take_turn());
                    self.enqueue(item, ExhaustionReason::Quota(over), now_ms)
                        .into_iter()
                        .for_each(|item| self.route(item));
                    continue;
                }
            }
            self.route(item);
        }
    }

    fn next_candidate(&self, pool: &Arc<Pool>, now_ms: Millis) -> NextCandidate {
        let line = &pool.wait_queue;
        let mut state = line.lock();
        if state.dequeue_since_ms.is_some_and(|since| now_ms < since + DEQUEUE_TIMEOUT_MS) {
            return NextCandidate::Busy;
        }
        let total = pool.board.total();
        let from = state.share_cursor;
        for tenant in state.queue.tenants_after(from, SHARES_REFRESHED_MAX) {
            state.refresh_share(tenant, pool.number, &total);
            state.share_cursor = tenant;
        }
        // Of the first the share is right before it is taken for the first.
        for _ in 0..SHARES_REFRESHED_MAX {
            let Some(first) = state.queue.peek().map(|waiter| waiter.tenant) else { break };
            state.refresh_share(first, pool.number, &total);
            if state.queue.peek().is_some_and(|waiter| waiter.tenant == first) {
                break;
            }
        }
        let kept_for = state.reserved_for;
        let next = match kept_for {
            Some(arrival) => state.queue.peek_arrival(arrival),
            None => state.queue.peek(),
        };
        match next.map(|waiter| Arc::clone(&waiter.item)) {
            Some(parked) => {
                state.dequeue_since_ms = Some(now_ms);
                NextCandidate::Candidate(parked, state.generation)
            }
            None => {
                // What is kept for one must not be had by a newcomer.
                line.dispatch_pending.store(kept_for.is_some(), Ordering::Release);
                NextCandidate::Drained(state.queue.newcomers().cloned().collect())
            }
        }
    }

    /// A tenant may have room in its quota for claims of it that wait.
    pub(super) fn dispatch_next_for_quota(&self, tenant: &Arc<Tenant>) {
        let line = &tenant.wait_queue;
        let now_ms = self.clock.engine_ms();
        if line.lock().dequeue_since_ms.replace(now_ms).is_some() {
            // Whoever is at it goes on until nothing is left to try.
            return;
        }
        let turn = QuotaDequeueGuard(tenant);
        loop {
            let (parked, generation) = {
                let mut state = line.lock();
                match state.queue.peek().map(|waiter| Arc::clone(&waiter.item)) {
                    Some(parked) => (parked, state.generation),
                    None => {
                        // In the same step: who waits from now on finds nobody at it.
                        state.dequeue_since_ms = None;
                        std::mem::forget(turn);
                        return;
                    }
                }
            };
            if let Some(gang) = &parked.gang {
                line.mark_unplaceable(parked.request_class, generation);
                gang.wake();
                continue;
            }
            let Some(mut item) = parked.take() else {
                // Whoever took it is about to take it out of here too.
                drop(line.remove(parked.arrival));
                continue;
            };
            if item.reply.is_abandoned() {
                parked.remove_from_queues();
                self.reject_and_route_next(item, RequestError::DeadlineExceeded);
                continue;
            }
            self.keys.mark_unqueued(&mut item);
            if item.over_quota.take().is_some() {
                line.mark_unplaceable(parked.request_class, generation);
                self.requeue(&parked, item);
                continue;
            }
            parked.remove_from_queues();
            self.restart_routing(item, now_ms);
        }
    }

    /// A claim that waited goes its way from the beginning.
    pub(super) fn restart_routing(&self, mut item: Box<PendingClaim>, now_ms: Millis) {
        let first = item.candidate_pools().iter().find_map(|&number| self.pools.load().by_number(number).cloned());
        match first {
            Some(pool) => {
                item.restart_in_pool(&pool, now_ms);
                self.route(item);
            }
            None => self.reject_and_route_next(item, RequestError::NotFound(ObjectKind::Pool)),
        }
    }

    /// Tenants were given something back: claims that wait for their quota go on.
    pub(crate) fn dispatch_quota_queues(&self) {
        while let Some(tenant) = self.keys.tenants.next_retry() {
            tenant.wait_queue.retry_all();
            self.dispatch_next_for_quota(&tenant);
        }
    }

    /// Claims that wait for their tenants' quotas.
    pub(crate) fn quota_waiting_len(&self) -> usize {
        self.wait_queues.quota_queues().values().map(|tenant| tenant.wait_queue.waiting()).sum()
    }

    /// What a key waits for.
    #[must_use]
    pub(crate) fn queued_view(&self, id: &ClaimId) -> Option<QueuedClaimView> {
        self.keys.queued_claim(id).map(|parked| self.view_waiting(id, &parked))
    }

    /// What a gang waits for that has this key among its members, which is free meanwhile.
    #[must_use]
    pub(crate) fn queued_gang_view(&self, id: &ClaimId) -> Option<QueuedClaimView> {
        let parked = self.wait_queues.gangs().get(id).cloned()?;
        Some(self.view_waiting(id, &parked))
    }

    fn view_waiting(&self, id: &ClaimId, parked: &QueuedClaim) -> QueuedClaimView {
        // Read in the middle of a tick it may be earlier than when the claim came.
        let now_ms = self.clock.engine_now_ms().max(parked.since_ms);
        let places = parked.queues().filter_map(|line| line.position(parked.arrival, now_ms));
        let (ahead, served) = places.min().unwrap_or((0, 0));
        let estimate_ms = (served > 0).then(|| (ahead as u64 + 1) * 2 * SERVED_WINDOW_MS / served);
        QueuedClaimView {
            id: id.clone(),
            pools: parked.pools.iter().map(|pool| pool.name.clone()).collect(),
            reason: parked.exhausted.as_str(),
            priority: parked.priority,
            ahead: ahead as u64,
            waited_ms: now_ms.saturating_sub(parked.since_ms),
            left_ms: parked.until_ms.saturating_sub(now_ms),
            estimate_ms,
        }
    }
}

/// The right to try the claims that wait for a tenant's quota. Dropped by a panic, it lets others go on.
struct QuotaDequeueGuard<'a>(&'a Arc<Tenant>);

impl Drop for QuotaDequeueGuard<'_> {
    fn drop(&mut self) {
        self.0.wait_queue.lock().dequeue_since_ms = None;
        self.0.queue_retry();
    }
}

enum NextCandidate {
    Busy,
    /// There is nothing left to try; these do not wait.
    Drained(Vec<Arc<QueuedClaim>>),
    Candidate(Arc<QueuedClaim>, u64),
}

impl super::WaitQueueState {
    fn refresh_share(&mut self, tenant: u64, pool: u32, total: &crate::model::ResourceUsage) {
        if let Some(known) = self.tenants.get(&tenant) {
            let share = known.dominant_share(pool, total);
            self.queue.set_share(tenant, share);
        }
    }
}

fn new_queued_claim(
    item: &PendingClaim,
    pools: SmallVec<[Arc<Pool>; 1]>,
    tenant: Arc<Tenant>,
    why: ExhaustionReason,
    once: bool,
) -> QueuedClaim {
    let (arrival, since_ms) = item.queue_position();
    QueuedClaim {
        item: parking_lot::Mutex::new(None),
        arrival,
        priority: item.spec().map_or(0, |spec| spec.priority),
        since_ms,
        until_ms: item.wait_until_ms(),
        exhausted: why,
        pools,
        tenant,
        newcomer: once,
        gang: None,
        request_class: item.request_class(matches!(why, ExhaustionReason::Quota(_))),
        skipped: AtomicBool::new(false),
        seeking_reservation: AtomicBool::new(false),
    }
}

/// Whether as many wait already as may.
pub(super) fn is_full(pools: &[Arc<Pool>], tenant: &Tenant) -> bool {
    if pools.is_empty() {
        return tenant.wait_queue.waiting() >= limits::QUOTA_WAITERS_MAX;
    }
    pools.iter().any(|pool| {
        let spec = pool.spec.load();
        pool.wait_queue.waiting() >= spec.waiters_max as usize
            || pool.wait_queue.lock().queue.waiting_of(tenant.number) >= spec.waiters_tenant_max as usize
    })
}

/// False only if no shard of the pool has room for the claim, whatever it settles for.
fn may_fit_pool(pool: &Pool, item: &PendingClaim) -> bool {
    if item.pinned_worker().is_some() || item.reserved_shard(pool.number).is_some() {
        return true;
    }
    match pool.board.free() {
        None => pool.board.open_shards().next().is_some(),
        Some(rooms) => {
            let fits = |wants| pool.board.open_shards().any(|shard| rooms.may_fit(shard, wants));
            item.all_constraints().any(fits)
        }
    }
}
