//! Commands `hotpool workers ...`: register, list, cordon and drain.

mod add;
mod worker_calls;

use clap::{ArgGroup, Args, Subcommand};

use self::add::AddWorkersArgs;
use self::worker_calls::WorkerAction;
use super::args::{self, LimitArg, PoolNameArg};
use super::claims::{claim_label, claim_line};
use super::failure::{CommandExit, CommandFailure};
use super::output::{describe_capacity, describe_free, labels_text, property_list, relative_time, state_text};
use super::{CommandContext, ConnectionArgs};
use crate::client::WorkerDetails;
use crate::environment::Clock;
use crate::model::label_selector::LabelSelector;
use crate::model::{LivenessState, PoolName, SchedulingState, TrustState, WorkerId};

/// Claims of one worker that a row of a table names; `show` names all.
const CLAIMS_SHOWN_MAX: usize = 3;

/// Workers of a pool: register, inspect, take out of service.
#[derive(Debug, Args)]
pub struct WorkersCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    #[command(subcommand)]
    verb: WorkersSubcommand,
}

#[derive(Debug, Subcommand)]
enum WorkersSubcommand {
    /// Register workers, or replace their registrations
    #[command(after_help = "Examples:\n  hotpool workers add demo/warm w1 --cpu-milli 1000 --memory-bytes 4Gi\n  \
                            hotpool workers add demo/warm --count 100 --prefix w- --label zone=a\n  \
                            cat ids.txt | hotpool workers add demo/warm -")]
    Add(AddWorkersArgs),
    /// List the workers of a pool
    Ls {
        #[command(flatten)]
        name: PoolNameArg,
        #[command(flatten)]
        limit: LimitArg,
    },
    /// Show one worker and its claims
    Show {
        #[command(flatten)]
        name: PoolNameArg,
        /// Id of the worker
        #[arg(value_parser = args::parse_name)]
        id: String,
    },
    /// Stop new claims on workers; their claims stay
    #[command(
        after_help = BY_LABELS,
        override_usage = "hotpool workers cordon [OPTIONS] <NS/POOL> <ID>...\n       \
                          hotpool workers cordon [OPTIONS] <NS/POOL> --selector <SELECTOR>"
    )]
    Cordon(WorkerSelectionArgs),
    /// Allow new claims on cordoned workers again
    #[command(
        after_help = BY_LABELS,
        override_usage = "hotpool workers uncordon [OPTIONS] <NS/POOL> <ID>...\n       \
                          hotpool workers uncordon [OPTIONS] <NS/POOL> --selector <SELECTOR>"
    )]
    Uncordon(WorkerSelectionArgs),
    /// Stop new claims on workers for good; their claims stay until they end
    #[command(
        after_help = BY_LABELS,
        override_usage = "hotpool workers drain [OPTIONS] <NS/POOL> <ID>...\n       \
                          hotpool workers drain [OPTIONS] <NS/POOL> --selector <SELECTOR>"
    )]
    Drain(WorkerSelectionArgs),
    /// Trust suspect workers again
    Clear(WorkerIdArgs),
    /// Delete workers; their claims are lost
    Rm(WorkerIdArgs),
}

#[derive(Debug, Args)]
struct WorkerIdArgs {
    #[command(flatten)]
    name: PoolNameArg,
    /// Ids of the workers; `-` reads ids from stdin
    #[arg(required = true, value_name = "ID", value_parser = args::parse_name)]
    ids: Vec<String>,
}

/// Workers by id, or by their labels.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true).args(["ids", "selector"]))]
struct WorkerSelectionArgs {
    #[command(flatten)]
    name: PoolNameArg,
    /// Ids of the workers; `-` reads ids from stdin
    #[arg(value_name = "ID", value_parser = args::parse_name)]
    ids: Vec<String>,
    /// Instead of ids, all workers whose labels match, as in 'topology.kubernetes.io/zone=a, !spot'
    #[arg(long, value_name = "SELECTOR", value_parser = args::parse_selector)]
    selector: Option<LabelSelector>,
    /// Print which workers match, and change nothing
    #[arg(long, conflicts_with = "ids")]
    dry_run: bool,
}

const BY_LABELS: &str = "With --selector the workers are read page by page while others come and go. The command reports how \
                         many matched, and each failure.\n\n\
                         Examples:\n  hotpool workers drain demo/warm w1 w2\n  \
                         hotpool workers cordon demo/warm --selector 'topology.kubernetes.io/zone=a' --dry-run";

impl WorkersCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        match self.verb {
            WorkersSubcommand::Add(add) => return add.run(context).await,
            WorkersSubcommand::Ls { name: PoolNameArg { pool }, limit } => list(context, &pool, limit).await?,
            WorkersSubcommand::Show { name: PoolNameArg { pool }, id } => {
                let id = WorkerId::new(&id).map_err(|error| CommandFailure::usage("ID", error.to_string()))?;
                let reply = context.client.get_worker(&pool, &id).await?;
                context.print_reply(&reply, |reply| worker_text(&pool, &reply.worker))?;
            }
            WorkersSubcommand::Cordon(selection) => return selection.call(context, WorkerAction::Cordon).await,
            WorkersSubcommand::Uncordon(selection) => return selection.call(context, WorkerAction::Uncordon).await,
            WorkersSubcommand::Drain(selection) => return selection.call(context, WorkerAction::Drain).await,
            WorkersSubcommand::Clear(ids) => return ids.call(context, WorkerAction::Clear).await,
            WorkersSubcommand::Rm(ids) => return ids.call(context, WorkerAction::Delete).await,
        }
        Ok(CommandExit::Ok)
    }
}

async fn list(context: &CommandContext, pool: &PoolName, limit: LimitArg) -> Result<(), CommandFailure> {
    let workers = context.client.list_workers(pool, limit.into()).await?;
    let if_empty = format!("{pool} has no workers; add one: hotpool workers add {pool} w1");
    let headings = "WORKER,STATE,CLAIM,NODE,CAPACITY,LABELS,>INCARNATION,>SHARD";
    context.print_list(&workers, &if_empty, headings, |worker| {
        let mut claims: Vec<_> = worker.claims.iter().take(CLAIMS_SHOWN_MAX).map(claim_label).collect();
        if worker.claims.len() > CLAIMS_SHOWN_MAX {
            claims.push(format!("+{}", worker.claims.len() - CLAIMS_SHOWN_MAX));
        }
        vec![
            worker.id.clone(),
            worker_state(worker),
            claims.join(","),
            worker.node.clone().unwrap_or_default(),
            describe_capacity(&worker.capacity),
            labels_text(&worker.labels),
            worker.incarnation.to_string(),
            worker.shard.to_string(),
        ]
    })
}

/// Formats occupancy and unusual conditions in one cell: `idle,cordoned`.
fn worker_state(worker: &WorkerDetails) -> String {
    let mut words = vec![worker.occupancy.clone()];
    words.extend((worker.schedulability != SchedulingState::Open).then(|| state_text(worker.schedulability)));
    words.extend((worker.liveness != LivenessState::Live).then(|| state_text(worker.liveness)));
    words.extend((worker.trust != TrustState::Trusted).then(|| state_text(worker.trust)));
    words.extend(worker.overcommitted.then(|| "overcommitted".to_owned()));
    words.join(",")
}

fn worker_text(pool: &PoolName, worker: &WorkerDetails) -> String {
    let now_ms = Clock::system().unix_ms();
    let mut properties = vec![
        ("worker", worker.id.clone()),
        ("pool", pool.to_string()),
        ("occupancy", worker.occupancy.clone()),
        ("schedulability", state_text(worker.schedulability)),
        ("liveness", state_text(worker.liveness)),
        ("trust", state_text(worker.trust)),
        ("overcommitted", if worker.overcommitted { "yes" } else { "" }.to_owned()),
        ("capacity", describe_capacity(&worker.capacity)),
        ("left", describe_free(&worker.capacity, worker.claims.iter().map(|claim| &claim.resources))),
        ("labels", labels_text(&worker.labels)),
        ("node", worker.node.clone().unwrap_or_default()),
        ("incarnation", worker.incarnation.to_string()),
        ("expires", relative_time(worker.expires_at_ms, now_ms)),
        ("shard", worker.shard.to_string()),
        ("version", worker.version.to_string()),
    ];
    properties.extend(worker.claims.iter().map(|claim| ("holds", claim_line(claim, now_ms))));
    property_list(&properties)
}
