//! Events of a run for the pool's watchers. Nothing is allocated while there are none.

use std::sync::Arc;

use super::ShardRunner;
use crate::engine::{ClaimGrant, EndReason};
use crate::events::{EventClaim, PoolEvent, PoolEventKind, PoolEventReason};
use crate::model::{ClaimId, ClaimTimes, Fence, WorkerCommand, WorkerId, WorkerRegistration};
use crate::shard::event::ShardSink;

impl<S: ShardSink> ShardRunner<S> {
    /// Checks whether events are recorded, at the beginning of a run and again after the mailbox was drained: a client that
    /// started to watch before its request sees the change before the reply.
    pub(super) fn refresh_watched(&mut self) {
        self.watched = self.pool.event_log.is_recording();
    }

    pub(super) fn publish_events(&mut self) {
        if !self.pending_events.is_empty() {
            self.pool.event_log.append(&mut self.pending_events);
        }
    }

    #[cold]
    fn record_event(
        &mut self,
        kind: PoolEventKind,
        reason: Option<PoolEventReason>,
        worker: Arc<WorkerRegistration>,
        claim: Option<EventClaim>,
    ) {
        let at_ms = self.services.clock.unix_of(self.now_ms);
        let shard = self.handle.shard.shard;
        self.pending_events.push(PoolEvent { kind, reason, at_ms, shard, worker, claim });
    }

    pub(super) fn record_claimed(&mut self, id: &ClaimId, grant: &ClaimGrant, reason: Option<PoolEventReason>) {
        if self.watched {
            let claim = Some(EventClaim { id: id.clone(), fence: grant.handle.fence, times: grant.times() });
            self.record_event(PoolEventKind::Claimed, reason, Arc::clone(&grant.worker), claim);
        }
    }

    #[inline]
    pub(super) fn record_ended(&mut self, id: &ClaimId, fence: Fence, times: ClaimTimes, end: EndReason, worker: u32) {
        if self.watched
            && let Some(worker) = self.shard.registration(worker)
        {
            let (worker, (kind, reason)) = (Arc::clone(worker), event_of_end(end));
            self.record_event(kind, reason, worker, Some(EventClaim { id: id.clone(), fence, times }));
        }
    }

    pub(super) fn record_lost(&mut self, worker: u32) {
        if self.watched
            && let Some(worker) = self.shard.registration(worker)
        {
            let worker = Arc::clone(worker);
            self.record_event(PoolEventKind::Lost, None, worker, None);
        }
    }

    pub(super) fn record_deleted(&mut self, worker: Arc<WorkerRegistration>) {
        let (pool, spec) = (&self.pool.name, &worker.spec);
        tracing::info!(%pool, worker = %spec.id, spec.incarnation, "deleted: lost for as long as the pool keeps it");
        if self.watched {
            self.record_event(PoolEventKind::Deleted, Some(PoolEventReason::Lost), worker, None);
        }
    }

    /// Executes a change of a worker, and records an event if it changed anything.
    pub(super) fn record_worker_change(
        &mut self,
        id: &WorkerId,
        kind: Option<PoolEventKind>,
        change: impl FnOnce(&mut Self),
    ) {
        let Some(kind) = kind.filter(|_| self.watched) else { return change(self) };
        let seq = self.shard.seq();
        let before = self.shard.registration_of(id).cloned();
        change(self);
        if self.shard.seq() != seq
            && let Some(worker) = self.shard.registration_of(id).cloned().or(before)
        {
            self.record_event(kind, None, worker, None);
        }
    }
}

/// Kind of event that an operator command causes, if any.
pub(super) const fn event_of_command(verb: WorkerCommand) -> Option<PoolEventKind> {
    match verb {
        WorkerCommand::Cordon => Some(PoolEventKind::Cordoned),
        WorkerCommand::Uncordon => Some(PoolEventKind::Uncordoned),
        WorkerCommand::Drain => Some(PoolEventKind::Draining),
        WorkerCommand::Clear => None,
    }
}

/// Kind and reason of the event for the end of a claim.
const fn event_of_end(end: EndReason) -> (PoolEventKind, Option<PoolEventReason>) {
    match end {
        EndReason::Released => (PoolEventKind::Released, None),
        EndReason::ReservationExpired => (PoolEventKind::Released, Some(PoolEventReason::Reserve)),
        EndReason::Expired => (PoolEventKind::Released, Some(PoolEventReason::Ttl)),
        EndReason::CleanupTimedOut => (PoolEventKind::Released, Some(PoolEventReason::Releasing)),
        EndReason::NotReported => (PoolEventKind::Released, Some(PoolEventReason::Missing)),
        EndReason::RolledBack => (PoolEventKind::Released, Some(PoolEventReason::RolledBack)),
        EndReason::Lost => (PoolEventKind::Lost, None),
    }
}
