//! Schemas of queued claims, demand and quotas.

use serde_json::{Value, json};

use super::{amount, closed_object, count, described, number, open_object, page, schema, with_property};
use crate::limits;

#[rustfmt::skip]
pub(super) fn schemas() -> Value {
    let reason = json!({"enum": ["pool_exhausted", "node_locality", "quota"], "description": "What it waits for: the reason of the refusal that it would get now."});
    json!({
        "Standing": {"oneOf": [schema("ClaimAnswer"), schema("WaitingAnswer")]},
        "WaitingAnswer": open_object("A claim that waits.", &["waiting"], json!({"waiting": schema("Waiting")})),
        "Waiting": open_object("A claim that waits.", &["key", "tenant", "namespace", "pools", "reason", "priority", "ahead", "waited_ms", "left_ms"], json!({
            "key": schema("Name"), "tenant": schema("Name"), "namespace": schema("Name"),
            "pools": {"type": "array", "items": schema("Name"), "description": "The pools for which it waits. None: it waits for its tenant's quota."},
            "reason": reason.clone(),
            "priority": number(limits::PRIORITY_MAX.into(), "Of the request."),
            "ahead": count("How many go before it as things stand, where it stands best. Who comes later may pass it."),
            "waited_ms": count("For how long it has waited."), "left_ms": count("How long until it is refused."),
            "estimate_ms": count("How long it would wait if things go on as in the last minute. Missing: nothing was served in that time."),
        })),
        "Demand": open_object("What waits for a pool.", &["namespace", "pool", "waiting", "waiting_for_quota", "oldest_ms", "workers_busy", "workers_needed", "workers_wanted", "shapes", "idle"], json!({
            "namespace": schema("Name"), "pool": schema("Name"),
            "waiting": count("Claims that wait for room in it. One that may use several pools waits for each."),
            "waiting_for_quota": count("Claims that could be taken from it and wait for their tenant's quota."),
            "oldest_ms": count("For how long the first of those that wait for room has."),
            "workers_busy": count("Workers that hold something."),
            "workers_needed": count("How many more workers, as large as its largest, would hold all that wait for room."),
            "workers_wanted": count("Busy and needed: how many it should have."),
            "shapes": {"type": "array", "maxItems": limits::DEMAND_SHAPES_MAX, "items": schema("DemandShape"), "description": "The same by what is asked for, the most wanted first."},
            "idle": {"type": "array", "maxItems": limits::DEMAND_SHAPES_MAX, "description": "Workers that hold nothing, those first that should go first: cordoned ones, then the longest idle.", "items": open_object("An idle worker.", &["worker", "cordoned"], json!({
                "worker": schema("Name"), "cordoned": {"type": "boolean", "description": "Nobody is given it any more, so it can be deleted."},
            }))},
        })),
        "DemandShape": open_object("Claims that wait for the same.", &["resources", "reason", "waiting", "oldest_ms", "priority", "workers_needed"], json!({
            "resources": described("AskedResources", "What each of them asks for. In an exclusive pool each needs a worker."),
            "selector": described("Selector", "Labels that a worker must have. Missing: any."),
            "nodes": {"type": "array", "items": schema("Name"), "description": "Nodes that would do. Missing: any."},
            "reason": reason,
            "waiting": count("How many."), "oldest_ms": count("For how long the first of them has waited."),
            "priority": number(limits::PRIORITY_MAX.into(), "The highest of theirs."),
            "workers_needed": count("How many empty workers would hold them all. 0 for quota, which no worker clears."),
        })),
        "AskedResources": open_object("What a claim asks for. What is left out is 0.", &[], json!({
            "cpu_milli": amount("Thousandths of a core."), "memory_bytes": amount("Bytes of memory."), "slots": amount("Places."),
            "gpu": open_object("Cards.", &["models", "count", "milli"], json!({
                "models": {"type": "array", "items": schema("Name"), "description": "Models that will do, the most wanted first. None: any."},
                "count": {"type": "integer", "minimum": 1, "maximum": limits::GPUS_MAX, "description": "Number of cards."},
                "milli": {"type": "integer", "minimum": 1, "maximum": limits::GPU_MILLI, "description": "Thousandths of each."},
            })),
        })),
        "QuotaBody": closed_object("How much may be held at a time. What is left out is not bounded.", &[], quota_fields()),
        "Quota": open_object("How much a tenant may hold, or each tenant of a namespace that has no quota of its own.", &["namespace", "source", "weight"], with_property(with_property(with_property(with_property(with_property(quota_fields(),
            "namespace", schema("Name")),
            "tenant", described("Name", "Missing: the quota of the namespace.")),
            "source", json!({"enum": ["tenant", "namespace", "none"], "description": "Whose quota it is: its own, that of its namespace, or there is none."})),
            "used", schema("Used")),
            "waiting", count("Its claims that wait because its quota is used up. Not of a namespace."))),
        "Used": open_object("What the claims of a tenant ask for, in sum. Not of a namespace.", &["claims", "cpu_milli", "memory_bytes", "gpu_milli"], json!({
            "claims": count("Claims."), "cpu_milli": count("Thousandths of a core."), "memory_bytes": count("Bytes of memory."), "gpu_milli": count("Thousandths of GPU cards."),
        })),
        "QuotaAnswer": open_object("A quota.", &["quota"], json!({"quota": schema("Quota")})),
        "QuotaPage": page("Quota"),
    })
}

#[rustfmt::skip]
fn quota_fields() -> Value {
    json!({
        "claims": amount("Claims."),
        "cpu_milli": amount("Thousandths of a core that claims ask for."),
        "memory_bytes": amount("Bytes of memory that claims ask for."),
        "gpu_milli": amount("Thousandths of GPU cards that claims ask for."),
        "weight": {"type": "integer", "minimum": 1, "maximum": limits::WEIGHT_MAX, "default": 1, "description": "Its share beside other tenants, where claims wait."},
    })
}
