//! Requests that wait for a shard. Most shards have none most of the time, so a mailbox is as large as what is in it.

use crossbeam::queue::SegQueue;

use super::command::Command;
use super::schedule::QueueBound;
use crate::limits;

/// Queue of requests, bounded by [`limits::MAILBOX_SLOTS`], that many push to and one at a time pops from. Takes no
/// lock; a pop waits for a push that is under way.
#[derive(Debug, Default)]
pub(super) struct ShardMailbox {
    bound: QueueBound,
    queue: SegQueue<Command>,
}

impl ShardMailbox {
    /// Takes a request in.
    ///
    /// # Errors
    /// The request back, if as many wait as may.
    pub fn push(&self, command: Command) -> Result<(), Command> {
        if !self.bound.try_acquire(limits::MAILBOX_SLOTS) {
            return Err(command);
        }
        self.queue.push(command);
        Ok(())
    }

    /// Takes the oldest out, at most so many, and says how many. Their slots are given back together.
    pub fn drain(&self, most: usize, into: &mut impl Extend<Command>) -> usize {
        let mut taken = 0;
        into.extend(std::iter::from_fn(|| self.queue.pop()).take(most).inspect(|_| taken += 1));
        if taken > 0 {
            self.bound.release(taken);
        }
        taken
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.bound.in_use()
    }

    /// Whether no request waits: every push that has returned is seen.
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
    fn h05_a_mailbox_takes_as_many_as_it_may_and_gives_them_back_in_order() {
        let mailbox = ShardMailbox::default();
        for round in 0..3 {
            for fence in 0..limits::MAILBOX_SLOTS as u64 {
                assert!(mailbox.push(request(fence)).is_ok(), "round {round}, {fence}");
            }
            assert!(
                matches!(mailbox.push(request(7)), Err(Command::Relinquish(ClaimHandle { fence: 7, .. }))),
                "it is full"
            );
            assert_eq!(mailbox.len(), limits::MAILBOX_SLOTS);
            let mut taken = Vec::new();
            assert_eq!(mailbox.drain(1_000, &mut taken), 1_000);
            assert_eq!(mailbox.len(), limits::MAILBOX_SLOTS - 1_000);
            assert_eq!(mailbox.drain(usize::MAX, &mut taken), limits::MAILBOX_SLOTS - 1_000);
            for (expected, command) in taken.into_iter().enumerate() {
                assert!(matches!(command, Command::Relinquish(place) if place.fence == expected as u64), "{expected}");
            }
            assert_eq!((mailbox.drain(1, &mut Vec::new()), mailbox.len(), mailbox.is_empty()), (0, 0, true));
        }
    }
}
