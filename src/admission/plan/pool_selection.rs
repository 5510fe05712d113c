//! Candidate pools that a claim selects by their labels, and what a pool demands of the claims that it serves.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::admission::key::PendingClaim;
use crate::admission::pool_registry::{Pool, PoolMap};
use crate::limits;
use crate::model::label_selector::LabelSelector;
use crate::model::request_error::RequestError;
use crate::model::{AckLevel, Millis, PoolMode, PoolSpec};

/// Selection of candidate pools.
#[derive(Debug, Clone)]
pub(super) struct PoolSelection {
    /// Selector of the pools by their labels.
    pub selector: Arc<LabelSelector>,
    /// Class that they must have.
    pub class: Option<String>,
    /// Version of the pools among which it selected.
    pub version: u64,
}

/// Terms of a claim that a pool may refuse; none: those of the pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestedTerms {
    /// Whether resources are requested.
    pub has_resources: bool,
    /// Time to confirm, in milliseconds.
    pub reserve_ms: Option<Millis>,
    /// Point at which the claim is acknowledged.
    pub ack: Option<AckLevel>,
    /// Time to live without a renewal, in milliseconds.
    pub ttl_ms: Option<Millis>,
}

impl RequestedTerms {
    /// Effective `reserve_ms` and `ack` in a pool.
    ///
    /// # Errors
    /// `Invalid` for the field with which the pool serves no claim.
    pub(super) fn effective(&self, spec: &PoolSpec) -> Result<(Millis, AckLevel), RequestError> {
        if spec.mode == PoolMode::Shared && !self.has_resources {
            let message = "is required: the pool is shared, and a claim gets the resources that it requests";
            return Err(RequestError::invalid("resources", message));
        }
        let (reserve_ms, ack) = (self.reserve_ms.unwrap_or(spec.reserve_ms), self.ack.unwrap_or(spec.ack));
        if reserve_ms > spec.reserve_ms {
            return Err(RequestError::invalid(
                "reserve_ms",
                format!("must be at most {}, the pool's reserve_ms", spec.reserve_ms),
            ));
        }
        spec.ttl().check(self.ttl_ms)?;
        if ack < spec.ack {
            return Err(RequestError::invalid("ack", "must not be weaker than the pool's ack"));
        }
        Ok((reserve_ms, ack))
    }
}

impl PendingClaim {
    /// Version of the pools among which the candidates were selected by their labels; none: they were named.
    #[must_use]
    pub fn selected_from(&self) -> Option<u64> {
        Some(self.plan.as_ref()?.selection.as_ref()?.version)
    }

    /// Selects the candidate pools anew, if they were selected by their labels: the first in the order of names, as many
    /// as a claim may wait for. A pool whose deletion has begun stays, because that may fail. Returns whether they have
    /// changed.
    pub fn reselect_pools(&mut self, pools: &PoolMap) -> bool {
        let Some(plan) = &mut self.plan else { return false };
        let Some(selection) = &mut plan.selection else { return false };
        if selection.version == pools.version() {
            return false;
        }
        let terms = RequestedTerms {
            has_resources: plan.constraints.needs_resources(),
            reserve_ms: plan.reserve_ms,
            ack: plan.ack,
            ttl_ms: self.ttl_ms,
        };
        let may_serve = |pool: &&Arc<Pool>| {
            let spec = pool.spec.load();
            selection.class.as_ref().is_none_or(|class| spec.class.as_ref() == Some(class))
                && terms.effective(&spec).is_ok()
        };
        let selected = pools.select(self.id.namespace(), &selection.selector).into_iter().filter(may_serve);
        let mut numbers: SmallVec<[u32; 4]> = selected.take(limits::CLAIM_POOLS_MAX).map(|pool| pool.number).collect();
        let is_closing = |number: &u32| pools.by_number(*number).is_some_and(|pool| pool.is_closing());
        let closing: SmallVec<[u32; 4]> =
            plan.pools.iter().copied().filter(|number| is_closing(number) && !numbers.contains(number)).collect();
        numbers.extend(closing);
        selection.version = pools.version();
        let has_changed = numbers != plan.pools;
        plan.pools = numbers;
        has_changed
    }
}
