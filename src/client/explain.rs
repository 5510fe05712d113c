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
    /// Survey of each candidate pool.
    pub pools: Vec<PoolSurveyReply>,
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
