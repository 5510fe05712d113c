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

/// Unit in which a disk loses what it held, in bytes.
const BLOCK_BYTES: usize = 4_096;

/// Bytes of a file, with zeros for what the disk cannot read.
#[derive(Debug)]
pub(super) struct SalvagedBytes {
    pub(super) bytes: Vec<u8>,
    /// Offset in the file of the last block that cannot be read, if there is one, and the error.
    pub(super) unreadable: Option<(u64, io::Error)>,
}

/// Reads so many bytes at an offset, fewer at the end of the file. A block that the disk cannot read is damage of what it
/// held, like bytes that have changed: it must not cost the shards that have nothing in it.
///
/// # Errors
/// Failure of the disk other than that it cannot read some of the blocks.
pub(super) fn salvage(file: &dyn DiskFile, offset: u64, length: usize) -> io::Result<SalvagedBytes> {
    let mut bytes = vec![0; length];
    match file.read_at(offset, &mut bytes) {
        Ok(read) => {
            bytes.truncate(read);
            return Ok(SalvagedBytes { bytes, unreadable: None });
        }
        Err(error) if is_media_error(&error) => {}
        Err(error) => return Err(error),
    }
    let end = file.size_bytes()?.saturating_sub(offset).min(length as u64) as usize;
    bytes.clear();
    bytes.resize(end, 0);
    let (mut start, mut read_any, mut unreadable) = (0, false, None);
    while start < end {
        let to_boundary = BLOCK_BYTES - (offset as usize + start) % BLOCK_BYTES;
        let block = start..end.min(start + to_boundary);
        match file.read_at(offset + start as u64, &mut bytes[block.clone()]) {
            Ok(_) => read_any = true,
            Err(error) if is_media_error(&error) => {
                bytes[block.clone()].fill(0);
                unreadable = Some((offset + start as u64, error));
            }
            Err(error) => return Err(error),
        }
        start = block.end;
    }
    match unreadable {
        // That is no bad block but a disk that is gone.
        Some((_, error)) if !read_any => Err(error),
        unreadable => Ok(SalvagedBytes { bytes, unreadable }),
    }
}

/// Whether the disk or the file system says that it has lost what it should read.
fn is_media_error(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error)
        .is_some_and(|errno| [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA].contains(&errno))
}
