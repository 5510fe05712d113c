//! What befalls a worker beside its claims: may it be offered (its *bars*), and what only a heartbeat, a registration
//! or a deadline looks at (its *life*). Lives are kept apart from the hot part of a worker, so that a claim does not
//! bring them into the cache; where the hot path must know that there is something to look up, one bit of
//! [`notes`] says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::NIL;
use crate::engine::effect::{Effect, EndReason, EngineReply, WorkerConditions};
use crate::engine::event::ClaimHandle;
use crate::engine::shard::Shard;
use crate::model::unschedulable_bits;
use crate::model::{
    ClaimState, Fence, LivenessState, Millis, SchedulingState, TrustState, UnschedulableCounts, WorkerCapacity,
    WorkerCommand, WorkerId,
};

/// What the hot part of a worker says about its cold one.
pub mod notes {
    /// It has an end of life: a claim must not need it for longer.
    pub const ENDS: u8 = 1;
    /// Its life says something about the claim that it holds.
    pub const CLAIM_NOTES: u8 = 2;
    /// It was granted a claim since the shard was loaded: nothing that was lost before can be adopted any more.
    pub const GRANTED: u8 = 4;
}

/// The cold part of a worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerLiveness {
    /// Highest number of a heartbeat of this incarnation.
    pub heartbeat_seq: Option<u64>,
    /// How long it may be silent; 0: it never sent a heartbeat.
    pub ttl_ms: Millis,
    /// When silence becomes loss.
    pub lost_at_ms: Option<Millis>,
    /// When it is deleted, because it is lost and nobody wants it kept.
    pub deleted_at_ms: Option<Millis>,
    /// Claims that its last list does not name, by fence, each with the time at which it ends.
    pub unreported: BTreeMap<Fence, (ClaimHandle, Millis)>,
    /// Its own end of life.
    pub ends_ms: Option<Millis>,
    /// Fence of the claim whose clean-up never finished; 0: none.
    pub cleanup_timed_out: Fence,
    /// Highest fence of a claim from before the shard was loaded that is over: such a one is not adopted any more.
    pub ended_fence_max: Fence,
    /// What its claim was promised, if that is more than it has now.
    pub promised_capacity: Option<Box<WorkerCapacity>>,
}

/// Of a worker about which there was no word yet.
static NONE: WorkerLiveness = WorkerLiveness {
    heartbeat_seq: None,
    ttl_ms: 0,
    lost_at_ms: None,
    deleted_at_ms: None,
    unreported: BTreeMap::new(),
    ends_ms: None,
    cleanup_timed_out: 0,
    ended_fence_max: 0,
    promised_capacity: None,
};

impl WorkerLiveness {
    pub fn next_ms(&self) -> Option<Millis> {
        let missing = self.unreported.values().map(|&(_, at)| at).min();
        [self.lost_at_ms, self.deleted_at_ms, missing, self.ends_ms].into_iter().flatten().min()
    }
}

/// Lives by ordinal; made at the first word about them.
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

    /// The ordinal is another worker's from now on.
    pub fn forget(&mut self, at: u32) {
        if let Some(life) = self.0.get_mut(at as usize) {
            *life = WorkerLiveness::default();
        }
    }
}

/// Workers that are not offered, by reason. Kept up to date by every change of a worker's bars or claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnschedulableSummary {
    /// Every such worker, under each reason that applies: one that holds claims too.
    pub by_reason: UnschedulableCounts,
    /// Those that hold no claim, each under the first reason that applies. With the idle and the busy workers these are all.
    pub by_first_reason: UnschedulableCounts,
    /// Suspect workers for which nothing has spoken since a stop that may have lost claims.
    pub unverified: u64,
}

impl UnschedulableSummary {
    /// A worker has these bars from now on.
    pub(in crate::engine) fn add(&mut self, bars: u8) {
        unschedulable_bits::reasons(bars).for_each(|reason| *self.by_reason.get_mut(reason) += 1);
        self.unverified += u64::from(bars & unschedulable_bits::UNVERIFIED != 0);
    }

    /// A worker does not have these bars any more.
    pub(in crate::engine) fn remove(&mut self, bars: u8) {
        unschedulable_bits::reasons(bars).for_each(|reason| *self.by_reason.get_mut(reason) -= 1);
        self.unverified -= u64::from(bars & unschedulable_bits::UNVERIFIED != 0);
    }

    /// A worker with these bars holds no claim from now on.
    pub(in crate::engine) fn add_unclaimed(&mut self, bars: u8) {
        unschedulable_bits::reasons(bars).take(1).for_each(|reason| *self.by_first_reason.get_mut(reason) += 1);
    }

    /// A worker with these bars is not among those that hold no claim any more.
    pub(in crate::engine) fn remove_unclaimed(&mut self, bars: u8) {
        unschedulable_bits::reasons(bars).take(1).for_each(|reason| *self.by_first_reason.get_mut(reason) -= 1);
    }
}

impl Shard {
    /// Changes why a worker is not offered; with the last reason gone it is idle, unless it is held. Touches it if
    /// anything changed.
    pub(in crate::engine) fn update_unschedulable(&mut self, at: u32, set: u8, clear: u8) {
        let worker = self.workers.get_mut(at);
        debug_assert!(!worker.deleted, "W1: a deleted worker has no bars");
        let before = worker.unschedulable_bits;
        let after = (before & !clear) | set;
        if before == after {
            return;
        }
        worker.unschedulable_bits = after;
        let (free, line) = (worker.claim == NIL, worker.usage_index);
        self.capacity_epoch += u64::from(after == 0);
        self.unschedulable.remove(before);
        self.unschedulable.add(after);
        if free {
            self.unschedulable.remove_unclaimed(before);
            self.unschedulable.add_unclaimed(after);
        }
        self.unschedulable_version += 1;
        if free && before == 0 {
            self.idle_queue.remove(self.workers.hot_mut(), at);
            self.accounting.mark_unschedulable(line);
        } else if free && after == 0 {
            self.accounting.mark_schedulable(line);
            self.workers.get_mut(at).idle_seq = self.seq + 1;
            self.idle_queue.push(self.workers.hot_mut(), at);
        }
        self.note_drained(at);
        if self.shared.is_some() {
            self.offer_if_schedulable(at);
        }
        self.record_change(at);
    }

    /// Brings the set of drained workers up to date: this one's claims or the reasons why it is not offered have changed.
    pub(in crate::engine) fn note_drained(&mut self, at: u32) {
        if self.is_drained(at) {
            self.drained.insert(at);
        } else {
            self.drained.remove(&at);
        }
    }

    /// Whether the worker holds nothing and is not offered only because it is cordoned or draining.
    pub(in crate::engine) fn is_drained(&self, at: u32) -> bool {
        const OPERATOR_SET: u8 = unschedulable_bits::CORDONED | unschedulable_bits::DRAINING;
        let worker = self.workers.get(at);
        !worker.deleted
            && worker.claim == NIL
            && worker.unschedulable_bits & OPERATOR_SET != 0
            && worker.unschedulable_bits & !OPERATOR_SET == 0
    }

    /// What the owner of a worker wishes.
    pub(in crate::engine) fn apply_command(
        &mut self,
        id: &WorkerId,
        verb: WorkerCommand,
        now_ms: Millis,
    ) -> EngineReply {
        let Some(at) = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted) else {
            return EngineReply::UnknownWorker;
        };
        match verb {
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

    /// The owner of all workers speaks for them. Those whose time has not come stay suspect.
    pub(in crate::engine) fn clear_all(&mut self, now_ms: Millis) -> EngineReply {
        let distrusted = unschedulable_bits::UNTRUSTED | unschedulable_bits::STOPPING;
        let wanted: Vec<u32> = self
            .workers
            .iter_from(0)
            .filter(|&at| {
                self.workers.get(at).unschedulable_bits & distrusted != 0 && self.quarantine_left(at, now_ms).is_none()
            })
            .collect();
        let cleared = wanted.len();
        for at in wanted {
            self.mark_verified(at);
        }
        EngineReply::Cleared { cleared: cleared as u64, suspect: self.unschedulable.by_reason.suspect }
    }

    /// How long nothing can speak for the worker yet: claims that the last stop may have lost can still be started.
    pub(in crate::engine) fn quarantine_left(&self, at: u32, now_ms: Millis) -> Option<Millis> {
        let unvouched = self.workers.get(at).unschedulable_bits & unschedulable_bits::UNVERIFIED != 0;
        (unvouched && now_ms < self.quarantine_until_ms).then(|| self.quarantine_until_ms - now_ms)
    }

    /// Somebody who may has spoken for the worker as it stands.
    fn mark_verified(&mut self, at: u32) {
        if self.workers.get(at).unschedulable_bits & unschedulable_bits::UNTRUSTED != 0 {
            self.liveness.get_mut(at).cleanup_timed_out = 0;
        }
        self.update_unschedulable(at, 0, unschedulable_bits::UNTRUSTED | unschedulable_bits::STOPPING);
    }

    /// The clean-up that `place` stands for came to its end after it had been given up: its worker is clean.
    pub(in crate::engine) fn finish_late_cleanup(&mut self, place: ClaimHandle) {
        let there = (place.worker < self.workers.ordinals()) && self.workers.is_used(place.worker);
        if there && place.fence != 0 && self.liveness.get(place.worker).cleanup_timed_out == place.fence {
            self.liveness.get_mut(place.worker).cleanup_timed_out = 0;
            self.update_unschedulable(place.worker, 0, unschedulable_bits::SUSPECT);
        }
    }

    /// The worker was heard of: its silence begins anew.
    pub(in crate::engine) fn refresh_liveness(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis) {
        let life = self.liveness.get_mut(at);
        let before = std::mem::replace(&mut life.ttl_ms, ttl_ms);
        (life.lost_at_ms, life.deleted_at_ms) = ((ttl_ms > 0).then_some(now_ms + ttl_ms), None);
        self.update_unschedulable(at, 0, unschedulable_bits::LOST);
        if before != ttl_ms {
            // Once in its life, or when the pool's time changes: a heartbeat writes nothing.
            self.record_change(at);
        }
        self.schedule(at);
    }

    /// Says when a worker that is lost is deleted, if it is and that is not said yet. A cordon outlives every life of a
    /// worker, and would not outlive its deletion: with one it is kept.
    pub(in crate::engine) fn schedule_deletion(&mut self, at: u32, now_ms: Millis) {
        let goes = self.workers.get(at).unschedulable_bits & (unschedulable_bits::LOST | unschedulable_bits::CORDONED)
            == unschedulable_bits::LOST;
        let before = self.liveness.get(at).deleted_at_ms;
        let after = self.config.lost_keep_ms.filter(|_| goes).map(|keep_ms| before.unwrap_or(now_ms + keep_ms));
        if before != after {
            self.liveness.get_mut(at).deleted_at_ms = after;
            self.schedule(at);
        }
    }

    /// The time that lost workers are kept is another, and counts from now on.
    pub(in crate::engine) fn reschedule_deletions(&mut self, now_ms: Millis) {
        let is_lost = |at: &u32| self.workers.get(*at).unschedulable_bits & unschedulable_bits::LOST != 0;
        let lost: Vec<u32> = self.workers.iter_from(0).filter(is_lost).collect();
        for at in lost {
            self.liveness.get_mut(at).deleted_at_ms = None;
            self.schedule_deletion(at, now_ms);
            self.schedule(at);
        }
    }

    /// Takes the end of life of a registration over.
    pub(in crate::engine) fn set_expiry(&mut self, at: u32, ends_ms: Option<Millis>, now_ms: Millis) {
        let over = ends_ms.is_some_and(|at| at <= now_ms);
        if ends_ms.is_some() || self.liveness.get(at).ends_ms.is_some() {
            self.liveness.get_mut(at).ends_ms = ends_ms.filter(|_| !over);
        }
        self.index_expiry(at);
        let worker = self.workers.get_mut(at);
        worker.lookup_flags = (worker.lookup_flags & !notes::ENDS) | if ends_ms.is_some() { notes::ENDS } else { 0 };
        let (set, clear) = if over { (unschedulable_bits::ENDED, 0) } else { (0, unschedulable_bits::ENDED) };
        self.update_unschedulable(at, set, clear);
        self.schedule(at);
    }

    /// Brings the orders in which workers are found up to date with the end of its life.
    pub(in crate::engine) fn index_expiry(&mut self, at: u32) {
        let ends_ms = self.liveness.get(at).ends_ms;
        self.idle_queue.set_ends_ms(self.workers.hot_mut(), at, ends_ms);
        if let Some(shares) = &mut self.shared {
            shares.fleet.set_ends_ms(at, ends_ms);
        }
    }

    /// Sets the worker's deadline to the next of those in its life.
    pub(in crate::engine) fn schedule(&mut self, at: u32) {
        match self.liveness.get(at).next_ms() {
            Some(due) => self.liveness_timers.set(at, due),
            None => self.liveness_timers.cancel(at),
        }
    }

    /// A deadline of the worker has passed.
    pub(in crate::engine) fn expire_worker<R>(&mut self, at: u32, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        let due = |deadline: &mut Option<Millis>| deadline.take_if(|at| *at <= now_ms).is_some();
        let life = self.liveness.get_mut(at);
        let (silent, ended) = (due(&mut life.lost_at_ms), due(&mut life.ends_ms));
        let deleted = due(&mut life.deleted_at_ms);
        let missing: Vec<_> = life.unreported.extract_if(.., |_, (_, at)| *at <= now_ms).collect();
        for (_, (place, _)) in missing {
            // What began to be released since is cleaned, and its worker stays held until that is over.
            if self.claims.get(place).is_some_and(|claim| claim.state == ClaimState::Active) {
                self.counters.lifecycle.not_reported +=
                    u64::from(self.end_claim(place, EndReason::NotReported, effects));
            }
        }
        if silent {
            self.counters.lifecycle.lost_workers += 1;
            // What it ran may run on: before it is offered again it has to say what it runs.
            let held = self.workers.get(at).claim != NIL;
            self.update_unschedulable(
                at,
                if held { unschedulable_bits::LOST | unschedulable_bits::SUSPECT } else { unschedulable_bits::LOST },
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
            self.counters.lifecycle.deleted_workers += 1;
            effects.push(Effect::WorkerDeleted { worker: Arc::clone(self.workers.registration(at)) });
            // Nobody wished it away, so it is not remembered: it may come back in the same incarnation.
            self.retire_worker(at, effects);
            self.queue_row_removal(at);
        } else {
            self.schedule(at);
        }
    }

    /// Ends what the worker holds, and lets it be remembered.
    pub(in crate::engine) fn end_all_claims<R>(&mut self, at: u32, effects: &mut Vec<Effect<R>>) {
        for place in self.handles_on(at) {
            self.counters.lifecycle.lost_claims += 1;
            self.retain_ended(place, ClaimState::Lost, effects);
            self.end_claim(place, EndReason::Lost, effects);
        }
    }

    /// Says what a claim was that is about to end.
    pub(in crate::engine) fn retain_ended<R>(
        &self,
        place: ClaimHandle,
        state: ClaimState,
        effects: &mut Vec<Effect<R>>,
    ) {
        if self.is_provisional(place) {
            // Nobody was told of it.
            return;
        }
        if let (Some(claim), Some(mut grant)) = (self.claims.get(place), self.grant(place)) {
            grant.mark_ended(state);
            effects.push(Effect::RetainEnded { id: claim.id.clone(), grant });
        }
    }

    /// The claim has ended: what its worker's life said about it is over too.
    #[cold]
    pub(in crate::engine) fn forget_claim_notes(&mut self, place: ClaimHandle) {
        let at = place.worker;
        let free = self.workers.get(at).claim == NIL;
        let life = self.liveness.get_mut(at);
        let fewer = life.unreported.remove(&place.fence).is_some();
        if free {
            life.promised_capacity = None;
        }
        if free || (life.unreported.is_empty() && life.promised_capacity.is_none()) {
            self.workers.get_mut(at).lookup_flags &= !notes::CLAIM_NOTES;
        }
        if fewer {
            self.schedule(at);
        }
    }

    /// The claim on the worker stays, but its capacity changes: what was promised is kept while it is more.
    pub(in crate::engine) fn retain_promised_capacity(&mut self, at: u32, after: &WorkerCapacity) {
        let before = &self.workers.registration(at).spec.capacity;
        let life = self.liveness.get_mut(at);
        let promised = life.promised_capacity.take().unwrap_or_else(|| Box::new(before.clone()));
        if !after.covers(&promised) {
            life.promised_capacity = Some(promised);
            self.workers.get_mut(at).lookup_flags |= notes::CLAIM_NOTES;
        }
    }

    /// A worker on its axes.
    pub(in crate::engine) fn conditions(&self, at: u32) -> WorkerConditions {
        let worker = self.workers.get(at);
        let is = |bar: u8| worker.unschedulable_bits & bar != 0;
        WorkerConditions {
            busy: worker.claim != NIL || is(unschedulable_bits::STOPPING),
            schedulability: if is(unschedulable_bits::DRAINING) {
                SchedulingState::Draining
            } else if is(unschedulable_bits::CORDONED) {
                SchedulingState::Cordoned
            } else {
                SchedulingState::Open
            },
            liveness: if is(unschedulable_bits::LOST) { LivenessState::Lost } else { LivenessState::Live },
            trust: if is(unschedulable_bits::UNTRUSTED) { TrustState::Suspect } else { TrustState::Trusted },
            overcommitted: match &self.shared {
                None => self.liveness.get(at).promised_capacity.is_some(),
                Some(shares) => shares.is_overcommitted(at),
            },
        }
    }

    /// Whether the worker lives until `until_ms`, as far as is known.
    pub(in crate::engine) fn outlives(&self, at: u32, until_ms: Millis) -> bool {
        self.workers.get(at).lookup_flags & notes::ENDS == 0
            || self.liveness.get(at).ends_ms.is_some_and(|ends_ms| ends_ms > until_ms)
    }
}
