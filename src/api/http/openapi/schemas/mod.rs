//! Schemas of bodies, parameters and errors. Limits come from [`crate::limits`].

use serde_json::{Value, json};

use super::reference;
use crate::limits;

mod claims;
mod demand;
mod errors;
mod events;
mod pools;
mod workers;

pub(super) use errors::responses;

fn schema(name: &str) -> Value {
    reference("schemas", name)
}

/// Schema of an integer from 0 to `max`.
fn number(max: u64, description: &str) -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 0, "maximum": max, "description": description})
}

fn amount(description: &str) -> Value {
    number(limits::AMOUNT_MAX, description)
}

fn at_least_1(mut number: Value) -> Value {
    number["minimum"] = 1.into();
    number
}

fn ttl_ms(description: &str) -> Value {
    at_least_1(number(limits::TTL_MS_MAX, description))
}

/// Refers to a schema, with a description of its own.
fn described(name: &str, description: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}"), "description": description})
}

/// Schema of a request object, which accepts no other fields.
fn closed_object(description: &str, required: &[&str], properties: Value) -> Value {
    json!({
        "type": "object", "description": description, "required": required, "properties": properties,
        "additionalProperties": false,
    })
}

/// Schema of a response object; later versions may add fields.
fn open_object(description: &str, required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "description": description, "required": required, "properties": properties})
}

fn page(of: &str) -> Value {
    open_object(
        "Page of a listing.",
        &["items"],
        json!({
            "items": {"type": "array", "maxItems": limits::PAGE_ITEMS_MAX, "items": schema(of)},
            "next_page_token": {"type": "string", "description": "Token of the next page; missing on the last."},
        }),
    )
}

/// Schema of a batch response: `{name, created}` or an error for each item.
fn outcomes(name: &str, of: &str) -> Value {
    let done = open_object(
        "Success.",
        &[name, "created"],
        json!({
            name: schema(of),
            "created": {"type": "boolean", "description": "False if it existed before this request."},
        }),
    );
    done_or_error(done)
}

/// Schema of a batch response: `done` or an error for each item.
fn done_or_error(done: Value) -> Value {
    open_object(
        "Outcomes of the items, in order.",
        &["items"],
        json!({
            "items": {"type": "array", "maxItems": limits::BATCH_ITEMS_MAX, "items": {"oneOf": [done, schema("Error")]}},
        }),
    )
}

fn with_property(mut properties: Value, name: &str, schema: Value) -> Value {
    properties[name] = schema;
    properties
}

pub(super) fn schemas() -> Value {
    let mut schemas = common();
    let more = [
        pools::schemas(),
        workers::schemas(),
        claims::schemas(),
        demand::schemas(),
        events::schemas(),
        errors::schemas(),
        miscellaneous(),
    ];
    more.into_iter().for_each(|more| extend(&mut schemas, more));
    schemas
}

fn extend(schemas: &mut Value, more: Value) {
    let (Value::Object(schemas), Value::Object(more)) = (schemas, more) else { unreachable!("both are objects") };
    schemas.extend(more);
}

/// Schema of a shard's index in its pool.
#[rustfmt::skip]
fn shard_index() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": limits::SHARDS_MAX - 1, "description": "Index of the shard in the pool."})
}

/// Schemas of names, labels and resources.
#[rustfmt::skip]
fn common() -> Value {
    json!({
        "Name": {"type": "string", "minLength": 1, "maxLength": limits::NAME_BYTES_MAX, "pattern": "^[A-Za-z0-9._-]+$", "description": "Name of 1 to 255 bytes."},
        "LabelKey": {
            "type": "string", "minLength": 1, "maxLength": limits::LABEL_PREFIX_BYTES_MAX + 1 + limits::LABEL_NAME_BYTES_MAX,
            "pattern": "^([A-Za-z0-9._-]{1,255}|[a-z0-9]([a-z0-9-]*[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)$",
            "description": "Label key: one of Kubernetes with a prefix (topology.kubernetes.io/zone), or any name.",
        },
        "Labels": {
            "type": "object", "maxProperties": limits::LABELS_MAX, "propertyNames": schema("LabelKey"),
            "additionalProperties": {"type": "string", "maxLength": limits::LABEL_VALUE_BYTES_MAX, "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"},
            "description": "Labels. Values are at most 255 bytes, without control characters.",
        },
        "Capacity": closed_object("Capacity of a worker. Omitted resources are 0.", &[], json!({
            "cpu_milli": amount("CPU in thousandths of a core."),
            "memory_bytes": amount("Memory in bytes."),
            "slots": amount("Slots, in a unit that the pool's owner chooses."),
            "gpu": closed_object("GPUs of one model.", &["model", "count"], json!({
                "model": described("Name", "Name of the model, as in A10."),
                "count": {"type": "integer", "minimum": 1, "maximum": limits::GPUS_MAX, "description": "Number of GPUs."},
            })),
        })),
        "Resources": closed_object("Resources that a claim requests, all on one worker.", &[], json!({
            "cpu_milli": amount("CPU in thousandths of a core."),
            "memory_bytes": amount("Memory in bytes."),
            "slots": amount("Slots, in a unit that the pool's owner chooses."),
            "gpu": schema("GpuAsk"),
        })),
        "GpuAsk": closed_object("Whole GPUs, or a fraction of one. Only one of model and models may be given.", &[], json!({
            "model": described("Name", "Required model. Default: any."),
            "models": {"type": "array", "maxItems": limits::CLAIM_MODELS_MAX, "uniqueItems": true, "items": schema("Name"), "description": "Acceptable models, in order of preference."},
            "count": {"type": "integer", "minimum": 1, "maximum": limits::GPUS_MAX, "default": 1, "description": "Number of GPUs."},
            "milli": {"type": "integer", "minimum": 1, "maximum": limits::GPU_MILLI, "default": limits::GPU_MILLI, "description": "Thousandths of each GPU. A fraction of a GPU requires a count of 1."},
        })),
        "Held": open_object("Resources that a claim holds. Omitted resources are 0.", &[], json!({
            "cpu_milli": amount("CPU in thousandths of a core."),
            "memory_bytes": amount("Memory in bytes."),
            "slots": amount("Slots, in a unit that the pool's owner chooses."),
            "gpu": open_object("GPUs of one model.", &["model", "count"], json!({
                "model": described("Name", "Name of the model, as in A10."),
                "count": {"type": "integer", "minimum": 1, "maximum": limits::GPUS_MAX, "description": "Number of GPUs."},
                "milli": {"type": "integer", "minimum": 1, "maximum": limits::GPU_MILLI, "description": "Thousandths of each GPU. Only in a shared pool."},
                "cards": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": limits::GPUS_MAX - 1}, "description": "Indexes of the GPUs on the worker, from 0. Only in a shared pool."},
            })),
        })),
        "Sum": open_object("Sum over workers; GPUs are counted by model in gpus.", &[], json!({
            "cpu_milli": count("CPU in thousandths of a core."), "memory_bytes": count("Memory in bytes."), "slots": count("Slots, in a unit that the pool's owner chooses."),
        })),
        "Amounts": open_object("Amounts of each resource. Omitted resources are 0.", &[], json!({
            "cpu_milli": count("CPU in thousandths of a core."), "memory_bytes": count("Memory in bytes."), "slots": count("Slots, in a unit that the pool's owner chooses."),
            "gpu": count("Whole GPUs."), "gpu_milli": count("Thousandths of one GPU."),
        })),
    })
}

fn count(description: &str) -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 0, "description": description})
}

#[rustfmt::skip]
fn miscellaneous() -> Value {
    json!({
        "NoBody": closed_object("Body without fields.", &[], json!({})),
        "Empty": open_object("Empty response: success.", &[], json!({})),
        "Health": open_object("State of the process.", &["status"], json!({"status": {"const": "ok"}})),
        "Readiness": open_object("Readiness of the service.", &["ready", "reasons"], json!({
            "ready": {"type": "boolean"}, "reasons": {"type": "array", "items": {"type": "string"}},
        })),
        "Shards": open_object("State of every shard.", &["keys", "pools"], json!({
            "keys": count("Number of keys in the directory."),
            "pools": {"type": "object", "additionalProperties": {"type": "array", "items": schema("ShardStatus")}},
        })),
    })
}

#[rustfmt::skip]
pub(super) fn parameters() -> Value {
    let query = |name: &str, schema: Value, description: &str| json!({"name": name, "in": "query", "schema": schema, "description": description});
    let mut force = query("force", json!({"type": "boolean", "default": false}), "Deletes also the workers and ends their claims.");
    // The pool of the example operations has workers.
    force["example"] = true.into();
    json!({
        "page_token": query("page_token", json!({"type": "string"}), "Value of next_page_token from the previous page."),
        "limit": query("limit", json!({"type": "integer", "minimum": 1, "maximum": limits::PAGE_ITEMS_MAX, "default": limits::PAGE_ITEMS_DEFAULT}), "Limit on items of the page."),
        "version": query("version", json!({"type": "integer", "format": "int64", "minimum": 0, "maximum": limits::FENCE_MAX}), "Version that the pool must have, as it was read. Default: any."),
        "force": force,
        "namespace": query("namespace", schema("Name"), "Namespace of the listed claims."),
        "pool": query("pool", schema("Name"), "Pool of the listed claims; requires namespace."),
        "worker": query("worker", schema("Name"), "Worker of the listed claims."),
        "from": query("from", json!({"type": "string"}), "Position of the last event that the client has seen. Default: events from now on."),
        "Last-Event-ID": {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}, "description": "Position of the last event, as browsers send it when they reconnect; takes precedence over from."},
        "tenant": query("tenant", schema("Name"), "Tenant of the claim."),
        "state": query("state", json!({"type": "string", "pattern": "^(reserved|active|releasing|waiting)(,(reserved|active|releasing|waiting))*$"}), "States of the listed claims, separated by commas. Default: those of held claims. Claims that wait are listed only if waiting is named, after the held ones. Lost claims are never listed."),
        "older_than_ms": query("older_than_ms", amount("Minimum age of the claim, in milliseconds."), "Minimum age since created_at_ms, or for claims that wait since queued_at_ms, in milliseconds. Claims without a known created_at_ms are omitted."),
    })
}
