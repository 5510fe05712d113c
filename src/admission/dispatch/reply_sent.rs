//! Replies that cover several claims: the deadlines of all their grants start when the reply is sent, not when each
//! was decided.

use std::collections::BTreeMap;

use super::ClaimDispatcher;
use crate::engine::ClaimHandle;
use crate::model::{ClaimId, ClaimState, Millis};
use crate::shard::{ClaimAnswer, ShardRef};

/// Claims of one shard whose grants are sent, and the earliest of their deadlines.
type ShardSentClaims = (Millis, Vec<ClaimHandle>);

/// Claims covered by one reply that is being sent.
#[derive(Debug)]
pub(crate) struct SentClaims {
    /// Earliest time at which one of them may have been decided.
    started_ms: Millis,
    /// Last tick before it is sent.
    tick_ms: Millis,
    /// Time from which deadlines count; none: no claim has one yet.
    sent_ms: Option<Millis>,
    by_shard: BTreeMap<ShardRef, ShardSentClaims>,
}

impl ClaimDispatcher {
    /// Begins a reply that covers several claims, none of them decided before `started_ms`.
    pub(crate) fn begin_reply(&self, started_ms: Millis) -> SentClaims {
        SentClaims { started_ms, tick_ms: self.clock.engine_ms(), sent_ms: None, by_shard: BTreeMap::new() }
    }

    /// Sets the deadline of a claim in the reply. A claim that the reply grants gets its full time from now; any other
    /// gets its first deadline if none runs yet. A claim granted in an earlier tick that has ended since is reported
    /// as lost.
    pub(crate) fn set_first_deadline(&self, sent: &mut SentClaims, id: &ClaimId, answer: &mut ClaimAnswer) {
        let mut sent_ms = || *sent.sent_ms.get_or_insert_with(|| self.clock.engine_now_ms());
        let due_ms = answer.grant.state_ttl_ms().map(|ttl_ms| sent_ms() + ttl_ms);
        let runs = |deadline_ms| !answer.created || due_ms.is_none_or(|due_ms| deadline_ms >= due_ms);
        if answer.grant.deadline_ms.is_some_and(runs) || (due_ms.is_none() && !answer.created) {
            return;
        }
        if sent.started_ms < sent.tick_ms && !self.holds(id, answer) {
            answer.grant.mark_ended(ClaimState::Lost);
            return;
        }
        if let Some(due_ms) = due_ms {
            answer.grant.deadline_ms = Some(due_ms);
        }
        let due_ms = due_ms.unwrap_or(Millis::MAX);
        let (first_ms, claims) = sent.by_shard.entry(answer.shard).or_insert((due_ms, Vec::new()));
        *first_ms = due_ms.min(*first_ms);
        claims.push(answer.grant.handle);
    }

    fn holds(&self, id: &ClaimId, answer: &ClaimAnswer) -> bool {
        self.keys.last_holder(id).is_some_and(|holder| holder.handle.fence == answer.grant.handle.fence)
    }

    /// Starts the deadlines at the shards that hold the claims.
    pub(crate) fn notify_reply_sent(&self, sent: SentClaims) {
        let SentClaims { tick_ms, sent_ms, by_shard, .. } = sent;
        if by_shard.is_empty() {
            return;
        }
        let at_ms = sent_ms.unwrap_or(tick_ms);
        let pools = self.pools.load();
        for (shard, (due_ms, claims)) in by_shard {
            if let Some(handle) = pools.shard(shard) {
                handle.notify_reply_sent(claims, at_ms, due_ms);
            }
        }
    }
}
