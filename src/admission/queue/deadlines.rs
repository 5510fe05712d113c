//! Deadlines of claims that wait, and of duplicates of such claims.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::ArrivalNumber;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::EffectQueue;
use crate::admission::key::{DueClaim, PendingClaim};
use crate::model::request_error::{ExhaustionReason, RequestError};
use crate::model::{ClaimId, Millis};

/// Time between two looks at claims that may be starved, in milliseconds.
const STARVED_INTERVAL_MS: Millis = 250;

/// Deadlines that one tick handles. The rest follows on the next.
const DUE_MAX: usize = 16_384;

/// Times at which keys are looked at, because the wait of a claim or of a duplicate may be over.
#[derive(Debug, Default)]
pub(super) struct WaitDeadlines(Mutex<BTreeMap<(Millis, ArrivalNumber), ClaimId>>);

impl WaitDeadlines {
    /// Adds a time at which a key is looked at. `number`: tells it apart from others of the same time.
    pub(super) fn add(&self, due_ms: Millis, number: ArrivalNumber, id: &ClaimId) {
        self.0.lock().insert((due_ms, number), id.clone());
    }

    /// Removes a time that was added.
    pub(super) fn remove(&self, due_ms: Millis, number: ArrivalNumber) {
        self.0.lock().remove(&(due_ms, number));
    }

    fn take_due(&self, now_ms: Millis) -> Option<ClaimId> {
        let mut deadlines = self.0.lock();
        let first = deadlines.first_entry().filter(|first| first.key().0 <= now_ms)?;
        Some(first.remove())
    }
}

/// Replies to one of many callers. A panic in its waker must not keep the others from being answered.
pub(super) fn catch_panic(answer: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(answer)).is_err() {
        tracing::error!("a caller panicked while it was being answered");
    }
}

impl ClaimDispatcher {
    /// Advances the queues to `now_ms`: rejects claims whose time is over, lets those that waited for preferred nodes
    /// accept any, and searches for claims that could not be searched for before.
    pub(crate) fn tick_wait_queues(&self, now_ms: Millis, work: &mut EffectQueue) {
        for _ in 0..DUE_MAX {
            let Some(id) = self.wait_queues.deadlines.take_due(now_ms) else { break };
            self.handle_due_key(&id, now_ms, work);
        }
        self.recheck(work);
        self.search_quotas(work);
        let is_check_due = self.wait_queues.starved_check_ms.load(Ordering::Relaxed) <= now_ms;
        if is_check_due {
            self.wait_queues.starved_check_ms.store(now_ms + STARVED_INTERVAL_MS, Ordering::Relaxed);
            self.protect_starved(now_ms);
            self.evict_own(now_ms, work);
        }
        for pool in self.pools.load_full().iter().filter(|pool| pool.wait_queue.waiting() > 0) {
            self.tick_queue(pool, now_ms, work);
            if is_check_due {
                self.reserve_for_starved(pool, now_ms, work);
            }
        }
    }

    /// Ends the waits of a key that are over at `now_ms`, or lets its claim accept other nodes.
    pub(super) fn handle_due_key(&self, id: &ClaimId, now_ms: Millis, work: &mut EffectQueue) {
        let (due, expired) = self.keys.take_due(id, now_ms);
        match due {
            Some(DueClaim::Expired(item)) => catch_panic(|| self.expire(item, work)),
            Some(DueClaim::Widened(item)) => catch_panic(|| {
                if let Some(item) = self.widen(item, now_ms, work) {
                    self.route(item, work);
                }
            }),
            None => {}
        }
        for duplicate in expired {
            catch_panic(|| self.reply_rejected(duplicate, RequestError::KEY_ALREADY_WAITED_FOR));
        }
    }

    /// Looks at a key when the wait of a duplicate is over.
    pub(crate) fn add_duplicate_deadline(&self, due_ms: Millis, id: &ClaimId) {
        self.wait_queues.deadlines.add(due_ms, self.keys.ids.next_arrival(), id);
    }

    /// Rejects a claim whose wait is over, with the reason that holds now.
    fn expire(&self, item: Box<PendingClaim>, work: &mut EffectQueue) {
        crate::reached!("queue: a claim has waited for too long");
        let exhausted = self.keys.queued_claim(&item.id).map_or(ExhaustionReason::Pool, |(_, exhausted)| exhausted);
        self.reject_and_route_next(item, RequestError::Exhausted(exhausted), work);
    }
}
