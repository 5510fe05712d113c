//! Quotas: how much a tenant may hold at a time, and its weight beside others.

use serde::{Deserialize, Serialize};

use super::{ClaimSpec, Millis, present};
use crate::limits;
use crate::model::request_error::RequestError;

/// What claims hold, or may hold, in the four amounts that quotas count. Resources are those that claims ask for: one that
/// asks for none counts as a claim only, whatever its worker has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceUsage {
    /// Claims.
    pub claims: u64,
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Thousandths of a GPU card.
    pub gpu_milli: u64,
}

/// One of the amounts that a quota bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaResource {
    /// Claims.
    Claims,
    /// Cores.
    Cpu,
    /// Memory.
    Memory,
    /// GPU cards.
    Gpu,
}

impl QuotaResource {
    /// In the order of [`ResourceUsage::each`].
    pub const ALL: [Self; 4] = [Self::Claims, Self::Cpu, Self::Memory, Self::Gpu];

    /// The field of a quota.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claims => "claims",
            Self::Cpu => "cpu_milli",
            Self::Memory => "memory_bytes",
            Self::Gpu => "gpu_milli",
        }
    }
}

impl ResourceUsage {
    /// No bound.
    pub const UNBOUNDED: Self =
        Self { claims: u64::MAX, cpu_milli: u64::MAX, memory_bytes: u64::MAX, gpu_milli: u64::MAX };

    /// What one claim counts for that keeps this of its request.
    #[must_use]
    pub fn of_claim(spec: Option<&ClaimSpec>) -> Self {
        let Some(ClaimSpec { resources, .. }) = spec else { return Self { claims: 1, ..Self::default() } };
        let gpu_milli = resources.gpu.as_ref().map_or(0, |gpu| u64::from(gpu.count) * u64::from(gpu.milli));
        Self { claims: 1, cpu_milli: resources.cpu_milli, memory_bytes: resources.memory_bytes, gpu_milli }
    }

    /// The four, in the order of [`Counted::ALL`].
    #[must_use]
    pub const fn to_array(&self) -> [u64; 4] {
        [self.claims, self.cpu_milli, self.memory_bytes, self.gpu_milli]
    }

    /// The amount that would pass `limit` if `more` came on top of `self`; one that does not grow never does.
    #[must_use]
    pub fn first_exceeded(&self, more: &Self, limit: &Self) -> Option<QuotaResource> {
        let over = |i: &usize| {
            more.to_array()[*i] > 0 && self.to_array()[*i].saturating_add(more.to_array()[*i]) > limit.to_array()[*i]
        };
        (0..4).find(over).map(|i| QuotaResource::ALL[i])
    }

    /// The sum.
    #[must_use]
    pub const fn plus(self, more: &Self) -> Self {
        Self {
            claims: self.claims.saturating_add(more.claims),
            cpu_milli: self.cpu_milli.saturating_add(more.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(more.memory_bytes),
            gpu_milli: self.gpu_milli.saturating_add(more.gpu_milli),
        }
    }

    /// What is left of it.
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

/// How much a tenant may hold at a time. None: no bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Claims.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub claims: Option<u64>,
    /// Thousandths of a core that its claims ask for.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub cpu_milli: Option<u64>,
    /// Bytes of memory that its claims ask for.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub memory_bytes: Option<u64>,
    /// Thousandths of GPU cards that its claims ask for.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub gpu_milli: Option<u64>,
    /// Its share beside other tenants, where claims wait: 1..=1000.
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
        for (counted, amount) in QuotaResource::ALL.into_iter().zip(amounts) {
            if amount.is_some_and(|amount| amount > limits::AMOUNT_MAX) {
                return Err(RequestError::invalid(counted.as_str(), format!("must be at most {}", limits::AMOUNT_MAX)));
            }
        }
        if self.weight == 0 || self.weight > limits::WEIGHT_MAX {
            return Err(RequestError::invalid("weight", format!("must be 1..={}", limits::WEIGHT_MAX)));
        }
        Ok(())
    }

    /// As bounds.
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

/// Where a quota comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaSource {
    /// The tenant has its own.
    Tenant,
    /// It has none, and its namespace has one for such.
    Namespace,
    /// There is none: nothing is bounded.
    None,
}

/// What a tenant may hold, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaStatus {
    /// Its namespace.
    pub namespace: String,
    /// Which; none: the namespace's quota for tenants without their own.
    pub tenant: Option<String>,
    /// What holds for it.
    pub quota: Quota,
    /// Where that comes from.
    pub source: QuotaSource,
    /// What it holds; of a namespace's default nothing is said.
    pub used: ResourceUsage,
    /// Its claims that wait because its quota is used up.
    pub waiting: u64,
}

/// A claim that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedClaimView {
    /// Whose.
    pub id: super::ClaimId,
    /// Pools in whose queues it stands, in the order in which it prefers them.
    pub pools: Vec<super::PoolName>,
    /// What it waits for: the reason of the refusal that it would get now.
    pub reason: &'static str,
    /// Its priority.
    pub priority: u16,
    /// How many are ahead of it in the queue in which it stands best, as of now; who comes later may pass it.
    pub ahead: u64,
    /// For how long it has waited.
    pub waited_ms: Millis,
    /// How long until it is refused.
    pub left_ms: Millis,
    /// How long it would wait if it goes on as in the last minute; none: nothing to go by.
    pub estimate_ms: Option<Millis>,
}

/// A key that is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimStatus {
    /// It holds this.
    Held(super::ClaimView),
    /// It waits.
    Queued(QueuedClaimView),
}
