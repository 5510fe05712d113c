//! Claims and queued claims as the service shows them.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::model::{ClaimState, Fence, Labels, Millis};

/// Claim on a worker.
#[derive(Debug, Clone, Deserialize)]
pub struct ClaimDetails {
    /// Key that identifies the claim within its tenant.
    pub key: String,
    /// Tenant of the claim.
    pub tenant: String,
    /// Fence: grows with every grant, so a resource can refuse earlier holders.
    pub fence: Fence,
    /// Namespace of the key and the pool.
    pub namespace: String,
    /// Name of the pool within the namespace.
    pub pool: String,
    /// Id of the worker.
    pub worker: String,
    /// Node that the worker runs on.
    pub node: Option<String>,
    /// State of the claim.
    pub state: ClaimState,
    /// Reason for the state, such as `preempted`.
    pub reason: Option<String>,
    /// Resources that the claim holds.
    #[serde(default)]
    pub resources: ClaimedResources,
    /// Labels of the request.
    #[serde(default)]
    pub labels: Labels,
    /// Priority of the request.
    #[serde(default)]
    pub priority: u64,
    /// True if a claim with a higher priority may evict this one.
    #[serde(default)]
    pub preemptible: bool,
    /// Unix time of the deadline, in milliseconds; `None` without one.
    pub expires_at_ms: Option<Millis>,
    /// Unix time of the grant, in milliseconds; `None` if unknown.
    pub created_at_ms: Option<Millis>,
    /// Unix time of the confirmation, in milliseconds; `None` if unknown or not confirmed.
    pub activated_at_ms: Option<Millis>,
}

/// Resources that a claim holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ClaimedResources {
    /// CPU that the claim holds, in thousandths of a core.
    pub cpu_milli: u64,
    /// Memory that the claim holds, in bytes.
    pub memory_bytes: u64,
    /// Slots in the pool's own unit.
    pub slots: u64,
    /// GPUs, if the claim holds any.
    pub gpu: Option<ClaimedGpus>,
}

/// GPUs that a claim holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ClaimedGpus {
    /// Model of the GPUs.
    pub model: String,
    /// Number of GPUs that the claim holds.
    pub count: u64,
    /// Thousandths of each GPU; `None` for a claim on a whole worker.
    pub milli: Option<u32>,
    /// Indices of the GPUs on the worker; empty for a claim on a whole worker.
    #[serde(default, rename = "cards")]
    pub indices: Vec<u32>,
}

/// Claim that is queued for capacity or for quota.
#[derive(Debug, Clone, Deserialize)]
pub struct QueuedClaimDetails {
    /// Key that identifies the claim within its tenant.
    pub key: String,
    /// Tenant of the claim.
    pub tenant: String,
    /// Namespace of the key and the pools.
    pub namespace: String,
    /// Names of the candidate pools in order of preference.
    pub pools: Vec<String>,
    /// Reason for the wait, such as `pool_exhausted`.
    pub reason: String,
    /// Priority in the queue.
    pub priority: u64,
    /// Number of claims ahead in the best queue.
    pub ahead: u64,
    /// Time since the claim was queued, in milliseconds.
    pub waited_ms: Millis,
    /// Time until the claim is rejected, in milliseconds.
    pub left_ms: Millis,
    /// Estimated wait in milliseconds, by the throughput of the last minute; `None` if unknown.
    pub estimate_ms: Option<Millis>,
    /// Unix time at which the wait began, in milliseconds; `None` in answers that show a single key.
    pub queued_at_ms: Option<Millis>,
}

/// Item of a listing of claims.
#[derive(Debug, Clone)]
pub enum ClaimListItem {
    /// Claim that holds its worker.
    Held(Box<ClaimDetails>),
    /// Claim that waits and holds nothing yet.
    Waiting(QueuedClaimDetails),
}

impl<'de> Deserialize<'de> for ClaimListItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let item = Value::deserialize(deserializer)?;
        let parsed = match item.get("state").and_then(Value::as_str) {
            Some("waiting") => QueuedClaimDetails::deserialize(item).map(Self::Waiting),
            _ => ClaimDetails::deserialize(item).map(|claim| Self::Held(Box::new(claim))),
        };
        parsed.map_err(D::Error::custom)
    }
}

/// Status of a key.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyStatus {
    /// Claim that the key holds or held lately.
    Claim(Box<ClaimDetails>),
    /// Queued claim of the key.
    Waiting(QueuedClaimDetails),
}

/// Answer that holds one claim.
#[derive(Debug, Clone, Deserialize)]
pub struct ClaimReply {
    /// Claim after the call.
    pub claim: ClaimDetails,
    /// True for a batch item whose claim is new. Single calls report it in [`CreateReply::created`].
    #[serde(default)]
    pub created: bool,
}

/// Answer to a release.
#[derive(Debug, Clone, Deserialize)]
pub struct ReleaseReply {
    /// False if the claim had ended already, or never was.
    #[serde(default = "ReleaseReply::default_released")]
    pub released: bool,
}

impl ReleaseReply {
    /// Assumes a release where an old service does not report it.
    const fn default_released() -> bool {
        true
    }
}
