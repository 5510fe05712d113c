//! Wait queues: claims that wait for capacity in a pool, or for their tenant's quota.
//!
//! Each pool has a [`WaitQueue`], and each tenant one for its quota. A claim without free capacity enters the queue of
//! each candidate pool. Whoever takes it out of its [`QueuedClaim`] owns it, so exactly one does. When a shard has
//! free capacity (a release, a registration, ...) it notifies the queue after publishing it. The next claim is
//! *dequeued*, searches that pool like any claim, and is granted or requeued with its request class marked as
//! unplaceable. One claim is dequeued at a time, in the order of the queue ([`FairQueue`]); one that does not fit at
//! present does not hold up those behind it, until capacity is reserved for it. When nothing is left to try the queue
//! is *settled*: capacity that a newcomer finds then is of no use to any queued claim. Until then newcomers are queued
//! too, if only for the rest of that scan.
//!
//! No wake-up is lost (`Q05`): a shard publishes first and then checks for queued claims; a claim is queued first and
//! then tried once more, unless its request class has just been tried.

mod claim_wait;
mod demand;
mod dequeue;
mod fair_queue;
mod gang;
mod removal;
mod reservation_request;

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use smallvec::SmallVec;

pub use self::fair_queue::{ArrivalNumber, FairQueue, QueueEntry};
pub use self::gang::QueuedGang;
pub use self::reservation_request::{CapacityReservation, ReservationRequest};
use crate::admission::key::PendingClaim;
use crate::admission::lock_order::{self, HeldLock, LockLevel};
use crate::admission::pool_registry::Pool;
use crate::admission::tenant::Tenant;
use crate::engine::ReservationId;
use crate::model::request_error::ExhaustionReason;
use crate::model::{ClaimId, Millis};
use crate::shard::QueueState;

/// Time after which a dequeued claim no longer blocks the queue: its shard does not run.
const DEQUEUE_TIMEOUT_MS: Millis = 10;

/// Waiting state of a pending claim.
#[derive(Debug, Default)]
pub struct WaitState {
    /// Engine time until which the claim waits, if it may wait.
    pub until_ms: Option<Millis>,
    /// Engine time until which only preferred nodes are acceptable; `None` accepts any.
    pub preferred_until_ms: Option<Millis>,
    /// Engine time of the request. Time waited plus time left equals the requested wait.
    pub since_ms: Millis,
    /// Arrival number among all queued claims, once the claim was queued.
    pub arrival: Option<ArrivalNumber>,
    /// Guard of the queue that the claim was dequeued from, while it is being tried.
    pub dequeue_guard: Option<Box<DequeueGuard>>,
    /// Whether the claim belongs to a gang that was dequeued.
    pub gang_at_head: bool,
    /// Worker that is reserved for the claim.
    pub reservation: Option<CapacityReservation>,
}

/// Right of one claim to be tried in the pool whose queue it was taken from. Dropping it lets the queue continue.
/// Unless the claim was requeued before, it leaves all queues.
#[derive(Debug)]
pub struct DequeueGuard {
    pool: Arc<Pool>,
    queued: Arc<QueuedClaim>,
    /// Value of `WaitQueueState::generation` at the time of the dequeue.
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

/// Claim that is queued for capacity, in one queue per candidate pool, or for its tenant's quota.
#[derive(Debug)]
pub struct QueuedClaim {
    item: Mutex<Option<Box<PendingClaim>>>,
    /// Arrival number, the same in all queues.
    pub arrival: ArrivalNumber,
    /// Priority of the claim, higher first.
    pub priority: u16,
    /// Engine time at which the wait began.
    pub since_ms: Millis,
    /// Engine time at which the claim is rejected.
    pub until_ms: Millis,
    /// Reason given when the claim is rejected.
    pub exhausted: ExhaustionReason,
    /// Pools whose queues it is in; empty if it waits for the quota of `tenant`.
    pub pools: SmallVec<[Arc<Pool>; 1]>,
    /// Tenant that owns the claim.
    pub tenant: Arc<Tenant>,
    /// Whether the claim is a newcomer, queued only so that it does not overtake others.
    pub newcomer: bool,
    /// Set for the entry of a gang: wakes the gang's driver.
    gang: Option<Box<gang::GangWaker>>,
    /// Hash of the request.
    request_class: u64,
    /// Whether a queue skipped the gang while it was being tried.
    skipped: AtomicBool,
    /// Whether a shard is being asked to reserve a worker for the claim.
    seeking_reservation: AtomicBool,
}

impl QueuedClaim {
    /// Takes the claim. Only one caller succeeds.
    pub fn take(&self) -> Option<Box<PendingClaim>> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<PendingClaim>>> {
        self.item.lock()
    }

    /// Queues that the claim is in.
    fn queues(&self) -> impl Iterator<Item = &WaitQueue> {
        let quota = self.pools.is_empty().then_some(&self.tenant.wait_queue);
        self.pools.iter().map(|pool| &pool.wait_queue).chain(quota)
    }

    /// Removes the claim from all its queues.
    fn remove_from_queues(&self) {
        self.queues().for_each(|queue| drop(queue.remove(self)));
    }
}

/// State common to all wait queues.
#[derive(Debug, Default)]
pub struct WaitQueues {
    /// Tenants with claims that wait for their quota.
    quota_queues: Mutex<HashMap<u64, Arc<Tenant>>>,
    /// Members of queued gangs, for queries: their keys are vacant.
    gangs: Mutex<HashMap<ClaimId, Arc<QueuedClaim>>>,
    /// Deadlines of duplicates whose keys are pending in a queue.
    duplicates_due: Mutex<BTreeMap<(Millis, ArrivalNumber), ClaimId>>,
}

impl WaitQueues {
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

/// Queue of the claims that wait for one pool, or for one tenant's quota.
#[derive(Debug, Default)]
pub struct WaitQueue {
    /// Number of entries, dequeued ones included, and whether one of them is to be tried.
    published: Arc<QueueState>,
    /// Whether the next tick retries, because a shard could not be asked.
    retry_on_tick: AtomicBool,
    state: Mutex<WaitQueueState>,
}

#[derive(Debug, Default)]
struct WaitQueueState {
    queue: FairQueue<Arc<QueuedClaim>>,
    /// Number of times that capacity may have become free.
    generation: u64,
    /// Engine time at which the claim being tried was dequeued.
    dequeue_since_ms: Option<Millis>,
    /// Starved claim for which a worker of a shared pool is reserved.
    starved: Option<ArrivalNumber>,
    /// Requests for reservations that a shard is being asked for.
    reservation_requests: HashMap<ReservationId, Box<ReservationRequest>>,
    /// Claim for which all capacity that becomes free is reserved.
    reserved_for: Option<ArrivalNumber>,
    /// Tenants of the queued claims, for their shares.
    tenants: HashMap<u64, Arc<Tenant>>,
    /// Tenant whose share was refreshed last.
    share_cursor: u64,
    /// Dequeued claims that were granted, in the current time window and the one before.
    served: [u64; 2],
    window_ms: Millis,
}

/// Length of the window in which served claims are counted for estimates.
const SERVED_WINDOW_MS: Millis = 30_000;

impl WaitQueue {
    /// Creates an empty queue that publishes its state.
    #[must_use]
    pub fn new(published: Arc<QueueState>) -> Self {
        Self { published, ..Self::default() }
    }

    /// Whether any claim waits here. Must be called after the change that may serve it became visible.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.published.has_waiting()
    }

    /// Number of claims that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.published.waiting()
    }

    /// Whether a queued claim may fit now.
    #[must_use]
    pub fn is_dispatch_pending(&self) -> bool {
        self.published.is_dispatch_pending()
    }

    fn lock(&self) -> QueueGuard<'_> {
        let level = lock_order::acquire(LockLevel::WaitQueue);
        QueueGuard { state: self.state.lock(), _level: level }
    }

    /// Ends a dequeue, whatever its result.
    fn end_dequeue(&self) {
        self.lock().dequeue_since_ms = None;
        self.published.set_dispatch_pending(true);
    }

    /// Marks a request class as unplaceable, unless capacity may have become free since `generation`.
    fn mark_unplaceable(&self, request_class: u64, generation: u64) {
        let mut state = self.lock();
        if state.generation == generation {
            state.queue.mark_unplaceable(request_class);
        }
    }

    /// Notes that capacity may have become free, so that every request class is tried again.
    pub fn retry_all(&self) {
        let mut state = self.lock();
        state.queue.clear_unplaceable();
        state.generation += 1;
        self.published.set_dispatch_pending(!state.queue.is_empty());
    }

    /// Adds an entry to the queue, unless it is in it. Returns whether it was added.
    ///
    /// A claim that is queued anew keeps its arrival number: an entry that it left behind is replaced.
    fn insert_if_absent(&self, entry: QueueEntry<Arc<QueuedClaim>>) -> bool {
        let mut state = self.lock();
        if let Some(existing) = state.queue.get(entry.arrival).map(|existing| Arc::clone(&existing.item)) {
            if Arc::ptr_eq(&existing, &entry.item) || existing.lock().is_some() {
                return false;
            }
            drop(self.remove_locked(&mut state, entry.arrival));
        }
        self.published.add_waiting();
        let tenant = &entry.item.tenant;
        state.tenants.entry(tenant.number).or_insert_with(|| Arc::clone(tenant));
        state.queue.insert(entry);
        self.published.set_dispatch_pending(true);
        drop(state);
        fence(Ordering::SeqCst);
        true
    }

    /// Removes the entry of this claim, and no later one of a claim that was queued anew.
    fn remove(&self, queued: &QueuedClaim) -> Option<QueueEntry<Arc<QueuedClaim>>> {
        let mut state = self.lock();
        let existing = state.queue.get(queued.arrival)?;
        if !std::ptr::eq(&*existing.item, queued) {
            return None;
        }
        self.remove_locked(&mut state, queued.arrival)
    }

    fn remove_locked(
        &self,
        state: &mut WaitQueueState,
        arrival: ArrivalNumber,
    ) -> Option<QueueEntry<Arc<QueuedClaim>>> {
        let removed = state.queue.remove(arrival)?;
        state.starved.take_if(|starved| *starved == arrival);
        if state.reserved_for.take_if(|reserved_for| *reserved_for == arrival).is_some() {
            state.queue.clear_unplaceable();
            self.retry_on_tick.store(true, Ordering::Release);
        }
        if state.queue.waiting_of(removed.tenant) == 0 {
            state.tenants.remove(&removed.tenant);
        }
        self.published.remove_waiting(1);
        Some(removed)
    }

    /// Removes and returns all claims.
    fn drain(&self) -> Vec<Arc<QueuedClaim>> {
        let mut state = self.lock();
        let all: Vec<_> = state.queue.drain().into_iter().map(|entry| entry.item).collect();
        state.tenants.clear();
        self.published.remove_waiting(all.len());
        all
    }

    /// Number of claims ahead of this one, and number served in the last minute.
    fn position(&self, arrival: ArrivalNumber, now_ms: Millis) -> Option<(usize, u64)> {
        let mut state = self.lock();
        let ahead = state.queue.count_ahead(arrival)?;
        state.rotate_window(now_ms);
        Some((ahead, state.served.iter().sum()))
    }

    /// Counts a claim that waited and was granted.
    pub fn record_served(&self, now_ms: Millis) {
        let mut state = self.lock();
        state.rotate_window(now_ms);
        state.served[0] += 1;
    }
}

/// Locked state of a queue.
struct QueueGuard<'q> {
    state: MutexGuard<'q, WaitQueueState>,
    /// Dropped after the lock itself.
    _level: HeldLock,
}

impl std::ops::Deref for QueueGuard<'_> {
    type Target = WaitQueueState;

    fn deref(&self) -> &WaitQueueState {
        &self.state
    }
}

impl std::ops::DerefMut for QueueGuard<'_> {
    fn deref_mut(&mut self) -> &mut WaitQueueState {
        &mut self.state
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
