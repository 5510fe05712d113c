//! Rules that a pool's specification sets for its shards, and their changes.

use super::shard::Shard;
use crate::model::{Millis, PlacementPolicy, PoolSpec, Seq, TtlBounds, TypicalRequest};

/// Rules from a pool's specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardConfig {
    /// Policy that chooses workers; it also says whether a claim takes a whole one.
    pub policy: PlacementPolicy,
    /// Typical requests for policy `fgd`; empty: learned from the claims.
    pub typical_requests: Vec<TypicalRequest>,
    /// Time for which a worker's reports may omit a claim that they never contained.
    pub unnamed_ms: Millis,
    /// Time for which a lost worker is kept; none: for ever.
    pub lost_keep_ms: Option<Millis>,
    /// Limits of a claim's time to live without a renewal.
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
    /// Applies another configuration. A new policy of an exclusive pool starts from the order in which workers became
    /// idle; new durations apply from now on.
    pub fn set_config(&mut self, config: &ShardConfig, now_ms: Millis) {
        let before = std::mem::replace(&mut self.config, config.clone());
        if before.lost_keep_ms != config.lost_keep_ms {
            self.reschedule_deletions(now_ms);
        }
        if (before.policy, &before.typical_requests) != (config.policy, &config.typical_requests) {
            if let Some(shared) = &mut self.shared {
                shared.set_config(config);
            } else {
                self.set_policy(config.policy);
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
