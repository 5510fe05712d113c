//! What a claim asks of a worker beyond being idle: pure data, made once per request and shared by all shards that it
//! visits.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::model::GangRef;
use crate::model::label_selector::LabelSelector;
use crate::model::{ClaimSpec, ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec};

/// What a worker must be for a claim to take it.
#[derive(Debug, Clone, Default)]
pub struct PlacementConstraints {
    /// Its labels pass this.
    pub selector: Option<Arc<LabelSelector>>,
    /// It is on one of these nodes; empty: on any, or on none.
    pub nodes: NodeSet,
    /// It is this very one.
    pub worker: Option<WorkerId>,
    /// What the claim keeps of its request; its worker has at least these resources.
    pub spec: Option<Arc<ClaimSpec>>,
    /// Which workers it prefers by their cards: of those that would do, only these.
    pub gpus: GpuFilter,
    /// It is granted as a member of this gang only.
    pub gang: Option<GangRef>,
    /// A claim that is held already is this request's only if it asked for the same resources.
    pub require_same_resources: bool,
}

/// Which workers a claim looks at, by their cards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GpuFilter {
    /// Whatever its resources ask for.
    #[default]
    Any,
    /// Those without cards.
    NoGpus,
    /// Those with cards of this model.
    Model(Arc<str>),
}

impl GpuFilter {
    fn passes(&self, capacity: &WorkerCapacity) -> bool {
        match self {
            Self::Any => true,
            Self::NoGpus => capacity.gpu.is_none(),
            Self::Model(model) => capacity.gpu.as_ref().is_some_and(|gpu| gpu.model == *model),
        }
    }
}

impl PlacementConstraints {
    /// Whether any idle worker will do.
    #[must_use]
    pub fn is_unconstrained(&self) -> bool {
        self.selector.is_none()
            && self.nodes.is_empty()
            && self.worker.is_none()
            && self.gpus == GpuFilter::Any
            && !self.needs_resources()
    }

    /// Whether it asks for resources.
    #[must_use]
    pub fn needs_resources(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| !spec.resources.is_empty())
    }

    /// Whether the worker may hold the claim, room aside: it is one of those that were asked for.
    #[must_use]
    pub fn allows(&self, worker: &WorkerSpec) -> bool {
        self.nodes.allows(worker.node.as_deref()) && self.allows_ignoring_node(worker)
    }

    /// Whether the worker, if idle, may be taken.
    #[must_use]
    pub fn fits(&self, worker: &WorkerSpec) -> bool {
        self.is_large_enough(&worker.capacity) && self.allows(worker)
    }

    /// The same, wherever it is.
    #[must_use]
    pub fn fits_ignoring_node(&self, worker: &WorkerSpec) -> bool {
        self.is_large_enough(&worker.capacity) && self.allows_ignoring_node(worker)
    }

    /// Whether a claim that keeps this of its request may be this request's.
    #[must_use]
    pub fn matches(&self, held: Option<&ClaimSpec>) -> bool {
        let nothing = ResourceRequirements::default();
        let held = held.map_or(&nothing, |spec| &spec.resources);
        !self.require_same_resources || *held == *self.spec.as_deref().map_or(&nothing, |spec| &spec.resources)
    }

    /// Whether a worker of this capacity is large enough.
    #[must_use]
    pub fn is_large_enough(&self, capacity: &WorkerCapacity) -> bool {
        self.gpus.passes(capacity) && self.spec.as_ref().is_none_or(|spec| spec.resources.fits_in(capacity))
    }

    /// The same, wherever it is.
    pub(in crate::engine) fn allows_ignoring_node(&self, worker: &WorkerSpec) -> bool {
        self.worker.as_ref().is_none_or(|id| *id == worker.id)
            && self.selector.as_ref().is_none_or(|selector| selector.matches(&worker.labels))
    }
}

/// A set of nodes, by hash, so that most workers are told apart without a look at a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NodeSet(Box<[(u64, Arc<str>)]>);

impl NodeSet {
    /// Of these names.
    pub fn new(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut nodes: Vec<_> = names.into_iter().map(|name| (node_hash(Some(&name)), name)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Self(nodes.into())
    }

    /// Whether it restricts nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, name)| &**name)
    }

    /// Whether a worker on this node passes.
    #[must_use]
    pub fn allows(&self, node: Option<&str>) -> bool {
        self.0.is_empty() || node.is_some_and(|node| self.0.iter().any(|(_, name)| **name == *node))
    }

    /// False only if no worker on a node with this hash passes.
    pub(in crate::engine) fn may_allow(&self, hash: u64) -> bool {
        self.0.is_empty() || self.0.binary_search_by_key(&hash, |&(known, _)| known).is_ok()
    }

    /// Those of them that are also in `other`; all, if `other` restricts nothing.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.iter().filter(|(_, name)| other.allows(Some(name))).cloned().collect())
    }
}

/// Hash of a worker's node; 0 for none.
pub(in crate::engine) fn node_hash(node: Option<&str>) -> u64 {
    node.map_or(0, |node| xxh3_64(node.as_bytes()).max(1))
}

/// Why no worker of the shard was taken by a claim that asked for more than room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacementFailure {
    /// None that it allows is idle and large enough.
    Busy,
    /// One is idle and large enough, but on another node.
    OtherNode,
    /// The one that it names is here and too small.
    TooSmall,
    /// The one that it names is not here.
    UnknownWorker,
}
