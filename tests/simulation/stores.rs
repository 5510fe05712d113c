//! Stores of the simulated machines.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use hotpool::environment::Environment;
use hotpool::model::Millis;
use hotpool::persist::store::file::{DiskFile, FileStore, SegmentSettings, SegmentUpkeep, StoreDisk};
use hotpool::persist::store::redis::{OwnerIdentity, RedisOptions, RedisStore, RedisTransport};
use hotpool::persist::store::{
    FenceSpan, LoadedShard, MissingRecord, OwnershipRecord, RenewalOutcome, RowSink, ShardKey, SharedStore, Store,
    StoreError, WriteBatch, WriteOutcome,
};
use parking_lot::Mutex;
use rustix::io::Errno;
use uuid::Uuid;

use crate::core::Core;
use crate::model_disk::{DiskCall, ModelDisk};
use crate::redis_servers::{FaultRates, SimulatedRedis, SimulatedRedisSettings, SimulatedTransport, StoreLoss};

/// Longest wait for an answer of a server, in milliseconds.
const COMMAND_MS: u64 = 500;
/// Time for which a process owns the store after a renewal, in milliseconds.
const LEASE_MS: u64 = 3_000;

/// Segments that are small enough to be used up in a run.
const SEGMENTS: SegmentSettings = SegmentSettings {
    first_bytes: 16 << 10,
    max_bytes: 64 << 10,
    log_bytes_free: 8 << 10,
    upkeep: SegmentUpkeep::Inline,
};

/// Store in which the machines of a run keep their records.
pub trait Backend: Send + Sync {
    /// Number of machines that contend for the store.
    fn machines(&self) -> usize;

    /// Opens the store for a process that starts on a machine.
    fn open(&self, machine: usize, environment: &Environment) -> Result<OpenStore, StoreError>;

    /// The power of the machine fails. The process is gone already.
    fn fail_power(&self, seed: u64);

    /// Damages a record while no process runs. Returns whether there was one.
    fn damage(&self, core: &Core) -> bool;

    /// Repairs what was damaged, from a copy of before.
    fn restore(&self);

    /// Lets something fail. Returns what, for the trace.
    fn break_something(&self, core: &Core) -> String;

    /// Ends all faults of the store.
    fn heal(&self, core: &Core);

    /// Whether a fault since the last rest may have lost what was acknowledged.
    fn loses_acknowledged(&self) -> bool;

    /// Notes that everything is at rest: the store has what the process has.
    fn rest(&self);

    /// Whether a store that is refused for good is no fault of the service at present.
    fn may_refuse(&self) -> bool;

    /// Whether the processes of the machines must be started anew before the store serves again.
    fn needs_restart(&self) -> bool;
}

/// Store of one process.
pub struct OpenStore {
    store: SharedStore,
    cut: Box<dyn Fn() + Send + Sync>,
}

impl OpenStore {
    pub fn new(store: SharedStore, cut: impl Fn() + Send + Sync + 'static) -> Self {
        Self { store, cut: Box::new(cut) }
    }

    /// The store, which takes batches of so many bytes at most.
    pub fn store(&self, batch_bytes_max: usize) -> SharedStore {
        Arc::new(LimitedStore { store: Arc::clone(&self.store), batch_bytes_max })
    }

    /// Cuts the process off from the store: it was killed.
    pub fn cut(&self) {
        (self.cut)();
    }
}

/// Store that takes smaller batches, so that shards are written anew because too much waits, and in several chunks.
struct LimitedStore {
    store: SharedStore,
    batch_bytes_max: usize,
}

impl Store for LimitedStore {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn keeps_rows(&self) -> bool {
        self.store.keeps_rows()
    }

    fn lease_ms(&self) -> Option<Millis> {
        self.store.lease_ms()
    }

    fn batch_bytes_max(&self) -> usize {
        self.store.batch_bytes_max().min(self.batch_bytes_max)
    }

    fn last_fault(&self) -> String {
        self.store.last_fault()
    }

    fn writer_partition(&self, shard: ShardKey) -> usize {
        self.store.writer_partition(shard)
    }

    fn take_over(&self, owner: Uuid) -> BoxFuture<'_, Result<OwnershipRecord, StoreError>> {
        self.store.take_over(owner)
    }

    fn raise_fence_ceiling(&self, span: FenceSpan) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.raise_fence_ceiling(span)
    }

    fn renew(&self, missing: MissingRecord) -> BoxFuture<'_, Result<RenewalOutcome, StoreError>> {
        self.store.renew(missing)
    }

    fn resign(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.resign()
    }

    fn load(&self, shards: Vec<ShardKey>, sink: RowSink) -> BoxFuture<'_, Result<Vec<LoadedShard>, StoreError>> {
        self.store.load(shards, sink)
    }

    fn apply(&self, batches: Vec<WriteBatch>) -> BoxFuture<'_, Result<Vec<WriteOutcome>, StoreError>> {
        self.store.apply(batches)
    }

    fn apply_blocking(&self, batches: &[WriteBatch]) -> Option<Result<Vec<WriteOutcome>, StoreError>> {
        self.store.apply_blocking(batches)
    }

    fn properties(&self) -> BoxFuture<'_, Result<BTreeMap<String, String>, StoreError>> {
        self.store.properties()
    }

    fn skip_snapshot(&self, shard: ShardKey) {
        self.store.skip_snapshot(shard);
    }

    fn snapshot_candidate(&self) -> Option<ShardKey> {
        self.store.snapshot_candidate()
    }
}

/// Embedded store on a disk of the model.
pub struct FileBackend {
    disk: Mutex<ModelDisk>,
    needs_restart: AtomicBool,
    /// Whether something has failed since a store was opened without any failure to come.
    has_failed: AtomicBool,
    /// Copy of the disk before it was damaged.
    undamaged: Mutex<Option<ModelDisk>>,
}

impl FileBackend {
    pub fn new() -> Self {
        Self {
            disk: Mutex::new(ModelDisk::default()),
            needs_restart: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            undamaged: Mutex::new(None),
        }
    }
}

impl Backend for FileBackend {
    fn machines(&self) -> usize {
        1
    }

    fn open(&self, _machine: usize, environment: &Environment) -> Result<OpenStore, StoreError> {
        self.needs_restart.store(false, Ordering::Relaxed);
        let is_cut = Arc::new(AtomicBool::new(false));
        let disk = CutDisk { disk: self.disk.lock().clone(), is_cut: Arc::clone(&is_cut) };
        let store = FileStore::open_on(Arc::new(disk), SEGMENTS, environment.clone())?;
        let has_fault = self.disk.lock().has_fault();
        self.has_failed.fetch_and(has_fault, Ordering::Relaxed);
        Ok(OpenStore::new(Arc::new(store), move || is_cut.store(true, Ordering::Relaxed)))
    }

    fn damage(&self, core: &Core) -> bool {
        let mut undamaged = self.undamaged.lock();
        let disk = self.disk.lock();
        let logs: Vec<String> = disk.names().into_iter().filter(|name| name.starts_with("log-")).collect();
        if logs.is_empty() || undamaged.is_some() {
            return false;
        }
        *undamaged = Some(disk.copy());
        self.has_failed.store(true, Ordering::Relaxed);
        let offset = core.random_u64();
        disk.alter(&logs[core.below(logs.len() as u64) as usize], |bytes| {
            // The end is free space, mostly.
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
            if !bytes.is_empty() {
                bytes[(offset % used as u64) as usize] ^= 1 << (offset >> 61);
            }
        });
        true
    }

    fn restore(&self) {
        if let Some(undamaged) = self.undamaged.lock().take() {
            *self.disk.lock() = undamaged;
        }
    }

    fn fail_power(&self, seed: u64) {
        let mut disk = self.disk.lock();
        let survivor = disk.after_power_failure(seed);
        *disk = survivor;
    }

    fn break_something(&self, core: &Core) -> String {
        if core.chance(400) {
            let stall = Duration::from_millis(core.below(12_000));
            core.stall(stall);
            return format!("the disk takes {stall:?}");
        }
        let calls = [
            (DiskCall::Write, Errno::NOSPC),
            (DiskCall::Write, Errno::IO),
            (DiskCall::Sync, Errno::IO),
            (DiskCall::Create, Errno::NOSPC),
            (DiskCall::Rename, Errno::NOSPC),
            (DiskCall::SyncNames, Errno::IO),
        ];
        let (call, errno) = calls[core.below(calls.len() as u64) as usize];
        self.disk.lock().fail(call, errno);
        self.has_failed.store(true, Ordering::Relaxed);
        // After an error of the disk nothing is written until the next start; a full disk may have room again.
        self.needs_restart.fetch_or(errno == Errno::IO, Ordering::Relaxed);
        format!("the next {call:?} fails: {errno}")
    }

    fn heal(&self, core: &Core) {
        core.end_stall();
        self.disk.lock().clear_fault();
    }

    fn loses_acknowledged(&self) -> bool {
        false
    }

    fn rest(&self) {}

    fn may_refuse(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed) || self.undamaged.lock().is_some()
    }

    fn needs_restart(&self) -> bool {
        self.needs_restart.load(Ordering::Relaxed)
    }
}

/// Redis servers for which the processes of two machines contend.
pub struct RedisBackend {
    redis: SimulatedRedis,
    has_faults: bool,
    /// Whether servers may have lost what they had acknowledged.
    is_lossy: AtomicBool,
}

impl RedisBackend {
    /// Creates the servers in an environment of theirs.
    pub fn new(masters: usize, has_faults: bool, environment: Environment) -> Self {
        let settings = match masters {
            1 => SimulatedRedisSettings { has_replicas: has_faults, ..SimulatedRedisSettings::standalone() },
            masters => SimulatedRedisSettings::cluster(masters),
        };
        Self { redis: SimulatedRedis::new(settings, environment), has_faults, is_lossy: AtomicBool::new(false) }
    }
}

impl Backend for RedisBackend {
    fn machines(&self) -> usize {
        2
    }

    fn open(&self, machine: usize, environment: &Environment) -> Result<OpenStore, StoreError> {
        let transport = self.redis.transport(environment.clone());
        let options = RedisOptions {
            url: self.redis.url(),
            key_prefix: "hotpool".to_owned(),
            command_ms: COMMAND_MS,
            lease_ms: LEASE_MS,
            standby: true,
            data_dir: std::path::PathBuf::new(),
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
        };
        let identity = OwnerIdentity { node: format!("machine-{machine}"), label: format!("machine {machine}") };
        let way: Arc<dyn RedisTransport> = Arc::<SimulatedTransport>::clone(&transport);
        let store = RedisStore::open_on(options, way, environment.clone(), identity);
        Ok(OpenStore::new(Arc::new(store), move || transport.cut()))
    }

    fn fail_power(&self, _seed: u64) {}

    fn damage(&self, _core: &Core) -> bool {
        false
    }

    fn restore(&self) {}

    fn break_something(&self, core: &Core) -> String {
        self.redis.set_rates(FaultRates::usual());
        if core.chance(150) {
            self.is_lossy.store(true, Ordering::Relaxed);
            self.redis.flush_all();
            return "the servers are flushed".to_owned();
        }
        let (what, loss) = self.redis.disturb();
        self.is_lossy.fetch_or(loss == StoreLoss::Possible, Ordering::Relaxed);
        what
    }

    fn heal(&self, _core: &Core) {
        self.redis.heal();
        self.redis.set_rates(FaultRates::default());
    }

    fn loses_acknowledged(&self) -> bool {
        self.is_lossy.load(Ordering::Relaxed)
    }

    fn rest(&self) {
        self.is_lossy.store(false, Ordering::Relaxed);
    }

    fn may_refuse(&self) -> bool {
        self.has_faults
    }

    fn needs_restart(&self) -> bool {
        false
    }
}

/// Disk as one process sees it, until the process is killed.
#[derive(Debug)]
struct CutDisk {
    disk: ModelDisk,
    is_cut: Arc<AtomicBool>,
}

impl CutDisk {
    fn check(&self) -> io::Result<()> {
        if self.is_cut.load(Ordering::Relaxed) { Err(Errno::IO.into()) } else { Ok(()) }
    }
}

impl StoreDisk for CutDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.check().and_then(|()| self.disk.list())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.check()?;
        let file = self.disk.create(name)?;
        Ok(Arc::new(CutFile { file, is_cut: Arc::clone(&self.is_cut) }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.check()?;
        let file = self.disk.open(name)?;
        Ok(Arc::new(CutFile { file, is_cut: Arc::clone(&self.is_cut) }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check().and_then(|()| self.disk.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check().and_then(|()| self.disk.remove(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.check().and_then(|()| self.disk.sync_names())
    }

    fn path(&self, name: &str) -> String {
        self.disk.path(name)
    }
}

#[derive(Debug)]
struct CutFile {
    file: Arc<dyn DiskFile>,
    is_cut: Arc<AtomicBool>,
}

impl CutFile {
    fn check(&self) -> io::Result<()> {
        if self.is_cut.load(Ordering::Relaxed) { Err(Errno::IO.into()) } else { Ok(()) }
    }
}

impl DiskFile for CutFile {
    fn size_bytes(&self) -> io::Result<u64> {
        self.file.size_bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.check().and_then(|()| self.file.read_at(offset, into))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check().and_then(|()| self.file.write_at(offset, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        self.check().and_then(|()| self.file.sync())
    }
}
