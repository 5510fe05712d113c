//! A claim's way: to its key, from shard to shard, to an answer. What the facade begins here, the shards go on with: a
//! claim that one shard has no room for is handed to the next by the one that said so, so the caller only waits, and
//! may leave.

mod departures;
mod doubt;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

pub use self::doubt::{DoubtfulGang, DoubtfulMember};
use crate::admission::keys::{Begun, Found, Keys, ShardRef};
use crate::admission::pools::{Pool, PoolMap, Pools};
use crate::admission::remembered::Remembered;
use crate::admission::router::{Budget, Rooms, ShardPreference};
use crate::admission::waiters::Waiters;
use crate::clock::Clock;
use crate::engine::Wants;
use crate::limits;
use crate::model::label_selector::Selectors;
use crate::model::rejection::{Exhausted, Refusal, Unavailable, What};
use crate::model::{ClaimId, Fence, Millis, Policy};
use crate::persist::fencing::Fences;
use crate::persist::journal::Journal;
use crate::shard::{ClaimItem, Command, Outcome, Payload};

/// Most claims of a batch that go to one shard in one command: enough to pay its wake, few enough to spread.
const GROUP_MAX: usize = 64;

/// Bounds that the configuration sets.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a durable answer waits for the store, in milliseconds; then it is `unavailable`, and a claim that was
    /// made by this very request is given back.
    pub store_wait_ms: u64,
    /// Most shards of all pools together; a pool that would bring more is not made. Pools that a store has already are
    /// served however many they have.
    pub shards_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { store_wait_ms: 5_000, shards_max: limits::TOTAL_SHARDS_DEFAULT }
    }
}

/// Requests of a thread within one tick of the engine's time that are all timed.
const TIMED_MAX: u32 = 32;
/// Of the others one in so many.
const TIMED_OF: u32 = 16;

thread_local! {
    /// Engine time of the last request, and how many came in that tick.
    static TIMED: Cell<(Millis, u32)> = const { Cell::new((0, 0)) };
}

/// What all shards share.
pub struct Dispatch {
    /// Who holds a key.
    pub keys: Keys,
    /// The pools.
    pub pools: Pools,
    /// Claims that wait.
    pub waiters: Waiters,
    /// Selectors that requests brought.
    pub selectors: Selectors,
    /// Time.
    pub clock: Clock,
    /// Claims that ended without their holder's doing.
    pub remembered: Remembered,
    /// Gangs that cannot be decided at present.
    pub gangs_in_doubt: Mutex<Vec<DoubtfulGang>>,
    /// Numbers of grants.
    pub fences: Fences,
    /// The way to the store.
    pub journal: Arc<Journal>,
    /// Bounds.
    pub settings: Settings,
    /// The service is about to shut down: calls are answered, but nobody waits any more.
    pub draining: AtomicBool,
    /// The service is shutting down.
    pub stopping: AtomicBool,
}

impl std::fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatch").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Dispatch {
    /// A claim begins, or begins anew after what it found was gone.
    pub fn submit(&self, item: Box<ClaimItem>) {
        if let Some(item) = self.begin(item) {
            self.route(item);
        }
    }

    /// The same for many: those whose keys are vacant go to the shards in groups.
    pub fn submit_all(&self, items: Vec<Box<ClaimItem>>) {
        let ours: Vec<_> = items.into_iter().filter_map(|item| self.begin(item)).collect();
        self.route_all(ours);
    }

    /// Takes the key's ticket. None: the claim waits elsewhere, or is answered.
    fn begin(&self, item: Box<ClaimItem>) -> Option<Box<ClaimItem>> {
        match self.keys.begin(item) {
            Begun::Ours(item) => return Some(item),
            Begun::Joined(None) => {}
            Begun::Joined(Some((until_ms, id))) => self.wake_joiners_at(until_ms, &id),
            Begun::Parked(item) => self.answer(item, Refusal::WAITED_FOR),
            Begun::Crowded(item) => self.answer(item, Refusal::Unavailable(Unavailable::Overloaded)),
            Begun::Unreadable(item) => self.answer(item, Refusal::Unavailable(Unavailable::Loading)),
            Begun::Held(item, hold) => {
                let pools = self.pools.load();
                match pools.port(hold.shard) {
                    // The pool is being deleted; its shard frees the key in a moment.
                    None => self.answer(item, Refusal::Unavailable(Unavailable::Loading)),
                    Some(port) => {
                        if let Err((Command::Repeat(item, _), why)) = port.push(Command::Repeat(item, hold.place)) {
                            self.answer(item, Refusal::Unavailable(why));
                        }
                    }
                }
            }
        }
        None
    }

    /// Sends a claim with a ticket to the next shard, or refuses it when none is left.
    pub fn route(&self, mut item: Box<ClaimItem>) {
        let pools = self.pools.load();
        // A refusal hands the ticket on to whoever joined: then that one is routed.
        loop {
            if let Some(over) = item.over_quota.take() {
                match self.unplaced(item, Refusal::Exhausted(Exhausted::Quota(over))) {
                    Some(next) => item = next,
                    None => return,
                }
                continue;
            }
            let next = match pick(&pools, &item) {
                None if item.fall_back(&pools) => Some(item),
                None => {
                    let refusal = item.refusal(&pools);
                    self.unplaced(item, refusal)
                }
                Some((pool, shard)) => {
                    item.visited.insert(shard);
                    match pool.ports[shard as usize].push(Command::Claim(item)) {
                        Err((Command::Claim(mut item), why)) => {
                            item.unasked = Some(why);
                            Some(item)
                        }
                        _ => None,
                    }
                }
            };
            match next {
                Some(next) => item = next,
                None => return,
            }
        }
    }

    /// Sends claims with tickets to shards in groups, at most as many to each as it says it has idle workers.
    pub fn route_all(&self, mut items: Vec<Box<ClaimItem>>) {
        let over: Vec<_> = items.extract_if(.., |item| item.over_quota.is_some()).collect();
        over.into_iter().for_each(|item| self.route(item));
        let pools = self.pools.load();
        let is_share = |item: &ClaimItem| pools.at(item.pool).is_some_and(|pool| pool.board.rooms().is_some());
        if items.len() > 1 && items.iter().any(|item| is_share(item)) {
            let (shares, whole): (Vec<_>, _) = items.into_iter().partition(|item| is_share(item));
            self.route_shares(&pools, shares);
            items = whole;
        }
        // They are taken from the end, and what is left goes to those that came first.
        items.reverse();
        while items.len() > 1 {
            let last = &items[items.len() - 1];
            let picked = if last.only_worker().is_some() { None } else { pick(&pools, last) };
            let Some((pool, shard)) = picked else {
                // It falls back, is refused, or goes to the shard of its worker.
                items.pop().into_iter().for_each(|item| self.route(item));
                continue;
            };
            let room = (pool.board.idle(shard) as usize).clamp(1, GROUP_MAX);
            let mut group = Vec::with_capacity(room.min(items.len()));
            while group.len() < room
                && let Some(mut item) = items.pop_if(|item| {
                    item.pool == pool.number && !item.visited.contains(shard) && item.only_worker().is_none()
                })
            {
                item.visited.insert(shard);
                group.push(item);
            }
            if let Err((Command::Claims(group), why)) = pool.ports[shard as usize].push(Command::Claims(group)) {
                for mut item in group {
                    item.unasked = Some(why);
                    self.route(item);
                }
            }
        }
        for item in items {
            self.route(item);
        }
    }

    /// Sends claims for shares with tickets to shards: portioned by what each says that it has left, so that each is asked
    /// once. What does not fit there in spite of that goes on by itself.
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
    fn route_shares(&self, pools: &PoolMap, items: Vec<Box<ClaimItem>>) {
        let mut portions = Portions::default();
        // Where the last one went: as many as fit go to one shard, and so to few workers.
        let mut last: Option<ShardRef> = None;
        for mut item in items {
            let picked = portion(pools, &item, &mut portions, last);
            let Some(shard) = picked else {
                self.route(item);
                continue;
            };
            item.visited.insert(shard.shard);
            portions.items.entry(shard).or_default().push(item);
            last = Some(shard);
        }
        for (shard, group) in portions.items {
            let Some(port) = pools.port(shard) else { continue };
            if let Err((Command::Claims(group), why)) = port.push(Command::Claims(group)) {
                for mut item in group {
                    item.unasked = Some(why);
                    self.route(item);
                }
            }
        }
    }

    /// Gives the ticket up and answers. Whoever joined and takes over the ticket is returned, to be routed.
    pub(crate) fn refuse(&self, item: Box<ClaimItem>, refusal: Refusal) -> Option<Box<ClaimItem>> {
        let mut next = self.keys.vacate(&item.id, item.ticket);
        self.answer(item, refusal);
        while let Some(joined) = next.take_if(|joined| self.has_no_pool(joined)) {
            next = self.keys.vacate(&joined.id, joined.ticket);
            self.answer(joined, Refusal::NotFound(What::Pool));
        }
        next
    }

    /// Answers a claim that is not carried out. A shard that does not serve because its pool is deleted says no more than
    /// that; here it is known.
    #[allow(clippy::boxed_local, reason = "claims travel boxed; unboxing here would copy one to drop it")]
    pub(crate) fn answer(&self, item: Box<ClaimItem>, refusal: Refusal) {
        let silent = matches!(refusal, Refusal::Unavailable(Unavailable::Loading | Unavailable::Stopping));
        let deleted = silent && !self.is_draining() && self.has_no_pool(&item);
        item.reply.send(Err(if deleted { Refusal::NotFound(What::Pool) } else { refusal }));
    }

    /// Whether every pool that the claim may be taken from is deleted, or about to be.
    pub(crate) fn has_no_pool(&self, item: &ClaimItem) -> bool {
        let pools = self.pools.load();
        item.candidates().iter().all(|&number| pools.at(number).is_none_or(|pool| pool.is_closing()))
    }

    /// The same, and routes whoever takes over.
    pub fn give_up(&self, item: Box<ClaimItem>, refusal: Refusal) {
        if let Some(next) = self.refuse(item, refusal) {
            self.route(next);
        }
    }

    /// Rolls back a claim whose grant will reach nobody, unless others were told of it.
    pub(crate) fn roll_back(&self, id: &ClaimId, fence: Fence) {
        if let Found::Held(hold) = self.keys.find(id)
            && hold.place.fence == fence
            && let Some(port) = self.pools.load().port(hold.shard)
        {
            port.roll_back(id.clone(), fence);
        }
    }

    /// Rolls back what an answer granted that nobody will read.
    pub(crate) fn roll_back_unread(&self, id: &ClaimId, outcome: &Outcome) {
        if let Ok(Payload::Claim(answer)) = outcome
            && answer.created
        {
            self.roll_back(id, answer.grant.place.fence);
        }
    }

    /// A fence for `n` claims, or why there is none.
    ///
    /// # Errors
    /// `store` while the store does not hold a higher ceiling.
    pub fn draw_fences(&self, n: u64) -> Result<u64, Unavailable> {
        self.fences.draw(n, self.clock.unix_us()).ok_or(Unavailable::Store)
    }

    /// When a request came in, for the histograms; 0: this one is not timed. While load is light every request is,
    /// past [`TIMED_MAX`] of a thread within a tick of the engine's time one in [`TIMED_OF`]: reading the clock and
    /// keeping the result twice costs as much as deciding the claim.
    #[must_use]
    pub fn stopwatch(&self) -> u64 {
        let now_ms = self.clock.engine_ms();
        let timed = TIMED.with(|timed| {
            let (tick_ms, n) = timed.get();
            let n = if tick_ms == now_ms { n.wrapping_add(1) } else { 0 };
            timed.set((now_ms, n));
            n < TIMED_MAX || n.is_multiple_of(TIMED_OF)
        });
        if timed { self.clock.mono_ns().max(1) } else { 0 }
    }

    /// Whether nobody may wait any more, because the service is about to shut down.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether the service is shutting down.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// The shard that a claim goes to next; none: every shard of its pool that could have a worker for it was asked.
pub fn pick<'a>(pools: &'a PoolMap, item: &ClaimItem) -> Option<(&'a Arc<Pool>, u16)> {
    let pool = pools.at(item.pool)?;
    if item.is_through() {
        return None;
    }
    if let Some(shard) = item.promised_shard(pool.number).filter(|shard| !item.visited.contains(*shard)) {
        return Some((pool, shard));
    }
    if let Some(worker) = item.only_worker() {
        let shard = worker.shard(pool.ports.len() as u16);
        return (!item.visited.contains(shard)).then_some((pool, shard));
    }
    let salt = item.salt.rotate_left(item.visited.len() * 7);
    let shard = match (pool.board.rooms(), item.wants()) {
        (Some(_), Some(wants)) => pool.board.pick_room(&item.visited, wants, salt, preference(pool), |_| true)?,
        _ => pool.board.pick(&item.visited, item.affinity, salt)?,
    };
    Some((pool, shard))
}

fn preference(pool: &Pool) -> ShardPreference {
    match pool.spec.load().policy() {
        Policy::Spread => ShardPreference::MostLeft,
        _ => ShardPreference::CoresPerCard,
    }
}

/// Most needs of one batch that are remembered as having found nothing left.
const NOTHING_LEFT_MAX: usize = 16;

/// Of a batch, what goes to each shard.
#[derive(Default)]
struct Portions {
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
    items: BTreeMap<ShardRef, Vec<Box<ClaimItem>>>,
    /// What is left there beside them.
    budgets: BTreeMap<ShardRef, Budget>,
    /// Needs for which no shard of a pool has anything left. What is left only shrinks while a batch is portioned.
    nothing_left: Vec<(u32, Arc<Wants>)>,
}

impl Portions {
    fn budget(&self, shard: ShardRef, rooms: &Rooms) -> Budget {
        self.budgets.get(&shard).copied().unwrap_or_else(|| rooms.budget(shard.shard))
    }

    /// Takes what the claim asks for out of what is left of the shard. False: there is not enough.
    fn take(&mut self, shard: ShardRef, rooms: &Rooms, wants: &Wants) -> bool {
        let mut budget = self.budget(shard, rooms);
        let enough = budget.take(wants);
        if enough {
            self.budgets.insert(shard, budget);
        }
        enough
    }

    fn has_nothing_for(&self, pool: u32, wants: &Wants) -> bool {
        let needs = |wants: &Wants| (wants.spec.as_ref().map(|spec| spec.resources.clone()), wants.cards.clone());
        self.nothing_left.iter().any(|(of, known)| *of == pool && needs(known) == needs(wants))
    }

    fn note_nothing_for(&mut self, pool: u32, wants: &Arc<Wants>) {
        if self.nothing_left.len() < NOTHING_LEFT_MAX {
            self.nothing_left.push((pool, Arc::clone(wants)));
        }
    }
}

/// The shard of a batch's portion that a claim for a share goes to, and what it takes of that.
fn portion(pools: &PoolMap, item: &ClaimItem, portions: &mut Portions, last: Option<ShardRef>) -> Option<ShardRef> {
    let pool = pools.at(item.pool)?;
    if item.only_worker().is_some() {
        return pick(pools, item).map(|(pool, shard)| ShardRef { pool: pool.number, shard });
    }
    let (rooms, wants) = (pool.board.rooms()?, item.wants()?);
    let of = |shard: u16| ShardRef { pool: pool.number, shard };
    let preference = preference(pool);
    let stay = last.filter(|last| last.pool == pool.number && !item.visited.contains(last.shard));
    let stay = stay.filter(|last| preference != ShardPreference::MostLeft && rooms.may_fit(last.shard, wants));
    if let Some(last) = stay.filter(|last| portions.take(*last, rooms, wants)) {
        return Some(last);
    }
    if !portions.has_nothing_for(pool.number, wants) {
        let salt = item.salt.rotate_left(item.visited.len() * 7);
        let has = |shard: u16| portions.budget(of(shard), rooms).take(wants);
        if let Some(shard) = pool.board.pick_room(&item.visited, wants, salt, preference, has) {
            let taken = portions.take(of(shard), rooms, wants);
            return taken.then_some(of(shard));
        }
        if item.visited.is_empty() {
            portions.note_nothing_for(pool.number, wants);
        }
    }
    // What is left of each is spoken for, as far as is known. Whoever may have more is asked all the same.
    pick(pools, item).map(|(_, shard)| of(shard))
}
