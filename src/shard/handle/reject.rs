//! Rejections of commands that no shard will decide: its mailbox is full, or the shard does not serve.

use super::{PushRejection, ShardHandle};
use crate::limits;
use crate::metrics::ShardState;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::shard::command::{ClaimOp, Command, PendingClaim};
use crate::shard::reply::ReplySender;

impl ShardHandle {
    /// Rejects all requests in the mailbox, because nobody else will reply to them.
    pub(crate) fn reject_all(&self) {
        let rejection = RequestError::Unavailable(self.unavailable_reason());
        let mut waiting = Vec::new();
        while self.mailbox.drain(limits::DRAIN_MAX, &mut waiting) > 0 {
            waiting.drain(..).for_each(|command| self.reject(command, &rejection));
        }
    }

    /// Rejects a command that no shard will decide, and releases its tickets.
    pub(super) fn reject(&self, command: Command, rejection: &RequestError) {
        let dispatch = self.dispatch.upgrade();
        // A shard stops with the service, or because its pool is deleted. In the latter case its claims are gone too.
        let stopped = *rejection == RequestError::Unavailable(UnavailableReason::Stopping);
        let deleted = stopped && dispatch.as_ref().is_some_and(|dispatch| !dispatch.is_draining());
        let rejection_for = |kind: ObjectKind| if deleted { RequestError::NotFound(kind) } else { rejection.clone() };
        let reject_reply = |reply: ReplySender| {
            reply.send(Err(rejection_for(ObjectKind::Pool)));
        };
        let reject_claim_reply = |reply: ReplySender| {
            reply.send(Err(rejection_for(ObjectKind::Claim)));
        };
        let reject_pending = |item: Box<PendingClaim>| match &dispatch {
            Some(dispatch) => dispatch.reject_and_route_next(item, rejection.clone()),
            None => reject_reply(item.reply),
        };
        match command {
            Command::Claim(item) => reject_pending(item),
            Command::Claims(items) => items.into_iter().for_each(reject_pending),
            Command::Reacquire(item, _) => match &dispatch {
                Some(dispatch) => dispatch.reply_rejected(item, rejection.clone()),
                None => reject_reply(item.reply),
            },
            Command::Release(ClaimOp { reply, .. })
            | Command::Confirm(ClaimOp { reply, .. })
            | Command::GetClaim(ClaimOp { reply, .. })
            | Command::Renew(ClaimOp { reply, .. }, _)
            | Command::Resize(ClaimOp { reply, .. }, _)
            | Command::BeginRelease(ClaimOp { reply, .. }) => reject_claim_reply(reply),
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
            | Command::EndWorkers(_, reply) => reject_reply(reply),
            Command::Releases(items) => items.into_iter().for_each(|item| reject_claim_reply(item.reply)),
            Command::Register(workers) => workers.into_iter().for_each(|(_, reply)| reject_reply(reply)),
            Command::Heartbeat(workers) => workers.into_iter().for_each(|(_, _, reply)| reject_reply(reply)),
            // The driver of the gang finds out the outcome by itself.
            Command::Gang(item) => drop(item.reply.send(Err(rejection.clone()))),
            Command::Reserve(_) | Command::SnapshotRows(..) | Command::Relinquish(_) | Command::Inject(_) => {}
        }
    }

    /// Reason that a shard that does not serve gives.
    pub(super) fn unavailable_reason(&self) -> PushRejection {
        match self.state() {
            ShardState::Stopped => UnavailableReason::Stopping,
            _ => UnavailableReason::Loading,
        }
    }
}
