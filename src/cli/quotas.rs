//! `hotpool quotas ...`.

use std::fmt;
use std::str::FromStr;

use clap::{Args, Subcommand};
use hyper::Method;
use serde::{Deserialize, Serialize};

use super::args::{self, parse_amount, to_sparse_json};
use super::client::{CommandExit, CommandFailure};
use super::output::{OutputFormat, bytes, print, print_json, print_note, property_list, table};
use super::{CommandContext, ConnectionArgs};

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
        after_help = "What is not said is not bounded; the weight is 1 then. What is held stays, whatever is set.\n\n\
                      Examples:\n  hotpool quotas put demo/acme --claims 100 --gpu-milli 8000 --weight 3\n  \
                      hotpool quotas put demo --claims 10"
    )]
    Put {
        #[command(flatten)]
        of: QuotaTargetArg,
        #[command(flatten)]
        quota: QuotaLimitArgs,
    },
    /// List all quotas that were set
    #[command(alias = "list")]
    Ls {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show what a tenant may hold, and what it holds
    #[command(alias = "get")]
    Show(QuotaTargetArg),
    /// Take a quota away
    #[command(alias = "delete")]
    Rm(QuotaTargetArg),
}

#[derive(Debug, Args)]
struct QuotaTargetArg {
    /// NAMESPACE/TENANT, or NAMESPACE: each of its tenants without a quota of its own
    #[arg(value_name = "NS[/TENANT]")]
    of: QuotaTarget,
}

/// `NS` or `NS/TENANT`.
#[derive(Debug, Clone)]
struct QuotaTarget(String);

impl FromStr for QuotaTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, tenant) = text.split_once('/').map_or((text, None), |(ns, tenant)| (ns, Some(tenant)));
        args::parse_name(namespace)?;
        tenant.map_or(Ok(String::new()), args::parse_name)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for QuotaTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl QuotaTarget {
    /// Names need no encoding.
    fn path(&self) -> String {
        format!("/v1/quotas/{self}")
    }
}

/// A quota, as far as it is said. The service knows defaults and limits.
#[derive(Debug, Args, Serialize)]
struct QuotaLimitArgs {
    /// Claims
    #[arg(long, value_name = "N")]
    claims: Option<u64>,
    /// Thousandths of a core that claims ask for
    #[arg(long, value_name = "N", value_parser = parse_amount)]
    cpu_milli: Option<u64>,
    /// Bytes of memory that claims ask for; Ki, Mi, Gi and Ti may follow the number
    #[arg(long, value_name = "N[Gi]", value_parser = parse_amount)]
    memory_bytes: Option<u64>,
    /// Thousandths of GPU cards that claims ask for
    #[arg(long, value_name = "N", value_parser = parse_amount)]
    gpu_milli: Option<u64>,
    /// Share beside other tenants, where claims wait: 1..=1000
    #[arg(long, value_name = "N")]
    weight: Option<u64>,
}

/// A quota as the service shows it.
#[derive(Debug, Deserialize)]
struct QuotaView {
    namespace: String,
    tenant: Option<String>,
    source: String,
    #[serde(flatten)]
    limits: QuotaAmounts,
    weight: u64,
    used: Option<QuotaAmounts>,
    waiting: Option<u64>,
}

/// What is held, or may be.
#[derive(Debug, Clone, Deserialize)]
struct QuotaAmounts {
    claims: Option<u64>,
    cpu_milli: Option<u64>,
    memory_bytes: Option<u64>,
    gpu_milli: Option<u64>,
}

impl QuotaAmounts {
    /// In words, each amount by itself: claims, cores, memory, cards. None: it is not bounded.
    fn amount_texts(&self) -> [Option<String>; 4] {
        let thousandths = |milli: u64| (milli as f64 / 1e3).to_string();
        [
            self.claims.map(|claims| claims.to_string()),
            self.cpu_milli.map(thousandths),
            self.memory_bytes.map(bytes),
            self.gpu_milli.map(thousandths),
        ]
    }
}

impl QuotaView {
    fn name(&self) -> String {
        let tenant = self.tenant.as_ref().map(|tenant| format!("/{tenant}"));
        format!("{}{}", self.namespace, tenant.unwrap_or_default())
    }

    /// What is held of what may be: `3 of 10`; `3` where nothing bounds it.
    fn cells(&self) -> [String; 4] {
        let limits = self.limits.amount_texts();
        let mut used = self.used.as_ref().map_or([const { None }; 4], QuotaAmounts::amount_texts).into_iter();
        limits.map(|limit| match (used.next().flatten(), limit) {
            (Some(used), Some(limit)) => format!("{used} of {limit}"),
            (used, limit) => used.or(limit).unwrap_or_default(),
        })
    }

    fn property_list(&self) -> String {
        let [claims, cpu, memory, gpu] = self.cells();
        property_list(&[
            ("quota", self.name()),
            ("source", self.source.clone()),
            ("claims", claims),
            ("cpu", cpu),
            ("memory", memory),
            ("gpu", gpu),
            ("weight", self.weight.to_string()),
            ("waiting", self.waiting.map(|waiting| waiting.to_string()).unwrap_or_default()),
        ])
    }
}

#[derive(Deserialize)]
struct QuotaReply {
    quota: QuotaView,
}

impl QuotasCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        match self.verb {
            QuotasSubcommand::Put { of: QuotaTargetArg { of }, quota } => {
                let answer = context.client.call(Method::PUT, &of.path(), Some(&to_sparse_json(&quota))).await?;
                context.print_done(&answer, &format!("{of} {}", if answer.created { "set" } else { "changed" }))?;
            }
            QuotasSubcommand::Ls { limit } => list(context, limit).await?,
            QuotasSubcommand::Show(QuotaTargetArg { of }) => {
                let answer = context.client.get(&of.path()).await?;
                match context.output {
                    OutputFormat::Json => print(answer.json.get())?,
                    OutputFormat::Table => {
                        print(&context.client.read::<QuotaReply>(&answer.json)?.quota.property_list())?
                    }
                }
            }
            QuotasSubcommand::Rm(QuotaTargetArg { of }) => {
                let answer = context.client.call(Method::DELETE, &of.path(), None).await?;
                context.print_done(&answer, &format!("{of} removed"))?;
            }
        }
        Ok(CommandExit::Ok)
    }
}

async fn list(context: &CommandContext, limit: Option<u32>) -> Result<(), CommandFailure> {
    let all = context.client.list("/v1/quotas", &[], limit.map(|limit| limit as usize)).await?;
    if context.output == OutputFormat::Json {
        return print_json(&all);
    }
    if all.items.is_empty() {
        print_note("no quotas; set one: hotpool quotas put demo/acme --claims 100");
        return Ok(());
    }
    let rows = context.client.read_items::<QuotaView>(&all)?.into_iter().map(|quota| {
        let mut row = vec![quota.name()];
        row.extend(quota.cells());
        row.push(quota.weight.to_string());
        row.push(quota.waiting.map(|waiting| waiting.to_string()).unwrap_or_default());
        row
    });
    print(&table(&["QUOTA", "CLAIMS", "CPU", "MEMORY", "GPU", ">WEIGHT", ">WAITING"], rows))?;
    context.warn_if_truncated(&all);
    Ok(())
}
