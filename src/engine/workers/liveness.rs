//! Liveness of a worker: the state that only heartbeats, registrations and deadlines read, and what happens to a worker that
//! falls silent or whose life ends. It is kept apart, so that claims do not load it into the cache; where the hot path must
//! look something up here, a bit of [`lookup_flags`] says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::NIL;
use crate::engine::effect::{Effect, EndReason};
use crate::engine::event::ClaimHandle;
use crate::engine::shard::Shard;
use crate::model::unschedulable_bits;
use crate::model::{ClaimState, Fence, Millis, WorkerCapacity};

/// Bits in the hot part of a worker that point to its liveness.
pub mod lookup_flags {
    /// End of life is set: a claim must not need the worker for longer.
    pub const HAS_END: u8 = 1;
    /// Liveness has an entry about the worker's claim.
    pub const HAS_CLAIM_NOTES: u8 = 2;
    /// Grant since the shard was loaded: no lost claim can be readopted any more.
    pub const GRANTED: u8 = 4;
}

/// Clean-ups of a worker that timed out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TimedOutCleanup {
    #[default]
    None,
    /// Clean-up after the claim with this fence: when it completes late, the worker is clean.
    One(Fence),
    Several,
}

/// Liveness of a worker, which claims do not read.
#[derive(Debug, Clone, Default)]
pub struct WorkerLiveness {
    /// Highest sequence number of a heartbeat of this incarnation.
    pub heartbeat_seq: Option<u64>,
    /// Silence after which the worker is lost, in milliseconds; 0: it never sent a heartbeat.
    pub ttl_ms: Millis,
    /// Engine time at which it is lost unless it is heard from.
    pub lost_at_ms: Option<Millis>,
    /// Engine time at which it is deleted, if it is lost and not to be kept.
    pub deleted_at_ms: Option<Millis>,
    /// Claims missing from its last report, by fence, each with the time at which it ends.
    pub unreported: BTreeMap<Fence, (ClaimHandle, Millis)>,
    /// Engine time of its registered end of life.
    pub ends_ms: Option<Millis>,
    /// Clean-ups that timed out since the worker was last trusted.
    pub timed_out_cleanup: TimedOutCleanup,
    /// Highest fence of an ended claim from before the shard was loaded: up to it, none is readopted.
    pub ended_fence_max: Fence,
    /// Capacity granted to its claim, if that is more than it has now.
    pub promised_capacity: Option<Box<WorkerCapacity>>,
}

/// Liveness of a worker of which nothing was recorded yet.
static NONE: WorkerLiveness = WorkerLiveness {
    heartbeat_seq: None,
    ttl_ms: 0,
    lost_at_ms: None,
    deleted_at_ms: None,
    unreported: BTreeMap::new(),
    ends_ms: None,
    timed_out_cleanup: TimedOutCleanup::None,
    ended_fence_max: 0,
    promised_capacity: None,
};

impl WorkerLiveness {
    pub fn next_ms(&self) -> Option<Millis> {
        let unreported = self.unreported.values().map(|&(_, at)| at).min();
        [self.lost_at_ms, self.deleted_at_ms, unreported, self.ends_ms].into_iter().flatten().min()
    }
}

/// Liveness by ordinal, created at the first write.
#[derive(Debug, Default)]
pub struct LivenessTable(Vec<WorkerLiveness>);

impl LivenessTable {
    pub fn get(&self, at: u32) -> &WorkerLiveness {
        self.0.get(at as usize).unwrap_or(&NONE)
    }

    pub fn get_mut(&mut self, at: u32) -> &mut WorkerLiveness {
        if self.0.len() <= at as usize {
            self.0.resize_with(at as usize + 1, WorkerLiveness::default);
        }
        &mut self.0[at as usize]
    }

    /// Resets the entry before its ordinal is reused.
    pub fn forget(&mut self, at: u32) {
        if let Some(life) = self.0.get_mut(at as usize) {
            *life = WorkerLiveness::default();
        }
    }
}

impl Shard {
    /// Ends suspicion of the worker if the clean-up that timed out belonged to this handle. False: it did not.
    pub(in crate::engine) fn finish_late_cleanup(&mut self, handle: ClaimHandle) -> bool {
        let in_use = (handle.worker < self.workers.ordinals()) && self.workers.is_used(handle.worker);
        let finishes =
            in_use && self.liveness.get(handle.worker).timed_out_cleanup == TimedOutCleanup::One(handle.fence);
        if finishes {
            self.liveness.get_mut(handle.worker).timed_out_cleanup = TimedOutCleanup::None;
            self.update_unschedulable(handle.worker, 0, unschedulable_bits::SUSPECT);
        }
        finishes
    }

    /// Restarts the worker's silence limit after it was heard from.
    pub(in crate::engine) fn refresh_liveness(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis) {
        let liveness = self.liveness.get_mut(at);
        let before = std::mem::replace(&mut liveness.ttl_ms, ttl_ms);
        (liveness.lost_at_ms, liveness.deleted_at_ms) = ((ttl_ms > 0).then_some(now_ms + ttl_ms), None);
        self.update_unschedulable(at, 0, unschedulable_bits::LOST);
        if before != ttl_ms {
            // Only once, or when the pool's limit changes: a heartbeat writes nothing.
            self.record_change(at);
        }
        self.schedule(at);
    }

    /// Schedules the deletion of a lost worker, once. A cordoned worker is kept: its cordon outlives incarnations,
    /// but would not outlive its deletion.
    pub(in crate::engine) fn schedule_deletion(&mut self, at: u32, now_ms: Millis) {
        let deletable = self.workers.get(at).unschedulable_bits
            & (unschedulable_bits::LOST | unschedulable_bits::CORDONED)
            == unschedulable_bits::LOST;
        let before = self.liveness.get(at).deleted_at_ms;
        let after = self.config.lost_keep_ms.filter(|_| deletable).map(|keep_ms| before.unwrap_or(now_ms + keep_ms));
        if before != after {
            self.liveness.get_mut(at).deleted_at_ms = after;
            self.schedule(at);
        }
    }

    /// Restarts the deletion delay of lost workers after the pool changed it.
    pub(in crate::engine) fn reschedule_deletions(&mut self, now_ms: Millis) {
        let is_lost = |at: &u32| self.workers.get(*at).unschedulable_bits & unschedulable_bits::LOST != 0;
        let lost: Vec<u32> = self.workers.iter_from(0).filter(is_lost).collect();
        for at in lost {
            self.liveness.get_mut(at).deleted_at_ms = None;
            self.schedule_deletion(at, now_ms);
            self.schedule(at);
        }
    }

    /// Applies the end of life of a registration.
    pub(in crate::engine) fn set_expiry(&mut self, at: u32, ends_ms: Option<Millis>, now_ms: Millis) {
        let ended = ends_ms.is_some_and(|at| at <= now_ms);
        if ends_ms.is_some() || self.liveness.get(at).ends_ms.is_some() {
            self.liveness.get_mut(at).ends_ms = ends_ms.filter(|_| !ended);
        }
        self.index_expiry(at);
        let worker = self.workers.get_mut(at);
        worker.lookup_flags =
            (worker.lookup_flags & !lookup_flags::HAS_END) | if ends_ms.is_some() { lookup_flags::HAS_END } else { 0 };
        let (set, clear) = if ended { (unschedulable_bits::ENDED, 0) } else { (0, unschedulable_bits::ENDED) };
        self.update_unschedulable(at, set, clear);
        self.schedule(at);
    }

    /// Updates the indexes of workers with its end of life.
    pub(in crate::engine) fn index_expiry(&mut self, at: u32) {
        let ends_ms = self.liveness.get(at).ends_ms;
        self.idle_queue.set_ends_ms(self.workers.hot_mut(), at, ends_ms);
        if let Some(shared) = &mut self.shared {
            shared.fleet.set_ends_ms(at, ends_ms);
        }
    }

    /// Schedules the next deadline of the worker.
    pub(in crate::engine) fn schedule(&mut self, at: u32) {
        match self.liveness.get(at).next_ms() {
            Some(due) => self.liveness_timers.set(at, due),
            None => self.liveness_timers.cancel(at),
        }
    }

    /// Handles the deadlines of a worker that have passed.
    pub(in crate::engine) fn expire_worker(&mut self, at: u32, now_ms: Millis, effects: &mut Vec<Effect>) {
        assert!(self.workers.is_used(at) && !self.workers.get(at).deleted, "W1: a deadline of a deleted worker fires");
        let due = |deadline: &mut Option<Millis>| deadline.take_if(|at| *at <= now_ms).is_some();
        let liveness = self.liveness.get_mut(at);
        let (silent, ended) = (due(&mut liveness.lost_at_ms), due(&mut liveness.ends_ms));
        let deleted = due(&mut liveness.deleted_at_ms);
        let unreported: Vec<_> = liveness.unreported.extract_if(.., |_, (_, at)| *at <= now_ms).collect();
        for (_, (handle, _)) in unreported {
            // A claim released since is being cleaned up, and its worker stays busy until that ends.
            if self.claims.get(handle).is_some_and(|claim| claim.state == ClaimState::Active) {
                self.lifecycle_mut().not_reported += u64::from(self.end_claim(handle, EndReason::NotReported, effects));
            }
        }
        if silent {
            self.lifecycle_mut().lost_workers += 1;
            // Its claims may still run: it must report before it is schedulable again.
            let busy = self.workers.get(at).claim != NIL;
            self.update_unschedulable(
                at,
                if busy { unschedulable_bits::LOST | unschedulable_bits::SUSPECT } else { unschedulable_bits::LOST },
                0,
            );
            effects.push(Effect::WorkerLost { worker: at });
            self.end_all_claims(at, effects);
            self.schedule_deletion(at, now_ms);
        }
        if ended {
            self.update_unschedulable(at, unschedulable_bits::ENDED, 0);
            self.index_expiry(at);
        }
        if deleted {
            self.lifecycle_mut().deleted_workers += 1;
            effects.push(Effect::WorkerDeleted { worker: Arc::clone(self.workers.registration(at)) });
            // No operator deleted it, so no tombstone is kept: it may return in the same incarnation.
            self.retire_worker(at, effects);
            self.queue_row_removal(at);
        } else {
            self.schedule(at);
        }
    }

    /// Ends all claims of the worker as lost, and retains them for queries.
    pub(in crate::engine) fn end_all_claims(&mut self, at: u32, effects: &mut Vec<Effect>) {
        for handle in self.handles_on(at) {
            self.lifecycle_mut().lost_claims += 1;
            self.retain_ended(handle, ClaimState::Lost, effects);
            self.end_claim(handle, EndReason::Lost, effects);
        }
    }

    /// Announces the end of a claim, with its last state for queries.
    pub(in crate::engine) fn retain_ended(&self, handle: ClaimHandle, state: ClaimState, effects: &mut Vec<Effect>) {
        debug_assert!(matches!(state, ClaimState::Lost | ClaimState::Releasing), "L3: {state:?} is no final state");
        if self.is_provisional(handle) {
            // It was never disclosed.
            return;
        }
        if let (Some(claim), Some(mut grant)) = (self.claims.get(handle), self.grant(handle)) {
            grant.mark_ended(state);
            effects.push(Effect::RetainEnded { id: claim.id.clone(), grant });
        }
    }

    /// Removes the notes about an ended claim from its worker's liveness.
    #[cold]
    pub(in crate::engine) fn forget_claim_notes(&mut self, handle: ClaimHandle) {
        let at = handle.worker;
        let is_unclaimed = self.workers.get(at).claim == NIL;
        let liveness = self.liveness.get_mut(at);
        let removed = liveness.unreported.remove(&handle.fence).is_some();
        if is_unclaimed {
            liveness.promised_capacity = None;
        }
        if is_unclaimed || (liveness.unreported.is_empty() && liveness.promised_capacity.is_none()) {
            self.workers.get_mut(at).lookup_flags &= !lookup_flags::HAS_CLAIM_NOTES;
        }
        if removed {
            self.schedule(at);
        }
    }

    /// Retains the capacity that was granted to the worker's claim while it exceeds the new capacity.
    pub(in crate::engine) fn retain_promised_capacity(&mut self, at: u32, after: &WorkerCapacity) {
        let before = &self.workers.registration(at).spec.capacity;
        let liveness = self.liveness.get_mut(at);
        let promised = liveness.promised_capacity.take().unwrap_or_else(|| Box::new(before.clone()));
        if !after.covers(&promised) {
            liveness.promised_capacity = Some(promised);
            self.workers.get_mut(at).lookup_flags |= lookup_flags::HAS_CLAIM_NOTES;
        }
    }

    /// Whether the worker's registered life lasts beyond `until_ms`.
    pub(in crate::engine) fn outlives(&self, at: u32, until_ms: Millis) -> bool {
        self.workers.get(at).lookup_flags & lookup_flags::HAS_END == 0
            || self.liveness.get(at).ends_ms.is_some_and(|ends_ms| ends_ms > until_ms)
    }
}
