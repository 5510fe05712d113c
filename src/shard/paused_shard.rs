//! Paused shard, for tests that inject a competing step.

use std::sync::Arc;

/// Shard whose runs can be withheld.
pub(super) trait PausableShard: std::fmt::Debug + Send + Sync {
    /// Number of requests in the mailbox.
    fn depth(&self) -> usize;

    /// Lets the shard run again.
    fn resume(&self);
}

/// Right to run a shard, withheld from everybody until dropped.
#[derive(Debug)]
pub struct PausedShard(Arc<dyn PausableShard>);

impl PausedShard {
    pub(super) fn of(shard: Arc<dyn PausableShard>) -> Self {
        Self(shard)
    }

    /// Number of requests in the mailbox.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.depth()
    }
}

impl Drop for PausedShard {
    fn drop(&mut self) {
        self.0.resume();
    }
}
