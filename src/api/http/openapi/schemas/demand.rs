//! Schemas of queued claims, demand and quotas.

use serde_json::{Value, json};

use super::{amount, closed_object, count, described, number, open_object, page, schema, with_property};
use crate::limits;
use crate::model::ListedState;

/// Fields that every view of a queued claim has.
const QUEUED_FIELDS: &[&str] =
    &["key", "tenant", "namespace", "pools", "reason", "priority", "ahead", "waited_ms", "left_ms"];

/// Schema of a queued claim in a list: its fields, its state, and when its wait began.
fn waiting_item(queued: Value) -> Value {
    let state =
        json!({"const": ListedState::Waiting.as_str(), "description": "State of the claim: it holds nothing yet."});
    let queued_at_ms = count("Unix time in milliseconds at which the wait began.");
    let properties = with_property(with_property(queued, "state", state), "queued_at_ms", queued_at_ms);
    let required = [QUEUED_FIELDS, &["state", "queued_at_ms"]].concat();
    open_object(
        "Claim of a list that is queued for capacity or quota, or member of a gang that is.",
        &required,
        properties,
    )
}

#[rustfmt::skip]
pub(super) fn schemas() -> Value {
    let reason = json!({"enum": ["pool_exhausted", "node_locality", "quota", "unsatisfiable"], "description": "Reason why the claim is queued, which an error would have now."});
    let queued = json!({
        "key": schema("Name"), "tenant": schema("Name"), "namespace": schema("Name"),
        "pools": {"type": "array", "items": schema("Name"), "description": "Pools for which the claim is queued. None: it waits for its tenant's quota."},
        "reason": reason.clone(),
        "priority": number(limits::PRIORITY_MAX.into(), "Priority from the request."),
        "ahead": count("Number of claims ahead, in the queue where this is lowest. Later claims may overtake it."),
        "waited_ms": count("Time in the queue so far, in milliseconds."), "left_ms": count("Time until the claim is rejected, in milliseconds."),
        "estimate_ms": count("Estimated remaining wait at the rate of the last minute, in milliseconds. Missing: no claim was served in that time."),
    });
    json!({
        "Standing": {"oneOf": [schema("ClaimAnswer"), schema("WaitingAnswer")]},
        "WaitingAnswer": open_object("Claim that is queued for capacity or quota.", &["waiting"], json!({"waiting": schema("Waiting")})),
        "Waiting": open_object("Claim that is queued for capacity or quota.", QUEUED_FIELDS, queued.clone()),
        "WaitingItem": waiting_item(queued),
        "Demand": open_object("Demand of a pool.", &["namespace", "pool", "waiting", "waiting_for_quota", "oldest_ms", "workers_busy", "workers_reserved", "workers_unusable", "workers_needed", "workers_wanted", "shapes", "idle"], json!({
            "namespace": schema("Name"), "pool": schema("Name"),
            "waiting": count("Number of claims that are queued for capacity. A claim that may use several pools counts in each."),
            "waiting_for_quota": count("Number of claims that may use the pool and wait for their tenant's quota."),
            "oldest_ms": count("Time that the oldest claim has been queued for capacity, in milliseconds."),
            "workers_busy": count("Number of workers that hold a claim."),
            "workers_reserved": count("Number of workers without claims that are reserved for queued claims."),
            "workers_unusable": open_object("Workers without claims that are unusable, each under its first reason.", &["cordoned", "lost", "suspect", "ended", "draining"], json!({
                "cordoned": count("Number of cordoned workers."), "lost": count("Number of lost workers."), "suspect": count("Number of suspect workers."),
                "ended": count("Number of workers past their end."), "draining": count("Number of draining workers, which do not count as wanted."),
            })),
            "workers_needed": count("Number of additional workers, as large as the pool's largest, for all claims that are queued for capacity."),
            "workers_wanted": count("Sum of busy, reserved, needed and unusable workers, draining ones left out: the desired number."),
            "shapes": {"type": "array", "maxItems": limits::DEMAND_SHAPES_MAX, "items": schema("DemandShape"), "description": "Demand by requested resources, the largest first."},
            "idle": {"type": "array", "maxItems": limits::DEMAND_SHAPES_MAX, "description": "Idle workers, in the order in which to remove them: cordoned ones, then the longest idle.", "items": open_object("Idle worker that could be removed.", &["worker", "cordoned"], json!({
                "worker": schema("Name"), "cordoned": {"type": "boolean", "description": "Set if the worker is cordoned, so that it can be deleted safely."},
            }))},
        })),
        "DemandShape": open_object("Queued claims with equal requests.", &["resources", "reason", "waiting", "oldest_ms", "priority", "workers_needed"], json!({
            "resources": described("AskedResources", "Resources that each claim requests. In an exclusive pool each needs a worker."),
            "selector": described("Selector", "Selector over the labels of workers. Missing: any."),
            "nodes": {"type": "array", "items": schema("Name"), "description": "Acceptable nodes. Missing: any."},
            "reason": reason,
            "waiting": count("Number of claims."), "oldest_ms": count("Time that the oldest claim has been queued, in milliseconds."),
            "priority": number(limits::PRIORITY_MAX.into(), "Highest priority of the claims."),
            "workers_needed": count("Number of empty workers that could hold all claims. 0 for quota, which more workers do not resolve."),
        })),
        "AskedResources": open_object("Resources that a claim requests. Omitted resources are 0.", &[], json!({
            "cpu_milli": amount("CPU in thousandths of a core."), "memory_bytes": amount("Memory in bytes."), "slots": amount("Slots, in a unit that the pool's owner chooses."),
            "gpu": open_object("GPUs that are requested.", &["models", "count", "milli"], json!({
                "models": {"type": "array", "items": schema("Name"), "description": "Acceptable models, in order of preference. None: any."},
                "count": {"type": "integer", "minimum": 1, "maximum": limits::GPUS_MAX, "description": "Number of GPUs."},
                "milli": {"type": "integer", "minimum": 1, "maximum": limits::GPU_MILLI, "description": "Thousandths of each GPU."},
            })),
        })),
        "QuotaBody": closed_object("Limits on what may be held at a time. Omitted resources are unlimited.", &[], quota_fields()),
        "Quota": open_object("Quota of a tenant, or of each tenant of a namespace without its own.", &["namespace", "source", "weight"], with_property(with_property(with_property(with_property(with_property(quota_fields(),
            "namespace", schema("Name")),
            "tenant", described("Name", "Tenant of the quota. Missing: it applies to the namespace.")),
            "source", json!({"enum": ["tenant", "namespace", "none"], "description": "Source of the quota: the tenant's own, that of its namespace, or none."})),
            "used", schema("Used")),
            "waiting", count("Number of the tenant's claims that wait for quota. Missing for a namespace."))),
        "Used": open_object("Usage of a tenant: the sum over its claims. Missing for a namespace.", &["claims", "cpu_milli", "memory_bytes", "gpu_milli"], json!({
            "claims": count("Number of claims."), "cpu_milli": count("CPU in thousandths of a core."), "memory_bytes": count("Memory in bytes."), "gpu_milli": count("GPUs in thousandths."),
        })),
        "QuotaAnswer": open_object("Quota after the request.", &["quota"], json!({"quota": schema("Quota")})),
        "QuotaPage": page("Quota"),
    })
}

#[rustfmt::skip]
fn quota_fields() -> Value {
    json!({
        "claims": amount("Number of claims."),
        "cpu_milli": amount("Requested CPU in thousandths of a core."),
        "memory_bytes": amount("Requested memory in bytes."),
        "gpu_milli": amount("Requested GPUs in thousandths."),
        "weight": {"type": "integer", "minimum": 1, "maximum": limits::WEIGHT_MAX, "default": 1, "description": "Weight among other tenants with queued claims."},
    })
}
