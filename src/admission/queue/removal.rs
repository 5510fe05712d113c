//! Removal of claims from the queues without a worker: their time is over, the caller has gone, the pool is deleted,
//! the service stops.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{QueuedClaim, WaitQueue};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::EffectQueue;
use crate::admission::key::PendingClaim;
use crate::admission::pool_registry::Pool;
use crate::admission::tenant::Tenant;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::model::{ClaimId, Millis};

/// Maximum number of due claims that one tick handles in one queue.
const DUE_MAX: usize = 16_384;

/// Replies to one of many callers. A panic in its waker must not keep the others from being answered.
fn catch_panic(answer: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(answer)).is_err() {
        tracing::error!("a caller panicked while it was being answered");
    }
}

impl ClaimDispatcher {
    /// Advances the queues to `now_ms`: rejects claims whose time is over, and lets those that waited for preferred
    /// nodes accept any.
    pub(crate) fn tick_wait_queues(&self, now_ms: Millis, work: &mut EffectQueue) {
        self.dispatch_quota_queues(work);
        for pool in self.pools.load_full().iter() {
            let queue = &pool.wait_queue;
            if queue.waiting() == 0 {
                continue;
            }
            self.expire_due(queue, now_ms, work);
            if queue.retry_on_tick.swap(false, Ordering::AcqRel) {
                queue.retry_all();
            }
            if queue.is_dispatch_pending() {
                self.dispatch_next(pool, work);
            }
        }
        let waited: Vec<Arc<Tenant>> = {
            let mut queues = self.wait_queues.quota_queues();
            queues.retain(|_, tenant| tenant.wait_queue.waiting() > 0);
            queues.values().cloned().collect()
        };
        for tenant in waited {
            self.expire_due(&tenant.wait_queue, now_ms, work);
        }
        loop {
            let id = {
                let mut duplicates_due = self.wait_queues.duplicates_due();
                match duplicates_due.first_entry() {
                    Some(first) if first.key().0 <= now_ms => first.remove(),
                    _ => break,
                }
            };
            for duplicate in self.keys.take_expired_duplicates(&id, now_ms) {
                catch_panic(|| {
                    duplicate.reply.reject(RequestError::KEY_ALREADY_WAITED_FOR);
                });
            }
        }
    }

    /// Schedules a check for duplicates of this key that give up at `due_ms`.
    pub(crate) fn schedule_duplicate_expiry(&self, due_ms: Millis, id: &ClaimId) {
        let number = self.keys.ids.next_arrival();
        let mut duplicates_due = self.wait_queues.duplicates_due();
        duplicates_due.insert((due_ms, number), id.clone());
    }

    fn expire_due(&self, queue: &WaitQueue, now_ms: Millis, work: &mut EffectQueue) {
        let due: Vec<Arc<QueuedClaim>> = queue.lock().queue.due(now_ms, DUE_MAX).cloned().collect();
        for queued in due {
            if let Some(gang) = &queued.gang {
                gang.wake();
            }
            let Some(mut item) = queued.take() else {
                // A dequeued claim is checked when it is requeued. Claims that wait for quotas are requeued in place.
                if !queued.pools.is_empty() && queued.gang.is_none() {
                    Self::skip_taken(queue, &queued);
                }
                continue;
            };
            queued.remove_from_queues();
            if item.is_preferred_only() {
                // The time for preferred nodes is over.
                self.keys.mark_unqueued(&mut item);
                catch_panic(|| self.restart_routing(item, now_ms, work));
            } else {
                catch_panic(|| self.reject_and_route_next(item, RequestError::Exhausted(queued.exhausted), work));
            }
        }
    }

    /// Removes a claim whose caller has gone, if it is being placed or queued.
    pub(crate) fn cancel(&self, id: &ClaimId, work: &mut EffectQueue) {
        match self.keys.abandoned_call(id) {
            Some((ticket, shard)) => {
                if let Some(handle) = self.pools.load().shard(shard) {
                    handle.cancel(ticket);
                }
            }
            None => self.cancel_queued(id, work),
        }
    }

    /// Removes a claim whose caller has gone, if it is queued.
    pub(crate) fn cancel_queued(&self, id: &ClaimId, work: &mut EffectQueue) {
        let Some(queued) = self.keys.queued_claim(id) else { return };
        let item = {
            let mut slot = queued.lock();
            if slot.as_ref().is_some_and(|item| item.reply.is_abandoned()) { slot.take() } else { None }
        };
        if let Some(item) = item {
            queued.remove_from_queues();
            self.reject_and_route_next(item, RequestError::DeadlineExceeded, work);
        }
    }

    /// Removes all claims from the queue of a pool that is being deleted.
    pub(crate) fn close_wait_queue(&self, pool: &Pool, work: &mut EffectQueue) {
        // Dropped outside the lock, which they take.
        let requests = std::mem::take(&mut pool.wait_queue.lock().reservation_requests);
        drop(requests);
        for queued in pool.wait_queue.drain() {
            if let Some(gang) = &queued.gang {
                gang.wake();
            }
            let has_open_pool = queued.pools.iter().any(|other| other.number != pool.number && !other.is_closing());
            if !has_open_pool && let Some(item) = queued.take() {
                queued.remove_from_queues();
                catch_panic(|| self.reject_and_route_next(item, RequestError::NotFound(ObjectKind::Pool), work));
            }
        }
        // Claims that wait for their tenants' quotas are in no queue of a pool.
        let tenants: Vec<Arc<Tenant>> = self.wait_queues.quota_queues().values().cloned().collect();
        for queued in tenants.iter().flat_map(|tenant| tenant.wait_queue.queued_claims()) {
            match &queued.gang {
                Some(gang) => gang.wake(),
                None => catch_panic(|| self.remove_if_closed(&queued, work)),
            }
        }
    }

    /// Removes a claim that can no longer be served anywhere. Its queues may have been closed while it was dequeued or
    /// being queued, so that closing did not find it.
    pub(super) fn remove_if_closed(&self, queued: &QueuedClaim, work: &mut EffectQueue) {
        let (draining, waits_for_quota) = (self.is_draining(), queued.pools.is_empty());
        if !draining && !waits_for_quota && !queued.pools.iter().all(|pool| pool.is_closing()) {
            return;
        }
        let rejection = if draining {
            RequestError::Unavailable(UnavailableReason::Stopping)
        } else {
            RequestError::NotFound(ObjectKind::Pool)
        };
        let item = {
            let mut slot = queued.lock();
            let leaves = |item: &PendingClaim| draining || !waits_for_quota || self.has_no_pool(item);
            if slot.as_deref().is_some_and(leaves) { slot.take() } else { None }
        };
        if let Some(item) = item {
            queued.remove_from_queues();
            self.reject_and_route_next(item, rejection, work);
        }
    }

    /// Removes all claims from all queues before the service stops.
    pub(crate) fn close_wait_queues(&self, work: &mut EffectQueue) {
        let quota: Vec<Arc<Tenant>> = {
            let queues = self.wait_queues.quota_queues();
            queues.values().cloned().collect()
        };
        let pools = self.pools.load_full();
        let queues = pools.iter().map(|pool| &pool.wait_queue).chain(quota.iter().map(|tenant| &tenant.wait_queue));
        for queued in queues.flat_map(WaitQueue::drain) {
            if let Some(gang) = &queued.gang {
                gang.wake();
            }
            if let Some(item) = queued.take() {
                queued.remove_from_queues();
                catch_panic(|| {
                    self.reject_and_route_next(item, RequestError::Unavailable(UnavailableReason::Stopping), work)
                });
            }
        }
    }
}
