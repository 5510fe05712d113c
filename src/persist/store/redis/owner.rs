//! Ownership of the store: a record that its owner renews, and the rules for taking it over.
//!
//! The record is the lease. A process that holds the lock of the data directory that the record names takes over at once,
//! because the process that wrote the record is dead. Any other process watches until the record has been unchanged for the
//! lease, by its own clock. A standby waits for that without limit; others give up at the first renewal.

use std::collections::BTreeMap;

use redis::{Value, cmd};
use uuid::Uuid;

use super::keys;
use super::library;
use super::nodes::RedisCall;
use super::writes::text;
use crate::model::{Fence, Millis};
use crate::persist::store::{FenceSpan, MissingRecord, ShardKey, StoreError};

/// Ownership record, as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OwnerRecord {
    pub epoch: u64,
    /// Number of renewals so far.
    pub renewal_count: u64,
    /// Id of the owner's data directory.
    pub node: String,
    /// Host and process id, for messages.
    pub owner_label: String,
    pub lease_ms: Millis,
    pub fence_ceiling: Fence,
    pub fence_floor: Fence,
}

/// Decision about a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TakeoverDecision {
    Take,
    /// Read the record again later; the text is for people.
    Wait(String),
    /// Give up: the owner is alive, and this process is not a standby.
    Refuse(String),
}

/// Process that wants to own the store.
#[derive(Debug, Clone)]
pub(super) struct TakeoverCandidate {
    /// Id of the data directory whose lock the process holds.
    pub node: String,
    pub standby: bool,
    /// Lease that each renewal will give it, in milliseconds.
    pub lease_ms: Millis,
}

/// Observer of a record that its owner may still renew.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnerWatch {
    last_observation: Option<OwnerObservation>,
}

/// Last reading, and the time since which it is unchanged, by the watcher's clock.
#[derive(Debug, Clone, Copy)]
struct OwnerObservation {
    /// Last epoch that was read.
    epoch: u64,
    /// Last lease that was read.
    lease_ms: Millis,
    /// Number of renewals; none if the record was missing.
    renewal_count: Option<u64>,
    since_ms: Millis,
}

impl OwnerWatch {
    /// Decides about one reading of the record.
    pub fn decide(
        &mut self,
        candidate: &TakeoverCandidate,
        record: Option<&OwnerRecord>,
        now_ms: Millis,
    ) -> TakeoverDecision {
        let before = self.last_observation;
        let now = match (record, before) {
            (None, None) => return TakeoverDecision::Take,
            (Some(record), _) if record.node == candidate.node => {
                crate::reached!("takeover: the same machine, whose last process is dead");
                return TakeoverDecision::Take;
            }
            (Some(record), _) => {
                let OwnerRecord { epoch, renewal_count, lease_ms, .. } = *record;
                OwnerObservation { epoch, lease_ms, renewal_count: Some(renewal_count), since_ms: now_ms }
            }
            // The record disappeared: a living owner writes it again. If its owner had resigned, another may have taken it since,
            // with an unknown lease, which usually is like that of the candidate.
            (None, Some(before)) => OwnerObservation {
                renewal_count: None,
                since_ms: now_ms,
                lease_ms: before.lease_ms.max(candidate.lease_ms),
                ..before
            },
        };
        let is_same =
            before.is_some_and(|before| (before.epoch, before.renewal_count) == (now.epoch, now.renewal_count));
        let since_ms = if is_same { before.map_or(now_ms, |before| before.since_ms) } else { now_ms };
        self.last_observation = Some(OwnerObservation { since_ms, ..now });
        let owner = record.map_or("another process", |record| record.owner_label.as_str());
        if before.is_some() && !is_same && record.is_some() && !candidate.standby {
            return TakeoverDecision::Refuse(format!(
                "another process ({owner}) owns the store and is alive; stop it first, or use --standby to wait until it ends"
            ));
        }
        let still_ms = now_ms.saturating_sub(since_ms);
        if still_ms >= now.lease_ms {
            crate::reached!("takeover: the lease of another process has ended");
            return TakeoverDecision::Take;
        }
        crate::reached!("takeover: another process is alive");
        let remaining_ms = now.lease_ms - still_ms;
        TakeoverDecision::Wait(match record {
            None => format!(
                "the ownership record is gone; taking the store over in {remaining_ms} ms unless its owner writes it again"
            ),
            Some(_) if candidate.standby => format!("standing by: {owner} owns the store"),
            Some(_) => format!(
                "{owner} owns the store; taking it over in {remaining_ms} ms (the lease) unless that process is alive"
            ),
        })
    }

    /// Last epoch that was read; 0 if none was.
    pub fn epoch(&self) -> u64 {
        self.last_observation.map_or(0, |last| last.epoch)
    }
}

/// Call that reads the record.
pub(super) fn read(prefix: &str) -> RedisCall {
    call(cmd("HGETALL").arg(keys::owner(prefix)).take())
}

/// Parses the answer to [`read`]; none: the record does not exist.
pub(super) fn parse_record(value: &Value) -> Result<Option<OwnerRecord>, StoreError> {
    let fields: BTreeMap<String, String> = redis::from_redis_value(value.clone())
        .map_err(|error| StoreError::Unusable(format!("the ownership record cannot be read: {error}")))?;
    if fields.is_empty() {
        return Ok(None);
    }
    let number = |name: &str| -> Result<u64, StoreError> {
        let text = fields.get(name).map_or("0", String::as_str);
        text.parse().map_err(|_| {
            StoreError::Unusable(format!("the field {name} of the ownership record is not a number: {text:?}"))
        })
    };
    let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
    Ok(Some(OwnerRecord {
        epoch: number("epoch")?,
        renewal_count: number("beat")?,
        node: field("node"),
        owner_label: field("who"),
        lease_ms: number("lease_ms")?,
        fence_ceiling: number("fence_ceiling")?,
        fence_floor: number("fence_floor")?,
    }))
}

/// Fields that an owner writes to the record.
#[derive(Debug, Clone)]
pub(super) struct OwnerFields<'a> {
    pub prefix: &'a str,
    pub owner: Uuid,
    pub epoch: u64,
    pub node: &'a str,
    pub who: &'a str,
    pub lease_ms: Millis,
}

impl OwnerFields<'_> {
    /// Call that takes the record if it is still as it was read.
    pub fn take(&self, read: Option<&OwnerRecord>) -> RedisCall {
        let mut cmd = library::call("take", &[&keys::owner(self.prefix)]);
        let expected =
            |value: fn(&OwnerRecord) -> u64| read.map_or_else(String::new, |record| value(record).to_string());
        cmd.arg(self.owner.simple().to_string())
            .arg(self.epoch)
            .arg(expected(|r| r.renewal_count))
            .arg(expected(|r| r.epoch));
        cmd.arg(self.node).arg(self.who).arg(self.lease_ms);
        call(cmd)
    }

    /// Call that renews the record and raises the floor and the ceiling of fences.
    pub fn renew(&self, span: FenceSpan, missing: MissingRecord) -> RedisCall {
        let mut cmd = library::call("renew", &[&keys::owner(self.prefix)]);
        cmd.arg(self.owner.simple().to_string()).arg(self.epoch).arg(self.node).arg(self.who);
        cmd.arg(self.lease_ms).arg(span.ceiling).arg(u8::from(missing == MissingRecord::Create)).arg(span.floor);
        call(cmd)
    }
}

/// Parses the answer to [`OwnerFields::take`]: the ceiling of fences; none: the record has changed meanwhile.
pub(super) fn parse_take(value: &Value) -> Result<Option<Fence>, String> {
    let unexpected = || format!("unexpected answer to a takeover: {value:?}");
    let Value::Array(parts) = value else { return Err(unexpected()) };
    match parts.iter().map(text).collect::<Vec<_>>().as_slice() {
        [Some("ok"), Some(ceiling)] => ceiling.parse().map(Some).map_err(|_| unexpected()),
        [Some("changed"), _] => Ok(None),
        _ => Err(unexpected()),
    }
}

/// Slot of the ownership record.
pub(super) fn slot() -> u16 {
    keys::slot(ShardKey::CATALOG)
}

/// Call in the slot of the ownership record.
pub(super) fn call(cmd: redis::Cmd) -> RedisCall {
    RedisCall { slot: slot(), cmd, batch_bytes: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(renewal_count: u64) -> OwnerRecord {
        OwnerRecord {
            epoch: 3,
            renewal_count,
            node: "theirs".into(),
            owner_label: "host:1".into(),
            lease_ms: 1_000,
            ..OwnerRecord::default()
        }
    }

    fn candidate(node: &str, standby: bool) -> TakeoverCandidate {
        TakeoverCandidate { node: node.into(), standby, lease_ms: 1_000 }
    }

    #[test]
    fn a_missing_record_and_one_of_the_same_directory_are_taken_at_once() {
        let mine = candidate("mine", false);
        assert_eq!(OwnerWatch::default().decide(&mine, None, 5), TakeoverDecision::Take);
        assert_eq!(
            OwnerWatch::default().decide(&candidate("theirs", false), Some(&record(1)), 5),
            TakeoverDecision::Take
        );
        assert!(matches!(OwnerWatch::default().decide(&mine, Some(&record(1)), 5), TakeoverDecision::Wait(_)));
    }

    #[test]
    fn a_record_that_is_unchanged_for_its_lease_is_taken_and_not_earlier() {
        for standby in [false, true] {
            let (mine, mut watch) = (candidate("mine", standby), OwnerWatch::default());
            assert!(matches!(watch.decide(&mine, Some(&record(1)), 100), TakeoverDecision::Wait(_)));
            assert!(matches!(watch.decide(&mine, Some(&record(1)), 1_099), TakeoverDecision::Wait(_)));
            assert_eq!(watch.decide(&mine, Some(&record(1)), 1_100), TakeoverDecision::Take);
        }
    }

    #[test]
    fn a_record_that_disappeared_is_taken_only_after_the_lease_and_an_owner_that_writes_it_again_keeps_it() {
        let (mine, mut watch) = (candidate("mine", true), OwnerWatch::default());
        watch.decide(&mine, Some(&record(1)), 0);
        assert!(matches!(watch.decide(&mine, None, 500), TakeoverDecision::Wait(_)));
        assert!(matches!(watch.decide(&mine, Some(&record(1)), 900), TakeoverDecision::Wait(_)));
        assert!(matches!(watch.decide(&mine, None, 1_800), TakeoverDecision::Wait(_)));
        assert!(matches!(watch.decide(&mine, None, 2_799), TakeoverDecision::Wait(_)));
        assert_eq!(watch.decide(&mine, None, 2_800), TakeoverDecision::Take);
        assert_eq!(watch.epoch(), 3, "and under a higher epoch");
    }

    #[test]
    fn a_renewal_makes_a_second_process_give_up_and_a_standby_wait() {
        let (mine, mut watch) = (candidate("mine", false), OwnerWatch::default());
        watch.decide(&mine, Some(&record(1)), 0);
        let refused = watch.decide(&mine, Some(&record(2)), 900);
        assert!(matches!(&refused, TakeoverDecision::Refuse(text) if text.contains("host:1")), "{refused:?}");
        let (mine, mut watch) = (candidate("mine", true), OwnerWatch::default());
        watch.decide(&mine, Some(&record(1)), 0);
        assert!(matches!(watch.decide(&mine, Some(&record(2)), 900), TakeoverDecision::Wait(_)));
        assert!(
            matches!(watch.decide(&mine, Some(&record(2)), 1_800), TakeoverDecision::Wait(_)),
            "the lease starts again"
        );
        assert_eq!(watch.decide(&mine, Some(&record(2)), 1_900), TakeoverDecision::Take);
    }

    #[test]
    fn a_resigned_record_is_taken_at_once_but_not_if_it_disappears_then() {
        let (mine, mut watch) = (candidate("mine", false), OwnerWatch::default());
        let resigned = OwnerRecord { lease_ms: 0, ..record(1) };
        assert_eq!(watch.decide(&mine, Some(&resigned), 0), TakeoverDecision::Take);
        // Another process may have taken it in between, and its write was lost too.
        assert!(matches!(watch.decide(&mine, None, 10), TakeoverDecision::Wait(_)));
        assert!(matches!(watch.decide(&mine, None, 1_009), TakeoverDecision::Wait(_)));
        assert_eq!(watch.decide(&mine, None, 1_010), TakeoverDecision::Take);
    }
}
