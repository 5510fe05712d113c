//! The file under redb. A sync of it that failed is never forgotten: the system may count what it covered as written and
//! show it, no later sync would write it, and after a crash it is gone. So the file is set aside, nothing is answered any
//! more, and the next start writes every byte of it anew ([`super::disk`]). What fails before a sync may be tried again.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::super::data_dir;

/// Name of the store's file.
pub(super) const FILE: &str = data_dir::STORE;
/// Under this name the file is made, so that a crash meanwhile leaves no half of it.
pub(super) const FILE_NEW: &str = data_dir::STORE_NEW;
/// Under this name stands a file of which a sync failed.
pub(super) const FILE_UNSYNCED: &str = data_dir::STORE_UNSYNCED;

/// A call that is about to be made on the file.
#[derive(Debug, Clone, Copy)]
pub enum DiskOperation<'a> {
    /// Bytes go to an offset.
    Write(u64, &'a [u8]),
    /// The file gets this length.
    SetLen(u64),
    /// All that was done before becomes durable.
    Sync,
    /// The names in a directory become durable.
    SyncNames,
}

/// Hears of each call before it is made; an error is that of the call, which is then not made. A disk that fails, for tests.
pub type DiskProbe = Arc<dyn Fn(DiskOperation<'_>) -> io::Result<()> + Send + Sync>;

/// The directory, and what became of its syncs.
#[derive(Clone)]
pub(super) struct StoreDir {
    dir: PathBuf,
    probe: Option<DiskProbe>,
    /// Says which sync failed first, for people.
    unsynced: Arc<OnceLock<String>>,
}

impl std::fmt::Debug for StoreDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("dir", &self.dir).field("unsynced", &self.unsynced).finish_non_exhaustive()
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

    /// Says which sync failed, if one did: from then on nothing that is read proves anything.
    pub(super) fn unsynced(&self) -> Option<&str> {
        self.unsynced.get().map(String::as_str)
    }

    fn probe_call(&self, call: DiskOperation<'_>) -> io::Result<()> {
        self.probe.as_ref().map_or(Ok(()), |probe| probe(call))
    }

    /// Makes the names in a directory last.
    pub(super) fn sync_names(&self, dir: &Path) -> io::Result<()> {
        self.probe_call(DiskOperation::SyncNames)?;
        Ok(rustix::fs::fsync(File::open(dir)?)?)
    }

    fn set_aside(&self, error: &io::Error) {
        self.unsynced.get_or_init(|| {
            let file = self.path(FILE);
            let what =
                format!("a sync of {} failed ({error}), so its last records may not be on the disk", file.display());
            match std::fs::rename(&file, self.path(FILE_UNSYNCED)) {
                Ok(()) => format!("{what}: mend the disk and restart, which writes the file anew"),
                Err(error) => format!("{what}, nor could it be set aside ({error}): restart the machine"),
            }
        });
    }
}

/// An open file. redb's own does the work.
#[derive(Debug)]
pub(super) struct DiskFile {
    disk: StoreDir,
    name: &'static str,
    inner: FileBackend,
    /// Descriptor of that open file, to sync it.
    file: File,
}

impl DiskFile {
    /// Opens a file that is there.
    pub(super) fn open(disk: &StoreDir, name: &'static str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(disk.path(name))?;
        // redb would make a store of it.
        if file.metadata()?.len() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
        }
        Self::with(disk, name, file)
    }

    /// Makes an empty file in the place of whatever has the name.
    pub(super) fn create(disk: &StoreDir, name: &'static str) -> io::Result<Self> {
        let path = disk.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = data_dir::open_private(OpenOptions::new().read(true).write(true).create_new(true), &path)?;
        let made = Self::with(disk, name, file)?;
        made.set_len(0)?;
        Ok(made)
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
        // Syncs once: the standard library would go on after EINTR, and a second sync does not prove what the first one missed.
        let synced = self.disk.probe_call(DiskOperation::Sync).and_then(|()| Ok(rustix::fs::fdatasync(&self.file)?));
        // Any other file is made anew by whoever tries again.
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
