//! Converts queued claims, demand and quotas to messages.

use crate::api::grpc::proto;
use crate::model::{
    ClaimPage, DemandShape, IdleWorker, PoolDemand, PoolName, QueuedClaimView, Quota, QuotaSource, QuotaStatus,
    ResourceRequirements, ResourceUsage, UnusableWorkers,
};

impl From<&QueuedClaimView> for proto::Waiting {
    fn from(view: &QueuedClaimView) -> Self {
        let QueuedClaimView { id, pools, reason, priority, ahead, queued_at_ms: _, waited_ms, left_ms, estimate_ms } =
            view;
        Self {
            key: id.key().to_owned(),
            tenant: id.tenant().to_owned(),
            namespace: id.namespace().to_owned(),
            pools: pools.iter().map(PoolName::pool).map(str::to_owned).collect(),
            reason: proto::Reason::from_name(Some(reason)) as i32,
            priority: (*priority).into(),
            ahead: *ahead,
            waited_ms: *waited_ms,
            left_ms: *left_ms,
            estimate_ms: *estimate_ms,
            queued_at_ms: None,
        }
    }
}

impl From<ClaimPage> for proto::ListClaimsResponse {
    fn from(page: ClaimPage) -> Self {
        let ClaimPage { items, waiting, next } = page;
        let waiting =
            waiting.iter().map(|view| proto::Waiting { queued_at_ms: Some(view.queued_at_ms), ..view.into() });
        Self { claims: items.iter().map(Into::into).collect(), waiting: waiting.collect(), next_page_token: next }
    }
}

impl From<&PoolDemand> for proto::GetDemandResponse {
    fn from(demand: &PoolDemand) -> Self {
        let PoolDemand {
            pool: _,
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
        let UnusableWorkers { cordoned, lost, suspect, ended, draining } = *workers_unusable;
        let idle = idle.iter().map(|IdleWorker { id, cordoned }| proto::IdleWorker {
            worker: id.as_str().to_owned(),
            cordoned: *cordoned,
        });
        Self {
            waiting: *waiting,
            waiting_for_quota: *waiting_for_quota,
            oldest_ms: *oldest_ms,
            workers_busy: *workers_busy,
            workers_reserved: *workers_reserved,
            workers_unusable: Some(proto::UnusableWorkers { cordoned, lost, suspect, ended, draining }),
            workers_needed: *workers_needed,
            workers_wanted: demand.workers_wanted(),
            shapes: shapes.iter().map(Into::into).collect(),
            idle: idle.collect(),
        }
    }
}

impl From<&DemandShape> for proto::DemandShape {
    fn from(shape: &DemandShape) -> Self {
        let DemandShape { resources, selector, nodes, reason, waiting, oldest_ms, priority, workers_needed } = shape;
        let ResourceRequirements { cpu_milli, memory_bytes, slots, gpu } = resources;
        let gpu = gpu.as_ref().map(Into::into);
        let resources = proto::Resources { cpu_milli: *cpu_milli, memory_bytes: *memory_bytes, slots: *slots, gpu };
        Self {
            resources: Some(resources),
            selector: selector.clone(),
            nodes: nodes.clone(),
            reason: proto::Reason::from_name(Some(reason)) as i32,
            waiting: *waiting,
            oldest_ms: *oldest_ms,
            priority: (*priority).into(),
            workers_needed: *workers_needed,
        }
    }
}

impl From<&QuotaStatus> for proto::Quota {
    fn from(status: &QuotaStatus) -> Self {
        let QuotaStatus { namespace, tenant, quota, source, used, waiting } = status;
        let Quota { claims, cpu_milli, memory_bytes, gpu_milli, weight } = *quota;
        let source = match source {
            QuotaSource::Tenant => proto::QuotaSource::Tenant,
            QuotaSource::Namespace => proto::QuotaSource::Namespace,
            QuotaSource::None => proto::QuotaSource::None,
        };
        Self {
            namespace: namespace.clone(),
            tenant: tenant.clone(),
            source: source as i32,
            spec: Some(proto::QuotaSpec { claims, cpu_milli, memory_bytes, gpu_milli, weight: Some(weight) }),
            used: tenant.is_some().then(|| (*used).into()),
            waiting: *waiting,
        }
    }
}

impl From<ResourceUsage> for proto::QuotaUse {
    fn from(ResourceUsage { claims, cpu_milli, memory_bytes, gpu_milli }: ResourceUsage) -> Self {
        Self { claims, cpu_milli, memory_bytes, gpu_milli }
    }
}
