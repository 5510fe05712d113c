//! A recount of what a shard keeps as sums, some workers at a time, for as long as it may differ: `hotpool_accounting_mismatch`.
//!
//! What a worker has left is changed by every claim and derived from nothing, so an error would stay. The recount takes one
//! worker after the other and compares what it has left, card by card, with its capacity less what its claims hold. That is
//! exact at any moment between two events, so a pass may take as long as it likes, and claims pay nothing for it. A pass
//! that found no change of the shard since it began is the last until the next change.
//!
//! Example: 10,000 workers of a shared pool with four claims each are 50,000 steps, of which a slice of [`AUDIT_STEPS`] is taken
//! a second; in an exclusive pool a worker is one step, held or not, so these would be 10,000. A pass takes 49 seconds, and an
//! error is found within two: the one that is under way may have gone by the worker already. It leaves the sum at the end of
//! the pass that finds the worker right, and two wrong workers count as two.

use super::NIL;
use super::shard::Shard;
use crate::model::Seq;

/// Workers, ordinals that are free, and claims of shared workers that one slice of a recount looks at, about: each counts as
/// one. Only the last worker of a slice may go beyond.
pub const AUDIT_STEPS: u32 = 1_024;

/// Recount of a shard that is under way, and what came of it.
#[derive(Debug)]
pub struct AccountingAudit {
    /// Ordinal at which the next slice begins.
    cursor: u32,
    /// Change of the shard at which this pass began.
    pass_start_seq: Seq,
    /// Last change that a whole pass has seen.
    audited_seq: Seq,
    /// Wrong workers of this pass so far, and of the whole one before.
    mismatched: u64,
    mismatched_last_pass: u64,
}

impl AccountingAudit {
    /// Of a shard as it is now, which was checked as a whole.
    #[must_use]
    pub const fn new(shard: &Shard) -> Self {
        let seq = shard.seq();
        Self { cursor: 0, pass_start_seq: seq, audited_seq: seq, mismatched: 0, mismatched_last_pass: 0 }
    }

    /// Whether there is something that no pass has looked at yet.
    #[must_use]
    pub const fn is_pending(&self, shard: &Shard) -> bool {
        self.audited_seq != shard.seq()
    }

    /// Looks at the next slice, if there is something to look at.
    pub fn advance(&mut self, shard: &Shard) {
        if !self.is_pending(shard) {
            return;
        }
        if self.cursor == 0 {
            self.pass_start_seq = shard.seq();
        }
        let mut steps = 0;
        for at in self.cursor..shard.workers.ordinals() {
            if steps >= AUDIT_STEPS {
                self.cursor = at;
                return;
            }
            steps += 1;
            if shard.workers.is_used(at) {
                steps += shard.claim_count(at);
                self.mismatched += u64::from(!shard.is_worker_consistent(at));
            }
        }
        (self.cursor, self.audited_seq) = (0, self.pass_start_seq);
        self.mismatched_last_pass = std::mem::take(&mut self.mismatched);
    }

    /// How far the ledger is from the claims, as far as is known: 0, or the shard is wrong.
    #[must_use]
    pub fn mismatch(&self, shard: &Shard) -> u64 {
        shard.accounting_mismatch() + self.mismatched.max(self.mismatched_last_pass)
    }
}

impl Shard {
    /// Claims of a worker, as they are counted.
    fn claim_count(&self, at: u32) -> u32 {
        match &self.shared {
            Some(shares) if !self.workers.get(at).deleted => shares.load(at).0,
            _ => 0,
        }
    }

    /// Whether what is kept of a worker is what follows from its registration and its claims.
    fn is_worker_consistent(&self, at: u32) -> bool {
        let worker = self.workers.get(at);
        let claim = self.claims.by_ordinal(worker.claim);
        let is_linked = claim.is_some() == (worker.claim != NIL) && claim.is_none_or(|claim| claim.worker == at);
        let is_counted = worker.deleted
            || self.accounting.usage(worker.usage_index).capacity == self.workers.registration(at).spec.capacity;
        is_linked && is_counted && self.check_allocation(at).is_ok()
    }

    /// Takes something off what a worker of a shared pool has left, and has no claim for it: a fault, for tests that look
    /// whether it is found.
    #[doc(hidden)]
    pub fn inject_mismatch(
        &mut self,
        worker: &crate::model::WorkerId,
        share: &super::placement::bin_packing::ResourceAllocation,
    ) {
        let at = self.workers.find(worker).expect("a worker that is there");
        self.shared.as_mut().expect("a shard of a shared pool").fleet.allocate(at, share);
    }
}
