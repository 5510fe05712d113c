//! World of a run: machines with their processes, the network between them and the callers, and what befalls them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{Either, select};
use hotpool::model::{ClaimId, PoolName, RunningClaim};
use hotpool::persist::store::StoreError;
use hotpool::scheduler::{Scheduler, SchedulerSettings};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::agents::WorkerAgents;
use crate::checker::Checker;
use crate::core::{Core, OUTSIDE, ProcessNumber, TaskGuard};
use crate::settings::{Fault, Settings};
use crate::stores::{Backend, OpenStore};

pub const NAMESPACE: &str = "ns";
/// Wall clock at the start of a run, in microseconds since 1970.
pub const START_UNIX_US: u64 = 1_767_225_600_000_000;
/// Longest way of a message through the network, in nanoseconds.
const LATENCY_NS: u64 = 1_000_000;
/// Time within which every call is answered beyond what it may wait, in milliseconds.
const PATIENCE_MS: u64 = 35_000;
/// Pause before a process that ended is started again, in milliseconds at most.
const RESTART_MS_MAX: u64 = 3_000;

/// Incident that befalls a machine, between two steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incident {
    /// The process is killed, and started again later.
    Kill(usize),
    /// Power failure of the machine.
    PowerFailure(usize),
    /// Death of the process, and damage to a record while it is down.
    Damage(usize),
    /// The process ended by itself.
    Exit(usize, String),
    Start(usize),
    /// Repair of a damaged store from a copy.
    Restore(usize),
    Pause(usize),
    Resume(usize),
    /// The wall clock of a machine is set by so many microseconds.
    SetClock(usize, i64),
}

#[derive(Default)]
struct Machine {
    process: Option<RunningProcess>,
    /// Offset of its wall clock, in microseconds.
    clock_shift_us: i64,
}

struct RunningProcess {
    number: ProcessNumber,
    scheduler: Scheduler,
    store: OpenStore,
    has_started: bool,
    _start: TaskGuard,
}

/// Outcome of a call as its caller sees it.
pub enum Outcome<T> {
    Answered(T),
    /// The connection broke, or nobody listens.
    Lost,
    /// The caller left before the answer was there.
    HungUp,
    /// The answer was there, and the caller did not read it.
    Unread,
}

/// World of one run.
pub struct World {
    pub core: Arc<Core>,
    pub settings: Settings,
    pub checker: Mutex<Checker>,
    backend: Box<dyn Backend>,
    machines: Mutex<Vec<Machine>>,
    incidents: Mutex<Vec<Incident>>,
    /// Whether faults have ended.
    calm: AtomicBool,
    /// Number of disturbances that have begun or ended: a call during which it changes may take longer.
    disturbances: AtomicU64,
    /// Whether callers begin no calls.
    quiet: AtomicBool,
    /// Callers and agents that are in a call.
    active_callers: AtomicU64,
    done: AtomicBool,
    /// Whether a record was damaged and not repaired.
    damaged: AtomicBool,
    /// Present incarnations of workers, by pool and number.
    incarnations: Mutex<BTreeMap<(&'static str, usize), u64>>,
    /// Agents' memory of their workers.
    pub workers: Mutex<BTreeMap<(&'static str, usize), WorkerState>>,
}

/// Content of a worker's reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WorkerReport {
    /// Report that says nothing about claims.
    #[default]
    Nothing,
    /// Claims that it was told to run.
    Running,
    /// Empty list, whatever it was told.
    Empty,
}

/// Memory that a worker's agent has.
#[derive(Debug, Default)]
pub struct WorkerState {
    pub seq: u64,
    pub report: WorkerReport,
    pub running: Vec<RunningClaim>,
}

pub fn pool_name(pool: &str) -> PoolName {
    PoolName::new(NAMESPACE, pool).expect("a name")
}

impl World {
    pub fn new(core: Arc<Core>, settings: Settings, backend: Box<dyn Backend>) -> Arc<Self> {
        let machines = (0..backend.machines()).map(|_| Machine::default()).collect();
        let checker = Mutex::new(Checker::new(&settings.pools));
        Arc::new(Self {
            core,
            settings,
            checker,
            backend,
            machines: Mutex::new(machines),
            incidents: Mutex::default(),
            calm: AtomicBool::new(false),
            disturbances: AtomicU64::new(0),
            quiet: AtomicBool::new(true),
            active_callers: AtomicU64::new(0),
            done: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            incarnations: Mutex::default(),
            workers: Mutex::default(),
        })
    }

    pub fn line(&self, text: impl FnOnce() -> String) {
        self.core.trace.line(self.core.now_ns(), text);
    }

    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub fn machines(&self) -> usize {
        self.machines.lock().len()
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub fn set_calm(&self, is_calm: bool) {
        self.calm.store(is_calm, Ordering::Relaxed);
        self.disturb();
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    pub fn set_quiet(&self, is_quiet: bool) {
        self.quiet.store(is_quiet, Ordering::Relaxed);
    }

    /// Whether a record was ever damaged.
    pub fn was_damaged(&self) -> bool {
        self.settings.faults.contains(&Fault::Damage)
    }

    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    pub fn set_done(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    pub fn disturb(&self) {
        self.checker.lock().disturb();
        self.disturbances.fetch_add(1, Ordering::Relaxed);
    }

    pub fn disturbances(&self) -> u64 {
        self.disturbances.load(Ordering::Relaxed)
    }

    pub fn active_callers(&self) -> u64 {
        self.active_callers.load(Ordering::Relaxed)
    }

    pub fn begin_activity(&self) {
        self.active_callers.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end_activity(&self) {
        self.active_callers.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn incarnation(&self, pool: &'static str, worker: usize) -> u64 {
        self.incarnations.lock().get(&(pool, worker)).copied().unwrap_or(0)
    }

    pub fn set_incarnation(&self, pool: &'static str, worker: usize, incarnation: u64) {
        self.incarnations.lock().insert((pool, worker), incarnation);
    }

    pub async fn sleep_ms(&self, ms: u64) {
        self.core.sleep(Duration::from_millis(ms)).await;
    }

    /// Lets something befall a machine after this step.
    pub fn cause(&self, incident: Incident) {
        self.incidents.lock().push(incident);
    }

    /// Causes a fault of this run just after a situation that it has met `times` times: what is rare meets what fails.
    pub fn strike(self: &Arc<Self>, times: u64) {
        let faults = &self.settings.faults;
        let rate = if times <= 3 { 250 } else { 2 };
        if self.is_calm() || self.is_quiet() || faults.is_empty() || !self.core.chance(rate) {
            return;
        }
        let machine = self.core.below(self.machines() as u64) as usize;
        match faults[self.core.below(faults.len() as u64) as usize] {
            Fault::Kill => self.cause(Incident::Kill(machine)),
            Fault::Power => self.cause(Incident::PowerFailure(machine)),
            Fault::Panic => self.core.panic_next(),
            Fault::Pause => {
                self.cause(Incident::Pause(machine));
                let pause = self.core.sleep(Duration::from_millis(self.core.below(8_000)));
                let world = Arc::clone(self);
                std::mem::forget(self.core.spawn(OUTSIDE, "end of a pause", async move {
                    pause.await;
                    world.cause(Incident::Resume(machine));
                }));
            }
            Fault::Store | Fault::Redis => {
                let what = self.backend.break_something(&self.core);
                self.note_loss();
                self.line(|| what);
                self.disturb();
                let pause = self.core.sleep(Duration::from_millis(self.core.below(8_000)));
                let world = Arc::clone(self);
                std::mem::forget(self.core.spawn(OUTSIDE, "end of a fault", async move {
                    pause.await;
                    world.backend.heal(&world.core);
                    world.disturb();
                    if world.backend.needs_restart() {
                        world.cause(Incident::Kill(machine));
                    }
                }));
            }
            Fault::Worker => {
                let pools = &self.settings.pools;
                let pool = pools[self.core.below(pools.len() as u64) as usize].clone();
                let agents = WorkerAgents::new(Arc::clone(self), pool);
                std::mem::forget(self.core.spawn(OUTSIDE, "restart of a worker", async move {
                    agents.restart_one().await;
                }));
            }
            Fault::Damage => self.cause(Incident::Damage(machine)),
            Fault::Stop | Fault::ClockStep | Fault::DeletePool | Fault::Operator => {}
        }
    }

    /// Causes what was decided since the last call. Called between two steps only.
    pub fn carry_out_incidents(self: &Arc<Self>) {
        let incidents = std::mem::take(&mut *self.incidents.lock());
        for incident in incidents {
            self.line(|| format!("{incident:?}"));
            self.disturb();
            match incident {
                Incident::Kill(machine) => self.end_process(machine, None),
                Incident::PowerFailure(machine) => {
                    let seed = self.core.random_u64();
                    self.end_process(machine, Some(seed));
                }
                Incident::Damage(machine) => {
                    self.end_process(machine, None);
                    if self.backend.damage(&self.core) {
                        self.damaged.store(true, Ordering::Relaxed);
                        self.checker.lock().crash(true);
                    }
                }
                Incident::Restore(machine) => {
                    self.end_process(machine, None);
                    self.backend.restore();
                    self.damaged.store(false, Ordering::Relaxed);
                    self.checker.lock().forget();
                }
                Incident::Exit(machine, _) => self.end_process(machine, None),
                Incident::Start(machine) => self.start_process(machine),
                Incident::Pause(machine) => self.set_paused(machine, true),
                Incident::Resume(machine) => self.set_paused(machine, false),
                Incident::SetClock(machine, shift_us) => {
                    let mut machines = self.machines.lock();
                    machines[machine].clock_shift_us = shift_us;
                    if let Some(process) = &machines[machine].process {
                        self.core.shift_wall_clock(process.number, shift_us);
                    }
                }
            }
        }
    }

    fn set_paused(&self, machine: usize, is_paused: bool) {
        if let Some(process) = &self.machines.lock()[machine].process {
            self.core.set_paused(process.number, is_paused);
        }
    }

    fn end_process(self: &Arc<Self>, machine: usize, power_failure: Option<u64>) {
        let ended = self.machines.lock()[machine].process.take();
        let Some(RunningProcess { number, scheduler, store, .. }) = ended else { return };
        store.cut();
        self.core.kill(number);
        drop(scheduler);
        drop(store);
        if let Some(seed) = power_failure {
            self.backend.fail_power(seed);
        }
        self.lose_knowledge();
        self.start_later(machine, 1 + self.core.below(RESTART_MS_MAX));
    }

    /// Notes a fault after which the store may have lost what it had acknowledged.
    pub fn note_loss(&self) {
        if self.backend.loses_acknowledged() {
            self.checker.lock().begin_loss();
        }
    }

    /// Forgets what is not certain any more when a process ends or begins to serve.
    fn lose_knowledge(&self) {
        let mut checker = self.checker.lock();
        checker.crash(false);
        if self.backend.loses_acknowledged() {
            checker.forget();
        }
    }

    fn start_later(self: &Arc<Self>, machine: usize, pause_ms: u64) {
        let world = Arc::clone(self);
        let pause = self.core.sleep(Duration::from_millis(pause_ms));
        // Nobody aborts it.
        std::mem::forget(self.core.spawn(OUTSIDE, "start of a machine", async move {
            pause.await;
            world.cause(Incident::Start(machine));
        }));
    }

    pub fn start_process(self: &Arc<Self>, machine: usize) {
        if self.machines.lock()[machine].process.is_some() {
            return;
        }
        let unix_us = START_UNIX_US + self.core.now_ns() / 1_000;
        let (number, environment) = self.core.add_process(unix_us, self.settings.clock_ppm);
        self.core.shift_wall_clock(number, self.machines.lock()[machine].clock_shift_us);
        let store = match self.backend.open(machine, &environment) {
            Ok(store) => store,
            Err(error) => {
                self.line(|| format!("machine {machine} cannot open the store: {error}"));
                self.note_refusal(&error);
                self.core.kill(number);
                return self.start_later(machine, 1_000);
            }
        };
        let settings = SchedulerSettings { store_wait_ms: self.settings.store_wait_ms, ..SchedulerSettings::default() };
        let scheduler = Scheduler::with_environment(store.store(self.settings.batch_bytes_max), settings, environment);
        let start = {
            let (world, scheduler) = (Arc::clone(self), scheduler.clone());
            self.core.spawn(number, "start", async move {
                match scheduler.start().await {
                    Ok(()) => world.note_start(machine),
                    Err(error) => {
                        world.note_refusal(&error);
                        world.cause(Incident::Exit(machine, error.to_string()));
                    }
                }
            })
        };
        let process = RunningProcess { number, scheduler, store, has_started: false, _start: start };
        self.machines.lock()[machine].process = Some(process);
    }

    fn note_refusal(&self, error: &StoreError) {
        if matches!(error, StoreError::Unusable(_)) && !self.backend.may_refuse() {
            self.checker.lock().fail(format!("the store is refused: {error}"));
        }
    }

    fn note_start(&self, machine: usize) {
        self.line(|| format!("machine {machine} serves"));
        self.disturb();
        // Another process may have been the owner until now.
        self.lose_knowledge();
        if let Some(process) = &mut self.machines.lock()[machine].process {
            process.has_started = true;
        }
    }

    /// Process that serves, with its machine, if there is one.
    pub fn server(&self) -> Option<(usize, ProcessNumber, Scheduler)> {
        let machines = self.machines.lock();
        let serving = machines.iter().enumerate().filter_map(|(machine, state)| {
            let process = state.process.as_ref().filter(|process| process.has_started)?;
            Some((machine, process.number, process.scheduler.clone()))
        });
        let serving: Vec<_> = serving.collect();
        match serving.len() {
            0 => None,
            len => Some(serving[self.core.below(len as u64) as usize].clone()),
        }
    }

    /// All processes that serve.
    pub fn servers(&self) -> Vec<(usize, ProcessNumber, Scheduler)> {
        let machines = self.machines.lock();
        let serving = machines.iter().enumerate().filter_map(|(machine, state)| {
            let process = state.process.as_ref().filter(|process| process.has_started)?;
            Some((machine, process.number, process.scheduler.clone()))
        });
        serving.collect()
    }

    async fn travel(&self) {
        let latency_ns = self.core.below(LATENCY_NS);
        self.core.sleep(Duration::from_nanos(latency_ns)).await;
    }

    /// Calls the process of one machine, however long it takes.
    pub async fn call_on<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        self: &Arc<Self>,
        machine: usize,
        name: &'static str,
        call: impl FnOnce(Scheduler) -> F,
    ) -> Outcome<T> {
        let Some((_, process, scheduler)) = self.servers().into_iter().find(|(other, ..)| *other == machine) else {
            return Outcome::Lost;
        };
        let (reply, answer) = oneshot::channel();
        let work = call(scheduler);
        let _handler = self.core.spawn(process, name, async move {
            let _ = reply.send(work.await);
        });
        match select(answer, self.core.sleep(Duration::from_secs(120))).await {
            Either::Left((Ok(answer), _)) => Outcome::Answered(answer),
            Either::Left((Err(_), _)) => Outcome::Lost,
            Either::Right(_) => Outcome::HungUp,
        }
    }

    /// Ends the run: drops all processes.
    pub fn end(&self) {
        for machine in &mut *self.machines.lock() {
            if let Some(RunningProcess { number, scheduler, store, .. }) = machine.process.take() {
                store.cut();
                self.core.kill(number);
                drop(scheduler);
            }
        }
    }

    /// Keys that callers claim.
    pub fn ids(&self) -> impl Iterator<Item = ClaimId> {
        let (tenants, keys) = (self.settings.tenants, self.settings.keys);
        let id = |tenant: usize, key: usize| ClaimId::new(NAMESPACE, &format!("t{tenant}"), &format!("k{key}"));
        (0..tenants).flat_map(move |tenant| (0..keys).map(move |key| id(tenant, key).expect("a name")))
    }

    /// Keys of a process that are not decided, and its shards that do not serve, for the trace.
    fn describe_pending(&self, process: ProcessNumber) -> String {
        let servers = self.servers();
        let Some((_, _, scheduler)) = servers.iter().find(|(_, number, _)| *number == process) else {
            return "its process is gone".to_owned();
        };
        let mut queued = Vec::new();
        for id in self.ids() {
            if let Some((claim, exhausted)) = scheduler.keys().queued_claim(&id) {
                queued.push(format!("{} until {} ms ({exhausted:?})", id.tenant_and_key(), claim.until_ms));
            }
        }
        let (pending, reasons) = (scheduler.keys().pending_len(), scheduler.readiness().reasons);
        format!("{pending} keys are pending, queued are {queued:?}; {reasons:?}")
    }

    /// Calls a process that serves, and waits for the answer; a caller that hangs up waits for `hang_up_ms` only. A call that
    /// may wait for `wait_ms` and is not answered for long beyond is a fault.
    pub async fn call<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        wait_ms: u64,
        hang_up_ms: Option<u64>,
        call: impl FnOnce(Scheduler) -> F,
    ) -> Outcome<T> {
        self.travel().await;
        let Some((_, process, scheduler)) = self.server() else { return Outcome::Lost };
        let mut disturbances = self.disturbances();
        let (reply, mut answer) = oneshot::channel();
        let work = call(scheduler);
        let handler = self.core.spawn(process, name, async move {
            let _ = reply.send(work.await);
        });
        let limit_ms = hang_up_ms.unwrap_or(wait_ms + PATIENCE_MS);
        loop {
            match select(answer, self.core.sleep(Duration::from_millis(limit_ms))).await {
                Either::Left((Ok(answer), _)) => {
                    self.travel().await;
                    return Outcome::Answered(answer);
                }
                Either::Left((Err(_), _)) => return Outcome::Lost,
                // What disturbed it has ended, or goes on: it has as long once more.
                Either::Right(((), waiting)) if hang_up_ms.is_none() && disturbances != self.disturbances() => {
                    disturbances = self.disturbances();
                    answer = waiting;
                }
                Either::Right(((), mut answer)) => {
                    let is_answered = answer.try_recv().is_ok();
                    if hang_up_ms.is_none() && !is_answered {
                        let pending = self.describe_pending(process);
                        let text = format!("R1: {name:?} is not answered after {limit_ms} ms; {pending}");
                        self.checker.lock().fail(text);
                    }
                    drop(handler);
                    self.line(|| format!("{name:?} is given up after {limit_ms} ms; answered: {is_answered}"));
                    return if is_answered { Outcome::Unread } else { Outcome::HungUp };
                }
            }
        }
    }
}
