//! Rejection of requests that a shard will not decide: their callers are answered, and the layer above learns of the claims
//! in them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{PushRejection, ShardHandle};
use crate::limits;
use crate::metrics::ShardState;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::shard::command::{Command, HeldOperation};
use crate::shard::event::{RunOrigin, RunReplies, ShardEvent, ShardSink, UndecidedClaim};
use crate::shard::reply::CommandReply;

impl<S: ShardSink> ShardHandle<S> {
    /// Rejects all requests in the mailbox, because nobody else will reply to them.
    pub(crate) fn reject_all(&self) {
        self.with_work(|work| self.reject_mailbox(work));
    }

    pub(super) fn reject_mailbox(&self, work: &mut S::Work) {
        let rejection = RequestError::Unavailable(self.unavailable_reason());
        let mut waiting = Vec::new();
        while self.mailbox.drain(limits::DRAIN_MAX, &mut waiting) > 0 {
            waiting.drain(..).for_each(|command| self.reject(command, &rejection, work));
        }
    }

    /// Rejects a command that no shard will decide: its caller is answered, and the layer above learns of the claims
    /// in it.
    pub fn reject(&self, command: Command, rejection: &RequestError, work: &mut S::Work) {
        let mut undecided = Vec::new();
        command.add_undecided(&mut undecided);
        self.hand_back(undecided, rejection, work);
        // A shard stops with the service, or because its pool is deleted. In the latter case its claims are gone too.
        let stopped = *rejection == RequestError::Unavailable(UnavailableReason::Stopping);
        let deleted = stopped && !self.services.is_draining();
        let rejection_for = |kind: ObjectKind| if deleted { RequestError::NotFound(kind) } else { rejection.clone() };
        let pool_rejection = || rejection_for(ObjectKind::Pool);
        let reject_operation = |operation: HeldOperation| {
            operation.reply.reject(rejection_for(ObjectKind::Claim));
        };
        match command {
            Command::Operation(operation) => reject_operation(operation),
            Command::Operations(operations) => operations.into_iter().for_each(reject_operation),
            Command::ReplyWhenStored(unstored) => unstored.reply.reject(rejection_for(ObjectKind::Claim)),
            Command::CommandWorker(_, _, reply) | Command::GetWorker(_, reply) => send_error(reply, pool_rejection()),
            Command::ClearWorkers(reply) => send_error(reply, pool_rejection()),
            Command::Seal(reply) => send_error(reply, pool_rejection()),
            Command::DeleteWorker(_, reply) => send_error(reply, pool_rejection()),
            Command::ListWorkers(_, _, reply) => send_error(reply, pool_rejection()),
            Command::ListClaims(_, _, _, reply) => send_error(reply, pool_rejection()),
            Command::Report(reply) => send_error(reply, pool_rejection()),
            Command::IdleLongest(_, reply) => send_error(reply, pool_rejection()),
            Command::Preview(_, reply) => send_error(reply, pool_rejection()),
            Command::Survey(_, reply) => send_error(reply, pool_rejection()),
            Command::EndWorkers(_, reply) => send_error(reply, pool_rejection()),
            Command::Register(workers) => {
                workers.into_iter().for_each(|(.., reply)| send_error(reply, pool_rejection()));
            }
            Command::Heartbeat(workers) => {
                workers.into_iter().for_each(|(.., reply)| send_error(reply, pool_rejection()));
            }
            Command::Gang(call) => call.reply.send(Err(rejection.clone())),
            // What they name was handed back.
            Command::Claim(_) | Command::Claims(_) | Command::Reacquire(_) => {}
            Command::Reserve(_) | Command::SurveyVictims(_) | Command::SurveyTenant(_) => {}
            // Sought again if need be.
            Command::EvictClaims(_) => {}
            // Asked again if need be.
            Command::FindClaim(_) => {}
            Command::SnapshotRows(..) | Command::Relinquish(_) | Command::Inject(_) => {}
        }
    }

    /// Tells the layer above that these requests will not be decided here.
    fn hand_back(&self, undecided: Vec<UndecidedClaim>, rejection: &RequestError, work: &mut S::Work) {
        if undecided.is_empty() {
            return;
        }
        let Some(sink) = self.sink.upgrade() else { return };
        let mut events = undecided.into_iter().map(|claim| claim.reject(rejection.clone())).collect();
        sink.deliver(self.origin(), &mut events, &mut RunReplies::new(&mut []), work);
    }

    fn origin(&self) -> RunOrigin {
        RunOrigin { shard: self.shard, life: self.life(), now_ms: self.services.clock.engine_ms() }
    }

    /// Hands back the requests whose decision ended in a panic. A panic in that is reported, and costs nobody else.
    pub(in crate::shard) fn hand_back_after_panic(&self) {
        if catch_unwind(AssertUnwindSafe(|| self.with_work(|work| self.hand_back_undecided(work)))).is_err() {
            tracing::error!("a claim panicked while it was handed back");
        }
    }

    fn hand_back_undecided(&self, work: &mut S::Work) {
        let (requests, others) = std::mem::take(&mut *self.undecided.lock());
        let is_empty = requests.tickets.is_empty() && requests.reports.is_empty() && others.is_empty();
        if is_empty && self.state() == ShardState::Stopped {
            return;
        }
        self.hand_back(others, &RequestError::DeadlineExceeded, work);
        if let Some(sink) = self.sink.upgrade() {
            let mut events = vec![ShardEvent::Panicked(requests)];
            sink.deliver(self.origin(), &mut events, &mut RunReplies::new(&mut []), work);
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

/// Sends an error, unless the caller has left.
fn send_error<T>(reply: CommandReply<T>, error: RequestError) {
    let _ = reply.send(Err(error));
}
