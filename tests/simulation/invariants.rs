//! Invariants across shards, directory, accounts and queues, checked from the inside whenever nothing of a process can run before
//! time passes. What one shard must hold is asserted by its engine after every event.

use std::collections::BTreeMap;

use hotpool::metrics::ShardState;
use hotpool::model::{ClaimId, Fence};
use hotpool::scheduler::Scheduler;

use crate::settings::Settings;
use crate::world::{NAMESPACE, pool_name};

/// Lag of a shard's records beyond which claims may be refused, in milliseconds.
const LAG_MS_MAX: u64 = 1_000;

/// Time for which a claim may wait beside a worker that fits it, in milliseconds: quotas are looked after by the clock.
const PATIENCE_MS: u64 = 2_000;

/// Claim that waits although a worker fits it, with the simulated time since when it is seen, in milliseconds.
pub type SuspectedWait = Option<(String, u64)>;

/// Checks a process that serves and of which nothing can run at present.
pub fn check_at_rest(
    scheduler: &Scheduler,
    settings: &Settings,
    suspected: &mut SuspectedWait,
    now_ms: u64,
) -> Result<(), String> {
    if !scheduler.readiness().ready {
        return Ok(());
    }
    let Some(held) = claims_of_shards(scheduler, settings) else { return Ok(()) };
    check_directory(scheduler, &held)?;
    let Err(found) = check_waiting(scheduler, settings) else {
        *suspected = None;
        return Ok(());
    };
    match suspected {
        Some((before, since_ms)) if *before == found && now_ms - *since_ms > PATIENCE_MS => Err(found),
        Some((before, _)) if *before == found => Ok(()),
        suspected => {
            *suspected = Some((found, now_ms));
            Ok(())
        }
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
                if queued.pools.contains(&present.number)
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
