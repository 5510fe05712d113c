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
        let now_ms = self.clock.engine_now_ms();
        let pools = self.pools.load();
        let pools = queued.pools.iter().filter_map(|&number| pools.by_number(number));
        let positions = pools.filter_map(|pool| pool.wait_queue.lock().position(queued.arrival, now_ms));
        Some(self.view_waiting(&queued, exhausted, positions.min()))
    }

    /// View of the gang that waits and has this key among its members; the key itself is vacant meanwhile.
    #[must_use]
    pub(crate) fn queued_gang_view(&self, id: &ClaimId) -> Option<QueuedClaimView> {
        let gang = self.wait_queues.gangs.lock().get(id).cloned()?;
        Some(self.view_gang(id, &gang, self.gangs_ahead(&gang)))
    }

    /// View of a claim that waits. `position`: numbers ahead of it and served lately in its best queue, if it is in one.
    pub(super) fn view_waiting(
        &self,
        queued: &QueuedClaim,
        exhausted: ExhaustionReason,
        position: Option<(usize, u64)>,
    ) -> QueuedClaimView {
        // In the middle of a tick the cached time may be earlier than the arrival.
        let now_ms = self.clock.engine_now_ms().max(queued.since_ms);
        let pools = self.pools.load();
        let pools = queued.pools.iter().filter_map(|&number| pools.by_number(number));
        let (ahead, served) = position.unwrap_or((0, 0));
        QueuedClaimView {
            id: queued.id.clone(),
            pools: match exhausted {
                ExhaustionReason::Quota(_) => Vec::new(),
                _ => pools.map(|pool| pool.name.clone()).collect(),
            },
            reason: exhausted.as_str(),
            priority: queued.priority,
            ahead: ahead as u64,
            queued_at_ms: self.clock.unix_of(queued.since_ms),
            waited_ms: now_ms.saturating_sub(queued.since_ms),
            left_ms: queued.until_ms.saturating_sub(now_ms),
            estimate_ms: (served > 0).then(|| (ahead as u64 + 1) * 2 * SERVED_WINDOW_MS / served),
        }
    }

    /// View of a member of a gang that waits.
    pub(super) fn view_gang(&self, id: &ClaimId, gang: &WaitingGang, ahead: u64) -> QueuedClaimView {
        let now_ms = self.clock.engine_now_ms().max(gang.since_ms);
        QueuedClaimView {
            id: id.clone(),
            pools: gang.pools.iter().map(|pool| pool.name.clone()).collect(),
            reason: gang.exhausted.as_str(),
            priority: gang.priority,
            ahead,
            queued_at_ms: self.clock.unix_of(gang.since_ms),
            waited_ms: now_ms.saturating_sub(gang.since_ms),
            left_ms: gang.until_ms.saturating_sub(now_ms),
            estimate_ms: None,
        }
    }

    /// Number of gangs ahead of this one in its best queue.
    pub(super) fn gangs_ahead(&self, gang: &WaitingGang) -> u64 {
        let ahead = gang.pools.iter().map(|pool| pool.wait_queue.lock().gangs_ahead(gang.arrival)).min();
        ahead.unwrap_or(0) as u64
    }
}
