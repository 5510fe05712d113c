//! Names of keys and their slots. Pure.
//!
//! All keys of a shard share one hash tag, so that a batch touches one slot. Tags are chosen, not hashed: shard `i` of a
//! pool has the slot `(hash(pool) + i' * 16) mod 16384`, where `i'` is `i` with its ten bits reversed. The first `S`
//! reversed numbers (`S` a power of two) are the multiples of `1024 / S`, so the shards of a pool are at equal distances
//! in the slots whatever `S` is, and each master gets its part of a hot pool.

use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64;

use super::super::ShardKey;
use crate::limits::SHARDS_MAX;
use crate::model::hash_slot::{SLOTS, slot_of};

const _: () = assert!(SHARDS_MAX == 1 << 10, "the shards' bits are reversed as ten");

/// Slot of a shard.
pub(super) fn slot(key: ShardKey) -> u16 {
    let start = xxh3_64(&key.pool.to_le_bytes()) % u64::from(SLOTS);
    let offset = (key.shard.reverse_bits() >> 6) * (SLOTS >> 10);
    ((start + u64::from(offset)) % u64::from(SLOTS)) as u16
}

fn tag_number(number: u32) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut tag = String::new();
    let mut quotient = number;
    loop {
        tag.push(char::from(DIGITS[quotient as usize % DIGITS.len()]));
        quotient /= DIGITS.len() as u32;
        if quotient == 0 {
            return tag;
        }
    }
}

/// Tag of a slot: the first of all tags, in counting order, that hashes to it. It never changes between builds.
pub(super) fn tag(slot: u16) -> String {
    static TAGS: LazyLock<Vec<u32>> = LazyLock::new(|| {
        let mut tags = vec![u32::MAX; usize::from(SLOTS)];
        let mut missing = tags.len();
        for number in 0.. {
            let tag = &mut tags[usize::from(slot_of(tag_number(number).as_bytes()))];
            if *tag == u32::MAX {
                *tag = number;
                missing -= 1;
            }
            if missing == 0 {
                break;
            }
        }
        tags
    });
    tag_number(TAGS[usize::from(slot)])
}

/// Keys of a shard: one holds its state, the other a snapshot under way, or nothing.
pub(super) fn sides(prefix: &str, key: ShardKey) -> [String; 2] {
    let tag = tag(slot(key));
    ["a", "b"].map(|side| format!("{prefix}:{{{tag}}}:{}.{}:{side}", key.pool, key.shard))
}

/// Key of the ownership record, in the slot of the catalog.
pub(super) fn owner(prefix: &str) -> String {
    format!("{prefix}:{{{}}}:owner", tag(slot(ShardKey::CATALOG)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn tags_hash_to_their_slots_and_never_change() {
        for slot in 0..SLOTS {
            assert_eq!(slot_of(tag(slot).as_bytes()), slot);
        }
        // A change of these would lose sight of every record that is stored.
        assert_eq!(sides("hotpool", ShardKey { pool: 7, shard: 3 }), PINNED);
    }

    const PINNED: [&str; 2] = ["hotpool:{jw81}:7.3:a", "hotpool:{jw81}:7.3:b"];

    #[test]
    fn shards_have_equally_spaced_slots_whatever_their_number() {
        for shards in [1_u16, 2, 16, 64, 1024] {
            let slots: BTreeSet<u16> = (0..shards).map(|shard| slot(ShardKey { pool: 42, shard })).collect();
            assert_eq!(slots.len(), usize::from(shards));
            let gap = SLOTS / shards;
            let first = *slots.first().expect("one at least");
            assert!(slots.iter().all(|slot| (slot - first).is_multiple_of(gap)), "{shards} shards: {slots:?}");
        }
    }
}
