//! Invariants across shards, directory, accounts and queues, checked from the inside at a quarter of the moments at which nothing
//! of a process can run before time passes. What one shard must hold is asserted by its engine after every event.

use std::collections::BTreeMap;

use hotpool::admission::key::KeyLookup;
use hotpool::metrics::ShardState;
use hotpool::model::{ClaimId, Fence, Quota, ResourceUsage};
use hotpool::scheduler::Scheduler;

use crate::settings::Settings;
use crate::world::{NAMESPACE, World, pool_name};

/// Lag of a shard's records beyond which claims may be refused, in milliseconds.
const LAG_MS_MAX: u64 = 1_000;

/// Time for which a claim may wait beside a worker that fits it, in milliseconds: quotas are looked after by the clock.
const PATIENCE_MS: u64 = 2_000;

/// Memory of the last look at a process at rest, for the next one.
#[derive(Debug, Default)]
pub struct LastLook {
    /// Claims that wait although workers of a pool fit them, with the simulated time since when it is so, in milliseconds.
    suspected: BTreeMap<(String, &'static str), u64>,
    /// Quota and usage of each tenant.
    tenants: BTreeMap<String, (Quota, ResourceUsage)>,
    /// Changes of quotas that had begun or ended; none: one was under way.
    quota_changes: Option<u64>,
    /// Lost claims that were adopted: they are charged whatever the quota is.
    adopted: u64,
}

impl LastLook {
    /// Checks a process that serves and of which nothing can run at present.
    pub fn check_at_rest(&mut self, scheduler: &Scheduler, world: &World) -> Result<(), String> {
        let (settings, now_ms) = (&world.settings, world.core.now_ms());
        if !scheduler.readiness().ready {
            self.tenants.clear();
            return Ok(());
        }
        let Some(held) = claims_of_shards(scheduler, settings) else {
            self.tenants.clear();
            return Ok(());
        };
        check_directory(scheduler, &held)?;
        self.check_quotas(scheduler, world)?;
        let found = find_waiting(scheduler, settings);
        self.suspected.retain(|wait, _| found.contains(wait));
        for wait in found {
            let since_ms = *self.suspected.entry(wait.clone()).or_insert(now_ms);
            if now_ms - since_ms > PATIENCE_MS {
                let (key, pool) = wait;
                return Err(format!("Q05: {key} waits, and {pool} has idle workers, for {} ms", now_ms - since_ms));
            }
        }
        Ok(())
    }

    /// Checks that no tenant has come to use more than its quota allows (U1), which nobody has changed since the last look: only
    /// a lower quota leaves it with more.
    fn check_quotas(&mut self, scheduler: &Scheduler, world: &World) -> Result<(), String> {
        let changes = world.checker.lock().quota_changes();
        let adopted = hotpool::coverage::count_of("adoption: a lost claim is adopted");
        let is_comparable = (self.quota_changes, self.adopted) == (changes, adopted) && changes.is_some();
        (self.quota_changes, self.adopted) = (changes, adopted);
        for tenant in (0..world.settings.tenants).map(|tenant| format!("{NAMESPACE}/t{tenant}")) {
            let (quota, _, used) = scheduler.keys().tenants.quota_usage(&tenant);
            let before = self.tenants.insert(tenant.clone(), (quota.clone(), used));
            let comparable = before.filter(|(quota_before, _)| is_comparable && *quota_before == quota);
            let Some((_, before)) = comparable else { continue };
            let exceeds =
                |limit: Option<u64>, used: u64, before: u64| limit.is_some_and(|limit| used > limit.max(before));
            if exceeds(quota.claims, used.claims, before.claims)
                || exceeds(quota.cpu_milli, used.cpu_milli, before.cpu_milli)
            {
                return Err(format!("U1: {tenant} uses {used:?} of {quota:?}, and used {before:?}"));
            }
        }
        Ok(())
    }
}

/// Claim as the engine of its shard has it.
struct ShardClaim {
    id: ClaimId,
    /// Whether an answer has shown it to somebody, or none is under way.
    is_disclosed: bool,
}

/// Claims as the engines have them; none while a shard does not serve.
fn claims_of_shards(scheduler: &Scheduler, settings: &Settings) -> Option<BTreeMap<Fence, ShardClaim>> {
    let mut held = BTreeMap::new();
    for pool in &settings.pools {
        let name = pool_name(pool.name);
        let Some(present) = scheduler.inject_pool(&name) else { continue };
        if present.is_closing() || present.shards.iter().any(|shard| shard.state() != ShardState::Serving) {
            return None;
        }
        for shard in 0..pool.spec.shards {
            let claims = scheduler.inject_look(&name, shard)?.into_iter();
            held.extend(claims.map(|(id, fence, is_disclosed)| (fence, ShardClaim { id, is_disclosed })));
        }
    }
    Some(held)
}

/// Checks that a key has one claim in all shards, and that the directory names it (K1).
fn check_directory(scheduler: &Scheduler, held: &BTreeMap<Fence, ShardClaim>) -> Result<(), String> {
    let keys = scheduler.keys();
    let mut by_key: BTreeMap<&str, Fence> = BTreeMap::new();
    for (fence, ShardClaim { id, is_disclosed }) in held {
        if let Some(other) = by_key.insert(id.tenant_and_key(), *fence) {
            return Err(format!("K1: {} is held with {other} and {fence}", id.tenant_and_key()));
        }
        if *is_disclosed && matches!(keys.lookup(id), KeyLookup::Vacant) {
            return Err(format!("K1: {} is held with {fence}, the directory has nothing", id.tenant_and_key()));
        }
        let holder = keys.holder(id).map(|holder| holder.handle.fence);
        if holder.is_some_and(|holder| holder != *fence) {
            return Err(format!("K1: {} is held with {fence}, the directory has {holder:?}", id.tenant_and_key()));
        }
    }
    Ok(())
}

/// Claims that wait while a worker of a pool fits them that nobody holds, and their quotas allow it (Q05), each with the pool.
/// Pools in which workers are reserved are left out, and shared ones, in which a part of a worker may not be enough.
fn find_waiting(scheduler: &Scheduler, settings: &Settings) -> Vec<(String, &'static str)> {
    let (keys, mut found) = (scheduler.keys(), Vec::new());
    if keys.pending_len() == 0 {
        return found;
    }
    for pool in settings.pools.iter().filter(|pool| !pool.is_shared()) {
        let Some(present) = scheduler.inject_pool(&pool_name(pool.name)) else { continue };
        let lags = present.shards.iter().any(|shard| shard.outbox.lag_ms() > LAG_MS_MAX);
        let is_reserved = present.wait_queue.lock().queue.reservations.lowest_priority().is_some();
        let idle: u32 = (0..pool.spec.shards).map(|shard| present.board.idle(shard)).sum();
        if lags || is_reserved || idle == 0 {
            continue;
        }
        for tenant in 0..settings.tenants {
            for key in 0..settings.keys {
                let id = ClaimId::new(NAMESPACE, &format!("t{tenant}"), &format!("k{key}")).expect("a name");
                let Some((queued, _)) = keys.queued_claim(&id) else { continue };
                let names_nodes =
                    queued.class.constraints.as_ref().is_some_and(|constraints| !constraints.nodes.is_empty());
                if queued.pools.contains(&present.number)
                    && !names_nodes
                    && queued.tenant.may_charge(&queued.amounts(), queued.charge_rank())
                {
                    found.push((id.tenant_and_key().to_owned(), pool.name));
                }
            }
        }
    }
    found
}
