//! Fault injection: hooks for tests that stop a shard, or do something in the middle of its run.

use std::sync::Arc;

use super::Scheduler;
use crate::admission::key::KeyDirectory;
use crate::admission::pool_registry::Pool;
use crate::model::{ClaimId, Fence, PoolName};

impl Scheduler {
    /// Panics one shard, as fault injection for tests. No edge calls this.
    pub fn inject_panic(&self, pool: &PoolName, shard: u16) {
        self.inject_panic_after(pool, shard, || {});
    }

    /// Panics one shard in a run after `step`, for tests that inject a competing step. No edge calls this.
    pub fn inject_panic_after(&self, pool: &PoolName, shard: u16, step: impl FnOnce() + Send + 'static) {
        self.inject_step(pool, shard, |_| {
            step();
            panic!("injected fault")
        });
    }

    /// Executes a step in the middle of a run of one shard, for tests that inject a competing step or an engine fault.
    /// No edge calls this.
    pub fn inject_step(
        &self,
        pool: &PoolName,
        shard: u16,
        step: impl FnOnce(&mut crate::engine::Shard) + Send + 'static,
    ) {
        let step = crate::shard::InjectedStep(Box::new(step));
        if let Some(pool) = self.shared.dispatch.pools.load().get(pool) {
            let _ = pool.shards[shard as usize].push(crate::shard::Command::Inject(step));
        }
    }

    /// Does what the next tick would do for claims and gangs that wait, now. No edge calls this.
    pub fn inject_queue_tick(&self) {
        let dispatch = &self.shared.dispatch;
        dispatch.with_work(|work| dispatch.tick(dispatch.clock.engine_ms(), work));
    }

    /// Pool as a call holds it that looked it up before a competing step. No edge calls this.
    #[must_use]
    pub fn inject_pool(&self, pool: &PoolName) -> Option<Arc<Pool>> {
        self.shared.dispatch.pools.load().get(pool).cloned()
    }

    /// Pauses one shard if it is not running, for tests that inject a competing step. No edge calls this.
    #[must_use]
    pub fn inject_busy(&self, pool: &PoolName, shard: u16) -> Option<crate::shard::PausedShard> {
        self.shared.dispatch.pools.load().get(pool)?.shards[shard as usize].pause()
    }

    /// Claims of one shard as its engine has them, each with its fence and whether it was disclosed to anybody; none
    /// while the shard runs or is between two lives. No edge calls this.
    #[must_use]
    pub fn inject_look(&self, pool: &PoolName, shard: u16) -> Option<Vec<(ClaimId, Fence, bool)>> {
        let pools = self.shared.dispatch.pools.load();
        pools.get(pool)?.shards[shard as usize].look(|shard| {
            let claims = shard.list_claims();
            claims.map(|(_, id, grant)| (id, grant.handle.fence, !shard.is_undisclosed(grant.handle))).collect()
        })
    }

    /// Number of gangs of one shard that are under way: rows of committed ones, and claims of those that are not; none while
    /// the shard runs or is between two lives. No edge calls this.
    #[must_use]
    pub fn inject_count_gangs(&self, pool: &PoolName, shard: u16) -> Option<usize> {
        let pools = self.shared.dispatch.pools.load();
        let count = |shard: &crate::engine::Shard| shard.committed_gangs().count() + shard.provisional().count();
        pools.get(pool)?.shards[shard as usize].look(count)
    }

    /// Key directory, for tests that check for leaks.
    #[must_use]
    pub fn keys(&self) -> &KeyDirectory {
        &self.shared.dispatch.keys
    }
}
