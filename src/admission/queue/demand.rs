//! Demand of a pool: its queued claims, grouped by what they request.

use std::collections::HashMap;
use std::sync::Arc;

use super::{QueuedClaim, WaitQueue};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::pool_registry::Pool;
use crate::model::{DemandShape, Millis, ResourceRequirements};

type DemandKey = (ResourceRequirements, Option<String>, Vec<String>, &'static str);

impl WaitQueue {
    pub(super) fn queued_claims(&self) -> Vec<Arc<QueuedClaim>> {
        self.lock().queue.iter().filter(|entry| !entry.newcomer).map(|entry| Arc::clone(&entry.item)).collect()
    }
}

impl ClaimDispatcher {
    /// Groups the claims that wait for capacity of the pool, or would but for their tenant's quota. The number of
    /// workers that they need is left out.
    pub(crate) fn demand(&self, pool: &Pool) -> Vec<DemandShape> {
        let now_ms = self.clock.engine_ms();
        // Most claims request one of a few things: each is described once.
        let mut by_hash: HashMap<(u64, &'static str), (DemandKey, DemandShape)> = HashMap::new();
        let quota: Vec<_> = self.wait_queues.quota_queues().values().cloned().collect();
        let for_quota = quota.iter().flat_map(|tenant| tenant.wait_queue.queued_claims());
        for queued in pool.wait_queue.queued_claims().into_iter().chain(for_quota) {
            let slot = queued.lock();
            let Some(item) = slot.as_ref().filter(|item| item.may_use(pool.number)) else { continue };
            let reason = queued.exhausted.as_str();
            let (_, shape) = by_hash.entry((item.request_class(), reason)).or_insert_with(|| {
                let constraints = item.accepts();
                let resources = item.spec().map_or_else(ResourceRequirements::default, |spec| spec.resources.clone());
                let selector =
                    constraints.as_ref().and_then(|constraints| Some(constraints.selector.as_ref()?.text().to_owned()));
                let mut nodes: Vec<String> = constraints
                    .iter()
                    .flat_map(|constraints| constraints.nodes.names())
                    .map(ToOwned::to_owned)
                    .collect();
                nodes.sort_unstable();
                let key = (resources.clone(), selector.clone(), nodes.clone(), reason);
                let shape = DemandShape {
                    resources,
                    selector,
                    nodes,
                    reason,
                    waiting: 0,
                    oldest_ms: 0,
                    priority: 0,
                    workers_needed: 0,
                };
                (key, shape)
            });
            add_demand(shape, 1, now_ms.saturating_sub(queued.since_ms), queued.priority);
        }
        let mut shapes: HashMap<DemandKey, DemandShape> = HashMap::new();
        for (key, shape) in by_hash.into_values() {
            match shapes.get_mut(&key) {
                Some(existing) => add_demand(existing, shape.waiting, shape.oldest_ms, shape.priority),
                None => drop(shapes.insert(key, shape)),
            }
        }
        shapes.into_values().collect()
    }
}

fn add_demand(shape: &mut DemandShape, waiting: u64, oldest_ms: Millis, priority: u16) {
    shape.waiting += waiting;
    shape.oldest_ms = shape.oldest_ms.max(oldest_ms);
    shape.priority = shape.priority.max(priority);
}
