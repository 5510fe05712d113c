//! Watching a pool.

use std::sync::Arc;

use super::Scheduler;
use crate::events::{Position, Watcher};
use crate::model::PoolName;
use crate::model::rejection::Refusal;

impl Scheduler {
    /// Watches a pool, from now on or from where somebody left off. Dropped, the watcher is gone.
    ///
    /// # Errors
    /// `NotFound`; `Watchers` if too many watch it, or too many all pools together; `Invalid` naming `from`.
    pub fn watch_pool(&self, name: &PoolName, from: Option<Position>) -> Result<Watcher, Refusal> {
        self.open()?;
        let pool = self.pool(name)?;
        let place = Arc::clone(&self.shared.watchers).try_acquire_owned();
        let place = place.map_err(|_| Refusal::Watchers)?;
        Watcher::new(Arc::clone(&pool.watch), Arc::clone(&pool.metrics), from, &self.dispatch().clock, place)
    }
}
