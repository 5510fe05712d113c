//! Commands that a shard executes.

use std::num::NonZeroU64;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::reply::ReplySender;
use crate::admission::plan::CandidatePlan;
use crate::admission::queue::{ReservationRequest, WaitState};
use crate::engine::{ClaimHandle, GangAction, ListedClaim, PlacementConstraints, Shard};
use crate::limits;
use crate::model::request_error::UnavailableReason;
use crate::model::{
    AckLevel, ClaimId, ClaimState, Fence, HeartbeatRequest, Millis, QuotaResource, RegistrationRequest,
    ResourceRequirements, WorkerCommand, WorkerId,
};
use crate::shard::address::KeyTicket;

/// Pending claim. It moves from shard to shard by itself until one grants it or none is left, whether or not its
/// caller still listens, so a caller that disconnects leaves nothing pending.
#[derive(Debug)]
pub struct PendingClaim {
    /// Identity of the claim.
    pub id: ClaimId,
    /// Number of the pool that is being tried, in this process.
    pub pool: u32,
    /// Search plan, unless any worker of the pool will do. Boxed: most claims have none.
    pub plan: Option<Box<CandidatePlan>>,
    /// Right to decide the key, once [`crate::admission::key::KeyDirectory::acquire`] granted it.
    pub ticket: KeyTicket,
    /// Hash of the affinity key.
    pub affinity: u64,
    /// Time to confirm, in milliseconds.
    pub reserve_ms: Millis,
    /// Requested time to live without renewal, in milliseconds; `None` takes the pool's default.
    pub ttl_ms: Option<Millis>,
    /// Level at which the reply acknowledges the claim.
    pub ack: AckLevel,
    /// Random number that breaks ties between shards.
    pub tie_break: u64,
    /// Shards that were asked so far.
    pub tried_shards: ShardSet,
    /// Reason why an eligible shard could not be asked: the rejection cannot be "exhausted" then.
    pub unreachable: Option<UnavailableReason>,
    /// Arrival time in nanoseconds, if timed ([`crate::admission::dispatch::ClaimDispatcher::arrival_ns`]).
    pub started_ns: Option<NonZeroU64>,
    /// Sender of the reply to the caller.
    pub reply: ReplySender,
    /// Waiting state, if the claim waits or did. Boxed: most claims do not.
    pub wait: Option<Box<WaitState>>,
    /// Quota that the claim would exceed, if it got its ticket nevertheless.
    pub over_quota: Option<QuotaResource>,
}

/// Set of shards. Most claims need only the first; the bits of the others are allocated on demand.
#[derive(Debug, Default)]
pub struct ShardSet {
    first: Option<u16>,
    more: Option<Box<[u64; Self::WORDS]>>,
}

impl ShardSet {
    const WORDS: usize = limits::SHARDS_MAX as usize / 64;

    /// Adds a shard to the set.
    pub fn insert(&mut self, shard: u16) {
        if self.first.is_none() {
            self.first = Some(shard);
        } else if self.first != Some(shard) {
            self.more.get_or_insert_default()[shard as usize / 64] |= 1 << (shard % 64);
        }
    }

    /// Members among the shards `64 * word ..`, as bits.
    #[must_use]
    pub fn bits(&self, word: usize) -> u64 {
        let first = self.first.filter(|&shard| shard as usize / 64 == word).map_or(0, |shard| 1 << (shard % 64));
        first | self.more.as_ref().map_or(0, |more| more[word])
    }

    /// Whether the set contains the shard.
    #[must_use]
    pub fn contains(&self, shard: u16) -> bool {
        self.bits(shard as usize / 64) & (1 << (shard % 64)) != 0
    }

    /// Number of shards in the set.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::from(self.first.is_some())
            + self.more.as_ref().map_or(0, |more| more.iter().map(|word| word.count_ones()).sum())
    }

    /// Whether the set has no shards.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

/// Operation on the claim that holds a key.
#[derive(Debug)]
pub struct ClaimOp {
    /// Identity of the claim.
    pub id: ClaimId,
    /// Handle of the claim in the shard.
    pub handle: ClaimHandle,
    /// Arrival time in nanoseconds, if timed ([`crate::admission::dispatch::ClaimDispatcher::arrival_ns`]).
    pub started_ns: Option<NonZeroU64>,
    /// Sender of the reply to the caller.
    pub reply: ReplySender,
}

/// Action of a gang's two-phase commit at one shard.
#[derive(Debug)]
pub struct GangItem {
    /// Fence that identifies the gang.
    pub id: Fence,
    /// Action to take on the members in this shard.
    pub action: GangAction,
    /// Tickets of the members that were granted here, for a commit.
    pub tickets: Vec<(ClaimId, KeyTicket)>,
    /// Sender of the reply to the gang's driver.
    pub reply: ReplySender,
}

/// Step that a test injects in the middle of a run.
pub struct InjectedStep(pub Box<dyn FnOnce(&mut Shard) + Send>);

impl std::fmt::Debug for InjectedStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InjectedStep")
    }
}

/// Request to one shard.
#[derive(Debug)]
pub enum Command {
    /// Finds a worker for the claim.
    Claim(Box<PendingClaim>),
    /// Finds workers for many claims: one slot of the mailbox, one wake-up.
    Claims(Vec<Box<PendingClaim>>),
    /// Shows the holder of the key to a repeated claim, or rolls the holder back.
    Reacquire(Box<PendingClaim>, ClaimHandle),
    /// Releases the claim and its worker.
    Release(ClaimOp),
    /// Releases many claims and their workers.
    Releases(Vec<ClaimOp>),
    /// Confirms the claim: the holder has started.
    Confirm(ClaimOp),
    /// Renews the claim, with another time to live if given.
    Renew(ClaimOp, Option<Millis>),
    /// Changes the resources that the claim holds.
    Resize(ClaimOp, Box<ResourceRequirements>),
    /// Begins to release the claim; its worker must be cleaned before it is free.
    BeginRelease(ClaimOp),
    /// Reserves a worker for a queued claim.
    Reserve(Box<ReservationRequest>),
    /// Takes an action on the members of a gang.
    Gang(Box<GangItem>),
    /// Relinquishes the claim: a worker runs a later claim of its key, whose record was lost.
    Relinquish(ClaimHandle),
    /// Shows the claim without changing it.
    GetClaim(ClaimOp),
    /// Registers workers, or updates their registrations.
    Register(Vec<(RegistrationRequest, ReplySender)>),
    /// Handles heartbeats of workers.
    Heartbeat(Vec<(WorkerId, HeartbeatRequest, ReplySender)>),
    /// Operator command: cordon, uncordon, drain or clear.
    CommandWorker(WorkerId, WorkerCommand, ReplySender),
    /// Clears suspicion from all workers of the shard.
    ClearWorkers(ReplySender),
    /// Deletes a worker and ends its claims.
    DeleteWorker(WorkerId, ReplySender),
    /// Shows a worker of the shard.
    GetWorker(WorkerId, ReplySender),
    /// Lists workers from an ordinal on, up to a limit.
    ListWorkers(u32, usize, ReplySender),
    /// Lists claims that pass the filter from an ordinal on, up to a limit.
    ListClaims(u32, usize, ShardClaimFilter, ReplySender),
    /// Reports the figures of the shard.
    Report(ReplySender),
    /// Lists the workers that have been idle longest, up to a limit.
    IdleLongest(usize, ReplySender),
    /// Explains what a claim would find, without taking anything.
    Explain(ExplainQuery, ReplySender),
    /// Serialises rows for a snapshot: from a cursor on, about this many bytes.
    SnapshotRows(u32, usize, oneshot::Sender<(Vec<u8>, Option<u32>)>),
    /// Stops acknowledging claims from memory, and records that, because the service stops.
    Seal(ReplySender),
    /// Ends all workers from an ordinal on, a slice at a time, because the pool is being deleted.
    EndWorkers(u32, ReplySender),
    /// Executes a step of a test in the middle of a run, or panics in it. No edge can send this.
    Inject(InjectedStep),
}

/// Hypothetical claim to explain.
#[derive(Debug, Clone)]
pub struct ExplainQuery {
    /// Constraints on the worker; `None` accepts any.
    pub constraints: Option<Arc<PlacementConstraints>>,
    /// Hash of the affinity key.
    pub affinity: u64,
    /// Time for which the claim would need the worker, in milliseconds.
    pub duration_ms: Millis,
    /// Level at which the reply would acknowledge the claim.
    pub ack: AckLevel,
    /// Ordinal from which workers are surveyed; `None` previews the placement instead.
    pub from_ordinal: Option<u32>,
}

/// Filter of a listing of claims.
#[derive(Debug, Clone, Default)]
pub struct ShardClaimFilter {
    /// Only claims on this worker.
    pub worker: Option<WorkerId>,
    /// Only claims of this tenant.
    pub tenant: Option<String>,
    /// Only claims in one of these states; empty allows any.
    pub states: Vec<ClaimState>,
    /// Only claims known to be created by this unix time in milliseconds.
    pub created_by_ms: Option<Millis>,
}

impl ShardClaimFilter {
    /// Whether the claim passes the filter.
    #[must_use]
    pub fn matches(&self, claim: &ListedClaim<'_>) -> bool {
        let is_old = |by_ms| claim.times.created_at_ms().is_some_and(|at_ms| at_ms <= by_ms);
        (self.states.is_empty() || self.states.contains(&claim.state))
            && self.created_by_ms.is_none_or(is_old)
            && self.tenant.as_ref().is_none_or(|tenant| claim.id.tenant() == tenant)
            && self.worker.as_ref().is_none_or(|worker| claim.worker.id == *worker)
    }
}

impl Command {
    /// Pending claims in the command.
    pub fn claim_items(&self) -> impl Iterator<Item = &PendingClaim> + Clone {
        let items = match self {
            Self::Claim(item) => std::slice::from_ref(item),
            Self::Claims(items) => items.as_slice(),
            _ => &[],
        };
        items.iter().map(AsRef::as_ref)
    }

    /// Operations on held claims in the command.
    #[must_use]
    pub fn claim_ops(&self) -> &[ClaimOp] {
        match self {
            Self::Release(item)
            | Self::Confirm(item)
            | Self::GetClaim(item)
            | Self::Renew(item, _)
            | Self::Resize(item, _)
            | Self::BeginRelease(item) => std::slice::from_ref(item),
            Self::Releases(items) => items,
            _ => &[],
        }
    }

    /// Handles of the held claims in the command.
    pub fn handles(&self) -> impl Iterator<Item = ClaimHandle> + Clone {
        self.claim_ops().iter().map(|item| item.handle)
    }

    /// Number of fences that the command may need.
    #[must_use]
    pub const fn fences_needed(&self) -> u64 {
        match self {
            Self::Claim(_) => 1,
            Self::Claims(items) => items.len() as u64,
            _ => 0,
        }
    }
}
