//! Views of claims that wait, for queries.

use super::pool_queue::SERVED_WINDOW_MS;
use super::{QueuedClaim, WaitingGang};
use crate::admission::dispatch::ClaimDispatcher;
use crate::model::request_error::ExhaustionReason;
use crate::model::{ClaimId, QueuedClaimView};

impl ClaimDispatcher {
    /// View of the claim that waits under a key.
    #[must_use]
    pub(crate) fn queued_view(&self, id: &ClaimId) -> Option<QueuedClaimView> {
        let (queued, exhausted) = self.keys.queued_claim(id)?;
        Some(self.view_waiting(&queued, exhausted))
    }

    /// View of the gang that waits and has this key among its members; the key itself is vacant meanwhile.
    #[must_use]
    pub(crate) fn queued_gang_view(&self, id: &ClaimId) -> Option<QueuedClaimView> {
        let gang = self.wait_queues.gangs.lock().get(id).cloned()?;
        Some(self.view_gang(id, &gang))
    }

    fn view_waiting(&self, queued: &QueuedClaim, exhausted: ExhaustionReason) -> QueuedClaimView {
        // In the middle of a tick the cached time may be earlier than the arrival.
        let now_ms = self.clock.engine_now_ms().max(queued.since_ms);
        let pools = self.pools.load();
        let pools: Vec<_> = queued.pools.iter().filter_map(|&number| pools.by_number(number)).collect();
        let positions = pools.iter().filter_map(|pool| pool.wait_queue.lock().position(queued.arrival, now_ms));
        let (ahead, served) = positions.min().unwrap_or((0, 0));
        QueuedClaimView {
            id: queued.id.clone(),
            pools: match exhausted {
                ExhaustionReason::Quota(_) => Vec::new(),
                _ => pools.iter().map(|pool| pool.name.clone()).collect(),
            },
            reason: exhausted.as_str(),
            priority: queued.priority,
            ahead: ahead as u64,
            waited_ms: now_ms.saturating_sub(queued.since_ms),
            left_ms: queued.until_ms.saturating_sub(now_ms),
            estimate_ms: (served > 0).then(|| (ahead as u64 + 1) * 2 * SERVED_WINDOW_MS / served),
        }
    }

    fn view_gang(&self, id: &ClaimId, gang: &WaitingGang) -> QueuedClaimView {
        let now_ms = self.clock.engine_now_ms().max(gang.since_ms);
        let ahead = gang.pools.iter().map(|pool| pool.wait_queue.lock().gangs_ahead(gang.arrival)).min();
        QueuedClaimView {
            id: id.clone(),
            pools: gang.pools.iter().map(|pool| pool.name.clone()).collect(),
            reason: gang.exhausted.as_str(),
            priority: gang.priority,
            ahead: ahead.unwrap_or(0) as u64,
            waited_ms: now_ms.saturating_sub(gang.since_ms),
            left_ms: gang.until_ms.saturating_sub(now_ms),
            estimate_ms: None,
        }
    }
}
