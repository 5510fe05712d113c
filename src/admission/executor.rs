//! Carries out effects: the only place of this layer that sends commands to shards. No lock is held while it does.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::dispatch::ClaimDispatcher;
use super::effect::{Effect, EffectQueue};
use super::pool_registry::PoolMap;
use crate::model::request_error::{ObjectKind, RequestError, UnavailableReason};
use crate::shard::{Command, OfferedWorkers, ProtocolPoint, PushRejection, ShardRef};

/// Commands that a caller sends inline for others, beyond which the actors of the shards take over: a caller does not
/// serve everybody who waits.
const INLINE_SENDS_MAX: usize = 64;

impl ClaimDispatcher {
    /// Runs `begin`, and carries out what it notes.
    pub fn with_work<T>(&self, begin: impl FnOnce(&mut EffectQueue) -> T) -> T {
        let mut work = EffectQueue::default();
        let result = begin(&mut work);
        self.assign_left(&mut work);
        self.work_off(&mut work);
        result
    }

    /// Carries out effects, and those that they cause, until none is left.
    #[inline]
    pub(super) fn work_off(&self, work: &mut EffectQueue) {
        if !work.is_empty() {
            self.carry_out_all(work);
        }
    }

    fn carry_out_all(&self, work: &mut EffectQueue) {
        while let Some(effect) = work.pop() {
            // A panic must not keep the others from being carried out: they belong to other keys and callers.
            if catch_unwind(AssertUnwindSafe(|| self.carry_out_one(effect, work))).is_err() {
                tracing::error!("an effect of a decision panicked");
            }
            self.assign_left(work);
        }
    }

    fn carry_out_one(&self, effect: Effect, work: &mut EffectQueue) {
        match effect {
            Effect::Send(shard, command) => {
                ProtocolPoint::Effect.reach();
                self.send(&self.pools.load(), shard, command, work);
            }
            Effect::OfferAgain(shard, workers) => {
                ProtocolPoint::Effect.reach();
                self.offer_again(shard, workers, work);
            }
            Effect::Submit(claim) => self.submit(claim, work),
            Effect::RouteAll(claims) => self.route_all(claims, work),
            Effect::Search(claim) => self.search_again(&claim, work),
            Effect::SearchQuotas => self.search_quotas(work),
            Effect::AssignReservations(pool) => self.assign_reservations(&pool, work),
            Effect::Gang(step) => {
                let (gang, event) = *step;
                self.step_gang(gang, event, work);
            }
        }
    }

    /// Sends a command to a shard, and lets the claims go on that the shard does not take.
    pub(super) fn send(&self, pools: &PoolMap, shard: ShardRef, command: Command, work: &mut EffectQueue) {
        work.sent += 1;
        let Some(handle) = pools.shard(shard) else {
            return self.not_asked(shard, command, UnavailableReason::Loading, work);
        };
        let pushed = match work.sent > INLINE_SENDS_MAX {
            true => handle.post(command),
            false => handle.push_into(command, work),
        };
        if let Err(rejected) = pushed {
            self.not_asked(shard, rejected.command, rejected.reason, work);
        }
    }

    fn offer_again(&self, shard: ShardRef, workers: OfferedWorkers, work: &mut EffectQueue) {
        work.sent += 1;
        // Without its pool nobody waits there.
        let pools = self.pools.load();
        let Some(handle) = pools.shard(shard) else { return };
        if work.sent > INLINE_SENDS_MAX {
            handle.offer_again(workers);
        } else {
            handle.offer_again_into(workers, work);
        }
    }

    /// Goes on with the claims of a command that a shard did not take.
    fn not_asked(&self, shard: ShardRef, command: Command, reason: PushRejection, work: &mut EffectQueue) {
        match command {
            Command::Claim(call) => self.route_past(&call.id, call.ticket, reason, work),
            Command::Claims(calls) => {
                calls.iter().for_each(|call| self.route_past(&call.id, call.ticket, reason, work));
            }
            Command::Reacquire(call) => {
                if let Some((claim, _)) = self.keys.take_repeated(&call.id, call.number) {
                    self.reply_rejected(claim, RequestError::Unavailable(reason));
                }
            }
            Command::Reserve(call) => self.reserve_elsewhere(shard, call.id, work),
            Command::SurveyVictims(survey) => self.on_victims_found(shard, survey.id, &[], work),
            Command::SurveyTenant(survey) => self.on_tenant_victims(shard, survey.id, &[], work),
            Command::Gang(call) if self.pools.load().shard(shard).is_none() => {
                call.reply.send(Err(RequestError::NotFound(ObjectKind::Pool)));
            }
            Command::Operation(operation) if self.pools.load().shard(shard).is_none() => {
                operation.reply.reject(RequestError::Unavailable(reason));
            }
            command => {
                if let Some(handle) = self.pools.load().shard(shard) {
                    handle.reject(command, &RequestError::Unavailable(reason), work);
                }
            }
        }
    }
}
