//! Invariants across shards, directory, accounts and queues, checked from the inside whenever nothing of a process can run before
//! time passes. What one shard must hold is asserted by its engine after every event.

use std::collections::BTreeMap;

use hotpool::metrics::ShardState;
use hotpool::model::{ClaimId, Fence, Quota, ResourceUsage};
use hotpool::scheduler::Scheduler;

use crate::settings::Settings;
use crate::world::{NAMESPACE, World, pool_name};

/// Lag of a shard's records beyond which claims may be refused, in milliseconds.
const LAG_MS_MAX: u64 = 1_000;

/// Time for which a claim may wait beside a worker that fits it, in milliseconds: quotas are looked after by the clock.
const PATIENCE_MS: u64 = 2_000;

/// What the last look at a process at rest has left for the next one.
#[derive(Debug, Default)]
pub struct LastLook {
    /// Claim that waits although a worker fits it, with the simulated time since when it is seen, in milliseconds.
    suspected: Option<(String, u64)>,
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
        let Err(found) = check_waiting(scheduler, settings) else {
            self.suspected = None;
            return Ok(());
        };
        match &self.suspected {
            Some((before, since_ms)) if *before == found && now_ms - *since_ms > PATIENCE_MS => Err(found),
            Some((before, _)) if *before == found => Ok(()),
            _ => {
                self.suspected = Some((found, now_ms));
                Ok(())
            }
        }
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

/// Claims as the engines have them; none while a shard does not serve.
fn claims_of_shards(scheduler: &Scheduler, settings: &Settings) -> Option<BTreeMap<Fence, ClaimId>> {
    let mut held = BTreeMap::new();
    for pool in &settings.pools {
        let name = pool_name(pool.name);
        let Some(present) = scheduler.inject_pool(&name) else { continue };
        if present.is_closing() || present.shards.iter().any(|shard| shard.state() != ShardState::Serving) {
            return None;
        }
        for shard in 0..pool.spec.shards {
            held.extend(scheduler.inject_look(&name, shard)?.into_iter().map(|(id, fence, _)| (fence, id)));
        }
    }
    Some(held)
}

/// Checks that a key has one claim in all shards, and that the directory names it (K1).
fn check_directory(scheduler: &Scheduler, held: &BTreeMap<Fence, ClaimId>) -> Result<(), String> {
    let keys = scheduler.keys();
    let mut by_key: BTreeMap<&str, Fence> = BTreeMap::new();
    for (fence, id) in held {
        if let Some(other) = by_key.insert(id.tenant_and_key(), *fence) {
            return Err(format!("K1: {} is held with {other} and {fence}", id.tenant_and_key()));
        }
        let holder = keys.holder(id).map(|holder| holder.handle.fence);
        if holder.is_some_and(|holder| holder != *fence) {
            return Err(format!("K1: {} is held with {fence}, the directory has {holder:?}", id.tenant_and_key()));
        }
    }
    Ok(())
}

/// Checks that no claim waits while a worker fits it that nobody holds, and its quota allows it (Q05). Pools in which workers are
/// reserved are left out.
fn check_waiting(scheduler: &Scheduler, settings: &Settings) -> Result<(), String> {
    let keys = scheduler.keys();
    if keys.pending_len() == 0 {
        return Ok(());
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
                let Some((queued, exhausted)) = keys.queued_claim(&id) else { continue };
                let names_nodes =
                    queued.class.constraints.as_ref().is_some_and(|constraints| !constraints.nodes.is_empty());
                if queued.pools.contains(&present.number)
                    && !names_nodes
                    && queued.tenant.may_charge(&queued.amounts(), queued.charge_rank())
                {
                    let text = format!(
                        "Q05: {} waits ({exhausted:?}), and {} has idle workers",
                        id.tenant_and_key(),
                        pool.name
                    );
                    return Err(text);
                }
            }
        }
    }
    Ok(())
}
