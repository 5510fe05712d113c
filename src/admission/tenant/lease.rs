//! Lease of quota: what one claim is charged to its tenant.

use std::sync::Arc;

use super::Tenant;
use super::account::ChargeRank;
use crate::model::{ClaimSpec, QuotaResource, ResourceUsage};

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
    /// Charges a new claim for the part `spec` of its request.
    ///
    /// # Errors
    /// The resource that would exceed the tenant's quota; nothing is charged.
    #[inline]
    pub(super) fn charge(
        tenant: Arc<Tenant>,
        spec: Option<&Arc<ClaimSpec>>,
        pool: u32,
        rank: ChargeRank,
    ) -> Result<Self, QuotaResource> {
        let amounts = ResourceUsage::of_claim(spec.map(|spec| &**spec));
        tenant.with_account(|account| account.charge(&amounts, pool, rank))?;
        tenant.note_share(pool);
        Ok(Self { tenant, spec: spec.cloned(), pool, resizing: None })
    }

    /// Charges a claim that is held already, whatever the quota is.
    pub(super) fn charge_unchecked(tenant: Arc<Tenant>, spec: Option<Arc<ClaimSpec>>, pool: u32) -> Self {
        let lease = Self { tenant, spec, pool, resizing: None };
        lease.tenant.with_account(|account| account.charge_unchecked(&lease.amounts(), pool));
        lease.tenant.note_share(pool);
        lease
    }

    /// Moves the charge to the pool in which the claim is held.
    #[inline]
    pub fn move_to_pool(&mut self, pool: u32) {
        if self.pool != pool {
            let amounts = self.amounts();
            self.tenant.with_account(|account| account.move_to_pool(&amounts, self.pool, pool));
            self.tenant.note_share(self.pool);
            self.tenant.note_share(pool);
            self.pool = pool;
        }
    }

    /// Charges as if the claim had grown to `spec`, until the request to resize it is decided.
    ///
    /// # Errors
    /// The resource that would exceed the tenant's quota; nothing changed. An amount that does not grow is never
    /// rejected.
    pub fn begin_resize(&mut self, spec: &ClaimSpec) -> Result<(), QuotaResource> {
        let before = self.amounts();
        let after = before.max(&ResourceUsage::of_claim(Some(spec)));
        self.tenant.with_account(|account| account.resize(&before, &after, self.pool))?;
        let undecided = self.resizing.take().map_or(0, |resizing| resizing.undecided) + 1;
        self.resizing = Some(Box::new(ResizingCharge { amounts: after, undecided }));
        Ok(())
    }

    /// Ends a request to resize: charges for `spec`, which the claim holds now, or for what it held before.
    pub fn end_resize(&mut self, spec: Option<Option<Arc<ClaimSpec>>>) {
        let changed = spec.is_some();
        let spec = spec.unwrap_or_else(|| self.spec.clone());
        match &mut self.resizing {
            Some(resizing) if resizing.undecided > 1 => {
                resizing.undecided -= 1;
                self.spec = spec;
            }
            Some(_) => self.set(spec),
            None if changed => self.set(spec),
            None => {}
        }
    }

    /// Charges for `spec` regardless of the quota, because the claim is held like that.
    pub fn set(&mut self, spec: Option<Arc<ClaimSpec>>) {
        let (before, after) = (self.amounts(), ResourceUsage::of_claim(spec.as_deref()));
        self.tenant.with_account(|account| account.resize_unchecked(&before, &after, self.pool));
        (self.spec, self.resizing) = (spec, None);
        self.tenant.note_share(self.pool);
        self.tenant.queue_retry();
    }

    /// Amounts that are charged.
    #[inline]
    fn amounts(&self) -> ResourceUsage {
        match &self.resizing {
            Some(resizing) => resizing.amounts,
            None => ResourceUsage::of_claim(self.spec.as_deref()),
        }
    }
}

impl Drop for QuotaLease {
    fn drop(&mut self) {
        let amounts = self.amounts();
        let is_waited_for = self.tenant.with_account(|account| {
            account.release(&amounts, self.pool);
            account.has_refused_waiting()
        });
        self.tenant.note_share(self.pool);
        if is_waited_for {
            self.tenant.queue_retry();
        }
    }
}
