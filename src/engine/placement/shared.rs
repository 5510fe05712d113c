//! Shared pools: a claim takes as many of a worker's resources as it requests.
//!
//! The free resources of each worker are in the [`FleetIndex`], which picks among groups of workers with equal free
//! resources. The claims of a worker are a list through the claims, whose head is the worker's `claim`; so a worker
//! of an exclusive pool has a list of one. Only the first claim of a worker takes it out of the idle queue, and only
//! the end of the last one returns it: what the rest of the engine assumes about busy workers holds here too.
//!
//! A worker is offered while it is schedulable, has fewer than [`limits::WORKER_CLAIMS_MAX`] claims, and has at least
//! what its claims sum to. A registration may reduce its capacity: then it is *overcommitted* until they fit again.

use std::sync::Arc;

use smallvec::SmallVec;

use super::bin_packing::{
    FitStrategy, FleetIndex, FragmentationScorer, GpuPacking, ModelId, NO_MODEL, RequestShape, ResourceAllocation,
    ResourceRequest, WorkerGroup, choose_gpus,
};
use super::constraints::{GpuFilter, NodeFilter, PlacementConstraints, PlacementFailure};
use super::worker_classes::{MIXED_CLASS, WorkerClasses};
use crate::engine::NIL;
use crate::engine::event::ClaimHandle;
use crate::engine::shard::Shard;
use crate::engine::shard_config::ShardConfig;
use crate::limits;
use crate::model::{ClaimSpec, GpuRequest, Millis, PlacementPolicy, ResourceRequirements, WorkerCapacity};

/// Link of a claim in the list of its worker.
#[derive(Debug, Clone, Copy)]
struct ClaimLink {
    prev: u32,
    next: u32,
    /// GPUs of the worker that it holds: bit `i` stands for GPU `i`.
    gpu_mask: u64,
}

/// State of a worker beside its free resources.
#[derive(Debug, Clone, Copy, Default)]
struct WorkerLoad {
    claims: u32,
    /// True if it has less capacity than its claims sum to.
    overcommitted: bool,
}

/// State of a shard that only shared pools have.
#[derive(Debug)]
pub struct SharedCapacity {
    pub(in crate::engine) fleet: FleetIndex,
    placement: FitStrategy,
    fgd: FragmentationScorer,
    /// List links, by ordinal of the claim.
    links: Vec<ClaimLink>,
    /// Claim counts, by ordinal of the worker.
    loads: Vec<WorkerLoad>,
    /// Classes of workers, once a claim had constraints.
    classes: Option<Box<WorkerClasses>>,
}

impl SharedCapacity {
    /// Creates the state for a shared pool. None: exclusive pool, claims take whole workers.
    pub fn new(config: &ShardConfig) -> Option<Box<Self>> {
        let placement = match config.policy {
            PlacementPolicy::Lifo | PlacementPolicy::Fifo | PlacementPolicy::Random => return None,
            PlacementPolicy::BestFit => FitStrategy::BestFit,
            PlacementPolicy::Spread => FitStrategy::Spread,
            PlacementPolicy::Fgd => FitStrategy::Fgd,
        };
        let mut shared = Self {
            fleet: FleetIndex::default(),
            placement,
            fgd: FragmentationScorer::default(),
            links: Vec::new(),
            loads: Vec::new(),
            classes: None,
        };
        shared.set_config(config);
        Some(Box::new(shared))
    }

    /// Applies another placement strategy. The learned mix is forgotten.
    pub fn set_config(&mut self, config: &ShardConfig) {
        self.placement = match config.policy {
            PlacementPolicy::Spread => FitStrategy::Spread,
            PlacementPolicy::Fgd => FitStrategy::Fgd,
            _ => FitStrategy::BestFit,
        };
        self.fgd = if config.typical_requests.is_empty() {
            FragmentationScorer::with_learned_mix()
        } else {
            FragmentationScorer::with_fixed_mix(self.mix(config))
        };
    }

    fn mix(&mut self, config: &ShardConfig) -> Vec<(RequestShape, f64)> {
        let total: f64 = config.typical_requests.iter().map(|typical| f64::from(typical.weight)).sum();
        let shapes = config.typical_requests.iter().filter_map(|typical| {
            let gpu = typical.gpu.as_ref();
            let requested = gpu.map_or(&[][..], |gpu| &gpu.models);
            let models: SmallVec<[ModelId; 4]> = requested.iter().filter_map(|model| self.fleet.model(model)).collect();
            if models.is_empty() && !requested.is_empty() {
                return None;
            }
            let shape = RequestShape {
                cpu_milli: typical.cpu_milli,
                gpu_milli: gpu.map_or(0, |gpu| gpu.milli as u16),
                gpu_count: gpu.map_or(0, |gpu| gpu.count as u16),
                models,
            };
            Some((shape, f64::from(typical.weight) / total))
        });
        shapes.collect()
    }

    /// Registers the GPU model of a worker. False: the limit of models is reached.
    pub fn register_model(&mut self, capacity: &WorkerCapacity) -> bool {
        capacity.gpu.as_ref().is_none_or(|gpu| self.fleet.model(&gpu.model).is_some())
    }

    /// GPUs that a claim holds, as a mask.
    pub fn gpu_mask(&self, claim: u32) -> u64 {
        self.links[claim as usize].gpu_mask
    }

    /// Number of a worker's claims, and whether it is overcommitted.
    pub fn load(&self, at: u32) -> (u32, bool) {
        let WorkerLoad { claims, overcommitted } = self.loads[at as usize];
        (claims, overcommitted)
    }

    /// Sets the GPUs of a claim; the caller updates the worker's free resources.
    pub fn set_gpu_mask(&mut self, claim: u32, gpu_mask: u64) {
        self.links[claim as usize].gpu_mask = gpu_mask;
    }

    /// Next claim of the same worker.
    pub fn next_claim(&self, claim: u32) -> u32 {
        self.links[claim as usize].next
    }

    /// Unlinks the first claim of a worker whose row is replaced, and returns the next.
    pub fn unlink(&mut self, claim: u32, at: u32) -> u32 {
        assert!(self.loads[at as usize].claims > 0, "L2: a claim is unlinked from a worker without claims");
        self.loads[at as usize].claims -= 1;
        self.links[claim as usize].next
    }

    /// Whether the worker has less capacity than its claims sum to.
    pub fn is_overcommitted(&self, at: u32) -> bool {
        self.loads.get(at as usize).is_some_and(|load| load.overcommitted)
    }

    /// Whether the worker has the largest possible number of claims.
    pub fn is_full(&self, at: u32) -> bool {
        self.loads.get(at as usize).is_some_and(|load| load.claims >= limits::WORKER_CLAIMS_MAX)
    }

    /// Request in terms of this fleet, if any worker can satisfy it.
    pub fn resource_request(&self, resources: &ResourceRequirements, filter: &GpuFilter) -> Option<ResourceRequest> {
        let mut models: SmallVec<[ModelId; 4]> = SmallVec::new();
        let (mut gpu_count, mut gpu_milli) = (0, 0);
        match (&resources.gpu, filter) {
            (None, GpuFilter::Any) => {}
            (None, GpuFilter::NoGpus) => models.push(NO_MODEL),
            (None, GpuFilter::Model(_)) | (Some(_), GpuFilter::NoGpus) => return None,
            (Some(GpuRequest { models: requested, count, milli }), _) => {
                (gpu_count, gpu_milli) = (*count as u16, *milli as u16);
                match filter {
                    GpuFilter::Model(model) => models.push(self.fleet.known_model(model)?),
                    _ => models.extend(requested.iter().filter_map(|model| self.fleet.known_model(model))),
                }
                if models.is_empty() && !requested.is_empty() {
                    return None;
                }
            }
        }
        let ResourceRequirements { cpu_milli, memory_bytes, slots, .. } = *resources;
        Some(ResourceRequest { cpu_milli, memory_bytes, slots, gpu_count, gpu_milli, models, until_ms: 0 })
    }
}

/// Allocation of a claim with these resources and GPUs.
fn allocation(resources: &ResourceRequirements, gpu_mask: u64) -> ResourceAllocation {
    let ResourceRequirements { cpu_milli, memory_bytes, slots, .. } = *resources;
    let gpu_milli = resources.gpu.as_ref().map_or(0, |gpu| gpu.milli as u16);
    ResourceAllocation { cpu_milli, memory_bytes, slots, gpu_milli, gpu_mask }
}

impl Shard {
    /// Handles of the claims of a worker.
    pub(in crate::engine) fn handles_on(&self, at: u32) -> SmallVec<[ClaimHandle; 1]> {
        let mut handles = SmallVec::new();
        let mut claim = self.workers.get(at).claim;
        while let Some(live) = self.claims.by_ordinal(claim) {
            handles.push(ClaimHandle { claim, worker: at, fence: live.fence });
            claim = self.shared.as_ref().map_or(NIL, |shared| shared.next_claim(claim));
        }
        handles
    }

    pub(in crate::engine) fn allocation_of(&self, claim: u32) -> ResourceAllocation {
        let (Some(shared), Some(live)) = (&self.shared, self.claims.by_ordinal(claim)) else {
            return ResourceAllocation::default();
        };
        live.spec
            .as_ref()
            .map_or_else(ResourceAllocation::default, |spec| allocation(&spec.resources, shared.gpu_mask(claim)))
    }

    /// Retains the granted GPU model of the worker's claims, because its registration is about to change to another.
    pub(in crate::engine) fn keep_granted_model(&mut self, at: u32, model: &Arc<str>) {
        for handle in self.handles_on(at) {
            let Some(spec) = self.claims.get_mut(handle).and_then(|claim| claim.spec.as_mut()) else { continue };
            if spec.resources.gpu.is_some() && spec.granted_model.is_none() {
                *spec = Arc::new(ClaimSpec { granted_model: Some(Arc::clone(model)), ..ClaimSpec::clone(spec) });
            }
        }
    }

    /// Picks a worker with enough free resources, and the allocation on it.
    pub(in crate::engine) fn select_allocation(
        &mut self,
        constraints: &PlacementConstraints,
        until_ms: Millis,
    ) -> Result<(u32, ResourceAllocation), PlacementFailure> {
        let no_resources = ResourceRequirements::default();
        let resources = constraints.spec.as_ref().map_or(&no_resources, |spec| &spec.resources);
        if let Some(id) = &constraints.worker {
            return self.select_allocation_on(id, constraints, resources, until_ms);
        }
        let to_request = |shared: &SharedCapacity| {
            let request = shared.resource_request(resources, &constraints.gpus)?;
            Some(ResourceRequest { until_ms: if shared.fleet.has_ends() { until_ms } else { 0 }, ..request })
        };
        let Some(request) = self.shared.as_deref().and_then(to_request) else { return Err(PlacementFailure::Busy) };
        if constraints.has_class_filter() {
            self.build_classes();
        }
        if let Some(found) = self.pick_allocation(&request, constraints, NodeFilter::Enforced) {
            return Ok(found);
        }
        let elsewhere =
            !constraints.nodes.is_empty() && self.pick_allocation(&request, constraints, NodeFilter::Ignored).is_some();
        Err(if elsewhere { PlacementFailure::OtherNode } else { PlacementFailure::Busy })
    }

    fn pick_allocation(
        &mut self,
        request: &ResourceRequest,
        constraints: &PlacementConstraints,
        node_filter: NodeFilter,
    ) -> Option<(u32, ResourceAllocation)> {
        let mut shared = self.shared.take()?;
        let SharedCapacity { fleet, placement, fgd, classes, .. } = &mut *shared;
        let fleet = &*fleet;
        let mut classes = classes.as_mut().filter(|_| constraints.has_class_filter());
        if let Some(classes) = &mut classes {
            classes.begin_query();
        }
        let allows = |at: u32| constraints.allows_with(node_filter, &self.workers.registration(at).spec);
        let mut member = |group: &WorkerGroup| {
            let passes = match &mut classes {
                Some(classes) => classes.passes(group.free.class_id, constraints, node_filter),
                None => Some(true),
            };
            match passes {
                Some(false) => None,
                Some(true) => fleet.first_outliving(group, request.until_ms, |_| true),
                None => fleet.first_outliving(group, request.until_ms, allows),
            }
        };
        let pick = fleet.pick_among(request, *placement, fgd, &mut member);
        let found = pick.and_then(|pick| Some((pick.worker, fleet.allocation(request, pick)?)));
        self.shared = Some(shared);
        debug_assert!(found.is_none_or(|(at, _)| self.is_offered(at)), "Q1: a withdrawn worker is picked");
        found
    }

    /// Checks the requested worker, and picks the allocation on it.
    #[cold]
    fn select_allocation_on(
        &self,
        id: &crate::model::WorkerId,
        constraints: &PlacementConstraints,
        resources: &ResourceRequirements,
        until_ms: Millis,
    ) -> Result<(u32, ResourceAllocation), PlacementFailure> {
        let at =
            self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).ok_or(PlacementFailure::UnknownWorker)?;
        let spec = &self.workers.registration(at).spec;
        if !constraints.is_large_enough(&spec.capacity) {
            return Err(PlacementFailure::TooSmall);
        }
        let shared = self.shared.as_ref().ok_or(PlacementFailure::Busy)?;
        let request = shared.resource_request(resources, &constraints.gpus).ok_or(PlacementFailure::Busy)?;
        let has_capacity = self.is_offered(at) && self.outlives(at, until_ms) && shared.fleet.free(at).fits(&request);
        match (constraints.allows(spec), has_capacity) {
            (true, true) => {
                let allocation = self.choose_allocation(at, &request);
                allocation.map(|allocation| (at, allocation)).ok_or(PlacementFailure::Busy)
            }
            (false, true) if constraints.allows_ignoring_node(spec) => Err(PlacementFailure::OtherNode),
            _ => Err(PlacementFailure::Busy),
        }
    }

    /// Chooses the GPUs of a request on a worker that fits it.
    pub(in crate::engine) fn choose_allocation(
        &self,
        at: u32,
        request: &ResourceRequest,
    ) -> Option<ResourceAllocation> {
        let shared = self.shared.as_ref()?;
        let packing = if shared.placement == FitStrategy::Spread { GpuPacking::Emptiest } else { GpuPacking::Fullest };
        let free_milli = packing.free_milli_of_pick(&shared.fleet.free(at).gpus, request);
        choose_gpus(shared.fleet.gpus(at), request, free_milli).map(|gpu_mask| request.allocation(gpu_mask))
    }

    /// Attaches a claim to a worker and allocates its resources, which must be free.
    pub(in crate::engine) fn attach_claim(&mut self, claim: u32, at: u32, allocation: &ResourceAllocation) {
        self.link_claim(claim, at, allocation.gpu_mask);
        if let Some(shared) = &mut self.shared {
            shared.fleet.allocate(at, allocation);
        }
        self.offer_if_schedulable(at);
    }

    /// Links a claim into the list of its worker, without allocating resources.
    pub(in crate::engine) fn link_claim(&mut self, claim: u32, at: u32, gpu_mask: u64) {
        let Some(shared) = &mut self.shared else { return };
        let head = std::mem::replace(&mut self.workers.get_mut(at).claim, claim);
        if shared.links.len() <= claim as usize {
            shared.links.resize(claim as usize + 1, ClaimLink { prev: NIL, next: NIL, gpu_mask: 0 });
        }
        if shared.loads.len() <= at as usize {
            shared.loads.resize(at as usize + 1, WorkerLoad::default());
        }
        shared.links[claim as usize] = ClaimLink { prev: NIL, next: head, gpu_mask };
        if head != NIL {
            shared.links[head as usize].prev = claim;
        }
        debug_assert!(head != claim, "L2: a claim is linked twice");
        shared.loads[at as usize].claims += 1;
        debug_assert!(shared.loads[at as usize].claims <= limits::WORKER_CLAIMS_MAX, "L2: a worker exceeds its claims");
    }

    /// Detaches a claim from its worker and frees its resources. The worker's accounting is the caller's.
    pub(in crate::engine) fn detach_claim(&mut self, claim: u32, at: u32) {
        let freed = self.allocation_of(claim);
        let Some(shared) = &mut self.shared else { return };
        let ClaimLink { prev, next, .. } = shared.links[claim as usize];
        debug_assert!(
            prev != NIL || self.workers.get(at).claim == claim,
            "L2: the first claim is not that of its worker"
        );
        match prev {
            NIL => self.workers.get_mut(at).claim = next,
            prev => shared.links[prev as usize].next = next,
        }
        if next != NIL {
            shared.links[next as usize].prev = prev;
        }
        let load = &mut shared.loads[at as usize];
        debug_assert!(load.claims > 0, "L2: a claim is detached from a worker without claims");
        load.claims -= 1;
        if load.overcommitted {
            self.recompute_free(at);
        } else {
            shared.fleet.release(at, &freed);
            self.offer_if_schedulable(at);
        }
    }

    /// Recomputes the free resources of a worker from its capacity and its claims.
    pub(in crate::engine) fn recompute_free(&mut self, at: u32) {
        let handles = self.handles_on(at);
        let allocations: Vec<ResourceAllocation> =
            handles.iter().map(|handle| self.allocation_of(handle.claim)).collect();
        let Some(shared) = &mut self.shared else { return };
        let registration = self.workers.registration(at);
        let class_id = if shared.fleet.contains(at) { shared.fleet.free(at).class_id } else { MIXED_CLASS };
        if shared.fleet.contains(at) {
            shared.fleet.remove(at);
        }
        if shared.loads.len() <= at as usize {
            shared.loads.resize(at as usize + 1, WorkerLoad::default());
        }
        shared.loads[at as usize].overcommitted =
            !shared.fleet.insert_with(at, &registration.spec.capacity, class_id, allocations);
        self.offer_if_schedulable(at);
    }

    /// Indexes a worker that is new or whose registration changed.
    pub(in crate::engine) fn index_worker(&mut self, at: u32, before: Option<&WorkerCapacity>) {
        let Some(shared) = &mut self.shared else { return };
        let class_id = shared.classes.as_mut().map(|classes| {
            if before.is_some() && shared.fleet.contains(at) {
                classes.leave(shared.fleet.free(at).class_id);
            }
            classes.join(self.workers.registration(at))
        });
        if before != Some(&self.workers.registration(at).spec.capacity) {
            self.recompute_free(at);
        }
        if let (Some(shared), Some(class_id)) = (&mut self.shared, class_id) {
            shared.fleet.set_class(at, class_id);
        }
    }

    /// Removes a worker without claims from the indexes.
    pub(in crate::engine) fn unindex_worker(&mut self, at: u32) {
        let Some(shared) = &mut self.shared else { return };
        let class_id = shared.fleet.free(at).class_id;
        shared.fleet.remove(at);
        shared.fleet.set_ends_ms(at, None);
        let load = std::mem::take(&mut shared.loads[at as usize]);
        assert_eq!(load.claims, 0, "L2: a worker with claims is removed");
        if let Some(classes) = &mut shared.classes {
            classes.leave(class_id);
        }
    }

    pub(in crate::engine) fn is_offered(&self, at: u32) -> bool {
        let worker = self.workers.get(at);
        worker.unschedulable_bits == 0
            && !worker.deleted
            && self.shared.as_ref().is_some_and(|shared| {
                let WorkerLoad { claims, overcommitted } = shared.loads[at as usize];
                !overcommitted && claims < limits::WORKER_CLAIMS_MAX
            })
    }

    /// Offers the worker to claims, or withdraws it.
    pub(in crate::engine) fn offer_if_schedulable(&mut self, at: u32) {
        let offered = self.shared.is_some() && self.is_offered(at);
        if let Some(shared) = &mut self.shared {
            if offered { shared.fleet.offer(at) } else { shared.fleet.withdraw(at) }
        }
    }

    /// Builds the classes of workers for the first claim with constraints.
    fn build_classes(&mut self) {
        let Some(shared) = &mut self.shared else { return };
        if shared.classes.is_some() {
            return;
        }
        let mut classes = Box::new(WorkerClasses::default());
        for at in self.workers.iter_from(0).filter(|&at| !self.workers.get(at).deleted) {
            shared.fleet.set_class(at, classes.join(self.workers.registration(at)));
        }
        shared.classes = Some(classes);
    }

    /// Records a granted request, from which the typical mix is learned.
    pub(in crate::engine) fn record_request(&mut self, constraints: &PlacementConstraints) {
        let Some(shared) = &mut self.shared else { return };
        if shared.placement == FitStrategy::Fgd
            && let Some(request) =
                constraints.spec.as_ref().and_then(|spec| shared.resource_request(&spec.resources, &GpuFilter::Any))
        {
            shared.fgd.record_request(&request);
        }
    }
}
