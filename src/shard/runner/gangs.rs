//! Two-phase commit of gangs: translates each action into an event, and the engine's reply into an outcome.

use super::{ReplyRoute, ShardRunner};
use crate::admission::key::KeyHolder;
use crate::engine::{ClaimHandle, EngineReply, Event, GangAction};
use crate::model::{AckLevel, ClaimId};
use crate::shard::address::PendingWrites;
use crate::shard::command::{Command, GangItem};
use crate::shard::reply::{ClaimAnswer, ReplyPayload, ReplySender};

impl ShardRunner {
    pub(super) fn gang(&mut self, item: GangItem) {
        let GangItem { id, action, tickets, reply } = item;
        self.members.0.extend(tickets);
        self.apply(Event::Gang { id, action, to: ReplyRoute::Gang(reply, action) });
        self.members.0.clear();
    }

    /// Makes the key of a committed member held.
    pub(super) fn committed(&mut self, id: &ClaimId, handle: ClaimHandle) {
        let Some(&ticket) = self.members.0.get(id) else { return };
        let holder = KeyHolder { shard: self.handle.shard, handle };
        let spec = self.shard.grant(handle).and_then(|grant| grant.spec);
        let (duplicates, pending_writes) = self.dispatch.keys.set_committed(id, ticket, holder, spec.as_ref());
        self.members.1.extend(pending_writes);
        self.dispatch.ended_claims.remove_on_grant(id);
        self.created += 1;
        self.follow_ups.extend(duplicates.into_iter().map(|duplicate| Command::Reacquire(duplicate, handle)));
    }

    pub(super) fn reply_gang(&mut self, reply: ReplySender, action: GangAction, answer: EngineReply) {
        let pending_writes = std::mem::replace(&mut self.members.1, PendingWrites::new());
        let shard = self.handle.shard;
        let payload = match answer {
            EngineReply::Committed(members) => {
                let answer = |(id, grant)| (id, ClaimAnswer::created(grant, shard));
                ReplyPayload::Gang(members.into_iter().map(answer).collect())
            }
            EngineReply::GangMembers(members) => ReplyPayload::Members(members),
            _ => ReplyPayload::Done,
        };
        // Durable whatever the pool's ack: the next action of the gang relies on this one. Nothing relies on the
        // others.
        let durable =
            self.keeps_rows && matches!(action, GangAction::Record | GangAction::Commit | GangAction::Retract);
        let ack = if durable { AckLevel::Durable } else { AckLevel::Memory };
        self.send_when_stored(reply, Ok(payload), ack, pending_writes, None);
    }
}
