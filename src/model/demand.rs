//! Demand: what waits for a pool, in a form that an autoscaler reads, and which workers are idle for longest.

use super::{Millis, PoolName, ResourceRequirements, WorkerCapacity, WorkerId};
use crate::limits;

/// Claims that wait for the same thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemandShape {
    /// What each of them asks for; in an exclusive pool each needs a worker.
    pub resources: ResourceRequirements,
    /// Which workers would do, by their labels.
    pub selector: Option<String>,
    /// Nodes that would do; empty: any.
    pub nodes: Vec<String>,
    /// What they wait for: `pool_exhausted`, `node_locality` or `quota`.
    pub reason: &'static str,
    /// How many.
    pub waiting: u64,
    /// For how long the first of them has.
    pub oldest_ms: Millis,
    /// The highest of their priorities.
    pub priority: u16,
    /// How many empty workers would hold them all; 0 for `quota`, which no worker clears.
    pub workers_needed: u64,
}

/// An idle worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleWorker {
    /// Which.
    pub id: WorkerId,
    /// It is cordoned already, so it can be deleted without anybody noticing.
    pub cordoned: bool,
}

/// What waits for a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolDemand {
    /// Which pool.
    pub pool: PoolName,
    /// How many claims wait for room in it.
    pub waiting: u64,
    /// How many that could be taken from it wait for their tenant's quota.
    pub waiting_for_quota: u64,
    /// For how long the first of those that wait for room has.
    pub oldest_ms: Millis,
    /// Workers that hold something.
    pub workers_busy: u64,
    /// How many workers, as large as the largest of the pool, would hold all that wait for room.
    pub workers_needed: u64,
    /// The same by what they ask for, the most wanted first; at most [`limits::DEMAND_SHAPES_MAX`].
    pub shapes: Vec<DemandShape>,
    /// Workers that hold nothing: those that are cordoned, then those that became idle first; of each shard in turn.
    pub idle: Vec<IdleWorker>,
}

impl PoolDemand {
    /// How many workers it should have: those that are busy, and those that are needed.
    #[must_use]
    pub const fn workers_wanted(&self) -> u64 {
        self.workers_busy + self.workers_needed
    }
}

/// How many claims that ask for this an empty worker of one of these capacities holds; at least 1, also if none is known.
#[must_use]
pub fn claims_per_worker<'a>(
    asked: &ResourceRequirements,
    capacities: impl Iterator<Item = &'a WorkerCapacity>,
) -> u64 {
    let fit = |capacity: &WorkerCapacity| {
        let of = |has: u64, wants: u64| has.checked_div(wants).unwrap_or(u64::MAX);
        let cards = asked.gpu.as_ref().map_or(u64::MAX, |gpu| {
            let has = capacity.gpu.as_ref().map_or(0, |has| u64::from(has.count));
            // A share comes from one card, so what is left of a card is of no use to the next.
            has / u64::from(gpu.count.max(1)) * u64::from(limits::GPU_MILLI / gpu.milli.clamp(1, limits::GPU_MILLI))
        });
        of(capacity.cpu_milli, asked.cpu_milli)
            .min(of(capacity.memory_bytes, asked.memory_bytes))
            .min(of(capacity.slots, asked.slots))
            .min(cards)
    };
    let most = capacities.filter(|capacity| asked.fits_in(capacity)).map(fit).max().unwrap_or(1);
    most.clamp(1, u64::from(limits::WORKER_CLAIMS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GpuCapacity, GpuRequest};

    #[test]
    fn as_many_as_the_scarcest_amount_allows() {
        let has = |cpu_milli, cards| WorkerCapacity {
            cpu_milli,
            gpu: (cards > 0).then(|| GpuCapacity { model: "a".into(), count: cards }),
            ..WorkerCapacity::default()
        };
        let asks = |cpu_milli, count, milli| ResourceRequirements {
            cpu_milli,
            gpu: (count > 0).then(|| GpuRequest { models: Vec::new(), count, milli }),
            ..ResourceRequirements::default()
        };
        let fleet = [has(4_000, 0), has(16_000, 2)];
        for (asked, expected) in [
            (asks(1_000, 0, 0), 16),
            (asks(3_000, 0, 0), 5),
            (asks(1_000, 1, 1_000), 2),
            (asks(1_000, 2, 1_000), 1),
            (asks(1_000, 1, 300), 6),
            (asks(99_000, 0, 0), 1),
        ] {
            assert_eq!(claims_per_worker(&asked, fleet.iter()), expected, "{asked:?}");
        }
    }
}
