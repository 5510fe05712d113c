//! Commands `hotpool quotas ...`: limits of tenants and namespaces.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::args::{LimitArg, parse_amount, to_sparse_json};
use super::failure::{CommandExit, CommandFailure};
use super::output::{bytes, property_list, state_text};
use super::{CommandContext, ConnectionArgs};
use crate::client::{QuotaDetails, QuotaTarget};
use crate::model::ResourceUsage;

/// Quotas: how much tenants may hold, and their weights.
#[derive(Debug, Args)]
pub struct QuotasCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    #[command(subcommand)]
    verb: QuotasSubcommand,
}

#[derive(Debug, Subcommand)]
enum QuotasSubcommand {
    /// Set how much a tenant may hold, or each tenant of a namespace that has no quota of its own
    #[command(
        alias = "set",
        after_help = "Omitted amounts are unbounded, and an omitted weight is 1. Claims that are held stay.\n\n\
                      Examples:\n  hotpool quotas put demo/acme --claims 100 --gpu-milli 8000 --weight 3\n  \
                      hotpool quotas put demo --claims 10"
    )]
    Put {
        #[command(flatten)]
        of: QuotaTargetArg,
        #[command(flatten)]
        quota: QuotaLimitArgs,
    },
    /// List all quotas that are set
    #[command(alias = "list")]
    Ls(LimitArg),
    /// Show what a tenant may hold, and what it holds
    #[command(alias = "get")]
    Show(QuotaTargetArg),
    /// Remove the quota of a tenant or namespace
    #[command(alias = "delete")]
    Rm(QuotaTargetArg),
}

#[derive(Debug, Args)]
struct QuotaTargetArg {
    /// NAMESPACE/TENANT, or NAMESPACE for each of its tenants without a quota of its own
    #[arg(value_name = "NS[/TENANT]")]
    of: QuotaTarget,
}

/// Quota with the given fields. The service knows defaults and limits.
#[derive(Debug, Args, Serialize)]
struct QuotaLimitArgs {
    /// Number of claims held at once
    #[arg(long, value_name = "N")]
    claims: Option<u64>,
    /// Thousandths of a core that claims request
    #[arg(long, value_name = "N", value_parser = parse_amount)]
    cpu_milli: Option<u64>,
    /// Bytes of memory that claims request; Ki, Mi, Gi and Ti may follow the number
    #[arg(long, value_name = "N[Gi]", value_parser = parse_amount)]
    memory_bytes: Option<u64>,
    /// Thousandths of GPUs that claims request
    #[arg(long, value_name = "N", value_parser = parse_amount)]
    gpu_milli: Option<u64>,
    /// Weight beside other tenants while claims wait: 1 to 1000
    #[arg(long, value_name = "N")]
    weight: Option<u64>,
}

impl QuotasCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let client = &context.client;
        match self.verb {
            QuotasSubcommand::Put { of: QuotaTargetArg { of }, quota } => {
                let reply = client.put_quota(&of, &to_sparse_json(&quota)).await?;
                context.print_reply(&reply, |_| format!("{of} {}", if reply.created { "set" } else { "changed" }))?;
            }
            QuotasSubcommand::Ls(limit) => {
                let quotas = client.list_quotas(limit.into()).await?;
                let if_empty = "no quotas; set one: hotpool quotas put demo/acme --claims 100";
                context.print_list(&quotas, if_empty, "QUOTA,CLAIMS,CPU,MEMORY,GPU,>WEIGHT,>WAITING", |quota| {
                    let [claims, cpu, memory, gpu] = usage_cells(quota);
                    vec![name(quota), claims, cpu, memory, gpu, quota.quota.weight.to_string(), waiting(quota)]
                })?;
            }
            QuotasSubcommand::Show(QuotaTargetArg { of }) => {
                context.print_reply(&client.get_quota(&of).await?, |reply| quota_text(&reply.quota))?;
            }
            QuotasSubcommand::Rm(QuotaTargetArg { of }) => {
                context.print_reply(&client.delete_quota(&of).await?, |_| format!("{of} removed"))?;
            }
        }
        Ok(CommandExit::Ok)
    }
}

fn name(quota: &QuotaDetails) -> String {
    let tenant = quota.tenant.as_ref().map(|tenant| format!("/{tenant}"));
    format!("{}{}", quota.namespace, tenant.unwrap_or_default())
}

fn waiting(quota: &QuotaDetails) -> String {
    quota.waiting.map(|waiting| waiting.to_string()).unwrap_or_default()
}

/// Formats claims, cores, bytes and GPUs; `None` where there is no bound.
fn amount_texts([claims, cpu_milli, memory_bytes, gpu_milli]: [Option<u64>; 4]) -> [Option<String>; 4] {
    let thousandths = |milli: u64| (milli as f64 / 1e3).to_string();
    [
        claims.map(|claims| claims.to_string()),
        cpu_milli.map(thousandths),
        memory_bytes.map(bytes),
        gpu_milli.map(thousandths),
    ]
}

/// Formats use and bound of each amount: `3 of 10`, or `3` without a bound.
fn usage_cells(details: &QuotaDetails) -> [String; 4] {
    let quota = &details.quota;
    let limits = amount_texts([quota.claims, quota.cpu_milli, quota.memory_bytes, quota.gpu_milli]);
    let used = details.used.as_ref().map_or([None; 4], |used| ResourceUsage::to_array(used).map(Some));
    let mut used = amount_texts(used).into_iter();
    limits.map(|limit| match (used.next().flatten(), limit) {
        (Some(used), Some(limit)) => format!("{used} of {limit}"),
        (used, limit) => used.or(limit).unwrap_or_default(),
    })
}

fn quota_text(quota: &QuotaDetails) -> String {
    let [claims, cpu, memory, gpu] = usage_cells(quota);
    property_list(&[
        ("quota", name(quota)),
        ("source", state_text(quota.source)),
        ("claims", claims),
        ("cpu", cpu),
        ("memory", memory),
        ("gpu", gpu),
        ("weight", quota.quota.weight.to_string()),
        ("waiting", waiting(quota)),
    ])
}
