//! Quota account of a tenant: what its claims hold, in all and by pool, against its limits.
//!
//! Plain data and pure decisions: no lock, no clock, no task. The caller holds the account's lock
//! ([`super::Tenant`]), so comparing with the limits and charging is one step for all resources. With one counter per
//! resource, two requests could reject each other for capacity that both then release.
//!
//! Each charge is released with the amounts and the pool with which it was made. So the sums are exact, and the sums of
//! the pools add up to the whole.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use smallvec::SmallVec;

use crate::model::{Quota, QuotaResource, ResourceUsage};

/// Usage, limits and weight of a tenant.
///
/// No amount is charged beyond 64 bits, except by 2^11 claims of the largest amount that are held without a check: then
/// usage is too low once they are released, and debug builds stop.
#[derive(Debug)]
pub struct TenantAccount {
    used: ResourceUsage,
    limits: ResourceUsage,
    weight: u32,
    /// Usage by pool, for pools in which the tenant holds anything.
    pools: SmallVec<[(u32, ResourceUsage); 1]>,
}

impl TenantAccount {
    /// Account without charges under this quota.
    #[must_use]
    pub fn new(quota: &Quota) -> Self {
        let mut account = Self {
            used: ResourceUsage::default(),
            limits: ResourceUsage::default(),
            weight: 1,
            pools: SmallVec::new(),
        };
        account.set_limits(quota);
        account
    }

    /// Resources that the tenant holds.
    #[must_use]
    pub const fn used(&self) -> ResourceUsage {
        self.used
    }

    /// Replaces limits and weight. What is held stays, even above the limits.
    pub fn set_limits(&mut self, quota: &Quota) {
        // A quota that a caller sets has a weight; one that was stored is taken as it is.
        (self.limits, self.weight) = (quota.limits(), quota.weight.max(1));
    }

    /// Charges the amounts of one claim.
    ///
    /// # Errors
    /// The resource that would exceed its limit; nothing is charged.
    #[inline]
    pub fn charge(&mut self, amounts: &ResourceUsage, pool: u32) -> Result<(), QuotaResource> {
        match self.used.first_exceeded(amounts, &self.limits) {
            Some(exceeded) => Err(exceeded),
            None => {
                self.charge_unchecked(amounts, pool);
                Ok(())
            }
        }
    }

    /// Charges the amounts of a claim that is held already, whatever the limits are.
    #[inline]
    pub fn charge_unchecked(&mut self, amounts: &ResourceUsage, pool: u32) {
        self.used = self.used.plus(amounts);
        let held = self.pool(pool);
        *held = held.plus(amounts);
        self.check();
    }

    /// Releases amounts that were charged for this pool.
    #[inline]
    pub fn release(&mut self, amounts: &ResourceUsage, pool: u32) {
        subtract(&mut self.used, amounts);
        self.release_pool(amounts, pool);
        self.check();
    }

    /// Moves a charge to another pool; the tenant's usage stays.
    pub fn move_to_pool(&mut self, amounts: &ResourceUsage, from: u32, to: u32) {
        self.release_pool(amounts, from);
        let held = self.pool(to);
        *held = held.plus(amounts);
        self.check();
    }

    /// Replaces the amounts of a charge.
    ///
    /// # Errors
    /// The resource that would exceed its limit; nothing changed. An amount that does not grow is never rejected.
    pub fn resize(&mut self, before: &ResourceUsage, after: &ResourceUsage, pool: u32) -> Result<(), QuotaResource> {
        match self.used.first_exceeded(&after.minus(before), &self.limits) {
            Some(exceeded) => Err(exceeded),
            None => {
                self.resize_unchecked(before, after, pool);
                Ok(())
            }
        }
    }

    /// Replaces the amounts of a charge whatever the limits are, because the claim is held like that.
    pub fn resize_unchecked(&mut self, before: &ResourceUsage, after: &ResourceUsage, pool: u32) {
        self.release(before, pool);
        self.charge_unchecked(after, pool);
    }

    /// Dominant share of a pool with `total` resources, divided by the tenant's weight, in units of 2^-32 of the pool:
    /// the largest fraction that the tenant holds of any resource (Ghodsi et al., *Dominant Resource Fairness*, 2011).
    #[must_use]
    pub fn dominant_share(&self, pool: u32, total: &ResourceUsage) -> u64 {
        let Some((_, held)) = self.pools.iter().find(|(existing, _)| *existing == pool) else { return 0 };
        let fraction = |(held, total): (u64, u64)| {
            u64::try_from((u128::from(held) << 32) / u128::from(total.max(1))).unwrap_or(u64::MAX)
        };
        let fractions = held.to_array().into_iter().zip(total.to_array()).map(fraction);
        fractions.max().unwrap_or(0) / u64::from(self.weight)
    }

    /// Sums of a pool, created if the tenant holds nothing there.
    #[inline]
    fn pool(&mut self, pool: u32) -> &mut ResourceUsage {
        let index = self.pools.iter().position(|(existing, _)| *existing == pool).unwrap_or_else(|| {
            match self.pools.first_mut() {
                Some(first) if first.1 == ResourceUsage::default() => {
                    first.0 = pool;
                    0
                }
                _ => {
                    self.pools.push((pool, ResourceUsage::default()));
                    self.pools.len() - 1
                }
            }
        });
        &mut self.pools[index].1
    }

    #[inline]
    fn release_pool(&mut self, amounts: &ResourceUsage, pool: u32) {
        let index = self.pools.iter().position(|(existing, _)| *existing == pool);
        let index = index.expect("U1: a charge is released in the pool in which it was made");
        subtract(&mut self.pools[index].1, amounts);
        // The first entry stays: a tenant that claims and releases one claim at a time would add and remove it each
        // time.
        if index > 0 && self.pools[index].1 == ResourceUsage::default() {
            self.pools.swap_remove(index);
        }
    }

    /// Asserts in debug builds that the pools add up to the whole, each pool once.
    fn check(&self) {
        if cfg!(debug_assertions) {
            let mut sums = ResourceUsage::default();
            for (index, (pool, held)) in self.pools.iter().enumerate() {
                assert!(index == 0 || *held != ResourceUsage::default(), "only the first pool may be without a charge");
                assert!(self.pools[..index].iter().all(|(other, _)| other != pool), "one entry a pool");
                sums = sums.plus(held);
            }
            assert_eq!(sums, self.used, "U1: usage is the sum over the pools");
        }
    }
}

/// Subtracts amounts that were added before.
fn subtract(held: &mut ResourceUsage, amounts: &ResourceUsage) {
    assert!(held.claims >= amounts.claims, "U1: only what was charged is released");
    debug_assert_eq!(held.minus(amounts).plus(amounts), *held, "U1: only what was charged is released");
    *held = held.minus(amounts);
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
