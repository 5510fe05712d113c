//! The only way into a shard: a bounded mailbox, and one right to run the shard. Outlives the actor: when that panics,
//! what waits in the ring waits for the next one.
//!
//! Whoever pushes first while nobody runs the shard runs it, there and then: the state of an idle shard is a lock
//! away, a task switch to its actor is ten times that. Whoever comes meanwhile leaves the request in the ring, and the
//! runner takes it along (flat combining: Hendler, Incze, Shavit and Tzafrir, 2010). What nobody stands there for, the
//! store's progress, deadlines, work that a run left behind, is the actor's. So are requests while many answers wait
//! for the store: theirs would wait too, so they gather and share a run.

mod refuse;

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use futures::future::{BoxFuture, FutureExt as _};
use ractor::ActorRef;
use tokio::sync::oneshot;

use super::actor::Wake;
use super::command::Command;
use super::counters::Tally;
use super::mailbox::Mailbox;
use super::notice::Notice;
use super::reason_cells::ReasonCells;
use super::runner::{DueDeadlines, Running};
use super::schedule::Scheduled;
use super::seized::Seized;
use crate::admission::dispatch::Dispatch;
use crate::admission::keys::{ShardRef, Ticket};
use crate::engine::{Barred, Place, Rules};
use crate::metrics::{PoolMetrics, ShardState};
use crate::model::rejection::{Refusal, Unavailable};
use crate::model::{ClaimId, Fence, Millis, UnschedulableReason};
use crate::persist::journal::{Outbox, Source};

/// Runs in a row by one who pushed; then the actor goes on.
const RUNS_MAX: usize = 4;
/// From so many answers that wait for the store on, what is asked is decided many at a time.
const COMBINE_MIN: usize = 16;

thread_local! {
    /// This thread runs a shard. What it pushes to others is theirs to run: a run within a run would have no bound.
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

/// What a run leaves to do. Unless the shard is asleep, the right to run it is still the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunEnd {
    /// Nothing: the next push runs the shard, or wakes it.
    Asleep,
    /// Requests, notices or news that came meanwhile.
    MoreRequests,
    /// Deadlines that are due, beyond those that one run carries out.
    MoreDeadlines,
}

/// Why a command was not taken.
pub type Why = Unavailable;

/// A shard's handle.
pub struct ShardPort {
    /// Which shard of this process.
    pub shard: ShardRef,
    /// Its rows on their way to the store.
    pub outbox: Arc<Outbox>,
    ring: CachePadded<Mailbox>,
    scheduled: CachePadded<Scheduled>,
    state: AtomicU8,
    reason: Mutex<Option<String>>,
    actor: RwLock<Option<ActorRef<Wake>>>,
    /// The shard. Locked by who has the right to run it ([`Scheduled`]), so nobody waits here but the end of its life.
    running: Mutex<Option<Running>>,
    /// Tickets of claims that wait no longer and for which a worker may be kept here. Not in the ring, which may be full: a worker must
    /// not stay kept for nobody.
    unkept: SegQueue<u64>,
    /// Notices for the next run. Not in the ring, which may be full: a claim without a reservation would be held for ever.
    notices: SegQueue<Notice>,
    /// Engine time before which a wake would find nothing due; `u64::MAX`: never.
    next_tick_ms: AtomicU64,
    /// Answers that wait for the store, after the last run.
    answers_waiting: AtomicUsize,
    /// Tickets of the claims that a life was deciding when it ended in a panic: its supervisor gives them up.
    in_hand: Mutex<Vec<(ClaimId, Ticket)>>,
    /// Claims of which a life had told nobody when it ended in a panic: the next one may still roll them back.
    untold: Mutex<HashSet<Fence>>,
    restarts: Mutex<Restarts>,
    /// Difference between ledger and claims, as the actor last saw it.
    drift: AtomicU64,
    /// Workers that are not offered, by each reason that applies, after the last run.
    barred: ReasonCells,
    /// Those of them that hold no claim, by the first reason that applies.
    barred_free: ReasonCells,
    /// Workers that may name lost claims, as the actor last saw them.
    unvouched: AtomicUsize,
    metrics: Arc<PoolMetrics>,
    /// What it did, for the counters of its pool.
    pub tally: Tally,
    /// For the tickets in commands that nobody will decide.
    dispatch: Weak<Dispatch>,
}

#[derive(Default)]
struct Restarts {
    total: u64,
    recent: Vec<Millis>,
}

impl std::fmt::Debug for ShardPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardPort").field("shard", &self.shard).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl ShardPort {
    /// A handle without an actor: it refuses until one serves.
    #[must_use]
    pub fn new(shard: ShardRef, outbox: Arc<Outbox>, metrics: Arc<PoolMetrics>, dispatch: &Arc<Dispatch>) -> Arc<Self> {
        let port = Arc::new(Self {
            shard,
            outbox,
            ring: CachePadded::new(Mailbox::default()),
            scheduled: CachePadded::new(Scheduled::default()),
            state: AtomicU8::new(ShardState::Loading as u8),
            reason: Mutex::new(None),
            actor: RwLock::new(None),
            running: Mutex::new(None),
            unkept: SegQueue::new(),
            notices: SegQueue::new(),
            next_tick_ms: AtomicU64::new(u64::MAX),
            answers_waiting: AtomicUsize::new(0),
            in_hand: Mutex::new(Vec::new()),
            untold: Mutex::default(),
            restarts: Mutex::default(),
            drift: AtomicU64::new(0),
            barred: ReasonCells::default(),
            barred_free: ReasonCells::default(),
            unvouched: AtomicUsize::new(0),
            metrics,
            tally: Tally::default(),
            dispatch: Arc::downgrade(dispatch),
        });
        let source: Weak<dyn Source> = Arc::downgrade(&port) as Weak<dyn Source>;
        port.outbox.attach(source);
        port
    }

    /// Puts a command into the ring, and runs the shard if nobody does: at once, unless many answers wait for the store.
    ///
    /// # Errors
    /// The command back, and why: the shard does not serve, or the ring is full.
    pub fn push(&self, command: Command) -> Result<(), (Command, Why)> {
        self.put(command, !self.combines())
    }

    /// So many answers wait for the store that more of their kind must be on their way, to wait in their turn: the actor
    /// lets them come and decides them in one run.
    pub(super) fn combines(&self) -> bool {
        self.answers_waiting.load(Ordering::Relaxed) >= COMBINE_MIN
    }

    pub(super) fn set_answers_waiting(&self, answers: usize) {
        self.answers_waiting.store(answers, Ordering::Relaxed);
    }

    /// Puts a command into the ring, and leaves it to the actor.
    ///
    /// # Errors
    /// The command back, and why: the shard does not serve, or the ring is full.
    pub fn post(&self, command: Command) -> Result<(), (Command, Why)> {
        self.put(command, false)
    }

    fn put(&self, command: Command, here: bool) -> Result<(), (Command, Why)> {
        if self.state() != ShardState::Serving {
            return Err((command, self.silence()));
        }
        // A run within a run would have no bound.
        let here = here && !RUNS.get();
        if here && self.scheduled.wake_needed() {
            self.run_here(Some(command));
        } else {
            if let Err(command) = self.ring.push(command) {
                self.metrics.ring_refusals.increment(1);
                return Err((command, Unavailable::Overloaded));
            }
            if self.scheduled.wake_needed() {
                if here { self.run_here(None) } else { self.cast() }
            }
        }
        if matches!(self.state(), ShardState::Stopped | ShardState::Refused) {
            // It stopped between the look and the push: nobody will drain the ring, so whoever comes does.
            self.refuse_all();
        }
        Ok(())
    }

    /// Pushes a command that carries a plain reply, or answers it.
    pub fn ask(&self, command: Command) {
        if let Err((command, why)) = self.push(command) {
            self.refuse(command, &Refusal::Unavailable(why));
        }
    }

    /// Has the shard look at what changed around it: by its actor, unless somebody runs it or will.
    pub fn wake(&self) {
        if self.scheduled.wake_needed_for_news() {
            self.cast();
        }
    }

    /// Nobody waits with this ticket any more: a worker that is kept for it is anybody's.
    pub fn unkeep(&self, ticket: u64) {
        self.unkept.push(ticket);
        self.wake();
    }

    pub(super) fn pop_unkept(&self) -> Option<u64> {
        self.unkept.pop()
    }

    /// The claim's grant will reach nobody: it is to be rolled back.
    pub fn roll_back(&self, id: ClaimId, fence: Fence) {
        self.notices.push(Notice::Undelivered(id, fence));
        self.wake();
    }

    /// Answers that grant these claims left at `at_ms`. Looked at by the next run, and in time for `due_ms`, the first of
    /// their deadlines: a run for its own sake would cost a batch more than its claims do.
    pub fn depart(&self, claims: Vec<Place>, at_ms: Millis, due_ms: Millis) {
        self.notices.push(Notice::Departed(claims, at_ms));
        // A run that is under way looks at the notices once more before it sleeps, so it cannot move this later unseen.
        self.next_tick_ms.fetch_min(due_ms, Ordering::SeqCst);
    }

    /// The pool's specification changed. Not in the ring, where a shard that is loaded or busy would lose it.
    pub fn set_rules(&self, rules: Rules) {
        if matches!(self.state(), ShardState::Serving | ShardState::Loading) {
            self.notices.push(Notice::Rules(rules));
            self.wake();
        }
    }

    pub(super) fn pop_notice(&self) -> Option<Notice> {
        self.notices.pop()
    }

    /// Wakes the actor if something is due at `now_ms`.
    pub fn tick(&self, now_ms: Millis) {
        if self.is_due(now_ms) {
            self.wake();
        }
    }

    /// Whether something was due at `now_ms` when the last run ended.
    pub(super) fn is_due(&self, now_ms: Millis) -> bool {
        self.next_tick_ms.load(Ordering::Relaxed) <= now_ms
    }

    /// Runs of the shard so far.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.tally.runs.total()
    }

    /// Requests that wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.ring.len()
    }

    /// Whether it answers.
    #[must_use]
    pub fn state(&self) -> ShardState {
        ShardState::ALL[self.state.load(Ordering::SeqCst) as usize]
    }

    /// Why it does not.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Times it was restarted after a panic.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// Difference between its ledger and its claims; must be 0.
    #[must_use]
    pub fn drift(&self) -> u64 {
        self.drift.load(Ordering::Relaxed)
    }

    /// Workers that are not offered for this reason, among others.
    #[must_use]
    pub fn barred(&self, reason: UnschedulableReason) -> u32 {
        self.barred.get(reason)
    }

    /// Workers that are not offered and hold no claim, and of which this is the first reason.
    #[must_use]
    pub fn barred_free(&self, reason: UnschedulableReason) -> u32 {
        self.barred_free.get(reason)
    }

    pub(super) fn set_barred(&self, barred: &Barred) {
        self.barred.set(&barred.by_each);
        self.barred_free.set(&barred.by_first);
    }

    /// Workers that may name lost claims and for which nothing has spoken yet.
    pub fn unvouched(&self) -> usize {
        self.unvouched.load(Ordering::Relaxed)
    }

    pub(crate) fn set_unvouched(&self, workers: usize) {
        self.unvouched.store(workers, Ordering::Relaxed);
    }

    pub(super) fn set_drift(&self, drift: u64) {
        self.drift.store(drift, Ordering::Relaxed);
    }

    /// Changes the state. One that is stopped stays so, whoever was still about to bring it back.
    pub(crate) fn set_state(&self, state: ShardState, reason: Option<String>) {
        let mut why = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state() != ShardState::Stopped {
            *why = reason;
            self.state.store(state as u8, Ordering::SeqCst);
        }
    }

    /// Counts a restart and returns how many there were within the window.
    pub(super) fn count_restart(&self, now_ms: Millis, window_ms: Millis) -> usize {
        self.metrics.shard_restarts.increment(1);
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        restarts.total += 1;
        restarts.recent.retain(|&at| at + window_ms > now_ms);
        restarts.recent.push(now_ms);
        restarts.recent.len()
    }

    pub(super) fn is_run_by(&self, actor: ractor::ActorId) -> bool {
        self.actor.read().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|own| own.get_id() == actor)
    }

    /// Stops the actor, and waits until it has.
    pub(crate) async fn stop(&self) {
        self.set_state(ShardState::Stopped, None);
        let actor = self.actor.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(actor) = actor {
            // An actor that is gone already is as good as stopped.
            let _ = actor.stop_and_wait(None, None).await;
        }
        self.refuse_all();
    }

    /// A (new) actor serves from now on. It must look at the ring once, whatever the last one left.
    pub(super) fn serve(&self, actor: ActorRef<Wake>) {
        self.set_state(ShardState::Serving, None);
        if self.state() == ShardState::Stopped {
            return actor.stop(None);
        }
        *self.actor.write().unwrap_or_else(PoisonError::into_inner) = Some(actor);
        self.scheduled.reset();
        self.cast();
    }

    /// Hands the right to run to the actor.
    pub(super) fn cast(&self) {
        if let Some(actor) = &*self.actor.read().unwrap_or_else(PoisonError::into_inner) {
            // An actor that is gone has a supervisor that knows.
            let _ = actor.send_message(Wake::Run);
        }
    }

    /// Uses the right to run, on this thread.
    fn run_here(&self, mut command: Option<Command>) {
        // Whoever asks must not fall with the shard: its panic is the actor's, which has a supervisor.
        let mut ends = (0..RUNS_MAX).map(|_| self.run(command.take()));
        match catch_unwind(AssertUnwindSafe(|| ends.find(|end| *end != RunEnd::MoreRequests))) {
            Ok(Some(RunEnd::Asleep)) => {}
            // Deadlines are the actor's: whoever asks does not wait for those of others.
            Ok(Some(RunEnd::MoreDeadlines | RunEnd::MoreRequests) | None) => self.cast(),
            Err(panic) => {
                // Before anybody else asks: what comes until the supervisor knows must not wait for the next life.
                let (serving, loading) = (ShardState::Serving as u8, ShardState::Loading as u8);
                let _ = self.state.compare_exchange(serving, loading, Ordering::SeqCst, Ordering::SeqCst);
                self.end_life();
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                if let Some(actor) = &*self.actor.read().unwrap_or_else(PoisonError::into_inner) {
                    let _ = actor.send_message(Wake::Panicked(text));
                }
            }
        }
    }

    /// Runs the shard once; the caller has the right to.
    pub(super) fn run(&self, command: Option<Command>) -> RunEnd {
        struct Flag(bool);
        impl Drop for Flag {
            fn drop(&mut self) {
                RUNS.set(self.0);
            }
        }
        let mut life = self.life();
        let Some(running) = &mut *life else {
            // Between two lives: the next one begins with a look at the ring. After the last, somebody empties it.
            if let Some(Err(command)) = command.map(|command| self.ring.push(command)) {
                self.refuse(command, &Refusal::Unavailable(Unavailable::Overloaded));
            }
            return RunEnd::Asleep;
        };
        let _flag = Flag(RUNS.replace(true));
        self.scheduled.take_news();
        let due = running.run(command);
        drop(life);
        if due == DueDeadlines::Left {
            return RunEnd::MoreDeadlines;
        }
        // What a run takes out in any case; what it may or may not act on is news ([`super::schedule`]).
        let is_idle = || self.ring.is_empty() && self.unkept.is_empty() && self.notices.is_empty();
        if self.scheduled.sleep_refused(is_idle) { RunEnd::MoreRequests } else { RunEnd::Asleep }
    }

    /// Takes the right to run, if nobody has it: what is pushed stays in the ring until the guard is dropped. For tests
    /// that inject what competes.
    pub(crate) fn seize(self: &Arc<Self>) -> Option<Seized> {
        self.scheduled.wake_needed().then(|| Seized::of(Arc::clone(self)))
    }

    /// The shard has a state from now on.
    pub(super) fn begin_life(&self, running: Running) {
        *self.life() = Some(running);
    }

    /// The shard has none any more. Waits for a run to end.
    pub(super) fn end_life(&self) {
        let ended = self.life().take();
        if let Some(mut running) = ended {
            let mut in_hand = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
            in_hand.append(&mut running.in_hand);
            // Read from a state that a panic left behind, which is sound: whatever tells of a claim marks it first.
            *self.untold.lock().unwrap_or_else(PoisonError::into_inner) = running.untold();
            running.undelivered().into_iter().for_each(|(id, fence)| self.notices.push(Notice::Undelivered(id, fence)));
        }
    }

    /// Claims of which the last life had told nobody.
    pub(crate) fn take_untold(&self) -> HashSet<Fence> {
        std::mem::take(&mut self.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn life(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes requests out of the mailbox, at most so many, and says how many.
    pub(super) fn take(&self, most: usize, into: &mut Vec<Command>) -> usize {
        self.ring.take(most, into)
    }

    pub(super) fn set_next_tick(&self, at_ms: Option<Millis>) {
        // Before the last look at the notices: whoever brings one after that moves this time for its own deadline.
        self.next_tick_ms.store(at_ms.unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Tickets of claims whose decision ended in a panic.
    pub(super) fn empty_hand(&self) -> Vec<(ClaimId, Ticket)> {
        std::mem::take(&mut self.in_hand.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Source for ShardPort {
    fn progressed(&self) {
        self.wake();
    }

    fn dump(&self, from: u32, bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>> {
        let (to, dumped) = oneshot::channel();
        let pushed = self.post(Command::Dump(from, bytes, to)).is_ok();
        async move { if pushed { dumped.await.ok() } else { None } }.boxed()
    }
}
