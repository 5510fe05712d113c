//! Response bodies for pools and their counts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{GpuTotals, PoolSpec, PoolStatus, ShardStatus, UnschedulableCounts, WorkerCapacity};

/// `{"cleared":n,"suspect":n}`: the result of clearing a pool.
#[derive(Serialize)]
pub(in crate::api) struct ClearResponseBody {
    pub(in crate::api) cleared: u64,
    pub(in crate::api) suspect: u64,
}

#[derive(Serialize)]
struct WorkerCounts {
    total: u64,
    idle: u64,
    busy: u64,
    cordoned: u64,
    draining: u64,
    lost: u64,
    suspect: u64,
    ended: u64,
    stopping: u64,
    reserved: u64,
}

#[derive(Serialize)]
struct ClaimCounts {
    reserved: u64,
    active: u64,
    releasing: u64,
}

#[derive(Serialize)]
struct GpuCounts {
    total: u64,
    free: u64,
    free_milli: u64,
}

impl From<&GpuTotals> for GpuCounts {
    fn from(&GpuTotals { total, free, free_milli }: &GpuTotals) -> Self {
        Self { total, free, free_milli }
    }
}

/// Pool with its specification and its counts.
#[derive(Serialize)]
pub(in crate::api) struct PoolJson<'a> {
    namespace: &'a str,
    name: &'a str,
    spec: &'a PoolSpec,
    version: u64,
    workers: WorkerCounts,
    unschedulable: UnschedulableCounts,
    claims: ClaimCounts,
    capacity: WorkerCapacity,
    free: WorkerCapacity,
    gpus: BTreeMap<&'a str, GpuCounts>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    preemption_paused: bool,
    /// Absent in listings, where a page could take hundreds of megabytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<&'a [ShardStatus]>,
}

impl<'a> From<&'a PoolStatus> for PoolJson<'a> {
    fn from(pool: &'a PoolStatus) -> Self {
        let counts = pool.counts();
        Self {
            namespace: pool.name.namespace(),
            name: pool.name.pool(),
            spec: &pool.spec,
            version: pool.version,
            workers: WorkerCounts {
                total: counts.total,
                idle: counts.idle,
                busy: counts.busy,
                cordoned: counts.cordoned,
                draining: counts.draining,
                lost: counts.lost,
                suspect: counts.suspect,
                ended: counts.ended,
                stopping: counts.stopping,
                reserved: counts.workers_reserved,
            },
            unschedulable: counts.unschedulable,
            claims: ClaimCounts { reserved: counts.reserved, active: counts.active, releasing: counts.releasing },
            capacity: pool.capacity.into(),
            free: pool.free.into(),
            gpus: pool.gpus.iter().map(|(model, sum)| (model.as_str(), sum.into())).collect(),
            preemption_paused: pool.preemption_paused,
            shards: None,
        }
    }
}

/// `{"pool":{...}}`: a single pool with its shards.
#[derive(Serialize)]
pub(in crate::api) struct PoolResponseBody<'a> {
    pool: PoolJson<'a>,
}

impl<'a> From<&'a PoolStatus> for PoolResponseBody<'a> {
    fn from(pool: &'a PoolStatus) -> Self {
        Self { pool: PoolJson { shards: Some(&pool.shards), ..pool.into() } }
    }
}
