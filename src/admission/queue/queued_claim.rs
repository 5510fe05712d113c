//! Claim in a wait queue.

use std::num::NonZeroU64;
use std::sync::Arc;

use smallvec::SmallVec;

use super::request_class::RequestClass;
use crate::admission::tenant::{ChargeRank, ProtectedClaim, Tenant};
use crate::model::{ClaimId, Millis, ResourceUsage};
use crate::shard::KeyTicket;

/// Arrival number of a claim, unique among all that wait in this process.
pub type ArrivalNumber = NonZeroU64;

/// Claim that waits, with what determines its rank and what it fits.
#[derive(Debug)]
pub struct QueuedClaim {
    /// Key of the claim.
    pub id: ClaimId,
    /// Ticket of the key's entry, where the claim itself is.
    pub ticket: KeyTicket,
    /// Arrival number, the same in all queues.
    pub arrival: ArrivalNumber,
    /// Priority of the claim, higher first.
    pub priority: u16,
    /// Engine time at which the wait began.
    pub since_ms: Millis,
    /// Engine time at which the wait ends.
    pub until_ms: Millis,
    /// Numbers of the pools whose queues it is in.
    pub pools: SmallVec<[u32; 2]>,
    /// Tenant that owns the claim.
    pub tenant: Arc<Tenant>,
    /// Request, as far as it decides which workers fit.
    pub class: RequestClass,
    /// Whether only preferred nodes are acceptable for now.
    pub is_preferred_only: bool,
    /// Whether its pools were selected by their labels.
    pub selects_pools: bool,
}

impl QueuedClaim {
    /// Amounts that the claim is charged to its tenant.
    #[must_use]
    pub fn amounts(&self) -> ResourceUsage {
        let spec = self.class.constraints.as_ref().and_then(|constraints| constraints.spec.as_deref());
        ResourceUsage::of_claim(spec)
    }

    /// Protection of the claim from those of its tenant that rank after it.
    #[must_use]
    pub fn protection(&self) -> ProtectedClaim {
        ProtectedClaim { priority: self.priority, arrival: self.arrival, need: self.amounts() }
    }

    /// Whether the claim may use any worker that fits, in whatever way: it names none, and prefers none.
    #[must_use]
    pub fn has_no_preference(&self) -> bool {
        !self.is_preferred_only
            && self.class.constraints.as_ref().is_none_or(|constraints| constraints.worker.is_none())
    }

    /// Whether others may be evicted for the claim.
    #[must_use]
    pub fn may_evict(&self) -> bool {
        self.priority > 0 && self.has_no_preference()
    }

    /// Rank of the claim among those of its tenant.
    #[must_use]
    pub const fn charge_rank(&self) -> ChargeRank {
        ChargeRank { priority: self.priority, arrival: Some(self.arrival) }
    }

    /// Claim of a test, which waits for no pool in particular.
    #[cfg(test)]
    pub(super) fn of_test(arrival: ArrivalNumber, priority: u16, tenant: &Arc<Tenant>, class: RequestClass) -> Self {
        Self {
            id: ClaimId::new("ns", "t", &format!("k{arrival}")).expect("a name"),
            ticket: arrival.get(),
            arrival,
            priority,
            since_ms: 0,
            until_ms: 0,
            pools: SmallVec::new(),
            tenant: Arc::clone(tenant),
            class,
            is_preferred_only: false,
            selects_pools: false,
        }
    }
}
