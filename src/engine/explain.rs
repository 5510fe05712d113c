//! What a claim would find: which worker it would be given, and of the others why not. Takes nothing and changes nothing.
//!
//! The worker is chosen by the very pick of the decision. The count looks at each worker by itself, at most
//! [`limits::SLICE_ENTRIES`] at a time, so that a shard of a million workers is not kept from its claims; it asks the same
//! questions as the pick ([`PlacementConstraints::allows`], room, bars, end of life), only one after another and by name. A test holds both
//! together.

use std::sync::Arc;

use super::NIL;
use super::effect::EngineReply;
use super::placement::constraints::{GpuFilter, PlacementConstraints, PlacementFailure};
use super::shard::Shard;
use crate::limits;
use crate::model::unschedulable_bits;
use crate::model::{
    FilterReason, Millis, NearMiss, ResourceAmounts, ResourceRequirements, WorkerRegistration, WorkerSurvey,
};

/// What of a worker a claim can have: all of it, or what is left of it.
#[derive(Debug, Default)]
struct FreeAmounts {
    cpu_milli: u64,
    memory_bytes: u64,
    slots: u64,
    /// Free thousandths of its cards, most first.
    cards: Vec<u16>,
}

impl FreeAmounts {
    fn amounts(&self) -> ResourceAmounts {
        let whole = self.cards.iter().take_while(|&&milli| u32::from(milli) == limits::GPU_MILLI).count();
        ResourceAmounts {
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            slots: self.slots,
            gpu: whole as u64,
            gpu_milli: self.cards.first().copied().map_or(0, u64::from),
        }
    }

    /// What is missing for a claim, and how near that is.
    fn shortfall(&self, asked: &ResourceRequirements) -> (ResourceAmounts, (u32, u64)) {
        let mut short = ResourceAmounts {
            cpu_milli: asked.cpu_milli.saturating_sub(self.cpu_milli),
            memory_bytes: asked.memory_bytes.saturating_sub(self.memory_bytes),
            slots: asked.slots.saturating_sub(self.slots),
            ..ResourceAmounts::default()
        };
        let have = self.amounts();
        let mut of = [asked.cpu_milli, asked.memory_bytes, asked.slots, 0, 0];
        if let Some(gpu) = &asked.gpu {
            if gpu.milli == limits::GPU_MILLI {
                of[3] = gpu.count.into();
                short.gpu = of[3].saturating_sub(have.gpu);
            } else {
                of[4] = gpu.milli.into();
                short.gpu_milli = of[4].saturating_sub(have.gpu_milli);
            }
        }
        let parts = short.parts().map(|(_, amount, _)| amount).into_iter().zip(of).filter(|(amount, _)| *amount > 0);
        let millionths = |(amount, of): (u64, u64)| (u128::from(amount) * 1_000_000 / u128::from(of)) as u64;
        let rank = parts.fold((0, 0), |(kinds, sum), part| (kinds + 1, sum + millionths(part)));
        (short, rank)
    }
}

/// The first of these that is missing.
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
    /// The worker that a claim would be given that needs it for `needs_ms`, or why there is none; no reason: none is free.
    /// Under policy `random` it is one of those that it may be given.
    ///
    /// # Errors
    /// As the claim would be answered.
    pub fn preview_placement(
        &mut self,
        wants: Option<&PlacementConstraints>,
        affinity: u64,
        needs_ms: Millis,
        now_ms: Millis,
    ) -> Result<Arc<WorkerRegistration>, Option<PlacementFailure>> {
        let (nothing, until_ms) = (PlacementConstraints::default(), now_ms + needs_ms);
        let picked = match &self.shared {
            None => self.pick_worker(affinity, self.fence_max + 1, until_ms, wants),
            Some(_) => {
                let picked = self.select_share(wants.unwrap_or(&nothing), until_ms);
                picked.map(|(worker, _)| worker).map_err(EngineReply::NotPlaced)
            }
        };
        match picked {
            Ok(worker) => Ok(Arc::clone(self.workers.registration(worker))),
            Err(EngineReply::NotPlaced(why)) => Err(Some(why)),
            Err(_) => Err(None),
        }
    }

    /// What a claim finds among the workers with ordinals `from..from + limit`, and where to go on.
    #[must_use]
    pub fn survey(
        &self,
        wants: Option<&PlacementConstraints>,
        needs_ms: Millis,
        now_ms: Millis,
        from: u32,
        limit: u32,
    ) -> (WorkerSurvey, Option<u32>) {
        let nothing = PlacementConstraints::default();
        let wants = wants.unwrap_or(&nothing);
        let end = from.saturating_add(limit);
        let mut survey = WorkerSurvey::default();
        for at in from..end.min(self.workers.ordinals()) {
            if self.workers.is_used(at) && !self.workers.get(at).deleted {
                self.survey_worker(at, wants, now_ms + needs_ms, &mut survey);
            }
        }
        (survey, (end < self.workers.ordinals()).then_some(end))
    }

    fn survey_worker(&self, at: u32, wants: &PlacementConstraints, until_ms: Millis, survey: &mut WorkerSurvey) {
        survey.workers += 1;
        let nothing = ResourceRequirements::default();
        let asked = wants.spec.as_ref().map_or(&nothing, |spec| &spec.resources);
        if let Some(why) = self.filtered_before_fit(at, wants, asked) {
            survey.filtered[why as usize] += 1;
            return;
        }
        let room = self.free_amounts(at);
        let (short, rank) = room.shortfall(asked);
        let last = self.filtered_after_fit(at, until_ms);
        if last.is_none() {
            survey.most_free.merge_max(&room.amounts());
        }
        match (first_shortage(&short), last) {
            (None, None) => survey.fits += 1,
            (None, Some(why)) => survey.filtered[why as usize] += 1,
            (Some(why), last) => {
                survey.filtered[why as usize] += 1;
                let card = self.workers.registration(at);
                let small = !asked.fits_in(&card.spec.capacity);
                survey.too_small += u64::from(small);
                if last.is_none() {
                    let rank = (small, rank.0, rank.1);
                    let (worker, node) = (card.spec.id.clone(), card.spec.node.as_deref().map(Into::into));
                    survey.add_near_miss(NearMiss { worker, node, shortfall: short, rank });
                }
            }
        }
    }

    /// What room has nothing to do with, and comes before it.
    fn filtered_before_fit(
        &self,
        at: u32,
        wants: &PlacementConstraints,
        asked: &ResourceRequirements,
    ) -> Option<FilterReason> {
        let (worker, spec) = (self.workers.get(at), &self.workers.registration(at).spec);
        // One that is kept for another claim may still be too small for this one, or busy: that comes before.
        if let Some(reason) =
            unschedulable_bits::reasons(worker.unschedulable_bits & !unschedulable_bits::RESERVED).next()
        {
            return Some(reason.into());
        }
        if wants.selector.as_ref().is_some_and(|selector| !selector.matches(&spec.labels)) {
            return Some(FilterReason::Selector);
        }
        if !wants.nodes.allows(spec.node.as_deref()) {
            return Some(FilterReason::Node);
        }
        if wants.worker.as_ref().is_some_and(|id| *id != spec.id) {
            return Some(FilterReason::Worker);
        }
        let model = spec.capacity.gpu.as_ref().map(|gpu| &gpu.model);
        let models = asked.gpu.as_ref().map_or(&[][..], |gpu| &gpu.models);
        let other = !models.is_empty() && !model.is_some_and(|model| models.contains(model));
        let kept_out = match &wants.gpus {
            GpuFilter::Any => false,
            GpuFilter::NoGpus => model.is_some(),
            GpuFilter::Model(only) => model != Some(only),
        };
        (other || kept_out).then_some(FilterReason::GpuModel)
    }

    /// What room has nothing to do with, and comes after it.
    fn filtered_after_fit(&self, at: u32, until_ms: Millis) -> Option<FilterReason> {
        let why = match &self.shared {
            None => (self.workers.get(at).claim != NIL).then_some(FilterReason::Busy),
            Some(shares) if shares.is_overcommitted(at) => Some(FilterReason::Overcommitted),
            Some(shares) => shares.is_full(at).then_some(FilterReason::Claims),
        };
        let reserved = self.workers.get(at).unschedulable_bits & unschedulable_bits::RESERVED != 0;
        why.or_else(|| (!self.outlives(at, until_ms)).then_some(FilterReason::Expires))
            .or_else(|| reserved.then_some(FilterReason::Reserved))
    }

    fn free_amounts(&self, at: u32) -> FreeAmounts {
        if let Some(shares) = &self.shared {
            let room = shares.fleet.free(at);
            let cards = room.gpus.to_vec();
            return FreeAmounts {
                cpu_milli: room.cpu_milli,
                memory_bytes: room.memory_bytes,
                slots: room.slots,
                cards,
            };
        }
        let capacity = &self.workers.registration(at).spec.capacity;
        let count = capacity.gpu.as_ref().map_or(0, |gpu| gpu.count as usize);
        FreeAmounts {
            cpu_milli: capacity.cpu_milli,
            memory_bytes: capacity.memory_bytes,
            slots: capacity.slots,
            cards: vec![limits::GPU_MILLI as u16; count],
        }
    }
}
