//! Mailbox of a shard. Most are empty most of the time, so a mailbox allocates only for what it contains.

use crossbeam::queue::SegQueue;

use super::command::Command;
use super::schedule::QueueBound;
use crate::limits;

/// Queue of requests with many producers and one consumer at a time, bounded by [`limits::MAILBOX_SLOTS`]. Takes no
/// lock; a pop waits for a push that is in progress.
#[derive(Debug, Default)]
pub(super) struct ShardMailbox {
    bound: QueueBound,
    queue: SegQueue<Command>,
}

impl ShardMailbox {
    /// Adds a request to the mailbox.
    ///
    /// # Errors
    /// Returns the request if the mailbox is full.
    pub fn push(&self, command: Command) -> Result<(), Command> {
        if !self.bound.try_acquire(limits::MAILBOX_SLOTS) {
            return Err(command);
        }
        self.queue.push(command);
        Ok(())
    }

    /// Removes up to `max` of the oldest requests and returns how many. Frees their slots together.
    pub fn drain(&self, max: usize, into: &mut impl Extend<Command>) -> usize {
        let mut drained = 0;
        into.extend(std::iter::from_fn(|| self.queue.pop()).take(max).inspect(|_| drained += 1));
        if drained > 0 {
            self.bound.release(drained);
        }
        drained
    }

    /// Number of requests in the mailbox.
    pub fn len(&self) -> usize {
        self.bound.in_use()
    }

    /// Whether the mailbox is empty: every push that has returned is visible.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ClaimHandle;

    fn request(fence: u64) -> Command {
        Command::Relinquish(ClaimHandle { claim: 0, worker: 0, fence })
    }

    #[test]
    fn h05_a_mailbox_is_bounded_and_keeps_the_order() {
        let mailbox = ShardMailbox::default();
        for round in 0..3 {
            for fence in 0..limits::MAILBOX_SLOTS as u64 {
                assert!(mailbox.push(request(fence)).is_ok(), "round {round}, {fence}");
            }
            assert!(
                matches!(mailbox.push(request(7)), Err(Command::Relinquish(ClaimHandle { fence: 7, .. }))),
                "the mailbox is full"
            );
            assert_eq!(mailbox.len(), limits::MAILBOX_SLOTS);
            let mut drained = Vec::new();
            assert_eq!(mailbox.drain(1_000, &mut drained), 1_000);
            assert_eq!(mailbox.len(), limits::MAILBOX_SLOTS - 1_000);
            assert_eq!(mailbox.drain(usize::MAX, &mut drained), limits::MAILBOX_SLOTS - 1_000);
            for (expected, command) in drained.into_iter().enumerate() {
                assert!(
                    matches!(command, Command::Relinquish(handle) if handle.fence == expected as u64),
                    "{expected}"
                );
            }
            assert_eq!((mailbox.drain(1, &mut Vec::new()), mailbox.len(), mailbox.is_empty()), (0, 0, true));
        }
    }
}
