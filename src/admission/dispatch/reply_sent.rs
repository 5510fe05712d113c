//! Answers that leave together: the clocks of all that they grant start when they do, not when each was decided.

use std::collections::BTreeMap;

use super::ClaimDispatcher;
use crate::admission::key_directory::{KeyLookup, ShardRef};
use crate::engine::ClaimHandle;
use crate::model::{ClaimId, ClaimState, Millis};
use crate::shard::ClaimAnswer;

/// Claims of one shard whose grants leave, and the first of their deadlines.
type ShardSentClaims = (Millis, Vec<ClaimHandle>);

/// The claims that one answer speaks of, as it leaves.
#[derive(Debug)]
pub(crate) struct SentClaims {
    /// When the first of them may have been decided.
    started_ms: Millis,
    sent_ms: Millis,
    by_shard: BTreeMap<ShardRef, ShardSentClaims>,
}

impl ClaimDispatcher {
    /// An answer that speaks of several claims is about to leave; none of them was decided before `begun_ms`.
    pub(crate) fn begin_reply(&self, begun_ms: Millis) -> SentClaims {
        SentClaims { started_ms: begun_ms, sent_ms: self.clock.engine_ms(), by_shard: BTreeMap::new() }
    }

    /// Dates a claim that the answer speaks of: one that it grants has its full time from now on, any other its first
    /// deadline if none runs yet. One that was granted in an earlier tick and is over since is shown as lost.
    pub(crate) fn set_first_deadline(&self, departures: &mut SentClaims, id: &ClaimId, answer: &mut ClaimAnswer) {
        let due_ms = answer.grant.state_ttl_ms().map(|stay_ms| departures.sent_ms + stay_ms);
        let runs = |deadline_ms| !answer.created || due_ms.is_none_or(|due_ms| deadline_ms >= due_ms);
        if answer.grant.deadline_ms.is_some_and(runs) || (due_ms.is_none() && !answer.created) {
            return;
        }
        if departures.started_ms < departures.sent_ms && !self.holds(id, answer) {
            answer.grant.mark_ended(ClaimState::Lost);
            answer.expires_at_ms = None;
            return;
        }
        if let Some(due_ms) = due_ms {
            answer.grant.deadline_ms = Some(due_ms);
            answer.expires_at_ms = Some(self.clock.unix_of(due_ms));
        }
        let due_ms = due_ms.unwrap_or(Millis::MAX);
        let (first_ms, claims) = departures.by_shard.entry(answer.shard).or_insert((due_ms, Vec::new()));
        *first_ms = due_ms.min(*first_ms);
        claims.push(answer.grant.handle);
    }

    fn holds(&self, id: &ClaimId, answer: &ClaimAnswer) -> bool {
        matches!(self.keys.lookup(id), KeyLookup::Held(hold) if hold.handle.fence == answer.grant.handle.fence)
    }

    /// Starts the clocks, at the shards that hold the claims.
    pub(crate) fn notify_reply_sent(&self, departures: SentClaims) {
        let SentClaims { sent_ms: at_ms, by_shard, .. } = departures;
        if by_shard.is_empty() {
            return;
        }
        let pools = self.pools.load();
        for (shard, (due_ms, claims)) in by_shard {
            if let Some(port) = pools.shard(shard) {
                port.notify_reply_sent(claims, at_ms, due_ms);
            }
        }
    }
}
