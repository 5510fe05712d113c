//! What a store must do. A store records; it never arbitrates, and it never reads a row's meaning.
//!
//! A shard's records are *rows* (see `crate::row`) in *steps*. A step carries the present state of the rows
//! that changed in `(from, to]` and is applied atomically, so the store always holds the exact state of the
//! shard at some sequence number `at`. A step of `(owner, epoch)` meets a store at `(o, e, at)`:
//!
//! | the store | the answer |
//! |---|---|
//! | a higher epoch than ours, or our epoch with another owner | [`StepOutcome::Fenced`] |
//! | a lower epoch than ours, nothing there, or `at < from` | [`StepOutcome::Gap`] |
//! | `to <= at` | [`StepOutcome::Duplicate`] |
//! | `from <= at < to` | applied: [`StepOutcome::Ok`] |
//!
//! A shard that the store does not know is at 0 of the present epoch, so its first step starts `from: 0`.
//!
//! A rewrite replaces a shard's rows as a whole: numbered chunks of a new generation, then one flip that carries
//! the rows that changed meanwhile. Until the flip the old generation stands and goes on taking steps; a flip is
//! refused (`Gap`) unless every chunk of its generation is there. What an unfinished rewrite left is dropped by
//! the next one.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::model::{Fence, Seq};

pub mod memory;
pub mod redb;

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
    pub const CATALOGUE: Self = Self { pool: 0, shard: 0 };
}

/// A shard's change, ready to be applied.
#[derive(Debug, Clone)]
pub struct Step {
    /// Whose.
    pub shard: ShardKey,
    /// The state that it starts from: every change up to here is in the store already.
    pub from: Seq,
    /// The state that it leads to.
    pub to: Seq,
    /// What to do.
    pub kind: StepKind,
}

/// What a step does. `rows` are frames as `crate::row` writes them.
#[derive(Debug, Clone)]
pub enum StepKind {
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
    Flip {
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
pub enum StepOutcome {
    /// Applied.
    Ok,
    /// The store had it already.
    Duplicate,
    /// The store lacks what the step builds on: the shard must be rewritten.
    Gap,
    /// Another owner has the store: stop answering.
    Fenced,
}

/// The ownership record after a take-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Grows with every take-over.
    pub epoch: u64,
    /// No fence was ever given out above this one.
    pub fence_ceiling: Fence,
}

/// What [`Store::load`] found of one shard, after its rows went to the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
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
    Away(String),
    /// Trying again cannot help: it is not ours, damaged, or of another version.
    #[error("{0}")]
    Unusable(String),
}

/// Where records go. All calls may take long; none is made from a shard.
pub trait Store: Send + Sync + 'static {
    /// Scheme of its URL, for messages and metrics.
    fn kind(&self) -> &'static str;

    /// False: every step is answered `Ok` and nothing is kept, so no row need be written for it.
    fn keeps_rows(&self) -> bool;

    /// Becomes the owner under a fresh epoch, durably.
    fn take_over(&self, owner: uuid::Uuid) -> BoxFuture<'_, Result<Ownership, StoreError>>;

    /// Raises the ceiling of fences in the ownership record, durably. Fails if it is no longer ours.
    fn raise_fence_ceiling(&self, ceiling: Fence) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads shards. Damage of one shard is reported for that shard and does not stop the others.
    fn load(&self, shards: Vec<ShardKey>, sink: RowSink) -> BoxFuture<'_, Result<Vec<Loaded>, StoreError>>;

    /// Applies steps of many shards (at most one of a shard), each atomically, and returns when they are durable: one outcome a step, in order.
    /// After `Err` any of them may or may not be applied; sending them again is safe.
    fn apply(&self, steps: Vec<Step>) -> BoxFuture<'_, Result<Vec<StepOutcome>, StoreError>>;

    /// A shard whose rewrite would let the store free space, if there is one worth it.
    fn wants_rewrite(&self) -> Option<ShardKey>;
}

/// A store, shared.
pub type SharedStore = Arc<dyn Store>;
