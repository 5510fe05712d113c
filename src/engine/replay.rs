//! How rows become a shard again. Rows are fed in the order in which they were written; a later one replaces an
//! earlier one of the same id. Invariant `V1`: replaying a shard's rows gives the shard, up to its deadlines, which
//! start anew in full.

use std::sync::Arc;

use super::NIL;
use super::claims::timestamps::ClaimTimestamps;
use super::claims::{Claim, DisclosureFlags};
use super::event::ClaimHandle;
use super::shard::{Shard, ShardHeader, saturating_millis};
use super::shard_config::ShardConfig;
use super::workers::conditions::notes;
use crate::limits;
use crate::model::GangRef;
use crate::model::unschedulable_bits;
use crate::model::{ClaimId, ClaimState, ClaimTimes, Fence, Millis, Seq, WorkerCapacity, WorkerId, WorkerRegistration};
use crate::persist::row::{self, ClaimRow, RowFrames, RowKind, ShardRow, WorkerRow};

/// Where a shard that was loaded goes on.
#[derive(Debug, Clone, Copy)]
pub struct ResumePoint {
    /// Sequence number of its state.
    pub seq: Seq,
    /// Engine time: its deadlines are counted from here.
    pub now_ms: Millis,
    /// The same moment in unix time: ends of life are counted from here.
    pub unix_ms: Millis,
    /// No fence above this was given out before this owner took over.
    pub fence_floor: Fence,
    /// The owner before this one gave out none up to this.
    pub previous_fence_floor: Fence,
    /// It was this owner's already and panicked: nothing that anybody was told of is lost.
    pub restarted: bool,
}

/// A shard in the making.
#[derive(Debug)]
pub struct ShardReplay {
    shard: Shard,
    namespace: String,
    header: ShardRow,
    /// Per ordinal what its row says that is not in the shard yet.
    vouched: Vec<u64>,
    /// First thing that was wrong; the rest is read all the same, so that its keys are known.
    first_error: Option<String>,
}

impl ShardReplay {
    /// Of a shard of a pool in `namespace`.
    #[must_use]
    pub fn new(rules: impl Into<ShardConfig>, namespace: &str, now_ms: Millis) -> Self {
        Self {
            shard: Shard::new(rules, now_ms),
            namespace: namespace.into(),
            header: ShardRow::default(),
            vouched: Vec::new(),
            first_error: None,
        }
    }

    /// Takes rows in. What cannot be read is remembered for [`Self::finish`].
    pub fn rows(&mut self, frames: &[u8]) {
        for frame in RowFrames::new(frames) {
            let taken = frame.map_err(|e| e.to_string()).and_then(|frame| match frame.kind {
                RowKind::Worker => self.worker(frame.id, frame.body),
                RowKind::Gang => match frame.id.parse() {
                    Ok(id) => {
                        self.shard.gangs.load_row(id, frame.body.is_some());
                        Ok(())
                    }
                    Err(_) => Err(format!("a gang's row has the id {:?}", frame.id)),
                },
                RowKind::Pool | RowKind::Quota => Err("a row of the catalogue among a shard's".into()),
                RowKind::Shard => match frame.body.map(row::decode_shard) {
                    Some(Ok(head)) => {
                        self.header = head;
                        Ok(())
                    }
                    Some(Err(wrong)) => Err(wrong.to_string()),
                    None => Err("the shard's own row is deleted".into()),
                },
            });
            if let Err(wrong) = taken {
                self.first_error.get_or_insert(wrong);
            }
        }
    }

    fn worker(&mut self, id: &str, body: Option<&[u8]>) -> Result<(), String> {
        let worker = WorkerId::new(id).map_err(|e| e.to_string())?;
        let known = self.shard.workers.find(&worker);
        let Some(body) = body else {
            if let Some(at) = known {
                self.undo_row(at);
                self.shard.workers.remove(at);
                self.shard.liveness.forget(at);
            }
            return Ok(());
        };
        let row = row::decode_worker(id, body).map_err(|e| e.to_string())?;
        let spec = row.to_spec(id).map_err(|e| e.to_string())?;
        if self.shard.shared.as_mut().is_some_and(|shares| !shares.register_model(&spec.capacity)) {
            return Err(format!("worker {id} has one of more than {} GPU models", limits::SHARD_MODELS_MAX));
        }
        let line = self.shard.accounting.add_worker(&spec.capacity);
        let card = Arc::new(WorkerRegistration { spec });
        let at = match known {
            Some(at) => {
                self.undo_row(at);
                self.shard.workers.set_registration(at, card);
                at
            }
            None => self.shard.workers.insert(card, line),
        };
        let hot = self.shard.workers.get_mut(at);
        hot.usage_index = line;
        (hot.version, hot.idle_seq, hot.affinity, hot.deleted) = (row.version, row.idle_seq, row.affinity, row.deleted);
        hot.lookup_flags = 0;
        hot.unschedulable_bits = u8::try_from(row.unschedulable_bits)
            .ok()
            .filter(|stored| stored & !unschedulable_bits::PERSISTED == 0)
            .ok_or_else(|| {
                format!(
                    "W1: worker {id} is barred for reasons that this build does not know: {}",
                    row.unschedulable_bits
                )
            })?;
        if row.deleted {
            self.shard.accounting.remove_worker(line);
        }
        self.vouched.resize(self.vouched.len().max(at as usize + 1), 0);
        self.vouched[at as usize] = row.vouched;
        self.shard.liveness.forget(at);
        if row.heartbeat_ttl_ms > 0 {
            self.shard.liveness.get_mut(at).ttl_ms = row.heartbeat_ttl_ms;
        }
        if let Some(promised) = &row.promised {
            self.shard.liveness.get_mut(at).promised_capacity = Some(Box::new(WorkerCapacity::from(promised)));
            self.shard.workers.get_mut(at).lookup_flags |= notes::CLAIM_NOTES;
        }
        self.claims(at, &row)
    }

    fn claims(&mut self, at: u32, row: &WorkerRow) -> Result<(), String> {
        let id = || self.shard.workers.registration(at).spec.id.clone();
        let most = if self.shard.shared.is_some() { limits::WORKER_CLAIMS_MAX as usize } else { 1 };
        if row.claims.len() > most || (row.deleted && !row.claims.is_empty()) {
            return Err(format!("L1: worker {} holds {} claims", id(), row.claims.len()));
        }
        if !row.claims.is_empty() {
            self.shard.accounting.mark_held(self.shard.workers.get(at).usage_index);
            self.shard.busy += 1;
        }
        // The first in the row is the head of the list: it comes last.
        row.claims.iter().rev().try_for_each(|claim| self.claim(at, claim))
    }

    fn claim(&mut self, at: u32, claim: &ClaimRow) -> Result<(), String> {
        let id = || self.shard.workers.registration(at).spec.id.clone();
        let key = ClaimId::new(&self.namespace, &claim.tenant, &claim.key)
            .map_err(|e| format!("worker {} holds a claim whose name is wrong: {e}", id()))?;
        if claim.fence == 0 || claim.fence > limits::FENCE_MAX {
            return Err(format!("worker {} holds a claim with fence {}", id(), claim.fence));
        }
        let state = match (claim.active, claim.releasing) {
            (false, _) => ClaimState::Reserved,
            (true, false) => ClaimState::Active,
            (true, true) => ClaimState::Releasing,
        };
        let spec = claim.spec.as_ref().map(|spec| Arc::new(spec.to_spec()));
        let asked = spec.as_ref().and_then(|spec| spec.resources.gpu.as_ref()).map_or(0, |gpu| gpu.count);
        let shared = self.shard.shared.is_some();
        if shared && claim.gpu_mask.count_ones() != asked {
            return Err(format!(
                "L2: a claim of worker {} asked for {asked} cards and holds {:b}",
                id(),
                claim.gpu_mask
            ));
        }
        let stamps = match state {
            ClaimState::Reserved => ClaimTimestamps::reserved(claim.created_at_ms, saturating_millis(claim.reserve_ms)),
            _ => ClaimTimestamps::started(ClaimTimes::new(claim.created_at_ms, claim.activated_at_ms)),
        };
        let slot = self.shard.claims.insert(Claim {
            id: key,
            fence: claim.fence,
            timestamps: stamps,
            term_ms: saturating_millis(claim.term_ms),
            worker: at,
            state,
            confirmed: claim.active,
            reported: claim.reported,
            disclosure: DisclosureFlags::ALL,
            spec,
        });
        if claim.evicted {
            self.shard.restore_evicted(slot);
        }
        if claim.gang > 0 {
            let shard =
                u16::try_from(claim.gang_shard).map_err(|_| format!("a gang's home is {}", claim.gang_shard))?;
            self.shard.gangs.add_member(slot, GangRef { id: claim.gang, pool: claim.gang_pool, shard });
        }
        if shared {
            self.shard.link_claim(slot, at, claim.gpu_mask);
        } else {
            self.shard.workers.get_mut(at).claim = slot;
        }
        Ok(())
    }

    /// Takes back what an earlier row of the worker said.
    fn undo_row(&mut self, at: u32) {
        let (claim, line, deleted) = {
            let hot = self.shard.workers.get_mut(at);
            (std::mem::replace(&mut hot.claim, NIL), hot.usage_index, hot.deleted)
        };
        if claim != NIL {
            self.shard.accounting.mark_free(line);
            self.shard.busy -= 1;
        }
        let mut next = claim;
        while next != NIL {
            let claim = next;
            next = self.shard.shared.as_mut().map_or(NIL, |shares| shares.unlink(claim, at));
            self.shard.gangs.remove_member(claim);
            self.shard.unindex_evictable(claim);
            self.shard.claims.remove(claim);
        }
        if !deleted {
            self.shard.accounting.remove_worker(line);
        }
    }

    /// What the shard remembers of itself; and whether the stop before this start may have lost claims.
    fn resume_header(&mut self, resume: ResumePoint) {
        let (shard, head) = (&mut self.shard, &self.header);
        shard.seq = resume.seq;
        shard.header_taken = *head;
        shard.fence_max = shard.claims.iter_from(0).map(|(_, claim)| claim.fence).fold(head.fence_max, Fence::max);
        // A claim in here may be one whose record was lost; later ones are of this owner. Earlier ones are of an owner
        // before the last, and what the last one granted of their keys may be lost too.
        let from = (shard.fence_max.max(resume.previous_fence_floor) + 1).min(resume.fence_floor + 1);
        shard.lost_tail = from..resume.fence_floor + 1;
        shard.header = ShardHeader {
            memory_acks: head.memory_acks,
            reserve_ms: head.reserve_ms,
            unclean_stops: head.unclean_stops,
        };
        if head.memory_acks && !resume.restarted {
            shard.header.unclean_stops += 1;
            shard.seq += 1;
        }
    }

    /// What rows say of workers beside their claims. Every deadline starts anew in full.
    fn resume_liveness(&mut self, resume: ResumePoint) {
        let shard = &mut self.shard;
        let workers: Vec<u32> = shard.workers.iter_from(0).filter(|&at| !shard.workers.get(at).deleted).collect();
        for at in workers {
            let mut bars = shard.workers.get(at).unschedulable_bits;
            if self.vouched[at as usize] < shard.header.unclean_stops {
                bars |= unschedulable_bits::UNVERIFIED;
                shard.quarantine_until_ms = resume.now_ms + self.header.reserve_ms;
            }
            if let Some(expires_at_ms) = shard.workers.registration(at).spec.expires_at_ms {
                let left_ms = expires_at_ms.saturating_sub(resume.unix_ms);
                if left_ms == 0 {
                    bars |= unschedulable_bits::ENDED;
                } else {
                    shard.liveness.get_mut(at).ends_ms = Some(resume.now_ms + left_ms);
                    shard.index_expiry(at);
                }
                shard.workers.get_mut(at).lookup_flags |= notes::ENDS;
            }
            shard.workers.get_mut(at).unschedulable_bits = bars;
            if shard.liveness.get(at).ttl_ms > 0 && bars & unschedulable_bits::LOST == 0 {
                let life = shard.liveness.get_mut(at);
                life.lost_at_ms = Some(resume.now_ms + life.ttl_ms);
            }
            shard.schedule_deletion(at, resume.now_ms);
            shard.schedule(at);
        }
    }

    /// The shard as it goes on: its deadlines start anew in full.
    ///
    /// # Errors
    /// What was wrong, with the shard as far as it could be read: it must not serve, but its keys are known.
    pub fn finish(mut self, resume: ResumePoint) -> Result<Shard, (String, Box<Shard>)> {
        let ResumePoint { seq: at, now_ms, .. } = resume;
        self.resume_header(resume);
        self.resume_liveness(resume);
        let shard = &mut self.shard;
        shard.idle_queue.resize_buckets(shard.workers.hot_mut());
        let mut free: Vec<(Seq, u32)> = Vec::new();
        let mut dead: Vec<(Seq, u32)> = Vec::new();
        let mut rooms: Vec<u32> = Vec::new();
        for worker in shard.workers.iter_from(0) {
            let hot = shard.workers.get(worker);
            if hot.version > at {
                self.first_error.get_or_insert(format!("V1: a row is of {}, the shard of {at}", hot.version));
            }
            if hot.deleted {
                dead.push((hot.version, worker));
                continue;
            }
            shard.worker_count += 1;
            rooms.push(worker);
            shard.unschedulable.add(hot.unschedulable_bits);
            shard.unschedulable_version += 1;
            if hot.claim == NIL {
                if hot.unschedulable_bits == 0 {
                    free.push((hot.idle_seq, worker));
                } else {
                    shard.accounting.mark_unschedulable(hot.usage_index);
                    shard.unschedulable.add_unclaimed(hot.unschedulable_bits);
                }
            }
        }
        shard.drained = shard.workers.iter_from(0).filter(|&at| shard.is_drained(at)).collect();
        free.sort_unstable();
        dead.sort_unstable();
        for (_, worker) in free {
            shard.idle_queue.push(shard.workers.hot_mut(), worker);
        }
        if shard.shared.is_some() {
            rooms.into_iter().for_each(|worker| shard.recompute_free(worker));
        }
        shard.tombstones.extend(dead.into_iter().map(|(_, worker)| (now_ms + limits::TOMBSTONE_MS, worker)));
        let place = |(at, claim): (u32, &Claim)| ClaimHandle { claim: at, worker: claim.worker, fence: claim.fence };
        let held: Vec<ClaimHandle> = shard.claims.iter_from(0).map(place).collect();
        for place in held {
            shard.index_evictable(place.claim);
            if !shard.is_provisional(place) {
                shard.start_state_timer(place, now_ms);
            }
        }
        match self.first_error.or_else(|| self.shard.check().err()) {
            None => Ok(self.shard),
            Some(wrong) => Err((wrong, Box::new(self.shard))),
        }
    }
}
