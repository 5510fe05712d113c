//! Heartbeats: what a worker reports, and its reconciliation with the claims on record.
//!
//! A *report* (a heartbeat with `claims`, or a registration with them) is compared with the worker's live claims:
//!
//! - a live claim that is reported becomes active;
//! - a live claim that is not reported ends after a grace period, so that one reordered report ends nothing: a short
//!   one if it was reported before, the pool's `unnamed_ms` if it never was and the worker may not have received it
//!   yet;
//! - a reported claim that is not live is *readopted* if it can only be a claim whose record was lost: its fence lies
//!   in the lost tail (above all that the shard had recorded, from the previous owner's first fence to below this
//!   owner's first), nothing was granted to the worker since, and the key is and was vacant
//!   (`crate::admission::key::adoption`). The worker must stop any other; until a later report omits them, it is
//!   unschedulable.
//!
//! A report also ends suspicion. After a stop that may have lost claims it does so only after the quarantine: until
//! then, the caller to which a lost claim was disclosed may still start it. The report that ends the quarantine ends
//! the claims that it omits.
//!
//! A readopted claim has the pool's default time to live from its adoption on; its creation time is unknown.
//!
//! In a shared pool no claim is readopted: a worker reports keys and fences, not the resources that they held.
//!
//! Except after a quarantine, no report frees capacity by itself.

use smallvec::SmallVec;

use super::liveness::{TimedOutCleanup, lookup_flags};
use crate::engine::NIL;
use crate::engine::claims::timestamps::ClaimTimestamps;
use crate::engine::claims::{Claim, ClaimDisclosure};
use crate::engine::effect::{ClaimGrant, Effect, EndReason, EngineReply};
use crate::engine::event::{ClaimHandle, HeartbeatReport, ReportedClaim};
use crate::engine::shard::{Shard, saturating_millis};
use crate::model::unschedulable_bits;
use crate::model::{ClaimId, ClaimState, ClaimTimes, Fence, Millis, WorkerId};

impl Shard {
    pub(in crate::engine) fn heartbeat(
        &mut self,
        id: &WorkerId,
        heartbeat: HeartbeatReport,
        now_ms: Millis,
        effects: &mut Vec<Effect>,
    ) -> EngineReply {
        let Some(at) = self.workers.find(id).filter(|&at| !self.workers.get(at).deleted) else {
            return EngineReply::UnknownWorker;
        };
        let current = self.workers.registration(at).spec.incarnation;
        if heartbeat.incarnation < current {
            return EngineReply::StaleIncarnation { known: current, deleted: false };
        }
        if heartbeat.incarnation > current {
            return EngineReply::UnknownIncarnation { known: current };
        }
        self.lifecycle_mut().heartbeats += 1;
        let last = self.liveness.get(at).heartbeat_seq;
        let superseded_by = last.filter(|&last| heartbeat.seq.is_some_and(|seq| seq < last));
        let mut stop = Vec::new();
        if superseded_by.is_some() {
            self.lifecycle_mut().late_heartbeats += 1;
        } else {
            self.liveness.get_mut(at).heartbeat_seq = heartbeat.seq.or(last);
            self.refresh_liveness(at, heartbeat.ttl_ms, now_ms);
            if let Some(reports) = heartbeat.claims {
                stop = self.reconcile_claims(at, reports, heartbeat.ttl_ms, now_ms, effects);
            }
        }
        EngineReply::HeartbeatHandled { claims: self.disclose_held(at), stop, superseded_by }
    }

    /// Discloses the worker's claims to it. Grants that may still be rolled back are withheld.
    pub(in crate::engine) fn disclose_held(&mut self, at: u32) -> Vec<(ClaimId, ClaimGrant)> {
        let mut claims = self.worker_snapshot(at).claims;
        claims.retain(|(_, grant)| self.is_reply_sent(grant.handle));
        for (_, grant) in &claims {
            if let Some(claim) = self.claims.get_mut(grant.handle) {
                claim.disclosure.set_known();
            }
        }
        claims
    }

    /// Reconciles the worker's claims with its report. Returns the claims that it has to stop.
    pub(in crate::engine) fn reconcile_claims(
        &mut self,
        at: u32,
        reports: Vec<ReportedClaim>,
        ttl_ms: Millis,
        now_ms: Millis,
        effects: &mut Vec<Effect>,
    ) -> Vec<ReportedClaim> {
        let mut live: SmallVec<[(ClaimHandle, bool); 1]> =
            self.handles_on(at).into_iter().map(|handle| (handle, false)).collect();
        // Sorted, so that a long report is matched by binary search.
        live.sort_unstable_by_key(|(handle, _)| handle.fence);
        debug_assert!(
            live.windows(2).all(|pair| pair[0].0.fence < pair[1].0.fence),
            "L3: two claims of a worker have one fence"
        );
        let (mut reports_live, mut pending) = (false, false);
        let mut stop: Vec<ReportedClaim> = Vec::new();
        for report in reports {
            let found = live.binary_search_by_key(&report.fence, |(handle, _)| handle.fence).ok();
            let found = found.filter(|&i| self.claims.get(live[i].0).is_some_and(|claim| claim.id == report.id));
            if let Some(i) = found {
                (live[i].1, reports_live) = (true, true);
            } else if report.predecessor_pending {
                pending = true;
            } else {
                stop.push(report);
            }
        }
        let unverified = self.workers.get(at).unschedulable_bits & unschedulable_bits::UNVERIFIED != 0;
        let settled = !pending && self.quarantine_left(at, now_ms).is_none();
        for (handle, is_reported) in live {
            if is_reported {
                self.mark_reported(handle, now_ms);
            } else if unverified && settled {
                self.end_claim(handle, EndReason::NotReported, effects);
                self.lifecycle_mut().not_reported += 1;
            } else {
                self.mark_unreported(handle, ttl_ms, now_ms);
            }
        }
        if !reports_live && let Some(adopted) = self.newest_adoptable(at, &stop) {
            let report = stop.swap_remove(adopted);
            self.adopt(at, report, now_ms, effects);
        }
        let mut clear = 0;
        if settled {
            clear |= unschedulable_bits::UNTRUSTED;
            self.liveness.get_mut(at).timed_out_cleanup = TimedOutCleanup::None;
        }
        let set = if stop.is_empty() { 0 } else { unschedulable_bits::STOPPING };
        self.lifecycle_mut().revocations += stop.len() as u64;
        self.update_unschedulable(at, set, clear | (unschedulable_bits::STOPPING & !set));
        if self.workers.get(at).lookup_flags & lookup_flags::HAS_CLAIM_NOTES != 0 {
            self.schedule(at);
        }
        stop
    }

    /// Handles a live claim that the worker reports.
    fn mark_reported(&mut self, handle: ClaimHandle, now_ms: Millis) {
        if self.workers.get(handle.worker).lookup_flags & lookup_flags::HAS_CLAIM_NOTES != 0 {
            self.liveness.get_mut(handle.worker).unreported.remove(&handle.fence);
        }
        let Some(claim) = self.claims.get_mut(handle) else { return };
        claim.disclosure.set_confirmed();
        claim.disclosure.set_reply_sent();
        let first = !std::mem::replace(&mut claim.reported, true);
        if !self.activate(handle, now_ms) && first {
            self.record_change(handle.worker);
        }
    }

    /// Handles a live claim that the worker does not report.
    fn mark_unreported(&mut self, handle: ClaimHandle, ttl_ms: Millis, now_ms: Millis) {
        let Some(claim) = self.claims.get(handle) else { return };
        // A claim in clean-up does not run any more, a reserved one has its own deadline, and nobody can run an
        // undisclosed one: an item of an unanswered batch, a member of an uncommitted gang.
        if claim.state != ClaimState::Active || !claim.disclosure.is_reply_sent() || self.is_provisional(handle) {
            return;
        }
        // Half of the silence limit is long enough for a later heartbeat to correct it.
        let grace_ms = if claim.reported { ttl_ms / 2 } else { self.config.unnamed_ms };
        let due = now_ms + grace_ms;
        let unreported = &mut self.liveness.get_mut(handle.worker).unreported;
        // The first report that omits it counts, or a grace period that the pool shortened since.
        unreported.entry(handle.fence).and_modify(|(_, at)| *at = due.min(*at)).or_insert((handle, due));
        self.workers.get_mut(handle.worker).lookup_flags |= lookup_flags::HAS_CLAIM_NOTES;
    }

    /// Restarts the grace period of a claim that its worker never reported, after the holder confirmed or renewed it.
    pub(in crate::engine) fn reset_report_grace(&mut self, handle: ClaimHandle) {
        let has_notes = self.workers.get(handle.worker).lookup_flags & lookup_flags::HAS_CLAIM_NOTES != 0;
        let never_reported = || self.claims.get(handle).is_some_and(|claim| !claim.reported);
        if has_notes
            && never_reported()
            && self.liveness.get_mut(handle.worker).unreported.remove(&handle.fence).is_some()
        {
            self.schedule(handle.worker);
        }
    }

    /// Whether the worker was not verified since a stop that may have lost claims.
    #[must_use]
    pub fn is_unverified(&self, id: &WorkerId) -> bool {
        self.workers
            .find(id)
            .is_some_and(|at| self.workers.get(at).unschedulable_bits & unschedulable_bits::UNVERIFIED != 0)
    }

    /// Number of unverified workers, which may report lost claims.
    #[must_use]
    pub const fn unverified(&self) -> usize {
        if self.shared.is_some() { 0 } else { self.accounting.unschedulable().unverified as usize }
    }

    /// Time for which a claim lost by the last stop may still be started, if that stop may have lost claims that can
    /// be readopted.
    #[must_use]
    pub fn may_have_lost(&self) -> Option<Millis> {
        (self.shared.is_none() && self.header.memory_acks).then_some(self.header.reserve_ms)
    }

    /// Whether a claim that the worker reports with this fence may be one whose record was lost. Never in a shared
    /// pool: the resources that it held are unknown.
    #[must_use]
    pub fn may_adopt(&self, id: &WorkerId, fence: Fence) -> bool {
        self.shared.is_none()
            && self.lost_tail.contains(&fence)
            && self.workers.find(id).is_none_or(|at| self.can_readopt(at, fence))
    }

    fn can_readopt(&self, at: u32, fence: Fence) -> bool {
        let worker = self.workers.get(at);
        // A later claim of the worker proves an earlier one over: it was released in the lost tail.
        let replaces_live = || {
            let live = self.claims.by_ordinal(worker.claim);
            worker.unschedulable_bits & unschedulable_bits::UNVERIFIED != 0
                && live.is_none_or(|live| live.fence < fence)
        };
        !worker.deleted
            && worker.lookup_flags & lookup_flags::GRANTED == 0
            && self.liveness.get(at).ended_fence_max < fence
            && (worker.claim == NIL || replaces_live())
    }

    /// Index of the report to readopt: the newest that is eligible.
    fn newest_adoptable(&self, at: u32, reports: &[ReportedClaim]) -> Option<usize> {
        if self.lost_tail.is_empty() || self.shared.is_some() {
            return None;
        }
        let is_eligible = |report: &ReportedClaim| {
            report.key_vacant && self.lost_tail.contains(&report.fence) && self.can_readopt(at, report.fence)
        };
        let newest =
            reports.iter().enumerate().filter(|(_, report)| is_eligible(report)).max_by_key(|(_, report)| report.fence);
        newest.map(|(index, _)| index)
    }

    fn adopt(&mut self, at: u32, report: ReportedClaim, now_ms: Millis, effects: &mut Vec<Effect>) {
        assert!(self.shared.is_none(), "L1: a claim is readopted without its resources");
        assert!(self.lost_tail.contains(&report.fence), "L3: a claim with a record is readopted");
        for handle in self.handles_on(at) {
            self.end_claim(handle, EndReason::NotReported, effects);
            self.lifecycle_mut().not_reported += 1;
        }
        let fence = report.fence;
        let claim = self.claims.insert(Claim {
            id: report.id.clone(),
            fence,
            timestamps: ClaimTimestamps::started(ClaimTimes::default()),
            term_ms: saturating_millis(self.config.ttl.default_ms.unwrap_or(0)),
            worker: at,
            state: ClaimState::Active,
            disclosure: ClaimDisclosure::HELD,
            reported: true,
            spec: None,
        });
        self.occupy_worker(at, claim);
        self.start_state_timer(ClaimHandle { claim, worker: at, fence }, now_ms);
        self.header.fence_max = self.header.fence_max.max(fence);
        self.lifecycle_mut().adopted += 1;
        self.record_change(at);
        effects.push(Effect::ClaimAdopted { id: report.id, handle: ClaimHandle { claim, worker: at, fence } });
    }

    /// Assigns an unclaimed worker to a claim, schedulable or not.
    fn occupy_worker(&mut self, at: u32, claim: u32) {
        let worker = self.workers.get_mut(at);
        assert!(worker.claim == NIL && !worker.deleted, "L2: a claim is readopted on a worker that is not free for it");
        worker.claim = claim;
        let (usage_index, reasons) = (worker.usage_index, worker.unschedulable_bits);
        if reasons == 0 {
            self.idle_queue.remove(self.workers.hot_mut(), at);
            self.accounting.occupy_idle(usage_index);
        } else {
            self.accounting.occupy_unschedulable(usage_index, reasons);
            self.note_drained(at);
        }
    }
}
