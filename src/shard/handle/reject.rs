//! Answers to commands that no shard will decide: its queue is full, or the shard does not serve.

use super::{PushRejection, ShardHandle};
use crate::limits;
use crate::metrics::ShardState;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::shard::command::{ClaimOp, Command, PendingClaim};
use crate::shard::reply::ReplySender;

impl ShardHandle {
    /// Answers everything that waits: nobody else will.
    pub(crate) fn reject_all(&self) {
        let refusal = RequestError::Unavailable(self.unavailable_reason());
        let mut waiting = Vec::new();
        while self.mailbox.drain(limits::DRAIN_MAX, &mut waiting) > 0 {
            waiting.drain(..).for_each(|command| self.reject(command, &refusal));
        }
    }

    /// Answers a command that no shard will decide, and gives up the tickets in it.
    pub(super) fn reject(&self, command: Command, refusal: &RequestError) {
        let dispatch = self.dispatch.upgrade();
        // A shard stops with the service, or because its pool is deleted, and then for good: its claims are gone too.
        let stopped = *refusal == RequestError::Unavailable(UnavailableReason::Stopping);
        let deleted = stopped && dispatch.as_ref().is_some_and(|dispatch| !dispatch.is_draining());
        let of = |what: ObjectKind| if deleted { RequestError::NotFound(what) } else { refusal.clone() };
        let say = |reply: ReplySender| {
            reply.send(Err(of(ObjectKind::Pool)));
        };
        let say_of_claim = |reply: ReplySender| {
            reply.send(Err(of(ObjectKind::Claim)));
        };
        let give_up = |item: Box<PendingClaim>| match &dispatch {
            Some(dispatch) => dispatch.reject_and_route_next(item, refusal.clone()),
            None => say(item.reply),
        };
        match command {
            Command::Claim(item) => give_up(item),
            Command::Claims(items) => items.into_iter().for_each(give_up),
            Command::Reacquire(item, _) => match &dispatch {
                Some(dispatch) => dispatch.reply_rejected(item, refusal.clone()),
                None => say(item.reply),
            },
            Command::Release(ClaimOp { reply, .. })
            | Command::Confirm(ClaimOp { reply, .. })
            | Command::GetClaim(ClaimOp { reply, .. })
            | Command::Renew(ClaimOp { reply, .. }, _)
            | Command::Resize(ClaimOp { reply, .. }, _)
            | Command::BeginRelease(ClaimOp { reply, .. }) => say_of_claim(reply),
            Command::CommandWorker(_, _, reply)
            | Command::ClearWorkers(reply)
            | Command::Seal(reply)
            | Command::DeleteWorker(_, reply)
            | Command::GetWorker(_, reply)
            | Command::ListWorkers(_, _, reply)
            | Command::ListClaims(_, _, _, reply)
            | Command::Report(reply)
            | Command::IdleLongest(_, reply)
            | Command::Explain(_, reply)
            | Command::EndWorkers(_, reply) => say(reply),
            Command::Releases(items) => items.into_iter().for_each(|item| say_of_claim(item.reply)),
            Command::Register(workers) => workers.into_iter().for_each(|(_, reply)| say(reply)),
            Command::Heartbeat(workers) => workers.into_iter().for_each(|(_, _, reply)| say(reply)),
            // Whoever drives the gang finds out for itself what has become of it.
            Command::Gang(item) => drop(item.reply.send(Err(refusal.clone()))),
            Command::Reserve(_) | Command::SnapshotRows(..) | Command::Relinquish(_) | Command::Inject(_) => {}
        }
    }

    /// Reason for which a shard that does not serve answers nothing.
    pub(super) fn unavailable_reason(&self) -> PushRejection {
        match self.state() {
            ShardState::Stopped => UnavailableReason::Stopping,
            _ => UnavailableReason::Loading,
        }
    }
}
