//! The only way into a shard: a bounded mailbox, and one right to run the shard. Outlives the actor: after a panic the
//! requests in the mailbox wait for the next one.
//!
//! A caller that pushes while nobody runs the shard runs it inline: the state of an idle shard is one lock away, and a
//! task switch to its actor costs ten times as much. Callers that arrive meanwhile leave their requests in the
//! mailbox, and the runner includes them (flat combining: Hendler, Incze, Shavit and Tzafrir, 2010). Work without a
//! caller is the actor's: progress of the store, deadlines, and whatever a run left over. So are requests while many
//! replies wait for the store: their replies would wait too, so they are batched into one run.

mod rejection;

use parking_lot::{Mutex, MutexGuard, RwLock};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use futures::future::{BoxFuture, FutureExt as _};
use ractor::ActorRef;
use tokio::sync::oneshot;

use crate::collections::HashMap;
use crate::engine::{ClaimDisclosure, ClaimHandle, ReservationId, Shard, ShardConfig, UnschedulableSummary};
use crate::metrics::{PoolMetrics, ShardState};
use crate::model::request_error::{RequestError, UnavailableReason};
use crate::model::{ClaimId, Fence, Millis, UnreadReply, UnschedulableReason};
use crate::persist::journal::{Outbox, RowSource};
use crate::shard::actor::ActorMessage;
use crate::shard::address::{KeyTicket, ShardRef};
use crate::shard::command::Command;
use crate::shard::counters::RunnerCounters;
use crate::shard::event::{ShardLife, ShardSink, UndecidedClaim, UndecidedRequests};
use crate::shard::mailbox::ShardMailbox;
use crate::shard::notice::{OfferedWorkers, ShardNotice};
use crate::shard::paused_shard::{PausableShard, PausedShard};
use crate::shard::reason_cells::ReasonCells;
use crate::shard::runner::{DueDeadlines, ShardRunner};
use crate::shard::schedule::RunSchedule;
use crate::shard::services::ShardServices;
use crate::shard::step_injection::{ProtocolPoint, PushChoice, choose_for_push};

/// Consecutive runs by one caller, after which the actor takes over.
const RUNS_MAX: usize = 4;
/// Number of replies waiting for the store from which requests are batched.
const BATCH_MIN: usize = 16;

/// Mode in which a pushed command is run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RunMode {
    /// Inline on the pushing thread, if no other thread runs the shard.
    Inline,
    /// Left to the actor of the shard, which is woken.
    Actor,
}

/// Work that a run leaves over. Unless the shard is asleep, the caller keeps the right to run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunEnd {
    /// No work is left: the next push runs the shard, or wakes it.
    Asleep,
    /// Requests, notices or changes arrived meanwhile.
    MoreRequests,
    /// More deadlines are due than one run fires.
    MoreDeadlines,
}

/// Reason why a command was refused.
pub type PushRejection = UnavailableReason;

/// Command that a shard did not take.
#[derive(Debug)]
pub struct RejectedCommand {
    /// Command as it was pushed.
    pub command: Command,
    /// Reason of the rejection.
    pub reason: PushRejection,
}

impl RejectedCommand {
    /// Boxed, because it is rare and larger than what a push returns otherwise.
    fn new(command: Command, reason: PushRejection) -> Box<Self> {
        Box::new(Self { command, reason })
    }
}

/// Handle of a shard, shared by all callers.
pub struct ShardHandle<S: ShardSink> {
    /// Pool number and index of the shard.
    pub shard: ShardRef,
    /// Rows of the shard on their way to the store.
    pub outbox: Arc<Outbox>,
    mailbox: CachePadded<ShardMailbox>,
    schedule: CachePadded<RunSchedule>,
    state: AtomicU8,
    reason: Mutex<Option<String>>,
    actor: RwLock<Option<ActorRef<ActorMessage>>>,
    /// State of the shard. Locked by whoever has the right to run it ([`RunSchedule`]), so nobody waits here except at
    /// the end of a life.
    runner: Mutex<Option<ShardRunner<S>>>,
    /// Notices for the next run. Not in the mailbox, which may be full: an undelivered claim would be held for ever.
    notices: SegQueue<ShardNotice>,
    /// Engine time before which a wake-up would find nothing due; `u64::MAX` if nothing is pending.
    next_tick_ms: AtomicU64,
    /// Number of replies that wait for the store, as of the last run.
    answers_waiting: AtomicUsize,
    /// Number of the life that runs now, or ran last.
    life: AtomicU32,
    /// Requests that were being decided when the shard panicked; its supervisor hands them back.
    undecided: Mutex<(UndecidedRequests, Vec<UndecidedClaim>)>,
    /// Disclosure of claims that could be rolled back when the shard panicked; the next life still may.
    revocable: Mutex<HashMap<Fence, ClaimDisclosure>>,
    restarts: Mutex<RestartHistory>,
    /// Difference between accounting and claims, as of the last audit.
    accounting_mismatch: AtomicU64,
    /// Unschedulable workers, by each reason that applies, as of the last run.
    unschedulable: ReasonCells,
    /// Idle unschedulable workers, by the first reason that applies.
    unschedulable_idle: ReasonCells,
    /// Workers that may still report lost claims, as of the last run.
    unreconciled: AtomicUsize,
    /// Workers that are suspect because a claim was evicted from them and not released in time.
    unreleased_evictions: AtomicUsize,
    metrics: Arc<PoolMetrics>,
    /// Counters of the shard, added up for its pool.
    pub counters: RunnerCounters,
    services: Arc<ShardServices>,
    /// Layer above, for commands that nobody will decide.
    sink: Weak<S>,
}

#[derive(Default)]
struct RestartHistory {
    total: u64,
    recent: Vec<Millis>,
}

impl<S: ShardSink> std::fmt::Debug for ShardHandle<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardHandle").field("shard", &self.shard).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl<S: ShardSink> ShardHandle<S> {
    /// Creates a handle without an actor, which refuses commands until one serves.
    #[must_use]
    pub fn new(
        shard: ShardRef,
        outbox: Arc<Outbox>,
        metrics: Arc<PoolMetrics>,
        services: &Arc<ShardServices>,
        sink: &Arc<S>,
    ) -> Arc<Self> {
        services.add_outbox(shard, &outbox);
        let handle = Arc::new(Self {
            shard,
            outbox,
            mailbox: CachePadded::new(ShardMailbox::default()),
            schedule: CachePadded::new(RunSchedule::default()),
            state: AtomicU8::new(ShardState::Loading as u8),
            reason: Mutex::new(None),
            actor: RwLock::new(None),
            runner: Mutex::new(None),
            notices: SegQueue::new(),
            next_tick_ms: AtomicU64::new(u64::MAX),
            answers_waiting: AtomicUsize::new(0),
            life: AtomicU32::new(0),
            undecided: Mutex::default(),
            revocable: Mutex::default(),
            restarts: Mutex::default(),
            accounting_mismatch: AtomicU64::new(0),
            unschedulable: ReasonCells::default(),
            unschedulable_idle: ReasonCells::default(),
            unreconciled: AtomicUsize::new(0),
            unreleased_evictions: AtomicUsize::new(0),
            metrics,
            counters: RunnerCounters::default(),
            services: Arc::clone(services),
            sink: Arc::downgrade(sink),
        });
        let source: Weak<dyn RowSource> = Arc::downgrade(&handle) as Weak<dyn RowSource>;
        handle.outbox.attach(source);
        handle
    }

    /// Pushes a command and works off what it causes, as [`Self::push_into`] does.
    ///
    /// # Errors
    /// Fails like [`Self::push_into`].
    pub fn push(&self, command: Command) -> Result<(), Box<RejectedCommand>> {
        self.with_work(|work| self.push_into(command, work))
    }

    /// Pushes a command, and runs the shard inline if nobody runs it, unless many replies wait for the store. What the
    /// run causes is added to `work`.
    ///
    /// # Errors
    /// Returns the command and the reason: the shard does not serve, or its mailbox is full.
    pub fn push_into(&self, command: Command, work: &mut S::Work) -> Result<(), Box<RejectedCommand>> {
        let choice = choose_for_push();
        if choice == PushChoice::Full {
            return Err(self.refuse_as_full(command));
        }
        let is_for_actor = choice == PushChoice::Actor || self.should_batch();
        self.enqueue(command, if is_for_actor { RunMode::Actor } else { RunMode::Inline }, work)
    }

    /// Does something, and then what it causes.
    pub(super) fn with_work<T>(&self, step: impl FnOnce(&mut S::Work) -> T) -> T {
        let mut work = S::Work::default();
        let result = step(&mut work);
        self.carry_out(&mut work);
        result
    }

    fn carry_out(&self, work: &mut S::Work) {
        if let Some(sink) = self.sink.upgrade() {
            sink.carry_out(work);
        }
    }

    /// Whether so many replies wait for the store that requests should be batched: the actor lets them accumulate and
    /// decides them in one run.
    pub(super) fn should_batch(&self) -> bool {
        self.answers_waiting.load(Ordering::Relaxed) >= BATCH_MIN
    }

    pub(super) fn set_answers_waiting(&self, answers: usize) {
        self.answers_waiting.store(answers, Ordering::Relaxed);
    }

    /// Pushes a command and leaves it to the actor.
    ///
    /// # Errors
    /// Returns the command and the reason: the shard does not serve, or its mailbox is full.
    pub fn post(&self, command: Command) -> Result<(), Box<RejectedCommand>> {
        self.with_work(|work| self.enqueue(command, RunMode::Actor, work))
    }

    #[cold]
    fn refuse_as_full(&self, command: Command) -> Box<RejectedCommand> {
        crate::reached!("mailbox: full");
        self.metrics.queue_rejections.increment(1);
        RejectedCommand::new(command, UnavailableReason::Overloaded)
    }

    #[inline]
    fn enqueue(&self, command: Command, mode: RunMode, work: &mut S::Work) -> Result<(), Box<RejectedCommand>> {
        if !self.is_serving() {
            return Err(RejectedCommand::new(command, self.unavailable_reason()));
        }
        let mut command = Some(command);
        if mode == RunMode::Inline && self.schedule.wake_needed() {
            self.run_inline(&mut command, work);
        } else if let Some(command) = command {
            self.enqueue_in_mailbox(command, mode, work)?;
        }
        if !self.is_serving() && matches!(self.state(), ShardState::Stopped | ShardState::Refused) {
            // The shard stopped between the check and the push: its mailbox will not be drained otherwise.
            self.reject_mailbox(work);
        }
        Ok(())
    }

    #[inline(never)]
    fn enqueue_in_mailbox(
        &self,
        command: Command,
        mode: RunMode,
        work: &mut S::Work,
    ) -> Result<(), Box<RejectedCommand>> {
        if let Err(command) = self.mailbox.push(command) {
            return Err(self.refuse_as_full(command));
        }
        if self.schedule.wake_needed() {
            match mode {
                RunMode::Inline => self.run_inline(&mut None, work),
                RunMode::Actor => self.wake_actor(),
            }
        }
        Ok(())
    }

    /// Pushes a command and works off what it causes; rejects it if the shard does not take it.
    pub fn push_or_reject(&self, command: Command) {
        self.with_work(|work| self.push_or_reject_into(command, work));
    }

    /// Pushes a command, or rejects it. What that causes is added to `work`.
    pub fn push_or_reject_into(&self, command: Command, work: &mut S::Work) {
        if let Err(rejected) = self.push_into(command, work) {
            self.reject(rejected.command, &RequestError::Unavailable(rejected.reason), work);
        }
    }

    /// Makes the shard handle a change: wakes its actor, unless it runs or is about to.
    pub fn wake(&self) {
        if self.schedule.wake_needed_for_change() {
            self.wake_actor();
        }
    }

    /// Offers workers once more to the claims that wait, before any request in the mailbox is decided. A shard that is being
    /// loaded offers all of them anyway.
    pub fn offer_again(&self, workers: OfferedWorkers) {
        if self.is_serving() {
            self.notices.push(ShardNotice::Offer(workers));
            self.wake();
        }
    }

    /// Offers workers as [`Self::offer_again`] does, and runs the shard as [`Self::push_into`] does. What the run causes is
    /// added to `work`.
    pub fn offer_again_into(&self, workers: OfferedWorkers, work: &mut S::Work) {
        if self.is_serving() {
            self.notices.push(ShardNotice::Offer(workers));
            if self.schedule.wake_needed_for_change() {
                match self.should_batch() {
                    true => self.wake_actor(),
                    false => self.run_inline(&mut None, work),
                }
            }
        }
    }

    /// Cancels a reservation, so that its worker is free for all claims.
    pub fn cancel_reservation(&self, id: ReservationId) {
        self.notices.push(ShardNotice::CancelReservation(id));
        self.wake();
    }

    /// Cancels a claim that may still be in the mailbox, so that it takes no worker from others. Wakes nobody: the run
    /// that decides the claim sees it first, unless the claim is not in the mailbox yet.
    pub fn cancel(&self, ticket: KeyTicket) {
        self.notices.push(ShardNotice::Cancelled(ticket));
    }

    /// Reports that nobody will read a reply about a claim, which is rolled back if that leaves it to nobody.
    pub fn discard_reply(&self, id: ClaimId, handle: ClaimHandle, life: ShardLife, reply: UnreadReply) {
        self.notices.push(ShardNotice::Unread { id, handle, life, reply });
        self.wake();
    }

    /// Ends a claim whose key is held elsewhere under a higher fence.
    pub fn relinquish(&self, handle: ClaimHandle, life: ShardLife) {
        self.notices.push(ShardNotice::Relinquish { handle, life });
        self.wake();
    }

    /// Number of the life that runs now, or ran last.
    #[must_use]
    pub fn life(&self) -> ShardLife {
        self.life.load(Ordering::Acquire)
    }

    /// Notes that replies that grant these claims were sent at `at_ms`. Handled by the next run, in time for `due_ms`,
    /// the first of their deadlines: a run of its own would cost a batch more than its claims do.
    pub fn notify_reply_sent(&self, claims: Vec<ClaimHandle>, at_ms: Millis, due_ms: Millis) {
        self.notices.push(ShardNotice::ReplySent(claims, at_ms));
        // A run in progress checks the notices again before it sleeps, so it cannot move this later unnoticed.
        self.next_tick_ms.fetch_min(due_ms, Ordering::SeqCst);
    }

    /// Changes the settings of the pool. Not in the mailbox, where a loading or busy shard would lose them.
    pub fn set_config(&self, config: ShardConfig) {
        if matches!(self.state(), ShardState::Serving | ShardState::Loading) {
            self.notices.push(ShardNotice::Config(config));
            self.wake();
        }
    }

    #[inline]
    pub(super) fn pop_notice(&self) -> Option<ShardNotice> {
        // Nearly always empty, and this is cheaper to see than to pop nothing.
        if self.notices.is_empty() { None } else { self.notices.pop() }
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

    /// Number of runs of the shard.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.counters.runs.total()
    }

    /// Number of requests in the mailbox.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.mailbox.len()
    }

    /// Whether the shard serves, and if not, its state.
    #[must_use]
    pub fn state(&self) -> ShardState {
        ShardState::ALL[self.state.load(Ordering::SeqCst) as usize]
    }

    fn is_serving(&self) -> bool {
        self.state.load(Ordering::SeqCst) == ShardState::Serving as u8
    }

    /// Explanation of a state other than serving.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.reason.lock().clone()
    }

    /// Number of restarts after a panic.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts.lock().total
    }

    /// Difference between accounting and claims; must be 0.
    #[must_use]
    pub fn accounting_mismatch(&self) -> u64 {
        self.accounting_mismatch.load(Ordering::Relaxed)
    }

    /// Number of workers for which this reason to be unschedulable applies.
    #[must_use]
    pub fn unschedulable(&self, reason: UnschedulableReason) -> u32 {
        self.unschedulable.get(reason)
    }

    /// Number of idle workers whose first reason to be unschedulable is this one.
    #[must_use]
    pub fn unschedulable_idle(&self, reason: UnschedulableReason) -> u32 {
        self.unschedulable_idle.get(reason)
    }

    pub(super) fn set_unschedulable(&self, summary: &UnschedulableSummary) {
        self.unschedulable.set(&summary.by_reason);
        self.unschedulable_idle.set(&summary.by_first_reason);
    }

    /// Number of workers that may still report lost claims.
    pub fn unreconciled(&self) -> usize {
        self.unreconciled.load(Ordering::Relaxed)
    }

    pub(crate) fn set_unreconciled(&self, workers: usize) {
        self.unreconciled.store(workers, Ordering::Relaxed);
    }

    /// Number of workers that are suspect because a claim was evicted from them and not released in time.
    #[must_use]
    pub fn unreleased_evictions(&self) -> usize {
        self.unreleased_evictions.load(Ordering::Relaxed)
    }

    pub(super) fn set_unreleased_evictions(&self, workers: usize) {
        self.unreleased_evictions.store(workers, Ordering::Relaxed);
    }

    pub(super) fn set_accounting_mismatch(&self, mismatch: u64) {
        self.accounting_mismatch.store(mismatch, Ordering::Relaxed);
    }

    /// Changes the state. A stopped shard stays stopped, even if a restart was in progress.
    pub(crate) fn set_state(&self, state: ShardState, reason: Option<String>) {
        let mut explanation = self.reason.lock();
        if self.state() != ShardState::Stopped {
            *explanation = reason;
            self.state.store(state as u8, Ordering::SeqCst);
        }
    }

    /// Counts a restart and returns the number within the window.
    pub(super) fn count_restart(&self, now_ms: Millis, window_ms: Millis) -> usize {
        self.metrics.shard_restarts.increment(1);
        let mut restarts = self.restarts.lock();
        restarts.total += 1;
        restarts.recent.retain(|&at| at + window_ms > now_ms);
        restarts.recent.push(now_ms);
        restarts.recent.len()
    }

    pub(crate) fn is_run_by(&self, actor: ractor::ActorId) -> bool {
        self.actor.read().as_ref().is_some_and(|own| own.get_id() == actor)
    }

    /// Stops the actor and waits until it has ended.
    pub(crate) async fn stop(&self) {
        self.set_state(ShardState::Stopped, None);
        let actor = self.actor.write().take();
        if let Some(actor) = actor {
            // An actor that is gone counts as stopped.
            let _ = actor.stop_and_wait(None, None).await;
        }
        // A panic that met the stop has no supervisor to hand back what it left undecided.
        self.hand_back_after_panic();
        self.reject_all();
    }

    /// Makes a new actor serve. It must check the mailbox once, whatever the last one left.
    pub(super) fn serve(&self, actor: ActorRef<ActorMessage>) {
        self.set_state(ShardState::Serving, None);
        if self.state() == ShardState::Stopped {
            return actor.stop(None);
        }
        *self.actor.write() = Some(actor);
        self.schedule.reset();
        self.wake_actor();
    }

    /// Hands the right to run the shard to the actor.
    pub(super) fn wake_actor(&self) {
        if let Some(actor) = &*self.actor.read() {
            // The supervisor already knows if the actor is gone.
            let _ = actor.send_message(ActorMessage::Run);
        }
    }

    /// Uses the right to run on this thread.
    fn run_inline(&self, command: &mut Option<Command>, work: &mut S::Work) {
        // The caller must not fail with the shard: a panic is passed to the actor, which has a supervisor.
        let mut ends = (0..RUNS_MAX).map(|_| self.run(command, work));
        match catch_unwind(AssertUnwindSafe(|| ends.find(|end| *end != RunEnd::MoreRequests))) {
            Ok(Some(RunEnd::Asleep)) => {}
            // Deadlines are left to the actor: a caller does not wait for those of others.
            Ok(Some(RunEnd::MoreDeadlines | RunEnd::MoreRequests) | None) => self.wake_actor(),
            Err(panic) => {
                // Before the next request: requests that arrive until the supervisor acts must not wait for the next
                // life.
                let (serving, loading) = (ShardState::Serving as u8, ShardState::Loading as u8);
                let _ = self.state.compare_exchange(serving, loading, Ordering::SeqCst, Ordering::SeqCst);
                ProtocolPoint::PanicCaught.reach();
                self.remove_runner(self.life());
                // The run had not come to it.
                self.leave_to_next_life(command, work);
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                if let Some(actor) = &*self.actor.read() {
                    let _ = actor.send_message(ActorMessage::Panicked(text));
                }
            }
        }
    }

    /// Runs the shard as its actor, once, and works off what the run causes.
    pub(super) fn run_as_actor(&self) -> RunEnd {
        let mut work = S::Work::default();
        let end = catch_unwind(AssertUnwindSafe(|| self.run(&mut None, &mut work)));
        // What the run had delivered before a panic must be carried out all the same.
        self.carry_out(&mut work);
        end.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs the shard once; the caller must have the right to.
    #[inline]
    pub(super) fn run(&self, command: &mut Option<Command>, work: &mut S::Work) -> RunEnd {
        let mut runner_slot = self.lock_runner();
        let Some(runner) = &mut *runner_slot else {
            crate::reached!("shard: a command arrives between two lives");
            self.leave_to_next_life(command, work);
            return RunEnd::Asleep;
        };
        self.schedule.begin_run();
        let due = runner.run(command, work);
        drop(runner_slot);
        if due == DueDeadlines::MoreDue {
            return RunEnd::MoreDeadlines;
        }
        // Only what a run always removes; what it may or may not act on is a change ([`super::schedule`]).
        let is_idle = || self.mailbox.is_empty() && self.notices.is_empty();
        if self.schedule.must_run_again(is_idle) { RunEnd::MoreRequests } else { RunEnd::Asleep }
    }

    /// Puts a command that no run took into the mailbox. The next life begins by draining it; after the last one it is
    /// emptied by [`Self::reject_all`], or by whoever pushed the command.
    #[cold]
    fn leave_to_next_life(&self, command: &mut Option<Command>, work: &mut S::Work) {
        if let Some(Err(command)) = command.take().map(|command| self.mailbox.push(command)) {
            self.reject(command, &RequestError::Unavailable(UnavailableReason::Overloaded), work);
        }
    }

    /// Takes the right to run, if nobody has it: requests stay in the mailbox until the guard is dropped. For tests
    /// that inject a competing step.
    pub(crate) fn pause(self: &Arc<Self>) -> Option<PausedShard> {
        self.schedule.wake_needed().then(|| PausedShard::of(Arc::clone(self) as Arc<dyn PausableShard>))
    }

    /// Reads the state of the shard, unless it runs or is between two lives. For tests that compare it with others.
    pub(crate) fn look<T>(&self, read: impl FnOnce(&Shard) -> T) -> Option<T> {
        self.runner.try_lock()?.as_ref().map(|runner| read(runner.engine()))
    }

    /// Installs the runner of a shard that was started or restarted.
    pub(super) fn install_runner(&self, runner: ShardRunner<S>) {
        *self.lock_runner() = Some(runner);
    }

    /// Removes the state at the end of this life. Waits for a run to end. Whoever notices the end late removes nothing of
    /// the next life.
    pub(super) fn remove_runner(&self, life: ShardLife) {
        let ended = self.lock_runner().take_if(|runner| runner.life() == life);
        let Some(mut runner) = ended else { return };
        {
            let mut undecided = self.undecided.lock();
            undecided.0.tickets.append(&mut runner.undecided_tickets);
            undecided.0.outcome = undecided.0.outcome.max(runner.undecided_outcome());
            for claim in runner.undecided.drain(..) {
                match claim {
                    UndecidedClaim::Report(id, ticket) => undecided.0.reports.push((id, ticket)),
                    other => undecided.1.push(other),
                }
            }
        }
        // Read from a state that a panic left behind. That is sound: a reply is counted before it is sent.
        runner.drop_references();
        *self.revocable.lock() = runner.revocable();
        for (id, fence, reply) in runner.undelivered() {
            self.notices.push(ShardNotice::Undelivered(id, fence, reply));
        }
        // The supervisor hands back what the life left undecided. A shard that was stopped has none, and `stop` may have
        // looked before the panic had left anything.
        if matches!(self.state(), ShardState::Stopped | ShardState::Refused) {
            self.hand_back_after_panic();
        }
    }

    /// Disclosure of claims that could be rolled back when the last life ended.
    pub(crate) fn take_revocable(&self) -> HashMap<Fence, ClaimDisclosure> {
        std::mem::take(&mut self.revocable.lock())
    }

    fn lock_runner(&self) -> MutexGuard<'_, Option<ShardRunner<S>>> {
        self.runner.lock()
    }

    /// Whether there are requests in the mailbox.
    pub(super) fn has_requests(&self) -> bool {
        !self.mailbox.is_empty()
    }

    /// Removes up to `max` requests from the mailbox and returns how many.
    pub(super) fn drain_mailbox(&self, max: usize, into: &mut Vec<Command>) -> usize {
        self.mailbox.drain(max, into)
    }

    pub(super) fn set_next_tick(&self, at_ms: Option<Millis>) {
        // Stored before the last check of the notices: a later notice moves this time forward for its own deadline.
        self.next_tick_ms.store(at_ms.unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Begins a new life, and returns its number.
    pub(super) fn begin_life(&self) -> ShardLife {
        self.life.fetch_add(1, Ordering::AcqRel) + 1
    }
}

impl<S: ShardSink> PausableShard for ShardHandle<S> {
    fn depth(&self) -> usize {
        self.queue_depth()
    }

    fn resume(&self) {
        self.wake_actor();
    }
}

impl<S: ShardSink> RowSource for ShardHandle<S> {
    fn on_progress(&self) {
        self.wake();
    }

    fn run_on_progress(&self) {
        if self.schedule.wake_needed_for_change() {
            self.with_work(|work| self.run_inline(&mut None, work));
        }
    }

    fn snapshot_rows(&self, from: u32, bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>> {
        let (to, snapshot) = oneshot::channel();
        let pushed = self.post(Command::SnapshotRows(from, bytes, to)).is_ok();
        async move { if pushed { snapshot.await.ok() } else { None } }.boxed()
    }
}
