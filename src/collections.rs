//! Hash maps whose order follows from a seed in a simulation: with the same seed, the same calls meet their entries in the same
//! order. Every other process draws a seed of its own, so callers do not know which names collide.

use std::hash::BuildHasher;
use std::sync::LazyLock;

use foldhash::fast::{FixedState, FoldHasher};

/// Hash map with a [`SeededState`].
pub type HashMap<K, V> = hashbrown::HashMap<K, V, SeededState>;
/// Hash set with a [`SeededState`].
pub type HashSet<T> = hashbrown::HashSet<T, SeededState>;

static SEED_OF_PROCESS: LazyLock<u64> = LazyLock::new(random_u64);

#[cfg(feature = "internals")]
thread_local! {
    static SEED_OF_THREAD: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// Random number of this process.
#[allow(clippy::disallowed_types, reason = "the standard library's source of random keys")]
pub(crate) fn random_u64() -> u64 {
    std::hash::RandomState::new().hash_one(0)
}

/// Sets the seed of all maps that this thread creates from now on, for a run that is to be repeated.
#[cfg(feature = "internals")]
pub fn seed_hashes(seed: u64) {
    SEED_OF_THREAD.set(Some(seed));
}

/// State of the hasher of a map: the seed at the time when the map was created.
#[derive(Debug, Clone)]
pub struct SeededState(FixedState);

impl Default for SeededState {
    fn default() -> Self {
        #[cfg(feature = "internals")]
        if let Some(seed) = SEED_OF_THREAD.get() {
            return Self(FixedState::with_seed(seed));
        }
        Self(FixedState::with_seed(*SEED_OF_PROCESS))
    }
}

impl BuildHasher for SeededState {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

#[cfg(all(test, feature = "internals"))]
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
