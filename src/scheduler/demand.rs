//! What waits for a pool, for whoever adds and removes workers.

use futures::future::join_all;

use super::{Scheduler, wait};
use crate::limits;
use crate::model::rejection::Refusal;
use crate::model::{Demand, IdleWorker, Mode, PoolName, claims_per_worker};
use crate::shard::{Command, Payload, Reply};

impl Scheduler {
    /// What waits for a pool, by what it asks for; and workers that could go. Costs a walk over those that wait.
    ///
    /// # Errors
    /// `NotFound`; `loading`.
    pub async fn demand(&self, name: &PoolName) -> Result<Demand, Refusal> {
        self.open()?;
        let pool = self.pool(name)?;
        let mut shapes = self.dispatch().demand(&pool);
        let capacities = pool.board.capacities().all();
        let mut needed = 0.0;
        for shape in shapes.iter_mut().filter(|shape| shape.reason != "quota") {
            let each = match pool.spec.load().mode {
                Mode::Exclusive => 1,
                Mode::Shared => claims_per_worker(&shape.resources, capacities.iter()),
            };
            shape.workers_needed = shape.waiting.div_ceil(each);
            needed += shape.waiting as f64 / each as f64;
        }
        shapes.sort_by_key(|shape| std::cmp::Reverse((shape.waiting, shape.oldest_ms)));
        let room = || shapes.iter().filter(|shape| shape.reason != "quota");
        let (waiting, oldest_ms) = (room().map(|shape| shape.waiting).sum(), room().map(|shape| shape.oldest_ms).max());
        let waiting_for_quota = shapes.iter().map(|shape| shape.waiting).sum::<u64>() - waiting;
        shapes.truncate(limits::DEMAND_SHAPES_MAX);
        let workers_busy = pool.ports.iter().map(|port| u64::from(pool.board.held(port.shard.shard))).sum();
        Ok(Demand {
            pool: name.clone(),
            waiting,
            waiting_for_quota,
            oldest_ms: oldest_ms.unwrap_or(0),
            workers_busy,
            // A little less than a whole number is that number: thirds do not add up.
            workers_needed: (needed - 1e-6).ceil().max(0.0) as u64,
            shapes,
            idle: self.idle_longest(&pool).await,
        })
    }

    async fn idle_longest(&self, pool: &crate::admission::pools::Pool) -> Vec<IdleWorker> {
        let shards = join_all(pool.ports.iter().map(|port| async move {
            let (reply, answer) = Reply::one();
            port.ask(Command::IdleLongest(limits::DEMAND_SHAPES_MAX, reply));
            match wait(answer).await {
                Ok(Payload::Idle(workers)) => workers,
                _ => Vec::new(),
            }
        }));
        let mut all: Vec<(bool, usize, IdleWorker)> = Vec::new();
        for workers in shards.await {
            all.extend(workers.into_iter().enumerate().map(|(turn, worker)| (!worker.cordoned, turn, worker)));
        }
        // Which of two shards' workers has been idle for longer is not known: they take turns.
        all.sort_by_key(|(offered, turn, _)| (*offered, *turn));
        all.into_iter().take(limits::DEMAND_SHAPES_MAX).map(|(.., worker)| worker).collect()
    }
}
