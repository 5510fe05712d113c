//! `hotpool pools ...`.

mod change;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

use self::change::{Put, Set};
use super::args;
use super::client::{Exit, Failure};
use super::output::{self, Cards, Format, capacity, counts, duration, note, print, print_json, sheet, table};
use super::watch::WatchPool;
use super::{Connection, Context};
use crate::model::{Capacity, PoolName, ShardStatus};

/// Pools: make, look at, remove.
#[derive(Debug, Args)]
pub struct Pools {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a pool, or replace its specification
    #[command(
        after_help = "A setting that is not said goes back to its default, and that is told; shards and mode stay as they \
                            are, for they never change. To change single settings: hotpool pools set\n\n\
                            Examples:\n  hotpool pools put demo/warm\n  \
                            hotpool pools put demo/shared --mode shared --policy spread\n  \
                            hotpool pools put demo/gpu --shards 4 --ack memory --reserve-ms 60000 --label tier=gold"
    )]
    Put(Box<Put>),
    /// Change single settings of a pool; the others stay
    #[command(
        after_help = "It is refused if somebody else changes the pool between its reading and its changing, or with \
                            --version since that was read.\n\n\
                            Examples:\n  hotpool pools set demo/warm --preemption true --label tier=gold\n  \
                            hotpool pools set demo/warm --reset class --reset labels.tier"
    )]
    Set(Box<Set>),
    /// List all pools with their counts
    Ls {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show one pool: specification, counts, every shard
    Show(Name),
    /// Remove a pool that has no workers
    Rm {
        #[command(flatten)]
        name: Name,
        /// Remove it with its workers; what they hold is lost
        #[arg(long)]
        force: bool,
    },
    /// Accept all workers that are suspect after a crash as they are
    Clear(Name),
    /// Tell what happens in a pool, a line an event, until it is stopped
    #[command(after_help = "Example, the claims that end without their holder's doing:\n  \
                            hotpool pools watch demo/warm -o json | jq -c 'select(.event == \"released\" and .reason)'")]
    Watch(WatchPool),
}

#[derive(Debug, Args)]
struct Name {
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::pool)]
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
    capacity: Capacity,
    free: Capacity,
    gpus: BTreeMap<String, Cards>,
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
    pub(super) fn cells(&self) -> Vec<String> {
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
        self.spec.get(name).map(word).unwrap_or_default()
    }
}

/// Of `:clear`.
#[derive(Deserialize)]
struct Cleared {
    cleared: u64,
    suspect: u64,
}

#[derive(Deserialize)]
struct PoolAnswer {
    pool: PoolView,
}

/// Path of a pool. Names need no encoding.
pub(super) fn path(pool: &PoolName) -> String {
    format!("/v1/pools/{pool}")
}

impl Pools {
    pub(super) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self.verb {
            Verb::Put(put) => put.run(context).await?,
            Verb::Set(set) => set.run(context).await?,
            Verb::Watch(watch) => return watch.run(context).await,
            Verb::Ls { limit } => list(context, limit).await?,
            Verb::Show(Name { pool }) => {
                let answer = context.client.get(&path(&pool)).await?;
                match context.output {
                    Format::Json => print(answer.json.get())?,
                    Format::Table => print(&show(&context.client.read::<PoolAnswer>(&answer.json)?.pool))?,
                }
            }
            Verb::Rm { name: Name { pool }, force } => {
                let query = if force { "?force=true" } else { "" };
                let answer = context.client.call(Method::DELETE, &format!("{}{query}", path(&pool)), None).await?;
                context.done(&answer, &format!("{pool} removed"))?;
            }
            Verb::Clear(Name { pool }) => {
                let answer = context.client.call(Method::POST, &format!("{}:clear", path(&pool)), None).await?;
                let Cleared { cleared, suspect } = context.client.read(&answer.json)?;
                let why = ", because claims that the last stop may have lost can still be started; try again later";
                let why = if suspect > 0 { why } else { "" };
                context.done(&answer, &format!("{pool}: {cleared} workers cleared, {suspect} still suspect{why}"))?;
            }
        }
        Ok(Exit::Ok)
    }
}

async fn list(context: &Context, limit: Option<u32>) -> Result<(), Failure> {
    let all = context.client.list("/v1/pools", &[], limit.map(|limit| limit as usize)).await?;
    if context.output == Format::Json {
        return print_json(&all);
    }
    if all.items.is_empty() {
        note("no pools; make one: hotpool pools put demo/warm");
        return Ok(());
    }
    let rows = context.client.read_items::<PoolView>(&all)?.into_iter().map(|pool| {
        let mut row = vec![format!("{}/{}", pool.namespace, pool.name)];
        row.extend(["mode", "ack", "policy", "shards"].map(|name| pool.setting(name)));
        row.extend(pool.cells());
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
    context.told_if_cut(&all);
    Ok(())
}

fn show(pool: &PoolView) -> String {
    let mut lines = vec![("pool", format!("{}/{}", pool.namespace, pool.name))];
    // Whatever the service calls a setting: a newer one may have more.
    lines.extend(pool.spec.iter().map(|(name, value)| (name.as_str(), word(value))));
    lines.push(("version", pool.version.to_string()));
    let plain = PLAIN_COUNTS.iter().filter_map(|name| Some(((*name).to_owned(), *pool.workers.get(*name)?)));
    lines.push(("workers", counts(&plain.chain(pool.unschedulable()).collect())));
    // Of those, busy ones included, by each reason that applies.
    lines.push(("not offered", counts(&pool.by_reason())));
    lines.push(("claims", counts(&pool.claims)));
    let amounts = |sum: &Capacity, cards: fn(&str, Cards) -> String| {
        let cards = pool.gpus.iter().map(|(model, &both)| cards(model, both));
        Some(capacity(sum)).filter(|text| !text.is_empty()).into_iter().chain(cards).collect::<Vec<_>>().join(", ")
    };
    lines.push(("capacity", amounts(&pool.capacity, |model, cards| format!("gpu {} {model}", cards.total))));
    lines.push(("free", amounts(&pool.free, |model, cards| cards.left(model))));
    format!("{}\n\n{}", sheet(&lines), shards(&pool.shards))
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
        ">RING",
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
        row.extend([shard.ring_depth, shard.answers_waiting, shard.restarts].map(|count| count.to_string()));
        row.extend(wrong.then(|| shard.reason.clone().unwrap_or_default()));
        row
    });
    table(&headings[..headings.len() - usize::from(!wrong)], rows)
}

/// A value without the quotes that JSON needs; a map as `key=value,...`.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => output::labels(&map.iter().map(|(key, value)| (key.clone(), word(value))).collect()),
        other => other.to_string(),
    }
}
