//! `hotpool demand ...`.

use clap::Args;
use serde::Deserialize;

use super::args;
use super::client::{CommandExit, CommandFailure};
use super::output::{OutputFormat, describe_capacity, duration, print, property_list, table};
use super::pools::path;
use super::{CommandContext, ConnectionArgs};
use crate::model::{PoolName, ResourceRequirements, WorkerCapacity};

/// What waits for a pool, how many workers would clear it, and which could go.
#[derive(Debug, Args)]
#[command(after_help = "Example, the first worker that nobody is given any more and that can be removed:\n  \
                        hotpool demand demo/warm -o json | jq -r '[.idle[] | select(.cordoned)][0].worker'")]
pub struct DemandCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::parse_pool)]
    pool: PoolName,
}

#[derive(Deserialize)]
struct DemandReply {
    waiting: u64,
    waiting_for_quota: u64,
    oldest_ms: u64,
    workers_busy: u64,
    workers_needed: u64,
    workers_wanted: u64,
    shapes: Vec<DemandReplyShape>,
    idle: Vec<IdleWorkerReply>,
}

#[derive(Deserialize)]
struct DemandReplyShape {
    resources: ResourceRequirements,
    #[serde(default)]
    selector: String,
    #[serde(default)]
    nodes: Vec<String>,
    reason: String,
    waiting: u64,
    oldest_ms: u64,
    priority: u64,
    workers_needed: u64,
}

#[derive(Deserialize)]
struct IdleWorkerReply {
    worker: String,
    cordoned: bool,
}

impl DemandCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let answer = context.client.get(&format!("{}/demand", path(&self.pool))).await?;
        match context.output {
            OutputFormat::Json => print(answer.json.get())?,
            OutputFormat::Table => print(&context.client.read::<DemandReply>(&answer.json)?.text(&self.pool))?,
        }
        Ok(CommandExit::Ok)
    }
}

impl DemandReply {
    fn text(&self, pool: &PoolName) -> String {
        let idle: Vec<String> = self
            .idle
            .iter()
            .map(|idle| if idle.cordoned { format!("{} (cordoned)", idle.worker) } else { idle.worker.clone() })
            .collect();
        let mut text = property_list(&[
            ("pool", pool.to_string()),
            ("waiting", self.waiting.to_string()),
            ("oldest", if self.waiting > 0 { duration(self.oldest_ms) } else { String::new() }),
            ("for quota", if self.waiting_for_quota > 0 { self.waiting_for_quota.to_string() } else { String::new() }),
            ("busy", self.workers_busy.to_string()),
            ("needed", self.workers_needed.to_string()),
            ("wanted", self.workers_wanted.to_string()),
            ("idle", idle.join(", ")),
        ]);
        if !self.shapes.is_empty() {
            let headings = ["ASKS FOR", "SELECTOR", "NODES", "REASON", ">WAITING", ">OLDEST", ">PRIORITY", ">NEEDED"];
            text.push_str("\n\n");
            text.push_str(&table(&headings, self.shapes.iter().map(DemandReplyShape::row)));
        }
        text
    }
}

impl DemandReplyShape {
    fn row(&self) -> Vec<String> {
        vec![
            describe_request(&self.resources),
            self.selector.clone(),
            self.nodes.join(","),
            self.reason.clone(),
            self.waiting.to_string(),
            duration(self.oldest_ms),
            self.priority.to_string(),
            self.workers_needed.to_string(),
        ]
    }
}

/// `cpu 2, gpu 0.5 a100|h100`.
fn describe_request(resources: &ResourceRequirements) -> String {
    let ResourceRequirements { cpu_milli, memory_bytes, slots, ref gpu } = *resources;
    let sum = describe_capacity(&WorkerCapacity { cpu_milli, memory_bytes, slots, gpu: None });
    let cards = gpu.as_ref().map(|gpu| {
        let amount = f64::from(gpu.count) * f64::from(gpu.milli) / 1e3;
        format!("gpu {amount} {}", gpu.models.join("|")).trim_end().to_owned()
    });
    Some(sum).filter(|sum| !sum.is_empty()).into_iter().chain(cards).collect::<Vec<_>>().join(", ")
}
