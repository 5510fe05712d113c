//! Notices, and what a panic leaves to the next life.

use std::collections::HashSet;

use super::{ShardEvent, ShardRunner};
use crate::engine::Event;
use crate::model::{ClaimId, Fence};
use crate::shard::event::ShardSink;
use crate::shard::notice::ShardNotice;
use crate::shard::step_injection::ProtocolRule;

impl<S: ShardSink> ShardRunner<S> {
    /// Fences of claims that were not disclosed to anybody. A reply that the end of this life drops discloses nothing.
    pub(in crate::shard) fn undisclosed(&self) -> HashSet<Fence> {
        self.shard.undisclosed().chain(self.rolled_back.iter().map(|(_, fence)| *fence)).collect()
    }

    /// Claims whose grants a panic keeps from their callers, or whose roll-back it undoes.
    pub(in crate::shard) fn undelivered(&self) -> Vec<(ClaimId, Fence)> {
        let replies = self.awaiting_store.iter().chain(&self.awaiting_other_shards).chain(&self.new_replies);
        let granted = replies.filter_map(|reply| {
            let handle = reply.granted()?;
            Some((self.shard.claim_id(handle)?.clone(), handle.fence))
        });
        let stale = self.events.iter().filter_map(|event| match event {
            ShardEvent::StaleRollback { id, fence } => Some((id.clone(), *fence)),
            _ => None,
        });
        granted.chain(self.rolled_back.iter().cloned()).chain(stale).collect()
    }

    /// Handles a notice to the shard.
    pub(super) fn on_notice(&mut self, notice: ShardNotice) {
        match notice {
            ShardNotice::Rollback { id, handle, life } if life == self.life || !ProtocolRule::LifeCheck.holds() => {
                if self.shard.claim_id(handle) == Some(&id) {
                    self.roll_back(handle);
                }
            }
            ShardNotice::Rollback { id, handle, .. } => {
                self.events.push(ShardEvent::StaleRollback { id, fence: handle.fence });
            }
            ShardNotice::Undelivered(id, fence) => self.events.push(ShardEvent::StaleRollback { id, fence }),
            // An earlier life was loaded anew since, and lost the key then.
            ShardNotice::Relinquish { life, .. } if life != self.life => {}
            ShardNotice::Relinquish { handle, .. } => drop(self.apply(Event::Relinquish { handle })),
            ShardNotice::CancelReservation(id) => drop(self.apply(Event::CancelReservation { id })),
            ShardNotice::Cancelled(ticket) => drop(self.cancelled.insert(ticket)),
            ShardNotice::Config(config) => self.shard.set_config(&config, self.now_ms),
            // A handle of an earlier life belongs to no claim, or to the same one; and deadlines started over after
            // the panic.
            ShardNotice::ReplySent(handles, at_ms) => {
                handles.into_iter().for_each(|handle| drop(self.apply(Event::ReplySent { handle, at_ms })));
            }
        }
    }
}
