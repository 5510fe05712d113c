//! The journal: one [`Outbox`] of unwritten rows per shard, and the writers that bring them to the store.
//!
//! A shard appends copies of the rows it changed before any reply about them leaves ([`Outbox::append`]); it never waits. A
//! writer ([`Journal::run`]) takes what is pending in every outbox of its partition, applies it as one contiguous batch per
//! shard, and notifies the shards how far the store is ([`Outbox::applied_seq`]). While the store is slow or away, rows
//! accumulate and are compacted to their last state.
//!
//! A store of several servers has a writer for each
//! ([`Store::writer_partition`](crate::persist::store::Store::writer_partition)), so that a slow server delays no other.

/// Atomics of this build; `tests/loom.rs` substitutes loom's.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
}
mod compaction;
mod lag;
mod lease;
mod lease_deadline;
mod outbox;
mod pacing;
mod snapshot;
mod writer;

use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use tokio::sync::Notify;

pub use self::lease::Lease;
use self::outbox::PendingRows;
pub use self::outbox::{Outbox, RowSource};
use crate::environment::{Clock, Environment};
use crate::model::Millis;
use crate::model::request_error::UnavailableReason;
use crate::persist::store::{ShardKey, SharedStore};

/// Maximum number of writers; a store with more partitions shares them.
const PARTITIONS_MAX: usize = 16;
/// Least time between two checks of all shards that gaps caused.
const CHECK_INTERVAL_NS: u64 = 1_000_000_000;

/// Work queue of one writer.
#[derive(Default)]
struct WriterPartition {
    /// Number of appends, by which the writer sees that more keep coming.
    append_count: CachePadded<AtomicU64>,
    dirty: SegQueue<Arc<Outbox>>,
    drops: SegQueue<Arc<Outbox>>,
    work: Notify,
}

/// Activity that the store fails at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreFault {
    /// Taking the store over, or reading it at startup.
    Startup,
    /// Renewing the ownership of the store.
    Renewal,
    /// Writing the batches of the writer with this index.
    Writes(usize),
}

/// Outboxes of all shards, and the writers of one store.
pub struct Journal {
    store: SharedStore,
    clock: Clock,
    environment: Environment,
    lease: Lease,
    /// Outboxes in the order in which all of them are checked.
    outboxes: RwLock<BTreeMap<ShardKey, Weak<Outbox>>>,
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
    /// Creates a journal for `store`. Nothing is written until [`Journal::run`] runs.
    #[must_use]
    pub fn new(store: SharedStore, environment: Environment) -> Arc<Self> {
        let clock = environment.clock().clone();
        let generations = AtomicU64::new(clock.unix_us());
        Arc::new(Self {
            store,
            lease: Lease::new(clock.clone()),
            clock,
            environment,
            outboxes: RwLock::default(),
            partitions: std::iter::repeat_with(WriterPartition::default).take(PARTITIONS_MAX).collect(),
            progress: Notify::new(),
            fenced: AtomicBool::new(false),
            faults: Mutex::default(),
            generations,
            checked_ns: AtomicU64::new(0),
        })
    }

    /// Store that the journal writes to.
    #[must_use]
    pub const fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Whether another process owns the store: no reply may leave any more.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Notes that another process owns the store: from now on no reply leaves.
    pub fn mark_fenced(&self) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            tracing::error!(
                store = self.store.kind(),
                "another process owns the store: no reply leaves any more; stop this process"
            );
        }
        self.progress.notify_waiters();
        for partition in &self.partitions {
            partition.work.notify_one();
        }
        // Replies that wait for the store will never leave: their callers get an error now.
        self.outboxes().iter().for_each(|outbox| outbox.notify_source());
    }

    /// Lease of this process on the store.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Extends the lease after the store acknowledged a renewal that was sent at `sent_ns` on [`Clock::boot_ns`]. True if
    /// replies were blocked before: then every shard is notified that they may leave.
    pub fn extend_lease(&self, sent_ns: u64, lease_ms: Millis) -> bool {
        let was_blocking = self.lease.extend(sent_ns, lease_ms);
        if was_blocking {
            self.outboxes().iter().for_each(|outbox| outbox.notify_source());
        }
        was_blocking
    }

    fn outboxes(&self) -> Vec<Arc<Outbox>> {
        self.outboxes.read().values().filter_map(Weak::upgrade).collect()
    }

    /// Reason for which no reply may leave at present, if there is one.
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

    /// Errors that keep the store from taking records at present, without duplicates.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.faults.lock().values().cloned().collect();
        texts.sort_unstable();
        texts.dedup();
        texts
    }

    /// Sets or clears the error of an activity. True if that is a change.
    pub fn set_fault(&self, fault: StoreFault, text: Option<String>) -> bool {
        let mut faults = self.faults.lock();
        match text {
            Some(text) => faults.insert(fault, text.clone()).as_ref() != Some(&text),
            None => faults.remove(&fault).is_some(),
        }
    }

    /// Sends an empty batch for every shard: an unchanged shard would not notice that the store lost its rows.
    pub fn check_all(&self) {
        self.checked_ns.store(self.clock.mono_ns(), Ordering::Relaxed);
        for outbox in self.outboxes() {
            outbox.request_check();
            self.enqueue(&outbox);
        }
    }

    /// Checks all shards because one has a gap, so others may have one too.
    fn check_after_gap(&self) {
        if self.clock.mono_ns().saturating_sub(self.checked_ns.load(Ordering::Relaxed)) > CHECK_INTERVAL_NS {
            self.check_all();
        }
    }

    /// Number of writers; [`Journal::run`] each of them.
    #[must_use]
    pub const fn writer_count(&self) -> usize {
        self.partitions.len()
    }

    /// Asks the store to drop the shard; [`Outbox::wait_dropped`] waits until it has.
    pub fn drop_shard(&self, outbox: &Arc<Outbox>) {
        let partition = &self.partitions[outbox.partition()];
        partition.drops.push(Arc::clone(outbox));
        partition.work.notify_one();
    }

    /// Waits until the store has everything that was appended to these outboxes. False: it never will for one of them.
    pub async fn wait_flushed(&self, outboxes: impl IntoIterator<Item = Arc<Outbox>>) -> bool {
        let mut all = true;
        for outbox in outboxes {
            all &= outbox.wait_stored(outbox.appended_seq()).await;
        }
        all
    }

    /// Clears the queues when the service ends: an outbox in a queue would keep the store open for ever.
    pub fn close(&self) {
        for partition in &self.partitions {
            while partition.dirty.pop().is_some() || partition.drops.pop().is_some() {}
        }
    }

    fn outbox(&self, key: ShardKey) -> Option<Arc<Outbox>> {
        self.outboxes.read().get(&key).and_then(Weak::upgrade)
    }

    fn enqueue(&self, outbox: &Arc<Outbox>) {
        if outbox.mark_queued() {
            let partition = &self.partitions[outbox.partition()];
            partition.dirty.push(Arc::clone(outbox));
            partition.work.notify_one();
        }
    }
}
