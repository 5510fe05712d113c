//! A shard that is kept from running, for tests that inject what competes.

use std::sync::Arc;

use super::handle::ShardPort;

/// The right to run a shard, kept from everybody.
#[derive(Debug)]
pub struct Seized(Arc<ShardPort>);

impl Seized {
    pub(super) const fn of(port: Arc<ShardPort>) -> Self {
        Self(port)
    }
}

impl Seized {
    /// Requests that wait in the ring.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.depth()
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        self.0.cast();
    }
}
