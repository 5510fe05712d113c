//! Hash maps whose order depends on a seed of the process alone: with the same seed, the same calls meet their entries in the
//! same order, as a simulation needs. Every other process draws its seed: callers who do not know it cannot choose keys
//! that collide.

use std::hash::BuildHasher;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::{FixedState, FoldHasher};

/// Hash map with a [`SeededState`].
pub type HashMap<K, V> = hashbrown::HashMap<K, V, SeededState>;
/// Hash set with a [`SeededState`].
pub type HashSet<T> = hashbrown::HashSet<T, SeededState>;

static SEED: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(random_seed()));

#[allow(clippy::disallowed_types, reason = "the standard library's source of random keys, read once")]
fn random_seed() -> u64 {
    std::hash::RandomState::new().hash_one(0)
}

/// Sets the seed of all maps that are created from now on, for a run that is to be repeated.
pub fn seed_hashes(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
}

/// State of the hasher of a map: the seed of the process when the map was created.
#[derive(Debug, Clone)]
pub struct SeededState(FixedState);

impl Default for SeededState {
    fn default() -> Self {
        Self(FixedState::with_seed(SEED.load(Ordering::Relaxed)))
    }
}

impl BuildHasher for SeededState {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::Hasher as _;

    #[test]
    fn the_order_of_a_map_follows_from_the_seed() {
        let order = |seed| {
            seed_hashes(seed);
            (0..1_000).collect::<HashSet<u32>>().into_iter().collect::<Vec<_>>()
        };
        let [first, again, other] = [order(1), order(1), order(2)];
        assert_eq!(first, again);
        assert_ne!(first, other);
    }

    #[test]
    fn a_map_keeps_the_seed_that_it_was_created_with() {
        seed_hashes(1);
        let mut map = HashMap::default();
        map.insert("a", 1);
        seed_hashes(2);
        assert_eq!(map.get("a"), Some(&1));
        let of_seed = |state: &SeededState| {
            let mut hasher = state.build_hasher();
            hasher.write_u8(1);
            hasher.finish()
        };
        assert_ne!(of_seed(map.hasher()), of_seed(&SeededState::default()));
    }
}
