//! Hasher for names of owners, in bytes.

use std::hash::Hasher;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hasher of maps keyed by `namespace/tenant`, with a fixed seed, so that equal histories give equal maps.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct OwnerHasher(u64);

impl Hasher for OwnerHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_usize(&mut self, length: usize) {
        self.0 ^= length as u64;
    }
}
