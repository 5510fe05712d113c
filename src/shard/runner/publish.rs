//! What a run tells those who watch its pool. While nobody does, nothing is made.

use std::sync::Arc;

use super::Running;
use crate::engine::{End, Grant};
use crate::events::{EventClaim, Happening, PoolEvent, Why};
use crate::model::{ClaimId, ClaimTimes, Fence, WorkerCard, WorkerId, WorkerVerb};

impl Running {
    /// After the ring was looked at: who watched before it asked is seen before it is answered.
    pub(super) fn look_at_watchers(&mut self) {
        self.watched = self.pool.watch.is_kept();
    }

    /// The end of a run.
    pub(super) fn tell_watchers(&mut self) {
        if !self.told.is_empty() {
            self.pool.watch.tell(&mut self.told);
        }
    }

    #[cold]
    fn tell(&mut self, what: Happening, why: Option<Why>, worker: Arc<WorkerCard>, claim: Option<EventClaim>) {
        let at_ms = self.dispatch.clock.unix_of(self.now_ms);
        let shard = self.port.shard.shard;
        self.told.push(PoolEvent { what, why, at_ms, shard, worker, claim });
    }

    pub(super) fn tell_claimed(&mut self, id: &ClaimId, grant: &Grant, why: Option<Why>) {
        if self.watched {
            let claim = Some(EventClaim { id: id.clone(), fence: grant.place.fence, times: grant.times() });
            self.tell(Happening::Claimed, why, Arc::clone(&grant.worker), claim);
        }
    }

    pub(super) fn tell_ended(&mut self, id: &ClaimId, fence: Fence, times: ClaimTimes, end: End, worker: u32) {
        if self.watched
            && let Some(worker) = self.shard.card(worker)
        {
            let (worker, (what, why)) = (Arc::clone(worker), told_as(end));
            self.tell(what, why, worker, Some(EventClaim { id: id.clone(), fence, times }));
        }
    }

    pub(super) fn tell_silent(&mut self, worker: u32) {
        if self.watched
            && let Some(worker) = self.shard.card(worker)
        {
            let worker = Arc::clone(worker);
            self.tell(Happening::Lost, None, worker, None);
        }
    }

    pub(super) fn tell_deleted(&mut self, worker: Arc<WorkerCard>) {
        let (pool, spec) = (&self.pool.name, &worker.spec);
        tracing::info!(%pool, worker = %spec.id, spec.incarnation, "deleted: lost for as long as the pool keeps it");
        if self.watched {
            self.tell(Happening::Deleted, Some(Why::Lost), worker, None);
        }
    }

    /// Does something about a worker, and tells of it if that changed anything.
    pub(super) fn about(&mut self, id: &WorkerId, what: Option<Happening>, deed: impl FnOnce(&mut Self)) {
        let Some(what) = what.filter(|_| self.watched) else { return deed(self) };
        let seq = self.shard.seq();
        let before = self.shard.card_of(id).cloned();
        deed(self);
        if self.shard.seq() != seq
            && let Some(worker) = self.shard.card_of(id).cloned().or(before)
        {
            self.tell(what, None, worker, None);
        }
    }
}

/// What a wish brings about, as far as it is told.
pub(super) const fn wish(verb: WorkerVerb) -> Option<Happening> {
    match verb {
        WorkerVerb::Cordon => Some(Happening::Cordoned),
        WorkerVerb::Uncordon => Some(Happening::Uncordoned),
        WorkerVerb::Drain => Some(Happening::Draining),
        WorkerVerb::Clear => None,
    }
}

/// How the end of a claim is told.
const fn told_as(end: End) -> (Happening, Option<Why>) {
    match end {
        End::Released => (Happening::Released, None),
        End::Swept => (Happening::Released, Some(Why::Reserve)),
        End::Expired => (Happening::Released, Some(Why::Ttl)),
        End::Uncleaned => (Happening::Released, Some(Why::Releasing)),
        End::Missing => (Happening::Released, Some(Why::Missing)),
        End::GivenBack => (Happening::Released, Some(Why::GivenBack)),
        End::Lost => (Happening::Lost, None),
    }
}
