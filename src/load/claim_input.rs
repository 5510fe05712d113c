//! Inputs of a target, and the grants that it returns.

use hotpool::model::{AckLevel, ClaimId, Fence, PoolMode, PoolSpec, affinity_hash};

/// Namespace of every pool and claim that the harness creates.
pub const NAMESPACE: &str = "load";
/// Tenant of every claim: the default tenant of requests that name none.
const TENANT: &str = "default";

/// Configuration of the pool that a run creates.
#[derive(Debug, Clone, Copy)]
pub struct TargetPool {
    /// Number of workers to register.
    pub workers: u32,
    /// Slots of each worker; 0 if a claim takes a whole worker.
    pub slots: u32,
    /// Number of shards of the pool.
    pub shards: u16,
    /// Acknowledgement level of the pool.
    pub ack: AckLevel,
}

impl TargetPool {
    /// Converts the configuration to the pool's specification.
    #[must_use]
    pub fn spec(&self) -> PoolSpec {
        let mode = if self.slots > 0 { PoolMode::Shared } else { PoolMode::Exclusive };
        PoolSpec { shards: self.shards, mode, ack: self.ack, reserve_ms: 0, ..PoolSpec::default() }
    }
}

/// Rule by which the claims of one request are granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchAtomicity {
    /// Each claim on its own.
    Independent,
    /// All claims or none, as a gang.
    AllOrNothing,
}

/// Parameters of a claim, apart from its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimParams {
    /// Function that the claim runs, if any; its affinity follows from it.
    pub function: Option<u32>,
    /// Slots of a worker; 0 requests a whole worker.
    pub slots: u32,
    /// Longest time to queue for capacity, in milliseconds.
    pub wait_ms: u32,
}

/// Claim that is about to be sent.
#[derive(Debug)]
pub struct ClaimInput {
    /// Identity of the claim, never used before.
    pub id: ClaimId,
    /// Hash of the affinity string: the function's, otherwise the key.
    pub affinity: u64,
    /// Parameters of the claim.
    pub params: ClaimParams,
}

impl ClaimInput {
    /// Creates a claim under `key`.
    ///
    /// # Panics
    /// Panics if the key is not a valid name. Keys come from [`super::load_client`], which creates valid ones.
    #[must_use]
    pub fn new(key: &str, params: ClaimParams) -> Self {
        let affinity =
            params.function.map_or_else(|| affinity_hash(key), |function| affinity_hash(&affinity_word_of(function)));
        let id = ClaimId::new(NAMESPACE, TENANT, key).expect("a key of letters, digits, dots, dashes and underlines");
        Self { id, affinity, params }
    }

    /// Affinity string, unless it is the key.
    #[must_use]
    pub fn affinity_word(&self) -> Option<String> {
        self.params.function.map(affinity_word_of)
    }
}

fn affinity_word_of(function: u32) -> String {
    format!("f{function}")
}

/// Grant of a claim, as received from the target.
#[derive(Debug)]
pub struct ReceivedGrant {
    /// Identity of the granted claim.
    pub id: ClaimId,
    /// Fence of the grant.
    pub fence: Fence,
    /// Ordinal of the granted worker.
    pub worker: u32,
}

/// Worker counts of the pool, as reported by the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct PoolOccupancy {
    /// Number of registered workers.
    pub total: u64,
    /// Number of idle workers.
    pub idle: u64,
    /// Number of busy workers.
    pub busy: u64,
}
