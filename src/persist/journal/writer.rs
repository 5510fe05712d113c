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

use super::snapshot::SnapshotQueue;
use super::{Journal, Outbox, PendingRows, StoreFault, WriterPartition};
use crate::metrics::{StoreWriteResult, metrics};
use crate::model::Seq;
use crate::persist::store::{ShardKey, WriteBatch, WriteKind, WriteOutcome};

/// Longest that the writer steps aside for more rows.
const GATHER_NS_MAX: u64 = 400_000;
/// Looks in a row that must find nothing new before the writer goes.
const QUIET_POLLS: u32 = 2;
/// Bytes of rows, and steps, in one round: more waits for the next, or no answer would come in time.
const ROUND_BYTES_MAX: usize = 8 << 20;
const ROUND_WRITES_MAX: usize = 4_096;
/// First and longest pause after a failed apply.
const RETRY_MS: u64 = 20;
const RETRY_MS_MAX: u64 = 500;

/// A step on its way.
pub(super) struct InFlightBatch {
    pub outbox: Arc<Outbox>,
    pub write: WriteBatch,
    pub rows: usize,
}

/// Steps that the store did not answer: they may or may not be applied, and go again unchanged.
#[derive(Default)]
struct RetryQueue {
    batches: Vec<InFlightBatch>,
    /// Until they go again.
    pause: Option<Pin<Box<Sleep>>>,
    pause_ms: u64,
    /// All that is there to be sent stands behind them.
    is_blocking: bool,
}

impl RetryQueue {
    /// So much that nothing is added to it.
    fn is_full(&self) -> bool {
        self.batches.len() >= ROUND_WRITES_MAX
            || self.batches.iter().map(InFlightBatch::bytes).sum::<usize>() > ROUND_BYTES_MAX
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

    fn take_due(&mut self) -> Vec<InFlightBatch> {
        if self.pause.is_none() { std::mem::take(&mut self.batches) } else { Vec::new() }
    }
}

impl InFlightBatch {
    fn rows(outbox: Arc<Outbox>, waiting: PendingRows) -> Self {
        let step = WriteBatch {
            shard: outbox.key,
            from: waiting.from,
            to: waiting.to,
            kind: WriteKind::Rows(waiting.rows.into()),
        };
        Self { outbox, write: step, rows: waiting.count }
    }

    fn drop_shard(outbox: Arc<Outbox>) -> Self {
        let waiting = outbox.take();
        let to = waiting.to + 1;
        let step = WriteBatch { shard: outbox.key, from: waiting.from, to, kind: WriteKind::Drop };
        Self { outbox, write: step, rows: 0 }
    }

    /// How it is counted.
    fn result(&self, outcome: WriteOutcome) -> StoreWriteResult {
        match outcome {
            WriteOutcome::Ok => StoreWriteResult::Ok,
            WriteOutcome::Duplicate if self.bytes() == 0 => StoreWriteResult::Checked,
            WriteOutcome::Duplicate => StoreWriteResult::Duplicate,
            WriteOutcome::Gap => StoreWriteResult::Gap,
            WriteOutcome::Fenced => StoreWriteResult::Fenced,
            WriteOutcome::Unanswered => StoreWriteResult::Error,
        }
    }

    fn bytes(&self) -> usize {
        match &self.write.kind {
            WriteKind::Rows(rows) | WriteKind::Chunk { rows, .. } | WriteKind::Install { rows, .. } => rows.len(),
            WriteKind::Drop => 0,
        }
    }
}

impl Journal {
    /// One writer of [`Journal::writer_count`]: writes for ever, or until the store belongs to somebody else.
    pub async fn run(self: Arc<Self>, writer: usize) {
        let mut rewrites = SnapshotQueue::default();
        let mut left = RetryQueue::default();
        let lane = &self.partitions[writer];
        while !self.is_fenced() {
            let flights = self.gather(lane, &mut rewrites, &mut left).await;
            if !flights.is_empty() {
                self.apply(writer, flights, &mut rewrites, &mut left).await;
            }
        }
    }

    async fn gather(
        &self,
        lane: &WriterPartition,
        rewrites: &mut SnapshotQueue,
        left: &mut RetryQueue,
    ) -> Vec<InFlightBatch> {
        let is_full = left.is_full();
        if (lane.dirty.is_empty() && lane.drops.is_empty() && !rewrites.has_next()) || left.is_blocking || is_full {
            tokio::select! {
                () = lane.work.notified(), if !is_full => {}
                () = rewrites.wait_batch(|| self.fresh_generation()) => {}
                () = left.due() => {}
            }
        }
        self.yield_for_appends(lane).await;
        // While rows keep coming nobody waits above: look at the rewrite, and at what is left, once a round.
        tokio::select! {
            biased;
            () = rewrites.wait_batch(|| self.fresh_generation()) => {}
            () = std::future::ready(()) => {}
        }
        tokio::select! {
            biased;
            () = left.due() => {}
            () = std::future::ready(()) => {}
        }
        // One step of a shard at a time: what others have to say of these shards waits.
        let mut busy: HashSet<ShardKey> = left.batches.iter().map(|flight| flight.outbox.key).collect();
        let mut flights = left.take_due();
        if let Some(flight) = rewrites.next_batch(&busy) {
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
            flights.push(InFlightBatch::drop_shard(outbox));
        }
        let mut bytes: usize = flights.iter().chain(&left.batches).map(InFlightBatch::bytes).sum();
        for _ in 0..lane.dirty.len() {
            if bytes > ROUND_BYTES_MAX || flights.len() >= ROUND_WRITES_MAX {
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
                && let Some(waiting) = rewrites.record_rows(&outbox, waiting)
            {
                if waiting.rows.len() > self.store.batch_bytes_max() {
                    rewrites.catch_up(outbox, self.fresh_generation(), waiting);
                } else {
                    bytes += waiting.rows.len();
                    flights.push(InFlightBatch::rows(outbox, waiting));
                }
            }
        }
        left.is_blocking = flights.is_empty() && !left.batches.is_empty();
        flights
    }

    /// Lets others run while they hand over more.
    async fn yield_for_appends(&self, lane: &WriterPartition) {
        let start = self.clock.mono_ns();
        let (mut seen, mut quiet) = (lane.append_count.load(Ordering::Relaxed), 0);
        while quiet < QUIET_POLLS && self.clock.mono_ns().saturating_sub(start) < GATHER_NS_MAX {
            tokio::task::yield_now().await;
            let hands = lane.append_count.load(Ordering::Relaxed);
            quiet = if hands == seen { quiet + 1 } else { 0 };
            seen = hands;
        }
    }

    /// Applies once. What the store did not answer is left for a later round.
    async fn apply(
        &self,
        writer: usize,
        flights: Vec<InFlightBatch>,
        rewrites: &mut SnapshotQueue,
        left: &mut RetryQueue,
    ) {
        let start = self.clock.mono_ns();
        let answer = self.store.apply(flights.iter().map(|flight| flight.write.clone()).collect()).await;
        let now = self.clock.mono_ns();
        metrics().store_write_seconds.record(Duration::from_nanos(now.saturating_sub(start)).as_secs_f64());
        let (outcomes, trouble) = match answer {
            Ok(outcomes) => {
                let away = outcomes.contains(&WriteOutcome::Unanswered);
                (outcomes, away.then(|| self.store.last_fault()))
            }
            Err(error) => (vec![WriteOutcome::Unanswered; flights.len()], Some(error.text().to_owned())),
        };
        if outcomes.contains(&WriteOutcome::Fenced) {
            metrics().store_writes(StoreWriteResult::Fenced).increment(1);
            self.mark_fenced();
            return;
        }
        let (mut done, mut answers) = (Vec::with_capacity(flights.len()), Vec::with_capacity(flights.len()));
        for (flight, outcome) in flights.into_iter().zip(outcomes) {
            if outcome == WriteOutcome::Unanswered {
                metrics().store_writes(StoreWriteResult::Error).increment(1);
                left.batches.push(flight);
            } else {
                done.push(flight);
                answers.push(outcome);
            }
        }
        if trouble.is_some() {
            metrics().store_retries.increment(1);
            left.back_off(now);
        } else if left.batches.is_empty() {
            left.pause_ms = 0;
        }
        let text = trouble.clone().unwrap_or_default();
        if (trouble.is_some() || left.batches.is_empty())
            && self.set_fault(StoreFault::Writes(writer), trouble)
            && !text.is_empty()
        {
            tracing::warn!(store = self.store.kind(), error = text, "the store did not take steps; sending again");
        }
        self.finish_round(done, &answers, rewrites);
    }

    fn finish_round(&self, flights: Vec<InFlightBatch>, outcomes: &[WriteOutcome], rewrites: &mut SnapshotQueue) {
        debug_assert_eq!(flights.len(), outcomes.len(), "one outcome a step");
        let mut moved = Vec::with_capacity(flights.len());
        for (flight, &outcome) in flights.into_iter().zip(outcomes) {
            metrics().store_writes(flight.result(outcome)).increment(1);
            metrics().store_write_rows.record(flight.rows as f64);
            metrics().store_write_bytes.record(flight.bytes() as f64);
            if let Some((outbox, applied)) = self.complete(flight, outcome, rewrites)
                && outbox.advance(applied)
            {
                moved.push(outbox);
            }
        }
        // All shards move on before any of them is told: an answer may wait for the records of several.
        self.progress.notify_waiters();
        for outbox in moved {
            outbox.notify_source();
            outbox.notify_waiters();
        }
        if rewrites.is_idle()
            && let Some(outbox) = self.store.snapshot_candidate().and_then(|key| self.outbox(key))
        {
            rewrites.begin(outbox, self.fresh_generation(), None);
        }
    }

    fn complete(
        &self,
        flight: InFlightBatch,
        outcome: WriteOutcome,
        rewrites: &mut SnapshotQueue,
    ) -> Option<(Arc<Outbox>, Seq)> {
        let InFlightBatch { outbox, write: step, .. } = flight;
        let good = matches!(outcome, WriteOutcome::Ok | WriteOutcome::Duplicate);
        match step.kind {
            WriteKind::Rows(_) if good => Some((outbox, step.to)),
            WriteKind::Drop if good => {
                self.outboxes.remove(&step.shard);
                Some((outbox, step.to))
            }
            WriteKind::Rows(_) => {
                tracing::warn!(shard = ?step.shard, from = step.from, to = step.to, "gap: the shard is rewritten");
                rewrites.begin(outbox, self.fresh_generation(), Some(step.to));
                self.check_after_gap();
                None
            }
            WriteKind::Drop => None,
            WriteKind::Chunk { .. } => {
                rewrites.chunk_done(good, self.fresh_generation());
                None
            }
            WriteKind::Install { .. } if good => {
                metrics().shard_snapshots.increment(1);
                rewrites.finish();
                Some((outbox, step.to))
            }
            WriteKind::Install { .. } => {
                rewrites.restart(step.to, self.fresh_generation());
                None
            }
        }
    }

    fn fresh_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed) + 1
    }
}
