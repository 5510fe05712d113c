//! Completion of one awaited call: a queue of length one, which the thread keeps for its next call. So a call whose
//! shard decides at once allocates nothing.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::address::{CallerGone, ReplyAddress};
use super::{ShardOutcome, take_outcome};
use crate::limits;

thread_local! {
    /// Cells of finished calls of the thread.
    static FREE_CELLS: RefCell<Vec<Arc<CompletionCell>>> = const { RefCell::new(Vec::new()) };
}

/// Place of one outcome, between the address that fills it and the [`AwaitedReply`] that takes it.
#[derive(Debug, Default)]
pub struct CompletionCell(Mutex<CellState>);

#[derive(Debug, Default)]
struct CellState {
    /// Whether the outcome was taken, or nobody takes it any more.
    closed: bool,
    outcome: Option<ShardOutcome>,
    waker: Option<Waker>,
}

impl CompletionCell {
    /// Whether nobody takes the outcome any more.
    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().closed
    }

    /// Adds the outcome, which is taken from `outcome`.
    ///
    /// # Errors
    /// Nobody takes it any more, and it stays.
    #[inline]
    pub(super) fn put(&self, outcome: &mut ShardOutcome) -> Result<(), CallerGone> {
        let waker = {
            let mut state = self.0.lock();
            if state.closed {
                return Err(CallerGone);
            }
            debug_assert!(state.outcome.is_none(), "R1: a reply has one address, which sends once");
            state.outcome = Some(take_outcome(outcome));
            state.waker.take()
        };
        // After unlocking, because the woken task takes the lock first.
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn poll_take(&self, context: &Context<'_>) -> Poll<ShardOutcome> {
        let mut state = self.0.lock();
        if let Some(outcome) = state.outcome.take() {
            state.closed = true;
            return Poll::Ready(outcome);
        }
        assert!(!state.closed, "a reply is not awaited after it was taken");
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    fn close(&self) -> Option<ShardOutcome> {
        let mut state = self.0.lock();
        state.closed = true;
        state.waker = None;
        state.outcome.take()
    }
}

/// Reply to one call, as a future of its outcome. Dropping it closes the cell, so that a later reply is handed back.
#[derive(Debug)]
pub struct AwaitedReply(Arc<CompletionCell>);

impl AwaitedReply {
    /// Creates the address of one reply, and the reply.
    #[must_use]
    pub fn new() -> (ReplyAddress, Self) {
        let free = FREE_CELLS.try_with(|cells| cells.borrow_mut().pop()).ok().flatten();
        let cell = free.unwrap_or_default();
        (ReplyAddress::cell(Arc::clone(&cell)), Self(cell))
    }

    /// Closes the cell and returns the outcome if it arrived and was not taken. A later one is refused.
    pub fn close(&mut self) -> Option<ShardOutcome> {
        self.0.close()
    }
}

impl Future for AwaitedReply {
    type Output = ShardOutcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<ShardOutcome> {
        self.0.poll_take(context)
    }
}

impl Drop for AwaitedReply {
    fn drop(&mut self) {
        let Some(cell) = Arc::get_mut(&mut self.0) else {
            // Somebody may still reply, so the cell must not serve another call.
            drop(self.0.close());
            return;
        };
        *cell.0.get_mut() = CellState::default();
        // A thread that ends has no list any more.
        let _ = FREE_CELLS.try_with(|cells| {
            let mut cells = cells.borrow_mut();
            if cells.len() < limits::FREE_CELLS_MAX {
                cells.push(Arc::clone(&self.0));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;
    use futures::task::{ArcWake, waker};

    use super::*;
    use crate::model::request_error::RequestError;
    use crate::shard::ClaimReply;

    const RELEASED: ShardOutcome = Ok(ClaimReply::Released);

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl ArcWake for Count {
        fn wake_by_ref(arc_self: &Arc<Self>) {
            arc_self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn free_cells() -> usize {
        FREE_CELLS.with_borrow(Vec::len)
    }

    #[test]
    fn an_outcome_that_was_there_before_is_taken_by_the_first_poll() {
        let (address, mut reply) = AwaitedReply::new();
        assert_eq!(address.send(RELEASED), Ok(()));
        assert_eq!((&mut reply).now_or_never(), Some(RELEASED));
        assert_eq!(reply.close(), None);
    }

    #[test]
    fn an_outcome_wakes_the_task_that_waits_for_it() {
        let (address, mut reply) = AwaitedReply::new();
        let count = Arc::new(Count::default());
        let waker = waker(Arc::clone(&count));
        let mut poll = || Pin::new(&mut reply).poll(&mut Context::from_waker(&waker));
        assert!(poll().is_pending() && poll().is_pending());
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        assert_eq!(address.send(RELEASED), Ok(()));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(), Poll::Ready(RELEASED));
    }

    #[test]
    fn an_address_that_is_dropped_says_that_the_outcome_is_unknown() {
        let (address, reply) = AwaitedReply::new();
        drop(address);
        assert_eq!(reply.now_or_never(), Some(Err(RequestError::DeadlineExceeded)));
    }

    #[test]
    fn a_closed_cell_returns_its_outcome_and_hands_later_ones_back() {
        let (address, mut reply) = AwaitedReply::new();
        assert_eq!(address.send(RELEASED), Ok(()));
        assert_eq!(reply.close(), Some(RELEASED));
        let (late, reply) = AwaitedReply::new();
        assert!(!late.is_abandoned());
        drop(reply);
        assert!(late.is_abandoned());
        assert_eq!(late.send(RELEASED), Err(RELEASED));
    }

    #[test]
    fn a_cell_serves_another_call_once_nobody_can_reply_to_the_last() {
        let (address, mut reply) = AwaitedReply::new();
        let cell = Arc::as_ptr(&reply.0);
        assert_eq!(address.send(RELEASED), Ok(()));
        assert_eq!((&mut reply).now_or_never(), Some(RELEASED));
        drop(reply);
        let (abandoned, mut reply) = AwaitedReply::new();
        assert_eq!(Arc::as_ptr(&reply.0), cell);
        assert_eq!((&mut reply).now_or_never(), None, "the outcome of the last call has gone");
        drop(reply);
        assert_eq!(free_cells(), 0, "the address may still reply");
        assert_eq!(abandoned.send(RELEASED), Err(RELEASED));
    }

    #[test]
    fn a_thread_keeps_a_bounded_number_of_cells() {
        let calls: Vec<_> = (0..=limits::FREE_CELLS_MAX).map(|_| AwaitedReply::new()).collect();
        drop(calls);
        assert_eq!(free_cells(), limits::FREE_CELLS_MAX);
    }
}
