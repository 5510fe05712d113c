//! `hotpool workers ...`.

use std::collections::BTreeMap;

use clap::{ArgGroup, Args, Subcommand};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::{self, Has, Labels, said, with_stdin};
use super::claims::ClaimView;
use super::client::{Exit, Failure, Items};
use super::output::{Format, capacity, labels, left, moment, note, print, print_json, sheet, table};
use super::pools::path;
use super::{Connection, Context};
use crate::clock::Clock;
use crate::model::label_selector::Selector;
use crate::model::{Capacity, PoolName};

mod calls;

/// Registrations in one request; a request also ends at [`BATCH_BYTES`].
const BATCH_ITEMS: usize = 1_000;
/// Registrations in one request, in bytes: below the smallest body that most services take.
const BATCH_BYTES: usize = 1 << 20;
/// Most workers that one command makes up by itself.
const COUNT_MAX: i64 = 1_000_000;
/// Registrations that failed and are told one by one; the rest is counted. JSON has them all in any case.
const COMPLAINTS: usize = 20;
/// Claims of one worker that a row of a table names; `show` names all.
const NAMED: usize = 3;

/// Workers of a pool: register, look at, take out of service.
#[derive(Debug, Args)]
pub struct Workers {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Register workers, or replace what is known of them
    #[command(after_help = "Examples:\n  hotpool workers add demo/warm w1 --cpu-milli 1000 --memory-bytes 4Gi\n  \
                            hotpool workers add demo/warm --count 100 --prefix w- --label zone=a\n  \
                            cat ids.txt | hotpool workers add demo/warm -")]
    Add(Add),
    /// List the workers of a pool
    Ls {
        /// NAMESPACE/POOL
        #[arg(value_name = "NS/POOL", value_parser = args::pool)]
        pool: PoolName,
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show one worker and what it holds
    Show {
        /// NAMESPACE/POOL
        #[arg(value_name = "NS/POOL", value_parser = args::pool)]
        pool: PoolName,
        /// The worker
        #[arg(value_parser = args::name)]
        id: String,
    },
    /// Offer them no more; what they hold stays
    #[command(
        after_help = BY_LABELS,
        override_usage = "hotpool workers cordon [OPTIONS] <NS/POOL> <ID>...\n       \
                          hotpool workers cordon [OPTIONS] <NS/POOL> --selector <SELECTOR>"
    )]
    Cordon(Chosen),
    /// Offer them again
    #[command(
        after_help = BY_LABELS,
        override_usage = "hotpool workers uncordon [OPTIONS] <NS/POOL> <ID>...\n       \
                          hotpool workers uncordon [OPTIONS] <NS/POOL> --selector <SELECTOR>"
    )]
    Uncordon(Chosen),
    /// Offer them never again; what they hold stays until it ends
    #[command(
        after_help = BY_LABELS,
        override_usage = "hotpool workers drain [OPTIONS] <NS/POOL> <ID>...\n       \
                          hotpool workers drain [OPTIONS] <NS/POOL> --selector <SELECTOR>"
    )]
    Drain(Chosen),
    /// Trust them again as they are
    Clear(Ids),
    /// Remove them; what they hold is lost
    Rm(Ids),
}

#[derive(Debug, Args)]
struct Ids {
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::pool)]
    pool: PoolName,
    /// The workers; `-` reads ids from stdin
    #[arg(required = true, value_name = "ID", value_parser = args::name)]
    ids: Vec<String>,
}

/// Workers by name, or by their labels.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true).args(["ids", "selector"]))]
struct Chosen {
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::pool)]
    pool: PoolName,
    /// The workers; `-` reads ids from stdin
    #[arg(value_name = "ID", value_parser = args::name)]
    ids: Vec<String>,
    /// Instead of ids: all whose labels fit, as in 'topology.kubernetes.io/zone=a, !spot'
    #[arg(long, value_name = "SELECTOR", value_parser = args::selector)]
    selector: Option<Selector>,
    /// Tell which fit, and do nothing
    #[arg(long, conflicts_with = "ids")]
    dry_run: bool,
}

const BY_LABELS: &str = "With --selector the labels are looked at page by page, while workers may come and go; how many \
                         fitted is told, and each that failed.\n\n\
                         Examples:\n  hotpool workers drain demo/warm w1 w2\n  \
                         hotpool workers cordon demo/warm --selector 'topology.kubernetes.io/zone=a' --dry-run";

#[derive(Debug, Args)]
struct Add {
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::pool)]
    pool: PoolName,
    /// The workers; `-` reads ids from stdin
    #[arg(required_unless_present = "count", value_name = "ID", value_parser = args::name)]
    ids: Vec<String>,
    /// Make up so many ids: the prefix and a number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    count: Option<u32>,
    /// What the made-up ids begin with
    #[arg(long, requires = "count", default_value = "w-", value_parser = args::name)]
    prefix: String,
    /// Number of the first made-up id
    #[arg(long, requires = "count", value_name = "N", default_value_t = 0)]
    from: u32,
    #[command(flatten)]
    spec: Spec,
}

/// Specification that all workers of one command have.
#[derive(Debug, Args, Serialize)]
struct Spec {
    #[command(flatten)]
    capacity: Has,
    #[command(flatten)]
    labels: Labels,
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
struct WorkerView {
    id: String,
    #[serde(default)]
    capacity: Capacity,
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
    claims: Vec<ClaimView>,
}

impl WorkerView {
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
struct WorkerAnswer {
    worker: WorkerView,
}

/// One outcome of a registration: the worker, or an error.
#[derive(Deserialize)]
struct Added {
    #[serde(default)]
    created: bool,
    #[serde(flatten)]
    failure: Option<Failure>,
}

impl Workers {
    pub(super) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self.verb {
            Verb::Add(add) => return add.run(context).await,
            Verb::Ls { pool, limit } => list(context, &pool, limit).await?,
            Verb::Show { pool, id } => {
                let answer = context.client.get(&format!("{}/workers/{id}", path(&pool))).await?;
                match context.output {
                    Format::Json => print(answer.json.get())?,
                    Format::Table => print(&show(&pool, &context.client.read::<WorkerAnswer>(&answer.json)?.worker))?,
                }
            }
            Verb::Cordon(chosen) => return chosen.steer(context, ":cordon", "cordoned").await,
            Verb::Uncordon(chosen) => return chosen.steer(context, ":uncordon", "uncordoned").await,
            Verb::Drain(chosen) => return chosen.steer(context, ":drain", "draining").await,
            Verb::Clear(ids) => return ids.each(context, Method::POST, ":clear", "cleared").await,
            Verb::Rm(ids) => return ids.each(context, Method::DELETE, "", "removed").await,
        }
        Ok(Exit::Ok)
    }
}

impl Add {
    async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let mut ids = with_stdin(&self.ids)?;
        let numbers = (self.from..).take(self.count.unwrap_or_default() as usize);
        ids.extend(numbers.map(|number| format!("{}{number}", self.prefix)));
        if ids.is_empty() {
            return Err(Failure::usage("ID", "no ids on stdin"));
        }
        let spec = said(&self.spec);
        let mut outcomes = Items { items: Vec::with_capacity(ids.len()), next_page_token: None };
        let (mut exit, mut new, mut known, mut failed) = (Exit::Ok, 0_usize, 0_usize, 0_usize);
        let target = format!("{}/workers:batch", path(&self.pool));
        let mut rest = ids.as_slice();
        while !rest.is_empty() {
            let (batch, taken) = batch(rest, &spec);
            let (sent, after) = rest.split_at(taken);
            rest = after;
            let answer = context.client.call(Method::POST, &target, Some(&batch)).await;
            // What was registered before a request failed stays so: it is told, and the same command may be said again.
            let answer = answer.inspect_err(|_| {
                if new + known > 0 {
                    note(&format!("{} of {} workers were registered before this:", new + known, ids.len()));
                }
            })?;
            let items = context.client.read::<Items>(&answer.json)?.items;
            if items.len() != sent.len() {
                return Err(context.client.rubbish("another number of outcomes than of workers"));
            }
            for (id, item) in sent.iter().zip(&items) {
                let Added { created, failure } = context.client.read(item)?;
                match failure.map(Failure::with_exit) {
                    Some(failure) => {
                        exit = exit.max(failure.exit);
                        failed += 1;
                        if failed <= COMPLAINTS {
                            context.output.complain(&failure.about(id));
                        }
                    }
                    None if created => new += 1,
                    None => known += 1,
                }
            }
            outcomes.items.extend(items);
        }
        match context.output {
            Format::Json => print_json(&outcomes)?,
            Format::Table => {
                if failed > COMPLAINTS {
                    note(&format!("... and {} more failed", failed - COMPLAINTS));
                }
                print(&format!("{}: {new} new, {known} updated", self.pool))?;
            }
        }
        Ok(exit)
    }
}

/// As many registrations as fit into one request, at least one; and how many.
fn batch(ids: &[String], spec: &Value) -> (Value, usize) {
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

async fn list(context: &Context, pool: &PoolName, limit: Option<u32>) -> Result<(), Failure> {
    let all = context.client.list(&format!("{}/workers", path(pool)), &[], limit.map(|limit| limit as usize)).await?;
    if context.output == Format::Json {
        return print_json(&all);
    }
    if all.items.is_empty() {
        note(&format!("{pool} has no workers; add one: hotpool workers add {pool} w1"));
        return Ok(());
    }
    let rows = context.client.read_items::<WorkerView>(&all)?.into_iter().map(|worker| {
        let mut held = worker.claims.iter().take(NAMED).map(ClaimView::name).collect::<Vec<_>>().join(",");
        if worker.claims.len() > NAMED {
            held = format!("{held},+{}", worker.claims.len() - NAMED);
        }
        vec![
            worker.id.clone(),
            worker.state(),
            held,
            worker.node.unwrap_or_default(),
            capacity(&worker.capacity),
            labels(&worker.labels),
            worker.incarnation.to_string(),
            worker.shard.to_string(),
        ]
    });
    let headings = ["WORKER", "STATE", "CLAIM", "NODE", "CAPACITY", "LABELS", ">INCARNATION", ">SHARD"];
    print(&table(&headings, rows))?;
    context.told_if_cut(&all);
    Ok(())
}

fn show(pool: &PoolName, worker: &WorkerView) -> String {
    let now_ms = Clock::system().unix_ms();
    let mut lines = vec![
        ("worker", worker.id.clone()),
        ("pool", pool.to_string()),
        ("occupancy", worker.occupancy.clone()),
        ("schedulability", worker.schedulability.clone()),
        ("liveness", worker.liveness.clone()),
        ("trust", worker.trust.clone()),
        ("overcommitted", if worker.overcommitted { "yes" } else { "" }.to_owned()),
        ("capacity", capacity(&worker.capacity)),
        ("left", left(&worker.capacity, worker.claims.iter().map(|claim| &claim.resources))),
        ("labels", labels(&worker.labels)),
        ("node", worker.node.clone().unwrap_or_default()),
        ("incarnation", worker.incarnation.to_string()),
        ("expires", worker.expires_at_ms.map(|at| moment(at, now_ms)).unwrap_or_default()),
        ("shard", worker.shard.to_string()),
        ("version", worker.version.to_string()),
    ];
    lines.extend(worker.claims.iter().map(|claim| ("holds", claim.line(now_ms))));
    sheet(&lines)
}
