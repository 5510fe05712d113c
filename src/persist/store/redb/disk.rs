//! The directory and the file: lock, creation, tables, the scan at opening, and what an error means.

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
use super::super::{ShardKey, StoreError};
use super::file::{DiskFile, FILE, FILE_NEW, FILE_UNSYNCED, StoreDir};
use super::record::{self, DiskRecord, DiskRecords, RecordKind, u64_at};
use super::shard_index::{BaseSnapshot, LogPosition, ShardIndex};
use crate::model::Fence;

/// Version of the tables and of a record's header, stored in the file. Another one is refused.
pub(super) const FORMAT: u128 = 1;
/// redb's cache: enough for the pages that commits touch again and again; the log and the chunks are read once.
const CACHE_BYTES: usize = 64 << 20;
/// Size of the blocks in which a file is written anew.
const BLOCK_BYTES: u64 = 1 << 20;

/// `format`, `owner`, `epoch`, `fence_ceiling`, and from the first owner on that knew of it `fence_floor`.
pub(super) const META: TableDefinition<'_, &str, u128> = TableDefinition::new("meta");
/// Position -> the records of one commit. Positions have no holes.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Pool, shard, epoch, generation, number -> one record.
pub(super) const CHUNKS: TableDefinition<'_, ChunkKey, &[u8]> = TableDefinition::new("chunks");
/// Pool, shard -> one record.
pub(super) const BASES: TableDefinition<'_, (u64, u16), &[u8]> = TableDefinition::new("bases");
/// Key of [`CHUNKS`].
pub(super) type ChunkKey = (u64, u16, u64, u64, u32);

/// The ownership record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MetaRecord {
    pub(super) owner: Uuid,
    pub(super) epoch: u64,
    pub(super) fence_ceiling: Fence,
    pub(super) fence_floor: Fence,
}

impl MetaRecord {
    /// Names and values, for people.
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

/// Takes the directory for this process: makes it if it is not there, and holds its lock while the file lives.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    data_dir::create(dir)?;
    if !dir.join(FILE).exists() && !dir.join(FILE_UNSYNCED).exists() {
        let refused = |error| io_error(&format!("cannot read the data directory {}", dir.display()), &error);
        for entry in std::fs::read_dir(dir).map_err(refused)? {
            let name = entry.map_err(refused)?.file_name();
            if !data_dir::is_ours(&name) {
                let dir = dir.display();
                let name = name.display();
                return Err(StoreError::Unusable(format!("{dir} holds {name} and no {FILE}: not a data directory")));
            }
        }
    }
    data_dir::lock(dir)
}

/// Opens the file (the caller has the lock) and reads what is in it; makes an empty one if there is none.
pub(super) fn open(disk: &StoreDir) -> Result<(Database, MetaRecord, ShardIndex), StoreError> {
    // redb trusts what its checksums do not cover, or covered last time: a damaged file can make it panic.
    catch_unwind(AssertUnwindSafe(|| {
        let failed = |error| store_error(disk, error);
        if !disk.path(FILE).exists() {
            make(disk).map_err(failed)?;
        }
        // Synced also where the file was found: whoever renamed it may have died before this.
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
        let heads = scan(&read).map_err(failed)?;
        Ok((db, meta, heads))
    }))
    .unwrap_or_else(|_| Err(damaged(disk, "reading it failed with a panic")))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Makes the file under another name and renames it once it is durable: that of which a sync failed, written anew, or an
/// empty one.
fn make(disk: &StoreDir) -> Result<(), Error> {
    if disk.path(FILE_UNSYNCED).exists() {
        copy_unsynced(disk)?;
    } else {
        create(disk)?;
    }
    std::fs::rename(disk.path(FILE_NEW), disk.path(FILE))?;
    let last = || {
        disk.sync_names(disk.dir())?;
        // The directory may be new too; its own name lasts only once its parent is synced.
        disk.dir().canonicalize()?.parent().map_or(Ok(()), |parent| disk.sync_names(parent))
    };
    // Without its name the file is made again by whoever tries again.
    Ok(last().inspect_err(|_| drop(std::fs::rename(disk.path(FILE), disk.path(FILE_NEW))))?)
}

/// Copies every byte as the system shows it: whatever of them is not on the disk, no sync would bring there but that of a file
/// in which they were just written.
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

/// An empty store: the tables, and what the meta table has from the beginning.
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
    let foreign = || StoreError::Unusable(format!("{} was not written by hotpool", disk.path(FILE).display()));
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
        let message = format!("{} has format {format}, this program reads {FORMAT}", disk.path(FILE).display());
        return Err(StoreError::Unusable(message));
    }
    Ok(MetaRecord {
        owner: Uuid::from_u128(get("owner")?),
        epoch: number("epoch", get("epoch")?)?,
        fence_ceiling: number("fence_ceiling", get("fence_ceiling")?)?,
        // Absent where an older build wrote last.
        fence_floor: number("fence_floor", find("fence_floor")?.unwrap_or(0))?,
    })
}

/// Finds where every shard stands: the bases, then the headers of the log in order, then which chunks are left over.
fn scan(read: &ReadTransaction) -> Result<ShardIndex, Error> {
    let mut heads = ShardIndex::default();
    for entry in read.open_table(BASES)?.iter()? {
        let (key, value) = entry?;
        let (pool, shard) = key.value();
        let shard = ShardKey { pool, shard };
        match read_base(shard, value.value()) {
            Ok(base) => {
                heads.end.position = heads.end.position.max(base.position);
                heads.base(shard, base);
            }
            Err(flaw) => heads.damaged(shard, format!("damaged base: {flaw}")),
        }
    }
    scan_log(read, &mut heads)?;
    find_orphan_chunks(read, &mut heads)?;
    Ok(heads)
}

fn scan_log(read: &ReadTransaction, heads: &mut ShardIndex) -> Result<(), Error> {
    let log = read.open_table(LOG)?;
    let (mut mark, mut first, mut due) = (LogPosition::default(), None, None);
    for entry in log.iter()? {
        let (key, value) = entry?;
        mark.position = key.value();
        if due.is_some_and(|due| due != mark.position) {
            heads.unreadable.insert(mark.position - 1, "the entry is missing".into());
        }
        due = Some(mark.position + 1);
        for record in DiskRecords::new(value.value()) {
            match record {
                Ok(record) => replay(heads, &record, mark),
                Err(flaw) => {
                    heads.unreadable.insert(mark.position, flaw);
                    // What follows may have been removed as obsolete; this entry never is.
                    due = None;
                }
            }
        }
        if due.is_some() {
            first.get_or_insert(mark.position);
        }
        mark.offset += value.value().len() as u64;
    }
    // Never below a base's position, also when the log is empty: a step there would not count.
    let next = if log.is_empty()? { 0 } else { mark.position + 1 };
    heads.end = LogPosition { position: heads.end.position.max(next), offset: mark.offset };
    heads.first = first.unwrap_or(heads.end.position);
    Ok(())
}

fn replay(heads: &mut ShardIndex, record: &DiskRecord<'_>, mark: LogPosition) {
    let base = heads.get(record.shard).and_then(|head| head.base);
    if base.is_some_and(|base| mark.position < base.position) {
        return;
    }
    if record.is_drop() {
        heads.forget(record.shard);
    } else {
        heads.rows(record.shard, record.epoch, record.to, mark);
    }
}

/// One look per generation, not per chunk: looking at a chunk reads it.
fn find_orphan_chunks(read: &ReadTransaction, heads: &mut ShardIndex) -> Result<(), Error> {
    let chunks = read.open_table(CHUNKS)?;
    let mut from: ChunkKey = (0, 0, 0, 0, 0);
    while let Some(entry) = chunks.range(from..)?.next() {
        let (pool, shard, epoch, generation, _) = entry?.0.value();
        let shard = ShardKey { pool, shard };
        // No rewrite is under way when the file has just been opened, so only the base keeps chunks.
        if !heads.referenced_generations(shard, 0).contains(&(epoch, generation)) {
            heads.orphan_chunks.insert(shard);
        }
        from = (pool, shard.shard, epoch, generation.saturating_add(1), 0);
        if generation == u64::MAX {
            break;
        }
    }
    Ok(())
}

/// What the bases hold of a shard.
pub(super) fn base_record(shard: ShardKey, base: &BaseSnapshot) -> Vec<u8> {
    let mut body = Vec::with_capacity(20);
    body.extend_from_slice(&base.position.to_le_bytes());
    body.extend_from_slice(&base.bytes.to_le_bytes());
    body.extend_from_slice(&base.parts.to_le_bytes());
    let mut out = Vec::new();
    record::write(&mut out, RecordKind::Base, shard, base.epoch, [base.generation, base.at], &body);
    out
}

fn read_base(shard: ShardKey, blob: &[u8]) -> Result<BaseSnapshot, String> {
    let record = DiskRecord::read_single(blob, RecordKind::Base)?;
    let body = record.body(RecordKind::Base)?;
    if record.shard != shard || body.len() != 20 {
        return Err(format!("it is that of shard {} of pool {}", record.shard.shard, record.shard.pool));
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

/// What an error of redb means to the caller.
pub(super) fn store_error(disk: &StoreDir, error: Error) -> StoreError {
    if let Some(why) = disk.unsynced() {
        return StoreError::Unusable(why.to_owned());
    }
    let path = disk.path(FILE);
    match error {
        Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            StoreError::Unusable(format!("{} is not a hotpool store: {error}", path.display()))
        }
        Error::Io(error) => io_error(&format!("cannot use {}", path.display()), &error),
        Error::Corrupted(what) => damaged(disk, &what),
        // Only after an error that was answered itself; the file is opened again.
        Error::PreviousIo | Error::DatabaseClosed => StoreError::Unavailable(format!("{}: {error}", path.display())),
        error => StoreError::Unusable(format!("{}: {error}", path.display())),
    }
}
