//! Runs a shard: carries out the effects of what the engine decides. Only a recovery does so as well,
//! for claims that it ends before their shard serves (`crate::scheduler::recovery`).
//!
//! One run: answers that waited for the store and may leave now; what is in the mailbox, decided one by one; deadlines,
//! unless requests that came before them still wait; then the changed rows go to the journal, the bounds to the router,
//! and only then the new answers leave, or begin to wait for the store. Nothing in a run awaits, so a ledger change and the directory's step
//! are one. Who runs it, the actor or whoever has just pushed, is the handle's matter ([`ShardHandle`]).

mod claims;
mod durability;
mod errors;
mod gangs;
mod notices;
mod publish;
mod statistics;
mod views;
mod workers;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use self::errors::rejection_of;
use self::publish::event_of_command;
use self::statistics::AUDIT_INTERVAL_MS;
use super::actor::SpawnArgs;
use super::command::{ClaimOp, Command, InjectedStep, PendingClaim};
use super::handle::ShardHandle;
use super::reply::{ReplyPayload, ReplySender, ShardOutcome};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::ended_claims::EndedClaim;
use crate::admission::key_directory::{KeyTicket, PendingWrite, PendingWrites, ShardRef};
use crate::admission::pool_registry::Pool;
use crate::admission::wait_queue::ReservationRequest;
use crate::engine::{
    AccountingAudit, ClaimHandle, Effect, EngineReply, Event, GangAction, ListingSlice, Shard, ShardCounters,
};
use crate::events::{PoolEvent, PoolEventKind};
use crate::limits;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{ClaimId, Fence, Millis, Seq};

/// Runs in a row after which all that stood in the mailbox before the first is decided, whatever has come since.
const OVERDUE_RUNS_MAX: u32 = limits::MAILBOX_SLOTS.div_ceil(limits::DRAIN_MAX) as u32;

/// Whether a run left deadlines that are due: one carries out a bounded number, and none while older requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DueDeadlines {
    /// Every deadline that was due is carried out.
    AllFired,
    /// More are due, and the next run goes on.
    MoreDue,
}

/// Who waits for an answer of the engine.
enum ReplyRoute {
    Claim(Box<PendingClaim>),
    Key(ClaimOp),
    Reply(ReplySender),
    Gang(ReplySender, GangAction),
    Seek(Box<ReservationRequest>),
    Nobody,
}

/// An answer on its way out.
struct PendingReply {
    reply: ReplySender,
    outcome: ShardOutcome,
    /// Leaves when the store has this...
    seq: Seq,
    /// ...and these.
    pending_writes: PendingWrites,
    /// The claim that it grants: given back if it cannot leave.
    granted: Option<ClaimHandle>,
    /// When the claim that it answers came in; 0: it answers none, or one that is not timed.
    started_ns: u64,
    /// Engine time after which it cannot leave as it is.
    until_ms: Millis,
}

pub(crate) struct ShardRunner {
    dispatch: Arc<ClaimDispatcher>,
    pool: Arc<Pool>,
    handle: Arc<ShardHandle>,
    shard: Shard,
    now_ms: Millis,
    /// How far the store was when this run looked.
    applied_seq: Seq,
    /// Shards that this run asked to be told by: answers here speak of records of theirs.
    subscribed_shards: HashSet<ShardRef>,
    /// Runs since the deadlines that are due came.
    overdue_runs: u32,
    keeps_rows: bool,
    /// The pool answers durably, as of this run.
    durable: bool,
    /// The store has to have this before anything is acknowledged from memory.
    memory_from: Seq,
    /// The service stops.
    sealed: bool,
    /// Tickets of keys that may be adopted in the event at hand.
    adoption_tickets: Vec<(ClaimId, KeyTicket)>,
    /// Of the gang that is being committed: the tickets of its members, and what its answer waits for beside this shard.
    members: (HashMap<ClaimId, KeyTicket>, PendingWrites),
    /// Fences drawn for the claims at hand.
    fences: std::ops::Range<Fence>,
    /// Tickets of the claims that are being decided: after a panic they are given up.
    pub(super) in_hand: Vec<(ClaimId, KeyTicket)>,
    batch: Vec<Command>,
    /// Commands that arose from others, in this run.
    follow_ups: VecDeque<Command>,
    effects: Vec<Effect<ReplyRoute>>,
    /// Claims that must not pass those who wait.
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
    must_queue: Vec<Box<PendingClaim>>,
    /// How often room had come when those who wait were last told.
    capacity_epoch: u64,
    /// Claims that found no room here.
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
    unplaced: Vec<Box<PendingClaim>>,
    /// Answers decided in this run.
    new_replies: Vec<PendingReply>,
    /// Claims that were rolled back and whose end is not handed over yet.
    rolled_back: Vec<(ClaimId, Fence)>,
    /// Answers that wait for the store, by sequence number.
    awaiting_store: VecDeque<PendingReply>,
    /// Of them those whose own record is stored and that wait for another shard's.
    awaiting_other_shards: Vec<PendingReply>,
    /// Keys that were freed here, whose record the store may lack.
    pending_ends: VecDeque<(Seq, ClaimId)>,
    published_counters: ShardCounters,
    /// Changes of the workers that are not offered, up to what was published.
    published_unschedulable: u64,
    audit: AccountingAudit,
    audited_ms: Millis,
    /// Claims whose grant left, and requests to release that came, in this run.
    created: u64,
    releases: u64,
    /// A claim of this run was timed.
    timed: bool,
    /// Somebody watches the pool, or did a while ago.
    watched: bool,
    /// What this run has to tell them.
    pending_events: Vec<PoolEvent>,
    /// Version of the ledger whose capacities are published; none yet.
    published_capacities: Option<u64>,
    /// Changes of workers that are in the sum of capacities that was published; none yet.
    published_workers: Option<u64>,
}

impl ShardRunner {
    /// A shard that is about to serve; the router knows at once what it has.
    pub(super) fn new(spawn: SpawnArgs) -> Self {
        let SpawnArgs { dispatch, pool, handle: port, shard, pending_ends: gone } = spawn;
        let mut running = Self {
            keeps_rows: port.outbox.wants_rows(),
            durable: true,
            memory_from: 0,
            sealed: false,
            adoption_tickets: Vec::new(),
            members: (HashMap::new(), PendingWrites::new()),
            published_counters: shard.counters(),
            // None is as it was published.
            published_unschedulable: u64::MAX,
            audit: AccountingAudit::new(&shard),
            dispatch,
            pool,
            handle: port,
            shard,
            now_ms: 0,
            applied_seq: 0,
            subscribed_shards: HashSet::new(),
            overdue_runs: 0,
            fences: 0..0,
            in_hand: Vec::new(),
            batch: Vec::new(),
            follow_ups: VecDeque::new(),
            effects: Vec::new(),
            must_queue: Vec::new(),
            capacity_epoch: u64::MAX,
            unplaced: Vec::new(),
            new_replies: Vec::new(),
            rolled_back: Vec::new(),
            awaiting_store: VecDeque::new(),
            awaiting_other_shards: Vec::new(),
            pending_ends: gone,
            audited_ms: 0,
            created: 0,
            releases: 0,
            timed: false,
            watched: false,
            pending_events: Vec::new(),
            published_capacities: None,
            published_workers: None,
        };
        running.publish();
        running
    }

    /// One run: of what is in the mailbox, then of `command`, which came without it.
    pub(super) fn run(&mut self, command: Option<Command>) -> DueDeadlines {
        self.now_ms = self.dispatch.clock.engine_ms();
        self.shard.set_wall_clock(self.dispatch.clock.unix_ahead_ms());
        self.send_stored_replies();
        self.update_ack_mode();
        while let Some(ticket) = self.handle.pop_cancelled_reservation() {
            self.apply(Event::CancelReservation { ticket });
        }
        while let Some(notice) = self.handle.pop_notice() {
            self.on_notice(notice);
        }
        let mut taken = std::mem::take(&mut self.batch);
        let taken_count = self.handle.drain_mailbox(limits::DRAIN_MAX, &mut taken);
        self.refresh_watched();
        if !taken.is_empty() {
            self.prepare_batch(&taken);
            taken.drain(..).for_each(|command| self.execute_with_follow_ups(command));
        }
        self.batch = taken;
        if let Some(command) = command {
            self.prepare_batch(std::slice::from_ref(&command));
            self.execute_with_follow_ups(command);
        }
        // What this run set is due later than now, so what the last one said holds.
        let due = match self.handle.is_due(self.now_ms) {
            true => self.fire_deadlines(taken_count),
            false => DueDeadlines::AllFired,
        };
        self.finish_run();
        due
    }

    /// Deadlines are due, and this run took so many requests. What had come before them goes first, for a renewal that waits
    /// was in time: that is all if there were fewer than a run takes, and at the latest after [`OVERDUE_RUNS_MAX`] runs.
    fn fire_deadlines(&mut self, taken_count: usize) -> DueDeadlines {
        self.overdue_runs += 1;
        if taken_count < limits::DRAIN_MAX || self.overdue_runs >= OVERDUE_RUNS_MAX {
            self.overdue_runs = 0;
            self.apply(Event::Tick);
        }
        // Of the engine's deadlines alone: what else is due the end of this run sees to.
        match self.shard.next_tick_ms() {
            Some(at_ms) if at_ms <= self.now_ms => DueDeadlines::MoreDue,
            _ => DueDeadlines::AllFired,
        }
    }

    /// Draws fences for what was taken: after it left the ring, so above every fence that its keys ever had.
    fn prepare_batch(&mut self, taken: &[Command]) {
        let claims: u64 = taken.iter().map(Command::fences_needed).sum();
        if claims > 0 {
            self.in_hand.extend(taken.iter().flat_map(Command::claim_items).map(|item| (item.id.clone(), item.ticket)));
        }
        self.fences = match claims {
            0 => 0..0,
            n => self.dispatch.allocate_fences(n).map_or(0..0, |first| first..first + n),
        };
        if taken.len() > 1 {
            let affinities = taken.iter().flat_map(Command::claim_items).map(|item| item.affinity);
            self.shard.prefetch(taken.iter().flat_map(Command::handles), affinities);
        }
        if let Some(started) = taken.iter().find_map(started_ns) {
            let waited = self.dispatch.clock.mono_ns().saturating_sub(started);
            self.pool.metrics.queue_wait_seconds.record(waited);
        }
    }

    fn execute_with_follow_ups(&mut self, command: Command) {
        self.execute(command);
        while let Some(command) = self.follow_ups.pop_front() {
            self.execute(command);
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Claim(item) => self.claim(item),
            Command::Claims(items) => {
                self.shard.begin_batch();
                items.into_iter().for_each(|item| self.claim(item));
                self.shard.end_batch();
            }
            Command::Reacquire(item, place) => {
                let (satisfies, wants) = (item.may_use(self.pool.number), item.accepts());
                self.apply(Event::Reacquire { place, satisfies, wants, to: ReplyRoute::Claim(item) });
            }
            Command::Release(item) => self.release(item),
            Command::Releases(items) => items.into_iter().for_each(|item| self.release(item)),
            Command::Confirm(item) => self.apply_to_held(item, |place, to| Event::Confirm { place, to }),
            Command::GetClaim(item) => self.apply_to_held(item, |place, to| Event::Get { place, to }),
            Command::Renew(item, ttl_ms) => self.apply_to_held(item, |place, to| Event::Renew { place, ttl_ms, to }),
            Command::Resize(item, resources) => self.resize(item, *resources),
            Command::Gang(item) => self.gang(*item),
            Command::Reserve(seek) => self.reserve(seek),
            Command::Relinquish(place) => self.apply(Event::Relinquish { place }),
            Command::BeginRelease(item) => self.begin_release(item),
            // The pool is marked before its workers are counted: whoever comes after the count is refused.
            Command::Register(workers) if self.pool.is_closing() => {
                for (_, reply) in workers {
                    reply.send(Err(RequestError::NotFound(ObjectKind::Pool)));
                }
            }
            Command::Register(workers) => {
                for (registration, reply) in workers {
                    let id = registration.spec.id.clone();
                    self.record_worker_change(&id, Some(PoolEventKind::Registered), |run| {
                        run.register(registration, reply)
                    });
                }
            }
            Command::Heartbeat(workers) => {
                for (id, beat, reply) in workers {
                    self.heartbeat(id, beat, reply);
                }
            }
            Command::CommandWorker(id, verb, reply) => {
                self.record_worker_change(&id.clone(), event_of_command(verb), |run| {
                    run.apply(Event::WorkerCommand { id, command: verb, to: ReplyRoute::Reply(reply) })
                });
            }
            Command::ClearWorkers(reply) => self.apply(Event::ClearAll { to: ReplyRoute::Reply(reply) }),
            Command::Seal(reply) => self.seal(reply),
            Command::DeleteWorker(id, reply) => {
                let what = Some(PoolEventKind::Deleted);
                self.record_worker_change(&id.clone(), what, |run| {
                    run.apply(Event::Delete { id, to: ReplyRoute::Reply(reply) })
                });
            }
            Command::GetWorker(id, reply) => {
                let look = self.shard.find_worker(&id);
                let outcome = look
                    .map(|look| ReplyPayload::Worker { created: false, worker: Box::new(look), revoked: Vec::new() })
                    .ok_or(RequestError::NotFound(ObjectKind::Worker));
                self.answer(reply, outcome, PendingWrites::new(), None);
            }
            Command::ListWorkers(from, limit, reply) => {
                let workers = self.shard.workers_from(from, limit);
                self.answer(reply, Ok(ReplyPayload::Workers(workers)), PendingWrites::new(), None);
            }
            Command::ListClaims(from, limit, sieve, reply) => {
                let outcome = self.list_claims(from, limit, &sieve);
                self.answer(reply, Ok(outcome), PendingWrites::new(), None);
            }
            Command::Report(reply) => {
                let report = self.report();
                reply.send(Ok(ReplyPayload::Report(Box::new(report))));
            }
            Command::IdleLongest(limit, reply) => {
                reply.send(Ok(ReplyPayload::Idle(self.shard.idle_longest(limit))));
            }
            Command::Explain(question, reply) => {
                let outcome = self.explain(&question);
                reply.send(outcome);
            }
            Command::SnapshotRows(from, bytes, to) => {
                let mut rows = Vec::with_capacity(bytes + bytes / 8);
                let next = self.shard.snapshot_rows(from, bytes, &mut rows);
                // What the dump shows must be handed over before the dump arrives: a flip carries only what was.
                self.append_rows();
                let _ = to.send((rows, next));
            }
            Command::EndWorkers(from, reply) => self.end_workers(from, reply),
            Command::Inject(InjectedStep(step)) => step(&mut self.shard),
        }
    }

    fn release(&mut self, item: ClaimOp) {
        self.releases += 1;
        self.apply_to_held(item, |place, to| Event::Release { place, to });
    }

    /// Decides a command about a claim that is held.
    fn apply_to_held(&mut self, mut item: ClaimOp, event: impl FnOnce(ClaimHandle, ReplyRoute) -> Event<ReplyRoute>) {
        self.refresh_handle(&item.id, &mut item.handle);
        self.apply(event(item.handle, ReplyRoute::Key(item)));
    }

    fn apply(&mut self, event: Event<ReplyRoute>) {
        let mut effects = std::mem::take(&mut self.effects);
        self.shard.handle_event(event, self.now_ms, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Reply { to, answer } => self.reply(to, answer),
                Effect::ClaimEnded { id, fence, end, worker, times } => {
                    self.record_ended(&id, fence, times, end, worker);
                    self.record_end(id, fence);
                }
                Effect::WorkerLost { worker } => self.record_lost(worker),
                Effect::WorkerDeleted { worker } => self.record_deleted(worker),
                Effect::RetainEnded { id, grant } => {
                    let ended = EndedClaim { shard: self.handle.shard, pool: self.pool.name.clone(), grant };
                    self.dispatch.ended_claims.insert(id, ended, self.now_ms);
                }
                Effect::ClaimAdopted { id, place } => self.adopted(&id, place),
                Effect::ClaimCommitted { id, place } => self.committed(&id, place),
            }
        }
        self.effects = effects;
    }

    fn record_end(&mut self, id: ClaimId, fence: Fence) {
        let record = self.keeps_rows.then(|| PendingWrite { shard: self.handle.shard, seq: self.shard.seq() });
        self.dispatch.keys.end_claim(&id, fence, record);
        if let Some(record) = record {
            self.pending_ends.push_back((record.seq, id));
        }
    }

    fn reply(&mut self, to: ReplyRoute, answer: EngineReply) {
        match to {
            ReplyRoute::Claim(item) => self.reply_claim(item, answer),
            ReplyRoute::Key(item) => self.reply_key(item, answer),
            ReplyRoute::Gang(reply, act) => self.reply_gang(reply, act, answer),
            ReplyRoute::Reply(reply) => {
                let (outcome, unstored) = self.worker_outcome(answer);
                self.answer(reply, outcome, unstored, None);
            }
            ReplyRoute::Seek(seek) => self.reply_reservation(seek, &answer),
            ReplyRoute::Nobody => {}
        }
    }

    /// The end of a run: rows, bounds, answers, in this order.
    fn finish_run(&mut self) {
        self.append_rows();
        self.publish();
        // Whatever panics from here on panics without a ticket in hand: what is left of them goes to other shards.
        self.in_hand.clear();
        if !self.unplaced.is_empty() {
            self.dispatch.route_all(std::mem::take(&mut self.unplaced));
        }
        self.serve_wait_queue();
        let mut outgoing = std::mem::take(&mut self.new_replies);
        outgoing.drain(..).for_each(|answer| self.send_or_await_store(answer));
        self.new_replies = outgoing;
        self.expire_replies();
        if self.keeps_rows {
            self.clear_stored_ends();
        }
        // What could not leave was given back: those rows go too. No answer comes of them.
        if self.append_rows() {
            self.publish();
            self.serve_wait_queue();
        }
        self.update_counters();
        self.publish_events();
        let answers = self.awaiting_store.front().map(|answer| answer.until_ms);
        let blocked = self.awaiting_other_shards.iter().map(|answer| answer.until_ms).min();
        let recount = self.audit.is_pending(&self.shard).then_some(self.audited_ms + AUDIT_INTERVAL_MS);
        self.handle.set_answers_waiting(self.awaiting_store.len());
        self.handle.set_next_tick([self.shard.next_tick_ms(), answers, blocked, recount].into_iter().flatten().min());
    }

    /// Room that came, and is published, is for those who wait; so is what came in and must not pass them.
    fn serve_wait_queue(&mut self) {
        let line = &self.pool.wait_queue;
        let raised =
            std::mem::replace(&mut self.capacity_epoch, self.shard.capacity_epoch()) != self.shard.capacity_epoch();
        if raised && line.has_waiters() {
            line.retry_all();
        }
        for item in std::mem::take(&mut self.must_queue) {
            self.dispatch.enqueue_newcomer(&self.pool, item);
        }
        if line.waiting() > 0 && line.is_dispatch_pending() {
            self.dispatch.dispatch_next(&self.pool);
        }
        if raised {
            self.dispatch.dispatch_quota_queues();
        }
    }

    fn append_rows(&mut self) -> bool {
        // From here on no panic brings back what was rolled back.
        self.rolled_back.clear();
        let shard = &mut self.shard;
        if !shard.has_rows() {
            return false;
        }
        if self.keeps_rows {
            self.handle.outbox.append(shard.seq(), shard.take_header(), |rows| shard.take_rows(rows));
        } else {
            shard.discard_changes();
        }
        true
    }

    /// Ends workers from an ordinal on and what they hold, as many as one run may. The rows need not go one by one: the store is told to forget
    /// the shard.
    fn end_workers(&mut self, from: u32, reply: ReplySender) {
        let ListingSlice { rows, next } = self.shard.workers_from(from, usize::MAX);
        for (_, look) in rows {
            self.apply(Event::Delete { id: look.registration.spec.id.clone(), to: ReplyRoute::Nobody });
        }
        self.append_rows();
        reply.send(Ok(next.map_or(ReplyPayload::Done, ReplyPayload::Unfinished)));
    }
}

/// When the first request in it came in, if it is timed.
fn started_ns(command: &Command) -> Option<u64> {
    let item = command.claim_items().next().map(|item| item.started_ns);
    item.or_else(|| command.key_items().first().map(|item| item.started_ns)).filter(|&started_ns| started_ns > 0)
}
