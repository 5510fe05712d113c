//! Connections on which nothing happens for too long.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Duration, Sleep, sleep};

/// Parts of the time that a connection may be idle. It ends when nothing has come for as many of them, so up to one part
/// late; in exchange what comes costs no look at a clock.
const PARTS: u32 = 4;

/// Notices that nothing comes. It runs only while it is polled: between two commands, with all answers written.
#[derive(Default)]
pub(super) struct IdleTimer {
    part: Option<Pin<Box<Sleep>>>,
    quiet: QuietParts,
}

/// Parts in which nothing came.
#[derive(Default)]
struct QuietParts {
    in_a_row: u32,
    was_used: bool,
}

impl QuietParts {
    /// Ends a part. True: there were as many without use as a connection may have.
    fn end_part(&mut self) -> bool {
        self.in_a_row = if std::mem::take(&mut self.was_used) { 0 } else { self.in_a_row + 1 };
        self.in_a_row >= PARTS
    }
}

impl IdleTimer {
    /// Notes that something has come.
    pub(super) fn note_use(&mut self) {
        self.quiet.was_used = true;
    }

    /// Ready when nothing has come for `limit`.
    pub(super) fn poll(&mut self, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let part = limit / PARTS;
        let timer = self.part.get_or_insert_with(|| Box::pin(sleep(part)));
        loop {
            ready!(timer.as_mut().poll(context));
            if self.quiet.end_part() {
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
        let mut quiet = QuietParts::default();
        let ends: Vec<bool> = (0..4).map(|_| quiet.end_part()).collect();
        assert_eq!(ends, [false, false, false, true]);
        // Any use begins the row anew.
        let mut quiet = QuietParts::default();
        for _ in 0..10 {
            assert!((0..3).all(|_| !quiet.end_part()));
            quiet.was_used = true;
            assert!(!quiet.end_part());
        }
        assert!((0..3).all(|_| !quiet.end_part()) && quiet.end_part());
    }
}
