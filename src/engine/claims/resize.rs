//! A claim of a shared pool that needs more or less of its worker than before. It stays where it is and keeps its fence; what
//! it gives back is always taken, and more only if the worker has it.

use std::sync::Arc;

use crate::engine::effect::EngineReply;
use crate::engine::event::ClaimHandle;
use crate::engine::placement::bin_packing::ResourceAllocation;
use crate::engine::placement::constraints::{GpuFilter, PlacementFailure};
use crate::engine::shard::Shard;
use crate::model::{ClaimSpec, ClaimState, GpuRequest, ResourceRequirements};

/// Those of some cards with the lowest numbers.
fn lowest_bits(cards: u64, count: u32) -> u64 {
    let mut kept = 0;
    let mut left = cards;
    for _ in 0..count {
        let bit = left & left.wrapping_neg();
        kept |= bit;
        left ^= bit;
    }
    kept
}

/// Whether a claim that holds one gives something back, and takes nothing, by turning to the other. `granted`: model of the
/// cards that it holds.
fn is_shrink(from: &ResourceRequirements, to: &ResourceRequirements, granted: Option<&Arc<str>>) -> bool {
    let cards = match (&from.gpu, &to.gpu) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(from), Some(to)) => {
            let same = to.models == from.models || allows(to, granted);
            same && to.count <= from.count && to.milli <= from.milli
        }
    };
    cards && to.cpu_milli <= from.cpu_milli && to.memory_bytes <= from.memory_bytes && to.slots <= from.slots
}

/// Whether cards of this model will do.
fn allows(asked: &GpuRequest, model: Option<&Arc<str>>) -> bool {
    asked.models.is_empty() || model.is_some_and(|model| asked.models.contains(model))
}

impl Shard {
    /// The claim holds as much as is said now, on its worker, or what it held.
    pub(in crate::engine) fn resize(&mut self, place: ClaimHandle, resources: ResourceRequirements) -> EngineReply {
        let Some(claim) = self.claims.get(place) else { return EngineReply::StaleHandle };
        if claim.state == ClaimState::Releasing {
            return self.releasing_reply(place.claim);
        }
        let nothing = ClaimSpec::default();
        let held = claim.spec.as_deref().unwrap_or(&nothing).clone();
        let at = claim.worker;
        let capacity = &self.workers.registration(at).spec.capacity;
        let present = capacity.gpu.as_ref().map(|gpu| &gpu.model);
        let granted = held.granted_model.as_ref().or(present);
        let shrinks = is_shrink(&held.resources, &resources, granted);
        if !resources.fits_in(capacity) && !shrinks {
            let other = resources.gpu.as_ref().filter(|gpu| !allows(gpu, granted) && !allows(gpu, present));
            return match other.and(granted) {
                Some(model) => EngineReply::GpuModelMismatch { model: Arc::clone(model) },
                None => EngineReply::NotPlaced(PlacementFailure::TooSmall),
            };
        }
        let (cards, granted_model) = match &self.shared {
            None => (0, None),
            Some(shares) if shrinks => {
                let count = resources.gpu.as_ref().map_or(0, |gpu| gpu.count);
                (lowest_bits(shares.gpu_mask(place.claim), count), held.granted_model.clone().filter(|_| count > 0))
            }
            // From now on it holds cards that its worker has now.
            Some(_) => match self.reallocate_gpus(place, &resources) {
                Some(cards) => (cards, None),
                None => return EngineReply::NotPlaced(PlacementFailure::Busy),
            },
        };
        if resources != held.resources {
            if let Some(claim) = self.claims.get_mut(place) {
                claim.spec = Some(Arc::new(ClaimSpec { resources, granted_model, ..held }));
            }
            if let Some(shares) = &mut self.shared {
                shares.set_gpu_mask(place.claim, cards);
                self.recompute_free(at);
            }
            self.capacity_epoch += 1;
            self.record_change(at);
        }
        if let Some(claim) = self.claims.get_mut(place) {
            claim.confirmed = true;
            claim.disclosure.set_reply_sent();
        }
        self.disclose(place)
    }

    /// The cards that a claim holds if it is given that much, by what else is held of its worker; none: there is no room.
    fn reallocate_gpus(&mut self, place: ClaimHandle, resources: &ResourceRequirements) -> Option<u64> {
        let at = place.worker;
        let own = self.allocation_of(place.claim);
        let others: Vec<ResourceAllocation> = self
            .handles_on(at)
            .iter()
            .filter(|other| **other != place)
            .map(|other| self.allocation_of(other.claim))
            .collect();
        let capacity = &self.workers.registration(at).spec.capacity;
        let shares = self.shared.as_mut()?;
        let need = shares.resource_request(resources, &GpuFilter::Any)?;
        let profile = shares.fleet.free(at).class_id;
        shares.fleet.remove(at);
        let enough = shares.fleet.insert_with(at, capacity, profile, others);
        let (room, cards) = (shares.fleet.free(at), shares.fleet.gpus(at));
        // The cards that it has, if they will do.
        let free = |card: &usize| cards.get(*card).is_some_and(|&milli| milli >= need.gpu_milli);
        let same = own.gpu_mask.count_ones() == u32::from(need.gpu_count)
            && (0..64).filter(|card| own.gpu_mask & (1 << card) != 0).all(|card| free(&card));
        let found = match (enough && room.fits(&need), same) {
            (false, _) => None,
            (true, true) => Some(own.gpu_mask),
            (true, false) => self.choose_allocation(at, &need).map(|share| share.gpu_mask),
        };
        self.recompute_free(at);
        found
    }
}
