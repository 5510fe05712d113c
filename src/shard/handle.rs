//! The only way into a shard: a bounded ring and a wake. Outlives the actor: when that panics, what waits in the
//! ring waits for the next one.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use futures::future::{BoxFuture, FutureExt as _};
use ractor::ActorRef;
use tokio::sync::oneshot;

use super::actor::Wake;
use super::command::{ClaimItem, Command, KeyItem};
use super::reply::Reply;
use super::ring::Scheduled;
use crate::dispatch::Dispatch;
use crate::journal::{Outbox, Source};
use crate::keys::{ShardRef, Ticket};
use crate::limits;
use crate::metrics::{PoolMetrics, ShardState};
use crate::model::{ClaimId, Millis, Seq};
use crate::refusal::{Refusal, Unavailable};

/// Why a command was not taken.
pub type Why = Unavailable;

/// A shard's handle.
pub struct ShardPort {
    /// Which shard of this process.
    pub shard: ShardRef,
    /// Its rows on their way to the store.
    pub outbox: Arc<Outbox>,
    ring: CachePadded<ArrayQueue<Command>>,
    scheduled: CachePadded<Scheduled>,
    state: AtomicU8,
    reason: Mutex<Option<String>>,
    actor: RwLock<Option<ActorRef<Wake>>>,
    /// Engine time before which a wake would find nothing due; `u64::MAX`: never.
    next_tick_ms: AtomicU64,
    /// Tickets of the claims that the actor is deciding: if it panics, its supervisor gives them up.
    in_hand: Mutex<Vec<(ClaimId, Ticket)>>,
    restarts: Mutex<Restarts>,
    /// Difference between ledger and claims, as the actor last saw it.
    drift: AtomicU64,
    metrics: PoolMetrics,
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
    pub fn new(shard: ShardRef, outbox: Arc<Outbox>, metrics: PoolMetrics, dispatch: &Arc<Dispatch>) -> Arc<Self> {
        let port = Arc::new(Self {
            shard,
            outbox,
            ring: CachePadded::new(ArrayQueue::new(limits::RING_SLOTS)),
            scheduled: CachePadded::new(Scheduled::default()),
            state: AtomicU8::new(ShardState::Loading as u8),
            reason: Mutex::new(None),
            actor: RwLock::new(None),
            next_tick_ms: AtomicU64::new(u64::MAX),
            in_hand: Mutex::new(Vec::new()),
            restarts: Mutex::default(),
            drift: AtomicU64::new(0),
            metrics,
            dispatch: Arc::downgrade(dispatch),
        });
        let source: Weak<dyn Source> = Arc::downgrade(&port) as Weak<dyn Source>;
        port.outbox.attach(source);
        port
    }

    /// Puts a command into the ring.
    ///
    /// # Errors
    /// The command back, and why: the shard does not serve, or the ring is full.
    pub fn push(&self, command: Command) -> Result<(), (Command, Why)> {
        if self.state() != ShardState::Serving {
            return Err((command, self.silence()));
        }
        if let Err(command) = self.ring.push(command) {
            self.metrics.ring_refusals.increment(1);
            return Err((command, Unavailable::Overloaded));
        }
        self.wake();
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

    /// Wakes the actor, unless it is awake.
    pub fn wake(&self) {
        if self.scheduled.wake_needed() {
            self.cast();
        }
    }

    /// Wakes the actor if something is due at `now_ms`.
    pub fn tick(&self, now_ms: Millis) {
        if self.next_tick_ms.load(Ordering::Relaxed) <= now_ms {
            self.wake();
        }
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

    pub(super) fn set_drift(&self, drift: u64) {
        self.drift.store(drift, Ordering::Relaxed);
    }

    pub(crate) fn set_state(&self, state: ShardState, reason: Option<String>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        self.state.store(state as u8, Ordering::SeqCst);
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
        *self.actor.write().unwrap_or_else(PoisonError::into_inner) = Some(actor);
        self.set_state(ShardState::Serving, None);
        self.scheduled.reset();
        self.cast();
    }

    pub(super) fn cast(&self) {
        if let Some(actor) = &*self.actor.read().unwrap_or_else(PoisonError::into_inner) {
            // An actor that is gone has a supervisor that knows.
            let _ = actor.send_message(Wake);
        }
    }

    pub(super) fn pop(&self) -> Option<Command> {
        self.ring.pop()
    }

    /// The actor goes to sleep, having looked at the store as of `applied`; false: it must run again.
    pub(super) fn sleeps(&self, applied: Seq) -> bool {
        !self.scheduled.sleep_refused(|| self.is_idle(applied))
    }

    /// Nothing came since the actor looked at the store as of `applied`.
    pub(super) fn is_idle(&self, applied: Seq) -> bool {
        self.ring.is_empty() && self.outbox.applied() <= applied
    }

    pub(super) fn set_next_tick(&self, at_ms: Option<Millis>) {
        self.next_tick_ms.store(at_ms.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Notes whose tickets are being decided.
    pub(super) fn take_in_hand<'a>(&self, items: impl Iterator<Item = &'a ClaimItem>) {
        let mut in_hand = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
        in_hand.extend(items.map(|item| (item.id.clone(), item.ticket)));
    }

    pub(super) fn empty_hand(&self) -> Vec<(ClaimId, Ticket)> {
        std::mem::take(&mut self.in_hand.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn clear_hand(&self) {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Answers everything that waits: nobody else will.
    pub(crate) fn refuse_all(&self) {
        let refusal = Refusal::Unavailable(self.silence());
        while let Some(command) = self.ring.pop() {
            self.refuse(command, &refusal);
        }
    }

    /// Answers a command that no shard will decide, and gives up the tickets in it.
    fn refuse(&self, command: Command, refusal: &Refusal) {
        let say = |reply: Reply| {
            reply.send(Err(refusal.clone()));
        };
        let give_up = |item: Box<ClaimItem>| match self.dispatch.upgrade() {
            Some(dispatch) => dispatch.give_up(item, refusal.clone()),
            None => say(item.reply),
        };
        match command {
            Command::Claim(item) => give_up(item),
            Command::Claims(items) => items.into_iter().for_each(give_up),
            Command::Repeat(item, _) => say(item.reply),
            Command::Release(KeyItem { reply, .. })
            | Command::Confirm(KeyItem { reply, .. })
            | Command::Look(KeyItem { reply, .. })
            | Command::Delete(_, reply)
            | Command::Worker(_, reply)
            | Command::ListWorkers(_, _, reply)
            | Command::ListClaims(_, _, _, reply)
            | Command::Report(reply)
            | Command::Close(reply) => say(reply),
            Command::Releases(items) => items.into_iter().for_each(|item| say(item.reply)),
            Command::Register(workers) => workers.into_iter().for_each(|(_, reply)| say(reply)),
            Command::Dump(..) | Command::SetPolicy(_) | Command::Panic => {}
        }
    }

    fn silence(&self) -> Why {
        match self.state() {
            ShardState::Stopped => Unavailable::Stopping,
            _ => Unavailable::Loading,
        }
    }
}

impl Source for ShardPort {
    fn progressed(&self) {
        self.wake();
    }

    fn dump(&self, from: u32, bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>> {
        let (to, dumped) = oneshot::channel();
        let pushed = self.push(Command::Dump(from, bytes, to)).is_ok();
        async move { if pushed { dumped.await.ok() } else { None } }.boxed()
    }
}
