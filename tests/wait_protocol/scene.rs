//! Scheduler with workers that are held, claims that wait for them, and what must hold when nothing is left to do.

use std::sync::{Arc, Mutex};

use futures::future::FutureExt as _;
use hotpool::environment::Clock;
use hotpool::model::claim_request::{ClaimConstraints, PoolChoice};
use hotpool::model::request_error::{ExhaustionReason, RequestError};
use hotpool::model::{AckLevel, ClaimId, ClaimRequest, Fence, PoolName, PoolSpec, WorkerId, WorkerSpec};
use hotpool::persist::store::memory::MemoryStore;
use hotpool::scheduler::{Scheduler, SchedulerSettings};
use hotpool::shard::{ProtocolPoint, ProtocolRule};

use crate::caller::step;
use crate::scene_threads::SceneThreads;
use crate::stepped_thread::{Order, Whereabouts};

/// Request of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Claims with this priority, and waits.
    Wait(u16),
    /// Claims with this priority, waits, and releases what it gets.
    WaitAndRelease(u16),
    /// Claims the worker of the first pool without waiting.
    Claim,
    /// Releases the claim that was held in the pool with this index.
    Release(usize),
    /// Reads the status of the first pool: while its run is paused, requests of others stay in the mailbox.
    Look,
}

/// Situation that is explored.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub callers: &'static [Script],
    /// Number of the first callers that stand still when the schedule begins.
    pub stand_still: usize,
    /// Callers that may leave before they have their answer.
    pub leavers: &'static [usize],
    /// Pools of one shard with one worker each that fits, which is held at first.
    pub pools: &'static [&'static str],
    /// Pools that have an idle worker as well, which does not fit.
    pub odd_pools: &'static [&'static str],
    /// Shards that panic in one schedule.
    pub panics: usize,
    /// Switches away from a thread that could go on.
    pub preemptions: usize,
}

type Granted = Result<Fence, RequestError>;

/// Answers of all callers, in order.
type Answers = Arc<Mutex<Vec<(usize, Granted)>>>;

pub struct Scene {
    scenario: Scenario,
    scheduler: Scheduler,
    pub threads: SceneThreads,
    answers: Answers,
}

fn name(pool: &str) -> PoolName {
    PoolName::new("ns", pool).unwrap()
}

fn key(key: &str) -> ClaimId {
    ClaimId::new("ns", "default", key).unwrap()
}

/// Request for any worker of these pools that fits.
fn request(id: ClaimId, pools: &[&str], priority: u16, wait_ms: u64) -> ClaimRequest {
    let mut constraints = ClaimConstraints { selector: Some("kind=fit".into()), ..ClaimConstraints::default() };
    constraints.spec.priority = priority;
    let pools = match pools {
        [pool] => PoolChoice::One(name(pool)),
        pools => PoolChoice::Listed(pools.iter().map(|pool| name(pool)).collect()),
    };
    // Active at once: no deadline ends it.
    let constraints = Some(Box::new(constraints));
    ClaimRequest { reserve_ms: Some(0), wait_ms, constraints, ..ClaimRequest::new(id, pools) }
}

async fn play(script: Script, number: usize, held: Vec<Fence>, pools: &[&str], scheduler: Scheduler, answers: Answers) {
    let learn = |granted| answers.lock().unwrap().push((number, granted));
    let id = key(&format!("caller{number}"));
    let granted =
        |claimed: Result<hotpool::model::ClaimResult, RequestError>| claimed.map(|claimed| claimed.claim.fence);
    match script {
        Script::Wait(priority) => learn(granted(scheduler.claim(request(id, pools, priority, 60_000)).await)),
        Script::WaitAndRelease(priority) => {
            let claimed = granted(scheduler.claim(request(id.clone(), pools, priority, 60_000)).await);
            learn(claimed.clone());
            step().await;
            if let Ok(fence) = claimed {
                scheduler.release(&id, fence).await.expect("it holds the claim");
            }
        }
        Script::Claim => {
            // It goes to that worker's shard, whatever that publishes.
            let mut newcomer = request(id, &pools[..1], 0, 0);
            newcomer.constraints.as_mut().unwrap().worker = Some(WorkerId::new("fit").unwrap());
            learn(granted(scheduler.claim(newcomer).await));
        }
        Script::Release(pool) => {
            let id = key(&format!("held-{}", pools[pool]));
            scheduler.release(&id, held[pool]).await.expect("it holds the claim");
        }
        Script::Look => drop(scheduler.get_pool(&name(pools[0])).await),
    }
}

/// Sets up the pools, each with a worker that fits and is held. Returns the fences of the holders.
async fn set_up(scenario: &Scenario) -> (Scheduler, Vec<Fence>) {
    let store = Arc::new(MemoryStore);
    let scheduler = Scheduler::with_clock(store, SchedulerSettings::default(), Clock::manual());
    scheduler.start().await.unwrap();
    let mut held = Vec::new();
    for pool in scenario.pools {
        let spec = PoolSpec { shards: 1, ack: AckLevel::Memory, ..PoolSpec::default() };
        scheduler.put_pool(name(pool), spec).await.unwrap();
        let worker = |kind: &str| WorkerSpec {
            labels: [("kind".to_owned(), kind.to_owned())].into(),
            ..WorkerSpec::with_id(WorkerId::new(kind).unwrap())
        };
        scheduler.register(&name(pool), worker("fit")).await.unwrap();
        let claimed = scheduler.claim(request(key(&format!("held-{pool}")), &[pool], 0, 0)).await.unwrap();
        held.push(claimed.claim.fence);
        if scenario.odd_pools.contains(pool) {
            scheduler.register(&name(pool), worker("odd")).await.unwrap();
        }
    }
    (scheduler, held)
}

fn points(point: ProtocolPoint) -> bool {
    !matches!(point, ProtocolPoint::KeyStep | ProtocolPoint::MailboxDrained | ProtocolPoint::Matched)
}

impl Scene {
    pub fn new(scenario: &Scenario, broken: Option<ProtocolRule>) -> Self {
        let for_setup = scenario.clone();
        let set_up = move || async move { set_up(&for_setup).await };
        let (mut threads, (scheduler, held)) = SceneThreads::start(set_up, points, broken);
        let answers = Answers::default();
        for (number, script) in (0..).zip(scenario.callers) {
            let (scheduler, answers) = (scheduler.clone(), Arc::clone(&answers));
            threads.add_caller(play(*script, number, held.clone(), scenario.pools, scheduler, answers).boxed());
        }
        (0..=scenario.stand_still).for_each(|number| {
            threads.run_out(number);
            threads.run_out(0);
        });
        Self { scenario: scenario.clone(), scheduler, threads, answers }
    }

    /// Whether the caller waits for an answer and may leave.
    pub fn may_leave(&self, number: usize) -> bool {
        let Some(caller) = number.checked_sub(1) else { return false };
        self.scenario.leavers.contains(&caller)
            && self.threads.is_waiting(caller)
            && !self.answers.lock().unwrap().iter().any(|(of, _)| *of == caller)
    }

    pub fn is_answer_due(&self) -> bool {
        false
    }

    pub fn answer_store(&self) {
        unreachable!("nothing is stored")
    }

    pub fn step(&mut self, number: usize, order: Order) {
        self.threads.step(number, order);
    }

    /// Checks what holds after every step.
    pub fn check_step(&mut self) -> Result<(), String> {
        self.threads.check()?;
        let full = RequestError::Exhausted(ExhaustionReason::Pool);
        for (caller, granted) in &*self.answers.lock().unwrap() {
            let may_wait = !matches!(self.scenario.callers[*caller], Script::Claim);
            match granted {
                Err(error) if may_wait || *error != full => return Err(format!("caller {caller} got {error:?}")),
                // As many stand still from the beginning as there are workers.
                Ok(_) if !may_wait && self.scenario.stand_still >= self.scenario.pools.len() => {
                    return Err(format!("QW5: caller {caller} passed one who stood still"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks what holds when nothing is left to do.
    pub fn check_end(&mut self) -> Result<(), String> {
        let held = |pool: &&str| self.scheduler.inject_look(&name(pool), 0).map(|claims| claims.len());
        let held: Vec<Option<usize>> = self.scenario.pools.iter().map(held).collect();
        let is_free = held.contains(&Some(0));
        for (number, caller) in self.threads.callers.iter().enumerate() {
            let may_wait = matches!(self.scenario.callers[number], Script::Wait(_) | Script::WaitAndRelease(_));
            match caller.thread.whereabouts {
                Whereabouts::Finished => {}
                _ if !may_wait => return Err(format!("R1: caller {number} was never answered")),
                _ if is_free => return Err(format!("QW1: caller {number} waits, the pools hold {held:?}")),
                _ => {}
            }
        }
        let waiting =
            self.threads.callers.iter().filter(|caller| caller.thread.whereabouts != Whereabouts::Finished).count();
        let (pending, claims) = (self.scheduler.keys().pending_len(), held.into_iter().flatten().sum::<usize>());
        if pending != waiting {
            return Err(format!("{pending} keys are pending, and {waiting} callers wait"));
        }
        let charged = self.scheduler.keys().tenants.in_use().get("ns/default").map_or(0, |used| used.claims);
        if charged != claims as u64 {
            return Err(format!("U1: {charged} charged, {claims} held"));
        }
        Ok(())
    }
}
