//! Routing of requests about held claims: to the shard, or to a rejection that is as durable as what it follows from.
//! Nothing here awaits: the outcome goes to the address of the request.

use std::num::NonZeroU64;

use super::Scheduler;
use crate::admission::key::{EndedClaim, KeyHolder, KeyLookup};
use crate::metrics::metrics;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::model::{ClaimId, ClaimState, Fence};
use crate::shard::{Command, HeldOperation, HeldVerb, PendingWrites, ReplyAddress, ShardRef};

const LOADING: RequestError = RequestError::Unavailable(UnavailableReason::Loading);

/// Operation and the shard that holds its claim.
pub(super) type RoutedOperation = (ShardRef, HeldOperation);

impl Scheduler {
    /// Finds the shard that holds a key and makes the operation for it. Returns `None` if the request is rejected; then
    /// its reply is on its way.
    #[inline(always)]
    pub(super) fn route_operation(
        &self,
        id: ClaimId,
        fence: Option<Fence>,
        verb: HeldVerb,
        started_ns: Option<NonZeroU64>,
        reply: ReplyAddress,
    ) -> Option<RoutedOperation> {
        let (holder, pending_writes) = match self.dispatch().keys.lookup(&id) {
            KeyLookup::Held { holder, pending_writes } => (holder, pending_writes),
            KeyLookup::Unreadable => {
                reply.reject(LOADING);
                return None;
            }
            KeyLookup::Vacant => {
                reply.reject(RequestError::NotFound(ObjectKind::Claim));
                return None;
            }
            KeyLookup::PendingWrites(pending_writes) => {
                self.reject_when_stored(RequestError::NotFound(ObjectKind::Claim), pending_writes, reply);
                return None;
            }
        };
        if fence.is_some_and(|fence| fence != holder.handle.fence) {
            metrics().fence_refusals.increment(1);
            // As durable as the end of the claim that had this fence.
            self.reject_when_stored(RequestError::FenceMismatch, pending_writes, reply);
            return None;
        }
        let KeyHolder { shard, life, handle } = holder;
        let operation = HeldOperation { id, handle, life, verb, pending_writes, started_ns, reply };
        match self.dispatch().begin_resize(&operation) {
            Ok(()) => Some((shard, operation)),
            Err(error) => {
                operation.reply.reject(error);
                None
            }
        }
    }

    fn reject_when_stored(&self, rejection: RequestError, pending_writes: PendingWrites, reply: ReplyAddress) {
        let dispatch = self.dispatch();
        dispatch.with_work(|work| dispatch.reject_when_stored(rejection, pending_writes, reply, work));
    }

    /// Sends an operation to the shard that holds its claim.
    #[inline(always)]
    pub(super) fn send_operation(&self, (shard, operation): RoutedOperation) {
        let dispatch = self.dispatch();
        match dispatch.pools.load().shard(shard) {
            Some(handle) => {
                dispatch.with_work(|work| handle.push_or_reject_into(Command::Operation(operation), work));
            }
            None => operation.reply.reject(LOADING),
        }
    }

    /// Sends releases in groups, so that each shard is visited once.
    pub(super) fn send_releases(&self, mut items: Vec<RoutedOperation>) {
        let dispatch = self.dispatch();
        items.sort_by_key(|(shard, _)| *shard);
        while let Some(&(shard, _)) = items.last() {
            let from = items.partition_point(|(other, _)| *other < shard);
            let items: Vec<HeldOperation> = items.drain(from..).map(|(_, item)| item).collect();
            match dispatch.pools.load().shard(shard) {
                Some(handle) => {
                    dispatch.with_work(|work| handle.push_or_reject_into(Command::Operations(items), work));
                }
                None => items.into_iter().for_each(|item| item.reply.reject(LOADING)),
            }
        }
    }

    /// Claim that ended because its clean-up timed out, if a release with this fence may still finish it.
    pub(super) fn timed_out_cleanup(&self, id: &ClaimId, fence: Option<Fence>) -> Option<EndedClaim> {
        let ended = self.dispatch().keys.ended_claim(id, self.dispatch().clock.engine_ms())?;
        let has_its_fence = fence.is_none_or(|fence| fence == ended.grant.handle.fence);
        (ended.grant.state == ClaimState::Releasing && has_its_fence).then_some(ended)
    }

    /// Finishes a clean-up that had timed out, by notifying the shard of the worker. The outcome is `NotFound` if that
    /// was done already, or the worker is gone.
    pub(super) fn finish_cleanup_late(&self, id: ClaimId, ended: &EndedClaim, reply: ReplyAddress) {
        let operation = HeldOperation {
            id,
            handle: ended.grant.handle,
            life: ended.life,
            verb: HeldVerb::Release,
            pending_writes: PendingWrites::new(),
            started_ns: self.dispatch().arrival_ns(),
            reply,
        };
        let dispatch = self.dispatch();
        match dispatch.pools.load().shard(ended.shard) {
            Some(handle) => {
                dispatch.with_work(|work| handle.push_or_reject_into(Command::Operation(operation), work));
            }
            // The pool was deleted, and its workers with it.
            None => operation.reply.reject(RequestError::NotFound(ObjectKind::Pool)),
        }
    }
}

/// Result of a request that ends a claim; false if it had ended already.
pub(super) fn ended_now<T>(outcome: Result<T, RequestError>) -> Result<bool, RequestError> {
    match outcome {
        Ok(_) => Ok(true),
        Err(RequestError::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}
