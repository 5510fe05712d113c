//! The journal remembers: a set of rows per shard that the store does not have yet, and the writer that brings them
//! there.
//!
//! A shard hands over copies of the rows it changed before any answer about them leaves ([`Outbox::hand`]); it never
//! waits. The writer ([`Journal::run`]) takes what is there from every shard that has something, applies it as one
//! contiguous step a shard, and tells the shards how far the store is ([`Outbox::applied`]). While the store is slow
//! or away, rows gather and are folded to their last state.

mod coalesce;
mod rewrite;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use dashmap::DashMap;
use futures::future::BoxFuture;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::model::{Millis, Seq};
use crate::store::{ShardKey, SharedStore};

/// Rows waiting in one outbox are folded when they are more than this, and again when they have doubled since.
const FOLD_BYTES: usize = 256 << 10;

/// Who has an outbox: a shard's handle, or the catalogue.
pub trait Source: Send + Sync {
    /// The store moved on, or failed: look at [`Outbox::applied`].
    fn progressed(&self);

    /// All rows from cursor `from` on, about `bytes` of them, and where to go on. None: the source is gone.
    fn dump(&self, from: u32, bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>>;
}

#[derive(Debug, Default)]
struct Waiting {
    rows: Vec<u8>,
    count: usize,
    from: Seq,
    to: Seq,
    since_ns: u64,
    fold_at: usize,
}

/// The rows of one shard on their way to the store.
pub struct Outbox {
    key: ShardKey,
    journal: Arc<Journal>,
    source: OnceLock<Weak<dyn Source>>,
    waiting: Mutex<Waiting>,
    applied: AtomicU64,
    /// Time of the oldest change that the store does not have; 0: it has all.
    oldest_ns: AtomicU64,
    /// In the journal's queue.
    queued: AtomicBool,
    /// Counts the shard's lives: each numbers its workers anew.
    lives: AtomicU64,
    /// The store answered a gap, and what is to mend it is not dumped yet.
    needs_source: AtomicBool,
    /// The shard panicked when only it could mend the gap.
    lost: AtomicBool,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("key", &self.key).field("applied", &self.applied()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Of a shard that the store has at `at`.
    #[must_use]
    pub fn new(journal: &Arc<Journal>, key: ShardKey, at: Seq) -> Arc<Self> {
        let outbox = Arc::new(Self {
            key,
            journal: Arc::clone(journal),
            source: OnceLock::new(),
            waiting: Mutex::new(Waiting { from: at, to: at, ..Waiting::default() }),
            applied: AtomicU64::new(at),
            oldest_ns: AtomicU64::new(0),
            queued: AtomicBool::new(false),
            lives: AtomicU64::new(0),
            needs_source: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        });
        journal.outboxes.insert(key, Arc::downgrade(&outbox));
        outbox
    }

    /// Says whom to tell of progress and to ask for rows. Once.
    pub fn attach(&self, source: Weak<dyn Source>) {
        let _ = self.source.set(source);
    }

    /// Starts anew at `at`: the shard was loaded from the store, nothing waits.
    pub fn restart(&self, at: Seq) {
        *self.lock() = Waiting { from: at, to: at, ..Waiting::default() };
        self.lives.fetch_add(1, Ordering::Release);
        self.applied.store(at, Ordering::Release);
        self.oldest_ns.store(0, Ordering::Relaxed);
    }

    /// Which shard's.
    #[must_use]
    pub const fn key(&self) -> ShardKey {
        self.key
    }

    /// Whether rows are wanted at all: `memory:` keeps none.
    #[must_use]
    pub fn wants_rows(&self) -> bool {
        self.journal.store.keeps_rows()
    }

    /// Takes copies of the rows that changed up to `to`; `write` appends them and says how many.
    pub fn hand(self: &Arc<Self>, to: Seq, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        {
            let mut waiting = self.lock();
            debug_assert!(to >= waiting.to, "J2: the record stream only grows");
            if waiting.count == 0 {
                waiting.since_ns = self.journal.clock.mono_ns().max(1);
                let _ = self.oldest_ns.compare_exchange(0, waiting.since_ns, Ordering::Relaxed, Ordering::Relaxed);
            }
            let Waiting { rows, count, .. } = &mut *waiting;
            *count += write(rows);
            waiting.to = to;
            self.journal.hands.fetch_add(1, Ordering::Relaxed);
            if waiting.rows.len() > waiting.fold_at.max(FOLD_BYTES) {
                coalesce::fold(&mut waiting.rows);
                waiting.fold_at = 2 * waiting.rows.len();
            }
        }
        self.journal.enqueue(self);
    }

    /// The store has everything up to here.
    #[must_use]
    pub fn applied(&self) -> Seq {
        self.applied.load(Ordering::Acquire)
    }

    /// Everything up to here was handed over.
    #[must_use]
    pub fn handed(&self) -> Seq {
        self.lock().to
    }

    /// Age of the oldest change that the store does not have.
    #[must_use]
    pub fn lag_ms(&self) -> Millis {
        match self.oldest_ns.load(Ordering::Relaxed) {
            0 => 0,
            since => self.journal.clock.mono_ns().saturating_sub(since) / 1_000_000,
        }
    }

    /// Waits until the store has everything up to `seq`, or will never (fenced): false.
    pub async fn stored(&self, seq: Seq) -> bool {
        loop {
            let progress = self.journal.progress.notified();
            if self.applied() >= seq {
                return true;
            }
            if self.journal.fenced() || self.is_lost() {
                return false;
            }
            progress.await;
        }
    }

    /// The shard panicked: waits until the store has its tail. False: it never will, fenced or [`Self::is_lost`].
    pub async fn drained(&self) -> bool {
        loop {
            let progress = self.journal.progress.notified();
            if self.applied() >= self.handed() {
                return true;
            }
            if self.journal.fenced() {
                return false;
            }
            if self.needs_source.load(Ordering::Acquire) {
                self.lost.store(true, Ordering::Release);
                self.journal.progress.notify_waiters();
                return false;
            }
            progress.await;
        }
    }

    /// The store lacks part of the shard, and the shard that could have mended it is gone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn take(&self) -> Waiting {
        let mut waiting = self.lock();
        let to = waiting.to;
        std::mem::replace(&mut *waiting, Waiting { from: to, to, ..Waiting::default() })
    }

    fn advance(&self, applied: Seq) {
        let since = {
            let waiting = self.lock();
            if waiting.count == 0 { 0 } else { waiting.since_ns }
        };
        self.oldest_ns.store(since, Ordering::Relaxed);
        self.applied.store(applied, Ordering::Release);
    }

    fn tell_source(&self) {
        if let Some(source) = self.source.get().and_then(Weak::upgrade) {
            source.progressed();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All outboxes of one store.
pub struct Journal {
    store: SharedStore,
    clock: Clock,
    outboxes: DashMap<ShardKey, Weak<Outbox>>,
    /// Counts hand-overs, for the writer to see that more keeps coming.
    hands: CachePadded<AtomicU64>,
    dirty: SegQueue<Arc<Outbox>>,
    drops: SegQueue<Arc<Outbox>>,
    work: Notify,
    progress: Notify,
    fenced: AtomicBool,
    trouble: Mutex<Option<String>>,
    generations: AtomicU64,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("store", &self.store.kind()).finish_non_exhaustive()
    }
}

impl Journal {
    /// Writes to `store`. Nothing is written until [`Journal::run`] runs.
    #[must_use]
    pub fn new(store: SharedStore, clock: Clock) -> Arc<Self> {
        let generations = AtomicU64::new(clock.unix_us());
        Arc::new(Self {
            store,
            clock,
            outboxes: DashMap::new(),
            hands: CachePadded::default(),
            dirty: SegQueue::new(),
            drops: SegQueue::new(),
            work: Notify::new(),
            progress: Notify::new(),
            fenced: AtomicBool::new(false),
            trouble: Mutex::new(None),
            generations,
        })
    }

    /// The store.
    #[must_use]
    pub const fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Another process owns the store: nothing may be answered any more.
    #[must_use]
    pub fn fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Why the store takes nothing at present, if so.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks that the store forgets the shard; [`Outbox::stored`] of `outbox.handed() + 1` says when it has.
    pub fn drop_shard(&self, outbox: &Arc<Outbox>) {
        self.drops.push(Arc::clone(outbox));
        self.work.notify_one();
    }

    /// Waits until nothing waits for the store.
    pub async fn flushed(&self, outboxes: impl IntoIterator<Item = Arc<Outbox>>) -> bool {
        for outbox in outboxes {
            if !outbox.stored(outbox.handed()).await {
                return false;
            }
        }
        true
    }

    /// Forgets what is queued: the service ends, and an outbox in the queue would keep the store open for ever.
    pub fn close(&self) {
        while self.dirty.pop().is_some() || self.drops.pop().is_some() {}
    }

    fn outbox(&self, key: ShardKey) -> Option<Arc<Outbox>> {
        self.outboxes.get(&key).and_then(|outbox| outbox.upgrade())
    }

    fn enqueue(&self, outbox: &Arc<Outbox>) {
        if !outbox.queued.swap(true, Ordering::AcqRel) {
            self.dirty.push(Arc::clone(outbox));
            self.work.notify_one();
        }
    }
}
