//! Runner of a shard: executes the effects that the engine returns. Recovery does so too, for claims that it ends
//! before their shard serves (`crate::scheduler::recovery`).
//!
//! A run handles, in this order: replies that the store made sendable; the requests in the mailbox, one by one;
//! deadlines, unless requests that arrived before them still wait. Then it hands the changed rows to the journal and
//! publishes the bounds, and only after that new replies are sent or begin to wait for the store. Nothing in a run
//! awaits, so a change of the accounting and of the key directory are one step. Whether the actor or a caller runs it
//! is up to the handle ([`ShardHandle`]).

mod claims;
mod durability;
mod errors;
mod gangs;
mod matching;
mod notices;
mod publish;
mod statistics;
mod unsent_reply;
mod views;
mod workers;

pub(super) use self::workers::reserved_keys;

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;

use tokio::sync::oneshot;

use self::errors::rejection_of;
use self::matching::{MATCHES_MAX, OFFER_AGAIN_MS};
use self::publish::event_of_command;
use self::statistics::AUDIT_INTERVAL_MS;
use self::unsent_reply::UnsentReply;
use super::actor::SpawnArgs;
use super::address::{KeyTicket, PendingWrite, PendingWrites, ShardRef};
use super::command::{Command, HeldVerb, InjectedStep};
use super::event::{
    NotGranted, ReplyIndex, RunOrigin, RunReplies, ShardEvent, ShardLife, ShardSink, UndecidedClaim, UndecidedOutcome,
};
use super::handle::ShardHandle;
use super::pool_context::PoolContext;
use super::reply::{ClaimReply, CommandReply, EndedWorkers, ReplyAddress};
use super::services::ShardServices;
use super::step_injection::ProtocolPoint;
use crate::collections::{HashMap, HashSet};
use crate::engine::{
    AccountingAudit, ClaimGrant, ClaimHandle, Effect, EngineReply, Event, ListingSlice, Shard, ShardCounters, earlier,
};
use crate::events::{PoolEvent, PoolEventKind};
use crate::limits;
use crate::model::request_error::RequestError;
use crate::model::{AckLevel, ClaimId, Fence, Millis, Seq};

/// Consecutive runs after which all requests that were in the mailbox before the first are decided, whatever has
/// arrived since.
const OVERDUE_RUNS_MAX: u32 = limits::MAILBOX_SLOTS.div_ceil(limits::DRAIN_MAX) as u32;

/// Whether a run left due deadlines over: each fires a bounded number, and none while older requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DueDeadlines {
    /// All due deadlines were fired.
    AllFired,
    /// More deadlines are due; the next run continues.
    MoreDue,
}

/// Reply that has not been sent.
pub(super) struct PendingReply {
    content: UnsentReply,
    /// Level at which the reply acknowledges.
    ack: AckLevel,
    /// Sequence number of this shard that must be stored first.
    seq: Seq,
    /// Records of other shards that must be stored first.
    pending_writes: PendingWrites,
    /// Fate of the claim that the reply grants if it cannot be sent.
    unread_grant: UnreadGrant,
    /// Whether too many replies wait already for this one to join them.
    overflow: ReplyOverflow,
    /// Arrival time of the request in nanoseconds, if timed.
    started_ns: Option<NonZeroU64>,
    /// Engine time after which the reply expires.
    until_ms: Millis,
}

/// Fate of a claim whose grant cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnreadGrant {
    /// The reply grants nothing, or whoever asked for it decides.
    Keep,
    /// The claim is rolled back.
    RollBack,
}

/// Whether a reply may wait for the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReplyOverflow {
    MayWait,
    TooMany,
}

impl PendingReply {
    /// Sets the caller of a reply about one claim.
    pub(super) fn address(&mut self, caller: ReplyAddress) {
        self.content.address(caller);
    }

    /// Claim that the reply grants, which is rolled back if it cannot be sent.
    pub(super) fn granted(&self) -> Option<ClaimHandle> {
        match (&self.content, self.unread_grant) {
            (UnsentReply::Claim(_, Ok(ClaimReply::Claim(answer))), UnreadGrant::RollBack) => Some(answer.grant.handle),
            _ => None,
        }
    }

    /// Claim that the reply shows without granting it.
    fn reference(&self) -> Option<ClaimHandle> {
        self.content.reference()
    }

    /// Takes the reply, and leaves one behind that nobody wants.
    fn take(&mut self) -> Self {
        let content =
            std::mem::replace(&mut self.content, UnsentReply::Claim(None, Err(RequestError::DeadlineExceeded)));
        Self { content, pending_writes: std::mem::take(&mut self.pending_writes), ..*self }
    }

    /// Whether this is what [`Self::take`] leaves, which owns nothing.
    fn is_taken(&self) -> bool {
        let is_nothing = matches!(self.content, UnsentReply::Claim(None, Err(RequestError::DeadlineExceeded)));
        is_nothing && self.pending_writes.is_empty()
    }

    /// Adds records that the reply waits for, if it is durable.
    pub(super) fn wait_for(&mut self, writes: PendingWrites) {
        if !writes.is_empty() && self.ack == AckLevel::Durable {
            self.pending_writes.extend(writes.iter().copied());
        }
    }
}

const _: () = assert!(size_of::<PendingReply>() <= 160, "a reply is moved several times");

pub(crate) struct ShardRunner<S: ShardSink> {
    sink: Arc<S>,
    services: Arc<ShardServices>,
    pool: Arc<PoolContext>,
    handle: Arc<ShardHandle<S>>,
    life: ShardLife,
    shard: Shard,
    now_ms: Millis,
    /// Time since the start of the process as this run has read it, in nanoseconds; none: not yet.
    read_ns: Option<u64>,
    /// Sequence number that the store had applied when this run began.
    applied_seq: Seq,
    /// Shards whose store progress this run subscribed to, for replies that wait for their records.
    subscribed_shards: HashSet<ShardRef>,
    /// Runs since deadlines became due.
    overdue_runs: u32,
    keeps_rows: bool,
    /// Level at which replies acknowledge by default, as of this run.
    ack: AckLevel,
    /// Sequence number that must be stored before anything is acknowledged from memory.
    memory_from: Seq,
    /// Whether the service is stopping.
    sealed: bool,
    /// Tickets of the gang members that are being committed.
    member_tickets: HashMap<ClaimId, KeyTicket>,
    /// Keys that are reserved for claims of the worker's report that is being handled.
    report_tickets: Vec<(ClaimId, KeyTicket)>,
    /// Tickets of claims in the mailbox that are not wanted any more.
    cancelled: HashSet<KeyTicket>,
    /// Fences allocated for the current commands.
    fences: std::ops::Range<Fence>,
    /// Tickets of the claims that are being decided; handed back after a panic.
    pub(super) undecided_tickets: Vec<KeyTicket>,
    /// Other requests that are being decided; handed back after a panic.
    pub(super) undecided: Vec<UndecidedClaim>,
    /// Outcome of those if the run panics now.
    undecided_outcome: UndecidedOutcome,
    batch: Vec<Command>,
    effects: Vec<Effect>,
    /// Last state of the claim that the engine is about to end without its holder.
    retained: Option<Box<ClaimGrant>>,
    /// Decisions of this run that concern the layer above.
    events: Vec<ShardEvent>,
    /// Workers of which something came free, and that the claims which wait have not been offered yet.
    freed: VecDeque<u32>,
    /// Whether the last run matched as many claims as it may, so that more may be left.
    matches_left: bool,
    /// Whether what came free could not be offered when it was last tried, because no grant could be recorded.
    is_matching_blocked: bool,
    /// Replies decided in this run.
    new_replies: Vec<PendingReply>,
    /// Claims that were rolled back and whose rows are not handed over yet.
    rolled_back: Vec<(ClaimId, Fence)>,
    /// Replies that wait for the store, by sequence number.
    awaiting_store: VecDeque<PendingReply>,
    /// Replies whose own record is stored and that wait for another shard's.
    awaiting_other_shards: Vec<PendingReply>,
    /// Keys that were freed here and whose record the store may lack.
    pending_ends: VecDeque<(Seq, ClaimId)>,
    published_counters: ShardCounters,
    /// Version of the published counters of the lifecycle, if any.
    published_lifecycle: Option<u64>,
    /// Version of the published accounting, if any.
    published_accounting: Option<u64>,
    audit: AccountingAudit,
    audited_ms: Millis,
    /// Claims whose grant was sent, and requests to release, in this run.
    created: u64,
    releases: u64,
    /// Whether a claim of this run was timed.
    timed: bool,
    /// Whether events of the pool are recorded.
    watched: bool,
    /// Events of this run for the watchers.
    pending_events: Vec<PoolEvent>,
    /// Version of the published capacities, if any.
    published_capacities: Option<u64>,
}

impl<S: ShardSink> ShardRunner<S> {
    /// Creates the runner of a shard that is about to serve, hands over what recovery changed, and publishes its bounds.
    pub(super) fn new(spawn: SpawnArgs<S>, life: ShardLife) -> Self {
        let SpawnArgs { sink, services, pool, handle: shard_handle, shard, pending_ends } = spawn;
        let mut runner = Self {
            keeps_rows: shard_handle.outbox.wants_rows(),
            ack: AckLevel::Durable,
            memory_from: 0,
            sealed: false,
            member_tickets: HashMap::default(),
            report_tickets: Vec::new(),
            cancelled: HashSet::default(),
            published_counters: shard.counters(),
            published_lifecycle: None,
            published_accounting: None,
            audit: AccountingAudit::new(&shard),
            sink,
            services,
            pool,
            handle: shard_handle,
            life,
            shard,
            now_ms: 0,
            read_ns: None,
            applied_seq: 0,
            subscribed_shards: HashSet::default(),
            overdue_runs: 0,
            fences: 0..0,
            undecided_tickets: Vec::new(),
            undecided: Vec::new(),
            undecided_outcome: UndecidedOutcome::Undone,
            batch: Vec::new(),
            effects: Vec::new(),
            retained: None,
            events: Vec::new(),
            freed: VecDeque::new(),
            matches_left: false,
            is_matching_blocked: false,
            new_replies: Vec::new(),
            rolled_back: Vec::new(),
            awaiting_store: VecDeque::new(),
            awaiting_other_shards: Vec::new(),
            pending_ends,
            audited_ms: 0,
            created: 0,
            releases: 0,
            timed: false,
            watched: false,
            pending_events: Vec::new(),
            published_capacities: None,
        };
        if !runner.keeps_rows {
            runner.shard.stop_recording_rows();
        }
        // Ends of claims during recovery, on whose records replies may wait: a panic of the first run must not undo them.
        runner.append_rows();
        runner.publish();
        if runner.pool.queue_state.has_waiting() {
            runner.shard.note_all_freed();
        }
        runner
    }

    /// Number of the life of the shard.
    pub(super) const fn life(&self) -> ShardLife {
        self.life
    }

    /// Outcome of the requests that were being decided when this life ended.
    pub(super) const fn undecided_outcome(&self) -> UndecidedOutcome {
        self.undecided_outcome
    }

    /// State of the shard.
    pub(super) const fn engine(&self) -> &Shard {
        &self.shard
    }

    /// Runs once: handles the mailbox, then `command`, which bypassed it. Effects of the run are added to `work`.
    pub(super) fn run(&mut self, command: &mut Option<Command>, work: &mut S::Work) -> DueDeadlines {
        self.now_ms = self.services.clock.engine_ms();
        self.read_ns = None;
        self.shard.set_wall_clock(self.services.clock.unix_ahead_ms());
        self.refresh_watched();
        if self.keeps_rows {
            self.send_stored_replies();
            self.update_ack_mode();
        }
        while let Some(notice) = self.handle.pop_notice() {
            self.on_notice(notice);
        }
        let taken_count = if self.handle.has_requests() { self.run_mailbox(work) } else { 0 };
        ProtocolPoint::MailboxDrained.reach();
        if let Some(command) = command.take() {
            self.execute_single(command, work);
        }
        if !self.cancelled.is_empty() && taken_count < limits::DRAIN_MAX {
            // What was cancelled in the mailbox is decided. A claim that is still on its way is granted and rolled back.
            self.cancelled.clear();
        }
        // Deadlines set in this run lie in the future, so the time computed by the last run holds.
        let due = match self.handle.is_due(self.now_ms) {
            true => self.fire_deadlines(taken_count),
            false => DueDeadlines::AllFired,
        };
        self.finish_run(work);
        if std::mem::take(&mut self.matches_left) { DueDeadlines::MoreDue } else { due }
    }

    /// Handles the requests in the mailbox, as many as one run may, and returns how many.
    #[inline(never)]
    fn run_mailbox(&mut self, work: &mut S::Work) -> usize {
        let mut commands = std::mem::take(&mut self.batch);
        let taken_count = self.handle.drain_mailbox(limits::DRAIN_MAX, &mut commands);
        self.refresh_watched();
        self.prepare_batch(&commands);
        commands.drain(..).for_each(|command| self.execute(command, work));
        self.batch = commands;
        taken_count
    }

    /// Executes a command that bypassed the mailbox, prepared like those of [`Self::prepare_batch`] without looking
    /// ahead.
    #[inline]
    fn execute_single(&mut self, command: Command, work: &mut S::Work) {
        match command {
            Command::Claim(call) => {
                self.undecided_tickets.push(call.ticket);
                self.fences = self.services.allocate_fences(1).map_or(0..0, |first| first..first + 1);
                self.record_queue_wait(call.started_ns);
                self.match_first(work);
                self.claim(call);
            }
            Command::Operation(operation) if !matches!(operation.verb, HeldVerb::Resize(_)) => {
                self.record_queue_wait(operation.started_ns);
                self.operate(operation);
            }
            command => {
                self.prepare_batch(std::slice::from_ref(&command));
                self.execute(command, work);
            }
        }
    }

    /// Fires due deadlines after a run that took `taken_count` requests. Requests that arrived before the deadlines go
    /// first, because a renewal among them was in time: none are left if the run took fewer than it may, or after
    /// [`OVERDUE_RUNS_MAX`] runs.
    fn fire_deadlines(&mut self, taken_count: usize) -> DueDeadlines {
        self.overdue_runs += 1;
        if taken_count < limits::DRAIN_MAX || self.overdue_runs >= OVERDUE_RUNS_MAX {
            self.overdue_runs = 0;
            self.apply(Event::Tick);
        }
        // Only the engine's deadlines count here; other due work is done at the end of the run.
        match self.shard.next_tick_ms() {
            Some(at_ms) if at_ms <= self.now_ms => DueDeadlines::MoreDue,
            _ => DueDeadlines::AllFired,
        }
    }

    /// Allocates fences for the commands. They have left the mailbox, so the fences are above all that their keys ever
    /// had.
    fn prepare_batch(&mut self, commands: &[Command]) {
        let claims: u64 = commands.iter().map(|command| self.note_undecided(command)).sum();
        self.fences = match claims {
            0 => 0..0,
            n => self.services.allocate_fences(n).map_or(0..0, |first| first..first + n),
        };
        if commands.len() > 1 {
            let affinities = commands.iter().flat_map(Command::claim_calls).map(|call| call.affinity);
            self.shard.prefetch(commands.iter().flat_map(Command::handles), affinities);
        }
        self.record_queue_wait(commands.iter().find_map(started_ns));
    }

    fn record_queue_wait(&self, started_ns: Option<NonZeroU64>) {
        if let Some(started_ns) = started_ns {
            let waited_ns = self.services.clock.mono_ns().saturating_sub(started_ns.get());
            self.pool.metrics.queue_wait_seconds.record(waited_ns);
        }
    }

    /// Notes what a panic in the middle of the command leaves undecided. Returns the number of fences that the command
    /// may need.
    fn note_undecided(&mut self, command: &Command) -> u64 {
        let calls = command.claim_calls();
        match calls {
            [] => command.add_undecided(&mut self.undecided),
            [call] => self.undecided_tickets.push(call.ticket),
            calls => self.undecided_tickets.extend(calls.iter().map(|call| call.ticket)),
        }
        calls.len() as u64
    }

    fn execute(&mut self, command: Command, work: &mut S::Work) {
        match command {
            Command::Claim(call) => {
                self.match_first(work);
                self.claim(call);
            }
            Command::Claims(calls) => {
                self.match_first(work);
                self.shard.begin_batch();
                calls.into_iter().for_each(|call| self.claim(call));
                self.shard.end_batch();
            }
            Command::Reacquire(call) => self.reacquire(call),
            Command::Operation(operation) => self.operate_after_match(operation, work),
            Command::Operations(operations) => {
                operations.into_iter().for_each(|operation| self.operate_after_match(operation, work));
            }
            command => self.execute_rare(command),
        }
    }

    /// Executes the commands that are not about claims and their holders. Apart from the others, because its large
    /// frame would cost every claim.
    #[cold]
    #[inline(never)]
    fn execute_rare(&mut self, command: Command) {
        match command {
            Command::Claim(_) | Command::Claims(_) | Command::Reacquire(_) => unreachable!("executed by the caller"),
            Command::Operation(_) | Command::Operations(_) => unreachable!("executed by the caller"),
            Command::ReplyWhenStored(unstored) => self.reject_when_stored(*unstored),
            Command::Gang(call) => self.gang(*call),
            Command::Reserve(call) => self.reserve(call),
            Command::SurveyVictims(survey) => self.survey_victims(&survey),
            Command::SurveyTenant(survey) => self.survey_tenant(&survey),
            Command::EvictClaims(claims) => {
                let releasing_ms = self.pool.spec.load().releasing_ms;
                let now_ms = self.deadline_start_ms();
                self.shard.evict_claims(&claims, releasing_ms, now_ms);
            }
            Command::Relinquish(handle) => drop(self.apply(Event::Relinquish { handle })),
            Command::FindClaim(id) => self.find_claim(id),
            Command::Register(workers) => self.register_all(workers),
            Command::Heartbeat(workers) => {
                for (id, heartbeat, keys, reply) in workers {
                    self.heartbeat(id, heartbeat, keys, reply);
                }
            }
            Command::CommandWorker(id, verb, reply) => {
                self.record_worker_change(&id.clone(), event_of_command(verb), |run| {
                    let answer = run.decide(Event::WorkerCommand { id, command: verb });
                    run.reply_worker_command(reply, answer);
                });
            }
            Command::ClearWorkers(reply) => {
                let answer = self.decide(Event::ClearAll);
                self.reply_clear(reply, &answer);
            }
            Command::Seal(reply) => self.seal(reply),
            Command::DeleteWorker(id, reply) => {
                self.record_worker_change(&id.clone(), Some(PoolEventKind::Deleted), |run| {
                    let answer = run.decide(Event::Delete { id });
                    run.reply_delete(reply, &answer);
                });
            }
            Command::GetWorker(id, reply) => {
                let outcome = self.get_worker(&id);
                self.answer_command(reply, outcome);
            }
            Command::ListWorkers(from, limit, reply) => {
                let workers = self.shard.workers_from(from, limit);
                self.answer_command(reply, Ok(workers));
            }
            Command::ListClaims(from, limit, sieve, reply) => {
                let claims = self.list_claims(from, limit, &sieve);
                self.answer_command(reply, Ok(claims));
            }
            // A caller that has left needs no reply.
            Command::Report(reply) => drop(reply.send(Ok(self.report()))),
            Command::IdleLongest(limit, reply) => drop(reply.send(Ok(self.shard.idle_longest(limit)))),
            Command::Preview(query, reply) => drop(reply.send(self.preview(&query))),
            Command::Survey(query, reply) => drop(reply.send(Ok(self.survey(&query)))),
            Command::SnapshotRows(from, bytes, to) => self.snapshot_rows(from, bytes, to),
            Command::EndWorkers(from, reply) => self.end_workers(from, reply),
            Command::Inject(InjectedStep(step)) => step(&mut self.shard),
        }
    }

    fn snapshot_rows(&mut self, from: u32, bytes: usize, to: oneshot::Sender<(Vec<u8>, Option<u32>)>) {
        let mut rows = Vec::with_capacity(bytes + bytes / 8);
        let next = self.shard.snapshot_rows(from, bytes, &mut rows);
        // The rows must be handed over before the snapshot arrives: it replaces only older rows.
        self.append_rows();
        let _ = to.send((rows, next));
    }

    /// Time from which a deadline that a caller is promised counts. Since the last tick more time may have passed than
    /// between two ticks, if the process stood still.
    #[inline(never)]
    fn deadline_start_ms(&mut self) -> Millis {
        let clock = &self.services.clock;
        clock.engine_at_ms(*self.read_ns.get_or_insert_with(|| clock.mono_ns()))
    }

    /// Lets the engine decide an event and executes its effects. Returns the reply, if the event asks for one.
    #[inline]
    fn apply(&mut self, event: Event) -> Option<EngineReply> {
        self.apply_at(event, self.now_ms)
    }

    #[inline]
    fn apply_at(&mut self, event: Event, now_ms: Millis) -> Option<EngineReply> {
        let reply = self.shard.handle_event(event, now_ms, &mut self.effects);
        if !self.effects.is_empty() {
            self.execute_effects();
        }
        reply
    }

    fn execute_effects(&mut self) {
        // From the end, because a list of one is the rule.
        self.effects.reverse();
        while let Some(effect) = self.effects.pop() {
            self.execute_effect(effect);
        }
    }

    fn execute_effect(&mut self, effect: Effect) {
        match effect {
            Effect::ClaimEnded { id, fence, end, worker, times } => {
                self.record_ended(&id, fence, times, end, worker);
                self.record_end(id, fence);
            }
            Effect::WorkerLost { worker } => self.record_lost(worker),
            Effect::WorkerDeleted { worker } => self.record_deleted(worker),
            Effect::RetainEnded { grant, .. } => self.retained = Some(Box::new(grant)),
            Effect::ClaimAdopted { id, handle } => self.adopted(id, handle),
            Effect::ClaimCommitted { id, handle } => self.committed(id, handle),
        }
    }

    /// Lets the engine decide an event that it always answers.
    #[inline]
    fn decide(&mut self, event: Event) -> EngineReply {
        self.apply(event).expect("R1: the engine answers every request")
    }

    /// Lets the engine decide a request from which a deadline counts. Apart from [`Self::decide`], which claims and releases
    /// take: it reads the clock.
    #[inline(never)]
    fn decide_with_deadline(&mut self, event: Event) -> EngineReply {
        let now_ms = self.deadline_start_ms();
        self.apply_at(event, now_ms).expect("R1: the engine answers every request")
    }

    fn record_end(&mut self, id: ClaimId, fence: Fence) {
        let write = self.keeps_rows.then(|| PendingWrite { shard: self.handle.shard, seq: self.shard.seq() });
        if let Some(write) = write {
            self.pending_ends.push_back((write.seq, id.clone()));
        }
        let retained = self.retained.take();
        debug_assert!(
            retained.as_ref().is_none_or(|grant| grant.handle.fence == fence),
            "the next end is that claim's"
        );
        self.events.push(ShardEvent::Ended { id, fence, retained, write, reply: None });
    }

    /// Ends a run: rows, bounds, events, replies, in this order.
    fn finish_run(&mut self, work: &mut S::Work) {
        if self.keeps_rows {
            self.note_stored_ends();
        }
        self.settle(work, MATCHES_MAX);
        let mut decided_seq = self.shard.seq();
        // A panic from here on leaves no claim undecided.
        self.undecided_tickets.clear();
        self.undecided.clear();
        self.send_new_replies();
        if self.has_waiting_replies() {
            self.expire_replies();
        }
        // Claims whose replies could not be sent were rolled back. What came free by that may serve others at once.
        while self.shard.seq() != decided_seq {
            decided_seq = self.settle_roll_backs(work);
        }
        self.update_counters();
        self.publish_events();
        self.handle.set_answers_waiting(self.awaiting_store.len());
        self.handle.set_next_tick(self.next_tick_ms());
    }

    /// Settles what was rolled back, and sends the replies that this causes. Returns the sequence number up to which
    /// everything is settled.
    #[cold]
    fn settle_roll_backs(&mut self, work: &mut S::Work) -> Seq {
        self.settle(work, MATCHES_MAX);
        let settled_seq = self.shard.seq();
        self.undecided_tickets.clear();
        self.send_new_replies();
        settled_seq
    }

    /// Engine time before which a run would find nothing due.
    fn next_tick_ms(&self) -> Option<Millis> {
        let mut next = self.shard.next_tick_ms();
        if self.has_unoffered() {
            next = earlier(next, Some(self.now_ms + OFFER_AGAIN_MS));
        }
        if self.audit.is_pending(&self.shard) {
            next = earlier(next, Some(self.audited_ms + AUDIT_INTERVAL_MS));
        }
        if self.has_waiting_replies() {
            let others = self.awaiting_other_shards.iter().map(|reply| reply.until_ms).min();
            next = earlier(next, earlier(self.awaiting_store.front().map(|reply| reply.until_ms), others));
        }
        next
    }

    /// Delivers the events of the run to the layer above. Must follow the publication of the bounds: a claim that
    /// begins to wait afterwards finds what came free.
    #[inline]
    fn deliver(&mut self, work: &mut S::Work) {
        if !self.events.is_empty() {
            let origin = self.origin();
            self.sink.deliver(origin, &mut self.events, &mut RunReplies::new(&mut self.new_replies), work);
            self.events.clear();
        }
        self.undecided_outcome = UndecidedOutcome::Undone;
    }

    fn origin(&self) -> RunOrigin {
        RunOrigin { shard: self.handle.shard, life: self.life, now_ms: self.now_ms }
    }

    #[inline]
    fn append_rows(&mut self) {
        // From here on a panic cannot revive the claims that were rolled back.
        self.rolled_back.clear();
        let shard = &mut self.shard;
        if !self.keeps_rows {
            if shard.has_changed_gangs() {
                shard.discard_changes();
            }
        } else if shard.has_rows() {
            self.undecided_outcome = UndecidedOutcome::Unknown;
            self.handle.outbox.append(shard.seq(), shard.take_header(), |rows| shard.take_rows(rows));
        }
    }

    /// Ends workers and their claims from an ordinal on, as many as one run may. Rows need not be deleted one by one: the
    /// store forgets the whole shard.
    fn end_workers(&mut self, from: u32, reply: CommandReply<EndedWorkers>) {
        let ListingSlice { rows, next } = self.shard.workers_from(from, usize::MAX);
        for (_, worker) in rows {
            self.apply(Event::Delete { id: worker.registration.spec.id.clone() });
        }
        self.append_rows();
        let _ = reply.send(Ok(EndedWorkers { next }));
    }
}

/// Arrival time of the first request in the command, if it is timed.
fn started_ns(command: &Command) -> Option<NonZeroU64> {
    let call = command.claim_calls().first().map(|call| call.started_ns);
    call.or_else(|| command.held_operations().first().map(|operation| operation.started_ns)).flatten()
}
