//! `hotpool pools ...`.

mod change;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

use self::change::{PutPoolArgs, SetPoolArgs};
use super::args;
use super::client::{CommandExit, CommandFailure};
use super::output::{
    self, GpuAvailability, OutputFormat, counts, describe_capacity, duration, print, print_json, print_note,
    property_list, table,
};
use super::watch::WatchPoolArgs;
use super::{CommandContext, ConnectionArgs};
use crate::model::{PoolName, ShardStatus, WorkerCapacity};

/// Pools: make, look at, remove.
#[derive(Debug, Args)]
pub struct PoolsCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    #[command(subcommand)]
    verb: PoolsSubcommand,
}

#[derive(Debug, Subcommand)]
enum PoolsSubcommand {
    /// Make a pool, or replace its specification
    #[command(
        after_help = "A setting that is not said goes back to its default, and that is told; shards and mode stay as they \
                            are, for they never change. To change single settings: hotpool pools set\n\n\
                            Examples:\n  hotpool pools put demo/warm\n  \
                            hotpool pools put demo/shared --mode shared --policy spread\n  \
                            hotpool pools put demo/gpu --shards 4 --ack memory --reserve-ms 60000 --label tier=gold"
    )]
    Put(Box<PutPoolArgs>),
    /// Change single settings of a pool; the others stay
    #[command(
        after_help = "It is refused if somebody else changes the pool between its reading and its changing, or with \
                            --version since that was read.\n\n\
                            Examples:\n  hotpool pools set demo/warm --preemption true --label tier=gold\n  \
                            hotpool pools set demo/warm --reset class --reset labels.tier"
    )]
    Set(Box<SetPoolArgs>),
    /// List all pools with their counts
    Ls {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show one pool: specification, counts, every shard
    Show(PoolNameArg),
    /// Remove a pool that has no workers
    Rm {
        #[command(flatten)]
        name: PoolNameArg,
        /// Remove it with its workers; what they hold is lost
        #[arg(long)]
        force: bool,
    },
    /// Accept all workers that are suspect after a crash as they are
    Clear(PoolNameArg),
    /// Tell what happens in a pool, a line an event, until it is stopped
    #[command(after_help = "Example, the claims that end without their holder's doing:\n  \
                            hotpool pools watch demo/warm -o json | jq -c 'select(.event == \"released\" and .reason)'")]
    Watch(WatchPoolArgs),
}

#[derive(Debug, Args)]
struct PoolNameArg {
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::parse_pool)]
    pool: PoolName,
}

/// A pool as the service shows it.
#[derive(Debug, Deserialize)]
pub(super) struct PoolView {
    pub(super) namespace: String,
    pub(super) name: String,
    spec: Map<String, Value>,
    #[serde(default)]
    version: u64,
    /// Workers in all, idle and busy; and under each reason that applies to them.
    workers: BTreeMap<String, u64>,
    /// Workers that are neither idle nor busy, each under one reason. Not there: the service is an older one.
    #[serde(default)]
    unschedulable: Option<BTreeMap<String, u64>>,
    claims: BTreeMap<String, u64>,
    capacity: WorkerCapacity,
    free: WorkerCapacity,
    gpus: BTreeMap<String, GpuAvailability>,
    #[serde(default)]
    shards: Vec<ShardStatus>,
}

/// Counts of workers that have no reason to go with them.
const PLAIN_COUNTS: [&str; 3] = ["total", "idle", "busy"];

impl PoolView {
    /// Workers that are neither idle nor busy, by reason.
    fn unschedulable(&self) -> BTreeMap<String, u64> {
        self.unschedulable.clone().unwrap_or_else(|| self.by_reason())
    }

    /// Workers under each reason that applies to them.
    fn by_reason(&self) -> BTreeMap<String, u64> {
        let reasons = self.workers.iter().filter(|(name, _)| !PLAIN_COUNTS.contains(&name.as_str()));
        reasons.map(|(name, count)| (name.clone(), *count)).collect()
    }

    /// Counts as cells: workers in all, idle, busy, and the others by reason (`lost=1,suspect=2`); claims by state.
    pub(super) fn table_cells(&self) -> Vec<String> {
        let count = |counts: &BTreeMap<String, u64>, name| counts.get(name).copied().unwrap_or_default().to_string();
        let unschedulable = self.unschedulable();
        let unusual = unschedulable.iter().filter(|(_, count)| **count > 0);
        let mut cells = PLAIN_COUNTS.map(|name| count(&self.workers, name)).to_vec();
        cells.push(unusual.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(","));
        cells.extend(["reserved", "active", "releasing"].map(|name| count(&self.claims, name)));
        cells
    }

    /// A setting as a word.
    pub(super) fn setting(&self, name: &str) -> String {
        self.spec.get(name).map(setting_text).unwrap_or_default()
    }
}

/// Of `:clear`.
#[derive(Deserialize)]
struct ClearReply {
    cleared: u64,
    suspect: u64,
}

#[derive(Deserialize)]
struct PoolReply {
    pool: PoolView,
}

/// Path of a pool. Names need no encoding.
pub(super) fn path(pool: &PoolName) -> String {
    format!("/v1/pools/{pool}")
}

impl PoolsCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        match self.verb {
            PoolsSubcommand::Put(put) => put.run(context).await?,
            PoolsSubcommand::Set(set) => set.run(context).await?,
            PoolsSubcommand::Watch(watch) => return watch.run(context).await,
            PoolsSubcommand::Ls { limit } => list(context, limit).await?,
            PoolsSubcommand::Show(PoolNameArg { pool }) => {
                let answer = context.client.get(&path(&pool)).await?;
                match context.output {
                    OutputFormat::Json => print(answer.json.get())?,
                    OutputFormat::Table => print(&show(&context.client.read::<PoolReply>(&answer.json)?.pool))?,
                }
            }
            PoolsSubcommand::Rm { name: PoolNameArg { pool }, force } => {
                let query = if force { "?force=true" } else { "" };
                let answer = context.client.call(Method::DELETE, &format!("{}{query}", path(&pool)), None).await?;
                context.print_done(&answer, &format!("{pool} removed"))?;
            }
            PoolsSubcommand::Clear(PoolNameArg { pool }) => {
                let answer = context.client.call(Method::POST, &format!("{}:clear", path(&pool)), None).await?;
                let ClearReply { cleared, suspect } = context.client.read(&answer.json)?;
                let why = ", because claims that the last stop may have lost can still be started; try again later";
                let why = if suspect > 0 { why } else { "" };
                context
                    .print_done(&answer, &format!("{pool}: {cleared} workers cleared, {suspect} still suspect{why}"))?;
            }
        }
        Ok(CommandExit::Ok)
    }
}

async fn list(context: &CommandContext, limit: Option<u32>) -> Result<(), CommandFailure> {
    let all = context.client.list("/v1/pools", &[], limit.map(|limit| limit as usize)).await?;
    if context.output == OutputFormat::Json {
        return print_json(&all);
    }
    if all.items.is_empty() {
        print_note("no pools; make one: hotpool pools put demo/warm");
        return Ok(());
    }
    let rows = context.client.read_items::<PoolView>(&all)?.into_iter().map(|pool| {
        let mut row = vec![format!("{}/{}", pool.namespace, pool.name)];
        row.extend(["mode", "ack", "policy", "shards"].map(|name| pool.setting(name)));
        row.extend(pool.table_cells());
        row.extend([pool.setting("class"), pool.setting("labels")]);
        row
    });
    let headings = [
        "POOL",
        "MODE",
        "ACK",
        "POLICY",
        ">SHARDS",
        ">WORKERS",
        ">IDLE",
        ">BUSY",
        "OUT",
        ">RESERVED",
        ">ACTIVE",
        ">RELEASING",
        "CLASS",
        "LABELS",
    ];
    print(&table(&headings, rows))?;
    context.warn_if_truncated(&all);
    Ok(())
}

fn show(pool: &PoolView) -> String {
    let mut lines = vec![("pool", format!("{}/{}", pool.namespace, pool.name))];
    // Whatever the service calls a setting: a newer one may have more.
    lines.extend(pool.spec.iter().map(|(name, value)| (name.as_str(), setting_text(value))));
    lines.push(("version", pool.version.to_string()));
    let plain = PLAIN_COUNTS.iter().filter_map(|name| Some(((*name).to_owned(), *pool.workers.get(*name)?)));
    lines.push(("workers", counts(&plain.chain(pool.unschedulable()).collect())));
    // Of those, busy ones included, by each reason that applies.
    lines.push(("not offered", counts(&pool.by_reason())));
    lines.push(("claims", counts(&pool.claims)));
    let amounts = |sum: &WorkerCapacity, cards: fn(&str, GpuAvailability) -> String| {
        let cards = pool.gpus.iter().map(|(model, &both)| cards(model, both));
        Some(describe_capacity(sum))
            .filter(|text| !text.is_empty())
            .into_iter()
            .chain(cards)
            .collect::<Vec<_>>()
            .join(", ")
    };
    lines.push(("capacity", amounts(&pool.capacity, |model, cards| format!("gpu {} {model}", cards.total))));
    lines.push(("free", amounts(&pool.free, |model, cards| cards.describe_free(model))));
    format!("{}\n\n{}", property_list(&lines), shards(&pool.shards))
}

fn shards(shards: &[ShardStatus]) -> String {
    let headings = [
        ">SHARD",
        "STATE",
        ">WORKERS",
        ">IDLE",
        ">BUSY",
        ">CLAIMS",
        ">RESERVED",
        ">SEQ",
        ">LAG",
        ">QUEUE",
        ">WAITING",
        ">RESTARTS",
        "REASON",
    ];
    // Most often nothing is wrong, and then the column is missing.
    let wrong = shards.iter().any(|shard| shard.reason.is_some());
    let rows = shards.iter().map(|shard| {
        let mut row = vec![shard.shard.to_string(), shard.state.to_string()];
        let counts = [shard.workers, shard.idle, shard.busy, shard.claims, shard.reserved, shard.seq];
        row.extend(counts.map(|count| count.to_string()));
        row.push(duration(shard.lag_ms));
        row.extend([shard.queue_depth, shard.answers_waiting, shard.restarts].map(|count| count.to_string()));
        row.extend(wrong.then(|| shard.reason.clone().unwrap_or_default()));
        row
    });
    table(&headings[..headings.len() - usize::from(!wrong)], rows)
}

/// A value without the quotes that JSON needs; a map as `key=value,...`.
fn setting_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => {
            output::labels(&map.iter().map(|(key, value)| (key.clone(), setting_text(value))).collect())
        }
        other => other.to_string(),
    }
}
