//! Watches on the events of a pool.

use std::sync::Arc;

use super::Scheduler;
use crate::events::{EventPosition, PoolWatcher};
use crate::model::PoolName;
use crate::model::request_error::RequestError;

impl Scheduler {
    /// Watches a pool, from now on or after the position `from`. Dropping the watcher ends the watch.
    ///
    /// # Errors
    /// `NotFound`; `TooManyWatchers` if the pool, or all pools together, have too many; `Invalid` naming `from`.
    pub fn watch_pool(&self, name: &PoolName, from: Option<EventPosition>) -> Result<PoolWatcher, RequestError> {
        self.check_serving()?;
        let pool = self.pool(name)?;
        let permit = Arc::clone(&self.shared.watchers).try_acquire_owned();
        let permit = permit.map_err(|_| RequestError::TooManyWatchers)?;
        PoolWatcher::new(Arc::clone(&pool.event_log), Arc::clone(&pool.metrics), from, &self.dispatch().clock, permit)
    }
}
