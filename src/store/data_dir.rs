//! The data directory of a process: its lock, which one living process has, and its id.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use uuid::Uuid;

use super::StoreError;

const LOCK: &str = "lock";
/// Which place this is, for a store that other places may use too.
const NODE: &str = "node-id";
/// Under this name the id is written, so that a crash meanwhile leaves no half of it.
const NODE_NEW: &str = "node-id.new";

/// Whether a file of this name is one of those that every data directory may have.
pub(super) fn is_ours(name: &OsStr) -> bool {
    name == LOCK || name == NODE || name == NODE_NEW
}

/// Makes the directory if it is not there.
pub(super) fn make(dir: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(dir)
        .map_err(|error| io_error(&format!("cannot create the data directory {}", dir.display()), &error))
}

/// Takes the lock, for as long as the file lives.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    let refused = |what: &str, error: &io::Error| io_error(&format!("{what} {}", dir.display()), error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(LOCK))
        .map_err(|error| refused("cannot write the lock file in", &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = file.read_to_string(&mut pid);
            let by = if read.is_ok() && !pid.is_empty() { format!(" (pid {pid})") } else { String::new() };
            return Err(StoreError::Unusable(format!("{} is in use by another process{by}", dir.display())));
        }
        Err(TryLockError::Error(error)) => return Err(refused("cannot lock the data directory", &error)),
    }
    let pid = std::process::id().to_string();
    file.set_len(0)
        .and_then(|()| file.write_all(pid.as_bytes()))
        .map_err(|error| refused("cannot write the lock file in", &error))?;
    Ok(file)
}

/// Makes and locks the directory, and reads its id, or draws one.
pub(super) fn take(dir: &Path) -> Result<(File, String), StoreError> {
    make(dir)?;
    let lock = lock(dir)?;
    let path = dir.join(NODE);
    let refused = |error| io_error(&format!("cannot use {}", path.display()), &error);
    match std::fs::read_to_string(&path) {
        Ok(id) => match id.trim().parse::<Uuid>() {
            Ok(id) => Ok((lock, id.to_string())),
            Err(_) => Err(StoreError::Unusable(format!("{} is not an id: {id:?}", path.display()))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::now_v7().to_string();
            let write = |mut file: File| file.write_all(id.as_bytes()).and_then(|()| file.sync_all());
            File::create(dir.join(NODE_NEW)).and_then(write).map_err(refused)?;
            std::fs::rename(dir.join(NODE_NEW), &path).map_err(refused)?;
            Ok((lock, id))
        }
        Err(error) => Err(refused(error)),
    }
}

/// What an I/O error means, but that of a sync of what counts: a full disk may pass, a missing permission will not.
pub(super) fn io_error(doing: &str, error: &io::Error) -> StoreError {
    use io::ErrorKind::{FileTooLarge, Interrupted, OutOfMemory, QuotaExceeded, StorageFull, WouldBlock};
    let message = format!("{doing}: {error}");
    match error.kind() {
        FileTooLarge | Interrupted | OutOfMemory | QuotaExceeded | StorageFull | WouldBlock => {
            StoreError::Away(message)
        }
        _ => StoreError::Unusable(message),
    }
}
