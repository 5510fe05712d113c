//! Gangs that wait. A gang has one entry for all its members, in the queues of all pools that they may use. When it is
//! dequeued, its driver is woken and tries the gang as a whole; the members bypass the queue meanwhile. Their keys
//! stay vacant until then.
//!
//! A gang needs much capacity at once, and capacity becomes free piece by piece. So when a gang has been at the head
//! of a queue for [`limits::RESERVE_AFTER_MS`], free capacity is reserved for it until it is served or gives up.

use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::dequeue::is_full;
use super::{DequeueGuard, QueuedClaim};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::pool_registry::Pool;
use crate::limits;
use crate::model::request_error::ExhaustionReason;
use crate::model::{ClaimId, Millis, ResourceVector};

/// Wakes the driver of a queued gang.
#[derive(Debug, Default)]
pub(super) struct GangWaker {
    notify: Notify,
    guard: Mutex<Option<DequeueGuard>>,
    /// Whether the gang was dequeued and not requeued since.
    busy: AtomicBool,
    /// Total request: number of workers in exclusive pools, resources in shared ones.
    request: (usize, ResourceVector),
    /// Engine time before which the gang is not tried again, and the length of that pause.
    backoff: Mutex<(Millis, Millis)>,
}

/// Shortest and longest pause between two attempts. Capacity that a failed attempt frees would otherwise trigger the
/// next one.
const BACKOFF_MS: [Millis; 2] = [20, 1_000];

impl GangWaker {
    /// Wakes the driver, which checks what has changed.
    pub(super) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Whether the pools have enough free resources in total.
    fn may_fit(&self, pools: &[Arc<Pool>]) -> bool {
        let (workers, amounts) = self.request;
        let (mut idle, mut free, mut shared) = (0, ResourceVector::default(), false);
        for pool in pools {
            match pool.board.free() {
                None => {
                    idle += pool.shards.iter().map(|handle| pool.board.idle(handle.shard.shard) as usize).sum::<usize>()
                }
                Some(capacity) => {
                    shared = true;
                    free = free.saturating_add(capacity.total(pool.board.open_shards()));
                }
            }
        }
        if shared { amounts.fits_in(free) } else { idle >= workers }
    }

    /// Whether the gang pauses after a failed attempt.
    fn is_backing_off(&self, now_ms: Millis) -> bool {
        self.backoff.lock().0 > now_ms
    }

    /// Starts a pause after a failed attempt; twice as long as the last one.
    fn back_off(&self, now_ms: Millis) {
        let mut pause = self.backoff.lock();
        let pause_ms = (pause.1 * 2).clamp(BACKOFF_MS[0], BACKOFF_MS[1]);
        *pause = (now_ms + pause_ms, pause_ms);
    }

    fn take(&self) -> Option<DequeueGuard> {
        self.guard.lock().take()
    }
}

/// Offers the dequeue guard of `pool` to the gang's driver.
pub(super) fn offer_dequeue(pool: &Arc<Pool>, queued: &Arc<QueuedClaim>, generation: u64, now_ms: Millis) {
    let Some(waker) = &queued.gang else { return };
    let is_pausing = waker.is_backing_off(now_ms);
    if is_pausing || !waker.may_fit(&queued.pools) {
        pool.wait_queue.mark_unplaceable(queued.request_class, generation);
        if is_pausing {
            pool.wait_queue.retry_on_tick.store(true, Ordering::Release);
        }
        reserve_for(pool, queued, now_ms);
        pool.wait_queue.end_dequeue();
        return;
    }
    if waker.busy.swap(true, Ordering::AcqRel) {
        queued.skipped.store(true, Ordering::Release);
        pool.wait_queue.mark_unplaceable(queued.request_class, generation);
        pool.wait_queue.end_dequeue();
        return;
    }
    let guard = DequeueGuard { pool: Arc::clone(pool), queued: Arc::clone(queued), generation };
    *waker.guard.lock() = Some(guard);
    waker.wake();
}

/// Reserves free capacity for the head of the queue, if it has waited for long.
fn reserve_for(pool: &Pool, queued: &QueuedClaim, now_ms: Millis) {
    if now_ms.saturating_sub(queued.since_ms) >= limits::RESERVE_AFTER_MS {
        let mut state = pool.wait_queue.lock();
        if state.queue.first() == Some(queued.arrival) {
            state.reserved_for = Some(queued.arrival);
        }
    }
}

/// Gang in the wait queues; leaves them when dropped.
#[derive(Debug)]
pub struct QueuedGang {
    queued: Arc<QueuedClaim>,
    members: Vec<ClaimId>,
    dispatch: Arc<ClaimDispatcher>,
}

impl Drop for QueuedGang {
    fn drop(&mut self) {
        self.queued.remove_from_queues();
        let mut gangs = self.dispatch.wait_queues.gangs();
        for member in &self.members {
            // Another gang may wait for the same key by now.
            if gangs.get(member).is_some_and(|queued| queued.arrival == self.queued.arrival) {
                gangs.remove(member);
            }
        }
        drop(gangs);
        drop(self.queued.gang.as_ref().and_then(|waker| waker.take()));
        for pool in &self.queued.pools {
            self.dispatch.with_work(|work| self.dispatch.dispatch_next(pool, work));
        }
    }
}

impl QueuedGang {
    /// Enters a gang with at least one member into the queues of its pools, or into that for its tenant's quota if
    /// `reason` says so. Returns `None` if a queue is full.
    #[must_use]
    pub fn new(
        dispatch: &Arc<ClaimDispatcher>,
        members: Vec<ClaimId>,
        priority: u16,
        pools: &[Arc<Pool>],
        request: (usize, ResourceVector),
        reason: ExhaustionReason,
        wait_ms: Range<Millis>,
    ) -> Option<Self> {
        let pools: SmallVec<[Arc<Pool>; 1]> = if matches!(reason, ExhaustionReason::Quota(_)) {
            SmallVec::new()
        } else {
            pools.iter().cloned().collect()
        };
        let tenant = dispatch.keys.tenants.get_or_insert(members.first()?);
        if is_full(&pools, &tenant) {
            return None;
        }
        let arrival = dispatch.keys.ids.next_arrival();
        let queued = Arc::new(QueuedClaim {
            item: Mutex::new(None),
            arrival,
            priority,
            since_ms: wait_ms.start,
            until_ms: wait_ms.end,
            exhausted: reason,
            pools,
            tenant,
            newcomer: false,
            gang: Some(Box::new(GangWaker { request, ..GangWaker::default() })),
            // Unique: whether this gang fits says nothing about other claims.
            request_class: arrival.get().wrapping_mul(0x9e37_79b9_7f4a_7c15),
            skipped: AtomicBool::new(false),
            seeking_reservation: AtomicBool::new(false),
        });
        dispatch.wait_queues.gangs().extend(members.iter().map(|member| (member.clone(), Arc::clone(&queued))));
        dispatch.insert_into_queues(&queued, queued.until_ms);
        dispatch.with_work(|work| {
            for pool in &queued.pools {
                dispatch.dispatch_next(pool, work);
            }
            if queued.pools.is_empty() {
                dispatch.dispatch_next_for_quota(&queued.tenant, work);
            }
        });
        Some(Self { queued, members, dispatch: Arc::clone(dispatch) })
    }

    /// Waits until the gang may be tried. Returns whether to try it; false at its deadline and on shutdown.
    pub async fn wait_until_dequeued(&self) -> bool {
        let Some(waker) = &self.queued.gang else { return false };
        loop {
            if self.queued.until_ms <= self.dispatch.clock.engine_ms() || self.dispatch.is_stopping() {
                return false;
            }
            let closing = self.queued.pools.iter().any(|pool| pool.is_closing());
            if closing || waker.busy.load(Ordering::Acquire) {
                return true;
            }
            waker.notify.notified().await;
            if self.queued.pools.is_empty() {
                return self.queued.until_ms > self.dispatch.clock.engine_ms();
            }
        }
    }

    /// Requeues the gang after an attempt that found too little capacity.
    pub fn requeue(&self) {
        let Some(waker) = &self.queued.gang else { return };
        let guard = waker.take();
        waker.busy.store(false, Ordering::Release);
        let Some(guard) = guard else { return };
        let pool = Arc::clone(&guard.pool);
        waker.back_off(self.dispatch.clock.engine_ms());
        pool.wait_queue.mark_unplaceable(self.queued.request_class, guard.generation);
        reserve_for(&pool, &self.queued, self.dispatch.clock.engine_ms());
        drop(guard);
        if self.queued.skipped.swap(false, Ordering::AcqRel) {
            for other in &self.queued.pools {
                other.wait_queue.retry_all();
                other.wait_queue.retry_on_tick.store(true, Ordering::Release);
            }
        }
        self.dispatch.with_work(|work| self.dispatch.dispatch_next(&pool, work));
    }

    /// Whether the gang is queued for what `reason` names.
    #[must_use]
    pub fn waits_for(&self, reason: ExhaustionReason) -> bool {
        matches!(reason, ExhaustionReason::Quota(_)) == self.queued.pools.is_empty()
    }
}
