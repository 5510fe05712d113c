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

use super::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, GpuPacking, ModelId, NO_MODEL, RequestShape, ResourceAllocation,
    ResourceRequest, WorkerGroup, choose_gpus,
};
use super::constraints::{GpuFilter, PlacementConstraints, PlacementFailure};
use super::worker_classes::{MIXED_CLASS, WorkerClasses};
use crate::engine::NIL;
use crate::engine::event::ClaimHandle;
use crate::engine::shard::Shard;
use crate::engine::shard_config::ShardConfig;
use crate::limits;
use crate::model::{ClaimSpec, GpuRequest, Millis, PlacementPolicy, ResourceRequirements, WorkerCapacity};

/// A claim among those of its worker.
#[derive(Debug, Clone, Copy)]
struct ClaimLink {
    prev: u32,
    next: u32,
    /// Cards of the worker that it holds: bit `i` stands for card `i`.
    gpu_mask: u64,
}

/// A worker beside its room.
#[derive(Debug, Clone, Copy, Default)]
struct WorkerLoad {
    claims: u32,
    /// It has less than its claims sum to.
    overcommitted: bool,
}

/// What a shard of a shared pool has beside what every shard has.
#[derive(Debug)]
pub struct SharedCapacity {
    pub(in crate::engine) fleet: FleetIndex,
    placement: FitStrategy,
    fgd: FragmentationScorer,
    /// By claim.
    links: Vec<ClaimLink>,
    /// By worker.
    loads: Vec<WorkerLoad>,
    /// Once a claim has asked for certain workers.
    classes: Option<Box<WorkerClasses>>,
}

impl SharedCapacity {
    /// None: claims take whole workers.
    pub fn new(rules: &ShardConfig) -> Option<Box<Self>> {
        let placement = match rules.policy {
            PlacementPolicy::Lifo | PlacementPolicy::Fifo | PlacementPolicy::Random => return None,
            PlacementPolicy::BestFit => FitStrategy::BestFit,
            PlacementPolicy::Spread => FitStrategy::Spread,
            PlacementPolicy::Fgd => FitStrategy::Fgd,
        };
        let mut shares = Self {
            fleet: FleetIndex::default(),
            placement,
            fgd: FragmentationScorer::default(),
            links: Vec::new(),
            loads: Vec::new(),
            classes: None,
        };
        shares.set_config(rules);
        Some(Box::new(shares))
    }

    /// Another way to pick. What was learned is forgotten.
    pub fn set_config(&mut self, rules: &ShardConfig) {
        self.placement = match rules.policy {
            PlacementPolicy::Spread => FitStrategy::Spread,
            PlacementPolicy::Fgd => FitStrategy::Fgd,
            _ => FitStrategy::BestFit,
        };
        self.fgd = if rules.typical_requests.is_empty() {
            FragmentationScorer::with_learned_mix()
        } else {
            FragmentationScorer::with_fixed_mix(self.mix(rules))
        };
    }

    fn mix(&mut self, rules: &ShardConfig) -> Vec<(RequestShape, f64)> {
        let total: f64 = rules.typical_requests.iter().map(|kind| f64::from(kind.weight)).sum();
        let kinds = rules.typical_requests.iter().filter_map(|kind| {
            let cards = kind.gpu.as_ref();
            let named = cards.map_or(&[][..], |cards| &cards.models);
            let models: SmallVec<[ModelId; 4]> = named.iter().filter_map(|model| self.fleet.model(model)).collect();
            if models.is_empty() && !named.is_empty() {
                return None;
            }
            let kind_of = RequestShape {
                cpu_milli: kind.cpu_milli,
                gpu_milli: cards.map_or(0, |cards| cards.milli as u16),
                gpu_count: cards.map_or(0, |cards| cards.count as u16),
                models,
            };
            Some((kind_of, f64::from(kind.weight) / total))
        });
        kinds.collect()
    }

    /// Whether workers with these cards can be told from others.
    pub fn register_model(&mut self, capacity: &WorkerCapacity) -> bool {
        capacity.gpu.as_ref().is_none_or(|gpu| self.fleet.model(&gpu.model).is_some())
    }

    /// Cards that a claim holds.
    pub fn gpu_mask(&self, claim: u32) -> u64 {
        self.links[claim as usize].gpu_mask
    }

    /// How many claims a worker holds, and whether it has less than they sum to.
    pub fn load(&self, at: u32) -> (u32, bool) {
        let WorkerLoad { claims, overcommitted: over } = self.loads[at as usize];
        (claims, over)
    }

    /// A claim holds these cards from now on; its worker's room is the caller's matter.
    pub fn set_gpu_mask(&mut self, claim: u32, cards: u64) {
        self.links[claim as usize].gpu_mask = cards;
    }

    /// The next claim of the same worker.
    pub fn next_claim(&self, claim: u32) -> u32 {
        self.links[claim as usize].next
    }

    /// A row is replaced: forgets the first claim of the worker, and says which is the next.
    pub fn unlink(&mut self, claim: u32, at: u32) -> u32 {
        self.loads[at as usize].claims -= 1;
        self.links[claim as usize].next
    }

    /// Whether the worker has less than its claims sum to.
    pub fn is_overcommitted(&self, at: u32) -> bool {
        self.loads.get(at as usize).is_some_and(|holder| holder.overcommitted)
    }

    /// Whether the worker holds as many claims as one may.
    pub fn is_full(&self, at: u32) -> bool {
        self.loads.get(at as usize).is_some_and(|holder| holder.claims >= limits::WORKER_CLAIMS_MAX)
    }

    /// What is needed, if any worker can have it.
    pub fn resource_request(&self, resources: &ResourceRequirements, cards: &GpuFilter) -> Option<ResourceRequest> {
        let mut models: SmallVec<[ModelId; 4]> = SmallVec::new();
        let (mut count, mut card_milli) = (0, 0);
        match (&resources.gpu, cards) {
            (None, GpuFilter::Any) => {}
            (None, GpuFilter::NoGpus) => models.push(NO_MODEL),
            (None, GpuFilter::Model(_)) | (Some(_), GpuFilter::NoGpus) => return None,
            (Some(GpuRequest { models: asked, count: number, milli }), _) => {
                (count, card_milli) = (*number as u16, *milli as u16);
                match cards {
                    GpuFilter::Model(model) => models.push(self.fleet.known_model(model)?),
                    _ => models.extend(asked.iter().filter_map(|model| self.fleet.known_model(model))),
                }
                if models.is_empty() && !asked.is_empty() {
                    return None;
                }
            }
        }
        let ResourceRequirements { cpu_milli, memory_bytes, slots, .. } = *resources;
        Some(ResourceRequest {
            cpu_milli,
            memory_bytes,
            slots,
            gpu_count: count,
            gpu_milli: card_milli,
            models,
            until_ms: 0,
        })
    }
}

/// What a claim with these resources holds, if it has these cards.
fn allocation(resources: &ResourceRequirements, cards: u64) -> ResourceAllocation {
    let ResourceRequirements { cpu_milli, memory_bytes, slots, .. } = *resources;
    let card_milli = resources.gpu.as_ref().map_or(0, |gpu| gpu.milli as u16);
    ResourceAllocation { cpu_milli, memory_bytes, slots, gpu_milli: card_milli, gpu_mask: cards }
}

impl Shard {
    /// Claims that a worker holds.
    pub(in crate::engine) fn handles_on(&self, at: u32) -> SmallVec<[ClaimHandle; 1]> {
        let mut places = SmallVec::new();
        let mut claim = self.workers.get(at).claim;
        while let Some(held) = self.claims.by_ordinal(claim) {
            places.push(ClaimHandle { claim, worker: at, fence: held.fence });
            claim = self.shared.as_ref().map_or(NIL, |shares| shares.next_claim(claim));
        }
        places
    }

    pub(in crate::engine) fn allocation_of(&self, claim: u32) -> ResourceAllocation {
        let (Some(shares), Some(held)) = (&self.shared, self.claims.by_ordinal(claim)) else {
            return ResourceAllocation::default();
        };
        held.spec
            .as_ref()
            .map_or_else(ResourceAllocation::default, |spec| allocation(&spec.resources, shares.gpu_mask(claim)))
    }

    /// The worker is about to have other cards than those of this model, or none: claims that were granted some go on saying
    /// which.
    pub(in crate::engine) fn keep_granted_model(&mut self, at: u32, model: &Arc<str>) {
        for place in self.handles_on(at) {
            let Some(spec) = self.claims.get_mut(place).and_then(|claim| claim.spec.as_mut()) else { continue };
            if spec.resources.gpu.is_some() && spec.granted_model.is_none() {
                *spec = Arc::new(ClaimSpec { granted_model: Some(Arc::clone(model)), ..ClaimSpec::clone(spec) });
            }
        }
    }

    /// The worker that a claim takes a share of, and which.
    pub(in crate::engine) fn select_share(
        &mut self,
        wants: &PlacementConstraints,
        until_ms: Millis,
    ) -> Result<(u32, ResourceAllocation), PlacementFailure> {
        let nothing = ResourceRequirements::default();
        let resources = wants.spec.as_ref().map_or(&nothing, |spec| &spec.resources);
        if let Some(id) = &wants.worker {
            return self.select_share_of(id, wants, resources, until_ms);
        }
        let needed = |shares: &SharedCapacity| {
            let need = shares.resource_request(resources, &wants.gpus)?;
            Some(ResourceRequest { until_ms: if shares.fleet.has_ends() { until_ms } else { 0 }, ..need })
        };
        let Some(need) = self.shared.as_deref().and_then(needed) else { return Err(PlacementFailure::Busy) };
        let filtered = wants.selector.is_some() || !wants.nodes.is_empty();
        if filtered {
            self.build_classes();
        }
        if let Some(found) = self.pick_share(&need, wants, filtered, false) {
            return Ok(found);
        }
        let elsewhere = !wants.nodes.is_empty() && self.pick_share(&need, wants, true, true).is_some();
        Err(if elsewhere { PlacementFailure::OtherNode } else { PlacementFailure::Busy })
    }

    fn pick_share(
        &mut self,
        need: &ResourceRequest,
        wants: &PlacementConstraints,
        filtered: bool,
        anywhere: bool,
    ) -> Option<(u32, ResourceAllocation)> {
        let mut shares = self.shared.take()?;
        let SharedCapacity { fleet, placement, fgd, classes: profiles, .. } = &mut *shares;
        let fleet = &*fleet;
        if let Some(profiles) = profiles.as_mut().filter(|_| filtered) {
            profiles.begin_query();
        }
        let allows = |at: u32| {
            let spec = &self.workers.registration(at).spec;
            if anywhere { wants.allows_ignoring_node(spec) } else { wants.allows(spec) }
        };
        let mut member = |group: &WorkerGroup| {
            let passes = match profiles.as_mut().filter(|_| filtered) {
                Some(profiles) => profiles.passes(group.free.class_id, wants, anywhere),
                None => Some(true),
            };
            match passes {
                Some(false) => None,
                Some(true) => fleet.first_outliving(group, need.until_ms, |_| true),
                None => fleet.first_outliving(group, need.until_ms, allows),
            }
        };
        let pick = fleet.pick_among(need, *placement, fgd, &mut member);
        let found = pick.and_then(|pick| Some((pick.worker, fleet.allocation(need, pick)?)));
        self.shared = Some(shares);
        found
    }

    /// The same of the very worker that is asked for.
    #[cold]
    fn select_share_of(
        &self,
        id: &crate::model::WorkerId,
        wants: &PlacementConstraints,
        resources: &ResourceRequirements,
        until_ms: Millis,
    ) -> Result<(u32, ResourceAllocation), PlacementFailure> {
        let at =
            self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).ok_or(PlacementFailure::UnknownWorker)?;
        let spec = &self.workers.registration(at).spec;
        if !wants.is_large_enough(&spec.capacity) {
            return Err(PlacementFailure::TooSmall);
        }
        let shares = self.shared.as_ref().ok_or(PlacementFailure::Busy)?;
        let need = shares.resource_request(resources, &wants.gpus).ok_or(PlacementFailure::Busy)?;
        let has_room = self.is_offered(at) && self.outlives(at, until_ms) && shares.fleet.free(at).fits(&need);
        match (wants.allows(spec), has_room) {
            (true, true) => self.choose_allocation(at, &need).map(|share| (at, share)).ok_or(PlacementFailure::Busy),
            (false, true) if wants.allows_ignoring_node(spec) => Err(PlacementFailure::OtherNode),
            _ => Err(PlacementFailure::Busy),
        }
    }

    /// Which cards of a worker that has room a need takes.
    pub(in crate::engine) fn choose_allocation(&self, at: u32, need: &ResourceRequest) -> Option<ResourceAllocation> {
        let shares = self.shared.as_ref()?;
        let rule = if shares.placement == FitStrategy::Spread { GpuPacking::Emptiest } else { GpuPacking::Fullest };
        let from = rule.free_milli_of_pick(&shares.fleet.free(at).gpus, need);
        choose_gpus(shares.fleet.gpus(at), need, from).map(|cards| need.allocation(cards))
    }

    /// A claim takes a share of a worker that has it.
    pub(in crate::engine) fn attach_claim(&mut self, claim: u32, at: u32, share: &ResourceAllocation) {
        self.link_claim(claim, at, share.gpu_mask);
        if let Some(shares) = &mut self.shared {
            shares.fleet.allocate(at, share);
        }
        self.offer_if_schedulable(at);
    }

    /// A claim joins those of a worker; its room is not looked at.
    pub(in crate::engine) fn link_claim(&mut self, claim: u32, at: u32, cards: u64) {
        let Some(shares) = &mut self.shared else { return };
        let head = std::mem::replace(&mut self.workers.get_mut(at).claim, claim);
        if shares.links.len() <= claim as usize {
            shares.links.resize(claim as usize + 1, ClaimLink { prev: NIL, next: NIL, gpu_mask: 0 });
        }
        if shares.loads.len() <= at as usize {
            shares.loads.resize(at as usize + 1, WorkerLoad::default());
        }
        shares.links[claim as usize] = ClaimLink { prev: NIL, next: head, gpu_mask: cards };
        if head != NIL {
            shares.links[head as usize].prev = claim;
        }
        shares.loads[at as usize].claims += 1;
    }

    /// A claim gives its share back. It is in the ledger still.
    pub(in crate::engine) fn detach_claim(&mut self, claim: u32, at: u32) {
        let given = self.allocation_of(claim);
        let Some(shares) = &mut self.shared else { return };
        let ClaimLink { prev, next, .. } = shares.links[claim as usize];
        match prev {
            NIL => self.workers.get_mut(at).claim = next,
            prev => shares.links[prev as usize].next = next,
        }
        if next != NIL {
            shares.links[next as usize].prev = prev;
        }
        let holder = &mut shares.loads[at as usize];
        holder.claims -= 1;
        if holder.overcommitted {
            self.recompute_free(at);
        } else {
            shares.fleet.release(at, &given);
            self.offer_if_schedulable(at);
        }
    }

    /// What is left of a worker, from its capacity and its claims.
    pub(in crate::engine) fn recompute_free(&mut self, at: u32) {
        let places = self.handles_on(at);
        let held: Vec<ResourceAllocation> = places.iter().map(|place| self.allocation_of(place.claim)).collect();
        let Some(shares) = &mut self.shared else { return };
        let card = self.workers.registration(at);
        let profile = if shares.fleet.contains(at) { shares.fleet.free(at).class_id } else { MIXED_CLASS };
        if shares.fleet.contains(at) {
            shares.fleet.remove(at);
        }
        if shares.loads.len() <= at as usize {
            shares.loads.resize(at as usize + 1, WorkerLoad::default());
        }
        shares.loads[at as usize].overcommitted = !shares.fleet.insert_with(at, &card.spec.capacity, profile, held);
        self.offer_if_schedulable(at);
    }

    /// A worker is there, or its registration is another one.
    pub(in crate::engine) fn index_worker(&mut self, at: u32, before: Option<&WorkerCapacity>) {
        let Some(shares) = &mut self.shared else { return };
        let profile = shares.classes.as_mut().map(|profiles| {
            if before.is_some() && shares.fleet.contains(at) {
                profiles.leave(shares.fleet.free(at).class_id);
            }
            profiles.join(self.workers.registration(at))
        });
        if before != Some(&self.workers.registration(at).spec.capacity) {
            self.recompute_free(at);
        }
        if let (Some(shares), Some(profile)) = (&mut self.shared, profile) {
            shares.fleet.set_class(at, profile);
        }
    }

    /// A worker that holds nothing is gone.
    pub(in crate::engine) fn unindex_worker(&mut self, at: u32) {
        let Some(shares) = &mut self.shared else { return };
        let profile = shares.fleet.free(at).class_id;
        shares.fleet.remove(at);
        shares.fleet.set_ends_ms(at, None);
        shares.loads[at as usize] = WorkerLoad::default();
        if let Some(profiles) = &mut shares.classes {
            profiles.leave(profile);
        }
    }

    pub(in crate::engine) fn is_offered(&self, at: u32) -> bool {
        let worker = self.workers.get(at);
        worker.unschedulable_bits == 0
            && !worker.deleted
            && self.shared.as_ref().is_some_and(|shares| {
                let WorkerLoad { claims, overcommitted: over } = shares.loads[at as usize];
                !over && claims < limits::WORKER_CLAIMS_MAX
            })
    }

    /// Offers the worker to claims, if it may be.
    pub(in crate::engine) fn offer_if_schedulable(&mut self, at: u32) {
        let offered = self.shared.is_some() && self.is_offered(at);
        if let Some(shares) = &mut self.shared {
            if offered { shares.fleet.offer(at) } else { shares.fleet.withdraw(at) }
        }
    }

    /// The first claim that asks for certain workers: from now on it is known who has the same labels and node.
    fn build_classes(&mut self) {
        let Some(shares) = &mut self.shared else { return };
        if shares.classes.is_some() {
            return;
        }
        let mut profiles = Box::new(WorkerClasses::default());
        for at in self.workers.iter_from(0).filter(|&at| !self.workers.get(at).deleted) {
            shares.fleet.set_class(at, profiles.join(self.workers.registration(at)));
        }
        shares.classes = Some(profiles);
    }

    /// A request that was granted: what is usual is learned from them.
    pub(in crate::engine) fn record_request(&mut self, wants: &PlacementConstraints) {
        let Some(shares) = &mut self.shared else { return };
        if shares.placement == FitStrategy::Fgd
            && let Some(need) =
                wants.spec.as_ref().and_then(|spec| shares.resource_request(&spec.resources, &GpuFilter::Any))
        {
            shares.fgd.record_request(&need);
        }
    }
}
