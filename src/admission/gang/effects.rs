//! Effects of gangs, as the executor of admission carries them out.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::gang_claim::GangClaim;
use super::gang_event::{GangEffect, GangEvent, GangVerdict, PreparedGang};
use super::transaction::{
    CommittedMember, GangTransaction, PublishedState, TransactionEffect, TransactionEvent, TransactionMember,
};
use crate::admission::dispatch::{ClaimDispatcher, check_times};
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::lock_order;
use crate::admission::plan::AdmittedClaim;
use crate::admission::pool_registry::{Pool, PoolMap};
use crate::admission::queue::WaitingGang;
use crate::collections::HashSet;
use crate::limits;
use crate::metrics::{GangOutcome, ShardState, metrics};
use crate::model::claim_request::PoolChoice;
use crate::model::request_error::{ExhaustionReason, Precondition, RequestError, UnavailableReason};
use crate::model::{
    ClaimId, ClaimRequest, ClaimState, Fence, GangRef, Millis, PoolMode, PoolName, ResourceVector, UnreadReply,
};
use crate::shard::{
    ClaimReply, Command, Completion, CompletionQueue, GangCall, GangNumber, GangReply, GangReport, KeyTicket,
    MembersWaker, ReplyAddress, ShardOutcome, ShardRef,
};

/// State that a step of a gang may read.
struct PublishedPools<'d> {
    dispatch: &'d ClaimDispatcher,
    pools: Arc<PoolMap>,
}

impl PublishedState for PublishedPools<'_> {
    fn state(&self, shard: ShardRef) -> Option<ShardState> {
        self.pools.shard(shard).map(|handle| handle.state())
    }

    fn home(&self, home: GangRef) -> Option<ShardRef> {
        let pool = self.pools.iter().find(|pool| pool.uid == home.pool)?;
        pool.shards.get(home.shard as usize).map(|handle| handle.shard)
    }

    fn is_stopped(&self) -> bool {
        self.dispatch.is_stopping() || self.dispatch.journal.is_fenced()
    }

    fn is_draining(&self) -> bool {
        self.dispatch.is_draining() || self.dispatch.is_stopping()
    }

    fn could_hold(&self, pools: &[u32], requests: &[ClaimRequest]) -> bool {
        let (mut workers, mut capacity, mut is_shared) = (0_u64, ResourceVector::default(), false);
        for pool in pools.iter().filter_map(|&number| self.pools.by_number(number)) {
            if pool.has_unavailable_shard() {
                // The capacity of the silent shard is unknown: the gang may fit.
                return true;
            }
            is_shared |= pool.spec.load().mode == PoolMode::Shared;
            workers = workers.saturating_add(pool.board.total().claims);
            capacity = capacity.saturating_add(pool.board.total_amounts());
        }
        if is_shared {
            total_request(requests).fits_in(capacity.map(u128::from))
        } else {
            workers >= requests.len() as u64
        }
    }
}

impl ClaimDispatcher {
    /// Begins to claim all of these or none. `reply`: takes one outcome for each member. Returns the number of the gang.
    pub fn begin_gang(
        &self,
        mut requests: Vec<ClaimRequest>,
        reply: &Arc<CompletionQueue>,
        work: &mut EffectQueue,
    ) -> GangNumber {
        let wait_ms = requests.iter().map(|request| request.wait_ms).max().unwrap_or(0).min(limits::WAIT_MS_MAX + 1);
        if wait_ms <= limits::WAIT_MS_MAX {
            // The gang waits as a whole; no member waits by itself.
            for request in &mut requests {
                request.wait_ms = 0;
                request.constraints.iter_mut().for_each(|constraints| constraints.preferred_wait_ms = 0);
            }
        }
        let now_ms = self.clock.engine_now_ms();
        let tokens = 0..requests.len() as u32;
        let caller = tokens.map(|token| ReplyAddress::queue(Arc::clone(reply), token)).collect();
        let locks_wait_ms = self.settings.store_wait_ms;
        let claim = GangClaim::new(requests.into(), caller, now_ms..now_ms + wait_ms, locks_wait_ms);
        let gang = self.gangs.coordinator.lock().add(claim);
        work.push(Effect::gang(gang, GangEvent::Begin));
        gang
    }

    /// Continues with gangs of an earlier process whose homes could not be read.
    pub fn suspend_gangs(&self, gangs: BTreeMap<GangRef, Vec<TransactionMember>>) {
        let mut coordinator = self.gangs.coordinator.lock();
        for (home, members) in gangs {
            coordinator.add(GangClaim::recovered(GangTransaction::suspended(home, members)));
        }
    }

    /// Forgets gangs of an earlier process whose members are all stored as committed.
    pub fn forget_gangs(&self, gangs: Vec<GangRef>, work: &mut EffectQueue) {
        for home in gangs {
            let mut effects = Vec::new();
            let transaction = GangTransaction::forget(home, &self.published_pools(), &mut effects);
            if !transaction.is_done() {
                let gang = self.gangs.coordinator.lock().add(GangClaim::recovered(transaction));
                effects.into_iter().for_each(|effect| self.carry_out_transaction(gang, effect, work));
            }
        }
    }

    /// Aborts the gangs in doubt whose records were in the deleted pool with this uid.
    pub fn abort_gangs_of_pool(&self, pool: u64, work: &mut EffectQueue) {
        let gangs = self.gangs.coordinator.lock().with_home_in(pool);
        let event = || GangEvent::Transaction(TransactionEvent::HomeDeleted);
        gangs.into_iter().for_each(|gang| work.push(Effect::gang(gang, event())));
    }

    /// Hands the reports of shards to their gangs.
    pub fn take_gang_reports(&self, work: &mut EffectQueue) {
        while let Some(report) = self.gangs.inbox.take() {
            match report {
                GangReport::Answered(gang, request, outcome) => {
                    let event = TransactionEvent::Answered(request, outcome);
                    work.push(Effect::gang(gang, GangEvent::Transaction(event)));
                }
                GangReport::MembersDecided(gang) => self.take_members(gang, work),
            }
        }
    }

    /// Lets the gangs decide of which something is due.
    pub(crate) fn tick_gangs(&self, now_ms: Millis, work: &mut EffectQueue) {
        loop {
            let due = self.gangs.coordinator.lock().take_due(now_ms);
            let Some(gang) = due else { return };
            work.push(Effect::gang(gang, GangEvent::Tick));
        }
    }

    /// Lets a gang decide what follows from an event, and carries that out.
    pub(in crate::admission) fn step_gang(&self, gang: GangNumber, event: GangEvent, work: &mut EffectQueue) {
        let (mut effects, now_ms) = (Vec::new(), self.clock.engine_ms());
        lock_order::assert_none_held();
        let step = || {
            let mut coordinator = self.gangs.coordinator.lock();
            // Read under the lock: a pool that is removed later reports to the gang after this step.
            coordinator.step(gang, event, now_ms, &self.published_pools(), &mut effects);
        };
        if catch_unwind(AssertUnwindSafe(step)).is_err() {
            self.drop_gang(gang, work);
        }
        for (gang, effect) in effects {
            // A panic must not cost other gangs their effects.
            if catch_unwind(AssertUnwindSafe(|| self.carry_out_gang(gang, effect, work))).is_err() {
                self.drop_gang(gang, work);
            }
        }
    }

    /// Drops a gang that panicked: its caller learns that the outcome is unknown, and others are placed in its pools.
    fn drop_gang(&self, gang: GangNumber, work: &mut EffectQueue) {
        tracing::error!(gang, "the step of a gang panicked: its keys stay pending until a restart");
        let next = self.gangs.coordinator.lock().drop_gang(gang);
        next.into_iter().for_each(|next| work.push(Effect::gang(next, GangEvent::LocksGranted)));
    }

    /// Lets gangs follow what shards have answered that are stopped, and drops those that are left: their callers learn
    /// that the outcome is unknown.
    pub fn finish_gangs(&self) {
        while !self.gangs.inbox.is_empty() {
            self.with_work(|work| self.take_gang_reports(work));
        }
        let left = self.gangs.coordinator.lock().drop_all();
        drop(left);
    }

    fn published_pools(&self) -> PublishedPools<'_> {
        PublishedPools { dispatch: self, pools: self.pools.load_full() }
    }

    fn carry_out_gang(&self, gang: GangNumber, effect: GangEffect, work: &mut EffectQueue) {
        match effect {
            GangEffect::Prepare(requests, queued) => {
                queued.iter().for_each(|queued| queued.begin_attempt());
                // One that waits goes on in the pools that are left.
                let left = queued.and_then(|_| self.without_deleted_pools(&requests));
                let prepared = self.prepare_gang(left.as_deref().unwrap_or(&requests));
                work.push(Effect::gang(gang, GangEvent::Prepared(prepared)));
            }
            GangEffect::Place(prepared, queued) => self.place_gang(gang, prepared, queued.as_deref(), work),
            GangEffect::Enqueue(wait) => {
                let queued = self.enqueue_gang(gang, &wait);
                let is_closing = |queued: &Arc<WaitingGang>| queued.pools.iter().any(|pool| pool.is_closing());
                let is_over = queued.as_ref().is_ok_and(is_closing) || self.is_draining();
                work.push(Effect::gang(gang, GangEvent::Queued(queued)));
                if is_over {
                    // Whoever closed the queues may not have seen the gang.
                    work.push(Effect::gang(gang, GangEvent::Closing));
                }
            }
            GangEffect::Dequeue(queued) => self.dequeue_gang(&queued),
            GangEffect::Postpone(queued, attempt) => queued.note_attempt(attempt),
            GangEffect::Transaction(effect) => self.carry_out_transaction(gang, effect, work),
            GangEffect::Discard(grants) => {
                grants.iter().for_each(|(id, fence)| self.discard_reply(id, *fence, UnreadReply::Grant));
            }
            GangEffect::Answer(caller, requests, verdict) => self.answer_gang(caller, &requests, verdict),
            GangEffect::RequestLocks(_) | GangEffect::ReleaseLocks => {
                unreachable!("carried out by the coordinator itself")
            }
        }
    }

    /// Requests of a gang without those of the listed pools that are deleted; none if that changes nothing. A member whose
    /// last pool is deleted keeps it, and is rejected for it.
    pub(in crate::admission) fn without_deleted_pools(&self, requests: &[ClaimRequest]) -> Option<Vec<ClaimRequest>> {
        let map = self.pools.load();
        let is_open = |name: &&PoolName| map.get(name).is_some_and(|pool| !pool.is_closing());
        let mut has_changed = false;
        let mut narrow = |request: &ClaimRequest| {
            let mut request = request.clone();
            if let PoolChoice::Listed(names) = &mut request.pools {
                let left: Vec<PoolName> = names.iter().filter(is_open).cloned().collect();
                if !left.is_empty() && left.len() < names.len() {
                    (*names, has_changed) = (left, true);
                }
            }
            request
        };
        let narrowed = requests.iter().map(&mut narrow).collect();
        has_changed.then_some(narrowed)
    }

    /// Checks the members of a gang and prepares their claims.
    ///
    /// # Errors
    /// The rejections by member.
    fn prepare_gang(&self, requests: &[ClaimRequest]) -> Result<PreparedGang, BTreeMap<usize, RequestError>> {
        let map = self.pools.load_full();
        let reject_all = |reason| {
            let rejections = (0..requests.len()).map(|index| (index, RequestError::Unavailable(reason)));
            rejections.collect::<BTreeMap<_, _>>()
        };
        let id = self.allocate_fences(1).map_err(reject_all)?;
        let grants = Arc::new(CompletionQueue::collecting(requests.len()));
        let mut rejections: BTreeMap<usize, RequestError> = BTreeMap::new();
        let mut keys: HashSet<&ClaimId> = HashSet::default();
        let (mut items, mut pools) = (Vec::new(), BTreeSet::new());
        let mut home = None;
        for (index, request) in requests.iter().enumerate() {
            if !keys.insert(&request.id) {
                rejections.insert(index, RequestError::invalid("key", "must not be given twice in a gang"));
                continue;
            }
            let admission = check_times(request).and_then(|()| {
                AdmittedClaim::gang(&map, &self.selectors, request, |pool| *home.get_or_insert(gang_ref(pool, id)))
            });
            match admission {
                Ok(admitted) => {
                    pools.extend(admitted.pools());
                    let reply = ReplyAddress::queue(Arc::clone(&grants), index as u32);
                    items.push(self.pending_claim(request, admitted, None, reply));
                }
                Err(error) => drop(rejections.insert(index, error)),
            }
        }
        match home.filter(|_| rejections.is_empty()) {
            Some(home) => Ok(PreparedGang { home, items, pools: pools.into_iter().collect(), grants }),
            None => Err(rejections),
        }
    }

    /// Acquires the keys of a gang and asks shards for workers: first those that are held for it.
    fn place_gang(
        &self,
        gang: GangNumber,
        prepared: PreparedGang,
        queued: Option<&WaitingGang>,
        work: &mut EffectQueue,
    ) {
        let PreparedGang { mut items, grants, pools, .. } = prepared;
        let (mut tickets, mut rejections) = (Vec::with_capacity(items.len()), BTreeMap::new());
        for (index, item) in items.iter_mut().enumerate() {
            match self.keys.acquire_for_member(item) {
                Ok(()) => tickets.push((item.id.clone(), item.ticket)),
                Err(Some(exceeded)) => {
                    drop(rejections.insert(index, RequestError::Exhausted(ExhaustionReason::Quota(exceeded))));
                }
                Err(None) => drop(rejections.insert(index, Precondition::GangKeyTaken.into())),
            }
        }
        if !rejections.is_empty() {
            self.release_tickets(tickets, work);
            return work.push(Effect::gang(gang, GangEvent::KeysRejected(rejections)));
        }
        work.push(Effect::gang(gang, GangEvent::KeysAcquired(tickets)));
        if let Some(queued) = queued {
            self.ask_held(queued.arrival, &queued.pools, &mut items);
        }
        self.route_all(items, work);
        let waker = Waker::from(Arc::new(MembersWaker::new(Arc::clone(&self.gangs.inbox), gang)));
        let mut decided = Vec::new();
        if grants.poll_take(&mut Context::from_waker(&waker), &mut decided).is_ready() {
            self.decide_members(gang, decided, &pools, work);
        }
    }

    /// Takes the outcomes of the members, once all are there.
    fn take_members(&self, gang: GangNumber, work: &mut EffectQueue) {
        let placement = self.gangs.coordinator.lock().placement(gang);
        let Some((grants, pools)) = placement else { return };
        let mut decided = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        if grants.poll_take(&mut context, &mut decided) == Poll::Ready(()) && !decided.is_empty() {
            self.decide_members(gang, decided, &pools, work);
        }
    }

    fn decide_members(&self, gang: GangNumber, mut decided: Vec<Completion>, pools: &[u32], work: &mut EffectQueue) {
        decided.sort_by_key(|completion| completion.token);
        let outcomes = decided.into_iter().map(|completion| completion.outcome).collect();
        let map = self.pools.load();
        let pools = pools.iter().filter_map(|&number| map.by_number(number));
        let candidates = pools.flat_map(|pool| pool.shards.iter().map(|handle| handle.shard)).collect();
        work.push(Effect::gang(gang, GangEvent::MembersDecided(outcomes, candidates)));
    }

    fn carry_out_transaction(&self, gang: GangNumber, effect: TransactionEffect, work: &mut EffectQueue) {
        match effect {
            TransactionEffect::Send { request, id, shard, action, tickets } => {
                let reply = GangReply::new(Arc::clone(&self.gangs.inbox), gang, request);
                let call = GangCall { id, action, tickets, reply };
                work.push(Effect::Send(shard, Command::Gang(Box::new(call))));
            }
            TransactionEffect::ReleaseTickets(tickets) => self.release_tickets(tickets, work),
            TransactionEffect::EndUnreadable(claims) => {
                claims.iter().for_each(|(id, fence)| self.keys.end_unreadable(id, *fence));
            }
            TransactionEffect::Suspend(keys) => self.suspend_keys(keys),
            TransactionEffect::BeginDeadlines(mut claims) => {
                let mut sent = self.begin_reply(0);
                claims.iter_mut().for_each(|(id, answer)| self.set_first_deadline(&mut sent, id, answer));
                self.notify_reply_sent(sent);
            }
            TransactionEffect::Decided(_) => unreachable!("followed by the claim of the gang"),
        }
    }

    /// Releases tickets; requests that wait for these keys go on.
    fn release_tickets(&self, tickets: Vec<(ClaimId, KeyTicket)>, work: &mut EffectQueue) {
        for (id, ticket) in tickets {
            if let Some(next) = self.keys.release_ticket(&id, ticket) {
                self.route(next, work);
            }
        }
    }

    /// Makes keys unreadable until a restart, or until the pool of their gang's record is deleted.
    fn suspend_keys(&self, keys: Vec<(ClaimId, KeyTicket, ShardRef, Fence)>) {
        for (id, ticket, shard, fence) in keys {
            for duplicate in self.keys.mark_unreadable(&id, ticket, shard, fence) {
                duplicate.reply.reject(RequestError::Unavailable(UnavailableReason::Loading));
            }
        }
    }

    /// Answers the caller of a gang. What it does not take is rolled back.
    fn answer_gang(&self, caller: Vec<ReplyAddress>, requests: &[ClaimRequest], verdict: GangVerdict) {
        let (result, outcomes): (_, Vec<ShardOutcome>) = match verdict {
            GangVerdict::Committed(members) => {
                (GangOutcome::Committed, members.into_iter().map(|member| self.member_outcome(member)).collect())
            }
            GangVerdict::Refused(rejections) => (GangOutcome::Refused, rejections.into_iter().map(Err).collect()),
            GangVerdict::InDoubt => {
                (GangOutcome::InDoubt, requests.iter().map(|_| Err(RequestError::DeadlineExceeded)).collect())
            }
        };
        metrics().gangs(result).increment(1);
        let mut caller = caller.into_iter();
        for (request, outcome) in requests.iter().zip(outcomes) {
            let unread = match caller.next() {
                Some(address) => address.send(outcome),
                None => Err(outcome),
            };
            if let Err(outcome) = unread
                && let Some((fence, reply)) = outcome.ok().and_then(ClaimReply::into_unread)
            {
                self.discard_reply(&request.id, fence, reply);
            }
        }
    }

    /// Outcome of a member of a committed gang. One that its shard did not commit now was committed before the shard
    /// panicked, or its worker was lost since.
    fn member_outcome(&self, member: CommittedMember) -> ShardOutcome {
        if let Some(answer) = member.committed {
            return Ok(ClaimReply::Claim(answer));
        }
        let mut answer = member.granted.ok_or(RequestError::DeadlineExceeded)?;
        match self.keys.holder(&member.id).filter(|holder| holder.handle.fence == answer.grant.handle.fence) {
            Some(holder) => answer.grant.handle = holder.handle,
            None => answer.grant.mark_ended(ClaimState::Lost),
        }
        Ok(ClaimReply::Claim(answer))
    }
}

/// Reference to a gang whose home is in a shard of this pool, preferably one that serves.
fn gang_ref(pool: &Pool, id: Fence) -> GangRef {
    let shards = pool.shards.len() as u64;
    let candidates = (0..shards).map(|step| ((id + step) % shards) as u16);
    let is_serving = |shard: &u16| pool.shards[*shard as usize].state() == ShardState::Serving;
    GangRef { id, pool: pool.uid, shard: candidates.clone().find(is_serving).unwrap_or((id % shards) as u16) }
}

/// Total request of a gang.
pub fn total_request(requests: &[ClaimRequest]) -> ResourceVector<u128> {
    let constraints = requests.iter().filter_map(|request| request.constraints.as_ref());
    let amounts = constraints.map(|constraints| ResourceVector::from(&constraints.spec.resources).map(u128::from));
    amounts.fold(ResourceVector::default(), |sum, more| sum.zip_map(more, |one, two| one + two))
}
