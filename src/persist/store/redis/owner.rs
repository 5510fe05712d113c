//! Who owns the store: a record that its owner renews, and what a newcomer may do when it meets one.
//!
//! The record is the lease. Whoever holds the lock of the data directory that the record names takes over at once:
//! the process that wrote it is dead. Anyone else watches until the record has stood still for as long as it says, by
//! the watcher's own clock; a standby waits for that as long as it takes, anyone else gives up at the first sign of
//! life.

use std::collections::HashMap;

use redis::{Value, cmd};
use uuid::Uuid;

use super::keys;
use super::library;
use super::nodes::RedisCall;
use super::writes::text;
use crate::model::{Fence, Millis};
use crate::persist::store::{FenceSpan, ShardKey};

/// The record as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OwnerRecord {
    pub epoch: u64,
    /// Counts renewals.
    pub renewal_count: u64,
    /// Whose data directory.
    pub node: String,
    /// For messages: host and process id.
    pub owner_label: String,
    pub lease_ms: Millis,
    pub fence_ceiling: Fence,
    pub fence_floor: Fence,
}

/// What is to be done about a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TakeoverDecision {
    Take,
    /// Look again; why, for people.
    Wait(String),
    /// Its owner lives, and nobody said that this process should wait for its end.
    Refuse(String),
}

/// Who wants it.
#[derive(Debug, Clone)]
pub(super) struct TakeoverCandidate {
    /// Id of the data directory whose lock it holds.
    pub node: String,
    pub standby: bool,
    /// How long it will own the store with each renewal.
    pub lease_ms: Millis,
}

/// What is known of a record that somebody else may still renew.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnerWatch {
    last_observation: Option<OwnerObservation>,
}

/// A reading, and since when it is the same, by the watcher's clock.
#[derive(Debug, Clone, Copy)]
struct OwnerObservation {
    /// The last epoch and lease that were read.
    epoch: u64,
    lease_ms: Millis,
    /// None: the record was gone.
    renewal_count: Option<u64>,
    since_ms: Millis,
}

impl OwnerWatch {
    /// Decides; called with each reading of the record.
    pub fn decide(
        &mut self,
        candidate: &TakeoverCandidate,
        record: Option<&OwnerRecord>,
        now_ms: Millis,
    ) -> TakeoverDecision {
        let before = self.last_observation;
        let now = match (record, before) {
            (None, None) => return TakeoverDecision::Take,
            (Some(record), _) if record.node == candidate.node => return TakeoverDecision::Take,
            (Some(record), _) => {
                let OwnerRecord { epoch, renewal_count: beat, lease_ms, .. } = *record;
                OwnerObservation { epoch, lease_ms, renewal_count: Some(beat), since_ms: now_ms }
            }
            // It was there: an owner that lives writes it again. One that was given back may have been taken since, and
            // be gone with the lease that it had then: like the candidate's, as a rule.
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
        let who = record.map_or("somebody", |record| record.owner_label.as_str());
        if before.is_some() && !is_same && record.is_some() && !candidate.standby {
            return TakeoverDecision::Refuse(format!(
                "another process ({who}) owns the store and is alive; stop it first, or say --standby to wait for its end"
            ));
        }
        let still_ms = now_ms.saturating_sub(since_ms);
        if still_ms >= now.lease_ms {
            return TakeoverDecision::Take;
        }
        let left_ms = now.lease_ms - still_ms;
        TakeoverDecision::Wait(match record {
            None => format!(
                "the record of ownership is gone; unless its owner writes it again, it is taken in {left_ms} ms"
            ),
            Some(_) if candidate.standby => format!("standing by: {who} owns the store"),
            Some(_) => format!("{who} owns the store; if it is dead, it is taken over in {left_ms} ms (its lease)"),
        })
    }

    /// The last epoch that was read.
    pub fn epoch(&self) -> u64 {
        self.last_observation.map_or(0, |seen| seen.epoch)
    }
}

/// Reads the record.
pub(super) fn read(prefix: &str) -> RedisCall {
    call(cmd("HGETALL").arg(keys::owner(prefix)).take())
}

/// Understands [`read`]'s answer; none: there is no record.
pub(super) fn parse_record(value: &Value) -> Result<Option<OwnerRecord>, String> {
    let fields: HashMap<String, String> =
        redis::from_redis_value(value.clone()).map_err(|error| format!("the record of ownership: {error}"))?;
    if fields.is_empty() {
        return Ok(None);
    }
    let number = |name: &str| -> Result<u64, String> {
        let text = fields.get(name).map_or("0", String::as_str);
        text.parse().map_err(|_| format!("the record of ownership has {name} {text:?}"))
    };
    let word = |name: &str| fields.get(name).cloned().unwrap_or_default();
    Ok(Some(OwnerRecord {
        epoch: number("epoch")?,
        renewal_count: number("beat")?,
        node: word("node"),
        owner_label: word("who"),
        lease_ms: number("lease_ms")?,
        fence_ceiling: number("fence_ceiling")?,
        fence_floor: number("fence_floor")?,
    }))
}

/// What an owner writes into the record.
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
    /// Takes the record if it is still as it was read.
    pub fn take(&self, read: Option<&OwnerRecord>) -> RedisCall {
        let mut cmd = library::call("take", &[&keys::owner(self.prefix)]);
        let seen = |value: fn(&OwnerRecord) -> u64| read.map_or_else(String::new, |record| value(record).to_string());
        cmd.arg(self.owner.simple().to_string()).arg(self.epoch).arg(seen(|r| r.renewal_count)).arg(seen(|r| r.epoch));
        cmd.arg(self.node).arg(self.who).arg(self.lease_ms);
        call(cmd)
    }

    /// Renews it, and raises floor and ceiling of fences. `create`: also if it is gone.
    pub fn renew(&self, span: FenceSpan, create: bool) -> RedisCall {
        let mut cmd = library::call("renew", &[&keys::owner(self.prefix)]);
        cmd.arg(self.owner.simple().to_string()).arg(self.epoch).arg(self.node).arg(self.who);
        cmd.arg(self.lease_ms).arg(span.ceiling).arg(u8::from(create)).arg(span.floor);
        call(cmd)
    }
}

/// [`OwnerFields::take`]'s answer: the ceiling; none: the record has changed meanwhile.
pub(super) fn parse_take(value: &Value) -> Result<Option<Fence>, String> {
    let odd = || format!("a take-over was answered {value:?}");
    let Value::Array(parts) = value else { return Err(odd()) };
    match parts.iter().map(text).collect::<Vec<_>>().as_slice() {
        [Some("ok"), Some(ceiling)] => ceiling.parse().map(Some).map_err(|_| odd()),
        [Some("changed"), _] => Ok(None),
        _ => Err(odd()),
    }
}

/// The slot of the record.
pub(super) fn slot() -> u16 {
    keys::slot(ShardKey::CATALOG)
}

/// A call in the slot of the record.
pub(super) fn call(cmd: redis::Cmd) -> RedisCall {
    RedisCall { slot: slot(), cmd, step_bytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_of(beat: u64) -> OwnerRecord {
        OwnerRecord {
            epoch: 3,
            renewal_count: beat,
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
    fn a_free_record_and_one_of_the_own_directory_are_taken_at_once() {
        let mine = candidate("mine", false);
        assert_eq!(OwnerWatch::default().decide(&mine, None, 5), TakeoverDecision::Take);
        assert_eq!(
            OwnerWatch::default().decide(&candidate("theirs", false), Some(&record_of(1)), 5),
            TakeoverDecision::Take
        );
        assert!(matches!(OwnerWatch::default().decide(&mine, Some(&record_of(1)), 5), TakeoverDecision::Wait(_)));
    }

    #[test]
    fn a_record_that_stands_still_for_its_lease_is_taken_and_not_a_moment_earlier() {
        for standby in [false, true] {
            let (mine, mut watch) = (candidate("mine", standby), OwnerWatch::default());
            assert!(matches!(watch.decide(&mine, Some(&record_of(1)), 100), TakeoverDecision::Wait(_)));
            assert!(matches!(watch.decide(&mine, Some(&record_of(1)), 1_099), TakeoverDecision::Wait(_)));
            assert_eq!(watch.decide(&mine, Some(&record_of(1)), 1_100), TakeoverDecision::Take);
        }
    }

    #[test]
    fn a_record_that_vanished_is_taken_only_after_the_lease_and_an_owner_that_writes_it_again_keeps_it() {
        let (mine, mut watch) = (candidate("mine", true), OwnerWatch::default());
        watch.decide(&mine, Some(&record_of(1)), 0);
        assert!(matches!(watch.decide(&mine, None, 500), TakeoverDecision::Wait(_)));
        assert!(matches!(watch.decide(&mine, Some(&record_of(1)), 900), TakeoverDecision::Wait(_)));
        assert!(matches!(watch.decide(&mine, None, 1_800), TakeoverDecision::Wait(_)));
        assert!(matches!(watch.decide(&mine, None, 2_799), TakeoverDecision::Wait(_)));
        assert_eq!(watch.decide(&mine, None, 2_800), TakeoverDecision::Take);
        assert_eq!(watch.epoch(), 3, "and under a higher epoch");
    }

    #[test]
    fn a_renewal_sends_a_second_process_away_and_keeps_a_standby_waiting() {
        let (mine, mut watch) = (candidate("mine", false), OwnerWatch::default());
        watch.decide(&mine, Some(&record_of(1)), 0);
        let refused = watch.decide(&mine, Some(&record_of(2)), 900);
        assert!(matches!(&refused, TakeoverDecision::Refuse(why) if why.contains("host:1")), "{refused:?}");
        let (mine, mut watch) = (candidate("mine", true), OwnerWatch::default());
        watch.decide(&mine, Some(&record_of(1)), 0);
        assert!(matches!(watch.decide(&mine, Some(&record_of(2)), 900), TakeoverDecision::Wait(_)));
        assert!(matches!(watch.decide(&mine, Some(&record_of(2)), 1_800), TakeoverDecision::Wait(_)), "counted anew");
        assert_eq!(watch.decide(&mine, Some(&record_of(2)), 1_900), TakeoverDecision::Take);
    }

    #[test]
    fn a_record_that_was_given_back_is_taken_at_once_but_not_if_it_vanishes_then() {
        let (mine, mut watch) = (candidate("mine", false), OwnerWatch::default());
        let given_back = OwnerRecord { lease_ms: 0, ..record_of(1) };
        assert_eq!(watch.decide(&mine, Some(&given_back), 0), TakeoverDecision::Take);
        // Somebody else was faster, perhaps, and what they wrote was lost with it.
        assert!(matches!(watch.decide(&mine, None, 10), TakeoverDecision::Wait(_)));
        assert!(matches!(watch.decide(&mine, None, 1_009), TakeoverDecision::Wait(_)));
        assert_eq!(watch.decide(&mine, None, 1_010), TakeoverDecision::Take);
    }
}
