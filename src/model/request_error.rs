//! Reasons why a request was not executed. A rejection is a normal outcome: it has a reason, a metric and, where the
//! caller can correct it, the field and the limit. The edges translate it by one table ([`crate::api::error_table`]).

use std::borrow::Cow;

use crate::limits;
use crate::model::{PoolMode, QuotaResource};

/// Rejection or failure of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Malformed request; `field` names the wrong part.
    #[error("{message}")]
    Invalid {
        /// Path of the wrong field, e.g. `key` or `items[3].pool`.
        field: Cow<'static, str>,
        /// Violated rule and its limit.
        message: Cow<'static, str>,
    },
    /// Unknown name or id.
    #[error("{0} not found")]
    NotFound(ObjectKind),
    /// Wrong fence: the caller is not, or no longer, the holder.
    #[error("the fence is not the holder's")]
    FenceMismatch,
    /// Key whose claim is being released: its worker is being cleaned up.
    #[error("the key's claim is being released; try again when that is finished")]
    Releasing,
    /// Claim that is being released because one of higher priority evicted it.
    #[error("a claim with a higher priority evicted it: stop the work and release the claim")]
    Preempted,
    /// Version in the request that is not the current one.
    #[error("the version is {0} now; read it again and retry")]
    VersionConflict(u64),
    /// The present state does not allow the request.
    #[error("{0}")]
    FailedPrecondition(Precondition),
    /// No worker of any pool that it may use is large enough.
    #[error("no worker of any pool that the request allows has these resources")]
    Unsatisfiable,
    /// Gang that is larger than the pools that it may use, whatever they hold.
    #[error("the gang requests more than the pools that it may use have in total")]
    GangTooLarge,
    /// Gang of which a member was rejected, so no claim of it was created.
    #[error("no claim of the gang was created: items[{0}] was rejected")]
    GangMemberRejected(usize),
    /// No free capacity. Reported only after every shard that could fit the claim rejected it.
    #[error("{0}")]
    Exhausted(ExhaustionReason),
    /// Limit of watchers of the pool, or of all pools together.
    #[error("the limit of watchers of the pool or of all pools is reached; close one and retry")]
    TooManyWatchers,
    /// Temporary failure. A claim that gets it holds nothing that was not disclosed, and a change of a pool or a
    /// quota is undone; the effect of a confirm, a release or a registration stays, even if the store failed to take
    /// it.
    #[error("{0}")]
    Unavailable(UnavailableReason),
    /// Deadline passed without a reply; the outcome is unknown, and a retry with the same key finds it.
    #[error("no answer within the deadline; the outcome is unknown, retry with the same key")]
    DeadlineExceeded,
}

/// State that does not allow a request, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Precondition {
    /// Another request with the same key is queued, and this one does not wait.
    #[error("another request is queued for this key; retry with wait_ms to wait with it")]
    KeyQueued,
    /// A gang needs a key that is held or pending.
    #[error("the key is held or being claimed; a gang needs keys that are free")]
    GangKeyTaken,
    /// The key holds an active claim that does not satisfy the request.
    #[error(
        "the key holds an active claim in another pool, or on a worker that the request does not allow; release it first"
    )]
    ClaimConflict,
    /// The key holds a claim with other resources, and the request sets `must_match`.
    #[error("must_match: the key holds a claim with other resources; release it first")]
    ResourceMismatch,
    /// The claim was not confirmed.
    #[error("the claim is not active yet; confirm it first")]
    ClaimNotActive,
    /// The worker drains, so that it cannot be uncordoned.
    #[error("the worker is draining, which ends only when it registers with a higher incarnation")]
    WorkerDraining,
    /// Claims that the last stop may have lost can still start on the worker.
    #[error("claims that the last stop may have lost can still start for {left_ms} ms; try again after that")]
    Quarantined {
        /// Remaining time in milliseconds.
        left_ms: u64,
    },
    /// The incarnation in a heartbeat was never registered.
    #[error("incarnation must be registered first; the last one registered is {registered}")]
    UnknownIncarnation {
        /// Incarnation that was registered last.
        registered: u64,
    },
    /// A registration has a lower incarnation than the worker.
    #[error("incarnation must be at least {registered}, the one registered last")]
    StaleIncarnation {
        /// Incarnation that was registered last.
        registered: u64,
    },
    /// A registration has an incarnation that was deleted recently.
    #[error(
        "incarnation must be above {deleted}, which was deleted less than {} s ago; register a higher one, or wait",
        limits::TOMBSTONE_MS / 1_000
    )]
    DeletedIncarnation {
        /// Incarnation that was deleted.
        deleted: u64,
    },
    /// The pool has workers, and its deletion does not end them.
    #[error("the pool has {workers} workers; delete them first, or set force=true to end them")]
    PoolNotEmpty {
        /// Number of workers in the pool.
        workers: u64,
    },
    /// A shard of a pool to be deleted does not serve, so its workers cannot be counted.
    #[error(
        "shard {shard} is {state}, so its workers cannot be counted; try again later, or set force=true to end them"
    )]
    ShardNotServing {
        /// Index of the shard.
        shard: u16,
        /// State of the shard.
        state: Cow<'static, str>,
    },
    /// The pool is being deleted, and its name is not free yet.
    #[error("the pool is being deleted; try again when it is gone")]
    PoolDeleting,
    /// The number of shards of a pool would change.
    #[error(
        "shards of a pool must not change: it has {current}, got {requested}; create another pool and move the workers"
    )]
    ShardsImmutable {
        /// Shards that the pool has.
        current: u16,
        /// Shards in the request.
        requested: u16,
    },
    /// The mode of a pool would change.
    #[error(
        "mode of a pool must not change: it is {}, got {}; create another pool and move the workers",
        current.as_str(),
        requested.as_str()
    )]
    ModeImmutable {
        /// Mode of the pool.
        current: PoolMode,
        /// Mode in the request.
        requested: PoolMode,
    },
    /// Maximum number of pools is reached.
    #[error("at most {} pools are allowed; delete one first", limits::POOLS_MAX)]
    PoolLimit,
    /// The shards of all pools together would exceed the limit.
    #[error(
        "at most {max} shards are allowed over all pools (server.max_shards): there are {current}, and this pool would \
         add {added}; give it fewer, delete pools, or raise server.max_shards"
    )]
    ShardLimit {
        /// Limit on the shards of all pools.
        max: usize,
        /// Shards of all pools at present.
        current: usize,
        /// Shards that the new pool would have.
        added: u16,
    },
    /// Maximum number of quotas is reached.
    #[error("at most {} quotas are allowed; delete one first", limits::QUOTAS_MAX)]
    QuotaLimit,
}

/// Kind of object that was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "snake_case")]
pub enum ObjectKind {
    /// Pool with that name.
    Pool,
    /// Worker with that id in the pool.
    Worker,
    /// Claim with that key.
    Claim,
    /// Quota of that tenant or namespace.
    Quota,
}

/// Capacity that is exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum ExhaustionReason {
    /// No acceptable worker is free.
    #[strum(serialize = "pool_exhausted")]
    Pool,
    /// The claim's worker has too little free.
    #[strum(serialize = "pool_exhausted")]
    Worker,
    /// Free workers only outside of the required nodes.
    NodeLocality,
    /// No pool with the requested class and labels.
    NoEligiblePool,
    /// No present worker could hold the claim, which has waited for one.
    Unsatisfiable,
    /// Quota of the tenant for this resource.
    Quota(QuotaResource),
}

impl ExhaustionReason {
    /// Name of the reason on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl std::fmt::Display for ExhaustionReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pool => "no worker that the request allows is free",
            Self::Worker => "the worker does not have enough free capacity; release the claim and claim again",
            Self::NodeLocality => "a worker is free, but none on a required node",
            Self::NoEligiblePool => "no pool has the requested class and labels",
            Self::Unsatisfiable => "no worker that could hold the claim has registered while it waited",
            Self::Quota(QuotaResource::Claims) => "the tenant's quota of claims is used up",
            Self::Quota(QuotaResource::Cpu) => "the tenant's quota of cpu_milli is used up",
            Self::Quota(QuotaResource::Memory) => "the tenant's quota of memory_bytes is used up",
            Self::Quota(QuotaResource::Gpu) => "the tenant's quota of gpu_milli is used up",
        })
    }
}

/// Cause of a temporary failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum UnavailableReason {
    /// Full queue, or a store that lags too far behind: slow down and retry.
    Overloaded,
    /// Required shard that is loading, restarting, or refused to serve.
    Loading,
    /// Store that did not confirm the write in time.
    Store,
    /// Store that another process owns now.
    Fenced,
    /// Service that is shutting down.
    #[strum(serialize = "loading")]
    Stopping,
}

impl UnavailableReason {
    /// Name of the cause on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl std::fmt::Display for UnavailableReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Overloaded => "a queue is full; retry later",
            Self::Loading => "a required shard is not serving yet; retry later",
            Self::Store => "the store did not confirm the write in time",
            Self::Fenced => "another process owns the store",
            Self::Stopping => "the service is shutting down",
        })
    }
}

impl From<Precondition> for RequestError {
    fn from(precondition: Precondition) -> Self {
        Self::FailedPrecondition(precondition)
    }
}

impl RequestError {
    /// The key is being waited for by another request.
    pub const KEY_ALREADY_WAITED_FOR: Self = Self::FailedPrecondition(Precondition::KeyQueued);

    /// Creates the error of a wrong field.
    pub fn invalid(field: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    /// Prefixes the field of the error with the object that contains it.
    #[must_use]
    pub fn with_field_prefix(self, outer: &str) -> Self {
        match self {
            Self::Invalid { field, message } => Self::invalid(format!("{outer}.{field}"), message),
            other => other,
        }
    }
}
