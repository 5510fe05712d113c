//! Answers what a claim would get: its worker, and why the other workers are filtered out. Changes nothing.
//!
//! The worker comes from the same pick as a real claim. The survey examines each worker by itself, at most
//! [`limits::SLICE_ENTRIES`] at a time, so that a shard of a million workers still serves claims; it applies the same
//! filters as the pick ([`PlacementConstraints::allows`], free resources, unschedulable reasons, end of life), but in
//! sequence and by name. A test keeps both consistent.

use std::sync::Arc;

use super::NIL;
use super::effect::EngineReply;
use super::placement::bin_packing::{FreeResources, NO_MODEL};
use super::placement::constraints::{GpuFilter, PlacementConstraints, PlacementFailure};
use super::shard::Shard;
use crate::limits;
use crate::model::unschedulable_bits;
use crate::model::{
    FilterReason, GpuRequest, Millis, NearMiss, ResourceAmounts, ResourceRequirements, WorkerRegistration, WorkerSurvey,
};

/// Free resources as an explanation shows them: the GPUs that are wholly free, and the most of any one.
fn shown_amounts(free: &FreeResources) -> ResourceAmounts {
    let FreeResources { cpu_milli, memory_bytes, slots, ref gpus, .. } = *free;
    let (gpu, gpu_milli) = (free.idle_gpus().into(), gpus.first().copied().map_or(0, u64::from));
    ResourceAmounts { cpu_milli, memory_bytes, slots, gpu, gpu_milli }
}

/// Resources that a claim lacks on a worker with these free, and a rank by how little that is.
fn shortfall(free: ResourceAmounts, requested: &ResourceRequirements) -> (ResourceAmounts, (u32, u64)) {
    let ResourceRequirements { cpu_milli, memory_bytes, slots, ref gpu } = *requested;
    let (gpu, gpu_milli): (u64, u64) = match gpu {
        Some(GpuRequest { count, milli: limits::GPU_MILLI, .. }) => ((*count).into(), 0),
        Some(GpuRequest { milli, .. }) => (0, (*milli).into()),
        None => (0, 0),
    };
    let requested = ResourceAmounts { cpu_milli, memory_bytes, slots, gpu, gpu_milli };
    let short = requested.zip_map(free, u64::saturating_sub);
    let amounts = short.parts().into_iter().zip(requested.parts()).map(|(short, of)| (short.1, of.1));
    let missing = amounts.filter(|(amount, _)| *amount > 0);
    let millionths = |(amount, of): (u64, u64)| (u128::from(amount) * 1_000_000 / u128::from(of)) as u64;
    let rank = missing.fold((0, 0), |(kinds, sum), part| (kinds + 1, sum + millionths(part)));
    (short, rank)
}

/// First resource of which a worker has too little.
const fn first_shortage(short: &ResourceAmounts) -> Option<FilterReason> {
    match short {
        ResourceAmounts { cpu_milli: 1.., .. } => Some(FilterReason::CpuMilli),
        ResourceAmounts { memory_bytes: 1.., .. } => Some(FilterReason::MemoryBytes),
        ResourceAmounts { slots: 1.., .. } => Some(FilterReason::Slots),
        ResourceAmounts { gpu: 1.., .. } | ResourceAmounts { gpu_milli: 1.., .. } => Some(FilterReason::Gpu),
        _ => None,
    }
}

impl Shard {
    /// Worker that a claim which needs it for `needs_ms` would get. Under policy `random` it is one of several.
    ///
    /// # Errors
    /// The reason why no worker fits; none if no worker is idle.
    pub fn preview_placement(
        &mut self,
        constraints: Option<&PlacementConstraints>,
        affinity: u64,
        needs_ms: Millis,
        now_ms: Millis,
    ) -> Result<Arc<WorkerRegistration>, Option<PlacementFailure>> {
        let (unconstrained, until_ms) = (PlacementConstraints::default(), now_ms + needs_ms);
        let picked = match &self.shared {
            None => self.pick_worker(affinity, self.header.fence_max + 1, until_ms, constraints),
            Some(_) => {
                let picked = self.select_allocation(constraints.unwrap_or(&unconstrained), until_ms);
                picked.map(|(worker, _)| worker).map_err(EngineReply::NotPlaced)
            }
        };
        match picked {
            Ok(worker) => Ok(Arc::clone(self.workers.registration(worker))),
            Err(EngineReply::NotPlaced(failure)) => Err(Some(failure)),
            Err(_) => Err(None),
        }
    }

    /// Surveys the workers with ordinals `from..from + limit`; returns the ordinal to continue at, if any.
    #[must_use]
    pub fn survey(
        &self,
        constraints: Option<&PlacementConstraints>,
        needs_ms: Millis,
        now_ms: Millis,
        from: u32,
        limit: u32,
    ) -> (WorkerSurvey, Option<u32>) {
        let unconstrained = PlacementConstraints::default();
        let constraints = constraints.unwrap_or(&unconstrained);
        let end = from.saturating_add(limit);
        let mut survey = WorkerSurvey::default();
        for at in from..end.min(self.workers.ordinals()) {
            if self.workers.is_used(at) && !self.workers.get(at).deleted {
                self.survey_worker(at, constraints, now_ms + needs_ms, &mut survey);
            }
        }
        let counted = survey.fits + survey.filtered.iter().sum::<u64>();
        debug_assert_eq!(counted, survey.workers, "N1: each worker fits or is filtered for one reason");
        (survey, (end < self.workers.ordinals()).then_some(end))
    }

    fn survey_worker(&self, at: u32, constraints: &PlacementConstraints, until_ms: Millis, survey: &mut WorkerSurvey) {
        survey.workers += 1;
        let no_resources = ResourceRequirements::default();
        let requested = constraints.spec.as_ref().map_or(&no_resources, |spec| &spec.resources);
        if let Some(reason) = self.filtered_before_fit(at, constraints, requested) {
            survey.filtered[reason as usize] += 1;
            return;
        }
        let free = self.free_amounts(at);
        let (short, rank) = shortfall(free, requested);
        let late_reason = self.filtered_after_fit(at, until_ms);
        if late_reason.is_none() {
            survey.most_free = survey.most_free.zip_map(free, u64::max);
        }
        match (first_shortage(&short), late_reason) {
            (None, None) => survey.fits += 1,
            (None, Some(reason)) => survey.filtered[reason as usize] += 1,
            (Some(reason), late_reason) => {
                survey.filtered[reason as usize] += 1;
                let registration = self.workers.registration(at);
                let too_small = !requested.fits_in(&registration.spec.capacity);
                survey.too_small += u64::from(too_small);
                if late_reason.is_none() {
                    let rank = (too_small, rank.0, rank.1);
                    let (worker, node) =
                        (registration.spec.id.clone(), registration.spec.node.as_deref().map(Into::into));
                    survey.add_near_miss(NearMiss { worker, node, shortfall: short, rank });
                }
            }
        }
    }

    /// First filter that rejects the worker before its free resources are compared.
    fn filtered_before_fit(
        &self,
        at: u32,
        constraints: &PlacementConstraints,
        requested: &ResourceRequirements,
    ) -> Option<FilterReason> {
        let (worker, spec) = (self.workers.get(at), &self.workers.registration(at).spec);
        // A worker reserved for another claim may still be too small for this one, or busy: those reasons come first.
        if let Some(reason) =
            unschedulable_bits::reasons(worker.unschedulable_bits & !unschedulable_bits::RESERVED).next()
        {
            return Some(reason.into());
        }
        if constraints.selector.as_ref().is_some_and(|selector| !selector.matches(&spec.labels)) {
            return Some(FilterReason::Selector);
        }
        if !constraints.nodes.allows(spec.node.as_deref()) {
            return Some(FilterReason::Node);
        }
        if constraints.worker.as_ref().is_some_and(|id| *id != spec.id) {
            return Some(FilterReason::Worker);
        }
        let model = spec.capacity.gpu.as_ref().map(|gpu| &gpu.model);
        let models = requested.gpu.as_ref().map_or(&[][..], |gpu| &gpu.models);
        let wrong_model = !models.is_empty() && !model.is_some_and(|model| models.contains(model));
        let excluded = match &constraints.gpus {
            GpuFilter::Any => false,
            GpuFilter::NoGpus => model.is_some(),
            GpuFilter::Model(only) => model != Some(only),
        };
        (wrong_model || excluded).then_some(FilterReason::GpuModel)
    }

    /// First filter that rejects the worker after its free resources are compared.
    fn filtered_after_fit(&self, at: u32, until_ms: Millis) -> Option<FilterReason> {
        let reason = match &self.shared {
            None => (self.workers.get(at).claim != NIL).then_some(FilterReason::Busy),
            Some(shared) if shared.is_overcommitted(at) => Some(FilterReason::Overcommitted),
            Some(shared) => shared.is_full(at).then_some(FilterReason::Claims),
        };
        let reserved = self.workers.get(at).unschedulable_bits & unschedulable_bits::RESERVED != 0;
        reason
            .or_else(|| (!self.outlives(at, until_ms)).then_some(FilterReason::Expires))
            .or_else(|| reserved.then_some(FilterReason::Reserved))
    }

    /// Resources of a worker that a claim can have: its capacity if exclusive, its free resources if shared.
    pub(super) fn free_amounts(&self, at: u32) -> ResourceAmounts {
        match &self.shared {
            Some(shared) => shown_amounts(shared.fleet.free(at)),
            None => self.unallocated_amounts(at),
        }
    }

    /// Resources of a worker without claims.
    pub(super) fn unallocated_amounts(&self, at: u32) -> ResourceAmounts {
        shown_amounts(&FreeResources::unallocated(&self.workers.registration(at).spec.capacity, NO_MODEL))
    }
}
