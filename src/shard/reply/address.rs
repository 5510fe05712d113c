//! Address of the reply to a request about one claim.

use std::sync::Arc;

use super::ShardOutcome;
use super::completion_cell::CompletionCell;
use super::completion_queue::{CompletionQueue, CompletionToken};
use crate::model::request_error::RequestError;

/// Address of one reply about a claim: the cell of an awaited call, or a queue and the caller's token. If it is dropped
/// unsent (its shard panicked), the caller learns that the outcome is unknown.
#[derive(Debug)]
pub struct ReplyAddress(AddressTarget);

#[derive(Debug)]
enum AddressTarget {
    Cell(Arc<CompletionCell>),
    Queue(Arc<CompletionQueue>, CompletionToken),
    Nobody,
}

const _: () = assert!(size_of::<ReplyAddress>() <= 16, "an address is copied with every claim and operation");

/// Caller of a request that takes no reply any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallerGone;

impl AddressTarget {
    #[inline]
    fn put(&self, outcome: &mut ShardOutcome) -> Result<(), CallerGone> {
        match self {
            Self::Cell(cell) => cell.put(outcome),
            Self::Queue(queue, token) => queue.put(*token, outcome),
            Self::Nobody => Ok(()),
        }
    }
}

impl ReplyAddress {
    pub(super) const fn cell(cell: Arc<CompletionCell>) -> Self {
        Self(AddressTarget::Cell(cell))
    }

    /// Creates an address in a completion queue, under a token that the caller chose.
    #[must_use]
    pub const fn queue(queue: Arc<CompletionQueue>, token: CompletionToken) -> Self {
        Self(AddressTarget::Queue(queue, token))
    }

    /// Creates an address that discards the reply.
    #[must_use]
    pub const fn discard() -> Self {
        Self(AddressTarget::Nobody)
    }

    /// Whether the caller is gone.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        match &self.0 {
            AddressTarget::Cell(cell) => cell.is_closed(),
            AddressTarget::Queue(queue, _) => queue.is_closed(),
            AddressTarget::Nobody => false,
        }
    }

    /// Whether the reply is delivered with others: when the last of them arrives, not when this one is sent.
    #[must_use]
    pub fn is_collected(&self) -> bool {
        matches!(&self.0, AddressTarget::Queue(queue, _) if queue.collects())
    }

    /// Sends the reply.
    ///
    /// # Errors
    /// Hands the outcome back if the caller is gone.
    pub fn send(self, mut outcome: ShardOutcome) -> Result<(), ShardOutcome> {
        self.send_from(&mut outcome).map_err(|CallerGone| outcome)
    }

    /// Sends the reply, which is taken from `outcome`: an outcome is large, and this moves it once.
    ///
    /// # Errors
    /// The caller is gone, and the outcome stays.
    #[inline]
    pub fn send_from(mut self, outcome: &mut ShardOutcome) -> Result<(), CallerGone> {
        std::mem::replace(&mut self.0, AddressTarget::Nobody).put(outcome)
    }

    /// Sends an error, which nobody needs if the caller is gone.
    pub fn reject(self, error: RequestError) {
        let _ = self.send(Err(error));
    }
}

impl Drop for ReplyAddress {
    fn drop(&mut self) {
        if !matches!(self.0, AddressTarget::Nobody) {
            let _ = self.0.put(&mut Err(RequestError::DeadlineExceeded));
        }
    }
}
