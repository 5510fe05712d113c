//! What a shard should do, said in the plainest way: lists, searched from end to end.

use std::collections::BTreeMap;

use hotpool::engine::{EndReason, PlacementFailure, WorkerConditions};
use hotpool::model::{ClaimState, ClaimTimes, PlacementPolicy, TtlBounds};

use crate::asks::Ask;

#[path = "life.rs"]
mod life;

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
    /// An answer that speaks of it has left.
    pub answered: bool,
    pub deadline: Option<u64>,
    /// Slots that it asked for.
    pub slots: u8,
    /// When it was created and became active, by the wall clock.
    pub times: ClaimTimes,
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
    pub deleted_at: Option<u64>,
    pub missing_at: Option<u64>,
    /// In the time of the engine, which here is also that of the world.
    pub expires_at: Option<u64>,
    pub uncleaned: Option<u64>,
    pub settled: u64,
    /// Slots.
    pub promised: Option<u8>,
}

impl Worker {
    /// Reasons for which it is not offered, the one that counts first in front.
    pub fn reasons(&self) -> Vec<&'static str> {
        let all = [
            ("draining", self.draining),
            ("cordoned", self.cordoned && !self.draining),
            ("lost", self.lost),
            ("suspect", self.suspect || self.unvouched),
            ("ended", self.ended),
            ("stopping", self.stopping),
        ];
        all.into_iter().filter(|(_, applies)| *applies).map(|(reason, _)| reason).collect()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Registered { created: bool, busy: bool, stop: Vec<u64> },
    Stale { known: u64, deleted: bool },
    Newer { known: u64 },
    Deleted,
    Unknown,
    Steered(WorkerConditions),
    Draining,
    Settling(u64),
    Cleared { cleared: u64, suspect: u64 },
    Heard { claims: Vec<u64>, stop: Vec<u64>, late_for: Option<u64> },
    Granted { worker: String, active: bool },
    NoRoom,
    NoFit(PlacementFailure),
    Mismatch,
    Held { worker: String, state: ClaimState, deadline: Option<u64> },
    Gone,
    GivenBack,
    ActiveElsewhere,
    Releasing,
    NotActive,
    TtlTooLong(u64),
    Released,
}

pub type Ended = (String, u64, EndReason);

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

/// Times of the pool that its shards know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    pub unnamed_ms: u64,
    pub lost_keep_ms: Option<u64>,
    pub ttl: TtlBounds,
}

#[derive(Debug, Clone)]
pub struct Oracle {
    pub policy: PlacementPolicy,
    pub times: Times,
    /// Wall clock less the time of the engine.
    pub unix_ahead_ms: i64,
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
    pub fn new(policy: PlacementPolicy, times: Times) -> Self {
        Self {
            policy,
            times,
            unix_ahead_ms: 0,
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

    /// What a claim shows of this moment: times have 48 bits.
    fn unix(&self, now: u64) -> Option<u64> {
        Some(now.saturating_add_signed(self.unix_ahead_ms).min((1 << 48) - 1))
    }

    /// How long a claim may be active without a renewal that asks for so long; 0: for ever.
    pub fn ttl_of(&self, asked: u64) -> Result<u64, Said> {
        match (asked, self.times.ttl.max_ms) {
            (0, _) => Ok(self.times.ttl.default_ms.unwrap_or(0)),
            (_, Some(max)) if asked > max => Err(Said::TtlTooLong(max)),
            _ => Ok(asked),
        }
    }

    fn is_held(&self, id: &str) -> bool {
        self.claims.iter().any(|claim| claim.worker == id)
    }

    fn is_offered(&self, id: &str) -> bool {
        let Some(worker) = self.workers.get(id) else { return false };
        worker.reasons().is_empty() && !self.is_held(id)
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

    /// Idle workers that would do but for the end of their life.
    pub fn too_short(&self, until: u64, ask: &Ask) -> usize {
        self.idle.iter().filter(|id| self.fits(id, ask) && !self.lasts(id, until)).count()
    }

    fn fits(&self, id: &str, ask: &Ask) -> bool {
        ask.fits(id, self.workers[id].card)
    }

    /// The workers that a claim may take which needs its worker until then: one, but for the policy `random`.
    pub fn may_take(&self, affinity: u64, until: u64, ask: &Ask) -> Vec<String> {
        let warm = |id: &&String| self.workers[*id].affinity == Some(affinity);
        let fits = |id: &&String| self.fits(id, ask) && self.lasts(id, until);
        let mut fitting = self.idle.iter().filter(fits);
        // The last that became idle among those that last ran the same; only some of these are looked at.
        let warmest = self.idle.iter().rev().filter(warm).take(WARM_LOOKS).find(fits);
        match (warmest, self.policy) {
            // A named worker is that one, warm or not.
            _ if ask.worker().is_some() => fitting.cloned().collect(),
            (_, PlacementPolicy::Random) => {
                let looked_at_all = self.idle.iter().filter(warm).count() <= WARM_LOOKS;
                let warm: Vec<String> = fitting.clone().filter(warm).cloned().collect();
                let all_fit = ask.is_for_any() && self.too_short(until, ask) == 0;
                if warm.is_empty() || !(looked_at_all || all_fit) { fitting.cloned().collect() } else { warm }
            }
            (Some(id), _) => vec![id.clone()],
            (None, PlacementPolicy::Fifo) => fitting.next().cloned().into_iter().collect(),
            (None, _) => fitting.next_back().cloned().into_iter().collect(),
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
            Some(id) if !self.workers.contains_key(id) => PlacementFailure::UnknownWorker,
            Some(id) if ask.is_small(self.workers[id].card) => PlacementFailure::TooSmall,
            Some(id) => {
                let there = self.idle.contains(id) && self.lasts(id, until) && but_node(id);
                if there && ask.has_nodes() { PlacementFailure::OtherNode } else { PlacementFailure::Busy }
            }
            None if ask.has_nodes() && self.idle.iter().any(|id| but_node(id) && self.lasts(id, until)) => {
                PlacementFailure::OtherNode
            }
            None => PlacementFailure::Busy,
        };
        Said::NoFit(why)
    }

    /// A claim takes `worker`, one of those that it may take.
    pub fn take(&mut self, worker: &str, fence: u64, affinity: u64, terms: Terms, now: u64) -> Said {
        let Terms { key, reserve_ms, term_ms, slots } = terms;
        let taken = self.workers.get_mut(worker).unwrap();
        (taken.affinity, taken.granted) = (Some(affinity), true);
        let active = reserve_ms == 0;
        let at = self.unix(now);
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
            answered: false,
            deadline: None,
            slots,
            times: ClaimTimes::new(at, at.filter(|_| active)),
        });
        self.fence_max = self.fence_max.max(fence);
        self.requeue_one(worker);
        Said::Granted { worker: worker.into(), active }
    }

    fn claim(&mut self, fence: u64) -> Option<&mut Claim> {
        self.claims.iter_mut().find(|claim| claim.fence == fence)
    }

    pub fn end(&mut self, fence: u64, end: EndReason) -> Vec<Ended> {
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
        let ended = self.end(fence, EndReason::Released);
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
                (claim.state, claim.confirmed, claim.answered) = (ClaimState::Releasing, true, true);
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
            ClaimState::Reserved => (self.end(fence, EndReason::RolledBack), Said::GivenBack),
            _ => (Vec::new(), Said::ActiveElsewhere),
        }
    }

    pub fn confirm(&mut self, fence: u64, now: u64) -> Said {
        let at = self.unix(now);
        match self.claim(fence) {
            Some(claim) if claim.state == ClaimState::Releasing => return Said::Releasing,
            Some(claim) => {
                (claim.confirmed, claim.answered) = (true, true);
                activate(claim, now, at);
            }
            None => {}
        }
        self.excuse(fence);
        self.tell(fence)
    }

    pub fn renew(&mut self, fence: u64, ttl_ms: Option<u64>, now: u64) -> Said {
        let asked = match ttl_ms.map(|ttl_ms| self.ttl_of(ttl_ms)).transpose() {
            Ok(asked) => asked,
            Err(said) => return said,
        };
        let TtlBounds { default_ms, max_ms } = self.times.ttl;
        match self.claim(fence) {
            Some(claim) if claim.state == ClaimState::Releasing => return Said::Releasing,
            Some(claim) if claim.state == ClaimState::Reserved => return Said::NotActive,
            Some(claim) => {
                (claim.confirmed, claim.answered) = (true, true);
                claim.term_ms = match (asked, claim.term_ms) {
                    (Some(asked), _) => asked,
                    (None, 0) => default_ms.unwrap_or(0),
                    (None, before) => max_ms.map_or(before, |max_ms| max_ms.min(before)),
                };
                if claim.term_ms > 0 {
                    claim.deadline = Some(now + claim.term_ms);
                }
            }
            None => {}
        }
        self.excuse(fence);
        self.tell(fence)
    }

    /// Its holder has spoken for a claim: its worker may leave it out for the whole time again, if it never named it.
    fn excuse(&mut self, fence: u64) {
        if let Some(claim) = self.claims.iter().find(|claim| claim.fence == fence && !claim.named) {
            self.workers.get_mut(&claim.worker).unwrap().missing_at = None;
        }
    }

    pub fn give_back(&mut self, fence: u64) -> Vec<Ended> {
        match self.claim(fence) {
            Some(claim) if !claim.confirmed && !claim.told => self.end(fence, EndReason::RolledBack),
            _ => Vec::new(),
        }
    }

    pub fn departed(&mut self, fence: u64, now: u64) {
        if let Some(claim) = self.claim(fence) {
            claim.answered = true;
            let until = stay(claim).map(|ms| now + ms);
            let settled = claim.confirmed || claim.state == ClaimState::Releasing;
            if claim.deadline.is_none_or(|deadline| !settled && until.is_some_and(|until| deadline < until)) {
                claim.deadline = until;
            }
        }
    }
}

/// How long a claim may stay as it is.
fn stay(claim: &Claim) -> Option<u64> {
    let ms = if claim.state == ClaimState::Reserved { claim.reserve_ms } else { claim.term_ms };
    (ms > 0).then_some(ms)
}

fn activate(claim: &mut Claim, now: u64, at: Option<u64>) {
    if claim.state == ClaimState::Reserved {
        claim.state = ClaimState::Active;
        claim.times = ClaimTimes::new(claim.times.created_at_ms(), at);
        claim.deadline = stay(claim).map(|ms| now + ms);
    }
}
