//! Loading of shards: their chunks, then the log, each once and in order.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::super::data_dir::log_names::segment_name;
use super::super::{DamagedRecord, LoadedShard, RowSink, ShardDamage, ShardKey};
use super::disk::{DiskFile, StoreDisk, in_file};
use super::log_reader::{LogFrame, LogItem, read_log};
use super::record::{DiskRecord, DiskRecords, RecordKind};
use super::shard_index::{BaseSnapshot, RecordLocation, ShardIndex, ShardIndexEntry};
use crate::collections::HashMap;
use crate::model::Seq;

/// Shard that is being read: the state reached so far, or the reason for which it cannot be read.
struct ShardLoad {
    entry: ShardIndexEntry,
    at: Result<Seq, ShardDamage>,
    /// Unreadable frame in which the shard may have records. The next record clears it if it follows the state read so far:
    /// then none of the shard's was in the frame.
    suspect: Option<(u64, DamagedRecord)>,
}

impl ShardLoad {
    /// First frame that may hold a record of the shard on top of its base.
    fn floor(&self) -> u64 {
        self.entry.base.as_ref().map_or(0, |base| base.sequence)
    }

    /// First frame with a record of the shard on top of its base.
    fn tail(&self) -> Option<u64> {
        self.entry.tail.map(|tail| tail.sequence)
    }

    fn fail(&mut self, damage: ShardDamage) {
        if self.at.is_ok() {
            self.at = Err(damage);
        }
    }

    fn suspect(&mut self, sequence: u64, flaw: &DamagedRecord) {
        if self.floor() <= sequence && self.suspect.is_none() {
            self.suspect = Some((sequence, flaw.clone()));
        }
    }

    /// Passes on the rows of a record, if it follows the state read so far.
    fn replay(&mut self, sequence: u64, record: &DiskRecord<'_>, sink: &mut RowSink) {
        let Ok(at) = self.at else { return };
        if self.tail().is_none_or(|tail| sequence < tail) {
            return;
        }
        let rows = record.body(RecordKind::Rows).and_then(|rows| {
            let follows = record.from <= at && at < record.to;
            if follows { Ok(rows) } else { Err(DamagedRecord::Gap { from: record.from, to: record.to, at }) }
        });
        self.at = match rows {
            Ok(rows) => {
                self.suspect = None;
                sink(record.shard, rows);
                Ok(record.to)
            }
            // The gap is that of the frame that could not be read.
            Err(DamagedRecord::Gap { .. }) if self.suspect.is_some() => return,
            Err(flaw) => Err(ShardDamage::Log(sequence, flaw)),
        };
    }

    fn finish(mut self) -> Result<Seq, ShardDamage> {
        if let Some((sequence, flaw)) = self.suspect.take() {
            self.fail(ShardDamage::Log(sequence, flaw));
        }
        // Whatever the reading missed: the index has seen every record.
        match self.at {
            Ok(at) if at != self.entry.at => Err(ShardDamage::Log(self.floor(), DamagedRecord::Missing)),
            at => at,
        }
    }
}

/// Shards to be read, captured at one moment: frames from then on are not read.
pub(super) struct ShardLoader {
    order: Vec<ShardKey>,
    shards: HashMap<ShardKey, ShardLoad>,
    /// Unreadable frames that are known.
    unreadable: BTreeMap<u64, DamagedRecord>,
    /// First frame to be read.
    from: u64,
    /// Frame at which reading ends.
    limit: u64,
}

impl ShardLoader {
    pub(super) fn new(index: &ShardIndex, order: Vec<ShardKey>) -> Self {
        let load = |&shard: &ShardKey| {
            let entry = index.get(shard).cloned().unwrap_or_default();
            let at = match (&entry.damage, &entry.base) {
                (Some(damage), _) => Err(damage.clone()),
                (None, base) => Ok(base.as_ref().map_or(0, |base| base.at)),
            };
            (shard, ShardLoad { entry, at, suspect: None })
        };
        let shards: HashMap<_, _> = order.iter().map(load).collect();
        let limit = index.end.sequence;
        let from = shards.values().filter_map(ShardLoad::tail).min().unwrap_or(limit);
        Self { order, shards, unreadable: index.unreadable.clone(), from, limit }
    }

    /// First frame that is read, of a chunk or of the log.
    pub(super) fn needed_from(&self) -> u64 {
        let chunks = self.shards.values().filter_map(|load| load.entry.base.as_ref()).flat_map(|base| &*base.chunks);
        chunks.map(|chunk| chunk.position.sequence).min().unwrap_or(self.limit).min(self.from)
    }

    /// First frame of the log that is read.
    pub(super) const fn from(&self) -> u64 {
        self.from
    }

    /// Reads chunks and log, and passes the rows on. `numbers` are those of the segments from [`Self::from`] on.
    ///
    /// # Errors
    /// Failure of the disk. Damage is an error of its shard.
    pub(super) fn run(
        mut self,
        disk: &dyn StoreDisk,
        seed: u64,
        numbers: &[u64],
        sink: &mut RowSink,
    ) -> io::Result<Vec<LoadedShard>> {
        self.read_bases(disk, sink)?;
        let mut unreadable = std::mem::take(&mut self.unreadable).into_iter().peekable();
        if self.from < self.limit {
            read_log(disk, seed, numbers, Some(self.limit), &mut |item| {
                let before = match &item {
                    LogItem::Frame(frame) => frame.sequence,
                    LogItem::Unreadable(sequence, _) => *sequence,
                };
                while let Some((sequence, flaw)) = unreadable.next_if(|(sequence, _)| *sequence < before) {
                    self.suspect_all(sequence, &flaw);
                }
                match item {
                    LogItem::Frame(frame) => self.replay_frame(&frame, sink),
                    LogItem::Unreadable(sequence, flaw) if sequence >= self.from => self.suspect_all(sequence, &flaw),
                    // What precedes the part that is read.
                    LogItem::Unreadable(..) => {}
                }
            })?;
        }
        unreadable.for_each(|(sequence, flaw)| self.suspect_all(sequence, &flaw));
        let states: HashMap<_, _> = self.shards.into_iter().map(|(shard, load)| (shard, load.finish())).collect();
        let loaded = |shard| LoadedShard { shard, at: states.get(&shard).cloned().unwrap_or(Ok(0)) };
        Ok(self.order.into_iter().map(loaded).collect())
    }

    fn suspect_all(&mut self, sequence: u64, flaw: &DamagedRecord) {
        self.shards.values_mut().for_each(|load| load.suspect(sequence, flaw));
    }

    fn replay_frame(&mut self, frame: &LogFrame, sink: &mut RowSink) {
        for record in DiskRecords::new(&frame.contents) {
            match record {
                // The index knows them.
                Ok(record) if matches!(record.kind(), Some(RecordKind::Drop | RecordKind::Part | RecordKind::Base)) => {
                }
                Ok(record) => {
                    if let Some(load) = self.shards.get_mut(&record.shard) {
                        load.replay(frame.sequence, &record, sink);
                    }
                }
                Err(flaw) => self.suspect_all(frame.sequence, &flaw),
            }
        }
    }

    /// Passes on the chunks of all bases.
    fn read_bases(&mut self, disk: &dyn StoreDisk, sink: &mut RowSink) -> io::Result<()> {
        let mut open: Option<(u64, Arc<dyn DiskFile>)> = None;
        // In the order of the log.
        let mut sorted: Vec<_> = self.shards.values_mut().filter(|load| load.at.is_ok()).collect();
        sorted.sort_unstable_by_key(|load| load.floor());
        for load in sorted {
            let Some(base) = load.entry.base.clone() else { continue };
            for (number, chunk) in (0_u32..).zip(&*base.chunks) {
                let file = match &open {
                    Some((segment, file)) if *segment == chunk.segment => Arc::clone(file),
                    _ => {
                        let file = disk.open(&segment_name(chunk.segment))?;
                        open = Some((chunk.segment, Arc::clone(&file)));
                        file
                    }
                };
                let read = read_chunk(&*file, &base, number, *chunk, sink);
                if let Err(flaw) = read.map_err(in_file(disk, &segment_name(chunk.segment)))? {
                    load.fail(ShardDamage::Chunk(number, flaw));
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Passes on a chunk of a base; the inner error is its damage.
fn read_chunk(
    file: &dyn DiskFile,
    base: &BaseSnapshot,
    number: u32,
    chunk: RecordLocation,
    sink: &mut RowSink,
) -> io::Result<Result<(), DamagedRecord>> {
    let mut bytes = vec![0; usize::try_from(chunk.bytes).map_err(io::Error::other)?];
    let length = file.read_at(chunk.offset, &mut bytes)?;
    let rows = DiskRecord::read_single(&bytes[..length], RecordKind::Part).and_then(|record| {
        let is_due = (record.epoch, record.from, record.to) == (base.epoch, base.generation, u64::from(number));
        if is_due { Ok((record.shard, record.body(RecordKind::Part)?)) } else { Err(DamagedRecord::OtherChunk) }
    });
    Ok(rows.map(|(shard, rows)| sink(shard, rows)))
}
