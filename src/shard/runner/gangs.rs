//! Two-phase commit of gangs: translates each action into an event, and the engine's reply into an outcome.

use super::unsent_reply::UnsentReply;
use super::{ReplyIndex, ShardEvent, ShardRunner, rejection_of};
use crate::engine::{ClaimHandle, EngineReply, Event, GangAction};
use crate::model::{AckLevel, ClaimId};
use crate::shard::command::{GangItem, GangRequest};
use crate::shard::event::ShardSink;
use crate::shard::reply::{ClaimAnswer, CommandReply, CommittedMembers};

impl<S: ShardSink> ShardRunner<S> {
    pub(super) fn gang(&mut self, item: GangItem) {
        let GangItem { id, request } = item;
        let events_before = self.events.len();
        let event = |action| Event::Gang { id, action };
        // Durable whatever the pool's ack: the next action of the gang relies on these. Nothing relies on the others.
        let (action, reply, ack) = match request {
            GangRequest::Commit(tickets, reply) => {
                self.member_tickets.extend(tickets);
                let answer = self.decide(event(GangAction::Commit));
                self.member_tickets.clear();
                return self.reply_gang_commit(reply, answer, events_before);
            }
            GangRequest::Count(reply) => {
                let answer = self.decide(event(GangAction::Count));
                return self.reply_gang_count(reply, &answer);
            }
            GangRequest::Record(reply) => (GangAction::Record, reply, AckLevel::Durable),
            GangRequest::Retract(reply) => (GangAction::Retract, reply, AckLevel::Durable),
            GangRequest::Abort(reply) => (GangAction::Abort, reply, AckLevel::Memory),
            GangRequest::Forget(reply) => (GangAction::Forget, reply, AckLevel::Memory),
        };
        let answer = self.decide(event(action));
        self.reply_gang(reply, ack, &answer);
    }

    /// Reports that a member became an ordinary claim.
    pub(super) fn committed(&mut self, id: ClaimId, handle: ClaimHandle) {
        let Some(&ticket) = self.member_tickets.get(&id) else { return };
        let spec = self.shard.grant(handle).and_then(|grant| grant.spec);
        self.created += 1;
        self.events.push(ShardEvent::Committed { id, ticket, handle, spec, reply: None });
    }

    fn reply_gang_commit(&mut self, reply: CommandReply<CommittedMembers>, answer: EngineReply, events_before: usize) {
        let shard = self.handle.shard;
        let outcome = match answer {
            EngineReply::Committed(members) => {
                Ok(members.into_iter().map(|(id, grant)| (id, ClaimAnswer::created(grant, shard))).collect())
            }
            answer => Err(rejection_of(&answer)),
        };
        let index = self.prepare_gang_reply(UnsentReply::gang_commit(reply, outcome), AckLevel::Durable);
        for event in &mut self.events[events_before..] {
            if let ShardEvent::Committed { reply, .. } = event {
                *reply = Some(index);
            }
        }
    }

    fn reply_gang_count(&mut self, reply: CommandReply<usize>, answer: &EngineReply) {
        let outcome = match *answer {
            EngineReply::GangMembers(members) => Ok(members),
            _ => Err(rejection_of(answer)),
        };
        self.prepare_gang_reply(UnsentReply::command(reply, outcome), AckLevel::Memory);
    }

    fn reply_gang(&mut self, reply: CommandReply<()>, ack: AckLevel, answer: &EngineReply) {
        let outcome = match answer {
            EngineReply::Released => Ok(()),
            _ => Err(rejection_of(answer)),
        };
        self.prepare_gang_reply(UnsentReply::command(reply, outcome), ack);
    }

    fn prepare_gang_reply(&mut self, reply: UnsentReply, ack: AckLevel) -> ReplyIndex {
        let ack = if self.keeps_rows { ack } else { AckLevel::Memory };
        self.prepare_reply(reply, ack)
    }
}
