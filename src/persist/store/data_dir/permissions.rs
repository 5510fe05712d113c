//! Who may read a data directory: its owner alone. What is made is made so; what earlier versions left open is narrowed where
//! that harms nobody, else there is a warning. Nothing here keeps the service from starting.

use std::ffi::OsString;
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::is_ours;

/// Mode of the directory.
pub(super) const DIR_MODE: u32 = 0o700;
/// Mode of its files.
pub(super) const FILE_MODE: u32 = 0o600;
/// What others than the owner may do.
const OTHERS_MASK: u32 = 0o077;

/// Gives a path this mode whatever the umask took of it.
pub(super) fn set(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Gives the owner of a file back what a umask took of it when it was made.
pub(super) fn restore_owner_bits(file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    if is_of_this_user(&found) && found.mode() & FILE_MODE != FILE_MODE {
        file.set_permissions(Permissions::from_mode(found.mode() & 0o7777 | FILE_MODE))?;
    }
    Ok(())
}

/// Takes from others what they may do with a directory that this process has locked, and with the service's files in it. A
/// directory that holds anything else, a link, and what belongs to another user are left as they are.
pub(super) fn restrict(dir: &Path) {
    // Without a list of names nothing is known to be the service's own.
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut foreign: Option<OsString> = None;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !is_ours(&name) {
            foreign.get_or_insert(name);
            continue;
        }
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        restrict_path(&entry.path(), is_link.then(|| "it is a link, and what it names may be shared".to_owned()));
    }
    restrict_path(dir, foreign.map(|name| format!("it holds {} as well, which is not the service's", name.display())));
}

/// Narrows one path, unless there is a reason to leave it.
fn restrict_path(path: &Path, leave: Option<String>) {
    let Ok(found) = std::fs::metadata(path) else { return };
    let mode = found.mode() & 0o7777;
    if mode & OTHERS_MASK == 0 {
        return;
    }
    let leave = leave.or_else(|| (!is_of_this_user(&found)).then(|| "it belongs to another user".to_owned()));
    let why = match leave {
        Some(why) => why,
        None => match set(path, mode & !OTHERS_MASK) {
            Ok(()) => return,
            Err(error) => format!("it cannot be narrowed: {error}"),
        },
    };
    tracing::warn!(?path, mode = format!("{mode:04o}"), why, "can be read or changed by others than its owner");
}

fn is_of_this_user(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}
