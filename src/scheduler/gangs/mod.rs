//! Gangs: all of a call's claims or none, over shards and pools.
//!
//! ```text
//! keys' tickets -> members granted as provisional, stored -> home records the gang, stored: it is committed
//!               -> members are claims, stored -> home forgets the gang
//! ```
//!
//! Between the first and the second arrow a gang holds the gang locks of its pools, so that gangs of one pool go one
//! after another and never block each other half-way. The rest, including unanswered actions, is up to `commit`; a
//! crash is up to recovery ([`crate::scheduler::recovery`]). Replies are durable whatever the pool's ack.

mod commit;
mod in_doubt;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, oneshot};

use super::Scheduler;
use crate::admission::key::PendingClaim;
use crate::admission::plan::AdmittedClaim;
use crate::admission::pool_registry::Pool;
use crate::admission::queue::{GangRequest, QueuedGang, WaitingGang};
use crate::limits;
use crate::metrics::{GangOutcome, ShardState, metrics};
use crate::model::GangRef;
use crate::model::request_error::{ExhaustionReason, Precondition, RequestError, UnavailableReason};
use crate::model::{ClaimId, ClaimRequest, ClaimResult, Fence, Millis, PoolMode, ResourceVector};
use crate::shard::{CompletionQueue, KeyTicket, ReplyAddress};

use self::commit::GangDecision;

/// Attempts to place a gang in one call, if a worker is lost before the commit.
const ATTEMPTS: usize = 3;

/// Results of a gang, one per member.
type GangResults = Vec<Result<ClaimResult, RequestError>>;

/// Member of a gang that is being placed.
struct GangMember {
    id: ClaimId,
    /// Right to decide the key, once it is acquired.
    ticket: Option<KeyTicket>,
    /// Numbers of the candidate pools.
    pools: Vec<u32>,
}

/// Gang whose members are checked and ready to be placed.
struct PreparedGang {
    home: GangRef,
    #[allow(clippy::vec_box, reason = "claims stay boxed from mailbox to mailbox")]
    items: Vec<Box<PendingClaim>>,
    members: Vec<GangMember>,
}

/// Gang whose caller waits for the results. When it is dropped with results unread, the caller has left and they are
/// rolled back.
struct GangCall<'a> {
    scheduler: &'a Scheduler,
    outcomes: oneshot::Receiver<GangResults>,
}

impl Drop for GangCall<'_> {
    fn drop(&mut self) {
        self.outcomes.close();
        if let Ok(unread) = self.outcomes.try_recv() {
            self.scheduler.roll_back_gang(unread);
        }
    }
}

impl Scheduler {
    /// Makes all of these claims or none; returns results in order. If one is rejected all are: that one with its own
    /// reason, the others with [`RequestError::GangMemberRejected`]. If all keys are held already, their claims are
    /// returned, as by [`Scheduler::claim_batch`].
    pub async fn claim_gang(&self, requests: Vec<ClaimRequest>) -> GangResults {
        if requests.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.check_serving() {
            return requests.iter().map(|_| Err(error.clone())).collect();
        }
        let held = |request: &ClaimRequest| self.dispatch().keys.holder(&request.id).is_some();
        if requests.iter().all(held) {
            return self.claim_batch(requests).await;
        }
        let members = requests.len();
        let pools: Vec<_> = requests.iter().map(|request| request.pools.clone()).collect();
        let (sender, outcomes) = oneshot::channel();
        let scheduler = self.clone();
        // Completed even if the caller leaves.
        tokio::spawn(async move {
            let mut sender = sender;
            let outcomes = scheduler.queue_gang(requests, &mut sender).await;
            let outcome = match outcomes.first() {
                Some(Ok(_)) => GangOutcome::Committed,
                Some(Err(RequestError::DeadlineExceeded)) => GangOutcome::InDoubt,
                _ => GangOutcome::Refused,
            };
            metrics().gangs(outcome).increment(1);
            if let Err(unread) = sender.send(outcomes) {
                scheduler.roll_back_gang(unread);
            }
        });
        let mut call = GangCall { scheduler: self, outcomes };
        let outcomes = (&mut call.outcomes).await;
        let outcomes = outcomes.unwrap_or_else(|_| (0..members).map(|_| Err(RequestError::DeadlineExceeded)).collect());
        pools.iter().zip(&outcomes).for_each(|(pools, outcome)| self.count_claim(pools, outcome));
        outcomes
    }

    /// Places a gang. If there is too little capacity and the gang waits, tries again whenever it is dequeued.
    async fn queue_gang(
        &self,
        mut requests: Vec<ClaimRequest>,
        sender: &mut oneshot::Sender<GangResults>,
    ) -> GangResults {
        let reject_all = |requests: &[ClaimRequest], reason| {
            requests.iter().map(|_| Err(RequestError::Unavailable(reason))).collect()
        };
        let wait_ms = requests.iter().map(|request| request.wait_ms).max().unwrap_or(0).min(limits::WAIT_MS_MAX + 1);
        let now_ms = self.dispatch().clock.engine_now_ms();
        let wait_range = now_ms..now_ms + wait_ms;
        if wait_ms <= limits::WAIT_MS_MAX {
            // The gang waits as a whole; no member waits by itself.
            for request in &mut requests {
                request.wait_ms = 0;
                request.constraints.iter_mut().for_each(|constraints| constraints.preferred_wait_ms = 0);
            }
        }
        let mut outcomes = self.place_gang(&requests, None).await;
        let mut queued: Option<QueuedGang> = None;
        while let Some(reason) = queueable_reason(&outcomes).filter(|_| wait_ms > 0) {
            let requeued = queued.take().filter(|queued| queued.waits_for(reason)).inspect(QueuedGang::back_off);
            let Some(entry) = requeued.or_else(|| self.enqueue_gang(&requests, reason, wait_range.clone())) else {
                return reject_all(&requests, UnavailableReason::Overloaded);
            };
            let is_due = tokio::select! {
                is_due = entry.wait_until_due() => is_due,
                () = sender.closed() => false,
            };
            if self.dispatch().is_stopping() || self.dispatch().is_draining() {
                return reject_all(&requests, UnavailableReason::Stopping);
            }
            if !is_due {
                break;
            }
            outcomes = self.place_gang(&requests, Some(entry.gang())).await;
            queued = Some(entry);
        }
        if wait_ms > 0 {
            outcomes.iter_mut().for_each(name_as_waited);
        }
        outcomes
    }

    /// Enters the gang into the queues of all its candidate pools.
    fn enqueue_gang(
        &self,
        requests: &[ClaimRequest],
        reason: ExhaustionReason,
        wait_range: Range<Millis>,
    ) -> Option<QueuedGang> {
        let (dispatch, map) = (self.dispatch(), self.dispatch().pools.load_full());
        let admitted: Vec<AdmittedClaim> =
            requests.iter().filter_map(|request| AdmittedClaim::new(&map, &dispatch.selectors, request).ok()).collect();
        let numbers: BTreeSet<u32> = admitted.iter().flat_map(AdmittedClaim::pools).collect();
        let pools: Vec<Arc<Pool>> = numbers.into_iter().filter_map(|number| map.by_number(number)).cloned().collect();
        let priority = requests
            .iter()
            .filter_map(|request| request.constraints.as_ref())
            .map(|constraints| constraints.spec.priority)
            .max();
        let classes = requests
            .iter()
            .zip(admitted)
            .map(|(request, admitted)| self.pending_claim(request, admitted, None, ReplyAddress::discard()).class());
        let gang = GangRequest {
            members: requests.iter().map(|request| request.id.clone()).collect(),
            classes: classes.collect(),
            priority: priority.unwrap_or(0),
            total: total_request(requests).saturate(),
            exhausted: reason,
            wait_ms: wait_range,
        };
        QueuedGang::new(dispatch, &pools, gang)
    }

    /// Places a gang, again if a worker is lost before the commit.
    async fn place_gang(&self, requests: &[ClaimRequest], waiting: Option<&Arc<WaitingGang>>) -> GangResults {
        for _ in 0..ATTEMPTS {
            if let Some(outcomes) = self.try_place_gang(requests, waiting).await {
                return outcomes;
            }
        }
        requests.iter().map(|_| Err(RequestError::Unavailable(UnavailableReason::Overloaded))).collect()
    }

    /// Places a gang once. Returns `None` if a worker was lost before the commit and everything was rolled back.
    async fn try_place_gang(
        &self,
        requests: &[ClaimRequest],
        waiting: Option<&Arc<WaitingGang>>,
    ) -> Option<GangResults> {
        let dispatch = self.dispatch();
        let id = match dispatch.allocate_fences(1) {
            Ok(id) => id,
            Err(reason) => return Some(requests.iter().map(|_| Err(RequestError::Unavailable(reason))).collect()),
        };
        let grants = Arc::new(CompletionQueue::collecting(requests.len()));
        let PreparedGang { home, mut items, mut members } = match self.prepare_gang(requests, id, &grants) {
            Ok(prepared) => prepared,
            Err(rejections) => return Some(gang_rejections(requests.len(), rejections)),
        };
        let Some(guards) = self.lock_pools(&members).await else {
            return Some(
                requests.iter().map(|_| Err(RequestError::Unavailable(UnavailableReason::Overloaded))).collect(),
            );
        };
        let rejections = self.acquire_keys(&mut members, &mut items);
        if !rejections.is_empty() {
            self.release_tickets(&members);
            return Some(gang_rejections(requests.len(), rejections));
        }
        if let Some(gang) = waiting {
            dispatch.ask_held(gang.arrival, &gang.pools, &mut items);
        }
        dispatch.with_work(|work| dispatch.route_all(items, work));
        let granted = grants.collect().await;
        let decision = self.decide_gang(home, &members, granted).await;
        drop(guards);
        match decision {
            GangDecision::Committed(outcomes) => Some(outcomes),
            GangDecision::WorkerLost => None,
            GangDecision::InDoubt => Some(requests.iter().map(|_| Err(RequestError::DeadlineExceeded)).collect()),
            GangDecision::Refused(rejections) => {
                let rejections = self.replace_unsatisfiable(requests, &members, rejections).await;
                Some(gang_rejections(requests.len(), rejections))
            }
        }
    }

    /// Checks the members of a gang and prepares their claims, or returns the rejections by member.
    fn prepare_gang(
        &self,
        requests: &[ClaimRequest],
        id: Fence,
        grants: &Arc<CompletionQueue>,
    ) -> Result<PreparedGang, BTreeMap<usize, RequestError>> {
        let dispatch = self.dispatch();
        let pools = dispatch.pools.load();
        let mut rejections: BTreeMap<usize, RequestError> = BTreeMap::new();
        let mut keys: HashSet<&ClaimId> = HashSet::new();
        let (mut items, mut members) = (Vec::new(), Vec::new());
        let mut home = None;
        for (index, request) in requests.iter().enumerate() {
            if !keys.insert(&request.id) {
                rejections.insert(index, RequestError::invalid("key", "must not be given twice in a gang"));
                continue;
            }
            let admission = super::claims::check_times(request).and_then(|()| {
                AdmittedClaim::gang(&pools, &dispatch.selectors, request, |pool| {
                    *home.get_or_insert(gang_ref(pool, id))
                })
            });
            match admission {
                Ok(admitted) => {
                    let pools = admitted.pools();
                    let reply = ReplyAddress::queue(Arc::clone(grants), index as u32);
                    items.push(self.pending_claim(request, admitted, None, reply));
                    members.push(GangMember { id: request.id.clone(), ticket: None, pools });
                }
                Err(error) => drop(rejections.insert(index, error)),
            }
        }
        match home.filter(|_| rejections.is_empty()) {
            Some(home) => Ok(PreparedGang { home, items, members }),
            None => Err(rejections),
        }
    }

    /// Acquires the keys of all members. Returns the rejections by member.
    fn acquire_keys(
        &self,
        members: &mut [GangMember],
        items: &mut [Box<PendingClaim>],
    ) -> BTreeMap<usize, RequestError> {
        let mut rejections = BTreeMap::new();
        for (index, (member, item)) in members.iter_mut().zip(items).enumerate() {
            let rejection = match self.dispatch().keys.acquire_for_member(item) {
                Ok(()) => {
                    member.ticket = Some(item.ticket);
                    continue;
                }
                Err(Some(exceeded)) => RequestError::Exhausted(ExhaustionReason::Quota(exceeded)),
                Err(None) => Precondition::GangKeyTaken.into(),
            };
            rejections.insert(index, rejection);
        }
        rejections
    }

    /// Acquires the gang locks of all candidate pools, ordered by name.
    async fn lock_pools(&self, members: &[GangMember]) -> Option<Vec<OwnedMutexGuard<()>>> {
        let pools = self.dispatch().pools.load_full();
        let numbers: BTreeSet<u32> = members.iter().flat_map(|member| member.pools.iter().copied()).collect();
        let mut pools: Vec<&Arc<Pool>> = numbers.into_iter().filter_map(|number| pools.by_number(number)).collect();
        pools.sort_by(|one, two| one.name.cmp(&two.name));
        let limit = Duration::from_millis(self.dispatch().settings.store_wait_ms);
        let all = async {
            let mut guards = Vec::with_capacity(pools.len());
            for pool in pools {
                guards.push(Arc::clone(&pool.gang_lock).lock_owned().await);
            }
            guards
        };
        tokio::time::timeout(limit, all).await.ok()
    }

    /// Releases the tickets of members; requests that wait for their keys continue.
    fn release_tickets<'m>(&self, members: impl IntoIterator<Item = &'m GangMember>) {
        for GangMember { id, ticket, .. } in members {
            if let Some(next) = ticket.and_then(|ticket| self.dispatch().keys.release_ticket(id, ticket)) {
                self.dispatch().with_work(|work| self.dispatch().route(next, work));
            }
        }
    }

    /// Rolls back the claims of an undisclosed result.
    fn roll_back_gang(&self, outcomes: GangResults) {
        for result in outcomes.into_iter().flatten() {
            self.dispatch().discard_reply(&result.claim.id, result.claim.fence, result.as_unread());
        }
    }

    /// Replaces the rejections of a gang that its pools could not hold even if they were empty.
    async fn replace_unsatisfiable(
        &self,
        requests: &[ClaimRequest],
        members: &[GangMember],
        rejections: BTreeMap<usize, RequestError>,
    ) -> BTreeMap<usize, RequestError> {
        if !rejections.values().any(|error| matches!(error, RequestError::Exhausted(ExhaustionReason::Pool))) {
            return rejections;
        }
        let pools = self.dispatch().pools.load_full();
        let numbers: BTreeSet<u32> = members.iter().flat_map(|member| member.pools.iter().copied()).collect();
        let (mut workers, mut capacity, mut shared) = (0, ResourceVector::default(), false);
        for pool in numbers.into_iter().filter_map(|number| pools.by_number(number)) {
            let status = self.status(pool).await;
            if status.shards.iter().any(|shard| shard.state != ShardState::Serving.as_str()) {
                // The capacity of the silent shard is unknown: the gang may fit.
                return rejections;
            }
            shared |= status.spec.mode == PoolMode::Shared;
            workers += status.counts().total;
            capacity = capacity.saturating_add(status.capacity);
        }
        let fits = if shared {
            total_request(requests).fits_in(capacity.map(u128::from))
        } else {
            workers >= requests.len() as u64
        };
        if fits {
            return rejections;
        }
        let too_large = |(index, error)| match error {
            RequestError::Exhausted(ExhaustionReason::Pool) => (index, RequestError::GangTooLarge),
            other => (index, other),
        };
        rejections.into_iter().map(too_large).collect()
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
fn total_request(requests: &[ClaimRequest]) -> ResourceVector<u128> {
    let constraints = requests.iter().filter_map(|request| request.constraints.as_ref());
    let amounts = constraints.map(|constraints| ResourceVector::from(&constraints.spec.resources).map(u128::from));
    amounts.fold(ResourceVector::default(), |sum, more| sum.zip_map(more, |one, two| one + two))
}

/// Reason for which a gang can wait; `None` if it is done or waiting is of no use.
fn queueable_reason(outcomes: &GangResults) -> Option<ExhaustionReason> {
    let mut first = None;
    for outcome in outcomes {
        match outcome {
            Err(RequestError::Exhausted(
                reason @ (ExhaustionReason::Pool | ExhaustionReason::NodeLocality | ExhaustionReason::Quota(_)),
            )) => {
                first.get_or_insert(*reason);
            }
            // Workers that could hold it may register.
            Err(RequestError::Unsatisfiable | RequestError::GangTooLarge) => {
                first.get_or_insert(ExhaustionReason::Unsatisfiable);
            }
            Err(RequestError::GangMemberRejected(_)) => {}
            _ => return None,
        }
    }
    first
}

/// Names the reason of a gang that has waited in vain for workers that could hold it.
fn name_as_waited(outcome: &mut Result<ClaimResult, RequestError>) {
    if matches!(outcome, Err(RequestError::Unsatisfiable | RequestError::GangTooLarge)) {
        *outcome = Err(RequestError::Exhausted(ExhaustionReason::Unsatisfiable));
    }
}

fn gang_rejections(members: usize, mut rejections: BTreeMap<usize, RequestError>) -> GangResults {
    let first = rejections.keys().next().copied().unwrap_or(0);
    (0..members)
        .map(|index| Err(rejections.remove(&index).unwrap_or(RequestError::GangMemberRejected(first))))
        .collect()
}
