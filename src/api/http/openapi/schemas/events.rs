//! Schema of a pool's events.

use serde_json::{Value, json};

use super::{count, described, number, open_object, schema};
use crate::events::{PoolEventKind, PoolEventReason};
use crate::limits;

#[rustfmt::skip]
pub(super) fn schemas() -> Value {
    let events: Vec<_> = ["started", "missed"].into_iter().chain(PoolEventKind::ALL.map(PoolEventKind::as_str)).collect();
    json!({
        "PoolEvent": open_object("Something that happened in a pool. What befalls one worker comes in order.", &["event", "position"], json!({
            "event": {"enum": events, "description": "started: what happens from here on is told. missed: events are not told any more that came before this. claimed, released: a worker was given to a claim, a claim is over. lost: a worker was silent for too long; with a key, a claim ended with its worker. registered: a worker is there, or is described in another way than before. deleted: a worker is gone. cordoned, uncordoned, draining: a worker is not offered, is again, is not in this incarnation."},
            "position": {"type": "string", "description": "Where it stands among all; opaque, and what a later watch gives as from."},
            "count": count("Of missed, how many. Missing: nobody knows, and the pool has to be listed anew."),
            "at_ms": count("Unix time."),
            "worker": schema("Name"),
            "shard": count("That of the worker."),
            "key": described("Name", "The claim, if it is about one."), "tenant": schema("Name"), "fence": number(limits::FENCE_MAX, "Its number."),
            "created_at_ms": count("When the claim was created, as in Claim: with at_ms of its end, for how long it was held."),
            "activated_at_ms": count("When the claim became active, as in Claim."),
            "reason": {"enum": PoolEventReason::ALL.map(PoolEventReason::as_str), "description": "Why, where that is not what it mostly is. adopted: the worker named a claim whose record a stop had lost. Of released: reserve, never confirmed; ttl, not renewed; releasing, not cleaned up in time; missing, not named any more by its worker; given_back, nobody was told of it, or its key is held elsewhere, or its gang was refused. Of deleted: lost, for as long as its pool keeps lost workers."},
        })),
    })
}
