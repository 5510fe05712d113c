//! What a claim on its way knows of its waiting.

use super::{ArrivalNumber, DequeueGuard, WaitState};
use crate::admission::candidate_plan::CandidatePlan;
use crate::model::Millis;
use crate::shard::{PendingClaim, ShardSet};

impl PendingClaim {
    /// Whether it waits if there is no room.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.wait_until_ms() > 0
    }

    /// Until when it waits, in engine time; 0: it does not.
    #[must_use]
    pub fn wait_until_ms(&self) -> Millis {
        self.wait.as_ref().map_or(0, |wait| wait.until_ms)
    }

    /// Whether it stood in a line already.
    #[must_use]
    pub fn has_waited(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.arrival > 0)
    }

    /// Its place among all that wait, and since when it was asked for.
    #[must_use]
    pub fn queue_position(&self) -> (ArrivalNumber, Millis) {
        self.wait.as_ref().map_or((0, 0), |wait| (wait.arrival, wait.since_ms))
    }

    /// Whether it goes before those who wait: it has its turn, alone or with its gang.
    #[must_use]
    pub fn bypasses_queue(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.gang_at_head || wait.turn.is_some())
    }

    /// Its turn, if it has one.
    #[must_use]
    pub fn turn(&self) -> Option<&DequeueGuard> {
        self.wait.as_ref()?.turn.as_deref()
    }

    /// The same, taken from it.
    pub fn take_turn(&mut self) -> Option<DequeueGuard> {
        self.wait.as_mut()?.turn.take().map(|turn| *turn)
    }

    /// It is of a gang that has its turn.
    pub fn set_gang_at_head(&mut self) {
        let wait = WaitState {
            until_ms: 0,
            preferred_until_ms: 0,
            since_ms: 0,
            arrival: 0,
            turn: None,
            gang_at_head: true,
            reservation: None,
        };
        self.wait = Some(Box::new(wait));
    }

    /// It is its turn.
    pub fn give_turn(&mut self, turn: DequeueGuard) {
        if let Some(wait) = &mut self.wait {
            wait.turn = Some(Box::new(turn));
        }
    }

    /// It stands still: what it had tried is forgotten. Returns when it must be looked at.
    pub fn reset_for_wait(&mut self, now_ms: Millis, arrive: impl FnOnce() -> ArrivalNumber) -> Millis {
        (self.tried_shards, self.unreachable) = (ShardSet::default(), None);
        // How long it waits says nothing of how fast claims are answered.
        self.started_ns = 0;
        let wait = self.wait.get_or_insert_with(|| {
            Box::new(WaitState {
                until_ms: 0,
                preferred_until_ms: 0,
                since_ms: now_ms,
                arrival: 0,
                turn: None,
                gang_at_head: false,
                reservation: None,
            })
        });
        if wait.arrival == 0 {
            wait.arrival = arrive();
        }
        let near_only = wait.preferred_until_ms > now_ms;
        if let Some(choice) = &mut self.plan {
            CandidatePlan::reset(choice, near_only);
        }
        if near_only { wait.preferred_until_ms } else { wait.until_ms }
    }
}
