//! Routing of batches: each shard is asked once for as many claims as it can be expected to have workers for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ClaimDispatcher, next_shard, next_shard_beside, preference};
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::key::PendingClaim;
use crate::admission::pool_registry::PoolMap;
use crate::engine::PlacementConstraints;
use crate::model::request_error::RequestError;
use crate::shard::capacity_board::{BatchBudget, FreeCapacity, ShardPreference};
use crate::shard::{Command, ShardRef, ShardSet};

/// Maximum number of claims of a batch in one command to a shard: enough to pay for waking it, few enough to
/// spread the batch.
const SHARD_BATCH_MAX: usize = 64;

impl ClaimDispatcher {
    /// Routes claims with tickets in groups, to each shard at most as many as it has idle workers.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    pub fn route_all(&self, mut items: Vec<Box<PendingClaim>>, work: &mut EffectQueue) {
        let over: Vec<_> = items.extract_if(.., |item| item.over_quota.is_some() || item.asks.is_some()).collect();
        over.into_iter().for_each(|item| self.route(item, work));
        let pools = self.pools.load();
        let is_shared =
            |item: &PendingClaim| pools.by_number(item.pool).is_some_and(|pool| pool.board.free().is_some());
        if items.len() > 1 && items.iter().any(|item| is_shared(item)) {
            let (shared, exclusive): (Vec<_>, _) = items.into_iter().partition(|item| is_shared(item));
            self.route_shared(&pools, shared, work);
            items = exclusive;
        }
        // Shards whose idle workers are all spoken for by this batch.
        let mut full: BTreeMap<u32, ShardSet> = BTreeMap::new();
        // Taken from the end, so that the earliest claims get the first workers.
        items.reverse();
        while items.len() > 1 {
            let last = &items[items.len() - 1];
            let spoken_for = full.get(&last.pool);
            let picked = match last.pinned_worker() {
                Some(_) => None,
                None => next_shard_beside(&pools, last, spoken_for),
            };
            let Some((pool, shard)) = picked else {
                if spoken_for.is_some() && last.pinned_worker().is_none() {
                    // Whether more is free is known once those shards have answered.
                    items.reverse();
                    return work.push(Effect::RouteAll(items));
                }
                // The claim falls back, is rejected, or goes to the shard of its pinned worker.
                items.pop().into_iter().for_each(|item| self.route(item, work));
                continue;
            };
            let group_max = (pool.board.idle(shard) as usize).max(1);
            let mut group = Vec::with_capacity(group_max.min(items.len()));
            while group.len() < group_max
                && let Some(mut item) = items.pop_if(|item| {
                    item.pool == pool.number && !item.tried_shards.contains(shard) && item.pinned_worker().is_none()
                })
            {
                item.tried_shards.insert(shard);
                group.push(item);
            }
            full.entry(pool.number).or_default().insert(shard);
            let shard = ShardRef { pool: pool.number, shard };
            let mut group = group.into_iter().peekable();
            while group.peek().is_some() {
                self.ask_group(shard, group.by_ref().take(SHARD_BATCH_MAX).collect(), work);
            }
        }
        if full.is_empty() {
            items.into_iter().for_each(|item| self.route(item, work));
        } else if !items.is_empty() {
            work.push(Effect::RouteAll(items));
        }
    }

    /// Routes claims on shared pools: divides them by the free resources that each shard publishes, so that each shard
    /// is asked once. A claim that does not fit after all continues on its own.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    fn route_shared(&self, pools: &PoolMap, items: Vec<Box<PendingClaim>>, work: &mut EffectQueue) {
        let mut allotment = BatchAllotment::default();
        // Shard of the previous claim: as many as fit go to one shard, and so to few workers.
        let mut last: Option<ShardRef> = None;
        for mut item in items {
            let picked = allot_shard(pools, &item, &mut allotment, last);
            let Some(shard) = picked else {
                self.route(item, work);
                continue;
            };
            item.tried_shards.insert(shard.shard);
            allotment.items.entry(shard).or_default().push(item);
            last = Some(shard);
        }
        for (shard, group) in allotment.items {
            self.ask_group(shard, group, work);
        }
    }

    /// Leaves claims in their entries and asks a shard for workers.
    #[allow(clippy::vec_box, reason = "claims stay boxed from entry to entry")]
    fn ask_group(&self, shard: ShardRef, group: Vec<Box<PendingClaim>>, work: &mut EffectQueue) {
        let mut calls = Vec::with_capacity(group.len());
        for item in group {
            let call = item.call();
            match self.keys.deposit(item, shard) {
                Ok(()) => calls.push(call),
                Err(item) => self.reply_rejected(item, RequestError::DeadlineExceeded),
            }
        }
        work.push(Effect::Send(shard, Command::Claims(calls)));
    }
}

/// Maximum number of requests of one batch that are recorded as exhausted.
const EXHAUSTED_MAX: usize = 16;

/// Groups of a batch by shard.
#[derive(Default)]
struct BatchAllotment {
    #[allow(clippy::vec_box, reason = "claims stay boxed from mailbox to mailbox")]
    items: BTreeMap<ShardRef, Vec<Box<PendingClaim>>>,
    /// Remaining budget of each shard.
    budgets: BTreeMap<ShardRef, BatchBudget>,
    /// Requests for which no shard of a pool has budget left. Budgets only shrink while a batch is divided.
    exhausted: Vec<(u32, Arc<PlacementConstraints>)>,
}

impl BatchAllotment {
    fn budget(&self, shard: ShardRef, free: &FreeCapacity) -> BatchBudget {
        self.budgets.get(&shard).copied().unwrap_or_else(|| free.budget(shard.shard))
    }

    /// Takes the claim's request from the shard's budget. Returns false if the budget does not cover it.
    fn try_take(&mut self, shard: ShardRef, free: &FreeCapacity, constraints: &PlacementConstraints) -> bool {
        let mut budget = self.budget(shard, free);
        let enough = budget.try_take(constraints);
        if enough {
            self.budgets.insert(shard, budget);
        }
        enough
    }

    fn is_exhausted_for(&self, pool: u32, constraints: &PlacementConstraints) -> bool {
        let request = |constraints: &PlacementConstraints| {
            (constraints.spec.as_ref().map(|spec| spec.resources.clone()), constraints.gpus.clone())
        };
        self.exhausted.iter().any(|(number, existing)| *number == pool && request(existing) == request(constraints))
    }

    fn mark_exhausted_for(&mut self, pool: u32, constraints: &Arc<PlacementConstraints>) {
        if self.exhausted.len() < EXHAUSTED_MAX {
            self.exhausted.push((pool, Arc::clone(constraints)));
        }
    }
}

/// Picks the shard of a batch's group for a claim on a shared pool, and takes its request from the shard's budget.
fn allot_shard(
    pools: &PoolMap,
    item: &PendingClaim,
    allotment: &mut BatchAllotment,
    last: Option<ShardRef>,
) -> Option<ShardRef> {
    let pool = pools.by_number(item.pool)?;
    if item.pinned_worker().is_some() {
        return next_shard(pools, item).map(|(pool, shard)| ShardRef { pool: pool.number, shard });
    }
    let (free, constraints) = (pool.board.free()?, item.constraints()?);
    let shard_ref = |shard: u16| ShardRef { pool: pool.number, shard };
    let preference = preference(pool);
    let same_shard = last.filter(|last| last.pool == pool.number && !item.tried_shards.contains(last.shard));
    let same_shard =
        same_shard.filter(|last| preference != ShardPreference::MostFree && free.may_fit(last.shard, constraints));
    if let Some(last) = same_shard.filter(|last| allotment.try_take(*last, free, constraints)) {
        return Some(last);
    }
    if !allotment.is_exhausted_for(pool.number, constraints) {
        let tie_break = item.tie_break.rotate_left(item.tried_shards.len() * 7);
        let has_budget = |shard: u16| allotment.budget(shard_ref(shard), free).try_take(constraints);
        if let Some(shard) =
            pool.board.pick_with_capacity(&item.tried_shards, constraints, tie_break, preference, has_budget)
        {
            let fits = allotment.try_take(shard_ref(shard), free, constraints);
            return fits.then_some(shard_ref(shard));
        }
        if item.tried_shards.is_empty() {
            allotment.mark_exhausted_for(pool.number, constraints);
        }
    }
    // The published resources are all allotted. Shards that may have more are asked all the same.
    next_shard(pools, item).map(|(_, shard)| shard_ref(shard))
}
