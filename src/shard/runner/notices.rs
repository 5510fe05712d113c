//! Notices, and what a panic leaves to the next life.

use super::{PendingReply, ShardEvent, ShardRunner};
use crate::collections::HashMap;
use crate::engine::{ClaimDisclosure, Event};
use crate::model::{ClaimId, Fence, UnreadReply};
use crate::shard::event::ShardSink;
use crate::shard::notice::{OfferedWorkers, ShardNotice};
use crate::shard::step_injection::ProtocolRule;

impl<S: ShardSink> ShardRunner<S> {
    /// Takes back the replies that the end of this life drops: they disclose nothing.
    pub(in crate::shard) fn drop_references(&mut self) {
        let replies = self.awaiting_store.iter().chain(&self.awaiting_other_shards).chain(&self.new_replies);
        for handle in replies.filter_map(PendingReply::reference) {
            self.shard.remove_reference(handle);
        }
    }

    /// Disclosure of claims that the next life may roll back.
    pub(in crate::shard) fn revocable(&self) -> HashMap<Fence, ClaimDisclosure> {
        let rolled_back = self.rolled_back.iter().map(|(_, fence)| (*fence, ClaimDisclosure::default()));
        self.shard.revocable().chain(rolled_back).collect()
    }

    /// Replies that a panic keeps from their callers, and that leave their claims to nobody, and what it undoes of the
    /// consequences of others.
    pub(in crate::shard) fn undelivered(&self) -> Vec<(ClaimId, Fence, UnreadReply)> {
        let replies = self.awaiting_store.iter().chain(&self.awaiting_other_shards).chain(&self.new_replies);
        let granted = replies.filter_map(PendingReply::granted);
        let granted = granted.filter_map(|handle| Some((self.shard.claim_id(handle)?, handle.fence)));
        let rolled_back = self.rolled_back.iter().map(|(id, fence)| (id, *fence));
        let grants = granted.chain(rolled_back).chain(self.shard.orphans());
        let stale = self.events.iter().filter_map(|event| match event {
            ShardEvent::StaleUnread { id, fence, reply } => Some((id.clone(), *fence, *reply)),
            _ => None,
        });
        grants.map(|(id, fence)| (id.clone(), fence, UnreadReply::Grant)).chain(stale).collect()
    }

    /// Handles a notice to the shard.
    pub(super) fn on_notice(&mut self, notice: ShardNotice) {
        match notice {
            ShardNotice::Unread { id, handle, life, reply }
                if life == self.life || !ProtocolRule::LifeCheck.holds() =>
            {
                if self.shard.claim_id(handle) == Some(&id) {
                    match reply {
                        UnreadReply::Grant => self.roll_back(handle),
                        UnreadReply::Reference => self.drop_reference(handle),
                    }
                }
            }
            ShardNotice::Unread { id, handle, reply, .. } => {
                self.events.push(ShardEvent::StaleUnread { id, fence: handle.fence, reply });
            }
            ShardNotice::Undelivered(id, fence, reply) => {
                self.events.push(ShardEvent::StaleUnread { id, fence, reply });
            }
            // An earlier life was loaded anew since, and lost the key then.
            ShardNotice::Relinquish { life, .. } if life != self.life => {}
            ShardNotice::Relinquish { handle, .. } => drop(self.apply(Event::Relinquish { handle })),
            ShardNotice::CancelReservation(id) => drop(self.apply(Event::CancelReservation { id })),
            ShardNotice::Offer(OfferedWorkers::One(worker)) => self.shard.offer_again(worker),
            ShardNotice::Offer(OfferedWorkers::All) => self.shard.note_all_freed(),
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
