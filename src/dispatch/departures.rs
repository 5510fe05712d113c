//! Answers that leave together: the clocks of all that they grant start when they do, not when each was decided.

use std::collections::BTreeMap;

use super::Dispatch;
use crate::engine::Place;
use crate::keys::ShardRef;
use crate::model::Millis;
use crate::shard::ClaimAnswer;

/// Claims of one shard whose grants leave, and the first of their deadlines.
type Departing = (Millis, Vec<Place>);

/// The claims that one answer speaks of, as it leaves.
#[derive(Debug)]
pub(crate) struct Departures {
    at_ms: Millis,
    by_shard: BTreeMap<ShardRef, Departing>,
}

impl Dispatch {
    /// An answer that speaks of several claims is about to leave.
    pub(crate) fn departures(&self) -> Departures {
        Departures { at_ms: self.clock.engine_ms(), by_shard: BTreeMap::new() }
    }

    /// Dates a claim that the answer speaks of: one that it grants has its full time from now on, any other its first
    /// deadline if none runs yet.
    pub(crate) fn date(&self, departures: &mut Departures, answer: &mut ClaimAnswer) {
        let Some(stay_ms) = answer.grant.stay_ms() else { return };
        let due_ms = departures.at_ms + stay_ms;
        if answer.grant.deadline_ms.is_some_and(|deadline_ms| !answer.created || deadline_ms >= due_ms) {
            return;
        }
        answer.grant.deadline_ms = Some(due_ms);
        answer.expires_at_ms = Some(self.clock.unix_of(due_ms));
        let (first_ms, claims) = departures.by_shard.entry(answer.shard).or_insert((due_ms, Vec::new()));
        *first_ms = due_ms.min(*first_ms);
        claims.push(answer.grant.place);
    }

    /// Starts the clocks, at the shards that hold the claims.
    pub(crate) fn depart(&self, departures: Departures) {
        let Departures { at_ms, by_shard } = departures;
        if by_shard.is_empty() {
            return;
        }
        let pools = self.pools.load();
        for (shard, (due_ms, claims)) in by_shard {
            if let Some(port) = pools.port(shard) {
                port.depart(claims, at_ms, due_ms);
            }
        }
    }
}
