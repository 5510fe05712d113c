//! `hotpool status`: readiness, and every pool with its counts and how evenly its shards share them.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::failure::{CommandExit, CommandFailure};
use super::output::{OutputFormat, duration, print, table};
use super::pools::{count_cells, setting};
use super::{CommandContext, ConnectionArgs};
use crate::client::{ClientError, ItemList, ListRange, PoolDetails, RawJson, ShardsReply};
use crate::model::ShardStatus;

/// Moves the cursor to the upper left and clears the terminal below it.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Error code of a service that cannot answer now.
const UNAVAILABLE: &str = "UNAVAILABLE";

/// Show whether the service is ready, and every pool with its counts.
#[derive(Debug, Args)]
#[command(after_help = "Exit code 0 when the service is ready, 1 when it is not.\n\n\
                        Columns: OUT counts the workers that are neither idle nor busy, each under one reason: draining, \
                        cordoned, lost, suspect, ended, stopping or reserved. LAG is the age of the oldest record that the \
                        store lacks. WORKERS/SHARD and BUSY/SHARD are the minimum and maximum over shards, and the maximum \
                        as a multiple of the mean.\n\n\
                        Examples:\n  hotpool status\n  hotpool status --watch 5\n  hotpool status --output json")]
pub struct StatusCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    /// Refresh every so many seconds, until Ctrl-C
    #[arg(
        long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    watch: Option<u64>,
}

/// Status of the service at one time.
struct StatusSnapshot {
    /// Reasons against readiness; empty when ready.
    reasons: Vec<String>,
    /// Pools and their shards; `None` while the service cannot list them.
    pools: Option<(ItemList<PoolDetails>, RawJson<ShardsReply>)>,
}

impl StatusCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let Some(seconds) = self.watch else {
            let snapshot = StatusSnapshot::fetch(context).await?;
            print(&snapshot.render(context))?;
            return Ok(if snapshot.reasons.is_empty() { CommandExit::Ok } else { CommandExit::Error });
        };
        tokio::select! {
            stopped = tokio::signal::ctrl_c() => stopped.map(|()| CommandExit::Ok).map_err(CommandFailure::from_local),
            failed = watch(context, Duration::from_secs(seconds)) => Err(failed),
        }
    }
}

/// Prints the status again and again, also while the service is unreachable. Returns only if it cannot print.
async fn watch(context: &CommandContext, period: Duration) -> CommandFailure {
    let is_live = context.output == OutputFormat::Table && std::io::stdout().is_terminal();
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let text = match (StatusSnapshot::fetch(context).await, context.output) {
            (Ok(snapshot), _) => snapshot.render(context),
            (Err(failure), OutputFormat::Json) => json!(failure).to_string(),
            (Err(failure), OutputFormat::Table) => failure.to_string(),
        };
        let printed = if is_live { print(&format!("{REDRAW}{text}")) } else { print(&text) };
        if let Err(failure) = printed {
            return failure;
        }
    }
}

impl StatusSnapshot {
    async fn fetch(context: &CommandContext) -> Result<Self, CommandFailure> {
        let client = &context.client;
        let reasons = match client.readiness().await {
            Ok(reply) => reply.into_value().reasons,
            Err(ClientError::Service(error)) if error.code == UNAVAILABLE => vec![error.message],
            Err(error) => return Err(error.into()),
        };
        let pools = match client.list_pools(ListRange::default()).await {
            Ok(pools) => Some((pools, client.shards().await?)),
            Err(error) if error.has_code(UNAVAILABLE) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { reasons, pools })
    }

    fn render(&self, context: &CommandContext) -> String {
        match context.output {
            OutputFormat::Json => self.json(context).to_string(),
            OutputFormat::Table => self.text(context),
        }
    }

    /// Builds the JSON form: pools as in their listing, each with its `shards`.
    fn json(&self, context: &CommandContext) -> Value {
        let mut status = json!({
            "address": context.client.address().to_string(),
            "ready": self.reasons.is_empty(),
            "reasons": self.reasons,
        });
        if let Some((pools, shards)) = &self.pools {
            status["keys"] = shards.keys.into();
            let with_shards = pools.items.iter().map(|pool| {
                let mut json = json!(pool);
                json["shards"] = json!(shards.pools.get(&pool.full_name()));
                json
            });
            status["pools"] = with_shards.collect();
        }
        status
    }

    fn text(&self, context: &CommandContext) -> String {
        let mut text = context.client.address().to_string();
        text.push_str(if self.reasons.is_empty() { " is ready" } else { " is NOT READY" });
        for reason in &self.reasons {
            let _ = write!(text, "\n  {reason}");
        }
        let Some((pools, shards)) = &self.pools else { return text };
        let _ = writeln!(text, "\npools: {}, keys held: {}", pools.items.len(), shards.keys);
        let rows = pools.items.iter().map(|pool| {
            let shards = shards.pools.get(&pool.full_name());
            pool_row(pool, &shards.into_iter().flatten().map(|shard| &**shard).collect::<Vec<_>>())
        });
        if !pools.items.is_empty() {
            let headings = "POOL,ACK,SERVING,>WORKERS,>IDLE,>BUSY,OUT,>RESERVED,>ACTIVE,>RELEASING,>LAG,>QUEUE,\
                            WORKERS/SHARD,BUSY/SHARD";
            let _ = write!(text, "\n{}", table(headings, rows));
        }
        text
    }
}

fn pool_row(pool: &PoolDetails, shards: &[&ShardStatus]) -> Vec<String> {
    let serving = shards.iter().filter(|shard| shard.state == "serving").count();
    let mut row = vec![pool.full_name(), setting(pool, "ack"), format!("{serving}/{}", shards.len())];
    row.extend(count_cells(pool));
    row.push(duration(shards.iter().map(|shard| shard.lag_ms).max().unwrap_or_default()));
    row.push(shards.iter().map(|shard| shard.queue_depth).sum::<u64>().to_string());
    row.push(imbalance_text(shards, |shard| shard.workers));
    row.push(imbalance_text(shards, |shard| shard.busy));
    row
}

/// Formats the spread of a figure over shards: `3..9 x1.50` are minimum, maximum, and the maximum in multiples of the mean.
fn imbalance_text(shards: &[&ShardStatus], figure: fn(&ShardStatus) -> u64) -> String {
    let figures = || shards.iter().map(|shard| figure(shard));
    let (min, max, sum) =
        (figures().min().unwrap_or_default(), figures().max().unwrap_or_default(), figures().sum::<u64>());
    if sum == 0 {
        return String::new();
    }
    format!("{min}..{max} x{:.2}", max as f64 * shards.len() as f64 / sum as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_imbalance_of_shards_shows_a_hot_one() {
        let text = |busy: &[u64]| {
            let shards: Vec<_> = busy.iter().map(|&busy| ShardStatus { busy, ..ShardStatus::default() }).collect();
            imbalance_text(&shards.iter().collect::<Vec<_>>(), |shard| shard.busy)
        };
        assert_eq!([text(&[3, 3, 6]), text(&[0, 0]), text(&[])], ["3..6 x1.50", "", ""]);
    }
}
