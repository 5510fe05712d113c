//! Which workers a shard has: they register, begin another life, change, and are deleted.

use std::sync::Arc;

use crate::engine::NIL;
use crate::engine::effect::{Answer, Effect, WorkerLook};
use crate::engine::event::Named;
use crate::engine::shard::Shard;
use crate::limits;
use crate::model::unschedulable_bits;
use crate::model::{Millis, WorkerCard, WorkerId, WorkerSpec};

impl Shard {
    pub(in crate::engine) fn register<R>(
        &mut self,
        spec: WorkerSpec,
        ends_ms: Option<Millis>,
        claims: Option<Vec<Named>>,
        ttl_ms: Millis,
        now_ms: Millis,
        effects: &mut Vec<Effect<R>>,
    ) -> Answer {
        if self.shares.as_mut().is_some_and(|shares| !shares.knows_model(&spec.capacity)) {
            return Answer::TooManyModels;
        }
        let (created, at) = match self.workers.find(&spec.id) {
            None => (true, self.welcome(spec, now_ms)),
            Some(at) => {
                let known = self.workers.card(at).spec.incarnation;
                let deleted = self.workers.get(at).deleted;
                if spec.incarnation < known || (deleted && spec.incarnation == known) {
                    return Answer::StaleIncarnation { known, deleted };
                }
                if deleted {
                    self.tombstones.retain(|&(_, dead)| dead != at);
                    self.remove_row_later(at);
                    (true, self.welcome(spec, now_ms))
                } else {
                    if spec.incarnation > known {
                        self.begin_life(at, ttl_ms, now_ms, effects);
                    }
                    self.is_there(at, ttl_ms, now_ms);
                    if self.workers.card(at).spec != spec {
                        // An end of life is unix time; the same one as before has been counted already.
                        let moved = self.workers.card(at).spec.expires_at_ms != spec.expires_at_ms;
                        self.replace(at, spec);
                        if moved {
                            self.set_end(at, ends_ms, now_ms);
                        }
                    }
                    (false, Some(at))
                }
            }
        };
        let Some(at) = at else { return Answer::ShardFull };
        if created {
            self.set_end(at, ends_ms, now_ms);
        }
        let mut stop = Vec::new();
        if let Some(named) = claims {
            self.heard_again(at, ttl_ms, now_ms);
            stop = self.word(at, named, ttl_ms, now_ms, effects);
        }
        let worker = Box::new(WorkerLook { claims: self.announce(at), ..self.look(at) });
        Answer::Registered { created, worker, stop }
    }

    /// Another life of the worker begins: what the old one held is lost, and what was thought of it is over.
    fn begin_life<R>(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        self.lose(at, effects);
        self.lives.get_mut(at).uncleaned = 0;
        self.bar(at, 0, unschedulable_bits::OF_ONE_LIFE);
        self.heard_again(at, ttl_ms, now_ms);
    }

    /// The registrar says that a worker is there that is known. Whoever sends its heartbeats may have started anew, and
    /// then counts them anew. A live worker is not heard of by this: a registrar that repeats itself must not keep a dead
    /// one alive.
    fn is_there(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis) {
        if self.lives.get(at).beat_seq.is_some() {
            self.lives.get_mut(at).beat_seq = None;
        }
        if self.workers.get(at).bars & unschedulable_bits::LOST != 0 {
            self.heard_again(at, ttl_ms, now_ms);
        }
    }

    /// Something other than a heartbeat says that the worker is there. Whether it may be silent is for its heartbeats to say.
    fn heard_again(&mut self, at: u32, ttl_ms: Millis, now_ms: Millis) {
        let beats = self.lives.get(at).ttl_ms > 0;
        self.heard(at, if beats { ttl_ms } else { 0 }, now_ms);
    }

    fn welcome(&mut self, spec: WorkerSpec, now_ms: Millis) -> Option<u32> {
        if self.workers.is_full() {
            return None;
        }
        let line = self.ledger.enter(&spec.capacity);
        let at = self.workers.insert(Arc::new(WorkerCard { spec }), line);
        self.idle.grow(self.workers.hot_mut());
        self.workers.get_mut(at).idle_seq = self.seq + 1;
        self.idle.push(self.workers.hot_mut(), at);
        self.enter_share(at, None);
        self.present += 1;
        self.raised += 1;
        self.touch(at);
        if now_ms < self.settled_ms {
            // It may be known from before, and its registration be among what was lost.
            self.bar(at, unschedulable_bits::UNVOUCHED, 0);
        }
        Some(at)
    }

    fn replace(&mut self, at: u32, spec: WorkerSpec) {
        let (line, held, barred) = {
            let worker = self.workers.get(at);
            (worker.line, worker.claim != NIL, worker.bars != 0)
        };
        if self.ledger.line(line).capacity != spec.capacity {
            if held {
                if self.shares.is_none() {
                    self.keep_promise(at, &spec.capacity);
                }
                self.ledger.free(line);
            } else if barred {
                self.ledger.unbar(line);
            }
            self.ledger.leave(line);
            let line = self.ledger.enter(&spec.capacity);
            if held {
                self.ledger.hold(line);
            } else if barred {
                self.ledger.bar(line);
            }
            self.workers.get_mut(at).line = line;
        }
        let before = self.shares.is_some().then(|| self.workers.card(at).spec.capacity.clone());
        if let Some(gpu) = before.as_ref().and_then(|before| before.gpu.as_ref())
            && spec.capacity.gpu.as_ref().is_none_or(|after| after.model != gpu.model)
        {
            self.keep_granted_model(at, &gpu.model);
        }
        self.workers.set_card(at, Arc::new(WorkerCard { spec }));
        self.idle.renew(self.workers.all(), at);
        self.enter_share(at, before.as_ref());
        self.raised += 1;
        self.touch(at);
    }

    pub(in crate::engine) fn delete<R>(
        &mut self,
        id: &WorkerId,
        now_ms: Millis,
        effects: &mut Vec<Effect<R>>,
    ) -> Answer {
        let Some(at) = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted) else {
            return Answer::UnknownWorker;
        };
        let before = self.counters.life.lost_claims;
        self.withdraw(at, effects);
        let claims_lost = self.counters.life.lost_claims - before;
        self.tombstones.push_back((now_ms + limits::TOMBSTONE_MS, at));
        if self.tombstones.len() > limits::TOMBSTONES_MAX {
            self.forget_oldest();
        }
        Answer::Deleted { claims_lost }
    }

    /// Ends the worker and what it holds. What is left is its id.
    pub(in crate::engine) fn withdraw<R>(&mut self, at: u32, effects: &mut Vec<Effect<R>>) {
        self.lose(at, effects);
        let worker = self.workers.get_mut(at);
        let (barred, line) = (std::mem::take(&mut worker.bars), worker.line);
        worker.deleted = true;
        if barred == 0 {
            self.idle.remove(self.workers.hot_mut(), at);
        } else {
            self.ledger.unbar(line);
            self.barred.leave(barred);
            self.barred.leave_free(barred);
            self.bar_changes += 1;
            self.note_drained(at);
        }
        if barred & unschedulable_bits::PROMISED != 0 {
            self.void_promises(at);
        }
        self.idle.forget(at);
        self.leave_share(at);
        self.ledger.leave(line);
        self.lives.forget(at);
        self.beats.cancel(at);
        self.present -= 1;
        self.touch(at);
    }

    pub(in crate::engine) fn forget_oldest(&mut self) {
        if let Some((_, at)) = self.tombstones.pop_front() {
            self.remove_row_later(at);
        }
    }

    pub(in crate::engine) fn remove_row_later(&mut self, at: u32) {
        self.touch(at);
        let card = self.workers.remove(at);
        self.removed.push(card.spec.id.clone());
    }
}
