//! Functions that run inside Redis: one call per batch, each atomic.

use std::sync::LazyLock;

use redis::Cmd;
use xxhash_rust::xxh3::xxh3_64;

/// Library of functions. The name contains a hash of the code, so that two versions of Hotpool on one server each call their
/// own.
pub(super) struct FunctionLibrary {
    /// Name in `FUNCTION LIST`; the name of each function starts with it.
    pub name: String,
    /// Code for `FUNCTION LOAD`.
    pub code: String,
}

/// Function library of this build.
pub(super) static LIBRARY: LazyLock<FunctionLibrary> = LazyLock::new(|| {
    let body = include_str!("library.lua");
    let name = format!("hotpool_{:08x}", xxh3_64(body.as_bytes()) >> 32);
    let code = format!("#!lua name={name}\n{}", body.replace("LIBRARY", &name));
    FunctionLibrary { name, code }
});

/// Call of a function of the library, without arguments.
pub(super) fn call(function: &str, keys: &[&str]) -> Cmd {
    call_with_capacity(function, keys, 0, 0)
}

/// Call like [`call`], with capacity for `args` arguments of `bytes` bytes beside the few that every call has.
pub(super) fn call_with_capacity(function: &str, keys: &[&str], args: usize, bytes: usize) -> Cmd {
    const COMMON_ARGS: usize = 16;
    const COMMON_ARG_BYTES: usize = 512;
    let mut call = Cmd::with_capacity(COMMON_ARGS + args, COMMON_ARG_BYTES + bytes);
    call.arg("FCALL").arg(format!("{}_{function}", LIBRARY.name)).arg(keys.len()).arg(keys);
    call
}
