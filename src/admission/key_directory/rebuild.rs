//! How the directory comes to know what the shards hold without claims: at a recovery, when a shard was restarted, and when a
//! pool is deleted.

use std::collections::HashMap;
use std::sync::Arc;

use dashmap::Entry as Slot;

use super::{KeyDirectory, KeyEntry, KeyHolder, KeyTicket, PendingWrites, ShardRef};
use crate::engine::ClaimHandle;
use crate::model::{ClaimId, ClaimSpec, Fence};
use crate::shard::PendingClaim;

/// Keys that a shard holds: where, and what each claim keeps of its request.
pub type RecoveredKeys = HashMap<ClaimId, (ClaimHandle, Option<Arc<ClaimSpec>>)>;

impl KeyDirectory {
    /// A row names the key as held. Of two such the higher fence stays; the loser, which may be this very one, is
    /// returned and must yield. A key that somebody is about to claim stays theirs.
    pub fn recover(&self, id: ClaimId, hold: KeyHolder, spec: Option<Arc<ClaimSpec>>) -> Option<KeyHolder> {
        let charge = |id: &ClaimId| self.tenants.charge(id, spec.clone(), hold.shard.pool);
        match self.map.entry(id) {
            Slot::Vacant(slot) => {
                let charge = charge(slot.key());
                slot.insert(KeyEntry::Held { holder: hold, pending_writes: PendingWrites::new(), charge });
                None
            }
            Slot::Occupied(mut slot) => {
                let ours = match slot.get() {
                    KeyEntry::Pending { .. } => false,
                    KeyEntry::Held { holder: other, .. } => other.handle.fence < hold.handle.fence,
                    KeyEntry::Unreadable { fence, .. } => *fence <= hold.handle.fence,
                    KeyEntry::Gone { .. } => true,
                };
                if !ours {
                    return Some(hold);
                }
                let charge = charge(slot.key());
                let (loser, unstored) = match slot.get_mut() {
                    KeyEntry::Held { holder: other, pending_writes: unstored, .. } => {
                        (Some(*other), std::mem::take(unstored))
                    }
                    KeyEntry::Gone { pending_writes: unstored } => (None, std::mem::take(unstored)),
                    _ => (None, PendingWrites::new()),
                };
                slot.insert(KeyEntry::Held { holder: hold, pending_writes: unstored, charge });
                loser
            }
        }
    }

    /// A row of a shard that does not serve names the key: nobody may claim it, unless a higher fence holds it.
    /// Returns a hold with a lower fence, which must yield.
    pub fn recover_unreadable(
        &self,
        id: ClaimId,
        shard: ShardRef,
        fence: Fence,
        spec: Option<Arc<ClaimSpec>>,
    ) -> Option<KeyHolder> {
        let charge = |id: &ClaimId| self.tenants.charge(id, spec, shard.pool);
        match self.map.entry(id) {
            Slot::Vacant(slot) => {
                let _charge = charge(slot.key());
                slot.insert(KeyEntry::Unreadable { fence, shard, _charge });
                None
            }
            Slot::Occupied(mut slot) => match slot.get() {
                KeyEntry::Held { holder: hold, .. } if hold.handle.fence < fence => {
                    let loser = *hold;
                    let _charge = charge(slot.key());
                    slot.insert(KeyEntry::Unreadable { fence, shard, _charge });
                    Some(loser)
                }
                _ => None,
            },
        }
    }

    /// The holder of `ticket` cannot decide for the key before the service is restarted, or a pool deleted: what its
    /// claim became is a matter of rows that cannot be read. Returns those who joined.
    pub fn mark_unreadable(
        &self,
        id: &ClaimId,
        ticket: KeyTicket,
        shard: ShardRef,
        fence: Fence,
    ) -> Vec<Box<PendingClaim>> {
        let Some(mut entry) = self.map.get_mut(id) else { return Vec::new() };
        let KeyEntry::Pending { ticket: ours, waiting_duplicates: joiners, charge, .. } = &mut *entry else {
            return Vec::new();
        };
        if *ours != ticket {
            return Vec::new();
        }
        let joiners = joiners.take().map_or_else(Vec::new, |joiners| (*joiners).into());
        let _charge = charge.take().unwrap_or_else(|| self.tenants.charge(id, None, shard.pool));
        *entry = KeyEntry::Unreadable { fence, shard, _charge };
        joiners
    }

    /// The claim with this fence, which kept the key unreadable, is over.
    pub fn end_unreadable(&self, id: &ClaimId, fence: Fence) {
        self.map
            .remove_if(id, |_, entry| matches!(entry, KeyEntry::Unreadable { fence: known, .. } if *known == fence));
    }

    /// Forgets all that the shards of a deleted pool held or were known to hold, and their records. Costs a walk over the
    /// directory.
    pub fn forget_pool(&self, pool: u32) {
        self.rebind_shard(|shard| shard.pool == pool, None);
        self.map.retain(|id, entry| match entry {
            KeyEntry::Unreadable { fence, shard, .. } if shard.pool == pool => {
                self.adoption.record_ended(id.hash64(), *fence);
                false
            }
            _ => true,
        });
    }

    /// The shard was restarted from the store, which has all that it decided and kept: what it still holds is
    /// `held`, under new ordinals; what else stood here was undone with it. Returns by way of `held` what is left:
    /// claims whose keys are not held here as the shard's, for [`Self::recover`]. A key that stays held is never free
    /// in between. None: nobody knows what it holds, and all that stood here is over. Costs a walk over the directory.
    pub fn rebind_shard(&self, restarted: impl Fn(ShardRef) -> bool, mut held: Option<&mut RecoveredKeys>) {
        self.map.retain(|id, entry| {
            let (KeyEntry::Pending { pending_writes: unstored, .. }
            | KeyEntry::Held { pending_writes: unstored, .. }
            | KeyEntry::Gone { pending_writes: unstored }) = entry
            else {
                return true;
            };
            unstored.retain(|known| !restarted(known.shard));
            match entry {
                KeyEntry::Held { holder: hold, pending_writes: unstored, charge } if restarted(hold.shard) => {
                    match &mut held {
                        Some(held) => {
                            if let Some((place, _)) = held.get(id)
                                && place.fence == hold.handle.fence
                                && let Some((place, spec)) = held.remove(id)
                            {
                                hold.handle = place;
                                charge.set(spec);
                                return true;
                            }
                        }
                        None => self.adoption.record_ended(id.hash64(), hold.handle.fence),
                    }
                    let unstored = std::mem::take(unstored);
                    let keep = !unstored.is_empty();
                    *entry = KeyEntry::Gone { pending_writes: unstored };
                    keep
                }
                KeyEntry::Gone { pending_writes: unstored } => !unstored.is_empty(),
                _ => true,
            }
        });
    }
}
