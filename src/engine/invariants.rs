//! What must be true between two events. Checked after every event in debug builds (in full while the shard is
//! small), at the end of every recovery, and by the tests.

use super::NIL;
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
        let (mut idle, mut held, mut deleted) = (0, 0, 0);
        for at in self.workers.iter_from(0) {
            let worker = self.workers.get(at);
            let id = &self.workers.card(at).spec.id;
            let claim = self.claims.at(worker.claim);
            if claim.is_some() != (worker.claim != NIL) || claim.is_some_and(|claim| claim.worker != at) {
                return Err(format!("L2: worker {id} and its claim do not name each other"));
            }
            if u8::from(worker.idle) + u8::from(claim.is_some()) + u8::from(worker.deleted) != 1 {
                return Err(format!(
                    "W1: worker {id} must be one of idle, held, deleted: {}, {}, {}",
                    worker.idle,
                    claim.is_some(),
                    worker.deleted
                ));
            }
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
        if self.claims.len() != held {
            return Err(format!("L2: {held} workers are held by {} claims", self.claims.len()));
        }
        if self.tombstones.len() != deleted {
            return Err(format!("W1: {deleted} workers are deleted, {} are remembered", self.tombstones.len()));
        }
        let (workers, ledger_held) =
            self.ledger.lines().fold((0, 0), |(w, h), line| (w + line.workers as usize, h + line.held as usize));
        if (workers, ledger_held) != (idle + held, held) {
            return Err(format!(
                "L1: the ledger says {ledger_held} of {workers} held, there are {held} of {}",
                idle + held
            ));
        }
        Ok(())
    }

    /// How far the ledger is from the claims: 0, or the shard is wrong (`hotpool_ledger_drift`).
    #[must_use]
    pub fn ledger_drift(&self) -> u64 {
        let held: u64 = self.ledger.lines().map(|line| u64::from(line.held)).sum();
        held.abs_diff(self.claims.len() as u64)
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
