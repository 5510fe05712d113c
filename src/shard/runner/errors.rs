//! Request errors for the engine's rejections.

use crate::engine::{EngineReply, PlacementFailure};
use crate::limits;
use crate::model::TtlBounds;
use crate::model::request_error::{ExhaustionReason, ObjectKind, Precondition, RequestError, UnavailableReason};

pub(super) fn rejection_of(answer: &EngineReply) -> RequestError {
    match answer {
        EngineReply::ActiveConflict => Precondition::ClaimConflict.into(),
        EngineReply::ResourceMismatch => Precondition::ResourceMismatch.into(),
        EngineReply::NotPlaced(PlacementFailure::TooSmall) => RequestError::invalid(
            "resources",
            "must fit the capacity of the claim's worker; release the claim and claim again for more",
        ),
        EngineReply::GpuModelMismatch { model } => RequestError::invalid(
            "resources.gpu.models",
            format!("must allow `{model}`, the GPU model that the claim holds; release it and claim again for another"),
        ),
        EngineReply::NotPlaced(_) => RequestError::Exhausted(ExhaustionReason::Worker),
        EngineReply::Releasing => RequestError::Releasing,
        EngineReply::Evicted => RequestError::Preempted,
        EngineReply::TtlTooLong { max_ms } => TtlBounds::ttl_too_long(*max_ms),
        EngineReply::NotActive => Precondition::ClaimNotActive.into(),
        EngineReply::Draining => Precondition::WorkerDraining.into(),
        EngineReply::Quarantined { left_ms } => Precondition::Quarantined { left_ms: *left_ms }.into(),
        EngineReply::UnknownIncarnation { known } => Precondition::UnknownIncarnation { registered: *known }.into(),
        EngineReply::UnknownWorker => RequestError::NotFound(ObjectKind::Worker),
        EngineReply::StaleIncarnation { known, deleted: false } => {
            Precondition::StaleIncarnation { registered: *known }.into()
        }
        EngineReply::StaleIncarnation { known, deleted: true } => {
            Precondition::DeletedIncarnation { deleted: *known }.into()
        }
        EngineReply::TooManyModels => RequestError::invalid(
            "capacity.gpu.model",
            format!(
                "must be one of the {} GPU models that the shard has already, the most that a shard of a shared pool may have",
                limits::SHARD_MODELS_MAX
            ),
        ),
        EngineReply::ShardFull => RequestError::Unavailable(UnavailableReason::Overloaded),
        _ => RequestError::NotFound(ObjectKind::Claim),
    }
}
