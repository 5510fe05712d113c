//! Rules that a pool's specification sets for its shards, and what changes in a shard when they do.

use super::shard::Shard;
use crate::model::{Millis, PlacementPolicy, PoolSpec, Seq, TtlBounds, TypicalRequest};

/// What a pool's specification tells its shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardConfig {
    /// Which worker a claim takes; and so whether it takes all of it.
    pub policy: PlacementPolicy,
    /// What policy `fgd` takes for usual; empty: it learns that.
    pub typical_requests: Vec<TypicalRequest>,
    /// How long the lists of a worker may leave out a claim that they never named.
    pub unnamed_ms: Millis,
    /// How long a lost worker is kept; none: for ever.
    pub lost_keep_ms: Option<Millis>,
    /// Bounds of the time that a claim may stay active without a renewal.
    pub ttl: TtlBounds,
}

impl From<PlacementPolicy> for ShardConfig {
    fn from(policy: PlacementPolicy) -> Self {
        Self::from(&PoolSpec { policy: Some(policy), ..PoolSpec::default() })
    }
}

impl From<&PoolSpec> for ShardConfig {
    fn from(spec: &PoolSpec) -> Self {
        Self {
            policy: spec.policy(),
            typical_requests: spec.typical_requests.clone(),
            unnamed_ms: spec.unnamed_ms(),
            lost_keep_ms: (spec.lost_keep_ms > 0).then_some(spec.lost_keep_ms),
            ttl: spec.ttl(),
        }
    }
}

impl Shard {
    /// Another way to choose workers: in an exclusive pool from the order in which they became idle. Other times hold from
    /// now on.
    pub fn set_config(&mut self, rules: &ShardConfig, now_ms: Millis) {
        let before = std::mem::replace(&mut self.config, rules.clone());
        if before.lost_keep_ms != rules.lost_keep_ms {
            self.reschedule_deletions(now_ms);
        }
        if (before.policy, &before.typical_requests) != (rules.policy, &rules.typical_requests) {
            if let Some(shares) = &mut self.shared {
                shares.set_config(rules);
            } else {
                self.set_policy(rules.policy);
            }
        }
        #[cfg(debug_assertions)]
        self.assert_invariants();
    }

    fn set_policy(&mut self, policy: PlacementPolicy) {
        let mut idle: Vec<(Seq, u32)> = self
            .idle_queue
            .oldest_first(self.workers.all())
            .into_iter()
            .map(|at| (self.workers.get(at).idle_seq, at))
            .collect();
        idle.sort_unstable();
        for &(_, at) in &idle {
            self.idle_queue.remove(self.workers.hot_mut(), at);
        }
        self.idle_queue.reset(policy);
        self.idle_queue.resize_buckets(self.workers.hot_mut());
        for (_, at) in idle {
            self.idle_queue.push(self.workers.hot_mut(), at);
        }
    }
}
