//! Claim on its way to a worker, and the calls to shards that are made from it.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::entry::KeyHolder;
use crate::admission::plan::CandidatePlan;
use crate::admission::pool_registry::PoolMap;
use crate::admission::queue::WaitState;
use crate::engine::{ClaimTarget, PlacementConstraints, PoolEligibility};
use crate::model::request_error::UnavailableReason;
use crate::model::{AckLevel, ClaimId, Millis, QuotaResource};
use crate::shard::{ClaimCall, KeyTicket, ReacquireCall, ReplyAddress, ShardRef, ShardSet};

/// Shard that a claim asks out of turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardAsk {
    /// Shard that is asked.
    pub shard: ShardRef,
    /// The only worker that will do; none: any that is offered.
    pub target: Option<ClaimTarget>,
}

/// Claim that is being placed. It stays in the entry of its key while a shard is asked, and goes from one to the next
/// until one grants it or none is left, whether or not its caller still listens.
#[derive(Debug)]
pub struct PendingClaim {
    /// Identity of the claim.
    pub id: ClaimId,
    /// Number of the pool that is being tried, in this process.
    pub pool: u32,
    /// Search plan, unless any worker of the pool will do. Boxed: most claims have none.
    pub plan: Option<Box<CandidatePlan>>,
    /// Ticket of the attempt, once [`super::KeyDirectory::acquire`] granted it.
    pub ticket: KeyTicket,
    /// Hash of the affinity key.
    pub affinity: u64,
    /// Time to confirm, in milliseconds.
    pub reserve_ms: Millis,
    /// Requested time to live without renewal, in milliseconds; `None` takes the pool's default.
    pub ttl_ms: Option<Millis>,
    /// Level at which the reply acknowledges the claim.
    pub ack: AckLevel,
    /// Random number that breaks ties between shards.
    pub tie_break: u64,
    /// Shards that were asked so far.
    pub tried_shards: ShardSet,
    /// Reason why an eligible shard could not be asked: the rejection cannot be "exhausted" then.
    pub unreachable: Option<UnavailableReason>,
    /// Arrival time in nanoseconds, if timed ([`crate::admission::dispatch::ClaimDispatcher::arrival_ns`]).
    pub started_ns: Option<NonZeroU64>,
    /// Address of the reply to the caller.
    pub reply: ReplyAddress,
    /// Waiting state, if the claim waits or did. Boxed: most claims do not.
    pub wait: Option<Box<WaitState>>,
    /// Quota that the claim would exceed, if it got its ticket nevertheless.
    pub over_quota: Option<QuotaResource>,
    /// Shards that are asked before the search goes on. Boxed, because there are almost never any.
    pub asks: Option<Box<VecDeque<ShardAsk>>>,
    /// Whether the claim has asked for workers that are reserved for claims of a lower priority, in this search.
    pub has_asked_reserved: bool,
    /// Whether the claim asks for the holder of its key and for no other: it is never placed.
    pub is_for_holder: bool,
}

impl PendingClaim {
    /// Next shard that is asked out of turn, and whose pool is tried from now on.
    pub fn next_ask(&mut self, pools: &PoolMap) -> Option<ShardAsk> {
        while let Some(asks) = &mut self.asks {
            let Some(ask) = asks.pop_front() else {
                self.asks = None;
                break;
            };
            if let Some(pool) = pools.by_number(ask.shard.pool) {
                self.enter_pool(pool);
                if ask.target.is_none() {
                    self.tried_shards.insert(ask.shard.shard);
                }
                return Some(ask);
            }
        }
        None
    }

    /// Call that asks a shard for any of its workers.
    #[must_use]
    #[inline]
    pub fn call(&self) -> ClaimCall {
        self.call_for(self.constraints(), None)
    }

    /// Call that asks a shard for a worker, the given one if any.
    #[must_use]
    #[inline]
    pub fn call_for(&self, constraints: Option<&Arc<PlacementConstraints>>, target: Option<ClaimTarget>) -> ClaimCall {
        ClaimCall {
            id: self.id.clone(),
            ticket: self.ticket,
            affinity: self.affinity,
            reserve_ms: self.reserve_ms,
            ttl_ms: self.ttl_ms,
            constraints: constraints.cloned(),
            target: target.map(Box::new),
            ack: self.ack,
            started_ns: self.started_ns,
        }
    }

    /// Call that shows the holder of the key to this repeated claim.
    #[must_use]
    pub fn reacquire_call(&self, number: u64, holder: &KeyHolder) -> ReacquireCall {
        let may_use = self.may_use(holder.shard.pool);
        ReacquireCall {
            id: self.id.clone(),
            number,
            handle: holder.handle,
            eligibility: match may_use {
                true if self.is_for_holder => PoolEligibility::EligibleToKeep,
                true => PoolEligibility::Eligible,
                false => PoolEligibility::Ineligible,
            },
            constraints: self.accepts(),
            ack: self.ack,
            started_ns: self.started_ns,
        }
    }
}
