//! Demand of a pool, for controllers that add and remove workers.

use futures::future::join_all;
use tokio::sync::oneshot;

use super::{Scheduler, recv_outcome};
use crate::limits;
use crate::model::request_error::RequestError;
use crate::model::{
    IdleWorker, PoolDemand, PoolMode, PoolName, UnschedulableReason, UnusableWorkers, claims_per_worker,
};
use crate::shard::Command;

impl Scheduler {
    /// Claims that wait for a pool, grouped by what they request, and idle workers that could be removed. Walks the
    /// wait queue.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` while the service is loading.
    pub async fn demand(&self, name: &PoolName) -> Result<PoolDemand, RequestError> {
        self.check_serving()?;
        let pool = self.pool(name)?;
        let mut shapes = self.dispatch().demand(&pool);
        let capacities = pool.board.capacities().distinct();
        let mut needed = 0.0;
        for shape in shapes.iter_mut().filter(|shape| shape.reason != "quota") {
            let per_worker = match pool.spec.load().mode {
                PoolMode::Exclusive => 1,
                PoolMode::Shared => claims_per_worker(&shape.resources, capacities.iter()),
            };
            shape.workers_needed = shape.waiting.div_ceil(per_worker);
            needed += shape.waiting as f64 / per_worker as f64;
        }
        shapes.sort_by_key(|shape| std::cmp::Reverse((shape.waiting, shape.oldest_ms)));
        let waiting_for_capacity = || shapes.iter().filter(|shape| shape.reason != "quota");
        let (waiting, oldest_ms) = (
            waiting_for_capacity().map(|shape| shape.waiting).sum(),
            waiting_for_capacity().map(|shape| shape.oldest_ms).max(),
        );
        let waiting_for_quota = shapes.iter().map(|shape| shape.waiting).sum::<u64>() - waiting;
        shapes.truncate(limits::DEMAND_SHAPES_MAX);
        let workers_busy = pool.shards.iter().map(|handle| u64::from(pool.board.busy(handle.shard.shard))).sum();
        let unclaimed =
            |reason| -> u64 { pool.shards.iter().map(|handle| u64::from(handle.unschedulable_idle(reason))).sum() };
        let workers_reserved = unclaimed(UnschedulableReason::Reserved);
        Ok(PoolDemand {
            pool: name.clone(),
            waiting,
            waiting_for_quota,
            oldest_ms: oldest_ms.unwrap_or(0),
            workers_busy,
            workers_reserved,
            workers_unusable: UnusableWorkers {
                cordoned: unclaimed(UnschedulableReason::Cordoned),
                lost: unclaimed(UnschedulableReason::Lost),
                suspect: unclaimed(UnschedulableReason::Suspect),
                ended: unclaimed(UnschedulableReason::Ended),
                draining: unclaimed(UnschedulableReason::Draining),
            },
            // Thirds do not add up exactly: slightly less than a whole number counts as that number.
            // A reserved worker will serve one of them.
            workers_needed: ((needed - 1e-6).ceil().max(0.0) as u64).saturating_sub(workers_reserved),
            shapes,
            idle: self.idle_longest(&pool).await,
        })
    }

    async fn idle_longest(&self, pool: &crate::admission::pool_registry::Pool) -> Vec<IdleWorker> {
        let shards = join_all(pool.shards.iter().map(|handle| async move {
            let (reply, answer) = oneshot::channel();
            handle.push_or_reject(Command::IdleLongest(limits::DEMAND_SHAPES_MAX, reply));
            recv_outcome(answer).await.unwrap_or_default()
        }));
        let mut all: Vec<(bool, usize, IdleWorker)> = Vec::new();
        for workers in shards.await {
            all.extend(workers.into_iter().enumerate().map(|(rank, worker)| (!worker.cordoned, rank, worker)));
        }
        // Which of two shards' workers has been idle longer is not known, so shards alternate.
        all.sort_by_key(|(schedulable, rank, _)| (*schedulable, *rank));
        all.into_iter().take(limits::DEMAND_SHAPES_MAX).map(|(.., worker)| worker).collect()
    }
}
