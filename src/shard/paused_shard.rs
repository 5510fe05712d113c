//! Paused shard, for tests that inject a competing step.

use std::sync::Arc;

use super::handle::ShardHandle;

/// Right to run a shard, withheld from everybody until dropped.
#[derive(Debug)]
pub struct PausedShard(Arc<ShardHandle>);

impl PausedShard {
    pub(super) const fn of(handle: Arc<ShardHandle>) -> Self {
        Self(handle)
    }

    /// Number of requests in the mailbox.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.queue_depth()
    }
}

impl Drop for PausedShard {
    fn drop(&mut self) {
        self.0.wake_actor();
    }
}
