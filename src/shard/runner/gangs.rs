//! Two-phase commit of gangs: translates each action into an event, and the engine's reply into an answer.

use super::unsent_reply::UnsentReply;
use super::{ShardEvent, ShardRunner, rejection_of};
use crate::engine::{ClaimHandle, EngineReply, Event, GangAction};
use crate::model::{AckLevel, ClaimId};
use crate::shard::command::GangCall;
use crate::shard::event::ShardSink;
use crate::shard::reply::{ClaimAnswer, GangAnswer};

impl<S: ShardSink> ShardRunner<S> {
    pub(super) fn gang(&mut self, call: GangCall) {
        let GangCall { id, action, tickets, reply } = call;
        let events_before = self.events.len();
        self.member_tickets.extend(tickets);
        let answer = self.decide(Event::Gang { id, action });
        self.member_tickets.clear();
        let shard = self.handle.shard;
        let outcome = match answer {
            EngineReply::Released => Ok(GangAnswer::Done),
            EngineReply::GangMembers(members) => Ok(GangAnswer::Members(members)),
            EngineReply::Committed(members) => Ok(GangAnswer::Committed(
                members.into_iter().map(|(id, grant)| (id, ClaimAnswer::created(grant, shard))).collect(),
            )),
            answer => Err(rejection_of(&answer)),
        };
        let ack = match action {
            // Durable whatever the pool's ack: the next action of the gang relies on these.
            GangAction::Record | GangAction::Retract | GangAction::Commit if self.keeps_rows => AckLevel::Durable,
            _ => AckLevel::Memory,
        };
        let index = self.prepare_reply(UnsentReply::gang(reply, outcome), ack);
        for event in &mut self.events[events_before..] {
            if let ShardEvent::Committed { reply, .. } = event {
                *reply = Some(index);
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
}
