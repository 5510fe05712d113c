//! The disk under the store: one directory with files that are written at offsets, synced and renamed.
//!
//! [`StoreDisk`] is what the store assumes of a disk, no more. [`DirectoryDisk`] is a directory of the file system. Tests have a
//! model that loses, tears and reorders what was not synced, and fails calls.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::data_dir;

/// Directory with the files of one store.
///
/// A name that was created, renamed or removed survives a power failure once [`StoreDisk::sync_names`] has returned, and may or
/// may not survive before.
pub trait StoreDisk: Debug + Send + Sync + 'static {
    /// Names of all files.
    ///
    /// # Errors
    /// Failure of the disk.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates an empty file, for its owner alone, and replaces one that has the name.
    ///
    /// # Errors
    /// Failure of the disk.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// Failure of the disk; `NotFound` without such a file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, and replaces one that has the new name. Open files stay open.
    ///
    /// # Errors
    /// Failure of the disk.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Failure of the disk; `NotFound` without such a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Syncs the names in the directory.
    ///
    /// # Errors
    /// Failure of the disk: the names may or may not be durable.
    fn sync_names(&self) -> io::Result<()>;

    /// Path of a file, for people.
    fn path(&self, name: &str) -> String;
}

/// Open file of a [`StoreDisk`].
///
/// Bytes that were written survive a power failure once [`DiskFile::sync`] has returned. Before, each part of them may or may
/// not, in any order.
pub trait DiskFile: Debug + Send + Sync {
    /// Size in bytes.
    ///
    /// # Errors
    /// Failure of the disk.
    fn size_bytes(&self) -> io::Result<u64>;

    /// Reads at an offset until the buffer is full or the file ends, and returns the number of bytes.
    ///
    /// # Errors
    /// Failure of the disk.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Writes at an offset; the file grows if it must.
    ///
    /// # Errors
    /// Failure of the disk: any part of the bytes may be written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Syncs all earlier writes of the file.
    ///
    /// # Errors
    /// Failure of the disk. What was written since the last sync may be lost although it is read back, and no later sync
    /// makes it durable unless it is written again to another file.
    fn sync(&self) -> io::Result<()>;
}

/// Directory of the file system.
#[derive(Debug)]
pub struct DirectoryDisk {
    dir: PathBuf,
}

impl DirectoryDisk {
    /// Uses a directory that exists.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }
}

impl StoreDisk for DirectoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        // A name that is no UTF-8 is none of the store's.
        let names = std::fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Arc::new(data_dir::open_private(OpenOptions::new().read(true).write(true).create_new(true), &path)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(self.dir.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(File::open(&self.dir)?)?)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// Names the file of an error.
pub(super) fn in_file<'a>(disk: &'a dyn StoreDisk, name: &'a str) -> impl Fn(io::Error) -> io::Error + 'a {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", disk.path(name)))
}

impl DiskFile for File {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match FileExt::read_at(self, &mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        // Once: the standard library would repeat it after EINTR, and a second sync does not prove what the first missed.
        Ok(rustix::fs::fdatasync(self)?)
    }
}
