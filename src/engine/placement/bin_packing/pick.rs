//! Choice of the worker and the GPUs for a request.

use smallvec::SmallVec;

use super::fleet::{FleetIndex, WorkerGroup};
use super::fragmentation::FragmentationScorer;
use super::free_resources::{GpuPacking, ModelId, ResourceAllocation, ResourceRequest, choose_gpus};
use crate::engine::NIL;

/// Strategy to choose among the workers that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FitStrategy {
    /// Least free resources after the claim.
    BestFit,
    /// Most free resources after the claim.
    Spread,
    /// Least growth of free GPUs that typical requests cannot use (see [`super::fragmentation`]).
    Fgd,
}

/// Chosen worker, and the free thousandths of the GPU to take from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacementDecision {
    /// Ordinal of the worker.
    pub worker: u32,
    /// Free thousandths of the GPU to take from (see [`choose_gpus`]).
    pub gpu_free_milli: u16,
}

impl FleetIndex {
    /// Picks a worker for a request. Changes nothing.
    pub fn pick(
        &self,
        request: &ResourceRequest,
        placement: FitStrategy,
        fgd: &mut FragmentationScorer,
    ) -> Option<PlacementDecision> {
        self.pick_among(request, placement, fgd, &mut |group| self.first_outliving(group, request.until_ms, |_| true))
    }

    /// Picks among the workers that pass: `member` chooses a member of a group, if any passes. Changes nothing.
    pub fn pick_among(
        &self,
        request: &ResourceRequest,
        placement: FitStrategy,
        fgd: &mut FragmentationScorer,
        member: &mut impl FnMut(&WorkerGroup) -> Option<u32>,
    ) -> Option<PlacementDecision> {
        let all: SmallVec<[ModelId; 16]>;
        let models = if request.models.is_empty() {
            all = (0..self.orders.len() as ModelId).collect();
            &all
        } else {
            &*request.models
        };
        let orders = models.iter().filter_map(|&model| self.orders.get(model as usize));
        // Chosen member of the best group so far.
        let mut worker = NIL;
        let mut passes = |at: u32| {
            let group = &self.groups[at as usize];
            group.free.fits(request) && member(group).inspect(|&found| worker = found).is_some()
        };
        let (found, packing) = match placement {
            FitStrategy::BestFit => {
                (orders.fold(None, |best, order| order.best_fit(request, &mut passes, best)), GpuPacking::Fullest)
            }
            FitStrategy::Spread => {
                (orders.fold(None, |best, order| order.worst_fit(request, &mut passes, best)), GpuPacking::Emptiest)
            }
            FitStrategy::Fgd => {
                let mut search = fgd.search(request, self.groups.len());
                for order in orders {
                    order.for_each_fit(request, &mut |at| {
                        let group = &self.groups[at as usize];
                        if group.free.fits(request)
                            && let Some(worker) = member(group)
                        {
                            search.consider(at, group, worker);
                        }
                    });
                }
                let (worker, gpu_free_milli) = search.best()?;
                return Some(PlacementDecision { worker, gpu_free_milli });
            }
        };
        let (_, group) = found?;
        Some(PlacementDecision {
            worker,
            gpu_free_milli: packing.free_milli_of_pick(&self.groups[group as usize].free.gpus, request),
        })
    }

    /// Worker with the highest score among those that fit, the lowest ordinal of equal ones. For callers with an
    /// order of their own: visits each distinct vector of free resources that fits.
    pub fn pick_by(&self, request: &ResourceRequest, mut score: impl FnMut(u32, &WorkerGroup) -> i64) -> Option<u32> {
        let mut best: Option<(i64, u32)> = None;
        for (model, order) in self.orders.iter().enumerate() {
            if !request.models.is_empty() && !request.models.contains(&(model as ModelId)) {
                continue;
            }
            order.for_each_fit(request, &mut |at| {
                let group = &self.groups[at as usize];
                if !group.free.fits(request) {
                    return;
                }
                let Some(worker) = self.first_outliving(group, request.until_ms, |_| true) else { return };
                let score = score(at, group);
                if best.is_none_or(|(high, first)| score > high || (score == high && worker < first)) {
                    best = Some((score, worker));
                }
            });
        }
        best.map(|(_, worker)| worker)
    }

    /// Allocation of a request on the worker that was picked.
    #[must_use]
    pub fn allocation(&self, request: &ResourceRequest, pick: PlacementDecision) -> Option<ResourceAllocation> {
        choose_gpus(self.gpus(pick.worker), request, pick.gpu_free_milli).map(|gpu_mask| request.allocation(gpu_mask))
    }
}
