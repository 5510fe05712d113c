//! What each tenant holds, and how much it may.
//!
//! A tenant's *charge* for a claim is part of the claim's entry in the key directory ([`crate::admission::key_directory`]): it is taken when the key
//! is found vacant, before any worker is asked, and it goes with the entry, whatever ends that. So use is what the directory
//! holds, by construction (`U1`), and nothing is given back twice.
//!
//! One lock a tenant makes "compare and take" one step for all amounts together: with a counter each, two requests could
//! refuse each other for room that both then give back.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam::queue::SegQueue;
use dashmap::DashMap;
use hashbrown::DefaultHashBuilder;
use smallvec::SmallVec;

use crate::admission::wait_queue::WaitQueue;
use crate::model::{ClaimId, ClaimSpec, Quota, QuotaResource, QuotaSource, ResourceUsage};

/// Tenants that are known before unused ones are forgotten.
const GC_THRESHOLD_MIN: usize = 1_024;

/// All tenants that hold something or lately did, and all quotas.
#[derive(Debug)]
pub struct TenantRegistry {
    /// By `namespace/tenant`; bytes, so that a look need not prove again that they are text.
    map: DashMap<Arc<[u8]>, Arc<Tenant>, DefaultHashBuilder>,
    /// By `namespace/tenant`, or by `namespace` for its tenants without their own.
    quotas: Mutex<BTreeMap<String, Quota>>,
    /// Tenants that were given something back for which some claim of theirs may wait.
    retry_queue: Arc<SegQueue<Arc<Tenant>>>,
    /// Unused tenants are forgotten when there are so many.
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

/// One tenant of a namespace.
#[derive(Debug)]
pub struct Tenant {
    /// `namespace/tenant`.
    pub name: Arc<str>,
    /// Number in this process; never used again.
    pub number: u64,
    account: Mutex<QuotaAccount>,
    /// Claims that wait because its quota is used up.
    pub wait_queue: WaitQueue,
    /// It stands in `freed`.
    is_retry_queued: AtomicBool,
    retry_queue: Arc<SegQueue<Arc<Self>>>,
}

#[derive(Debug)]
struct QuotaAccount {
    used: ResourceUsage,
    limits: ResourceUsage,
    weight: u32,
    /// By pool, of those in which it holds anything.
    pools: SmallVec<[(u32, ResourceUsage); 1]>,
}

impl QuotaAccount {
    fn pool(&mut self, pool: u32) -> &mut ResourceUsage {
        let at = self.pools.iter().position(|(known, _)| *known == pool).unwrap_or_else(|| {
            self.pools.push((pool, ResourceUsage::default()));
            self.pools.len() - 1
        });
        &mut self.pools[at].1
    }

    fn release(&mut self, amounts: &ResourceUsage, pool: u32) {
        self.used = self.used.minus(amounts);
        if let Some(at) = self.pools.iter().position(|(known, _)| *known == pool) {
            self.pools[at].1 = self.pools[at].1.minus(amounts);
            // The first stays: a tenant that claims and releases one at a time would come and go.
            if at > 0 && self.pools[at].1 == ResourceUsage::default() {
                self.pools.swap_remove(at);
            }
        }
    }
}

/// What a claim counts for with its tenant, until it is dropped.
#[derive(Debug)]
pub struct QuotaLease {
    tenant: Arc<Tenant>,
    spec: Option<Arc<ClaimSpec>>,
    pool: u32,
}

impl QuotaLease {
    /// It is held in this pool.
    pub fn move_to_pool(&mut self, pool: u32) {
        if self.pool != pool {
            let amounts = ResourceUsage::of_claim(self.spec.as_deref());
            let mut account = self.tenant.account();
            account.release(&amounts, self.pool);
            account.used = account.used.plus(&amounts);
            *account.pool(pool) = account.pool(pool).plus(&amounts);
            self.pool = pool;
        }
    }

    /// It counts for what `spec` asks for from now on. Returns what it counted for.
    ///
    /// # Errors
    /// What would be over the tenant's quota; nothing changed. An amount that does not grow is never refused.
    pub fn resize(&mut self, spec: Option<Arc<ClaimSpec>>) -> Result<Option<Arc<ClaimSpec>>, QuotaResource> {
        let (before, after) = (ResourceUsage::of_claim(self.spec.as_deref()), ResourceUsage::of_claim(spec.as_deref()));
        {
            let mut account = self.tenant.account();
            let more = after.minus(&before);
            if let Some(over) = account.used.first_exceeded(&more, &account.limits) {
                return Err(over);
            }
            account.release(&before, self.pool);
            account.used = account.used.plus(&after);
            *account.pool(self.pool) = account.pool(self.pool).plus(&after);
        }
        self.tenant.on_released();
        Ok(std::mem::replace(&mut self.spec, spec))
    }

    /// The same, whatever the quota says: it is held like that.
    pub fn set(&mut self, spec: Option<Arc<ClaimSpec>>) {
        let tenant = Arc::clone(&self.tenant);
        let pool = self.pool;
        *self = tenant.charge(spec, pool);
    }
}

impl Drop for QuotaLease {
    fn drop(&mut self) {
        self.tenant.account().release(&ResourceUsage::of_claim(self.spec.as_deref()), self.pool);
        self.tenant.on_released();
    }
}

impl Tenant {
    fn account(&self) -> MutexGuard<'_, QuotaAccount> {
        self.account.lock()
    }

    /// Something was given back, or more is allowed: claims that wait for that may be lucky.
    fn on_released(self: &Arc<Self>) {
        self.queue_retry();
    }

    /// Claims that wait for its quota are looked at by the next tick, if not before.
    pub fn queue_retry(self: &Arc<Self>) {
        if self.wait_queue.has_waiters() && !self.is_retry_queued.swap(true, Ordering::AcqRel) {
            self.retry_queue.push(Arc::clone(self));
        }
    }

    /// A charge that nobody asked for: what it stands for is held already.
    fn charge(self: &Arc<Self>, spec: Option<Arc<ClaimSpec>>, pool: u32) -> QuotaLease {
        let amounts = ResourceUsage::of_claim(spec.as_deref());
        let mut account = self.account();
        account.used = account.used.plus(&amounts);
        *account.pool(pool) = account.pool(pool).plus(&amounts);
        drop(account);
        QuotaLease { tenant: Arc::clone(self), spec, pool }
    }

    /// What it holds.
    #[must_use]
    pub fn used(&self) -> ResourceUsage {
        self.account().used
    }

    /// Its dominant share of a pool that has `total`, by its weight: the largest part that it holds of any amount (Ghodsi et
    /// al., *Dominant Resource Fairness*, 2011), in 2^-32 of the pool.
    #[must_use]
    pub fn dominant_share(&self, pool: u32, total: &ResourceUsage) -> u64 {
        let account = self.account();
        let Some((_, held)) = account.pools.iter().find(|(known, _)| *known == pool) else { return 0 };
        let part = |(held, total): (u64, u64)| ((u128::from(held) << 32) / u128::from(total.max(1))) as u64;
        let largest = held.to_array().into_iter().zip(total.to_array()).map(part).max().unwrap_or(0);
        largest / u64::from(account.weight.max(1))
    }
}

impl TenantRegistry {
    /// The tenant of a claim.
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
        // The lock keeps a quota that is put meanwhile from passing by a tenant that does not have it yet.
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

    /// Forgets tenants that nobody has to do with. A walk, each time that their number has doubled.
    fn collect_unused(&self) {
        self.map.retain(|_, tenant| Arc::strong_count(tenant) > 1);
        self.gc_threshold.store((self.map.len() * 2).max(GC_THRESHOLD_MIN), Ordering::Relaxed);
    }

    /// A claim that keeps `spec` of its request counts from now on.
    ///
    /// # Errors
    /// What would be over the tenant's quota; nothing is taken.
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
            if let Some(over) = account.used.first_exceeded(&amounts, &account.limits) {
                return Err(over);
            }
            account.used = account.used.plus(&amounts);
            *account.pool(pool) = account.pool(pool).plus(&amounts);
        }
        Ok(QuotaLease { tenant, spec: spec.cloned(), pool })
    }

    /// The same of a claim that is held already.
    pub fn charge(&self, id: &ClaimId, spec: Option<Arc<ClaimSpec>>, pool: u32) -> QuotaLease {
        self.get_or_insert(id).charge(spec, pool)
    }

    /// The next tenant that was given something back while claims of it wait.
    pub fn next_retry(&self) -> Option<Arc<Tenant>> {
        let tenant = self.retry_queue.pop()?;
        tenant.is_retry_queued.store(false, Ordering::Release);
        Some(tenant)
    }

    /// Sets a quota, of `namespace/tenant` or of `namespace` for its tenants without their own; none: there is none any more.
    /// What is held stays; claims that wait for more are looked at by whoever works off [`Self::next_retry`].
    pub fn set_quota(&self, name: &str, quota: Option<Quota>) {
        let mut quotas = self.quotas();
        match quota {
            Some(quota) => drop(quotas.insert(name.to_owned(), quota)),
            None => drop(quotas.remove(name)),
        }
        let meant =
            |tenant: &str| tenant == name || tenant.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        for tenant in self.map.iter().filter(|tenant| meant(&tenant.name)) {
            let (quota, _) = effective_quota(&quotas, &tenant.name);
            {
                let mut account = tenant.account();
                (account.limits, account.weight) = (quota.limits(), quota.weight);
            }
            tenant.on_released();
        }
    }

    /// The quota that was set under this very name.
    #[must_use]
    pub fn quota(&self, name: &str) -> Option<Quota> {
        self.quotas().get(name).cloned()
    }

    /// Names and quotas that were set, after `from` in the order of names.
    #[must_use]
    pub fn quotas_after(&self, from: Option<&str>, limit: usize) -> Vec<(String, Quota)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let quotas = self.quotas();
        let after = quotas.range::<str, _>((from.map_or(Unbounded, Excluded), Unbounded));
        after.take(limit).map(|(name, quota)| (name.clone(), quota.clone())).collect()
    }

    /// How many were set.
    #[must_use]
    pub fn quotas_len(&self) -> usize {
        self.quotas().len()
    }

    /// What holds for a tenant, what it holds, and how many of its claims wait for its quota.
    #[must_use]
    pub fn quota_usage(&self, name: &str) -> (Quota, QuotaSource, ResourceUsage, u64) {
        let (quota, source) = effective_quota(&self.quotas(), name);
        let known = self.map.get(name.as_bytes()).map(|tenant| Arc::clone(&tenant));
        let (used, waiting) =
            known.map_or_else(Default::default, |tenant| (tenant.used(), tenant.wait_queue.waiting() as u64));
        (quota, source, used, waiting)
    }

    /// All that hold anything: for tests that look for leftovers.
    #[must_use]
    pub fn in_use(&self) -> BTreeMap<String, ResourceUsage> {
        let used = self.map.iter().map(|tenant| (tenant.name.to_string(), tenant.used()));
        used.filter(|(_, used)| *used != ResourceUsage::default()).collect()
    }

    fn quotas(&self) -> MutexGuard<'_, BTreeMap<String, Quota>> {
        self.quotas.lock()
    }
}

/// The quota that holds for `namespace/tenant`.
fn effective_quota(quotas: &BTreeMap<String, Quota>, name: &str) -> (Quota, QuotaSource) {
    if let Some(own) = quotas.get(name) {
        return (own.clone(), QuotaSource::Tenant);
    }
    match name.split_once('/').and_then(|(namespace, _)| quotas.get(namespace)) {
        Some(quota) => (quota.clone(), QuotaSource::Namespace),
        None => (Quota::default(), QuotaSource::None),
    }
}
