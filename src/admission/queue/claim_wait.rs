//! Waiting state of a pending claim.

use super::{ArrivalNumber, DequeueGuard, WaitState};
use crate::admission::key::PendingClaim;
use crate::admission::plan::NodeScope;
use crate::model::Millis;
use crate::shard::ShardSet;

impl PendingClaim {
    /// Whether the claim waits if there is no free capacity.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.wait_until_ms().is_some()
    }

    /// Deadline of the wait in engine time; `None` if the claim does not wait.
    #[must_use]
    pub fn wait_until_ms(&self) -> Option<Millis> {
        self.wait.as_ref()?.until_ms
    }

    /// Whether the claim does not wait any longer, or never did.
    #[must_use]
    pub fn is_wait_over(&self, now_ms: Millis) -> bool {
        self.wait_until_ms().is_none_or(|until_ms| until_ms <= now_ms)
    }

    /// Whether the claim was queued before.
    #[must_use]
    pub fn has_waited(&self) -> bool {
        self.queue_position().is_some()
    }

    /// Arrival number in the queues and engine time of the request, if the claim was queued before.
    #[must_use]
    pub fn queue_position(&self) -> Option<(ArrivalNumber, Millis)> {
        let wait = self.wait.as_ref()?;
        Some((wait.arrival?, wait.since_ms))
    }

    /// Whether the claim bypasses those that wait: it was dequeued, alone or with its gang.
    #[must_use]
    pub fn bypasses_queue(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.gang_at_head || wait.dequeue_guard.is_some())
    }

    /// Guard of the dequeued claim, if it was dequeued.
    #[must_use]
    pub fn dequeue_guard(&self) -> Option<&DequeueGuard> {
        self.wait.as_ref()?.dequeue_guard.as_deref()
    }

    /// Takes the guard of the dequeued claim.
    pub fn take_dequeue_guard(&mut self) -> Option<DequeueGuard> {
        self.wait.as_mut()?.dequeue_guard.take().map(|dequeue_guard| *dequeue_guard)
    }

    /// Marks the claim as a member of a gang that was dequeued.
    pub fn set_gang_at_head(&mut self) {
        self.wait = Some(Box::new(WaitState { gang_at_head: true, ..WaitState::default() }));
    }

    /// Marks the claim as dequeued under this guard.
    pub fn set_dequeue_guard(&mut self, dequeue_guard: DequeueGuard) {
        if let Some(wait) = &mut self.wait {
            wait.dequeue_guard = Some(Box::new(dequeue_guard));
        }
    }

    /// Resets the search before the claim is queued. Returns the time at which it must be revisited.
    pub fn reset_for_wait(&mut self, now_ms: Millis, arrive: impl FnOnce() -> ArrivalNumber) -> Millis {
        (self.tried_shards, self.unreachable) = (ShardSet::default(), None);
        // Waiting time must not count as response time.
        self.started_ns = None;
        let wait = self.wait.get_or_insert_with(|| Box::new(WaitState { since_ms: now_ms, ..WaitState::default() }));
        wait.arrival.get_or_insert_with(arrive);
        let scope = NodeScope::until(wait.preferred_until_ms, now_ms);
        if let Some(plan) = &mut self.plan {
            plan.reset(scope);
        }
        let due_ms = if scope == NodeScope::PreferredOnly { wait.preferred_until_ms } else { wait.until_ms };
        due_ms.unwrap_or(now_ms)
    }
}
