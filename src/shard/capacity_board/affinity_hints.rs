//! Affinity hints of a pool: the shard on which each affinity was last seen. Lossy by design.
//!
//! There is one entry for each of 65,536 hash values, holding a tag and a shard. When two affinities share an entry,
//! the later one replaces the earlier. Entries are allocated in pages on first write, so a pool pays for the
//! affinities that it has, at most 260 KiB, and nothing without claims.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const PAGES: usize = 256;
const PAGE_ENTRIES: usize = 256;

/// Entries of a page: `tag << 16 | shard + 1`, by affinity hash.
type HintPage = [AtomicU32; PAGE_ENTRIES];

/// Hints for all affinities of a pool.
#[derive(Debug, Default)]
pub(super) struct AffinityHints {
    pages: OnceLock<Box<[OnceLock<Box<HintPage>>]>>,
}

impl AffinityHints {
    /// Records that the affinity was last seen on `shard`.
    pub fn remember(&self, affinity: u64, shard: u16) {
        let pages = self.pages.get_or_init(|| std::iter::repeat_with(OnceLock::new).take(PAGES).collect());
        let page = pages[page_of(affinity)].get_or_init(|| Box::new([const { AtomicU32::new(0) }; PAGE_ENTRIES]));
        page[entry_of(affinity)].store(tag(affinity) | (u32::from(shard) + 1), Ordering::Relaxed);
    }

    /// Shard on which the affinity was last seen, if known.
    pub fn last_seen(&self, affinity: u64) -> Option<u16> {
        let page = self.pages.get()?[page_of(affinity)].get()?;
        let hint = page[entry_of(affinity)].load(Ordering::Relaxed);
        let shard = (hint & 0xffff).checked_sub(1)?;
        (tag(affinity) == hint & 0xffff_0000).then_some(shard as u16)
    }

    /// Number of allocated pages.
    #[cfg(test)]
    fn pages(&self) -> usize {
        self.pages.get().map_or(0, |pages| pages.iter().filter(|page| page.get().is_some()).count())
    }
}

const fn entry_of(affinity: u64) -> usize {
    affinity as usize % PAGE_ENTRIES
}

const fn page_of(affinity: u64) -> usize {
    (affinity as usize / PAGE_ENTRIES) % PAGES
}

/// Bits of the affinity that do not select the entry.
const fn tag(affinity: u64) -> u32 {
    (affinity >> 32) as u32 & 0xffff_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h05_hints_cost_as_much_as_there_are_affinities() {
        let hints = AffinityHints::default();
        let affinity = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert_eq!((hints.last_seen(affinity(1)), hints.pages()), (None, 0));
        for n in 1..=10 {
            hints.remember(affinity(n), n as u16);
            assert_eq!(hints.last_seen(affinity(n)), Some(n as u16));
            assert_eq!(hints.last_seen(affinity(n) ^ 1 << 63), None, "another affinity with the same entry");
            assert!(hints.pages() <= n as usize);
        }
        (0..100_000).for_each(|n| hints.remember(affinity(n), 1_023));
        assert_eq!((hints.last_seen(affinity(99_999)), hints.pages()), (Some(1_023), PAGES));
    }
}
