//! Schemas of workers and heartbeats.

use serde_json::{Value, json};

use super::{
    amount, closed_object, count, described, done_or_error, number, open_object, outcomes, page, schema, shard_index,
    with_property,
};
use crate::limits;

/// Schemas of workers, registrations and heartbeats.
#[rustfmt::skip]
pub(super) fn schemas() -> Value {
    json!({
        "WorkerBody": closed_object("Description of a worker by its registrar; the id is in the path.", &[], worker_fields()),
        "WorkerItem": closed_object("Description of a worker by its registrar.", &["id"], with_property(worker_fields(), "id", described("Name", "Id of the worker, unique in its pool."))),
        "WorkersBatch": closed_object("Batch of registrations.", &["workers"], json!({
            "workers": {"type": "array", "maxItems": limits::BATCH_ITEMS_MAX, "items": schema("WorkerItem")},
        })),
        "Worker": open_object("Worker with its state and its claims.", &["id", "capacity", "labels", "incarnation", "occupancy", "schedulability", "liveness", "trust", "overcommitted", "version", "shard", "claims"], json!({
            "id": schema("Name"), "capacity": schema("Capacity"), "labels": schema("Labels"), "node": schema("Name"),
            "incarnation": amount("Incarnation, which grows when the worker restarts."),
            "occupancy": {"enum": ["idle", "busy"], "description": "busy: holds a claim, or runs something that it was told to stop. Counts of pools show a worker with only the latter as stopping."},
            "schedulability": {"enum": ["open", "cordoned", "draining"], "description": "Schedulability of the worker, as set by its operator."},
            "liveness": {"enum": ["live", "lost"], "description": "Liveness of the worker, by its heartbeats."},
            "trust": {"enum": ["trusted", "suspect"], "description": "Trust in the known state of the worker."},
            "overcommitted": {"type": "boolean", "description": "Set if the claims of the worker exceed its capacity, which has shrunk."},
            "expires_at_ms": count("Unix time in milliseconds at which the worker itself ends, if it is known."),
            "version": count("Sequence number of the last change to the worker, in its shard."),
            "shard": shard_index(),
            "claims": {"type": "array", "items": schema("Claim"), "description": "Claims of the worker."},
        })),
        "WorkerAnswer": open_object("Worker with its state and its claims.", &["worker"], json!({"worker": schema("Worker"), "stop": described("HeldClaims", "Reported claims that the worker must stop. Missing if there are none.")})),
        "HeldClaim": closed_object("Claim by key and fence, in the namespace of the pool.", &["key", "fence"], json!({
            "tenant": described("Name", "Tenant of the claim. Default: default."), "key": schema("Name"), "fence": number(limits::FENCE_MAX, "Fence of the claim."),
        })),
        "HeldClaims": {"type": "array", "maxItems": limits::REPORTED_CLAIMS_MAX, "items": schema("HeldClaim"), "description": "Claims of one worker."},
        "HeartbeatBody": closed_object("Heartbeat of a worker.", &[], heartbeat_fields()),
        "HeartbeatItem": closed_object("Heartbeat of a worker.", &["id"], with_property(heartbeat_fields(), "id", described("Name", "Id of the worker."))),
        "HeartbeatBatch": closed_object("Batch of heartbeats.", &["workers"], json!({
            "workers": {"type": "array", "maxItems": limits::BATCH_ITEMS_MAX, "items": schema("HeartbeatItem")},
        })),
        "Heard": open_object("Claims that the worker should run, and those that it must stop.", &["claims", "stop"], json!({
            "claims": {"type": "array", "items": schema("Claim"), "description": "Claims of the worker."}, "stop": described("HeldClaims", "Reported claims that the worker must stop."),
            "ignored": {"type": "boolean", "description": "True if the heartbeat arrived out of order and was ignored. Otherwise missing."},
            "last_seq": count("Highest seq so far, if the heartbeat was ignored. The next one must exceed it, unless the worker is registered again, which resets it."),
        })),
        "HeardOutcomes": done_or_error(schema("Heard")),
        "WorkerPage": page("Worker"),
        "WorkerOutcomes": outcomes("worker", "Worker"),
    })
}

#[rustfmt::skip]
fn worker_fields() -> Value {
    json!({
        "capacity": schema("Capacity"),
        "labels": schema("Labels"),
        "node": described("Name", "Node on which the worker runs."),
        "incarnation": amount("Incarnation, which grows when the worker restarts: a higher one ends the claims of the previous one, a lower one is rejected. Default 0."),
        "expires_at_ms": amount("Unix time in milliseconds at which the worker itself ends: claims that need it for longer do not get it."),
        "claims": described("HeldClaims", "Claims that the worker runs, as in a heartbeat."),
    })
}

fn heartbeat_fields() -> Value {
    json!({
        "incarnation": amount("Incarnation of the worker. Default 0."),
        "seq": count("Sequence number, which grows with every heartbeat: a later heartbeat with a lower one is ignored. A registration resets it."),
        "claims": described("HeldClaims", "Claims that the worker runs. An empty list means none, a missing one makes no statement."),
    })
}
