//! Which workers of which pools a claim may take, and how far it has come with them. A claim for any worker of one pool
//! has none of this.
//!
//! Pools are visited in order, and each in *stages*: first the workers that the claim likes best are asked for, of all
//! its shards, and last any that it allows. A GPU model that stands earlier in its list comes before one that stands
//! later, and a worker without GPUs before one with them if it needs none; among equals a preferred node comes first. Only when every shard of a pool that could fit has said no does the claim fall back to the next; a
//! shard that cannot be asked does not hold it up, but then the last word is `unavailable` and not "full" (`N1`).

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::admission::pool_registry::{Pool, PoolMap};
use crate::engine::{GpuFilter, NodeSet, PlacementConstraints, PlacementFailure};
use crate::model::GangRef;
use crate::model::claim_request::{ClaimConstraints, PoolChoice};
use crate::model::label_selector::{LabelSelector, SelectorCache, SelectorError};
use crate::model::request_error::{ExhaustionReason, ObjectKind, RequestError, UnavailableReason};
use crate::model::{
    AckLevel, ClaimRequest, ClaimSpec, Millis, PoolMode, PoolSpec, ResourceRequirements, ResourceUsage, WorkerCapacity,
    WorkerId,
};
use crate::shard::{PendingClaim, ShardSet};

/// What a claim asks beyond any worker of one pool.
#[derive(Debug)]
pub struct CandidatePlan {
    constraints: Arc<PlacementConstraints>,
    /// What is asked for, one after the other.
    stages: SmallVec<[CandidateStage; 1]>,
    /// Which of them is being asked for.
    stage: usize,
    /// Numbers of the pools in the order in which they are tried.
    pools: SmallVec<[u32; 4]>,
    /// Which of them is being asked.
    pool_index: usize,
    reserve_ms: Option<Millis>,
    ack: Option<AckLevel>,
    /// Only preferred nodes will do, for now.
    preferred_only: bool,
    failures: PlacementFailureSet,
}

/// A part of what a claim allows.
#[derive(Debug)]
struct CandidateStage {
    constraints: Arc<PlacementConstraints>,
    /// Only those on its preferred nodes.
    preferred_only: bool,
}

impl CandidateStage {
    /// Whether no worker of the pool is of this stage, or none need be asked apart.
    fn is_empty_in(&self, pool: &Pool) -> bool {
        match &self.constraints.gpus {
            GpuFilter::Any => false,
            GpuFilter::NoGpus => !pool.spec.load().spare_gpu_workers || !pool.board.capacities().may_have_gpus(),
            GpuFilter::Model(model) => !pool.board.capacities().may_have_model(model),
        }
    }
}

/// What shards said that had no worker for it.
#[derive(Debug, Default)]
struct PlacementFailureSet {
    busy: bool,
    node: bool,
    small: bool,
}

/// How a claim begins.
#[derive(Debug)]
pub struct AdmittedClaim {
    /// Number of the pool that is asked first.
    pub pool: u32,
    /// How long it may stay unconfirmed there.
    pub reserve_ms: Millis,
    /// Its answer leaves after the store has it.
    pub durable: bool,
    /// What else it asks for, if anything.
    pub plan: Option<Box<CandidatePlan>>,
}

impl AdmittedClaim {
    /// Checks a request against the pools that it may use.
    ///
    /// # Errors
    /// `Invalid` naming the field, `NotFound` for the pool, `no_eligible_pool`.
    pub fn new(pools: &PoolMap, selectors: &SelectorCache, request: &ClaimRequest) -> Result<Self, RequestError> {
        if let (PoolChoice::One(name), None) = (&request.pools, &request.constraints) {
            let pool = open_pool(pools.get(name)).ok_or(RequestError::NotFound(ObjectKind::Pool))?;
            let terms = pool_terms(pool, request, "pool")?;
            return Ok(Self { pool: pool.number, reserve_ms: terms.0, durable: terms.1, plan: None });
        }
        Self::with_plan(pools, selectors, request)
    }

    /// The same for a member of a gang, whose home `home` names by the first pool that it may use.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn gang(
        pools: &PoolMap,
        selectors: &SelectorCache,
        request: &ClaimRequest,
        home: impl FnOnce(&Pool) -> GangRef,
    ) -> Result<Self, RequestError> {
        let mut start = Self::with_plan(pools, selectors, request)?;
        start.durable = true;
        if let (Some(choice), Some(pool)) = (&mut start.plan, pools.by_number(start.pool)) {
            choice.set_gang(home(pool));
        }
        Ok(start)
    }

    /// Numbers of the pools that it may use.
    #[must_use]
    pub fn pools(&self) -> Vec<u32> {
        self.plan.as_ref().map_or_else(|| vec![self.pool], |choice| choice.pools.to_vec())
    }

    #[cold]
    fn with_plan(pools: &PoolMap, selectors: &SelectorCache, request: &ClaimRequest) -> Result<Self, RequestError> {
        let nothing = ClaimConstraints::default();
        let ask = request.constraints.as_deref().unwrap_or(&nothing);
        ask.check(&request.pools)?;
        let read = |field: &'static str, text: &str| {
            selectors.get(text).map_err(|wrong: SelectorError| RequestError::invalid(field, wrong.to_string()))
        };
        let selector = ask.selector.as_deref().map(|text| read("selector", text)).transpose()?;
        let mut candidates: SmallVec<[&Arc<Pool>; 4]> = SmallVec::new();
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
                let selector: Arc<LabelSelector> = read("pool_selector", text)?;
                let labelled = |pool: &&Arc<Pool>| selector.matches(&pool.spec.load().labels);
                candidates.extend(
                    pools.of_namespace(request.id.namespace()).filter(|pool| !pool.is_closing()).filter(labelled),
                );
            }
        }
        if let Some(class) = &ask.class {
            candidates.retain(|pool| pool.spec.load().class.as_ref() == Some(class));
        }
        let mut first = None;
        for pool in &candidates {
            let field = if matches!(request.pools, PoolChoice::Listed(_)) { "pools" } else { "pool" };
            let terms = pool_terms(pool, request, field)?;
            first.get_or_insert((pool.number, terms));
        }
        let (pool, (reserve_ms, durable)) = first.ok_or(RequestError::Exhausted(ExhaustionReason::NoEligiblePool))?;
        let numbers = candidates.iter().map(|pool| pool.number).collect();
        let mut choice = CandidatePlan::new(ask, selector, numbers, request);
        choice.skip_empty_stages(candidates[0]);
        Ok(Self { pool, reserve_ms, durable, plan: Some(Box::new(choice)) })
    }
}

fn open_pool(pool: Option<&Arc<Pool>>) -> Option<&Arc<Pool>> {
    pool.filter(|pool| !pool.is_closing())
}

/// `reserve_ms` and whether it is durable, in this pool.
fn pool_terms(pool: &Pool, request: &ClaimRequest, field: &'static str) -> Result<(Millis, bool), RequestError> {
    if !request.id.is_in(&pool.name) {
        return Err(RequestError::invalid(field, "must be in the claim's namespace"));
    }
    let spec = pool.spec.load();
    if spec.mode == PoolMode::Shared && request.constraints.as_ref().is_none_or(|ask| ask.spec.resources.is_empty()) {
        let message = "is required: the pool is shared, and a claim holds as much of a worker as it asks for";
        return Err(RequestError::invalid("resources", message));
    }
    let (reserve_ms, ack) = (request.reserve_ms.unwrap_or(spec.reserve_ms), request.ack.unwrap_or(spec.ack));
    if reserve_ms > spec.reserve_ms {
        return Err(RequestError::invalid("reserve_ms", format!("must be at most the pool's {}", spec.reserve_ms)));
    }
    spec.ttl().check(request.ttl_ms)?;
    if ack < spec.ack {
        return Err(RequestError::invalid("ack", "may ask for more than the pool promises (durable), not for less"));
    }
    Ok((reserve_ms, ack == AckLevel::Durable))
}

impl CandidatePlan {
    fn new(
        ask: &ClaimConstraints,
        selector: Option<Arc<LabelSelector>>,
        pools: SmallVec<[u32; 4]>,
        request: &ClaimRequest,
    ) -> Self {
        let nodes = NodeSet::new(ask.nodes_required.iter().cloned());
        let preferred = NodeSet::new(ask.nodes_preferred.iter().cloned()).intersection(&nodes);
        let resources = &ask.spec.resources;
        let keeps = !ask.spec.is_empty();
        let wants = PlacementConstraints {
            selector,
            nodes,
            worker: ask.worker.clone(),
            spec: keeps.then(|| Arc::new(ask.spec.clone())),
            gpus: GpuFilter::Any,
            gang: None,
            require_same_resources: ask.require_same_resources,
        };
        let wants = Arc::new(wants);
        let cards: SmallVec<[GpuFilter; 2]> = match &resources.gpu {
            _ if ask.worker.is_some() => SmallVec::from_iter([GpuFilter::Any]),
            None if !resources.is_empty() => SmallVec::from_iter([GpuFilter::NoGpus, GpuFilter::Any]),
            Some(gpu) if gpu.models.len() > 1 => gpu.models.iter().cloned().map(GpuFilter::Model).collect(),
            _ => SmallVec::from_iter([GpuFilter::Any]),
        };
        let mut stages = SmallVec::new();
        for cards in cards {
            let far = match cards {
                GpuFilter::Any => Arc::clone(&wants),
                cards => Arc::new(PlacementConstraints { gpus: cards, ..(*wants).clone() }),
            };
            if !preferred.is_empty() {
                let wants = Arc::new(PlacementConstraints { nodes: preferred.clone(), ..(*far).clone() });
                stages.push(CandidateStage { constraints: wants, preferred_only: true });
            }
            stages.push(CandidateStage { constraints: far, preferred_only: false });
        }
        Self {
            constraints: wants,
            stages,
            stage: 0,
            pools,
            pool_index: 0,
            reserve_ms: request.reserve_ms,
            ack: request.ack,
            preferred_only: ask.preferred_wait_ms > 0,
            failures: PlacementFailureSet::default(),
        }
    }

    /// It is for a gang: what is granted is provisional.
    fn set_gang(&mut self, gang: GangRef) {
        let joined = |wants: &mut Arc<PlacementConstraints>| {
            *wants = Arc::new(PlacementConstraints { gang: Some(gang), ..(**wants).clone() })
        };
        joined(&mut self.constraints);
        self.stages.iter_mut().for_each(|stage| joined(&mut stage.constraints));
        self.ack = Some(AckLevel::Durable);
    }

    /// Its way will begin anew.
    pub fn reset(&mut self, near_only: bool) {
        (self.pool_index, self.stage, self.preferred_only, self.failures) =
            (0, 0, near_only, PlacementFailureSet::default());
    }

    /// Goes on to the first stage, from the present one on, of which the pool has workers. False: there is none.
    fn skip_empty_stages(&mut self, pool: &Pool) -> bool {
        let (rest, near_only) = (self.stages.iter().skip(self.stage), self.preferred_only);
        self.stage += rest.take_while(|stage| (near_only && !stage.preferred_only) || stage.is_empty_in(pool)).count();
        self.stage < self.stages.len()
    }

    /// The next pool that is still there.
    fn next_pool<'a>(&mut self, pools: &'a PoolMap) -> Option<&'a Arc<Pool>> {
        loop {
            self.pool_index += 1;
            if let Some(pool) = pools.by_number(*self.pools.get(self.pool_index)?) {
                return Some(pool);
            }
        }
    }

    /// What all the pools together said, every shard that could fit having been asked.
    fn refusal(&self, pools: &PoolMap) -> RequestError {
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
        let nothing = ResourceRequirements::default();
        let asked = self.constraints.spec.as_ref().map_or(&nothing, |spec| &spec.resources);
        let is_large = |capacity: &WorkerCapacity| self.constraints.is_large_enough(capacity);
        if !candidates().any(|pool| pool.board.capacities().may_have(asked, is_large)) {
            return RequestError::Unsatisfiable;
        }
        RequestError::Exhausted(if node { ExhaustionReason::NodeLocality } else { ExhaustionReason::Pool })
    }
}

impl PendingClaim {
    /// What it asks of a worker, at this point of its way; none: any will do.
    #[must_use]
    pub fn constraints(&self) -> Option<&Arc<PlacementConstraints>> {
        let choice = self.plan.as_ref()?;
        Some(choice.stages.get(choice.stage).map_or(&choice.constraints, |stage| &stage.constraints))
    }

    /// What it accepts as its own, if its key is held already: preferences do not matter.
    #[must_use]
    pub fn accepts(&self) -> Option<Arc<PlacementConstraints>> {
        self.plan.as_ref().map(|choice| Arc::clone(&choice.constraints))
    }

    /// The numbers of the pools that it may be taken from, in the order in which they are tried.
    #[must_use]
    pub fn candidate_pools(&self) -> SmallVec<[u32; 4]> {
        self.plan.as_ref().map_or_else(|| SmallVec::from_slice(&[self.pool]), |choice| choice.pools.clone())
    }

    /// Whether it may be taken from this pool.
    #[must_use]
    pub fn may_use(&self, pool: u32) -> bool {
        self.pool == pool || self.plan.as_ref().is_some_and(|choice| choice.pools.contains(&pool))
    }

    /// Whether it is for a gang.
    #[must_use]
    pub fn is_gang_member(&self) -> bool {
        self.plan.as_ref().is_some_and(|choice| choice.constraints.gang.is_some())
    }

    /// The only worker that it wants, if there is one.
    #[must_use]
    pub fn pinned_worker(&self) -> Option<&WorkerId> {
        self.plan.as_ref()?.constraints.worker.as_ref()
    }

    /// A shard had no worker for it.
    pub fn record_failure(&mut self, why: PlacementFailure) {
        let near = |choice: &CandidatePlan| choice.stages.get(choice.stage).is_some_and(|stage| stage.preferred_only);
        if let Some(choice) = self.plan.as_mut().filter(|choice| !near(choice)) {
            match why {
                PlacementFailure::Busy => choice.failures.busy = true,
                PlacementFailure::OtherNode => choice.failures.node = true,
                PlacementFailure::TooSmall => choice.failures.small = true,
                PlacementFailure::UnknownWorker => {}
            }
        }
    }

    /// Every shard that it could ask said no: it goes on with what it likes less. False: there is nothing left, or not in the
    /// pool in whose line it has its turn.
    pub fn advance_stage(&mut self, pools: &PoolMap) -> bool {
        let Some(choice) = &mut self.plan else { return false };
        choice.stage += 1;
        if pools.by_number(self.pool).is_some_and(|pool| choice.skip_empty_stages(pool)) {
            self.tried_shards = ShardSet::default();
            return true;
        }
        self.turn().is_none() && self.advance_pool(pools)
    }

    /// It goes on to the next pool that may have something for it. False: there is none.
    pub fn advance_pool(&mut self, pools: &PoolMap) -> bool {
        let Some(choice) = &mut self.plan else { return false };
        loop {
            let Some(pool) = choice.next_pool(pools) else { return false };
            choice.stage = 0;
            if choice.skip_empty_stages(pool) {
                self.pool = pool.number;
                self.apply_pool_defaults(&pool.spec.load());
                self.tried_shards = ShardSet::default();
                return true;
            }
        }
    }

    fn apply_pool_defaults(&mut self, spec: &PoolSpec) {
        if let Some(choice) = &self.plan {
            self.reserve_ms = choice.reserve_ms.unwrap_or(spec.reserve_ms);
            self.durable = choice.ack.unwrap_or(spec.ack) == AckLevel::Durable;
        }
    }

    /// Its way begins anew in this pool, which is one of those that it may use.
    pub fn restart_in_pool(&mut self, pool: &Pool, now_ms: Millis) {
        let near_only = self.wait.as_ref().is_some_and(|wait| wait.preferred_until_ms > now_ms);
        (self.pool, self.tried_shards, self.unreachable) = (pool.number, ShardSet::default(), None);
        if let Some(choice) = &mut self.plan {
            choice.pool_index = choice.pools.iter().position(|&number| number == pool.number).unwrap_or(0);
            (choice.stage, choice.preferred_only, choice.failures) = (0, near_only, PlacementFailureSet::default());
            choice.skip_empty_stages(pool);
        }
        self.apply_pool_defaults(&pool.spec.load());
    }

    /// Whether only its preferred nodes will do, as yet.
    #[must_use]
    pub fn is_preferred_only(&self) -> bool {
        self.plan.as_ref().is_some_and(|choice| choice.preferred_only)
    }

    /// Whether there is nothing left that it could ask for in its pool.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.plan.as_ref().is_some_and(|choice| choice.stage >= choice.stages.len())
    }

    /// All that it asks for in its pool, one after the other.
    pub fn all_constraints(&self) -> impl Iterator<Item = &PlacementConstraints> {
        let choice = self.plan.iter();
        choice.flat_map(|choice| {
            let allowed = |stage: &&CandidateStage| stage.preferred_only || !choice.preferred_only;
            choice.stages.iter().filter(allowed).map(|stage| &*stage.constraints)
        })
    }

    /// What it keeps of its request, if anything.
    #[must_use]
    pub fn spec(&self) -> Option<&Arc<ClaimSpec>> {
        self.plan.as_ref()?.constraints.spec.as_ref()
    }

    /// A hash of what it asks for: claims with the same find room, or do not, alike. `quota`: room in its tenant's quota.
    #[must_use]
    pub fn request_class(&self, quota: bool) -> u64 {
        let mut hash = std::hash::DefaultHasher::new();
        if quota {
            ResourceUsage::of_claim(self.spec().map(|spec| &**spec)).to_array().hash(&mut hash);
            return hash.finish();
        }
        // A worker with an end of life may do for a short claim and not for a long one.
        (self.reserve_ms, self.ttl_ms).hash(&mut hash);
        if let Some(choice) = &self.plan {
            let wants = &choice.constraints;
            // Selectors are kept by their text, so equal ones are one.
            wants.selector.as_ref().map(Arc::as_ptr).hash(&mut hash);
            wants.nodes.hash(&mut hash);
            wants.worker.hash(&mut hash);
            wants.spec.as_ref().map(|spec| &spec.resources).hash(&mut hash);
            choice.pools.hash(&mut hash);
            choice.preferred_only.hash(&mut hash);
            if choice.preferred_only {
                choice.stages.iter().for_each(|stage| stage.constraints.nodes.hash(&mut hash));
            }
        }
        hash.finish()
    }

    /// Why it is refused, nothing being left to ask.
    #[must_use]
    pub fn refusal(&self, pools: &PoolMap) -> RequestError {
        if let Some(why) = self.unreachable {
            return RequestError::Unavailable(why);
        }
        match (&self.plan, pools.by_number(self.pool)) {
            (Some(choice), _) => choice.refusal(pools),
            (None, None) => RequestError::NotFound(ObjectKind::Pool),
            (None, Some(pool)) if pool.has_unavailable_shard() => RequestError::Unavailable(UnavailableReason::Loading),
            (None, Some(_)) => RequestError::Exhausted(ExhaustionReason::Pool),
        }
    }
}
