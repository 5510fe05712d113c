//! Commands `hotpool claims ...`: claim, hold, release and list.

mod take;
mod view;

use clap::{ArgGroup, Args, Subcommand};

use self::take::BatchArgs;
pub(super) use self::take::TakeArgs;
use self::view::{HELD_HEADINGS, WAITING_HEADINGS, claim_text, held_row, status_text, waiting_row};
pub(super) use self::view::{claim_label, claim_line};
use super::args::{self, ClaimName, ClaimResourceArgs, LimitArg};
use super::failure::{CommandExit, CommandFailure};
use super::output::{print_note, table};
use super::{CommandContext, ConnectionArgs, OutputFormat};
use crate::client::{ClaimListFilter, ClaimListItem, ItemList, KeyStatus, ReleaseReply};
use crate::environment::Clock;
use crate::model::{ClaimId, Fence};

/// Tenant of a request that names none.
const TENANT_DEFAULT: &str = "default";

/// Claims: take a worker, keep it, release it.
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
        after_help = "A claim starts reserved and expires unless it is confirmed in time. --reserve-ms 0 makes it active \
                      at once.\n\n\
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
        batch: BatchArgs,
    },
    /// List claims: all, of a namespace, or of a pool
    #[command(after_help = "Examples, claims that have been active for a day or longer, and those that wait:\n  \
                            hotpool claims ls demo/warm --state active --older-than-ms 86400000\n  \
                            hotpool claims ls demo/warm --state waiting")]
    Ls(ListClaimsArgs),
    /// Show the claim of a key, or what the key waits for
    Show(ClaimRefArgs),
    /// Confirm that the work has begun, so that the claim does not expire
    #[command(after_help = EXAMPLE_FENCE)]
    Confirm(FencedClaimArgs),
    /// Extend a claim that has a time to live
    Renew {
        #[command(flatten)]
        fenced: FencedClaimArgs,
        /// New time to live, in milliseconds; default: that of the claim
        #[arg(long, value_name = "MS")]
        ttl_ms: Option<u64>,
    },
    /// Change how much of its worker a claim holds; without the capacity for it nothing changes
    #[command(after_help = "The given resources are all that the claim holds afterwards; omitted ones are 0.\n\n\
                            Example:\n  hotpool claims resize demo/job-2 --current --cpu-milli 4000 --gpu a100:1")]
    Resize {
        #[command(flatten)]
        fenced: FencedClaimArgs,
        #[command(flatten)]
        resources: ClaimResourceArgs,
    },
    /// Release a claim; a key without a claim is reported, and success as well
    #[command(after_help = EXAMPLE_FENCE)]
    Release {
        #[command(flatten)]
        fenced: FencedClaimArgs,
        /// Release in two steps: begin keeps the worker unavailable while it is cleaned, finish frees it
        #[arg(long, value_name = "begin|finish", value_parser = ["begin", "finish"], hide_possible_values = true)]
        phase: Option<String>,
    },
}

const EXAMPLE_FENCE: &str = "`claims take` and `claims show` print the fence. It keeps a late holder from ending the claim \
                             of the next one; --current skips that check, for use by hand.";

#[derive(Debug, Args)]
struct ListClaimsArgs {
    /// Name of a namespace, NAMESPACE, or of a pool, NAMESPACE/POOL
    #[arg(value_name = "NS[/POOL]")]
    of: Option<String>,
    /// Only claims on this worker
    #[arg(long, value_name = "ID")]
    worker: Option<String>,
    /// Only claims of this tenant
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Only claims in this state; several are separated by commas
    ///
    /// Claims that wait for capacity or quota hold nothing yet, and are listed only if `waiting` is named.
    #[arg(long, value_name = "reserved|active|releasing|waiting")]
    state: Option<String>,
    /// Only claims that were created, or have waited, at least this long
    #[arg(long, value_name = "MS")]
    older_than_ms: Option<u64>,
    #[command(flatten)]
    limit: LimitArg,
}

#[derive(Debug, Args)]
struct ClaimRefArgs {
    /// Name of the claim: NAMESPACE/KEY
    #[arg(value_name = "NS/KEY")]
    claim: ClaimName,
    /// Tenant of the key
    #[arg(long, default_value = TENANT_DEFAULT, value_parser = args::parse_name)]
    tenant: String,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true))]
struct FencedClaimArgs {
    #[command(flatten)]
    claim_ref: ClaimRefArgs,
    /// Fence of the claim
    #[arg(long, value_name = "N", group = "which")]
    fence: Option<u64>,
    /// Whatever claim the key holds at this moment
    #[arg(long, group = "which")]
    current: bool,
}

impl ClaimsCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let client = &context.client;
        let claim = match self.verb {
            ClaimsSubcommand::Take { take, batch } if batch.is_given() => {
                return take.claim_batch(context, &batch).await;
            }
            ClaimsSubcommand::Take { take, .. } => {
                let taken = client.claim(&take.into_request()?).await?;
                if !taken.created && context.output == OutputFormat::Table {
                    print_note("the key already holds this claim");
                }
                taken.reply
            }
            ClaimsSubcommand::Ls(ls) => return ls.run(context).await,
            ClaimsSubcommand::Show(claim_ref) => {
                context.print_reply(&client.get_claim(&claim_ref.id()?).await?, status_text)?;
                return Ok(CommandExit::Ok);
            }
            ClaimsSubcommand::Confirm(fenced) => {
                let (id, fence) = fenced.id_and_fence(context).await?;
                client.confirm(&id, fence).await?
            }
            ClaimsSubcommand::Renew { fenced, ttl_ms } => {
                let (id, fence) = fenced.id_and_fence(context).await?;
                client.renew(&id, fence, ttl_ms).await?
            }
            ClaimsSubcommand::Resize { fenced, resources } => {
                let (id, fence) = fenced.id_and_fence(context).await?;
                client.resize(&id, fence, &resources.into_requirements().unwrap_or_default()).await?
            }
            ClaimsSubcommand::Release { fenced, phase } => {
                let (id, fence) = fenced.id_and_fence(context).await?;
                let (released, done) = match phase.as_deref() {
                    None => (client.release(&id, fence).await?, "released"),
                    Some("begin") => (client.begin_release(&id, fence).await?, "releasing"),
                    Some(_) => (client.finish_release(&id, fence).await?, "released"),
                };
                context.print_reply(&released, |ReleaseReply { released }| {
                    let done = if *released { done } else { "holds no claim: nothing to release" };
                    format!("{} {done}", fenced.claim_ref.claim)
                })?;
                return Ok(CommandExit::Ok);
            }
        };
        context.print_reply(&claim, |reply| claim_text(&reply.claim))?;
        Ok(CommandExit::Ok)
    }
}

impl ListClaimsArgs {
    async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let Self { of, worker, tenant, state, older_than_ms, limit } = self;
        let (namespace, pool) = match of.as_deref().map(|of| of.split_once('/').ok_or(of)) {
            Some(Ok((namespace, pool))) => (Some(namespace.to_owned()), Some(pool.to_owned())),
            Some(Err(namespace)) => (Some(namespace.to_owned()), None),
            None => (None, None),
        };
        let filter = ClaimListFilter { namespace, pool, worker, tenant, state, older_than_ms };
        let claims = context.client.list_claims(&filter, limit.into()).await?;
        print_claims(context, &claims)?;
        Ok(CommandExit::Ok)
    }
}

/// Prints a listing of claims; as tables, one of those that are held and one of those that wait.
fn print_claims(context: &CommandContext, claims: &ItemList<ClaimListItem>) -> Result<(), CommandFailure> {
    let now_ms = Clock::system().unix_ms();
    let (mut held, mut waiting) = (Vec::new(), Vec::new());
    for item in &claims.items {
        match &**item {
            ClaimListItem::Held(claim) => held.push(held_row(claim, now_ms)),
            ClaimListItem::Waiting(queued) => waiting.push(waiting_row(queued)),
        }
    }
    let tables = [(HELD_HEADINGS, held), (WAITING_HEADINGS, waiting)];
    let tables = tables.into_iter().filter(|(_, rows)| !rows.is_empty());
    let text: Vec<_> = tables.map(|(headings, rows)| table(headings, rows)).collect();
    context.print_list_text(claims, "no matching claims", &text.join("\n\n"))
}

impl ClaimRefArgs {
    fn id(&self) -> Result<ClaimId, CommandFailure> {
        let Self { claim: ClaimName { namespace, key }, tenant } = self;
        ClaimId::new(namespace, tenant, key).map_err(|error| CommandFailure::usage("NS/KEY", error.to_string()))
    }
}

impl FencedClaimArgs {
    /// Returns the claim that is meant; without a fence, that of the claim that the key holds.
    async fn id_and_fence(&self, context: &CommandContext) -> Result<(ClaimId, Fence), CommandFailure> {
        let id = self.claim_ref.id()?;
        let fence = match self.fence {
            Some(fence) => fence,
            None => match &*context.client.get_claim(&id).await? {
                KeyStatus::Claim(claim) => claim.fence,
                KeyStatus::Waiting(_) => {
                    return Err(CommandFailure::state("the key is queued and holds no claim yet"));
                }
            },
        };
        Ok((id, fence))
    }
}
