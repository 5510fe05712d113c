//! Ends of waits for which no deadline is responsible: the caller has gone, the pool is deleted, the service stops.

use super::QueuedClaim;
use super::deadlines::catch_panic;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::EffectQueue;
use crate::admission::key::PendingClaim;
use crate::admission::pool_registry::Pool;
use crate::model::ClaimId;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};

impl ClaimDispatcher {
    /// Removes a claim whose caller has gone, if it is being placed or waits.
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

    /// Removes a claim whose caller has gone, if it stands still.
    pub(crate) fn cancel_queued(&self, id: &ClaimId, work: &mut EffectQueue) {
        if let Some(item) = self.keys.take_waiting(id, None, |item| item.reply.is_abandoned()) {
            self.reject_and_route_next(item, RequestError::DeadlineExceeded, work);
        }
    }

    /// Removes all claims from the queue of a pool that is being deleted.
    pub(crate) fn close_wait_queue(&self, pool: &Pool, work: &mut EffectQueue) {
        let claims = pool.wait_queue.lock().close();
        self.refuse_all(claims, work);
        self.close_gangs(pool, work);
    }

    /// Removes all claims from all queues before the service stops.
    pub(crate) fn close_wait_queues(&self, work: &mut EffectQueue) {
        for pool in self.pools.load_full().iter() {
            self.close_wait_queue(pool, work);
        }
    }

    fn refuse_all(&self, claims: Vec<std::sync::Arc<QueuedClaim>>, work: &mut EffectQueue) {
        for queued in claims {
            // One that is being tried finds out when its search has ended.
            if let Some(item) = self.take_if_ended(&queued) {
                catch_panic(|| self.reject_and_route_next(item, self.closed_rejection(), work));
            }
        }
    }

    /// Takes a claim that stands still and can no longer be served anywhere.
    pub(super) fn take_if_ended(&self, queued: &QueuedClaim) -> Option<Box<PendingClaim>> {
        let pools = self.pools.load();
        let is_closed = |number: &u32| pools.by_number(*number).is_none_or(|pool| pool.wait_queue.lock().is_closed);
        let is_ended = self.is_draining() || queued.pools.iter().all(is_closed);
        self.keys.take_waiting(&queued.id, Some(queued.ticket), |_| is_ended)
    }

    /// Rejection of a claim that can no longer be served anywhere.
    pub(super) fn closed_rejection(&self) -> RequestError {
        if self.is_draining() {
            RequestError::Unavailable(UnavailableReason::Stopping)
        } else {
            RequestError::NotFound(ObjectKind::Pool)
        }
    }
}
