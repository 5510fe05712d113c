//! Gangs that wait. A gang has one entry for all its members, in the queues of all pools that they may use; the keys of
//! its members stay vacant until it is tried as a whole. On a tick at most one gang of a pool is tried, the best-ranked of
//! those for which enough seems to be free.
//!
//! A gang needs much capacity at once, and capacity comes free piece by piece. So when one has waited for
//! [`limits::RESERVE_AFTER_MS`], what comes free is held for it, for a bounded time ([`super::reservations`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::entry::is_full;
use super::pool_queue::{QueueContents, QueueGuard};
use super::reservations::ReservationKind;
use super::{ArrivalNumber, RequestClass};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::gang::{GangEvent, GangWait, total_request};
use crate::admission::key::{PendingClaim, ShardAsk};
use crate::admission::plan::AdmittedClaim;
use crate::admission::pool_registry::{Pool, PoolMap};
use crate::admission::tenant::{ChargeRank, Tenant};
use crate::engine::ClaimTarget;
use crate::limits;
use crate::model::claim_request::PoolChoice;
use crate::model::request_error::{ExhaustionReason, RequestError, UnavailableReason};
use crate::model::{ClaimId, ClaimRequest, Millis, PoolMode, ResourceUsage, ResourceVector};
use crate::shard::{GangNumber, OfferedWorkers, ReplyAddress, ShardRef};

/// Gangs of a pool, the best-ranked first, that one tick may find to be worth a try.
pub(super) const GANGS_TRIED_MAX: usize = 64;

/// Gangs of a pool, by rank.
pub(super) type GangRanks = BTreeMap<(Reverse<u16>, ArrivalNumber), Arc<WaitingGang>>;

/// Gang that waits for capacity or for quota.
#[derive(Debug)]
pub struct WaitingGang {
    /// Number of the gang in this process.
    pub number: GangNumber,
    /// Arrival number, the same in all queues.
    pub arrival: ArrivalNumber,
    /// Highest priority of a member.
    pub priority: u16,
    /// Engine time at which the wait began.
    pub since_ms: Millis,
    /// Engine time at which the wait ends.
    pub until_ms: Millis,
    /// Pools in whose queues it is.
    pub pools: SmallVec<[Arc<Pool>; 1]>,
    /// Tenant of its first member.
    pub tenant: Arc<Tenant>,
    /// Why the last attempt failed.
    pub exhausted: ExhaustionReason,
    /// Request of each member.
    pub classes: Vec<RequestClass>,
    /// Numbers of the pools that each member may use.
    member_pools: Vec<Vec<u32>>,
    /// Total request: number of workers in exclusive pools, resources in shared ones.
    request: (usize, ResourceVector),
    /// Amounts that its members are charged together.
    pub(super) need: ResourceUsage,
    /// Requests of the members.
    requests: Arc<[ClaimRequest]>,
    /// Lowest priority of a member: nobody is evicted for a gang who would not be for each member.
    pub lowest_priority: u16,
    last_attempt: Mutex<LastAttempt>,
}

/// Last attempt to place a gang that waits.
#[derive(Debug, Clone, Default)]
pub struct LastAttempt {
    /// Engine time at which it failed: as of then it is known what the gang lacks.
    pub failed_ms: Millis,
    /// Engine time before which the gang is not tried.
    pub retry_ms: Millis,
    /// Members for which there was no worker, by their positions.
    pub missing: Vec<usize>,
    /// Whether the gang is being tried again.
    pub is_running: bool,
}

impl WaitingGang {
    /// Whether what it waits for seems to be there.
    fn may_succeed(&self, now_ms: Millis) -> bool {
        let last = self.last_attempt();
        !last.is_running && last.retry_ms <= now_ms && self.has_enough()
    }

    /// Whether what it waits for seems to be there, whenever it was tried last.
    pub(super) fn has_enough(&self) -> bool {
        if matches!(self.exhausted, ExhaustionReason::Quota(_)) {
            let rank = ChargeRank { priority: self.priority, arrival: Some(self.arrival) };
            return self.tenant.allows_refused(&self.need, rank);
        }
        let (workers, amounts) = self.request;
        let (mut idle, mut free, mut shared) = (0, ResourceVector::default(), false);
        for pool in &self.pools {
            let held = pool.wait_queue.lock().queue.reservations.held_for(self.arrival);
            match pool.board.free() {
                None => {
                    let shards = pool.shards.iter();
                    idle += held + shards.map(|handle| pool.board.idle(handle.shard.shard) as usize).sum::<usize>();
                }
                // What is free of a held worker is not published.
                Some(_) if held > 0 => return true,
                Some(capacity) => {
                    shared = true;
                    free = free.saturating_add(capacity.total(pool.board.open_shards()));
                }
            }
        }
        if shared { amounts.fits_in(free) } else { idle >= workers }
    }

    /// Whether the pool's usable workers could hold all of it if nothing else were held.
    pub(super) fn is_feasible(&self, pool: &Pool, usable: u64) -> bool {
        let (workers, amounts) = self.request;
        match pool.spec.load().mode {
            PoolMode::Exclusive => workers as u64 <= usable,
            PoolMode::Shared => {
                let ResourceUsage { cpu_milli, memory_bytes, gpu_milli, .. } = pool.board.total();
                amounts.cpu_milli <= cpu_milli && amounts.memory_bytes <= memory_bytes && amounts.gpu_milli <= gpu_milli
            }
        }
    }

    /// Gang of a test, which waits in no queue.
    #[cfg(test)]
    pub fn of_test(number: GangNumber) -> Self {
        let id = ClaimId::new("ns", "t", "k").expect("the names are valid");
        Self {
            number,
            arrival: ArrivalNumber::new(number).expect("gangs count from 1"),
            priority: 0,
            since_ms: 0,
            until_ms: 0,
            pools: SmallVec::new(),
            tenant: crate::admission::tenant::TenantDirectory::default().get_or_insert(&id),
            exhausted: ExhaustionReason::Pool,
            classes: Vec::new(),
            member_pools: Vec::new(),
            request: (1, ResourceVector::default()),
            need: ResourceUsage::default(),
            requests: Arc::new([]),
            lowest_priority: 0,
            last_attempt: Mutex::default(),
        }
    }

    /// Requests of the members that may use a pool.
    pub(super) fn classes_in(&self, pool: u32) -> impl Iterator<Item = &RequestClass> {
        let members = self.classes.iter().zip(&self.member_pools);
        members.filter(move |(_, pools)| pools.contains(&pool)).map(|(class, _)| class)
    }

    /// Number of workers of a pool that are held for the gang at most, if it has so many usable ones.
    pub(super) fn wanted_workers(&self, pool: &Pool, usable: u64) -> usize {
        self.classes_in(pool.number).count().min(usize::try_from(usable).unwrap_or(usize::MAX))
    }

    /// Rank of the gang in its queues.
    pub(super) const fn rank(&self) -> (Reverse<u16>, ArrivalNumber) {
        (Reverse(self.priority), self.arrival)
    }

    /// Notes that an attempt has failed.
    pub fn note_attempt(&self, attempt: LastAttempt) {
        *self.last_attempt.lock() = attempt;
    }

    /// Notes that the gang is being tried.
    pub fn begin_attempt(&self) {
        self.last_attempt.lock().is_running = true;
    }

    /// Last attempt to place the gang.
    #[must_use]
    pub fn last_attempt(&self) -> LastAttempt {
        self.last_attempt.lock().clone()
    }

    /// Whether the gang waits for what `reason` names.
    #[must_use]
    pub const fn waits_for(&self, reason: ExhaustionReason) -> bool {
        matches!(reason, ExhaustionReason::Quota(_)) == matches!(self.exhausted, ExhaustionReason::Quota(_))
    }
}

impl QueueGuard<'_> {
    /// Number of gangs ahead of this one.
    pub(super) fn gangs_ahead(&self, arrival: ArrivalNumber) -> usize {
        self.gangs.values().take_while(|gang| gang.arrival != arrival).count()
    }
}

impl ClaimDispatcher {
    /// Ends the waits of the gangs of a pool that is being deleted, or lets them go on in others.
    pub(super) fn close_gangs(&self, pool: &Pool, work: &mut EffectQueue) {
        let gangs: Vec<_> = pool.wait_queue.lock().gangs.values().cloned().collect();
        gangs.iter().for_each(|gang| work.push(Effect::gang(gang.number, GangEvent::Closing)));
    }

    /// Lets the best-ranked gang be tried for which enough seems to be free.
    pub(super) fn tick_waiting_gangs(&self, pool: &Pool, now_ms: Millis, work: &mut EffectQueue) {
        let gangs: SmallVec<[_; 4]> = pool.wait_queue.lock().gangs.values().take(GANGS_TRIED_MAX).cloned().collect();
        if let Some(gang) = gangs.iter().find(|gang| gang.may_succeed(now_ms)) {
            work.push(Effect::gang(gang.number, GangEvent::MayFit));
        }
    }

    /// Begins or ends the hold for a gang.
    pub(super) fn renew_gang_hold(&self, pool: &Pool, now_ms: Millis) {
        let gangs: Vec<_> = pool.wait_queue.lock().gangs.values().cloned().collect();
        let usable = pool.usable_workers();
        // One that could never be complete keeps nothing.
        let may_keep = |gang: &&Arc<WaitingGang>| {
            !matches!(gang.exhausted, ExhaustionReason::Quota(_)) && gang.is_feasible(pool, usable)
        };
        let is_starved =
            |gang: &&Arc<WaitingGang>| gang.since_ms + limits::RESERVE_AFTER_MS <= now_ms && may_keep(gang);
        let wanted = |gang: &WaitingGang| gang.wanted_workers(pool, usable);
        let mut queue = pool.wait_queue.lock();
        let QueueContents { queue: index, gangs: queue_gangs, .. } = &mut *queue;
        let reservations = &mut index.reservations;
        let (mut ended, mut begins) = (Vec::new(), false);
        if reservations.gang_hold().is_some_and(|(arrival, until_ms)| {
            until_ms <= now_ms || !gangs.iter().filter(may_keep).any(|gang| gang.arrival == arrival)
        }) {
            ended = reservations.end_gang_hold(usable, now_ms);
        }
        let starved =
            gangs.iter().filter(is_starved).filter(|gang| reservations.may_hold(wanted(gang) as u64, usable, now_ms));
        let next =
            starved.min_by_key(|gang| (Reverse(gang.priority), reservations.expired_holds(gang.arrival), gang.arrival));
        // It may have left since.
        let next = next.filter(|gang| queue_gangs.contains_key(&gang.rank()));
        if let Some(gang) = next {
            let range_ms = now_ms..now_ms + pool.spec.load().hold_max_ms;
            reservations.begin_gang_hold(gang, pool.number, ReservationKind::Held, wanted(gang), range_ms);
            begins = true;
        }
        drop(queue);
        for (shard, number) in ended {
            pool.shards[shard as usize].cancel_reservation(number);
        }
        if begins {
            // What is free already is held too.
            pool.shards.iter().for_each(|handle| handle.offer_again(OfferedWorkers::All));
        }
    }

    /// Lets the members of a gang ask for the workers that are held for it, each for another one first.
    pub(crate) fn ask_held(&self, arrival: ArrivalNumber, pools: &[Arc<Pool>], items: &mut [Box<PendingClaim>]) {
        let mut held: Vec<ShardAsk> = Vec::new();
        for pool in pools {
            for (shard, number) in pool.wait_queue.lock().queue.reservations.held_workers(arrival) {
                let shard = ShardRef { pool: pool.number, shard };
                held.push(ShardAsk { shard, target: Some(ClaimTarget::Reserved(number)) });
            }
        }
        if held.is_empty() {
            return;
        }
        for item in items {
            // Only in pools that this member may use.
            let asks: VecDeque<ShardAsk> =
                held.iter().filter(|ask| item.candidate_pools().contains(&ask.shard.pool)).copied().collect();
            item.asks = (!asks.is_empty()).then(|| Box::new(asks));
            held.rotate_left(1);
        }
    }

    /// Enters a gang into the queues of all its candidate pools.
    ///
    /// # Errors
    /// The rejections by member: it has no pool any more, a queue is full, or all are closed.
    pub(in crate::admission) fn enqueue_gang(
        &self,
        number: GangNumber,
        wait: &GangWait,
    ) -> Result<Arc<WaitingGang>, BTreeMap<usize, RequestError>> {
        let GangWait { requests, exhausted, wait_ms, last_attempt, arrival } = wait;
        let map = self.pools.load_full();
        let reject_all = |error: RequestError| -> BTreeMap<usize, RequestError> {
            (0..requests.len()).map(|index| (index, error.clone())).collect()
        };
        let (admitted, numbers) = self.candidates_of_gang(&map, requests)?;
        let pools: SmallVec<[Arc<Pool>; 1]> =
            numbers.into_iter().filter_map(|number| map.by_number(number)).cloned().collect();
        let tenant = self.keys.tenants.get_or_insert(&requests[0].id);
        if arrival.is_none() && pools.iter().any(|pool| is_full(pool, &tenant)) {
            return Err(reject_all(RequestError::Unavailable(UnavailableReason::Overloaded)));
        }
        let priorities = || {
            let constraints = requests.iter().map(|request| request.constraints.as_ref());
            constraints.map(|constraints| constraints.map_or(0, |constraints| constraints.spec.priority))
        };
        let (priority, lowest_priority) = (priorities().max().unwrap_or(0), priorities().min().unwrap_or(0));
        let member_pools = admitted.iter().map(AdmittedClaim::pools).collect();
        let members = requests.iter().zip(admitted);
        let classes: Vec<RequestClass> = members
            .map(|(request, admitted)| self.pending_claim(request, admitted, None, ReplyAddress::discard()).class())
            .collect();
        let amounts = classes.iter().map(|class| {
            let spec = class.constraints.as_ref().and_then(|constraints| constraints.spec.as_deref());
            ResourceUsage::of_claim(spec)
        });
        let gang = Arc::new(WaitingGang {
            number,
            arrival: arrival.unwrap_or_else(|| self.keys.ids.next_arrival()),
            priority,
            since_ms: wait_ms.start,
            until_ms: wait_ms.end,
            pools,
            tenant,
            exhausted: *exhausted,
            request: (requests.len(), total_request(requests).saturate()),
            need: amounts.fold(ResourceUsage::default(), |sum, more| sum.plus(&more)),
            classes,
            member_pools,
            requests: Arc::clone(requests),
            lowest_priority,
            last_attempt: Mutex::new(last_attempt.clone()),
        });
        let entered = gang.pools.iter().map(|pool| pool.wait_queue.lock().enter_gang(&gang)).filter(|entered| *entered);
        if entered.count() == 0 {
            return Err(reject_all(self.closed_rejection()));
        }
        let keys: Vec<ClaimId> = requests.iter().map(|request| request.id.clone()).collect();
        self.wait_queues.gangs.lock().insert(&gang, &keys);
        Ok(Arc::clone(&gang))
    }

    /// Admitted claims of the members, and the numbers of their candidate pools.
    ///
    /// # Errors
    /// The rejections by member.
    fn candidates_of_gang(
        &self,
        pools: &PoolMap,
        requests: &[ClaimRequest],
    ) -> Result<(Vec<AdmittedClaim>, BTreeSet<u32>), BTreeMap<usize, RequestError>> {
        let left = self.without_deleted_pools(requests);
        let (mut admitted, mut rejections) = (Vec::new(), BTreeMap::new());
        for (index, request) in left.as_deref().unwrap_or(requests).iter().enumerate() {
            match AdmittedClaim::new(pools, &self.selectors, request) {
                Ok(claim) => admitted.push(claim),
                Err(error) => drop(rejections.insert(index, error)),
            }
        }
        let numbers = admitted.iter().flat_map(AdmittedClaim::pools).collect();
        if rejections.is_empty() { Ok((admitted, numbers)) } else { Err(rejections) }
    }

    /// Lets the gangs that wait in these pools, and select pools by labels, wait in the pools that they select now.
    pub(super) fn reselect_for_gangs(&self, map: &PoolMap, pools: &[Arc<Pool>], work: &mut EffectQueue) {
        let mut gangs: BTreeMap<GangNumber, Arc<WaitingGang>> = BTreeMap::new();
        for pool in pools {
            let queue = pool.wait_queue.lock();
            gangs.extend(queue.gangs.values().map(|gang| (gang.number, Arc::clone(gang))));
        }
        let selects = |request: &ClaimRequest| matches!(request.pools, PoolChoice::Selected(_));
        for gang in gangs.into_values().filter(|gang| gang.requests.iter().any(selects)) {
            let now = self.candidates_of_gang(map, &gang.requests).map(|(_, numbers)| numbers);
            if !now.is_ok_and(|now| gang.pools.iter().map(|pool| pool.number).eq(now)) {
                work.push(Effect::gang(gang.number, GangEvent::PoolsChanged));
            }
        }
    }

    /// Takes a gang out of all queues.
    pub(in crate::admission) fn dequeue_gang(&self, gang: &WaitingGang) {
        for pool in &gang.pools {
            let usable = pool.usable_workers();
            let mut queue = pool.wait_queue.lock();
            queue.leave_gang(gang);
            let held = match queue.queue.reservations.gang_hold() {
                Some((arrival, _)) if arrival == gang.arrival => {
                    queue.queue.reservations.drop_gang_hold(usable, self.clock.engine_ms())
                }
                _ => Vec::new(),
            };
            drop(queue);
            for (shard, number) in held {
                pool.shards[shard as usize].cancel_reservation(number);
            }
        }
        self.wait_queues.gangs.lock().remove(gang);
    }
}
