//! Writes a shard anew as a whole: because the store lost part of it (a gap), or to let the store free space.
//!
//! The source dumps its rows piece by piece, each a numbered chunk of a new generation; rows that change meanwhile
//! are kept beside ([`Rewrite::again`]) and go last, with the flip. The last state of a row among chunks and flip is
//! its present one: whatever changed after its dump was handed over later and is in `again`. When the store has the
//! old generation (no gap), steps go on to it meanwhile, so durable answers do not wait for the rewrite.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::BoxFuture;

use super::writer::Flight;
use super::{Outbox, Waiting, coalesce};
use crate::model::Seq;
use crate::store::{ShardKey, Step, StepKind};

/// About how much one chunk holds.
const CHUNK_BYTES: usize = 256 << 10;

/// Rows that may wait for the flip; more go as a chunk of their own first.
const FLIP_BYTES_MAX: usize = 4 * CHUNK_BYTES;

/// Pause before a source that cannot answer is asked again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(50);

type Dump = BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>>;

struct Rewrite {
    outbox: Arc<Outbox>,
    generation: u64,
    /// Chunks that the store has.
    chunks: u32,
    dump: Option<Dump>,
    /// Where the next dump starts; none: all is dumped.
    cursor: Option<u32>,
    /// The life of the shard that the first dump came from: another one numbers its workers otherwise.
    life: u64,
    /// Dumped, not sent.
    piece: Option<Vec<u8>>,
    /// Rows that were handed over since the rewrite began.
    again: Vec<u8>,
    fold_at: usize,
    /// The store takes no steps of this shard until the flip; rows taken so far lead to this.
    gap: Option<Seq>,
    in_flight: bool,
}

impl Rewrite {
    fn new(outbox: Arc<Outbox>, generation: u64, gap: Option<Seq>) -> Self {
        Self {
            outbox,
            generation,
            chunks: 0,
            dump: None,
            cursor: Some(0),
            life: 0,
            piece: None,
            again: Vec::new(),
            fold_at: CHUNK_BYTES,
            gap,
            in_flight: false,
        }
    }

    /// From the first row on, under a fresh generation: what was kept beside is in what is dumped from now on.
    fn begin_anew(&mut self, generation: u64) {
        (self.generation, self.chunks, self.cursor) = (generation, 0, Some(0));
        self.again.clear();
        (self.dump, self.piece) = (None, None);
        self.say_needs_source();
    }

    fn say_needs_source(&self) {
        self.outbox.needs_source.store(self.gap.is_some() && self.cursor.is_some(), Ordering::Release);
    }

    fn note(&mut self, rows: &[u8]) {
        let begun = self.dump.is_some() || self.piece.is_some() || self.cursor != Some(0);
        if !begun && self.gap.is_some() {
            // All of it is still to be dumped.
            return;
        }
        self.again.extend_from_slice(rows);
        if self.again.len() > self.fold_at {
            coalesce::fold(&mut self.again);
            self.fold_at = (2 * self.again.len()).max(CHUNK_BYTES);
        }
    }

    fn step(&mut self) -> Option<(Step, usize)> {
        let shard = self.outbox.key;
        if let Some(rows) = self.piece.take() {
            let kind = StepKind::Chunk { generation: self.generation, number: self.chunks, rows: rows.into() };
            return Some((Step { shard, from: 0, to: 0, kind }, 0));
        }
        if self.cursor.is_some() || self.dump.is_some() {
            return None;
        }
        let waiting = self.outbox.take();
        let to = waiting.to.max(self.gap.unwrap_or(0));
        self.again.extend_from_slice(&waiting.rows);
        if self.again.len() > FLIP_BYTES_MAX {
            // Last states that count over earlier ones, wherever they stand: they need not wait for the flip.
            coalesce::fold(&mut self.again);
            let rows = coalesce::cut(&mut self.again, CHUNK_BYTES);
            let kind = StepKind::Chunk { generation: self.generation, number: self.chunks, rows: rows.into() };
            if waiting.to > waiting.from {
                // What was taken goes by way of the new generation alone.
                self.gap = Some(to);
            }
            return Some((Step { shard, from: 0, to: 0, kind }, 0));
        }
        let rows = std::mem::take(&mut self.again);
        let kind = StepKind::Flip { generation: self.generation, chunks: self.chunks, rows: rows.into() };
        Some((Step { shard, from: waiting.from, to, kind }, waiting.count))
    }
}

/// The rewrite in progress and those that wait for it. One at a time: it shares the store with everybody's answers.
#[derive(Default)]
pub(super) struct Rewrites {
    active: Option<Rewrite>,
    queue: VecDeque<Rewrite>,
}

impl Rewrites {
    pub fn idle(&self) -> bool {
        self.active.is_none()
    }

    /// Begins, or queues up. `gap`: where the rows lead that the store did not take. They are dumped again: the source
    /// has decided them.
    pub fn begin(&mut self, outbox: Arc<Outbox>, generation: u64, gap: Option<Seq>) {
        if let (Some(known), Some(to)) = (self.of(outbox.key), gap) {
            // A gap under a rewrite that was meant to free space: from now on it mends the gap, from the start.
            known.gap = Some(to);
            known.begin_anew(generation);
            return;
        }
        let rewrite = Rewrite::new(outbox, generation, gap);
        rewrite.say_needs_source();
        self.queue.push_back(rewrite);
        self.promote();
    }

    /// Rows of a shard were taken. Keeps a copy if it is being rewritten; returns them if a step may carry them.
    pub fn note(&mut self, outbox: &Outbox, waiting: Waiting) -> Option<Waiting> {
        let Some(rewrite) = self.of(outbox.key) else { return Some(waiting) };
        rewrite.note(&waiting.rows);
        match &mut rewrite.gap {
            None => Some(waiting),
            Some(to) => {
                *to = waiting.to;
                None
            }
        }
    }

    /// Whether [`Self::next_flight`] has something.
    pub fn ready(&self) -> bool {
        self.active.as_ref().is_some_and(|rewrite| {
            !rewrite.in_flight && (rewrite.piece.is_some() || (rewrite.cursor.is_none() && rewrite.dump.is_none()))
        })
    }

    /// The next chunk, or the flip.
    pub fn next_flight(&mut self, busy: &HashSet<ShardKey>) -> Option<Flight> {
        let is_free = |rewrite: &&mut Rewrite| !rewrite.in_flight && !busy.contains(&rewrite.outbox.key);
        let rewrite = self.active.as_mut().filter(is_free)?;
        let (step, rows) = rewrite.step()?;
        rewrite.in_flight = true;
        Some(Flight { outbox: Arc::clone(&rewrite.outbox), step, rows })
    }

    /// Waits for the next piece; for ever if there is none to wait for. `generation`: a fresh one, should it be needed.
    pub async fn dumped(&mut self, generation: impl FnOnce() -> u64) {
        let Some(rewrite) = self.active.as_mut().filter(|rewrite| !rewrite.in_flight && rewrite.piece.is_none()) else {
            return std::future::pending().await;
        };
        let Some(cursor) = rewrite.cursor else { return std::future::pending().await };
        let outbox = &rewrite.outbox;
        if cursor == 0 && rewrite.dump.is_none() {
            rewrite.life = outbox.lives.load(Ordering::Acquire);
        }
        let dump = rewrite.dump.get_or_insert_with(|| {
            let source = outbox.source.get().and_then(std::sync::Weak::upgrade);
            source.map_or_else(|| Box::pin(async { None }) as Dump, |source| source.dump(cursor, CHUNK_BYTES))
        });
        let dumped = dump.await;
        rewrite.dump = None;
        match dumped {
            Some(_) if rewrite.outbox.lives.load(Ordering::Acquire) != rewrite.life => rewrite.begin_anew(generation()),
            Some((rows, cursor)) => {
                rewrite.cursor = cursor;
                rewrite.piece = Some(rows);
                rewrite.say_needs_source();
            }
            None if rewrite.outbox.is_lost() => {
                tracing::error!(shard = ?rewrite.outbox.key, "the shard that could mend the gap is gone");
                self.finish();
            }
            // The source is restarting: it needs what a gap still keeps from the store, so that is tried again.
            // One that is refused for good must not keep the others waiting.
            None if rewrite.gap.is_some() => {
                self.queue.extend(self.active.take());
                self.promote();
                tokio::time::sleep(RETRY).await;
            }
            None => self.finish(),
        }
    }

    pub fn chunk_done(&mut self, good: bool, generation: u64) {
        let Some(rewrite) = &mut self.active else { return };
        rewrite.in_flight = false;
        if good {
            rewrite.chunks += 1;
        } else {
            rewrite.begin_anew(generation);
        }
    }

    /// The flip was refused: once more from the start.
    pub fn restart(&mut self, to: Seq, generation: u64) {
        let Some(rewrite) = &mut self.active else { return };
        (rewrite.gap, rewrite.in_flight) = (Some(to), false);
        rewrite.begin_anew(generation);
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

    fn of(&mut self, key: ShardKey) -> Option<&mut Rewrite> {
        self.active.iter_mut().chain(&mut self.queue).find(|rewrite| rewrite.outbox.key == key)
    }
}
