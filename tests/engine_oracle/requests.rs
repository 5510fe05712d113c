//! Requests of claims in the model, evaluated without any part of the engine: by the zone, the node and the slots
//! that a worker's kind stands for.

use std::sync::Arc;

use hotpool::engine::{GpuFilter, NodeSet, PlacementConstraints};
use hotpool::model::label_selector::LabelSelector;
use hotpool::model::{ClaimSpec, Labels, ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec};
use proptest::prelude::*;

/// Number of kinds: of slots (3), zone (3) and node (3).
pub const KINDS: u8 = 27;

pub const fn slots(kind: u8) -> u8 {
    kind % 3
}

pub fn zone(kind: u8) -> Option<&'static str> {
    [None, Some("a"), Some("b")][usize::from(kind / 3 % 3)]
}

pub fn node(kind: u8) -> Option<&'static str> {
    [None, Some("n1"), Some("n2")][usize::from(kind / 9 % 3)]
}

/// Specification of a worker of this kind.
pub fn spec(id: &str, incarnation: u64, kind: u8) -> WorkerSpec {
    let capacity = WorkerCapacity { slots: slots(kind).into(), ..WorkerCapacity::default() };
    let labels = zone(kind).map(|zone| ("zone".to_owned(), zone.to_owned())).into_iter().collect();
    let node = node(kind).map(Arc::from);
    WorkerSpec { incarnation, capacity, labels, node, ..WorkerSpec::with_id(WorkerId::new(id).unwrap()) }
}

/// Kind of a worker with this specification, whatever its end of life.
pub fn kind(spec: &WorkerSpec) -> u8 {
    let specification =
        |kind| WorkerSpec { expires_at_ms: spec.expires_at_ms, ..self::spec(spec.id.as_str(), spec.incarnation, kind) };
    (0..KINDS).find(|&kind| specification(kind) == *spec).expect("the specification of a kind")
}

type ZonePredicate = fn(Option<&str>) -> bool;

/// Selectors, each with its meaning.
const SELECTORS: &[(&str, ZonePredicate)] = &[
    ("zone=a", |zone| zone == Some("a")),
    ("zone!=a", |zone| zone != Some("a")),
    ("zone in (a, b)", |zone| zone.is_some()),
    ("zone notin (b)", |zone| zone != Some("b")),
    ("zone", |zone| zone.is_some()),
    ("!zone", |zone| zone.is_none()),
    ("zone=a,zone=b", |_| false),
];

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    selector: Option<usize>,
    nodes: Vec<&'static str>,
    worker: Option<String>,
    pub slots: u8,
    pub require_same_resources: bool,
}

impl Request {
    /// Request for one zone, over a few numbers nearly all workers.
    pub fn for_zone(at: usize) -> Self {
        Self { selector: [None, Some(0), Some(2), Some(5)][at % 4], ..Self::default() }
    }

    pub fn is_unconstrained(&self) -> bool {
        self.selector.is_none() && self.nodes.is_empty() && self.worker.is_none() && self.slots == 0
    }

    /// Constraints in the form of the engine.
    pub fn constraints(&self) -> Arc<PlacementConstraints> {
        let label = ("slots".to_owned(), self.slots.to_string());
        let resources = ResourceRequirements { slots: self.slots.into(), ..ResourceRequirements::default() };
        Arc::new(PlacementConstraints {
            selector: self.selector.map(|at| Arc::new(LabelSelector::parse(SELECTORS[at].0).unwrap())),
            nodes: NodeSet::new(self.nodes.iter().map(|&node| node.into())),
            worker: self.worker.as_ref().map(|id| WorkerId::new(id).unwrap()),
            spec: (self.slots > 0)
                .then(|| Arc::new(ClaimSpec { labels: Labels::from([label]), resources, ..ClaimSpec::default() })),
            gpus: GpuFilter::Any,
            gang: None,
            require_same_resources: self.require_same_resources,
        })
    }

    pub fn worker(&self) -> Option<&String> {
        self.worker.as_ref()
    }

    pub fn has_nodes(&self) -> bool {
        !self.nodes.is_empty()
    }

    pub fn is_too_small(&self, kind: u8) -> bool {
        slots(kind) < self.slots
    }

    pub fn on_node(&self, kind: u8) -> bool {
        self.nodes.is_empty() || node(kind).is_some_and(|node| self.nodes.contains(&node))
    }

    pub fn matches_labels(&self, kind: u8) -> bool {
        self.selector.is_none_or(|at| SELECTORS[at].1(zone(kind)))
    }

    /// Whether an idle worker may be granted.
    pub fn fits(&self, id: &str, kind: u8) -> bool {
        !self.is_too_small(kind) && self.allows(id, kind)
    }

    /// Whether a claim on the worker may stay.
    pub fn allows(&self, id: &str, kind: u8) -> bool {
        self.worker.as_ref().is_none_or(|only| only == id) && self.on_node(kind) && self.matches_labels(kind)
    }
}

/// Requests of all sorts: often with one constraint only, rarely with all.
pub fn request() -> impl Strategy<Value = Request> {
    let selector = prop_oneof![2 => Just(None), 3 => (0..SELECTORS.len()).prop_map(Some)];
    let nodes = prop_oneof![
        4 => Just(vec![]),
        1 => Just(vec!["n1"]),
        1 => Just(vec!["n1", "n2"]),
        1 => Just(vec!["n3"]),
    ];
    let worker = prop_oneof![24 => Just(None), 1 => id().prop_map(Some)];
    let any = (selector, nodes, worker, prop_oneof![3 => Just(0u8), 1 => 1..4u8], any::<bool>()).prop_map(
        |(selector, nodes, worker, slots, require_same_resources)| Request {
            selector,
            nodes,
            worker,
            slots,
            require_same_resources,
        },
    );
    let reports = (id(), 0..4u8).prop_map(|(id, slots)| Request { worker: Some(id), slots, ..Request::default() });
    prop_oneof![5 => any, 1 => reports]
}

/// Mostly one of the few workers that get many events.
fn id() -> impl Strategy<Value = String> {
    prop_oneof![2 => 0..5u8, 1 => 0..24u8].prop_map(|id| format!("w{id}"))
}

/// Request for any worker, with this number of slots.
pub fn size() -> impl Strategy<Value = Request> {
    (0..4u8).prop_map(|slots| Request { slots, require_same_resources: true, ..Request::default() })
}
