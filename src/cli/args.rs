//! Values of the command line: how they are parsed, and arguments that several commands share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::BufRead as _;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::failure::CommandFailure;
use crate::client::ListRange;
use crate::limits::{AMOUNT_MAX, GPU_MILLI};
use crate::model::label_selector::LabelSelector;
use crate::model::{
    AckLevel, GpuCapacity, GpuRequest, Labels, PoolName, ResourceRequirements, WorkerCapacity, WorkerId,
    check_label_key, check_name,
};

/// Pool as the first argument.
#[derive(Debug, clap::Args)]
pub(super) struct PoolNameArg {
    /// Name of the pool: NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = parse_pool)]
    pub(super) pool: PoolName,
}

/// Limit of a listing.
#[derive(Debug, clap::Args)]
pub(super) struct LimitArg {
    /// Show at most this many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

impl From<LimitArg> for ListRange {
    fn from(LimitArg { limit }: LimitArg) -> Self {
        Self { limit: limit.map(|limit| limit as usize), page_token: None }
    }
}

/// Parses the name of a pool, `NS/POOL`.
pub(super) fn parse_pool(text: &str) -> Result<PoolName, String> {
    PoolName::parse(text).map_err(|error| match text.contains('/') {
        true => error.to_string(),
        false => "must be NAMESPACE/POOL, as in demo/warm".to_owned(),
    })
}

/// Parses one name, such as that of a tenant or a node.
pub(super) fn parse_name(text: &str) -> Result<String, String> {
    check_name("name", text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// Parses a worker id that a command calls by.
fn parse_worker_id(text: &str) -> Result<WorkerId, CommandFailure> {
    WorkerId::new(text).map_err(|error| CommandFailure::usage(text, error.to_string()))
}

/// Name of a claim: `NS/KEY`.
#[derive(Debug, Clone)]
pub struct ClaimName {
    /// Namespace of the key.
    pub namespace: String,
    /// Key within its namespace and tenant.
    pub key: String,
}

impl FromStr for ClaimName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, key) = text.split_once('/').ok_or("must be NAMESPACE/KEY, as in demo/job-1")?;
        Ok(Self { namespace: parse_name(namespace)?, key: parse_name(key)? })
    }
}

impl fmt::Display for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.key)
    }
}

/// Parses a label, `KEY=VALUE`.
fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE, as in zone=a")?;
    check_label_key("key", key).map_err(|error| format!("key {key:?}: {error}"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Parses a label selector like the service.
pub(super) fn parse_selector(text: &str) -> Result<LabelSelector, String> {
    LabelSelector::parse(text).map_err(|error| error.to_string())
}

/// Parses an acknowledgement level.
pub(super) fn parse_ack(text: &str) -> Result<AckLevel, &'static str> {
    match text {
        "durable" => Ok(AckLevel::Durable),
        "memory" => Ok(AckLevel::Memory),
        _ => Err("must be durable or memory"),
    }
}

/// Labels of an object.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct LabelArgs {
    /// Label, KEY=VALUE; can be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
}

impl LabelArgs {
    /// Checks that no key is given twice.
    pub(super) fn check(&self) -> Result<(), CommandFailure> {
        let mut keys = BTreeSet::new();
        match self.labels.iter().find(|(key, _)| !keys.insert(key)) {
            Some((key, _)) => Err(CommandFailure::usage("--label", format!("{key} is given twice"))),
            None => Ok(()),
        }
    }
}

impl From<LabelArgs> for Labels {
    fn from(LabelArgs { labels }: LabelArgs) -> Self {
        labels.into_iter().collect()
    }
}

impl Serialize for LabelArgs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.labels.iter().cloned().collect::<BTreeMap<_, _>>().serialize(serializer)
    }
}

/// Resources of a worker.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CapacityArgs {
    #[command(flatten)]
    amounts: AmountArgs,
    /// GPUs of one model, as in a100=2
    #[arg(long, value_name = "MODEL=COUNT", help_heading = "Resources", value_parser = parse_gpu_capacity)]
    gpu: Option<GpuCapacity>,
}

impl From<CapacityArgs> for WorkerCapacity {
    fn from(CapacityArgs { amounts, gpu }: CapacityArgs) -> Self {
        let [cpu_milli, memory_bytes, slots] = amounts.or_zero();
        Self { cpu_milli, memory_bytes, slots, gpu }
    }
}

/// Resources that a claim requests.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ClaimResourceArgs {
    #[command(flatten)]
    amounts: AmountArgs,
    /// GPUs of one of these models, the most preferred first, or of any: a100:2, a100,h100:1, :1; or a part of one GPU, in
    /// thousandths: a100:1:500
    #[arg(long, value_name = "[MODEL,..]:COUNT[:MILLI]", help_heading = "Resources", value_parser = parse_gpu_request)]
    gpu: Option<GpuRequest>,
}

impl ClaimResourceArgs {
    /// Returns the requested resources; `None` if no flag is given.
    pub(super) fn into_requirements(self) -> Option<ResourceRequirements> {
        let Self { amounts, gpu } = self;
        let AmountArgs { cpu_milli, memory_bytes, slots } = amounts;
        let is_given = gpu.is_some() || [cpu_milli, memory_bytes, slots].iter().any(Option::is_some);
        let [cpu_milli, memory_bytes, slots] = amounts.or_zero();
        is_given.then_some(ResourceRequirements { cpu_milli, memory_bytes, slots, gpu })
    }
}

/// Amounts of resources that add up.
#[derive(Debug, Clone, Copy, clap::Args)]
struct AmountArgs {
    /// Thousandths of a core
    #[arg(long, value_name = "N", value_parser = parse_amount, help_heading = "Resources")]
    cpu_milli: Option<u64>,
    /// Bytes of memory; Ki, Mi, Gi and Ti may follow the number
    #[arg(long, value_name = "N[Gi]", value_parser = parse_amount, help_heading = "Resources")]
    memory_bytes: Option<u64>,
    /// Slots, in a unit of your own
    #[arg(long, value_name = "N", value_parser = parse_amount, help_heading = "Resources")]
    slots: Option<u64>,
}

impl AmountArgs {
    fn or_zero(self) -> [u64; 3] {
        [self.cpu_milli, self.memory_bytes, self.slots].map(Option::unwrap_or_default)
    }
}

fn parse_gpu_capacity(text: &str) -> Result<GpuCapacity, String> {
    let malformed = "must be MODEL=COUNT, as in a100=2";
    let (model, count) = text.split_once('=').ok_or(malformed)?;
    Ok(GpuCapacity { model: parse_name(model)?.into(), count: count.parse().map_err(|_| malformed)? })
}

fn parse_gpu_request(text: &str) -> Result<GpuRequest, String> {
    let malformed = "must be [MODEL,..]:COUNT[:MILLI], as in a100:2, a100,h100:1 or a100:1:500";
    let (models, amounts) = text.split_once([':', '=']).ok_or(malformed)?;
    let (count, milli) = amounts.split_once(':').map_or((amounts, None), |(count, milli)| (count, Some(milli)));
    let number = |text: &str| text.parse().map_err(|_| malformed.to_owned());
    let models = models.split(',').filter(|_| !models.is_empty()).map(|model| Ok(parse_name(model)?.into()));
    Ok(GpuRequest {
        models: models.collect::<Result<_, String>>()?,
        count: number(count)?,
        milli: milli.map_or(Ok(GPU_MILLI), number)?,
    })
}

/// Parses a number with an optional binary unit.
pub(super) fn parse_amount(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        unit => return Err(format!("unknown unit {unit:?}; known: Ki, Mi, Gi, Ti")),
    };
    let number: u64 = digits.parse().map_err(|_| "must be a whole number".to_owned())?;
    let product = number.checked_mul(1 << shift).filter(|product| *product <= AMOUNT_MAX);
    product.ok_or_else(|| format!("must be at most {AMOUNT_MAX}"))
}

/// Builds a JSON object from the arguments that are given. Omitted ones are left to the defaults of the service.
pub(super) fn to_sparse_json(fields: &impl Serialize) -> Value {
    let mut fields = serde_json::to_value(fields).expect("arguments are plain data");
    if let Value::Object(fields) = &mut fields {
        fields.retain(|_, value| *value != Value::Null && *value != json!({}) && *value != json!([]));
    }
    fields
}

/// Replaces each `-` by the ids on stdin, which white space separates.
///
/// # Errors
/// Usage for a text that is no id, and failures to read stdin.
pub(super) fn expand_stdin(ids: &[String]) -> Result<Vec<WorkerId>, CommandFailure> {
    let mut all = Vec::with_capacity(ids.len());
    for id in ids {
        if id != "-" {
            all.push(parse_worker_id(id)?);
            continue;
        }
        for line in std::io::stdin().lock().lines() {
            for id in line.map_err(CommandFailure::from_local)?.split_whitespace() {
                all.push(parse_worker_id(id)?);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ServiceUrl;
    use crate::server::config::ServerConfig;

    #[test]
    fn commands_call_the_address_that_a_service_listens_on_by_default() {
        assert_eq!(ServiceUrl::default().to_string(), format!("http://{}", ServerConfig::default().listen));
    }

    #[test]
    fn amounts_are_parsed_with_their_units_and_gpus_with_their_models() {
        assert_eq!(parse_amount("0"), Ok(0));
        assert_eq!(parse_amount("4Gi"), Ok(4 << 30));
        for (text, models, count, milli) in [
            ("a100:2", &["a100"][..], 2, 1_000),
            ("a100=1", &["a100"], 1, 1_000),
            ("a100,h100:1:500", &["a100", "h100"], 1, 500),
            (":4", &[], 4, 1_000),
        ] {
            let models = models.iter().map(|model| (*model).into()).collect();
            assert_eq!(parse_gpu_request(text), Ok(GpuRequest { models, count, milli }));
        }
        for bad in ["", "a100", "a100:", "a100:x", "a100:1:", "a100:1:2:3", "a100,:1", "a b:1", "a100:-1"] {
            assert!(parse_gpu_request(bad).is_err(), "{bad}");
        }
        for bad in ["", "-1", "1.5", "4G", "Gi", "99999999999Ti", "9007199254740992", "٣"] {
            assert!(parse_amount(bad).is_err(), "{bad}");
        }
    }
}
