//! Demand: claims that wait for a pool, in a form for autoscalers, and the workers that are idle for longest.

use serde::Serialize;

use super::{Millis, PoolName, ResourceRequirements, WorkerCapacity, WorkerId};
use crate::limits;

/// Waiting claims with equal requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemandShape {
    /// Resources that each of them requests; in an exclusive pool each needs a worker.
    pub resources: ResourceRequirements,
    /// Selector for the labels of acceptable workers.
    pub selector: Option<String>,
    /// Acceptable nodes; empty: any.
    pub nodes: Vec<String>,
    /// Reason of the wait: `pool_exhausted`, `node_locality` or `quota`.
    pub reason: &'static str,
    /// Number of waiting claims.
    pub waiting: u64,
    /// Time for which the first of them has waited, in milliseconds.
    pub oldest_ms: Millis,
    /// Highest of their priorities.
    pub priority: u16,
    /// Number of empty workers that could hold them all; 0 for `quota`, which no worker resolves.
    pub workers_needed: u64,
}

/// Worker that has no claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleWorker {
    /// Id of the worker.
    pub id: WorkerId,
    /// True if it is cordoned already, so that it can be deleted at once.
    pub cordoned: bool,
}

/// Workers without claims that are unusable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct UnusableWorkers {
    /// Number of cordoned workers.
    pub cordoned: u64,
    /// Number of lost workers.
    pub lost: u64,
    /// Number of suspect workers.
    pub suspect: u64,
    /// Number of workers past their end.
    pub ended: u64,
    /// Number of draining workers.
    pub draining: u64,
}

impl UnusableWorkers {
    /// Number of those that are not on their way out.
    #[must_use]
    pub const fn lasting(&self) -> u64 {
        self.cordoned + self.lost + self.suspect + self.ended
    }
}

/// Demand for a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolDemand {
    /// Name of the pool.
    pub pool: PoolName,
    /// Number of claims that wait for capacity in it.
    pub waiting: u64,
    /// Number of its potential claims that wait for their tenant's quota.
    pub waiting_for_quota: u64,
    /// Time for which the first claim that waits for capacity has waited, in milliseconds.
    pub oldest_ms: Millis,
    /// Number of workers with claims.
    pub workers_busy: u64,
    /// Number of workers without claims that are reserved for claims that wait.
    pub workers_reserved: u64,
    /// Workers without claims that are unusable, each under its first reason.
    pub workers_unusable: UnusableWorkers,
    /// Number of workers, as large as the largest of the pool, that could hold all claims that wait for capacity.
    pub workers_needed: u64,
    /// Waiting claims by request, the largest group first; at most [`limits::DEMAND_SHAPES_MAX`].
    pub shapes: Vec<DemandShape>,
    /// Workers without claims: first the cordoned ones, then those that became idle first; from the shards in turn.
    pub idle: Vec<IdleWorker>,
}

impl PoolDemand {
    /// Number of workers that it should have, each counted once: those that are busy, reserved, needed, or unusable and
    /// likely to stay so. Draining workers are on their way out.
    #[must_use]
    pub const fn workers_wanted(&self) -> u64 {
        self.workers_busy + self.workers_reserved + self.workers_needed + self.workers_unusable.lasting()
    }
}

/// Number of such claims that an empty worker of one of these capacities could hold; at least 1, also if none is
/// known.
#[must_use]
pub fn claims_per_worker<'a>(
    requested: &ResourceRequirements,
    capacities: impl Iterator<Item = &'a WorkerCapacity>,
) -> u64 {
    let fit = |capacity: &WorkerCapacity| {
        let quotient = |has: u64, requested: u64| has.checked_div(requested).unwrap_or(u64::MAX);
        let gpus = requested.gpu.as_ref().map_or(u64::MAX, |gpu| {
            let has = capacity.gpu.as_ref().map_or(0, |has| u64::from(has.count));
            // A fraction comes from one GPU, so the remainder of a GPU is of no use to the next.
            has / u64::from(gpu.count.max(1)) * u64::from(limits::GPU_MILLI / gpu.milli.clamp(1, limits::GPU_MILLI))
        });
        quotient(capacity.cpu_milli, requested.cpu_milli)
            .min(quotient(capacity.memory_bytes, requested.memory_bytes))
            .min(quotient(capacity.slots, requested.slots))
            .min(gpus)
    };
    let largest = capacities.filter(|capacity| requested.fits_in(capacity)).map(fit).max().unwrap_or(1);
    largest.clamp(1, u64::from(limits::WORKER_CLAIMS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GpuCapacity, GpuRequest};

    #[test]
    fn a_worker_holds_as_many_claims_as_its_scarcest_resource_allows() {
        let has = |cpu_milli, gpus| WorkerCapacity {
            cpu_milli,
            gpu: (gpus > 0).then(|| GpuCapacity { model: "a".into(), count: gpus }),
            ..WorkerCapacity::default()
        };
        let request = |cpu_milli, count, milli| ResourceRequirements {
            cpu_milli,
            gpu: (count > 0).then(|| GpuRequest { models: Vec::new(), count, milli }),
            ..ResourceRequirements::default()
        };
        let fleet = [has(4_000, 0), has(16_000, 2)];
        for (requested, expected) in [
            (request(1_000, 0, 0), 16),
            (request(3_000, 0, 0), 5),
            (request(1_000, 1, 1_000), 2),
            (request(1_000, 2, 1_000), 1),
            (request(1_000, 1, 300), 6),
            (request(99_000, 0, 0), 1),
        ] {
            assert_eq!(claims_per_worker(&requested, fleet.iter()), expected, "{requested:?}");
        }
    }
}
