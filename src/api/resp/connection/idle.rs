//! Connections on which nothing happens for too long.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Duration, Sleep, sleep};

/// Parts of the time that a connection may be idle. It ends when nothing has come for as many of them, so up to one part
/// late; in exchange what comes costs no look at a clock.
const IDLE_INTERVALS: u32 = 4;
/// How many times as long a connection may be idle within a transaction: its client may be deciding what comes next.
const TRANSACTION_FACTOR: u32 = 4;

/// Phase of a connection from which nothing comes, which decides for how long nothing may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdlePhase {
    /// Between two commands.
    Commands,
    /// Between `MULTI` and `EXEC`.
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

/// Notices that nothing comes. It runs only while it is polled: between two commands, with all answers written.
#[derive(Default)]
pub(super) struct IdleTimer {
    interval: Option<Pin<Box<Sleep>>>,
    quiet: QuietIntervals,
}

/// Parts in which nothing came.
#[derive(Default)]
struct QuietIntervals {
    consecutive: u32,
    was_used: bool,
}

impl QuietIntervals {
    /// Ends a part. True: there were as many without use as a connection may have.
    fn end_interval(&mut self, phase: IdlePhase) -> bool {
        self.consecutive = if std::mem::take(&mut self.was_used) { 0 } else { self.consecutive + 1 };
        self.consecutive >= phase.intervals()
    }
}

impl IdleTimer {
    /// Notes that something has come.
    pub(super) fn record_activity(&mut self) {
        self.quiet.was_used = true;
    }

    /// Ready when nothing has come for `limit`, or for some times as long within a transaction.
    pub(super) fn poll(&mut self, limit: Duration, phase: IdlePhase, context: &mut Context<'_>) -> Poll<()> {
        let part = limit / IDLE_INTERVALS;
        let timer = self.interval.get_or_insert_with(|| Box::pin(sleep(part)));
        loop {
            ready!(timer.as_mut().poll(context));
            if self.quiet.end_interval(phase) {
                return Poll::Ready(());
            }
            // From now on: time in which nobody polled is no idleness.
            timer.set(sleep(part));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h06_a_connection_is_idle_after_a_row_of_quiet_parts() {
        let mut quiet = QuietIntervals::default();
        let ends: Vec<bool> = (0..4).map(|_| quiet.end_interval(IdlePhase::Commands)).collect();
        assert_eq!(ends, [false, false, false, true]);
        // Within a transaction the row is four times as long, and what was quiet before it does not count.
        let mut quiet = QuietIntervals { consecutive: 3, was_used: true };
        assert!(
            (0..16).all(|_| !quiet.end_interval(IdlePhase::Transaction)) && quiet.end_interval(IdlePhase::Transaction)
        );
        // Any use begins the row anew.
        let mut quiet = QuietIntervals::default();
        for _ in 0..10 {
            assert!((0..3).all(|_| !quiet.end_interval(IdlePhase::Commands)));
            quiet.was_used = true;
            assert!(!quiet.end_interval(IdlePhase::Commands));
        }
        assert!((0..3).all(|_| !quiet.end_interval(IdlePhase::Commands)) && quiet.end_interval(IdlePhase::Commands));
    }
}
