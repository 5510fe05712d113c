//! Waiting state of a pending claim.

use std::sync::Arc;

use super::{QueuedClaim, RequestClass};
use crate::admission::key::PendingClaim;
use crate::admission::plan::NodeScope;
use crate::admission::tenant::ChargeRank;
use crate::engine::PlacementConstraints;
use crate::model::Millis;
use crate::model::request_error::ExhaustionReason;
use crate::shard::ShardSet;

/// Waiting state of a pending claim.
#[derive(Debug)]
pub struct WaitState {
    /// Engine time until which the claim waits.
    pub until_ms: Millis,
    /// Engine time until which only preferred nodes are acceptable; `None` accepts any.
    pub preferred_until_ms: Option<Millis>,
    /// Engine time of the request. Time waited plus time left equals the requested wait.
    pub since_ms: Millis,
    /// Why the last search found nothing.
    pub exhausted: ExhaustionReason,
    /// Entry in the queues, once the claim is in them.
    pub queued: Option<Arc<QueuedClaim>>,
}

impl PendingClaim {
    /// Whether the claim waits if there is no free capacity.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.wait.is_some()
    }

    /// Deadline of the wait in engine time; `None` if the claim does not wait.
    #[must_use]
    pub fn wait_until_ms(&self) -> Option<Millis> {
        Some(self.wait.as_ref()?.until_ms)
    }

    /// Whether the claim does not wait any longer, or never did.
    #[must_use]
    pub fn is_wait_over(&self, now_ms: Millis) -> bool {
        self.wait_until_ms().is_none_or(|until_ms| until_ms <= now_ms)
    }

    /// Entry in the queues, if the claim is in them.
    #[must_use]
    pub fn queued(&self) -> Option<&Arc<QueuedClaim>> {
        self.wait.as_ref()?.queued.as_ref()
    }

    /// Priority and arrival by which quota is shared out; a claim in no queue comes last.
    #[must_use]
    #[inline]
    pub fn charge_rank(&self) -> ChargeRank {
        let priority = self.spec().map_or(0, |spec| spec.priority);
        ChargeRank { priority, arrival: self.queued().map(|queued| queued.arrival) }
    }

    /// Time at which the wait is looked at: it ends, or other nodes are acceptable too.
    #[must_use]
    pub fn wait_due_ms(&self) -> Option<Millis> {
        let wait = self.wait.as_ref()?;
        Some(match wait.preferred_until_ms {
            Some(until_ms) if self.is_preferred_only() => until_ms.min(wait.until_ms),
            _ => wait.until_ms,
        })
    }

    /// Nodes that are acceptable at `now_ms`.
    #[must_use]
    pub fn scope_at(&self, now_ms: Millis) -> NodeScope {
        NodeScope::until(self.wait.as_ref().and_then(|wait| wait.preferred_until_ms), now_ms)
    }

    /// Resets the search, to begin it anew with what is acceptable at `now_ms`.
    pub fn reset_search(&mut self, now_ms: Millis) {
        (self.tried_shards, self.unreachable, self.asks) = (ShardSet::default(), None, None);
        self.has_asked_reserved = false;
        // Waiting time must not count as response time.
        self.started_ns = None;
        let scope = self.scope_at(now_ms);
        if let Some(plan) = &mut self.plan {
            plan.reset(scope);
        }
    }

    /// Class of the request, as it is at present.
    #[must_use]
    pub fn class(&self) -> RequestClass {
        let reserve_ms = self.requested_reserve_ms();
        RequestClass { hash: self.request_class(), constraints: self.wanted(), reserve_ms, ttl_ms: self.ttl_ms }
    }

    /// Constraints of the class that the claim has in the queues.
    #[must_use]
    pub fn queued_constraints(&self) -> Option<&Arc<PlacementConstraints>> {
        self.queued()?.class.constraints.as_ref()
    }
}
