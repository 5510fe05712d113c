//! The only way into a shard: a bounded mailbox, and one right to run the shard. Outlives the actor: when that panics,
//! what waits in the ring waits for the next one.
//!
//! Whoever pushes first while nobody runs the shard runs it, there and then: the state of an idle shard is a lock
//! away, a task switch to its actor is ten times that. Whoever comes meanwhile leaves the request in the ring, and the
//! runner takes it along (flat combining: Hendler, Incze, Shavit and Tzafrir, 2010). What nobody stands there for, the
//! store's progress, deadlines, work that a run left behind, is the actor's. So are requests while many answers wait
//! for the store: theirs would wait too, so they gather and share a run.

mod reject;

use parking_lot::{Mutex, MutexGuard, RwLock};
use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use futures::future::{BoxFuture, FutureExt as _};
use ractor::ActorRef;
use tokio::sync::oneshot;

use super::actor::ActorMessage;
use super::command::Command;
use super::counters::RunnerCounters;
use super::mailbox::ShardMailbox;
use super::notice::ShardNotice;
use super::paused_shard::PausedShard;
use super::reason_cells::ReasonCells;
use super::runner::{DueDeadlines, ShardRunner};
use super::schedule::RunSchedule;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::key_directory::{KeyTicket, ShardRef};
use crate::engine::{ClaimHandle, ShardConfig, UnschedulableSummary};
use crate::metrics::{PoolMetrics, ShardState};
use crate::model::request_error::{RequestError, UnavailableReason};
use crate::model::{ClaimId, Fence, Millis, UnschedulableReason};
use crate::persist::journal::{Outbox, RowSource};

/// Runs in a row by one who pushed; then the actor goes on.
const RUNS_MAX: usize = 4;
/// From so many answers that wait for the store on, what is asked is decided many at a time.
const BATCH_MIN: usize = 16;

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
pub type PushRejection = UnavailableReason;

/// A shard's handle.
pub struct ShardHandle {
    /// Which shard of this process.
    pub shard: ShardRef,
    /// Its rows on their way to the store.
    pub outbox: Arc<Outbox>,
    mailbox: CachePadded<ShardMailbox>,
    schedule: CachePadded<RunSchedule>,
    state: AtomicU8,
    reason: Mutex<Option<String>>,
    actor: RwLock<Option<ActorRef<ActorMessage>>>,
    /// The shard. Locked by who has the right to run it ([`RunSchedule`]), so nobody waits here but the end of its life.
    runner: Mutex<Option<ShardRunner>>,
    /// Tickets of claims that wait no longer and for which a worker may be kept here. Not in the ring, which may be full: a worker must
    /// not stay kept for nobody.
    cancelled_reservations: SegQueue<u64>,
    /// Notices for the next run. Not in the ring, which may be full: a claim without a reservation would be held for ever.
    notices: SegQueue<ShardNotice>,
    /// Engine time before which a wake would find nothing due; `u64::MAX`: never.
    next_tick_ms: AtomicU64,
    /// Answers that wait for the store, after the last run.
    answers_waiting: AtomicUsize,
    /// Tickets of the claims that a life was deciding when it ended in a panic: its supervisor gives them up.
    in_hand: Mutex<Vec<(ClaimId, KeyTicket)>>,
    /// Claims of which a life had told nobody when it ended in a panic: the next one may still roll them back.
    undisclosed: Mutex<HashSet<Fence>>,
    restarts: Mutex<RestartHistory>,
    /// Difference between ledger and claims, as the actor last saw it.
    accounting_mismatch: AtomicU64,
    /// Workers that are not offered, by each reason that applies, after the last run.
    unschedulable: ReasonCells,
    /// Those of them that hold no claim, by the first reason that applies.
    unschedulable_idle: ReasonCells,
    /// Workers that may name lost claims, as the actor last saw them.
    unreconciled: AtomicUsize,
    metrics: Arc<PoolMetrics>,
    /// What it did, for the counters of its pool.
    pub counters: RunnerCounters,
    /// For the tickets in commands that nobody will decide.
    dispatch: Weak<ClaimDispatcher>,
}

#[derive(Default)]
struct RestartHistory {
    total: u64,
    recent: Vec<Millis>,
}

impl std::fmt::Debug for ShardHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardPort").field("shard", &self.shard).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl ShardHandle {
    /// A handle without an actor: it refuses until one serves.
    #[must_use]
    pub fn new(
        shard: ShardRef,
        outbox: Arc<Outbox>,
        metrics: Arc<PoolMetrics>,
        dispatch: &Arc<ClaimDispatcher>,
    ) -> Arc<Self> {
        let port = Arc::new(Self {
            shard,
            outbox,
            mailbox: CachePadded::new(ShardMailbox::default()),
            schedule: CachePadded::new(RunSchedule::default()),
            state: AtomicU8::new(ShardState::Loading as u8),
            reason: Mutex::new(None),
            actor: RwLock::new(None),
            runner: Mutex::new(None),
            cancelled_reservations: SegQueue::new(),
            notices: SegQueue::new(),
            next_tick_ms: AtomicU64::new(u64::MAX),
            answers_waiting: AtomicUsize::new(0),
            in_hand: Mutex::new(Vec::new()),
            undisclosed: Mutex::default(),
            restarts: Mutex::default(),
            accounting_mismatch: AtomicU64::new(0),
            unschedulable: ReasonCells::default(),
            unschedulable_idle: ReasonCells::default(),
            unreconciled: AtomicUsize::new(0),
            metrics,
            counters: RunnerCounters::default(),
            dispatch: Arc::downgrade(dispatch),
        });
        let source: Weak<dyn RowSource> = Arc::downgrade(&port) as Weak<dyn RowSource>;
        port.outbox.attach(source);
        port
    }

    /// Puts a command into the ring, and runs the shard if nobody does: at once, unless many answers wait for the store.
    ///
    /// # Errors
    /// The command back, and why: the shard does not serve, or the ring is full.
    pub fn push(&self, command: Command) -> Result<(), (Command, PushRejection)> {
        self.enqueue(command, !self.should_batch())
    }

    /// So many answers wait for the store that more of their kind must be on their way, to wait in their turn: the actor
    /// lets them come and decides them in one run.
    pub(super) fn should_batch(&self) -> bool {
        self.answers_waiting.load(Ordering::Relaxed) >= BATCH_MIN
    }

    pub(super) fn set_answers_waiting(&self, answers: usize) {
        self.answers_waiting.store(answers, Ordering::Relaxed);
    }

    /// Puts a command into the ring, and leaves it to the actor.
    ///
    /// # Errors
    /// The command back, and why: the shard does not serve, or the ring is full.
    pub fn post(&self, command: Command) -> Result<(), (Command, PushRejection)> {
        self.enqueue(command, false)
    }

    fn enqueue(&self, command: Command, here: bool) -> Result<(), (Command, PushRejection)> {
        if self.state() != ShardState::Serving {
            return Err((command, self.unavailable_reason()));
        }
        // A run within a run would have no bound.
        let here = here && !RUNS.get();
        if here && self.schedule.wake_needed() {
            self.run_inline(Some(command));
        } else {
            if let Err(command) = self.mailbox.push(command) {
                self.metrics.queue_rejections.increment(1);
                return Err((command, UnavailableReason::Overloaded));
            }
            if self.schedule.wake_needed() {
                if here { self.run_inline(None) } else { self.wake_actor() }
            }
        }
        if matches!(self.state(), ShardState::Stopped | ShardState::Refused) {
            // It stopped between the look and the push: nobody will drain the ring, so whoever comes does.
            self.reject_all();
        }
        Ok(())
    }

    /// Pushes a command that carries a plain reply, or answers it.
    pub fn push_or_reject(&self, command: Command) {
        if let Err((command, why)) = self.push(command) {
            self.reject(command, &RequestError::Unavailable(why));
        }
    }

    /// Has the shard look at what changed around it: by its actor, unless somebody runs it or will.
    pub fn wake(&self) {
        if self.schedule.wake_needed_for_change() {
            self.wake_actor();
        }
    }

    /// Nobody waits with this ticket any more: a worker that is kept for it is anybody's.
    pub fn cancel_reservation(&self, ticket: u64) {
        self.cancelled_reservations.push(ticket);
        self.wake();
    }

    pub(super) fn pop_cancelled_reservation(&self) -> Option<u64> {
        self.cancelled_reservations.pop()
    }

    /// The claim's grant will reach nobody: it is to be rolled back.
    pub fn roll_back(&self, id: ClaimId, fence: Fence) {
        self.notices.push(ShardNotice::Undelivered(id, fence));
        self.wake();
    }

    /// Answers that grant these claims left at `at_ms`. Looked at by the next run, and in time for `due_ms`, the first of
    /// their deadlines: a run for its own sake would cost a batch more than its claims do.
    pub fn notify_reply_sent(&self, claims: Vec<ClaimHandle>, at_ms: Millis, due_ms: Millis) {
        self.notices.push(ShardNotice::ReplySent(claims, at_ms));
        // A run that is under way looks at the notices once more before it sleeps, so it cannot move this later unseen.
        self.next_tick_ms.fetch_min(due_ms, Ordering::SeqCst);
    }

    /// The pool's specification changed. Not in the ring, where a shard that is loaded or busy would lose it.
    pub fn set_rules(&self, rules: ShardConfig) {
        if matches!(self.state(), ShardState::Serving | ShardState::Loading) {
            self.notices.push(ShardNotice::Rules(rules));
            self.wake();
        }
    }

    pub(super) fn pop_notice(&self) -> Option<ShardNotice> {
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
        self.counters.runs.total()
    }

    /// Requests that wait.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.mailbox.len()
    }

    /// Whether it answers.
    #[must_use]
    pub fn state(&self) -> ShardState {
        ShardState::ALL[self.state.load(Ordering::SeqCst) as usize]
    }

    /// Why it does not.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.reason.lock().clone()
    }

    /// Times it was restarted after a panic.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts.lock().total
    }

    /// Difference between its ledger and its claims; must be 0.
    #[must_use]
    pub fn accounting_mismatch(&self) -> u64 {
        self.accounting_mismatch.load(Ordering::Relaxed)
    }

    /// Workers that are not offered for this reason, among others.
    #[must_use]
    pub fn unschedulable(&self, reason: UnschedulableReason) -> u32 {
        self.unschedulable.get(reason)
    }

    /// Workers that are not offered and hold no claim, and of which this is the first reason.
    #[must_use]
    pub fn unschedulable_idle(&self, reason: UnschedulableReason) -> u32 {
        self.unschedulable_idle.get(reason)
    }

    pub(super) fn set_unschedulable(&self, barred: &UnschedulableSummary) {
        self.unschedulable.set(&barred.by_reason);
        self.unschedulable_idle.set(&barred.by_first_reason);
    }

    /// Workers that may name lost claims and for which nothing has spoken yet.
    pub fn unreconciled(&self) -> usize {
        self.unreconciled.load(Ordering::Relaxed)
    }

    pub(crate) fn set_unreconciled(&self, workers: usize) {
        self.unreconciled.store(workers, Ordering::Relaxed);
    }

    pub(super) fn set_accounting_mismatch(&self, drift: u64) {
        self.accounting_mismatch.store(drift, Ordering::Relaxed);
    }

    /// Changes the state. One that is stopped stays so, whoever was still about to bring it back.
    pub(crate) fn set_state(&self, state: ShardState, reason: Option<String>) {
        let mut why = self.reason.lock();
        if self.state() != ShardState::Stopped {
            *why = reason;
            self.state.store(state as u8, Ordering::SeqCst);
        }
    }

    /// Counts a restart and returns how many there were within the window.
    pub(super) fn count_restart(&self, now_ms: Millis, window_ms: Millis) -> usize {
        self.metrics.shard_restarts.increment(1);
        let mut restarts = self.restarts.lock();
        restarts.total += 1;
        restarts.recent.retain(|&at| at + window_ms > now_ms);
        restarts.recent.push(now_ms);
        restarts.recent.len()
    }

    pub(super) fn is_run_by(&self, actor: ractor::ActorId) -> bool {
        self.actor.read().as_ref().is_some_and(|own| own.get_id() == actor)
    }

    /// Stops the actor, and waits until it has.
    pub(crate) async fn stop(&self) {
        self.set_state(ShardState::Stopped, None);
        let actor = self.actor.write().take();
        if let Some(actor) = actor {
            // An actor that is gone already is as good as stopped.
            let _ = actor.stop_and_wait(None, None).await;
        }
        self.reject_all();
    }

    /// A (new) actor serves from now on. It must look at the ring once, whatever the last one left.
    pub(super) fn serve(&self, actor: ActorRef<ActorMessage>) {
        self.set_state(ShardState::Serving, None);
        if self.state() == ShardState::Stopped {
            return actor.stop(None);
        }
        *self.actor.write() = Some(actor);
        self.schedule.reset();
        self.wake_actor();
    }

    /// Hands the right to run to the actor.
    pub(super) fn wake_actor(&self) {
        if let Some(actor) = &*self.actor.read() {
            // An actor that is gone has a supervisor that knows.
            let _ = actor.send_message(ActorMessage::Run);
        }
    }

    /// Uses the right to run, on this thread.
    fn run_inline(&self, mut command: Option<Command>) {
        // Whoever asks must not fall with the shard: its panic is the actor's, which has a supervisor.
        let mut ends = (0..RUNS_MAX).map(|_| self.run(command.take()));
        match catch_unwind(AssertUnwindSafe(|| ends.find(|end| *end != RunEnd::MoreRequests))) {
            Ok(Some(RunEnd::Asleep)) => {}
            // Deadlines are the actor's: whoever asks does not wait for those of others.
            Ok(Some(RunEnd::MoreDeadlines | RunEnd::MoreRequests) | None) => self.wake_actor(),
            Err(panic) => {
                // Before anybody else asks: what comes until the supervisor knows must not wait for the next life.
                let (serving, loading) = (ShardState::Serving as u8, ShardState::Loading as u8);
                let _ = self.state.compare_exchange(serving, loading, Ordering::SeqCst, Ordering::SeqCst);
                self.remove_runner();
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                if let Some(actor) = &*self.actor.read() {
                    let _ = actor.send_message(ActorMessage::Panicked(text));
                }
            }
        }
    }

    /// Runs the shard once; the caller has the right to.
    pub(super) fn run(&self, command: Option<Command>) -> RunEnd {
        struct RunGuard(bool);
        impl Drop for RunGuard {
            fn drop(&mut self) {
                RUNS.set(self.0);
            }
        }
        let mut life = self.lock_runner();
        let Some(running) = &mut *life else {
            // Between two lives: the next one begins with a look at the ring. After the last, somebody empties it.
            if let Some(Err(command)) = command.map(|command| self.mailbox.push(command)) {
                self.reject(command, &RequestError::Unavailable(UnavailableReason::Overloaded));
            }
            return RunEnd::Asleep;
        };
        let _flag = RunGuard(RUNS.replace(true));
        self.schedule.begin_run();
        let due = running.run(command);
        drop(life);
        if due == DueDeadlines::MoreDue {
            return RunEnd::MoreDeadlines;
        }
        // What a run takes out in any case; what it may or may not act on is news ([`super::schedule`]).
        let is_idle = || self.mailbox.is_empty() && self.cancelled_reservations.is_empty() && self.notices.is_empty();
        if self.schedule.must_run_again(is_idle) { RunEnd::MoreRequests } else { RunEnd::Asleep }
    }

    /// Takes the right to run, if nobody has it: what is pushed stays in the ring until the guard is dropped. For tests
    /// that inject what competes.
    pub(crate) fn pause(self: &Arc<Self>) -> Option<PausedShard> {
        self.schedule.wake_needed().then(|| PausedShard::of(Arc::clone(self)))
    }

    /// The shard has a state from now on.
    pub(super) fn install_runner(&self, running: ShardRunner) {
        *self.lock_runner() = Some(running);
    }

    /// The shard has none any more. Waits for a run to end.
    pub(super) fn remove_runner(&self) {
        let ended = self.lock_runner().take();
        if let Some(mut running) = ended {
            let mut in_hand = self.in_hand.lock();
            in_hand.append(&mut running.in_hand);
            // Read from a state that a panic left behind, which is sound: whatever tells of a claim marks it first.
            *self.undisclosed.lock() = running.undisclosed();
            running
                .undelivered()
                .into_iter()
                .for_each(|(id, fence)| self.notices.push(ShardNotice::Undelivered(id, fence)));
        }
    }

    /// Claims of which the last life had told nobody.
    pub(crate) fn take_undisclosed(&self) -> HashSet<Fence> {
        std::mem::take(&mut self.undisclosed.lock())
    }

    fn lock_runner(&self) -> MutexGuard<'_, Option<ShardRunner>> {
        self.runner.lock()
    }

    /// Takes requests out of the mailbox, at most so many, and says how many.
    pub(super) fn drain_mailbox(&self, most: usize, into: &mut Vec<Command>) -> usize {
        self.mailbox.drain(most, into)
    }

    pub(super) fn set_next_tick(&self, at_ms: Option<Millis>) {
        // Before the last look at the notices: whoever brings one after that moves this time for its own deadline.
        self.next_tick_ms.store(at_ms.unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Tickets of claims whose decision ended in a panic.
    pub(super) fn empty_hand(&self) -> Vec<(ClaimId, KeyTicket)> {
        std::mem::take(&mut self.in_hand.lock())
    }
}

impl RowSource for ShardHandle {
    fn on_progress(&self) {
        self.wake();
    }

    fn snapshot_rows(&self, from: u32, bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>> {
        let (to, dumped) = oneshot::channel();
        let pushed = self.post(Command::SnapshotRows(from, bytes, to)).is_ok();
        async move { if pushed { dumped.await.ok() } else { None } }.boxed()
    }
}
