//! Storage backend of redb that remembers a failed sync. After one, the system may count the unwritten data as written and
//! show it, no later sync writes it, and a crash loses it. So the file is set aside, no call succeeds any more, and the next
//! start copies every byte of it to a new file ([`super::disk`]). A call that fails before a sync may be retried.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::super::data_dir;

/// Name of the store file.
pub(super) const FILE: &str = data_dir::STORE;
/// Temporary name under which the file is created, so that a crash leaves no partial file.
pub(super) const FILE_NEW: &str = data_dir::STORE_NEW;
/// Name of a file of which a sync failed.
pub(super) const FILE_UNSYNCED: &str = data_dir::STORE_UNSYNCED;

/// Call that is about to be made on the file.
#[derive(Debug, Clone, Copy)]
pub enum DiskOperation<'a> {
    /// Write of bytes at an offset.
    Write(u64, &'a [u8]),
    /// Change of the length of the file.
    SetLen(u64),
    /// Sync of all earlier changes of the file.
    Sync,
    /// Sync of the names in a directory.
    SyncNames,
}

/// Hook that is called before each call on the file and may fail it instead: a failing disk, for tests.
pub type DiskProbe = Arc<dyn Fn(DiskOperation<'_>) -> io::Result<()> + Send + Sync>;

/// Directory of the store, and the first sync that failed.
#[derive(Clone)]
pub(super) struct StoreDir {
    dir: PathBuf,
    probe: Option<DiskProbe>,
    /// Description of the first failed sync, for people.
    unsynced: Arc<OnceLock<String>>,
}

impl std::fmt::Debug for StoreDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreDir").field("dir", &self.dir).field("unsynced", &self.unsynced).finish_non_exhaustive()
    }
}

impl StoreDir {
    pub(super) fn new(dir: &Path, probe: Option<DiskProbe>) -> Self {
        Self { dir: dir.to_path_buf(), probe, unsynced: Arc::default() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Description of the first failed sync, if there is one: from then on reads prove nothing.
    pub(super) fn unsynced(&self) -> Option<&str> {
        self.unsynced.get().map(String::as_str)
    }

    fn probe_call(&self, call: DiskOperation<'_>) -> io::Result<()> {
        self.probe.as_ref().map_or(Ok(()), |probe| probe(call))
    }

    /// Syncs the names in a directory.
    pub(super) fn sync_names(&self, dir: &Path) -> io::Result<()> {
        self.probe_call(DiskOperation::SyncNames)?;
        Ok(rustix::fs::fsync(File::open(dir)?)?)
    }

    fn set_aside(&self, error: &io::Error) {
        self.unsynced.get_or_init(|| {
            let file = self.path(FILE);
            let failure =
                format!("a sync of {} failed ({error}), so its last records may not be on the disk", file.display());
            match std::fs::rename(&file, self.path(FILE_UNSYNCED)) {
                Ok(()) => format!("{failure}: repair the disk and restart, which writes the file anew"),
                Err(error) => format!("{failure}, and it could not be set aside ({error}): restart the machine"),
            }
        });
    }
}

/// Open file that delegates to redb's own backend.
#[derive(Debug)]
pub(super) struct DiskFile {
    disk: StoreDir,
    name: &'static str,
    inner: FileBackend,
    /// Descriptor of the open file, for syncs.
    file: File,
}

impl DiskFile {
    /// Opens an existing file.
    pub(super) fn open(disk: &StoreDir, name: &'static str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(disk.path(name))?;
        // redb would turn it into a store.
        if file.metadata()?.len() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
        }
        Self::with(disk, name, file)
    }

    /// Creates an empty file, replacing any that has the name.
    pub(super) fn create(disk: &StoreDir, name: &'static str) -> io::Result<Self> {
        let path = disk.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = data_dir::open_private(OpenOptions::new().read(true).write(true).create_new(true), &path)?;
        let created = Self::with(disk, name, file)?;
        created.set_len(0)?;
        Ok(created)
    }

    fn with(disk: &StoreDir, name: &'static str, file: File) -> io::Result<Self> {
        let inner = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
        Ok(Self { disk: disk.clone(), name, inner, file })
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.probe_call(DiskOperation::SetLen(len))?;
        self.inner.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.probe_call(DiskOperation::Write(offset, data))?;
        self.inner.write(offset, data)
    }

    fn sync_data(&self) -> io::Result<()> {
        // Sync once: the standard library would repeat it after EINTR, and a second sync does not prove what the first missed.
        let synced = self.disk.probe_call(DiskOperation::Sync).and_then(|()| Ok(rustix::fs::fdatasync(&self.file)?));
        // Other files are recreated by the next attempt.
        if let (FILE, Err(error)) = (self.name, &synced) {
            self.disk.set_aside(error);
        }
        synced
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
