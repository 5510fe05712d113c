//! Which worker of a fleet a need takes, and which of its cards.

use smallvec::SmallVec;

use super::fleet::{FleetIndex, WorkerGroup};
use super::fragmentation::FragmentationScorer;
use super::free_resources::{GpuPacking, ModelId, ResourceAllocation, ResourceRequest, choose_gpus};
use crate::engine::NIL;

/// How a worker is chosen among those that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FitStrategy {
    /// The one with the least left.
    BestFit,
    /// The one with the most left.
    Spread,
    /// The one of whose idle cards the fewest become useless for what is usually asked (see [`super::fragmentation`]).
    Fgd,
}

/// What was chosen: a worker, and how much the card has left from which it gives a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacementDecision {
    /// Ordinal of the worker.
    pub worker: u32,
    /// See [`choose_gpus`].
    pub gpu_free_milli: u16,
}

impl FleetIndex {
    /// The worker that a need takes, and from which card. Looks only.
    pub fn pick(
        &self,
        need: &ResourceRequest,
        placement: FitStrategy,
        fgd: &mut FragmentationScorer,
    ) -> Option<PlacementDecision> {
        self.pick_among(need, placement, fgd, &mut |group| self.first_outliving(group, need.until_ms, |_| true))
    }

    /// The same among the workers that pass: `member` says which member of a group is taken, if any. Looks only.
    pub fn pick_among(
        &self,
        need: &ResourceRequest,
        placement: FitStrategy,
        fgd: &mut FragmentationScorer,
        member: &mut impl FnMut(&WorkerGroup) -> Option<u32>,
    ) -> Option<PlacementDecision> {
        let all: SmallVec<[ModelId; 16]>;
        let models = if need.models.is_empty() {
            all = (0..self.orders.len() as ModelId).collect();
            &all
        } else {
            &*need.models
        };
        let orders = models.iter().filter_map(|&model| self.orders.get(model as usize));
        // Of the group that is best so far.
        let mut worker = NIL;
        let mut may = |at: u32| {
            let group = &self.groups[at as usize];
            group.free.fits(need) && member(group).inspect(|&found| worker = found).is_some()
        };
        let (found, rule) = match placement {
            FitStrategy::BestFit => {
                (orders.fold(None, |best, order| order.best_fit(need, &mut may, best)), GpuPacking::Fullest)
            }
            FitStrategy::Spread => {
                (orders.fold(None, |best, order| order.worst_fit(need, &mut may, best)), GpuPacking::Emptiest)
            }
            FitStrategy::Fgd => {
                let mut look = fgd.search(need, self.groups.len());
                for order in orders {
                    order.for_each_fit(need, &mut |at| {
                        let group = &self.groups[at as usize];
                        if group.free.fits(need)
                            && let Some(worker) = member(group)
                        {
                            look.consider(at, group, worker);
                        }
                    });
                }
                let (worker, from) = look.best()?;
                return Some(PlacementDecision { worker, gpu_free_milli: from });
            }
        };
        let (_, group) = found?;
        Some(PlacementDecision {
            worker,
            gpu_free_milli: rule.free_milli_of_pick(&self.groups[group as usize].free.gpus, need),
        })
    }

    /// The worker with the highest score among those that fit; the lowest ordinal of them. For whoever has an order of
    /// its own: looks at each distinct room that fits.
    pub fn pick_by(&self, need: &ResourceRequest, mut score: impl FnMut(u32, &WorkerGroup) -> i64) -> Option<u32> {
        let mut best: Option<(i64, u32)> = None;
        for (model, order) in self.orders.iter().enumerate() {
            if !need.models.is_empty() && !need.models.contains(&(model as ModelId)) {
                continue;
            }
            order.for_each_fit(need, &mut |at| {
                let group = &self.groups[at as usize];
                if !group.free.fits(need) {
                    return;
                }
                let Some(worker) = self.first_outliving(group, need.until_ms, |_| true) else { return };
                let score = score(at, group);
                if best.is_none_or(|(high, first)| score > high || (score == high && worker < first)) {
                    best = Some((score, worker));
                }
            });
        }
        best.map(|(_, worker)| worker)
    }

    /// Which cards a need takes of the worker that was picked.
    #[must_use]
    pub fn allocation(&self, need: &ResourceRequest, pick: PlacementDecision) -> Option<ResourceAllocation> {
        choose_gpus(self.gpus(pick.worker), need, pick.gpu_free_milli).map(|cards| need.allocation(cards))
    }
}
