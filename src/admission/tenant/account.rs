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

use crate::limits;
use crate::model::{Quota, QuotaResource, ResourceUsage};

/// Sums of the four amounts over claims, in the order of [`QuotaResource::ALL`]. 128 bits, because 2^11 claims with the
/// largest amount overflow 64, and a sum that saturated could not be released exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct UsageSums([u128; 4]);

const _: () = assert!(limits::AMOUNT_MAX as u128 * u64::MAX as u128 <= u128::MAX / 2, "no number of claims overflows");

impl UsageSums {
    const ZERO: Self = Self([0; 4]);

    fn add(&mut self, amounts: &ResourceUsage) {
        for (sum, amount) in self.0.iter_mut().zip(amounts.to_array()) {
            *sum += u128::from(amount);
        }
    }

    /// Subtracts amounts that were added before.
    fn subtract(&mut self, amounts: &ResourceUsage) {
        for (sum, amount) in self.0.iter_mut().zip(amounts.to_array()) {
            assert!(*sum >= u128::from(amount), "U1: only what was charged is released");
            *sum -= u128::from(amount);
        }
    }

    /// First amount that would exceed its limit if it grew from `less` to `more`; one that does not grow never does.
    fn first_exceeded(
        &self,
        less: &ResourceUsage,
        more: &ResourceUsage,
        limits: &ResourceUsage,
    ) -> Option<QuotaResource> {
        let (less, more, limits) = (less.to_array(), more.to_array(), limits.to_array());
        let exceeds = |i: &usize| {
            let growth = more[*i].saturating_sub(less[*i]);
            // No limit is `u64::MAX`, which a sum of 128 bits may pass.
            growth > 0 && limits[*i] < u64::MAX && self.0[*i] + u128::from(growth) > u128::from(limits[*i])
        };
        (0..4).find(exceeds).map(|i| QuotaResource::ALL[i])
    }

    fn to_usage(self) -> ResourceUsage {
        let [claims, cpu_milli, memory_bytes, gpu_milli] = self.0.map(|sum| u64::try_from(sum).unwrap_or(u64::MAX));
        ResourceUsage { claims, cpu_milli, memory_bytes, gpu_milli }
    }
}

/// Usage, limits and weight of a tenant.
#[derive(Debug)]
pub struct TenantAccount {
    used: UsageSums,
    limits: ResourceUsage,
    weight: u32,
    /// Usage by pool, for pools in which the tenant holds anything.
    pools: SmallVec<[(u32, UsageSums); 1]>,
}

impl TenantAccount {
    /// Account without charges under this quota.
    #[must_use]
    pub fn new(quota: &Quota) -> Self {
        let mut account =
            Self { used: UsageSums::ZERO, limits: ResourceUsage::default(), weight: 1, pools: SmallVec::new() };
        account.set_limits(quota);
        account
    }

    /// Resources that the tenant holds; a sum beyond 64 bits is given as `u64::MAX`.
    #[must_use]
    pub fn used(&self) -> ResourceUsage {
        self.used.to_usage()
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
    pub fn charge(&mut self, amounts: &ResourceUsage, pool: u32) -> Result<(), QuotaResource> {
        match self.used.first_exceeded(&ResourceUsage::default(), amounts, &self.limits) {
            Some(exceeded) => Err(exceeded),
            None => {
                self.charge_unchecked(amounts, pool);
                Ok(())
            }
        }
    }

    /// Charges the amounts of a claim that is held already, whatever the limits are.
    pub fn charge_unchecked(&mut self, amounts: &ResourceUsage, pool: u32) {
        self.used.add(amounts);
        self.pool(pool).add(amounts);
        self.check();
    }

    /// Releases amounts that were charged for this pool.
    pub fn release(&mut self, amounts: &ResourceUsage, pool: u32) {
        self.used.subtract(amounts);
        self.release_pool(amounts, pool);
        self.check();
    }

    /// Moves a charge to another pool; the tenant's usage stays.
    pub fn move_to_pool(&mut self, amounts: &ResourceUsage, from: u32, to: u32) {
        self.release_pool(amounts, from);
        self.pool(to).add(amounts);
        self.check();
    }

    /// Replaces the amounts of a charge.
    ///
    /// # Errors
    /// The resource that would exceed its limit; nothing changed. An amount that does not grow is never rejected.
    pub fn resize(&mut self, before: &ResourceUsage, after: &ResourceUsage, pool: u32) -> Result<(), QuotaResource> {
        match self.used.first_exceeded(before, after, &self.limits) {
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
        let fractions = held.to_usage().to_array().into_iter().zip(total.to_array()).map(fraction);
        fractions.max().unwrap_or(0) / u64::from(self.weight)
    }

    /// Sums of a pool, created if the tenant holds nothing there.
    fn pool(&mut self, pool: u32) -> &mut UsageSums {
        let index = self.pools.iter().position(|(existing, _)| *existing == pool).unwrap_or_else(|| {
            match self.pools.first_mut() {
                Some(first) if first.1 == UsageSums::ZERO => {
                    first.0 = pool;
                    0
                }
                _ => {
                    self.pools.push((pool, UsageSums::ZERO));
                    self.pools.len() - 1
                }
            }
        });
        &mut self.pools[index].1
    }

    fn release_pool(&mut self, amounts: &ResourceUsage, pool: u32) {
        let index = self.pools.iter().position(|(existing, _)| *existing == pool);
        let index = index.expect("U1: a charge is released in the pool in which it was made");
        self.pools[index].1.subtract(amounts);
        // The first entry stays: a tenant that claims and releases one claim at a time would add and remove it each
        // time.
        if index > 0 && self.pools[index].1 == UsageSums::ZERO {
            self.pools.swap_remove(index);
        }
    }

    /// Asserts in debug builds that the pools add up to the whole, each pool once.
    fn check(&self) {
        if cfg!(debug_assertions) {
            let mut sums = UsageSums::ZERO;
            for (index, (pool, held)) in self.pools.iter().enumerate() {
                assert!(index == 0 || *held != UsageSums::ZERO, "only the first pool may be without a charge");
                assert!(self.pools[..index].iter().all(|(other, _)| other != pool), "one entry a pool");
                for (sum, amount) in sums.0.iter_mut().zip(held.0) {
                    *sum += amount;
                }
            }
            assert_eq!(sums, self.used, "U1: usage is the sum over the pools");
        }
    }
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
