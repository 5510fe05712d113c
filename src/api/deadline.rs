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

use crate::api::error_table::Failure;
use crate::limits;
use crate::model::ClaimRequest;

tokio::task_local! {
    /// Wait of the request that this task runs.
    static WAITS: Waits;
    /// Connection on which the request came that this task runs.
    static CONNECTION: WaitingCalls;
}

/// How much longer than others a request may take, and that its connection bears it.
#[derive(Default)]
struct Waits {
    longest: Cell<Duration>,
    permit: OnceCell<OwnedSemaphorePermit>,
}

/// Room for requests of one connection that wait at the same time, [`limits::CONNECTION_WAITING_MAX`] of them.
#[derive(Debug, Clone)]
pub(super) struct WaitingCalls(Arc<Semaphore>);

impl Default for WaitingCalls {
    fn default() -> Self {
        Self::new(limits::CONNECTION_WAITING_MAX)
    }
}

impl WaitingCalls {
    fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }
}

/// Runs a request that came on this connection.
pub(super) fn within<F: Future>(connection: &WaitingCalls, request: F) -> impl Future<Output = F::Output> + use<F> {
    CONNECTION.scope(connection.clone(), request)
}

/// Why a request was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// Time for the request was over.
    Late,
    /// Nobody is waited for any longer who has closed the sending side.
    Departed,
}

/// Runs a request to its end. None: it took longer than `limit` and the time that it [waits](allow), or than `most` in all.
pub(super) async fn run<F: Future>(limit: Duration, most: Option<Duration>, request: F) -> Option<F::Output> {
    run_for(std::future::pending(), limit, most, request).await.ok()
}

/// Runs a request as [`run`] does, and gives one that waits up when its client `departs`.
pub(super) async fn run_for<F: Future>(
    departs: impl Future<Output = ()>,
    limit: Duration,
    most: Option<Duration>,
    request: F,
) -> Result<F::Output, GivenUp> {
    let watched = async {
        let allowed = || {
            let all = limit + WAITS.with(|waits| waits.longest.get());
            most.map_or(all, |most| all.min(most))
        };
        let (mut request, mut departs, mut is_there) = (pin!(request), pin!(departs), true);
        let mut so_far = allowed();
        let mut late = pin!(sleep(so_far));
        loop {
            tokio::select! {
                biased;
                answer = &mut request => return Ok(answer),
                () = &mut departs, if is_there => match WAITS.with(|waits| waits.longest.get()) {
                    Duration::ZERO => {
                        is_there = false;
                        continue;
                    }
                    _ => return Err(GivenUp::Departed),
                },
                () = &mut late => {}
            }
            let more = allowed().saturating_sub(so_far);
            if more.is_zero() {
                return Err(GivenUp::Late);
            }
            so_far += more;
            let until = late.deadline() + more;
            late.as_mut().reset(until);
        }
    };
    WAITS.scope(Waits::default(), watched).await
}

/// Lets the request that is being run wait as long as this claim of it; of several the longest counts.
///
/// # Errors
/// `overloaded`: as many requests of its connection wait already as may.
pub(super) fn allow(claim: ClaimRequest) -> Result<ClaimRequest, Failure> {
    let wait = Duration::from_millis(claim.waits_ms().min(limits::WAIT_MS_MAX));
    // Outside of `run` nothing has a deadline.
    let allowed = WAITS.try_with(|waits| {
        if !wait.is_zero() && waits.permit.get().is_none() {
            let permit = CONNECTION.try_with(|connection| Arc::clone(&connection.0).try_acquire_owned());
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
    Err(Failure::overloaded(format!(
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

    fn claim(wait_ms: u64) -> Result<ClaimRequest, Failure> {
        let id = ClaimId::new("ns", "default", "k").unwrap();
        allow(ClaimRequest { wait_ms, ..ClaimRequest::new(id, PoolName::new("ns", "p").unwrap()) })
    }

    /// Whether a request that waits so long is answered, if it takes a while; none: it is still under way some time later.
    async fn ends(most: Option<Duration>, wait_ms: &[u64], takes: Duration) -> Option<bool> {
        let request = async {
            wait_ms.iter().for_each(|ms| waits(*ms));
            sleep(takes).await;
        };
        timeout(LIMIT * 10, run(LIMIT, most, request)).await.ok().map(|answer| answer.is_some())
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
        assert!(run(LIMIT, None, late).await.is_some());
        waits(1);
    }

    /// Calls that wait leave streams of their connection for others; a batch that waits is one call.
    #[tokio::test]
    async fn q02_a_connection_bears_so_many_calls_that_wait() {
        let connection = WaitingCalls::new(2);
        let call = |waits: &'static [u64]| {
            let request = async move {
                let outcomes: Vec<bool> = waits.iter().map(|ms| claim(*ms).is_ok()).collect();
                tokio::task::yield_now().await;
                outcomes
            };
            Box::pin(within(&connection, run(LIMIT, None, request)))
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
