//! Where the records of these tests are: redb, in a directory of its own.

use std::path::Path;
use std::sync::Arc;

use hotpool::persist::store::SharedStore;
use hotpool::persist::store::redb::RedbStore;
use tempfile::TempDir;

/// A directory, and what is stored in it.
pub struct Place(TempDir);

impl Place {
    /// Nothing is stored here.
    pub fn empty() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn open(&self) -> SharedStore {
        Arc::new(RedbStore::open(self.path()).expect("open"))
    }

    /// The files as they are, elsewhere.
    pub fn copy(&self) -> Self {
        let to = Self::empty();
        for entry in std::fs::read_dir(self.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
        to
    }
}
