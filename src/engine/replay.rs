//! Rebuilds a shard from its rows. Rows are fed in the order in which they were written; a later one replaces an
//! earlier one of the same id. Invariant `V1`: replaying a shard's rows gives the shard, except that its deadlines
//! start again in full.

use std::sync::Arc;

use super::NIL;
use super::accounting::WorkerUse;
use super::claims::timestamps::ClaimTimestamps;
use super::claims::{Claim, ClaimDisclosure};
use super::dirty_rows::RowChanges;
use super::event::ClaimHandle;
use super::invariants::InvariantViolation;
use super::shard::{Shard, saturating_millis};
use super::shard_config::ShardConfig;
use super::workers::liveness::lookup_flags;
use crate::limits;
use crate::model::GangRef;
use crate::model::request_error::RequestError;
use crate::model::unschedulable_bits;
use crate::model::{ClaimId, ClaimState, ClaimTimes, Fence, Millis, Seq, WorkerCapacity, WorkerId, WorkerRegistration};
use crate::persist::row::{self, ClaimRow, RowError, RowFrames, RowKind, ShardRow, WorkerRow};

/// Point at which a loaded shard resumes.
#[derive(Debug, Clone, Copy)]
pub struct ResumePoint {
    /// Sequence number of the loaded state.
    pub seq: Seq,
    /// Engine time from which deadlines are counted.
    pub now_ms: Millis,
    /// Unix time of the same moment, from which ends of life are counted.
    pub unix_ms: Millis,
    /// Highest fence that was issued before this owner took over.
    pub fence_floor: Fence,
    /// Highest fence that was issued before the previous owner took over.
    pub previous_fence_floor: Fence,
    /// True if this owner had the shard already and it panicked: nothing that was disclosed is lost.
    pub restarted: bool,
}

/// Reason for which the rows of a shard do not make one that may serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Row that cannot be read.
    #[error(transparent)]
    Row(#[from] RowError),
    /// Deletion of the row that no shard is without.
    #[error("the shard's own row was deleted")]
    HeaderDeleted,
    /// Invalid id of a worker.
    #[error(transparent)]
    WorkerId(#[from] RequestError),
    /// Worker whose GPU model is one too many for the shard.
    #[error("worker {0} exceeds the limit of {max} GPU models in a shard", max = limits::SHARD_MODELS_MAX)]
    GpuModels(WorkerId),
    /// Worker whose row has bits of reasons that are unknown, with all of them.
    #[error("W1: worker {0} is unschedulable for reasons that this build does not know: {1}")]
    UnschedulableBits(WorkerId, u32),
    /// Worker with more claims than possible, and both numbers.
    #[error("L1: worker {0} has {1} claims, at most {2} are possible")]
    Claims(WorkerId, usize, usize),
    /// Worker with a claim whose key or tenant is invalid.
    #[error("worker {0} has a claim with an invalid name: {1}")]
    ClaimName(WorkerId, RequestError),
    /// Row of the shard whose highest fence is beyond the limit.
    #[error("the row of the shard has an invalid fence: {0}")]
    HeaderFence(Fence),
    /// Worker with a claim whose fence is none.
    #[error("worker {0} has a claim with an invalid fence: {1}")]
    ClaimFence(WorkerId, Fence),
    /// Worker with a claim that requested another number of GPUs than it has in its set.
    #[error("L2: a claim on worker {0} requested {1} GPUs and holds the set {2:b}")]
    ClaimGpus(WorkerId, u32, u64),
    /// Index of a shard that no gang can have as its home.
    #[error("invalid home shard of a gang: {0}")]
    GangShard(u32),
    /// Version of a row above the sequence number of the shard.
    #[error("V1: a row has version {0}, the shard {1}")]
    RowVersion(Seq, Seq),
    /// Violated invariant of the shard that was read.
    #[error(transparent)]
    Invariant(#[from] InvariantViolation),
}

/// Builder of a shard from its rows.
#[derive(Debug)]
pub struct ShardReplay {
    shard: Shard,
    namespace: String,
    header: ShardRow,
    /// Count of unclean stops before which each worker was verified, by ordinal.
    verified_at_stop: Vec<u64>,
    /// First error; later rows are read all the same, so that their keys are known.
    first_error: Option<ReplayError>,
}

impl ShardReplay {
    /// Starts an empty replay for a shard of a pool in `namespace`.
    #[must_use]
    pub fn new(rules: impl Into<ShardConfig>, namespace: &str, now_ms: Millis) -> Self {
        Self {
            shard: Shard::new(rules, now_ms),
            namespace: namespace.into(),
            header: ShardRow::default(),
            verified_at_stop: Vec::new(),
            first_error: None,
        }
    }

    /// Replays rows. Errors are kept for [`Self::finish`].
    pub fn rows(&mut self, frames: &[u8]) {
        for frame in RowFrames::new(frames) {
            let replayed = frame.map_err(ReplayError::from).and_then(|frame| match frame.kind {
                RowKind::Worker => self.worker(frame.id, frame.body),
                RowKind::Gang => match frame.id.parse() {
                    Ok(id) => {
                        match frame.body {
                            Some(_) => self.shard.gangs.load_row(id),
                            None => self.shard.gangs.unload_row(id),
                        }
                        Ok(())
                    }
                    Err(_) => Err(RowError::Id("gang", frame.id.to_owned()).into()),
                },
                RowKind::Pool | RowKind::Quota => Err(RowError::OfCatalog(frame.id.to_owned()).into()),
                RowKind::Shard => match frame.body.map(row::decode_shard) {
                    Some(Ok(header)) if header.fence_max > limits::FENCE_MAX => {
                        Err(ReplayError::HeaderFence(header.fence_max))
                    }
                    Some(Ok(header)) => {
                        self.header = header;
                        Ok(())
                    }
                    Some(Err(error)) => Err(error.into()),
                    None => Err(ReplayError::HeaderDeleted),
                },
            });
            if let Err(error) = replayed {
                self.first_error.get_or_insert(error);
            }
        }
    }

    fn worker(&mut self, id: &str, body: Option<&[u8]>) -> Result<(), ReplayError> {
        let worker = WorkerId::new(id)?;
        let known = self.shard.workers.find(&worker);
        let Some(body) = body else {
            if let Some(at) = known {
                self.undo_row(at);
                self.shard.workers.remove(at);
                self.shard.liveness.forget(at);
            }
            return Ok(());
        };
        let row = row::decode_worker(id, body)?;
        let spec = row.to_spec(id)?;
        if self.shard.shared.as_mut().is_some_and(|shared| !shared.register_model(&spec.capacity)) {
            return Err(ReplayError::GpuModels(worker));
        }
        let usage_index = self.shard.accounting.add_worker(&spec.capacity);
        let registration = Arc::new(WorkerRegistration { spec });
        let at = match known {
            Some(at) => {
                self.undo_row(at);
                self.shard.workers.set_registration(at, registration);
                at
            }
            None => self.shard.workers.insert(registration, usage_index),
        };
        let hot = self.shard.workers.get_mut(at);
        hot.usage_index = usage_index;
        hot.restore_version(row.version);
        (hot.idle_seq, hot.affinity, hot.deleted) = (row.idle_seq, row.affinity, row.deleted);
        hot.lookup_flags = 0;
        hot.unschedulable_bits = u8::try_from(row.unschedulable_bits)
            .ok()
            .filter(|stored| stored & !unschedulable_bits::PERSISTED == 0)
            .ok_or(ReplayError::UnschedulableBits(worker, row.unschedulable_bits))?;
        if row.deleted {
            self.shard.accounting.remove_idle(usage_index);
        }
        self.verified_at_stop.resize(self.verified_at_stop.len().max(at as usize + 1), 0);
        self.verified_at_stop[at as usize] = row.verified_at_stop;
        self.shard.liveness.forget(at);
        if row.heartbeat_ttl_ms > 0 {
            self.shard.liveness.get_mut(at).ttl_ms = row.heartbeat_ttl_ms;
        }
        if let Some(promised) = &row.promised {
            self.shard.liveness.get_mut(at).promised_capacity = Some(Box::new(WorkerCapacity::from(promised)));
            self.shard.workers.get_mut(at).lookup_flags |= lookup_flags::HAS_CLAIM_NOTES;
        }
        self.claims(at, &row)
    }

    fn claims(&mut self, at: u32, row: &WorkerRow) -> Result<(), ReplayError> {
        let id = || self.shard.workers.registration(at).spec.id.clone();
        assert_eq!(self.shard.workers.get(at).claim, NIL, "V1: a replaced row keeps its claims");
        let limit = if self.shard.shared.is_some() { limits::WORKER_CLAIMS_MAX as usize } else { 1 };
        if row.claims.len() > limit || (row.deleted && !row.claims.is_empty()) {
            return Err(ReplayError::Claims(id(), row.claims.len(), limit));
        }
        // The first in the row is the head of the list, so it is linked last.
        row.claims.iter().rev().try_for_each(|claim| self.claim(at, claim))
    }

    fn claim(&mut self, at: u32, claim: &ClaimRow) -> Result<(), ReplayError> {
        let id = || self.shard.workers.registration(at).spec.id.clone();
        let key = ClaimId::new(&self.namespace, &claim.tenant, &claim.key)
            .map_err(|error| ReplayError::ClaimName(id(), error))?;
        if claim.fence == 0 || claim.fence > limits::FENCE_MAX {
            return Err(ReplayError::ClaimFence(id(), claim.fence));
        }
        let state = match (claim.active, claim.releasing) {
            (false, _) => ClaimState::Reserved,
            (true, false) => ClaimState::Active,
            (true, true) => ClaimState::Releasing,
        };
        let spec = claim.spec.as_ref().map(|spec| Arc::new(spec.to_spec()));
        let gpu_count = spec.as_ref().and_then(|spec| spec.resources.gpu.as_ref()).map_or(0, |gpu| gpu.count);
        let shared = self.shard.shared.is_some();
        if shared && claim.gpu_mask.count_ones() != gpu_count {
            return Err(ReplayError::ClaimGpus(id(), gpu_count, claim.gpu_mask));
        }
        let gang_shard = u16::try_from(claim.gang_shard).map_err(|_| ReplayError::GangShard(claim.gang_shard))?;
        let timestamps = match state {
            ClaimState::Reserved => ClaimTimestamps::reserved(claim.created_at_ms, saturating_millis(claim.reserve_ms)),
            _ => ClaimTimestamps::started(ClaimTimes::new(claim.created_at_ms, claim.activated_at_ms)),
        };
        let ordinal = self.shard.claims.insert(Claim {
            id: key,
            fence: claim.fence,
            timestamps,
            term_ms: saturating_millis(claim.term_ms),
            worker: at,
            state,
            reported: claim.reported,
            disclosure: if claim.active { ClaimDisclosure::HELD } else { ClaimDisclosure::KNOWN },
            spec,
        });
        if claim.evicted {
            self.shard.restore_evicted(ordinal);
        }
        if claim.gang > 0 {
            self.shard.gangs.add_member(ordinal, GangRef { id: claim.gang, pool: claim.gang_pool, shard: gang_shard });
        }
        // Counted with the first claim that is linked: a row whose claims are all damaged leaves an idle worker.
        let hot = self.shard.workers.get(at);
        if hot.claim == NIL {
            self.shard.accounting.occupy_idle(hot.usage_index);
        }
        if shared {
            self.shard.link_claim(ordinal, at, claim.gpu_mask);
        } else {
            self.shard.workers.get_mut(at).claim = ordinal;
        }
        Ok(())
    }

    /// Undoes an earlier row of the worker.
    fn undo_row(&mut self, at: u32) {
        let (claim, usage_index, deleted) = {
            let hot = self.shard.workers.get_mut(at);
            (std::mem::replace(&mut hot.claim, NIL), hot.usage_index, hot.deleted)
        };
        if claim != NIL {
            self.shard.accounting.vacate(usage_index, 0);
        }
        let mut next = claim;
        while next != NIL {
            let claim = next;
            next = self.shard.shared.as_mut().map_or(NIL, |shared| shared.unlink(claim, at));
            self.shard.gangs.remove_member(claim);
            self.shard.unindex_evictable(claim);
            self.shard.claims.remove(claim);
        }
        if !deleted {
            self.shard.accounting.remove_idle(usage_index);
        }
    }

    /// Restores the shard's own row, and decides whether the stop before this start may have lost claims.
    fn resume_header(&mut self, resume: ResumePoint) {
        let (shard, header) = (&mut self.shard, &self.header);
        shard.changes = RowChanges::starting_at(resume.seq);
        shard.header_taken = *header;
        let fence_max = shard.claims.iter_from(0).map(|(_, claim)| claim.fence).fold(header.fence_max, Fence::max);
        shard.header = ShardRow { fence_max, ..*header };
        // The record of a claim in this range may be lost; later ones are of this owner. Earlier ones are of an owner
        // before the last, and what the last one granted for their keys may be lost too.
        let from = (fence_max.max(resume.previous_fence_floor) + 1).min(resume.fence_floor + 1);
        shard.lost_tail = from..resume.fence_floor + 1;
        if header.memory_acks && !resume.restarted {
            shard.header.unclean_stops += 1;
            shard.changes.record();
        }
    }

    /// Restores the state of workers beside their claims. Every deadline starts again in full.
    fn resume_liveness(&mut self, resume: ResumePoint) {
        let shard = &mut self.shard;
        let workers: Vec<u32> = shard.workers.iter_from(0).filter(|&at| !shard.workers.get(at).deleted).collect();
        for at in workers {
            let mut reasons = shard.workers.get(at).unschedulable_bits;
            if self.verified_at_stop[at as usize] < shard.header.unclean_stops {
                reasons |= unschedulable_bits::UNVERIFIED;
                shard.quarantine_until_ms = resume.now_ms + self.header.reserve_ms;
            }
            if let Some(expires_at_ms) = shard.workers.registration(at).spec.expires_at_ms {
                let remaining_ms = expires_at_ms.saturating_sub(resume.unix_ms);
                if remaining_ms == 0 {
                    reasons |= unschedulable_bits::ENDED;
                } else {
                    shard.liveness.get_mut(at).ends_ms = Some(resume.now_ms + remaining_ms);
                    shard.index_expiry(at);
                }
                shard.workers.get_mut(at).lookup_flags |= lookup_flags::HAS_END;
            }
            shard.workers.get_mut(at).unschedulable_bits = reasons;
            if shard.liveness.get(at).ttl_ms > 0 && reasons & unschedulable_bits::LOST == 0 {
                let life = shard.liveness.get_mut(at);
                life.lost_at_ms = Some(resume.now_ms + life.ttl_ms);
            }
            shard.schedule_deletion(at, resume.now_ms);
            shard.schedule(at);
        }
    }

    /// Highest sequence number among the rows of workers so far: how far a shard has come of which the store cannot tell.
    #[must_use]
    pub fn last_version(&self) -> Seq {
        self.shard.workers.iter_from(0).map(|at| self.shard.workers.get(at).version()).max().unwrap_or(0)
    }

    /// Completes the replay: deadlines start again in full.
    ///
    /// # Errors
    /// The first error, and the shard as far as it could be read: it must not serve, but its keys are known.
    pub fn finish(mut self, resume: ResumePoint) -> Result<Shard, (ReplayError, Box<Shard>)> {
        let ResumePoint { seq: at, now_ms, .. } = resume;
        self.resume_header(resume);
        self.resume_liveness(resume);
        let shard = &mut self.shard;
        shard.idle_queue.resize_buckets(shard.workers.hot_mut());
        let mut idle: Vec<(Seq, u32)> = Vec::new();
        let mut tombstones: Vec<(Seq, u32)> = Vec::new();
        let mut present: Vec<u32> = Vec::new();
        for worker in shard.workers.iter_from(0) {
            let hot = shard.workers.get(worker);
            if hot.version() > at {
                self.first_error.get_or_insert(ReplayError::RowVersion(hot.version(), at));
            }
            if hot.deleted {
                tombstones.push((hot.version(), worker));
                continue;
            }
            present.push(worker);
            let usage = if hot.claim == NIL { WorkerUse::Idle } else { WorkerUse::Busy };
            shard.accounting.change_reasons(hot.usage_index, usage, 0, hot.unschedulable_bits);
            if hot.usage() == WorkerUse::Idle {
                idle.push((hot.idle_seq, worker));
            }
        }
        shard.drained = shard.workers.iter_from(0).filter(|&at| shard.is_drained(at)).collect();
        idle.sort_unstable();
        tombstones.sort_unstable();
        for (_, worker) in idle {
            shard.idle_queue.push(shard.workers.hot_mut(), worker);
        }
        if shard.shared.is_some() {
            present.into_iter().for_each(|worker| shard.recompute_free(worker));
        }
        shard.tombstones.extend(tombstones.into_iter().map(|(_, worker)| (now_ms + limits::TOMBSTONE_MS, worker)));
        let to_handle =
            |(at, claim): (u32, &Claim)| ClaimHandle { claim: at, worker: claim.worker, fence: claim.fence };
        let handles: Vec<ClaimHandle> = shard.claims.iter_from(0).map(to_handle).collect();
        for handle in handles {
            shard.index_evictable(handle.claim);
            if !shard.is_provisional(handle) {
                shard.start_state_timer(handle, now_ms);
            }
        }
        match self.first_error.or_else(|| self.shard.check().err().map(ReplayError::from)) {
            None => Ok(self.shard),
            Some(error) => Err((error, Box::new(self.shard))),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::model::PoolSpec;

    /// Rows arrive in the order in which they were written, so a damaged one may be followed by others of its worker.
    #[test]
    fn s06_rows_after_a_damaged_claim_of_their_worker_are_replayed() {
        let row = |claims| WorkerRow { claims, version: 1, ..WorkerRow::default() };
        let no_fence = ClaimRow { tenant: "t".into(), key: "k".into(), ..ClaimRow::default() };
        let no_shard = ClaimRow { fence: 5, gang: 9, gang_shard: 1 << 20, ..no_fence.clone() };
        for damaged in [no_fence, no_shard] {
            let mut rows = Vec::new();
            for claims in [vec![damaged.clone()], vec![], vec![damaged]] {
                row::put_frame(&mut rows, RowKind::Worker, "w", |out| row(claims).encode(out).unwrap());
            }
            row::put_deletion(&mut rows, RowKind::Worker, "w");
            let mut replay = ShardReplay::new(&PoolSpec::default(), "ns", 0);
            replay.rows(&rows);
            assert!(replay.first_error.is_some(), "a damaged row is reported");
            assert_eq!((replay.shard.accounting.workers(), replay.shard.accounting.busy()), (0, 0));
            assert_eq!(replay.shard.claims.len(), 0);
        }
    }
}
