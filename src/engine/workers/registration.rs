//! Registration, new incarnations, changes and deletion of workers.

use std::sync::Arc;

use crate::engine::NIL;
use crate::engine::accounting::WorkerUse;
use crate::engine::effect::{Effect, EngineReply, WorkerSnapshot};
use crate::engine::event::ReportedClaim;
use crate::engine::shard::Shard;
use crate::engine::workers::liveness::TimedOutCleanup;
use crate::limits;
use crate::model::unschedulable_bits;
use crate::model::{Millis, WorkerId, WorkerRegistration, WorkerSpec};

impl Shard {
    pub(in crate::engine) fn register(
        &mut self,
        spec: WorkerSpec,
        ends_ms: Option<Millis>,
        claims: Option<Vec<ReportedClaim>>,
        ttl_ms: Millis,
        now_ms: Millis,
        effects: &mut Vec<Effect>,
    ) -> EngineReply {
        if self.shared.as_mut().is_some_and(|shared| !shared.register_model(&spec.capacity)) {
            return EngineReply::TooManyModels;
        }
        let (created, at) = match self.workers.find(&spec.id) {
            None => (true, self.add_worker(spec, now_ms)),
            Some(at) => {
                let current = self.workers.registration(at).spec.incarnation;
                let deleted = self.workers.get(at).deleted;
                if spec.incarnation < current || (deleted && spec.incarnation == current) {
                    return EngineReply::StaleIncarnation { known: current, deleted };
                }
                if deleted {
                    self.tombstones.retain(|&(_, ordinal)| ordinal != at);
                    self.queue_row_removal(at);
                    (true, self.add_worker(spec, now_ms))
                } else {
                    if spec.incarnation > current {
                        self.begin_incarnation(at, ttl_ms, now_ms, effects);
                    }
                    self.reregister(at, ttl_ms, now_ms);
                    if self.workers.registration(at).spec != spec {
                        // An end of life is unix time; an unchanged one was converted before.
                        let expiry_changed = self.workers.registration(at).spec.expires_at_ms != spec.expires_at_ms;
                        self.replace_registration(at, spec);
                        if expiry_changed {
                            self.set_expiry(at, ends_ms, now_ms);
                        }
                    }
                    (false, Some(at))
                }
            }
        };
        let Some(at) = at else { return EngineReply::ShardFull };
        assert!(!self.workers.get(at).deleted, "W1: a registered worker is deleted");
        if created {
            self.set_expiry(at, ends_ms, now_ms);
        }
        let mut stop = Vec::new();
        if let Some(reports) = claims {
            self.extend_liveness(at, ttl_ms, now_ms);
            stop = self.reconcile_claims(at, reports, ttl_ms, now_ms, effects);
        }
        let worker = Box::new(WorkerSnapshot { claims: self.disclose_held(at), ..self.worker_snapshot(at) });
        EngineReply::Registered { created, worker, stop }
    }

    /// Begins another incarnation: the claims of the old one are lost, and reasons tied to it are cleared.
    fn begin_incarnation(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis, effects: &mut Vec<Effect>) {
        self.end_all_claims(at, effects);
        self.liveness.get_mut(at).timed_out_cleanup = TimedOutCleanup::None;
        self.update_unschedulable(at, 0, unschedulable_bits::PER_INCARNATION);
        self.extend_liveness(at, ttl_ms, now_ms);
    }

    /// Registers a known worker again. The sender of its heartbeats may have restarted, and then restarts their
    /// sequence. A live worker is not refreshed: a registrar that repeats itself must not keep a dead one alive.
    fn reregister(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis) {
        if self.liveness.get(at).heartbeat_seq.is_some() {
            self.liveness.get_mut(at).heartbeat_seq = None;
        }
        if self.workers.get(at).unschedulable_bits & unschedulable_bits::LOST != 0 {
            self.extend_liveness(at, ttl_ms, now_ms);
        }
    }

    /// Refreshes the worker on a sign of life other than a heartbeat. Its silence limit applies only once it sends
    /// heartbeats.
    fn extend_liveness(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis) {
        let sends_heartbeats = self.liveness.get(at).ttl_ms > 0;
        self.refresh_liveness(at, if sends_heartbeats { ttl_ms } else { 0 }, now_ms);
    }

    fn add_worker(&mut self, spec: WorkerSpec, now_ms: Millis) -> Option<u32> {
        if self.workers.is_full() {
            return None;
        }
        let usage_index = self.accounting.add_worker(&spec.capacity);
        let at = self.workers.insert(Arc::new(WorkerRegistration { spec }), usage_index);
        self.idle_queue.resize_buckets(self.workers.hot_mut());
        self.workers.get_mut(at).idle_seq = self.changes.seq() + 1;
        self.idle_queue.push(self.workers.hot_mut(), at);
        self.index_worker(at, None);
        self.freed.add(at);
        self.record_change(at);
        if now_ms < self.quarantine_until_ms {
            // It may be an old worker whose registration was lost.
            self.update_unschedulable(at, unschedulable_bits::UNVERIFIED, 0);
        }
        Some(at)
    }

    fn replace_registration(&mut self, at: u32, spec: WorkerSpec) {
        let worker = self.workers.get(at);
        let (usage_index, usage) = (worker.usage_index, worker.usage());
        if self.accounting.usage(usage_index).capacity != spec.capacity {
            if usage == WorkerUse::Busy && self.shared.is_none() {
                self.retain_promised_capacity(at, &spec.capacity);
            }
            self.workers.get_mut(at).usage_index = self.accounting.change_capacity(usage_index, &spec.capacity, usage);
        }
        let before = self.shared.is_some().then(|| self.workers.registration(at).spec.capacity.clone());
        if let Some(gpu) = before.as_ref().and_then(|before| before.gpu.as_ref())
            && spec.capacity.gpu.as_ref().is_none_or(|after| after.model != gpu.model)
        {
            self.keep_granted_model(at, &gpu.model);
        }
        self.workers.set_registration(at, Arc::new(WorkerRegistration { spec }));
        self.idle_queue.reindex(self.workers.all(), at);
        self.index_worker(at, before.as_ref());
        self.freed.add(at);
        self.record_change(at);
    }

    pub(in crate::engine) fn delete(
        &mut self,
        id: &WorkerId,
        now_ms: Millis,
        effects: &mut Vec<Effect>,
    ) -> EngineReply {
        let Some(at) = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted) else {
            return EngineReply::UnknownWorker;
        };
        let before = self.counters.lifecycle.lost_claims;
        self.retire_worker(at, effects);
        let claims_lost = self.counters.lifecycle.lost_claims - before;
        self.tombstones.push_back((now_ms + limits::TOMBSTONE_MS, at));
        if self.tombstones.len() > limits::TOMBSTONES_MAX {
            self.drop_oldest_tombstone();
        }
        debug_assert!(self.tombstones.len() <= limits::TOMBSTONES_MAX, "W1: more tombstones than the limit");
        EngineReply::Deleted { claims_lost }
    }

    /// Retires the worker and ends its claims. Only its id remains.
    pub(in crate::engine) fn retire_worker(&mut self, at: u32, effects: &mut Vec<Effect>) {
        self.end_all_claims(at, effects);
        let worker = self.workers.get_mut(at);
        assert!(!worker.deleted && worker.claim == NIL, "W1: a worker is retired twice, or with a claim");
        let (reasons, usage_index) = (std::mem::take(&mut worker.unschedulable_bits), worker.usage_index);
        worker.deleted = true;
        if reasons == 0 {
            self.idle_queue.remove(self.workers.hot_mut(), at);
            self.accounting.remove_idle(usage_index);
        } else {
            self.accounting.remove_unschedulable(usage_index, reasons);
            self.note_drained(at);
        }
        if reasons & unschedulable_bits::RESERVED != 0 {
            self.void_reservations(at);
        }
        self.forget_unreleased_eviction(at);
        self.idle_queue.forget(at);
        self.unindex_worker(at);
        self.liveness.forget(at);
        self.liveness_timers.cancel(at);
        self.record_change(at);
    }

    pub(in crate::engine) fn drop_oldest_tombstone(&mut self) {
        if let Some((_, at)) = self.tombstones.pop_front() {
            self.queue_row_removal(at);
        }
    }

    pub(in crate::engine) fn queue_row_removal(&mut self, at: u32) {
        assert!(self.workers.get(at).deleted, "W1: the row of a live worker is removed");
        self.record_change(at);
        let registration = self.workers.remove(at);
        self.changes.record_removal(registration.spec.id.clone());
    }
}
