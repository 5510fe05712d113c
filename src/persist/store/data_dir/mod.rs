//! Data directory of a process: the lock that one living process holds, the id, and the permissions of the files.

pub(super) mod log_names;
mod permissions;

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use uuid::Uuid;

use super::StoreError;
use crate::environment::Environment;

/// Record of the embedded store.
pub(super) const STORE: &str = "store";
/// Temporary name under which that file is written, so that a crash leaves no partial file.
pub(super) const STORE_NEW: &str = "store.new";
/// Files of the embedded store of earlier versions, which cannot be read any more.
const OLD_STORES: [&str; 2] = ["hotpool.redb", "hotpool.redb.unsynced"];
const LOCK: &str = "lock";
/// Id of the directory, for a store that processes of other directories use too.
const NODE: &str = "node-id";
/// Temporary name under which the id is written, so that a crash leaves no partial file.
const NODE_NEW: &str = "node-id.new";
/// Names of the files that the service puts into a data directory, apart from the log.
const OWN_FILES: [&str; 5] = [STORE, STORE_NEW, LOCK, NODE, NODE_NEW];

/// Whether the service puts a file of this name into a data directory.
pub(super) fn is_ours(name: &OsStr) -> bool {
    OWN_FILES.iter().any(|own| name == *own) || name.to_str().is_some_and(log_names::is_log_file)
}

/// Name of a store of an earlier version in the directory, if there is one.
pub(super) fn old_store(dir: &Path) -> Option<&'static str> {
    OLD_STORES.into_iter().find(|name| dir.join(name).exists())
}

/// Creates the directory if it is missing, for its owner alone.
pub(super) fn create(dir: &Path) -> Result<(), StoreError> {
    let create_private = || {
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(permissions::DIR_MODE).create(dir) {
            // Another process created it first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            made => made.and_then(|()| permissions::set(dir, permissions::DIR_MODE)),
        }
    };
    create_private().map_err(|error| io_error(&format!("cannot create the data directory {}", dir.display()), &error))
}

/// Opens a file with `options`; a new file is for its owner alone.
pub(super) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.mode(permissions::FILE_MODE).open(path)?;
    permissions::restore_owner_bits(&file)?;
    Ok(file)
}

/// Takes the lock, which is held until the returned file is dropped.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    let failed = |doing: &str, error: &io::Error| io_error(&format!("{doing} {}", dir.display()), error);
    let mut options = OpenOptions::new();
    let mut file = open_private(options.read(true).write(true).create(true).truncate(false), &dir.join(LOCK))
        .map_err(|error| failed("cannot write the lock file in", &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = file.read_to_string(&mut pid);
            let holder = if read.is_ok() && !pid.is_empty() { format!(" (pid {pid})") } else { String::new() };
            return Err(StoreError::Unusable(format!(
                "{} is in use by another process{holder}; stop it, or choose another directory",
                dir.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(failed("cannot lock the data directory", &error)),
    }
    let pid = std::process::id().to_string();
    file.set_len(0)
        .and_then(|()| file.write_all(pid.as_bytes()))
        .map_err(|error| failed("cannot write the lock file in", &error))?;
    permissions::restrict(dir);
    Ok(file)
}

/// Creates and locks the directory, and reads its id or writes a new one.
pub(super) fn lock_and_identify(dir: &Path, environment: &Environment) -> Result<(File, String), StoreError> {
    create(dir)?;
    let lock = lock(dir)?;
    let path = dir.join(NODE);
    let failed = |error| io_error(&format!("cannot use {}", path.display()), &error);
    match std::fs::read_to_string(&path) {
        Ok(id) => match id.trim().parse::<Uuid>() {
            Ok(id) => Ok((lock, id.to_string())),
            Err(_) => Err(StoreError::Unusable(format!("{} does not hold a UUID: {id:?}", path.display()))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = environment.new_uuid().to_string();
            let write = |mut file: File| file.write_all(id.as_bytes()).and_then(|()| file.sync_all());
            let mut options = OpenOptions::new();
            let file = open_private(options.write(true).create(true).truncate(true), &dir.join(NODE_NEW));
            file.and_then(write).map_err(failed)?;
            std::fs::rename(dir.join(NODE_NEW), &path).map_err(failed)?;
            Ok((lock, id))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Classifies an I/O error (not of a sync of records): a full disk may pass, a missing permission will not.
pub(super) fn io_error(doing: &str, error: &io::Error) -> StoreError {
    use io::ErrorKind::{FileTooLarge, Interrupted, OutOfMemory, QuotaExceeded, StorageFull, WouldBlock};
    let message = format!("{doing}: {error}");
    // Too many open files has no kind of its own.
    let is_out_of_files = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    match error.kind() {
        _ if is_out_of_files => StoreError::Unavailable(message),
        FileTooLarge | Interrupted | OutOfMemory | QuotaExceeded | StorageFull | WouldBlock => {
            StoreError::Unavailable(message)
        }
        _ => StoreError::Unusable(message),
    }
}
