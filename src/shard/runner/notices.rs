//! Notices, and handles that became stale in a panic.

use std::collections::HashSet;

use super::ShardRunner;
use crate::admission::key::KeyLookup;
use crate::engine::{ClaimHandle, Event};
use crate::model::{ClaimId, Fence};
use crate::shard::notice::ShardNotice;

impl ShardRunner {
    /// Fences of claims that were not disclosed to anybody.
    pub(in crate::shard) fn undisclosed(&self) -> HashSet<Fence> {
        self.shard.undisclosed().chain(self.rolled_back.iter().map(|(_, fence)| *fence)).collect()
    }

    /// Claims whose grants a panic keeps from their callers, or whose roll-back it undoes.
    pub(in crate::shard) fn undelivered(&self) -> Vec<(ClaimId, Fence)> {
        let replies = self.awaiting_store.iter().chain(&self.awaiting_other_shards).chain(&self.new_replies);
        let granted = replies.filter_map(|reply| {
            let handle = reply.granted?;
            Some((self.shard.claim_id(handle)?.clone(), handle.fence))
        });
        granted.chain(self.rolled_back.iter().cloned()).collect()
    }

    /// Handles a notice to the shard.
    pub(super) fn on_notice(&mut self, notice: ShardNotice) {
        match notice {
            ShardNotice::Undelivered(id, fence) => {
                if let Some(handle) = self.find_held(&id, fence) {
                    self.roll_back(handle);
                }
            }
            ShardNotice::Config(config) => self.shard.set_config(&config, self.now_ms),
            // A handle of an earlier life belongs to no claim, or to the same one; and deadlines started over after
            // the panic.
            ShardNotice::ReplySent(handles, at_ms) => {
                handles.into_iter().for_each(|handle| self.apply(Event::ReplySent { handle, at_ms }));
            }
        }
    }

    /// Handle of the claim with this fence, if the directory says that this shard holds it.
    fn find_held(&self, id: &ClaimId, fence: Fence) -> Option<ClaimHandle> {
        match self.dispatch.keys.lookup(id) {
            KeyLookup::Held(holder) if holder.shard == self.handle.shard && holder.handle.fence == fence => {
                Some(holder.handle)
            }
            _ => None,
        }
    }

    /// Refreshes the handle in a command that outlived a panic: each life of the shard assigns new ordinals, and the
    /// command refers to the claim with its fence.
    pub(super) fn refresh_handle(&self, id: &ClaimId, handle: &mut ClaimHandle) {
        if !self.shard.is_held(*handle) {
            self.find_current_handle(id, handle);
        }
    }

    #[cold]
    fn find_current_handle(&self, id: &ClaimId, handle: &mut ClaimHandle) {
        if let Some(current) = self.find_held(id, handle.fence) {
            *handle = current;
        }
    }
}
