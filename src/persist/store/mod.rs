//! Contract of a store. A store records; it never arbitrates, and it never interprets a row.
//!
//! The records of a shard are *rows* (see `crate::persist::row`) in *write batches*. A batch carries the present state of the
//! rows that changed in `(from, to]` and is applied atomically, so the store always holds the exact state of the shard
//! at some sequence number `at`. A batch of `(owner, epoch)` is applied to a shard at `(o, e, at)`:
//!
//! | state in the store | outcome |
//! |---|---|
//! | a higher epoch than ours, or our epoch with another owner | [`WriteOutcome::Fenced`] |
//! | a lower epoch than ours, no rows, or `at < from` | [`WriteOutcome::Gap`] |
//! | `to <= at` | [`WriteOutcome::Duplicate`] |
//! | `from <= at < to` | applied: [`WriteOutcome::Ok`] |
//!
//! A shard that the store does not know is at 0 of the present epoch, so its first batch starts `from: 0`.
//!
//! A snapshot replaces the rows of a shard as a whole: numbered chunks of a new generation, then one install with the rows
//! that changed meanwhile. Until the install the old generation stays valid and accepts batches. An install is rejected
//! (`Gap`) unless every chunk of its generation is stored. The next snapshot removes what an unfinished one left behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, ready};

use crate::model::{Fence, Millis, Seq};

mod damage;
mod data_dir;
pub mod file;
pub mod inspect;
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;

pub use self::damage::{DamagedRecord, ShardDamage};

/// Key of a record stream: a pool's uid and the shard's index. Pool 0 is the catalog of pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardKey {
    /// Uid of the pool, never reused; 0 is the catalog.
    pub pool: u64,
    /// Index of the shard in its pool.
    pub shard: u16,
}

impl ShardKey {
    /// Key of the catalog, which has one row for each pool and quota.
    pub const CATALOG: Self = Self { pool: 0, shard: 0 };
}

/// Change of one shard, ready to be applied.
#[derive(Debug, Clone)]
pub struct WriteBatch {
    /// Shard that the batch changes.
    pub shard: ShardKey,
    /// Sequence number of the state that the batch builds on: the store has every change up to here.
    pub from: Seq,
    /// Sequence number of the state that the batch leads to.
    pub to: Seq,
    /// Kind of change, with its rows.
    pub kind: WriteKind,
}

/// Kind of change. `rows` are frames as `crate::persist::row` writes them.
#[derive(Debug, Clone)]
pub enum WriteKind {
    /// Puts and deletes rows.
    Rows(Bytes),
    /// Stores part `number` (from 0) of a new generation. Does not move `at`; `from` and `to` are ignored.
    Chunk {
        /// Generation, fresh for every attempt.
        generation: u64,
        /// Number of the chunk: 0, 1, 2, ... without a hole.
        number: u32,
        /// Rows of the shard.
        rows: Bytes,
    },
    /// Makes the generation the state of the shard: its `chunks` in order, then `rows`. Moves `at` to `to`
    /// whatever it was before (only the epoch is checked), so it also closes a gap.
    Install {
        /// Generation of the chunks.
        generation: u64,
        /// Number of chunks that must be stored.
        chunks: u32,
        /// Rows that changed while the chunks were written.
        rows: Bytes,
    },
    /// Removes all rows of the shard.
    Drop,
}

/// Outcome of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Batch that was applied.
    Ok,
    /// Batch that the store had already.
    Duplicate,
    /// Store without the state that the batch builds on: the shard needs a snapshot.
    Gap,
    /// Store with another owner: stop answering.
    Fenced,
    /// No answer: the batch may or may not be applied, and must be sent again. Other batches of the call are not affected.
    Unanswered,
}

/// Ownership record after a takeover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnershipRecord {
    /// Epoch, which grows with every takeover.
    pub epoch: u64,
    /// Fence above which none was ever granted.
    pub fence_ceiling: Fence,
    /// Fence above which the last owner that granted any granted all of its own.
    pub fence_floor: Fence,
}

/// Fences that an owner may grant: above `floor`, up to `ceiling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceSpan {
    /// Ceiling of the previous owner.
    pub floor: Fence,
    /// Ceiling of this owner.
    pub ceiling: Fence,
}

/// Result of [`Store::load`] for one shard, after its rows went to the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedShard {
    /// Shard that was loaded.
    pub shard: ShardKey,
    /// Sequence number of the state (0 without rows), or the reason for which it cannot be read.
    pub at: Result<Seq, ShardDamage>,
}

/// Receiver of frames in the order of their replay: a later row of the same id replaces an earlier one.
pub type RowSink = Box<dyn FnMut(ShardKey, &[u8]) + Send>;

/// Failure of a store as a whole.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Store that is unavailable at present, or a full disk: retrying may help.
    #[error("{0}")]
    Unavailable(String),
    /// Store that another process owns, perhaps not for long: retrying may help.
    #[error("{0}")]
    OwnedElsewhere(String),
    /// Epoch that was assigned before: take the store over again, then retry.
    #[error("{0}")]
    Superseded(String),
    /// Store with another owner, with damage or of another version: retrying cannot help.
    #[error("{0}")]
    Unusable(String),
}

impl StoreError {
    /// Text of the error, for people.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Unavailable(text) | Self::OwnedElsewhere(text) | Self::Superseded(text) | Self::Unusable(text) => {
                text
            }
        }
    }
}

/// Outcome of a renewal of ownership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenewalOutcome {
    /// Store that this process owns for another lease.
    Renewed,
    /// Store without the ownership record: it was emptied.
    Missing,
    /// Store with another owner: stop answering.
    Fenced,
}

/// Whether a renewal may write an ownership record that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingRecord {
    /// Report the record as [`RenewalOutcome::Missing`].
    Report,
    /// Write the record anew.
    Create,
}

/// Store of records. Every call may take long; none is made from a shard.
pub trait Store: Send + Sync + 'static {
    /// Scheme of the store's URL, for messages and metrics.
    fn kind(&self) -> &'static str;

    /// Whether rows are kept. If not, every batch is answered `Ok`, and no row need be encoded.
    fn keeps_rows(&self) -> bool;

    /// Time for which a takeover or a renewal makes this process the owner, in milliseconds from when it was sent. None: for
    /// as long as the process lives.
    fn lease_ms(&self) -> Option<Millis> {
        None
    }

    /// Maximum number of bytes of rows in one batch; a shard with more to write is written as a snapshot.
    fn batch_bytes_max(&self) -> usize {
        usize::MAX
    }

    /// Reason for the last [`WriteOutcome::Unanswered`], for people.
    fn last_fault(&self) -> String {
        String::new()
    }

    /// Partition of a shard: batches of one partition go together, and partitions do not wait for each other. Any number.
    fn writer_partition(&self, _shard: ShardKey) -> usize {
        0
    }

    /// Becomes the owner under a fresh epoch, durably. [`StoreError::OwnedElsewhere`] while another process may be the owner.
    fn take_over(&self, owner: uuid::Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>>;

    /// Raises the ceiling and the floor of fences in the ownership record, durably and atomically. Fails if another process
    /// owns the store.
    fn raise_fence_ceiling(&self, span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Renews the lease of this process.
    fn renew(&self, _missing: MissingRecord) -> BoxFuture<'_, Result<RenewalOutcome, StoreError>> {
        ready(Ok(RenewalOutcome::Renewed)).boxed()
    }

    /// Gives the store up: ends the lease early, so that the next owner need not wait, and notes what the next start should know.
    /// No reply may leave afterwards.
    fn resign(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(Ok(())).boxed()
    }

    /// Reads shards. After a takeover they belong to this owner from then on; without one nothing is changed. Damage of one
    /// shard is reported for that shard and does not stop the others.
    fn load(&self, shards: Vec<ShardKey>, sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>>;

    /// Applies batches of many shards (at most one of a shard), each atomically, and returns when they are durable: one outcome
    /// per batch, in order. After `Err` any of them may or may not be applied; sending them again is safe.
    fn apply(&self, batches: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>>;

    /// Applies batches as [`Self::apply`] does, on this thread, which waits for the disk meanwhile. None: the store cannot.
    fn apply_blocking(&self, _batches: &[WriteBatch]) -> Option<Result<Vec<WriteOutcome>, StoreError>> {
        None
    }

    /// Properties of the store such as its owner: names and values for people.
    fn properties(&self) -> BoxFuture<'_, Result<BTreeMap<String, String>, StoreError>> {
        ready(Ok(BTreeMap::new())).boxed()
    }

    /// Notes that no snapshot can be had of the shard that [`Self::snapshot_candidate`] named: its source does not answer.
    fn skip_snapshot(&self, _shard: ShardKey) {}

    /// Shard of which a snapshot would let the store free much space, if there is one.
    fn snapshot_candidate(&self) -> Option<ShardKey>;
}

/// Store that is shared between tasks.
pub type SharedStore = Arc<dyn Store>;
