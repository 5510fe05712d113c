//! Quotas: the resources that a tenant may hold at a time, and its weight in queues.

use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::{ClaimSpec, Millis, ResourceVector, present};
use crate::limits;
use crate::model::request_error::RequestError;

/// Usage or limit of the four amounts that quotas count. Resources are those that claims request: a claim that
/// requests none counts as a claim only, whatever its worker has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceUsage {
    /// Number of live claims.
    pub claims: u64,
    /// Amount in thousandths of cores.
    pub cpu_milli: u64,
    /// Amount in bytes of memory.
    pub memory_bytes: u64,
    /// Amount in thousandths of GPUs.
    pub gpu_milli: u64,
}

/// Amount that a quota limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum QuotaResource {
    /// Number of live claims.
    Claims,
    /// Amount in thousandths of cores.
    #[strum(serialize = "cpu_milli")]
    Cpu,
    /// Amount in bytes of memory.
    #[strum(serialize = "memory_bytes")]
    Memory,
    /// Amount in thousandths of GPUs.
    #[strum(serialize = "gpu_milli")]
    Gpu,
}

impl QuotaResource {
    /// All amounts, in the order of [`ResourceUsage::to_array`].
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// Name of the field in a quota.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl ResourceUsage {
    /// Usage by one claim with this spec.
    #[must_use]
    pub fn of_claim(spec: Option<&ClaimSpec>) -> Self {
        let Some(ClaimSpec { resources, .. }) = spec else { return Self { claims: 1, ..Self::default() } };
        Self::new(1, resources.into())
    }

    /// Usage by this number of claims with these amounts together; slots are not counted.
    #[must_use]
    pub const fn new(claims: u64, amounts: ResourceVector) -> Self {
        let ResourceVector { cpu_milli, memory_bytes, gpu_milli, .. } = amounts;
        Self { claims, cpu_milli, memory_bytes, gpu_milli }
    }

    /// Amounts in the order of [`QuotaResource::ALL`].
    #[must_use]
    pub const fn to_array(&self) -> [u64; 4] {
        [self.claims, self.cpu_milli, self.memory_bytes, self.gpu_milli]
    }

    /// First amount that would exceed `limit`, or 64 bits, if `more` were added; one that does not grow never does.
    #[must_use]
    pub fn first_exceeded(&self, more: &Self, limit: &Self) -> Option<QuotaResource> {
        let exceeds = |i: &usize| {
            let (used, more, limit) = (self.to_array()[*i], more.to_array()[*i], limit.to_array()[*i]);
            more > 0 && used.checked_add(more).is_none_or(|sum| sum > limit)
        };
        (0..4).find(exceeds).map(|i| QuotaResource::ALL[i])
    }

    /// Whether amounts exceed this headroom.
    #[must_use]
    pub fn is_exceeded_by(&self, amounts: &Self) -> bool {
        Self::default().first_exceeded(amounts, self).is_some()
    }

    /// Whether any amount is above 0.
    #[must_use]
    pub const fn is_positive(&self) -> bool {
        self.claims > 0 || self.cpu_milli > 0 || self.memory_bytes > 0 || self.gpu_milli > 0
    }

    /// Amounts that are positive in `other` too, and 0 instead of the rest.
    #[must_use]
    pub const fn where_positive(self, other: &Self) -> Self {
        Self {
            claims: if other.claims > 0 { self.claims } else { 0 },
            cpu_milli: if other.cpu_milli > 0 { self.cpu_milli } else { 0 },
            memory_bytes: if other.memory_bytes > 0 { self.memory_bytes } else { 0 },
            gpu_milli: if other.gpu_milli > 0 { self.gpu_milli } else { 0 },
        }
    }

    /// Larger of both usages in each amount.
    #[must_use]
    pub fn max(self, other: &Self) -> Self {
        Self {
            claims: self.claims.max(other.claims),
            cpu_milli: self.cpu_milli.max(other.cpu_milli),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            gpu_milli: self.gpu_milli.max(other.gpu_milli),
        }
    }

    /// Saturating sum of both usages.
    #[must_use]
    pub const fn plus(self, more: &Self) -> Self {
        Self {
            claims: self.claims.saturating_add(more.claims),
            cpu_milli: self.cpu_milli.saturating_add(more.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(more.memory_bytes),
            gpu_milli: self.gpu_milli.saturating_add(more.gpu_milli),
        }
    }

    /// Difference of both usages, at least 0.
    #[must_use]
    pub const fn minus(self, less: &Self) -> Self {
        Self {
            claims: self.claims.saturating_sub(less.claims),
            cpu_milli: self.cpu_milli.saturating_sub(less.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_sub(less.memory_bytes),
            gpu_milli: self.gpu_milli.saturating_sub(less.gpu_milli),
        }
    }
}

/// Limits of what a tenant may hold at a time. None: no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Largest number of live claims.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub claims: Option<u64>,
    /// Thousandths of cores that its claims request, at most.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub cpu_milli: Option<u64>,
    /// Bytes of memory that its claims request, at most.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub memory_bytes: Option<u64>,
    /// Thousandths of GPUs that its claims request, at most.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub gpu_milli: Option<u64>,
    /// Weight relative to other tenants in queues: 1 to 1000.
    pub weight: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { claims: None, cpu_milli: None, memory_bytes: None, gpu_milli: None, weight: 1 }
    }
}

impl Quota {
    /// Checks every amount against its limit.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self) -> Result<(), RequestError> {
        let amounts = [self.claims, self.cpu_milli, self.memory_bytes, self.gpu_milli];
        for (resource, amount) in QuotaResource::ALL.iter().zip(amounts) {
            if amount.is_some_and(|amount| amount > limits::AMOUNT_MAX) {
                return Err(RequestError::invalid(
                    resource.as_str(),
                    format!("must be at most {}", limits::AMOUNT_MAX),
                ));
            }
        }
        if self.weight == 0 || self.weight > limits::WEIGHT_MAX {
            return Err(RequestError::invalid("weight", format!("must be 1 to {}", limits::WEIGHT_MAX)));
        }
        Ok(())
    }

    /// Limits as amounts, where none is `u64::MAX`.
    #[must_use]
    pub fn limits(&self) -> ResourceUsage {
        ResourceUsage {
            claims: self.claims.unwrap_or(u64::MAX),
            cpu_milli: self.cpu_milli.unwrap_or(u64::MAX),
            memory_bytes: self.memory_bytes.unwrap_or(u64::MAX),
            gpu_milli: self.gpu_milli.unwrap_or(u64::MAX),
        }
    }
}

/// Amounts that a quota still allows. None: not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct QuotaHeadroom {
    /// Number of further claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<u64>,
    /// Amount in thousandths of cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u64>,
    /// Amount in bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Amount in thousandths of GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_milli: Option<u64>,
}

impl QuotaHeadroom {
    /// Amounts that are left of these limits, of which `u64::MAX` is none.
    #[must_use]
    pub fn new(limits: &ResourceUsage, left: &ResourceUsage) -> Self {
        let amount = |limit: u64, left: u64| (limit < u64::MAX).then_some(left);
        Self {
            claims: amount(limits.claims, left.claims),
            cpu_milli: amount(limits.cpu_milli, left.cpu_milli),
            memory_bytes: amount(limits.memory_bytes, left.memory_bytes),
            gpu_milli: amount(limits.gpu_milli, left.gpu_milli),
        }
    }

    /// Whether no amount is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// Source of the quota that applies to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaSource {
    /// Own quota of the tenant.
    Tenant,
    /// Default quota of its namespace.
    Namespace,
    /// No quota: nothing is limited.
    None,
}

/// Quota of a tenant, and its usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaStatus {
    /// Namespace of the tenant.
    pub namespace: String,
    /// Name of the tenant; none: the namespace's default quota for its tenants.
    pub tenant: Option<String>,
    /// Quota that applies to it.
    pub quota: Quota,
    /// Source of that quota.
    pub source: QuotaSource,
    /// Usage of the tenant; 0 for a namespace's default.
    pub used: ResourceUsage,
    /// Number of its claims that wait because its quota is used up.
    pub waiting: u64,
}

/// Claim that is queued for capacity or for its quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedClaimView {
    /// Identity of the queued claim.
    pub id: super::ClaimId,
    /// Pools for which it waits, in its order of preference; none: it waits for its tenant's quota.
    pub pools: Vec<super::PoolName>,
    /// Reason of the wait: that of the error which it would get now.
    pub reason: &'static str,
    /// Priority of the claim.
    pub priority: u16,
    /// Number of claims ahead of it in its best queue, as of now; later ones may pass it.
    pub ahead: u64,
    /// Unix time in milliseconds at which its wait began.
    pub queued_at_ms: Millis,
    /// Time for which it has waited, in milliseconds.
    pub waited_ms: Millis,
    /// Time until it is rejected, in milliseconds.
    pub left_ms: Millis,
    /// Estimate of its wait by the rate of the last minute, in milliseconds; none: no data.
    pub estimate_ms: Option<Millis>,
}

/// Status of a key that was queried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimStatus {
    /// Key with a live claim.
    Held(super::ClaimView),
    /// Key with a queued claim.
    Queued(QueuedClaimView),
}
