//! The events of a pool as messages.

use super::super::proto::{self, PoolEventReason, PoolEventType};
use crate::events::{Happening, Position, Told, Why};

impl From<(Position, Told)> for proto::PoolEvent {
    fn from((at, told): (Position, Told)) -> Self {
        let bare = |of: PoolEventType| Self { position: at.to_string(), r#type: of as i32, ..Self::default() };
        match told {
            Told::Started => bare(PoolEventType::Started),
            Told::Missed(count) => Self { count, ..bare(PoolEventType::Missed) },
            Told::Event(event) => {
                let claim = event.claim.as_ref();
                let times = claim.map(|claim| claim.times).unwrap_or_default();
                Self {
                    reason: event.why.map_or(PoolEventReason::Unspecified, Into::into) as i32,
                    at_ms: event.at_ms,
                    shard: event.shard.into(),
                    worker: event.worker.spec.id.to_string(),
                    key: claim.map(|claim| claim.id.key().to_owned()),
                    tenant: claim.map(|claim| claim.id.tenant().to_owned()),
                    fence: claim.map(|claim| claim.fence),
                    created_at_ms: times.created_at_ms(),
                    activated_at_ms: times.activated_at_ms(),
                    ..bare(event.what.into())
                }
            }
        }
    }
}

impl From<Happening> for PoolEventType {
    fn from(what: Happening) -> Self {
        match what {
            Happening::Claimed => Self::Claimed,
            Happening::Released => Self::Released,
            Happening::Lost => Self::Lost,
            Happening::Registered => Self::Registered,
            Happening::Deleted => Self::Deleted,
            Happening::Cordoned => Self::Cordoned,
            Happening::Uncordoned => Self::Uncordoned,
            Happening::Draining => Self::Draining,
        }
    }
}

impl From<Why> for PoolEventReason {
    fn from(why: Why) -> Self {
        match why {
            Why::Adopted => Self::Adopted,
            Why::Reserve => Self::Reserve,
            Why::Ttl => Self::Ttl,
            Why::Releasing => Self::Releasing,
            Why::Missing => Self::Missing,
            Why::GivenBack => Self::GivenBack,
            Why::Lost => Self::Lost,
        }
    }
}
