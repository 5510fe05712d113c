//! What the store holds, in memory: for every shard where its rows start and where its state stands. Pure.
//!
//! [`ShardIndex::answer`] decides and changes nothing; [`ShardIndex::accept`] is called once the commit is durable. Rebuilt
//! by one scan when the file is opened ([`super::disk`]), by the same `rows`, `base` and `forget`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::{ShardKey, WriteBatch, WriteKind, WriteOutcome};
use crate::model::Seq;

/// Log bytes that are let be before anything is rewritten: below this a restart reads the log in well under a
/// second, and rewriting would only cost.
const LOG_BYTES_FREE: u64 = 64 << 20;
/// Log bytes allowed per byte of base, beyond that. Rewriting everything writes each base byte once per so many log
/// bytes: write amplification stays <= 1.5, and the file and the time of a restart within about 3 times the state.
const LOG_BYTES_PER_BASE_BYTE: u64 = 2;

/// A place in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LogPosition {
    /// Key in the log table.
    pub(super) position: u64,
    /// Bytes of all log entries before it (since this process opened the file).
    pub(super) offset: u64,
}

/// The whole state of a shard at some moment, in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BaseSnapshot {
    /// Of the owner that wrote it. With `generation` it names the chunks, so an attempt number that a later
    /// process uses again cannot touch them.
    pub(super) epoch: u64,
    /// Attempt within the epoch.
    pub(super) generation: u64,
    /// Chunks `0..parts`; the last are the rows that came with the flip.
    pub(super) parts: u32,
    /// Its sequence number.
    pub(super) at: Seq,
    /// First log position that counts on top of it.
    pub(super) position: u64,
    /// Size of the chunks' rows.
    pub(super) bytes: u64,
}

/// One shard.
#[derive(Debug, Clone, Default)]
pub(super) struct ShardIndexEntry {
    /// Of the last step, or of the owner that has loaded it since.
    pub(super) epoch: u64,
    /// Where its state stands.
    pub(super) at: Seq,
    pub(super) base: Option<BaseSnapshot>,
    /// Its first step in the log on top of the base.
    pub(super) tail: Option<LogPosition>,
    /// Why its base cannot be read.
    pub(super) damage: Option<String>,
}

/// A rewrite under way: the chunks that are durable, by number, with their sizes in bytes.
#[derive(Debug, Default)]
struct PartialSnapshot {
    generation: u64,
    chunks: BTreeMap<u32, u64>,
}

/// All shards.
#[derive(Debug, Default)]
pub(super) struct ShardIndex {
    shards: HashMap<ShardKey, ShardIndexEntry>,
    /// Where the tails start: the log is needed from the first of them on.
    tails: BTreeSet<(u64, ShardKey)>,
    base_bytes: u64,
    /// First log entry that may still be there and is readable.
    pub(super) first: u64,
    /// Where the next log entry goes.
    pub(super) end: LogPosition,
    /// Log positions that cannot be read, so that nobody knows which shards they speak of. They are kept for ever.
    pub(super) unreadable: BTreeMap<u64, String>,
    rewrites: HashMap<ShardKey, PartialSnapshot>,
    /// Shards that may have chunks which nothing refers to.
    pub(super) orphan_chunks: BTreeSet<ShardKey>,
}

impl ShardIndex {
    pub(super) fn get(&self, shard: ShardKey) -> Option<&ShardIndexEntry> {
        self.shards.get(&shard)
    }

    /// Log entries below this hold nothing that counts.
    pub(super) fn needed_from(&self) -> u64 {
        self.tails.first().map_or(self.end.position, |&(position, _)| position)
    }

    /// The answer to a step of the present owner, whose epoch it is (see the table in [`crate::persist::store`]).
    pub(super) fn outcome_of(&self, step: &WriteBatch, epoch: u64) -> WriteOutcome {
        let head = self.shards.get(&step.shard);
        if head.is_some_and(|head| head.epoch > epoch) {
            return WriteOutcome::Fenced;
        }
        let is_base = |generation| {
            head.and_then(|head| head.base).is_some_and(|base| (base.epoch, base.generation) == (epoch, generation))
        };
        match &step.kind {
            WriteKind::Rows(_) => {
                // With part of the log unreadable, 'unknown' proves nothing: a rewrite gives the shard a base above it.
                let at = match head {
                    None if self.unreadable.is_empty() => Some(0),
                    Some(head) if head.epoch == epoch && head.damage.is_none() => Some(head.at),
                    None | Some(_) => None,
                };
                match at {
                    Some(at) if at >= step.from && at >= step.to => WriteOutcome::Duplicate,
                    Some(at) if at >= step.from => WriteOutcome::Ok,
                    Some(_) | None => WriteOutcome::Gap,
                }
            }
            WriteKind::Chunk { generation, number, .. } => {
                let there = self.rewrite(step.shard, *generation).is_some_and(|r| r.chunks.contains_key(number));
                if there || is_base(*generation) { WriteOutcome::Duplicate } else { WriteOutcome::Ok }
            }
            WriteKind::Install { generation, chunks, .. } => {
                if is_base(*generation) {
                    let done = head.is_some_and(|head| head.at >= step.to);
                    return if done { WriteOutcome::Duplicate } else { WriteOutcome::Gap };
                }
                let there = self.rewrite(step.shard, *generation).map_or(0, |r| r.chunks.range(..chunks).count());
                if there == *chunks as usize { WriteOutcome::Ok } else { WriteOutcome::Gap }
            }
            // Sent again after a lost reply it meets an unknown shard, so only the epoch is checked, as for a flip.
            WriteKind::Drop if head.is_none() && !self.rewrites.contains_key(&step.shard) => WriteOutcome::Duplicate,
            WriteKind::Drop => WriteOutcome::Ok,
        }
    }

    fn rewrite(&self, shard: ShardKey, generation: u64) -> Option<&PartialSnapshot> {
        self.rewrites.get(&shard).filter(|rewrite| rewrite.generation == generation)
    }

    /// The base that an accepted flip makes; `next` is the first log position after its commit.
    pub(super) fn installed_base(&self, step: &WriteBatch, epoch: u64, next: u64) -> Option<BaseSnapshot> {
        let WriteKind::Install { generation, chunks, rows } = &step.kind else { return None };
        let old = self.rewrite(step.shard, *generation).map_or(0, |r| r.chunks.range(..chunks).map(|(_, b)| b).sum());
        let bytes = old + rows.len() as u64;
        Some(BaseSnapshot { epoch, generation: *generation, parts: chunks + 1, at: step.to, position: next, bytes })
    }

    /// Takes in a step whose commit is durable: `mark` is where its log entry went, `next` the position after it.
    pub(super) fn apply_committed(&mut self, step: &WriteBatch, epoch: u64, mark: LogPosition, next: u64) {
        let shard = step.shard;
        match &step.kind {
            WriteKind::Rows(_) => self.rows(shard, epoch, step.to, mark),
            WriteKind::Chunk { generation, number, rows } => {
                let rewrite = self.rewrites.entry(shard).or_default();
                if rewrite.generation != *generation {
                    *rewrite = PartialSnapshot { generation: *generation, ..PartialSnapshot::default() };
                    self.orphan_chunks.insert(shard);
                }
                rewrite.chunks.insert(*number, rows.len() as u64);
            }
            WriteKind::Install { .. } => {
                if let Some(base) = self.installed_base(step, epoch, next) {
                    self.base(shard, base);
                }
                self.rewrites.remove(&shard);
                self.orphan_chunks.insert(shard);
            }
            WriteKind::Drop => {
                self.forget(shard);
                self.rewrites.remove(&shard);
                self.orphan_chunks.insert(shard);
            }
        }
    }

    /// A step in the log.
    pub(super) fn rows(&mut self, shard: ShardKey, epoch: u64, to: Seq, mark: LogPosition) {
        let head = self.shards.entry(shard).or_default();
        (head.epoch, head.at) = (epoch, to);
        if head.tail.is_none() {
            head.tail = Some(mark);
            self.tails.insert((mark.position, shard));
        }
    }

    /// A base: the shard starts anew from it.
    pub(super) fn base(&mut self, shard: ShardKey, base: BaseSnapshot) {
        self.forget(shard);
        self.base_bytes += base.bytes;
        self.shards.insert(
            shard,
            ShardIndexEntry { epoch: base.epoch, at: base.at, base: Some(base), ..ShardIndexEntry::default() },
        );
    }

    /// The shard is gone.
    pub(super) fn forget(&mut self, shard: ShardKey) {
        let Some(head) = self.shards.remove(&shard) else { return };
        self.base_bytes -= head.base.map_or(0, |base| base.bytes);
        if let Some(tail) = head.tail {
            self.tails.remove(&(tail.position, shard));
        }
    }

    /// The shard has a base, and it cannot be read.
    pub(super) fn damaged(&mut self, shard: ShardKey, damage: String) {
        self.shards.insert(shard, ShardIndexEntry { damage: Some(damage), ..ShardIndexEntry::default() });
    }

    /// The owner of `epoch` has read the shard as it stands.
    pub(super) fn adopt(&mut self, shard: ShardKey, epoch: u64) {
        if let Some(head) = self.shards.get_mut(&shard).filter(|head| head.damage.is_none()) {
            head.epoch = epoch;
        }
    }

    /// After the file was opened again: what only memory knew. `old` holds nothing that was not acknowledged.
    pub(super) fn merge_reopened(&mut self, old: Self, epoch: u64) {
        for (shard, _) in old.shards.into_iter().filter(|(_, head)| head.epoch == epoch) {
            self.adopt(shard, epoch);
        }
        self.rewrites = old.rewrites;
    }

    /// Generations of the shard's chunks that something refers to, as (epoch, generation), sorted.
    pub(super) fn referenced_generations(&self, shard: ShardKey, epoch: u64) -> Vec<(u64, u64)> {
        let base = self.shards.get(&shard).and_then(|head| head.base).map(|base| (base.epoch, base.generation));
        let rewrite = self.rewrites.get(&shard).map(|rewrite| (epoch, rewrite.generation));
        let mut kept: Vec<_> = base.into_iter().chain(rewrite).collect();
        kept.sort_unstable();
        kept
    }

    /// The one rule: past the limit, the shard whose tail is the oldest. A shard that `epoch` has not read is not
    /// asked for (its owner could not write it) and does not count, or one refused shard would have all the others
    /// rewritten for ever.
    pub(super) fn snapshot_candidate(&self, epoch: u64) -> Option<ShardKey> {
        let (shard, tail) = self.tails.iter().find_map(|(_, shard)| {
            let head = self.shards.get(shard).filter(|head| head.epoch == epoch)?;
            Some((*shard, head.tail?))
        })?;
        let limit = LOG_BYTES_FREE + LOG_BYTES_PER_BASE_BYTE * self.base_bytes;
        (self.end.offset - tail.offset > limit).then_some(shard)
    }
}
