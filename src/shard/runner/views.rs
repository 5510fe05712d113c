//! What a shard shows of itself: listings and figures. Decides nothing.

use std::sync::Arc;

use super::Running;
use crate::engine::placement::bin_packing::Sum;
use crate::engine::{Barred, Grant, ListedClaim, Slice};
use crate::limits;
use crate::model::rejection::Refusal;
use crate::model::{Capacity, ClaimId, ShardStatus};
use crate::shard::command::{ClaimSieve, Question};
use crate::shard::reply::{ClaimAnswer, Left, Outcome, Payload, ShardReport};

impl Running {
    pub(super) fn list_claims(&self, from: u32, limit: usize, sieve: &ClaimSieve) -> Payload {
        let passes = |claim: &ListedClaim<'_>| sieve.matches(claim);
        let Slice { rows, next } = match &sieve.worker {
            Some(worker) => self.shard.claims_of_from(worker, from, limit, passes),
            None => self.shard.claims_from(from, limit, passes),
        };
        let shard = self.port.shard;
        let answer = |(_, id, grant): (u32, ClaimId, Grant)| {
            let expires_at_ms = grant.deadline_ms.map(|at| self.dispatch.clock.unix_of(at));
            (id, ClaimAnswer { grant, created: false, shard, expires_at_ms })
        };
        Payload::Claims(Slice { rows: rows.into_iter().map(answer).collect(), next })
    }

    /// What can be claimed, if it is shares.
    fn left(&self) -> Option<Left> {
        let sums = self.shard.rooms()?.map(|(sum, _)| sum);
        let all = |amount: fn(&Sum) -> u128| u64::try_from(sums.iter().map(amount).sum::<u128>()).unwrap_or(u64::MAX);
        let capacity = Capacity {
            cpu_milli: all(|sum| sum.cpu_milli),
            memory_bytes: all(|sum| sum.memory_bytes),
            slots: all(|sum| sum.slots),
            gpu: None,
        };
        let cards = self.shard.free_cards().map(|(model, idle, milli)| (Arc::clone(model), idle, milli)).collect();
        Some(Left { capacity, cards })
    }

    pub(super) fn explain(&mut self, question: &Question) -> Outcome {
        let Question { wants, affinity, needs_ms, durable, from } = question;
        let wants = wants.as_deref();
        if let Some(from) = from {
            let (survey, next) = self.shard.survey(wants, *needs_ms, self.now_ms, *from, limits::SLICE_ENTRIES);
            return Ok(Payload::Survey(Box::new(survey), next));
        }
        if let Some(why) = self.overload(*durable) {
            return Err(Refusal::Unavailable(why));
        }
        Ok(Payload::WouldTake(self.shard.would_take(wants, *affinity, *needs_ms, self.now_ms)))
    }

    pub(super) fn report(&self) -> ShardReport {
        let outbox = &self.port.outbox;
        let Barred { by_each, by_first, .. } = self.shard.barred();
        ShardReport {
            status: ShardStatus {
                shard: self.port.shard.shard,
                state: self.port.state().word().into(),
                reason: self.port.reason(),
                workers: self.shard.workers() as u64,
                idle: self.shard.idle() as u64,
                busy: self.shard.busy() as u64,
                claims: self.shard.held() as u64,
                cordoned: by_each.cordoned,
                draining: by_each.draining,
                lost: by_each.lost,
                suspect: by_each.suspect,
                ended: by_each.ended,
                stopping: by_each.stopping,
                workers_reserved: by_each.reserved,
                unschedulable: by_first,
                reserved: self.shard.reserved() as u64,
                releasing: self.shard.releasing() as u64,
                seq: self.shard.seq(),
                applied_seq: outbox.applied(),
                lag_ms: outbox.lag_ms(),
                ring_depth: self.port.depth() as u64,
                answers_waiting: (self.waiting.len() + self.blocked.len()) as u64,
                restarts: self.port.restarts(),
            },
            ledger: self.shard.ledger().cloned().collect(),
            left: self.left(),
            drift: self.audit.drift(&self.shard),
        }
    }
}
