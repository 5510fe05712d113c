//! Brings rows to the store: gathers, applies, tells.
//!
//! One round takes what every shard has handed over and applies it in one call, so many answers share one commit.
//! The next round starts as soon as the last one is back. Before it does, the writer steps aside while more rows
//! keep coming: those whose answers the last commit released ask again at once, and a commit that leaves without
//! them would make them wait for two.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::rewrite::Rewrites;
use super::{Journal, Lane, Outbox, Trouble, Waiting};
use crate::metrics::{StepResult, metrics};
use crate::model::Seq;
use crate::store::{Step, StepKind, StepOutcome};

/// Longest that the writer steps aside for more rows.
const GATHER_NS_MAX: u64 = 400_000;
/// Looks in a row that must find nothing new before the writer goes.
const QUIET_LOOKS: u32 = 2;
/// First and longest pause after a failed apply.
const RETRY_MS: u64 = 20;
const RETRY_MS_MAX: u64 = 500;

/// A step on its way.
pub(super) struct Flight {
    pub outbox: Arc<Outbox>,
    pub step: Step,
    pub rows: usize,
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
        let lane = &self.lanes[writer];
        while !self.fenced() {
            let flights = self.gather(lane, &mut rewrites).await;
            if flights.is_empty() {
                continue;
            }
            let Some(outcomes) = self.apply(writer, &flights).await else { break };
            self.conclude(flights, &outcomes, &mut rewrites);
        }
    }

    async fn gather(&self, lane: &Lane, rewrites: &mut Rewrites) -> Vec<Flight> {
        if lane.dirty.is_empty() && lane.drops.is_empty() && !rewrites.ready() {
            tokio::select! {
                () = lane.work.notified() => {}
                () = rewrites.dumped(|| self.fresh_generation()) => {}
            }
        }
        self.step_aside(lane).await;
        // While rows keep coming nobody waits above: look at the rewrite once a round.
        tokio::select! {
            biased;
            () = rewrites.dumped(|| self.fresh_generation()) => {}
            () = std::future::ready(()) => {}
        }
        let mut flights = Vec::new();
        while let Some(outbox) = lane.drops.pop() {
            rewrites.forget(outbox.key);
            flights.push(Flight::drop_shard(outbox));
        }
        let rewriting = rewrites.next_flight();
        for _ in 0..lane.dirty.len() {
            let Some(outbox) = lane.dirty.pop() else { break };
            if rewriting.as_ref().is_some_and(|flight| flight.outbox.key == outbox.key) {
                // One step of a shard at a time: its rows go with the next round.
                lane.dirty.push(outbox);
                continue;
            }
            outbox.queued.store(false, Ordering::Release);
            let check = outbox.check.swap(false, Ordering::Relaxed);
            let waiting = outbox.take();
            let dropped = flights.iter().any(|flight: &Flight| flight.outbox.key == outbox.key);
            if (waiting.to > waiting.from || check)
                && !dropped
                && let Some(waiting) = rewrites.note(&outbox, waiting)
            {
                if waiting.rows.len() > self.store.step_bytes_max() {
                    rewrites.begin(outbox, self.fresh_generation(), Some(waiting.to));
                } else {
                    flights.push(Flight::rows(outbox, waiting));
                }
            }
        }
        flights.extend(rewriting);
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

    /// Applies until the store answers. None: it is not ours any more.
    async fn apply(&self, writer: usize, flights: &[Flight]) -> Option<Vec<StepOutcome>> {
        let mut pause_ms = RETRY_MS;
        while !self.fenced() {
            let start = self.clock.mono_ns();
            let answer = self.store.apply(flights.iter().map(|flight| flight.step.clone()).collect()).await;
            let seconds = Duration::from_nanos(self.clock.mono_ns().saturating_sub(start)).as_secs_f64();
            metrics().step_seconds.record(seconds);
            match answer {
                Ok(outcomes) => {
                    self.set_trouble(Trouble::Steps(writer), None);
                    if outcomes.contains(&StepOutcome::Fenced) {
                        metrics().steps(StepResult::Fenced).increment(1);
                        self.fence();
                        return None;
                    }
                    return Some(outcomes);
                }
                Err(error) => {
                    metrics().steps(StepResult::Error).increment(flights.len() as u64);
                    metrics().store_retries.increment(1);
                    if self.set_trouble(Trouble::Steps(writer), Some(error.text().to_owned())) {
                        tracing::warn!(store = self.store.kind(), %error, "the store took nothing; sending again");
                    }
                    // Not all writers at the same moment.
                    let jitter_ms = self.clock.mono_ns() % (pause_ms / 2);
                    tokio::time::sleep(Duration::from_millis(pause_ms / 2 + jitter_ms)).await;
                    pause_ms = (pause_ms * 2).min(RETRY_MS_MAX);
                }
            }
        }
        None
    }

    fn conclude(&self, flights: Vec<Flight>, outcomes: &[StepOutcome], rewrites: &mut Rewrites) {
        debug_assert_eq!(flights.len(), outcomes.len(), "one outcome a step");
        let mut moved = Vec::with_capacity(flights.len());
        for (flight, &outcome) in flights.into_iter().zip(outcomes) {
            metrics().steps(flight.result(outcome)).increment(1);
            metrics().step_rows.record(flight.rows as f64);
            metrics().step_bytes.record(flight.bytes() as f64);
            if let Some((outbox, applied)) = self.settle(flight, outcome, rewrites) {
                outbox.advance(applied);
                moved.push(outbox);
            }
        }
        // All shards move on before any of them is told: an answer may wait for the records of several.
        self.progress.notify_waiters();
        for outbox in moved {
            outbox.tell_source();
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
