//! Constraints of a claim on its worker beyond being idle: pure data, built once per request and shared by all shards
//! that it visits.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::model::GangRef;
use crate::model::label_selector::LabelSelector;
use crate::model::{ClaimSpec, ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec};

/// Constraints that a worker must meet to be claimed.
#[derive(Debug, Clone, Default)]
pub struct PlacementConstraints {
    /// Selector that the worker's labels must match.
    pub selector: Option<Arc<LabelSelector>>,
    /// Nodes of which the worker must be on one; empty: any, or none.
    pub nodes: NodeSet,
    /// Id of the only acceptable worker.
    pub worker: Option<WorkerId>,
    /// Parts of the request that the claim keeps; the worker has at least these resources.
    pub spec: Option<Arc<ClaimSpec>>,
    /// Preference by GPUs: of the fitting workers, only these.
    pub gpus: GpuFilter,
    /// Gang of which the claim is a member.
    pub gang: Option<GangRef>,
    /// True if a live claim of the key must have the same resources to be acquired again.
    pub require_same_resources: bool,
}

/// Filter of workers by their GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GpuFilter {
    /// Accepts whatever the resources require.
    #[default]
    Any,
    /// Accepts workers without GPUs only.
    NoGpus,
    /// Accepts workers with GPUs of this model only.
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

/// Treatment of the allowed nodes in a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum NodeFilter {
    Enforced,
    Ignored,
}

impl PlacementConstraints {
    /// Whether every idle worker is acceptable.
    #[must_use]
    pub fn is_unconstrained(&self) -> bool {
        self.selector.is_none()
            && self.nodes.is_empty()
            && self.worker.is_none()
            && self.gpus == GpuFilter::Any
            && !self.needs_resources()
    }

    /// Whether resources are required.
    #[must_use]
    pub fn needs_resources(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| !spec.resources.is_empty())
    }

    /// Whether the worker is acceptable apart from its free resources.
    #[must_use]
    pub fn allows(&self, worker: &WorkerSpec) -> bool {
        self.nodes.allows(worker.node.as_deref()) && self.allows_ignoring_node(worker)
    }

    /// Whether the worker, if idle, can be claimed.
    #[must_use]
    pub fn fits(&self, worker: &WorkerSpec) -> bool {
        self.is_large_enough(&worker.capacity) && self.allows(worker)
    }

    /// Whether the worker could be claimed if it were on an acceptable node.
    #[must_use]
    pub fn fits_ignoring_node(&self, worker: &WorkerSpec) -> bool {
        self.is_large_enough(&worker.capacity) && self.allows_ignoring_node(worker)
    }

    /// Whether a live claim with this spec satisfies the request.
    #[must_use]
    pub fn matches(&self, claimed: Option<&ClaimSpec>) -> bool {
        let no_resources = ResourceRequirements::default();
        let claimed = claimed.map_or(&no_resources, |spec| &spec.resources);
        !self.require_same_resources || *claimed == *self.spec.as_deref().map_or(&no_resources, |spec| &spec.resources)
    }

    /// Whether a worker of this capacity is large enough.
    #[must_use]
    pub fn is_large_enough(&self, capacity: &WorkerCapacity) -> bool {
        self.gpus.passes(capacity) && self.spec.as_ref().is_none_or(|spec| spec.resources.fits_in(capacity))
    }

    /// Whether the worker is acceptable apart from its free resources, with or without regard to its node.
    pub(in crate::engine) fn allows_with(&self, node_filter: NodeFilter, worker: &WorkerSpec) -> bool {
        match node_filter {
            NodeFilter::Enforced => self.allows(worker),
            NodeFilter::Ignored => self.allows_ignoring_node(worker),
        }
    }

    /// Whether workers are filtered by the fields that define their class.
    pub(in crate::engine) fn has_class_filter(&self) -> bool {
        self.selector.is_some() || !self.nodes.is_empty()
    }

    /// Whether the worker is acceptable apart from its node and its free resources.
    pub(in crate::engine) fn allows_ignoring_node(&self, worker: &WorkerSpec) -> bool {
        self.worker.as_ref().is_none_or(|id| *id == worker.id)
            && self.selector.as_ref().is_none_or(|selector| selector.matches(&worker.labels))
    }
}

/// Set of nodes with their hashes, so that most workers are excluded without comparing names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NodeSet(Box<[(u64, Arc<str>)]>);

impl NodeSet {
    /// Builds the set of these names.
    pub fn new(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut nodes: Vec<_> = names.into_iter().map(|name| (node_hash(Some(&name)), name)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Self(nodes.into())
    }

    /// Whether the set restricts nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names in the set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, name)| &**name)
    }

    /// Whether a worker on this node is acceptable.
    #[must_use]
    pub fn allows(&self, node: Option<&str>) -> bool {
        self.0.is_empty() || node.is_some_and(|node| self.0.iter().any(|(_, name)| **name == *node))
    }

    /// Whether a node with this hash can be in the set; a false positive is possible.
    pub(in crate::engine) fn may_allow(&self, hash: u64) -> bool {
        self.0.is_empty() || self.0.binary_search_by_key(&hash, |&(member, _)| member).is_ok()
    }

    /// Nodes that are also in `other`; all, if `other` restricts nothing.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.iter().filter(|(_, name)| other.allows(Some(name))).cloned().collect())
    }
}

/// Hash of a worker's node; 0 for none.
pub(in crate::engine) fn node_hash(node: Option<&str>) -> u64 {
    node.map_or(0, |node| xxh3_64(node.as_bytes()).max(1))
}

/// Reason why no worker of a shard meets the constraints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlacementFailure {
    /// No acceptable worker is idle and large enough.
    Busy,
    /// Only workers on other nodes are idle and large enough.
    OtherNode,
    /// The requested worker is too small.
    TooSmall,
    /// The requested worker does not exist here.
    UnknownWorker,
}
