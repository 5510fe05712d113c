//! Replies that are decided and wait to be sent, in a form that keeps those about one claim free of allocations.

use crate::engine::ClaimHandle;
use crate::model::request_error::RequestError;
use crate::shard::reply::{
    ClaimReply, CommandReply, CommittedMembers, GangAnswer, GangReply, ReplyAddress, ShardOutcome,
};

/// Reply that is decided and not sent. If it is dropped, its caller learns that the outcome is unknown.
pub(super) enum UnsentReply {
    /// Reply about one claim, with its caller: none until the sink has said who it is, and for a reply that nobody
    /// wants. Inline, because nearly all replies are of this kind.
    Claim(Option<ReplyAddress>, ShardOutcome),
    /// Answer to a gang. Members that it shows as committed stay held even if it cannot be sent.
    Gang(Box<UnsentGangReply>),
    /// Reply to any other command. Nothing follows from whether it can be sent.
    Command(Box<dyn CommandOutcome>),
}

const _: () = assert!(
    size_of::<UnsentReply>() == size_of::<(Option<ReplyAddress>, ShardOutcome)>(),
    "the other kinds cost a reply about a claim nothing"
);

impl UnsentReply {
    /// Whether nobody waits for the reply.
    pub const fn is_unwanted(&self) -> bool {
        matches!(self, Self::Claim(None, _))
    }

    /// Claim that the reply shows without granting it.
    pub fn reference(&self) -> Option<ClaimHandle> {
        match self {
            Self::Claim(_, Ok(ClaimReply::Claim(answer))) if !answer.created => Some(answer.grant.handle),
            Self::Claim(..) | Self::Gang(_) | Self::Command(_) => None,
        }
    }

    /// Sets the caller of a reply about one claim.
    pub fn address(&mut self, to: ReplyAddress) {
        let Self::Claim(caller @ None, _) = self else { unreachable!("R1: a reply about a claim has one caller") };
        *caller = Some(to);
    }

    pub fn gang(reply: GangReply, outcome: Result<GangAnswer, RequestError>) -> Self {
        Self::Gang(Box::new(UnsentGangReply { reply, outcome }))
    }

    pub fn command<T: Send + 'static>(reply: CommandReply<T>, outcome: Result<T, RequestError>) -> Self {
        Self::Command(Box::new(TypedReply { reply, outcome }))
    }
}

/// Answer to a gang, and its sender.
pub(super) struct UnsentGangReply {
    reply: GangReply,
    outcome: Result<GangAnswer, RequestError>,
}

impl UnsentGangReply {
    /// Sends the answer to the gang.
    pub fn send(self) {
        self.reply.send(self.outcome);
    }

    /// Sends an error instead of the answer, and returns the members that it shows as committed.
    pub fn reject(self, error: RequestError) -> CommittedMembers {
        self.reply.send(Err(error));
        match self.outcome {
            Ok(GangAnswer::Committed(members)) => members,
            Ok(GangAnswer::Done | GangAnswer::Members(_)) | Err(_) => CommittedMembers::new(),
        }
    }
}

/// Outcome of a command and the sender of its reply.
pub(super) struct TypedReply<T> {
    reply: CommandReply<T>,
    outcome: Result<T, RequestError>,
}

/// Reply of a command, whatever its type.
pub(super) trait CommandOutcome: Send {
    /// Sends the outcome, unless the caller has left.
    fn send(self: Box<Self>);

    /// Sends an error instead of the outcome.
    fn reject(self: Box<Self>, error: RequestError);
}

impl<T: Send> CommandOutcome for TypedReply<T> {
    fn send(self: Box<Self>) {
        let _ = self.reply.send(self.outcome);
    }

    fn reject(self: Box<Self>, error: RequestError) {
        let _ = self.reply.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::model::request_error::UnavailableReason;
    use crate::shard::reply::{GangInbox, GangReport};

    const REJECTION: RequestError = RequestError::Unavailable(UnavailableReason::Store);

    #[test]
    fn a_command_gets_its_outcome_or_the_error_that_replaces_it() {
        for (rejection, expected) in [(None, Ok(7)), (Some(REJECTION), Err(REJECTION))] {
            let (reply, mut answer) = oneshot::channel();
            let UnsentReply::Command(unsent) = UnsentReply::command(reply, Ok(7)) else { panic!("not a command") };
            match rejection {
                None => unsent.send(),
                Some(error) => unsent.reject(error),
            }
            assert_eq!(answer.try_recv(), Ok(expected));
        }
    }

    #[test]
    fn a_rejected_commit_of_a_gang_returns_the_members_that_stay_held() {
        let inbox = Arc::new(GangInbox::default());
        let committed = |members| Ok(GangAnswer::Committed(members));
        let reply = GangReply::new(Arc::clone(&inbox), 1, 2);
        let UnsentReply::Gang(unsent) = UnsentReply::gang(reply, committed(Vec::new())) else {
            panic!("not an answer to a gang")
        };
        assert_eq!(unsent.reject(REJECTION), []);
        assert_eq!(inbox.take(), Some(GangReport::Answered(1, 2, Err(REJECTION))));
    }
}
