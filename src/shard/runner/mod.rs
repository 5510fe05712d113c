//! Runs a shard: carries out the effects of what the engine decides. Only a recovery does so as well,
//! for claims that it ends before their shard serves (`crate::scheduler::recovery`).
//!
//! One run: answers that waited for the store and may leave now; what is in the mailbox, decided one by one; deadlines,
//! unless requests that came before them still wait; then the changed rows go to the journal, the bounds to the router,
//! and only then the new answers leave, or begin to wait for the store. Nothing in a run awaits, so a ledger change and the directory's step
//! are one. Who runs it, the actor or whoever has just pushed, is the handle's matter ([`ShardPort`]).

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

use self::errors::refusal;
use self::publish::wish;
use self::statistics::RECOUNT_MS;
use super::actor::Spawn;
use super::command::{ClaimItem, Command, InjectedStep, KeyItem};
use super::handle::ShardPort;
use super::reply::{Outcome, Payload, Reply};
use crate::admission::dispatch::Dispatch;
use crate::admission::keys::{ShardRef, Ticket, Unstored, Unstoreds};
use crate::admission::pools::Pool;
use crate::admission::remembered::Ended;
use crate::admission::waiters::Seek;
use crate::engine::{Answer, Counters, Effect, Event, GangAct, LedgerAudit, Place, Shard, Slice};
use crate::events::{Happening, PoolEvent};
use crate::limits;
use crate::model::rejection::{Refusal, What};
use crate::model::{ClaimId, Fence, Millis, Seq};

/// Runs in a row after which all that stood in the mailbox before the first is decided, whatever has come since.
const DRAINS_MAX: u32 = limits::RING_SLOTS.div_ceil(limits::DRAIN_MAX) as u32;

/// Whether a run left deadlines that are due: one carries out a bounded number, and none while older requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DueDeadlines {
    /// Every deadline that was due is carried out.
    Met,
    /// More are due, and the next run goes on.
    Left,
}

/// Who waits for an answer of the engine.
enum To {
    Claim(Box<ClaimItem>),
    Key(KeyItem),
    Reply(Reply),
    Gang(Reply, GangAct),
    Seek(Box<Seek>),
    Nobody,
}

/// An answer on its way out.
struct Outgoing {
    reply: Reply,
    outcome: Outcome,
    /// Leaves when the store has this...
    seq: Seq,
    /// ...and these.
    unstored: Unstoreds,
    /// The claim that it grants: given back if it cannot leave.
    made: Option<Place>,
    /// When the claim that it answers came in; 0: it answers none, or one that is not timed.
    started_ns: u64,
    /// Engine time after which it cannot leave as it is.
    until_ms: Millis,
}

pub(crate) struct Running {
    dispatch: Arc<Dispatch>,
    pool: Arc<Pool>,
    port: Arc<ShardPort>,
    shard: Shard,
    now_ms: Millis,
    /// How far the store was when this run looked.
    applied: Seq,
    /// Shards that this run asked to be told by: answers here speak of records of theirs.
    awaited: HashSet<ShardRef>,
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
    tickets: Vec<(ClaimId, Ticket)>,
    /// Of the gang that is being committed: the tickets of its members, and what its answer waits for beside this shard.
    members: (HashMap<ClaimId, Ticket>, Unstoreds),
    /// Fences drawn for the claims at hand.
    fences: std::ops::Range<Fence>,
    /// Tickets of the claims that are being decided: after a panic they are given up.
    pub(super) in_hand: Vec<(ClaimId, Ticket)>,
    taken: Vec<Command>,
    /// Commands that arose from others, in this run.
    extra: VecDeque<Command>,
    effects: Vec<Effect<To>>,
    /// Claims that must not pass those who wait.
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
    bounced: Vec<Box<ClaimItem>>,
    /// How often room had come when those who wait were last told.
    raised: u64,
    /// Claims that found no room here.
    #[allow(clippy::vec_box, reason = "claims travel boxed from ring to ring")]
    refused: Vec<Box<ClaimItem>>,
    /// Answers decided in this run.
    outgoing: Vec<Outgoing>,
    /// Claims that were rolled back and whose end is not handed over yet.
    rolled_back: Vec<(ClaimId, Fence)>,
    /// Answers that wait for the store, by sequence number.
    waiting: VecDeque<Outgoing>,
    /// Of them those whose own record is stored and that wait for another shard's.
    blocked: Vec<Outgoing>,
    /// Keys that were freed here, whose record the store may lack.
    gone: VecDeque<(Seq, ClaimId)>,
    counted: Counters,
    /// Changes of the workers that are not offered, up to what was published.
    bar_changes: u64,
    audit: LedgerAudit,
    recounted_ms: Millis,
    /// Claims whose grant left, and requests to release that came, in this run.
    created: u64,
    releases: u64,
    /// A claim of this run was timed.
    timed: bool,
    /// Somebody watches the pool, or did a while ago.
    watched: bool,
    /// What this run has to tell them.
    told: Vec<PoolEvent>,
    /// Version of the ledger whose capacities are published; none yet.
    capacities: Option<u64>,
    /// Changes of workers that are in the sum of capacities that was published; none yet.
    counted_workers: Option<u64>,
}

impl Running {
    /// A shard that is about to serve; the router knows at once what it has.
    pub(super) fn new(spawn: Spawn) -> Self {
        let Spawn { dispatch, pool, port, shard, gone } = spawn;
        let mut running = Self {
            keeps_rows: port.outbox.wants_rows(),
            durable: true,
            memory_from: 0,
            sealed: false,
            tickets: Vec::new(),
            members: (HashMap::new(), Unstoreds::new()),
            counted: shard.counters(),
            // None is as it was published.
            bar_changes: u64::MAX,
            audit: LedgerAudit::new(&shard),
            dispatch,
            pool,
            port,
            shard,
            now_ms: 0,
            applied: 0,
            awaited: HashSet::new(),
            overdue_runs: 0,
            fences: 0..0,
            in_hand: Vec::new(),
            taken: Vec::new(),
            extra: VecDeque::new(),
            effects: Vec::new(),
            bounced: Vec::new(),
            raised: u64::MAX,
            refused: Vec::new(),
            outgoing: Vec::new(),
            rolled_back: Vec::new(),
            waiting: VecDeque::new(),
            blocked: Vec::new(),
            gone,
            recounted_ms: 0,
            created: 0,
            releases: 0,
            timed: false,
            watched: false,
            told: Vec::new(),
            capacities: None,
            counted_workers: None,
        };
        running.publish();
        running
    }

    /// One run: of what is in the mailbox, then of `command`, which came without it.
    pub(super) fn run(&mut self, command: Option<Command>) -> DueDeadlines {
        self.now_ms = self.dispatch.clock.engine_ms();
        self.shard.set_wall_clock(self.dispatch.clock.unix_ahead_ms());
        self.release_answers();
        self.look_at_ack();
        while let Some(ticket) = self.port.pop_unkept() {
            self.on(Event::BreakPromise { ticket });
        }
        while let Some(notice) = self.port.pop_notice() {
            self.notice(notice);
        }
        let mut taken = std::mem::take(&mut self.taken);
        let taken_count = self.port.take(limits::DRAIN_MAX, &mut taken);
        self.look_at_watchers();
        if !taken.is_empty() {
            self.prepare(&taken);
            taken.drain(..).for_each(|command| self.command_and_extra(command));
        }
        self.taken = taken;
        if let Some(command) = command {
            self.prepare(std::slice::from_ref(&command));
            self.command_and_extra(command);
        }
        // What this run set is due later than now, so what the last one said holds.
        let due = match self.port.is_due(self.now_ms) {
            true => self.sweep_after(taken_count),
            false => DueDeadlines::Met,
        };
        self.conclude();
        due
    }

    /// Deadlines are due, and this run took so many requests. What had come before them goes first, for a renewal that waits
    /// was in time: that is all if there were fewer than a run takes, and at the latest after [`DRAINS_MAX`] runs.
    fn sweep_after(&mut self, taken_count: usize) -> DueDeadlines {
        self.overdue_runs += 1;
        if taken_count < limits::DRAIN_MAX || self.overdue_runs >= DRAINS_MAX {
            self.overdue_runs = 0;
            self.on(Event::Tick);
        }
        // Of the engine's deadlines alone: what else is due the end of this run sees to.
        match self.shard.next_tick_ms() {
            Some(at_ms) if at_ms <= self.now_ms => DueDeadlines::Left,
            _ => DueDeadlines::Met,
        }
    }

    /// Draws fences for what was taken: after it left the ring, so above every fence that its keys ever had.
    fn prepare(&mut self, taken: &[Command]) {
        let claims: u64 = taken.iter().map(Command::fences).sum();
        if claims > 0 {
            self.in_hand.extend(taken.iter().flat_map(Command::items).map(|item| (item.id.clone(), item.ticket)));
        }
        self.fences = match claims {
            0 => 0..0,
            n => self.dispatch.draw_fences(n).map_or(0..0, |first| first..first + n),
        };
        if taken.len() > 1 {
            let affinities = taken.iter().flat_map(Command::items).map(|item| item.affinity);
            self.shard.look_ahead(taken.iter().flat_map(Command::places), affinities);
        }
        if let Some(started) = taken.iter().find_map(started_ns) {
            let waited = self.dispatch.clock.mono_ns().saturating_sub(started);
            self.pool.metrics.ring_wait_seconds.record(waited);
        }
    }

    fn command_and_extra(&mut self, command: Command) {
        self.command(command);
        while let Some(command) = self.extra.pop_front() {
            self.command(command);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Claim(item) => self.claim(item),
            Command::Claims(items) => {
                self.shard.begin_batch();
                items.into_iter().for_each(|item| self.claim(item));
                self.shard.end_batch();
            }
            Command::Repeat(item, place) => {
                let (satisfies, wants) = (item.may_use(self.pool.number), item.accepts());
                self.on(Event::Repeat { place, satisfies, wants, to: To::Claim(item) });
            }
            Command::Release(item) => self.release(item),
            Command::Releases(items) => items.into_iter().for_each(|item| self.release(item)),
            Command::Confirm(item) => self.ask(item, |place, to| Event::Confirm { place, to }),
            Command::Look(item) => self.ask(item, |place, to| Event::Look { place, to }),
            Command::Renew(item, ttl_ms) => self.ask(item, |place, to| Event::Renew { place, ttl_ms, to }),
            Command::Resize(item, resources) => self.resize(item, *resources),
            Command::Gang(item) => self.gang(*item),
            Command::Promise(seek) => self.promise(seek),
            Command::Yield(place) => self.on(Event::Yield { place }),
            Command::BeginRelease(item) => self.begin_release(item),
            // The pool is marked before its workers are counted: whoever comes after the count is refused.
            Command::Register(workers) if self.pool.is_closing() => {
                for (_, reply) in workers {
                    reply.send(Err(Refusal::NotFound(What::Pool)));
                }
            }
            Command::Register(workers) => {
                for (registration, reply) in workers {
                    let id = registration.spec.id.clone();
                    self.about(&id, Some(Happening::Registered), |run| run.register(registration, reply));
                }
            }
            Command::Heartbeat(workers) => {
                for (id, beat, reply) in workers {
                    self.heartbeat(id, beat, reply);
                }
            }
            Command::Steer(id, verb, reply) => {
                self.about(&id.clone(), wish(verb), |run| run.on(Event::Steer { id, verb, to: To::Reply(reply) }));
            }
            Command::ClearAll(reply) => self.on(Event::ClearAll { to: To::Reply(reply) }),
            Command::Seal(reply) => self.seal(reply),
            Command::Delete(id, reply) => {
                let what = Some(Happening::Deleted);
                self.about(&id.clone(), what, |run| run.on(Event::Delete { id, to: To::Reply(reply) }));
            }
            Command::Worker(id, reply) => {
                let look = self.shard.find_worker(&id);
                let outcome = look
                    .map(|look| Payload::Worker { created: false, look: Box::new(look), stop: Vec::new() })
                    .ok_or(Refusal::NotFound(What::Worker));
                self.answer(reply, outcome, Unstoreds::new(), None);
            }
            Command::ListWorkers(from, limit, reply) => {
                let workers = self.shard.workers_from(from, limit);
                self.answer(reply, Ok(Payload::Workers(workers)), Unstoreds::new(), None);
            }
            Command::ListClaims(from, limit, sieve, reply) => {
                let outcome = self.list_claims(from, limit, &sieve);
                self.answer(reply, Ok(outcome), Unstoreds::new(), None);
            }
            Command::Report(reply) => {
                let report = self.report();
                reply.send(Ok(Payload::Report(Box::new(report))));
            }
            Command::IdleLongest(limit, reply) => {
                reply.send(Ok(Payload::Idle(self.shard.idle_longest(limit))));
            }
            Command::Explain(question, reply) => {
                let outcome = self.explain(&question);
                reply.send(outcome);
            }
            Command::Dump(from, bytes, to) => {
                let mut rows = Vec::with_capacity(bytes + bytes / 8);
                let next = self.shard.dump_rows(from, bytes, &mut rows);
                // What the dump shows must be handed over before the dump arrives: a flip carries only what was.
                self.hand_over();
                let _ = to.send((rows, next));
            }
            Command::Close(from, reply) => self.close(from, reply),
            Command::Inject(InjectedStep(step)) => step(&mut self.shard),
        }
    }

    fn release(&mut self, item: KeyItem) {
        self.releases += 1;
        self.ask(item, |place, to| Event::Release { place, to });
    }

    /// Decides a command about a claim that is held.
    fn ask(&mut self, mut item: KeyItem, event: impl FnOnce(Place, To) -> Event<To>) {
        self.resolve(&item.id, &mut item.place);
        self.on(event(item.place, To::Key(item)));
    }

    fn on(&mut self, event: Event<To>) {
        let mut effects = std::mem::take(&mut self.effects);
        self.shard.on(event, self.now_ms, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Reply { to, answer } => self.reply(to, answer),
                Effect::Ended { id, fence, end, worker, times } => {
                    self.tell_ended(&id, fence, times, end, worker);
                    self.ended(id, fence);
                }
                Effect::Silent { worker } => self.tell_silent(worker),
                Effect::Deleted { worker } => self.tell_deleted(worker),
                Effect::Remember { id, grant } => {
                    let ended = Ended { shard: self.port.shard, pool: self.pool.name.clone(), grant };
                    self.dispatch.remembered.put(id, ended, self.now_ms);
                }
                Effect::Adopted { id, place } => self.adopted(&id, place),
                Effect::Committed { id, place } => self.committed(&id, place),
            }
        }
        self.effects = effects;
    }

    fn ended(&mut self, id: ClaimId, fence: Fence) {
        let record = self.keeps_rows.then(|| Unstored { shard: self.port.shard, seq: self.shard.seq() });
        self.dispatch.keys.end(&id, fence, record);
        if let Some(record) = record {
            self.gone.push_back((record.seq, id));
        }
    }

    fn reply(&mut self, to: To, answer: Answer) {
        match to {
            To::Claim(item) => self.reply_claim(item, answer),
            To::Key(item) => self.reply_key(item, answer),
            To::Gang(reply, act) => self.reply_gang(reply, act, answer),
            To::Reply(reply) => {
                let (outcome, unstored) = self.about_worker(answer);
                self.answer(reply, outcome, unstored, None);
            }
            To::Seek(seek) => self.reply_seek(seek, &answer),
            To::Nobody => {}
        }
    }

    /// The end of a run: rows, bounds, answers, in this order.
    fn conclude(&mut self) {
        self.hand_over();
        self.publish();
        // Whatever panics from here on panics without a ticket in hand: what is left of them goes to other shards.
        self.in_hand.clear();
        if !self.refused.is_empty() {
            self.dispatch.route_all(std::mem::take(&mut self.refused));
        }
        self.look_at_line();
        let mut outgoing = std::mem::take(&mut self.outgoing);
        outgoing.drain(..).for_each(|answer| self.leave_or_wait(answer));
        self.outgoing = outgoing;
        self.expire_answers();
        if self.keeps_rows {
            self.settle_gone();
        }
        // What could not leave was given back: those rows go too. No answer comes of them.
        if self.hand_over() {
            self.publish();
            self.look_at_line();
        }
        self.count();
        self.tell_watchers();
        let answers = self.waiting.front().map(|answer| answer.until_ms);
        let blocked = self.blocked.iter().map(|answer| answer.until_ms).min();
        let recount = self.audit.is_open(&self.shard).then_some(self.recounted_ms + RECOUNT_MS);
        self.port.set_answers_waiting(self.waiting.len());
        self.port.set_next_tick([self.shard.next_tick_ms(), answers, blocked, recount].into_iter().flatten().min());
    }

    /// Room that came, and is published, is for those who wait; so is what came in and must not pass them.
    fn look_at_line(&mut self) {
        let line = &self.pool.line;
        let raised = std::mem::replace(&mut self.raised, self.shard.raised()) != self.shard.raised();
        if raised && line.is_waited_in() {
            line.retry();
        }
        for item in std::mem::take(&mut self.bounced) {
            self.dispatch.queue_up(&self.pool, item);
        }
        if line.waiting() > 0 && line.is_unsettled() {
            self.dispatch.pump(&self.pool);
        }
        if raised {
            self.dispatch.pump_quotas();
        }
    }

    fn hand_over(&mut self) -> bool {
        // From here on no panic brings back what was rolled back.
        self.rolled_back.clear();
        let shard = &mut self.shard;
        if !shard.has_rows() {
            return false;
        }
        if self.keeps_rows {
            self.port.outbox.hand(shard.seq(), shard.take_head(), |rows| shard.take_rows(rows));
        } else {
            shard.drop_rows();
        }
        true
    }

    /// Ends workers from an ordinal on and what they hold, as many as one run may. The rows need not go one by one: the store is told to forget
    /// the shard.
    fn close(&mut self, from: u32, reply: Reply) {
        let Slice { rows, next } = self.shard.workers_from(from, usize::MAX);
        for (_, look) in rows {
            self.on(Event::Delete { id: look.card.spec.id.clone(), to: To::Nobody });
        }
        self.hand_over();
        reply.send(Ok(next.map_or(Payload::Done, Payload::Unfinished)));
    }
}

/// When the first request in it came in, if it is timed.
fn started_ns(command: &Command) -> Option<u64> {
    let item = command.items().next().map(|item| item.started_ns);
    item.or_else(|| command.keys().first().map(|item| item.started_ns)).filter(|&started_ns| started_ns > 0)
}
