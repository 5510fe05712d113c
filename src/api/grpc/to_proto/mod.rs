//! Converts the scheduler's results to messages.

use super::proto;
use super::proto::explain_claim_response::Outcome as Explained;
use crate::api::error_table::ApiError;
use crate::model::{
    AckLevel, ClaimExplanation, ClaimResult, ClaimState, ClaimView, FilterReason, GpuRequest, GpuTotals,
    HeartbeatResponse, HeldGpus, HeldResources, LivenessState, NearMiss, PlacementPolicy, PlacementPreview, PoolMode,
    PoolSpec, PoolStatus, PoolSurvey, QuotaHeadroom, RegistrationResponse, ResourceAmounts, ResourceRequirements,
    RunningClaim, SchedulingState, ShardStatus, TrustState, TypicalRequest, UnschedulableCounts, WorkerCapacity,
    WorkerView,
};

mod demand;
mod events;

impl From<&WorkerCapacity> for proto::Capacity {
    fn from(capacity: &WorkerCapacity) -> Self {
        let WorkerCapacity { cpu_milli, memory_bytes, slots, gpu } = capacity;
        Self {
            cpu_milli: *cpu_milli,
            memory_bytes: *memory_bytes,
            slots: *slots,
            gpu: gpu.as_ref().map(|gpu| proto::Gpu { model: gpu.model.to_string(), count: gpu.count }),
        }
    }
}

impl From<&ClaimView> for proto::Claim {
    fn from(claim: &ClaimView) -> Self {
        let ClaimView { id, fence, pool, worker, state, expires_at_ms, spec, gpu_mask: _, evicted, times } = claim;
        let worker = &worker.spec;
        let state = match state {
            ClaimState::Reserved => proto::ClaimState::Reserved,
            ClaimState::Active => proto::ClaimState::Active,
            ClaimState::Releasing => proto::ClaimState::Releasing,
            ClaimState::Lost => proto::ClaimState::Lost,
        };
        Self {
            key: id.key().to_owned(),
            tenant: id.tenant().to_owned(),
            fence: *fence,
            namespace: id.namespace().to_owned(),
            pool: pool.pool().to_owned(),
            worker: worker.id.as_str().to_owned(),
            node: worker.node.as_deref().map(str::to_owned),
            state: state as i32,
            resources: Some(claim.held().into()),
            expires_at_ms: *expires_at_ms,
            preempted: *evicted,
            labels: spec.as_ref().map(|spec| spec.labels.clone()).unwrap_or_default(),
            priority: spec.as_ref().map_or(0, |spec| spec.priority.into()),
            preemptible: spec.as_ref().is_some_and(|spec| spec.preemptible),
            created_at_ms: times.created_at_ms(),
            activated_at_ms: times.activated_at_ms(),
        }
    }
}

impl From<HeldResources<'_>> for proto::Resources {
    fn from(resources: HeldResources<'_>) -> Self {
        match resources {
            HeldResources::Whole(capacity) => {
                let WorkerCapacity { cpu_milli, memory_bytes, slots, gpu } = capacity;
                let gpu = gpu.as_ref().map(|gpu| proto::GpuShare {
                    model: Some(gpu.model.to_string()),
                    count: Some(gpu.count),
                    ..proto::GpuShare::default()
                });
                Self { cpu_milli: *cpu_milli, memory_bytes: *memory_bytes, slots: *slots, gpu }
            }
            HeldResources::Share { resources, gpu } => {
                let ResourceRequirements { cpu_milli, memory_bytes, slots, .. } = resources;
                let gpu = gpu.map(|HeldGpus { model, count, milli, gpu_mask: cards }| proto::GpuShare {
                    model: Some(model.to_owned()),
                    count: Some(count),
                    milli: Some(milli),
                    models: Vec::new(),
                    cards: (0..64).filter(|card| cards & (1 << card) != 0).collect(),
                });
                Self { cpu_milli: *cpu_milli, memory_bytes: *memory_bytes, slots: *slots, gpu }
            }
        }
    }
}

impl From<&GpuRequest> for proto::GpuShare {
    fn from(gpu: &GpuRequest) -> Self {
        let GpuRequest { models, count, milli } = gpu;
        Self {
            model: None,
            count: Some(*count),
            milli: Some(*milli),
            models: models.iter().map(ToString::to_string).collect(),
            cards: Vec::new(),
        }
    }
}

impl From<&ClaimResult> for proto::TakeClaimResponse {
    fn from(result: &ClaimResult) -> Self {
        Self { claim: Some((&result.claim).into()), created: result.created }
    }
}

impl From<&ClaimExplanation> for proto::ExplainClaimResponse {
    fn from(explanation: &ClaimExplanation) -> Self {
        let ClaimExplanation { outcome, quota_headroom, pools } = explanation;
        let outcome = match outcome {
            Ok(PlacementPreview { pool, worker, node }) => Explained::WouldTake(proto::WouldTake {
                pool: pool.pool().to_owned(),
                worker: worker.to_string(),
                node: node.as_deref().map(str::to_owned),
            }),
            Err(error) => Explained::Error((&ApiError::from(error.clone())).into()),
        };
        let QuotaHeadroom { claims, cpu_milli, memory_bytes, gpu_milli } = *quota_headroom;
        let quota_headroom = proto::QuotaHeadroom { claims, cpu_milli, memory_bytes, gpu_milli };
        Self {
            outcome: Some(outcome),
            pools: pools.iter().map(Into::into).collect(),
            quota_headroom: (!explanation.quota_headroom.is_unlimited()).then_some(quota_headroom),
        }
    }
}

impl From<&PoolSurvey> for proto::PoolSurvey {
    fn from(of: &PoolSurvey) -> Self {
        let PoolSurvey { pool, silent_shards, preemption_paused, ahead, gangs_ahead, survey } = of;
        let counted = FilterReason::ALL.iter().copied().filter(|reason| survey.count(*reason) > 0);
        let near = |miss: &NearMiss| proto::NearMiss {
            worker: miss.worker.to_string(),
            node: miss.node.as_deref().map(str::to_owned),
            short: Some(miss.shortfall.into()),
            text: miss.describe(),
        };
        Self {
            pool: pool.pool().to_owned(),
            workers: survey.workers,
            fits: survey.fits,
            // The enumeration has the same order, after the value that is never sent.
            ruled_out: counted
                .map(|reason| proto::RuledOut { by: reason as i32 + 1, workers: survey.count(reason) })
                .collect(),
            too_small: survey.too_small,
            nearest: survey.nearest.iter().map(near).collect(),
            most_free: Some(survey.most_free.into()),
            silent_shards: *silent_shards,
            preemption_paused: *preemption_paused,
            ahead: *ahead,
            gangs_ahead: *gangs_ahead,
        }
    }
}

impl From<ResourceAmounts> for proto::Amounts {
    fn from(ResourceAmounts { cpu_milli, memory_bytes, slots, gpu, gpu_milli }: ResourceAmounts) -> Self {
        Self { cpu_milli, memory_bytes, slots, gpu, gpu_milli }
    }
}

impl From<&WorkerView> for proto::Worker {
    fn from(worker: &WorkerView) -> Self {
        let WorkerView {
            registration: card,
            busy,
            schedulability,
            liveness,
            trust,
            overcommitted,
            version,
            shard,
            claims,
        } = worker;
        let spec = &card.spec;
        let occupancy = if *busy { proto::Occupancy::Busy } else { proto::Occupancy::Idle };
        let schedulability = match schedulability {
            SchedulingState::Open => proto::Schedulability::Open,
            SchedulingState::Cordoned => proto::Schedulability::Cordoned,
            SchedulingState::Draining => proto::Schedulability::Draining,
        };
        let liveness = match liveness {
            LivenessState::Live => proto::Liveness::Live,
            LivenessState::Lost => proto::Liveness::Lost,
        };
        let trust = match trust {
            TrustState::Trusted => proto::Trust::Trusted,
            TrustState::Suspect => proto::Trust::Suspect,
        };
        Self {
            id: spec.id.as_str().to_owned(),
            capacity: Some((&spec.capacity).into()),
            labels: spec.labels.clone(),
            node: spec.node.as_deref().map(str::to_owned),
            incarnation: spec.incarnation,
            occupancy: occupancy as i32,
            schedulability: schedulability as i32,
            liveness: liveness as i32,
            trust: trust as i32,
            overcommitted: *overcommitted,
            expires_at_ms: spec.expires_at_ms,
            shard: u32::from(*shard),
            version: *version,
            claims: claims.iter().map(Into::into).collect(),
        }
    }
}

impl From<&RegistrationResponse> for proto::RegisterWorkerResponse {
    fn from(registered: &RegistrationResponse) -> Self {
        let stop = registered.stop.iter().map(Into::into).collect();
        Self { worker: Some((&registered.worker).into()), created: registered.created, stop }
    }
}

impl From<&RunningClaim> for proto::HeldClaim {
    fn from(claim: &RunningClaim) -> Self {
        let RunningClaim { id, fence } = claim;
        Self { tenant: Some(id.tenant().to_owned()), key: id.key().to_owned(), fence: *fence }
    }
}

impl From<&HeartbeatResponse> for proto::HeartbeatWorkerResponse {
    fn from(response: &HeartbeatResponse) -> Self {
        let HeartbeatResponse { claims, stop, superseded_by } = response;
        Self {
            claims: claims.iter().map(Into::into).collect(),
            stop: stop.iter().map(Into::into).collect(),
            ignored: superseded_by.is_some(),
            last_seq: *superseded_by,
        }
    }
}

impl From<&PoolSpec> for proto::PoolSpec {
    fn from(spec: &PoolSpec) -> Self {
        let PoolSpec {
            shards,
            mode,
            policy,
            ack,
            labels,
            class,
            reserve_ms,
            ttl_default_ms,
            ttl_max_ms,
            releasing_ms,
            heartbeat_ttl_ms,
            unnamed_ms,
            lost_keep_ms,
            hold_max_ms,
            lag_max_ms,
            spare_gpu_workers,
            typical_requests,
            waiters_max,
            waiters_tenant_max,
            preemption,
        } = spec;
        let mode = match mode {
            PoolMode::Exclusive => proto::Mode::Exclusive,
            PoolMode::Shared => proto::Mode::Shared,
        };
        let policy = match policy {
            None => proto::Policy::Unspecified,
            Some(PlacementPolicy::Lifo) => proto::Policy::Lifo,
            Some(PlacementPolicy::Fifo) => proto::Policy::Fifo,
            Some(PlacementPolicy::Random) => proto::Policy::Random,
            Some(PlacementPolicy::BestFit) => proto::Policy::BestFit,
            Some(PlacementPolicy::Spread) => proto::Policy::Spread,
            Some(PlacementPolicy::Fgd) => proto::Policy::Fgd,
        };
        let typical = typical_requests.iter().map(|TypicalRequest { cpu_milli, gpu, weight }| proto::TypicalRequest {
            cpu_milli: *cpu_milli,
            gpu: gpu.as_ref().map(Into::into),
            weight: *weight,
        });
        let ack = match ack {
            AckLevel::Memory => proto::Ack::Memory,
            AckLevel::Durable => proto::Ack::Durable,
        };
        Self {
            shards: Some(u32::from(*shards)),
            mode: mode as i32,
            policy: policy as i32,
            ack: ack as i32,
            labels: labels.clone(),
            class: class.clone(),
            reserve_ms: Some(*reserve_ms),
            ttl_default_ms: *ttl_default_ms,
            ttl_max_ms: *ttl_max_ms,
            lag_max_ms: Some(*lag_max_ms),
            waiters_max: Some((*waiters_max).into()),
            preemption: Some(*preemption),
            waiters_tenant_max: Some((*waiters_tenant_max).into()),
            releasing_ms: Some(*releasing_ms),
            heartbeat_ttl_ms: Some(*heartbeat_ttl_ms),
            unnamed_ms: *unnamed_ms,
            lost_keep_ms: Some(*lost_keep_ms),
            hold_max_ms: Some(*hold_max_ms),
            spare_gpu_workers: Some(*spare_gpu_workers),
            typical_requests: typical.collect(),
        }
    }
}

impl From<&ShardStatus> for proto::ShardStatus {
    fn from(status: &ShardStatus) -> Self {
        let name = format!("SHARD_STATE_{}", status.state.to_ascii_uppercase());
        Self {
            shard: u32::from(status.shard),
            state: proto::ShardState::from_str_name(&name).unwrap_or_default() as i32,
            reason: status.reason.clone(),
            workers: status.workers,
            idle: status.idle,
            busy: status.busy,
            reserved: status.reserved,
            seq: status.seq,
            applied_seq: status.applied_seq,
            lag_ms: status.lag_ms,
            queue_depth: status.queue_depth,
            answers_waiting: status.answers_waiting,
            restarts: status.restarts,
            cordoned: status.cordoned,
            draining: status.draining,
            lost: status.lost,
            suspect: status.suspect,
            releasing: status.releasing,
            claims: status.claims,
            ended: status.ended,
            stopping: status.stopping,
            workers_reserved: status.workers_reserved,
            unschedulable: Some((&status.unschedulable).into()),
        }
    }
}

impl From<&UnschedulableCounts> for proto::UnschedulableCounts {
    fn from(counts: &UnschedulableCounts) -> Self {
        let UnschedulableCounts { draining, cordoned, lost, suspect, ended, stopping, reserved } = *counts;
        Self { draining, cordoned, lost, suspect, ended, stopping, reserved }
    }
}

/// Converts a pool without its shards: a page of them could take hundreds of megabytes.
impl From<&PoolStatus> for proto::Pool {
    fn from(pool: &PoolStatus) -> Self {
        let counts = pool.counts();
        let gpus = pool.gpus.iter().map(|(model, &GpuTotals { total, free, free_milli })| {
            (model.clone(), proto::GpuCounts { total, free, free_milli })
        });
        Self {
            namespace: pool.name.namespace().to_owned(),
            name: pool.name.pool().to_owned(),
            spec: Some((&pool.spec).into()),
            version: pool.version,
            workers: Some(proto::WorkerCounts {
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
            }),
            claims: Some(proto::ClaimCounts {
                reserved: counts.reserved,
                active: counts.active,
                releasing: counts.releasing,
            }),
            capacity: Some((&WorkerCapacity::from(pool.capacity)).into()),
            free: Some((&WorkerCapacity::from(pool.free)).into()),
            gpus: gpus.collect(),
            shards: Vec::new(),
            unschedulable: Some((&counts.unschedulable).into()),
            preemption_paused: pool.preemption_paused,
        }
    }
}

/// Converts a pool with its shards.
pub(super) fn pool_with_shards(pool: &PoolStatus) -> proto::Pool {
    proto::Pool { shards: pool.shards.iter().map(Into::into).collect(), ..pool.into() }
}
