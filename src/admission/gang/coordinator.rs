//! Coordinator of all gangs of this process: steps the claim of each, and gives them the locks of their pools. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::gang_claim::GangClaim;
use super::gang_event::{GangEffect, GangEvent};
use super::pool_locks::PoolLocks;
use super::transaction::PublishedState;
use crate::model::Millis;
use crate::shard::{CompletionQueue, GangNumber};

/// All gangs that are not decided, or whose transactions are not over.
#[derive(Debug, Default)]
pub struct GangCoordinator {
    gangs: BTreeMap<GangNumber, GangClaim>,
    /// Engine times at which something of a gang is due.
    due: BTreeSet<(Millis, GangNumber)>,
    locks: PoolLocks,
    last_number: GangNumber,
}

impl GangCoordinator {
    /// Adds a gang, and returns its number.
    pub fn add(&mut self, claim: GangClaim) -> GangNumber {
        self.last_number += 1;
        self.due.extend(claim.due_ms().map(|due_ms| (due_ms, self.last_number)));
        self.gangs.insert(self.last_number, claim);
        self.last_number
    }

    /// Number of gangs in this process.
    #[must_use]
    pub fn len(&self) -> usize {
        self.gangs.len()
    }

    /// Whether there is no gang.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gangs.is_empty()
    }

    /// Lets a gang decide what follows from an event, and those that get the locks of their pools by that.
    pub fn step(
        &mut self,
        gang: GangNumber,
        event: GangEvent,
        now_ms: Millis,
        published: &impl PublishedState,
        effects: &mut Vec<(GangNumber, GangEffect)>,
    ) {
        let mut events = VecDeque::from([(gang, event)]);
        while let Some((gang, event)) = events.pop_front() {
            // Taken out, so that a step which panics half-way leaves no gang behind that is in no state.
            let Some(mut claim) = self.gangs.remove(&gang) else { continue };
            if let Some(due_ms) = claim.due_ms() {
                self.due.remove(&(due_ms, gang));
            }
            let mut caused = Vec::new();
            claim.on(event, now_ms, published, &mut caused);
            if !claim.is_done() {
                self.due.extend(claim.due_ms().map(|due_ms| (due_ms, gang)));
                self.gangs.insert(gang, claim);
            }
            for effect in caused {
                match effect {
                    GangEffect::RequestLocks(pools) => {
                        events.extend(self.locks.request(gang, pools).then_some((gang, GangEvent::LocksGranted)));
                    }
                    GangEffect::ReleaseLocks => {
                        events.extend(self.locks.release(gang).into_iter().map(|next| (next, GangEvent::LocksGranted)));
                    }
                    effect => effects.push((gang, effect)),
                }
            }
        }
        assert!(!self.gangs.is_empty() || self.locks.is_empty(), "G1: a gang that is gone has the lock of a pool");
    }

    /// Drops a gang whose step has panicked: its caller learns that the outcome is unknown. Returns those that get the locks of its pools.
    pub fn drop_gang(&mut self, gang: GangNumber) -> Vec<GangNumber> {
        self.gangs.remove(&gang);
        self.due.retain(|(_, other)| *other != gang);
        self.locks.release(gang)
    }

    /// Takes all gangs out, because nothing is decided any more.
    pub fn drop_all(&mut self) -> Vec<GangClaim> {
        let gangs = std::mem::take(self);
        self.last_number = gangs.last_number;
        gangs.gangs.into_values().collect()
    }

    /// Takes the next gang of which something is due.
    pub fn take_due(&mut self, now_ms: Millis) -> Option<GangNumber> {
        let (_, gang) = *self.due.first().filter(|(due_ms, _)| *due_ms <= now_ms)?;
        self.due.pop_first();
        Some(gang)
    }

    /// Outcomes of the members of a gang that is being placed, and the numbers of its candidate pools.
    #[must_use]
    pub fn placement(&self, gang: GangNumber) -> Option<(Arc<CompletionQueue>, Vec<u32>)> {
        self.gangs.get(&gang)?.placement()
    }

    /// Gangs whose records were in the pool with this uid.
    #[must_use]
    pub fn with_home_in(&self, pool: u64) -> Vec<GangNumber> {
        let has_home = |claim: &GangClaim| claim.home().is_some_and(|home| home.pool == pool);
        self.gangs.iter().filter(|(_, claim)| has_home(claim)).map(|(gang, _)| *gang).collect()
    }
}

#[cfg(test)]
#[path = "coordinator_tests.rs"]
mod tests;
