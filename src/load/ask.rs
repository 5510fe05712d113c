//! What is asked of a target, and what it gives.

use hotpool::model::{Ack, ClaimId, Fence, Mode, PoolSpec, affinity_hash};

/// Namespace of every pool and claim of this harness.
pub const NAMESPACE: &str = "load";
/// Tenant of every claim: the one that a request without a tenant has.
const TENANT: &str = "default";

/// The pool of a run.
#[derive(Debug, Clone, Copy)]
pub struct Fleet {
    /// Workers to register.
    pub workers: u32,
    /// Slots of each; 0: a claim takes a worker whole.
    pub slots: u32,
    /// Shards of the pool.
    pub shards: u16,
    /// When answers leave.
    pub ack: Ack,
}

impl Fleet {
    /// The pool's specification.
    #[must_use]
    pub fn spec(&self) -> PoolSpec {
        let mode = if self.slots > 0 { Mode::Shared } else { Mode::Exclusive };
        PoolSpec { shards: self.shards, mode, ack: self.ack, reserve_ms: 0, ..PoolSpec::default() }
    }
}

/// What a claim asks for, beside its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// The function that it is for, if it is for one.
    pub function: Option<u32>,
    /// Slots of a worker; 0: a whole worker.
    pub slots: u32,
    /// How long it waits if there is no room, in milliseconds.
    pub wait_ms: u32,
}

/// A claim to be made.
#[derive(Debug)]
pub struct Ask {
    /// Its identity, never used before.
    pub id: ClaimId,
    /// Hash of its affinity word: the function's, else the key.
    pub affinity: u64,
    /// The rest.
    pub want: Want,
}

impl Ask {
    /// A claim under `key`.
    ///
    /// # Panics
    /// The key is not a name: keys are made by [`super::client`], which knows what a name is.
    #[must_use]
    pub fn new(key: &str, want: Want) -> Self {
        let affinity = want.function.map_or_else(|| affinity_hash(key), |function| affinity_hash(&word(function)));
        let id = ClaimId::new(NAMESPACE, TENANT, key).expect("a key of letters, digits, dots, dashes and underlines");
        Self { id, affinity, want }
    }

    /// The affinity word, if it is not the key.
    #[must_use]
    pub fn word(&self) -> Option<String> {
        self.want.function.map(word)
    }
}

fn word(function: u32) -> String {
    format!("f{function}")
}

/// A claim that was granted.
#[derive(Debug)]
pub struct Grant {
    /// Its identity.
    pub id: ClaimId,
    /// Its number.
    pub fence: Fence,
    /// Ordinal of its worker.
    pub worker: u32,
}

/// Workers of the pool, as the service counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct Counts {
    /// All.
    pub total: u64,
    /// Free.
    pub idle: u64,
    /// Held.
    pub busy: u64,
}
