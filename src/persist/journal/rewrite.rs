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

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{BoxFuture, FutureExt as _, ready};

use super::writer::Flight;
use super::{Outbox, Waiting, coalesce};
use crate::model::Seq;
use crate::persist::store::{ShardKey, Step, StepKind};

/// About how much one chunk holds.
const CHUNK_BYTES: usize = 256 << 10;

/// Rows that may wait for the flip; more go as a chunk of their own first.
const FLIP_BYTES_MAX: usize = 4 * CHUNK_BYTES;

/// Pause before a source that cannot answer is asked again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(50);

type Dump = BoxFuture<'static, Dumped>;

/// What came of asking for rows.
enum Dumped {
    /// Rows in pieces, and where to go on.
    Rows(VecDeque<Vec<u8>>, Option<u32>),
    /// The source is gone, or the store that speaks for it is away.
    Nothing,
    /// The store, which should speak for the source, lacks part of it.
    Lost,
}

/// What the store lacks of a shard: rows that were handed over after its state at `from`.
struct Tail {
    from: Seq,
    rows: Vec<u8>,
    fold_at: usize,
}

impl Tail {
    fn extend(&mut self, rows: &[u8]) {
        extend(&mut self.rows, rows, &mut self.fold_at);
    }
}

/// Appends rows, and folds them now and then.
fn extend(kept: &mut Vec<u8>, rows: &[u8], fold_at: &mut usize) {
    kept.extend_from_slice(rows);
    if kept.len() > *fold_at {
        coalesce::fold(kept);
        *fold_at = (2 * kept.len()).max(CHUNK_BYTES);
    }
}

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
    pieces: VecDeque<Vec<u8>>,
    /// Rows that were handed over since the rewrite began.
    again: Vec<u8>,
    fold_at: usize,
    /// The store takes no steps of this shard until the flip; rows taken so far lead to this.
    gap: Option<Seq>,
    /// The store has all before this, and no step may carry it.
    tail: Option<Tail>,
    /// The source has panicked: what is dumped is what the store has.
    from_store: bool,
    in_flight: bool,
}

impl Rewrite {
    fn new(outbox: Arc<Outbox>, generation: u64, gap: Option<Seq>, tail: Option<Tail>) -> Self {
        Self {
            outbox,
            generation,
            chunks: 0,
            dump: None,
            cursor: Some(0),
            life: 0,
            pieces: VecDeque::new(),
            again: Vec::new(),
            fold_at: CHUNK_BYTES,
            gap,
            tail,
            from_store: false,
            in_flight: false,
        }
    }

    /// From the first row on, under a fresh generation: what was kept beside is in what is dumped from now on.
    fn begin_anew(&mut self, generation: u64) {
        (self.generation, self.chunks, self.cursor) = (generation, 0, Some(0));
        self.again.clear();
        self.dump = None;
        self.pieces.clear();
        self.say_needs_source();
    }

    fn say_needs_source(&self) {
        let needed = self.gap.is_some() && self.cursor.is_some() && self.tail.is_none();
        self.outbox.needs_source.store(needed, Ordering::Release);
    }

    fn note(&mut self, rows: &[u8]) {
        if let Some(tail) = &mut self.tail {
            tail.extend(rows);
        }
        let begun = self.dump.is_some() || !self.pieces.is_empty() || self.cursor != Some(0);
        if !begun && self.gap.is_some() {
            // All of it is still to be dumped.
            return;
        }
        extend(&mut self.again, rows, &mut self.fold_at);
    }

    /// Asks for the next piece: the source, or the store if the source is no more.
    fn ask(&self, cursor: u32) -> Dump {
        let source = self.outbox.source.get().and_then(std::sync::Weak::upgrade);
        match (&self.tail, source) {
            (Some(tail), _) if self.from_store => stored(&self.outbox, tail.from),
            (_, None) => ready(Dumped::Nothing).boxed(),
            (_, Some(source)) => {
                let dump = source.dump(cursor, CHUNK_BYTES);
                dump.map(|dumped| match dumped {
                    Some((rows, cursor)) => Dumped::Rows([rows].into(), cursor),
                    None => Dumped::Nothing,
                })
                .boxed()
            }
        }
    }

    fn step(&mut self) -> Option<(Step, usize)> {
        let shard = self.outbox.key;
        if let Some(rows) = self.pieces.pop_front() {
            let kind = StepKind::Chunk { generation: self.generation, number: self.chunks, rows: rows.into() };
            return Some((Step { shard, from: 0, to: 0, kind }, 0));
        }
        if self.cursor.is_some() || self.dump.is_some() {
            return None;
        }
        let waiting = self.outbox.take();
        let to = waiting.to.max(self.gap.unwrap_or(0));
        self.again.extend_from_slice(&waiting.rows);
        if let Some(tail) = &mut self.tail {
            tail.extend(&waiting.rows);
        }
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

/// All that the store has of a shard. It is the whole shard in memory; whoever restarts it loads it anyway.
fn stored(outbox: &Outbox, from: Seq) -> Dump {
    let (store, key) = (Arc::clone(outbox.journal.store()), outbox.key);
    let pieces: Arc<Mutex<VecDeque<Vec<u8>>>> = Arc::default();
    let into = Arc::clone(&pieces);
    let sink = move |_: ShardKey, frames: &[u8]| {
        let mut pieces = into.lock().unwrap_or_else(PoisonError::into_inner);
        match pieces.back_mut() {
            Some(piece) if piece.len() + frames.len() <= CHUNK_BYTES => piece.extend_from_slice(frames),
            _ => pieces.push_back(frames.to_vec()),
        }
    };
    async move {
        let at = match store.load(vec![key], Box::new(sink)).await {
            Ok(loaded) => loaded.into_iter().next().and_then(|loaded| loaded.at.ok()),
            Err(_) => return Dumped::Nothing,
        };
        let pieces = std::mem::take(&mut *pieces.lock().unwrap_or_else(PoisonError::into_inner));
        if at.is_some_and(|at| at >= from) { Dumped::Rows(pieces, None) } else { Dumped::Lost }
    }
    .boxed()
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
        self.begin_with(outbox, generation, gap, None);
    }

    /// The same for rows that are too many for a step, and that the store would have taken.
    pub fn catch_up(&mut self, outbox: Arc<Outbox>, generation: u64, waiting: Waiting) {
        let Waiting { from, to, rows, .. } = waiting;
        let fold_at = (2 * rows.len()).max(CHUNK_BYTES);
        self.begin_with(outbox, generation, Some(to), Some(Tail { from, rows, fold_at }));
    }

    fn begin_with(&mut self, outbox: Arc<Outbox>, generation: u64, gap: Option<Seq>, tail: Option<Tail>) {
        if let (Some(known), Some(to)) = (self.of(outbox.key), gap) {
            // A gap under a rewrite that was meant to free space: from now on it mends the gap, from the start.
            (known.gap, known.tail) = (Some(to), tail);
            known.begin_anew(generation);
            return;
        }
        let rewrite = Rewrite::new(outbox, generation, gap, tail);
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
            !rewrite.in_flight && (!rewrite.pieces.is_empty() || (rewrite.cursor.is_none() && rewrite.dump.is_none()))
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
        let Some(rewrite) = self.active.as_mut().filter(|rewrite| !rewrite.in_flight && rewrite.pieces.is_empty())
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
            rewrite.begin_anew(generation);
        }
        let cursor = rewrite.cursor.unwrap_or(0);
        if rewrite.dump.is_none() {
            if cursor == 0 {
                rewrite.life = rewrite.outbox.lives.load(Ordering::Acquire);
            }
            rewrite.dump = Some(rewrite.ask(cursor));
        }
        let Some(dump) = &mut rewrite.dump else { return };
        let dumped = dump.await;
        rewrite.dump = None;
        match dumped {
            Dumped::Rows(..) if rewrite.outbox.lives.load(Ordering::Acquire) != rewrite.life => {
                rewrite.begin_anew(generation)
            }
            Dumped::Rows(pieces, cursor) => {
                (rewrite.pieces, rewrite.cursor) = (pieces, cursor);
                if rewrite.from_store
                    && let Some(tail) = &rewrite.tail
                {
                    rewrite.again.clone_from(&tail.rows);
                }
                rewrite.say_needs_source();
            }
            Dumped::Lost => {
                rewrite.outbox.lose();
                self.finish();
            }
            Dumped::Nothing if rewrite.outbox.is_lost() => {
                tracing::error!(shard = ?rewrite.outbox.key, "the shard that could mend the gap is gone");
                self.finish();
            }
            // The source is restarting: it needs what a gap still keeps from the store, so that is tried again.
            // One that is refused for good must not keep the others waiting.
            Dumped::Nothing if rewrite.gap.is_some() => {
                self.queue.extend(self.active.take());
                self.promote();
                tokio::time::sleep(RETRY).await;
            }
            Dumped::Nothing => self.finish(),
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
