//! Deadlines of requests: the request timeout, extended by the time that a claim may be queued for capacity.
//!
//! The timeout starts when the head of a request arrives, but the extension is in its body. So the handler records the
//! extension once it has read the body, and the timer reads it when the timeout elapses.

use std::cell::{Cell, OnceCell};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use crate::api::error_table::ApiError;
use crate::limits;
use crate::model::ClaimRequest;

tokio::task_local! {
    /// Extension for the request that this task runs.
    static WAIT_ALLOWANCE: WaitAllowance;
    /// Wait permits of the connection that carries this task's request.
    static CONNECTION_WAITS: WaitPermits;
}

/// Extension of one request's deadline, with the connection's permit for it.
#[derive(Default)]
struct WaitAllowance {
    longest: Cell<Duration>,
    permit: OnceCell<OwnedSemaphorePermit>,
}

/// Limit on requests of one connection that are queued for capacity at the same time
/// ([`limits::CONNECTION_WAITING_MAX`]).
#[derive(Debug, Clone)]
pub(super) struct WaitPermits(Arc<Semaphore>);

impl Default for WaitPermits {
    fn default() -> Self {
        Self::new(limits::CONNECTION_WAITING_MAX)
    }
}

impl WaitPermits {
    fn new(max: usize) -> Self {
        Self(Arc::new(Semaphore::new(max)))
    }
}

/// Runs a request with the wait permits of its connection.
pub(super) fn with_connection<F: Future>(
    connection: &WaitPermits,
    request: F,
) -> impl Future<Output = F::Output> + use<F> {
    CONNECTION_WAITS.scope(connection.clone(), request)
}

/// Reason why a request was abandoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AbandonReason {
    /// Deadline of the request has passed.
    TimedOut,
    /// Client has closed its sending side, and the grace period is over.
    ClientGone,
}

/// Runs a request to completion. Returns `None` if it exceeds `limit` plus its [extension](extend_for_wait), or `max`
/// in all.
pub(super) async fn run_with_deadline<F: Future>(
    limit: Duration,
    max: Option<Duration>,
    request: F,
) -> Option<F::Output> {
    run_until_client_leaves(std::future::pending(), limit, max, request).await.ok()
}

/// Runs a request like [`run_with_deadline`], and abandons one that is queued when its client `departs`.
pub(super) async fn run_until_client_leaves<F: Future>(
    departs: impl Future<Output = ()>,
    limit: Duration,
    max: Option<Duration>,
    request: F,
) -> Result<F::Output, AbandonReason> {
    let supervised = async {
        let allowed = || {
            let all = limit + WAIT_ALLOWANCE.with(|allowance| allowance.longest.get());
            max.map_or(all, |max| all.min(max))
        };
        let (mut request, mut departs, mut is_connected) = (pin!(request), pin!(departs), true);
        let mut limit_so_far = allowed();
        let mut timer = pin!(sleep(limit_so_far));
        loop {
            tokio::select! {
                biased;
                output = &mut request => return Ok(output),
                () = &mut departs, if is_connected => match WAIT_ALLOWANCE.with(|allowance| allowance.longest.get()) {
                    Duration::ZERO => {
                        is_connected = false;
                        continue;
                    }
                    _ => return Err(AbandonReason::ClientGone),
                },
                () = &mut timer => {}
            }
            let more = allowed().saturating_sub(limit_so_far);
            if more.is_zero() {
                return Err(AbandonReason::TimedOut);
            }
            limit_so_far += more;
            let until = timer.deadline() + more;
            timer.as_mut().reset(until);
        }
    };
    WAIT_ALLOWANCE.scope(WaitAllowance::default(), supervised).await
}

/// Extends the deadline of the current request by the wait of `claim`; the longest wait of several counts.
///
/// # Errors
/// `overloaded`: too many requests of its connection are queued.
pub(super) fn extend_for_wait(claim: ClaimRequest) -> Result<ClaimRequest, ApiError> {
    let wait = Duration::from_millis(claim.max_wait_ms().min(limits::WAIT_MS_MAX));
    // Outside of `run_with_deadline` there is no deadline to extend.
    let allowed = WAIT_ALLOWANCE.try_with(|allowance| {
        if !wait.is_zero() && allowance.permit.get().is_none() {
            let permit = CONNECTION_WAITS.try_with(|connection| Arc::clone(&connection.0).try_acquire_owned());
            match permit {
                Ok(Ok(permit)) => drop(allowance.permit.set(permit)),
                Ok(Err(_)) => return false,
                // The request came from inside the process.
                Err(_) => {}
            }
        }
        allowance.longest.set(allowance.longest.get().max(wait));
        true
    });
    if allowed.unwrap_or(true) {
        return Ok(claim);
    }
    Err(ApiError::overloaded(format!(
        "{} requests of this connection are queued for capacity, which is the limit: wait until some of them end, or open \
         another connection",
        limits::CONNECTION_WAITING_MAX
    )))
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::model::{ClaimId, PoolName};

    const LIMIT: Duration = Duration::from_millis(20);

    fn extend(wait_ms: u64) {
        claim(wait_ms).unwrap();
    }

    fn claim(wait_ms: u64) -> Result<ClaimRequest, ApiError> {
        let id = ClaimId::new("ns", "default", "k").unwrap();
        extend_for_wait(ClaimRequest { wait_ms, ..ClaimRequest::new(id, PoolName::new("ns", "p").unwrap()) })
    }

    /// Runs a request that waits and takes a while. Returns whether it completed; `None`: it is still running after ten
    /// times the limit.
    async fn completes(max: Option<Duration>, wait_ms: &[u64], duration: Duration) -> Option<bool> {
        let request = async {
            wait_ms.iter().for_each(|ms| extend(*ms));
            sleep(duration).await;
        };
        timeout(LIMIT * 10, run_with_deadline(LIMIT, max, request)).await.ok().map(|output| output.is_some())
    }

    #[tokio::test]
    async fn a_queued_request_has_its_wait_on_top_of_the_timeout() {
        let never = Duration::MAX;
        assert_eq!(completes(None, &[], never).await, Some(false));
        assert_eq!(completes(None, &[], Duration::ZERO).await, Some(true));
        assert_eq!(completes(None, &[7], LIMIT * 5).await, Some(false));
        assert_eq!(completes(None, &[5, 1_000, 7], LIMIT * 5).await, Some(true));
        assert_eq!(completes(None, &[u64::MAX], never).await, None);
        // The caller's own limit stays.
        assert_eq!(completes(Some(LIMIT * 3), &[60_000], never).await, Some(false));
        assert_eq!(completes(Some(LIMIT / 10), &[60_000], LIMIT).await, Some(false));
        assert_eq!(completes(Some(LIMIT * 99), &[], never).await, Some(false));
        // Recorded late, but before the timeout.
        let late = async {
            sleep(LIMIT / 2).await;
            extend(1_000);
            sleep(LIMIT * 3).await;
        };
        assert!(run_with_deadline(LIMIT, None, late).await.is_some());
        extend(1);
    }

    /// Queued calls leave streams of their connection for other calls; a queued batch counts as one call.
    #[tokio::test]
    async fn q02_a_connection_has_a_limit_of_queued_calls() {
        let connection = WaitPermits::new(2);
        let call = |waits: &'static [u64]| {
            let request = async move {
                let outcomes: Vec<bool> = waits.iter().map(|ms| claim(*ms).is_ok()).collect();
                tokio::task::yield_now().await;
                outcomes
            };
            Box::pin(with_connection(&connection, run_with_deadline(LIMIT, None, request)))
        };
        let (mut first, mut second) = (call(&[60_000, 60_000]), call(&[60_000]));
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
        assert_eq!(call(&[0, 1, 0]).await, Some(vec![true, false, true]));
        assert_eq!(first.await, Some(vec![true, true]));
        assert_eq!(call(&[1]).await, Some(vec![true]));
        drop(second);
        assert_eq!(call(&[1]).await, Some(vec![true]));
    }
}
