//! Store of these tests: the embedded one, in a directory of its own.

use std::path::Path;
use std::sync::Arc;

use hotpool::persist::store::SharedStore;
use hotpool::persist::store::file::FileStore;
use tempfile::TempDir;

/// Directory with the files of a store.
pub struct StoreLocation(TempDir);

impl StoreLocation {
    /// Creates an empty directory.
    pub fn empty() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn open(&self) -> SharedStore {
        Arc::new(FileStore::open(self.path()).expect("open"))
    }

    /// Copies the files as they are to another directory.
    pub fn copy(&self) -> Self {
        let to = Self::empty();
        for entry in std::fs::read_dir(self.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
        to
    }
}
