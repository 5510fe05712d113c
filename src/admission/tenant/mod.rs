//! Quotas of tenants, and the resources that each tenant holds.
//!
//! A tenant's *charge* for a claim is part of the claim's entry in the key directory
//! ([`crate::admission::key`]). It is taken when the key is found vacant, before any worker is asked, and
//! released with the entry, whatever ends that. So usage equals what the directory holds, by construction (`U1`), and
//! nothing is released twice.
//!
//! One lock per tenant makes "compare and charge" a single step for all resources. With one counter per resource, two
//! requests could reject each other for capacity that both then release.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam::queue::SegQueue;
use dashmap::DashMap;
use hashbrown::DefaultHashBuilder;
use smallvec::SmallVec;

use crate::admission::queue::WaitQueue;
use crate::model::{ClaimId, ClaimSpec, Quota, QuotaResource, QuotaSource, ResourceUsage};

/// Number of tenants from which unused ones are collected.
const GC_THRESHOLD_MIN: usize = 1_024;

/// All tenants that hold resources or recently did, and all quotas.
#[derive(Debug)]
pub struct TenantRegistry {
    /// Tenants by `namespace/tenant`, as bytes, so that a lookup need not validate UTF-8 again.
    map: DashMap<Arc<[u8]>, Arc<Tenant>, DefaultHashBuilder>,
    /// Quotas by `namespace/tenant`, or by `namespace` for its tenants without a quota of their own.
    quotas: Mutex<BTreeMap<String, Quota>>,
    /// Tenants that released resources for which claims of theirs may wait.
    retry_queue: Arc<SegQueue<Arc<Tenant>>>,
    /// Number of tenants at which unused ones are collected.
    gc_threshold: AtomicUsize,
    numbers: AtomicU64,
}

impl Default for TenantRegistry {
    fn default() -> Self {
        Self {
            map: DashMap::with_hasher(DefaultHashBuilder::default()),
            quotas: Mutex::default(),
            retry_queue: Arc::default(),
            gc_threshold: AtomicUsize::new(GC_THRESHOLD_MIN),
            numbers: AtomicU64::new(0),
        }
    }
}

/// Tenant of a namespace, with its quota account.
#[derive(Debug)]
pub struct Tenant {
    /// Name in the form `namespace/tenant`.
    pub name: Arc<str>,
    /// Number in this process; never reused.
    pub number: u64,
    account: Mutex<QuotaAccount>,
    /// Claims that wait because the tenant's quota is used up.
    pub wait_queue: WaitQueue,
    /// Whether the tenant is in `retry_queue`.
    is_retry_queued: AtomicBool,
    retry_queue: Arc<SegQueue<Arc<Self>>>,
}

#[derive(Debug)]
struct QuotaAccount {
    used: ResourceUsage,
    limits: ResourceUsage,
    weight: u32,
    /// Usage by pool, for pools in which the tenant holds anything.
    pools: SmallVec<[(u32, ResourceUsage); 1]>,
}

impl QuotaAccount {
    fn pool(&mut self, pool: u32) -> &mut ResourceUsage {
        let index = self.pools.iter().position(|(existing, _)| *existing == pool).unwrap_or_else(|| {
            self.pools.push((pool, ResourceUsage::default()));
            self.pools.len() - 1
        });
        &mut self.pools[index].1
    }

    fn charge(&mut self, amounts: &ResourceUsage, pool: u32) {
        self.used = self.used.plus(amounts);
        let held = self.pool(pool);
        *held = held.plus(amounts);
    }

    fn release(&mut self, amounts: &ResourceUsage, pool: u32) {
        self.used = self.used.minus(amounts);
        if let Some(index) = self.pools.iter().position(|(existing, _)| *existing == pool) {
            self.pools[index].1 = self.pools[index].1.minus(amounts);
            // The first entry stays: a tenant that claims and releases one claim at a time would add and remove it
            // each time.
            if index > 0 && self.pools[index].1 == ResourceUsage::default() {
                self.pools.swap_remove(index);
            }
        }
    }
}

/// Quota charged to a tenant for one claim; released when dropped.
#[derive(Debug)]
pub struct QuotaLease {
    tenant: Arc<Tenant>,
    spec: Option<Arc<ClaimSpec>>,
    pool: u32,
    /// Charge while requests to change the claim's resources are undecided. Boxed, because there are almost never any.
    resizing: Option<Box<ResizingCharge>>,
}

/// Charge of a claim whose resources may be about to change.
#[derive(Debug)]
struct ResizingCharge {
    /// Largest amounts that the claim may come to hold.
    amounts: ResourceUsage,
    /// Number of requests that are undecided.
    undecided: u32,
}

impl QuotaLease {
    /// Amounts that are charged.
    fn charged(&self) -> ResourceUsage {
        match &self.resizing {
            Some(resizing) => resizing.amounts,
            None => ResourceUsage::of_claim(self.spec.as_deref()),
        }
    }

    /// Moves the charge to the pool in which the claim is held.
    pub fn move_to_pool(&mut self, pool: u32) {
        if self.pool != pool {
            let amounts = self.charged();
            let mut account = self.tenant.account();
            account.release(&amounts, self.pool);
            account.charge(&amounts, pool);
            self.pool = pool;
        }
    }

    /// Charges as if the claim had grown to `spec`, until the request to resize it is decided.
    ///
    /// # Errors
    /// The resource that would exceed the tenant's quota; nothing changed. An amount that does not grow is never
    /// rejected.
    pub fn begin_resize(&mut self, spec: &ClaimSpec) -> Result<(), QuotaResource> {
        let before = self.charged();
        let after = before.max(&ResourceUsage::of_claim(Some(spec)));
        {
            let mut account = self.tenant.account();
            let more = after.minus(&before);
            if let Some(exceeded) = account.used.first_exceeded(&more, &account.limits) {
                return Err(exceeded);
            }
            account.release(&before, self.pool);
            account.charge(&after, self.pool);
        }
        let undecided = self.resizing.take().map_or(0, |resizing| resizing.undecided) + 1;
        self.resizing = Some(Box::new(ResizingCharge { amounts: after, undecided }));
        Ok(())
    }

    /// Ends a request to resize: charges for `spec`, which the claim holds now, or for what it held before.
    pub fn end_resize(&mut self, spec: Option<Option<Arc<ClaimSpec>>>) {
        if let Some(spec) = spec {
            self.spec = spec;
        }
        let Some(resizing) = &mut self.resizing else { return };
        resizing.undecided -= 1;
        if resizing.undecided == 0 {
            let spec = self.spec.take();
            self.set(spec);
        }
    }

    /// Charges for `spec` regardless of the quota, because the claim is held like that.
    pub fn set(&mut self, spec: Option<Arc<ClaimSpec>>) {
        let (before, after) = (self.charged(), ResourceUsage::of_claim(spec.as_deref()));
        {
            let mut account = self.tenant.account();
            account.release(&before, self.pool);
            account.charge(&after, self.pool);
        }
        (self.spec, self.resizing) = (spec, None);
        self.tenant.queue_retry();
    }
}

impl Drop for QuotaLease {
    fn drop(&mut self) {
        self.tenant.account().release(&self.charged(), self.pool);
        self.tenant.queue_retry();
    }
}

impl Tenant {
    fn account(&self) -> MutexGuard<'_, QuotaAccount> {
        self.account.lock()
    }

    /// Schedules a retry of the claims that wait for the quota, at the next tick at the latest.
    pub fn queue_retry(self: &Arc<Self>) {
        if self.wait_queue.has_waiting() && !self.is_retry_queued.swap(true, Ordering::AcqRel) {
            self.retry_queue.push(Arc::clone(self));
        }
    }

    /// Charges without checking the quota: the claim is held already.
    fn charge(self: &Arc<Self>, spec: Option<Arc<ClaimSpec>>, pool: u32) -> QuotaLease {
        let amounts = ResourceUsage::of_claim(spec.as_deref());
        let mut account = self.account();
        account.used = account.used.plus(&amounts);
        *account.pool(pool) = account.pool(pool).plus(&amounts);
        drop(account);
        QuotaLease { tenant: Arc::clone(self), spec, pool, resizing: None }
    }

    /// Resources that the tenant holds.
    #[must_use]
    pub fn used(&self) -> ResourceUsage {
        self.account().used
    }

    /// Dominant share of a pool with `total` resources, divided by the tenant's weight, in units of 2^-32 of the pool:
    /// the largest fraction that the tenant holds of any resource (Ghodsi et al., *Dominant Resource Fairness*, 2011).
    #[must_use]
    pub fn dominant_share(&self, pool: u32, total: &ResourceUsage) -> u64 {
        let account = self.account();
        let Some((_, held)) = account.pools.iter().find(|(existing, _)| *existing == pool) else { return 0 };
        let part = |(held, total): (u64, u64)| ((u128::from(held) << 32) / u128::from(total.max(1))) as u64;
        let largest = held.to_array().into_iter().zip(total.to_array()).map(part).max().unwrap_or(0);
        largest / u64::from(account.weight.max(1))
    }
}

impl TenantRegistry {
    /// Tenant that owns the claim; created if unknown.
    pub fn get_or_insert(&self, id: &ClaimId) -> Arc<Tenant> {
        match self.map.get(id.owner_bytes()) {
            Some(tenant) => Arc::clone(&tenant),
            None => self.insert(id.owner().into()),
        }
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
            let account = QuotaAccount {
                used: ResourceUsage::default(),
                limits: quota.limits(),
                weight: quota.weight,
                pools: SmallVec::new(),
            };
            Arc::new(Tenant {
                name,
                number: self.numbers.fetch_add(1, Ordering::Relaxed),
                account: Mutex::new(account),
                wait_queue: WaitQueue::default(),
                is_retry_queued: AtomicBool::new(false),
                retry_queue: Arc::clone(&self.retry_queue),
            })
        });
        Arc::clone(&entry)
    }

    /// Removes tenants that are not referenced. A walk, each time their number has doubled.
    fn collect_unused(&self) {
        self.map.retain(|_, tenant| Arc::strong_count(tenant) > 1);
        self.gc_threshold.store((self.map.len() * 2).max(GC_THRESHOLD_MIN), Ordering::Relaxed);
    }

    /// Charges a new claim for the part `spec` of its request.
    ///
    /// # Errors
    /// The resource that would exceed the tenant's quota; nothing is charged.
    pub fn try_charge(
        &self,
        id: &ClaimId,
        spec: Option<&Arc<ClaimSpec>>,
        pool: u32,
    ) -> Result<QuotaLease, QuotaResource> {
        let tenant = self.get_or_insert(id);
        let amounts = ResourceUsage::of_claim(spec.map(|spec| &**spec));
        {
            let mut account = tenant.account();
            if let Some(exceeded) = account.used.first_exceeded(&amounts, &account.limits) {
                return Err(exceeded);
            }
            account.used = account.used.plus(&amounts);
            *account.pool(pool) = account.pool(pool).plus(&amounts);
        }
        Ok(QuotaLease { tenant, spec: spec.cloned(), pool, resizing: None })
    }

    /// Charges a claim that is held already, without checking the quota.
    pub fn charge(&self, id: &ClaimId, spec: Option<Arc<ClaimSpec>>, pool: u32) -> QuotaLease {
        self.get_or_insert(id).charge(spec, pool)
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
        for tenant in self.map.iter().filter(|tenant| applies(&tenant.name)) {
            let (quota, _) = effective_quota(&quotas, &tenant.name);
            {
                let mut account = tenant.account();
                (account.limits, account.weight) = (quota.limits(), quota.weight);
            }
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

    /// Effective quota of a tenant, its usage, and the number of its claims that wait for the quota.
    #[must_use]
    pub fn quota_usage(&self, name: &str) -> (Quota, QuotaSource, ResourceUsage, u64) {
        let (quota, source) = effective_quota(&self.quotas(), name);
        let existing = self.map.get(name.as_bytes()).map(|tenant| Arc::clone(&tenant));
        let (used, waiting) =
            existing.map_or_else(Default::default, |tenant| (tenant.used(), tenant.wait_queue.waiting() as u64));
        (quota, source, used, waiting)
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
