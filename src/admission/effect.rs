//! Effects of decisions, to be carried out outside the locks of keys, tenants and queues: they are
//! noted where they are decided, and carried out by whoever began, after unlocking.

use std::collections::VecDeque;
use std::sync::Arc;

use super::gang::GangEvent;
use super::key::PendingClaim;
use super::pool_registry::Pool;
use super::queue::QueuedClaim;
use crate::shard::{Command, GangNumber, OfferedWorkers, ShardRef};

/// Action that takes locks, runs a shard, or answers a caller.
#[derive(Debug)]
pub enum Effect {
    /// Send a command to a shard.
    Send(ShardRef, Command),
    /// Offer workers of a shard once more to the claims that wait.
    OfferAgain(ShardRef, OfferedWorkers),
    /// Submit a claim again: the holder that it had found is gone.
    Submit(Box<PendingClaim>),
    /// Place claims of a batch, once the shards that were asked for the others have answered.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    RouteAll(Vec<Box<PendingClaim>>),
    /// Search for a claim that stands still.
    Search(Arc<QueuedClaim>),
    /// Search for claims that the quotas of tenants have kept back.
    SearchQuotas,
    /// Assign the reservations of a pool anew.
    AssignReservations(Arc<Pool>),
    /// Let a gang decide what follows from an event. Boxed, because events are large and rare.
    Gang(Box<(GangNumber, GangEvent)>),
}

impl Effect {
    /// Effect that lets a gang decide what follows from an event.
    #[must_use]
    pub fn gang(gang: GangNumber, event: GangEvent) -> Self {
        Self::Gang(Box::new((gang, event)))
    }
}

/// Effects that are not carried out yet, in the order in which they were noted.
#[derive(Debug, Default)]
pub struct EffectQueue {
    /// Oldest effect. Inline, because most calls have one at a time, and none of them should allocate.
    next: Option<Effect>,
    /// Later effects, in the order in which they were added. Boxed, because there are almost never any and every call
    /// drops a queue.
    #[allow(clippy::box_collection, reason = "a test for null instead of dropping a deque")]
    more: Option<Box<VecDeque<Effect>>>,
    /// Commands that were sent while this work was carried out.
    pub(super) sent: usize,
    /// Claims that were searched for because quota came back.
    pub(super) quota_searches: usize,
}

impl EffectQueue {
    /// Adds an effect to the end.
    pub fn push(&mut self, effect: Effect) {
        match (&mut self.next, &mut self.more) {
            (next @ None, None) => *next = Some(effect),
            (_, more) => more.get_or_insert_default().push_back(effect),
        }
    }

    /// Takes the oldest effect.
    pub fn pop(&mut self) -> Option<Effect> {
        if self.next.is_some() {
            return self.next.take();
        }
        let more = self.more.as_mut()?;
        let effect = more.pop_front();
        if more.is_empty() {
            self.more = None;
        }
        effect
    }

    /// Whether nothing is left to do.
    #[must_use]
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.next.is_none() && self.more.is_none()
    }
}
