//! Completions of many requests of one caller, each available as soon as it is decided: one lock, and no task or
//! channel per request.

use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use super::ShardOutcome;

/// Queue of completions until the caller takes them. Bounded by the requests in flight: each is answered once.
#[derive(Debug, Default)]
pub struct CompletionQueue {
    state: Mutex<CompletionState>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct CompletionState {
    /// Completions, by the tokens that the caller chose.
    outcomes: Vec<(u32, ShardOutcome)>,
    waker: Option<Waker>,
}

impl CompletionQueue {
    fn lock_state(&self) -> MutexGuard<'_, CompletionState> {
        self.state.lock()
    }

    /// Whether nobody takes completions any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Adds a completion. Returns false if nobody takes it.
    pub(super) fn put(&self, token: u32, outcome: ShardOutcome) -> bool {
        let waker = {
            let mut state = self.lock_state();
            if self.is_closed() {
                return false;
            }
            state.outcomes.push((token, outcome));
            state.waker.take()
        };
        // After unlocking, because the woken task takes the lock first.
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// Moves all completions into `outcomes`, which must be empty. If there are none, the next one wakes the task.
    pub fn poll_take(&self, context: &mut Context<'_>, outcomes: &mut Vec<(u32, ShardOutcome)>) -> Poll<()> {
        debug_assert!(outcomes.is_empty(), "completions of the last poll must be consumed first");
        let mut state = self.lock_state();
        if state.outcomes.is_empty() {
            match &mut state.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        std::mem::swap(&mut state.outcomes, outcomes);
        Poll::Ready(())
    }

    /// Closes the queue and returns the completions that were not taken. Later ones are refused.
    pub fn close(&self) -> Vec<(u32, ShardOutcome)> {
        let mut state = self.lock_state();
        self.closed.store(true, Ordering::Release);
        state.waker = None;
        std::mem::take(&mut state.outcomes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::task::{ArcWake, waker};

    use super::*;
    use crate::model::request_error::RequestError;
    use crate::shard::{ClaimReply, ReplySender};

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl ArcWake for Count {
        fn wake_by_ref(arc_self: &Arc<Self>) {
            arc_self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn one_wake_up_delivers_all_completions() {
        let (queue, count) = (Arc::new(CompletionQueue::default()), Arc::new(Count::default()));
        let waker = waker(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut outcomes = Vec::new();
        assert!(queue.poll_take(&mut context, &mut outcomes).is_pending());
        for token in [7, 3] {
            assert!(ReplySender::completion(Arc::clone(&queue), token).send(Ok(ClaimReply::Released)));
        }
        // The shard of this request panicked.
        drop(ReplySender::completion(Arc::clone(&queue), 5));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(queue.poll_take(&mut context, &mut outcomes).is_ready());
        let unknown = Err(RequestError::DeadlineExceeded);
        assert_eq!(outcomes, [(7, Ok(ClaimReply::Released)), (3, Ok(ClaimReply::Released)), (5, unknown)]);
    }

    #[test]
    fn a_closed_queue_returns_its_completions_and_accepts_no_more() {
        let queue = Arc::new(CompletionQueue::default());
        let late = ReplySender::completion(Arc::clone(&queue), 1);
        assert!(!late.is_closed() && ReplySender::completion(Arc::clone(&queue), 0).send(Ok(ClaimReply::Released)));
        assert_eq!(queue.close(), [(0, Ok(ClaimReply::Released))]);
        assert!(late.is_closed() && late.is_abandoned() && !late.send(Ok(ClaimReply::Released)));
        assert_eq!(queue.close(), []);
    }
}
