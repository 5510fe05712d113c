//! What a worker says, what its owner wishes, what time does to it, and what a restart makes of all.

use hotpool::engine::{EndReason, WorkerConditions};
use hotpool::model::{ClaimState, ClaimTimes, LivenessState, SchedulingState, TrustState, WorkerCommand};

use super::{Card, Claim, Ended, Named, Oracle, Said, TOMBSTONE_MS, Times, Worker, activate, stay};
use crate::asks::slots;

impl Oracle {
    /// What is due, by deadline: claims, then workers. Among equal deadlines the order is free, so it is taken from
    /// `as_seen`.
    pub fn tick(&mut self, now: u64, as_seen: &[Ended]) -> Vec<Ended> {
        let seen = |fence| as_seen.iter().position(|(_, of, _)| *of == fence);
        let mut due: Vec<(u64, Option<usize>, u64)> = self
            .claims
            .iter()
            .filter_map(|claim| Some((claim.deadline?, seen(claim.fence), claim.fence)))
            .filter(|(deadline, ..)| *deadline <= now)
            .collect();
        due.sort_unstable();
        self.dead.retain(|_, (_, until)| *until > now);
        let mut ended = Vec::new();
        for (_, _, fence) in due {
            let claim = self.claim(fence).unwrap().clone();
            let end = match claim.state {
                ClaimState::Reserved => EndReason::ReservationExpired,
                ClaimState::Releasing => {
                    let worker = self.workers.get_mut(&claim.worker).unwrap();
                    (worker.suspect, worker.uncleaned) = (true, Some(fence));
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
                    [worker.silent_at, worker.deleted_at, worker.missing_at, ends].into_iter().flatten().min()?;
                let held = self.claims.iter().find(|claim| claim.worker == *id);
                Some((first, held.and_then(|claim| seen(claim.fence)), id.clone()))
            })
            .filter(|(deadline, ..)| *deadline <= now)
            .collect();
        due.sort_unstable();
        for (_, _, id) in due {
            ended.extend(self.sweep_worker(&id, now));
        }
        ended
    }

    fn sweep_worker(&mut self, id: &str, now: u64) -> Vec<Ended> {
        let mut ended = Vec::new();
        if self.workers[id].missing_at.is_some_and(|at| at <= now) {
            self.workers.get_mut(id).unwrap().missing_at = None;
            // What is being cleaned since is left to that.
            if self.claims.iter().any(|claim| claim.worker == id && claim.state == ClaimState::Active) {
                ended.extend(self.end_of(id, EndReason::NotReported));
            }
        }
        let deleted = self.workers[id].deleted_at.is_some_and(|at| at <= now);
        let held = self.is_held(id);
        let worker = self.workers.get_mut(id).unwrap();
        if worker.silent_at.is_some_and(|at| at <= now) {
            worker.silent_at = None;
            worker.lost = true;
            worker.suspect |= held;
            ended.extend(self.end_of(id, EndReason::Lost));
            self.keep_lost(id, now);
        }
        if deleted {
            // Nobody wished it away: it may come back in the same incarnation.
            self.workers.remove(id);
            self.idle.retain(|other| other != id);
            return ended;
        }
        let worker = self.workers.get_mut(id).unwrap();
        worker.ended |= worker.expires_at.is_some_and(|at| at <= now);
        self.requeue_one(id);
        ended
    }

    /// A lost worker is deleted in a while, unless it is cordoned.
    fn keep_lost(&mut self, id: &str, now: u64) {
        let keep_ms = self.times.lost_keep_ms;
        let worker = self.workers.get_mut(id).unwrap();
        let goes = worker.lost && !worker.cordoned;
        worker.deleted_at = keep_ms.filter(|_| goes).map(|ms| worker.deleted_at.unwrap_or(now + ms));
    }

    /// Other times of the pool.
    pub fn set_times(&mut self, times: Times, now: u64) {
        let anew = self.times.lost_keep_ms != times.lost_keep_ms;
        self.times = times;
        let ids: Vec<String> = self.workers.keys().cloned().collect();
        for id in ids.iter().filter(|_| anew) {
            self.workers.get_mut(id).unwrap().deleted_at = None;
            self.keep_lost(id, now);
        }
    }

    fn end_of(&mut self, id: &str, end: EndReason) -> Vec<Ended> {
        let fence = self.claims.iter().find(|claim| claim.worker == id).map(|claim| claim.fence);
        fence.map_or(Vec::new(), |fence| self.end(fence, end))
    }

    pub fn register(&mut self, id: &str, card: Card, ttl_ms: u64, now: u64) -> (Vec<Ended>, Said, Option<u64>) {
        let Card { incarnation, card, expires_at, claims } = card;
        if let Some(&(known, _)) = self.dead.get(id) {
            if incarnation <= known {
                return (Vec::new(), Said::Stale { known, deleted: true }, None);
            }
            self.dead.remove(id);
        }
        let created = !self.workers.contains_key(id);
        let mut ended = Vec::new();
        if created {
            let unvouched = now < self.settled_at;
            let ended = expires_at.is_some_and(|at| at <= now);
            let worker = Worker { incarnation, card, expires_at, unvouched, ended, ..Worker::default() };
            self.workers.insert(id.into(), worker);
        } else {
            let known = self.workers[id].incarnation;
            if incarnation < known {
                return (Vec::new(), Said::Stale { known, deleted: false }, None);
            }
            if incarnation > known {
                ended = self.end_of(id, EndReason::Lost);
                let worker = self.workers.get_mut(id).unwrap();
                (worker.draining, worker.lost, worker.suspect) = (false, false, false);
                (worker.unvouched, worker.stopping) = (false, false);
                worker.uncleaned = None;
                self.heard_again(id, ttl_ms, now);
            } else if self.workers[id].lost {
                self.heard_again(id, ttl_ms, now);
            }
            self.workers.get_mut(id).unwrap().beat = None;
            let held = self.is_held(id);
            let worker = self.workers.get_mut(id).unwrap();
            if held {
                let promised = worker.promised.unwrap_or(slots(worker.card));
                worker.promised = (slots(card) < promised).then_some(promised);
            }
            (worker.incarnation, worker.card) = (incarnation, card);
            if worker.expires_at != expires_at {
                worker.expires_at = expires_at;
                worker.ended = expires_at.is_some_and(|at| at <= now);
            }
        }
        self.requeue_one(id);
        let (mut stop, mut adopted) = (Vec::new(), None);
        if let Some(named) = claims {
            self.heard_again(id, ttl_ms, now);
            let word = self.word(id, named, ttl_ms, now);
            ended.extend(word.0);
            (stop, adopted) = (word.1, word.2);
        }
        self.announce(id);
        (ended, Said::Registered { created, busy: self.axes(id).busy, stop }, adopted)
    }

    /// What the worker is shown of what it holds, which counts as told from then on.
    fn announce(&mut self, id: &str) -> Vec<u64> {
        let shown = self.claims.iter_mut().filter(|claim| claim.worker == id && claim.answered);
        let mut fences = Vec::new();
        for claim in shown {
            claim.told = true;
            fences.push(claim.fence);
        }
        fences
    }

    /// By something other than a heartbeat: whoever never sent one may be silent.
    fn heard_again(&mut self, id: &str, ttl_ms: u64, now: u64) {
        let ttl_ms = if self.workers[id].ttl_ms > 0 { ttl_ms } else { 0 };
        self.heard(id, ttl_ms, now);
    }

    fn heard(&mut self, id: &str, ttl_ms: u64, now: u64) {
        let worker = self.workers.get_mut(id).unwrap();
        (worker.lost, worker.ttl_ms, worker.deleted_at) = (false, ttl_ms, None);
        worker.silent_at = (ttl_ms > 0).then_some(now + ttl_ms);
        self.requeue_one(id);
    }

    /// What ended, what is to stop, and what was adopted.
    fn word(&mut self, id: &str, named: Vec<Named>, ttl_ms: u64, now: u64) -> (Vec<Ended>, Vec<u64>, Option<u64>) {
        let (mut ended, unix) = (Vec::new(), self.unix(now));
        let held = self.claims.iter().position(|claim| claim.worker == id);
        let is_held = |claims: &[Claim], (key, fence, _): &Named| {
            held.is_some_and(|at| (&claims[at].key, claims[at].fence) == (key, *fence))
        };
        let names_held = named.iter().any(|name| is_held(&self.claims, name));
        let others: Vec<Named> = named.into_iter().filter(|name| !is_held(&self.claims, name)).collect();
        let settled = !self.workers[id].unvouched || now >= self.settled_at;
        if let Some(at) = held {
            let claim = &mut self.claims[at];
            let worker = self.workers.get_mut(id).unwrap();
            if names_held {
                (claim.confirmed, claim.named, claim.answered) = (true, true, true);
                activate(claim, now, unix);
                worker.missing_at = None;
            } else if worker.unvouched && settled {
                let fence = claim.fence;
                ended.extend(self.end(fence, EndReason::NotReported));
            } else if claim.state == ClaimState::Active && claim.answered {
                let due = now + if claim.named { ttl_ms / 2 } else { self.times.unnamed_ms };
                worker.missing_at = Some(worker.missing_at.map_or(due, |at| at.min(due)));
            }
        }
        // The youngest of those that can only be claims without a record.
        let worker = &self.workers[id];
        let room = |fence: u64| match self.claims.iter().find(|claim| claim.worker == id) {
            None => true,
            Some(claim) => worker.unvouched && claim.fence < fence && !names_held,
        };
        let may = |(_, fence, vacant): &&Named| {
            let in_tail = self.tail.0 < *fence && *fence <= self.tail.1;
            *vacant && in_tail && !worker.granted && worker.settled < *fence && room(*fence)
        };
        let adopted = others.iter().filter(may).max_by_key(|(_, fence, _)| *fence).cloned();
        if let Some((key, fence, _)) = &adopted {
            ended.extend(self.end_of(id, EndReason::NotReported));
            self.claims.push(Claim {
                worker: id.into(),
                key: key.clone(),
                fence: *fence,
                reserve_ms: 0,
                term_ms: self.times.ttl.default_ms.unwrap_or(0),
                state: ClaimState::Active,
                confirmed: true,
                named: true,
                told: true,
                answered: true,
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
        if settled {
            (worker.suspect, worker.unvouched, worker.uncleaned) = (false, false, None);
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
        claims: Option<Vec<Named>>,
        ttl_ms: u64,
        now: u64,
    ) -> (Vec<Ended>, Said, Option<u64>) {
        let Some(worker) = self.workers.get_mut(id) else { return (Vec::new(), Said::Unknown, None) };
        let known = worker.incarnation;
        if incarnation < known {
            return (Vec::new(), Said::Stale { known, deleted: false }, None);
        }
        if incarnation > known {
            return (Vec::new(), Said::Newer { known }, None);
        }
        let late_for = worker.beat.filter(|last| seq.is_some_and(|seq| seq < *last));
        let (mut ended, mut stop, mut adopted) = (Vec::new(), Vec::new(), None);
        if late_for.is_none() {
            worker.beat = seq.or(worker.beat);
            self.heard(id, ttl_ms, now);
            if let Some(named) = claims {
                (ended, stop, adopted) = self.word(id, named, ttl_ms, now);
            }
        }
        let held = self.announce(id);
        (ended, Said::Heard { claims: held, stop, late_for }, adopted)
    }

    pub fn steer(&mut self, id: &str, verb: WorkerCommand, now: u64) -> Said {
        let settled_at = self.settled_at;
        let Some(worker) = self.workers.get_mut(id) else { return Said::Unknown };
        match verb {
            WorkerCommand::Cordon => worker.cordoned = true,
            WorkerCommand::Uncordon if worker.draining => return Said::Draining,
            WorkerCommand::Uncordon => worker.cordoned = false,
            WorkerCommand::Drain => worker.draining = true,
            WorkerCommand::Clear if worker.unvouched && now < settled_at => return Said::Settling(settled_at - now),
            WorkerCommand::Clear => clear(worker),
        }
        self.keep_lost(id, now);
        self.requeue_one(id);
        Said::Steered(self.axes(id))
    }

    /// In the order in which the shard numbers its workers.
    pub fn clear_all(&mut self, order: &[String], now: u64) -> Said {
        let mut cleared = 0;
        for id in order {
            let settled_at = self.settled_at;
            let worker = self.workers.get_mut(id).unwrap();
            let distrusted = worker.suspect || worker.unvouched || worker.stopping;
            if distrusted && !(worker.unvouched && now < settled_at) {
                cleared += 1;
                clear(worker);
                self.requeue_one(id);
            }
        }
        let suspect = self.workers.values().filter(|worker| worker.suspect || worker.unvouched).count();
        Said::Cleared { cleared, suspect: suspect as u64 }
    }

    pub fn delete(&mut self, id: &str, now: u64) -> (Vec<Ended>, Said) {
        if !self.workers.contains_key(id) {
            return (Vec::new(), Said::Unknown);
        }
        let ended = self.end_of(id, EndReason::Lost);
        let worker = self.workers.remove(id).unwrap();
        self.idle.retain(|other| other != id);
        self.dead.insert(id.into(), (worker.incarnation, now + TOMBSTONE_MS));
        (ended, Said::Deleted)
    }

    pub fn axes(&self, id: &str) -> WorkerConditions {
        let worker = &self.workers[id];
        WorkerConditions {
            busy: self.is_held(id) || worker.stopping,
            schedulability: match (worker.draining, worker.cordoned) {
                (true, _) => SchedulingState::Draining,
                (false, true) => SchedulingState::Cordoned,
                (false, false) => SchedulingState::Open,
            },
            liveness: if worker.lost { LivenessState::Lost } else { LivenessState::Live },
            trust: if worker.suspect || worker.unvouched { TrustState::Suspect } else { TrustState::Trusted },
            overcommitted: worker.promised.is_some(),
        }
    }

    /// The shard is loaded from its rows. `floor`: no fence above it was given out before; the owner before gave out those
    /// above `previous_floor`.
    pub fn reload(&mut self, now: u64, floor: u64, previous_floor: u64, revived: bool) {
        if self.memory && !revived {
            self.workers.values_mut().for_each(|worker| worker.unvouched = true);
        }
        let any = self.workers.values().any(|worker| worker.unvouched);
        self.settled_at = if any { now + self.reserve_ms } else { 0 };
        self.tail = (self.fence_max.max(previous_floor), floor);
        for claim in &mut self.claims {
            (claim.told, claim.answered, claim.confirmed) = (true, true, claim.state != ClaimState::Reserved);
            claim.deadline = stay(claim).map(|ms| now + ms);
        }
        for worker in self.workers.values_mut() {
            (worker.beat, worker.missing_at, worker.uncleaned) = (None, None, None);
            (worker.settled, worker.granted) = (0, false);
            worker.silent_at = (worker.ttl_ms > 0 && !worker.lost).then_some(now + worker.ttl_ms);
            worker.ended = worker.expires_at.is_some_and(|at| at <= now);
            worker.deleted_at = None;
        }
        for id in self.workers.keys().cloned().collect::<Vec<_>>() {
            self.keep_lost(&id, now);
        }
        for (_, until) in self.dead.values_mut() {
            *until = now + TOMBSTONE_MS;
        }
        self.requeue(&[]);
    }
}
fn clear(worker: &mut Worker) {
    if worker.suspect || worker.unvouched {
        worker.uncleaned = None;
    }
    (worker.suspect, worker.unvouched, worker.stopping) = (false, false, false);
}
