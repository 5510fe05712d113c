//! Pools: their specification, and their status in replies.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    GpuRequest, Labels, Millis, PoolName, ResourceRequirements, ResourceVector, Seq, UnschedulableCounts, check_labels,
    check_name, json_objects, present, some_object, unique_keys,
};
use crate::limits;
use crate::model::request_error::RequestError;

/// Use of workers by the claims of a pool. Never changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum PoolMode {
    /// Claims take whole workers.
    #[default]
    Exclusive,
    /// Claims take the resources that they request, several on one worker.
    Shared,
}

/// Policy that chooses the worker of a claim. The first three are for exclusive pools (after affinity), the others
/// for shared ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementPolicy {
    /// Worker that became idle last: the warmest.
    #[default]
    Lifo,
    /// Worker that became idle first.
    Fifo,
    /// Idle worker chosen by a hash of the claim's fence.
    Random,
    /// Worker with the least free resources among those that fit.
    BestFit,
    /// Worker with the most free resources.
    Spread,
    /// Worker on which the least of the free GPUs becomes useless for typical requests.
    Fgd,
}

impl PlacementPolicy {
    /// Whether pools of this mode may have the policy.
    #[must_use]
    pub const fn is_allowed_in(self, mode: PoolMode) -> bool {
        let shared = matches!(self, Self::BestFit | Self::Spread | Self::Fgd);
        shared == matches!(mode, PoolMode::Shared)
    }
}

impl PoolMode {
    /// Policy of a pool whose specification omits it.
    #[must_use]
    pub const fn default_policy(self) -> PlacementPolicy {
        match self {
            Self::Exclusive => PlacementPolicy::Lifo,
            Self::Shared => PlacementPolicy::BestFit,
        }
    }

    /// Name of the mode on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Typical request in a pool, for policy `fgd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypicalRequest {
    /// Requested thousandths of cores.
    #[serde(default)]
    pub cpu_milli: u64,
    /// Requested GPUs, if any.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_object")]
    pub gpu: Option<GpuRequest>,
    /// Relative frequency among the others: 1 to 1,000,000.
    pub weight: u32,
}

/// Moment at which a reply is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckLevel {
    /// Reply sent at once; the change is lost with the process if it is not stored yet.
    Memory,
    /// Reply sent after the change is stored.
    #[default]
    Durable,
}

/// Specification of a pool. `shards` and `mode` never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolSpec {
    /// Number of shards: a power of two from 1 to 1024.
    pub shards: u16,
    /// Use of workers by claims.
    pub mode: PoolMode,
    /// Policy that chooses the worker of a claim; none: [`PoolMode::default_policy`]. Always set [with
    /// defaults](Self::with_defaults).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub policy: Option<PlacementPolicy>,
    /// True if a claim that requests resources and no GPU takes a worker with GPUs only when no other fits.
    pub spare_gpu_workers: bool,
    /// Typical requests for policy `fgd`; empty: learned from the claims.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json_objects")]
    pub typical_requests: Vec<TypicalRequest>,
    /// Moment at which replies are sent, unless a request demands more.
    pub ack: AckLevel,
    /// User-defined labels of the pool.
    #[serde(deserialize_with = "unique_keys")]
    pub labels: Labels,
    /// Class of the pool, if it has one.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub class: Option<String>,
    /// Time for which an unconfirmed claim is held, in milliseconds; also the limit for a request.
    pub reserve_ms: u64,
    /// Time to live of a claim that sets no `ttl_ms`, without a renewal, in milliseconds. None: `ttl_max_ms`, and
    /// without that as long as its worker lives.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub ttl_default_ms: Option<u64>,
    /// Largest `ttl_ms` that a claim or a renewal may request, in milliseconds; none: [`limits::TTL_MS_MAX`], or no
    /// ttl at all.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub ttl_max_ms: Option<u64>,
    /// Time limit of a clean-up after a release, in milliseconds; after it the worker is suspect.
    pub releasing_ms: u64,
    /// Silence after which a worker that sends heartbeats is lost, in milliseconds.
    pub heartbeat_ttl_ms: u64,
    /// Time for which the full reports of a worker may omit an active claim that they never contained, in
    /// milliseconds; then the claim ends. None: the larger of `reserve_ms` and twice `heartbeat_ttl_ms`
    /// ([`Self::unnamed_ms`]).
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub unnamed_ms: Option<u64>,
    /// Time for which a lost worker is kept, in milliseconds; then it is deleted. 0: for ever.
    pub lost_keep_ms: u64,
    /// Lag of the store at which memory-acknowledged claims are rejected, in milliseconds.
    pub lag_max_ms: u64,
    /// True if a waiting claim may evict claims of lower priority that are marked `preemptible`.
    pub preemption: bool,
    /// Longest time for which workers are held for one claim or gang that waits, in milliseconds.
    pub hold_max_ms: u64,
    /// Largest number of claims that wait for capacity: 0 to 1,000,000; the next is rejected (`overloaded`).
    pub waiters_max: u32,
    /// Largest number of such claims of one tenant.
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
            hold_max_ms: 60_000,
            waiters_max: 100_000,
            waiters_tenant_max: 10_000,
        }
    }
}

impl PoolSpec {
    /// Completes the specification with the defaults.
    ///
    /// # Errors
    /// `Invalid` naming the field that is out of its limit.
    pub fn with_defaults(self) -> Result<Self, RequestError> {
        self.check()?;
        Ok(Self { policy: Some(self.policy()), ..self })
    }

    /// Policy that chooses the worker of a claim.
    #[must_use]
    pub fn policy(&self) -> PlacementPolicy {
        self.policy.unwrap_or(self.mode.default_policy())
    }

    /// Time for which the full reports of a worker may omit an active claim that they never contained.
    #[must_use]
    pub fn unnamed_ms(&self) -> u64 {
        let default = self.reserve_ms.max(self.heartbeat_ttl_ms.saturating_mul(2)).min(limits::RESERVE_MS_MAX);
        self.unnamed_ms.unwrap_or(default)
    }

    /// Limits of a claim's time to live without a renewal.
    #[must_use]
    pub fn ttl(&self) -> TtlBounds {
        TtlBounds { default_ms: self.ttl_default_ms.or(self.ttl_max_ms), max_ms: self.ttl_max_ms }
    }

    /// Time for which a claim needs its worker, in milliseconds: it may be confirmed at the last moment.
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
            let allowed = match self.mode {
                PoolMode::Exclusive => "lifo, fifo, random",
                PoolMode::Shared => "best_fit, spread, fgd",
            };
            return Err(RequestError::invalid("policy", format!("must be one of {allowed} in a pool of this mode")));
        }
        check_typical_requests(self)?;
        if !self.shards.is_power_of_two() || self.shards > limits::SHARDS_MAX {
            let message = format!("must be a power of two from 1 to {}, got {}", limits::SHARDS_MAX, self.shards);
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
                return Err(RequestError::invalid(field, format!("must be 1 to {}", limits::TTL_MS_MAX)));
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
        let holds_ms = limits::HOLD_MS_MIN..=limits::HOLD_MS_MAX;
        if !holds_ms.contains(&self.hold_max_ms) {
            let message = format!("must be {} to {}", holds_ms.start(), holds_ms.end());
            return Err(RequestError::invalid("hold_max_ms", message));
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
                return Err(RequestError::invalid(field, format!("must be 1 to {}", limits::RESERVE_MS_MAX)));
            }
        }
        Ok(())
    }
}

/// Limits of a pool for its claims' time to live without a renewal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TtlBounds {
    /// Time to live of a claim that sets none; none: as long as its worker lives. At most `max_ms`, and always set
    /// with it.
    pub default_ms: Option<Millis>,
    /// Largest time to live that may be requested.
    pub max_ms: Option<Millis>,
}

impl TtlBounds {
    /// Rejects a ttl that is longer than the pool allows.
    ///
    /// # Errors
    /// `Invalid` naming `ttl_ms` and the limit.
    pub fn check(self, ttl_ms: Option<Millis>) -> Result<(), RequestError> {
        match (ttl_ms, self.max_ms) {
            (Some(ttl_ms), Some(max_ms)) if ttl_ms > max_ms => Err(Self::ttl_too_long(max_ms)),
            _ => Ok(()),
        }
    }

    /// Error for a ttl that is longer than `max_ms`.
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
        return Err(RequestError::invalid("typical_requests", "is allowed with policy fgd only"));
    }
    for (i, TypicalRequest { cpu_milli, gpu, weight }) in all.iter().enumerate() {
        let resources =
            ResourceRequirements { cpu_milli: *cpu_milli, gpu: gpu.clone(), ..ResourceRequirements::default() };
        resources.check(&format!("typical_requests[{i}]"))?;
        if *weight == 0 || *weight > 1_000_000 {
            return Err(RequestError::invalid(format!("typical_requests[{i}].weight"), "must be 1 to 1000000"));
        }
    }
    Ok(())
}

/// Status of one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardStatus {
    /// Index of the shard in its pool.
    pub shard: u16,
    /// State: `loading`, `serving`, `refused` or `stopped`.
    pub state: Cow<'static, str>,
    /// Reason why it does not serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Number of workers that it owns.
    pub workers: u64,
    /// Number of idle workers.
    pub idle: u64,
    /// Number of workers with claims.
    pub busy: u64,
    /// Number of live claims.
    pub claims: u64,
    /// Number of cordoned workers.
    pub cordoned: u64,
    /// Number of draining workers.
    pub draining: u64,
    /// Number of lost workers.
    pub lost: u64,
    /// Number of suspect workers.
    pub suspect: u64,
    /// Number of workers past their end of life.
    pub ended: u64,
    /// Number of workers that run claims that they were asked to stop.
    pub stopping: u64,
    /// Number of workers reserved for waiting claims.
    pub workers_reserved: u64,
    /// Unschedulable workers without claims, each under one reason: with the idle and the busy ones these are all
    /// workers.
    pub unschedulable: UnschedulableCounts,
    /// Number of claims that are not confirmed yet.
    pub reserved: u64,
    /// Number of claims whose worker is being cleaned up.
    pub releasing: u64,
    /// Sequence number of the last change.
    pub seq: Seq,
    /// Sequence number of the last stored change.
    pub applied_seq: Seq,
    /// Age of the oldest change that is not stored, in milliseconds.
    pub lag_ms: u64,
    /// Number of requests in the mailbox.
    pub queue_depth: u64,
    /// Number of durable replies that wait for the store.
    pub answers_waiting: u64,
    /// Number of restarts of its actor after a panic.
    pub restarts: u64,
}

/// Status of a pool: specification, counts, and figures by shard.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolStatus {
    /// Name of the pool.
    pub name: PoolName,
    /// Specification of the pool.
    pub spec: PoolSpec,
    /// Version of this specification: grows with every change, and is never reused, not even by another pool of the
    /// name.
    pub version: u64,
    /// Total capacity of the workers. GPUs by model are in `gpus`.
    pub capacity: ResourceVector,
    /// Total that can be claimed: of idle workers; in a shared pool, the free resources of schedulable workers.
    pub free: ResourceVector,
    /// Totals of GPUs, by model.
    pub gpus: BTreeMap<String, GpuTotals>,
    /// Whether nobody is evicted until workers are cleared whose evicted claims were not released in time.
    pub preemption_paused: bool,
    /// Status of each shard.
    pub shards: Vec<ShardStatus>,
}

/// GPUs of one model in a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GpuTotals {
    /// Number of all GPUs.
    pub total: u64,
    /// Number of wholly free GPUs that can be claimed.
    pub free: u64,
    /// Thousandths of GPUs that can be claimed.
    pub free_milli: u64,
}

/// Counts of a pool's workers and claims by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolCounts {
    /// Number of all workers.
    pub total: u64,
    /// Number of idle workers.
    pub idle: u64,
    /// Number of workers with claims.
    pub busy: u64,
    /// Number of claims that are not confirmed yet.
    pub reserved: u64,
    /// Number of active claims.
    pub active: u64,
    /// Number of claims whose worker is being cleaned up.
    pub releasing: u64,
    /// Number of cordoned workers.
    pub cordoned: u64,
    /// Number of draining workers.
    pub draining: u64,
    /// Number of workers that were silent for too long.
    pub lost: u64,
    /// Number of suspect workers.
    pub suspect: u64,
    /// Number of workers past their end of life.
    pub ended: u64,
    /// Number of workers that run claims that they were asked to stop.
    pub stopping: u64,
    /// Number of workers reserved for waiting claims.
    pub workers_reserved: u64,
    /// Unschedulable workers without claims, each under one reason: with the idle and the busy ones these are all
    /// workers.
    pub unschedulable: UnschedulableCounts,
}

impl PoolStatus {
    /// Sums of the counts of its shards.
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
            // Shards are read one after another, so the difference is kept non-negative.
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

/// Result of [`WorkerCommand::Clear`](super::WorkerCommand::Clear) for a whole pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClearResult {
    /// Number of workers that were cleared.
    pub cleared: u64,
    /// Number of workers that stay suspect: claims that the last stop may have lost can still start.
    pub suspect: u64,
}
