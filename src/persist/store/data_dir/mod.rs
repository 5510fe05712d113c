//! The data directory of a process: its lock, which one living process has, its id, and who may read what is in it.

mod permissions;

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use uuid::Uuid;

use super::StoreError;

/// File of the embedded store.
pub(super) const STORE: &str = "hotpool.redb";
/// Name under which that file is made, so that a crash meanwhile leaves no half of it.
pub(super) const STORE_NEW: &str = "hotpool.redb.new";
/// Name of that file once a sync of it has failed.
pub(super) const STORE_UNSYNCED: &str = "hotpool.redb.unsynced";
const LOCK: &str = "lock";
/// Which place this is, for a store that other places may use too.
const NODE: &str = "node-id";
/// Under this name the id is written, so that a crash meanwhile leaves no half of it.
const NODE_NEW: &str = "node-id.new";
/// Everything that the service puts into a data directory.
const OWN_FILES: [&str; 6] = [STORE, STORE_NEW, STORE_UNSYNCED, LOCK, NODE, NODE_NEW];

/// Whether a file of this name is one that the service puts into a data directory.
pub(super) fn is_ours(name: &OsStr) -> bool {
    OWN_FILES.iter().any(|own| name == *own)
}

/// Makes the directory if it is not there, for its owner alone.
pub(super) fn create(dir: &Path) -> Result<(), StoreError> {
    let make = || {
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(permissions::DIR_MODE).create(dir) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            made => made.and_then(|()| permissions::set(dir, permissions::DIR_MODE)),
        }
    };
    make().map_err(|error| io_error(&format!("cannot create the data directory {}", dir.display()), &error))
}

/// Opens a file as `options` say, and makes it for its owner alone if it is not there.
pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.mode(permissions::FILE_MODE).open(path)?;
    permissions::restore_owner_bits(&file)?;
    Ok(file)
}

/// Takes the lock, for as long as the file lives.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    let refused = |what: &str, error: &io::Error| io_error(&format!("{what} {}", dir.display()), error);
    let mut options = OpenOptions::new();
    let mut file = open_private(options.read(true).write(true).create(true).truncate(false), &dir.join(LOCK))
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
    permissions::restrict(dir);
    Ok(file)
}

/// Makes and locks the directory, and reads its id, or draws one.
pub(super) fn lock_and_identify(dir: &Path) -> Result<(File, String), StoreError> {
    create(dir)?;
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
            let mut options = OpenOptions::new();
            let made = open_private(options.write(true).create(true).truncate(true), &dir.join(NODE_NEW));
            made.and_then(write).map_err(refused)?;
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
            StoreError::Unavailable(message)
        }
        _ => StoreError::Unusable(message),
    }
}
