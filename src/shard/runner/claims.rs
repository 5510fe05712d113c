//! Claims and operations on held claims: translates each into an event, and the engine's reply into an outcome.

use std::sync::Arc;

use super::{ReplyRoute, ShardRunner, rejection_of};
use crate::admission::key::KeyHolder;
use crate::admission::queue::ReservationRequest;
use crate::engine::{ClaimHandle, EngineReply, Event};
use crate::limits;
use crate::model::request_error::{ExhaustionReason, RequestError, UnavailableReason};
use crate::model::{AckLevel, ClaimSpec, ResourceRequirements};
use crate::shard::address::PendingWrites;
use crate::shard::command::{ClaimOp, Command, PendingClaim};
use crate::shard::reply::{ClaimAnswer, ReplyPayload};

impl ShardRunner {
    pub(super) fn claim(&mut self, item: Box<PendingClaim>) {
        if item.reply.is_closed() {
            return self.dispatch.reject_and_route_next(item, RequestError::DeadlineExceeded);
        }
        if self.must_queue(&item) {
            return self.must_queue.push(item);
        }
        if let Some(reason) = self.overload_reason(item.ack) {
            return self.dispatch.reject_and_route_next(item, RequestError::Unavailable(reason));
        }
        let fence = match self.fences.next() {
            Some(fence) => fence,
            None => match self.dispatch.allocate_fences(1) {
                Ok(fence) => fence,
                Err(reason) => return self.dispatch.reject_and_route_next(item, RequestError::Unavailable(reason)),
            },
        };
        let (id, affinity, constraints) = (item.id.clone(), item.affinity, item.constraints().cloned());
        let (reserve_ms, ttl_ms) = (item.reserve_ms, item.ttl_ms.unwrap_or(0));
        let reservation_id = item.reservation_at(self.handle.shard).filter(|&id| self.shard.has_reservation(id));
        self.apply(Event::Claim {
            id,
            fence,
            affinity,
            reserve_ms,
            ttl_ms,
            constraints,
            reservation_id,
            to: ReplyRoute::Claim(item),
        });
    }

    /// Whether claims are queued that may rank before this one for the present capacity.
    fn must_queue(&self, item: &PendingClaim) -> bool {
        let queue = &self.pool.wait_queue;
        queue.waiting() > 0
            && !item.bypasses_queue()
            && (Some(self.shard.capacity_epoch()) != self.capacity_epoch || queue.is_dispatch_pending())
    }

    /// Changes the resources of a claim, if its worker has enough free and the tenant's quota allows it.
    pub(super) fn resize(&mut self, mut item: ClaimOp, resources: ResourceRequirements) {
        self.refresh_handle(&item.id, &mut item.handle);
        let ClaimOp { id, handle, .. } = &item;
        let (id, handle) = (id.clone(), *handle);
        let requested = Arc::new(ClaimSpec { resources: resources.clone(), ..ClaimSpec::default() });
        let before = match self.dispatch.keys.resize(&id, handle.fence, Some(Arc::clone(&requested))) {
            Ok(before) => before,
            Err(exceeded) => {
                let pending_writes = self.pending_writes(&id);
                return self.answer(
                    item.reply,
                    Err(RequestError::Exhausted(ExhaustionReason::Quota(exceeded))),
                    pending_writes,
                    None,
                );
            }
        };
        self.apply(Event::Resize { handle, resources, to: ReplyRoute::Key(item) });
        let held_spec = self.shard.grant(handle).and_then(|grant| grant.spec);
        if held_spec.is_none_or(|spec| spec.resources != requested.resources) {
            self.dispatch.keys.revert_resize(&id, handle.fence, before);
        }
    }

    /// Drops a reservation of this shard that it has cancelled or could not use.
    fn drop_lost_reservation(&self, item: &mut PendingClaim) {
        if item.reservation_at(self.handle.shard).is_some_and(|id| !self.shard.has_reservation(id)) {
            item.drop_reservation();
        }
    }

    /// Reserves a worker for a queued claim.
    pub(super) fn reserve(&mut self, request: Box<ReservationRequest>) {
        let until_ms = self.now_ms + request.duration_ms;
        let (id, constraints, evict) = (request.reservation_id(), Arc::clone(&request.constraints), request.evict);
        self.apply(Event::Reserve { id, constraints, evict, until_ms, to: ReplyRoute::Reservation(request) });
    }

    pub(super) fn reply_reservation(&self, request: Box<ReservationRequest>, answer: &EngineReply) {
        match answer {
            EngineReply::WorkerReserved => request.reserved_on(&self.handle),
            _ => self.dispatch.try_next_shard(request),
        }
    }

    /// Reason why this shard accepts no claims at present: the store lags too far behind.
    pub(super) fn overload_reason(&self, ack: AckLevel) -> Option<UnavailableReason> {
        if !self.keeps_rows {
            return None;
        }
        let durable = ack == AckLevel::Durable;
        let replies = self.pending_replies_len();
        if self.pending_ends.len() >= limits::UNSTORED_ENDS_MAX
            || (durable && replies + limits::DRAIN_MAX >= limits::PENDING_REPLIES_MAX)
        {
            return Some(UnavailableReason::Store);
        }
        let lags = !durable && self.handle.outbox.lag_ms() > self.pool.spec.load().lag_max_ms;
        lags.then_some(UnavailableReason::Overloaded)
    }

    pub(super) fn reply_claim(&mut self, mut item: Box<PendingClaim>, answer: EngineReply) {
        if let EngineReply::Granted(grant) = &answer {
            self.record_claimed(&item.id, grant, None);
        }
        match answer {
            EngineReply::Granted(grant) if item.is_gang_member() => {
                // The key stays pending until the gang is committed.
                self.answer_claim(*item, ClaimAnswer::created(grant, self.handle.shard), PendingWrites::new(), None);
            }
            EngineReply::Granted(grant) => {
                let holder = KeyHolder { shard: self.handle.shard, handle: grant.handle };
                let (duplicates, pending_writes) =
                    self.dispatch.keys.set_held(&item.id, item.ticket, holder, grant.spec.as_ref());
                self.dispatch.ended_claims.remove_on_grant(&item.id);
                self.follow_ups
                    .extend(duplicates.into_iter().map(|duplicate| Command::Reacquire(duplicate, grant.handle)));
                if grant.gpu_mask.is_none() {
                    self.pool.board.record_affinity(item.affinity, self.handle.shard.shard);
                }
                if item.started_ns.is_some() {
                    self.pool.metrics.claim_shards_tried.record(u64::from(item.tried_shards.len()));
                }
                if let Some((_, since_ms)) = item.queue_position() {
                    self.pool.wait_queue.record_served(self.now_ms);
                    let waited_ms = self.now_ms.saturating_sub(since_ms);
                    self.pool.metrics.wait_seconds.record(waited_ms);
                }
                let granted = Some(grant.handle);
                self.answer_claim(*item, ClaimAnswer::created(grant, self.handle.shard), pending_writes, granted);
            }
            EngineReply::NoCapacity => {
                self.drop_lost_reservation(&mut item);
                self.unplaced.push(item);
            }
            EngineReply::NotPlaced(reason) => {
                self.drop_lost_reservation(&mut item);
                item.record_failure(reason);
                self.unplaced.push(item);
            }
            EngineReply::Held(grant) => {
                let pending_writes = self.pending_writes(&item.id);
                self.answer_claim(*item, ClaimAnswer::existing(grant, self.handle.shard), pending_writes, None);
            }
            EngineReply::StaleHandle | EngineReply::RolledBack => self.dispatch.submit(item),
            // The pool's limit was higher when the request arrived.
            EngineReply::TtlTooLong { .. } => self.dispatch.reject_and_route_next(item, rejection_of(&answer)),
            answer => {
                let pending_writes = self.pending_writes(&item.id);
                self.answer(item.reply, Err(rejection_of(&answer)), pending_writes, None);
            }
        }
    }

    fn answer_claim(
        &mut self,
        item: PendingClaim,
        answer: ClaimAnswer,
        pending_writes: PendingWrites,
        granted: Option<ClaimHandle>,
    ) {
        let ack = if self.keeps_rows { item.ack.max(self.ack) } else { AckLevel::Memory };
        self.send_when_stored(item.reply, Ok(ReplyPayload::Claim(answer)), ack, pending_writes, granted);
        if let Some(reply) = self.new_replies.last_mut() {
            reply.started_ns = item.started_ns;
        }
    }

    pub(super) fn reply_key(&mut self, item: ClaimOp, answer: EngineReply) {
        let pending_writes = self.pending_writes(&item.id);
        let outcome = match answer {
            EngineReply::Held(grant) => Ok(ReplyPayload::Claim(ClaimAnswer::existing(grant, self.handle.shard))),
            EngineReply::Released => Ok(ReplyPayload::Done),
            answer => Err(rejection_of(&answer)),
        };
        self.answer(item.reply, outcome, pending_writes, None);
    }
}
