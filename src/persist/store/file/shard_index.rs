//! In-memory index of the store: for every shard the start of its rows and the sequence number of its state. Pure.
//!
//! [`ShardIndex::outcome_of`] decides and changes nothing; [`ShardIndex::apply_committed`] is called once the frame is
//! durable. The scan at opening ([`super::scan`]) rebuilds the index with the same methods.
//!
//! The log is all that there is: chunks of a snapshot are records in it like any others. A shard needs the log from the first
//! chunk of its base on, or without a base from its first batch on. So the log ends up with what no shard needs at its
//! beginning, and a shard that holds it back is asked for a new snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::{DamagedRecord, ShardDamage, ShardKey, WriteBatch, WriteKind, WriteOutcome};
use crate::collections::{HashMap, HashSet};
use crate::model::Seq;

/// Log bytes allowed per byte of base, beyond that. A base that the log comes round to is written again, so once per twice as
/// many bytes of other records: write amplification stays <= 1.5, and the log within about 3 times the state.
const LOG_BYTES_PER_BASE_BYTE: u64 = 3;

/// Position of a frame in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LogPosition {
    /// Sequence number of the frame.
    pub(super) sequence: u64,
    /// Bytes of all frames before it that this process read or wrote.
    pub(super) offset: u64,
}

/// Location of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordLocation {
    /// Position of its frame.
    pub(super) position: LogPosition,
    /// Number of the segment.
    pub(super) segment: u64,
    /// Offset in the segment, in bytes.
    pub(super) offset: u64,
    /// Size of the record, in bytes.
    pub(super) bytes: u64,
}

/// Whole state of a shard at some moment, in chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseSnapshot {
    /// Epoch of the owner that wrote it. Together with `generation` it identifies the chunks, so that a generation that a later
    /// process reuses is another.
    pub(super) epoch: u64,
    /// Number of the attempt within the epoch.
    pub(super) generation: u64,
    /// Sequence number of the state.
    pub(super) at: Seq,
    /// First frame that applies on top of the base.
    pub(super) sequence: u64,
    /// Position of the first frame with one of the chunks.
    first: LogPosition,
    /// Chunks in order; the last one holds the rows of the install.
    pub(super) chunks: Arc<[RecordLocation]>,
}

impl BaseSnapshot {
    fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes).sum()
    }
}

/// Index entry of one shard.
#[derive(Debug, Clone, Default)]
pub(super) struct ShardIndexEntry {
    /// Epoch of the last batch, or of the owner that has loaded the shard since.
    pub(super) epoch: u64,
    /// Sequence number of the state.
    pub(super) at: Seq,
    pub(super) base: Option<BaseSnapshot>,
    /// Position of the first batch on top of the base.
    pub(super) tail: Option<LogPosition>,
    /// Reason for which the base cannot be read.
    pub(super) damage: Option<ShardDamage>,
}

impl ShardIndexEntry {
    /// Position from which on the shard needs the log.
    fn first(&self) -> Option<LogPosition> {
        self.base.as_ref().map(|base| base.first).or(self.tail)
    }
}

/// Snapshot under way, whose chunks are durable.
#[derive(Debug)]
struct PartialSnapshot {
    epoch: u64,
    generation: u64,
    /// Positions of the frames with the oldest and the newest chunk.
    first: LogPosition,
    last: LogPosition,
    chunks: BTreeMap<u32, RecordLocation>,
}

/// Index of all shards.
#[derive(Debug, Default)]
pub(super) struct ShardIndex {
    shards: HashMap<ShardKey, ShardIndexEntry>,
    /// Sequence numbers from which on shards need the log.
    needs: BTreeSet<(u64, ShardKey)>,
    base_bytes: u64,
    /// Position of the next frame.
    pub(super) end: LogPosition,
    /// Sequence numbers of frames that could not be read, so that their shards are unknown. They are kept for ever.
    pub(super) unreadable: BTreeMap<u64, DamagedRecord>,
    snapshots: HashMap<ShardKey, PartialSnapshot>,
    /// Shards of which no snapshot can be had until they write again.
    skipped: HashSet<ShardKey>,
    /// Size of the log below which no snapshot is due, in bytes.
    log_bytes_free: u64,
}

impl ShardIndex {
    /// Creates the index of an empty log, of which no snapshot is due while it is smaller than `log_bytes_free`.
    pub(super) fn new(log_bytes_free: u64) -> Self {
        Self { log_bytes_free, ..Self::default() }
    }

    pub(super) fn get(&self, shard: ShardKey) -> Option<&ShardIndexEntry> {
        self.shards.get(&shard)
    }

    /// Number of the first frame that is needed.
    pub(super) fn needed_from(&self) -> u64 {
        let snapshots = self.snapshots.values().map(|snapshot| snapshot.first.sequence);
        let shards = self.needs.first().map(|&(sequence, _)| sequence);
        snapshots.chain(shards).min().unwrap_or(self.end.sequence)
    }

    /// Outcome of a batch of the present owner in its `epoch` (see the table in [`crate::persist::store`]).
    pub(super) fn outcome_of(&self, batch: &WriteBatch, epoch: u64) -> WriteOutcome {
        let entry = self.shards.get(&batch.shard);
        if entry.is_some_and(|entry| entry.epoch > epoch) {
            return WriteOutcome::Fenced;
        }
        let is_base = |generation| {
            let base = entry.and_then(|entry| entry.base.as_ref());
            base.is_some_and(|base| (base.epoch, base.generation) == (epoch, generation))
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
                let stored = self
                    .partial_snapshot(batch.shard, (epoch, *generation))
                    .is_some_and(|r| r.chunks.contains_key(number));
                if stored || is_base(*generation) { WriteOutcome::Duplicate } else { WriteOutcome::Ok }
            }
            WriteKind::Install { generation, chunks, .. } => {
                if is_base(*generation) {
                    let done = entry.is_some_and(|entry| entry.at >= batch.to);
                    return if done { WriteOutcome::Duplicate } else { WriteOutcome::Gap };
                }
                let stored = self
                    .partial_snapshot(batch.shard, (epoch, *generation))
                    .map_or(0, |r| r.chunks.range(..chunks).count());
                if stored == *chunks as usize { WriteOutcome::Ok } else { WriteOutcome::Gap }
            }
            // When it is sent again after a lost answer the shard is unknown, so only the epoch is checked, as for an install.
            WriteKind::Drop if entry.is_none() && !self.snapshots.contains_key(&batch.shard) => WriteOutcome::Duplicate,
            WriteKind::Drop => WriteOutcome::Ok,
        }
    }

    fn partial_snapshot(&self, shard: ShardKey, id: (u64, u64)) -> Option<&PartialSnapshot> {
        self.snapshots.get(&shard).filter(|snapshot| (snapshot.epoch, snapshot.generation) == id)
    }

    /// Applies a batch whose frame is durable. `record` is its record with the rows, if it has one.
    pub(super) fn apply_committed(&mut self, batch: &WriteBatch, epoch: u64, record: RecordLocation) {
        let (shard, position) = (batch.shard, record.position);
        match &batch.kind {
            WriteKind::Rows(_) => self.rows(shard, epoch, batch.to, position),
            WriteKind::Chunk { generation, number, .. } => self.chunk(shard, (epoch, *generation), *number, record),
            WriteKind::Install { generation, chunks, .. } => {
                self.chunk(shard, (epoch, *generation), *chunks, record);
                let installed = self.install(shard, (epoch, *generation), *chunks + 1, batch.to, position);
                debug_assert!(installed, "an accepted install has all its chunks");
            }
            WriteKind::Drop => self.forget(shard),
        }
    }

    /// Adds a batch of the log.
    pub(super) fn rows(&mut self, shard: ShardKey, epoch: u64, to: Seq, position: LogPosition) {
        self.skipped.remove(&shard);
        let entry = self.shards.entry(shard).or_default();
        (entry.epoch, entry.at) = (epoch, to);
        if entry.tail.is_none() {
            entry.tail = Some(position);
            if entry.base.is_none() && entry.damage.is_none() {
                self.needs.insert((position.sequence, shard));
            }
        }
    }

    /// Adds a chunk of a snapshot, with its epoch and generation.
    pub(super) fn chunk(&mut self, shard: ShardKey, id: (u64, u64), number: u32, record: RecordLocation) {
        let (epoch, generation) = id;
        let begin = || {
            let position = record.position;
            PartialSnapshot { epoch, generation, first: position, last: position, chunks: BTreeMap::new() }
        };
        let snapshot = self.snapshots.entry(shard).or_insert_with(begin);
        if (snapshot.epoch, snapshot.generation) != id {
            *snapshot = begin();
        }
        snapshot.last = record.position;
        snapshot.chunks.insert(number, record);
    }

    /// Makes a snapshot of `parts` chunks the base of its shard, and forgets everything before it. False: chunks are missing.
    pub(super) fn install(
        &mut self,
        shard: ShardKey,
        id: (u64, u64),
        parts: u32,
        at: Seq,
        position: LogPosition,
    ) -> bool {
        let snapshot = self.partial_snapshot(shard, id);
        let first = snapshot.map_or(position, |snapshot| snapshot.first);
        let chunks = snapshot.into_iter().flat_map(|snapshot| snapshot.chunks.range(..parts));
        let chunks: Arc<[RecordLocation]> = chunks.map(|(_, chunk)| *chunk).collect();
        self.forget(shard);
        let (found, (epoch, generation)) = (chunks.len() as u32, id);
        if found != parts {
            let damage = Some(ShardDamage::MissingChunks(found, parts));
            self.set(shard, ShardIndexEntry { epoch, at, tail: Some(position), damage, base: None });
            return false;
        }
        let base = Some(BaseSnapshot { epoch, generation, at, sequence: position.sequence + 1, first, chunks });
        self.set(shard, ShardIndexEntry { epoch, at, base, ..ShardIndexEntry::default() });
        true
    }

    /// Marks the base of a shard as unreadable. Its log stays.
    pub(super) fn damaged(&mut self, shard: ShardKey, damage: ShardDamage, position: LogPosition) {
        self.forget(shard);
        self.set(shard, ShardIndexEntry { tail: Some(position), damage: Some(damage), ..ShardIndexEntry::default() });
    }

    fn set(&mut self, shard: ShardKey, entry: ShardIndexEntry) {
        self.needs.extend(entry.first().map(|first| (first.sequence, shard)));
        self.base_bytes += entry.base.as_ref().map_or(0, BaseSnapshot::bytes);
        self.shards.insert(shard, entry);
    }

    /// Removes a shard from the index, and its snapshot under way.
    pub(super) fn forget(&mut self, shard: ShardKey) {
        self.snapshots.remove(&shard);
        self.skipped.remove(&shard);
        let Some(entry) = self.shards.remove(&shard) else { return };
        self.base_bytes -= entry.base.as_ref().map_or(0, BaseSnapshot::bytes);
        if let Some(first) = entry.first() {
            self.needs.remove(&(first.sequence, shard));
        }
    }

    /// Forgets all snapshots under way: their owner is gone.
    pub(super) fn forget_snapshots(&mut self) {
        self.snapshots.clear();
    }

    /// Notes that the owner of `epoch` has loaded the shard.
    pub(super) fn adopt(&mut self, shard: ShardKey, epoch: u64) {
        if let Some(entry) = self.shards.get_mut(&shard).filter(|entry| entry.damage.is_none()) {
            entry.epoch = epoch;
        }
    }

    /// Notes that no snapshot of the shard can be had: others are asked for one.
    pub(super) fn skip_snapshot(&mut self, shard: ShardKey) {
        self.skipped.insert(shard);
    }

    /// Shard that needs the oldest part of the log, once that exceeds its limit. A shard that the owner of `epoch` has not
    /// loaded is skipped, because its rows are unknown, and does not count: one unreadable shard would cause endless
    /// snapshots of all others. A snapshot that was given up is forgotten once its newest chunk is far behind.
    pub(super) fn snapshot_candidate(&mut self, epoch: u64) -> Option<ShardKey> {
        let limit = self.log_bytes_free + LOG_BYTES_PER_BASE_BYTE * self.base_bytes;
        let end = self.end.offset;
        let free = self.log_bytes_free;
        self.snapshots.retain(|_, snapshot| end - snapshot.last.offset <= free);
        let (shard, first) = self.needs.iter().find_map(|(_, shard)| {
            let is_due = |entry: &&ShardIndexEntry| entry.epoch == epoch && entry.damage.is_none();
            let entry = self.shards.get(shard).filter(is_due).filter(|_| !self.skipped.contains(shard))?;
            Some((*shard, entry.first()?))
        })?;
        (end - first.offset > limit).then_some(shard)
    }
}
