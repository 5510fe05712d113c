//! Which workers a shard has: they register, begin another life, change, and are deleted.

use std::sync::Arc;

use crate::engine::NIL;
use crate::engine::effect::{Effect, EngineReply, WorkerSnapshot};
use crate::engine::event::ReportedClaim;
use crate::engine::shard::Shard;
use crate::limits;
use crate::model::unschedulable_bits;
use crate::model::{Millis, WorkerId, WorkerRegistration, WorkerSpec};

impl Shard {
    pub(in crate::engine) fn register<R>(
        &mut self,
        spec: WorkerSpec,
        ends_ms: Option<Millis>,
        claims: Option<Vec<ReportedClaim>>,
        ttl_ms: Millis,
        now_ms: Millis,
        effects: &mut Vec<Effect<R>>,
    ) -> EngineReply {
        if self.shared.as_mut().is_some_and(|shares| !shares.register_model(&spec.capacity)) {
            return EngineReply::TooManyModels;
        }
        let (created, at) = match self.workers.find(&spec.id) {
            None => (true, self.add_worker(spec, now_ms)),
            Some(at) => {
                let known = self.workers.registration(at).spec.incarnation;
                let deleted = self.workers.get(at).deleted;
                if spec.incarnation < known || (deleted && spec.incarnation == known) {
                    return EngineReply::StaleIncarnation { known, deleted };
                }
                if deleted {
                    self.tombstones.retain(|&(_, dead)| dead != at);
                    self.queue_row_removal(at);
                    (true, self.add_worker(spec, now_ms))
                } else {
                    if spec.incarnation > known {
                        self.begin_incarnation(at, ttl_ms, now_ms, effects);
                    }
                    self.reregister(at, ttl_ms, now_ms);
                    if self.workers.registration(at).spec != spec {
                        // An end of life is unix time; the same one as before has been counted already.
                        let moved = self.workers.registration(at).spec.expires_at_ms != spec.expires_at_ms;
                        self.replace_registration(at, spec);
                        if moved {
                            self.set_expiry(at, ends_ms, now_ms);
                        }
                    }
                    (false, Some(at))
                }
            }
        };
        let Some(at) = at else { return EngineReply::ShardFull };
        if created {
            self.set_expiry(at, ends_ms, now_ms);
        }
        let mut stop = Vec::new();
        if let Some(named) = claims {
            self.extend_liveness(at, ttl_ms, now_ms);
            stop = self.reconcile_claims(at, named, ttl_ms, now_ms, effects);
        }
        let worker = Box::new(WorkerSnapshot { claims: self.disclose_held(at), ..self.worker_snapshot(at) });
        EngineReply::Registered { created, worker, stop }
    }

    /// Another life of the worker begins: what the old one held is lost, and what was thought of it is over.
    fn begin_incarnation<R>(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        self.end_all_claims(at, effects);
        self.liveness.get_mut(at).cleanup_timed_out = 0;
        self.update_unschedulable(at, 0, unschedulable_bits::PER_INCARNATION);
        self.extend_liveness(at, ttl_ms, now_ms);
    }

    /// The registrar says that a worker is there that is known. Whoever sends its heartbeats may have started anew, and
    /// then counts them anew. A live worker is not heard of by this: a registrar that repeats itself must not keep a dead
    /// one alive.
    fn reregister(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis) {
        if self.liveness.get(at).heartbeat_seq.is_some() {
            self.liveness.get_mut(at).heartbeat_seq = None;
        }
        if self.workers.get(at).unschedulable_bits & unschedulable_bits::LOST != 0 {
            self.extend_liveness(at, ttl_ms, now_ms);
        }
    }

    /// Something other than a heartbeat says that the worker is there. Whether it may be silent is for its heartbeats to say.
    fn extend_liveness(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis) {
        let beats = self.liveness.get(at).ttl_ms > 0;
        self.refresh_liveness(at, if beats { ttl_ms } else { 0 }, now_ms);
    }

    fn add_worker(&mut self, spec: WorkerSpec, now_ms: Millis) -> Option<u32> {
        if self.workers.is_full() {
            return None;
        }
        let line = self.accounting.add_worker(&spec.capacity);
        let at = self.workers.insert(Arc::new(WorkerRegistration { spec }), line);
        self.idle_queue.resize_buckets(self.workers.hot_mut());
        self.workers.get_mut(at).idle_seq = self.seq + 1;
        self.idle_queue.push(self.workers.hot_mut(), at);
        self.index_worker(at, None);
        self.worker_count += 1;
        self.capacity_epoch += 1;
        self.record_change(at);
        if now_ms < self.quarantine_until_ms {
            // It may be known from before, and its registration be among what was lost.
            self.update_unschedulable(at, unschedulable_bits::UNVERIFIED, 0);
        }
        Some(at)
    }

    fn replace_registration(&mut self, at: u32, spec: WorkerSpec) {
        let (line, held, barred) = {
            let worker = self.workers.get(at);
            (worker.usage_index, worker.claim != NIL, worker.unschedulable_bits != 0)
        };
        if self.accounting.usage(line).capacity != spec.capacity {
            if held {
                if self.shared.is_none() {
                    self.retain_promised_capacity(at, &spec.capacity);
                }
                self.accounting.mark_free(line);
            } else if barred {
                self.accounting.mark_schedulable(line);
            }
            self.accounting.remove_worker(line);
            let line = self.accounting.add_worker(&spec.capacity);
            if held {
                self.accounting.mark_held(line);
            } else if barred {
                self.accounting.mark_unschedulable(line);
            }
            self.workers.get_mut(at).usage_index = line;
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
        self.capacity_epoch += 1;
        self.record_change(at);
    }

    pub(in crate::engine) fn delete<R>(
        &mut self,
        id: &WorkerId,
        now_ms: Millis,
        effects: &mut Vec<Effect<R>>,
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
        EngineReply::Deleted { claims_lost }
    }

    /// Ends the worker and what it holds. What is left is its id.
    pub(in crate::engine) fn retire_worker<R>(&mut self, at: u32, effects: &mut Vec<Effect<R>>) {
        self.end_all_claims(at, effects);
        let worker = self.workers.get_mut(at);
        let (barred, line) = (std::mem::take(&mut worker.unschedulable_bits), worker.usage_index);
        worker.deleted = true;
        if barred == 0 {
            self.idle_queue.remove(self.workers.hot_mut(), at);
        } else {
            self.accounting.mark_schedulable(line);
            self.unschedulable.remove(barred);
            self.unschedulable.remove_unclaimed(barred);
            self.unschedulable_version += 1;
            self.note_drained(at);
        }
        if barred & unschedulable_bits::RESERVED != 0 {
            self.void_reservations(at);
        }
        self.idle_queue.forget(at);
        self.unindex_worker(at);
        self.accounting.remove_worker(line);
        self.liveness.forget(at);
        self.liveness_timers.cancel(at);
        self.worker_count -= 1;
        self.record_change(at);
    }

    pub(in crate::engine) fn drop_oldest_tombstone(&mut self) {
        if let Some((_, at)) = self.tombstones.pop_front() {
            self.queue_row_removal(at);
        }
    }

    pub(in crate::engine) fn queue_row_removal(&mut self, at: u32) {
        self.record_change(at);
        let card = self.workers.remove(at);
        self.removed.push(card.spec.id.clone());
    }
}
