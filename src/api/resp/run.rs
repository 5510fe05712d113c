//! What commands become on their way to the scheduler: alone, or in runs that it is asked for together.

use super::call::Call;
use super::read::{Holder, Phase};
use crate::metrics::RespEnd;
use crate::model::{ClaimId, ClaimRequest, Fence};

/// Why a connection is over.
pub(super) enum End {
    /// The client is gone, or was asked to be.
    Gone,
    /// By the service.
    By(RespEnd),
}

/// What was taken, and must be waited for.
pub(super) enum Step {
    /// Nothing: more must come.
    Read,
    /// Nothing more before the answers are written.
    Write,
    Claim(ClaimRequest),
    Claims(Vec<ClaimRequest>),
    Release(ClaimId, Option<Fence>),
    Releases(Vec<(ClaimId, Option<Fence>)>),
    Call(Call),
    End(End),
}

/// A command for the scheduler.
pub(super) enum Asked {
    Claim(ClaimRequest),
    Release(ClaimId, Option<Fence>),
    Call(Call),
}

impl Asked {
    pub(super) fn release((holder, phase): (Holder, Phase)) -> Self {
        match phase {
            Phase::Finish => Self::Release(holder.id, holder.fence),
            Phase::Begin => Self::Call(Call::BeginRelease(holder)),
        }
    }

    pub(super) const fn waits(&self) -> bool {
        matches!(self, Self::Claim(request) if request.wait_ms > 0)
    }

    /// Of its key.
    pub(super) fn hash(&self) -> u64 {
        match self {
            Self::Claim(request) => request.id.hash64(),
            Self::Release(id, _) => id.hash64(),
            Self::Call(_) => 0,
        }
    }

    pub(super) fn step(self) -> Step {
        match self {
            Self::Claim(request) => Step::Claim(request),
            Self::Release(id, fence) => Step::Release(id, fence),
            Self::Call(call) => Step::Call(call),
        }
    }
}

/// Commands that are carried out together.
pub(super) enum Run {
    Nothing,
    Claims(Vec<ClaimRequest>),
    Releases(Vec<(ClaimId, Option<Fence>)>),
}

impl Run {
    pub(super) const fn is_empty(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    pub(super) const fn may_claim(&self) -> bool {
        matches!(self, Self::Nothing | Self::Claims(_))
    }

    pub(super) const fn may_release(&self) -> bool {
        matches!(self, Self::Nothing | Self::Releases(_))
    }

    pub(super) fn push(&mut self, asked: Asked) {
        match (&mut *self, asked) {
            (Self::Claims(requests), Asked::Claim(request)) => requests.push(request),
            (Self::Releases(claims), Asked::Release(id, fence)) => claims.push((id, fence)),
            (_, Asked::Claim(request)) => *self = Self::Claims(vec![request]),
            (_, Asked::Release(id, fence)) => *self = Self::Releases(vec![(id, fence)]),
            (_, Asked::Call(_)) => unreachable!("a call is no part of a run"),
        }
    }

    pub(super) fn step(self) -> Option<Step> {
        match self {
            Self::Nothing => None,
            Self::Claims(requests) => Some(Step::Claims(requests)),
            Self::Releases(claims) => Some(Step::Releases(claims)),
        }
    }
}
