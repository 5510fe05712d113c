//! Loading of shards: their chunks, then the log, each once and in order.

use std::collections::HashMap;

use redb::{Error, ReadTransaction};

use super::super::{DamagedRecord, LoadedShard, RowSink, ShardDamage, ShardKey};
use super::disk::{CHUNKS, ChunkKey, LOG};
use super::record::{DiskRecord, DiskRecords, RecordKind};
use super::shard_index::{BaseSnapshot, ShardIndex, ShardIndexEntry};
use crate::model::Seq;

/// Shard that is being read: the state reached so far, or the reason for which it cannot be read.
struct ShardLoad {
    entry: ShardIndexEntry,
    at: Result<Seq, ShardDamage>,
}

impl ShardLoad {
    /// First log position that may hold a record of the shard.
    fn floor(&self) -> u64 {
        self.entry.base.map_or(0, |base| base.position)
    }

    /// Log position of the first record of the shard.
    fn tail(&self) -> Option<u64> {
        self.entry.tail.map(|tail| tail.position)
    }

    fn fail(&mut self, damage: ShardDamage) {
        if self.at.is_ok() {
            self.at = Err(damage);
        }
    }

    /// Passes on the rows of a record, if it follows the state read so far.
    fn replay(&mut self, position: u64, record: &DiskRecord<'_>, sink: &mut RowSink) {
        let Ok(at) = self.at else { return };
        if self.tail().is_none_or(|tail| position < tail) {
            return;
        }
        let rows = record.body(RecordKind::Rows).and_then(|rows| {
            let follows = record.from <= at && at < record.to;
            if follows { Ok(rows) } else { Err(DamagedRecord::Gap { from: record.from, to: record.to, at }) }
        });
        self.at = match rows {
            Ok(rows) => {
                sink(record.shard, rows);
                Ok(record.to)
            }
            Err(flaw) => Err(ShardDamage::Log(position, flaw)),
        };
    }
}

/// Shards to be read, captured together with the transaction that reads them.
pub(super) struct ShardLoader {
    order: Vec<ShardKey>,
    shards: HashMap<ShardKey, ShardLoad>,
    /// First log position to be read.
    from: u64,
}

impl ShardLoader {
    pub(super) fn new(index: &ShardIndex, order: Vec<ShardKey>) -> Self {
        let mut shards = HashMap::new();
        for &shard in &order {
            let entry = index.get(shard).cloned().unwrap_or_default();
            let at = entry.damage.clone().map_or(Ok(entry.base.map_or(0, |base| base.at)), Err);
            let mut load = ShardLoad { entry, at };
            if let Some((position, flaw)) = index.unreadable.range(load.floor()..).next() {
                load.fail(ShardDamage::Log(*position, flaw.clone()));
            }
            shards.insert(shard, load);
        }
        let from = shards.values().filter_map(ShardLoad::tail).min().unwrap_or(u64::MAX);
        Self { order, shards, from }
    }

    /// Reads the shards; memory is bounded by one log entry or chunk and redb's cache.
    pub(super) fn run(mut self, read: &ReadTransaction, sink: &mut RowSink) -> Result<Vec<LoadedShard>, Error> {
        // Read in the order of the file.
        let mut sorted = self.order.clone();
        sorted.sort_unstable();
        sorted.dedup();
        for shard in sorted {
            let Some(load) = self.shards.get_mut(&shard) else { continue };
            if let (Some(base), Ok(_)) = (load.entry.base, &load.at) {
                match read_chunks(read, shard, &base, sink) {
                    Ok(Ok(())) => {}
                    Ok(Err(damage)) => load.fail(damage),
                    Err(Error::Corrupted(text)) => load.fail(ShardDamage::CorruptedChunks(text)),
                    Err(error) => return Err(error),
                }
            }
        }
        for entry in read.open_table(LOG)?.range(self.from..)? {
            let (key, value) = entry?;
            self.log_entry(key.value(), value.value(), sink);
        }
        let loaded = |shard| {
            let at = self.shards.get(&shard).map_or(Ok(0), |load| load.at.clone());
            LoadedShard { shard, at }
        };
        Ok(self.order.into_iter().map(loaded).collect())
    }

    fn log_entry(&mut self, position: u64, blob: &[u8], sink: &mut RowSink) {
        for record in DiskRecords::new(blob) {
            match record {
                Ok(record) => {
                    if let Some(load) = self.shards.get_mut(&record.shard) {
                        load.replay(position, &record, sink);
                    }
                }
                Err(flaw) => {
                    for load in self.shards.values_mut().filter(|load| load.floor() <= position) {
                        load.fail(ShardDamage::Log(position, flaw.clone()));
                    }
                }
            }
        }
    }
}

/// Passes on the chunks of a base; the inner error is their damage.
fn read_chunks(
    read: &ReadTransaction,
    shard: ShardKey,
    base: &BaseSnapshot,
    sink: &mut RowSink,
) -> Result<Result<(), ShardDamage>, Error> {
    let key = |number| -> ChunkKey { (shard.pool, shard.shard, base.epoch, base.generation, number) };
    let mut expected = 0;
    for entry in read.open_table(CHUNKS)?.range(key(0)..key(base.parts))? {
        let (found, value) = entry?;
        let rows = DiskRecord::read_single(value.value(), RecordKind::Part).and_then(|record| {
            let name = (record.shard, record.epoch, record.from, record.to);
            let is_due =
                found.value() == key(expected) && name == (shard, base.epoch, base.generation, u64::from(expected));
            if is_due { record.body(RecordKind::Part) } else { Err(DamagedRecord::OtherChunk) }
        });
        match rows {
            Ok(rows) => sink(shard, rows),
            Err(flaw) => return Ok(Err(ShardDamage::Chunk(expected, flaw))),
        }
        expected += 1;
    }
    Ok(if expected == base.parts { Ok(()) } else { Err(ShardDamage::MissingChunks(expected, base.parts)) })
}
