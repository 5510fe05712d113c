//! Candidate plan of a claim: the pools and workers that it may use, and how far the search has come. A claim for any
//! worker of one pool has no plan.
//!
//! Pools are searched in order, each in *stages*: first the workers that the claim prefers, in all shards of the pool,
//! then the less preferred ones. An earlier GPU model of the list comes before a later one; a claim without GPUs tries
//! workers without GPUs first; among equals preferred nodes come first. The claim falls back to the next pool only
//! when every shard that could fit it has said no. A shard that cannot be asked does not block the search, but then
//! the claim is rejected as `unavailable` instead of "exhausted" (`N1`).

mod pool_selection;

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use smallvec::SmallVec;

use self::pool_selection::{PoolSelection, RequestedTerms};
use crate::admission::key::PendingClaim;
use crate::admission::pool_registry::{Pool, PoolMap};
use crate::engine::{GpuFilter, NodeSet, PlacementConstraints, PlacementFailure};
use crate::limits;
use crate::model::GangRef;
use crate::model::claim_request::{ClaimConstraints, PoolChoice};
use crate::model::label_selector::{LabelSelector, SelectorCache, SelectorError};
use crate::model::request_error::{ExhaustionReason, ObjectKind, RequestError, UnavailableReason};
use crate::model::{
    AckLevel, ClaimRequest, ClaimSpec, Millis, PoolSpec, ResourceRequirements, WorkerCapacity, WorkerId,
};
use crate::shard::ShardSet;

/// Search plan of a claim that is more selective than "any worker of one pool".
#[derive(Debug)]
pub struct CandidatePlan {
    constraints: Arc<PlacementConstraints>,
    /// Stages of the search within a pool, in order of preference.
    stages: SmallVec<[CandidateStage; 1]>,
    /// Index of the stage that is being tried.
    stage: usize,
    /// Numbers of the candidate pools, in the order in which they are tried.
    pools: SmallVec<[u32; 4]>,
    /// Index of the pool that is being tried.
    pool_index: usize,
    reserve_ms: Option<Millis>,
    ack: Option<AckLevel>,
    /// Nodes that are acceptable for now.
    scope: NodeScope,
    failures: PlacementFailureSet,
    /// Selection of the candidate pools, if they were not named.
    selection: Option<PoolSelection>,
}

/// Stage of the search: a subset of the workers that the claim allows.
#[derive(Debug)]
struct CandidateStage {
    constraints: Arc<PlacementConstraints>,
    /// Nodes that the stage covers.
    scope: NodeScope,
}

/// Nodes on which a claim looks for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeScope {
    /// Preferred nodes of the claim alone.
    PreferredOnly,
    /// All nodes that the claim allows.
    Allowed,
}

impl NodeScope {
    /// Scope of a claim that accepts only preferred nodes until the given engine time.
    pub const fn until(preferred_until_ms: Option<Millis>, now_ms: Millis) -> Self {
        match preferred_until_ms {
            Some(until_ms) if until_ms > now_ms => Self::PreferredOnly,
            _ => Self::Allowed,
        }
    }

    const fn covers(self, stage: Self) -> bool {
        matches!((self, stage), (Self::Allowed, _) | (_, Self::PreferredOnly))
    }
}

impl CandidateStage {
    /// Whether the pool has no worker of this stage, or needs no separate stage for them.
    fn is_empty_in(&self, pool: &Pool) -> bool {
        match &self.constraints.gpus {
            GpuFilter::Any => false,
            GpuFilter::NoGpus => !pool.spec.load().spare_gpu_workers || !pool.board.capacities().may_have_gpus(),
            GpuFilter::Model(model) => !pool.board.capacities().may_have_model(model),
        }
    }
}

/// Reasons of the shards that had no worker for the claim.
#[derive(Debug, Default)]
struct PlacementFailureSet {
    busy: bool,
    node: bool,
    small: bool,
}

/// Claim that was checked against its candidate pools and may be submitted.
#[derive(Debug)]
pub struct AdmittedClaim {
    /// Number of the first pool that is tried.
    pub pool: u32,
    /// Time to confirm in that pool, in milliseconds.
    pub reserve_ms: Millis,
    /// Level at which the reply acknowledges the claim.
    pub ack: AckLevel,
    /// Search plan, unless any worker of the one pool will do.
    pub plan: Option<Box<CandidatePlan>>,
}

impl AdmittedClaim {
    /// Checks a request against its candidate pools.
    ///
    /// # Errors
    /// `Invalid` naming the field, `NotFound` for the pool, `no_eligible_pool`.
    pub fn new(pools: &PoolMap, selectors: &SelectorCache, request: &ClaimRequest) -> Result<Self, RequestError> {
        if let (PoolChoice::One(name), None) = (&request.pools, &request.constraints) {
            let pool = open_pool(pools.get(name)).ok_or(RequestError::NotFound(ObjectKind::Pool))?;
            let terms = pool_terms(pool, request, "pool")?;
            return Ok(Self { pool: pool.number, reserve_ms: terms.0, ack: terms.1, plan: None });
        }
        Self::with_plan(pools, selectors, request)
    }

    /// Checks the request of a gang member. `home` names the gang's home, given the first candidate pool.
    ///
    /// # Errors
    /// Fails like [`Self::new`].
    pub fn gang(
        pools: &PoolMap,
        selectors: &SelectorCache,
        request: &ClaimRequest,
        home: impl FnOnce(&Pool) -> GangRef,
    ) -> Result<Self, RequestError> {
        let mut admitted = Self::with_plan(pools, selectors, request)?;
        admitted.ack = AckLevel::Durable;
        if let (Some(plan), Some(pool)) = (&mut admitted.plan, pools.by_number(admitted.pool)) {
            plan.set_gang(home(pool));
        }
        Ok(admitted)
    }

    /// Numbers of the candidate pools.
    #[must_use]
    pub fn pools(&self) -> Vec<u32> {
        self.plan.as_ref().map_or_else(|| vec![self.pool], |plan| plan.pools.to_vec())
    }

    #[cold]
    fn with_plan(pools: &PoolMap, selectors: &SelectorCache, request: &ClaimRequest) -> Result<Self, RequestError> {
        let default = ClaimConstraints::default();
        let requested = request.constraints.as_deref().unwrap_or(&default);
        requested.check(&request.pools)?;
        let parse = |field: &'static str, text: &str| {
            selectors.get(text).map_err(|error: SelectorError| RequestError::invalid(field, error.to_string()))
        };
        let selector = requested.selector.as_deref().map(|text| parse("selector", text)).transpose()?;
        let mut candidates: SmallVec<[&Arc<Pool>; 4]> = SmallVec::new();
        let mut selection = None;
        match &request.pools {
            PoolChoice::One(name) => {
                candidates.push(open_pool(pools.get(name)).ok_or(RequestError::NotFound(ObjectKind::Pool))?)
            }
            PoolChoice::Listed(names) => {
                for (i, name) in names.iter().enumerate() {
                    let unknown = || RequestError::invalid(format!("pools[{i}]"), "no such pool");
                    candidates.push(open_pool(pools.get(name)).ok_or_else(unknown)?);
                }
            }
            PoolChoice::Selected(text) => {
                let selector: Arc<LabelSelector> = parse("pool_selector", text)?;
                candidates.extend(pools.select(request.id.namespace(), &selector));
                selection = Some(PoolSelection { selector, class: requested.class.clone(), version: pools.version() });
            }
        }
        if let Some(class) = &requested.class {
            candidates.retain(|pool| pool.spec.load().class.as_ref() == Some(class));
        }
        if selection.is_some() && candidates.len() > limits::CLAIM_POOLS_MAX {
            let (matched, most) = (candidates.len(), limits::CLAIM_POOLS_MAX);
            return Err(RequestError::invalid(
                "pool_selector",
                format!("must match at most {most} pools, and matches {matched}"),
            ));
        }
        let mut first = None;
        for pool in &candidates {
            let field = if matches!(request.pools, PoolChoice::Listed(_)) { "pools" } else { "pool" };
            let terms = pool_terms(pool, request, field)?;
            first.get_or_insert((pool.number, terms));
        }
        let (pool, (reserve_ms, ack)) = first.ok_or(RequestError::Exhausted(ExhaustionReason::NoEligiblePool))?;
        let numbers = candidates.iter().map(|pool| pool.number).collect();
        let mut plan = CandidatePlan::new(requested, selector, numbers, request);
        plan.selection = selection;
        plan.skip_empty_stages(candidates[0]);
        Ok(Self { pool, reserve_ms, ack, plan: Some(Box::new(plan)) })
    }
}

fn open_pool(pool: Option<&Arc<Pool>>) -> Option<&Arc<Pool>> {
    pool.filter(|pool| !pool.is_closing())
}

/// Effective `reserve_ms` and `ack` in this pool.
fn pool_terms(pool: &Pool, request: &ClaimRequest, field: &'static str) -> Result<(Millis, AckLevel), RequestError> {
    if !request.id.is_in(&pool.name) {
        return Err(RequestError::invalid(field, "must be in the claim's namespace"));
    }
    let requested = request.constraints.as_ref();
    let terms = RequestedTerms {
        has_resources: requested.is_some_and(|requested| !requested.spec.resources.is_empty()),
        reserve_ms: request.reserve_ms,
        ack: request.ack,
        ttl_ms: request.ttl_ms,
    };
    terms.effective(&pool.spec.load())
}

impl CandidatePlan {
    fn new(
        requested: &ClaimConstraints,
        selector: Option<Arc<LabelSelector>>,
        pools: SmallVec<[u32; 4]>,
        request: &ClaimRequest,
    ) -> Self {
        let nodes = NodeSet::new(requested.nodes_required.iter().cloned());
        let preferred = NodeSet::new(requested.nodes_preferred.iter().cloned()).intersection(&nodes);
        let resources = &requested.spec.resources;
        let keeps_spec = !requested.spec.is_empty();
        let constraints = PlacementConstraints {
            selector,
            nodes,
            worker: requested.worker.clone(),
            spec: keeps_spec.then(|| Arc::new(requested.spec.clone())),
            gpus: GpuFilter::Any,
            gang: None,
            require_same_resources: requested.require_same_resources,
        };
        let constraints = Arc::new(constraints);
        let gpus: SmallVec<[GpuFilter; 2]> = match &resources.gpu {
            _ if requested.worker.is_some() => SmallVec::from_iter([GpuFilter::Any]),
            None if !resources.is_empty() => SmallVec::from_iter([GpuFilter::NoGpus, GpuFilter::Any]),
            Some(gpu) if gpu.models.len() > 1 => gpu.models.iter().cloned().map(GpuFilter::Model).collect(),
            _ => SmallVec::from_iter([GpuFilter::Any]),
        };
        let mut stages = SmallVec::new();
        for gpus in gpus {
            let all_nodes = match gpus {
                GpuFilter::Any => Arc::clone(&constraints),
                gpus => Arc::new(PlacementConstraints { gpus, ..(*constraints).clone() }),
            };
            if !preferred.is_empty() {
                let constraints = Arc::new(PlacementConstraints { nodes: preferred.clone(), ..(*all_nodes).clone() });
                stages.push(CandidateStage { constraints, scope: NodeScope::PreferredOnly });
            }
            stages.push(CandidateStage { constraints: all_nodes, scope: NodeScope::Allowed });
        }
        Self {
            constraints,
            stages,
            stage: 0,
            pools,
            pool_index: 0,
            reserve_ms: request.reserve_ms,
            ack: request.ack,
            scope: NodeScope::until(Some(requested.preferred_wait_ms), 0),
            failures: PlacementFailureSet::default(),
            selection: None,
        }
    }

    /// Makes it a search for a gang member, whose grant is provisional.
    fn set_gang(&mut self, gang: GangRef) {
        let add_gang = |constraints: &mut Arc<PlacementConstraints>| {
            *constraints = Arc::new(PlacementConstraints { gang: Some(gang), ..(**constraints).clone() })
        };
        add_gang(&mut self.constraints);
        self.stages.iter_mut().for_each(|stage| add_gang(&mut stage.constraints));
        self.ack = Some(AckLevel::Durable);
    }

    /// Restarts the search from the first pool.
    pub fn reset(&mut self, scope: NodeScope) {
        (self.pool_index, self.stage, self.scope, self.failures) = (0, 0, scope, PlacementFailureSet::default());
    }

    /// Skips stages of which the pool has no workers, beginning with the current one. Returns false when none is left.
    fn skip_empty_stages(&mut self, pool: &Pool) -> bool {
        let (remaining, scope) = (self.stages.iter().skip(self.stage), self.scope);
        self.stage += remaining.take_while(|stage| !scope.covers(stage.scope) || stage.is_empty_in(pool)).count();
        self.stage < self.stages.len()
    }

    /// Advances to the next candidate pool that still exists.
    fn next_pool<'a>(&mut self, pools: &'a PoolMap) -> Option<&'a Arc<Pool>> {
        loop {
            self.pool_index += 1;
            if let Some(pool) = pools.by_number(*self.pools.get(self.pool_index)?) {
                return Some(pool);
            }
        }
    }

    /// Rejection after every shard that could fit the claim was asked.
    fn rejection(&self, pools: &PoolMap) -> RequestError {
        let candidates = || self.pools.iter().filter_map(|&number| pools.by_number(number));
        let PlacementFailureSet { busy, node, small } = self.failures;
        if self.constraints.worker.is_some() {
            return match (node, busy, small) {
                (true, ..) => RequestError::Exhausted(ExhaustionReason::NodeLocality),
                (_, true, _) => RequestError::Exhausted(ExhaustionReason::Pool),
                (_, _, true) => RequestError::Unsatisfiable,
                _ => RequestError::NotFound(ObjectKind::Worker),
            };
        }
        if candidates().any(|pool| pool.has_unavailable_shard()) {
            return RequestError::Unavailable(UnavailableReason::Loading);
        }
        if candidates().next().is_none() {
            return RequestError::NotFound(ObjectKind::Pool);
        }
        let default = ResourceRequirements::default();
        let requested = self.constraints.spec.as_ref().map_or(&default, |spec| &spec.resources);
        let is_large = |capacity: &WorkerCapacity| self.constraints.is_large_enough(capacity);
        if !candidates().any(|pool| pool.board.capacities().may_have(requested, is_large)) {
            return RequestError::Unsatisfiable;
        }
        RequestError::Exhausted(if node { ExhaustionReason::NodeLocality } else { ExhaustionReason::Pool })
    }
}

impl PendingClaim {
    /// Constraints of the current stage; `None` accepts any worker.
    #[must_use]
    pub fn constraints(&self) -> Option<&Arc<PlacementConstraints>> {
        let plan = self.plan.as_ref()?;
        Some(plan.stages.get(plan.stage).map_or(&plan.constraints, |stage| &stage.constraints))
    }

    /// Constraints that a claim already held under the key must meet; preferences do not count.
    #[must_use]
    pub fn accepts(&self) -> Option<Arc<PlacementConstraints>> {
        self.plan.as_ref().map(|plan| Arc::clone(&plan.constraints))
    }

    /// Numbers of the candidate pools, in the order in which they are tried.
    #[must_use]
    pub fn candidate_pools(&self) -> SmallVec<[u32; 4]> {
        self.plan.as_ref().map_or_else(|| SmallVec::from_slice(&[self.pool]), |plan| plan.pools.clone())
    }

    /// Whether this pool is a candidate.
    #[must_use]
    pub fn may_use(&self, pool: u32) -> bool {
        self.pool == pool || self.plan.as_ref().is_some_and(|plan| plan.pools.contains(&pool))
    }

    /// Whether the claim is a member of a gang.
    #[must_use]
    pub fn is_gang_member(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.constraints.gang.is_some())
    }

    /// The only worker that the claim accepts, if it names one.
    #[must_use]
    pub fn pinned_worker(&self) -> Option<&WorkerId> {
        self.plan.as_ref()?.constraints.worker.as_ref()
    }

    /// Records why a shard had no worker for the claim.
    pub fn record_failure(&mut self, reason: PlacementFailure) {
        let is_preferred_stage = |plan: &CandidatePlan| {
            plan.stages.get(plan.stage).is_some_and(|stage| stage.scope == NodeScope::PreferredOnly)
        };
        if let Some(plan) = self.plan.as_mut().filter(|plan| !is_preferred_stage(plan)) {
            match reason {
                PlacementFailure::Busy => plan.failures.busy = true,
                PlacementFailure::OtherNode => plan.failures.node = true,
                PlacementFailure::TooSmall => plan.failures.small = true,
                PlacementFailure::UnknownWorker => {}
            }
        }
    }

    /// Advances to a less preferred stage after every eligible shard said no. Returns false when no stage is left.
    pub fn advance_stage(&mut self, pools: &PoolMap) -> bool {
        let Some(plan) = &mut self.plan else { return false };
        plan.stage += 1;
        if pools.by_number(self.pool).is_some_and(|pool| plan.skip_empty_stages(pool)) {
            self.tried_shards = ShardSet::default();
            return true;
        }
        self.advance_pool(pools)
    }

    /// Advances to the next candidate pool that may have a worker for the claim. Returns false when none is left.
    pub fn advance_pool(&mut self, pools: &PoolMap) -> bool {
        let Some(plan) = &mut self.plan else { return false };
        loop {
            let Some(pool) = plan.next_pool(pools) else { return false };
            plan.stage = 0;
            if plan.skip_empty_stages(pool) {
                self.pool = pool.number;
                self.apply_pool_defaults(&pool.spec.load());
                self.tried_shards = ShardSet::default();
                return true;
            }
        }
    }

    fn apply_pool_defaults(&mut self, spec: &PoolSpec) {
        if let Some(plan) = &self.plan {
            self.reserve_ms = plan.reserve_ms.unwrap_or(spec.reserve_ms);
            self.ack = plan.ack.unwrap_or(spec.ack);
        }
    }

    /// Restarts the search in `pool`, one of the claim's candidates.
    pub fn restart_in_pool(&mut self, pool: &Pool, now_ms: Millis) {
        self.reset_search(now_ms);
        self.enter_pool(pool);
        if let Some(plan) = &mut self.plan {
            plan.skip_empty_stages(pool);
        }
    }

    /// Makes `pool`, one of the claim's candidates, that which is tried.
    pub fn enter_pool(&mut self, pool: &Pool) {
        self.pool = pool.number;
        if let Some(plan) = &mut self.plan {
            plan.pool_index = plan.pools.iter().position(|&number| number == pool.number).unwrap_or(0);
        }
        self.apply_pool_defaults(&pool.spec.load());
    }

    /// Time to confirm that the request names, in milliseconds; none: the pool's.
    #[must_use]
    pub fn requested_reserve_ms(&self) -> Option<Millis> {
        self.plan.as_ref().map_or(Some(self.reserve_ms), |plan| plan.reserve_ms)
    }

    /// Constraints on any worker that is acceptable at present, whatever the stage.
    #[must_use]
    pub fn wanted(&self) -> Option<Arc<PlacementConstraints>> {
        let plan = self.plan.as_ref()?;
        if plan.scope == NodeScope::Allowed {
            return Some(Arc::clone(&plan.constraints));
        }
        let preferred = plan.stages.iter().find(|stage| stage.scope == NodeScope::PreferredOnly)?;
        let nodes = preferred.constraints.nodes.clone();
        Some(Arc::new(PlacementConstraints { nodes, ..(*plan.constraints).clone() }))
    }

    /// Whether only preferred nodes are acceptable for now.
    #[must_use]
    pub fn is_preferred_only(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.scope == NodeScope::PreferredOnly)
    }

    /// Whether all stages in the current pool have been tried.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.stage >= plan.stages.len())
    }

    /// Part of the request that is kept with the claim, if any.
    #[must_use]
    pub fn spec(&self) -> Option<&Arc<ClaimSpec>> {
        self.plan.as_ref()?.constraints.spec.as_ref()
    }

    /// Hash of the capacity that the claim needs. Claims with the same hash are placeable or not placeable together.
    #[must_use]
    pub fn request_class(&self) -> u64 {
        let mut hash = std::hash::DefaultHasher::new();
        // A worker that ends soon may serve a short claim but not a long one.
        (self.reserve_ms, self.ttl_ms).hash(&mut hash);
        if let Some(plan) = &self.plan {
            let constraints = &plan.constraints;
            // Selectors are interned by their text, so pointers can be compared.
            constraints.selector.as_ref().map(Arc::as_ptr).hash(&mut hash);
            constraints.nodes.hash(&mut hash);
            constraints.worker.hash(&mut hash);
            constraints.spec.as_ref().map(|spec| &spec.resources).hash(&mut hash);
            plan.pools.hash(&mut hash);
            plan.scope.hash(&mut hash);
            if plan.scope == NodeScope::PreferredOnly {
                plan.stages.iter().for_each(|stage| stage.constraints.nodes.hash(&mut hash));
            }
        }
        hash.finish()
    }

    /// Rejection of a claim that has no shard left to ask.
    #[must_use]
    pub fn rejection(&self, pools: &PoolMap) -> RequestError {
        if let Some(reason) = self.unreachable {
            return RequestError::Unavailable(reason);
        }
        match (&self.plan, pools.by_number(self.pool)) {
            (Some(plan), _) => plan.rejection(pools),
            (None, None) => RequestError::NotFound(ObjectKind::Pool),
            (None, Some(pool)) if pool.has_unavailable_shard() => RequestError::Unavailable(UnavailableReason::Loading),
            (None, Some(_)) => RequestError::Exhausted(ExhaustionReason::Pool),
        }
    }
}
