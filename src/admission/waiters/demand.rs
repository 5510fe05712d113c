//! What waits for a pool, by what it asks for.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Line, Parked};
use crate::admission::dispatch::Dispatch;
use crate::admission::pools::Pool;
use crate::model::{DemandShape, Millis, Resources};

type Key = (Resources, Option<String>, Vec<String>, &'static str);

impl Line {
    pub(super) fn all(&self) -> Vec<Arc<Parked>> {
        self.lock().queue.iter().filter(|waiter| !waiter.once).map(|waiter| Arc::clone(&waiter.item)).collect()
    }
}

impl Dispatch {
    /// Those who wait for room in the pool, and those who would but for their tenant's quota. How many workers they need is not
    /// said.
    pub(crate) fn demand(&self, pool: &Pool) -> Vec<DemandShape> {
        let now_ms = self.clock.engine_ms();
        // Most ask for one of a few things: each is described once.
        let mut by_hash: HashMap<(u64, &'static str), (Key, DemandShape)> = HashMap::new();
        let quota: Vec<_> = self.waiters.quota_lines().values().cloned().collect();
        let for_quota = quota.iter().flat_map(|tenant| tenant.line.all());
        for parked in pool.line.all().into_iter().chain(for_quota) {
            let slot = parked.lock();
            let Some(item) = slot.as_ref().filter(|item| item.may_use(pool.number)) else { continue };
            let reason = parked.why.reason();
            let (_, shape) = by_hash.entry((item.shape(false), reason)).or_insert_with(|| {
                let wants = item.accepts();
                let resources = item.spec().map_or_else(Resources::default, |spec| spec.resources.clone());
                let selector = wants.as_ref().and_then(|wants| Some(wants.selector.as_ref()?.text().to_owned()));
                let mut nodes: Vec<String> =
                    wants.iter().flat_map(|wants| wants.nodes.names()).map(ToOwned::to_owned).collect();
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
            add(shape, 1, now_ms.saturating_sub(parked.since_ms), parked.priority);
        }
        let mut shapes: HashMap<Key, DemandShape> = HashMap::new();
        for (key, shape) in by_hash.into_values() {
            match shapes.get_mut(&key) {
                Some(known) => add(known, shape.waiting, shape.oldest_ms, shape.priority),
                None => drop(shapes.insert(key, shape)),
            }
        }
        shapes.into_values().collect()
    }
}

fn add(shape: &mut DemandShape, waiting: u64, oldest_ms: Millis, priority: u16) {
    shape.waiting += waiting;
    shape.oldest_ms = shape.oldest_ms.max(oldest_ms);
    shape.priority = shape.priority.max(priority);
}
