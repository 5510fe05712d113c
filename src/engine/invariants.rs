//! Invariants between two events. Checked after every event in debug builds (in full while the shard is small), at
//! the end of every recovery, and by the tests.

use super::NIL;
use super::placement::bin_packing::{FleetIndex, ResourceTotals};
use super::shard::Shard;
use super::workers::conditions::{UnschedulableSummary, notes};
use crate::model::MaxCapacity;
use crate::model::unschedulable_bits;

#[cfg(debug_assertions)]
const FULL_CHECK_WORKERS: u32 = 64;

impl Shard {
    /// Checks the shard's invariants by their ids in the design: `L1` held and free sum to the capacity, `L2` live
    /// claims are the ledger, `Q1` the idle queue holds each idle worker once and only those, `W1` one state per
    /// axis.
    ///
    /// # Errors
    /// The first one that is violated, by id, with what was found.
    pub fn check(&self) -> Result<(), String> {
        let (mut idle, mut held, mut deleted, mut barred, mut claims) = (0, 0, 0, 0, 0);
        let mut axes = UnschedulableSummary::default();
        let promised = self.reserved_workers();
        for at in self.workers.iter_from(0) {
            let worker = self.workers.get(at);
            let id = &self.workers.registration(at).spec.id;
            let claim = self.claims.by_ordinal(worker.claim);
            if claim.is_some() != (worker.claim != NIL) || claim.is_some_and(|claim| claim.worker != at) {
                return Err(format!("L2: worker {id} and its claim do not name each other"));
            }
            claims += self.handles_on(at).len();
            let is_barred = worker.unschedulable_bits != 0 && claim.is_none();
            let one_of = [worker.idle, claim.is_some(), worker.deleted, is_barred];
            if one_of.into_iter().filter(|is| *is).count() != 1 {
                return Err(format!("W1: worker {id} must be one of idle, held, deleted, barred: {one_of:?}"));
            }
            if self.drained.contains(&at) != self.is_drained(at) {
                return Err(format!("W1: worker {id} must be among the drained ones: {}", self.is_drained(at)));
            }
            if worker.idle && self.idle_queue.ends_ms(at) != self.liveness.get(at).ends_ms {
                return Err(format!("Q1: worker {id} ends at another time than the idle queue knows"));
            }
            let deadline = self.liveness.get(at).next_ms();
            if self.liveness_timers.get(at).is_some() != deadline.is_some() {
                return Err(format!("W1: worker {id} has a deadline at {deadline:?} and none is set, or the reverse"));
            }
            axes.add(worker.unschedulable_bits);
            if is_barred {
                axes.add_unclaimed(worker.unschedulable_bits);
            }
            if promised.contains(&at) != (worker.unschedulable_bits & unschedulable_bits::RESERVED != 0) {
                return Err(format!(
                    "W1: worker {id} is kept for a claim, and is counted as one that is not, or the reverse"
                ));
            }
            let (ends, over) =
                (worker.lookup_flags & notes::ENDS != 0, worker.unschedulable_bits & unschedulable_bits::ENDED != 0);
            if !worker.deleted && (ends && !over) != self.liveness.get(at).ends_ms.is_some() {
                return Err(format!(
                    "W1: worker {id} is counted as one that has ended, or not: no deadline says which"
                ));
            }
            barred += usize::from(is_barred);
            idle += usize::from(worker.idle);
            held += usize::from(claim.is_some());
            deleted += usize::from(worker.deleted);
        }
        let queue = self.idle_queue.oldest_first(self.workers.all());
        let mut seen: Vec<u32> = queue.clone();
        seen.sort_unstable();
        seen.dedup();
        if queue.len() != idle || seen.len() != idle || self.idle_queue.len() != idle {
            return Err(format!(
                "Q1: {idle} workers are idle, the queue holds {} ({} of them once)",
                queue.len(),
                seen.len()
            ));
        }
        self.idle_queue.check(self.workers.all())?;
        if axes != self.unschedulable
            || axes.by_first_reason.total() != barred as u64
            || self.worker_count != idle + held + barred
        {
            return Err(format!(
                "W1: {axes:?} of {} workers are counted as {:?} of {}",
                idle + held + barred,
                self.unschedulable,
                self.worker_count
            ));
        }
        if self.claims.len() != claims || self.busy != held {
            return Err(format!(
                "L2: {held} workers hold {claims} claims, counted are {} and {}",
                self.busy,
                self.claims.len()
            ));
        }
        self.check_allocations()?;
        if self.tombstones.len() != deleted {
            return Err(format!("W1: {deleted} workers are deleted, {} are remembered", self.tombstones.len()));
        }
        let (mut total, mut largest) = (ResourceTotals::default(), MaxCapacity::default());
        for line in self.accounting.usages() {
            (0..line.workers).for_each(|_| total.add_capacity(&line.capacity));
            largest = largest.max(MaxCapacity::from(&line.capacity));
        }
        if largest != self.accounting.max_capacity() {
            return Err(format!(
                "L1: the largest amounts are {largest:?}, kept are {:?}",
                self.accounting.max_capacity()
            ));
        }
        if total != *self.accounting.total() {
            return Err(format!("L1: workers have {total:?} together, counted is {:?}", self.accounting.total()));
        }
        let sums = self.accounting.usages().fold((0, 0, 0), |(w, h, b), line| {
            (w + line.workers as usize, h + line.held as usize, b + line.unschedulable as usize)
        });
        if sums != (idle + held + barred, held, barred) {
            return Err(format!(
                "L1: the ledger says {sums:?} (workers, held, barred), there are {:?}",
                (idle + held + barred, held, barred)
            ));
        }
        Ok(())
    }

    /// Checks the free resources of each worker against its claims, and that exactly the schedulable workers are
    /// offered.
    ///
    /// # Errors
    /// The first violated invariant.
    fn check_allocations(&self) -> Result<(), String> {
        let Some(shares) = &self.shared else { return Ok(()) };
        shares.fleet.check()?;
        self.workers.iter_from(0).try_for_each(|at| self.check_allocation(at))
    }

    /// Checks the free resources of one worker against its claims.
    pub(super) fn check_allocation(&self, at: u32) -> Result<(), String> {
        let Some(shares) = &self.shared else { return Ok(()) };
        let (worker, card) = (self.workers.get(at), self.workers.registration(at));
        if worker.deleted {
            return match shares.fleet.contains(at) {
                true => Err(format!("W1: worker {} is deleted and has room", card.spec.id)),
                false => Ok(()),
            };
        }
        let places = self.handles_on(at);
        let (count, over) = shares.load(at);
        if count as usize != places.len() || places.iter().any(|place| self.claims.get(*place).is_none()) {
            return Err(format!("L2: worker {} counts {} claims and holds others", card.spec.id, count));
        }
        let mut fresh = FleetIndex::default();
        let held = places.iter().map(|place| self.allocation_of(place.claim));
        let enough = fresh.insert_with(0, &card.spec.capacity, 0, held);
        let (room, left) = (shares.fleet.free(at), fresh.free(0));
        let same = (room.cpu_milli, room.memory_bytes, room.slots, &room.gpus)
            == (left.cpu_milli, left.memory_bytes, left.slots, &left.gpus);
        if enough == over || !same || shares.fleet.gpus(at) != fresh.gpus(0) {
            return Err(format!("L1: worker {} has {room:?} left, its claims leave {left:?}", card.spec.id));
        }
        if shares.fleet.ends_ms(at) != self.liveness.get(at).ends_ms {
            return Err(format!("Q1: worker {} ends at another time than its fleet knows", card.spec.id));
        }
        if shares.fleet.is_offered(at) != self.is_offered(at) {
            return Err(format!("Q1: worker {} must be offered: {}", card.spec.id, self.is_offered(at)));
        }
        Ok(())
    }

    /// Difference between the accounting and the workers that hold claims; above 0 the shard is wrong. Free resources
    /// of each worker are left to [`super::audit`].
    #[must_use]
    pub fn accounting_mismatch(&self) -> u64 {
        let held: u64 = self.accounting.usages().map(|line| u64::from(line.held)).sum();
        held.abs_diff(self.busy as u64)
    }

    #[cfg(debug_assertions)]
    pub(super) fn assert_invariants(&self) {
        if self.workers.ordinals() <= FULL_CHECK_WORKERS {
            let found = self.check();
            assert!(found.is_ok(), "{found:?}");
        }
        assert_eq!(self.accounting_mismatch(), 0, "L2: the ledger and the claims differ");
        let counted = self.idle_queue.len() + self.busy + self.unschedulable.by_first_reason.total() as usize;
        assert_eq!(counted, self.worker_count, "W11: each worker is in one count");
    }
}
