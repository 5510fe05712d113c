//! Scheduler with callers of one key, and what must hold of them after every step.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures::future::{BoxFuture, FutureExt as _};
use hotpool::engine::{ResumePoint, ShardReplay};
use hotpool::environment::Clock;
use hotpool::model::claim_request::PoolChoice;
use hotpool::model::request_error::RequestError;
use hotpool::model::{AckLevel, ClaimId, ClaimRequest, Fence, PoolName, PoolSpec, WorkerId, WorkerSpec};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::persist::store::{ShardKey, SharedStore};
use hotpool::scheduler::{Scheduler, SchedulerSettings};
use hotpool::shard::{ProtocolPoint, ProtocolRule};

use crate::caller::{WakeFlag, step};
use crate::late_store::LateStore;
use crate::scene_threads::SceneThreads;
use crate::stepped_thread::{Order, Whereabouts};

/// Tenant of the key.
const TENANT: &str = "ns/default";

/// Requests of a caller about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    Claim,
    /// Releases the claim again if this call created it.
    ClaimAndRelease,
    /// Releases the claim that was held before.
    ReleaseHeld,
    /// Releases the claim that was held before, and claims the key.
    ReleaseHeldAndClaim,
    /// Reads the status of the first pool: while its run is paused, requests of others stay in the mailbox.
    Look,
}

/// Store under the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreTiming {
    /// Keeps no records at all.
    Memory,
    /// Answers every write at once.
    Prompt,
    /// Store that answers when the schedule says so.
    Late,
}

/// Situation that is explored.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub callers: &'static [Script],
    /// Callers that may leave before they have their answer.
    pub leavers: &'static [usize],
    /// Pools of one shard with one worker for the key each, asked in this order.
    pub pools: &'static [&'static str],
    pub store: StoreTiming,
    /// Shards that panic in one schedule.
    pub panics: usize,
    /// Switches away from a thread that could go on.
    pub preemptions: usize,
}

impl Scenario {
    fn begins_held(&self) -> bool {
        self.callers.iter().any(|script| matches!(script, Script::ReleaseHeld | Script::ReleaseHeldAndClaim))
    }

    fn points(&self) -> fn(ProtocolPoint) -> bool {
        match self.panics {
            0 => |point| {
                matches!(point, ProtocolPoint::Effect | ProtocolPoint::WaitStep | ProtocolPoint::Published)
                    || point == ProtocolPoint::Delivered
            },
            _ => |point| {
                // A step of the key holds its lock; others go first at other points already.
                let skipped = [ProtocolPoint::KeyStep, ProtocolPoint::CallerLeft, ProtocolPoint::PanicCaught];
                point != ProtocolPoint::Matched && !skipped.contains(&point)
            },
        }
    }
}

/// Outcome that a caller has learned.
#[derive(Debug, Clone, PartialEq)]
pub enum Learned {
    Created(Fence),
    Existing(Fence),
    Rejected(RequestError),
    Released(Fence, Result<(), RequestError>),
}

/// Answers of all callers, in order.
type Answers = Arc<Mutex<Vec<(usize, Learned)>>>;

pub struct Scene {
    scenario: Scenario,
    scheduler: Scheduler,
    pub threads: SceneThreads,
    store: Option<Arc<LateStore>>,
    answers: Answers,
    /// Number of answers that were checked.
    checked: usize,
    /// Highest fence with which the key was held, and the fence with which it is held.
    last_fence: Fence,
    held_fence: Option<Fence>,
    panicked: bool,
}

pub fn key() -> ClaimId {
    ClaimId::new("ns", "default", "key").unwrap()
}

fn name(pool: &str) -> PoolName {
    PoolName::new("ns", pool).unwrap()
}

fn request(id: ClaimId, pools: &[&str]) -> ClaimRequest {
    let pools = match pools {
        [pool] => PoolChoice::One(name(pool)),
        pools => PoolChoice::Listed(pools.iter().map(|pool| name(pool)).collect()),
    };
    // Active at once: no deadline ends it.
    ClaimRequest { reserve_ms: Some(0), ..ClaimRequest::new(id, pools) }
}

async fn play(script: Script, number: usize, held: Fence, pools: &[&str], scheduler: Scheduler, answers: Answers) {
    let learn = |learned| answers.lock().unwrap().push((number, learned));
    let release = async |fence| {
        let released = scheduler.release(&key(), fence).await;
        learn(Learned::Released(fence, released));
    };
    if matches!(script, Script::ReleaseHeld | Script::ReleaseHeldAndClaim) {
        release(held).await;
        step().await;
    }
    if script == Script::Look {
        // It has no answer while the shard is loaded.
        let _ = scheduler.get_pool(&name(pools[0])).await;
        return;
    }
    if script == Script::ReleaseHeld {
        return;
    }
    match scheduler.claim(request(key(), pools)).await {
        Err(error) => learn(Learned::Rejected(error)),
        Ok(claimed) if !claimed.created => learn(Learned::Existing(claimed.claim.fence)),
        Ok(claimed) => {
            learn(Learned::Created(claimed.claim.fence));
            if script == Script::ClaimAndRelease {
                step().await;
                release(claimed.claim.fence).await;
            }
        }
    }
}

/// Sets up the pools. A claim is held before if the scenario begins with one: under a handle that it does not get again
/// when its shard is loaded anew, because the claim before it is gone then.
async fn set_up(scenario: &Scenario, store: SharedStore) -> (Scheduler, Fence) {
    let scheduler = Scheduler::with_clock(store, SchedulerSettings::default(), Clock::manual());
    scheduler.start().await.unwrap();
    let ack = if scenario.store == StoreTiming::Memory { AckLevel::Memory } else { AckLevel::Durable };
    for pool in scenario.pools {
        scheduler.put_pool(name(pool), PoolSpec { shards: 1, ack, ..PoolSpec::default() }).await.unwrap();
    }
    let earlier = ClaimId::new("ns", "earlier", "key").unwrap();
    let register = async |pool: &str, worker: &str| {
        let spec = WorkerSpec::with_id(WorkerId::new(worker).unwrap());
        let registered = scheduler.register_batch(&name(pool), vec![spec.into()]).await.unwrap();
        assert!(registered[0].as_ref().unwrap().created);
    };
    let mut held = 0;
    if scenario.begins_held() {
        register(scenario.pools[0], "w0").await;
        let first = scheduler.claim(request(earlier.clone(), &scenario.pools[..1])).await.unwrap();
        register(scenario.pools[0], "w1").await;
        held = scheduler.claim(request(key(), &scenario.pools[..1])).await.unwrap().claim.fence;
        scheduler.release(&earlier, first.claim.fence).await.unwrap();
        scheduler.delete_worker(&name(scenario.pools[0]), &WorkerId::new("w0").unwrap()).await.unwrap();
    } else {
        register(scenario.pools[0], "w1").await;
    }
    for pool in &scenario.pools[1..] {
        register(pool, "w1").await;
    }
    (scheduler, held)
}

impl Scene {
    pub fn new(scenario: &Scenario, broken: Option<ProtocolRule>) -> Self {
        let late = (scenario.store != StoreTiming::Memory).then(|| Arc::new(LateStore::new()));
        let store: SharedStore = match &late {
            Some(store) => Arc::<LateStore>::clone(store),
            None => Arc::new(MemoryStore),
        };
        let for_setup = scenario.clone();
        let set_up = move || async move { set_up(&for_setup, store).await };
        let (mut threads, (scheduler, held)) = SceneThreads::start(set_up, scenario.points(), broken);
        if let Some(store) = &late {
            store.set_late(scenario.store == StoreTiming::Late);
        }
        let answers = Answers::default();
        for (number, script) in (0..).zip(scenario.callers) {
            let (scheduler, answers) = (scheduler.clone(), Arc::clone(&answers));
            threads.add_caller(play(*script, number, held, scenario.pools, scheduler, answers).boxed());
        }
        threads.run_out(0);
        Self {
            scenario: scenario.clone(),
            scheduler,
            store: late,
            threads,
            answers,
            checked: 0,
            last_fence: held,
            held_fence: (held != 0).then_some(held),
            panicked: false,
        }
    }

    /// Whether the caller waits for an answer and may leave.
    pub fn may_leave(&self, number: usize) -> bool {
        let Some(caller) = number.checked_sub(1) else { return false };
        self.scenario.leavers.contains(&caller)
            && self.threads.is_waiting(caller)
            && !self.answers.lock().unwrap().iter().any(|(of, _)| *of == caller)
    }

    pub fn is_answer_due(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.waiting() > 0)
    }

    pub fn answer_store(&self) {
        self.store.as_ref().expect("a store that waits").answer();
    }

    pub fn step(&mut self, number: usize, order: Order) {
        self.panicked |= order == Order::Panic;
        self.threads.step(number, order);
    }

    /// Claims of the key by shard, as the engines have them: with fence and whether it was disclosed. None for a shard
    /// that runs or is loaded.
    fn engine_claims(&self) -> Vec<Option<Vec<(Fence, bool)>>> {
        let of_pool = |pool: &&str| {
            let claims = self.scheduler.inject_look(&name(pool), 0)?;
            Some(claims.into_iter().filter(|(id, ..)| *id == key()).map(|(_, fence, told)| (fence, told)).collect())
        };
        self.scenario.pools.iter().map(of_pool).collect()
    }

    fn charged(&self) -> u64 {
        self.scheduler.keys().tenants.in_use().get(TENANT).map_or(0, |used| used.claims)
    }

    /// Checks what holds after every step.
    pub fn check_step(&mut self) -> Result<(), String> {
        self.threads.check()?;
        let holder = self.scheduler.keys().holder(&key());
        let fence = holder.map(|holder| holder.handle.fence);
        if let Some(fence) = fence
            && self.held_fence != Some(fence)
        {
            if fence <= self.last_fence {
                return Err(format!("F1: fence {fence} after {}", self.last_fence));
            }
            self.last_fence = fence;
        }
        self.held_fence = fence;
        let charged = self.charged();
        if charged > 1 || (fence.is_some() && charged != 1) {
            return Err(format!("U1: {charged} charged, held {fence:?}"));
        }
        let engines = self.engine_claims();
        for (told, _) in engines.iter().flatten().flatten().filter(|(_, is_told)| *is_told) {
            if fence != Some(*told) {
                return Err(format!("K1: a shard holds the disclosed claim {told}, the directory {fence:?}"));
            }
        }
        if let Some(holder) = holder
            && let Some(pool) = self.scenario.pools.iter().position(|pool| self.number(pool) == holder.shard.pool)
            && let Some(claims) = &engines[pool]
            && !claims.iter().any(|(held, _)| Some(*held) == fence)
        {
            return Err(format!("K1: the directory says {fence:?}, its shard has {claims:?}"));
        }
        self.check_answers(fence, &engines)
    }

    fn number(&self, pool: &str) -> u32 {
        self.scheduler.inject_pool(&name(pool)).expect("a pool of the scene").number
    }

    /// Checks what callers have learned in this step.
    fn check_answers(&mut self, held: Option<Fence>, engines: &[Option<Vec<(Fence, bool)>>]) -> Result<(), String> {
        let answers = self.answers.lock().unwrap().clone();
        for (caller, learned) in &answers[self.checked..] {
            match learned {
                Learned::Created(fence) if held != Some(*fence) => {
                    return Err(format!("K1: caller {caller} was told that it created {fence}, held is {held:?}"));
                }
                Learned::Existing(fence) if *fence > self.last_fence => {
                    return Err(format!("K1: caller {caller} was told of {fence}, which nobody has held"));
                }
                Learned::Released(fence, Ok(())) => {
                    let in_engine = engines.iter().flatten().flatten().any(|(of, _)| of == fence);
                    if held == Some(*fence) || in_engine {
                        return Err(format!("caller {caller} was told that {fence} is released, and it is held"));
                    }
                }
                Learned::Rejected(error) | Learned::Released(_, Err(error)) if !self.panicked => {
                    return Err(format!("N1: caller {caller} was rejected without a reason: {error:?}"));
                }
                _ => {}
            }
        }
        self.checked = answers.len();
        Ok(())
    }

    /// Checks what holds when nothing is left to do, releases what is held, and checks that nothing is left.
    pub fn check_end(&mut self) -> Result<(), String> {
        for (number, caller) in self.threads.callers.iter().enumerate() {
            if caller.thread.whereabouts != Whereabouts::Finished {
                return Err(format!("R1: caller {number} was never answered"));
            }
        }
        let keys = self.scheduler.keys();
        let held = keys.holder(&key()).map(|holder| holder.handle.fence);
        let engines = self.engine_claims();
        if engines.iter().any(Option::is_none) {
            return Err("a shard does not serve at the end".into());
        }
        let in_engines: Vec<Fence> = engines.into_iter().flatten().flatten().map(|(fence, _)| fence).collect();
        if in_engines != held.into_iter().collect::<Vec<_>>() {
            return Err(format!("K1: the shards hold {in_engines:?}, the directory {held:?}"));
        }
        if keys.pending_len() != 0 || self.charged() != in_engines.len() as u64 {
            return Err(format!("{} keys pending, {} charged, held {held:?}", keys.pending_len(), self.charged()));
        }
        self.check_rows(held)?;
        let mut known: BTreeSet<Fence> = BTreeSet::new();
        let (mut created, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for (_, learned) in &*self.answers.lock().unwrap() {
            match learned {
                Learned::Created(fence) => drop((known.insert(*fence), created.insert(*fence))),
                Learned::Existing(fence) => drop(known.insert(*fence)),
                // A release without an answer may have taken place.
                Learned::Released(fence, _) => drop(ended.insert(*fence)),
                Learned::Rejected(_) => {}
            }
        }
        if self.scenario.begins_held() {
            known.extend(&ended);
        }
        if let Some(fence) = held.filter(|fence| !known.contains(fence)) {
            return Err(format!("C12: {fence} is held, and nobody knows of it"));
        }
        if let Some(fence) = created.iter().find(|fence| !ended.contains(fence) && held != Some(**fence)) {
            return Err(format!("K1: {fence} was created and not released, held is {held:?}"));
        }
        self.clean_up(held)
    }

    /// Checks that the stored rows, replayed, hold what the directory says.
    fn check_rows(&self, held: Option<Fence>) -> Result<(), String> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut in_rows = Vec::new();
        for pool in self.scenario.pools {
            let pool = self.scheduler.inject_pool(&name(pool)).expect("a pool of the scene");
            let (rows, seq) = store.rows(ShardKey { pool: pool.uid, shard: 0 });
            let mut replay = ShardReplay::new(&**pool.spec.load(), "ns", 1);
            replay.rows(&rows);
            let resume =
                ResumePoint { seq, now_ms: 1, unix_ms: 1, fence_floor: 0, previous_fence_floor: 0, restarted: true };
            let shard = replay.finish(resume).map_err(|(error, _)| format!("V1: {error}"))?;
            in_rows.extend(shard.list_claims().filter(|(_, id, _)| *id == key()).map(|(.., grant)| grant.handle.fence));
        }
        if in_rows != held.into_iter().collect::<Vec<_>>() {
            return Err(format!("the rows hold {in_rows:?}, the directory {held:?}"));
        }
        Ok(())
    }

    fn clean_up(&mut self, held: Option<Fence>) -> Result<(), String> {
        if let Some(fence) = held {
            let scheduler = self.scheduler.clone();
            self.drive(async move { scheduler.release(&key(), fence).await }.boxed())?
                .map_err(|error| format!("{fence} cannot be released: {error:?}"))?;
        }
        self.drive(async {}.boxed())?;
        let keys = self.scheduler.keys();
        if !keys.is_empty() || !keys.tenants.in_use().is_empty() {
            return Err(format!("{} keys are left, in use: {:?}", keys.len(), keys.tenants.in_use()));
        }
        for pool in self.scenario.pools {
            let idle = self.scheduler.inject_pool(&name(pool)).expect("a pool of the scene").board.idle(0);
            if idle != 1 {
                return Err(format!("{idle} workers of {pool} are idle at the end"));
            }
        }
        Ok(())
    }

    /// Carries out a call without choices, and everything that it causes.
    fn drive<T>(&mut self, mut call: BoxFuture<'static, T>) -> Result<T, String> {
        let flag = Arc::new(WakeFlag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&flag));
        let mut result = None;
        loop {
            if result.is_none() && flag.0.swap(false, Ordering::SeqCst) {
                let _entered = self.threads.handle.enter();
                if let Poll::Ready(value) = call.as_mut().poll(&mut Context::from_waker(&waker)) {
                    result = Some(value);
                }
            } else if self.threads.can_go_on(0) {
                self.threads.step(0, Order::Resume);
            } else if self.is_answer_due() {
                self.answer_store();
            } else {
                return result.ok_or_else(|| "a call at the end is never answered".into());
            }
        }
    }
}
