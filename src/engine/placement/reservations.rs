//! Workers that are promised to claims that wait: nobody else is given anything of them.
//!
//! A claim with a higher priority may *evict* claims that are marked `preemptible`: they are being released from then on, with the
//! pool's time for that, and what comes free is promised to whoever evicted them. A victim has a strictly lower priority, so
//! no chain of evictions comes back to where it began. In a shared pool a worker may also be promised to a large claim without
//! evicting anybody: small ones come and go, and it would never see enough of it free at once.
//!
//! Promises live in memory only: who waits does not survive a restart. That a claim was evicted is in its row.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::bin_packing::{ResourceAllocation, ResourceRequest};
use super::constraints::{PlacementConstraints, PlacementFailure};
use crate::engine::NIL;
use crate::engine::effect::EngineReply;
use crate::engine::event::ClaimHandle;
use crate::engine::shard::{Shard, saturating_millis};
use crate::model::unschedulable_bits;
use crate::model::{ClaimState, Fence, Millis, ResourceRequirements};

/// Claims that a search for victims looks at, the cheapest first: what bounds its time.
const VICTIMS_SCANNED_MAX: usize = 1_024;
/// Workers that it compares.
const WORKERS_COMPARED_MAX: usize = 64;

/// Who was promised what, and who could make room.
#[derive(Debug, Default)]
pub struct WorkerReservations {
    /// By ticket of whoever waits.
    workers: BTreeMap<u64, u32>,
    /// Claims that may be evicted, the cheapest first: of equal priority the youngest, which loses the least work.
    evictable: BTreeSet<(u16, Reverse<Fence>, u32)>,
    /// Claims that were.
    evicted: BTreeSet<u32>,
}

/// Who may be evicted for a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionPolicy {
    /// Claims with a lower priority than this.
    pub below_priority: u16,
    /// How long they have.
    pub releasing_ms: Millis,
}

impl Shard {
    /// Brings what is known of a claim as a possible victim up to date.
    pub(in crate::engine) fn index_evictable(&mut self, claim: u32) {
        let Some(held) = self.claims.by_ordinal(claim) else { return };
        let Some(spec) = held.spec.as_ref().filter(|spec| spec.preemptible) else { return };
        let entry = (spec.priority, Reverse(held.fence), claim);
        let may =
            matches!(held.state, ClaimState::Reserved | ClaimState::Active) && self.gangs.gang_of(claim).is_none();
        if may {
            self.reservations.evictable.insert(entry);
        } else {
            self.reservations.evictable.remove(&entry);
        }
    }

    /// The claim is about to end.
    pub(in crate::engine) fn unindex_evictable(&mut self, claim: u32) {
        if let Some(held) = self.claims.by_ordinal(claim)
            && let Some(spec) = held.spec.as_ref().filter(|spec| spec.preemptible)
        {
            self.reservations.evictable.remove(&(spec.priority, Reverse(held.fence), claim));
            self.reservations.evicted.remove(&claim);
        }
    }

    /// The lowest priority of a claim that may be evicted; none: there is none.
    #[must_use]
    pub fn min_evictable_priority(&self) -> Option<u16> {
        self.reservations.evictable.first().map(|(priority, ..)| *priority)
    }

    /// Whether the claim is being released because it was evicted.
    #[must_use]
    pub fn is_evicted(&self, claim: u32) -> bool {
        self.reservations.evicted.contains(&claim)
    }

    /// It was evicted before the shard was loaded.
    pub(in crate::engine) fn restore_evicted(&mut self, claim: u32) {
        self.reservations.evicted.insert(claim);
    }

    /// What a claim that is being released is said to be.
    pub(in crate::engine) fn releasing_reply(&self, claim: u32) -> EngineReply {
        if self.is_evicted(claim) { EngineReply::Evicted } else { EngineReply::Releasing }
    }

    /// Workers that are promised to somebody, each once.
    pub(in crate::engine) fn reserved_workers(&self) -> BTreeSet<u32> {
        self.reservations.workers.values().copied().collect()
    }

    /// Whether a worker is promised to this ticket.
    #[must_use]
    pub fn has_reservation(&self, ticket: u64) -> bool {
        self.reservations.workers.contains_key(&ticket)
    }

    /// Promises a worker to whoever waits with this ticket: one that has what it wants when the fewest and cheapest claims are evicted;
    /// without eviction, the one that lacks the least.
    pub(in crate::engine) fn reserve_worker(
        &mut self,
        ticket: u64,
        wants: &PlacementConstraints,
        evict: Option<EvictionPolicy>,
        until_ms: Millis,
        now_ms: Millis,
    ) -> EngineReply {
        if self.has_reservation(ticket) {
            return EngineReply::WorkerReserved;
        }
        let found = match (evict, self.shared.is_some()) {
            (Some(evict), false) => self.cheapest_victim(wants, evict, until_ms),
            (Some(evict), true) => self.fewest_victims(wants, evict, until_ms),
            (None, false) => None,
            (None, true) => self.smallest_shortfall(wants, until_ms).map(|at| (at, Vec::new())),
        };
        let Some((at, victims)) = found else { return EngineReply::NotPlaced(PlacementFailure::Busy) };
        self.reservations.workers.insert(ticket, at);
        self.update_unschedulable(at, unschedulable_bits::RESERVED, 0);
        for place in victims {
            self.evict(place, evict.map_or(0, |evict| evict.releasing_ms), now_ms);
        }
        EngineReply::WorkerReserved
    }

    fn can_reserve(&self, at: u32, wants: &PlacementConstraints, until_ms: Millis) -> bool {
        let worker = self.workers.get(at);
        let spec = &self.workers.registration(at).spec;
        !worker.deleted && worker.unschedulable_bits == 0 && wants.fits(spec) && self.outlives(at, until_ms)
    }

    fn victims_below(&self, below: u16) -> impl Iterator<Item = ClaimHandle> {
        let lower = self.reservations.evictable.iter().take_while(move |(priority, ..)| *priority < below);
        lower.take(VICTIMS_SCANNED_MAX).filter_map(|&(_, Reverse(fence), claim)| {
            Some(ClaimHandle { claim, worker: self.claims.by_ordinal(claim)?.worker, fence })
        })
    }

    fn cheapest_victim(
        &self,
        wants: &PlacementConstraints,
        evict: EvictionPolicy,
        until_ms: Millis,
    ) -> Option<(u32, Vec<ClaimHandle>)> {
        let found =
            self.victims_below(evict.below_priority).find(|place| self.can_reserve(place.worker, wants, until_ms));
        found.map(|place| (place.worker, vec![place]))
    }

    fn fewest_victims(
        &mut self,
        wants: &PlacementConstraints,
        evict: EvictionPolicy,
        until_ms: Millis,
    ) -> Option<(u32, Vec<ClaimHandle>)> {
        let need = self.resource_request(wants)?;
        let mut by_worker: BTreeMap<u32, Vec<ClaimHandle>> = BTreeMap::new();
        for place in self.victims_below(evict.below_priority) {
            if by_worker.contains_key(&place.worker)
                || (by_worker.len() < WORKERS_COMPARED_MAX && self.can_reserve(place.worker, wants, until_ms))
            {
                by_worker.entry(place.worker).or_default().push(place);
            }
        }
        let mut best: Option<((usize, u64), u32, Vec<ClaimHandle>)> = None;
        for (at, candidates) in by_worker {
            let mut victims: Vec<ClaimHandle> = Vec::new();
            for place in candidates {
                victims.push(place);
                if self.fits_without(at, &need, &victims) {
                    break;
                }
            }
            if !self.fits_without(at, &need, &victims) {
                continue;
            }
            // The cheap ones that were taken first may not be needed beside a large one.
            for place in victims.clone() {
                let others: Vec<ClaimHandle> = victims.iter().copied().filter(|other| *other != place).collect();
                if self.fits_without(at, &need, &others) {
                    victims = others;
                }
            }
            let priority = |place: &ClaimHandle| {
                let spec = self.claims.get(*place).and_then(|claim| claim.spec.as_ref());
                spec.map_or(0, |spec| u64::from(spec.priority))
            };
            let cost = (victims.len(), victims.iter().map(priority).sum());
            if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                best = Some((cost, at, victims));
            }
        }
        best.map(|(_, at, victims)| (at, victims))
    }

    fn resource_request(&self, wants: &PlacementConstraints) -> Option<ResourceRequest> {
        let nothing = ResourceRequirements::default();
        let resources = wants.spec.as_ref().map_or(&nothing, |spec| &spec.resources);
        self.shared.as_ref()?.resource_request(resources, &wants.gpus)
    }

    /// Whether the worker would have room if these claims were gone.
    fn fits_without(&mut self, at: u32, need: &ResourceRequest, gone: &[ClaimHandle]) -> bool {
        let stay: Vec<ResourceAllocation> = self
            .handles_on(at)
            .iter()
            .filter(|place| !gone.contains(place))
            .map(|place| self.allocation_of(place.claim))
            .collect();
        let Some(shares) = &mut self.shared else { return false };
        let capacity = &self.workers.registration(at).spec.capacity;
        let profile = shares.fleet.free(at).class_id;
        shares.fleet.remove(at);
        let enough = shares.fleet.insert_with(at, capacity, profile, stay);
        let fits = enough && shares.fleet.free(at).fits(need);
        self.recompute_free(at);
        fits
    }

    /// The worker that lacks the smallest part of what is wanted.
    fn smallest_shortfall(&self, wants: &PlacementConstraints, until_ms: Millis) -> Option<u32> {
        let (need, shares) = (self.resource_request(wants)?, self.shared.as_ref()?);
        let lack =
            |has: u64, wants: u64| wants.saturating_sub(has).saturating_mul(1_000).checked_div(wants).unwrap_or(0);
        let of = |at: u32| {
            let room = shares.fleet.free(at);
            let cards = room.gpus.iter().filter(|&&milli| milli >= need.gpu_milli).count() as u64;
            [
                lack(room.cpu_milli, need.cpu_milli),
                lack(room.memory_bytes, need.memory_bytes),
                lack(room.slots, need.slots),
                lack(cards, u64::from(need.gpu_count)),
            ]
            .into_iter()
            .max()
        };
        let may = |at: &u32| self.can_reserve(*at, wants, until_ms);
        self.workers.iter_from(0).filter(may).min_by_key(|&at| of(at))
    }

    /// The claim is being released from now on, because another takes its place.
    fn evict(&mut self, place: ClaimHandle, releasing_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get_mut(place) else { return };
        (claim.confirmed, claim.term_ms) = (true, saturating_millis(releasing_ms));
        self.claims.transition(place, ClaimState::Releasing, None);
        self.index_evictable(place.claim);
        self.reservations.evicted.insert(place.claim);
        self.counters.lifecycle.evicted += 1;
        self.timers.cancel(place.claim);
        self.start_state_timer(place, now_ms);
        self.record_change(place.worker);
    }

    /// Whoever has the ticket takes what it was promised. None: the promise is void, so it goes the way of any claim.
    pub(in crate::engine) fn redeem_reservation(
        &mut self,
        ticket: u64,
        wants: Option<&PlacementConstraints>,
        until_ms: Millis,
    ) -> Option<Result<(u32, Option<ResourceAllocation>), EngineReply>> {
        let at = *self.reservations.workers.get(&ticket)?;
        let nothing = PlacementConstraints::default();
        let wants = wants.unwrap_or(&nothing);
        let there =
            self.workers.is_used(at) && self.workers.get(at).unschedulable_bits & unschedulable_bits::RESERVED != 0;
        if !there
            || self.workers.get(at).unschedulable_bits != unschedulable_bits::RESERVED
            || !wants.fits(&self.workers.registration(at).spec)
        {
            self.cancel_reservation(ticket);
            return None;
        }
        if !self.outlives(at, until_ms) {
            // It did when it was promised, and time has passed since.
            self.cancel_reservation(ticket);
            return None;
        }
        if self.shared.is_none() && self.workers.get(at).claim != NIL {
            return Some(Err(EngineReply::NotPlaced(PlacementFailure::Busy)));
        }
        if self.shared.is_some() && !self.reservation_fits(at, wants) {
            return Some(Err(EngineReply::NotPlaced(PlacementFailure::Busy)));
        }
        self.cancel_reservation(ticket);
        let only =
            PlacementConstraints { worker: Some(self.workers.registration(at).spec.id.clone()), ..wants.clone() };
        Some(match self.shared {
            None => {
                self.idle_queue.remove(self.workers.hot_mut(), at);
                Ok((at, None))
            }
            Some(_) => self.allocate_share(until_ms, Some(&only)),
        })
    }

    fn reservation_fits(&self, at: u32, wants: &PlacementConstraints) -> bool {
        let fits = |need: ResourceRequest| self.shared.as_ref().is_some_and(|shares| shares.fleet.free(at).fits(&need));
        self.resource_request(wants).is_some_and(fits)
    }

    /// The worker is gone. Its ordinal may be another's soon, to whom none of this was promised.
    pub(in crate::engine) fn void_reservations(&mut self, at: u32) {
        self.reservations.workers.retain(|_, promised| *promised != at);
    }

    /// Nothing is promised to this ticket any more.
    pub(in crate::engine) fn cancel_reservation(&mut self, ticket: u64) {
        let Some(at) = self.reservations.workers.remove(&ticket) else { return };
        if self.workers.is_used(at) && !self.workers.get(at).deleted {
            self.update_unschedulable(at, 0, unschedulable_bits::RESERVED);
        }
    }
}
