//! A claim's way: to its key, from shard to shard, to an answer. What the facade begins here, the shards go on with: a
//! claim that one shard has no room for is handed to the next by the one that said so, so the caller only waits, and
//! may leave.

mod in_doubt;
mod reply_sent;

use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::in_doubt::{InDoubtGang, InDoubtMember};
use crate::admission::capacity_board::{BatchBudget, FreeCapacity, ShardPreference};
use crate::admission::ended_claims::EndedClaims;
use crate::admission::key_directory::{KeyAcquire, KeyDirectory, KeyLookup, ShardRef};
use crate::admission::pool_registry::{Pool, PoolMap, PoolRegistry};
use crate::admission::wait_queue::WaitQueues;
use crate::clock::Clock;
use crate::engine::PlacementConstraints;
use crate::limits;
use crate::model::label_selector::SelectorCache;
use crate::model::request_error::{ExhaustionReason, ObjectKind, RequestError, UnavailableReason};
use crate::model::{ClaimId, Fence, Millis, PlacementPolicy};
use crate::persist::fencing::FenceGenerator;
use crate::persist::journal::Journal;
use crate::shard::{Command, PendingClaim, ReplyPayload, ShardOutcome};

/// Most claims of a batch that go to one shard in one command: enough to pay its wake, few enough to spread.
const SHARD_BATCH_MAX: usize = 64;

/// Bounds that the configuration sets.
#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// How long a durable answer waits for the store, in milliseconds; then it is `unavailable`, and a claim that was
    /// made by this very request is given back.
    pub store_wait_ms: u64,
    /// Most shards of all pools together; a pool that would bring more is not made. Pools that a store has already are
    /// served however many they have.
    pub shards_max: usize,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self { store_wait_ms: 5_000, shards_max: limits::TOTAL_SHARDS_DEFAULT }
    }
}

/// Requests of a thread within one tick of the engine's time that are all timed.
const TIMED_PER_TICK_MAX: u32 = 32;
/// Of the others one in so many.
const SAMPLE_INTERVAL: u32 = 16;

thread_local! {
    /// Engine time of the last request, and how many came in that tick.
    static TIMED: Cell<(Millis, u32)> = const { Cell::new((0, 0)) };
}

/// What all shards share.
pub struct ClaimDispatcher {
    /// Who holds a key.
    pub keys: KeyDirectory,
    /// The pools.
    pub pools: PoolRegistry,
    /// Claims that wait.
    pub wait_queues: WaitQueues,
    /// Selectors that requests brought.
    pub selectors: SelectorCache,
    /// Time.
    pub clock: Clock,
    /// Claims that ended without their holder's doing.
    pub ended_claims: EndedClaims,
    /// Gangs that cannot be decided at present.
    pub gangs_in_doubt: Mutex<Vec<InDoubtGang>>,
    /// Numbers of grants.
    pub fences: FenceGenerator,
    /// The way to the store.
    pub journal: Arc<Journal>,
    /// Bounds.
    pub settings: SchedulerSettings,
    /// The service is about to shut down: calls are answered, but nobody waits any more.
    pub draining: AtomicBool,
    /// The service is shutting down.
    pub stopping: AtomicBool,
}

impl std::fmt::Debug for ClaimDispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatch").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl ClaimDispatcher {
    /// A claim begins, or begins anew after what it found was gone.
    pub fn submit(&self, item: Box<PendingClaim>) {
        if let Some(item) = self.acquire_key(item) {
            self.route(item);
        }
    }

    /// The same for many: those whose keys are vacant go to the shards in groups.
    pub fn submit_all(&self, items: Vec<Box<PendingClaim>>) {
        let ours: Vec<_> = items.into_iter().filter_map(|item| self.acquire_key(item)).collect();
        self.route_all(ours);
    }

    /// Takes the key's ticket. None: the claim waits elsewhere, or is answered.
    fn acquire_key(&self, item: Box<PendingClaim>) -> Option<Box<PendingClaim>> {
        match self.keys.acquire(item) {
            KeyAcquire::Acquired(item) => return Some(item),
            KeyAcquire::Joined(None) => {}
            KeyAcquire::Joined(Some((until_ms, id))) => self.schedule_duplicate_expiry(until_ms, &id),
            KeyAcquire::HolderQueued(item) => self.reply_rejected(item, RequestError::KEY_ALREADY_WAITED_FOR),
            KeyAcquire::TooManyDuplicates(item) => {
                self.reply_rejected(item, RequestError::Unavailable(UnavailableReason::Overloaded))
            }
            KeyAcquire::Unreadable(item) => {
                self.reply_rejected(item, RequestError::Unavailable(UnavailableReason::Loading))
            }
            KeyAcquire::Held(item, hold) => {
                let pools = self.pools.load();
                match pools.shard(hold.shard) {
                    // The pool is being deleted; its shard frees the key in a moment.
                    None => self.reply_rejected(item, RequestError::Unavailable(UnavailableReason::Loading)),
                    Some(port) => {
                        if let Err((Command::Reacquire(item, _), why)) =
                            port.push(Command::Reacquire(item, hold.handle))
                        {
                            self.reply_rejected(item, RequestError::Unavailable(why));
                        }
                    }
                }
            }
        }
        None
    }

    /// Sends a claim with a ticket to the next shard, or refuses it when none is left.
    pub fn route(&self, mut item: Box<PendingClaim>) {
        let pools = self.pools.load();
        // A refusal hands the ticket on to whoever joined: then that one is routed.
        loop {
            if let Some(over) = item.over_quota.take() {
                match self.queue_or_reject(item, RequestError::Exhausted(ExhaustionReason::Quota(over))) {
                    Some(next) => item = next,
                    None => return,
                }
                continue;
            }
            let next = match next_shard(&pools, &item) {
                None if item.advance_stage(&pools) => Some(item),
                None => {
                    let refusal = item.refusal(&pools);
                    self.queue_or_reject(item, refusal)
                }
                Some((pool, shard)) => {
                    item.tried_shards.insert(shard);
                    match pool.shards[shard as usize].push(Command::Claim(item)) {
                        Err((Command::Claim(mut item), why)) => {
                            item.unreachable = Some(why);
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
    pub fn route_all(&self, mut items: Vec<Box<PendingClaim>>) {
        let over: Vec<_> = items.extract_if(.., |item| item.over_quota.is_some()).collect();
        over.into_iter().for_each(|item| self.route(item));
        let pools = self.pools.load();
        let is_share = |item: &PendingClaim| pools.by_number(item.pool).is_some_and(|pool| pool.board.free().is_some());
        if items.len() > 1 && items.iter().any(|item| is_share(item)) {
            let (shares, whole): (Vec<_>, _) = items.into_iter().partition(|item| is_share(item));
            self.route_shared(&pools, shares);
            items = whole;
        }
        // They are taken from the end, and what is left goes to those that came first.
        items.reverse();
        while items.len() > 1 {
            let last = &items[items.len() - 1];
            let picked = if last.pinned_worker().is_some() { None } else { next_shard(&pools, last) };
            let Some((pool, shard)) = picked else {
                // It falls back, is refused, or goes to the shard of its worker.
                items.pop().into_iter().for_each(|item| self.route(item));
                continue;
            };
            let room = (pool.board.idle(shard) as usize).clamp(1, SHARD_BATCH_MAX);
            let mut group = Vec::with_capacity(room.min(items.len()));
            while group.len() < room
                && let Some(mut item) = items.pop_if(|item| {
                    item.pool == pool.number && !item.tried_shards.contains(shard) && item.pinned_worker().is_none()
                })
            {
                item.tried_shards.insert(shard);
                group.push(item);
            }
            if let Err((Command::Claims(group), why)) = pool.shards[shard as usize].push(Command::Claims(group)) {
                for mut item in group {
                    item.unreachable = Some(why);
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
    fn route_shared(&self, pools: &PoolMap, items: Vec<Box<PendingClaim>>) {
        let mut portions = BatchPortions::default();
        // Where the last one went: as many as fit go to one shard, and so to few workers.
        let mut last: Option<ShardRef> = None;
        for mut item in items {
            let picked = portion_shard(pools, &item, &mut portions, last);
            let Some(shard) = picked else {
                self.route(item);
                continue;
            };
            item.tried_shards.insert(shard.shard);
            portions.items.entry(shard).or_default().push(item);
            last = Some(shard);
        }
        for (shard, group) in portions.items {
            let Some(port) = pools.shard(shard) else { continue };
            if let Err((Command::Claims(group), why)) = port.push(Command::Claims(group)) {
                for mut item in group {
                    item.unreachable = Some(why);
                    self.route(item);
                }
            }
        }
    }

    /// Gives the ticket up and answers. Whoever joined and takes over the ticket is returned, to be routed.
    pub(crate) fn reject(&self, item: Box<PendingClaim>, refusal: RequestError) -> Option<Box<PendingClaim>> {
        let mut next = self.keys.release_ticket(&item.id, item.ticket);
        self.reply_rejected(item, refusal);
        while let Some(joined) = next.take_if(|joined| self.has_no_pool(joined)) {
            next = self.keys.release_ticket(&joined.id, joined.ticket);
            self.reply_rejected(joined, RequestError::NotFound(ObjectKind::Pool));
        }
        next
    }

    /// Answers a claim that is not carried out. A shard that does not serve because its pool is deleted says no more than
    /// that; here it is known.
    #[allow(clippy::boxed_local, reason = "claims travel boxed; unboxing here would copy one to drop it")]
    pub(crate) fn reply_rejected(&self, item: Box<PendingClaim>, refusal: RequestError) {
        let silent =
            matches!(refusal, RequestError::Unavailable(UnavailableReason::Loading | UnavailableReason::Stopping));
        let deleted = silent && !self.is_draining() && self.has_no_pool(&item);
        item.reply.send(Err(if deleted { RequestError::NotFound(ObjectKind::Pool) } else { refusal }));
    }

    /// Whether every pool that the claim may be taken from is deleted, or about to be.
    pub(crate) fn has_no_pool(&self, item: &PendingClaim) -> bool {
        let pools = self.pools.load();
        item.candidate_pools().iter().all(|&number| pools.by_number(number).is_none_or(|pool| pool.is_closing()))
    }

    /// The same, and routes whoever takes over.
    pub fn reject_and_route_next(&self, item: Box<PendingClaim>, refusal: RequestError) {
        if let Some(next) = self.reject(item, refusal) {
            self.route(next);
        }
    }

    /// Rolls back a claim whose grant will reach nobody, unless others were told of it.
    pub(crate) fn roll_back(&self, id: &ClaimId, fence: Fence) {
        if let KeyLookup::Held(hold) = self.keys.lookup(id)
            && hold.handle.fence == fence
            && let Some(port) = self.pools.load().shard(hold.shard)
        {
            port.roll_back(id.clone(), fence);
        }
    }

    /// Rolls back what an answer granted that nobody will read.
    pub(crate) fn roll_back_unread(&self, id: &ClaimId, outcome: &ShardOutcome) {
        if let Ok(ReplyPayload::Claim(answer)) = outcome
            && answer.created
        {
            self.roll_back(id, answer.grant.handle.fence);
        }
    }

    /// A fence for `n` claims, or why there is none.
    ///
    /// # Errors
    /// `store` while the store does not hold a higher ceiling.
    pub fn allocate_fences(&self, n: u64) -> Result<u64, UnavailableReason> {
        self.fences.allocate(n, self.clock.unix_us()).ok_or(UnavailableReason::Store)
    }

    /// When a request came in, for the histograms; 0: this one is not timed. While load is light every request is,
    /// past [`TIMED_PER_TICK_MAX`] of a thread within a tick of the engine's time one in [`SAMPLE_INTERVAL`]: reading the clock and
    /// keeping the result twice costs as much as deciding the claim.
    #[must_use]
    pub fn arrival_ns(&self) -> u64 {
        let now_ms = self.clock.engine_ms();
        let timed = TIMED.with(|timed| {
            let (tick_ms, n) = timed.get();
            let n = if tick_ms == now_ms { n.wrapping_add(1) } else { 0 };
            timed.set((now_ms, n));
            n < TIMED_PER_TICK_MAX || n.is_multiple_of(SAMPLE_INTERVAL)
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
pub fn next_shard<'a>(pools: &'a PoolMap, item: &PendingClaim) -> Option<(&'a Arc<Pool>, u16)> {
    let pool = pools.by_number(item.pool)?;
    if item.is_exhausted() {
        return None;
    }
    if let Some(shard) = item.reserved_shard(pool.number).filter(|shard| !item.tried_shards.contains(*shard)) {
        return Some((pool, shard));
    }
    if let Some(worker) = item.pinned_worker() {
        let shard = worker.shard(pool.shards.len() as u16);
        return (!item.tried_shards.contains(shard)).then_some((pool, shard));
    }
    let salt = item.tie_break.rotate_left(item.tried_shards.len() * 7);
    let shard = match (pool.board.free(), item.constraints()) {
        (Some(_), Some(wants)) => {
            pool.board.pick_with_capacity(&item.tried_shards, wants, salt, preference(pool), |_| true)?
        }
        _ => pool.board.pick(&item.tried_shards, item.affinity, salt)?,
    };
    Some((pool, shard))
}

fn preference(pool: &Pool) -> ShardPreference {
    match pool.spec.load().policy() {
        PlacementPolicy::Spread => ShardPreference::MostFree,
        _ => ShardPreference::CoresPerGpu,
    }
}

/// Most needs of one batch that are remembered as having found nothing left.
const EXHAUSTED_MAX: usize = 16;

/// Of a batch, what goes to each shard.
#[derive(Default)]
struct BatchPortions {
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
    items: BTreeMap<ShardRef, Vec<Box<PendingClaim>>>,
    /// What is left there beside them.
    budgets: BTreeMap<ShardRef, BatchBudget>,
    /// Needs for which no shard of a pool has anything left. What is left only shrinks while a batch is portioned.
    exhausted: Vec<(u32, Arc<PlacementConstraints>)>,
}

impl BatchPortions {
    fn budget(&self, shard: ShardRef, rooms: &FreeCapacity) -> BatchBudget {
        self.budgets.get(&shard).copied().unwrap_or_else(|| rooms.budget(shard.shard))
    }

    /// Takes what the claim asks for out of what is left of the shard. False: there is not enough.
    fn try_take(&mut self, shard: ShardRef, rooms: &FreeCapacity, wants: &PlacementConstraints) -> bool {
        let mut budget = self.budget(shard, rooms);
        let enough = budget.try_take(wants);
        if enough {
            self.budgets.insert(shard, budget);
        }
        enough
    }

    fn is_exhausted_for(&self, pool: u32, wants: &PlacementConstraints) -> bool {
        let needs =
            |wants: &PlacementConstraints| (wants.spec.as_ref().map(|spec| spec.resources.clone()), wants.gpus.clone());
        self.exhausted.iter().any(|(of, known)| *of == pool && needs(known) == needs(wants))
    }

    fn mark_exhausted_for(&mut self, pool: u32, wants: &Arc<PlacementConstraints>) {
        if self.exhausted.len() < EXHAUSTED_MAX {
            self.exhausted.push((pool, Arc::clone(wants)));
        }
    }
}

/// The shard of a batch's portion that a claim for a share goes to, and what it takes of that.
fn portion_shard(
    pools: &PoolMap,
    item: &PendingClaim,
    portions: &mut BatchPortions,
    last: Option<ShardRef>,
) -> Option<ShardRef> {
    let pool = pools.by_number(item.pool)?;
    if item.pinned_worker().is_some() {
        return next_shard(pools, item).map(|(pool, shard)| ShardRef { pool: pool.number, shard });
    }
    let (rooms, wants) = (pool.board.free()?, item.constraints()?);
    let of = |shard: u16| ShardRef { pool: pool.number, shard };
    let preference = preference(pool);
    let stay = last.filter(|last| last.pool == pool.number && !item.tried_shards.contains(last.shard));
    let stay = stay.filter(|last| preference != ShardPreference::MostFree && rooms.may_fit(last.shard, wants));
    if let Some(last) = stay.filter(|last| portions.try_take(*last, rooms, wants)) {
        return Some(last);
    }
    if !portions.is_exhausted_for(pool.number, wants) {
        let salt = item.tie_break.rotate_left(item.tried_shards.len() * 7);
        let has = |shard: u16| portions.budget(of(shard), rooms).try_take(wants);
        if let Some(shard) = pool.board.pick_with_capacity(&item.tried_shards, wants, salt, preference, has) {
            let taken = portions.try_take(of(shard), rooms, wants);
            return taken.then_some(of(shard));
        }
        if item.tried_shards.is_empty() {
            portions.mark_exhausted_for(pool.number, wants);
        }
    }
    // What is left of each is spoken for, as far as is known. Whoever may have more is asked all the same.
    next_shard(pools, item).map(|(_, shard)| of(shard))
}
