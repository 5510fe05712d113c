//! Two-phase commit of gangs: translates each action into an event, and the engine's reply into an outcome.

use super::{ReplyRoute, ShardEvent, ShardRunner};
use crate::engine::{ClaimHandle, EngineReply, Event, GangAction};
use crate::model::{AckLevel, ClaimId};
use crate::shard::command::GangItem;
use crate::shard::event::ShardSink;
use crate::shard::reply::{ClaimAnswer, ReplyPayload, ReplySender};

impl<S: ShardSink> ShardRunner<S> {
    pub(super) fn gang(&mut self, item: GangItem) {
        let GangItem { id, action, tickets, reply } = item;
        self.member_tickets.extend(tickets);
        let events_before = self.events.len();
        self.apply(Event::Gang { id, action, to: ReplyRoute::Gang(reply, action) });
        self.member_tickets.clear();
        let index = self.last_reply();
        for event in &mut self.events[events_before..] {
            if let ShardEvent::Committed { reply, .. } = event {
                *reply = index;
            }
        }
    }

    /// Reports that a member became an ordinary claim.
    pub(super) fn committed(&mut self, id: ClaimId, handle: ClaimHandle) {
        let Some(&ticket) = self.member_tickets.get(&id) else { return };
        let spec = self.shard.grant(handle).and_then(|grant| grant.spec);
        self.created += 1;
        self.events.push(ShardEvent::Committed { id, ticket, handle, spec, reply: None });
    }

    pub(super) fn reply_gang(&mut self, reply: ReplySender, action: GangAction, answer: EngineReply) {
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
        self.prepare_reply(Some(reply), Ok(payload), ack);
    }
}
