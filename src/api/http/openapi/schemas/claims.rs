//! Schemas of claims and their explanations.

use serde_json::{Value, json};

use super::{at_least_1, closed_object, count, described, number, open_object, outcomes, page, schema, ttl_ms};
use crate::limits;
use crate::model::{FilterReason, WorkerSurvey};

/// Schemas of claims, their requests and listings.
#[rustfmt::skip]
pub(super) fn schemas() -> Value {
    let mut schemas = json!({
        "ClaimBody": claim_body(),
        "Selector": {"type": "string", "maxLength": limits::SELECTOR_BYTES_MAX, "description": "Label selector as in Kubernetes: zone=a, tier!=b, arch in (x,y), disk notin (z), gpu, !spot"},
        "ClaimsBatch": closed_object("Batch of claims.", &["mode", "items"], json!({
            "mode": {"enum": ["independent", "all_or_nothing"], "description": "Each item separately; or a gang: all items, whose keys must be free, or none, durable whatever the pool's ack."},
            "items": {"type": "array", "maxItems": limits::BATCH_ITEMS_MAX, "items": schema("ClaimBody")},
        })),
        "HolderBody": closed_object("Holder of the claim.", &["fence"], json!({
            "fence": number(limits::FENCE_MAX, "Fence of the claim."),
            "tenant": described("Name", "Tenant of the claim. Default: default."),
        })),
        "RenewBody": closed_object("Holder of the claim.", &["fence"], json!({
            "fence": number(limits::FENCE_MAX, "Fence of the claim."),
            "tenant": described("Name", "Tenant of the claim. Default: default."),
            "ttl_ms": ttl_ms("New ttl_ms, at most the ttl_max_ms of the pool. Missing: the previous one, at most that; without one the default of the pool."),
        })),
        "ResizeBody": closed_object("Holder of the claim, and its new resources.", &["fence", "resources"], json!({
            "fence": number(limits::FENCE_MAX, "Fence of the claim."),
            "tenant": described("Name", "Tenant of the claim. Default: default."),
            "resources": described("Resources", "New resources of the claim in total."),
        })),
        "ReleaseAnswer": open_object("Result of a release.", &["released"], json!({
            "released": {"type": "boolean", "description": "False if the key had no claim: it was released already, or never existed."},
        })),
        "ReleaseBody": closed_object("Holder of the claim.", &["fence"], json!({
            "fence": number(limits::FENCE_MAX, "Fence of the claim."),
            "tenant": described("Name", "Tenant of the claim. Default: default."),
            "phase": {"enum": ["begin", "finish"], "description": "begin: the work has ended, and the worker is being cleaned. finish: the worker is clean. Missing: all in one call."},
        })),
        "Claim": open_object("Claim with its worker, state and resources.", &["key", "tenant", "fence", "namespace", "pool", "worker", "state", "resources"], json!({
            "key": schema("Name"), "tenant": schema("Name"),
            "fence": number(limits::FENCE_MAX, "Fence, higher than that of every earlier claim. Required for confirm, renew and release; a worker can reject an older holder by it."),
            "namespace": schema("Name"), "pool": schema("Name"), "worker": schema("Name"),
            "node": described("Name", "Node on which the worker runs, if known."),
            "state": {"enum": ["reserved", "active", "releasing", "lost"], "description": "reserved: held until its deadline unless confirmed. active: confirmed. releasing: its worker is being cleaned. lost: its worker is gone."},
            "labels": described("Labels", "Labels from the request. Missing if there are none."),
            "priority": number(limits::PRIORITY_MAX.into(), "Priority from the request. Missing if 0."),
            "preemptible": {"type": "boolean", "description": "Flag from the request: a claim with a higher priority may evict this one. Missing if false."},
            "reason": {"enum": ["preempted"], "description": "Reason for a release that its holder did not start: a claim with a higher priority evicted it."},
            "resources": described("Held", "Resources that the claim holds: all that the worker has; in a shared pool, its allocation."),
            "expires_at_ms": count("Unix time in milliseconds at which the claim expires, if it does."),
            "created_at_ms": count("Unix time in milliseconds at which the claim was created. Missing if unknown: its record is older than this field, or was lost in a crash and the worker reported the claim."),
            "activated_at_ms": count("Unix time in milliseconds at which the claim became active. Missing until then, and if unknown."),
        })),
        "ClaimAnswer": open_object("Claim with its worker, state and resources.", &["claim"], json!({"claim": schema("Claim")})),
        "ClaimItem": {"oneOf": [schema("Claim"), schema("WaitingItem")]},
        "ClaimPage": page("ClaimItem"),
        "ClaimOutcomes": outcomes("claim", "Claim"),
    });
    super::extend(&mut schemas, explanations());
    schemas
}

/// Schemas of explanations of claims.
#[rustfmt::skip]
fn explanations() -> Value {
    json!({
        "Explanation": open_object("Outcome that a claim would have.", &["outcome", "pools"], json!({
            "outcome": {"enum": ["placed", "refused"], "description": "Whether the claim would get a worker."},
            "would_take": open_object("Worker that the claim would get; among equal workers the next request may get another. Missing if it would be rejected.", &["pool", "worker"], json!({
                "pool": schema("Name"), "worker": schema("Name"), "node": described("Name", "Node on which the worker runs, if known."),
            })),
            "error": described("ErrorBody", "Error that the claim would get. Missing if it would be placed."),
            "quota_headroom": open_object("Amounts that the tenant's quota leaves the claim: the limits without what is held, and without what is collected for a claim of the tenant that is served before it. Amounts that are not limited are missing, and the object too if none is.", &[], json!({
                "claims": count("Number of claims."), "cpu_milli": count("CPU in thousandths of a core."),
                "memory_bytes": count("Memory in bytes."), "gpu_milli": count("Thousandths of GPUs."),
            })),
            "pools": {"type": "array", "maxItems": limits::POOLS_MAX, "items": schema("PoolSurvey"), "description": "Pools that the claim may use, in the order in which they would be tried."},
        })),
        "PoolSurvey": open_object("Survey of a pool for a claim. Workers that fit and those that are ruled out add up to all workers.", &["pool", "workers", "fits", "ruled_out", "nearest", "most_free"], json!({
            "pool": schema("Name"), "workers": count("Number of workers in the survey."), "fits": count("Number of workers that could take the claim now."),
            "ruled_out": ruled_out(),
            "too_small": count("Number of workers that would be too small even without claims."),
            "nearest": {"type": "array", "maxItems": WorkerSurvey::NEAREST, "description": "Workers that lack only free capacity, the nearest first.", "items": open_object("Worker that would take the claim if it had more free capacity.", &["worker", "short", "text"], json!({
                "worker": schema("Name"), "node": described("Name", "Node on which the worker runs, if known."),
                "short": described("Amounts", "Amounts that are missing."), "text": {"type": "string", "description": "Explanation for people; the text may change."},
            }))},
            "most_free": described("Amounts", "Largest free amount of each resource on any worker that lacks at most free capacity."),
            "silent_shards": count("Number of shards that did not reply: their workers are not in the survey."),
            "preemption_paused": {"type": "boolean", "description": "Whether the pool evicts nobody for now, as in a pool. Shown if true."},
            "ahead": count("Number of queued claims that are served before it as of now: before the claim that waits under its key, or else before one that comes now. Later claims may overtake it. Missing if 0."),
            "gangs_ahead": count("Number of queued gangs of a higher priority, or of its priority and earlier. Missing if 0."),
        })),
    })
}

/// Schema of worker counts, one for each [`FilterReason`] in its order.
fn ruled_out() -> Value {
    let of = FilterReason::ALL.iter().map(|why| (why.as_str().to_owned(), count("Number of workers.")));
    let description = "Workers that cannot take the claim, each under the first reason that applies, in this order. Reasons without workers are omitted.";
    open_object(description, &[], Value::Object(of.collect()))
}

#[rustfmt::skip]
fn node_choice() -> Value {
    closed_object("Nodes on which the claim may or should run. An empty list restricts nothing.", &[], json!({
                "required": {"type": "array", "maxItems": limits::CLAIM_NODES_MAX, "items": schema("Name"), "description": "Nodes of which one is required."},
                "preferred": {"type": "array", "maxItems": limits::CLAIM_NODES_MAX, "items": schema("Name"), "description": "Nodes that are preferred; any other is accepted too."},
                "preferred_then_wait": closed_object("Nodes that are waited for before any other is accepted. Excludes preferred.", &["nodes", "ms"], json!({
                    "nodes": {"type": "array", "minItems": 1, "maxItems": limits::CLAIM_NODES_MAX, "items": schema("Name"), "description": "Names of the preferred nodes."},
                    "ms": at_least_1(number(limits::WAIT_MS_MAX, "Time for which no other node is accepted, in milliseconds.")),
                })),
            }))
}

#[rustfmt::skip]
fn claim_body() -> Value {
    closed_object("Request to claim one worker. Exactly one of pool, pools and pool_selector is required.", &["namespace"], json!({
            "namespace": described("Name", "Namespace of the claim and its pools."),
            "pool": described("Name", "Pool that may serve the claim."),
            "pools": {"type": "array", "maxItems": limits::CLAIM_POOLS_MAX, "items": schema("Name"), "description": "Pools that may serve the claim, in order of preference: a pool without capacity falls back to the next."},
            "pool_selector": described("Selector", "Selector over the labels of the namespace's pools."),
            "class": described("Name", "Class that the pool must have."),
            "resources": described("Resources", "Resources that the worker must have at least. In a shared pool the claim holds just that, and it is required."),
            "selector": described("Selector", "Selector over the labels of workers."),
            "node": node_choice(),
            "worker": described("Name", "Id of the only acceptable worker."),
            "key": described("Name", "Key, which identifies the claim together with namespace and tenant. Default: a new UUIDv7."),
            "tenant": described("Name", "Tenant, part of the claim's identity. Default: default."),
            "affinity": described("Name", "Affinity: an idle worker whose last claim had the same one is preferred. Default: the key."),
            "reserve_ms": number(limits::RESERVE_MS_MAX, "Time for which the claim may stay unconfirmed after the response is sent; at most the pool's, which is the default. 0: active at once."),
            "ttl_ms": ttl_ms("Lifetime of the active claim without a renewal; at most the ttl_max_ms of every pool that may serve it. Missing: that of its pool, or without one no limit."),
            "ack": {"enum": ["durable", "memory"], "description": "Point at which the response is sent; may demand more durability than the pool's setting, never less."},
            "must_match": {"type": "boolean", "default": false, "description": "Rejects the request if the key has a claim with other resources."},
            "labels": described("Labels", "Labels of the claim."),
            "wait_ms": number(limits::WAIT_MS_MAX, "Time for which the claim may be queued for capacity or quota. Default 0: not queued."),
            "priority": number(limits::PRIORITY_MAX.into(), "Priority in the queue, the highest first. Default 0."),
            "preemptible": {"type": "boolean", "default": false, "description": "Lets a claim with a higher priority evict this one, in a pool that allows preemption."},
        }))
}
