//! Workers that are kept for claims that wait: for one with a high priority, by evicting claims with a lower one, if the pool allows
//! that; in a shared pool also for the first of the line, if it has waited for [`limits::RESERVE_AFTER_MS`], because what it needs
//! comes free in pieces that smaller claims would take. One worker a pool is kept for such a one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Arrival, Parked};
use crate::admission::dispatch::Dispatch;
use crate::admission::keys::ShardRef;
use crate::admission::pools::Pool;
use crate::engine::{Eviction, Wants};
use crate::limits;
use crate::model::{Capacity, Millis, Mode};
use crate::shard::{ClaimItem, Command, ShardPort, Visited};

/// A worker is kept for a claim that waits, until this is dropped.
#[derive(Debug)]
pub struct Promise {
    port: Arc<ShardPort>,
    ticket: Arrival,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.port.unkeep(self.ticket);
    }
}

/// A claim that waits looks for a shard that keeps a worker for it.
#[derive(Debug)]
pub struct Seek {
    parked: Arc<Parked>,
    pool: Arc<Pool>,
    visited: Visited,
    /// Which workers would do.
    pub wants: Arc<Wants>,
    /// For how long it needs one.
    pub needs_ms: Millis,
    /// Who may be evicted for it, if anybody may.
    pub evict: Option<Eviction>,
    /// A shard keeps a worker.
    found: bool,
}

/// However the search ends, also with the shard that was being asked, another may begin.
impl Drop for Seek {
    fn drop(&mut self) {
        if self.evict.is_none() && !self.found {
            let mut state = self.pool.line.lock();
            state.large.take_if(|large| *large == self.parked.arrival);
        }
        self.parked.seeks.store(false, Ordering::Release);
    }
}

impl Seek {
    /// Number of its wait.
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.parked.arrival
    }

    /// A shard keeps a worker for it.
    pub fn found(mut self, port: &Arc<ShardPort>) {
        self.found = true;
        let promise = Promise { port: Arc::clone(port), ticket: self.ticket() };
        let mut slot = self.parked.lock();
        // One that has left, or has its turn, does without: dropped, the promise is taken back.
        let unkept = match slot.as_mut().and_then(|item| item.wait.as_mut()) {
            Some(wait) => wait.promise.replace(promise),
            None => Some(promise),
        };
        drop(slot);
        drop(unkept);
    }
}

impl ClaimItem {
    /// The ticket with which a worker of this shard is kept for it.
    #[must_use]
    pub fn promise_at(&self, shard: ShardRef) -> Option<u64> {
        let promise = self.wait.as_ref()?.promise.as_ref()?;
        (promise.port.shard == shard).then_some(promise.ticket)
    }

    /// The shard of this pool that keeps a worker for it.
    #[must_use]
    pub fn promised_shard(&self, pool: u32) -> Option<u16> {
        let promise = self.wait.as_ref()?.promise.as_ref()?;
        (promise.port.shard.pool == pool).then_some(promise.port.shard.shard)
    }

    /// Its shard does not know of the promise any more.
    pub fn lose_promise(&mut self) {
        if let Some(wait) = &mut self.wait {
            wait.promise = None;
        }
    }
}

impl Dispatch {
    /// A claim waits: if somebody may be evicted for it, or it has waited for long, a worker is to be kept for it.
    pub(super) fn seek(&self, parked: &Arc<Parked>) {
        if parked.once || parked.pools.is_empty() || parked.seeks.load(Ordering::Acquire) {
            return;
        }
        let (wants, reserve_ms, ttl_ms) = {
            let slot = parked.lock();
            let Some(item) = slot.as_ref().filter(|item| item.wait.as_ref().is_some_and(|wait| wait.promise.is_none()))
            else {
                return;
            };
            if item.is_near_only() || item.only_worker().is_some() {
                return;
            }
            (item.accepts().unwrap_or_default(), item.reserve_ms, item.ttl_ms)
        };
        for pool in &parked.pools {
            let spec = pool.spec.load();
            let evict = (spec.preemption && parked.priority > 0)
                .then_some(Eviction { below: parked.priority, releasing_ms: spec.releasing_ms });
            let evict = evict.filter(|evict| pool.board.cheapest_victim(evict.below, &Visited::default()).is_some());
            if evict.is_none() && !(spec.mode == Mode::Shared && self.is_starved(pool, parked)) {
                continue;
            }
            if !parked.seeks.swap(true, Ordering::AcqRel) {
                let (parked, pool, wants) = (Arc::clone(parked), Arc::clone(pool), Arc::clone(&wants));
                let (visited, needs_ms) = (Visited::default(), spec.needs_ms(reserve_ms, ttl_ms));
                self.seek_on(Box::new(Seek { parked, pool, visited, wants, needs_ms, evict, found: false }));
            }
            return;
        }
    }

    /// Whether it is the first of the line, has been for long, and nobody else in it has a worker kept for that. From now on it has.
    fn is_starved(&self, pool: &Pool, parked: &Parked) -> bool {
        if self.clock.engine_ms().saturating_sub(parked.since_ms) < limits::RESERVE_AFTER_MS {
            return false;
        }
        let mut state = pool.line.lock();
        let first =
            state.queue.first() == Some(parked.arrival) && state.large.is_none_or(|large| large == parked.arrival);
        if first {
            state.large = Some(parked.arrival);
        }
        first
    }

    /// It asks the next shard.
    pub(crate) fn seek_on(&self, mut seek: Box<Seek>) {
        loop {
            let board = &seek.pool.board;
            let next = match seek.evict {
                Some(evict) => board.cheapest_victim(evict.below, &seek.visited),
                None => {
                    let from = (seek.ticket() % seek.pool.ports.len() as u64) as u16;
                    let is_large = |capacity: &Capacity| seek.wants.is_large(capacity);
                    board.capacities().shard_with(from, &seek.visited, is_large)
                }
            };
            let Some(shard) = next else { return };
            seek.visited.insert(shard);
            let port = Arc::clone(&seek.pool.ports[shard as usize]);
            match port.push(Command::Promise(seek)) {
                Err((Command::Promise(back), _)) => seek = back,
                _ => return,
            }
        }
    }
}
