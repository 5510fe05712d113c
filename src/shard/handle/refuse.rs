//! Answers to commands that no shard will decide: its queue is full, or the shard does not serve.

use super::{ShardPort, Why};
use crate::limits;
use crate::metrics::ShardState;
use crate::model::rejection::{Refusal, Unavailable, What};
use crate::shard::command::{ClaimItem, Command, KeyItem};
use crate::shard::reply::Reply;

impl ShardPort {
    /// Answers everything that waits: nobody else will.
    pub(crate) fn refuse_all(&self) {
        let refusal = Refusal::Unavailable(self.silence());
        let mut waiting = Vec::new();
        while self.ring.take(limits::DRAIN_MAX, &mut waiting) > 0 {
            waiting.drain(..).for_each(|command| self.refuse(command, &refusal));
        }
    }

    /// Answers a command that no shard will decide, and gives up the tickets in it.
    pub(super) fn refuse(&self, command: Command, refusal: &Refusal) {
        let dispatch = self.dispatch.upgrade();
        // A shard stops with the service, or because its pool is deleted, and then for good: its claims are gone too.
        let stopped = *refusal == Refusal::Unavailable(Unavailable::Stopping);
        let deleted = stopped && dispatch.as_ref().is_some_and(|dispatch| !dispatch.is_draining());
        let of = |what: What| if deleted { Refusal::NotFound(what) } else { refusal.clone() };
        let say = |reply: Reply| {
            reply.send(Err(of(What::Pool)));
        };
        let say_of_claim = |reply: Reply| {
            reply.send(Err(of(What::Claim)));
        };
        let give_up = |item: Box<ClaimItem>| match &dispatch {
            Some(dispatch) => dispatch.give_up(item, refusal.clone()),
            None => say(item.reply),
        };
        match command {
            Command::Claim(item) => give_up(item),
            Command::Claims(items) => items.into_iter().for_each(give_up),
            Command::Repeat(item, _) => match &dispatch {
                Some(dispatch) => dispatch.answer(item, refusal.clone()),
                None => say(item.reply),
            },
            Command::Release(KeyItem { reply, .. })
            | Command::Confirm(KeyItem { reply, .. })
            | Command::Look(KeyItem { reply, .. })
            | Command::Renew(KeyItem { reply, .. }, _)
            | Command::Resize(KeyItem { reply, .. }, _)
            | Command::BeginRelease(KeyItem { reply, .. }) => say_of_claim(reply),
            Command::Steer(_, _, reply)
            | Command::ClearAll(reply)
            | Command::Seal(reply)
            | Command::Delete(_, reply)
            | Command::Worker(_, reply)
            | Command::ListWorkers(_, _, reply)
            | Command::ListClaims(_, _, _, reply)
            | Command::Report(reply)
            | Command::IdleLongest(_, reply)
            | Command::Explain(_, reply)
            | Command::Close(_, reply) => say(reply),
            Command::Releases(items) => items.into_iter().for_each(|item| say_of_claim(item.reply)),
            Command::Register(workers) => workers.into_iter().for_each(|(_, reply)| say(reply)),
            Command::Heartbeat(workers) => workers.into_iter().for_each(|(_, _, reply)| say(reply)),
            // Whoever drives the gang finds out for itself what has become of it.
            Command::Gang(item) => drop(item.reply.send(Err(refusal.clone()))),
            Command::Promise(_) | Command::Dump(..) | Command::Yield(_) | Command::Inject(_) => {}
        }
    }

    /// Reason for which a shard that does not serve answers nothing.
    pub(super) fn silence(&self) -> Why {
        match self.state() {
            ShardState::Stopped => Unavailable::Stopping,
            _ => Unavailable::Loading,
        }
    }
}
