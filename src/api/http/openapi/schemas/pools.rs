//! Schemas of pools and their shards.

use serde_json::{Value, json};

use super::{amount, closed_object, count, described, number, open_object, page, schema, shard_index, ttl_ms};
use crate::limits;
use crate::model::{PoolSpec, UnschedulableReason};

/// Schemas of pools, shards and their counts.
#[rustfmt::skip]
pub(super) fn schemas() -> Value {
    json!({
        "TypicalRequest": closed_object("Typical request of a pool, for policy fgd.", &["weight"], json!({
            "cpu_milli": amount("CPU in thousandths of a core."),
            "gpu": schema("GpuAsk"),
            "weight": {"type": "integer", "minimum": 1, "maximum": 1_000_000, "description": "Relative frequency of the request."},
        })),
        "PoolSpec": pool_spec(),
        "PoolPatch": pool_patch(),
        "ShardStatus": open_object("State and counts of one shard.", &["shard", "state", "workers", "idle", "busy", "reserved", "seq", "applied_seq", "lag_ms", "queue_depth", "answers_waiting", "restarts"], json!({
            "shard": shard_index(),
            "state": {"enum": ["loading", "serving", "refused", "stopped"], "description": "State of the shard."},
            "reason": {"type": "string", "description": "Reason why the shard does not serve."},
            "workers": count("Number of workers in the shard."), "idle": count("Number of idle workers."), "busy": count("Number of workers that hold claims."), "claims": count("Number of claims that hold a worker."),
            "reserved": count("Number of unconfirmed claims."),
            "seq": count("Sequence number of the last change that was decided."), "applied_seq": count("Sequence number of the last change that is stored."),
            "lag_ms": count("Age of the oldest change that is not stored yet, in milliseconds."),
            "queue_depth": count("Number of requests in the shard's queue."), "answers_waiting": count("Number of responses that wait for the store."),
            "restarts": count("Number of restarts after a panic."),
            "cordoned": count("Number of cordoned workers."), "draining": count("Number of draining workers."),
            "lost": count("Number of lost workers, whose heartbeat is overdue."), "suspect": count("Number of suspect workers, whose state is unconfirmed."),
            "releasing": count("Number of claims whose worker is being cleaned."),
            "ended": count("Number of workers past their expires_at_ms."), "stopping": count("Number of workers that run something they were told to stop."),
            "workers_reserved": count("Number of workers that are reserved for queued claims."),
            "unschedulable": schema("UnschedulableCounts"),
        })),
        "UnschedulableCounts": unschedulable_counts(),
        "Pool": open_object("Pool with its specification and its counts.", &["namespace", "name", "spec", "version", "workers", "claims", "capacity", "free", "gpus"], json!({
            "namespace": schema("Name"), "name": schema("Name"), "spec": schema("PoolSpec"),
            "version": number(limits::FENCE_MAX, "Version of the specification: grows with every change, and is never reused."),
            "workers": open_object("Workers by occupancy, and by each reason for which they are not offered.", &["total", "idle", "busy"], json!({
                "total": count("Total number."), "idle": count("Number of workers that can be claimed."), "busy": count("Number of workers that hold a claim."), "cordoned": count("Number of cordoned workers."),
                "draining": count("Number of draining workers."), "lost": count("Number of lost workers, whose heartbeat is overdue."), "suspect": count("Number of suspect workers, whose state is unconfirmed."),
                "ended": count("Number of workers past their expires_at_ms."), "stopping": count("Number of workers that run something they were told to stop."),
                "reserved": count("Number of workers that are reserved for queued claims."),
            })),
            "unschedulable": schema("UnschedulableCounts"),
            "claims": open_object("Claims by state.", &["reserved", "active"], json!({"reserved": count("Number of unconfirmed claims."), "active": count("Number of active claims."), "releasing": count("Number of claims whose worker is being cleaned.")})),
            "capacity": schema("Sum"), "free": described("Sum", "Capacity that can be claimed: that of idle workers; in a shared pool, the free capacity of workers that are offered."),
            "gpus": {"type": "object", "description": "GPU counts by model.", "additionalProperties": open_object("GPUs of one model.", &["total", "free", "free_milli"], json!({"total": count("Total number."), "free": count("Number of unused GPUs that can be claimed."), "free_milli": count("Thousandths of GPUs that can be claimed.")}))},
            "preemption_paused": {"type": "boolean", "description": "Whether nobody is evicted until workers are cleared whose evicted claims were not released in time. Shown if true."},
            "shards": {"type": "array", "maxItems": limits::SHARDS_MAX, "items": schema("ShardStatus"), "description": "State of each shard. Missing in lists."},
        })),
        "PoolAnswer": open_object("Pool after the request.", &["pool"], json!({"pool": schema("Pool")})),
        "PoolPage": page("Pool"),
        "Cleared": open_object("Result of clearing a pool.", &["cleared", "suspect"], json!({
            "cleared": count("Number of workers that are trusted again."), "suspect": count("Number of workers that are still suspect: claims that the last stop may have lost can still be started."),
        })),
    })
}

#[rustfmt::skip]
fn pool_spec() -> Value {
    let default = PoolSpec::default();
    let mut reserve_ms = number(limits::RESERVE_MS_MAX, "Time for which a claim may stay unconfirmed, and the limit for reserve_ms of a claim.");
    reserve_ms["default"] = default.reserve_ms.into();
    let mut lag_max_ms = number(limits::RESERVE_MS_MAX, "Lag of the store beyond which claims that are acknowledged from memory are rejected.");
    lag_max_ms["minimum"] = 1.into();
    lag_max_ms["default"] = default.lag_max_ms.into();
    let mut releasing_ms = number(limits::RESERVE_MS_MAX, "Time for the cleaning of a worker; then the claim ends, and the worker is suspect.");
    let mut heartbeat_ttl_ms = number(limits::RESERVE_MS_MAX, "Time without a heartbeat after which a worker that sends heartbeats is lost.");
    let mut unnamed_ms = number(limits::RESERVE_MS_MAX, "Time after which an active claim ends that its worker has never reported. Missing: the larger of reserve_ms and twice heartbeat_ttl_ms, at most a day.");
    unnamed_ms["minimum"] = 1.into();
    let mut lost_keep_ms = number(limits::LOST_KEEP_MS_MAX, "Time after which a lost worker is deleted; 0: never.");
    lost_keep_ms["default"] = default.lost_keep_ms.into();
    let mut hold_max_ms = number(limits::HOLD_MS_MAX, "Longest time for which workers are held for one claim or gang that waits.");
    hold_max_ms["minimum"] = limits::HOLD_MS_MIN.into();
    hold_max_ms["default"] = default.hold_max_ms.into();
    for (field, value) in [(&mut releasing_ms, default.releasing_ms), (&mut heartbeat_ttl_ms, default.heartbeat_ttl_ms)] {
        field["minimum"] = 1.into();
        field["default"] = value.into();
    }
    let ttl_default_ms = ttl_ms("Default ttl_ms of claims; at most ttl_max_ms. Missing: ttl_max_ms, or without that no limit.");
    let ttl_max_ms = ttl_ms("Limit for ttl_ms of claims and renewals. Missing: thirty days, or no ttl_ms at all.");
    let mut waiters_max = number(limits::WAITERS_MAX.into(), "Limit on claims in the queue; the next is rejected.");
    waiters_max["default"] = default.waiters_max.into();
    let mut waiters_tenant_max = number(limits::WAITERS_MAX.into(), "Limit on claims of one tenant in the queue.");
    waiters_tenant_max["default"] = default.waiters_tenant_max.into();
    let shards: Vec<u16> = (0..).map(|n| 1 << n).take_while(|&shards| shards <= limits::SHARDS_MAX).collect();
    closed_object("Specification of a pool.", &[], json!({
        "shards": {"type": "integer", "enum": shards, "default": default.shards, "description": "Number of shards. Never changes."},
        "mode": {"enum": ["exclusive", "shared"], "default": default.mode, "description": "Mode in which claims use workers: each claim holds a whole worker, or the requested resources of one. Never changes."},
        "policy": {"enum": ["lifo", "fifo", "random", "best_fit", "spread", "fgd"], "description": "Policy that chooses the worker of a claim. Exclusive pools: the worker that became idle last (lifo, the warmest; the default), first (fifo), or any (random). Shared pools: among those that fit the one with the least free capacity (best_fit, the default), with the most (spread), or on which the fewest free GPUs become unusable for typical requests (fgd)."},
        "spare_gpu_workers": {"type": "boolean", "default": default.spare_gpu_workers, "description": "Uses workers with GPUs for claims that request resources without a GPU only if no other worker fits."},
        "typical_requests": {"type": "array", "maxItems": limits::TYPICAL_REQUESTS_MAX, "items": schema("TypicalRequest"), "description": "Typical requests for policy fgd. Empty: learned from the claims that arrive."},
        "ack": {"enum": ["durable", "memory"], "default": default.ack, "description": "Point at which responses are sent: after the record is stored, or at once."},
        "labels": schema("Labels"),
        "class": described("Name", "Class of the pool, if it has one."),
        "reserve_ms": reserve_ms,
        "ttl_default_ms": ttl_default_ms,
        "ttl_max_ms": ttl_max_ms,
        "lag_max_ms": lag_max_ms,
        "releasing_ms": releasing_ms,
        "heartbeat_ttl_ms": heartbeat_ttl_ms,
        "unnamed_ms": unnamed_ms,
        "lost_keep_ms": lost_keep_ms,
        "hold_max_ms": hold_max_ms,
        "waiters_max": waiters_max,
        "waiters_tenant_max": waiters_tenant_max,
        "preemption": {"type": "boolean", "default": default.preemption, "description": "Lets a queued claim evict preemptible claims with a lower priority."},
    }))
}

#[rustfmt::skip]
fn pool_patch() -> Value {
    let mut patch = pool_spec();
    patch["description"] = "Fields of a specification to change.".into();
    let or_null = |schema: Value| json!({"oneOf": [schema, {"type": "null"}]});
    for (name, field) in patch["properties"].as_object_mut().expect("a specification has fields") {
        let labels = json!({"type": "object", "propertyNames": schema("LabelKey"), "additionalProperties": {"type": ["string", "null"]}, "description": "Labels to set; null removes one."});
        // Omitted fields keep their value, so there are no defaults.
        field.as_object_mut().expect("a schema").remove("default");
        *field = or_null(if name == "labels" { labels } else { field.take() });
    }
    patch
}

/// Schema of worker counts, one for each [`UnschedulableReason`] in its order.
fn unschedulable_counts() -> Value {
    let of = UnschedulableReason::ALL.iter().map(|reason| (reason.as_str().to_owned(), count("Number of workers.")));
    let names: Vec<_> = UnschedulableReason::ALL.iter().map(|name| name.as_str()).collect();
    let about = "Workers that are not offered and hold no claim, each under the first reason that applies, in this order. Together with idle and busy workers they add up to the total.";
    open_object(about, &names, Value::Object(of.collect()))
}
