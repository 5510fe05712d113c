//! Pools: their specification, and what the service says about them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Capacity, Labels, PoolName, Seq, check_labels, check_name, present};
use crate::limits;
use crate::refusal::Refusal;

/// How claims of a pool use workers. Never changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A claim takes a whole worker.
    #[default]
    Exclusive,
}

/// Which idle worker a claim takes when affinity does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The one that became idle last: the warmest.
    #[default]
    Lifo,
    /// The one that became idle first.
    Fifo,
    /// Any, by a hash of the claim's fence.
    Random,
}

/// When an answer leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// At once; lost with the process if the store does not have it yet.
    Memory,
    /// After the store has it.
    #[default]
    Durable,
}

/// A pool's specification. `shards` and `mode` never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolSpec {
    /// Number of shards: a power of two, 1..=1024.
    pub shards: u16,
    /// How claims use workers.
    pub mode: Mode,
    /// Which idle worker a claim takes.
    pub policy: Policy,
    /// When answers leave, unless a request asks for more.
    pub ack: Ack,
    /// Free labels of the pool.
    pub labels: Labels,
    /// Class of the pool, if it has one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub class: Option<String>,
    /// How long an unconfirmed claim is held, in milliseconds; also the most a request may ask for.
    pub reserve_ms: u64,
    /// How long a release that was begun may take, in milliseconds; then its worker is suspect.
    pub releasing_ms: u64,
    /// How long a worker that sends heartbeats may be silent, in milliseconds; then it is lost.
    pub heartbeat_ttl_ms: u64,
    /// How far the store may lag behind before memory-acknowledged claims are refused, in milliseconds.
    pub lag_max_ms: u64,
}

impl Default for PoolSpec {
    fn default() -> Self {
        Self {
            shards: limits::SHARDS_DEFAULT,
            mode: Mode::default(),
            policy: Policy::default(),
            ack: Ack::default(),
            labels: Labels::new(),
            class: None,
            reserve_ms: 30_000,
            releasing_ms: 60_000,
            heartbeat_ttl_ms: 60_000,
            lag_max_ms: 10_000,
        }
    }
}

impl PoolSpec {
    /// Checks every field against its limit.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self) -> Result<(), Refusal> {
        if !self.shards.is_power_of_two() || self.shards > limits::SHARDS_MAX {
            let message = format!("must be a power of two, 1..={}, got {}", limits::SHARDS_MAX, self.shards);
            return Err(Refusal::invalid("shards", message));
        }
        if let Some(class) = &self.class {
            check_name("class", class)?;
        }
        check_labels(&self.labels)?;
        if self.reserve_ms > limits::RESERVE_MS_MAX {
            return Err(Refusal::invalid("reserve_ms", format!("must be at most {}", limits::RESERVE_MS_MAX)));
        }
        let times = [
            ("releasing_ms", self.releasing_ms),
            ("heartbeat_ttl_ms", self.heartbeat_ttl_ms),
            ("lag_max_ms", self.lag_max_ms),
        ];
        for (field, ms) in times {
            if ms == 0 || ms > limits::RESERVE_MS_MAX {
                return Err(Refusal::invalid(field, format!("must be 1..={}", limits::RESERVE_MS_MAX)));
            }
        }
        Ok(())
    }
}

/// One shard's figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardStatus {
    /// Index in the pool.
    pub shard: u16,
    /// `loading`, `serving`, `refused` or `stopped`.
    pub state: Cow<'static, str>,
    /// Why it does not serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Workers it owns.
    pub workers: u64,
    /// Of them idle.
    pub idle: u64,
    /// Of them held.
    pub busy: u64,
    /// Of them cordoned.
    pub cordoned: u64,
    /// Of them draining.
    pub draining: u64,
    /// Of them lost.
    pub lost: u64,
    /// Of them suspect.
    pub suspect: u64,
    /// Claims not confirmed yet.
    pub reserved: u64,
    /// Claims whose worker is being cleaned.
    pub releasing: u64,
    /// Last change decided.
    pub seq: Seq,
    /// Last change that the store has.
    pub applied_seq: Seq,
    /// Age of the oldest change that the store does not have, in milliseconds.
    pub lag_ms: u64,
    /// Requests waiting in the ring.
    pub ring_depth: u64,
    /// Durable answers that wait for the store.
    pub answers_waiting: u64,
    /// Times its actor was restarted after a panic.
    pub restarts: u64,
}

/// A pool: spec, counts and figures by shard.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolStatus {
    /// Its name.
    pub name: PoolName,
    /// Its specification.
    pub spec: PoolSpec,
    /// Sum of what the workers have. GPUs by model are summed in `gpus`.
    pub capacity: Capacity,
    /// Sum of what idle workers have.
    pub free: Capacity,
    /// Per GPU model: cards in all, cards free.
    pub gpus: BTreeMap<String, (u64, u64)>,
    /// Figures by shard.
    pub shards: Vec<ShardStatus>,
}

/// A pool's workers and claims by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolCounts {
    /// Workers.
    pub total: u64,
    /// Of them idle.
    pub idle: u64,
    /// Of them held.
    pub busy: u64,
    /// Claims not confirmed yet.
    pub reserved: u64,
    /// Claims in use.
    pub active: u64,
    /// Claims whose worker is being cleaned.
    pub releasing: u64,
    /// Workers that are cordoned.
    pub cordoned: u64,
    /// Workers that are draining.
    pub draining: u64,
    /// Workers that were silent for too long.
    pub lost: u64,
    /// Workers that nothing has spoken for.
    pub suspect: u64,
}

impl PoolStatus {
    /// The sums over its shards.
    #[must_use]
    pub fn counts(&self) -> PoolCounts {
        let sum = |figure: fn(&ShardStatus) -> u64| self.shards.iter().map(figure).sum::<u64>();
        let (busy, reserved) = (sum(|shard| shard.busy), sum(|shard| shard.reserved));
        let releasing = sum(|shard| shard.releasing);
        PoolCounts {
            total: sum(|shard| shard.workers),
            idle: sum(|shard| shard.idle),
            busy,
            reserved,
            // One claim a busy worker. Shards are read one after another, so the difference is kept above zero.
            active: busy.saturating_sub(reserved + releasing),
            releasing,
            cordoned: sum(|shard| shard.cordoned),
            draining: sum(|shard| shard.draining),
            lost: sum(|shard| shard.lost),
            suspect: sum(|shard| shard.suspect),
        }
    }
}

/// Answer to [`WorkerVerb::Clear`] for a whole pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Workers that are trusted since.
    pub cleared: u64,
    /// Workers that are not yet: claims that the last stop may have lost can still be started.
    pub suspect: u64,
}
