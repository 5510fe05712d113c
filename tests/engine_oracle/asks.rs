//! What claims of the model ask for, evaluated without any part of the engine: by the zone, the node and the slots that
//! the number of a card stands for.

use std::sync::Arc;

use hotpool::engine::{GpuFilter, NodeSet, PlacementConstraints};
use hotpool::model::label_selector::LabelSelector;
use hotpool::model::{ClaimSpec, Labels, ResourceRequirements, WorkerCapacity, WorkerId, WorkerSpec};
use proptest::prelude::*;

/// Cards differ in slots (3), zone (3) and node (3).
pub const CARDS: u8 = 27;

pub const fn slots(card: u8) -> u8 {
    card % 3
}

pub fn zone(card: u8) -> Option<&'static str> {
    [None, Some("a"), Some("b")][usize::from(card / 3 % 3)]
}

pub fn node(card: u8) -> Option<&'static str> {
    [None, Some("n1"), Some("n2")][usize::from(card / 9 % 3)]
}

/// What a registrar would say of a worker with this card.
pub fn spec(id: &str, incarnation: u64, card: u8) -> WorkerSpec {
    let capacity = WorkerCapacity { slots: slots(card).into(), ..WorkerCapacity::default() };
    let labels = zone(card).map(|zone| ("zone".to_owned(), zone.to_owned())).into_iter().collect();
    let node = node(card).map(Arc::from);
    WorkerSpec { incarnation, capacity, labels, node, ..WorkerSpec::with_id(WorkerId::new(id).unwrap()) }
}

/// The card of a worker of which this is said, whenever its life ends.
pub fn card(spec: &WorkerSpec) -> u8 {
    let said =
        |card| WorkerSpec { expires_at_ms: spec.expires_at_ms, ..self::spec(spec.id.as_str(), spec.incarnation, card) };
    (0..CARDS).find(|&card| said(card) == *spec).expect("one of the cards")
}

type Passes = fn(Option<&str>) -> bool;

/// Selectors, each with what it says.
const SELECTORS: &[(&str, Passes)] = &[
    ("zone=a", |zone| zone == Some("a")),
    ("zone!=a", |zone| zone != Some("a")),
    ("zone in (a, b)", |zone| zone.is_some()),
    ("zone notin (b)", |zone| zone != Some("b")),
    ("zone", |zone| zone.is_some()),
    ("!zone", |zone| zone.is_none()),
    ("zone=a,zone=b", |_| false),
];

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ask {
    selector: Option<usize>,
    nodes: Vec<&'static str>,
    worker: Option<String>,
    pub slots: u8,
    pub must_match: bool,
}

impl Ask {
    /// One for a part of the workers: nearly all, over a few numbers.
    pub fn of_zone(at: usize) -> Self {
        Self { selector: [None, Some(0), Some(2), Some(5)][at % 4], ..Self::default() }
    }

    pub fn is_for_any(&self) -> bool {
        self.selector.is_none() && self.nodes.is_empty() && self.worker.is_none() && self.slots == 0
    }

    /// As the engine is told.
    pub fn wants(&self) -> Arc<PlacementConstraints> {
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
            require_same_resources: self.must_match,
        })
    }

    pub fn worker(&self) -> Option<&String> {
        self.worker.as_ref()
    }

    pub fn has_nodes(&self) -> bool {
        !self.nodes.is_empty()
    }

    pub fn is_small(&self, card: u8) -> bool {
        slots(card) < self.slots
    }

    pub fn on_node(&self, card: u8) -> bool {
        self.nodes.is_empty() || node(card).is_some_and(|node| self.nodes.contains(&node))
    }

    pub fn labelled(&self, card: u8) -> bool {
        self.selector.is_none_or(|at| SELECTORS[at].1(zone(card)))
    }

    /// Whether an idle worker may be taken.
    pub fn fits(&self, id: &str, card: u8) -> bool {
        !self.is_small(card) && self.allows(id, card)
    }

    /// Whether a claim on the worker may stay.
    pub fn allows(&self, id: &str, card: u8) -> bool {
        self.worker.as_ref().is_none_or(|only| only == id) && self.on_node(card) && self.labelled(card)
    }
}

/// Any: often with one part only, seldom with all.
pub fn ask() -> impl Strategy<Value = Ask> {
    let selector = prop_oneof![2 => Just(None), 3 => (0..SELECTORS.len()).prop_map(Some)];
    let nodes = prop_oneof![
        4 => Just(vec![]),
        1 => Just(vec!["n1"]),
        1 => Just(vec!["n1", "n2"]),
        1 => Just(vec!["n3"]),
    ];
    let worker = prop_oneof![24 => Just(None), 1 => id().prop_map(Some)];
    let any = (selector, nodes, worker, prop_oneof![3 => Just(0u8), 1 => 1..4u8], any::<bool>())
        .prop_map(|(selector, nodes, worker, slots, must_match)| Ask { selector, nodes, worker, slots, must_match });
    let named = (id(), 0..4u8).prop_map(|(id, slots)| Ask { worker: Some(id), slots, ..Ask::default() });
    prop_oneof![5 => any, 1 => named]
}

/// Mostly of the few that much befalls.
fn id() -> impl Strategy<Value = String> {
    prop_oneof![2 => 0..5u8, 1 => 0..24u8].prop_map(|id| format!("w{id}"))
}

/// One for any worker that was asked for with this size.
pub fn size() -> impl Strategy<Value = Ask> {
    (0..4u8).prop_map(|slots| Ask { slots, must_match: true, ..Ask::default() })
}
