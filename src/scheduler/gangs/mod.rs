//! Gangs: all of a call's claims or none, over shards and pools.
//!
//! ```text
//! keys' tickets -> members granted as provisional, stored -> home records the gang, stored: it is committed
//!               -> members are claims, stored -> home forgets the gang
//! ```
//!
//! Who is between the first and the second arrow holds the pools' gang locks, so gangs of one pool go one after another
//! and no two hold each other's halves. What follows, and what happens when a step is not answered, is `commit`'s matter; a
//! crash is recovery's ([`crate::scheduler::recovery`]). Answers are durable, whatever the pool promises.

mod commit;
mod in_doubt;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, oneshot};

use super::Scheduler;
use crate::admission::candidate_plan::AdmittedClaim;
use crate::admission::key_directory::{KeyLookup, KeyTicket};
use crate::admission::pool_registry::Pool;
use crate::admission::wait_queue::GangPlace;
use crate::limits;
use crate::metrics::{GangOutcome, ShardState, metrics};
use crate::model::GangRef;
use crate::model::request_error::{ExhaustionReason, RequestError, UnavailableReason};
use crate::model::{ClaimId, ClaimRequest, ClaimResult, Fence, Millis, PoolMode, WorkerCapacity};
use crate::shard::{ReplyBatch, ReplySender};

use self::commit::GangDecision;

/// How often a gang is placed anew in one call because a worker of it went before it was committed.
const ATTEMPTS: usize = 3;

/// What a gang came to: an outcome a member.
type GangResults = Vec<Result<ClaimResult, RequestError>>;

/// A member of a gang on its way.
struct GangMember {
    id: ClaimId,
    ticket: KeyTicket,
    /// Numbers of the pools that it may be taken from.
    pools: Vec<u32>,
}

/// A gang whose caller waits for its outcomes. Dropped with them unread, the caller has left: they are rolled back.
struct ClaimingGang<'a> {
    scheduler: &'a Scheduler,
    outcomes: oneshot::Receiver<GangResults>,
}

impl Drop for ClaimingGang<'_> {
    fn drop(&mut self) {
        self.outcomes.close();
        if let Ok(unread) = self.outcomes.try_recv() {
            self.scheduler.roll_back_gang(unread);
        }
    }
}

impl Scheduler {
    /// All of these claims or none, in order. If any cannot be made none is: it has its own refusal, the others
    /// [`RequestError::Gang`]. If the keys are all held already, what they hold is found, as by [`Scheduler::claim_batch`].
    pub async fn claim_gang(&self, requests: Vec<ClaimRequest>) -> GangResults {
        if requests.is_empty() {
            return Vec::new();
        }
        if let Err(refusal) = self.check_serving() {
            return requests.iter().map(|_| Err(refusal.clone())).collect();
        }
        let held = |request: &ClaimRequest| matches!(self.dispatch().keys.lookup(&request.id), KeyLookup::Held(_));
        if requests.iter().all(held) {
            return self.claim_batch(requests).await;
        }
        let members = requests.len();
        let pools: Vec<_> = requests.iter().map(|request| request.pools.clone()).collect();
        let (to, outcomes) = oneshot::channel();
        let scheduler = self.clone();
        // It goes to its end, whether the caller waits or not.
        tokio::spawn(async move {
            let mut to = to;
            let outcomes = scheduler.queue_gang(requests, &mut to).await;
            let outcome = match outcomes.first() {
                Some(Ok(_)) => GangOutcome::Committed,
                Some(Err(RequestError::DeadlineExceeded)) => GangOutcome::InDoubt,
                _ => GangOutcome::Refused,
            };
            metrics().gangs(outcome).increment(1);
            if let Err(untold) = to.send(outcomes) {
                scheduler.roll_back_gang(untold);
            }
        });
        let mut claiming = ClaimingGang { scheduler: self, outcomes };
        let outcomes = (&mut claiming.outcomes).await;
        let outcomes = outcomes.unwrap_or_else(|_| (0..members).map(|_| Err(RequestError::DeadlineExceeded)).collect());
        pools.iter().zip(&outcomes).for_each(|(pools, outcome)| self.count_claim(pools, outcome));
        outcomes
    }

    /// Tries a gang, and if there is no room and it waits, whenever its turn comes.
    async fn queue_gang(&self, mut requests: Vec<ClaimRequest>, to: &mut oneshot::Sender<GangResults>) -> GangResults {
        let refuse =
            |requests: &[ClaimRequest], why| requests.iter().map(|_| Err(RequestError::Unavailable(why))).collect();
        let wait_ms = requests.iter().map(|request| request.wait_ms).max().unwrap_or(0).min(limits::WAIT_MS_MAX + 1);
        let now_ms = self.dispatch().clock.engine_now_ms();
        let waits_ms = now_ms..now_ms + wait_ms;
        if wait_ms <= limits::WAIT_MS_MAX {
            // All of it waits, in one place; no member does by itself.
            for request in &mut requests {
                request.wait_ms = 0;
                request.constraints.iter_mut().for_each(|ask| ask.preferred_wait_ms = 0);
            }
        }
        let mut outcomes = self.place_gang(&requests, false).await;
        let mut place: Option<GangPlace> = None;
        while let Some(why) = queueable_reason(&outcomes).filter(|_| wait_ms > 0) {
            let kept = place.take().filter(|place| place.waits_for(why)).inspect(GangPlace::requeue);
            let Some(here) = kept.or_else(|| self.enqueue_gang(&requests, why, waits_ms.clone())) else {
                return refuse(&requests, UnavailableReason::Overloaded);
            };
            let turn = tokio::select! {
                turn = here.wait_for_turn() => turn,
                () = to.closed() => false,
            };
            if self.dispatch().is_stopping() {
                return refuse(&requests, UnavailableReason::Stopping);
            }
            if !turn {
                break;
            }
            outcomes = self.place_gang(&requests, true).await;
            place = Some(here);
        }
        outcomes
    }

    /// A place in the lines of all pools that the members may use.
    fn enqueue_gang(
        &self,
        requests: &[ClaimRequest],
        why: ExhaustionReason,
        waits_ms: Range<Millis>,
    ) -> Option<GangPlace> {
        let (dispatch, map) = (self.dispatch(), self.dispatch().pools.load_full());
        let starts = requests.iter().filter_map(|request| AdmittedClaim::new(&map, &dispatch.selectors, request).ok());
        let numbers: BTreeSet<u32> = starts.flat_map(|start| start.pools()).collect();
        let pools: Vec<Arc<Pool>> = numbers.into_iter().filter_map(|number| map.by_number(number)).cloned().collect();
        let priority =
            requests.iter().filter_map(|request| request.constraints.as_ref()).map(|ask| ask.spec.priority).max();
        let needs = (requests.len(), total_request(requests).map(|amount| u64::try_from(amount).unwrap_or(u64::MAX)));
        let members = requests.iter().map(|request| request.id.clone()).collect();
        GangPlace::new(dispatch, members, priority.unwrap_or(0), &pools, needs, why, waits_ms)
    }

    /// Places a gang, anew if a worker of it goes before it is committed. `in_turn`: those who wait do not come first.
    async fn place_gang(&self, requests: &[ClaimRequest], in_turn: bool) -> GangResults {
        for _ in 0..ATTEMPTS {
            if let Some(outcomes) = self.try_place_gang(requests, in_turn).await {
                return outcomes;
            }
        }
        requests.iter().map(|_| Err(RequestError::Unavailable(UnavailableReason::Overloaded))).collect()
    }

    /// Places a gang once. None: a worker of the gang went before it was committed, and nothing of it is left.
    async fn try_place_gang(&self, requests: &[ClaimRequest], in_turn: bool) -> Option<GangResults> {
        let dispatch = self.dispatch();
        let id = match dispatch.allocate_fences(1) {
            Ok(id) => id,
            Err(why) => return Some(requests.iter().map(|_| Err(RequestError::Unavailable(why))).collect()),
        };
        let (batch, answers) = ReplyBatch::new(requests.len());
        let mut refusals: BTreeMap<usize, RequestError> = BTreeMap::new();
        let mut seen: HashSet<&ClaimId> = HashSet::new();
        let (mut items, mut members) = (Vec::new(), Vec::new());
        let mut home = None;
        for (at, request) in requests.iter().enumerate() {
            if !seen.insert(&request.id) {
                refusals.insert(at, RequestError::invalid("key", "is given twice in the gang"));
                continue;
            }
            let pools = dispatch.pools.load();
            let started = super::claims::check_times(request).and_then(|()| {
                AdmittedClaim::gang(&pools, &dispatch.selectors, request, |pool| {
                    *home.get_or_insert(gang_ref(pool, id))
                })
            });
            match started {
                Ok(start) => {
                    let pools = start.pools();
                    let reply = ReplySender::batch_part(Arc::clone(&batch), at as u32);
                    let mut item = self.pending_claim(request.clone(), start, 0, reply);
                    if in_turn {
                        item.set_gang_at_head();
                    }
                    items.push(item);
                    members.push(GangMember { id: request.id.clone(), ticket: 0, pools });
                }
                Err(refusal) => drop(refusals.insert(at, refusal)),
            }
        }
        let Some(home) = home.filter(|_| refusals.is_empty()) else {
            return Some(gang_rejections(requests.len(), refusals));
        };
        let Some(turn) = self.lock_pools(&members).await else {
            return Some(
                requests.iter().map(|_| Err(RequestError::Unavailable(UnavailableReason::Overloaded))).collect(),
            );
        };
        for (at, (member, item)) in members.iter_mut().zip(&mut items).enumerate() {
            match dispatch.keys.acquire_for_member(item) {
                Ok(()) => member.ticket = item.ticket,
                Err(Some(over)) => drop(refusals.insert(at, RequestError::Exhausted(ExhaustionReason::Quota(over)))),
                Err(None) => {
                    let why = "the key is held or being claimed; a gang takes only keys that are free";
                    refusals.insert(at, RequestError::FailedPrecondition(why.into()));
                }
            }
        }
        if !refusals.is_empty() {
            self.release_tickets(&members);
            return Some(gang_rejections(requests.len(), refusals));
        }
        drop(batch);
        dispatch.route_all(items);
        let granted = answers.await;
        let decision = self.decide_gang(home, &members, granted).await;
        drop(turn);
        match decision {
            GangDecision::Committed(outcomes) => Some(outcomes),
            GangDecision::WorkerLost => None,
            GangDecision::InDoubt => Some(requests.iter().map(|_| Err(RequestError::DeadlineExceeded)).collect()),
            GangDecision::Refused(refusals) => {
                let refusals = self.replace_unsatisfiable(requests, &members, refusals).await;
                Some(gang_rejections(requests.len(), refusals))
            }
        }
    }

    /// The gang locks of all pools that the members may use, in the order of their names.
    async fn lock_pools(&self, members: &[GangMember]) -> Option<Vec<OwnedMutexGuard<()>>> {
        let pools = self.dispatch().pools.load_full();
        let numbers: BTreeSet<u32> = members.iter().flat_map(|member| member.pools.iter().copied()).collect();
        let mut pools: Vec<&Arc<Pool>> = numbers.into_iter().filter_map(|number| pools.by_number(number)).collect();
        pools.sort_by(|one, two| one.name.cmp(&two.name));
        let limit = Duration::from_millis(self.dispatch().settings.store_wait_ms);
        let all = async {
            let mut turns = Vec::with_capacity(pools.len());
            for pool in pools {
                turns.push(Arc::clone(&pool.gang_lock).lock_owned().await);
            }
            turns
        };
        tokio::time::timeout(limit, all).await.ok()
    }

    /// Gives up the tickets of members; who waits for one of their keys goes on.
    fn release_tickets<'m>(&self, members: impl IntoIterator<Item = &'m GangMember>) {
        for member in members.into_iter().filter(|member| member.ticket > 0) {
            if let Some(next) = self.dispatch().keys.release_ticket(&member.id, member.ticket) {
                self.dispatch().route(next);
            }
        }
    }

    /// Rolls back what nobody was told of.
    fn roll_back_gang(&self, outcomes: GangResults) {
        for taken in outcomes.into_iter().flatten().filter(|taken| taken.created) {
            self.dispatch().roll_back(&taken.claim.id, taken.claim.fence);
        }
    }

    /// A gang that found no room: whether its pools could hold it if nothing else were held.
    async fn replace_unsatisfiable(
        &self,
        requests: &[ClaimRequest],
        members: &[GangMember],
        refusals: BTreeMap<usize, RequestError>,
    ) -> BTreeMap<usize, RequestError> {
        if !refusals.values().any(|refusal| matches!(refusal, RequestError::Exhausted(ExhaustionReason::Pool))) {
            return refusals;
        }
        let pools = self.dispatch().pools.load_full();
        let numbers: BTreeSet<u32> = members.iter().flat_map(|member| member.pools.iter().copied()).collect();
        let (mut workers, mut shared) = (0, false);
        let (mut has, mut cards) = (WorkerCapacity::default(), 0_u64);
        for pool in numbers.into_iter().filter_map(|number| pools.by_number(number)) {
            let status = self.status(pool).await;
            if status.shards.iter().any(|shard| shard.state != ShardState::Serving.as_str()) {
                // What its workers have is not known: the gang may fit.
                return refusals;
            }
            shared |= status.spec.mode == PoolMode::Shared;
            workers += status.counts().total;
            has.cpu_milli = has.cpu_milli.saturating_add(status.capacity.cpu_milli);
            has.memory_bytes = has.memory_bytes.saturating_add(status.capacity.memory_bytes);
            has.slots = has.slots.saturating_add(status.capacity.slots);
            cards += status.gpus.values().map(|gpu| gpu.total * u64::from(crate::limits::GPU_MILLI)).sum::<u64>();
        }
        let asked = total_request(requests);
        let has = [has.cpu_milli, has.memory_bytes, has.slots, cards];
        let fits = if shared {
            asked.iter().zip(has).all(|(&asked, has)| u128::from(has) >= asked)
        } else {
            workers >= requests.len() as u64
        };
        if fits {
            return refusals;
        }
        let larger = |(at, refusal)| match refusal {
            RequestError::Exhausted(ExhaustionReason::Pool) => (at, RequestError::GangTooLarge),
            other => (at, other),
        };
        refusals.into_iter().map(larger).collect()
    }
}

/// The gang with this number, at home in a shard of this pool; in one that serves, if any does.
fn gang_ref(pool: &Pool, id: Fence) -> GangRef {
    let shards = pool.shards.len() as u64;
    let from_it = (0..shards).map(|step| ((id + step) % shards) as u16);
    let serves = |shard: &u16| pool.shards[*shard as usize].state() == ShardState::Serving;
    GangRef { id, pool: pool.uid, shard: from_it.clone().find(serves).unwrap_or((id % shards) as u16) }
}

/// What a gang asks for in all: cores, memory, places, thousandths of cards.
fn total_request(requests: &[ClaimRequest]) -> [u128; 4] {
    let asks = requests.iter().filter_map(|request| request.constraints.as_ref()).map(|ask| &ask.spec.resources);
    asks.fold([0; 4], |sum, resources| {
        let cards = resources.gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * u64::from(gpu.milli));
        let amounts = [resources.cpu_milli, resources.memory_bytes, resources.slots, cards];
        std::array::from_fn(|i| sum[i] + u128::from(amounts[i]))
    })
}

/// What a gang would have to wait for; none: it is done, or waiting is of no use.
fn queueable_reason(outcomes: &GangResults) -> Option<ExhaustionReason> {
    let mut lacks = None;
    for outcome in outcomes {
        match outcome {
            Err(RequestError::Exhausted(
                why @ (ExhaustionReason::Pool | ExhaustionReason::NodeLocality | ExhaustionReason::Quota(_)),
            )) => {
                lacks.get_or_insert(*why);
            }
            Err(RequestError::GangMemberRejected(_)) => {}
            _ => return None,
        }
    }
    lacks
}

fn gang_rejections(members: usize, mut refusals: BTreeMap<usize, RequestError>) -> GangResults {
    let first = refusals.keys().next().copied().unwrap_or(0);
    (0..members).map(|at| Err(refusals.remove(&at).unwrap_or(RequestError::GangMemberRejected(first)))).collect()
}
