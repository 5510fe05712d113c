//! What a store must do. A store records; it never arbitrates, and it never reads a row's meaning.
//!
//! A shard's records are *rows* (see `crate::persist::row`) in *steps*. A step carries the present state of the rows
//! that changed in `(from, to]` and is applied atomically, so the store always holds the exact state of the
//! shard at some sequence number `at`. A step of `(owner, epoch)` meets a store at `(o, e, at)`:
//!
//! | the store | the answer |
//! |---|---|
//! | a higher epoch than ours, or our epoch with another owner | [`WriteOutcome::FencedClaimArgs`] |
//! | a lower epoch than ours, nothing there, or `at < from` | [`WriteOutcome::Gap`] |
//! | `to <= at` | [`WriteOutcome::Duplicate`] |
//! | `from <= at < to` | applied: [`WriteOutcome::Ok`] |
//!
//! A shard that the store does not know is at 0 of the present epoch, so its first step starts `from: 0`.
//!
//! A rewrite replaces a shard's rows as a whole: numbered chunks of a new generation, then one flip that carries
//! the rows that changed meanwhile. Until the flip the old generation stands and goes on taking steps; a flip is
//! refused (`Gap`) unless every chunk of its generation is there. What an unfinished rewrite left is dropped by
//! the next one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, ready};

use crate::model::{Fence, Millis, Seq};

mod data_dir;
pub mod inspect;
pub mod memory;
pub mod redb;
#[cfg(feature = "redis")]
pub mod redis;

/// Which record stream: a pool's uid and the shard's index. Pool 0 is the catalogue of pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardKey {
    /// Uid of the pool, never reused; 0 is the catalogue.
    pub pool: u64,
    /// Index of the shard in its pool.
    pub shard: u16,
}

impl ShardKey {
    /// The catalogue: pool specifications, one row a pool.
    pub const CATALOG: Self = Self { pool: 0, shard: 0 };
}

/// A shard's change, ready to be applied.
#[derive(Debug, Clone)]
pub struct WriteBatch {
    /// Whose.
    pub shard: ShardKey,
    /// The state that it starts from: every change up to here is in the store already.
    pub from: Seq,
    /// The state that it leads to.
    pub to: Seq,
    /// What to do.
    pub kind: WriteKind,
}

/// What a step does. `rows` are frames as `crate::persist::row` writes them.
#[derive(Debug, Clone)]
pub enum WriteKind {
    /// Puts and deletes rows.
    Rows(Bytes),
    /// Part `number` (from 0) of a new generation. Does not move `at`; `from` and `to` are ignored.
    Chunk {
        /// Fresh for every attempt.
        generation: u64,
        /// 0, 1, 2, ... without a hole.
        number: u32,
        /// Rows of the shard.
        rows: Bytes,
    },
    /// Makes the generation the shard's state: its `chunks` in order, then `rows`. Moves `at` to `to`
    /// whatever it was before (only the epoch is checked), so it also mends a gap.
    Install {
        /// That of the chunks.
        generation: u64,
        /// How many there must be.
        chunks: u32,
        /// The rows that changed while the chunks were written.
        rows: Bytes,
    },
    /// Forgets the shard.
    Drop,
}

/// What became of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Applied.
    Ok,
    /// The store had it already.
    Duplicate,
    /// The store lacks what the step builds on: the shard must be rewritten.
    Gap,
    /// Another owner has the store: stop answering.
    Fenced,
    /// Not answered: it may or may not be applied, and is to be sent again. Others of the same call are not touched by it.
    Unanswered,
}

/// The ownership record after a take-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnershipRecord {
    /// Grows with every take-over.
    pub epoch: u64,
    /// No fence was ever given out above this one.
    pub fence_ceiling: Fence,
    /// The last owner that gave any out gave out none up to this.
    pub fence_floor: Fence,
}

/// Fences that an owner may give out: above `floor`, up to `ceiling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceSpan {
    /// The ceiling of the owner before.
    pub floor: Fence,
    /// The ceiling of this owner.
    pub ceiling: Fence,
}

/// What [`Store::load`] found of one shard, after its rows went to the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedShard {
    /// Which.
    pub shard: ShardKey,
    /// The sequence number of its state (0: nothing there), or why it cannot be read.
    pub at: Result<Seq, String>,
}

/// Takes frames of rows in the order in which they must be replayed: a later row of the same id replaces an earlier.
pub type RowSink = Box<dyn FnMut(ShardKey, &[u8]) + Send>;

/// A store failed as a whole.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Trying again may help: the store is away, the disk is full.
    #[error("{0}")]
    Unavailable(String),
    /// Somebody else owns it, perhaps not for long: trying again may help.
    #[error("{0}")]
    OwnedElsewhere(String),
    /// It was ours under an epoch that was given out before: take it over again, then try again.
    #[error("{0}")]
    Superseded(String),
    /// Trying again cannot help: it is not ours, damaged, or of another version.
    #[error("{0}")]
    Unusable(String),
}

impl StoreError {
    /// What is wrong, for people.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Unavailable(text) | Self::OwnedElsewhere(text) | Self::Superseded(text) | Self::Unusable(text) => {
                text
            }
        }
    }
}

/// What became of a renewal of ownership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenewalOutcome {
    /// The store is ours for another lease.
    Renewed,
    /// The record is gone: somebody emptied the store.
    Missing,
    /// Another owner has it: stop answering.
    Fenced,
}

/// Where records go. All calls may take long; none is made from a shard.
pub trait Store: Send + Sync + 'static {
    /// Scheme of its URL, for messages and metrics.
    fn kind(&self) -> &'static str;

    /// False: every step is answered `Ok` and nothing is kept, so no row need be written for it.
    fn keeps_rows(&self) -> bool;

    /// How long a take-over or a renewal makes this process the owner, in milliseconds, counted from when it was sent.
    /// None: for as long as it lives.
    fn lease_ms(&self) -> Option<Millis> {
        None
    }

    /// Bytes of rows in one step; a shard with more to write is rewritten in chunks.
    fn batch_bytes_max(&self) -> usize {
        usize::MAX
    }

    /// Why a step was answered `Away` last, for people.
    fn last_fault(&self) -> String {
        String::new()
    }

    /// Steps of shards of one lane go together, and lanes do not wait for each other. Any number.
    fn writer_partition(&self, _shard: ShardKey) -> usize {
        0
    }

    /// Becomes the owner under a fresh epoch, durably. `Held` while somebody else may still be the owner.
    fn take_over(&self, owner: uuid::Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>>;

    /// Raises the ceiling of fences in the ownership record, and the floor with it, durably and in one step. Fails if it
    /// is no longer ours.
    fn raise_fence_ceiling(&self, span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Renews a lease. `create`: writes the record anew if it is gone.
    fn renew(&self, _create: bool) -> BoxFuture<'_, Result<RenewalOutcome, StoreError>> {
        ready(Ok(RenewalOutcome::Renewed)).boxed()
    }

    /// Gives a lease back: the next owner need not wait for its end. Nothing may be answered afterwards.
    fn resign(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(Ok(())).boxed()
    }

    /// Reads shards; those of an owner are its own from then on. Without a take-over it only reads. Damage of one shard is reported for that shard and does not stop the others.
    fn load(&self, shards: Vec<ShardKey>, sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>>;

    /// Applies steps of many shards (at most one of a shard), each atomically, and returns when they are durable: one outcome a step, in order.
    /// After `Err` any of them may or may not be applied; sending them again is safe.
    fn apply(&self, steps: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>>;

    /// What the store says of itself, such as who owns it; names and values for people.
    fn properties(&self) -> BoxFuture<'_, Result<BTreeMap<String, String>, StoreError>> {
        ready(Ok(BTreeMap::new())).boxed()
    }

    /// A shard whose rewrite would let the store free space, if there is one worth it.
    fn snapshot_candidate(&self) -> Option<ShardKey>;
}

/// A store, shared.
pub type SharedStore = Arc<dyn Store>;
