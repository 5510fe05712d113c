//! When a request is given up: after the time that any may take, and one that waits for room that much later.
//!
//! The time begins with a request's head, and how long it may wait stands in its body. So the handler says it when it has
//! read that, and whoever looks at the clock asks for it when the time is up.

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
    /// Wait of the request that this task runs.
    static WAIT_ALLOWANCE: WaitAllowance;
    /// Connection on which the request came that this task runs.
    static CONNECTION_WAITS: WaitPermits;
}

/// How much longer than others a request may take, and that its connection bears it.
#[derive(Default)]
struct WaitAllowance {
    longest: Cell<Duration>,
    permit: OnceCell<OwnedSemaphorePermit>,
}

/// Room for requests of one connection that wait at the same time, [`limits::CONNECTION_WAITING_MAX`] of them.
#[derive(Debug, Clone)]
pub(super) struct WaitPermits(Arc<Semaphore>);

impl Default for WaitPermits {
    fn default() -> Self {
        Self::new(limits::CONNECTION_WAITING_MAX)
    }
}

impl WaitPermits {
    fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }
}

/// Runs a request that came on this connection.
pub(super) fn with_connection<F: Future>(
    connection: &WaitPermits,
    request: F,
) -> impl Future<Output = F::Output> + use<F> {
    CONNECTION_WAITS.scope(connection.clone(), request)
}

/// Why a request was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AbandonReason {
    /// Time for the request was over.
    TimedOut,
    /// Nobody is waited for any longer who has closed the sending side.
    ClientGone,
}

/// Runs a request to its end. None: it took longer than `limit` and the time that it [waits](allow), or than `most` in all.
pub(super) async fn run_with_deadline<F: Future>(
    limit: Duration,
    most: Option<Duration>,
    request: F,
) -> Option<F::Output> {
    run_until_client_leaves(std::future::pending(), limit, most, request).await.ok()
}

/// Runs a request as [`run`] does, and gives one that waits up when its client `departs`.
pub(super) async fn run_until_client_leaves<F: Future>(
    departs: impl Future<Output = ()>,
    limit: Duration,
    most: Option<Duration>,
    request: F,
) -> Result<F::Output, AbandonReason> {
    let watched = async {
        let allowed = || {
            let all = limit + WAIT_ALLOWANCE.with(|waits| waits.longest.get());
            most.map_or(all, |most| all.min(most))
        };
        let (mut request, mut departs, mut is_there) = (pin!(request), pin!(departs), true);
        let mut so_far = allowed();
        let mut late = pin!(sleep(so_far));
        loop {
            tokio::select! {
                biased;
                answer = &mut request => return Ok(answer),
                () = &mut departs, if is_there => match WAIT_ALLOWANCE.with(|waits| waits.longest.get()) {
                    Duration::ZERO => {
                        is_there = false;
                        continue;
                    }
                    _ => return Err(AbandonReason::ClientGone),
                },
                () = &mut late => {}
            }
            let more = allowed().saturating_sub(so_far);
            if more.is_zero() {
                return Err(AbandonReason::TimedOut);
            }
            so_far += more;
            let until = late.deadline() + more;
            late.as_mut().reset(until);
        }
    };
    WAIT_ALLOWANCE.scope(WaitAllowance::default(), watched).await
}

/// Lets the request that is being run wait as long as this claim of it; of several the longest counts.
///
/// # Errors
/// `overloaded`: as many requests of its connection wait already as may.
pub(super) fn extend_for_wait(claim: ClaimRequest) -> Result<ClaimRequest, ApiError> {
    let wait = Duration::from_millis(claim.max_wait_ms().min(limits::WAIT_MS_MAX));
    // Outside of `run` nothing has a deadline.
    let allowed = WAIT_ALLOWANCE.try_with(|waits| {
        if !wait.is_zero() && waits.permit.get().is_none() {
            let permit = CONNECTION_WAITS.try_with(|connection| Arc::clone(&connection.0).try_acquire_owned());
            match permit {
                Ok(Ok(permit)) => drop(waits.permit.set(permit)),
                Ok(Err(_)) => return false,
                // It came on no connection.
                Err(_) => {}
            }
        }
        waits.longest.set(waits.longest.get().max(wait));
        true
    });
    if allowed.unwrap_or(true) {
        return Ok(claim);
    }
    Err(ApiError::overloaded(format!(
        "{} requests of this connection wait for room, which is as many as may: let some of them end, or open another \
         connection",
        limits::CONNECTION_WAITING_MAX
    )))
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::model::{ClaimId, PoolName};

    const LIMIT: Duration = Duration::from_millis(20);

    fn waits(wait_ms: u64) {
        claim(wait_ms).unwrap();
    }

    fn claim(wait_ms: u64) -> Result<ClaimRequest, ApiError> {
        let id = ClaimId::new("ns", "default", "k").unwrap();
        extend_for_wait(ClaimRequest { wait_ms, ..ClaimRequest::new(id, PoolName::new("ns", "p").unwrap()) })
    }

    /// Whether a request that waits so long is answered, if it takes a while; none: it is still under way some time later.
    async fn ends(most: Option<Duration>, wait_ms: &[u64], takes: Duration) -> Option<bool> {
        let request = async {
            wait_ms.iter().for_each(|ms| waits(*ms));
            sleep(takes).await;
        };
        timeout(LIMIT * 10, run_with_deadline(LIMIT, most, request)).await.ok().map(|answer| answer.is_some())
    }

    #[tokio::test]
    async fn a_request_that_waits_has_its_wait_on_top() {
        let never = Duration::MAX;
        assert_eq!(ends(None, &[], never).await, Some(false));
        assert_eq!(ends(None, &[], Duration::ZERO).await, Some(true));
        assert_eq!(ends(None, &[7], LIMIT * 5).await, Some(false));
        assert_eq!(ends(None, &[5, 1_000, 7], LIMIT * 5).await, Some(true));
        assert_eq!(ends(None, &[u64::MAX], never).await, None);
        // The caller's own limit stands.
        assert_eq!(ends(Some(LIMIT * 3), &[60_000], never).await, Some(false));
        assert_eq!(ends(Some(LIMIT / 10), &[60_000], LIMIT).await, Some(false));
        assert_eq!(ends(Some(LIMIT * 99), &[], never).await, Some(false));
        // Said late, but in time.
        let late = async {
            sleep(LIMIT / 2).await;
            waits(1_000);
            sleep(LIMIT * 3).await;
        };
        assert!(run_with_deadline(LIMIT, None, late).await.is_some());
        waits(1);
    }

    /// Calls that wait leave streams of their connection for others; a batch that waits is one call.
    #[tokio::test]
    async fn q02_a_connection_bears_so_many_calls_that_wait() {
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
