//! Writes rows to the store: gather a round, apply it, notify the shards.
//!
//! One round takes what every shard of the partition has appended and applies it in one call, so that many replies share one
//! commit. The next round starts as soon as the last one is back. If there is company, the writer first yields while more rows
//! keep coming: callers whose replies the last commit released send their next requests at once, and a commit that starts
//! without them would make them wait for two. A caller who is alone waits for nobody ([`RoundPacing`]).

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use super::pacing::RoundPacing;
use super::snapshot::SnapshotQueue;
use super::{Journal, Outbox, PendingRows, StoreFault, WriterPartition};
use crate::collections::HashSet;
use crate::environment::{Environment, SleepFuture};
use crate::metrics::{StoreWriteResult, metrics};
use crate::model::Seq;
use crate::persist::store::{ShardKey, StoreError, WriteBatch, WriteKind, WriteOutcome};

/// Longest time for which the writer yields to gather more rows.
const GATHER_NS_MAX: u64 = 400_000;
/// Yields in a row that must bring no append before the writer goes on.
const QUIET_POLLS: u32 = 2;
/// Maximum number of bytes of rows in one round: more waits for the next, or no reply would leave in time.
const ROUND_BYTES_MAX: usize = 8 << 20;
/// Maximum number of batches in one round.
const ROUND_WRITES_MAX: usize = 4_096;
/// Shortest pause after a failed apply.
const RETRY_MS: u64 = 20;
/// Longest pause after a failed apply.
const RETRY_MS_MAX: u64 = 500;

/// Batch that is sent to the store, with the outbox that it came from.
pub(super) struct InFlightBatch {
    pub outbox: Arc<Outbox>,
    pub write: WriteBatch,
    pub rows: usize,
}

/// Batches without an answer: the store may have applied them, and they are sent again unchanged.
#[derive(Default)]
struct RetryQueue {
    batches: Vec<InFlightBatch>,
    /// Time until they are sent again.
    pause: Option<SleepFuture>,
    pause_ms: u64,
    /// Whether all pending work is of shards that have a batch here.
    is_blocking: bool,
}

impl RetryQueue {
    /// Whether a round of these alone is full.
    fn is_full(&self) -> bool {
        self.batches.len() >= ROUND_WRITES_MAX
            || self.batches.iter().map(InFlightBatch::bytes).sum::<usize>() > ROUND_BYTES_MAX
    }

    fn back_off(&mut self, environment: &Environment) {
        let now_ns = environment.clock().mono_ns();
        self.pause_ms = (self.pause_ms * 2).clamp(RETRY_MS, RETRY_MS_MAX);
        // Jitter, so that the writers do not all retry at the same moment.
        let jitter_ms = now_ns % (self.pause_ms / 2);
        self.pause = Some(environment.sleep(Duration::from_millis(self.pause_ms / 2 + jitter_ms)));
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
    fn rows(outbox: Arc<Outbox>, pending: PendingRows) -> Self {
        let PendingRows { rows, count, from, to, .. } = pending;
        let write = WriteBatch { shard: outbox.key(), from, to, kind: WriteKind::Rows(rows.into()) };
        Self { outbox, write, rows: count }
    }

    fn drop_shard(outbox: Arc<Outbox>) -> Self {
        let PendingRows { from, to, .. } = outbox.take_dropped();
        let write = WriteBatch { shard: outbox.key(), from, to: to + 1, kind: WriteKind::Drop };
        Self { outbox, write, rows: 0 }
    }

    /// Label under which the outcome is counted.
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

/// Makes the runtime wake a worker that sleeps. Only workers look for events of connections and timers, each when it has
/// nothing else to do, so one that sleeps otherwise would not notice them while this one waits for the disk. (A task that
/// wakes itself is queued again, and tokio wakes a worker for what is in a queue. The woken one finds the queue empty, because
/// this worker goes on at once.)
async fn wake_another_worker() {
    let mut is_queued = false;
    poll_fn(|context| {
        if is_queued {
            return Poll::Ready(());
        }
        is_queued = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Journal {
    /// Runs one writer of [`Journal::writer_count`] for ever, or until another process owns the store.
    pub async fn run(self: Arc<Self>, writer: usize) {
        let mut snapshots = SnapshotQueue::default();
        let mut retries = RetryQueue::default();
        let mut pacing = RoundPacing::default();
        let partition = &self.partitions[writer];
        while !self.is_fenced() {
            self.wait_for_work(partition, &mut snapshots, &mut retries).await;
            if pacing.has_company() {
                self.yield_for_appends(partition).await;
            }
            self.poll_due(&mut snapshots, &mut retries).await;
            let appends = partition.append_count.load(Ordering::Relaxed);
            let batches = self.gather(partition, &mut snapshots, &mut retries);
            if batches.is_empty() {
                continue;
            }
            pacing.begin_round(appends);
            let writes: Vec<WriteBatch> = batches.iter().map(|batch| batch.write.clone()).collect();
            let start_ns = self.clock.mono_ns();
            let answer = self.write_round(writes, &pacing).await;
            let elapsed_ns = self.clock.mono_ns().saturating_sub(start_ns);
            metrics().store_write_seconds.record(Duration::from_nanos(elapsed_ns).as_secs_f64());
            let answered = self.sort_answers(writer, batches, answer, &mut retries);
            pacing.end_round(partition.append_count.load(Ordering::Relaxed));
            if let Some((answered, outcomes)) = answered {
                let is_stored = |outcome| matches!(outcome, WriteOutcome::Ok | WriteOutcome::Duplicate);
                let all_stored = outcomes.iter().copied().all(is_stored);
                self.finish_round(answered, &outcomes, &mut snapshots, &pacing);
                if !all_stored || !snapshots.is_idle() || !retries.batches.is_empty() {
                    pacing.note_other_work();
                }
            }
        }
    }

    async fn wait_for_work(
        &self,
        partition: &WriterPartition,
        snapshots: &mut SnapshotQueue,
        retries: &mut RetryQueue,
    ) {
        let is_full = retries.is_full();
        let is_idle = partition.dirty.is_empty() && partition.drops.is_empty() && !snapshots.has_next();
        if is_idle || retries.is_blocking || is_full {
            tokio::select! {
                biased;
                () = partition.work.notified(), if !is_full => {}
                () = snapshots.wait_batch(&self.environment, || self.fresh_generation()) => {}
                () = retries.due() => {}
            }
        }
    }

    /// Polls the snapshot and the retries once a round: while rows keep coming nothing else waits for them.
    async fn poll_due(&self, snapshots: &mut SnapshotQueue, retries: &mut RetryQueue) {
        tokio::select! {
            biased;
            () = snapshots.wait_batch(&self.environment, || self.fresh_generation()) => {}
            () = std::future::ready(()) => {}
        }
        tokio::select! {
            biased;
            () = retries.due() => {}
            () = std::future::ready(()) => {}
        }
    }

    /// Takes the batches of one round, at most one of a shard: what else is pending for a busy shard stays queued.
    fn gather(
        &self,
        partition: &WriterPartition,
        snapshots: &mut SnapshotQueue,
        retries: &mut RetryQueue,
    ) -> Vec<InFlightBatch> {
        let mut busy: HashSet<ShardKey> = retries.batches.iter().map(|batch| batch.outbox.key()).collect();
        let mut batches = retries.take_due();
        if let Some(batch) = snapshots.next_batch(&busy) {
            busy.insert(batch.outbox.key());
            batches.push(batch);
        }
        for _ in 0..partition.drops.len() {
            let Some(outbox) = partition.drops.pop() else { break };
            if !busy.insert(outbox.key()) {
                partition.drops.push(outbox);
                continue;
            }
            snapshots.forget(outbox.key());
            batches.push(InFlightBatch::drop_shard(outbox));
        }
        let mut bytes: usize = batches.iter().chain(&retries.batches).map(InFlightBatch::bytes).sum();
        for _ in 0..partition.dirty.len() {
            if bytes > ROUND_BYTES_MAX || batches.len() >= ROUND_WRITES_MAX {
                break;
            }
            let Some(outbox) = partition.dirty.pop() else { break };
            if busy.contains(&outbox.key()) && !outbox.is_dropped() {
                partition.dirty.push(outbox);
                continue;
            }
            if let Some(pending) = outbox.dequeue()
                && let Some(pending) = snapshots.record_rows(&outbox, pending)
            {
                if pending.rows.len() > self.store.batch_bytes_max() {
                    snapshots.catch_up(outbox, self.fresh_generation(), pending);
                } else {
                    bytes += pending.rows.len();
                    batches.push(InFlightBatch::rows(outbox, pending));
                }
            }
        }
        retries.is_blocking = batches.is_empty() && !retries.batches.is_empty();
        batches
    }

    /// Yields to other tasks while they append more rows.
    async fn yield_for_appends(&self, partition: &WriterPartition) {
        let start_ns = self.clock.mono_ns();
        let (mut last_count, mut quiet) = (partition.append_count.load(Ordering::Relaxed), 0);
        while quiet < QUIET_POLLS && self.clock.mono_ns().saturating_sub(start_ns) < GATHER_NS_MAX {
            self.environment.yield_now().await;
            let count = partition.append_count.load(Ordering::Relaxed);
            quiet = if count == last_count { quiet + 1 } else { 0 };
            last_count = count;
        }
    }

    /// Writes one round. If a caller is alone and the store can, on this thread: two switches to another one and back would
    /// take longer than all else besides the disk.
    async fn write_round(
        &self,
        writes: Vec<WriteBatch>,
        pacing: &RoundPacing,
    ) -> Result<Vec<WriteOutcome>, StoreError> {
        if !pacing.has_company() && self.environment.may_block() {
            wake_another_worker().await;
            if let Some(answer) = self.store.apply_blocking(&writes) {
                crate::reached!("journal: a lone caller is written for at once");
                return answer;
            }
        }
        self.store.apply(writes).await
    }

    /// Takes the answers of a round apart. Returns the batches that the store answered, with the outcomes; none if another
    /// process owns the store. The others are left for a later round.
    fn sort_answers(
        &self,
        writer: usize,
        batches: Vec<InFlightBatch>,
        answer: Result<Vec<WriteOutcome>, StoreError>,
        retries: &mut RetryQueue,
    ) -> Option<(Vec<InFlightBatch>, Vec<WriteOutcome>)> {
        let (outcomes, fault) = match answer {
            Ok(outcomes) => {
                let any_unanswered = outcomes.contains(&WriteOutcome::Unanswered);
                (outcomes, any_unanswered.then(|| self.store.last_fault()))
            }
            Err(error) => (vec![WriteOutcome::Unanswered; batches.len()], Some(error.text().to_owned())),
        };
        if outcomes.contains(&WriteOutcome::Fenced) {
            crate::reached!("journal: fenced");
            metrics().store_writes(StoreWriteResult::Fenced).increment(1);
            self.mark_fenced();
            return None;
        }
        let (mut answered, mut answers) = (Vec::with_capacity(batches.len()), Vec::with_capacity(batches.len()));
        for (batch, outcome) in batches.into_iter().zip(outcomes) {
            if outcome == WriteOutcome::Unanswered {
                crate::reached!("journal: a batch has no answer");
                metrics().store_writes(StoreWriteResult::Error).increment(1);
                retries.batches.push(batch);
            } else {
                answered.push(batch);
                answers.push(outcome);
            }
        }
        if fault.is_some() {
            metrics().store_retries.increment(1);
            retries.back_off(&self.environment);
        } else if retries.batches.is_empty() {
            retries.pause_ms = 0;
        }
        let text = fault.clone().unwrap_or_default();
        if (fault.is_some() || retries.batches.is_empty())
            && self.set_fault(StoreFault::Writes(writer), fault)
            && !text.is_empty()
        {
            tracing::warn!(store = self.store.kind(), error = text, "the store did not accept writes; retrying");
        }
        Some((answered, answers))
    }

    fn finish_round(
        &self,
        batches: Vec<InFlightBatch>,
        outcomes: &[WriteOutcome],
        snapshots: &mut SnapshotQueue,
        pacing: &RoundPacing,
    ) {
        debug_assert_eq!(batches.len(), outcomes.len(), "one outcome per batch");
        let mut advanced = Vec::with_capacity(batches.len());
        for (batch, &outcome) in batches.into_iter().zip(outcomes) {
            metrics().store_writes(batch.result(outcome)).increment(1);
            metrics().store_write_rows.record(batch.rows as f64);
            metrics().store_write_bytes.record(batch.bytes() as f64);
            if let Some((outbox, applied)) = self.complete(batch, outcome, snapshots)
                && outbox.advance(applied)
            {
                advanced.push(outbox);
            }
        }
        // All shards advance before any is notified: a reply may wait for the records of several.
        self.progress.notify_waiters();
        for outbox in advanced {
            if pacing.has_company() {
                outbox.notify_source();
            } else {
                // The one reply leaves from here: another task would only be one more switch on its way. A panic in what
                // follows from it must not end the writer.
                if catch_unwind(AssertUnwindSafe(|| outbox.run_source())).is_err() {
                    outbox.notify_source();
                }
            }
            outbox.notify_subscribers();
        }
        if snapshots.is_idle()
            && let Some(key) = self.store.snapshot_candidate()
        {
            match self.outbox(key) {
                Some(outbox) => snapshots.begin(outbox, self.fresh_generation(), None),
                None => self.store.skip_snapshot(key),
            }
        }
    }

    fn complete(
        &self,
        batch: InFlightBatch,
        outcome: WriteOutcome,
        snapshots: &mut SnapshotQueue,
    ) -> Option<(Arc<Outbox>, Seq)> {
        let InFlightBatch { outbox, write, .. } = batch;
        let is_stored = matches!(outcome, WriteOutcome::Ok | WriteOutcome::Duplicate);
        match write.kind {
            WriteKind::Rows(_) if is_stored => Some((outbox, write.to)),
            WriteKind::Drop if is_stored => {
                self.outboxes.write().remove(&write.shard);
                outbox.mark_gone();
                Some((outbox, write.to))
            }
            WriteKind::Rows(_) => {
                let (shard, from, to) = (write.shard, write.from, write.to);
                crate::reached!("journal: a gap");
                tracing::warn!(?shard, from, to, "the store lost records of the shard; writing a snapshot of it");
                snapshots.begin(outbox, self.fresh_generation(), Some(to));
                self.check_after_gap();
                None
            }
            WriteKind::Drop => None,
            WriteKind::Chunk { .. } if is_stored => {
                snapshots.chunk_stored();
                None
            }
            WriteKind::Chunk { .. } => {
                crate::reached!("journal: a chunk is rejected");
                snapshots.chunk_rejected(self.fresh_generation());
                None
            }
            WriteKind::Install { .. } if is_stored => {
                crate::reached!("journal: a snapshot is installed");
                metrics().shard_snapshots.increment(1);
                snapshots.finish();
                Some((outbox, write.to))
            }
            WriteKind::Install { .. } => {
                crate::reached!("journal: an install is rejected");
                snapshots.install_rejected(write.to, self.fresh_generation());
                None
            }
        }
    }

    fn fresh_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed) + 1
    }
}
