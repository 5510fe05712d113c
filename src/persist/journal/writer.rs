//! Brings rows to the store: gathers, applies, tells.
//!
//! One round takes what every shard has handed over and applies it in one call, so many answers share one commit.
//! The next round starts as soon as the last one is back. Before it does, the writer steps aside while more rows
//! keep coming: those whose answers the last commit released ask again at once, and a commit that leaves without
//! them would make them wait for two.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::rewrite::Rewrites;
use super::{Journal, Lane, Outbox, Trouble, Waiting};
use crate::metrics::{StepResult, metrics};
use crate::model::Seq;
use crate::persist::store::{ShardKey, Step, StepKind, StepOutcome};

/// Longest that the writer steps aside for more rows.
const GATHER_NS_MAX: u64 = 400_000;
/// Looks in a row that must find nothing new before the writer goes.
const QUIET_LOOKS: u32 = 2;
/// Bytes of rows, and steps, in one round: more waits for the next, or no answer would come in time.
const ROUND_BYTES_MAX: usize = 8 << 20;
const ROUND_STEPS_MAX: usize = 4_096;
/// First and longest pause after a failed apply.
const RETRY_MS: u64 = 20;
const RETRY_MS_MAX: u64 = 500;

/// A step on its way.
pub(super) struct Flight {
    pub outbox: Arc<Outbox>,
    pub step: Step,
    pub rows: usize,
}

/// Steps that the store did not answer: they may or may not be applied, and go again unchanged.
#[derive(Default)]
struct Left {
    flights: Vec<Flight>,
    /// Until they go again.
    pause: Option<Pin<Box<Sleep>>>,
    pause_ms: u64,
    /// All that is there to be sent stands behind them.
    blocks: bool,
}

impl Left {
    /// So much that nothing is added to it.
    fn is_full(&self) -> bool {
        self.flights.len() >= ROUND_STEPS_MAX || self.flights.iter().map(Flight::bytes).sum::<usize>() > ROUND_BYTES_MAX
    }

    fn back_off(&mut self, now_ns: u64) {
        self.pause_ms = (self.pause_ms * 2).clamp(RETRY_MS, RETRY_MS_MAX);
        // Not all writers at the same moment.
        let jitter_ms = now_ns % (self.pause_ms / 2);
        self.pause = Some(Box::pin(sleep(Duration::from_millis(self.pause_ms / 2 + jitter_ms))));
    }

    /// Resolves when it is time to send them again; never while there are none.
    async fn due(&mut self) {
        match &mut self.pause {
            Some(pause) => pause.await,
            None => return std::future::pending().await,
        }
        self.pause = None;
    }

    fn take_due(&mut self) -> Vec<Flight> {
        if self.pause.is_none() { std::mem::take(&mut self.flights) } else { Vec::new() }
    }
}

impl Flight {
    fn rows(outbox: Arc<Outbox>, waiting: Waiting) -> Self {
        let step =
            Step { shard: outbox.key, from: waiting.from, to: waiting.to, kind: StepKind::Rows(waiting.rows.into()) };
        Self { outbox, step, rows: waiting.count }
    }

    fn drop_shard(outbox: Arc<Outbox>) -> Self {
        let waiting = outbox.take();
        let to = waiting.to + 1;
        let step = Step { shard: outbox.key, from: waiting.from, to, kind: StepKind::Drop };
        Self { outbox, step, rows: 0 }
    }

    /// How it is counted.
    fn result(&self, outcome: StepOutcome) -> StepResult {
        match outcome {
            StepOutcome::Ok => StepResult::Ok,
            StepOutcome::Duplicate if self.bytes() == 0 => StepResult::Checked,
            StepOutcome::Duplicate => StepResult::Duplicate,
            StepOutcome::Gap => StepResult::Gap,
            StepOutcome::Fenced => StepResult::Fenced,
            StepOutcome::Away => StepResult::Error,
        }
    }

    fn bytes(&self) -> usize {
        match &self.step.kind {
            StepKind::Rows(rows) | StepKind::Chunk { rows, .. } | StepKind::Flip { rows, .. } => rows.len(),
            StepKind::Drop => 0,
        }
    }
}

impl Journal {
    /// One writer of [`Journal::writers`]: writes for ever, or until the store belongs to somebody else.
    pub async fn run(self: Arc<Self>, writer: usize) {
        let mut rewrites = Rewrites::default();
        let mut left = Left::default();
        let lane = &self.lanes[writer];
        while !self.fenced() {
            let flights = self.gather(lane, &mut rewrites, &mut left).await;
            if !flights.is_empty() {
                self.apply(writer, flights, &mut rewrites, &mut left).await;
            }
        }
    }

    async fn gather(&self, lane: &Lane, rewrites: &mut Rewrites, left: &mut Left) -> Vec<Flight> {
        let is_full = left.is_full();
        if (lane.dirty.is_empty() && lane.drops.is_empty() && !rewrites.ready()) || left.blocks || is_full {
            tokio::select! {
                () = lane.work.notified(), if !is_full => {}
                () = rewrites.dumped(|| self.fresh_generation()) => {}
                () = left.due() => {}
            }
        }
        self.step_aside(lane).await;
        // While rows keep coming nobody waits above: look at the rewrite, and at what is left, once a round.
        tokio::select! {
            biased;
            () = rewrites.dumped(|| self.fresh_generation()) => {}
            () = std::future::ready(()) => {}
        }
        tokio::select! {
            biased;
            () = left.due() => {}
            () = std::future::ready(()) => {}
        }
        // One step of a shard at a time: what others have to say of these shards waits.
        let mut busy: HashSet<ShardKey> = left.flights.iter().map(|flight| flight.outbox.key).collect();
        let mut flights = left.take_due();
        if let Some(flight) = rewrites.next_flight(&busy) {
            busy.insert(flight.outbox.key);
            flights.push(flight);
        }
        for _ in 0..lane.drops.len() {
            let Some(outbox) = lane.drops.pop() else { break };
            if !busy.insert(outbox.key) {
                lane.drops.push(outbox);
                continue;
            }
            rewrites.forget(outbox.key);
            outbox.dropped.store(true, Ordering::Release);
            flights.push(Flight::drop_shard(outbox));
        }
        let mut bytes: usize = flights.iter().chain(&left.flights).map(Flight::bytes).sum();
        for _ in 0..lane.dirty.len() {
            if bytes > ROUND_BYTES_MAX || flights.len() >= ROUND_STEPS_MAX {
                break;
            }
            let Some(outbox) = lane.dirty.pop() else { break };
            if busy.contains(&outbox.key) && !outbox.is_dropped() {
                lane.dirty.push(outbox);
                continue;
            }
            outbox.queued.store(false, Ordering::Release);
            if outbox.is_dropped() {
                continue;
            }
            let check = outbox.check.swap(false, Ordering::Relaxed);
            let waiting = outbox.take();
            if (waiting.to > waiting.from || check)
                && let Some(waiting) = rewrites.note(&outbox, waiting)
            {
                if waiting.rows.len() > self.store.step_bytes_max() {
                    rewrites.catch_up(outbox, self.fresh_generation(), waiting);
                } else {
                    bytes += waiting.rows.len();
                    flights.push(Flight::rows(outbox, waiting));
                }
            }
        }
        left.blocks = flights.is_empty() && !left.flights.is_empty();
        flights
    }

    /// Lets others run while they hand over more.
    async fn step_aside(&self, lane: &Lane) {
        let start = self.clock.mono_ns();
        let (mut seen, mut quiet) = (lane.hands.load(Ordering::Relaxed), 0);
        while quiet < QUIET_LOOKS && self.clock.mono_ns().saturating_sub(start) < GATHER_NS_MAX {
            tokio::task::yield_now().await;
            let hands = lane.hands.load(Ordering::Relaxed);
            quiet = if hands == seen { quiet + 1 } else { 0 };
            seen = hands;
        }
    }

    /// Applies once. What the store did not answer is left for a later round.
    async fn apply(&self, writer: usize, flights: Vec<Flight>, rewrites: &mut Rewrites, left: &mut Left) {
        let start = self.clock.mono_ns();
        let answer = self.store.apply(flights.iter().map(|flight| flight.step.clone()).collect()).await;
        let now = self.clock.mono_ns();
        metrics().step_seconds.record(Duration::from_nanos(now.saturating_sub(start)).as_secs_f64());
        let (outcomes, trouble) = match answer {
            Ok(outcomes) => {
                let away = outcomes.contains(&StepOutcome::Away);
                (outcomes, away.then(|| self.store.fault()))
            }
            Err(error) => (vec![StepOutcome::Away; flights.len()], Some(error.text().to_owned())),
        };
        if outcomes.contains(&StepOutcome::Fenced) {
            metrics().steps(StepResult::Fenced).increment(1);
            self.fence();
            return;
        }
        let (mut done, mut answers) = (Vec::with_capacity(flights.len()), Vec::with_capacity(flights.len()));
        for (flight, outcome) in flights.into_iter().zip(outcomes) {
            if outcome == StepOutcome::Away {
                metrics().steps(StepResult::Error).increment(1);
                left.flights.push(flight);
            } else {
                done.push(flight);
                answers.push(outcome);
            }
        }
        if trouble.is_some() {
            metrics().store_retries.increment(1);
            left.back_off(now);
        } else if left.flights.is_empty() {
            left.pause_ms = 0;
        }
        let text = trouble.clone().unwrap_or_default();
        if (trouble.is_some() || left.flights.is_empty())
            && self.set_trouble(Trouble::Steps(writer), trouble)
            && !text.is_empty()
        {
            tracing::warn!(store = self.store.kind(), error = text, "the store did not take steps; sending again");
        }
        self.conclude(done, &answers, rewrites);
    }

    fn conclude(&self, flights: Vec<Flight>, outcomes: &[StepOutcome], rewrites: &mut Rewrites) {
        debug_assert_eq!(flights.len(), outcomes.len(), "one outcome a step");
        let mut moved = Vec::with_capacity(flights.len());
        for (flight, &outcome) in flights.into_iter().zip(outcomes) {
            metrics().steps(flight.result(outcome)).increment(1);
            metrics().step_rows.record(flight.rows as f64);
            metrics().step_bytes.record(flight.bytes() as f64);
            if let Some((outbox, applied)) = self.settle(flight, outcome, rewrites)
                && outbox.advance(applied)
            {
                moved.push(outbox);
            }
        }
        // All shards move on before any of them is told: an answer may wait for the records of several.
        self.progress.notify_waiters();
        for outbox in moved {
            outbox.tell_source();
            outbox.tell_awaiting();
        }
        if rewrites.idle()
            && let Some(outbox) = self.store.wants_rewrite().and_then(|key| self.outbox(key))
        {
            rewrites.begin(outbox, self.fresh_generation(), None);
        }
    }

    fn settle(&self, flight: Flight, outcome: StepOutcome, rewrites: &mut Rewrites) -> Option<(Arc<Outbox>, Seq)> {
        let Flight { outbox, step, .. } = flight;
        let good = matches!(outcome, StepOutcome::Ok | StepOutcome::Duplicate);
        match step.kind {
            StepKind::Rows(_) if good => Some((outbox, step.to)),
            StepKind::Drop if good => {
                self.outboxes.remove(&step.shard);
                Some((outbox, step.to))
            }
            StepKind::Rows(_) => {
                tracing::warn!(shard = ?step.shard, from = step.from, to = step.to, "gap: the shard is rewritten");
                rewrites.begin(outbox, self.fresh_generation(), Some(step.to));
                self.check_after_gap();
                None
            }
            StepKind::Drop => None,
            StepKind::Chunk { .. } => {
                rewrites.chunk_done(good, self.fresh_generation());
                None
            }
            StepKind::Flip { .. } if good => {
                metrics().store_rewrites.increment(1);
                rewrites.finish();
                Some((outbox, step.to))
            }
            StepKind::Flip { .. } => {
                rewrites.restart(step.to, self.fresh_generation());
                None
            }
        }
    }

    fn fresh_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed) + 1
    }
}
