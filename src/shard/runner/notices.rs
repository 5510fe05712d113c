//! Notices as the shard acts on them, and the claims that commands mean which outlived a panic.

use std::collections::HashSet;

use super::ShardRunner;
use crate::admission::key_directory::KeyLookup;
use crate::engine::{ClaimHandle, Event};
use crate::model::{ClaimId, Fence};
use crate::shard::notice::ShardNotice;

impl ShardRunner {
    /// Fences of claims of which nobody was told.
    pub(in crate::shard) fn undisclosed(&self) -> HashSet<Fence> {
        self.shard.undisclosed().chain(self.rolled_back.iter().map(|(_, fence)| *fence)).collect()
    }

    /// Claims whose grants a panic keeps from their callers, or whose roll-back it undoes.
    pub(in crate::shard) fn undelivered(&self) -> Vec<(ClaimId, Fence)> {
        let answers = self.awaiting_store.iter().chain(&self.awaiting_other_shards).chain(&self.new_replies);
        let made = answers.filter_map(|answer| {
            let place = answer.granted?;
            Some((self.shard.claim_id(place)?.clone(), place.fence))
        });
        made.chain(self.rolled_back.iter().cloned()).collect()
    }

    /// Learns what became of answers.
    pub(super) fn on_notice(&mut self, notice: ShardNotice) {
        match notice {
            ShardNotice::Undelivered(id, fence) => {
                if let Some(place) = self.find_held(&id, fence) {
                    self.roll_back(place);
                }
            }
            ShardNotice::Rules(rules) => self.shard.set_config(&rules, self.now_ms),
            // A place of a life before is of no claim any more, or of that very one; and the deadlines of all started anew.
            ShardNotice::ReplySent(places, at_ms) => {
                places.into_iter().for_each(|place| self.apply(Event::ReplySent { place, at_ms }));
            }
        }
    }

    /// Where the shard holds the claim with this fence, as the directory knows it.
    fn find_held(&self, id: &ClaimId, fence: Fence) -> Option<ClaimHandle> {
        match self.dispatch.keys.lookup(id) {
            KeyLookup::Held(hold) if hold.shard == self.handle.shard && hold.handle.fence == fence => Some(hold.handle),
            _ => None,
        }
    }

    /// Brings the place of a command up to date that outlived a panic: ordinals are drawn anew with each life of the
    /// shard, and what the command means is the claim with its fence.
    pub(super) fn refresh_handle(&self, id: &ClaimId, place: &mut ClaimHandle) {
        if !self.shard.is_held(*place) {
            self.find_current_handle(id, place);
        }
    }

    #[cold]
    fn find_current_handle(&self, id: &ClaimId, place: &mut ClaimHandle) {
        if let Some(found) = self.find_held(id, place.fence) {
            *place = found;
        }
    }
}
