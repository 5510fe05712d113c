//! Explanations: the worker that a claim would get, or the reasons why there is none.

use std::sync::Arc;

use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};

use super::{PoolName, QuotaHeadroom, UnschedulableReason, WorkerId, is_zero};
use crate::model::request_error::RequestError;

/// Explanation of what a claim would get at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimExplanation {
    /// Worker that it would get, or the error that it would get.
    pub outcome: Result<PlacementPreview, RequestError>,
    /// Amounts that its tenant's quota leaves the claim: what is held is taken off, and what is collected for a claim of
    /// the tenant that is served before it.
    pub quota_headroom: QuotaHeadroom,
    /// Pools that it may use, in the order in which they would be tried.
    pub pools: Vec<PoolSurvey>,
}

/// Worker that a claim would get. Among equal ones it may be another the next time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementPreview {
    /// Pool of the worker.
    pub pool: PoolName,
    /// Id of the worker.
    pub worker: WorkerId,
    /// Machine that it runs on, if known.
    pub node: Option<Arc<str>>,
}

/// Workers of one pool, as a claim finds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSurvey {
    /// Name of the pool.
    pub pool: PoolName,
    /// Number of shards that did not reply: their workers are not in the survey.
    pub silent_shards: u64,
    /// Whether the pool evicts nobody for now ([`PoolStatus::preemption_paused`](super::PoolStatus::preemption_paused)).
    pub preemption_paused: bool,
    /// Number of waiting claims that are served before it as of now: before the claim that waits under its key, or else
    /// before one that comes now. Later ones may pass it.
    pub ahead: u64,
    /// Number of waiting gangs of a higher priority, or of its priority and earlier.
    pub gangs_ahead: u64,
    /// Survey of the pool's workers.
    pub survey: WorkerSurvey,
}

/// Reason why a worker cannot take a claim. Each worker counts under the first that applies, in this order, except
/// that draining comes before cordoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FilterReason {
    /// Cordoned by its operator.
    Cordoned,
    /// Drained by its operator, for the rest of this incarnation.
    Draining,
    /// Silent for too long.
    Lost,
    /// Not verified since it became suspect.
    Suspect,
    /// Past its registered end of life.
    Ended,
    /// Running claims that it was asked to stop.
    Stopping,
    /// Labels do not match the selector.
    Selector,
    /// Located on another node.
    Node,
    /// Different from the requested worker.
    Worker,
    /// Equipped with GPUs of another model.
    GpuModel,
    /// Too few cores: in all, or in a shared pool free.
    CpuMilli,
    /// Too little memory: in all, or in a shared pool free.
    MemoryBytes,
    /// Too few slots: in all, or in a shared pool free.
    Slots,
    /// Too few GPUs, or too little of one.
    Gpu,
    /// Busy with another claim (exclusive pools).
    Busy,
    /// Overcommitted: less capacity than its claims sum to (shared pools).
    Overcommitted,
    /// Limit of claims per worker reached (shared pools).
    Claims,
    /// End of life before the end of the claim.
    Expires,
    /// Reserved for another claim, which waits.
    Reserved,
}

impl From<UnschedulableReason> for FilterReason {
    fn from(reason: UnschedulableReason) -> Self {
        match reason {
            UnschedulableReason::Draining => Self::Draining,
            UnschedulableReason::Cordoned => Self::Cordoned,
            UnschedulableReason::Lost => Self::Lost,
            UnschedulableReason::Suspect => Self::Suspect,
            UnschedulableReason::Ended => Self::Ended,
            UnschedulableReason::Stopping => Self::Stopping,
            UnschedulableReason::Reserved => Self::Reserved,
        }
    }
}

impl FilterReason {
    /// All reasons in their order.
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// Name of the reason on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Amounts of resources that workers have free, or that a claim lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ResourceAmounts {
    /// Amount in thousandths of cores.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu_milli: u64,
    /// Amount in bytes of memory.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: u64,
    /// Number of workers' slots.
    #[serde(skip_serializing_if = "is_zero")]
    pub slots: u64,
    /// Number of whole GPUs.
    #[serde(skip_serializing_if = "is_zero")]
    pub gpu: u64,
    /// Thousandths of one GPU.
    #[serde(skip_serializing_if = "is_zero")]
    pub gpu_milli: u64,
}

impl ResourceAmounts {
    /// Whether these are at least as much of everything.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.parts().iter().zip(other.parts()).all(|(own, other)| own.1 >= other.1)
    }

    /// All amounts, with their names and their units in words.
    #[must_use]
    pub const fn parts(&self) -> [(&'static str, u64, &'static str); 5] {
        [
            ("cpu_milli", self.cpu_milli, "thousandths of a core"),
            ("memory_bytes", self.memory_bytes, "bytes of memory"),
            ("slots", self.slots, if self.slots == 1 { "slot" } else { "slots" }),
            ("gpu", self.gpu, if self.gpu == 1 { "GPU" } else { "GPUs" }),
            ("gpu_milli", self.gpu_milli, "thousandths of a GPU"),
        ]
    }

    /// Results of `f` for each amount and that of `other`.
    #[must_use]
    pub fn zip_map(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_milli: f(self.cpu_milli, other.cpu_milli),
            memory_bytes: f(self.memory_bytes, other.memory_bytes),
            slots: f(self.slots, other.slots),
            gpu: f(self.gpu, other.gpu),
            gpu_milli: f(self.gpu_milli, other.gpu_milli),
        }
    }
}

/// Worker that could take a claim if it had more free resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// Id of the worker.
    pub worker: WorkerId,
    /// Machine that it runs on, if known.
    pub node: Option<Arc<str>>,
    /// Amounts that are missing.
    pub shortfall: ResourceAmounts,
    /// Distance: whether the worker is too small in all, the number of resources that are missing, and the sum of the
    /// missing millionths of the request. Less is nearer.
    pub rank: (bool, u32, u64),
}

impl NearMiss {
    /// Describes the shortfall in words: `short by 1 GPU on w-17`.
    #[must_use]
    pub fn describe(&self) -> String {
        let parts = self.shortfall.parts().into_iter().filter(|(_, amount, _)| *amount > 0);
        let parts: Vec<_> = parts.map(|(_, amount, unit)| format!("{amount} {unit}")).collect();
        format!("short by {} on {}", parts.join(" and "), self.worker)
    }
}

/// Survey of some workers. The counts of all [`FilterReason`]s and `fits` sum to `workers`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerSurvey {
    /// Number of surveyed workers.
    pub workers: u64,
    /// Number of workers that could take the claim now.
    pub fits: u64,
    /// Number of filtered workers by reason, in the order of [`FilterReason::ALL`].
    pub filtered: [u64; FilterReason::ALL.len()],
    /// Number of workers that lack a resource and would lack it without claims too.
    pub too_small: u64,
    /// Workers that lack only free resources, the nearest first; at most [`Self::NEAREST`].
    pub nearest: Vec<NearMiss>,
    /// Largest free amount of each resource on any worker that lacks at most free resources.
    pub most_free: ResourceAmounts,
}

impl WorkerSurvey {
    /// Number of near misses that are kept.
    pub const NEAREST: usize = 3;

    /// Number of workers that a reason filtered out.
    #[must_use]
    pub const fn count(&self, reason: FilterReason) -> u64 {
        self.filtered[reason as usize]
    }

    /// Adds a worker that lacks only free resources.
    pub fn add_near_miss(&mut self, miss: NearMiss) {
        let order = |miss: &NearMiss| (miss.rank, miss.worker.as_str().to_owned());
        if self.nearest.len() == Self::NEAREST && self.nearest.last().is_some_and(|last| last.rank < miss.rank) {
            return;
        }
        let at = self.nearest.partition_point(|other| order(other) <= order(&miss));
        self.nearest.insert(at, miss);
        self.nearest.truncate(Self::NEAREST);
    }

    /// Adds the survey of other workers.
    pub fn merge(&mut self, other: Self) {
        self.workers += other.workers;
        self.fits += other.fits;
        self.too_small += other.too_small;
        self.filtered.iter_mut().zip(other.filtered).for_each(|(sum, more)| *sum += more);
        self.most_free = self.most_free.zip_map(other.most_free, u64::max);
        other.nearest.into_iter().for_each(|miss| self.add_near_miss(miss));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_misses_come_first_and_are_limited() {
        let miss = |id: &str, rank| NearMiss {
            worker: WorkerId::new(id).unwrap(),
            node: None,
            shortfall: ResourceAmounts { gpu: 1, memory_bytes: 5, ..ResourceAmounts::default() },
            rank,
        };
        let mut survey = WorkerSurvey::default();
        for (id, rank) in [("d", (2, 1)), ("c", (1, 9)), ("b", (1, 3)), ("a", (1, 3)), ("e", (1, 4))] {
            let (kinds, millionths) = rank;
            survey.add_near_miss(miss(id, (false, kinds, millionths)));
        }
        let ids = |survey: &WorkerSurvey| survey.nearest.iter().map(|miss| miss.worker.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(&survey), ["a", "b", "e"]);
        let mut all = WorkerSurvey::default();
        all.add_near_miss(miss("y", (true, 1, 1)));
        all.add_near_miss(miss("z", (false, 1, 2)));
        all.merge(survey);
        assert_eq!(ids(&all), ["z", "a", "b"]);
        assert_eq!(all.nearest[0].describe(), "short by 5 bytes of memory and 1 GPU on z");
    }
}
