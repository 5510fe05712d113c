//! What a shard shows of itself, without a trace but for what it was asked to mark.

use std::sync::Arc;

use super::effect::{Grant, WorkerLook};
use super::event::Place;
use super::ledger::LedgerLine;
use super::life::Barred;
use super::shard::{Counters, Shard};
use crate::model::{ClaimId, Millis, Seq, WorkerId};

impl Shard {
    /// Last change decided.
    #[must_use]
    pub const fn seq(&self) -> Seq {
        self.seq
    }

    /// Idle workers: what the router may know.
    #[must_use]
    pub const fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Held claims.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.claims.len()
    }

    /// Held claims that are not active yet.
    #[must_use]
    pub const fn reserved(&self) -> usize {
        self.claims.reserved()
    }

    /// Held claims whose worker is being cleaned.
    #[must_use]
    pub const fn releasing(&self) -> usize {
        self.claims.releasing()
    }

    /// Workers that are not deleted.
    #[must_use]
    pub const fn workers(&self) -> usize {
        self.present
    }

    /// How many of them stand where on which axis.
    #[must_use]
    pub const fn barred(&self) -> Barred {
        self.barred
    }

    /// What was done so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Sums by capacity vector.
    pub fn ledger(&self) -> impl Iterator<Item = &LedgerLine> {
        self.ledger.lines()
    }

    /// Moves whenever a worker's capacity is the first of its kind, or the last.
    #[must_use]
    pub const fn ledger_version(&self) -> u64 {
        self.ledger.version()
    }

    /// A time before which [`Event::Tick`] changes nothing, if it ever will.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<Millis> {
        let tombstone = self.tombstones.front().map(|&(until, _)| until);
        [self.timers.next_ms(), self.beats.next_ms(), tombstone].into_iter().flatten().min()
    }

    /// What is held at `place`, without a trace.
    #[must_use]
    pub fn grant(&self, place: Place) -> Option<Grant> {
        let claim = self.claims.get(place)?;
        Some(Grant {
            place: Place { worker: claim.worker, ..place },
            worker: Arc::clone(self.workers.card(claim.worker)),
            state: claim.state,
            reserve_ms: claim.reserve_ms.into(),
            term_ms: claim.term_ms.into(),
            deadline_ms: self.timers.get(place.claim),
            spec: claim.spec.clone(),
        })
    }

    /// A worker, deleted ones excluded.
    #[must_use]
    pub fn find_worker(&self, id: &WorkerId) -> Option<WorkerLook> {
        self.workers.find(id).filter(|&at| !self.workers.get(at).deleted).map(|at| self.look(at))
    }

    /// Marks every claim of the listing as told: an answer is about to speak of it.
    pub fn mark_told(&mut self, places: impl Iterator<Item = Place>) {
        for place in places {
            if let Some(claim) = self.claims.get_mut(place) {
                claim.told = true;
            }
        }
    }

    /// At most `limit` workers with ordinal >= `from`, each with its ordinal, in that order.
    pub fn list_workers(&self, from: u32, limit: usize) -> impl Iterator<Item = (u32, WorkerLook)> {
        let present = self.workers.iter_from(from).filter(|&at| !self.workers.get(at).deleted);
        present.take(limit).map(|at| (at, self.look(at)))
    }

    /// Held claims with worker ordinal >= `from`, each with that ordinal, in that order.
    pub fn list_claims(&self, from: u32) -> impl Iterator<Item = (u32, ClaimId, Grant)> {
        self.workers.iter_from(from).filter_map(|at| {
            let claim = self.workers.get(at).claim;
            let held = self.claims.at(claim)?;
            let grant = self.grant(Place { claim, worker: at, fence: held.fence })?;
            Some((at, held.id.clone(), grant))
        })
    }

    pub(super) fn look(&self, at: u32) -> WorkerLook {
        let worker = self.workers.get(at);
        let claim = self.claims.at(worker.claim).and_then(|claim| {
            let place = Place { claim: worker.claim, worker: at, fence: claim.fence };
            Some((claim.id.clone(), self.grant(place)?))
        });
        WorkerLook {
            card: Arc::clone(self.workers.card(at)),
            version: worker.version,
            axes: self.axes(at),
            claims: claim.into_iter().collect(),
        }
    }
}
