//! `hotpool quotas ...`.

use std::fmt;
use std::str::FromStr;

use clap::{Args, Subcommand};
use hyper::Method;
use serde::{Deserialize, Serialize};

use super::args::{self, amount, said};
use super::client::{Exit, Failure};
use super::output::{Format, bytes, note, print, print_json, sheet, table};
use super::{Connection, Context};

/// Quotas: how much tenants may hold, and their weights.
#[derive(Debug, Args)]
pub struct Quotas {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Set how much a tenant may hold, or each tenant of a namespace that has no quota of its own
    #[command(
        alias = "set",
        after_help = "What is not said is not bounded; the weight is 1 then. What is held stays, whatever is set.\n\n\
                      Examples:\n  hotpool quotas put demo/acme --claims 100 --gpu-milli 8000 --weight 3\n  \
                      hotpool quotas put demo --claims 10"
    )]
    Put {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        quota: Amounts,
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
    Show(Of),
    /// Take a quota away
    #[command(alias = "delete")]
    Rm(Of),
}

#[derive(Debug, Args)]
struct Of {
    /// NAMESPACE/TENANT, or NAMESPACE: each of its tenants without a quota of its own
    #[arg(value_name = "NS[/TENANT]")]
    of: Owner,
}

/// `NS` or `NS/TENANT`.
#[derive(Debug, Clone)]
struct Owner(String);

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, tenant) = text.split_once('/').map_or((text, None), |(ns, tenant)| (ns, Some(tenant)));
        args::name(namespace)?;
        tenant.map_or(Ok(String::new()), args::name)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Owner {
    /// Names need no encoding.
    fn path(&self) -> String {
        format!("/v1/quotas/{self}")
    }
}

/// A quota, as far as it is said. The service knows defaults and limits.
#[derive(Debug, Args, Serialize)]
struct Amounts {
    /// Claims
    #[arg(long, value_name = "N")]
    claims: Option<u64>,
    /// Thousandths of a core that claims ask for
    #[arg(long, value_name = "N", value_parser = amount)]
    cpu_milli: Option<u64>,
    /// Bytes of memory that claims ask for; Ki, Mi, Gi and Ti may follow the number
    #[arg(long, value_name = "N[Gi]", value_parser = amount)]
    memory_bytes: Option<u64>,
    /// Thousandths of GPU cards that claims ask for
    #[arg(long, value_name = "N", value_parser = amount)]
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
    limits: Held,
    weight: u64,
    used: Option<Held>,
    waiting: Option<u64>,
}

/// What is held, or may be.
#[derive(Debug, Clone, Deserialize)]
struct Held {
    claims: Option<u64>,
    cpu_milli: Option<u64>,
    memory_bytes: Option<u64>,
    gpu_milli: Option<u64>,
}

impl Held {
    /// In words, each amount by itself: claims, cores, memory, cards. None: it is not bounded.
    fn words(&self) -> [Option<String>; 4] {
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
        let limits = self.limits.words();
        let mut used = self.used.as_ref().map_or([const { None }; 4], Held::words).into_iter();
        limits.map(|limit| match (used.next().flatten(), limit) {
            (Some(used), Some(limit)) => format!("{used} of {limit}"),
            (used, limit) => used.or(limit).unwrap_or_default(),
        })
    }

    fn sheet(&self) -> String {
        let [claims, cpu, memory, gpu] = self.cells();
        sheet(&[
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
struct QuotaAnswer {
    quota: QuotaView,
}

impl Quotas {
    pub(super) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        match self.verb {
            Verb::Put { of: Of { of }, quota } => {
                let answer = context.client.call(Method::PUT, &of.path(), Some(&said(&quota))).await?;
                context.done(&answer, &format!("{of} {}", if answer.created { "set" } else { "changed" }))?;
            }
            Verb::Ls { limit } => list(context, limit).await?,
            Verb::Show(Of { of }) => {
                let answer = context.client.get(&of.path()).await?;
                match context.output {
                    Format::Json => print(answer.json.get())?,
                    Format::Table => print(&context.client.read::<QuotaAnswer>(&answer.json)?.quota.sheet())?,
                }
            }
            Verb::Rm(Of { of }) => {
                let answer = context.client.call(Method::DELETE, &of.path(), None).await?;
                context.done(&answer, &format!("{of} removed"))?;
            }
        }
        Ok(Exit::Ok)
    }
}

async fn list(context: &Context, limit: Option<u32>) -> Result<(), Failure> {
    let all = context.client.list("/v1/quotas", &[], limit.map(|limit| limit as usize)).await?;
    if context.output == Format::Json {
        return print_json(&all);
    }
    if all.items.is_empty() {
        note("no quotas; set one: hotpool quotas put demo/acme --claims 100");
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
    context.told_if_cut(&all);
    Ok(())
}
