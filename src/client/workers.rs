//! Workers: registration, heartbeats, and commands that take them out of service.

use hyper::Method;
use hyper::body::Bytes;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::{ClaimDetails, Client, ClientError, CreateReply, ItemList, ItemOutcome, ListRange, RawJson, pool_path};
use crate::limits::PAGE_ITEMS_MAX;
use crate::model::{
    Fence, Labels, LivenessState, Millis, PoolName, SchedulingState, TrustState, WorkerCapacity, WorkerCommand,
    WorkerId, is_zero,
};

/// Registration of a worker.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewWorker {
    /// Resources of the worker.
    #[serde(skip_serializing_if = "is_empty_capacity")]
    pub capacity: WorkerCapacity,
    /// Labels that claims select workers by.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Node that the worker runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Incarnation of the worker process. A higher one ends the claims of the lower.
    #[serde(skip_serializing_if = "is_zero")]
    pub incarnation: u64,
    /// Unix time at which the worker ends, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<Millis>,
    /// All claims that the worker runs; `None` if it does not report them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<Vec<ClaimReference>>,
}

fn is_empty_capacity(capacity: &WorkerCapacity) -> bool {
    *capacity == WorkerCapacity::default()
}

/// Heartbeat of a worker.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewHeartbeat {
    /// Incarnation of the worker's registration.
    pub incarnation: u64,
    /// Number that grows with each heartbeat, by which the service recognizes late ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// All claims that the worker runs; `None` if it does not report them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<Vec<ClaimReference>>,
}

/// Claim in the namespace of the worker's pool, by its key and fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimReference {
    /// Key of the claim.
    pub key: String,
    /// Tenant of the claim.
    pub tenant: String,
    /// Fence of the claim.
    pub fence: Fence,
}

/// Request item of a batch about workers.
#[derive(Serialize)]
struct WorkerEntry<'a, T> {
    id: &'a str,
    #[serde(flatten)]
    fields: &'a T,
}

/// Request body of a batch about workers.
#[derive(Serialize)]
struct WorkerEntries<'a, T> {
    workers: Vec<WorkerEntry<'a, T>>,
}

impl<'a, T> WorkerEntries<'a, T> {
    fn new(workers: impl IntoIterator<Item = (&'a WorkerId, &'a T)>) -> Self {
        Self { workers: workers.into_iter().map(|(id, fields)| WorkerEntry { id: id.as_str(), fields }).collect() }
    }
}

/// Registration and conditions of a worker. Fields that an old service lacks have their defaults.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct WorkerDetails {
    /// Id within the pool.
    pub id: String,
    /// Resources of the worker.
    pub capacity: WorkerCapacity,
    /// Labels that claims select workers by.
    pub labels: Labels,
    /// Node that the worker runs on.
    pub node: Option<String>,
    /// Incarnation of the worker process.
    pub incarnation: u64,
    /// Occupancy: `idle` or `busy`.
    pub occupancy: String,
    /// Operator's command in effect.
    pub schedulability: SchedulingState,
    /// Liveness as heartbeats show it.
    pub liveness: LivenessState,
    /// Trust after a crash or an overdue cleanup.
    pub trust: TrustState,
    /// True if the claims hold more than the capacity of a later registration.
    pub overcommitted: bool,
    /// Unix time at which the worker ends, in milliseconds.
    pub expires_at_ms: Option<Millis>,
    /// Shard that owns the worker.
    pub shard: u16,
    /// Sequence number of the worker's last change, in its shard.
    pub version: u64,
    /// Claims on the worker.
    pub claims: Vec<ClaimDetails>,
}

/// Answer that holds one worker.
#[derive(Debug, Clone, Deserialize)]
pub struct WorkerReply {
    /// Worker after the call.
    pub worker: WorkerDetails,
    /// Reported claims that the worker must not run.
    #[serde(default)]
    pub stop: Vec<ClaimReference>,
    /// True for a batch item whose worker is new. Single calls report it in [`CreateReply::created`].
    #[serde(default)]
    pub created: bool,
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, Deserialize)]
pub struct HeartbeatReply {
    /// Claims on the worker.
    pub claims: Vec<ClaimDetails>,
    /// Reported claims that the worker must not run.
    pub stop: Vec<ClaimReference>,
    /// True if the heartbeat came late and changed nothing.
    #[serde(default)]
    pub ignored: bool,
    /// Number that the next heartbeat must exceed, after an ignored one.
    pub last_seq: Option<u64>,
}

impl Client {
    /// Registers a worker or replaces its registration.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool, `INVALID_ARGUMENT` for a field out of bounds, `FAILED_PRECONDITION` for an
    /// incarnation that is too low.
    pub async fn register_worker(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        worker: &NewWorker,
    ) -> Result<CreateReply<WorkerReply>, ClientError> {
        self.put(&worker_path(pool, id), worker).await
    }

    /// Registers many workers. Each has its own outcome, in order.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool, `INVALID_ARGUMENT` for more than [`crate::limits::BATCH_ITEMS_MAX`] items. The
    /// errors of [`Self::register_worker`] are outcomes of single items.
    pub async fn register_workers<'a>(
        &self,
        pool: &PoolName,
        workers: impl IntoIterator<Item = (&'a WorkerId, &'a NewWorker)>,
    ) -> Result<RawJson<ItemList<ItemOutcome<WorkerReply>>>, ClientError> {
        self.post(&format!("{}/workers:batch", pool_path(pool)), &WorkerEntries::new(workers)).await
    }

    /// Reports that a worker is alive, and what it runs.
    ///
    /// # Errors
    /// `NOT_FOUND` for a worker that is not registered, `ABORTED` or `FAILED_PRECONDITION` for another incarnation.
    pub async fn heartbeat(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        heartbeat: &NewHeartbeat,
    ) -> Result<RawJson<HeartbeatReply>, ClientError> {
        self.post(&format!("{}:heartbeat", worker_path(pool, id)), heartbeat).await
    }

    /// Sends the heartbeats of many workers. Each has its own outcome, in order.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool, `INVALID_ARGUMENT` for more than [`crate::limits::BATCH_ITEMS_MAX`] items. The
    /// errors of [`Self::heartbeat`] are outcomes of single items.
    pub async fn heartbeat_workers<'a>(
        &self,
        pool: &PoolName,
        heartbeats: impl IntoIterator<Item = (&'a WorkerId, &'a NewHeartbeat)>,
    ) -> Result<RawJson<ItemList<ItemOutcome<HeartbeatReply>>>, ClientError> {
        self.post(&format!("{}/workers:heartbeat", pool_path(pool)), &WorkerEntries::new(heartbeats)).await
    }

    /// Reads a worker with its claims.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool or worker.
    pub async fn get_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<RawJson<WorkerReply>, ClientError> {
        self.get(&worker_path(pool, id)).await
    }

    /// Lists the workers of a pool with their claims.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool, `INVALID_ARGUMENT` for a page token of another listing.
    pub async fn list_workers(
        &self,
        pool: &PoolName,
        range: ListRange,
    ) -> Result<ItemList<WorkerDetails>, ClientError> {
        self.list(&format!("{}/workers", pool_path(pool)), &[], range).await
    }

    /// Lists the workers on one page of the pool's listing, at most [`PAGE_ITEMS_MAX`]. It may have fewer and not be the
    /// last: [`ItemList::next_page_token`] leads to the next page.
    ///
    /// # Errors
    /// Errors are those of [`Self::list_workers`].
    pub async fn list_worker_page(
        &self,
        pool: &PoolName,
        page_token: Option<&str>,
    ) -> Result<ItemList<WorkerDetails>, ClientError> {
        self.page(&format!("{}/workers", pool_path(pool)), &[], PAGE_ITEMS_MAX, page_token).await
    }

    /// Cordons, uncordons, drains or clears a worker.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool or worker, `FAILED_PRECONDITION` for uncordoning a draining worker.
    pub async fn command_worker(
        &self,
        pool: &PoolName,
        id: &WorkerId,
        command: WorkerCommand,
    ) -> Result<RawJson<WorkerReply>, ClientError> {
        let verb = match command {
            WorkerCommand::Cordon => "cordon",
            WorkerCommand::Uncordon => "uncordon",
            WorkerCommand::Drain => "drain",
            WorkerCommand::Clear => "clear",
        };
        Ok(self.call(Method::POST, &format!("{}:{verb}", worker_path(pool, id)), Bytes::new()).await?.reply)
    }

    /// Deletes a worker. The claims on it are lost.
    ///
    /// # Errors
    /// `NOT_FOUND` for a missing pool or worker.
    pub async fn delete_worker(&self, pool: &PoolName, id: &WorkerId) -> Result<RawJson<IgnoredAny>, ClientError> {
        self.delete(&worker_path(pool, id)).await
    }
}

fn worker_path(pool: &PoolName, id: &WorkerId) -> String {
    format!("{}/workers/{id}", pool_path(pool))
}
