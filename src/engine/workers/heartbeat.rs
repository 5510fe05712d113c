//! What a worker says of itself, and what is made of it.
//!
//! A *word* about its claims (a heartbeat with `claims`, a registration with them) is compared with what it holds:
//!
//! - what it names and holds becomes active;
//! - what it holds and does not name ends after a grace, so one reordered word ends nothing: a short one if it named the
//!   claim before, the pool's `unnamed_ms` if it never did and may not have got it yet;
//! - what it names and does not hold is *adopted* if it can only be a claim whose record was lost: its fence lies in
//!   the lost tail (above all that the shard had recorded, from the first fence of the owner before to below the first
//!   of this one), nothing was granted to the worker since, and the key is vacant and was so since (`crate::admission::adoption`).
//!   Anything else it has to stop; until a later word no longer names it, the worker is not offered.
//!
//! A word also ends distrust. After a stop that may have lost claims it does so only when `settled_ms` has passed:
//! until then whoever was told of a lost claim may still come and start it. That word ends what it does not name.
//!
//! What is adopted has the pool's default for its time without a renewal, which begins then; when it was created is not known.
//!
//! In a shared pool nothing is adopted: a worker names keys and fences, not how much of it they held.
//!
//! No word makes room by itself where the ledger says that there is none, but for that last one.

use smallvec::SmallVec;

use super::conditions::notes;
use crate::engine::NIL;
use crate::engine::claims::timestamps::ClaimTimestamps;
use crate::engine::claims::{Claim, DisclosureFlags};
use crate::engine::effect::{ClaimGrant, Effect, EndReason, EngineReply};
use crate::engine::event::{ClaimHandle, HeartbeatReport, ReportedClaim};
use crate::engine::shard::{Shard, saturating_millis};
use crate::model::unschedulable_bits;
use crate::model::{ClaimId, ClaimState, ClaimTimes, Fence, Millis, WorkerId};

impl Shard {
    pub(in crate::engine) fn heartbeat<R>(
        &mut self,
        id: &WorkerId,
        beat: HeartbeatReport,
        now_ms: Millis,
        effects: &mut Vec<Effect<R>>,
    ) -> EngineReply {
        let Some(at) = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted) else {
            return EngineReply::UnknownWorker;
        };
        let known = self.workers.registration(at).spec.incarnation;
        if beat.incarnation < known {
            return EngineReply::StaleIncarnation { known, deleted: false };
        }
        if beat.incarnation > known {
            return EngineReply::UnknownIncarnation { known };
        }
        self.counters.lifecycle.heartbeats += 1;
        let last = self.liveness.get(at).heartbeat_seq;
        let late_for = last.filter(|&last| beat.seq.is_some_and(|seq| seq < last));
        let mut stop = Vec::new();
        if late_for.is_some() {
            self.counters.lifecycle.late_heartbeats += 1;
        } else {
            self.liveness.get_mut(at).heartbeat_seq = beat.seq.or(last);
            self.refresh_liveness(at, beat.ttl_ms, now_ms);
            if let Some(named) = beat.claims {
                stop = self.reconcile_claims(at, named, beat.ttl_ms, now_ms, effects);
            }
        }
        EngineReply::HeartbeatHandled { claims: self.disclose_held(at), stop, superseded_by: late_for }
    }

    /// Claims of the worker that answers have spoken of, which are told from then on. A grant that may still be rolled back
    /// is kept from the worker.
    pub(in crate::engine) fn disclose_held(&mut self, at: u32) -> Vec<(ClaimId, ClaimGrant)> {
        let mut claims = self.worker_snapshot(at).claims;
        claims.retain(|(_, grant)| self.is_reply_sent(grant.handle));
        claims.iter().for_each(|(_, grant)| self.mark_referenced(grant.handle));
        claims
    }

    /// The worker, which may be silent for `ttl_ms`, says which claims it runs. Returns those that it has to stop.
    pub(in crate::engine) fn reconcile_claims<R>(
        &mut self,
        at: u32,
        named: Vec<ReportedClaim>,
        ttl_ms: Millis,
        now_ms: Millis,
        effects: &mut Vec<Effect<R>>,
    ) -> Vec<ReportedClaim> {
        let mut held: SmallVec<[(ClaimHandle, bool); 1]> =
            self.handles_on(at).into_iter().map(|place| (place, false)).collect();
        // Few claims are looked through; many are found by their fences.
        held.sort_unstable_by_key(|(place, _)| place.fence);
        let (mut names_held, mut pending) = (false, false);
        let mut stop: Vec<ReportedClaim> = Vec::new();
        for name in named {
            let found = held.binary_search_by_key(&name.fence, |(place, _)| place.fence).ok();
            let found = found.filter(|&i| self.claims.get(held[i].0).is_some_and(|claim| claim.id == name.id));
            if let Some(i) = found {
                (held[i].1, names_held) = (true, true);
            } else if name.predecessor_pending {
                pending = true;
            } else {
                stop.push(name);
            }
        }
        let unvouched = self.workers.get(at).unschedulable_bits & unschedulable_bits::UNVERIFIED != 0;
        let settled = !pending && self.quarantine_left(at, now_ms).is_none();
        for (place, is_named) in held {
            if is_named {
                self.mark_reported(place, now_ms);
            } else if unvouched && settled {
                self.end_claim(place, EndReason::NotReported, effects);
                self.counters.lifecycle.not_reported += 1;
            } else {
                self.mark_unreported(place, ttl_ms, now_ms);
            }
        }
        if !names_held && let Some(adopted) = self.newest_adoptable(at, &stop) {
            let name = stop.swap_remove(adopted);
            self.adopt(at, name, now_ms, effects);
        }
        let mut clear = 0;
        if settled {
            clear |= unschedulable_bits::UNTRUSTED;
            self.liveness.get_mut(at).cleanup_timed_out = 0;
        }
        let set = if stop.is_empty() { 0 } else { unschedulable_bits::STOPPING };
        self.counters.lifecycle.revocations += stop.len() as u64;
        self.update_unschedulable(at, set, clear | (unschedulable_bits::STOPPING & !set));
        if self.workers.get(at).lookup_flags & notes::CLAIM_NOTES != 0 {
            self.schedule(at);
        }
        stop
    }

    /// The worker runs the claim that it holds.
    fn mark_reported(&mut self, place: ClaimHandle, now_ms: Millis) {
        if self.workers.get(place.worker).lookup_flags & notes::CLAIM_NOTES != 0 {
            self.liveness.get_mut(place.worker).unreported.remove(&place.fence);
        }
        let Some(claim) = self.claims.get_mut(place) else { return };
        claim.confirmed = true;
        claim.disclosure.set_reply_sent();
        let first = !std::mem::replace(&mut claim.reported, true);
        if !self.activate(place, now_ms) && first {
            self.record_change(place.worker);
        }
    }

    /// The worker does not name the claim that it holds.
    fn mark_unreported(&mut self, place: ClaimHandle, ttl_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get(place) else { return };
        // What is being cleaned is not run any more, what is reserved has its own deadline, and nobody can run what nobody
        // was told of: an item of a batch that is not answered yet, a member of a gang that is not committed.
        if claim.state != ClaimState::Active || !claim.disclosure.is_reply_sent() || self.is_provisional(place) {
            return;
        }
        // Of the time that it may be silent, half: long enough for a later heartbeat to say otherwise.
        let grace_ms = if claim.reported { ttl_ms / 2 } else { self.config.unnamed_ms };
        let due = now_ms + grace_ms;
        let missing = &mut self.liveness.get_mut(place.worker).unreported;
        // The first list that leaves it out counts, and a time of the pool that was made shorter since.
        missing.entry(place.fence).and_modify(|(_, at)| *at = due.min(*at)).or_insert((place, due));
        self.workers.get_mut(place.worker).lookup_flags |= notes::CLAIM_NOTES;
    }

    /// The holder has spoken for a claim: its worker, if it never named it, has all the time for that anew.
    pub(in crate::engine) fn reset_report_grace(&mut self, place: ClaimHandle) {
        let noted = self.workers.get(place.worker).lookup_flags & notes::CLAIM_NOTES != 0;
        let unnamed = || self.claims.get(place).is_some_and(|claim| !claim.reported);
        if noted && unnamed() && self.liveness.get_mut(place.worker).unreported.remove(&place.fence).is_some() {
            self.schedule(place.worker);
        }
    }

    /// Whether nothing that may has spoken for the worker yet, since a stop that may have lost claims.
    #[must_use]
    pub fn is_unverified(&self, id: &WorkerId) -> bool {
        self.workers
            .find(id)
            .is_some_and(|at| self.workers.get(at).unschedulable_bits & unschedulable_bits::UNVERIFIED != 0)
    }

    /// Workers that may name lost claims and for which nothing that may has spoken yet.
    #[must_use]
    pub const fn unverified(&self) -> usize {
        if self.shared.is_some() { 0 } else { self.unschedulable.unverified as usize }
    }

    /// Whether the stop before the start may have lost claims that can be adopted; then how long one may still be started.
    #[must_use]
    pub fn may_have_lost(&self) -> Option<Millis> {
        (self.shared.is_none() && self.header.memory_acks).then_some(self.header.reserve_ms)
    }

    /// Whether a claim with this fence, named by the worker, may be one whose record was lost. In a shared pool none may:
    /// nobody knows how much of the worker it held.
    #[must_use]
    pub fn may_adopt(&self, id: &WorkerId, fence: Fence) -> bool {
        self.shared.is_none()
            && self.lost_tail.contains(&fence)
            && self.workers.find(id).is_none_or(|at| self.can_readopt(at, fence))
    }

    fn can_readopt(&self, at: u32, fence: Fence) -> bool {
        let worker = self.workers.get(at);
        // A claim that it got later than what it holds proves that this is over: in the lost tail it was released.
        let over = || {
            let held = self.claims.by_ordinal(worker.claim);
            worker.unschedulable_bits & unschedulable_bits::UNVERIFIED != 0
                && held.is_none_or(|held| held.fence < fence)
        };
        !worker.deleted
            && worker.lookup_flags & notes::GRANTED == 0
            && self.liveness.get(at).ended_fence_max < fence
            && (worker.claim == NIL || over())
    }

    /// Which of these is adopted: the youngest that may.
    fn newest_adoptable(&self, at: u32, named: &[ReportedClaim]) -> Option<usize> {
        if self.lost_tail.is_empty() || self.shared.is_some() {
            return None;
        }
        let may = |name: &ReportedClaim| {
            name.key_vacant && self.lost_tail.contains(&name.fence) && self.can_readopt(at, name.fence)
        };
        let youngest = named.iter().enumerate().filter(|(_, name)| may(name)).max_by_key(|(_, name)| name.fence);
        youngest.map(|(index, _)| index)
    }

    fn adopt<R>(&mut self, at: u32, name: ReportedClaim, now_ms: Millis, effects: &mut Vec<Effect<R>>) {
        for place in self.handles_on(at) {
            self.end_claim(place, EndReason::NotReported, effects);
            self.counters.lifecycle.not_reported += 1;
        }
        let fence = name.fence;
        let claim = self.claims.insert(Claim {
            id: name.id.clone(),
            fence,
            timestamps: ClaimTimestamps::started(ClaimTimes::default()),
            term_ms: saturating_millis(self.config.ttl.default_ms.unwrap_or(0)),
            worker: at,
            state: ClaimState::Active,
            confirmed: true,
            disclosure: DisclosureFlags::ALL,
            reported: true,
            spec: None,
        });
        self.occupy_worker(at, claim);
        self.start_state_timer(ClaimHandle { claim, worker: at, fence }, now_ms);
        self.fence_max = self.fence_max.max(fence);
        self.counters.lifecycle.adopted += 1;
        self.record_change(at);
        effects.push(Effect::ClaimAdopted { id: name.id, place: ClaimHandle { claim, worker: at, fence } });
    }

    /// A claim takes a worker that is free, offered or not.
    fn occupy_worker(&mut self, at: u32, claim: u32) {
        let worker = self.workers.get_mut(at);
        worker.claim = claim;
        let (line, bars) = (worker.usage_index, worker.unschedulable_bits);
        if bars == 0 {
            self.idle_queue.remove(self.workers.hot_mut(), at);
        } else {
            self.accounting.mark_schedulable(line);
            self.unschedulable.remove_unclaimed(bars);
            self.unschedulable_version += 1;
            self.note_drained(at);
        }
        self.accounting.mark_held(line);
        self.busy += 1;
    }
}
