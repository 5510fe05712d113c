//! Answers that leave together, when the last of them is there.

use parking_lot::{Mutex, MutexGuard};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::ShardOutcome;
use crate::model::request_error::RequestError;

/// Collects the answers to the items of one call.
#[derive(Debug)]
pub struct ReplyBatch(Mutex<ReplySlots>);

#[derive(Debug)]
struct ReplySlots {
    outcomes: Vec<Option<ShardOutcome>>,
    /// Answers that are not there yet.
    missing: usize,
    waker: Option<Waker>,
    /// Nobody takes the answers any more.
    closed: bool,
}

impl ReplySlots {
    /// Nobody takes anything from now on but what is returned.
    fn end(&mut self) -> Vec<Option<ShardOutcome>> {
        (self.closed, self.waker) = (true, None);
        std::mem::take(&mut self.outcomes)
    }
}

/// The receiving end of a [`ReplyBatch`]. Dropped, it closes the batch: what comes later finds nobody.
#[derive(Debug)]
pub struct BatchAnswers(Arc<ReplyBatch>);

impl ReplyBatch {
    /// A batch of `len` items, which is at least one.
    #[must_use]
    pub fn new(len: usize) -> (Arc<Self>, BatchAnswers) {
        let mut outcomes = Vec::new();
        outcomes.resize_with(len, || None);
        let batch = Arc::new(Self(Mutex::new(ReplySlots { outcomes, missing: len, waker: None, closed: false })));
        (Arc::clone(&batch), BatchAnswers(batch))
    }

    fn places(&self) -> MutexGuard<'_, ReplySlots> {
        self.0.lock()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.places().closed
    }

    /// Puts an answer in. False: nobody will take it.
    pub(super) fn fill(&self, place: u32, outcome: ShardOutcome) -> bool {
        let waker = {
            let mut places = self.places();
            if places.closed {
                return false;
            }
            if places.outcomes[place as usize].replace(outcome).is_none() {
                places.missing -= 1;
            }
            if places.missing > 0 {
                return true;
            }
            places.waker.take()
        };
        // Without the lock, which whoever wakes up asks for first.
        waker.into_iter().for_each(Waker::wake);
        true
    }
}

impl BatchAnswers {
    /// Closes the batch, and returns the answers that came before, each with its place.
    pub fn close(&self) -> Vec<(usize, ShardOutcome)> {
        self.0.places().end().into_iter().enumerate().filter_map(|(place, outcome)| Some((place, outcome?))).collect()
    }
}

impl Future for BatchAnswers {
    type Output = Vec<ShardOutcome>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<ShardOutcome>> {
        let mut places = self.0.places();
        if places.missing > 0 {
            match &mut places.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(
            places.end().into_iter().map(|outcome| outcome.unwrap_or(Err(RequestError::DeadlineExceeded))).collect(),
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
    use crate::shard::{ReplyPayload, ReplySender};

    fn poll(answers: &mut BatchAnswers) -> Poll<Vec<ShardOutcome>> {
        Pin::new(answers).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn answers_leave_together_in_the_order_of_their_items() {
        let (batch, mut answers) = ReplyBatch::new(3);
        assert!(ReplySender::batch_part(Arc::clone(&batch), 2).send(Ok(ReplyPayload::Done)));
        assert!(poll(&mut answers).is_pending());
        assert!(ReplySender::batch_part(Arc::clone(&batch), 0).send(Err(RequestError::FenceMismatch)));
        // The shard of the last one panicked.
        drop(ReplySender::batch_part(batch, 1));
        let unknown = Err(RequestError::DeadlineExceeded);
        assert_eq!(
            poll(&mut answers),
            Poll::Ready(vec![Err(RequestError::FenceMismatch), unknown, Ok(ReplyPayload::Done)])
        );
        assert_eq!(answers.close(), []);
    }

    #[test]
    fn c12_a_closed_batch_hands_back_what_came_and_takes_nothing_more() {
        let (batch, answers) = ReplyBatch::new(3);
        assert!(ReplySender::batch_part(Arc::clone(&batch), 1).send(Ok(ReplyPayload::Done)));
        assert_eq!(answers.close(), [(1, Ok(ReplyPayload::Done))]);
        let late = ReplySender::batch_part(Arc::clone(&batch), 0);
        assert!(late.is_abandoned() && !late.send(Ok(ReplyPayload::Done)));
        assert_eq!(answers.close(), []);
        drop(answers);
        assert!(!ReplySender::batch_part(batch, 2).send(Ok(ReplyPayload::Done)), "the last one finds nobody either");
    }
}
