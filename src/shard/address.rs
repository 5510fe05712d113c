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

/// Records that a durable reply about a key waits for, besides that of its own shard: one per shard at most, because a
/// later one covers the earlier. Boxed, because there are usually none, and every claim and operation carries them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PendingWrites(Option<Box<SmallVec<[PendingWrite; 2]>>>);

impl PendingWrites {
    /// Creates an empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Whether there are none.
    #[must_use]
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Records in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &PendingWrite> {
        self.0.iter().flat_map(|writes| writes.iter())
    }

    /// Adds a record, or replaces an earlier one of its shard.
    pub fn add(&mut self, write: PendingWrite) {
        let writes = self.0.get_or_insert_default();
        match writes.iter_mut().find(|other| other.shard == write.shard) {
            Some(other) => other.seq = write.seq.max(other.seq),
            None => writes.push(write),
        }
    }

    /// Removes the records that fail `keep`.
    pub fn retain(&mut self, mut keep: impl FnMut(&PendingWrite) -> bool) {
        if let Some(writes) = &mut self.0 {
            writes.retain(|write| keep(write));
            if writes.is_empty() {
                self.0 = None;
            }
        }
    }
}

impl Extend<PendingWrite> for PendingWrites {
    fn extend<T: IntoIterator<Item = PendingWrite>>(&mut self, writes: T) {
        writes.into_iter().for_each(|write| self.add(write));
    }
}

impl FromIterator<PendingWrite> for PendingWrites {
    fn from_iter<T: IntoIterator<Item = PendingWrite>>(writes: T) -> Self {
        let mut all = Self::new();
        all.extend(writes);
        all
    }
}
