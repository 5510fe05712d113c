//! Calls that are executed one at a time: all except batches of claims or releases.

use serde::Serialize;

use super::frame::CommandArgs;
use super::parse_args::{self, RespClaimRef};
use super::reply_buffer::ReplyBuffer;
use crate::api::batch::submit_valid;
use crate::api::error_table::ApiError;
use crate::api::response::{ExplainResponseBody, PageJson, PoolJson};
use crate::metrics::{RespCommand, RespOutcome, metrics};
use crate::model::request_error::RequestError;
use crate::model::{
    ClaimId, ClaimRequest, ClaimResult, ClaimView, Fence, HeartbeatRequest, Millis, PoolName, RegistrationRequest,
    RunningClaim, WorkerId,
};
use crate::scheduler::Scheduler;

/// Call with its parsed arguments.
pub(super) enum SingleCall {
    Claims(Vec<Result<ClaimRequest, ApiError>>),
    BeginRelease(RespClaimRef),
    Confirm(RespClaimRef),
    Renew(RespClaimRef, Option<Millis>),
    Register(PoolName, RegistrationRequest),
    Heartbeat(PoolName, WorkerId, HeartbeatRequest),
    Explain(ClaimRequest),
    Pools(Option<String>, usize),
}

impl SingleCall {
    /// Whether a command is executed as a single call.
    pub(super) const fn handles(command: RespCommand) -> bool {
        use RespCommand::{Claims, Confirm, Explain, Heartbeat, Pools, Register, Renew};
        matches!(command, Claims | Confirm | Renew | Register | Heartbeat | Explain | Pools)
    }

    /// Parses the arguments of a command.
    pub(super) fn parse(command: RespCommand, args: CommandArgs<'_>) -> Result<Self, ApiError> {
        Ok(match command {
            RespCommand::Claims => Self::Claims(parse_args::claims(args)?),
            RespCommand::Confirm => Self::Confirm(parse_args::confirm(args)?),
            RespCommand::Renew => {
                let (holder, ttl_ms) = parse_args::renew(args)?;
                Self::Renew(holder, ttl_ms)
            }
            RespCommand::Register => {
                let (pool, worker) = parse_args::register(args)?;
                Self::Register(pool, worker)
            }
            RespCommand::Heartbeat => {
                let (pool, id, heartbeat) = parse_args::heartbeat(args)?;
                Self::Heartbeat(pool, id, heartbeat)
            }
            RespCommand::Explain => Self::Explain(parse_args::claim(args)?),
            RespCommand::Pools => {
                let (after, limit) = parse_args::pools(args)?;
                Self::Pools(after, limit)
            }
            _ => unreachable!("all others are claims, releases, or about the connection"),
        })
    }

    /// Label of the call in the metrics.
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

    /// Longest time for which the call may be queued, in milliseconds.
    pub(super) fn wait_ms(&self) -> Millis {
        match self {
            Self::Claims(requests) => requests.iter().flatten().map(|request| request.wait_ms).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// Removes the wait from all claims.
    pub(super) fn clear_wait(&mut self) {
        if let Self::Claims(requests) = self {
            requests.iter_mut().flatten().for_each(|request| request.wait_ms = 0);
        }
    }

    /// Executes the call and returns its reply.
    pub(super) async fn run(self, scheduler: &Scheduler) -> Result<CallReply, ApiError> {
        Ok(match self {
            Self::Claims(requests) => {
                let submit = async |valid| Ok(scheduler.claim_batch(valid).await);
                CallReply::Claims(submit_valid("keys", requests.into_iter(), submit).await?)
            }
            Self::BeginRelease(RespClaimRef { id, fence }) => {
                CallReply::Number(u64::from(scheduler.begin_release_held(&id, fence).await?))
            }
            Self::Confirm(holder) => {
                let (id, fence) = require_fence(holder)?;
                CallReply::Claim(Box::new(scheduler.confirm(&id, fence).await?))
            }
            Self::Renew(holder, ttl_ms) => {
                let (id, fence) = require_fence(holder)?;
                CallReply::ExpiresAt(scheduler.renew(&id, fence, ttl_ms).await?.expires_at_ms)
            }
            Self::Register(pool, worker) => {
                CallReply::Number(u64::from(scheduler.register(&pool, worker).await?.created))
            }
            Self::Heartbeat(pool, id, heartbeat) => {
                let response = scheduler.heartbeat(&pool, &id, heartbeat).await?;
                let claims = response.claims.into_iter().map(|claim| RunningClaim { id: claim.id, fence: claim.fence });
                CallReply::Heartbeat {
                    claims: claims.collect(),
                    stop: response.stop,
                    superseded_by: response.superseded_by,
                }
            }
            Self::Explain(request) => json(&ExplainResponseBody::from(&scheduler.explain(request).await?)),
            Self::Pools(after, limit) => {
                json(&PageJson::<PoolJson<'_>>::from(&scheduler.list_pools(after.as_deref(), limit).await?))
            }
        })
    }
}

fn require_fence(RespClaimRef { id, fence }: RespClaimRef) -> Result<(ClaimId, Fence), ApiError> {
    let fence = fence.ok_or_else(|| ApiError::invalid("fence", "is required"))?;
    Ok((id, fence))
}

fn json(body: &impl Serialize) -> CallReply {
    CallReply::Json(serde_json::to_value(body).expect("every body is structs, strings and numbers"))
}

/// Reply to a call, before it is encoded.
pub(super) enum CallReply {
    Claims(Vec<Result<ClaimResult, ApiError>>),
    Claim(Box<ClaimView>),
    Number(u64),
    ExpiresAt(Option<Millis>),
    Heartbeat { claims: Vec<RunningClaim>, stop: Vec<RunningClaim>, superseded_by: Option<u64> },
    Json(serde_json::Value),
}

impl CallReply {
    /// Encodes the reply into the buffer.
    pub(super) fn write(&self, replies: &mut ReplyBuffer) {
        match self {
            Self::Claims(outcomes) => {
                replies.array(outcomes.len());
                for outcome in outcomes {
                    match outcome {
                        Ok(result) => replies.claim(&result.claim),
                        Err(failure) => replies.failure(failure),
                    }
                }
            }
            Self::Claim(claim) => replies.claim(claim),
            Self::Number(number) | Self::ExpiresAt(Some(number)) => replies.integer(*number),
            Self::ExpiresAt(None) => replies.null(),
            Self::Heartbeat { claims, stop, superseded_by } => {
                replies.map(2 + usize::from(superseded_by.is_some()));
                for (name, claims) in [("claims", claims), ("stop", stop)] {
                    replies.bulk_string(name);
                    replies.array(claims.len());
                    for RunningClaim { id, fence } in claims {
                        replies.array(3);
                        replies.bulk_string(id.tenant());
                        replies.bulk_string(id.key());
                        replies.integer(*fence);
                    }
                }
                if let Some(last_seq) = superseded_by {
                    replies.bulk_string("last_seq");
                    replies.integer(*last_seq);
                }
            }
            Self::Json(value) => replies.json(value),
        }
    }

    /// Counts the reply by its outcome.
    pub(super) fn record_replies(&self, command: RespCommand) {
        match self {
            Self::Claims(outcomes) => {
                for outcome in outcomes {
                    count(command, outcome.as_ref().map_or_else(ApiError::resp_outcome, |_| RespOutcome::Ok), 1);
                }
            }
            _ => count(command, RespOutcome::Ok, 1),
        }
    }
}

/// Counts so many replies of one outcome.
pub(super) fn count(command: RespCommand, outcome: RespOutcome, replies: u64) {
    metrics().resp_commands(command, outcome).increment(replies);
}

/// Error of a call whose deadline has passed.
pub(super) fn deadline_exceeded() -> ApiError {
    RequestError::DeadlineExceeded.into()
}
