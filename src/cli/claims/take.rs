//! `hotpool claims take`: a request from its flags, one claim or many.

use clap::Args;

use crate::cli::CommandContext;
use crate::cli::args::{self, ClaimResourceArgs, LabelArgs};
use crate::cli::failure::{CommandExit, CommandFailure};
use crate::cli::output::{OutputFormat, describe_resources, print, table};
use crate::client::{CandidatePools, ClaimBatchMode, ClaimReply, ItemOutcome, NewClaim, NodeSelection, PreferredNodes};
use crate::limits;
use crate::model::{AckLevel, PoolName};

/// Request of a claim.
#[derive(Debug, Args)]
#[group(skip)]
pub(in crate::cli) struct TakeArgs {
    /// NAMESPACE/POOL; several, of one namespace, are tried in this order
    #[arg(value_name = "NS/POOL", value_parser = args::parse_pool, required_unless_present = "pool_selector")]
    pools: Vec<PoolName>,
    /// Selector over the labels of pools, instead of their names, as in 'tier in (gold,silver)'
    #[arg(long, value_name = "SELECTOR", conflicts_with = "pools", requires = "namespace")]
    pool_selector: Option<String>,
    /// Namespace of the pools that --pool-selector selects
    #[arg(long, value_name = "NS", requires = "pool_selector", value_parser = args::parse_name)]
    namespace: Option<String>,
    /// Node that the worker must be on; several: one of them
    #[arg(long = "node", value_name = "NODE", value_parser = args::parse_name)]
    nodes: Vec<String>,
    /// Node that the worker should be on
    #[arg(long = "prefer-node", value_name = "NODE", value_parser = args::parse_name)]
    preferred: Vec<String>,
    /// Wait this long for the preferred nodes before any other is used
    #[arg(long, value_name = "MS", requires = "preferred")]
    prefer_node_ms: Option<u64>,
    /// Key that identifies the claim; generated if omitted
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Tenant; the same key of another tenant is another claim
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Prefer the idle worker whose last claim had the same affinity; default: the key
    #[arg(long, value_name = "WORD")]
    affinity: Option<String>,
    /// Labels that the worker must have, as in 'zone=a, tier!=b, arch in (x,y), gpu'
    #[arg(long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Take only this worker
    #[arg(long, value_name = "ID")]
    worker: Option<String>,
    /// Only pools of this class
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Time to live: an active claim ends after this long without a renewal
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// Longest time that the claim may stay unconfirmed; 0: active at once
    #[arg(long, value_name = "MS")]
    reserve_ms: Option<u64>,
    /// Longest wait for capacity; default: no wait
    #[arg(long, value_name = "MS")]
    wait_ms: Option<u64>,
    /// Priority among waiting claims: 0 to 1000, the highest first
    #[arg(long, value_name = "N")]
    priority: Option<u64>,
    /// Let a claim with a higher priority evict this one, in a pool that allows that
    #[arg(long)]
    preemptible: bool,
    /// When the claim is acknowledged, if the pool's setting is not enough
    #[arg(long, value_name = "durable|memory", value_parser = args::parse_ack)]
    ack: Option<AckLevel>,
    /// Fail if the key already holds a claim with other resources
    #[arg(long)]
    must_match: bool,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    resources: ClaimResourceArgs,
}

/// Several claims in one call.
#[derive(Debug, Args)]
pub(super) struct BatchArgs {
    /// Number of claims, under the keys KEY-0, KEY-1, ...
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=limits::BATCH_ITEMS_MAX as i64))]
    count: Option<u32>,
    /// All of them or none
    #[arg(long, requires = "count")]
    all_or_nothing: bool,
}

impl BatchArgs {
    pub(super) const fn is_given(&self) -> bool {
        self.count.is_some()
    }
}

impl TakeArgs {
    /// Builds the request that is sent.
    pub(in crate::cli) fn into_request(self) -> Result<NewClaim<'static>, CommandFailure> {
        let (namespace, pools) = candidate_pools(&self.pools, self.namespace, self.pool_selector)?;
        let (preferred, preferred_then_wait) = match self.prefer_node_ms {
            None => (self.preferred, None),
            Some(ms) => (Vec::new(), Some(PreferredNodes { nodes: self.preferred, ms })),
        };
        self.labels.check()?;
        let node = NodeSelection { required: self.nodes, preferred, preferred_then_wait };
        Ok(NewClaim {
            namespace: namespace.into(),
            pools,
            key: self.key.map(Into::into),
            tenant: self.tenant.map(Into::into),
            affinity: self.affinity.map(Into::into),
            reserve_ms: self.reserve_ms,
            resources: self.resources.into_requirements(),
            selector: self.selector.map(Into::into),
            node: Some(node).filter(|node| *node != NodeSelection::default()),
            worker: self.worker.map(Into::into),
            class: self.class.map(Into::into),
            ttl_ms: self.ttl_ms,
            ack: self.ack,
            must_match: self.must_match,
            labels: self.labels.into(),
            wait_ms: self.wait_ms,
            priority: self.priority.unwrap_or_default(),
            preemptible: self.preemptible,
        })
    }

    /// Claims many workers in one call. The exit code is the highest of all claims.
    pub(super) async fn claim_batch(
        self,
        context: &CommandContext,
        batch: &BatchArgs,
    ) -> Result<CommandExit, CommandFailure> {
        let request = self.into_request()?;
        let item = |n: u32| {
            let key = request.key.as_ref().map(|key| format!("{key}-{n}").into());
            NewClaim { key, ..request.clone() }
        };
        let items: Vec<_> = (0..batch.count.unwrap_or_default()).map(item).collect();
        let mode = if batch.all_or_nothing { ClaimBatchMode::AllOrNothing } else { ClaimBatchMode::Independent };
        let outcomes = context.client.claim_batch(mode, &items).await?;
        let mut exit = CommandExit::Ok;
        let mut rows = Vec::new();
        for (n, item) in outcomes.items.iter().enumerate() {
            match &**item {
                ItemOutcome::Done(taken) => rows.push(claim_row(taken)),
                ItemOutcome::Failed { error } => {
                    let failure = CommandFailure::from(error.clone()).with_id(&n.to_string());
                    exit = exit.max(failure.exit);
                    context.output.print_failure(&failure);
                }
            }
        }
        match context.output {
            OutputFormat::Json => print(outcomes.json())?,
            OutputFormat::Table if rows.is_empty() => {}
            OutputFormat::Table => print(&table("CLAIM,STATE,POOL,WORKER,HOLDS,>FENCE", rows))?,
        }
        Ok(exit)
    }
}

fn claim_row(ClaimReply { claim, .. }: &ClaimReply) -> Vec<String> {
    vec![
        format!("{}/{}", claim.namespace, claim.key),
        claim.state.as_str().to_owned(),
        claim.pool.clone(),
        claim.worker.clone(),
        describe_resources(&claim.resources),
        claim.fence.to_string(),
    ]
}

/// Returns the namespace and the candidate pools.
fn candidate_pools(
    pools: &[PoolName],
    namespace: Option<String>,
    selector: Option<String>,
) -> Result<(String, CandidatePools<'static>), CommandFailure> {
    let name = |pool: &PoolName| pool.pool().to_owned().into();
    match (pools, namespace, selector) {
        ([pool], ..) => Ok((pool.namespace().to_owned(), CandidatePools::Single(name(pool)))),
        ([first, others @ ..], ..) if others.iter().all(|pool| pool.namespace() == first.namespace()) => {
            Ok((first.namespace().to_owned(), CandidatePools::Ordered(pools.iter().map(name).collect())))
        }
        ([_, ..], ..) => Err(CommandFailure::usage("NS/POOL", "pools of one claim must be of one namespace")),
        ([], Some(namespace), Some(selector)) => Ok((namespace, CandidatePools::Selected(selector.into()))),
        ([], ..) => Err(CommandFailure::usage("NS/POOL", "needs a pool, or --namespace and --pool-selector")),
    }
}
