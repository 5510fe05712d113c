//! What is counted per server of the store.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::LazyLock;

use metrics::Counter;

use super::{NODE_BYTES, NODE_STEPS};

/// Servers that are counted by name.
const NODES_MAX: usize = 64;

/// Handles of one server's metrics.
#[derive(Clone)]
pub struct NodeMetrics {
    /// `hotpool_store_node_writes_total`.
    pub steps: Counter,
    /// `hotpool_store_node_bytes_total`.
    pub bytes: Counter,
}

impl NodeMetrics {
    /// Of the server at this address.
    #[must_use]
    pub fn new(node: &str) -> Self {
        static KNOWN: LazyLock<Mutex<HashMap<String, NodeMetrics>>> = LazyLock::new(Mutex::default);
        let mut known = KNOWN.lock();
        let name = if known.contains_key(node) || known.len() < NODES_MAX { node } else { "other" };
        let make = || Self {
            steps: metrics::counter!(NODE_STEPS, "node" => name.to_owned()),
            bytes: metrics::counter!(NODE_BYTES, "node" => name.to_owned()),
        };
        known.entry(name.to_owned()).or_insert_with(make).clone()
    }
}
