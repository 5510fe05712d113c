//! Converts the events of a pool to messages.

use super::super::proto::{self, PoolEventType};
use crate::events::{EventPosition, PoolEventKind, PoolEventReason, WatchItem};

impl From<(EventPosition, WatchItem)> for proto::PoolEvent {
    fn from((at, item): (EventPosition, WatchItem)) -> Self {
        let bare = |of: PoolEventType| Self { position: at.to_string(), r#type: of as i32, ..Self::default() };
        match item {
            WatchItem::Started => bare(PoolEventType::Started),
            WatchItem::Dropped(count) => Self { count, ..bare(PoolEventType::Missed) },
            WatchItem::Event(event) => {
                let claim = event.claim.as_ref();
                let times = claim.map(|claim| claim.times).unwrap_or_default();
                Self {
                    reason: event.reason.map_or(proto::PoolEventReason::Unspecified, Into::into) as i32,
                    at_ms: event.at_ms,
                    shard: event.shard.into(),
                    worker: event.worker.spec.id.to_string(),
                    key: claim.map(|claim| claim.id.key().to_owned()),
                    tenant: claim.map(|claim| claim.id.tenant().to_owned()),
                    fence: claim.map(|claim| claim.fence),
                    created_at_ms: times.created_at_ms(),
                    activated_at_ms: times.activated_at_ms(),
                    ..bare(event.kind.into())
                }
            }
        }
    }
}

impl From<PoolEventKind> for PoolEventType {
    fn from(what: PoolEventKind) -> Self {
        match what {
            PoolEventKind::Claimed => Self::Claimed,
            PoolEventKind::Released => Self::Released,
            PoolEventKind::Lost => Self::Lost,
            PoolEventKind::Registered => Self::Registered,
            PoolEventKind::Deleted => Self::Deleted,
            PoolEventKind::Cordoned => Self::Cordoned,
            PoolEventKind::Uncordoned => Self::Uncordoned,
            PoolEventKind::Draining => Self::Draining,
        }
    }
}

impl From<PoolEventReason> for proto::PoolEventReason {
    fn from(reason: PoolEventReason) -> Self {
        match reason {
            PoolEventReason::Adopted => Self::Adopted,
            PoolEventReason::Reserve => Self::Reserve,
            PoolEventReason::Ttl => Self::Ttl,
            PoolEventReason::Releasing => Self::Releasing,
            PoolEventReason::Missing => Self::Missing,
            PoolEventReason::RolledBack => Self::GivenBack,
            PoolEventReason::Lost => Self::Lost,
        }
    }
}
