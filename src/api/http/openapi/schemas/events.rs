//! Schema of a pool's events.

use serde_json::{Value, json};

use super::{count, described, number, open_object, schema};
use crate::events::{PoolEventKind, PoolEventReason};
use crate::limits;

#[rustfmt::skip]
pub(super) fn schemas() -> Value {
    let events: Vec<_> = ["started", "missed"].into_iter().chain(PoolEventKind::ALL.iter().map(|name| name.as_str())).collect();
    json!({
        "PoolEvent": open_object("Event of a pool. Events of the same worker arrive in order.", &["event", "position"], json!({
            "event": {"enum": events, "description": "started: all later events follow. missed: events before this one are lost. claimed, released: a claim got a worker, a claim has ended. lost: a worker is lost; with a key, a claim ended with its worker. registered: a worker was registered, or its description changed. deleted: a worker was deleted. cordoned, uncordoned, draining: a worker is no longer offered, is offered again, is no longer offered in this incarnation."},
            "position": {"type": "string", "description": "Position of the event, opaque; a later watch passes it as from."},
            "count": count("Number of events that missed stands for. Missing: unknown, so list the pool again."),
            "at_ms": count("Unix time in milliseconds."),
            "worker": schema("Name"),
            "shard": count("Index of the worker's shard."),
            "key": described("Name", "Key of the claim, if the event is about one."), "tenant": schema("Name"), "fence": number(limits::FENCE_MAX, "Fence of the claim."),
            "created_at_ms": count("Creation time of the claim, as in Claim; subtracted from at_ms of its end it gives the time it was held."),
            "activated_at_ms": count("Time at which the claim became active, as in Claim."),
            "reason": {"enum": PoolEventReason::ALL.iter().map(|name| name.as_str()).collect::<Vec<_>>(), "description": "Reason of the event, if it is not the usual one. adopted: the worker reported a claim whose record was lost in a crash. For released: reserve, not confirmed in time; ttl, not renewed in time; releasing, not cleaned in time; missing, no longer reported by its worker; given_back, rolled back, because its response was not delivered, its key has a claim elsewhere, or its gang was rejected. For deleted: lost, the worker had been lost for lost_keep_ms."},
        })),
    })
}
