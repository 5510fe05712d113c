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
use crate::clock::Clock;
use crate::fence::Fences;
use crate::journal::Journal;
use crate::keys::{Begun, Found, Keys, ShardRef};
use crate::limits;
use crate::model::{ClaimId, Fence, Millis, Policy};
use crate::pools::{Pool, PoolMap, Pools};
use crate::refusal::{Exhausted, Refusal, Unavailable};
use crate::remembered::Remembered;
use crate::router::Budget;
use crate::selector::Selectors;
use crate::shard::{ClaimItem, Command, Outcome, Payload, Visited};
use crate::waiters::Waiters;

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
            Begun::Parked(item) => answer(item, Refusal::WAITED_FOR),
            Begun::Crowded(item) => answer(item, Refusal::Unavailable(Unavailable::Overloaded)),
            Begun::Unreadable(item) => answer(item, Refusal::Unavailable(Unavailable::Loading)),
            Begun::Held(item, hold) => {
                let pools = self.pools.load();
                match pools.port(hold.shard) {
                    // The pool is being deleted; its shard frees the key in a moment.
                    None => answer(item, Refusal::Unavailable(Unavailable::Loading)),
                    Some(port) => {
                        if let Err((Command::Repeat(item, _), why)) = port.push(Command::Repeat(item, hold.place)) {
                            answer(item, Refusal::Unavailable(why));
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
        let mut portions = Portions::new();
        // Where the last one went: as many as fit go to one shard, and so to few workers.
        let mut last: Option<ShardRef> = None;
        for mut item in items {
            let picked = portion(pools, &item, &mut portions, last);
            let Some(shard) = picked else {
                self.route(item);
                continue;
            };
            item.visited.insert(shard.shard);
            portions.entry(shard).or_default().1.push(item);
            last = Some(shard);
        }
        for (shard, (_, group)) in portions {
            let Some(port) = pools.port(shard).filter(|_| !group.is_empty()) else { continue };
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
        let next = self.keys.vacate(&item.id, item.ticket);
        answer(item, refusal);
        next
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

#[allow(clippy::boxed_local, reason = "claims travel boxed; unboxing here would copy one to drop it")]
fn answer(item: Box<ClaimItem>, refusal: Refusal) {
    item.reply.send(Err(refusal));
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
        (Some(rooms), Some(wants)) => {
            rooms.pick(pool.board.open_shards(), &item.visited, wants, salt, spreads(pool), |_| true)?
        }
        _ => pool.board.pick(&item.visited, item.affinity, salt)?,
    };
    Some((pool, shard))
}

fn spreads(pool: &Pool) -> bool {
    pool.spec.load().policy() == Policy::Spread
}

/// Of a batch, what goes to each shard, and what is left there beside it.
#[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
type Portions = BTreeMap<ShardRef, (Option<Budget>, Vec<Box<ClaimItem>>)>;

/// The shard of a batch's portion that a claim for a share goes to, and what it takes of that.
fn portion(pools: &PoolMap, item: &ClaimItem, portions: &mut Portions, last: Option<ShardRef>) -> Option<ShardRef> {
    let pool = pools.at(item.pool)?;
    if item.only_worker().is_some() {
        return pick(pools, item).map(|(pool, shard)| ShardRef { pool: pool.number, shard });
    }
    let (rooms, wants) = (pool.board.rooms()?, item.wants()?);
    let mut take = |shard: u16| {
        let (budget, _) = portions.entry(ShardRef { pool: pool.number, shard }).or_default();
        budget.get_or_insert_with(|| rooms.budget(shard)).take(wants)
    };
    let stay = last.filter(|last| last.pool == pool.number && !item.visited.contains(last.shard));
    if let Some(last) = stay.filter(|last| !spreads(pool) && rooms.may_fit(last.shard, wants) && take(last.shard)) {
        return Some(last);
    }
    let salt = item.salt.rotate_left(item.visited.len() * 7);
    let mut full = Visited::default();
    loop {
        let open = |shard: u16| !full.contains(shard);
        let Some(shard) = rooms.pick(pool.board.open_shards(), &item.visited, wants, salt, spreads(pool), open) else {
            // What is left of each is spoken for, as far as is known. Whoever may have more is asked all the same.
            return pick(pools, item).map(|(pool, shard)| ShardRef { pool: pool.number, shard });
        };
        if take(shard) {
            return Some(ShardRef { pool: pool.number, shard });
        }
        full.insert(shard);
    }
}
