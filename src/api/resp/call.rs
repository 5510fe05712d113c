//! Calls that come one at a time: everything but a run of claims or releases.

use serde::Serialize;

use super::answer::Answers;
use super::frame::Args;
use super::read::{self, Holder};
use crate::api::error_table::Failure;
use crate::api::http::json::{ExplainAnswer, PageJson, PoolJson};
use crate::api::http::read::merge;
use crate::metrics::{RespCommand, RespOutcome, metrics};
use crate::model::rejection::Refusal;
use crate::model::{Beat, ClaimRequest, Millis, PoolName, Registration, RunningClaim, Taken, WorkerId};
use crate::scheduler::Scheduler;

/// What is asked.
pub(super) enum Call {
    Claims(Vec<Result<ClaimRequest, Failure>>),
    BeginRelease(Holder),
    Confirm(Holder),
    Renew(Holder, Option<Millis>),
    Register(PoolName, Registration),
    Heartbeat(PoolName, WorkerId, Beat),
    Explain(ClaimRequest),
    Pools(Option<String>, usize),
}

impl Call {
    /// Whether a command is one of these.
    pub(super) const fn is(command: RespCommand) -> bool {
        use RespCommand::{Claims, Confirm, Explain, Heartbeat, Pools, Register, Renew};
        matches!(command, Claims | Confirm | Renew | Register | Heartbeat | Explain | Pools)
    }

    /// Reads one.
    pub(super) fn read(command: RespCommand, args: Args<'_>) -> Result<Self, Failure> {
        Ok(match command {
            RespCommand::Claims => Self::Claims(read::claims(args)?),
            RespCommand::Confirm => Self::Confirm(read::confirm(args)?),
            RespCommand::Renew => {
                let (holder, ttl_ms) = read::renew(args)?;
                Self::Renew(holder, ttl_ms)
            }
            RespCommand::Register => {
                let (pool, worker) = read::register(args)?;
                Self::Register(pool, worker)
            }
            RespCommand::Heartbeat => {
                let (pool, id, beat) = read::heartbeat(args)?;
                Self::Heartbeat(pool, id, beat)
            }
            RespCommand::Explain => Self::Explain(read::claim(args)?),
            RespCommand::Pools => {
                let (after, limit) = read::pools(args)?;
                Self::Pools(after, limit)
            }
            _ => unreachable!("the others are claims, releases, or about the connection"),
        })
    }

    /// What it is counted as.
    pub(super) const fn command(&self) -> RespCommand {
        match self {
            Self::Claims(_) => RespCommand::Claims,
            Self::BeginRelease(_) => RespCommand::Release,
            Self::Confirm(_) => RespCommand::Confirm,
            Self::Renew(..) => RespCommand::Renew,
            Self::Register(..) => RespCommand::Register,
            Self::Heartbeat(..) => RespCommand::Heartbeat,
            Self::Explain(_) => RespCommand::Explain,
            Self::Pools(..) => RespCommand::Pools,
        }
    }

    /// How long it may wait for room.
    pub(super) fn wait_ms(&self) -> Millis {
        match self {
            Self::Claims(read) => read.iter().flatten().map(|request| request.wait_ms).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// Takes the time to wait from its claims.
    pub(super) fn do_not_wait(&mut self) {
        if let Self::Claims(read) = self {
            read.iter_mut().flatten().for_each(|request| request.wait_ms = 0);
        }
    }

    /// Carries it out.
    pub(super) async fn run(self, scheduler: &Scheduler) -> Result<Said, Failure> {
        Ok(match self {
            Self::Claims(read) => {
                let send = async |requests| Ok(scheduler.claim_batch(requests).await);
                Said::Claims(merge("keys", read.into_iter(), send).await?)
            }
            Self::BeginRelease(Holder { id, fence }) => {
                Said::Number(u64::from(scheduler.begin_release_held(&id, fence).await?))
            }
            Self::Confirm(holder) => {
                let (id, fence) = held(holder)?;
                Said::Claim(Box::new(scheduler.confirm(&id, fence).await?))
            }
            Self::Renew(holder, ttl_ms) => {
                let (id, fence) = held(holder)?;
                Said::Until(scheduler.renew(&id, fence, ttl_ms).await?.expires_at_ms)
            }
            Self::Register(pool, worker) => Said::Number(u64::from(scheduler.register(&pool, worker).await?.created)),
            Self::Heartbeat(pool, id, beat) => {
                let heard = scheduler.heartbeat(&pool, &id, beat).await?;
                let held = heard.claims.into_iter().map(|claim| RunningClaim { id: claim.id, fence: claim.fence });
                Said::Heard { held: held.collect(), stop: heard.stop, late_for: heard.late_for }
            }
            Self::Explain(request) => json(&ExplainAnswer::from(&scheduler.explain(request).await?)),
            Self::Pools(after, limit) => {
                json(&PageJson::<PoolJson<'_>>::from(&scheduler.list_pools(after.as_deref(), limit).await?))
            }
        })
    }
}

fn held(Holder { id, fence }: Holder) -> Result<(crate::model::ClaimId, crate::model::Fence), Failure> {
    let fence = fence.ok_or_else(|| Failure::invalid("fence", "is required"))?;
    Ok((id, fence))
}

fn json(answer: &impl Serialize) -> Said {
    Said::Json(serde_json::to_value(answer).expect("every body is structs, strings and numbers"))
}

/// What is answered.
pub(super) enum Said {
    Claims(Vec<Result<Taken, Failure>>),
    Claim(Box<crate::model::ClaimView>),
    Number(u64),
    Until(Option<Millis>),
    Heard { held: Vec<RunningClaim>, stop: Vec<RunningClaim>, late_for: Option<u64> },
    Json(serde_json::Value),
}

impl Said {
    /// Writes it down.
    pub(super) fn write(&self, answers: &mut Answers) {
        match self {
            Self::Claims(outcomes) => {
                answers.array(outcomes.len());
                for outcome in outcomes {
                    match outcome {
                        Ok(taken) => answers.claim(&taken.claim),
                        Err(failure) => answers.failure(failure),
                    }
                }
            }
            Self::Claim(claim) => answers.claim(claim),
            Self::Number(number) | Self::Until(Some(number)) => answers.integer(*number),
            Self::Until(None) => answers.null(),
            Self::Heard { held, stop, late_for } => {
                answers.map(2 + usize::from(late_for.is_some()));
                for (name, claims) in [("claims", held), ("stop", stop)] {
                    answers.text(name);
                    answers.array(claims.len());
                    for RunningClaim { id, fence } in claims {
                        answers.array(3);
                        answers.text(id.tenant());
                        answers.text(id.key());
                        answers.integer(*fence);
                    }
                }
                if let Some(last_seq) = late_for {
                    answers.text("last_seq");
                    answers.integer(*last_seq);
                }
            }
            Self::Json(value) => answers.json(value),
        }
    }

    /// Counts what became of it.
    pub(super) fn count(&self, command: RespCommand) {
        match self {
            Self::Claims(outcomes) => {
                for outcome in outcomes {
                    count(command, outcome.as_ref().map_or_else(Failure::resp, |_| RespOutcome::Ok), 1);
                }
            }
            _ => count(command, RespOutcome::Ok, 1),
        }
    }
}

/// Counts answers.
pub(super) fn count(command: RespCommand, outcome: RespOutcome, answers: u64) {
    metrics().resp_commands(command, outcome).increment(answers);
}

/// The deadline has passed.
pub(super) fn late() -> Failure {
    Refusal::DeadlineExceeded.into()
}
