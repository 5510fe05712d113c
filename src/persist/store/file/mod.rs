//! `file:DIR`, the embedded store: a log that gets one frame per call, durable with one write and one sync.
//!
//! # Files
//!
//! | name | content |
//! |---|---|
//! | `store` | id, format, owner, epoch, fences, and the last frame that was on the disk; replaced as a whole |
//! | `log-000000000001`, ... | segments of the log, without a gap; the last one is written, or prepared |
//! | `log.free` | segment that is no longer needed, until the next one is made of it |
//! | `log-000000000001.unsynced` | segment of which a sync failed, until the next start has written it anew |
//! | `lock` | lock of the process that uses the directory |
//!
//! A call becomes a frame with the batches of all its shards ([`frame`], [`record`]). A snapshot's chunks and its install are
//! records like any others, so there is one way in which bytes reach the disk. The state of a shard is its *base*, the chunks
//! of its last snapshot, and on top of it its batches from then on. Segments that no shard needs disappear, the oldest first;
//! a shard that holds the log back is asked for a snapshot ([`shard_index`]).
//!
//! Example: shards A and B write batches into frames 1, 2, 3. A gets a snapshot: its chunk is in frame 4, its install in frame
//! 5. A needs the log from frame 4 on, and its batches count from frame 6 on; B needs it from its first batch on. Once B has a
//! new base too, frames 1 to 3 are needed by nobody.
//!
//! # Failures
//!
//! A call that fails before its sync may be repeated: its frame is written again, over the first attempt. After a failed sync
//! the system may count the unwritten data as written and show it, no later sync writes it, and a crash loses it. So the
//! segment is set aside, no call succeeds any more, and the next start copies it to a new file. A start also syncs the last
//! segment before it shows anything: what a killed process had written may not be on the disk.
//!
//! # Owners
//!
//! The lock of the directory makes this process the only one that changes the files. So a shard that was loaded counts as of
//! the present epoch without being written again; one that was not loaded answers `Gap`.

mod disk;
mod frame;
mod load;
mod log_reader;
mod open;
mod ownership;
mod record;
mod scan;
mod segment_log;
mod segments;
mod shard_index;
mod spare_segment;

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::collections::HashSet;
use crate::environment::{BlockingError, Environment};

pub use self::disk::{DirectoryDisk, DiskFile, StoreDisk};
use self::frame::FrameBuffer;
use self::load::ShardLoader;
use self::ownership::StoreRecord;
use self::record::RecordKind;
use self::segment_log::{AppendError, SegmentLog};
pub use self::segments::{SegmentSettings, SegmentUpkeep};
use self::shard_index::{LogPosition, RecordLocation, ShardIndex};
use super::data_dir::{self, io_error};
use super::{
    FenceSpan, LoadedShard, OwnershipRecord, RowSink, ShardKey, Store, StoreError, WriteBatch, WriteKind, WriteOutcome,
};

/// Maximum number of bytes of rows in one batch; a shard with more is written as a snapshot, chunk by chunk.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Maximum number of bytes of rows in one call.
const CALL_BYTES_MAX: usize = 256 << 20;

const _: () = assert!(CALL_BYTES_MAX < u32::MAX as usize);

/// Embedded store in a directory.
#[derive(Debug)]
pub struct FileStore {
    shared: Arc<FileShared>,
    environment: Environment,
    /// Owner and epoch of this handle since its takeover; it may write only with these.
    owner: Mutex<Option<(Uuid, u64)>>,
}

#[derive(Debug)]
struct FileShared {
    state: Mutex<StoreState>,
    disk: Arc<dyn StoreDisk>,
    /// Answer of `snapshot_candidate`, kept apart so that reading it does not wait for a sync.
    snapshot_candidate: Mutex<Option<ShardKey>>,
    /// Lock of the directory, dropped last.
    _lock: Option<File>,
}

/// State of the open store, which one caller at a time may use.
#[derive(Debug)]
struct StoreState {
    record: StoreRecord,
    index: ShardIndex,
    log: SegmentLog,
    frame: FrameBuffer,
    /// Number of the first frame that is needed according to the last frame, so also after a crash.
    needed_from: u64,
    /// Segments from which on shards are being loaded, with the number of loads.
    loading_from: BTreeMap<u64, usize>,
    /// Failure after which no call is tried any more.
    broken: Option<StoreError>,
}

impl FileStore {
    /// Opens the store in `dir`, which is created if it is missing. Blocks: the log is read once.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if another process uses the directory, if it holds other files, or if the store is damaged or of
    /// another version; [`StoreError::Unavailable`] if the disk is full.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let lock = open::lock(dir)?;
        // At each start: the one that created the directory may have died before.
        open::sync_parent(dir)?;
        let disk = Arc::new(DirectoryDisk::new(dir));
        Self::with(disk, SegmentSettings::default(), Environment::system(), Some(lock))
    }

    /// Opens the store on a disk that nobody else uses, for tests and simulations.
    ///
    /// # Errors
    /// Errors of [`Self::open`].
    pub fn open_on(
        disk: Arc<dyn StoreDisk>,
        settings: SegmentSettings,
        environment: Environment,
    ) -> Result<Self, StoreError> {
        Self::with(disk, settings, environment, None)
    }

    /// Whether a directory holds a store, which [`Self::open`] would otherwise create.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        dir.join(ownership::FILE).exists() || data_dir::old_store(dir).is_some()
    }

    fn with(
        disk: Arc<dyn StoreDisk>,
        settings: SegmentSettings,
        environment: Environment,
        lock: Option<File>,
    ) -> Result<Self, StoreError> {
        let state = Mutex::new(open::open(&disk, settings, &environment)?);
        let shared = FileShared { state, disk, snapshot_candidate: Mutex::new(None), _lock: lock };
        Ok(Self { shared: Arc::new(shared), environment, owner: Mutex::new(None) })
    }

    /// Creates another handle on the same open files, like that of another owner: it may write after its takeover, which fences
    /// this one.
    #[must_use]
    pub fn second_handle(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), environment: self.environment.clone(), owner: Mutex::new(None) }
    }

    /// Runs `work` on a thread that may block, because a sync takes an unbounded time.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FileShared, Option<(Uuid, u64)>) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let shared = Arc::clone(&self.shared);
        let owner = *self.owner.lock();
        let environment = self.environment.clone();
        async move {
            match environment.run_blocking(move || work(&shared, owner)).await {
                Ok(done) => done,
                Err(BlockingError::Panicked(error)) => {
                    Err(StoreError::Unusable(format!("the store panicked: {error}")))
                }
                Err(error @ BlockingError::Cancelled) => Err(StoreError::Unavailable(error.to_string())),
            }
        }
        .boxed()
    }
}

impl Store for FileStore {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn keeps_rows(&self) -> bool {
        true
    }

    fn batch_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX
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

    /// Notes where the log ends: the next start can tell then whether it lost its end since.
    fn resign(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.blocking(|shared, owner| {
            shared.with(|state| {
                if !state.is_owner(owner) {
                    return Ok(());
                }
                state.replace_record(&*shared.disk, state.record.clone())
            })
        })
    }

    fn load(&self, shards: Vec<ShardKey>, sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>> {
        self.blocking(move |shared, owner| shared.load(owner, shards, sink))
    }

    fn apply(&self, batches: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        self.blocking(move |shared, owner| shared.apply(owner, &batches))
    }

    fn apply_blocking(&self, batches: &[WriteBatch]) -> Option<Result<Vec<WriteOutcome>, StoreError>> {
        let owner = *self.owner.lock();
        Some(self.shared.apply(owner, batches))
    }

    fn properties(&self) -> BoxFuture<'_, Result<BTreeMap<String, String>, StoreError>> {
        self.blocking(|shared, _| Ok(shared.state.lock().properties()))
    }

    fn skip_snapshot(&self, shard: ShardKey) {
        // A store that has failed makes no snapshots.
        let _ = self.shared.with(|state| {
            state.index.skip_snapshot(shard);
            Ok(())
        });
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        *self.shared.snapshot_candidate.lock()
    }
}

impl FileShared {
    /// Runs `work` with the open store, unless a failure ended it. A panic ends it too: what the index says is in doubt then.
    fn with<T>(&self, work: impl FnOnce(&mut StoreState) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut state = self.state.lock();
        if let Some(broken) = &state.broken {
            return Err(broken.clone());
        }
        let done = catch_unwind(AssertUnwindSafe(|| work(&mut state))).unwrap_or_else(|_| {
            let error = panicked();
            state.broken = Some(error.clone());
            Err(error)
        });
        *self.snapshot_candidate.lock() = state.snapshot_candidate();
        done
    }

    fn take_over(&self, owner: Uuid) -> Result<OwnershipRecord, StoreError> {
        self.with(|state| {
            let epoch = state.record.epoch + 1;
            state.replace_record(&*self.disk, StoreRecord { owner, epoch, ..state.record.clone() })?;
            let StoreRecord { epoch, fence_ceiling, fence_floor, .. } = state.record;
            Ok(OwnershipRecord { epoch, fence_ceiling, fence_floor })
        })
    }

    fn raise_fence_ceiling(&self, owner: Option<(Uuid, u64)>, span: FenceSpan) -> Result<(), StoreError> {
        self.with(|state| {
            if !state.is_owner(owner) {
                return Err(StoreError::Unusable("another process owns the store".into()));
            }
            if span.ceiling <= state.record.fence_ceiling {
                return Ok(());
            }
            let fence_floor = span.floor.max(state.record.fence_floor);
            let record = StoreRecord { fence_ceiling: span.ceiling, fence_floor, ..state.record.clone() };
            state.replace_record(&*self.disk, record)
        })
    }

    fn load(
        &self,
        owner: Option<(Uuid, u64)>,
        shards: Vec<ShardKey>,
        mut sink: RowSink,
    ) -> Result<Vec<LoadedShard>, StoreError> {
        let (loader, seed, first, numbers) = self.with(|state| {
            let loader = ShardLoader::new(&state.index, shards);
            let first = state.log.segment_of(loader.needed_from());
            *state.loading_from.entry(first).or_default() += 1;
            let from = state.log.segment_of(loader.from());
            let numbers: Vec<u64> =
                state.log.segments().iter().map(|segment| segment.number).filter(|&number| number >= from).collect();
            Ok((loader, state.record.seed(), first, numbers))
        })?;
        // Writes may go on meanwhile: the segments stay, and frames from now on are not read.
        let loaded = catch_unwind(AssertUnwindSafe(|| loader.run(&*self.disk, seed, &numbers, &mut sink)));
        self.with(|state| {
            state.end_load(first);
            let loaded = loaded.map_err(|_| panicked())?;
            let loaded = loaded.map_err(|error| io_error("cannot read the log", &error))?;
            if state.is_owner(owner) {
                for loaded in loaded.iter().filter(|loaded| loaded.at.is_ok()) {
                    state.index.adopt(loaded.shard, state.record.epoch);
                }
            }
            Ok(loaded)
        })
    }

    fn apply(&self, owner: Option<(Uuid, u64)>, batches: &[WriteBatch]) -> Result<Vec<WriteOutcome>, StoreError> {
        let Some((_, epoch)) = owner else {
            return Err(StoreError::Unusable("no batch may be applied before a takeover".into()));
        };
        let mut shards = HashSet::with_capacity_and_hasher(batches.len(), Default::default());
        if !batches.iter().all(|batch| shards.insert(batch.shard)) {
            return Err(StoreError::Unusable("two batches of one shard in one call".into()));
        }
        if batches.iter().map(|batch| rows(batch).len()).sum::<usize>() > CALL_BYTES_MAX {
            return Err(StoreError::Unusable(format!("more than {CALL_BYTES_MAX} bytes in one call")));
        }
        self.with(|state| {
            if !state.is_owner(owner) {
                return Ok(vec![WriteOutcome::Fenced; batches.len()]);
            }
            let outcomes: Vec<_> = batches.iter().map(|batch| state.index.outcome_of(batch, epoch)).collect();
            let accepted: Vec<&WriteBatch> = batches
                .iter()
                .zip(&outcomes)
                .filter(|(_, outcome)| **outcome == WriteOutcome::Ok)
                .map(|(batch, _)| batch)
                .collect();
            if !accepted.is_empty() {
                state.commit(epoch, &accepted)?;
            }
            Ok(outcomes)
        })
    }
}

impl StoreState {
    fn is_owner(&self, owner: Option<(Uuid, u64)>) -> bool {
        owner == Some((self.record.owner, self.record.epoch))
    }

    fn replace_record(&mut self, disk: &dyn StoreDisk, record: StoreRecord) -> Result<(), StoreError> {
        let record = StoreRecord { synced_frame: self.log.next_sequence() - 1, ..record };
        record.write(disk)?;
        self.record = record;
        Ok(())
    }

    /// Writes accepted batches in one frame, and then applies them to the index.
    fn commit(&mut self, epoch: u64, batches: &[&WriteBatch]) -> Result<(), StoreError> {
        self.frame.clear();
        let records: Vec<(usize, usize)> = batches.iter().map(|batch| encode(&mut self.frame, epoch, batch)).collect();
        let needed_from = self.index.needed_from();
        let (segment, start) = self.log.append(&mut self.frame, needed_from).map_err(|error| self.failed(error))?;
        let position = self.index.end;
        let end = position.offset + self.frame.len() as u64;
        self.index.end = LogPosition { sequence: self.log.next_sequence(), offset: end };
        for (batch, (offset, bytes)) in batches.iter().zip(records) {
            let (offset, bytes) = (start + offset as u64, bytes as u64);
            self.index.apply_committed(batch, epoch, RecordLocation { position, segment, offset, bytes });
        }
        self.needed_from = needed_from;
        self.free_segments();
        Ok(())
    }

    fn failed(&mut self, error: AppendError) -> StoreError {
        let error = match error {
            // No byte of the log is in doubt, and the next call tries again.
            AppendError::NoSegment(error) => {
                return StoreError::Unavailable(format!("cannot write the log: {error}"));
            }
            AppendError::Unwritten(error) => io_error("cannot write the log", &error),
            AppendError::Unsynced(text) => StoreError::Unusable(text),
        };
        if matches!(error, StoreError::Unusable(_)) {
            self.broken = Some(error.clone());
        }
        error
    }

    /// Frees the segments that nobody needs: no shard, not even after a crash, and no load.
    fn free_segments(&mut self) {
        let needed = self.log.segment_of(self.needed_from);
        let loading = self.loading_from.first_key_value().map_or(needed, |(&first, _)| first);
        self.log.free_before(needed.min(loading));
    }

    fn end_load(&mut self, first: u64) {
        if let Some(loads) = self.loading_from.get_mut(&first) {
            *loads -= 1;
            if *loads == 0 {
                self.loading_from.remove(&first);
            }
        }
        self.free_segments();
    }

    fn snapshot_candidate(&mut self) -> Option<ShardKey> {
        self.index.snapshot_candidate(self.record.epoch)
    }

    fn properties(&self) -> BTreeMap<String, String> {
        let mut properties = self.record.properties();
        properties.insert("segments".to_owned(), self.log.segments().len().to_string());
        properties
    }
}

/// Appends the records of a batch to a frame. Returns the offset and the size in bytes of the one with the rows.
fn encode(frame: &mut FrameBuffer, epoch: u64, batch: &WriteBatch) -> (usize, usize) {
    let (shard, range, start) = (batch.shard, [batch.from, batch.to], frame.len());
    let out = frame.contents();
    match &batch.kind {
        WriteKind::Rows(rows) => record::write(out, RecordKind::Rows, shard, epoch, range, rows),
        WriteKind::Drop => record::write(out, RecordKind::Drop, shard, epoch, range, &[]),
        WriteKind::Chunk { generation, number, rows } => {
            record::write(out, RecordKind::Part, shard, epoch, [*generation, u64::from(*number)], rows);
        }
        WriteKind::Install { generation, chunks, rows } => {
            record::write(out, RecordKind::Part, shard, epoch, [*generation, u64::from(*chunks)], rows);
            let bytes = out.len() - start;
            let parts = (chunks + 1).to_le_bytes();
            record::write(out, RecordKind::Base, shard, epoch, [*generation, batch.to], &parts);
            return (start, bytes);
        }
    }
    (start, frame.len() - start)
}

fn panicked() -> StoreError {
    StoreError::Unusable("the store panicked; restart the service".to_owned())
}

fn rows(batch: &WriteBatch) -> &[u8] {
    match &batch.kind {
        WriteKind::Rows(rows) | WriteKind::Chunk { rows, .. } | WriteKind::Install { rows, .. } => rows,
        WriteKind::Drop => &[],
    }
}
