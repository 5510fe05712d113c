//! Naive model of a shard: lists that are searched from end to end.

use std::collections::BTreeMap;

use hotpool::engine::{EndReason, PlacementFailure, PoolEligibility, WorkerConditions};
use hotpool::model::{ClaimState, ClaimTimes, PlacementPolicy, TtlBounds};

use crate::requests::Request;

#[path = "lifecycle.rs"]
mod lifecycle;

/// Time for which a deleted worker is remembered.
const TOMBSTONE_MS: u64 = 60_000;
/// Warm workers that are examined before the policy decides.
const WARM_SCAN_MAX: usize = 8;

#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub worker: String,
    pub key: String,
    pub fence: u64,
    pub reserve_ms: u64,
    /// Limit of the states after the reservation.
    pub term_ms: u64,
    pub state: ClaimState,
    pub confirmed: bool,
    pub reported: bool,
    pub disclosed: bool,
    /// True once a reply that discloses it was sent.
    pub reply_sent: bool,
    pub deadline: Option<u64>,
    /// Number of slots that it requested.
    pub slots: u8,
    /// Times of its creation and activation, by the wall clock.
    pub times: ClaimTimes,
}

/// Worker, whose properties follow from a number: its kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Worker {
    pub incarnation: u64,
    pub kind: u8,
    /// Affinity of its last claim.
    pub affinity: Option<u64>,
    pub cordoned: bool,
    pub draining: bool,
    pub lost: bool,
    pub suspect: bool,
    pub unverified: bool,
    pub stopping: bool,
    pub ended: bool,
    /// True after a grant since the shard was loaded.
    pub granted: bool,
    pub heartbeat_seq: Option<u64>,
    pub ttl_ms: u64,
    pub lost_at: Option<u64>,
    pub deleted_at: Option<u64>,
    pub unreported_until: Option<u64>,
    /// End of life in engine time, which is also unix time here.
    pub expires_at: Option<u64>,
    pub cleanup_timed_out: Option<u64>,
    pub ended_fence_max: u64,
    /// Slots that its claim was granted.
    pub granted_slots: Option<u8>,
}

impl Worker {
    /// Reasons why it is unschedulable, the one that counts first in front.
    pub fn reasons(&self) -> Vec<&'static str> {
        let all = [
            ("draining", self.draining),
            ("cordoned", self.cordoned && !self.draining),
            ("lost", self.lost),
            ("suspect", self.suspect || self.unverified),
            ("ended", self.ended),
            ("stopping", self.stopping),
        ];
        all.into_iter().filter(|(_, applies)| *applies).map(|(reason, _)| reason).collect()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Registered { created: bool, busy: bool, stop: Vec<u64> },
    StaleIncarnation { known: u64, deleted: bool },
    UnknownIncarnation { known: u64 },
    Deleted,
    Unknown,
    Updated(WorkerConditions),
    Draining,
    Quarantined(u64),
    Cleared { cleared: u64, suspect: u64 },
    HeartbeatHandled { claims: Vec<u64>, stop: Vec<u64>, late_for: Option<u64> },
    Granted { worker: String, active: bool },
    NoCapacity,
    NotPlaced(PlacementFailure),
    ResourceMismatch,
    Held { worker: String, state: ClaimState, deadline: Option<u64> },
    StaleHandle,
    RolledBack,
    ActiveConflict,
    Releasing,
    NotActive,
    TtlTooLong(u64),
    Released,
}

pub type Ended = (String, u64, EndReason);

/// Reported claim: key, fence, and whether the key is vacant.
pub type Report = (String, u64, bool);

/// Registration of a worker in the tests.
#[derive(Debug, Clone)]
pub struct Registration {
    pub incarnation: u64,
    pub kind: u8,
    pub expires_at: Option<u64>,
    pub claims: Option<Vec<Report>>,
}

/// Parts of a claim beside its worker.
#[derive(Debug, Clone)]
pub struct ClaimTerms {
    pub key: String,
    pub reserve_ms: u64,
    pub term_ms: u64,
    pub slots: u8,
}

/// Durations of the pool's specification.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Durations {
    pub unnamed_ms: u64,
    pub lost_keep_ms: Option<u64>,
    pub ttl: TtlBounds,
}

#[derive(Debug, Clone)]
pub struct Oracle {
    pub policy: PlacementPolicy,
    pub times: Durations,
    /// Wall clock minus engine time, in milliseconds.
    pub unix_ahead_ms: i64,
    pub workers: BTreeMap<String, Worker>,
    /// Idle workers, in the order in which they became idle.
    pub idle: Vec<String>,
    pub claims: Vec<Claim>,
    /// Deleted workers: incarnation, and the time until which each is remembered.
    pub tombstones: BTreeMap<String, (u64, u64)>,
    pub memory_acks: bool,
    pub reserve_ms: u64,
    pub quarantine_until: u64,
    pub fence_max: u64,
    /// Lost tail of fences, as an exclusive and an inclusive bound.
    pub lost_tail: (u64, u64),
}

impl Oracle {
    pub fn new(policy: PlacementPolicy, times: Durations) -> Self {
        Self {
            policy,
            times,
            unix_ahead_ms: 0,
            workers: BTreeMap::new(),
            idle: Vec::new(),
            claims: Vec::new(),
            tombstones: BTreeMap::new(),
            memory_acks: false,
            reserve_ms: 0,
            quarantine_until: 0,
            fence_max: 0,
            lost_tail: (0, 0),
        }
    }

    /// Wall clock at this moment: times have 48 bits.
    fn unix(&self, now: u64) -> Option<u64> {
        Some(now.saturating_add_signed(self.unix_ahead_ms).min((1 << 48) - 1))
    }

    /// Time to live of a claim that requests so much; 0: for ever.
    pub fn effective_ttl(&self, requested: u64) -> Result<u64, Reply> {
        match (requested, self.times.ttl.max_ms) {
            (0, _) => Ok(self.times.ttl.default_ms.unwrap_or(0)),
            (_, Some(max)) if requested > max => Err(Reply::TtlTooLong(max)),
            _ => Ok(requested),
        }
    }

    fn is_busy(&self, id: &str) -> bool {
        self.claims.iter().any(|claim| claim.worker == id)
    }

    fn is_offered(&self, id: &str) -> bool {
        let Some(worker) = self.workers.get(id) else { return false };
        worker.reasons().is_empty() && !self.is_busy(id)
    }

    /// Appends workers that became idle.
    fn requeue(&mut self, order: &[String]) {
        let offered: Vec<String> = order.iter().filter(|id| self.is_offered(id)).cloned().collect();
        let kept: Vec<String> = self.idle.iter().filter(|id| self.is_offered(id)).cloned().collect();
        let fresh: Vec<String> = offered.into_iter().filter(|id| !kept.contains(id)).collect();
        self.idle = kept.into_iter().chain(fresh).collect();
    }

    fn requeue_one(&mut self, id: &str) {
        self.requeue(&[id.to_owned()]);
    }

    fn outlives(&self, id: &str, until: u64) -> bool {
        self.workers[id].expires_at.is_none_or(|at| at > until)
    }

    /// Number of idle workers that fit but for their end of life.
    pub fn count_expiring(&self, until: u64, request: &Request) -> usize {
        self.idle.iter().filter(|id| self.fits(id, request) && !self.outlives(id, until)).count()
    }

    fn fits(&self, id: &str, request: &Request) -> bool {
        request.fits(id, self.workers[id].kind)
    }

    /// Workers that a claim which needs one until then may be granted: one, except with policy `random`.
    pub fn candidates(&self, affinity: u64, until: u64, request: &Request) -> Vec<String> {
        let warm = |id: &&String| self.workers[*id].affinity == Some(affinity);
        let fits = |id: &&String| self.fits(id, request) && self.outlives(id, until);
        let mut fitting = self.idle.iter().filter(fits);
        // The last that became idle among those with the same affinity; only some of these are examined.
        let warmest = self.idle.iter().rev().filter(warm).take(WARM_SCAN_MAX).find(fits);
        match (warmest, self.policy) {
            // A requested worker is that one, warm or not.
            _ if request.worker().is_some() => fitting.cloned().collect(),
            (_, PlacementPolicy::Random) => {
                let all_examined = self.idle.iter().filter(warm).count() <= WARM_SCAN_MAX;
                let warm: Vec<String> = fitting.clone().filter(warm).cloned().collect();
                let all_fit = request.is_unconstrained() && self.count_expiring(until, request) == 0;
                if warm.is_empty() || !(all_examined || all_fit) { fitting.cloned().collect() } else { warm }
            }
            (Some(id), _) => vec![id.clone()],
            (None, PlacementPolicy::Fifo) => fitting.next().cloned().into_iter().collect(),
            (None, _) => fitting.next_back().cloned().into_iter().collect(),
        }
    }

    /// Reply to a claim for which there is no candidate.
    pub fn placement_failure(&self, until: u64, request: &Request) -> Reply {
        if request.is_unconstrained() {
            return Reply::NoCapacity;
        }
        let fits_ignoring_node = |id: &String| {
            let kind = self.workers[id].kind;
            !request.is_too_small(kind) && request.matches_labels(kind)
        };
        let failure = match request.worker() {
            Some(id) if !self.workers.contains_key(id) => PlacementFailure::UnknownWorker,
            Some(id) if request.is_too_small(self.workers[id].kind) => PlacementFailure::TooSmall,
            Some(id) => {
                let is_idle = self.idle.contains(id) && self.outlives(id, until) && fits_ignoring_node(id);
                if is_idle && request.has_nodes() { PlacementFailure::OtherNode } else { PlacementFailure::Busy }
            }
            None if request.has_nodes()
                && self.idle.iter().any(|id| fits_ignoring_node(id) && self.outlives(id, until)) =>
            {
                PlacementFailure::OtherNode
            }
            None => PlacementFailure::Busy,
        };
        Reply::NotPlaced(failure)
    }

    /// Grants `worker`, one of the candidates, to a claim.
    pub fn grant(&mut self, worker: &str, fence: u64, affinity: u64, terms: ClaimTerms, now: u64) -> Reply {
        let ClaimTerms { key, reserve_ms, term_ms, slots } = terms;
        let granted_worker = self.workers.get_mut(worker).unwrap();
        (granted_worker.affinity, granted_worker.granted) = (Some(affinity), true);
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
            reported: false,
            disclosed: false,
            reply_sent: false,
            deadline: None,
            slots,
            times: ClaimTimes::new(at, at.filter(|_| active)),
        });
        self.fence_max = self.fence_max.max(fence);
        self.requeue_one(worker);
        Reply::Granted { worker: worker.into(), active }
    }

    fn claim(&mut self, fence: u64) -> Option<&mut Claim> {
        self.claims.iter_mut().find(|claim| claim.fence == fence)
    }

    pub fn end(&mut self, fence: u64, end: EndReason) -> Vec<Ended> {
        let Some(at) = self.claims.iter().position(|claim| claim.fence == fence) else { return Vec::new() };
        let claim = self.claims.remove(at);
        let worker = self.workers.get_mut(&claim.worker).unwrap();
        (worker.unreported_until, worker.granted_slots) = (None, None);
        if fence <= self.lost_tail.1 {
            worker.ended_fence_max = worker.ended_fence_max.max(fence);
        }
        self.requeue_one(&claim.worker);
        vec![(claim.key, fence, end)]
    }

    pub fn release(&mut self, worker: Option<String>, fence: u64) -> Vec<Ended> {
        let ended = self.end(fence, EndReason::Released);
        if ended.is_empty()
            && let Some(id) = worker
            && let Some(worker) = self.workers.get_mut(&id)
            && worker.cleanup_timed_out == Some(fence)
        {
            (worker.cleanup_timed_out, worker.suspect) = (None, false);
            self.requeue_one(&id);
        }
        ended
    }

    pub fn begin_release(&mut self, fence: u64, releasing_ms: u64, now: u64) -> bool {
        match self.claim(fence) {
            Some(claim) if claim.state != ClaimState::Releasing => {
                (claim.state, claim.confirmed, claim.reply_sent) = (ClaimState::Releasing, true, true);
                (claim.term_ms, claim.deadline) = (releasing_ms, Some(now + releasing_ms));
                true
            }
            _ => false,
        }
    }

    pub fn disclose(&mut self, fence: u64) -> Reply {
        let Some(claim) = self.claim(fence) else { return Reply::StaleHandle };
        claim.disclosed = true;
        Reply::Held { worker: claim.worker.clone(), state: claim.state, deadline: claim.deadline }
    }

    pub fn reacquire(&mut self, fence: u64, pool: PoolEligibility, request: &Request) -> (Vec<Ended>, Reply) {
        let Some(claim) = self.claim(fence).cloned() else { return (Vec::new(), Reply::StaleHandle) };
        let allowed =
            pool == PoolEligibility::Eligible && request.allows(&claim.worker, self.workers[&claim.worker].kind);
        match claim.state {
            ClaimState::Releasing => (Vec::new(), Reply::Releasing),
            _ if allowed && request.require_same_resources && request.slots != claim.slots => {
                (Vec::new(), Reply::ResourceMismatch)
            }
            _ if allowed => (Vec::new(), self.disclose(fence)),
            ClaimState::Reserved => (self.end(fence, EndReason::RolledBack), Reply::RolledBack),
            _ => (Vec::new(), Reply::ActiveConflict),
        }
    }

    pub fn confirm(&mut self, fence: u64, now: u64) -> Reply {
        let at = self.unix(now);
        match self.claim(fence) {
            Some(claim) if claim.state == ClaimState::Releasing => return Reply::Releasing,
            Some(claim) => {
                (claim.confirmed, claim.reply_sent) = (true, true);
                activate(claim, now, at);
            }
            None => {}
        }
        self.reset_report_grace(fence);
        self.disclose(fence)
    }

    pub fn renew(&mut self, fence: u64, ttl_ms: Option<u64>, now: u64) -> Reply {
        let requested = match ttl_ms.map(|ttl_ms| self.effective_ttl(ttl_ms)).transpose() {
            Ok(requested) => requested,
            Err(reply) => return reply,
        };
        let TtlBounds { default_ms, max_ms } = self.times.ttl;
        match self.claim(fence) {
            Some(claim) if claim.state == ClaimState::Releasing => return Reply::Releasing,
            Some(claim) if claim.state == ClaimState::Reserved => return Reply::NotActive,
            Some(claim) => {
                (claim.confirmed, claim.reply_sent) = (true, true);
                claim.term_ms = match (requested, claim.term_ms) {
                    (Some(requested), _) => requested,
                    (None, 0) => default_ms.unwrap_or(0),
                    (None, before) => max_ms.map_or(before, |max_ms| max_ms.min(before)),
                };
                if claim.term_ms > 0 {
                    claim.deadline = Some(now + claim.term_ms);
                }
            }
            None => {}
        }
        self.reset_report_grace(fence);
        self.disclose(fence)
    }

    /// Restarts the grace period of a claim that its worker never reported.
    fn reset_report_grace(&mut self, fence: u64) {
        if let Some(claim) = self.claims.iter().find(|claim| claim.fence == fence && !claim.reported) {
            self.workers.get_mut(&claim.worker).unwrap().unreported_until = None;
        }
    }

    pub fn rollback(&mut self, fence: u64) -> Vec<Ended> {
        match self.claim(fence) {
            Some(claim) if !claim.confirmed && !claim.disclosed => self.end(fence, EndReason::RolledBack),
            _ => Vec::new(),
        }
    }

    pub fn reply_sent(&mut self, fence: u64, now: u64) {
        if let Some(claim) = self.claim(fence) {
            claim.reply_sent = true;
            let until = stay(claim).map(|ms| now + ms);
            let is_final = claim.confirmed || claim.state == ClaimState::Releasing;
            if claim.deadline.is_none_or(|deadline| !is_final && until.is_some_and(|until| deadline < until)) {
                claim.deadline = until;
            }
        }
    }
}

/// Time limit of the claim's state.
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
