//! What must be true between two events. Checked after every event in debug builds (in full while the shard is
//! small), at the end of every recovery, and by the tests.

use super::NIL;
use super::life::Barred;
use super::shard::Shard;

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
        let mut axes = Barred::default();
        for at in self.workers.iter_from(0) {
            let worker = self.workers.get(at);
            let id = &self.workers.card(at).spec.id;
            let claim = self.claims.at(worker.claim);
            if claim.is_some() != (worker.claim != NIL) || claim.is_some_and(|claim| claim.worker != at) {
                return Err(format!("L2: worker {id} and its claim do not name each other"));
            }
            claims += self.places_on(at).len();
            let is_barred = worker.bars != 0 && claim.is_none();
            let one_of = [worker.idle, claim.is_some(), worker.deleted, is_barred];
            if one_of.into_iter().filter(|is| *is).count() != 1 {
                return Err(format!("W1: worker {id} must be one of idle, held, deleted, barred: {one_of:?}"));
            }
            let deadline = self.lives.get(at).next_ms();
            if self.beats.get(at).is_some() != deadline.is_some() {
                return Err(format!("W1: worker {id} has a deadline at {deadline:?} and none is set, or the reverse"));
            }
            axes.enter(worker.bars);
            barred += usize::from(is_barred);
            idle += usize::from(worker.idle);
            held += usize::from(claim.is_some());
            deleted += usize::from(worker.deleted);
        }
        let queue = self.idle.oldest_first(self.workers.all());
        let mut seen: Vec<u32> = queue.clone();
        seen.sort_unstable();
        seen.dedup();
        if queue.len() != idle || seen.len() != idle || self.idle.len() != idle {
            return Err(format!(
                "Q1: {idle} workers are idle, the queue holds {} ({} of them once)",
                queue.len(),
                seen.len()
            ));
        }
        self.idle.check(self.workers.all())?;
        if axes != self.barred || self.present != idle + held + barred {
            return Err(format!(
                "W1: {axes:?} of {} workers are counted as {:?} of {}",
                idle + held + barred,
                self.barred,
                self.present
            ));
        }
        if self.claims.len() != claims || self.busy != held {
            return Err(format!(
                "L2: {held} workers hold {claims} claims, counted are {} and {}",
                self.busy,
                self.claims.len()
            ));
        }
        self.check_shares()?;
        if self.tombstones.len() != deleted {
            return Err(format!("W1: {deleted} workers are deleted, {} are remembered", self.tombstones.len()));
        }
        let sums = self.ledger.lines().fold((0, 0, 0), |(w, h, b), line| {
            (w + line.workers as usize, h + line.held as usize, b + line.barred as usize)
        });
        if sums != (idle + held + barred, held, barred) {
            return Err(format!(
                "L1: the ledger says {sums:?} (workers, held, barred), there are {:?}",
                (idle + held + barred, held, barred)
            ));
        }
        Ok(())
    }

    /// How far the ledger is from the workers that hold claims: 0, or the shard is wrong (`hotpool_ledger_drift`).
    #[must_use]
    pub fn ledger_drift(&self) -> u64 {
        let held: u64 = self.ledger.lines().map(|line| u64::from(line.held)).sum();
        held.abs_diff(self.busy as u64)
    }

    #[cfg(debug_assertions)]
    pub(super) fn assert_invariants(&self) {
        if self.workers.ordinals() <= FULL_CHECK_WORKERS {
            let found = self.check();
            assert!(found.is_ok(), "{found:?}");
        }
        assert_eq!(self.ledger_drift(), 0, "L2: the ledger and the claims differ");
    }
}
