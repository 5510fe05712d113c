//! Entry into the wait queues, and dequeuing from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;

use super::fair_queue::QueueEntry;
use super::gang;
use super::{DEQUEUE_TIMEOUT_MS, DequeueGuard, QueuedClaim, SERVED_WINDOW_MS, WaitQueue};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::key::PendingClaim;
use crate::admission::pool_registry::Pool;
use crate::admission::tenant::Tenant;
use crate::engine::PlacementFailure;
use crate::limits;
use crate::model::request_error::{ExhaustionReason, ObjectKind, RequestError, UnavailableReason};
use crate::model::{ClaimId, Millis, QueuedClaimView};

/// Number of tenants whose shares one dequeue refreshes, round robin.
const SHARES_REFRESHED_MAX: usize = 16;

impl ClaimDispatcher {
    /// Queues a claim with a ticket that has no shard left to try, if it may wait, or rejects it. Returns the
    /// duplicate that takes over the ticket, for the caller to route.
    pub(crate) fn queue_or_reject(
        &self,
        item: Box<PendingClaim>,
        rejection: RequestError,
        work: &mut EffectQueue,
    ) -> Option<Box<PendingClaim>> {
        if item.dequeue_guard().is_some() {
            return self.requeue_or_fall_back(item, &rejection, work);
        }
        let now_ms = self.clock.engine_ms();
        let reason = match rejection {
            RequestError::Exhausted(
                reason @ (ExhaustionReason::Pool | ExhaustionReason::NodeLocality | ExhaustionReason::Quota(_)),
            ) => reason,
            // The claim may be waiting already: workers that could hold it may register again.
            RequestError::Unsatisfiable if item.has_waited() => ExhaustionReason::Pool,
            rejection => return self.reject(item, rejection),
        };
        if item.is_wait_over(now_ms) {
            return self.reject(item, rejection);
        }
        self.enqueue(item, reason, now_ms, work)
    }

    /// Enters a claim into the queues that it may wait in.
    fn enqueue(
        &self,
        mut item: Box<PendingClaim>,
        reason: ExhaustionReason,
        now_ms: Millis,
        work: &mut EffectQueue,
    ) -> Option<Box<PendingClaim>> {
        let map = self.pools.load_full();
        let pools: SmallVec<[Arc<Pool>; 1]> = match reason {
            ExhaustionReason::Quota(_) => SmallVec::new(),
            _ => item.candidate_pools().iter().filter_map(|&number| map.by_number(number)).cloned().collect(),
        };
        let tenant = self.keys.tenants.get_or_insert(&item.id);
        if !item.has_waited() && is_full(&pools, &tenant) {
            return self.reject(item, RequestError::Unavailable(UnavailableReason::Overloaded));
        }
        let due_ms = item.reset_for_wait(now_ms, || self.keys.ids.next_arrival());
        let queued = Arc::new(new_queued_claim(&item, pools, tenant, reason));
        let (id, ticket) = (item.id.clone(), item.ticket);
        *queued.lock() = Some(item);
        let Some((not_waiting, deadlines)) = self.keys.mark_queued(&id, ticket, &queued) else {
            // Somebody else released the ticket. That cannot happen, but if it does the claim must not wait with it.
            return queued.take().and_then(|item| self.reject(item, RequestError::DeadlineExceeded));
        };
        for duplicate in not_waiting {
            duplicate.reply.reject(RequestError::KEY_ALREADY_WAITED_FOR);
        }
        for due_ms in deadlines {
            self.schedule_duplicate_expiry(due_ms, &id);
        }
        self.insert_into_queues(&queued, due_ms);
        self.remove_if_closed(&queued, work);
        if queued.lock().as_ref().is_some_and(|item| item.reply.is_abandoned()) {
            self.cancel_queued(&id, work);
        }
        for pool in &queued.pools {
            self.dispatch_next(pool, work);
        }
        if queued.pools.is_empty() {
            self.dispatch_next_for_quota(&queued.tenant, work);
        }
        self.request_reservation(&queued, work);
        None
    }

    /// Enters a newcomer into the queue of a pool whose queue is not settled: claims that rank before it are tried
    /// first.
    pub(crate) fn enqueue_newcomer(&self, pool: &Arc<Pool>, mut item: Box<PendingClaim>, work: &mut EffectQueue) {
        let now_ms = self.clock.engine_ms();
        let due_ms = item.reset_for_wait(now_ms, || self.keys.ids.next_arrival()).max(now_ms + SERVED_WINDOW_MS);
        let tenant = self.keys.tenants.get_or_insert(&item.id);
        let pools = SmallVec::from_iter([Arc::clone(pool)]);
        let claim = new_queued_claim(&item, pools, tenant, ExhaustionReason::Pool);
        let queued = Arc::new(QueuedClaim { newcomer: true, ..claim });
        *queued.lock() = Some(item);
        self.insert_into_queues(&queued, due_ms);
        self.remove_if_closed(&queued, work);
        work.push(Effect::DispatchNext(Arc::clone(pool)));
    }

    pub(super) fn insert_into_queues(&self, queued: &Arc<QueuedClaim>, due_ms: Millis) {
        if queued.pools.is_empty() {
            let mut waited = self.wait_queues.quota_queues();
            waited.insert(queued.tenant.number, Arc::clone(&queued.tenant));
        }
        for queue in queued.queues() {
            queue.insert_if_absent(queue_entry(queued, due_ms));
        }
    }

    /// Removes a claim from the queue of one pool because somebody else has taken it: nothing follows from that for
    /// claims that request the same. Whoever requeues it enters it here again; who settles it has nothing to do.
    pub(super) fn skip_taken(queue: &WaitQueue, queued: &QueuedClaim) {
        let removed = queue.remove(queued);
        // It may have been requeued before it was removed.
        if let Some(entry) = removed
            && queued.lock().is_some()
        {
            queue.insert_if_absent(entry);
        }
    }

    /// Requeues a dequeued claim that found no free capacity. A newcomer falls back to its other pools instead.
    fn requeue_or_fall_back(
        &self,
        mut item: Box<PendingClaim>,
        rejection: &RequestError,
        work: &mut EffectQueue,
    ) -> Option<Box<PendingClaim>> {
        let Some(guard) = item.take_dequeue_guard() else { return Some(item) };
        let (queued, pool) = (Arc::clone(&guard.queued), Arc::clone(&guard.pool));
        pool.wait_queue.mark_unplaceable(queued.request_class, guard.generation);
        if matches!(rejection, RequestError::Unavailable(_)) {
            pool.wait_queue.retry_on_tick.store(true, Ordering::Release);
        }
        if queued.newcomer {
            drop(guard);
            return self.try_next_pool(item, work);
        }
        let now_ms = self.clock.engine_ms();
        if matches!(rejection, RequestError::NotFound(_)) || queued.until_ms <= now_ms || item.reply.is_abandoned() {
            drop(guard);
            let rejection = if matches!(rejection, RequestError::NotFound(_)) {
                rejection.clone()
            } else {
                RequestError::Exhausted(queued.exhausted)
            };
            return self.reject(item, rejection);
        }
        let due_ms = item.reset_for_wait(now_ms, || queued.arrival);
        self.requeue(&queued, item, work);
        drop(guard);
        // Queues may have skipped the claim while it was dequeued here, or it was dequeued once more before the guard was
        // dropped, which removed it. If it is settled by now, it is skipped once more.
        for pool in &queued.pools {
            if pool.wait_queue.insert_if_absent(queue_entry(&queued, due_ms)) {
                work.push(Effect::DispatchNext(Arc::clone(pool)));
            }
        }
        self.request_reservation(&queued, work);
        None
    }

    /// Requeues a claim that was being tried, at its old arrival.
    fn requeue(&self, queued: &Arc<QueuedClaim>, item: Box<PendingClaim>, work: &mut EffectQueue) {
        let (id, ticket) = (item.id.clone(), item.ticket);
        let duplicates = self.keys.mark_queued(&id, ticket, queued);
        *queued.lock() = Some(item);
        if let Some((not_waiting, deadlines)) = duplicates {
            for duplicate in not_waiting {
                duplicate.reply.reject(RequestError::KEY_ALREADY_WAITED_FOR);
            }
            for due_ms in deadlines {
                self.schedule_duplicate_expiry(due_ms, &id);
            }
        }
        self.remove_if_closed(queued, work);
        if queued.lock().as_ref().is_some_and(|item| item.reply.is_abandoned()) {
            self.cancel_queued(&id, work);
        }
    }

    /// Routes a newcomer to its next pool after the queue of this pool had nothing for it.
    fn try_next_pool(&self, mut item: Box<PendingClaim>, work: &mut EffectQueue) -> Option<Box<PendingClaim>> {
        let pools = self.pools.load();
        if item.advance_pool(&pools) {
            return Some(item);
        }
        let rejection = item.rejection(&pools);
        self.queue_or_reject(item, rejection, work)
    }

    /// Dequeues claims until one is being tried or none is left.
    pub(crate) fn dispatch_next(&self, pool: &Arc<Pool>, work: &mut EffectQueue) {
        loop {
            let now_ms = self.clock.engine_ms();
            let (queued, generation) = match self.next_candidate(pool, now_ms) {
                NextCandidate::Busy => return,
                NextCandidate::Drained(newcomers) => {
                    for queued in newcomers {
                        let Some(mut item) = queued.take() else { continue };
                        queued.remove_from_queues();
                        // Claims that request the same were refused, or all capacity is reserved.
                        item.record_failure(PlacementFailure::Busy);
                        if let Some(item) = self.try_next_pool(item, work) {
                            self.route(item, work);
                        }
                    }
                    return;
                }
                NextCandidate::Candidate(queued, generation) => (queued, generation),
            };
            if queued.gang.is_some() {
                gang::offer_dequeue(pool, &queued, generation, now_ms);
                continue;
            }
            let Some(mut item) = queued.take() else {
                Self::skip_taken(&pool.wait_queue, &queued);
                pool.wait_queue.end_dequeue();
                continue;
            };
            item.set_dequeue_guard(DequeueGuard { pool: Arc::clone(pool), queued: Arc::clone(&queued), generation });
            if item.reply.is_abandoned() {
                self.reject_and_route_next(item, RequestError::DeadlineExceeded, work);
                continue;
            }
            item.restart_in_pool(pool, now_ms);
            if !may_fit_pool(pool, &item) {
                self.requeue_or_fall_back(item, &RequestError::Exhausted(queued.exhausted), work)
                    .into_iter()
                    .for_each(|item| self.route(item, work));
                continue;
            }
            if !queued.newcomer {
                self.keys.mark_unqueued(&mut item);
                if let Some(exceeded) = item.over_quota.take() {
                    drop(item.take_dequeue_guard());
                    self.enqueue(item, ExhaustionReason::Quota(exceeded), now_ms, work)
                        .into_iter()
                        .for_each(|item| self.route(item, work));
                    continue;
                }
            }
            self.route(item, work);
        }
    }

    fn next_candidate(&self, pool: &Arc<Pool>, now_ms: Millis) -> NextCandidate {
        let queue = &pool.wait_queue;
        let mut state = queue.lock();
        if state.dequeue_since_ms.is_some_and(|since| now_ms < since + DEQUEUE_TIMEOUT_MS) {
            return NextCandidate::Busy;
        }
        let total = pool.board.total();
        let from = state.share_cursor;
        for tenant in state.queue.tenants_after(from, SHARES_REFRESHED_MAX) {
            state.refresh_share(tenant, pool.number, &total);
            state.share_cursor = tenant;
        }
        // The share of the first claim's tenant must be current before the claim counts as first.
        for _ in 0..SHARES_REFRESHED_MAX {
            let Some(first) = state.queue.peek().map(|entry| entry.tenant) else { break };
            state.refresh_share(first, pool.number, &total);
            if state.queue.peek().is_some_and(|entry| entry.tenant == first) {
                break;
            }
        }
        let reserved_for = state.reserved_for;
        let next = match reserved_for {
            Some(arrival) => state.queue.peek_arrival(arrival),
            None => state.queue.peek(),
        };
        match next.map(|entry| Arc::clone(&entry.item)) {
            Some(queued) => {
                state.dequeue_since_ms = Some(now_ms);
                NextCandidate::Candidate(queued, state.generation)
            }
            None => {
                // Capacity reserved for a queued claim must not go to a newcomer.
                queue.published.set_dispatch_pending(reserved_for.is_some());
                NextCandidate::Drained(state.queue.newcomers().cloned().collect())
            }
        }
    }

    /// Retries claims that wait for the tenant's quota.
    pub(super) fn dispatch_next_for_quota(&self, tenant: &Arc<Tenant>, work: &mut EffectQueue) {
        let queue = &tenant.wait_queue;
        let now_ms = self.clock.engine_ms();
        if queue.lock().dequeue_since_ms.replace(now_ms).is_some() {
            // The current holder of the guard continues until nothing is left to try.
            return;
        }
        let guard = QuotaDequeueGuard(tenant);
        loop {
            let (queued, generation) = {
                let mut state = queue.lock();
                match state.queue.peek().map(|entry| Arc::clone(&entry.item)) {
                    Some(queued) => (queued, state.generation),
                    None => {
                        // In the same critical section: a claim that is queued from now on finds the guard free.
                        state.dequeue_since_ms = None;
                        std::mem::forget(guard);
                        return;
                    }
                }
            };
            if let Some(gang) = &queued.gang {
                queue.mark_unplaceable(queued.request_class, generation);
                gang.wake();
                continue;
            }
            let Some(mut item) = queued.take() else {
                // The taker is about to remove it from this queue too.
                drop(queue.remove(&queued));
                continue;
            };
            if item.reply.is_abandoned() {
                queued.remove_from_queues();
                self.reject_and_route_next(item, RequestError::DeadlineExceeded, work);
                continue;
            }
            self.keys.mark_unqueued(&mut item);
            if item.over_quota.take().is_some() {
                queue.mark_unplaceable(queued.request_class, generation);
                self.requeue(&queued, item, work);
                continue;
            }
            queued.remove_from_queues();
            self.restart_routing(item, now_ms, work);
        }
    }

    /// Restarts the search of a claim that waited, from its first pool.
    pub(super) fn restart_routing(&self, mut item: Box<PendingClaim>, now_ms: Millis, work: &mut EffectQueue) {
        let first = item.candidate_pools().iter().find_map(|&number| self.pools.load().by_number(number).cloned());
        match first {
            Some(pool) => {
                item.restart_in_pool(&pool, now_ms);
                self.route(item, work);
            }
            None => self.reject_and_route_next(item, RequestError::NotFound(ObjectKind::Pool), work),
        }
    }

    /// Retries claims of tenants that released quota.
    pub(crate) fn dispatch_quota_queues(&self, work: &mut EffectQueue) {
        while let Some(tenant) = self.keys.tenants.next_retry() {
            tenant.wait_queue.retry_all();
            self.dispatch_next_for_quota(&tenant, work);
        }
    }

    /// Number of claims that wait for their tenants' quotas.
    pub(crate) fn quota_waiting_len(&self) -> usize {
        self.wait_queues.quota_queues().values().map(|tenant| tenant.wait_queue.waiting()).sum()
    }

    /// View of the claim that is queued under a key.
    #[must_use]
    pub(crate) fn queued_view(&self, id: &ClaimId) -> Option<QueuedClaimView> {
        self.keys.queued_claim(id).map(|queued| self.view_waiting(id, &queued))
    }

    /// View of the queued gang that has this key among its members; the key itself is vacant meanwhile.
    #[must_use]
    pub(crate) fn queued_gang_view(&self, id: &ClaimId) -> Option<QueuedClaimView> {
        let queued = self.wait_queues.gangs().get(id).cloned()?;
        Some(self.view_waiting(id, &queued))
    }

    fn view_waiting(&self, id: &ClaimId, queued: &QueuedClaim) -> QueuedClaimView {
        // In the middle of a tick the cached time may be earlier than the arrival.
        let now_ms = self.clock.engine_now_ms().max(queued.since_ms);
        let positions = queued.queues().filter_map(|queue| queue.position(queued.arrival, now_ms));
        let (ahead, served) = positions.min().unwrap_or((0, 0));
        let estimate_ms = (served > 0).then(|| (ahead as u64 + 1) * 2 * SERVED_WINDOW_MS / served);
        QueuedClaimView {
            id: id.clone(),
            pools: queued.pools.iter().map(|pool| pool.name.clone()).collect(),
            reason: queued.exhausted.as_str(),
            priority: queued.priority,
            ahead: ahead as u64,
            waited_ms: now_ms.saturating_sub(queued.since_ms),
            left_ms: queued.until_ms.saturating_sub(now_ms),
            estimate_ms,
        }
    }
}

/// Right to retry the claims that wait for a tenant's quota. When a panic drops it, others can continue.
struct QuotaDequeueGuard<'a>(&'a Arc<Tenant>);

impl Drop for QuotaDequeueGuard<'_> {
    fn drop(&mut self) {
        self.0.wait_queue.lock().dequeue_since_ms = None;
        self.0.queue_retry();
    }
}

enum NextCandidate {
    Busy,
    /// No candidate is left; these newcomers do not wait.
    Drained(Vec<Arc<QueuedClaim>>),
    Candidate(Arc<QueuedClaim>, u64),
}

impl super::WaitQueueState {
    fn refresh_share(&mut self, tenant: u64, pool: u32, total: &crate::model::ResourceUsage) {
        if let Some(existing) = self.tenants.get(&tenant) {
            let share = existing.dominant_share(pool, total);
            self.queue.set_share(tenant, share);
        }
    }
}

fn queue_entry(queued: &Arc<QueuedClaim>, due_ms: Millis) -> QueueEntry<Arc<QueuedClaim>> {
    let QueuedClaim { arrival, priority, request_class, newcomer, .. } = **queued;
    let (tenant, item) = (queued.tenant.number, Arc::clone(queued));
    QueueEntry { arrival, priority, tenant, request_class, due_ms, newcomer, item }
}

fn new_queued_claim(
    item: &PendingClaim,
    pools: SmallVec<[Arc<Pool>; 1]>,
    tenant: Arc<Tenant>,
    reason: ExhaustionReason,
) -> QueuedClaim {
    let (arrival, since_ms) = item.queue_position().expect("a claim is reset before it is queued");
    QueuedClaim {
        item: parking_lot::Mutex::new(None),
        arrival,
        priority: item.spec().map_or(0, |spec| spec.priority),
        since_ms,
        until_ms: item.wait_until_ms().unwrap_or(since_ms),
        exhausted: reason,
        pools,
        tenant,
        newcomer: false,
        gang: None,
        request_class: match reason {
            ExhaustionReason::Quota(_) => item.quota_class(),
            _ => item.request_class(),
        },
        skipped: AtomicBool::new(false),
        seeking_reservation: AtomicBool::new(false),
    }
}

/// Whether as many claims wait already as may.
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

/// Returns false only if no shard of the pool can fit the claim in any of its stages.
fn may_fit_pool(pool: &Pool, item: &PendingClaim) -> bool {
    if item.pinned_worker().is_some() || item.reserved_shard(pool.number).is_some() {
        return true;
    }
    match pool.board.free() {
        None => pool.board.open_shards().next().is_some(),
        Some(free) => {
            let fits = |constraints| pool.board.open_shards().any(|shard| free.may_fit(shard, constraints));
            item.all_constraints().any(fits)
        }
    }
}
