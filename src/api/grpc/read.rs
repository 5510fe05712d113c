//! From messages to checked values. Where HTTP has the same request, it is filled in and checked there, so that both
//! edges refuse the same and name the same field.

use std::borrow::Cow;

use super::proto;
use super::proto::take_claim_request::Candidates;
use crate::api::error_table::Failure;
use crate::api::http::json::{
    ClaimBody, HeartbeatBody, HolderBody, NamedBodies, NamedBody, NodeBody, Phase, TENANT_DEFAULT, Text, ThenWaitBody,
    WorkerBody,
};
use crate::api::http::read::{List, Texts};
use crate::limits;
use crate::model::{
    Ack, Beat, Capacity, ClaimFilter, ClaimId, ClaimRequest, ClaimState, Fence, GpuAsk, GpuCapacity, Mode, Policy,
    PoolName, PoolSpec, Quota, Registration, Resources, TypicalRequest, WorkerId,
};

fn text(value: &str) -> Text<'_> {
    Text(Cow::Borrowed(value))
}

/// At most `MAX` of them, as HTTP takes them.
fn texts<'a, const MAX: usize>(field: &'static str, values: &'a [String]) -> Result<Texts<'a, MAX>, Failure> {
    if values.len() > MAX {
        return Err(Failure::invalid(field, format!("at most {MAX} items")));
    }
    Ok(Texts(values.iter().map(|value| text(value)).collect()))
}

/// The value of an enumeration, or that there is no such value.
fn known<E: TryFrom<i32>>(field: &'static str, number: i32) -> Result<E, Failure> {
    E::try_from(number).map_err(|_| Failure::invalid(field, format!("has no value {number}")))
}

fn ack(number: i32) -> Result<Option<Ack>, Failure> {
    Ok(match known("ack", number)? {
        proto::Ack::Unspecified => None,
        proto::Ack::Memory => Some(Ack::Memory),
        proto::Ack::Durable => Some(Ack::Durable),
    })
}

/// A request for one worker.
pub(super) fn claim(request: &proto::TakeClaimRequest) -> Result<ClaimRequest, Failure> {
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
        Some(Candidates::Pool(name)) => pool = Some(text(name)),
        Some(Candidates::Pools(list)) => pools = Some(texts("pools", &list.names)?),
        Some(Candidates::PoolSelector(selector)) => pool_selector = Some(text(selector)),
    }
    let node = node.as_ref().map(|node| {
        let then_wait = node.preferred_then_wait.as_ref().map(|wait| {
            Ok::<_, Failure>(ThenWaitBody { nodes: texts("node.preferred_then_wait.nodes", &wait.nodes)?, ms: wait.ms })
        });
        let (required, preferred) =
            (texts("node.required", &node.required)?, texts("node.preferred", &node.preferred)?);
        Ok::<_, Failure>(NodeBody { required, preferred, preferred_then_wait: then_wait.transpose()? })
    });
    let body = ClaimBody {
        namespace: text(namespace),
        key: key.as_deref().map(text),
        tenant: tenant.as_deref().map(text),
        pool,
        pools,
        pool_selector,
        class: class.as_deref().map(text),
        resources: resources.clone().map(self::resources).transpose()?,
        selector: selector.as_deref().map(text),
        node: node.transpose()?,
        worker: worker.as_deref().map(text),
        affinity: affinity.as_deref().map(text),
        reserve_ms: *reserve_ms,
        ttl_ms: *ttl_ms,
        ack: ack(*ack_number)?,
        must_match: *must_match,
        labels: labels.clone(),
        wait_ms: *wait_ms,
        priority,
        preemptible: preemptible.unwrap_or(false),
    };
    body.request()
}

/// How a batch is carried out: true for all or nothing.
pub(super) fn batch(mode: i32, items: usize) -> Result<bool, Failure> {
    let whole = match known("mode", mode)? {
        proto::BatchMode::Unspecified => return Err(Failure::invalid("mode", "is required")),
        proto::BatchMode::Independent => false,
        proto::BatchMode::AllOrNothing => true,
    };
    batch_size("items", items)?;
    Ok(whole)
}

/// Whether a batch is small enough.
pub(super) fn batch_size(field: &'static str, items: usize) -> Result<(), Failure> {
    if items > limits::BATCH_ITEMS_MAX {
        return Err(Failure::invalid(field, format!("at most {} items", limits::BATCH_ITEMS_MAX)));
    }
    Ok(())
}

/// Whose claim.
pub(super) fn claim_id(namespace: &str, tenant: Option<&str>, key: &str) -> Result<ClaimId, Failure> {
    Ok(ClaimId::new(namespace, tenant.unwrap_or(TENANT_DEFAULT), key)?)
}

/// Whose claim, and under which fence.
pub(super) fn holder(
    namespace: &str,
    tenant: Option<&str>,
    key: &str,
    fence: Fence,
) -> Result<(ClaimId, Fence), Failure> {
    HolderBody { fence, tenant: tenant.map(text) }.holder(namespace, key)
}

/// Which step of a release, if it is done in two.
pub(super) fn phase(number: i32) -> Result<Option<Phase>, Failure> {
    Ok(match known("phase", number)? {
        proto::ReleasePhase::Unspecified => None,
        proto::ReleasePhase::Begin => Some(Phase::Begin),
        proto::ReleasePhase::Finish => Some(Phase::Finish),
    })
}

/// What a worker says that it runs.
fn named(claims: Option<&proto::HeldClaims>) -> Result<Option<NamedBodies<'_>>, Failure> {
    let Some(proto::HeldClaims { claims }) = claims else { return Ok(None) };
    if claims.len() > limits::NAMED_CLAIMS_MAX {
        return Err(Failure::invalid("claims", format!("at most {} items", limits::NAMED_CLAIMS_MAX)));
    }
    let mut named = Vec::with_capacity(claims.len());
    for proto::HeldClaim { tenant, key, fence } in claims {
        named.push(NamedBody { tenant: tenant.as_deref().map(text), key: text(key), fence: *fence });
    }
    Ok(Some(List(named)))
}

/// What a worker says of itself.
pub(super) fn beat(request: &proto::HeartbeatWorkerRequest) -> Result<Beat, Failure> {
    let proto::HeartbeatWorkerRequest { namespace, pool: _, id: _, incarnation, seq, claims } = request;
    HeartbeatBody { incarnation: *incarnation, seq: *seq, claims: named(claims.as_ref())? }.beat(namespace)
}

/// What one of many workers says of itself.
pub(super) fn beat_of(namespace: &str, beat: &proto::WorkerHeartbeat) -> Result<(WorkerId, Beat), Failure> {
    let proto::WorkerHeartbeat { id, incarnation, seq, claims } = beat;
    let body = HeartbeatBody { incarnation: *incarnation, seq: *seq, claims: named(claims.as_ref())? };
    Ok((WorkerId::new(id)?, body.beat(namespace)?))
}

/// Which claims a listing shows.
pub(super) fn filter(request: proto::ListClaimsRequest) -> Result<ClaimFilter, Failure> {
    let proto::ListClaimsRequest { namespace, pool, worker, tenant, page_token: _, limit: _, states, older_than_ms } =
        request;
    let state = |number: i32| match known("states", number)? {
        proto::ClaimState::Reserved => Ok(ClaimState::Reserved),
        proto::ClaimState::Active => Ok(ClaimState::Active),
        proto::ClaimState::Releasing => Ok(ClaimState::Releasing),
        proto::ClaimState::Unspecified | proto::ClaimState::Lost => {
            Err(Failure::invalid("states", "must be of RESERVED, ACTIVE, RELEASING: others are not listed"))
        }
    };
    let states = states.into_iter().map(state).collect::<Result<_, Failure>>()?;
    Ok(ClaimFilter { namespace, pool, worker, tenant, states, older_than_ms }.checked()?)
}

/// Items on a page.
pub(super) fn limit(limit: Option<u32>) -> Result<usize, Failure> {
    match limit.map_or(limits::PAGE_ITEMS_DEFAULT, |limit| limit as usize) {
        limit if (1..=limits::PAGE_ITEMS_MAX).contains(&limit) => Ok(limit),
        _ => Err(Failure::invalid("limit", format!("must be 1..={}", limits::PAGE_ITEMS_MAX))),
    }
}

/// What a claim asks for.
pub(super) fn resources(resources: proto::Resources) -> Result<Resources, Failure> {
    let proto::Resources { cpu_milli, memory_bytes, slots, gpu } = resources;
    let gpu = gpu.map(|gpu| cards("resources.gpu", gpu)).transpose()?;
    Ok(Resources { cpu_milli, memory_bytes, slots, gpu })
}

fn cards(field: &str, gpu: proto::GpuShare) -> Result<GpuAsk, Failure> {
    let proto::GpuShare { model, count, milli, models, cards } = gpu;
    if !cards.is_empty() {
        return Err(Failure::invalid(format!("{field}.cards"), "is the service's to say"));
    }
    let models = match model {
        Some(_) if !models.is_empty() => {
            return Err(Failure::invalid(field.to_owned(), "only one of model and models may be given"));
        }
        Some(model) => vec![model.into()],
        None => models.into_iter().map(Into::into).collect(),
    };
    Ok(GpuAsk { models, count: count.unwrap_or(1), milli: milli.unwrap_or(limits::CARD_MILLI) })
}

fn capacity(capacity: Option<proto::Capacity>) -> Capacity {
    let proto::Capacity { cpu_milli, memory_bytes, slots, gpu } = capacity.unwrap_or_default();
    let gpu = gpu.map(|proto::Gpu { model, count }| GpuCapacity { model: model.into(), count });
    Capacity { cpu_milli, memory_bytes, slots, gpu }
}

/// A registration.
pub(super) fn worker(namespace: &str, spec: proto::WorkerSpec) -> Result<Registration, Failure> {
    let proto::WorkerSpec { id, capacity: has, labels, node, incarnation, expires_at_ms, claims } = spec;
    let claims = named(claims.as_ref())?;
    WorkerBody { capacity: capacity(has), labels, node, incarnation, expires_at_ms, claims }
        .registration(namespace, &id)
}

/// A quota; what is left out is not bounded.
pub(super) fn quota(spec: proto::QuotaSpec) -> Quota {
    let proto::QuotaSpec { claims, cpu_milli, memory_bytes, gpu_milli, weight } = spec;
    Quota { claims, cpu_milli, memory_bytes, gpu_milli, weight: weight.unwrap_or(Quota::default().weight) }
}

/// A pool and one of its workers.
pub(super) fn worker_id(namespace: &str, pool: &str, id: &str) -> Result<(PoolName, WorkerId), Failure> {
    Ok((PoolName::new(namespace, pool)?, WorkerId::new(id)?))
}

/// A specification, not checked yet; what is left out has its default.
pub(super) fn pool_spec(spec: proto::PoolSpec) -> Result<PoolSpec, Failure> {
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
        waiters_max,
        waiters_tenant_max,
        preemption,
        spare_gpu_workers,
        typical_requests,
        ttl_default_ms,
        ttl_max_ms,
    } = spec;
    let typical = typical_requests.into_iter().enumerate().map(|(i, kind)| {
        let proto::TypicalRequest { cpu_milli, gpu, weight } = kind;
        let field = format!("typical_requests[{i}].gpu");
        Ok(TypicalRequest { cpu_milli, gpu: gpu.map(|gpu| cards(&field, gpu)).transpose()?, weight })
    });
    Ok(PoolSpec {
        // What does not fit is no power of two that a pool may have.
        shards: shards.map_or(default.shards, |shards| u16::try_from(shards).unwrap_or(u16::MAX)),
        mode: match known("mode", mode)? {
            proto::Mode::Unspecified => default.mode,
            proto::Mode::Exclusive => Mode::Exclusive,
            proto::Mode::Shared => Mode::Shared,
        },
        policy: match known("policy", policy)? {
            proto::Policy::Unspecified => default.policy,
            proto::Policy::Lifo => Some(Policy::Lifo),
            proto::Policy::Fifo => Some(Policy::Fifo),
            proto::Policy::Random => Some(Policy::Random),
            proto::Policy::BestFit => Some(Policy::BestFit),
            proto::Policy::Spread => Some(Policy::Spread),
            proto::Policy::Fgd => Some(Policy::Fgd),
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
        spare_gpu_workers: spare_gpu_workers.unwrap_or(default.spare_gpu_workers),
        typical_requests: typical.collect::<Result<_, Failure>>()?,
        preemption: preemption.unwrap_or(default.preemption),
        waiters_max: waiters_max.map_or(default.waiters_max, |max| u32::try_from(max).unwrap_or(u32::MAX)),
        waiters_tenant_max: waiters_tenant_max
            .map_or(default.waiters_tenant_max, |max| u32::try_from(max).unwrap_or(u32::MAX)),
    })
}
