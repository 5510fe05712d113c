//! Script of a run: callers and faults for a while, then calm, rest, and comparison; much idle time; the same again; and at the
//! end everything is released and nothing may be left.

use std::sync::Arc;

use hotpool::admission::key::KeyLookup;
use hotpool::model::claim_request::ClaimConstraints;
use hotpool::model::request_error::{ExhaustionReason, RequestError};
use hotpool::model::{ClaimFilter, ClaimId, ClaimRequest, ClaimSpec, ClaimState, ClaimView};
use hotpool::persist::store::StoreError;
use hotpool::scheduler::Scheduler;

use crate::agents::{Operator, WorkerAgents};
use crate::callers::{Caller, cpu};
use crate::checker::{Doubt, key_of};
use crate::core::{CoreRates, OUTSIDE, ProcessNumber};
use crate::world::{Incident, NAMESPACE, Outcome, WorkerReport, World, pool_name};

/// Time within which the system comes to rest once faults have ended, in milliseconds.
const REST_MS_MAX: u64 = 180_000;
/// Attempts to claim all workers of a pool at the end.
const PROBES_MAX: usize = 12;
/// Pause between two looks whether it has.
const LOOK_MS: u64 = 100;
/// Time beyond its limit by which something has certainly ended, in milliseconds.
const GRACE_MS: u64 = 20_000;
/// Lateness of timers while nothing happens, in nanoseconds: no longer than the clock takes for a pause.
const IDLE_LATENESS_NS: u64 = 200_000_000;

/// Script of one run.
pub struct Script {
    world: Arc<World>,
    agents: Vec<WorkerAgents>,
}

impl Script {
    pub fn new(world: Arc<World>) -> Self {
        let agents =
            world.settings.pools.iter().map(|pool| WorkerAgents::new(Arc::clone(&world), pool.clone())).collect();
        Self { world, agents }
    }

    pub async fn run(mut self) {
        if let Err(problem) = self.try_run().await {
            self.world.checker.lock().fail(problem);
        }
        self.world.set_done();
    }

    async fn try_run(&mut self) -> Result<(), String> {
        for pool in &self.world.settings.pools {
            let (spec, workers) = (&pool.spec, pool.workers);
            self.world.line(|| {
                format!(
                    "pool {}: {:?}, {:?}, {} shards, {workers} workers, reserve_ms {}, releasing_ms {}",
                    pool.name, spec.mode, spec.ack, spec.shards, spec.reserve_ms, spec.releasing_ms
                )
            });
        }
        for machine in 0..self.world.machines() {
            self.world.cause(Incident::Start(machine));
        }
        self.world.set_calm(true);
        for agents in &self.agents {
            agents.set_up().await;
        }
        self.begin_tasks();
        for phase in 0..2 {
            self.be_active().await;
            self.come_to_rest().await?;
            self.world.line(|| format!("phase {phase}: at rest"));
            if self.world.core.chance(500) {
                self.crash_at_rest().await?;
            }
            if phase == 0 {
                self.let_time_pass().await;
                self.check_deadlines().await?;
            }
        }
        self.end().await
    }

    fn begin_tasks(&self) {
        let world = &self.world;
        for number in 0..world.settings.callers {
            let caller = Caller::new(Arc::clone(world), number);
            std::mem::forget(world.core.spawn(OUTSIDE, "caller", caller.run()));
        }
        for pool in &world.settings.pools {
            let agents = WorkerAgents::new(Arc::clone(world), pool.clone());
            std::mem::forget(world.core.spawn(OUTSIDE, "workers", agents.run()));
        }
        let operator = Operator::new(Arc::clone(world));
        std::mem::forget(world.core.spawn(OUTSIDE, "operator", operator.run()));
        let watched = Arc::clone(world);
        std::mem::forget(world.core.spawn(OUTSIDE, "watchdog", watch_processes(watched)));
    }

    async fn be_active(&self) {
        self.world.core.set_rates(self.world.settings.rates);
        self.world.core.allow_panics(self.world.settings.panics_max);
        self.world.set_quiet(false);
        self.world.set_calm(false);
        self.world.sleep_ms(self.world.settings.active_ms).await;
        self.world.set_quiet(true);
    }

    /// Time in which nothing happens but ticks and heartbeats. Timers may be late, so it takes few steps.
    async fn let_time_pass(&self) {
        let rates = self.world.settings.rates;
        let core = &self.world.core;
        let rates = CoreRates { full_mailbox: 0, panic_millionths: 0, ..rates };
        core.set_rates(CoreRates { lateness_ns: IDLE_LATENESS_NS, ..rates });
        self.world.sleep_ms(self.world.settings.idle_ms).await;
        core.set_rates(rates);
    }

    /// Ends all processes, and waits until others have taken over: what was held at rest still is.
    async fn crash_at_rest(&mut self) -> Result<(), String> {
        for machine in 0..self.world.machines() {
            self.world.cause(Incident::Kill(machine));
        }
        self.world.sleep_ms(LOOK_MS).await;
        self.come_to_rest().await?;
        self.world.line(|| "at rest after a crash".to_owned());
        Ok(())
    }

    /// Ends all faults, and waits until everything under way has ended and what is held agrees with what callers know.
    async fn come_to_rest(&mut self) -> Result<(), String> {
        let world = Arc::clone(&self.world);
        world.set_calm(true);
        world.core.allow_panics(0);
        world.core.set_rates(CoreRates { full_mailbox: 0, ..world.settings.rates });
        world.backend().heal(&world.core);
        for machine in 0..world.machines() {
            world.cause(Incident::Resume(machine));
            if world.backend().needs_restart() {
                world.cause(Incident::Kill(machine));
            }
        }
        let end_ms = world.core.now_ms() + REST_MS_MAX;
        let mut problem = "no machine serves".to_owned();
        while world.core.now_ms() < end_ms {
            world.sleep_ms(LOOK_MS).await;
            if world.active_callers() > 0 {
                problem = format!("{} callers are in a call", world.active_callers());
                continue;
            }
            let Some((process, scheduler)) = self.ready_server() else {
                problem = self.describe_servers();
                self.repair().await;
                continue;
            };
            match self.look(process, &scheduler).await {
                Ok(()) => return Ok(()),
                Err(found) => problem = found,
            }
        }
        if let Ok(scheduler) = scheduler_of(&world) {
            for pool in &world.settings.pools {
                let workers = self.describe_workers(scheduler.clone(), pool.name).await;
                world.line(|| format!("workers of {}: {workers}", pool.name));
            }
        }
        Err(format!("no rest after {REST_MS_MAX} ms: {problem}"))
    }

    /// Checks that what time ends has ended: nobody was active while time passed.
    async fn check_deadlines(&self) -> Result<(), String> {
        let Some((_, scheduler)) = self.ready_server() else { return Ok(()) };
        let views = self.views(&scheduler).await?;
        for view in &views {
            let Some(pool) = self.world.settings.pools.iter().find(|pool| pool.name == view.pool.pool()) else {
                continue;
            };
            let worker = view.worker.spec.id.as_str();
            let number: usize = worker[1..].parse().expect("a number");
            let report = self.world.workers.lock().get(&(pool.name, number)).map(|state| state.report);
            let limit_ms = match view.state {
                ClaimState::Reserved => pool.spec.reserve_ms,
                ClaimState::Releasing => pool.spec.releasing_ms,
                ClaimState::Active | ClaimState::Lost if report == Some(WorkerReport::Empty) => {
                    pool.spec.unnamed_ms() + 2 * pool.spec.heartbeat_ttl_ms
                }
                ClaimState::Active | ClaimState::Lost => continue,
            };
            if self.world.settings.idle_ms > 2 * limit_ms + GRACE_MS {
                return Err(format!(
                    "{} of {} on {worker}, which reports {report:?}, is still {:?}",
                    view.fence,
                    key_of(view),
                    view.state
                ));
            }
        }
        Ok(())
    }

    fn ready_server(&self) -> Option<(ProcessNumber, Scheduler)> {
        let servers = self.world.servers();
        servers
            .into_iter()
            .find(|(.., scheduler)| scheduler.readiness().ready)
            .map(|(_, number, scheduler)| (number, scheduler))
    }

    /// Does what an operator does about processes that are not ready: starts those anew of which a shard has panicked too
    /// often, deletes pools with a damaged shard, and repairs a store that is refused as a whole.
    async fn repair(&self) {
        let servers = self.world.servers();
        if servers.is_empty() && self.world.is_damaged() && self.world.core.chance(50) {
            self.world.cause(Incident::Restore(0));
            self.world.sleep_ms(5_000).await;
        }
        for (machine, _, scheduler) in servers {
            let reasons = scheduler.readiness().reasons;
            let is_lost = |reason: &String| reason.contains("given up") || reason.contains("only it had rows");
            if reasons.iter().any(is_lost) {
                self.world.cause(Incident::Kill(machine));
                self.world.sleep_ms(5_000).await;
            } else if self.world.is_damaged() {
                for agents in &self.agents {
                    if reasons.iter().any(|reason| reason.contains(&format!("of {} does not serve", agents.name()))) {
                        agents.make_anew().await;
                    }
                }
            }
        }
    }

    /// Waits for a process that is ready.
    async fn await_ready(&self) -> Result<Scheduler, String> {
        let end_ms = self.world.core.now_ms() + REST_MS_MAX;
        loop {
            match self.ready_server() {
                Some((_, scheduler)) => return Ok(scheduler),
                None if self.world.core.now_ms() > end_ms => return Err(self.describe_servers()),
                None => self.world.sleep_ms(LOOK_MS).await,
            }
        }
    }

    fn describe_servers(&self) -> String {
        let servers = self.world.servers();
        let states: Vec<_> = servers
            .iter()
            .map(|(machine, _, scheduler)| format!("machine {machine}: {:?}", scheduler.readiness()))
            .collect();
        format!("no machine is ready: {states:?}")
    }

    async fn views(&self, scheduler: &Scheduler) -> Result<Vec<ClaimView>, String> {
        let scheduler = scheduler.clone();
        let call = |_| async move { scheduler.list_claims(&ClaimFilter::default(), None, 1_000).await };
        match self.world.call("list_claims", 0, None, call).await {
            Outcome::Answered(Ok(page)) => Ok(page.items),
            Outcome::Answered(Err(error)) => Err(format!("claims cannot be listed: {error}")),
            _ => Err("claims cannot be listed: no answer".to_owned()),
        }
    }

    /// Checks that nothing is under way, and compares what is held with what callers, directory and accounts know.
    async fn look(&self, _process: ProcessNumber, scheduler: &Scheduler) -> Result<(), String> {
        let keys = scheduler.keys();
        if keys.pending_len() > 0 {
            return Err(format!("{} of {} keys are pending", keys.pending_len(), keys.len()));
        }
        self.check_leftovers(scheduler)?;
        let views = self.views(scheduler).await?;
        if keys.len() != views.len() {
            return Err(format!("{} keys, {} claims are held", keys.len(), views.len()));
        }
        for view in &views {
            let holder = keys.holder(&view.id).map(|holder| holder.handle.fence);
            if holder != Some(view.fence) {
                return Err(format!("K1: {} is held with {}, the directory has {holder:?}", key_of(view), view.fence));
            }
        }
        check_usage(scheduler, &views)?;
        let now_ns = self.world.core.now_ns();
        let workers = self.world.workers.lock();
        let run_by_workers = workers.values().flat_map(|state| state.running.iter().map(|claim| claim.fence)).collect();
        drop(workers);
        let mut checker = self.world.checker.lock();
        checker.end_loss();
        checker.compare(&views, &run_by_workers)?;
        checker.adopt(&views, self.world.is_durable(), now_ns);
        self.world.backend().rest();
        Ok(())
    }

    /// Checks that no request, gang or reservation is left behind.
    fn check_leftovers(&self, scheduler: &Scheduler) -> Result<(), String> {
        for pool in &self.world.settings.pools {
            let name = pool_name(pool.name);
            let Some(present) = scheduler.inject_pool(&name) else { continue };
            for shard in 0..pool.spec.shards {
                let requests = present.shards[shard as usize].queue_depth();
                if requests > 0 {
                    return Err(format!("{requests} requests are in the mailbox of shard {shard} of {name}"));
                }
                match scheduler.inject_count_gangs(&name, shard) {
                    Some(0) => {}
                    // Rows of gangs are kept until every shard was read at a start.
                    Some(_) if self.world.was_damaged() => {}
                    gangs => return Err(format!("shard {shard} of {name} has {gangs:?} gangs under way")),
                }
            }
            if present.wait_queue.lock().queue.reservations.lowest_priority().is_some() {
                return Err(format!("workers of {name} are reserved, and nobody waits"));
            }
        }
        Ok(())
    }

    /// Releases everything, and checks that nothing is left and that all capacity has returned.
    async fn end(&mut self) -> Result<(), String> {
        for agents in &self.agents {
            agents.restore().await;
        }
        let scheduler = self.await_ready().await?;
        for (tenant, _) in (0..self.world.settings.tenants).map(|number| (format!("t{number}"), ())) {
            let scheduler = scheduler.clone();
            let call = |_| async move { scheduler.delete_quota(NAMESPACE, Some(&tenant)).await };
            drop(self.world.call("delete_quota", 0, None, call).await);
        }
        for view in self.views(&scheduler).await? {
            self.release(&scheduler, &view).await?;
        }
        self.await_empty(&scheduler).await?;
        // Clean-ups that were never finished have made workers suspect meanwhile.
        for agents in &self.agents {
            agents.clear().await;
        }
        for index in 0..self.world.settings.pools.len() {
            let mut probed = Ok(());
            // A worker that was told to stop something is busy until it has.
            for _ in 0..PROBES_MAX {
                probed = self.probe(&scheduler, index).await;
                if probed.is_ok() {
                    break;
                }
                // A call of the operator may have been late.
                self.agents[index].uncordon().await;
                self.world.sleep_ms(5_000).await;
            }
            probed?;
        }
        self.await_empty(&scheduler).await?;
        self.stop().await
    }

    async fn release(&self, scheduler: &Scheduler, view: &ClaimView) -> Result<(), String> {
        let (id, fence) = (view.id.clone(), view.fence);
        self.world.checker.lock().begin_release(&key_of(view), Some(fence));
        let scheduler = scheduler.clone();
        let call = |_| async move { scheduler.release_held(&id, Some(fence)).await };
        match self.world.call("release", 0, None, call).await {
            Outcome::Answered(Ok(_) | Err(RequestError::NotFound(_) | RequestError::FenceMismatch)) => Ok(()),
            Outcome::Answered(Err(error)) => Err(format!("{fence} of {} cannot be released: {error}", key_of(view))),
            _ => Err(format!("the release of {fence} has no answer")),
        }
    }

    async fn await_empty(&self, scheduler: &Scheduler) -> Result<(), String> {
        let end_ms = self.world.core.now_ms() + REST_MS_MAX;
        loop {
            let keys = scheduler.keys();
            let usage = keys.tenants.in_use();
            if keys.is_empty() && usage.is_empty() {
                return Ok(());
            }
            if self.world.core.now_ms() > end_ms {
                let left: Vec<_> = self
                    .world
                    .ids()
                    .map(|id| (id.tenant_and_key().to_owned(), keys.lookup(&id)))
                    .filter(|(_, found)| *found != KeyLookup::Vacant)
                    .collect();
                return Err(format!(
                    "leaked: {} keys are left, {} pending: {left:?}; tenants use {usage:?}",
                    keys.len(),
                    keys.pending_len()
                ));
            }
            self.world.sleep_ms(LOOK_MS).await;
        }
    }

    /// Claims every worker of a pool as a whole, and one more, which is refused.
    async fn probe(&self, scheduler: &Scheduler, index: usize) -> Result<(), String> {
        let pool = self.world.settings.pools[index].clone();
        let resources = if pool.is_shared() { cpu(pool.worker_cpu_milli) } else { cpu(0) };
        let spec = ClaimSpec { resources, ..ClaimSpec::default() };
        let mut views = Vec::new();
        for number in 0..=pool.workers {
            let id = ClaimId::new(NAMESPACE, "probe", &format!("p{number}")).expect("a name");
            let constraints = Some(Box::new(ClaimConstraints { spec: spec.clone(), ..ClaimConstraints::default() }));
            let constraints = constraints.filter(|_| pool.is_shared());
            let of_pool = ClaimRequest::new(id, pool_name(pool.name));
            let request = ClaimRequest { reserve_ms: Some(0), constraints, ..of_pool };
            let server = scheduler.clone();
            let asked_ns = self.world.core.now_ns();
            let call = |_| async move { server.claim(request).await };
            let Outcome::Answered(answer) = self.world.call("claim", 0, None, call).await else {
                return Err("a claim of the end has no answer".to_owned());
            };
            match answer {
                Ok(result) => {
                    let now_ns = self.world.core.now_ns();
                    self.world.checker.lock().show(&result, &[] as &[Doubt], true, asked_ns, now_ns);
                    views.push(result.claim);
                }
                Err(RequestError::Exhausted(ExhaustionReason::Pool)) if number == pool.workers => {}
                Err(error) => {
                    for view in &views {
                        self.release(scheduler, view).await?;
                    }
                    let details = self.describe_workers(scheduler_of(&self.world)?, pool.name).await;
                    return Err(format!(
                        "false full: claim {number} of {} workers of {} is refused: {error}; {details}",
                        pool.workers, pool.name
                    ));
                }
            }
        }
        if views.len() > pool.workers {
            return Err(format!("{} of {} workers of {} were given out", views.len(), pool.workers, pool.name));
        }
        for view in views {
            self.release(scheduler, &view).await?;
        }
        Ok(())
    }

    async fn describe_workers(&self, scheduler: Scheduler, pool: &str) -> String {
        let name = pool_name(pool);
        let call = |_| async move { scheduler.list_workers(&name, None, 100).await };
        let Outcome::Answered(Ok(page)) = self.world.call("list_workers", 0, None, call).await else {
            return "workers cannot be listed".to_owned();
        };
        let states = page.items.iter().map(|worker| {
            let id = worker.registration.spec.id.as_str();
            format!(
                "{id}: busy {}, {:?}, {:?}, {:?}, {} claims",
                worker.busy,
                worker.schedulability,
                worker.liveness,
                worker.trust,
                worker.claims.len()
            )
        });
        states.collect::<Vec<_>>().join("; ")
    }

    /// Stops all processes in an orderly way: each stores everything, and no task is left.
    async fn stop(&self) -> Result<(), String> {
        for (machine, process, scheduler) in self.world.servers() {
            if !scheduler.readiness().ready {
                continue;
            }
            let call = |_| async move { scheduler.stop().await };
            match self.world.call_on(machine, "stop", call).await {
                Outcome::Answered(true) => {}
                Outcome::Answered(false) => return Err("an orderly stop did not store everything".to_owned()),
                _ => return Err("an orderly stop has no end".to_owned()),
            }
            self.world.sleep_ms(1_000).await;
            let tasks = self.world.core.tasks(process);
            // A call of the agents may be under way.
            let left: Vec<_> = tasks.into_iter().filter(|name| *name != "heartbeat").collect();
            if !left.is_empty() {
                return Err(format!("tasks are left after the stop: {left:?}"));
            }
        }
        Ok(())
    }
}

fn scheduler_of(world: &World) -> Result<Scheduler, String> {
    world.server().map(|(.., scheduler)| scheduler).ok_or_else(|| "no machine serves".to_owned())
}

/// Checks that tenants are charged for exactly what is held (U1).
fn check_usage(scheduler: &Scheduler, views: &[ClaimView]) -> Result<(), String> {
    let mut sums = std::collections::BTreeMap::<String, (u64, u64)>::new();
    for view in views {
        let (claims, cpu_milli) = sums.entry(view.id.owner().to_owned()).or_default();
        *claims += 1;
        *cpu_milli += view.spec.as_ref().map_or(0, |spec| spec.resources.cpu_milli);
    }
    let charged: std::collections::BTreeMap<String, (u64, u64)> = scheduler
        .keys()
        .tenants
        .in_use()
        .into_iter()
        .map(|(tenant, used)| (tenant, (used.claims, used.cpu_milli)))
        .collect();
    if charged == sums { Ok(()) } else { Err(format!("U1: charged {charged:?}, held {sums:?}")) }
}

/// Ends processes that another one has fenced off, as their supervisor would.
async fn watch_processes(world: Arc<World>) {
    while !world.is_done() {
        world.sleep_ms(500).await;
        for (machine, _, scheduler) in world.servers() {
            let readiness = scheduler.readiness();
            if readiness.reasons.iter().any(|reason| reason.contains("another process owns")) {
                world.cause(Incident::Exit(machine, StoreError::OwnedElsewhere("fenced".to_owned()).to_string()));
            }
        }
    }
}
