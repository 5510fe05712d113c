//! What a shard should do, said in the plainest way: lists, searched from end to end.

use std::collections::BTreeMap;

use hotpool::engine::{Axes, End, NoFit};
use hotpool::model::{ClaimState, Liveness, Policy, Schedulability, Trust, WorkerVerb};

use crate::asks::{Ask, slots};

/// How long a deleted worker is remembered.
const TOMBSTONE_MS: u64 = 60_000;
/// Warm workers that are looked at before the policy decides.
const WARM_LOOKS: usize = 8;

#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub worker: String,
    pub key: String,
    pub fence: u64,
    pub reserve_ms: u64,
    /// Of what comes after the reservation.
    pub term_ms: u64,
    pub state: ClaimState,
    pub confirmed: bool,
    pub named: bool,
    pub told: bool,
    pub deadline: Option<u64>,
    /// Slots that it asked for.
    pub slots: u8,
}

/// Kinds of workers are told apart by a number: their card.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Worker {
    pub incarnation: u64,
    pub card: u8,
    /// Affinity of its last claim.
    pub affinity: Option<u64>,
    pub cordoned: bool,
    pub draining: bool,
    pub lost: bool,
    pub suspect: bool,
    pub unvouched: bool,
    pub stopping: bool,
    pub ended: bool,
    /// Granted something since the shard was loaded.
    pub granted: bool,
    pub beat: Option<u64>,
    pub ttl_ms: u64,
    pub silent_at: Option<u64>,
    pub missing_at: Option<u64>,
    /// In the time of the engine, which here is also that of the world.
    pub expires_at: Option<u64>,
    pub uncleaned: Option<u64>,
    pub settled: u64,
    /// Slots.
    pub promised: Option<u8>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Registered { created: bool, busy: bool, stop: Vec<u64> },
    Stale { known: u64, deleted: bool },
    Newer { known: u64 },
    Deleted,
    Unknown,
    Steered(Axes),
    Draining,
    Settling(u64),
    Cleared { cleared: u64, suspect: u64 },
    Heard { claims: Vec<u64>, stop: Vec<u64> },
    Granted { worker: String, active: bool },
    NoRoom,
    NoFit(NoFit),
    Mismatch,
    Held { worker: String, state: ClaimState, deadline: Option<u64> },
    Gone,
    GivenBack,
    ActiveElsewhere,
    Releasing,
    NotActive,
    Released,
}

pub type Ended = (String, u64, End);

/// A claim that a worker names: key, fence, and whether the key is vacant.
pub type Named = (String, u64, bool);

/// A registration as the tests make them.
#[derive(Debug, Clone)]
pub struct Card {
    pub incarnation: u64,
    pub card: u8,
    pub expires_at: Option<u64>,
    pub claims: Option<Vec<Named>>,
}

/// What a claim is made of, beside its worker.
#[derive(Debug, Clone)]
pub struct Terms {
    pub key: String,
    pub reserve_ms: u64,
    pub term_ms: u64,
    pub slots: u8,
}

#[derive(Debug, Clone)]
pub struct Oracle {
    pub policy: Policy,
    pub workers: BTreeMap<String, Worker>,
    /// The offered ones, in the order in which they became idle.
    pub idle: Vec<String>,
    pub claims: Vec<Claim>,
    /// Deleted workers: incarnation, and until when it is remembered.
    pub dead: BTreeMap<String, (u64, u64)>,
    pub memory: bool,
    pub reserve_ms: u64,
    pub settled_at: u64,
    pub fence_max: u64,
    /// Exclusive and inclusive.
    pub tail: (u64, u64),
}

impl Oracle {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            workers: BTreeMap::new(),
            idle: Vec::new(),
            claims: Vec::new(),
            dead: BTreeMap::new(),
            memory: false,
            reserve_ms: 0,
            settled_at: 0,
            fence_max: 0,
            tail: (0, 0),
        }
    }

    fn is_held(&self, id: &str) -> bool {
        self.claims.iter().any(|claim| claim.worker == id)
    }

    fn is_offered(&self, id: &str) -> bool {
        let Some(worker) = self.workers.get(id) else { return false };
        let Worker { cordoned, draining, lost, suspect, unvouched, stopping, ended, .. } = *worker;
        let barred = cordoned || draining || lost || suspect || unvouched || stopping || ended;
        !barred && !self.is_held(id)
    }

    /// Who is offered now and was not before comes last.
    fn requeue(&mut self, order: &[String]) {
        let offered: Vec<String> = order.iter().filter(|id| self.is_offered(id)).cloned().collect();
        let kept: Vec<String> = self.idle.iter().filter(|id| self.is_offered(id)).cloned().collect();
        let fresh: Vec<String> = offered.into_iter().filter(|id| !kept.contains(id)).collect();
        self.idle = kept.into_iter().chain(fresh).collect();
    }

    fn requeue_one(&mut self, id: &str) {
        self.requeue(&[id.to_owned()]);
    }

    fn lasts(&self, id: &str, until: u64) -> bool {
        self.workers[id].expires_at.is_none_or(|at| at > until)
    }

    /// The workers that a claim may take which needs its worker until then: one, but for the policy `random`.
    pub fn may_take(&self, affinity: u64, until: u64, ask: &Ask) -> Vec<String> {
        let first = self.first_in_line(affinity, ask);
        let lasts = |id: &&String| self.lasts(id, until);
        let mut may: Vec<String> = first.iter().filter(lasts).cloned().collect();
        if may.len() < first.len() {
            // Then affinity counts no more.
            let mut lasting = self.idle.iter().filter(lasts).filter(|id| self.fits(id, ask));
            match self.policy {
                Policy::Lifo => may.extend(lasting.next_back().cloned()),
                Policy::Fifo => may.extend(lasting.next().cloned()),
                Policy::Random => may.extend(lasting.cloned()),
            }
        }
        may
    }

    fn fits(&self, id: &str, ask: &Ask) -> bool {
        ask.fits(id, self.workers[id].card)
    }

    /// Those of which the first is taken if it lives for long enough.
    fn first_in_line(&self, affinity: u64, ask: &Ask) -> Vec<String> {
        let warm = |id: &&String| self.workers[*id].affinity == Some(affinity);
        let fits = |id: &&String| self.fits(id, ask);
        let mut fitting = self.idle.iter().filter(fits);
        // The last that became idle among those that last ran the same; only some of these are looked at.
        let warmest = self.idle.iter().rev().filter(warm).take(WARM_LOOKS).find(fits);
        match (warmest, self.policy) {
            // A named worker is that one, warm or not.
            _ if ask.worker().is_some() => fitting.cloned().collect(),
            (_, Policy::Random) => {
                let looked_at_all = self.idle.iter().filter(warm).count() <= WARM_LOOKS;
                let warm: Vec<String> = fitting.clone().filter(warm).cloned().collect();
                if warm.is_empty() || !(looked_at_all || ask.is_for_any()) { fitting.cloned().collect() } else { warm }
            }
            (Some(id), _) => vec![id.clone()],
            (None, Policy::Lifo) => fitting.next_back().cloned().into_iter().collect(),
            (None, Policy::Fifo) => fitting.next().cloned().into_iter().collect(),
        }
    }

    /// Why a claim that may take none takes none.
    pub fn no_fit(&self, until: u64, ask: &Ask) -> Said {
        if ask.is_for_any() {
            return Said::NoRoom;
        }
        let but_node = |id: &String| {
            let card = self.workers[id].card;
            !ask.is_small(card) && ask.labelled(card)
        };
        let why = match ask.worker() {
            Some(id) if !self.workers.contains_key(id) => NoFit::Unknown,
            Some(id) if ask.is_small(self.workers[id].card) => NoFit::Small,
            Some(id) => {
                let there = self.idle.contains(id) && self.lasts(id, until) && but_node(id);
                if there && ask.has_nodes() { NoFit::Node } else { NoFit::Busy }
            }
            // There is one, but its life is too short.
            None if self.idle.iter().any(|id| self.fits(id, ask)) => NoFit::Busy,
            None if ask.has_nodes() && self.idle.iter().any(but_node) => NoFit::Node,
            None => NoFit::Busy,
        };
        Said::NoFit(why)
    }

    /// A claim takes `worker`, one of those that it may take.
    pub fn take(&mut self, worker: &str, fence: u64, affinity: u64, terms: Terms) -> Said {
        let Terms { key, reserve_ms, term_ms, slots } = terms;
        let taken = self.workers.get_mut(worker).unwrap();
        (taken.affinity, taken.granted) = (Some(affinity), true);
        let active = reserve_ms == 0;
        self.claims.push(Claim {
            worker: worker.into(),
            key,
            fence,
            reserve_ms,
            term_ms,
            state: if active { ClaimState::Active } else { ClaimState::Reserved },
            confirmed: false,
            named: false,
            told: false,
            deadline: None,
            slots,
        });
        self.fence_max = self.fence_max.max(fence);
        self.requeue_one(worker);
        Said::Granted { worker: worker.into(), active }
    }

    fn claim(&mut self, fence: u64) -> Option<&mut Claim> {
        self.claims.iter_mut().find(|claim| claim.fence == fence)
    }

    pub fn end(&mut self, fence: u64, end: End) -> Vec<Ended> {
        let Some(at) = self.claims.iter().position(|claim| claim.fence == fence) else { return Vec::new() };
        let claim = self.claims.remove(at);
        let worker = self.workers.get_mut(&claim.worker).unwrap();
        (worker.missing_at, worker.promised) = (None, None);
        if fence <= self.tail.1 {
            worker.settled = worker.settled.max(fence);
        }
        self.requeue_one(&claim.worker);
        vec![(claim.key, fence, end)]
    }

    pub fn release(&mut self, worker: Option<String>, fence: u64) -> Vec<Ended> {
        let ended = self.end(fence, End::Released);
        if ended.is_empty()
            && let Some(id) = worker
            && let Some(worker) = self.workers.get_mut(&id)
            && worker.uncleaned == Some(fence)
        {
            (worker.uncleaned, worker.suspect) = (None, false);
            self.requeue_one(&id);
        }
        ended
    }

    pub fn begin_release(&mut self, fence: u64, releasing_ms: u64, now: u64) -> bool {
        match self.claim(fence) {
            Some(claim) if claim.state != ClaimState::Releasing => {
                (claim.state, claim.confirmed) = (ClaimState::Releasing, true);
                (claim.term_ms, claim.deadline) = (releasing_ms, Some(now + releasing_ms));
                true
            }
            _ => false,
        }
    }

    pub fn tell(&mut self, fence: u64) -> Said {
        let Some(claim) = self.claim(fence) else { return Said::Gone };
        claim.told = true;
        Said::Held { worker: claim.worker.clone(), state: claim.state, deadline: claim.deadline }
    }

    pub fn repeat(&mut self, fence: u64, satisfies: bool, ask: &Ask) -> (Vec<Ended>, Said) {
        let Some(claim) = self.claim(fence).cloned() else { return (Vec::new(), Said::Gone) };
        let allowed = satisfies && ask.allows(&claim.worker, self.workers[&claim.worker].card);
        match claim.state {
            ClaimState::Releasing => (Vec::new(), Said::Releasing),
            _ if allowed && ask.must_match && ask.slots != claim.slots => (Vec::new(), Said::Mismatch),
            _ if allowed => (Vec::new(), self.tell(fence)),
            ClaimState::Reserved => (self.end(fence, End::GivenBack), Said::GivenBack),
            _ => (Vec::new(), Said::ActiveElsewhere),
        }
    }

    pub fn confirm(&mut self, fence: u64, now: u64) -> Said {
        match self.claim(fence) {
            Some(claim) if claim.state == ClaimState::Releasing => return Said::Releasing,
            Some(claim) => {
                claim.confirmed = true;
                activate(claim, now);
            }
            None => {}
        }
        self.tell(fence)
    }

    pub fn renew(&mut self, fence: u64, ttl_ms: Option<u64>, now: u64) -> Said {
        match self.claim(fence) {
            Some(claim) if claim.state == ClaimState::Releasing => return Said::Releasing,
            Some(claim) if claim.state == ClaimState::Reserved => return Said::NotActive,
            Some(claim) => {
                claim.confirmed = true;
                claim.term_ms = ttl_ms.unwrap_or(claim.term_ms);
                if claim.term_ms > 0 {
                    claim.deadline = Some(now + claim.term_ms);
                }
            }
            None => {}
        }
        self.tell(fence)
    }

    pub fn give_back(&mut self, fence: u64) -> Vec<Ended> {
        match self.claim(fence) {
            Some(claim) if !claim.confirmed && !claim.told => self.end(fence, End::GivenBack),
            _ => Vec::new(),
        }
    }

    pub fn departed(&mut self, fence: u64, now: u64) {
        if let Some(claim) = self.claim(fence).filter(|claim| claim.deadline.is_none()) {
            claim.deadline = stay(claim).map(|ms| now + ms);
        }
    }

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
                ClaimState::Reserved => End::Swept,
                ClaimState::Releasing => {
                    let worker = self.workers.get_mut(&claim.worker).unwrap();
                    (worker.suspect, worker.uncleaned) = (true, Some(fence));
                    End::Uncleaned
                }
                _ => End::Expired,
            };
            ended.extend(self.end(fence, end));
        }
        let mut due: Vec<(u64, Option<usize>, String)> = self
            .workers
            .iter()
            .filter_map(|(id, worker)| {
                let ends = worker.expires_at.filter(|_| !worker.ended);
                let first = [worker.silent_at, worker.missing_at, ends].into_iter().flatten().min()?;
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
            ended.extend(self.end_of(id, End::Missing));
        }
        let held = self.is_held(id);
        let worker = self.workers.get_mut(id).unwrap();
        if worker.silent_at.is_some_and(|at| at <= now) {
            worker.silent_at = None;
            worker.lost = true;
            worker.suspect |= held;
            ended.extend(self.end_of(id, End::Lost));
        }
        let worker = self.workers.get_mut(id).unwrap();
        worker.ended |= worker.expires_at.is_some_and(|at| at <= now);
        self.requeue_one(id);
        ended
    }

    fn end_of(&mut self, id: &str, end: End) -> Vec<Ended> {
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
                ended = self.end_of(id, End::Lost);
                let worker = self.workers.get_mut(id).unwrap();
                (worker.draining, worker.lost, worker.suspect) = (false, false, false);
                (worker.unvouched, worker.stopping) = (false, false);
                (worker.beat, worker.uncleaned) = (None, None);
                worker.silent_at = (worker.ttl_ms > 0).then_some(now + worker.ttl_ms);
            }
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
            let ttl = self.workers[id].ttl_ms;
            self.heard(id, ttl, now);
            let word = self.word(id, named, ttl_ms, now);
            ended.extend(word.0);
            (stop, adopted) = (word.1, word.2);
        }
        (ended, Said::Registered { created, busy: self.axes(id).busy, stop }, adopted)
    }

    fn heard(&mut self, id: &str, ttl_ms: u64, now: u64) {
        let worker = self.workers.get_mut(id).unwrap();
        (worker.lost, worker.ttl_ms) = (false, ttl_ms);
        worker.silent_at = (ttl_ms > 0).then_some(now + ttl_ms);
        self.requeue_one(id);
    }

    /// What ended, what is to stop, and what was adopted.
    fn word(&mut self, id: &str, named: Vec<Named>, ttl_ms: u64, now: u64) -> (Vec<Ended>, Vec<u64>, Option<u64>) {
        let mut ended = Vec::new();
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
                (claim.confirmed, claim.named) = (true, true);
                activate(claim, now);
                worker.missing_at = None;
            } else if worker.unvouched && settled {
                let fence = claim.fence;
                ended.extend(self.end(fence, End::Missing));
            } else if claim.named && claim.state == ClaimState::Active && worker.missing_at.is_none() {
                worker.missing_at = Some(now + ttl_ms / 2);
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
            ended.extend(self.end_of(id, End::Missing));
            self.claims.push(Claim {
                worker: id.into(),
                key: key.clone(),
                fence: *fence,
                reserve_ms: 0,
                term_ms: 0,
                state: ClaimState::Active,
                confirmed: true,
                named: true,
                told: true,
                deadline: None,
                slots: 0,
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
        let late = seq.is_some_and(|seq| worker.beat.is_some_and(|last| seq < last));
        let (mut ended, mut stop, mut adopted) = (Vec::new(), Vec::new(), None);
        if !late {
            worker.beat = seq.or(worker.beat);
            self.heard(id, ttl_ms, now);
            if let Some(named) = claims {
                (ended, stop, adopted) = self.word(id, named, ttl_ms, now);
            }
        }
        for claim in self.claims.iter_mut().filter(|claim| claim.worker == id) {
            claim.told = true;
        }
        let held = self.claims.iter().filter(|claim| claim.worker == id).map(|claim| claim.fence).collect();
        (ended, Said::Heard { claims: held, stop }, adopted)
    }

    pub fn steer(&mut self, id: &str, verb: WorkerVerb, now: u64) -> Said {
        let settled_at = self.settled_at;
        let Some(worker) = self.workers.get_mut(id) else { return Said::Unknown };
        match verb {
            WorkerVerb::Cordon => worker.cordoned = true,
            WorkerVerb::Uncordon if worker.draining => return Said::Draining,
            WorkerVerb::Uncordon => worker.cordoned = false,
            WorkerVerb::Drain => worker.draining = true,
            WorkerVerb::Clear if worker.unvouched && now < settled_at => return Said::Settling(settled_at - now),
            WorkerVerb::Clear => clear(worker),
        }
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
        let ended = self.end_of(id, End::Lost);
        let worker = self.workers.remove(id).unwrap();
        self.idle.retain(|other| other != id);
        self.dead.insert(id.into(), (worker.incarnation, now + TOMBSTONE_MS));
        (ended, Said::Deleted)
    }

    pub fn axes(&self, id: &str) -> Axes {
        let worker = &self.workers[id];
        Axes {
            busy: self.is_held(id) || worker.stopping,
            schedulability: match (worker.draining, worker.cordoned) {
                (true, _) => Schedulability::Draining,
                (false, true) => Schedulability::Cordoned,
                (false, false) => Schedulability::Open,
            },
            liveness: if worker.lost { Liveness::Lost } else { Liveness::Live },
            trust: if worker.suspect || worker.unvouched { Trust::Suspect } else { Trust::Trusted },
            overcommitted: worker.promised.is_some(),
        }
    }

    /// The shard is loaded from its rows. `floor`: no fence above it was given out before.
    pub fn reload(&mut self, now: u64, floor: u64, revived: bool) {
        if self.memory && !revived {
            self.workers.values_mut().for_each(|worker| worker.unvouched = true);
        }
        let any = self.workers.values().any(|worker| worker.unvouched);
        self.settled_at = if any { now + self.reserve_ms } else { 0 };
        self.tail = (self.fence_max, floor);
        for claim in &mut self.claims {
            (claim.told, claim.confirmed) = (true, claim.state != ClaimState::Reserved);
            claim.deadline = stay(claim).map(|ms| now + ms);
        }
        for worker in self.workers.values_mut() {
            (worker.beat, worker.missing_at, worker.uncleaned) = (None, None, None);
            (worker.settled, worker.granted) = (0, false);
            worker.silent_at = (worker.ttl_ms > 0 && !worker.lost).then_some(now + worker.ttl_ms);
            worker.ended = worker.expires_at.is_some_and(|at| at <= now);
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

/// How long a claim may stay as it is.
fn stay(claim: &Claim) -> Option<u64> {
    let ms = if claim.state == ClaimState::Reserved { claim.reserve_ms } else { claim.term_ms };
    (ms > 0).then_some(ms)
}

fn activate(claim: &mut Claim, now: u64) {
    if claim.state == ClaimState::Reserved {
        claim.state = ClaimState::Active;
        claim.deadline = stay(claim).map(|ms| now + ms);
    }
}
