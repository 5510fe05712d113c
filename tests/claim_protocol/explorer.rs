//! Walk through all schedules of a scenario: depth first, each by replaying the choices of the one before up to the
//! last that has an alternative.

use std::fmt;
use std::time::{Duration, Instant};

use hotpool::shard::ProtocolRule;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::scene::{Scenario, Scene};
use crate::stepped_thread::Order;

/// Steps after which a schedule does not end.
const STEPS_MAX: usize = 500;

/// Choices of one schedule: what was taken, of how many.
#[derive(Debug, Default)]
struct Schedule {
    choices: Vec<(usize, usize)>,
    at: usize,
    /// Source of the choices that are not given; none: the first option each time.
    random: Option<StdRng>,
}

impl Schedule {
    fn choose(&mut self, options: usize) -> usize {
        if options == 1 {
            return 0;
        }
        let taken = match self.choices.get(self.at) {
            Some(&(taken, of)) => {
                assert!(of == options || of == usize::MAX, "a schedule meets the same options when it is replayed");
                taken.min(options - 1)
            }
            None => {
                let taken = self.random.as_mut().map_or(0, |random| random.random_range(0..options));
                self.choices.push((taken, options));
                taken
            }
        };
        self.at += 1;
        taken
    }

    /// Goes on to the next schedule. Returns false after the last.
    fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((taken, options)) = self.choices.pop() {
            if taken + 1 < options {
                self.choices.push((taken + 1, options));
                return true;
            }
        }
        false
    }
}

/// Step that a schedule may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Thread(usize, Order),
    AnswerStore,
}

/// Schedule that breaks an invariant.
#[derive(Debug)]
pub struct Violation {
    pub message: String,
    pub choices: Vec<usize>,
    steps: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nchoices: {:?}", self.message, self.choices)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

/// Schedules that were explored.
#[derive(Debug)]
struct Explored {
    pub schedules: usize,
    /// Whether none was left.
    pub is_complete: bool,
    pub violation: Option<Violation>,
}

/// Limits of an exploration.
#[derive(Debug, Clone, Copy)]
struct Limits {
    pub schedules: usize,
    pub time: Duration,
}

/// Limits of an exploration.
const LIMITS: Limits = Limits { schedules: 100_000, time: Duration::from_secs(15) };
/// Limits of random schedules.
const SAMPLE: Limits = Limits { schedules: 3_000, time: Duration::from_secs(10) };

/// Explores the schedules of a scenario, and replays the one that breaks an invariant.
fn explored(scenario: &Scenario, broken: Option<ProtocolRule>) -> Explored {
    let explored = explore(scenario, broken, LIMITS);
    let extent = if explored.is_complete { "all" } else { "the first" };
    println!("{extent} {} schedules of {scenario:?}, broken: {broken:?}", explored.schedules);
    if let Some(violation) = &explored.violation {
        println!("{violation}");
        let again = replay(scenario, broken, &violation.choices).expect_err("a schedule can be replayed");
        assert_eq!(again.choices, violation.choices);
    }
    explored
}

/// Asserts that no schedule breaks an invariant.
pub fn holds(scenario: &Scenario) {
    let explored = explored(scenario, None);
    assert!(explored.violation.is_none(), "{}", explored.violation.unwrap());
}

/// Asserts that no random schedule breaks an invariant. `HOTPOOL_SEED` sets the first seed.
pub fn holds_in_samples(scenario: &Scenario) {
    let seed = std::env::var("HOTPOOL_SEED").map_or(1, |seed| seed.parse().expect("HOTPOOL_SEED is a number"));
    let sampled = sample(scenario, seed, SAMPLE);
    println!("{} random schedules of {scenario:?} from seed {seed} on", sampled.schedules);
    assert!(sampled.violation.is_none(), "{}", sampled.violation.unwrap());
}

/// Asserts that some schedule breaks an invariant without this rule.
pub fn is_found(scenario: &Scenario, broken: ProtocolRule) {
    assert!(explored(scenario, Some(broken)).violation.is_some(), "{broken:?} is not needed in {scenario:?}");
}

/// Explores the schedules of a scenario until one breaks an invariant.
fn explore(scenario: &Scenario, broken: Option<ProtocolRule>, limits: Limits) -> Explored {
    let begun = Instant::now();
    let mut schedule = Schedule::default();
    let mut schedules = 0;
    loop {
        schedules += 1;
        if let Err(violation) = run(scenario, broken, &mut schedule) {
            return Explored { schedules, is_complete: false, violation: Some(violation) };
        }
        if !schedule.advance() {
            return Explored { schedules, is_complete: true, violation: None };
        }
        if schedules >= limits.schedules || begun.elapsed() > limits.time {
            return Explored { schedules, is_complete: false, violation: None };
        }
    }
}

/// Runs random schedules of a scenario until one breaks an invariant.
fn sample(scenario: &Scenario, seed: u64, limits: Limits) -> Explored {
    let begun = Instant::now();
    let mut schedules = 0;
    while schedules < limits.schedules && begun.elapsed() <= limits.time {
        let random = Some(StdRng::seed_from_u64(seed.wrapping_add(schedules as u64)));
        schedules += 1;
        if let Err(violation) = run(scenario, None, &mut Schedule { random, ..Schedule::default() }) {
            return Explored { schedules, is_complete: false, violation: Some(violation) };
        }
    }
    Explored { schedules, is_complete: false, violation: None }
}

/// Runs one schedule: the given choices, then the first option each time.
pub fn replay(scenario: &Scenario, broken: Option<ProtocolRule>, choices: &[usize]) -> Result<(), Violation> {
    let choices = choices.iter().map(|&taken| (taken, usize::MAX)).collect();
    run(scenario, broken, &mut Schedule { choices, ..Schedule::default() })
}

fn run(scenario: &Scenario, broken: Option<ProtocolRule>, schedule: &mut Schedule) -> Result<(), Violation> {
    let mut scene = Scene::new(scenario, broken);
    let mut steps = Vec::new();
    let outcome = play(scenario, &mut scene, schedule, &mut steps);
    outcome.map_err(|message| {
        let choices = schedule.choices[..schedule.at].iter().map(|(taken, _)| *taken).collect();
        Violation { message, choices, steps }
    })
}

fn play(
    scenario: &Scenario,
    scene: &mut Scene,
    schedule: &mut Schedule,
    steps: &mut Vec<String>,
) -> Result<(), String> {
    let (mut current, mut preemptions, mut panics) = (None, scenario.preemptions, scenario.panics);
    loop {
        let options = options(scene, current, preemptions > 0, panics > 0);
        if options.is_empty() {
            return scene.check_end();
        }
        if steps.len() >= STEPS_MAX {
            return Err("the schedule does not end".into());
        }
        let step = options[schedule.choose(options.len())];
        let running = current.filter(|&number| scene.threads.get(number).is_at_point());
        match step {
            Step::AnswerStore => {
                steps.push("the store answers".into());
                scene.answer_store();
            }
            Step::Thread(number, order) => {
                preemptions -= usize::from(running.is_some_and(|running| running != number));
                panics -= usize::from(order == Order::Panic);
                let from = scene.threads.get(number).whereabouts.clone();
                scene.step(number, order);
                steps.push(format!("{number}: {order:?} {from:?} -> {:?}", scene.threads.get(number).whereabouts));
                current = Some(number);
            }
        }
        scene.check_step()?;
    }
}

/// Steps that may come next: first those of the thread that ran last.
fn options(scene: &mut Scene, current: Option<usize>, may_preempt: bool, may_panic: bool) -> Vec<Step> {
    let running = current.filter(|&number| scene.threads.get(number).is_at_point());
    let mut numbers: Vec<usize> = running.into_iter().collect();
    if may_preempt || running.is_none() {
        numbers.extend((0..scene.threads.len()).filter(|number| Some(*number) != running));
    }
    let mut options = Vec::new();
    for number in numbers {
        if scene.threads.can_go_on(number) {
            options.push(Step::Thread(number, Order::Resume));
        }
        if may_panic && scene.threads.get(number).is_in_run() {
            options.push(Step::Thread(number, Order::Panic));
        }
        if scene.may_leave(number) {
            options.push(Step::Thread(number, Order::Leave));
        }
    }
    if scene.is_answer_due() {
        options.push(Step::AnswerStore);
    }
    options
}
