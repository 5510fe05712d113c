//! Keys as other requests see them: queries, which change nothing.

use super::EndedClaim;
use super::directory::KeyDirectory;
use super::entry::{HeldKey, KeyEntry, KeyHolder, PendingKey};
use crate::admission::lock_order::{self, LockLevel};
use crate::limits;
use crate::model::{ClaimId, Millis};
use crate::shard::PendingWrites;

/// State of a key as other requests see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyLookup {
    /// The key is vacant, and the store has all records.
    Vacant,
    /// The key is vacant or pending, but the store still lacks these records.
    PendingWrites(PendingWrites),
    /// The key is held; the holder's shard answers.
    Held {
        /// Claim that holds the key.
        holder: KeyHolder,
        /// Records about the key that the store still lacks.
        pending_writes: PendingWrites,
    },
    /// The key is held by a shard that does not serve, or its step panicked.
    Unreadable,
}

impl KeyDirectory {
    /// State of the key and its holder.
    #[must_use]
    #[inline]
    pub fn lookup(&self, id: &ClaimId) -> KeyLookup {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get(id).as_deref() {
            None => KeyLookup::Vacant,
            Some(KeyEntry::Held(HeldKey { holder, pending_writes, .. })) => {
                KeyLookup::Held { holder: *holder, pending_writes: pending_writes.clone() }
            }
            Some(KeyEntry::Unreadable { .. } | KeyEntry::Poisoned(_)) => KeyLookup::Unreadable,
            Some(entry) => match entry.pending_writes() {
                writes if writes.is_empty() => KeyLookup::Vacant,
                writes => KeyLookup::PendingWrites(writes),
            },
        }
    }

    /// Claim that holds the key, if any.
    #[must_use]
    pub fn holder(&self, id: &ClaimId) -> Option<KeyHolder> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get(id).as_deref() {
            Some(KeyEntry::Held(held)) => Some(held.holder),
            _ => None,
        }
    }

    /// Claim that holds the key, or did when the key became unavailable: replies about it may be on their way.
    #[must_use]
    pub fn last_holder(&self, id: &ClaimId) -> Option<KeyHolder> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        match self.map.get(id).as_deref() {
            Some(KeyEntry::Held(held)) => Some(held.holder),
            Some(KeyEntry::Poisoned(poisoned)) => poisoned.holder,
            _ => None,
        }
    }

    /// Records that a durable reply about the key waits for, besides that of its own shard.
    #[must_use]
    pub fn pending_writes(&self, id: &ClaimId) -> PendingWrites {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        self.map.get(id).map_or_else(PendingWrites::new, |entry| entry.pending_writes())
    }

    /// Number of keys that are claimed, or about which the store lacks records. Walks the directory.
    #[must_use]
    pub fn len(&self) -> usize {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let is_remembered =
            |entry: &KeyEntry| matches!(entry, KeyEntry::Vacant(vacant) if vacant.pending_writes.is_empty());
        self.map.iter().filter(|entry| !is_remembered(entry.value())).count()
    }

    /// Whether no key is claimed and the store has all records. Walks the directory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of keys that are being claimed. Walks the directory; for tests and `/debug/shards`.
    #[must_use]
    pub fn pending_len(&self) -> usize {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        self.map.iter().filter(|entry| matches!(entry.value(), KeyEntry::Pending(_))).count()
    }

    /// Last claim of the key, if it ended without its holder and the key was not granted again.
    #[must_use]
    pub fn ended_claim(&self, id: &ClaimId, now_ms: Millis) -> Option<EndedClaim> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let entry = self.map.get(id)?;
        let (KeyEntry::Vacant(vacant) | KeyEntry::Pending(PendingKey { vacant, .. })) = &*entry else { return None };
        let ended = vacant.ended.as_deref().filter(|ended| now_ms < ended.ended_ms + limits::ENDED_CLAIMS_MS)?;
        Some(ended.clone())
    }
}
