//! Memory of large responses until their clients have read them. Over HTTP/2 a client controls how much of each
//! response is sent, so that thousands of responses of one connection may be pending at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error_table::ApiError;

/// Largest response that is not charged to the budget, in bytes.
pub(super) const SMALL_RESPONSE_BYTES: usize = 4 << 10;
/// Limit on the sum of all large responses, in bytes.
const RESPONSE_BUDGET_BYTES: usize = 256 << 20;

/// Budget that all large responses share. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ResponseBudget(Arc<AtomicUsize>);

/// Charge of one response, returned on drop.
#[derive(Debug)]
pub(super) struct ResponsePermit {
    budget: ResponseBudget,
    bytes: usize,
}

impl ResponseBudget {
    /// Checks that the budget is not used up. A request that changes something checks before it does: its response is
    /// charged even beyond the budget, because an outcome that is never reported would be worse.
    ///
    /// # Errors
    /// `overloaded`: unread responses use up the budget.
    pub(super) fn check_available(&self) -> Result<(), ApiError> {
        if self.0.load(Ordering::Relaxed) < RESPONSE_BUDGET_BYTES { Ok(()) } else { Err(response_budget_exceeded()) }
    }

    /// Charges a response of so many bytes, even beyond the budget.
    pub(super) fn acquire(&self, bytes: usize) -> ResponsePermit {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        ResponsePermit { budget: self.clone(), bytes }
    }

    /// Charges a response that may be rejected, because its request changed nothing.
    ///
    /// # Errors
    /// `overloaded`: the budget cannot take it.
    pub(super) fn try_acquire(&self, bytes: usize) -> Result<ResponsePermit, ApiError> {
        let sum = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= RESPONSE_BUDGET_BYTES);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum) {
            Ok(_) => Ok(ResponsePermit { budget: self.clone(), bytes }),
            Err(_) => Err(response_budget_exceeded()),
        }
    }
}

impl Drop for ResponsePermit {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn response_budget_exceeded() -> ApiError {
    ApiError::overloaded(format!(
        "unread responses over {} KiB use up their budget of {} MiB; read them, retry later, or request smaller pages \
         and batches",
        SMALL_RESPONSE_BYTES >> 10,
        RESPONSE_BUDGET_BYTES >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h06_reads_are_rejected_beyond_the_budget_and_writes_before_they_are_executed() {
        let budget = ResponseBudget::default();
        let half = budget.try_acquire(RESPONSE_BUDGET_BYTES / 2).unwrap();
        assert!(budget.try_acquire(RESPONSE_BUDGET_BYTES).is_err());
        budget.check_available().unwrap();
        let more = budget.acquire(RESPONSE_BUDGET_BYTES);
        assert!(budget.check_available().is_err() && budget.try_acquire(1).is_err());
        drop(half);
        assert!(budget.check_available().is_err());
        drop(more);
        budget.check_available().unwrap();
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }
}
