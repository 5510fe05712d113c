//! Gangs: claims of one call that are all granted or none, over shards.
//!
//! A member is granted as *provisional*: it holds its worker, but its key stays pending, no deadline of it runs, and nobody
//! is shown it. When the store has all members, one shard, the gang's *home*, records the gang's row: from then on the gang
//! is committed, whatever happens. Then every shard makes its members claims like any other, and when the store has that,
//! the row goes. Recovery reads it from the rows: a provisional member whose gang has its row is committed, any other is
//! given back. So no crash leaves a gang in parts (`G1`).

use std::collections::BTreeSet;

use hashbrown::HashMap;

use crate::engine::effect::{Effect, EndReason, EngineReply};
use crate::engine::event::{ClaimHandle, GangAction};
use crate::engine::shard::Shard;
use crate::model::{ClaimId, Fence, GangRef};

/// What a shard knows of gangs.
#[derive(Debug, Default)]
pub struct GangTable {
    /// Provisional claims, by ordinal.
    members: HashMap<u32, GangRef>,
    /// Gangs whose home this is and that are committed.
    committed: BTreeSet<Fence>,
    /// Of these the journal does not have the latest.
    changed: BTreeSet<Fence>,
}

impl GangTable {
    /// The gang of a provisional claim.
    pub fn gang_of(&self, claim: u32) -> Option<GangRef> {
        if self.members.is_empty() { None } else { self.members.get(&claim).copied() }
    }

    /// A claim is provisional.
    pub fn add_member(&mut self, claim: u32, gang: GangRef) {
        self.members.insert(claim, gang);
    }

    /// It is no more.
    pub fn remove_member(&mut self, claim: u32) {
        if !self.members.is_empty() {
            self.members.remove(&claim);
        }
    }

    /// A row was read.
    pub fn load_row(&mut self, id: Fence, there: bool) {
        if there {
            self.committed.insert(id);
        } else {
            self.committed.remove(&id);
        }
    }

    /// Gangs that are committed, as far as this home knows.
    pub fn rows(&self) -> impl Iterator<Item = Fence> {
        self.committed.iter().copied()
    }

    /// Whether the journal lacks rows.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The rows that it lacks, each with whether it is there.
    pub fn take_changed(&mut self) -> impl Iterator<Item = (Fence, bool)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.committed.contains(&id)))
    }
}

impl Shard {
    /// Something happens to a gang.
    pub(in crate::engine) fn apply_gang_action<R>(
        &mut self,
        id: Fence,
        act: GangAction,
        effects: &mut Vec<Effect<R>>,
    ) -> EngineReply {
        match act {
            GangAction::Record | GangAction::Forget | GangAction::Retract => {
                let moved = match act {
                    GangAction::Record => self.gangs.committed.insert(id),
                    _ => self.gangs.committed.remove(&id),
                };
                if moved {
                    self.seq += 1;
                    self.gangs.changed.insert(id);
                }
                EngineReply::Released
            }
            GangAction::Count => EngineReply::GangMembers(self.gang_members(id).len()),
            GangAction::Abort => {
                for place in self.gang_members(id) {
                    self.end_claim(place, EndReason::RolledBack, effects);
                }
                EngineReply::Released
            }
            GangAction::Commit => {
                let mut committed = Vec::new();
                self.begin_batch();
                for place in self.gang_members(id) {
                    self.gangs.remove_member(place.claim);
                    self.index_evictable(place.claim);
                    self.record_change_in_batch(place.worker);
                    let Some(id) = self.claims.get(place).map(|claim| claim.id.clone()) else { continue };
                    effects.push(Effect::ClaimCommitted { id: id.clone(), place });
                    committed.extend(self.grant(place).map(|grant| (id, grant)));
                }
                self.end_batch();
                EngineReply::Committed(committed)
            }
        }
    }

    fn gang_members(&self, id: Fence) -> Vec<ClaimHandle> {
        let of = self.gangs.members.iter().filter(|(_, gang)| gang.id == id).map(|(&claim, _)| claim);
        let mut places: Vec<ClaimHandle> = of
            .filter_map(|claim| {
                let held = self.claims.by_ordinal(claim)?;
                Some(ClaimHandle { claim, worker: held.worker, fence: held.fence })
            })
            .collect();
        // As they were granted.
        places.sort_unstable_by_key(|place| place.fence);
        places
    }

    /// Whether the claim is held for a gang that is not committed.
    #[must_use]
    pub fn is_provisional(&self, place: ClaimHandle) -> bool {
        self.gangs.gang_of(place.claim).is_some()
    }

    /// Claims that are held for gangs that are not committed.
    pub fn provisional(&self) -> impl Iterator<Item = (GangRef, &ClaimId, ClaimHandle)> {
        self.gangs.members.iter().filter_map(|(&claim, &gang)| {
            let held = self.claims.by_ordinal(claim)?;
            Some((gang, &held.id, ClaimHandle { claim, worker: held.worker, fence: held.fence }))
        })
    }

    /// Gangs that are committed and whose home this is.
    pub fn committed_gangs(&self) -> impl Iterator<Item = Fence> {
        self.gangs.rows()
    }
}
