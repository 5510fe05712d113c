//! Notices as the shard acts on them, and the claims that commands mean which outlived a panic.

use std::collections::HashSet;

use super::Running;
use crate::admission::keys::Found;
use crate::engine::{Event, Place};
use crate::model::{ClaimId, Fence};
use crate::shard::notice::Notice;

impl Running {
    /// Fences of claims of which nobody was told.
    pub(in crate::shard) fn untold(&self) -> HashSet<Fence> {
        self.shard.untold().chain(self.rolled_back.iter().map(|(_, fence)| *fence)).collect()
    }

    /// Claims whose grants a panic keeps from their callers, or whose roll-back it undoes.
    pub(in crate::shard) fn undelivered(&self) -> Vec<(ClaimId, Fence)> {
        let answers = self.waiting.iter().chain(&self.blocked).chain(&self.outgoing);
        let made = answers.filter_map(|answer| {
            let place = answer.made?;
            Some((self.shard.claim_id(place)?.clone(), place.fence))
        });
        made.chain(self.rolled_back.iter().cloned()).collect()
    }

    /// Learns what became of answers.
    pub(super) fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Undelivered(id, fence) => {
                if let Some(place) = self.find_held(&id, fence) {
                    self.roll_back(place);
                }
            }
            Notice::Rules(rules) => self.shard.set_rules(&rules, self.now_ms),
            // A place of a life before is of no claim any more, or of that very one; and the deadlines of all started anew.
            Notice::Departed(places, at_ms) => {
                places.into_iter().for_each(|place| self.on(Event::Departed { place, at_ms }));
            }
        }
    }

    /// Where the shard holds the claim with this fence, as the directory knows it.
    fn find_held(&self, id: &ClaimId, fence: Fence) -> Option<Place> {
        match self.dispatch.keys.find(id) {
            Found::Held(hold) if hold.shard == self.port.shard && hold.place.fence == fence => Some(hold.place),
            _ => None,
        }
    }

    /// Brings the place of a command up to date that outlived a panic: ordinals are drawn anew with each life of the
    /// shard, and what the command means is the claim with its fence.
    pub(super) fn resolve(&self, id: &ClaimId, place: &mut Place) {
        if !self.shard.is_held(*place) {
            self.find_again(id, place);
        }
    }

    #[cold]
    fn find_again(&self, id: &ClaimId, place: &mut Place) {
        if let Some(found) = self.find_held(id, place.fence) {
            *place = found;
        }
    }
}
