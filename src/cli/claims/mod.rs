//! `hotpool claims ...`.

mod view;

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(super) use self::view::ClaimDetails;
use self::view::KeyStatus;
use super::args::{self, ClaimName, ClaimResourceArgs, LabelArgs, to_sparse_json};
use super::client::{CommandExit, CommandFailure, ItemList, ServiceResponse};
use super::output::{OutputFormat, describe_resources, print, print_json, print_note, relative_time, table};
use super::{CommandContext, ConnectionArgs};
use crate::clock::Clock;
use crate::limits;
use crate::model::PoolName;

/// The tenant that a request has if it names none.
const TENANT_DEFAULT: &str = "default";

/// Claims: take a worker, keep it, give it back.
#[derive(Debug, Args)]
pub struct ClaimsCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    #[command(subcommand)]
    verb: ClaimsSubcommand,
}

#[derive(Debug, Subcommand)]
enum ClaimsSubcommand {
    /// Take a worker, or a share of one, under a key; the same key again is the same claim
    #[command(
        after_help = "A claim starts reserved: confirm it in time, or it is given back. --reserve-ms 0 makes it \
                            active at once.\n\n\
                            Examples:\n  hotpool claims take demo/warm --key job-1\n  \
                            hotpool claims take demo/warm demo/cold --key job-1 --selector 'zone=a,tier!=b'\n  \
                            hotpool claims take demo/gpu --key job-2 --cpu-milli 2000 --gpu a100,h100:1:500\n  \
                            hotpool claims take demo/gpu --key train --count 8 --all-or-nothing --gpu a100:1\n  \
                            hotpool claims take demo/warm --key job-3 --wait-ms 60000 --priority 10\n  \
                            hotpool claims take --namespace demo --pool-selector 'tier in (gold,silver)' --ttl-ms 60000"
    )]
    Take {
        #[command(flatten)]
        take: Box<TakeArgs>,
        #[command(flatten)]
        many: BatchArgs,
    },
    /// List claims: all, of a namespace, or of a pool
    #[command(after_help = "Example, what has been active for a day or longer:\n  \
                            hotpool claims ls demo/warm --state active --older-than-ms 86400000")]
    Ls(ListClaimsArgs),
    /// Show who holds a key, or what it waits for
    Show(ClaimRefArgs),
    /// Say that the work has begun: the claim is kept
    #[command(after_help = EXAMPLE_FENCE)]
    Confirm(FencedClaimArgs),
    /// Keep a claim that has a ttl for longer
    Renew {
        #[command(flatten)]
        fenced: FencedClaimArgs,
        /// The new ttl, in milliseconds; not said: the one that it has
        #[arg(long, value_name = "MS")]
        ttl_ms: Option<u64>,
    },
    /// Hold more or less of the worker than before; without room for that nothing changes
    #[command(after_help = "What is said is what the claim holds from then on, in all: what is left out is 0.\n\n\
                            Example:\n  hotpool claims resize demo/job-2 --current --cpu-milli 4000 --gpu a100:1")]
    Resize {
        #[command(flatten)]
        fenced: FencedClaimArgs,
        #[command(flatten)]
        resources: ClaimResourceArgs,
    },
    /// Give the worker back; says so if the key holds nothing, which is success as well
    #[command(after_help = EXAMPLE_FENCE)]
    Release {
        #[command(flatten)]
        fenced: FencedClaimArgs,
        /// In two steps: begin keeps the worker from others while it is cleaned, finish gives it back
        #[arg(long, value_name = "begin|finish")]
        phase: Option<String>,
    },
}

const EXAMPLE_FENCE: &str = "The fence is in what `claims take` and `claims show` say. It keeps a late holder from ending \
                             the claim of the next one; --current does without that care, for a person who looks.";

/// What a claim asks for.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct TakeArgs {
    /// NAMESPACE/POOL; several, of one namespace, are tried in this order
    #[arg(value_name = "NS/POOL", value_parser = args::parse_pool, required_unless_present = "pool_selector")]
    pools: Vec<PoolName>,
    /// Instead of names: pools whose labels fit, as in 'tier in (gold,silver)'
    #[arg(long, value_name = "SELECTOR", conflicts_with = "pools", requires = "namespace")]
    pool_selector: Option<String>,
    /// Namespace of --pool-selector
    #[arg(long, value_name = "NS", requires = "pool_selector", value_parser = args::parse_name)]
    namespace: Option<String>,
    /// A node that it must be on; several: on one of them
    #[arg(long = "node", value_name = "NODE", value_parser = args::parse_name)]
    nodes: Vec<String>,
    /// A node that it should be on
    #[arg(long = "prefer-node", value_name = "NODE", value_parser = args::parse_name)]
    preferred: Vec<String>,
    /// Wait for those nodes for so long before any other will do
    #[arg(long, value_name = "MS", requires = "preferred")]
    prefer_node_ms: Option<u64>,
    #[command(flatten)]
    fields: ClaimFieldArgs,
}

/// What goes to the service as it is said.
#[derive(Debug, Args, Serialize)]
struct ClaimFieldArgs {
    /// Who asks: a name of your own choice; not said: the service makes one
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Same key, other tenant: another claim
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Prefer the idle worker whose last claim had the same word; not said: the key
    #[arg(long, value_name = "WORD")]
    affinity: Option<String>,
    /// Labels that the worker must have, as in 'zone=a, tier!=b, arch in (x,y), gpu'
    #[arg(long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// This very worker
    #[arg(long, value_name = "ID")]
    worker: Option<String>,
    /// Only pools of this class
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Once active, it ends after so long without a renewal
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// How long it may stay unconfirmed; 0: active at once
    #[arg(long, value_name = "MS")]
    reserve_ms: Option<u64>,
    /// How long to wait if there is no room; not said: not at all
    #[arg(long, value_name = "MS")]
    wait_ms: Option<u64>,
    /// Who waits in front of whom: 0..=1000, the highest first
    #[arg(long, value_name = "N")]
    priority: Option<u64>,
    /// It may be evicted for a claim with a higher priority, in a pool that allows that
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    preemptible: bool,
    /// When the answer leaves, if the pool's way is not enough
    #[arg(long, value_name = "durable|memory")]
    ack: Option<String>,
    /// Refuse the claim that the key has already if its resources are others
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    must_match: bool,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    resources: ClaimResourceArgs,
}

/// Several claims in one call.
#[derive(Debug, Args)]
struct BatchArgs {
    /// So many claims, under the keys KEY-0, KEY-1, ...
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=limits::BATCH_ITEMS_MAX as i64))]
    count: Option<u32>,
    /// All of them or none
    #[arg(long, requires = "count")]
    all_or_nothing: bool,
}

/// What became of a release.
#[derive(Deserialize)]
struct ReleaseReply {
    #[serde(default = "ReleaseReply::default_released")]
    released: bool,
}

impl ReleaseReply {
    const fn default_released() -> bool {
        true
    }
}

/// What became of one of several.
#[derive(Deserialize)]
struct BatchItemReply {
    claim: Option<ClaimDetails>,
    #[serde(flatten)]
    failure: Option<CommandFailure>,
}

#[derive(Debug, Args)]
struct ListClaimsArgs {
    /// NAMESPACE, or NAMESPACE/POOL
    #[arg(value_name = "NS[/POOL]")]
    of: Option<String>,
    /// Only on this worker
    #[arg(long, value_name = "ID")]
    worker: Option<String>,
    /// Only of this tenant
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Only in this state; several with commas between them
    #[arg(long, value_name = "reserved|active|releasing")]
    state: Option<String>,
    /// Only those that were created at least so long ago
    #[arg(long, value_name = "MS")]
    older_than_ms: Option<u64>,
    /// Show at most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

#[derive(Debug, Args)]
struct ClaimRefArgs {
    /// NAMESPACE/KEY
    #[arg(value_name = "NS/KEY")]
    claim: ClaimName,
    /// Whose
    #[arg(long, default_value = TENANT_DEFAULT, value_parser = args::parse_name)]
    tenant: String,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true))]
struct FencedClaimArgs {
    #[command(flatten)]
    holder: ClaimRefArgs,
    /// The fence of the claim that is meant
    #[arg(long, value_name = "N", group = "which")]
    fence: Option<u64>,
    /// Whatever claim holds the key at this moment
    #[arg(long, group = "which")]
    current: bool,
}

impl ClaimsCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        match self.verb {
            ClaimsSubcommand::Take { take, many: BatchArgs { count: Some(count), all_or_nothing } } => {
                return take.take_batch(context, count, all_or_nothing).await;
            }
            ClaimsSubcommand::Take { take, .. } => {
                let (wait, body) = (take.wait(), take.body()?);
                let answer = context.client.call_with_wait(wait, Method::POST, "/v1/claims", Some(&body)).await?;
                if !answer.created && context.output == OutputFormat::Table {
                    print_note("the key holds this claim already");
                }
                context.claim(&answer)?;
            }
            ClaimsSubcommand::Ls(ls) => ls.run(context).await?,
            ClaimsSubcommand::Show(holder) => context.claim(&holder.get(context).await?)?,
            ClaimsSubcommand::Confirm(fenced) => context.claim(&fenced.call(context, ":confirm", json!({})).await?)?,
            ClaimsSubcommand::Renew { fenced, ttl_ms } => {
                let body = to_sparse_json(&json!({"ttl_ms": ttl_ms}));
                context.claim(&fenced.call(context, ":renew", body).await?)?;
            }
            ClaimsSubcommand::Resize { fenced, resources } => {
                let body = to_sparse_json(&json!({"resources": resources}));
                context.claim(&fenced.call(context, ":resize", body).await?)?;
            }
            ClaimsSubcommand::Release { fenced, phase } => {
                let body = to_sparse_json(&json!({"phase": phase}));
                let answer = fenced.call(context, ":release", body).await?;
                // A service of before says nothing, and may have released it.
                let ReleaseReply { released } = context.client.read(&answer.json)?;
                let became = match phase.as_deref() {
                    _ if !released => "holds no claim: nothing to release",
                    Some("begin") => "releasing",
                    _ => "released",
                };
                context.print_done(&answer, &format!("{} {became}", fenced.holder.claim))?;
            }
        }
        Ok(CommandExit::Ok)
    }
}

impl TakeArgs {
    /// The body of the request.
    pub(super) fn body(&self) -> Result<Value, CommandFailure> {
        let mut body = to_sparse_json(&self.fields);
        let (namespace, which, value) = match (self.pools.as_slice(), &self.namespace, &self.pool_selector) {
            ([pool], ..) => (pool.namespace(), "pool", json!(pool.pool())),
            ([first, others @ ..], ..) => {
                if others.iter().any(|pool| pool.namespace() != first.namespace()) {
                    return Err(CommandFailure::usage("NS/POOL", "pools of one claim must be of one namespace"));
                }
                (first.namespace(), "pools", self.pools.iter().map(PoolName::pool).collect())
            }
            ([], Some(namespace), Some(selector)) => (namespace.as_str(), "pool_selector", json!(selector)),
            ([], ..) => return Err(CommandFailure::usage("NS/POOL", "a pool, or --namespace and --pool-selector")),
        };
        body["namespace"] = namespace.into();
        body[which] = value;
        let node = match self.prefer_node_ms {
            None => json!({"required": self.nodes, "preferred": self.preferred}),
            Some(ms) => json!({
                "required": self.nodes,
                "preferred_then_wait": {"nodes": self.preferred, "ms": ms},
            }),
        };
        let node = to_sparse_json(&json!({"node": node}));
        if let Some(node) = node.get("node") {
            body["node"] = node.clone();
        }
        Ok(body)
    }
}

impl TakeArgs {
    /// How long the service may let it wait.
    fn wait(&self) -> Duration {
        Duration::from_millis(self.fields.wait_ms.max(self.prefer_node_ms).unwrap_or_default())
    }

    async fn take_batch(
        &self,
        context: &CommandContext,
        count: u32,
        whole: bool,
    ) -> Result<CommandExit, CommandFailure> {
        let body = self.body()?;
        let item = |n: u32| {
            let mut item = body.clone();
            if let Some(key) = &self.fields.key {
                item["key"] = format!("{key}-{n}").into();
            }
            item
        };
        let items: Vec<Value> = (0..count).map(item).collect();
        let mode = if whole { "all_or_nothing" } else { "independent" };
        let batch = json!({"mode": mode, "items": items});
        let answer = context.client.call_with_wait(self.wait(), Method::POST, "/v1/claims:batch", Some(&batch)).await?;
        let items = context.client.read::<ItemList>(&answer.json)?.items;
        let mut exit = CommandExit::Ok;
        let mut rows = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let BatchItemReply { claim, failure } = context.client.read(item)?;
            if let Some(failure) = failure.map(CommandFailure::with_exit) {
                exit = exit.max(failure.exit);
                context.output.print_failure(&failure.with_id(&n.to_string()));
            }
            rows.extend(claim.map(|claim| {
                let key = format!("{}/{}", claim.namespace, claim.key);
                vec![
                    key,
                    claim.state,
                    claim.pool,
                    claim.worker,
                    describe_resources(&claim.resources),
                    claim.fence.to_string(),
                ]
            }));
        }
        match context.output {
            OutputFormat::Json => print(answer.json.get())?,
            OutputFormat::Table if rows.is_empty() => {}
            OutputFormat::Table => print(&table(&["CLAIM", "STATE", "POOL", "WORKER", "HOLDS", ">FENCE"], rows))?,
        }
        Ok(exit)
    }
}

impl ListClaimsArgs {
    async fn run(self, context: &CommandContext) -> Result<(), CommandFailure> {
        let (namespace, pool) = match self.of.as_deref().map(|of| of.split_once('/').ok_or(of)) {
            Some(Ok((namespace, pool))) => (Some(namespace), Some(pool)),
            Some(Err(namespace)) => (Some(namespace), None),
            None => (None, None),
        };
        let older_than_ms = self.older_than_ms.map(|ms| ms.to_string());
        let filter = [
            ("namespace", namespace),
            ("pool", pool),
            ("worker", self.worker.as_deref()),
            ("tenant", self.tenant.as_deref()),
            ("state", self.state.as_deref()),
            ("older_than_ms", older_than_ms.as_deref()),
        ];
        let filter: Vec<_> = filter.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let all = context.client.list("/v1/claims", &filter, self.limit.map(|limit| limit as usize)).await?;
        if context.output == OutputFormat::Json {
            return print_json(&all);
        }
        if all.items.is_empty() {
            print_note("no such claims");
            return Ok(());
        }
        let now_ms = Clock::system().unix_ms();
        let rows = context.client.read_items::<ClaimDetails>(&all)?.into_iter().map(|claim| {
            let age = claim.age(now_ms);
            vec![
                format!("{}/{}", claim.namespace, claim.key),
                claim.tenant,
                claim.state,
                claim.expires_at_ms.map(|at| relative_time(at, now_ms)).unwrap_or_default(),
                claim.pool,
                claim.worker,
                claim.node.unwrap_or_default(),
                describe_resources(&claim.resources),
                claim.fence.to_string(),
                age,
            ]
        });
        print(&table(&["CLAIM", "TENANT", "STATE", "ENDS", "POOL", "WORKER", "NODE", "HOLDS", ">FENCE", "AGE"], rows))?;
        context.warn_if_truncated(&all);
        Ok(())
    }
}

impl ClaimRefArgs {
    async fn get(&self, context: &CommandContext) -> Result<ServiceResponse, CommandFailure> {
        let Self { claim: ClaimName { namespace, key }, tenant } = self;
        context.client.get(&format!("/v1/claims/{namespace}/{key}?tenant={tenant}")).await
    }
}

impl FencedClaimArgs {
    async fn call(
        &self,
        context: &CommandContext,
        verb: &str,
        mut body: Value,
    ) -> Result<ServiceResponse, CommandFailure> {
        let Self { holder: ClaimRefArgs { claim: ClaimName { namespace, key }, tenant }, fence, .. } = self;
        let fence = match fence {
            Some(fence) => *fence,
            None => match context.client.read(&self.holder.get(context).await?.json)? {
                KeyStatus::Claim(claim) => claim.fence,
                KeyStatus::Waiting(_) => {
                    return Err(CommandFailure::state("the key waits, and holds nothing yet".to_owned()));
                }
            },
        };
        body["fence"] = fence.into();
        body["tenant"] = tenant.as_str().into();
        context.client.call(Method::POST, &format!("/v1/claims/{namespace}/{key}{verb}"), Some(&body)).await
    }
}

impl CommandContext {
    /// Shows the claim of an answer.
    fn claim(&self, answer: &ServiceResponse) -> Result<(), CommandFailure> {
        match self.output {
            OutputFormat::Json => print(answer.json.get()),
            OutputFormat::Table => print(&match self.client.read(&answer.json)? {
                KeyStatus::Claim(claim) => claim.sheet(),
                KeyStatus::Waiting(waiting) => waiting.sheet(),
            }),
        }
    }
}
