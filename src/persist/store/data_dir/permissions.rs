//! Permissions of a data directory: its owner alone may read it. New files are created so. Files that earlier versions left
//! open are restricted where that is safe, otherwise there is a warning. Nothing here keeps the service from starting.

use std::ffi::OsString;
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::is_ours;

/// Mode of the directory itself.
pub(super) const DIR_MODE: u32 = 0o700;
/// Mode of the files in it.
pub(super) const FILE_MODE: u32 = 0o600;
/// Mode bits of group and others.
const OTHERS_MASK: u32 = 0o077;

/// Sets the mode of a path, whatever the umask removed from it.
pub(super) fn set(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Restores the owner bits that the umask removed when the file was created.
pub(super) fn restore_owner_bits(file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    if is_of_this_user(&found) && found.mode() & FILE_MODE != FILE_MODE {
        file.set_permissions(Permissions::from_mode(found.mode() & 0o7777 | FILE_MODE))?;
    }
    Ok(())
}

/// Restricts a directory that this process has locked, and the service's files in it, to their owner. A directory that holds
/// anything else, a link, and files of another user are left as they are.
pub(super) fn restrict(dir: &Path) {
    // Without a listing, no file is known to be the service's own.
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut foreign: Option<OsString> = None;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !is_ours(&name) {
            foreign.get_or_insert(name);
            continue;
        }
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        restrict_path(&entry.path(), is_link.then(|| "it is a link, whose target may be shared".to_owned()));
    }
    restrict_path(dir, foreign.map(|name| format!("it holds {}, which is not a file of the service", name.display())));
}

/// Restricts one path, unless there is a reason to leave it.
fn restrict_path(path: &Path, leave_reason: Option<String>) {
    let Ok(found) = std::fs::metadata(path) else { return };
    let mode = found.mode() & 0o7777;
    if mode & OTHERS_MASK == 0 {
        return;
    }
    let leave_reason =
        leave_reason.or_else(|| (!is_of_this_user(&found)).then(|| "it belongs to another user".to_owned()));
    let reason = match leave_reason {
        Some(reason) => reason,
        None => match set(path, mode & !OTHERS_MASK) {
            Ok(()) => return,
            Err(error) => format!("its mode cannot be changed: {error}"),
        },
    };
    tracing::warn!(
        ?path,
        mode = format!("{mode:04o}"),
        reason,
        "users other than the owner can read or change this path; remove their permissions"
    );
}

fn is_of_this_user(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}
