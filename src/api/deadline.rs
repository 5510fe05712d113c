//! When a request is given up: after the time that any may take, and one that waits for room that much later.
//!
//! The time begins with a request's head, and how long it may wait stands in its body. So the handler says it when it has
//! read that, and whoever looks at the clock asks for it when the time is up.

use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;

use crate::limits;
use crate::model::ClaimRequest;

tokio::task_local! {
    /// How much longer the request may take that this task runs.
    static WAITS: Cell<Duration>;
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
            let all = limit + WAITS.with(Cell::get);
            most.map_or(all, |most| all.min(most))
        };
        let (mut request, mut departs, mut is_there) = (pin!(request), pin!(departs), true);
        let mut so_far = allowed();
        let mut late = pin!(sleep(so_far));
        loop {
            tokio::select! {
                biased;
                answer = &mut request => return Ok(answer),
                () = &mut departs, if is_there => match WAITS.with(Cell::get) {
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
    WAITS.scope(Cell::new(Duration::ZERO), watched).await
}

/// The request that is being run may wait as long as this claim of it; of several the longest counts.
pub(super) fn allow(claim: &ClaimRequest) {
    let wait = Duration::from_millis(claim.waits_ms().min(limits::WAIT_MS_MAX));
    // Outside of `run` nothing has a deadline.
    let _ = WAITS.try_with(|waits| waits.set(waits.get().max(wait)));
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::model::{ClaimId, PoolName};

    const LIMIT: Duration = Duration::from_millis(20);

    fn waits(wait_ms: u64) {
        let id = ClaimId::new("ns", "default", "k").unwrap();
        allow(&ClaimRequest { wait_ms, ..ClaimRequest::new(id, PoolName::new("ns", "p").unwrap()) });
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
}
