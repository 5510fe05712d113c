//! `hotpool status`: readiness, and every pool with its counts and how evenly its shards share them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::client::{CommandExit, CommandFailure};
use super::output::{OutputFormat, duration, print, table};
use super::pools::PoolView;
use super::{CommandContext, ConnectionArgs};
use crate::model::ShardStatus;

/// Puts the cursor to the upper left and clears what is below it.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Whether the service is ready, and every pool with its counts.
#[derive(Debug, Args)]
#[command(after_help = "Exit code 0 when the service is ready, 1 when it is not.\n\n\
                        Columns: OUT counts the workers that are neither idle nor busy, each under one reason: draining, cordoned, lost, suspect, ended, stopping or reserved. LAG is the age of the oldest record that the store lacks. WORKERS/SHARD and BUSY/SHARD \
                        are the least and the most that a shard has, and how many times the mean the most is.\n\n\
                        Examples:\n  hotpool status\n  hotpool status --watch 5\n  hotpool status --output json")]
pub struct StatusCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    /// Show it again every so many seconds, until Ctrl-C
    #[arg(
        long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    watch: Option<u64>,
}

/// All that is shown.
struct StatusSnapshot {
    reasons: Vec<String>,
    /// Not there while the service cannot tell.
    pools: Option<PoolsSnapshot>,
}

struct PoolsSnapshot {
    /// As they came.
    items: Vec<Box<RawValue>>,
    debug: DebugShards,
}

/// `GET /debug/shards`.
#[derive(Deserialize)]
struct DebugShards {
    keys: u64,
    pools: BTreeMap<String, Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
struct ReadinessReply {
    reasons: Vec<String>,
}

impl StatusCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let Some(seconds) = self.watch else {
            let picture = StatusSnapshot::fetch(context).await?;
            print(&picture.render(context)?)?;
            return Ok(picture.command_exit());
        };
        tokio::select! {
            stopped = tokio::signal::ctrl_c() => stopped.map(|()| CommandExit::Ok).map_err(CommandFailure::from_local),
            failed = watch(context, Duration::from_secs(seconds)) => Err(failed),
        }
    }
}

/// Goes on when the service is away: that is what somebody watches for. Ends only when nothing can be written.
async fn watch(context: &CommandContext, every: Duration) -> CommandFailure {
    let live = context.output == OutputFormat::Table && std::io::stdout().is_terminal();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let shown = match StatusSnapshot::fetch(context).await {
            Ok(picture) => picture.render(context),
            Err(failure) => Err(failure),
        };
        let text = shown.unwrap_or_else(|failure| match context.output {
            OutputFormat::Json => json!(failure).to_string(),
            OutputFormat::Table => failure.to_string(),
        });
        let written = if live { print(&format!("{REDRAW}{text}")) } else { print(&text) };
        if let Err(failure) = written {
            return failure;
        }
    }
}

impl StatusSnapshot {
    async fn fetch(context: &CommandContext) -> Result<Self, CommandFailure> {
        let client = &context.client;
        let reasons = match client.get("/readyz").await {
            Ok(answer) => client.read::<ReadinessReply>(&answer.json)?.reasons,
            Err(failure) if failure.is_unavailable() => vec![failure.error.message.clone()],
            Err(failure) => return Err(failure),
        };
        let pools = match client.list("/v1/pools", &[], None).await {
            Ok(all) => {
                Some(PoolsSnapshot { items: all.items, debug: client.read(&client.get("/debug/shards").await?.json)? })
            }
            Err(failure) if failure.is_unavailable() => None,
            Err(failure) => return Err(failure),
        };
        Ok(Self { reasons, pools })
    }

    fn command_exit(&self) -> CommandExit {
        if self.reasons.is_empty() { CommandExit::Ok } else { CommandExit::Error }
    }

    fn render(&self, context: &CommandContext) -> Result<String, CommandFailure> {
        match context.output {
            OutputFormat::Json => self.json(context).map(|json| json.to_string()),
            OutputFormat::Table => self.text(context),
        }
    }

    /// Pools as in their listing, each with its `shards`.
    fn json(&self, context: &CommandContext) -> Result<Value, CommandFailure> {
        let mut whole = json!({
            "address": context.client.address().to_string(),
            "ready": self.reasons.is_empty(),
            "reasons": self.reasons,
        });
        if let Some(PoolsSnapshot { items, debug }) = &self.pools {
            whole["keys"] = debug.keys.into();
            let mut pools = Vec::with_capacity(items.len());
            for item in items {
                let mut pool: Value = context.client.read(item)?;
                let name = format!(
                    "{}/{}",
                    pool["namespace"].as_str().unwrap_or_default(),
                    pool["name"].as_str().unwrap_or_default()
                );
                pool["shards"] = json!(debug.pools.get(&name));
                pools.push(pool);
            }
            whole["pools"] = pools.into();
        }
        Ok(whole)
    }

    fn text(&self, context: &CommandContext) -> Result<String, CommandFailure> {
        let mut text = context.client.address().to_string();
        match self.reasons.as_slice() {
            [] => text.push_str(" is ready"),
            reasons => {
                text.push_str(" is NOT READY");
                for reason in reasons {
                    let _ = write!(text, "\n  {reason}");
                }
            }
        }
        let Some(PoolsSnapshot { items, debug }) = &self.pools else { return Ok(text) };
        let _ = writeln!(text, "\npools: {}, keys held: {}", items.len(), debug.keys);
        let mut rows = Vec::with_capacity(items.len());
        for item in items {
            let pool: PoolView = context.client.read(item)?;
            let name = format!("{}/{}", pool.namespace, pool.name);
            let mut shards: Vec<ShardStatus> = Vec::new();
            for shard in debug.pools.get(&name).into_iter().flatten() {
                shards.push(context.client.read(shard)?);
            }
            rows.push(row(name, &pool, &shards));
        }
        let headings = [
            "POOL",
            "ACK",
            "SERVING",
            ">WORKERS",
            ">IDLE",
            ">BUSY",
            "OUT",
            ">RESERVED",
            ">ACTIVE",
            ">RELEASING",
            ">LAG",
            ">QUEUE",
            "WORKERS/SHARD",
            "BUSY/SHARD",
        ];
        if !rows.is_empty() {
            let _ = write!(text, "\n{}", table(&headings, rows));
        }
        Ok(text)
    }
}

fn row(name: String, pool: &PoolView, shards: &[ShardStatus]) -> Vec<String> {
    let serving = shards.iter().filter(|shard| shard.state == "serving").count();
    let mut row = vec![name, pool.setting("ack"), format!("{serving}/{}", shards.len())];
    row.extend(pool.table_cells());
    row.push(duration(shards.iter().map(|shard| shard.lag_ms).max().unwrap_or_default()));
    row.push(shards.iter().map(|shard| shard.queue_depth).sum::<u64>().to_string());
    row.push(imbalance_text(shards, |shard| shard.workers));
    row.push(imbalance_text(shards, |shard| shard.busy));
    row
}

/// `3..9 x1.50`: the least and the most of a shard, and how many times the mean the most is.
fn imbalance_text(shards: &[ShardStatus], figure: fn(&ShardStatus) -> u64) -> String {
    let figures = || shards.iter().map(figure);
    let (least, most, sum) =
        (figures().min().unwrap_or_default(), figures().max().unwrap_or_default(), figures().sum::<u64>());
    if sum == 0 {
        return String::new();
    }
    format!("{least}..{most} x{:.2}", most as f64 * shards.len() as f64 / sum as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_the_hot_shard() {
        let shards = |busy: &[u64]| -> Vec<ShardStatus> {
            busy.iter().map(|&busy| ShardStatus { busy, ..ShardStatus::default() }).collect()
        };
        assert_eq!(imbalance_text(&shards(&[3, 3, 6]), |shard| shard.busy), "3..6 x1.50");
        assert_eq!(imbalance_text(&shards(&[0, 0]), |shard| shard.busy), "");
        assert_eq!(imbalance_text(&[], |shard| shard.busy), "");
    }
}
