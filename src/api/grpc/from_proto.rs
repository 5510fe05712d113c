//! Converts messages to checked values. Where HTTP has the same request, its form is filled in and checked, so that
//! both edges reject the same values and name the same field.

use super::proto;
use super::proto::take_claim_request::Candidates;
use crate::api::error_table::ApiError;
use crate::api::request::{
    BatchMode, BoundedList, BoundedTexts, ClaimBody, DEFAULT_TENANT, HeartbeatBody, HolderBody, NodeConstraintsBody,
    PreferredWaitBody, ReleasePhase, ReportedClaimBodies, ReportedClaimBody, WorkerBody, page_limit_error,
};
use crate::limits;
use crate::model::{
    AckLevel, ClaimFilter, ClaimId, ClaimRequest, ClaimState, Fence, GpuCapacity, GpuRequest, HeartbeatRequest,
    ListedState, ObjectItem, PlacementPolicy, PoolMode, PoolName, PoolSpec, Quota, RegistrationRequest,
    ResourceRequirements, TypicalRequest, WorkerCapacity, WorkerId,
};

/// Converts at most `MAX` texts, the limit that HTTP has too.
fn texts<'a, const MAX: usize>(field: &'static str, values: &'a [String]) -> Result<BoundedTexts<'a, MAX>, ApiError> {
    if values.len() > MAX {
        return Err(ApiError::invalid(field, format!("at most {MAX} items")));
    }
    Ok(BoundedTexts(values.iter().map(|value| (&**value).into()).collect()))
}

/// Converts the number of an enumeration, or rejects an unknown value.
fn parse_enum<E: TryFrom<i32>>(field: &'static str, number: i32) -> Result<E, ApiError> {
    E::try_from(number).map_err(|_| ApiError::invalid(field, format!("unknown value {number}")))
}

fn ack(number: i32) -> Result<Option<AckLevel>, ApiError> {
    Ok(match parse_enum("ack", number)? {
        proto::Ack::Unspecified => None,
        proto::Ack::Memory => Some(AckLevel::Memory),
        proto::Ack::Durable => Some(AckLevel::Durable),
    })
}

/// Converts a [`proto::TakeClaimRequest`] to the request of the scheduler.
pub(super) fn claim(request: &proto::TakeClaimRequest) -> Result<ClaimRequest, ApiError> {
    let proto::TakeClaimRequest {
        namespace,
        key,
        tenant,
        candidates,
        affinity,
        reserve_ms,
        ack: ack_number,
        ttl_ms,
        selector,
        class,
        worker,
        node,
        resources,
        must_match,
        labels,
        wait_ms,
        priority,
        preemptible,
    } = request;
    let priority = priority.map(|priority| u64::try_from(priority).unwrap_or(u64::MAX));
    let (mut pool, mut pools, mut pool_selector) = (None, None, None);
    match candidates {
        None => {}
        Some(Candidates::Pool(name)) => pool = Some((&**name).into()),
        Some(Candidates::Pools(list)) => pools = Some(texts("pools", &list.names)?),
        Some(Candidates::PoolSelector(selector)) => pool_selector = Some((&**selector).into()),
    }
    let node = node.as_ref().map(|node| {
        let then_wait = node.preferred_then_wait.as_ref().map(|wait| {
            Ok::<_, ApiError>(PreferredWaitBody {
                nodes: texts("node.preferred_then_wait.nodes", &wait.nodes)?,
                ms: wait.ms,
            })
        });
        let (required, preferred) =
            (texts("node.required", &node.required)?, texts("node.preferred", &node.preferred)?);
        Ok::<_, ApiError>(NodeConstraintsBody { required, preferred, preferred_then_wait: then_wait.transpose()? })
    });
    let body = ClaimBody {
        namespace: (&**namespace).into(),
        key: key.as_deref().map(Into::into),
        tenant: tenant.as_deref().map(Into::into),
        pool,
        pools,
        pool_selector,
        class: class.as_deref().map(Into::into),
        resources: resources.clone().map(self::resources).transpose()?,
        selector: selector.as_deref().map(Into::into),
        node: node.transpose()?,
        worker: worker.as_deref().map(Into::into),
        affinity: affinity.as_deref().map(Into::into),
        reserve_ms: *reserve_ms,
        ttl_ms: *ttl_ms,
        ack: ack(*ack_number)?,
        must_match: *must_match,
        labels: labels.clone(),
        wait_ms: *wait_ms,
        priority,
        preemptible: preemptible.unwrap_or(false),
    };
    body.into_request()
}

/// Converts the mode of a batch, and checks its size.
pub(super) fn batch_mode(mode: i32, items: usize) -> Result<BatchMode, ApiError> {
    let mode = match parse_enum("mode", mode)? {
        proto::BatchMode::Unspecified => return Err(ApiError::invalid("mode", "is required")),
        proto::BatchMode::Independent => BatchMode::Independent,
        proto::BatchMode::AllOrNothing => BatchMode::AllOrNothing,
    };
    check_batch_size("items", items)?;
    Ok(mode)
}

/// Checks that a batch has at most [`limits::BATCH_ITEMS_MAX`] items.
pub(super) fn check_batch_size(field: &'static str, items: usize) -> Result<(), ApiError> {
    if items > limits::BATCH_ITEMS_MAX {
        return Err(ApiError::invalid(field, format!("at most {} items", limits::BATCH_ITEMS_MAX)));
    }
    Ok(())
}

/// Checks and builds the identity of a claim.
pub(super) fn claim_id(namespace: &str, tenant: Option<&str>, key: &str) -> Result<ClaimId, ApiError> {
    Ok(ClaimId::new(namespace, tenant.unwrap_or(DEFAULT_TENANT), key)?)
}

/// Checks and builds the identity of a claim with its fence.
pub(super) fn claim_and_fence(
    namespace: &str,
    tenant: Option<&str>,
    key: &str,
    fence: Fence,
) -> Result<(ClaimId, Fence), ApiError> {
    HolderBody { fence, tenant: tenant.map(Into::into) }.claim_and_fence(namespace, key)
}

/// Converts the phase of a release, if it is done in two calls.
pub(super) fn phase(number: i32) -> Result<Option<ReleasePhase>, ApiError> {
    Ok(match parse_enum("phase", number)? {
        proto::ReleasePhase::Unspecified => None,
        proto::ReleasePhase::Begin => Some(ReleasePhase::Begin),
        proto::ReleasePhase::Finish => Some(ReleasePhase::Finish),
    })
}

/// Converts the claims that a worker reports as running.
fn reported_claims(claims: Option<&proto::HeldClaims>) -> Result<Option<ReportedClaimBodies<'_>>, ApiError> {
    let Some(proto::HeldClaims { claims }) = claims else { return Ok(None) };
    if claims.len() > limits::REPORTED_CLAIMS_MAX {
        return Err(ApiError::invalid("claims", format!("at most {} items", limits::REPORTED_CLAIMS_MAX)));
    }
    let mut reported = Vec::with_capacity(claims.len());
    for proto::HeldClaim { tenant, key, fence } in claims {
        reported.push(ObjectItem(ReportedClaimBody {
            tenant: tenant.as_deref().map(Into::into),
            key: (&**key).into(),
            fence: *fence,
        }));
    }
    Ok(Some(BoundedList(reported)))
}

/// Converts the heartbeat of one worker.
pub(super) fn heartbeat(request: &proto::HeartbeatWorkerRequest) -> Result<HeartbeatRequest, ApiError> {
    let proto::HeartbeatWorkerRequest { namespace, pool: _, id: _, incarnation, seq, claims } = request;
    HeartbeatBody { incarnation: *incarnation, seq: *seq, claims: reported_claims(claims.as_ref())? }
        .heartbeat(namespace)
}

/// Converts the heartbeat of one worker in a batch.
pub(super) fn batch_heartbeat(
    namespace: &str,
    heartbeat: &proto::WorkerHeartbeat,
) -> Result<(WorkerId, HeartbeatRequest), ApiError> {
    let proto::WorkerHeartbeat { id, incarnation, seq, claims } = heartbeat;
    let body = HeartbeatBody { incarnation: *incarnation, seq: *seq, claims: reported_claims(claims.as_ref())? };
    Ok((WorkerId::new(id)?, body.heartbeat(namespace)?))
}

/// Converts the filter of a listing of claims.
pub(super) fn filter(request: proto::ListClaimsRequest) -> Result<ClaimFilter, ApiError> {
    let proto::ListClaimsRequest { namespace, pool, worker, tenant, page_token: _, limit: _, states, older_than_ms } =
        request;
    let state = |number: i32| match parse_enum("states", number)? {
        proto::ClaimState::Reserved => Ok(ListedState::Held(ClaimState::Reserved)),
        proto::ClaimState::Active => Ok(ListedState::Held(ClaimState::Active)),
        proto::ClaimState::Releasing => Ok(ListedState::Held(ClaimState::Releasing)),
        proto::ClaimState::Waiting => Ok(ListedState::Waiting),
        proto::ClaimState::Unspecified | proto::ClaimState::Lost => Err(ApiError::invalid(
            "states",
            "must be RESERVED, ACTIVE, RELEASING or WAITING: claims in other states are not listed",
        )),
    };
    let states: Vec<_> = states.into_iter().map(state).collect::<Result<_, ApiError>>()?;
    let filter = ClaimFilter { namespace, pool, worker, tenant, older_than_ms, ..ClaimFilter::default() };
    Ok(filter.in_states(&states).checked()?)
}

/// Checks the number of items on a page.
pub(super) fn limit(limit: Option<u32>) -> Result<usize, ApiError> {
    match limit.map_or(limits::PAGE_ITEMS_DEFAULT, |limit| limit as usize) {
        limit if (1..=limits::PAGE_ITEMS_MAX).contains(&limit) => Ok(limit),
        _ => Err(page_limit_error()),
    }
}

/// Converts the resources that a claim requests.
pub(super) fn resources(resources: proto::Resources) -> Result<ResourceRequirements, ApiError> {
    let proto::Resources { cpu_milli, memory_bytes, slots, gpu } = resources;
    let gpu = gpu.map(|gpu| gpu_request("resources.gpu", gpu)).transpose()?;
    Ok(ResourceRequirements { cpu_milli, memory_bytes, slots, gpu })
}

fn gpu_request(field: &str, gpu: proto::GpuShare) -> Result<GpuRequest, ApiError> {
    let proto::GpuShare { model, count, milli, models, cards } = gpu;
    if !cards.is_empty() {
        return Err(ApiError::invalid(format!("{field}.cards"), "is set by the service: leave it out"));
    }
    let models = match model {
        Some(_) if !models.is_empty() => {
            return Err(ApiError::invalid(field.to_owned(), "only one of model and models may be given"));
        }
        Some(model) => vec![model.into()],
        None => models.into_iter().map(Into::into).collect(),
    };
    Ok(GpuRequest { models, count: count.unwrap_or(1), milli: milli.unwrap_or(limits::GPU_MILLI) })
}

fn capacity(capacity: Option<proto::Capacity>) -> WorkerCapacity {
    let proto::Capacity { cpu_milli, memory_bytes, slots, gpu } = capacity.unwrap_or_default();
    let gpu = gpu.map(|proto::Gpu { model, count }| GpuCapacity { model: model.into(), count });
    WorkerCapacity { cpu_milli, memory_bytes, slots, gpu }
}

/// Converts the registration of a worker.
pub(super) fn worker(namespace: &str, spec: proto::WorkerSpec) -> Result<RegistrationRequest, ApiError> {
    let proto::WorkerSpec { id, capacity, labels, node, incarnation, expires_at_ms, claims } = spec;
    let claims = reported_claims(claims.as_ref())?;
    WorkerBody { capacity: self::capacity(capacity), labels, node, incarnation, expires_at_ms, claims }
        .into_registration(namespace, &id)
}

/// Converts a quota; an omitted resource is unlimited.
pub(super) fn quota(spec: proto::QuotaSpec) -> Quota {
    let proto::QuotaSpec { claims, cpu_milli, memory_bytes, gpu_milli, weight } = spec;
    Quota { claims, cpu_milli, memory_bytes, gpu_milli, weight: weight.unwrap_or(Quota::default().weight) }
}

/// Checks a pool's name and a worker's id.
pub(super) fn worker_id(namespace: &str, pool: &str, id: &str) -> Result<(PoolName, WorkerId), ApiError> {
    Ok((PoolName::new(namespace, pool)?, WorkerId::new(id)?))
}

/// Converts a specification without checking it; omitted fields get their defaults.
pub(super) fn pool_spec(spec: proto::PoolSpec) -> Result<PoolSpec, ApiError> {
    let default = PoolSpec::default();
    let proto::PoolSpec {
        shards,
        mode,
        policy,
        ack: ack_number,
        labels,
        class,
        reserve_ms,
        lag_max_ms,
        releasing_ms,
        heartbeat_ttl_ms,
        unnamed_ms,
        lost_keep_ms,
        hold_max_ms,
        waiters_max,
        waiters_tenant_max,
        preemption,
        spare_gpu_workers,
        typical_requests,
        ttl_default_ms,
        ttl_max_ms,
    } = spec;
    let typical = typical_requests.into_iter().enumerate().map(|(i, typical)| {
        let proto::TypicalRequest { cpu_milli, gpu, weight } = typical;
        let field = format!("typical_requests[{i}].gpu");
        Ok(TypicalRequest { cpu_milli, gpu: gpu.map(|gpu| gpu_request(&field, gpu)).transpose()?, weight })
    });
    Ok(PoolSpec {
        // Too large values become one that the check of the specification rejects.
        shards: shards.map_or(default.shards, |shards| u16::try_from(shards).unwrap_or(u16::MAX)),
        mode: match parse_enum("mode", mode)? {
            proto::Mode::Unspecified => default.mode,
            proto::Mode::Exclusive => PoolMode::Exclusive,
            proto::Mode::Shared => PoolMode::Shared,
        },
        policy: match parse_enum("policy", policy)? {
            proto::Policy::Unspecified => default.policy,
            proto::Policy::Lifo => Some(PlacementPolicy::Lifo),
            proto::Policy::Fifo => Some(PlacementPolicy::Fifo),
            proto::Policy::Random => Some(PlacementPolicy::Random),
            proto::Policy::BestFit => Some(PlacementPolicy::BestFit),
            proto::Policy::Spread => Some(PlacementPolicy::Spread),
            proto::Policy::Fgd => Some(PlacementPolicy::Fgd),
        },
        ack: ack(ack_number)?.unwrap_or(default.ack),
        labels,
        class,
        reserve_ms: reserve_ms.unwrap_or(default.reserve_ms),
        ttl_default_ms,
        ttl_max_ms,
        lag_max_ms: lag_max_ms.unwrap_or(default.lag_max_ms),
        releasing_ms: releasing_ms.unwrap_or(default.releasing_ms),
        heartbeat_ttl_ms: heartbeat_ttl_ms.unwrap_or(default.heartbeat_ttl_ms),
        unnamed_ms,
        lost_keep_ms: lost_keep_ms.unwrap_or(default.lost_keep_ms),
        hold_max_ms: hold_max_ms.unwrap_or(default.hold_max_ms),
        spare_gpu_workers: spare_gpu_workers.unwrap_or(default.spare_gpu_workers),
        typical_requests: typical.collect::<Result<_, ApiError>>()?,
        preemption: preemption.unwrap_or(default.preemption),
        waiters_max: waiters_max.map_or(default.waiters_max, |max| u32::try_from(max).unwrap_or(u32::MAX)),
        waiters_tenant_max: waiters_tenant_max
            .map_or(default.waiters_tenant_max, |max| u32::try_from(max).unwrap_or(u32::MAX)),
    })
}
