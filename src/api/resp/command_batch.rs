//! Commands on their way to the scheduler: single calls, or batches that are submitted together.

use super::parse_args::{ReleaseStep, RespClaimRef};
use super::single_call::SingleCall;
use crate::metrics::RespCloseReason;
use crate::model::{ClaimId, ClaimRequest, Fence};

/// Reason why a connection ends.
pub(super) enum ConnectionEnd {
    /// Client is gone, or asked to close.
    ClientGone,
    /// Service closes the connection for this reason.
    Closed(RespCloseReason),
}

/// Next step of a connection, which it has to wait for.
pub(super) enum ConnectionStep {
    /// Read more input: no complete command is left.
    Read,
    /// Write the replies before anything else.
    Write,
    Claim(ClaimRequest),
    Claims(Vec<ClaimRequest>),
    Release(ClaimId, Option<Fence>),
    Releases(Vec<(ClaimId, Option<Fence>)>),
    Call(SingleCall),
    End(ConnectionEnd),
}

/// Command that needs the scheduler.
pub(super) enum SchedulerRequest {
    Claim(ClaimRequest),
    Release(ClaimId, Option<Fence>),
    Call(SingleCall),
}

impl SchedulerRequest {
    pub(super) fn release((holder, phase): (RespClaimRef, ReleaseStep)) -> Self {
        match phase {
            ReleaseStep::Finish => Self::Release(holder.id, holder.fence),
            ReleaseStep::Begin => Self::Call(SingleCall::BeginRelease(holder)),
        }
    }

    /// Whether the command is executed alone: a call, or a claim that may be queued.
    pub(super) const fn is_single(&self) -> bool {
        match self {
            Self::Claim(request) => request.wait_ms > 0,
            Self::Release(..) => false,
            Self::Call(_) => true,
        }
    }

    /// Hash of the command's key.
    pub(super) fn key_hash(&self) -> u64 {
        match self {
            Self::Claim(request) => request.id.hash64(),
            Self::Release(id, _) => id.hash64(),
            Self::Call(_) => 0,
        }
    }

    pub(super) fn into_step(self) -> ConnectionStep {
        match self {
            Self::Claim(request) => ConnectionStep::Claim(request),
            Self::Release(id, fence) => ConnectionStep::Release(id, fence),
            Self::Call(call) => ConnectionStep::Call(call),
        }
    }
}

/// Commands that are executed together.
pub(super) enum CommandBatch {
    Nothing,
    Claims(Vec<ClaimRequest>),
    Releases(Vec<(ClaimId, Option<Fence>)>),
}

impl CommandBatch {
    pub(super) const fn is_empty(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    pub(super) const fn accepts_claims(&self) -> bool {
        matches!(self, Self::Nothing | Self::Claims(_))
    }

    pub(super) const fn accepts_releases(&self) -> bool {
        matches!(self, Self::Nothing | Self::Releases(_))
    }

    pub(super) fn push(&mut self, request: SchedulerRequest) {
        match (&mut *self, request) {
            (Self::Claims(requests), SchedulerRequest::Claim(request)) => requests.push(request),
            (Self::Releases(claims), SchedulerRequest::Release(id, fence)) => claims.push((id, fence)),
            (_, SchedulerRequest::Claim(request)) => *self = Self::Claims(vec![request]),
            (_, SchedulerRequest::Release(id, fence)) => *self = Self::Releases(vec![(id, fence)]),
            (_, SchedulerRequest::Call(_)) => unreachable!("a call is never part of a batch"),
        }
    }

    pub(super) fn into_step(self) -> Option<ConnectionStep> {
        match self {
            Self::Nothing => None,
            Self::Claims(requests) => Some(ConnectionStep::Claims(requests)),
            Self::Releases(claims) => Some(ConnectionStep::Releases(claims)),
        }
    }
}
