//! Hash maps whose order follows from a seed in a simulation: with the same seed, the same calls meet their entries in the same
//! order. Everywhere else each map draws keys of its own, so callers cannot choose names that collide.

use foldhash::SharedSeed;
use foldhash::fast::{FoldHasher, SeedableRandomState};
use std::hash::BuildHasher;

/// Hash map with a [`SeededState`].
pub type HashMap<K, V> = hashbrown::HashMap<K, V, SeededState>;
/// Hash set with a [`SeededState`].
pub type HashSet<T> = hashbrown::HashSet<T, SeededState>;

#[cfg(feature = "internals")]
thread_local! {
    static SEED: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// Sets the seed of all maps that this thread creates from now on, for a run that is to be repeated.
#[cfg(feature = "internals")]
pub fn seed_hashes(seed: u64) {
    SEED.set(Some(seed));
}

/// State of the hasher of a map.
#[derive(Debug, Clone)]
pub struct SeededState(SeedableRandomState);

impl Default for SeededState {
    fn default() -> Self {
        #[cfg(feature = "internals")]
        if let Some(seed) = SEED.get() {
            return Self(SeedableRandomState::with_seed(seed, SharedSeed::global_fixed()));
        }
        Self(SeedableRandomState::with_seed(random_u64(), SharedSeed::global_random()))
    }
}

/// Random number of this process.
pub(crate) fn random_u64() -> u64 {
    SeedableRandomState::random().hash_one(0)
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

    #[cfg(feature = "internals")]
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

    #[cfg(feature = "internals")]
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

    #[test]
    fn maps_without_a_seed_hash_unalike() {
        let of = |state: SeededState| state.hash_one("a name");
        let hashes = [(); 4].map(|()| of(SeededState::default()));
        assert!(hashes.windows(2).any(|two| two[0] != two[1]), "{hashes:?}");
    }
}
