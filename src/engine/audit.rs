//! Incremental audit of a shard's accounting while it changes: `hotpool_accounting_mismatch`.
//!
//! The free resources of a worker are changed by every claim and derived from nothing, so an error would persist. The
//! audit takes one worker after the other and compares its free resources, GPU by GPU, with its capacity minus what
//! its claims hold. That is exact between any two events, so a pass may take as long as it likes, and claims pay
//! nothing for it. A pass during which the shard did not change is the last until the next change.
//!
//! Example: 10,000 workers of a shared pool with four claims each are 50,000 steps, of which a slice of
//! [`AUDIT_STEPS`] is taken a second; in an exclusive pool each worker is one step, so these would be 10,000. A pass
//! takes 49 seconds, and an error is found within two passes: the current one may have passed the worker already. The
//! error is cleared at the end of the pass that finds the worker consistent, and two wrong workers count as two.

use super::NIL;
use super::shard::Shard;
use crate::model::Seq;

/// Approximate size of a slice: workers, unused ordinals and claims of shared workers count as one each. Only the
/// last worker of a slice may exceed it.
pub const AUDIT_STEPS: u32 = 1_024;

/// Audit of a shard and its findings.
#[derive(Debug)]
pub struct AccountingAudit {
    /// Ordinal at which the next slice begins.
    cursor: u32,
    /// Sequence number at which this pass began.
    pass_start_seq: Seq,
    /// Sequence number that a complete pass has covered.
    audited_seq: Seq,
    /// Inconsistent workers in this pass so far, and in the last complete one.
    mismatched: u64,
    mismatched_last_pass: u64,
}

impl AccountingAudit {
    /// Starts from a shard that was checked as a whole.
    #[must_use]
    pub const fn new(shard: &Shard) -> Self {
        let seq = shard.seq();
        Self { cursor: 0, pass_start_seq: seq, audited_seq: seq, mismatched: 0, mismatched_last_pass: 0 }
    }

    /// Whether the shard has changes that no pass has covered.
    #[must_use]
    pub const fn is_pending(&self, shard: &Shard) -> bool {
        self.audited_seq != shard.seq()
    }

    /// Audits the next slice, if there are changes to cover.
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
        assert!(self.pass_start_seq <= shard.seq(), "V1: the sequence number of a shard went back");
        (self.cursor, self.audited_seq) = (0, self.pass_start_seq);
        self.mismatched_last_pass = std::mem::take(&mut self.mismatched);
    }

    /// Number of errors found in the accounting; above 0 the shard is wrong.
    #[must_use]
    pub fn mismatch(&self, shard: &Shard) -> u64 {
        shard.accounting_mismatch() + self.mismatched.max(self.mismatched_last_pass)
    }
}

impl Shard {
    /// Number of claims of a worker, as counted by its shared capacity.
    fn claim_count(&self, at: u32) -> u32 {
        match &self.shared {
            Some(shared) if !self.workers.get(at).deleted => shared.load(at).0,
            _ => 0,
        }
    }

    /// Whether the accounting of a worker follows from its registration and its claims.
    fn is_worker_consistent(&self, at: u32) -> bool {
        let worker = self.workers.get(at);
        let claim = self.claims.by_ordinal(worker.claim);
        let is_linked = claim.is_some() == (worker.claim != NIL) && claim.is_none_or(|claim| claim.worker == at);
        let is_counted = worker.deleted
            || self.accounting.usage(worker.usage_index).capacity == self.workers.registration(at).spec.capacity;
        is_linked && is_counted && self.check_allocation(at).is_ok()
    }

    /// Allocates resources of a shared worker without a claim: a fault for tests of the audit.
    #[doc(hidden)]
    pub fn inject_mismatch(
        &mut self,
        worker: &crate::model::WorkerId,
        allocation: &super::placement::bin_packing::ResourceAllocation,
    ) {
        let at = self.workers.find(worker).expect("the worker is registered");
        self.shared.as_mut().expect("the pool is shared").fleet.allocate(at, allocation);
    }
}
