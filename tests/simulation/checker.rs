//! Outside checker: knows only what callers and workers were told, and when each call was begun and answered.
//!
//! What may have ended a claim is noted when it *begins* (a release is sent, a limit of time was agreed, a fault takes place),
//! what has certainly ended it when its answer *arrives*. Between the two the checker asserts nothing about the claim.

use std::collections::{BTreeMap, BTreeSet};

use hotpool::model::{ClaimResult, ClaimState, ClaimView, Fence, PoolMode};

use crate::settings::PoolSettings;

/// Tenant and key of a claim.
pub type Key = String;

/// Reason for which a claim may have ended without the caller's knowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Reservation that must be confirmed in time.
    Reserved,
    /// Time to live that was agreed.
    TimeToLive,
    /// Release that was sent.
    Release,
    /// Eviction that a claim of higher priority may cause.
    Preemptible,
    /// Worker that misbehaves, or that an operator deletes.
    Worker,
    /// Deletion of its pool.
    Pool,
    /// Crash that may have lost its record.
    Crash,
    /// Claim of its key with other conditions, which takes its place.
    Replaced,
    /// State in which it is ending.
    Ending,
}

#[derive(Debug, Clone)]
struct KnownClaim {
    key: Key,
    pool: String,
    worker: String,
    cpu_milli: u64,
    is_durable: bool,
    seen_ns: u64,
    doubts: BTreeSet<Doubt>,
    /// Time at which its end was known.
    ended_ns: Option<u64>,
    /// Time before which it does not end for want of a confirmation.
    reserved_until_ns: u64,
}

/// Grant of a claim that asked one exclusive pool.
#[derive(Debug)]
struct OrderedGrant {
    key: Key,
    pool: String,
    priority: u16,
    asked_ns: u64,
    answered_ns: u64,
}

/// Claim that waits for one exclusive pool.
#[derive(Debug, Clone)]
pub struct OrderedWait {
    pub key: Key,
    pub pool: String,
    pub priority: u16,
    pub asked_ns: u64,
    /// Whether nothing but capacity and rank decides when it is granted.
    pub is_plain: bool,
}

/// Quota of a tenant as its callers know it.
#[derive(Debug, Default)]
struct KnownQuota {
    /// Limit of its claims; none: none, or not certain.
    limit: Option<u64>,
    /// Changes that are under way.
    open: u32,
    /// Whether some of them began before others had ended, so that nobody knows which was last.
    has_overlap: bool,
    /// Time of the last change.
    changed_ns: u64,
}

/// Time after a panic for which what it has interrupted may still be charged, in nanoseconds.
const PANIC_NS: u64 = 30_000_000_000;

/// Time after which a claim that waits certainly stands still, in nanoseconds.
const SETTLED_NS: u64 = 500_000_000;
/// Time by which an answer may be late, in nanoseconds.
const LATE_NS: u64 = 100_000_000;

impl KnownClaim {
    fn is_certain(&self) -> bool {
        self.doubts.is_empty() && self.ended_ns.is_none()
    }
}

/// Claims as callers know them.
#[derive(Debug, Default)]
pub struct Checker {
    claims: BTreeMap<Fence, KnownClaim>,
    created: BTreeSet<Fence>,
    /// Keys of calls whose outcome nobody knows.
    unknown: BTreeSet<Key>,
    /// Keys of calls whose callers left before an answer: what they began is rolled back, unless a crash comes first.
    hung_up: BTreeSet<Key>,
    /// Grants of single claims, and claims that wait, for the order between them.
    grants: Vec<OrderedGrant>,
    waits: BTreeMap<u64, OrderedWait>,
    has_quotas: bool,
    /// Limits of the claims of tenants, as far as they are certain.
    quotas: BTreeMap<String, KnownQuota>,
    /// Changes of quotas that have begun or ended.
    quota_changes: u64,
    /// Whether the store may have lost what it had acknowledged.
    is_lossy: bool,
    /// Time of the last panic of a shard.
    panicked_ns: u64,
    /// Doubts about claims that are not known, or not any more.
    old_doubts: BTreeMap<Fence, BTreeSet<Doubt>>,
    /// Pools that are being deleted, or created again after that.
    deleting_pools: BTreeSet<String>,
    /// Time at which each pool was deleted last.
    deleted_pools: BTreeMap<String, u64>,
    /// Releases of whatever holds a key, each with when it was answered; none: it may still take effect.
    open_releases: Vec<(Key, Option<u64>)>,
    /// Claims of each key that are under way.
    open_claims: BTreeMap<Key, u32>,
    /// Time at which the last claim of each key was answered.
    last_claims: BTreeMap<Key, u64>,
    /// Pools whose workers' heartbeats were not answered for long, so that they may count as lost.
    silent_pools: BTreeSet<String>,
    /// Workers that have misbehaved, as pool and id.
    doubtful_workers: BTreeSet<(String, String)>,
    pools: BTreeMap<String, (PoolMode, u64)>,
    problems: Vec<String>,
}

impl Checker {
    pub fn new(pools: &[PoolSettings]) -> Self {
        let pools = pools.iter().map(|pool| (pool.name.to_owned(), (pool.spec.mode, pool.worker_cpu_milli))).collect();
        Self { pools, ..Self::default() }
    }

    /// First problem that was found.
    pub fn problem(&self) -> Option<&str> {
        self.problems.first().map(String::as_str)
    }

    pub fn fail(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Notes that the store may lose what it has acknowledged from now on, until everything is at rest.
    pub fn begin_loss(&mut self) {
        self.is_lossy = true;
        self.forget();
    }

    /// Notes that the store has everything again.
    pub fn end_loss(&mut self) {
        if std::mem::take(&mut self.is_lossy) {
            self.forget();
        }
    }

    fn fail_unless_lossy(&mut self, problem: String) {
        if !self.is_lossy {
            self.fail(problem);
        }
    }

    /// Number of claims that were granted.
    pub fn grants(&self) -> usize {
        self.created.len()
    }

    /// Notes that a call about this key has an outcome that nobody knows.
    pub fn lose_outcome(&mut self, key: &str) {
        self.unknown.insert(key.to_owned());
    }

    /// Notes that the caller of a claim left before it was answered.
    pub fn hang_up(&mut self, key: &str) {
        self.hung_up.insert(key.to_owned());
    }

    /// Notes that a shard panicked.
    pub fn note_panic(&mut self, now_ns: u64) {
        self.panicked_ns = now_ns;
    }

    /// Notes that the quota of a tenant is being changed.
    pub fn begin_quota(&mut self, tenant: &str) {
        self.has_quotas = true;
        self.quota_changes += 1;
        let quota = self.quotas.entry(tenant.to_owned()).or_default();
        quota.has_overlap |= quota.open > 0;
        quota.open += 1;
        quota.limit = None;
    }

    /// Number of changes of quotas that have begun or ended; none while one is under way.
    pub fn quota_changes(&self) -> Option<u64> {
        self.quotas.values().all(|quota| quota.open == 0).then_some(self.quota_changes)
    }

    /// Notes that a change of a quota has ended; with its limit of claims if it took effect for sure.
    pub fn end_quota(&mut self, tenant: &str, limit: Option<u64>, now_ns: u64) {
        self.quota_changes += 1;
        let quota = self.quotas.entry(tenant.to_owned()).or_default();
        quota.open -= 1;
        quota.limit = limit.filter(|_| quota.open == 0 && !quota.has_overlap);
        quota.has_overlap &= quota.open > 0;
        quota.changed_ns = now_ns;
    }

    /// Checks a claim that was refused because its tenant has as many as it may, of a caller who asked at `asked_ns`.
    pub fn check_refusal(&mut self, key: &str, asked_ns: u64, now_ns: u64) {
        let Some((tenant, _)) = key.split_once('/') else { return };
        let Some(KnownQuota { limit: Some(limit), changed_ns, .. }) = self.quotas.get(tenant) else { return };
        if *changed_ns >= asked_ns || now_ns < self.panicked_ns + PANIC_NS || self.is_lossy {
            return;
        }
        let is_of_tenant = |key: &str| key.split_once('/').is_some_and(|(of, _)| of == tenant);
        let may_be_held = |claim: &KnownClaim| claim.ended_ns.is_none_or(|ended_ns| ended_ns >= asked_ns);
        let known = self.claims.values().filter(|claim| is_of_tenant(&claim.key) && may_be_held(claim)).count();
        let unknown = self.unknown.union(&self.hung_up).filter(|key| is_of_tenant(key)).count();
        let open: u32 = self.open_claims.iter().filter(|(key, _)| is_of_tenant(key)).map(|(_, open)| *open).sum();
        let recent = self.last_claims.iter().filter(|(key, at)| is_of_tenant(key) && **at >= asked_ns).count();
        // The refused claim is one of those that are open.
        let most = known + unknown + recent + open.saturating_sub(1) as usize;
        if (most as u64) < *limit {
            self.fail(format!("U1: {key} is refused by a quota of {limit}, and its tenant has {most} at most"));
        }
    }

    /// Notes that a claim waits. Its number is the caller's choice.
    pub fn begin_wait(&mut self, number: u64, wait: OrderedWait) {
        // Its own call is begun already. A claim of the same key that came before it goes where it wants, with its rank.
        let is_alone = self.open_claims.get(&wait.key).is_none_or(|open| *open <= 1);
        let is_held = self.claims.values().any(|claim| claim.key == wait.key && claim.ended_ns.is_none());
        let is_plain = wait.is_plain && is_alone && !is_held;
        self.waits.insert(number, OrderedWait { is_plain, ..wait });
    }

    /// Notes that no claim that waits can be compared with others any more: something held up the answers.
    pub fn disturb(&mut self) {
        self.waits.values_mut().for_each(|wait| wait.is_plain = false);
    }

    /// Notes a grant of a claim that asked one exclusive pool.
    pub fn note_grant(&mut self, key: &str, pool: &str, priority: u16, asked_ns: u64, answered_ns: u64) {
        let (key, pool) = (key.to_owned(), pool.to_owned());
        self.grants.push(OrderedGrant { key, pool, priority, asked_ns, answered_ns });
    }

    /// Notes that a claim does not wait any more, and checks that nobody of lower priority was granted what it asked for.
    pub fn end_wait(&mut self, number: u64, now_ns: u64) {
        let Some(wait) = self.waits.remove(&number) else { return };
        if !wait.is_plain || self.has_quotas {
            return;
        }
        let passed = self.grants.iter().rev().take_while(|grant| grant.answered_ns >= wait.asked_ns).find(|grant| {
            grant.pool == wait.pool
                && grant.priority < wait.priority
                && grant.asked_ns >= wait.asked_ns + SETTLED_NS
                && grant.answered_ns + LATE_NS <= now_ns
        });
        if let Some(grant) = passed {
            let text = format!(
                "QW1: {} waits for {} with priority {} since {} us, and {} of priority {} was granted ({} to {} us)",
                wait.key,
                wait.pool,
                wait.priority,
                wait.asked_ns / 1_000,
                grant.key,
                grant.priority,
                grant.asked_ns / 1_000,
                grant.answered_ns / 1_000
            );
            self.fail_unless_lossy(text);
        }
    }

    /// Notes until when a claim that must be confirmed does not end by itself.
    pub fn reserve_until(&mut self, fence: Fence, until_ns: u64) {
        if let Some(claim) = self.claims.get_mut(&fence) {
            claim.reserved_until_ns = until_ns;
        }
    }

    /// Checks the answer that a claim does not exist, at `now_ns`.
    pub fn miss(&mut self, fence: Fence, now_ns: u64) {
        let Some(claim) = self.claims.get(&fence) else { return };
        let is_in_time = now_ns < claim.reserved_until_ns;
        let is_reserved = claim.doubts.iter().all(|doubt| *doubt == Doubt::Reserved) && !claim.doubts.is_empty();
        if claim.is_certain() || (is_reserved && is_in_time && claim.ended_ns.is_none()) {
            let text = format!("lost: {fence} of {} is not found, and nothing has ended it", claim.key);
            self.fail_unless_lossy(text);
        }
    }

    /// Notes that claims of the key may be replaced by one that is requested with other conditions.
    pub fn begin_claim(&mut self, key: &str) {
        *self.open_claims.entry(key.to_owned()).or_default() += 1;
        self.waits.values_mut().filter(|wait| wait.key == key).for_each(|wait| wait.is_plain = false);
        self.doubt_where(Doubt::Replaced, |claim| claim.key == key && claim.doubts.contains(&Doubt::Reserved));
    }

    /// Notes that a claim of the key is answered, or that its caller has left.
    pub fn end_claim(&mut self, key: &str, now_ns: u64) {
        if let Some(open) = self.open_claims.get_mut(key) {
            *open -= 1;
        }
        self.last_claims.insert(key.to_owned(), now_ns);
    }

    /// Notes that a release of whatever holds the key is answered.
    pub fn end_release(&mut self, key: &str, now_ns: u64) {
        if let Some((_, ended_ns)) =
            self.open_releases.iter_mut().find(|(of, ended_ns)| of == key && ended_ns.is_none())
        {
            *ended_ns = Some(now_ns);
        }
    }

    pub fn begin_release(&mut self, key: &str, fence: Option<Fence>) {
        if let Some(fence) = fence {
            self.old_doubts.entry(fence).or_default().insert(Doubt::Release);
        }
        for (held, claim) in &mut self.claims {
            if claim.key == key && fence.is_none_or(|fence| fence == *held) {
                claim.doubts.insert(Doubt::Release);
            }
        }
        if fence.is_none() {
            self.open_releases.push((key.to_owned(), None));
        }
    }

    /// Learns of an answer that showed this claim to a caller who asked at `asked_ns`.
    pub fn show(&mut self, result: &ClaimResult, doubts: &[Doubt], is_durable: bool, asked_ns: u64, now_ns: u64) {
        let ClaimResult { claim: view, created } = result;
        let key = key_of(view);
        if *created {
            if !self.created.insert(view.fence) {
                self.fail_unless_lossy(format!("K1: two callers created the claim {} of {key}", view.fence));
            }
            let mut earlier = self.claims.iter().filter(|(_, claim)| claim.key == key && claim.seen_ns < asked_ns);
            if let Some((fence, _)) = earlier.next_back()
                && *fence >= view.fence
            {
                let text = format!("F1: {key} got {} after {fence} was answered", view.fence);
                self.fail_unless_lossy(text);
            }
        }
        self.learn(view, doubts, is_durable, now_ns);
        self.doubt_by_other_calls(view, asked_ns);
        self.check_answer(view, *created, asked_ns);
        self.check_worker(view.fence, asked_ns);
    }

    /// Doubts a claim that calls under way since `asked_ns` may have ended before it was shown.
    fn doubt_by_other_calls(&mut self, view: &ClaimView, asked_ns: u64) {
        let key = key_of(view);
        let is_released = self
            .open_releases
            .iter()
            .any(|(of, ended_ns)| *of == key && ended_ns.is_none_or(|ended_ns| ended_ns >= asked_ns));
        let has_company = self.open_claims.get(&key).is_some_and(|open| *open > 1)
            || self.last_claims.get(&key).is_some_and(|last_ns| *last_ns >= asked_ns);
        let is_deleted = self.deleted_pools.get(view.pool.pool()).is_some_and(|deleted_ns| *deleted_ns >= asked_ns);
        let Some(claim) = self.claims.get_mut(&view.fence) else { return };
        if is_deleted {
            claim.doubts.insert(Doubt::Pool);
        }
        if is_released {
            claim.doubts.insert(Doubt::Release);
        }
        if has_company && matches!(view.state, ClaimState::Reserved | ClaimState::Lost) {
            claim.doubts.insert(Doubt::Replaced);
        }
    }

    /// Checks that a claim that is answered as created had not ended before without a reason that anybody knows.
    fn check_answer(&mut self, view: &ClaimView, created: bool, asked_ns: u64) {
        // After a panic the deadlines of a shard's claims start again at once, also of those that are not answered yet.
        if self.panicked_ns >= asked_ns {
            return;
        }
        let Some(claim) = self.claims.get(&view.fence) else { return };
        let only_ending = claim.doubts.iter().all(|doubt| *doubt == Doubt::Ending);
        if created && view.state == ClaimState::Lost && only_ending {
            let text = format!("{} of {} is answered as created, and had ended before", view.fence, claim.key);
            self.fail_unless_lossy(text);
        }
    }

    fn learn(&mut self, view: &ClaimView, doubts: &[Doubt], is_durable: bool, now_ns: u64) {
        let pool = view.pool.pool().to_owned();
        let worker = view.worker.spec.id.as_str().to_owned();
        let is_doubtful =
            self.doubtful_workers.contains(&(pool.clone(), worker.clone())) || self.silent_pools.contains(&pool);
        let claim = self.claims.entry(view.fence).or_insert_with(|| KnownClaim {
            key: key_of(view),
            pool,
            worker,
            cpu_milli: cpu_of(view),
            is_durable,
            seen_ns: now_ns,
            doubts: self.old_doubts.get(&view.fence).cloned().unwrap_or_default(),
            ended_ns: None,
            reserved_until_ns: 0,
        });
        claim.doubts.extend(doubts);
        if is_doubtful {
            claim.doubts.insert(Doubt::Worker);
        }
        if self.deleting_pools.contains(&claim.pool) {
            claim.doubts.insert(Doubt::Pool);
        }
        if view.spec.as_ref().is_some_and(|spec| spec.preemptible) {
            claim.doubts.insert(Doubt::Preemptible);
        }
        match view.state {
            ClaimState::Reserved => {
                claim.doubts.insert(Doubt::Reserved);
            }
            ClaimState::Active => {}
            ClaimState::Releasing | ClaimState::Lost => {
                claim.doubts.insert(Doubt::Ending);
            }
        }
        if view.evicted {
            claim.doubts.insert(Doubt::Ending);
        }
    }

    /// Checks that nobody else holds the worker of this claim, or more than it has.
    fn check_worker(&mut self, fence: Fence, asked_ns: u64) {
        let Some(claim) = self.claims.get(&fence).cloned() else { return };
        if !claim.is_certain() {
            return;
        }
        let Some(&(mode, capacity)) = self.pools.get(&claim.pool) else { return };
        let others: Vec<(Fence, &KnownClaim)> = self
            .claims
            .iter()
            .filter(|(other, held)| **other != fence && held.pool == claim.pool && held.worker == claim.worker)
            .map(|(other, held)| (*other, held))
            .collect();
        if mode == PoolMode::Shared {
            let held: u64 = others.iter().filter(|(_, held)| held.is_certain()).map(|(_, held)| held.cpu_milli).sum();
            if held + claim.cpu_milli > capacity {
                let text = format!("{} of {} holds {} of {capacity}", claim.worker, claim.pool, held + claim.cpu_milli);
                self.fail_unless_lossy(text);
            }
            return;
        }
        if let Some((other, held)) = others.iter().find(|(_, held)| held.is_certain()) {
            let text = format!(
                "{} of {} is held twice: {fence} of {}, {other} of {}",
                claim.worker, claim.pool, claim.key, held.key
            );
            return self.fail_unless_lossy(text);
        }
        let is_later = |other: Fence, held: &KnownClaim| {
            other > fence && held.seen_ns < asked_ns && !held.doubts.contains(&Doubt::Crash)
        };
        if let Some((other, held)) = others.iter().find(|(other, held)| is_later(*other, held)) {
            let text = format!(
                "{} of {} was given to {other} of {}, and then {fence} of {} was shown as held",
                claim.worker, claim.pool, held.key, claim.key
            );
            self.fail_unless_lossy(text);
        }
    }

    /// Learns that an operation on a claim, sent at `asked_ns`, was accepted.
    pub fn accept_operation(&mut self, view: &ClaimView, asked_ns: u64, now_ns: u64) {
        let known = self.claims.get(&view.fence).filter(|claim| !claim.doubts.contains(&Doubt::Crash));
        if known.and_then(|claim| claim.ended_ns).is_some_and(|ended_ns| ended_ns < asked_ns) {
            let text = format!("{} of {} was operated on after its end was answered", view.fence, key_of(view));
            self.fail_unless_lossy(text);
        }
        self.learn(view, &[], true, now_ns);
        self.check_order(view, asked_ns);
    }

    /// Checks that the worker was not given to a later claim before the call began.
    fn check_order(&mut self, view: &ClaimView, asked_ns: u64) {
        let pool = view.pool.pool();
        if self.pools.get(pool).is_none_or(|(mode, _)| *mode == PoolMode::Shared) {
            return;
        }
        let worker = view.worker.spec.id.as_str();
        let is_lossy = |claim: &KnownClaim| claim.doubts.contains(&Doubt::Crash);
        if self.claims.get(&view.fence).is_some_and(is_lossy) {
            return;
        }
        let later = self
            .claims
            .range(view.fence + 1..)
            .filter(|(_, claim)| !is_lossy(claim))
            .find(|(_, claim)| claim.pool == pool && claim.worker == worker && claim.seen_ns < asked_ns);
        if let Some((later, claim)) = later {
            let text = format!(
                "{worker} of {pool} was given to {later} of {}, and then {} of {} was operated on",
                claim.key,
                view.fence,
                key_of(view)
            );
            self.fail_unless_lossy(text);
        }
    }

    /// Learns that the holder has confirmed the claim in time, and knows it.
    pub fn confirm(&mut self, view: &ClaimView) {
        if let Some(claim) = self.claims.get_mut(&view.fence)
            && view.state == ClaimState::Active
        {
            claim.doubts.remove(&Doubt::Reserved);
        }
    }

    /// Learns that the claim has ended, and that its caller knows it.
    pub fn end(&mut self, fence: Fence, now_ns: u64) {
        if let Some(claim) = self.claims.get_mut(&fence) {
            claim.ended_ns.get_or_insert(now_ns);
        }
    }

    /// Notes that the claim may end at a time that is agreed.
    pub fn limit_time(&mut self, fence: Fence) {
        self.old_doubts.entry(fence).or_default().insert(Doubt::TimeToLive);
        if let Some(claim) = self.claims.get_mut(&fence) {
            claim.doubts.insert(Doubt::TimeToLive);
        }
    }

    /// Takes what is held at rest as known from now on.
    pub fn adopt(&mut self, views: &[ClaimView], is_durable: bool, now_ns: u64) {
        self.unknown.clear();
        self.hung_up.clear();
        self.open_releases.clear();
        self.open_claims.clear();
        for view in views {
            // How it was requested is not known of all of them.
            let is_new = !self.claims.contains_key(&view.fence);
            self.learn(view, if is_new { &[Doubt::TimeToLive] } else { &[] }, is_durable, now_ns);
        }
    }

    /// Notes that the size of a claim may be another from here on.
    pub fn resize(&mut self, fence: Fence, cpu_milli: u64) {
        if let Some(claim) = self.claims.get_mut(&fence) {
            claim.cpu_milli = claim.cpu_milli.min(cpu_milli);
        }
    }

    /// Notes that a worker misbehaves from here on, or is changed by an operator.
    pub fn doubt_worker(&mut self, pool: &str, worker: &str) {
        self.doubtful_workers.insert((pool.to_owned(), worker.to_owned()));
        self.doubt_where(Doubt::Worker, |claim| claim.pool == pool && claim.worker == worker);
    }

    /// Notes that a worker may not know what it runs at present.
    pub fn doubt_present_claims(&mut self, pool: &str, worker: &str) {
        self.doubt_where(Doubt::Worker, |claim| claim.pool == pool && claim.worker == worker);
    }

    /// Notes that the heartbeats of a pool have not been answered for long.
    pub fn begin_silence(&mut self, pool: &str) {
        self.silent_pools.insert(pool.to_owned());
        self.doubt_where(Doubt::Worker, |claim| claim.pool == pool);
    }

    /// Notes that the heartbeats of a pool are answered again.
    pub fn end_silence(&mut self, pool: &str) {
        if self.silent_pools.remove(pool) {
            self.doubt_where(Doubt::Worker, |claim| claim.pool == pool);
        }
    }

    /// Notes that a worker restarts, and behaves from then on: what ran on it is gone.
    pub fn restart_worker(&mut self, pool: &str, worker: &str) {
        self.doubt_where(Doubt::Worker, |claim| claim.pool == pool && claim.worker == worker);
        self.doubtful_workers.remove(&(pool.to_owned(), worker.to_owned()));
    }

    /// Notes that the store was restored from an earlier copy: what was known means nothing.
    pub fn forget(&mut self) {
        let seen: BTreeSet<Key> = self.claims.values().map(|claim| claim.key.clone()).collect();
        self.unknown.extend(seen);
        // Calls that are under way may still end what they were sent to end.
        for (fence, claim) in std::mem::take(&mut self.claims) {
            self.old_doubts.entry(fence).or_default().extend(claim.doubts);
        }
        self.created.clear();
        self.quotas.values_mut().for_each(|quota| quota.limit = None);
    }

    /// Notes that a pool is being deleted from now on.
    pub fn begin_deletion(&mut self, pool: &str) {
        self.deleting_pools.insert(pool.to_owned());
        self.doubt_where(Doubt::Pool, |claim| claim.pool == pool);
    }

    /// Whether a pool may have been deleted since then.
    pub fn was_pool_deleted_since(&self, asked_ns: u64) -> bool {
        !self.deleting_pools.is_empty() || self.deleted_pools.values().any(|ended_ns| *ended_ns >= asked_ns)
    }

    /// Notes that a pool that was being deleted is there again.
    pub fn end_deletion(&mut self, pool: &str, now_ns: u64) {
        self.deleting_pools.remove(pool);
        self.deleted_pools.insert(pool.to_owned(), now_ns);
        self.doubt_where(Doubt::Pool, |claim| claim.pool == pool);
    }

    /// Notes that a process died. Without records in the store nothing that it acknowledged is certain.
    pub fn crash(&mut self, loses_durable: bool) {
        self.unknown.append(&mut self.hung_up);
        self.disturb();
        for claim in self.claims.values_mut().filter(|claim| loses_durable || !claim.is_durable) {
            claim.doubts.insert(Doubt::Crash);
        }
    }

    fn doubt_where(&mut self, doubt: Doubt, of: impl Fn(&KnownClaim) -> bool) {
        for claim in self.claims.values_mut().filter(|claim| of(claim)) {
            claim.doubts.insert(doubt);
        }
    }

    /// Compares all claims that are held with what callers know, at a moment when nothing is under way.
    pub fn compare(&mut self, views: &[ClaimView], run_by_workers: &BTreeSet<Fence>) -> Result<(), String> {
        let held: BTreeMap<Fence, &ClaimView> = views.iter().map(|view| (view.fence, view)).collect();
        let mut keys = BTreeSet::new();
        if let Some(view) = views.iter().find(|view| !keys.insert(key_of(view))) {
            return Err(format!("K1: {} is held twice", key_of(view)));
        }
        for (fence, claim) in &self.claims {
            let ends_for_sure = claim.ended_ns.is_some() && !claim.doubts.contains(&Doubt::Crash);
            match held.get(fence) {
                None if claim.is_certain() => {
                    return Err(format!("lost: {fence} of {} was answered and is not held", claim.key));
                }
                Some(view) if ends_for_sure => {
                    return Err(format!("{fence} of {} has ended, and is {:?}", claim.key, view.state));
                }
                _ => {}
            }
        }
        for view in views {
            let key = key_of(view);
            // A crash that loses the later claim may bring the earlier one back.
            let is_later = |claim: &KnownClaim| claim.key == key && !claim.doubts.contains(&Doubt::Crash);
            let later = self.claims.range(view.fence + 1..).find(|(_, claim)| is_later(claim));
            if let Some((later, _)) = later {
                return Err(format!("F1: {key} is held with {}, and was granted with {later}", view.fence));
            }
            let worker = (view.pool.pool().to_owned(), view.worker.spec.id.as_str().to_owned());
            let is_reported = self.doubtful_workers.contains(&worker);
            let is_unknown = !self.claims.contains_key(&view.fence) && !self.unknown.contains(&key);
            // A worker that was told to run a claim knows of it.
            if is_unknown && !view.evicted && !is_reported && !run_by_workers.contains(&view.fence) {
                return Err(format!("C12: {key} is held with {}, of which nobody knows", view.fence));
            }
        }
        self.check_capacity(views)
    }

    fn check_capacity(&self, views: &[ClaimView]) -> Result<(), String> {
        let mut by_worker: BTreeMap<(&str, &str), Vec<&ClaimView>> = BTreeMap::new();
        for view in views {
            by_worker.entry((view.pool.pool(), view.worker.spec.id.as_str())).or_default().push(view);
        }
        for ((pool, worker), views) in by_worker {
            let Some((mode, capacity)) = self.pools.get(pool) else { continue };
            let held: u64 = views.iter().map(|view| cpu_of(view)).sum();
            match mode {
                PoolMode::Shared if held > *capacity => {
                    return Err(format!("{worker} of {pool} holds {held} of {capacity}"));
                }
                PoolMode::Exclusive if views.len() > 1 => return Err(format!("{worker} of {pool} is held twice")),
                _ => {}
            }
        }
        Ok(())
    }
}

pub fn key_of(view: &ClaimView) -> Key {
    view.id.tenant_and_key().to_owned()
}

fn cpu_of(view: &ClaimView) -> u64 {
    view.spec.as_ref().map_or(0, |spec| spec.resources.cpu_milli)
}
