//! Explanations of claims as responses.

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::api::error_table::ApiError;
use crate::model::{
    ClaimExplanation, FilterReason, NearMiss, PlacementPreview, PoolSurvey, QuotaHeadroom, ResourceAmounts,
    WorkerSurvey, is_zero,
};

/// `{"outcome","would_take"?,"error"?,"quota_headroom"?,"pools"}`: what a claim would get.
#[derive(serde::Serialize)]
pub(in crate::api) struct ExplainResponseBody<'a> {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_take: Option<WouldTakeJson<'a>>,
    /// Error that the claim would get: `{"error":{...}}`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    error: Option<ApiError>,
    #[serde(skip_serializing_if = "QuotaHeadroom::is_unlimited")]
    quota_headroom: QuotaHeadroom,
    pools: Vec<PoolSurveyJson<'a>>,
}

#[derive(serde::Serialize)]
struct WouldTakeJson<'a> {
    pool: &'a str,
    worker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
}

#[derive(serde::Serialize)]
struct PoolSurveyJson<'a> {
    pool: &'a str,
    workers: u64,
    fits: u64,
    ruled_out: RuledOutJson<'a>,
    #[serde(skip_serializing_if = "is_zero")]
    too_small: u64,
    nearest: Vec<NearMissJson<'a>>,
    most_free: &'a ResourceAmounts,
    #[serde(skip_serializing_if = "is_zero")]
    silent_shards: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    preemption_paused: bool,
    #[serde(skip_serializing_if = "is_zero")]
    ahead: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gangs_ahead: u64,
}

/// Counts of the filters that excluded any worker, in the order of the filters.
struct RuledOutJson<'a>(&'a WorkerSurvey);

impl Serialize for RuledOutJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for reason in FilterReason::ALL.iter().copied().filter(|reason| self.0.count(*reason) > 0) {
            map.serialize_entry(reason.as_str(), &self.0.count(reason))?;
        }
        map.end()
    }
}

#[derive(serde::Serialize)]
struct NearMissJson<'a> {
    worker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    short: &'a ResourceAmounts,
    text: String,
}

impl<'a> From<&'a NearMiss> for NearMissJson<'a> {
    fn from(miss: &'a NearMiss) -> Self {
        let NearMiss { worker, node, shortfall: short, rank: _ } = miss;
        Self { worker: worker.as_str(), node: node.as_deref(), short, text: miss.describe() }
    }
}

impl<'a> From<&'a PoolSurvey> for PoolSurveyJson<'a> {
    fn from(pool_survey: &'a PoolSurvey) -> Self {
        let PoolSurvey { pool, silent_shards, preemption_paused, ahead, gangs_ahead, survey } = pool_survey;
        Self {
            pool: pool.pool(),
            workers: survey.workers,
            fits: survey.fits,
            ruled_out: RuledOutJson(survey),
            too_small: survey.too_small,
            nearest: survey.nearest.iter().map(Into::into).collect(),
            most_free: &survey.most_free,
            silent_shards: *silent_shards,
            preemption_paused: *preemption_paused,
            ahead: *ahead,
            gangs_ahead: *gangs_ahead,
        }
    }
}

impl<'a> From<&'a ClaimExplanation> for ExplainResponseBody<'a> {
    fn from(explanation: &'a ClaimExplanation) -> Self {
        let ClaimExplanation { outcome, quota_headroom, pools } = explanation;
        let (quota_headroom, pools) = (*quota_headroom, pools.iter().map(Into::into).collect());
        match outcome {
            Ok(PlacementPreview { pool, worker, node }) => {
                let would_take = WouldTakeJson { pool: pool.pool(), worker: worker.as_str(), node: node.as_deref() };
                Self { outcome: "placed", would_take: Some(would_take), error: None, quota_headroom, pools }
            }
            Err(error) => {
                let error = Some(error.clone().into());
                Self { outcome: "refused", would_take: None, error, quota_headroom, pools }
            }
        }
    }
}
