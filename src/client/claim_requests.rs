//! Requests for claims: candidate pools, constraints, and how long to wait.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use crate::model::{AckLevel, ClaimId, Labels, Millis, PoolName, ResourceRequirements, is_zero};

/// Request for a worker, or in a shared pool for a part of one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewClaim<'a> {
    /// Namespace of the pools and of the key.
    pub namespace: Cow<'a, str>,
    /// Pools that may serve the claim.
    #[serde(flatten)]
    pub pools: CandidatePools<'a>,
    /// Key that identifies the claim; `None` for one that the service generates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Cow<'a, str>>,
    /// Tenant of the claim; `None` for `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Cow<'a, str>>,
    /// Affinity: prefers the idle worker whose last claim had the same; `None` for the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Cow<'a, str>>,
    /// Time in milliseconds within which the claim must be confirmed; 0 makes it active at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve_ms: Option<Millis>,
    /// Resources that the worker must have, or that the claim holds in a shared pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Label selector for workers, such as `zone=a, !spot`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Cow<'a, str>>,
    /// Nodes that the worker must or should be on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeSelection>,
    /// Id of the one worker that will do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<Cow<'a, str>>,
    /// Class that a pool must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Cow<'a, str>>,
    /// Time in milliseconds without a renewal after which an active claim ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<Millis>,
    /// Acknowledgement stronger than the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack: Option<AckLevel>,
    /// True to fail if the key holds a claim with other resources.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub must_match: bool,
    /// Labels that are shown with the claim.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Time in milliseconds to wait for capacity; the deadline of the call grows by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<Millis>,
    /// Priority among waiting claims, 0 to 1000, the highest first.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: u64,
    /// True if a claim with a higher priority may evict this one, in a pool that allows it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub preemptible: bool,
}

/// Pools that may serve a claim, all of its namespace.
#[derive(Debug, Clone, Serialize)]
pub enum CandidatePools<'a> {
    /// Name of the one pool.
    #[serde(rename = "pool")]
    Single(Cow<'a, str>),
    /// Names of several pools in order of preference.
    #[serde(rename = "pools")]
    Ordered(Vec<Cow<'a, str>>),
    /// Selector over the labels of pools.
    #[serde(rename = "pool_selector")]
    Selected(Cow<'a, str>),
}

impl Default for CandidatePools<'_> {
    fn default() -> Self {
        Self::Ordered(Vec::new())
    }
}

/// Nodes to use for a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NodeSelection {
    /// Nodes of which the worker must be on one; empty for any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
    /// Nodes to try first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preferred: Vec<String>,
    /// Nodes to wait for before any other is used, instead of `preferred`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_then_wait: Option<PreferredNodes>,
}

/// Preferred nodes, and the wait for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PreferredNodes {
    /// Nodes to wait for.
    pub nodes: Vec<String>,
    /// Time in milliseconds until other nodes are used.
    pub ms: Millis,
}

impl<'a> NewClaim<'a> {
    /// Requests a worker of `pool` for `id`. The pool's namespace is that of the claim.
    #[must_use]
    pub fn new(id: &'a ClaimId, pool: &'a PoolName) -> Self {
        Self {
            namespace: id.namespace().into(),
            pools: CandidatePools::Single(pool.pool().into()),
            key: Some(id.key().into()),
            tenant: Some(id.tenant().into()),
            ..Self::default()
        }
    }

    /// Returns how long the service may hold back the answer.
    pub(super) fn wait(&self) -> Duration {
        let node_ms = self.node.as_ref().and_then(|node| node.preferred_then_wait.as_ref()).map(|nodes| nodes.ms);
        Duration::from_millis(self.wait_ms.max(node_ms).unwrap_or_default())
    }
}

/// Relation between the claims of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimBatchMode {
    /// Claims succeed or fail one by one.
    Independent,
    /// Claims succeed together or not at all: a gang.
    AllOrNothing,
}
