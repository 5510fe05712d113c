//! Dispatch of a claim: acquire its key, try shard after shard, reply. The facade starts the search and the shards
//! continue it: a shard without a worker for the claim forwards it to the next. The caller only waits, and may leave.

mod batch_routing;
mod caller_left;
mod new_claims;
mod reply_sent;

use std::cell::Cell;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::new_claims::{check_times, check_ttl};
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::gang::GangSet;
use crate::admission::key::{KeyAcquire, KeyDirectory, PendingClaim, ShardAsk};
use crate::admission::pool_registry::{Pool, PoolMap, PoolRegistry};
use crate::admission::queue::WaitQueues;
use crate::environment::Clock;
use crate::limits;
use crate::model::label_selector::SelectorCache;
use crate::model::request_error::{ExhaustionReason, ObjectKind, Precondition, RequestError, UnavailableReason};
use crate::model::{ClaimId, Fence, Millis, PlacementPolicy, RunningClaim, UnreadReply};
use crate::persist::journal::Journal;
use crate::shard::capacity_board::ShardPreference;
use crate::shard::{ClaimCall, Command, KeyReports, KeyTicket, PushRejection, ShardRef, ShardServices, ShardSet};

/// Settings of the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// Longest wait of a durable reply for the store, in milliseconds. After that it is `unavailable`, and a claim
    /// created by the same request is rolled back.
    pub store_wait_ms: u64,
    /// Maximum number of shards of all pools together. A pool that would exceed it is not created; pools already
    /// stored are served in any case.
    pub shards_max: usize,
}

impl Default for SchedulerSettings {
    fn default() -> Self {
        Self { store_wait_ms: 5_000, shards_max: limits::TOTAL_SHARDS_DEFAULT }
    }
}

/// Requests of a thread within one engine tick that are all timed.
const TIMED_PER_TICK_MAX: u32 = 32;
/// Beyond those, one request in this many is timed.
const SAMPLE_INTERVAL: u32 = 16;

thread_local! {
    /// Engine time of the last request, and the number of requests in that tick.
    static TIMED: Cell<(Millis, u32)> = const { Cell::new((0, 0)) };
}

/// State shared by the facade and all shards.
pub struct ClaimDispatcher {
    /// Directory of claim keys and their holders.
    pub keys: KeyDirectory,
    /// Registry of the pools in this process.
    pub pools: PoolRegistry,
    /// State common to all wait queues.
    pub wait_queues: WaitQueues,
    /// Parsed label selectors of recent requests.
    pub selectors: SelectorCache,
    /// Source of engine and wall-clock time.
    pub clock: Clock,
    /// Gangs that are placed, wait, or are in doubt.
    pub gangs: GangSet,
    /// Services that all shards share.
    pub services: Arc<ShardServices>,
    /// Journal that writes records to the store.
    pub journal: Arc<Journal>,
    /// Settings of the scheduler.
    pub settings: SchedulerSettings,
    /// Set while the service shuts down.
    pub stopping: AtomicBool,
}

impl std::fmt::Debug for ClaimDispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClaimDispatcher").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl ClaimDispatcher {
    /// Submits a claim and carries out what follows from it.
    pub fn submit_now(&self, pools: &PoolMap, item: Box<PendingClaim>) {
        let mut work = EffectQueue::default();
        match self.keys.acquire(item, |item| first_shard(pools, item)) {
            // Sent at once, because most claims need nothing else.
            KeyAcquire::Asking(shard, call) => self.send(pools, shard, Command::Claim(call), &mut work),
            acquired => self.follow(acquired, &mut work),
        }
        self.work_off(&mut work);
    }

    /// Submits a claim, or submits it again when the holder that it found has gone.
    pub fn submit(&self, item: Box<PendingClaim>, work: &mut EffectQueue) {
        let acquired = self.keys.acquire(item, |item| first_shard(&self.pools.load(), item));
        self.follow(acquired, work);
    }

    fn follow(&self, acquired: KeyAcquire, work: &mut EffectQueue) {
        if let Some(item) = self.on_acquired(acquired, work) {
            self.route(item, work);
        }
    }

    /// Submits claims again whose holders will not answer them.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub fn submit_again(&self, claims: Vec<Box<PendingClaim>>) {
        self.with_work(|work| claims.into_iter().for_each(|claim| work.push(Effect::Submit(claim))));
    }

    /// State of the keys of the claims that a worker reports; empty while no lost claim is adopted.
    #[must_use]
    pub fn report_keys(&self, claims: Option<&[RunningClaim]>) -> KeyReports {
        let Some(claims) = claims.filter(|_| self.keys.adoption.is_open_at(self.clock.engine_ms())) else {
            return KeyReports::new();
        };
        claims.iter().map(|claim| self.keys.report(&claim.id, claim.fence)).collect()
    }

    /// Forgets everything about a pool that is gone.
    pub fn forget_pool(&self, pool: u32) {
        self.services.forget_pool(pool);
        let unanswered = self.keys.forget_pool(pool);
        self.submit_again(unanswered);
    }

    /// Submits many claims; those whose keys are vacant go to the shards in groups.
    pub fn submit_all(&self, items: Vec<Box<PendingClaim>>, work: &mut EffectQueue) {
        let acquired: Vec<_> = items
            .into_iter()
            .filter_map(|item| {
                let acquired = self.keys.acquire(item, |_| None);
                self.on_acquired(acquired, work)
            })
            .collect();
        self.route_all(acquired, work);
    }

    /// Goes on after an attempt to acquire a key. Returns the claim if it needs a worker and no shard was picked.
    fn on_acquired(&self, acquired: KeyAcquire, work: &mut EffectQueue) -> Option<Box<PendingClaim>> {
        match acquired {
            KeyAcquire::Acquired(item) => return Some(item),
            KeyAcquire::Asking(shard, call) => work.push(Effect::Send(shard, Command::Claim(call))),
            KeyAcquire::Joined(None) => {}
            KeyAcquire::Joined(Some((until_ms, id))) => self.add_duplicate_deadline(until_ms, &id),
            KeyAcquire::HolderQueued(item) => self.reply_rejected(item, RequestError::KEY_ALREADY_WAITED_FOR),
            KeyAcquire::HeldElsewhere(item) => self.reply_rejected(item, Precondition::ClaimConflict.into()),
            KeyAcquire::NotHeld(item) => self.reply_rejected(item, Precondition::GangKeyTaken.into()),
            KeyAcquire::TooManyDuplicates(item) => {
                self.reply_rejected(item, RequestError::Unavailable(UnavailableReason::Overloaded))
            }
            KeyAcquire::Unreadable(item) => {
                self.reply_rejected(item, RequestError::Unavailable(UnavailableReason::Loading))
            }
            KeyAcquire::Repeated(repeated) => {
                work.push(Effect::Send(repeated.shard, Command::Reacquire(repeated.call)));
            }
        }
        None
    }

    /// Routes a claim with a ticket to the next shard, or rejects it when none is left.
    pub fn route(&self, mut item: Box<PendingClaim>, work: &mut EffectQueue) {
        let pools = self.pools.load();
        // A rejection passes the ticket to the oldest duplicate, which is then routed.
        loop {
            if let Some(over) = item.over_quota.take() {
                match self.queue_or_reject(item, RequestError::Exhausted(ExhaustionReason::Quota(over)), work) {
                    Some(next) => item = next,
                    None => return,
                }
                continue;
            }
            if let Some(ask) = item.next_ask(&pools) {
                self.ask_out_of_turn(ask, item, work);
                return;
            }
            let next = match next_shard(&pools, &item) {
                None if item.advance_stage(&pools) => Some(item),
                None => {
                    let rejection = item.rejection(&pools);
                    self.queue_or_reject(item, rejection, work)
                }
                Some((pool, shard)) => {
                    item.tried_shards.insert(shard);
                    let shard = ShardRef { pool: pool.number, shard };
                    self.ask(shard, item, work);
                    None
                }
            };
            match next {
                Some(next) => item = next,
                None => return,
            }
        }
    }

    /// Leaves the claim in its entry and asks a shard for a worker.
    fn ask(&self, shard: ShardRef, item: Box<PendingClaim>, work: &mut EffectQueue) {
        let call = item.call();
        self.ask_with(shard, item, call, work);
    }

    /// Asks a shard that has something for the claim, whatever stage of its search it is in.
    fn ask_out_of_turn(&self, ask: ShardAsk, item: Box<PendingClaim>, work: &mut EffectQueue) {
        let wanted = item.wanted();
        let call = item.call_for(wanted.as_ref(), ask.target);
        self.ask_with(ask.shard, item, call, work);
    }

    fn ask_with(&self, shard: ShardRef, item: Box<PendingClaim>, call: ClaimCall, work: &mut EffectQueue) {
        match self.keys.deposit(item, shard) {
            Ok(()) => work.push(Effect::Send(shard, Command::Claim(call))),
            // Somebody else released the ticket. That cannot happen, but if it does the caller must be answered.
            Err(item) => self.reply_rejected(item, RequestError::DeadlineExceeded),
        }
    }

    /// Goes on with a claim that a shard did not take.
    pub(super) fn route_past(&self, id: &ClaimId, ticket: KeyTicket, reason: PushRejection, work: &mut EffectQueue) {
        if let Some(mut item) = self.keys.withdraw(id, ticket) {
            item.unreachable = Some(reason);
            self.route(item, work);
        }
    }

    /// Releases the ticket and rejects the claim. Returns the duplicate that takes over the ticket, for the caller to
    /// route.
    pub(crate) fn reject(&self, item: Box<PendingClaim>, rejection: RequestError) -> Option<Box<PendingClaim>> {
        let mut next = self.keys.release_ticket(&item.id, item.ticket);
        self.reply_rejected(item, rejection);
        while let Some(duplicate) = next.take_if(|duplicate| self.has_no_pool(duplicate)) {
            next = self.keys.release_ticket(&duplicate.id, duplicate.ticket);
            self.reply_rejected(duplicate, RequestError::NotFound(ObjectKind::Pool));
        }
        next
    }

    /// Replies to a claim that is not served. A shard that stopped because its pool is deleted only says `loading`;
    /// here the deletion is known.
    #[allow(clippy::boxed_local, reason = "claims travel boxed; unboxing here would copy one to drop it")]
    pub(crate) fn reply_rejected(&self, item: Box<PendingClaim>, rejection: RequestError) {
        let may_be_deleted =
            matches!(rejection, RequestError::Unavailable(UnavailableReason::Loading | UnavailableReason::Stopping));
        let deleted = may_be_deleted && !self.is_draining() && self.has_no_pool(&item);
        if let Some(queued) = item.queued() {
            self.leave_queues(queued, item.wait_due_ms());
        }
        item.reply.reject(if deleted { RequestError::NotFound(ObjectKind::Pool) } else { rejection });
    }

    /// Whether every candidate pool of the claim is deleted or being deleted.
    pub(crate) fn has_no_pool(&self, item: &PendingClaim) -> bool {
        let pools = self.pools.load();
        item.candidate_pools().iter().all(|&number| pools.by_number(number).is_none_or(|pool| pool.is_closing()))
    }

    /// Rejects the claim and routes the duplicate that takes over its ticket.
    pub fn reject_and_route_next(&self, item: Box<PendingClaim>, rejection: RequestError, work: &mut EffectQueue) {
        if let Some(next) = self.reject(item, rejection) {
            self.route(next, work);
        }
    }

    /// Reports to its shard that nobody will read a reply about a claim.
    pub(crate) fn discard_reply(&self, id: &ClaimId, fence: Fence, reply: UnreadReply) {
        if let Some(holder) = self.keys.last_holder(id).filter(|holder| holder.handle.fence == fence)
            && let Some(shard_handle) = self.pools.load().shard(holder.shard)
        {
            shard_handle.discard_reply(id.clone(), holder.handle, holder.life, reply);
        }
    }

    /// Allocates fences for `n` claims and returns the first.
    ///
    /// # Errors
    /// `Store` while the store does not confirm a higher ceiling.
    pub fn allocate_fences(&self, n: u64) -> Result<u64, UnavailableReason> {
        self.services.allocate_fences(n)
    }

    /// Arrival time of a request for the histograms, in nanoseconds, or `None` if the request is not timed. Under light load
    /// every request is timed. Beyond [`TIMED_PER_TICK_MAX`] requests of a thread in one engine tick, one in
    /// [`SAMPLE_INTERVAL`] is: reading the clock and recording twice costs as much as deciding the claim.
    #[must_use]
    pub fn arrival_ns(&self) -> Option<NonZeroU64> {
        let now_ms = self.clock.engine_ms();
        let timed = TIMED.with(|timed| {
            let (tick_ms, n) = timed.get();
            let n = if tick_ms == now_ms { n.wrapping_add(1) } else { 0 };
            timed.set((now_ms, n));
            n < TIMED_PER_TICK_MAX || n.is_multiple_of(SAMPLE_INTERVAL)
        });
        if timed { NonZeroU64::new(self.clock.mono_ns().max(1)) } else { None }
    }

    /// Advances claims and gangs that wait, and gangs in doubt, to `now_ms`.
    pub fn tick(&self, now_ms: Millis, work: &mut EffectQueue) {
        self.tick_wait_queues(now_ms, work);
        self.tick_gangs(now_ms, work);
    }

    /// Whether claims may no longer wait, because a shutdown is near.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.services.is_draining()
    }

    /// Whether the service is shutting down.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// Next shard for the claim; `None` once every shard of its pool that could have a worker for it was asked.
pub fn next_shard<'a>(pools: &'a PoolMap, item: &PendingClaim) -> Option<(&'a Arc<Pool>, u16)> {
    next_shard_beside(pools, item, None)
}

/// First shard for a claim, if it has one without falling back.
fn first_shard(pools: &PoolMap, item: &PendingClaim) -> Option<ShardRef> {
    next_shard(pools, item).map(|(pool, shard)| ShardRef { pool: pool.number, shard })
}

/// Next shard for the claim that is not one of `full`.
fn next_shard_beside<'a>(
    pools: &'a PoolMap,
    item: &PendingClaim,
    full: Option<&ShardSet>,
) -> Option<(&'a Arc<Pool>, u16)> {
    let pool = pools.by_number(item.pool)?;
    if item.is_exhausted() {
        return None;
    }
    if let Some(worker) = item.pinned_worker() {
        let shard = worker.shard(pool.shards.len() as u16);
        return (!item.tried_shards.contains(shard)).then_some((pool, shard));
    }
    let tie_break = item.tie_break.rotate_left(item.tried_shards.len() * 7);
    let shard = match (pool.board.free(), item.constraints()) {
        (Some(_), Some(constraints)) => {
            pool.board.pick_with_capacity(&item.tried_shards, constraints, tie_break, preference(pool), |_| true)?
        }
        _ => match full {
            Some(full) => pool.board.pick(&item.tried_shards.union(full), item.affinity, tie_break)?,
            None => pool.board.pick(&item.tried_shards, item.affinity, tie_break)?,
        },
    };
    Some((pool, shard))
}

fn preference(pool: &Pool) -> ShardPreference {
    match pool.spec.load().policy() {
        PlacementPolicy::Spread => ShardPreference::MostFree,
        _ => ShardPreference::CoresPerGpu,
    }
}
