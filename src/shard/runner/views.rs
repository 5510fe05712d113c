//! Read-only views of a shard: listings and figures.

use std::sync::Arc;

use super::ShardRunner;
use crate::engine::{ClaimGrant, ListedClaim, ListingSlice, UnschedulableSummary, WorkerSnapshot};
use crate::limits;
use crate::model::request_error::{ObjectKind, RequestError};
use crate::model::{ClaimId, ShardStatus, WorkerId};
use crate::shard::command::{PreviewQuery, ShardClaimFilter, SurveyQuery};
use crate::shard::event::ShardSink;
use crate::shard::reply::{ClaimAnswer, ClaimSlice, ClaimableCapacity, PreviewedPlacement, ShardReport, SurveySlice};

impl<S: ShardSink> ShardRunner<S> {
    pub(super) fn get_worker(&self, id: &WorkerId) -> Result<Box<WorkerSnapshot>, RequestError> {
        self.shard.find_worker(id).map(Box::new).ok_or(RequestError::NotFound(ObjectKind::Worker))
    }

    pub(super) fn list_claims(&self, from: u32, limit: usize, filter: &ShardClaimFilter) -> ClaimSlice {
        let passes = |claim: &ListedClaim<'_>| filter.matches(claim);
        let ListingSlice { rows, next } = match &filter.worker {
            Some(worker) => self.shard.worker_claims_from(worker, from, limit, passes),
            None => self.shard.claims_from(from, limit, passes),
        };
        let shard = self.handle.shard;
        let answer = |(_, id, grant): (u32, ClaimId, ClaimGrant)| (id, ClaimAnswer::existing(grant, shard));
        ListingSlice { rows: rows.into_iter().map(answer).collect(), next }
    }

    /// Resources that can be claimed, if the pool is shared.
    fn claimable(&self) -> Option<ClaimableCapacity> {
        let amounts = self.shard.free_summary()?.into_iter().map(|(sum, _)| sum.amounts.saturate()).sum();
        let gpus = self.shard.free_gpus().map(|(model, idle, milli)| (Arc::clone(model), idle, milli)).collect();
        Some(ClaimableCapacity { amounts, gpus })
    }

    pub(super) fn preview(&mut self, query: &PreviewQuery) -> Result<PreviewedPlacement, RequestError> {
        let PreviewQuery { constraints, affinity, duration_ms, ack, target } = query;
        if let Some(reason) = self.overload_reason(*ack) {
            return Err(RequestError::Unavailable(reason));
        }
        let constraints = constraints.as_deref();
        Ok(match target {
            Some(target) => self.shard.preview_on_target(*target, constraints, self.now_ms + duration_ms),
            None => self.shard.preview_placement(constraints, *affinity, *duration_ms, self.now_ms),
        })
    }

    pub(super) fn survey(&self, query: &SurveyQuery) -> SurveySlice {
        let SurveyQuery { constraints, duration_ms, from_ordinal } = query;
        let (survey, next) =
            self.shard.survey(constraints.as_deref(), *duration_ms, self.now_ms, *from_ordinal, limits::SLICE_ENTRIES);
        SurveySlice { survey, next }
    }

    pub(super) fn report(&self) -> ShardReport {
        let outbox = &self.handle.outbox;
        let UnschedulableSummary { by_reason, by_first_reason, .. } = self.shard.unschedulable();
        ShardReport {
            status: ShardStatus {
                shard: self.handle.shard.shard,
                state: self.handle.state().as_str().into(),
                reason: self.handle.reason(),
                workers: self.shard.workers() as u64,
                idle: self.shard.idle() as u64,
                busy: self.shard.busy() as u64,
                claims: self.shard.held() as u64,
                cordoned: by_reason.cordoned,
                draining: by_reason.draining,
                lost: by_reason.lost,
                suspect: by_reason.suspect,
                ended: by_reason.ended,
                stopping: by_reason.stopping,
                workers_reserved: by_reason.reserved,
                unschedulable: by_first_reason,
                reserved: self.shard.reserved() as u64,
                releasing: self.shard.releasing() as u64,
                seq: self.shard.seq(),
                applied_seq: outbox.applied_seq(),
                lag_ms: outbox.lag_ms(),
                queue_depth: self.handle.queue_depth() as u64,
                answers_waiting: (self.awaiting_store.len() + self.awaiting_other_shards.len()) as u64,
                restarts: self.handle.restarts(),
            },
            accounting: self.shard.capacity_usage().cloned().collect(),
            claimable: self.claimable(),
            accounting_mismatch: self.audit.mismatch(&self.shard),
        }
    }
}
