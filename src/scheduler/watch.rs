//! Watching a pool.

use std::sync::Arc;

use super::Scheduler;
use crate::events::{EventPosition, PoolWatcher};
use crate::model::PoolName;
use crate::model::request_error::RequestError;

impl Scheduler {
    /// Watches a pool, from now on or from where somebody left off. Dropped, the watcher is gone.
    ///
    /// # Errors
    /// `NotFound`; `TooManyWatchers` if too many watch it, or too many all pools together; `Invalid` naming `from`.
    pub fn watch_pool(&self, name: &PoolName, from: Option<EventPosition>) -> Result<PoolWatcher, RequestError> {
        self.check_serving()?;
        let pool = self.pool(name)?;
        let place = Arc::clone(&self.shared.watchers).try_acquire_owned();
        let place = place.map_err(|_| RequestError::TooManyWatchers)?;
        PoolWatcher::new(Arc::clone(&pool.event_log), Arc::clone(&pool.metrics), from, &self.dispatch().clock, place)
    }
}
