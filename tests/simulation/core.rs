//! Core of the simulation: virtual time, timers, tasks, and the choice of what runs next. One thread; every choice is drawn
//! from one seed, so the seed is the run.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use hotpool::environment::{Clock, Environment, SimulatedRuntime, SimulatedTask};
use hotpool::shard::{ProtocolPoint, PushChoice};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::runtime::Runtime;

use crate::trace::Trace;

/// Number of a simulated process; a restarted one has a new number.
pub type ProcessNumber = usize;

/// Process of the callers, the workers and the network: it is never killed.
pub const OUTSIDE: ProcessNumber = 0;

/// Payload of panics that the simulation injects.
pub const INJECTED_PANIC: &str = "injected fault";

/// Steps nested in one another at most: a run of a shard, and what competes with it.
const DEPTH_MAX: usize = 3;
/// Passes of a process's own runtime after each step: an actor that starts needs some.
const PASSES: usize = 3;
/// Time that passes when it passes although something could run, in nanoseconds at most.
const SLIP_NS: u64 = 2_000_000;

/// Rates of what the core draws, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub struct CoreRates {
    /// Points of a run at which another task takes a step.
    pub interleave: u32,
    /// Points of a run at which the shard panics, in millionths.
    pub panic_millionths: u32,
    /// Steps of keys that may panic as the other points do.
    pub key_panic: u32,
    /// Commands that are left to the actor although nobody runs the shard.
    pub leave_to_actor: u32,
    /// Commands that are refused as if the mailbox were full.
    pub full_mailbox: u32,
    /// Steps before which time passes although something could run.
    pub time_slip: u32,
    /// Latest that a timer fires, in nanoseconds.
    pub lateness_ns: u64,
    /// Longest work of a thread that may block, in nanoseconds.
    pub blocking_ns: u64,
}

struct Task {
    process: ProcessNumber,
    name: &'static str,
    /// None while it is polled.
    future: Option<BoxFuture<'static, ()>>,
    is_queued: bool,
    is_aborted: bool,
}

struct Timer {
    process: ProcessNumber,
    waker: Waker,
}

enum Runnable {
    Task(u64),
    /// Task of a process's own runtime that waits until it is chosen.
    Point(ProcessNumber, Arc<PointState>),
}

#[derive(Default)]
struct PointState {
    is_chosen: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

struct ProcessState {
    clock: Clock,
    runtime: Option<Arc<Runtime>>,
    is_paused: bool,
    /// Speed of its clock, in millionths of the true time's.
    rate_ppm: u64,
    /// Remainder of the scaled time, in millionths of a nanosecond.
    remainder: u64,
}

struct CoreState {
    random: StdRng,
    rates: CoreRates,
    now_ns: u64,
    next_number: u64,
    timers: BTreeMap<(u64, u64), Timer>,
    tasks: BTreeMap<u64, Task>,
    runnable: Vec<Runnable>,
    processes: BTreeMap<ProcessNumber, ProcessState>,
    next_process: ProcessNumber,
    panics_left: u32,
    panics: u32,
    is_panic_due: bool,
    steps: u64,
    /// Polls of the tasks of each name.
    polls: BTreeMap<&'static str, u64>,
    /// Time until which threads that may block are held up.
    stalled_until_ns: u64,
    /// Processes of which nothing could run when time passed last.
    rested: Vec<ProcessNumber>,
}

/// Virtual time, tasks and choices of one simulation.
pub struct Core {
    state: Mutex<CoreState>,
    pub trace: Trace,
}

/// Result of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    Ran,
    TimePassed,
    /// End of all activity: nothing can run, and no timer is set.
    Nothing,
}

thread_local! {
    /// Process whose code runs on this thread.
    static CURRENT: Cell<Option<ProcessNumber>> = const { Cell::new(None) };
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

enum Choice {
    Task(u64),
    Point(ProcessNumber, Arc<PointState>),
    Time,
    Nothing,
}

impl CoreState {
    fn is_eligible(&self, runnable: &Runnable) -> bool {
        let process = match runnable {
            Runnable::Task(number) => match self.tasks.get(number) {
                Some(task) if task.future.is_some() => task.process,
                // Gone, or polled at this moment.
                _ => return false,
            },
            Runnable::Point(process, _) => *process,
        };
        self.processes.get(&process).is_some_and(|process| !process.is_paused)
    }

    fn remove_dead(&mut self) {
        let (tasks, processes) = (&self.tasks, &self.processes);
        self.runnable.retain(|runnable| match runnable {
            Runnable::Task(number) => tasks.contains_key(number),
            Runnable::Point(process, _) => processes.contains_key(process),
        });
    }

    /// Index of a runnable that may run and that `filter` accepts.
    fn draw_runnable(&mut self, filter: impl Fn(&Self, &Runnable) -> bool) -> Option<usize> {
        let fits: Vec<usize> = (0..self.runnable.len())
            .filter(|&index| self.is_eligible(&self.runnable[index]) && filter(self, &self.runnable[index]))
            .collect();
        match fits.len() {
            0 => None,
            len => Some(fits[self.random.random_range(0..len)]),
        }
    }

    fn take_runnable(&mut self, index: usize) -> Choice {
        match self.runnable.remove(index) {
            Runnable::Task(number) => {
                if let Some(task) = self.tasks.get_mut(&number) {
                    task.is_queued = false;
                }
                Choice::Task(number)
            }
            Runnable::Point(process, point) => Choice::Point(process, point),
        }
    }

    fn choose(&mut self) -> Choice {
        self.steps += 1;
        self.remove_dead();
        let slips = self.rates.time_slip > 0 && self.random.random_range(0..1_000) < self.rates.time_slip;
        if slips
            && let Some((&(deadline_ns, _), _)) = self.timers.first_key_value()
            && deadline_ns <= self.now_ns + SLIP_NS
        {
            return Choice::Time;
        }
        match self.draw_runnable(|_, _| true) {
            Some(index) => self.take_runnable(index),
            None if self.timers.is_empty() => Choice::Nothing,
            None => Choice::Time,
        }
    }

    /// Moves the time to the next timer, or a little beyond, and returns the timers that are due.
    fn pass_time(&mut self) -> Vec<Waker> {
        let Some((&(deadline_ns, _), _)) = self.timers.first_key_value() else { return Vec::new() };
        let late_ns = match self.rates.lateness_ns {
            0 => 0,
            max_ns => self.random.random_range(0..=max_ns),
        };
        let now_ns = deadline_ns.max(self.now_ns) + late_ns;
        self.set_now(now_ns);
        let later = self.timers.split_off(&(now_ns + 1, 0));
        std::mem::replace(&mut self.timers, later).into_values().map(|timer| timer.waker).collect()
    }

    fn processes_at_rest(&self) -> Vec<ProcessNumber> {
        let process_of = |runnable: &Runnable| match runnable {
            Runnable::Task(number) => self.tasks.get(number).map(|task| task.process),
            Runnable::Point(process, _) => Some(*process),
        };
        let busy: Vec<ProcessNumber> = self.runnable.iter().filter_map(process_of).collect();
        self.processes.keys().copied().filter(|process| !busy.contains(process)).collect()
    }

    fn set_now(&mut self, now_ns: u64) {
        let passed_ns = now_ns - self.now_ns;
        self.now_ns = now_ns;
        for process in self.processes.values_mut() {
            let scaled = passed_ns * process.rate_ppm + process.remainder;
            process.remainder = scaled % 1_000_000;
            process.clock.advance(Duration::from_nanos(scaled / 1_000_000));
        }
    }
}

struct TaskWaker {
    core: Weak<Core>,
    task: u64,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if let Some(core) = self.core.upgrade() {
            core.queue_task(self.task);
        }
    }
}

struct AbortableTask {
    core: Weak<Core>,
    task: u64,
}

impl SimulatedTask for AbortableTask {
    fn abort(&self) {
        let Some(core) = self.core.upgrade() else { return };
        if let Some(task) = core.state.lock().tasks.get_mut(&self.task) {
            task.is_aborted = true;
        }
        core.queue_task(self.task);
    }
}

/// Handle of a task that ends it when it is dropped: a caller that hangs up.
pub struct TaskGuard(Arc<dyn SimulatedTask>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Core {
    pub fn new(seed: u64, rates: CoreRates, panics_max: u32, trace: Trace) -> Arc<Self> {
        let outside = ProcessState {
            clock: Clock::manual_from(0),
            runtime: None,
            is_paused: false,
            rate_ppm: 1_000_000,
            remainder: 0,
        };
        let state = CoreState {
            random: StdRng::seed_from_u64(seed),
            rates,
            now_ns: 0,
            next_number: 1,
            timers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            runnable: Vec::new(),
            processes: BTreeMap::from([(OUTSIDE, outside)]),
            next_process: OUTSIDE + 1,
            panics_left: panics_max,
            panics: 0,
            is_panic_due: false,
            steps: 0,
            polls: BTreeMap::new(),
            stalled_until_ns: 0,
            rested: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state), trace })
    }

    pub fn now_ns(&self) -> u64 {
        self.state.lock().now_ns
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ns() / 1_000_000
    }

    pub fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// Holds up all threads that may block for so long.
    pub fn stall(&self, duration: Duration) {
        let mut state = self.state.lock();
        state.stalled_until_ns = state.now_ns + duration.as_nanos() as u64;
    }

    /// Ends the stall of threads that may block.
    pub fn end_stall(&self) {
        self.state.lock().stalled_until_ns = 0;
    }

    /// Polls of the tasks of each name.
    pub fn polls(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().polls.clone()
    }

    /// Panics that were injected.
    pub fn panics(&self) -> u32 {
        self.state.lock().panics
    }

    pub fn set_rates(&self, rates: CoreRates) {
        self.state.lock().rates = rates;
    }

    /// Allows so many more panics to be injected.
    pub fn allow_panics(&self, count: u32) {
        self.state.lock().panics_left = count;
    }

    /// Number that nothing else of this run has.
    pub fn next_number(&self) -> u64 {
        let mut state = self.state.lock();
        state.next_number += 1;
        state.next_number
    }

    pub fn random_u64(&self) -> u64 {
        self.state.lock().random.random()
    }

    /// Random number below `end`.
    pub fn below(&self, end: u64) -> u64 {
        self.state.lock().random.random_range(0..end.max(1))
    }

    /// True in so many of a thousand cases.
    pub fn chance(&self, thousandths: u32) -> bool {
        thousandths > 0 && self.state.lock().random.random_range(0..1_000) < thousandths
    }

    /// Adds a process with this clock, and returns its number and its environment.
    pub fn add_process(self: &Arc<Self>, unix_us: u64, rate_ppm: u64) -> (ProcessNumber, Environment) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let clock = Clock::manual_from(unix_us);
        let mut state = self.state.lock();
        let process = state.next_process;
        state.next_process += 1;
        let added = ProcessState {
            clock: clock.clone(),
            runtime: Some(Arc::new(runtime)),
            is_paused: false,
            rate_ppm,
            remainder: 0,
        };
        state.processes.insert(process, added);
        drop(state);
        let runtime = ProcessRuntime { core: Arc::downgrade(self), process };
        (process, Environment::simulated(clock, Arc::new(runtime)))
    }

    /// Kills a process: none of its tasks takes another step.
    pub fn kill(&self, process: ProcessNumber) {
        let (killed, tasks) = {
            let mut state = self.state.lock();
            let Some(killed) = state.processes.remove(&process) else { return };
            let numbers: Vec<u64> =
                state.tasks.iter().filter(|(_, task)| task.process == process).map(|(number, _)| *number).collect();
            let tasks: Vec<Task> = numbers.iter().filter_map(|number| state.tasks.remove(number)).collect();
            (killed, tasks)
        };
        // What runs when they are dropped reaches nobody: its process is gone.
        drop(tasks);
        drop(killed);
        self.state.lock().timers.retain(|_, timer| timer.process != process);
    }

    pub fn is_alive(&self, process: ProcessNumber) -> bool {
        self.state.lock().processes.contains_key(&process)
    }

    /// Stops or continues all steps of a process; its clock goes on.
    pub fn set_paused(&self, process: ProcessNumber, is_paused: bool) {
        if let Some(process) = self.state.lock().processes.get_mut(&process) {
            process.is_paused = is_paused;
        }
    }

    /// Sets the wall clock of a process off by so much.
    pub fn shift_wall_clock(&self, process: ProcessNumber, shift_us: i64) {
        if let Some(process) = self.state.lock().processes.get(&process) {
            process.clock.shift_unix_us(shift_us);
        }
    }

    /// Names of the tasks of a process.
    pub fn tasks(&self, process: ProcessNumber) -> Vec<&'static str> {
        self.state.lock().tasks.values().filter(|task| task.process == process).map(|task| task.name).collect()
    }

    /// Whether nothing of a process could run when time passed last. Nothing has run since.
    pub fn was_at_rest(&self, process: ProcessNumber) -> bool {
        self.state.lock().rested.contains(&process)
    }

    /// Adds a task to a process. A process that is gone drops it.
    pub fn spawn(
        self: &Arc<Self>,
        process: ProcessNumber,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> TaskGuard {
        TaskGuard(self.spawn_boxed(process, name, future.boxed()))
    }

    fn spawn_boxed(
        self: &Arc<Self>,
        process: ProcessNumber,
        name: &'static str,
        future: BoxFuture<'static, ()>,
    ) -> Arc<dyn SimulatedTask> {
        let mut state = self.state.lock();
        let number = state.next_number;
        state.next_number += 1;
        if state.processes.contains_key(&process) {
            let task = Task { process, name, future: Some(future), is_queued: true, is_aborted: false };
            state.tasks.insert(number, task);
            state.runnable.push(Runnable::Task(number));
            drop(state);
        } else {
            drop(state);
            drop(future);
        }
        Arc::new(AbortableTask { core: Arc::downgrade(self), task: number })
    }

    fn queue_task(&self, number: u64) {
        let mut state = self.state.lock();
        let CoreState { tasks, runnable, .. } = &mut *state;
        if let Some(task) = tasks.get_mut(&number)
            && !task.is_queued
        {
            task.is_queued = true;
            runnable.push(Runnable::Task(number));
        }
    }

    pub fn sleep(self: &Arc<Self>, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep_in(OUTSIDE, duration)
    }

    fn sleep_in(self: &Arc<Self>, process: ProcessNumber, duration: Duration) -> BoxFuture<'static, ()> {
        let state = self.state.lock();
        let rate_ppm = state.processes.get(&process).map_or(1_000_000, |process| process.rate_ppm);
        let duration_ns = u128::from(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)) * 1_000_000;
        let duration_ns = u64::try_from(duration_ns.div_ceil(u128::from(rate_ppm))).unwrap_or(u64::MAX / 4);
        let deadline_ns = state.now_ns + duration_ns;
        drop(state);
        Box::pin(TimerFuture { core: Arc::downgrade(self), process, deadline_ns, key: None })
    }

    /// Takes one step of the run.
    pub fn step(self: &Arc<Self>) -> StepOutcome {
        let choice = self.state.lock().choose();
        match choice {
            Choice::Task(number) => {
                if let Some(process) = self.poll_task(number) {
                    self.run_runtime(process);
                }
                StepOutcome::Ran
            }
            Choice::Point(process, point) => {
                self.trace.note_step(2, process as u64, self.now_ns());
                point.choose();
                self.run_runtime(process);
                StepOutcome::Ran
            }
            Choice::Time => {
                let due = {
                    let mut state = self.state.lock();
                    state.rested = state.processes_at_rest();
                    state.pass_time()
                };
                self.trace.note_step(3, due.len() as u64, self.now_ns());
                due.into_iter().for_each(Waker::wake);
                StepOutcome::TimePassed
            }
            Choice::Nothing => StepOutcome::Nothing,
        }
    }

    /// Polls a task once. Returns its process.
    fn poll_task(self: &Arc<Self>, number: u64) -> Option<ProcessNumber> {
        let (mut future, process, name, is_aborted, runtime) = {
            let mut state = self.state.lock();
            let task = state.tasks.get_mut(&number)?;
            let future = task.future.take()?;
            let (process, name, is_aborted) = (task.process, task.name, task.is_aborted);
            if is_aborted {
                state.tasks.remove(&number);
            }
            *state.polls.entry(name).or_default() += 1;
            let runtime = state.processes.get(&process).and_then(|process| process.runtime.clone());
            (future, process, name, is_aborted, runtime)
        };
        self.trace.note_step(1, number, self.now_ns());
        let polled = {
            let _entered = runtime.as_ref().map(|runtime| runtime.enter());
            let before = CURRENT.replace(Some(process));
            let waker = Waker::from(Arc::new(TaskWaker { core: Arc::downgrade(self), task: number }));
            let polled = catch_unwind(AssertUnwindSafe(|| match is_aborted {
                true => {
                    drop(future);
                    None
                }
                false => future.poll_unpin(&mut Context::from_waker(&waker)).is_pending().then_some(future),
            }));
            CURRENT.set(before);
            polled
        };
        let mut state = self.state.lock();
        match polled {
            Ok(Some(future)) => match state.tasks.get_mut(&number) {
                Some(task) => task.future = Some(future),
                None => {
                    drop(state);
                    drop(future);
                }
            },
            Ok(None) => drop(state.tasks.remove(&number)),
            Err(panic) => {
                state.tasks.remove(&number);
                drop(state);
                self.trace.line(self.now_ns(), || {
                    format!("task {name:?} of process {process} panicked: {}", text_of(&*panic))
                });
            }
        }
        Some(process)
    }

    /// Lets the actors of a process run until each of them waits.
    fn run_runtime(&self, process: ProcessNumber) {
        let runtime = self.state.lock().processes.get(&process).and_then(|process| process.runtime.clone());
        if let Some(runtime) = runtime {
            let before = CURRENT.replace(Some(process));
            let depth = DEPTH.get();
            runtime.block_on(async {
                for _ in 0..PASSES {
                    tokio::task::yield_now().await;
                }
            });
            DEPTH.set(depth);
            CURRENT.set(before);
        }
    }

    /// Lets something compete with the step that has reached this point.
    pub fn reach_point(self: &Arc<Self>, point: ProtocolPoint) {
        use ProtocolPoint::{Decided, Delivered, KeyStep, MailboxDrained, Matched, Published};
        let Some(process) = CURRENT.get() else { return };
        if !self.is_alive(process) || std::thread::panicking() {
            return;
        }
        // The step of a key is atomic, so nothing competes with it; it may panic.
        let key_panic = self.state.lock().rates.key_panic;
        if point == KeyStep && !self.chance(key_panic) {
            return;
        }
        if matches!(point, KeyStep | MailboxDrained | Matched | Decided | Published | Delivered) && self.draw_panic() {
            self.trace.line(self.now_ns(), || format!("process {process}: a shard panics at {point:?}"));
            std::panic::panic_any(INJECTED_PANIC);
        }
        if point == KeyStep || DEPTH.get() >= DEPTH_MAX {
            return;
        }
        let other = {
            let mut state = self.state.lock();
            let interleave = state.rates.interleave;
            if interleave == 0 || state.random.random_range(0..1_000) >= interleave {
                return;
            }
            let is_of_process = |state: &CoreState, runnable: &Runnable| match runnable {
                Runnable::Task(number) => state.tasks.get(number).is_some_and(|task| task.process == process),
                Runnable::Point(..) => false,
            };
            state.draw_runnable(is_of_process).map(|index| state.take_runnable(index))
        };
        if let Some(Choice::Task(number)) = other {
            DEPTH.set(DEPTH.get() + 1);
            self.poll_task(number);
            DEPTH.set(DEPTH.get() - 1);
        }
    }

    fn draw_panic(&self) -> bool {
        let mut state = self.state.lock();
        let rate = state.rates.panic_millionths;
        if rate == 0 || state.panics_left == 0 {
            return false;
        }
        if !std::mem::take(&mut state.is_panic_due) && state.random.random_range(0..1_000_000) >= rate {
            return false;
        }
        state.panics_left -= 1;
        state.panics += 1;
        true
    }

    /// Fate of a command that is pushed.
    pub fn choose_for_push(&self) -> PushChoice {
        let rates = self.state.lock().rates;
        match CURRENT.get() {
            Some(_) if self.chance(rates.full_mailbox) => PushChoice::Full,
            Some(_) if self.chance(rates.leave_to_actor) => PushChoice::Actor,
            _ => PushChoice::AsUsual,
        }
    }

    /// Lets the next run of a shard panic at its next point.
    pub fn panic_next(&self) {
        self.state.lock().is_panic_due = true;
    }
}

/// Text of a panic.
pub fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "not a text".to_owned())
}

impl PointState {
    fn choose(&self) {
        self.is_chosen.store(true, Ordering::Relaxed);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }
}

struct TimerFuture {
    core: Weak<Core>,
    process: ProcessNumber,
    deadline_ns: u64,
    key: Option<(u64, u64)>,
}

impl Future for TimerFuture {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(core) = self.core.upgrade() else { return Poll::Pending };
        let mut state = core.state.lock();
        if state.now_ns >= self.deadline_ns {
            return Poll::Ready(());
        }
        let key = self.key.unwrap_or_else(|| {
            let number = state.next_number;
            state.next_number += 1;
            (self.deadline_ns, number)
        });
        state.timers.insert(key, Timer { process: self.process, waker: context.waker().clone() });
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for TimerFuture {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade()
            && let Some(key) = self.key
        {
            let timer = core.state.lock().timers.remove(&key);
            drop(timer);
        }
    }
}

struct PointFuture {
    core: Weak<Core>,
    process: ProcessNumber,
    point: Option<Arc<PointState>>,
}

impl Future for PointFuture {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let process = self.process;
        let Some(core) = self.core.upgrade() else { return Poll::Pending };
        let is_first = self.point.is_none();
        let point = self.point.get_or_insert_default();
        if point.is_chosen.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        *point.waker.lock() = Some(context.waker().clone());
        if is_first {
            core.state.lock().runnable.push(Runnable::Point(process, Arc::clone(point)));
        }
        Poll::Pending
    }
}

/// Runtime of one simulated process.
struct ProcessRuntime {
    core: Weak<Core>,
    process: ProcessNumber,
}

impl SimulatedRuntime for ProcessRuntime {
    fn random_u64(&self) -> u64 {
        self.core.upgrade().map_or(0, |core| core.random_u64())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        match self.core.upgrade() {
            Some(core) => core.sleep_in(self.process, duration),
            None => std::future::pending().boxed(),
        }
    }

    fn yield_now(&self) -> BoxFuture<'static, ()> {
        Box::pin(PointFuture { core: self.core.clone(), process: self.process, point: None })
    }

    fn may_block(&self) -> bool {
        let Some(core) = self.core.upgrade() else { return false };
        let state = core.state.lock();
        let is_stalled = state.stalled_until_ns > state.now_ns;
        drop(state);
        !is_stalled && core.chance(500)
    }

    fn blocking_delay(&self) -> BoxFuture<'static, ()> {
        let Some(core) = self.core.upgrade() else { return std::future::pending().boxed() };
        let (longest_ns, stalled_ns) = {
            let state = core.state.lock();
            (state.rates.blocking_ns, state.stalled_until_ns.saturating_sub(state.now_ns))
        };
        match core.below(4) {
            _ if stalled_ns > 0 => core.sleep_in(self.process, Duration::from_nanos(stalled_ns)),
            0 => self.yield_now(),
            _ => core.sleep_in(self.process, Duration::from_nanos(core.below(longest_ns))),
        }
    }

    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> Arc<dyn SimulatedTask> {
        match self.core.upgrade() {
            Some(core) => core.spawn_boxed(self.process, name, task),
            None => Arc::new(AbortableTask { core: Weak::new(), task: 0 }),
        }
    }
}
