//! How claims leave the lines without a worker: their time is over, their caller has gone, their pool is deleted, the service stops.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Line, Parked};
use crate::admission::dispatch::Dispatch;
use crate::admission::pools::Pool;
use crate::admission::tenants::Tenant;
use crate::model::rejection::{Refusal, Unavailable, What};
use crate::model::{ClaimId, Millis};
use crate::shard::ClaimItem;

/// Claims whose time has come that one tick deals with in one line.
const DUE_MAX: usize = 16_384;

/// Answers one of many callers: if it panics when it is woken, the others are answered all the same.
fn apart(answer: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(answer)).is_err() {
        tracing::error!("a caller panicked when it was answered");
    }
}

impl Dispatch {
    /// Time has passed: those whose time is over are refused, those who waited for preferred nodes take any.
    pub(crate) fn tick_lines(&self, now_ms: Millis) {
        self.pump_quotas();
        for pool in self.pools.load_full().iter() {
            let line = &pool.line;
            if line.waiting() == 0 {
                continue;
            }
            self.look_at_due(line, now_ms);
            if line.again.swap(false, Ordering::AcqRel) {
                line.retry();
            }
            if line.is_unsettled() {
                self.pump(pool);
            }
        }
        let waited: Vec<Arc<Tenant>> = {
            let mut lines = self.waiters.quota_lines();
            lines.retain(|_, tenant| tenant.line.waiting() > 0);
            lines.values().cloned().collect()
        };
        for tenant in waited {
            self.look_at_due(&tenant.line, now_ms);
        }
        loop {
            let id = {
                let mut alarms = self.waiters.joiners_due();
                match alarms.first_entry() {
                    Some(first) if first.key().0 <= now_ms => first.remove(),
                    _ => break,
                }
            };
            for joiner in self.keys.late_joiners(&id, now_ms) {
                apart(|| {
                    joiner.reply.send(Err(Refusal::WAITED_FOR));
                });
            }
        }
    }

    /// Joiners of this key have to be looked at then.
    pub(crate) fn wake_joiners_at(&self, due_ms: Millis, id: &ClaimId) {
        let number = self.waiters.arrive();
        let mut alarms = self.waiters.joiners_due();
        alarms.insert((due_ms, number), id.clone());
    }

    fn look_at_due(&self, line: &Line, now_ms: Millis) {
        let due: Vec<Arc<Parked>> = line.lock().queue.due(now_ms, DUE_MAX).cloned().collect();
        for parked in due {
            if let Some(gang) = &parked.gang {
                gang.wake();
            }
            // One that has its turn is looked at when it comes back.
            let Some(mut item) = parked.take() else { continue };
            parked.leave();
            if item.is_near_only() {
                // It has waited for its preferred nodes for long enough.
                self.keys.unpark(&mut item);
                apart(|| self.route_anew(item, now_ms));
            } else {
                apart(|| self.give_up(item, Refusal::Exhausted(parked.why)));
            }
        }
    }

    /// The caller of a claim that may be waiting has gone.
    pub(crate) fn cancel(&self, id: &ClaimId) {
        let Some(parked) = self.keys.parked(id) else { return };
        let item = {
            let mut slot = parked.lock();
            if slot.as_ref().is_some_and(|item| item.reply.is_gone()) { slot.take() } else { None }
        };
        if let Some(item) = item {
            parked.leave();
            self.give_up(item, Refusal::DeadlineExceeded);
        }
    }

    /// Nobody can wait for this pool any more.
    pub(crate) fn close_line(&self, pool: &Pool) {
        for parked in pool.line.drain() {
            if let Some(gang) = &parked.gang {
                gang.wake();
            }
            let others = parked.pools.iter().any(|other| other.number != pool.number && !other.is_closing());
            if !others && let Some(item) = parked.take() {
                parked.leave();
                apart(|| self.give_up(item, Refusal::NotFound(What::Pool)));
            }
        }
        // Those who wait for their tenants' quotas stand in no pool's line.
        let tenants: Vec<Arc<Tenant>> = self.waiters.quota_lines().values().cloned().collect();
        for parked in tenants.iter().flat_map(|tenant| tenant.line.all()) {
            match &parked.gang {
                Some(gang) => gang.wake(),
                None => apart(|| self.leave_closed(&parked)),
            }
        }
    }

    /// Takes a claim out that can be served nowhere any more. Its lines may have been closed while it had a turn, or was on its
    /// way into them: whoever closed them did not find it.
    pub(super) fn leave_closed(&self, parked: &Parked) {
        let (draining, of_quota) = (self.is_draining(), parked.pools.is_empty());
        if !draining && !of_quota && !parked.pools.iter().all(|pool| pool.is_closing()) {
            return;
        }
        let refusal =
            if draining { Refusal::Unavailable(Unavailable::Stopping) } else { Refusal::NotFound(What::Pool) };
        let item = {
            let mut slot = parked.lock();
            let leaves = |item: &ClaimItem| draining || !of_quota || self.has_no_pool(item);
            if slot.as_deref().is_some_and(leaves) { slot.take() } else { None }
        };
        if let Some(item) = item {
            parked.leave();
            self.give_up(item, refusal);
        }
    }

    /// Nobody can wait any more: the service is about to stop.
    pub(crate) fn close_lines(&self) {
        let quota: Vec<Arc<Tenant>> = {
            let lines = self.waiters.quota_lines();
            lines.values().cloned().collect()
        };
        let pools = self.pools.load_full();
        let lines = pools.iter().map(|pool| &pool.line).chain(quota.iter().map(|tenant| &tenant.line));
        for parked in lines.flat_map(Line::drain) {
            if let Some(gang) = &parked.gang {
                gang.wake();
            }
            if let Some(item) = parked.take() {
                parked.leave();
                apart(|| self.give_up(item, Refusal::Unavailable(Unavailable::Stopping)));
            }
        }
    }
}
