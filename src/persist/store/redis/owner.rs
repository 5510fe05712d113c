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
use super::nodes::Call;
use super::steps::text;
use crate::model::{Fence, Millis};
use crate::persist::store::{FenceSpan, ShardKey};

/// The record as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub epoch: u64,
    /// Counts renewals.
    pub beat: u64,
    /// Whose data directory.
    pub node: String,
    /// For messages: host and process id.
    pub who: String,
    pub lease_ms: Millis,
    pub fence_ceiling: Fence,
    pub fence_floor: Fence,
}

/// What is to be done about a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Take,
    /// Look again; why, for people.
    Wait(String),
    /// Its owner lives, and nobody said that this process should wait for its end.
    Refuse(String),
}

/// Who wants it.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// Id of the data directory whose lock it holds.
    pub node: String,
    pub standby: bool,
    /// How long it will own the store with each renewal.
    pub lease_ms: Millis,
}

/// What is known of a record that somebody else may still renew.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch {
    seen: Option<Sight>,
}

/// A reading, and since when it is the same, by the watcher's clock.
#[derive(Debug, Clone, Copy)]
struct Sight {
    /// The last epoch and lease that were read.
    epoch: u64,
    lease_ms: Millis,
    /// None: the record was gone.
    beat: Option<u64>,
    since_ms: Millis,
}

impl Watch {
    /// Decides; called with each reading of the record.
    pub fn verdict(&mut self, candidate: &Candidate, record: Option<&Record>, now_ms: Millis) -> Verdict {
        let before = self.seen;
        let now = match (record, before) {
            (None, None) => return Verdict::Take,
            (Some(record), _) if record.node == candidate.node => return Verdict::Take,
            (Some(record), _) => {
                let Record { epoch, beat, lease_ms, .. } = *record;
                Sight { epoch, lease_ms, beat: Some(beat), since_ms: now_ms }
            }
            // It was there: an owner that lives writes it again. One that was given back may have been taken since, and
            // be gone with the lease that it had then: like the candidate's, as a rule.
            (None, Some(before)) => {
                Sight { beat: None, since_ms: now_ms, lease_ms: before.lease_ms.max(candidate.lease_ms), ..before }
            }
        };
        let is_same = before.is_some_and(|before| (before.epoch, before.beat) == (now.epoch, now.beat));
        let since_ms = if is_same { before.map_or(now_ms, |before| before.since_ms) } else { now_ms };
        self.seen = Some(Sight { since_ms, ..now });
        let who = record.map_or("somebody", |record| record.who.as_str());
        if before.is_some() && !is_same && record.is_some() && !candidate.standby {
            return Verdict::Refuse(format!(
                "another process ({who}) owns the store and is alive; stop it first, or say --standby to wait for its end"
            ));
        }
        let still_ms = now_ms.saturating_sub(since_ms);
        if still_ms >= now.lease_ms {
            return Verdict::Take;
        }
        let left_ms = now.lease_ms - still_ms;
        Verdict::Wait(match record {
            None => format!(
                "the record of ownership is gone; unless its owner writes it again, it is taken in {left_ms} ms"
            ),
            Some(_) if candidate.standby => format!("standing by: {who} owns the store"),
            Some(_) => format!("{who} owns the store; if it is dead, it is taken over in {left_ms} ms (its lease)"),
        })
    }

    /// The last epoch that was read.
    pub fn epoch(&self) -> u64 {
        self.seen.map_or(0, |seen| seen.epoch)
    }
}

/// Reads the record.
pub(super) fn read(prefix: &str) -> Call {
    call(cmd("HGETALL").arg(keys::owner(prefix)).take())
}

/// Understands [`read`]'s answer; none: there is no record.
pub(super) fn record(value: &Value) -> Result<Option<Record>, String> {
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
    Ok(Some(Record {
        epoch: number("epoch")?,
        beat: number("beat")?,
        node: word("node"),
        who: word("who"),
        lease_ms: number("lease_ms")?,
        fence_ceiling: number("fence_ceiling")?,
        fence_floor: number("fence_floor")?,
    }))
}

/// What an owner writes into the record.
#[derive(Debug, Clone)]
pub(super) struct Claimant<'a> {
    pub prefix: &'a str,
    pub owner: Uuid,
    pub epoch: u64,
    pub node: &'a str,
    pub who: &'a str,
    pub lease_ms: Millis,
}

impl Claimant<'_> {
    /// Takes the record if it is still as it was read.
    pub fn take(&self, read: Option<&Record>) -> Call {
        let mut cmd = library::call("take", &[&keys::owner(self.prefix)]);
        let seen = |value: fn(&Record) -> u64| read.map_or_else(String::new, |record| value(record).to_string());
        cmd.arg(self.owner.simple().to_string()).arg(self.epoch).arg(seen(|r| r.beat)).arg(seen(|r| r.epoch));
        cmd.arg(self.node).arg(self.who).arg(self.lease_ms);
        call(cmd)
    }

    /// Renews it, and raises floor and ceiling of fences. `create`: also if it is gone.
    pub fn renew(&self, span: FenceSpan, create: bool) -> Call {
        let mut cmd = library::call("renew", &[&keys::owner(self.prefix)]);
        cmd.arg(self.owner.simple().to_string()).arg(self.epoch).arg(self.node).arg(self.who);
        cmd.arg(self.lease_ms).arg(span.ceiling).arg(u8::from(create)).arg(span.floor);
        call(cmd)
    }
}

/// [`Claimant::take`]'s answer: the ceiling; none: the record has changed meanwhile.
pub(super) fn taken(value: &Value) -> Result<Option<Fence>, String> {
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
    keys::slot(ShardKey::CATALOGUE)
}

/// A call in the slot of the record.
pub(super) fn call(cmd: redis::Cmd) -> Call {
    Call { slot: slot(), cmd, step_bytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_of(beat: u64) -> Record {
        Record { epoch: 3, beat, node: "theirs".into(), who: "host:1".into(), lease_ms: 1_000, ..Record::default() }
    }

    fn candidate(node: &str, standby: bool) -> Candidate {
        Candidate { node: node.into(), standby, lease_ms: 1_000 }
    }

    #[test]
    fn a_free_record_and_one_of_the_own_directory_are_taken_at_once() {
        let mine = candidate("mine", false);
        assert_eq!(Watch::default().verdict(&mine, None, 5), Verdict::Take);
        assert_eq!(Watch::default().verdict(&candidate("theirs", false), Some(&record_of(1)), 5), Verdict::Take);
        assert!(matches!(Watch::default().verdict(&mine, Some(&record_of(1)), 5), Verdict::Wait(_)));
    }

    #[test]
    fn a_record_that_stands_still_for_its_lease_is_taken_and_not_a_moment_earlier() {
        for standby in [false, true] {
            let (mine, mut watch) = (candidate("mine", standby), Watch::default());
            assert!(matches!(watch.verdict(&mine, Some(&record_of(1)), 100), Verdict::Wait(_)));
            assert!(matches!(watch.verdict(&mine, Some(&record_of(1)), 1_099), Verdict::Wait(_)));
            assert_eq!(watch.verdict(&mine, Some(&record_of(1)), 1_100), Verdict::Take);
        }
    }

    #[test]
    fn a_record_that_vanished_is_taken_only_after_the_lease_and_an_owner_that_writes_it_again_keeps_it() {
        let (mine, mut watch) = (candidate("mine", true), Watch::default());
        watch.verdict(&mine, Some(&record_of(1)), 0);
        assert!(matches!(watch.verdict(&mine, None, 500), Verdict::Wait(_)));
        assert!(matches!(watch.verdict(&mine, Some(&record_of(1)), 900), Verdict::Wait(_)));
        assert!(matches!(watch.verdict(&mine, None, 1_800), Verdict::Wait(_)));
        assert!(matches!(watch.verdict(&mine, None, 2_799), Verdict::Wait(_)));
        assert_eq!(watch.verdict(&mine, None, 2_800), Verdict::Take);
        assert_eq!(watch.epoch(), 3, "and under a higher epoch");
    }

    #[test]
    fn a_renewal_sends_a_second_process_away_and_keeps_a_standby_waiting() {
        let (mine, mut watch) = (candidate("mine", false), Watch::default());
        watch.verdict(&mine, Some(&record_of(1)), 0);
        let refused = watch.verdict(&mine, Some(&record_of(2)), 900);
        assert!(matches!(&refused, Verdict::Refuse(why) if why.contains("host:1")), "{refused:?}");
        let (mine, mut watch) = (candidate("mine", true), Watch::default());
        watch.verdict(&mine, Some(&record_of(1)), 0);
        assert!(matches!(watch.verdict(&mine, Some(&record_of(2)), 900), Verdict::Wait(_)));
        assert!(matches!(watch.verdict(&mine, Some(&record_of(2)), 1_800), Verdict::Wait(_)), "counted anew");
        assert_eq!(watch.verdict(&mine, Some(&record_of(2)), 1_900), Verdict::Take);
    }

    #[test]
    fn a_record_that_was_given_back_is_taken_at_once_but_not_if_it_vanishes_then() {
        let (mine, mut watch) = (candidate("mine", false), Watch::default());
        let given_back = Record { lease_ms: 0, ..record_of(1) };
        assert_eq!(watch.verdict(&mine, Some(&given_back), 0), Verdict::Take);
        // Somebody else was faster, perhaps, and what they wrote was lost with it.
        assert!(matches!(watch.verdict(&mine, None, 10), Verdict::Wait(_)));
        assert!(matches!(watch.verdict(&mine, None, 1_009), Verdict::Wait(_)));
        assert_eq!(watch.verdict(&mine, None, 1_010), Verdict::Take);
    }
}
