//! The scan that builds the index when a store is opened.

use std::io;

use super::super::{DamagedRecord, ShardDamage};
use super::disk::StoreDisk;
use super::log_reader::{LogExtent, LogFrame, LogItem, read_log};
use super::record::{DiskRecord, DiskRecords, RecordKind, u32_at};
use super::shard_index::{LogPosition, RecordLocation, ShardIndex};

/// Reads the segments with these numbers, and indexes every shard. `index` knows what was unreadable before.
pub(super) fn scan(
    disk: &dyn StoreDisk,
    seed: u64,
    numbers: &[u64],
    mut index: ShardIndex,
) -> io::Result<(LogExtent, ShardIndex)> {
    let extent = read_log(disk, seed, numbers, None, &mut |item| match item {
        LogItem::Frame(frame) => scan_frame(&mut index, &frame),
        LogItem::Unreadable(sequence, flaw) => {
            index.unreadable.insert(sequence, flaw);
        }
    })?;
    index.forget_snapshots();
    index.end.sequence = extent.end.map_or(1, |end| end.next_sequence);
    Ok((extent, index))
}

fn scan_frame(index: &mut ShardIndex, frame: &LogFrame) {
    let position = LogPosition { sequence: frame.sequence, offset: index.end.offset };
    for record in DiskRecords::new(&frame.contents) {
        match record {
            Ok(record) => scan_record(index, &record, frame, position),
            Err(flaw) => {
                index.unreadable.insert(frame.sequence, flaw);
            }
        }
    }
    index.end.offset += frame.contents.len() as u64;
}

fn scan_record(index: &mut ShardIndex, record: &DiskRecord<'_>, frame: &LogFrame, position: LogPosition) {
    let shard = record.shard;
    match record.kind() {
        Some(RecordKind::Drop) => index.forget(shard),
        Some(RecordKind::Part) => {
            let location = RecordLocation {
                position,
                segment: frame.segment,
                offset: frame.offset + record.offset as u64,
                bytes: record.len() as u64,
            };
            // A number that does not fit is that of no chunk, so its base will lack one.
            if let Ok(number) = u32::try_from(record.to) {
                index.chunk(shard, (record.epoch, record.from), number, location);
            }
        }
        Some(RecordKind::Base) => match parts(record) {
            Ok(parts) => {
                index.install(shard, (record.epoch, record.from), parts, record.to, position);
            }
            Err(flaw) => index.damaged(shard, ShardDamage::Base(flaw), position),
        },
        // Damage of the body, or of the kind, is found when the shard is loaded.
        Some(RecordKind::Rows) | None => index.rows(shard, record.epoch, record.to, position),
    }
}

/// Number of chunks of a base.
fn parts(record: &DiskRecord<'_>) -> Result<u32, DamagedRecord> {
    let body = record.body(RecordKind::Base)?;
    if body.len() == 4 { Ok(u32_at(body, 0)) } else { Err(DamagedRecord::BaseSize(body.len())) }
}
