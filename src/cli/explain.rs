//! `hotpool explain ...`.

use std::collections::BTreeMap;

use clap::Args;
use hyper::Method;
use serde::Deserialize;

use super::claims::TakeArgs;
use super::client::{CommandExit, CommandFailure, ServiceError};
use super::output::{OutputFormat, describe_amounts, print, property_list};
use super::{CommandContext, ConnectionArgs};

/// What a claim would get, and why; takes nothing
#[derive(Debug, Args)]
#[command(after_help = "Exit code 0: the claim would be placed. 3: it would be refused.\n\n\
                        Examples:\n  hotpool explain demo/gpu --cpu-milli 2000 --gpu a100:2\n  \
                        hotpool explain demo/warm demo/cold --selector 'zone=a' --node n1")]
pub struct ExplainCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    #[command(flatten)]
    take: TakeArgs,
}

#[derive(Deserialize)]
struct ExplainReply {
    would_take: Option<PlacementReply>,
    error: Option<ServiceError>,
    pools: Vec<PoolSurveyReply>,
}

#[derive(Deserialize)]
struct PlacementReply {
    pool: String,
    worker: String,
    node: Option<String>,
}

#[derive(Deserialize)]
struct PoolSurveyReply {
    pool: String,
    workers: u64,
    fits: u64,
    /// In the order in which the service applies them.
    ruled_out: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    too_small: u64,
    nearest: Vec<NearestWorker>,
    most_free: BTreeMap<String, u64>,
    #[serde(default)]
    silent_shards: u64,
}

#[derive(Deserialize)]
struct NearestWorker {
    node: Option<String>,
    text: String,
}

impl ExplainCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let answer = context.client.call(Method::POST, "/v1/explain", Some(&self.take.body()?)).await?;
        let explanation: ExplainReply = context.client.read(&answer.json)?;
        match context.output {
            OutputFormat::Json => print(answer.json.get())?,
            OutputFormat::Table => print(&explanation.text())?,
        }
        Ok(if explanation.would_take.is_some() { CommandExit::Ok } else { CommandExit::Refused })
    }
}

impl ExplainReply {
    fn text(&self) -> String {
        let outcome = match (&self.would_take, &self.error) {
            (Some(PlacementReply { pool, worker, node }), _) => {
                let node = node.as_ref().map(|node| format!(" on node {node}")).unwrap_or_default();
                format!("placed: worker {worker} of {pool}{node}")
            }
            (None, Some(said)) => {
                let reason = said.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
                format!("refused: {} ({}{reason})", said.message, said.code)
            }
            (None, None) => "refused".to_owned(),
        };
        let pools = self.pools.iter().map(PoolSurveyReply::text);
        [property_list(&[("outcome", outcome)])].into_iter().chain(pools).collect::<Vec<_>>().join("\n\n")
    }
}

impl PoolSurveyReply {
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
        lines.push(("most free", describe_amounts(&self.most_free)));
        property_list(&lines)
    }
}
