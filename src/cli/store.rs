//! `hotpool store inspect`: what a store holds, read from the store itself. It takes nothing over.

use std::sync::Arc;

use clap::{Args, Subcommand};

use super::client::{CommandExit, CommandFailure};
use super::output::{OutputFormat, print, print_json, property_list, table};
use crate::persist::store::inspect::{RowDetail, StoreContents, WorkerContents, inspect};
use crate::persist::store::redb::RedbStore;
use crate::persist::store::redis::RedisStore;
use crate::persist::store::{SharedStore, StoreError};
use crate::server::config::{self, StoreUrl};

/// The store behind a service.
#[derive(Debug, Args)]
pub struct StoreCommand {
    #[command(subcommand)]
    verb: StoreSubcommand,
}

#[derive(Debug, Subcommand)]
enum StoreSubcommand {
    /// Print what a store holds, without taking it over
    #[command(after_help = "A directory (redb:DIR) must not be in use; Redis may be.\n\n\
                            Examples:\n  hotpool store inspect redis://127.0.0.1:6379\n  \
                            hotpool store inspect redis-cluster://a:6379,b:6379 --pool demo/warm --rows")]
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// redb:DIR, or one of the forms of Redis
    url: StoreUrl,
    /// Only this pool
    #[arg(long, value_name = "NS/POOL")]
    pool: Option<String>,
    /// Every worker, with what it holds
    #[arg(long)]
    rows: bool,
    /// What the keys begin with
    #[arg(long, value_name = "PREFIX", default_value_t = config::StoreConfig::default().key_prefix)]
    key_prefix: String,
    /// Certificates of the authorities to trust, in PEM
    #[arg(long, value_name = "FILE")]
    tls_ca_file: Option<std::path::PathBuf>,
    /// Certificate to show, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key_file")]
    tls_cert_file: Option<std::path::PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_key_file: Option<std::path::PathBuf>,
    /// A table for people, or JSON for scripts
    #[arg(
        long, short, global = true, value_enum, value_name = "table|json", default_value_t = OutputFormat::Table,
        hide_possible_values = true
    )]
    output: OutputFormat,
}

impl StoreCommand {
    /// Form in which a failure is told.
    pub(super) const fn output(&self) -> OutputFormat {
        let StoreSubcommand::Inspect(inspect) = &self.verb;
        inspect.output
    }

    pub(super) async fn run(self) -> Result<CommandExit, CommandFailure> {
        let StoreSubcommand::Inspect(InspectArgs {
            url,
            pool,
            rows,
            key_prefix,
            tls_ca_file,
            tls_cert_file,
            tls_key_file,
            output,
        }) = self.verb;
        let shown = url.to_string();
        let opened = match url {
            StoreUrl::Memory => return Err(CommandFailure::from_local("memory: keeps nothing")),
            StoreUrl::Redb(dir) if !dir.is_dir() => Err(StoreError::Unusable("there is no such directory".to_owned())),
            StoreUrl::Redb(dir) if !RedbStore::is_in(&dir) => {
                Err(StoreError::Unusable("there is no store in this directory".to_owned()))
            }
            StoreUrl::Redb(dir) => RedbStore::open(&dir).map(|store| Arc::new(store) as SharedStore),
            StoreUrl::Redis(url) => {
                let settings = config::StoreConfig {
                    key_prefix,
                    tls_ca_file: tls_ca_file.unwrap_or_default(),
                    tls_cert_file: tls_cert_file.unwrap_or_default(),
                    tls_key_file: tls_key_file.unwrap_or_default(),
                    ..config::StoreConfig::default()
                };
                RedisStore::open_read_only(settings.redis_options(url)).map(|store| Arc::new(store) as SharedStore)
            }
        };
        let wrong = |error: StoreError| CommandFailure::from_local(format!("cannot read {shown}: {error}"));
        let detail = if rows { RowDetail::Workers } else { RowDetail::Summary };
        let contents = inspect(&*opened.map_err(wrong)?, pool.as_deref(), detail).await.map_err(wrong)?;
        if let (Some(pool), true) = (&pool, contents.pools.is_empty()) {
            return Err(CommandFailure::not_found(format!("no pool {pool} in {shown}")));
        }
        match output {
            OutputFormat::Json => print_json(&contents)?,
            OutputFormat::Table => print(&text(&contents))?,
        }
        Ok(CommandExit::Ok)
    }
}

fn text(contents: &StoreContents) -> String {
    let about: Vec<(&str, String)> =
        contents.about.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let mut text = property_list(&about);
    for pool in &contents.pools {
        let deleting = if pool.deleting { ", being deleted" } else { "" };
        text.push_str(&format!("\n\n{} (uid {}{deleting})\n", pool.name, pool.uid));
        let rows = pool.shards.iter().map(|shard| {
            let seq = shard.seq.map_or_else(String::new, |seq| seq.to_string());
            let [workers, held, fence] = [shard.workers, shard.held, shard.fence_max].map(|n| n.to_string());
            let gangs = shard.gangs.len().to_string();
            vec![shard.shard.to_string(), seq, workers, held, fence, gangs, shard.error.clone().unwrap_or_default()]
        });
        text.push_str(&table(&[">SHARD", ">SEQ", ">WORKERS", ">HELD", ">FENCE MAX", ">GANGS", "ERROR"], rows));
        let workers = pool.shards.iter().flat_map(|shard| shard.rows.iter().map(move |row| (shard.shard, row)));
        let rows: Vec<Vec<String>> = workers
            .map(|(shard, row)| {
                let [version, incarnation] = [row.version, row.incarnation].map(|n| n.to_string());
                vec![shard.to_string(), row.id.clone(), version, incarnation, state(row), row.claims.join(", ")]
            })
            .collect();
        if !rows.is_empty() {
            text.push('\n');
            text.push('\n');
            text.push_str(&table(&[">SHARD", "WORKER", ">VERSION", ">INCARNATION", "STATE", "CLAIMS"], rows));
        }
    }
    if contents.pools.is_empty() {
        text.push_str("\n\nno pools");
    }
    if !contents.quotas.is_empty() {
        text.push_str("\n\n");
        let rows = contents.quotas.iter().map(|quota| vec![quota.name.clone(), quota.quota.to_string()]);
        text.push_str(&table(&["QUOTA", "BOUNDS"], rows));
    }
    text
}

/// Reasons for which a worker is not offered, as far as they follow from its row; empty: none does.
fn state(worker: &WorkerContents) -> String {
    if worker.deleted { "deleted".to_owned() } else { worker.unschedulable.join(", ") }
}
