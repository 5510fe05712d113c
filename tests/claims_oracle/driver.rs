//! Random calls of many callers, and the comparison with the oracle whenever nothing is under way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hotpool::environment::Clock;
use hotpool::model::claim_request::{ClaimConstraints, PoolChoice};
use hotpool::model::request_error::{ExhaustionReason, RequestError};
use hotpool::model::{
    AckLevel, ClaimFilter, ClaimId, ClaimRequest, ClaimSpec, ClaimView, PlacementPolicy, PoolMode, PoolName, PoolSpec,
    Quota, ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec, WorkerView,
};
use hotpool::persist::store::SharedStore;
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{DeleteMode, Scheduler, SchedulerSettings};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinHandle;

use crate::late_store::LateStore;
use crate::oracle::{Oracle, Outcome, Usage, cpu_of, leaves_doubt, priority_of};

/// Real time after which a round has not come to rest.
const PATIENCE: Duration = Duration::from_secs(20);
/// Real time that calls get to end before they count as waiting.
const SETTLING: Duration = Duration::from_millis(2);
/// Milliseconds of engine time that pass until a round has come to rest, at most: no claim's wait or reservation ends.
const STEPS_MAX: usize = 2_000;
/// Milliseconds of them that pass as fast as steps are made.
const UNPACED_STEPS: usize = 100;
/// Engine time of one step in which it passes, and of the end of a round: the interval at which claims that wait for long
/// are looked after, and the longest step of the clock.
const PASS: Duration = Duration::from_millis(250);
/// Calls of a round at most.
const CALLS_MAX: usize = 13;
/// Time after which a reservation of the pools ends by itself.
const RESERVE: Duration = Duration::from_millis(30_000);
const _: () = assert!(
    crate::ROUNDS * (CALLS_MAX + 1) * PASS.as_millis() as usize + (crate::ROUNDS + 1) * STEPS_MAX
        < RESERVE.as_millis() as usize,
    "no reservation ends by time"
);
/// Number of kinds of steps.
const STEP_KINDS: usize = 12;
/// Panics of one seed: fewer than a shard survives in a minute of the manual clock.
const PANICS_MAX: usize = 4;
const TENANTS: [&str; 2] = ["t0", "t1"];
const KEYS: [&str; 4] = ["k0", "k1", "k2", "k3"];
/// Pools with their shards and workers; the last is shared.
const POOLS: [(&str, u16, usize); 3] = [("a", 2, 3), ("b", 1, 2), ("s", 1, 2)];
const WORKER_CPU_MILLI: u64 = 4_000;

/// Faults that are injected beside the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    None,
    /// Shards panic and the store is late at times.
    PanicsAndLateStore,
    /// Many calls meet panics of shards and deletions of pools. The store is never late.
    PanicsAndDeletions,
}

/// Step of a round.
#[derive(Debug, Clone, Copy)]
enum RoundStep {
    Claim,
    Batch,
    Gang,
    Release,
    Confirm,
    Resize,
    Leave,
    SetQuota,
    /// Engine time in which claims that wait are looked after.
    Pass,
    DeletePool,
    Panic,
    DelayStore,
}

impl Faults {
    /// Shares of the steps in a round.
    const fn step_weights(self) -> [(RoundStep, u32); STEP_KINDS] {
        use RoundStep::{
            Batch, Claim, Confirm, DelayStore, DeletePool, Gang, Leave, Panic, Pass, Release, Resize, SetQuota,
        };
        let [deletions, panics, delays] = match self {
            Self::None => [3, 0, 0],
            Self::PanicsAndLateStore => [3, 3, 3],
            Self::PanicsAndDeletions => [18, 15, 0],
        };
        let faults = [(DeletePool, deletions), (Panic, panics), (DelayStore, delays)];
        let claims = [(Claim, 42), (Batch, 5), (Gang, 5)];
        let others = [(Release, 18), (Confirm, 4), (Resize, 6), (Leave, 10), (SetQuota, 5)];
        let [claim, batch, gang] = claims;
        let [release, confirm, resize, leave, quota] = others;
        let [deletion, panic, delay] = faults;
        [claim, batch, gang, release, confirm, resize, leave, quota, (Pass, 6), deletion, panic, delay]
    }
}

/// Kind of a call, with the keys that it is about.
#[derive(Debug)]
enum CallKind {
    Claims(Vec<ClaimId>),
    /// Claim or gang that waits for capacity.
    Waiting(Vec<ClaimId>),
    Release(ClaimId),
    /// Call whose caller stays.
    Other(&'static str),
}

/// Call that was begun.
struct Call {
    task: JoinHandle<()>,
    kind: CallKind,
}

impl Call {
    fn is_waiting(&self) -> bool {
        matches!(self.kind, CallKind::Waiting(_)) && !self.task.is_finished()
    }

    fn claimed(&self) -> &[ClaimId] {
        match &self.kind {
            CallKind::Claims(ids) | CallKind::Waiting(ids) => ids,
            CallKind::Release(_) | CallKind::Other(_) => &[],
        }
    }
}

pub struct Driver {
    scheduler: Scheduler,
    clock: Clock,
    store: Option<Arc<LateStore>>,
    random: StdRng,
    calls: Vec<Call>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
    oracle: Oracle,
    weights: [(RoundStep, u32); STEP_KINDS],
    panics_left: usize,
    /// Largest quota of claims of each tenant since the last comparison; none: unlimited.
    limits: BTreeMap<&'static str, Option<u64>>,
    used: BTreeMap<String, Usage>,
    /// Number of comparisons that saw a claim evicted while a claim of its tenant waited for quota with a higher priority,
    /// and none for capacity.
    own_evictions: usize,
}

fn name(pool: &str) -> PoolName {
    PoolName::new("ns", pool).unwrap()
}

fn cpu(cpu_milli: u64) -> ResourceRequirements {
    ResourceRequirements { cpu_milli, ..ResourceRequirements::default() }
}

impl Driver {
    pub async fn new(seed: u64, faults: Faults) -> Self {
        let late = (faults != Faults::None).then(|| Arc::new(LateStore::new()));
        let store: SharedStore = match &late {
            Some(store) => Arc::<LateStore>::clone(store),
            None => Arc::new(MemoryStore),
        };
        let clock = Clock::manual();
        let scheduler = Scheduler::with_clock(store, SchedulerSettings::default(), clock.clone());
        scheduler.start().await.unwrap();
        let panics_left = if late.is_some() { PANICS_MAX } else { 0 };
        let mut driver = Self {
            scheduler,
            clock,
            store: late,
            random: StdRng::seed_from_u64(seed),
            calls: Vec::new(),
            outcomes: Arc::default(),
            oracle: Oracle::default(),
            weights: faults.step_weights(),
            panics_left,
            limits: TENANTS.map(|tenant| (tenant, None)).into(),
            used: BTreeMap::new(),
            own_evictions: 0,
        };
        for pool in 0..POOLS.len() {
            driver.put_pool(pool).await;
        }
        driver
    }

    async fn put_pool(&mut self, pool: usize) {
        let (pool, shards, workers) = POOLS[pool];
        let ack = if self.store.is_some() { AckLevel::Durable } else { AckLevel::Memory };
        // In the first pool nobody is evicted.
        let exclusive = PoolSpec { shards, ack, preemption: pool != POOLS[0].0, ..PoolSpec::default() };
        let spec = match pool {
            "s" => PoolSpec { mode: PoolMode::Shared, policy: Some(PlacementPolicy::BestFit), ..exclusive },
            _ => exclusive,
        };
        self.scheduler.put_pool(name(pool), spec).await.unwrap();
        let worker = |number: usize| {
            let capacity = WorkerCapacity { cpu_milli: WORKER_CPU_MILLI, ..WorkerCapacity::default() };
            WorkerSpec { capacity, ..WorkerSpec::with_id(WorkerId::new(&format!("w{number}")).unwrap()) }
        };
        let workers = (0..workers).map(|number| worker(number).into()).collect();
        for registered in self.scheduler.register_batch(&name(pool), workers).await.unwrap() {
            registered.unwrap();
        }
    }

    /// Begins some calls one after another, waits until nothing is under way, and compares.
    pub async fn round(&mut self) {
        let calls = self.random.random_range(4..=CALLS_MAX);
        let mut deleted = None;
        let weights = self.weights;
        for _ in 0..calls {
            let (step, _) = *weights.choose_weighted(&mut self.random, |(_, weight)| *weight).expect("shares");
            match step {
                RoundStep::Claim => self.begin_claim(),
                RoundStep::Batch => self.begin_batch(),
                RoundStep::Gang => self.begin_gang(),
                RoundStep::Release => self.begin_release(),
                RoundStep::Confirm => self.begin_confirm(),
                RoundStep::Resize => self.begin_resize(),
                RoundStep::Leave => self.leave_call(),
                RoundStep::SetQuota => self.set_quota().await,
                RoundStep::Pass => self.pass_time(),
                RoundStep::DeletePool if deleted.is_none() => deleted = Some(self.begin_deletion()),
                RoundStep::DeletePool => {}
                RoundStep::Panic => self.panic_shard(),
                RoundStep::DelayStore => self.delay_store(),
            }
            for _ in 0..self.random.random_range(0..4) {
                tokio::task::yield_now().await;
            }
        }
        self.pass_time();
        self.come_to_rest().await;
        if let Some(pool) = deleted {
            self.put_pool(pool).await;
        }
    }

    fn random_id(&mut self) -> ClaimId {
        let tenant = TENANTS[self.random.random_range(0..TENANTS.len())];
        ClaimId::new("ns", tenant, KEYS[self.random.random_range(0..KEYS.len())]).unwrap()
    }

    fn random_request(&mut self, wait_ms: u64) -> ClaimRequest {
        let id = self.random_id();
        self.random_request_of(id, wait_ms)
    }

    fn random_request_of(&mut self, id: ClaimId, wait_ms: u64) -> ClaimRequest {
        let listed = |pools: &[&str]| PoolChoice::Listed(pools.iter().map(|pool| name(pool)).collect());
        let (pools, is_shared) = match self.random.random_range(0..6) {
            0 | 1 => (PoolChoice::One(name("a")), false),
            2 => (listed(&["b", "a"]), false),
            3 => (PoolChoice::One(name("b")), false),
            _ => (PoolChoice::One(name("s")), true),
        };
        let priority = if self.random.random_bool(if wait_ms > 0 { 0.6 } else { 0.3 }) {
            self.random.random_range(1..3)
        } else {
            0
        };
        let preemptible = priority == 0 && self.random.random_bool(0.5);
        let resources = if is_shared { cpu(self.random.random_range(1..=8) * 500) } else { cpu(0) };
        let spec = ClaimSpec { resources, priority, preemptible, ..ClaimSpec::default() };
        let constraints =
            (!spec.is_empty()).then(|| Box::new(ClaimConstraints { spec, ..ClaimConstraints::default() }));
        let reserve_ms = self.random.random_bool(0.7).then_some(0);
        ClaimRequest { constraints, reserve_ms, wait_ms, ..ClaimRequest::new(id, pools) }
    }

    fn begin<F: Future<Output = Vec<Outcome>> + Send + 'static>(
        &mut self,
        kind: CallKind,
        call: impl FnOnce(Scheduler) -> F,
    ) {
        let outcomes = Arc::clone(&self.outcomes);
        let call = call(self.scheduler.clone());
        let task = tokio::spawn(async move {
            let learned = call.await;
            outcomes.lock().unwrap().extend(learned);
        });
        self.calls.push(Call { task, kind });
    }

    fn begin_claim(&mut self) {
        let waits = self.random.random_bool(0.3);
        let request = self.random_request(if waits { 60_000 } else { 0 });
        let id = request.id.clone();
        self.oracle.begin_claim(&id);
        let kind = if waits { CallKind::Waiting(vec![id.clone()]) } else { CallKind::Claims(vec![id.clone()]) };
        self.begin(kind, |scheduler| async move {
            let claimed = scheduler.claim(request).await;
            vec![Outcome::Claimed(id, claimed)]
        });
    }

    fn begin_batch(&mut self) {
        let requests: Vec<ClaimRequest> = (0..self.random.random_range(2..5)).map(|_| self.random_request(0)).collect();
        let ids: Vec<ClaimId> = requests.iter().map(|request| request.id.clone()).collect();
        ids.iter().for_each(|id| self.oracle.begin_claim(id));
        self.begin(CallKind::Claims(ids.clone()), |scheduler| async move {
            let claimed = scheduler.claim_batch(requests).await.into_iter();
            ids.into_iter().zip(claimed).map(|(id, claimed)| Outcome::Claimed(id, claimed)).collect()
        });
    }

    /// Begins a gang of two or three different keys of one tenant.
    fn begin_gang(&mut self) {
        let waits = self.random.random_bool(0.5);
        let tenant = TENANTS[self.random.random_range(0..TENANTS.len())];
        let mut keys = KEYS;
        keys.shuffle(&mut self.random);
        let ids: Vec<ClaimId> = keys[..self.random.random_range(2..4)]
            .iter()
            .map(|key| ClaimId::new("ns", tenant, key).expect("a name"))
            .collect();
        let wait_ms = if waits { 60_000 } else { 0 };
        let requests = ids.iter().map(|id| self.random_request_of(id.clone(), wait_ms)).collect();
        ids.iter().for_each(|id| self.oracle.begin_claim(id));
        let kind = if waits { CallKind::Waiting(ids.clone()) } else { CallKind::Claims(ids.clone()) };
        self.begin(kind, |scheduler| async move {
            let claimed = scheduler.claim_gang(requests).await;
            // What is not known of one member is not known of the others.
            let is_unknown = claimed.iter().any(|claimed| claimed.as_ref().is_err_and(leaves_doubt));
            let known = |claimed: Result<_, RequestError>| match claimed {
                Err(_) if is_unknown => Err(RequestError::DeadlineExceeded),
                claimed => claimed,
            };
            ids.into_iter().zip(claimed).map(|(id, claimed)| Outcome::Claimed(id, known(claimed))).collect()
        });
    }

    /// Claim that is held as far as the oracle knows.
    fn random_holder(&mut self) -> Option<(ClaimId, u64)> {
        let holders = &self.oracle.holders;
        let index = self.random.random_range(0..holders.len().max(1));
        holders.values().nth(index).map(|holder| (holder.id.clone(), holder.fence))
    }

    fn begin_release(&mut self) {
        let Some((id, fence)) = self.random_holder() else { return };
        self.begin(CallKind::Release(id.clone()), |scheduler| async move {
            let released = scheduler.release(&id, fence).await;
            vec![Outcome::Released(id, fence, released)]
        });
    }

    fn begin_confirm(&mut self) {
        let Some((id, fence)) = self.random_holder() else { return };
        self.begin(CallKind::Other("confirm"), |scheduler| async move {
            drop(scheduler.confirm(&id, fence).await);
            Vec::new()
        });
    }

    fn begin_resize(&mut self) {
        let Some((id, fence)) = self.random_holder() else { return };
        let cpu_milli = self.random.random_range(1..=8) * 500;
        self.oracle.begin_resize(fence, cpu_milli);
        self.begin(CallKind::Other("resize"), |scheduler| async move {
            drop(scheduler.resize(&id, fence, cpu(cpu_milli)).await);
            Vec::new()
        });
    }

    /// Lets the caller of a claim or release leave.
    fn leave_call(&mut self) {
        if self.calls.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.calls.len());
        // The deletion of a pool goes on without its caller, and this test must know when it ends.
        if !matches!(self.calls[index].kind, CallKind::Other(_)) {
            let call = self.calls.swap_remove(index);
            self.abort(&call);
        }
    }

    fn abort(&mut self, call: &Call) {
        if !call.task.is_finished() {
            call.task.abort();
            if let CallKind::Release(id) = &call.kind {
                self.oracle.leave_release(id);
            }
        }
    }

    fn pass_time(&self) {
        self.clock.advance(PASS);
        self.clock.tick();
        self.scheduler.inject_queue_tick();
    }

    async fn set_quota(&mut self) {
        // The catalog waits for the store.
        self.hurry_store();
        let tenant = TENANTS[self.random.random_range(0..TENANTS.len())];
        let claims = self.random.random_bool(0.8).then(|| self.random.random_range(0..4));
        let cpu_milli = self.random.random_bool(0.3).then(|| self.random.random_range(0..8_000));
        self.scheduler.put_quota("ns", Some(tenant), Quota { claims, cpu_milli, ..Quota::default() }).await.unwrap();
        let limit = self.limits.get_mut(tenant).expect("a tenant of the test");
        *limit = limit.zip(claims).map(|(old, new)| old.max(new));
    }

    /// Begins to delete a pool with all its claims. Returns the pool, to be created again.
    fn begin_deletion(&mut self) -> usize {
        let pool = self.random.random_range(0..POOLS.len());
        let pool_name = POOLS[pool].0;
        self.oracle.delete_pool(pool_name);
        self.begin(CallKind::Other("delete_pool"), |scheduler| async move {
            scheduler.delete_pool(&name(pool_name), DeleteMode::Force).await.unwrap();
            Vec::new()
        });
        pool
    }

    fn panic_shard(&mut self) {
        if self.panics_left > 0 {
            self.panics_left -= 1;
            let (pool, shards, _) = POOLS[self.random.random_range(0..POOLS.len())];
            self.scheduler.inject_panic(&name(pool), self.random.random_range(0..shards));
        }
    }

    fn delay_store(&mut self) {
        let Some(store) = &self.store else { return };
        store.set_late(true);
        if store.waiting() > 0 {
            store.answer();
        }
    }

    fn hurry_store(&self) {
        let Some(store) = &self.store else { return };
        store.set_late(false);
        while store.waiting() > 0 {
            store.answer();
        }
    }

    /// Description of what is under way.
    fn under_way(&self) -> String {
        let describe = |kind: &CallKind| match kind {
            CallKind::Other(name) => (*name).to_owned(),
            kind => format!("{kind:?}"),
        };
        let calls = self.calls.iter().filter(|call| !call.task.is_finished()).map(|call| describe(&call.kind));
        let keys = self.scheduler.keys();
        format!(
            "under way: {:?}; {} keys, {} pending; {:?}",
            calls.collect::<Vec<_>>(),
            keys.len(),
            keys.pending_len(),
            self.scheduler.readiness()
        )
    }

    fn finished(&self) -> usize {
        self.calls.iter().filter(|call| call.task.is_finished()).count()
    }

    /// Waits until nothing is under way but claims that wait, and compares.
    async fn come_to_rest(&mut self) {
        let begun = Instant::now();
        let mut steps = 0;
        loop {
            self.hurry_store();
            // Gangs repeat what a panic has left unanswered.
            if steps < STEPS_MAX {
                self.clock.advance(Duration::from_millis(1));
                steps += 1;
            }
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            // Other threads need real time for what engine time waits for: it must not be used up before.
            if steps > UNPACED_STEPS {
                tokio::time::sleep(SETTLING).await;
            }
            let finished = self.finished();
            let busy = self.calls.iter().any(|call| !call.is_waiting() && !call.task.is_finished());
            // A call that was just answered by another thread is about to end.
            let settled = !busy && {
                tokio::time::sleep(SETTLING).await;
                self.finished() == finished
            };
            let problem = match !settled || !self.scheduler.readiness().ready {
                true => self.under_way(),
                false => match self.compare().await {
                    Ok(()) => break,
                    Err(problem) => problem,
                },
            };
            assert!(begun.elapsed() < PATIENCE, "{problem}");
        }
        for index in
            (0..self.calls.len()).rev().filter(|&index| self.calls[index].task.is_finished()).collect::<Vec<_>>()
        {
            // A call that panicked has found a fault.
            self.calls.swap_remove(index).task.await.unwrap();
        }
    }

    async fn compare(&mut self) -> Result<(), String> {
        let views = self.views().await?;
        // After the list: an answer that is here by now is in it, too.
        for outcome in std::mem::take(&mut *self.outcomes.lock().unwrap()) {
            self.oracle.learn(outcome).unwrap();
        }
        let keys = self.scheduler.keys();
        let charged: BTreeMap<String, Usage> =
            keys.tenants.in_use().into_iter().map(|(tenant, used)| (tenant, (used.claims, used.cpu_milli))).collect();
        self.oracle.compare(&views, &charged)?;
        for view in &views {
            let holder = keys.holder(&view.id).map(|holder| holder.handle.fence);
            if holder != Some(view.fence) {
                return Err(format!("K1: {:?} is held with {}, the directory has {holder:?}", view.id, view.fence));
            }
        }
        let waiting: usize = self.calls.iter().filter(|call| call.is_waiting()).map(|call| call.claimed().len()).sum();
        let (all, pending) = (keys.len(), keys.pending_len());
        if pending > waiting || all != pending + views.len() {
            return Err(format!("{all} keys, {pending} pending, {} held, {waiting} wait", views.len()));
        }
        self.check_waiting().await?;
        for (tenant, limit) in &mut self.limits {
            let owner = format!("ns/{tenant}");
            let used = charged.get(&owner).map_or(0, |used| used.0);
            let before = self.used.get(&owner).map_or(0, |used| used.0);
            if limit.is_some_and(|limit| used > limit.max(before)) {
                return Err(format!("U1: {tenant} uses {used} of {limit:?} claims, {before} before"));
            }
            *limit = self.scheduler.get_quota("ns", Some(tenant)).unwrap().quota.claims;
        }
        self.used = charged;
        self.own_evictions += usize::from(self.has_own_eviction(&views));
        self.oracle.adopt(&views);
        for call in self.calls.iter().filter(|call| call.is_waiting()) {
            call.claimed().iter().for_each(|id| self.oracle.begin_claim(id));
        }
        Ok(())
    }

    /// Whether a claim is evicted, a claim of its tenant with a higher priority waits for quota, and none waits for
    /// capacity. Mostly the one was evicted for the other; some were for a claim that has left since.
    fn has_own_eviction(&self, views: &[ClaimView]) -> bool {
        let ids = TENANTS.iter().flat_map(|tenant| KEYS.map(|key| ClaimId::new("ns", tenant, key).expect("a name")));
        let queued: Vec<_> = ids.filter_map(|id| self.scheduler.keys().queued_claim(&id)).collect();
        let is_for_quota = |exhausted: &ExhaustionReason| matches!(exhausted, ExhaustionReason::Quota(_));
        let mut evicted = views.iter().filter(|view| view.evicted);
        queued.iter().all(|(_, exhausted)| is_for_quota(exhausted))
            && evicted.any(|view| {
                queued
                    .iter()
                    .any(|(claim, _)| claim.id.owner() == view.id.owner() && claim.priority > priority_of(view))
            })
    }

    /// Checks that no claim waits while a worker fits that nobody holds, and its quota allows it (Q05). Pools with
    /// reservations are left out.
    async fn check_waiting(&self) -> Result<(), String> {
        for (pool_name, ..) in POOLS {
            let Some(pool) = self.scheduler.inject_pool(&name(pool_name)) else { continue };
            if pool.wait_queue.lock().queue.reservations.lowest_priority().is_some() {
                continue;
            }
            let workers = self.scheduler.list_workers(&name(pool_name), None, 100).await;
            let workers = workers.map_err(|error| format!("workers cannot be listed: {error:?}"))?.items;
            let ids =
                TENANTS.iter().flat_map(|tenant| KEYS.map(|key| ClaimId::new("ns", tenant, key).expect("a name")));
            let queued = ids.filter_map(|id| self.scheduler.keys().queued_claim(&id));
            for (queued, exhausted) in queued.filter(|(queued, _)| queued.pools.contains(&pool.number)) {
                let needed = queued.amounts().cpu_milli;
                let free = |worker: &&WorkerView| match pool_name {
                    "s" => worker.claims.iter().map(cpu_of).sum::<u64>() + needed <= WORKER_CPU_MILLI,
                    _ => worker.claims.is_empty() && !worker.busy,
                };
                if let Some(worker) = workers.iter().find(free)
                    && queued.tenant.may_charge(&queued.amounts(), queued.charge_rank())
                {
                    let worker = &worker.registration.spec.id;
                    return Err(format!(
                        "Q05: {:?} waits ({exhausted:?}), and {worker} of {pool_name} is free",
                        queued.id
                    ));
                }
            }
        }
        Ok(())
    }

    async fn views(&self) -> Result<Vec<ClaimView>, String> {
        let page = self.scheduler.list_claims(&ClaimFilter::default(), None, 1_000).await;
        page.map(|page| page.items).map_err(|error| format!("claims cannot be listed: {error:?}"))
    }

    /// Ends everything and checks that nothing is left. Returns the number of comparisons that saw an eviction within a
    /// tenant.
    pub async fn end(mut self) -> usize {
        for call in std::mem::take(&mut self.calls) {
            self.abort(&call);
        }
        self.come_to_rest().await;
        for holder in self.oracle.holders.clone().into_values() {
            self.scheduler.release(&holder.id, holder.fence).await.unwrap();
        }
        self.come_to_rest_empty().await;
        assert!(self.scheduler.keys().tenants.in_use().is_empty());
        for (pool, shards, workers) in POOLS {
            let pool = self.scheduler.inject_pool(&name(pool)).expect("a pool of the test");
            let idle: u32 = (0..shards).map(|shard| pool.board.idle(shard)).sum();
            assert_eq!(idle as usize, workers, "{} at the end", pool.name);
        }
        assert!(self.scheduler.stop().await, "everything is stored");
        self.own_evictions
    }

    async fn come_to_rest_empty(&mut self) {
        let begun = Instant::now();
        while !self.scheduler.keys().is_empty() {
            tokio::task::yield_now().await;
            assert!(begun.elapsed() < PATIENCE, "{} keys are left", self.scheduler.keys().len());
        }
    }
}
