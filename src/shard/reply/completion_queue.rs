//! Answers to many requests of one caller, each there as soon as it is decided: a lock and no task or channel per request.

use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use super::ShardOutcome;

/// Where they lie until the caller takes them. Its bound is that of the requests in flight: each is answered once.
#[derive(Debug, Default)]
pub struct CompletionQueue {
    state: Mutex<CompletionState>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct CompletionState {
    /// By the places that the caller gave.
    outcomes: Vec<(u32, ShardOutcome)>,
    waker: Option<Waker>,
}

impl CompletionQueue {
    fn lock_state(&self) -> MutexGuard<'_, CompletionState> {
        self.state.lock()
    }

    /// Nobody takes anything any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// False: nobody takes it.
    pub(super) fn put(&self, place: u32, outcome: ShardOutcome) -> bool {
        let waker = {
            let mut mail = self.lock_state();
            if self.is_closed() {
                return false;
            }
            mail.outcomes.push((place, outcome));
            mail.waker.take()
        };
        // Without the lock, which whoever wakes up asks for first.
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// Moves all that came into `outcomes`, which is empty; with nothing there, the next to come wakes the task.
    pub fn poll_take(&self, context: &mut Context<'_>, outcomes: &mut Vec<(u32, ShardOutcome)>) -> Poll<()> {
        debug_assert!(outcomes.is_empty(), "what was taken before is dealt with");
        let mut mail = self.lock_state();
        if mail.outcomes.is_empty() {
            match &mut mail.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        std::mem::swap(&mut mail.outcomes, outcomes);
        Poll::Ready(())
    }

    /// The caller leaves. Returns what it did not take; what comes later finds nobody.
    pub fn close(&self) -> Vec<(u32, ShardOutcome)> {
        let mut mail = self.lock_state();
        self.closed.store(true, Ordering::Release);
        mail.waker = None;
        std::mem::take(&mut mail.outcomes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::task::{ArcWake, waker};

    use super::*;
    use crate::model::request_error::RequestError;
    use crate::shard::{ReplyPayload, ReplySender};

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl ArcWake for Count {
        fn wake_by_ref(arc_self: &Arc<Self>) {
            arc_self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn one_wake_brings_all_that_came() {
        let (inbox, count) = (Arc::new(CompletionQueue::default()), Arc::new(Count::default()));
        let waker = waker(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut outcomes = Vec::new();
        assert!(inbox.poll_take(&mut context, &mut outcomes).is_pending());
        for place in [7, 3] {
            assert!(ReplySender::completion(Arc::clone(&inbox), place).send(Ok(ReplyPayload::Done)));
        }
        // Its shard panicked.
        drop(ReplySender::completion(Arc::clone(&inbox), 5));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(inbox.poll_take(&mut context, &mut outcomes).is_ready());
        let unknown = Err(RequestError::DeadlineExceeded);
        assert_eq!(outcomes, [(7, Ok(ReplyPayload::Done)), (3, Ok(ReplyPayload::Done)), (5, unknown)]);
    }

    #[test]
    fn who_left_is_told_nothing_and_what_lay_there_is_handed_back() {
        let inbox = Arc::new(CompletionQueue::default());
        let late = ReplySender::completion(Arc::clone(&inbox), 1);
        assert!(!late.is_closed() && ReplySender::completion(Arc::clone(&inbox), 0).send(Ok(ReplyPayload::Done)));
        assert_eq!(inbox.close(), [(0, Ok(ReplyPayload::Done))]);
        assert!(late.is_closed() && late.is_abandoned() && !late.send(Ok(ReplyPayload::Done)));
        assert_eq!(inbox.close(), []);
    }
}
