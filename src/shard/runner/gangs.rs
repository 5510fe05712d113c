//! Steps of gangs: how each becomes an event, and its answer an outcome.

use super::{Running, To};
use crate::admission::keys::{Hold, Unstoreds};
use crate::engine::{Answer, Event, GangAct, Place};
use crate::model::ClaimId;
use crate::shard::command::{Command, GangItem};
use crate::shard::reply::{ClaimAnswer, Payload, Reply};

impl Running {
    pub(super) fn gang(&mut self, item: GangItem) {
        let GangItem { id, act, tickets, reply } = item;
        self.members.0.extend(tickets);
        self.on(Event::Gang { id, act, to: To::Gang(reply, act) });
        self.members.0.clear();
    }

    /// A member is a claim: its key is held.
    pub(super) fn committed(&mut self, id: &ClaimId, place: Place) {
        let Some(&ticket) = self.members.0.get(id) else { return };
        let hold = Hold { shard: self.port.shard, place };
        let spec = self.shard.grant(place).and_then(|grant| grant.spec);
        let (joined, unstored) = self.dispatch.keys.commit(id, ticket, hold, spec.as_ref());
        self.members.1.extend(unstored);
        self.dispatch.remembered.forget(id);
        self.created += 1;
        self.extra.extend(joined.into_iter().map(|joiner| Command::Repeat(joiner, place)));
    }

    pub(super) fn reply_gang(&mut self, reply: Reply, act: GangAct, answer: Answer) {
        let unstored = std::mem::replace(&mut self.members.1, Unstoreds::new());
        let shard = self.port.shard;
        let payload = match answer {
            Answer::Committed(members) => {
                let answer = |(id, grant)| (id, ClaimAnswer { grant, created: true, shard, expires_at_ms: None });
                Payload::Gang(members.into_iter().map(answer).collect())
            }
            Answer::Members(held) => Payload::Members(held),
            _ => Payload::Done,
        };
        // Whatever the pool promises: the next step of the gang stands on this one. Nothing stands on the others.
        let durable = self.keeps_rows && matches!(act, GangAct::Record | GangAct::Commit | GangAct::Retract);
        self.send_or_wait(reply, Ok(payload), durable, unstored, None);
    }
}
