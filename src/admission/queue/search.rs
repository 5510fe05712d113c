//! Searches for claims that stand still: they mend whatever no worker that comes free would.

use std::sync::Arc;

use super::QueuedClaim;
use super::entry::{note_tried, renew_needs};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::pool_registry::Pool;

/// Claims that are searched for in one go because quota came back; the rest follows on the next tick.
const QUOTA_SEARCHES_MAX: usize = 16;

/// Claims that one tick searches for because they were noted for it.
const RECHECKS_MAX: usize = 64;

impl ClaimDispatcher {
    /// Searches for a claim once more, if it stands still.
    pub(crate) fn search_again(&self, queued: &QueuedClaim, work: &mut EffectQueue) {
        let Some(item) = self.keys.begin_search(queued) else { return };
        let (pools, now_ms) = (self.pools.load(), self.clock.engine_ms());
        // In the queues in which it is by now.
        item.queued().into_iter().for_each(|queued| note_tried(&pools, queued));
        if let Some(item) = self.restart_search(item, &pools, now_ms, work) {
            self.route(item, work);
        }
    }

    /// Searches for the claims that the quotas of tenants have kept back and allow now, the best-ranked first.
    pub(crate) fn search_quotas(&self, work: &mut EffectQueue) {
        while work.quota_searches < QUOTA_SEARCHES_MAX {
            let Some(tenant) = self.keys.tenants.next_retry() else { return };
            tenant.begin_quota_search();
            let pools = self.pools.load();
            let waiting = tenant.waiting_pools();
            let pools = || waiting.iter().filter_map(|&number| pools.by_number(number));
            let allows = |claim: &QueuedClaim| tenant.may_charge(&claim.amounts(), claim.charge_rank());
            let taken = pools().find_map(|pool| pool.wait_queue.lock().queue.take_quota_short(tenant.number, allows));
            if let Some(claim) = taken {
                work.quota_searches += 1;
                work.push(Effect::Search(claim));
                work.push(Effect::SearchQuotas);
                // Others may be allowed beside it.
                tenant.queue_retry();
                return;
            }
            if pools().any(|pool| pool.wait_queue.lock().queue.has_quota_short(tenant.number)) && !tenant.keep_refused()
            {
                tenant.queue_retry();
            }
        }
    }

    /// Judges all claims that wait for a pool anew, on the next ticks: its specification has changed.
    pub(crate) fn search_all(&self, pool: &Pool) {
        let claims: Vec<Arc<QueuedClaim>> = pool.wait_queue.lock().queue.claims().cloned().collect();
        let mut rechecks = self.wait_queues.rechecks.lock();
        rechecks.extend(claims.into_iter().map(|claim| (claim.arrival, claim)));
    }

    /// Judges the claims of a namespace anew, on the next ticks, that select their pools by labels: pools have changed.
    pub(crate) fn reselect_pools(&self, namespace: &str) {
        let map = self.pools.load_full();
        let pools: Vec<Arc<Pool>> =
            map.of_namespace(namespace).filter(|pool| pool.wait_queue.waiting() > 0).cloned().collect();
        for pool in &pools {
            let queue = pool.wait_queue.lock();
            let claims = queue.queue.claims().filter(|claim| claim.selects_pools).cloned().collect::<Vec<_>>();
            drop(queue);
            self.wait_queues.rechecks.lock().extend(claims.into_iter().map(|claim| (claim.arrival, claim)));
        }
        self.with_work(|work| self.reselect_for_gangs(&map, &pools, work));
    }

    /// Searches for claims that were noted for it.
    pub(super) fn recheck(&self, work: &mut EffectQueue) {
        for _ in 0..RECHECKS_MAX {
            let Some((_, claim)) = self.wait_queues.rechecks.lock().pop_first() else { return };
            let pools = self.pools.load();
            claim.pools.iter().filter_map(|&number| pools.by_number(number)).for_each(|pool| renew_needs(pool, &claim));
            work.push(Effect::Search(claim));
        }
    }
}
