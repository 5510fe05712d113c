//! Gangs that wait: one place for all of a gang, in the lines of all pools that its members may use. When its turn comes, whoever
//! drives the gang is told and tries it as a whole; its members pass those who wait meanwhile. Its keys stay free until then.
//!
//! A gang needs much at once, and what comes free comes one by one. So when one has been the first of a line for
//! [`limits::RESERVE_AFTER_MS`], what comes free there is kept for it, until it is served or its time is over.

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
use crate::model::{ClaimId, Millis};

/// How the driver of a gang is told.
#[derive(Debug, Default)]
pub(super) struct GangWaker {
    notify: Notify,
    turn: Mutex<Option<DequeueGuard>>,
    /// It has a turn, or is being told of it.
    busy: AtomicBool,
    /// What it needs in all: workers, or cores, memory, places and thousandths of cards.
    needs: (usize, [u64; 4]),
    /// Not to be tried before, in engine time; and how long after the last attempt that was.
    backoff: Mutex<(Millis, Millis)>,
}

/// Shortest and longest time between two attempts. What a failed one gives back is room that came, for itself too.
const BACKOFF_MS: [Millis; 2] = [20, 1_000];

impl GangWaker {
    /// There is something to look at.
    pub(super) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Whether the pools have as much as it needs in all.
    fn may_fit(&self, pools: &[Arc<Pool>]) -> bool {
        let (workers, amounts) = self.needs;
        let (mut idle, mut left, mut shared) = (0, [0_u64; 4], false);
        for pool in pools {
            match pool.board.free() {
                None => {
                    idle += pool.shards.iter().map(|port| pool.board.idle(port.shard.shard) as usize).sum::<usize>()
                }
                Some(rooms) => {
                    shared = true;
                    let more = rooms.total(pool.board.open_shards());
                    left.iter_mut().zip(more).for_each(|(left, more)| *left = left.saturating_add(more));
                }
            }
        }
        if shared { left.iter().zip(amounts).all(|(left, wants)| *left >= wants) } else { idle >= workers }
    }

    /// Whether its last attempt was only just.
    fn is_backing_off(&self, now_ms: Millis) -> bool {
        self.backoff.lock().0 > now_ms
    }

    /// An attempt has failed.
    fn back_off(&self, now_ms: Millis) {
        let mut rests = self.backoff.lock();
        let rest_ms = (rests.1 * 2).clamp(BACKOFF_MS[0], BACKOFF_MS[1]);
        *rests = (now_ms + rest_ms, rest_ms);
    }

    fn take(&self) -> Option<DequeueGuard> {
        self.turn.lock().take()
    }
}

/// It is the gang's turn in the line of `pool`.
pub(super) fn offer_turn(pool: &Arc<Pool>, parked: &Arc<QueuedClaim>, generation: u64, now_ms: Millis) {
    let Some(call) = &parked.gang else { return };
    let resting = call.is_backing_off(now_ms);
    if resting || !call.may_fit(&parked.pools) {
        pool.wait_queue.mark_unplaceable(parked.request_class, generation);
        if resting {
            pool.wait_queue.retry_on_tick.store(true, Ordering::Release);
        }
        reserve_for(pool, parked, now_ms);
        pool.wait_queue.end_dequeue();
        return;
    }
    if call.busy.swap(true, Ordering::AcqRel) {
        parked.skipped.store(true, Ordering::Release);
        pool.wait_queue.mark_unplaceable(parked.request_class, generation);
        pool.wait_queue.end_dequeue();
        return;
    }
    let turn = DequeueGuard { pool: Arc::clone(pool), queued: Arc::clone(parked), generation };
    *call.turn.lock() = Some(turn);
    call.wake();
}

/// What comes free is kept for the first of the line, if it has waited for long.
fn reserve_for(pool: &Pool, parked: &QueuedClaim, now_ms: Millis) {
    if now_ms.saturating_sub(parked.since_ms) >= limits::RESERVE_AFTER_MS {
        let mut state = pool.wait_queue.lock();
        if state.queue.first() == Some(parked.arrival) {
            state.reserved_for = Some(parked.arrival);
        }
    }
}

/// The place of a gang in the lines. It leaves them when it is dropped.
#[derive(Debug)]
pub struct GangPlace {
    parked: Arc<QueuedClaim>,
    members: Vec<ClaimId>,
    dispatch: Arc<ClaimDispatcher>,
}

impl Drop for GangPlace {
    fn drop(&mut self) {
        self.parked.remove_from_queues();
        let mut gangs = self.dispatch.wait_queues.gangs();
        for member in &self.members {
            // Another gang may wait for the same key since.
            if gangs.get(member).is_some_and(|parked| parked.arrival == self.parked.arrival) {
                gangs.remove(member);
            }
        }
        drop(gangs);
        drop(self.parked.gang.as_ref().and_then(|call| call.take()));
        for pool in &self.parked.pools {
            self.dispatch.dispatch_next(pool);
        }
    }
}

impl GangPlace {
    /// A place for a gang of these members, of which there is one at least, in the lines of these pools; in that for its tenant's quota if it lacks
    /// that. None: too many wait there already.
    #[must_use]
    pub fn new(
        dispatch: &Arc<ClaimDispatcher>,
        members: Vec<ClaimId>,
        priority: u16,
        pools: &[Arc<Pool>],
        needs: (usize, [u64; 4]),
        why: ExhaustionReason,
        waits_ms: Range<Millis>,
    ) -> Option<Self> {
        let pools: SmallVec<[Arc<Pool>; 1]> =
            if matches!(why, ExhaustionReason::Quota(_)) { SmallVec::new() } else { pools.iter().cloned().collect() };
        let tenant = dispatch.keys.tenants.get_or_insert(members.first()?);
        if is_full(&pools, &tenant) {
            return None;
        }
        let arrival = dispatch.wait_queues.next_arrival();
        let parked = Arc::new(QueuedClaim {
            item: Mutex::new(None),
            arrival,
            priority,
            since_ms: waits_ms.start,
            until_ms: waits_ms.end,
            exhausted: why,
            pools,
            tenant,
            newcomer: false,
            gang: Some(Box::new(GangWaker { needs, ..GangWaker::default() })),
            // Like no other: whether it fits says nothing of anybody else.
            request_class: arrival.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            skipped: AtomicBool::new(false),
            seeking_reservation: AtomicBool::new(false),
        });
        dispatch.wait_queues.gangs().extend(members.iter().map(|member| (member.clone(), Arc::clone(&parked))));
        dispatch.insert_into_queues(&parked, parked.until_ms);
        for pool in &parked.pools {
            dispatch.dispatch_next(pool);
        }
        if parked.pools.is_empty() {
            dispatch.dispatch_next_for_quota(&parked.tenant);
        }
        Some(Self { parked, members, dispatch: Arc::clone(dispatch) })
    }

    /// Waits until it may be tried. False: its time is over.
    pub async fn wait_for_turn(&self) -> bool {
        let Some(call) = &self.parked.gang else { return false };
        loop {
            if self.parked.until_ms <= self.dispatch.clock.engine_ms() || self.dispatch.is_stopping() {
                return false;
            }
            let closing = self.parked.pools.iter().any(|pool| pool.is_closing());
            if closing || call.busy.load(Ordering::Acquire) {
                return true;
            }
            call.notify.notified().await;
            if self.parked.pools.is_empty() {
                return self.parked.until_ms > self.dispatch.clock.engine_ms();
            }
        }
    }

    /// It was tried, and there was not enough room for all of it.
    pub fn requeue(&self) {
        let Some(call) = &self.parked.gang else { return };
        let turn = call.take();
        call.busy.store(false, Ordering::Release);
        let Some(turn) = turn else { return };
        let pool = Arc::clone(&turn.pool);
        call.back_off(self.dispatch.clock.engine_ms());
        pool.wait_queue.mark_unplaceable(self.parked.request_class, turn.generation);
        reserve_for(&pool, &self.parked, self.dispatch.clock.engine_ms());
        drop(turn);
        if self.parked.skipped.swap(false, Ordering::AcqRel) {
            for other in &self.parked.pools {
                other.wait_queue.retry_all();
                other.wait_queue.retry_on_tick.store(true, Ordering::Release);
            }
        }
        self.dispatch.dispatch_next(&pool);
    }

    /// Whether this is what its place is for.
    #[must_use]
    pub fn waits_for(&self, why: ExhaustionReason) -> bool {
        matches!(why, ExhaustionReason::Quota(_)) == self.parked.pools.is_empty()
    }
}
