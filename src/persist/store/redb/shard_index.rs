//! In-memory index of the store: for every shard the start of its rows and the sequence number of its state. Pure.
//!
//! [`ShardIndex::outcome_of`] decides and changes nothing; [`ShardIndex::apply_committed`] is called once the commit is
//! durable. The scan that opens the file ([`super::disk`]) rebuilds the index with `rows`, `base` and `forget`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::{DamagedRecord, ShardDamage, ShardKey, WriteBatch, WriteKind, WriteOutcome};
use crate::model::Seq;

/// Size of the log below which no snapshot is due: a restart reads it in well under a second.
const LOG_BYTES_FREE: u64 = 64 << 20;
/// Log bytes allowed per byte of base, beyond that. Snapshots of everything write each base byte once per so many log
/// bytes: write amplification stays <= 1.5, and the file and the time of a restart within about 3 times the state.
const LOG_BYTES_PER_BASE_BYTE: u64 = 2;

/// Location in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LogPosition {
    /// Key of the entry in the log table.
    pub(super) position: u64,
    /// Bytes of all log entries before the location, since this process opened the file.
    pub(super) offset: u64,
}

/// Whole state of a shard at some moment, in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BaseSnapshot {
    /// Epoch of the owner that wrote it. Together with `generation` it identifies the chunks, so that a generation that a later
    /// process reuses cannot overwrite them.
    pub(super) epoch: u64,
    /// Number of the attempt within the epoch.
    pub(super) generation: u64,
    /// Number of chunks; the last one holds the rows of the install.
    pub(super) parts: u32,
    /// Sequence number of the state.
    pub(super) at: Seq,
    /// First log position that applies on top of the base.
    pub(super) position: u64,
    /// Size of the rows in the chunks.
    pub(super) bytes: u64,
}

/// Index entry of one shard.
#[derive(Debug, Clone, Default)]
pub(super) struct ShardIndexEntry {
    /// Epoch of the last batch, or of the owner that has loaded the shard since.
    pub(super) epoch: u64,
    /// Sequence number of the state.
    pub(super) at: Seq,
    pub(super) base: Option<BaseSnapshot>,
    /// Location of the first batch on top of the base.
    pub(super) tail: Option<LogPosition>,
    /// Reason for which the base cannot be read.
    pub(super) damage: Option<ShardDamage>,
}

/// Snapshot under way: sizes in bytes of the durable chunks, by number.
#[derive(Debug, Default)]
struct PartialSnapshot {
    generation: u64,
    chunks: BTreeMap<u32, u64>,
}

/// Index of all shards.
#[derive(Debug, Default)]
pub(super) struct ShardIndex {
    shards: HashMap<ShardKey, ShardIndexEntry>,
    /// Log positions of the tails: the log is needed from the first of them on.
    tails: BTreeSet<(u64, ShardKey)>,
    base_bytes: u64,
    /// First log entry that may still be stored and is readable.
    pub(super) first: u64,
    /// Location of the next log entry.
    pub(super) end: LogPosition,
    /// Log positions that cannot be read, so that their shards are unknown. They are kept for ever.
    pub(super) unreadable: BTreeMap<u64, DamagedRecord>,
    snapshots: HashMap<ShardKey, PartialSnapshot>,
    /// Shards that may have chunks that nothing refers to.
    pub(super) orphan_chunks: BTreeSet<ShardKey>,
}

impl ShardIndex {
    pub(super) fn get(&self, shard: ShardKey) -> Option<&ShardIndexEntry> {
        self.shards.get(&shard)
    }

    /// First log position that a shard needs.
    pub(super) fn needed_from(&self) -> u64 {
        self.tails.first().map_or(self.end.position, |&(position, _)| position)
    }

    /// Outcome of a batch of the present owner in its `epoch` (see the table in [`crate::persist::store`]).
    pub(super) fn outcome_of(&self, batch: &WriteBatch, epoch: u64) -> WriteOutcome {
        let entry = self.shards.get(&batch.shard);
        if entry.is_some_and(|entry| entry.epoch > epoch) {
            return WriteOutcome::Fenced;
        }
        let is_base = |generation| {
            entry.and_then(|entry| entry.base).is_some_and(|base| (base.epoch, base.generation) == (epoch, generation))
        };
        match &batch.kind {
            WriteKind::Rows(_) => {
                // If part of the log is unreadable, an unknown shard may have records there: a snapshot gives it a base above them.
                let at = match entry {
                    None if self.unreadable.is_empty() => Some(0),
                    Some(entry) if entry.epoch == epoch && entry.damage.is_none() => Some(entry.at),
                    None | Some(_) => None,
                };
                match at {
                    Some(at) if at >= batch.from && at >= batch.to => WriteOutcome::Duplicate,
                    Some(at) if at >= batch.from => WriteOutcome::Ok,
                    Some(_) | None => WriteOutcome::Gap,
                }
            }
            WriteKind::Chunk { generation, number, .. } => {
                let stored =
                    self.partial_snapshot(batch.shard, *generation).is_some_and(|r| r.chunks.contains_key(number));
                if stored || is_base(*generation) { WriteOutcome::Duplicate } else { WriteOutcome::Ok }
            }
            WriteKind::Install { generation, chunks, .. } => {
                if is_base(*generation) {
                    let done = entry.is_some_and(|entry| entry.at >= batch.to);
                    return if done { WriteOutcome::Duplicate } else { WriteOutcome::Gap };
                }
                let stored =
                    self.partial_snapshot(batch.shard, *generation).map_or(0, |r| r.chunks.range(..chunks).count());
                if stored == *chunks as usize { WriteOutcome::Ok } else { WriteOutcome::Gap }
            }
            // When it is sent again after a lost answer the shard is unknown, so only the epoch is checked, as for an install.
            WriteKind::Drop if entry.is_none() && !self.snapshots.contains_key(&batch.shard) => WriteOutcome::Duplicate,
            WriteKind::Drop => WriteOutcome::Ok,
        }
    }

    fn partial_snapshot(&self, shard: ShardKey, generation: u64) -> Option<&PartialSnapshot> {
        self.snapshots.get(&shard).filter(|snapshot| snapshot.generation == generation)
    }

    /// Base that an accepted install creates; `next` is the first log position after its commit.
    pub(super) fn installed_base(&self, batch: &WriteBatch, epoch: u64, next: u64) -> Option<BaseSnapshot> {
        let WriteKind::Install { generation, chunks, rows } = &batch.kind else { return None };
        let old = self
            .partial_snapshot(batch.shard, *generation)
            .map_or(0, |r| r.chunks.range(..chunks).map(|(_, b)| b).sum());
        let bytes = old + rows.len() as u64;
        Some(BaseSnapshot { epoch, generation: *generation, parts: chunks + 1, at: batch.to, position: next, bytes })
    }

    /// Applies a batch whose commit is durable: `location` is that of its log entry, `next` the position after it.
    pub(super) fn apply_committed(&mut self, batch: &WriteBatch, epoch: u64, location: LogPosition, next: u64) {
        let shard = batch.shard;
        match &batch.kind {
            WriteKind::Rows(_) => self.rows(shard, epoch, batch.to, location),
            WriteKind::Chunk { generation, number, rows } => {
                let snapshot = self.snapshots.entry(shard).or_default();
                if snapshot.generation != *generation {
                    *snapshot = PartialSnapshot { generation: *generation, ..PartialSnapshot::default() };
                    self.orphan_chunks.insert(shard);
                }
                snapshot.chunks.insert(*number, rows.len() as u64);
            }
            WriteKind::Install { .. } => {
                if let Some(base) = self.installed_base(batch, epoch, next) {
                    self.base(shard, base);
                }
                self.snapshots.remove(&shard);
                self.orphan_chunks.insert(shard);
            }
            WriteKind::Drop => {
                self.forget(shard);
                self.snapshots.remove(&shard);
                self.orphan_chunks.insert(shard);
            }
        }
    }

    /// Adds a batch of the log.
    pub(super) fn rows(&mut self, shard: ShardKey, epoch: u64, to: Seq, location: LogPosition) {
        let entry = self.shards.entry(shard).or_default();
        (entry.epoch, entry.at) = (epoch, to);
        if entry.tail.is_none() {
            entry.tail = Some(location);
            self.tails.insert((location.position, shard));
        }
    }

    /// Sets the base of a shard and forgets everything before it.
    pub(super) fn base(&mut self, shard: ShardKey, base: BaseSnapshot) {
        self.forget(shard);
        self.base_bytes += base.bytes;
        self.shards.insert(
            shard,
            ShardIndexEntry { epoch: base.epoch, at: base.at, base: Some(base), ..ShardIndexEntry::default() },
        );
    }

    /// Removes a shard from the index.
    pub(super) fn forget(&mut self, shard: ShardKey) {
        let Some(entry) = self.shards.remove(&shard) else { return };
        self.base_bytes -= entry.base.map_or(0, |base| base.bytes);
        if let Some(tail) = entry.tail {
            self.tails.remove(&(tail.position, shard));
        }
    }

    /// Marks the base of a shard as unreadable.
    pub(super) fn damaged(&mut self, shard: ShardKey, damage: ShardDamage) {
        self.shards.insert(shard, ShardIndexEntry { damage: Some(damage), ..ShardIndexEntry::default() });
    }

    /// Notes that the owner of `epoch` has loaded the shard.
    pub(super) fn adopt(&mut self, shard: ShardKey, epoch: u64) {
        if let Some(entry) = self.shards.get_mut(&shard).filter(|entry| entry.damage.is_none()) {
            entry.epoch = epoch;
        }
    }

    /// Takes over, after the file was opened again, the state that only the `old` index has: which shards were loaded, and the
    /// snapshots under way. All of it was acknowledged.
    pub(super) fn merge_reopened(&mut self, old: Self, epoch: u64) {
        for (shard, _) in old.shards.into_iter().filter(|(_, entry)| entry.epoch == epoch) {
            self.adopt(shard, epoch);
        }
        self.snapshots = old.snapshots;
    }

    /// Generations of chunks that are in use, as sorted pairs of epoch and generation.
    pub(super) fn referenced_generations(&self, shard: ShardKey, epoch: u64) -> Vec<(u64, u64)> {
        let base = self.shards.get(&shard).and_then(|entry| entry.base).map(|base| (base.epoch, base.generation));
        let snapshot = self.snapshots.get(&shard).map(|snapshot| (epoch, snapshot.generation));
        let mut generations: Vec<_> = base.into_iter().chain(snapshot).collect();
        generations.sort_unstable();
        generations
    }

    /// Shard with the oldest tail, once the log exceeds its limit. A shard that the owner of `epoch` has not loaded is skipped,
    /// because its rows are unknown, and does not count: one unreadable shard would cause endless snapshots of all others.
    pub(super) fn snapshot_candidate(&self, epoch: u64) -> Option<ShardKey> {
        let (shard, tail) = self.tails.iter().find_map(|(_, shard)| {
            let entry = self.shards.get(shard).filter(|entry| entry.epoch == epoch)?;
            Some((*shard, entry.tail?))
        })?;
        let limit = LOG_BYTES_FREE + LOG_BYTES_PER_BASE_BYTE * self.base_bytes;
        (self.end.offset - tail.offset > limit).then_some(shard)
    }
}
