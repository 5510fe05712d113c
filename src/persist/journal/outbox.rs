//! The outbox of a shard: copies of the rows that the store does not have yet, and how far the store is.
//!
//! The shard appends and asks; its writer dequeues, and says what was applied. Everything else is private, so that the rules of
//! the record stream (in order, one writer, nothing after a drop) stand in this file.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use futures::future::BoxFuture;

use super::lag::LagTracker;
use super::{Journal, PARTITIONS_MAX, compaction};
use crate::model::{Millis, Seq};
use crate::persist::row::{ShardRow, put_shard};
use crate::persist::store::{ShardKey, SharedStore};

/// Pending rows of one outbox are compacted above this size, and again whenever they have doubled since.
const COMPACT_BYTES: usize = 256 << 10;
/// Maximum number of bytes that are reserved in advance for the next batch.
const SIZE_HINT_BYTES_MAX: usize = 16 << 10;
/// Approximate size of a shard's own row.
const HEADER_BYTES: usize = 48;

/// Owner of an outbox: a shard's handle, or the catalog.
pub trait RowSource: Send + Sync {
    /// Called when the store moved on, here or in an outbox that [`Outbox::notify_also`] named, and when replies may leave again.
    fn on_progress(&self);

    /// Called instead of [`Self::on_progress`] by a thread that may do what follows from the progress itself.
    fn run_on_progress(&self) {
        self.on_progress();
    }

    /// All rows from cursor `from` on, about `bytes` of them, and the next cursor. None: the source is gone.
    fn snapshot_rows(&self, from: u32, bytes: usize) -> BoxFuture<'static, Option<(Vec<u8>, Option<u32>)>>;
}

/// Rows that changed in `(from, to]` and are not yet in a batch.
#[derive(Debug, Default)]
pub(super) struct PendingRows {
    pub rows: Vec<u8>,
    /// Number of rows, the shard's own included.
    pub count: usize,
    pub from: Seq,
    pub to: Seq,
    /// The shard's own row, written last: it changes with every claim, and only its last state counts.
    header: Option<ShardRow>,
    compact_at: usize,
    /// Approximate size of the last batch, reserved at once for the next.
    size_hint: usize,
}

/// Rows of one shard that the store does not have yet.
pub struct Outbox {
    key: ShardKey,
    /// Fixed for the life of the outbox: two writers could overtake each other.
    partition: usize,
    journal: Arc<Journal>,
    source: OnceLock<Weak<dyn RowSource>>,
    pending: Mutex<PendingRows>,
    applied: AtomicU64,
    /// Appended to and taken from with `pending` locked.
    lag: LagTracker,
    /// Whether the writer's queue holds the outbox.
    queued: AtomicBool,
    /// Whether the store was asked to drop the shard: nothing more of it may be written.
    dropped: AtomicBool,
    /// Whether the store has dropped the shard: nothing of it is or will be stored.
    gone: AtomicBool,
    /// Whether a batch goes out even if nothing has changed, to see whether the store still has everything.
    check: AtomicBool,
    /// Number of restarts of the shard: each numbers its workers anew.
    incarnations: AtomicU64,
    /// Whether the store has a gap that only rows still to be dumped by the shard can close.
    needs_source: AtomicBool,
    /// Whether the shard panicked: it dumps nothing until it is restarted.
    orphaned: AtomicBool,
    /// Whether the shard panicked when only it could close the gap.
    unrecoverable: AtomicBool,
    /// Outboxes of shards with replies that wait for records of this one; each is notified once.
    subscribers: Mutex<BTreeMap<ShardKey, Weak<Self>>>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("key", &self.key).field("applied", &self.applied_seq()).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Registers the outbox of a shard whose state in the store is that at `at`.
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
            gone: AtomicBool::new(false),
            check: AtomicBool::new(false),
            incarnations: AtomicU64::new(0),
            needs_source: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            unrecoverable: AtomicBool::new(false),
            subscribers: Mutex::default(),
        });
        journal.outboxes.write().insert(key, Arc::downgrade(&outbox));
        outbox
    }

    /// Sets the source that is notified of progress and asked for rows. Call it once.
    pub fn attach(&self, source: Weak<dyn RowSource>) {
        let _ = self.source.set(source);
    }

    /// Starts anew at `at` after the shard was loaded from the store: nothing is pending.
    pub fn restart(&self, at: Seq) {
        {
            let mut pending = self.lock();
            *pending = PendingRows { from: at, to: at, ..PendingRows::default() };
            self.lag.mark_in_flight();
            self.lag.mark_applied();
        }
        self.incarnations.fetch_add(1, Ordering::Release);
        self.orphaned.store(false, Ordering::Release);
        if self.is_dropped() {
            // What it had recorded is not missing because it is gone.
            self.applied.fetch_max(at, Ordering::Release);
        } else {
            self.applied.store(at, Ordering::Release);
        }
        self.notify_subscribers();
    }

    /// Key of the shard whose rows these are.
    #[must_use]
    pub const fn key(&self) -> ShardKey {
        self.key
    }

    /// Whether rows are wanted at all: `memory:` keeps none.
    #[must_use]
    pub fn wants_rows(&self) -> bool {
        self.journal.store.keeps_rows()
    }

    /// Appends copies of the rows that changed up to `to`: `write` appends them and returns their number; `header` is the
    /// shard's own row, if it changed.
    pub fn append(self: &Arc<Self>, to: Seq, header: Option<ShardRow>, write: impl FnOnce(&mut Vec<u8>) -> usize) {
        {
            let mut pending = self.lock();
            debug_assert!(to >= pending.to, "J2: the record stream only grows");
            if pending.count == 0 {
                self.lag.mark_appended(self.journal.clock.mono_ns());
                let size_hint = pending.size_hint;
                pending.rows.reserve(size_hint);
            }
            pending.count += write(&mut pending.rows);
            if header.is_some() {
                pending.count += usize::from(pending.header.is_none());
                pending.header = header;
            }
            pending.to = to;
            self.journal.partitions[self.partition].append_count.fetch_add(1, Ordering::Relaxed);
            if pending.rows.len() > pending.compact_at.max(COMPACT_BYTES) {
                compaction::compact(&mut pending.rows);
                pending.compact_at = 2 * pending.rows.len();
            }
        }
        self.journal.enqueue(self);
    }

    /// Sequence number up to which the store has everything.
    #[must_use]
    pub fn applied_seq(&self) -> Seq {
        self.applied.load(Ordering::Acquire)
    }

    /// Sequence number up to which everything was appended.
    #[must_use]
    pub fn appended_seq(&self) -> Seq {
        self.lock().to
    }

    /// Age of the oldest change that the store does not have, in milliseconds.
    #[must_use]
    pub fn lag_ms(&self) -> Millis {
        self.lag.since_ns().map_or(0, |since_ns| self.journal.clock.mono_ns().saturating_sub(since_ns) / 1_000_000)
    }

    /// Waits until the store has everything up to `seq`. False: it never will, because the store is fenced or the shard's
    /// records are lost.
    pub async fn wait_stored(&self, seq: Seq) -> bool {
        self.wait_until(|| self.applied_seq() >= seq).await
    }

    /// Waits until the store has dropped the shard ([`Journal::drop_shard`]). False: it never will, because the store is
    /// fenced or the shard's records are lost. A restart of the shard meanwhile, which numbers its records anew, makes no
    /// difference.
    pub async fn wait_dropped(&self) -> bool {
        self.wait_until(|| self.gone.load(Ordering::Acquire)).await
    }

    async fn wait_until(&self, is_reached: impl Fn() -> bool) -> bool {
        loop {
            let progress = self.journal.progress.notified();
            if is_reached() {
                return true;
            }
            if self.journal.is_fenced() || self.is_unrecoverable() {
                return false;
            }
            progress.await;
        }
    }

    /// Notes that the shard panicked: its rows cannot be dumped until it is restarted.
    pub fn mark_orphaned(&self) {
        self.orphaned.store(true, Ordering::Release);
        self.journal.partitions[self.partition].work.notify_one();
    }

    /// Waits, after [`Self::mark_orphaned`], until the store has all that was appended. False: it never will, because the
    /// store is fenced or has dropped the shard, or the shard [`Self::is_unrecoverable`].
    pub async fn wait_drained(&self) -> bool {
        loop {
            let progress = self.journal.progress.notified();
            if self.gone.load(Ordering::Acquire) {
                return false;
            }
            // First: a store that has lost what it acknowledged lacks rows although all that was appended counts as applied.
            if self.needs_source.load(Ordering::Acquire) {
                self.mark_unrecoverable();
                return false;
            }
            if self.applied_seq() >= self.appended_seq() {
                return true;
            }
            if self.journal.is_fenced() {
                return false;
            }
            if self.is_unrecoverable() {
                return false;
            }
            progress.await;
        }
    }

    /// Whether the store lacks part of the shard and the shard that could have written it again is gone.
    #[must_use]
    pub fn is_unrecoverable(&self) -> bool {
        self.unrecoverable.load(Ordering::Acquire)
    }

    /// Notifies the source of `other` as well when the store next moves on here: a reply there depends on a record of this
    /// shard. Check [`Self::applied_seq`] after this call: progress before it is not notified.
    pub fn notify_also(&self, other: &Arc<Self>) {
        self.subscribers.lock().insert(other.key, Arc::downgrade(other));
    }

    /// Notifies the sources that wait for a record of this shard.
    pub fn notify_subscribers(&self) {
        let subscribers = std::mem::take(&mut *self.subscribers.lock());
        subscribers.into_values().filter_map(|other| other.upgrade()).for_each(|other| other.notify_source());
    }

    fn lock(&self) -> MutexGuard<'_, PendingRows> {
        self.pending.lock()
    }
}

/// The interface of the journal and its writers.
impl Outbox {
    pub(super) const fn partition(&self) -> usize {
        self.partition
    }

    pub(super) fn store(&self) -> &SharedStore {
        &self.journal.store
    }

    pub(super) fn source(&self) -> Option<Arc<dyn RowSource>> {
        self.source.get().and_then(Weak::upgrade)
    }

    pub(super) fn notify_source(&self) {
        if let Some(source) = self.source() {
            source.on_progress();
        }
    }

    pub(super) fn run_source(&self) {
        if let Some(source) = self.source() {
            source.run_on_progress();
        }
    }

    /// Notes that the writer's queue holds the outbox; false if it did already.
    pub(super) fn mark_queued(&self) -> bool {
        !self.queued.swap(true, Ordering::AcqRel)
    }

    /// Makes the next [`Self::dequeue`] return a batch even if nothing is pending.
    pub(super) fn request_check(&self) {
        self.check.store(true, Ordering::Relaxed);
    }

    /// Leaves the writer's queue with what is to be written: nothing if the shard was dropped, or if no row is pending and
    /// no check was requested.
    pub(super) fn dequeue(&self) -> Option<PendingRows> {
        self.queued.store(false, Ordering::Release);
        if self.is_dropped() {
            return None;
        }
        let is_check = self.check.swap(false, Ordering::Relaxed);
        Some(self.take_pending()).filter(|pending| pending.to > pending.from || is_check)
    }

    /// Takes the pending rows; from now on they count as in flight.
    pub(super) fn take_pending(&self) -> PendingRows {
        let mut taken = {
            let mut pending = self.lock();
            let (to, size_hint) = (pending.to, (pending.rows.len() + HEADER_BYTES).min(SIZE_HINT_BYTES_MAX));
            self.lag.mark_in_flight();
            std::mem::replace(&mut *pending, PendingRows { from: to, to, size_hint, ..PendingRows::default() })
        };
        if let Some(header) = &taken.header {
            put_shard(&mut taken.rows, header);
        }
        taken
    }

    /// Takes the pending rows for the last time: the store is asked to drop the shard.
    pub(super) fn take_dropped(&self) -> PendingRows {
        self.dropped.store(true, Ordering::Release);
        self.take_pending()
    }

    /// Notes that the store has dropped the shard.
    pub(super) fn mark_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// Notes that the store has all that was in flight, up to `applied`: a shard has one batch in flight at a time, and with a
    /// gap nothing but its snapshot. False if that was known: the batch was a check.
    pub(super) fn advance(&self, applied: Seq) -> bool {
        self.lag.mark_applied();
        self.applied.fetch_max(applied, Ordering::Release) < applied
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.incarnations.load(Ordering::Acquire)
    }

    pub(super) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Acquire)
    }

    pub(super) fn set_needs_source(&self, needs_source: bool) {
        self.needs_source.store(needs_source, Ordering::Release);
    }

    pub(super) fn mark_unrecoverable(&self) {
        self.unrecoverable.store(true, Ordering::Release);
        self.journal.progress.notify_waiters();
        self.notify_subscribers();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;

    use super::*;
    use crate::environment::Environment;
    use crate::persist::store::memory::MemoryStore;

    /// A failover can lose rows that were acknowledged. Then nothing is left to write, and the store lacks rows all the same.
    #[test]
    fn s08_a_shard_that_had_rows_which_the_store_lost_is_not_drained() {
        let journal = Journal::new(Arc::new(MemoryStore), Environment::system());
        let outbox = Outbox::new(&journal, ShardKey { pool: 1, shard: 0 }, 27);
        outbox.set_needs_source(true);
        outbox.mark_orphaned();
        assert_eq!(outbox.wait_drained().now_or_never(), Some(false));
        assert!(outbox.is_unrecoverable());
    }
}
