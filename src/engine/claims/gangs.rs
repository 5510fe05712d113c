//! Gangs: claims of one request that are granted all or none, across shards.
//!
//! A member is granted as *provisional*: it holds its worker, but its key stays pending, none of its deadlines runs,
//! and nobody is shown it. When the store has all members, one shard, the gang's *home*, records the gang's row: from
//! then on the gang is committed. Then every shard makes its members ordinary claims, and when the store has that,
//! the row is deleted. Recovery decides from the rows: a provisional member whose gang has its row is committed, any
//! other is rolled back. So no crash leaves a partial gang (`G1`).

use std::collections::BTreeSet;

use crate::collections::HashMap;
use crate::engine::effect::{Effect, EndReason, EngineReply};
use crate::engine::event::{ClaimHandle, GangAction};
use crate::engine::shard::Shard;
use crate::model::{ClaimId, Fence, GangRef};

/// Gangs of which a shard has members or is the home.
#[derive(Debug, Default)]
pub struct GangTable {
    /// Gangs of provisional claims, by ordinal.
    members: HashMap<u32, GangRef>,
    /// Committed gangs whose home is this shard.
    committed: BTreeSet<Fence>,
    /// Gangs whose row changed since the journal last took it.
    changed: BTreeSet<Fence>,
}

impl GangTable {
    /// Gang of a claim, if the claim is provisional.
    pub fn gang_of(&self, claim: u32) -> Option<GangRef> {
        if self.members.is_empty() { None } else { self.members.get(&claim).copied() }
    }

    /// Marks a claim as provisional.
    pub fn add_member(&mut self, claim: u32, gang: GangRef) {
        let before = self.members.insert(claim, gang);
        debug_assert!(before.is_none(), "G1: a claim joins a second gang");
    }

    /// Ends the provisional state of a claim.
    pub fn remove_member(&mut self, claim: u32) {
        if !self.members.is_empty() {
            self.members.remove(&claim);
        }
    }

    /// Loads the row of a committed gang.
    pub fn load_row(&mut self, id: Fence) {
        self.committed.insert(id);
    }

    /// Replays the deletion of a gang's row.
    pub fn unload_row(&mut self, id: Fence) {
        self.committed.remove(&id);
    }

    /// Committed gangs whose home is this shard.
    pub fn rows(&self) -> impl Iterator<Item = Fence> {
        self.committed.iter().copied()
    }

    /// Whether rows changed since the journal last took them.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Takes the changed rows, each with whether it exists.
    pub fn take_changed(&mut self) -> impl Iterator<Item = (Fence, bool)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.committed.contains(&id)))
    }
}

impl Shard {
    /// Applies a transition to a gang.
    pub(in crate::engine) fn apply_gang_action(
        &mut self,
        id: Fence,
        action: GangAction,
        effects: &mut Vec<Effect>,
    ) -> EngineReply {
        match action {
            GangAction::Record | GangAction::Forget | GangAction::Retract => {
                let changed = match action {
                    GangAction::Record => self.gangs.committed.insert(id),
                    _ => self.gangs.committed.remove(&id),
                };
                if changed {
                    self.changes.record();
                    self.gangs.changed.insert(id);
                }
                EngineReply::Released
            }
            GangAction::Count => EngineReply::GangMembers(self.gang_members(id).len()),
            GangAction::Abort => {
                for handle in self.gang_members(id) {
                    self.end_claim(handle, EndReason::RolledBack, effects);
                }
                EngineReply::Released
            }
            GangAction::Commit => {
                let mut committed = Vec::new();
                self.begin_batch();
                for handle in self.gang_members(id) {
                    self.gangs.remove_member(handle.claim);
                    self.index_evictable(handle.claim);
                    self.record_change_in_batch(handle.worker);
                    let Some(id) = self.claims.get(handle).map(|claim| claim.id.clone()) else { continue };
                    effects.push(Effect::ClaimCommitted { id: id.clone(), handle });
                    committed.extend(self.grant(handle).map(|grant| (id, grant)));
                }
                self.end_batch();
                debug_assert!(self.gang_members(id).is_empty(), "G1: a committed gang has provisional members");
                EngineReply::Committed(committed)
            }
        }
    }

    fn gang_members(&self, id: Fence) -> Vec<ClaimHandle> {
        let ordinals = self.gangs.members.iter().filter(|(_, gang)| gang.id == id).map(|(&claim, _)| claim);
        let mut handles: Vec<ClaimHandle> = ordinals
            .filter_map(|claim| {
                let live = self.claims.by_ordinal(claim)?;
                Some(ClaimHandle { claim, worker: live.worker, fence: live.fence })
            })
            .collect();
        // In the order of their grants.
        handles.sort_unstable_by_key(|handle| handle.fence);
        handles
    }

    /// Whether the claim belongs to a gang that is not committed.
    #[must_use]
    pub fn is_provisional(&self, handle: ClaimHandle) -> bool {
        self.gangs.gang_of(handle.claim).is_some()
    }

    /// Claims of gangs that are not committed.
    pub fn provisional(&self) -> impl Iterator<Item = (GangRef, &ClaimId, ClaimHandle)> {
        self.gangs.members.iter().filter_map(|(&claim, &gang)| {
            let live = self.claims.by_ordinal(claim)?;
            Some((gang, &live.id, ClaimHandle { claim, worker: live.worker, fence: live.fence }))
        })
    }

    /// Committed gangs whose home is this shard.
    pub fn committed_gangs(&self) -> impl Iterator<Item = Fence> {
        self.gangs.rows()
    }
}
