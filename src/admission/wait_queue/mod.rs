//! Claims that wait: for room in a pool, or for their tenant's quota.
//!
//! Each pool has a [`Line`], each tenant one for its quota. A claim that found no room is *parked*: it stands in the line of each pool
//! that it may be taken from, and whoever takes it out of its [`QueuedClaim`] has it, so one of them does. When a shard has something to
//! give (a release, a registration, ...) it says so after it published that, and the line is looked at: the next claim gets
//! its *turn*, goes the way of any claim in that pool, and is granted, or is back at its place with its shape marked as
//! having no room. One turn at a time, so that nobody passes; when nothing is left to try the line is *settled*, and whatever room a
//! newcomer finds then is of no use to anybody who waits. While it is not, newcomers stand in the line too, if only until
//! that look is over.
//!
//! No wake-up is lost (`Q05`): a shard publishes first and looks then whether anybody waits; a claim stands in the line first, and
//! is then tried once more, unless one of its shape just was.

mod claim_wait;
mod demand;
mod dequeue;
mod fair_queue;
mod gang;
mod removal;
mod reservation;

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

use smallvec::SmallVec;

pub use self::fair_queue::{ArrivalNumber, FairQueue, QueueEntry};
pub use self::gang::GangPlace;
pub use self::reservation::{CapacityReservation, ReservationRequest};
use crate::admission::pool_registry::Pool;
use crate::admission::tenants::Tenant;
use crate::model::request_error::ExhaustionReason;
use crate::model::{ClaimId, Millis};
use crate::shard::PendingClaim;

/// A turn that takes longer holds nobody up any more: its shard does not run.
const DEQUEUE_TIMEOUT_MS: Millis = 10;

/// How a claim waits.
#[derive(Debug)]
pub struct WaitState {
    /// Until when, in engine time.
    pub until_ms: Millis,
    /// Until when only its preferred nodes will do; 0: any will.
    pub preferred_until_ms: Millis,
    /// When it was asked for: with what is left until its deadline, how long it waited is what it asked for.
    pub since_ms: Millis,
    /// Its place among all that were ever parked; 0: it was not.
    pub arrival: ArrivalNumber,
    /// It is its turn in the line of the pool that it is being tried in.
    pub turn: Option<Box<DequeueGuard>>,
    /// It is of a gang that has its turn.
    pub gang_at_head: bool,
    /// A worker is kept for it.
    pub reservation: Option<CapacityReservation>,
}

/// The right of one claim of a line to be tried there. When it is dropped the line goes on; and unless the claim was put back
/// before, it waits nowhere any more.
#[derive(Debug)]
pub struct DequeueGuard {
    pool: Arc<Pool>,
    queued: Arc<QueuedClaim>,
    /// [`State::generation`] when it began.
    generation: u64,
}

impl Drop for DequeueGuard {
    fn drop(&mut self) {
        if self.queued.gang.is_none() && self.queued.lock().is_none() {
            self.queued.remove_from_queues();
        }
        self.pool.wait_queue.end_dequeue();
    }
}

/// A claim that stands in lines.
#[derive(Debug)]
pub struct QueuedClaim {
    item: Mutex<Option<Box<PendingClaim>>>,
    /// Its place in all of them.
    pub arrival: ArrivalNumber,
    /// Its priority.
    pub priority: u16,
    /// When it began to wait.
    pub since_ms: Millis,
    /// When it is refused.
    pub until_ms: Millis,
    /// What it would be refused with.
    pub exhausted: ExhaustionReason,
    /// The pools in whose lines it stands; none: it waits for the quota of `tenant`.
    pub pools: SmallVec<[Arc<Pool>; 1]>,
    /// Its tenant.
    pub tenant: Arc<Tenant>,
    /// It does not wait: it is a newcomer that must not pass those who do.
    pub newcomer: bool,
    /// It is a gang's place: whoever drives that is told of its turn.
    gang: Option<Box<gang::GangWaker>>,
    /// What it asks for, as a hash.
    request_class: u64,
    /// Another of its lines came to it while it had a turn.
    skipped: AtomicBool,
    /// A worker to be kept for it is being looked for.
    seeking_reservation: AtomicBool,
}

impl QueuedClaim {
    /// Wins it. Only one does.
    pub fn take(&self) -> Option<Box<PendingClaim>> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<PendingClaim>>> {
        self.item.lock()
    }

    /// The lines in which it stands.
    fn queues(&self) -> impl Iterator<Item = &WaitQueue> {
        let quota = self.pools.is_empty().then_some(&self.tenant.wait_queue);
        self.pools.iter().map(|pool| &pool.wait_queue).chain(quota)
    }

    /// It stands in no line any more.
    fn remove_from_queues(&self) {
        self.queues().for_each(|line| drop(line.remove(self.arrival)));
    }
}

/// What all lines share.
#[derive(Debug, Default)]
pub struct WaitQueues {
    arrivals: AtomicU64,
    /// Tenants of whose claims some wait for their quota.
    quota_queues: Mutex<HashMap<u64, Arc<Tenant>>>,
    /// Members of gangs that wait, for those who ask: their keys are free.
    gangs: Mutex<HashMap<ClaimId, Arc<QueuedClaim>>>,
    /// When those who joined keys that are waited for give up.
    duplicates_due: Mutex<BTreeMap<(Millis, ArrivalNumber), ClaimId>>,
}

impl WaitQueues {
    fn next_arrival(&self) -> ArrivalNumber {
        self.arrivals.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn quota_queues(&self) -> MutexGuard<'_, HashMap<u64, Arc<Tenant>>> {
        self.quota_queues.lock()
    }

    fn gangs(&self) -> MutexGuard<'_, HashMap<ClaimId, Arc<QueuedClaim>>> {
        self.gangs.lock()
    }

    fn duplicates_due(&self) -> MutexGuard<'_, BTreeMap<(Millis, ArrivalNumber), ClaimId>> {
        self.duplicates_due.lock()
    }
}

/// What waits for one pool, or for one tenant's quota.
#[derive(Debug, Default)]
pub struct WaitQueue {
    /// Who stands in it, also while they have a turn.
    waiting: AtomicUsize,
    /// There may be room for somebody who waits, and it is not known yet for whom.
    dispatch_pending: AtomicBool,
    /// A shard could not be asked: the next tick tries again.
    retry_on_tick: AtomicBool,
    state: Mutex<WaitQueueState>,
}

#[derive(Debug, Default)]
struct WaitQueueState {
    queue: FairQueue<Arc<QueuedClaim>>,
    /// Grows whenever room may have come.
    generation: u64,
    /// Since when somebody has a turn; none: nobody.
    dequeue_since_ms: Option<Millis>,
    /// In a shared pool, the one for which a worker is kept because it is large.
    starved: Option<ArrivalNumber>,
    /// What comes free is for this one alone.
    reserved_for: Option<ArrivalNumber>,
    /// Tenants of those that wait, for their shares.
    tenants: HashMap<u64, Arc<Tenant>>,
    /// Whose share was looked at last.
    share_cursor: u64,
    /// Turns that ended in a grant within this window of time, and in the one before.
    served: [u64; 2],
    window_ms: Millis,
}

/// How long served claims are counted, for estimates.
const SERVED_WINDOW_MS: Millis = 30_000;

impl WaitQueue {
    /// Whether anybody waits here. After whatever might end that was made visible.
    #[must_use]
    pub fn has_waiters(&self) -> bool {
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether somebody who waits may have room just now.
    #[must_use]
    pub fn is_dispatch_pending(&self) -> bool {
        self.dispatch_pending.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, WaitQueueState> {
        self.state.lock()
    }

    /// A turn is over, however it was.
    fn end_dequeue(&self) {
        self.lock().dequeue_since_ms = None;
        self.dispatch_pending.store(true, Ordering::Release);
    }

    /// There was no room for claims of this shape; unless some came since `generation`.
    fn mark_unplaceable(&self, shape: u64, generation: u64) {
        let mut state = self.lock();
        if state.generation == generation {
            state.queue.mark_unplaceable(shape);
        }
    }

    /// There may be room that was not there before.
    pub fn retry_all(&self) {
        let mut state = self.lock();
        state.queue.clear_unplaceable();
        state.generation += 1;
        self.dispatch_pending.store(!state.queue.is_empty(), Ordering::Release);
    }

    /// Somebody stands in it from now on.
    fn insert(&self, waiter: QueueEntry<Arc<QueuedClaim>>) {
        let mut state = self.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let tenant = &waiter.item.tenant;
        state.tenants.entry(tenant.number).or_insert_with(|| Arc::clone(tenant));
        state.queue.insert(waiter);
        self.dispatch_pending.store(true, Ordering::Release);
        drop(state);
        fence(Ordering::SeqCst);
    }

    fn remove(&self, arrival: ArrivalNumber) -> Option<QueueEntry<Arc<QueuedClaim>>> {
        let mut state = self.lock();
        let removed = state.queue.remove(arrival)?;
        state.starved.take_if(|large| *large == arrival);
        if state.reserved_for.take_if(|kept_for| *kept_for == arrival).is_some() {
            state.queue.clear_unplaceable();
            self.retry_on_tick.store(true, Ordering::Release);
        }
        if state.queue.waiting_of(removed.tenant) == 0 {
            state.tenants.remove(&removed.tenant);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Some(removed)
    }

    /// Everybody leaves.
    fn drain(&self) -> Vec<Arc<QueuedClaim>> {
        let mut state = self.lock();
        let all: Vec<_> = state.queue.drain().into_iter().map(|waiter| waiter.item).collect();
        state.tenants.clear();
        self.waiting.fetch_sub(all.len(), Ordering::SeqCst);
        all
    }

    /// The place of one that waits, and how many were served here in a minute.
    fn position(&self, arrival: ArrivalNumber, now_ms: Millis) -> Option<(usize, u64)> {
        let mut state = self.lock();
        let ahead = state.queue.count_ahead(arrival)?;
        state.rotate_window(now_ms);
        Some((ahead, state.served.iter().sum()))
    }

    /// A claim that had waited was granted.
    pub fn record_served(&self, now_ms: Millis) {
        let mut state = self.lock();
        state.rotate_window(now_ms);
        state.served[0] += 1;
    }
}

impl WaitQueueState {
    fn rotate_window(&mut self, now_ms: Millis) {
        let passed = now_ms.saturating_sub(self.window_ms) / SERVED_WINDOW_MS;
        if passed > 0 {
            self.served = [0, if passed == 1 { self.served[0] } else { 0 }];
            self.window_ms = now_ms - now_ms % SERVED_WINDOW_MS;
        }
    }
}
