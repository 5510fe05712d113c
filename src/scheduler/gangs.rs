//! Gangs: all of a call's claims or none, over shards and pools.
//!
//! ```text
//! keys' tickets -> members granted as provisional, stored -> home records the gang, stored: it is committed
//!               -> members are claims, stored -> home forgets the gang
//! ```
//!
//! Who is between the first and the second arrow holds the pools' gang locks, so gangs of one pool go one after another
//! and no two hold each other's halves. Each step may be repeated, and is until it is answered: a shard that panics
//! meanwhile comes back with its members. A crash is recovery's matter ([`crate::recovery`]). Answers are durable, whatever
//! the pool promises.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, oneshot};

use super::held::view;
use super::{Scheduler, wait};
use crate::choice::Start;
use crate::engine::{GangAct, GangRef};
use crate::keys::{Found, ShardRef, Ticket};
use crate::limits;
use crate::metrics::{GangOutcome, ShardState, metrics};
use crate::model::{Capacity, ClaimId, ClaimRequest, Fence, Millis, Mode, Taken};
use crate::pools::Pool;
use crate::refusal::{Exhausted, Refusal, Unavailable, What};
use crate::shard::{Batch, ClaimAnswer, Command, GangItem, Outcome, Payload, Reply};
use crate::waiters::GangPlace;

/// How long a step that was not answered waits before it goes again; doubled each time, up to the second.
const AGAIN: [Duration; 2] = [Duration::from_millis(2), Duration::from_secs(1)];

/// What a gang came to: an outcome a member.
type Outcomes = Vec<Result<Taken, Refusal>>;

/// A member of a gang on its way.
struct Member {
    id: ClaimId,
    ticket: Ticket,
    /// Numbers of the pools that it may be taken from.
    pools: Vec<u32>,
}

impl Scheduler {
    /// All of these claims or none, in order. If any cannot be made none is: it has its own refusal, the others
    /// [`Refusal::Gang`]. If the keys are all held already, what they hold is found, as by [`Scheduler::claim_batch`].
    pub async fn claim_gang(&self, requests: Vec<ClaimRequest>) -> Outcomes {
        if requests.is_empty() {
            return Vec::new();
        }
        if let Err(refusal) = self.open() {
            return requests.iter().map(|_| Err(refusal.clone())).collect();
        }
        let held = |request: &ClaimRequest| matches!(self.dispatch().keys.find(&request.id), Found::Held(_));
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
            let outcomes = scheduler.wait_as_gang(requests, &mut to).await;
            let outcome =
                if outcomes.iter().all(Result::is_ok) { GangOutcome::Committed } else { GangOutcome::Refused };
            metrics().gangs(outcome).increment(1);
            if let Err(untold) = to.send(outcomes) {
                scheduler.give_back(untold);
            }
        });
        let outcomes =
            outcomes.await.unwrap_or_else(|_| (0..members).map(|_| Err(Refusal::DeadlineExceeded)).collect());
        pools.iter().zip(&outcomes).for_each(|(pools, outcome)| self.count_claim(pools, outcome));
        outcomes
    }

    /// Tries a gang, and if there is no room and it waits, whenever its turn comes.
    async fn wait_as_gang(&self, mut requests: Vec<ClaimRequest>, to: &mut oneshot::Sender<Outcomes>) -> Outcomes {
        let refuse = |requests: &[ClaimRequest], why| requests.iter().map(|_| Err(Refusal::Unavailable(why))).collect();
        let wait_ms = requests.iter().map(|request| request.wait_ms).max().unwrap_or(0).min(limits::WAIT_MS_MAX + 1);
        let now_ms = self.dispatch().clock.engine_now_ms();
        let waits_ms = now_ms..now_ms + wait_ms;
        if wait_ms <= limits::WAIT_MS_MAX {
            // All of it waits, in one place; no member does by itself.
            for request in &mut requests {
                request.wait_ms = 0;
                request.ask.iter_mut().for_each(|ask| ask.preferred_wait_ms = 0);
            }
        }
        let mut outcomes = self.gang(&requests, false).await;
        let mut place: Option<GangPlace> = None;
        while let Some(why) = lacks_room(&outcomes).filter(|_| wait_ms > 0) {
            let kept = place.take().filter(|place| place.waits_for(why)).inspect(GangPlace::put_back);
            let Some(here) = kept.or_else(|| self.gang_place(&requests, why, waits_ms.clone())) else {
                return refuse(&requests, Unavailable::Overloaded);
            };
            let turn = tokio::select! {
                turn = here.turn() => turn,
                () = to.closed() => false,
            };
            if self.dispatch().is_stopping() {
                return refuse(&requests, Unavailable::Stopping);
            }
            if !turn {
                break;
            }
            outcomes = self.gang(&requests, true).await;
            place = Some(here);
        }
        outcomes
    }

    /// A place in the lines of all pools that the members may use.
    fn gang_place(&self, requests: &[ClaimRequest], why: Exhausted, waits_ms: Range<Millis>) -> Option<GangPlace> {
        let (dispatch, map) = (self.dispatch(), self.dispatch().pools.load_full());
        let starts = requests.iter().filter_map(|request| Start::new(&map, &dispatch.selectors, request).ok());
        let numbers: BTreeSet<u32> = starts.flat_map(|start| start.pools()).collect();
        let pools: Vec<Arc<Pool>> = numbers.into_iter().filter_map(|number| map.at(number)).cloned().collect();
        let priority = requests.iter().filter_map(|request| request.ask.as_ref()).map(|ask| ask.spec.priority).max();
        let needs = (requests.len(), amounts(requests).map(|amount| u64::try_from(amount).unwrap_or(u64::MAX)));
        let members = requests.iter().map(|request| request.id.clone()).collect();
        GangPlace::new(dispatch, members, priority.unwrap_or(0), &pools, needs, why, waits_ms)
    }

    /// One attempt. `in_turn`: those who wait do not come first.
    async fn gang(&self, requests: &[ClaimRequest], in_turn: bool) -> Outcomes {
        let dispatch = self.dispatch();
        let id = match dispatch.draw_fences(1) {
            Ok(id) => id,
            Err(why) => return requests.iter().map(|_| Err(Refusal::Unavailable(why))).collect(),
        };
        let (batch, answers) = Batch::new(requests.len());
        let mut refusals: BTreeMap<usize, Refusal> = BTreeMap::new();
        let mut seen: HashSet<&ClaimId> = HashSet::new();
        let (mut items, mut members) = (Vec::new(), Vec::new());
        let mut home = None;
        for (at, request) in requests.iter().enumerate() {
            if !seen.insert(&request.id) {
                refusals.insert(at, Refusal::invalid("key", "is given twice in the gang"));
                continue;
            }
            let pools = dispatch.pools.load();
            let started = super::claims::check_times(request).and_then(|()| {
                Start::gang(&pools, &dispatch.selectors, request, |pool| *home.get_or_insert(of(pool, id)))
            });
            match started {
                Ok(start) => {
                    let pools = start.pools();
                    let reply = Reply::part(Arc::clone(&batch), at as u32);
                    let mut item = self.item_of(request.clone(), start, 0, reply);
                    if in_turn {
                        item.join_turn();
                    }
                    items.push(item);
                    members.push(Member { id: request.id.clone(), ticket: 0, pools });
                }
                Err(refusal) => drop(refusals.insert(at, refusal)),
            }
        }
        let Some(home) = home.filter(|_| refusals.is_empty()) else {
            return refused(requests.len(), refusals);
        };
        let Some(turn) = self.turn(&members).await else {
            return requests.iter().map(|_| Err(Refusal::Unavailable(Unavailable::Overloaded))).collect();
        };
        for (at, (member, item)) in members.iter_mut().zip(&mut items).enumerate() {
            match dispatch.keys.take_member(item) {
                Ok(()) => member.ticket = item.ticket,
                Err(Some(over)) => drop(refusals.insert(at, Refusal::Exhausted(Exhausted::Quota(over)))),
                Err(None) => {
                    let why = "the key is held or being claimed; a gang takes only keys that are free";
                    refusals.insert(at, Refusal::State(why.into()));
                }
            }
        }
        if !refusals.is_empty() {
            self.vacate(&members);
            return refused(requests.len(), refusals);
        }
        drop(batch);
        dispatch.route_all(items);
        let granted = answers.await.unwrap_or_default();
        let outcomes = self.decide(home, &members, granted).await;
        drop(turn);
        match outcomes {
            Ok(taken) => taken,
            Err(refusals) => {
                let refusals = self.could_ever(requests, &members, refusals).await;
                refused(requests.len(), refusals)
            }
        }
    }

    /// Commits a gang all of whose members were granted, and gives any other back.
    async fn decide(
        &self,
        home: GangRef,
        members: &[Member],
        granted: Vec<Outcome>,
    ) -> Result<Outcomes, BTreeMap<usize, Refusal>> {
        let dispatch = self.dispatch();
        let pools = dispatch.pools.load_full();
        let mut shards: BTreeMap<ShardRef, Vec<(ClaimId, Ticket)>> = BTreeMap::new();
        let mut refusals = BTreeMap::new();
        let mut unknown = false;
        for (at, (member, outcome)) in members.iter().zip(granted).enumerate() {
            match outcome {
                Ok(Payload::Claim(answer)) => {
                    let Some(pool) = pools.at(answer.pool) else { continue };
                    let shard = answer.grant.worker.spec.id.shard(pool.ports.len() as u16);
                    let shard = ShardRef { pool: answer.pool, shard };
                    shards.entry(shard).or_default().push((member.id.clone(), member.ticket));
                }
                Ok(_) => {}
                Err(refusal) => {
                    unknown |= !matches!(refusal, Refusal::Exhausted(_) | Refusal::Unsatisfiable);
                    refusals.insert(at, refusal);
                }
            }
        }
        let all = || {
            let numbers: BTreeSet<u32> = members.iter().flat_map(|member| member.pools.iter().copied()).collect();
            let of = numbers.into_iter().filter_map(|number| pools.at(number)).flat_map(|pool| pool.ports.iter());
            of.map(|port| port.shard).collect::<Vec<_>>()
        };
        let home_shard = pools
            .iter()
            .find(|pool| pool.uid == home.pool)
            .and_then(|pool| pool.ports.get(home.shard as usize).map(|port| port.shard));
        if refusals.is_empty() {
            let recorded = match home_shard {
                Some(shard) => self.step(shard, home.id, GangAct::Record, Vec::new()).await,
                None => Err(Refusal::NotFound(What::Pool)),
            };
            if let Err(refusal) = recorded {
                // It may be stored in spite of that, or be on its way.
                if let Some(shard) = home_shard {
                    let _ = self.insist(shard, home.id, GangAct::Forget, &[]).await;
                }
                (0..members.len()).for_each(|at| drop(refusals.insert(at, refusal.clone())));
            }
        }
        if !refusals.is_empty() {
            // Of a member whose answer was lost nobody knows where it is.
            let shards: Vec<ShardRef> = if unknown { all() } else { shards.into_keys().collect() };
            let aborts = shards.into_iter().map(|shard| self.insist(shard, home.id, GangAct::Abort, &[]));
            futures::future::join_all(aborts).await;
            self.vacate(members);
            return Err(refusals);
        }
        let commits = shards.iter().map(|(&shard, tickets)| self.insist(shard, home.id, GangAct::Commit, tickets));
        let mut found: HashMap<ClaimId, ClaimAnswer> = HashMap::new();
        let mut failed = None;
        for outcome in futures::future::join_all(commits).await {
            match outcome {
                Ok(Payload::Gang(claims)) => found.extend(claims),
                Ok(_) => {}
                Err(refusal) => failed = Some(refusal),
            }
        }
        if let (None, Some(shard)) = (&failed, home_shard) {
            // Every member is stored as committed.
            let _ = self.step(shard, home.id, GangAct::Forget, Vec::new()).await;
        }
        let mut taken = Vec::with_capacity(members.len());
        for member in members {
            taken.push(match found.remove(&member.id) {
                Some(answer) => match pools.at(answer.pool) {
                    Some(pool) => Ok(Taken { claim: view(&member.id, &pool.name, answer), created: true }),
                    None => Err(Refusal::NotFound(What::Pool)),
                },
                None => match &failed {
                    Some(refusal) => Err(refusal.clone()),
                    // Its shard panicked after it was committed, or its worker is gone already.
                    None => self.get_claim(&member.id).await.map(|claim| Taken { claim, created: true }),
                },
            });
        }
        Ok(taken)
    }

    /// The gang locks of all pools that the members may use, in the order of their names.
    async fn turn(&self, members: &[Member]) -> Option<Vec<OwnedMutexGuard<()>>> {
        let pools = self.dispatch().pools.load_full();
        let numbers: BTreeSet<u32> = members.iter().flat_map(|member| member.pools.iter().copied()).collect();
        let mut pools: Vec<&Arc<Pool>> = numbers.into_iter().filter_map(|number| pools.at(number)).collect();
        pools.sort_by(|one, two| one.name.cmp(&two.name));
        let limit = Duration::from_millis(self.dispatch().settings.store_wait_ms);
        let all = async {
            let mut turns = Vec::with_capacity(pools.len());
            for pool in pools {
                turns.push(Arc::clone(&pool.gangs).lock_owned().await);
            }
            turns
        };
        tokio::time::timeout(limit, all).await.ok()
    }

    /// Gives up the tickets of a gang; who waits for one of its keys goes on.
    fn vacate(&self, members: &[Member]) {
        for member in members.iter().filter(|member| member.ticket > 0) {
            if let Some(next) = self.dispatch().keys.vacate(&member.id, member.ticket) {
                self.dispatch().route(next);
            }
        }
    }

    /// One step of a gang at one shard.
    async fn step(&self, shard: ShardRef, id: Fence, act: GangAct, tickets: Vec<(ClaimId, Ticket)>) -> Outcome {
        let port = self.dispatch().pools.load().port(shard).cloned();
        let port = port.ok_or(Refusal::NotFound(What::Pool))?;
        let (reply, answer) = Reply::one();
        port.ask(Command::Gang(Box::new(GangItem { id, act, tickets, reply })));
        wait(answer).await
    }

    /// The same until it is answered, or nobody can answer it any more.
    async fn insist(&self, shard: ShardRef, id: Fence, act: GangAct, tickets: &[(ClaimId, Ticket)]) -> Outcome {
        let [mut pause, longest] = AGAIN;
        loop {
            let outcome = self.step(shard, id, act, tickets.to_vec()).await;
            let again = match &outcome {
                Err(Refusal::DeadlineExceeded) => true,
                Err(Refusal::Unavailable(why)) => match why {
                    Unavailable::Loading | Unavailable::Overloaded => true,
                    // With the store: what was decided stays, only that it is stored is not known.
                    Unavailable::Store | Unavailable::Fenced | Unavailable::Stopping => false,
                },
                _ => false,
            };
            // A shard that does not come back holds nobody up: what it has is recovery's matter.
            let port = self.dispatch().pools.load().port(shard).map(|port| port.state());
            let comes_back = matches!(port, Some(ShardState::Serving | ShardState::Loading));
            if !again || !comes_back || self.dispatch().is_stopping() || self.dispatch().journal.fenced() {
                return outcome;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Nobody was told of these.
    fn give_back(&self, outcomes: Outcomes) {
        for taken in outcomes.into_iter().flatten().filter(|taken| taken.created) {
            self.dispatch().give_back(&taken.claim.id, taken.claim.fence);
        }
    }

    /// A gang that found no room: whether its pools could hold it if nothing else were held.
    async fn could_ever(
        &self,
        requests: &[ClaimRequest],
        members: &[Member],
        refusals: BTreeMap<usize, Refusal>,
    ) -> BTreeMap<usize, Refusal> {
        if !refusals.values().any(|refusal| matches!(refusal, Refusal::Exhausted(Exhausted::Pool))) {
            return refusals;
        }
        let pools = self.dispatch().pools.load_full();
        let numbers: BTreeSet<u32> = members.iter().flat_map(|member| member.pools.iter().copied()).collect();
        let (mut workers, mut shared) = (0, false);
        let (mut has, mut cards) = (Capacity::default(), 0_u64);
        for pool in numbers.into_iter().filter_map(|number| pools.at(number)) {
            let status = self.status(pool).await;
            if status.shards.iter().any(|shard| shard.state != ShardState::Serving.word()) {
                // What its workers have is not known: the gang may fit.
                return refusals;
            }
            shared |= status.spec.mode == Mode::Shared;
            workers += status.counts().total;
            has.cpu_milli = has.cpu_milli.saturating_add(status.capacity.cpu_milli);
            has.memory_bytes = has.memory_bytes.saturating_add(status.capacity.memory_bytes);
            has.slots = has.slots.saturating_add(status.capacity.slots);
            cards += status.gpus.values().map(|gpu| gpu.total * u64::from(crate::limits::CARD_MILLI)).sum::<u64>();
        }
        let asked = amounts(requests);
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
            Refusal::Exhausted(Exhausted::Pool) => (at, Refusal::GangTooLarge),
            other => (at, other),
        };
        refusals.into_iter().map(larger).collect()
    }
}

/// The gang with this number, at home in a shard of this pool; in one that serves, if any does.
fn of(pool: &Pool, id: Fence) -> GangRef {
    let shards = pool.ports.len() as u64;
    let from_it = (0..shards).map(|step| ((id + step) % shards) as u16);
    let serves = |shard: &u16| pool.ports[*shard as usize].state() == ShardState::Serving;
    GangRef { id, pool: pool.uid, shard: from_it.clone().find(serves).unwrap_or((id % shards) as u16) }
}

/// What a gang asks for in all: cores, memory, places, thousandths of cards.
fn amounts(requests: &[ClaimRequest]) -> [u128; 4] {
    let asks = requests.iter().filter_map(|request| request.ask.as_ref()).map(|ask| &ask.spec.resources);
    asks.fold([0; 4], |sum, resources| {
        let cards = resources.gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * u64::from(gpu.milli));
        let amounts = [resources.cpu_milli, resources.memory_bytes, resources.slots, cards];
        std::array::from_fn(|i| sum[i] + u128::from(amounts[i]))
    })
}

/// What a gang would have to wait for; none: it is done, or waiting is of no use.
fn lacks_room(outcomes: &Outcomes) -> Option<Exhausted> {
    let mut lacks = None;
    for outcome in outcomes {
        match outcome {
            Err(Refusal::Exhausted(why @ (Exhausted::Pool | Exhausted::NodeLocality | Exhausted::Quota(_)))) => {
                lacks.get_or_insert(*why);
            }
            Err(Refusal::Gang(_)) => {}
            _ => return None,
        }
    }
    lacks
}

fn refused(members: usize, mut refusals: BTreeMap<usize, Refusal>) -> Outcomes {
    let first = refusals.keys().next().copied().unwrap_or(0);
    (0..members).map(|at| Err(refusals.remove(&at).unwrap_or(Refusal::Gang(first)))).collect()
}
