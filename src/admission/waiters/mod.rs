//! Claims that wait: for room in a pool, or for their tenant's quota.
//!
//! Each pool has a [`Line`], each tenant one for its quota. A claim that found no room is *parked*: it stands in the line of each pool
//! that it may be taken from, and whoever takes it out of its [`Parked`] has it, so one of them does. When a shard has something to
//! give (a release, a registration, ...) it says so after it published that, and the line is looked at: the next claim gets
//! its *turn*, goes the way of any claim in that pool, and is granted, or is back at its place with its shape marked as
//! having no room. One turn at a time, so that nobody passes; when nothing is left to try the line is *settled*, and whatever room a
//! newcomer finds then is of no use to anybody who waits. While it is not, newcomers stand in the line too, if only until
//! that look is over.
//!
//! No wake-up is lost (`Q05`): a shard publishes first and looks then whether anybody waits; a claim stands in the line first, and
//! is then tried once more, unless one of its shape just was.

mod demand;
mod drive;
mod gang;
mod item;
mod leave;
mod promise;
mod queue;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;

pub use self::gang::GangPlace;
pub use self::promise::{Promise, Seek};
pub use self::queue::{Arrival, Queue, Waiter};
use crate::admission::pools::Pool;
use crate::admission::tenants::Tenant;
use crate::model::rejection::Exhausted;
use crate::model::{ClaimId, Millis};
use crate::shard::ClaimItem;

/// A turn that takes longer holds nobody up any more: its shard does not run.
const TURN_MS: Millis = 10;

/// How a claim waits.
#[derive(Debug)]
pub struct Wait {
    /// Until when, in engine time.
    pub until_ms: Millis,
    /// Until when only its preferred nodes will do; 0: any will.
    pub near_until_ms: Millis,
    /// When it was asked for: with what is left until its deadline, how long it waited is what it asked for.
    pub since_ms: Millis,
    /// Its place among all that were ever parked; 0: it was not.
    pub arrival: Arrival,
    /// It is its turn in the line of the pool that it is being tried in.
    pub turn: Option<Box<Turn>>,
    /// It is of a gang that has its turn.
    pub of_gang: bool,
    /// A worker is kept for it.
    pub promise: Option<Promise>,
}

/// The right of one claim of a line to be tried there. When it is dropped the line goes on; and unless the claim was put back
/// before, it waits nowhere any more.
#[derive(Debug)]
pub struct Turn {
    pool: Arc<Pool>,
    parked: Arc<Parked>,
    /// [`State::generation`] when it began.
    generation: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.parked.gang.is_none() && self.parked.lock().is_none() {
            self.parked.leave();
        }
        self.pool.line.end_turn();
    }
}

/// A claim that stands in lines.
#[derive(Debug)]
pub struct Parked {
    item: Mutex<Option<Box<ClaimItem>>>,
    /// Its place in all of them.
    pub arrival: Arrival,
    /// Its priority.
    pub priority: u16,
    /// When it began to wait.
    pub since_ms: Millis,
    /// When it is refused.
    pub until_ms: Millis,
    /// What it would be refused with.
    pub why: Exhausted,
    /// The pools in whose lines it stands; none: it waits for the quota of `tenant`.
    pub pools: SmallVec<[Arc<Pool>; 1]>,
    /// Its tenant.
    pub tenant: Arc<Tenant>,
    /// It does not wait: it is a newcomer that must not pass those who do.
    pub once: bool,
    /// It is a gang's place: whoever drives that is told of its turn.
    gang: Option<Box<gang::Call>>,
    /// What it asks for, as a hash.
    shape: u64,
    /// Another of its lines came to it while it had a turn.
    skipped: AtomicBool,
    /// A worker to be kept for it is being looked for.
    seeks: AtomicBool,
}

impl Parked {
    /// Wins it. Only one does.
    pub fn take(&self) -> Option<Box<ClaimItem>> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<ClaimItem>>> {
        self.item.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines in which it stands.
    fn lines(&self) -> impl Iterator<Item = &Line> {
        let quota = self.pools.is_empty().then_some(&self.tenant.line);
        self.pools.iter().map(|pool| &pool.line).chain(quota)
    }

    /// It stands in no line any more.
    fn leave(&self) {
        self.lines().for_each(|line| drop(line.remove(self.arrival)));
    }
}

/// What all lines share.
#[derive(Debug, Default)]
pub struct Waiters {
    arrivals: AtomicU64,
    /// Tenants of whose claims some wait for their quota.
    quota_lines: Mutex<HashMap<u64, Arc<Tenant>>>,
    /// Members of gangs that wait, for those who ask: their keys are free.
    gangs: Mutex<HashMap<ClaimId, Arc<Parked>>>,
    /// When those who joined keys that are waited for give up.
    joiners_due: Mutex<BTreeMap<(Millis, Arrival), ClaimId>>,
}

impl Waiters {
    fn arrive(&self) -> Arrival {
        self.arrivals.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn quota_lines(&self) -> MutexGuard<'_, HashMap<u64, Arc<Tenant>>> {
        self.quota_lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gangs(&self) -> MutexGuard<'_, HashMap<ClaimId, Arc<Parked>>> {
        self.gangs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn joiners_due(&self) -> MutexGuard<'_, BTreeMap<(Millis, Arrival), ClaimId>> {
        self.joiners_due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits for one pool, or for one tenant's quota.
#[derive(Debug, Default)]
pub struct Line {
    /// Who stands in it, also while they have a turn.
    waiting: AtomicUsize,
    /// There may be room for somebody who waits, and it is not known yet for whom.
    unsettled: AtomicBool,
    /// A shard could not be asked: the next tick tries again.
    again: AtomicBool,
    queue: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue<Arc<Parked>>,
    /// Grows whenever room may have come.
    generation: u64,
    /// Since when somebody has a turn; none: nobody.
    turn_since_ms: Option<Millis>,
    /// In a shared pool, the one for which a worker is kept because it is large.
    large: Option<Arrival>,
    /// What comes free is for this one alone.
    kept_for: Option<Arrival>,
    /// Tenants of those that wait, for their shares.
    tenants: HashMap<u64, Arc<Tenant>>,
    /// Whose share was looked at last.
    looked_at: u64,
    /// Turns that ended in a grant within this window of time, and in the one before.
    served: [u64; 2],
    window_ms: Millis,
}

/// How long served claims are counted, for estimates.
const WINDOW_MS: Millis = 30_000;

impl Line {
    /// Whether anybody waits here. After whatever might end that was made visible.
    #[must_use]
    pub fn is_waited_in(&self) -> bool {
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
    pub fn is_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn is over, however it was.
    fn end_turn(&self) {
        self.lock().turn_since_ms = None;
        self.unsettled.store(true, Ordering::Release);
    }

    /// There was no room for claims of this shape; unless some came since `generation`.
    fn fail(&self, shape: u64, generation: u64) {
        let mut state = self.lock();
        if state.generation == generation {
            state.queue.fail(shape);
        }
    }

    /// There may be room that was not there before.
    pub fn retry(&self) {
        let mut state = self.lock();
        state.queue.retry();
        state.generation += 1;
        self.unsettled.store(!state.queue.is_empty(), Ordering::Release);
    }

    /// Somebody stands in it from now on.
    fn insert(&self, waiter: Waiter<Arc<Parked>>) {
        let mut state = self.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let tenant = &waiter.item.tenant;
        state.tenants.entry(tenant.number).or_insert_with(|| Arc::clone(tenant));
        state.queue.insert(waiter);
        self.unsettled.store(true, Ordering::Release);
        drop(state);
        fence(Ordering::SeqCst);
    }

    fn remove(&self, arrival: Arrival) -> Option<Waiter<Arc<Parked>>> {
        let mut state = self.lock();
        let removed = state.queue.remove(arrival)?;
        state.large.take_if(|large| *large == arrival);
        if state.kept_for.take_if(|kept_for| *kept_for == arrival).is_some() {
            state.queue.retry();
            self.again.store(true, Ordering::Release);
        }
        if state.queue.waiting_of(removed.tenant) == 0 {
            state.tenants.remove(&removed.tenant);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Some(removed)
    }

    /// Everybody leaves.
    fn drain(&self) -> Vec<Arc<Parked>> {
        let mut state = self.lock();
        let all: Vec<_> = state.queue.drain().into_iter().map(|waiter| waiter.item).collect();
        state.tenants.clear();
        self.waiting.fetch_sub(all.len(), Ordering::SeqCst);
        all
    }

    /// The place of one that waits, and how many were served here in a minute.
    fn place(&self, arrival: Arrival, now_ms: Millis) -> Option<(usize, u64)> {
        let mut state = self.lock();
        let ahead = state.queue.ahead(arrival)?;
        state.turn_window(now_ms);
        Some((ahead, state.served.iter().sum()))
    }

    /// A claim that had waited was granted.
    pub fn served(&self, now_ms: Millis) {
        let mut state = self.lock();
        state.turn_window(now_ms);
        state.served[0] += 1;
    }
}

impl State {
    fn turn_window(&mut self, now_ms: Millis) {
        let passed = now_ms.saturating_sub(self.window_ms) / WINDOW_MS;
        if passed > 0 {
            self.served = [0, if passed == 1 { self.served[0] } else { 0 }];
            self.window_ms = now_ms - now_ms % WINDOW_MS;
        }
    }
}
