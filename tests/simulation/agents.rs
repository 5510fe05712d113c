//! Workers' agents, which send heartbeats, and the operator, who causes what befalls machines, workers and pools.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hotpool::model::request_error::RequestError;
use hotpool::model::{
    ClaimId, ClearResult, HeartbeatRequest, HeartbeatResponse, PoolName, RegistrationRequest, RunningClaim,
    WorkerCapacity, WorkerCommand, WorkerId, WorkerSpec,
};
use hotpool::scheduler::{DeleteMode, Scheduler};

use crate::core::OUTSIDE;
use crate::settings::{Fault, PoolSettings};
use crate::world::{Incident, NAMESPACE, Outcome, WorkerReport, WorkerState, World, pool_name};

/// Pause before a call that failed is made again, in milliseconds.
const RETRY_MS: u64 = 100;
/// Attempts to set a pool up, or to delete it.
const ATTEMPTS_MAX: usize = 200;
/// Time after which an agent does not wait for the answer to a heartbeat any more, in milliseconds.
const HEARTBEAT_MS_MAX: u64 = 500;
/// Attempts to clear suspicion, and the pause between two, in milliseconds.
const CLEARS_MAX: usize = 60;
const CLEAR_PAUSE_MS: u64 = 1_000;

/// Number of nodes that workers are on.
pub const NODES: usize = 2;

pub fn worker_id(number: usize) -> WorkerId {
    WorkerId::new(&format!("w{number}")).expect("a name")
}

fn registration(pool: &PoolSettings, number: usize, incarnation: u64) -> RegistrationRequest {
    let capacity = WorkerCapacity { cpu_milli: pool.worker_cpu_milli, ..WorkerCapacity::default() };
    let node = Some(format!("n{}", number % NODES).into());
    WorkerSpec { capacity, incarnation, node, ..WorkerSpec::with_id(worker_id(number)) }.into()
}

/// Agents of the workers of one pool.
#[derive(Clone)]
pub struct WorkerAgents {
    world: Arc<World>,
    pool: PoolSettings,
    /// Time at which heartbeats were answered last.
    answered_ms: Arc<AtomicU64>,
}

impl WorkerAgents {
    pub fn new(world: Arc<World>, pool: PoolSettings) -> Self {
        let answered_ms = Arc::new(AtomicU64::new(world.core.now_ms()));
        Self { world, pool, answered_ms }
    }

    fn incarnation(&self, number: usize) -> u64 {
        self.world.incarnation(self.pool.name, number)
    }

    pub fn name(&self) -> PoolName {
        pool_name(self.pool.name)
    }

    /// Creates the pool and registers its workers, and sends heartbeats until the run is done.
    pub async fn run(self) {
        while !self.world.is_done() {
            let longest_ms = (self.pool.spec.heartbeat_ttl_ms / 4).min(self.pool.spec.unnamed_ms() / 5);
            let pause_ms = self.world.core.below(longest_ms) + 1;
            self.world.sleep_ms(pause_ms).await;
            let is_faulty = self.world.settings.faults.contains(&Fault::Worker) && !self.world.is_calm();
            if is_faulty && self.world.core.chance(200) {
                let agents = self.clone();
                self.begin("misbehaviour", async move { agents.misbehave().await });
            }
            self.beat().await;
        }
    }

    /// Creates the pool, if it is not there, and registers its workers. Repeats until both is done, or an operator must look
    /// after the pool first.
    pub async fn set_up(&self) {
        for _ in 0..ATTEMPTS_MAX {
            let (name, spec) = (self.name(), self.pool.spec.clone());
            let call = |scheduler: Scheduler| async move { scheduler.put_pool(name, spec).await.map(drop) };
            match self.world.call("put_pool", 0, None, call).await {
                Outcome::Answered(Ok(())) if self.register().await => return self.begin_reports(),
                Outcome::Answered(Err(RequestError::Invalid { field, message })) => {
                    return self.world.checker.lock().fail(format!("{field} of the pool: {message}"));
                }
                _ => {}
            }
            self.world.sleep_ms(RETRY_MS).await;
        }
    }

    /// Lets half of the workers report what they run.
    fn begin_reports(&self) {
        let mut workers = self.world.workers.lock();
        for number in (1..self.pool.workers).step_by(2) {
            let state = workers.entry((self.pool.name, number)).or_default();
            if state.report == WorkerReport::Nothing {
                state.report = WorkerReport::Running;
            }
        }
    }

    async fn register(&self) -> bool {
        let workers: Vec<RegistrationRequest> =
            (0..self.pool.workers).map(|number| registration(&self.pool, number, self.incarnation(number))).collect();
        let name = self.name();
        let call = |scheduler: Scheduler| async move { scheduler.register_batch(&name, workers).await };
        match self.world.call("register", 0, None, call).await {
            Outcome::Answered(Ok(registered)) => registered.iter().all(Result::is_ok),
            _ => false,
        }
    }

    fn begin(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        std::mem::forget(self.world.core.spawn(OUTSIDE, name, task));
    }

    async fn beat(&self) {
        let heartbeat = |number: usize| {
            let incarnation = self.incarnation(number);
            let mut workers = self.world.workers.lock();
            let state = workers.entry((self.pool.name, number)).or_default();
            state.seq += 1;
            let claims = match state.report {
                WorkerReport::Nothing => None,
                WorkerReport::Running => Some(state.running.clone()),
                WorkerReport::Empty => Some(Vec::new()),
            };
            (worker_id(number), HeartbeatRequest { incarnation, seq: Some(state.seq), claims })
        };
        let heartbeats = (0..self.pool.workers).map(heartbeat).collect();
        let name = self.name();
        let call = |scheduler: Scheduler| async move { scheduler.heartbeat_batch(&name, heartbeats).await };
        let answered = self.world.call("heartbeat", 0, Some(HEARTBEAT_MS_MAX), call).await;
        let now_ms = self.world.core.now_ms();
        let Outcome::Answered(Ok(answers)) = answered else {
            // Long before the workers count as lost: the next heartbeats may be late, and clocks fast.
            if now_ms - self.answered_ms.load(Ordering::Relaxed) > self.pool.spec.heartbeat_ttl_ms / 2 {
                self.world.checker.lock().begin_silence(self.pool.name);
            }
            return;
        };
        self.answered_ms.store(now_ms, Ordering::Relaxed);
        self.world.checker.lock().end_silence(self.pool.name);
        if answers.iter().any(Result::is_err) {
            // Deleted meanwhile, with their pool or by an operator. Heartbeats do not wait for it.
            let agents = self.clone();
            self.begin("registration", async move {
                agents.register().await;
            });
        }
        for (number, answer) in answers.into_iter().enumerate() {
            if let Ok(answer) = answer {
                self.follow(number, &answer);
            }
        }
    }

    /// Learns what a worker is to run.
    fn follow(&self, number: usize, answer: &HeartbeatResponse) {
        let mut workers = self.world.workers.lock();
        let state = workers.entry((self.pool.name, number)).or_default();
        if let Some(seq) = answer.superseded_by {
            // Half of the agents do not know of it.
            if number.is_multiple_of(2) {
                state.seq = state.seq.max(seq);
            }
            return;
        }
        state.running.retain(|running| !answer.stop.iter().any(|stop| stop.fence == running.fence));
        for view in &answer.claims {
            if !state.running.iter().any(|running| running.fence == view.fence) {
                state.running.push(RunningClaim { id: view.id.clone(), fence: view.fence });
            }
        }
    }

    /// Lets a worker restart, report falsely, or fall silent.
    async fn misbehave(&self) {
        let number = self.world.core.below(self.pool.workers as u64) as usize;
        let kind = self.world.core.below(8);
        if kind >= 6 {
            return self.change_report(number, kind).await;
        }
        self.world.checker.lock().doubt_worker(self.pool.name, worker_id(number).as_str());
        self.world.line(|| format!("{} of {} misbehaves ({kind})", worker_id(number), self.pool.name));
        let incarnation = self.incarnation(number);
        let name = pool_name(self.pool.name);
        let other = RunningClaim {
            id: ClaimId::new(NAMESPACE, "t0", &format!("k{}", self.world.core.below(self.world.settings.keys as u64)))
                .expect("a name"),
            fence: self.world.core.below(1 << 50),
        };
        let request = match kind {
            // A restart: what ran there is gone.
            0 => return self.restart(number).await,
            // It runs nothing, or something that is not its own.
            1 => HeartbeatRequest { incarnation, seq: None, claims: Some(Vec::new()) },
            2 => HeartbeatRequest { incarnation, seq: None, claims: Some(vec![other]) },
            // It forgets for good what it runs.
            4 => {
                let mut workers = self.world.workers.lock();
                workers.entry((self.pool.name, number)).or_default().report = WorkerReport::Empty;
                return;
            }
            // Its sequence begins anew without a registration, or another incarnation speaks.
            3 => HeartbeatRequest { incarnation, seq: Some(1), claims: None },
            _ => HeartbeatRequest { incarnation: incarnation + 1, seq: None, claims: None },
        };
        let call = |scheduler: Scheduler| async move {
            scheduler.heartbeat(&name, &worker_id(number), request).await.map(drop)
        };
        drop(self.world.call("heartbeat", 0, None, call).await);
    }

    /// Lets one worker restart.
    pub async fn restart_one(&self) {
        let number = self.world.core.below(self.pool.workers as u64) as usize;
        self.world.checker.lock().doubt_worker(self.pool.name, worker_id(number).as_str());
        self.restart(number).await;
    }

    async fn restart(&self, number: usize) {
        let incarnation = self.incarnation(number) + 1;
        self.world.set_incarnation(self.pool.name, number, incarnation);
        self.world.workers.lock().entry((self.pool.name, number)).or_default().running.clear();
        let (name, worker) = (self.name(), registration(&self.pool, number, incarnation));
        let call = |scheduler: Scheduler| async move { scheduler.register(&name, worker).await.map(drop) };
        drop(self.world.call("register", 0, None, call).await);
    }

    /// Lets a worker do what is allowed: report what it runs, or register again and begin its sequence anew.
    async fn change_report(&self, number: usize, kind: u64) {
        {
            let mut workers = self.world.workers.lock();
            let state = workers.entry((self.pool.name, number)).or_default();
            if state.report == WorkerReport::Nothing {
                state.report = WorkerReport::Running;
                // It was not told what runs there already.
                self.world.checker.lock().doubt_present_claims(self.pool.name, worker_id(number).as_str());
            }
        }
        if kind == 7 {
            let (name, worker) = (self.name(), registration(&self.pool, number, self.incarnation(number)));
            let call = |scheduler: Scheduler| async move { scheduler.register(&name, worker).await.map(drop) };
            if let Outcome::Answered(Ok(())) = self.world.call("register", 0, None, call).await {
                self.world.line(|| format!("{} of {} registered again", worker_id(number), self.pool.name));
                self.world.workers.lock().entry((self.pool.name, number)).or_default().seq = 0;
            }
        }
    }

    /// Registers all workers anew, uncordons and clears them, so that each may be claimed again.
    pub async fn restore(&self) {
        for number in 0..self.pool.workers {
            self.world.set_incarnation(self.pool.name, number, self.incarnation(number) + 10);
            self.world.checker.lock().restart_worker(self.pool.name, worker_id(number).as_str());
            self.world.workers.lock().insert((self.pool.name, number), WorkerState::default());
        }
        self.set_up().await;
        self.uncordon().await;
        self.clear().await;
    }

    /// Uncordons all workers of the pool.
    pub async fn uncordon(&self) {
        let name = self.name();
        for number in 0..self.pool.workers {
            let name = name.clone();
            let call = |scheduler: Scheduler| async move {
                scheduler.command_worker(&name, &worker_id(number), WorkerCommand::Uncordon).await.map(drop)
            };
            drop(self.world.call("uncordon", 0, None, call).await);
        }
    }

    /// Deletes the pool, which has a damaged shard, and creates it again.
    pub async fn make_anew(&self) {
        self.world.checker.lock().begin_deletion(self.pool.name);
        for _ in 0..ATTEMPTS_MAX {
            let name = self.name();
            let call = |scheduler: Scheduler| async move { scheduler.delete_pool(&name, DeleteMode::Force).await };
            let deleted = self.world.call("delete_pool", 60_000, None, call).await;
            if matches!(deleted, Outcome::Answered(Ok(()) | Err(RequestError::NotFound(_)))) {
                break;
            }
            self.world.sleep_ms(RETRY_MS).await;
        }
        self.set_up().await;
        let now_ns = self.world.core.now_ns();
        self.world.checker.lock().end_deletion(self.pool.name, now_ns);
    }

    /// Clears suspicion from all workers: whoever ran there is gone.
    ///
    /// Whoever may have lost claims in a crash cannot be cleared before those would have ended: then it is done again.
    pub async fn clear(&self) {
        for _ in 0..CLEARS_MAX {
            let name = self.name();
            let call = |scheduler: Scheduler| async move { scheduler.clear_pool(&name).await };
            if let Outcome::Answered(Ok(ClearResult { suspect: 0, .. })) = self.world.call("clear", 0, None, call).await
            {
                return;
            }
            self.world.sleep_ms(CLEAR_PAUSE_MS).await;
        }
    }
}

/// Causes faults until the run is calm.
pub struct Operator {
    world: Arc<World>,
}

impl Operator {
    pub const fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    pub async fn run(self) {
        let interval_ms = self.world.settings.fault_interval_ms;
        let faults = self.world.settings.faults.clone();
        while !self.world.is_done() {
            let pause_ms = 1 + self.world.core.below(2 * interval_ms);
            self.world.sleep_ms(pause_ms).await;
            if self.world.is_calm() || faults.is_empty() {
                continue;
            }
            let fault = faults[self.world.core.below(faults.len() as u64) as usize];
            self.cause(fault).await;
        }
    }

    async fn cause(&self, fault: Fault) {
        let world = &self.world;
        let machine = world.core.below(world.machines() as u64) as usize;
        match fault {
            Fault::Kill => world.cause(Incident::Kill(machine)),
            Fault::Power => world.cause(Incident::PowerFailure(machine)),
            Fault::Stop => self.stop(machine).await,
            // Drawn at the points of the runs.
            Fault::Panic | Fault::Worker => {}
            Fault::Pause => {
                world.cause(Incident::Pause(machine));
                let pause_ms = world.core.below(20_000);
                world.sleep_ms(pause_ms).await;
                world.cause(Incident::Resume(machine));
            }
            Fault::ClockStep => {
                let span_us = 3_600_000_000;
                let shift_us = world.core.below(2 * span_us).cast_signed() - span_us.cast_signed();
                world.cause(Incident::SetClock(machine, shift_us));
            }
            Fault::Store | Fault::Redis => {
                let what = world.backend().break_something(&world.core);
                world.note_loss();
                world.line(|| what);
                world.disturb();
                let pause_ms = world.core.below(12_000);
                if world.core.chance(250) {
                    // What one server has of the last seconds another may lack.
                    world.sleep_ms(world.core.below(3_000)).await;
                    if !world.is_calm() {
                        world.cause(Incident::Kill(machine));
                    }
                }
                world.sleep_ms(pause_ms).await;
                world.backend().heal(&world.core);
                world.disturb();
                if world.backend().needs_restart() {
                    world.cause(Incident::Kill(machine));
                }
            }
            Fault::Damage => world.cause(Incident::Damage(machine)),
            Fault::DeletePool => self.delete_pool().await,
            Fault::Operator => self.operate().await,
        }
    }

    async fn stop(&self, machine: usize) {
        let Some((_, _, scheduler)) = self.world.servers().into_iter().find(|(other, ..)| *other == machine) else {
            return;
        };
        self.world.line(|| format!("machine {machine} is stopped"));
        let call = |_| async move { scheduler.stop().await };
        self.world.call_on(machine, "stop", call).await;
        self.world.cause(Incident::Exit(machine, "stopped".to_owned()));
    }

    fn draw_pool(&self) -> PoolSettings {
        let pools = &self.world.settings.pools;
        pools[self.world.core.below(pools.len() as u64) as usize].clone()
    }

    async fn delete_pool(&self) {
        let pool = self.draw_pool();
        self.world.checker.lock().begin_deletion(pool.name);
        self.world.line(|| format!("pool {} is deleted", pool.name));
        let name = pool_name(pool.name);
        let call = |scheduler: Scheduler| async move { scheduler.delete_pool(&name, DeleteMode::Force).await };
        drop(self.world.call("delete_pool", 60_000, None, call).await);
        let pause_ms = self.world.core.below(1_000);
        self.world.sleep_ms(pause_ms).await;
        let name = pool.name;
        WorkerAgents::new(Arc::clone(&self.world), pool).set_up().await;
        let now_ns = self.world.core.now_ns();
        self.world.checker.lock().end_deletion(name, now_ns);
    }

    async fn operate(&self) {
        let pool = self.draw_pool();
        let number = self.world.core.below(pool.workers as u64) as usize;
        let (name, id) = (pool_name(pool.name), worker_id(number));
        let command = match self.world.core.below(6) {
            0 => Some(WorkerCommand::Cordon),
            1 | 2 => Some(WorkerCommand::Uncordon),
            3 => Some(WorkerCommand::Clear),
            4 => Some(WorkerCommand::Drain),
            _ => None,
        };
        self.world.line(|| format!("operator: {command:?} {id} of {name}"));
        if command.is_none() {
            self.world.checker.lock().doubt_worker(pool.name, id.as_str());
        }
        let call = |scheduler: Scheduler| async move {
            match command {
                Some(command) => scheduler.command_worker(&name, &id, command).await.map(drop),
                None => scheduler.delete_worker(&name, &id).await,
            }
        };
        drop(self.world.call("operate", 0, None, call).await);
    }
}
