//! Evictions within a tenant: a claim that only the quota of its tenant keeps back may have claims of lower priority of the
//! same tenant evicted, in pools with preemption. Quota is nobody else's fault, so nobody else is evicted for it.
//!
//! All shards that may have victims are asked first. Nobody is evicted unless that makes the claim fit the quota, and
//! what is given back is kept for it by the protection of the account.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::queued_claim::{ArrivalNumber, QueuedClaim};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::pool_registry::Pool;
use crate::engine::{ReservationId, TenantVictim};
use crate::limits;
use crate::model::{Millis, ResourceUsage};
use crate::shard::{Command, ShardRef, ShardSet, TenantSurvey};

/// Pause before victims of a tenant are sought again, in milliseconds.
const SEEK_AGAIN_MS: Millis = 1_000;

/// Search for the victims of a claim among those of its tenant.
#[derive(Debug)]
struct OwnSearch {
    claim: Arc<QueuedClaim>,
    /// Shards that have not answered.
    unanswered: usize,
    found: Vec<(ShardRef, TenantVictim)>,
}

/// Searches and evictions within tenants.
#[derive(Debug, Default)]
pub(super) struct OwnEvictions {
    searches: BTreeMap<ReservationId, OwnSearch>,
    /// Claims for which others are being released or sought, with the time until which nobody else is evicted, by the
    /// numbers of their tenants.
    busy: BTreeMap<u64, (ArrivalNumber, Millis)>,
}

impl OwnEvictions {
    /// Claim of a tenant for which others of it are evicted.
    pub fn claim_of(&self, tenant: u64, now_ms: Millis) -> Option<ArrivalNumber> {
        self.busy.get(&tenant).filter(|(_, until_ms)| *until_ms > now_ms).map(|(arrival, _)| *arrival)
    }
}

/// Fewest and cheapest of these victims without which the limits of the tenant allow the claim; none if even all of them
/// are not enough.
fn choose_victims(
    mut found: Vec<(ShardRef, TenantVictim)>,
    allows_without: impl Fn(&ResourceUsage) -> bool,
) -> Option<Vec<(ShardRef, TenantVictim)>> {
    // Of equal priority the youngest, which loses the least work.
    found.sort_by_key(|(_, victim)| (victim.priority, Reverse(victim.handle.fence)));
    found.truncate(limits::EVICTED_WORKERS_MAX);
    let sum = |victims: &[(ShardRef, TenantVictim)]| {
        victims.iter().fold(ResourceUsage::default(), |sum, (_, victim)| sum.plus(&victim.amounts))
    };
    let enough = (1..=found.len()).find(|count| allows_without(&sum(&found[..*count])))?;
    found.truncate(enough);
    // The cheap victims chosen first may be unnecessary beside a large one.
    let mut index = 0;
    while index < found.len() {
        let victim = found.remove(index);
        if !allows_without(&sum(&found)) {
            found.insert(index, victim);
            index += 1;
        }
    }
    Some(found)
}

impl ClaimDispatcher {
    /// Seeks victims for the claims that only the quotas of their tenants keep back: one of each tenant at a time.
    pub(super) fn evict_own(&self, now_ms: Millis, work: &mut EffectQueue) {
        let pools = self.pools.load_full();
        let mut best: BTreeMap<u64, Arc<QueuedClaim>> = BTreeMap::new();
        for pool in pools.iter().filter(|pool| pool.wait_queue.waiting() > 0) {
            let queue = pool.wait_queue.lock();
            for tenant in queue.queue.tenants().filter(|tenant| queue.queue.has_quota_short(tenant.number)) {
                let headroom = tenant.headroom();
                let lacks_quota = |claim: &QueuedClaim| {
                    claim.may_evict() && headroom.is_exceeded_by(&claim.amounts()) && tenant.allows(&claim.amounts())
                };
                let Some(claim) = queue.queue.first_of_tenant(tenant.number, lacks_quota) else { continue };
                let rank = |claim: &QueuedClaim| (Reverse(claim.priority), claim.arrival);
                if best.get(&tenant.number).is_none_or(|other| rank(claim) < rank(other)) {
                    best.insert(tenant.number, Arc::clone(claim));
                }
            }
        }
        let mut own = self.wait_queues.own_evictions.lock();
        own.busy.retain(|_, (_, until_ms)| *until_ms > now_ms);
        let mut surveys = Vec::new();
        for (tenant, claim) in best {
            if own.busy.contains_key(&tenant) {
                continue;
            }
            let shards = shards_with_victims(pools.of_namespace(claim.id.namespace()), claim.priority);
            if shards.is_empty() {
                continue;
            }
            let id = self.keys.ids.next_arrival();
            let survey = |shard: &ShardRef| {
                let survey = TenantSurvey { id, owner: claim.id.clone(), below_priority: claim.priority };
                Effect::Send(*shard, Command::SurveyTenant(survey))
            };
            surveys.extend(shards.iter().map(survey));
            own.busy.insert(tenant, (claim.arrival, now_ms + SEEK_AGAIN_MS));
            own.searches.insert(id, OwnSearch { claim, unanswered: shards.len(), found: Vec::new() });
        }
        drop(own);
        surveys.into_iter().for_each(|survey| work.push(survey));
    }

    /// Takes the victims that a shard has found, and evicts them once all have answered and that is enough.
    pub(crate) fn on_tenant_victims(
        &self,
        from: ShardRef,
        id: ReservationId,
        victims: &[TenantVictim],
        work: &mut EffectQueue,
    ) {
        let now_ms = self.clock.engine_ms();
        let mut own = self.wait_queues.own_evictions.lock();
        let Some(search) = own.searches.get_mut(&id) else { return };
        search.found.extend(victims.iter().map(|victim| (from, *victim)));
        search.unanswered -= 1;
        if search.unanswered > 0 {
            return;
        }
        let Some(OwnSearch { claim, found, .. }) = own.searches.remove(&id) else { return };
        drop(own);
        let pools = self.pools.load();
        let still_waits = claim.pools.iter().filter_map(|&number| pools.by_number(number)).any(|pool| {
            let queue = pool.wait_queue.lock();
            queue.queue.get(claim.arrival).is_some()
        });
        // It may fit by now.
        let tenant = &claim.tenant;
        if !still_waits || tenant.may_charge(&claim.amounts(), claim.charge_rank()) {
            return;
        }
        let amounts = claim.amounts();
        let Some(victims) = choose_victims(found, |released| tenant.allows_without(released, &amounts)) else { return };
        let mut by_shard: BTreeMap<ShardRef, Vec<_>> = BTreeMap::new();
        let mut until_ms = now_ms;
        for (shard, victim) in victims {
            by_shard.entry(shard).or_default().push(victim.handle);
            let releasing_ms = pools.by_number(shard.pool).map_or(0, |pool| pool.spec.load().releasing_ms);
            until_ms = until_ms.max(now_ms + releasing_ms + limits::RESERVE_AFTER_MS);
        }
        self.wait_queues.own_evictions.lock().busy.insert(tenant.number, (claim.arrival, until_ms));
        // What they give back is for this claim.
        tenant.protect(Some(claim.protection()));
        for (shard, claims) in by_shard {
            work.push(Effect::Send(shard, Command::EvictClaims(claims)));
        }
    }
}

/// Shards of those pools that may have claims with a priority below this one which may be evicted.
fn shards_with_victims<'p>(pools: impl Iterator<Item = &'p Arc<Pool>>, priority: u16) -> Vec<ShardRef> {
    let mut shards = Vec::new();
    for pool in pools.filter(|pool| pool.spec.load().preemption && !pool.is_preemption_paused()) {
        let mut visited = ShardSet::default();
        while let Some(shard) = pool.board.shard_to_evict(priority, &visited) {
            visited.insert(shard);
            shards.push(ShardRef { pool: pool.number, shard });
        }
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ClaimHandle;

    fn victim(priority: u16, fence: u64, cpu_milli: u64) -> (ShardRef, TenantVictim) {
        let handle = ClaimHandle { claim: 0, worker: 0, fence };
        let amounts = ResourceUsage { claims: 1, cpu_milli, ..ResourceUsage::default() };
        (ShardRef { pool: 0, shard: 0 }, TenantVictim { handle, priority, amounts })
    }

    #[test]
    fn q13_the_cheapest_victims_are_chosen_and_none_too_many() {
        let fences = |victims: Option<Vec<(ShardRef, TenantVictim)>>| -> Option<Vec<u64>> {
            victims.map(|victims| victims.iter().map(|(_, victim)| victim.handle.fence).collect())
        };
        let found = || vec![victim(2, 1, 4_000), victim(1, 2, 1_000), victim(1, 3, 1_000), victim(3, 4, 9_000)];
        let least = |cpu_milli| move |released: &ResourceUsage| released.cpu_milli >= cpu_milli;
        assert_eq!(fences(choose_victims(found(), least(1_000))), Some(vec![3]), "of equal ones the youngest");
        assert_eq!(fences(choose_victims(found(), least(2_000))), Some(vec![3, 2]));
        assert_eq!(
            fences(choose_victims(found(), least(4_000))),
            Some(vec![1]),
            "the small ones are of no use beside it"
        );
        assert_eq!(fences(choose_victims(found(), least(16_000))), None);
    }
}
