//! Opening of a store: its lock, its creation, what a failed sync or a crash left behind, and the scan.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::environment::Environment;

use super::super::data_dir::log_names::{FREE_NAME, NEW_NAME, SegmentName, is_log_file, segment_name, unsynced_name};
use super::super::data_dir::{self, io_error};
use super::super::{DamagedRecord, StoreError};
use super::StoreState;
use super::disk::{DiskFile, StoreDisk, in_file};
use super::frame::FrameBuffer;
use super::ownership::{self, StoreRecord};
use super::scan::scan;
use super::segment_log::{LogEnd, SegmentLog};
use super::segments::{LogSegment, SegmentSettings};
use super::shard_index::ShardIndex;
use super::spare_segment::SegmentSupply;

/// Size of the blocks in which a segment is copied, in bytes.
const BLOCK_BYTES: usize = 1 << 20;

/// Locks the directory for this process, after creating it if it is missing. The lock is held until the file is dropped.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    data_dir::create(dir)?;
    if let Some(old) = data_dir::old_store(dir) {
        return Err(StoreError::Unusable(format!(
            "{} holds {old}, a store in the format of an earlier version, which this program cannot read; choose another \
             directory, in which workers register again",
            dir.display()
        )));
    }
    if !dir.join(ownership::FILE).exists() {
        let failed = |error| io_error(&format!("cannot read the data directory {}", dir.display()), &error);
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if !data_dir::is_ours(&name) {
                let dir = dir.display();
                let name = name.display();
                return Err(StoreError::Unusable(format!(
                    "{dir} holds {name} and no file {}, so it is not a data directory; choose another",
                    ownership::FILE
                )));
            }
        }
    }
    data_dir::lock(dir)
}

/// Syncs the name of a directory that may be new. If its parent may not be read, the whole file system is synced.
pub(super) fn sync_parent(dir: &Path) -> Result<(), StoreError> {
    let sync = || match dir.canonicalize()?.parent().map(File::open) {
        Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(rustix::fs::syncfs(File::open(dir)?)?)
        }
        Some(parent) => Ok(rustix::fs::fsync(parent?)?),
        None => Ok(()),
    };
    sync().map_err(|error: io::Error| io_error(&format!("cannot sync the name of {}", dir.display()), &error))
}

/// Opens the store on a disk that no other process uses, or creates an empty one.
pub(super) fn open(
    disk: &Arc<dyn StoreDisk>,
    settings: SegmentSettings,
    environment: &Environment,
) -> Result<StoreState, StoreError> {
    let failed = |error: io::Error| io_error(&format!("cannot use {}", disk.path(ownership::FILE)), &error);
    // A process that was killed may have changed names without the sync, and what is done now relies on them.
    disk.sync_names().map_err(failed)?;
    let mut record = match StoreRecord::read(&**disk)? {
        Some(record) => record,
        None => create(&**disk, settings, environment.new_uuid())?,
    };
    let numbers = repair_segments(&**disk).map_err(failed)?;
    let Some(&first) = numbers.first() else {
        return Err(StoreError::Unusable(format!(
            "{} is the record of a store, but there is no log beside it",
            disk.path(ownership::FILE)
        )));
    };
    let remembered = record.unreadable.iter().map(|(&sequence, text)| (sequence, DamagedRecord::Earlier(text.clone())));
    let mut index = ShardIndex::new(settings.log_bytes_free);
    index.unreadable.extend(remembered);
    let (extent, index) = scan(&**disk, record.seed(), &numbers, index).map_err(failed)?;
    check_end(&**disk, &record, &numbers, extent.end)?;
    let is_new = |sequence: &u64| !record.unreadable.contains_key(sequence);
    if index.unreadable.keys().any(is_new) {
        record.note_unreadable(&index.unreadable);
        record.write(&**disk)?;
    }
    if extent.end.is_none() && first != 1 {
        // Frames were there, or the segments before this one would not have been freed.
        return Err(StoreError::Unusable(format!(
            "{} and the segments after it hold no readable frame",
            segment_name(first)
        )));
    }
    let end = extent.end.unwrap_or(LogEnd { segment: first, offset: 0, next_sequence: 1, previous: 0 });
    let free_bytes = free_bytes(&**disk).map_err(failed)?;
    let supply = SegmentSupply::start(Arc::clone(disk), settings, free_bytes).map_err(failed)?;
    let segments = known_segments(&numbers, &extent.segments, end);
    let log = SegmentLog::open(Arc::clone(disk), record.seed(), supply, segments.into(), end).map_err(failed)?;
    // Nor may it have synced the last frame that it wrote.
    log.sync().map_err(StoreError::Unusable)?;
    Ok(StoreState {
        record,
        needed_from: log.segments()[0].first_sequence,
        index,
        log,
        frame: FrameBuffer::new(),
        loading_from: std::collections::BTreeMap::new(),
        broken: None,
    })
}

/// Checks that the log ends where it may. What a crash leaves unfinished is the last frame, which nothing else knew of.
///
/// # Errors
/// The end of the log is lost, and with it what was acknowledged.
fn check_end(
    disk: &dyn StoreDisk,
    record: &StoreRecord,
    numbers: &[u64],
    end: Option<LogEnd>,
) -> Result<(), StoreError> {
    let lost = |what: String| {
        let advice = "its last records are lost: restore a backup, or choose another directory";
        Err(StoreError::Unusable(format!("{what}; {advice}")))
    };
    let (segment, last) = end.map_or((numbers[0], 0), |end| (end.segment, end.next_sequence - 1));
    if last < record.synced_frame {
        let path = disk.path(&segment_name(segment));
        return lost(format!("{path} ends with frame {last}, and frame {} was on the disk", record.synced_frame));
    }
    // The segment after the last one is prepared; the one after that is not before a frame is in it.
    match numbers.iter().find(|&&number| number > segment + 1) {
        Some(&later) => lost(format!(
            "{} has no readable frame, and {} was made after it",
            disk.path(&segment_name(segment + 1)),
            segment_name(later)
        )),
        None => Ok(()),
    }
}

/// Creates an empty store: its first segment, and then its record.
fn create(disk: &dyn StoreDisk, settings: SegmentSettings, id: Uuid) -> Result<StoreRecord, StoreError> {
    let failed = |error: io::Error| io_error(&format!("cannot create {}", disk.path(ownership::FILE)), &error);
    // What a crash during the creation left behind is empty.
    for name in disk.list().map_err(failed)?.iter().filter(|name| is_log_file(name)) {
        if holds_bytes(&*disk.open(name).map_err(failed)?).map_err(failed)? {
            return Err(StoreError::Unusable(format!(
                "{} is the log of a store, but there is no file {} beside it",
                disk.path(name),
                ownership::FILE
            )));
        }
        disk.remove(name).map_err(failed)?;
    }
    let segment = || {
        let file = disk.create(NEW_NAME)?;
        file.write_at(0, &vec![0; settings.first_bytes as usize])?;
        file.sync()?;
        disk.rename(NEW_NAME, &segment_name(1))?;
        disk.sync_names()
    };
    segment().map_err(failed)?;
    let record = StoreRecord::new(id);
    record.write(disk)?;
    Ok(record)
}

fn holds_bytes(file: &dyn DiskFile) -> io::Result<bool> {
    let (mut at, mut block) = (0, vec![0; BLOCK_BYTES]);
    loop {
        let length = file.read_at(at, &mut block)?;
        if length == 0 || block[..length].iter().any(|byte| *byte != 0) {
            return Ok(length > 0);
        }
        at += length as u64;
    }
}

/// Writes segments anew of which a sync failed, removes an unfinished one, and returns the numbers of all, in order.
fn repair_segments(disk: &dyn StoreDisk) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let names = disk.list()?;
    if names.iter().any(|name| name == NEW_NAME) {
        disk.remove(NEW_NAME)?;
    }
    for name in names.iter().filter_map(|name| SegmentName::parse(name)) {
        match name {
            SegmentName::Segment(number) => numbers.push(number),
            SegmentName::Unsynced(number) => {
                if !names.contains(&segment_name(number)) {
                    copy_unsynced(disk, number)?;
                    numbers.push(number);
                }
                disk.remove(&unsynced_name(number))?;
                disk.sync_names()?;
            }
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Copies all bytes of a segment to a new file. They may be those that only the page cache has.
fn copy_unsynced(disk: &dyn StoreDisk, number: u64) -> io::Result<()> {
    let from = disk.open(&unsynced_name(number))?;
    let to = disk.create(NEW_NAME)?;
    let (mut at, mut block) = (0, vec![0; BLOCK_BYTES]);
    loop {
        let length = from.read_at(at, &mut block).map_err(in_file(disk, &unsynced_name(number)))?;
        if length == 0 {
            break;
        }
        to.write_at(at, &block[..length])?;
        at += length as u64;
    }
    to.sync()?;
    disk.rename(NEW_NAME, &segment_name(number))?;
    disk.sync_names()
}

fn free_bytes(disk: &dyn StoreDisk) -> io::Result<Option<u64>> {
    match disk.open(FREE_NAME) {
        Ok(file) => file.size_bytes().map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// All segments up to the last one with a frame; a spare after it is prepared anew. One of which no frame can be read counts
/// as having the first of the next one.
fn known_segments(numbers: &[u64], found: &[LogSegment], end: LogEnd) -> Vec<LogSegment> {
    let mut first_sequence = end.next_sequence;
    let mut segments = Vec::with_capacity(numbers.len());
    for &number in numbers.iter().rev().filter(|&&number| number <= end.segment) {
        if let Some(segment) = found.iter().find(|segment| segment.number == number) {
            first_sequence = segment.first_sequence;
        }
        segments.push(LogSegment { number, first_sequence });
    }
    segments.reverse();
    segments
}
