//! Workers in the oracle: reports, operator commands, deadlines, and restarts.

use hotpool::engine::{EndReason, WorkerConditions};
use hotpool::model::{ClaimState, ClaimTimes, LivenessState, SchedulingState, TrustState, WorkerCommand};

use super::{Claim, Durations, Ended, Oracle, Registration, Reply, Report, TOMBSTONE_MS, Worker, activate, stay};
use crate::requests::slots;

impl Oracle {
    /// Expires what is due, by deadline: claims, then workers. Equal deadlines have no order, so it is taken from
    /// `observed`.
    pub fn tick(&mut self, now: u64, observed: &[Ended]) -> Vec<Ended> {
        let position = |fence| observed.iter().position(|(_, of, _)| *of == fence);
        let mut due: Vec<(u64, Option<usize>, u64)> = self
            .claims
            .iter()
            .filter_map(|claim| Some((claim.deadline?, position(claim.fence), claim.fence)))
            .filter(|(deadline, ..)| *deadline <= now)
            .collect();
        due.sort_unstable();
        self.tombstones.retain(|_, (_, until)| *until > now);
        let mut ended = Vec::new();
        for (_, _, fence) in due {
            let claim = self.claim(fence).unwrap().clone();
            let end = match claim.state {
                ClaimState::Reserved => EndReason::ReservationExpired,
                ClaimState::Releasing => {
                    let worker = self.workers.get_mut(&claim.worker).unwrap();
                    (worker.suspect, worker.cleanup_timed_out) = (true, Some(fence));
                    EndReason::CleanupTimedOut
                }
                _ => EndReason::Expired,
            };
            ended.extend(self.end(fence, end));
        }
        let mut due: Vec<(u64, Option<usize>, String)> = self
            .workers
            .iter()
            .filter_map(|(id, worker)| {
                let ends = worker.expires_at.filter(|_| !worker.ended);
                let first =
                    [worker.lost_at, worker.deleted_at, worker.unreported_until, ends].into_iter().flatten().min()?;
                let live = self.claims.iter().find(|claim| claim.worker == *id);
                Some((first, live.and_then(|claim| position(claim.fence)), id.clone()))
            })
            .filter(|(deadline, ..)| *deadline <= now)
            .collect();
        due.sort_unstable();
        for (_, _, id) in due {
            ended.extend(self.expire_worker(&id, now));
        }
        ended
    }

    fn expire_worker(&mut self, id: &str, now: u64) -> Vec<Ended> {
        let mut ended = Vec::new();
        if self.workers[id].unreported_until.is_some_and(|at| at <= now) {
            self.workers.get_mut(id).unwrap().unreported_until = None;
            // A claim in clean-up is left to its own deadline.
            if self.claims.iter().any(|claim| claim.worker == id && claim.state == ClaimState::Active) {
                ended.extend(self.end_claim_of(id, EndReason::NotReported));
            }
        }
        let deleted = self.workers[id].deleted_at.is_some_and(|at| at <= now);
        let live = self.is_busy(id);
        let worker = self.workers.get_mut(id).unwrap();
        if worker.lost_at.is_some_and(|at| at <= now) {
            worker.lost_at = None;
            worker.lost = true;
            worker.suspect |= live;
            ended.extend(self.end_claim_of(id, EndReason::Lost));
            self.schedule_deletion(id, now);
        }
        if deleted {
            // No operator deleted it: it may return in the same incarnation.
            self.workers.remove(id);
            self.idle.retain(|other| other != id);
            return ended;
        }
        let worker = self.workers.get_mut(id).unwrap();
        worker.ended |= worker.expires_at.is_some_and(|at| at <= now);
        self.requeue_one(id);
        ended
    }

    /// Schedules the deletion of a lost worker, unless it is cordoned.
    fn schedule_deletion(&mut self, id: &str, now: u64) {
        let keep_ms = self.times.lost_keep_ms;
        let worker = self.workers.get_mut(id).unwrap();
        let deletable = worker.lost && !worker.cordoned;
        worker.deleted_at = keep_ms.filter(|_| deletable).map(|ms| worker.deleted_at.unwrap_or(now + ms));
    }

    /// Changes the durations of the pool.
    pub fn set_durations(&mut self, times: Durations, now: u64) {
        let keep_changed = self.times.lost_keep_ms != times.lost_keep_ms;
        self.times = times;
        let ids: Vec<String> = self.workers.keys().cloned().collect();
        for id in ids.iter().filter(|_| keep_changed) {
            self.workers.get_mut(id).unwrap().deleted_at = None;
            self.schedule_deletion(id, now);
        }
    }

    fn end_claim_of(&mut self, id: &str, end: EndReason) -> Vec<Ended> {
        let fence = self.claims.iter().find(|claim| claim.worker == id).map(|claim| claim.fence);
        fence.map_or(Vec::new(), |fence| self.end(fence, end))
    }

    pub fn register(
        &mut self,
        id: &str,
        registration: Registration,
        ttl_ms: u64,
        now: u64,
    ) -> (Vec<Ended>, Reply, Option<u64>) {
        let Registration { incarnation, kind, expires_at, claims } = registration;
        if let Some(&(known, _)) = self.tombstones.get(id) {
            if incarnation <= known {
                return (Vec::new(), Reply::StaleIncarnation { known, deleted: true }, None);
            }
            self.tombstones.remove(id);
        }
        let created = !self.workers.contains_key(id);
        let mut ended = Vec::new();
        if created {
            let unverified = now < self.quarantine_until;
            let ended = expires_at.is_some_and(|at| at <= now);
            let worker = Worker { incarnation, kind, expires_at, unverified, ended, ..Worker::default() };
            self.workers.insert(id.into(), worker);
        } else {
            let known = self.workers[id].incarnation;
            if incarnation < known {
                return (Vec::new(), Reply::StaleIncarnation { known, deleted: false }, None);
            }
            if incarnation > known {
                ended = self.end_claim_of(id, EndReason::Lost);
                let worker = self.workers.get_mut(id).unwrap();
                (worker.draining, worker.lost, worker.suspect) = (false, false, false);
                (worker.unverified, worker.stopping) = (false, false);
                worker.cleanup_timed_out = None;
                self.extend_liveness(id, ttl_ms, now);
            } else if self.workers[id].lost {
                self.extend_liveness(id, ttl_ms, now);
            }
            self.workers.get_mut(id).unwrap().heartbeat_seq = None;
            let live = self.is_busy(id);
            let worker = self.workers.get_mut(id).unwrap();
            if live {
                let granted_slots = worker.granted_slots.unwrap_or(slots(worker.kind));
                worker.granted_slots = (slots(kind) < granted_slots).then_some(granted_slots);
            }
            (worker.incarnation, worker.kind) = (incarnation, kind);
            if worker.expires_at != expires_at {
                worker.expires_at = expires_at;
                worker.ended = expires_at.is_some_and(|at| at <= now);
            }
        }
        self.requeue_one(id);
        let (mut stop, mut adopted) = (Vec::new(), None);
        if let Some(reports) = claims {
            self.extend_liveness(id, ttl_ms, now);
            let reconciled = self.reconcile(id, reports, ttl_ms, now);
            ended.extend(reconciled.0);
            (stop, adopted) = (reconciled.1, reconciled.2);
        }
        self.disclose_held(id);
        (ended, Reply::Registered { created, busy: self.conditions(id).busy, stop }, adopted)
    }

    /// Discloses the worker's claims to it.
    fn disclose_held(&mut self, id: &str) -> Vec<u64> {
        let shown = self.claims.iter_mut().filter(|claim| claim.worker == id && claim.reply_sent);
        let mut fences = Vec::new();
        for claim in shown {
            claim.disclosed = true;
            fences.push(claim.fence);
        }
        fences
    }

    /// Refreshes a worker without a heartbeat: one that never sent one may be silent.
    fn extend_liveness(&mut self, id: &str, ttl_ms: u64, now: u64) {
        let ttl_ms = if self.workers[id].ttl_ms > 0 { ttl_ms } else { 0 };
        self.refresh_liveness(id, ttl_ms, now);
    }

    fn refresh_liveness(&mut self, id: &str, ttl_ms: u64, now: u64) {
        let worker = self.workers.get_mut(id).unwrap();
        (worker.lost, worker.ttl_ms, worker.deleted_at) = (false, ttl_ms, None);
        worker.lost_at = (ttl_ms > 0).then_some(now + ttl_ms);
        self.requeue_one(id);
    }

    /// Reconciles a report. Returns the ended claims, those to stop, and the readopted one.
    fn reconcile(
        &mut self,
        id: &str,
        reports: Vec<Report>,
        ttl_ms: u64,
        now: u64,
    ) -> (Vec<Ended>, Vec<u64>, Option<u64>) {
        let (mut ended, unix) = (Vec::new(), self.unix(now));
        let live = self.claims.iter().position(|claim| claim.worker == id);
        let is_busy = |claims: &[Claim], (key, fence, _): &Report| {
            live.is_some_and(|at| (&claims[at].key, claims[at].fence) == (key, *fence))
        };
        let reports_live = reports.iter().any(|report| is_busy(&self.claims, report));
        let others: Vec<Report> = reports.into_iter().filter(|report| !is_busy(&self.claims, report)).collect();
        let quarantine_over = !self.workers[id].unverified || now >= self.quarantine_until;
        if let Some(at) = live {
            let claim = &mut self.claims[at];
            let worker = self.workers.get_mut(id).unwrap();
            if reports_live {
                (claim.confirmed, claim.reported, claim.reply_sent) = (true, true, true);
                activate(claim, now, unix);
                worker.unreported_until = None;
            } else if worker.unverified && quarantine_over {
                let fence = claim.fence;
                ended.extend(self.end(fence, EndReason::NotReported));
            } else if claim.state == ClaimState::Active && claim.reply_sent {
                let due = now + if claim.reported { ttl_ms / 2 } else { self.times.unnamed_ms };
                worker.unreported_until = Some(worker.unreported_until.map_or(due, |at| at.min(due)));
            }
        }
        // The newest of those that can only be claims without a record.
        let worker = &self.workers[id];
        let is_free = |fence: u64| match self.claims.iter().find(|claim| claim.worker == id) {
            None => true,
            Some(claim) => worker.unverified && claim.fence < fence && !reports_live,
        };
        let is_eligible = |(_, fence, vacant): &&Report| {
            let in_tail = self.lost_tail.0 < *fence && *fence <= self.lost_tail.1;
            *vacant && in_tail && !worker.granted && worker.ended_fence_max < *fence && is_free(*fence)
        };
        let adopted = others.iter().filter(is_eligible).max_by_key(|(_, fence, _)| *fence).cloned();
        if let Some((key, fence, _)) = &adopted {
            ended.extend(self.end_claim_of(id, EndReason::NotReported));
            self.claims.push(Claim {
                worker: id.into(),
                key: key.clone(),
                fence: *fence,
                reserve_ms: 0,
                term_ms: self.times.ttl.default_ms.unwrap_or(0),
                state: ClaimState::Active,
                confirmed: true,
                reported: true,
                disclosed: true,
                reply_sent: true,
                deadline: self.times.ttl.default_ms.map(|ms| now + ms),
                slots: 0,
                times: ClaimTimes::default(),
            });
            self.fence_max = self.fence_max.max(*fence);
        }
        let mut stop: Vec<u64> = others.iter().map(|(_, fence, _)| *fence).collect();
        if let Some((_, fence, _)) = &adopted
            && let Some(at) = stop.iter().position(|of| of == fence)
        {
            stop.remove(at);
        }
        stop.sort_unstable();
        let worker = self.workers.get_mut(id).unwrap();
        worker.stopping = !stop.is_empty();
        if quarantine_over {
            (worker.suspect, worker.unverified, worker.cleanup_timed_out) = (false, false, None);
        }
        self.requeue_one(id);
        (ended, stop, adopted.map(|(_, fence, _)| fence))
    }

    #[allow(clippy::type_complexity, reason = "what ended, what was said, what was adopted")]
    pub fn heartbeat(
        &mut self,
        id: &str,
        incarnation: u64,
        seq: Option<u64>,
        claims: Option<Vec<Report>>,
        ttl_ms: u64,
        now: u64,
    ) -> (Vec<Ended>, Reply, Option<u64>) {
        let Some(worker) = self.workers.get_mut(id) else { return (Vec::new(), Reply::Unknown, None) };
        let known = worker.incarnation;
        if incarnation < known {
            return (Vec::new(), Reply::StaleIncarnation { known, deleted: false }, None);
        }
        if incarnation > known {
            return (Vec::new(), Reply::UnknownIncarnation { known }, None);
        }
        let late_for = worker.heartbeat_seq.filter(|last| seq.is_some_and(|seq| seq < *last));
        let (mut ended, mut stop, mut adopted) = (Vec::new(), Vec::new(), None);
        if late_for.is_none() {
            worker.heartbeat_seq = seq.or(worker.heartbeat_seq);
            self.refresh_liveness(id, ttl_ms, now);
            if let Some(reports) = claims {
                (ended, stop, adopted) = self.reconcile(id, reports, ttl_ms, now);
            }
        }
        let live = self.disclose_held(id);
        (ended, Reply::HeartbeatHandled { claims: live, stop, late_for }, adopted)
    }

    pub fn apply_command(&mut self, id: &str, command: WorkerCommand, now: u64) -> Reply {
        let quarantine_until = self.quarantine_until;
        let Some(worker) = self.workers.get_mut(id) else { return Reply::Unknown };
        match command {
            WorkerCommand::Cordon => worker.cordoned = true,
            WorkerCommand::Uncordon if worker.draining => return Reply::Draining,
            WorkerCommand::Uncordon => worker.cordoned = false,
            WorkerCommand::Drain => worker.draining = true,
            WorkerCommand::Clear if worker.unverified && now < quarantine_until => {
                return Reply::Quarantined(quarantine_until - now);
            }
            WorkerCommand::Clear => clear(worker),
        }
        self.schedule_deletion(id, now);
        self.requeue_one(id);
        Reply::Updated(self.conditions(id))
    }

    /// Clears all workers, in the order of their ordinals.
    pub fn clear_all(&mut self, order: &[String], now: u64) -> Reply {
        let mut cleared = 0;
        for id in order {
            let quarantine_until = self.quarantine_until;
            let worker = self.workers.get_mut(id).unwrap();
            let is_untrusted = worker.suspect || worker.unverified || worker.stopping;
            if is_untrusted && !(worker.unverified && now < quarantine_until) {
                cleared += 1;
                clear(worker);
                self.requeue_one(id);
            }
        }
        let suspect = self.workers.values().filter(|worker| worker.suspect || worker.unverified).count();
        Reply::Cleared { cleared, suspect: suspect as u64 }
    }

    pub fn delete(&mut self, id: &str, now: u64) -> (Vec<Ended>, Reply) {
        if !self.workers.contains_key(id) {
            return (Vec::new(), Reply::Unknown);
        }
        let ended = self.end_claim_of(id, EndReason::Lost);
        let worker = self.workers.remove(id).unwrap();
        self.idle.retain(|other| other != id);
        self.tombstones.insert(id.into(), (worker.incarnation, now + TOMBSTONE_MS));
        (ended, Reply::Deleted)
    }

    pub fn conditions(&self, id: &str) -> WorkerConditions {
        let worker = &self.workers[id];
        WorkerConditions {
            busy: self.is_busy(id) || worker.stopping,
            schedulability: match (worker.draining, worker.cordoned) {
                (true, _) => SchedulingState::Draining,
                (false, true) => SchedulingState::Cordoned,
                (false, false) => SchedulingState::Open,
            },
            liveness: if worker.lost { LivenessState::Lost } else { LivenessState::Live },
            trust: if worker.suspect || worker.unverified { TrustState::Suspect } else { TrustState::Trusted },
            overcommitted: worker.granted_slots.is_some(),
        }
    }

    /// Reloads the shard from its rows. `floor`: highest fence before this owner; the previous owner's fences are
    /// above `previous_floor`.
    pub fn reload(&mut self, now: u64, floor: u64, previous_floor: u64, restarted: bool) {
        if self.memory_acks && !restarted {
            self.workers.values_mut().for_each(|worker| worker.unverified = true);
        }
        let any = self.workers.values().any(|worker| worker.unverified);
        self.quarantine_until = if any { now + self.reserve_ms } else { 0 };
        self.lost_tail = (self.fence_max.max(previous_floor), floor);
        for claim in &mut self.claims {
            (claim.disclosed, claim.reply_sent, claim.confirmed) = (true, true, claim.state != ClaimState::Reserved);
            claim.deadline = stay(claim).map(|ms| now + ms);
        }
        for worker in self.workers.values_mut() {
            (worker.heartbeat_seq, worker.unreported_until, worker.cleanup_timed_out) = (None, None, None);
            (worker.ended_fence_max, worker.granted) = (0, false);
            worker.lost_at = (worker.ttl_ms > 0 && !worker.lost).then_some(now + worker.ttl_ms);
            worker.ended = worker.expires_at.is_some_and(|at| at <= now);
            worker.deleted_at = None;
        }
        for id in self.workers.keys().cloned().collect::<Vec<_>>() {
            self.schedule_deletion(&id, now);
        }
        for (_, until) in self.tombstones.values_mut() {
            *until = now + TOMBSTONE_MS;
        }
        self.requeue(&[]);
    }
}
fn clear(worker: &mut Worker) {
    if worker.suspect || worker.unverified {
        worker.cleanup_timed_out = None;
    }
    (worker.suspect, worker.unverified, worker.stopping) = (false, false, false);
}
