//! Demand of a pool as a response.

use serde::Serialize;

use crate::model::{DemandShape, IdleWorker, Millis, PoolDemand, ResourceRequirements, UnusableWorkers};

/// Demand of a pool: the claims that are queued for it. The totals come first, for a scaler that reads a single number.
#[derive(Serialize)]
pub(in crate::api::http) struct DemandResponseBody<'a> {
    namespace: &'a str,
    pool: &'a str,
    waiting: u64,
    waiting_for_quota: u64,
    oldest_ms: Millis,
    workers_busy: u64,
    workers_reserved: u64,
    workers_unusable: UnusableWorkers,
    workers_needed: u64,
    workers_wanted: u64,
    shapes: Vec<DemandShapeJson<'a>>,
    idle: Vec<IdleWorkerJson<'a>>,
}

#[derive(Serialize)]
struct DemandShapeJson<'a> {
    resources: &'a ResourceRequirements,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    nodes: &'a [String],
    reason: &'static str,
    waiting: u64,
    oldest_ms: Millis,
    priority: u16,
    workers_needed: u64,
}

#[derive(Serialize)]
struct IdleWorkerJson<'a> {
    worker: &'a str,
    cordoned: bool,
}

impl<'a> From<&'a PoolDemand> for DemandResponseBody<'a> {
    fn from(demand: &'a PoolDemand) -> Self {
        let PoolDemand {
            pool,
            waiting,
            waiting_for_quota,
            oldest_ms,
            workers_busy,
            workers_reserved,
            workers_unusable,
            workers_needed,
            shapes,
            idle,
        } = demand;
        Self {
            namespace: pool.namespace(),
            pool: pool.pool(),
            waiting: *waiting,
            waiting_for_quota: *waiting_for_quota,
            oldest_ms: *oldest_ms,
            workers_busy: *workers_busy,
            workers_reserved: *workers_reserved,
            workers_unusable: *workers_unusable,
            workers_needed: *workers_needed,
            workers_wanted: demand.workers_wanted(),
            shapes: shapes.iter().map(Into::into).collect(),
            idle: idle.iter().map(Into::into).collect(),
        }
    }
}

impl<'a> From<&'a DemandShape> for DemandShapeJson<'a> {
    fn from(shape: &'a DemandShape) -> Self {
        let DemandShape { resources, selector, nodes, reason, waiting, oldest_ms, priority, workers_needed } = shape;
        Self {
            resources,
            selector: selector.as_deref(),
            nodes,
            reason,
            waiting: *waiting,
            oldest_ms: *oldest_ms,
            priority: *priority,
            workers_needed: *workers_needed,
        }
    }
}

impl<'a> From<&'a IdleWorker> for IdleWorkerJson<'a> {
    fn from(IdleWorker { id, cordoned }: &'a IdleWorker) -> Self {
        Self { worker: id.as_str(), cordoned: *cordoned }
    }
}
