//! Idle timeout of connections.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Duration, Sleep, sleep};

/// Number of intervals of the idle timeout. A connection ends after as many quiet ones, so up to one interval late; in
/// exchange, reading a command needs no clock.
const IDLE_INTERVALS: u32 = 4;
/// Factor on the idle timeout within a transaction, whose client may be deciding on the next command.
const TRANSACTION_FACTOR: u32 = 4;

/// Phase of a quiet connection, which decides how long it may be idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdlePhase {
    /// Phase between two commands.
    Commands,
    /// Phase between `MULTI` and `EXEC`.
    Transaction,
}

impl IdlePhase {
    const fn intervals(self) -> u32 {
        match self {
            Self::Commands => IDLE_INTERVALS,
            Self::Transaction => IDLE_INTERVALS * TRANSACTION_FACTOR,
        }
    }
}

/// Timer for idle connections. It runs only while it is polled: between two commands, with all replies written.
#[derive(Default)]
pub(super) struct IdleTimer {
    interval: Option<Pin<Box<Sleep>>>,
    quiet: QuietIntervals,
}

/// Number of consecutive quiet intervals.
#[derive(Default)]
struct QuietIntervals {
    consecutive: u32,
    had_activity: bool,
}

impl QuietIntervals {
    /// Ends an interval. Returns true after as many quiet intervals as a connection may have.
    fn end_interval(&mut self, phase: IdlePhase) -> bool {
        self.consecutive = if std::mem::take(&mut self.had_activity) { 0 } else { self.consecutive + 1 };
        self.consecutive >= phase.intervals()
    }
}

impl IdleTimer {
    /// Records that input has arrived.
    pub(super) fn record_activity(&mut self) {
        self.quiet.had_activity = true;
    }

    /// Becomes ready when no input has arrived for `limit`, or a multiple of it within a transaction.
    pub(super) fn poll(&mut self, limit: Duration, phase: IdlePhase, context: &mut Context<'_>) -> Poll<()> {
        let interval = limit / IDLE_INTERVALS;
        let timer = self.interval.get_or_insert_with(|| Box::pin(sleep(interval)));
        loop {
            ready!(timer.as_mut().poll(context));
            if self.quiet.end_interval(phase) {
                return Poll::Ready(());
            }
            // Starts now: time without polling does not count as idle.
            timer.set(sleep(interval));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h06_a_connection_is_idle_after_consecutive_quiet_intervals() {
        let mut quiet = QuietIntervals::default();
        let ends: Vec<bool> = (0..4).map(|_| quiet.end_interval(IdlePhase::Commands)).collect();
        assert_eq!(ends, [false, false, false, true]);
        // Within a transaction the limit is four times as long, and quiet intervals before it do not count.
        let mut quiet = QuietIntervals { consecutive: 3, had_activity: true };
        assert!(
            (0..16).all(|_| !quiet.end_interval(IdlePhase::Transaction)) && quiet.end_interval(IdlePhase::Transaction)
        );
        // Activity starts the count anew.
        let mut quiet = QuietIntervals::default();
        for _ in 0..10 {
            assert!((0..3).all(|_| !quiet.end_interval(IdlePhase::Commands)));
            quiet.had_activity = true;
            assert!(!quiet.end_interval(IdlePhase::Commands));
        }
        assert!((0..3).all(|_| !quiet.end_interval(IdlePhase::Commands)) && quiet.end_interval(IdlePhase::Commands));
    }
}
