//! Metrics of each server of the store.

use parking_lot::Mutex;
use std::sync::LazyLock;

use metrics::Counter;

use super::{NODE_BYTES, NODE_WRITES};
use crate::collections::HashMap;

/// Maximum number of servers that are counted by name.
const NODES_MAX: usize = 64;

/// Handles of the metrics of one server.
#[derive(Clone)]
pub struct NodeMetrics {
    /// Handle of the counter `hotpool_store_node_writes_total`.
    pub writes: Counter,
    /// Handle of the counter `hotpool_store_node_bytes_total`.
    pub bytes: Counter,
}

impl NodeMetrics {
    /// Returns the handles of the server at this address.
    #[must_use]
    pub fn new(node: &str) -> Self {
        static KNOWN: LazyLock<Mutex<HashMap<String, NodeMetrics>>> = LazyLock::new(Mutex::default);
        let mut known = KNOWN.lock();
        let name = if known.contains_key(node) || known.len() < NODES_MAX { node } else { "other" };
        let create = || Self {
            writes: metrics::counter!(NODE_WRITES, "node" => name.to_owned()),
            bytes: metrics::counter!(NODE_BYTES, "node" => name.to_owned()),
        };
        known.entry(name.to_owned()).or_insert_with(create).clone()
    }
}
