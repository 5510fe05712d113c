//! Invariants between two events. Checked after every event in debug builds (in full while the shard is small), at the
//! end of every recovery, and by the tests.

use super::NIL;
use super::placement::bin_packing::{FleetIndex, ResourceTotals};
use super::shard::Shard;
use super::workers::liveness::lookup_flags;
use super::workers::schedulability::UnschedulableSummary;
use crate::model::ResourceVector;
use crate::model::unschedulable_bits;

#[cfg(debug_assertions)]
const FULL_CHECK_WORKERS: u32 = 64;

/// Violated invariant of a shard: its id in the design, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvariantViolation(String);

impl From<String> for InvariantViolation {
    fn from(description: String) -> Self {
        Self(description)
    }
}

/// Fails with the description unless the invariant holds.
fn ensure(holds: bool, describe: impl FnOnce() -> String) -> Result<(), InvariantViolation> {
    if holds { Ok(()) } else { Err(InvariantViolation(describe())) }
}

/// Counts of a shard's workers, taken one by one.
#[derive(Debug, Default)]
struct WorkerRecount {
    idle: usize,
    busy: usize,
    deleted: usize,
    unschedulable: usize,
    claims: usize,
    summary: UnschedulableSummary,
}

impl Shard {
    /// Checks the shard's invariants by their ids in the design: `L1` used and free sum to the capacity, `L2` live claims
    /// are accounted, `Q1` the idle queue holds each idle worker once and only those, `W1` one state in each dimension.
    ///
    /// # Errors
    /// The first violated invariant.
    pub fn check(&self) -> Result<(), InvariantViolation> {
        let mut recount = WorkerRecount::default();
        let reserved = self.reserved_workers();
        for at in self.workers.iter_from(0) {
            self.check_worker(at)?;
            let worker = self.workers.get(at);
            ensure(reserved.contains(&at) == (worker.unschedulable_bits & unschedulable_bits::RESERVED != 0), || {
                format!("W1: worker {} and the reservations disagree", self.workers.registration(at).spec.id)
            })?;
            let is_unschedulable = worker.unschedulable_bits != 0 && worker.claim == NIL;
            recount.claims += self.handles_on(at).len();
            recount.summary.add(worker.unschedulable_bits);
            if is_unschedulable {
                recount.summary.add_unclaimed(worker.unschedulable_bits);
            }
            recount.unschedulable += usize::from(is_unschedulable);
            recount.idle += usize::from(worker.idle);
            recount.busy += usize::from(worker.claim != NIL);
            recount.deleted += usize::from(worker.deleted);
        }
        self.check_idle_queue(recount.idle)?;
        self.check_counts(&recount)?;
        self.check_capacity(&recount)?;
        self.check_allocations()
    }

    fn check_worker(&self, at: u32) -> Result<(), InvariantViolation> {
        let (worker, liveness) = (self.workers.get(at), self.liveness.get(at));
        let id = &self.workers.registration(at).spec.id;
        let claim = self.claims.by_ordinal(worker.claim);
        let is_linked = claim.is_some() == (worker.claim != NIL) && claim.is_none_or(|claim| claim.worker == at);
        ensure(is_linked, || format!("L2: worker {id} and its claim do not link each other"))?;
        let is_unschedulable = worker.unschedulable_bits != 0 && claim.is_none();
        let states = [worker.idle, claim.is_some(), worker.deleted, is_unschedulable];
        ensure(states.into_iter().filter(|is| *is).count() == 1, || {
            format!("W1: worker {id} must be one of idle, busy, deleted, unschedulable: {states:?}")
        })?;
        ensure(self.drained.contains(&at) == self.is_drained(at), || {
            format!("W1: worker {id} is drained: {}, but the set says otherwise", self.is_drained(at))
        })?;
        ensure(!worker.idle || self.idle_queue.ends_ms(at) == liveness.ends_ms, || {
            format!("Q1: worker {id} has another end of life in the idle queue")
        })?;
        let deadline = liveness.next_ms();
        ensure(self.liveness_timers.get(at).is_some() == deadline.is_some(), || {
            format!("W1: worker {id} has the deadline {deadline:?}, but the timer says otherwise")
        })?;
        let has_end = worker.lookup_flags & lookup_flags::HAS_END != 0;
        let has_ended = worker.unschedulable_bits & unschedulable_bits::ENDED != 0;
        ensure(worker.deleted || (has_end && !has_ended) == liveness.ends_ms.is_some(), || {
            format!("W1: worker {id} has ended: {has_ended}, but its end of life says otherwise")
        })
    }

    fn check_idle_queue(&self, idle: usize) -> Result<(), InvariantViolation> {
        let queue = self.idle_queue.oldest_first(self.workers.all());
        let mut distinct: Vec<u32> = queue.clone();
        distinct.sort_unstable();
        distinct.dedup();
        ensure(queue.len() == idle && distinct.len() == idle && self.idle_queue.len() == idle, || {
            format!("Q1: {idle} workers are idle, the queue has {} ({} distinct)", queue.len(), distinct.len())
        })?;
        self.idle_queue.check(self.workers.all())
    }

    fn check_counts(&self, recount: &WorkerRecount) -> Result<(), InvariantViolation> {
        let WorkerRecount { idle, busy, deleted, unschedulable, claims, summary } = recount;
        let (workers, counted) = (idle + busy + unschedulable, self.accounting.workers());
        let is_consistent = summary == self.accounting.unschedulable()
            && summary.by_first_reason.total() == *unschedulable as u64
            && counted == workers;
        ensure(is_consistent, || {
            let counted_summary = self.accounting.unschedulable();
            format!("W1: {summary:?} of {workers} workers are counted as {counted_summary:?} of {counted}")
        })?;
        ensure(self.claims.len() == *claims && self.accounting.busy() == *busy, || {
            let counted = (self.accounting.busy(), self.claims.len());
            format!("L2: {busy} workers have {claims} claims, counted are {counted:?}")
        })?;
        ensure(self.tombstones.len() == *deleted, || {
            format!("W1: {deleted} workers are deleted, {} have tombstones", self.tombstones.len())
        })
    }

    fn check_capacity(&self, recount: &WorkerRecount) -> Result<(), InvariantViolation> {
        let (mut total, mut largest) = (ResourceTotals::default(), ResourceVector::default());
        let mut sums = (0, 0, 0);
        for usage in self.accounting.usages() {
            (0..usage.workers).for_each(|_| total.add_capacity(&usage.capacity));
            largest = largest.max(ResourceVector::from(&usage.capacity));
            sums.0 += usage.workers as usize;
            sums.1 += usage.held as usize;
            sums.2 += usage.unschedulable as usize;
        }
        let counted = self.accounting.max_capacity();
        ensure(largest == counted, || format!("L1: the largest amounts are {largest:?}, counted are {counted:?}"))?;
        let counted = self.accounting.total();
        ensure(total == *counted, || format!("L1: the total capacity is {total:?}, counted is {counted:?}"))?;
        let WorkerRecount { idle, busy, unschedulable, .. } = *recount;
        let expected = (idle + busy + unschedulable, busy, unschedulable);
        ensure(sums == expected, || {
            format!("L1: {expected:?} workers exist, are busy, are unschedulable; accounted are {sums:?}")
        })
    }

    /// Checks the free resources of each worker against its claims, and that exactly the schedulable workers are offered.
    fn check_allocations(&self) -> Result<(), InvariantViolation> {
        let Some(shared) = &self.shared else { return Ok(()) };
        shared.fleet.check()?;
        self.workers.iter_from(0).try_for_each(|at| self.check_allocation(at))
    }

    /// Checks the free resources of one worker against its claims.
    pub(super) fn check_allocation(&self, at: u32) -> Result<(), InvariantViolation> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let spec = &self.workers.registration(at).spec;
        if self.workers.get(at).deleted {
            return ensure(!shared.fleet.contains(at), || {
                format!("W1: worker {} is deleted and has free resources", spec.id)
            });
        }
        let handles = self.handles_on(at);
        let (count, overcommitted) = shared.load(at);
        let are_live = handles.iter().all(|handle| self.claims.get(*handle).is_some());
        ensure(count as usize == handles.len() && are_live, || {
            format!("L2: worker {} counts {count} claims and has {}", spec.id, handles.len())
        })?;
        let mut fresh = FleetIndex::default();
        let allocations = handles.iter().map(|handle| self.allocation_of(handle.claim));
        let fits = fresh.insert_with(0, &spec.capacity, 0, allocations);
        let (free, expected) = (shared.fleet.free(at), fresh.free(0));
        let is_same = (free.cpu_milli, free.memory_bytes, free.slots, &free.gpus)
            == (expected.cpu_milli, expected.memory_bytes, expected.slots, &expected.gpus);
        ensure(fits != overcommitted && is_same && shared.fleet.gpus(at) == fresh.gpus(0), || {
            format!("L1: worker {} has {free:?} free, its claims leave {expected:?}", spec.id)
        })?;
        ensure(shared.fleet.ends_ms(at) == self.liveness.get(at).ends_ms, || {
            format!("Q1: worker {} has another end of life in the fleet", spec.id)
        })?;
        let is_offered = self.is_offered(at);
        ensure(shared.fleet.is_offered(at) == is_offered, || {
            format!("Q1: worker {} is schedulable: {is_offered}, but the fleet says otherwise", spec.id)
        })
    }

    /// Difference between the accounting and the workers with claims; above 0 the shard is wrong. Free resources of each
    /// worker are left to [`super::audit`].
    #[must_use]
    pub fn accounting_mismatch(&self) -> u64 {
        let held: u64 = self.accounting.usages().map(|usage| u64::from(usage.held)).sum();
        held.abs_diff(self.accounting.busy() as u64)
    }

    #[cfg(debug_assertions)]
    pub(super) fn assert_invariants(&self) {
        if self.workers.ordinals() <= FULL_CHECK_WORKERS {
            let found = self.check();
            assert!(found.is_ok(), "{found:?}");
        }
        assert_eq!(self.accounting_mismatch(), 0, "L2: the accounting and the claims differ");
        let unschedulable = self.accounting.unschedulable().by_first_reason.total() as usize;
        let counted = self.idle_queue.len() + self.accounting.busy() + unschedulable;
        assert_eq!(counted, self.accounting.workers(), "W11: each worker is in one count");
        assert!(self.claims.len() >= self.accounting.busy(), "L2: each busy worker has a claim");
        assert!(self.header.fence_max >= self.header_taken.fence_max, "L3: the highest fence only grows");
    }
}
