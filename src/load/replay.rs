//! Trace replay: a claim when an invocation arrives, and its release when it has run.
//!
//! The function is the affinity of the claim. Arrival and run time are divided by the speed. Releases are timed by the
//! runtime, whose timers count whole milliseconds and round up, so a worker is held up to 2 ms longer than in the
//! trace; claims are timed by [`super::pacing`].

use std::time::Duration;

use super::claim_input::ClaimParams;
use super::load_client::LoadOperation;
use super::trace::TraceInvocation;

/// Operations of a trace that are due before `duration`, each with its offset from the start.
pub fn schedule(
    trace: Vec<TraceInvocation>,
    speed: f64,
    duration: Option<Duration>,
) -> impl Iterator<Item = (Duration, LoadOperation)> + Send {
    trace
        .into_iter()
        .map(move |invocation| {
            let at = Duration::from_micros(invocation.t_us).div_f64(speed);
            let hold = Duration::from_millis(invocation.dur_ms.into()).div_f64(speed);
            let params = ClaimParams { function: invocation.function, ..ClaimParams::default() };
            (at, LoadOperation { params, hold, ..LoadOperation::whole_workers(1) })
        })
        .take_while(move |(at, _)| duration.is_none_or(|duration| *at < duration))
}

/// End of the replay: `duration`, or the end of the last invocation if that is earlier.
#[must_use]
pub fn replay_duration(trace: &[TraceInvocation], speed: f64, duration: Option<Duration>) -> Duration {
    let end_us = trace.iter().map(|invocation| invocation.t_us + u64::from(invocation.dur_ms) * 1_000).max();
    let trace_duration = Duration::from_micros(end_us.unwrap_or(0)).div_f64(speed);
    duration.map_or(trace_duration, |duration| duration.min(trace_duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Vec<TraceInvocation> {
        [(0, 3, 100), (1_000, 4, 20), (500_000, 3, 1)]
            .map(|(t_us, function, dur_ms)| TraceInvocation { t_us, function: Some(function), dur_ms })
            .to_vec()
    }

    #[test]
    fn speed_divides_arrival_and_hold_times() {
        let operations: Vec<_> = schedule(trace(), 10.0, None).collect();
        let operation = |at_us, function, hold_us| {
            let params = ClaimParams { function: Some(function), ..ClaimParams::default() };
            (
                Duration::from_micros(at_us),
                LoadOperation { params, hold: Duration::from_micros(hold_us), ..LoadOperation::whole_workers(1) },
            )
        };
        assert_eq!(operations, [operation(0, 3, 10_000), operation(100, 4, 2_000), operation(50_000, 3, 100)]);
    }

    #[test]
    fn the_duration_is_that_of_the_replay() {
        let limit = Some(Duration::from_millis(50));
        assert_eq!(schedule(trace(), 10.0, limit).count(), 2);
        assert_eq!(replay_duration(&trace(), 10.0, limit), Duration::from_millis(50));
        assert_eq!(replay_duration(&trace(), 10.0, None), Duration::from_micros(50_100));
        assert_eq!(replay_duration(&trace(), 1.0, Some(Duration::from_secs(9))), Duration::from_millis(501));
    }
}
