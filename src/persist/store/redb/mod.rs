//! `redb:DIR`, the embedded store: one file, one commit for the steps of all shards, durable by one fsync.
//!
//! # How it lies on disk
//!
//! An append-only **log** takes one entry per commit with the steps of all its shards: one insert at the right edge
//! of a tree, whatever the rows are. (A row per worker would touch pages all over the file: 0.5 to 2 ms a commit.)
//! A shard's state is its **base**, chunks that a rewrite wrote, and on top of it the log entries from the base's
//! position on. Log entries that no shard needs, and chunks that no base refers to, are removed a few per commit, so
//! no commit is long.
//!
//! Example: shards A and B write steps into the log at positions 0, 1, 2. A is rewritten: its chunks go in as
//! commits of their own, the flip is the commit at position 3. A's base now counts from position 4, its steps at
//! 0..=3 are dead weight, and the log is needed from B's first step on. When B has flipped too, the log is emptied.
//!
//! # Commits
//!
//! One phase: redb writes the pages and the header, then syncs once; after a crash the slot whose checksums hold is
//! taken, so an unfinished commit is as if it had never been. Two phases (a second fsync, +40 %) guard only against
//! one who can both choose the rows and crash the disk. `quick_repair` implies them and saves the walk over the file
//! after a crash: it doubles the latency of every commit (220 -> 480 us) and saves 0.6 s of a restart with 1 GiB.
//!
//! # Owners
//!
//! The directory's lock makes this process the only one. Nothing but it changes the file, so a shard that was loaded
//! counts as of the present epoch without being written again; one that was not loaded answers `Gap`.

mod disk;
mod file;
mod load;
mod record;
mod shard_index;

use parking_lot::{Mutex, MutexGuard};
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

/// Obsolete log entries removed by one commit, which adds one: the log shrinks, and no commit pays much.
const LOG_REMOVED_MAX: u64 = 16;
/// Chunks without a reference removed by one commit. A chunk is as large as the journal makes it.
const CHUNKS_REMOVED_MAX: usize = 4;
/// Most bytes of rows in one call: one log entry, which redb keeps in memory and bounds at 3 GiB.
const CALL_BYTES_MAX: usize = 1 << 30;

const _: () = assert!(CALL_BYTES_MAX < u32::MAX as usize);

/// The embedded store.
#[derive(Debug)]
pub struct RedbStore {
    shared: Arc<RedbShared>,
    /// Who this handle is since its take-over: only with these it may write.
    ours: Mutex<Option<(Uuid, u64)>>,
}

#[derive(Debug)]
struct RedbShared {
    disk: StoreDir,
    core: Mutex<RedbState>,
    /// Answer of `snapshot_candidate`, kept apart so that nobody waits for a commit to read it.
    snapshot_candidate: Mutex<Option<ShardKey>>,
    /// Held until all else is dropped (fields go in order).
    _lock: File,
}

/// One writer at a time has this.
#[derive(Debug)]
struct RedbState {
    /// None after a failure: redb refuses to go on after an I/O error, so the file is opened again.
    db: Option<Database>,
    meta: MetaRecord,
    heads: ShardIndex,
    /// The failure after which nothing is tried any more.
    broken: Option<StoreError>,
}

impl RedbStore {
    /// Opens the store in `dir`, which is made if it is not there. Blocks: after a crash redb walks over the whole
    /// file (about 0.6 s a GiB), and the log is read once (about 0.25 s a GiB; both from the page cache).
    ///
    /// # Errors
    /// `Unusable` if another process has the directory, if it holds something else, or if the file is damaged or of
    /// another version; `Away` if the disk is full.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::with(dir, None)
    }

    /// Whether a directory holds a store, which [`Self::open`] would otherwise make.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        [super::data_dir::STORE, super::data_dir::STORE_UNSYNCED].iter().any(|name| dir.join(name).exists())
    }

    /// Opens the store on a disk that fails when `probe` says so, for tests.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_probe(dir: &Path, probe: DiskProbe) -> Result<Self, StoreError> {
        Self::with(dir, Some(probe))
    }

    fn with(dir: &Path, probe: Option<DiskProbe>) -> Result<Self, StoreError> {
        let lock = disk::lock(dir)?;
        let disk = StoreDir::new(dir, probe);
        let (db, meta, heads) = disk::open(&disk)?;
        let core = Mutex::new(RedbState { db: Some(db), meta, heads, broken: None });
        let shared = RedbShared { disk, core, snapshot_candidate: Mutex::new(None), _lock: lock };
        Ok(Self { shared: Arc::new(shared), ours: Mutex::new(None) })
    }

    /// Another handle on the same open file, as another owner in this process would have it: it writes nothing until
    /// its take-over, which fences this one.
    #[must_use]
    pub fn second_handle(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), ours: Mutex::new(None) }
    }

    /// Runs `work` where it may block: an fsync takes as long as the disk pleases.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&RedbShared, Option<(Uuid, u64)>) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let shared = Arc::clone(&self.shared);
        let ours = *lock_unpoisoned(&self.ours);
        async move {
            match tokio::task::spawn_blocking(move || work(&shared, ours)).await {
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
            let taken = self.blocking(move |shared, _| shared.take_over(owner)).await?;
            *lock_unpoisoned(&self.ours) = Some((owner, taken.epoch));
            Ok(taken)
        }
        .boxed()
    }

    fn raise_fence_ceiling(&self, span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>> {
        self.blocking(move |shared, ours| shared.raise_fence_ceiling(ours, span))
    }

    fn load(&self, shards: Vec<ShardKey>, sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>> {
        self.blocking(move |shared, ours| shared.load(ours, shards, sink))
    }

    fn apply(&self, steps: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        self.blocking(move |shared, ours| shared.apply(ours, &steps))
    }

    fn properties(&self) -> BoxFuture<'_, Result<BTreeMap<String, String>, StoreError>> {
        self.blocking(|shared, _| Ok(lock_unpoisoned(&shared.core).meta.properties()))
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        *lock_unpoisoned(&self.shared.snapshot_candidate)
    }
}

impl RedbShared {
    /// Runs `work` with the open file. After an error (or a panic) the file is closed; the next call opens it again
    /// and finds out what of the failed commit is there, unless a sync failed: then nothing that is there proves anything.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database, &mut MetaRecord, &mut ShardIndex) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        // A panic leaves no file open and nothing half done, so a poisoned lock means nothing.
        let mut core = lock_unpoisoned(&self.core);
        let core = &mut *core;
        let unsynced = || self.disk.unsynced().map(|why| StoreError::Unusable(why.to_owned()));
        if let Some(broken) = core.broken.clone().or_else(unsynced) {
            return Err(broken);
        }
        let db = match core.db.take() {
            Some(db) => db,
            None => core.reopen(&self.disk)?,
        };
        match work(&db, &mut core.meta, &mut core.heads) {
            Ok(done) => {
                core.db = Some(db);
                *lock_unpoisoned(&self.snapshot_candidate) = core.heads.snapshot_candidate(core.meta.epoch);
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
            let taken = MetaRecord { owner, epoch: meta.epoch + 1, ..*meta };
            write_meta(db, &taken)?;
            *meta = taken;
            let MetaRecord { epoch, fence_ceiling, fence_floor, .. } = taken;
            Ok(OwnershipRecord { epoch, fence_ceiling, fence_floor })
        })
    }

    fn raise_fence_ceiling(&self, ours: Option<(Uuid, u64)>, span: FenceSpan) -> Result<(), StoreError> {
        let is_ours = self.with(|db, meta, _| {
            if Some((meta.owner, meta.epoch)) != ours {
                return Ok(false);
            }
            if span.ceiling > meta.fence_ceiling {
                let fence_floor = span.floor.max(meta.fence_floor);
                let raised = MetaRecord { fence_ceiling: span.ceiling, fence_floor, ..*meta };
                write_meta(db, &raised)?;
                *meta = raised;
            }
            Ok(true)
        })?;
        if is_ours { Ok(()) } else { Err(StoreError::Unusable("the store has another owner".into())) }
    }

    fn load(
        &self,
        ours: Option<(Uuid, u64)>,
        shards: Vec<ShardKey>,
        mut sink: RowSink,
    ) -> Result<Vec<LoadedShard>, StoreError> {
        let (load, read): (ShardLoader, ReadTransaction) =
            self.with(|db, _, heads| Ok((ShardLoader::new(heads, shards), db.begin_read()?)))?;
        // Others may write meanwhile; the transaction goes on seeing what stood when it began.
        let loaded = load.run(&read, &mut sink).map_err(|error| disk::store_error(&self.disk, error))?;
        drop(read);
        self.with(|_, meta, heads| {
            if ours == Some((meta.owner, meta.epoch)) {
                for loaded in loaded.iter().filter(|loaded| loaded.at.is_ok()) {
                    heads.adopt(loaded.shard, meta.epoch);
                }
            }
            Ok(loaded)
        })
    }

    fn apply(&self, ours: Option<(Uuid, u64)>, steps: &[WriteBatch]) -> Result<Vec<WriteOutcome>, StoreError> {
        let Some((owner, epoch)) = ours else {
            return Err(StoreError::Unusable("nothing may be applied before a take-over".into()));
        };
        let mut seen = HashSet::with_capacity(steps.len());
        if !steps.iter().all(|step| seen.insert(step.shard)) {
            return Err(StoreError::Unusable("two steps of one shard in one call".into()));
        }
        if steps.iter().map(|step| rows(step).len()).sum::<usize>() > CALL_BYTES_MAX {
            return Err(StoreError::Unusable(format!("more than {CALL_BYTES_MAX} bytes in one call")));
        }
        self.with(|db, meta, heads| {
            if (meta.owner, meta.epoch) != (owner, epoch) {
                return Ok(vec![WriteOutcome::Fenced; steps.len()]);
            }
            let outcomes: Vec<_> = steps.iter().map(|step| heads.outcome_of(step, epoch)).collect();
            let good: Vec<&WriteBatch> =
                steps.iter().zip(&outcomes).filter(|(_, o)| **o == WriteOutcome::Ok).map(|(step, _)| step).collect();
            if !good.is_empty() {
                commit(db, heads, epoch, &good)?;
            }
            Ok(outcomes)
        })
    }
}

impl RedbState {
    /// Opens the file again after a failure.
    fn reopen(&mut self, disk: &StoreDir) -> Result<Database, StoreError> {
        let (db, meta, heads) = disk::open(disk)?;
        let old = std::mem::replace(&mut self.heads, heads);
        self.heads.merge_reopened(old, meta.epoch);
        self.meta = meta;
        Ok(db)
    }
}

/// Writes steps that were all answered `Ok`, in one transaction, and then takes them into the heads.
fn commit(db: &Database, heads: &mut ShardIndex, epoch: u64, steps: &[&WriteBatch]) -> Result<(), Error> {
    let mut blob = Vec::new();
    for step in steps {
        let range = [step.from, step.to];
        match &step.kind {
            WriteKind::Rows(rows) => record::write(&mut blob, RecordKind::Rows, step.shard, epoch, range, rows),
            // Also where only a base is left: older entries of the shard may still be in the log.
            WriteKind::Drop => record::write(&mut blob, RecordKind::Drop, step.shard, epoch, range, &[]),
            WriteKind::Chunk { .. } | WriteKind::Install { .. } => {}
        }
    }
    let mark = heads.end;
    let next = mark.position + u64::from(!blob.is_empty());

    let write = db.begin_write()?;
    // Before anything is added: the heads do not know of it yet.
    let swept = remove_orphan_chunks(&write, heads, epoch)?;
    for step in steps {
        write_base(&write, heads, epoch, step, next)?;
    }
    let first = write_log(&write, heads, &blob)?;
    write.commit()?;

    heads.end = LogPosition { position: next, offset: mark.offset + blob.len() as u64 };
    heads.first = first;
    if let Some(swept) = swept {
        heads.orphan_chunks.remove(&swept);
    }
    for step in steps {
        heads.apply_committed(step, epoch, mark, next);
    }
    Ok(())
}

/// What a step changes besides the log: chunks and the base.
fn write_base(
    write: &WriteTransaction,
    heads: &ShardIndex,
    epoch: u64,
    step: &WriteBatch,
    next: u64,
) -> Result<(), Error> {
    let shard = step.shard;
    let part = |generation, number, rows: &[u8]| -> Result<(), Error> {
        let mut value = Vec::new();
        record::write(&mut value, RecordKind::Part, shard, epoch, [generation, u64::from(number)], rows);
        write.open_table(CHUNKS)?.insert((shard.pool, shard.shard, epoch, generation, number), value.as_slice())?;
        Ok(())
    };
    match &step.kind {
        WriteKind::Rows(_) => {}
        WriteKind::Chunk { generation, number, rows } => part(*generation, *number, rows)?,
        WriteKind::Install { generation, chunks, rows } => {
            part(*generation, *chunks, rows)?;
            let base = heads.installed_base(step, epoch, next).map(|base| disk::base_record(shard, &base));
            write.open_table(BASES)?.insert((shard.pool, shard.shard), base.unwrap_or_default().as_slice())?;
        }
        WriteKind::Drop => {
            write.open_table(BASES)?.remove((shard.pool, shard.shard))?;
        }
    }
    Ok(())
}

/// Appends this commit's entry, if there is one, and removes some that no shard needs. Returns the first that stays.
fn write_log(write: &WriteTransaction, heads: &ShardIndex, blob: &[u8]) -> Result<u64, Error> {
    let first = heads.needed_from().min(heads.first + LOG_REMOVED_MAX);
    if blob.is_empty() && first == heads.first {
        return Ok(first);
    }
    let mut log = write.open_table(LOG)?;
    for position in (heads.first..first).filter(|position| !heads.unreadable.contains_key(position)) {
        log.remove(position)?;
    }
    if !blob.is_empty() {
        log.insert(heads.end.position, blob)?;
    }
    Ok(first)
}

/// Removes some chunks that nothing refers to, of one shard. Returns the shard if that were all of them.
fn remove_orphan_chunks(write: &WriteTransaction, heads: &ShardIndex, epoch: u64) -> Result<Option<ShardKey>, Error> {
    let Some(&shard) = heads.orphan_chunks.first() else { return Ok(None) };
    let key = |epoch, generation| -> ChunkKey { (shard.pool, shard.shard, epoch, generation, 0) };
    let mut chunks = write.open_table(CHUNKS)?;
    let mut left = CHUNKS_REMOVED_MAX;
    let mut from = key(0, 0);
    // Between the generations that stay, so that these are not read.
    for kept in heads.referenced_generations(shard, epoch).into_iter().map(Some).chain([None]) {
        let to = kept.map_or((shard.pool, shard.shard, u64::MAX, u64::MAX, u32::MAX), |(e, g)| key(e, g));
        for removed in chunks.extract_from_if(from..to, |_, _| true)?.take(left) {
            removed?;
            left -= 1;
        }
        if let Some((epoch, generation)) = kept {
            from = key(epoch, generation.saturating_add(1));
        }
    }
    Ok((left > 0).then_some(shard))
}

fn write_meta(db: &Database, meta: &MetaRecord) -> Result<(), Error> {
    let write = db.begin_write()?;
    {
        let mut table = write.open_table(META)?;
        table.insert("owner", meta.owner.as_u128())?;
        table.insert("epoch", u128::from(meta.epoch))?;
        table.insert("fence_ceiling", u128::from(meta.fence_ceiling))?;
        table.insert("fence_floor", u128::from(meta.fence_floor))?;
    }
    write.commit()?;
    Ok(())
}

fn rows(step: &WriteBatch) -> &[u8] {
    match &step.kind {
        WriteKind::Rows(rows) | WriteKind::Chunk { rows, .. } | WriteKind::Install { rows, .. } => rows,
        WriteKind::Drop => &[],
    }
}

/// Nothing here is left half changed by a panic, so a poisoned lock is as good as any.
fn lock_unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
