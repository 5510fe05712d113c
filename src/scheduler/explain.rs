//! What a claim would find, and why. It goes the way of a claim, from shard to shard and from pool to pool, by the code
//! that claims go by; only that it takes no key's ticket, and asks shards what they would give instead of taking it.

use std::sync::Arc;

use futures::future::join_all;

use super::{Scheduler, recv_outcome};
use crate::admission::dispatch::next_shard;
use crate::admission::pool_registry::{Pool, PoolMap};
use crate::model::request_error::{ExhaustionReason, RequestError};
use crate::model::{ClaimExplanation, ClaimRequest, Millis, PlacementPreview, PoolSurvey, WorkerSurvey};
use crate::shard::{Command, ExplainQuery, PendingClaim, ReplyPayload, ReplySender, ShardHandle};

impl Scheduler {
    /// What would become of a claim now, and why: the worker that it would be given or the reason of its refusal, and for
    /// each pool that it may use which of its workers would do and what rules the others out. Changes nothing; whether
    /// its key is held does not matter. A survey of a large pool takes a while, and is not of one moment.
    ///
    /// # Errors
    /// Those of a claim that have nothing to do with workers: `Invalid` naming the field, `NotFound` for the pool,
    /// `loading`.
    pub async fn explain(&self, request: ClaimRequest) -> Result<ClaimExplanation, RequestError> {
        self.check_serving()?;
        let pools = Arc::clone(&self.dispatch().pools.load());
        let reserve_ms = request.reserve_ms;
        let mut item = match self.prepare_claim(request, 0, ReplySender::discard()) {
            Ok(item) => item,
            Err(refusal @ RequestError::Exhausted(ExhaustionReason::NoEligiblePool)) => {
                return Ok(ClaimExplanation { outcome: Err(refusal), pools: Vec::new() });
            }
            Err(refusal) => return Err(refusal),
        };
        let mut surveys = Vec::new();
        for pool in item.candidate_pools().iter().filter_map(|&number| pools.by_number(number)) {
            surveys.push(survey_pool(pool, &item, reserve_ms).await);
        }
        let outcome = dry_run(&pools, &mut item).await;
        Ok(ClaimExplanation { outcome, pools: surveys })
    }
}

/// The way of the claim, dry.
async fn dry_run(pools: &PoolMap, item: &mut PendingClaim) -> Result<PlacementPreview, RequestError> {
    loop {
        let Some((pool, shard)) = next_shard(pools, item) else {
            if item.advance_stage(pools) {
                continue;
            }
            return Err(item.refusal(pools));
        };
        item.tried_shards.insert(shard);
        let question = ExplainQuery {
            constraints: item.constraints().cloned(),
            affinity: item.affinity,
            duration_ms: pool.spec.load().needs_ms(item.reserve_ms, item.ttl_ms),
            durable: item.durable,
            from_ordinal: None,
        };
        let (reply, answer) = ReplySender::oneshot();
        if let Err((_, why)) = pool.shards[shard as usize].push(Command::Explain(question, reply)) {
            item.unreachable = Some(why);
            continue;
        }
        match recv_outcome(answer).await? {
            ReplyPayload::WouldTake(Ok(card)) => {
                let node = card.spec.node.as_deref().map(Into::into);
                return Ok(PlacementPreview { pool: pool.name.clone(), worker: card.spec.id.clone(), node });
            }
            ReplyPayload::WouldTake(Err(Some(why))) => item.record_failure(why),
            _ => {}
        }
    }
}

/// Each of the pool's workers, looked at.
async fn survey_pool(pool: &Pool, item: &PendingClaim, reserve_ms: Option<Millis>) -> PoolSurvey {
    let spec = pool.spec.load();
    let question = ExplainQuery {
        constraints: item.accepts(),
        affinity: item.affinity,
        duration_ms: spec.needs_ms(reserve_ms.unwrap_or(spec.reserve_ms), item.ttl_ms),
        durable: item.durable,
        from_ordinal: Some(0),
    };
    let shards = join_all(pool.shards.iter().map(|port| survey_shard(port, question.clone()))).await;
    let mut all = PoolSurvey { pool: pool.name.clone(), silent_shards: 0, survey: WorkerSurvey::default() };
    for shard in shards {
        match shard {
            Some(survey) => all.survey.merge(survey),
            None => all.silent_shards += 1,
        }
    }
    all
}

/// The same of one shard, some thousand at a time. None: it did not answer.
async fn survey_shard(port: &ShardHandle, mut question: ExplainQuery) -> Option<WorkerSurvey> {
    let mut all = WorkerSurvey::default();
    while question.from_ordinal.is_some() {
        let (reply, answer) = ReplySender::oneshot();
        port.push_or_reject(Command::Explain(question.clone(), reply));
        let Ok(ReplyPayload::Survey(survey, next)) = recv_outcome(answer).await else { return None };
        all.merge(*survey);
        question.from_ordinal = next;
    }
    Some(all)
}
