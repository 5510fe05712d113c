//! Replies of a batch, which are delivered together once the last has arrived.

use parking_lot::{Mutex, MutexGuard};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::ShardOutcome;
use crate::model::request_error::RequestError;

/// Collects the replies to the items of one call.
#[derive(Debug)]
pub struct ReplyBatch(Mutex<ReplySlots>);

#[derive(Debug)]
struct ReplySlots {
    outcomes: Vec<Option<ShardOutcome>>,
    /// Number of replies that have not arrived.
    missing: usize,
    waker: Option<Waker>,
    /// Whether nobody takes the replies any more.
    closed: bool,
}

impl ReplySlots {
    /// Closes the batch and returns the replies that arrived.
    fn close(&mut self) -> Vec<Option<ShardOutcome>> {
        (self.closed, self.waker) = (true, None);
        std::mem::take(&mut self.outcomes)
    }
}

/// Receiving end of a [`ReplyBatch`]. Dropping it closes the batch, so that later replies are refused.
#[derive(Debug)]
pub struct BatchAnswers(Arc<ReplyBatch>);

impl ReplyBatch {
    /// Creates a batch of `len` items, at least one.
    #[must_use]
    pub fn new(len: usize) -> (Arc<Self>, BatchAnswers) {
        let mut outcomes = Vec::new();
        outcomes.resize_with(len, || None);
        let batch = Arc::new(Self(Mutex::new(ReplySlots { outcomes, missing: len, waker: None, closed: false })));
        (Arc::clone(&batch), BatchAnswers(batch))
    }

    fn slots(&self) -> MutexGuard<'_, ReplySlots> {
        self.0.lock()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.slots().closed
    }

    /// Adds a reply. Returns false if nobody will take it.
    pub(super) fn fill(&self, index: u32, outcome: ShardOutcome) -> bool {
        let waker = {
            let mut slots = self.slots();
            if slots.closed {
                return false;
            }
            if slots.outcomes[index as usize].replace(outcome).is_none() {
                slots.missing -= 1;
            }
            if slots.missing > 0 {
                return true;
            }
            slots.waker.take()
        };
        // After unlocking, because the woken task takes the lock first.
        waker.into_iter().for_each(Waker::wake);
        true
    }
}

impl BatchAnswers {
    /// Closes the batch and returns the replies that arrived, with their item indexes.
    pub fn close(&self) -> Vec<(usize, ShardOutcome)> {
        self.0.slots().close().into_iter().enumerate().filter_map(|(index, outcome)| Some((index, outcome?))).collect()
    }
}

impl Future for BatchAnswers {
    type Output = Vec<ShardOutcome>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<ShardOutcome>> {
        let mut slots = self.0.slots();
        if slots.missing > 0 {
            match &mut slots.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(
            slots.close().into_iter().map(|outcome| outcome.unwrap_or(Err(RequestError::DeadlineExceeded))).collect(),
        )
    }
}

impl Drop for BatchAnswers {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{ClaimReply, ReplySender};

    fn poll(answers: &mut BatchAnswers) -> Poll<Vec<ShardOutcome>> {
        Pin::new(answers).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn replies_arrive_together_in_the_order_of_their_items() {
        let (batch, mut answers) = ReplyBatch::new(3);
        assert!(ReplySender::batch_part(Arc::clone(&batch), 2).send(Ok(ClaimReply::Released)));
        assert!(poll(&mut answers).is_pending());
        assert!(ReplySender::batch_part(Arc::clone(&batch), 0).send(Err(RequestError::FenceMismatch)));
        // The shard of the last item panicked.
        drop(ReplySender::batch_part(batch, 1));
        let unknown = Err(RequestError::DeadlineExceeded);
        assert_eq!(
            poll(&mut answers),
            Poll::Ready(vec![Err(RequestError::FenceMismatch), unknown, Ok(ClaimReply::Released)])
        );
        assert_eq!(answers.close(), []);
    }

    #[test]
    fn c12_a_closed_batch_returns_its_replies_and_accepts_no_more() {
        let (batch, answers) = ReplyBatch::new(3);
        assert!(ReplySender::batch_part(Arc::clone(&batch), 1).send(Ok(ClaimReply::Released)));
        assert_eq!(answers.close(), [(1, Ok(ClaimReply::Released))]);
        let late = ReplySender::batch_part(Arc::clone(&batch), 0);
        assert!(late.is_abandoned() && !late.send(Ok(ClaimReply::Released)));
        assert_eq!(answers.close(), []);
        drop(answers);
        assert!(!ReplySender::batch_part(batch, 2).send(Ok(ClaimReply::Released)), "the last reply is refused too");
    }
}
