//! The journal remembers: a set of rows per shard that the store does not have yet, and the writer that brings them
//! there.
//!
//! A shard hands over copies of the rows it changed before any answer about them leaves ([`Outbox::hand`]); it never
//! waits. The writer ([`Journal::run`]) takes what is there from every shard that has something, applies it as one
//! contiguous step a shard, and tells the shards how far the store is ([`Outbox::applied`]). While the store is slow
//! or away, rows gather and are folded to their last state.
//!
//! A store of several servers has a writer for each ([`Store::lane`](crate::persist::store::Store::lane)): one that is slow
//! keeps no other waiting.

/// Atomics of this build; `tests/loom.rs` puts loom's in their place.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
}
mod compaction;
mod lag;
mod lease;
mod lease_deadline;
mod snapshot;
mod writer;

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use dashmap::DashMap;
use futures::future::BoxFuture;
use tokio::sync::Notify;

use self::lag::LagTracker;
pub use self::lease::Lease;
use crate::clock::Clock;
use crate::model::request_error::UnavailableReason;
use crate::model::{Millis, Seq};
use crate::persist::row::{ShardRow, put_shard};
use crate::persist::store::{ShardKey, SharedStore};

/// Rows waiting in one outbox are folded when they are more than this, and again when they have doubled since.
const COMPACT_BYTES: usize = 256 << 10;
/// Bytes that are made room for in advance, at most.
const SIZE_HINT_BYTES_MAX: usize = 16 << 10;
/// What a shard's own row takes, about.
const HEADER_BYTES: usize = 48;

/// Writers at most. Lanes beyond share them.
const PARTITIONS_MAX: usize = 16;
/// Between two looks at all shards that were caused by gaps.
const CHECK_INTERVAL_NS: u64 = 1_000_000_000;

/// Who has an outbox: a shard's handle, or the catalogue.
pub trait RowSource: Send + Sync {
    /// The store moved on, here or where [`Outbox::notify_also`] said; or answers may leave again.
    fn on_progress(&self);

    /// All rows from cursor `from` on, about `bytes` of them, and where to go on. None: the source is gone.
    fn snapshot_rows(&self, from: u32, bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>>;
}

#[derive(Debug, Default)]
struct PendingRows {
    rows: Vec<u8>,
    /// The shard's own row, last of them: it changes with every claim, and only its last state counts.
    header: Option<ShardRow>,
    count: usize,
    from: Seq,
    to: Seq,
    compact_at: usize,
    /// About how many bytes of rows the last step had: so many are made room for at once.
    size_hint: usize,
}

/// The rows of one shard on their way to the store.
pub struct Outbox {
    key: ShardKey,
    /// Its writer, for good: two writers could overtake each other.
    partition: usize,
    journal: Arc<Journal>,
    source: OnceLock<Weak<dyn RowSource>>,
    pending: Mutex<PendingRows>,
    applied: AtomicU64,
    /// Times of what the store lacks; handed to and taken from with `waiting` locked.
    lag: LagTracker,
    /// In its writer's queue.
    queued: AtomicBool,
    /// The store was told to forget the shard: nothing is to be written of it any more.
    dropped: AtomicBool,
    /// A step goes out even if nothing has changed: to see whether the store still has all.
    check: AtomicBool,
    /// Counts the shard's lives: each numbers its workers anew.
    incarnations: AtomicU64,
    /// The store answered a gap, and what is to mend it is not dumped yet.
    needs_source: AtomicBool,
    /// The shard panicked: until it is restarted it dumps nothing.
    orphaned: AtomicBool,
    /// The shard panicked when only it could mend the gap.
    unrecoverable: AtomicBool,
    /// Outboxes of shards with answers that wait for records of this one: told once.
    waiters: Mutex<BTreeMap<ShardKey, Weak<Self>>>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("key", &self.key).field("applied", &self.applied_seq()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Of a shard that the store has at `at`.
    #[must_use]
    pub fn new(journal: &Arc<Journal>, key: ShardKey, at: Seq) -> Arc<Self> {
        let outbox = Arc::new(Self {
            key,
            partition: journal.store.writer_partition(key) % PARTITIONS_MAX,
            journal: Arc::clone(journal),
            source: OnceLock::new(),
            pending: Mutex::new(PendingRows { from: at, to: at, ..PendingRows::default() }),
            applied: AtomicU64::new(at),
            lag: LagTracker::default(),
            queued: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
            check: AtomicBool::new(false),
            incarnations: AtomicU64::new(0),
            needs_source: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            unrecoverable: AtomicBool::new(false),
            waiters: Mutex::default(),
        });
        journal.outboxes.insert(key, Arc::downgrade(&outbox));
        outbox
    }

    /// Says whom to tell of progress and to ask for rows. Once.
    pub fn attach(&self, source: Weak<dyn RowSource>) {
        let _ = self.source.set(source);
    }

    /// Starts anew at `at`: the shard was loaded from the store, nothing waits.
    pub fn restart(&self, at: Seq) {
        {
            let mut waiting = self.lock();
            *waiting = PendingRows { from: at, to: at, ..PendingRows::default() };
            self.lag.mark_in_flight();
            self.lag.mark_applied();
        }
        self.incarnations.fetch_add(1, Ordering::Release);
        self.orphaned.store(false, Ordering::Release);
        self.applied.store(at, Ordering::Release);
        self.notify_waiters();
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

    /// Takes copies of the rows that changed up to `to`; `write` appends them and says how many, the shard's own row is
    /// `head`, if it changed.
    pub fn append(self: &Arc<Self>, to: Seq, head: Option<ShardRow>, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        {
            let mut waiting = self.lock();
            debug_assert!(to >= waiting.to, "J2: the record stream only grows");
            if waiting.count == 0 {
                self.lag.mark_appended(self.journal.clock.mono_ns());
                let room = waiting.size_hint;
                waiting.rows.reserve(room);
            }
            waiting.count += write(&mut waiting.rows);
            if head.is_some() {
                waiting.count += usize::from(waiting.header.is_none());
                waiting.header = head;
            }
            waiting.to = to;
            self.journal.partitions[self.partition].append_count.fetch_add(1, Ordering::Relaxed);
            if waiting.rows.len() > waiting.compact_at.max(COMPACT_BYTES) {
                compaction::compact(&mut waiting.rows);
                waiting.compact_at = 2 * waiting.rows.len();
            }
        }
        self.journal.enqueue(self);
    }

    /// The store has everything up to here.
    #[must_use]
    pub fn applied_seq(&self) -> Seq {
        self.applied.load(Ordering::Acquire)
    }

    /// Everything up to here was handed over.
    #[must_use]
    pub fn appended_seq(&self) -> Seq {
        self.lock().to
    }

    /// Age of the oldest change that the store does not have.
    #[must_use]
    pub fn lag_ms(&self) -> Millis {
        self.lag.since_ns().map_or(0, |since_ns| self.journal.clock.mono_ns().saturating_sub(since_ns) / 1_000_000)
    }

    /// Waits until the store has everything up to `seq`, or will never (fenced): false.
    pub async fn wait_stored(&self, seq: Seq) -> bool {
        loop {
            let progress = self.journal.progress.notified();
            if self.applied_seq() >= seq {
                return true;
            }
            if self.journal.is_fenced() || self.is_unrecoverable() {
                return false;
            }
            progress.await;
        }
    }

    /// The shard panicked: nobody need wait for its dump.
    pub fn mark_orphaned(&self) {
        self.orphaned.store(true, Ordering::Release);
        self.journal.partitions[self.partition].work.notify_one();
    }

    /// After [`Self::orphan`]: waits until the store has the tail. False: it never will, fenced or [`Self::is_lost`].
    pub async fn wait_drained(&self) -> bool {
        loop {
            let progress = self.journal.progress.notified();
            if self.applied_seq() >= self.appended_seq() {
                return true;
            }
            if self.journal.is_fenced() {
                return false;
            }
            if self.needs_source.load(Ordering::Acquire) {
                self.mark_unrecoverable();
                return false;
            }
            if self.is_unrecoverable() {
                return false;
            }
            progress.await;
        }
    }

    fn mark_unrecoverable(&self) {
        self.unrecoverable.store(true, Ordering::Release);
        self.journal.progress.notify_waiters();
        self.notify_waiters();
    }

    /// The store lacks part of the shard, and the shard that could have mended it is gone.
    #[must_use]
    pub fn is_unrecoverable(&self) -> bool {
        self.unrecoverable.load(Ordering::Acquire)
    }

    fn take(&self) -> PendingRows {
        let mut taken = {
            let mut waiting = self.lock();
            let (to, room) = (waiting.to, (waiting.rows.len() + HEADER_BYTES).min(SIZE_HINT_BYTES_MAX));
            self.lag.mark_in_flight();
            std::mem::replace(&mut *waiting, PendingRows { from: to, to, size_hint: room, ..PendingRows::default() })
        };
        if let Some(head) = &taken.header {
            put_shard(&mut taken.rows, head);
        }
        taken
    }

    /// The store has all that was taken, up to here: a shard has one step at a time on its way, and a gap nothing but its
    /// rewrite. False if that was known: the step was there to see whether the store still has it.
    fn advance(&self, applied: Seq) -> bool {
        self.lag.mark_applied();
        self.applied.fetch_max(applied, Ordering::Release) < applied
    }

    fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// Tells the source of `other` as well when the store next moves on here: an answer there speaks of a record of this
    /// shard. What [`Self::applied`] says after this call is news to nobody.
    pub fn notify_also(&self, other: &Arc<Self>) {
        self.waiters.lock().insert(other.key, Arc::downgrade(other));
    }

    fn notify_source(&self) {
        if let Some(source) = self.source.get().and_then(Weak::upgrade) {
            source.on_progress();
        }
    }

    /// Tells the sources that wait for a record of this shard to look again.
    pub fn notify_waiters(&self) {
        let awaiting = std::mem::take(&mut *self.waiters.lock());
        awaiting.into_values().filter_map(|other| other.upgrade()).for_each(|other| other.notify_source());
    }

    fn lock(&self) -> MutexGuard<'_, PendingRows> {
        self.pending.lock()
    }
}

/// What waits for one writer.
#[derive(Default)]
struct WriterPartition {
    /// Counts hand-overs, for the writer to see that more keeps coming.
    append_count: CachePadded<AtomicU64>,
    dirty: SegQueue<Arc<Outbox>>,
    drops: SegQueue<Arc<Outbox>>,
    work: Notify,
}

/// What has trouble with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreFault {
    /// It cannot be taken over or read yet.
    Startup,
    /// Its ownership cannot be renewed.
    Renewal,
    /// A writer's steps are not taken.
    Writes(usize),
}

/// All outboxes of one store.
pub struct Journal {
    store: SharedStore,
    clock: Clock,
    lease: Lease,
    outboxes: DashMap<ShardKey, Weak<Outbox>>,
    partitions: Box<[WriterPartition]>,
    progress: Notify,
    fenced: AtomicBool,
    faults: Mutex<BTreeMap<StoreFault, String>>,
    generations: AtomicU64,
    checked_ns: AtomicU64,
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
            lease: Lease::new(clock.clone()),
            clock,
            outboxes: DashMap::new(),
            partitions: std::iter::repeat_with(WriterPartition::default).take(PARTITIONS_MAX).collect(),
            progress: Notify::new(),
            fenced: AtomicBool::new(false),
            faults: Mutex::default(),
            generations,
            checked_ns: AtomicU64::new(0),
        })
    }

    /// The store.
    #[must_use]
    pub const fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Another process owns the store: nothing may be answered any more.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Another process owns the store: from now on nothing is answered.
    pub fn mark_fenced(&self) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            tracing::error!(store = self.store.kind(), "another process owns the store: no answer leaves any more");
        }
        self.progress.notify_waiters();
        for lane in &self.partitions {
            lane.work.notify_one();
        }
        // Answers that wait for the store will never leave: their callers are refused now.
        self.outboxes().iter().for_each(|outbox| outbox.notify_source());
    }

    /// The lease on the store.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The store has acknowledged that it is ours, as of `sent_ns` on [`Clock::boot_ns`]. True if answers could not leave
    /// before: then every shard is told that they can.
    pub fn extend_lease(&self, sent_ns: u64, lease_ms: Millis) -> bool {
        let lapsed = self.lease.extend(sent_ns, lease_ms);
        if lapsed {
            self.outboxes().iter().for_each(|outbox| outbox.notify_source());
        }
        lapsed
    }

    fn outboxes(&self) -> Vec<Arc<Outbox>> {
        self.outboxes.iter().filter_map(|outbox| outbox.upgrade()).collect()
    }

    /// Why no answer may leave at present, if so.
    #[must_use]
    pub fn reply_blocker(&self) -> Option<UnavailableReason> {
        if self.is_fenced() {
            Some(UnavailableReason::Fenced)
        } else if self.lease.is_valid() {
            None
        } else {
            Some(UnavailableReason::Store)
        }
    }

    /// What keeps the store from taking records at present; each once.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let troubles = self.faults.lock();
        let mut texts: Vec<String> = troubles.values().cloned().collect();
        texts.sort_unstable();
        texts.dedup();
        texts
    }

    /// Says what the trouble is, or that there is none any more. True if that is news.
    pub fn set_fault(&self, what: StoreFault, text: Option<String>) -> bool {
        let mut troubles = self.faults.lock();
        match text {
            Some(text) => troubles.insert(what, text.clone()).as_ref() != Some(&text),
            None => troubles.remove(&what).is_some(),
        }
    }

    /// Sends an empty step of every shard: those that have not changed for long would not notice what the store lost.
    pub fn check_all(&self) {
        self.checked_ns.store(self.clock.mono_ns(), Ordering::Relaxed);
        for outbox in self.outboxes() {
            outbox.check.store(true, Ordering::Relaxed);
            self.enqueue(&outbox);
        }
    }

    /// One shard has a gap: so may others.
    fn check_after_gap(&self) {
        if self.clock.mono_ns().saturating_sub(self.checked_ns.load(Ordering::Relaxed)) > CHECK_INTERVAL_NS {
            self.check_all();
        }
    }

    /// How many writers there are: each is to be [`Journal::run`].
    #[must_use]
    pub const fn writer_count(&self) -> usize {
        self.partitions.len()
    }

    /// Asks that the store forgets the shard; [`Outbox::stored`] of `outbox.handed() + 1` says when it has.
    pub fn drop_shard(&self, outbox: &Arc<Outbox>) {
        let lane = &self.partitions[outbox.partition];
        lane.drops.push(Arc::clone(outbox));
        lane.work.notify_one();
    }

    /// Waits until nothing waits for the store.
    pub async fn wait_flushed(&self, outboxes: impl IntoIterator<Item = Arc<Outbox>>) -> bool {
        let mut all = true;
        for outbox in outboxes {
            all &= outbox.wait_stored(outbox.appended_seq()).await;
        }
        all
    }

    /// Forgets what is queued: the service ends, and an outbox in the queue would keep the store open for ever.
    pub fn close(&self) {
        for lane in &self.partitions {
            while lane.dirty.pop().is_some() || lane.drops.pop().is_some() {}
        }
    }

    fn outbox(&self, key: ShardKey) -> Option<Arc<Outbox>> {
        self.outboxes.get(&key).and_then(|outbox| outbox.upgrade())
    }

    fn enqueue(&self, outbox: &Arc<Outbox>) {
        if !outbox.queued.swap(true, Ordering::AcqRel) {
            let lane = &self.partitions[outbox.partition];
            lane.dirty.push(Arc::clone(outbox));
            lane.work.notify_one();
        }
    }
}
