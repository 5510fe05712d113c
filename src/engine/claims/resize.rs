//! Resizes a claim of a shared pool on its worker. The claim keeps its worker and its fence; less is always granted,
//! more only if the worker has it free.

use std::sync::Arc;

use crate::engine::effect::EngineReply;
use crate::engine::event::ClaimHandle;
use crate::engine::placement::bin_packing::ResourceAllocation;
use crate::engine::placement::constraints::{GpuFilter, PlacementFailure};
use crate::engine::shard::Shard;
use crate::model::{ClaimSpec, ClaimState, GpuRequest, ResourceRequirements, ResourceVector};

/// Lowest `count` set bits of a GPU mask.
fn lowest_bits(mask: u64, count: u32) -> u64 {
    assert!(count <= mask.count_ones(), "L1: a resize keeps more GPUs than the claim holds");
    let mut lowest = 0;
    let mut remaining = mask;
    for _ in 0..count {
        let bit = remaining & remaining.wrapping_neg();
        lowest |= bit;
        remaining ^= bit;
    }
    lowest
}

/// Whether a resize only frees resources. `granted`: model of the GPUs that the claim holds.
fn is_shrink(from: &ResourceRequirements, to: &ResourceRequirements, granted: Option<&Arc<str>>) -> bool {
    let gpus = match (&from.gpu, &to.gpu) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(from), Some(to)) => {
            let same_model = to.models == from.models || allows(to, granted);
            same_model && to.count <= from.count && to.milli <= from.milli
        }
    };
    gpus && ResourceVector::from(to).fits_in(from.into())
}

/// Whether a GPU request accepts this model.
fn allows(request: &GpuRequest, model: Option<&Arc<str>>) -> bool {
    request.models.is_empty() || model.is_some_and(|model| request.models.contains(model))
}

impl Shard {
    /// Resizes a claim on its worker, or leaves it unchanged.
    pub(in crate::engine) fn resize(&mut self, handle: ClaimHandle, resources: ResourceRequirements) -> EngineReply {
        let Some(claim) = self.claims.get(handle) else { return EngineReply::StaleHandle };
        if claim.state == ClaimState::Releasing {
            return self.releasing_reply(handle.claim);
        }
        let no_spec = ClaimSpec::default();
        let before = claim.spec.as_deref().unwrap_or(&no_spec).clone();
        let at = claim.worker;
        let capacity = &self.workers.registration(at).spec.capacity;
        let current = capacity.gpu.as_ref().map(|gpu| &gpu.model);
        let granted = before.granted_model.as_ref().or(current);
        let shrinks = is_shrink(&before.resources, &resources, granted);
        if !resources.fits_in(capacity) && !shrinks {
            let mismatch = resources.gpu.as_ref().filter(|gpu| !allows(gpu, granted) && !allows(gpu, current));
            return match mismatch.and(granted) {
                Some(model) => EngineReply::GpuModelMismatch { model: Arc::clone(model) },
                None => EngineReply::NotPlaced(PlacementFailure::TooSmall),
            };
        }
        let (gpu_mask, granted_model) = match &self.shared {
            None => (0, None),
            Some(shared) if shrinks => {
                let count = resources.gpu.as_ref().map_or(0, |gpu| gpu.count);
                (lowest_bits(shared.gpu_mask(handle.claim), count), before.granted_model.clone().filter(|_| count > 0))
            }
            // It holds GPUs of the worker's present registration from now on.
            Some(_) => match self.reallocate_gpus(handle, &resources) {
                Some(gpu_mask) => (gpu_mask, None),
                None => return EngineReply::NotPlaced(PlacementFailure::Busy),
            },
        };
        if resources != before.resources {
            if let Some(claim) = self.claims.get_mut(handle) {
                claim.spec = Some(Arc::new(ClaimSpec { resources, granted_model, ..before }));
            }
            if let Some(shared) = &mut self.shared {
                let own = self.claims.get(handle).and_then(|claim| claim.spec.as_ref()?.resources.gpu.as_ref());
                let gpu_count = own.map_or(0, |gpu| gpu.count);
                debug_assert_eq!(gpu_mask.count_ones(), gpu_count, "L1: a resize grants another number of GPUs");
                shared.set_gpu_mask(handle.claim, gpu_mask);
                self.recompute_free(at);
            }
            self.freed.add(at);
            self.record_change(at);
        }
        if let Some(claim) = self.claims.get_mut(handle) {
            claim.disclosure.set_confirmed();
            claim.disclosure.set_reply_sent();
        }
        self.disclose(handle)
    }

    /// GPUs that the claim would hold at the new size, given the other claims of its worker; none: it does not fit.
    fn reallocate_gpus(&mut self, handle: ClaimHandle, resources: &ResourceRequirements) -> Option<u64> {
        let at = handle.worker;
        let own = self.allocation_of(handle.claim);
        let others: Vec<ResourceAllocation> = self
            .handles_on(at)
            .iter()
            .filter(|other| **other != handle)
            .map(|other| self.allocation_of(other.claim))
            .collect();
        let capacity = &self.workers.registration(at).spec.capacity;
        let shared = self.shared.as_mut()?;
        let request = shared.resource_request(resources, &GpuFilter::Any)?;
        let class_id = shared.fleet.free(at).class_id;
        shared.fleet.remove(at);
        let enough = shared.fleet.insert_with(at, capacity, class_id, others);
        let (free, gpus) = (shared.fleet.free(at), shared.fleet.gpus(at));
        // The present GPUs, if they have enough free.
        let has_free = |gpu: &usize| gpus.get(*gpu).is_some_and(|&milli| milli >= request.gpu_milli);
        let keeps_gpus = own.gpu_mask.count_ones() == u32::from(request.gpu_count)
            && (0..64).filter(|gpu| own.gpu_mask & (1 << gpu) != 0).all(|gpu| has_free(&gpu));
        let gpu_mask = match (enough && free.fits(&request), keeps_gpus) {
            (false, _) => None,
            (true, true) => Some(own.gpu_mask),
            (true, false) => self.choose_allocation(at, &request).map(|allocation| allocation.gpu_mask),
        };
        self.recompute_free(at);
        gpu_mask
    }
}
