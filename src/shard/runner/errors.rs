//! Request errors for the engine's rejections.

use crate::engine::{EngineReply, PlacementFailure};
use crate::limits;
use crate::model::TtlBounds;
use crate::model::request_error::{ExhaustionReason, ObjectKind, RequestError, UnavailableReason};

pub(super) fn rejection_of(answer: &EngineReply) -> RequestError {
    match answer {
        EngineReply::ActiveConflict => {
            let why = "the key holds an active claim that is not what the request asks for: another pool, or a worker that \
                       it does not allow; release it first";
            RequestError::FailedPrecondition(why.into())
        }
        EngineReply::ResourceMismatch => RequestError::FailedPrecondition(
            "must_match: the key holds a claim that asked for other resources; release it first".into(),
        ),
        EngineReply::NotPlaced(PlacementFailure::TooSmall) => RequestError::invalid(
            "resources",
            "must be within what the claim's worker has; release it and claim anew for more",
        ),
        EngineReply::GpuModelMismatch { model } => RequestError::invalid(
            "resources.gpu.models",
            format!("must allow `{model}`, the cards that the claim holds; release it and claim again for others"),
        ),
        EngineReply::NotPlaced(_) => RequestError::Exhausted(ExhaustionReason::Worker),
        EngineReply::Releasing => RequestError::Releasing,
        EngineReply::Evicted => RequestError::Preempted,
        EngineReply::TtlTooLong { max_ms } => TtlBounds::ttl_too_long(*max_ms),
        EngineReply::NotActive => {
            RequestError::FailedPrecondition("the claim is not active yet: confirm it first".into())
        }
        EngineReply::Draining => RequestError::FailedPrecondition(
            "the worker is draining, which ends only when it registers with a higher incarnation".into(),
        ),
        EngineReply::Quarantined { left_ms } => {
            let text = format!(
                "the last stop may have lost claims, and those can still be started for {left_ms} ms; try again then"
            );
            RequestError::FailedPrecondition(text.into())
        }
        EngineReply::UnknownIncarnation { known } => {
            let text = format!("incarnation {known} is the last that was registered; register this one first");
            RequestError::FailedPrecondition(text.into())
        }
        EngineReply::UnknownWorker => RequestError::NotFound(ObjectKind::Worker),
        EngineReply::StaleIncarnation { known, deleted: false } => RequestError::FailedPrecondition(
            format!("incarnation must be at least {known}: a newer life of the worker is known").into(),
        ),
        EngineReply::StaleIncarnation { known, deleted: true } => {
            let seconds = limits::TOMBSTONE_MS / 1000;
            let text = format!(
                "the worker was deleted under incarnation {known} less than {seconds} s ago: a late registration must \
                 not bring it back; register it with a higher incarnation, or wait"
            );
            RequestError::FailedPrecondition(text.into())
        }
        EngineReply::TooManyModels => RequestError::invalid(
            "capacity.gpu.model",
            format!(
                "the shard knows {} GPU models already, the most that a shared pool's may",
                limits::SHARD_MODELS_MAX
            ),
        ),
        EngineReply::ShardFull => RequestError::Unavailable(UnavailableReason::Overloaded),
        _ => RequestError::NotFound(ObjectKind::Claim),
    }
}
