//! Answers of shards to the actions of gangs. They meet in one inbox, because one state machine waits for all of them.

use std::sync::Arc;
use std::task::Wake;

use crossbeam::queue::SegQueue;
use tokio::sync::Notify;

use super::{CommittedMembers, RequestError};

/// Number of a gang in this process.
pub type GangNumber = u64;

/// Number of a request of a gang to a shard.
pub type GangRequestNumber = u64;

/// Answer of a shard to an action of a gang.
#[derive(Debug, Clone, PartialEq)]
pub enum GangAnswer {
    /// The action was taken.
    Done,
    /// Number of the gang's members that are live in the shard.
    Members(usize),
    /// Members that are ordinary claims from now on.
    Committed(CommittedMembers),
}

/// Report to the state machine of a gang.
#[derive(Debug, PartialEq)]
pub enum GangReport {
    /// Every member of an attempt was granted or rejected.
    MembersDecided(GangNumber),
    /// A shard answered a request, or never will.
    Answered(GangNumber, GangRequestNumber, Result<GangAnswer, RequestError>),
}

/// Inbox of the reports to all gangs. Bounded by what gangs have asked for: each request is answered once.
#[derive(Debug, Default)]
pub struct GangInbox {
    reports: SegQueue<GangReport>,
    arrived: Notify,
}

impl GangInbox {
    fn put(&self, report: GangReport) {
        self.reports.push(report);
        self.arrived.notify_one();
    }

    /// Whether no report has arrived that was not taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reports.is_empty()
    }

    /// Takes the oldest report.
    pub fn take(&self) -> Option<GangReport> {
        self.reports.pop()
    }

    /// Waits until a report may have arrived since the last call.
    pub async fn arrival(&self) {
        self.arrived.notified().await;
    }
}

/// Sender of the answer to one request of a gang. If it is dropped unsent (its shard panicked), the outcome is unknown.
#[derive(Debug)]
pub struct GangReply {
    /// Taken when the answer is sent.
    inbox: Option<Arc<GangInbox>>,
    gang: GangNumber,
    request: GangRequestNumber,
}

impl GangReply {
    /// Creates the sender of an answer.
    #[must_use]
    pub const fn new(inbox: Arc<GangInbox>, gang: GangNumber, request: GangRequestNumber) -> Self {
        Self { inbox: Some(inbox), gang, request }
    }

    /// Sends the answer of the shard.
    pub fn send(mut self, outcome: Result<GangAnswer, RequestError>) {
        self.put(outcome);
    }

    fn put(&mut self, outcome: Result<GangAnswer, RequestError>) {
        if let Some(inbox) = self.inbox.take() {
            inbox.put(GangReport::Answered(self.gang, self.request, outcome));
        }
    }
}

impl Drop for GangReply {
    fn drop(&mut self) {
        self.put(Err(RequestError::DeadlineExceeded));
    }
}

/// Waker of a gang whose members are being placed.
#[derive(Debug)]
pub struct MembersWaker {
    inbox: Arc<GangInbox>,
    gang: GangNumber,
}

impl MembersWaker {
    /// Creates the waker of a gang.
    #[must_use]
    pub const fn new(inbox: Arc<GangInbox>, gang: GangNumber) -> Self {
        Self { inbox, gang }
    }
}

impl Wake for MembersWaker {
    fn wake(self: Arc<Self>) {
        self.inbox.put(GangReport::MembersDecided(self.gang));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_sent_once_and_an_unsent_one_says_that_the_outcome_is_unknown() {
        let inbox = Arc::new(GangInbox::default());
        GangReply::new(Arc::clone(&inbox), 1, 2).send(Ok(GangAnswer::Done));
        drop(GangReply::new(Arc::clone(&inbox), 1, 3));
        assert_eq!(inbox.take(), Some(GangReport::Answered(1, 2, Ok(GangAnswer::Done))));
        assert_eq!(inbox.take(), Some(GangReport::Answered(1, 3, Err(RequestError::DeadlineExceeded))));
        assert_eq!(inbox.take(), None);
    }
}
