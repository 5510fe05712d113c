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

use super::bin_packing::{Need, Share};
use super::constraints::{NoFit, Wants};
use crate::engine::NIL;
use crate::engine::effect::Answer;
use crate::engine::event::Place;
use crate::engine::shard::{Shard, term};
use crate::model::unschedulable_bits;
use crate::model::{ClaimState, Fence, Millis, Resources};

/// Claims that a search for victims looks at, the cheapest first: what bounds its time.
const VICTIMS_LOOKED_AT: usize = 1_024;
/// Workers that it compares.
const WORKERS_COMPARED: usize = 64;

/// Who was promised what, and who could make room.
#[derive(Debug, Default)]
pub struct Promises {
    /// By ticket of whoever waits.
    workers: BTreeMap<u64, u32>,
    /// Claims that may be evicted, the cheapest first: of equal priority the youngest, which loses the least work.
    evictable: BTreeSet<(u16, Reverse<Fence>, u32)>,
    /// Claims that were.
    evicted: BTreeSet<u32>,
}

/// Who may be evicted for a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eviction {
    /// Claims with a lower priority than this.
    pub below: u16,
    /// How long they have.
    pub releasing_ms: Millis,
}

impl Shard {
    /// Brings what is known of a claim as a possible victim up to date.
    pub(in crate::engine) fn index_victim(&mut self, claim: u32) {
        let Some(held) = self.claims.at(claim) else { return };
        let Some(spec) = held.spec.as_ref().filter(|spec| spec.preemptible) else { return };
        let entry = (spec.priority, Reverse(held.fence), claim);
        let may = matches!(held.state, ClaimState::Reserved | ClaimState::Active) && self.gangs.of(claim).is_none();
        if may {
            self.promises.evictable.insert(entry);
        } else {
            self.promises.evictable.remove(&entry);
        }
    }

    /// The claim is about to end.
    pub(in crate::engine) fn forget_victim(&mut self, claim: u32) {
        if let Some(held) = self.claims.at(claim)
            && let Some(spec) = held.spec.as_ref().filter(|spec| spec.preemptible)
        {
            self.promises.evictable.remove(&(spec.priority, Reverse(held.fence), claim));
            self.promises.evicted.remove(&claim);
        }
    }

    /// The lowest priority of a claim that may be evicted; none: there is none.
    #[must_use]
    pub fn lowest_victim(&self) -> Option<u16> {
        self.promises.evictable.first().map(|(priority, ..)| *priority)
    }

    /// Whether the claim is being released because it was evicted.
    #[must_use]
    pub fn is_evicted(&self, claim: u32) -> bool {
        self.promises.evicted.contains(&claim)
    }

    /// It was evicted before the shard was loaded.
    pub(in crate::engine) fn recall_evicted(&mut self, claim: u32) {
        self.promises.evicted.insert(claim);
    }

    /// What a claim that is being released is said to be.
    pub(in crate::engine) fn why_releasing(&self, claim: u32) -> Answer {
        if self.is_evicted(claim) { Answer::Evicted } else { Answer::Releasing }
    }

    /// Workers that are promised to somebody, each once.
    pub(in crate::engine) fn promised(&self) -> BTreeSet<u32> {
        self.promises.workers.values().copied().collect()
    }

    /// Whether a worker is promised to this ticket.
    #[must_use]
    pub fn has_promised(&self, ticket: u64) -> bool {
        self.promises.workers.contains_key(&ticket)
    }

    /// Promises a worker to whoever waits with this ticket: one that has what it wants when the fewest and cheapest claims are evicted;
    /// without eviction, the one that lacks the least.
    pub(in crate::engine) fn promise(
        &mut self,
        ticket: u64,
        wants: &Wants,
        evict: Option<Eviction>,
        until_ms: Millis,
        now_ms: Millis,
    ) -> Answer {
        if self.has_promised(ticket) {
            return Answer::Promised;
        }
        let found = match (evict, self.shares.is_some()) {
            (Some(evict), false) => self.cheapest_victim(wants, evict, until_ms),
            (Some(evict), true) => self.fewest_victims(wants, evict, until_ms),
            (None, false) => None,
            (None, true) => self.lacks_least(wants, until_ms).map(|at| (at, Vec::new())),
        };
        let Some((at, victims)) = found else { return Answer::NoFit(NoFit::Busy) };
        self.promises.workers.insert(ticket, at);
        self.bar(at, unschedulable_bits::PROMISED, 0);
        for place in victims {
            self.evict(place, evict.map_or(0, |evict| evict.releasing_ms), now_ms);
        }
        Answer::Promised
    }

    fn may_promise(&self, at: u32, wants: &Wants, until_ms: Millis) -> bool {
        let worker = self.workers.get(at);
        let spec = &self.workers.card(at).spec;
        !worker.deleted && worker.bars == 0 && wants.fits(spec) && self.lasts(at, until_ms)
    }

    fn victims_below(&self, below: u16) -> impl Iterator<Item = Place> {
        let lower = self.promises.evictable.iter().take_while(move |(priority, ..)| *priority < below);
        lower.take(VICTIMS_LOOKED_AT).filter_map(|&(_, Reverse(fence), claim)| {
            Some(Place { claim, worker: self.claims.at(claim)?.worker, fence })
        })
    }

    fn cheapest_victim(&self, wants: &Wants, evict: Eviction, until_ms: Millis) -> Option<(u32, Vec<Place>)> {
        let found = self.victims_below(evict.below).find(|place| self.may_promise(place.worker, wants, until_ms));
        found.map(|place| (place.worker, vec![place]))
    }

    fn fewest_victims(&mut self, wants: &Wants, evict: Eviction, until_ms: Millis) -> Option<(u32, Vec<Place>)> {
        let need = self.need_of(wants)?;
        let mut by_worker: BTreeMap<u32, Vec<Place>> = BTreeMap::new();
        for place in self.victims_below(evict.below) {
            if by_worker.contains_key(&place.worker)
                || (by_worker.len() < WORKERS_COMPARED && self.may_promise(place.worker, wants, until_ms))
            {
                by_worker.entry(place.worker).or_default().push(place);
            }
        }
        let mut best: Option<((usize, u64), u32, Vec<Place>)> = None;
        for (at, candidates) in by_worker {
            let mut victims: Vec<Place> = Vec::new();
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
                let others: Vec<Place> = victims.iter().copied().filter(|other| *other != place).collect();
                if self.fits_without(at, &need, &others) {
                    victims = others;
                }
            }
            let priority = |place: &Place| {
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

    fn need_of(&self, wants: &Wants) -> Option<Need> {
        let nothing = Resources::default();
        let resources = wants.spec.as_ref().map_or(&nothing, |spec| &spec.resources);
        self.shares.as_ref()?.need(resources, &wants.cards)
    }

    /// Whether the worker would have room if these claims were gone.
    fn fits_without(&mut self, at: u32, need: &Need, gone: &[Place]) -> bool {
        let stay: Vec<Share> = self
            .places_on(at)
            .iter()
            .filter(|place| !gone.contains(place))
            .map(|place| self.share_of(place.claim))
            .collect();
        let Some(shares) = &mut self.shares else { return false };
        let capacity = &self.workers.card(at).spec.capacity;
        let profile = shares.fleet.room(at).profile;
        shares.fleet.leave(at);
        let enough = shares.fleet.enter_with(at, capacity, profile, stay);
        let fits = enough && shares.fleet.room(at).fits(need);
        self.recount_room(at);
        fits
    }

    /// The worker that lacks the smallest part of what is wanted.
    fn lacks_least(&self, wants: &Wants, until_ms: Millis) -> Option<u32> {
        let (need, shares) = (self.need_of(wants)?, self.shares.as_ref()?);
        let lack =
            |has: u64, wants: u64| wants.saturating_sub(has).saturating_mul(1_000).checked_div(wants).unwrap_or(0);
        let of = |at: u32| {
            let room = shares.fleet.room(at);
            let cards = room.cards.iter().filter(|&&milli| milli >= need.card_milli).count() as u64;
            [
                lack(room.cpu_milli, need.cpu_milli),
                lack(room.memory_bytes, need.memory_bytes),
                lack(room.slots, need.slots),
                lack(cards, u64::from(need.cards)),
            ]
            .into_iter()
            .max()
        };
        let may = |at: &u32| self.may_promise(*at, wants, until_ms);
        self.workers.iter_from(0).filter(may).min_by_key(|&at| of(at))
    }

    /// The claim is being released from now on, because another takes its place.
    fn evict(&mut self, place: Place, releasing_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get_mut(place) else { return };
        (claim.confirmed, claim.term_ms) = (true, term(releasing_ms));
        self.claims.turn(place, ClaimState::Releasing, None);
        self.index_victim(place.claim);
        self.promises.evicted.insert(place.claim);
        self.counters.life.evicted += 1;
        self.timers.cancel(place.claim);
        self.start_stay(place, now_ms);
        self.touch(place.worker);
    }

    /// Whoever has the ticket takes what it was promised. None: the promise is void, so it goes the way of any claim.
    pub(in crate::engine) fn redeem(
        &mut self,
        ticket: u64,
        wants: Option<&Wants>,
        until_ms: Millis,
    ) -> Option<Result<(u32, Option<Share>), Answer>> {
        let at = *self.promises.workers.get(&ticket)?;
        let nothing = Wants::default();
        let wants = wants.unwrap_or(&nothing);
        let there = self.workers.is_used(at) && self.workers.get(at).bars & unschedulable_bits::PROMISED != 0;
        if !there
            || self.workers.get(at).bars != unschedulable_bits::PROMISED
            || !wants.fits(&self.workers.card(at).spec)
        {
            self.break_promise(ticket);
            return None;
        }
        if !self.lasts(at, until_ms) {
            // It did when it was promised, and time has passed since.
            self.break_promise(ticket);
            return None;
        }
        if self.shares.is_none() && self.workers.get(at).claim != NIL {
            return Some(Err(Answer::NoFit(NoFit::Busy)));
        }
        if self.shares.is_some() && !self.has_promised_room(at, wants) {
            return Some(Err(Answer::NoFit(NoFit::Busy)));
        }
        self.break_promise(ticket);
        let only = Wants { worker: Some(self.workers.card(at).spec.id.clone()), ..wants.clone() };
        Some(match self.shares {
            None => {
                self.idle.remove(self.workers.hot_mut(), at);
                Ok((at, None))
            }
            Some(_) => self.take_share(until_ms, Some(&only)),
        })
    }

    fn has_promised_room(&self, at: u32, wants: &Wants) -> bool {
        let fits = |need: Need| self.shares.as_ref().is_some_and(|shares| shares.fleet.room(at).fits(&need));
        self.need_of(wants).is_some_and(fits)
    }

    /// The worker is gone. Its ordinal may be another's soon, to whom none of this was promised.
    pub(in crate::engine) fn void_promises(&mut self, at: u32) {
        self.promises.workers.retain(|_, promised| *promised != at);
    }

    /// Nothing is promised to this ticket any more.
    pub(in crate::engine) fn break_promise(&mut self, ticket: u64) {
        let Some(at) = self.promises.workers.remove(&ticket) else { return };
        if self.workers.is_used(at) && !self.workers.get(at).deleted {
            self.bar(at, 0, unschedulable_bits::PROMISED);
        }
    }
}
