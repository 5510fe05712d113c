//! Snapshots: a shard is written anew as a whole, because the store lost part of it (a gap) or to let the store free space.
//!
//! The source dumps its rows batch by batch, each a numbered chunk of a new generation. Rows that change meanwhile are kept
//! aside ([`ShardSnapshot::rows_since_start`]) and go last, with the install. The last state of a row among chunks and
//! install is its present one: what changed after its dump was appended later, and is among those kept aside. While the
//! store still has the old generation (no gap), batches go on to it, so durable replies do not wait for the snapshot.
//!
//! A shard with more pending rows than one batch may carry gets a snapshot too. If its source panics before it has dumped
//! everything, the rows in the store and the pending rows together are the shard: then the store's rows are the dump, and
//! the pending rows go last.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _, ready};

use super::writer::InFlightBatch;
use super::{Outbox, PendingRows, compaction};
use crate::collections::HashSet;
use crate::environment::Environment;
use crate::model::Seq;
use crate::persist::store::{ShardKey, WriteBatch, WriteKind};

/// Approximate size of one chunk.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that the rows which wait for the install may fill; more go as a chunk of their own first.
const INSTALL_CHUNKS_MAX: usize = 4;

/// Pause before an unavailable source is asked again.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

type PendingDump = BoxFuture<'static, SnapshotBatch>;

/// Result of asking the source for rows.
enum SnapshotBatch {
    /// Rows in chunks, and the next cursor.
    Rows(VecDeque<Vec<u8>>, Option<u32>),
    /// The source is gone, or the store that stands in for it is unavailable.
    Unavailable,
    /// The store, which should stand in for the source, lacks part of the shard.
    Unrecoverable,
}

/// Rows that were appended after `from`, up to which the store has everything.
struct UnstoredTail {
    from: Seq,
    rows: Vec<u8>,
    compact_at: usize,
}

impl UnstoredTail {
    fn extend(&mut self, rows: &[u8]) {
        extend(&mut self.rows, rows, &mut self.compact_at);
    }
}

/// Size of the chunks of a shard: a store that takes small batches takes small chunks.
fn chunk_bytes(outbox: &Outbox) -> usize {
    CHUNK_BYTES.min(outbox.store().batch_bytes_max() / INSTALL_CHUNKS_MAX).max(1)
}

/// Appends rows, and compacts them whenever they have doubled.
fn extend(all: &mut Vec<u8>, rows: &[u8], compact_at: &mut usize) {
    all.extend_from_slice(rows);
    if all.len() > *compact_at {
        compaction::compact(all);
        *compact_at = (2 * all.len()).max(CHUNK_BYTES);
    }
}

struct ShardSnapshot {
    outbox: Arc<Outbox>,
    generation: u64,
    /// Number of chunks that the store has.
    chunks_stored: u32,
    pending_batch: Option<PendingDump>,
    /// Cursor of the next dump; none: everything is dumped.
    cursor: Option<u32>,
    /// Incarnation of the shard that the first dump came from: another one numbers its workers differently.
    incarnation: u64,
    /// Chunks that are dumped and not sent yet.
    unsent_chunks: VecDeque<Vec<u8>>,
    /// Rows that were appended since the snapshot began.
    rows_since_start: Vec<u8>,
    compact_at: usize,
    /// Sequence number of the rows taken so far, if the store rejects batches of this shard until the install.
    gap: Option<Seq>,
    /// Rows that are too many for a batch, if the store has everything before them.
    tail: Option<UnstoredTail>,
    /// Whether the source panicked, so that the store's rows are the dump.
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

    /// Starts from the first row under a fresh generation; the rows kept aside so far are in the new dump.
    fn restart(&mut self, generation: u64) {
        (self.generation, self.chunks_stored, self.cursor) = (generation, 0, Some(0));
        self.rows_since_start.clear();
        self.pending_batch = None;
        self.unsent_chunks.clear();
        self.publish_needs_source();
    }

    fn publish_needs_source(&self) {
        let needed = self.gap.is_some() && self.cursor.is_some() && self.tail.is_none();
        self.outbox.set_needs_source(needed);
    }

    fn record_rows(&mut self, rows: &[u8]) {
        if let Some(tail) = &mut self.tail {
            tail.extend(rows);
        }
        let has_begun = self.pending_batch.is_some() || !self.unsent_chunks.is_empty() || self.cursor != Some(0);
        if !has_begun && self.gap.is_some() {
            // The coming dump includes them.
            return;
        }
        extend(&mut self.rows_since_start, rows, &mut self.compact_at);
    }

    /// Asks the source for the next batch, or the store if the source panicked.
    fn request_batch(&self, cursor: u32) -> PendingDump {
        match (&self.tail, self.outbox.source()) {
            (Some(tail), _) if self.from_store => dump_of_store(&self.outbox, tail.from),
            (_, None) => ready(SnapshotBatch::Unavailable).boxed(),
            (_, Some(source)) => {
                let dump = source.snapshot_rows(cursor, chunk_bytes(&self.outbox));
                dump.map(|dumped| match dumped {
                    Some((rows, cursor)) => SnapshotBatch::Rows([rows].into(), cursor),
                    None => SnapshotBatch::Unavailable,
                })
                .boxed()
            }
        }
    }

    fn next_write(&mut self) -> Option<(WriteBatch, usize)> {
        let shard = self.outbox.key();
        if let Some(rows) = self.unsent_chunks.pop_front() {
            let kind = WriteKind::Chunk { generation: self.generation, number: self.chunks_stored, rows: rows.into() };
            return Some((WriteBatch { shard, from: 0, to: 0, kind }, 0));
        }
        if self.cursor.is_some() || self.pending_batch.is_some() {
            return None;
        }
        let pending = self.outbox.take_pending();
        let to = pending.to.max(self.gap.unwrap_or(0));
        self.rows_since_start.extend_from_slice(&pending.rows);
        if let Some(tail) = &mut self.tail {
            tail.extend(&pending.rows);
        }
        let chunk_bytes = chunk_bytes(&self.outbox);
        if self.rows_since_start.len() > INSTALL_CHUNKS_MAX * chunk_bytes {
            // These override earlier states wherever they are stored, so they need not wait for the install.
            compaction::compact(&mut self.rows_since_start);
            let rows = compaction::split_front(&mut self.rows_since_start, chunk_bytes);
            let kind = WriteKind::Chunk { generation: self.generation, number: self.chunks_stored, rows: rows.into() };
            if pending.to > pending.from {
                // The rows just taken go to the new generation alone.
                self.gap = Some(to);
            }
            return Some((WriteBatch { shard, from: 0, to: 0, kind }, 0));
        }
        let rows = std::mem::take(&mut self.rows_since_start);
        let kind = WriteKind::Install { generation: self.generation, chunks: self.chunks_stored, rows: rows.into() };
        Some((WriteBatch { shard, from: pending.from, to, kind }, pending.count))
    }
}

/// Reads all rows that the store has of a shard into memory, as its restart does anyway.
fn dump_of_store(outbox: &Outbox, from: Seq) -> PendingDump {
    let (store, key, chunk_bytes) = (Arc::clone(outbox.store()), outbox.key(), chunk_bytes(outbox));
    let chunks: Arc<Mutex<VecDeque<Vec<u8>>>> = Arc::default();
    let into = Arc::clone(&chunks);
    let sink = move |_: ShardKey, frames: &[u8]| {
        let mut chunks = into.lock();
        match chunks.back_mut() {
            Some(chunk) if chunk.len() + frames.len() <= chunk_bytes => chunk.extend_from_slice(frames),
            _ => chunks.push_back(frames.to_vec()),
        }
    };
    async move {
        let at = match store.load(vec![key], Box::new(sink)).await {
            Ok(loaded) => loaded.into_iter().next().and_then(|loaded| loaded.at.ok()),
            Err(_) => return SnapshotBatch::Unavailable,
        };
        let chunks = std::mem::take(&mut *chunks.lock());
        if at.is_some_and(|at| at >= from) { SnapshotBatch::Rows(chunks, None) } else { SnapshotBatch::Unrecoverable }
    }
    .boxed()
}

/// Snapshots of one writer. One is active at a time, because it shares the store with the batches that replies wait for.
#[derive(Default)]
pub(super) struct SnapshotQueue {
    active: Option<ShardSnapshot>,
    queue: VecDeque<ShardSnapshot>,
}

impl SnapshotQueue {
    pub fn is_idle(&self) -> bool {
        self.active.is_none()
    }

    /// Begins or queues a snapshot. `gap` is the sequence number of the rows that the store rejected; the source dumps them
    /// again.
    pub fn begin(&mut self, outbox: Arc<Outbox>, generation: u64, gap: Option<Seq>) {
        self.begin_with(outbox, generation, gap, None);
    }

    /// Begins or queues a snapshot for rows that are too many for a batch.
    pub fn catch_up(&mut self, outbox: Arc<Outbox>, generation: u64, pending: PendingRows) {
        crate::reached!("snapshot: more rows wait than a batch may carry");
        let PendingRows { from, to, rows, .. } = pending;
        let compact_at = (2 * rows.len()).max(CHUNK_BYTES);
        self.begin_with(outbox, generation, Some(to), Some(UnstoredTail { from, rows, compact_at }));
    }

    fn begin_with(&mut self, outbox: Arc<Outbox>, generation: u64, gap: Option<Seq>, tail: Option<UnstoredTail>) {
        if let (Some(snapshot), Some(to)) = (self.find(outbox.key()), gap) {
            // A gap under a snapshot that was meant to free space: it starts again, and closes the gap.
            (snapshot.gap, snapshot.tail) = (Some(to), tail);
            snapshot.restart(generation);
            return;
        }
        let snapshot = ShardSnapshot::new(outbox, generation, gap, tail);
        snapshot.publish_needs_source();
        self.queue.push_back(snapshot);
        self.promote();
    }

    /// Keeps a copy of the rows if a snapshot of their shard is under way; returns them if a batch may carry them.
    pub fn record_rows(&mut self, outbox: &Outbox, pending: PendingRows) -> Option<PendingRows> {
        let Some(snapshot) = self.find(outbox.key()) else { return Some(pending) };
        snapshot.record_rows(&pending.rows);
        match &mut snapshot.gap {
            None => Some(pending),
            Some(to) => {
                *to = pending.to;
                None
            }
        }
    }

    /// Whether [`Self::next_batch`] has a batch.
    pub fn has_next(&self) -> bool {
        self.active.as_ref().is_some_and(|snapshot| {
            !snapshot.in_flight
                && (!snapshot.unsent_chunks.is_empty()
                    || (snapshot.cursor.is_none() && snapshot.pending_batch.is_none()))
        })
    }

    /// Next chunk, or the install, unless its shard is busy.
    pub fn next_batch(&mut self, busy: &HashSet<ShardKey>) -> Option<InFlightBatch> {
        let is_free = |snapshot: &&mut ShardSnapshot| !snapshot.in_flight && !busy.contains(&snapshot.outbox.key());
        let snapshot = self.active.as_mut().filter(is_free)?;
        let (write, rows) = snapshot.next_write()?;
        snapshot.in_flight = true;
        Some(InFlightBatch { outbox: Arc::clone(&snapshot.outbox), write, rows })
    }

    /// Waits for the next rows of the source; for ever if none are to come. `generation` draws a fresh one if it is needed.
    pub async fn wait_batch(&mut self, environment: &Environment, generation: impl FnOnce() -> u64) {
        let Some(snapshot) =
            self.active.as_mut().filter(|snapshot| !snapshot.in_flight && snapshot.unsent_chunks.is_empty())
        else {
            return std::future::pending().await;
        };
        if snapshot.cursor.is_none() {
            return std::future::pending().await;
        }
        let generation = generation();
        if !snapshot.from_store && snapshot.tail.is_some() && snapshot.outbox.is_orphaned() {
            // The source cannot complete its dump: use the rows in the store instead.
            snapshot.from_store = true;
            crate::reached!("snapshot: taken from the store because its shard panicked");
            snapshot.restart(generation);
        }
        let cursor = snapshot.cursor.unwrap_or(0);
        if snapshot.pending_batch.is_none() {
            if cursor == 0 {
                snapshot.incarnation = snapshot.outbox.incarnation();
            }
            snapshot.pending_batch = Some(snapshot.request_batch(cursor));
        }
        let Some(dump) = &mut snapshot.pending_batch else { return };
        let dumped = dump.await;
        snapshot.pending_batch = None;
        match dumped {
            SnapshotBatch::Rows(..) if snapshot.outbox.incarnation() != snapshot.incarnation => {
                snapshot.restart(generation)
            }
            SnapshotBatch::Rows(chunks, cursor) => {
                (snapshot.unsent_chunks, snapshot.cursor) = (chunks, cursor);
                if snapshot.from_store
                    && let Some(tail) = &snapshot.tail
                {
                    snapshot.rows_since_start.clone_from(&tail.rows);
                }
                snapshot.publish_needs_source();
            }
            SnapshotBatch::Unrecoverable => {
                crate::reached!("snapshot: rows that only a panicked shard had");
                snapshot.outbox.mark_unrecoverable();
                self.finish();
            }
            SnapshotBatch::Unavailable if snapshot.outbox.is_unrecoverable() => {
                tracing::error!(shard = ?snapshot.outbox.key(), "the store lost records of the shard, and the shard that had them panicked");
                self.finish();
            }
            // The source is restarting, and its rows are needed to close the gap: try again later. A shard that cannot be
            // loaded at all must not delay the others.
            SnapshotBatch::Unavailable if snapshot.gap.is_some() => {
                crate::reached!("snapshot: its source restarts");
                self.queue.extend(self.active.take());
                self.promote();
                environment.sleep(RETRY_PAUSE).await;
            }
            SnapshotBatch::Unavailable => {
                snapshot.outbox.store().skip_snapshot(snapshot.outbox.key());
                self.finish();
            }
        }
    }

    pub fn chunk_stored(&mut self) {
        let Some(snapshot) = &mut self.active else { return };
        crate::reached!("snapshot: a chunk is stored");
        snapshot.in_flight = false;
        snapshot.chunks_stored += 1;
    }

    /// Starts the active snapshot again under a fresh generation.
    pub fn chunk_rejected(&mut self, generation: u64) {
        let Some(snapshot) = &mut self.active else { return };
        snapshot.in_flight = false;
        snapshot.restart(generation);
    }

    /// Starts the active snapshot again; the rows of the rejected install lead to `to`.
    pub fn install_rejected(&mut self, to: Seq, generation: u64) {
        let Some(snapshot) = &mut self.active else { return };
        (snapshot.gap, snapshot.in_flight) = (Some(to), false);
        snapshot.restart(generation);
    }

    pub fn finish(&mut self) {
        self.active = None;
        self.promote();
    }

    /// Forgets the snapshot of a shard that is being dropped.
    pub fn forget(&mut self, key: ShardKey) {
        self.queue.retain(|snapshot| snapshot.outbox.key() != key);
        if self.active.as_ref().is_some_and(|snapshot| snapshot.outbox.key() == key) {
            self.finish();
        }
    }

    fn promote(&mut self) {
        if self.active.is_none() {
            self.active = self.queue.pop_front();
        }
    }

    fn find(&mut self, key: ShardKey) -> Option<&mut ShardSnapshot> {
        self.active.iter_mut().chain(&mut self.queue).find(|snapshot| snapshot.outbox.key() == key)
    }
}
