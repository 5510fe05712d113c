//! Writes a shard anew as a whole: because the store lost part of it (a gap), or to let the store free space.
//!
//! The source dumps its rows piece by piece, each a numbered chunk of a new generation; rows that change meanwhile
//! are kept beside ([`Rewrite::again`]) and go last, with the flip. The last state of a row among chunks and flip is
//! its present one: whatever changed after its dump was handed over later and is in `again`. When the store has the
//! old generation (no gap), steps go on to it meanwhile, so durable answers do not wait for the rewrite.
//!
//! A shard with more to catch up with than one step may carry is rewritten too. Should its source panic before it has
//! dumped everything, what the store has and what was kept of the tail are the shard together: then the dump is the
//! store's, and the tail goes last.

use parking_lot::Mutex;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::{BoxFuture, FutureExt as _, ready};

use super::writer::InFlightBatch;
use super::{Outbox, PendingRows, compaction};
use crate::model::Seq;
use crate::persist::store::{ShardKey, WriteBatch, WriteKind};

/// About how much one chunk holds.
const CHUNK_BYTES: usize = 256 << 10;

/// Rows that may wait for the flip; more go as a chunk of their own first.
const INSTALL_BYTES_MAX: usize = 4 * CHUNK_BYTES;

/// Pause before a source that cannot answer is asked again.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

type Dump = BoxFuture<'static, SnapshotBatch>;

/// What came of asking for rows.
enum SnapshotBatch {
    /// Rows in pieces, and where to go on.
    Rows(VecDeque<Vec<u8>>, Option<u32>),
    /// The source is gone, or the store that speaks for it is away.
    Unavailable,
    /// The store, which should speak for the source, lacks part of it.
    Unrecoverable,
}

/// What the store lacks of a shard: rows that were handed over after its state at `from`.
struct UnstoredTail {
    from: Seq,
    rows: Vec<u8>,
    fold_at: usize,
}

impl UnstoredTail {
    fn extend(&mut self, rows: &[u8]) {
        extend(&mut self.rows, rows, &mut self.fold_at);
    }
}

/// Appends rows, and folds them now and then.
fn extend(kept: &mut Vec<u8>, rows: &[u8], fold_at: &mut usize) {
    kept.extend_from_slice(rows);
    if kept.len() > *fold_at {
        compaction::compact(kept);
        *fold_at = (2 * kept.len()).max(CHUNK_BYTES);
    }
}

struct ShardSnapshot {
    outbox: Arc<Outbox>,
    generation: u64,
    /// Chunks that the store has.
    chunks_stored: u32,
    pending_batch: Option<Dump>,
    /// Where the next dump starts; none: all is dumped.
    cursor: Option<u32>,
    /// The life of the shard that the first dump came from: another one numbers its workers otherwise.
    incarnation: u64,
    /// Dumped, not sent.
    unsent_chunks: VecDeque<Vec<u8>>,
    /// Rows that were handed over since the rewrite began.
    rows_since_start: Vec<u8>,
    compact_at: usize,
    /// The store takes no steps of this shard until the flip; rows taken so far lead to this.
    gap: Option<Seq>,
    /// The store has all before this, and no step may carry it.
    tail: Option<UnstoredTail>,
    /// The source has panicked: what is dumped is what the store has.
    from_store: bool,
    in_flight: bool,
}

impl ShardSnapshot {
    fn new(outbox: Arc<Outbox>, generation: u64, gap: Option<Seq>, tail: Option<UnstoredTail>) -> Self {
        Self {
            outbox,
            generation,
            chunks_stored: 0,
            pending_batch: None,
            cursor: Some(0),
            incarnation: 0,
            unsent_chunks: VecDeque::new(),
            rows_since_start: Vec::new(),
            compact_at: CHUNK_BYTES,
            gap,
            tail,
            from_store: false,
            in_flight: false,
        }
    }

    /// From the first row on, under a fresh generation: what was kept beside is in what is dumped from now on.
    fn restart(&mut self, generation: u64) {
        (self.generation, self.chunks_stored, self.cursor) = (generation, 0, Some(0));
        self.rows_since_start.clear();
        self.pending_batch = None;
        self.unsent_chunks.clear();
        self.publish_needs_source();
    }

    fn publish_needs_source(&self) {
        let needed = self.gap.is_some() && self.cursor.is_some() && self.tail.is_none();
        self.outbox.needs_source.store(needed, Ordering::Release);
    }

    fn record_rows(&mut self, rows: &[u8]) {
        if let Some(tail) = &mut self.tail {
            tail.extend(rows);
        }
        let begun = self.pending_batch.is_some() || !self.unsent_chunks.is_empty() || self.cursor != Some(0);
        if !begun && self.gap.is_some() {
            // All of it is still to be dumped.
            return;
        }
        extend(&mut self.rows_since_start, rows, &mut self.compact_at);
    }

    /// Asks for the next piece: the source, or the store if the source is no more.
    fn request_batch(&self, cursor: u32) -> Dump {
        let source = self.outbox.source.get().and_then(std::sync::Weak::upgrade);
        match (&self.tail, source) {
            (Some(tail), _) if self.from_store => stored(&self.outbox, tail.from),
            (_, None) => ready(SnapshotBatch::Unavailable).boxed(),
            (_, Some(source)) => {
                let dump = source.snapshot_rows(cursor, CHUNK_BYTES);
                dump.map(|dumped| match dumped {
                    Some((rows, cursor)) => SnapshotBatch::Rows([rows].into(), cursor),
                    None => SnapshotBatch::Unavailable,
                })
                .boxed()
            }
        }
    }

    fn next_write(&mut self) -> Option<(WriteBatch, usize)> {
        let shard = self.outbox.key;
        if let Some(rows) = self.unsent_chunks.pop_front() {
            let kind = WriteKind::Chunk { generation: self.generation, number: self.chunks_stored, rows: rows.into() };
            return Some((WriteBatch { shard, from: 0, to: 0, kind }, 0));
        }
        if self.cursor.is_some() || self.pending_batch.is_some() {
            return None;
        }
        let waiting = self.outbox.take();
        let to = waiting.to.max(self.gap.unwrap_or(0));
        self.rows_since_start.extend_from_slice(&waiting.rows);
        if let Some(tail) = &mut self.tail {
            tail.extend(&waiting.rows);
        }
        if self.rows_since_start.len() > INSTALL_BYTES_MAX {
            // Last states that count over earlier ones, wherever they stand: they need not wait for the flip.
            compaction::compact(&mut self.rows_since_start);
            let rows = compaction::split_front(&mut self.rows_since_start, CHUNK_BYTES);
            let kind = WriteKind::Chunk { generation: self.generation, number: self.chunks_stored, rows: rows.into() };
            if waiting.to > waiting.from {
                // What was taken goes by way of the new generation alone.
                self.gap = Some(to);
            }
            return Some((WriteBatch { shard, from: 0, to: 0, kind }, 0));
        }
        let rows = std::mem::take(&mut self.rows_since_start);
        let kind = WriteKind::Install { generation: self.generation, chunks: self.chunks_stored, rows: rows.into() };
        Some((WriteBatch { shard, from: waiting.from, to, kind }, waiting.count))
    }
}

/// All that the store has of a shard. It is the whole shard in memory; whoever restarts it loads it anyway.
fn stored(outbox: &Outbox, from: Seq) -> Dump {
    let (store, key) = (Arc::clone(outbox.journal.store()), outbox.key);
    let pieces: Arc<Mutex<VecDeque<Vec<u8>>>> = Arc::default();
    let into = Arc::clone(&pieces);
    let sink = move |_: ShardKey, frames: &[u8]| {
        let mut pieces = into.lock();
        match pieces.back_mut() {
            Some(piece) if piece.len() + frames.len() <= CHUNK_BYTES => piece.extend_from_slice(frames),
            _ => pieces.push_back(frames.to_vec()),
        }
    };
    async move {
        let at = match store.load(vec![key], Box::new(sink)).await {
            Ok(loaded) => loaded.into_iter().next().and_then(|loaded| loaded.at.ok()),
            Err(_) => return SnapshotBatch::Unavailable,
        };
        let pieces = std::mem::take(&mut *pieces.lock());
        if at.is_some_and(|at| at >= from) { SnapshotBatch::Rows(pieces, None) } else { SnapshotBatch::Unrecoverable }
    }
    .boxed()
}

/// The rewrite in progress and those that wait for it. One at a time: it shares the store with everybody's answers.
#[derive(Default)]
pub(super) struct SnapshotQueue {
    active: Option<ShardSnapshot>,
    queue: VecDeque<ShardSnapshot>,
}

impl SnapshotQueue {
    pub fn is_idle(&self) -> bool {
        self.active.is_none()
    }

    /// Begins, or queues up. `gap`: where the rows lead that the store did not take. They are dumped again: the source
    /// has decided them.
    pub fn begin(&mut self, outbox: Arc<Outbox>, generation: u64, gap: Option<Seq>) {
        self.begin_with(outbox, generation, gap, None);
    }

    /// The same for rows that are too many for a step, and that the store would have taken.
    pub fn catch_up(&mut self, outbox: Arc<Outbox>, generation: u64, waiting: PendingRows) {
        let PendingRows { from, to, rows, .. } = waiting;
        let fold_at = (2 * rows.len()).max(CHUNK_BYTES);
        self.begin_with(outbox, generation, Some(to), Some(UnstoredTail { from, rows, fold_at }));
    }

    fn begin_with(&mut self, outbox: Arc<Outbox>, generation: u64, gap: Option<Seq>, tail: Option<UnstoredTail>) {
        if let (Some(known), Some(to)) = (self.find(outbox.key), gap) {
            // A gap under a rewrite that was meant to free space: from now on it mends the gap, from the start.
            (known.gap, known.tail) = (Some(to), tail);
            known.restart(generation);
            return;
        }
        let rewrite = ShardSnapshot::new(outbox, generation, gap, tail);
        rewrite.publish_needs_source();
        self.queue.push_back(rewrite);
        self.promote();
    }

    /// Rows of a shard were taken. Keeps a copy if it is being rewritten; returns them if a step may carry them.
    pub fn record_rows(&mut self, outbox: &Outbox, waiting: PendingRows) -> Option<PendingRows> {
        let Some(rewrite) = self.find(outbox.key) else { return Some(waiting) };
        rewrite.record_rows(&waiting.rows);
        match &mut rewrite.gap {
            None => Some(waiting),
            Some(to) => {
                *to = waiting.to;
                None
            }
        }
    }

    /// Whether [`Self::next_batch`] has something.
    pub fn has_next(&self) -> bool {
        self.active.as_ref().is_some_and(|rewrite| {
            !rewrite.in_flight
                && (!rewrite.unsent_chunks.is_empty() || (rewrite.cursor.is_none() && rewrite.pending_batch.is_none()))
        })
    }

    /// The next chunk, or the flip.
    pub fn next_batch(&mut self, busy: &HashSet<ShardKey>) -> Option<InFlightBatch> {
        let is_free = |rewrite: &&mut ShardSnapshot| !rewrite.in_flight && !busy.contains(&rewrite.outbox.key);
        let rewrite = self.active.as_mut().filter(is_free)?;
        let (step, rows) = rewrite.next_write()?;
        rewrite.in_flight = true;
        Some(InFlightBatch { outbox: Arc::clone(&rewrite.outbox), write: step, rows })
    }

    /// Waits for the next piece; for ever if there is none to wait for. `generation`: a fresh one, should it be needed.
    pub async fn wait_batch(&mut self, generation: impl FnOnce() -> u64) {
        let Some(rewrite) =
            self.active.as_mut().filter(|rewrite| !rewrite.in_flight && rewrite.unsent_chunks.is_empty())
        else {
            return std::future::pending().await;
        };
        if rewrite.cursor.is_none() {
            return std::future::pending().await;
        }
        let generation = generation();
        if !rewrite.from_store && rewrite.tail.is_some() && rewrite.outbox.orphaned.load(Ordering::Acquire) {
            // What it has dumped so far is of no use without the rest.
            rewrite.from_store = true;
            rewrite.restart(generation);
        }
        let cursor = rewrite.cursor.unwrap_or(0);
        if rewrite.pending_batch.is_none() {
            if cursor == 0 {
                rewrite.incarnation = rewrite.outbox.incarnations.load(Ordering::Acquire);
            }
            rewrite.pending_batch = Some(rewrite.request_batch(cursor));
        }
        let Some(dump) = &mut rewrite.pending_batch else { return };
        let dumped = dump.await;
        rewrite.pending_batch = None;
        match dumped {
            SnapshotBatch::Rows(..) if rewrite.outbox.incarnations.load(Ordering::Acquire) != rewrite.incarnation => {
                rewrite.restart(generation)
            }
            SnapshotBatch::Rows(pieces, cursor) => {
                (rewrite.unsent_chunks, rewrite.cursor) = (pieces, cursor);
                if rewrite.from_store
                    && let Some(tail) = &rewrite.tail
                {
                    rewrite.rows_since_start.clone_from(&tail.rows);
                }
                rewrite.publish_needs_source();
            }
            SnapshotBatch::Unrecoverable => {
                rewrite.outbox.mark_unrecoverable();
                self.finish();
            }
            SnapshotBatch::Unavailable if rewrite.outbox.is_unrecoverable() => {
                tracing::error!(shard = ?rewrite.outbox.key, "the shard that could mend the gap is gone");
                self.finish();
            }
            // The source is restarting: it needs what a gap still keeps from the store, so that is tried again.
            // One that is refused for good must not keep the others waiting.
            SnapshotBatch::Unavailable if rewrite.gap.is_some() => {
                self.queue.extend(self.active.take());
                self.promote();
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            SnapshotBatch::Unavailable => self.finish(),
        }
    }

    pub fn chunk_done(&mut self, good: bool, generation: u64) {
        let Some(rewrite) = &mut self.active else { return };
        rewrite.in_flight = false;
        if good {
            rewrite.chunks_stored += 1;
        } else {
            rewrite.restart(generation);
        }
    }

    /// The flip was refused: once more from the start.
    pub fn restart(&mut self, to: Seq, generation: u64) {
        let Some(rewrite) = &mut self.active else { return };
        (rewrite.gap, rewrite.in_flight) = (Some(to), false);
        rewrite.restart(generation);
    }

    pub fn finish(&mut self) {
        self.active = None;
        self.promote();
    }

    /// The shard is being dropped.
    pub fn forget(&mut self, key: ShardKey) {
        self.queue.retain(|rewrite| rewrite.outbox.key != key);
        if self.active.as_ref().is_some_and(|rewrite| rewrite.outbox.key == key) {
            self.finish();
        }
    }

    fn promote(&mut self) {
        if self.active.is_none() {
            self.active = self.queue.pop_front();
        }
    }

    fn find(&mut self, key: ShardKey) -> Option<&mut ShardSnapshot> {
        self.active.iter_mut().chain(&mut self.queue).find(|rewrite| rewrite.outbox.key == key)
    }
}
