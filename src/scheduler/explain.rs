//! Explanation of what a claim would find, and why. It follows the search of a claim from shard to shard and pool to
//! pool, using the same code, except that it takes no ticket and previews placements instead of taking workers.

use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::oneshot;

use super::{Scheduler, recv_outcome};
use crate::admission::dispatch::next_shard;
use crate::admission::key::{PendingClaim, ShardAsk};
use crate::admission::pool_registry::{Pool, PoolMap, ShardHandle};
use crate::admission::queue::QueueAhead;
use crate::admission::tenant::ChargeRank;
use crate::model::request_error::{ExhaustionReason, RequestError};
use crate::model::{
    ClaimExplanation, ClaimRequest, Millis, PlacementPreview, PoolSurvey, QuotaHeadroom, QuotaResource, ResourceUsage,
    WorkerSurvey,
};
use crate::shard::{Command, PreviewQuery, ReplyAddress, SurveyQuery, SurveySlice};

impl Scheduler {
    /// Explains what would happen to a claim now: the worker that it would get or the reason of its rejection, what its
    /// tenant's quota still allows, and for each candidate pool how many workers qualify, what rules out the others, and
    /// how many requests that wait are served before it. Changes nothing, and ignores whether the key is held. The survey
    /// of a large pool takes a while and is not a snapshot of one moment.
    ///
    /// # Errors
    /// Rejections of a claim that do not depend on workers: `Invalid` naming the field, `NotFound` for the pool,
    /// `Unavailable` while the service is loading.
    pub async fn explain(&self, request: ClaimRequest) -> Result<ClaimExplanation, RequestError> {
        self.check_serving()?;
        let pools = Arc::clone(&self.dispatch().pools.load());
        let reserve_ms = request.reserve_ms;
        let mut item = match self.dispatch().prepare_claim(&pools, &request, None, ReplyAddress::discard()) {
            Ok(item) => item,
            Err(error @ RequestError::Exhausted(ExhaustionReason::NoEligiblePool)) => {
                let (quota_headroom, _) = self.preview_charge(&request, ChargeRank { priority: 0, arrival: None });
                return Ok(ClaimExplanation { outcome: Err(error), quota_headroom, pools: Vec::new() });
            }
            Err(error) => return Err(error),
        };
        let keys = &self.dispatch().keys;
        let waiting = keys.queued_claim(&request.id).map(|(queued, _)| queued.charge_rank());
        let rank = waiting.unwrap_or_else(|| item.charge_rank());
        let tenant = keys.tenants.find_by_name(request.id.owner()).map(|tenant| tenant.number);
        let mut surveys = Vec::new();
        for pool in item.candidate_pools().iter().filter_map(|&number| pools.by_number(number)) {
            let survey = survey_pool(pool, &item, reserve_ms).await;
            let QueueAhead { claims, gangs } = pool.wait_queue.lock().ahead_of(tenant, rank);
            surveys.push(PoolSurvey { ahead: claims as u64, gangs_ahead: gangs as u64, ..survey });
        }
        let (quota_headroom, over_quota) = self.preview_charge(&request, rank);
        let outcome = match over_quota {
            // The quota is checked before any worker is sought.
            Some(resource) => Err(RequestError::Exhausted(ExhaustionReason::Quota(resource))),
            None => self.dry_run(&pools, &mut item).await,
        };
        Ok(ClaimExplanation { outcome, quota_headroom, pools: surveys })
    }

    fn preview_charge(&self, request: &ClaimRequest, rank: ChargeRank) -> (QuotaHeadroom, Option<QuotaResource>) {
        let spec = request.constraints.as_ref().map(|constraints| &constraints.spec);
        self.dispatch().keys.tenants.preview_charge(&request.id, &ResourceUsage::of_claim(spec), rank)
    }
}

impl Scheduler {
    /// Runs the search of the claim without effects, workers that are reserved for less urgent claims included.
    async fn dry_run(&self, pools: &PoolMap, item: &mut PendingClaim) -> Result<PlacementPreview, RequestError> {
        loop {
            let (pool, shard, constraints, target) = match item.next_ask(pools) {
                Some(ShardAsk { shard, target }) => {
                    let Some(pool) = pools.by_number(shard.pool) else { continue };
                    (pool, shard.shard, item.wanted(), target)
                }
                None => {
                    let Some((pool, shard)) = next_shard(pools, item) else {
                        if item.advance_stage(pools) {
                            continue;
                        }
                        let rejection = item.rejection(pools);
                        if self.dispatch().ask_reserved(item, &rejection) {
                            continue;
                        }
                        return Err(rejection);
                    };
                    (pool, shard, item.constraints().cloned(), None)
                }
            };
            item.tried_shards.insert(shard);
            let query = PreviewQuery {
                constraints,
                affinity: item.affinity,
                duration_ms: pool.spec.load().needs_ms(item.reserve_ms, item.ttl_ms),
                ack: item.ack,
                target,
            };
            let (reply, answer) = oneshot::channel();
            if let Err(rejected) = pool.shards[shard as usize].push(Command::Preview(query, reply)) {
                item.unreachable = Some(rejected.reason);
                continue;
            }
            match recv_outcome(answer).await? {
                Ok(worker) => {
                    let node = worker.spec.node.as_deref().map(Into::into);
                    return Ok(PlacementPreview { pool: pool.name.clone(), worker: worker.spec.id.clone(), node });
                }
                Err(Some(reason)) => item.record_failure(reason),
                Err(None) => {}
            }
        }
    }
}

/// Surveys all workers of a pool.
async fn survey_pool(pool: &Pool, item: &PendingClaim, reserve_ms: Option<Millis>) -> PoolSurvey {
    let spec = pool.spec.load();
    let query = SurveyQuery {
        constraints: item.accepts(),
        duration_ms: spec.needs_ms(reserve_ms.unwrap_or(spec.reserve_ms), item.ttl_ms),
        from_ordinal: 0,
    };
    let shards = join_all(pool.shards.iter().map(|handle| survey_shard(handle, query.clone()))).await;
    let mut total = PoolSurvey {
        pool: pool.name.clone(),
        silent_shards: 0,
        preemption_paused: pool.is_preemption_paused(),
        ahead: 0,
        gangs_ahead: 0,
        survey: WorkerSurvey::default(),
    };
    for shard in shards {
        match shard {
            Some(survey) => total.survey.merge(survey),
            None => total.silent_shards += 1,
        }
    }
    total
}

/// Surveys the workers of a shard, slice by slice. Returns `None` if the shard did not answer.
async fn survey_shard(handle: &ShardHandle, mut query: SurveyQuery) -> Option<WorkerSurvey> {
    let mut total = WorkerSurvey::default();
    loop {
        let (reply, answer) = oneshot::channel();
        handle.push_or_reject(Command::Survey(query.clone(), reply));
        let SurveySlice { survey, next } = recv_outcome(answer).await.ok()?;
        total.merge(survey);
        match next {
            Some(next) => query.from_ordinal = next,
            None => return Some(total),
        }
    }
}
