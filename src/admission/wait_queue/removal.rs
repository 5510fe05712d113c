//! How claims leave the lines without a worker: their time is over, their caller has gone, their pool is deleted, the service stops.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{QueuedClaim, WaitQueue};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::pool_registry::Pool;
use crate::admission::tenants::Tenant;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::model::{ClaimId, Millis};
use crate::shard::PendingClaim;

/// Claims whose time has come that one tick deals with in one line.
const DUE_MAX: usize = 16_384;

/// Answers one of many callers: if it panics when it is woken, the others are answered all the same.
fn catch_panic(answer: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(answer)).is_err() {
        tracing::error!("a caller panicked when it was answered");
    }
}

impl ClaimDispatcher {
    /// Time has passed: those whose time is over are refused, those who waited for preferred nodes take any.
    pub(crate) fn tick_wait_queues(&self, now_ms: Millis) {
        self.dispatch_quota_queues();
        for pool in self.pools.load_full().iter() {
            let line = &pool.wait_queue;
            if line.waiting() == 0 {
                continue;
            }
            self.expire_due(line, now_ms);
            if line.retry_on_tick.swap(false, Ordering::AcqRel) {
                line.retry_all();
            }
            if line.is_dispatch_pending() {
                self.dispatch_next(pool);
            }
        }
        let waited: Vec<Arc<Tenant>> = {
            let mut lines = self.wait_queues.quota_queues();
            lines.retain(|_, tenant| tenant.wait_queue.waiting() > 0);
            lines.values().cloned().collect()
        };
        for tenant in waited {
            self.expire_due(&tenant.wait_queue, now_ms);
        }
        loop {
            let id = {
                let mut alarms = self.wait_queues.duplicates_due();
                match alarms.first_entry() {
                    Some(first) if first.key().0 <= now_ms => first.remove(),
                    _ => break,
                }
            };
            for joiner in self.keys.take_expired_duplicates(&id, now_ms) {
                catch_panic(|| {
                    joiner.reply.send(Err(RequestError::KEY_ALREADY_WAITED_FOR));
                });
            }
        }
    }

    /// Joiners of this key have to be looked at then.
    pub(crate) fn schedule_duplicate_expiry(&self, due_ms: Millis, id: &ClaimId) {
        let number = self.wait_queues.next_arrival();
        let mut alarms = self.wait_queues.duplicates_due();
        alarms.insert((due_ms, number), id.clone());
    }

    fn expire_due(&self, line: &WaitQueue, now_ms: Millis) {
        let due: Vec<Arc<QueuedClaim>> = line.lock().queue.due(now_ms, DUE_MAX).cloned().collect();
        for parked in due {
            if let Some(gang) = &parked.gang {
                gang.wake();
            }
            // One that has its turn is looked at when it comes back.
            let Some(mut item) = parked.take() else { continue };
            parked.remove_from_queues();
            if item.is_preferred_only() {
                // It has waited for its preferred nodes for long enough.
                self.keys.mark_unqueued(&mut item);
                catch_panic(|| self.restart_routing(item, now_ms));
            } else {
                catch_panic(|| self.reject_and_route_next(item, RequestError::Exhausted(parked.exhausted)));
            }
        }
    }

    /// The caller of a claim that may be waiting has gone.
    pub(crate) fn cancel_queued(&self, id: &ClaimId) {
        let Some(parked) = self.keys.queued_claim(id) else { return };
        let item = {
            let mut slot = parked.lock();
            if slot.as_ref().is_some_and(|item| item.reply.is_abandoned()) { slot.take() } else { None }
        };
        if let Some(item) = item {
            parked.remove_from_queues();
            self.reject_and_route_next(item, RequestError::DeadlineExceeded);
        }
    }

    /// Nobody can wait for this pool any more.
    pub(crate) fn close_wait_queue(&self, pool: &Pool) {
        for parked in pool.wait_queue.drain() {
            if let Some(gang) = &parked.gang {
                gang.wake();
            }
            let others = parked.pools.iter().any(|other| other.number != pool.number && !other.is_closing());
            if !others && let Some(item) = parked.take() {
                parked.remove_from_queues();
                catch_panic(|| self.reject_and_route_next(item, RequestError::NotFound(ObjectKind::Pool)));
            }
        }
        // Those who wait for their tenants' quotas stand in no pool's line.
        let tenants: Vec<Arc<Tenant>> = self.wait_queues.quota_queues().values().cloned().collect();
        for parked in tenants.iter().flat_map(|tenant| tenant.wait_queue.queued_claims()) {
            match &parked.gang {
                Some(gang) => gang.wake(),
                None => catch_panic(|| self.remove_if_closed(&parked)),
            }
        }
    }

    /// Takes a claim out that can be served nowhere any more. Its lines may have been closed while it had a turn, or was on its
    /// way into them: whoever closed them did not find it.
    pub(super) fn remove_if_closed(&self, parked: &QueuedClaim) {
        let (draining, of_quota) = (self.is_draining(), parked.pools.is_empty());
        if !draining && !of_quota && !parked.pools.iter().all(|pool| pool.is_closing()) {
            return;
        }
        let refusal = if draining {
            RequestError::Unavailable(UnavailableReason::Stopping)
        } else {
            RequestError::NotFound(ObjectKind::Pool)
        };
        let item = {
            let mut slot = parked.lock();
            let leaves = |item: &PendingClaim| draining || !of_quota || self.has_no_pool(item);
            if slot.as_deref().is_some_and(leaves) { slot.take() } else { None }
        };
        if let Some(item) = item {
            parked.remove_from_queues();
            self.reject_and_route_next(item, refusal);
        }
    }

    /// Nobody can wait any more: the service is about to stop.
    pub(crate) fn close_wait_queues(&self) {
        let quota: Vec<Arc<Tenant>> = {
            let lines = self.wait_queues.quota_queues();
            lines.values().cloned().collect()
        };
        let pools = self.pools.load_full();
        let lines = pools.iter().map(|pool| &pool.wait_queue).chain(quota.iter().map(|tenant| &tenant.wait_queue));
        for parked in lines.flat_map(WaitQueue::drain) {
            if let Some(gang) = &parked.gang {
                gang.wake();
            }
            if let Some(item) = parked.take() {
                parked.remove_from_queues();
                catch_panic(|| {
                    self.reject_and_route_next(item, RequestError::Unavailable(UnavailableReason::Stopping))
                });
            }
        }
    }
}
