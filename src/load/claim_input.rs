//! What is asked of a target, and what it gives.

use hotpool::model::{AckLevel, ClaimId, Fence, PoolMode, PoolSpec, affinity_hash};

/// Namespace of every pool and claim of this harness.
pub const NAMESPACE: &str = "load";
/// Tenant of every claim: the one that a request without a tenant has.
const TENANT: &str = "default";

/// The pool of a run.
#[derive(Debug, Clone, Copy)]
pub struct TargetPool {
    /// Workers to register.
    pub workers: u32,
    /// Slots of each; 0: a claim takes a worker whole.
    pub slots: u32,
    /// Shards of the pool.
    pub shards: u16,
    /// When answers leave.
    pub ack: AckLevel,
}

impl TargetPool {
    /// The pool's specification.
    #[must_use]
    pub fn spec(&self) -> PoolSpec {
        let mode = if self.slots > 0 { PoolMode::Shared } else { PoolMode::Exclusive };
        PoolSpec { shards: self.shards, mode, ack: self.ack, reserve_ms: 0, ..PoolSpec::default() }
    }
}

/// What a claim asks for, beside its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimParams {
    /// The function that it is for, if it is for one.
    pub function: Option<u32>,
    /// Slots of a worker; 0: a whole worker.
    pub slots: u32,
    /// How long it waits if there is no room, in milliseconds.
    pub wait_ms: u32,
}

/// A claim to be made.
#[derive(Debug)]
pub struct ClaimInput {
    /// Its identity, never used before.
    pub id: ClaimId,
    /// Hash of its affinity word: the function's, else the key.
    pub affinity: u64,
    /// The rest.
    pub params: ClaimParams,
}

impl ClaimInput {
    /// A claim under `key`.
    ///
    /// # Panics
    /// The key is not a name: keys are made by [`super::load_client`], which knows what a name is.
    #[must_use]
    pub fn new(key: &str, want: ClaimParams) -> Self {
        let affinity =
            want.function.map_or_else(|| affinity_hash(key), |function| affinity_hash(&affinity_word_of(function)));
        let id = ClaimId::new(NAMESPACE, TENANT, key).expect("a key of letters, digits, dots, dashes and underlines");
        Self { id, affinity, params: want }
    }

    /// The affinity word, if it is not the key.
    #[must_use]
    pub fn affinity_word(&self) -> Option<String> {
        self.params.function.map(affinity_word_of)
    }
}

fn affinity_word_of(function: u32) -> String {
    format!("f{function}")
}

/// A claim that was granted.
#[derive(Debug)]
pub struct ReceivedGrant {
    /// Its identity.
    pub id: ClaimId,
    /// Its number.
    pub fence: Fence,
    /// Ordinal of its worker.
    pub worker: u32,
}

/// Workers of the pool, as the service counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct PoolOccupancy {
    /// All.
    pub total: u64,
    /// Free.
    pub idle: u64,
    /// Held.
    pub busy: u64,
}
