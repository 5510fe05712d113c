//! Directory and file of the store: lock, creation, tables, the scan at opening, and the meaning of errors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{
    Builder, Database, Error, ReadTransaction, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    StorageBackend as _, TableDefinition,
};
use uuid::Uuid;

use super::super::data_dir::{self, io_error};
use super::super::{DamagedRecord, ShardDamage, ShardKey, StoreError};
use super::file::{DiskFile, FILE, FILE_NEW, FILE_UNSYNCED, StoreDir};
use super::record::{self, DiskRecord, DiskRecords, RecordKind, u64_at};
use super::shard_index::{BaseSnapshot, LogPosition, ShardIndex};
use crate::model::Fence;

/// Version of the tables and of a record's header, stored in the file. Any other is rejected.
pub(super) const FORMAT: u128 = 1;
/// Size of redb's cache: enough for the pages that commits change repeatedly; the log and the chunks are read once.
const CACHE_BYTES: usize = 64 << 20;
/// Size of the blocks in which a file is copied.
const BLOCK_BYTES: u64 = 1 << 20;

/// Table of `format`, `owner`, `epoch`, `fence_ceiling`, and `fence_floor` unless an older build wrote last.
pub(super) const META: TableDefinition<'_, &str, u128> = TableDefinition::new("meta");
/// Table of log position -> records of one commit. Positions have no holes.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Table of pool, shard, epoch, generation, number -> one record.
pub(super) const CHUNKS: TableDefinition<'_, ChunkKey, &[u8]> = TableDefinition::new("chunks");
/// Table of pool, shard -> one record.
pub(super) const BASES: TableDefinition<'_, (u64, u16), &[u8]> = TableDefinition::new("bases");
/// Key of the table [`CHUNKS`].
pub(super) type ChunkKey = (u64, u16, u64, u64, u32);

/// Ownership record, as the meta table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MetaRecord {
    pub(super) owner: Uuid,
    pub(super) epoch: u64,
    pub(super) fence_ceiling: Fence,
    pub(super) fence_floor: Fence,
}

impl MetaRecord {
    /// Names and values of the fields, for people.
    pub(super) fn properties(&self) -> BTreeMap<String, String> {
        let Self { owner, epoch, fence_ceiling, fence_floor } = self;
        let all = [
            ("owner", owner.to_string()),
            ("epoch", epoch.to_string()),
            ("fence_ceiling", fence_ceiling.to_string()),
            ("fence_floor", fence_floor.to_string()),
            ("format", FORMAT.to_string()),
        ];
        all.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

/// Locks the directory for this process, after creating it if it is missing. The lock is held until the file is dropped.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    data_dir::create(dir)?;
    if !dir.join(FILE).exists() && !dir.join(FILE_UNSYNCED).exists() {
        let failed = |error| io_error(&format!("cannot read the data directory {}", dir.display()), &error);
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if !data_dir::is_ours(&name) {
                let dir = dir.display();
                let name = name.display();
                return Err(StoreError::Unusable(format!(
                    "{dir} holds {name} and no {FILE}, so it is not a data directory; choose another"
                )));
            }
        }
    }
    data_dir::lock(dir)
}

/// Opens the file, or creates an empty one, and scans it. The caller holds the lock.
pub(super) fn open(disk: &StoreDir) -> Result<(Database, MetaRecord, ShardIndex), StoreError> {
    // redb trusts data that its checksums do not cover, so a damaged file can make it panic.
    catch_unwind(AssertUnwindSafe(|| {
        let failed = |error| store_error(disk, error);
        if !disk.path(FILE).exists() {
            create_durably(disk).map_err(failed)?;
        }
        // Sync also an existing file: the process that renamed it may have died before its sync.
        disk.sync_names(disk.dir()).map_err(|error| {
            let what = format!("cannot sync the data directory {}: {error}", disk.dir().display());
            StoreError::Unusable(what)
        })?;
        if disk.path(FILE_UNSYNCED).exists() {
            std::fs::remove_file(disk.path(FILE_UNSYNCED)).map_err(|error| failed(error.into()))?;
        }
        let file = DiskFile::open(disk, FILE).map_err(|error| failed(error.into()))?;
        let db = builder().create_with_backend(file).map_err(|e| failed(e.into()))?;
        let read = db.begin_read().map_err(|e| failed(e.into()))?;
        let meta = meta(disk, &read)?;
        let index = scan(&read).map_err(failed)?;
        Ok((db, meta, index))
    }))
    .unwrap_or_else(|_| Err(damaged(disk, "reading it panicked")))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Creates the file under a temporary name and renames it once it is durable: a copy of the file whose sync failed, or an
/// empty store.
fn create_durably(disk: &StoreDir) -> Result<(), Error> {
    if disk.path(FILE_UNSYNCED).exists() {
        copy_unsynced(disk)?;
    } else {
        create(disk)?;
    }
    std::fs::rename(disk.path(FILE_NEW), disk.path(FILE))?;
    let sync_names = || {
        disk.sync_names(disk.dir())?;
        // The directory may be new too; its own name is durable only once its parent is synced.
        disk.dir().canonicalize()?.parent().map_or(Ok(()), |parent| disk.sync_names(parent))
    };
    // Without its name, the next attempt creates the file again.
    Ok(sync_names().inspect_err(|_| drop(std::fs::rename(disk.path(FILE), disk.path(FILE_NEW))))?)
}

/// Copies every byte as the system shows it. Bytes of the old file that did not reach the disk would not be written by
/// another sync of it, only by that of a new file.
fn copy_unsynced(disk: &StoreDir) -> Result<(), Error> {
    let mut from = File::open(disk.path(FILE_UNSYNCED))?;
    let to = DiskFile::create(disk, FILE_NEW)?;
    let (mut at, mut block) = (0, Vec::new());
    while from.by_ref().take(BLOCK_BYTES).read_to_end(&mut block)? > 0 {
        to.write(at, &block)?;
        at += block.len() as u64;
        block.clear();
    }
    Ok(to.sync_data()?)
}

/// Creates an empty store: the tables, and the initial fields of the meta table.
fn create(disk: &StoreDir) -> Result<(), Error> {
    let db = builder().create_with_backend(DiskFile::create(disk, FILE_NEW)?)?;
    let write = db.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        for (key, value) in [("format", FORMAT), ("owner", 0), ("epoch", 0), ("fence_ceiling", 0)] {
            meta.insert(key, value)?;
        }
        write.open_table(LOG)?;
        write.open_table(CHUNKS)?;
        write.open_table(BASES)?;
    }
    write.commit()?;
    Ok(db.close()?)
}

fn meta(disk: &StoreDir, read: &ReadTransaction) -> Result<MetaRecord, StoreError> {
    let foreign = || {
        StoreError::Unusable(format!(
            "{} was not written by hotpool; choose another directory",
            disk.path(FILE).display()
        ))
    };
    let table = match read.open_table(META) {
        Ok(table) => table,
        Err(redb::TableError::Storage(error)) => return Err(store_error(disk, error.into())),
        Err(_) => return Err(foreign()),
    };
    let find = |key| -> Result<Option<u128>, StoreError> {
        let value = table.get(key).map_err(|error| store_error(disk, error.into()))?;
        Ok(value.map(|value| value.value()))
    };
    let get = |key| find(key)?.ok_or_else(foreign);
    let number = |key, value| u64::try_from(value).map_err(|_| damaged(disk, key));
    let format = get("format")?;
    if format != FORMAT {
        let message = format!("{} has format {format}; this program reads format {FORMAT}", disk.path(FILE).display());
        return Err(StoreError::Unusable(message));
    }
    Ok(MetaRecord {
        owner: Uuid::from_u128(get("owner")?),
        epoch: number("epoch", get("epoch")?)?,
        fence_ceiling: number("fence_ceiling", get("fence_ceiling")?)?,
        // Absent if an older build wrote last.
        fence_floor: number("fence_floor", find("fence_floor")?.unwrap_or(0))?,
    })
}

/// Indexes every shard: the bases, then the headers of the log in order, then the chunks that nothing refers to.
fn scan(read: &ReadTransaction) -> Result<ShardIndex, Error> {
    let mut index = ShardIndex::default();
    for entry in read.open_table(BASES)?.iter()? {
        let (key, value) = entry?;
        let (pool, shard) = key.value();
        let shard = ShardKey { pool, shard };
        match read_base(shard, value.value()) {
            Ok(base) => {
                index.end.position = index.end.position.max(base.position);
                index.base(shard, base);
            }
            Err(flaw) => index.damaged(shard, ShardDamage::Base(flaw)),
        }
    }
    scan_log(read, &mut index)?;
    find_orphan_chunks(read, &mut index)?;
    Ok(index)
}

fn scan_log(read: &ReadTransaction, index: &mut ShardIndex) -> Result<(), Error> {
    let log = read.open_table(LOG)?;
    let (mut location, mut first, mut expected) = (LogPosition::default(), None, None);
    for entry in log.iter()? {
        let (key, value) = entry?;
        location.position = key.value();
        if expected.is_some_and(|expected| expected != location.position) {
            index.unreadable.insert(location.position - 1, DamagedRecord::Missing);
        }
        expected = Some(location.position + 1);
        for record in DiskRecords::new(value.value()) {
            match record {
                Ok(record) => replay(index, &record, location),
                Err(flaw) => {
                    index.unreadable.insert(location.position, flaw);
                    // Entries after it may have been removed as obsolete; this one never is.
                    expected = None;
                }
            }
        }
        if expected.is_some() {
            first.get_or_insert(location.position);
        }
        location.offset += value.value().len() as u64;
    }
    // Never below a base's position, also when the log is empty: a batch there would not count.
    let next = if log.is_empty()? { 0 } else { location.position + 1 };
    index.end = LogPosition { position: index.end.position.max(next), offset: location.offset };
    index.first = first.unwrap_or(index.end.position);
    Ok(())
}

fn replay(index: &mut ShardIndex, record: &DiskRecord<'_>, location: LogPosition) {
    let base = index.get(record.shard).and_then(|entry| entry.base);
    if base.is_some_and(|base| location.position < base.position) {
        return;
    }
    if record.is_drop() {
        index.forget(record.shard);
    } else {
        index.rows(record.shard, record.epoch, record.to, location);
    }
}

/// Finds chunks that no base refers to, with one lookup per generation, because a lookup reads the whole chunk.
fn find_orphan_chunks(read: &ReadTransaction, index: &mut ShardIndex) -> Result<(), Error> {
    let chunks = read.open_table(CHUNKS)?;
    let mut from: ChunkKey = (0, 0, 0, 0, 0);
    while let Some(entry) = chunks.range(from..)?.next() {
        let (pool, shard, epoch, generation, _) = entry?.0.value();
        let shard = ShardKey { pool, shard };
        // No snapshot is under way when the file has just been opened, so only bases refer to chunks.
        if !index.referenced_generations(shard, 0).contains(&(epoch, generation)) {
            index.orphan_chunks.insert(shard);
        }
        from = (pool, shard.shard, epoch, generation.saturating_add(1), 0);
        if generation == u64::MAX {
            break;
        }
    }
    Ok(())
}

/// Encodes the base of a shard for the table [`BASES`].
pub(super) fn base_record(shard: ShardKey, base: &BaseSnapshot) -> Vec<u8> {
    let mut body = Vec::with_capacity(20);
    body.extend_from_slice(&base.position.to_le_bytes());
    body.extend_from_slice(&base.bytes.to_le_bytes());
    body.extend_from_slice(&base.parts.to_le_bytes());
    let mut out = Vec::new();
    record::write(&mut out, RecordKind::Base, shard, base.epoch, [base.generation, base.at], &body);
    out
}

fn read_base(shard: ShardKey, blob: &[u8]) -> Result<BaseSnapshot, DamagedRecord> {
    let record = DiskRecord::read_single(blob, RecordKind::Base)?;
    let body = record.body(RecordKind::Base)?;
    if body.len() != 20 {
        return Err(DamagedRecord::BaseSize(body.len()));
    }
    if record.shard != shard {
        return Err(DamagedRecord::OtherShard(record.shard.shard, record.shard.pool));
    }
    Ok(BaseSnapshot {
        epoch: record.epoch,
        generation: record.from,
        at: record.to,
        position: u64_at(body, 0),
        bytes: u64_at(body, 8),
        parts: u32::from_le_bytes([body[16], body[17], body[18], body[19]]),
    })
}

fn damaged(disk: &StoreDir, what: &str) -> StoreError {
    StoreError::Unusable(format!("{} is damaged: {what}", disk.path(FILE).display()))
}

/// Converts an error of redb to one of the store.
pub(super) fn store_error(disk: &StoreDir, error: Error) -> StoreError {
    if let Some(cause) = disk.unsynced() {
        return StoreError::Unusable(cause.to_owned());
    }
    let path = disk.path(FILE);
    match error {
        Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            StoreError::Unusable(format!("{} is not a hotpool store: {error}", path.display()))
        }
        Error::Io(error) => io_error(&format!("cannot use {}", path.display()), &error),
        Error::Corrupted(what) => damaged(disk, &what),
        // Follows an error that was returned already; the file is opened again.
        Error::PreviousIo | Error::DatabaseClosed => StoreError::Unavailable(format!("{}: {error}", path.display())),
        error => StoreError::Unusable(format!("{}: {error}", path.display())),
    }
}
