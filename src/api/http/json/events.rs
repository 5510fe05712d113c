//! Event of a pool as a response.

use serde::Serialize;

use crate::events::{EventClaim, WatchItem};
use crate::model::{Fence, Millis};

/// Event with its position in the stream.
#[derive(Serialize)]
pub(in crate::api::http) struct EventJson<'a> {
    /// Kind of the event: a name of [`crate::events::PoolEventKind`], `started` or `missed`.
    pub(in crate::api::http) event: &'static str,
    position: &'a str,
    #[serde(flatten)]
    details: EventDetailsJson<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum EventDetailsJson<'a> {
    Nothing {},
    Missed {
        #[serde(skip_serializing_if = "Option::is_none")]
        count: Option<u64>,
    },
    Event {
        at_ms: Millis,
        worker: &'a str,
        #[serde(flatten)]
        claim: Option<EventClaimJson<'a>>,
        shard: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
    },
}

#[derive(Serialize)]
struct EventClaimJson<'a> {
    key: &'a str,
    tenant: &'a str,
    fence: Fence,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at_ms: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activated_at_ms: Option<Millis>,
}

impl<'a> EventJson<'a> {
    pub(in crate::api::http) fn new(position: &'a str, item: &'a WatchItem) -> Self {
        let (event, details) = match item {
            WatchItem::Started => ("started", EventDetailsJson::Nothing {}),
            WatchItem::Dropped(count) => ("missed", EventDetailsJson::Missed { count: *count }),
            WatchItem::Event(event) => {
                let claim = event.claim.as_ref();
                let claim = claim.map(|EventClaim { id, fence, times }| EventClaimJson {
                    key: id.key(),
                    tenant: id.tenant(),
                    fence: *fence,
                    created_at_ms: times.created_at_ms(),
                    activated_at_ms: times.activated_at_ms(),
                });
                let worker = event.worker.spec.id.as_str();
                let reason = event.reason.map(|reason| reason.as_str());
                let details = EventDetailsJson::Event { at_ms: event.at_ms, worker, claim, shard: event.shard, reason };
                (event.kind.as_str(), details)
            }
        };
        Self { event, position, details }
    }
}
