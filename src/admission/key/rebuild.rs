//! Rebuilds the directory from what the shards hold: during recovery, after a shard restart, and when a pool is
//! deleted.

use std::sync::Arc;

use dashmap::Entry as Slot;

use super::PendingClaim;
use super::directory::KeyDirectory;
use super::entry::{HeldKey, KeyEntry, KeyHolder, PendingKey, PendingStage, VacantKey};
use crate::admission::lock_order::{self, LockLevel};
use crate::admission::tenant::QuotaLease;
use crate::collections::{HashMap, HashSet};
use crate::engine::ClaimHandle;
use crate::model::{ClaimId, ClaimSpec, Fence};
use crate::shard::{KeyTicket, PendingWrites, ShardLife, ShardRef};

/// Keys that a shard holds: the handle of each claim, and the part of its request that is kept.
pub type RecoveredKeys = HashMap<ClaimId, (ClaimHandle, Option<Arc<ClaimSpec>>)>;

impl KeyDirectory {
    /// Enters a key that a row names as held. Of two holders the one with the higher fence stays; the loser, possibly
    /// this one, is returned and must relinquish its claim. A pending key stays with the owner of its ticket.
    pub fn recover(&self, id: ClaimId, holder: KeyHolder, spec: Option<Arc<ClaimSpec>>) -> Option<KeyHolder> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let charge = |id: &ClaimId| self.tenants.charge(id, spec.clone(), holder.shard.pool);
        match self.map.entry(id) {
            Slot::Vacant(slot) => {
                let charge = charge(slot.key());
                slot.insert(held(holder, PendingWrites::new(), charge));
                None
            }
            Slot::Occupied(mut slot) => {
                let ours = match slot.get() {
                    KeyEntry::Held(other) if other.holder == holder => return None,
                    KeyEntry::Pending(_) => false,
                    KeyEntry::Held(other) => other.holder.handle.fence < holder.handle.fence,
                    KeyEntry::Unreadable { fence, .. } => *fence <= holder.handle.fence,
                    KeyEntry::Vacant(_) | KeyEntry::Poisoned(_) => true,
                };
                if !ours {
                    crate::reached!("recovery: a key is held elsewhere with a higher fence");
                    return Some(holder);
                }
                let charge = charge(slot.key());
                // Answered by the shard that they were sent to, or submitted again.
                let repeated = match slot.get_mut() {
                    KeyEntry::Held(other) => other.repeated.take(),
                    _ => None,
                };
                let (loser, pending_writes) = match slot.get_mut() {
                    KeyEntry::Held(other) => {
                        crate::reached!("recovery: a higher fence takes a key over");
                        (Some(other.holder), std::mem::take(&mut other.pending_writes))
                    }
                    other => (None, other.pending_writes_mut().map(std::mem::take).unwrap_or_default()),
                };
                slot.insert(KeyEntry::Held(HeldKey { holder, pending_writes, charge, repeated }));
                loser
            }
        }
    }

    /// Enters a key that is named by a row of a shard that does not serve. The key becomes unreadable if it is
    /// vacant or held with a lower fence. Returns the holder with the lower fence, which must relinquish its claim.
    pub fn recover_unreadable(
        &self,
        id: ClaimId,
        shard: ShardRef,
        fence: Fence,
        spec: Option<Arc<ClaimSpec>>,
    ) -> Option<KeyHolder> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let charge = |id: &ClaimId| self.tenants.charge(id, spec, shard.pool);
        match self.map.entry(id) {
            Slot::Vacant(slot) => {
                let _charge = charge(slot.key());
                crate::reached!("recovery: a key becomes unreadable");
                slot.insert(KeyEntry::Unreadable { fence, shard, _charge });
                None
            }
            Slot::Occupied(mut slot) => match slot.get() {
                KeyEntry::Held(other) if other.holder.handle.fence < fence => {
                    let loser = other.holder;
                    let _charge = charge(slot.key());
                    slot.insert(KeyEntry::Unreadable { fence, shard, _charge });
                    Some(loser)
                }
                _ => None,
            },
        }
    }

    /// Makes a pending key unreadable until the service restarts or a pool is deleted: the outcome of its claim
    /// depends on rows that cannot be read. Returns the waiting duplicates.
    pub fn mark_unreadable(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        shard: ShardRef,
        fence: Fence,
    ) -> Vec<Box<PendingClaim>> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let Some(mut entry) = self.map.get_mut(id) else { return Vec::new() };
        let KeyEntry::Pending(PendingKey { ticket: ours, duplicates, charge, .. }) = &mut *entry else {
            return Vec::new();
        };
        if *ours != ticket {
            return Vec::new();
        }
        let duplicates = duplicates.take().map_or_else(Vec::new, |duplicates| (*duplicates).into());
        let _charge = charge.take().unwrap_or_else(|| self.tenants.charge(id, None, shard.pool));
        crate::reached!("gang: a member becomes unreadable while its home cannot be read");
        *entry = KeyEntry::Unreadable { fence, shard, _charge };
        duplicates
    }

    /// Ends the claim with this fence that kept the key unreadable.
    pub fn end_unreadable(&self, id: &ClaimId, fence: Fence) {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        self.map
            .remove_if(id, |_, entry| matches!(entry, KeyEntry::Unreadable { fence: record, .. } if *record == fence));
    }

    /// Claims with these tickets that this shard is being asked for. Walks the directory.
    #[must_use]
    pub fn find_asking(&self, shard: ShardRef, tickets: &HashSet<KeyTicket>) -> Vec<(ClaimId, KeyTicket)> {
        let is_asking = |entry: &KeyEntry| match entry {
            KeyEntry::Pending(PendingKey { ticket, stage: PendingStage::Asking(_, asked), .. }) => {
                (*asked == shard && tickets.contains(ticket)).then_some(*ticket)
            }
            _ => None,
        };
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        self.map.iter().filter_map(|entry| Some((entry.key().clone(), is_asking(entry.value())?))).collect()
    }

    /// Forgets the keys and records of a deleted pool's shards. Returns the repeated claims that were not answered. Walks
    /// the directory.
    #[must_use]
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub fn forget_pool(&self, pool: u32) -> Vec<Box<PendingClaim>> {
        let unanswered = self.forget_shards(|shard| shard.pool == pool);
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        self.map.retain(|id, entry| match entry {
            KeyEntry::Unreadable { fence, shard, .. } if shard.pool == pool => {
                self.adoption.record_ended(id.hash64(), *fence);
                false
            }
            _ => true,
        });
        unanswered
    }

    /// Ends all entries of shards whose claims are unknown. Returns the repeated claims that were not answered. Walks
    /// the directory.
    #[must_use]
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub fn forget_shards(&self, is_forgotten: impl Fn(ShardRef) -> bool) -> Vec<Box<PendingClaim>> {
        self.retain_held(is_forgotten, |id, held| {
            self.adoption.record_ended(id.hash64(), held.holder.handle.fence);
            false
        })
    }

    /// Rebinds the keys of a shard that was restarted from the store. `recovered` has the claims that it still holds,
    /// under new ordinals; everything else that was held there is undone. What remains in `recovered` afterwards are
    /// claims whose keys are not held by the shard, for [`Self::recover`]. A key that stays held is never vacant in
    /// between. Returns the repeated claims of those that are undone: they must be submitted again once the shard
    /// serves. Walks the directory.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub fn rebind_shard(
        &self,
        restarted: ShardRef,
        life: ShardLife,
        recovered: &mut RecoveredKeys,
    ) -> Vec<Box<PendingClaim>> {
        self.retain_held(
            |shard| shard == restarted,
            |id, held| {
                // A claim with another fence stays in `recovered`.
                let is_same = recovered.get(id).is_some_and(|(handle, _)| handle.fence == held.holder.handle.fence);
                let Some((handle, spec)) = is_same.then(|| recovered.remove(id)).flatten() else { return false };
                (held.holder.handle, held.holder.life) = (handle, life);
                held.charge.set(spec);
                true
            },
        )
    }

    /// Removes the records of the affected shards, and the keys that they hold and `keep` rejects. Returns the repeated
    /// claims of those keys.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    fn retain_held(
        &self,
        is_affected: impl Fn(ShardRef) -> bool,
        mut keep: impl FnMut(&ClaimId, &mut HeldKey) -> bool,
    ) -> Vec<Box<PendingClaim>> {
        let _level = lock_order::acquire(LockLevel::KeyEntry);
        let mut unanswered = Vec::new();
        self.map.retain(|id, entry| {
            let Some(pending_writes) = entry.pending_writes_mut() else { return true };
            pending_writes.retain(|record| !is_affected(record.shard));
            match entry {
                KeyEntry::Held(held) if is_affected(held.holder.shard) => {
                    if keep(id, held) {
                        return true;
                    }
                    unanswered.append(&mut held.take_all_repeated());
                    let vacant = VacantKey { pending_writes: std::mem::take(&mut held.pending_writes), ended: None };
                    let keep = !vacant.is_forgotten();
                    *entry = KeyEntry::Vacant(vacant);
                    keep
                }
                KeyEntry::Vacant(vacant) => !vacant.is_forgotten(),
                _ => true,
            }
        });
        unanswered
    }
}

fn held(holder: KeyHolder, pending_writes: PendingWrites, charge: QuotaLease) -> KeyEntry {
    KeyEntry::Held(HeldKey { holder, pending_writes, charge, repeated: None })
}
