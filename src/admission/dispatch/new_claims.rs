//! New claims: a request is checked against its pools, and becomes a pending claim.

use std::num::NonZeroU64;

use super::ClaimDispatcher;
use crate::admission::key::PendingClaim;
use crate::admission::plan::AdmittedClaim;
use crate::admission::pool_registry::PoolMap;
use crate::admission::queue::WaitState;
use crate::limits;
use crate::model::request_error::{ExhaustionReason, RequestError};
use crate::model::{ClaimRequest, Millis};
use crate::shard::{ReplyAddress, ShardSet};

impl ClaimDispatcher {
    /// Checks a request against its pools and prepares the claim. A rejection is also sent to `reply`.
    ///
    /// # Errors
    /// Rejections that do not depend on workers: `Invalid` naming the field, `NotFound` for the pool, `no_eligible_pool`.
    pub fn prepare_claim(
        &self,
        pools: &PoolMap,
        request: &ClaimRequest,
        started_ns: Option<NonZeroU64>,
        reply: ReplyAddress,
    ) -> Result<Box<PendingClaim>, RequestError> {
        let admitted = check_times(request).and_then(|()| AdmittedClaim::new(pools, &self.selectors, request));
        match admitted {
            Err(error) => {
                reply.reject(error.clone());
                Err(error)
            }
            Ok(admitted) => Ok(self.pending_claim(request, admitted, started_ns, reply)),
        }
    }

    /// Builds the pending claim of an admitted request.
    #[inline]
    pub fn pending_claim(
        &self,
        request: &ClaimRequest,
        admitted: AdmittedClaim,
        started_ns: Option<NonZeroU64>,
        reply: ReplyAddress,
    ) -> Box<PendingClaim> {
        let AdmittedClaim { pool, reserve_ms, ack, plan } = admitted;
        let preferred_wait_ms = request.constraints.as_ref().map_or(0, |constraints| constraints.preferred_wait_ms);
        let wait_ms = request.max_wait_ms();
        let wait = (wait_ms > 0).then(|| {
            let now_ms = self.clock.engine_now_ms();
            Box::new(WaitState {
                until_ms: now_ms + wait_ms,
                preferred_until_ms: (preferred_wait_ms > 0).then_some(now_ms + preferred_wait_ms),
                since_ms: now_ms,
                exhausted: ExhaustionReason::Pool,
                queued: None,
            })
        });
        Box::new(PendingClaim {
            tie_break: self.keys.ids.next_tie_break(),
            id: request.id.clone(),
            pool,
            plan,
            ticket: 0,
            affinity: request.affinity,
            reserve_ms,
            ttl_ms: request.ttl_ms,
            ack,
            tried_shards: ShardSet::default(),
            unreachable: None,
            started_ns,
            reply,
            wait,
            over_quota: None,
            asks: None,
            has_asked_reserved: false,
            is_for_holder: false,
        })
    }
}

/// Checks the times of a request that no pool limits.
///
/// # Errors
/// `Invalid` naming the field and its limit.
pub fn check_times(request: &ClaimRequest) -> Result<(), RequestError> {
    if request.wait_ms > limits::WAIT_MS_MAX {
        return Err(RequestError::invalid("wait_ms", format!("must be at most {}", limits::WAIT_MS_MAX)));
    }
    check_ttl(request.ttl_ms)
}

/// Checks a time to live that was requested.
///
/// # Errors
/// `Invalid` naming the field and its limit.
pub fn check_ttl(ttl_ms: Option<Millis>) -> Result<(), RequestError> {
    match ttl_ms {
        Some(ms) if ms == 0 || ms > limits::TTL_MS_MAX => {
            Err(RequestError::invalid("ttl_ms", format!("must be 1 to {}", limits::TTL_MS_MAX)))
        }
        _ => Ok(()),
    }
}
