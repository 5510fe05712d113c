//! Shares of workers: in a shared pool a claim takes as much of a worker as it asks for.
//!
//! What is left of each worker is in the [`Fleet`], which picks among groups of equal rooms. Which claims a worker holds is a
//! list through the claims, whose head is the worker's `claim`; so a worker of an exclusive pool is the case of a list of
//! one. Only the first claim of a worker takes it out of the idle queue, and only the last one's end puts it back: what the
//! rest of the engine says about held workers holds here too.
//!
//! A worker is offered while nothing bars it, it holds fewer than [`limits::WORKER_CLAIMS_MAX`] claims, and it has at least
//! what its claims sum to. A registration may take that away: then it is *overcommitted* until they fit again.

use std::sync::Arc;

use smallvec::SmallVec;

use super::bin_packing::{CardRule, Fgd, Fleet, Group, Kind, ModelId, NO_MODEL, Need, Placement, Share, choose_cards};
use super::constraints::{CardFilter, NoFit, Wants};
use super::profiles::{MIXED, Profiles};
use crate::engine::NIL;
use crate::engine::event::Place;
use crate::engine::rules::Rules;
use crate::engine::shard::Shard;
use crate::limits;
use crate::model::{Capacity, ClaimSpec, GpuAsk, Millis, Policy, Resources};

/// A claim among those of its worker.
#[derive(Debug, Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
    /// Cards of the worker that it holds: bit `i` stands for card `i`.
    cards: u64,
}

/// A worker beside its room.
#[derive(Debug, Clone, Copy, Default)]
struct Holder {
    claims: u32,
    /// It has less than its claims sum to.
    over: bool,
}

/// What a shard of a shared pool has beside what every shard has.
#[derive(Debug)]
pub struct Shares {
    pub(in crate::engine) fleet: Fleet,
    placement: Placement,
    fgd: Fgd,
    /// By claim.
    links: Vec<Link>,
    /// By worker.
    holders: Vec<Holder>,
    /// Once a claim has asked for certain workers.
    profiles: Option<Box<Profiles>>,
}

impl Shares {
    /// None: claims take whole workers.
    pub fn new(rules: &Rules) -> Option<Box<Self>> {
        let placement = match rules.policy {
            Policy::Lifo | Policy::Fifo | Policy::Random => return None,
            Policy::BestFit => Placement::BestFit,
            Policy::Spread => Placement::Spread,
            Policy::Fgd => Placement::Fgd,
        };
        let mut shares = Self {
            fleet: Fleet::default(),
            placement,
            fgd: Fgd::default(),
            links: Vec::new(),
            holders: Vec::new(),
            profiles: None,
        };
        shares.set_rules(rules);
        Some(Box::new(shares))
    }

    /// Another way to pick. What was learned is forgotten.
    pub fn set_rules(&mut self, rules: &Rules) {
        self.placement = match rules.policy {
            Policy::Spread => Placement::Spread,
            Policy::Fgd => Placement::Fgd,
            _ => Placement::BestFit,
        };
        self.fgd = if rules.typical_requests.is_empty() { Fgd::learning() } else { Fgd::given(self.mix(rules)) };
    }

    fn mix(&mut self, rules: &Rules) -> Vec<(Kind, f64)> {
        let total: f64 = rules.typical_requests.iter().map(|kind| f64::from(kind.weight)).sum();
        let kinds = rules.typical_requests.iter().filter_map(|kind| {
            let cards = kind.gpu.as_ref();
            let named = cards.map_or(&[][..], |cards| &cards.models);
            let models: SmallVec<[ModelId; 4]> = named.iter().filter_map(|model| self.fleet.model(model)).collect();
            if models.is_empty() && !named.is_empty() {
                return None;
            }
            let kind_of = Kind {
                cpu_milli: kind.cpu_milli,
                card_milli: cards.map_or(0, |cards| cards.milli as u16),
                cards: cards.map_or(0, |cards| cards.count as u16),
                models,
            };
            Some((kind_of, f64::from(kind.weight) / total))
        });
        kinds.collect()
    }

    /// Whether workers with these cards can be told from others.
    pub fn knows_model(&mut self, capacity: &Capacity) -> bool {
        capacity.gpu.as_ref().is_none_or(|gpu| self.fleet.model(&gpu.model).is_some())
    }

    /// Cards that a claim holds.
    pub fn cards(&self, claim: u32) -> u64 {
        self.links[claim as usize].cards
    }

    /// How many claims a worker holds, and whether it has less than they sum to.
    pub fn holds(&self, at: u32) -> (u32, bool) {
        let Holder { claims, over } = self.holders[at as usize];
        (claims, over)
    }

    /// A claim holds these cards from now on; its worker's room is the caller's matter.
    pub fn set_cards(&mut self, claim: u32, cards: u64) {
        self.links[claim as usize].cards = cards;
    }

    /// The next claim of the same worker.
    pub fn next(&self, claim: u32) -> u32 {
        self.links[claim as usize].next
    }

    /// A row is replaced: forgets the first claim of the worker, and says which is the next.
    pub fn unlink(&mut self, claim: u32, at: u32) -> u32 {
        self.holders[at as usize].claims -= 1;
        self.links[claim as usize].next
    }

    /// Whether the worker has less than its claims sum to.
    pub fn is_over(&self, at: u32) -> bool {
        self.holders.get(at as usize).is_some_and(|holder| holder.over)
    }

    /// Whether the worker holds as many claims as one may.
    pub fn is_crowded(&self, at: u32) -> bool {
        self.holders.get(at as usize).is_some_and(|holder| holder.claims >= limits::WORKER_CLAIMS_MAX)
    }

    /// What is needed, if any worker can have it.
    pub fn need(&self, resources: &Resources, cards: &CardFilter) -> Option<Need> {
        let mut models: SmallVec<[ModelId; 4]> = SmallVec::new();
        let (mut count, mut card_milli) = (0, 0);
        match (&resources.gpu, cards) {
            (None, CardFilter::Any) => {}
            (None, CardFilter::Without) => models.push(NO_MODEL),
            (None, CardFilter::Only(_)) | (Some(_), CardFilter::Without) => return None,
            (Some(GpuAsk { models: asked, count: number, milli }), _) => {
                (count, card_milli) = (*number as u16, *milli as u16);
                match cards {
                    CardFilter::Only(model) => models.push(self.fleet.known_model(model)?),
                    _ => models.extend(asked.iter().filter_map(|model| self.fleet.known_model(model))),
                }
                if models.is_empty() && !asked.is_empty() {
                    return None;
                }
            }
        }
        let Resources { cpu_milli, memory_bytes, slots, .. } = *resources;
        Some(Need { cpu_milli, memory_bytes, slots, cards: count, card_milli, models, until_ms: 0 })
    }
}

/// What a claim with these resources holds, if it has these cards.
fn share(resources: &Resources, cards: u64) -> Share {
    let Resources { cpu_milli, memory_bytes, slots, .. } = *resources;
    let card_milli = resources.gpu.as_ref().map_or(0, |gpu| gpu.milli as u16);
    Share { cpu_milli, memory_bytes, slots, card_milli, cards }
}

impl Shard {
    /// Claims that a worker holds.
    pub(in crate::engine) fn places_on(&self, at: u32) -> SmallVec<[Place; 1]> {
        let mut places = SmallVec::new();
        let mut claim = self.workers.get(at).claim;
        while let Some(held) = self.claims.at(claim) {
            places.push(Place { claim, worker: at, fence: held.fence });
            claim = self.shares.as_ref().map_or(NIL, |shares| shares.next(claim));
        }
        places
    }

    pub(in crate::engine) fn share_of(&self, claim: u32) -> Share {
        let (Some(shares), Some(held)) = (&self.shares, self.claims.at(claim)) else { return Share::default() };
        held.spec.as_ref().map_or_else(Share::default, |spec| share(&spec.resources, shares.cards(claim)))
    }

    /// The worker is about to have other cards than those of this model, or none: claims that were granted some go on saying
    /// which.
    pub(in crate::engine) fn keep_granted_model(&mut self, at: u32, model: &Arc<str>) {
        for place in self.places_on(at) {
            let Some(spec) = self.claims.get_mut(place).and_then(|claim| claim.spec.as_mut()) else { continue };
            if spec.resources.gpu.is_some() && spec.granted_model.is_none() {
                *spec = Arc::new(ClaimSpec { granted_model: Some(Arc::clone(model)), ..ClaimSpec::clone(spec) });
            }
        }
    }

    /// The worker that a claim takes a share of, and which.
    pub(in crate::engine) fn select_share(&mut self, wants: &Wants, until_ms: Millis) -> Result<(u32, Share), NoFit> {
        let nothing = Resources::default();
        let resources = wants.spec.as_ref().map_or(&nothing, |spec| &spec.resources);
        if let Some(id) = &wants.worker {
            return self.select_share_of(id, wants, resources, until_ms);
        }
        let needed = |shares: &Shares| {
            let need = shares.need(resources, &wants.cards)?;
            Some(Need { until_ms: if shares.fleet.has_ends() { until_ms } else { 0 }, ..need })
        };
        let Some(need) = self.shares.as_deref().and_then(needed) else { return Err(NoFit::Busy) };
        let filtered = wants.selector.is_some() || !wants.nodes.is_empty();
        if filtered {
            self.make_profiles();
        }
        if let Some(found) = self.pick_share(&need, wants, filtered, false) {
            return Ok(found);
        }
        let elsewhere = !wants.nodes.is_empty() && self.pick_share(&need, wants, true, true).is_some();
        Err(if elsewhere { NoFit::Node } else { NoFit::Busy })
    }

    fn pick_share(&mut self, need: &Need, wants: &Wants, filtered: bool, anywhere: bool) -> Option<(u32, Share)> {
        let mut shares = self.shares.take()?;
        let Shares { fleet, placement, fgd, profiles, .. } = &mut *shares;
        let fleet = &*fleet;
        if let Some(profiles) = profiles.as_mut().filter(|_| filtered) {
            profiles.begin_look();
        }
        let allows = |at: u32| {
            let spec = &self.workers.card(at).spec;
            if anywhere { wants.allows_but_node(spec) } else { wants.allows(spec) }
        };
        let mut member = |group: &Group| {
            let passes = match profiles.as_mut().filter(|_| filtered) {
                Some(profiles) => profiles.passes(group.room.profile, wants, anywhere),
                None => Some(true),
            };
            match passes {
                Some(false) => None,
                Some(true) => fleet.first_lasting(group, need.until_ms, |_| true),
                None => fleet.first_lasting(group, need.until_ms, allows),
            }
        };
        let pick = fleet.pick_among(need, *placement, fgd, &mut member);
        let found = pick.and_then(|pick| Some((pick.worker, fleet.share(need, pick)?)));
        self.shares = Some(shares);
        found
    }

    /// The same of the very worker that is asked for.
    #[cold]
    fn select_share_of(
        &self,
        id: &crate::model::WorkerId,
        wants: &Wants,
        resources: &Resources,
        until_ms: Millis,
    ) -> Result<(u32, Share), NoFit> {
        let at = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).ok_or(NoFit::Unknown)?;
        let spec = &self.workers.card(at).spec;
        if !wants.is_large(&spec.capacity) {
            return Err(NoFit::Small);
        }
        let shares = self.shares.as_ref().ok_or(NoFit::Busy)?;
        let need = shares.need(resources, &wants.cards).ok_or(NoFit::Busy)?;
        let has_room = self.is_offered(at) && self.lasts(at, until_ms) && shares.fleet.room(at).fits(&need);
        match (wants.allows(spec), has_room) {
            (true, true) => self.cards_of(at, &need).map(|share| (at, share)).ok_or(NoFit::Busy),
            (false, true) if wants.allows_but_node(spec) => Err(NoFit::Node),
            _ => Err(NoFit::Busy),
        }
    }

    /// Which cards of a worker that has room a need takes.
    pub(in crate::engine) fn cards_of(&self, at: u32, need: &Need) -> Option<Share> {
        let shares = self.shares.as_ref()?;
        let rule = if shares.placement == Placement::Spread { CardRule::Emptiest } else { CardRule::Fullest };
        let from = rule.from(&shares.fleet.room(at).cards, need);
        choose_cards(shares.fleet.cards(at), need, from).map(|cards| need.share(cards))
    }

    /// A claim takes a share of a worker that has it.
    pub(in crate::engine) fn attach_share(&mut self, claim: u32, at: u32, share: &Share) {
        self.link_share(claim, at, share.cards);
        if let Some(shares) = &mut self.shares {
            shares.fleet.take(at, share);
        }
        self.offer_share(at);
    }

    /// A claim joins those of a worker; its room is not looked at.
    pub(in crate::engine) fn link_share(&mut self, claim: u32, at: u32, cards: u64) {
        let Some(shares) = &mut self.shares else { return };
        let head = std::mem::replace(&mut self.workers.get_mut(at).claim, claim);
        if shares.links.len() <= claim as usize {
            shares.links.resize(claim as usize + 1, Link { prev: NIL, next: NIL, cards: 0 });
        }
        if shares.holders.len() <= at as usize {
            shares.holders.resize(at as usize + 1, Holder::default());
        }
        shares.links[claim as usize] = Link { prev: NIL, next: head, cards };
        if head != NIL {
            shares.links[head as usize].prev = claim;
        }
        shares.holders[at as usize].claims += 1;
    }

    /// A claim gives its share back. It is in the ledger still.
    pub(in crate::engine) fn detach_share(&mut self, claim: u32, at: u32) {
        let given = self.share_of(claim);
        let Some(shares) = &mut self.shares else { return };
        let Link { prev, next, .. } = shares.links[claim as usize];
        match prev {
            NIL => self.workers.get_mut(at).claim = next,
            prev => shares.links[prev as usize].next = next,
        }
        if next != NIL {
            shares.links[next as usize].prev = prev;
        }
        let holder = &mut shares.holders[at as usize];
        holder.claims -= 1;
        if holder.over {
            self.recount_room(at);
        } else {
            shares.fleet.give(at, &given);
            self.offer_share(at);
        }
    }

    /// What is left of a worker, from its capacity and its claims.
    pub(in crate::engine) fn recount_room(&mut self, at: u32) {
        let places = self.places_on(at);
        let held: Vec<Share> = places.iter().map(|place| self.share_of(place.claim)).collect();
        let Some(shares) = &mut self.shares else { return };
        let card = self.workers.card(at);
        let profile = if shares.fleet.is_in(at) { shares.fleet.room(at).profile } else { MIXED };
        if shares.fleet.is_in(at) {
            shares.fleet.leave(at);
        }
        if shares.holders.len() <= at as usize {
            shares.holders.resize(at as usize + 1, Holder::default());
        }
        shares.holders[at as usize].over = !shares.fleet.enter_with(at, &card.spec.capacity, profile, held);
        self.offer_share(at);
    }

    /// A worker is there, or its registration is another one.
    pub(in crate::engine) fn enter_share(&mut self, at: u32, before: Option<&Capacity>) {
        let Some(shares) = &mut self.shares else { return };
        let profile = shares.profiles.as_mut().map(|profiles| {
            if before.is_some() && shares.fleet.is_in(at) {
                profiles.leave(shares.fleet.room(at).profile);
            }
            profiles.join(self.workers.card(at))
        });
        if before != Some(&self.workers.card(at).spec.capacity) {
            self.recount_room(at);
        }
        if let (Some(shares), Some(profile)) = (&mut self.shares, profile) {
            shares.fleet.set_profile(at, profile);
        }
    }

    /// A worker that holds nothing is gone.
    pub(in crate::engine) fn leave_share(&mut self, at: u32) {
        let Some(shares) = &mut self.shares else { return };
        let profile = shares.fleet.room(at).profile;
        shares.fleet.leave(at);
        shares.fleet.set_ends_ms(at, None);
        shares.holders[at as usize] = Holder::default();
        if let Some(profiles) = &mut shares.profiles {
            profiles.leave(profile);
        }
    }

    pub(in crate::engine) fn is_offered(&self, at: u32) -> bool {
        let worker = self.workers.get(at);
        worker.bars == 0
            && !worker.deleted
            && self.shares.as_ref().is_some_and(|shares| {
                let Holder { claims, over } = shares.holders[at as usize];
                !over && claims < limits::WORKER_CLAIMS_MAX
            })
    }

    /// Offers the worker to claims, if it may be.
    pub(in crate::engine) fn offer_share(&mut self, at: u32) {
        let offered = self.shares.is_some() && self.is_offered(at);
        if let Some(shares) = &mut self.shares {
            if offered { shares.fleet.offer(at) } else { shares.fleet.withdraw(at) }
        }
    }

    /// The first claim that asks for certain workers: from now on it is known who has the same labels and node.
    fn make_profiles(&mut self) {
        let Some(shares) = &mut self.shares else { return };
        if shares.profiles.is_some() {
            return;
        }
        let mut profiles = Box::new(Profiles::default());
        for at in self.workers.iter_from(0).filter(|&at| !self.workers.get(at).deleted) {
            shares.fleet.set_profile(at, profiles.join(self.workers.card(at)));
        }
        shares.profiles = Some(profiles);
    }

    /// A request that was granted: what is usual is learned from them.
    pub(in crate::engine) fn note_share(&mut self, wants: &Wants) {
        let Some(shares) = &mut self.shares else { return };
        if shares.placement == Placement::Fgd
            && let Some(need) = wants.spec.as_ref().and_then(|spec| shares.need(&spec.resources, &CardFilter::Any))
        {
            shares.fgd.note(&need);
        }
    }
}
