//! A claim of a shared pool that needs more or less of its worker than before. It stays where it is and keeps its fence; what
//! it gives back is always taken, and more only if the worker has it.

use std::sync::Arc;

use crate::engine::effect::Answer;
use crate::engine::event::Place;
use crate::engine::placement::bin_packing::Share;
use crate::engine::placement::constraints::{CardFilter, NoFit};
use crate::engine::shard::Shard;
use crate::model::{ClaimSpec, ClaimState, GpuAsk, Resources};

/// Those of some cards with the lowest numbers.
fn lowest(cards: u64, count: u32) -> u64 {
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
fn shrinks(from: &Resources, to: &Resources, granted: Option<&Arc<str>>) -> bool {
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
fn allows(asked: &GpuAsk, model: Option<&Arc<str>>) -> bool {
    asked.models.is_empty() || model.is_some_and(|model| asked.models.contains(model))
}

impl Shard {
    /// The claim holds as much as is said now, on its worker, or what it held.
    pub(in crate::engine) fn resize(&mut self, place: Place, resources: Resources) -> Answer {
        let Some(claim) = self.claims.get(place) else { return Answer::Gone };
        if claim.state == ClaimState::Releasing {
            return self.why_releasing(place.claim);
        }
        let nothing = ClaimSpec::default();
        let held = claim.spec.as_deref().unwrap_or(&nothing).clone();
        let at = claim.worker;
        let capacity = &self.workers.card(at).spec.capacity;
        let present = capacity.gpu.as_ref().map(|gpu| &gpu.model);
        let granted = held.granted_model.as_ref().or(present);
        let shrinks = shrinks(&held.resources, &resources, granted);
        if !resources.fit_in(capacity) && !shrinks {
            let other = resources.gpu.as_ref().filter(|gpu| !allows(gpu, granted) && !allows(gpu, present));
            return match other.and(granted) {
                Some(model) => Answer::OtherCards { model: Arc::clone(model) },
                None => Answer::NoFit(NoFit::Small),
            };
        }
        let (cards, granted_model) = match &self.shares {
            None => (0, None),
            Some(shares) if shrinks => {
                let count = resources.gpu.as_ref().map_or(0, |gpu| gpu.count);
                (lowest(shares.cards(place.claim), count), held.granted_model.clone().filter(|_| count > 0))
            }
            // From now on it holds cards that its worker has now.
            Some(_) => match self.regrow(place, &resources) {
                Some(cards) => (cards, None),
                None => return Answer::NoFit(NoFit::Busy),
            },
        };
        if resources != held.resources {
            if let Some(claim) = self.claims.get_mut(place) {
                claim.spec = Some(Arc::new(ClaimSpec { resources, granted_model, ..held }));
            }
            if let Some(shares) = &mut self.shares {
                shares.set_cards(place.claim, cards);
                self.recount_room(at);
            }
            self.raised += 1;
            self.touch(at);
        }
        if let Some(claim) = self.claims.get_mut(place) {
            claim.confirmed = true;
            claim.disclosed.set_answered();
        }
        self.tell(place)
    }

    /// The cards that a claim holds if it is given that much, by what else is held of its worker; none: there is no room.
    fn regrow(&mut self, place: Place, resources: &Resources) -> Option<u64> {
        let at = place.worker;
        let own = self.share_of(place.claim);
        let others: Vec<Share> = self
            .places_on(at)
            .iter()
            .filter(|other| **other != place)
            .map(|other| self.share_of(other.claim))
            .collect();
        let capacity = &self.workers.card(at).spec.capacity;
        let shares = self.shares.as_mut()?;
        let need = shares.need(resources, &CardFilter::Any)?;
        let profile = shares.fleet.room(at).profile;
        shares.fleet.leave(at);
        let enough = shares.fleet.enter_with(at, capacity, profile, others);
        let (room, cards) = (shares.fleet.room(at), shares.fleet.cards(at));
        // The cards that it has, if they will do.
        let free = |card: &usize| cards.get(*card).is_some_and(|&milli| milli >= need.card_milli);
        let same = own.cards.count_ones() == u32::from(need.cards)
            && (0..64).filter(|card| own.cards & (1 << card) != 0).all(|card| free(&card));
        let found = match (enough && room.fits(&need), same) {
            (false, _) => None,
            (true, true) => Some(own.cards),
            (true, false) => self.cards_of(at, &need).map(|share| share.cards),
        };
        self.recount_room(at);
        found
    }
}
