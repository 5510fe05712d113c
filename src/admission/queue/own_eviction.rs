//! Evictions within a tenant: a claim that only the quota of its tenant keeps back may have claims of lower priority of the
//! same tenant evicted, in pools with preemption. Quota is nobody else's fault, so nobody else is evicted for it.
//!
//! All shards that may have victims are asked first. Nobody is evicted unless that makes the claim fit the quota, nor if
//! it would find no worker all the same: where its pools seem full, only claims of these pools count. What is given back
//! is kept for it by the protection of the account.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::preemption::SEEK_AGAIN_MS;
use super::queued_claim::{ArrivalNumber, QueuedClaim};
use crate::admission::dispatch::ClaimDispatcher;
use crate::admission::effect::{Effect, EffectQueue};
use crate::admission::pool_registry::Pool;
use crate::engine::{ReservationId, TenantVictim};
use crate::limits;
use crate::model::{Millis, ResourceUsage};
use crate::shard::{Command, ShardRef, TenantSurvey};

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
    /// Latest search of each tenant that still has a claim to serve.
    latest: BTreeMap<u64, LatestSearch>,
}

/// Latest search for victims of a tenant.
#[derive(Debug, Clone, Copy)]
struct LatestSearch {
    arrival: ArrivalNumber,
    /// Engine time until which no other search begins for the claim.
    until_ms: Millis,
    /// Whether claims are being evicted.
    has_victims: bool,
}

impl OwnEvictions {
    /// Claim of a tenant for which others of it are evicted.
    pub fn claim_of(&self, tenant: u64, now_ms: Millis) -> Option<ArrivalNumber> {
        let latest = self.latest.get(&tenant)?;
        (latest.has_victims && latest.until_ms > now_ms).then_some(latest.arrival)
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
        let is_due = |(tenant, claim): &(u64, Arc<QueuedClaim>)| {
            let own = self.wait_queues.own_evictions.lock();
            let latest = own.latest.get(tenant);
            latest.is_none_or(|latest| latest.arrival != claim.arrival || latest.until_ms <= now_ms)
        };
        // A claim that was served, or has left, leaves the next one of its tenant no time to wait.
        let is_current =
            |tenant: &u64, latest: &LatestSearch| best.get(tenant).is_some_and(|claim| claim.arrival == latest.arrival);
        self.wait_queues.own_evictions.lock().latest.retain(|tenant, latest| is_current(tenant, latest));
        let due: Vec<_> = best.into_iter().filter(is_due).collect();
        let mut shards_by_rank: BTreeMap<(&str, u16), Vec<ShardRef>> = BTreeMap::new();
        for (_, claim) in &due {
            let (namespace, priority) = (claim.id.namespace(), claim.priority);
            let shards = || shards_with_victims(pools.of_namespace(namespace), priority);
            shards_by_rank.entry((namespace, priority)).or_insert_with(shards);
        }
        let mut surveys = Vec::new();
        let mut own = self.wait_queues.own_evictions.lock();
        for (tenant, claim) in &due {
            let (tenant, shards) = (*tenant, &shards_by_rank[&(claim.id.namespace(), claim.priority)]);
            if shards.is_empty() {
                continue;
            }
            let id = self.keys.ids.next_arrival();
            let survey = |shard: &ShardRef| {
                let survey = TenantSurvey { id, owner: claim.id.clone(), below_priority: claim.priority };
                Effect::Send(*shard, Command::SurveyTenant(survey))
            };
            surveys.extend(shards.iter().map(survey));
            let until_ms = now_ms + SEEK_AGAIN_MS;
            own.latest.insert(tenant, LatestSearch { arrival: claim.arrival, until_ms, has_victims: false });
            let claim = Arc::clone(claim);
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
        let Some(OwnSearch { claim, mut found, .. }) = own.searches.remove(&id) else { return };
        drop(own);
        let tenant = &claim.tenant;
        // It may fit by now, or be tried already.
        if !self.keys.stands_still(&claim, now_ms) || tenant.may_charge(&claim.amounts(), claim.charge_rank()) {
            return;
        }
        let pools = self.pools.load();
        if !claim.pools.iter().filter_map(|&number| pools.by_number(number)).any(|pool| may_have_free(pool, &claim)) {
            // Only what these claims give back could serve it.
            found.retain(|(shard, _)| claim.pools.contains(&shard.pool));
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
        let latest = LatestSearch { arrival: claim.arrival, until_ms, has_victims: true };
        self.wait_queues.own_evictions.lock().latest.insert(tenant.number, latest);
        // What they give back is for this claim, as long as it waits.
        tenant.protect(Some(claim.protection()));
        self.wait_queues.protected.lock().push(Arc::clone(tenant));
        for (shard, claims) in by_shard {
            work.push(Effect::Send(shard, Command::EvictClaims(claims)));
        }
    }
}

/// Shards of those pools that may have claims with a priority below this one which may be evicted.
fn shards_with_victims<'p>(pools: impl Iterator<Item = &'p Arc<Pool>>, priority: u16) -> Vec<ShardRef> {
    let preempting = pools.filter(|pool| pool.spec.load().preemption && !pool.is_preemption_paused());
    let shards = preempting.flat_map(|pool| {
        let shards = pool.board.shards_to_evict(priority);
        shards.map(|shard| ShardRef { pool: pool.number, shard })
    });
    shards.collect()
}

/// Whether a pool seems to have something for a claim.
fn may_have_free(pool: &Pool, claim: &QueuedClaim) -> bool {
    match pool.board.free() {
        None => pool.shards.iter().any(|handle| pool.board.idle(handle.shard.shard) > 0),
        Some(free) => {
            let constraints = claim.class.constraints.as_ref();
            let may_fit = |shard| constraints.is_none_or(|constraints| free.may_fit(shard, constraints));
            pool.board.open_shards().any(may_fit)
        }
    }
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
