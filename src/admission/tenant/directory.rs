//! Directory of all tenants and quotas.
//!
//! Most requests of a thread name the tenant of the one before. So each thread keeps the tenant that it found last,
//! with a reference: collection removes only tenants that nobody refers to, so a kept one is still in the directory. It
//! costs one tenant of memory per thread.

use parking_lot::{Mutex, MutexGuard};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam::queue::SegQueue;
use dashmap::DashMap;

use super::owner_hasher::OwnerHasher;
use super::{ChargeRank, QuotaLease, Tenant, TenantAccount};
use crate::model::{ClaimId, ClaimSpec, Quota, QuotaHeadroom, QuotaResource, QuotaSource, ResourceUsage};

/// Number of tenants from which unused ones are collected.
const GC_THRESHOLD_MIN: usize = 1_024;

/// Locks of the map: the same number on every machine, because it decides the order of a walk.
const MAP_SHARDS: usize = 64;

/// All tenants that hold resources or recently did, and all quotas.
#[derive(Debug)]
pub struct TenantDirectory {
    /// Tenants by `namespace/tenant`, as bytes, so that a lookup need not validate UTF-8 again.
    map: DashMap<Arc<[u8]>, Arc<Tenant>, BuildHasherDefault<OwnerHasher>>,
    /// Quotas by `namespace/tenant`, or by `namespace` for its tenants without a quota of their own.
    quotas: Mutex<BTreeMap<String, Quota>>,
    /// Tenants that released resources for which claims of theirs may wait.
    retry_queue: Arc<SegQueue<Arc<Tenant>>>,
    /// Number of tenants at which unused ones are collected.
    gc_threshold: AtomicUsize,
    numbers: AtomicU64,
}

impl Default for TenantDirectory {
    fn default() -> Self {
        Self {
            map: DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), MAP_SHARDS),
            quotas: Mutex::default(),
            retry_queue: Arc::default(),
            gc_threshold: AtomicUsize::new(GC_THRESHOLD_MIN),
            numbers: AtomicU64::new(0),
        }
    }
}

thread_local! {
    /// Tenant that this thread found last, in whichever directory.
    static LAST_TENANT: RefCell<Option<Arc<Tenant>>> = const { RefCell::new(None) };
}

impl TenantDirectory {
    /// Tenant that owns the claim; created if unknown.
    #[inline]
    pub fn get_or_insert(&self, id: &ClaimId) -> Arc<Tenant> {
        let is_owner = |tenant: &&Arc<Tenant>| *tenant.name.as_bytes() == *id.owner_bytes() && self.contains(tenant);
        LAST_TENANT.with_borrow(|last| last.as_ref().filter(is_owner).cloned()).unwrap_or_else(|| self.find(id))
    }

    /// Whether the tenant is of this directory, which shares its retry queue with its tenants alone.
    fn contains(&self, tenant: &Tenant) -> bool {
        Arc::ptr_eq(&tenant.retry_queue, &self.retry_queue)
    }

    /// Tenant that owns the claim, which this thread keeps for the next lookup; created if unknown.
    fn find(&self, id: &ClaimId) -> Arc<Tenant> {
        let existing = self.map.get(id.owner_bytes()).map(|tenant| Arc::clone(&tenant));
        let tenant = existing.unwrap_or_else(|| self.insert(id.owner().into()));
        // Dropped outside of the cell: it may be the last reference to a tenant of a directory that is gone.
        drop(LAST_TENANT.replace(Some(Arc::clone(&tenant))));
        tenant
    }

    #[cold]
    fn insert(&self, name: Arc<str>) -> Arc<Tenant> {
        if self.map.len() >= self.gc_threshold.load(Ordering::Relaxed) {
            self.collect_unused();
        }
        // The lock ensures that a quota set meanwhile does not miss a tenant that is not in the map yet.
        let quotas = self.quotas();
        let entry = self.map.entry(Arc::clone(&name).into()).or_insert_with(|| {
            let (quota, _) = effective_quota(&quotas, &name);
            Arc::new(Tenant {
                name,
                number: self.numbers.fetch_add(1, Ordering::Relaxed),
                account: Mutex::new(TenantAccount::new(&quota)),
                waiting: AtomicUsize::new(0),
                waiting_in: Mutex::default(),
                is_retry_queued: AtomicBool::new(false),
                retry_queue: Arc::clone(&self.retry_queue),
            })
        });
        Arc::clone(&entry)
    }

    /// Removes tenants that nobody refers to: no claim, no queue, no thread that found one last. A walk, each time
    /// their number has doubled.
    fn collect_unused(&self) {
        self.map.retain(|_, tenant| Arc::strong_count(tenant) > 1);
        self.gc_threshold.store((self.map.len() * 2).max(GC_THRESHOLD_MIN), Ordering::Relaxed);
    }

    /// Charges a new claim for the part `spec` of its request.
    ///
    /// # Errors
    /// The resource that would exceed the tenant's quota; nothing is charged.
    #[inline]
    pub fn try_charge(
        &self,
        id: &ClaimId,
        spec: Option<&Arc<ClaimSpec>>,
        pool: u32,
        rank: ChargeRank,
    ) -> Result<QuotaLease, QuotaResource> {
        QuotaLease::charge(self.get_or_insert(id), spec, pool, rank)
    }

    /// Charges a claim that is held already, without checking the quota.
    pub fn charge(&self, id: &ClaimId, spec: Option<Arc<ClaimSpec>>, pool: u32) -> QuotaLease {
        QuotaLease::charge_unchecked(self.get_or_insert(id), spec, pool)
    }

    /// Whether some tenant released resources while claims of it wait.
    #[must_use]
    pub fn has_retries(&self) -> bool {
        !self.retry_queue.is_empty()
    }

    /// Next tenant that released resources while claims of it wait.
    pub fn next_retry(&self) -> Option<Arc<Tenant>> {
        let tenant = self.retry_queue.pop()?;
        tenant.is_retry_queued.store(false, Ordering::Release);
        Some(tenant)
    }

    /// Sets or removes a quota of `namespace/tenant`, or of `namespace` for its tenants without a quota of their own.
    /// Held resources stay; claims that wait are retried by the consumer of [`Self::next_retry`].
    pub fn set_quota(&self, name: &str, quota: Option<Quota>) {
        let mut quotas = self.quotas();
        match quota {
            Some(quota) => drop(quotas.insert(name.to_owned(), quota)),
            None => drop(quotas.remove(name)),
        }
        let applies =
            |tenant: &str| tenant == name || tenant.strip_prefix(name).is_some_and(|suffix| suffix.starts_with('/'));
        let tenants = self.map.iter().filter(|tenant| applies(&tenant.name));
        let mut tenants: Vec<_> = tenants.map(|tenant| Arc::clone(&tenant)).collect();
        tenants.sort_unstable_by_key(|tenant| tenant.number);
        for tenant in tenants {
            let (quota, _) = effective_quota(&quotas, &tenant.name);
            tenant.with_account(|account| account.set_limits(&quota));
            tenant.queue_retry();
        }
    }

    /// Quota that is set under exactly this name.
    #[must_use]
    pub fn quota(&self, name: &str) -> Option<Quota> {
        self.quotas().get(name).cloned()
    }

    /// Names and quotas that are set, after `from` in the order of names.
    #[must_use]
    pub fn quotas_after(&self, from: Option<&str>, limit: usize) -> Vec<(String, Quota)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let quotas = self.quotas();
        let after = quotas.range::<str, _>((from.map_or(Unbounded, Excluded), Unbounded));
        after.take(limit).map(|(name, quota)| (name.clone(), quota.clone())).collect()
    }

    /// Number of quotas that are set.
    #[must_use]
    pub fn quotas_len(&self) -> usize {
        self.quotas().len()
    }

    /// Tenant with this name, if it holds anything or recently did.
    #[must_use]
    pub fn find_by_name(&self, name: &str) -> Option<Arc<Tenant>> {
        self.map.get(name.as_bytes()).map(|tenant| Arc::clone(&tenant))
    }

    /// Effective quota of a tenant, and its usage.
    #[must_use]
    pub fn quota_usage(&self, name: &str) -> (Quota, QuotaSource, ResourceUsage) {
        let (quota, source) = effective_quota(&self.quotas(), name);
        let used = self.find_by_name(name).map_or_else(ResourceUsage::default, |tenant| tenant.used());
        (quota, source, used)
    }

    /// Amounts that the quota leaves a claim of this rank, and the resource that would keep it back with these amounts.
    /// Charges nothing, and creates no tenant.
    #[must_use]
    pub fn preview_charge(
        &self,
        id: &ClaimId,
        amounts: &ResourceUsage,
        rank: ChargeRank,
    ) -> (QuotaHeadroom, Option<QuotaResource>) {
        let preview = |account: &TenantAccount| (account.headroom_of(rank), account.first_refused(amounts, rank));
        match self.find_by_name(id.owner()) {
            Some(tenant) => tenant.with_account(|account| preview(account)),
            None => preview(&TenantAccount::new(&effective_quota(&self.quotas(), id.owner()).0)),
        }
    }

    /// All tenants that hold anything, for tests that check for leaks.
    #[must_use]
    pub fn in_use(&self) -> BTreeMap<String, ResourceUsage> {
        let used = self.map.iter().map(|tenant| (tenant.name.to_string(), tenant.used()));
        used.filter(|(_, used)| *used != ResourceUsage::default()).collect()
    }

    fn quotas(&self) -> MutexGuard<'_, BTreeMap<String, Quota>> {
        self.quotas.lock()
    }
}

/// Effective quota of `namespace/tenant`.
fn effective_quota(quotas: &BTreeMap<String, Quota>, name: &str) -> (Quota, QuotaSource) {
    if let Some(own) = quotas.get(name) {
        return (own.clone(), QuotaSource::Tenant);
    }
    match name.split_once('/').and_then(|(namespace, _)| quotas.get(namespace)) {
        Some(quota) => (quota.clone(), QuotaSource::Namespace),
        None => (Quota::default(), QuotaSource::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(tenant: &str) -> ClaimId {
        ClaimId::new("ns", tenant, "key").unwrap()
    }

    /// Tenant as the map has it, past what threads keep.
    fn in_map(tenants: &TenantDirectory, tenant: &str) -> Option<Arc<Tenant>> {
        tenants.map.get(id(tenant).owner_bytes()).map(|tenant| Arc::clone(&tenant))
    }

    /// Directory of which this thread has found many tenants, `last` as the last one.
    fn crowded(last: &str) -> TenantDirectory {
        let tenants = TenantDirectory::default();
        for number in 0..GC_THRESHOLD_MIN - 1 {
            tenants.get_or_insert(&id(&format!("t{number}")));
        }
        tenants.get_or_insert(&id(last));
        assert_eq!(tenants.map.len(), GC_THRESHOLD_MIN);
        tenants
    }

    #[test]
    fn a_tenant_that_a_thread_keeps_is_not_collected() {
        let tenants = crowded("kept");
        let kept = Arc::as_ptr(&tenants.get_or_insert(&id("kept")));
        tenants.collect_unused();
        assert_eq!(tenants.map.len(), 1, "the others are collected");
        assert_eq!(Arc::as_ptr(&in_map(&tenants, "kept").expect("a tenant that a thread keeps stays")), kept);
        assert_eq!(Arc::as_ptr(&tenants.get_or_insert(&id("kept"))), kept);
    }

    #[test]
    fn a_collected_tenant_is_not_used_again() {
        let tenants = crowded("first");
        let first = tenants.get_or_insert(&id("first")).number;
        // The insertion finds the map full, but the thread keeps the first tenant until it has found the other.
        let other = tenants.get_or_insert(&id("other"));
        assert!(in_map(&tenants, "first").is_some());
        tenants.collect_unused();
        assert!(in_map(&tenants, "first").is_none());
        let again = tenants.get_or_insert(&id("first"));
        assert_ne!(again.number, first, "numbers are never reused");
        assert!(Arc::ptr_eq(&again, &in_map(&tenants, "first").unwrap()));
        assert!(Arc::ptr_eq(&other, &in_map(&tenants, "other").unwrap()), "a tenant in use stays");
    }

    #[test]
    fn directories_of_one_thread_do_not_share_tenants() {
        let [a, b] = [(); 2].map(|()| TenantDirectory::default());
        let lease = a.charge(&id("same"), None, 0);
        let [of_a, of_b] = [&a, &b].map(|tenants| tenants.get_or_insert(&id("same")));
        assert_eq!((of_a.used().claims, of_b.used().claims), (1, 0));
        assert!(Arc::ptr_eq(&of_a, &a.get_or_insert(&id("same"))));
        drop(lease);
        assert!(a.in_use().is_empty() && b.in_use().is_empty());
    }

    #[test]
    fn a_directory_that_is_gone_leaves_one_tenant_with_its_thread() {
        let tenants = crowded("last");
        let (last, before) =
            (Arc::downgrade(&in_map(&tenants, "last").unwrap()), Arc::downgrade(&in_map(&tenants, "t0").unwrap()));
        drop(tenants);
        assert!(last.upgrade().is_some() && before.upgrade().is_none());
        TenantDirectory::default().get_or_insert(&id("last"));
        assert!(last.upgrade().is_none(), "replaced by the tenant of the other directory");
    }

    #[test]
    fn one_tenant_of_many_threads_is_one_account() {
        let tenants = TenantDirectory::default();
        tenants.set_quota("ns/t", Some(Quota { claims: Some(3), ..Quota::default() }));
        let start = std::sync::Barrier::new(4);
        let leases: Vec<_> = std::thread::scope(|scope| {
            let charge = || {
                start.wait();
                (0..2)
                    .filter_map(|_| {
                        tenants.try_charge(&id("t"), None, 0, ChargeRank { priority: 0, arrival: None }).ok()
                    })
                    .collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(charge)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(leases.len(), 3, "exactly as many as the quota allows");
        drop(leases);
        assert!(tenants.in_use().is_empty());
    }

    #[test]
    fn a_walk_visits_tenants_in_the_order_of_their_history() {
        let names = || {
            let tenants = TenantDirectory::default();
            (0..50).for_each(|number| drop(tenants.get_or_insert(&id(&format!("t{number}")))));
            tenants.map.iter().map(|tenant| tenant.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(), names());
    }
}
