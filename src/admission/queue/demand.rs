//! Demand of a pool: the claims that wait, grouped by what they request.

use std::collections::BTreeMap;

use super::RequestClass;
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::pool_registry::Pool;
use crate::admission::tenant::Tenant;
use crate::model::request_error::ExhaustionReason;
use crate::model::{DemandShape, Millis, ResourceRequirements, ResourceUsage};

/// Request and reason of the wait.
type DemandKey = (String, Option<String>, Vec<String>, &'static str);

impl ClaimDispatcher {
    /// Groups the claims that wait for capacity of the pool, or would but for their tenant's quota. The number of workers
    /// that they need is left out.
    pub(crate) fn demand(&self, pool: &Pool) -> Vec<DemandShape> {
        let now_ms = self.clock.engine_ms();
        let mut shapes: BTreeMap<DemandKey, DemandShape> = BTreeMap::new();
        let mut add = |class: &RequestClass, reason, waiting: u64, oldest_ms: Millis, priority: u16| {
            let shape = shape_of(class, reason);
            let key = (format!("{:?}", shape.resources), shape.selector.clone(), shape.nodes.clone(), reason);
            let shape = shapes.entry(key).or_insert(shape);
            shape.waiting += waiting;
            shape.oldest_ms = shape.oldest_ms.max(oldest_ms);
            shape.priority = shape.priority.max(priority);
        };
        let queue = pool.wait_queue.lock();
        for lane in queue.queue.lanes() {
            let head = lane.head;
            let reason = reason_of(&head.tenant, &head.amounts());
            add(&head.class, reason, lane.claims as u64, now_ms.saturating_sub(head.since_ms), head.priority);
        }
        for gang in queue.gangs.values() {
            let reason = gang.exhausted.as_str();
            let waited_ms = now_ms.saturating_sub(gang.since_ms);
            gang.classes.iter().for_each(|class| add(class, reason, 1, waited_ms, gang.priority));
        }
        shapes.into_values().collect()
    }

    /// Number of a tenant's claims that its quota keeps back.
    #[must_use]
    pub(crate) fn waiting_for_quota(&self, tenant: &Tenant) -> u64 {
        let pools = self.pools.load();
        let headroom = tenant.headroom();
        let pools = tenant.waiting_pools().into_iter().filter_map(|number| pools.by_number(number).cloned());
        pools.map(|pool| count_short(&pool, |other| other.number == tenant.number, |_| headroom)).sum()
    }

    /// Number of claims that wait for their tenants' quotas.
    pub(crate) fn quota_waiting_len(&self) -> u64 {
        self.pools.load().iter().map(|pool| count_short(pool, |_| true, Tenant::headroom)).sum()
    }
}

/// Claims of some tenants that wait because of the quota. One that waits in several pools counts in the first.
fn count_short(pool: &Pool, of: impl Fn(&Tenant) -> bool, headroom: impl Fn(&Tenant) -> ResourceUsage) -> u64 {
    if pool.wait_queue.waiting() == 0 {
        return 0;
    }
    let queue = pool.wait_queue.lock();
    let lanes =
        queue.queue.lanes().filter(|lane| of(&lane.head.tenant) && lane.head.pools.first() == Some(&pool.number));
    let short = lanes.filter(|lane| headroom(&lane.head.tenant).is_exceeded_by(&lane.head.amounts()));
    let claims: u64 = short.map(|lane| lane.claims as u64).sum();
    let gangs = queue
        .gangs
        .values()
        .filter(|gang| of(&gang.tenant) && gang.pools.first().is_some_and(|first| first.number == pool.number));
    let gangs = gangs.filter(|gang| matches!(gang.exhausted, ExhaustionReason::Quota(_))).count() as u64;
    claims + gangs
}

/// Why claims of these amounts wait, as of now.
fn reason_of(tenant: &Tenant, amounts: &ResourceUsage) -> &'static str {
    if tenant.headroom().is_exceeded_by(amounts) {
        ExhaustionReason::Quota(crate::model::QuotaResource::Claims).as_str()
    } else {
        ExhaustionReason::Pool.as_str()
    }
}

fn shape_of(class: &RequestClass, reason: &'static str) -> DemandShape {
    let constraints = class.constraints.as_ref();
    let spec = constraints.and_then(|constraints| constraints.spec.as_ref());
    let names = constraints.iter().flat_map(|constraints| constraints.nodes.names());
    let mut nodes: Vec<String> = names.map(ToOwned::to_owned).collect();
    nodes.sort_unstable();
    DemandShape {
        resources: spec.map_or_else(ResourceRequirements::default, |spec| spec.resources.clone()),
        selector: constraints.and_then(|constraints| Some(constraints.selector.as_ref()?.text().to_owned())),
        nodes,
        reason,
        waiting: 0,
        oldest_ms: 0,
        priority: 0,
        workers_needed: 0,
    }
}
