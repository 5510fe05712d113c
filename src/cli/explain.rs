//! `hotpool explain ...`.

use std::collections::BTreeMap;

use clap::Args;
use hyper::Method;
use serde::Deserialize;

use super::claims::Take;
use super::client::{Exit, Failure, Said};
use super::output::{Format, amounts, print, sheet};
use super::{Connection, Context};

/// What a claim would get, and why; takes nothing
#[derive(Debug, Args)]
#[command(after_help = "Exit code 0: the claim would be placed. 3: it would be refused.\n\n\
                        Examples:\n  hotpool explain demo/gpu --cpu-milli 2000 --gpu a100:2\n  \
                        hotpool explain demo/warm demo/cold --selector 'zone=a' --node n1")]
pub struct Explain {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(flatten)]
    take: Take,
}

#[derive(Deserialize)]
struct Explanation {
    would_take: Option<WouldTake>,
    error: Option<Said>,
    pools: Vec<PoolSurvey>,
}

#[derive(Deserialize)]
struct WouldTake {
    pool: String,
    worker: String,
    node: Option<String>,
}

#[derive(Deserialize)]
struct PoolSurvey {
    pool: String,
    workers: u64,
    fits: u64,
    /// In the order in which the service applies them.
    ruled_out: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    too_small: u64,
    nearest: Vec<Near>,
    most_free: BTreeMap<String, u64>,
    #[serde(default)]
    silent_shards: u64,
}

#[derive(Deserialize)]
struct Near {
    node: Option<String>,
    text: String,
}

impl Explain {
    pub(super) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let answer = context.client.call(Method::POST, "/v1/explain", Some(&self.take.body()?)).await?;
        let explanation: Explanation = context.client.read(&answer.json)?;
        match context.output {
            Format::Json => print(answer.json.get())?,
            Format::Table => print(&explanation.text())?,
        }
        Ok(if explanation.would_take.is_some() { Exit::Ok } else { Exit::Refused })
    }
}

impl Explanation {
    fn text(&self) -> String {
        let outcome = match (&self.would_take, &self.error) {
            (Some(WouldTake { pool, worker, node }), _) => {
                let node = node.as_ref().map(|node| format!(" on node {node}")).unwrap_or_default();
                format!("placed: worker {worker} of {pool}{node}")
            }
            (None, Some(said)) => {
                let reason = said.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
                format!("refused: {} ({}{reason})", said.message, said.code)
            }
            (None, None) => "refused".to_owned(),
        };
        let pools = self.pools.iter().map(PoolSurvey::text);
        [sheet(&[("outcome", outcome)])].into_iter().chain(pools).collect::<Vec<_>>().join("\n\n")
    }
}

impl PoolSurvey {
    fn text(&self) -> String {
        let out: Vec<_> = self.ruled_out.iter().map(|(why, count)| format!("{why} {count}")).collect();
        let small = match self.too_small {
            0 => String::new(),
            small => format!(" ({small} of them too small in all)"),
        };
        let silent = match self.silent_shards {
            0 => String::new(),
            silent => format!("{silent} did not answer"),
        };
        let mut lines = vec![
            ("pool", self.pool.clone()),
            ("shards", silent),
            ("workers", self.workers.to_string()),
            ("fits", self.fits.to_string()),
            ("ruled out", format!("{}{small}", out.join(", "))),
        ];
        lines.extend(self.nearest.iter().map(|near| {
            let node = near.node.as_ref().map(|node| format!(" (node {node})")).unwrap_or_default();
            ("nearest", format!("{}{node}", near.text))
        }));
        lines.push(("most free", amounts(&self.most_free)));
        sheet(&lines)
    }
}
