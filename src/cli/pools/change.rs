//! `hotpool pools put` and `hotpool pools set`: a whole specification, and single settings of one.

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cli::CommandContext;
use crate::cli::args::{LabelArgs, PoolNameArg, to_sparse_json};
use crate::cli::failure::CommandFailure;
use crate::cli::output::{OutputFormat, plain_text, print_note};

/// Pool with its whole specification.
#[derive(Debug, Args)]
pub(super) struct PutPoolArgs {
    #[command(flatten)]
    name: PoolNameArg,
    #[command(flatten)]
    spec: PoolSpecArgs,
}

/// Pool with the settings to change.
#[derive(Debug, Args)]
pub(super) struct SetPoolArgs {
    #[command(flatten)]
    name: PoolNameArg,
    #[command(flatten)]
    spec: PoolSpecArgs,
    /// Setting to reset to its default, as in class, or label to remove, as in labels.tier; can be repeated
    #[arg(long, value_name = "FIELD")]
    reset: Vec<String>,
    /// Fail unless the pool still has this version, as in `pools show`; default: the version when the command starts
    #[arg(long, value_name = "N")]
    version: Option<u64>,
}

/// Specification with the given settings. The service knows defaults and limits.
#[derive(Debug, Args, Serialize)]
struct PoolSpecArgs {
    /// Number of shards: a power of two from 1 to 1024; never changes
    #[arg(long, value_name = "N")]
    shards: Option<u64>,
    /// Use of workers by claims, whole or in parts; never changes
    #[arg(long, value_name = "exclusive|shared")]
    mode: Option<String>,
    /// Choice among the workers that fit: the first three for exclusive pools, the others for shared ones
    #[arg(long, value_name = "lifo|fifo|random|best_fit|spread|fgd")]
    policy: Option<String>,
    /// Keep claims without GPUs off workers with GPUs while others fit
    #[arg(long, value_name = "true|false")]
    spare_gpu_workers: Option<bool>,
    /// Mix of requests that policy fgd expects, as in [{"cpu_milli":4000,"gpu":{"milli":500},"weight":3}]
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    typical_requests: Option<Value>,
    /// When claims are acknowledged: once stored, or at once
    #[arg(long, value_name = "durable|memory")]
    ack: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
    /// Class; claims that name a class use only pools of it
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Longest time that a claim may stay unconfirmed
    #[arg(long, value_name = "MS")]
    reserve_ms: Option<u64>,
    /// Time to live of claims that request none
    #[arg(long, value_name = "MS")]
    ttl_default_ms: Option<u64>,
    /// Longest time to live that a claim may request
    #[arg(long, value_name = "MS")]
    ttl_max_ms: Option<u64>,
    /// Longest cleanup of a worker; then it is suspect
    #[arg(long, value_name = "MS")]
    releasing_ms: Option<u64>,
    /// Longest silence of a worker that sends heartbeats; then it is lost
    #[arg(long, value_name = "MS")]
    heartbeat_ttl_ms: Option<u64>,
    /// Grace period for a claim that its worker's heartbeats never reported; then it ends
    #[arg(long, value_name = "MS")]
    unnamed_ms: Option<u64>,
    /// Time until a lost worker is deleted; 0 for never
    #[arg(long, value_name = "MS")]
    lost_keep_ms: Option<u64>,
    /// Largest lag of the store; beyond it claims that are acknowledged at once are refused
    #[arg(long, value_name = "MS")]
    lag_max_ms: Option<u64>,
    /// Let waiting claims evict preemptible ones with a lower priority
    #[arg(long, value_name = "true|false")]
    preemption: Option<bool>,
    /// Longest time for which workers are held for one waiting claim or gang
    #[arg(long, value_name = "MS")]
    hold_max_ms: Option<u64>,
    /// Maximum number of claims that may wait for capacity; the next is refused
    #[arg(long, value_name = "N")]
    waiters_max: Option<u64>,
    /// Maximum number of waiting claims of one tenant
    #[arg(long, value_name = "N")]
    waiters_tenant_max: Option<u64>,
}

/// Parses any JSON; the service checks it.
fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("must be JSON: {error}"))
}

/// Setting that differs: its name, and its value before and after.
type SettingChange = (String, Option<Value>, Option<Value>);

/// Finds the settings that differ between two specifications. Empty ones count as unset.
fn changed_settings(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<SettingChange> {
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let is_set = |value: &&Value| **value != json!({}) && **value != json!([]);
    let value = |spec: &Map<String, Value>, name: &str| spec.get(name).filter(is_set).cloned();
    let both = names.into_iter().map(|name| (name.clone(), value(before, name), value(after, name)));
    both.filter(|(_, before, after)| before != after).collect()
}

fn optional_text(value: Option<&Value>) -> String {
    value.map_or_else(|| "none".to_owned(), plain_text)
}

impl PutPoolArgs {
    pub(super) async fn run(self, context: &CommandContext) -> Result<(), CommandFailure> {
        let pool = &self.name.pool;
        self.spec.labels.check()?;
        let mut spec = to_sparse_json(&self.spec);
        let before = match context.client.get_pool(pool).await {
            Ok(reply) => Some(reply.into_value().pool.spec),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        for name in ["shards", "mode"] {
            // These never change, so omitting them can only mean those of the pool.
            if let (None, Some(value)) = (spec.get(name), before.as_ref().and_then(|before| before.get(name))) {
                spec[name] = value.clone();
            }
        }
        let reply = context.client.put_pool(pool, &spec).await?;
        let done = if reply.created { "created" } else { "updated" };
        context.print_reply(&reply, |_| format!("{pool} {done}"))?;
        if let (Some(before), OutputFormat::Table) = (before, context.output) {
            let changes = changed_settings(&before, &reply.pool.spec);
            let reset: Vec<_> = changes.into_iter().filter(|(name, ..)| spec.get(name).is_none()).collect();
            for (name, was, _) in &reset {
                let was = optional_text(was.as_ref());
                print_note(&format!("reset to its default, because it was omitted: {name} (was {was})"));
            }
            if !reset.is_empty() {
                print_note("to change single settings: hotpool pools set");
            }
        }
        Ok(())
    }
}

impl SetPoolArgs {
    pub(super) async fn run(self, context: &CommandContext) -> Result<(), CommandFailure> {
        let patch = self.patch()?;
        let pool = &self.name.pool;
        let before = context.client.get_pool(pool).await?.into_value().pool;
        let version = self.version.unwrap_or(before.version);
        let reply = context.client.patch_pool(pool, Some(version), &patch).await?;
        context.print_reply(&reply, |reply| {
            let changes = changed_settings(&before.spec, &reply.pool.spec);
            if changes.is_empty() {
                return format!("{pool} unchanged");
            }
            let lines = changes.iter().map(|(name, was, is)| {
                format!("\n  {name}: {} -> {}", optional_text(was.as_ref()), optional_text(is.as_ref()))
            });
            format!("{pool} set{}", lines.collect::<String>())
        })
    }

    /// Builds the JSON merge patch.
    fn patch(&self) -> Result<Value, CommandFailure> {
        self.spec.labels.check()?;
        let Value::Object(mut patch) = to_sparse_json(&self.spec) else { unreachable!("a specification is an object") };
        for field in &self.reset {
            reset_field(&mut patch, field).map_err(|message| CommandFailure::usage("--reset", message))?;
        }
        if patch.is_empty() {
            return Err(CommandFailure::usage("FLAGS", "nothing to set; give a setting, or --reset FIELD"));
        }
        Ok(Value::Object(patch))
    }
}

/// Adds the reset of a setting or of a label to a JSON merge patch.
fn reset_field(patch: &mut Map<String, Value>, field: &str) -> Result<(), String> {
    let whole_and_single = || "labels cannot be reset as a whole and one by one".to_owned();
    let replaced = match field.split_once('.') {
        Some(("labels", "")) => {
            return Err("labels. names no label; use labels.KEY, or labels for all of them".to_owned());
        }
        // A key may hold points itself.
        Some(("labels", key)) => {
            let labels = patch.entry("labels").or_insert_with(|| json!({}));
            labels.as_object_mut().ok_or_else(whole_and_single)?.insert(key.to_owned(), Value::Null)
        }
        // The name is that of the flag, or that of the API.
        _ => patch.insert(field.replace('-', "_"), Value::Null),
    };
    match replaced {
        Some(Value::Object(labels)) if field == "labels" && labels.values().all(Value::is_null) => {
            Err(whole_and_single())
        }
        Some(value) if !value.is_null() => Err(format!("{field} cannot be set and reset at once")),
        _ => Ok(()),
    }
}
