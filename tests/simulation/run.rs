//! Run of one seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use hotpool::shard::{choose_runners_of_thread, inject_into_thread};

use crate::core::{Core, INJECTED_PANIC, OUTSIDE, ProcessNumber, StepOutcome, text_of};
use crate::invariants::LastLook;
use crate::script::Script;
use crate::settings::{Fault, Limits, Settings, StoreKind};
use crate::stores::{Backend, FileBackend, RedisBackend};
use crate::trace::{KeepLines, Trace, take_log};
use crate::world::{START_UNIX_US, World};

/// Steps after which a run counts as endless.
const STEPS_MAX: u64 = 2_000_000;

/// Steps of which one is checked for invariants across shards.
const CHECK_INTERVAL: u64 = 4;

thread_local! {
    /// First panic of this thread that nobody injected.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Result of the run of one seed.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub settings: Settings,
    pub problem: Option<String>,
    pub hash: u64,
    pub steps: u64,
    pub grants: usize,
    pub panics: u32,
    pub simulated: Duration,
    pub elapsed: Duration,
    pub situations: BTreeMap<&'static str, u64>,
    pub lines: Vec<String>,
}

impl Report {
    /// Line about the run.
    pub fn summary(&self) -> String {
        let Self { seed, settings, hash, steps, grants, panics, simulated, elapsed, .. } = self;
        let mut text = format!(
            "seed {seed}: {:?}, {} callers, {:?}; {grants} grants, {panics} panics, {steps} steps, {:.0} s in {:.2} s, hash {hash:016x}",
            settings.store,
            settings.callers,
            settings.faults,
            simulated.as_secs_f64(),
            elapsed.as_secs_f64()
        );
        if let Some(problem) = &self.problem {
            let _ = write!(text, "\n  {problem}");
        }
        text
    }
}

fn keep_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            if panic.payload().downcast_ref::<&str>() == Some(&INJECTED_PANIC) {
                return;
            }
            let at = panic.location().map(ToString::to_string).unwrap_or_default();
            let text = format!("panic at {at}: {}", text_of(panic.payload()));
            PANIC.with_borrow_mut(|first| {
                first.get_or_insert(text);
            });
        }));
    });
}

/// Runs one seed to its end.
pub fn run_seed(seed: u64, limits: &Limits, keep: KeepLines) -> Report {
    keep_panics();
    PANIC.take();
    let _ = hotpool::coverage::take_counts();
    hotpool::collections::seed_hashes(seed);
    let began = Instant::now();
    let settings = Settings::draw(seed, limits);
    let core = Core::new(seed, settings.rates, settings.panics_max, Trace::new(keep));
    let backend: Box<dyn Backend> = match settings.store {
        StoreKind::File => Box::new(FileBackend::new()),
        StoreKind::Redis { masters } => {
            let (_, environment) = core.add_process(START_UNIX_US, 1_000_000);
            let has_faults = settings.faults.iter().any(|fault| matches!(fault, Fault::Redis | Fault::Store));
            Box::new(RedisBackend::new(masters, has_faults, environment))
        }
    };
    let world = World::new(Arc::clone(&core), settings.clone(), backend);
    let (for_points, for_runners) = (Arc::clone(&core), Arc::clone(&core));
    inject_into_thread(Some(Rc::new(move |point| for_points.reach_point(point))), None);
    choose_runners_of_thread(Some(Rc::new(move || for_runners.choose_for_push())));
    std::mem::forget(core.spawn(OUTSIDE, "script", Script::new(Arc::clone(&world)).run()));
    let problem = drive(&core, &world);
    inject_into_thread(None, None);
    choose_runners_of_thread(None);
    let report = Report {
        seed,
        settings,
        problem,
        hash: core.trace.hash(),
        steps: core.steps(),
        grants: world.checker.lock().grants(),
        panics: core.panics(),
        simulated: Duration::from_nanos(core.now_ns()),
        elapsed: began.elapsed(),
        situations: hotpool::coverage::take_counts(),
        lines: core.trace.lines(),
    };
    world.end();
    core.kill(OUTSIDE);
    report
}

/// Checks the processes of which nothing can run now that time has passed, before it has its effects.
fn check_invariants(
    core: &Arc<Core>,
    world: &Arc<World>,
    looks: &mut BTreeMap<ProcessNumber, LastLook>,
) -> Option<String> {
    // Nothing that they look at changes once the last call of the callers is answered.
    let is_over = world.is_quiet() && world.active_callers() == 0;
    if is_over || !core.steps().is_multiple_of(CHECK_INTERVAL) {
        return None;
    }
    for (_, process, scheduler) in world.servers() {
        if core.was_at_rest(process)
            && let Err(problem) = looks.entry(process).or_default().check_at_rest(&scheduler, world)
        {
            return Some(problem);
        }
    }
    None
}

fn drive(core: &Arc<Core>, world: &Arc<World>) -> Option<String> {
    let mut looks = BTreeMap::new();
    let mut disturbances = 0;
    let mut panics = 0;
    loop {
        let outcome = core.step();
        if let Some((_, times)) = hotpool::coverage::take_last() {
            world.strike(times);
        }
        if let Some(log) = take_log() {
            core.trace.keep(core.now_ns(), &log);
        }
        if panics != core.panics() {
            panics = core.panics();
            world.checker.lock().note_panic(core.now_ns());
        }
        world.carry_out_incidents();
        if disturbances != world.disturbances() {
            disturbances = world.disturbances();
            looks.clear();
        }
        if let Some(panic) = PANIC.take() {
            return Some(panic);
        }
        if let Some(problem) = world.checker.lock().problem() {
            return Some(problem.to_owned());
        }
        if world.is_done() {
            return None;
        }
        if outcome == StepOutcome::TimePassed
            && let Some(problem) = check_invariants(core, world, &mut looks)
        {
            return Some(problem);
        }
        if outcome == StepOutcome::Nothing {
            return Some("nothing can run, and no timer is set".to_owned());
        }
        if core.steps() > STEPS_MAX {
            return Some(format!("no end after {STEPS_MAX} steps: {:?}", core.polls()));
        }
    }
}
