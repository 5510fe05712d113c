//! What the engine's refusals are called.

use crate::engine::{Answer, NoFit};
use crate::limits;
use crate::model::TtlBounds;
use crate::model::rejection::{Exhausted, Refusal, Unavailable, What};

pub(super) fn refusal(answer: &Answer) -> Refusal {
    match answer {
        Answer::ActiveElsewhere => {
            let why = "the key holds an active claim that is not what the request asks for: another pool, or a worker that \
                       it does not allow; release it first";
            Refusal::State(why.into())
        }
        Answer::Mismatch => {
            Refusal::State("must_match: the key holds a claim that asked for other resources; release it first".into())
        }
        Answer::NoFit(NoFit::Small) => Refusal::invalid(
            "resources",
            "must be within what the claim's worker has; release it and claim anew for more",
        ),
        Answer::OtherCards { model } => Refusal::invalid(
            "resources.gpu.models",
            format!("must allow `{model}`, the cards that the claim holds; release it and claim again for others"),
        ),
        Answer::NoFit(_) => Refusal::Exhausted(Exhausted::Worker),
        Answer::Releasing => Refusal::Releasing,
        Answer::Evicted => Refusal::Preempted,
        Answer::TtlTooLong { max_ms } => TtlBounds::too_long(*max_ms),
        Answer::NotActive => Refusal::State("the claim is not active yet: confirm it first".into()),
        Answer::Draining => {
            Refusal::State("the worker is draining, which ends only when it registers with a higher incarnation".into())
        }
        Answer::Settling { left_ms } => {
            let text = format!(
                "the last stop may have lost claims, and those can still be started for {left_ms} ms; try again then"
            );
            Refusal::State(text.into())
        }
        Answer::UnknownIncarnation { known } => {
            let text = format!("incarnation {known} is the last that was registered; register this one first");
            Refusal::State(text.into())
        }
        Answer::UnknownWorker => Refusal::NotFound(What::Worker),
        Answer::StaleIncarnation { known, deleted: false } => {
            Refusal::State(format!("incarnation must be at least {known}: a newer life of the worker is known").into())
        }
        Answer::StaleIncarnation { known, deleted: true } => {
            let seconds = limits::TOMBSTONE_MS / 1000;
            let text = format!(
                "the worker was deleted under incarnation {known} less than {seconds} s ago: a late registration must \
                 not bring it back; register it with a higher incarnation, or wait"
            );
            Refusal::State(text.into())
        }
        Answer::TooManyModels => Refusal::invalid(
            "capacity.gpu.model",
            format!(
                "the shard knows {} GPU models already, the most that a shared pool's may",
                limits::SHARD_MODELS_MAX
            ),
        ),
        Answer::ShardFull => Refusal::Unavailable(Unavailable::Overloaded),
        _ => Refusal::NotFound(What::Claim),
    }
}
