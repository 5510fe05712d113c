//! Schedulability of a worker beside its claims: the reasons for which it is not offered, in its hot part, and the operator
//! commands that set and clear them.

use crate::engine::NIL;
use crate::engine::effect::{EngineReply, WorkerConditions};
use crate::engine::shard::Shard;
use crate::engine::workers::liveness::TimedOutCleanup;
use crate::model::unschedulable_bits;
use crate::model::{LivenessState, Millis, SchedulingState, TrustState, UnschedulableCounts, WorkerCommand, WorkerId};

/// Unschedulable workers, by reason. Updated with every change of a worker's reasons or claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnschedulableSummary {
    /// Number of unschedulable workers under each reason that applies, busy ones included.
    pub by_reason: UnschedulableCounts,
    /// Number of unschedulable workers without claims, under the first reason that applies. With the idle and the
    /// busy ones these are all workers.
    pub by_first_reason: UnschedulableCounts,
    /// Number of suspect workers not verified since a stop that may have lost claims.
    pub unverified: u64,
}

impl UnschedulableSummary {
    /// Counts a worker that has these reasons from now on.
    pub(in crate::engine) fn add(&mut self, reasons: u8) {
        unschedulable_bits::reasons(reasons).for_each(|reason| *self.by_reason.get_mut(reason) += 1);
        self.unverified += u64::from(reasons & unschedulable_bits::UNVERIFIED != 0);
    }

    /// Uncounts a worker that had these reasons.
    pub(in crate::engine) fn remove(&mut self, reasons: u8) {
        for reason in unschedulable_bits::reasons(reasons) {
            let count = self.by_reason.get_mut(reason);
            assert!(*count > 0, "W11: no worker is counted as {reason:?}");
            *count -= 1;
        }
        self.unverified -= u64::from(reasons & unschedulable_bits::UNVERIFIED != 0);
    }

    /// Counts a worker with these reasons that has no claim from now on.
    pub(in crate::engine) fn add_unclaimed(&mut self, reasons: u8) {
        unschedulable_bits::reasons(reasons).take(1).for_each(|reason| *self.by_first_reason.get_mut(reason) += 1);
    }

    /// Uncounts a worker with these reasons that gets a claim or leaves.
    pub(in crate::engine) fn remove_unclaimed(&mut self, reasons: u8) {
        if let Some(reason) = unschedulable_bits::reasons(reasons).next() {
            let count = self.by_first_reason.get_mut(reason);
            assert!(*count > 0, "W11: no worker without claims is counted as {reason:?}");
            *count -= 1;
        }
    }
}

impl Shard {
    /// Changes the reasons why a worker is unschedulable; without any it is idle, unless it is busy. Records the
    /// change if there is one.
    pub(in crate::engine) fn update_unschedulable(&mut self, at: u32, set: u8, clear: u8) {
        let worker = self.workers.get_mut(at);
        debug_assert!(!worker.deleted, "W1: a deleted worker has reasons to be unschedulable");
        let before = worker.unschedulable_bits;
        let after = (before & !clear) | set;
        if before == after {
            return;
        }
        let usage = worker.usage();
        worker.unschedulable_bits = after;
        let (usage_index, is_unclaimed) = (worker.usage_index, worker.claim == NIL);
        // A reserved worker that is unusable from now on is of no use to the claim that it is kept for.
        if after == 0 || (before & unschedulable_bits::RESERVED != 0) {
            self.freed.add(at);
        }
        self.accounting.change_reasons(usage_index, usage, before, after);
        if is_unclaimed && before == 0 {
            self.idle_queue.remove(self.workers.hot_mut(), at);
        } else if is_unclaimed && after == 0 {
            self.workers.get_mut(at).idle_seq = self.changes.seq() + 1;
            self.idle_queue.push(self.workers.hot_mut(), at);
        }
        debug_assert_eq!(self.workers.get(at).idle, is_unclaimed && after == 0, "W1: idle, but busy or unschedulable");
        if before & !after & unschedulable_bits::SUSPECT != 0 {
            self.forget_unreleased_eviction(at);
        }
        self.note_drained(at);
        if self.shared.is_some() {
            self.offer_if_schedulable(at);
        }
        self.record_change(at);
    }

    /// Updates the set of drained workers after a change of the worker's claims or reasons.
    pub(in crate::engine) fn note_drained(&mut self, at: u32) {
        if self.is_drained(at) {
            self.drained.insert(at);
        } else {
            self.drained.remove(&at);
        }
    }

    /// Whether the worker has no claim and is unschedulable only because it is cordoned or draining.
    pub(in crate::engine) fn is_drained(&self, at: u32) -> bool {
        const OPERATOR_SET: u8 = unschedulable_bits::CORDONED | unschedulable_bits::DRAINING;
        let worker = self.workers.get(at);
        !worker.deleted
            && worker.claim == NIL
            && worker.unschedulable_bits & OPERATOR_SET != 0
            && worker.unschedulable_bits & !OPERATOR_SET == 0
    }

    /// Applies an operator command to a worker.
    pub(in crate::engine) fn apply_command(
        &mut self,
        id: &WorkerId,
        command: WorkerCommand,
        now_ms: Millis,
    ) -> EngineReply {
        let Some(at) = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted) else {
            return EngineReply::UnknownWorker;
        };
        match command {
            WorkerCommand::Cordon => self.update_unschedulable(at, unschedulable_bits::CORDONED, 0),
            WorkerCommand::Uncordon if self.workers.get(at).unschedulable_bits & unschedulable_bits::DRAINING != 0 => {
                return EngineReply::Draining;
            }
            WorkerCommand::Uncordon => self.update_unschedulable(at, 0, unschedulable_bits::CORDONED),
            WorkerCommand::Drain => self.update_unschedulable(at, unschedulable_bits::DRAINING, 0),
            WorkerCommand::Clear => {
                if let Some(left_ms) = self.quarantine_left(at, now_ms) {
                    return EngineReply::Quarantined { left_ms };
                }
                self.mark_verified(at);
            }
        }
        self.schedule_deletion(at, now_ms);
        EngineReply::WorkerUpdated(Box::new(self.worker_snapshot(at)))
    }

    /// Clears suspicion of all workers except those still in quarantine.
    pub(in crate::engine) fn clear_all(&mut self, now_ms: Millis) -> EngineReply {
        let distrusted = unschedulable_bits::UNTRUSTED | unschedulable_bits::STOPPING;
        let cleared_workers: Vec<u32> = self
            .workers
            .iter_from(0)
            .filter(|&at| {
                self.workers.get(at).unschedulable_bits & distrusted != 0 && self.quarantine_left(at, now_ms).is_none()
            })
            .collect();
        let cleared = cleared_workers.len();
        for at in cleared_workers {
            self.mark_verified(at);
        }
        EngineReply::Cleared { cleared: cleared as u64, suspect: self.accounting.unschedulable().by_reason.suspect }
    }

    /// Remaining quarantine of a worker: claims that the last stop may have lost can still be started.
    pub(in crate::engine) fn quarantine_left(&self, at: u32, now_ms: Millis) -> Option<Millis> {
        let unverified = self.workers.get(at).unschedulable_bits & unschedulable_bits::UNVERIFIED != 0;
        (unverified && now_ms < self.quarantine_until_ms).then(|| self.quarantine_until_ms - now_ms)
    }

    /// Trusts the worker in its present state.
    fn mark_verified(&mut self, at: u32) {
        if self.workers.get(at).unschedulable_bits & unschedulable_bits::UNTRUSTED != 0 {
            self.liveness.get_mut(at).timed_out_cleanup = TimedOutCleanup::None;
        }
        self.update_unschedulable(at, 0, unschedulable_bits::UNTRUSTED | unschedulable_bits::STOPPING);
    }

    /// State of a worker in each of its dimensions.
    pub(in crate::engine) fn conditions(&self, at: u32) -> WorkerConditions {
        let worker = self.workers.get(at);
        let has = |reason: u8| worker.unschedulable_bits & reason != 0;
        WorkerConditions {
            busy: worker.claim != NIL || has(unschedulable_bits::STOPPING),
            schedulability: if has(unschedulable_bits::DRAINING) {
                SchedulingState::Draining
            } else if has(unschedulable_bits::CORDONED) {
                SchedulingState::Cordoned
            } else {
                SchedulingState::Open
            },
            liveness: if has(unschedulable_bits::LOST) { LivenessState::Lost } else { LivenessState::Live },
            trust: if has(unschedulable_bits::UNTRUSTED) { TrustState::Suspect } else { TrustState::Trusted },
            overcommitted: match &self.shared {
                None => self.liveness.get(at).promised_capacity.is_some(),
                Some(shared) => shared.is_overcommitted(at),
            },
        }
    }
}
