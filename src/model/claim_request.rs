//! What a claim may ask for beyond any worker of one pool, as its caller says it; and whether that is within bounds.

use std::sync::Arc;

use crate::limits;
use crate::model::request_error::RequestError;
use crate::model::{ClaimSpec, PoolName, WorkerId, check_labels, check_name};

/// The pools that a claim may be taken from. All are in the claim's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolChoice {
    /// This one.
    One(PoolName),
    /// The first of these that has room, in this order: 1..=[`limits::CLAIM_POOLS_MAX`], none twice.
    Listed(Vec<PoolName>),
    /// The first that has room of those whose labels pass this selector, in the order of their names.
    Selected(String),
}

impl From<PoolName> for PoolChoice {
    fn from(name: PoolName) -> Self {
        Self::One(name)
    }
}

impl PoolChoice {
    /// The first that it names, if it names any.
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
            let message = format!("must be 1..={} pools, got {}", limits::CLAIM_POOLS_MAX, names.len());
            return Err(RequestError::invalid("pools", message));
        }
        match (0..names.len()).find(|&i| names[..i].contains(&names[i])) {
            Some(twice) => Err(RequestError::invalid(format!("pools[{twice}]"), "is given twice")),
            None => Ok(()),
        }
    }
}

/// What a claim asks of its worker and its pool. All that is asked must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaimConstraints {
    /// The worker's labels pass this selector.
    pub selector: Option<String>,
    /// The worker is on one of these nodes; empty: no restriction.
    pub nodes_required: Vec<Arc<str>>,
    /// A worker on one of these nodes comes before any other; empty: no preference.
    pub nodes_preferred: Vec<Arc<str>>,
    /// The worker is this very one.
    pub worker: Option<WorkerId>,
    /// The pool has this class.
    pub class: Option<String>,
    /// What the claim keeps: its labels, and the resources that its worker must at least have.
    pub spec: ClaimSpec,
    /// For how long only preferred nodes will do, in milliseconds; it waits for them.
    pub preferred_wait_ms: u64,
    /// If the key is held already, it must have asked for the same resources.
    pub require_same_resources: bool,
}

impl ClaimConstraints {
    /// Checks every part against its limit; selectors are read, and so checked, by whoever evaluates them.
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
            let message = format!("must be 0..={}, got {}", limits::PRIORITY_MAX, self.spec.priority);
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
