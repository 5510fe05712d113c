//! Completions of many requests of one caller: one lock, and no task or channel per request. A stream takes each as
//! soon as it is decided; a batch or gang collects all of its items.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};

use super::address::CallerGone;
use super::{ShardOutcome, take_outcome};

/// Number by which the caller knows a request in its queue.
pub type CompletionToken = u32;

/// Outcome of a request, with the caller's token.
#[derive(Debug, PartialEq)]
pub struct Completion {
    /// Token of the request.
    pub token: CompletionToken,
    /// Outcome of the request.
    pub outcome: ShardOutcome,
}

/// Queue of completions until the caller takes them. Bounded by the requests in flight: each is answered once.
#[derive(Debug, Default)]
pub struct CompletionQueue {
    state: Mutex<CompletionState>,
    closed: AtomicBool,
    delivery: DeliveryMode,
}

/// Time at which the caller gets the completions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum DeliveryMode {
    /// As soon as there is one.
    #[default]
    Each,
    /// Once there are so many, which are all.
    Together(usize),
}

#[derive(Debug, Default)]
struct CompletionState {
    completions: Vec<Completion>,
    waker: Option<Waker>,
}

impl CompletionQueue {
    /// Creates the queue of a caller that gets all `len` completions together.
    #[must_use]
    pub fn collecting(len: usize) -> Self {
        let state = CompletionState { completions: Vec::with_capacity(len), waker: None };
        Self { state: Mutex::new(state), closed: AtomicBool::new(false), delivery: DeliveryMode::Together(len) }
    }

    fn lock_state(&self) -> MutexGuard<'_, CompletionState> {
        self.state.lock()
    }

    /// Whether nobody takes completions any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether the caller gets all completions together.
    pub(super) const fn collects(&self) -> bool {
        matches!(self.delivery, DeliveryMode::Together(_))
    }

    /// Whether the caller gets these completions now.
    const fn is_due(&self, completions: &[Completion]) -> bool {
        match self.delivery {
            DeliveryMode::Each => !completions.is_empty(),
            DeliveryMode::Together(len) => completions.len() >= len,
        }
    }

    /// Adds a completion, whose outcome is taken from `outcome`.
    ///
    /// # Errors
    /// Nobody takes it any more, and it stays.
    pub fn put(&self, token: CompletionToken, outcome: &mut ShardOutcome) -> Result<(), CallerGone> {
        let waker = {
            let mut state = self.lock_state();
            if self.is_closed() {
                return Err(CallerGone);
            }
            state.completions.push(Completion { token, outcome: take_outcome(outcome) });
            if self.is_due(&state.completions) { state.waker.take() } else { None }
        };
        // After unlocking, because the woken task takes the lock first.
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Moves all completions into `completions`, which must be empty. If there are none, or not all of those that are
    /// delivered together, the next delivery wakes the task.
    pub fn poll_take(&self, context: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<()> {
        debug_assert!(completions.is_empty(), "completions of the last poll must be consumed first");
        let mut state = self.lock_state();
        if !self.is_due(&state.completions) {
            match &mut state.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        std::mem::swap(&mut state.completions, completions);
        Poll::Ready(())
    }

    /// Waits for all completions of a caller that gets them together. Returns the outcomes in the order of their
    /// tokens, which count from 0.
    pub async fn collect(&self) -> Vec<ShardOutcome> {
        assert!(self.collects(), "R1: completions that are taken one by one cannot be collected");
        let mut completions = Vec::new();
        poll_fn(|context| self.poll_take(context, &mut completions)).await;
        let mut outcomes: Vec<Option<ShardOutcome>> = std::iter::repeat_with(|| None).take(completions.len()).collect();
        for Completion { token, outcome } in completions {
            outcomes[token as usize] = Some(outcome);
        }
        outcomes.into_iter().map(|outcome| outcome.expect("R1: each token has one address, which sends once")).collect()
    }

    /// Closes the queue and returns the completions that nobody took. Later ones are handed back.
    pub fn close(&self) -> Vec<Completion> {
        let mut state = self.lock_state();
        self.closed.store(true, Ordering::Release);
        state.waker = None;
        std::mem::take(&mut state.completions)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use futures::FutureExt as _;
    use futures::task::{ArcWake, waker};

    use super::*;
    use crate::model::request_error::RequestError;
    use crate::shard::{ClaimReply, ReplyAddress};

    const RELEASED: ShardOutcome = Ok(ClaimReply::Released);
    const UNKNOWN: ShardOutcome = Err(RequestError::DeadlineExceeded);

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl ArcWake for Count {
        fn wake_by_ref(arc_self: &Arc<Self>) {
            arc_self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn address(queue: &Arc<CompletionQueue>, token: CompletionToken) -> ReplyAddress {
        ReplyAddress::queue(Arc::clone(queue), token)
    }

    fn completion(token: CompletionToken, outcome: ShardOutcome) -> Completion {
        Completion { token, outcome }
    }

    #[test]
    fn one_wake_up_delivers_all_completions() {
        let (queue, count) = (Arc::new(CompletionQueue::default()), Arc::new(Count::default()));
        let waker = waker(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut completions = Vec::new();
        assert!(queue.poll_take(&mut context, &mut completions).is_pending());
        for token in [7, 3] {
            assert_eq!(address(&queue, token).send(RELEASED), Ok(()));
        }
        // The shard of this request panicked.
        drop(address(&queue, 5));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(queue.poll_take(&mut context, &mut completions).is_ready());
        assert_eq!(completions, [completion(7, RELEASED), completion(3, RELEASED), completion(5, UNKNOWN)]);
    }

    #[test]
    fn a_closed_queue_returns_its_completions_and_hands_later_ones_back() {
        let queue = Arc::new(CompletionQueue::default());
        let late = address(&queue, 1);
        assert!(!late.is_abandoned());
        assert_eq!(address(&queue, 0).send(RELEASED), Ok(()));
        assert_eq!(queue.close(), [completion(0, RELEASED)]);
        assert!(late.is_abandoned());
        assert_eq!(late.send(RELEASED), Err(RELEASED));
        assert_eq!(queue.close(), []);
    }

    #[test]
    fn collected_completions_arrive_together_in_the_order_of_their_tokens() {
        let (queue, count) = (Arc::new(CompletionQueue::collecting(3)), Arc::new(Count::default()));
        let mut collected = pin!(queue.collect());
        let waker = waker(Arc::clone(&count));
        assert!(collected.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let last = address(&queue, 1);
        assert!(last.is_collected());
        assert_eq!(address(&queue, 2).send(RELEASED), Ok(()));
        assert_eq!(address(&queue, 0).send(Err(RequestError::FenceMismatch)), Ok(()));
        assert_eq!(count.0.load(Ordering::SeqCst), 0, "one is missing");
        // The shard of the last item panicked.
        drop(last);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(collected.now_or_never(), Some(vec![Err(RequestError::FenceMismatch), UNKNOWN, RELEASED]));
        assert_eq!(queue.close(), []);
    }

    #[test]
    fn c12_completions_that_nobody_collected_are_returned_and_later_ones_handed_back() {
        let queue = Arc::new(CompletionQueue::collecting(3));
        assert_eq!(address(&queue, 1).send(RELEASED), Ok(()));
        let late = address(&queue, 0);
        assert_eq!(queue.close(), [completion(1, RELEASED)]);
        assert!(late.is_abandoned());
        assert_eq!(late.send(RELEASED), Err(RELEASED));
        assert_eq!(address(&queue, 2).send(RELEASED), Err(RELEASED), "the last reply is handed back too");
    }
}
