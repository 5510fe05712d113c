//! A shard that is kept from running, for tests that inject what competes.

use std::sync::Arc;

use super::handle::ShardHandle;

/// The right to run a shard, kept from everybody.
#[derive(Debug)]
pub struct PausedShard(Arc<ShardHandle>);

impl PausedShard {
    pub(super) const fn of(port: Arc<ShardHandle>) -> Self {
        Self(port)
    }
}

impl PausedShard {
    /// Requests that wait in the ring.
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
