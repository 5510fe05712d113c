//! Pools: their specification, counts and demand, and the readiness of the service.

use std::collections::BTreeMap;

use hyper::Method;
use hyper::body::Bytes;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Client, ClientError, CreateReply, ItemList, ListRange, RawJson, encode, query};
use crate::model::{Millis, PoolName, ResourceRequirements, ShardStatus, WorkerCapacity};

/// Specification and counts of a pool.
#[derive(Debug, Clone, Deserialize)]
pub struct PoolDetails {
    /// Namespace of the pool.
    pub namespace: String,
    /// Name within the namespace.
    pub name: String,
    /// Settings by name. [`crate::model::PoolSpec`] reads them, unless a newer service has more.
    pub spec: Map<String, Value>,
    /// Version of the specification, which grows with every change.
    #[serde(default)]
    pub version: u64,
    /// Workers: `total`, `idle`, `busy`, and each under every reason that makes it unschedulable.
    pub workers: BTreeMap<String, u64>,
    /// Workers that are neither idle nor busy, each under one reason. Old services do not report them.
    #[serde(default)]
    pub unschedulable: Option<BTreeMap<String, u64>>,
    /// Claims by state: `reserved`, `active`, `releasing`.
    pub claims: BTreeMap<String, u64>,
    /// Sum of the workers' capacities, without GPUs.
    pub capacity: WorkerCapacity,
    /// Sum of the free resources, without GPUs.
    pub free: WorkerCapacity,
    /// GPUs by model name.
    pub gpus: BTreeMap<String, GpuAvailability>,
    /// Whether nobody is evicted until workers are cleared whose evicted claims were not released in time.
    #[serde(default)]
    pub preemption_paused: bool,
    /// Status of each shard; empty in listings.
    #[serde(default)]
    pub shards: Vec<ShardStatus>,
}

impl PoolDetails {
    /// Returns the full name, `NAMESPACE/NAME`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// GPUs of one model in a pool.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct GpuAvailability {
    /// Number of GPUs of all workers.
    pub total: u64,
    /// Number of GPUs of which nothing is claimed and that can be claimed.
    pub free: u64,
    /// Claimable thousandths of GPUs, parts included.
    #[serde(default)]
    pub free_milli: u64,
}

/// Answer that holds one pool.
#[derive(Debug, Clone, Deserialize)]
pub struct PoolReply {
    /// Pool after the call.
    pub pool: PoolDetails,
}

/// Outcome of declaring the workers of a pool trusted.
#[derive(Debug, Clone, Deserialize)]
pub struct ClearReply {
    /// Number of workers that are trusted again.
    pub cleared: u64,
    /// Number of workers that are still suspect, because claims lost in the last crash can still start.
    pub suspect: u64,
}

/// Demand for a pool, as an autoscaler reads it.
#[derive(Debug, Clone, Deserialize)]
pub struct DemandReply {
    /// Number of claims that wait for capacity.
    pub waiting: u64,
    /// Number of claims that wait for their tenant's quota.
    pub waiting_for_quota: u64,
    /// Age of the oldest waiting claim, in milliseconds.
    pub oldest_ms: Millis,
    /// Number of workers that hold claims.
    pub workers_busy: u64,
    /// Number of workers without claims that are reserved for claims that wait.
    #[serde(default)]
    pub workers_reserved: u64,
    /// Workers without claims that are unusable, by reason.
    #[serde(default)]
    pub workers_unusable: BTreeMap<String, u64>,
    /// Number of additional workers that would clear the queue.
    pub workers_needed: u64,
    /// Sum of the busy, reserved, needed and unusable workers: the size to scale to.
    pub workers_wanted: u64,
    /// Waiting claims, grouped by their requests.
    pub shapes: Vec<DemandReplyShape>,
    /// Workers that can be removed, the best first.
    pub idle: Vec<IdleWorkerReply>,
}

/// Waiting claims with the same request.
#[derive(Debug, Clone, Deserialize)]
pub struct DemandReplyShape {
    /// Resources of each claim.
    pub resources: ResourceRequirements,
    /// Label selector of the claims; empty for none.
    #[serde(default)]
    pub selector: String,
    /// Nodes that the claims require; empty for any.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Reason for the wait, such as `pool_exhausted`.
    pub reason: String,
    /// Number of waiting claims.
    pub waiting: u64,
    /// Age of the oldest of the claims, in milliseconds.
    pub oldest_ms: Millis,
    /// Highest priority among the claims.
    pub priority: u64,
    /// Number of workers that would clear the group.
    pub workers_needed: u64,
}

/// Idle worker that can be removed.
#[derive(Debug, Clone, Deserialize)]
pub struct IdleWorkerReply {
    /// Id of the worker.
    pub worker: String,
    /// True if the worker gets no new claims already.
    pub cordoned: bool,
}

/// Answer of a service that is ready.
#[derive(Debug, Clone, Deserialize)]
pub struct ReadinessReply {
    /// Reasons against readiness; empty when ready.
    pub reasons: Vec<String>,
}

/// Status of every shard of every pool.
#[derive(Debug, Clone, Deserialize)]
pub struct ShardsReply {
    /// Number of keys that hold claims.
    pub keys: u64,
    /// Shards by pool name, `NS/POOL`.
    pub pools: BTreeMap<String, Vec<RawJson<ShardStatus>>>,
}

pub(super) fn pool_path(pool: &PoolName) -> String {
    format!("/v1/pools/{pool}")
}

impl Client {
    /// Creates a pool or replaces its specification: a [`crate::model::PoolSpec`], or a JSON object with some of its
    /// fields. Settings that are left out get their defaults.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a setting out of bounds, `FAILED_PRECONDITION` for another `mode` or number of shards,
    /// `RESOURCE_EXHAUSTED` for too many pools.
    pub async fn put_pool(
        &self,
        pool: &PoolName,
        spec: &impl Serialize,
    ) -> Result<CreateReply<PoolReply>, ClientError> {
        self.put(&pool_path(pool), spec).await
    }

    /// Changes single settings of a pool with a JSON merge patch: null resets a setting or removes a label. With a
    /// version, changes nothing unless the specification still has it.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool, `INVALID_ARGUMENT` for a setting out of bounds, `ABORTED` for another version,
    /// `FAILED_PRECONDITION` for another `mode` or number of shards.
    pub async fn patch_pool(
        &self,
        pool: &PoolName,
        version: Option<u64>,
        patch: &impl Serialize,
    ) -> Result<RawJson<PoolReply>, ClientError> {
        let version = version.map(|version| version.to_string());
        let path = format!("{}?{}", pool_path(pool), query(&[("version", version.as_deref())]));
        Ok(self.call(Method::PATCH, &path, encode(patch)?).await?.reply)
    }

    /// Reads a pool with its counts and shards.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool.
    pub async fn get_pool(&self, pool: &PoolName) -> Result<RawJson<PoolReply>, ClientError> {
        self.get(&pool_path(pool)).await
    }

    /// Lists pools with their counts, without their shards.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a page token of another listing.
    pub async fn list_pools(&self, range: ListRange) -> Result<ItemList<PoolDetails>, ClientError> {
        self.list("/v1/pools", &[], range).await
    }

    /// Deletes a pool that has no workers.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool, `FAILED_PRECONDITION` for one that has workers.
    pub async fn delete_pool(&self, pool: &PoolName) -> Result<RawJson<IgnoredAny>, ClientError> {
        self.delete(&pool_path(pool)).await
    }

    /// Deletes a pool with its workers. The claims on them are lost.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool.
    pub async fn delete_pool_and_workers(&self, pool: &PoolName) -> Result<RawJson<IgnoredAny>, ClientError> {
        self.delete(&format!("{}?force=true", pool_path(pool))).await
    }

    /// Declares all suspect workers of a pool trusted.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool.
    pub async fn clear_pool(&self, pool: &PoolName) -> Result<RawJson<ClearReply>, ClientError> {
        Ok(self.call(Method::POST, &format!("{}:clear", pool_path(pool)), Bytes::new()).await?.reply)
    }

    /// Reads the demand for a pool: waiting claims, and how many workers would clear them.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool.
    pub async fn demand(&self, pool: &PoolName) -> Result<RawJson<DemandReply>, ClientError> {
        self.get(&format!("{}/demand", pool_path(pool))).await
    }

    /// Checks whether the service is ready.
    ///
    /// # Errors
    /// `UNAVAILABLE` with the reasons as the message while the service is not ready.
    pub async fn readiness(&self) -> Result<RawJson<ReadinessReply>, ClientError> {
        self.get("/readyz").await
    }

    /// Reads the status of every shard of every pool.
    ///
    /// # Errors
    /// Only failures to reach the service.
    pub async fn shards(&self) -> Result<RawJson<ShardsReply>, ClientError> {
        self.get("/debug/shards").await
    }
}
