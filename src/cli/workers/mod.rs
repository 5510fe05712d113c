//! `hotpool workers ...`.

mod worker_calls;

use std::collections::BTreeMap;

use clap::{ArgGroup, Args, Subcommand};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::{self, CapacityArgs, LabelArgs, expand_stdin, to_sparse_json};
use super::claims::ClaimDetails;
use super::client::{CommandExit, CommandFailure, ItemList};
use super::output::{
    OutputFormat, describe_capacity, labels, left, print, print_json, print_note, property_list, relative_time, table,
};
use super::pools::path;
use super::{CommandContext, ConnectionArgs};
use crate::clock::Clock;
use crate::model::label_selector::LabelSelector;
use crate::model::{PoolName, WorkerCapacity};

/// Registrations in one request; a request also ends at [`BATCH_BYTES`].
const BATCH_ITEMS: usize = 1_000;
/// Registrations in one request, in bytes: below the smallest body that most services take.
const BATCH_BYTES: usize = 1 << 20;
/// Most workers that one command makes up by itself.
const COUNT_MAX: i64 = 1_000_000;
/// Registrations that failed and are told one by one; the rest is counted. JSON has them all in any case.
const FAILURES_SHOWN_MAX: usize = 20;
/// Claims of one worker that a row of a table names; `show` names all.
const CLAIMS_SHOWN_MAX: usize = 3;

/// Workers of a pool: register, look at, take out of service.
#[derive(Debug, Args)]
pub struct WorkersCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    #[command(subcommand)]
    verb: WorkersSubcommand,
}

#[derive(Debug, Subcommand)]
enum WorkersSubcommand {
    /// Register workers, or replace what is known of them
    #[command(after_help = "Examples:\n  hotpool workers add demo/warm w1 --cpu-milli 1000 --memory-bytes 4Gi\n  \
                            hotpool workers add demo/warm --count 100 --prefix w- --label zone=a\n  \
                            cat ids.txt | hotpool workers add demo/warm -")]
    Add(AddWorkersArgs),
    /// List the workers of a pool
    Ls {
        /// NAMESPACE/POOL
        #[arg(value_name = "NS/POOL", value_parser = args::parse_pool)]
        pool: PoolName,
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show one worker and what it holds
    Show {
        /// NAMESPACE/POOL
        #[arg(value_name = "NS/POOL", value_parser = args::parse_pool)]
        pool: PoolName,
        /// The worker
        #[arg(value_parser = args::parse_name)]
        id: String,
    },
    /// Offer them no more; what they hold stays
    #[command(
        after_help = BY_LABELS,
        override_usage = "hotpool workers cordon [OPTIONS] <NS/POOL> <ID>...\n       \
                          hotpool workers cordon [OPTIONS] <NS/POOL> --selector <SELECTOR>"
    )]
    Cordon(WorkerSelectionArgs),
    /// Offer them again
    #[command(
        after_help = BY_LABELS,
        override_usage = "hotpool workers uncordon [OPTIONS] <NS/POOL> <ID>...\n       \
                          hotpool workers uncordon [OPTIONS] <NS/POOL> --selector <SELECTOR>"
    )]
    Uncordon(WorkerSelectionArgs),
    /// Offer them never again; what they hold stays until it ends
    #[command(
        after_help = BY_LABELS,
        override_usage = "hotpool workers drain [OPTIONS] <NS/POOL> <ID>...\n       \
                          hotpool workers drain [OPTIONS] <NS/POOL> --selector <SELECTOR>"
    )]
    Drain(WorkerSelectionArgs),
    /// Trust them again as they are
    Clear(WorkerIdArgs),
    /// Remove them; what they hold is lost
    Rm(WorkerIdArgs),
}

#[derive(Debug, Args)]
struct WorkerIdArgs {
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::parse_pool)]
    pool: PoolName,
    /// The workers; `-` reads ids from stdin
    #[arg(required = true, value_name = "ID", value_parser = args::parse_name)]
    ids: Vec<String>,
}

/// Workers by name, or by their labels.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true).args(["ids", "selector"]))]
struct WorkerSelectionArgs {
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::parse_pool)]
    pool: PoolName,
    /// The workers; `-` reads ids from stdin
    #[arg(value_name = "ID", value_parser = args::parse_name)]
    ids: Vec<String>,
    /// Instead of ids: all whose labels fit, as in 'topology.kubernetes.io/zone=a, !spot'
    #[arg(long, value_name = "SELECTOR", value_parser = args::parse_selector)]
    selector: Option<LabelSelector>,
    /// Tell which fit, and do nothing
    #[arg(long, conflicts_with = "ids")]
    dry_run: bool,
}

const BY_LABELS: &str = "With --selector the labels are looked at page by page, while workers may come and go; how many \
                         fitted is told, and each that failed.\n\n\
                         Examples:\n  hotpool workers drain demo/warm w1 w2\n  \
                         hotpool workers cordon demo/warm --selector 'topology.kubernetes.io/zone=a' --dry-run";

#[derive(Debug, Args)]
struct AddWorkersArgs {
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::parse_pool)]
    pool: PoolName,
    /// The workers; `-` reads ids from stdin
    #[arg(required_unless_present = "count", value_name = "ID", value_parser = args::parse_name)]
    ids: Vec<String>,
    /// Make up so many ids: the prefix and a number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    count: Option<u32>,
    /// What the made-up ids begin with
    #[arg(long, requires = "count", default_value = "w-", value_parser = args::parse_name)]
    prefix: String,
    /// Number of the first made-up id
    #[arg(long, requires = "count", value_name = "N", default_value_t = 0)]
    from: u32,
    #[command(flatten)]
    spec: WorkerSpecArgs,
}

/// Specification that all workers of one command have.
#[derive(Debug, Args, Serialize)]
struct WorkerSpecArgs {
    #[command(flatten)]
    capacity: CapacityArgs,
    #[command(flatten)]
    labels: LabelArgs,
    /// The machine they run on
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Grows when a worker starts anew: a higher one ends what the old one held
    #[arg(long, value_name = "N")]
    incarnation: Option<u64>,
    /// Unix time at which they go, in milliseconds
    #[arg(long, value_name = "UNIX_MS")]
    expires_at_ms: Option<u64>,
}

/// A worker as the service shows it.
#[derive(Debug, Deserialize)]
struct WorkerDetails {
    id: String,
    #[serde(default)]
    capacity: WorkerCapacity,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    node: Option<String>,
    #[serde(default)]
    incarnation: u64,
    occupancy: String,
    schedulability: String,
    #[serde(default)]
    liveness: String,
    #[serde(default)]
    trust: String,
    #[serde(default)]
    overcommitted: bool,
    expires_at_ms: Option<u64>,
    shard: u16,
    version: u64,
    #[serde(default)]
    claims: Vec<ClaimDetails>,
}

impl WorkerDetails {
    /// The axes in one cell: whether it is held, then what is out of the ordinary.
    fn state(&self) -> String {
        let mut words = vec![self.occupancy.as_str()];
        let usual = ["open", "live", "trusted", ""];
        words.extend(
            [&*self.schedulability, &*self.liveness, &*self.trust].into_iter().filter(|word| !usual.contains(word)),
        );
        words.extend(self.overcommitted.then_some("overcommitted"));
        words.join(",")
    }
}

#[derive(Deserialize)]
struct WorkerReply {
    worker: WorkerDetails,
}

/// One outcome of a registration: the worker, or an error.
#[derive(Deserialize)]
struct RegistrationReply {
    #[serde(default)]
    created: bool,
    #[serde(flatten)]
    failure: Option<CommandFailure>,
}

impl WorkersCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        match self.verb {
            WorkersSubcommand::Add(add) => return add.run(context).await,
            WorkersSubcommand::Ls { pool, limit } => list(context, &pool, limit).await?,
            WorkersSubcommand::Show { pool, id } => {
                let answer = context.client.get(&format!("{}/workers/{id}", path(&pool))).await?;
                match context.output {
                    OutputFormat::Json => print(answer.json.get())?,
                    OutputFormat::Table => {
                        print(&show(&pool, &context.client.read::<WorkerReply>(&answer.json)?.worker))?
                    }
                }
            }
            WorkersSubcommand::Cordon(chosen) => return chosen.call_selected(context, ":cordon", "cordoned").await,
            WorkersSubcommand::Uncordon(chosen) => {
                return chosen.call_selected(context, ":uncordon", "uncordoned").await;
            }
            WorkersSubcommand::Drain(chosen) => return chosen.call_selected(context, ":drain", "draining").await,
            WorkersSubcommand::Clear(ids) => return ids.call_each(context, Method::POST, ":clear", "cleared").await,
            WorkersSubcommand::Rm(ids) => return ids.call_each(context, Method::DELETE, "", "removed").await,
        }
        Ok(CommandExit::Ok)
    }
}

impl AddWorkersArgs {
    async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let mut ids = expand_stdin(&self.ids)?;
        let numbers = (self.from..).take(self.count.unwrap_or_default() as usize);
        ids.extend(numbers.map(|number| format!("{}{number}", self.prefix)));
        if ids.is_empty() {
            return Err(CommandFailure::usage("ID", "no ids on stdin"));
        }
        let spec = to_sparse_json(&self.spec);
        let mut outcomes = ItemList { items: Vec::with_capacity(ids.len()), next_page_token: None };
        let (mut exit, mut new, mut known, mut failed) = (CommandExit::Ok, 0_usize, 0_usize, 0_usize);
        let target = format!("{}/workers:batch", path(&self.pool));
        let mut rest = ids.as_slice();
        while !rest.is_empty() {
            let (batch, taken) = registration_batch(rest, &spec);
            let (sent, after) = rest.split_at(taken);
            rest = after;
            let answer = context.client.call(Method::POST, &target, Some(&batch)).await;
            // What was registered before a request failed stays so: it is told, and the same command may be said again.
            let answer = answer.inspect_err(|_| {
                if new + known > 0 {
                    print_note(&format!("{} of {} workers were registered before this:", new + known, ids.len()));
                }
            })?;
            let items = context.client.read::<ItemList>(&answer.json)?.items;
            if items.len() != sent.len() {
                return Err(context.client.invalid_response("another number of outcomes than of workers"));
            }
            for (id, item) in sent.iter().zip(&items) {
                let RegistrationReply { created, failure } = context.client.read(item)?;
                match failure.map(CommandFailure::with_exit) {
                    Some(failure) => {
                        exit = exit.max(failure.exit);
                        failed += 1;
                        if failed <= FAILURES_SHOWN_MAX {
                            context.output.print_failure(&failure.with_id(id));
                        }
                    }
                    None if created => new += 1,
                    None => known += 1,
                }
            }
            outcomes.items.extend(items);
        }
        match context.output {
            OutputFormat::Json => print_json(&outcomes)?,
            OutputFormat::Table => {
                if failed > FAILURES_SHOWN_MAX {
                    print_note(&format!("... and {} more failed", failed - FAILURES_SHOWN_MAX));
                }
                print(&format!("{}: {new} new, {known} updated", self.pool))?;
            }
        }
        Ok(exit)
    }
}

/// As many registrations as fit into one request, at least one; and how many.
fn registration_batch(ids: &[String], spec: &Value) -> (Value, usize) {
    let spec_bytes = spec.to_string().len();
    let mut bytes = 0;
    let fits = |id: &&String| {
        bytes += id.len() + spec_bytes + 16;
        bytes <= BATCH_BYTES
    };
    let fitting = ids.iter().take(BATCH_ITEMS).take_while(fits).count().max(1);
    let workers = ids[..fitting].iter().map(|id| {
        let mut worker = spec.clone();
        worker["id"] = id.as_str().into();
        worker
    });
    (serde_json::json!({"workers": workers.collect::<Vec<_>>()}), fitting)
}

async fn list(context: &CommandContext, pool: &PoolName, limit: Option<u32>) -> Result<(), CommandFailure> {
    let all = context.client.list(&format!("{}/workers", path(pool)), &[], limit.map(|limit| limit as usize)).await?;
    if context.output == OutputFormat::Json {
        return print_json(&all);
    }
    if all.items.is_empty() {
        print_note(&format!("{pool} has no workers; add one: hotpool workers add {pool} w1"));
        return Ok(());
    }
    let rows = context.client.read_items::<WorkerDetails>(&all)?.into_iter().map(|worker| {
        let mut held =
            worker.claims.iter().take(CLAIMS_SHOWN_MAX).map(ClaimDetails::name).collect::<Vec<_>>().join(",");
        if worker.claims.len() > CLAIMS_SHOWN_MAX {
            held = format!("{held},+{}", worker.claims.len() - CLAIMS_SHOWN_MAX);
        }
        vec![
            worker.id.clone(),
            worker.state(),
            held,
            worker.node.unwrap_or_default(),
            describe_capacity(&worker.capacity),
            labels(&worker.labels),
            worker.incarnation.to_string(),
            worker.shard.to_string(),
        ]
    });
    let headings = ["WORKER", "STATE", "CLAIM", "NODE", "CAPACITY", "LABELS", ">INCARNATION", ">SHARD"];
    print(&table(&headings, rows))?;
    context.warn_if_truncated(&all);
    Ok(())
}

fn show(pool: &PoolName, worker: &WorkerDetails) -> String {
    let now_ms = Clock::system().unix_ms();
    let mut lines = vec![
        ("worker", worker.id.clone()),
        ("pool", pool.to_string()),
        ("occupancy", worker.occupancy.clone()),
        ("schedulability", worker.schedulability.clone()),
        ("liveness", worker.liveness.clone()),
        ("trust", worker.trust.clone()),
        ("overcommitted", if worker.overcommitted { "yes" } else { "" }.to_owned()),
        ("capacity", describe_capacity(&worker.capacity)),
        ("left", left(&worker.capacity, worker.claims.iter().map(|claim| &claim.resources))),
        ("labels", labels(&worker.labels)),
        ("node", worker.node.clone().unwrap_or_default()),
        ("incarnation", worker.incarnation.to_string()),
        ("expires", worker.expires_at_ms.map(|at| relative_time(at, now_ms)).unwrap_or_default()),
        ("shard", worker.shard.to_string()),
        ("version", worker.version.to_string()),
    ];
    lines.extend(worker.claims.iter().map(|claim| ("holds", claim.line(now_ms))));
    property_list(&lines)
}
