//! Why a claim would be placed where it would be, or nowhere.

use std::sync::Arc;

use serde::Serialize;

use super::{PoolName, UnschedulableReason, WorkerId, is_zero};
use crate::model::request_error::RequestError;

/// What would become of a claim at this moment, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimExplanation {
    /// The worker that it would be given, or why it would be refused.
    pub outcome: Result<PlacementPreview, RequestError>,
    /// The pools that it may use, in the order in which they would be tried.
    pub pools: Vec<PoolSurvey>,
}

/// A worker that a claim would be given. Among equal ones it may be another the next time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementPreview {
    /// Its pool.
    pub pool: PoolName,
    /// Its id.
    pub worker: WorkerId,
    /// The machine it runs on, if known.
    pub node: Option<Arc<str>>,
}

/// What a claim finds in one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSurvey {
    /// Its name.
    pub pool: PoolName,
    /// Shards that could not be asked: what their workers are is not in the survey.
    pub silent_shards: u64,
    /// Its workers.
    pub survey: WorkerSurvey,
}

/// Why a worker does not take a claim. Each worker counts under the first that applies, in this order, but for a drain,
/// which comes before a cordon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterReason {
    /// Its owner said so.
    Cordoned,
    /// Its owner said so, for the rest of this incarnation.
    Draining,
    /// It was silent for too long.
    Lost,
    /// Nothing has spoken for it yet.
    Suspect,
    /// Its own end of life has come.
    Ended,
    /// It runs what it was told to stop.
    Stopping,
    /// Its labels do not pass.
    Selector,
    /// It is on another node.
    Node,
    /// It is not the one that is named.
    Worker,
    /// Its cards are of another model.
    GpuModel,
    /// Too few cores: in all, or in a shared pool left.
    CpuMilli,
    /// Too little memory.
    MemoryBytes,
    /// Too few places.
    Slots,
    /// Too few cards, or too little of one.
    Gpu,
    /// Exclusive pools: it is held.
    Busy,
    /// Shared pools: it has less than its claims sum to.
    Overcommitted,
    /// Shared pools: it holds as many claims as one may.
    Claims,
    /// Its own end of life comes before the claim is done with it.
    Expires,
    /// It is kept for another claim, which waits.
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
    /// All of them, in order.
    pub const ALL: [Self; 19] = [
        Self::Cordoned,
        Self::Draining,
        Self::Lost,
        Self::Suspect,
        Self::Ended,
        Self::Stopping,
        Self::Selector,
        Self::Node,
        Self::Worker,
        Self::GpuModel,
        Self::CpuMilli,
        Self::MemoryBytes,
        Self::Slots,
        Self::Gpu,
        Self::Busy,
        Self::Overcommitted,
        Self::Claims,
        Self::Expires,
        Self::Reserved,
    ];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Lost => "lost",
            Self::Suspect => "suspect",
            Self::Ended => "ended",
            Self::Stopping => "stopping",
            Self::Selector => "selector",
            Self::Node => "node",
            Self::Worker => "worker",
            Self::GpuModel => "gpu_model",
            Self::CpuMilli => "cpu_milli",
            Self::MemoryBytes => "memory_bytes",
            Self::Slots => "slots",
            Self::Gpu => "gpu",
            Self::Busy => "busy",
            Self::Overcommitted => "overcommitted",
            Self::Claims => "claims",
            Self::Expires => "expires",
            Self::Reserved => "reserved",
        }
    }
}

/// What workers have left, or what a claim is short of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ResourceAmounts {
    /// Thousandths of cores.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu_milli: u64,
    /// Bytes of memory.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: u64,
    /// Places.
    #[serde(skip_serializing_if = "is_zero")]
    pub slots: u64,
    /// Whole cards.
    #[serde(skip_serializing_if = "is_zero")]
    pub gpu: u64,
    /// Thousandths of one card.
    #[serde(skip_serializing_if = "is_zero")]
    pub gpu_milli: u64,
}

impl ResourceAmounts {
    /// Each of them, with its name and its unit for people.
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

    /// The larger of each.
    pub fn merge_max(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.slots = self.slots.max(other.slots);
        self.gpu = self.gpu.max(other.gpu);
        self.gpu_milli = self.gpu_milli.max(other.gpu_milli);
    }
}

/// A worker that would take a claim if it had more room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// Its id.
    pub worker: WorkerId,
    /// The machine it runs on, if known.
    pub node: Option<Arc<str>>,
    /// What it is short of.
    pub shortfall: ResourceAmounts,
    /// How near: whether it is too small in all, of how many kinds it is short, by how many millionths of what is asked for,
    /// summed. Less is nearer.
    pub rank: (bool, u32, u64),
}

impl NearMiss {
    /// For people: `short by 1 GPU on w-17`.
    #[must_use]
    pub fn describe(&self) -> String {
        let parts = self.shortfall.parts().into_iter().filter(|(_, amount, _)| *amount > 0);
        let parts: Vec<_> = parts.map(|(_, amount, unit)| format!("{amount} {unit}")).collect();
        format!("short by {} on {}", parts.join(" and "), self.worker)
    }
}

/// What a claim finds among some workers. What [`FilterReason`] counts and `fits` sum to `workers`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerSurvey {
    /// How many they are.
    pub workers: u64,
    /// How many would take it now.
    pub fits: u64,
    /// How many do not, by reason, in the order of [`FilterReason::ALL`].
    pub filtered: [u64; FilterReason::ALL.len()],
    /// Of those that have too little of something, how many would have too little also if they held nothing.
    pub too_small: u64,
    /// Those that lack nothing but room, the nearest first; at most [`Self::NEAREST`].
    pub nearest: Vec<NearMiss>,
    /// Resource by resource, the most that any worker has left which lacks at most room.
    pub most_free: ResourceAmounts,
}

impl WorkerSurvey {
    /// Near misses that are told.
    pub const NEAREST: usize = 3;

    /// How many a reason ruled out.
    #[must_use]
    pub const fn count(&self, why: FilterReason) -> u64 {
        self.filtered[why as usize]
    }

    /// Adds one that would do if it had more.
    pub fn add_near_miss(&mut self, miss: NearMiss) {
        let order = |miss: &NearMiss| (miss.rank, miss.worker.as_str().to_owned());
        if self.nearest.len() == Self::NEAREST && self.nearest.last().is_some_and(|last| last.rank < miss.rank) {
            return;
        }
        let at = self.nearest.partition_point(|known| order(known) <= order(&miss));
        self.nearest.insert(at, miss);
        self.nearest.truncate(Self::NEAREST);
    }

    /// Adds other workers.
    pub fn merge(&mut self, other: Self) {
        self.workers += other.workers;
        self.fits += other.fits;
        self.too_small += other.too_small;
        self.filtered.iter_mut().zip(other.filtered).for_each(|(sum, more)| *sum += more);
        self.most_free.merge_max(&other.most_free);
        other.nearest.into_iter().for_each(|miss| self.add_near_miss(miss));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_first_and_are_few() {
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

    #[test]
    fn reasons_stand_in_their_order() {
        assert!(FilterReason::ALL.iter().enumerate().all(|(at, why)| *why as usize == at));
    }
}
