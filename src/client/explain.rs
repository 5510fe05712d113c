//! Explanations of what a claim would get.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Client, ClientError, NewClaim, RawJson, ServiceError};

/// Explanation of what a claim would get, and why.
#[derive(Debug, Clone, Deserialize)]
pub struct ExplainReply {
    /// Worker that the claim would get; `None` if it would fail.
    pub would_take: Option<PlacementReply>,
    /// Error that the claim would fail with.
    pub error: Option<ServiceError>,
    /// Amounts that the tenant's quota leaves the claim.
    #[serde(default)]
    pub quota_headroom: QuotaHeadroomReply,
    /// Survey of each candidate pool.
    pub pools: Vec<PoolSurveyReply>,
}

/// Amounts that a quota still allows; `None`: not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct QuotaHeadroomReply {
    /// Number of further claims.
    pub claims: Option<u64>,
    /// CPU that is left, in thousandths of a core.
    pub cpu_milli: Option<u64>,
    /// Memory that is left, in bytes.
    pub memory_bytes: Option<u64>,
    /// GPUs that are left, in thousandths.
    pub gpu_milli: Option<u64>,
}

/// Placement that a claim would get.
#[derive(Debug, Clone, Deserialize)]
pub struct PlacementReply {
    /// Name of the pool.
    pub pool: String,
    /// Id of the worker.
    pub worker: String,
    /// Node that the worker runs on.
    pub node: Option<String>,
}

/// Workers of a pool by their fitness for a claim.
#[derive(Debug, Clone, Deserialize)]
pub struct PoolSurveyReply {
    /// Name of the pool.
    pub pool: String,
    /// Number of workers in the pool.
    pub workers: u64,
    /// Number of workers that could serve the claim now.
    pub fits: u64,
    /// Numbers of workers by the first filter that ruled them out, in the order of the filters.
    pub ruled_out: Map<String, Value>,
    /// Number of workers that are too small even when idle.
    #[serde(default)]
    pub too_small: u64,
    /// Workers that lack least.
    pub nearest: Vec<NearestWorker>,
    /// Largest free amount of each resource on any worker.
    pub most_free: BTreeMap<String, u64>,
    /// Number of shards that did not answer in time.
    #[serde(default)]
    pub silent_shards: u64,
    /// Whether the pool evicts nobody for now.
    #[serde(default)]
    pub preemption_paused: bool,
    /// Number of waiting claims that are served before it.
    #[serde(default)]
    pub ahead: u64,
    /// Number of waiting gangs of a higher priority, or of its priority and earlier.
    #[serde(default)]
    pub gangs_ahead: u64,
}

/// Worker that almost fits.
#[derive(Debug, Clone, Deserialize)]
pub struct NearestWorker {
    /// Node that the worker runs on.
    pub node: Option<String>,
    /// Shortage as a sentence.
    pub text: String,
}

impl Client {
    /// Explains what a claim would get, without claiming.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a field out of bounds. That the claim would fail is part of the explanation.
    pub async fn explain(&self, request: &NewClaim<'_>) -> Result<RawJson<ExplainReply>, ClientError> {
        self.post("/v1/explain", request).await
    }
}
