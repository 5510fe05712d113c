//! Waiting state of a pending claim.

use super::{ArrivalNumber, DequeueGuard, WaitState};
use crate::admission::candidate_plan::NodeScope;
use crate::model::Millis;
use crate::shard::{PendingClaim, ShardSet};

impl PendingClaim {
    /// Whether the claim waits if there is no free capacity.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.wait_until_ms() > 0
    }

    /// Deadline of the wait in engine time; 0 if the claim does not wait.
    #[must_use]
    pub fn wait_until_ms(&self) -> Millis {
        self.wait.as_ref().map_or(0, |wait| wait.until_ms)
    }

    /// Whether the claim was queued before.
    #[must_use]
    pub fn has_waited(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.arrival > 0)
    }

    /// Arrival number in the queues, and the time of the request.
    #[must_use]
    pub fn queue_position(&self) -> (ArrivalNumber, Millis) {
        self.wait.as_ref().map_or((0, 0), |wait| (wait.arrival, wait.since_ms))
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
        let wait = WaitState {
            until_ms: 0,
            preferred_until_ms: 0,
            since_ms: 0,
            arrival: 0,
            dequeue_guard: None,
            gang_at_head: true,
            reservation: None,
        };
        self.wait = Some(Box::new(wait));
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
        let wait = self.wait.get_or_insert_with(|| {
            Box::new(WaitState {
                until_ms: 0,
                preferred_until_ms: 0,
                since_ms: now_ms,
                arrival: 0,
                dequeue_guard: None,
                gang_at_head: false,
                reservation: None,
            })
        });
        if wait.arrival == 0 {
            wait.arrival = arrive();
        }
        let scope = NodeScope::until(wait.preferred_until_ms, now_ms);
        if let Some(plan) = &mut self.plan {
            plan.reset(scope);
        }
        if scope == NodeScope::PreferredOnly { wait.preferred_until_ms } else { wait.until_ms }
    }
}
