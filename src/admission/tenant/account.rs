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

use crate::admission::queue::ArrivalNumber;
use crate::model::{Quota, QuotaHeadroom, QuotaResource, ResourceUsage};

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
    /// Claim that the quota has kept back for long, for which headroom is collected.
    protected: Option<ProtectedClaim>,
    /// Whether a claim that waits was refused since the refused ones were last searched for.
    refused_waiting: bool,
    /// Usage when that search began.
    searched_used: ResourceUsage,
}

/// Rank of a claim that is charged. A claim that does not wait has no arrival, and ranks last of its priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChargeRank {
    /// Priority of the claim.
    pub priority: u16,
    /// Arrival of the claim, if it waits.
    pub arrival: Option<ArrivalNumber>,
}

/// Claim that waits for its tenant's quota, and that claims which rank after it must leave headroom for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtectedClaim {
    /// Priority of the claim.
    pub priority: u16,
    /// Arrival of the claim.
    pub arrival: ArrivalNumber,
    /// Amounts that it needs.
    pub need: ResourceUsage,
}

impl ProtectedClaim {
    /// Whether a claim of this rank must leave the need open.
    fn precedes(&self, rank: ChargeRank) -> bool {
        let is_own = rank.arrival == Some(self.arrival);
        let is_later = rank.arrival.is_none_or(|arrival| arrival > self.arrival);
        !is_own && (rank.priority < self.priority || (rank.priority == self.priority && is_later))
    }
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
            protected: None,
            refused_waiting: false,
            searched_used: ResourceUsage::default(),
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
    pub fn charge(&mut self, amounts: &ResourceUsage, pool: u32, rank: ChargeRank) -> Result<(), QuotaResource> {
        match self.first_refused(amounts, rank) {
            Some(exceeded) => {
                self.refused_waiting |= rank.arrival.is_some();
                Err(exceeded)
            }
            None => {
                self.protected.take_if(|protected| rank.arrival == Some(protected.arrival));
                self.charge_unchecked(amounts, pool);
                Ok(())
            }
        }
    }

    /// Resource that keeps a claim back, if any.
    #[inline]
    #[must_use]
    pub fn first_refused(&self, amounts: &ResourceUsage, rank: ChargeRank) -> Option<QuotaResource> {
        self.used.first_exceeded(amounts, &self.limits).or_else(|| self.first_missing(amounts, rank))
    }

    /// Whether the limits allow a claim of these amounts once so much less is held.
    #[must_use]
    pub fn allows_without(&self, released: &ResourceUsage, amounts: &ResourceUsage) -> bool {
        self.used.minus(released).first_exceeded(amounts, &self.limits).is_none()
    }

    /// Whether the quota allows a claim of these amounts.
    #[must_use]
    pub fn may_charge(&self, amounts: &ResourceUsage, rank: ChargeRank) -> bool {
        self.first_refused(amounts, rank).is_none()
    }

    /// Resource of which too little would be left for the protected claim.
    #[inline]
    fn first_missing(&self, amounts: &ResourceUsage, rank: ChargeRank) -> Option<QuotaResource> {
        let protected = self.protected?;
        if !protected.precedes(rank) {
            return None;
        }
        // A claim that needs nothing of what is collected takes nothing away.
        self.used.plus(amounts).first_exceeded(&protected.need.where_positive(amounts), &self.limits)
    }

    /// Protects a claim that the quota keeps back, or none. Returns whether others may be allowed from now on.
    pub fn protect(&mut self, claim: Option<ProtectedClaim>) -> bool {
        let before = std::mem::replace(&mut self.protected, claim);
        before.is_some() && before != claim
    }

    /// Ends the protection of this claim. Returns whether it was protected.
    pub fn unprotect(&mut self, arrival: ArrivalNumber) -> bool {
        self.protected.take_if(|protected| protected.arrival == arrival).is_some()
    }

    /// Notes that a claim that waits was refused.
    pub const fn note_refused_waiting(&mut self) {
        self.refused_waiting = true;
    }

    /// Notes that the claims which were refused are about to be searched for.
    pub const fn begin_quota_search(&mut self) {
        (self.refused_waiting, self.searched_used) = (false, self.used);
    }

    /// Notes that claims are refused still. Returns whether nothing was released since the search began.
    pub fn keep_refused(&mut self) -> bool {
        self.refused_waiting = true;
        !self.searched_used.minus(&self.used).is_positive()
    }

    /// Whether a claim that waits was refused since the refused ones were last searched for.
    #[must_use]
    #[inline]
    pub const fn has_refused_waiting(&self) -> bool {
        self.refused_waiting
    }

    /// Amounts that the tenant may still hold.
    #[must_use]
    pub fn headroom(&self) -> ResourceUsage {
        self.limits.minus(&self.used)
    }

    /// Amounts that the quota leaves a claim of this rank: without what is held, and without what is collected for a
    /// protected claim that comes before it.
    #[must_use]
    pub fn headroom_of(&self, rank: ChargeRank) -> QuotaHeadroom {
        let protected = self.protected.filter(|protected| protected.precedes(rank));
        let collected = protected.map_or_else(ResourceUsage::default, |protected| protected.need);
        QuotaHeadroom::new(&self.limits, &self.headroom().minus(&collected))
    }

    /// Whether amounts are within the limits if nothing else is held.
    #[must_use]
    pub fn allows(&self, amounts: &ResourceUsage) -> bool {
        ResourceUsage::default().first_exceeded(amounts, &self.limits).is_none()
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
