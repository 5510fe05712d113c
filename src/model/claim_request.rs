//! Requests for claims and their constraints, and checks of their limits.

use std::sync::Arc;

use crate::limits;
use crate::model::request_error::RequestError;
use crate::model::{AckLevel, ClaimId, ClaimSpec, Millis, PoolName, WorkerId, affinity_hash, check_labels, check_name};

/// Request for one worker.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Identity of the claim to create.
    pub id: ClaimId,
    /// Pools that it may use.
    pub pools: PoolChoice,
    /// Hash of the affinity string ([`affinity_hash`]); by default that of the key.
    pub affinity: u64,
    /// Time for which the claim may stay unconfirmed, in milliseconds: at most the limit of every pool that it may
    /// use; by default that of the pool that grants it. 0: active at once.
    pub reserve_ms: Option<u64>,
    /// Time for which it may stay active without a renewal, in milliseconds: at most the limit of every pool that it
    /// may use; by default that of the pool that grants it, and without one as long as its worker lives.
    pub ttl_ms: Option<u64>,
    /// Stronger acknowledgement than the pool's; a weaker one is rejected.
    pub ack: Option<AckLevel>,
    /// Time for which it waits for capacity, in milliseconds; 0: not at all.
    pub wait_ms: u64,
    /// Further constraints; none: any worker will do.
    pub constraints: Option<Box<ClaimConstraints>>,
}

impl ClaimRequest {
    /// Creates a request for any worker, with the defaults of the pool.
    #[must_use]
    pub fn new(id: ClaimId, pools: impl Into<PoolChoice>) -> Self {
        let affinity = affinity_hash(id.key());
        Self {
            id,
            pools: pools.into(),
            affinity,
            reserve_ms: None,
            ttl_ms: None,
            ack: None,
            wait_ms: 0,
            constraints: None,
        }
    }

    /// Longest time for which it waits, for preferred nodes or for any, in milliseconds; 0: not at all.
    #[must_use]
    pub fn max_wait_ms(&self) -> Millis {
        self.wait_ms.max(self.constraints.as_ref().map_or(0, |constraints| constraints.preferred_wait_ms))
    }
}

/// Pools that may grant a claim, all in the claim's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolChoice {
    /// Single pool, given by name.
    One(PoolName),
    /// First of these with capacity, in this order: 1 to [`limits::CLAIM_POOLS_MAX`], without duplicates.
    Listed(Vec<PoolName>),
    /// First with capacity among those whose labels match this selector, in the order of their names.
    Selected(String),
}

impl From<PoolName> for PoolChoice {
    fn from(name: PoolName) -> Self {
        Self::One(name)
    }
}

impl PoolChoice {
    /// First pool that is named, if any is.
    #[must_use]
    pub fn first(&self) -> Option<&PoolName> {
        match self {
            Self::One(name) => Some(name),
            Self::Listed(names) => names.first(),
            Self::Selected(_) => None,
        }
    }

    fn check(&self) -> Result<(), RequestError> {
        let Self::Listed(names) = self else { return Ok(()) };
        if names.is_empty() || names.len() > limits::CLAIM_POOLS_MAX {
            let message = format!("must be 1 to {} pools, got {}", limits::CLAIM_POOLS_MAX, names.len());
            return Err(RequestError::invalid("pools", message));
        }
        match (0..names.len()).find(|&i| names[..i].contains(&names[i])) {
            Some(duplicate) => Err(RequestError::invalid(format!("pools[{duplicate}]"), "is given twice")),
            None => Ok(()),
        }
    }
}

/// Constraints of a claim on its worker and its pool. All of them must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaimConstraints {
    /// Selector that the worker's labels must match.
    pub selector: Option<String>,
    /// Nodes of which the worker must be on one; empty: no restriction.
    pub nodes_required: Vec<Arc<str>>,
    /// Nodes whose workers come before any other; empty: no preference.
    pub nodes_preferred: Vec<Arc<str>>,
    /// Id of the only acceptable worker.
    pub worker: Option<WorkerId>,
    /// Class that the pool must have.
    pub class: Option<String>,
    /// Labels of the claim, and the resources that its worker must have at least.
    pub spec: ClaimSpec,
    /// Time for which the claim waits for the preferred nodes only, in milliseconds.
    pub preferred_wait_ms: u64,
    /// True if a live claim of the key must have the same resources to be acquired again.
    pub require_same_resources: bool,
}

impl ClaimConstraints {
    /// Checks every part against its limit; selectors are checked when they are parsed.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self, pools: &PoolChoice) -> Result<(), RequestError> {
        pools.check()?;
        for (field, nodes) in [("node.required", &self.nodes_required), ("node.preferred", &self.nodes_preferred)] {
            if nodes.len() > limits::CLAIM_NODES_MAX {
                let message = format!("must be at most {} nodes, got {}", limits::CLAIM_NODES_MAX, nodes.len());
                return Err(RequestError::invalid(field, message));
            }
            for node in nodes {
                check_name(field, node)?;
            }
        }
        if self.preferred_wait_ms > limits::WAIT_MS_MAX {
            let message = format!("must be at most {}", limits::WAIT_MS_MAX);
            return Err(RequestError::invalid("node.preferred_then_wait.ms", message));
        }
        if self.spec.priority > limits::PRIORITY_MAX {
            let message = format!("must be 0 to {}, got {}", limits::PRIORITY_MAX, self.spec.priority);
            return Err(RequestError::invalid("priority", message));
        }
        if let Some(class) = &self.class {
            check_name("class", class)?;
        }
        self.spec.resources.check("resources")?;
        check_labels(&self.spec.labels)?;
        let bytes: usize = self.spec.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > limits::CLAIM_LABELS_BYTES_MAX {
            let message = format!(
                "keys and values together must be at most {} bytes, got {bytes}",
                limits::CLAIM_LABELS_BYTES_MAX
            );
            return Err(RequestError::invalid("labels", message));
        }
        Ok(())
    }
}
