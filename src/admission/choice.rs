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

use crate::admission::pools::{Pool, PoolMap};
use crate::engine::{CardFilter, NoFit, Nodes, Wants};
use crate::model::GangRef;
use crate::model::claim_request::{ClaimAsk, PoolChoice};
use crate::model::label_selector::{Selector, SelectorError, Selectors};
use crate::model::rejection::{Exhausted, Refusal, Unavailable, What};
use crate::model::{Ack, Capacity, ClaimRequest, ClaimSpec, Millis, Mode, PoolSpec, Resources, Usage, WorkerId};
use crate::shard::{ClaimItem, Visited};

/// What a claim asks beyond any worker of one pool.
#[derive(Debug)]
pub struct Choice {
    wants: Arc<Wants>,
    /// What is asked for, one after the other.
    stages: SmallVec<[Stage; 1]>,
    /// Which of them is being asked for.
    stage: usize,
    /// Numbers of the pools in the order in which they are tried.
    pools: SmallVec<[u32; 4]>,
    /// Which of them is being asked.
    at: usize,
    reserve_ms: Option<Millis>,
    ack: Option<Ack>,
    /// Only preferred nodes will do, for now.
    near_only: bool,
    seen: Seen,
}

/// A part of what a claim allows.
#[derive(Debug)]
struct Stage {
    wants: Arc<Wants>,
    /// Only those on its preferred nodes.
    near: bool,
}

impl Stage {
    /// Whether no worker of the pool is of this stage, or none need be asked apart.
    fn is_idle_in(&self, pool: &Pool) -> bool {
        match &self.wants.cards {
            CardFilter::Any => false,
            CardFilter::Without => !pool.spec.load().spare_gpu_workers || !pool.board.capacities().may_have_gpus(),
            CardFilter::Only(model) => !pool.board.capacities().may_have_model(model),
        }
    }
}

/// What shards said that had no worker for it.
#[derive(Debug, Default)]
struct Seen {
    busy: bool,
    node: bool,
    small: bool,
}

/// How a claim begins.
#[derive(Debug)]
pub struct Start {
    /// Number of the pool that is asked first.
    pub pool: u32,
    /// How long it may stay unconfirmed there.
    pub reserve_ms: Millis,
    /// Its answer leaves after the store has it.
    pub durable: bool,
    /// What else it asks for, if anything.
    pub choice: Option<Box<Choice>>,
}

impl Start {
    /// Checks a request against the pools that it may use.
    ///
    /// # Errors
    /// `Invalid` naming the field, `NotFound` for the pool, `no_eligible_pool`.
    pub fn new(pools: &PoolMap, selectors: &Selectors, request: &ClaimRequest) -> Result<Self, Refusal> {
        if let (PoolChoice::One(name), None) = (&request.pools, &request.ask) {
            let pool = open(pools.get(name)).ok_or(Refusal::NotFound(What::Pool))?;
            let terms = terms(pool, request, "pool")?;
            return Ok(Self { pool: pool.number, reserve_ms: terms.0, durable: terms.1, choice: None });
        }
        Self::chosen(pools, selectors, request)
    }

    /// The same for a member of a gang, whose home `home` names by the first pool that it may use.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn gang(
        pools: &PoolMap,
        selectors: &Selectors,
        request: &ClaimRequest,
        home: impl FnOnce(&Pool) -> GangRef,
    ) -> Result<Self, Refusal> {
        let mut start = Self::chosen(pools, selectors, request)?;
        start.durable = true;
        if let (Some(choice), Some(pool)) = (&mut start.choice, pools.at(start.pool)) {
            choice.join(home(pool));
        }
        Ok(start)
    }

    /// Numbers of the pools that it may use.
    #[must_use]
    pub fn pools(&self) -> Vec<u32> {
        self.choice.as_ref().map_or_else(|| vec![self.pool], |choice| choice.pools.to_vec())
    }

    #[cold]
    fn chosen(pools: &PoolMap, selectors: &Selectors, request: &ClaimRequest) -> Result<Self, Refusal> {
        let nothing = ClaimAsk::default();
        let ask = request.ask.as_deref().unwrap_or(&nothing);
        ask.check(&request.pools)?;
        let read = |field: &'static str, text: &str| {
            selectors.get(text).map_err(|wrong: SelectorError| Refusal::invalid(field, wrong.to_string()))
        };
        let selector = ask.selector.as_deref().map(|text| read("selector", text)).transpose()?;
        let mut candidates: SmallVec<[&Arc<Pool>; 4]> = SmallVec::new();
        match &request.pools {
            PoolChoice::One(name) => candidates.push(open(pools.get(name)).ok_or(Refusal::NotFound(What::Pool))?),
            PoolChoice::Listed(names) => {
                for (i, name) in names.iter().enumerate() {
                    let unknown = || Refusal::invalid(format!("pools[{i}]"), "no such pool");
                    candidates.push(open(pools.get(name)).ok_or_else(unknown)?);
                }
            }
            PoolChoice::Selected(text) => {
                let selector: Arc<Selector> = read("pool_selector", text)?;
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
            let terms = terms(pool, request, field)?;
            first.get_or_insert((pool.number, terms));
        }
        let (pool, (reserve_ms, durable)) = first.ok_or(Refusal::Exhausted(Exhausted::NoEligiblePool))?;
        let numbers = candidates.iter().map(|pool| pool.number).collect();
        let mut choice = Choice::new(ask, selector, numbers, request);
        choice.skip_idle(candidates[0]);
        Ok(Self { pool, reserve_ms, durable, choice: Some(Box::new(choice)) })
    }
}

fn open(pool: Option<&Arc<Pool>>) -> Option<&Arc<Pool>> {
    pool.filter(|pool| !pool.is_closing())
}

/// `reserve_ms` and whether it is durable, in this pool.
fn terms(pool: &Pool, request: &ClaimRequest, field: &'static str) -> Result<(Millis, bool), Refusal> {
    if !request.id.is_in(&pool.name) {
        return Err(Refusal::invalid(field, "must be in the claim's namespace"));
    }
    let spec = pool.spec.load();
    if spec.mode == Mode::Shared && request.ask.as_ref().is_none_or(|ask| ask.spec.resources.is_empty()) {
        let message = "is required: the pool is shared, and a claim holds as much of a worker as it asks for";
        return Err(Refusal::invalid("resources", message));
    }
    let (reserve_ms, ack) = (request.reserve_ms.unwrap_or(spec.reserve_ms), request.ack.unwrap_or(spec.ack));
    if reserve_ms > spec.reserve_ms {
        return Err(Refusal::invalid("reserve_ms", format!("must be at most the pool's {}", spec.reserve_ms)));
    }
    spec.ttl().check(request.ttl_ms)?;
    if ack < spec.ack {
        return Err(Refusal::invalid("ack", "may ask for more than the pool promises (durable), not for less"));
    }
    Ok((reserve_ms, ack == Ack::Durable))
}

impl Choice {
    fn new(ask: &ClaimAsk, selector: Option<Arc<Selector>>, pools: SmallVec<[u32; 4]>, request: &ClaimRequest) -> Self {
        let nodes = Nodes::new(ask.nodes_required.iter().cloned());
        let preferred = Nodes::new(ask.nodes_preferred.iter().cloned()).within(&nodes);
        let resources = &ask.spec.resources;
        let keeps = !ask.spec.is_empty();
        let wants = Wants {
            selector,
            nodes,
            worker: ask.worker.clone(),
            spec: keeps.then(|| Arc::new(ask.spec.clone())),
            cards: CardFilter::Any,
            gang: None,
            must_match: ask.must_match,
        };
        let wants = Arc::new(wants);
        let cards: SmallVec<[CardFilter; 2]> = match &resources.gpu {
            _ if ask.worker.is_some() => SmallVec::from_iter([CardFilter::Any]),
            None if !resources.is_empty() => SmallVec::from_iter([CardFilter::Without, CardFilter::Any]),
            Some(gpu) if gpu.models.len() > 1 => gpu.models.iter().cloned().map(CardFilter::Only).collect(),
            _ => SmallVec::from_iter([CardFilter::Any]),
        };
        let mut stages = SmallVec::new();
        for cards in cards {
            let far = match cards {
                CardFilter::Any => Arc::clone(&wants),
                cards => Arc::new(Wants { cards, ..(*wants).clone() }),
            };
            if !preferred.is_empty() {
                let wants = Arc::new(Wants { nodes: preferred.clone(), ..(*far).clone() });
                stages.push(Stage { wants, near: true });
            }
            stages.push(Stage { wants: far, near: false });
        }
        Self {
            wants,
            stages,
            stage: 0,
            pools,
            at: 0,
            reserve_ms: request.reserve_ms,
            ack: request.ack,
            near_only: ask.preferred_wait_ms > 0,
            seen: Seen::default(),
        }
    }

    /// It is for a gang: what is granted is provisional.
    fn join(&mut self, gang: GangRef) {
        let joined = |wants: &mut Arc<Wants>| *wants = Arc::new(Wants { gang: Some(gang), ..(**wants).clone() });
        joined(&mut self.wants);
        self.stages.iter_mut().for_each(|stage| joined(&mut stage.wants));
        self.ack = Some(Ack::Durable);
    }

    /// Its way will begin anew.
    pub fn rest(&mut self, near_only: bool) {
        (self.at, self.stage, self.near_only, self.seen) = (0, 0, near_only, Seen::default());
    }

    /// Goes on to the first stage, from the present one on, of which the pool has workers. False: there is none.
    fn skip_idle(&mut self, pool: &Pool) -> bool {
        let (rest, near_only) = (self.stages.iter().skip(self.stage), self.near_only);
        self.stage += rest.take_while(|stage| (near_only && !stage.near) || stage.is_idle_in(pool)).count();
        self.stage < self.stages.len()
    }

    /// The next pool that is still there.
    fn next_pool<'a>(&mut self, pools: &'a PoolMap) -> Option<&'a Arc<Pool>> {
        loop {
            self.at += 1;
            if let Some(pool) = pools.at(*self.pools.get(self.at)?) {
                return Some(pool);
            }
        }
    }

    /// What all the pools together said, every shard that could fit having been asked.
    fn refusal(&self, pools: &PoolMap) -> Refusal {
        let candidates = || self.pools.iter().filter_map(|&number| pools.at(number));
        let Seen { busy, node, small } = self.seen;
        if self.wants.worker.is_some() {
            return match (node, busy, small) {
                (true, ..) => Refusal::Exhausted(Exhausted::NodeLocality),
                (_, true, _) => Refusal::Exhausted(Exhausted::Pool),
                (_, _, true) => Refusal::Unsatisfiable,
                _ => Refusal::NotFound(What::Worker),
            };
        }
        if candidates().any(|pool| pool.has_silent_shard()) {
            return Refusal::Unavailable(Unavailable::Loading);
        }
        if candidates().next().is_none() {
            return Refusal::NotFound(What::Pool);
        }
        let nothing = Resources::default();
        let asked = self.wants.spec.as_ref().map_or(&nothing, |spec| &spec.resources);
        let is_large = |capacity: &Capacity| self.wants.is_large(capacity);
        if !candidates().any(|pool| pool.board.capacities().may_have(asked, is_large)) {
            return Refusal::Unsatisfiable;
        }
        Refusal::Exhausted(if node { Exhausted::NodeLocality } else { Exhausted::Pool })
    }
}

impl ClaimItem {
    /// What it asks of a worker, at this point of its way; none: any will do.
    #[must_use]
    pub fn wants(&self) -> Option<&Arc<Wants>> {
        let choice = self.choice.as_ref()?;
        Some(choice.stages.get(choice.stage).map_or(&choice.wants, |stage| &stage.wants))
    }

    /// What it accepts as its own, if its key is held already: preferences do not matter.
    #[must_use]
    pub fn accepts(&self) -> Option<Arc<Wants>> {
        self.choice.as_ref().map(|choice| Arc::clone(&choice.wants))
    }

    /// The numbers of the pools that it may be taken from, in the order in which they are tried.
    #[must_use]
    pub fn candidates(&self) -> SmallVec<[u32; 4]> {
        self.choice.as_ref().map_or_else(|| SmallVec::from_slice(&[self.pool]), |choice| choice.pools.clone())
    }

    /// Whether it may be taken from this pool.
    #[must_use]
    pub fn may_use(&self, pool: u32) -> bool {
        self.pool == pool || self.choice.as_ref().is_some_and(|choice| choice.pools.contains(&pool))
    }

    /// Whether it is for a gang.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.choice.as_ref().is_some_and(|choice| choice.wants.gang.is_some())
    }

    /// The only worker that it wants, if there is one.
    #[must_use]
    pub fn only_worker(&self) -> Option<&WorkerId> {
        self.choice.as_ref()?.wants.worker.as_ref()
    }

    /// A shard had no worker for it.
    pub fn note(&mut self, why: NoFit) {
        let near = |choice: &Choice| choice.stages.get(choice.stage).is_some_and(|stage| stage.near);
        if let Some(choice) = self.choice.as_mut().filter(|choice| !near(choice)) {
            match why {
                NoFit::Busy => choice.seen.busy = true,
                NoFit::Node => choice.seen.node = true,
                NoFit::Small => choice.seen.small = true,
                NoFit::Unknown => {}
            }
        }
    }

    /// Every shard that it could ask said no: it goes on with what it likes less. False: there is nothing left, or not in the
    /// pool in whose line it has its turn.
    pub fn fall_back(&mut self, pools: &PoolMap) -> bool {
        let Some(choice) = &mut self.choice else { return false };
        choice.stage += 1;
        if pools.at(self.pool).is_some_and(|pool| choice.skip_idle(pool)) {
            self.visited = Visited::default();
            return true;
        }
        self.turn().is_none() && self.leave_pool(pools)
    }

    /// It goes on to the next pool that may have something for it. False: there is none.
    pub fn leave_pool(&mut self, pools: &PoolMap) -> bool {
        let Some(choice) = &mut self.choice else { return false };
        loop {
            let Some(pool) = choice.next_pool(pools) else { return false };
            choice.stage = 0;
            if choice.skip_idle(pool) {
                self.pool = pool.number;
                self.take_terms(&pool.spec.load());
                self.visited = Visited::default();
                return true;
            }
        }
    }

    fn take_terms(&mut self, spec: &PoolSpec) {
        if let Some(choice) = &self.choice {
            self.reserve_ms = choice.reserve_ms.unwrap_or(spec.reserve_ms);
            self.durable = choice.ack.unwrap_or(spec.ack) == Ack::Durable;
        }
    }

    /// Its way begins anew in this pool, which is one of those that it may use.
    pub fn enter(&mut self, pool: &Pool, now_ms: Millis) {
        let near_only = self.wait.as_ref().is_some_and(|wait| wait.near_until_ms > now_ms);
        (self.pool, self.visited, self.unasked) = (pool.number, Visited::default(), None);
        if let Some(choice) = &mut self.choice {
            choice.at = choice.pools.iter().position(|&number| number == pool.number).unwrap_or(0);
            (choice.stage, choice.near_only, choice.seen) = (0, near_only, Seen::default());
            choice.skip_idle(pool);
        }
        self.take_terms(&pool.spec.load());
    }

    /// Whether only its preferred nodes will do, as yet.
    #[must_use]
    pub fn is_near_only(&self) -> bool {
        self.choice.as_ref().is_some_and(|choice| choice.near_only)
    }

    /// Whether there is nothing left that it could ask for in its pool.
    #[must_use]
    pub fn is_through(&self) -> bool {
        self.choice.as_ref().is_some_and(|choice| choice.stage >= choice.stages.len())
    }

    /// All that it asks for in its pool, one after the other.
    pub fn all_wants(&self) -> impl Iterator<Item = &Wants> {
        let choice = self.choice.iter();
        choice.flat_map(|choice| {
            let allowed = |stage: &&Stage| stage.near || !choice.near_only;
            choice.stages.iter().filter(allowed).map(|stage| &*stage.wants)
        })
    }

    /// What it keeps of its request, if anything.
    #[must_use]
    pub fn spec(&self) -> Option<&Arc<ClaimSpec>> {
        self.choice.as_ref()?.wants.spec.as_ref()
    }

    /// A hash of what it asks for: claims with the same find room, or do not, alike. `quota`: room in its tenant's quota.
    #[must_use]
    pub fn shape(&self, quota: bool) -> u64 {
        let mut hash = std::hash::DefaultHasher::new();
        if quota {
            Usage::of_claim(self.spec().map(|spec| &**spec)).each().hash(&mut hash);
            return hash.finish();
        }
        // A worker with an end of life may do for a short claim and not for a long one.
        (self.reserve_ms, self.ttl_ms).hash(&mut hash);
        if let Some(choice) = &self.choice {
            let wants = &choice.wants;
            // Selectors are kept by their text, so equal ones are one.
            wants.selector.as_ref().map(Arc::as_ptr).hash(&mut hash);
            wants.nodes.hash(&mut hash);
            wants.worker.hash(&mut hash);
            wants.spec.as_ref().map(|spec| &spec.resources).hash(&mut hash);
            choice.pools.hash(&mut hash);
            choice.near_only.hash(&mut hash);
            if choice.near_only {
                choice.stages.iter().for_each(|stage| stage.wants.nodes.hash(&mut hash));
            }
        }
        hash.finish()
    }

    /// Why it is refused, nothing being left to ask.
    #[must_use]
    pub fn refusal(&self, pools: &PoolMap) -> Refusal {
        if let Some(why) = self.unasked {
            return Refusal::Unavailable(why);
        }
        match (&self.choice, pools.at(self.pool)) {
            (Some(choice), _) => choice.refusal(pools),
            (None, None) => Refusal::NotFound(What::Pool),
            (None, Some(pool)) if pool.has_silent_shard() => Refusal::Unavailable(Unavailable::Loading),
            (None, Some(_)) => Refusal::Exhausted(Exhausted::Pool),
        }
    }
}
