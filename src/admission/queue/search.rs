//! Searches for claims that stand still: they mend whatever no worker that comes free would.

use std::sync::Arc;

use super::QueuedClaim;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::pool_registry::Pool;

/// Claims that are searched for in one go because quota came back; the rest follows on the next tick.
const QUOTA_SEARCHES_MAX: usize = 16;

impl ClaimDispatcher {
    /// Searches for a claim once more, if it stands still.
    pub(crate) fn search_again(&self, queued: &QueuedClaim, work: &mut EffectQueue) {
        let Some(item) = self.keys.begin_search(queued) else { return };
        let now_ms = self.clock.engine_ms();
        if let Some(item) = self.restart_search(item, &self.pools.load(), now_ms) {
            self.route(item, work);
        }
    }

    /// Searches for the claims that the quotas of tenants have kept back and may allow now, the best-ranked first.
    pub(crate) fn search_quotas(&self, work: &mut EffectQueue) {
        while work.quota_searches < QUOTA_SEARCHES_MAX {
            let Some(tenant) = self.keys.tenants.next_retry() else { return };
            let headroom = tenant.begin_quota_search();
            let pools = self.pools.load();
            let waiting = tenant.waiting_pools();
            let firsts = waiting.iter().filter_map(|&number| pools.by_number(number)).filter_map(|pool| {
                let queue = pool.wait_queue.lock();
                queue.queue.first_quota_short(tenant.number, &headroom).cloned()
            });
            let first = firsts.min_by_key(|claim| (std::cmp::Reverse(claim.priority), claim.arrival));
            if let Some(claim) = first {
                work.quota_searches += 1;
                work.push(Effect::Search(claim));
                work.push(Effect::SearchQuotas);
                return;
            }
        }
    }

    /// Judges all claims that wait for a pool anew: its specification has changed.
    pub(crate) fn search_all(&self, pool: &Pool, work: &mut EffectQueue) {
        let claims: Vec<Arc<QueuedClaim>> = pool.wait_queue.lock().queue.ranked(usize::MAX, |_, _| true);
        for claim in claims {
            work.push(Effect::Search(claim));
        }
    }

    /// Searches for the claims for which a shard could not be asked.
    pub(super) fn recheck(&self, work: &mut EffectQueue) {
        let due = std::mem::take(&mut *self.wait_queues.rechecks.lock());
        for claim in due {
            work.push(Effect::Search(claim));
        }
    }
}
