//! Answers that leave together, when the last of them is there.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Outcome;
use crate::model::rejection::Refusal;

/// Collects the answers to the items of one call.
#[derive(Debug)]
pub struct Batch(Mutex<Places>);

#[derive(Debug)]
struct Places {
    outcomes: Vec<Option<Outcome>>,
    /// Answers that are not there yet.
    missing: usize,
    waker: Option<Waker>,
    /// Nobody takes the answers any more.
    closed: bool,
}

impl Places {
    /// Nobody takes anything from now on but what is returned.
    fn end(&mut self) -> Vec<Option<Outcome>> {
        (self.closed, self.waker) = (true, None);
        std::mem::take(&mut self.outcomes)
    }
}

/// The receiving end of a [`Batch`]. Dropped, it closes the batch: what comes later finds nobody.
#[derive(Debug)]
pub struct BatchAnswers(Arc<Batch>);

impl Batch {
    /// A batch of `len` items, which is at least one.
    #[must_use]
    pub fn new(len: usize) -> (Arc<Self>, BatchAnswers) {
        let mut outcomes = Vec::new();
        outcomes.resize_with(len, || None);
        let batch = Arc::new(Self(Mutex::new(Places { outcomes, missing: len, waker: None, closed: false })));
        (Arc::clone(&batch), BatchAnswers(batch))
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.places().closed
    }

    /// Puts an answer in. False: nobody will take it.
    pub(super) fn fill(&self, place: u32, outcome: Outcome) -> bool {
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
    pub fn close(&self) -> Vec<(usize, Outcome)> {
        self.0.places().end().into_iter().enumerate().filter_map(|(place, outcome)| Some((place, outcome?))).collect()
    }
}

impl Future for BatchAnswers {
    type Output = Vec<Outcome>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<Outcome>> {
        let mut places = self.0.places();
        if places.missing > 0 {
            match &mut places.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(places.end().into_iter().map(|outcome| outcome.unwrap_or(Err(Refusal::DeadlineExceeded))).collect())
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
    use crate::shard::{Payload, Reply};

    fn poll(answers: &mut BatchAnswers) -> Poll<Vec<Outcome>> {
        Pin::new(answers).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn answers_leave_together_in_the_order_of_their_items() {
        let (batch, mut answers) = Batch::new(3);
        assert!(Reply::part(Arc::clone(&batch), 2).send(Ok(Payload::Done)));
        assert!(poll(&mut answers).is_pending());
        assert!(Reply::part(Arc::clone(&batch), 0).send(Err(Refusal::Fence)));
        // The shard of the last one panicked.
        drop(Reply::part(batch, 1));
        let unknown = Err(Refusal::DeadlineExceeded);
        assert_eq!(poll(&mut answers), Poll::Ready(vec![Err(Refusal::Fence), unknown, Ok(Payload::Done)]));
        assert_eq!(answers.close(), []);
    }

    #[test]
    fn c12_a_closed_batch_hands_back_what_came_and_takes_nothing_more() {
        let (batch, answers) = Batch::new(3);
        assert!(Reply::part(Arc::clone(&batch), 1).send(Ok(Payload::Done)));
        assert_eq!(answers.close(), [(1, Ok(Payload::Done))]);
        let late = Reply::part(Arc::clone(&batch), 0);
        assert!(late.is_gone() && !late.send(Ok(Payload::Done)));
        assert_eq!(answers.close(), []);
        drop(answers);
        assert!(!Reply::part(batch, 2).send(Ok(Payload::Done)), "the last one finds nobody either");
    }
}
