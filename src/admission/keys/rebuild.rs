//! How the directory comes to know what the shards hold without claims: at a recovery, when a shard was restarted, and when a
//! pool is deleted.

use std::collections::HashMap;
use std::sync::Arc;

use dashmap::Entry as Slot;

use super::{Entry, Hold, Keys, ShardRef, Ticket, Unstoreds};
use crate::engine::Place;
use crate::model::{ClaimId, ClaimSpec, Fence};
use crate::shard::ClaimItem;

/// Keys that a shard holds: where, and what each claim keeps of its request.
pub type HeldKeys = HashMap<ClaimId, (Place, Option<Arc<ClaimSpec>>)>;

impl Keys {
    /// A row names the key as held. Of two such the higher fence stays; the loser, which may be this very one, is
    /// returned and must yield. A key that somebody is about to claim stays theirs.
    pub fn recover(&self, id: ClaimId, hold: Hold, spec: Option<Arc<ClaimSpec>>) -> Option<Hold> {
        let charge = |id: &ClaimId| self.tenants.charge(id, spec.clone(), hold.shard.pool);
        match self.map.entry(id) {
            Slot::Vacant(slot) => {
                let charge = charge(slot.key());
                slot.insert(Entry::Held { hold, unstored: Unstoreds::new(), charge });
                None
            }
            Slot::Occupied(mut slot) => {
                let ours = match slot.get() {
                    Entry::Pending { .. } => false,
                    Entry::Held { hold: other, .. } => other.place.fence < hold.place.fence,
                    Entry::Unreadable { fence, .. } => *fence <= hold.place.fence,
                    Entry::Gone { .. } => true,
                };
                if !ours {
                    return Some(hold);
                }
                let charge = charge(slot.key());
                let (loser, unstored) = match slot.get_mut() {
                    Entry::Held { hold: other, unstored, .. } => (Some(*other), std::mem::take(unstored)),
                    Entry::Gone { unstored } => (None, std::mem::take(unstored)),
                    _ => (None, Unstoreds::new()),
                };
                slot.insert(Entry::Held { hold, unstored, charge });
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
    ) -> Option<Hold> {
        let charge = |id: &ClaimId| self.tenants.charge(id, spec, shard.pool);
        match self.map.entry(id) {
            Slot::Vacant(slot) => {
                let _charge = charge(slot.key());
                slot.insert(Entry::Unreadable { fence, shard, _charge });
                None
            }
            Slot::Occupied(mut slot) => match slot.get() {
                Entry::Held { hold, .. } if hold.place.fence < fence => {
                    let loser = *hold;
                    let _charge = charge(slot.key());
                    slot.insert(Entry::Unreadable { fence, shard, _charge });
                    Some(loser)
                }
                _ => None,
            },
        }
    }

    /// The holder of `ticket` cannot decide for the key before the service is restarted, or a pool deleted: what its
    /// claim became is a matter of rows that cannot be read. Returns those who joined.
    pub fn suspend(&self, id: &ClaimId, ticket: Ticket, shard: ShardRef, fence: Fence) -> Vec<Box<ClaimItem>> {
        let Some(mut entry) = self.map.get_mut(id) else { return Vec::new() };
        let Entry::Pending { ticket: ours, joiners, charge, .. } = &mut *entry else { return Vec::new() };
        if *ours != ticket {
            return Vec::new();
        }
        let joiners = joiners.take().map_or_else(Vec::new, |joiners| (*joiners).into());
        let _charge = charge.take().unwrap_or_else(|| self.tenants.charge(id, None, shard.pool));
        *entry = Entry::Unreadable { fence, shard, _charge };
        joiners
    }

    /// The claim with this fence, which kept the key unreadable, is over.
    pub fn end_unreadable(&self, id: &ClaimId, fence: Fence) {
        self.map.remove_if(id, |_, entry| matches!(entry, Entry::Unreadable { fence: known, .. } if *known == fence));
    }

    /// Forgets all that the shards of a deleted pool held or were known to hold, and their records. Costs a walk over the
    /// directory.
    pub fn forget_pool(&self, pool: u32) {
        self.rebind(|shard| shard.pool == pool, None);
        self.map.retain(|id, entry| match entry {
            Entry::Unreadable { fence, shard, .. } if shard.pool == pool => {
                self.adoption.over(id.hash64(), *fence);
                false
            }
            _ => true,
        });
    }

    /// The shard was restarted from the store, which has all that it decided and kept: what it still holds is
    /// `held`, under new ordinals; what else stood here was undone with it. Returns by way of `held` what is left:
    /// claims whose keys are not held here as the shard's, for [`Self::recover`]. A key that stays held is never free
    /// in between. None: nobody knows what it holds, and all that stood here is over. Costs a walk over the directory.
    pub fn rebind(&self, restarted: impl Fn(ShardRef) -> bool, mut held: Option<&mut HeldKeys>) {
        self.map.retain(|id, entry| {
            let (Entry::Pending { unstored, .. } | Entry::Held { unstored, .. } | Entry::Gone { unstored }) = entry
            else {
                return true;
            };
            unstored.retain(|known| !restarted(known.shard));
            match entry {
                Entry::Held { hold, unstored, charge } if restarted(hold.shard) => {
                    match &mut held {
                        Some(held) => {
                            if let Some((place, _)) = held.get(id)
                                && place.fence == hold.place.fence
                                && let Some((place, spec)) = held.remove(id)
                            {
                                hold.place = place;
                                charge.set(spec);
                                return true;
                            }
                        }
                        None => self.adoption.over(id.hash64(), hold.place.fence),
                    }
                    let unstored = std::mem::take(unstored);
                    let keep = !unstored.is_empty();
                    *entry = Entry::Gone { unstored };
                    keep
                }
                Entry::Gone { unstored } => !unstored.is_empty(),
                _ => true,
            }
        });
    }
}
