//! The functions that run inside Redis: one call per step, each atomic.

use std::sync::LazyLock;

use redis::{Cmd, cmd};
use xxhash_rust::xxh3::xxh3_64;

/// The name of the library and its text. The name carries a hash of the text: two versions of Hotpool on one server
/// each call their own.
pub(super) struct Library {
    /// As `FUNCTION LIST` shows it; each function's name starts with it.
    pub name: String,
    /// For `FUNCTION LOAD`.
    pub code: String,
}

/// This build's.
pub(super) static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let body = include_str!("library.lua");
    let name = format!("hotpool_{:08x}", xxh3_64(body.as_bytes()) >> 32);
    let code = format!("#!lua name={name}\n{}", body.replace("LIBRARY", &name));
    Library { name, code }
});

/// A call of one of its functions, without keys and arguments.
pub(super) fn call(function: &str, keys: &[&str]) -> Cmd {
    let mut call = cmd("FCALL");
    call.arg(format!("{}_{function}", LIBRARY.name)).arg(keys.len()).arg(keys);
    call
}
