//! Explanations on the wire.

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::api::error_table::Failure;
use crate::model::{Amounts, Explanation, NearMiss, PoolSurvey, RuledOut, Survey, WouldTake, is_zero};

/// `{"outcome","would_take"?,"error"?,"pools"}`.
#[derive(serde::Serialize)]
pub(in crate::api) struct ExplainAnswer<'a> {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_take: Option<WouldTakeJson<'a>>,
    /// As the claim would be answered: `{"error":{...}}`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
    pools: Vec<PoolJson<'a>>,
}

#[derive(serde::Serialize)]
struct WouldTakeJson<'a> {
    pool: &'a str,
    worker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
}

#[derive(serde::Serialize)]
struct PoolJson<'a> {
    pool: &'a str,
    workers: u64,
    fits: u64,
    ruled_out: Counts<'a>,
    #[serde(skip_serializing_if = "is_zero")]
    too_small: u64,
    nearest: Vec<NearJson<'a>>,
    most_free: &'a Amounts,
    #[serde(skip_serializing_if = "is_zero")]
    silent_shards: u64,
}

/// Reasons that ruled anybody out, in their order.
struct Counts<'a>(&'a Survey);

impl Serialize for Counts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for why in RuledOut::ALL.into_iter().filter(|why| self.0.count(*why) > 0) {
            map.serialize_entry(why.word(), &self.0.count(why))?;
        }
        map.end()
    }
}

#[derive(serde::Serialize)]
struct NearJson<'a> {
    worker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    short: &'a Amounts,
    text: String,
}

impl<'a> From<&'a NearMiss> for NearJson<'a> {
    fn from(miss: &'a NearMiss) -> Self {
        let NearMiss { worker, node, short, rank: _ } = miss;
        Self { worker: worker.as_str(), node: node.as_deref(), short, text: miss.text() }
    }
}

impl<'a> From<&'a PoolSurvey> for PoolJson<'a> {
    fn from(of: &'a PoolSurvey) -> Self {
        let PoolSurvey { pool, silent_shards, survey } = of;
        Self {
            pool: pool.pool(),
            workers: survey.workers,
            fits: survey.fits,
            ruled_out: Counts(survey),
            too_small: survey.too_small,
            nearest: survey.nearest.iter().map(Into::into).collect(),
            most_free: &survey.most_free,
            silent_shards: *silent_shards,
        }
    }
}

impl<'a> From<&'a Explanation> for ExplainAnswer<'a> {
    fn from(explanation: &'a Explanation) -> Self {
        let pools = explanation.pools.iter().map(Into::into).collect();
        match &explanation.outcome {
            Ok(WouldTake { pool, worker, node }) => {
                let would_take = WouldTakeJson { pool: pool.pool(), worker: worker.as_str(), node: node.as_deref() };
                Self { outcome: "placed", would_take: Some(would_take), error: None, pools }
            }
            Err(refusal) => Self { outcome: "refused", would_take: None, error: Some(refusal.clone().into()), pools },
        }
    }
}
