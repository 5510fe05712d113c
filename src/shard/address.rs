//! Addresses that claims and keys are known by outside their shard: plain data, valid in this process.

use smallvec::SmallVec;

use crate::model::Seq;

/// Reference to a shard of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardRef {
    /// Number of the pool in this process.
    pub pool: u32,
    /// Index of the shard in its pool.
    pub shard: u16,
}

/// Number of one attempt to decide a key. An answer with another ticket than that of the key's entry is stale.
pub type KeyTicket = u64;

/// Record about a key that the store does not have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingWrite {
    /// Shard that wrote the record.
    pub shard: ShardRef,
    /// Sequence number at which the record is durable.
    pub seq: Seq,
}

/// Records that a durable reply about a key waits for, besides that of its own shard. Usually none.
pub type PendingWrites = SmallVec<[PendingWrite; 1]>;
