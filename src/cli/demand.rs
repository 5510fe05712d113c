//! Commands `hotpool demand ...`: workers that waiting claims need.

use clap::Args;

use super::args::PoolNameArg;
use super::failure::{CommandExit, CommandFailure};
use super::output::{describe_capacity, duration, join_nonempty, nonzero_text, property_list, table};
use super::{CommandContext, ConnectionArgs};
use crate::client::{DemandReply, DemandReplyShape};
use crate::model::{PoolName, ResourceRequirements, WorkerCapacity};

/// Show the demand for a pool: what waits, how many workers would clear it, and which could go.
#[derive(Debug, Args)]
#[command(after_help = "Example, the first worker that gets no new claims and can be removed:\n  \
                        hotpool demand demo/warm -o json | jq -r '[.idle[] | select(.cordoned)][0].worker'")]
pub struct DemandCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    #[command(flatten)]
    name: PoolNameArg,
}

impl DemandCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let PoolNameArg { pool } = self.name;
        context.print_reply(&context.client.demand(&pool).await?, |demand| demand_text(&pool, demand))?;
        Ok(CommandExit::Ok)
    }
}

fn demand_text(pool: &PoolName, demand: &DemandReply) -> String {
    let idle = demand.idle.iter().map(|idle| match idle.cordoned {
        true => format!("{} (cordoned)", idle.worker),
        false => idle.worker.clone(),
    });
    let properties = property_list(&[
        ("pool", pool.to_string()),
        ("waiting", demand.waiting.to_string()),
        ("oldest", if demand.waiting > 0 { duration(demand.oldest_ms) } else { String::new() }),
        ("for quota", nonzero_text(demand.waiting_for_quota)),
        ("busy", demand.workers_busy.to_string()),
        ("reserved", nonzero_text(demand.workers_reserved)),
        (
            "unusable",
            join_nonempty(
                demand.workers_unusable.iter().filter(|(_, n)| **n > 0).map(|(reason, n)| format!("{reason} {n}")),
            ),
        ),
        ("needed", demand.workers_needed.to_string()),
        ("wanted", demand.workers_wanted.to_string()),
        ("idle", join_nonempty(idle)),
    ]);
    if demand.shapes.is_empty() {
        return properties;
    }
    let headings = "ASKS FOR,SELECTOR,NODES,REASON,>WAITING,>OLDEST,>PRIORITY,>NEEDED";
    format!("{properties}\n\n{}", table(headings, demand.shapes.iter().map(shape_row)))
}

fn shape_row(shape: &DemandReplyShape) -> Vec<String> {
    vec![
        describe_request(&shape.resources),
        shape.selector.clone(),
        shape.nodes.join(","),
        shape.reason.clone(),
        shape.waiting.to_string(),
        duration(shape.oldest_ms),
        shape.priority.to_string(),
        shape.workers_needed.to_string(),
    ]
}

/// Formats requested resources: `cpu 2, gpu 0.5 a100|h100`.
fn describe_request(resources: &ResourceRequirements) -> String {
    let ResourceRequirements { cpu_milli, memory_bytes, slots, ref gpu } = *resources;
    let gpus = gpu.as_ref().map(|gpu| {
        let amount = f64::from(gpu.count) * f64::from(gpu.milli) / 1e3;
        format!("gpu {amount} {}", gpu.models.join("|")).trim_end().to_owned()
    });
    join_nonempty(
        [describe_capacity(&WorkerCapacity { cpu_milli, memory_bytes, slots, gpu: None })].into_iter().chain(gpus),
    )
}
