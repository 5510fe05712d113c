//! `hotpool store inspect`: the contents of a store, read from the store itself without taking it over.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::failure::{CommandExit, CommandFailure};
use super::output::{OutputFormat, print, print_json, property_list, table};
use crate::environment::Environment;
use crate::persist::store::file::FileStore;
use crate::persist::store::inspect::{PoolContents, RowDetail, StoreContents, WorkerContents, inspect};
use crate::persist::store::redis::RedisStore;
use crate::persist::store::{SharedStore, StoreError};
use crate::server::config::{StoreConfig, StoreUrl};

/// The store behind a service.
#[derive(Debug, Args)]
pub struct StoreCommand {
    #[command(subcommand)]
    verb: StoreSubcommand,
}

#[derive(Debug, Subcommand)]
enum StoreSubcommand {
    /// Print the contents of a store, without taking it over
    #[command(after_help = "A directory (file:DIR) must not be in use; Redis may be.\n\n\
                            Examples:\n  hotpool store inspect redis://127.0.0.1:6379\n  \
                            hotpool store inspect redis-cluster://a:6379,b:6379 --pool demo/warm --rows")]
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// file:DIR, or one of the Redis forms
    url: StoreUrl,
    /// Show only this pool
    #[arg(long, value_name = "NS/POOL")]
    pool: Option<String>,
    /// Print every worker with its claims
    #[arg(long)]
    rows: bool,
    /// Prefix of the Redis keys
    #[arg(long, value_name = "PREFIX", default_value_t = StoreConfig::default().key_prefix)]
    key_prefix: String,
    /// Certificates of the authorities to trust, in PEM
    #[arg(long, value_name = "FILE")]
    tls_ca_file: Option<PathBuf>,
    /// Client certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// Private key of the client certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,
    /// Print a table for people, or JSON for scripts
    #[arg(
        long, short, global = true, value_enum, value_name = "table|json", default_value_t = OutputFormat::Table,
        hide_possible_values = true
    )]
    output: OutputFormat,
}

impl StoreCommand {
    /// Returns the format of answers and failures.
    pub(super) const fn output(&self) -> OutputFormat {
        let StoreSubcommand::Inspect(inspect) = &self.verb;
        inspect.output
    }

    pub(super) async fn run(self) -> Result<CommandExit, CommandFailure> {
        let StoreSubcommand::Inspect(args) = self.verb;
        let shown = args.url.to_string();
        let unreadable = |error: StoreError| CommandFailure::from_local(format!("cannot read {shown}: {error}"));
        let store = args.open().map_err(unreadable)?;
        let detail = if args.rows { RowDetail::Workers } else { RowDetail::Summary };
        let contents = inspect(&*store, args.pool.as_deref(), detail).await.map_err(unreadable)?;
        if let (Some(pool), true) = (&args.pool, contents.pools.is_empty()) {
            return Err(CommandFailure::not_found(format!("no pool {pool} in {shown}")));
        }
        match args.output {
            OutputFormat::Json => print_json(&contents)?,
            OutputFormat::Table => print(&contents_text(&contents))?,
        }
        Ok(CommandExit::Ok)
    }
}

impl InspectArgs {
    fn open(&self) -> Result<SharedStore, StoreError> {
        let unusable = |message: &str| Err(StoreError::Unusable(message.to_owned()));
        match &self.url {
            StoreUrl::Memory => unusable("it stores nothing"),
            StoreUrl::File(dir) if !dir.is_dir() => unusable("there is no such directory"),
            StoreUrl::File(dir) if !FileStore::is_in(dir) => unusable("there is no store in this directory"),
            StoreUrl::File(dir) => Ok(Arc::new(FileStore::open(dir)?)),
            StoreUrl::Redis(url) => {
                let config = StoreConfig {
                    key_prefix: self.key_prefix.clone(),
                    tls_ca_file: self.tls_ca_file.clone().unwrap_or_default(),
                    tls_cert_file: self.tls_cert_file.clone().unwrap_or_default(),
                    tls_key_file: self.tls_key_file.clone().unwrap_or_default(),
                    ..StoreConfig::default()
                };
                Ok(Arc::new(RedisStore::open_read_only(config.redis_options(url.clone()), Environment::system())?))
            }
        }
    }
}

fn contents_text(contents: &StoreContents) -> String {
    let about: Vec<(&str, String)> =
        contents.about.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let mut sections = vec![property_list(&about)];
    sections.extend(contents.pools.iter().map(pool_text));
    if contents.pools.is_empty() {
        sections.push("no pools".to_owned());
    }
    if !contents.quotas.is_empty() {
        let rows = contents.quotas.iter().map(|quota| vec![quota.name.clone(), quota.quota.to_string()]);
        sections.push(table("QUOTA,BOUNDS", rows));
    }
    sections.join("\n\n")
}

fn pool_text(pool: &PoolContents) -> String {
    let deleting = if pool.deleting { ", being deleted" } else { "" };
    let shards = pool.shards.iter().map(|shard| {
        let seq = shard.seq.map_or_else(String::new, |seq| seq.to_string());
        let [workers, claimed, fence] = [shard.workers, shard.held, shard.fence_max].map(|n| n.to_string());
        let gangs = shard.gangs.len().to_string();
        vec![shard.shard.to_string(), seq, workers, claimed, fence, gangs, shard.error.clone().unwrap_or_default()]
    });
    let shards = table(">SHARD,>SEQ,>WORKERS,>HELD,>FENCE MAX,>GANGS,ERROR", shards);
    let text = format!("{} (uid {}{deleting})\n{shards}", pool.name, pool.uid);
    let workers = pool.shards.iter().flat_map(|shard| shard.rows.iter().map(move |row| (shard.shard, row)));
    let rows = workers.map(|(shard, row)| {
        let [version, incarnation] = [row.version, row.incarnation].map(|n| n.to_string());
        vec![shard.to_string(), row.id.clone(), version, incarnation, worker_state(row), row.claims.join(", ")]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return text;
    }
    format!("{text}\n\n{}", table(">SHARD,WORKER,>VERSION,>INCARNATION,STATE,CLAIMS", rows))
}

/// Formats why a worker is unschedulable, as far as its row shows it; empty if nothing is against it.
fn worker_state(worker: &WorkerContents) -> String {
    if worker.deleted { "deleted".to_owned() } else { worker.unschedulable.join(", ") }
}
