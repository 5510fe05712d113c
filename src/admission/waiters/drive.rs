//! How claims come into lines, and get their turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;

use super::gang;
use super::queue::Waiter;
use super::{Parked, TURN_MS, Turn, WINDOW_MS};
use crate::admission::dispatch::Dispatch;
use crate::admission::pools::Pool;
use crate::admission::tenants::Tenant;
use crate::limits;
use crate::model::rejection::{Exhausted, Refusal, Unavailable, What};
use crate::model::{ClaimId, Millis, WaitingView};
use crate::shard::ClaimItem;

/// Shares that one look brings up to date: of that many tenants, in turn.
const SHARES_LOOKED_AT: usize = 16;

impl Dispatch {
    /// A claim with a ticket has nothing left to try: it waits, if it may, or is refused. Whoever joined and takes over its ticket is
    /// returned, to be routed.
    pub(crate) fn unplaced(&self, item: Box<ClaimItem>, refusal: Refusal) -> Option<Box<ClaimItem>> {
        if item.turn().is_some() {
            return self.put_back(item, &refusal);
        }
        let now_ms = self.clock.engine_ms();
        let why = match refusal {
            Refusal::Exhausted(why @ (Exhausted::Pool | Exhausted::NodeLocality | Exhausted::Quota(_))) => why,
            // It may have been said of a claim that waits already: what could hold it may come back.
            Refusal::Unsatisfiable if item.has_waited() => Exhausted::Pool,
            refusal => return self.refuse(item, refusal),
        };
        if item.wait_until_ms() <= now_ms {
            return self.refuse(item, refusal);
        }
        self.park(item, why, now_ms)
    }

    /// Puts a claim into the lines that it may wait in.
    fn park(&self, mut item: Box<ClaimItem>, why: Exhausted, now_ms: Millis) -> Option<Box<ClaimItem>> {
        let map = self.pools.load_full();
        let pools: SmallVec<[Arc<Pool>; 1]> = match why {
            Exhausted::Quota(_) => SmallVec::new(),
            _ => item.candidates().iter().filter_map(|&number| map.at(number)).cloned().collect(),
        };
        let tenant = self.keys.tenants.of(&item.id);
        if !item.has_waited() && is_full(&pools, &tenant) {
            return self.refuse(item, Refusal::Unavailable(Unavailable::Overloaded));
        }
        let due_ms = item.rest(now_ms, || self.waiters.arrive());
        let parked = Arc::new(parked(&item, pools, tenant, why, false));
        let (id, ticket) = (item.id.clone(), item.ticket);
        *parked.lock() = Some(item);
        let Some((leave, others_due)) = self.keys.park(&id, ticket, &parked) else {
            // Somebody took the ticket away: nobody can, but then it is not ours to wait with.
            return parked.take().and_then(|item| self.refuse(item, Refusal::DeadlineExceeded));
        };
        for joiner in leave {
            joiner.reply.send(Err(Refusal::WAITED_FOR));
        }
        for due_ms in others_due {
            self.wake_joiners_at(due_ms, &id);
        }
        self.enter_lines(&parked, due_ms);
        self.leave_closed(&parked);
        if parked.lock().as_ref().is_some_and(|item| item.reply.is_gone()) {
            self.cancel(&id);
        }
        for pool in &parked.pools {
            self.pump(pool);
        }
        if parked.pools.is_empty() {
            self.pump_quota(&parked.tenant);
        }
        self.seek(&parked);
        None
    }

    /// A newcomer came to a shard that has something for those who wait, or may have: it is tried after those of them that go first.
    pub(crate) fn queue_up(&self, pool: &Arc<Pool>, mut item: Box<ClaimItem>) {
        let now_ms = self.clock.engine_ms();
        let due_ms = item.rest(now_ms, || self.waiters.arrive()).max(now_ms + WINDOW_MS);
        let tenant = self.keys.tenants.of(&item.id);
        let parked = Arc::new(parked(&item, SmallVec::from_iter([Arc::clone(pool)]), tenant, Exhausted::Pool, true));
        *parked.lock() = Some(item);
        self.enter_lines(&parked, due_ms);
    }

    pub(super) fn enter_lines(&self, parked: &Arc<Parked>, due_ms: Millis) {
        let Parked { arrival, priority, shape, once, .. } = **parked;
        if parked.pools.is_empty() {
            let mut waited = self.waiters.quota_lines();
            waited.insert(parked.tenant.number, Arc::clone(&parked.tenant));
        }
        for line in parked.lines() {
            let (tenant, item) = (parked.tenant.number, Arc::clone(parked));
            line.insert(Waiter { arrival, priority, tenant, shape, due_ms, once, item });
        }
    }

    /// There was no room for a claim that had its turn: it goes back to its place. One that does not wait goes on to its other pools.
    fn put_back(&self, mut item: Box<ClaimItem>, refusal: &Refusal) -> Option<Box<ClaimItem>> {
        let Some(turn) = item.take_turn() else { return Some(item) };
        let (parked, pool) = (Arc::clone(&turn.parked), Arc::clone(&turn.pool));
        pool.line.fail(parked.shape, turn.generation);
        if matches!(refusal, Refusal::Unavailable(_)) {
            pool.line.again.store(true, Ordering::Release);
        }
        if parked.once {
            drop(turn);
            return self.go_on(item);
        }
        let now_ms = self.clock.engine_ms();
        if matches!(refusal, Refusal::NotFound(_)) || parked.until_ms <= now_ms || item.reply.is_gone() {
            drop(turn);
            let refusal =
                if matches!(refusal, Refusal::NotFound(_)) { refusal.clone() } else { Refusal::Exhausted(parked.why) };
            return self.refuse(item, refusal);
        }
        item.rest(now_ms, || parked.arrival);
        self.lay_down(&parked, item);
        drop(turn);
        if parked.skipped.swap(false, Ordering::AcqRel) {
            // Lines that came to it meanwhile left it out.
            for other in parked.pools.iter().filter(|other| other.number != pool.number) {
                other.line.retry();
                other.line.again.store(true, Ordering::Release);
            }
        }
        self.seek(&parked);
        None
    }

    /// A claim that was being tried waits again, where it stood.
    fn lay_down(&self, parked: &Arc<Parked>, item: Box<ClaimItem>) {
        let (id, ticket) = (item.id.clone(), item.ticket);
        let joiners = self.keys.park(&id, ticket, parked);
        *parked.lock() = Some(item);
        if let Some((leave, others_due)) = joiners {
            for joiner in leave {
                joiner.reply.send(Err(Refusal::WAITED_FOR));
            }
            for due_ms in others_due {
                self.wake_joiners_at(due_ms, &id);
            }
        }
        self.leave_closed(parked);
        if parked.lock().as_ref().is_some_and(|item| item.reply.is_gone()) {
            self.cancel(&id);
        }
    }

    /// A newcomer for which the line of its pool had nothing tries the next.
    fn go_on(&self, mut item: Box<ClaimItem>) -> Option<Box<ClaimItem>> {
        let pools = self.pools.load();
        if item.leave_pool(&pools) {
            return Some(item);
        }
        let refusal = item.refusal(&pools);
        self.unplaced(item, refusal)
    }

    /// Gives turns, until one is on its way or nothing is left to try.
    pub(crate) fn pump(&self, pool: &Arc<Pool>) {
        loop {
            let now_ms = self.clock.engine_ms();
            let (parked, generation) = match self.next_turn(pool, now_ms) {
                Next::Nobody => return,
                Next::Settled(onces) => {
                    for parked in onces {
                        let Some(item) = parked.take() else { continue };
                        parked.leave();
                        if let Some(item) = self.go_on(item) {
                            self.route(item);
                        }
                    }
                    return;
                }
                Next::Turn(parked, generation) => (parked, generation),
            };
            if parked.gang.is_some() {
                gang::call(pool, &parked, generation, now_ms);
                continue;
            }
            let Some(mut item) = parked.take() else {
                parked.skipped.store(true, Ordering::Release);
                pool.line.fail(parked.shape, generation);
                pool.line.end_turn();
                continue;
            };
            item.give_turn(Turn { pool: Arc::clone(pool), parked: Arc::clone(&parked), generation });
            if item.reply.is_gone() {
                self.give_up(item, Refusal::DeadlineExceeded);
                continue;
            }
            item.enter(pool, now_ms);
            if !may_have_room(pool, &item) {
                self.put_back(item, &Refusal::Exhausted(parked.why)).into_iter().for_each(|item| self.route(item));
                continue;
            }
            if !parked.once {
                self.keys.unpark(&mut item);
                if let Some(over) = item.over_quota.take() {
                    drop(item.take_turn());
                    self.park(item, Exhausted::Quota(over), now_ms).into_iter().for_each(|item| self.route(item));
                    continue;
                }
            }
            self.route(item);
        }
    }

    fn next_turn(&self, pool: &Arc<Pool>, now_ms: Millis) -> Next {
        let line = &pool.line;
        let mut state = line.lock();
        if state.turn_since_ms.is_some_and(|since| now_ms < since + TURN_MS) {
            return Next::Nobody;
        }
        let total = pool.board.total();
        let from = state.looked_at;
        for tenant in state.queue.some_tenants(from, SHARES_LOOKED_AT) {
            state.look_at(tenant, pool.number, &total);
            state.looked_at = tenant;
        }
        // Of the first the share is right before it is taken for the first.
        for _ in 0..SHARES_LOOKED_AT {
            let Some(first) = state.queue.next().map(|waiter| waiter.tenant) else { break };
            state.look_at(first, pool.number, &total);
            if state.queue.next().is_some_and(|waiter| waiter.tenant == first) {
                break;
            }
        }
        let kept_for = state.kept_for;
        let next = match kept_for {
            Some(arrival) => state.queue.untried(arrival),
            None => state.queue.next(),
        };
        match next.map(|waiter| Arc::clone(&waiter.item)) {
            Some(parked) => {
                state.turn_since_ms = Some(now_ms);
                Next::Turn(parked, state.generation)
            }
            None => {
                // What is kept for one must not be had by a newcomer.
                line.unsettled.store(kept_for.is_some(), Ordering::Release);
                Next::Settled(state.queue.onces().cloned().collect())
            }
        }
    }

    /// A tenant may have room in its quota for claims of it that wait.
    pub(super) fn pump_quota(&self, tenant: &Arc<Tenant>) {
        let line = &tenant.line;
        let now_ms = self.clock.engine_ms();
        if line.lock().turn_since_ms.replace(now_ms).is_some() {
            // Whoever is at it goes on until nothing is left to try.
            return;
        }
        let turn = QuotaTurn(tenant);
        loop {
            let (parked, generation) = {
                let mut state = line.lock();
                match state.queue.next().map(|waiter| Arc::clone(&waiter.item)) {
                    Some(parked) => (parked, state.generation),
                    None => {
                        // In the same step: who waits from now on finds nobody at it.
                        state.turn_since_ms = None;
                        std::mem::forget(turn);
                        return;
                    }
                }
            };
            if let Some(gang) = &parked.gang {
                line.fail(parked.shape, generation);
                gang.wake();
                continue;
            }
            let Some(mut item) = parked.take() else {
                // Whoever took it is about to take it out of here too.
                drop(line.remove(parked.arrival));
                continue;
            };
            if item.reply.is_gone() {
                parked.leave();
                self.give_up(item, Refusal::DeadlineExceeded);
                continue;
            }
            self.keys.unpark(&mut item);
            if item.over_quota.take().is_some() {
                line.fail(parked.shape, generation);
                self.lay_down(&parked, item);
                continue;
            }
            parked.leave();
            self.route_anew(item, now_ms);
        }
    }

    /// A claim that waited goes its way from the beginning.
    pub(super) fn route_anew(&self, mut item: Box<ClaimItem>, now_ms: Millis) {
        let first = item.candidates().iter().find_map(|&number| self.pools.load().at(number).cloned());
        match first {
            Some(pool) => {
                item.enter(&pool, now_ms);
                self.route(item);
            }
            None => self.give_up(item, Refusal::NotFound(What::Pool)),
        }
    }

    /// Tenants were given something back: claims that wait for their quota go on.
    pub(crate) fn pump_quotas(&self) {
        while let Some(tenant) = self.keys.tenants.next_freed() {
            tenant.line.retry();
            self.pump_quota(&tenant);
        }
    }

    /// Claims that wait for their tenants' quotas.
    pub(crate) fn quota_waiters(&self) -> usize {
        self.waiters.quota_lines().values().map(|tenant| tenant.line.waiting()).sum()
    }

    /// What a key waits for.
    #[must_use]
    pub(crate) fn waiting(&self, id: &ClaimId) -> Option<WaitingView> {
        self.keys.parked(id).map(|parked| self.view_waiting(id, &parked))
    }

    /// What a gang waits for that has this key among its members, which is free meanwhile.
    #[must_use]
    pub(crate) fn waiting_gang(&self, id: &ClaimId) -> Option<WaitingView> {
        let parked = self.waiters.gangs().get(id).cloned()?;
        Some(self.view_waiting(id, &parked))
    }

    fn view_waiting(&self, id: &ClaimId, parked: &Parked) -> WaitingView {
        // Read in the middle of a tick it may be earlier than when the claim came.
        let now_ms = self.clock.engine_now_ms().max(parked.since_ms);
        let places = parked.lines().filter_map(|line| line.place(parked.arrival, now_ms));
        let (ahead, served) = places.min().unwrap_or((0, 0));
        let estimate_ms = (served > 0).then(|| (ahead as u64 + 1) * 2 * WINDOW_MS / served);
        WaitingView {
            id: id.clone(),
            pools: parked.pools.iter().map(|pool| pool.name.clone()).collect(),
            reason: parked.why.reason(),
            priority: parked.priority,
            ahead: ahead as u64,
            waited_ms: now_ms.saturating_sub(parked.since_ms),
            left_ms: parked.until_ms.saturating_sub(now_ms),
            estimate_ms,
        }
    }
}

/// The right to try the claims that wait for a tenant's quota. Dropped by a panic, it lets others go on.
struct QuotaTurn<'a>(&'a Arc<Tenant>);

impl Drop for QuotaTurn<'_> {
    fn drop(&mut self) {
        self.0.line.lock().turn_since_ms = None;
        self.0.try_again();
    }
}

enum Next {
    Nobody,
    /// There is nothing left to try; these do not wait.
    Settled(Vec<Arc<Parked>>),
    Turn(Arc<Parked>, u64),
}

impl super::State {
    fn look_at(&mut self, tenant: u64, pool: u32, total: &crate::model::Usage) {
        if let Some(known) = self.tenants.get(&tenant) {
            let share = known.share(pool, total);
            self.queue.set_share(tenant, share);
        }
    }
}

fn parked(
    item: &ClaimItem,
    pools: SmallVec<[Arc<Pool>; 1]>,
    tenant: Arc<Tenant>,
    why: Exhausted,
    once: bool,
) -> Parked {
    let (arrival, since_ms) = item.waited();
    Parked {
        item: std::sync::Mutex::new(None),
        arrival,
        priority: item.spec().map_or(0, |spec| spec.priority),
        since_ms,
        until_ms: item.wait_until_ms(),
        why,
        pools,
        tenant,
        once,
        gang: None,
        shape: item.shape(matches!(why, Exhausted::Quota(_))),
        skipped: AtomicBool::new(false),
        seeks: AtomicBool::new(false),
    }
}

/// Whether as many wait already as may.
pub(super) fn is_full(pools: &[Arc<Pool>], tenant: &Tenant) -> bool {
    if pools.is_empty() {
        return tenant.line.waiting() >= limits::QUOTA_WAITERS_MAX;
    }
    pools.iter().any(|pool| {
        let spec = pool.spec.load();
        pool.line.waiting() >= spec.waiters_max as usize
            || pool.line.lock().queue.waiting_of(tenant.number) >= spec.waiters_tenant_max as usize
    })
}

/// False only if no shard of the pool has room for the claim, whatever it settles for.
fn may_have_room(pool: &Pool, item: &ClaimItem) -> bool {
    if item.only_worker().is_some() || item.promised_shard(pool.number).is_some() {
        return true;
    }
    match pool.board.rooms() {
        None => pool.board.open_shards().next().is_some(),
        Some(rooms) => {
            let fits = |wants| pool.board.open_shards().any(|shard| rooms.may_fit(shard, wants));
            item.all_wants().any(fits)
        }
    }
}
