//! `hotpool pools put` and `hotpool pools set`: a specification as a whole, and single settings of it.

use clap::Args;
use hyper::Method;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{PoolNameArg, PoolReply, PoolView, path, setting_text};
use crate::cli::CommandContext;
use crate::cli::args::{LabelArgs, to_sparse_json};
use crate::cli::client::{CommandExit, CommandFailure};
use crate::cli::output::{OutputFormat, print, print_note};

/// A pool and what it is to be.
#[derive(Debug, Args)]
pub(super) struct PutPoolArgs {
    #[command(flatten)]
    name: PoolNameArg,
    #[command(flatten)]
    spec: PoolSpecArgs,
}

/// A pool and what is to change of it.
#[derive(Debug, Args)]
pub(super) struct SetPoolArgs {
    #[command(flatten)]
    name: PoolNameArg,
    #[command(flatten)]
    spec: PoolSpecArgs,
    /// A setting that goes back to its default, as in class, or a label that goes, as in labels.tier; may be said many times
    #[arg(long, value_name = "FIELD")]
    reset: Vec<String>,
    /// Only if the pool is still at this version, as `pools show` said it; not said: as this command reads it first
    #[arg(long, value_name = "N")]
    version: Option<u64>,
}

/// A specification, as far as it is said. The service knows defaults and limits.
#[derive(Debug, Args, Serialize)]
struct PoolSpecArgs {
    /// Into how many parts the pool is split: a power of two, 1..=1024; never changes
    #[arg(long, value_name = "N")]
    shards: Option<u64>,
    /// How claims use workers; never changes
    #[arg(long, value_name = "exclusive|shared")]
    mode: Option<String>,
    /// Choice among the workers that will do: the first three in an exclusive pool, the others in a shared one
    #[arg(long, value_name = "lifo|fifo|random|best_fit|spread|fgd")]
    policy: Option<String>,
    /// Whether work without GPUs leaves workers with GPUs alone while others fit
    #[arg(long, value_name = "true|false")]
    spare_gpu_workers: Option<bool>,
    /// What policy fgd takes for usual, as in [{"cpu_milli":4000,"gpu":{"milli":500},"weight":3}]
    #[arg(long, value_name = "JSON", value_parser = json)]
    typical_requests: Option<Value>,
    /// When answers leave
    #[arg(long, value_name = "durable|memory")]
    ack: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
    /// Class: claims that name one take from pools of it only
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// How long a claim may stay unconfirmed
    #[arg(long, value_name = "MS")]
    reserve_ms: Option<u64>,
    /// Ttl of a claim that asks for none
    #[arg(long, value_name = "MS")]
    ttl_default_ms: Option<u64>,
    /// Longest ttl that a claim may ask for
    #[arg(long, value_name = "MS")]
    ttl_max_ms: Option<u64>,
    /// How long a worker may be cleaned before it is suspect
    #[arg(long, value_name = "MS")]
    releasing_ms: Option<u64>,
    /// How long a worker that heartbeats may be silent before it is lost
    #[arg(long, value_name = "MS")]
    heartbeat_ttl_ms: Option<u64>,
    /// How long a worker's lists may leave out a claim that they never named before it ends
    #[arg(long, value_name = "MS")]
    unnamed_ms: Option<u64>,
    /// How long a lost worker is kept before it is deleted; 0: for ever
    #[arg(long, value_name = "MS")]
    lost_keep_ms: Option<u64>,
    /// How far the store may lag before claims that are acknowledged from memory are refused
    #[arg(long, value_name = "MS")]
    lag_max_ms: Option<u64>,
    /// Whether a claim that waits may evict claims with a lower priority that are preemptible
    #[arg(long, value_name = "true|false")]
    preemption: Option<bool>,
    /// How many claims may wait for room; the next is refused
    #[arg(long, value_name = "N")]
    waiters_max: Option<u64>,
    /// How many of them may be one tenant's
    #[arg(long, value_name = "N")]
    waiters_tenant_max: Option<u64>,
}

/// Reads any JSON: what it must be the service knows.
fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("must be JSON: {error}"))
}

/// A setting that differs before and after: its name and both values.
type SettingChange = (String, Option<Value>, Option<Value>);

/// Settings that differ between two specifications, by name. Labels that are empty are none.
fn changed_settings(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<SettingChange> {
    let there = |value: &Value| *value != json!({}) && *value != json!([]);
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let of = |spec: &Map<String, Value>, name: &str| spec.get(name).filter(|value| there(value)).cloned();
    let both = names.into_iter().map(|name| (name.clone(), of(before, name), of(after, name)));
    both.filter(|(_, before, after)| before != after).collect()
}

fn optional_setting_text(value: Option<&Value>) -> String {
    value.map_or_else(|| "none".to_owned(), setting_text)
}

impl PutPoolArgs {
    pub(super) async fn run(self, context: &CommandContext) -> Result<(), CommandFailure> {
        let pool = &self.name.pool;
        let mut spec = to_sparse_json(&self.spec);
        let known = match context.client.get(&path(pool)).await {
            Ok(answer) => Some(context.client.read::<PoolReply>(&answer.json)?.pool.spec),
            Err(failure) if failure.exit == CommandExit::NotFound => None,
            Err(failure) => return Err(failure),
        };
        for name in ["shards", "mode"] {
            // They never change, so not saying them can only mean the ones that are there.
            if let (None, Some(value)) = (spec.get(name), known.as_ref().and_then(|known| known.get(name))) {
                spec[name] = value.clone();
            }
        }
        let answer = context.client.call(Method::PUT, &path(pool), Some(&spec)).await?;
        context.print_done(&answer, &format!("{pool} {}", if answer.created { "created" } else { "updated" }))?;
        if let (Some(known), OutputFormat::Table) = (known, context.output) {
            let PoolView { spec: after, .. } = context.client.read::<PoolReply>(&answer.json)?.pool;
            let reset = changed_settings(&known, &after).into_iter().filter(|(name, ..)| spec.get(name).is_none());
            let reset: Vec<_> = reset.map(|(name, was, _)| (name, optional_setting_text(was.as_ref()))).collect();
            for (name, was) in &reset {
                print_note(&format!("back to default, because it was not said: {name} (was {was})"));
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
        let read = context.client.get(&path(pool)).await?;
        let PoolView { spec: before, version, .. } = context.client.read::<PoolReply>(&read.json)?.pool;
        let target = format!("{}?version={}", path(pool), self.version.unwrap_or(version));
        let answer = context.client.call(Method::PATCH, &target, Some(&patch)).await?;
        if context.output == OutputFormat::Json {
            return print(answer.json.get());
        }
        let PoolView { spec: after, .. } = context.client.read::<PoolReply>(&answer.json)?.pool;
        let changes = changed_settings(&before, &after);
        if changes.is_empty() {
            return print(&format!("{pool} is so already"));
        }
        let lines = changes.iter().map(|(name, was, is)| {
            format!("  {name}: {} -> {}", optional_setting_text(was.as_ref()), optional_setting_text(is.as_ref()))
        });
        print(&format!("{pool} set\n{}", lines.collect::<Vec<_>>().join("\n")))
    }

    /// A JSON merge patch.
    fn patch(&self) -> Result<Value, CommandFailure> {
        let Value::Object(mut patch) = to_sparse_json(&self.spec) else { unreachable!("a specification is an object") };
        for field in &self.reset {
            let twice = |known: Option<Value>| match known {
                Some(known) if !known.is_null() => {
                    Err(CommandFailure::usage("--reset", format!("{field} cannot be set and reset at once")))
                }
                _ => Ok(()),
            };
            let whole_and_single =
                || CommandFailure::usage("--reset", "labels cannot be reset as a whole and one by one");
            match field.split_once('.') {
                Some(("labels", "")) => {
                    let message = "labels. names no label; say labels.KEY, or labels for all of them";
                    return Err(CommandFailure::usage("--reset", message));
                }
                // A key may hold points itself.
                Some(("labels", key)) => {
                    let labels = patch.entry("labels").or_insert_with(|| json!({}));
                    let labels = labels.as_object_mut().ok_or_else(whole_and_single)?;
                    twice(labels.insert(key.to_owned(), Value::Null))?;
                }
                _ if field == "labels" => match patch.insert(field.clone(), Value::Null) {
                    Some(Value::Object(labels)) if labels.values().all(Value::is_null) => {
                        return Err(whole_and_single());
                    }
                    known => twice(known)?,
                },
                // As the flag has it, or as the API.
                _ => twice(patch.insert(field.replace('-', "_"), Value::Null))?,
            }
        }
        if patch.is_empty() {
            return Err(CommandFailure::usage("FLAGS", "nothing to set; say a setting, or --reset FIELD"));
        }
        Ok(Value::Object(patch))
    }
}
