//! Queue of a pool under its lock, and what it publishes for those who do not take the lock.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use parking_lot::{Mutex, MutexGuard};

use super::gang::{GangRanks, WaitingGang};
use super::least_demand::{AMOUNTS, FreeAmounts, LeastDemand};
use super::queued_claim::{ArrivalNumber, QueuedClaim};
use super::wait_queue::WaitQueue;
use crate::admission::lock_order::{self, HeldLock, LockLevel};
use crate::admission::tenant::{ChargeRank, StaleShares};
use crate::model::{Millis, ResourceUsage};
use crate::shard::QueueState;

/// Length of the window in which served claims are counted for estimates.
pub const SERVED_WINDOW_MS: Millis = 30_000;

/// Least that any claim of the queue needs, as published.
#[derive(Debug)]
struct DemandFloor([[AtomicU64; AMOUNTS]; 2]);

impl Default for DemandFloor {
    fn default() -> Self {
        Self(std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(u64::MAX))))
    }
}

impl DemandFloor {
    fn publish(&self, least: &LeastDemand) {
        for (cells, amounts) in self.0.iter().zip(least.halves()) {
            cells.iter().zip(amounts).for_each(|(cell, amount)| cell.store(*amount, Ordering::Relaxed));
        }
    }

    fn load(&self) -> LeastDemand {
        LeastDemand::from_halves(
            self.0.each_ref().map(|cells| cells.each_ref().map(|cell| cell.load(Ordering::Relaxed))),
        )
    }
}

/// Queue of a pool.
#[derive(Debug, Default)]
pub struct PoolQueue {
    /// Number of the pool in this process.
    pool: u32,
    published: Arc<QueueState>,
    floor: DemandFloor,
    /// Lowest priority of a claim that a reservation is assigned to, plus one; 0: there is none.
    lowest_reserved: AtomicU32,
    stale_shares: Arc<StaleShares>,
    state: Mutex<QueueContents>,
}

/// Outcome of an attempt to enter a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryOutcome {
    /// The claim is in the queue from now on.
    Entered,
    /// The claim was in the queue.
    Present,
    /// The queue lets nobody in any more.
    Closed,
}

/// Requests that are served before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueAhead {
    /// Number of claims ahead of it.
    pub claims: usize,
    /// Number of gangs ahead of it, each counted once.
    pub gangs: usize,
}

/// Contents of a queue.
#[derive(Debug, Default)]
pub struct QueueContents {
    /// Index of the claims.
    pub queue: WaitQueue,
    /// Gangs that wait, by rank.
    pub(super) gangs: GangRanks,
    /// Whether nobody may enter any more: the pool is being deleted, or the service stops.
    pub is_closed: bool,
    /// Claims that waited and were granted, in the current time window and the one before.
    served: [u64; 2],
    window_ms: Millis,
    /// Version of the queue whose least demand is published.
    published_version: u64,
}

impl PoolQueue {
    /// Creates the empty queue of a pool, which publishes how many wait.
    #[must_use]
    pub fn new(pool: u32, published: Arc<QueueState>) -> Self {
        Self { pool, published, ..Self::default() }
    }

    /// Number of claims that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.published.waiting()
    }

    /// Returns false only if no claim fits what a worker has free.
    #[must_use]
    pub fn may_serve(&self, free: &FreeAmounts) -> bool {
        self.floor.load().may_fit(free)
    }

    /// Lowest priority of a claim that a reservation is assigned to.
    #[must_use]
    pub fn lowest_reserved_priority(&self) -> Option<u16> {
        self.lowest_reserved.load(Ordering::Relaxed).checked_sub(1).and_then(|priority| u16::try_from(priority).ok())
    }

    /// Locks the queue's contents.
    pub fn lock(&self) -> QueueGuard<'_> {
        let level = lock_order::acquire(LockLevel::WaitQueue);
        QueueGuard { owner: self, contents: self.state.lock(), _level: level }
    }
}

/// Locked queue. What it publishes is brought up to date before the lock is released.
#[derive(Debug)]
pub struct QueueGuard<'q> {
    owner: &'q PoolQueue,
    contents: MutexGuard<'q, QueueContents>,
    /// Dropped after the lock itself.
    _level: HeldLock,
}

impl std::ops::Deref for QueueGuard<'_> {
    type Target = QueueContents;

    fn deref(&self) -> &QueueContents {
        &self.contents
    }
}

impl std::ops::DerefMut for QueueGuard<'_> {
    fn deref_mut(&mut self) -> &mut QueueContents {
        &mut self.contents
    }
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        if self.contents.published_version != self.contents.queue.version() {
            self.publish_floor();
        }
        if self.owner.published.waiting() != self.contents.len() {
            self.owner.published.set_waiting(self.contents.len());
        }
        let lowest = self.contents.queue.reservations.lowest_priority().map_or(0, |priority| u32::from(priority) + 1);
        if self.owner.lowest_reserved.load(Ordering::Relaxed) != lowest {
            self.owner.lowest_reserved.store(lowest, Ordering::SeqCst);
        }
    }
}

impl QueueContents {
    /// Number of requests that wait.
    fn len(&self) -> usize {
        self.queue.len() + self.gangs.len()
    }
}

impl QueueGuard<'_> {
    fn publish_floor(&mut self) {
        self.owner.floor.publish(&self.contents.queue.least());
        self.contents.published_version = self.contents.queue.version();
    }

    /// Enters a gang. Returns false if the queue is closed.
    pub(super) fn enter_gang(&mut self, gang: &Arc<WaitingGang>) -> bool {
        if !self.is_closed {
            self.gangs.insert(gang.rank(), Arc::clone(gang));
        }
        !self.is_closed
    }

    /// Removes a gang from the queue.
    pub(super) fn leave_gang(&mut self, gang: &WaitingGang) {
        self.gangs.remove(&gang.rank());
        self.queue.reservations.forget(gang.arrival);
    }

    /// Enters a claim that is being tried, unless it is in the queue. `needs_ms`: time for which it needs a worker of this pool; `total`:
    /// resources of the pool.
    pub fn enter(&mut self, claim: &Arc<QueuedClaim>, needs_ms: Millis, total: &ResourceUsage) -> EntryOutcome {
        if self.is_closed {
            return EntryOutcome::Closed;
        }
        if self.queue.get(claim.arrival).is_some() {
            return EntryOutcome::Present;
        }
        claim.tenant.begin_waiting(self.owner.pool, &self.owner.stale_shares);
        let share = claim.tenant.current_share(self.owner.pool, total);
        self.queue.insert(claim, needs_ms, share);
        // Also if as many left meanwhile: the floor may be lower.
        self.publish_floor();
        self.owner.published.set_waiting(self.len());
        // Before the search that follows reads the bounds of the shards.
        fence(Ordering::SeqCst);
        EntryOutcome::Entered
    }

    /// Number of requests of a tenant that wait.
    pub fn waiting_of(&self, tenant: u64) -> usize {
        let gangs = self.gangs.values().filter(|gang| gang.tenant.number == tenant).count();
        self.queue.waiting_of(tenant) + gangs
    }

    /// Removes a claim, if it is in the queue.
    pub fn leave(&mut self, arrival: ArrivalNumber) -> Option<Arc<QueuedClaim>> {
        let claim = self.queue.remove(arrival)?;
        claim.tenant.end_waiting(self.owner.pool);
        Some(claim)
    }

    /// Removes all claims, by arrival, and lets nobody in any more.
    pub fn close(&mut self) -> Vec<Arc<QueuedClaim>> {
        self.is_closed = true;
        let claims = self.queue.drain();
        claims.iter().for_each(|claim| claim.tenant.end_waiting(self.owner.pool));
        claims
    }

    /// Brings the shares of those tenants up to date that have changed since.
    pub fn refresh_shares(&mut self, total: &ResourceUsage) {
        while let Some(number) = self.owner.stale_shares.pop() {
            let tenant = self.queue.tenant(number).cloned();
            if let Some(tenant) = tenant {
                let share = tenant.current_share(self.owner.pool, total);
                self.queue.set_share(number, share);
            }
        }
    }

    /// Brings the shares of all tenants up to date: the pool's resources may have changed.
    pub fn refresh_all_shares(&mut self, total: &ResourceUsage) {
        // All of them are brought up to date.
        while self.owner.stale_shares.pop().is_some() {}
        let tenants: Vec<_> = self.queue.tenants().cloned().collect();
        for tenant in tenants {
            let share = tenant.current_share(self.owner.pool, total);
            self.queue.set_share(tenant.number, share);
        }
    }

    /// Number of claims ahead of this one, and number served in the last minute.
    pub fn position(&mut self, arrival: ArrivalNumber, now_ms: Millis) -> Option<(usize, u64)> {
        Some((self.queue.count_ahead(arrival)?, self.served_lately(now_ms)))
    }

    /// Number of claims that waited and were served in the last minute.
    pub fn served_lately(&mut self, now_ms: Millis) -> u64 {
        self.rotate_window(now_ms);
        self.served.iter().sum()
    }

    /// Requests ahead of a claim: of the one in the queue with this arrival, or else of one that comes now. `tenant`: number
    /// of its tenant, if that is known.
    pub fn ahead_of(&self, tenant: Option<u64>, rank: ChargeRank) -> QueueAhead {
        let ChargeRank { priority, arrival } = rank;
        let waiting = arrival.and_then(|arrival| self.queue.count_ahead(arrival));
        let before = (Reverse(priority), arrival.unwrap_or(ArrivalNumber::MAX));
        QueueAhead {
            claims: waiting.unwrap_or_else(|| self.queue.count_ahead_of_newcomer(tenant, priority)),
            gangs: self.gangs.range(..before).count(),
        }
    }

    /// Counts a claim that waited and was granted.
    pub fn record_served(&mut self, now_ms: Millis) {
        self.rotate_window(now_ms);
        self.served[0] += 1;
    }

    fn rotate_window(&mut self, now_ms: Millis) {
        let passed = now_ms.saturating_sub(self.window_ms) / SERVED_WINDOW_MS;
        if passed > 0 {
            self.served = [0, if passed == 1 { self.served[0] } else { 0 }];
            self.window_ms = now_ms - now_ms % SERVED_WINDOW_MS;
        }
    }
}
