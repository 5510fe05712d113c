//! From messages to checked values. Where HTTP has the same request, it is filled in and checked there, so that both
//! edges refuse the same and name the same field.

use std::borrow::Cow;

use super::proto;
use super::proto::take_claim_request::Candidates;
use crate::api::http::json::{ClaimBody, HolderBody, TENANT_DEFAULT, Text, WorkerBody};
use crate::api::outcome::Failure;
use crate::limits;
use crate::model::{
    Ack, Capacity, ClaimFilter, ClaimId, ClaimRequest, Fence, GpuCapacity, Mode, Policy, PoolName, PoolSpec, WorkerId,
    WorkerSpec,
};

fn text(value: &str) -> Text<'_> {
    Text(Cow::Borrowed(value))
}

/// A field or a value that later versions have.
fn not_built(field: &'static str) -> Failure {
    Failure::invalid(field, "is not built in this version")
}

/// Refuses `field` if it is set.
fn refuse(field: &'static str, set: bool) -> Result<(), Failure> {
    if set { Err(not_built(field)) } else { Ok(()) }
}

/// The value of an enumeration, or that there is no such value.
fn known<E: TryFrom<i32>>(field: &'static str, number: i32) -> Result<E, Failure> {
    E::try_from(number).map_err(|_| Failure::invalid(field, format!("has no value {number}")))
}

/// A name in a request that must be there.
pub(super) fn required<'a, T>(field: &'static str, message: Option<&'a T>) -> Result<&'a T, Failure> {
    message.ok_or_else(|| Failure::invalid(field, "is required"))
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
    let pool = match required("pool", candidates.as_ref())? {
        Candidates::Pool(pool) => pool,
        Candidates::Pools(_) => return Err(not_built("pools")),
        Candidates::PoolSelector(_) => return Err(not_built("pool_selector")),
    };
    refuse("ttl_ms", ttl_ms.is_some())?;
    refuse("selector", selector.is_some())?;
    refuse("class", class.is_some())?;
    refuse("worker", worker.is_some())?;
    refuse("node", node.is_some())?;
    refuse("resources", resources.is_some())?;
    refuse("must_match", *must_match)?;
    refuse("labels", !labels.is_empty())?;
    refuse("wait_ms", wait_ms.is_some_and(|wait_ms| wait_ms > 0))?;
    refuse("priority", priority.is_some())?;
    refuse("preemptible", preemptible.is_some())?;
    let body = ClaimBody {
        namespace: text(namespace),
        key: key.as_deref().map(text),
        tenant: tenant.as_deref().map(text),
        pool: text(pool),
        affinity: affinity.as_deref().map(text),
        reserve_ms: *reserve_ms,
        ack: ack(*ack_number)?,
    };
    body.request()
}

/// Whether a batch may be carried out.
pub(super) fn batch(mode: i32, items: usize) -> Result<(), Failure> {
    match known("mode", mode)? {
        proto::BatchMode::Unspecified => return Err(Failure::invalid("mode", "is required")),
        proto::BatchMode::Independent => {}
        proto::BatchMode::AllOrNothing => {
            return Err(Failure::invalid("mode", "all_or_nothing is not built in this version; known: independent"));
        }
    }
    batch_size("items", items)
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

/// Which phase of a release: only the whole of it is built.
pub(super) fn phase(number: i32) -> Result<(), Failure> {
    match known("phase", number)? {
        proto::ReleasePhase::Unspecified => Ok(()),
        proto::ReleasePhase::Begin | proto::ReleasePhase::Finish => Err(not_built("phase")),
    }
}

/// Which claims a listing shows.
pub(super) fn filter(request: proto::ListClaimsRequest) -> Result<ClaimFilter, Failure> {
    let proto::ListClaimsRequest { namespace, pool, worker, tenant, page_token: _, limit: _ } = request;
    Ok(ClaimFilter { namespace, pool, worker, tenant }.checked()?)
}

/// Items on a page.
pub(super) fn limit(limit: Option<u32>) -> Result<usize, Failure> {
    match limit.map_or(limits::PAGE_ITEMS_DEFAULT, |limit| limit as usize) {
        limit if (1..=limits::PAGE_ITEMS_MAX).contains(&limit) => Ok(limit),
        _ => Err(Failure::invalid("limit", format!("must be 1..={}", limits::PAGE_ITEMS_MAX))),
    }
}

fn capacity(capacity: Option<proto::Capacity>) -> Capacity {
    let proto::Capacity { cpu_milli, memory_bytes, slots, gpu } = capacity.unwrap_or_default();
    let gpu = gpu.map(|proto::Gpu { model, count }| GpuCapacity { model: model.into(), count });
    Capacity { cpu_milli, memory_bytes, slots, gpu }
}

/// A registration.
pub(super) fn worker(spec: proto::WorkerSpec) -> Result<WorkerSpec, Failure> {
    let proto::WorkerSpec { id, capacity: has, labels, node, incarnation, expires_at_ms, claims } = spec;
    refuse("expires_at_ms", expires_at_ms.is_some())?;
    refuse("claims", claims.is_some())?;
    WorkerBody { capacity: capacity(has), labels, node, incarnation }.spec(&id)
}

/// A pool and one of its workers.
pub(super) fn worker_id(namespace: &str, pool: &str, id: &str) -> Result<(PoolName, WorkerId), Failure> {
    Ok((PoolName::new(namespace, pool)?, WorkerId::new(id)?))
}

/// A specification; what is left out has its default.
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
        waiters_max,
    } = spec;
    refuse("releasing_ms", releasing_ms.is_some())?;
    refuse("heartbeat_ttl_ms", heartbeat_ttl_ms.is_some())?;
    refuse("waiters_max", waiters_max.is_some())?;
    let spec = PoolSpec {
        // What does not fit is no power of two that a pool may have.
        shards: shards.map_or(default.shards, |shards| u16::try_from(shards).unwrap_or(u16::MAX)),
        mode: match known("mode", mode)? {
            proto::Mode::Unspecified => default.mode,
            proto::Mode::Exclusive => Mode::Exclusive,
        },
        policy: match known("policy", policy)? {
            proto::Policy::Unspecified => default.policy,
            proto::Policy::Lifo => Policy::Lifo,
            proto::Policy::Fifo => Policy::Fifo,
            proto::Policy::Random => Policy::Random,
        },
        ack: ack(ack_number)?.unwrap_or(default.ack),
        labels,
        class,
        reserve_ms: reserve_ms.unwrap_or(default.reserve_ms),
        lag_max_ms: lag_max_ms.unwrap_or(default.lag_max_ms),
    };
    spec.check()?;
    Ok(spec)
}
