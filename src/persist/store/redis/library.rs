//! The functions that run inside Redis: one call per step, each atomic.

use std::sync::LazyLock;

use redis::Cmd;
use xxhash_rust::xxh3::xxh3_64;

/// The name of the library and its text. The name carries a hash of the text: two versions of Hotpool on one server
/// each call their own.
pub(super) struct FunctionLibrary {
    /// As `FUNCTION LIST` shows it; each function's name starts with it.
    pub name: String,
    /// For `FUNCTION LOAD`.
    pub code: String,
}

/// This build's.
pub(super) static LIBRARY: LazyLock<FunctionLibrary> = LazyLock::new(|| {
    let body = include_str!("library.lua");
    let name = format!("hotpool_{:08x}", xxh3_64(body.as_bytes()) >> 32);
    let code = format!("#!lua name={name}\n{}", body.replace("LIBRARY", &name));
    FunctionLibrary { name, code }
});

/// A call of one of its functions, without arguments.
pub(super) fn call(function: &str, keys: &[&str]) -> Cmd {
    call_with_capacity(function, keys, 0, 0)
}

/// The same, with room for so many arguments beside the few that every call has, of so many bytes.
pub(super) fn call_with_capacity(function: &str, keys: &[&str], args: usize, bytes: usize) -> Cmd {
    const COMMON_ARGS: usize = 16;
    const COMMON_ARG_BYTES: usize = 512;
    let mut call = Cmd::with_capacity(COMMON_ARGS + args, COMMON_ARG_BYTES + bytes);
    call.arg("FCALL").arg(format!("{}_{function}", LIBRARY.name)).arg(keys.len()).arg(keys);
    call
}
