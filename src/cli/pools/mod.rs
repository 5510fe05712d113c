//! Commands `hotpool pools ...`: create, change, list and delete.

mod change;

use std::collections::BTreeMap;

use clap::{Args, Subcommand};

use self::change::{PutPoolArgs, SetPoolArgs};
use super::args::{LimitArg, PoolNameArg};
use super::failure::{CommandExit, CommandFailure};
use super::output::{
    counts, describe_capacity, describe_free_gpus, duration, join_nonempty, plain_text, property_list, table,
};
use super::watch::WatchPoolArgs;
use super::{CommandContext, ConnectionArgs};
use crate::client::{ClearReply, GpuAvailability, PoolDetails};
use crate::model::{ShardStatus, WorkerCapacity};

/// Pools: create, inspect, change, delete.
#[derive(Debug, Args)]
pub struct PoolsCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    #[command(subcommand)]
    verb: PoolsSubcommand,
}

#[derive(Debug, Subcommand)]
enum PoolsSubcommand {
    /// Create a pool, or replace its specification
    #[command(
        after_help = "An omitted setting returns to its default, and the command reports which did; shards and mode never \
                      change, so they may be omitted. To change single settings: hotpool pools set\n\n\
                      Examples:\n  hotpool pools put demo/warm\n  \
                      hotpool pools put demo/shared --mode shared --policy spread\n  \
                      hotpool pools put demo/gpu --shards 4 --ack memory --reserve-ms 60000 --label tier=gold"
    )]
    Put(Box<PutPoolArgs>),
    /// Change single settings of a pool; the others stay
    #[command(after_help = "Fails if the pool is changed concurrently, or with --version, after that version.\n\n\
                      Examples:\n  hotpool pools set demo/warm --preemption true --label tier=gold\n  \
                      hotpool pools set demo/warm --reset class --reset labels.tier")]
    Set(Box<SetPoolArgs>),
    /// List all pools with their counts
    Ls(LimitArg),
    /// Show one pool: specification, counts, every shard
    Show(PoolNameArg),
    /// Delete a pool that has no workers
    Rm {
        #[command(flatten)]
        name: PoolNameArg,
        /// Delete its workers too; their claims are lost
        #[arg(long)]
        force: bool,
    },
    /// Trust all workers that are suspect after a crash
    Clear(PoolNameArg),
    /// Print the events of a pool, one a line, until stopped
    #[command(after_help = "Example, claims that end without an action of their holder:\n  \
                            hotpool pools watch demo/warm -o json | jq -c 'select(.event == \"released\" and .reason)'")]
    Watch(WatchPoolArgs),
}

impl PoolsCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let client = &context.client;
        match self.verb {
            PoolsSubcommand::Put(put) => put.run(context).await?,
            PoolsSubcommand::Set(set) => set.run(context).await?,
            PoolsSubcommand::Watch(watch) => return watch.run(context).await,
            PoolsSubcommand::Ls(limit) => {
                let pools = client.list_pools(limit.into()).await?;
                let headings = "POOL,MODE,ACK,POLICY,>SHARDS,>WORKERS,>IDLE,>BUSY,OUT,>RESERVED,>ACTIVE,>RELEASING,CLASS,\
                                LABELS";
                context.print_list(&pools, "no pools; create one: hotpool pools put demo/warm", headings, |pool| {
                    let mut row = vec![pool.full_name()];
                    row.extend(["mode", "ack", "policy", "shards"].map(|name| setting(pool, name)));
                    row.extend(count_cells(pool));
                    row.extend(["class", "labels"].map(|name| setting(pool, name)));
                    row
                })?;
            }
            PoolsSubcommand::Show(PoolNameArg { pool }) => {
                context.print_reply(&client.get_pool(&pool).await?, |reply| pool_text(&reply.pool))?;
            }
            PoolsSubcommand::Rm { name: PoolNameArg { pool }, force } => {
                let deleted = match force {
                    true => client.delete_pool_and_workers(&pool).await?,
                    false => client.delete_pool(&pool).await?,
                };
                context.print_reply(&deleted, |_| format!("{pool} removed"))?;
            }
            PoolsSubcommand::Clear(PoolNameArg { pool }) => {
                context.print_reply(&client.clear_pool(&pool).await?, |ClearReply { cleared, suspect }| {
                    let hint = match suspect {
                        0 => "",
                        _ => ", because claims that the last crash may have lost can still start; try again later",
                    };
                    format!("{pool}: {cleared} workers cleared, {suspect} still suspect{hint}")
                })?;
            }
        }
        Ok(CommandExit::Ok)
    }
}

/// Counts of workers in `workers` that are no reasons.
const PLAIN_COUNTS: [&str; 3] = ["total", "idle", "busy"];

/// Counts workers under each reason that applies to them.
fn workers_by_reason(pool: &PoolDetails) -> BTreeMap<String, u64> {
    let reasons = pool.workers.iter().filter(|(name, _)| !PLAIN_COUNTS.contains(&name.as_str()));
    reasons.map(|(name, count)| (name.clone(), *count)).collect()
}

/// Counts workers that are neither idle nor busy, each under one reason.
fn unschedulable(pool: &PoolDetails) -> BTreeMap<String, u64> {
    pool.unschedulable.clone().unwrap_or_else(|| workers_by_reason(pool))
}

/// Formats counts as cells: all workers, idle, busy, and the others by reason (`lost=1,suspect=2`); claims by state.
pub(super) fn count_cells(pool: &PoolDetails) -> Vec<String> {
    let count = |counts: &BTreeMap<String, u64>, name| counts.get(name).copied().unwrap_or_default().to_string();
    let unschedulable = unschedulable(pool);
    let nonzero = unschedulable.iter().filter(|(_, count)| **count > 0);
    let mut cells = PLAIN_COUNTS.map(|name| count(&pool.workers, name)).to_vec();
    cells.push(nonzero.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(","));
    cells.extend(["reserved", "active", "releasing"].map(|name| count(&pool.claims, name)));
    cells
}

/// Explanation of the pause of a pool's preemption.
pub(super) const PREEMPTION_PAUSED: &str =
    "paused until workers are cleared whose evicted claims were not released in time";

/// Formats one setting of a pool; empty if it is not set.
pub(super) fn setting(pool: &PoolDetails, name: &str) -> String {
    pool.spec.get(name).map(plain_text).unwrap_or_default()
}

fn pool_text(pool: &PoolDetails) -> String {
    let mut properties = vec![("pool", pool.full_name())];
    // All settings that the service names: a newer one may have more.
    properties.extend(pool.spec.iter().map(|(name, value)| (name.as_str(), plain_text(value))));
    properties.push(("version", pool.version.to_string()));
    let plain = PLAIN_COUNTS.iter().filter_map(|name| Some(((*name).to_owned(), *pool.workers.get(*name)?)));
    properties.push(("workers", counts(&plain.chain(unschedulable(pool)).collect())));
    // Busy workers are counted here too, under each reason that applies.
    properties.push(("not offered", counts(&workers_by_reason(pool))));
    properties.push(("claims", counts(&pool.claims)));
    if pool.preemption_paused {
        properties.push(("preemption", PREEMPTION_PAUSED.to_owned()));
    }
    let amounts = |sum: &WorkerCapacity, describe: fn(GpuAvailability, &str) -> String| {
        let gpus = pool.gpus.iter().map(|(model, gpus)| describe(*gpus, model));
        join_nonempty([describe_capacity(sum)].into_iter().chain(gpus))
    };
    properties.push(("capacity", amounts(&pool.capacity, |gpus, model| format!("gpu {} {model}", gpus.total))));
    properties.push(("free", amounts(&pool.free, describe_free_gpus)));
    format!("{}\n\n{}", property_list(&properties), shard_table(&pool.shards))
}

fn shard_table(shards: &[ShardStatus]) -> String {
    const HEADINGS: &str =
        ">SHARD,STATE,>WORKERS,>IDLE,>BUSY,>CLAIMS,>RESERVED,>SEQ,>LAG,>QUEUE,>WAITING,>RESTARTS,REASON";
    // Usually every shard serves, and the column of reasons is left out.
    let has_reasons = shards.iter().any(|shard| shard.reason.is_some());
    let rows = shards.iter().map(|shard| {
        let mut row = vec![shard.shard.to_string(), shard.state.to_string()];
        let counts = [shard.workers, shard.idle, shard.busy, shard.claims, shard.reserved, shard.seq];
        row.extend(counts.map(|count| count.to_string()));
        row.push(duration(shard.lag_ms));
        row.extend([shard.queue_depth, shard.answers_waiting, shard.restarts].map(|count| count.to_string()));
        row.extend(has_reasons.then(|| shard.reason.clone().unwrap_or_default()));
        row
    });
    table(if has_reasons { HEADINGS } else { HEADINGS.trim_end_matches(",REASON") }, rows)
}
