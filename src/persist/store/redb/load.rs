//! Reading shards back: their chunks, then the log, each once and in order.

use std::collections::HashMap;

use redb::{Error, ReadTransaction};

use super::super::{LoadedShard, RowSink, ShardKey};
use super::disk::{CHUNKS, ChunkKey, LOG};
use super::record::{DiskRecord, DiskRecords, RecordKind};
use super::shard_index::{BaseSnapshot, ShardIndex, ShardIndexEntry};
use crate::model::Seq;

/// A shard being read: where it stands so far, or why it cannot be read.
struct ShardLoad {
    head: ShardIndexEntry,
    at: Result<Seq, String>,
}

impl ShardLoad {
    /// Log positions from here on might hold a step of it.
    fn floor(&self) -> u64 {
        self.head.base.map_or(0, |base| base.position)
    }

    /// The position where its own steps start.
    fn tail(&self) -> Option<u64> {
        self.head.tail.map(|tail| tail.position)
    }

    fn fail(&mut self, why: String) {
        if self.at.is_ok() {
            self.at = Err(why);
        }
    }

    /// Passes on the rows of a step, if it follows what was read before.
    fn step(&mut self, position: u64, record: &DiskRecord<'_>, sink: &mut RowSink) {
        let Ok(at) = self.at else { return };
        if self.tail().is_none_or(|tail| position < tail) {
            return;
        }
        let rows = record.body(RecordKind::Rows).and_then(|rows| {
            let follows = record.from <= at && at < record.to;
            let why = || format!("it leads from {} to {}, the state is at {at}", record.from, record.to);
            if follows { Ok(rows) } else { Err(why()) }
        });
        self.at = match rows {
            Ok(rows) => {
                sink(record.shard, rows);
                Ok(record.to)
            }
            Err(flaw) => Err(damaged(position, &flaw)),
        };
    }
}

/// What is to be read, taken together with the transaction that reads it.
pub(super) struct ShardLoader {
    order: Vec<ShardKey>,
    shards: HashMap<ShardKey, ShardLoad>,
    /// Where the log reading starts.
    from: u64,
}

impl ShardLoader {
    pub(super) fn new(heads: &ShardIndex, order: Vec<ShardKey>) -> Self {
        let mut shards = HashMap::new();
        for &shard in &order {
            let head = heads.get(shard).cloned().unwrap_or_default();
            let at = head.damage.clone().map_or(Ok(head.base.map_or(0, |base| base.at)), Err);
            let mut reading = ShardLoad { head, at };
            if let Some((position, flaw)) = heads.unreadable.range(reading.floor()..).next() {
                reading.fail(damaged(*position, flaw));
            }
            shards.insert(shard, reading);
        }
        let from = shards.values().filter_map(ShardLoad::tail).min().unwrap_or(u64::MAX);
        Self { order, shards, from }
    }

    /// Reads; memory is bounded by one log entry or chunk and redb's cache.
    pub(super) fn run(mut self, read: &ReadTransaction, sink: &mut RowSink) -> Result<Vec<LoadedShard>, Error> {
        // In the order of the file.
        let mut sorted = self.order.clone();
        sorted.sort_unstable();
        sorted.dedup();
        for shard in sorted {
            let Some(reading) = self.shards.get_mut(&shard) else { continue };
            if let (Some(base), Ok(_)) = (reading.head.base, &reading.at) {
                match parts(read, shard, &base, sink) {
                    Ok(Ok(())) => {}
                    Ok(Err(flaw)) | Err(Error::Corrupted(flaw)) => reading.fail(format!("damaged chunk: {flaw}")),
                    Err(error) => return Err(error),
                }
            }
        }
        for entry in read.open_table(LOG)?.range(self.from..)? {
            let (key, value) = entry?;
            self.log_entry(key.value(), value.value(), sink);
        }
        let loaded = |shard| {
            let at = self.shards.get(&shard).map_or(Ok(0), |reading| reading.at.clone());
            LoadedShard { shard, at }
        };
        Ok(self.order.into_iter().map(loaded).collect())
    }

    fn log_entry(&mut self, position: u64, blob: &[u8], sink: &mut RowSink) {
        for record in DiskRecords::new(blob) {
            match record {
                Ok(record) => {
                    if let Some(reading) = self.shards.get_mut(&record.shard) {
                        reading.step(position, &record, sink);
                    }
                }
                Err(flaw) => {
                    for reading in self.shards.values_mut().filter(|reading| reading.floor() <= position) {
                        reading.fail(damaged(position, &flaw));
                    }
                }
            }
        }
    }
}

/// Passes on the chunks of a base; the inner error is what is wrong with them.
fn parts(
    read: &ReadTransaction,
    shard: ShardKey,
    base: &BaseSnapshot,
    sink: &mut RowSink,
) -> Result<Result<(), String>, Error> {
    let key = |number| -> ChunkKey { (shard.pool, shard.shard, base.epoch, base.generation, number) };
    let mut due = 0;
    for entry in read.open_table(CHUNKS)?.range(key(0)..key(base.parts))? {
        let (found, value) = entry?;
        let rows = DiskRecord::read_single(value.value(), RecordKind::Part).and_then(|record| {
            let name = (record.shard, record.epoch, record.from, record.to);
            let is_due = found.value() == key(due) && name == (shard, base.epoch, base.generation, u64::from(due));
            if is_due { record.body(RecordKind::Part) } else { Err("another is in its place".into()) }
        });
        match rows {
            Ok(rows) => sink(shard, rows),
            Err(flaw) => return Ok(Err(format!("number {due}: {flaw}"))),
        }
        due += 1;
    }
    Ok(if due == base.parts { Ok(()) } else { Err(format!("{due} of {} are there", base.parts)) })
}

fn damaged(position: u64, flaw: &str) -> String {
    format!("damaged record at log position {position}: {flaw}")
}
