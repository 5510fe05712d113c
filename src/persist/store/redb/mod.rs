//! `redb:DIR`, the embedded store: one file, and one commit for the batches of all shards, durable with one fsync.
//!
//! # Layout on disk
//!
//! An append-only **log** gets one entry per commit with the batches of all its shards: one insert at the right edge
//! of a tree, whatever the rows are. (A row per worker would change pages all over the file: 0.5 to 2 ms a commit.)
//! The state of a shard is its **base**, the chunks of a snapshot, and on top of it the log entries from the base's
//! position on. Log entries that no shard needs, and chunks that no base refers to, are removed a few per commit, so
//! no commit is long.
//!
//! Example: shards A and B write batches into the log at positions 0, 1, 2. A gets a snapshot: its chunks are commits of
//! their own, and the install is the commit at position 3. A's base now counts from position 4, its batches at 0..=3 are
//! obsolete, and the log is needed from B's first batch on. Once B has a new base too, the log is emptied.
//!
//! # Commits
//!
//! One phase: redb writes the pages and the header, then syncs once. After a crash it uses the slot whose checksums match,
//! so an unfinished commit has no effect. Two phases (a second fsync, +40 %) guard only against an attacker who can both
//! choose the rows and crash the disk. `quick_repair` implies them and saves the walk over the file after a crash: it doubles
//! the latency of every commit (220 -> 480 us) and saves 0.6 s of a restart with 1 GiB.
//!
//! # Owners
//!
//! The lock of the directory makes this process the only one that changes the file. So a shard that was loaded counts as of
//! the present epoch without being written again; one that was not loaded answers `Gap`.

mod disk;
mod file;
mod load;
mod record;
mod shard_index;

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use redb::{Database, Error, ReadTransaction, ReadableDatabase as _, WriteTransaction};
use uuid::Uuid;

use self::disk::{BASES, CHUNKS, ChunkKey, LOG, META, MetaRecord};
use self::file::StoreDir;
pub use self::file::{DiskOperation, DiskProbe};
use self::load::ShardLoader;
use self::record::RecordKind;
use self::shard_index::{LogPosition, ShardIndex};
use super::{
    FenceSpan, LoadedShard, OwnershipRecord, RowSink, ShardKey, Store, StoreError, WriteBatch, WriteKind, WriteOutcome,
};

/// Obsolete log entries that one commit removes while it adds one: the log shrinks, and no commit is slow.
const LOG_REMOVED_MAX: u64 = 16;
/// Orphan chunks that one commit removes. The journal determines the size of a chunk.
const CHUNKS_REMOVED_MAX: usize = 4;
/// Maximum number of bytes of rows in one call: one log entry, which redb keeps in memory and bounds at 3 GiB.
const CALL_BYTES_MAX: usize = 1 << 30;

const _: () = assert!(CALL_BYTES_MAX < u32::MAX as usize);

/// Embedded store in a directory.
#[derive(Debug)]
pub struct RedbStore {
    shared: Arc<RedbShared>,
    /// Owner and epoch of this handle since its takeover; it may write only with these.
    owner: Mutex<Option<(Uuid, u64)>>,
}

#[derive(Debug)]
struct RedbShared {
    disk: StoreDir,
    core: Mutex<RedbState>,
    /// Answer of `snapshot_candidate`, kept apart so that reading it does not wait for a commit.
    snapshot_candidate: Mutex<Option<ShardKey>>,
    /// Lock of the directory, dropped last.
    _lock: File,
}

/// State of the open file, which one caller at a time may use.
#[derive(Debug)]
struct RedbState {
    /// Open file; none after a failure, because redb stops after an I/O error and the file must be opened again.
    db: Option<Database>,
    meta: MetaRecord,
    index: ShardIndex,
    /// Failure after which no call is tried any more.
    broken: Option<StoreError>,
}

impl RedbStore {
    /// Opens the store in `dir`, which is created if it is missing. Blocks: after a crash redb walks over the whole
    /// file (about 0.6 s a GiB), and the log is read once (about 0.25 s a GiB; both from the page cache).
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if another process uses the directory, if it holds other files, or if the store is damaged or of
    /// another version; [`StoreError::Unavailable`] if the disk is full.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::with(dir, None)
    }

    /// Whether a directory holds a store, which [`Self::open`] would otherwise create.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        [super::data_dir::STORE, super::data_dir::STORE_UNSYNCED].iter().any(|name| dir.join(name).exists())
    }

    /// Opens the store on a disk that fails when `probe` fails, for tests.
    ///
    /// # Errors
    /// Errors of [`Self::open`].
    pub fn open_with_probe(dir: &Path, probe: DiskProbe) -> Result<Self, StoreError> {
        Self::with(dir, Some(probe))
    }

    fn with(dir: &Path, probe: Option<DiskProbe>) -> Result<Self, StoreError> {
        let lock = disk::lock(dir)?;
        let disk = StoreDir::new(dir, probe);
        let (db, meta, index) = disk::open(&disk)?;
        let core = Mutex::new(RedbState { db: Some(db), meta, index, broken: None });
        let shared = RedbShared { disk, core, snapshot_candidate: Mutex::new(None), _lock: lock };
        Ok(Self { shared: Arc::new(shared), owner: Mutex::new(None) })
    }

    /// Creates another handle on the same open file, like that of another owner: it may write after its takeover, which fences
    /// this one.
    #[must_use]
    pub fn second_handle(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), owner: Mutex::new(None) }
    }

    /// Runs `work` on a thread that may block, because an fsync takes an unbounded time.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&RedbShared, Option<(Uuid, u64)>) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let shared = Arc::clone(&self.shared);
        let owner = *self.owner.lock();
        async move {
            match tokio::task::spawn_blocking(move || work(&shared, owner)).await {
                Ok(done) => done,
                Err(error) if error.is_panic() => Err(StoreError::Unusable(format!("the store panicked: {error}"))),
                Err(_) => Err(StoreError::Unavailable("the runtime is shutting down".into())),
            }
        }
        .boxed()
    }
}

impl Store for RedbStore {
    fn kind(&self) -> &'static str {
        "redb"
    }

    fn keeps_rows(&self) -> bool {
        true
    }

    fn take_over(&self, owner: Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>> {
        async move {
            let record = self.blocking(move |shared, _| shared.take_over(owner)).await?;
            *self.owner.lock() = Some((owner, record.epoch));
            Ok(record)
        }
        .boxed()
    }

    fn raise_fence_ceiling(&self, span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>> {
        self.blocking(move |shared, owner| shared.raise_fence_ceiling(owner, span))
    }

    fn load(&self, shards: Vec<ShardKey>, sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>> {
        self.blocking(move |shared, owner| shared.load(owner, shards, sink))
    }

    fn apply(&self, batches: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        self.blocking(move |shared, owner| shared.apply(owner, &batches))
    }

    fn properties(&self) -> BoxFuture<'_, Result<BTreeMap<String, String>, StoreError>> {
        self.blocking(|shared, _| Ok(shared.core.lock().meta.properties()))
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        *self.shared.snapshot_candidate.lock()
    }
}

impl RedbShared {
    /// Runs `work` with the open file. After an error (or a panic) the file is closed. The next call opens it again and reads
    /// how much of the failed commit is stored, unless a sync failed: then reads prove nothing.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database, &mut MetaRecord, &mut ShardIndex) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let mut core = self.core.lock();
        let core = &mut *core;
        let unsynced = || self.disk.unsynced().map(|cause| StoreError::Unusable(cause.to_owned()));
        if let Some(broken) = core.broken.clone().or_else(unsynced) {
            return Err(broken);
        }
        let db = match core.db.take() {
            Some(db) => db,
            None => core.reopen(&self.disk)?,
        };
        match work(&db, &mut core.meta, &mut core.index) {
            Ok(done) => {
                core.db = Some(db);
                *self.snapshot_candidate.lock() = core.index.snapshot_candidate(core.meta.epoch);
                Ok(done)
            }
            Err(error) => {
                let error = disk::store_error(&self.disk, error);
                if matches!(error, StoreError::Unusable(_)) {
                    core.broken = Some(error.clone());
                }
                Err(error)
            }
        }
    }

    fn take_over(&self, owner: Uuid) -> Result<OwnershipRecord, StoreError> {
        self.with(|db, meta, _| {
            *meta = write_meta(db, MetaRecord { owner, epoch: meta.epoch + 1, ..*meta })?;
            let MetaRecord { epoch, fence_ceiling, fence_floor, .. } = *meta;
            Ok(OwnershipRecord { epoch, fence_ceiling, fence_floor })
        })
    }

    fn raise_fence_ceiling(&self, owner: Option<(Uuid, u64)>, span: FenceSpan) -> Result<(), StoreError> {
        let is_owner = self.with(|db, meta, _| {
            if Some((meta.owner, meta.epoch)) != owner {
                return Ok(false);
            }
            if span.ceiling > meta.fence_ceiling {
                let fence_floor = span.floor.max(meta.fence_floor);
                *meta = write_meta(db, MetaRecord { fence_ceiling: span.ceiling, fence_floor, ..*meta })?;
            }
            Ok(true)
        })?;
        if is_owner { Ok(()) } else { Err(StoreError::Unusable("another process owns the store".into())) }
    }

    fn load(
        &self,
        owner: Option<(Uuid, u64)>,
        shards: Vec<ShardKey>,
        mut sink: RowSink,
    ) -> Result<Vec<LoadedShard>, StoreError> {
        let (load, read): (ShardLoader, ReadTransaction) =
            self.with(|db, _, index| Ok((ShardLoader::new(index, shards), db.begin_read()?)))?;
        // Writes may go on meanwhile; the transaction sees the state at its beginning.
        let loaded = load.run(&read, &mut sink).map_err(|error| disk::store_error(&self.disk, error))?;
        drop(read);
        self.with(|_, meta, index| {
            if owner == Some((meta.owner, meta.epoch)) {
                for loaded in loaded.iter().filter(|loaded| loaded.at.is_ok()) {
                    index.adopt(loaded.shard, meta.epoch);
                }
            }
            Ok(loaded)
        })
    }

    fn apply(&self, owner: Option<(Uuid, u64)>, batches: &[WriteBatch]) -> Result<Vec<WriteOutcome>, StoreError> {
        let Some((owner, epoch)) = owner else {
            return Err(StoreError::Unusable("no batch may be applied before a takeover".into()));
        };
        let mut shards = HashSet::with_capacity(batches.len());
        if !batches.iter().all(|batch| shards.insert(batch.shard)) {
            return Err(StoreError::Unusable("two batches of one shard in one call".into()));
        }
        if batches.iter().map(|batch| rows(batch).len()).sum::<usize>() > CALL_BYTES_MAX {
            return Err(StoreError::Unusable(format!("more than {CALL_BYTES_MAX} bytes in one call")));
        }
        self.with(|db, meta, index| {
            if (meta.owner, meta.epoch) != (owner, epoch) {
                return Ok(vec![WriteOutcome::Fenced; batches.len()]);
            }
            let outcomes: Vec<_> = batches.iter().map(|batch| index.outcome_of(batch, epoch)).collect();
            let accepted: Vec<&WriteBatch> = batches
                .iter()
                .zip(&outcomes)
                .filter(|(_, o)| **o == WriteOutcome::Ok)
                .map(|(batch, _)| batch)
                .collect();
            if !accepted.is_empty() {
                commit(db, index, epoch, &accepted)?;
            }
            Ok(outcomes)
        })
    }
}

impl RedbState {
    /// Opens the file again after a failure.
    fn reopen(&mut self, disk: &StoreDir) -> Result<Database, StoreError> {
        let (db, meta, index) = disk::open(disk)?;
        let old = std::mem::replace(&mut self.index, index);
        self.index.merge_reopened(old, meta.epoch);
        self.meta = meta;
        Ok(db)
    }
}

/// Writes accepted batches in one transaction, and then applies them to the index.
fn commit(db: &Database, index: &mut ShardIndex, epoch: u64, batches: &[&WriteBatch]) -> Result<(), Error> {
    let mut blob = Vec::new();
    for batch in batches {
        let range = [batch.from, batch.to];
        match &batch.kind {
            WriteKind::Rows(rows) => record::write(&mut blob, RecordKind::Rows, batch.shard, epoch, range, rows),
            // Also if only a base is stored: older entries of the shard may still be in the log.
            WriteKind::Drop => record::write(&mut blob, RecordKind::Drop, batch.shard, epoch, range, &[]),
            WriteKind::Chunk { .. } | WriteKind::Install { .. } => {}
        }
    }
    let location = index.end;
    let next = location.position + u64::from(!blob.is_empty());

    let write = db.begin_write()?;
    // Before chunks are added that the index does not know yet.
    let emptied = remove_orphan_chunks(&write, index, epoch)?;
    for batch in batches {
        write_base(&write, index, epoch, batch, next)?;
    }
    let first = write_log(&write, index, &blob)?;
    write.commit()?;

    index.end = LogPosition { position: next, offset: location.offset + blob.len() as u64 };
    index.first = first;
    if let Some(shard) = emptied {
        index.orphan_chunks.remove(&shard);
    }
    for batch in batches {
        index.apply_committed(batch, epoch, location, next);
    }
    Ok(())
}

/// Writes the changes of a batch outside the log: chunks and the base.
fn write_base(
    write: &WriteTransaction,
    index: &ShardIndex,
    epoch: u64,
    batch: &WriteBatch,
    next: u64,
) -> Result<(), Error> {
    let shard = batch.shard;
    let part = |generation, number, rows: &[u8]| -> Result<(), Error> {
        let mut value = Vec::new();
        record::write(&mut value, RecordKind::Part, shard, epoch, [generation, u64::from(number)], rows);
        write.open_table(CHUNKS)?.insert((shard.pool, shard.shard, epoch, generation, number), value.as_slice())?;
        Ok(())
    };
    match &batch.kind {
        WriteKind::Rows(_) => {}
        WriteKind::Chunk { generation, number, rows } => part(*generation, *number, rows)?,
        WriteKind::Install { generation, chunks, rows } => {
            part(*generation, *chunks, rows)?;
            let base = index.installed_base(batch, epoch, next).map(|base| disk::base_record(shard, &base));
            write.open_table(BASES)?.insert((shard.pool, shard.shard), base.unwrap_or_default().as_slice())?;
        }
        WriteKind::Drop => {
            write.open_table(BASES)?.remove((shard.pool, shard.shard))?;
        }
    }
    Ok(())
}

/// Appends the log entry of this commit, if it has one, and removes some obsolete entries. Returns the first that stays.
fn write_log(write: &WriteTransaction, index: &ShardIndex, blob: &[u8]) -> Result<u64, Error> {
    let first = index.needed_from().min(index.first + LOG_REMOVED_MAX);
    if blob.is_empty() && first == index.first {
        return Ok(first);
    }
    let mut log = write.open_table(LOG)?;
    for position in (index.first..first).filter(|position| !index.unreadable.contains_key(position)) {
        log.remove(position)?;
    }
    if !blob.is_empty() {
        log.insert(index.end.position, blob)?;
    }
    Ok(first)
}

/// Removes some orphan chunks of one shard. Returns the shard if none are left.
fn remove_orphan_chunks(write: &WriteTransaction, index: &ShardIndex, epoch: u64) -> Result<Option<ShardKey>, Error> {
    let Some(&shard) = index.orphan_chunks.first() else { return Ok(None) };
    let key = |epoch, generation| -> ChunkKey { (shard.pool, shard.shard, epoch, generation, 0) };
    let mut chunks = write.open_table(CHUNKS)?;
    let mut budget = CHUNKS_REMOVED_MAX;
    let mut from = key(0, 0);
    // Remove between the generations that stay, so that these are not read.
    for kept in index.referenced_generations(shard, epoch).into_iter().map(Some).chain([None]) {
        let to = kept.map_or((shard.pool, shard.shard, u64::MAX, u64::MAX, u32::MAX), |(e, g)| key(e, g));
        for removed in chunks.extract_from_if(from..to, |_, _| true)?.take(budget) {
            removed?;
            budget -= 1;
        }
        if let Some((epoch, generation)) = kept {
            from = key(epoch, generation.saturating_add(1));
        }
    }
    Ok((budget > 0).then_some(shard))
}

/// Writes the ownership record durably and returns it.
fn write_meta(db: &Database, meta: MetaRecord) -> Result<MetaRecord, Error> {
    let write = db.begin_write()?;
    {
        let mut table = write.open_table(META)?;
        table.insert("owner", meta.owner.as_u128())?;
        table.insert("epoch", u128::from(meta.epoch))?;
        table.insert("fence_ceiling", u128::from(meta.fence_ceiling))?;
        table.insert("fence_floor", u128::from(meta.fence_floor))?;
    }
    write.commit()?;
    Ok(meta)
}

fn rows(batch: &WriteBatch) -> &[u8] {
    match &batch.kind {
        WriteKind::Rows(rows) | WriteKind::Chunk { rows, .. } | WriteKind::Install { rows, .. } => rows,
        WriteKind::Drop => &[],
    }
}
