//! Pools: their specification, and what the service says about them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    GpuRequest, Labels, Millis, PoolName, ResourceRequirements, Seq, UnschedulableCounts, WorkerCapacity, check_labels,
    check_name, present, some_object, unique_keys,
};
use crate::limits;
use crate::model::request_error::RequestError;

/// How claims of a pool use workers. Never changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// A claim takes a whole worker.
    #[default]
    Exclusive,
    /// A claim takes a share of a worker: as much as it asks for.
    Shared,
}

/// Which worker a claim takes. The first three are of exclusive pools (when affinity does not say), the others of shared
/// ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementPolicy {
    /// The one that became idle last: the warmest.
    #[default]
    Lifo,
    /// The one that became idle first.
    Fifo,
    /// Any, by a hash of the claim's fence.
    Random,
    /// The one with the least left among those that fit.
    BestFit,
    /// The one with the most left.
    Spread,
    /// The one of whose idle GPU cards the fewest become useless for what is usually asked.
    Fgd,
}

impl PlacementPolicy {
    /// Whether pools of this mode may have it.
    #[must_use]
    pub const fn is_allowed_in(self, mode: PoolMode) -> bool {
        let shared = matches!(self, Self::BestFit | Self::Spread | Self::Fgd);
        shared == matches!(mode, PoolMode::Shared)
    }
}

impl PoolMode {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        }
    }

    /// The policy of a pool that does not say.
    #[must_use]
    pub const fn default_policy(self) -> PlacementPolicy {
        match self {
            Self::Exclusive => PlacementPolicy::Lifo,
            Self::Shared => PlacementPolicy::BestFit,
        }
    }
}

/// A kind of request that a pool usually gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypicalRequest {
    /// Thousandths of a core.
    #[serde(default)]
    pub cpu_milli: u64,
    /// Cards, if any.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_object")]
    pub gpu: Option<GpuRequest>,
    /// How often, beside the others: 1..=1,000,000.
    pub weight: u32,
}

/// When an answer leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckLevel {
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
    pub mode: PoolMode,
    /// Which worker a claim takes; none: [`Mode::default_policy`]. Always there once it is [settled](Self::settled).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub policy: Option<PlacementPolicy>,
    /// A claim that asks for resources and no GPU takes a worker with GPUs only when no other fits.
    pub spare_gpu_workers: bool,
    /// What policy `fgd` takes for usual; empty: it learns that from the claims that come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub typical_requests: Vec<TypicalRequest>,
    /// When answers leave, unless a request asks for more.
    pub ack: AckLevel,
    /// Free labels of the pool.
    #[serde(deserialize_with = "unique_keys")]
    pub labels: Labels,
    /// Class of the pool, if it has one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub class: Option<String>,
    /// How long an unconfirmed claim is held, in milliseconds; also the most a request may ask for.
    pub reserve_ms: u64,
    /// How long a claim that says no `ttl_ms` may stay active without a renewal, in milliseconds. None: `ttl_max_ms`, and without
    /// that as long as its worker lives.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub ttl_default_ms: Option<u64>,
    /// Most that a claim or a renewal may ask for as its `ttl_ms`, in milliseconds; none: [`limits::TTL_MS_MAX`], or no ttl at all.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub ttl_max_ms: Option<u64>,
    /// How long a release that was begun may take, in milliseconds; then its worker is suspect.
    pub releasing_ms: u64,
    /// How long a worker that sends heartbeats may be silent, in milliseconds; then it is lost.
    pub heartbeat_ttl_ms: u64,
    /// How long the full lists of a worker may leave out an active claim that they never named, in milliseconds; then the
    /// claim ends. None: the larger of `reserve_ms` and twice `heartbeat_ttl_ms` ([`Self::unnamed_ms`]).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub unnamed_ms: Option<u64>,
    /// How long a worker that is lost, and so holds nothing, is kept, in milliseconds; then it is deleted. 0: for ever.
    pub lost_keep_ms: u64,
    /// How far the store may lag behind before memory-acknowledged claims are refused, in milliseconds.
    pub lag_max_ms: u64,
    /// A claim that waits may evict claims with a lower priority that are marked `preemptible`.
    pub preemption: bool,
    /// Most claims that wait for room: 0..=1,000,000; the next is refused (`overloaded`).
    pub waiters_max: u32,
    /// Of them most of one tenant.
    pub waiters_tenant_max: u32,
}

impl Default for PoolSpec {
    fn default() -> Self {
        Self {
            shards: limits::SHARDS_DEFAULT,
            mode: PoolMode::default(),
            policy: None,
            spare_gpu_workers: true,
            typical_requests: Vec::new(),
            ack: AckLevel::default(),
            labels: Labels::new(),
            class: None,
            reserve_ms: 30_000,
            ttl_default_ms: None,
            ttl_max_ms: None,
            releasing_ms: 60_000,
            heartbeat_ttl_ms: 60_000,
            unnamed_ms: None,
            lost_keep_ms: 600_000,
            lag_max_ms: 10_000,
            preemption: false,
            waiters_max: 100_000,
            waiters_tenant_max: 10_000,
        }
    }
}

impl PoolSpec {
    /// With what it does not say filled in.
    ///
    /// # Errors
    /// `Invalid` naming the field that is out of its limit.
    pub fn with_defaults(self) -> Result<Self, RequestError> {
        self.check()?;
        Ok(Self { policy: Some(self.policy()), ..self })
    }

    /// Which worker a claim takes.
    #[must_use]
    pub fn policy(&self) -> PlacementPolicy {
        self.policy.unwrap_or(self.mode.default_policy())
    }

    /// How long the full lists of a worker may leave out an active claim that they never named.
    #[must_use]
    pub fn unnamed_ms(&self) -> u64 {
        let default = self.reserve_ms.max(self.heartbeat_ttl_ms.saturating_mul(2)).min(limits::RESERVE_MS_MAX);
        self.unnamed_ms.unwrap_or(default)
    }

    /// Bounds of the time that a claim may stay active without a renewal.
    #[must_use]
    pub fn ttl(&self) -> TtlBounds {
        TtlBounds { default_ms: self.ttl_default_ms.or(self.ttl_max_ms), max_ms: self.ttl_max_ms }
    }

    /// How long a claim with these times needs its worker, in milliseconds: it may be confirmed at the last moment.
    #[must_use]
    pub fn needs_ms(&self, reserve_ms: Millis, ttl_ms: Option<Millis>) -> Millis {
        reserve_ms + ttl_ms.or(self.ttl().default_ms).unwrap_or(0)
    }

    /// Checks every field against its limit.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub fn check(&self) -> Result<(), RequestError> {
        if !self.policy().is_allowed_in(self.mode) {
            let known = match self.mode {
                PoolMode::Exclusive => "lifo, fifo, random",
                PoolMode::Shared => "best_fit, spread, fgd",
            };
            return Err(RequestError::invalid("policy", format!("of a pool of this mode it must be one of {known}")));
        }
        check_typical_requests(self)?;
        if !self.shards.is_power_of_two() || self.shards > limits::SHARDS_MAX {
            let message = format!("must be a power of two, 1..={}, got {}", limits::SHARDS_MAX, self.shards);
            return Err(RequestError::invalid("shards", message));
        }
        if let Some(class) = &self.class {
            check_name("class", class)?;
        }
        check_labels(&self.labels)?;
        if self.reserve_ms > limits::RESERVE_MS_MAX {
            return Err(RequestError::invalid("reserve_ms", format!("must be at most {}", limits::RESERVE_MS_MAX)));
        }
        for (field, ttl_ms) in [("ttl_default_ms", self.ttl_default_ms), ("ttl_max_ms", self.ttl_max_ms)] {
            if ttl_ms.is_some_and(|ms| ms == 0 || ms > limits::TTL_MS_MAX) {
                return Err(RequestError::invalid(field, format!("must be 1..={}", limits::TTL_MS_MAX)));
            }
        }
        if let (Some(default_ms), Some(max_ms)) = (self.ttl_default_ms, self.ttl_max_ms)
            && default_ms > max_ms
        {
            return Err(RequestError::invalid(
                "ttl_default_ms",
                format!("must be at most ttl_max_ms, which is {max_ms}"),
            ));
        }
        for (field, waiters) in [("waiters_max", self.waiters_max), ("waiters_tenant_max", self.waiters_tenant_max)] {
            if waiters > limits::WAITERS_MAX {
                return Err(RequestError::invalid(field, format!("must be at most {}", limits::WAITERS_MAX)));
            }
        }
        if self.lost_keep_ms > limits::LOST_KEEP_MS_MAX {
            return Err(RequestError::invalid("lost_keep_ms", format!("must be at most {}", limits::LOST_KEEP_MS_MAX)));
        }
        let times = [
            ("releasing_ms", self.releasing_ms),
            ("heartbeat_ttl_ms", self.heartbeat_ttl_ms),
            ("unnamed_ms", self.unnamed_ms()),
            ("lag_max_ms", self.lag_max_ms),
        ];
        for (field, ms) in times {
            if ms == 0 || ms > limits::RESERVE_MS_MAX {
                return Err(RequestError::invalid(field, format!("must be 1..={}", limits::RESERVE_MS_MAX)));
            }
        }
        Ok(())
    }
}

/// Bounds that a pool sets on the time that its claims may stay active without a renewal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TtlBounds {
    /// Time of a claim that says none; none: as long as its worker lives. At most `max_ms`, and always there with that.
    pub default_ms: Option<Millis>,
    /// Most that may be asked for.
    pub max_ms: Option<Millis>,
}

impl TtlBounds {
    /// Refuses a ttl that is longer than the pool allows.
    ///
    /// # Errors
    /// `Invalid` naming `ttl_ms` and the limit.
    pub fn check(self, ttl_ms: Option<Millis>) -> Result<(), RequestError> {
        match (ttl_ms, self.max_ms) {
            (Some(ttl_ms), Some(max_ms)) if ttl_ms > max_ms => Err(Self::ttl_too_long(max_ms)),
            _ => Ok(()),
        }
    }

    /// The refusal of a ttl that is longer than `max_ms`.
    #[must_use]
    pub fn ttl_too_long(max_ms: Millis) -> RequestError {
        RequestError::invalid("ttl_ms", format!("must be at most the pool's {max_ms} (ttl_max_ms)"))
    }
}

fn check_typical_requests(spec: &PoolSpec) -> Result<(), RequestError> {
    let all = &spec.typical_requests;
    if all.len() > limits::TYPICAL_REQUESTS_MAX {
        let message = format!("must be at most {}, got {}", limits::TYPICAL_REQUESTS_MAX, all.len());
        return Err(RequestError::invalid("typical_requests", message));
    }
    if !all.is_empty() && spec.policy() != PlacementPolicy::Fgd {
        return Err(RequestError::invalid("typical_requests", "is of use with policy fgd only"));
    }
    for (i, TypicalRequest { cpu_milli, gpu, weight }) in all.iter().enumerate() {
        let resources =
            ResourceRequirements { cpu_milli: *cpu_milli, gpu: gpu.clone(), ..ResourceRequirements::default() };
        resources.check(&format!("typical_requests[{i}]"))?;
        if *weight == 0 || *weight > 1_000_000 {
            return Err(RequestError::invalid(format!("typical_requests[{i}].weight"), "must be 1..=1000000"));
        }
    }
    Ok(())
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
    /// Of them those that hold claims.
    pub busy: u64,
    /// Claims that are held.
    pub claims: u64,
    /// Of the workers cordoned.
    pub cordoned: u64,
    /// Of them draining.
    pub draining: u64,
    /// Of them lost.
    pub lost: u64,
    /// Of them suspect.
    pub suspect: u64,
    /// Of them those whose own end of life has come.
    pub ended: u64,
    /// Of them those that run what they were told to stop.
    pub stopping: u64,
    /// Of them those that are kept for claims that wait.
    pub workers_reserved: u64,
    /// Of the workers those that are not offered and hold no claim, each under one reason: with the idle and the busy ones they
    /// are all.
    pub unschedulable: UnschedulableCounts,
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
    pub queue_depth: u64,
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
    /// Number of this specification: grows with every change, and never comes back, also not with another pool of the name.
    pub version: u64,
    /// Sum of what the workers have. GPUs by model are summed in `gpus`.
    pub capacity: WorkerCapacity,
    /// Sum of what can be claimed: what idle workers have; in a shared pool, what the workers that are offered have left.
    pub free: WorkerCapacity,
    /// Per GPU model.
    pub gpus: BTreeMap<String, GpuTotals>,
    /// Figures by shard.
    pub shards: Vec<ShardStatus>,
}

/// The cards of one model in a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GpuTotals {
    /// In all.
    pub total: u64,
    /// Of them those of which nothing is held and that can be claimed.
    pub free: u64,
    /// Thousandths of cards that can be claimed.
    pub free_milli: u64,
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
    /// Workers whose own end of life has come.
    pub ended: u64,
    /// Workers that run what they were told to stop.
    pub stopping: u64,
    /// Workers that are kept for claims that wait.
    pub workers_reserved: u64,
    /// Workers that are not offered and hold no claim, each under one reason: with the idle and the busy ones they are all.
    pub unschedulable: UnschedulableCounts,
}

impl PoolStatus {
    /// The sums over its shards.
    #[must_use]
    pub fn counts(&self) -> PoolCounts {
        let sum = |figure: fn(&ShardStatus) -> u64| self.shards.iter().map(figure).sum::<u64>();
        let (busy, reserved) = (sum(|shard| shard.busy), sum(|shard| shard.reserved));
        let releasing = sum(|shard| shard.releasing);
        let mut unschedulable = UnschedulableCounts::default();
        self.shards.iter().for_each(|shard| unschedulable.add(&shard.unschedulable));
        PoolCounts {
            total: sum(|shard| shard.workers),
            idle: sum(|shard| shard.idle),
            busy,
            reserved,
            // Shards are read one after another, so the difference is kept above zero.
            active: sum(|shard| shard.claims).saturating_sub(reserved + releasing),
            releasing,
            cordoned: sum(|shard| shard.cordoned),
            draining: sum(|shard| shard.draining),
            lost: sum(|shard| shard.lost),
            suspect: sum(|shard| shard.suspect),
            ended: sum(|shard| shard.ended),
            stopping: sum(|shard| shard.stopping),
            workers_reserved: sum(|shard| shard.workers_reserved),
            unschedulable,
        }
    }
}

/// Answer to [`WorkerCommand::Clear`] for a whole pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClearResult {
    /// Workers that are trusted since.
    pub cleared: u64,
    /// Workers that are not yet: claims that the last stop may have lost can still be started.
    pub suspect: u64,
}
