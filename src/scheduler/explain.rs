//! What a claim would find, and why. It goes the way of a claim, from shard to shard and from pool to pool, by the code
//! that claims go by; only that it takes no key's ticket, and asks shards what they would give instead of taking it.

use std::sync::Arc;

use futures::future::join_all;

use super::{Scheduler, wait};
use crate::admission::dispatch::pick;
use crate::admission::pools::{Pool, PoolMap};
use crate::model::rejection::{Exhausted, Refusal};
use crate::model::{ClaimRequest, Explanation, Millis, PoolSurvey, Survey, WouldTake};
use crate::shard::{ClaimItem, Command, Payload, Question, Reply, ShardPort};

impl Scheduler {
    /// What would become of a claim now, and why: the worker that it would be given or the reason of its refusal, and for
    /// each pool that it may use which of its workers would do and what rules the others out. Changes nothing; whether
    /// its key is held does not matter. A survey of a large pool takes a while, and is not of one moment.
    ///
    /// # Errors
    /// Those of a claim that have nothing to do with workers: `Invalid` naming the field, `NotFound` for the pool,
    /// `loading`.
    pub async fn explain(&self, request: ClaimRequest) -> Result<Explanation, Refusal> {
        self.open()?;
        let pools = Arc::clone(&self.dispatch().pools.load());
        let reserve_ms = request.reserve_ms;
        let mut item = match self.item(request, 0, Reply::nobody()) {
            Ok(item) => item,
            Err(refusal @ Refusal::Exhausted(Exhausted::NoEligiblePool)) => {
                return Ok(Explanation { outcome: Err(refusal), pools: Vec::new() });
            }
            Err(refusal) => return Err(refusal),
        };
        let mut surveys = Vec::new();
        for pool in item.candidates().iter().filter_map(|&number| pools.at(number)) {
            surveys.push(survey(pool, &item, reserve_ms).await);
        }
        let outcome = go(&pools, &mut item).await;
        Ok(Explanation { outcome, pools: surveys })
    }
}

/// The way of the claim, dry.
async fn go(pools: &PoolMap, item: &mut ClaimItem) -> Result<WouldTake, Refusal> {
    loop {
        let Some((pool, shard)) = pick(pools, item) else {
            if item.fall_back(pools) {
                continue;
            }
            return Err(item.refusal(pools));
        };
        item.visited.insert(shard);
        let question = Question {
            wants: item.wants().cloned(),
            affinity: item.affinity,
            needs_ms: pool.spec.load().needs_ms(item.reserve_ms, item.ttl_ms),
            durable: item.durable,
            from: None,
        };
        let (reply, answer) = Reply::one();
        if let Err((_, why)) = pool.ports[shard as usize].push(Command::Explain(question, reply)) {
            item.unasked = Some(why);
            continue;
        }
        match wait(answer).await? {
            Payload::WouldTake(Ok(card)) => {
                let node = card.spec.node.as_deref().map(Into::into);
                return Ok(WouldTake { pool: pool.name.clone(), worker: card.spec.id.clone(), node });
            }
            Payload::WouldTake(Err(Some(why))) => item.note(why),
            _ => {}
        }
    }
}

/// Each of the pool's workers, looked at.
async fn survey(pool: &Pool, item: &ClaimItem, reserve_ms: Option<Millis>) -> PoolSurvey {
    let spec = pool.spec.load();
    let question = Question {
        wants: item.accepts(),
        affinity: item.affinity,
        needs_ms: spec.needs_ms(reserve_ms.unwrap_or(spec.reserve_ms), item.ttl_ms),
        durable: item.durable,
        from: Some(0),
    };
    let shards = join_all(pool.ports.iter().map(|port| survey_shard(port, question.clone()))).await;
    let mut all = PoolSurvey { pool: pool.name.clone(), silent_shards: 0, survey: Survey::default() };
    for shard in shards {
        match shard {
            Some(survey) => all.survey.merge(survey),
            None => all.silent_shards += 1,
        }
    }
    all
}

/// The same of one shard, some thousand at a time. None: it did not answer.
async fn survey_shard(port: &ShardPort, mut question: Question) -> Option<Survey> {
    let mut all = Survey::default();
    while question.from.is_some() {
        let (reply, answer) = Reply::one();
        port.ask(Command::Explain(question.clone(), reply));
        let Ok(Payload::Survey(survey, next)) = wait(answer).await else { return None };
        all.merge(*survey);
        question.from = next;
    }
    Some(all)
}
